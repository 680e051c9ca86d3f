/* Nodes as they are opened by an engine: real threads, disk and clock, and with etcd and UCX where they are installed. */
#include "base/hash.h"
#include "base/env.h"

#define SEED 20261124
#include "tests/node/real.h"

#include <dirent.h>
#include <pthread.h>

#define LAYERS 2
#define KV_HEADS 2
#define Q_HEADS 4
#define DIM 32
#define WIDTH (Q_HEADS * DIM)

static const struct kvf_model_desc desc = {.name = "tiny",
                                           .weights_id = SEED,
                                           .layers = LAYERS,
                                           .kv_heads = KV_HEADS,
                                           .q_heads = Q_HEADS,
                                           .dim_k = DIM,
                                           .dim_v = DIM,
                                           .dtype = KVF_F32,
                                           .chunk_tokens = 16,
                                           .block_tokens = 64}; /* blocks of 16 KiB */

/* ---------------------------------------------------------------- nodes and steps */

static void set(struct kvf_config *config, const char *name, const char *value)
{
    if (kvf_config_set(config, name, value) != KVF_OK)
        fail_msg("%s = %s: %s", name, value, kvf_config_error(config));
}

/* settings: name, value, ..., NULL */
static struct kvf_node *node_open(const char *name, const char *const *settings)
{
    struct kvf_config *config;
    struct kvf_node *node = NULL;
    char path[128];
    assert_int_equal(kvf_config_create(&config), KVF_OK);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    set(config, "node.name", name);
    set(config, "dram.bytes", "1M");
    set(config, "fetch.staging", "1M");
    set(config, "block.bytes_max", "64k");
    set(config, "block.count_max", "4096");
    set(config, "ssd.path", path);
    set(config, "ssd.bytes", "16M");
    set(config, "admin.listen", "");
    set(config, "log.level", "error");
    for (unsigned i = 0; settings[i]; i += 2)
        set(config, settings[i], settings[i + 1]);
    enum kvf_status st = kvf_node_open(config, &node);
    if (st != KVF_OK)
        print_message("opening node %s: %s\n", name, kvf_config_error(config));
    kvf_config_destroy(config);
    return st == KVF_OK ? node : NULL;
}

static void rows(uint64_t seed, char what, uint32_t layer, uint64_t first, uint32_t n, uint32_t width, float *out)
{
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < width; i++)
            out[(size_t)t * width + i] =
                (float)(int32_t)(kvf_mix(kvf_mix(seed ^ (uint64_t)what << 56 ^ layer, first + t), i) >> 32) / 2147483648.0f;
}

static long failed(const char *call, enum kvf_status st)
{
    fprintf(stderr, "kvf_step_%s: %s\n", call, kvf_status_name(st));
    return -1;
}

static const struct kvf_attend_options *options; /* of every attend in `run` */

/* Steps of n tokens from where the session stands to `to`; the results of every position go to, or are compared with, `reference`
 * [LAYERS][to][WIDTH]. Returns the rows that differ, or -1 after a failed call. */
static long run(struct kvf_session *s, uint64_t seed, uint64_t to, uint32_t n, float *reference, bool record)
{
    static _Thread_local float k[256 * KV_HEADS * DIM], v[256 * KV_HEADS * DIM], q[256 * WIDTH], out[256 * WIDTH];
    struct kvf_session_info info;
    long different = 0;
    while (kvf_session_info(s, &info) == KVF_OK && info.tokens < to) {
        int32_t tokens[256] = {0};
        uint32_t count = to - info.tokens < n ? (uint32_t)(to - info.tokens) : n;
        enum kvf_status st = kvf_step_begin(s, tokens, count);
        if (st != KVF_OK)
            return failed("begin", st);
        for (uint32_t l = 0; l < LAYERS; l++) {
            rows(seed, 'k', l, info.tokens, count, KV_HEADS * DIM, k);
            rows(seed, 'v', l, info.tokens, count, KV_HEADS * DIM, v);
            rows(seed, 'q', l, info.tokens, count, WIDTH, q);
            if ((st = kvf_step_append(s, l, k, v)) != KVF_OK)
                return failed("append", st);
            if ((st = kvf_step_attend(s, l, q, out, options)) != KVF_OK)
                return failed("attend", st);
            float *r = reference + ((size_t)l * 4096 + info.tokens) * WIDTH;
            if (record)
                memcpy(r, out, (size_t)count * WIDTH * sizeof *r);
            different += memcmp(r, out, (size_t)count * WIDTH * sizeof *r) != 0;
        }
        if ((st = kvf_step_commit(s)) != KVF_OK)
            return failed("commit", st);
    }
    return different;
}

static float *reference_new(void)
{
    float *r = calloc((size_t)LAYERS * 4096 * WIDTH, sizeof *r);
    assert_non_null(r);
    return r;
}

/* ---------------------------------------------------------------- alone */

struct worker {
    struct kvf_node *node;
    struct kvf_model *model;
    uint64_t id;
    float *reference; /* of a node with everything in DRAM */
    long different;
    enum kvf_status status;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    struct kvf_session *s;
    w->status = kvf_session_create(w->node, w->model, w->id, &s);
    if (w->status != KVF_OK)
        return NULL;
    w->different = run(s, w->id, 2600, 100, w->reference, false);
    for (unsigned i = 0; i < 10 && w->different == 0; i++)
        w->different = run(s, w->id, 2600 + i, 1, w->reference, false);
    w->status = kvf_session_drop(s);
    return NULL;
}

static void two_threads_work_at_once(void **state)
{
    struct kvf_node *plain = node_open("a", (const char *const[]){"dram.bytes", "16M", "ssd.path", "", NULL});
    struct kvf_node *node = node_open("b", (const char *const[]){"workers", "2", NULL});
    assert_non_null(plain);
    assert_non_null(node);
    struct kvf_model *of_plain, *model;
    struct worker w[2] = {0};
    pthread_t threads[2];
    assert_int_equal(kvf_model_open(plain, &desc, &of_plain), KVF_OK);
    assert_int_equal(kvf_model_open(node, &desc, &model), KVF_OK);
    for (unsigned i = 0; i < 2; i++) {
        struct kvf_session *s;
        w[i] = (struct worker){.node = node, .model = model, .id = 5 + i, .reference = reference_new()};
        assert_int_equal(kvf_session_create(plain, of_plain, 5 + i, &s), KVF_OK);
        assert_int_equal(run(s, 5 + i, 2610, 256, w[i].reference, true), 0);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
    }
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, work, &w[i]), 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(w[i].status, KVF_OK);
        assert_int_equal(w[i].different, 0);
        free(w[i].reference);
    }
    struct kvf_node_stats stats;
    char *json;
    assert_int_equal(kvf_node_stats(node, &stats), KVF_OK);
    assert_true(stats.tier[KVF_TIER_SSD].chunks_read > 0);
    assert_int_equal(stats.blocks_corrupt, 0);
    assert_int_equal(stats.blocks_lost, 0);
    assert_int_equal(kvf_node_status_json(node, &json), KVF_OK);
    assert_non_null(strstr(json, "\"b\""));
    kvf_free(json);
    kvf_node_close(plain);
    kvf_node_close(node);
}

/* A prompt, then token by token. */
static long run_decode(struct kvf_session *s, uint64_t id, float *reference, bool record)
{
    long different = run(s, id, 1000, 250, reference, record);
    return different ? different : run(s, id, 1060, 1, reference, record);
}

static void *decode_work(void *arg)
{
    struct worker *w = arg;
    struct kvf_session *s;
    w->status = kvf_session_create(w->node, w->model, w->id, &s);
    if (w->status != KVF_OK)
        return NULL;
    w->different = run_decode(s, w->id, w->reference, false);
    w->status = kvf_session_drop(s);
    return NULL;
}

/* Sessions that come, decode under a budget, and go, in threads of their own, in one device cache that is too small for them. */
static void threads_share_a_device_cache(void **state)
{
    static const struct kvf_attend_options budget = {.budget = 0.3f};
    struct kvf_node *plain = node_open("a", (const char *const[]){"dram.bytes", "16M", "ssd.path", "", NULL});
    struct kvf_node *node = node_open("b", (const char *const[]){"workers", "2", "gpu.bytes", "512k", NULL});
    assert_non_null(plain);
    assert_non_null(node);
    struct kvf_model *of_plain, *model;
    struct worker w[3] = {0};
    pthread_t threads[3];
    options = &budget;
    assert_int_equal(kvf_model_open(plain, &desc, &of_plain), KVF_OK);
    assert_int_equal(kvf_model_open(node, &desc, &model), KVF_OK);
    for (unsigned i = 0; i < 3; i++) {
        struct kvf_session *s;
        w[i] = (struct worker){.node = node, .model = model, .id = 5 + i, .reference = reference_new()};
        assert_int_equal(kvf_session_create(plain, of_plain, 5 + i, &s), KVF_OK);
        assert_int_equal(run_decode(s, 5 + i, w[i].reference, true), 0);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
    }
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, decode_work, &w[i]), 0);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    options = NULL;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(w[i].status, KVF_OK);
        assert_int_equal(w[i].different, 0);
        free(w[i].reference);
    }
    struct kvf_node_stats stats;
    char *json;
    assert_int_equal(kvf_node_stats(node, &stats), KVF_OK);
    assert_true(stats.tier[KVF_TIER_GPU].chunks_read > 0);
    assert_int_equal(kvf_node_status_json(node, &json), KVF_OK);
    assert_non_null(strstr(json, "\"chunks_evicted\""));
    kvf_free(json);
    kvf_node_close(plain);
    kvf_node_close(node);
}

static unsigned entries_of(const char *path)
{
    unsigned n = 0;
    DIR *d = opendir(path);
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static void close_leaves_nothing(void **state)
{
    struct kvf_node *node = node_open("c", (const char *const[]){NULL});
    assert_non_null(node);
    kvf_node_close(node);
    unsigned fds = entries_of("/proc/self/fd"), threads = entries_of("/proc/self/task");
    for (unsigned i = 0; i < 5; i++) {
        struct kvf_model *model;
        struct kvf_session *s;
        struct kvf_queue *q;
        size_t n;
        static uint8_t data[20000];
        node = node_open("c", (const char *const[]){"workers", "3", "admin.listen", "127.0.0.1:0", NULL});
        assert_non_null(node);
        assert_int_equal(kvf_model_open(node, &desc, &model), KVF_OK);
        assert_int_equal(kvf_session_create(node, model, 1 + i, &s), KVF_OK);
        assert_int_equal(kvf_queue_create(node, 16, &q), KVF_OK);
        struct kvf_request r = {.op = KVF_OP_PUT, .key = {1, i}, .data = data, .length = sizeof data};
        assert_int_equal(kvf_submit(q, &r, 1, 0, &n), KVF_OK);
        int32_t token = 1;
        assert_int_equal(kvf_step_begin(s, &token, 1), KVF_OK); /* a step is open, a handle, a queue: all end with the node */
        kvf_session_close(s);
        kvf_node_close(node);
    }
    assert_int_equal(entries_of("/proc/self/fd"), fds);
    for (unsigned i = 0; entries_of("/proc/self/task") > threads && i < 2000; i++) /* joined, one is listed a moment longer */
        usleep(5000);
    assert_int_equal(entries_of("/proc/self/task"), threads);
}

static void settings_that_cannot_be_are_refused_in_one_line(void **state)
{
    static const char *const wrong[][2] = {
        {"ssd.path", "/proc/nowhere/x"}, {"etcd.endpoints", "http://127.0.0.1:1"}, {"node.name", "a/b"}};
    static const enum kvf_status want[] = {KVF_ERR_IO, KVF_ERR_STORE, KVF_ERR_CONFIG};
    for (unsigned i = 0; i < 3; i++) {
        struct kvf_config *config;
        struct kvf_node *node;
        assert_int_equal(kvf_config_create(&config), KVF_OK);
        set(config, "admin.listen", "");
        set(config, "dram.bytes", "1M");
        set(config, "etcd.timeout", "300ms");
        set(config, "etcd.lease", "1s");
        set(config, "fabric.transport", "none");
        set(config, "log.level", "error");
        set(config, "ssd.required", "true");
        set(config, wrong[i][0], wrong[i][1]);
        assert_int_equal(kvf_node_open(config, &node), want[i]);
        assert_true(strlen(kvf_config_error(config)) > 20);
        assert_null(strchr(kvf_config_error(config), '\n'));
        kvf_config_destroy(config);
    }
}

/* ---------------------------------------------------------------- two nodes over UCX */

static uint64_t lender_room(struct kvf_node *n)
{
    struct kvf_node_stats stats;
    assert_int_equal(kvf_node_stats(n, &stats), KVF_OK);
    return stats.tier[KVF_TIER_REMOTE].capacity_bytes;
}

/* A session borrows from the other node, moves to it, and decodes there. */
static void lend_and_move(const char *transport)
{
    if (!etcd)
        skip();
    char prefix[64];
    snprintf(prefix, sizeof prefix, "/kvf/test/%s", transport);
    const char *settings[] = {"etcd.endpoints", kvf_test_etcd_url(etcd), "etcd.prefix", prefix, "fabric.transport", transport,
                              "fetch.timeout", "20s", "lend.bytes", "0", NULL};
    struct kvf_node *a = node_open("a", settings);
    settings[9] = "512k"; /* the target has lent to the session that comes to it */
    struct kvf_node *b = a ? node_open("b", settings) : NULL;
    if (!a || !b) {
        kvf_node_close(a);
        skip(); /* a build without UCX, or a machine without that transport: the reason was printed */
    }
    for (unsigned i = 0; i < 1000 && lender_room(a) == 0; i++)
        usleep(10000);
    assert_true(lender_room(a) > 0);
    struct kvf_model *of_a, *of_b, *other;
    struct kvf_session *s, *x;
    struct kvf_session_info info;
    struct kvf_move_report report;
    float *reference = reference_new();
    struct kvf_node *plain = node_open("d", (const char *const[]){"dram.bytes", "16M", "ssd.path", "", NULL});
    assert_int_equal(kvf_model_open(plain, &desc, &other), KVF_OK);
    assert_int_equal(kvf_session_create(plain, other, 9, &s), KVF_OK);
    assert_int_equal(run(s, 9, 3000, 256, reference, true), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    kvf_node_close(plain);
    assert_int_equal(kvf_model_open(a, &desc, &of_a), KVF_OK);
    assert_int_equal(kvf_model_open(b, &desc, &of_b), KVF_OK);
    assert_int_equal(kvf_session_create(a, of_a, 9, &s), KVF_OK);
    assert_int_equal(kvf_session_create(b, of_b, 9, &x), KVF_ERR_EXISTS);
    assert_int_equal(run(s, 9, 2500, 100, reference, false), 0);
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    assert_true(info.blocks[KVF_TIER_REMOTE] > 0 && info.blocks[KVF_TIER_SSD] + info.blocks[KVF_TIER_DRAM] > 0);
    assert_int_equal(kvf_session_move(s, "nobody", KVF_SEC, &report), KVF_ERR_NOT_FOUND);
    assert_int_equal(kvf_session_move(s, "b", 20 * KVF_SEC, &report), KVF_OK);
    kvf_session_close(s);
    assert_int_equal(kvf_session_attach(b, of_b, 9, 10 * KVF_SEC, &s), KVF_OK);
    assert_int_equal(run(s, 9, 2600, 3, reference, false), 0);
    for (unsigned i = 0; i < 1000 && kvf_session_info(s, &info) == KVF_OK && info.streaming; i++)
        usleep(10000);
    assert_false(info.streaming);
    assert_int_equal(info.epoch, 2);
    kvf_node_close(a); /* the old home leaves */
    assert_int_equal(run(s, 9, 2700, 10, reference, false), 0);
    struct kvf_node_stats stats;
    assert_int_equal(kvf_node_stats(b, &stats), KVF_OK);
    assert_int_equal(stats.blocks_corrupt, 0);
    assert_int_equal(stats.blocks_lost, 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    kvf_node_close(b);
    free(reference);
}

static void two_nodes_lend_and_move_over_tcp(void **state) { lend_and_move("tcp"); }
static void two_nodes_lend_and_move_over_shared_memory(void **state) { lend_and_move("shm"); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_threads_work_at_once),
        cmocka_unit_test(threads_share_a_device_cache),
        cmocka_unit_test(close_leaves_nothing),
        cmocka_unit_test(settings_that_cannot_be_are_refused_in_one_line),
        cmocka_unit_test(two_nodes_lend_and_move_over_tcp),
        cmocka_unit_test(two_nodes_lend_and_move_over_shared_memory),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
