// y = act(x W^T + bias) + residual in integers: weights of 8 or 4 bits, activations rounded to 8 bits on the way in.
#pragma once
#include <cstdint>

// A value stands for scale * (stored - zero), one scale per row and group of k. Weights are stored unsigned, zero being
// 128 or 8, in panels of 16 rows: [n / 16][k / 4][16][4] bytes, where at 4 bits a byte holds a value of an even quad in
// its low half and the same one of the next quad in its high half. Scales: bfloat16, [n / 16][k / group][16].
constexpr long PANEL = 16;

struct QuantizeRows {
    const float* x;  // (m, width)
    int8_t* values;  // (m, k): k is width rounded up to whole groups, zeros behind
    float* scales;   // (m, k / group)
    int32_t* sums;   // (m, k / group): of the values, times -zero, which makes up for the unsigned weights
    long m, width, k, group;
    int bits;  // of the weights they will meet
};
void quantize_rows(const QuantizeRows& a);

// The same into memory of the calling thread, which its next call overwrites.
struct RoundedRows {
    const int8_t* values;
    const float* scales;
    const int32_t* sums;
};
RoundedRows rounded_rows(const float* x, long m, long width, long k, long group, int bits);

enum class Activation {
    kNone,
    kGeluTanh,
    kSwiglu,  // y holds what is gated with: y = silu(y) * (x W^T + bias)
};
struct LinearI8 {
    const uint8_t* weight;
    const uint16_t* weight_scales;
    const int8_t* x;  // these three as quantize_rows writes them
    const float* x_scales;
    const int32_t* x_sums;
    const float *bias, *residual;  // (n) and (m, n), or null
    float* y;                      // (m, n)
    long m, n, k, group;           // group: a multiple of 32 that divides k
    int bits;
    Activation activation;
};
// Some products of the same rows, between which no thread waits for another. One with kSwiglu follows the one of as
// many columns that makes its y.
void linear_i8(const LinearI8* all, long count);

// Rows of the weight as floats: row ids[i] to y + i * width. Ids are checked by the caller.
void dequantize_rows(const uint8_t* weight, const uint16_t* scales, const int64_t* ids, float* y, long m, long width,
                     long k, long group, int bits);
