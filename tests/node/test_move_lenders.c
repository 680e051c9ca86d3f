/* A session whose blocks lie at many lenders moves: to a target that is told of all of them, and to one whose messages name only
 * some. */
#include "tests/node/world.h"

#define LENDERS 36
#define PEERS 40

struct many {
    struct sim_cluster *c;
    struct sim_node *a, *b;
};

static struct many many_make(size_t frame)
{
    static char names[LENDERS][8];
    struct many t = {.c = sim_cluster_create(SEED)};
    t.a = sim_cluster_add(t.c, &(struct sim_node_config){.name = "a", .dram = 96 * KIB, .ssd = 4096 * KIB, .peers_max = PEERS});
    t.b = sim_cluster_add(t.c, &(struct sim_node_config){.name = "b", .dram = 1024 * KIB, .peers_max = PEERS, .frame = frame});
    for (unsigned i = 0; i < LENDERS; i++) {
        snprintf(names[i], sizeof names[i], "l%u", i);
        sim_cluster_add(
            t.c, &(struct sim_node_config){.name = names[i], .dram = 64 * KIB, .lend = 8 * KIB, .peers_max = PEERS});
    }
    sim_cluster_connect(t.c);
    return t;
}

/* How many lenders have blocks of a session. */
static unsigned lenders_of(struct sim_node *node, uint64_t session)
{
    bool has[PEERS] = {false};
    uint64_t cursor = 0;
    unsigned n = 0;
    for (kvf_handle h; (h = kvf_index_walk(node->core->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(node->core->index, h);
        if (e->key.hi == session && e->tier == KVF_TIER_REMOTE && e->state == KVF_BLOCK_READY && !has[e->peer]) {
            has[e->peer] = true;
            n++;
        }
    }
    return n;
}

/* A session with blocks at more lenders than a message of 32 could name, and another one. */
static struct kvf_session *fill(struct many *t, struct kvf_session **other)
{
    struct kvf_session *s = session_on(t->a, 7);
    *other = session_on(t->a, 8);
    assert_int_equal(sim_engine_run(engine, *other, 64, 32), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 1536, 32), KVF_OK);
    assert_true(lenders_of(t->a, 7) > 32);
    return s;
}

static void end(struct many *t, struct kvf_session *s, struct kvf_session *other)
{
    assert_int_equal(sim_engine_run(engine, s, 1600, 32), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    assert_int_equal(kvf_session_drop(other), KVF_OK);
    sim_cluster_settle(t->c, 8 * KVF_SEC);
    sim_cluster_check(t->c);
    for (unsigned i = 0; i < t->c->n; i++)
        assert_true(sim_cluster_empty(&t->c->nodes[i]));
    sim_cluster_destroy(t->c);
}

static struct kvf_session *moved(struct many *t, struct kvf_session *s)
{
    struct kvf_move_report report;
    struct kvf_session *there = NULL;
    assert_int_equal(kvf_session_move(s, "b", 20 * KVF_SEC, &report), KVF_OK);
    kvf_session_close(s);
    assert_int_equal(kvf_session_attach(&t->b->node, sim_engine_model(engine, t->b), 7, 5 * KVF_SEC, &there), KVF_OK);
    return there;
}

static void all_lenders_of_a_session_go_with_it(void **state)
{
    struct many t = many_make(0);
    struct kvf_session *other, *s = fill(&t, &other);
    struct kvf_range lost[1];
    size_t n;
    uint64_t lent = blocks_in(s, KVF_TIER_REMOTE);
    s = moved(&t, s);
    assert_int_equal(kvf_session_lost(s, lost, 1, &n), KVF_OK);
    assert_int_equal(n, 0);
    assert_true(lent > 0);
    end(&t, s, other);
}

/* Whole blocks only: an open one would not fit either, and there is none. */
static void lenders_that_an_offer_has_no_room_for_are_lost(void **state)
{
    struct many t = many_make(1536);
    struct kvf_session *other, *s = fill(&t, &other);
    struct kvf_range lost[64];
    size_t n;
    s = moved(&t, s);
    assert_int_equal(kvf_session_lost(s, lost, 64, &n), KVF_OK);
    assert_true(n > 0);
    assert_true(blocks_in(s, KVF_TIER_REMOTE) > 0 || blocks_in(s, KVF_TIER_DRAM) > 0);
    assert_int_equal(sim_engine_refill(engine, s), KVF_OK);
    end(&t, s, other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_lenders_of_a_session_go_with_it),
        cmocka_unit_test(lenders_that_an_offer_has_no_room_for_are_lost),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
