/* The forward pass: right against a naive one in double, and the same bits however the tokens are batched. */
#include "fixture.h"

#include <examples/llm/engine.h>
#include <examples/llm/quant.h>

#include <math.h>

#define SEED 20240613u
#define TOKENS 200

struct engine {
    struct fixture files;
    struct llm_pool *pool;
    struct llm_model model;
    struct llm_engine *engine;
    int32_t tokens[TOKENS];
};

static void open_engine(struct engine *e, unsigned threads)
{
    struct llm_error error = {{0}};
    uint64_t random = SEED;
    fixture_open(&e->files, SEED);
    e->pool = llm_pool_create(threads);
    assert_non_null(e->pool);
    assert_true(llm_model_load(&e->model, e->files.path, e->pool, &error));
    e->engine = llm_engine_create(&e->model, e->pool);
    assert_non_null(e->engine);
    for (size_t i = 0; i < TOKENS; i++)
        e->tokens[i] = (int32_t)(fixture_random(&random) % e->model.vocabulary);
}

static void close_engine(struct engine *e)
{
    llm_engine_destroy(e->engine);
    llm_model_free(&e->model);
    llm_pool_destroy(e->pool);
    fixture_close(&e->files);
}

/* Logits of all tokens, fed in batches of the given size through a fresh plain cache. */
static float *run(struct engine *e, uint32_t batch)
{
    struct llm_cache_plain *plain = llm_cache_plain_create(&e->model, e->pool, TOKENS);
    struct llm_cache *cache = llm_cache_plain_table(plain);
    float *logits = malloc((size_t)TOKENS * e->model.vocabulary * sizeof *logits);
    for (uint32_t at = 0; at < TOKENS; at += batch) {
        uint32_t n = TOKENS - at < batch ? TOKENS - at : batch;
        assert_int_equal(cache->begin(cache, e->tokens + at, n), KVF_OK);
        assert_int_equal(llm_engine_forward(e->engine, cache, e->tokens + at, n, at, LLM_LOGITS_ALL,
                                            logits + (size_t)at * e->model.vocabulary), KVF_OK);
        assert_int_equal(cache->commit(cache), KVF_OK);
    }
    llm_cache_plain_destroy(plain);
    return logits;
}

static void check_batches(struct engine *e)
{
    static const uint32_t sizes[] = {7, 64, 200, 33};
    size_t bytes = (size_t)TOKENS * e->model.vocabulary * sizeof(float);
    float *alone = run(e, 1);
    for (size_t i = 0; i < bytes / sizeof(float); i++)
        assert_true(isfinite(alone[i]));
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        float *batched = run(e, sizes[i]);
        assert_memory_equal(alone, batched, bytes);
        free(batched);
    }
    free(alone);
}

static void logits_are_the_same_bits_in_every_batch(void **state)
{
    static const char *const versions[] = {"plain", "avx2", "avx512"};
    struct engine e;
    open_engine(&e, 1);
    for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
        e.model.matmul = llm_matmul_named(versions[i]);
        if (e.model.matmul)
            check_batches(&e);
    }
    close_engine(&e);
}

static void logits_are_the_same_bits_with_more_threads(void **state)
{
    struct engine e;
    open_engine(&e, 1);
    float *one = run(&e, 64);
    close_engine(&e);
    open_engine(&e, 3);
    float *three = run(&e, 64);
    assert_memory_equal(one, three, (size_t)TOKENS * e.model.vocabulary * sizeof(float));
    close_engine(&e);
    free(one);
    free(three);
}

/* ---- the naive pass: doubles, no cache, no panels, straight from the tensors of the file */

static double *tensor(const struct engine *e, const char *name)
{
    const struct llm_tensor *t = llm_gguf_tensor(&e->model.gguf, name);
    assert_non_null(t);
    size_t n = t->dims[0] * t->dims[1];
    float *narrow = malloc(n * sizeof *narrow);
    double *wide = malloc(n * sizeof *wide);
    llm_quant_of(t->type)->expand(t->data, n / llm_quant_of(t->type)->elements, narrow);
    for (size_t i = 0; i < n; i++)
        wide[i] = narrow[i];
    free(narrow);
    return wide;
}

static void apply_tensor(const struct engine *e, const char *name, const double *x, double *y, uint32_t inputs, uint32_t outputs)
{
    double *w = tensor(e, name);
    for (uint32_t o = 0; o < outputs; o++) {
        y[o] = 0;
        for (uint32_t i = 0; i < inputs; i++)
            y[o] += x[i] * w[(size_t)o * inputs + i];
    }
    free(w);
}

static void apply(const struct engine *e, unsigned layer, const char *part, const double *x, double *y, uint32_t inputs,
                  uint32_t outputs)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s.weight", layer, part);
    apply_tensor(e, name, x, y, inputs, outputs);
}

/* All norms of the random model have weights of one. */
static void normalise(double *out, const double *x, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] / sqrt(sum / n + 1e-5);
}

static void rotate(double *row, uint32_t heads, uint32_t dim, uint32_t position)
{
    for (uint32_t h = 0; h < heads; h++)
        for (uint32_t i = 0; i < dim; i += 2) {
            double angle = position * pow(10000.0, -(double)i / dim), *p = row + h * dim + i, a = p[0], b = p[1];
            p[0] = a * cos(angle) - b * sin(angle);
            p[1] = a * sin(angle) + b * cos(angle);
        }
}

#define NAIVE 70 /* tokens: more than one block */

struct naive {
    double x[NAIVE][80], k[NAIVE][32], v[NAIVE][32];
};

static void naive_attention(const struct naive *s, const double *q, uint32_t token, double *out)
{
    for (uint32_t h = 0; h < 6; h++) {
        double p[NAIVE], sum = 0, top = -1e300;
        uint32_t kv = h / 3 * 16;
        for (uint32_t t = 0; t <= token; t++) {
            p[t] = 0;
            for (uint32_t i = 0; i < 16; i++)
                p[t] += q[h * 16 + i] * s->k[t][kv + i] / 4.0;
            top = p[t] > top ? p[t] : top;
        }
        for (uint32_t t = 0; t <= token; t++)
            sum += p[t] = exp(p[t] - top);
        for (uint32_t i = 0; i < 16; i++) {
            out[h * 16 + i] = 0;
            for (uint32_t t = 0; t <= token; t++)
                out[h * 16 + i] += p[t] / sum * s->v[t][kv + i];
        }
    }
}

static void naive_layer(const struct engine *e, struct naive *s, unsigned layer)
{
    double h[80], q[96], a[96], gate[72], up[72];
    for (uint32_t t = 0; t < NAIVE; t++) {
        normalise(h, s->x[t], 80);
        apply(e, layer, "attn_k", h, s->k[t], 80, 32);
        apply(e, layer, "attn_v", h, s->v[t], 80, 32);
        rotate(s->k[t], 2, 16, t);
    }
    for (uint32_t t = 0; t < NAIVE; t++) {
        normalise(h, s->x[t], 80);
        apply(e, layer, "attn_q", h, q, 80, 96);
        rotate(q, 6, 16, t);
        naive_attention(s, q, t, a);
        apply(e, layer, "attn_output", a, h, 96, 80);
        for (uint32_t i = 0; i < 80; i++)
            s->x[t][i] += h[i];
        normalise(h, s->x[t], 80);
        apply(e, layer, "ffn_gate", h, gate, 80, 72);
        apply(e, layer, "ffn_up", h, up, 80, 72);
        for (uint32_t i = 0; i < 72; i++)
            gate[i] *= up[i] / (1 + exp(-gate[i]));
        apply(e, layer, "ffn_down", gate, h, 72, 80);
        for (uint32_t i = 0; i < 80; i++)
            s->x[t][i] += h[i];
    }
}

static void logits_agree_with_a_naive_pass(void **state)
{
    static struct naive s;
    struct engine e;
    open_engine(&e, 1);
    double *embedding = tensor(&e, "token_embd.weight"), h[80], worst = 0, expected[512];
    for (uint32_t t = 0; t < NAIVE; t++)
        memcpy(s.x[t], embedding + (size_t)e.tokens[t] * 80, sizeof s.x[t]);
    for (unsigned layer = 0; layer < 2; layer++)
        naive_layer(&e, &s, layer);
    float *logits = run(&e, 64);
    for (uint32_t t = 0; t < NAIVE; t++) {
        double error = 0, size = 0;
        normalise(h, s.x[t], 80);
        apply_tensor(&e, "output.weight", h, expected, 80, e.model.vocabulary);
        for (uint32_t i = 0; i < e.model.vocabulary; i++) {
            double d = logits[(size_t)t * e.model.vocabulary + i] - expected[i];
            error += d * d;
            size += expected[i] * expected[i];
        }
        worst = error / size > worst ? error / size : worst;
    }
    printf("worst relative error %.2e\n", sqrt(worst));
    assert_true(sqrt(worst) < 1e-2); /* K and V are fp16 in the cache, and the random model's attention is sharp */
    free(logits);
    free(embedding);
    close_engine(&e);
}

static void tokens_outside_the_vocabulary_are_refused(void **state)
{
    struct engine e;
    open_engine(&e, 1);
    struct llm_cache_plain *plain = llm_cache_plain_create(&e.model, e.pool, 10);
    struct llm_cache *cache = llm_cache_plain_table(plain);
    int32_t bad[] = {(int32_t)e.model.vocabulary, -1};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(cache->begin(cache, &bad[i], 1), KVF_OK);
        assert_int_equal(llm_engine_forward(e.engine, cache, &bad[i], 1, 0, LLM_LOGITS_NONE, NULL), KVF_ERR_INVALID);
        cache->abort(cache);
    }
    assert_int_equal(cache->begin(cache, e.tokens, 65), KVF_ERR_FULL); /* room is whole blocks */
    assert_int_equal(cache->refill(cache, 0, 1), KVF_ERR_INVALID);
    llm_cache_plain_destroy(plain);
    close_engine(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_the_same_bits_in_every_batch),
        cmocka_unit_test(logits_are_the_same_bits_with_more_threads),
        cmocka_unit_test(logits_agree_with_a_naive_pass),
        cmocka_unit_test(tokens_outside_the_vocabulary_are_refused),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
