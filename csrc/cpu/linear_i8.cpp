// Picks the instruction set for linear_i8 and divides its work among threads.
#include "cpu/linear_i8.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "cpu/simd.h"
#define SIMD_FILE "cpu/linear_i8.inc"
#include "cpu/each_simd.h"

void quantize_rows(const QuantizeRows& a) {
    const auto run = SIMD_PICK(quantize);
    const long groups = a.m * (a.k / a.group);
#pragma omp parallel if (a.m * a.k > 1 << 15)
    {
        const long t = omp_get_thread_num(), threads = omp_get_num_threads();
        run(a, groups * t / threads, groups * (t + 1) / threads);
    }
}

RoundedRows rounded_rows(const float* x, long m, long width, long k, long group, int bits) {
    static thread_local std::vector<int8_t> values;
    static thread_local std::vector<float> scales;
    static thread_local std::vector<int32_t> sums;
    const long groups = m * (k / group);
    // Only ever larger: growing again would clear it again.
    if (long(values.size()) < m * k) values.resize(m * k);
    if (long(scales.size()) < groups) scales.resize(groups), sums.resize(groups);
    quantize_rows({x, values.data(), scales.data(), sums.data(), m, width, k, group, bits});
    return {values.data(), scales.data(), sums.data()};
}

void linear_i8(const LinearI8* all, long count) {
    const auto run = SIMD_PICK(linear_i8);
    long work = 0;
    for (long i = 0; i < count; ++i) work += all[i].m * all[i].n * all[i].k;
#pragma omp parallel if (work > 1 << 16)
    {
        const long t = omp_get_thread_num(), threads = omp_get_num_threads();
        const auto share = [&](long i, long t) {  // of a thread, up to the next one's: whole pairs of panels
            const long panels = (all[i].n + PANEL - 1) / PANEL, pairs = (panels + 1) / 2;
            return std::min(panels, 2 * (pairs * t / threads));
        };
        long left = 0;
        for (long i = 0; i < count; ++i) left = std::max(left, share(i, t + 1) - share(i, t));
        // Up to 8 rows only have the weights to read, which is fastest front to back. Of more, a pair of panels of one
        // product after the same pair of another: what they make of y is then still in the first cache.
        const long step = all[0].m <= 8 ? left : 2;
        for (long from = 0; from < left; from += step)
            for (long i = 0; i < count; ++i) {
                const long begin = share(i, t) + from, end = share(i, t + 1);
                run(all[i], begin, std::min(begin + step, end));
            }
    }
}

void dequantize_rows(const uint8_t* weight, const uint16_t* scales, const int64_t* ids, float* y, long m, long width,
                     long k, long group, int bits) {
    const long groups = k / group;
#pragma omp parallel for if (m * width > 1 << 15)
    for (long i = 0; i < m; ++i) {
        const long panel = ids[i] / PANEL, lane = ids[i] % PANEL;
        const uint8_t* w = weight + panel * (k * PANEL * bits / 8) + lane * 4;
        for (long g = 0; g * group < width; ++g) {
            const uint32_t bits_of_scale = uint32_t(scales[(panel * groups + g) * PANEL + lane]) << 16;
            float scale;
            memcpy(&scale, &bits_of_scale, 4);
            for (long j = g * group; j < std::min((g + 1) * group, width); ++j) {
                const uint8_t byte = w[(bits == 8 ? j / 4 : j / 8) * PANEL * 4 + j % 4];
                y[i * width + j] = (bits == 8 ? byte - 128 : (j % 8 < 4 ? byte & 15 : byte >> 4) - 8) * scale;
            }
        }
    }
}
