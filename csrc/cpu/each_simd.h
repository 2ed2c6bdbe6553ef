// Compiles the file named by SIMD_FILE once per instruction set, in the namespaces portable, avx2 and avx512.
// Everything is internal to the including .cpp, and no library header is included inside a target region: an inline
// function compiled for AVX-512 there could be the copy the linker keeps for a CPU without it.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

namespace portable {
#define SIMD_WIDTH 4
#include "vec.inc"
#include SIMD_FILE
#undef SIMD_WIDTH
}  // namespace portable

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define SIMD_WIDTH 8
#include "vec.inc"
#include SIMD_FILE
#undef SIMD_WIDTH
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace avx512 {
#define SIMD_WIDTH 16
#include "vec.inc"
#include SIMD_FILE
#undef SIMD_WIDTH
}  // namespace avx512
#pragma GCC pop_options

#ifdef SIMD_BF16_TOO  // for products of bfloat16, which some CPUs with AVX-512 have
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")
namespace avx512_bf16 {
#define SIMD_WIDTH 16
#define SIMD_BF16
#include "vec.inc"
#include SIMD_FILE
#undef SIMD_BF16
#undef SIMD_WIDTH
}  // namespace avx512_bf16
#pragma GCC pop_options
#endif
#endif

}  // namespace
