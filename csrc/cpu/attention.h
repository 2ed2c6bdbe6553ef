// Packed variable-length attention: flash-style blocks for prompts, a streaming pass over the cache for single queries.
#pragma once
#include <cstdint>

struct Attention {
    const void *q, *k, *v;                  // rows of heads * dim and kv_heads * dim, all float32 or all bfloat16
    void* out;                              // (queries, heads, dim), contiguous
    const int32_t *cu_q, *k_start, *k_len;  // sequence s: queries cu_q[s]..cu_q[s + 1], keys k_start[s] + 0..k_len[s]
    long sequences, heads, kv_heads, dim;
    long q_stride, k_stride, v_stride;      // elements from row to row
    bool causal;
    float scale;
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
void attention(const Attention& a, long queries, long rows, bool is_bf16);
