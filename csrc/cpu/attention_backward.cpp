// Splits the gradients of packed attention into work for the threads and picks the instruction set.
#include <omp.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/attention.h"
#include "cpu/simd.h"
#define SIMD_FILE "cpu/attention_backward.inc"
#include "cpu/each_simd.h"

namespace {

template <class E>
void backward(const AttentionBackward& a) {
    const auto rows = [&](long task) { return a.cu[task / a.kv_heads + 1] - a.cu[task / a.kv_heads]; };
    std::vector<long> tasks;
    for (long i = 0; i < a.sequences * a.kv_heads; ++i)
        if (rows(i)) tasks.push_back(i);
    if (tasks.empty()) return;
    std::sort(tasks.begin(), tasks.end(), [&](long i, long j) { return rows(i) > rows(j); });
    const long each = (SIMD_PICK(backward_scratch)(rows(tasks[0]), a.dim) + 15) / 16 * 16;  // whole cache lines
    const long threads = std::min<long>(omp_get_max_threads(), tasks.size());
    SIMD_PICK(attend_backward<E>)
    (a, tasks.data(), tasks.size(), attention_scratch(threads * each), each, threads);
}

}  // namespace

void attention_backward(const AttentionBackward& a, long rows, bool is_bf16) {
    bool fits = a.cu[0] == 0 && a.cu[a.sequences] == rows;
    for (long s = 0; s < a.sequences; ++s) fits &= a.cu[s] <= a.cu[s + 1];
    if (!fits) throw std::invalid_argument("attention: cu_q reaches outside the queries");
    is_bf16 ? backward<bf16>(a) : backward<float>(a);
}
