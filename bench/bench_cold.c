/* kvf bench cold: what 8 bits an element cost (the error of attention on made-up K and V of several kinds) and how fast they are
 * made and read back, beside memcpy and beside attention over the exact block. On a real model: llm --budget 100 (README.md). */
#include "bench/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cold.h"

enum { BLOCKS = 32, CHUNKS = 4, CHUNK_TOKENS = 16, TOKENS = BLOCKS * CHUNKS * CHUNK_TOKENS, ROWS = 64, GROUP = 3, DIM_MAX = 128 };

/* What K looks like. OUTLIERS: one dimension in 16 is 40 times larger, about a mean, in every token, as in models whose K has a
 * bias; queries are as much smaller there. SINK: the first token's K is 8 times larger and every query looks at it. */
enum kind { GAUSS, OUTLIERS, SINK, KINDS };
static const char *const kinds[] = {"gauss", "outliers", "sink"};

struct shape {
    const char *name;
    enum kvf_dtype dtype;
    uint32_t dim;
};
static const struct shape shapes[] = {{"f16 d64", KVF_F16, 64}, {"bf16 d128", KVF_BF16, 128}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const enum kvf_cold_format formats[] = {KVF_COLD_INT8, KVF_COLD_FP8};
static const char *const format_names[] = {[KVF_COLD_INT8] = "int8", [KVF_COLD_FP8] = "fp8"};

/* One KV head: blocks in their storage type, coded, decoded, and with one scale for K and one for V of a block. */
struct head {
    const struct shape *shape;
    const struct kvf_dev *dev;
    struct kvf_cold cold; /* the shape of one block */
    size_t block, codes, scales, elements; /* bytes, bytes, bytes, numbers of one block */
    uint8_t *exact, *coded, *scaled, *back, *naive, *copy;
    float *q; /* [ROWS][dim] */
    float out[ROWS * DIM_MAX], other[ROWS * DIM_MAX];
};

static double uniform(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return ((double)((x ^ (x >> 31)) >> 11) + 0.5) * 0x1p-53;
}

static float gauss(uint64_t *state)
{
    double radius = sqrt(-2 * log(uniform(state)));
    return (float)(radius * cos(6.283185307179586 * uniform(state)));
}

static void head_fini(struct head *h)
{
    uint8_t *all[] = {h->exact, h->coded, h->scaled, h->back, h->naive, h->copy, (uint8_t *)h->q};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(h);
}

static struct head *head_make(const struct shape *shape)
{
    struct head *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->shape = shape;
    h->dev = kvf_dev_cpu();
    h->cold = (struct kvf_cold){KVF_COLD_INT8, shape->dtype, CHUNKS, CHUNK_TOKENS, shape->dim, shape->dim};
    h->elements = CHUNKS * kvf_cold_chunk_bytes(&h->cold);
    h->codes = h->elements;
    h->block = h->elements * kvf_cold_element_bytes(shape->dtype);
    h->scales = kvf_cold_scale_bytes(&h->cold);
    h->exact = aligned_alloc(4096, BLOCKS * h->block);
    h->coded = aligned_alloc(4096, BLOCKS * h->codes);
    h->scaled = calloc(BLOCKS, h->scales);
    h->back = aligned_alloc(4096, BLOCKS * h->block);
    h->naive = aligned_alloc(4096, BLOCKS * h->block);
    h->copy = aligned_alloc(4096, BLOCKS * h->block);
    h->q = calloc(ROWS * shape->dim, sizeof *h->q);
    if (h->exact && h->coded && h->scaled && h->back && h->naive && h->copy && h->q)
        return h;
    head_fini(h);
    return NULL;
}

/* Element e of block b belongs to K (else V), dimension d, token t of the head. */
static bool place(const struct head *h, size_t b, size_t e, uint32_t *d, size_t *t)
{
    size_t chunk = kvf_cold_chunk_bytes(&h->cold), in = e % chunk, k = chunk / 2;
    *d = (uint32_t)(in % h->shape->dim);
    *t = (b * CHUNKS + e / chunk) * CHUNK_TOKENS + in % k / h->shape->dim;
    return in < k;
}

static bool is_outlier(uint32_t d)
{
    return d % 16 == 5;
}

static void fill(struct head *h, enum kind kind, uint64_t seed)
{
    float *numbers = malloc(h->elements * sizeof *numbers), mean[DIM_MAX];
    for (uint32_t d = 0; d < h->shape->dim; d++)
        mean[d] = gauss(&seed);
    for (size_t b = 0; numbers && b < BLOCKS; b++) {
        for (size_t e = 0; e < h->elements; e++) {
            uint32_t d;
            size_t t;
            bool k = place(h, b, e, &d, &t);
            numbers[e] = gauss(&seed);
            if (k && kind == OUTLIERS && is_outlier(d))
                numbers[e] = 40 * (mean[d] + numbers[e] / 4);
            if (k && kind == SINK && t == 0)
                numbers[e] = 8 * mean[d];
        }
        h->dev->convert(h->dev, NULL, h->exact + b * h->block, h->shape->dtype, numbers, KVF_F32, h->elements);
    }
    free(numbers);
    for (uint32_t i = 0; i < ROWS * h->shape->dim; i++) {
        uint32_t d = i % h->shape->dim;
        h->q[i] = 2 * gauss(&seed);
        if (kind == OUTLIERS && is_outlier(d))
            h->q[i] /= 40;
        if (kind == SINK)
            h->q[i] += mean[d] / 2;
    }
}

static void encode_all(void *arg)
{
    struct head *h = arg;
    for (size_t b = 0; b < BLOCKS; b++)
        h->dev->encode(h->dev, NULL, &h->cold, h->exact + b * h->block, h->coded + b * h->codes, h->scaled + b * h->scales);
}

static void decode_all(void *arg)
{
    struct head *h = arg;
    for (size_t b = 0; b < BLOCKS; b++)
        h->dev->decode(h->dev, NULL, &h->cold, UINT64_MAX, h->coded + b * h->codes, h->scaled + b * h->scales,
                       h->back + b * h->block);
}

/* int8 with one scale for K and one for V of a block: what the scales per dimension are worth. */
static void naive_all(struct head *h)
{
    float *numbers = malloc(h->elements * sizeof *numbers);
    for (size_t b = 0; numbers && b < BLOCKS; b++) {
        float most[2] = {0};
        uint32_t d;
        size_t t;
        h->dev->convert(h->dev, NULL, numbers, KVF_F32, h->exact + b * h->block, h->shape->dtype, h->elements);
        for (size_t e = 0; e < h->elements; e++)
            most[place(h, b, e, &d, &t)] = fmaxf(most[place(h, b, e, &d, &t)], fabsf(numbers[e]));
        for (size_t e = 0; e < h->elements; e++) {
            float scale = most[place(h, b, e, &d, &t)] / 127;
            numbers[e] = rintf(numbers[e] / scale) * scale;
        }
        h->dev->convert(h->dev, NULL, h->naive + b * h->block, h->shape->dtype, numbers, KVF_F32, h->elements);
    }
    free(numbers);
}

/* Attention of n rows over chunks that lie one after the other. */
static bool attend(struct head *h, const uint8_t *data, uint32_t n_chunks, uint32_t n, float *out)
{
    const void *chunks[BLOCKS * CHUNKS];
    uint32_t visible[ROWS];
    float lse[ROWS];
    for (uint32_t c = 0; c < n_chunks; c++)
        chunks[c] = data + c * (h->block / CHUNKS);
    for (uint32_t r = 0; r < n; r++)
        visible[r] = n_chunks * CHUNK_TOKENS;
    struct kvf_attend args = {.chunks = chunks, .n_chunks = n_chunks, .chunk_tokens = CHUNK_TOKENS, .dim_k = h->shape->dim,
                              .dim_v = h->shape->dim, .dtype = h->shape->dtype, .q = h->q, .q_stride = h->shape->dim,
                              .n_queries = n, .visible = visible, .scale = 1 / sqrtf((float)h->shape->dim), .out = out,
                              .out_stride = h->shape->dim, .lse = lse};
    return h->dev->attend(h->dev, NULL, &args) == KVF_OK;
}

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Relative L2 error of `other` in percent, over all rows; *rows: of every row, rising. */
static double error_of(const struct head *h, double *rows)
{
    double all = 0, norm_all = 0;
    for (uint32_t r = 0; r < ROWS; r++) {
        double sum = 0, norm = 0;
        for (uint32_t i = r * h->shape->dim; i < (r + 1) * h->shape->dim; i++) {
            sum += ((double)h->other[i] - h->out[i]) * ((double)h->other[i] - h->out[i]);
            norm += (double)h->out[i] * h->out[i];
        }
        rows[r] = 100 * sqrt(sum / norm);
        all += sum;
        norm_all += norm;
    }
    qsort(rows, ROWS, sizeof *rows, rising);
    return 100 * sqrt(all / norm_all);
}

/* What is decoded encodes to the same bytes again. */
static bool same_again(struct head *h)
{
    struct head again = *h;
    again.exact = h->back;
    again.coded = malloc(BLOCKS * h->codes);
    again.scaled = calloc(BLOCKS, h->scales);
    bool same = again.coded && again.scaled;
    if (same)
        encode_all(&again);
    same = same && !memcmp(again.coded, h->coded, BLOCKS * h->codes) && !memcmp(again.scaled, h->scaled, BLOCKS * h->scales);
    free(again.coded);
    free(again.scaled);
    return same;
}

static bool errors(struct kvf_bench *bench, struct head *h, enum kind kind)
{
    double rows[ROWS], unused[ROWS];
    fill(h, kind, bench->seed + (uint64_t)kind);
    naive_all(h);
    if (!attend(h, h->exact, BLOCKS * CHUNKS, ROWS, h->out) || !attend(h, h->naive, BLOCKS * CHUNKS, ROWS, h->other))
        return false;
    double naive = error_of(h, unused);
    for (int f = 0; f < 2; f++) {
        char name[64];
        h->cold.format = formats[f];
        encode_all(h);
        decode_all(h);
        if (!same_again(h) || !attend(h, h->back, BLOCKS * CHUNKS, ROWS, h->other)) {
            fprintf(stderr, "kvf bench: %s blocks of %s do not encode to the same bytes again\n", format_names[formats[f]],
                    h->shape->name);
            return false;
        }
        double error = error_of(h, rows);
        snprintf(name, sizeof name, "error %s, %s %s", format_names[formats[f]], kinds[kind], h->shape->name);
        kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "%", .value = error, .p50 = rows[ROWS / 2],
                                                        .p99 = rows[ROWS - 1], .n = ROWS, .limit_name = "int8, one scale",
                                                        .limit_value = naive});
    }
    return true;
}

/* ---------------------------------------------------------------- speed */

static void run_memcpy(void *arg)
{
    struct head *h = arg;
    memcpy(h->copy, h->exact, BLOCKS * h->block);
    __asm__ volatile("" : : "r"(h->copy) : "memory");
}

static void run_attend(void *arg)
{
    struct head *h = arg;
    for (size_t b = 0; b < BLOCKS; b++)
        attend(h, h->exact + b * h->block, CHUNKS, GROUP, h->other);
}

/* As a node does it: a block is decoded into scratch that stays in the cache, then attended. */
static void run_decode_attend(void *arg)
{
    struct head *h = arg;
    for (size_t b = 0; b < BLOCKS; b++) {
        h->dev->decode(h->dev, NULL, &h->cold, UINT64_MAX, h->coded + b * h->codes, h->scaled + b * h->scales, h->back);
        attend(h, h->back, CHUNKS, GROUP, h->other);
    }
}

static void speed(struct kvf_bench *bench, struct head *h, double seconds)
{
    static struct kvf_bench_case cases[5]; /* too large for the stack; benches have one thread */
    static void (*const runs[])(void *) = {run_memcpy, run_attend, encode_all, decode_all, run_decode_attend};
    static const char *const names[] = {"", "", "encode", "decode", "decode and attend"};
    for (int i = 0; i < 5; i++)
        cases[i] = (struct kvf_bench_case){.run = runs[i], .arg = h, .work = (double)(BLOCKS * h->block)};
    kvf_bench_interleave(cases, 5, seconds);
    for (int i = 2; i < 5; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s %s, %s", names[i], format_names[h->cold.format], h->shape->name);
        const struct kvf_bench_case *limit = &cases[i == 4];
        kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "GB/s", .value = kvf_bench_rate(cases + i, 50) / 1e9,
                                                        .p50 = kvf_bench_rate(cases + i, 50) / 1e9,
                                                        .p99 = kvf_bench_rate(cases + i, 99) / 1e9, .n = cases[i].rounds,
                                                        .limit_name = i == 4 ? "attend exact" : "memcpy",
                                                        .limit_value = kvf_bench_rate(limit, 50) / 1e9});
    }
}

bool kvf_bench_cold_run(struct kvf_bench *bench)
{
    bool good = true;
    json_object_set_new(bench->config, "tokens", json_integer(TOKENS));
    json_object_set_new(bench->config, "block_tokens", json_integer(CHUNKS * CHUNK_TOKENS));
    json_object_set_new(bench->config, "chunk_tokens", json_integer(CHUNK_TOKENS));
    json_object_set_new(bench->config, "table", json_string(kvf_dev_cpu()->name));
    for (size_t s = 0; s < N_SHAPES && good; s++) {
        struct head *h = head_make(&shapes[s]);
        if (!h) {
            fprintf(stderr, "kvf bench: out of memory\n");
            return false;
        }
        for (int kind = 0; kind < KINDS && good; kind++)
            good = errors(bench, h, (enum kind)kind);
        for (int f = 0; f < 2 && good; f++) {
            h->cold.format = formats[f];
            encode_all(h); /* also the warm-up */
            speed(bench, h, bench->seconds / (2 * N_SHAPES));
        }
        head_fini(h);
    }
    bench->verified = good;
    return good;
}
