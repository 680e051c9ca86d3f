/* A session moves while everything around it fails: it has exactly one home, and its bits stay what they are. */
#include "tests/node/world.h"

#include "base/hash.h"
#include "node/move.h"

#define ID 7

struct trio {
    struct sim_cluster *c;
    struct sim_node *a, *b, *lender;
    unsigned late; /* words that came */
};

static struct trio trio_make(uint64_t dram_a, uint64_t dram_b, uint64_t lend_b, enum kvf_way way)
{
    struct trio t = {.c = sim_cluster_create(SEED)};
    t.a = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = dram_a, .ssd = 4096 * KIB, .way = way});
    t.b = sim_cluster_add(t.c,
                          &(struct sim_node_config){.name = "b", .dram = dram_b, .lend = lend_b, .ssd = 4096 * KIB, .way = way});
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB, .lend = 64 * KIB, .way = way});
    sim_cluster_connect(t.c);
    return t;
}

static void assert_empty(struct sim_node *n)
{
    if (n->core->n_sessions)
        fail_msg("node %s still has a session", n->core->name);
    assert_true(sim_cluster_empty(n));
}

static void trio_end(struct trio *t)
{
    sim_cluster_settle(t->c, 8 * KVF_SEC);
    sim_cluster_check(t->c);
    struct sim_node *nodes[] = {t->a, t->b, t->lender};
    for (unsigned i = 0; i < 3; i++)
        if (!nodes[i]->dead)
            assert_empty(nodes[i]);
    sim_cluster_destroy(t->c);
}

static struct kvf_session *attach(struct sim_node *n)
{
    struct kvf_session *s = NULL;
    assert_int_equal(kvf_session_attach(&n->node, sim_engine_model(engine, n), ID, 10 * KVF_SEC, &s), KVF_OK);
    return s;
}

/* The home that etcd knows. */
static bool home_is(struct trio *t, const char *name)
{
    char key[64], want[96];
    snprintf(key, sizeof key, "/kvfabric/default/sessions/%016x", ID);
    const struct kvf_store_kv *kv = kvf_sim_etcd_get(t->c->etcd, key);
    if (!kv) {
        snprintf(key, sizeof key, "/kvfabric/default/sessions/%x", ID);
        kv = kvf_sim_etcd_get(t->c->etcd, key);
    }
    assert_non_null(kv);
    snprintf(want, sizeof want, "\"home\":\"%s\"", name);
    char text[1024], *to = text;
    for (const char *p = kv->value; *p && to < text + sizeof text - 1; p++)
        if (*p != ' ')
            *to++ = *p;
    *to = 0;
    return strstr(text, want) != NULL;
}

static bool active_at(struct sim_node *n)
{
    struct kvf_sess *s = kvf_sess_find(n->core, ID);
    return !n->dead && s && s->state == KVF_SESS_ACTIVE;
}

/* ---------------------------------------------------------------- whole moves */

static void moves(uint64_t dram_a, uint64_t dram_b, uint64_t lend_b, uint64_t tokens, enum kvf_way way)
{
    struct trio t = trio_make(dram_a, dram_b, lend_b, way);
    struct kvf_session *s = session_on(t.a, ID), *x;
    struct kvf_move_report report = {0};
    uint8_t blob[3000], back[3000];
    size_t bytes = sizeof back;
    for (unsigned i = 0; i < sizeof blob; i++)
        blob[i] = (uint8_t)(i * 5);
    assert_int_equal(sim_engine_run(engine, s, tokens, 50), KVF_OK);
    assert_int_equal(kvf_session_state_set(s, blob, sizeof blob), KVF_OK);
    uint64_t stay_behind = (blocks_in(s, KVF_TIER_DRAM) + blocks_in(s, KVF_TIER_SSD)) * SLOT;
    t.c->single = true;
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, &report), KVF_OK);
    assert_int_equal(report.epoch, 2);
    assert_in_range(report.bytes_after_switch, stay_behind / 2, stay_behind * 2 + 16 * SLOT);
    assert_true(report.bytes_before_switch > tokens * 4);
    assert_true(home_is(&t, "b"));
    assert_false(active_at(t.a));
    struct kvf_session_info info;
    int32_t token;
    float row[64] = {0};
    assert_int_equal(kvf_session_info(s, &info), KVF_MOVED);
    assert_int_equal(kvf_session_tokens(s, 0, 1, &token), KVF_MOVED);
    assert_int_equal(kvf_step_begin(s, &token, 1), KVF_MOVED);
    assert_int_equal(kvf_step_append(s, 0, row, row), KVF_MOVED);
    assert_int_equal(kvf_step_commit(s), KVF_MOVED);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_MOVED);
    assert_int_equal(kvf_session_park(s, KVF_SEC), KVF_MOVED);
    assert_int_equal(kvf_session_fork(s, 99, &x), KVF_MOVED);
    kvf_step_abort(s);
    kvf_session_close(s);
    s = attach(t.b);
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    assert_int_equal(info.epoch, 2);
    assert_int_equal(info.tokens, tokens);
    assert_int_equal(kvf_session_state_get(s, back, &bytes), KVF_OK);
    assert_int_equal(bytes, sizeof blob);
    assert_memory_equal(blob, back, sizeof blob);
    for (uint64_t i = 0; i < tokens; i++) {
        assert_int_equal(kvf_session_tokens(s, i, 1, &token), KVF_OK);
        assert_int_equal(token, sim_engine_token(engine, i));
    }
    engine->compared = 0;
    assert_int_equal(sim_engine_run(engine, s, tokens + 30, 1), KVF_OK); /* while blocks stream */
    assert_same_bits(engine);
    sim_cluster_check(t.c);
    t.c->single = false;
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    assert_false(info.streaming);
    assert_int_equal(info.blocks[KVF_TIER_PEER], 0);
    assert_empty(t.a);
    assert_int_equal(COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(COUNTED(t.b, blocks_corrupt), 0);
    sim_cluster_kill(t.a, true); /* the old home is not needed any more */
    sim_cluster_settle(t.c, 10 * KVF_SEC);
    assert_int_equal(sim_engine_run(engine, s, tokens + 100, 7), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_session_moves_with_its_blocks_in_dram(void **state) { moves(1024 * KIB, 1024 * KIB, 0, 700, KVF_WAY_ASK); }
static void a_session_moves_with_its_blocks_in_every_tier(void **state) { moves(128 * KIB, 128 * KIB, 0, 1234, KVF_WAY_GET); }
static void a_session_moves_to_one_who_lent_to_it(void **state) { moves(128 * KIB, 256 * KIB, 64 * KIB, 1280, KVF_WAY_MAPPED); }
static void an_empty_tail_and_a_short_session_move(void **state)
{
    moves(1024 * KIB, 128 * KIB, 0, 64, KVF_WAY_ASK);
    moves(1024 * KIB, 128 * KIB, 0, 3, KVF_WAY_ASK);
}

static void a_session_goes_round_and_comes_back(void **state)
{
    struct trio t = trio_make(128 * KIB, 128 * KIB, 64 * KIB, KVF_WAY_ASK);
    struct sim_node *at[] = {t.a, t.b};
    struct kvf_session *s = session_on(t.a, ID);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(sim_engine_run(engine, s, 600 + i * 100, 50), KVF_OK);
        assert_int_equal(kvf_session_move(s, i % 2 ? "a" : "b", 10 * KVF_SEC, NULL), KVF_OK);
        kvf_session_close(s);
        s = attach(at[(i + 1) % 2]);
        assert_int_equal(sim_engine_run(engine, s, 620 + i * 100, 3), KVF_OK);
        sim_cluster_settle(t.c, 5 * KVF_SEC);
        sim_cluster_check(t.c);
    }
    assert_same_bits(engine);
    struct kvf_session_info info;
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    assert_int_equal(info.epoch, 6);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* A lender must keep what a moved session has there when the old home leaves the cluster. */
static void a_lender_belongs_to_the_new_home(void **state)
{
    struct trio t = trio_make(128 * KIB, 1024 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_REMOTE), 16);
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_int_equal(sim_cluster_peer(t.lender, t.b)->lent_blocks, 16);
    assert_int_equal(sim_cluster_peer(t.lender, t.a)->lent_blocks, 0);
    sim_cluster_kill(t.a, false);
    sim_cluster_settle(t.c, 12 * KVF_SEC);
    s = attach(t.b);
    assert_int_equal(kvf_lend_blocks(t.lender->core), 16);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* A lender to which the old home owes RELEASE_ALL holds blocks that left with a session in the old home's name until it hears of
 * ADOPT: that word must not take them. */
static void what_a_lender_holds_stays_until_it_hears_whose_it_is(void **state)
{
    struct trio t = trio_make(128 * KIB, 1024 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_REMOTE), 16);
    sim_cluster_peer(t.a, t.lender)->reset = true; /* as when it was away for a moment */
    t.c->single = true;
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    sim_net_path(t.b->transport, t.lender->transport)->held = true;
    assert_int_equal(sim_cluster_peer(t.lender, t.a)->lent_blocks, 16);
    for (unsigned i = 0; i < 60; i++)
        sim_cluster_step(t.c);
    sim_net_path(t.b->transport, t.lender->transport)->held = false;
    t.c->single = false;
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_int_equal(sim_cluster_peer(t.lender, t.b)->lent_blocks, 16);
    s = attach(t.b);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_settle(t.c, 6 * KVF_SEC);
    assert_false(sim_cluster_peer(t.a, t.lender)->reset); /* said soon: until then nothing goes there, and nothing comes from it */
    trio_end(&t);
}

/* Turn by turn, so that the oldest blocks are some of each. */
static void run_both(struct kvf_session *s, struct kvf_session *other)
{
    for (uint64_t tokens = 100; tokens <= 600; tokens += 100) {
        assert_int_equal(sim_engine_run(engine, s, tokens, 50), KVF_OK);
        assert_int_equal(sim_engine_run(engine, other, tokens, 50), KVF_OK);
    }
}

/* ... nor may it when it comes after a move that the lender knows from etcd alone. What else is the old home's goes with it. */
static void what_moved_is_not_the_old_homes_to_release(void **state)
{
    struct trio t = trio_make(128 * KIB, 1024 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.a, ID), *other = session_on(t.a, ID + 1);
    run_both(s, other);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE), others = blocks_in(other, KVF_TIER_REMOTE);
    assert_true(there > 0 && others > 0);
    t.c->single = true;
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    sim_net_path(t.b->transport, t.lender->transport)->held = true; /* with ADOPT */
    sim_cluster_settle(t.c, KVF_SEC);
    struct kvf_node_peer *a = sim_cluster_peer(t.lender, t.a);
    assert_int_equal(a->lent_blocks, there + others);
    kvf_lend_message(t.lender->core, a, &(struct kvf_message){.type = KVF_MSG_RELEASE_ALL});
    sim_cluster_settle(t.c, 10 * KVF_MS);
    assert_int_equal(a->lent_blocks, there);
    sim_net_path(t.b->transport, t.lender->transport)->held = false;
    t.c->single = false;
    sim_cluster_settle(t.c, 2 * KVF_SEC);
    assert_int_equal(sim_cluster_peer(t.lender, t.b)->lent_blocks, there);
    s = attach(t.b);
    assert_int_equal(sim_engine_run(engine, s, 900, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    trio_end(&t);
}

/* A lender that nobody could tell whose blocks it holds, and that they are nobody's at last, learns it from etcd. */
static void what_nobody_releases_does_not_stay(void **state)
{
    struct trio t = trio_make(128 * KIB, 1024 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.a, ID), *other = session_on(t.a, ID + 1);
    run_both(s, other);
    uint64_t there = blocks_in(s, KVF_TIER_REMOTE), others = blocks_in(other, KVF_TIER_REMOTE);
    assert_true(there > 0 && others > 0);
    sim_cluster_partition(t.b, t.lender, true);
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    s = attach(t.b);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_LOST); /* misses what lies at the lender */
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_partition(t.b, t.lender, false);
    sim_cluster_settle(t.c, 15 * KVF_SEC);
    struct kvf_node_peer *a = sim_cluster_peer(t.lender, t.a);
    assert_int_equal(a->lent_blocks, there + others);
    kvf_sim_etcd_down(t.c->etcd, true); /* nothing is concluded while it is away */
    sim_cluster_settle(t.c, 60 * KVF_SEC);
    assert_int_equal(a->lent_blocks, there + others);
    kvf_sim_etcd_down(t.c->etcd, false);
    sim_cluster_settle(t.c, 60 * KVF_SEC);
    assert_int_equal(a->lent_blocks, others); /* what stands is not touched */
    assert_int_equal(blocks_in(other, KVF_TIER_REMOTE), others);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    trio_end(&t);
}

/* RELEASE_ALL frees what waits at an old home too: it is not said while anything of ours does. */
static void what_waits_at_an_old_home_is_not_released_with_what_it_lends(void **state)
{
    struct trio t = trio_make(1024 * KIB, 1024 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    s = attach(t.b);
    assert_true(blocks_in(s, KVF_TIER_PEER) > 0);
    sim_cluster_peer(t.b, t.a)->untidy = true;
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_false(sim_cluster_peer(t.b, t.a)->untidy); /* said when all was here */
    assert_int_equal(blocks_in(s, KVF_TIER_PEER), 0);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* Nodes whose largest messages differ: nothing is sent that the other does not take. */
static void a_session_moves_among_nodes_with_smaller_messages(void **state)
{
    struct trio t = {.c = sim_cluster_create(SEED)};
    t.a = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = 128 * KIB, .ssd = 4096 * KIB});
    t.b = sim_cluster_add(t.c, &(struct sim_node_config){.name = "b", .dram = 1024 * KIB, .ssd = 4096 * KIB, .frame = 12 * KIB});
    t.lender = sim_cluster_add(t.c,
                               &(struct sim_node_config){.name = "lender", .dram = 64 * KIB, .lend = 64 * KIB, .frame = 16 * KIB});
    sim_cluster_connect(t.c);
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_REMOTE), 16);
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    s = attach(t.b);
    assert_int_equal(sim_engine_run(engine, s, 1200, 5), KVF_OK);
    assert_same_bits(engine);
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_int_equal(COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* A chunk, or an open block, that is larger than the target's messages could never be fetched: the session stays, whole. */
static void a_session_does_not_move_where_its_chunks_cannot_follow(void **state)
{
    struct sim_engine *coarse = sim_engine_create(SEED + 3, 64, KVF_F16, 64, 64, 300); /* a chunk is a block of 16 KiB */
    static const unsigned tokens[] = {20, 64, 202}; /* an open block of each stream; a sealed one; both */
    for (unsigned i = 0; i < 3; i++) {
        struct trio t = {.c = sim_cluster_create(SEED)};
        t.a = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = 512 * KIB});
        t.b = sim_cluster_add(t.c, &(struct sim_node_config){.name = "b", .dram = 512 * KIB, .frame = 12 * KIB});
        t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB});
        sim_cluster_connect(t.c);
        struct kvf_session *s = NULL;
        assert_int_equal(kvf_session_create(&t.a->node, sim_engine_model(coarse, t.a), ID, &s), KVF_OK);
        assert_int_equal(sim_engine_run(coarse, s, tokens[i], 64), KVF_OK);
        uint64_t start = t.c->env.now_ns;
        assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_ERR_UNSUPPORTED);
        assert_true(t.c->env.now_ns - start < KVF_SEC);
        assert_int_equal(sim_engine_run(coarse, s, 250, 10), KVF_OK);
        assert_same_bits(coarse);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        trio_end(&t);
    }
    sim_engine_destroy(coarse);
}

/* Blocks on the old home's SSD are served although its staging is full of its own cache. */
static void an_old_home_with_full_staging_serves(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *a = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 128 * KIB, .ssd = 4096 * KIB,
                                                                      .staging = 16 * SLOT, .block_max = SLOT});
    struct sim_node *b = sim_cluster_add(c, &(struct sim_node_config){.name = "b", .dram = 1024 * KIB});
    sim_cluster_connect(c);
    struct kvf_session *s = session_on(a, ID);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    s = attach(b);
    assert_int_equal(sim_engine_run(engine, s, 1310, 1), KVF_OK);
    assert_same_bits(engine);
    sim_cluster_settle(c, 5 * KVF_SEC);
    assert_empty(a);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_destroy(c);
}

/* What a and b tell each other comes late and in heaps. */
static void heap_up(struct sim_cluster *c, void *arg)
{
    struct trio *t = arg;
    sim_net_path(t->b->transport, t->a->transport)->held = sim_env_random(&c->env, 8) != 0;
    sim_net_path(t->a->transport, t->b->transport)->held = sim_env_random(&c->env, 8) != 0;
}

/* Attention asks the old home for a block that rises at the same time; once it has risen the old home forgets it, and answers
 * attention that it has no such block. That is no loss. */
static void a_block_that_rises_while_it_is_read_is_not_lost(void **state)
{
    for (unsigned round = 0; round < 24; round++) {
        struct trio t = trio_make(128 * KIB, 1024 * KIB, 0, KVF_WAY_ASK);
        struct kvf_session *s = session_on(t.a, ID);
        assert_int_equal(sim_engine_run(engine, s, 1100, 50), KVF_OK);
        assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
        kvf_session_close(s);
        t.c->env.state += round; /* other heaps in every round */
        t.c->stepped = heap_up;
        t.c->stepped_arg = &t;
        s = attach(t.b);
        for (unsigned i = 0; i < 20; i++) {
            for (unsigned n = 0; n < round; n++)
                sim_cluster_step(t.c);
            staging_forget(t.b);
            assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
        }
        assert_same_bits(engine);
        t.c->stepped = NULL;
        sim_net_path(t.b->transport, t.a->transport)->held = sim_net_path(t.a->transport, t.b->transport)->held = false;
        sim_cluster_settle(t.c, 3 * KVF_SEC);
        assert_int_equal(COUNTED(t.b, blocks_lost), 0);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        trio_end(&t);
    }
}

/* A block that does not fit into one message comes in several. */
static void blocks_larger_than_a_message_move(void **state)
{
    struct sim_engine *e = sim_engine_create(SEED + 2, 128, KVF_F32, 16, 128, 300); /* 128 KiB; messages are 64 KiB */
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node_config config = {.name = "a", .dram = 3 << 20, .ssd = 16 << 20, .staging = 2 << 20, .block_max = 128 * KIB};
    struct sim_node *a = sim_cluster_add(c, &config);
    config.name = "b";
    struct sim_node *b = sim_cluster_add(c, &config);
    sim_cluster_connect(c);
    struct kvf_session *s;
    assert_int_equal(kvf_session_create(&a->node, sim_engine_model(e, a), ID, &s), KVF_OK);
    assert_int_equal(sim_engine_run(e, s, 270, 50), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    assert_int_equal(kvf_session_attach(&b->node, sim_engine_model(e, b), ID, KVF_SEC, &s), KVF_OK);
    assert_int_equal(sim_engine_run(e, s, 280, 1), KVF_OK);
    assert_same_bits(e);
    sim_cluster_settle(c, 5 * KVF_SEC);
    assert_empty(a);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_destroy(c);
    sim_engine_destroy(e);
}

/* ---------------------------------------------------------------- late words */

/* What an earlier attempt to move the session said, again and again while the target takes it. */
static void late_words(struct sim_cluster *c, void *arg)
{
    struct trio *t = arg;
    struct kvf_one_move *m = kvf_move_find(t->b->core, ID);
    if (!m || (m->state != KVF_MOVE_RECEIVING && m->state != KVF_MOVE_STAGED))
        return;
    static uint8_t payload[16 * KIB];
    struct kvf_node_peer *a = sim_cluster_peer(t->b, t->a);
    struct kvf_move_offer offer = m->offer;
    assert_int_equal(offer.number, 2);
    offer.number = 1;
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_offer(&w, &offer);
    kvf_move_message(t->b->core, a,
                     &(struct kvf_message){.type = KVF_MSG_MOVE_OFFER, .payload = payload, .bytes = kvf_writer_used(&w)});
    uint8_t rest[8];
    w = kvf_writer_of(rest, sizeof rest);
    kvf_write_u32(&w, 1);
    kvf_write_u32(&w, 4711); /* a token */
    w = kvf_writer_of(payload, sizeof payload);
    kvf_write_u64(&w, ID);
    kvf_write_u64(&w, offer.number);
    kvf_write_u64(&w, kvf_hash(rest, sizeof rest, ID));
    kvf_write_bytes(&w, rest, sizeof rest);
    kvf_move_message(t->b->core, a,
                     &(struct kvf_message){.type = KVF_MSG_MOVE_TOKENS, .payload = payload, .bytes = kvf_writer_used(&w)});
    kvf_move_message(t->b->core, a, &(struct kvf_message){.type = KVF_MSG_MOVE_ABORT, .payload = payload, .bytes = 16});
    /* A watch that was held back tells of an earlier session of this id, which had as high an epoch. */
    kvf_move_placement(t->b->core, &(struct kvf_placement){.id = ID, .home = "lender", .epoch = m->epoch});
    kvf_move_placement(t->b->core, &(struct kvf_placement){.id = ID, .home = "b", .epoch = m->epoch});
    assert_false(active_at(t->b) && !home_is(t, "b"));
    t->late++;
}

/* Frames may overtake each other: what is left of a move that was given up must not meddle with the next one. */
static void late_words_of_an_earlier_move_change_nothing(void **state)
{
    struct trio t = trio_make(1024 * KIB, 1024 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 300, 50), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", 0, NULL), KVF_ERR_DEADLINE);
    t.c->single = true;
    t.c->stepped = late_words;
    t.c->stepped_arg = &t;
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    t.c->stepped = NULL;
    assert_true(t.late > 3);
    kvf_session_close(s);
    s = attach(t.b);
    for (uint64_t i = 0; i < 300; i++) {
        int32_t token;
        assert_int_equal(kvf_session_tokens(s, i, 1, &token), KVF_OK);
        assert_int_equal(token, sim_engine_token(engine, i));
    }
    assert_int_equal(sim_engine_run(engine, s, 400, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- refusals */

static void moves_that_cannot_be_are_refused(void **state)
{
    struct trio t = trio_make(1024 * KIB, 64 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.a, ID), *f;
    assert_int_equal(sim_engine_run(engine, s, 100, 50), KVF_OK);
    assert_int_equal(kvf_session_move(s, "", KVF_SEC, NULL), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_move(s, "a", KVF_SEC, NULL), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_move(s, "nobody", KVF_SEC, NULL), KVF_ERR_NOT_FOUND);
    assert_int_equal(kvf_session_fork(s, 8, &f), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_ERR_BUSY);
    assert_int_equal(kvf_session_move(f, "b", KVF_SEC, NULL), KVF_ERR_BUSY);
    assert_int_equal(kvf_session_drop(f), KVF_OK);
    assert_int_equal(sim_engine_step_open(engine, s, 1), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_ERR_STATE);
    kvf_step_abort(s);
    assert_int_equal(kvf_session_park(s, KVF_SEC), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_ERR_STATE);
    assert_int_equal(kvf_session_resume(s, KVF_SEC), KVF_OK);
    assert_int_equal(kvf_node_move(&t.a->node, 12345, "b", KVF_SEC, NULL), KVF_ERR_NOT_FOUND);
    /* the target has no room for the open blocks */
    struct kvf_session *other = session_on(t.b, 50), *more = session_on(t.b, 51), *last = session_on(t.b, 52);
    assert_int_equal(sim_engine_step(engine, other, 30), KVF_OK);
    assert_int_equal(sim_engine_step(engine, more, 30), KVF_OK);
    assert_int_equal(sim_engine_step(engine, last, 60), KVF_OK);
    assert_int_equal(kvf_arena_room(t.b->core->dram, SLOT), 4);
    struct kvf_session *fourth = session_on(t.b, 53);
    assert_int_equal(sim_engine_step(engine, fourth, 5), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_ERR_FULL);
    assert_true(home_is(&t, "a"));
    sim_cluster_check(t.c);
    assert_int_equal(sim_engine_run(engine, s, 200, 10), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    assert_int_equal(kvf_session_drop(more), KVF_OK);
    assert_int_equal(kvf_session_drop(last), KVF_OK);
    assert_int_equal(kvf_session_drop(fourth), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    s = attach(t.b);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_ERR_INVALID);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- faults at every message */

enum fault {
    KILL_TARGET, KILL_TARGET_SILENTLY, KILL_SOURCE, CUT, ETCD_DOWN, DROP_DONE, DROP_UNDONE, HOLD_WATCH_AND_KILL_SOURCE, FAULTS
};
static const char *const fault_names[] = {
    "kill the target", "kill the target silently", "kill the source",       "cut them apart",
    "etcd away",       "answer lost, done",        "answer lost, not done", "watch held, source killed"};

struct scene {
    struct trio t;
    enum fault fault;
    uint64_t at;  /* delivered frames since the move began */
    uint64_t begin;
    bool struck;
    unsigned two_homes;
};

static void strike(struct scene *x)
{
    switch (x->fault) {
    case KILL_TARGET: sim_cluster_kill(x->t.b, true); break;
    case KILL_TARGET_SILENTLY: sim_cluster_kill(x->t.b, false); break;
    case KILL_SOURCE: sim_cluster_kill(x->t.a, true); break;
    case CUT: sim_cluster_partition(x->t.a, x->t.b, true); break;
    case ETCD_DOWN: kvf_sim_etcd_down(x->t.c->etcd, true); break;
    case DROP_DONE: kvf_sim_store_drop(x->t.a->store, 1, true); break;
    case DROP_UNDONE: kvf_sim_store_drop(x->t.a->store, 1, false); break;
    default:
        kvf_sim_store_hold(x->t.b->store, true);
        sim_cluster_kill(x->t.a, true);
    }
}

static void watch_over(struct sim_cluster *c, void *arg)
{
    struct scene *x = arg;
    if (!x->struck && c->delivered - x->begin >= x->at) {
        x->struck = true;
        strike(x);
    }
    x->two_homes += active_at(x->t.a) && active_at(x->t.b);
}

/* The session works where its home is, or is gone with it. */
static void assert_one_home(struct scene *x, enum kvf_status st, struct kvf_session *s)
{
    struct trio *t = &x->t;
    bool at_a = home_is(t, "a"), at_b = home_is(t, "b");
    assert_true(at_a != at_b);
    struct sim_node *home = at_a ? t->a : t->b, *other = at_a ? t->b : t->a;
    assert_false(active_at(other));
    if (!t->a->dead && st == KVF_OK)
        assert_true(at_b);
    if (home->dead) {
        kvf_session_close(s);
        return;
    }
    if (at_b) {
        kvf_session_close(s);
        s = attach(t->b);
    }
    engine->compared = 0;
    assert_int_equal(sim_engine_run(engine, s, tokens_of(s) + 20, 5), KVF_OK);
    assert_same_bits(engine);
    sim_cluster_check(t->c);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
}

/* One move with one fault after `at` messages. False: the move was over before. */
static bool move_with_fault(enum fault fault, uint64_t at)
{
    struct scene x = {.t = trio_make(128 * KIB, 256 * KIB, 0, KVF_WAY_ASK), .fault = fault, .at = at};
    struct sim_cluster *c = x.t.c;
    struct kvf_session *s = session_on(x.t.a, ID);
    assert_int_equal(sim_engine_run(engine, s, 900, 50), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    c->single = true;
    c->stepped = watch_over;
    c->stepped_arg = &x;
    x.begin = c->delivered;
    enum kvf_status st = kvf_session_move(s, "b", 8 * KVF_SEC, NULL);
    bool in_time = x.struck;
    while (!x.struck)
        sim_cluster_step(c);
    c->single = false;
    sim_cluster_settle(c, 3 * KVF_SEC);
    kvf_sim_etcd_down(c->etcd, false);
    if (!x.t.b->dead)
        kvf_sim_store_hold(x.t.b->store, false);
    sim_cluster_partition(x.t.a, x.t.b, false);
    sim_cluster_settle(c, 60 * KVF_SEC); /* leases end, time-outs too */
    if (x.two_homes)
        fail_msg("two homes: %s at message %u", fault_names[fault], (unsigned)at);
    if (!x.t.a->dead && !x.t.b->dead && home_is(&x.t, "a"))
        assert_null(kvf_sess_find(x.t.b->core, ID)); /* the target does not wait for what will not come */
    assert_one_home(&x, st, s);
    engine->compared = engine->different = 0;
    if (fault == CUT) /* whoever has nothing of it any more may learn so late: docs say until the other's end */
        sim_cluster_settle(c, 10 * KVF_SEC);
    c->stepped = NULL;
    trio_end(&x.t);
    return in_time;
}

static void every_step(enum fault fault)
{
    uint64_t at = 0;
    while (move_with_fault(fault, at) && at < 60)
        at += at < 16 ? 1 : 3;
    printf("%s: up to message %u\n", fault_names[fault], (unsigned)at);
    assert_true(at > 5);
}

static void the_target_dies_at_every_message(void **state) { every_step(KILL_TARGET); }
static void the_target_falls_silent_at_every_message(void **state) { every_step(KILL_TARGET_SILENTLY); }
static void the_source_dies_at_every_message(void **state) { every_step(KILL_SOURCE); }
static void they_are_cut_apart_at_every_message(void **state) { every_step(CUT); }
static void etcd_goes_away_at_every_message(void **state) { every_step(ETCD_DOWN); }
static void etcds_answer_is_lost_at_every_message(void **state)
{
    every_step(DROP_DONE);
    every_step(DROP_UNDONE);
}
static void the_source_dies_before_the_target_hears_of_it(void **state) { every_step(HOLD_WATCH_AND_KILL_SOURCE); }

/* While etcd hangs nobody knows the outcome: the session stands still, and is settled when etcd answers. */
static void an_unknown_outcome_is_settled_later(void **state)
{
    for (unsigned done = 0; done < 2; done++) {
        struct trio t = trio_make(256 * KIB, 256 * KIB, 0, KVF_WAY_ASK);
        struct kvf_session *s = session_on(t.a, ID);
        assert_int_equal(sim_engine_run(engine, s, 500, 50), KVF_OK);
        kvf_sim_store_drop(t.a->store, 1000, done);
        kvf_sim_store_hold(t.a->store, true);
        kvf_sim_store_hold(t.b->store, true);
        if (done)
            sim_cluster_settle(t.c, 0);
        enum kvf_status st = kvf_session_move(s, "b", 2 * KVF_SEC, NULL);
        assert_int_equal(st, KVF_ERR_DEADLINE);
        assert_int_equal(sim_engine_step(engine, s, 1), KVF_ERR_STATE);
        assert_int_equal(kvf_session_drop(s), KVF_ERR_STATE);
        kvf_sim_store_drop(t.a->store, 0, false);
        kvf_sim_store_hold(t.a->store, false);
        kvf_sim_store_hold(t.b->store, false);
        sim_cluster_settle(t.c, 10 * KVF_SEC);
        bool moved = home_is(&t, "b");
        assert_int_equal(moved, done);
        if (moved) {
            assert_int_equal(sim_engine_step(engine, s, 1), KVF_MOVED);
            kvf_session_close(s);
            s = attach(t.b);
        }
        assert_int_equal(sim_engine_run(engine, s, 600, 50), KVF_OK);
        assert_same_bits(engine);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        trio_end(&t);
    }
}

/* A fork that is made while blocks still stream in has no summaries of those: none may be taken for known afterwards. */
static void a_fork_of_a_session_that_streams_in_knows_what_it_does_not_know(void **state)
{
    struct trio t = trio_make(512 * KIB, 512 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.a, ID), *f;
    struct kvf_session_info info;
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    s = attach(t.b);
    assert_int_equal(kvf_session_fork(s, 8, &f), KVF_OK);
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    assert_true(info.streaming && info.blocks[KVF_TIER_PEER] > 0);
    sim_cluster_settle(t.c, 4 * KVF_SEC);
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    assert_false(info.streaming);
    const struct kvf_sess *p = s->sess, *q = f->sess;
    const struct kvf_model *m = p->model;
    for (uint32_t i = 0; i < p->sealed_blocks * m->streams; i++) {
        uint32_t stream = i % m->streams, index = i / m->streams;
        kvf_handle h = kvf_sess_block(f->sess, stream / m->desc.kv_heads, stream % m->desc.kv_heads, index);
        if (!(kvf_index_entry(t.b->core->index, h)->flags & KVF_FLAG_SUMMARY))
            continue;
        size_t floats = (size_t)m->chunks * m->summary_floats;
        const float *one = p->summaries + (size_t)stream * p->summary_chunks_room * m->summary_floats + index * floats;
        const float *two = q->summaries + (size_t)stream * q->summary_chunks_room * m->summary_floats + index * floats;
        assert_memory_equal(one, two, floats * sizeof *one);
    }
    assert_int_equal(sim_engine_run(engine, f, 1050, 10), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(f), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fork_of_a_session_that_streams_in_knows_what_it_does_not_know),
        cmocka_unit_test(a_session_moves_with_its_blocks_in_dram),
        cmocka_unit_test(a_session_moves_with_its_blocks_in_every_tier),
        cmocka_unit_test(a_session_moves_to_one_who_lent_to_it),
        cmocka_unit_test(an_empty_tail_and_a_short_session_move),
        cmocka_unit_test(a_session_goes_round_and_comes_back),
        cmocka_unit_test(a_lender_belongs_to_the_new_home),
        cmocka_unit_test(what_a_lender_holds_stays_until_it_hears_whose_it_is),
        cmocka_unit_test(what_moved_is_not_the_old_homes_to_release),
        cmocka_unit_test(what_nobody_releases_does_not_stay),
        cmocka_unit_test(what_waits_at_an_old_home_is_not_released_with_what_it_lends),
        cmocka_unit_test(a_session_moves_among_nodes_with_smaller_messages),
        cmocka_unit_test(a_session_does_not_move_where_its_chunks_cannot_follow),
        cmocka_unit_test(an_old_home_with_full_staging_serves),
        cmocka_unit_test(a_block_that_rises_while_it_is_read_is_not_lost),
        cmocka_unit_test(blocks_larger_than_a_message_move),
        cmocka_unit_test(late_words_of_an_earlier_move_change_nothing),
        cmocka_unit_test(moves_that_cannot_be_are_refused),
        cmocka_unit_test(the_target_dies_at_every_message),
        cmocka_unit_test(the_target_falls_silent_at_every_message),
        cmocka_unit_test(the_source_dies_at_every_message),
        cmocka_unit_test(they_are_cut_apart_at_every_message),
        cmocka_unit_test(etcd_goes_away_at_every_message),
        cmocka_unit_test(etcds_answer_is_lost_at_every_message),
        cmocka_unit_test(the_source_dies_before_the_target_hears_of_it),
        cmocka_unit_test(an_unknown_outcome_is_settled_later),
    };
    if (getenv("TEST_FILTER"))
        cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
