/* The plain version of the matrix products, and the choice of a version. */
#include "matmul.h"

#include "quant.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define TILE 8 /* tokens that share one expansion of a row of weights */

static void panel_plain(const uint16_t *panel, size_t inputs, const float *x, size_t x_stride, size_t tokens, float *y,
                        size_t y_stride)
{
    for (size_t first = 0; first < tokens; first += TILE) {
        size_t count = tokens - first < TILE ? tokens - first : TILE;
        float sum[TILE][LLM_PANEL] = {{0}}, w[LLM_PANEL];
        for (size_t i = 0; i < inputs; i++) {
            for (size_t j = 0; j < LLM_PANEL; j++)
                w[j] = llm_quant_half(panel[i * LLM_PANEL + j]);
            for (size_t t = 0; t < count; t++)
                for (size_t j = 0; j < LLM_PANEL; j++)
                    sum[t][j] += x[(first + t) * x_stride + i] * w[j];
        }
        for (size_t t = 0; t < count; t++)
            memcpy(y + (first + t) * y_stride, sum[t], sizeof sum[t]);
    }
}

static uint16_t half_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff)); /* NaN, quiet, with what fits of its payload */
    if (bits >= 0x477ff000)
        return sign | 0x7c00; /* rounds to more than 65504 */
    if (bits < 0x38800000) {
        /* A subnormal half counts units of 2^-24. Adding 0.5 puts that unit at the last bit of the float, so the addition
         * itself rounds to nearest even. */
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + (bits >> 13 & 1); /* to nearest even at bit 13 */
    return (uint16_t)(sign | (bits - 0x38000000) >> 13);
}

static void to_half_plain(const float *from, uint16_t *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = half_of(from[i]);
}

const struct llm_matmul llm_matmul_plain = {.name = "plain", .panel = panel_plain, .to_half = to_half_plain};

const struct llm_matmul *llm_matmul_named(const char *name)
{
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (strcmp(name, "avx512") == 0)
        return avx512 ? &llm_matmul_avx512 : NULL;
    if (strcmp(name, "avx2") == 0)
        return avx2 ? &llm_matmul_avx2 : NULL;
    return strcmp(name, "plain") == 0 ? &llm_matmul_plain : NULL;
}

const struct llm_matmul *llm_matmul_best(void)
{
    static const char *const names[] = {"avx512", "avx2", "plain"};
    const char *wish = getenv("KVF_CPU");
    const struct llm_matmul *found = wish ? llm_matmul_named(wish) : NULL;
    for (size_t i = 0; !found && i < 3; i++)
        found = llm_matmul_named(names[i]);
    return found;
}
