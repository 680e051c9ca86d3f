/* A node that is to be stopped takes on nothing more of others and gets rid of what it has of them; it says when. And sessions that
 * moved away leave nothing. */
#include "tests/node/world.h"

#include "node/drain.h"
#include "node/lend.h"
#include "node/move.h"

static struct kvf_drain_stats stats_of(const struct sim_node *n)
{
    struct kvf_drain_stats s;
    kvf_drain_stats(n->core, &s);
    return s;
}

static enum kvf_status move(struct sim_node *from, struct kvf_session *s, const char *to)
{
    struct kvf_move_outcome outcome = {0};
    struct sim_cluster *c = from->cluster;
    assert_int_equal(kvf_move_start(from->core, s->sess, to, c->env.now_ns + 10 * KVF_SEC, &outcome), KVF_OK);
    while (!outcome.done)
        sim_cluster_step(c);
    if (outcome.status == KVF_OK)
        kvf_session_close(s);
    return outcome.status;
}

static struct kvf_session *attach(struct sim_node *at, uint64_t id)
{
    struct kvf_session *s = NULL;
    assert_int_equal(kvf_session_attach(&at->node, sim_engine_model(engine, at), id, 10 * KVF_SEC, &s), KVF_OK);
    return s;
}

static void what_it_lent_goes_and_nothing_comes(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *home = sim_cluster_add(c, &(struct sim_node_config){.name = "home", .dram = 128 * KIB, .ssd = 4096 * KIB});
    struct sim_node *a = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = 256 * KIB});
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(home, 7), *other = session_on(home, 8);
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    assert_true(stats_of(a).lent_bytes > 64 * KIB);
    assert_false(stats_of(a).empty); /* nor would it be without any: it is not asked for */
    kvf_drain_set(a->core, true, 2 * KVF_SEC);
    assert_true(stats_of(a).draining && !stats_of(a).empty);
    uint64_t start = c->env.now_ns;
    while (!stats_of(a).empty && c->env.now_ns < start + 3 * KVF_SEC)
        sim_cluster_step(c);
    assert_true(c->env.now_ns - start < 2 * KVF_SEC);
    assert_true(stats_of(a).empty);
    assert_int_equal(COUNTED(a, lent_blocks_revoked), 0);
    assert_int_equal(COUNTED(home, blocks_lost), 0);
    assert_int_equal(sim_engine_run(engine, s, 1500, 50), KVF_OK); /* spills: not to it */
    assert_int_equal(sim_engine_run(engine, other, 64, 8), KVF_OK);
    assert_int_equal(stats_of(a).lent_bytes, 0);
    assert_int_equal(move(home, other, "a"), KVF_ERR_BUSY);
    assert_true(stats_of(a).empty);
    kvf_drain_set(a->core, false, 0);
    sim_cluster_settle(c, 6 * KVF_SEC);
    assert_int_equal(sim_engine_run(engine, other, 700, 50), KVF_OK);
    assert_true(stats_of(a).lent_bytes > 0);
    assert_int_equal(move(home, other, "a"), KVF_OK);
    other = attach(a, 8);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    sim_cluster_settle(c, 8 * KVF_SEC);
    sim_cluster_check(c);
    assert_true(sim_cluster_empty(a));
    sim_cluster_destroy(c);
}

/* A session that moved away is fetched from here for a while: until then it is not empty. */
static void it_waits_for_those_who_still_fetch(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *old = sim_cluster_add(c, &(struct sim_node_config){.name = "old", .dram = 512 * KIB});
    struct sim_node *new = sim_cluster_add(
        c, &(struct sim_node_config){.name = "new", .dram = 512 * KIB, .up_budget = 64 * KIB}); /* seconds */
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(old, 7);
    assert_int_equal(sim_engine_run(engine, s, 900, 50), KVF_OK);
    kvf_drain_set(old->core, true, KVF_SEC);
    assert_int_equal(stats_of(old).home_sessions, 1); /* it lends nothing, but is somebody's home */
    assert_true(stats_of(old).empty);
    assert_int_equal(move(old, s, "new"), KVF_OK);
    struct kvf_drain_stats then = stats_of(old);
    assert_true(!then.empty && then.home_sessions == 0 && then.departed_sessions == 1 && then.departed_blocks > 0);
    s = attach(new, 7);
    for (unsigned i = 0; i < 60 && !stats_of(old).empty; i++)
        sim_cluster_settle(c, KVF_SEC);
    assert_true(stats_of(old).empty);
    sim_cluster_kill(old, true);
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK); /* nothing was lost with it */
    assert_int_equal(COUNTED(new, blocks_lost), 0);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_destroy(c);
}

/* A session whose blocks lie in the node's own lent part moves on: they are a borrower's from then on, and have to go too. */
static void what_becomes_anothers_meanwhile_goes_too(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *home = sim_cluster_add(c, &(struct sim_node_config){.name = "home", .dram = 128 * KIB, .ssd = 4096 * KIB});
    struct sim_node *a = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 512 * KIB, .lend = 256 * KIB});
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    assert_true(kvf_lend_blocks(a->core) > 8);
    assert_int_equal(move(home, s, "a"), KVF_OK);
    s = attach(a, 7);
    sim_cluster_settle(c, KVF_SEC);
    assert_int_equal(stats_of(a).lent_bytes, 0);
    assert_true(kvf_lend_blocks(a->core) > 8); /* its own now, where they lay */
    kvf_drain_set(a->core, true, 2 * KVF_SEC);
    assert_int_equal(move(a, s, "home"), KVF_OK);
    s = attach(home, 7);
    for (unsigned i = 0; i < 30 && !stats_of(a).empty; i++)
        sim_cluster_settle(c, KVF_SEC);
    assert_true(stats_of(a).empty);
    assert_int_equal(kvf_lend_blocks(a->core), 0);
    assert_int_equal(COUNTED(home, blocks_lost), 0);
    staging_forget(home);
    assert_int_equal(sim_engine_run(engine, s, 1100, 20), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_settle(c, 8 * KVF_SEC);
    sim_cluster_check(c);
    assert_true(sim_cluster_empty(a));
    sim_cluster_destroy(c);
}

/* The link breaks, etcd tells the target first, and it says that it needs nothing of the old home, which has not heard yet: nothing
 * waits here for a second word, which will not come. */
static void a_release_that_is_earlier_than_etcds_word(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *old = sim_cluster_add(c, &(struct sim_node_config){.name = "old", .dram = 512 * KIB});
    struct sim_node *new = sim_cluster_add(c, &(struct sim_node_config){.name = "new", .dram = 1024 * KIB});
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(old, 7);
    struct kvf_move_outcome outcome = {0};
    assert_int_equal(sim_engine_run(engine, s, 500, 50), KVF_OK);
    assert_int_equal(kvf_move_start(old->core, s->sess, "new", c->env.now_ns + 10 * KVF_SEC, &outcome), KVF_OK);
    c->single = true;
    while (!outcome.done && kvf_move_find(old->core, 7)->state != KVF_MOVE_PLACING)
        sim_cluster_step(c);
    assert_false(outcome.done);
    kvf_move_release_all(old->core, sim_cluster_peer(old, new));
    c->single = false;
    while (!outcome.done)
        sim_cluster_step(c);
    assert_int_equal(outcome.status, KVF_OK);
    kvf_session_close(s);
    s = attach(new, 7);
    assert_int_equal(old->core->n_sessions, 0);
    assert_true(sim_cluster_empty(old));
    assert_int_equal(sim_engine_run(engine, s, 600, 50), KVF_OK); /* refills what was released */
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_settle(c, 8 * KVF_SEC);
    sim_cluster_check(c);
    assert_true(sim_cluster_empty(new));
    sim_cluster_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_it_lent_goes_and_nothing_comes),
        cmocka_unit_test(it_waits_for_those_who_still_fetch),
        cmocka_unit_test(what_becomes_anothers_meanwhile_goes_too),
        cmocka_unit_test(a_release_that_is_earlier_than_etcds_word),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
