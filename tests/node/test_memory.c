/* Nothing of ours is allocated while a node's data moves: this program counts the calls of malloc that come from its own code (the
 * library is linked into it) over puts, spills, gets, removes, and steps with attention whose blocks lie in DRAM and on SSD. The
 * node is alone: what the fabric does is counted in tests/fabric/test_memory.c. */
#include "base/hash.h"
#include "tests/support/allocations.h"

#include <kvf/kvf.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK (16u << 10)
#define KEYS 512u /* twice what DRAM holds */
#define TOKENS 3072u
#define HEADS 2
#define DIM 64

static char area[64]; /* a folder for the SSD area */

static struct kvf_node *node_open(void)
{
    struct kvf_config *config;
    struct kvf_node *node = NULL;
    const char *const settings[][2] = {{"node.name", "alone"}, {"dram.bytes", "4M"}, {"fetch.staging", "1M"},
                                       {"block.count_max", "4096"}, {"admin.listen", ""}, {"log.level", "error"},
                                       {"ssd.path", area}, {"ssd.bytes", "64M"}};
    assert_int_equal(kvf_config_create(&config), KVF_OK);
    for (unsigned i = 0; i < sizeof settings / sizeof *settings; i++)
        assert_int_equal(kvf_config_set(config, settings[i][0], settings[i][1]), KVF_OK);
    assert_int_equal(kvf_node_open(config, &node), KVF_OK);
    kvf_config_destroy(config);
    return node;
}

/* ------------------------------------------------------------------------------------------------ blocks by key */
static struct kvf_completion one(struct kvf_queue *q, enum kvf_op op, uint64_t key, void *data)
{
    struct kvf_request r = {.op = op, .key = {.hi = kvf_mix(key, 1), .lo = key}, .data = data, .length = data ? BLOCK : 0};
    struct kvf_completion c = {.status = KVF_IN_PROGRESS};
    size_t n = 0;
    assert_int_equal(kvf_submit(q, &r, 1, 10000000000ull, &n), KVF_OK);
    assert_int_equal(n, 1);
    for (n = 0; n == 0;) {
        struct pollfd fd = {.fd = kvf_queue_fd(q), .events = POLLIN};
        assert_true(poll(&fd, 1, 20000) >= 0);
        assert_int_equal(kvf_drain(q, &c, 1, &n), KVF_OK);
    }
    return c;
}

/* Every key is put, got from wherever it lies by then, and removed; how many came from the SSD. */
static unsigned blocks_round(struct kvf_queue *q)
{
    static uint8_t data[BLOCK], back[BLOCK];
    unsigned from_ssd = 0;
    for (uint64_t key = 0; key < KEYS; key++) {
        memset(data, (int)(key % 251), sizeof data);
        assert_int_equal(one(q, KVF_OP_PUT, key, data).status, KVF_OK);
    }
    for (uint64_t key = 0; key < KEYS; key++) {
        struct kvf_completion c = one(q, KVF_OP_GET, key, back);
        assert_int_equal(c.status, KVF_OK);
        assert_true(back[0] == key % 251 && memcmp(back, back + 1, sizeof back - 1) == 0);
        from_ssd += c.tier == KVF_TIER_SSD;
    }
    for (uint64_t key = 0; key < KEYS; key++)
        assert_int_equal(one(q, KVF_OP_REMOVE, key, NULL).status, KVF_OK);
    return from_ssd;
}

static void puts_spills_and_gets_allocate_nothing(void **state)
{
    struct kvf_queue *q;
    if (!COUNTED)
        skip();
    struct kvf_node *node = node_open();
    assert_int_equal(kvf_queue_create(node, 16, &q), KVF_OK);
    blocks_round(q);
    counting_begin();
    unsigned from_ssd = blocks_round(q) + blocks_round(q);
    counting_end();
    print_message("%u puts, gets and removes, %u gets from SSD: %u allocations of ours, %u of others\n", 2 * KEYS, from_ssd,
                  atomic_load(&ours), atomic_load(&others));
    assert_true(from_ssd > KEYS / 4);
    assert_int_equal(atomic_load(&ours), 0);
    kvf_queue_destroy(q);
    kvf_node_close(node);
}

/* ------------------------------------------------------------------------------------------------ steps */
static void numbers(uint64_t seed, float *to, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        to[i] = (float)(int64_t)(kvf_mix(seed, i) % 2001) / 1000.0f - 1.0f;
}

/* A step of one token; it is aborted, or stays. */
static void step(struct kvf_session *s, uint64_t at, bool stays)
{
    float k[HEADS * DIM], v[HEADS * DIM], query[HEADS * DIM], out[HEADS * DIM];
    const int32_t token = (int32_t)at;
    assert_int_equal(kvf_step_begin(s, &token, 1), KVF_OK);
    for (uint32_t layer = 0; layer < 2; layer++) {
        numbers(at * 8 + layer, k, HEADS * DIM);
        numbers(at * 8 + 2 + layer, v, HEADS * DIM);
        numbers(at * 8 + 4 + layer, query, HEADS * DIM);
        assert_int_equal(kvf_step_append(s, layer, k, v), KVF_OK);
        if (!stays || at % 256 == 0)
            assert_int_equal(kvf_step_attend(s, layer, query, out, NULL), KVF_OK);
    }
    if (stays)
        assert_int_equal(kvf_step_commit(s), KVF_OK);
    else
        kvf_step_abort(s);
}

/* What a session keeps of its tokens grows with them, by doubling: that is no data path, and not counted. */
static void attention_allocates_nothing(void **state)
{
    const struct kvf_model_desc desc = {.name = "m", .layers = 2, .kv_heads = HEADS, .q_heads = HEADS, .dim_k = DIM, .dim_v = DIM,
                                        .dtype = KVF_F32, .chunk_tokens = 16, .block_tokens = 64};
    struct kvf_model *model;
    struct kvf_session *s;
    struct kvf_session_info info;
    if (!COUNTED)
        skip();
    struct kvf_node *node = node_open();
    assert_int_equal(kvf_model_open(node, &desc, &model), KVF_OK);
    assert_int_equal(kvf_session_create(node, model, 7, &s), KVF_OK);
    for (uint64_t at = 0; at < TOKENS + 1; at++)
        step(s, at, true);
    for (unsigned i = 0; i < 20; i++)
        step(s, TOKENS + 1, false);
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    assert_true(info.blocks[KVF_TIER_SSD] > 0);
    counting_begin();
    for (unsigned i = 0; i < 100; i++)
        step(s, TOKENS + 1, false);
    counting_end();
    print_message("100 steps of %u blocks, %llu of them on SSD: %u allocations of ours, %u of others\n", 4 * TOKENS / 64,
                  (unsigned long long)info.blocks[KVF_TIER_SSD], atomic_load(&ours), atomic_load(&others));
    assert_int_equal(atomic_load(&ours), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    kvf_node_close(node);
}

static int area_make(void **state)
{
    snprintf(area, sizeof area, "%s/kvf-memory-XXXXXX",
             getenv("TMPDIR") && strlen(getenv("TMPDIR")) < 30 ? getenv("TMPDIR") : "/tmp");
    return mkdtemp(area) ? 0 : -1;
}

static int area_remove(void **state)
{
    char path[128];
    snprintf(path, sizeof path, "%s/kvf.area", area);
    unlink(path);
    return rmdir(area);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(puts_spills_and_gets_allocate_nothing),
        cmocka_unit_test(attention_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, area_make, area_remove);
}
