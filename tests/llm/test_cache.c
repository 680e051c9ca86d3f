/* The two caches against each other: KVFabric on a node of its own, with little DRAM and an SSD area, must give the bits
 * of plain memory; and what an engine leaves with a session comes back. */
#include "fixture.h"

#include <examples/llm/run.h>

#define SEED 20240615u
#define TOKENS 500

struct bench {
    struct fixture files;
    struct llm_pool *pool;
    struct llm_model model;
    struct llm_engine *engine;
    struct kvf_node *node;
    struct kvf_model *kvf_model;
    struct kvf_session *session;
    int32_t tokens[TOKENS];
};

static void set(struct kvf_config *config, const char *name, const char *value)
{
    assert_int_equal(kvf_config_set(config, name, value), KVF_OK);
}

static void open_bench(struct bench *b)
{
    struct llm_error error = {{0}};
    struct kvf_model_desc desc;
    struct kvf_config *config;
    uint64_t random = SEED;
    fixture_open(&b->files, SEED);
    b->pool = llm_pool_create(1);
    assert_true(llm_model_load(&b->model, b->files.path, b->pool, &error));
    b->engine = llm_engine_create(&b->model, b->pool);
    for (size_t i = 0; i < TOKENS; i++)
        b->tokens[i] = (int32_t)(fixture_random(&random) % b->model.vocabulary);

    assert_int_equal(kvf_config_create(&config), KVF_OK);
    set(config, "node.name", "alone");
    set(config, "dram.bytes", "1M");
    set(config, "fetch.staging", "1M");
    set(config, "ssd.path", b->files.folder);
    set(config, "ssd.bytes", "16M");
    set(config, "fabric.transport", "none");
    set(config, "admin.listen", "");
    enum kvf_status st = kvf_node_open(config, &b->node);
    if (st != KVF_OK)
        print_error("%s\n", kvf_config_error(config));
    assert_int_equal(st, KVF_OK);
    kvf_config_destroy(config);
    llm_cache_describe(&b->model, &desc);
    assert_int_equal(kvf_model_open(b->node, &desc, &b->kvf_model), KVF_OK);
    assert_int_equal(kvf_session_create(b->node, b->kvf_model, 7, &b->session), KVF_OK);
}

static void close_bench(struct bench *b)
{
    char area[128];
    assert_int_equal(kvf_session_drop(b->session), KVF_OK);
    kvf_node_close(b->node);
    llm_engine_destroy(b->engine);
    llm_model_free(&b->model);
    llm_pool_destroy(b->pool);
    snprintf(area, sizeof area, "%s/kvf.area", b->files.folder);
    unlink(area);
    fixture_close(&b->files);
}

static void both_caches_give_the_same_bits(void **state)
{
    static const uint32_t batches[] = {100, 1, 33, 64, 2, 200, 1, 1, 40, 58};
    struct bench b;
    struct llm_cache_kvf kvf;
    open_bench(&b);
    struct llm_cache_plain *plain = llm_cache_plain_create(&b.model, b.pool, TOKENS);
    size_t logits_bytes = b.model.vocabulary * sizeof(float);
    float *ours = malloc(logits_bytes), *theirs = malloc(logits_bytes);
    llm_cache_kvf_init(&kvf, &b.model, b.session);
    struct llm_feed kvf_feed = {.engine = b.engine, .cache = &kvf.table};
    struct llm_feed plain_feed = {.engine = b.engine, .cache = llm_cache_plain_table(plain)};
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        const int32_t *tokens = b.tokens + plain_feed.position;
        assert_int_equal(llm_feed_step(&plain_feed, tokens, batches[i], LLM_LOGITS_LAST, ours), KVF_OK);
        assert_int_equal(llm_feed_step(&kvf_feed, tokens, batches[i], LLM_LOGITS_LAST, theirs), KVF_OK);
        assert_memory_equal(ours, theirs, logits_bytes);
    }
    assert_int_equal(kvf_feed.position, TOKENS);
    assert_int_equal(kvf_feed.recomputed_tokens, 0);
    free(ours);
    free(theirs);
    llm_cache_plain_destroy(plain);
    close_bench(&b);
}

static void the_state_of_an_engine_comes_back(void **state)
{
    struct bench b;
    struct llm_state saved = {.next_token = 123456, .generated = 1ull << 33, .prompt_tokens = 77}, loaded = {0};
    open_bench(&b);
    assert_int_equal(llm_state_save(b.session, &saved), KVF_OK);
    assert_int_equal(llm_state_load(b.session, &loaded), KVF_OK);
    assert_int_equal(loaded.next_token, saved.next_token);
    assert_true(loaded.generated == saved.generated && loaded.prompt_tokens == saved.prompt_tokens);
    /* What another program left is refused. */
    assert_int_equal(kvf_session_state_set(b.session, "something else, and long enough", 31), KVF_OK);
    assert_int_equal(llm_state_load(b.session, &loaded), KVF_ERR_MODEL);
    assert_int_equal(kvf_session_state_set(b.session, "", 0), KVF_OK);
    assert_int_equal(llm_state_load(b.session, &loaded), KVF_ERR_MODEL);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_caches_give_the_same_bits),
        cmocka_unit_test(the_state_of_an_engine_comes_back),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
