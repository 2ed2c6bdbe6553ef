// Pictures on the CPU: resize as Pillow does, normalise, lay out as patches; rows in parallel, SIMD chosen at run time.
#include "preprocess.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "cpu/ops.h"
#include "cpu/preprocess_rows.h"
#include "cpu/simd.h"

namespace minilava {
namespace {

void no_packing(const std::vector<int32_t>&, std::vector<int32_t>&) {}

void portable_horizontal(const Axis& axis, const uint8_t* const src[4], uint8_t* const dst[4], int channels) {
    for (int row = 0; row < 4; ++row) {
        if (row > 0 && dst[row] == dst[row - 1]) continue;
        for (int x = 0; x < axis.size; ++x) {
            const uint8_t* at = src[row] + static_cast<ptrdiff_t>(axis.first[x]) * channels;
            const int32_t* coef = &axis.coef[static_cast<size_t>(x) * axis.taps];
            uint8_t* to = dst[row] + static_cast<ptrdiff_t>(x) * channels;
            for (int c = 0; c < channels; ++c) to[c] = resample(at + c, channels, coef, 1, axis.count[x]);
        }
    }
}

void portable_vertical(const Axis& axis, int y, const uint8_t* src, ptrdiff_t stride, int, uint8_t* dst, int bytes) {
    const uint8_t* at = src + axis.first[y] * stride;
    const int32_t* coef = &axis.coef[static_cast<size_t>(y) * axis.taps];
    for (int x = 0; x < bytes; ++x) dst[x] = resample(at + x, stride, coef, 1, axis.count[y]);
}

const RowKernels* row_kernels() {
    switch (simd()) {
#if defined(__x86_64__)
        case Simd::kAvx512Bf16:
        case Simd::kAvx512: return &kAvx512Rows;
        case Simd::kAvx2: return &kAvx2Rows;
#endif
        default: return &kPortableRows;
    }
}

// How many threads to use: what was asked for, else one per MiB that is read and written. A smaller share takes less
// time than a thread needs to wake up, and on a busy machine that wait is long.
int team(int threads, ptrdiff_t bytes) {
    if (threads > 0) return threads;
    return static_cast<int>(std::clamp<ptrdiff_t>(bytes >> 20, 1, omp_get_max_threads()));
}

// The first `size` of the `out` pixels that an axis of `in` pixels becomes.
Axis make_axis(int in, int out, int size, const RowKernels* kernels) {
    const int taps = (max_window(in, out) + 3) / 4 * 4;
    Axis axis{kernels, size, taps, std::vector<int32_t>(size), std::vector<int32_t>(size),
              std::vector<int32_t>(static_cast<size_t>(size) * taps), {}};
    std::vector<double> weight(taps);
    for (int i = 0; i < size; ++i) {
        const Window at = window(in, out, i);
        axis.first[i] = at.first;
        axis.count[i] = at.count;
        coefficients(at, weight.data(), &axis.coef[static_cast<size_t>(i) * taps], 1);
    }
    kernels->pack(axis.coef, axis.packed);
    return axis;
}

// How far SIMD loads may run past the end of a row in a horizontal pass.
ptrdiff_t overrun(const Axis& axis, int channels) { return static_cast<ptrdiff_t>(axis.taps) * channels + 16; }

// The first `rows` rows of src resampled along x into dst, whose rows are tight.
void horizontal_pass(const Picture& src, const Axis& axis, int rows, uint8_t* dst, int threads) {
    // Running past a row's end is harmless but for the buffer's last rows: those move to a copy.
    const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(src.w) * src.channels, slack = overrun(axis, src.channels);
    const int safe = static_cast<int>(std::max<ptrdiff_t>(0, src.h - (slack + src.stride - 1) / src.stride));
    std::vector<uint8_t> tail(static_cast<size_t>(src.h - safe) * row_bytes + slack);
    for (int y = safe; y < src.h; ++y) {
        std::memcpy(&tail[(y - safe) * row_bytes], src.data + y * src.stride, row_bytes);
    }
    const ptrdiff_t out_bytes = static_cast<ptrdiff_t>(axis.size) * src.channels;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int block = 0; block < rows; block += 4) {
        const uint8_t* from[4];
        uint8_t* to[4];
        for (int i = 0; i < 4; ++i) {
            const int y = std::min(block + i, rows - 1);
            from[i] = y < safe ? src.data + y * src.stride : tail.data() + (y - safe) * row_bytes;
            to[i] = dst + y * out_bytes;
        }
        axis.kernels->horizontal(axis, from, to, src.channels);
    }
}

// Along x into a picture of its own, then along y; each finished row goes to emit(y, row).
template <typename Emit>
void across_then_down(Picture src, const Axis* across, const Axis* down, int rows, int threads, Emit emit) {
    std::unique_ptr<uint8_t[]> middle;
    if (across) {
        const int needed = down ? down->first[rows - 1] + down->count[rows - 1] : rows;
        middle.reset(new uint8_t[static_cast<size_t>(needed) * across->size * src.channels]);
        horizontal_pass(src, *across, needed, middle.get(), threads);
        src = {middle.get(), needed, across->size, src.channels, static_cast<ptrdiff_t>(across->size) * src.channels};
    }
    const int bytes = src.w * src.channels;
    std::vector<uint8_t> lines(down ? static_cast<size_t>(threads) * bytes : 0);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int y = 0; y < rows; ++y) {
        if (!down) {
            emit(y, src.data + y * src.stride);
            continue;
        }
        uint8_t* line = &lines[static_cast<size_t>(omp_get_thread_num()) * bytes];
        down->kernels->vertical(*down, y, src.data, src.stride, src.h - 1, line, bytes);
        emit(y, line);
    }
}

// Along y first: then four rows at a time go all the way, and nothing larger is ever stored.
template <typename Emit>
void down_then_across(const Picture& src, const Axis& down, const Axis& across, int threads, Emit emit) {
    const int bytes = src.w * src.channels, out_bytes = across.size * src.channels;
    const size_t each = bytes + overrun(across, src.channels), scratch = 4 * (each + out_bytes);
    std::vector<uint8_t> lines(threads * scratch);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int block = 0; block < down.size; block += 4) {
        uint8_t* mine = &lines[omp_get_thread_num() * scratch];
        const uint8_t* from[4];
        uint8_t* to[4];
        const int live = std::min(4, down.size - block);
        for (int i = 0; i < 4; ++i) {
            const int row = std::min(i, live - 1);
            from[i] = mine + row * each;
            to[i] = mine + 4 * each + row * out_bytes;
        }
        for (int i = 0; i < live; ++i) {
            down.kernels->vertical(down, block + i, src.data, src.stride, src.h - 1, mine + i * each, bytes);
        }
        across.kernels->horizontal(across, from, to, src.channels);
        for (int i = 0; i < live; ++i) emit(block + i, to[i]);
    }
}

// The top left (rows, cols) of src resized to (out_h, out_w), row by row and in any order, to emit(y, row).
template <typename Emit>
void resample_rows(const Picture& src, int out_h, int out_w, int rows, int cols, bool vertical_first, int threads,
                   Emit emit) {
    const RowKernels* kernels = row_kernels();
    const ptrdiff_t pixels = static_cast<ptrdiff_t>(src.h) * src.w + static_cast<ptrdiff_t>(rows) * cols;
    threads = team(threads, pixels * src.channels);
    Axis across{}, down{};
    if (src.w != out_w) across = make_axis(src.w, out_w, cols, cols < 4 ? &kPortableRows : kernels);
    if (src.h != out_h) down = make_axis(src.h, out_h, rows, kernels);
    if (vertical_first && across.size && down.size) {
        down_then_across(src, down, across, threads, emit);
    } else {
        across_then_down(src, across.size ? &across : nullptr, down.size ? &down : nullptr, rows, threads, emit);
    }
}

std::array<float, 256> byte_values() {
    std::array<float, 256> value;
    for (int byte = 0; byte < 256; ++byte) value[byte] = normalise(static_cast<uint8_t>(byte));
    return value;
}

// `side` patches' worth of one row of pixels, normalised; dst is where the first patch keeps this row.
void write_patches(const uint8_t* row, float* dst, int side, int patch, const float* value) {
    const ptrdiff_t plane = static_cast<ptrdiff_t>(patch) * patch;
    for (int p = 0; p < side; ++p, dst += 3 * plane) {
        for (int x = 0; x < patch; ++x, row += 3) {
            for (int c = 0; c < 3; ++c) dst[c * plane + x] = value[row[c]];
        }
    }
}

}  // namespace

const RowKernels kPortableRows = {no_packing, portable_horizontal, portable_vertical};

void resize(const Picture& src, uint8_t* dst, int out_h, int out_w, bool vertical_first, int threads) {
    const ptrdiff_t bytes = static_cast<ptrdiff_t>(out_w) * src.channels;
    resample_rows(src, out_h, out_w, out_h, out_w, vertical_first, threads,
                  [=](int y, const uint8_t* row) { std::memcpy(dst + y * bytes, row, bytes); });
}

void patchify(const uint8_t* views, float* dst, int n, int view, int patch, int threads) {
    const int side = view / patch, rows = side * patch;
    const auto value = byte_values();
    threads = team(threads, static_cast<ptrdiff_t>(n) * view * view * 3);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int i = 0; i < n; ++i) {
        for (int y = 0; y < rows; ++y) {
            const uint8_t* row = views + (static_cast<ptrdiff_t>(i) * view + y) * view * 3;
            float* to = dst + static_cast<ptrdiff_t>(i) * rows * rows * 3 + patch_offset(y, 0, 0, side, patch);
            write_patches(row, to, side, patch, value.data());
        }
    }
}

void resize_patchify(const Picture& src, float* dst, int view, int patch, bool vertical_first, int threads) {
    const int side = view / patch, size = side * patch;  // pixels past the last patch are never computed
    const auto value = byte_values();
    resample_rows(src, view, view, size, size, vertical_first, threads, [&](int y, const uint8_t* row) {
        write_patches(row, dst + patch_offset(y, 0, 0, side, patch), side, patch, value.data());
    });
}

}  // namespace minilava
