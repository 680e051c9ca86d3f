/* What survives on the SSD, through the public interface, on a real disk: after kill -9, and after close. */
#include "base/hash.h"
#include "node/internal.h"

#include <jansson.h>
#include <kvf/kvf.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SEED 20261125u
#define KEYS 400u
#define BYTES (48u << 10)
#define KILLS 6u

static char directory[64];

static int open_world(void **state)
{
    print_message("seed %u\n", SEED);
    snprintf(directory, sizeof directory, "%s/kvf-persist-XXXXXX",
             getenv("TMPDIR") && strlen(getenv("TMPDIR")) < 30 ? getenv("TMPDIR") : "/tmp");
    return mkdtemp(directory) ? 0 : -1;
}

static int close_world(void **state)
{
    char path[128];
    snprintf(path, sizeof path, "%s/kvf.area", directory);
    unlink(path);
    return rmdir(directory);
}

static struct kvf_node *node_open(const char *ssd_path)
{
    const char *const settings[][2] = {{"node.name", "keeper"}, {"dram.bytes", "2M"},     {"lend.bytes", "0"},
                                       {"fetch.staging", "1M"}, {"ssd.bytes", "64M"},     {"ssd.path", ssd_path},
                                       {"workers", "1"},        {"block.count_max", "4096"}, {"admin.listen", ""},
                                       {"ssd.required", ssd_path[0] ? "true" : "false"}};
    struct kvf_config *config;
    struct kvf_node *node = NULL;
    if (kvf_config_create(&config) != KVF_OK)
        return NULL;
    for (unsigned i = 0; i < sizeof settings / sizeof *settings; i++)
        if (kvf_config_set(config, settings[i][0], settings[i][1]) != KVF_OK)
            fprintf(stderr, "%s\n", kvf_config_error(config));
    enum kvf_status st = KVF_ERR_BUSY;
    for (unsigned n = 0; n < 300 && st != KVF_OK; n++) { /* a killed node's requests may hold the area a moment longer */
        st = kvf_node_open(config, &node);
        if (st != KVF_OK)
            usleep(10000);
    }
    if (st != KVF_OK)
        fprintf(stderr, "%s\n", kvf_config_error(config));
    kvf_config_destroy(config);
    return node;
}

static void fill(uint8_t *data, unsigned key)
{
    for (uint32_t i = 0; i < BYTES; i += 8)
        memcpy(data + i, &(uint64_t){kvf_mix(key, i)}, 8);
}

static struct kvf_completion run(struct kvf_queue *q, enum kvf_op op, unsigned key, void *data, uint64_t length)
{
    struct kvf_request r = {.op = op, .key = {.hi = SEED, .lo = key}, .data = data, .length = length};
    struct kvf_completion c = {.status = KVF_ERR_BUSY};
    size_t n = 0;
    if (kvf_submit(q, &r, 1, 10000000000ull, &n) != KVF_OK)
        return c;
    for (n = 0; n == 0;) {
        struct pollfd wait = {.fd = kvf_queue_fd(q), .events = POLLIN};
        poll(&wait, 1, 1000);
        if (kvf_drain(q, &c, 1, &n) != KVF_OK)
            break;
    }
    return c;
}

/* Puts blocks from *next on, every second one to stay, and says which is durable, until it is killed. */
static void child_main(_Atomic unsigned char *durable, unsigned next)
{
    uint8_t *data = malloc(BYTES);
    struct kvf_queue *q;
    struct kvf_node *node = node_open(directory);
    if (!node || kvf_queue_create(node, 8, &q) != KVF_OK)
        _exit(2);
    for (unsigned key = next; key < KEYS; key++) {
        fill(data, key);
        enum kvf_status st = run(q, KVF_OP_PUT, key, data, BYTES).status;
        if (st != KVF_OK && st != KVF_ERR_EXISTS)
            _exit(3);
        if (key % 2 == 0 && run(q, KVF_OP_PERSIST, key, NULL, 0).status != KVF_OK)
            _exit(4);
        durable[key] = key % 2 == 0;
    }
    for (;;)
        pause();
}

static void persisted_blocks_survive_kill_9(void **state)
{
    _Atomic unsigned char *durable = mmap(NULL, KEYS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint8_t *data = malloc(BYTES), *want = malloc(BYTES);
    unsigned owed = 0;
    assert_true(durable != MAP_FAILED);
    for (unsigned n = 0; n < KILLS; n++) {
        unsigned first = n * KEYS / KILLS;
        pid_t pid = fork();
        if (pid == 0)
            child_main(durable, first);
        for (unsigned i = 0; i < 3000 && !durable[(first + 1) / 2 * 2 + 6 * (n + 1)]; i++)
            usleep(1000);
        assert_int_equal(kill(pid, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        struct kvf_node *node = node_open(directory);
        struct kvf_queue *q;
        assert_non_null(node);
        assert_int_equal(kvf_queue_create(node, 8, &q), KVF_OK);
        for (unsigned key = 0; key < KEYS; key++) {
            struct kvf_completion c = run(q, KVF_OP_GET, key, data, BYTES);
            if (durable[key])
                assert_int_equal(c.status, KVF_OK);
            owed += durable[key];
            if (c.status != KVF_OK)
                continue;
            assert_int_equal(c.tier, KVF_TIER_SSD);
            fill(want, key);
            assert_memory_equal(data, want, BYTES);
        }
        kvf_queue_destroy(q);
        kvf_node_close(node);
    }
    print_message("%u times a durable block was owed and found\n", owed);
    assert_true(owed > 10 * KILLS);
    munmap((void *)durable, KEYS);
    free(data);
    free(want);
}

static uint64_t ssd_figure(struct kvf_node *node, const char *name)
{
    char *text;
    size_t i;
    json_t *tier;
    uint64_t figure = UINT64_MAX;
    assert_int_equal(kvf_node_status_json(node, &text), KVF_OK);
    json_t *root = json_loads(text, 0, NULL);
    json_array_foreach(json_object_get(root, "tiers"), i, tier)
        if (json_object_get(tier, name))
            figure = (uint64_t)json_integer_value(json_object_get(tier, name));
    json_decref(root);
    kvf_free(text);
    return figure;
}

/* Closing writes nothing up: what lay on the SSD is found, what was removed is not, and what lay in DRAM alone is a miss. */
static void close_keeps_what_lay_on_ssd(void **state)
{
    uint8_t *data = malloc(BYTES), *want = malloc(BYTES);
    struct kvf_queue *q;
    struct kvf_node *node = node_open(directory);
    assert_non_null(node);
    assert_int_equal(kvf_queue_create(node, 8, &q), KVF_OK);
    for (unsigned key = 1000; key < 1200; key++) {
        fill(data, key);
        assert_int_equal(run(q, KVF_OP_PUT, key, data, BYTES).status, KVF_OK);
        if (key % 10 == 0)
            assert_int_equal(run(q, KVF_OP_PERSIST, key, NULL, 0).status, KVF_OK);
        if (key % 20 == 0)
            assert_int_equal(run(q, KVF_OP_REMOVE, key, NULL, 0).status, KVF_OK);
    }
    assert_int_equal(run(q, KVF_OP_PERSIST, 99999, NULL, 0).status, KVF_MISS);
    unsigned lay[200], n = 0;
    for (unsigned key = 1000; key < 1200; key++) {
        struct kvf_completion c = run(q, KVF_OP_EXISTS, key, NULL, 0);
        if (c.status == KVF_OK && (c.tier == KVF_TIER_SSD || key % 20 == 10))
            lay[n++] = key;
    }
    assert_true(n > 100); /* the DRAM holds some forty */
    kvf_queue_destroy(q);
    kvf_node_close(node);
    node = node_open(directory);
    assert_non_null(node);
    assert_int_equal(kvf_queue_create(node, 8, &q), KVF_OK);
    assert_true(ssd_figure(node, "recovered_blocks") >= n);
    for (unsigned i = 0; i < n; i++) {
        struct kvf_completion c = run(q, KVF_OP_GET, lay[i], data, BYTES);
        assert_int_equal(c.status, KVF_OK);
        fill(want, lay[i]);
        assert_memory_equal(data, want, BYTES);
    }
    for (unsigned key = 1000; key < 1200; key += 20)
        assert_int_equal(run(q, KVF_OP_EXISTS, key, NULL, 0).status, KVF_MISS);
    kvf_queue_destroy(q);
    kvf_node_close(node);
    free(data);
    free(want);
}

/* A durable block that went down and came back to DRAM, because it was read, is as durable as before. */
static void a_durable_block_stays_so_when_it_comes_back(void **state)
{
    enum { first = 2000, n = 10 };
    uint8_t *data = malloc(BYTES), *want = malloc(BYTES);
    unsigned back = 0;
    struct kvf_queue *q;
    struct kvf_node *node = node_open(directory);
    assert_non_null(node);
    assert_int_equal(kvf_queue_create(node, 8, &q), KVF_OK);
    for (unsigned key = first; key < first + 150; key++) {
        fill(data, key);
        assert_int_equal(run(q, KVF_OP_PUT, key, data, BYTES).status, KVF_OK);
        if (key < first + n)
            assert_int_equal(run(q, KVF_OP_PERSIST, key, NULL, 0).status, KVF_OK);
    }
    for (unsigned round = 0; round < 100 && back == 0; round++) {
        for (unsigned key = first; key < first + n; key++)
            assert_int_equal(run(q, KVF_OP_GET, key, data, BYTES).status, KVF_OK);
        for (unsigned key = first; key < first + n; key++)
            back += run(q, KVF_OP_EXISTS, key, NULL, 0).tier == KVF_TIER_DRAM;
        usleep(10000);
    }
    assert_true(back > 0);
    kvf_queue_destroy(q);
    kvf_node_close(node);
    node = node_open(directory);
    assert_non_null(node);
    assert_int_equal(kvf_queue_create(node, 8, &q), KVF_OK);
    for (unsigned key = first; key < first + n; key++) {
        assert_int_equal(run(q, KVF_OP_GET, key, data, BYTES).status, KVF_OK);
        fill(want, key);
        assert_memory_equal(data, want, BYTES);
    }
    kvf_queue_destroy(q);
    kvf_node_close(node);
    free(data);
    free(want);
}

static const struct kvf_model_desc tiny = {.name = "tiny", .layers = 1, .kv_heads = 2, .q_heads = 2, .dim_k = 32, .dim_v = 32,
                                           .dtype = KVF_F32, .chunk_tokens = 16, .block_tokens = 64};

/* Closes a node in which session 7 has 320 blocks of 16 KiB, of which the DRAM holds 128. */
static void orphans_leave(struct kvf_node *node)
{
    static float k[256 * 64], v[256 * 64];
    static int32_t tokens[256];
    struct kvf_model *model;
    struct kvf_session *s;
    assert_int_equal(kvf_model_open(node, &tiny, &model), KVF_OK);
    assert_int_equal(kvf_session_create(node, model, 7, &s), KVF_OK);
    for (unsigned n = 0; n < 40; n++) {
        assert_int_equal(kvf_step_begin(s, tokens, 256), KVF_OK);
        assert_int_equal(kvf_step_append(s, 0, k, v), KVF_OK);
        assert_int_equal(kvf_step_commit(s), KVF_OK);
    }
    kvf_session_close(s);
    kvf_node_close(node);
}

/* The blocks of a session whose node ended wait, counted, until a session of that id begins. */
static void blocks_of_sessions_are_orphans(void **state)
{
    struct kvf_node *node = node_open(directory);
    struct kvf_model *model;
    struct kvf_session *s;
    assert_non_null(node);
    orphans_leave(node);
    node = node_open(directory);
    assert_non_null(node);
    uint64_t orphans = ssd_figure(node, "orphan_blocks");
    assert_in_range(orphans, 100, 320);
    assert_int_equal(kvf_model_open(node, &tiny, &model), KVF_OK);
    assert_int_equal(kvf_session_create(node, model, 8, &s), KVF_OK);
    kvf_session_close(s);
    assert_int_equal(ssd_figure(node, "orphan_blocks"), orphans);
    assert_int_equal(kvf_session_create(node, model, 7, &s), KVF_OK);
    assert_int_equal(ssd_figure(node, "orphan_blocks"), 0);
    kvf_session_close(s);
    kvf_node_close(node);
    node = node_open(directory);
    assert_int_equal(ssd_figure(node, "orphan_blocks"), 0);
    kvf_node_close(node);
}

/* Orphans have checksums, as blocks have, of which there are enough for block.count_max of both together. */
static void orphans_make_room_for_entries(void **state)
{
    struct kvf_node *node = node_open(directory);
    struct kvf_queue *q;
    uint8_t byte = 7;
    assert_non_null(node);
    orphans_leave(node);
    node = node_open(directory);
    assert_non_null(node);
    uint64_t orphans = ssd_figure(node, "orphan_blocks");
    assert_in_range(orphans, 100, 320);
    assert_int_equal(kvf_queue_create(node, 8, &q), KVF_OK);
    uint64_t stood = 0;
    for (unsigned key = 0; key < KEYS; key++) /* of earlier tests */
        stood += run(q, KVF_OP_EXISTS, key, NULL, 0).status == KVF_OK;
    for (unsigned key = 0; key < 4096 - stood - orphans + 50; key++)
        assert_int_equal(run(q, KVF_OP_PUT, 10000 + key, &byte, 1).status, KVF_OK);
    assert_in_range(ssd_figure(node, "orphan_blocks"), 0, orphans - 50);
    for (unsigned key = 0; key < 4096; key++)
        run(q, KVF_OP_REMOVE, 10000 + key, NULL, 0);
    kvf_queue_destroy(q);
    kvf_node_close(node);
}

static void without_ssd_nothing_persists(void **state)
{
    uint8_t *data = malloc(BYTES);
    struct kvf_queue *q;
    struct kvf_node *node = node_open("");
    assert_non_null(node);
    assert_int_equal(kvf_queue_create(node, 8, &q), KVF_OK);
    fill(data, 1);
    assert_int_equal(run(q, KVF_OP_PUT, 1, data, BYTES).status, KVF_OK);
    assert_int_equal(run(q, KVF_OP_PERSIST, 1, NULL, 0).status, KVF_ERR_UNSUPPORTED);
    kvf_queue_destroy(q);
    kvf_node_close(node);
    free(data);
}

static uint64_t blocks_written(struct kvf_node *node)
{
    struct kvf_ssd_stats stats;
    kvf_core_lock(node->core);
    kvf_ssd_stats(node->core->ssd, &stats);
    kvf_core_unlock(node->core);
    return stats.writes;
}

/* Two who ask for the same block at once get one copy: the record of a second, that is freed, would be the newer one, and after a
 * loss of power it would stand before the one that lives. */
static void two_persists_make_one_copy(void **state)
{
    enum { key = 5000, both = 2 };
    uint8_t *data = malloc(BYTES);
    struct kvf_request r[both];
    struct kvf_queue *q;
    struct kvf_node *node = node_open(directory);
    assert_non_null(node);
    assert_int_equal(kvf_queue_create(node, 8, &q), KVF_OK);
    fill(data, key);
    assert_int_equal(run(q, KVF_OP_PUT, key, data, BYTES).status, KVF_OK);
    uint64_t before = blocks_written(node);
    size_t n = 0;
    for (unsigned i = 0; i < both; i++)
        r[i] = (struct kvf_request){.op = KVF_OP_PERSIST, .key = {.hi = SEED, .lo = key}};
    assert_int_equal(kvf_submit(q, r, both, 10000000000ull, &n), KVF_OK);
    assert_int_equal(n, both);
    for (unsigned left = both; left > 0; left -= (unsigned)n) {
        struct kvf_completion c[both];
        struct pollfd wait = {.fd = kvf_queue_fd(q), .events = POLLIN};
        poll(&wait, 1, 1000);
        assert_int_equal(kvf_drain(q, c, both, &n), KVF_OK);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(c[i].status, KVF_OK);
    }
    assert_int_equal(blocks_written(node), before + 1);
    kvf_queue_destroy(q);
    kvf_node_close(node);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(persisted_blocks_survive_kill_9),
        cmocka_unit_test(close_keeps_what_lay_on_ssd),
        cmocka_unit_test(a_durable_block_stays_so_when_it_comes_back),
        cmocka_unit_test(blocks_of_sessions_are_orphans),
        cmocka_unit_test(orphans_make_room_for_entries),
        cmocka_unit_test(two_persists_make_one_copy),
        cmocka_unit_test(without_ssd_nothing_persists),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
