/* The node as a cache of opaque blocks: who leaves DRAM, who is dropped when nothing has room, and that sessions lose nothing. */
#include "tests/node/store.h"

/* How many of the keys from `first` on are there; each that is, is whole. */
static uint64_t there(struct store *t, uint64_t first, uint64_t n, size_t bytes)
{
    uint64_t found = 0;
    for (uint64_t key = first; key < first + n; key++) {
        struct kvf_completion c = op(t, KVF_OP_EXISTS, key);
        assert_true(c.status == KVF_OK || c.status == KVF_MISS);
        if (c.status != KVF_OK)
            continue;
        found++;
        assert_range(t, key, 0, bytes, 0, bytes);
    }
    return found;
}

static void remove_all(struct store *t, uint64_t n)
{
    for (uint64_t key = 0; key < n; key++)
        op(t, KVF_OP_REMOVE, key);
}

static void without_room_the_oldest_unused_is_dropped(void **state)
{
    struct store t = store_make(128 * KIB, 0, 0, 8);
    uint8_t byte;
    for (uint64_t i = 0; i < 32; i++)
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    for (uint64_t i = 0; i < 8; i++) /* by get, and by pin */
        assert_int_equal(get(&t, i, 0, 1, &byte).status, KVF_OK);
    for (uint64_t i = 8; i < 12; i++) {
        const void *data;
        uint64_t length;
        assert_int_equal(kvf_block_pin(&t.n->node, key_at(i), &data, &length), KVF_OK);
        kvf_block_unpin(&t.n->node, key_at(i));
    }
    assert_int_equal(COUNTED(t.n, evicted_blocks), 0);
    for (uint64_t i = 32; i < 48; i++) {
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
        sim_cluster_check(t.c);
    }
    assert_true(COUNTED(t.n, evicted_blocks) >= 16);
    assert_int_equal(COUNTED(t.n, evicted_bytes), COUNTED(t.n, evicted_blocks) * 4096);
    assert_int_equal(COUNTED(t.n, blocks_lost), 0);
    assert_int_equal(there(&t, 0, 12, 4096), 12);
    assert_int_equal(there(&t, 0, 48, 4096), 48 - COUNTED(t.n, evicted_blocks));
    assert_int_equal(op(&t, KVF_OP_EXISTS, 12).status, KVF_MISS); /* the first that nobody used */
    assert_int_equal(put(&t, 12, 0, 4096), KVF_OK);               /* and it may come back */
    remove_all(&t, 48);
    store_end(&t);
}

/* Used blocks stay in DRAM, the others go down: nothing is dropped while the SSD has room. */
static void what_is_used_stays_in_dram(void **state)
{
    struct store t = store_make(128 * KIB, 0, 4096 * KIB, 8);
    uint8_t byte;
    for (uint64_t i = 0; i < 24; i++)
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(get(&t, i, 0, 1, &byte).status, KVF_OK);
    for (uint64_t i = 24; i < 300; i++) {
        assert_int_equal(get(&t, i % 8, 0, 1, &byte).status, KVF_OK);
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    }
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(op(&t, KVF_OP_EXISTS, i).tier, KVF_TIER_DRAM);
    assert_int_equal(COUNTED(t.n, evicted_blocks), 0);
    struct kvf_key keys[310];
    size_t prefix;
    for (uint64_t i = 0; i < 310; i++)
        keys[i] = key_at(i);
    assert_int_equal(kvf_exists_prefix(&t.n->node, keys, 310, &prefix), KVF_OK); /* some here, some below */
    assert_int_equal(prefix, 300);
    assert_int_equal(there(&t, 0, 300, 4096), 300);
    remove_all(&t, 300);
    store_end(&t);
}

/* The second read within the policy's memory brings a block back to DRAM; what is read once stays where it is. */
static void what_is_read_again_comes_back(void **state)
{
    struct store t = store_make(128 * KIB, 0, 4096 * KIB, 8);
    uint8_t *memory = aligned_alloc(4096, 8192);
    struct kvf_memory *m;
    assert_int_equal(kvf_memory_register(&t.n->node, memory, 8192, &m), KVF_OK);
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(put(&t, i, 0, i % 2 ? 8192 : 5000), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 20).tier, KVF_TIER_SSD);
    for (uint64_t i = 10; i < 20; i++)
        assert_range(&t, i, 0, i % 2 ? 8192 : 5000, 0, i % 2 ? 8192 : 5000);
    assert_int_equal(COUNTED(t.n, returned_blocks), 0);
    assert_range(&t, 12, 0, 5000, 0, 5000); /* by a copy */
    assert_int_equal(COUNTED(t.n, returned_blocks), 1);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 12).tier, KVF_TIER_DRAM);
    assert_range(&t, 12, 0, 5000, 1, 4999);
    assert_int_equal(get(&t, 13, 0, 8192, memory).status, KVF_OK); /* straight into the caller's memory */
    assert_int_equal(COUNTED(t.n, returned_blocks), 2);
    assert_int_equal(op(&t, KVF_OP_EXISTS, 13).tier, KVF_TIER_DRAM);
    sim_cluster_check(t.c);
    assert_range(&t, 14, 0, 5000, 100, 200); /* a part of a block brings nothing back */
    assert_int_equal(COUNTED(t.n, returned_blocks), 2);
    for (uint64_t i = 100; i < 200; i++) /* down again, and up */
        assert_int_equal(put(&t, i, 0, 8192), KVF_OK);
    for (uint64_t i = 0; i < 200; i++)
        assert_range(&t, i, 0, i % 2 || i >= 100 ? 8192 : 5000, 0, i % 2 || i >= 100 ? 8192 : 5000);
    sim_cluster_check(t.c);
    kvf_memory_unregister(m);
    free(memory);
    remove_all(&t, 200);
    store_end(&t);
}

/* An SSD that takes no more still has what was made durable there: the DRAM of these blocks is had without dropping them. */
static void durable_blocks_outlive_a_degraded_ssd(void **state)
{
    struct store t = store_make(128 * KIB, 0, 4096 * KIB, 8);
    for (uint64_t i = 0; i < 10; i++) {
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
        assert_int_equal(op(&t, KVF_OP_PERSIST, i).status, KVF_OK);
    }
    sim_disk_fail(t.n->disk, true, SIM_FAULT_IO, 0, 1u << 30);
    assert_int_equal(put(&t, 10, 0, 4096), KVF_OK);
    assert_int_equal(op(&t, KVF_OP_PERSIST, 10).status, KVF_ERR_IO);
    for (uint64_t i = 11; i < 100; i++)
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    assert_true(COUNTED(t.n, evicted_blocks) > 0);
    for (uint64_t i = 0; i < 10; i++) {
        assert_int_equal(op(&t, KVF_OP_EXISTS, i).status, KVF_OK);
        assert_range(&t, i, 0, 4096, 0, 4096);
    }
    sim_disk_fail(t.n->disk, true, SIM_FAULT_NONE, 0, 0);
    sim_cluster_check(t.c);
    remove_all(&t, 100);
    store_end(&t);
}

static void a_full_ssd_drops_what_is_not_read(void **state)
{
    struct store t = store_make(128 * KIB, 0, 3072 * KIB, 8); /* 2 MiB of slots */
    uint8_t byte;
    uint64_t n = 0, hot = 0, cold = 0;
    for (; COUNTED(t.n, evicted_blocks) == 0 && n < 2000; n++)
        assert_int_equal(put(&t, n, 0, 4096), KVF_OK);
    assert_true(n >= 512);
    for (uint64_t i = n; i < n + 400; i++) {
        for (uint64_t key = 40; key < 60; key++) /* long since on the SSD */
            if (op(&t, KVF_OP_EXISTS, key).status == KVF_OK)
                assert_int_equal(get(&t, key, 0, 1, &byte).status, KVF_OK);
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    }
    hot = there(&t, 40, 20, 4096);
    cold = there(&t, 60, 200, 4096);
    print_message("of the read ones %u of 20 are there, of the others %u of 200\n", (unsigned)hot, (unsigned)cold);
    assert_true(hot >= 18 && cold < 150);
    uint64_t dropped = COUNTED(t.n, evicted_blocks), found = there(&t, 0, n + 400, 4096); /* reads may drop a few more */
    assert_in_range(found, n + 400 - COUNTED(t.n, evicted_blocks), n + 400 - dropped);
    assert_int_equal(COUNTED(t.n, blocks_lost), 0);
    remove_all(&t, n + 400);
    store_end(&t);
}

/* A session that parks needs room on an SSD that is full of opaque blocks: they make it. */
static void parking_drops_opaque_blocks_from_a_full_ssd(void **state)
{
    struct store t = store_make(128 * KIB, 0, 3072 * KIB, 8); /* 2 MiB of slots */
    uint64_t n = 0;
    for (; COUNTED(t.n, evicted_blocks) == 0 && n < 2000; n++)
        assert_int_equal(put(&t, n, 0, 4096), KVF_OK);
    struct kvf_session *s = session_on(t.n, 7);
    assert_int_equal(sim_engine_run(engine, s, 300, 20), KVF_OK); /* 16 sealed blocks and 4 open ones */
    for (unsigned i = 0; i < 3; i++) { /* each time opaque blocks take what room they left */
        assert_int_equal(kvf_session_park(s, 10 * KVF_SEC), KVF_OK);
        assert_int_equal(blocks_in(s, KVF_TIER_DRAM), 0);
        assert_int_equal(kvf_session_resume(s, 10 * KVF_SEC), KVF_OK);
        assert_int_equal(sim_engine_step(engine, s, 1), KVF_OK);
        for (unsigned put_too = 0; put_too < 100; put_too++, n++)
            assert_int_equal(put(&t, n, 0, 4096), KVF_OK);
    }
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.n, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    remove_all(&t, n);
    store_end(&t);
}

static void a_full_index_drops_a_block(void **state)
{
    struct store t = {.c = sim_cluster_create(SEED)};
    struct sim_node_config config = {.name = "n", .dram = 256 * KIB, .ssd = 4096 * KIB, .alone = true, .blocks_max = 40};
    t.n = sim_cluster_add(t.c, &config);
    assert_int_equal(kvf_queue_create(&t.n->node, 8, &t.q), KVF_OK);
    for (uint64_t i = 0; i < 60; i++)
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    assert_int_equal(COUNTED(t.n, evicted_blocks), 20);
    assert_int_equal(there(&t, 20, 40, 4096), 40);
    for (uint64_t i = 20; i < 60; i++) /* a copy on the SSD beside the block in DRAM: to free one makes no room in the index */
        assert_int_equal(op(&t, KVF_OP_PERSIST, i).status, KVF_OK);
    for (uint64_t i = 60; i < 70; i++)
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    assert_int_equal(COUNTED(t.n, evicted_blocks), 30);
    assert_int_equal(there(&t, 30, 40, 4096), 40);
    kvf_queue_destroy(t.q);
    sim_cluster_destroy(t.c);
}

/* A session needs memory that opaque blocks hold, and nothing takes them: they are dropped, and the session has all of it. */
static void sessions_push_opaque_blocks_out(void **state)
{
    struct store t = store_make(128 * KIB, 0, 0, 8);
    for (uint64_t i = 0; i < 32; i++)
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    struct kvf_session *s = session_on(t.n, 7);
    assert_int_equal(sim_engine_run(engine, s, 300, 20), KVF_OK); /* 16 sealed blocks and 4 open ones */
    assert_same_bits(engine);
    assert_true(there(&t, 0, 32, 4096) <= 12);
    assert_true(COUNTED(t.n, evicted_blocks) >= 20);
    for (uint64_t i = 100; i < 200; i++) { /* a flood of puts costs the session nothing */
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
        sim_cluster_check(t.c);
    }
    assert_int_equal(sim_engine_run(engine, s, 340, 20), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(t.n, blocks_lost), 0);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    remove_all(&t, 200);
    store_end(&t);
}

/* Both kinds go down as they came: neither pushes the other out. */
static void the_two_kinds_share_the_way_down(void **state)
{
    struct store t = store_make(256 * KIB, 0, 8192 * KIB, 8);
    struct kvf_session *s = session_on(t.n, 7);
    uint8_t byte;
    for (uint64_t i = 0; i < 16; i++)
        assert_int_equal(put(&t, i, 0, 4096), KVF_OK);
    for (uint64_t step = 1; step <= 50; step++) {
        assert_int_equal(sim_engine_run(engine, s, step * 32, 32), KVF_OK);
        assert_int_equal(put(&t, 15 + step, 0, 4096), KVF_OK);
        for (uint64_t i = 0; i < 16; i++)
            assert_int_equal(get(&t, i, 0, 1, &byte).status, KVF_OK);
        sim_cluster_check(t.c);
    }
    uint64_t session_blocks = blocks_in(s, KVF_TIER_DRAM), used = 0;
    for (uint64_t i = 0; i < 16; i++)
        used += op(&t, KVF_OP_EXISTS, i).tier == KVF_TIER_DRAM;
    print_message("in DRAM %u blocks of the session, %u of 16 used ones\n", (unsigned)session_blocks, (unsigned)used);
    assert_true(session_blocks >= 8 && used >= 4);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    remove_all(&t, 66);
    store_end(&t);
}

enum { KEYS = 500, BATCH = 12, BATCHES = 2000 };

struct known {
    bool put;
    uint64_t version;
    size_t bytes;
};

/* The key's bytes of its version, or a miss: never others. */
static void check_get(const struct kvf_request *r, const struct kvf_completion *c, const struct known *k, uint64_t key)
{
    static uint8_t want[16384];
    if (c->status == KVF_MISS)
        return;
    assert_int_equal(c->status, KVF_OK);
    assert_true(k->put);
    bytes_of(key, k->version, want, k->bytes);
    assert_memory_equal(r->data, want + r->offset, r->length);
}

/* A put or remove of the key; what it will be goes into *k. A key that is put again has the bytes it had. */
static struct kvf_request change_of(struct sim_env *env, uint64_t key, struct known *k, uint8_t *data)
{
    struct kvf_request r = {.op = KVF_OP_REMOVE, .key = key_at(key)};
    if (k->put && sim_env_random(env, 3) == 0) {
        k->put = false;
        return r;
    }
    if (!k->put) {
        k->version++;
        k->bytes = sim_env_random(env, 4) ? 4096 : 1 + sim_env_random(env, 4096);
    }
    k->put = true;
    bytes_of(key, k->version, data, k->bytes);
    return (struct kvf_request){.op = KVF_OP_PUT, .key = key_at(key), .data = data, .length = k->bytes};
}

static void run_batch(struct store *t, const struct kvf_request *requests, struct kvf_completion *done)
{
    size_t n, ended = 0, more;
    assert_int_equal(kvf_submit(t->q, requests, BATCH, 0, &n), KVF_OK);
    assert_int_equal(n, BATCH);
    for (unsigned turns = 0; ended < BATCH; turns++, ended += more) {
        assert_true(turns < 100000);
        assert_int_equal(kvf_drain(t->q, done + ended, BATCH - ended, &more), KVF_OK);
        sim_cluster_step(t->c);
    }
}

/* Batches of puts and removes of distinct keys, then of gets of any, with room for a part of the blocks: whatever leaves, comes
 * back or is dropped meanwhile, a get has the key's bytes or misses. */
static void random_batches_never_get_other_bytes(void **state)
{
    struct store t = store_make(160 * KIB, 64 * KIB, 2048 * KIB, BATCH);
    static _Alignas(4096) uint8_t data[BATCH][16384];
    struct known known[KEYS] = {{0}};
    uint64_t keys[BATCH], missed = 0, got = 0;
    struct kvf_memory *m;
    print_message("seed %d\n", SEED);
    assert_int_equal(kvf_memory_register(&t.n->node, data, sizeof data / 2, &m), KVF_OK);
    for (unsigned batch = 0; batch < BATCHES; batch++) {
        struct kvf_request requests[BATCH];
        struct kvf_completion done[BATCH];
        bool change = batch % 2 == 0;
        for (unsigned i = 0; i < BATCH; i++) {
            keys[i] = change ? (batch * 7 + i * 7) % KEYS : sim_env_random(&t.c->env, KEYS / 4);
            struct known *k = &known[keys[i]];
            uint64_t length = k->put && sim_env_random(&t.c->env, 4) ? k->bytes : 1;
            requests[i] = (struct kvf_request){.op = KVF_OP_GET, .key = key_at(keys[i]), .data = data[i], .length = length};
            if (change)
                requests[i] = change_of(&t.c->env, keys[i], k, data[i]);
            requests[i].user = i;
        }
        run_batch(&t, requests, done);
        for (unsigned i = 0; i < BATCH; i++) {
            uint64_t at = done[i].user;
            assert_true(done[i].status == KVF_OK || done[i].status == KVF_MISS || (change && done[i].status == KVF_ERR_EXISTS));
            if (!change)
                check_get(&requests[at], &done[i], &known[keys[at]], keys[at]);
            got += !change && done[i].status == KVF_OK;
            missed += !change && done[i].status == KVF_MISS;
        }
        sim_cluster_check(t.c);
    }
    print_message("%u gets had their bytes, %u missed, %u blocks were dropped, %u came back\n", (unsigned)got, (unsigned)missed,
                  (unsigned)COUNTED(t.n, evicted_blocks), (unsigned)COUNTED(t.n, returned_blocks));
    assert_int_equal(COUNTED(t.n, blocks_corrupt), 0);
    assert_true(got > 1000 && COUNTED(t.n, evicted_blocks) > 100 && COUNTED(t.n, returned_blocks) > 20);
    kvf_memory_unregister(m);
    remove_all(&t, KEYS);
    store_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_room_the_oldest_unused_is_dropped),
        cmocka_unit_test(what_is_used_stays_in_dram),
        cmocka_unit_test(what_is_read_again_comes_back),
        cmocka_unit_test(durable_blocks_outlive_a_degraded_ssd),
        cmocka_unit_test(a_full_ssd_drops_what_is_not_read),
        cmocka_unit_test(parking_drops_opaque_blocks_from_a_full_ssd),
        cmocka_unit_test(a_full_index_drops_a_block),
        cmocka_unit_test(sessions_push_opaque_blocks_out),
        cmocka_unit_test(the_two_kinds_share_the_way_down),
        cmocka_unit_test(random_batches_never_get_other_bytes),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
