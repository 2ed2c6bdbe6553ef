// The per-element math of picture preprocessing, for g++ and nvcc alike: the CPU path and the GPU twin run these lines.
//
// Bicubic resampling (a = -0.5, antialiased) of bytes in fixed point, the rule of Pillow's Image.resize: weights in
// double, normalised, rounded to 22 fractional bits; an axis is one pass, its result rounded and clipped to bytes.
// Bit-exactness rests on double arithmetic without contraction, so compute coefficients only in code built for a
// target without fused multiply-add (plain x86-64), never inside a SIMD target region or on the GPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define MINILAVA_HD __host__ __device__
#else
#define MINILAVA_HD
#endif

namespace minilava {

constexpr int kFractionBits = 22;
constexpr uint32_t kHalf = 1u << (kFractionBits - 1);

inline double cubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

// The source pixels that output pixel i of an axis reads, and where that pixel's centre lies among them.
struct Window {
    int first, count;
    double centre, shrink;
};

inline Window window(int in, int out, int i) {
    const double scale = static_cast<double>(in) / out;
    const double stretch = scale < 1.0 ? 1.0 : scale;
    const double support = 2.0 * stretch, centre = (i + 0.5) * scale;
    int first = static_cast<int>(centre - support + 0.5), end = static_cast<int>(centre + support + 0.5);
    first = first < 0 ? 0 : first;
    end = end > in ? in : end;
    return {first, end - first, centre, 1.0 / stretch};
}

inline int max_window(int in, int out) {
    int most = 0;
    for (int i = 0; i < out; ++i) {
        const int count = window(in, out, i).count;
        most = count > most ? count : most;
    }
    return most;
}

// Writes coef[t * step] for the window's taps; `weight` has room for them as doubles. The order of the additions and
// the division (not a product with the reciprocal) decide the last bit.
inline void coefficients(const Window& at, double* weight, int32_t* coef, ptrdiff_t step) {
    double sum = 0.0;
    for (int t = 0; t < at.count; ++t) {
        weight[t] = cubic((t + at.first - at.centre + 0.5) * at.shrink);
        sum += weight[t];
    }
    for (int t = 0; t < at.count; ++t) {
        const double w = (sum != 0.0 ? weight[t] / sum : weight[t]) * (1 << kFractionBits);
        coef[t * step] = static_cast<int32_t>(w < 0 ? w - 0.5 : w + 0.5);
    }
}

// One output byte: `count` source bytes `step` apart against coefficients `coef_step` apart. Unsigned, so that the
// arithmetic is modulo 2^32 by definition.
MINILAVA_HD inline uint8_t resample(const uint8_t* src, ptrdiff_t step, const int32_t* coef, ptrdiff_t coef_step,
                                    int count) {
    uint32_t sum = kHalf;
    for (int t = 0; t < count; ++t) sum += src[t * step] * static_cast<uint32_t>(coef[t * coef_step]);
    const int32_t value = static_cast<int32_t>(sum) >> kFractionBits;
    return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Byte -> [-1, 1] as the image processor computes it: the rescale in double, the rest in float.
MINILAVA_HD inline float normalise(uint8_t byte) {
    const float x = static_cast<float>(byte * (1.0 / 255.0));
    return (x - 0.5f) / 0.5f;
}

// Where pixel (y, x), channel c of a view goes in its (P, 3 * patch * patch) patches of (channel, row, column) order.
MINILAVA_HD inline ptrdiff_t patch_offset(int y, int x, int c, int side, int patch) {
    const ptrdiff_t index = static_cast<ptrdiff_t>(y / patch) * side + x / patch;
    return ((index * 3 + c) * patch + y % patch) * patch + x % patch;
}

}  // namespace minilava
