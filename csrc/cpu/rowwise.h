// The operations between matrix products: norms, rotary embedding and SwiGLU, and their gradients. Tensors are all
// float32 or all bfloat16 where a function takes is_bf16, and contiguous where they have no stride.
#pragma once
#include <cstdint>

#include "cpu/kind.h"

void rms_norm(const void* x, const float* weight, void* y, long rows, long dim, float eps, bool is_bf16);
// dw: float32 (dim), whatever the dtype of x.
void rms_norm_backward(const void* x, const float* weight, const void* grad, void* dx, float* dw, long rows, long dim,
                       float eps, bool is_bf16);

struct LayerNorm {
    const void *x, *residual;  // (rows, dim); residual or null
    const float *weight, *bias;
    void *total, *y;  // the sum with the residual, where there is one, and the norm
    long rows, dim;
    float eps;
};
void layer_norm(const LayerNorm& a, bool is_bf16);

struct RopeKv {
    void *q, *k, *v;                   // rows at the strides below; q is rotated in place, k and v are read
    const void *cos, *sin;             // (positions, dim / 2)
    const int64_t *positions, *slots;  // (rows): row of the tables, and row of the caches
    void *k_cache, *v_cache;           // (cache rows, kv_heads, dim), or as many Cached8 as hold dim, contiguous
    long rows, heads, kv_heads, dim, table_rows, cache_rows;
    long q_stride, k_stride, v_stride;
};
void rope_kv(const RopeKv& a, Kind kind);  // throws std::out_of_range before writing anything

struct Rope {
    const void *q, *k, *cos, *sin;  // (rows, heads or kv_heads, dim) at the strides below, and (rows, dim / 2)
    void *q_out, *k_out;
    long rows, heads, kv_heads, dim, q_stride, k_stride;
    float sign;  // -1 rotates back
};
void rope(const Rope& a, bool is_bf16);

struct Swiglu {
    const void *gate, *up;  // (rows, width)
    void* y;                // may be gate; forward only
    const void* grad;       // backward only, as are the next
    void *dgate, *dup;
    long rows, width, gate_stride, up_stride, y_stride;
};
void swiglu(const Swiglu& a, bool is_bf16);
void swiglu_backward(const Swiglu& a, bool is_bf16);
