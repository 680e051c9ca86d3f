/* What a lender concludes from what etcd does not tell it, or has not told it yet: nothing. */
#include "tests/node/world.h"

#include "coordinator/internal.h"
#include "node/lend.h"

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

/* The session where it lives now goes on, and finds at the lender all that it had there. */
static void goes_on_with_all(struct trio *t, struct sim_node *home, struct kvf_session *s)
{
    staging_forget(home);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(home, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(t);
}

static struct kvf_session *attach(struct sim_node *n)
{
    struct kvf_session *s = NULL;
    assert_int_equal(kvf_session_attach(&n->node, sim_engine_model(engine, n), ID, 10 * KVF_SEC, &s), KVF_OK);
    return s;
}

static struct kvf_session *move(struct sim_node *to, struct kvf_session *s)
{
    assert_int_equal(kvf_session_move(s, to->config.name, 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    return attach(to);
}

/* RELEASE_ALL of one who is the home by the lender's view, which is half a minute behind, or is told nothing more. */
static void a_lender_whose_view_is_old_releases_nothing_by_it(void **state)
{
    for (unsigned deaf = 0; deaf < 2; deaf++) {
        struct trio t = trio_make();
        struct kvf_session *s = session_on(t.a, ID);
        assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
        uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
        assert_true(there > 0);
        if (deaf)
            kvf_sim_store_deafen(t.lender->store);
        else
            kvf_sim_store_lag(t.lender->store, 30 * KVF_SEC);
        assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
        kvf_session_close(s);
        kvf_lend_message(t.lender->core, sim_cluster_peer(t.lender, t.a), &(struct kvf_message){.type = KVF_MSG_RELEASE_ALL});
        sim_cluster_settle(t.c, 6 * KVF_SEC);
        assert_int_equal(t.lender->core->lend->n_waits, 0); /* it was judged, by a view made anew, and so was ADOPT */
        s = attach(t.b);
        assert_int_equal(sim_cluster_peer(t.lender, t.b)->lent_blocks, there);
        kvf_sim_store_lag(t.lender->store, 0);
        goes_on_with_all(&t, t.b, s);
    }
}

/* RELEASE_ALL that waits for etcd is not meant any more when its sender has blocks there again. */
static void what_waits_to_be_released_is_not_when_its_sender_comes_again(void **state)
{
    struct trio t = trio_make();
    struct kvf_node_peer *a = sim_cluster_peer(t.lender, t.a);
    kvf_sim_store_cut(t.lender->store, true);
    kvf_lend_message(t.lender->core, a, &(struct kvf_message){.type = KVF_MSG_RELEASE_ALL});
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
    assert_true(there > 0);
    kvf_sim_store_cut(t.lender->store, false);
    sim_cluster_settle(t.c, 4 * KVF_SEC);
    assert_int_equal(a->lent_blocks, there);
    kvf_lend_message(t.lender->core, a, &(struct kvf_message){.type = KVF_MSG_RELEASE_ALL});
    assert_int_equal(a->lent_blocks, there);
    sim_cluster_settle(t.c, KVF_SEC); /* nothing comes between: it is done */
    assert_int_equal(a->lent_blocks, 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* Sessions that began after the lender's watch died are in no record that it knows: their blocks live nevertheless. */
static void a_lender_whose_watch_is_dead_sweeps_nothing_away(void **state)
{
    enum { DEAF, BROKEN, NOTHING_HELPS, ALL };
    for (unsigned how = 0; how < ALL; how++) {
        struct trio t = trio_make();
        kvf_sim_store_deafen(t.lender->store);
        kvf_sim_store_hold(t.lender->store, how == BROKEN); /* every other watch that it makes tells nothing either */
        if (how == NOTHING_HELPS)
            t.lender->core->coord->fresh.renew_ns = UINT64_MAX;
        struct kvf_session *s = session_on(t.a, ID);
        assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
        uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
        assert_true(there > 0);
        sim_cluster_settle(t.c, 100 * KVF_SEC);
        assert_int_equal(sim_cluster_peer(t.lender, t.a)->lent_blocks, there);
        kvf_sim_store_hold(t.lender->store, false);
        t.lender->core->coord->fresh.renew_ns = 0;
        goes_on_with_all(&t, t.a, s);
    }
}

/* A lender that knows an earlier session of this id, with a higher epoch, refuses nobody by it. */
static void an_old_view_refuses_no_new_home(void **state)
{
    struct trio t = trio_make();
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 20, 20), KVF_OK);
    s = move(t.a, move(t.b, s));
    sim_cluster_settle(t.c, 12 * KVF_SEC);
    kvf_sim_store_deafen(t.lender->store);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
    assert_true(there > 0);
    s = move(t.b, s);
    sim_cluster_settle(t.c, 15 * KVF_SEC);
    assert_int_equal(sim_cluster_peer(t.lender, t.b)->lent_blocks, there);
    goes_on_with_all(&t, t.b, s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lender_that_etcd_tells_nothing_releases_nothing),
        cmocka_unit_test(what_etcd_tells_in_words_it_cannot_read_stays),
        cmocka_unit_test(a_lender_whose_view_is_old_releases_nothing_by_it),
        cmocka_unit_test(what_waits_to_be_released_is_not_when_its_sender_comes_again),
        cmocka_unit_test(a_lender_whose_watch_is_dead_sweeps_nothing_away),
        cmocka_unit_test(an_old_view_refuses_no_new_home),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
