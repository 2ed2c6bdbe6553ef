// Resampling rows with AVX-512 VNNI: coefficients as three signed bytes, so that one dpbusd does four taps exactly.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/preprocess_rows.h"
#include "preprocess.h"

namespace minilava {
namespace {

// k = d2 * 2^16 + d1 * 2^8 + d0, digits in [-128, 127]: three int32 (d0, d1, d2 of four taps) per group of four.
// |k| stays below 1.5 * 2^22 even where a border cuts the window, so d2 fits with room to spare.
void pack(const std::vector<int32_t>& coef, std::vector<int32_t>& packed) {
    packed.assign(coef.size() / 4 * 3, 0);
    for (size_t i = 0; i < coef.size(); ++i) {
        int32_t rest = coef[i];
        for (int digit = 0; digit < 3; ++digit) {
            const int32_t d = static_cast<int8_t>(rest & 255);
            packed[i / 4 * 3 + digit] |= static_cast<int32_t>(static_cast<uint32_t>(d & 255) << (i % 4 * 8));
            rest = (rest - d) >> 8;
        }
    }
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12's own headers pass a register that is undefined on purpose
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

inline __m128i load(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }

inline __m512i in_every_lane(const uint8_t* control) { return _mm512_broadcast_i32x4(load(control)); }

// Three digit sums -> rounded values, still to be clipped.
inline __m512i join(__m512i d0, __m512i d1, __m512i d2) {
    const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(d2, 16), _mm512_slli_epi32(d1, 8));
    return _mm512_srai_epi32(_mm512_add_epi32(d0, high), kFractionBits);
}

// 4 x 16 int32 -> 64 clipped bytes; lane by lane, the inverse of the byte and word unpacking in vertical().
inline __m512i narrow(__m512i a, __m512i b, __m512i c, __m512i d) {
    return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

inline void store_pixels(uint8_t* dst, __m128i four, int channels) {
    _mm_mask_storeu_epi32(dst, static_cast<__mmask8>((1 << channels) - 1), four);
}

// The four rows sit in the four 128-bit lanes, a channel in each 32-bit lane of those.
void horizontal(const Axis& axis, const uint8_t* const src[4], uint8_t* const dst[4], int channels) {
    const __m512i by_channel = in_every_lane(kTapsByChannel[channels - 1]);
    const __m512i drop = in_every_lane(kDropLanes[channels - 1]);
    const int groups = axis.taps / 4;
    for (int block = 0; block < axis.size; block += 4) {
        const int x = block + 4 <= axis.size ? block : axis.size - 4;  // the last block may redo some pixels
        __m512i pixel[4];
        for (int i = 0; i < 4; ++i) {
            const int32_t* digits = &axis.packed[static_cast<size_t>(x + i) * groups * 3];
            ptrdiff_t at = static_cast<ptrdiff_t>(axis.first[x + i]) * channels;
            __m512i d0 = _mm512_set1_epi32(kHalf), d1 = _mm512_setzero_si512(), d2 = _mm512_setzero_si512();
            for (int g = 0; g < groups; ++g, at += 4 * channels, digits += 3) {
                __m512i v = _mm512_castsi128_si512(load(src[0] + at));
                v = _mm512_inserti32x4(v, load(src[1] + at), 1);
                v = _mm512_inserti32x4(v, load(src[2] + at), 2);
                v = _mm512_inserti32x4(v, load(src[3] + at), 3);
                v = _mm512_shuffle_epi8(v, by_channel);
                d0 = _mm512_dpbusd_epi32(d0, v, _mm512_set1_epi32(digits[0]));
                d1 = _mm512_dpbusd_epi32(d1, v, _mm512_set1_epi32(digits[1]));
                d2 = _mm512_dpbusd_epi32(d2, v, _mm512_set1_epi32(digits[2]));
            }
            pixel[i] = join(d0, d1, d2);
        }
        const __m512i bytes = _mm512_shuffle_epi8(narrow(pixel[0], pixel[1], pixel[2], pixel[3]), drop);
        const ptrdiff_t to = static_cast<ptrdiff_t>(x) * channels;
        store_pixels(dst[0] + to, _mm512_castsi512_si128(bytes), channels);
        store_pixels(dst[1] + to, _mm512_extracti32x4_epi32(bytes, 1), channels);
        store_pixels(dst[2] + to, _mm512_extracti32x4_epi32(bytes, 2), channels);
        store_pixels(dst[3] + to, _mm512_extracti32x4_epi32(bytes, 3), channels);
    }
}

// Interleaving the bytes of four rows puts a column's four taps into one 32-bit lane.
void vertical(const Axis& axis, int y, const uint8_t* src, ptrdiff_t stride, int last, uint8_t* dst, int bytes) {
    const int groups = axis.taps / 4, first = axis.first[y];
    for (int x = 0; x < bytes; x += 64) {
        const __mmask64 live = bytes - x >= 64 ? ~0ull : (1ull << (bytes - x)) - 1;
        const int32_t* digits = &axis.packed[static_cast<size_t>(y) * groups * 3];
        __m512i sum[4][3];
        for (int q = 0; q < 4; ++q) {
            sum[q][0] = _mm512_set1_epi32(kHalf);
            sum[q][1] = sum[q][2] = _mm512_setzero_si512();
        }
        for (int g = 0; g < groups; ++g, digits += 3) {
            __m512i row[4];
            for (int i = 0; i < 4; ++i) {
                const int at = first + 4 * g + i;  // a padding tap may point below the last row
                row[i] = _mm512_maskz_loadu_epi8(live, src + (at < last ? at : last) * stride + x);
            }
            const __m512i ab_lo = _mm512_unpacklo_epi8(row[0], row[1]), cd_lo = _mm512_unpacklo_epi8(row[2], row[3]);
            const __m512i ab_hi = _mm512_unpackhi_epi8(row[0], row[1]), cd_hi = _mm512_unpackhi_epi8(row[2], row[3]);
            const __m512i column[4] = {_mm512_unpacklo_epi16(ab_lo, cd_lo), _mm512_unpackhi_epi16(ab_lo, cd_lo),
                                       _mm512_unpacklo_epi16(ab_hi, cd_hi), _mm512_unpackhi_epi16(ab_hi, cd_hi)};
            for (int digit = 0; digit < 3; ++digit) {
                const __m512i k = _mm512_set1_epi32(digits[digit]);
                for (int q = 0; q < 4; ++q) sum[q][digit] = _mm512_dpbusd_epi32(sum[q][digit], column[q], k);
            }
        }
        for (int q = 0; q < 4; ++q) sum[q][0] = join(sum[q][0], sum[q][1], sum[q][2]);
        _mm512_mask_storeu_epi8(dst + x, live, narrow(sum[0][0], sum[1][0], sum[2][0], sum[3][0]));
    }
}

#pragma GCC diagnostic pop
#pragma GCC pop_options

}  // namespace

const RowKernels kAvx512Rows = {pack, horizontal, vertical};

}  // namespace minilava
#endif
