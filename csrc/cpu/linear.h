// y = x W^T + bias + residual for a few rows of x: reads W once, at the speed of memory.
#pragma once

struct Linear {
    const void *x, *w, *bias, *residual;  // (m, k), (n, k), (n) or null, (m, n) or null; all float32 or all bfloat16
    void* y;                              // (m, n)
    long m, n, k;
};

void linear_rows(const Linear& a, bool is_bf16);
