// A block of a quantised vision tower in one call: views go through it a few at a time, so that what its products hand
// on stays in the caches and in memory that is there already.
#pragma once
#include "cpu/matrix_i8.h"

struct EncoderBlockI8 {
    const float *norm1, *bias1, *norm2, *bias2;
    MatrixI8 q, k, v, out, fc1, fc2;
    long heads;
    float eps, scale;

    // x: (views, patches, width), overwritten by what the block gives.
    void run(float* x, long views, long patches) const;
};
