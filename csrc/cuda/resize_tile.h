// One tile of a resized picture, both passes: the first into memory that a block's threads share, the second out of it.
// For nvcc and g++ alike: the host can run a block's threads one after the other, phase by phase.
#pragma once

#include "cuda/ops.h"
#include "preprocess.h"

namespace minilava::cuda {

// An axis table as Resize describes it.
struct AxisView {
    const int32_t* table;
    int size;
    MINILAVA_HD int first(int i) const { return table[i]; }
    MINILAVA_HD int count(int i) const { return table[size + i]; }
    MINILAVA_HD int end(int i) const { return first(i) + count(i); }
    MINILAVA_HD const int32_t* coef(int i) const { return table + 2 * static_cast<ptrdiff_t>(size) + i; }
};

// Output rows [y0, y1) and columns [x0, x1), and the source rows or columns that the first pass has to make of them.
// Windows move monotonically along an axis, so the first and the last output pixel bound what is read.
struct Tile {
    AxisView across, down;
    int x0, x1, y0, y1, from, until;

    MINILAVA_HD Tile(const Resize& r, int index) : across{r.across, r.across_size}, down{r.down, r.down_size} {
        const int columns = (r.cols + r.tile_cols - 1) / r.tile_cols;
        x0 = index % columns * r.tile_cols, y0 = index / columns * r.tile_rows;
        x1 = x0 + r.tile_cols < r.cols ? x0 + r.tile_cols : r.cols;
        y1 = y0 + r.tile_rows < r.rows ? y0 + r.tile_rows : r.rows;
        from = until = 0;
        if (y0 >= r.rows) return;
        from = r.down_first ? across.first(x0) : down.first(y0);
        until = r.down_first ? across.end(x1 - 1) : down.end(y1 - 1);
    }
    MINILAVA_HD bool empty() const { return until == 0; }
    MINILAVA_HD int width(const Resize& r, int channels) const {  // bytes of a shared row
        return (r.down_first ? until - from : x1 - x0) * channels;
    }
    MINILAVA_HD int shared_rows(const Resize& r) const { return r.down_first ? y1 - y0 : until - from; }
};

MINILAVA_HD inline void first_pass(const Resize& r, const Tile& tile, int channels, uint8_t* shared, int thread,
                                   int threads) {
    const int width = tile.width(r, channels), total = tile.shared_rows(r) * width;
    for (int i = thread; i < total; i += threads) {
        const int row = i / width, at = i % width, col = at / channels, c = at % channels;
        if (r.down_first) {
            const int y = tile.y0 + row;
            const uint8_t* src = r.src + tile.down.first(y) * r.stride + (tile.from + col) * channels + c;
            shared[i] = resample(src, r.stride, tile.down.coef(y), tile.down.size, tile.down.count(y));
        } else {
            const int x = tile.x0 + col;
            const uint8_t* src = r.src + (tile.from + row) * r.stride + tile.across.first(x) * channels + c;
            shared[i] = resample(src, channels, tile.across.coef(x), tile.across.size, tile.across.count(x));
        }
    }
}

MINILAVA_HD inline void second_pass(const Resize& r, const Tile& tile, int channels, int patch, const uint8_t* shared,
                                    int thread, int threads) {
    const int width = tile.width(r, channels), out_width = (tile.x1 - tile.x0) * channels;
    const int total = (tile.y1 - tile.y0) * out_width;
    for (int i = thread; i < total; i += threads) {
        const int y = tile.y0 + i / out_width, x = tile.x0 + i % out_width / channels, c = i % channels;
        uint8_t byte;
        if (r.down_first) {
            const uint8_t* src = shared + (y - tile.y0) * width + (tile.across.first(x) - tile.from) * channels + c;
            byte = resample(src, channels, tile.across.coef(x), tile.across.size, tile.across.count(x));
        } else {
            const uint8_t* src = shared + (tile.down.first(y) - tile.from) * width + (x - tile.x0) * channels + c;
            byte = resample(src, width, tile.down.coef(y), tile.down.size, tile.down.count(y));
        }
        if (patch > 0) {
            static_cast<float*>(r.dst)[patch_offset(y, x, c, r.cols / patch, patch)] = normalise(byte);
        } else {
            static_cast<uint8_t*>(r.dst)[(static_cast<ptrdiff_t>(y) * r.cols + x) * channels + c] = byte;
        }
    }
}

}  // namespace minilava::cuda
