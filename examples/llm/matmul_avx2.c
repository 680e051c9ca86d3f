/* AVX2 matrix products: a tile is up to 3 tokens by one panel (four registers of 8 outputs), 12 sums in registers. */
#include "matmul.h"

#include <immintrin.h>

#define TILE 3

/* One tile of exactly `tokens` tokens, a constant at every call, so that the sums stay in registers. */
static inline __attribute__((always_inline)) void tile(const uint16_t *panel, size_t inputs, const float *x, size_t x_stride,
                                                       const size_t tokens, float *y, size_t y_stride)
{
    __m256 sum[TILE][4];
#pragma GCC unroll 3
    for (size_t t = 0; t < tokens; t++)
        sum[t][0] = sum[t][1] = sum[t][2] = sum[t][3] = _mm256_setzero_ps();
    for (size_t i = 0; i < inputs; i++, panel += LLM_PANEL) {
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++) {
            __m256 w = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(panel + 8 * j)));
#pragma GCC unroll 3
            for (size_t t = 0; t < tokens; t++)
                sum[t][j] = _mm256_fmadd_ps(_mm256_set1_ps(x[t * x_stride + i]), w, sum[t][j]);
        }
    }
#pragma GCC unroll 3
    for (size_t t = 0; t < tokens; t++)
        for (size_t j = 0; j < 4; j++)
            _mm256_storeu_ps(y + t * y_stride + 8 * j, sum[t][j]);
}

static void panel_avx2(const uint16_t *panel, size_t inputs, const float *x, size_t x_stride, size_t tokens, float *y,
                       size_t y_stride)
{
    for (; tokens >= 3; tokens -= 3, x += 3 * x_stride, y += 3 * y_stride)
        tile(panel, inputs, x, x_stride, 3, y, y_stride);
    for (; tokens >= 1; tokens--, x += x_stride, y += y_stride)
        tile(panel, inputs, x, x_stride, 1, y, y_stride);
}

static void to_half_avx2(const float *from, uint16_t *to, size_t n)
{
    for (; n >= 8; n -= 8, from += 8, to += 8)
        _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
    for (; n > 0; n--)
        *to++ = _cvtss_sh(*from++, _MM_FROUND_TO_NEAREST_INT);
}

const struct llm_matmul llm_matmul_avx2 = {.name = "avx2", .panel = panel_avx2, .to_half = to_half_avx2};
