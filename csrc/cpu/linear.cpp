// Picks the instruction set for linear_rows.
#include "cpu/linear.h"

#include <omp.h>

#include <vector>

#include "cpu/simd.h"
#define SIMD_FILE "cpu/linear.inc"
#include "cpu/each_simd.h"

void linear_rows(const Linear& a, bool is_bf16) {
    static thread_local std::vector<float> room;
    float* packed = nullptr;
    if (is_bf16 || a.m > 1) {
        room.resize(a.m * ((a.k + 15) / 16 * 16) + 15);
        // On a cache line's start: vectors that straddle two lines would cost twice.
        packed = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64 / sizeof(float);
    }
    is_bf16 ? SIMD_PICK(linear_rows<bf16>)(a, packed) : SIMD_PICK(linear_rows<float>)(a, packed);
}
