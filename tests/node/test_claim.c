/* A lender whose own DRAM is short: lent memory comes back by itself, holds the lender's own blocks at once, and is lent again when
 * it is no longer needed. */
#include "tests/node/store.h"

#include "node/dram.h"
#include "node/lend.h"

struct pair {
    struct sim_cluster *c;
    struct sim_node *lender, *other; /* which borrows */
    struct kvf_session *theirs;
};

/* The borrower, whose blocks of so many tokens are more than its DRAM, has filled what it may have of the lender's memory. */
static struct pair pair_of(struct sim_node_config lender, enum kvf_way way, uint64_t ssd, unsigned tokens)
{
    struct pair t = {.c = sim_cluster_create(SEED)};
    lender.name = "lender";
    lender.way = way;
    t.lender = sim_cluster_add(t.c, &lender);
    t.other = sim_cluster_add(t.c, &(struct sim_node_config){.name = "other", .dram = 128 * KIB, .ssd = ssd, .way = way});
    sim_cluster_connect(t.c);
    t.theirs = session_on(t.other, 8);
    assert_int_equal(sim_engine_run(engine, t.theirs, tokens, 50), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(sim_cluster_peer(t.lender, t.other)->lent_bytes > lender.lend / 2);
    return t;
}

static struct pair pair_make(struct sim_node_config lender, enum kvf_way way)
{
    return pair_of(lender, way, 4096 * KIB, 1300);
}

static void pair_end(struct pair *t)
{
    assert_int_equal(kvf_session_drop(t->theirs), KVF_OK);
    sim_cluster_settle(t->c, 8 * KVF_SEC);
    sim_cluster_check(t->c);
    assert_true(sim_cluster_empty(t->lender));
    assert_true(sim_cluster_empty(t->other));
    sim_cluster_destroy(t->c);
}

static struct kvf_reclaim_stats stats_of(const struct sim_node *lender)
{
    struct kvf_reclaim_stats s;
    kvf_reclaim_stats(lender->core, &s);
    return s;
}

/* Decodes on: each step attends over all blocks, wherever they lie. */
static void decode(struct kvf_session *s, unsigned steps)
{
    uint64_t tokens = tokens_of(s);
    assert_int_equal(sim_engine_run(engine, s, (unsigned)tokens + steps, 1), KVF_OK);
}

/* ---------------------------------------------------------------- it comes back */

static void own_blocks_come_before_those_of_others(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++) {
        struct pair t = pair_make((struct sim_node_config){.dram = 128 * KIB, .lend = 128 * KIB, .ssd = 4096 * KIB}, way);
        struct kvf_session *s = session_on(t.lender, 7);
        assert_int_equal(sim_engine_run(engine, s, 800, 50), KVF_OK); /* 48 blocks or more: 192 KiB */
        for (unsigned i = 0; i < 20; i++) {
            decode(s, 2);
            staging_forget(t.lender);
            sim_cluster_settle(t.c, 500 * KVF_MS);
        }
        assert_true(COUNTED(t.lender, lend_claims) > 0);
        assert_int_equal(COUNTED(t.lender, lent_blocks_revoked), 0); /* the borrower had the time to move them */
        assert_true(COUNTED(t.lender, lent_blocks_returned) > 0);
        assert_int_equal(COUNTED(t.other, blocks_lost), 0);
        struct kvf_reclaim_stats now = stats_of(t.lender);
        assert_true(now.own_bytes >= 48 * KIB); /* in use, not idle */
        assert_true(now.own_bytes + now.others_bytes <= 128 * KIB);
        assert_true(blocks_in(s, KVF_TIER_DRAM) * SLOT > 128 * KIB);
        sim_cluster_check(t.c);
        staging_forget(t.other);
        assert_int_equal(sim_engine_run(engine, t.theirs, 1350, 10), KVF_OK);
        assert_same_bits(engine);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        pair_end(&t);
    }
}

/* A lender whose own session reads more than its DRAM has, for 20 s. */
static struct pair pair_that_claims(struct kvf_session **out)
{
    struct pair t = pair_make((struct sim_node_config){.dram = 128 * KIB, .lend = 256 * KIB, .ssd = 4096 * KIB}, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.lender, 7);
    assert_int_equal(sim_engine_run(engine, s, 800, 50), KVF_OK);
    for (unsigned i = 0; i < 20; i++) {
        decode(s, 1);
        staging_forget(t.lender);
        sim_cluster_settle(t.c, KVF_SEC);
    }
    *out = s;
    return t;
}

/* What the claim leads to: everything that is read is in DRAM, so nothing is read below it any more. */
static void the_claim_ends_when_own_dram_suffices(void **state)
{
    struct kvf_session *s;
    struct pair t = pair_that_claims(&s);
    uint64_t claims = COUNTED(t.lender, lend_claims), limit = stats_of(t.lender).limit_bytes;
    assert_true(claims > 0 && limit > 0); /* not all of it was needed */
    for (unsigned i = 0; i < 20; i++) {
        decode(s, 1);
        staging_forget(t.lender);
        sim_cluster_settle(t.c, KVF_SEC);
    }
    assert_int_equal(COUNTED(t.lender, lend_claims), claims);
    assert_int_equal(blocks_in(s, KVF_TIER_SSD), 0);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    pair_end(&t);
}

static void others_keep_the_minimum(void **state)
{
    struct pair t = pair_make(
        (struct sim_node_config){.dram = 128 * KIB, .lend = 128 * KIB, .lend_min = 64 * KIB, .ssd = 4096 * KIB}, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.lender, 7);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK); /* more than all of it would hold */
    for (unsigned i = 0; i < 20; i++) {
        decode(s, 1);
        staging_forget(t.lender);
        sim_cluster_settle(t.c, KVF_SEC);
    }
    struct kvf_reclaim_stats now = stats_of(t.lender);
    assert_int_equal(now.limit_bytes, 64 * KIB);
    assert_in_range(now.others_bytes, 32 * KIB, 64 * KIB);
    assert_in_range(now.own_bytes, 48 * KIB, 64 * KIB);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    pair_end(&t);
}

static void switched_off_it_waits_for_the_operator(void **state)
{
    struct pair t = pair_make(
        (struct sim_node_config){.dram = 128 * KIB, .lend = 128 * KIB, .no_claims = true, .ssd = 4096 * KIB}, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.lender, 7);
    uint64_t lent = stats_of(t.lender).others_bytes;
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    sim_cluster_settle(t.c, 20 * KVF_SEC);
    assert_int_equal(COUNTED(t.lender, lend_claims), 0);
    assert_int_equal(stats_of(t.lender).others_bytes, lent);
    assert_int_equal(stats_of(t.lender).own_bytes, 0);
    /* What the operator calls back does not lie idle either. */
    assert_int_equal(kvf_reclaim_start(t.lender->core, 0, t.c->env.now_ns + 2 * KVF_SEC), KVF_OK);
    sim_cluster_settle(t.c, 2 * KVF_SEC);
    uint64_t below = blocks_in(s, KVF_TIER_SSD);
    assert_int_equal(sim_engine_run(engine, s, 1600, 50), KVF_OK);
    assert_true(stats_of(t.lender).own_bytes > 32 * KIB);
    assert_int_equal(blocks_in(s, KVF_TIER_SSD), below);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    pair_end(&t);
}

/* No SSD and nobody to borrow from: the caller waits until lent memory is there, and no block is dropped. */
static void who_has_nowhere_to_go_waits_for_lent_memory(void **state)
{
    struct pair t = pair_make((struct sim_node_config){.dram = 64 * KIB, .lend = 128 * KIB, .block_max = 64 * KIB}, KVF_WAY_ASK);
    struct store q = {.c = t.c, .n = t.lender};
    assert_int_equal(kvf_queue_create(&t.lender->node, 16, &q.q), KVF_OK);
    for (uint64_t k = 0; k < 24; k++)
        assert_int_equal(put(&q, k, 1, 6000), KVF_OK); /* 192 KiB */
    assert_int_equal(COUNTED(t.lender, evicted_blocks), 0);
    assert_int_equal(COUNTED(t.lender, lent_blocks_revoked), 0);
    for (uint64_t k = 0; k < 24; k++)
        assert_range(&q, k, 1, 6000, 0, 6000);
    for (uint64_t k = 24; k < 40; k++)
        assert_int_equal(put(&q, k, 1, 6000), KVF_OK); /* beyond all there is: the oldest go */
    assert_true(COUNTED(t.lender, evicted_blocks) > 0);
    for (uint64_t k = 0; k < 40; k++)
        op(&q, KVF_OP_REMOVE, k);
    kvf_queue_destroy(q.q);
    pair_end(&t);
}

/* The operator gave borrowers a minute, and they need it: who wants room meanwhile does not wait that long. */
static void nobody_waits_for_what_comes_late(void **state)
{
    struct sim_node_config small = {.dram = 64 * KIB, .lend = 128 * KIB, .block_max = 64 * KIB};
    struct pair t = pair_of(small, KVF_WAY_ASK, 0, 900);
    struct store q = {.c = t.c, .n = t.lender};
    assert_int_equal(kvf_queue_create(&t.lender->node, 16, &q.q), KVF_OK);
    uint64_t start = t.c->env.now_ns;
    assert_int_equal(kvf_reclaim_start(t.lender->core, 0, start + 60 * KVF_SEC), KVF_OK);
    for (uint64_t k = 0; k < 40; k++)
        assert_int_equal(put(&q, k, 1, 6000), KVF_OK);
    assert_true(t.c->env.now_ns - start < 5 * KVF_SEC);
    assert_true(kvf_reclaim_busy(t.lender->core)); /* and they have their minute */
    assert_int_equal(COUNTED(t.lender, lent_blocks_revoked), 0);
    for (uint64_t k = 0; k < 40; k++)
        op(&q, KVF_OP_REMOVE, k);
    kvf_queue_destroy(q.q);
    assert_int_equal(kvf_reclaim_start(t.lender->core, UINT64_MAX, t.c->env.now_ns + KVF_SEC), KVF_OK);
    pair_end(&t);
}

/* A borrower that hears nothing: at lend.reclaim_within its slots are taken, and what it reads there is a miss, never our bytes. */
static void a_borrower_that_is_silent_finds_misses(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++) {
        struct pair t = pair_make((struct sim_node_config){.dram = 128 * KIB, .lend = 128 * KIB, .ssd = 4096 * KIB}, way);
        struct kvf_session *s = session_on(t.lender, 7);
        sim_net_path(t.lender->transport, t.other->transport)->held = true;
        assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
        uint64_t start = t.c->env.now_ns;
        while (stats_of(t.lender).own_bytes < 96 * KIB && t.c->env.now_ns < start + 60 * KVF_SEC) {
            decode(s, 1);
            staging_forget(t.lender);
            sim_cluster_settle(t.c, 100 * KVF_MS);
        }
        assert_true(stats_of(t.lender).own_bytes >= 96 * KIB);
        assert_true(COUNTED(t.lender, lent_blocks_revoked) > 0);
        sim_net_path(t.lender->transport, t.other->transport)->held = false;
        staging_forget(t.other);
        assert_int_equal(sim_engine_run(engine, t.theirs, 1400, 10), KVF_OK); /* refills what it finds lost */
        assert_true(COUNTED(t.other, blocks_lost) > 0);
        assert_same_bits(engine);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        pair_end(&t);
    }
}

/* ---------------------------------------------------------------- and is lent again */

static void what_is_no_longer_needed_is_lent_again(void **state)
{
    struct pair t = pair_make((struct sim_node_config){.dram = 128 * KIB, .lend = 256 * KIB, .ssd = 4096 * KIB}, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.lender, 7);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    struct kvf_reclaim_stats then = stats_of(t.lender);
    assert_true(then.own_bytes > 64 * KIB && then.limit_bytes < 256 * KIB);
    sim_cluster_settle(t.c, 50 * KVF_SEC);
    assert_int_equal(COUNTED(t.lender, lend_returns), 0); /* not yet */
    sim_cluster_settle(t.c, 20 * 60 * KVF_SEC);
    assert_int_equal(stats_of(t.lender).limit_bytes, 256 * KIB);
    assert_int_equal(stats_of(t.lender).claimed_bytes, 0);
    assert_int_equal(stats_of(t.lender).own_bytes, 0); /* own blocks went back to the own part, or down */
    assert_true(blocks_in(s, KVF_TIER_DRAM) * SLOT >= 96 * KIB);
    sim_cluster_check(t.c);
    assert_int_equal(sim_engine_run(engine, t.theirs, 1600, 50), KVF_OK);
    assert_true(stats_of(t.lender).others_bytes >= then.others_bytes + 32 * KIB);
    staging_forget(t.lender);
    decode(s, 3);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    pair_end(&t);
}

/* ... and that ends nobody's time to move what is wanted back for another reason. */
static void what_is_lent_again_takes_nothing_by_force(void **state)
{
    struct kvf_session *s;
    struct pair t = pair_that_claims(&s);
    const struct kvf_claim *claim = &t.lender->core->lend->claim;
    uint64_t window = 10 * KVF_SEC;
    assert_true(stats_of(t.lender).claimed_bytes > 0);
    while (claim->window_ns + window < claim->calm_ns + claim->wait_ns || t.c->env.now_ns + KVF_SEC / 2 < claim->window_ns + window)
        sim_cluster_settle(t.c, KVF_SEC / 4);
    uint64_t lent = stats_of(t.lender).others_bytes, revoked = COUNTED(t.lender, lent_blocks_revoked);
    assert_true(lent > 0 && COUNTED(t.lender, lend_returns) == 0);
    sim_net_path(t.lender->transport, t.other->transport)->held = true;
    assert_int_equal(kvf_reclaim_start(t.lender->core, 0, t.c->env.now_ns + 60 * KVF_SEC), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(COUNTED(t.lender, lend_returns), 1);
    assert_int_equal(stats_of(t.lender).others_bytes, lent);
    sim_net_path(t.lender->transport, t.other->transport)->held = false;
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_int_equal(stats_of(t.lender).others_bytes, 0);
    assert_int_equal(COUNTED(t.lender, lent_blocks_revoked), revoked);
    assert_int_equal(COUNTED(t.other, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    pair_end(&t);
}

/* A working set that only just fits: what is given back too early is claimed again, ever more seldom. */
static void it_does_not_flap(void **state)
{
    struct pair t = pair_make((struct sim_node_config){.dram = 128 * KIB, .lend = 128 * KIB, .ssd = 4096 * KIB}, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.lender, 7);
    assert_int_equal(sim_engine_run(engine, s, 640, 50), KVF_OK);
    uint64_t changes[2];
    for (unsigned half = 0; half < 2; half++) {
        uint64_t before = COUNTED(t.lender, lend_claims) + COUNTED(t.lender, lend_returns);
        for (unsigned i = 0; i < 120; i++) { /* half an hour */
            staging_forget(t.lender);
            decode(s, 1);
            sim_cluster_settle(t.c, 15 * KVF_SEC);
        }
        changes[half] = COUNTED(t.lender, lend_claims) + COUNTED(t.lender, lend_returns) - before;
    }
    assert_in_range(changes[0], 2, 30);
    assert_true(changes[1] <= changes[0]);
    assert_int_equal(COUNTED(t.other, blocks_lost), 0);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    pair_end(&t);
}

/* Under a pin a block stays where it is; without it goes to the own part. */
static void a_pinned_block_is_not_moved(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *n = sim_cluster_add(c, &(struct sim_node_config){.name = "n", .dram = 64 * KIB, .lend = 64 * KIB});
    struct store q = {.c = c, .n = n};
    sim_cluster_connect(c);
    assert_int_equal(kvf_queue_create(&n->node, 16, &q.q), KVF_OK);
    assert_int_equal(kvf_reclaim_start(n->core, 0, 0), KVF_OK);
    uint64_t last = 0;
    while (n->core->lent_own_bytes == 0)
        assert_int_equal(put(&q, last++, 1, 6000), KVF_OK);
    const void *pinned;
    uint64_t length;
    assert_int_equal(kvf_block_pin(&n->node, key_at(last - 1), &pinned, &length), KVF_OK);
    for (uint64_t k = 0; k < 4; k++)
        op(&q, KVF_OP_REMOVE, k); /* room in the own part */
    assert_int_equal(kvf_reclaim_start(n->core, UINT64_MAX, 0), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    uint8_t expected[6000];
    bytes_of(last - 1, 1, expected, sizeof expected);
    assert_true(n->core->lent_own_bytes > 0);
    assert_memory_equal(pinned, expected, sizeof expected);
    kvf_block_unpin(&n->node, key_at(last - 1));
    sim_cluster_settle(c, KVF_SEC);
    assert_int_equal(n->core->lent_own_bytes, 0);
    assert_range(&q, last - 1, 1, 6000, 0, 6000);
    sim_cluster_check(c);
    for (uint64_t k = 4; k < last; k++)
        assert_int_equal(op(&q, KVF_OP_REMOVE, k).status, KVF_OK);
    kvf_queue_destroy(q.q);
    assert_true(sim_cluster_empty(n));
    sim_cluster_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(own_blocks_come_before_those_of_others),
        cmocka_unit_test(the_claim_ends_when_own_dram_suffices),
        cmocka_unit_test(others_keep_the_minimum),
        cmocka_unit_test(switched_off_it_waits_for_the_operator),
        cmocka_unit_test(who_has_nowhere_to_go_waits_for_lent_memory),
        cmocka_unit_test(nobody_waits_for_what_comes_late),
        cmocka_unit_test(a_borrower_that_is_silent_finds_misses),
        cmocka_unit_test(what_is_no_longer_needed_is_lent_again),
        cmocka_unit_test(what_is_lent_again_takes_nothing_by_force),
        cmocka_unit_test(it_does_not_flap),
        cmocka_unit_test(a_pinned_block_is_not_moved),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
