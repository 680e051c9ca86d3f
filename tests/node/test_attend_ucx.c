/* Attention where the bytes lie, between two processes over UCX: the same bits as by pulling, also when the holder is killed. */
#include "tests/node/world.h"

#include "node/attend_remote.h"
#include "tests/support/etcd.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ID 7

static struct kvf_test_etcd *etcd; /* NULL: not installed */

static int world_open(void **state)
{
    printf("seed %d\n", SEED);
    engine = sim_engine_create(SEED, 64, KVF_F16, 16, 64, 2900); /* blocks of 16 KiB: a node has 1 MiB of DRAM at least */
    etcd = kvf_test_etcd_start();
    return 0;
}

static int world_close(void **state)
{
    kvf_test_etcd_stop(etcd);
    return engine_free(state);
}

static struct kvf_node *node_open(const char *name, const char *transport, const char *prefix, const char *dram, const char *lend)
{
    const char *const settings[] = {"node.name", name, "dram.bytes", dram, "lend.bytes", lend, "fetch.staging", "1M",
                                    "block.bytes_max", "64k", "block.count_max", "4096", "admin.listen", "", "log.level", "error",
                                    "etcd.endpoints", kvf_test_etcd_url(etcd), "etcd.prefix", prefix,
                                    "fabric.transport", transport, "attend.remote", "always", "fetch.timeout", "20s"};
    struct kvf_config *config = NULL;
    struct kvf_node *node = NULL;
    enum kvf_status st = kvf_config_create(&config);
    for (unsigned i = 0; i < sizeof settings / sizeof *settings && st == KVF_OK; i += 2)
        st = kvf_config_set(config, settings[i], settings[i + 1]);
    if (st == KVF_OK)
        st = kvf_node_open(config, &node);
    if (st != KVF_OK)
        fprintf(stderr, "opening node %s: %s\n", name, kvf_config_error(config));
    kvf_config_destroy(config);
    return node;
}

/* A lender in a process of its own, until the pipe's other end is closed. */
static pid_t lender_start(const char *transport, const char *prefix, int *hold)
{
    int life[2], up[2];
    char said = 0;
    assert_int_equal(pipe(life) | pipe(up), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(life[1]);
        struct kvf_node *node = node_open("lender", transport, prefix, "1M", "4M");
        said = node ? 'y' : 'n';
        if (write(up[1], &said, 1) == 1 && node && read(life[0], &said, 1) == 0)
            kvf_node_close(node);
        _exit(0);
    }
    close(life[0]);
    close(up[1]);
    *hold = life[1];
    ssize_t n = read(up[0], &said, 1);
    close(up[0]);
    if (n == 1 && said == 'y')
        return pid;
    close(life[1]);
    waitpid(pid, NULL, 0);
    return 0;
}

static void forget(struct kvf_node *node)
{
    struct sim_node n = {.core = node->core};
    kvf_core_lock(node->core);
    staging_forget(&n);
    kvf_core_unlock(node->core);
}

struct home {
    struct kvf_node *node;
    struct kvf_session *s;
    pid_t lender;
    int hold;
};

static uint64_t asked(const struct home *h)
{
    return kvf_counted(&h->node->core->counters.attend_there_blocks);
}

/* Both nodes, and a session of which most blocks lie at the lender. */
static struct home home_open(const char *transport, const char *prefix)
{
    struct home h = {0};
    struct kvf_node_stats stats = {0};
    if (!etcd)
        skip();
    h.lender = lender_start(transport, prefix, &h.hold);
    h.node = h.lender ? node_open("home", transport, prefix, "1M", "0") : NULL;
    if (!h.node && h.lender) {
        close(h.hold);
        waitpid(h.lender, NULL, 0);
    }
    if (!h.node)
        skip(); /* a build without UCX, or a machine without that transport: the reason was printed */
    for (unsigned i = 0; i < 1000 && stats.tier[KVF_TIER_REMOTE].capacity_bytes == 0; i++) {
        usleep(10000);
        assert_int_equal(kvf_node_stats(h.node, &stats), KVF_OK);
    }
    struct sim_node as_sim = {.node = {.core = h.node->core}, .core = h.node->core};
    assert_int_equal(kvf_session_create(h.node, sim_engine_model(engine, &as_sim), ID, &h.s), KVF_OK);
    engine->compared = engine->different = 0;
    assert_int_equal(sim_engine_run(engine, h.s, 2400, 100), KVF_OK);
    assert_true(blocks_in(h.s, KVF_TIER_REMOTE) > 24);
    for (unsigned i = 0; i < 200 && asked(&h) == 0; i++) { /* the lender is probed when it is first wanted */
        forget(h.node);
        assert_int_equal(sim_engine_step(engine, h.s, 1), KVF_OK);
        usleep(5000);
    }
    assert_true(asked(&h) > 0);
    return h;
}

static void home_close(struct home *h)
{
    assert_int_equal(kvf_session_drop(h->s), KVF_OK);
    kvf_node_close(h->node);
    close(h->hold);
    waitpid(h->lender, NULL, 0);
}

static void same_bits(const char *transport)
{
    char prefix[64];
    snprintf(prefix, sizeof prefix, "/kvf/test/attend/%s", transport);
    struct home h = home_open(transport, prefix);
    uint64_t before = asked(&h);
    for (unsigned i = 0; i < 100; i++) {
        forget(h.node);
        assert_int_equal(sim_engine_step(engine, h.s, 1), KVF_OK);
    }
    assert_same_bits(engine);
    assert_true(asked(&h) - before > 100);
    assert_int_equal(kvf_counted(&h.node->core->counters.blocks_lost), 0);
    char *json;
    assert_int_equal(kvf_node_status_json(h.node, &json), KVF_OK); /* what was measured is shown */
    const char *shown = strstr(json, "\"break_even_chunks\"");
    assert_non_null(shown);
    assert_non_null(strstr(json, "\"same_bits\""));
    kvf_free(json);
    home_close(&h);
}

static void results_have_the_same_bits_over_tcp(void **state) { same_bits("tcp"); }
static void results_have_the_same_bits_over_shared_memory(void **state) { same_bits("shm"); }

static void *kill_soon(void *arg)
{
    const struct home *h = arg;
    usleep(20000);
    kill(h->lender, SIGKILL);
    return NULL;
}

/* Steps while the lender is killed: a miss soon, never a wrong number, and the session goes on. */
static void killed_in_the_middle(struct home h)
{
    const struct kvf_env *env = kvf_env_real();
    pthread_t killer;
    assert_int_equal(pthread_create(&killer, NULL, kill_soon, &h), 0);
    enum kvf_status st = KVF_OK;
    uint64_t start = kvf_now(env);
    while (st == KVF_OK && tokens_of(h.s) < 2900) {
        forget(h.node);
        st = sim_engine_step(engine, h.s, 1);
    }
    pthread_join(killer, NULL);
    assert_int_equal(st, KVF_LOST);
    assert_true(kvf_now(env) - start < 10 * KVF_SEC); /* of 20 s; a peer that is silent is dead after 2 s */
    assert_same_bits(engine);
    /* Nothing to go down to any more: what is lost does not fit DRAM, which is said, in time. */
    st = sim_engine_refill(engine, h.s);
    assert_true(st == KVF_OK || st == KVF_ERR_FULL || st == KVF_ERR_DEADLINE);
    home_close(&h);
}

/* ... while questions are on their way. */
static void a_holder_is_killed_in_the_middle(void **state)
{
    killed_in_the_middle(home_open("tcp", "/kvf/test/attend/kill"));
}

/* ... while attention computes in its memory: no fault either. */
static void a_lender_is_killed_under_attention_in_its_memory(void **state)
{
    struct home h = home_open("shm", "/kvf/test/attend/view");
    struct kvf_core *core = h.node->core;
    kvf_core_lock(core);
    kvf_attend_remote_mode_set(core, KVF_ATTEND_OFF);
    kvf_core_unlock(core);
    uint64_t before = kvf_counted(&core->counters.view_chunks_read);
    assert_int_equal(sim_engine_step(engine, h.s, 1), KVF_OK);
    assert_true(kvf_counted(&core->counters.view_chunks_read) > before);
    killed_in_the_middle(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_have_the_same_bits_over_tcp),
        cmocka_unit_test(results_have_the_same_bits_over_shared_memory),
        cmocka_unit_test(a_holder_is_killed_in_the_middle),
        cmocka_unit_test(a_lender_is_killed_under_attention_in_its_memory),
    };
    return cmocka_run_group_tests(tests, world_open, world_close);
}
