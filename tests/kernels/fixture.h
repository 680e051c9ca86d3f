/* What the tests of kernels share: random numbers from a printed seed, elements of every type read independently of the
 * code under test, and a chunk list with its own double-precision attention. */
#ifndef KVF_TESTS_KERNELS_FIXTURE_H
#define KVF_TESTS_KERNELS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dev.h"

#define SEED 20261123ull

static uint64_t random_state = SEED;

static inline uint64_t random_u64(void)
{
    uint64_t x = random_state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* -1 .. 1 */
static inline float random_float(void)
{
    return (float)((double)(int64_t)random_u64() / 9.3e18);
}

static inline uint32_t random_below(uint32_t n)
{
    return (uint32_t)(random_u64() % n);
}

static inline size_t element_bytes(enum kvf_dtype dtype)
{
    return dtype == KVF_F32 ? 4 : 2;
}

static inline double half_to_double(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double value = exponent == 31 ? (mantissa ? (double)NAN : (double)INFINITY)
                   : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                                  : ldexp(mantissa, -24);
    return h & 0x8000 ? -value : value;
}

static inline double bf16_to_double(uint16_t h)
{
    int exponent = h >> 7 & 255, mantissa = h & 127;
    double value = exponent == 255 ? (mantissa ? (double)NAN : (double)INFINITY)
                   : exponent      ? ldexp(128 + mantissa, exponent - 134)
                                   : ldexp(mantissa, -133);
    return h & 0x8000 ? -value : value;
}

static inline double half_as_double(uint16_t h, enum kvf_dtype dtype)
{
    return dtype == KVF_F16 ? half_to_double(h) : bf16_to_double(h);
}

static inline double element_at(const void *data, enum kvf_dtype dtype, size_t i)
{
    if (dtype == KVF_F32)
        return ((const float *)data)[i];
    return half_as_double(((const uint16_t *)data)[i], dtype);
}

/* Some number of that type near x: which one does not matter, as the tests read it back. */
static inline void element_set(void *data, enum kvf_dtype dtype, size_t i, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (dtype == KVF_F32)
        ((float *)data)[i] = x;
    else if (dtype == KVF_BF16)
        ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    else
        ((uint16_t *)data)[i] = (uint16_t)(rest < 0x38800000    ? sign
                                           : rest > 0x7f800000  ? sign | 0x7e00
                                           : rest >= 0x47800000 ? sign | 0x7c00
                                                                : sign | ((rest - 0x38000000) >> 13));
}

/* A list of chunks in memory that is not in order, and queries over it. */
struct fixture {
    struct kvf_attend args;
    void *memory;
    const void **chunks;
    float *q, *out, *lse;
    uint32_t *visible;
};

static inline void *fixture_chunk(struct fixture *f, uint32_t c)
{
    return (void *)(uintptr_t)f->chunks[c];
}

static inline uint32_t fixture_tokens(const struct fixture *f)
{
    return f->args.n_chunks * f->args.chunk_tokens;
}

/* Element d of K (or of V) of a token of the list. */
static inline void *fixture_place(struct fixture *f, uint32_t token, bool v, size_t *at)
{
    const struct kvf_attend *a = &f->args;
    size_t in_chunk = token % a->chunk_tokens;
    *at = v ? a->chunk_tokens * a->dim_k + in_chunk * a->dim_v : in_chunk * a->dim_k;
    return fixture_chunk(f, token / a->chunk_tokens);
}

static inline void fixture_init(struct fixture *f, enum kvf_dtype dtype, uint32_t n_chunks, uint32_t chunk_tokens, uint32_t dim_k,
                                uint32_t dim_v, uint32_t n_queries)
{
    size_t chunk_bytes = (size_t)chunk_tokens * (dim_k + dim_v) * element_bytes(dtype), room = (chunk_bytes + 15) / 16 * 16 + 48;
    *f = (struct fixture){.memory = aligned_alloc(64, (n_chunks * room + 4096) / 64 * 64),
                          .chunks = calloc(n_chunks + 1, sizeof *f->chunks),
                          .q = calloc((size_t)n_queries * (dim_k + 3) + 1, sizeof *f->q),
                          .out = calloc((size_t)n_queries * (dim_v + 5) + 1, sizeof *f->out),
                          .lse = calloc(n_queries + 1, sizeof *f->lse),
                          .visible = calloc(n_queries + 1, sizeof *f->visible)};
    f->args = (struct kvf_attend){.chunks = f->chunks, .n_chunks = n_chunks, .chunk_tokens = chunk_tokens, .dim_k = dim_k,
                                  .dim_v = dim_v, .dtype = dtype, .q = f->q, .q_stride = dim_k + 3, .n_queries = n_queries,
                                  .visible = f->visible, .scale = 1 / sqrtf((float)dim_k), .out = f->out,
                                  .out_stride = dim_v + 5, .lse = f->lse};
    for (uint32_t c = 0; c < n_chunks; c++) {
        f->chunks[c] = (char *)f->memory + (n_chunks - 1 - c) * room + 16 * random_below(4);
        for (size_t i = 0; i < (size_t)chunk_tokens * (dim_k + dim_v); i++)
            element_set(fixture_chunk(f, c), dtype, i, 3 * random_float());
    }
    for (size_t i = 0; i < (size_t)n_queries * (dim_k + 3); i++)
        f->q[i] = 2 * random_float();
    for (uint32_t r = 0; r < n_queries; r++)
        f->visible[r] = fixture_tokens(f);
}

static inline void fixture_fini(struct fixture *f)
{
    free(f->memory);
    free(f->chunks);
    free(f->q);
    free(f->out);
    free(f->lse);
    free(f->visible);
}

/* Attention of one row, in double, in two passes. `out` has room for dim_v. */
static inline void fixture_exact(struct fixture *f, uint32_t r, double *out, double *lse)
{
    const struct kvf_attend *a = &f->args;
    double *logit = calloc(a->visible[r] + 1, sizeof *logit), max = -(double)INFINITY, sum = 0;
    size_t at;
    for (uint32_t t = 0; t < a->visible[r]; t++) {
        const void *k = fixture_place(f, t, false, &at);
        for (uint32_t d = 0; d < a->dim_k; d++)
            logit[t] += (double)a->q[r * a->q_stride + d] * element_at(k, a->dtype, at + d);
        logit[t] *= a->scale;
        max = logit[t] > max ? logit[t] : max;
    }
    memset(out, 0, a->dim_v * sizeof *out);
    for (uint32_t t = 0; t < a->visible[r]; t++) {
        const void *v = fixture_place(f, t, true, &at);
        double weight = exp(logit[t] - max);
        sum += weight;
        for (uint32_t d = 0; d < a->dim_v; d++)
            out[d] += weight * element_at(v, a->dtype, at + d);
    }
    for (uint32_t d = 0; d < a->dim_v; d++)
        out[d] = a->visible[r] ? out[d] / sum : 0;
    *lse = a->visible[r] ? max + log(sum) : -(double)INFINITY;
    free(logit);
}

/* |a - b| / |b| over n numbers; |a| when b is 0. */
static inline double relative_l2(const float *a, const double *b, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}
#endif
