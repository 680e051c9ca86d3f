/* encode and decode of the reference: one element after another. Conversions of the storage type are the reference's own. */
#include "kernels/cold.h"
#include "kernels/cpu.h"

#include <math.h>
#include <string.h>

static float bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float get(const void *data, enum kvf_dtype dtype, size_t i)
{
    float x = 0;
    const char *at = (const char *)data + i * kvf_cpu_element(dtype);
    kvf_cpu_reference_dev.convert(&kvf_cpu_reference_dev, NULL, &x, KVF_F32, at, dtype, 1);
    return x;
}

static void put(void *data, enum kvf_dtype dtype, size_t i, float x)
{
    char *at = (char *)data + i * kvf_cpu_element(dtype);
    kvf_cpu_reference_dev.convert(&kvf_cpu_reference_dev, NULL, at, dtype, &x, KVF_F32, 1);
}

/* E4M3, round to nearest even: |x| is at most 448 and a rounding more. Steps are 2^-9 below 2^-6, then 1/8 of the power. */
static uint8_t to_e4m3(float x)
{
    uint8_t sign = signbit(x) ? 0x80 : 0;
    uint32_t bits = float_bits(fabsf(x));
    if (bits < 0x3c800000)
        return sign | (uint8_t)rintf(fabsf(x) * 512);
    bits += 0x7ffff + (bits >> 20 & 1);
    uint32_t code = (bits >> 20) - (120 << 3);
    return sign | (uint8_t)(code < 0x7e ? code : 0x7e);
}

/* 0x7f and 0xff, which encode never writes, are taken as the next number of the row, 480. */
static float from_e4m3(uint8_t code)
{
    uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
    float x = exponent ? bits_float((exponent + 120) << 23 | mantissa << 20) : (float)mantissa / 512;
    return code & 0x80 ? -x : x;
}

static float most_of(const struct kvf_cold *shape)
{
    return shape->format == KVF_COLD_INT8 ? KVF_COLD_INT8_MOST : KVF_COLD_FP8_MOST;
}

static uint8_t code_of(const struct kvf_cold *shape, float x, float scale)
{
    float y = x * (most_of(shape) / scale);
    return shape->format == KVF_COLD_INT8 ? (uint8_t)(int8_t)rintf(y) : to_e4m3(y);
}

static float value_of(const struct kvf_cold *shape, uint8_t code, float scale)
{
    float x = (shape->format == KVF_COLD_INT8 ? (float)(int8_t)code : from_e4m3(code)) * (scale / most_of(shape));
    if (shape->dtype == KVF_F32)
        x = x > scale ? scale : x < -scale ? -scale : x;
    return x;
}

/* Which scale element i of a chunk has: its dimension of K, or the chunk's V. */
static uint32_t scale_at(const struct kvf_cold *shape, uint32_t chunk, size_t i)
{
    size_t k = (size_t)shape->chunk_tokens * shape->dim_k;
    return i < k ? (uint32_t)(i % shape->dim_k) : shape->dim_k + chunk;
}

enum kvf_status kvf_cold_reference_encode(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cold *shape,
                                          const void *block, void *codes, void *scales)
{
    if (!kvf_check_cold(shape, block, codes, scales))
        return KVF_ERR_INVALID;
    size_t chunk = kvf_cold_chunk_bytes(shape);
    uint32_t most[512 + 64] = {0}, n = shape->dim_k + shape->n_chunks;
    for (uint32_t c = 0; c < shape->n_chunks; c++) {
        for (size_t i = 0; i < chunk; i++) {
            uint32_t bits = float_bits(get(block, shape->dtype, c * chunk + i)) & 0x7fffffff;
            uint32_t *own = &most[scale_at(shape, c, i)];
            *own = bits > *own ? bits : *own;
        }
    }
    for (uint32_t i = 0; i < n; i++)
        put(scales, shape->dtype, i, bits_float(kvf_cold_scale(most[i], shape->dtype, shape->format)));
    if (!kvf_cold_has_form(shape, scales))
        return KVF_OK;
    for (uint32_t c = 0; c < shape->n_chunks; c++)
        for (size_t i = 0; i < chunk; i++)
            ((uint8_t *)codes)[c * chunk + i] = code_of(shape, get(block, shape->dtype, c * chunk + i),
                                                        get(scales, shape->dtype, scale_at(shape, c, i)));
    return KVF_OK;
}

enum kvf_status kvf_cold_reference_decode(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cold *shape,
                                          uint64_t mask, const void *codes, const void *scales, void *block)
{
    if (!kvf_check_cold(shape, block, codes, scales))
        return KVF_ERR_INVALID;
    size_t chunk = kvf_cold_chunk_bytes(shape);
    for (uint32_t c = 0; c < shape->n_chunks; c++)
        for (size_t i = 0; i < chunk && (mask >> c & 1); i++)
            put(block, shape->dtype, c * chunk + i, value_of(shape, ((const uint8_t *)codes)[c * chunk + i],
                                                             get(scales, shape->dtype, scale_at(shape, c, i))));
    return KVF_OK;
}
