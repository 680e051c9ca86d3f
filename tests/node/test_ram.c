/* Memory that becomes ready while the node serves: own, lent, and what cannot be had. */
#include "node/ram.h"
#include "tests/node/world.h"

#include <unistd.h>

#define MIB (1024 * KIB)

static struct kvf_ram_stats stats_of(struct sim_node *n)
{
    struct kvf_ram_stats s;
    kvf_ram_stats(n->core, &s);
    return s;
}

static void a_node_serves_with_its_first_piece_and_grows(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *n =
        sim_cluster_add(c, &(struct sim_node_config){.name = "n", .dram = 5 * MIB, .alone = true, .ram_by_hand = true});
    struct kvf_ram_stats s = stats_of(n);
    assert_int_equal(s.own_bytes, 5 * MIB);
    assert_int_equal(s.own_ready_bytes, 2 * MIB);
    assert_false(s.done);
    assert_int_equal(kvf_arena_bytes(n->core->dram), 2 * MIB);
    assert_int_equal(kvf_arena_planned(n->core->dram), 5 * MIB);
    struct kvf_session *session = session_on(n, 7);
    uint64_t before = engine->compared;
    assert_int_equal(sim_engine_run(engine, session, 1400, 50), KVF_OK);
    while (kvf_ram_step(n->core))
        sim_cluster_check(c);
    s = stats_of(n);
    assert_true(s.done && !s.error[0]);
    assert_int_equal(s.ready_bytes, s.total_bytes);
    assert_int_equal(s.own_ready_bytes, 5 * MIB);
    assert_int_equal(kvf_arena_bytes(n->core->dram), 5 * MIB);
    assert_int_equal(sim_engine_run(engine, session, 1600, 50), KVF_OK);
    assert_true(engine->compared > before);
    assert_same_bits(engine);
    assert_false(kvf_ram_step(n->core));
    assert_int_equal(kvf_session_drop(session), KVF_OK);
    sim_cluster_destroy(c);
}

/* Blocks of 64 KiB, one after the other, until the lender has no more room for one. */
static unsigned put_until_full(struct sim_cluster *c, struct sim_node *lender, struct kvf_queue *q, unsigned first)
{
    static uint8_t data[64 * KIB];
    unsigned i = 0;
    do {
        struct kvf_completion done;
        struct kvf_request r = {.op = KVF_OP_PUT, .key = {.hi = first + i, .lo = 5}, .data = data, .length = sizeof data};
        size_t count = 0;
        memset(data, (int)(first + i), sizeof data);
        assert_int_equal(kvf_submit(q, &r, 1, 300 * KVF_MS, &count), KVF_OK);
        for (count = 0; count == 0; sim_cluster_step(c))
            assert_int_equal(kvf_drain(q, &done, 1, &count), KVF_OK);
        sim_cluster_settle(c, 10 * KVF_MS);
        assert_true(++i < 100);
    } while (kvf_arena_room(lender->core->lent, sizeof data) > 0);
    return i;
}

static unsigned there(struct sim_cluster *c, struct kvf_queue *q, unsigned blocks)
{
    static _Alignas(4096) uint8_t data[64 * KIB];
    unsigned n = 0;
    for (unsigned i = 0; i < blocks; i++) {
        struct kvf_completion done;
        struct kvf_request r = {.op = KVF_OP_GET, .key = {.hi = i, .lo = 5}, .data = data, .length = sizeof data};
        size_t count = 0;
        assert_int_equal(kvf_submit(q, &r, 1, KVF_SEC, &count), KVF_OK);
        for (count = 0; count == 0; sim_cluster_step(c))
            assert_int_equal(kvf_drain(q, &done, 1, &count), KVF_OK);
        for (size_t b = 0; done.status == KVF_OK && b < sizeof data; b++)
            assert_int_equal(data[b], (uint8_t)i);
        n += done.status == KVF_OK;
    }
    return n;
}

static void lent_memory_is_lent_as_far_as_it_is_ready(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++) {
        struct sim_cluster *c = sim_cluster_create(SEED);
        struct sim_node *home = sim_cluster_add(c, &(struct sim_node_config){.name = "home", .dram = 256 * KIB, .way = way});
        struct sim_node *lender = sim_cluster_add(
            c, &(struct sim_node_config){.name = "lender", .dram = 256 * KIB, .lend = 6 * MIB, .way = way, .ram_by_hand = true});
        struct kvf_queue *q;
        sim_cluster_connect(c);
        assert_int_equal(kvf_queue_create(&home->node, 8, &q), KVF_OK);
        assert_int_equal(stats_of(lender).lent_ready_bytes, 0);
        unsigned blocks = 0;
        for (unsigned piece = 1; piece <= 3; piece++) {
            bool more = kvf_ram_step(lender->core);
            assert_int_equal(more, piece < 3);
            assert_int_equal(stats_of(lender).lent_ready_bytes, piece * 2 * MIB);
            sim_cluster_settle(c, 10 * KVF_SEC); /* it was asked in vain and is left alone for a while */
            blocks += put_until_full(c, lender, q, blocks);
            assert_in_range(blocks, piece * 32, piece * 32 + 5 * piece);
            assert_int_equal(kvf_arena_used(lender->core->lent), piece * 2 * MIB);
        }
        assert_true(there(c, q, blocks) >= 96); /* what no place had room for is dropped */
        assert_int_equal(kvf_peer_way(sim_cluster_peer(home, lender)->peer), way);
        sim_cluster_check(c);
        kvf_queue_destroy(q);
        sim_cluster_destroy(c);
    }
}

static enum kvf_status request(struct sim_cluster *c, struct kvf_queue *q, enum kvf_op op, uint64_t key, uint8_t *data,
                               uint64_t length)
{
    struct kvf_completion done;
    struct kvf_request r = {.op = op, .key = {.hi = key, .lo = 9}, .data = data, .length = length};
    size_t count = 0;
    assert_int_equal(kvf_submit(q, &r, 1, 5 * KVF_SEC, &count), KVF_OK);
    for (count = 0; count == 0; sim_cluster_step(c))
        assert_int_equal(kvf_drain(q, &done, 1, &count), KVF_OK);
    return done.status;
}

/* Every page of the arena holds one small block, so that none is free for a large one: those go down until pages are. Nothing
 * is lost on the way, and memory moves back to the small size afterwards. */
static void large_blocks_do_not_starve_beside_scattered_small_ones(void **state)
{
    static _Alignas(4096) uint8_t data[64 * KIB];
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct sim_node *n =
        sim_cluster_add(c, &(struct sim_node_config){.name = "n", .dram = 2 * MIB, .ssd = 16 * MIB, .alone = true});
    struct kvf_queue *q;
    assert_int_equal(kvf_queue_create(&n->node, 8, &q), KVF_OK);
    enum { SMALL = 4096, PER_PAGE = 16, PAGES = 28, LARGE = 24 };
    for (unsigned turn = 0; turn < 3; turn++) {
        uint64_t base = turn * 100000;
        for (unsigned i = 0; i < PAGES * PER_PAGE; i++) {
            memset(data, (int)(base + i), SMALL);
            assert_int_equal(request(c, q, KVF_OP_PUT, base + i, data, SMALL), KVF_OK);
        }
        for (unsigned i = 0; i < PAGES * PER_PAGE; i++)
            if (i % PER_PAGE)
                assert_int_equal(request(c, q, KVF_OP_REMOVE, base + i, NULL, 0), KVF_OK);
        for (unsigned i = 0; i < LARGE; i++) {
            memset(data, (int)(i + turn), sizeof data);
            assert_int_equal(request(c, q, KVF_OP_PUT, base + 50000 + i, data, sizeof data), KVF_OK);
        }
        for (unsigned i = 0; i < PAGES * PER_PAGE; i += PER_PAGE) {
            assert_int_equal(request(c, q, KVF_OP_GET, base + i, data, SMALL), KVF_OK);
            assert_true(data[0] == (uint8_t)(base + i) && data[SMALL - 1] == (uint8_t)(base + i));
        }
        for (unsigned i = 0; i < LARGE; i++) {
            assert_int_equal(request(c, q, KVF_OP_GET, base + 50000 + i, data, sizeof data), KVF_OK);
            assert_true(data[0] == (uint8_t)(i + turn) && data[sizeof data - 1] == (uint8_t)(i + turn));
        }
        sim_cluster_check(c);
    }
    kvf_queue_destroy(q);
    sim_cluster_destroy(c);
}

static void more_than_the_machine_has_is_refused(void **state)
{
    struct kvf_config *config;
    struct kvf_node *node;
    static const char *const wrong[][2] = {{"dram.bytes", "8T"}, {"lend.bytes", "2T"}, {"memory.numa", "7-"}, {"memory.numa", "x"}};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(kvf_config_create(&config), KVF_OK);
        assert_int_equal(kvf_config_set(config, "admin.listen", ""), KVF_OK);
        assert_int_equal(kvf_config_set(config, wrong[i][0], wrong[i][1]), KVF_OK);
        assert_int_equal(kvf_node_open(config, &node), i < 2 ? KVF_ERR_NO_MEMORY : KVF_ERR_CONFIG);
        assert_non_null(strstr(kvf_config_error(config), i < 2 ? "dram.bytes" : "memory.numa"));
        kvf_config_destroy(config);
    }
}

/* Real threads: the node is open long before its memory is ready, and closes at once all the same. */
static void a_node_closes_while_its_memory_is_made_ready(void **state)
{
    for (unsigned round = 0; round < 4; round++) {
        struct kvf_config *config;
        struct kvf_node *node;
        struct kvf_node_stats stats;
        static const char *const settings[][2] = {{"admin.listen", ""}, {"dram.bytes", "1G"}, {"memory.start_budget", "0s"},
                                                  {"memory.piece", "8M"}, {"log.level", "error"}, {"memory.threads", "2"}};
        assert_int_equal(kvf_config_create(&config), KVF_OK);
        for (unsigned i = 0; i < 6; i++)
            assert_int_equal(kvf_config_set(config, settings[i][0], settings[i][1]), KVF_OK);
        assert_int_equal(kvf_node_open(config, &node), KVF_OK);
        kvf_config_destroy(config);
        assert_int_equal(kvf_node_stats(node, &stats), KVF_OK);
        assert_true(stats.tier[KVF_TIER_DRAM].capacity_bytes >= 8 * MIB);
        uint64_t start = kvf_now(kvf_env_real());
        for (bool all = false; round == 3 && !all;) {
            assert_int_equal(kvf_node_stats(node, &stats), KVF_OK);
            all = stats.tier[KVF_TIER_DRAM].capacity_bytes == 1024 * MIB;
            usleep(1000);
            assert_true(kvf_now(kvf_env_real()) - start < 60 * KVF_SEC);
        }
        kvf_node_close(node);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_serves_with_its_first_piece_and_grows),
        cmocka_unit_test(lent_memory_is_lent_as_far_as_it_is_ready),
        cmocka_unit_test(large_blocks_do_not_starve_beside_scattered_small_ones),
        cmocka_unit_test(more_than_the_machine_has_is_refused),
        cmocka_unit_test(a_node_closes_while_its_memory_is_made_ready),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
