// Picks the instruction set for linear_rows.
#include "cpu/linear.h"

#include <omp.h>

#include <vector>

#include "cpu/simd.h"
#define SIMD_FILE "cpu/linear.inc"
#include "cpu/each_simd.h"

void linear_rows(const Linear& a, bool is_bf16) {
    if (!is_bf16) return SIMD_PICK(linear_rows<float>)(a, static_cast<const float*>(a.x));
    static thread_local std::vector<float> x;  // converted once, not once per tile of W
    x.resize(a.m * a.k);
    for (long i = 0; i < a.m * a.k; ++i) x[i] = portable::to_float(static_cast<const bf16*>(a.x)[i]);
    SIMD_PICK(linear_rows<bf16>)(a, x.data());
}
