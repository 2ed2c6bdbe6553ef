// The CUDA operations that binding.cpp exposes. Addresses and sizes are checked by the callers in kernels/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace minilava::cuda {

// One picture in one pass of a resize. `axis` is int32 (2 + taps, axis_size): each output pixel's first source pixel,
// its number of taps, and then its coefficients tap by tap.
struct Pass {
    const uint8_t* src;
    ptrdiff_t stride;  // bytes from one source row to the next
    const int32_t* axis;
    int axis_size;
    int rows, cols;  // of the result
    void* dst;       // bytes (rows, cols, channels); or, with patches, floats (patches, 3 * patch * patch)
};

// Runs one pass for every picture. across: along x, else along y. patch: 0 for bytes, else the side of the patches
// that the normalised result is laid out in. Asynchronous on `stream`; throws std::runtime_error if a launch fails.
void resample_pictures(const std::vector<Pass>& passes, bool across, int channels, int patch, int device,
                       uintptr_t stream);

}  // namespace minilava::cuda
