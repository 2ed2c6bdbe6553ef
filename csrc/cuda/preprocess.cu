// Pictures on the GPU: the passes of csrc/cpu/preprocess.cpp over the same per-element math, a thread per output byte.
#include "preprocess.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/ops.h"

namespace minilava::cuda {
namespace {

constexpr int kThreads = 256, kPictures = 32;

// Travels as a kernel argument, so that pictures of mixed sizes share a launch without a copy to the device.
struct Batch {
    Pass picture[kPictures];
};

void check(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

__global__ void resample_kernel(const __grid_constant__ Batch batch, bool across, int channels, int patch) {
    const Pass& pass = batch.picture[blockIdx.y];
    const ptrdiff_t i = static_cast<ptrdiff_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int row_bytes = pass.cols * channels;
    if (i >= static_cast<ptrdiff_t>(pass.rows) * row_bytes) return;
    const int y = static_cast<int>(i / row_bytes), at = static_cast<int>(i % row_bytes);
    const int x = at / channels, c = at % channels;

    const int32_t* axis = pass.axis + (across ? x : y);
    const int first = axis[0], count = axis[pass.axis_size];
    const ptrdiff_t step = across ? channels : pass.stride;
    const ptrdiff_t start = across ? y * pass.stride + c : static_cast<ptrdiff_t>(at);
    const uint8_t byte =
        resample(pass.src + start + first * step, step, axis + 2 * pass.axis_size, pass.axis_size, count);
    if (patch > 0) {
        static_cast<float*>(pass.dst)[patch_offset(y, x, c, pass.cols / patch, patch)] = normalise(byte);
    } else {
        static_cast<uint8_t*>(pass.dst)[i] = byte;
    }
}

}  // namespace

void resample_pictures(const std::vector<Pass>& passes, bool across, int channels, int patch, int device,
                       uintptr_t stream) {
    check(cudaSetDevice(device));
    for (size_t begin = 0; begin < passes.size(); begin += kPictures) {
        const size_t count = std::min<size_t>(kPictures, passes.size() - begin);
        Batch batch{};
        ptrdiff_t most = 0;
        for (size_t i = 0; i < count; ++i) {
            batch.picture[i] = passes[begin + i];
            most = std::max(most, static_cast<ptrdiff_t>(batch.picture[i].rows) * batch.picture[i].cols * channels);
        }
        const dim3 grid(static_cast<unsigned>((most + kThreads - 1) / kThreads), static_cast<unsigned>(count));
        resample_kernel<<<grid, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(batch, across, channels, patch);
        check(cudaGetLastError());
    }
}

}  // namespace minilava::cuda
