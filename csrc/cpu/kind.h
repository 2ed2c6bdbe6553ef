// The dtypes that the operations with a cache run in.
#pragma once

// kFloat and kBfloat16: all tensors; kHalfCache: keys and values are float16, the rest float32.
enum class Kind { kFloat, kBfloat16, kHalfCache };
