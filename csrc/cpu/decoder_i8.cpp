// The blocks of a quantised decoder, one after the other, from the kernels that Python calls one by one.
#include "cpu/decoder_i8.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/attention.h"
#include "cpu/rowwise.h"

namespace {

// Memory of the calling thread, kept from call to call.
struct Scratch {
    std::vector<float> norm, query, key, value, context, gate, up;
};

float* room(std::vector<float>& v, long count) {
    if (long(v.size()) < count) v.resize(count);
    return v.data();
}

// Rows of x, rounded once for all matrices that multiply them.
class Rounded {
  public:
    Rounded(const float* x, long m, const MatrixI8& like)
        : rows(rounded_rows(x, m, like.width, like.k, like.group, like.bits)), like(like), m(m) {}

    void times(const MatrixI8& w, float* y, const float* residual = nullptr) const {
        if (w.width != like.width || w.group != like.group || w.bits != like.bits)
            throw std::invalid_argument("decoder_i8: matrices of one input differ in their format");
        linear_i8({w.values, w.scales, rows.values, rows.scales, rows.sums, w.bias, residual, y, m, w.n, w.k, w.group,
                   w.bits, Activation::kNone});
    }

  private:
    const RoundedRows rows;
    const MatrixI8& like;
    const long m;
};

void gather(const float* from, float* to, const int64_t* rows, long count, long width) {
    for (long i = 0; i < count; ++i) std::copy_n(from + rows[i] * width, width, to + i * width);  // rows ascend
}

}  // namespace

void DecoderI8::run(const Batch& b, const std::vector<void*>& keys, const std::vector<void*>& values) const {
    if (keys.size() != blocks.size() || values.size() != blocks.size())
        throw std::invalid_argument("decoder_i8: a cache for every block is needed");
    for (size_t i = 0; i < blocks.size(); ++i) block(blocks[i], b, keys[i], values[i], i + 1 == blocks.size());
}

void DecoderI8::block(const DecoderBlockI8& w, const Batch& b, void* keys, void* values, bool final) const {
    static thread_local Scratch s;
    const long width = w.q.width, query_width = heads * dim, kv_width = kv_heads * dim;
    float* norm = room(s.norm, b.rows * width);
    float* query = room(s.query, b.rows * query_width);
    float* key = room(s.key, b.rows * kv_width);
    float* value = room(s.value, b.rows * kv_width);
    rms_norm(b.x, w.norm1, norm, b.rows, width, eps, false);
    {
        const Rounded n(norm, b.rows, w.q);
        n.times(w.q, query);
        n.times(w.k, key);
        n.times(w.v, value);
    }
    rope_kv({query, key, value, b.cos, b.sin, b.positions, b.slots, keys, values, b.rows, heads, kv_heads, dim,
             b.table_rows, b.cache_rows, query_width, kv_width, kv_width, b.half_cache});
    long rows = b.rows;
    std::vector<int32_t> single;
    if (final && b.lasts) {  // keys and values are made for all rows, everything after them for these alone
        rows = b.lasts;
        gather(query, query, b.last, rows, query_width);
        gather(b.x, b.x, b.last, rows, width);
        for (long i = 0; i <= rows; ++i) single.push_back(i);
    }
    float* context = room(s.context, rows * query_width);
    attention({query, keys, values, context, single.empty() ? b.cu_q : single.data(), b.k_start, b.k_len, b.sequences,
               heads, kv_heads, dim, query_width, kv_width, kv_width, true, b.scale, nullptr},
              rows, b.cache_rows, b.half_cache ? Kind::kHalfCache : Kind::kFloat);
    Rounded(context, rows, w.o).times(w.o, b.x, b.x);
    rms_norm(b.x, w.norm2, norm, rows, width, eps, false);
    float* gate = room(s.gate, rows * w.gate.n);
    float* up = room(s.up, rows * w.gate.n);
    {
        const Rounded n(norm, rows, w.gate);
        n.times(w.gate, gate);
        n.times(w.up, up);
    }
    swiglu({gate, up, gate, nullptr, nullptr, nullptr, rows, w.gate.n, w.gate.n, w.gate.n, w.gate.n}, false);
    Rounded(gate, rows, w.down).times(w.down, b.x, b.x);
}
