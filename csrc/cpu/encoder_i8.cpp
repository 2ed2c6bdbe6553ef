#include "cpu/encoder_i8.h"

#include <algorithm>

#include "cpu/attention.h"
#include "cpu/rowwise.h"

void EncoderBlockI8::run(float* x, long views, long patches) const {
    BlockScratch& s = block_scratch();
    const long width = q.width, dim = width / heads;
    // Attention wants whole views.
    const long together = std::min(std::max(ROWS / patches, 1L), views), part = std::min(ROWS, together * patches);
    float* norm = room(s.norm, part * width);
    float* query = room(s.query, together * patches * width);  // and what attention gives
    float* key = room(s.key, together * patches * width);
    float* value = room(s.value, together * patches * width);
    float* hidden = room(s.hidden, part * fc1.n);
    std::vector<int32_t> starts, lengths(together, patches);  // of a view's rows
    for (long i = 0; i <= together; ++i) starts.push_back(i * patches);
    for (long view = 0; view < views; view += together, x += together * patches * width) {
        const long some = std::min(together, views - view), rows = some * patches;
        for (long from = 0; from < rows; from += part) {
            const long n = std::min(part, rows - from), at = from * width;
            layer_norm({x + at, nullptr, norm1, bias1, nullptr, norm, n, width, eps}, false);
            RoundedFor(q, norm, n).times({{q, query + at}, {k, key + at}, {v, value + at}});
        }
        attention({query, key, value, query, starts.data(), starts.data(), lengths.data(), some, heads, heads, dim,
                   width, width, width, false, scale, nullptr, true},
                  rows, rows, Kind::kFloat);
        for (long from = 0; from < rows; from += part) {
            const long n = std::min(part, rows - from);
            float* at = x + from * width;
            RoundedFor(out, query + from * width, n).times({{out, at, at}});
            layer_norm({at, nullptr, norm2, bias2, nullptr, norm, n, width, eps}, false);
            RoundedFor(fc1, norm, n).times({{fc1, hidden, nullptr, Activation::kGeluTanh}});
            RoundedFor(fc2, hidden, n).times({{fc2, at, at}});
        }
    }
}
