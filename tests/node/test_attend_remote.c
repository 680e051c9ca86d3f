/* Attention where the bytes lie: results are those of pulling, whatever the holder, the wire or the clock does. */
#include "tests/node/world.h"

#include "node/attend_remote.h"

#include <math.h>

#define ID 7
#define BOUND 2e-4 /* relative, L2: both are within 1e-4 of the exact result (kernels/dev.h) */

struct pair {
    struct sim_cluster *c;
    struct sim_node *home, *lender;
    struct sim_engine *e;
    struct kvf_session *s;
};

static struct kvf_session *session_of(struct sim_engine *e, struct sim_node *node)
{
    struct kvf_session *s = NULL;
    assert_int_equal(kvf_session_create(&node->node, sim_engine_model(e, node), ID, &s), KVF_OK);
    e->compared = e->different = 0;
    e->error2 = e->norm2 = 0;
    return s;
}

/* A session of which most blocks lie at the lender, which has been probed. */
static struct pair pair_of(struct sim_engine *e, const struct sim_node_config *home, const struct sim_node_config *lender)
{
    struct pair t = {.c = sim_cluster_create(SEED), .e = e};
    uint64_t slot = e == engine ? SLOT : 4 * SLOT;
    struct sim_node_config a = *home, b = *lender;
    a.name = "home";
    b.name = "lender";
    a.dram = a.dram ? a.dram : 32 * slot;
    b.dram = 16 * slot;
    b.lend = b.lend ? b.lend : 256 * slot;
    a.staging = a.staging ? a.staging : 1024 * KIB;
    b.way = a.way;
    t.home = sim_cluster_add(t.c, &a);
    t.lender = sim_cluster_add(t.c, &b);
    sim_cluster_connect(t.c);
    t.s = session_of(e, t.home);
    assert_int_equal(sim_engine_run(e, t.s, 1100, 50), KVF_OK);
    assert_true(blocks_in(t.s, KVF_TIER_REMOTE) > 24);
    staging_forget(t.home);
    assert_int_equal(sim_engine_step(e, t.s, 1), KVF_OK); /* wants them, so the lender is probed */
    sim_cluster_settle(t.c, KVF_SEC);
    e->error2 = e->norm2 = 0;
    return t;
}

static void pair_end(struct pair *t)
{
    assert_int_equal(kvf_session_drop(t->s), KVF_OK);
    sim_cluster_settle(t->c, 12 * KVF_SEC);
    sim_cluster_check(t->c);
    assert_true(sim_cluster_empty(t->home));
    if (!t->lender->dead)
        assert_true(sim_cluster_empty(t->lender));
    assert_true(kvf_attend_remotes_idle(t->home->core));
    sim_cluster_destroy(t->c);
}

/* n steps that find nothing in staging. */
static enum kvf_status steps(struct pair *t, unsigned n)
{
    enum kvf_status st = KVF_OK;
    for (unsigned i = 0; i < n && st == KVF_OK; i++) {
        staging_forget(t->home);
        st = sim_engine_step(t->e, t->s, 1);
    }
    return st;
}

static const struct sim_node_config always = {.attend = "always"}, plain = {.name = "lender"};

/* ---------------------------------------------------------------- the results */

static void same_bits(struct sim_engine *e, enum kvf_way way)
{
    struct pair t = pair_of(e, &(struct sim_node_config){.attend = "always", .way = way}, &plain);
    uint64_t pulled = COUNTED(t.home, remote_chunks_read);
    assert_int_equal(steps(&t, 10), KVF_OK);
    assert_same_bits(e);
    assert_int_equal(COUNTED(t.home, remote_chunks_read), pulled); /* nothing was */
    assert_true(COUNTED(t.home, attend_there_blocks) >= 10 * blocks_in(t.s, KVF_TIER_REMOTE) / 2);
    assert_int_equal(COUNTED(t.home, attend_there_blocks), COUNTED(t.lender, attend_serve_blocks));
    assert_int_equal(COUNTED(t.home, attend_there_bytes), COUNTED(t.lender, attend_serve_bytes));
    assert_int_equal(COUNTED(t.home, attend_there_failed), 0);
    pair_end(&t);
}

static void results_have_the_same_bits(void **state) { same_bits(engine, KVF_WAY_ASK); }
static void so_they_have_over_mapped_memory(void **state) { same_bits(large, KVF_WAY_MAPPED); }
static void so_they_have_by_one_sided_reads(void **state) { same_bits(large, KVF_WAY_GET); }

static void other_types_too(void **state)
{
    for (int i = 0; i < 2; i++) {
        struct sim_engine *e = sim_engine_create(SEED + 11, 64, i ? KVF_F32 : KVF_BF16, 16, 64, 1200);
        struct pair t = pair_of(e, &(struct sim_node_config){.attend = "always", .dram = 512 * KIB},
                                &(struct sim_node_config){.lend = 4096 * KIB});
        assert_int_equal(steps(&t, 3), KVF_OK);
        assert_same_bits(e);
        assert_true(COUNTED(t.home, attend_there_blocks) > 0);
        pair_end(&t);
        sim_engine_destroy(e);
    }
}

/* The bytes that go over the wire: of blocks of 16 KiB, a small part. */
static void less_goes_over_the_wire(void **state)
{
    struct pair t = pair_of(large, &always, &plain);
    assert_int_equal(steps(&t, 10), KVF_OK);
    uint64_t instead = COUNTED(t.home, attend_wire_bytes), bytes = COUNTED(t.home, attend_there_bytes);
    assert_true(bytes > 10 * 24 * 16 * KIB);
    assert_true(instead > 0 && instead < bytes / 8);
    pair_end(&t);
}

static void merged_parts_err_within_the_bound_and_are_fewer(void **state)
{
    uint64_t wire[2];
    for (int merged = 0; merged < 2; merged++) {
        struct pair t = pair_of(large, &(struct sim_node_config){.attend = "always", .attend_parts = merged ? "merged" : "block"},
                                &plain);
        uint64_t before = COUNTED(t.home, attend_wire_bytes);
        assert_int_equal(steps(&t, 8), KVF_OK);
        wire[merged] = COUNTED(t.home, attend_wire_bytes) - before;
        assert_true(large->compared > 0 && sqrt(large->error2 / large->norm2) < BOUND);
        assert_true(COUNTED(t.home, attend_there_blocks) > 0);
        assert_int_equal(COUNTED(t.home, attend_there_failed), 0);
        pair_end(&t);
    }
    assert_true(wire[1] < wire[0]);
}

/* Blocks in DRAM exact, at the lender in 8 bits. The same bits as by pulling them. */
static void compare_with_pulling(struct pair *t, const struct kvf_attend_options *options)
{
    size_t floats = (size_t)t->e->desc.q_heads * t->e->desc.dim_v;
    float *out[3];
    assert_int_equal(sim_engine_step_open(t->e, t->s, 1), KVF_OK);
    for (unsigned i = 0; i < 3; i++) {
        out[i] = calloc(floats, sizeof(float));
        staging_forget(t->home);
        uint64_t asked = COUNTED(t->home, attend_there_blocks);
        kvf_attend_remote_mode_set(t->home->core, i == 1 ? KVF_ATTEND_ALWAYS : KVF_ATTEND_OFF);
        assert_int_equal(kvf_step_attend(t->s, 1, t->e->q, out[i], options), KVF_OK);
        assert_int_equal(COUNTED(t->home, attend_there_blocks) > asked, i == 1);
    }
    assert_memory_equal(out[0], out[1], floats * sizeof(float));
    assert_memory_equal(out[0], out[2], floats * sizeof(float));
    for (unsigned i = 0; i < 3; i++)
        free(out[i]);
    assert_int_equal(kvf_step_commit(t->s), KVF_OK);
    kvf_attend_remote_mode_set(t->home->core, KVF_ATTEND_ALWAYS);
}

static void blocks_in_8_bits_are_attended_there(void **state)
{
    for (int i = 0; i < 2; i++) {
        struct pair t = pair_of(large, &(struct sim_node_config){.attend = "always", .cold = i ? "fp8" : "int8"}, &plain);
        assert_int_equal(steps(&t, 4), KVF_OK);
        assert_true(sqrt(large->error2 / large->norm2) < (i ? 0.05 : 0.01));
        compare_with_pulling(&t, NULL);
        assert_int_equal(COUNTED(t.home, attend_there_failed), 0);
        pair_end(&t);
    }
}

static void so_are_chosen_chunks_of_them(void **state)
{
    struct kvf_attend_options options = {.budget = 0.25f, .local_tokens = 32};
    for (int i = 0; i < 3; i++) {
        struct pair t = pair_of(engine, &(struct sim_node_config){.attend = "always", .cold = i ? (i == 1 ? "int8" : "fp8") : NULL},
                                &plain);
        compare_with_pulling(&t, &options);
        assert_int_equal(COUNTED(t.home, attend_there_failed), 0);
        pair_end(&t);
    }
}

/* Prompts of many rows: pulled beyond what a question takes, and the tokens of the step itself always seen by those after. */
static void steps_of_many_tokens_agree(void **state)
{
    struct pair t = pair_of(engine, &always, &plain);
    static const uint32_t sizes[] = {2, 7, 48, 49, 100};
    for (unsigned i = 0; i < 5; i++) {
        staging_forget(t.home);
        assert_int_equal(sim_engine_step(engine, t.s, sizes[i]), KVF_OK);
    }
    assert_same_bits(engine);
    assert_true(COUNTED(t.home, attend_there_blocks) > 0);
    pair_end(&t);
}

/* ---------------------------------------------------------------- an old home */

static void an_old_home_attends_what_still_lies_in_its_dram(void **state)
{
    struct pair t = {.c = sim_cluster_create(SEED), .e = large};
    t.lender = sim_cluster_add(t.c, &(struct sim_node_config){.name = "old", .dram = 1024 * KIB, .ssd = 8192 * KIB});
    t.home = sim_cluster_add(t.c, &(struct sim_node_config){.name = "new", .dram = 256 * KIB, .no_borrow = true,
                                                            .attend = "always", .staging = 1024 * KIB});
    sim_cluster_connect(t.c);
    t.s = session_of(large, t.lender);
    assert_int_equal(sim_engine_run(large, t.s, 900, 64), KVF_OK);
    assert_int_equal(kvf_session_move(t.s, "new", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(t.s);
    assert_int_equal(kvf_session_attach(&t.home->node, sim_engine_model(large, t.home), ID, 10 * KVF_SEC, &t.s), KVF_OK);
    assert_int_equal(steps(&t, 1), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(blocks_in(t.s, KVF_TIER_PEER) > 8);
    assert_int_equal(steps(&t, 5), KVF_OK);
    assert_true(COUNTED(t.home, attend_there_blocks) > 5);
    assert_same_bits(large);
    /* What the old home has on SSD it does not read for this: it is pulled. */
    struct kvf_session *other;
    assert_int_equal(kvf_session_create(&t.lender->node, sim_engine_model(large, t.lender), ID + 1, &other), KVF_OK);
    assert_int_equal(sim_engine_run(large, other, 640, 64), KVF_OK);
    uint64_t refused = COUNTED(t.home, attend_there_refused);
    assert_int_equal(steps(&t, 3), KVF_OK);
    assert_true(COUNTED(t.home, attend_there_refused) > refused);
    assert_same_bits(large);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    pair_end(&t);
}

/* ---------------------------------------------------------------- what must not be believed */

static struct kvf_entry *remote_at(struct sim_node *node, unsigned n)
{
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(node->core->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(node->core->index, h);
        if (e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_REMOTE && n-- == 0)
            return e;
    }
    fail_msg("no such block");
    return NULL;
}

/* A byte of a block, and a bit of one's codes, changed at the holder: it is lost, not attended. */
static void changed_bytes_at_the_holder_are_a_miss(void **state)
{
    for (int i = 0; i < 3; i++) {
        struct pair t = pair_of(large, &(struct sim_node_config){.attend = "always", .attend_parts = i == 2 ? "merged" : "block",
                                                                 .cold = i == 1 ? "int8" : NULL}, &plain);
        struct kvf_entry *e = remote_at(t.home, 5);
        t.lender->core->memory[kvf_entry_location(e) + 777] ^= 1;
        assert_int_equal(steps(&t, 1), KVF_LOST);
        assert_int_equal(COUNTED(t.lender, attend_serve_missed), 1);
        assert_int_equal(COUNTED(t.home, attend_there_refused), 1);
        assert_int_equal(COUNTED(t.home, blocks_corrupt), 1);
        assert_int_equal(COUNTED(t.home, blocks_lost), 1);
        assert_int_equal(sim_engine_refill(large, t.s), KVF_OK);
        assert_int_equal(steps(&t, 5), KVF_OK);
        assert_true(sqrt(large->error2 / large->norm2) < (i == 1 ? 0.01 : BOUND));
        pair_end(&t);
    }
}

/* The lender gave the slots back to itself, and wrote others' bytes there: every block is a miss, none is taken for ours. */
static void slots_that_were_given_away_are_misses(void **state)
{
    struct pair t = pair_of(large, &always, &plain);
    uint64_t there = blocks_in(t.s, KVF_TIER_REMOTE);
    kvf_lend_borrower_gone(t.lender->core, "home", t.home->core->incarnation);
    assert_int_equal(steps(&t, 1), KVF_OK); /* nobody has written there yet: the pulled bytes are still right */
    assert_int_equal(COUNTED(t.home, attend_there_refused), there);
    assert_same_bits(large);
    memset(t.lender->core->memory + t.lender->core->lent_at, 0x5a, kvf_arena_bytes(t.lender->core->lent));
    assert_int_equal(steps(&t, 1), KVF_LOST);
    for (unsigned i = 0; i < 40 && sim_engine_refill(large, t.s) == KVF_LOST; i++)
        ;
    assert_int_equal(sim_engine_run(large, t.s, tokens_of(t.s) + 5, 1), KVF_OK);
    assert_same_bits(large);
    pair_end(&t);
}

/* A slot is read for its borrower alone, as the very block that was asked for. */
static void a_lender_shows_slots_to_their_borrower_only(void **state)
{
    struct pair t = pair_of(large, &always, &plain);
    const struct kvf_entry *e = remote_at(t.home, 3);
    const struct kvf_node_peer *home = sim_cluster_peer(t.lender, t.home);
    struct kvf_node_peer other = {.number = (uint16_t)(home->number + 1)};
    uint64_t at = kvf_entry_location(e);
    assert_ptr_equal(kvf_lend_data(t.lender->core, home, e->key, at, e->bytes), t.lender->core->memory + at);
    assert_null(kvf_lend_data(t.lender->core, &other, e->key, at, e->bytes));
    assert_null(kvf_lend_data(t.lender->core, home, e->key, at + 4096, e->bytes));
    assert_null(kvf_lend_data(t.lender->core, home, e->key, at, e->bytes / 2));
    assert_null(kvf_lend_data(t.lender->core, home, (struct kvf_key){e->key.hi + 1, e->key.lo}, at, e->bytes));
    pair_end(&t);
}

/* A device that can be told to damage every hash but those of chunks. */
static bool damaging;

static enum kvf_status damaged_checksum(const struct kvf_dev *dev, struct kvf_stream *stream, const void *data, size_t bytes,
                                        uint64_t seed, uint64_t *out)
{
    enum kvf_status st = kvf_dev_cpu()->checksum(kvf_dev_cpu(), stream, data, bytes, seed, out);
    *out ^= damaging && bytes != 4096;
    return st;
}

/* An answer that does not match its question, as one does that was damaged on its way, is refused, and the chunks are pulled. */
static void a_damaged_answer_is_not_used(void **state)
{
    struct kvf_dev dev = *kvf_dev_cpu();
    dev.checksum = damaged_checksum;
    struct pair t = pair_of(large, &always, &(struct sim_node_config){.dev = &dev});
    assert_int_equal(steps(&t, 2), KVF_OK);
    uint64_t good = COUNTED(t.home, attend_there_blocks), refused = COUNTED(t.home, messages_refused);
    assert_true(good > 0);
    damaging = true;
    assert_int_equal(steps(&t, 4), KVF_OK);
    damaging = false;
    assert_int_equal(COUNTED(t.home, attend_there_blocks), good);
    assert_true(COUNTED(t.home, messages_refused) >= refused + 4);
    assert_true(COUNTED(t.home, attend_there_failed) > 0);
    assert_same_bits(large);
    pair_end(&t);
}

/* A lender of other kernels is asked only where bits need not be the same. */
static void other_kernels_are_asked_for_merged_parts_only(void **state)
{
    for (int merged = 0; merged < 2; merged++) {
        struct pair t = pair_of(large, &(struct sim_node_config){.attend = "always", .attend_parts = merged ? "merged" : "block"},
                                &(struct sim_node_config){.dev = kvf_dev_cpu_reference()});
        assert_int_equal(steps(&t, 4), KVF_OK);
        assert_int_equal(COUNTED(t.home, attend_there_blocks) > 0, merged);
        assert_true(sqrt(large->error2 / large->norm2) < BOUND);
        if (!merged)
            assert_same_bits(large);
        pair_end(&t);
    }
}

/* ---------------------------------------------------------------- holders that are busy, late or gone */

static void a_holder_that_attends_for_nobody_is_pulled_from(void **state)
{
    struct pair t = pair_of(large, &always, &(struct sim_node_config){.attend_nobody = true});
    assert_int_equal(steps(&t, 4), KVF_OK);
    assert_same_bits(large);
    assert_int_equal(COUNTED(t.home, attend_there_blocks) + COUNTED(t.home, attend_there_failed), 0);
    pair_end(&t);
}

/* A question about the n-th remote block of home. */
static size_t question_make(struct pair *t, unsigned n, uint8_t *bytes, size_t size)
{
    static float queries[64];
    const struct kvf_model *m = t->home->core->models[0];
    const struct kvf_entry *e = remote_at(t->home, n);
    struct kvf_attend_shape shape = {.fingerprint = m->fingerprint, .dtype = m->desc.dtype, .chunk_tokens = m->desc.chunk_tokens,
                                     .chunks = m->chunks, .dim_k = 64, .dim_v = 64, .rows = 1, .scale = 0.125f};
    struct kvf_attend_item item = {.key = e->key, .offset = kvf_entry_location(e), .mask = 1};
    struct kvf_writer w = kvf_writer_of(bytes, size);
    kvf_attend_wire_head(&w, &shape, 1, 1);
    kvf_attend_wire_item(&w, &shape, &item, kvf_sums_at(t->home->core->sums, e->sums));
    kvf_write_bytes(&w, queries, sizeof queries);
    assert_false(w.bad);
    return kvf_writer_used(&w);
}

/* The lender's only place is always taken: what is asked is turned away, and pulled. */
static void keep_busy(struct sim_cluster *c, void *arg)
{
    struct pair *t = arg;
    uint8_t bytes[1024];
    if (!kvf_attend_serves_idle(t->lender->core))
        return;
    struct kvf_message m = {.type = KVF_MSG_ATTEND, .request = 1ull << 40, .payload = bytes,
                            .bytes = question_make(t, 0, bytes, sizeof bytes)};
    kvf_attend_serve_message(t->lender->core, sim_cluster_peer(t->lender, t->home), &m);
}

static void a_busy_holder_is_pulled_from(void **state)
{
    struct pair t = pair_of(large, &always, &(struct sim_node_config){.attend_serve = 1});
    t.c->stepped = keep_busy;
    t.c->stepped_arg = &t;
    assert_int_equal(steps(&t, 6), KVF_OK);
    t.c->stepped = NULL;
    assert_same_bits(large);
    assert_true(COUNTED(t.lender, attend_serve_busy) > 0);
    assert_true(COUNTED(t.home, attend_there_failed) > 0);
    sim_cluster_settle(t.c, KVF_SEC);
    uint64_t asked = COUNTED(t.home, attend_there_blocks);
    assert_int_equal(steps(&t, 3), KVF_OK);
    assert_true(COUNTED(t.home, attend_there_blocks) > asked); /* it is asked again */
    assert_same_bits(large);
    pair_end(&t);
}

/* One home's questions take half of a holder's places; the rest is for others. */
static void one_home_does_not_take_all_places(void **state)
{
    struct pair t = pair_of(large, &always, &(struct sim_node_config){.attend_serve = 4});
    struct kvf_node_peer *home = sim_cluster_peer(t.lender, t.home), other = *home; /* of two homes, as far as it is told */
    uint8_t bytes[1024];
    struct kvf_message m = {.type = KVF_MSG_ATTEND, .request = 1ull << 40, .payload = bytes,
                            .bytes = question_make(&t, 0, bytes, sizeof bytes)};
    uint64_t busy = COUNTED(t.lender, attend_serve_busy);
    assert_true(kvf_attend_serves_idle(t.lender->core));
    for (unsigned i = 0; i < 4; i++) {
        kvf_attend_serve_message(t.lender->core, home, &m);
        assert_int_equal(COUNTED(t.lender, attend_serve_busy) - busy, i < 2 ? 0 : i - 1);
    }
    for (unsigned i = 0; i < 4; i++) {
        kvf_attend_serve_message(t.lender->core, &other, &m);
        assert_int_equal(COUNTED(t.lender, attend_serve_busy) - busy, i < 2 ? 2 : i + 1);
    }
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(kvf_attend_serves_idle(t.lender->core));
    pair_end(&t);
}

static void a_question_that_nobody_waits_for_is_dropped(void **state)
{
    struct pair t = pair_of(large, &always, &plain);
    uint8_t bytes[1024];
    struct kvf_message m = {.type = KVF_MSG_ATTEND, .request = 1ull << 40, .payload = bytes,
                            .bytes = question_make(&t, 0, bytes, sizeof bytes), .deadline_ns = kvf_now(&t.c->env.env)};
    uint64_t done = COUNTED(t.lender, attend_serve_blocks);
    kvf_attend_serve_message(t.lender->core, sim_cluster_peer(t.lender, t.home), &m); /* its time is up already */
    sim_cluster_step(t.c);
    assert_int_equal(COUNTED(t.lender, attend_serve_dropped), 1);
    assert_int_equal(COUNTED(t.lender, attend_serve_blocks), done);
    m.deadline_ns = 0;
    kvf_attend_serve_message(t.lender->core, sim_cluster_peer(t.lender, t.home), &m);
    sim_cluster_partition(t.home, t.lender, true);
    sim_cluster_step(t.c);
    assert_int_equal(COUNTED(t.lender, attend_serve_blocks), done + 1);
    sim_cluster_partition(t.home, t.lender, false);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(kvf_attend_serves_idle(t.lender->core));
    pair_end(&t);
}

/* Merged, 64 items have one part on the wire and 64 while they are computed: more than the holder has room for is refused. */
static void a_question_of_more_parts_than_there_is_room_for_is_refused(void **state)
{
    enum { ROWS = 8, ITEMS = KVF_BATCH_MAX };
    static float queries[ROWS * 64];
    static uint8_t bytes[KVF_ATTEND_QUESTION_BYTES];
    struct pair t = pair_of(large, &always, &plain);
    const struct kvf_model *m = t.home->core->models[0];
    const struct kvf_entry *e = remote_at(t.home, 0);
    struct kvf_attend_shape shape = {.fingerprint = m->fingerprint, .dtype = m->desc.dtype, .chunk_tokens = m->desc.chunk_tokens,
                                     .chunks = m->chunks, .dim_k = 64, .dim_v = 64, .rows = ROWS, .scale = 0.125f, .merged = true};
    struct kvf_attend_item item = {.key = e->key, .offset = kvf_entry_location(e), .mask = 1};
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    uint64_t refused = COUNTED(t.lender, messages_refused), done = COUNTED(t.lender, attend_serve_blocks);
    assert_true(ITEMS * kvf_attend_part_bytes(&shape) > KVF_ATTEND_ANSWER_BYTES);
    kvf_attend_wire_head(&w, &shape, ITEMS, 1);
    for (unsigned i = 0; i < ITEMS; i++)
        kvf_attend_wire_item(&w, &shape, &item, kvf_sums_at(t.home->core->sums, e->sums));
    kvf_write_bytes(&w, queries, sizeof queries);
    assert_false(w.bad);
    struct kvf_message message = {.type = KVF_MSG_ATTEND, .request = 1ull << 40, .payload = bytes, .bytes = kvf_writer_used(&w)};
    kvf_attend_serve_message(t.lender->core, sim_cluster_peer(t.lender, t.home), &message);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(COUNTED(t.lender, messages_refused), refused + 1);
    assert_int_equal(COUNTED(t.lender, attend_serve_blocks), done);
    pair_end(&t);
}

/* The scales of a block in 8 bits are at most what a block of a node can have. */
static void an_item_with_more_scales_than_a_block_has_is_refused(void **state)
{
    static uint8_t bytes[KVF_ATTEND_QUESTION_BYTES];
    static uint64_t sums[1024];
    static float queries[512];
    struct kvf_attend_question question;
    for (int wide = 0; wide < 2; wide++) {
        struct kvf_attend_shape shape = {.fingerprint = 1, .dtype = wide ? KVF_F32 : KVF_F16, .chunk_tokens = 4, .chunks = 64,
                                         .dim_k = 512, .dim_v = 512, .rows = 1, .scale = 1};
        struct kvf_attend_item item = {.key = {1, 2}, .mask = 1, .format = KVF_COLD_INT8};
        struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
        kvf_attend_wire_head(&w, &shape, 1, 1);
        kvf_attend_wire_item(&w, &shape, &item, sums);
        kvf_write_bytes(&w, queries, sizeof queries);
        assert_false(w.bad);
        struct kvf_reader r = kvf_reader_of(bytes, kvf_writer_used(&w));
        assert_int_equal(kvf_attend_wire_question_read(&r, &question), !wide);
    }
}

/* A lost answer: long before the deadline the chunks are pulled. */
static void a_late_answer_is_not_waited_for(void **state)
{
    struct pair t = pair_of(large, &always, &plain);
    struct sim_path *back = sim_net_path(t.lender->transport, t.home->transport);
    uint64_t start = kvf_now(&t.c->env.env);
    staging_forget(t.home);
    back->drop = 1;
    assert_int_equal(sim_engine_step(large, t.s, 1), KVF_OK);
    assert_int_equal(back->drop, 0);
    assert_true(COUNTED(t.home, attend_there_failed) > 0);
    assert_true(kvf_now(&t.c->env.env) - start < KVF_SEC); /* of 10 s */
    assert_same_bits(large);
    assert_int_equal(steps(&t, 3), KVF_OK);
    assert_same_bits(large);
    sim_cluster_settle(t.c, 12 * KVF_SEC); /* the question ends at its deadline */
    pair_end(&t);
}

static void an_attend_ends_at_its_deadline(void **state)
{
    struct kvf_attend_options options = {.timeout_ns = 300 * KVF_MS};
    struct pair t = pair_of(large, &always, &plain);
    staging_forget(t.home);
    sim_net_path(t.home->transport, t.lender->transport)->held = true;
    large->options = &options;
    uint64_t start = kvf_now(&t.c->env.env);
    assert_int_equal(sim_engine_step(large, t.s, 1), KVF_ERR_DEADLINE);
    large->options = NULL;
    assert_true(kvf_now(&t.c->env.env) - start < KVF_SEC);
    sim_net_path(t.home->transport, t.lender->transport)->held = false;
    sim_cluster_settle(t.c, 5 * KVF_SEC);
    sim_cluster_check(t.c);
    enum kvf_status st = KVF_LOST; /* the link was ended to get memory back that was under way: then the blocks are lost */
    for (unsigned i = 0; i < 40 && st == KVF_LOST; i++)
        if ((st = sim_engine_refill(large, t.s)) == KVF_OK)
            st = steps(&t, 1);
    assert_int_equal(st, KVF_OK);
    assert_same_bits(large);
    pair_end(&t);
}

/* The holder dies with questions on their way to it, or answers on their way back, told or silent. */
static void a_holder_dies_in_the_middle(void **state)
{
    for (int i = 0; i < 4; i++) {
        struct pair t = pair_of(large, &(struct sim_node_config){.attend = "always", .ssd = 8192 * KIB}, &plain);
        staging_forget(t.home);
        struct sim_path *path = i & 1 ? sim_net_path(t.home->transport, t.lender->transport)
                                      : sim_net_path(t.lender->transport, t.home->transport);
        struct kvf_attend_options options = {.timeout_ns = 100 * KVF_MS};
        path->held = true;
        large->options = &options;
        assert_int_equal(sim_engine_step(large, t.s, 1), KVF_ERR_DEADLINE); /* the question is out */
        large->options = NULL;
        sim_cluster_kill(t.lender, i < 2);
        uint64_t start = kvf_now(&t.c->env.env);
        enum kvf_status st = steps(&t, 1);
        assert_int_equal(st, KVF_LOST);
        assert_true(kvf_now(&t.c->env.env) - start < 5 * KVF_SEC);
        assert_int_equal(sim_engine_refill(large, t.s), KVF_OK);
        assert_int_equal(steps(&t, 3), KVF_OK);
        assert_same_bits(large);
        pair_end(&t);
    }
}

/* Frames that vanish, come twice, late or not at once, in both directions, while the mode changes: every step ends, with the same
 * bits or a miss. */
static void bad_wires_change_no_bits(void **state)
{
    struct kvf_attend_options options = {.timeout_ns = 2 * KVF_SEC};
    for (uint64_t seed = 1; seed <= 8; seed++) {
        struct sim_env rng;
        sim_env_init(&rng, seed);
        struct pair t = pair_of(large, &(struct sim_node_config){.attend = "always", .ssd = 8192 * KIB}, &plain);
        struct sim_path *paths[] = {sim_net_path(t.home->transport, t.lender->transport),
                                    sim_net_path(t.lender->transport, t.home->transport)};
        large->options = &options;
        for (unsigned i = 0; i < 25; i++) {
            struct sim_path *p = paths[sim_env_random(&rng, 2)];
            unsigned n = (unsigned)sim_env_random(&rng, 4);
            switch (sim_env_random(&rng, 6)) {
            case 0: p->drop = n; break;
            case 1: p->duplicate = n; break;
            case 2: p->busy = n; break;
            case 3: p->delay_ns = n * 15 * KVF_MS; break;
            case 4: kvf_attend_remote_mode_set(t.home->core, n & 1 ? KVF_ATTEND_ALWAYS : KVF_ATTEND_AUTO); break;
            default: t.c->single = n & 1;
            }
            enum kvf_status st = steps(&t, 1);
            if (st == KVF_LOST)
                st = sim_engine_refill(large, t.s);
            assert_true(st == KVF_OK || st == KVF_LOST || st == KVF_ERR_DEADLINE);
            sim_cluster_check(t.c);
        }
        large->options = NULL;
        for (unsigned i = 0; i < 2; i++)
            *paths[i] = (struct sim_path){0};
        t.c->single = false;
        sim_cluster_settle(t.c, 5 * KVF_SEC);
        assert_int_equal(sim_engine_run(large, t.s, tokens_of(t.s) + 3, 1), KVF_OK);
        assert_same_bits(large);
        assert_true(COUNTED(t.home, attend_there_blocks) > 0);
        pair_end(&t);
    }
}

/* ---------------------------------------------------------------- which way */

static void the_way_that_took_less_time_is_chosen(void **state)
{
    struct pair t = pair_of(large, &(struct sim_node_config){.attend = "auto"}, &plain);
    uint16_t peer = sim_cluster_peer(t.home, t.lender)->number;
    double expected[KVF_ATTEND_WAYS];
    for (unsigned kib = 16; kib <= 4096; kib *= 4) {
        struct kvf_attend_work work = {.tier = KVF_TIER_REMOTE, .bytes = kib * KIB, .wire_bytes = kib * KIB / 8, .rows = 2,
                                       .chunk_bytes = 4096, .fixed_bytes = 1024};
        for (int faster = 0; faster < KVF_ATTEND_WAYS; faster++) {
            for (unsigned i = 0; i < 60; i++)
                for (int way = 0; way < KVF_ATTEND_WAYS; way++)
                    kvf_attend_cost_learn(t.home->core, peer, (enum kvf_attend_way)way, &work,
                                          (way == faster ? 1 : 5) * kib * 200);
            unsigned right = 0;
            for (unsigned i = 0; i < 200; i++)
                right += kvf_attend_cost_choose(t.home->core, peer, &work, expected) == (enum kvf_attend_way)faster;
            assert_int_equal(right, 200); /* five times slower: not even to explore */
            assert_true(expected[faster] < expected[1 - faster]);
        }
    }
    struct kvf_attend_cost_stats stats;
    assert_true(kvf_attend_cost_stats(t.home->core, peer, &stats));
    assert_true(stats.same_bits && stats.chosen[KVF_ATTEND_PULL] > 0 && stats.chosen[KVF_ATTEND_THERE] > 0);
    assert_int_equal(steps(&t, 5), KVF_OK);
    assert_same_bits(large);
    pair_end(&t);
}

/* Over a wire that takes a millisecond for each frame, one question against one pull: both are tried, and measured. */
static void both_ways_agree_when_the_choice_changes(void **state)
{
    struct pair t = pair_of(large, &(struct sim_node_config){.attend = "auto"}, &plain);
    sim_net_path(t.home->transport, t.lender->transport)->delay_ns = KVF_MS;
    for (unsigned i = 0; i < 60; i++) {
        staging_forget(t.home);
        kvf_attend_remote_mode_set(t.home->core, i % 3 == 0 ? KVF_ATTEND_ALWAYS : i % 3 == 1 ? KVF_ATTEND_AUTO : KVF_ATTEND_OFF);
        assert_int_equal(sim_engine_step(large, t.s, 1), KVF_OK);
    }
    assert_same_bits(large);
    assert_true(COUNTED(t.home, attend_there_blocks) > 0 && COUNTED(t.home, remote_chunks_read) > 0);
    pair_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_have_the_same_bits),
        cmocka_unit_test(so_they_have_over_mapped_memory),
        cmocka_unit_test(so_they_have_by_one_sided_reads),
        cmocka_unit_test(other_types_too),
        cmocka_unit_test(less_goes_over_the_wire),
        cmocka_unit_test(merged_parts_err_within_the_bound_and_are_fewer),
        cmocka_unit_test(blocks_in_8_bits_are_attended_there),
        cmocka_unit_test(so_are_chosen_chunks_of_them),
        cmocka_unit_test(steps_of_many_tokens_agree),
        cmocka_unit_test(an_old_home_attends_what_still_lies_in_its_dram),
        cmocka_unit_test(changed_bytes_at_the_holder_are_a_miss),
        cmocka_unit_test(slots_that_were_given_away_are_misses),
        cmocka_unit_test(a_lender_shows_slots_to_their_borrower_only),
        cmocka_unit_test(a_damaged_answer_is_not_used),
        cmocka_unit_test(other_kernels_are_asked_for_merged_parts_only),
        cmocka_unit_test(a_holder_that_attends_for_nobody_is_pulled_from),
        cmocka_unit_test(a_busy_holder_is_pulled_from),
        cmocka_unit_test(one_home_does_not_take_all_places),
        cmocka_unit_test(a_question_that_nobody_waits_for_is_dropped),
        cmocka_unit_test(a_question_of_more_parts_than_there_is_room_for_is_refused),
        cmocka_unit_test(an_item_with_more_scales_than_a_block_has_is_refused),
        cmocka_unit_test(a_late_answer_is_not_waited_for),
        cmocka_unit_test(an_attend_ends_at_its_deadline),
        cmocka_unit_test(a_holder_dies_in_the_middle),
        cmocka_unit_test(bad_wires_change_no_bits),
        cmocka_unit_test(the_way_that_took_less_time_is_chosen),
        cmocka_unit_test(both_ways_agree_when_the_choice_changes),
    };
    return cmocka_run_group_tests(tests, engines_make, engines_free);
}
