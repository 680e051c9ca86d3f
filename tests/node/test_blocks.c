/* Opaque blocks by key: over every tier, in batches, with cancellation, and against a trivial twin. */
#include "tests/node/store.h"

#include <poll.h>

/* ---------------------------------------------------------------- tiers */

static void blocks_are_had_back_from_every_tier(void **state)
{
    struct store t = store_make(256 * KIB, 256 * KIB, 16384 * KIB, 64);
    uint64_t seen[KVF_TIER_COUNT] = {0};
    const size_t sizes[] = {1, 4095, 4096, 10000, 40000, 65536};
    for (uint64_t i = 0; i < 30; i++) {
        assert_int_equal(put(&t, i, 0, sizes[i % 6]), KVF_OK);
        sim_cluster_check(t.c);
    }
    for (uint64_t i = 0; i < 30; i++) {
        size_t bytes = sizes[i % 6];
        struct kvf_completion c = op(&t, KVF_OP_EXISTS, i);
        assert_int_equal(c.status, KVF_OK);
        assert_int_equal(c.length, bytes);
        seen[c.tier]++;
        assert_range(&t, i, 0, bytes, 0, bytes);
        assert_range(&t, i, 0, bytes, bytes - 1, 1);
        assert_range(&t, i, 0, bytes, bytes / 3, bytes - bytes / 3);
        sim_cluster_check(t.c);
    }
    assert_true(seen[KVF_TIER_DRAM] && seen[KVF_TIER_REMOTE] && seen[KVF_TIER_SSD]);
    uint8_t byte;
    assert_int_equal(get(&t, 0, 1, 1, &byte).status, KVF_ERR_INVALID);
    assert_int_equal(get(&t, 0, 0, 2, &byte).status, KVF_ERR_INVALID);
    assert_int_equal(get(&t, 0, UINT64_MAX, 1, &byte).status, KVF_ERR_INVALID);
    assert_int_equal(get(&t, 0, 0, 0, &byte).status, KVF_ERR_INVALID);
    assert_int_equal(get(&t, 777, 0, 1, &byte).status, KVF_MISS);
    assert_int_equal(put(&t, 3, 1, 100), KVF_ERR_EXISTS);
    assert_int_equal(put(&t, 1000, 0, 65537), KVF_ERR_INVALID);
    struct kvf_key keys[40];
    size_t prefix;
    for (uint64_t i = 0; i < 40; i++)
        keys[i] = key_at(i);
    assert_int_equal(kvf_exists_prefix(&t.n->node, keys, 40, &prefix), KVF_OK);
    assert_int_equal(prefix, 30);
    assert_int_equal(op(&t, KVF_OP_REMOVE, 17).status, KVF_OK);
    assert_int_equal(op(&t, KVF_OP_REMOVE, 17).status, KVF_MISS);
    assert_int_equal(kvf_exists_prefix(&t.n->node, keys, 40, &prefix), KVF_OK);
    assert_int_equal(prefix, 17);
    for (uint64_t i = 0; i < 30; i++)
        assert_int_equal(op(&t, KVF_OP_REMOVE, i).status, i == 17 ? KVF_MISS : KVF_OK);
    store_end(&t);
}

static void registered_memory_is_written_in_place(void **state)
{
    struct store t = store_make(64 * KIB, 0, 4096 * KIB, 8);
    uint8_t *memory = aligned_alloc(4096, 64 * KIB), *want = malloc(32 * KIB);
    struct kvf_memory *m;
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(put(&t, i, 0, 32 * KIB), KVF_OK);
    assert_int_equal(kvf_memory_register(&t.n->node, memory + 1, 4096, &m), KVF_ERR_INVALID);
    assert_int_equal(kvf_memory_register(&t.n->node, memory, 64 * KIB, &m), KVF_OK);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 0).tier, KVF_TIER_SSD);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 1).tier, KVF_TIER_SSD);
    uint64_t staged = kvf_arena_used(t.n->core->staging);
    memset(memory, 0xee, 64 * KIB);
    assert_int_equal(get(&t, 0, 0, 32 * KIB, memory + 8192).status, KVF_OK);
    assert_int_equal(get(&t, 1, 8192, 4096, memory).status, KVF_OK);
    assert_int_equal(kvf_arena_used(t.n->core->staging), staged);
    bytes_of(0, 0, want, 32 * KIB);
    assert_memory_equal(memory + 8192, want, 32 * KIB);
    bytes_of(1, 0, want, 32 * KIB);
    assert_memory_equal(memory, want + 8192, 4096);
    assert_int_equal(memory[4096], 0xee);
    assert_int_equal(memory[8192 + 32 * KIB], 0xee);
    /* damage is told, and the block is gone */
    sim_disk_fail(t.n->disk, false, SIM_FAULT_FLIP, 0, 1);
    assert_int_equal(get(&t, 0, 0, 32 * KIB, memory).status, KVF_ERR_CORRUPT);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 0).status, KVF_MISS);
    kvf_memory_unregister(m);
    for (uint64_t i = 1; i < 8; i++)
        assert_int_equal(op(&t, KVF_OP_REMOVE, i).status, KVF_OK);
    free(memory);
    free(want);
    store_end(&t);
}

static void damage_and_failures_are_told(void **state)
{
    struct store t = store_make(64 * KIB, 64 * KIB, 4096 * KIB, 8);
    uint8_t *to = malloc(32 * KIB);
    for (uint64_t i = 0; i < 12; i++)
        assert_int_equal(put(&t, i, 0, 32 * KIB), KVF_OK);
    uint64_t on_ssd[3], n_ssd = 0, remote = UINT64_MAX;
    for (uint64_t i = 0; i < 12; i++) {
        enum kvf_tier tier = op(&t, KVF_OP_EXISTS, i).tier;
        if (tier == KVF_TIER_SSD && n_ssd < 3)
            on_ssd[n_ssd++] = i;
        if (tier == KVF_TIER_REMOTE)
            remote = i;
    }
    assert_true(n_ssd == 3 && remote != UINT64_MAX);
    sim_disk_fail(t.n->disk, false, SIM_FAULT_FLIP, 0, 1);
    assert_int_equal(get(&t, on_ssd[0], 0, 32 * KIB, to).status, KVF_ERR_CORRUPT);
    assert_int_equal(get(&t, on_ssd[0], 0, 32 * KIB, to).status, KVF_MISS);
    sim_disk_fail(t.n->disk, false, SIM_FAULT_IO, 0, 1);
    assert_int_equal(get(&t, on_ssd[1], 0, 32 * KIB, to).status, KVF_ERR_IO);
    assert_int_equal(get(&t, on_ssd[1], 0, 32 * KIB, to).status, KVF_MISS);
    sim_disk_hold(t.n->disk, true);
    assert_int_equal(
        one(&t, (struct kvf_request){.op = KVF_OP_GET, .key = key_at(on_ssd[2]), .data = to, .length = 100}, 50 * KVF_MS).status,
        KVF_ERR_DEADLINE);
    sim_disk_hold(t.n->disk, false);
    sim_disk_release_all(t.n->disk);
    assert_range(&t, on_ssd[2], 0, 32 * KIB, 5, 100);
    sim_cluster_kill(t.lender, true);
    assert_int_equal(get(&t, remote, 0, 32 * KIB, to).status, KVF_MISS);
    sim_cluster_check(t.c);
    for (uint64_t i = 0; i < 12; i++)
        op(&t, KVF_OP_REMOVE, i);
    free(to);
    kvf_queue_destroy(t.q);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_true(sim_cluster_empty(t.n));
    sim_cluster_destroy(t.c);
}

/* While a get waits for the disk its block is removed, and another one put under the key: of the same size, or smaller. */
static void a_get_returns_nothing_of_a_block_that_is_put_anew(void **state)
{
    const size_t sizes[] = {32 * KIB, 4 * KIB};
    uint8_t *to = aligned_alloc(4096, 32 * KIB), *fresh = malloc(32 * KIB);
    bytes_of(0, 1, fresh, 32 * KIB);
    struct store t = store_make(64 * KIB, 0, 4096 * KIB, 8);
    for (unsigned i = 0; i < 8; i++) {
        struct kvf_memory *m = NULL;
        struct kvf_completion done[3];
        size_t n, bytes = sizes[i & 1];
        bool posted = i & 2;
        for (uint64_t key = 0; key < 8; key++)
            assert_int_equal(put(&t, key, 0, 32 * KIB), KVF_OK);
        assert_int_equal(op(&t, KVF_OP_EXISTS, 0).tier, KVF_TIER_SSD);
        assert_int_equal(op(&t, KVF_OP_EXISTS, 7).tier, KVF_TIER_DRAM);
        assert_int_equal(op(&t, KVF_OP_REMOVE, 7).status, KVF_OK);
        if (i & 4)
            assert_int_equal(kvf_memory_register(&t.n->node, to, 32 * KIB, &m), KVF_OK);
        sim_disk_hold(t.n->disk, true);
        struct kvf_request r[3] = {
            {.op = KVF_OP_GET, .key = key_at(0), .data = to, .length = 32 * KIB, .user = 0},
            {.op = KVF_OP_REMOVE, .key = key_at(0), .user = 1},
            {.op = KVF_OP_PUT, .key = key_at(0), .data = fresh, .length = bytes, .user = 2},
        };
        assert_int_equal(kvf_submit(t.q, r, posted ? 1 : 3, 0, &n), KVF_OK);
        for (unsigned turn = 0; posted && turn < 10; turn++)
            sim_cluster_step(t.c);
        if (posted)
            assert_int_equal(kvf_submit(t.q, r + 1, 2, 0, &n), KVF_OK);
        sim_disk_hold(t.n->disk, false);
        sim_disk_release_all(t.n->disk);
        for (size_t ended = 0; ended < 3; ended += n) {
            assert_int_equal(kvf_drain(t.q, done, 3, &n), KVF_OK);
            for (size_t j = 0; j < n; j++) {
                assert_int_equal(done[j].status, done[j].user != 0 ? KVF_OK : i == 0 ? KVF_OK : KVF_MISS);
                if (i == 0 && done[j].user == 0)
                    assert_memory_equal(to, fresh, 32 * KIB);
            }
            sim_cluster_step(t.c);
        }
        assert_int_equal(COUNTED(t.n, blocks_corrupt), 0);
        assert_range(&t, 0, 1, bytes, 0, bytes);
        for (uint64_t key = 0; key < 8; key++)
            op(&t, KVF_OP_REMOVE, key);
        kvf_memory_unregister(m);
    }
    store_end(&t);
    free(to);
    free(fresh);
}

/* ---------------------------------------------------------------- limits */

/* Full is said only when nothing may be dropped: here everything is pinned. */
static void full_is_said_and_passes(void **state)
{
    struct store t = store_make(128 * KIB, 0, 0, 8);
    const void *data;
    uint64_t length;
    for (uint64_t i = 0; i < 32; i++) {
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
        assert_int_equal(kvf_block_pin(&t.n->node, key_at(i), &data, &length), KVF_OK);
        assert_int_equal(length, 4096);
    }
    assert_int_equal(put(&t, 32, 0, 4096), KVF_ERR_FULL);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 32).status, KVF_MISS);
    assert_int_equal(op(&t, KVF_OP_REMOVE, 5).status, KVF_OK);
    assert_int_equal(put(&t, 32, 0, 4096), KVF_ERR_FULL); /* the pin holds its memory */
    assert_int_equal(kvf_arena_used(t.n->core->dram), 32 * 4096);
    kvf_block_unpin(&t.n->node, key_at(5));
    assert_int_equal(kvf_arena_used(t.n->core->dram), 31 * 4096);
    assert_int_equal(kvf_block_pin(&t.n->node, key_at(5), &data, &length), KVF_MISS);
    assert_int_equal(put(&t, 32, 0, 4096), KVF_OK);
    assert_int_equal(COUNTED(t.n, evicted_blocks), 0);
    for (uint64_t i = 0; i <= 32; i++) {
        if (i < 32)
            kvf_block_unpin(&t.n->node, key_at(i));
        op(&t, KVF_OP_REMOVE, i);
    }
    store_end(&t);
}

static void a_queue_takes_its_depth_and_rings(void **state)
{
    struct store t = store_make(1024 * KIB, 0, 0, 4);
    struct kvf_request r[6];
    struct kvf_completion done[8];
    uint8_t data[6][100];
    size_t n;
    struct pollfd fd = {.fd = kvf_queue_fd(t.q), .events = POLLIN};
    for (unsigned i = 0; i < 6; i++)
        r[i] = (struct kvf_request){.op = KVF_OP_PUT, .key = key_at(i), .data = data[i], .length = 100, .user = i};
    assert_int_equal(poll(&fd, 1, 0), 0);
    assert_int_equal(kvf_submit(t.q, r, 6, 0, &n), KVF_OK);
    assert_int_equal(n, 4);
    assert_int_equal(kvf_submit(t.q, r + 4, 2, 0, &n), KVF_ERR_BUSY);
    assert_int_equal(poll(&fd, 1, 0), 1);
    assert_int_equal(kvf_drain(t.q, done, 3, &n), KVF_OK);
    assert_int_equal(n, 3);
    assert_int_equal(poll(&fd, 1, 0), 1);
    assert_int_equal(kvf_drain(t.q, done, 8, &n), KVF_OK);
    assert_int_equal(n, 1);
    assert_int_equal(poll(&fd, 1, 0), 0);
    assert_int_equal(kvf_drain(t.q, done, 8, &n), KVF_OK);
    assert_int_equal(n, 0);
    struct kvf_queue *q;
    assert_int_equal(kvf_queue_create(&t.n->node, 0, &q), KVF_ERR_INVALID);
    assert_int_equal(kvf_queue_create(&t.n->node, 65537, &q), KVF_ERR_INVALID);
    for (unsigned i = 0; i < 4; i++)
        op(&t, KVF_OP_REMOVE, i);
    store_end(&t);
}

/* After destroy nothing writes into the buffers, whatever was under way. */
static void destroying_a_queue_cancels_what_is_outstanding(void **state)
{
    struct store t = store_make(64 * KIB, 0, 4096 * KIB, 64);
    for (uint64_t i = 0; i < 10; i++)
        assert_int_equal(put(&t, i, 0, 32 * KIB), KVF_OK);
    uint8_t *memory = aligned_alloc(4096, 10 * 32 * KIB);
    struct kvf_memory *m;
    assert_int_equal(kvf_memory_register(&t.n->node, memory, 5 * 32 * KIB, &m), KVF_OK);
    struct kvf_queue *q;
    struct kvf_request r[10];
    size_t n;
    assert_int_equal(kvf_queue_create(&t.n->node, 16, &q), KVF_OK);
    for (uint64_t i = 0; i < 10; i++)
        r[i] = (struct kvf_request){.op = KVF_OP_GET, .key = key_at(i), .data = memory + i * 32 * KIB, .length = 32 * KIB};
    sim_disk_slow(t.n->disk, 300);
    assert_int_equal(kvf_submit(q, r, 10, 0, &n), KVF_OK);
    sim_cluster_step(t.c);
    kvf_queue_destroy(q);
    kvf_memory_unregister(m);
    memset(memory, 0x5a, 10 * 32 * KIB);
    sim_disk_slow(t.n->disk, 0);
    sim_cluster_settle(t.c, 2 * KVF_SEC);
    for (size_t i = 0; i < 10 * 32 * KIB; i++)
        assert_int_equal(memory[i], 0x5a);
    free(memory);
    for (uint64_t i = 0; i < 10; i++)
        assert_int_equal(op(&t, KVF_OP_REMOVE, i).status, KVF_OK);
    store_end(&t);
}

/* ---------------------------------------------------------------- against a twin */

#define KEYS 60

static void random_operations_agree_with_a_twin(void **state)
{
    struct store t = store_make(256 * KIB, 128 * KIB, 32768 * KIB, 32);
    struct sim_env rng;
    struct { bool here; uint64_t version; size_t bytes; } twin[KEYS] = {{0}};
    uint64_t version = 0, gets = 0;
    uint8_t *buffer = malloc(64 * KIB), *want = malloc(64 * KIB);
    sim_env_init(&rng, SEED);
    for (unsigned i = 0; i < 4000; i++) {
        uint64_t key = sim_env_random(&rng, KEYS), what = sim_env_random(&rng, 10);
        if (what < 4) {
            size_t bytes = 1 + sim_env_random(&rng, 1 << sim_env_random(&rng, 16));
            enum kvf_status st = put(&t, key, ++version, bytes);
            if (twin[key].here) {
                assert_int_equal(st, KVF_ERR_EXISTS);
            } else {
                assert_int_equal(st, KVF_OK);
                twin[key].here = true;
                twin[key].version = version;
                twin[key].bytes = bytes;
            }
        } else if (what < 8) {
            size_t bytes = twin[key].here ? twin[key].bytes : 1, offset = sim_env_random(&rng, bytes);
            size_t length = 1 + sim_env_random(&rng, bytes - offset);
            struct kvf_completion c = get(&t, key, offset, length, buffer);
            assert_int_equal(c.status, twin[key].here ? KVF_OK : KVF_MISS);
            if (twin[key].here) {
                gets++;
                bytes_of(key, twin[key].version, want, bytes);
                assert_memory_equal(buffer, want + offset, length);
            }
        } else if (what == 8) {
            struct kvf_completion c = op(&t, KVF_OP_EXISTS, key);
            assert_int_equal(c.status, twin[key].here ? KVF_OK : KVF_MISS);
            if (twin[key].here)
                assert_int_equal(c.length, twin[key].bytes);
        } else {
            assert_int_equal(op(&t, KVF_OP_REMOVE, key).status, twin[key].here ? KVF_OK : KVF_MISS);
            twin[key].here = false;
        }
        if (i % 50 == 0)
            sim_cluster_check(t.c);
    }
    assert_true(gets > 500);
    assert_true(COUNTED(t.n, remote_chunks_read) > 0 && COUNTED(t.n, ssd_chunks_read) > 0);
    assert_int_equal(COUNTED(t.n, blocks_corrupt), 0);
    for (uint64_t i = 0; i < KEYS; i++)
        op(&t, KVF_OP_REMOVE, i);
    free(buffer);
    free(want);
    store_end(&t);
}

static void sessions_and_blocks_share_a_node(void **state)
{
    struct store t = store_make(192 * KIB, 64 * KIB, 4096 * KIB, 32);
    struct kvf_session *s = session_on(t.n, 7);
    for (uint64_t i = 0; i < 20; i++) {
        assert_int_equal(put(&t, i, i, 20000), KVF_OK);
        assert_int_equal(sim_engine_run(engine, s, (i + 1) * 40, 20), KVF_OK);
        assert_range(&t, i / 2, i / 2, 20000, 0, 20000);
        sim_cluster_check(t.c);
    }
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(op(&t, KVF_OP_REMOVE, i).status, KVF_OK);
    store_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_had_back_from_every_tier),
        cmocka_unit_test(registered_memory_is_written_in_place),
        cmocka_unit_test(damage_and_failures_are_told),
        cmocka_unit_test(a_get_returns_nothing_of_a_block_that_is_put_anew),
        cmocka_unit_test(full_is_said_and_passes),
        cmocka_unit_test(a_queue_takes_its_depth_and_rings),
        cmocka_unit_test(destroying_a_queue_cancels_what_is_outstanding),
        cmocka_unit_test(random_operations_agree_with_a_twin),
        cmocka_unit_test(sessions_and_blocks_share_a_node),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
