/* What fails around a session: lenders, disks, bits, the wire. A miss costs time; a wrong byte never comes. */
#include "tests/node/world.h"

#include "node/wire.h"

struct quad {
    struct sim_cluster *c;
    struct sim_node *home, *a, *b; /* a and b lend */
};

static struct quad quad_make(uint64_t dram, uint64_t lend_a, uint64_t lend_b, uint64_t ssd, enum kvf_way way)
{
    struct quad t = {.c = sim_cluster_create(SEED)};
    t.home = sim_cluster_add(t.c, &(struct sim_node_config){.name = "home", .dram = dram, .ssd = ssd, .way = way});
    t.a = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = lend_a, .way = way});
    t.b = sim_cluster_add(t.c, &(struct sim_node_config){.name = "b", .dram = 64 * KIB, .lend = lend_b, .way = way});
    sim_cluster_connect(t.c);
    return t;
}

static void quad_end(struct quad *t)
{
    sim_cluster_settle(t->c, 8 * KVF_SEC);
    sim_cluster_check(t->c);
    struct sim_node *nodes[] = {t->home, t->a, t->b};
    for (unsigned i = 0; i < 3; i++)
        if (!nodes[i]->dead)
            assert_true(sim_cluster_empty(nodes[i]));
    sim_cluster_destroy(t->c);
}

/* The entry of the n-th block of a tier. */
static struct kvf_entry *block_at(struct sim_node *node, enum kvf_tier tier, unsigned n)
{
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(node->core->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(node->core->index, h);
        if (e->state == KVF_BLOCK_READY && e->tier == tier && n-- == 0)
            return e;
    }
    return NULL;
}

/* Which block indices are lost, from the index itself. */
static void assert_ranges_are_the_lost_blocks(struct sim_node *node, struct kvf_session *s)
{
    struct kvf_range ranges[64];
    size_t count;
    bool lost[64] = {0}, listed[64] = {0};
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(node->core->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(node->core->index, h);
        if (e->state == KVF_BLOCK_LOST)
            lost[(uint32_t)e->key.lo] = true;
    }
    assert_int_equal(kvf_session_lost(s, ranges, 64, &count), KVF_OK);
    for (size_t i = 0; i < count; i++) {
        assert_true(ranges[i].first % 64 == 0 && ranges[i].count % 64 == 0 && ranges[i].count > 0);
        assert_true(i == 0 || ranges[i].first > ranges[i - 1].first + ranges[i - 1].count);
        for (uint64_t b = ranges[i].first / 64; b < (ranges[i].first + ranges[i].count) / 64; b++)
            listed[b] = true;
    }
    assert_memory_equal(lost, listed, sizeof lost);
    assert_true(count > 0);
}

/* ---------------------------------------------------------------- lenders */

static void lender_dies(enum kvf_way way, bool tell, uint64_t ssd)
{
    struct quad t = quad_make(128 * KIB, 64 * KIB, 64 * KIB, ssd, way);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, ssd ? 1300 : 960, 50), KVF_OK);
    assert_same_bits(engine);
    assert_true(blocks_in(s, KVF_TIER_REMOTE) > 0);
    sim_cluster_kill(t.a, tell);
    enum kvf_status st = KVF_OK;
    for (unsigned i = 0; i < 50 && st == KVF_OK; i++) {
        staging_forget(t.home);
        st = sim_engine_step(engine, s, 1);
        sim_cluster_check(t.c);
        sim_cluster_settle(t.c, 100 * KVF_MS);
    }
    assert_int_equal(st, KVF_LOST);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_LOST);
    assert_ranges_are_the_lost_blocks(t.home, s);
    assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
    sim_cluster_check(t.c);
    size_t count;
    assert_int_equal(kvf_session_lost(s, NULL, 0, &count), KVF_OK);
    assert_int_equal(count, 0);
    staging_forget(t.home);
    assert_int_equal(sim_engine_run(engine, s, tokens_of(s) + 40, 8), KVF_OK);
    assert_same_bits(engine);
    assert_true(COUNTED(t.home, blocks_refilled) > 0);
    assert_int_equal(COUNTED(t.home, blocks_refilled), COUNTED(t.home, blocks_lost));
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

static void a_dead_lenders_blocks_are_listed_and_refilled(void **state) { lender_dies(KVF_WAY_ASK, true, 4096 * KIB); }
static void a_silent_lenders_blocks_are_listed_and_refilled(void **state) { lender_dies(KVF_WAY_GET, false, 4096 * KIB); }
static void a_dead_lender_whose_memory_is_mapped_is_lost_too(void **state) { lender_dies(KVF_WAY_MAPPED, true, 4096 * KIB); }

static void a_fork_learns_what_its_parent_lost(void **state)
{
    struct quad t = quad_make(192 * KIB, 128 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7), *f;
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    assert_true(blocks_in(s, KVF_TIER_REMOTE) > 0);
    assert_int_equal(kvf_session_fork(s, 8, &f), KVF_OK);
    sim_cluster_kill(t.a, true);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_ranges_are_the_lost_blocks(t.home, f);
    assert_int_equal(sim_engine_step(engine, f, 1), KVF_LOST);
    assert_int_equal(sim_engine_refill(engine, f), KVF_OK);
    sim_cluster_check(t.c);
    assert_int_equal(sim_engine_run(engine, f, 1400, 20), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1350, 20), KVF_OK); /* what the fork refilled is the parent's */
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(f), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

/* What a session is refilling is no business of its forks until it is whole, and theirs to refill when it was given up. */
static void a_fork_reads_nothing_that_is_being_refilled(void **state)
{
    struct quad t = quad_make(192 * KIB, 128 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7), *f;
    struct kvf_range range;
    size_t count;
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    assert_int_equal(kvf_session_fork(s, 8, &f), KVF_OK);
    sim_cluster_kill(t.a, true);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(kvf_session_lost(s, &range, 1, &count), KVF_OK);
    assert_true(count > 0);
    assert_int_equal(kvf_step_refill(s, range.first, 64), KVF_OK);
    float *wrong = calloc((size_t)64 * engine->desc.kv_heads * engine->desc.dim_k, sizeof *wrong); /* bytes so far */
    for (uint32_t l = 0; l < engine->desc.layers; l++)
        assert_int_equal(kvf_step_append(s, l, wrong, wrong), KVF_OK);
    free(wrong);
    assert_int_equal(kvf_step_refill(f, range.first, 64), KVF_ERR_BUSY);
    assert_int_equal(sim_engine_step(engine, f, 1), KVF_ERR_DEADLINE);
    kvf_step_abort(s);
    assert_int_equal(sim_engine_step(engine, f, 1), KVF_LOST);
    sim_cluster_check(t.c);
    assert_int_equal(sim_engine_run(engine, f, 1400, 20), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1350, 20), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(f), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

static void a_lender_that_comes_back_starts_empty_and_is_used_again(void **state)
{
    struct quad t = quad_make(128 * KIB, 64 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    assert_int_equal(kvf_lend_blocks(t.a->core), 16);
    sim_cluster_partition(t.home, t.a, true);
    sim_cluster_settle(t.c, 4 * KVF_SEC);
    assert_false(sim_cluster_peer(t.home, t.a)->up);
    assert_int_equal(kvf_lend_blocks(t.a->core), 16); /* its lease lives: etcd says so */
    assert_ranges_are_the_lost_blocks(t.home, s);
    assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
    sim_cluster_partition(t.home, t.a, false);
    sim_cluster_settle(t.c, 8 * KVF_SEC);
    assert_true(sim_cluster_peer(t.home, t.a)->up);
    uint64_t before = COUNTED(t.home, spill_remote_blocks);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    assert_same_bits(engine);
    assert_true(COUNTED(t.home, spill_remote_blocks) > before);
    assert_int_equal(sim_cluster_peer(t.home, t.a)->borrowed_blocks, kvf_lend_blocks(t.a->core));
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

static void a_short_break_of_the_wire_leaks_nothing_at_the_lender(void **state)
{
    for (unsigned at = 0; at < 12; at++) {
        struct quad t = quad_make(128 * KIB, 64 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
        struct kvf_session *s = session_on(t.home, 7);
        assert_int_equal(sim_engine_run(engine, s, 440, 40), KVF_OK);
        t.c->single = true;
        uint64_t until = t.c->delivered + at;
        assert_int_equal(sim_engine_run(engine, s, 520, 20), KVF_OK); /* spilling begins */
        while (t.c->delivered < until)
            sim_cluster_step(t.c);
        sim_cluster_partition(t.home, t.a, true);
        t.c->single = false;
        sim_cluster_settle(t.c, 4 * KVF_SEC);
        sim_cluster_partition(t.home, t.a, false);
        sim_cluster_settle(t.c, 6 * KVF_SEC);
        assert_int_equal(sim_engine_run(engine, s, 700, 50), KVF_OK);
        sim_cluster_settle(t.c, 6 * KVF_SEC);
        assert_int_equal(sim_cluster_peer(t.home, t.a)->borrowed_blocks, kvf_lend_blocks(t.a->core));
        sim_cluster_check(t.c);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        quad_end(&t);
    }
    assert_same_bits(engine);
}

static void a_lender_that_restarts_is_another(void **state)
{
    struct quad t = quad_make(128 * KIB, 64 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 900, 50), KVF_OK);
    sim_cluster_kill(t.a, false);
    sim_cluster_settle(t.c, 8 * KVF_SEC); /* its lease ends */
    struct sim_node *again = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = 64 * KIB, .lend = 64 * KIB});
    sim_cluster_connect(t.c);
    assert_int_equal(sim_engine_run(engine, s, 1300, 50), KVF_OK);
    assert_same_bits(engine);
    assert_true(kvf_lend_blocks(again->core) > 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_settle(t.c, 2 * KVF_SEC);
    assert_true(sim_cluster_empty(again));
    quad_end(&t);
}

static void a_borrower_that_dies_is_forgotten(void **state)
{
    struct quad t = quad_make(128 * KIB, 64 * KIB, 64 * KIB, 0, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 900, 50), KVF_OK);
    assert_true(kvf_lend_blocks(t.a->core) > 0 && kvf_lend_blocks(t.b->core) > 0);
    kvf_session_close(s);
    sim_cluster_kill(t.home, false);
    sim_cluster_settle(t.c, 12 * KVF_SEC);
    engine->compared = 0;
    quad_end(&t);
}

static void a_full_lender_is_passed_over(void **state)
{
    struct quad t = quad_make(128 * KIB, 64 * KIB, 64 * KIB, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1600, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_lend_blocks(t.a->core), 16);
    assert_int_equal(kvf_lend_blocks(t.b->core), 16);
    assert_true(blocks_in(s, KVF_TIER_SSD) > 20);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

/* A lender whose every answer is a refusal must not be asked for ever while there is an SSD. */
static void a_lender_that_refuses_is_left_for_a_while(void **state)
{
    struct quad t = quad_make(128 * KIB, 512 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    struct kvf_node_peer *b = sim_cluster_peer(t.a, t.b);
    for (uint32_t l = 0; l < 2; l++) { /* somebody else's blocks under our keys */
        for (uint32_t h = 0; h < 2; h++) {
            uint8_t payload[64];
            struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
            kvf_wire_reserve(&w, &(struct kvf_reserve_item){.key = kvf_block_key(7, l, h, 0), .bytes = SLOT}, 1);
            kvf_lend_message(t.a->core, b,
                             &(struct kvf_message){.type = KVF_MSG_RESERVE, .payload = payload, .bytes = kvf_writer_used(&w)});
        }
    }
    assert_int_equal(kvf_lend_blocks(t.a->core), 4);
    assert_int_equal(sim_engine_run(engine, s, 900, 50), KVF_OK);
    assert_same_bits(engine);
    assert_true(blocks_in(s, KVF_TIER_SSD) > 0);
    kvf_lend_message(t.a->core, b, &(struct kvf_message){.type = KVF_MSG_RELEASE_ALL});
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

/* ---------------------------------------------------------------- damage */

static void damage_is_found(struct quad *t, struct kvf_session *s, uint8_t *byte)
{
    uint64_t corrupt = COUNTED(t->home, blocks_corrupt);
    *byte ^= 0x10;
    staging_forget(t->home);
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_LOST);
    assert_int_equal(COUNTED(t->home, blocks_corrupt), corrupt + 1);
    sim_cluster_check(t->c);
    assert_ranges_are_the_lost_blocks(t->home, s);
    assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, tokens_of(s) + 20, 5), KVF_OK);
    assert_same_bits(engine);
}

static void a_bit_flipped_on_disk_is_never_returned(void **state)
{
    struct quad t = quad_make(128 * KIB, 0, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    for (unsigned i = 0; i < 5; i++) {
        struct kvf_entry *e = block_at(t.home, KVF_TIER_SSD, i * 3);
        damage_is_found(&t, s, t.home->media->bytes + kvf_entry_location(e) + i * 1000);
    }
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

static void a_bit_flipped_at_a_lender_is_never_returned(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++) {
        struct quad t = quad_make(128 * KIB, 64 * KIB, 0, 4096 * KIB, way);
        struct kvf_session *s = session_on(t.home, 7);
        assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
        for (unsigned i = 0; i < 3; i++) {
            struct kvf_entry *e = block_at(t.home, KVF_TIER_REMOTE, i * 2);
            damage_is_found(&t, s, t.a->core->memory + kvf_entry_location(e) + i * 1300);
        }
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        quad_end(&t);
    }
}

/* A chunk that was verified shares a page of the disk with one that is read later, when the page has rotted. */
static void a_verified_chunk_is_not_overwritten_by_a_damaged_page(void **state)
{
    struct quad t = quad_make(128 * KIB, 0, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    struct kvf_attend_options o = {.budget = 0.001f, .local_tokens = 8};
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    staging_forget(t.home);
    engine->options = &o;
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK); /* the sink chunk of block 0, and one more */
    struct kvf_entry *e = kvf_index_entry(t.home->core->index, kvf_sess_block(s->sess, 0, 0, 0));
    assert_int_equal(e->tier, KVF_TIER_SSD);
    t.home->media->bytes[kvf_entry_location(e) + 100] ^= 0x10; /* in the sink chunk */
    engine->options = NULL;
    engine->compared = 0;
    enum kvf_status st = sim_engine_step(engine, s, 1);
    assert_true(st == KVF_OK || st == KVF_LOST);
    assert_same_bits(engine);
    assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    engine->compared = 0;
    quad_end(&t);
}

static void a_block_damaged_on_the_way_is_refused_by_the_lender(void **state)
{
    struct quad t = quad_make(128 * KIB, 64 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, s, 448, 64), KVF_OK);
    struct kvf_entry *e = block_at(t.home, KVF_TIER_DRAM, 0);
    uint8_t *byte = t.home->core->memory + kvf_entry_location(e) + 77;
    *byte ^= 1; /* memory that went bad after sealing */
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(kvf_session_park(s, 2 * KVF_SEC), KVF_OK); /* by way of SSD, where it is found later */
    assert_int_equal(COUNTED(t.a, blocks_corrupt) > 0, true);
    assert_int_equal(kvf_session_resume(s, 5 * KVF_SEC), KVF_OK);
    engine->compared = 0;
    assert_int_equal(sim_engine_run(engine, s, 500, 10), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

/* ---------------------------------------------------------------- disk */

static void a_failed_write_keeps_the_block_in_dram(void **state)
{
    struct quad t = quad_make(128 * KIB, 0, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    struct kvf_ssd_stats stats;
    assert_int_equal(sim_engine_run(engine, s, 600, 50), KVF_OK);
    uint64_t on_ssd = blocks_in(s, KVF_TIER_SSD);
    sim_disk_fail(t.home->disk, true, SIM_FAULT_IO, 0, 1000);
    assert_int_equal(sim_engine_run(engine, s, 1600, 50), KVF_ERR_FULL);
    kvf_ssd_stats(t.home->core->ssd, &stats);
    assert_true(stats.degraded);
    assert_in_range(blocks_in(s, KVF_TIER_SSD), on_ssd, on_ssd + 8); /* what was under way before */
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_true(COUNTED(t.home, spill_failed) > 0);
    sim_cluster_check(t.c);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

static void a_full_disk_keeps_the_block_in_dram(void **state)
{
    struct quad t = quad_make(128 * KIB, 0, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    sim_disk_fail(t.home->disk, true, SIM_FAULT_FULL, 3, 20); /* joined writes that fail are tried one by one */
    enum kvf_status st = sim_engine_run(engine, s, 1200, 50);
    assert_true(st == KVF_ERR_FULL);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    engine->compared = 0;
    quad_end(&t);
}

static void damage_that_the_disk_does_not_tell_is_found(void **state)
{
    static const enum sim_fault writes[] = {SIM_FAULT_FLIP, SIM_FAULT_TEAR, SIM_FAULT_MISPLACE};
    for (unsigned f = 0; f < 3; f++) {
        struct quad t = quad_make(128 * KIB, 0, 0, 4096 * KIB, KVF_WAY_ASK);
        struct kvf_session *s = session_on(t.home, 7);
        sim_disk_fail(t.home->disk, true, writes[f], 5, 3);
        assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK); /* refills what is found */
        assert_true(COUNTED(t.home, blocks_corrupt) > 0);
        assert_same_bits(engine);
        sim_disk_fail(t.home->disk, false, f == 0 ? SIM_FAULT_FLIP : SIM_FAULT_MISPLACE, 2, 2);
        staging_forget(t.home);
        assert_int_equal(sim_engine_run(engine, s, 1300, 20), KVF_OK);
        assert_same_bits(engine);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        quad_end(&t);
    }
}

static void a_failed_read_is_a_loss(void **state)
{
    for (enum sim_fault f = SIM_FAULT_IO; f <= SIM_FAULT_SHORT; f += SIM_FAULT_SHORT - SIM_FAULT_IO) {
        struct quad t = quad_make(128 * KIB, 0, 0, 4096 * KIB, KVF_WAY_ASK);
        struct kvf_session *s = session_on(t.home, 7);
        assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
        staging_forget(t.home);
        sim_disk_fail(t.home->disk, false, f, 3, 20); /* joined reads that fail are tried again one by one */
        assert_int_equal(sim_engine_step(engine, s, 1), KVF_LOST);
        sim_cluster_check(t.c);
        assert_ranges_are_the_lost_blocks(t.home, s);
        assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
        assert_int_equal(sim_engine_run(engine, s, 1300, 20), KVF_OK);
        assert_same_bits(engine);
        assert_int_equal(COUNTED(t.home, blocks_corrupt), 0);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        quad_end(&t);
    }
}

/* ---------------------------------------------------------------- time and room */

static void a_lender_that_answers_nothing_ends_at_the_callers_deadline(void **state)
{
    struct quad t = quad_make(128 * KIB, 64 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    struct kvf_attend_options o = {.timeout_ns = 300 * KVF_MS};
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    staging_forget(t.home);
    sim_net_path(t.a->transport, t.home->transport)->held = true;
    engine->options = &o;
    uint64_t start = t.c->env.now_ns;
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_ERR_DEADLINE);
    assert_in_range(t.c->env.now_ns - start, 300 * KVF_MS, 340 * KVF_MS);
    sim_cluster_check(t.c);
    engine->options = NULL;
    sim_net_path(t.a->transport, t.home->transport)->held = false; /* late answers arrive, for nobody */
    assert_int_equal(sim_engine_run(engine, s, 1100, 20), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(COUNTED(t.home, blocks_corrupt), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

static void a_disk_that_hangs_ends_at_the_callers_deadline(void **state)
{
    struct quad t = quad_make(128 * KIB, 0, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    struct kvf_attend_options o = {.timeout_ns = 300 * KVF_MS};
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    staging_forget(t.home);
    sim_disk_hold(t.home->disk, true);
    engine->options = &o;
    assert_int_equal(sim_engine_step(engine, s, 1), KVF_ERR_DEADLINE);
    sim_cluster_check(t.c);
    engine->options = NULL;
    sim_disk_hold(t.home->disk, false);
    sim_disk_release_all(t.home->disk);
    assert_int_equal(sim_engine_run(engine, s, 1100, 20), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

/* Reads ahead ended at their own, earlier deadline: a caller with more time asks again. */
static void a_read_that_ended_early_is_asked_for_again(void **state)
{
    struct quad t = quad_make(128 * KIB, 64 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_on(t.home, 7);
    struct kvf_attend_options o = {.timeout_ns = 5 * KVF_SEC};
    assert_int_equal(sim_engine_run(engine, s, 1000, 50), KVF_OK);
    staging_forget(t.home);
    t.home->core->settings.fetch_timeout_ns = 10 * KVF_MS;
    sim_net_path(t.a->transport, t.home->transport)->delay_ns = 30 * KVF_MS;
    engine->options = &o;
    for (unsigned i = 0; i < 6; i++) {
        staging_forget(t.home);
        assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
    }
    engine->options = NULL;
    assert_same_bits(engine);
    t.home->core->settings.fetch_timeout_ns = 10 * KVF_SEC;
    sim_net_path(t.a->transport, t.home->transport)->delay_ns = 0;
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    quad_end(&t);
}

static void staging_may_be_smaller_than_a_layer(void **state)
{
    for (uint64_t slots = 2; slots <= 6; slots += 2) {
        struct sim_cluster *c = sim_cluster_create(SEED);
        struct sim_node *home = sim_cluster_add(
            c, &(struct sim_node_config){
                   .name = "home", .dram = 64 * KIB, .staging = slots * SLOT, .ssd = 4096 * KIB, .block_max = SLOT, .alone = true});
        struct kvf_session *s = session_on(home, 7);
        assert_int_equal(sim_engine_run(engine, s, 1200, 64), KVF_OK);
        assert_true(blocks_in(s, KVF_TIER_SSD) > 3 * slots);
        assert_int_equal(sim_engine_run(engine, s, 1210, 1), KVF_OK);
        assert_same_bits(engine);
        sim_cluster_check(c);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        sim_cluster_settle(c, KVF_SEC);
        assert_true(sim_cluster_empty(home));
        sim_cluster_destroy(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dead_lenders_blocks_are_listed_and_refilled),
        cmocka_unit_test(a_silent_lenders_blocks_are_listed_and_refilled),
        cmocka_unit_test(a_dead_lender_whose_memory_is_mapped_is_lost_too),
        cmocka_unit_test(a_fork_learns_what_its_parent_lost),
        cmocka_unit_test(a_fork_reads_nothing_that_is_being_refilled),
        cmocka_unit_test(a_lender_that_comes_back_starts_empty_and_is_used_again),
        cmocka_unit_test(a_short_break_of_the_wire_leaks_nothing_at_the_lender),
        cmocka_unit_test(a_lender_that_restarts_is_another),
        cmocka_unit_test(a_borrower_that_dies_is_forgotten),
        cmocka_unit_test(a_full_lender_is_passed_over),
        cmocka_unit_test(a_lender_that_refuses_is_left_for_a_while),
        cmocka_unit_test(a_bit_flipped_on_disk_is_never_returned),
        cmocka_unit_test(a_bit_flipped_at_a_lender_is_never_returned),
        cmocka_unit_test(a_verified_chunk_is_not_overwritten_by_a_damaged_page),
        cmocka_unit_test(a_block_damaged_on_the_way_is_refused_by_the_lender),
        cmocka_unit_test(a_failed_write_keeps_the_block_in_dram),
        cmocka_unit_test(a_full_disk_keeps_the_block_in_dram),
        cmocka_unit_test(damage_that_the_disk_does_not_tell_is_found),
        cmocka_unit_test(a_failed_read_is_a_loss),
        cmocka_unit_test(a_lender_that_answers_nothing_ends_at_the_callers_deadline),
        cmocka_unit_test(a_disk_that_hangs_ends_at_the_callers_deadline),
        cmocka_unit_test(a_read_that_ended_early_is_asked_for_again),
        cmocka_unit_test(staging_may_be_smaller_than_a_layer),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
