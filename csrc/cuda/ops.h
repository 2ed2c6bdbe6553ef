// The CUDA operations that binding.cpp exposes. Addresses and sizes are checked by the callers in kernels/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace minilava::cuda {

constexpr int kSharedBytes = 48 * 1024;  // what a block may use without asking for more

// One picture of a batch. `across` and `down` are int32 tables (2 + taps, size): each output pixel's first source
// pixel, its number of taps, and then its coefficients tap by tap.
struct Resize {
    const uint8_t* src;
    ptrdiff_t stride;  // bytes from one source row to the next
    const int32_t *across, *down;
    int across_size, down_size;
    int rows, cols;            // of the result: the top left of what the tables describe
    int tile_rows, tile_cols;  // of the result that one block makes
    bool down_first;
    void* dst;  // bytes (rows, cols, channels); or, with patches, floats (patches, 3 * patch * patch)
};

// Resizes every picture. patch: 0 for bytes, else the side of the patches that the normalised result is laid out in.
// shared: bytes that the hungriest tile needs, at most kSharedBytes. Asynchronous on `stream`, one launch for up to 256
// pictures; throws std::runtime_error if it fails.
void resize_pictures(const std::vector<Resize>& pictures, int channels, int patch, int shared, int device,
                     uintptr_t stream);

// The same on the host, block by block: every line of the kernel, for tests on machines without a GPU.
void resize_pictures_on_host(const std::vector<Resize>& pictures, int channels, int patch, int shared);

}  // namespace minilava::cuda
