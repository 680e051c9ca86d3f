/* A peer that is gone: what lay there is a miss at once, however long it takes to find all of it in a large index; and where
 * nothing lay there nobody looks for it. */
#include "tests/node/store.h"

#define KEYS 64

/* Steps until the node knows that the other is gone. */
static void await_down(struct sim_cluster *c, struct sim_node *node, struct sim_node *other)
{
    for (unsigned i = 0; sim_cluster_peer(node, other)->up; i++) {
        assert_true(i < 100000);
        sim_cluster_step(c);
    }
}

static struct kvf_entry *entry_of(struct store *t, uint64_t key)
{
    struct kvf_key k = key_at(key);
    k.hi |= KVF_OPAQUE_BIT;
    kvf_handle h = kvf_index_find(t->n->core->index, k);
    return h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(t->n->core->index, h);
}

/* Its blocks lie in DRAM and at the lender, which is killed; what lay there is come by one entry at a time. */
static struct store store_whose_lender_dies(void)
{
    struct store t = store_make(128 * KIB, 512 * KIB, 0, 16);
    for (uint64_t i = 0; i < KEYS; i++)
        assert_int_equal(put(&t, i, 0, 4 * KIB), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    t.n->core->leave_entries = 1;
    sim_cluster_kill(t.lender, true);
    return t;
}

static void blocks_there_do_not_exist_from_then_on(void **state)
{
    struct store t = store_whose_lender_dies();
    bool stays[KEYS];
    unsigned there = 0;
    for (uint64_t i = 0; i < KEYS; i++) {
        struct kvf_entry *e = entry_of(&t, i);
        stays[i] = e && e->tier != KVF_TIER_REMOTE;
        there += e && e->tier == KVF_TIER_REMOTE;
    }
    assert_true(there > 8);
    await_down(t.c, t.n, t.lender);
    assert_int_equal(t.n->core->leaving, 1); /* most of them were not come by yet */
    for (uint64_t i = 0; i < KEYS; i++) {
        struct kvf_key key = key_at(i);
        size_t found;
        assert_int_equal(kvf_exists_prefix(&t.n->node, &key, 1, &found), KVF_OK);
        assert_int_equal(found, stays[i]);
    }
    for (uint64_t i = 0; i < KEYS; i++) {
        uint8_t data[4 * KIB];
        assert_int_equal(get(&t, i, 0, sizeof data, data).status, stays[i] ? KVF_OK : KVF_MISS);
    }
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(t.n->core->leaving, 0);
    assert_int_equal(sim_cluster_peer(t.n, t.lender)->borrowed_blocks, 0);
    sim_cluster_check(t.c);
    kvf_queue_destroy(t.q);
    sim_cluster_destroy(t.c);
}

/* Nobody is told that it exists, and keeps it no more. */
static void what_lay_there_can_be_put_again_at_once(void **state)
{
    struct store t = store_whose_lender_dies();
    unsigned there = 0;
    await_down(t.c, t.n, t.lender);
    for (uint64_t i = 0; i < KEYS && t.n->core->leaving; i++) {
        struct kvf_entry *e = entry_of(&t, i);
        if (!e || e->tier != KVF_TIER_REMOTE)
            continue;
        there++;
        assert_int_not_equal(put(&t, i, 1, 4 * KIB), KVF_ERR_EXISTS);
    }
    assert_true(there > 8);
    sim_cluster_settle(t.c, KVF_SEC);
    sim_cluster_check(t.c);
    kvf_queue_destroy(t.q);
    sim_cluster_destroy(t.c);
}

static size_t lost_of(struct kvf_session *s, struct kvf_range *ranges)
{
    size_t n;
    assert_int_equal(kvf_session_lost(s, ranges, 64, &n), KVF_OK);
    return n;
}

static void a_sessions_lost_ranges_are_listed_at_once(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *home = sim_cluster_add(
        c, &(struct sim_node_config){.name = "home", .dram = 128 * KIB, .ssd = 4096 * KIB, .leave_entries = 1});
    struct sim_node *lender = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = 128 * KIB});
    struct kvf_range at_once[64], later[64];
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    assert_true(blocks_in(s, KVF_TIER_REMOTE) > 0);
    sim_cluster_kill(lender, true);
    await_down(c, home, lender);
    assert_int_equal(home->core->leaving, 1);
    size_t n = lost_of(s, at_once);
    assert_true(n > 0);
    sim_cluster_settle(c, KVF_SEC);
    assert_int_equal(home->core->leaving, 0);
    assert_int_equal(lost_of(s, later), n);
    assert_memory_equal(at_once, later, n * sizeof at_once[0]);
    assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
    assert_same_bits(engine);
    sim_cluster_check(c);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_destroy(c);
}

/* In every layer and head, not only in the first that was found lost. */
static void what_is_listed_as_lost_can_be_refilled_at_once(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *home = sim_cluster_add(
        c, &(struct sim_node_config){.name = "home", .dram = 128 * KIB, .ssd = 4096 * KIB, .leave_entries = 1});
    struct sim_node *lender = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = 128 * KIB});
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    sim_cluster_kill(lender, true);
    await_down(c, home, lender);
    assert_int_equal(home->core->leaving, 1);
    assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    sim_cluster_check(c);
    sim_cluster_destroy(c);
}

/* Down, and again unreachable at every try to reach it: in an index of many blocks each walk would stall the reactor. */
static void where_nothing_lay_nothing_is_looked_for(void **state)
{
    struct store t = store_make(512 * KIB, 0, 0, 16);
    for (uint64_t i = 0; i < KEYS; i++)
        assert_int_equal(put(&t, i, 0, 4 * KIB), KVF_OK);
    t.n->core->leave_entries = 1;
    sim_cluster_partition(t.n, t.lender, true);
    for (uint64_t end = t.c->env.now_ns + 10 * KVF_SEC; t.c->env.now_ns < end;) {
        sim_cluster_step(t.c);
        assert_int_equal(t.n->core->leaving, 0);
    }
    assert_false(sim_cluster_peer(t.n, t.lender)->up);
    sim_cluster_partition(t.n, t.lender, false);
    sim_cluster_settle(t.c, 6 * KVF_SEC);
    assert_true(sim_cluster_peer(t.n, t.lender)->up);
    kvf_queue_destroy(t.q);
    sim_cluster_destroy(t.c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_there_do_not_exist_from_then_on),
        cmocka_unit_test(what_lay_there_can_be_put_again_at_once),
        cmocka_unit_test(a_sessions_lost_ranges_are_listed_at_once),
        cmocka_unit_test(what_is_listed_as_lost_can_be_refilled_at_once),
        cmocka_unit_test(where_nothing_lay_nothing_is_looked_for),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
