/* Whole nodes over real UCX and etcd: a lender that is killed amid 64 reads, and starts anew; and one that hangs. The lender is
 * this program again. */
#define SEED 20261126
#include "tests/node/real_store.h"
#include "tests/support/twin.h"

#define READS 64
#define KEYS 256
#define BOUND_NS (100 * KVF_MS)

/* ---------------------------------------------------------------- nodes */

static struct kvf_node *start(const char *name, const char *url, const char *prefix, const char *transport, const char *lend,
                              const char *ssd)
{
    const char *const settings[] = {"node.name", name, "etcd.endpoints", url, "etcd.prefix", prefix,
                                    "fabric.transport", transport, "lend.bytes", lend, "lend.keep_dead", "0",
                                    "dram.bytes", "1M", "fetch.staging", "8M", "block.count_max", "4096",
                                    "etcd.lease", "1s", "admin.listen", "", "log.level", "error",
                                    "ssd.path", ssd, "ssd.bytes", "64M", NULL};
    return node_open(settings);
}

/* Until it is killed. Its place in etcd stays taken for the rest of an earlier life's lease. */
static _Noreturn void lender_main(char **argv)
{
    while (!start("lender", argv[2], argv[3], argv[4], "16M", ""))
        usleep(50000);
    for (;;)
        pause();
}

static pid_t lender_start(const char *prefix, const char *transport)
{
    char *arguments[] = {"test_faults_real", "lender", (char *)(uintptr_t)kvf_test_etcd_url(etcd), (char *)(uintptr_t)prefix,
                         (char *)(uintptr_t)transport, NULL};
    return program_again(arguments, -1, -1);
}

/* ---------------------------------------------------------------- blocks */

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
    h.node = start("home", kvf_test_etcd_url(etcd), prefix, transport, "0", "");
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
    h.node = start("home", kvf_test_etcd_url(etcd), "/hangs", "tcp", "0", folder);
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
