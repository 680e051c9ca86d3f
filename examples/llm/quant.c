/* The blocks, little-endian; d and m are fp16, q small integers, x the value:
 *   Q4_0  d, 16 bytes: element i in the low nibble of byte i, element i+16 in the high one.  x = d (q - 8)
 *   Q4_1  d, m, 16 bytes in the same order.                                                  x = d q + m
 *   Q8_0  d, 32 signed bytes.                                                                x = d q
 *   Q6_K  256 elements: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales s (one per 16 elements),
 *         d. x = d s (q - 32). Each half of 128 elements is four runs of 32: run r takes its low bits from nibble
 *         r / 2 of bytes 32 (r % 2) + i, its high bits from bit pair r of byte i. */
#include "quant.h"

#include <string.h>

float llm_quant_half(uint16_t half)
{
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    if ((half & 0x7c00) == 0x7c00) {
        bits |= 0x7f800000; /* infinity or NaN */
        memcpy(&value, &bits, sizeof value);
    } else {
        memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f; /* moves the exponent's bias from 15 to 127; right for subnormals too */
    }
    return half & 0x8000 ? -value : value;
}

static float half_at(const uint8_t *p)
{
    return llm_quant_half((uint16_t)(p[0] | p[1] << 8));
}

static void expand_f32(const uint8_t *from, size_t blocks, float *to)
{
    memcpy(to, from, blocks * sizeof *to);
}

static void expand_f16(const uint8_t *from, size_t blocks, float *to)
{
    for (size_t i = 0; i < blocks; i++)
        to[i] = half_at(from + 2 * i);
}

static void expand_q4_0(const uint8_t *from, size_t blocks, float *to)
{
    for (size_t b = 0; b < blocks; b++, from += 18, to += 32) {
        float d = half_at(from);
        for (int i = 0; i < 16; i++) {
            to[i] = d * (float)((from[2 + i] & 15) - 8);
            to[i + 16] = d * (float)((from[2 + i] >> 4) - 8);
        }
    }
}

static void expand_q4_1(const uint8_t *from, size_t blocks, float *to)
{
    for (size_t b = 0; b < blocks; b++, from += 20, to += 32) {
        float d = half_at(from), m = half_at(from + 2);
        for (int i = 0; i < 16; i++) {
            to[i] = d * (float)(from[4 + i] & 15) + m;
            to[i + 16] = d * (float)(from[4 + i] >> 4) + m;
        }
    }
}

static void expand_q8_0(const uint8_t *from, size_t blocks, float *to)
{
    for (size_t b = 0; b < blocks; b++, from += 34, to += 32) {
        float d = half_at(from);
        for (int i = 0; i < 32; i++)
            to[i] = d * (float)(int8_t)from[2 + i];
    }
}

static void expand_q6_k(const uint8_t *from, size_t blocks, float *to)
{
    for (size_t b = 0; b < blocks; b++, from += 210) {
        float d = half_at(from + 208);
        for (int half = 0; half < 2; half++) {
            const uint8_t *low = from + 64 * half, *high = from + 128 + 32 * half;
            const uint8_t *scales = from + 192 + 8 * half;
            for (int run = 0; run < 4; run++, to += 32)
                for (int i = 0; i < 32; i++) {
                    int nibble = low[32 * (run % 2) + i] >> (run < 2 ? 0 : 4) & 15;
                    int q = nibble | (high[i] >> (2 * run) & 3) << 4;
                    to[i] = d * (float)(int8_t)scales[2 * run + i / 16] * (float)(q - 32);
                }
        }
    }
}

static const struct llm_quant quants[] = {
    {LLM_QUANT_F32, "F32", 1, 4, expand_f32},      {LLM_QUANT_F16, "F16", 1, 2, expand_f16},
    {LLM_QUANT_Q4_0, "Q4_0", 32, 18, expand_q4_0}, {LLM_QUANT_Q4_1, "Q4_1", 32, 20, expand_q4_1},
    {LLM_QUANT_Q8_0, "Q8_0", 32, 34, expand_q8_0}, {LLM_QUANT_Q6_K, "Q6_K", 256, 210, expand_q6_k},
};

const struct llm_quant *llm_quant_of(uint32_t type)
{
    for (size_t i = 0; i < sizeof quants / sizeof quants[0]; i++)
        if (quants[i].type == type)
            return &quants[i];
    return NULL;
}
