// What the blocks of a quantised decoder and of a quantised tower are made of.
#pragma once
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "cpu/linear_i8.h"

struct MatrixI8 {
    const uint8_t* values;
    const uint16_t* scales;
    const float* bias;        // (n) or null
    long n, width, k, group;  // as in linear_i8.h: k is width rounded up to whole groups
    int bits;
};

// Rows to take at a time: enough that reading the weights again for them costs little, few enough that what they hand
// on stays in the caches.
constexpr long ROWS = 256;

struct Product {
    const MatrixI8& w;
    float* y;
    const float* residual = nullptr;
    Activation activation = Activation::kNone;
};

// Rows of x, rounded once for all matrices that multiply them. The next ones overwrite them.
class RoundedFor {
  public:
    RoundedFor(const MatrixI8& like, const float* x, long m)
        : rows(rounded_rows(x, m, like.width, like.k, like.group, like.bits)), like(like), m(m) {}

    void times(std::initializer_list<Product> products) const {
        std::vector<LinearI8> all;
        for (const Product& p : products) {
            const MatrixI8& w = p.w;
            if (w.width != like.width || w.group != like.group || w.bits != like.bits)
                throw std::invalid_argument("matrices of one input differ in their format");
            if (p.activation == Activation::kSwiglu && (all.empty() || all.back().y != p.y || all.back().n != w.n))
                throw std::invalid_argument("no product before makes what this one gates with");
            all.push_back({w.values, w.scales, rows.values, rows.scales, rows.sums, w.bias, p.residual, p.y, m, w.n,
                           w.k, w.group, w.bits, p.activation});
        }
        linear_i8(all.data(), all.size());
    }

  private:
    const RoundedRows rows;
    const MatrixI8& like;
    const long m;
};

// Memory that is kept from call to call and only ever grows.
inline float* room(std::vector<float>& v, long count) {
    if (long(v.size()) < count) v.resize(count);
    return v.data();
}

// What lies between the operations of a block: of the calling thread, for tower and decoder, which take turns.
struct BlockScratch {
    std::vector<float> norm, query, key, value, hidden;
};
inline BlockScratch& block_scratch() {
    static thread_local BlockScratch scratch;
    return scratch;
}
