/* Movement in the background: the scrub over a simulated disk, and the budgets, on a clock in hand. */
#include "node/scrub.h"
#include "tests/node/world.h"

#define BLOCK (64 * KIB)
#define BLOCKS 24u

struct store {
    struct sim_cluster *c;
    struct sim_node *n;
    struct kvf_queue *q;
    uint8_t *data;
};

static struct store store_make(struct sim_node_config config)
{
    struct store t = {.c = sim_cluster_create(SEED), .data = malloc(BLOCK)};
    config.name = "n";
    config.alone = true;
    config.ssd = config.ssd ? config.ssd : 16384 * KIB;
    t.n = sim_cluster_add(t.c, &config);
    assert_int_equal(kvf_queue_create(&t.n->node, 64, &t.q), KVF_OK);
    return t;
}

static void store_end(struct store *t)
{
    kvf_queue_destroy(t->q);
    sim_cluster_check(t->c);
    sim_cluster_destroy(t->c);
    free(t->data);
}

static struct kvf_key key_at(uint64_t i)
{
    return (struct kvf_key){.hi = i * 0x9e3779b97f4a7c15ull, .lo = i};
}

static void bytes_of(uint64_t key, uint64_t version, uint8_t *to)
{
    for (size_t i = 0; i < BLOCK; i++)
        to[i] = (uint8_t)((key * 31 + version * 101 + i * 7 + (i >> 8) * 13) >> 1);
}

static void submit(struct store *t, enum kvf_op what, uint64_t key, uint64_t timeout_ns)
{
    size_t n = 0;
    struct kvf_request r = {.op = what, .key = key_at(key), .data = t->data, .length = BLOCK, .user = key};
    assert_int_equal(kvf_submit(t->q, &r, 1, timeout_ns, &n), KVF_OK);
    assert_int_equal(n, 1);
}

static struct kvf_completion await(struct store *t)
{
    struct kvf_completion done = {.user = 0};
    size_t n = 0;
    for (unsigned i = 0; i < 100000; i++) {
        assert_int_equal(kvf_drain(t->q, &done, 1, &n), KVF_OK);
        if (n == 1)
            return done;
        sim_cluster_step(t->c);
    }
    fail_msg("a request did not end");
    return done;
}

static enum kvf_status put(struct store *t, uint64_t key, uint64_t version)
{
    bytes_of(key, version, t->data);
    submit(t, KVF_OP_PUT, key, 60 * KVF_SEC);
    return await(t).status;
}

static enum kvf_status get(struct store *t, uint64_t key, uint64_t version)
{
    uint8_t *want = malloc(BLOCK);
    bytes_of(key, version, want);
    submit(t, KVF_OP_GET, key, KVF_SEC);
    enum kvf_status st = await(t).status;
    if (st == KVF_OK)
        assert_memory_equal(t->data, want, BLOCK);
    free(want);
    return st;
}

/* The first block in handle order that lies on SSD, or the one of a key. */
static struct kvf_entry *entry_of(struct store *t, uint64_t key)
{
    struct kvf_key k = key_at(key);
    k.hi |= KVF_OPAQUE_BIT;
    kvf_handle h = kvf_index_find(t->n->core->index, k);
    return h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(t->n->core->index, h);
}

static bool on_ssd(struct store *t, uint64_t key)
{
    struct kvf_entry *e = entry_of(t, key);
    return e && e->tier == KVF_TIER_SSD && e->state == KVF_BLOCK_READY;
}

/* Blocks of 64 KiB in DRAM of 256 KiB: most go down. */
static struct store filled(uint64_t scrub_rate)
{
    struct store t = store_make((struct sim_node_config){.dram = 256 * KIB, .scrub_rate = scrub_rate, .staging = 1024 * KIB});
    for (uint64_t i = 0; i < BLOCKS; i++)
        assert_int_equal(put(&t, i, 0), KVF_OK);
    sim_cluster_settle(t.c, 100 * KVF_MS);
    for (uint64_t i = 0; i < BLOCKS - 4; i++)
        assert_true(on_ssd(&t, i));
    return t;
}

static void settle_until_pass(struct store *t, uint64_t passes)
{
    for (unsigned i = 0; i < 1000 && COUNTED(t->n, scrub_passes) < passes; i++)
        sim_cluster_settle(t->c, KVF_SEC);
    assert_true(COUNTED(t->n, scrub_passes) >= passes);
}

/* ---------------------------------------------------------------- scrub */

static void a_flipped_bit_is_found_within_one_pass(void **state)
{
    struct store t = filled(4096 * KIB);
    settle_until_pass(&t, 1);
    settle_until_pass(&t, 2);
    assert_int_equal(COUNTED(t.n, scrub_corrupt), 0);
    uint64_t at = kvf_entry_location(entry_of(&t, 7)), passes = COUNTED(t.n, scrub_passes);
    t.n->media->bytes[at + 12345] ^= 0x40;
    uint64_t read = COUNTED(t.n, ssd_chunks_read);
    settle_until_pass(&t, passes + 1);
    assert_int_equal(COUNTED(t.n, scrub_corrupt), 1);
    assert_int_equal(COUNTED(t.n, blocks_corrupt), 1);
    assert_int_equal(COUNTED(t.n, ssd_chunks_read), read); /* nobody asked for it */
    assert_null(entry_of(&t, 7));
    for (uint64_t i = 0; i < BLOCKS; i++)
        assert_int_equal(get(&t, i, 0), i == 7 ? KVF_MISS : KVF_OK);
    assert_int_equal(COUNTED(t.n, blocks_corrupt), 1);
    store_end(&t);
}

static void a_sessions_damaged_block_becomes_a_range_to_refill(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *n = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .alone = true, .dram = 128 * KIB,
                                                                      .ssd = 4096 * KIB, .scrub_rate = 4096 * KIB});
    struct kvf_session *s = session_on(n, 7);
    struct kvf_range range;
    size_t count = 0;
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    sim_cluster_settle(c, KVF_SEC);
    kvf_handle h = kvf_sess_block(s->sess, 1, 0, 2);
    struct kvf_entry *e = kvf_index_entry(n->core->index, h);
    assert_int_equal(e->tier, KVF_TIER_SSD);
    n->media->bytes[kvf_entry_location(e) + 100] ^= 1;
    for (unsigned i = 0; i < 200 && COUNTED(n, scrub_corrupt) == 0; i++)
        sim_cluster_settle(c, KVF_SEC);
    assert_int_equal(COUNTED(n, scrub_corrupt), 1);
    assert_int_equal(kvf_session_lost(s, &range, 1, &count), KVF_OK);
    assert_int_equal(count, 1);
    assert_int_equal(range.first, 2 * 64);
    assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1250, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_check(c);
    sim_cluster_destroy(c);
}

/* A block in DRAM with a copy on SSD that was made to stay: the copy is checked too, and alone is dropped. */
static void a_damaged_copy_is_dropped_and_the_block_stays(void **state)
{
    struct store t = store_make((struct sim_node_config){.dram = 1024 * KIB, .scrub_rate = 4096 * KIB});
    assert_int_equal(put(&t, 1, 0), KVF_OK);
    assert_int_equal(put(&t, 2, 0), KVF_OK);
    submit(&t, KVF_OP_PERSIST, 1, 10 * KVF_SEC);
    assert_int_equal(await(&t).status, KVF_OK);
    struct kvf_entry *e = entry_of(&t, 1);
    assert_int_equal(e->tier, KVF_TIER_DRAM);
    assert_true(e->ssd4k > 0);
    assert_true(kvf_scrub_next_timer(t.n->core, kvf_now(t.n->core->env)) < UINT64_MAX); /* though no block lies there */
    settle_until_pass(&t, 1);
    assert_int_equal(COUNTED(t.n, scrub_blocks), 1);
    assert_int_equal(COUNTED(t.n, scrub_corrupt), 0);
    t.n->media->bytes[(uint64_t)e->ssd4k * KVF_LOCATION_UNIT + 9] ^= 1;
    settle_until_pass(&t, 2);
    assert_int_equal(COUNTED(t.n, scrub_corrupt), 1);
    assert_int_equal(e->ssd4k, 0);
    assert_int_equal(get(&t, 1, 0), KVF_OK);
    store_end(&t);
}

static void the_rate_of_the_scrub_is_kept(void **state)
{
    struct store t = filled(128 * KIB);
    sim_cluster_settle(t.c, 2 * KVF_SEC);
    uint64_t before = COUNTED(t.n, scrub_bytes), began = t.c->env.now_ns;
    sim_cluster_settle(t.c, 6 * KVF_SEC);
    uint64_t bytes = COUNTED(t.n, scrub_bytes) - before, ns = t.c->env.now_ns - began;
    uint64_t due = 128 * KIB * ns / KVF_SEC;
    assert_in_range(bytes, due - due / 10 - BLOCK, due + due / 10 + BLOCK);
    settle_until_pass(&t, 1);
    /* And between passes it rests. */
    uint64_t blocks = COUNTED(t.n, scrub_blocks);
    sim_cluster_settle(t.c, 30 * KVF_SEC);
    assert_int_equal(COUNTED(t.n, scrub_blocks), blocks);
    store_end(&t);
}

/* While a reader waits for the disk the scrub stays away, but for a piece now and then. */
static void the_scrub_yields_to_demand(void **state)
{
    struct store t = filled(1ull << 30);
    settle_until_pass(&t, 1);
    sim_cluster_settle(t.c, 50 * KVF_SEC); /* nearly at the next pass */
    sim_disk_hold(t.n->disk, true);
    submit(&t, KVF_OP_GET, 3, 600 * KVF_SEC);
    for (unsigned i = 0; i < 400; i++) {
        sim_cluster_settle(t.c, 100 * KVF_MS);
        assert_in_range(sim_disk_pending(t.n->disk), 1, 2); /* the reader's own, and at most one more */
    }
    struct kvf_ssd_stats stats;
    kvf_ssd_stats(t.n->core->ssd, &stats);
    assert_int_equal(stats.in_flight[KVF_PRIORITY_DEMAND], 1);
    assert_in_range(stats.in_flight[KVF_PRIORITY_SCRUB], 0, 1);
    sim_disk_hold(t.n->disk, false);
    assert_int_equal(await(&t).status, KVF_OK);
    store_end(&t);
}

/* The block that is being scrubbed goes, and its handle and key become another version's: no damage is seen. */
static void a_block_that_changes_under_the_scrub_is_not_damaged(void **state)
{
    struct store t = filled(4096 * KIB);
    settle_until_pass(&t, 1);
    sim_disk_hold(t.n->disk, true);
    for (unsigned i = 0; i < 200 && sim_disk_pending(t.n->disk) == 0; i++)
        sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(sim_disk_pending(t.n->disk), 1); /* the scrub's first */
    uint64_t at = sim_disk_pending_at(t.n->disk, 0)->offset, key = UINT64_MAX;
    for (uint64_t i = 0; i < BLOCKS; i++)
        if (on_ssd(&t, i) && kvf_entry_location(entry_of(&t, i)) == at)
            key = i;
    assert_int_not_equal(key, UINT64_MAX);
    kvf_handle before = kvf_index_find(t.n->core->index, entry_of(&t, key)->key);
    submit(&t, KVF_OP_REMOVE, key, 0);
    assert_int_equal(await(&t).status, KVF_OK);
    bytes_of(key, 1, t.data);
    submit(&t, KVF_OP_PUT, key, KVF_SEC);
    sim_cluster_settle(t.c, 100 * KVF_MS);
    sim_disk_hold(t.n->disk, false);
    assert_int_equal(await(&t).status, KVF_OK);
    for (uint64_t i = 100; i < 108; i++)
        assert_int_equal(put(&t, i, 0), KVF_OK); /* pushes it down */
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(on_ssd(&t, key));
    assert_int_equal(kvf_index_find(t.n->core->index, entry_of(&t, key)->key), before); /* the handle was reused */
    settle_until_pass(&t, 3);
    assert_int_equal(COUNTED(t.n, scrub_corrupt), 0);
    assert_int_equal(get(&t, key, 1), KVF_OK);
    store_end(&t);
}

/* A read that fails once is no loss; one that fails again is; and a disk that fails for good loses few blocks. */
static void what_cannot_be_read_is_lost_slowly(void **state)
{
    struct store t = filled(64ull << 20);
    settle_until_pass(&t, 1);
    sim_disk_fail(t.n->disk, false, SIM_FAULT_IO, 5, 1);
    settle_until_pass(&t, 2);
    assert_int_equal(COUNTED(t.n, scrub_unreadable), 0);
    sim_disk_fail(t.n->disk, false, SIM_FAULT_FLIP, 5, 1);
    settle_until_pass(&t, 3);
    assert_int_equal(COUNTED(t.n, scrub_corrupt), 0);
    sim_disk_fail(t.n->disk, false, SIM_FAULT_SHORT, 5, 2);
    settle_until_pass(&t, 4);
    assert_int_equal(COUNTED(t.n, scrub_unreadable), 1);
    uint64_t lost = COUNTED(t.n, blocks_lost);
    sim_disk_fail(t.n->disk, false, SIM_FAULT_IO, 0, 1000);
    sim_cluster_settle(t.c, 120 * KVF_SEC);
    assert_in_range(COUNTED(t.n, blocks_lost) - lost, 2, 8);
    store_end(&t);
}

static void status_shows_the_scrub(void **state)
{
    struct store t = filled(4096 * KIB);
    settle_until_pass(&t, 1);
    char *status = kvf_status_json(t.n->core), *metrics = kvf_metrics_text(t.n->core);
    assert_non_null(strstr(status, "\"scrub\":{\"rate\":4194304,"));
    assert_non_null(strstr(status, "\"passes\":1,"));
    assert_null(strstr(status, "\"since_s\":null"));
    assert_non_null(strstr(metrics, "\nkvf_scrub_passes_total 1\n"));
    assert_non_null(strstr(metrics, "\nkvf_scrub_seconds_count 2"));
    free(status);
    free(metrics);
    store_end(&t);
}

/* ---------------------------------------------------------------- budgets */

/* DRAM that nobody waits for empties no faster than the budget says. */
static void blocks_go_down_within_the_budget(void **state)
{
    struct store t = store_make((struct sim_node_config){.dram = 4096 * KIB, .down_budget = 256 * KIB});
    unsigned n = 0;
    while (kvf_arena_used(t.n->core->dram) < 4096 * KIB / 16 * 15)
        assert_int_equal(put(&t, n++, 0), KVF_OK);
    uint64_t began = t.c->env.now_ns, before = COUNTED(t.n, spill_ssd_bytes);
    for (unsigned i = 0; i < 20; i++) {
        sim_cluster_settle(t.c, 50 * KVF_MS);
        uint64_t due = 256 * KIB * (t.c->env.now_ns - began) / KVF_SEC;
        assert_true(COUNTED(t.n, spill_ssd_bytes) - before <= due + 26 * KIB + BLOCK);
    }
    assert_true(COUNTED(t.n, spill_ssd_bytes) - before >= 128 * KIB);
    store_end(&t);
}

/* Who waits for room does not wait for the budget. */
static void who_waits_for_room_goes_beyond_the_budget(void **state)
{
    struct store t = store_make((struct sim_node_config){.dram = 512 * KIB, .down_budget = 4096});
    uint64_t began = t.c->env.now_ns;
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(put(&t, i, 0), KVF_OK);
    assert_true(t.c->env.now_ns - began < 10 * KVF_SEC); /* at the budget's rate: 17 minutes */
    assert_true(COUNTED(t.n, spill_ssd_bytes) >= 48 * BLOCK);
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(get(&t, i, 0), KVF_OK);
    store_end(&t);
}

static uint64_t bytes_in_dram(struct sim_node *n)
{
    return n->core->tier_bytes[KVF_TIER_DRAM];
}

static void blocks_come_up_within_the_budget(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *n = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .alone = true, .dram = 4096 * KIB,
                                                                      .ssd = 4096 * KIB, .up_budget = 16 * KIB});
    struct kvf_session *s = session_on(n, 7);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    uint64_t all = bytes_in_dram(n);
    assert_int_equal(kvf_session_park(s, 10 * KVF_SEC), KVF_OK);
    assert_int_equal(bytes_in_dram(n), 0);
    assert_int_equal(kvf_session_resume(s, 0), KVF_OK);
    uint64_t began = c->env.now_ns;
    for (unsigned i = 0; i < 100 && bytes_in_dram(n) < all; i++) {
        sim_cluster_settle(c, 250 * KVF_MS);
        uint64_t due = 16 * KIB * (c->env.now_ns - began) / KVF_SEC;
        assert_true(bytes_in_dram(n) <= due + 16 * KIB / 10 + 2 * SLOT);
        assert_true(bytes_in_dram(n) + 16 * KIB >= due || bytes_in_dram(n) == all);
    }
    assert_int_equal(bytes_in_dram(n), all);
    assert_int_equal(sim_engine_run(engine, s, 1250, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_destroy(c);
}

/* The session's blocks are the youngest of very many in DRAM: parking finds them all the same. */
static void a_session_behind_many_blocks_is_parked(void **state)
{
    struct store t = store_make((struct sim_node_config){.dram = 65536 * KIB, .ssd = 65536 * KIB, .blocks_max = 16384});
    memset(t.data, 1, 4096);
    for (uint64_t i = 0; i < 6000; i++) {
        size_t n = 0;
        struct kvf_request r = {.op = KVF_OP_PUT, .key = key_at(i), .data = t.data, .length = 4096};
        assert_int_equal(kvf_submit(t.q, &r, 1, KVF_SEC, &n), KVF_OK);
        assert_int_equal(await(&t).status, KVF_OK);
    }
    struct kvf_session *s = session_on(t.n, 7), *other = session_on(t.n, 8);
    assert_int_equal(sim_engine_run(engine, other, 300, 50), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1200, 50), KVF_OK);
    assert_true(blocks_in(s, KVF_TIER_DRAM) > 64);
    assert_int_equal(kvf_session_park(s, 10 * KVF_SEC), KVF_OK);
    assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 0);
    assert_int_equal(COUNTED(t.n, spill_ssd_blocks), blocks_in(s, KVF_TIER_SSD)); /* and nobody else's went */
    assert_int_equal(kvf_session_resume(s, 10 * KVF_SEC), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1250, 50), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    store_end(&t);
}

struct held {
    struct kvf_index *index;
    kvf_handle handles[256];
    unsigned n, turns;
};

/* Everything that is at rest in DRAM is being read; the readers are gone after 50 turns of somebody who waits. */
static void hold_all(struct store *t, struct held *held)
{
    uint64_t cursor = 0;
    held->index = t->n->core->index;
    for (kvf_handle h; (h = kvf_index_walk(held->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(held->index, h);
        if (e->tier == KVF_TIER_DRAM && e->state == KVF_BLOCK_READY && held->n < 256 && kvf_entry_pin(e))
            held->handles[held->n++] = h;
    }
}

static void readers_end(struct sim_cluster *c, void *arg)
{
    struct held *held = arg;
    if (held->turns++ < 50)
        return;
    for (; held->n > 0; held->n--)
        kvf_entry_unpin(kvf_index_entry(held->index, held->handles[held->n - 1]));
}

/* Attention reads all that lies in DRAM: who wants room waits for it to end, instead of hearing that there is none. */
static void who_wants_room_waits_for_readers(void **state)
{
    struct store t = store_make((struct sim_node_config){.dram = 192 * KIB, .staging = 2048 * KIB});
    struct held held = {.n = 0};
    struct kvf_session *s, *other;
    assert_int_equal(kvf_session_create(&t.n->node, sim_engine_model(engine, t.n), 7, &s), KVF_OK);
    assert_int_equal(kvf_session_create(&t.n->node, sim_engine_model(engine, t.n), 8, &other), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 600, 50), KVF_OK);
    sim_cluster_settle(t.c, 100 * KVF_MS);
    hold_all(&t, &held);
    assert_true(held.n > 4);
    t.c->stepped = readers_end;
    t.c->stepped_arg = &held;
    assert_int_equal(sim_engine_run(engine, other, 500, 250), KVF_OK); /* more than is free, open until the commit */
    assert_same_bits(engine);
    assert_int_equal(held.n, 0); /* it did wait */
    t.c->stepped = NULL;
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    store_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flipped_bit_is_found_within_one_pass),
        cmocka_unit_test(a_sessions_damaged_block_becomes_a_range_to_refill),
        cmocka_unit_test(a_damaged_copy_is_dropped_and_the_block_stays),
        cmocka_unit_test(the_rate_of_the_scrub_is_kept),
        cmocka_unit_test(the_scrub_yields_to_demand),
        cmocka_unit_test(a_block_that_changes_under_the_scrub_is_not_damaged),
        cmocka_unit_test(what_cannot_be_read_is_lost_slowly),
        cmocka_unit_test(status_shows_the_scrub),
        cmocka_unit_test(blocks_go_down_within_the_budget),
        cmocka_unit_test(who_waits_for_room_goes_beyond_the_budget),
        cmocka_unit_test(blocks_come_up_within_the_budget),
        cmocka_unit_test(a_session_behind_many_blocks_is_parked),
        cmocka_unit_test(who_wants_room_waits_for_readers),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
