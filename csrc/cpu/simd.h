// Which instruction set the CPU kernels use: the best this CPU has, or the one that was asked for.
#pragma once

#include <string>

namespace minilava {

// AVX2 means AVX2 and FMA; AVX512 means F, BW, VL, DQ and VNNI; AVX512_BF16 has products of bfloat16 beside.
enum class Simd { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The level in force. First call: MINILAVA_SIMD (avx512_bf16, avx512, avx2, portable or auto), else the best.
// Throws std::invalid_argument for a name that is unknown or that this CPU lacks.
Simd simd();

const char* simd_name();
void set_simd(const std::string& name);

}  // namespace minilava

// The copy of a function made by each_simd.h for the level in force.
#if defined(__x86_64__)
#define SIMD_PICK(...)                                                  \
    (minilava::simd() >= minilava::Simd::kAvx512 ? &avx512::__VA_ARGS__ \
     : minilava::simd() == minilava::Simd::kAvx2 ? &avx2::__VA_ARGS__   \
                                                 : &portable::__VA_ARGS__)
#else
#define SIMD_PICK(...) (&portable::__VA_ARGS__)
#endif
