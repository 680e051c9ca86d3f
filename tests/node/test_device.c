/* The device cache in the node: the same bits as without it, fewer reads, and nothing served that was lost, not filled or moved. */
#include "tests/node/world.h"

#include <math.h>

#define LAYERS 2
#define KV_HEADS 2
#define DIM 16
#define WIDTH (4 * DIM)

/* An engine whose queries change slowly, so that steps select much of what the last ones did. */
static void rows(char what, uint32_t layer, uint64_t token, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++) {
        double turn = (double)(i * 7 + layer * 3 + (uint32_t)what) + (what == 'q' ? 0.02 : 0.7) * (double)token;
        out[i] = (float)(2 * sin(turn) + sin(1.7 * turn + i));
    }
}

/* One step of one token under a budget: layers' results to out [LAYERS][WIDTH]. */
static enum kvf_status decode(struct kvf_session *s, float budget, uint64_t timeout_ns, float *out)
{
    float k[KV_HEADS * DIM], v[KV_HEADS * DIM], q[WIDTH];
    struct kvf_attend_options o = {.budget = budget, .local_tokens = 16, .timeout_ns = timeout_ns};
    uint64_t at = tokens_of(s);
    int32_t token = sim_engine_token(engine, at);
    enum kvf_status st = kvf_step_begin(s, &token, 1);
    for (uint32_t l = 0; l < LAYERS && st == KVF_OK; l++) {
        rows('k', l, at, KV_HEADS * DIM, k);
        rows('v', l, at, KV_HEADS * DIM, v);
        rows('q', l, at, WIDTH, q);
        st = kvf_step_append(s, l, k, v);
        if (st == KVF_OK)
            st = kvf_step_attend(s, l, q, out + (size_t)l * WIDTH, &o);
    }
    if (st == KVF_OK)
        st = kvf_step_commit(s);
    else
        kvf_step_abort(s);
    return st;
}

/* Two nodes with the same session of 1200 tokens, with little DRAM and an SSD; the first perhaps with a device cache. */
struct pair {
    struct sim_cluster *c;
    struct sim_node *node, *twin;
    struct kvf_session *s, *t;
};

static struct pair pair_make(uint64_t gpu, uint64_t dram)
{
    struct pair p = {.c = sim_cluster_create(SEED)};
    struct sim_node_config config = {.name = "a", .dram = dram, .ssd = 4096 * KIB, .gpu = gpu, .alone = true};
    p.node = sim_cluster_add(p.c, &config);
    config.name = "b";
    config.gpu = 0;
    p.twin = sim_cluster_add(p.c, &config);
    p.s = session_on(p.node, 7);
    p.t = session_on(p.twin, 7);
    assert_int_equal(sim_engine_run(engine, p.s, 1200, 100), KVF_OK);
    assert_int_equal(sim_engine_run(engine, p.t, 1200, 100), KVF_OK);
    assert_same_bits(engine);
    return p;
}

static void pair_end(struct pair *p)
{
    sim_cluster_check(p->c);
    assert_int_equal(kvf_session_drop(p->s), KVF_OK);
    assert_int_equal(kvf_session_drop(p->t), KVF_OK);
    sim_cluster_destroy(p->c);
}

static struct kvf_cache_stats cache_of(struct sim_node *node)
{
    struct kvf_cache_stats stats;
    assert_true(kvf_device_stats(node->core, &stats));
    return stats;
}

/* Steps on both; the bits must be the same. */
static void decode_both(struct pair *p, unsigned steps)
{
    float a[LAYERS * WIDTH], b[LAYERS * WIDTH];
    for (unsigned i = 0; i < steps; i++) {
        assert_int_equal(decode(p->s, 0.15f, 0, a), KVF_OK);
        assert_int_equal(decode(p->t, 0.15f, 0, b), KVF_OK);
        assert_memory_equal(a, b, sizeof a);
        staging_forget(p->node); /* so that what is not in the device cache is read from below */
        kvf_core_check(p->node->core);
    }
}

static void the_bits_are_the_same_and_the_reads_fewer(void **state)
{
    uint64_t read[3];
    const uint64_t sizes[3] = {0, 24 * KIB, 512 * KIB}; /* none; a fraction of the 4 x 30 chunks of a step; everything */
    for (int i = 0; i < 3; i++) {
        struct pair p = pair_make(sizes[i], 128 * KIB);
        decode_both(&p, 20);
        read[i] = COUNTED(p.node, ssd_chunks_read);
        decode_both(&p, 150); /* blocks are sealed on the way */
        read[i] = COUNTED(p.node, ssd_chunks_read) - read[i];
        uint64_t hits = COUNTED(p.node, gpu_chunks_read), missed = COUNTED(p.node, gpu_chunks_missed);
        printf("%llu KiB of device cache: %llu chunks hit, %llu missed, %llu read from SSD\n", (unsigned long long)sizes[i] / KIB,
               (unsigned long long)hits, (unsigned long long)missed, (unsigned long long)read[i]);
        assert_true((hits > 0) == (sizes[i] > 0) && (missed > 0) == (sizes[i] > 0));
        if (sizes[i]) {
            struct kvf_node_stats stats;
            assert_int_equal(kvf_node_stats(&p.node->node, &stats), KVF_OK);
            assert_int_equal(stats.tier[KVF_TIER_GPU].chunks_read, hits);
            assert_int_equal(stats.tier[KVF_TIER_GPU].bytes_read, hits * 512);
            assert_int_equal(stats.tier[KVF_TIER_GPU].capacity_bytes, sizes[i]);
            assert_true((COUNTED(p.node, gpu_chunks_uncached) > 0) == (i == 1));
        }
        pair_end(&p);
    }
    assert_true(read[1] * 10 < read[0] * 9 && read[2] * 10 < read[0]);
}

static kvf_handle block_of(struct kvf_session *s, uint32_t index)
{
    kvf_handle h = kvf_sess_block(s->sess, 0, 0, index);
    assert_int_not_equal(h, KVF_HANDLE_NONE);
    return h;
}

/* A lost block that is computed anew may get other bits: those of before are not served. */
static void what_is_lost_is_not_served(void **state)
{
    struct pair p = pair_make(512 * KIB, 128 * KIB);
    float out[LAYERS * WIDTH];
    decode_both(&p, 4);
    kvf_block_lose(p.node->core, block_of(p.s, 0)); /* its first chunks are always selected, and so were cached */
    kvf_block_lose(p.twin->core, block_of(p.t, 0));
    assert_int_equal(decode(p.s, 0.15f, 0, out), KVF_LOST);
    engine->seed ^= 1;
    assert_int_equal(sim_engine_refill(engine, p.s), KVF_OK);
    assert_int_equal(sim_engine_refill(engine, p.t), KVF_OK);
    engine->seed ^= 1;
    engine->compared = engine->different = 0;
    decode_both(&p, 8);
    pair_end(&p);
}

static void what_a_fork_shares_is_lost_to_both(void **state)
{
    struct pair p = pair_make(512 * KIB, 256 * KIB);
    struct kvf_session *fork;
    float out[LAYERS * WIDTH], same[LAYERS * WIDTH];
    assert_int_equal(kvf_session_fork(p.s, 8, &fork), KVF_OK);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(decode(p.s, 0.15f, 0, out), KVF_OK);
        assert_int_equal(decode(fork, 0.15f, 0, same), KVF_OK);
        assert_memory_equal(out, same, sizeof out);
    }
    assert_int_equal(cache_of(p.node).sessions, 2);
    kvf_block_lose(p.node->core, block_of(p.s, 0));
    assert_int_equal(decode(fork, 0.15f, 0, out), KVF_LOST);
    assert_int_equal(decode(p.s, 0.15f, 0, out), KVF_LOST);
    assert_int_equal(sim_engine_refill(engine, p.s), KVF_OK);
    assert_int_equal(decode(p.s, 0.15f, 0, out), KVF_OK);
    assert_int_equal(decode(fork, 0.15f, 0, same), KVF_OK);
    assert_memory_equal(out, same, sizeof out);
    assert_int_equal(kvf_session_drop(fork), KVF_OK);
    assert_int_equal(cache_of(p.node).sessions, 1);
    assert_int_equal(decode(p.t, 0.15f, 0, out), KVF_OK); /* the twin catches up: 5 steps of ours */
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(decode(p.t, 0.15f, 0, out), KVF_OK);
    decode_both(&p, 4);
    pair_end(&p);
}

/* The disk stands still, or gives errors: what did not come must not count as cached. */
static void what_did_not_come_is_not_served(void **state)
{
    struct pair p = pair_make(512 * KIB, 128 * KIB);
    float out[LAYERS * WIDTH];
    staging_forget(p.node);
    sim_disk_hold(p.node->disk, true);
    assert_int_equal(decode(p.s, 0.15f, 20 * KVF_MS, out), KVF_ERR_DEADLINE);
    assert_int_equal(decode(p.s, 0.15f, 20 * KVF_MS, out), KVF_ERR_DEADLINE);
    sim_disk_hold(p.node->disk, false);
    sim_cluster_settle(p.c, KVF_SEC);
    decode_both(&p, 5);
    assert_int_equal(cache_of(p.node).uncached, 0);
    /* all that a step selects hits now, but for what is new; after an abort between the layers too */
    uint64_t read = COUNTED(p.node, ssd_chunks_read), missed = COUNTED(p.node, gpu_chunks_missed);
    decode_both(&p, 1);
    assert_true(COUNTED(p.node, gpu_chunks_missed) - missed < 40);
    assert_true(COUNTED(p.node, ssd_chunks_read) - read < 40);
    pair_end(&p);
}

/* A block that rots on the SSD is found out as ever, and what the step had given places to is taken back. */
static void damage_is_not_cached(void **state)
{
    struct pair p = pair_make(512 * KIB, 128 * KIB);
    float out[LAYERS * WIDTH];
    unsigned lost = 0;
    staging_forget(p.node);
    sim_disk_fail(p.node->disk, false, SIM_FAULT_FLIP, 3, 20);
    for (unsigned i = 0; i < 12 && lost == 0; i++) {
        enum kvf_status st = decode(p.s, 0.3f, 0, out);
        assert_true(st == KVF_OK || st == KVF_LOST);
        lost += st == KVF_LOST;
        if (st == KVF_OK)
            assert_int_equal(decode(p.t, 0.3f, 0, out), KVF_OK);
        staging_forget(p.node);
    }
    assert_int_equal(lost, 1);
    sim_disk_fail(p.node->disk, false, SIM_FAULT_NONE, 0, 0);
    assert_true(COUNTED(p.node, blocks_corrupt) > 0);
    while (decode(p.s, 0.3f, 0, out) == KVF_LOST)
        assert_int_equal(sim_engine_refill(engine, p.s), KVF_OK);
    assert_int_equal(decode(p.t, 0.3f, 0, out), KVF_OK);
    decode_both(&p, 6);
    pair_end(&p);
}

static void parking_and_dropping_give_the_room_back(void **state)
{
    struct pair p = pair_make(512 * KIB, 128 * KIB);
    decode_both(&p, 3);
    assert_true(cache_of(p.node).used_bytes > 0);
    assert_int_equal(kvf_session_park(p.s, KVF_SEC), KVF_OK);
    sim_cluster_settle(p.c, KVF_SEC);
    assert_int_equal(cache_of(p.node).used_bytes, 0);
    assert_int_equal(cache_of(p.node).sessions, 0);
    assert_int_equal(kvf_session_resume(p.s, KVF_SEC), KVF_OK);
    sim_cluster_settle(p.c, KVF_SEC);
    decode_both(&p, 3);
    assert_true(cache_of(p.node).used_bytes > 0);
    struct kvf_session *other = session_on(p.node, 9);
    assert_int_equal(kvf_session_drop(p.s), KVF_OK);
    assert_int_equal(cache_of(p.node).used_bytes, 0);
    p.s = other;
    pair_end(&p);
}

static void a_session_that_moves_leaves_nothing(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *a = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 512 * KIB, .gpu = 256 * KIB});
    struct sim_node *b = sim_cluster_add(c, &(struct sim_node_config){.name = "b", .dram = 512 * KIB, .gpu = 256 * KIB});
    float out[LAYERS * WIDTH];
    struct kvf_session *s;
    sim_cluster_connect(c);
    s = session_on(a, 7);
    assert_int_equal(sim_engine_run(engine, s, 1200, 100), KVF_OK);
    assert_int_equal(decode(s, 0.15f, 0, out), KVF_OK);
    assert_true(cache_of(a).used_bytes > 0);
    assert_int_equal(kvf_session_move(s, "b", KVF_SEC, NULL), KVF_OK);
    assert_int_equal(cache_of(a).used_bytes, 0);
    kvf_session_close(s);
    sim_cluster_settle(c, KVF_SEC);
    assert_int_equal(kvf_session_attach(&b->node, sim_engine_model(engine, b), 7, KVF_SEC, &s), KVF_OK);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(decode(s, 0.15f, 0, out), KVF_OK);
    assert_true(COUNTED(b, gpu_chunks_read) > 0);
    sim_cluster_check(c);
    engine->compared = 0;
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    sim_cluster_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bits_are_the_same_and_the_reads_fewer),
        cmocka_unit_test(what_is_lost_is_not_served),
        cmocka_unit_test(what_a_fork_shares_is_lost_to_both),
        cmocka_unit_test(what_did_not_come_is_not_served),
        cmocka_unit_test(damage_is_not_cached),
        cmocka_unit_test(parking_and_dropping_give_the_room_back),
        cmocka_unit_test(a_session_that_moves_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
