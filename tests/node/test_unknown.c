/* What a lender concludes from what etcd does not tell it: nothing. */
#include "tests/node/world.h"

#include "coordinator/records.h"

#define ID 7

struct trio {
    struct sim_cluster *c;
    struct sim_node *a, *b, *lender;
};

static struct trio trio_make(void)
{
    struct trio t = {.c = sim_cluster_create(SEED)};
    t.a = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = 128 * KIB, .ssd = 4096 * KIB});
    t.b = sim_cluster_add(t.c, &(struct sim_node_config){.name = "b", .dram = 1024 * KIB, .ssd = 4096 * KIB});
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB, .lend = 64 * KIB});
    sim_cluster_connect(t.c);
    return t;
}

static void trio_end(struct trio *t)
{
    sim_cluster_settle(t->c, 8 * KVF_SEC);
    sim_cluster_check(t->c);
    assert_true(sim_cluster_empty(t->a) && sim_cluster_empty(t->b) && sim_cluster_empty(t->lender));
    sim_cluster_destroy(t->c);
}

/* RELEASE_ALL takes nothing of a session that moved, also where the lender, for which etcd is away, cannot know of the move. */
static void a_lender_that_etcd_tells_nothing_releases_nothing(void **state)
{
    struct trio t = trio_make();
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
    assert_true(there > 0);
    kvf_sim_store_hold(t.lender->store, true); /* the word of the move does not come, and then etcd fails */
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    kvf_sim_etcd_down(t.c->etcd, true);
    kvf_sim_store_hold(t.lender->store, false);
    sim_cluster_peer(t.a, t.lender)->untidy = true; /* it owes a word since before: RELEASE_ALL */
    sim_cluster_settle(t.c, 15 * KVF_SEC);
    assert_int_equal(sim_cluster_peer(t.lender, t.a)->lent_blocks, there);
    kvf_sim_etcd_down(t.c->etcd, false);
    sim_cluster_settle(t.c, 10 * KVF_SEC);
    assert_int_equal(sim_cluster_peer(t.lender, t.b)->lent_blocks, there);
    assert_false(sim_cluster_peer(t.a, t.lender)->untidy); /* said at last */
    assert_int_equal(kvf_session_attach(&t.b->node, sim_engine_model(engine, t.b), ID, 10 * KVF_SEC, &s), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* A record that a lender cannot read, as one of a later version, tells nothing of whose the blocks are. */
static void what_etcd_tells_in_words_it_cannot_read_stays(void **state)
{
    struct trio t = trio_make();
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
    char key[KVF_STORE_KEY_MAX], *good;
    assert_true(there > 0 && kvf_records_session_key("/kvfabric/default", ID, key));
    good = strdup(kvf_sim_etcd_get(t.c->etcd, key)->value);
    kvf_sim_etcd_put(t.c->etcd, key, NULL);
    kvf_sim_etcd_put(t.c->etcd, key, "{\"version\": 2}");
    sim_cluster_settle(t.c, 70 * KVF_SEC);
    assert_int_equal(sim_cluster_peer(t.lender, t.a)->lent_blocks, there);
    kvf_sim_etcd_put(t.c->etcd, key, good);
    free(good);
    staging_forget(t.a);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.a, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lender_that_etcd_tells_nothing_releases_nothing),
        cmocka_unit_test(what_etcd_tells_in_words_it_cannot_read_stays),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
