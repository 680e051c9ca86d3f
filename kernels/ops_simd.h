/* The wide operations, written once over the vectors of simd_avx2.h or simd_avx512.h, which is included before. This
 * file: loads, exp, and the two products that attention consists of. ops_attend.h and ops_data.h use it.
 *
 * BITS. A row's result may not depend on the rows beside it, so there is one order of additions, whatever the number of
 * rows: a logit is one chain of fused multiply-adds over the dimensions, in rising order; an output element is one
 * chain over the tokens, in rising order. Blocking only decides which chains are in registers together. Every multiply
 * that feeds an addition is an explicit fma, and contraction by the compiler is off. */
#include "kernels/cpu.h"

#include <math.h>
#include <string.h>

enum { TILE = 64, DIM_MAX = 512 };

OWN vec load_as(const void *p, size_t element, enum kvf_dtype dtype)
{
    if (dtype == KVF_F32)
        return v_load((const float *)p + element);
    const uint16_t *half = (const uint16_t *)p + element;
    return dtype == KVF_F16 ? v_load_f16(half) : v_load_bf16(half);
}

OWN void store_as(void *p, size_t element, vec a, enum kvf_dtype dtype)
{
    if (dtype == KVF_F32)
        v_store((float *)p + element, a);
    else if (dtype == KVF_F16)
        v_store_f16((uint16_t *)p + element, a);
    else
        v_store_bf16((uint16_t *)p + element, a);
}

/* e^x for x <= 0 (and a little above), 0 below -87, NaN for NaN; relative error below 2e-7. x = n ln 2 + r with
 * |r| <= ln 2 / 2 in two steps; e^r - 1 - r = r^2 P(r), P interpolated at the five Chebyshev nodes. */
OWN vec v_exp(vec x)
{
    vec n = v_round(v_mul(x, v_set(1.44269504f)));
    vec r = v_fma(n, v_set(-0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    vec p = v_fma(v_set(1.3926181709393859e-3f), r, v_set(8.363177999854088e-3f));
    p = v_fma(p, r, v_set(4.1666556149721146e-2f));
    p = v_fma(p, r, v_set(0.16666576266288757f));
    p = v_fma(p, r, v_set(0.5f));
    p = v_fma(p, v_mul(r, r), r);
    return v_scale(v_add(p, v_set(1)), n, x, -87.0f);
}

/* Packs rows (pointers to `dim` elements, as many as tokens rounded up to 16) into kt[dim][TILE] floats. `later`, if not
 * NULL, are as many rows of later_bytes that will be read soon: they are asked for meanwhile, at the memory's pace. */
OWN void pack_as(float *kt, const void *const *rows, uint32_t tokens, uint32_t dim, enum kvf_dtype dtype, const void *const *later,
                 uint32_t later_bytes)
{
    for (uint32_t t = 0; t < (tokens + 15) / 16 * 16; t += WIDTH) {
        for (uint32_t d = 0; d < dim; d += WIDTH) {
            vec a[WIDTH];
            for (uint32_t i = d * WIDTH / dim; later && i < (d + WIDTH) * WIDTH / dim; i++)
                for (uint32_t b = 0; b < later_bytes; b += 64)
                    _mm_prefetch((const char *)later[t + i] + b, _MM_HINT_T1);
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++)
                a[i] = load_as(rows[t + i], d, dtype);
            v_transpose(a);
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++)
                v_store(kt + (d + i) * TILE + t, a[i]);
        }
    }
}

static void pack(float *kt, const void *const *rows, uint32_t tokens, uint32_t dim, enum kvf_dtype dtype, const void *const *later,
                 uint32_t later_bytes)
{
    if (dtype == KVF_F16)
        pack_as(kt, rows, tokens, dim, KVF_F16, later, later_bytes);
    else if (dtype == KVF_BF16)
        pack_as(kt, rows, tokens, dim, KVF_BF16, later, later_bytes);
    else
        pack_as(kt, rows, tokens, dim, KVF_F32, later, later_bytes);
}

/* s[r][t] = q_r . k_t for n rows and `strip` vectors of tokens. */
OWN void logits_strip(float *s, const float *q, size_t q_stride, const float *kt, uint32_t dim, const int n, const int strip)
{
    vec acc[ROWS][4], k[4];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
#pragma GCC unroll 4
        for (int w = 0; w < strip; w++)
            acc[r][w] = v_set(0);
    for (uint32_t d = 0; d < dim; d++) {
#pragma GCC unroll 4
        for (int w = 0; w < strip; w++)
            k[w] = v_load(kt + d * TILE + w * WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            vec x = v_set(q[r * q_stride + d]);
#pragma GCC unroll 4
            for (int w = 0; w < strip; w++)
                acc[r][w] = v_fma(x, k[w], acc[r][w]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
#pragma GCC unroll 4
        for (int w = 0; w < strip; w++)
            v_store(s + r * TILE + w * WIDTH, acc[r][w]);
}

OWN void logits_rows(float *s, const float *q, size_t q_stride, const float *kt, uint32_t tokens, uint32_t dim, const int n)
{
    const int strip = n <= ROWS_FEW ? STRIP_FEW : STRIP;
    uint32_t t = 0;
    for (; t + (strip - 1) * WIDTH < tokens; t += strip * WIDTH)
        logits_strip(s + t, q, q_stride, kt + t, dim, n, strip);
    for (; t < tokens; t += STRIP_LEAST * WIDTH)
        logits_strip(s + t, q, q_stride, kt + t, dim, n, STRIP_LEAST);
}

/* s[r][TILE] = q_r . k_t for n <= ROWS rows and (at least) the first `tokens` tokens of a packed tile. */
static void logits(float *s, const float *q, size_t q_stride, const float *kt, uint32_t tokens, uint32_t dim, uint32_t n)
{
    switch (n) {
    case 1:
        return logits_rows(s, q, q_stride, kt, tokens, dim, 1);
    case 2:
        return logits_rows(s, q, q_stride, kt, tokens, dim, 2);
    case 3:
        return logits_rows(s, q, q_stride, kt, tokens, dim, 3);
    case 4:
        return logits_rows(s, q, q_stride, kt, tokens, dim, 4);
    case 5:
        return logits_rows(s, q, q_stride, kt, tokens, dim, 5);
    default:
        return logits_rows(s, q, q_stride, kt, tokens, dim, ROWS);
    }
}

/* What weigh() adds up: out_r = out_r * keep_r + sum of p[r][t] * v_t over t in [first, end). keep NULL: out is not read. */
struct weigh {
    const void *const *rows; /* [TILE] V of the tokens */
    uint32_t first, end;
    uint32_t dim;
    const float *p; /* [n][TILE] */
    const float *keep;
    float *out;
    size_t out_stride;
};

OWN void weigh_strip(const struct weigh *a, uint32_t at, enum kvf_dtype dtype, const int n, const int strip)
{
    vec acc[ROWS][4], v[4];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
#pragma GCC unroll 4
        for (int w = 0; w < strip; w++)
            acc[r][w] = a->keep ? v_mul(v_load(a->out + r * a->out_stride + at + w * WIDTH), v_set(a->keep[r])) : v_set(0);
    for (uint32_t t = a->first; t < a->end; t++) {
        const void *row = a->rows[t];
#pragma GCC unroll 4
        for (int w = 0; w < strip; w++)
            v[w] = load_as(row, at + w * WIDTH, dtype);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            vec x = v_set(a->p[r * TILE + t]);
#pragma GCC unroll 4
            for (int w = 0; w < strip; w++)
                acc[r][w] = v_fma(x, v[w], acc[r][w]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
#pragma GCC unroll 4
        for (int w = 0; w < strip; w++)
            v_store(a->out + r * a->out_stride + at + w * WIDTH, acc[r][w]);
}

OWN void weigh_rows(const struct weigh *a, enum kvf_dtype dtype, const int n)
{
    const int strip = n <= ROWS_FEW ? STRIP_FEW : STRIP;
    uint32_t at = 0;
    for (; at + strip * WIDTH <= a->dim; at += strip * WIDTH)
        weigh_strip(a, at, dtype, n, strip);
    for (; at < a->dim; at += STRIP_LEAST * WIDTH)
        weigh_strip(a, at, dtype, n, STRIP_LEAST);
}

OWN void weigh_as(const struct weigh *a, enum kvf_dtype dtype, uint32_t n)
{
    switch (n) {
    case 1:
        return weigh_rows(a, dtype, 1);
    case 2:
        return weigh_rows(a, dtype, 2);
    case 3:
        return weigh_rows(a, dtype, 3);
    case 4:
        return weigh_rows(a, dtype, 4);
    case 5:
        return weigh_rows(a, dtype, 5);
    default:
        return weigh_rows(a, dtype, ROWS);
    }
}

/* n <= ROWS rows; V in `dtype`. */
static void weigh(const struct weigh *a, enum kvf_dtype dtype, uint32_t n)
{
    if (dtype == KVF_F16)
        weigh_as(a, KVF_F16, n);
    else if (dtype == KVF_BF16)
        weigh_as(a, KVF_BF16, n);
    else
        weigh_as(a, KVF_F32, n);
}
