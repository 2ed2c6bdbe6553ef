// Packed variable-length attention: flash-style blocks for prompts, a streaming pass over the cache for single queries.
#pragma once
#include <cstdint>

#include "cpu/kind.h"

struct Attention {
    const void *q, *k, *v;                  // rows of heads * dim and kv_heads * dim
    void* out;                              // (queries, heads, dim), contiguous; may be q
    const int32_t *cu_q, *k_start, *k_len;  // sequence s: queries cu_q[s]..cu_q[s + 1], keys k_start[s] + 0..k_len[s]
    long sequences, heads, kv_heads, dim;
    long q_stride, k_stride, v_stride;  // elements, or Cached8, from row to row
    bool causal;
    float scale;
    float* lse;   // (queries, heads) or null
    bool narrow;  // without lse: all sequences are multiplied in bfloat16 where the CPU has such products
};

// Some work for one thread, made by the dispatcher in attention.cpp.
constexpr long QUERIES = 60;  // queries in a Block at most: a multiple of the 6 and 5 rows of the register tiles
struct Pack {  // one kv head of one sequence; where (floats) its transposed keys and padded values lie in packed memory
    long sequence, kv_head, keys, values;
};
struct Block {  // some queries of one head, against one Pack
    long pack, head, first, count;
};
struct Chunk {  // some keys against one query row, for the heads of some kv heads
    long row, first_key, count, kv_from, kv_to;
    long partial;  // where (floats) per head lie: maximum, sum, and dim accumulated values
};

// `queries` and `rows` are the rows of q and of k; throws std::invalid_argument if the offsets do not fit them.
void attention(const Attention& a, long queries, long rows, Kind kind);

// Gradients where keys are packed as queries are: sequence s has the rows cu[s]..cu[s + 1] of q, k and v.
struct AttentionBackward {
    const void *q, *k, *v, *out, *grad;  // out and its gradient: (rows, heads, dim), contiguous
    const float* lse;                    // (rows, heads), from the forward pass
    void *dq, *dk, *dv;                  // contiguous
    const int32_t* cu;
    long sequences, heads, kv_heads, dim;
    long q_stride, k_stride, v_stride;
    bool causal;
    float scale;
};
void attention_backward(const AttentionBackward& a, long rows, bool is_bf16);

// Memory of the calling thread, kept from call to call: fresh pages for every layer would cost as much as packing does.
// 0 floats: give it back.
float* attention_scratch(long floats);
