// Picks the instruction set of the row-wise operations.
#include "cpu/rowwise.h"

#include <stdexcept>

#include "cpu/simd.h"
#define SIMD_FILE "cpu/rowwise.inc"
#include "cpu/each_simd.h"

void rms_norm(const float* x, const float* weight, float* y, long rows, long dim, float eps) {
    SIMD_PICK(rms_norm)(x, weight, y, rows, dim, eps);
}

void rope_kv(const RopeKv& a) {
    for (long r = 0; r < a.rows; ++r)
        if (a.positions[r] < 0 || a.positions[r] >= a.table_rows || a.slots[r] < 0 || a.slots[r] >= a.cache_rows)
            throw std::out_of_range("rope_kv: a position is outside the tables or a slot outside the cache");
    SIMD_PICK(rope_kv)(a);
}

void swiglu(float* gate, const float* up, long rows, long width, long gate_stride, long up_stride) {
    SIMD_PICK(swiglu)(gate, up, rows, width, gate_stride, up_stride);
}
