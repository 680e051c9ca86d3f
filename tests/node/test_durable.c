/* What PERSIST says of blocks that the node found on its SSD at the start: nothing before they were read, compared and written
 * once more. A node over the simulated disk, which keeps of what no sync made safe what a power cut leaves of it. */
#include "tests/node/store.h"

#define BYTES (20u << 10)

static struct store alone(uint64_t dram)
{
    struct store t = {.c = sim_cluster_create(SEED)};
    const struct sim_node_config config = {.name = "n", .dram = dram, .ssd = 4096 * KIB, .power = true, .alone = true,
                                           .way = KVF_WAY_GET};
    t.n = sim_cluster_add(t.c, &config);
    assert_int_equal(kvf_queue_create(&t.n->node, 8, &t.q), KVF_OK);
    return t;
}

static void end(struct store *t)
{
    kvf_queue_destroy(t->q);
    sim_cluster_check(t->c);
    sim_cluster_destroy(t->c);
}

/* The process, or the machine, dies and starts again. */
static void restart(struct store *t, bool power)
{
    kvf_queue_destroy(t->q);
    sim_cluster_check(t->c);
    if (power)
        sim_disk_cut(t->n->disk, SEED, 0);
    else
        sim_disk_kill(t->n->disk, SEED);
    sim_cluster_kill(t->n, true);
    sim_cluster_bury(t->n);
    sim_cluster_restart(t->n);
    sim_cluster_check(t->c);
    assert_int_equal(kvf_queue_create(&t->n->node, 8, &t->q), KVF_OK);
}

static struct kvf_entry *entry(const struct store *t, uint64_t key)
{
    struct kvf_key k = key_at(key);
    k.hi |= KVF_OPAQUE_BIT;
    kvf_handle h = kvf_index_find(t->n->core->index, k);
    return h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(t->n->core->index, h);
}

/* Where its copy on SSD lies; 0: nowhere. */
static uint64_t copy_of(const struct store *t, uint64_t key)
{
    const struct kvf_entry *e = entry(t, key);
    if (!e)
        return 0;
    return e->tier == KVF_TIER_SSD ? kvf_entry_location(e) : (uint64_t)e->ssd4k * KVF_LOCATION_UNIT;
}

static uint64_t written(const struct store *t)
{
    struct kvf_ssd_stats stats;
    kvf_ssd_stats(t->n->core->ssd, &stats);
    return stats.writes;
}

static void put_to_stay(struct store *t, uint64_t key)
{
    assert_int_equal(put(t, key, 0, BYTES), KVF_OK);
    assert_int_equal(op(t, KVF_OP_PERSIST, key).status, KVF_OK);
}

/* ---------------------------------------------------------------- */

/* Its bytes are others by now, as after rot, or an eviction whose record the power cut took: a miss, and it is gone. */
static void a_found_block_of_other_bytes_is_a_miss(void **state)
{
    struct store t = alone(128 * KIB);
    for (uint64_t k = 0; k < 2; k++)
        put_to_stay(&t, k);
    restart(&t, true);
    uint64_t at = copy_of(&t, 0);
    assert_true(at != 0 && copy_of(&t, 1) != 0);
    t.n->media->bytes[at + BYTES - 1] ^= 4;
    assert_int_equal(op(&t, KVF_OP_PERSIST, 0).status, KVF_MISS);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 0).status, KVF_MISS);
    assert_int_equal(COUNTED(t.n, blocks_corrupt), 1);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 1).status, KVF_OK);
    put_to_stay(&t, 0);
    restart(&t, true);
    for (uint64_t k = 0; k < 2; k++)
        assert_range(&t, k, 0, BYTES, 0, BYTES);
    end(&t);
}

static void a_found_block_that_cannot_be_read_is_a_miss(void **state)
{
    struct store t = alone(128 * KIB);
    put_to_stay(&t, 0);
    restart(&t, false);
    sim_disk_fail(t.n->disk, false, SIM_FAULT_IO, 0, 1);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 0).status, KVF_MISS);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 0).status, KVF_MISS);
    assert_int_equal(COUNTED(t.n, ssd_read_failed), 1);
    end(&t);
}

/* A sync failed, and the process ended. The next one reads the block whole, out of a cache that takes what it holds for written,
 * and its syncs say OK: that alone makes nothing durable. */
static void after_a_failed_sync_ok_means_written_again(void **state)
{
    struct store t = alone(128 * KIB);
    assert_int_equal(put(&t, 0, 0, BYTES), KVF_OK);
    sim_disk_fail_sync(t.n->disk, 0, 1);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 0).status, KVF_ERR_IO);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 0).status, KVF_ERR_IO); /* the disk says OK by now */
    restart(&t, false);
    assert_true(copy_of(&t, 0) != 0);
    uint64_t before = written(&t);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 0).status, KVF_OK);
    assert_int_equal(written(&t), before + 1);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 0).status, KVF_OK); /* once is enough */
    assert_int_equal(written(&t), before + 1);
    restart(&t, true);
    assert_range(&t, 0, 0, BYTES, 0, BYTES);
    end(&t);
}

/* Removed while its copy is being read, and while it is written: the slot is given back when the disk has done with it. */
static void a_block_that_is_removed_meanwhile_goes(void **state)
{
    for (unsigned write = 0; write < 2; write++) {
        struct store t = alone(128 * KIB);
        struct kvf_completion done[2];
        size_t n;
        put_to_stay(&t, 0);
        restart(&t, false);
        uint64_t used = kvf_arena_used(t.n->core->staging);
        sim_disk_hold(t.n->disk, true);
        struct kvf_request r = {.op = KVF_OP_PERSIST, .key = key_at(0), .user = 1};
        assert_int_equal(kvf_submit(t.q, &r, 1, 0, &n), KVF_OK);
        for (unsigned i = 0; i < 20; i++)
            sim_cluster_step(t.c);
        if (write)
            sim_disk_release_all(t.n->disk);
        for (unsigned i = 0; i < 20; i++)
            sim_cluster_step(t.c);
        assert_int_equal(sim_disk_pending(t.n->disk), 1);
        assert_int_equal(sim_disk_pending_at(t.n->disk, 0)->write, write);
        r = (struct kvf_request){.op = KVF_OP_REMOVE, .key = key_at(0), .user = 2};
        assert_int_equal(kvf_submit(t.q, &r, 1, 0, &n), KVF_OK);
        assert_int_equal(kvf_drain(t.q, done, 2, &n), KVF_OK);
        assert_true(n == 1 && done[0].user == 2 && done[0].status == KVF_OK);
        assert_true(entry(&t, 0) != NULL); /* as long as the disk may write there */
        assert_int_equal(op(&t, KVF_OP_EXISTS, 0).status, KVF_MISS);
        sim_cluster_check(t.c);
        sim_disk_hold(t.n->disk, false);
        for (n = 0; n == 0;) {
            sim_cluster_step(t.c);
            assert_int_equal(kvf_drain(t.q, done, 2, &n), KVF_OK);
        }
        assert_true(n == 1 && done[0].user == 1 && done[0].status == KVF_MISS);
        assert_null(entry(&t, 0));
        assert_int_equal(kvf_arena_used(t.n->core->staging), used);
        end(&t);
    }
}

/* Two who ask at once: the second waits for the first, and nothing is written twice. An evicting hand passes the block by. */
static void two_who_ask_share_one_write(void **state)
{
    struct store t = alone(128 * KIB);
    struct kvf_request r[2];
    struct kvf_completion done[2];
    size_t n;
    put_to_stay(&t, 0);
    restart(&t, false);
    uint64_t before = written(&t);
    for (unsigned i = 0; i < 2; i++)
        r[i] = (struct kvf_request){.op = KVF_OP_PERSIST, .key = key_at(0), .user = i};
    sim_disk_hold(t.n->disk, true);
    assert_int_equal(kvf_submit(t.q, r, 2, 0, &n), KVF_OK);
    for (unsigned i = 0; i < 20; i++)
        sim_cluster_step(t.c);
    assert_int_equal(kvf_evict_ssd(t.n->core, BYTES), 0);
    sim_disk_hold(t.n->disk, false);
    for (unsigned left = 2; left > 0; left -= (unsigned)n) {
        sim_cluster_step(t.c);
        assert_int_equal(kvf_drain(t.q, done, 2, &n), KVF_OK);
        for (unsigned i = 0; i < n; i++)
            assert_int_equal(done[i].status, KVF_OK);
    }
    assert_int_equal(written(&t), before + 1);
    end(&t);
}

/* It was read, and came back to DRAM: a copy that is no good costs the copy, and a new one is written. */
static void the_copy_below_dram_is_made_anew(void **state)
{
    struct store t = alone(128 * KIB);
    uint8_t data[BYTES];
    put_to_stay(&t, 0);
    restart(&t, false);
    for (uint64_t k = 1; k <= 3; k++) /* the policy remembers as many as lie in DRAM */
        assert_int_equal(put(&t, k, 0, BYTES), KVF_OK);
    for (unsigned i = 0; i < 4 && entry(&t, 0)->tier == KVF_TIER_SSD; i++) {
        assert_int_equal(get(&t, 0, 0, BYTES, data).status, KVF_OK);
        sim_cluster_step(t.c);
    }
    assert_int_equal(entry(&t, 0)->tier, KVF_TIER_DRAM);
    t.n->media->bytes[copy_of(&t, 0)] ^= 1;
    assert_int_equal(op(&t, KVF_OP_PERSIST, 0).status, KVF_OK);
    restart(&t, true);
    assert_range(&t, 0, 0, BYTES, 0, BYTES);
    end(&t);
}

/* A queue that is destroyed, or a deadline that is over, before the block is compared. */
static void what_is_given_up_leaves_nothing_behind(void **state)
{
    struct store t = alone(128 * KIB);
    struct kvf_request r = {.op = KVF_OP_PERSIST, .key = key_at(0)};
    struct kvf_completion done;
    size_t n;
    put_to_stay(&t, 0);
    restart(&t, false);
    uint64_t used = kvf_arena_used(t.n->core->staging);
    sim_disk_hold(t.n->disk, true);
    assert_int_equal(kvf_submit(t.q, &r, 1, KVF_SEC, &n), KVF_OK);
    sim_cluster_settle(t.c, 2 * KVF_SEC);
    sim_disk_hold(t.n->disk, false);
    for (n = 0; n == 0;) {
        sim_cluster_step(t.c);
        assert_int_equal(kvf_drain(t.q, &done, 1, &n), KVF_OK);
    }
    assert_int_equal(done.status, KVF_ERR_DEADLINE);
    assert_int_equal(kvf_arena_used(t.n->core->staging), used);
    sim_disk_slow(t.n->disk, 3);
    assert_int_equal(kvf_submit(t.q, &r, 1, KVF_SEC, &n), KVF_OK);
    sim_cluster_step(t.c);
    kvf_queue_destroy(t.q);
    assert_int_equal(kvf_arena_used(t.n->core->staging), used);
    sim_disk_slow(t.n->disk, 0);
    assert_int_equal(kvf_queue_create(&t.n->node, 8, &t.q), KVF_OK);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 0).status, KVF_OK);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_found_block_of_other_bytes_is_a_miss),
        cmocka_unit_test(a_found_block_that_cannot_be_read_is_a_miss),
        cmocka_unit_test(after_a_failed_sync_ok_means_written_again),
        cmocka_unit_test(a_block_that_is_removed_meanwhile_goes),
        cmocka_unit_test(two_who_ask_share_one_write),
        cmocka_unit_test(the_copy_below_dram_is_made_anew),
        cmocka_unit_test(what_is_given_up_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
