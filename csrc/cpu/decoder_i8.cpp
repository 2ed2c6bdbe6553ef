// The blocks of a quantised decoder, one after the other, from the kernels that Python calls one by one.
#include "cpu/decoder_i8.h"

#include <algorithm>

#include "cpu/attention.h"
#include "cpu/rowwise.h"

namespace {

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
    BlockScratch& s = block_scratch();
    const long width = w.q.width, query_width = heads * dim, kv_width = kv_heads * dim;
    const long most = std::min(ROWS, b.rows);
    const Kind kind = b.i8_cache ? Kind::kI8Cache : Kind::kFloat;
    const long cached = b.i8_cache ? kv_heads * Cached8::count(dim) : kv_width;  // of a row
    float* norm = room(s.norm, most * width);
    float* query = room(s.query, b.rows * query_width);
    float* key = room(s.key, most * kv_width);
    float* value = room(s.value, most * kv_width);
    for (long from = 0; from < b.rows; from += most) {
        const long n = std::min(most, b.rows - from);
        rms_norm(b.x + from * width, w.norm1, norm, n, width, eps, false);
        RoundedFor(w.q, norm, n).times({{w.q, query + from * query_width}, {w.k, key}, {w.v, value}});
        rope_kv({query + from * query_width, key, value, b.cos, b.sin, b.positions + from, b.slots + from, keys, values,
                 n, heads, kv_heads, dim, b.table_rows, b.cache_rows, query_width, kv_width, kv_width},
                kind);
    }
    long rows = b.rows;
    std::vector<int32_t> single;
    if (final && b.lasts) {  // keys and values are made for all rows, everything after them for these alone
        rows = b.lasts;
        gather(query, query, b.last, rows, query_width);
        gather(b.x, b.x, b.last, rows, width);
        for (long i = 0; i <= rows; ++i) single.push_back(i);
    }
    attention({query, keys, values, query, single.empty() ? b.cu_q : single.data(), b.k_start, b.k_len, b.sequences,
               heads, kv_heads, dim, query_width, cached, cached, true, b.scale, nullptr, b.prompt},
              rows, b.cache_rows, kind);
    float* gate = room(s.hidden, most * w.gate.n);
    for (long from = 0; from < rows; from += most) {
        const long n = std::min(most, rows - from);
        float* x = b.x + from * width;
        RoundedFor(w.o, query + from * query_width, n).times({{w.o, x, x}});
        rms_norm(x, w.norm2, norm, n, width, eps, false);
        RoundedFor(w.gate, norm, n).times({{w.gate, gate}, {w.up, gate, nullptr, Activation::kSwiglu}});
        RoundedFor(w.down, gate, n).times({{w.down, x, x}});
    }
}
