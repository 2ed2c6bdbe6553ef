// Pictures on the GPU: a block resizes a tile of a picture, both passes, and lays it out; mixed sizes share a launch.
#include "preprocess.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/ops.h"
#include "cuda/resize_tile.h"

namespace minilava::cuda {
namespace {

constexpr int kThreads = 256, kPictures = 256;

// Travels as a kernel argument, so that nothing has to be copied to the device first.
struct Batch {
    Resize picture[kPictures];
};

void check(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

__global__ void __launch_bounds__(kThreads)
    resize_kernel(const __grid_constant__ Batch batch, int channels, int patch) {
    extern __shared__ uint8_t shared[];
    const Resize& picture = batch.picture[blockIdx.y];
    const Tile tile(picture, static_cast<int>(blockIdx.x));
    if (tile.empty()) return;  // a smaller picture of the batch
    first_pass(picture, tile, channels, shared, static_cast<int>(threadIdx.x), kThreads);
    __syncthreads();
    second_pass(picture, tile, channels, patch, shared, static_cast<int>(threadIdx.x), kThreads);
}

int tiles(const Resize& r) {
    return (r.rows + r.tile_rows - 1) / r.tile_rows * ((r.cols + r.tile_cols - 1) / r.tile_cols);
}

}  // namespace

void resize_pictures(const std::vector<Resize>& pictures, int channels, int patch, int shared, int device,
                     uintptr_t stream) {
    check(cudaSetDevice(device));
    for (size_t begin = 0; begin < pictures.size(); begin += kPictures) {
        const size_t count = std::min<size_t>(kPictures, pictures.size() - begin);
        Batch batch{};
        int most = 0;
        for (size_t i = 0; i < count; ++i) {
            batch.picture[i] = pictures[begin + i];
            most = std::max(most, tiles(pictures[begin + i]));
        }
        const dim3 grid(static_cast<unsigned>(most), static_cast<unsigned>(count));
        resize_kernel<<<grid, kThreads, shared, reinterpret_cast<cudaStream_t>(stream)>>>(batch, channels, patch);
        check(cudaGetLastError());
    }
}

void resize_pictures_on_host(const std::vector<Resize>& pictures, int channels, int patch, int shared) {
    std::vector<uint8_t> memory(shared);
    for (const Resize& picture : pictures) {
        for (int i = 0; i < tiles(picture) + 1; ++i) {  // one more than there are, as in a batch of mixed sizes
            const Tile tile(picture, i);
            if (tile.empty()) continue;
            if (tile.shared_rows(picture) * tile.width(picture, channels) > shared) {
                throw std::runtime_error("a tile needs more shared memory than it was given");
            }
            for (int t = 0; t < kThreads; ++t) first_pass(picture, tile, channels, memory.data(), t, kThreads);
            for (int t = 0; t < kThreads; ++t) second_pass(picture, tile, channels, patch, memory.data(), t, kThreads);
        }
    }
}

}  // namespace minilava::cuda
