// What a SIMD level supplies to resampling: how it packs coefficients, and one block of rows in each direction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace minilava {

struct RowKernels;

// One axis of a resize, for the first `size` output pixels. Windows are padded with zero taps to a multiple of four,
// which SIMD code may read in full; `count` is what a window really has.
struct Axis {
    const RowKernels* kernels;
    int size, taps;
    std::vector<int32_t> first, count, coef;  // (size), (size), (size, taps)
    std::vector<int32_t> packed;              // the level's own layout of coef
};

struct RowKernels {
    // coef -> the layout that the two functions below read in axis.packed.
    void (*pack)(const std::vector<int32_t>& coef, std::vector<int32_t>& packed);
    // Four source rows -> four output rows of axis.size pixels (at least four). Reads up to axis.taps * channels + 16
    // bytes past the end of a source row, writes nothing outside the output rows. Rows may repeat.
    void (*horizontal)(const Axis& axis, const uint8_t* const src[4], uint8_t* const dst[4], int channels);
    // Output row y, `bytes` long, from rows `stride` apart; `last` is the number of the last of them.
    void (*vertical)(const Axis& axis, int y, const uint8_t* src, ptrdiff_t stride, int last, uint8_t* dst, int bytes);
};

extern const RowKernels kPortableRows;
#if defined(__x86_64__)
extern const RowKernels kAvx2Rows, kAvx512Rows;

// Per channel count: gathers 4 taps of interleaved pixels into one 32-bit lane per channel (128: zero), and drops the
// unused lanes of 4 result pixels again.
alignas(16) constexpr uint8_t kTapsByChannel[4][16] = {
    {0, 1, 2, 3, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128},
    {0, 2, 4, 6, 1, 3, 5, 7, 128, 128, 128, 128, 128, 128, 128, 128},
    {0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 128, 128, 128, 128},
    {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15},
};
alignas(16) constexpr uint8_t kDropLanes[4][16] = {
    {0, 4, 8, 12, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128},
    {0, 1, 4, 5, 8, 9, 12, 13, 128, 128, 128, 128, 128, 128, 128, 128},
    {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 128, 128, 128, 128},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
};
#endif

}  // namespace minilava
