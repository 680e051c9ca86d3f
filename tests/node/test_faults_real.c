/* Whole nodes over real UCX and etcd: a lender that is killed amid 64 reads, and starts anew; and one that hangs. The lender is
 * this program again. */
#include "base/env.h"
#include "base/hash.h"
#include "tests/support/twin.h"

#define SEED 20261126
#include "tests/node/real.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define BLOCK (64u << 10)
#define READS 64
#define KEYS 256
#define BOUND_NS (100 * KVF_MS)

struct home {
    struct kvf_node *node;
    struct kvf_queue *queue;
    pid_t lender;
    uint64_t next; /* key to be put next */
};

static uint64_t now_ns(void) { return kvf_now(kvf_env_real()); }

/* ---------------------------------------------------------------- nodes */

static bool set(struct kvf_config *config, const char *name, const char *value)
{
    if (kvf_config_set(config, name, value) == KVF_OK)
        return true;
    fprintf(stderr, "%s = %s: %s\n", name, value, kvf_config_error(config));
    return false;
}

static struct kvf_node *node_open(const char *name, const char *url, const char *prefix, const char *transport, const char *lend,
                                  const char *ssd)
{
    struct kvf_config *config;
    struct kvf_node *node = NULL;
    const char *const settings[][2] = {{"node.name", name}, {"etcd.endpoints", url}, {"etcd.prefix", prefix},
                                       {"fabric.transport", transport}, {"lend.bytes", lend}, {"lend.keep_dead", "0"},
                                       {"dram.bytes", "1M"}, {"fetch.staging", "8M"}, {"block.count_max", "4096"},
                                       {"etcd.lease", "1s"}, {"admin.listen", ""}, {"log.level", "error"},
                                       {"ssd.path", ssd}, {"ssd.bytes", "64M"}};
    if (kvf_config_create(&config) != KVF_OK)
        return NULL;
    bool good = true;
    for (unsigned i = 0; good && i < sizeof settings / sizeof *settings; i++)
        good = set(config, settings[i][0], settings[i][1]);
    if (good && kvf_node_open(config, &node) != KVF_OK)
        node = NULL;
    kvf_config_destroy(config);
    return node;
}

/* Until it is killed. Its place in etcd stays taken for the rest of an earlier life's lease. */
static _Noreturn void lender_main(char **argv)
{
    while (!node_open("lender", argv[2], argv[3], argv[4], "16M", ""))
        usleep(50000);
    for (;;)
        pause();
}

static pid_t lender_start(const char *prefix, const char *transport)
{
    char program[4096] = "";
    assert_true(readlink("/proc/self/exe", program, sizeof program - 1) > 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl(program, program, "lender", kvf_test_etcd_url(etcd), prefix, transport, (char *)NULL);
        _exit(5);
    }
    return pid;
}

/* ---------------------------------------------------------------- blocks */

static struct kvf_key key_at(uint64_t i) { return (struct kvf_key){.hi = kvf_mix(i, SEED), .lo = i}; }

static void bytes_of(uint64_t key, uint8_t *to)
{
    for (uint32_t i = 0; i < BLOCK; i += 8) {
        uint64_t word = kvf_mix(key, i);
        memcpy(to + i, &word, sizeof word);
    }
}

/* Waits for the next completion. */
static struct kvf_completion next(struct home *h, uint64_t limit_ns)
{
    struct kvf_completion c = {.user = UINT64_MAX};
    size_t n = 0;
    for (uint64_t until = now_ns() + limit_ns; n == 0 && now_ns() < until;) {
        struct pollfd fd = {.fd = kvf_queue_fd(h->queue), .events = POLLIN};
        assert_int_equal(kvf_drain(h->queue, &c, 1, &n), KVF_OK);
        if (n == 0)
            poll(&fd, 1, 100);
    }
    assert_int_equal(n, 1);
    return c;
}

static void ask(struct home *h, enum kvf_op op, uint64_t key, void *data, uint64_t user)
{
    struct kvf_request r = {.op = op, .key = key_at(key), .data = data, .length = data ? BLOCK : 0, .user = user};
    size_t n = 0;
    assert_int_equal(kvf_submit(h->queue, &r, 1, 20 * KVF_SEC, &n), KVF_OK);
    assert_int_equal(n, 1);
}

static struct kvf_completion one(struct home *h, enum kvf_op op, uint64_t key, void *data)
{
    ask(h, op, key, data, key);
    return next(h, 30 * KVF_SEC);
}

static bool at_lender(struct home *h, uint64_t key)
{
    struct kvf_completion c = one(h, KVF_OP_EXISTS, key, NULL);
    return c.status == KVF_OK && c.tier == KVF_TIER_REMOTE;
}

/* Puts blocks until so many of the last KEYS lie at the lender; their keys. */
static void lend_some(struct home *h, uint64_t keys[READS])
{
    uint8_t data[BLOCK];
    unsigned found = 0;
    for (uint64_t until = now_ns() + 60 * KVF_SEC; found < READS && now_ns() < until;) {
        for (unsigned i = 0; i < READS / 2; i++, h->next++) {
            bytes_of(h->next, data);
            assert_int_equal(one(h, KVF_OP_PUT, h->next, data).status, KVF_OK);
        }
        found = 0;
        for (uint64_t key = h->next > KEYS ? h->next - KEYS : 0; key < h->next && found < READS; key++)
            if (at_lender(h, key))
                keys[found++] = key;
    }
    assert_int_equal(found, READS);
}

static void assert_bytes(uint64_t key, const uint8_t *data)
{
    uint8_t want[BLOCK];
    bytes_of(key, want);
    assert_memory_equal(data, want, BLOCK);
}

/* It is a miss, or it came up to the home's own memory before. */
static void assert_gone(struct kvf_completion c) { assert_true(c.status == KVF_MISS || c.tier == KVF_TIER_DRAM); }

/* ---------------------------------------------------------------- the test */

static void *reap(void *arg)
{
    waitpid(*(pid_t *)arg, NULL, 0);
    return NULL;
}

/* The node goes on, and so does the lender once it is there again; what its earlier life held is not believed. */
static void assert_goes_on(struct home *h, const char *transport, const char *prefix, const uint64_t keys[READS], uint8_t *data)
{
    uint64_t anew[READS];
    bytes_of(h->next, data);
    assert_int_equal(one(h, KVF_OP_PUT, h->next, data).status, KVF_OK);
    memset(data, 0, BLOCK);
    assert_int_equal(one(h, KVF_OP_GET, h->next, data).status, KVF_OK);
    assert_bytes(h->next++, data);
    h->lender = lender_start(prefix, transport);
    lend_some(h, anew);
    for (unsigned i = 0; i < READS; i++) {
        assert_gone(one(h, KVF_OP_EXISTS, keys[i], NULL));
        assert_int_equal(one(h, KVF_OP_GET, anew[i], data).status, KVF_OK);
        assert_bytes(anew[i], data);
    }
}

static void a_lender_is_killed_amid_64_reads(const char *transport, const char *prefix)
{
    if (!etcd)
        skip();
    struct home h = {.lender = lender_start(prefix, transport)};
    struct twin twin;
    uint64_t keys[READS], last = 0;
    unsigned ok = 0, miss = 0;
    uint8_t *data = malloc((size_t)READS * BLOCK);
    pthread_t reaper;
    assert_non_null(data);
    memset(data, 0, (size_t)READS * BLOCK);
    h.node = node_open("home", kvf_test_etcd_url(etcd), prefix, transport, "0", "");
    assert_non_null(h.node);
    assert_int_equal(kvf_queue_create(h.node, 2 * READS, &h.queue), KVF_OK);
    lend_some(&h, keys);

    twin_start(&twin);
    for (unsigned i = 0; i < READS / 2; i++)
        ask(&h, KVF_OP_GET, keys[i], data + (size_t)i * BLOCK, i);
    uint64_t start = 0;
    for (unsigned i = 0; i < READS; i++) {
        struct kvf_completion c = next(&h, 30 * KVF_SEC);
        if (i == READS / 16) { /* it hangs first, so that half of the reads are outstanding for sure when it dies */
            kill(h.lender, SIGSTOP);
            for (unsigned k = READS / 2; k < READS; k++)
                ask(&h, KVF_OP_GET, keys[k], data + (size_t)k * BLOCK, k);
            start = now_ns();
            kill(h.lender, SIGKILL);
            assert_int_equal(pthread_create(&reaper, NULL, reap, &h.lender), 0);
        }
        last = start ? now_ns() - start : 0;
        assert_true(c.status == KVF_OK || c.status == KVF_MISS);
        ok += c.status == KVF_OK;
        miss += c.status == KVF_MISS;
        if (c.status == KVF_OK)
            assert_bytes(keys[c.user], data + (size_t)c.user * BLOCK);
    }
    while (at_lender(&h, keys[READS - 1]) && now_ns() - start < 30 * KVF_SEC)
        usleep(200);
    uint64_t gone = now_ns() - start, stolen = atomic_load(&twin.stolen_ns);
    twin_stop(&twin);
    pthread_join(reaper, NULL);
    print_message("%s: %u of %u reads ok, the others misses; the last ended after %.1f ms, exists said no after %.1f ms (the "
                  "machine took %.1f ms)\n", transport, ok, READS, (double)last / 1e6, (double)gone / 1e6, (double)stolen / 1e6);
    assert_int_equal(ok + miss, READS);
    assert_true(ok >= READS / 16);
    if (strcmp(transport, "tcp") == 0) /* mapped memory needs nothing of its owner: its reads may all be good */
        assert_true(miss >= READS / 2);
    assert_true(last <= BOUND_NS + stolen);
    assert_true(gone <= BOUND_NS + stolen);
    for (unsigned i = 0; i < READS; i++)
        assert_gone(one(&h, KVF_OP_EXISTS, keys[i], NULL));

    assert_goes_on(&h, transport, prefix, keys, data);
    kvf_queue_destroy(h.queue);
    kvf_node_close(h.node);
    kill(h.lender, SIGKILL);
    waitpid(h.lender, NULL, 0);
    free(data);
}

static void a_lender_is_killed_over_tcp(void **state) { a_lender_is_killed_amid_64_reads("tcp", "/killed-tcp"); }
static void a_lender_is_killed_over_shared_memory(void **state) { a_lender_is_killed_amid_64_reads("shm", "/killed-shm"); }

/* A lender that hangs: what has a copy on the home's SSD is read there, long before the reads' deadline or the lender's death. */
static void a_lender_hangs(void **state)
{
    if (!etcd)
        skip();
    struct home h = {.lender = lender_start("/hangs", "tcp")};
    struct twin twin;
    uint8_t data[BLOCK];
    uint64_t keys[READS], slowest = 0, until = now_ns() + 60 * KVF_SEC;
    unsigned n = 0;
    h.node = node_open("home", kvf_test_etcd_url(etcd), "/hangs", "tcp", "0", folder);
    assert_non_null(h.node);
    assert_int_equal(kvf_queue_create(h.node, 2 * READS, &h.queue), KVF_OK);
    while (n < READS / 4 && now_ns() < until) { /* the latest of those that have a copy and lie at the lender */
        for (unsigned i = 0; i < 8; i++, h.next++) {
            bytes_of(h.next, data);
            assert_int_equal(one(&h, KVF_OP_PUT, h.next, data).status, KVF_OK);
            assert_int_equal(one(&h, KVF_OP_PERSIST, h.next, NULL).status, KVF_OK);
        }
        usleep(20000);
        n = 0;
        for (uint64_t key = h.next > KEYS ? h.next - KEYS : 0; key < h.next && n < READS / 4; key++)
            if (at_lender(&h, key))
                keys[n++] = key;
    }
    assert_int_equal(n, READS / 4);
    twin_start(&twin);
    kill(h.lender, SIGSTOP);
    for (unsigned i = 0; i < n; i++) {
        uint64_t start = now_ns();
        memset(data, 0, sizeof data);
        assert_int_equal(one(&h, KVF_OP_GET, keys[i], data).status, KVF_OK);
        slowest = now_ns() - start > slowest ? now_ns() - start : slowest;
        assert_bytes(keys[i], data);
    }
    uint64_t stolen = atomic_load(&twin.stolen_ns);
    twin_stop(&twin);
    print_message("%u reads of a lender that hangs, each with a copy: the slowest took %.1f ms (the machine took %.1f ms)\n", n,
                  (double)slowest / 1e6, (double)stolen / 1e6);
    assert_true(slowest <= BOUND_NS + stolen);
    kill(h.lender, SIGKILL);
    waitpid(h.lender, NULL, 0);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(one(&h, KVF_OP_GET, keys[i], data).status, KVF_OK);
        assert_bytes(keys[i], data);
    }
    kvf_queue_destroy(h.queue);
    kvf_node_close(h.node);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "lender") == 0)
        lender_main(argv);
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lender_is_killed_over_tcp),
        cmocka_unit_test(a_lender_is_killed_over_shared_memory),
        cmocka_unit_test(a_lender_hangs),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
