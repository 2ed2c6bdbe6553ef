// Resampling rows with AVX2: coefficients as two 16-bit halves, so that one madd does two taps exactly.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "cpu/preprocess_rows.h"
#include "preprocess.h"

namespace minilava {
namespace {

// k = high * 2^16 + low, both signed: two int32 (the lows and the highs of two taps) per pair of taps.
void pack(const std::vector<int32_t>& coef, std::vector<int32_t>& packed) {
    packed.assign(coef.size(), 0);
    for (size_t i = 0; i < coef.size(); ++i) {
        const int32_t low = static_cast<int16_t>(coef[i] & 0xffff), high = (coef[i] - low) >> 16;
        const size_t pair = i / 2 * 2;
        packed[pair] |= static_cast<int32_t>(static_cast<uint32_t>(low & 0xffff) << (i % 2 * 16));
        packed[pair + 1] |= static_cast<int32_t>(static_cast<uint32_t>(high & 0xffff) << (i % 2 * 16));
    }
}

#pragma GCC push_options
#pragma GCC target("avx2")

struct Sum {
    __m256i low, high;
};

inline __m128i load(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }

inline Sum half() { return {_mm256_set1_epi32(kHalf), _mm256_setzero_si256()}; }

inline void add(Sum& sum, __m256i taps, const int32_t* halves) {
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(taps, _mm256_set1_epi32(halves[0])));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(taps, _mm256_set1_epi32(halves[1])));
}

inline __m256i join(const Sum& sum) {
    return _mm256_srai_epi32(_mm256_add_epi32(sum.low, _mm256_slli_epi32(sum.high, 16)), kFractionBits);
}

// 4 x 8 int32 -> 32 clipped bytes, lane by lane.
inline __m256i narrow(__m256i a, __m256i b, __m256i c, __m256i d) {
    return _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}

inline void store_pixels(uint8_t* dst, __m128i four, int channels) {
    const int64_t head = _mm_cvtsi128_si64(four), tail = _mm_extract_epi64(four, 1);
    if (channels == 1) {
        std::memcpy(dst, &head, 4);
    } else {
        std::memcpy(dst, &head, 8);
        if (channels == 3) std::memcpy(dst + 8, &tail, 4);
        if (channels == 4) std::memcpy(dst + 8, &tail, 8);
    }
}

// Two rows sit in the two 128-bit lanes, a channel in each 32-bit lane of those; two such pairs go side by side.
void horizontal(const Axis& axis, const uint8_t* const src[4], uint8_t* const dst[4], int channels) {
    // The four bytes of a channel's taps, widened to two pairs of 16 bits.
    const __m128i bytes = load(kTapsByChannel[channels - 1]), empty = _mm_set1_epi16(static_cast<short>(0x8000));
    const __m128i even = _mm_or_si128(_mm_and_si128(bytes, _mm_set1_epi32(0x000000ff)),
                                      _mm_slli_epi32(_mm_and_si128(bytes, _mm_set1_epi32(0x0000ff00)), 8));
    const __m128i odd = _mm_or_si128(_mm_srli_epi32(_mm_and_si128(bytes, _mm_set1_epi32(0x00ff0000)), 16),
                                     _mm_srli_epi32(_mm_and_si128(bytes, _mm_set1_epi32(0xff000000)), 8));
    const __m256i taps01 = _mm256_broadcastsi128_si256(_mm_or_si128(even, empty));
    const __m256i taps23 = _mm256_broadcastsi128_si256(_mm_or_si128(odd, empty));
    const __m256i drop = _mm256_broadcastsi128_si256(load(kDropLanes[channels - 1]));
    for (int block = 0; block < axis.size; block += 4) {
        const int x = block + 4 <= axis.size ? block : axis.size - 4;  // the last block may redo some pixels
        __m256i pixel[2][4];
        for (int i = 0; i < 4; ++i) {
            const int32_t* halves = &axis.packed[static_cast<size_t>(x + i) * axis.taps];
            ptrdiff_t at = static_cast<ptrdiff_t>(axis.first[x + i]) * channels;
            Sum sum[2] = {half(), half()};
            for (int t = 0; t < axis.taps; t += 4, at += 4 * channels, halves += 4) {
                for (int pair = 0; pair < 2; ++pair) {
                    const __m256i v = _mm256_inserti128_si256(_mm256_castsi128_si256(load(src[2 * pair] + at)),
                                                              load(src[2 * pair + 1] + at), 1);
                    add(sum[pair], _mm256_shuffle_epi8(v, taps01), halves);
                    add(sum[pair], _mm256_shuffle_epi8(v, taps23), halves + 2);
                }
            }
            pixel[0][i] = join(sum[0]);
            pixel[1][i] = join(sum[1]);
        }
        const ptrdiff_t to = static_cast<ptrdiff_t>(x) * channels;
        for (int pair = 0; pair < 2; ++pair) {
            const __m256i* p = pixel[pair];
            const __m256i rows = _mm256_shuffle_epi8(narrow(p[0], p[1], p[2], p[3]), drop);
            store_pixels(dst[2 * pair] + to, _mm256_castsi256_si128(rows), channels);
            store_pixels(dst[2 * pair + 1] + to, _mm256_extracti128_si256(rows, 1), channels);
        }
    }
}

void vertical(const Axis& axis, int y, const uint8_t* src, ptrdiff_t stride, int last, uint8_t* dst, int bytes) {
    const __m256i zero = _mm256_setzero_si256();
    const int first = axis.first[y], whole = bytes / 32 * 32;
    for (int x = 0; x < whole; x += 32) {
        const int32_t* halves = &axis.packed[static_cast<size_t>(y) * axis.taps];
        Sum sum[4] = {half(), half(), half(), half()};
        for (int t = 0; t < axis.taps; t += 2, halves += 2) {
            const int a = first + t, b = a + 1;  // a padding tap may point below the last row
            const auto* at_a = reinterpret_cast<const __m256i*>(src + (a < last ? a : last) * stride + x);
            const auto* at_b = reinterpret_cast<const __m256i*>(src + (b < last ? b : last) * stride + x);
            const __m256i row_a = _mm256_loadu_si256(at_a), row_b = _mm256_loadu_si256(at_b);
            const __m256i lo = _mm256_unpacklo_epi8(row_a, row_b), hi = _mm256_unpackhi_epi8(row_a, row_b);
            add(sum[0], _mm256_unpacklo_epi8(lo, zero), halves);
            add(sum[1], _mm256_unpackhi_epi8(lo, zero), halves);
            add(sum[2], _mm256_unpacklo_epi8(hi, zero), halves);
            add(sum[3], _mm256_unpackhi_epi8(hi, zero), halves);
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + x),
                            narrow(join(sum[0]), join(sum[1]), join(sum[2]), join(sum[3])));
    }
    const int32_t* coef = &axis.coef[static_cast<size_t>(y) * axis.taps];
    for (int x = whole; x < bytes; ++x) dst[x] = resample(src + first * stride + x, stride, coef, 1, axis.count[y]);
}

#pragma GCC pop_options

}  // namespace

const RowKernels kAvx2Rows = {pack, horizontal, vertical};

}  // namespace minilava
#endif
