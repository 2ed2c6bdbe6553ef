// Splits packed attention into work for the threads and picks the instruction set.
#include "cpu/attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cpu/simd.h"
#define SIMD_FILE "cpu/attention.inc"
#define SIMD_BF16_TOO
#include "cpu/each_simd.h"

namespace {

constexpr long FEW = 4;            // queries of a sequence up to which its cache is streamed, once for each of them
constexpr long CHUNK = 256;        // keys of one Chunk: fixed, so that results do not depend on the threads
constexpr long BUDGET = 4L << 20;  // floats of packed keys and values at a time: 16 MiB stay in a last-level cache
constexpr long WIDEST = 64;        // keys in the widest panel, and a multiple of every vector, of any instruction set

long up(long n, long to) { return (n + to - 1) / to * to; }

// E: of the queries and the output, C: of the keys and values.
template <class E, class C>
void attend_prompts(const Attention& a, const std::vector<long>& sequences, [[maybe_unused]] bool narrow) {
    const long per = narrow ? 2 : 1;  // packed elements in a float
    const long own = omp_get_max_threads() * SIMD_PICK(block_scratch)(a.dim), share = a.heads / a.kv_heads;
    std::vector<Pack> packs;
    std::vector<Block> blocks;
    long used = 0;
    for (size_t i = 0; i < sequences.size(); ++i)
        for (long g = 0; g < a.kv_heads; ++g) {
            const long s = sequences[i], queries = a.cu_q[s + 1] - a.cu_q[s], keys = up(a.k_len[s], WIDEST);
            const long width = up(a.dim, 2) / per, padded = up(a.dim, WIDEST) / per;
            packs.push_back({s, g, used, used + keys * width});
            used += keys * (width + padded);
            for (long h = g * share; h < (g + 1) * share; ++h)
                for (long first = 0; first < queries; first += QUERIES)
                    blocks.push_back({long(packs.size()) - 1, h, first, std::min(QUERIES, queries - first)});
            const bool last = i + 1 == sequences.size() && g + 1 == a.kv_heads;
            if (used < BUDGET && !last) continue;
            float* memory = attention_scratch(up(own, 16) + used);
            auto run = SIMD_PICK(attend_blocks<E, C, float>);
#if defined(__x86_64__)
            if (narrow) run = &avx512_bf16::attend_blocks<E, C, bf16>;
#endif
            run(a, packs.data(), packs.size(), blocks.data(), blocks.size(), memory + up(own, 16), memory);
            packs.clear();
            blocks.clear();
            used = 0;
        }
}

template <class E, class C>
void attend_rows(const Attention& a, const std::vector<long>& sequences) {
    const auto keys_of = [&](long s, long row) {
        return std::max(0L, a.causal ? long(a.k_len[s]) - (a.cu_q[s + 1] - 1 - row) : long(a.k_len[s]));
    };
    long whole = 0;  // chunks if every chunk took all heads
    for (const long s : sequences)
        for (long row = a.cu_q[s]; row < a.cu_q[s + 1]; ++row) whole += up(keys_of(s, row), CHUNK) / CHUNK;
    // Enough pieces to balance the threads; a piece of all heads reads the cache in one run.
    const long threads = omp_get_max_threads(), wanted = whole >= 4 * threads ? 1 : 4 * threads / std::max(1L, whole);
    const long heads = std::max(1L, a.kv_heads / wanted), share = a.heads / a.kv_heads;
    std::vector<Chunk> chunks;
    std::vector<long> joins;
    long partials = 0;
    for (const long s : sequences)
        for (long row = a.cu_q[s]; row < a.cu_q[s + 1]; ++row)
            for (long g = 0; g < a.kv_heads; g += heads) {
                const long to = std::min(g + heads, a.kv_heads), n = keys_of(s, row);
                joins.push_back(chunks.size());
                for (long key = 0; key == 0 || key < n; key += CHUNK) {
                    chunks.push_back({row, a.k_start[s] + key, std::min(CHUNK, n - key), g, to, partials});
                    partials += (to - g) * share * (a.dim + 2);
                }
            }
    joins.push_back(chunks.size());
    const long each = heads * share * CHUNK;
    float* memory = attention_scratch(threads * each + partials);
    SIMD_PICK(attend_chunks<E, C>)
    (a, chunks.data(), chunks.size(), joins.data(), joins.size() - 1, memory + threads * each, memory, each);
}

template <class E, class C>
void attend(const Attention& a) {
    const bool narrow = a.narrow && !a.lse && minilava::simd() == minilava::Simd::kAvx512Bf16;
    std::vector<long> few, many;
    for (long s = 0; s < a.sequences; ++s) {
        const long queries = a.cu_q[s + 1] - a.cu_q[s];
        if (queries) ((queries <= FEW && !narrow) || a.k_len[s] == 0 ? few : many).push_back(s);
    }
    if (!few.empty()) attend_rows<E, C>(a, few);
    if (!many.empty()) attend_prompts<E, C>(a, many, narrow);
}

}  // namespace

float* attention_scratch(long floats) {
    static thread_local std::unique_ptr<float, decltype(&std::free)> memory(nullptr, &std::free);
    static thread_local long size = 0;
    if (floats > size || !floats) {
        memory.reset();
        size = 0;
        if (!floats) return nullptr;
        memory.reset(static_cast<float*>(std::aligned_alloc(64, up(floats * sizeof(float), 64))));
        if (!memory) throw std::bad_alloc();
        size = floats;
    }
    return memory.get();
}

void attention(const Attention& a, long queries, long rows, Kind kind) {
    bool fits = a.cu_q[0] == 0 && a.cu_q[a.sequences] == queries;
    for (long s = 0; s < a.sequences; ++s)
        fits &= a.cu_q[s] <= a.cu_q[s + 1] && a.k_start[s] >= 0 && a.k_len[s] >= 0 &&
                long(a.k_start[s]) + a.k_len[s] <= rows;
    if (!fits) throw std::invalid_argument("attention: cu_q, k_start or k_len reach outside the queries or the keys");
    switch (kind) {
        case Kind::kFloat:
            return attend<float, float>(a);
        case Kind::kBfloat16:
            return attend<bf16, bf16>(a);
        case Kind::kI8Cache:
            return attend<float, Cached8>(a);
    }
}
