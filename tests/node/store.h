/* A node with a queue for opaque blocks, and a lender: what the tests of blocks by key share. */
#ifndef KVF_TESTS_NODE_STORE_H
#define KVF_TESTS_NODE_STORE_H

#include "tests/node/world.h"

struct store {
    struct sim_cluster *c;
    struct sim_node *n, *lender;
    struct kvf_queue *q;
};

static inline struct store store_make(uint64_t dram, uint64_t lend, uint64_t ssd, uint32_t depth)
{
    struct store t = {.c = sim_cluster_create(SEED)};
    t.n = sim_cluster_add(t.c, &(struct sim_node_config){.name = "n", .dram = dram, .ssd = ssd, .way = KVF_WAY_GET});
    t.lender =
        sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB, .lend = lend, .way = KVF_WAY_GET});
    sim_cluster_connect(t.c);
    assert_int_equal(kvf_queue_create(&t.n->node, depth, &t.q), KVF_OK);
    return t;
}

static inline void store_end(struct store *t)
{
    kvf_queue_destroy(t->q);
    sim_cluster_settle(t->c, 6 * KVF_SEC);
    sim_cluster_check(t->c);
    assert_true(sim_cluster_empty(t->n));
    assert_true(sim_cluster_empty(t->lender));
    sim_cluster_destroy(t->c);
}

static inline struct kvf_key key_at(uint64_t i)
{
    return (struct kvf_key){.hi = i * 0x9e3779b97f4a7c15ull, .lo = i};
}

static inline void bytes_of(uint64_t key, uint64_t version, uint8_t *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = (uint8_t)((key * 31 + version * 101 + i * 7 + (i >> 8) * 13) >> 1);
}

/* Submits one request and waits for its completion. */
static inline struct kvf_completion one(struct store *t, struct kvf_request r, uint64_t timeout_ns)
{
    struct kvf_completion done = {.user = 0};
    size_t n = 0;
    r.user = 4711;
    assert_int_equal(kvf_submit(t->q, &r, 1, timeout_ns, &n), KVF_OK);
    assert_int_equal(n, 1);
    for (unsigned i = 0; i < 100000; i++) {
        assert_int_equal(kvf_drain(t->q, &done, 1, &n), KVF_OK);
        if (n == 1) {
            assert_int_equal(done.user, 4711);
            return done;
        }
        sim_cluster_step(t->c);
    }
    fail_msg("a request did not end");
    return done;
}

static inline enum kvf_status put(struct store *t, uint64_t key, uint64_t version, size_t bytes)
{
    uint8_t *data = malloc(bytes);
    bytes_of(key, version, data, bytes);
    enum kvf_status st =
        one(t, (struct kvf_request){.op = KVF_OP_PUT, .key = key_at(key), .data = data, .length = bytes}, 0).status;
    free(data);
    return st;
}

static inline struct kvf_completion get(struct store *t, uint64_t key, uint64_t offset, uint64_t length, void *to)
{
    return one(t, (struct kvf_request){.op = KVF_OP_GET, .key = key_at(key), .data = to, .offset = offset, .length = length}, 0);
}

static inline struct kvf_completion op(struct store *t, enum kvf_op what, uint64_t key)
{
    return one(t, (struct kvf_request){.op = what, .key = key_at(key)}, 0);
}

static inline void assert_range(struct store *t, uint64_t key, uint64_t version, size_t bytes, size_t offset, size_t length)
{
    uint8_t *all = malloc(bytes), *got = malloc(length);
    bytes_of(key, version, all, bytes);
    struct kvf_completion c = get(t, key, offset, length, got);
    assert_int_equal(c.status, KVF_OK);
    assert_int_equal(c.length, length);
    assert_memory_equal(got, all + offset, length);
    free(all);
    free(got);
}
#endif
