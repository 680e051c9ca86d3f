/* Peers that are slow, and blocks that lie at a lender with a copy on our own SSD: a late answer is raced against the copy, a lost
 * lender costs none of them, and who is slow gets no more. */
#include "tests/node/store.h"

#include "node/persist.h"
#include "node/reclaim.h"

#define BLOCK (64 * KIB)
#define LATE (20 * KVF_MS) /* no answer comes later than that unless a test makes it */

static struct store make(enum kvf_way way, uint64_t lend)
{
    struct store t = {.c = sim_cluster_create(SEED)};
    struct sim_node_config n = {.name = "n", .dram = 256 * KIB, .ssd = 4096 * KIB, .staging = 512 * KIB, .way = way};
    struct sim_node_config lender = {.name = "lender", .dram = 64 * KIB, .lend = lend, .way = way};
    t.n = sim_cluster_add(t.c, &n);
    t.lender = sim_cluster_add(t.c, &lender);
    sim_cluster_connect(t.c);
    assert_int_equal(kvf_queue_create(&t.n->node, 8, &t.q), KVF_OK);
    return t;
}

static struct kvf_entry *entry_of(struct store *t, uint64_t key)
{
    struct kvf_key k = key_at(key);
    k.hi |= KVF_OPAQUE_BIT;
    kvf_handle h = kvf_index_find(t->n->core->index, k);
    return h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(t->n->core->index, h);
}

/* Key 1 with a copy on SSD and key 2 without lie at the lender; nobody had to wait for room. */
static struct store lent(enum kvf_way way, uint64_t lend)
{
    struct store t = make(way, lend);
    assert_int_equal(put(&t, 1, 0, BLOCK), KVF_OK);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 1).status, KVF_OK);
    for (uint64_t key = 2; key < 12; key++) {
        assert_int_equal(put(&t, key, 0, BLOCK), KVF_OK);
        sim_cluster_settle(t.c, 200 * KVF_MS);
    }
    assert_int_equal(entry_of(&t, 1)->tier, KVF_TIER_REMOTE);
    assert_true(entry_of(&t, 1)->ssd4k > 0);
    assert_int_equal(entry_of(&t, 2)->tier, KVF_TIER_REMOTE);
    assert_int_equal(entry_of(&t, 2)->ssd4k, 0);
    assert_int_equal(COUNTED(t.n, hedges) + COUNTED(t.n, copies_read) + COUNTED(t.n, peers_slow), 0);
    sim_cluster_check(t.c);
    return t;
}

static void end(struct store *t)
{
    for (uint64_t key = 1; key < 40; key++)
        op(t, KVF_OP_REMOVE, key);
    sim_cluster_settle(t->c, 6 * KVF_SEC);
    sim_cluster_check(t->c);
    assert_true(sim_cluster_empty(t->n));
    kvf_queue_destroy(t->q);
    sim_cluster_destroy(t->c);
}

/* Reads it whole; the time that it took. */
static uint64_t read_whole(struct store *t, uint64_t key)
{
    uint64_t start = t->c->env.now_ns;
    for (unsigned i = 0; i < t->n->core->stages_max; i++) /* nothing read before may serve it */
        if (t->n->core->stages[i].handle != KVF_HANDLE_NONE)
            kvf_stage_drop(t->n->core, t->n->core->stages[i].handle);
    assert_range(t, key, 0, BLOCK, 0, BLOCK);
    return t->c->env.now_ns - start;
}

static struct sim_path *answers(struct store *t) { return sim_net_path(t->lender->transport, t->n->transport); }

/* ---------------------------------------------------------------- races */

static void a_late_answer_loses_to_the_copy(enum kvf_way way)
{
    struct store t = lent(way, 4096 * KIB);
    uint64_t late = kvf_pace_late_ns(sim_cluster_peer(t.n, t.lender));
    assert_true(late <= LATE);
    answers(&t)->held = true;
    assert_in_range(read_whole(&t, 1), late, late + LATE);
    assert_int_equal(COUNTED(t.n, hedges), 1);
    assert_int_equal(COUNTED(t.n, hedges_won), 1);
    answers(&t)->held = false; /* what comes now is of no read any more */
    sim_cluster_settle(t.c, 200 * KVF_MS);
    assert_true(read_whole(&t, 2) < LATE);
    assert_true(read_whole(&t, 1) < LATE);
    assert_int_equal(COUNTED(t.n, hedges), 1);
    assert_int_equal(COUNTED(t.n, blocks_corrupt), 0);
    end(&t);
}

static void a_late_answer_loses_to_the_copy_by_asking(void **state) { a_late_answer_loses_to_the_copy(KVF_WAY_ASK); }

/* Nothing short of the link's end takes memory back from a one-sided read: it is waited for. */
static void a_one_sided_read_is_not_raced(void **state)
{
    struct store t = lent(KVF_WAY_GET, 4096 * KIB);
    sim_net_path(t.n->transport, t.lender->transport)->delay_ns = 4 * LATE;
    assert_true(read_whole(&t, 1) >= 4 * LATE);
    assert_int_equal(COUNTED(t.n, hedges), 0);
    sim_net_path(t.n->transport, t.lender->transport)->delay_ns = 0;
    end(&t);
}

static void the_lender_may_win_after_all(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    answers(&t)->delay_ns = 2 * LATE;
    sim_disk_hold(t.n->disk, true);
    assert_in_range(read_whole(&t, 1), 2 * LATE, 3 * LATE);
    assert_int_equal(COUNTED(t.n, hedges), 1);
    assert_int_equal(COUNTED(t.n, hedges_won), 0);
    sim_disk_hold(t.n->disk, false); /* the loser's bytes come to memory of its own */
    sim_disk_release_all(t.n->disk);
    answers(&t)->delay_ns = 0;
    sim_cluster_settle(t.c, 200 * KVF_MS);
    assert_true(entry_of(&t, 1)->ssd4k > 0);
    end(&t);
}

static void a_damaged_copy_loses(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    t.n->media->bytes[(uint64_t)entry_of(&t, 1)->ssd4k * KVF_LOCATION_UNIT + 12345] ^= 4;
    answers(&t)->delay_ns = 2 * LATE;
    assert_in_range(read_whole(&t, 1), 2 * LATE, 3 * LATE);
    assert_int_equal(COUNTED(t.n, hedges), 1);
    assert_int_equal(COUNTED(t.n, hedges_won), 0);
    assert_int_equal(COUNTED(t.n, blocks_corrupt), 1);
    assert_int_equal(entry_of(&t, 1)->ssd4k, 0);
    assert_int_equal(entry_of(&t, 1)->tier, KVF_TIER_REMOTE);
    answers(&t)->delay_ns = 0;
    end(&t);
}

/* A lender that is there, and no slower than ever, but does not have it: it is asked once, and the copy is where the block lies. */
static void a_refusal_leads_to_the_copy(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    kvf_entry_set_location(entry_of(&t, 1), 1ull << 40); /* outside of what it lends */
    assert_true(read_whole(&t, 1) < LATE);
    assert_int_equal(entry_of(&t, 1)->tier, KVF_TIER_SSD);
    assert_int_equal(COUNTED(t.n, blocks_fell_back), 1);
    assert_int_equal(COUNTED(t.n, blocks_lost) + COUNTED(t.n, blocks_corrupt), 0);
    end(&t);
}

static void a_read_ends_at_its_deadline_when_neither_comes(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    static uint8_t to[BLOCK];
    struct kvf_request r = {.op = KVF_OP_GET, .key = key_at(1), .data = to, .length = sizeof to};
    answers(&t)->held = true;
    sim_disk_hold(t.n->disk, true);
    uint64_t start = t.c->env.now_ns;
    assert_int_equal(one(&t, r, 300 * KVF_MS).status, KVF_ERR_DEADLINE);
    assert_in_range(t.c->env.now_ns - start, 300 * KVF_MS, 320 * KVF_MS);
    memset(to, 0xa5, sizeof to);
    answers(&t)->held = false;
    sim_disk_hold(t.n->disk, false);
    sim_disk_release_all(t.n->disk);
    sim_cluster_settle(t.c, 500 * KVF_MS);
    for (unsigned i = 0; i < sizeof to; i++)
        assert_int_equal(to[i], 0xa5);
    end(&t);
}

/* ---------------------------------------------------------------- a lost lender */

static void a_lost_lender_costs_no_block_that_has_a_copy(bool tell)
{
    struct store t = lent(KVF_WAY_MAPPED, 4096 * KIB);
    sim_cluster_kill(t.lender, tell);
    sim_cluster_settle(t.c, tell ? 10 * KVF_MS : 5 * KVF_SEC);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 1).status, KVF_OK);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 2).status, KVF_MISS); /* though its memory is still mapped */
    assert_int_equal(entry_of(&t, 1)->tier, KVF_TIER_SSD);
    assert_int_equal(COUNTED(t.n, blocks_fell_back), 1);
    read_whole(&t, 1);
    end(&t);
}

static void a_dead_lender_costs_no_block_that_has_a_copy(void **state) { a_lost_lender_costs_no_block_that_has_a_copy(true); }
static void a_silent_lender_costs_no_block_that_has_a_copy(void **state) { a_lost_lender_costs_no_block_that_has_a_copy(false); }

static void a_lender_that_dies_during_a_read_is_replaced_by_the_copy(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    static uint8_t to[BLOCK], want[BLOCK];
    struct kvf_request r = {.op = KVF_OP_GET, .key = key_at(1), .data = to, .length = sizeof to};
    struct kvf_completion done;
    size_t n = 0;
    answers(&t)->held = true;
    assert_int_equal(kvf_submit(t.q, &r, 1, KVF_SEC, &n), KVF_OK);
    for (unsigned i = 0; i < 5; i++)
        sim_cluster_step(t.c);
    uint64_t start = t.c->env.now_ns;
    sim_cluster_kill(t.lender, true);
    for (n = 0; n == 0; assert_int_equal(kvf_drain(t.q, &done, 1, &n), KVF_OK))
        sim_cluster_step(t.c);
    assert_int_equal(done.status, KVF_OK);
    assert_true(t.c->env.now_ns - start < 100 * KVF_MS);
    bytes_of(1, 0, want, sizeof want);
    assert_memory_equal(to, want, sizeof want);
    end(&t);
}

static void a_lender_that_wants_its_memory_gets_it_at_once(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    assert_int_equal(kvf_reclaim_start(t.lender->core, 0, kvf_deadline(t.c->env.now_ns, 5 * KVF_SEC)), KVF_OK);
    sim_cluster_settle(t.c, 6 * KVF_SEC);
    assert_int_equal(entry_of(&t, 1)->tier, KVF_TIER_SSD);
    assert_true(COUNTED(t.n, blocks_fell_back) >= 1);
    read_whole(&t, 1);
    read_whole(&t, 2); /* which went another way */
    end(&t);
}

/* ---------------------------------------------------------------- a lender whose bytes are bad */

static kvf_handle handle_of(struct store *t, uint64_t key)
{
    struct kvf_key k = key_at(key);
    k.hi |= KVF_OPAQUE_BIT;
    return kvf_index_find(t->n->core->index, k);
}

static void spoil(struct store *t, uint64_t key)
{
    t->lender->core->memory[kvf_entry_location(entry_of(t, key)) + 12345] ^= 4;
}

/* Gets of key 1 that are under way together, into memory that may be registered: `during` happens after a few turns. */
static void gets_find_the_copy(struct store *t, unsigned gets, bool direct, void (*during)(struct store *t))
{
    uint8_t *to = aligned_alloc(4096, 2 * BLOCK), *want = malloc(BLOCK);
    struct kvf_memory *m = NULL;
    struct kvf_request r[2];
    size_t n;
    bytes_of(1, 0, want, BLOCK);
    if (direct)
        assert_int_equal(kvf_memory_register(&t->n->node, to, 2 * BLOCK, &m), KVF_OK);
    for (unsigned i = 0; i < gets; i++)
        r[i] = (struct kvf_request){.op = KVF_OP_GET, .key = key_at(1), .data = to + i * BLOCK, .length = BLOCK};
    assert_int_equal(kvf_submit(t->q, r, gets, KVF_SEC, &n), KVF_OK);
    for (unsigned i = 0; during && i < 5; i++)
        sim_cluster_step(t->c);
    if (during)
        during(t);
    for (size_t ended = 0; ended < gets; ended += n) {
        struct kvf_completion done[2];
        sim_cluster_step(t->c);
        assert_int_equal(kvf_drain(t->q, done, 2, &n), KVF_OK);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(done[i].status, KVF_OK);
    }
    for (unsigned i = 0; i < gets; i++)
        assert_memory_equal(to + i * BLOCK, want, BLOCK);
    if (m)
        kvf_memory_unregister(m);
    assert_int_equal(entry_of(t, 1)->tier, KVF_TIER_SSD);
    assert_int_equal(COUNTED(t->n, blocks_fell_back), 1);
    assert_range(t, 1, 0, BLOCK, 0, BLOCK); /* again, from staging or SSD */
    read_whole(t, 1);
    free(to);
    free(want);
}

/* One get after another, and two at once: the copy serves them and stays. */
static void bad_bytes_at_a_lender_cost_no_copy(void **state)
{
    for (unsigned i = 0; i < 8; i++) {
        struct store t = lent(i & 4 ? KVF_WAY_GET : KVF_WAY_ASK, 4096 * KIB);
        spoil(&t, 1);
        gets_find_the_copy(&t, 1 + (i & 1), i & 2, NULL);
        assert_int_equal(COUNTED(t.n, blocks_corrupt), 1);
        end(&t);
    }
}

/* The lender gets its memory back, and uses it, while a read of it is on its way there. */
static void reclaim_and_reuse(struct store *t)
{
    spoil(t, 1);
    assert_true(kvf_persist_fall_back(t->n->core, handle_of(t, 1)));
    sim_net_path(t->n->transport, t->lender->transport)->delay_ns = 0;
}

static void a_slot_that_is_reused_under_a_read_costs_no_copy(void **state)
{
    for (unsigned i = 0; i < 4; i++) {
        struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
        sim_net_path(t.n->transport, t.lender->transport)->delay_ns = KVF_MS;
        gets_find_the_copy(&t, 1 + (i & 1), i & 2, reclaim_and_reuse);
        assert_int_equal(COUNTED(t.n, blocks_corrupt), 0);
        end(&t);
    }
}

/* What staging read of a block where it lay before is forgotten when it moves: nobody has compared it yet. */
static void what_was_read_before_a_move_is_forgotten(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    for (uint64_t key = 1; key <= 2; key++) {
        kvf_handle h = handle_of(&t, key);
        uint64_t chunk = 1ull << 12345 / kvf_block_chunk_bytes(t.n->core, entry_of(&t, key));
        spoil(&t, key);
        assert_true(kvf_stage_ahead(t.n->core, h, chunk, t.c->env.now_ns + KVF_SEC, 0, 0));
        sim_cluster_settle(t.c, 10 * KVF_MS);
        assert_true(kvf_stage_has(t.n->core, h, chunk));
        spoil(&t, key); /* whole again */
        assert_true(key == 1 ? kvf_persist_fall_back(t.n->core, h) : kvf_rise_yield(t.n->core, h));
        sim_cluster_settle(t.c, 100 * KVF_MS);
        assert_true(entry_of(&t, key)->tier != KVF_TIER_REMOTE);
        assert_false(kvf_stage_has(t.n->core, h, chunk));
        assert_range(&t, key, 0, BLOCK, 0, BLOCK);
    }
    assert_int_equal(COUNTED(t.n, blocks_corrupt), 0);
    end(&t);
}

/* Two reads that are asked for in one message, the first of which has less time. */
static void a_read_outlives_the_deadline_of_its_message(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    uint8_t *to = aligned_alloc(4096, 2 * BLOCK), *want = malloc(BLOCK);
    struct kvf_memory *m;
    struct kvf_completion done[2];
    size_t n;
    assert_int_equal(entry_of(&t, 3)->tier, KVF_TIER_REMOTE);
    assert_int_equal(entry_of(&t, 3)->ssd4k, 0);
    assert_int_equal(kvf_memory_register(&t.n->node, to, 2 * BLOCK, &m), KVF_OK);
    answers(&t)->held = true;
    for (unsigned i = 0; i < 2; i++) {
        struct kvf_request r = {.op = KVF_OP_GET, .key = key_at(2 + i), .data = to + i * BLOCK, .length = BLOCK, .user = i};
        assert_int_equal(kvf_submit(t.q, &r, 1, i ? KVF_SEC : 100 * KVF_MS, &n), KVF_OK);
    }
    for (n = 0; n == 0; assert_int_equal(kvf_drain(t.q, done, 2, &n), KVF_OK))
        sim_cluster_step(t.c);
    assert_int_equal(n, 1);
    assert_int_equal(done[0].user, 0);
    assert_int_equal(done[0].status, KVF_ERR_DEADLINE);
    answers(&t)->held = false;
    for (n = 0; n == 0; assert_int_equal(kvf_drain(t.q, done, 2, &n), KVF_OK))
        sim_cluster_step(t.c);
    assert_int_equal(done[0].status, KVF_OK);
    bytes_of(3, 0, want, BLOCK);
    assert_memory_equal(to + BLOCK, want, BLOCK);
    kvf_memory_unregister(m);
    free(to);
    free(want);
    end(&t);
}

/* ---------------------------------------------------------------- links that drop one way */

/* What one of the two sends vanishes: reads end at their deadline and leave their memory alone, both count as dead to each other,
 * and when the wire is whole again they meet without anybody's help. */
static void a_wire_drops_one_way(bool answers_are)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    struct sim_path *path = answers_are ? answers(&t) : sim_net_path(t.n->transport, t.lender->transport);
    static uint8_t to[BLOCK];
    struct kvf_request r = {.op = KVF_OP_GET, .key = key_at(2), .data = to, .length = sizeof to};
    path->cut = true;
    uint64_t start = t.c->env.now_ns;
    assert_int_equal(one(&t, r, 300 * KVF_MS).status, KVF_ERR_DEADLINE);
    assert_in_range(t.c->env.now_ns - start, 300 * KVF_MS, 320 * KVF_MS);
    memset(to, 0xa5, sizeof to);
    read_whole(&t, 1); /* by its copy */
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    struct kvf_node_peer *p = sim_cluster_peer(t.n, t.lender), *q = sim_cluster_peer(t.lender, t.n);
    assert_false(p->up && q->up);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 2).status, KVF_MISS);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 1).status, KVF_OK);
    path->cut = false;
    sim_cluster_settle(t.c, 10 * KVF_SEC);
    assert_true(p->up && q->up);
    uint64_t before = COUNTED(t.n, spill_remote_blocks);
    for (uint64_t key = 20; key < 28; key++) {
        assert_int_equal(put(&t, key, 0, BLOCK), KVF_OK);
        sim_cluster_settle(t.c, 200 * KVF_MS);
    }
    assert_true(COUNTED(t.n, spill_remote_blocks) > before);
    for (unsigned i = 0; i < sizeof to; i++)
        assert_int_equal(to[i], 0xa5);
    end(&t);
}

static void what_the_lender_sends_is_dropped(void **state) { a_wire_drops_one_way(true); }
static void what_we_send_to_the_lender_is_dropped(void **state) { a_wire_drops_one_way(false); }

/* ---------------------------------------------------------------- slow peers */

static void a_slow_lender_is_known_and_avoided(void **state)
{
    struct store t = lent(KVF_WAY_ASK, 4096 * KIB);
    struct kvf_node_peer *p = sim_cluster_peer(t.n, t.lender);
    static uint8_t to[BLOCK];
    struct kvf_request r = {.op = KVF_OP_GET, .key = key_at(2), .data = to, .length = sizeof to};
    assert_true(p->up && !p->pace.slow);
    assert_true(p->pace.recent.total > 0);
    uint64_t lent_before = COUNTED(t.n, spill_remote_blocks);
    answers(&t)->held = true; /* for less than it takes to count as dead */
    assert_int_equal(one(&t, r, 150 * KVF_MS).status, KVF_ERR_DEADLINE);
    assert_true(p->up && p->pace.slow);
    assert_int_equal(COUNTED(t.n, peers_slow), 1);

    /* What has a copy is read there, without asking or waiting; what must leave DRAM goes to SSD. */
    assert_true(read_whole(&t, 1) < LATE);
    assert_int_equal(COUNTED(t.n, copies_read), 1);
    assert_int_equal(COUNTED(t.n, hedges), 0);
    answers(&t)->held = false;
    uint64_t ssd_before = COUNTED(t.n, spill_ssd_blocks);
    for (uint64_t key = 20; key < 24; key++) {
        assert_int_equal(put(&t, key, 0, BLOCK), KVF_OK);
        sim_cluster_settle(t.c, 200 * KVF_MS);
    }
    assert_true(COUNTED(t.n, spill_ssd_blocks) > ssd_before);
    assert_int_equal(COUNTED(t.n, spill_remote_blocks), lent_before);

    /* After a rest it is judged anew, and it answers. */
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_false(p->pace.slow);
    for (uint64_t key = 30; key < 34; key++) {
        assert_int_equal(put(&t, key, 0, BLOCK), KVF_OK);
        sim_cluster_settle(t.c, 200 * KVF_MS);
    }
    assert_true(COUNTED(t.n, spill_remote_blocks) > lent_before);
    assert_int_equal(COUNTED(t.n, peers_slow), 1);
    end(&t);
}

/* Between two lenders the one whose answers take long gets nothing, though each of them comes in time. */
static void of_two_lenders_the_slower_one_is_avoided(void **state)
{
    struct store t = {.c = sim_cluster_create(SEED)};
    struct sim_node_config n = {.name = "n", .dram = 256 * KIB, .staging = 512 * KIB, .way = KVF_WAY_ASK};
    t.n = sim_cluster_add(t.c, &n);
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "slow", .dram = 64 * KIB, .lend = 4096 * KIB});
    struct sim_node *fast = sim_cluster_add(t.c, &(struct sim_node_config){.name = "fast", .dram = 64 * KIB, .lend = 4096 * KIB});
    sim_cluster_connect(t.c);
    assert_int_equal(kvf_queue_create(&t.n->node, 8, &t.q), KVF_OK);
    answers(&t)->delay_ns = 40 * KVF_MS;
    struct kvf_node_peer *p = sim_cluster_peer(t.n, t.lender), *q = sim_cluster_peer(t.n, fast);
    uint64_t key = 1;
    for (; key < 64 && !p->pace.slow; key++) {
        assert_int_equal(put(&t, key, 0, BLOCK), KVF_OK);
        sim_cluster_settle(t.c, 300 * KVF_MS);
    }
    assert_true(p->pace.slow && !q->pace.slow);
    assert_true(p->borrowed_blocks > 0 && q->borrowed_blocks > 0);
    uint64_t there = p->borrowed_blocks, at_fast = q->borrowed_blocks;
    for (uint64_t more = 0; more < 6; more++, key++) {
        assert_int_equal(put(&t, key, 0, BLOCK), KVF_OK);
        sim_cluster_settle(t.c, 300 * KVF_MS);
    }
    assert_int_equal(p->borrowed_blocks, there);
    assert_true(q->borrowed_blocks > at_fast);
    kvf_queue_destroy(t.q);
    sim_cluster_check(t.c);
    sim_cluster_destroy(t.c);
}

int main(void)
{
    printf("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_late_answer_loses_to_the_copy_by_asking),
        cmocka_unit_test(a_one_sided_read_is_not_raced),
        cmocka_unit_test(the_lender_may_win_after_all),
        cmocka_unit_test(a_damaged_copy_loses),
        cmocka_unit_test(a_refusal_leads_to_the_copy),
        cmocka_unit_test(a_read_ends_at_its_deadline_when_neither_comes),
        cmocka_unit_test(a_dead_lender_costs_no_block_that_has_a_copy),
        cmocka_unit_test(a_silent_lender_costs_no_block_that_has_a_copy),
        cmocka_unit_test(a_lender_that_dies_during_a_read_is_replaced_by_the_copy),
        cmocka_unit_test(a_lender_that_wants_its_memory_gets_it_at_once),
        cmocka_unit_test(bad_bytes_at_a_lender_cost_no_copy),
        cmocka_unit_test(a_slot_that_is_reused_under_a_read_costs_no_copy),
        cmocka_unit_test(what_was_read_before_a_move_is_forgotten),
        cmocka_unit_test(a_read_outlives_the_deadline_of_its_message),
        cmocka_unit_test(what_the_lender_sends_is_dropped),
        cmocka_unit_test(what_we_send_to_the_lender_is_dropped),
        cmocka_unit_test(a_slow_lender_is_known_and_avoided),
        cmocka_unit_test(of_two_lenders_the_slower_one_is_avoided),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
