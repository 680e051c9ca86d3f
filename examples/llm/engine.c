#include "engine.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MATRICES_MAX 3
#define LANES 16 /* partial sums of a norm: a fixed order of additions that a compiler can put into one register */

struct llm_engine {
    const struct llm_model *model;
    struct llm_pool *pool;
    float *x, *h;           /* [tokens][embedding] the residual stream and its norm */
    float *q, *k, *v, *att; /* [tokens][heads * dim] */
    float *gate, *up;       /* [tokens][ffn] */
    float *angles;          /* [tokens][rope_dims / 2][cos, sin] */
    float *edge;            /* [threads][tokens][LLM_PANEL] for a last panel that sticks out */
};

/* Up to three products of one input, run as one parallel section. */
struct product {
    const struct llm_matrix *matrix;
    float *y; /* [n][outputs] */
};
struct products {
    struct llm_engine *engine;
    const float *x;
    uint32_t n, count;
    struct product list[MATRICES_MAX];
};

static void run_panel(void *arg, unsigned item, unsigned thread)
{
    const struct products *job = arg;
    const struct llm_engine *e = job->engine;
    const struct product *p = job->list;
    for (unsigned panels; item >= (panels = (p->matrix->outputs + LLM_PANEL - 1) / LLM_PANEL); p++)
        item -= panels;
    const struct llm_matrix *m = p->matrix;
    const uint16_t *panel = m->panels + (size_t)item * LLM_PANEL * m->inputs;
    uint32_t first = item * LLM_PANEL, left = m->outputs - first;
    if (left >= LLM_PANEL) {
        e->model->matmul->panel(panel, m->inputs, job->x, m->inputs, job->n, p->y + first, m->outputs);
        return;
    }
    float *edge = e->edge + (size_t)thread * KVF_STEP_TOKENS_MAX * LLM_PANEL;
    e->model->matmul->panel(panel, m->inputs, job->x, m->inputs, job->n, edge, LLM_PANEL);
    for (uint32_t t = 0; t < job->n; t++)
        memcpy(p->y + (size_t)t * m->outputs + first, edge + (size_t)t * LLM_PANEL, left * sizeof(float));
}

static void multiply(struct llm_engine *e, const float *x, uint32_t n, uint32_t count, const struct product *list)
{
    struct products job = {.engine = e, .x = x, .n = n, .count = count};
    unsigned panels = 0;
    for (uint32_t i = 0; i < count; i++) {
        job.list[i] = list[i];
        panels += (list[i].matrix->outputs + LLM_PANEL - 1) / LLM_PANEL;
    }
    llm_pool_run(e->pool, panels, run_panel, &job);
}

static void norm_row(float *out, const float *x, const float *weight, uint32_t n, float epsilon)
{
    float sums[LANES] = {0}, sum = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        sums[i % LANES] += x[i] * x[i];
    for (uint32_t i = 0; i < LANES; i++)
        sum += sums[i];
    float scale = 1.0f / sqrtf(sum / (float)n + epsilon);
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

static void norm(const struct llm_engine *e, float *out, const float *x, const float *weight, uint32_t n)
{
    uint32_t width = e->model->embedding;
    for (uint32_t t = 0; t < n; t++)
        norm_row(out + (size_t)t * width, x + (size_t)t * width, weight, width, e->model->norm_epsilon);
}

static void find_angles(struct llm_engine *e, uint32_t n, uint64_t position)
{
    uint32_t pairs = e->model->rope_dims / 2;
    float *to = e->angles;
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < pairs; i++, to += 2) {
            float angle = (float)(position + t) * e->model->rope_frequency[i];
            to[0] = cosf(angle);
            to[1] = sinf(angle);
        }
}

/* Rotates neighbouring pairs of each head (the order in which GGUF files of this architecture store Q and K). */
static void rotate(const struct llm_engine *e, float *rows, uint32_t n, uint32_t heads)
{
    uint32_t dim = e->model->dim, pairs = e->model->rope_dims / 2;
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t h = 0; h < heads; h++) {
            float *row = rows + ((size_t)t * heads + h) * dim;
            const float *angle = e->angles + (size_t)t * pairs * 2;
            for (uint32_t i = 0; i < pairs; i++) {
                float a = row[2 * i], b = row[2 * i + 1], c = angle[2 * i], s = angle[2 * i + 1];
                row[2 * i] = a * c - b * s;
                row[2 * i + 1] = a * s + b * c;
            }
        }
}

static void add(float *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] += from[i];
}

/* gate = silu(gate) * up, one token per item. */
static void gate_row(void *arg, unsigned item, unsigned thread)
{
    struct llm_engine *e = arg;
    float *gate = e->gate + (size_t)item * e->model->ffn;
    const float *up = e->up + (size_t)item * e->model->ffn;
    for (uint32_t i = 0; i < e->model->ffn; i++)
        gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static enum kvf_status run_layer(struct llm_engine *e, struct llm_cache *cache, uint32_t index, uint32_t n, bool only_append)
{
    const struct llm_model *m = e->model;
    const struct llm_layer *l = &m->layer[index];
    norm(e, e->h, e->x, l->attention_norm, n);
    multiply(e, e->h, n, 3, (const struct product[]){{&l->q, e->q}, {&l->k, e->k}, {&l->v, e->v}});
    rotate(e, e->q, n, m->q_heads);
    rotate(e, e->k, n, m->kv_heads);
    enum kvf_status st = cache->append(cache, index, e->k, e->v);
    if (st != KVF_OK || only_append)
        return st;
    st = cache->attend(cache, index, e->q, e->att);
    if (st != KVF_OK)
        return st;
    multiply(e, e->att, n, 1, (const struct product[]){{&l->o, e->h}});
    add(e->x, e->h, (size_t)n * m->embedding);
    norm(e, e->h, e->x, l->ffn_norm, n);
    multiply(e, e->h, n, 2, (const struct product[]){{&l->gate, e->gate}, {&l->up, e->up}});
    llm_pool_run(e->pool, n, gate_row, e);
    multiply(e, e->gate, n, 1, (const struct product[]){{&l->down, e->h}});
    add(e->x, e->h, (size_t)n * m->embedding);
    return KVF_OK;
}

enum kvf_status llm_engine_forward(struct llm_engine *e, struct llm_cache *cache, const int32_t *tokens, uint32_t n,
                                   uint64_t position, enum llm_logits which, float *logits)
{
    const struct llm_model *m = e->model;
    assert(n >= 1 && n <= KVF_STEP_TOKENS_MAX);
    assert(which == LLM_LOGITS_NONE || logits);
    for (uint32_t t = 0; t < n; t++) {
        if (tokens[t] < 0 || (uint32_t)tokens[t] >= m->vocabulary)
            return KVF_ERR_INVALID;
        llm_model_embed(m, tokens[t], e->x + (size_t)t * m->embedding);
    }
    find_angles(e, n, position);
    for (uint32_t layer = 0; layer < m->layers; layer++) {
        /* Behind the last layer's K and V nothing is needed of tokens whose logits nobody wants. */
        bool only_append = which == LLM_LOGITS_NONE && layer == m->layers - 1;
        enum kvf_status st = run_layer(e, cache, layer, n, only_append);
        if (st != KVF_OK)
            return st;
    }
    if (which == LLM_LOGITS_NONE)
        return KVF_OK;
    uint32_t first = which == LLM_LOGITS_ALL ? 0 : n - 1;
    norm(e, e->h, e->x + (size_t)first * m->embedding, m->output_norm, n - first);
    multiply(e, e->h, n - first, 1, (const struct product[]){{&m->output, logits}});
    return KVF_OK;
}

struct llm_engine *llm_engine_create(const struct llm_model *m, struct llm_pool *pool)
{
    struct llm_engine *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    size_t tokens = KVF_STEP_TOKENS_MAX;
    e->model = m;
    e->pool = pool;
    e->x = malloc(tokens * m->embedding * sizeof(float));
    e->h = malloc(tokens * m->embedding * sizeof(float));
    e->q = malloc(tokens * m->q_heads * m->dim * sizeof(float));
    e->k = malloc(tokens * m->kv_heads * m->dim * sizeof(float));
    e->v = malloc(tokens * m->kv_heads * m->dim * sizeof(float));
    e->att = malloc(tokens * m->q_heads * m->dim * sizeof(float));
    e->gate = malloc(tokens * m->ffn * sizeof(float));
    e->up = malloc(tokens * m->ffn * sizeof(float));
    e->angles = malloc(tokens * m->rope_dims * sizeof(float));
    e->edge = malloc(llm_pool_threads(pool) * tokens * LLM_PANEL * sizeof(float));
    if (!e->x || !e->h || !e->q || !e->k || !e->v || !e->att || !e->gate || !e->up || !e->angles || !e->edge) {
        llm_engine_destroy(e);
        return NULL;
    }
    return e;
}

void llm_engine_destroy(struct llm_engine *e)
{
    if (!e)
        return;
    float *buffers[] = {e->x, e->h, e->q, e->k, e->v, e->att, e->gate, e->up, e->angles, e->edge};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        free(buffers[i]);
    free(e);
}

int32_t llm_engine_argmax(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

uint64_t llm_engine_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
