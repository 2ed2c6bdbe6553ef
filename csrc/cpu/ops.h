// The CPU operations that binding.cpp exposes. Addresses and sizes are checked by the callers in kernels/.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minilava {

// A picture of bytes: rows of w pixels of `channels` (1 to 4) interleaved bytes, `stride` bytes apart.
struct Picture {
    const uint8_t* data;
    int h, w, channels;
    ptrdiff_t stride;
};

// vertical_first: which axis is resampled, and so rounded to bytes, first.
// threads: 0 for as many as pay, up to OpenMP's own number (which torch.set_num_threads sets).
void resize(const Picture& src, uint8_t* dst, int out_h, int out_w, bool vertical_first, int threads);
void patchify(const uint8_t* views, float* dst, int n, int view, int patch, int threads);
void resize_patchify(const Picture& src, float* dst, int view, int patch, bool vertical_first, int threads);

}  // namespace minilava
