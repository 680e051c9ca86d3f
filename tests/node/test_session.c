/* Sessions on simulated nodes: whatever tier a block lies in, attention gives the bits that plain memory gives. */
#include "tests/node/world.h"

/* A home with little DRAM, a lender and an SSD. */
struct trio {
    struct sim_cluster *c;
    struct sim_node *home, *lender;
};

static struct trio trio_make(uint64_t dram, uint64_t lend, uint64_t ssd, enum kvf_way way)
{
    struct trio t = {.c = sim_cluster_create(SEED)};
    t.home = sim_cluster_add(t.c, &(struct sim_node_config){.name = "home", .dram = dram, .ssd = ssd, .way = way});
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB, .lend = lend, .way = way});
    sim_cluster_connect(t.c);
    return t;
}

static void trio_end(struct trio *t)
{
    sim_cluster_settle(t->c, 3 * KVF_SEC);
    sim_cluster_check(t->c);
    assert_true(sim_cluster_empty(t->home));
    assert_true(sim_cluster_empty(t->lender));
    sim_cluster_destroy(t->c);
}

/* ---------------------------------------------------------------- bits */

static void steps_of(uint32_t n, uint64_t tokens, enum kvf_way way)
{
    struct trio t = trio_make(128 * KIB, 64 * KIB, 4096 * KIB, way);
    struct kvf_session *s = session_on(t.home, 7);
    for (uint64_t to = 0; to < tokens;) {
        to = to + 256 < tokens ? to + 256 : tokens;
        assert_int_equal(sim_engine_run(engine, s, to, n), KVF_OK);
        sim_cluster_check(t.c);
    }
    assert_same_bits(engine);
    assert_int_equal(tokens_of(s), tokens);
    assert_true(blocks_in(s, KVF_TIER_REMOTE) > 0);
    assert_true(blocks_in(s, KVF_TIER_SSD) > 0);
    assert_true(blocks_in(s, KVF_TIER_DRAM) > 0);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(COUNTED(t.home, blocks_corrupt), 0);
    assert_true(COUNTED(t.home, blocks_verified) > 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void steps_of_one_token_have_the_bits_of_plain_memory(void **state) { steps_of(1, 1100, KVF_WAY_ASK); }
static void steps_of_seven_tokens_have_the_bits_of_plain_memory(void **state) { steps_of(7, 1300, KVF_WAY_GET); }
static void steps_of_a_block_have_the_bits_of_plain_memory(void **state) { steps_of(64, 1600, KVF_WAY_MAPPED); }
static void steps_of_256_tokens_have_the_bits_of_plain_memory(void **state) { steps_of(256, 1600, KVF_WAY_ASK); }

static void larger_blocks_of_fp32_have_the_bits_of_plain_memory(void **state)
{
    struct sim_engine *e = sim_engine_create(SEED + 1, 32, KVF_F32, 16, 64, 700); /* 16 KiB in chunks of 4 KiB */
    struct trio t = trio_make(384 * KIB, 128 * KIB, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s;
    assert_int_equal(kvf_session_create(&t.home->node, sim_engine_model(e, t.home), 7, &s), KVF_OK);
    assert_int_equal(sim_engine_run(e, s, 700, 33), KVF_OK);
    assert_same_bits(e);
    assert_true(blocks_in(s, KVF_TIER_REMOTE) > 0 && blocks_in(s, KVF_TIER_SSD) > 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
    sim_engine_destroy(e);
}

static void several_sessions_share_a_node(void **state)
{
    struct trio t = trio_make(192 * KIB, 64 * KIB, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s[3];
    for (unsigned i = 0; i < 3; i++)
        s[i] = session_on(t.home, 10 + i);
    for (unsigned round = 1; round <= 6; round++) {
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(sim_engine_run(engine, s[i], round * 90 + i * 5, 13), KVF_OK);
        sim_cluster_check(t.c);
    }
    assert_same_bits(engine);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(kvf_session_drop(s[i]), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- steps */

static void an_aborted_step_leaves_no_trace(void **state)
{
    struct trio t = trio_make(256 * KIB, 64 * KIB, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 70, 35), KVF_OK);
    uint64_t used = kvf_arena_used(t.home->core->dram);
    for (uint32_t n = 1; n <= 256; n += 51) {
        assert_int_equal(sim_engine_step_open(engine, s, n), KVF_OK);
        assert_int_equal(kvf_step_begin(s, &(int32_t){1}, 1), KVF_ERR_STATE);
        kvf_step_abort(s);
        assert_int_equal(tokens_of(s), 70);
        assert_int_equal(kvf_arena_used(t.home->core->dram), used);
        sim_cluster_check(t.c);
    }
    kvf_step_abort(s);
    assert_int_equal(kvf_step_commit(s), KVF_ERR_STATE);
    assert_int_equal(sim_engine_run(engine, s, 400, 64), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_step_out_of_order_is_refused(void **state)
{
    struct trio t = trio_make(256 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    int32_t tokens[300] = {0};
    float rows[2 * 64] = {0}, out[4 * 16];
    assert_int_equal(kvf_step_append(s, 0, rows, rows), KVF_ERR_STATE);
    assert_int_equal(kvf_step_begin(s, tokens, 0), KVF_ERR_INVALID);
    assert_int_equal(kvf_step_begin(s, tokens, 257), KVF_ERR_INVALID);
    assert_int_equal(kvf_step_refill(s, 0, 64), KVF_ERR_INVALID);
    assert_int_equal(kvf_step_begin(s, tokens, 1), KVF_OK);
    assert_int_equal(kvf_step_attend(s, 0, rows, out, NULL), KVF_ERR_STATE);
    assert_int_equal(kvf_step_append(s, 2, rows, rows), KVF_ERR_INVALID);
    assert_int_equal(kvf_step_append(s, 0, rows, rows), KVF_OK);
    assert_int_equal(kvf_step_append(s, 0, rows, rows), KVF_ERR_STATE);
    assert_int_equal(kvf_step_commit(s), KVF_ERR_STATE); /* layer 1 is lacking */
    assert_int_equal(kvf_step_attend(s, 0, rows, out, &(struct kvf_attend_options){.budget = 2}), KVF_ERR_INVALID);
    assert_int_equal(kvf_step_attend(s, 0, rows, out, NULL), KVF_OK);
    struct kvf_session *fork;
    assert_int_equal(kvf_session_fork(s, 8, &fork), KVF_ERR_STATE);
    assert_int_equal(kvf_session_park(s, KVF_SEC), KVF_ERR_STATE);
    kvf_session_close(s); /* aborts the step */
    assert_int_equal(kvf_arena_used(t.home->core->dram), 0);
    assert_int_equal(kvf_session_attach(&t.home->node, sim_engine_model(engine, t.home), 7, 0, &s), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- full */

static void full_everywhere_is_said_and_nothing_is_lost(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *n =
        sim_cluster_add(c, &(struct sim_node_config){.name = "n", .dram = 128 * KIB, .alone = true}); /* 32 slots */
    struct kvf_session *a = session_on(n, 1), *b = session_on(n, 2);
    assert_int_equal(sim_engine_run(engine, a, 128, 64), KVF_OK);
    assert_int_equal(sim_engine_run(engine, b, 1600, 16), KVF_ERR_FULL);
    uint64_t tokens = tokens_of(b);
    assert_int_equal(tokens, 24 / 4 * 64);
    sim_cluster_check(c);
    assert_int_equal(sim_engine_step(engine, b, 1), KVF_ERR_FULL); /* again, and nothing changed */
    assert_int_equal(tokens_of(b), tokens);
    size_t lost;
    struct kvf_range range;
    assert_int_equal(kvf_session_lost(b, &range, 1, &lost), KVF_OK);
    assert_int_equal(lost, 0);
    assert_int_equal(kvf_session_drop(a), KVF_OK); /* makes room for two blocks more */
    assert_int_equal(sim_engine_run(engine, b, tokens + 128, 16), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_park(b, KVF_SEC), KVF_ERR_FULL);
    assert_int_equal(kvf_session_drop(b), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    assert_true(sim_cluster_empty(n));
    sim_cluster_destroy(c);
}

/* Once full of open blocks, a node must not go on saying so when there are sealed ones that could leave. */
static void a_full_moment_passes(void **state)
{
    struct trio t =
        trio_make(64 * KIB, 0, 4096 * KIB, KVF_WAY_ASK); /* 16 slots: a step of 256 tokens beside open blocks needs 20 */
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 10, 10), KVF_OK);
    assert_int_equal(sim_engine_step(engine, s, 256), KVF_ERR_FULL);
    sim_cluster_check(t.c);
    assert_int_equal(sim_engine_run(engine, s, 900, 40), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_park(s, 10 * KVF_SEC), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_full_lender_and_a_full_disk_end_in_full_too(void **state)
{
    struct trio t = trio_make(128 * KIB, 64 * KIB, 2048 * KIB, KVF_WAY_ASK);
    struct kvf_session *s[12];
    unsigned n = 0, full = 0;
    for (; n < 12 && !full; n++) {
        s[n] = session_on(t.home, 100 + n);
        enum kvf_status st = sim_engine_run(engine, s[n], 1600, 64);
        assert_true(st == KVF_OK || st == KVF_ERR_FULL);
        full += st == KVF_ERR_FULL;
        sim_cluster_check(t.c);
    }
    assert_true(full > 0);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s[0]), KVF_OK);
    sim_cluster_settle(t.c, 6 * KVF_SEC);
    assert_int_equal(sim_engine_run(engine, s[n - 1], tokens_of(s[n - 1]) + 64, 16), KVF_OK);
    assert_same_bits(engine);
    for (unsigned i = 1; i < n; i++)
        assert_int_equal(kvf_session_drop(s[i]), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- budget */

static uint64_t chunks_read(struct sim_node *n)
{
    return COUNTED(n, dram_chunks_read) + COUNTED(n, remote_chunks_read) + COUNTED(n, ssd_chunks_read);
}

static void a_budget_reads_fewer_chunks(void **state)
{
    struct trio t = trio_make(1024 * KIB, 0, 0, KVF_WAY_ASK);
    struct kvf_attend_options o = {.budget = 1};
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1536, 256), KVF_OK);
    assert_same_bits(engine);
    engine->options = &o;
    uint64_t before = chunks_read(t.home);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
    assert_same_bits(engine); /* all of it is full attention */
    uint64_t all = chunks_read(t.home) - before;
    assert_int_equal(all, 2 * 2 * 1536 / 8);
    o.budget = 0.1f;
    before = chunks_read(t.home);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
    uint64_t few = chunks_read(t.home) - before;
    /* a tenth, the sink chunk and 64 local tokens, for each of 4 streams; they may overlap */
    assert_in_range(few, 4 * (1536 / 8 / 10), 4 * (1536 / 8 / 10 + 2 + 1 + 9));
    o.local_tokens = 512;
    before = chunks_read(t.home);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
    assert_true(chunks_read(t.home) - before >= 4 * (512 / 8 - 2));
    engine->options = NULL;
    engine->compared = 0;
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_budget_works_over_cold_blocks(void **state)
{
    struct trio t = trio_make(128 * KIB, 64 * KIB, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_attend_options o = {.budget = 0.1f};
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1300, 100), KVF_OK);
    engine->options = &o;
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
        sim_cluster_check(t.c);
    }
    engine->options = NULL;
    assert_int_equal(sim_engine_run(engine, s, 1400, 20), KVF_OK); /* staging holds parts of blocks now */
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

struct watched {
    uint64_t calls, chosen;
    uint32_t chunks;
};

static void watch(const struct kvf_selection *s, void *arg)
{
    struct watched *w = arg;
    float low = 1, total = 0;
    assert_in_range(s->best, 1, s->n_chosen);
    for (uint32_t i = 0; i < s->n_chosen; i++) {
        assert_in_range(s->chosen[i], i ? s->chosen[i - 1] + 1 : 0, s->chunks - 1);
        low = s->scores[s->chosen[i]] < low ? s->scores[s->chosen[i]] : low;
    }
    for (uint32_t c = 0; c < s->chunks; c++)
        total += s->scores[c];
    assert_true(total > 0.99f && low >= 0); /* a softmax of at least one query */
    assert_int_equal(s->layer * 2 + s->head, w->calls % 4);
    w->calls++;
    w->chosen += s->n_chosen;
    w->chunks = s->chunks;
}

static void an_observer_sees_what_was_read(void **state)
{
    struct trio t = trio_make(1024 * KIB, 0, 0, KVF_WAY_ASK);
    struct kvf_attend_options o = {.budget = 0.1f};
    struct kvf_session *s = session_on(t.home, 7);
    struct watched w = {0};
    assert_int_equal(kvf_session_observe(NULL, watch, &w), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_observe(s, watch, &w), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1536, 256), KVF_OK);
    assert_int_equal(w.calls, 0); /* without a budget nothing is selected */
    engine->options = &o;
    uint64_t before = chunks_read(t.home);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
    assert_int_equal(w.calls, 4);
    assert_int_equal(w.chunks, 1536 / 8);
    assert_int_equal(w.chosen, chunks_read(t.home) - before);
    assert_int_equal(kvf_session_observe(s, NULL, NULL), KVF_OK);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
    assert_int_equal(w.calls, 4);
    engine->options = NULL;
    engine->compared = 0;
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- forks */

static void a_fork_and_its_parent_go_on_each_alone(void **state)
{
    struct trio t = trio_make(192 * KIB, 64 * KIB, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7), *f = NULL, *g = NULL;
    assert_int_equal(sim_engine_run(engine, s, 300, 50), KVF_OK);
    assert_int_equal(kvf_session_fork(s, 7, &f), KVF_ERR_EXISTS);
    assert_int_equal(kvf_session_fork(s, 8, &f), KVF_OK);
    sim_cluster_check(t.c);
    assert_int_equal(tokens_of(f), 300);
    assert_int_equal(sim_engine_run(engine, f, 500, 7), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 420, 64), KVF_OK);
    assert_int_equal(kvf_session_fork(f, 9, &g), KVF_OK);
    assert_int_equal(sim_engine_run(engine, g, 700, 100), KVF_OK);
    assert_int_equal(sim_engine_run(engine, f, 600, 100), KVF_OK);
    assert_same_bits(engine);
    sim_cluster_check(t.c);
    assert_int_equal(kvf_session_drop(s), KVF_ERR_BUSY);
    assert_int_equal(kvf_session_drop(f), KVF_ERR_BUSY);
    assert_int_equal(kvf_session_drop(g), KVF_OK);
    assert_int_equal(kvf_session_drop(f), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 450, 5), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_fork_can_be_parked(void **state)
{
    struct trio t = trio_make(1024 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7), *f = NULL;
    assert_int_equal(sim_engine_run(engine, s, 300, 50), KVF_OK);
    assert_int_equal(kvf_session_fork(s, 8, &f), KVF_OK);
    assert_int_equal(sim_engine_run(engine, f, 500, 50), KVF_OK);
    assert_int_equal(kvf_session_park(f, 5 * KVF_SEC), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 4 * 4); /* the parent's stay */
    assert_int_equal(kvf_session_resume(f, 5 * KVF_SEC), KVF_OK);
    assert_int_equal(sim_engine_run(engine, f, 600, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(f), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_node_may_end_with_forks_open(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *n = sim_cluster_add(c, &(struct sim_node_config){.name = "n", .dram = 1024 * KIB, .alone = true});
    struct kvf_session *s[6];
    s[0] = session_on(n, 1);
    assert_int_equal(sim_engine_run(engine, s[0], 100, 50), KVF_OK);
    for (unsigned i = 1; i < 6; i++)
        assert_int_equal(kvf_session_fork(s[i - 1], 1 + i, &s[i]), KVF_OK);
    for (unsigned i = 0; i < 6; i++)
        kvf_session_close(s[i]);
    sim_cluster_destroy(c);
}

/* ---------------------------------------------------------------- park */

static void a_parked_session_leaves_dram_and_comes_back(void **state)
{
    struct trio t = trio_make(1024 * KIB, 64 * KIB, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 15 * 4);
    assert_int_equal(kvf_session_park(s, 10 * KVF_SEC), KVF_OK);
    sim_cluster_check(t.c);
    assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 0);
    assert_int_equal(blocks_in(s, KVF_TIER_REMOTE), 16);
    assert_int_equal(blocks_in(s, KVF_TIER_SSD), 44);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_ERR_STATE);
    assert_int_equal(kvf_session_park(s, KVF_SEC), KVF_OK);
    assert_int_equal(kvf_session_resume(s, 10 * KVF_SEC), KVF_OK);
    sim_cluster_check(t.c);
    assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 15 * 4);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* The node finds that nothing is left to go before the caller, who wakes late, sees that all went: the next time starts afresh. */
/* An operator's order, as soon as the session may be moved. */
static void move_away(struct sim_cluster *c, void *arg)
{
    static struct kvf_move_outcome outcome;
    struct sim_node *home = arg;
    struct kvf_sess *s = kvf_sess_find(home->core, 7);
    if (s && s->state == KVF_SESS_ACTIVE && !s->parked)
        (void)kvf_move_start(home->core, s, "lender", kvf_deadline(kvf_now(home->core->env), 5 * KVF_SEC), &outcome);
}

/* Whoever waits for it to come up finds it gone, and looks at it no more. */
static void a_session_moves_away_while_it_is_resumed(void **state)
{
    struct trio t = {.c = sim_cluster_create(SEED)};
    t.home = sim_cluster_add(t.c, &(struct sim_node_config){.name = "home", .dram = 256 * KIB, .ssd = 4096 * KIB, .up_budget = 1});
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 256 * KIB});
    sim_cluster_connect(t.c);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 300, 50), KVF_OK);
    assert_int_equal(kvf_session_park(s, KVF_SEC), KVF_OK);
    t.c->stepped = move_away;
    t.c->stepped_arg = t.home;
    assert_int_equal(kvf_session_resume(s, 60 * KVF_SEC), KVF_MOVED);
    t.c->stepped = NULL;
    kvf_session_close(s);
    assert_int_equal(kvf_session_attach(&t.lender->node, sim_engine_model(engine, t.lender), 7, KVF_SEC, &s), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 350, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_session_is_parked_again_after_a_late_wake(void **state)
{
    struct trio t = trio_make(256 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 600, 50), KVF_OK);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(kvf_session_park(s, 10 * KVF_SEC), KVF_OK);
        t.home->core->n_parking++;
        s->sess->parking = true;
        for (unsigned turn = 0; turn < 10; turn++)
            sim_cluster_step(t.c);
        s->sess->parking = false;
        t.home->core->n_parking--;
        assert_int_equal(kvf_session_resume(s, 10 * KVF_SEC), KVF_OK);
        assert_true(blocks_in(s, KVF_TIER_DRAM) > 0);
    }
    assert_int_equal(sim_engine_run(engine, s, 650, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_session_that_finds_no_room_to_park_goes_on(void **state)
{
    struct trio t = trio_make(1024 * KIB, 64 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    assert_int_equal(kvf_session_park(s, 10 * KVF_SEC), KVF_ERR_FULL);
    sim_cluster_check(t.c);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- handles */

static void a_session_has_one_home_and_one_handle(void **state)
{
    struct trio t = trio_make(256 * KIB, 64 * KIB, 0, KVF_WAY_ASK);
    struct kvf_model *model = sim_engine_model(engine, t.home), *theirs = sim_engine_model(engine, t.lender), *other;
    struct kvf_model_desc d = engine->desc;
    snprintf(d.name, sizeof d.name, "other");
    assert_int_equal(kvf_model_open(&t.home->node, &d, &other), KVF_OK);
    struct kvf_session *s, *x;
    assert_int_equal(kvf_session_create(&t.home->node, model, 0, &s), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_create(&t.home->node, model, 1ull << 63, &s), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_create(&t.home->node, theirs, 7, &s), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_create(&t.home->node, model, 7, &s), KVF_OK);
    assert_int_equal(kvf_session_create(&t.home->node, model, 7, &x), KVF_ERR_EXISTS);
    assert_int_equal(kvf_session_create(&t.lender->node, theirs, 7, &x), KVF_ERR_EXISTS);
    assert_int_equal(kvf_session_attach(&t.home->node, model, 7, KVF_SEC, &x), KVF_ERR_STATE);
    assert_int_equal(sim_engine_run(engine, s, 100, 50), KVF_OK);
    kvf_session_close(s);
    assert_int_equal(kvf_session_attach(&t.home->node, other, 7, KVF_SEC, &x), KVF_ERR_MODEL);
    assert_int_equal(kvf_session_attach(&t.lender->node, theirs, 7, 0, &x), KVF_ERR_NOT_FOUND);
    assert_int_equal(kvf_session_attach(&t.lender->node, theirs, 7, KVF_SEC, &x), KVF_ERR_DEADLINE);
    assert_int_equal(kvf_session_attach(&t.home->node, model, 7, KVF_SEC, &s), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 200, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_create(&t.lender->node, theirs, 7, &x), KVF_OK); /* the id is free again */
    assert_int_equal(kvf_session_drop(x), KVF_OK);
    sim_cluster_check(t.c);
    trio_end(&t);
}

static void tokens_and_state_are_kept(void **state)
{
    struct trio t = trio_make(256 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    int32_t tokens[200];
    uint8_t blob[KVF_STATE_BYTES_MAX + 1], back[KVF_STATE_BYTES_MAX];
    size_t bytes = 0;
    assert_int_equal(sim_engine_run(engine, s, 200, 33), KVF_OK);
    assert_int_equal(kvf_session_tokens(s, 0, 200, tokens), KVF_OK);
    for (unsigned i = 0; i < 200; i++)
        assert_int_equal(tokens[i], sim_engine_token(engine, i));
    assert_int_equal(kvf_session_tokens(s, 150, 50, tokens), KVF_OK);
    assert_int_equal(tokens[49], sim_engine_token(engine, 199));
    assert_int_equal(kvf_session_tokens(s, 200, 0, NULL), KVF_OK);
    assert_int_equal(kvf_session_tokens(s, 150, 51, tokens), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_tokens(s, UINT64_MAX, 2, tokens), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_state_get(s, NULL, &bytes), KVF_OK);
    assert_int_equal(bytes, 0);
    for (unsigned i = 0; i < sizeof blob; i++)
        blob[i] = (uint8_t)(i * 7);
    assert_int_equal(kvf_session_state_set(s, blob, sizeof blob), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_state_set(s, blob, KVF_STATE_BYTES_MAX), KVF_OK);
    bytes = 5;
    assert_int_equal(kvf_session_state_get(s, back, &bytes), KVF_ERR_INVALID);
    assert_int_equal(bytes, KVF_STATE_BYTES_MAX);
    assert_int_equal(kvf_session_state_get(s, back, &bytes), KVF_OK);
    assert_memory_equal(back, blob, KVF_STATE_BYTES_MAX);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* The blocks of a dropped session may still be on their way down when its id is used again. */
static void an_id_can_be_used_again_at_once(void **state)
{
    struct trio t = trio_make(128 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    sim_disk_slow(t.home->disk, 40);
    for (unsigned round = 0; round < 4; round++) {
        struct kvf_session *s = session_on(t.home, 7);
        assert_int_equal(sim_engine_run(engine, s, 500, 64), KVF_OK);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        sim_cluster_check(t.c);
    }
    assert_same_bits(engine);
    sim_disk_slow(t.home->disk, 0);
    trio_end(&t);
}

/* A block of the earlier session that somebody still reads keeps its place in the index: the next one seals its own after that. */
static void an_id_can_be_used_again_while_its_blocks_are_read(void **state)
{
    struct trio t = trio_make(1024 * KIB, 64 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    kvf_handle h;
    assert_int_equal(sim_engine_run(engine, s, 200, 50), KVF_OK);
    assert_true(kvf_entry_pin(kvf_block_readable(t.home->core, kvf_block_key(7, 1, 0, 1), &h)));
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 300, 50), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 4); /* of 64 tokens in 4 streams; the second of a stream waits */
    kvf_block_let_go(t.home->core, h);
    assert_int_equal(sim_engine_run(engine, s, 301, 1), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 16);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* A session that moved away is gone here while what it left is still being written down; a later one of its id counts only what
 * is copied of its own. */
static void an_id_comes_again_while_what_moved_away_is_written(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *a = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 128 * KIB, .ssd = 4096 * KIB});
    struct sim_node *b = sim_cluster_add(c, &(struct sim_node_config){.name = "b", .dram = 512 * KIB, .up_budget = 1});
    struct kvf_session *s, *filler;
    sim_cluster_connect(c);
    s = session_on(a, 7);
    assert_int_equal(sim_engine_run(engine, s, 400, 50), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    const struct kvf_sess *left = kvf_sess_find(a->core, 7);
    assert_true(left && left->departed_left > 4);
    sim_disk_hold(a->disk, true);
    filler = session_on(a, 8);
    assert_int_equal(sim_engine_run(engine, filler, 400, 16), KVF_ERR_FULL);
    assert_true(left->spilling > 0);
    assert_int_equal(kvf_session_attach(&b->node, sim_engine_model(engine, b), 7, KVF_SEC, &s), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_settle(c, KVF_SEC / 2); /* FREE arrives */
    assert_null(kvf_sess_find(a->core, 7));
    s = session_on(a, 7);
    sim_disk_hold(a->disk, false);
    sim_cluster_settle(c, KVF_SEC);
    sim_cluster_check(c);
    assert_int_equal(s->sess->spilling, 0);
    assert_int_equal(sim_engine_run(engine, s, 100, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(filler), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    assert_true(sim_cluster_empty(a) && sim_cluster_empty(b));
    sim_cluster_destroy(c);
}

static void an_index_that_is_full_delays_sealing_and_then_says_so(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *n =
        sim_cluster_add(c, &(struct sim_node_config){.name = "n", .dram = 1024 * KIB, .blocks_max = 20, .alone = true});
    struct kvf_session *s = session_on(n, 7);
    assert_int_equal(sim_engine_run(engine, s, 1600, 64), KVF_ERR_FULL);
    assert_true(tokens_of(s) >= (5 + 17) * 64);
    assert_same_bits(engine);
    sim_cluster_check(c);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_true(sim_cluster_empty(n));
    sim_cluster_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_of_one_token_have_the_bits_of_plain_memory),
        cmocka_unit_test(steps_of_seven_tokens_have_the_bits_of_plain_memory),
        cmocka_unit_test(steps_of_a_block_have_the_bits_of_plain_memory),
        cmocka_unit_test(steps_of_256_tokens_have_the_bits_of_plain_memory),
        cmocka_unit_test(larger_blocks_of_fp32_have_the_bits_of_plain_memory),
        cmocka_unit_test(several_sessions_share_a_node),
        cmocka_unit_test(an_aborted_step_leaves_no_trace),
        cmocka_unit_test(a_step_out_of_order_is_refused),
        cmocka_unit_test(full_everywhere_is_said_and_nothing_is_lost),
        cmocka_unit_test(a_full_moment_passes),
        cmocka_unit_test(a_full_lender_and_a_full_disk_end_in_full_too),
        cmocka_unit_test(a_budget_reads_fewer_chunks),
        cmocka_unit_test(a_budget_works_over_cold_blocks),
        cmocka_unit_test(an_observer_sees_what_was_read),
        cmocka_unit_test(a_fork_and_its_parent_go_on_each_alone),
        cmocka_unit_test(a_fork_can_be_parked),
        cmocka_unit_test(a_node_may_end_with_forks_open),
        cmocka_unit_test(a_parked_session_leaves_dram_and_comes_back),
        cmocka_unit_test(a_session_moves_away_while_it_is_resumed),
        cmocka_unit_test(a_session_is_parked_again_after_a_late_wake),
        cmocka_unit_test(a_session_that_finds_no_room_to_park_goes_on),
        cmocka_unit_test(a_session_has_one_home_and_one_handle),
        cmocka_unit_test(tokens_and_state_are_kept),
        cmocka_unit_test(an_id_can_be_used_again_at_once),
        cmocka_unit_test(an_id_can_be_used_again_while_its_blocks_are_read),
        cmocka_unit_test(an_id_comes_again_while_what_moved_away_is_written),
        cmocka_unit_test(an_index_that_is_full_delays_sealing_and_then_says_so),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
