/* encode and decode over the vectors of ops_simd.h (dev.h, COLD BLOCKS). */
#include "kernels/cold.h"

OWN float cold_most(enum kvf_cold_format format)
{
    return format == KVF_COLD_INT8 ? KVF_COLD_INT8_MOST : KVF_COLD_FP8_MOST;
}

OWN void code_store(uint8_t *codes, vec y, enum kvf_cold_format format)
{
    if (format == KVF_COLD_INT8)
        v_store_i8(codes, y);
    else
        v_store_e4m3(codes, y);
}

/* One vector of codes to numbers: scale / M is `step`, the scale itself bounds f32. */
OWN void decode_vec(void *to, size_t element, const uint8_t *codes, vec step, vec scale, enum kvf_dtype dtype,
                    enum kvf_cold_format format)
{
    vec x = v_mul(format == KVF_COLD_INT8 ? v_load_i8(codes) : v_load_e4m3(codes), step);
    if (dtype == KVF_F32)
        x = v_min(v_max(x, v_sub(v_set(0), scale)), scale);
    store_as(to, element, x, dtype);
}

/* The scales of K, a vector of dimensions at a time over all chunks, then of V. */
OWN void scales_as(const struct kvf_cold *s, const void *block, void *scales, enum kvf_dtype dtype)
{
    size_t chunk = kvf_cold_chunk_bytes(s), k = (size_t)s->chunk_tokens * s->dim_k; /* one code a byte: also elements */
    uint32_t least = kvf_cold_least(dtype, s->format), round = dtype == KVF_F32 ? 0xff : 0;
    for (uint32_t d = 0; d < s->dim_k; d += WIDTH) {
        vec most = v_set(0);
        for (uint32_t c = 0; c < s->n_chunks; c++)
            for (uint32_t t = 0; t < s->chunk_tokens; t++)
                most = v_absmax(most, load_as(block, c * chunk + (size_t)t * s->dim_k + d, dtype));
        store_as(scales, d, v_cold_scale(most, least, round), dtype);
    }
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        vec a = v_set(0), b = a;
        for (size_t i = k; i < chunk; i += 2 * WIDTH) { /* dimensions are multiples of 16 */
            a = v_absmax(a, load_as(block, c * chunk + i, dtype));
            b = v_absmax(b, WIDTH == 16 && i + WIDTH == chunk ? v_set(0) : load_as(block, c * chunk + i + WIDTH, dtype));
        }
        uint32_t bits = kvf_cold_scale(v_absmax_of(v_absmax(a, b)), dtype, s->format);
        if (dtype == KVF_F32) {
            memcpy((uint32_t *)scales + s->dim_k + c, &bits, sizeof bits);
        } else {
            float x[WIDTH];
            uint16_t half[WIDTH];
            memcpy(x, &bits, sizeof bits);
            store_as(half, 0, v_set(x[0]), dtype);
            memcpy((uint16_t *)scales + s->dim_k + c, half, sizeof *half);
        }
    }
}

/* The scale of a chunk's V, in every lane. */
OWN vec v_scale_load(const struct kvf_cold *s, const void *scales, uint32_t chunk, enum kvf_dtype dtype)
{
    if (dtype == KVF_F32)
        return v_set(((const float *)scales)[s->dim_k + chunk]);
    uint16_t same[WIDTH];
    for (int i = 0; i < WIDTH; i++)
        same[i] = ((const uint16_t *)scales)[s->dim_k + chunk];
    return load_as(same, 0, dtype);
}

OWN void encode_as(const struct kvf_cold *s, const void *block, uint8_t *codes, const void *scales, enum kvf_dtype dtype,
                   enum kvf_cold_format format)
{
    size_t chunk = kvf_cold_chunk_bytes(s), k = (size_t)s->chunk_tokens * s->dim_k;
    vec most = v_set(cold_most(format));
    for (uint32_t d = 0; d < s->dim_k; d += WIDTH) {
        vec factor = v_div(most, load_as(scales, d, dtype));
        for (uint32_t c = 0; c < s->n_chunks; c++)
            for (uint32_t t = 0; t < s->chunk_tokens; t++) {
                size_t at = c * chunk + (size_t)t * s->dim_k + d;
                code_store(codes + at, v_mul(load_as(block, at, dtype), factor), format);
            }
    }
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        vec factor = v_div(most, v_scale_load(s, scales, c, dtype));
        for (size_t i = c * chunk + k; i < (c + 1) * chunk; i += WIDTH)
            code_store(codes + i, v_mul(load_as(block, i, dtype), factor), format);
    }
}

/* K of one chunk, a vector of dimensions at a time, then its V. */
OWN void decode_as(const struct kvf_cold *s, uint32_t c, const uint8_t *codes, const void *scales, void *block,
                   enum kvf_dtype dtype, enum kvf_cold_format format)
{
    size_t chunk = kvf_cold_chunk_bytes(s), first = c * chunk, k = (size_t)s->chunk_tokens * s->dim_k;
    vec most = v_set(cold_most(format));
    for (uint32_t d = 0; d < s->dim_k; d += WIDTH) {
        vec scale = load_as(scales, d, dtype), step = v_div(scale, most);
        for (uint32_t t = 0; t < s->chunk_tokens; t++) {
            size_t at = first + (size_t)t * s->dim_k + d;
            decode_vec(block, at, codes + at, step, scale, dtype, format);
        }
    }
    vec scale = v_scale_load(s, scales, c, dtype), step = v_div(scale, most);
    for (size_t i = first + k; i < first + chunk; i += WIDTH)
        decode_vec(block, i, codes + i, step, scale, dtype, format);
}

/* Each pair of storage type and format has code of its own: CASE is what is compiled for it. */
#define COLD_EACH(shape, CASE)                                                                            \
    do {                                                                                                  \
        if ((shape)->format == KVF_COLD_INT8 && (shape)->dtype == KVF_F16)                                \
            CASE(KVF_F16, KVF_COLD_INT8);                                                                 \
        else if ((shape)->format == KVF_COLD_INT8 && (shape)->dtype == KVF_BF16)                          \
            CASE(KVF_BF16, KVF_COLD_INT8);                                                                \
        else if ((shape)->format == KVF_COLD_INT8)                                                        \
            CASE(KVF_F32, KVF_COLD_INT8);                                                                 \
        else if ((shape)->dtype == KVF_F16)                                                               \
            CASE(KVF_F16, KVF_COLD_FP8);                                                                  \
        else if ((shape)->dtype == KVF_BF16)                                                              \
            CASE(KVF_BF16, KVF_COLD_FP8);                                                                 \
        else                                                                                              \
            CASE(KVF_F32, KVF_COLD_FP8);                                                                  \
    } while (0)

static enum kvf_status encode(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cold *shape, const void *block,
                              void *codes, void *scales)
{
    if (!kvf_check_cold(shape, block, codes, scales))
        return KVF_ERR_INVALID;
    if (shape->dtype == KVF_F16)
        scales_as(shape, block, scales, KVF_F16);
    else if (shape->dtype == KVF_BF16)
        scales_as(shape, block, scales, KVF_BF16);
    else
        scales_as(shape, block, scales, KVF_F32);
    if (!kvf_cold_has_form(shape, scales))
        return KVF_OK;
#define ENCODE(dtype, format) encode_as(shape, block, codes, scales, dtype, format)
    COLD_EACH(shape, ENCODE);
#undef ENCODE
    return KVF_OK;
}

static enum kvf_status decode(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cold *shape, uint64_t mask,
                              const void *codes, const void *scales, void *block)
{
    if (!kvf_check_cold(shape, block, codes, scales))
        return KVF_ERR_INVALID;
    for (uint32_t c = 0; c < shape->n_chunks; c++) {
        if (!(mask >> c & 1))
            continue;
#define DECODE(dtype, format) decode_as(shape, c, codes, scales, block, dtype, format)
        COLD_EACH(shape, DECODE);
#undef DECODE
    }
    return KVF_OK;
}
#undef COLD_EACH
