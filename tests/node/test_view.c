/* Attention in a lender's memory: the bits of a pull without one, whatever the lender does to its slots meanwhile. */
#include "tests/node/store.h"

#include "node/lend.h"

/* What happens at the lender while the home computes from its memory: just before a chunk is used other bytes are put where it
 * lies, and, if `back`, the old ones again just behind it. */
static struct meddler {
    struct kvf_dev dev; /* first: as the table's */
    const struct kvf_dev *real;
    struct sim_node *lender;
    bool on, back;
    unsigned every, calls, done;
} meddler;

/* Where in the lender's region these bytes lie; UINT64_MAX: not there. */
static uint64_t place_of(struct sim_node *lender, const void *bytes, size_t n)
{
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(lender->core->lend->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(lender->core->lend->index, h);
        const uint8_t *at = lender->core->memory + kvf_entry_location(e);
        for (uint32_t c = 0; c + n <= e->bytes; c += (uint32_t)n)
            if (memcmp(at + c, bytes, n) == 0)
                return kvf_entry_location(e) + c;
    }
    return UINT64_MAX;
}

static enum kvf_status attend_meddled(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_attend *args)
{
    struct meddler *m = &meddler;
    size_t chunk = args->chunk_tokens * (args->dim_k + args->dim_v) * kvf_dtype_bytes(args->dtype);
    uint8_t old[4096], other[4096];
    uint64_t at = UINT64_MAX;
    if (m->on && m->calls++ % m->every == 0) {
        memcpy(old, args->chunks[0], chunk);
        at = place_of(m->lender, old, chunk);
    }
    if (at != UINT64_MAX) {
        memset(other, 0x31, chunk);
        kvf_fabric_region_write(m->lender->core->fabric, at, other, chunk);
        m->done++;
    }
    enum kvf_status st = m->real->attend(m->real, stream, args);
    if (at != UINT64_MAX && m->back)
        kvf_fabric_region_write(m->lender->core->fabric, at, old, chunk);
    return st;
}

struct three {
    struct sim_cluster *c;
    struct sim_node *home, *lender;
    struct kvf_session *s;
};

static struct three three_make(const char *cold)
{
    struct three t = {.c = sim_cluster_create(SEED)};
    meddler = (struct meddler){.dev = *kvf_dev_cpu(), .real = kvf_dev_cpu(), .every = 1};
    meddler.dev.attend = attend_meddled;
    t.home = sim_cluster_add(t.c, &(struct sim_node_config){.name = "home", .dram = 128 * KIB, .ssd = 4096 * KIB, .cold = cold,
                                                            .way = KVF_WAY_MAPPED, .attend = "off", .dev = &meddler.dev});
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB, .lend = 512 * KIB});
    sim_cluster_connect(t.c);
    t.s = session_on(t.home, 7);
    assert_int_equal(sim_engine_run(engine, t.s, 1300, 50), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(blocks_in(t.s, KVF_TIER_REMOTE) > 20);
    meddler.lender = t.lender;
    engine->compared = engine->different = 0;
    return t;
}

static void three_end(struct three *t)
{
    meddler.on = false;
    assert_int_equal(kvf_session_drop(t->s), KVF_OK);
    sim_cluster_settle(t->c, 8 * KVF_SEC);
    sim_cluster_check(t->c);
    assert_true(sim_cluster_empty(t->home));
    assert_true(sim_cluster_empty(t->lender));
    sim_cluster_destroy(t->c);
}

/* Some block that lies at the lender. */
static kvf_handle remote_block(const struct kvf_core *core)
{
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;)
        if (kvf_index_entry(core->index, h)->tier == KVF_TIER_REMOTE)
            return h;
    fail();
    return KVF_HANDLE_NONE;
}

static void blocks_at_a_mapped_lender_are_not_brought(void **state)
{
    struct three t = three_make(NULL);
    uint64_t before = COUNTED(t.home, view_chunks_read), staged = kvf_arena_used(t.home->core->staging);
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_same_bits(engine);
    assert_true(COUNTED(t.home, view_chunks_read) - before >= blocks_in(t.s, KVF_TIER_REMOTE) * 8);
    assert_int_equal(COUNTED(t.home, view_chunks_read), COUNTED(t.home, remote_chunks_read));
    assert_int_equal(kvf_arena_used(t.home->core->staging), staged);
    assert_int_equal(COUNTED(t.home, views_changed), 0);
    assert_int_equal(COUNTED(t.home, prefetch_blocks), 0);
    /* As before, where they are brought. */
    t.home->core->in_place = false;
    before = COUNTED(t.home, view_chunks_read);
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.home, view_chunks_read), before);
    three_end(&t);
}

/* Written over and written back, between the reads of one chunk: its checksum never differs, the result would. */
static void bytes_that_are_away_only_while_they_are_used_are_noticed(void **state)
{
    struct three t = three_make(NULL);
    meddler.on = meddler.back = true;
    meddler.every = 3;
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    meddler.on = false;
    assert_same_bits(engine);
    assert_true(meddler.done > 20);
    assert_true(COUNTED(t.home, views_changed) >= meddler.done / 2);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(COUNTED(t.home, blocks_corrupt), 0);
    three_end(&t);
}

/* The slot is another's by then, as after REVOKED: a miss that is said, never a number; and what is computed anew is right. */
static void a_slot_that_is_reused_under_attention_is_a_miss(void **state)
{
    struct three t = three_make(NULL);
    meddler.on = true;
    enum kvf_status st = KVF_OK;
    for (unsigned i = 0; i < 3 && st == KVF_OK; i++)
        st = sim_engine_step(engine, t.s, 1);
    assert_int_equal(st, KVF_LOST);
    meddler.on = false;
    assert_true(meddler.done > 0 && COUNTED(t.home, views_changed) > 0 && COUNTED(t.home, blocks_lost) > 0);
    assert_int_equal(engine->different, 0);
    assert_int_equal(sim_engine_refill(engine, t.s), KVF_OK);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_same_bits(engine);
    three_end(&t);
}

/* Whatever waits for a step, a block that its lender wants back is not given away while it is used: see kvf_stage_viewed. */
static void a_viewed_block_is_given_back_when_its_reader_is_done(void **state)
{
    struct three t = three_make(NULL);
    struct kvf_core *core = t.home->core;
    kvf_handle h = remote_block(core);
    uint32_t stage = kvf_stage_get(core, h, 1, UINT64_MAX);
    assert_int_not_equal(stage, KVF_STAGE_NONE);
    assert_non_null(core->stages[stage].view.data);
    assert_true(kvf_stage_viewed(core, h));
    assert_int_equal(kvf_reclaim_start(t.lender->core, 0, t.c->env.now_ns + 4 * KVF_SEC), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(kvf_lend_blocks(t.lender->core), 1); /* all the others are back */
    assert_int_equal(kvf_index_entry(core->index, h)->state, KVF_BLOCK_RISING);
    assert_true(kvf_view_same(&core->stages[stage].view));
    kvf_stage_unpin(core, stage);
    assert_false(kvf_stage_viewed(core, h));
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(kvf_lend_blocks(t.lender->core), 0);
    assert_int_equal(COUNTED(t.home, blocks_lost), 0);
    assert_int_equal(COUNTED(t.lender, lent_blocks_revoked), 0);
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_same_bits(engine);
    three_end(&t);
}

/* ... but not for longer than the lender can wait: then it is lost, and the reader's bytes stay what they were until it is done. */
static void a_view_does_not_hold_up_a_lender_for_ever(void **state)
{
    struct three t = three_make(NULL);
    struct kvf_core *core = t.home->core;
    kvf_handle h = remote_block(core);
    uint32_t stage = kvf_stage_get(core, h, 1, UINT64_MAX);
    assert_int_equal(kvf_reclaim_start(t.lender->core, 0, t.c->env.now_ns + KVF_SEC), KVF_OK);
    sim_cluster_settle(t.c, 3 * KVF_SEC);
    assert_false(kvf_reclaim_busy(t.lender->core));
    assert_int_equal(kvf_lend_blocks(t.lender->core), 0);
    assert_int_equal(COUNTED(t.home, blocks_lost), 1);
    assert_true(kvf_view_same(&core->stages[stage].view)); /* nobody has written there yet */
    kvf_stage_unpin(core, stage);
    assert_int_equal(sim_engine_refill(engine, t.s), KVF_OK);
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_same_bits(engine);
    three_end(&t);
}

/* A slot that was taken back by force holds a block of the lender's own: whoever still reads there what lay in it is told. */
static void own_blocks_of_the_lender_are_noticed_under_a_view(void **state)
{
    struct three t = three_make(NULL);
    struct kvf_core *core = t.home->core;
    kvf_handle h = remote_block(core);
    uint32_t stage = kvf_stage_get(core, h, 1, UINT64_MAX), bytes = core->stages[stage].bytes;
    uint64_t location = kvf_entry_location(kvf_index_entry(core->index, h));
    uint8_t before[SLOT];
    memcpy(before, core->stages[stage].slot, bytes);
    assert_int_equal(kvf_reclaim_start(t.lender->core, 0, t.c->env.now_ns + KVF_SEC), KVF_OK);
    sim_cluster_settle(t.c, 3 * KVF_SEC);
    assert_true(kvf_view_same(&core->stages[stage].view));
    struct kvf_session *own = session_on(t.lender, 8);
    for (unsigned n = 50; n < 2000 && memcmp(core->stages[stage].slot, before, bytes) == 0; n += 50)
        assert_int_equal(sim_engine_run(engine, own, n, 50), KVF_OK);
    assert_memory_not_equal(core->stages[stage].slot, before, bytes);
    assert_false(kvf_view_same(&core->stages[stage].view));
    struct kvf_view none;
    assert_int_equal(kvf_fabric_view_open(sim_cluster_peer(t.home, t.lender)->peer, location, bytes, &none), KVF_ERR_BUSY);
    kvf_stage_unpin(core, stage);
    assert_int_equal(kvf_session_drop(own), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(kvf_fabric_view_open(sim_cluster_peer(t.home, t.lender)->peer, location, bytes, &none), KVF_OK);
    assert_int_equal(kvf_fabric_view_close(core->fabric, &none), KVF_OK);
    assert_int_equal(sim_engine_refill(engine, t.s), KVF_OK);
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_same_bits(engine);
    three_end(&t);
}

/* The lender dies between two steps, and while a view is open. */
static void a_lender_dies_under_a_view(void **state)
{
    struct three t = three_make(NULL);
    struct kvf_core *core = t.home->core;
    kvf_handle h = remote_block(core);
    uint32_t stage = kvf_stage_get(core, h, 1, UINT64_MAX), bytes = core->stages[stage].bytes;
    uint8_t before[SLOT];
    memcpy(before, core->stages[stage].slot, bytes);
    sim_cluster_kill(t.lender, true);
    sim_cluster_settle(t.c, 20 * KVF_SEC);
    assert_true(COUNTED(t.home, blocks_lost) > 0);
    assert_false(kvf_stage_viewed(core, h)); /* nobody finds it any more, */
    assert_memory_equal(core->stages[stage].slot, before, bytes); /* but who has it */
    assert_true(kvf_view_same(&core->stages[stage].view));
    kvf_stage_unpin(core, stage);
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_LOST);
    assert_int_equal(sim_engine_refill(engine, t.s), KVF_OK);
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(t.s), KVF_OK);
    sim_cluster_settle(t.c, 8 * KVF_SEC);
    assert_true(sim_cluster_empty(t.home));
    sim_cluster_destroy(t.c);
}

/* A view needs no room in staging, but a place in its table: what rests there makes way. */
static void what_rests_in_staging_makes_way_for_views(void **state)
{
    struct three t = three_make(NULL);
    struct kvf_session *other = session_on(t.home, 8);
    struct kvf_core *core = t.home->core;
    assert_int_equal(sim_engine_run(engine, other, 1300, 50), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    core->in_place = false;
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_int_equal(sim_engine_step(engine, other, 1), KVF_OK);
    assert_int_equal(core->stage_free.count, 0);
    core->in_place = true;
    uint64_t before = COUNTED(t.home, view_chunks_read);
    assert_int_equal(sim_engine_step(engine, t.s, 1), KVF_OK);
    assert_true(COUNTED(t.home, view_chunks_read) > before);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    three_end(&t);
}

/* Some key that lies at the lender, and where. */
static uint64_t remote_key(struct store *q, uint64_t keys, uint64_t *location)
{
    for (uint64_t k = 0; k < keys; k++) {
        struct kvf_key key = key_at(k);
        key.hi |= KVF_OPAQUE_BIT;
        kvf_handle h = kvf_index_find(q->n->core->index, key);
        if (h == KVF_HANDLE_NONE || kvf_index_entry(q->n->core->index, h)->tier != KVF_TIER_REMOTE)
            continue;
        *location = kvf_entry_location(kvf_index_entry(q->n->core->index, h));
        return k;
    }
    fail();
    return 0;
}

/* A get takes more than one turn; whenever the lender uses the slot for something else meanwhile, what it returns is right, or it
 * is said to be damaged. */
static void a_get_whose_slot_is_reused_is_right_or_says_so(void **state)
{
    enum { BYTES = 700 << 10, KEYS = 6 };
    unsigned good = 0, missed = 0;
    for (unsigned turns = 1; turns < 16; turns++) {
        struct store q = {.c = sim_cluster_create(SEED)};
        struct sim_node_config home = {.name = "n", .dram = 2048 * KIB, .staging = 4096 * KIB, .block_max = 1024 * KIB,
                                       .way = KVF_WAY_MAPPED};
        q.n = sim_cluster_add(q.c, &home);
        q.lender = sim_cluster_add(
            q.c, &(struct sim_node_config){.name = "lender", .dram = 64 * KIB, .lend = 8192 * KIB, .block_max = 1024 * KIB});
        sim_cluster_connect(q.c);
        assert_int_equal(kvf_queue_create(&q.n->node, 16, &q.q), KVF_OK);
        for (uint64_t k = 0; k < KEYS; k++)
            assert_int_equal(put(&q, k, 1, BYTES), KVF_OK);
        sim_cluster_settle(q.c, KVF_SEC);
        uint64_t location = 0, key = remote_key(&q, KEYS, &location);
        uint8_t *expected = malloc(BYTES), *got = malloc(BYTES + 1), *other = malloc(BYTES);
        bytes_of(key, 1, expected, BYTES);
        memset(other, 0x31, BYTES);
        struct kvf_request r = {.op = KVF_OP_GET, .key = key_at(key), .data = got + 1, .length = BYTES};
        struct kvf_completion done;
        size_t n = 0;
        assert_int_equal(kvf_submit(q.q, &r, 1, 10 * KVF_SEC, &n), KVF_OK);
        q.c->single = true;
        for (unsigned i = 0; i < turns; i++)
            sim_cluster_step(q.c);
        kvf_fabric_region_write(q.lender->core->fabric, location, other, BYTES);
        q.c->single = false;
        for (n = 0; n == 0;) {
            assert_int_equal(kvf_drain(q.q, &done, 1, &n), KVF_OK);
            sim_cluster_step(q.c);
        }
        assert_true(done.status == KVF_OK || done.status == KVF_ERR_CORRUPT);
        if (done.status == KVF_OK)
            assert_memory_equal(got + 1, expected, BYTES);
        good += done.status == KVF_OK;
        missed += done.status != KVF_OK;
        free(expected);
        free(got);
        free(other);
        for (uint64_t k = 0; k < KEYS; k++)
            op(&q, KVF_OP_REMOVE, k);
        store_end(&q);
    }
    assert_true(good > 0 && missed > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_at_a_mapped_lender_are_not_brought),
        cmocka_unit_test(bytes_that_are_away_only_while_they_are_used_are_noticed),
        cmocka_unit_test(a_slot_that_is_reused_under_attention_is_a_miss),
        cmocka_unit_test(a_viewed_block_is_given_back_when_its_reader_is_done),
        cmocka_unit_test(a_view_does_not_hold_up_a_lender_for_ever),
        cmocka_unit_test(own_blocks_of_the_lender_are_noticed_under_a_view),
        cmocka_unit_test(a_lender_dies_under_a_view),
        cmocka_unit_test(what_rests_in_staging_makes_way_for_views),
        cmocka_unit_test(a_get_whose_slot_is_reused_is_right_or_says_so),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
