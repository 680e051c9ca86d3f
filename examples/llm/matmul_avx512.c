/* AVX-512 matrix products: a tile is up to 12 tokens by one panel (two registers of 16 outputs), 24 sums in registers. */
#include "matmul.h"

#include <immintrin.h>

#define TILE 12

/* One tile of exactly `tokens` tokens, a constant at every call, so that the sums stay in registers. */
static inline __attribute__((always_inline)) void tile(const uint16_t *panel, size_t inputs, const float *x, size_t x_stride,
                                                       const size_t tokens, float *y, size_t y_stride)
{
    __m512 sum[TILE][2];
#pragma GCC unroll 12
    for (size_t t = 0; t < tokens; t++)
        sum[t][0] = sum[t][1] = _mm512_setzero_ps();
    for (size_t i = 0; i < inputs; i++, panel += LLM_PANEL) {
        __m512 w0 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)panel));
        __m512 w1 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(panel + 16)));
#pragma GCC unroll 12
        for (size_t t = 0; t < tokens; t++) {
            __m512 value = _mm512_set1_ps(x[t * x_stride + i]);
            sum[t][0] = _mm512_fmadd_ps(value, w0, sum[t][0]);
            sum[t][1] = _mm512_fmadd_ps(value, w1, sum[t][1]);
        }
    }
#pragma GCC unroll 12
    for (size_t t = 0; t < tokens; t++) {
        _mm512_storeu_ps(y + t * y_stride, sum[t][0]);
        _mm512_storeu_ps(y + t * y_stride + 16, sum[t][1]);
    }
}

static void panel_avx512(const uint16_t *panel, size_t inputs, const float *x, size_t x_stride, size_t tokens, float *y,
                         size_t y_stride)
{
    for (; tokens >= 12; tokens -= 12, x += 12 * x_stride, y += 12 * y_stride)
        tile(panel, inputs, x, x_stride, 12, y, y_stride);
    for (; tokens >= 4; tokens -= 4, x += 4 * x_stride, y += 4 * y_stride)
        tile(panel, inputs, x, x_stride, 4, y, y_stride);
    for (; tokens >= 1; tokens--, x += x_stride, y += y_stride)
        tile(panel, inputs, x, x_stride, 1, y, y_stride);
}

static void to_half_avx512(const float *from, uint16_t *to, size_t n)
{
    for (; n >= 16; n -= 16, from += 16, to += 16)
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    for (; n > 0; n--)
        *to++ = _cvtss_sh(*from++, _MM_FROUND_TO_NEAREST_INT);
}

const struct llm_matmul llm_matmul_avx512 = {.name = "avx512", .panel = panel_avx512, .to_half = to_half_avx512};
