/* Lent memory comes back: in time with the borrowers' help, at the deadline without it, and no reader ever gets wrong bytes. */
#include "tests/node/store.h"

#include "node/lend.h"

struct four {
    struct sim_cluster *c;
    struct sim_node *home, *a, *b; /* a and b lend */
};

static struct four four_make(struct sim_node_config home, uint64_t lend_a, uint64_t lend_b, enum kvf_way way)
{
    struct four t = {.c = sim_cluster_create(SEED)};
    home.name = "home";
    home.way = way;
    t.home = sim_cluster_add(t.c, &home);
    t.a = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = lend_a, .way = way});
    t.b = sim_cluster_add(t.c, &(struct sim_node_config){.name = "b", .dram = 64 * KIB, .lend = lend_b, .way = way});
    sim_cluster_connect(t.c);
    return t;
}

static void four_end(struct four *t)
{
    sim_cluster_settle(t->c, 8 * KVF_SEC);
    sim_cluster_check(t->c);
    struct sim_node *nodes[] = {t->home, t->a, t->b};
    for (unsigned i = 0; i < 3; i++)
        if (!nodes[i]->dead)
            assert_true(sim_cluster_empty(nodes[i]));
    sim_cluster_destroy(t->c);
}

static uint64_t others(struct sim_node *lender)
{
    struct kvf_reclaim_stats s;
    kvf_reclaim_stats(lender->core, &s);
    return s.others_bytes;
}

/* Steps until the lender has its memory; the time it took. */
static uint64_t reclaim(struct sim_cluster *c, struct sim_node *lender, uint64_t limit, uint64_t within_ns)
{
    uint64_t start = c->env.now_ns;
    assert_int_equal(kvf_reclaim_start(lender->core, limit, start + within_ns), KVF_OK);
    while (kvf_reclaim_busy(lender->core) && c->env.now_ns < start + 2 * within_ns + KVF_SEC)
        sim_cluster_step(c);
    assert_false(kvf_reclaim_busy(lender->core));
    assert_true(others(lender) <= limit);
    sim_cluster_check(c);
    return c->env.now_ns - start;
}

/* ---------------------------------------------------------------- in time */

static void what_a_lender_wants_back_goes_to_the_ssd(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++) {
        struct four t = four_make((struct sim_node_config){.dram = 128 * KIB, .ssd = 4096 * KIB}, 256 * KIB, 0, way);
        struct kvf_session *s = session_on(t.home, 7);
        assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
        sim_cluster_settle(t.c, KVF_SEC);
        uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
        assert_true(there > 20);
        assert_int_equal(blocks_in(s, KVF_TIER_SSD), 0);
        assert_true(reclaim(t.c, t.a, 0, 2 * KVF_SEC) < 1800 * KVF_MS);
        assert_int_equal(COUNTED(t.a, lent_blocks_returned), there);
        assert_int_equal(COUNTED(t.a, lent_blocks_revoked), 0);
        assert_int_equal(COUNTED(t.home, blocks_lost), 0);
        assert_int_equal(blocks_in(s, KVF_TIER_REMOTE), 0);
        assert_true(blocks_in(s, KVF_TIER_SSD) >= there - 4);
        staging_forget(t.home);
        assert_int_equal(sim_engine_run(engine, s, 1500, 20), KVF_OK);
        assert_same_bits(engine);
        assert_int_equal(kvf_lend_blocks(t.a->core), 0); /* nothing is lent again */
        assert_int_equal(atomic_load(&t.a->core->latencies.of[KVF_LATENCY_RECLAIM].count), 1);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        four_end(&t);
    }
}

static void what_a_lender_wants_back_goes_to_another_lender(void **state)
{
    struct four t = four_make((struct sim_node_config){.dram = 128 * KIB}, 64 * KIB, 512 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    uint64_t at_a = kvf_lend_blocks(t.a->core), at_b = kvf_lend_blocks(t.b->core);
    assert_true(at_a > 8);
    reclaim(t.c, t.a, 0, 2 * KVF_SEC);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_true(kvf_lend_blocks(t.b->core) >= at_b + at_a - 4);
    staging_forget(t.home);
    assert_int_equal(sim_engine_run(engine, s, 1350, 20), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    four_end(&t);
}

static void what_a_lender_wants_back_comes_home_where_there_is_room(void **state)
{
    struct four t = four_make((struct sim_node_config){.dram = 256 * KIB}, 512 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *big = session_on(t.home, 8), *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 700, 50), KVF_OK);
    assert_int_equal(sim_engine_run(engine, big, 1300, 50), KVF_OK);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
    assert_true(there > 10);
    assert_int_equal(kvf_session_drop(big), KVF_OK);
    reclaim(t.c, t.a, 0, 2 * KVF_SEC);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(blocks_in(s, KVF_TIER_REMOTE), 0);
    assert_int_equal(sim_engine_run(engine, s, 750, 20), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    four_end(&t);
}

/* No SSD, no other lender, DRAM full: the engine is told what to compute again, before the deadline. */
static void what_has_no_other_place_is_listed_as_lost(void **state)
{
    struct four t = four_make((struct sim_node_config){.dram = 128 * KIB}, 256 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    size_t count;
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
    assert_true(reclaim(t.c, t.a, 0, 2 * KVF_SEC) < 2 * KVF_SEC);
    assert_int_equal(COUNTED(t.a, lent_blocks_revoked), 0);
    assert_int_equal(COUNTED(t.a, lent_blocks_returned), there);
    assert_true(COUNTED(t.home, borrowed_blocks_dropped) > 0);
    assert_int_equal(COUNTED(t.home, blocks_lost), COUNTED(t.home, borrowed_blocks_dropped));
    assert_int_equal(kvf_session_lost(s, NULL, 0, &count), KVF_OK);
    staging_forget(t.home);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_LOST);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    engine->compared = 0;
    four_end(&t);
}

static void some_of_it_is_asked_of_those_who_have_most(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *a = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = 512 * KIB});
    struct sim_node *big = sim_cluster_add(c, &(struct sim_node_config){.name = "big", .dram = 64 * KIB, .ssd = 4096 * KIB});
    struct sim_node *small = sim_cluster_add(c, &(struct sim_node_config){.name = "small", .dram = 64 * KIB, .ssd = 4096 * KIB});
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(big, 7), *o = session_on(small, 8);
    assert_int_equal(sim_engine_run(engine, o, 400, 50), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    uint64_t of_big = sim_cluster_peer(a, big)->lent_bytes, of_small = sim_cluster_peer(a, small)->lent_bytes;
    assert_true(of_small > 0 && of_big > 3 * of_small);
    reclaim(c, a, 2 * of_small + SLOT, 2 * KVF_SEC);
    assert_int_equal(sim_cluster_peer(a, small)->lent_bytes, of_small);
    assert_in_range(sim_cluster_peer(a, big)->lent_bytes, of_small / 2, of_small + SLOT);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(o), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    /* What was lowered is raised again. */
    assert_int_equal(kvf_reclaim_start(a->core, UINT64_MAX, 0), KVF_OK);
    sim_cluster_settle(c, 6 * KVF_SEC); /* until it is asked again */
    s = session_on(big, 9);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    assert_true(others(a) > 2 * of_small + SLOT);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_destroy(c);
}

static void opaque_blocks_move_on_too(void **state)
{
    struct store t = store_make(128 * KIB, 256 * KIB, 2048 * KIB, 16);
    for (uint64_t k = 0; k < 40; k++)
        assert_int_equal(put(&t, k, 1, 6000), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(kvf_lend_blocks(t.lender->core) > 10);
    reclaim(t.c, t.lender, 0, 2 * KVF_SEC);
    assert_int_equal(COUNTED(t.lender, lent_blocks_revoked), 0);
    assert_int_equal(COUNTED(t.n, borrowed_blocks_dropped), 0);
    for (uint64_t k = 0; k < 40; k++) {
        assert_range(&t, k, 1, 6000, 0, 6000);
        assert_int_equal(op(&t, KVF_OP_REMOVE, k).status, KVF_OK);
    }
    store_end(&t);
}

/* ---------------------------------------------------------------- by force */

/* A borrower that does not answer: its slots are the lender's at the deadline, and another borrower's soon after. Whatever the
 * first one reads, puts, commits or releases there later is refused or does not match. */
static void forced(enum kvf_way way, bool told)
{
    struct four t = four_make((struct sim_node_config){.dram = 128 * KIB, .ssd = 4096 * KIB}, 128 * KIB, 0, way);
    struct sim_node *o = sim_cluster_add(t.c, &(struct sim_node_config){.name = "o", .dram = 64 * KIB, .ssd = 4096 * KIB});
    sim_cluster_connect(t.c);
    struct kvf_session *s = session_on(t.home, 7), *other = session_on(o, 8);
    assert_int_equal(sim_engine_run(engine, s, 800, 50), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE);
    assert_true(there > 8);
    struct sim_path *in = sim_net_path(t.a->transport, t.home->transport);
    in->held = true; /* it hears nothing */
    uint64_t took = reclaim(t.c, t.a, 0, 500 * KVF_MS);
    assert_in_range(took, 500 * KVF_MS, 530 * KVF_MS);
    assert_int_equal(COUNTED(t.a, lent_blocks_revoked), there);
    assert_int_equal(kvf_reclaim_start(t.a->core, 128 * KIB, 0), KVF_OK);
    assert_int_equal(sim_engine_run(engine, other, 900, 50), KVF_OK); /* into the same slots */
    assert_true(sim_cluster_peer(t.a, o)->lent_blocks > there / 2);
    if (!told)
        in->drop = 1000; /* the word that they were taken is lost */
    in->held = false;
    while (in->drop && sim_net_next(t.c->net) != UINT64_MAX && in->drop > 900)
        sim_cluster_step(t.c);
    in->drop = 0;
    staging_forget(t.home);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_LOST);
    assert_int_equal(sim_engine_run(engine, s, 900, 10), KVF_OK); /* refills what is found */
    assert_true(COUNTED(t.home, blocks_lost) >= there);
    staging_forget(o);
    assert_int_equal(sim_engine_run(engine, other, 1000, 10), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(o, blocks_lost), 0); /* late releases of the first one took nothing of the second */
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    four_end(&t);
}

static void at_the_deadline_it_is_taken_by_force(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++)
        forced(way, true);
}

static void whoever_did_not_hear_of_it_finds_other_bytes(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++)
        forced(way, false);
}

static uint16_t said; /* types of the last answers */

static void on_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    enum kvf_status *out = arg;
    *out = status;
    if (status == KVF_OK && bytes == 3)
        said = ((const uint8_t *)payload)[2];
}

static enum kvf_status call(struct four *t, uint16_t type, const struct kvf_writer *w, const uint8_t *payload)
{
    enum kvf_status st = KVF_IN_PROGRESS;
    struct iovec part = {.iov_base = (void *)(uintptr_t)payload, .iov_len = kvf_writer_used(w)};
    assert_int_equal(kvf_fabric_call(sim_cluster_peer(t->home, t->a)->peer, type, &part, 1, t->c->env.now_ns + KVF_SEC, on_reply,
                                     &st),
                     KVF_OK);
    while (st == KVF_IN_PROGRESS)
        sim_cluster_step(t->c);
    return st;
}

static void late_words_about_a_revoked_slot_are_refused(void **state)
{
    struct four t = four_make((struct sim_node_config){.dram = 128 * KIB}, 64 * KIB, 0, KVF_WAY_ASK);
    struct kvf_key key = kvf_block_key(99, 0, 0, 0);
    uint8_t payload[8192];
    for (unsigned round = 0; round < 2; round++) { /* of a slot that was reserved, and of one that was whole */
        struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
        kvf_wire_reserve(&w, &(struct kvf_reserve_item){.key = key, .bytes = SLOT}, 1);
        assert_int_equal(call(&t, KVF_MSG_RESERVE, &w, payload), KVF_OK);
        struct kvf_commit_item item = {.key = key, .seed = 5, .offset = t.a->core->lent_at, .bytes = SLOT, .chunk_bytes = SLOT,
                                       .chunks = 1};
        kvf_block_sum(t.a->core->dev, 5, t.a->core->memory + item.offset, SLOT, SLOT, 1, item.sums);
        w = kvf_writer_of(payload, sizeof payload);
        kvf_wire_commit(&w, &item);
        if (round == 1) {
            assert_int_equal(call(&t, KVF_MSG_COMMIT, &w, payload), KVF_OK);
            assert_int_equal(said, 0);
            sim_net_path(t.a->transport, t.home->transport)->held = true;
        }
        reclaim(t.c, t.a, 0, 300 * KVF_MS);
        sim_net_path(t.a->transport, t.home->transport)->held = false;
        assert_int_equal(kvf_lend_blocks(t.a->core), 0);
        assert_int_equal(call(&t, KVF_MSG_COMMIT, &w, payload), KVF_OK);
        assert_int_equal(said, 1);
        w = kvf_writer_of(payload, sizeof payload);
        kvf_wire_put(&w, &(struct kvf_put_item){.key = key, .bytes = 16}, 1);
        kvf_write_bytes(&w, "0123456789abcdef", 16);
        assert_int_equal(call(&t, KVF_MSG_PUT, &w, payload), KVF_ERR_INVALID);
        w = kvf_writer_of(payload, sizeof payload);
        kvf_wire_keys(&w, &key, 1);
        assert_int_equal(call(&t, KVF_MSG_RELEASE, &w, payload), KVF_OK);
        assert_int_equal(kvf_lend_blocks(t.a->core), 0);
        assert_int_equal(kvf_reclaim_start(t.a->core, 64 * KIB, 0), KVF_OK);
    }
    four_end(&t);
}

/* A COMMIT may name a slot as often as it likes: the lender hashes what lies there once. */
static void a_block_that_does_not_match_is_looked_at_once(void **state)
{
    struct four t = four_make((struct sim_node_config){.dram = 128 * KIB}, 64 * KIB, 0, KVF_WAY_ASK);
    struct kvf_key key = kvf_block_key(99, 0, 0, 0);
    uint8_t payload[8192];
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_reserve(&w, &(struct kvf_reserve_item){.key = key, .bytes = SLOT}, 1);
    assert_int_equal(call(&t, KVF_MSG_RESERVE, &w, payload), KVF_OK);
    struct kvf_commit_item item = {.key = key, .seed = 5, .offset = t.a->core->lent_at, .bytes = SLOT, .chunk_bytes = SLOT,
                                   .chunks = 1, .sums = {1}};
    w = kvf_writer_of(payload, sizeof payload);
    for (unsigned i = 0; i < 64; i++)
        kvf_wire_commit(&w, &item);
    assert_false(w.bad);
    assert_int_equal(call(&t, KVF_MSG_COMMIT, &w, payload), KVF_OK);
    assert_int_equal(COUNTED(t.a, blocks_corrupt), 1);
    assert_int_equal(COUNTED(t.a, lent_blocks_put), 0);
    assert_int_equal(kvf_lend_blocks(t.a->core), 0);
    four_end(&t);
}

/* ---------------------------------------------------------------- in the middle of everything */

/* A reclaim that begins after any frame of a spill: each block is in one place, and the lender has nothing at the deadline. */
static void a_reclaim_during_a_spill(void **state)
{
    for (unsigned at = 0; at < 36; at += 2) {
        struct four t = four_make((struct sim_node_config){.dram = 128 * KIB, .ssd = 4096 * KIB}, 64 * KIB, 0, KVF_WAY_ASK);
        struct kvf_session *s = session_on(t.home, 7);
        assert_int_equal(sim_engine_run(engine, s, 440, 40), KVF_OK);
        t.c->single = true;
        uint64_t until = t.c->delivered + at;
        assert_int_equal(sim_engine_run(engine, s, 520, 20), KVF_OK); /* spilling begins */
        while (t.c->delivered < until)
            sim_cluster_step(t.c);
        t.c->single = false;
        assert_true(reclaim(t.c, t.a, 0, KVF_SEC) <= 1010 * KVF_MS);
        sim_cluster_settle(t.c, KVF_SEC);
        assert_int_equal(kvf_lend_blocks(t.a->core), 0);
        assert_int_equal(sim_cluster_peer(t.home, t.a)->borrowed_blocks, 0);
        staging_forget(t.home);
        assert_int_equal(sim_engine_run(engine, s, 700, 50), KVF_OK);
        assert_int_equal(COUNTED(t.home, blocks_lost), 0);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        four_end(&t);
    }
    assert_same_bits(engine);
}

/* The lender has verified blocks, and its answer is on the wire: there it stays. */
static void hold_the_answer(struct sim_cluster *c, void *arg)
{
    struct four *t = arg;
    sim_net_path(t->a->transport, t->home->transport)->held |= COUNTED(t->a, lent_blocks_put) > 0;
}

/* What was committed and taken by force before the answer arrived stays in DRAM: it is not lost. */
static void a_commit_that_is_revoked_before_its_answer(void **state)
{
    struct four t = four_make((struct sim_node_config){.dram = 128 * KIB, .ssd = 4096 * KIB}, 64 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 440, 40), KVF_OK);
    t.c->single = true;
    t.c->stepped = hold_the_answer;
    t.c->stepped_arg = &t;
    assert_int_equal(sim_engine_run(engine, s, 500, 20), KVF_OK); /* spilling begins */
    for (unsigned i = 0; i < 1000 && COUNTED(t.a, lent_blocks_put) == 0; i++)
        sim_cluster_step(t.c);
    assert_int_equal(sim_cluster_peer(t.home, t.a)->borrowed_blocks, 0);
    reclaim(t.c, t.a, 0, 300 * KVF_MS);
    assert_true(COUNTED(t.a, lent_blocks_revoked) > 0);
    memset(t.a->core->memory + t.a->core->lent_at, 0xee, 64 * KIB); /* the lender's own again */
    t.c->single = false;
    t.c->stepped = NULL;
    sim_net_path(t.a->transport, t.home->transport)->held = false;
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(sim_cluster_peer(t.home, t.a)->borrowed_blocks, 0);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(sim_engine_run(engine, s, 700, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    four_end(&t);
}

/* While a session moves its blocks stay at the lender until it has arrived; then its new home moves them. */
static void a_reclaim_during_a_move(void **state)
{
    for (unsigned at = 0; at < 56; at += 7) {
        struct four t = four_make((struct sim_node_config){.dram = 128 * KIB, .ssd = 4096 * KIB}, 256 * KIB, 0, KVF_WAY_ASK);
        struct sim_node *to = sim_cluster_add(t.c, &(struct sim_node_config){.name = "to", .dram = 128 * KIB, .ssd = 4096 * KIB});
        sim_cluster_connect(t.c);
        struct kvf_session *s = session_on(t.home, 7);
        assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
        struct kvf_move_outcome outcome;
        assert_int_equal(kvf_move_start(t.home->core, s->sess, "to", t.c->env.now_ns + 10 * KVF_SEC, &outcome), KVF_OK);
        t.c->single = true;
        for (uint64_t until = t.c->delivered + at; t.c->delivered < until && !outcome.done;)
            sim_cluster_step(t.c);
        t.c->single = false;
        assert_true(reclaim(t.c, t.a, 0, 3 * KVF_SEC) <= 3010 * KVF_MS);
        while (!outcome.done)
            sim_cluster_step(t.c);
        assert_int_equal(outcome.status, KVF_OK);
        kvf_session_close(s);
        assert_int_equal(kvf_session_attach(&to->node, sim_engine_model(engine, to), 7, 10 * KVF_SEC, &s), KVF_OK);
        sim_cluster_settle(t.c, 6 * KVF_SEC);
        assert_int_equal(kvf_lend_blocks(t.a->core), 0);
        assert_int_equal(sim_engine_run(engine, s, 1100, 20), KVF_OK);
        sim_cluster_check(t.c);
        assert_int_equal(COUNTED(to, blocks_lost), 0);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        four_end(&t);
    }
    assert_same_bits(engine);
}

/* Somebody dies after any frame of a reclaim. */
static void a_death_during_a_reclaim(void **state)
{
    for (unsigned at = 0; at < 60; at += 3) {
        bool lender_dies = at % 2 != 0;
        struct four t = four_make((struct sim_node_config){.dram = 128 * KIB, .ssd = 4096 * KIB}, 128 * KIB, 0, KVF_WAY_ASK);
        struct kvf_session *s = session_on(t.home, 7);
        assert_int_equal(sim_engine_run(engine, s, 900, 50), KVF_OK);
        assert_int_equal(kvf_reclaim_start(t.a->core, 0, t.c->env.now_ns + KVF_SEC), KVF_OK);
        t.c->single = true;
        for (uint64_t until = t.c->delivered + at; t.c->delivered < until && kvf_reclaim_busy(t.a->core);)
            sim_cluster_step(t.c);
        t.c->single = false;
        if (!lender_dies)
            kvf_session_close(s);
        sim_cluster_kill(lender_dies ? t.a : t.home, at % 4 < 2);
        sim_cluster_settle(t.c, 9 * KVF_SEC);
        if (lender_dies) {
            assert_int_equal(sim_engine_run(engine, s, 1000, 20), KVF_OK); /* refills what was lost */
            assert_int_equal(kvf_session_drop(s), KVF_OK);
        } else {
            assert_false(kvf_reclaim_busy(t.a->core));
            assert_int_equal(kvf_lend_blocks(t.a->core), 0);
        }
        four_end(&t);
    }
    assert_same_bits(engine);
}

/* ---------------------------------------------------------------- dead borrowers */

static void a_dead_borrowers_blocks_are_kept_for_a_while(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *home = sim_cluster_add(c, &(struct sim_node_config){.name = "home", .dram = 128 * KIB});
    struct sim_node *a = sim_cluster_add(
        c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = 128 * KIB, .keep_dead_ns = 30 * KVF_SEC});
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(home, 7);
    assert_int_equal(sim_engine_run(engine, s, 800, 50), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    uint64_t there = kvf_lend_blocks(a->core);
    assert_true(there > 8);
    kvf_session_close(s);
    sim_cluster_kill(home, false);
    sim_cluster_settle(c, 20 * KVF_SEC);
    struct kvf_reclaim_stats stats;
    kvf_reclaim_stats(a->core, &stats);
    assert_int_equal(kvf_lend_blocks(a->core), there);
    assert_int_equal(stats.dead_bytes, there * SLOT);
    sim_cluster_settle(c, 20 * KVF_SEC);
    assert_int_equal(kvf_lend_blocks(a->core), 0);
    assert_int_equal(COUNTED(a, lent_blocks_expired), there);
    assert_true(sim_cluster_empty(a));
    assert_same_bits(engine);
    sim_cluster_destroy(c);
}

/* Room that the living want, or the lender itself, is made of what the dead left. */
static void the_living_come_before_the_dead(void **state)
{
    for (unsigned own = 0; own < 2; own++) {
        struct sim_cluster *c = sim_cluster_create(SEED);
        struct sim_node *home = sim_cluster_add(c, &(struct sim_node_config){.name = "home", .dram = 128 * KIB});
        struct sim_node *a = sim_cluster_add(
            c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = 64 * KIB, .keep_dead_ns = 300 * KVF_SEC});
        struct sim_node *o = sim_cluster_add(c, &(struct sim_node_config){.name = "o", .dram = 64 * KIB, .ssd = 4096 * KIB});
        sim_cluster_connect(c);
        struct kvf_session *s = session_on(home, 7);
        assert_int_equal(sim_engine_run(engine, s, 700, 50), KVF_OK);
        sim_cluster_settle(c, KVF_SEC);
        uint64_t there = kvf_lend_blocks(a->core);
        assert_true(there > 8);
        kvf_session_close(s);
        sim_cluster_kill(home, true);
        sim_cluster_settle(c, 10 * KVF_SEC);
        assert_int_equal(kvf_lend_blocks(a->core), there);
        if (own) {
            assert_true(reclaim(c, a, 0, KVF_SEC) < 100 * KVF_MS); /* nobody need be asked */
        } else {
            s = session_on(o, 8);
            assert_int_equal(sim_engine_run(engine, s, 900, 50), KVF_OK);
            assert_true(sim_cluster_peer(a, o)->lent_blocks >= 14);
            assert_int_equal(kvf_session_drop(s), KVF_OK);
        }
        assert_true(COUNTED(a, lent_blocks_expired) > 6);
        sim_cluster_check(c);
        sim_cluster_destroy(c);
    }
    assert_same_bits(engine);
}

static enum kvf_status adopt(struct sim_cluster *c, struct sim_node *from, struct sim_node *lender, uint64_t session,
                             uint64_t epoch)
{
    enum kvf_status st = KVF_IN_PROGRESS;
    uint8_t payload[16];
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_write_u64(&w, session);
    kvf_write_u64(&w, epoch);
    struct iovec part = {.iov_base = payload, .iov_len = sizeof payload};
    assert_int_equal(kvf_fabric_call(sim_cluster_peer(from, lender)->peer, KVF_MSG_ADOPT, &part, 1, c->env.now_ns + KVF_SEC,
                                     on_reply, &st),
                     KVF_OK);
    while (st == KVF_IN_PROGRESS)
        sim_cluster_step(c);
    return st;
}

static void moved(void *arg, enum kvf_status status, const struct kvf_placement *placement)
{
    *(enum kvf_status *)arg = status;
}

/* Whoever etcd makes the home of a dead node's session finds its blocks at the lenders, and nobody else does. */
static void only_the_home_that_etcd_names_adopts(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *home = sim_cluster_add(c, &(struct sim_node_config){.name = "home", .dram = 128 * KIB});
    struct sim_node *a = sim_cluster_add(
        c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = 256 * KIB, .keep_dead_ns = 300 * KVF_SEC});
    struct sim_node *o = sim_cluster_add(c, &(struct sim_node_config){.name = "o", .dram = 64 * KIB});
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(home, 7);
    assert_int_equal(sim_engine_run(engine, s, 800, 50), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    uint64_t there = kvf_lend_blocks(a->core);
    assert_true(there > 8);
    assert_int_equal(adopt(c, o, a, 7, 1), KVF_ERR_STALE); /* another's */
    kvf_session_close(s);
    sim_cluster_kill(home, true);
    sim_cluster_settle(c, 10 * KVF_SEC);
    assert_int_equal(adopt(c, o, a, 7, 1), KVF_ERR_STALE);
    assert_int_equal(adopt(c, o, a, 7, 2), KVF_ERR_BUSY); /* etcd has not said so (yet) */
    assert_int_equal(adopt(c, o, a, 8, 1), KVF_ERR_BUSY);
    enum kvf_status st = KVF_IN_PROGRESS;
    assert_int_equal(kvf_coord_session_move(o->core->coord, 7, "home", 1, "o", 800, moved, &st), KVF_OK);
    while (st == KVF_IN_PROGRESS)
        sim_cluster_step(c);
    assert_int_equal(st, KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    assert_int_equal(adopt(c, o, a, 7, 1), KVF_ERR_STALE); /* an old epoch */
    assert_int_equal(sim_cluster_peer(a, o)->lent_blocks, 0);
    assert_int_equal(adopt(c, o, a, 7, 2), KVF_OK);
    assert_int_equal(sim_cluster_peer(a, o)->lent_blocks, there);
    struct kvf_reclaim_stats stats;
    kvf_reclaim_stats(a->core, &stats);
    assert_int_equal(stats.dead_bytes, 0);
    assert_int_equal(stats.others_bytes, there * SLOT);
    assert_same_bits(engine);
    sim_cluster_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_lender_wants_back_goes_to_the_ssd),
        cmocka_unit_test(what_a_lender_wants_back_goes_to_another_lender),
        cmocka_unit_test(what_a_lender_wants_back_comes_home_where_there_is_room),
        cmocka_unit_test(what_has_no_other_place_is_listed_as_lost),
        cmocka_unit_test(some_of_it_is_asked_of_those_who_have_most),
        cmocka_unit_test(opaque_blocks_move_on_too),
        cmocka_unit_test(at_the_deadline_it_is_taken_by_force),
        cmocka_unit_test(whoever_did_not_hear_of_it_finds_other_bytes),
        cmocka_unit_test(late_words_about_a_revoked_slot_are_refused),
        cmocka_unit_test(a_block_that_does_not_match_is_looked_at_once),
        cmocka_unit_test(a_reclaim_during_a_spill),
        cmocka_unit_test(a_commit_that_is_revoked_before_its_answer),
        cmocka_unit_test(a_reclaim_during_a_move),
        cmocka_unit_test(a_death_during_a_reclaim),
        cmocka_unit_test(a_dead_borrowers_blocks_are_kept_for_a_while),
        cmocka_unit_test(only_the_home_that_etcd_names_adopts),
        cmocka_unit_test(the_living_come_before_the_dead),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
