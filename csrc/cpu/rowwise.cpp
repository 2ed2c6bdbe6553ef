// Picks the instruction set of the row-wise operations.
#include "cpu/rowwise.h"

#include <stdexcept>
#include <vector>

#include "cpu/simd.h"

namespace {
constexpr long SUMMED = 128;  // rows in one chain of the sum of a weight's gradient, whatever the threads
constexpr long WIDEST_HEAD = 512;  // that is rounded to 8 bits
}

#define SIMD_FILE "cpu/rowwise.inc"
#include "cpu/each_simd.h"

namespace {

template <class E>
void norm(const void* x, const float* weight, void* y, long rows, long dim, float eps) {
    SIMD_PICK(rms_norm<E>)(static_cast<const E*>(x), weight, static_cast<E*>(y), rows, dim, eps);
}

template <class E>
void norm_backward(const void* x, const float* weight, const void* grad, void* dx, float* dw, long rows, long dim,
                   float eps) {
    std::vector<float> parts((rows + SUMMED - 1) / SUMMED * dim);
    SIMD_PICK(rms_norm_backward<E>)
    (static_cast<const E*>(x), weight, static_cast<const E*>(grad), static_cast<E*>(dx), parts.data(), rows, dim, eps);
    for (long j = 0; j < dim; ++j) dw[j] = 0;
    for (size_t i = 0; i < parts.size(); ++i) dw[i % dim] += parts[i];
}

}  // namespace

void rms_norm(const void* x, const float* weight, void* y, long rows, long dim, float eps, bool is_bf16) {
    (is_bf16 ? norm<bf16> : norm<float>)(x, weight, y, rows, dim, eps);
}

void rms_norm_backward(const void* x, const float* weight, const void* grad, void* dx, float* dw, long rows, long dim,
                       float eps, bool is_bf16) {
    (is_bf16 ? norm_backward<bf16> : norm_backward<float>)(x, weight, grad, dx, dw, rows, dim, eps);
}

void layer_norm(const LayerNorm& a, bool is_bf16) {
    is_bf16 ? SIMD_PICK(layer_norm<bf16>)(a) : SIMD_PICK(layer_norm<float>)(a);
}

void rope_kv(const RopeKv& a, Kind kind) {
    for (long r = 0; r < a.rows; ++r)
        if (a.positions[r] < 0 || a.positions[r] >= a.table_rows || a.slots[r] < 0 || a.slots[r] >= a.cache_rows)
            throw std::out_of_range("rope_kv: a position is outside the tables or a slot outside the cache");
    if (a.dim > WIDEST_HEAD && kind == Kind::kI8Cache)
        throw std::invalid_argument("rope_kv: heads of more than 512 do not go to a cache of 8 bits");
    switch (kind) {
        case Kind::kFloat:
            return SIMD_PICK(rope_kv<float, float>)(a);
        case Kind::kBfloat16:
            return SIMD_PICK(rope_kv<bf16, bf16>)(a);
        case Kind::kI8Cache:
            return SIMD_PICK(rope_kv<float, Cached8>)(a);
    }
}

void rope(const Rope& a, bool is_bf16) { is_bf16 ? SIMD_PICK(rope<bf16>)(a) : SIMD_PICK(rope<float>)(a); }

void swiglu(const Swiglu& a, bool is_bf16) { is_bf16 ? SIMD_PICK(swiglu<bf16>)(a) : SIMD_PICK(swiglu<float>)(a); }

void swiglu_backward(const Swiglu& a, bool is_bf16) {
    is_bf16 ? SIMD_PICK(swiglu_backward<bf16>)(a) : SIMD_PICK(swiglu_backward<float>)(a);
}
