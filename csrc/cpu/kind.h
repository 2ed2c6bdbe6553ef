// The dtypes that the operations with a cache run in.
#pragma once
#include <cstdint>

// kFloat and kBfloat16: all tensors; kI8Cache: keys and values are Cached8, the rest float32.
enum class Kind { kFloat, kBfloat16, kI8Cache };

// Up to 32 values of a cached key or value: scale (a bfloat16) times what is stored, zeros behind the head's last.
struct Cached8 {
    static constexpr long SIZE = 32;
    static constexpr long count(long dim) { return (dim + SIZE - 1) / SIZE; }  // of a head
    uint16_t scale;
    int8_t values[SIZE];
};
