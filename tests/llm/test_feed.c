/* Repair: a cache that loses blocks under a running step ends in the same bits, or gives up in bounded time. */
#include "fixture.h"

#include <examples/llm/feed.h>

#include <math.h>

#define SEED 20240614u
#define TOKENS 400
#define BLOCKS ((TOKENS + 63) / 64)

/* Plain memory that forgets: each attend may first lose a whole block of committed tokens. What is lost is noted, and
 * any attention that would read it answers KVF_LOST, as a node does. */
struct forgetful {
    struct llm_cache table;
    struct llm_cache *inner;
    const int32_t *all;    /* the tokens that were or will be committed */
    uint64_t committed, first;
    uint32_t n;
    bool refilling;
    bool lost[BLOCKS];
    uint64_t random;
    unsigned one_in;       /* chance of a loss per attend; 0 never */
    enum kvf_status fail;  /* instead of attending */
    unsigned attends;
};

static enum kvf_status begin(struct llm_cache *cache, const int32_t *tokens, uint32_t n)
{
    struct forgetful *f = (struct forgetful *)cache;
    f->first = f->committed;
    f->n = n;
    f->refilling = false;
    return f->inner->begin(f->inner, tokens, n);
}

static enum kvf_status refill(struct llm_cache *cache, uint64_t first, uint32_t n)
{
    struct forgetful *f = (struct forgetful *)cache;
    f->first = first;
    f->n = n;
    f->refilling = true;
    return f->inner->refill(f->inner, first, n);
}

static enum kvf_status append(struct llm_cache *cache, uint32_t layer, const float *k, const float *v)
{
    struct forgetful *f = (struct forgetful *)cache;
    return f->inner->append(f->inner, layer, k, v);
}

/* Overwrites the block's K and V with NaN in all layers, then opens the interrupted step again. */
static void lose(struct forgetful *f, uint64_t block)
{
    static float nan[64 * 32];
    for (size_t i = 0; i < sizeof nan / sizeof nan[0]; i++)
        nan[i] = NAN;
    f->lost[block] = true;
    assert_int_equal(f->inner->refill(f->inner, block * 64, 64), KVF_OK);
    for (uint32_t layer = 0; layer < fixture_shape.layers; layer++)
        assert_int_equal(f->inner->append(f->inner, layer, nan, nan), KVF_OK);
    enum kvf_status st = f->refilling ? f->inner->refill(f->inner, f->first, f->n) : f->inner->begin(f->inner, NULL, f->n);
    assert_int_equal(st, KVF_OK);
}

static enum kvf_status attend(struct llm_cache *cache, uint32_t layer, const float *q, float *out)
{
    struct forgetful *f = (struct forgetful *)cache;
    f->attends++;
    if (f->fail != KVF_OK)
        return f->fail;
    uint64_t sealed = f->committed / 64, end = f->refilling ? f->first : f->committed;
    if (f->one_in && sealed && fixture_random(&f->random) % f->one_in == 0) {
        uint64_t block = fixture_random(&f->random) % sealed;
        if (!f->refilling || block < f->first / 64 || block * 64 >= f->first + f->n)
            lose(f, block);
    }
    for (uint64_t b = 0; b * 64 < end; b++)
        if (f->lost[b])
            return KVF_LOST;
    return f->inner->attend(f->inner, layer, q, out);
}

static enum kvf_status commit(struct llm_cache *cache)
{
    struct forgetful *f = (struct forgetful *)cache;
    for (uint64_t b = f->first / 64; f->refilling && b * 64 < f->first + f->n; b++)
        f->lost[b] = false;
    f->committed += f->refilling ? 0 : f->n;
    return f->inner->commit(f->inner);
}

static void abort_step(struct llm_cache *cache)
{
    struct forgetful *f = (struct forgetful *)cache;
    f->inner->abort(f->inner);
}

static enum kvf_status list_lost(struct llm_cache *cache, struct kvf_range *ranges, size_t max, size_t *count)
{
    struct forgetful *f = (struct forgetful *)cache;
    *count = 0;
    for (uint64_t b = 0; b < BLOCKS; b++)
        if (f->lost[b] && *count && ranges[*count - 1].first + ranges[*count - 1].count == b * 64)
            ranges[*count - 1].count += 64;
        else if (f->lost[b] && *count < max)
            ranges[(*count)++] = (struct kvf_range){b * 64, 64};
    return KVF_OK;
}

static enum kvf_status give_tokens(struct llm_cache *cache, uint64_t first, uint64_t n, int32_t *out)
{
    struct forgetful *f = (struct forgetful *)cache;
    if (first + n > f->committed)
        return KVF_ERR_INVALID;
    memcpy(out, f->all + first, n * sizeof *out);
    return KVF_OK;
}

struct bench {
    struct fixture files;
    struct llm_pool *pool;
    struct llm_model model;
    struct llm_engine *engine;
    struct llm_cache_plain *plain;
    int32_t tokens[TOKENS];
    struct forgetful cache;
    float *logits;
};

static void open_bench(struct bench *b, unsigned one_in)
{
    struct llm_error error = {{0}};
    uint64_t random = SEED;
    fixture_open(&b->files, SEED);
    b->pool = llm_pool_create(1);
    assert_true(llm_model_load(&b->model, b->files.path, b->pool, &error));
    b->engine = llm_engine_create(&b->model, b->pool);
    b->plain = llm_cache_plain_create(&b->model, b->pool, TOKENS);
    b->logits = malloc(b->model.vocabulary * sizeof *b->logits);
    for (size_t i = 0; i < TOKENS; i++)
        b->tokens[i] = (int32_t)(fixture_random(&random) % b->model.vocabulary);
    b->cache = (struct forgetful){
        .table = {begin, refill, append, attend, commit, abort_step, list_lost, give_tokens},
        .inner = llm_cache_plain_table(b->plain),
        .all = b->tokens,
        .random = SEED,
        .one_in = one_in,
    };
}

static void close_bench(struct bench *b)
{
    free(b->logits);
    llm_cache_plain_destroy(b->plain);
    llm_engine_destroy(b->engine);
    llm_model_free(&b->model);
    llm_pool_destroy(b->pool);
    fixture_close(&b->files);
}

/* Feeds everything: batches of 90, the last tokens one by one. */
static void feed_all(struct bench *b, struct llm_feed *feed)
{
    *feed = (struct llm_feed){.engine = b->engine, .cache = &b->cache.table};
    while (feed->position < TOKENS) {
        uint32_t n = feed->position + 90 <= TOKENS - 30 ? 90 : 1;
        assert_int_equal(llm_feed_step(feed, b->tokens + feed->position, n, LLM_LOGITS_LAST, b->logits), KVF_OK);
    }
}

static void lost_ranges_are_recomputed_to_the_same_bits(void **state)
{
    struct bench calm, losing;
    struct llm_feed feed;
    open_bench(&calm, 0);
    feed_all(&calm, &feed);
    assert_int_equal(feed.recomputed_tokens, 0);
    for (int round = 0; round < 3; round++) {
        open_bench(&losing, 5);
        losing.cache.random += (uint64_t)round;
        feed_all(&losing, &feed);
        assert_true(feed.recomputed_tokens > 0 && feed.recomputed_tokens % 64 == 0);
        assert_memory_equal(calm.logits, losing.logits, calm.model.vocabulary * sizeof(float));
        close_bench(&losing);
    }
    close_bench(&calm);
}

static void what_cannot_be_kept_is_given_up(void **state)
{
    struct bench b;
    struct llm_feed feed = {0};
    open_bench(&b, 0);
    feed = (struct llm_feed){.engine = b.engine, .cache = &b.cache.table};
    assert_int_equal(llm_feed_step(&feed, b.tokens, 200, LLM_LOGITS_NONE, NULL), KVF_OK);
    b.cache.one_in = 1; /* from now on every attend loses a block */
    b.cache.attends = 0;
    assert_int_equal(llm_feed_step(&feed, b.tokens + 200, 1, LLM_LOGITS_LAST, b.logits), KVF_LOST);
    assert_true(b.cache.attends < 10000);
    assert_int_equal(feed.position, 200);
    close_bench(&b);
}

static void other_failures_end_the_step_at_once(void **state)
{
    struct bench b;
    struct llm_feed feed;
    open_bench(&b, 0);
    feed = (struct llm_feed){.engine = b.engine, .cache = &b.cache.table};
    b.cache.fail = KVF_ERR_DEADLINE;
    assert_int_equal(llm_feed_step(&feed, b.tokens, 10, LLM_LOGITS_LAST, b.logits), KVF_ERR_DEADLINE);
    assert_int_equal(b.cache.attends, 1);
    assert_int_equal(feed.position, 0);
    b.cache.fail = KVF_OK; /* the step was aborted: it can be done again */
    assert_int_equal(llm_feed_step(&feed, b.tokens, 10, LLM_LOGITS_LAST, b.logits), KVF_OK);
    assert_int_equal(feed.position, 10);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lost_ranges_are_recomputed_to_the_same_bits),
        cmocka_unit_test(what_cannot_be_kept_is_given_up),
        cmocka_unit_test(other_failures_end_the_step_at_once),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
