// The float32 operations between matrix products: RMS norm, rotary embedding with cache writes, and SwiGLU.
#pragma once
#include <cstdint>

void rms_norm(const float* x, const float* weight, float* y, long rows, long dim, float eps);

struct RopeKv {
    float *q, *k, *v;                      // rows at the strides below; q is rotated in place, k and v are read
    const float *cos, *sin;                // (positions, dim / 2)
    const int64_t *positions, *slots;      // (rows): row of the tables, and row of the caches
    float *k_cache, *v_cache;              // (cache rows, kv_heads, dim), contiguous
    long rows, heads, kv_heads, dim, table_rows, cache_rows;
    long q_stride, k_stride, v_stride;
};
void rope_kv(const RopeKv& a);  // throws std::out_of_range before writing anything

void swiglu(float* gate, const float* up, long rows, long width, long gate_stride, long up_stride);  // into gate
