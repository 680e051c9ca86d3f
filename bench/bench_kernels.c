/* kvf bench kernels: what each operation of each CPU table reaches, beside the plain reference and beside memcpy of the
 * operation's input, all in turns in one run. Every table's output is compared with the reference's before timing. */
#include "bench/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cold.h"

enum {
    MIB = 1 << 20,
    CHUNK_TOKENS = 16,
    BLOCK_CHUNKS = 4,
    GROUP = 3,           /* query rows of a KV head in decode */
    PREFILL_ROWS = 384,  /* 128 tokens of such a group */
    COPY_BYTES = 4096,
    CHECKSUM_BYTES = 128 << 10,
    SCORE_CHUNKS = 2048,
    TOPK_SCORES = 16384,
    TOPK_K = 1024,
    MERGE_PARTS = 4,
    DIM_MAX = 128,
    PATTERN = 1 << 18, /* different elements of the input; then they repeat */
};

struct job;

/* One line of the bench. */
struct spec {
    const char *name;
    void (*run)(struct job *job);
    enum kvf_dtype dtype, to; /* of the input; convert: of the output */
    uint32_t dim;
    size_t in_bytes, out_bytes; /* read by a run (and by memcpy); written and compared */
    bool exact;                 /* compared bit for bit, else as floats, relative L2 error 1e-4 */
    double flops;               /* of a run, where GFLOP/s says more than GB/s; else 0 */
    bool typed;                 /* --dtype selects it or not */
};

/* One table at work on one spec. */
struct job {
    const struct spec *spec;
    const struct kvf_dev *dev;
    const uint8_t *in;
    uint8_t *out;
    const float *q;
    const void *const *places; /* the input's pieces in scattered order */
    struct kvf_copy *copies;
    bool failed;
};

static size_t element_bytes(enum kvf_dtype dtype)
{
    return dtype == KVF_F32 ? 4 : 2;
}

static size_t chunk_bytes(const struct spec *s)
{
    return 2 * CHUNK_TOKENS * s->dim * element_bytes(s->dtype);
}

/* The size of the pieces that `places` lists. */
static size_t piece_bytes(const struct spec *s)
{
    return s->dim ? chunk_bytes(s) : COPY_BYTES;
}

static void note(struct job *job, enum kvf_status status)
{
    job->failed = job->failed || status != KVF_OK;
}

static void run_gather(struct job *job)
{
    size_t n = job->spec->in_bytes / COPY_BYTES;
    for (size_t i = 0; i < n; i++)
        job->copies[i] = (struct kvf_copy){job->places[i], job->out + i * COPY_BYTES, COPY_BYTES};
    note(job, job->dev->gather(job->dev, NULL, job->copies, n));
}

static void run_scatter(struct job *job)
{
    size_t n = job->spec->in_bytes / COPY_BYTES;
    for (size_t i = 0; i < n; i++) {
        uint8_t *to = job->out + ((const uint8_t *)job->places[i] - job->in);
        job->copies[i] = (struct kvf_copy){job->in + i * COPY_BYTES, to, COPY_BYTES};
    }
    note(job, job->dev->scatter(job->dev, NULL, job->copies, n));
}

static void run_checksum(struct job *job)
{
    uint64_t *out = (uint64_t *)job->out;
    for (size_t i = 0; i < job->spec->in_bytes / CHECKSUM_BYTES; i++)
        note(job, job->dev->checksum(job->dev, NULL, job->in + i * CHECKSUM_BYTES, CHECKSUM_BYTES, i, out + i));
}

static void run_copy_checksum(struct job *job)
{
    uint64_t sums[CHECKSUM_BYTES / COPY_BYTES];
    for (size_t i = 0; i < job->spec->in_bytes; i += CHECKSUM_BYTES)
        note(job, job->dev->copy_checksum(job->dev, NULL, job->out + i, job->in + i, false, CHECKSUM_BYTES, COPY_BYTES, i, sums));
}

static void run_convert(struct job *job)
{
    const struct spec *s = job->spec;
    note(job, job->dev->convert(job->dev, NULL, job->out, s->to, job->in, s->dtype, s->in_bytes / element_bytes(s->dtype)));
}

static void summarise(struct job *job, enum kvf_summary_kind kind)
{
    const struct spec *s = job->spec;
    size_t step = CHUNK_TOKENS * s->dim * element_bytes(s->dtype), n = s->in_bytes / step;
    size_t floats = kind == KVF_SUMMARY_MINMAX ? 2 * s->dim : s->dim;
    for (size_t i = 0; i < n; i++)
        note(job, job->dev->summarise(job->dev, NULL, kind, job->in + i * step, s->dtype, CHUNK_TOKENS, s->dim,
                                      (float *)job->out + i * floats));
}

static void run_mean(struct job *job)
{
    summarise(job, KVF_SUMMARY_MEAN);
}

static void run_minmax(struct job *job)
{
    summarise(job, KVF_SUMMARY_MINMAX);
}

static void score(struct job *job, enum kvf_summary_kind kind)
{
    uint32_t dim = job->spec->dim;
    const float *summaries = (const float *)job->in;
    note(job, job->dev->score(job->dev, NULL, kind, summaries, SCORE_CHUNKS, dim, job->q, dim, GROUP, 0.1f, (float *)job->out));
}

static void run_score_mean(struct job *job)
{
    score(job, KVF_SUMMARY_MEAN);
}

static void run_score_minmax(struct job *job)
{
    score(job, KVF_SUMMARY_MINMAX);
}

static void run_topk(struct job *job)
{
    uint32_t count;
    note(job, job->dev->topk(job->dev, NULL, (const float *)job->in, TOPK_SCORES, TOPK_K, (uint32_t *)job->out, &count));
}

/* Block after block, as a decode step calls it. */
static void attend(struct job *job, uint32_t rows, size_t blocks)
{
    const struct spec *s = job->spec;
    static uint32_t visible[PREFILL_ROWS];
    float lse[PREFILL_ROWS];
    for (uint32_t r = 0; r < rows; r++)
        visible[r] = BLOCK_CHUNKS * CHUNK_TOKENS;
    for (size_t b = 0; b < blocks; b++) {
        struct kvf_attend args = {.chunks = job->places + b * BLOCK_CHUNKS, .n_chunks = BLOCK_CHUNKS, .chunk_tokens = CHUNK_TOKENS,
                                  .dim_k = s->dim, .dim_v = s->dim, .dtype = s->dtype, .q = job->q, .q_stride = s->dim,
                                  .n_queries = rows, .visible = visible, .scale = 1 / sqrtf((float)s->dim),
                                  .out = (float *)job->out + b * rows * s->dim, .out_stride = s->dim, .lse = lse};
        note(job, job->dev->attend(job->dev, NULL, &args));
    }
}

static void run_decode(struct job *job)
{
    attend(job, GROUP, job->spec->in_bytes / chunk_bytes(job->spec) / BLOCK_CHUNKS);
}

static void run_prefill(struct job *job)
{
    attend(job, PREFILL_ROWS, 1);
}

static void run_merge(struct job *job)
{
    uint32_t dim = job->spec->dim;
    size_t part = job->spec->in_bytes / MERGE_PARTS;
    uint32_t rows = (uint32_t)(part / (dim * sizeof(float)));
    const float *outs[MERGE_PARTS], *lses[MERGE_PARTS];
    for (size_t p = 0; p < MERGE_PARTS; p++) {
        outs[p] = (const float *)(job->in + p * part);
        lses[p] = (const float *)job->in + p * 4096; /* any numbers will do */
    }
    struct kvf_merge args = {outs, lses, MERGE_PARTS, rows, dim, dim, (float *)job->out, (float *)job->out + (size_t)rows * dim};
    note(job, job->dev->merge(job->dev, NULL, &args));
}

static struct kvf_cold cold_shape(const struct spec *s, enum kvf_cold_format format)
{
    return (struct kvf_cold){format, s->dtype, BLOCK_CHUNKS, CHUNK_TOKENS, s->dim, s->dim};
}

/* Block after block; behind the codes of all lie their scales. */
static void cold_encode(struct job *job, enum kvf_cold_format format)
{
    struct kvf_cold shape = cold_shape(job->spec, format);
    size_t block = BLOCK_CHUNKS * chunk_bytes(job->spec), codes = BLOCK_CHUNKS * kvf_cold_chunk_bytes(&shape);
    size_t n = job->spec->in_bytes / block, scales = kvf_cold_scale_bytes(&shape);
    uint8_t *behind = job->out + n * codes;
    for (size_t i = 0; i < n; i++)
        note(job, job->dev->encode(job->dev, NULL, &shape, job->in + i * block, job->out + i * codes, behind + i * scales));
}

/* Any bytes are codes, and scales too: what comes out is compared bit for bit. */
static void cold_decode(struct job *job, enum kvf_cold_format format)
{
    struct kvf_cold shape = cold_shape(job->spec, format);
    size_t block = BLOCK_CHUNKS * chunk_bytes(job->spec), codes = BLOCK_CHUNKS * kvf_cold_chunk_bytes(&shape);
    for (size_t i = 0; i < job->spec->out_bytes / block; i++) {
        const uint8_t *from = job->in + i * codes;
        note(job, job->dev->decode(job->dev, NULL, &shape, UINT64_MAX, from, from + 64, job->out + i * block));
    }
}

static void run_encode_int8(struct job *job)
{
    cold_encode(job, KVF_COLD_INT8);
}

static void run_encode_fp8(struct job *job)
{
    cold_encode(job, KVF_COLD_FP8);
}

static void run_decode_int8(struct job *job)
{
    cold_decode(job, KVF_COLD_INT8);
}

static void run_decode_fp8(struct job *job)
{
    cold_decode(job, KVF_COLD_FP8);
}

#define ENCODED(dim) (2 * MIB + 4 * MIB / (BLOCK_CHUNKS * 2 * CHUNK_TOKENS * (dim) * 2) * ((dim) + BLOCK_CHUNKS) * 2)
#define DECODE(name, type, dim, blocks)                                                                                    \
    {name, run_decode, type, type, dim, (size_t)(blocks) * BLOCK_CHUNKS * 2 * CHUNK_TOKENS * dim * (type == KVF_F32 ? 4 : 2), \
     (size_t)(blocks) * GROUP * dim * 4, false, 0, true}
#define PREFILL(name, type, dim)                                                                                 \
    {name, run_prefill, type, type, dim, (size_t)BLOCK_CHUNKS * 2 * CHUNK_TOKENS * dim * (type == KVF_F32 ? 4 : 2), \
     (size_t)PREFILL_ROWS * dim * 4, false, 4.0 * PREFILL_ROWS * BLOCK_CHUNKS * CHUNK_TOKENS * dim, true}

static const struct spec specs[] = {
    {"gather 4k", run_gather, KVF_F16, KVF_F16, 0, 32 * MIB, 32 * MIB, true, 0, false},
    {"scatter 4k", run_scatter, KVF_F16, KVF_F16, 0, 32 * MIB, 32 * MIB, true, 0, false},
    {"checksum 128k", run_checksum, KVF_F16, KVF_F16, 0, 4 * MIB, 4 * MIB / CHECKSUM_BYTES * 8, true, 0, false},
    {"copy, checksum 4k", run_copy_checksum, KVF_F16, KVF_F16, 0, 32 * MIB, 32 * MIB, true, 0, false},
    {"convert f32 f16", run_convert, KVF_F32, KVF_F16, 0, 4 * MIB, 2 * MIB, true, 0, true},
    {"convert f32 bf16", run_convert, KVF_F32, KVF_BF16, 0, 4 * MIB, 2 * MIB, true, 0, true},
    {"convert f16 f32", run_convert, KVF_F16, KVF_F32, 0, 4 * MIB, 8 * MIB, true, 0, true},
    {"convert bf16 f32", run_convert, KVF_BF16, KVF_F32, 0, 4 * MIB, 8 * MIB, true, 0, true},
    {"encode int8 f16 d64", run_encode_int8, KVF_F16, KVF_F16, 64, 4 * MIB, ENCODED(64), true, 0, true},
    {"encode int8 bf16 d128", run_encode_int8, KVF_BF16, KVF_BF16, 128, 4 * MIB, ENCODED(128), true, 0, true},
    {"encode fp8 f16 d64", run_encode_fp8, KVF_F16, KVF_F16, 64, 4 * MIB, ENCODED(64), true, 0, true},
    {"encode fp8 bf16 d128", run_encode_fp8, KVF_BF16, KVF_BF16, 128, 4 * MIB, ENCODED(128), true, 0, true},
    {"decode int8 f16 d64", run_decode_int8, KVF_F16, KVF_F16, 64, 2 * MIB, 4 * MIB, true, 0, true},
    {"decode int8 bf16 d128", run_decode_int8, KVF_BF16, KVF_BF16, 128, 2 * MIB, 4 * MIB, true, 0, true},
    {"decode fp8 f16 d64", run_decode_fp8, KVF_F16, KVF_F16, 64, 2 * MIB, 4 * MIB, true, 0, true},
    {"decode fp8 bf16 d128", run_decode_fp8, KVF_BF16, KVF_BF16, 128, 2 * MIB, 4 * MIB, true, 0, true},
    {"summarise mean f16 d64", run_mean, KVF_F16, KVF_F16, 64, 4 * MIB, 4 * MIB / CHUNK_TOKENS * 2, false, 0, true},
    {"summarise mean bf16 d128", run_mean, KVF_BF16, KVF_BF16, 128, 4 * MIB, 4 * MIB / CHUNK_TOKENS * 2, false, 0, true},
    {"summarise minmax f16 d64", run_minmax, KVF_F16, KVF_F16, 64, 4 * MIB, 4 * MIB / CHUNK_TOKENS * 4, true, 0, true},
    {"score mean d64", run_score_mean, KVF_F32, KVF_F32, 64, SCORE_CHUNKS * 64 * 4, SCORE_CHUNKS * 4, false, 0, false},
    {"score minmax d64", run_score_minmax, KVF_F32, KVF_F32, 64, SCORE_CHUNKS * 64 * 8, SCORE_CHUNKS * 4, false, 0, false},
    {"topk 1024 of 16384", run_topk, KVF_F32, KVF_F32, 0, TOPK_SCORES * 4, TOPK_K * 4, true, 0, false},
    DECODE("attend decode f16 d64", KVF_F16, 64, 64),
    DECODE("attend decode bf16 d128", KVF_BF16, 128, 32),
    DECODE("attend decode f32 d64", KVF_F32, 64, 32),
    PREFILL("attend prefill f16 d64", KVF_F16, 64),
    PREFILL("attend prefill bf16 d128", KVF_BF16, 128),
    PREFILL("attend prefill f32 d64", KVF_F32, 64),
    {"merge 4 parts d64", run_merge, KVF_F32, KVF_F32, 64, 4 * MIB, MIB + MIB / 64, false, 0, false},
};
enum { N_SPECS = sizeof specs / sizeof *specs };

static uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Memory of all jobs of one spec after the other. */
struct memory {
    uint8_t *in, *out, *expect, *copy;
    float *q;
    const void **places;
    struct kvf_copy *copies;
};

enum { ROOM = 32 * MIB };

static void memory_fini(struct memory *m)
{
    free(m->in);
    free(m->out);
    free(m->expect);
    free(m->copy);
    free(m->q);
    free(m->places);
    free(m->copies);
}

static bool memory_init(struct memory *m)
{
    size_t pieces = ROOM / COPY_BYTES;
    *m = (struct memory){.in = aligned_alloc(4096, ROOM), .out = aligned_alloc(4096, ROOM), .expect = aligned_alloc(4096, ROOM),
                         .copy = aligned_alloc(4096, ROOM), .q = calloc(PREFILL_ROWS * DIM_MAX, sizeof *m->q),
                         .places = calloc(pieces, sizeof *m->places), .copies = calloc(pieces, sizeof *m->copies)};
    if (m->in && m->out && m->expect && m->copy && m->q && m->places && m->copies)
        return true;
    fprintf(stderr, "kvf bench: out of memory\n");
    memory_fini(m);
    return false;
}

/* Numbers of the spec's type, queries, and the pieces in shuffled order. */
static void memory_fill(struct memory *m, const struct spec *s, uint64_t seed)
{
    const struct kvf_dev *reference = kvf_dev_cpu_reference();
    float *numbers = (float *)m->copy;
    for (size_t i = 0; i < PATTERN; i++)
        numbers[i] = (float)((double)(int64_t)random_next(&seed) / 4.6e18);
    for (size_t i = 0; i < PATTERN && s->run == run_score_minmax; i++) /* minima lie below maxima */
        numbers[i] = copysignf(numbers[i], i / s->dim % 2 ? 1 : -1);
    reference->convert(reference, NULL, m->in, s->dtype, numbers, KVF_F32, PATTERN);
    size_t bytes = PATTERN * element_bytes(s->dtype);
    for (size_t at = bytes; at < ROOM; at += bytes)
        memcpy(m->in + at, m->in, bytes);
    for (size_t i = 0; i < (size_t)PREFILL_ROWS * DIM_MAX; i++)
        m->q[i] = numbers[i];
    size_t n = s->in_bytes / piece_bytes(s);
    for (size_t i = 0; i < n; i++)
        m->places[i] = m->in + i * piece_bytes(s);
    for (size_t i = n; i > 1; i--) {
        size_t j = random_next(&seed) % i;
        const void *place = m->places[i - 1];
        m->places[i - 1] = m->places[j];
        m->places[j] = place;
    }
}

static bool same(const struct spec *s, const uint8_t *a, const uint8_t *b)
{
    if (s->exact)
        return !memcmp(a, b, s->out_bytes);
    double difference = 0, norm = 0;
    const float *x = (const float *)a, *y = (const float *)b;
    for (size_t i = 0; i < s->out_bytes / sizeof(float); i++) {
        difference += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        norm += (double)y[i] * y[i];
    }
    return difference <= 1e-8 * norm; /* false for NaN */
}

static void run_job(void *arg)
{
    struct job *job = arg;
    job->spec->run(job);
}

static void run_memcpy(void *arg)
{
    struct job *job = arg;
    memcpy(job->out, job->in, job->spec->in_bytes);
    __asm__ volatile("" : : "r"(job->out) : "memory");
}

static void add(struct kvf_bench *bench, const struct kvf_bench_case *one, const char *name, const char *limit_name,
                const struct kvf_bench_case *limit)
{
    const struct job *job = one->arg;
    double unit = 1e9;
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = name,
                                                    .unit = job->spec->flops > 0 ? "GFLOP/s" : "GB/s",
                                                    .value = kvf_bench_rate(one, 50) / unit,
                                                    .p50 = kvf_bench_rate(one, 50) / unit,
                                                    .p99 = kvf_bench_rate(one, 99) / unit,
                                                    .n = one->rounds,
                                                    .limit_name = limit_name,
                                                    .limit_value = limit ? kvf_bench_rate(limit, 50) / unit : 0});
}

/* The reference, the tables and memcpy in turns; a line per table and limit. */
static void report(struct kvf_bench *bench, const struct spec *s, struct kvf_bench_case *cases, size_t n, double seconds)
{
    char name[96];
    kvf_bench_interleave(cases, n, seconds);
    for (size_t c = 2; c < n; c++) {
        const struct job *job = cases[c].arg;
        snprintf(name, sizeof name, "%s, %s", s->name, job->dev->name + strlen("cpu "));
        add(bench, cases + c, name, "reference", cases);
        if (s->flops == 0)
            add(bench, cases + c, name, "memcpy", cases + 1);
    }
}

static bool run_spec(struct kvf_bench *bench, struct memory *m, const struct spec *s, double seconds)
{
    struct job jobs[KVF_BENCH_CASES_MAX];
    static struct kvf_bench_case cases[KVF_BENCH_CASES_MAX]; /* too large for the stack; benches have one thread */
    size_t n = 0;
    memory_fill(m, s, bench->seed);
    const struct job base = {.spec = s, .in = m->in, .out = m->out, .q = m->q, .places = m->places, .copies = m->copies};
    for (const struct kvf_dev *const *table = kvf_dev_cpu_all(); *table && n < KVF_BENCH_CASES_MAX; table++) {
        const char *short_name = (*table)->name + strlen("cpu ");
        bool reference = n == 0, wanted = bench->table ? !strcmp(bench->table, short_name) : strcmp(short_name, "plain") != 0;
        if (!reference && !wanted)
            continue;
        jobs[n] = base;
        jobs[n].dev = *table;
        jobs[n].out = reference ? m->expect : m->out;
        memset(jobs[n].out, 0xee, s->out_bytes);
        s->run(jobs + n);
        if (jobs[n].failed || !same(s, jobs[n].out, m->expect)) {
            fprintf(stderr, "kvf bench: %s of table %s differs from the reference\n", s->name, (*table)->name);
            return false;
        }
        double work = s->flops > 0 ? s->flops : (double)s->in_bytes;
        cases[n] = (struct kvf_bench_case){.run = run_job, .arg = jobs + n, .work = work};
        n++;
        if (reference) {
            jobs[n] = base;
            jobs[n].out = m->copy;
            cases[n] = (struct kvf_bench_case){.run = run_memcpy, .arg = jobs + n, .work = (double)s->in_bytes};
            n++;
        }
    }
    report(bench, s, cases, n, seconds);
    return true;
}

static bool wanted_type(const struct kvf_bench *bench, const struct spec *s)
{
    static const char *const names[] = {[KVF_F32] = "f32", [KVF_F16] = "f16", [KVF_BF16] = "bf16"};
    return !bench->dtype || !s->typed || !strcmp(bench->dtype, names[s->dtype]);
}

bool kvf_bench_kernels_run(struct kvf_bench *bench)
{
    struct memory m;
    size_t wanted = 0;
    if (!memory_init(&m))
        return false;
    for (size_t i = 0; i < N_SPECS; i++)
        wanted += wanted_type(bench, specs + i);
    json_object_set_new(bench->config, "chunk_tokens", json_integer(CHUNK_TOKENS));
    json_object_set_new(bench->config, "block_chunks", json_integer(BLOCK_CHUNKS));
    json_object_set_new(bench->config, "decode_rows", json_integer(GROUP));
    json_object_set_new(bench->config, "prefill_rows", json_integer(PREFILL_ROWS));
    json_object_set_new(bench->config, "chosen_table", json_string(kvf_dev_cpu()->name));
    bool good = true;
    for (size_t i = 0; i < N_SPECS && good; i++)
        if (wanted_type(bench, specs + i))
            good = run_spec(bench, &m, specs + i, 0.85 * bench->seconds / (double)wanted);
    bench->verified = good;
    memory_fini(&m);
    return good;
}
