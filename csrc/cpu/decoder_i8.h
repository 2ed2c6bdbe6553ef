// All blocks of a quantised decoder in one call: what a decoding step costs beside its products is mostly being called.
#pragma once
#include <vector>

#include "cpu/matrix_i8.h"

struct DecoderBlockI8 {
    const float *norm1, *norm2;
    MatrixI8 q, k, v, o, gate, up, down;
};

class DecoderI8 {
  public:
    DecoderI8(long heads, long kv_heads, long dim, float eps) : heads(heads), kv_heads(kv_heads), dim(dim), eps(eps) {}

    struct Batch {
        float* x;                          // (rows, width): embeddings in; hidden rows out, `lasts` of them if not 0
        const float *cos, *sin;            // (positions, dim / 2)
        const int64_t *positions, *slots;  // (rows): row of the tables, row of the caches
        const int32_t *cu_q, *k_start, *k_len;  // as in attention.h
        const int64_t* last;                    // (lasts): the last row of every sequence, the only ones wanted
        long rows, sequences, lasts, table_rows, cache_rows;
        float scale;
        bool i8_cache, prompt;  // prompt: attention may be narrow (attention.h)
    };
    // caches: keys and values of every block, (cache_rows, kv_heads, dim), float32 or Cached8. Throws as rope_kv and
    // attention do.
    void run(const Batch& b, const std::vector<void*>& keys, const std::vector<void*>& values) const;

    std::vector<DecoderBlockI8> blocks;

  private:
    void block(const DecoderBlockI8& w, const Batch& b, void* keys, void* values, bool final) const;
    const long heads, kv_heads, dim;
    const float eps;
};
