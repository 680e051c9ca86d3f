/* Reading ahead: what is asked for, what is dropped, and that demand never waits behind it. */
#include "tests/node/world.h"

static struct sim_engine *wide; /* blocks of 32 KiB: 64 tokens in chunks of 8, one page each */

static int wide_make(void **state)
{
    printf("seed %d\n", SEED);
    wide = sim_engine_create(SEED, 128, KVF_F16, 8, 64, 800);
    return 0;
}

static int wide_free(void **state)
{
    sim_engine_destroy(wide);
    return 0;
}

struct lone {
    struct sim_cluster *c;
    struct sim_node *node;
    struct kvf_session *s;
};

/* A session of 700 tokens on a node that holds a quarter of it in DRAM and the rest on SSD. */
static struct lone lone_make(uint64_t staging)
{
    struct lone l = {.c = sim_cluster_create(SEED)};
    l.node = sim_cluster_add(l.c, &(struct sim_node_config){.name = "a", .dram = 512 * KIB, .ssd = 8192 * KIB, .staging = staging,
                                                            .alone = true});
    assert_int_equal(kvf_session_create(&l.node->node, sim_engine_model(wide, l.node), 7, &l.s), KVF_OK);
    assert_int_equal(sim_engine_run(wide, l.s, 700, 100), KVF_OK);
    assert_same_bits(wide);
    assert_true(blocks_in(l.s, KVF_TIER_SSD) > 16);
    return l;
}

static void lone_end(struct lone *l)
{
    sim_cluster_settle(l->c, KVF_SEC);
    sim_cluster_check(l->c);
    assert_int_equal(kvf_session_drop(l->s), KVF_OK);
    assert_int_equal(l->node->core->stage_ahead.count, 0);
    sim_cluster_destroy(l->c);
}

/* Under a budget the next layers' chunks of the last step are read ahead, not whole blocks: 70 chunks of 88 are not selected. */
static void a_budget_reads_ahead_what_was_selected(void **state)
{
    struct lone l = lone_make(4096 * KIB);
    struct kvf_attend_options o = {.budget = 0.1f, .local_tokens = 16};
    wide->options = &o;
    assert_int_equal(sim_engine_step(wide, l.s, 1), KVF_OK); /* the first has nothing to go by */
    staging_forget(l.node);
    uint64_t ahead = COUNTED(l.node, prefetch_blocks), used = COUNTED(l.node, prefetch_used);
    uint64_t read = COUNTED(l.node, ssd_chunks_read);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(sim_engine_step(wide, l.s, 1), KVF_OK);
        sim_cluster_settle(l.c, 10 * KVF_MS);
        staging_forget(l.node);
    }
    wide->options = NULL;
    wide->compared = wide->different = 0;
    read = COUNTED(l.node, ssd_chunks_read) - read;
    assert_true(COUNTED(l.node, prefetch_blocks) > ahead);
    assert_true(COUNTED(l.node, prefetch_used) > used);
    /* 4 streams select at most 9 + 1 + 3 chunks in each of 4 steps; a wrong guess costs no more than as much again. */
    assert_in_range(read, 1, 4 * 4 * 2 * 13);
    lone_end(&l);
}

static enum kvf_status attend_layer(struct kvf_session *s, uint32_t layer, uint64_t timeout_ns)
{
    struct kvf_attend_options o = {.timeout_ns = timeout_ns};
    enum kvf_status st = kvf_step_append(s, layer, wide->k, wide->v);
    return st == KVF_OK ? kvf_step_attend(s, layer, wide->q, wide->out, &o) : st;
}

/* With the disk held, a step gets nothing and is given up: what it had asked for ahead leaves the queue. */
static void a_step_that_is_given_up_drops_what_it_read_ahead(void **state)
{
    struct lone l = lone_make(4096 * KIB);
    staging_forget(l.node);
    sim_disk_hold(l.node->disk, true);
    int32_t token = sim_engine_token(wide, 700);
    assert_int_equal(kvf_step_begin(l.s, &token, 1), KVF_OK);
    assert_int_equal(attend_layer(l.s, 0, 20 * KVF_MS), KVF_ERR_DEADLINE);
    assert_true(l.node->core->stage_ahead.count > 0);
    kvf_step_abort(l.s);
    uint64_t cancelled = COUNTED(l.node, prefetch_cancelled), asked = COUNTED(l.node, prefetch_blocks);
    assert_in_range(l.node->core->stage_ahead.count + cancelled, 1, asked);
    assert_int_equal(l.node->core->reads_queued, 0);
    sim_disk_hold(l.node->disk, false);
    sim_cluster_settle(l.c, KVF_SEC);
    assert_int_equal(l.node->core->stage_ahead.count, 0);
    assert_int_equal(sim_engine_run(wide, l.s, 710, 1), KVF_OK);
    assert_same_bits(wide);
    lone_end(&l);
}

struct order {
    unsigned n;
    char kind[64];
};

static void ended(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct order *o = arg;
    if (o->n < sizeof o->kind)
        o->kind[o->n++] = status == KVF_CANCELLED ? 'x' : read->priority == KVF_PRIORITY_DEMAND ? 'D' : 'a';
}

/* Reads of any kind, by hand, of blocks on SSD. */
static struct kvf_read *start(struct lone *l, kvf_handle *handle, uint64_t *cursor, bool demand, uint8_t *to, struct order *o)
{
    struct kvf_core *core = l->node->core;
    struct kvf_read *read = NULL;
    for (;;) {
        *handle = kvf_index_walk(core->index, cursor);
        assert_int_not_equal(*handle, KVF_HANDLE_NONE);
        struct kvf_entry *e = kvf_index_entry(core->index, *handle);
        if (e->tier == KVF_TIER_SSD && e->state == KVF_BLOCK_READY)
            break;
    }
    uint64_t deadline = kvf_deadline(kvf_now(core->env), KVF_SEC);
    enum kvf_priority priority = demand ? KVF_PRIORITY_DEMAND : KVF_PRIORITY_AHEAD;
    assert_int_equal(kvf_read_start(core, *handle, 0xff, to, deadline, priority, ended, o, &read), KVF_OK);
    return read;
}

static void demand_overtakes_and_promotion_and_cancel_work(void **state)
{
    struct lone l = lone_make(4096 * KIB);
    struct order o = {0};
    uint8_t *to = aligned_alloc(4096, 32 * KIB);
    uint64_t cursor = 0;
    kvf_handle h;
    struct kvf_read *first = start(&l, &h, &cursor, false, to, &o), *second = start(&l, &h, &cursor, false, to, &o);
    start(&l, &h, &cursor, false, to, &o);
    start(&l, &h, &cursor, true, to, &o);
    assert_int_equal(l.node->core->reads_queued, 4);
    kvf_read_promote(l.node->core, second);
    assert_true(kvf_read_cancel(l.node->core, first));
    assert_int_equal(o.n, 1);
    sim_cluster_settle(l.c, 10 * KVF_MS);
    assert_int_equal(o.n, 4);
    assert_memory_equal(o.kind, "xDDa", 4);
    assert_int_equal(l.node->core->reads_queued, 0);
    free(to);
    lone_end(&l);
}

/* However much is read ahead, a demand read is handed to the disk at the next poll. */
static void demand_finds_a_place_among_reads_ahead(void **state)
{
    struct lone l = lone_make(4096 * KIB);
    struct order o = {0};
    uint8_t *to = aligned_alloc(4096, 32 * KIB);
    sim_disk_hold(l.node->disk, true);
    uint64_t cursor = 0;
    kvf_handle h;
    for (unsigned i = 0; i < 400; i++) {
        if (i % 16 == 0)
            cursor = 0;
        start(&l, &h, &cursor, false, to, &o);
    }
    kvf_core_poll(l.node->core);
    unsigned before = l.node->core->reads_queued;
    assert_in_range(before, 1, 400 - 8); /* 256 KiB are posted in one turn, not one read of them alone, and not all */
    start(&l, &h, &cursor, true, to, &o);
    kvf_core_poll(l.node->core);
    assert_true(l.node->core->reads_queued <= before);
    sim_disk_hold(l.node->disk, false);
    sim_cluster_settle(l.c, KVF_SEC);
    assert_int_equal(l.node->core->reads_queued, 0);
    free(to);
    lone_end(&l);
}

/* A resumed session's blocks are on their way up, behind a reader: when it is dropped, what is queued of them is too. */
static void a_session_that_goes_drops_what_was_rising(void **state)
{
    struct lone l = {.c = sim_cluster_create(SEED)};
    struct order o = {0};
    kvf_handle h;
    uint64_t cursor = 0;
    uint8_t *to = aligned_alloc(4096, 32 * KIB);
    l.node = sim_cluster_add(l.c, &(struct sim_node_config){.name = "a", .dram = 4096 * KIB, .ssd = 8192 * KIB, .alone = true});
    assert_int_equal(kvf_session_create(&l.node->node, sim_engine_model(wide, l.node), 7, &l.s), KVF_OK);
    assert_int_equal(sim_engine_run(wide, l.s, 700, 100), KVF_OK);
    wide->compared = wide->different = 0;
    assert_int_equal(kvf_session_park(l.s, 10 * KVF_SEC), KVF_OK);
    sim_disk_hold(l.node->disk, true);
    start(&l, &h, &cursor, true, to, &o);
    kvf_core_poll(l.node->core);
    assert_int_equal(kvf_session_resume(l.s, 0), KVF_OK);
    for (unsigned i = 0; i < 4; i++)
        kvf_core_poll(l.node->core);
    assert_in_range(l.node->core->reads_queued, 2, 31);
    uint64_t rising = kvf_rises_bytes(l.node->core);
    assert_int_equal(kvf_session_drop(l.s), KVF_ERR_BUSY); /* what the disk has must come back first */
    assert_int_equal(l.node->core->reads_queued, 0);
    assert_true(COUNTED(l.node, rises_cancelled) >= 2);
    assert_true(kvf_rises_bytes(l.node->core) < rising);
    sim_disk_hold(l.node->disk, false);
    assert_int_equal(kvf_session_drop(l.s), KVF_OK);
    sim_cluster_settle(l.c, KVF_SEC);
    assert_int_equal(o.n, 1);
    sim_cluster_check(l.c);
    assert_true(sim_cluster_empty(l.node));
    sim_cluster_destroy(l.c);
    free(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_budget_reads_ahead_what_was_selected),
        cmocka_unit_test(a_step_that_is_given_up_drops_what_it_read_ahead),
        cmocka_unit_test(demand_overtakes_and_promotion_and_cancel_work),
        cmocka_unit_test(demand_finds_a_place_among_reads_ahead),
        cmocka_unit_test(a_session_that_goes_drops_what_was_rising),
    };
    return cmocka_run_group_tests(tests, wide_make, wide_free);
}
