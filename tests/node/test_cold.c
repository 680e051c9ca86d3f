/* Sessions whose blocks lie in 8 bits an element below DRAM: attention errs within a bound, wherever they went; nothing damaged is
 * taken for good; what is not a session's comes back byte for byte. */
#include "tests/node/world.h"

#include <math.h>

#define ID 7
#define COLD_SLOT (16 * KIB) /* bytes of an exact block of `large` */

struct trio {
    struct sim_cluster *c;
    struct sim_node *a, *b, *lender;
    unsigned kept; /* oldest requests that a's disk does not do */
};

static struct trio trio_make(const char *cold_a, const char *cold_b, uint64_t dram, uint64_t lend, uint64_t ssd, enum kvf_way way)
{
    struct trio t = {.c = sim_cluster_create(SEED)};
    struct sim_node_config a = {.name = "a", .dram = dram, .ssd = ssd, .way = way, .cold = cold_a}, b = a;
    b.name = "b";
    b.cold = cold_b;
    t.a = sim_cluster_add(t.c, &a);
    t.b = sim_cluster_add(t.c, &b);
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB, .lend = lend, .way = way});
    sim_cluster_connect(t.c);
    return t;
}

static void trio_end(struct trio *t)
{
    sim_cluster_settle(t->c, 8 * KVF_SEC);
    sim_cluster_check(t->c);
    struct sim_node *nodes[] = {t->a, t->b, t->lender};
    for (unsigned i = 0; i < 3; i++) {
        if (nodes[i]->dead)
            continue;
        assert_true(sim_cluster_empty(nodes[i]));
        assert_int_equal(nodes[i]->core->cold_bytes, 0);
        assert_int_equal(nodes[i]->core->words_excess, 0);
    }
    sim_cluster_destroy(t->c);
}

static struct kvf_session *session_of(const struct sim_engine *e, struct sim_node *node)
{
    struct kvf_session *s = NULL;
    assert_int_equal(kvf_session_create(&node->node, sim_engine_model(e, node), ID, &s), KVF_OK);
    return s;
}

static struct kvf_session *attach(const struct sim_engine *e, struct sim_node *n)
{
    struct kvf_session *s = NULL;
    assert_int_equal(kvf_session_attach(&n->node, sim_engine_model(e, n), ID, 10 * KVF_SEC, &s), KVF_OK);
    return s;
}

/* What a format may cost on the engine's numbers (uniform, so the steps of int8 are 1/127 of the range). */
static double bound_of(const char *cold)
{
    return strcmp(cold, "int8") == 0 ? 0.01 : strcmp(cold, "fp8") == 0 ? 0.05 : 0;
}

/* What was compared since the last call erred, but within the bound. */
static void assert_error(struct sim_engine *e, double bound)
{
    double error = sqrt(e->error2 / e->norm2);
    assert_true(e->compared > 0 && e->different > 0);
    assert_true(error > 0 && error < bound);
    e->compared = e->different = 0;
    e->error2 = e->norm2 = 0;
}

static unsigned blocks_of(struct sim_node *node, enum kvf_tier tier, enum kvf_cold_format format)
{
    uint64_t cursor = 0;
    unsigned n = 0;
    for (kvf_handle h; (h = kvf_index_walk(node->core->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(node->core->index, h);
        n += e->state == KVF_BLOCK_READY && e->tier == tier && kvf_cold_format_of(e) == format;
    }
    return n;
}

/* The n-th block of a tier that does not lie exact. */
static struct kvf_entry *cold_at(struct sim_node *node, enum kvf_tier tier, unsigned n)
{
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(node->core->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(node->core->index, h);
        if (e->state == KVF_BLOCK_READY && e->tier == tier && kvf_cold_format_of(e) != KVF_COLD_EXACT && n-- == 0)
            return e;
    }
    fail_msg("no such block");
    return NULL;
}

static enum kvf_cold_format format_of(const char *cold)
{
    return kvf_cold_format_named(cold);
}

/* ---------------------------------------------------------------- down and read */

static void spills(struct sim_engine *e, const char *cold, unsigned element, enum kvf_way way)
{
    uint64_t slot = COLD_SLOT / 2 * element;
    struct trio t = trio_make(cold, "exact", 16 * slot, 8 * slot, 512 * slot, way);
    struct kvf_session *s = session_of(e, t.a);
    assert_int_equal(sim_engine_run(e, s, 1150, 50), KVF_OK);
    sim_cluster_check(t.c);
    staging_forget(t.a);
    assert_int_equal(sim_engine_run(e, s, 1200, 1), KVF_OK);
    assert_error(e, bound_of(cold));
    unsigned remote = blocks_of(t.a, KVF_TIER_REMOTE, format_of(cold)), ssd = blocks_of(t.a, KVF_TIER_SSD, format_of(cold));
    assert_true(remote > 8 && ssd > 0); /* twice as many lie at the lender as would exact */
    assert_int_equal(blocks_in(s, KVF_TIER_REMOTE), remote);
    assert_int_equal(blocks_in(s, KVF_TIER_SSD), ssd);
    assert_int_equal(t.a->core->tier_bytes[KVF_TIER_SSD], ssd * slot / element);
    assert_int_equal(COUNTED(t.a, spill_remote_bytes), COUNTED(t.a, spill_remote_blocks) * slot / element);
    assert_int_equal(COUNTED(t.a, spill_ssd_bytes), COUNTED(t.a, spill_ssd_blocks) * slot / element);
    assert_true(COUNTED(t.a, cold_blocks) >= remote + ssd);
    assert_true(COUNTED(t.a, cold_chunks_decoded) > 0);
    assert_int_equal(COUNTED(t.a, cold_refused), 0);
    assert_int_equal(COUNTED(t.a, blocks_lost), 0);
    assert_int_equal(COUNTED(t.a, blocks_corrupt), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void int8_errs_within_its_bound(void **state) { spills(large, "int8", 2, KVF_WAY_ASK); }
static void fp8_errs_within_its_bound(void **state) { spills(large, "fp8", 2, KVF_WAY_GET); }
static void int8_over_mapped_memory_errs_within_its_bound(void **state) { spills(large, "int8", 2, KVF_WAY_MAPPED); }

static void other_types_err_within_the_bound(void **state)
{
    for (int i = 0; i < 2; i++) {
        struct sim_engine *e = sim_engine_create(SEED + 10, 64, i ? KVF_F32 : KVF_BF16, 16, 64, 1200);
        spills(e, i ? "fp8" : "int8", i ? 4 : 2, KVF_WAY_ASK);
        sim_engine_destroy(e);
    }
}

/* Chunks smaller than a page of the disk, and a budget: single chunks are read and decoded. */
static void chosen_chunks_of_small_blocks_are_decoded(void **state)
{
    struct kvf_attend_options options = {.budget = 0.3f};
    struct trio t = trio_make("int8", "exact", 128 * KIB, 0, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_of(engine, t.a);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    engine->options = &options;
    for (unsigned i = 0; i < 10; i++) {
        staging_forget(t.a);
        assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
    }
    engine->options = NULL;
    assert_error(engine, bound_of("int8"));
    assert_int_equal(sim_engine_run(engine, s, 1300, 64), KVF_OK);
    assert_error(engine, bound_of("int8"));
    assert_int_equal(COUNTED(t.a, blocks_corrupt), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- up and down again */

/* A hash of every block's words below DRAM: of its checksums, so of its bytes, and of its scales. */
static uint64_t words_hash(struct sim_node *node, unsigned *n)
{
    uint64_t cursor = 0, hash = 0;
    *n = 0;
    for (kvf_handle h; (h = kvf_index_walk(node->core->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(node->core->index, h);
        if (kvf_cold_format_of(e) == KVF_COLD_EXACT)
            continue;
        uint64_t own = 0;
        unsigned words = kvf_entry_chunks(e) + kvf_cold_scale_words(node->core->models[kvf_entry_model(e)]);
        node->core->dev->checksum(node->core->dev, NULL, kvf_sums_at(node->core->sums, e->sums), words * 8, e->key.lo, &own);
        hash += own;
        ++*n;
    }
    return hash;
}

static void a_block_that_rises_and_goes_down_again_keeps_its_bytes(void **state)
{
    for (int i = 0; i < 2; i++) {
        struct trio t = trio_make(i ? "fp8" : "int8", "exact", 2048 * KIB, 0, 8192 * KIB, KVF_WAY_ASK);
        struct kvf_session *s = session_of(large, t.a);
        assert_int_equal(sim_engine_run(large, s, 1024, 64), KVF_OK);
        unsigned n = 0, again = 0;
        uint64_t before = 0;
        for (int round = 0; round < 3; round++) {
            assert_int_equal(kvf_session_park(s, 60 * KVF_SEC), KVF_OK);
            assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 0);
            uint64_t hash = words_hash(t.a, &again);
            assert_true(again == 64 && (round == 0 || (again == n && hash == before)));
            before = hash;
            n = again;
            assert_int_equal(kvf_session_resume(s, 60 * KVF_SEC), KVF_OK);
            sim_cluster_settle(t.c, 3 * KVF_SEC);
            assert_true(blocks_in(s, KVF_TIER_DRAM) > 32);
            sim_cluster_check(t.c);
        }
        large->error2 = large->norm2 = large->different = 0;
        assert_int_equal(sim_engine_run(large, s, 1100, 10), KVF_OK);
        assert_error(large, bound_of(i ? "fp8" : "int8"));
        assert_int_equal(COUNTED(t.a, blocks_lost) + COUNTED(t.a, blocks_corrupt), 0);
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        trio_end(&t);
    }
}

/* Blocks rise while attention reads their lower copies: it never sees half of a change. */
static void blocks_rise_while_attention_reads_them(void **state)
{
    struct trio t = trio_make("int8", "exact", 2048 * KIB, 0, 8192 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_of(large, t.a);
    assert_int_equal(sim_engine_run(large, s, 1024, 64), KVF_OK);
    for (int round = 0; round < 4; round++) {
        assert_int_equal(kvf_session_park(s, 60 * KVF_SEC), KVF_OK);
        assert_int_equal(kvf_session_resume(s, 60 * KVF_SEC), KVF_OK);
        assert_int_equal(sim_engine_run(large, s, tokens_of(s) + 20, 1), KVF_OK);
        sim_cluster_check(t.c);
    }
    assert_error(large, bound_of("int8"));
    assert_int_equal(COUNTED(t.a, blocks_lost) + COUNTED(t.a, blocks_corrupt), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- moves */

/* To another node and back, each with its own format; blocks lie in every tier. */
static void moves(const char *cold_a, const char *cold_b, uint64_t lend, enum kvf_way way)
{
    double bound = bound_of(cold_a) > bound_of(cold_b) ? bound_of(cold_a) : bound_of(cold_b);
    struct trio t = trio_make(cold_a, cold_b, 384 * KIB, lend, 8192 * KIB, way);
    struct kvf_session *s = session_of(large, t.a);
    assert_int_equal(sim_engine_run(large, s, 1000, 50), KVF_OK);
    t.c->single = true;
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    s = attach(large, t.b);
    assert_int_equal(sim_engine_run(large, s, 1030, 1), KVF_OK); /* while blocks stream */
    sim_cluster_check(t.c);
    t.c->single = false;
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    assert_int_equal(blocks_in(s, KVF_TIER_PEER), 0);
    assert_true(sim_cluster_empty(t.a));
    assert_int_equal(sim_engine_run(large, s, 1200, 30), KVF_OK);
    sim_cluster_check(t.c);
    assert_true(blocks_of(t.b, KVF_TIER_SSD, format_of(cold_b)) > 0); /* what goes down here takes on our own format */
    if (lend && strcmp(cold_a, cold_b) != 0)
        assert_true(blocks_of(t.b, KVF_TIER_REMOTE, format_of(cold_a)) > 0); /* ... and what a lender holds keeps its own */
    assert_int_equal(kvf_session_move(s, "a", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    s = attach(large, t.a);
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    staging_forget(t.a);
    assert_int_equal(sim_engine_run(large, s, 1300, 64), KVF_OK);
    assert_error(large, bound * 1.5); /* encoded twice, in two formats */
    assert_int_equal(COUNTED(t.a, blocks_lost) + COUNTED(t.b, blocks_lost), 0);
    assert_int_equal(COUNTED(t.a, blocks_corrupt) + COUNTED(t.b, blocks_corrupt) + COUNTED(t.lender, blocks_corrupt), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_session_moves_between_nodes_of_one_format(void **state) { moves("int8", "int8", 64 * KIB, KVF_WAY_ASK); }
static void a_session_moves_between_nodes_of_two_formats(void **state) { moves("int8", "fp8", 64 * KIB, KVF_WAY_GET); }
static void a_session_moves_to_a_node_that_keeps_blocks_exact(void **state) { moves("fp8", "exact", 64 * KIB, KVF_WAY_MAPPED); }
static void a_session_moves_from_a_node_that_keeps_blocks_exact(void **state) { moves("exact", "int8", 0, KVF_WAY_ASK); }

/* Blocks that were handed over exact, from DRAM, and go down at the old home before they are fetched: they are what was said. */
static void departed_blocks_keep_the_format_they_were_handed_over_in(void **state)
{
    struct trio t = {.c = sim_cluster_create(SEED)};
    t.a = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = 1024 * KIB, .ssd = 8192 * KIB, .cold = "int8"});
    t.b = sim_cluster_add(t.c, &(struct sim_node_config){.name = "b", .dram = 128 * KIB, .no_borrow = true});
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB});
    sim_cluster_connect(t.c);
    struct kvf_session *s = session_of(large, t.a), *other;
    assert_int_equal(sim_engine_run(large, s, 650, 64), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 40);
    assert_int_equal(kvf_session_move(s, "b", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    assert_int_equal(kvf_session_create(&t.a->node, sim_engine_model(large, t.a), ID + 1, &other), KVF_OK);
    assert_int_equal(sim_engine_run(large, other, 640, 64), KVF_OK); /* needs the room of the departed ones */
    assert_true(blocks_of(t.a, KVF_TIER_SSD, KVF_COLD_EXACT) > 0);
    sim_cluster_check(t.c);
    s = attach(large, t.b);
    large->compared = large->different = 0;
    assert_int_equal(sim_engine_run(large, s, 690, 5), KVF_OK); /* all from a: b has no room for more than the open blocks */
    assert_same_bits(large);
    assert_int_equal(COUNTED(t.b, blocks_lost) + COUNTED(t.b, blocks_corrupt), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- loss and damage */

static void a_dead_lenders_blocks_are_lost_and_refilled(void **state)
{
    struct trio t = trio_make("int8", "exact", 512 * KIB, 128 * KIB, 8192 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_of(large, t.a);
    assert_int_equal(sim_engine_run(large, s, 1000, 50), KVF_OK);
    assert_true(blocks_of(t.a, KVF_TIER_REMOTE, KVF_COLD_INT8) > 0);
    sim_cluster_kill(t.lender, true);
    enum kvf_status st = KVF_OK;
    for (unsigned i = 0; i < 50 && st == KVF_OK; i++) {
        staging_forget(t.a);
        st = sim_engine_step(large, s, 1);
        sim_cluster_settle(t.c, 100 * KVF_MS);
    }
    assert_int_equal(st, KVF_LOST);
    assert_int_equal(sim_engine_refill(large, s), KVF_OK);
    sim_cluster_check(t.c);
    assert_int_equal(sim_engine_run(large, s, tokens_of(s) + 100, 10), KVF_OK);
    assert_error(large, bound_of("int8"));
    assert_true(COUNTED(t.a, blocks_refilled) > 0 && COUNTED(t.a, blocks_refilled) == COUNTED(t.a, blocks_lost));
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void damage_is_found(struct trio *t, struct kvf_session *s, uint8_t *byte)
{
    uint64_t corrupt = COUNTED(t->a, blocks_corrupt);
    *byte ^= 0x10;
    staging_forget(t->a);
    assert_int_equal(sim_engine_step(large, s, 1), KVF_LOST);
    assert_int_equal(COUNTED(t->a, blocks_corrupt), corrupt + 1);
    sim_cluster_check(t->c);
    assert_int_equal(sim_engine_refill(large, s), KVF_OK);
    assert_int_equal(sim_engine_run(large, s, tokens_of(s) + 8, 4), KVF_OK);
}

static void a_flipped_bit_of_a_code_or_a_scale_is_found(void **state)
{
    struct trio t = trio_make("int8", "exact", 256 * KIB, 64 * KIB, 8192 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_of(large, t.a);
    assert_int_equal(sim_engine_run(large, s, 1100, 50), KVF_OK);
    for (unsigned i = 0; i < 4; i++) {
        struct kvf_entry *e = cold_at(t.a, KVF_TIER_SSD, i * 2);
        damage_is_found(&t, s, t.a->media->bytes + kvf_entry_location(e) + i * 2047);
        e = cold_at(t.a, KVF_TIER_SSD, i);
        uint8_t *scales = (uint8_t *)(kvf_sums_at(t.a->core->sums, e->sums) + kvf_entry_chunks(e));
        damage_is_found(&t, s, scales + i * 45);
    }
    for (unsigned i = 0; i < 2; i++) {
        struct kvf_entry *e = cold_at(t.a, KVF_TIER_REMOTE, i);
        damage_is_found(&t, s, t.lender->core->memory + kvf_entry_location(e) + 3000 + i);
    }
    assert_error(large, bound_of("int8"));
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void a_rising_block_that_is_damaged_is_lost(void **state)
{
    struct trio t = trio_make("int8", "exact", 2048 * KIB, 0, 8192 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_of(large, t.a);
    assert_int_equal(sim_engine_run(large, s, 640, 64), KVF_OK);
    assert_int_equal(kvf_session_park(s, 60 * KVF_SEC), KVF_OK);
    t.a->media->bytes[kvf_entry_location(cold_at(t.a, KVF_TIER_SSD, 5)) + 100] ^= 1;
    assert_int_equal(kvf_session_resume(s, 60 * KVF_SEC), KVF_OK);
    sim_cluster_settle(t.c, 3 * KVF_SEC);
    assert_int_equal(COUNTED(t.a, blocks_corrupt), 1);
    assert_int_equal(COUNTED(t.a, blocks_lost), 1);
    sim_cluster_check(t.c);
    assert_int_equal(sim_engine_refill(large, s), KVF_OK);
    assert_int_equal(sim_engine_run(large, s, 700, 20), KVF_OK);
    assert_error(large, bound_of("int8"));
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* Lets the disk do everything but its oldest requests. */
static void release_later(struct sim_cluster *c, void *arg)
{
    struct trio *t = arg;
    for (unsigned i = t->kept; i < sim_disk_pending(t->a->disk); i++)
        sim_disk_release(t->a->disk, i);
}

/* A block is found damaged by attention while its rise is under way, and refilled: the rise that ends then changes nothing. */
static void a_rise_whose_block_was_lost_meanwhile_ends_alone(void **state)
{
    struct trio t = trio_make("int8", "exact", 2048 * KIB, 0, 8192 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_of(large, t.a);
    assert_int_equal(sim_engine_run(large, s, 640, 64), KVF_OK);
    assert_int_equal(kvf_session_park(s, 60 * KVF_SEC), KVF_OK);
    kvf_handle h = kvf_index_find(t.a->core->index, kvf_block_key(ID, 0, 0, 0));
    struct kvf_entry *e = kvf_index_entry(t.a->core->index, h);
    t.a->media->bytes[kvf_entry_location(e) + 9] ^= 4;
    sim_disk_hold(t.a->disk, true);
    assert_int_equal(kvf_session_resume(s, 60 * KVF_SEC), KVF_OK);
    sim_cluster_settle(t.c, 100 * KVF_MS);
    t.kept = sim_disk_pending(t.a->disk);
    assert_true(t.kept > 0 && e->state == KVF_BLOCK_RISING);
    t.c->stepped = release_later; /* attention's own reads */
    t.c->stepped_arg = &t;
    assert_int_equal(sim_engine_step(large, s, 1), KVF_LOST);
    assert_int_equal(e->state, KVF_BLOCK_LOST);
    assert_int_equal(sim_engine_refill(large, s), KVF_OK);
    assert_true(e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_DRAM);
    uint64_t location = kvf_entry_location(e), corrupt = COUNTED(t.a, blocks_corrupt);
    t.c->stepped = NULL;
    sim_disk_hold(t.a->disk, false);
    sim_disk_release_all(t.a->disk);
    sim_cluster_settle(t.c, 3 * KVF_SEC);
    sim_cluster_check(t.c);
    assert_int_equal(kvf_entry_location(e), location);
    assert_int_equal(COUNTED(t.a, blocks_corrupt), corrupt);
    large->error2 = large->norm2 = 0;
    assert_int_equal(sim_engine_run(large, s, 700, 10), KVF_OK);
    assert_error(large, bound_of("int8"));
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* A block is lost and refilled while an attend beside it (a fork's) still decodes what it read before: with the scales of then. */
static void scales_stay_while_a_lost_block_is_still_read(void **state)
{
    struct trio t = trio_make("int8", "exact", 2048 * KIB, 0, 8192 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_of(large, t.a);
    struct kvf_core *core = t.a->core;
    assert_int_equal(sim_engine_run(large, s, 640, 64), KVF_OK);
    assert_int_equal(kvf_session_park(s, 60 * KVF_SEC), KVF_OK);
    kvf_handle h = kvf_index_find(core->index, kvf_block_key(ID, 0, 0, 0));
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    kvf_core_lock(core);
    uint32_t stage = kvf_stage_get(core, h, 1, UINT64_MAX);
    kvf_core_unlock(core);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(stage != KVF_STAGE_NONE && (atomic_load(&core->stages[stage].have) & 1));
    kvf_core_lock(core);
    kvf_block_lose(core, h);
    kvf_core_unlock(core);
    assert_int_equal(kvf_session_resume(s, 60 * KVF_SEC), KVF_OK);
    assert_int_equal(sim_engine_refill(large, s), KVF_OK);
    assert_int_equal(kvf_session_park(s, 5 * KVF_SEC), KVF_ERR_DEADLINE);
    assert_true(e->tier == KVF_TIER_DRAM && kvf_cold_format_of(e) == KVF_COLD_EXACT);
    kvf_core_lock(core);
    kvf_stage_unpin(core, stage);
    kvf_core_unlock(core);
    assert_int_equal(kvf_session_resume(s, 60 * KVF_SEC), KVF_OK);
    assert_int_equal(kvf_session_park(s, 60 * KVF_SEC), KVF_OK);
    assert_int_equal(kvf_cold_format_of(e), KVF_COLD_INT8);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

/* ---------------------------------------------------------------- what is not encoded */

/* Rows that are numbers, but for one NaN in every block of layer 0. */
static void nan_step(struct kvf_session *s, uint64_t position)
{
    float k[2 * 64], v[2 * 64], out[4 * 64];
    assert_int_equal(kvf_step_begin(s, &(int32_t){1}, 1), KVF_OK);
    for (uint32_t layer = 0; layer < 2; layer++) {
        for (unsigned i = 0; i < 2 * 64; i++)
            k[i] = v[i] = (float)(i + position) / 300;
        if (layer == 0 && position % 64 == 11)
            v[3] = v[64 + 60] = NAN;
        assert_int_equal(kvf_step_append(s, layer, k, v), KVF_OK);
        assert_int_equal(kvf_step_attend(s, layer, (float[4 * 64]){0}, out, NULL), KVF_OK);
        assert_true(isnan(out[3]) == (layer == 0 && position >= 11));
        assert_false(isnan(out[4]));
    }
    assert_int_equal(kvf_step_commit(s), KVF_OK);
}

static void a_block_with_nan_goes_down_exact(void **state)
{
    struct trio t = trio_make("int8", "exact", 2048 * KIB, 0, 8192 * KIB, KVF_WAY_ASK);
    struct kvf_session *s = session_of(large, t.a);
    for (uint64_t i = 0; i < 256; i++)
        nan_step(s, i);
    assert_int_equal(kvf_session_park(s, 60 * KVF_SEC), KVF_OK);
    assert_int_equal(COUNTED(t.a, cold_refused), 8);
    assert_int_equal(blocks_of(t.a, KVF_TIER_SSD, KVF_COLD_EXACT), 8);
    assert_int_equal(blocks_of(t.a, KVF_TIER_SSD, KVF_COLD_INT8), 8);
    assert_int_equal(t.a->core->tier_bytes[KVF_TIER_SSD], 8 * COLD_SLOT + 8 * COLD_SLOT / 2);
    assert_int_equal(kvf_session_resume(s, 60 * KVF_SEC), KVF_OK);
    for (uint64_t i = 256; i < 280; i++)
        nan_step(s, i);
    sim_cluster_check(t.c);
    assert_int_equal(COUNTED(t.a, blocks_corrupt), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    trio_end(&t);
}

static void complete(struct sim_node *node, struct kvf_queue *q, const struct kvf_request *r)
{
    size_t n = 0;
    struct kvf_completion done;
    assert_int_equal(kvf_submit(q, r, 1, 10 * KVF_SEC, &n), KVF_OK);
    for (unsigned i = 0, got = 0; !got; i++) {
        assert_true(i < 20000);
        assert_int_equal(kvf_drain(q, &done, 1, &n), KVF_OK);
        got = n > 0;
        sim_cluster_step(node->cluster);
    }
    assert_int_equal(done.status, KVF_OK);
}

static void opaque_blocks_come_back_byte_for_byte(void **state)
{
    struct trio t = trio_make("int8", "exact", 256 * KIB, 64 * KIB, 4096 * KIB, KVF_WAY_ASK);
    struct kvf_queue *q;
    static uint8_t in[60][COLD_SLOT], out[COLD_SLOT];
    assert_int_equal(kvf_queue_create(&t.a->node, 4, &q), KVF_OK);
    for (unsigned i = 0; i < 60; i++) {
        for (unsigned b = 0; b < COLD_SLOT; b++)
            in[i][b] = (uint8_t)(b * 7 + i * 13 + (b >> 8));
        complete(t.a, q, &(struct kvf_request){.op = KVF_OP_PUT, .key = {i, 1}, .data = in[i], .length = COLD_SLOT});
    }
    assert_true(COUNTED(t.a, spill_ssd_blocks) > 0 && COUNTED(t.a, spill_remote_blocks) > 0);
    assert_int_equal(COUNTED(t.a, cold_blocks), 0);
    for (unsigned i = 0; i < 60; i++) {
        complete(t.a, q, &(struct kvf_request){.op = KVF_OP_GET, .key = {i, 1}, .data = out, .length = COLD_SLOT});
        assert_memory_equal(out, in[i], COLD_SLOT);
        complete(t.a, q, &(struct kvf_request){.op = KVF_OP_REMOVE, .key = {i, 1}});
    }
    kvf_queue_destroy(q);
    trio_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(int8_errs_within_its_bound),
        cmocka_unit_test(fp8_errs_within_its_bound),
        cmocka_unit_test(int8_over_mapped_memory_errs_within_its_bound),
        cmocka_unit_test(other_types_err_within_the_bound),
        cmocka_unit_test(chosen_chunks_of_small_blocks_are_decoded),
        cmocka_unit_test(a_block_that_rises_and_goes_down_again_keeps_its_bytes),
        cmocka_unit_test(blocks_rise_while_attention_reads_them),
        cmocka_unit_test(a_session_moves_between_nodes_of_one_format),
        cmocka_unit_test(a_session_moves_between_nodes_of_two_formats),
        cmocka_unit_test(a_session_moves_to_a_node_that_keeps_blocks_exact),
        cmocka_unit_test(a_session_moves_from_a_node_that_keeps_blocks_exact),
        cmocka_unit_test(departed_blocks_keep_the_format_they_were_handed_over_in),
        cmocka_unit_test(a_dead_lenders_blocks_are_lost_and_refilled),
        cmocka_unit_test(a_flipped_bit_of_a_code_or_a_scale_is_found),
        cmocka_unit_test(a_rising_block_that_is_damaged_is_lost),
        cmocka_unit_test(a_rise_whose_block_was_lost_meanwhile_ends_alone),
        cmocka_unit_test(scales_stay_while_a_lost_block_is_still_read),
        cmocka_unit_test(a_block_with_nan_goes_down_exact),
        cmocka_unit_test(opaque_blocks_come_back_byte_for_byte),
    };
    return cmocka_run_group_tests(tests, engines_make, engines_free);
}
