/* The engine of sim_engine.h. */
#include "tests/sim/sim_engine.h"

#include "base/hash.h"
#include <stdlib.h>
#include <string.h>

#define LAYERS 2
#define KV_HEADS 2
#define Q_HEADS 4
#define ATTEMPTS 40

static void demand(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "sim_engine: %s failed\n", what);
    abort();
}

/* A number in [-1, 1). */
static float value_of(uint64_t seed, uint64_t a, uint64_t b)
{
    return (float)(int32_t)(uint32_t)(kvf_mix(kvf_mix(seed, a), b) >> 16) * (1.0f / 2147483648.0f);
}

/* Rows of all positions of all layers: what two steps put at a position is the same. */
static float *rows_make(const struct sim_engine *e, char what, uint32_t width)
{
    float *rows = malloc((size_t)LAYERS * e->tokens_max * width * sizeof *rows), *out = rows;
    demand(rows != NULL, "memory");
    for (uint64_t l = 0; l < LAYERS; l++)
        for (uint32_t t = 0; t < e->tokens_max; t++)
            for (uint32_t i = 0; i < width; i++)
                *out++ = value_of(e->seed ^ (uint64_t)what << 56 ^ l << 48, t, i);
    return rows;
}

static const float *rows_at(const struct sim_engine *e, const float *rows, uint32_t layer, uint64_t first, uint32_t width)
{
    return rows + ((size_t)layer * e->tokens_max + first) * width;
}

int32_t sim_engine_token(const struct sim_engine *e, uint64_t position)
{
    return (int32_t)(kvf_mix(e->seed, position) & 0xffff);
}

static void compare(struct sim_engine *e, const float *expect, const float *got, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        e->error2 += ((double)got[i] - expect[i]) * ((double)got[i] - expect[i]);
        e->norm2 += (double)expect[i] * expect[i];
    }
}

static void calls(struct sim_engine *e, const char *call)
{
    if (e->calls)
        e->calls(e->calls_arg, call);
}

static enum kvf_status called(struct sim_engine *e, enum kvf_status status)
{
    if (e->called)
        e->called(e->calls_arg, status);
    return status;
}

/* The layers of an open step. */
static enum kvf_status layers_run(struct sim_engine *e, struct kvf_session *s, uint64_t first, uint32_t n, bool record)
{
    const struct kvf_model_desc *d = &e->desc;
    size_t width = (size_t)d->q_heads * d->dim_v;
    for (uint32_t l = 0; l < d->layers; l++) {
        const float *k = rows_at(e, e->k, l, first, d->kv_heads * d->dim_k);
        const float *v = rows_at(e, e->v, l, first, d->kv_heads * d->dim_v);
        calls(e, "step_append");
        enum kvf_status st = called(e, kvf_step_append(s, l, k, v));
        if (st == KVF_OK) {
            calls(e, "step_attend");
            st = called(e, kvf_step_attend(s, l, rows_at(e, e->q, l, first, d->q_heads * d->dim_k), e->out, e->options));
        }
        if (st != KVF_OK)
            return st;
        float *reference = e->reference + ((size_t)l * e->tokens_max + first) * width;
        if (record)
            memcpy(reference, e->out, n * width * sizeof *reference);
        if (e->options && e->options->budget > 0 && e->options->budget < 1)
            continue;
        for (uint32_t t = 0; t < n; t++) {
            compare(e, reference + t * width, e->out + t * width, width);
            e->compared++;
            e->different += memcmp(reference + t * width, e->out + t * width, width * sizeof *reference) != 0;
        }
    }
    return KVF_OK;
}

static enum kvf_status step_open(struct sim_engine *e, struct kvf_session *s, uint32_t n, bool record)
{
    struct kvf_session_info info;
    int32_t tokens[KVF_STEP_TOKENS_MAX];
    enum kvf_status st = kvf_session_info(s, &info);
    if (st != KVF_OK)
        return st;
    demand(info.tokens + n <= e->tokens_max, "a reference long enough");
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = sim_engine_token(e, info.tokens + i);
    calls(e, "step_begin");
    st = called(e, kvf_step_begin(s, tokens, n));
    if (st == KVF_OK)
        st = layers_run(e, s, info.tokens, n, record);
    if (st != KVF_OK)
        kvf_step_abort(s);
    return st;
}

enum kvf_status sim_engine_step_open(struct sim_engine *e, struct kvf_session *s, uint32_t n)
{
    return step_open(e, s, n, false);
}

enum kvf_status sim_engine_step(struct sim_engine *e, struct kvf_session *s, uint32_t n)
{
    enum kvf_status st = step_open(e, s, n, false);
    if (st != KVF_OK)
        return st;
    calls(e, "step_commit");
    return called(e, kvf_step_commit(s));
}

enum kvf_status sim_engine_refill(struct sim_engine *e, struct kvf_session *s)
{
    struct kvf_range ranges[64];
    size_t count;
    enum kvf_status st = kvf_session_lost(s, ranges, 64, &count);
    for (size_t i = 0; i < count && st == KVF_OK; i++) {
        e->refills++;
        for (uint64_t at = 0; at < ranges[i].count && st == KVF_OK;) {
            uint64_t most = KVF_STEP_TOKENS_MAX / e->desc.block_tokens * e->desc.block_tokens, left = ranges[i].count - at;
            uint32_t n = (uint32_t)(left < most ? left : most);
            calls(e, "step_refill");
            st = called(e, kvf_step_refill(s, ranges[i].first + at, n));
            if (st == KVF_OK)
                st = layers_run(e, s, ranges[i].first + at, n, false);
            if (st == KVF_OK)
                st = kvf_step_commit(s);
            else
                kvf_step_abort(s);
            at += n;
        }
    }
    return st;
}

enum kvf_status sim_engine_run(struct sim_engine *e, struct kvf_session *s, uint64_t tokens, uint32_t n)
{
    struct kvf_session_info info;
    unsigned attempts = 0;
    enum kvf_status st;
    while ((st = kvf_session_info(s, &info)) == KVF_OK && info.tokens < tokens) {
        uint32_t count = tokens - info.tokens < n ? (uint32_t)(tokens - info.tokens) : n;
        st = sim_engine_step(e, s, count);
        if (st == KVF_LOST && attempts++ < ATTEMPTS)
            st = sim_engine_refill(e, s);
        if (st != KVF_OK && st != KVF_LOST)
            return st;
        if (attempts >= ATTEMPTS)
            return KVF_LOST;
    }
    return st;
}

struct kvf_model *sim_engine_model(const struct sim_engine *e, struct sim_node *node)
{
    struct kvf_model *model;
    demand(kvf_model_open(&node->node, &e->desc, &model) == KVF_OK, "kvf_model_open");
    return model;
}

static void reference_build(struct sim_engine *e)
{
    struct sim_cluster *c = sim_cluster_create(e->seed);
    struct sim_node *twin =
        sim_cluster_add(c, &(struct sim_node_config){.name = "twin", .dram = 16 << 20, .block_max = 256 << 10, .alone = true});
    struct kvf_session *s;
    demand(kvf_session_create(&twin->node, sim_engine_model(e, twin), 1, &s) == KVF_OK, "kvf_session_create");
    for (uint32_t at = 0; at < e->tokens_max;) {
        uint32_t n = e->tokens_max - at < 50 ? e->tokens_max - at : 50;
        demand(step_open(e, s, n, true) == KVF_OK && kvf_step_commit(s) == KVF_OK, "a step of the twin");
        at += n;
    }
    demand(kvf_session_drop(s) == KVF_OK, "kvf_session_drop");
    sim_cluster_destroy(c);
    e->compared = 0;
    e->error2 = e->norm2 = 0;
}

static void out_alloc(struct sim_engine *e)
{
    e->out = malloc((size_t)KVF_STEP_TOKENS_MAX * Q_HEADS * e->desc.dim_v * sizeof *e->out);
    demand(e->out != NULL, "memory");
}

struct sim_engine *sim_engine_clone(const struct sim_engine *engine)
{
    struct sim_engine *e = calloc(1, sizeof *e);
    demand(e != NULL, "memory");
    e->desc = engine->desc;
    e->seed = engine->seed;
    e->tokens_max = engine->tokens_max;
    e->reference = engine->reference;
    e->k = engine->k;
    e->v = engine->v;
    e->q = engine->q;
    e->clone = true;
    out_alloc(e);
    return e;
}

struct sim_engine *sim_engine_create(uint64_t seed, uint32_t dim, enum kvf_dtype dtype, uint32_t chunk_tokens,
                                     uint32_t block_tokens, uint32_t tokens_max)
{
    struct sim_engine *e = calloc(1, sizeof *e);
    demand(e != NULL, "memory");
    e->desc = (struct kvf_model_desc){.name = "tiny",
                                      .weights_id = seed,
                                      .layers = LAYERS,
                                      .kv_heads = KV_HEADS,
                                      .q_heads = Q_HEADS,
                                      .dim_k = dim,
                                      .dim_v = dim,
                                      .dtype = dtype,
                                      .chunk_tokens = chunk_tokens,
                                      .block_tokens = block_tokens};
    e->seed = seed;
    e->tokens_max = tokens_max;
    e->reference = calloc((size_t)LAYERS * tokens_max * Q_HEADS * dim, sizeof(float));
    demand(e->reference != NULL, "memory");
    e->k = rows_make(e, 'k', KV_HEADS * dim);
    e->v = rows_make(e, 'v', KV_HEADS * dim);
    e->q = rows_make(e, 'q', Q_HEADS * dim);
    out_alloc(e);
    reference_build(e);
    return e;
}

void sim_engine_destroy(struct sim_engine *e)
{
    if (!e->clone) {
        free(e->reference);
        free(e->k);
        free(e->v);
        free(e->q);
    }
    free(e->out);
    free(e);
}
