// Which instruction set the CPU kernels use; see simd.h.
#include "cpu/simd.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace minilava {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};
std::atomic<int> level{-1};  // -1: not chosen yet

bool has(int wanted) {
#if defined(__x86_64__)
    if (wanted == 3) return has(2) && __builtin_cpu_supports("avx512bf16");
    if (wanted == 2) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
    }
    if (wanted == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return wanted == 0;
}

int parse(const std::string& name) {
    if (name.empty() || name == "auto") return has(3) ? 3 : has(2) ? 2 : has(1) ? 1 : 0;
    for (int i = 0; i < 4; ++i) {
        if (name != kNames[i]) continue;
        if (!has(i)) throw std::invalid_argument("this CPU has no " + name);
        return i;
    }
    throw std::invalid_argument("unknown SIMD level '" + name + "': use avx512_bf16, avx512, avx2, portable or auto");
}

}  // namespace

Simd simd() {
    if (level < 0) {
        const char* asked = std::getenv("MINILAVA_SIMD");
        level = parse(asked ? asked : "auto");
    }
    return static_cast<Simd>(level.load());
}

const char* simd_name() { return kNames[static_cast<int>(simd())]; }
void set_simd(const std::string& name) { level = parse(name); }

}  // namespace minilava
