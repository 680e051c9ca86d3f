/* What is read one-sided and looked at by its owner: in pieces, in order, while the rest is on its way; and how such a pull ends
 * when it does not come whole. */
#include "tests/fabric/world.h"

#define RANGES 4

/* A pull and what its owner saw of it. */
struct look {
    struct result result;
    struct kvf_pull_range ranges[RANGES];
    const uint8_t *base; /* of the region */
    unsigned n;
    uint64_t seen[RANGES], total;
    unsigned shows;
    bool wrong;
};

static uint8_t to[2][REGION + 64];

static void looked(void *arg, unsigned range, uint32_t at, void *place, const void *from, bool foreign, uint32_t bytes)
{
    struct look *l = arg;
    l->wrong |= l->result.count > 0 || range >= l->n || place != from || foreign || bytes == 0;
    l->wrong = l->wrong || at != l->seen[range] || at + bytes > l->ranges[range].bytes ||
               place != (uint8_t *)l->ranges[range].to + at || (range > 0 && l->seen[range - 1] < l->ranges[range - 1].bytes) ||
               memcmp(place, l->base + l->ranges[range].offset + at, bytes) != 0;
    if (l->wrong)
        return;
    l->seen[range] += bytes;
    l->total += bytes;
    l->shows++;
}

static void look_done(void *arg, enum kvf_status status) { on_done(&((struct look *)arg)->result, status); }

static void look_start(struct look *l, struct kvf_peer *peer, const struct node *of, uint64_t deadline_ns)
{
    l->base = of->base;
    assert_int_equal(kvf_fabric_pull_take(peer, l->ranges, l->n, deadline_ns, looked, look_done, l), KVF_OK);
}

static void look_one(struct look *l, struct kvf_peer *peer, const struct node *of, uint32_t bytes, uint8_t *into)
{
    l->n = 1;
    l->ranges[0] = (struct kvf_pull_range){.offset = REGION - bytes, .bytes = bytes, .to = into};
    look_start(l, peer, of, UINT64_MAX);
}

/* Counts reads, and keeps the first back until the others have come. */
struct wire {
    struct sim_net_watch net;
    unsigned reads;
    uint64_t first_late_ns;
};

static void on_wire(void *arg, unsigned from, unsigned to_node, bool read, const void *header, size_t bytes, struct sim_fate *fate)
{
    struct wire *wire = arg;
    if (!read)
        return;
    fate->loose = true;
    if (wire->reads++ == 0)
        fate->delay_ns = wire->first_late_ns;
}

static void off_wire(void *arg, unsigned from, unsigned to_node, bool read, bool arrived, const void *header, size_t header_bytes,
                     const struct iovec *parts, unsigned n_parts)
{
}

static void watch(struct world *w, struct wire *wire)
{
    wire->net = (struct sim_net_watch){.arg = wire, .sent = on_wire, .left = off_wire};
    wire->reads = 0;
    sim_net_watch(w->net, &wire->net);
}

/* ------------------------------------------------------------------------------------------------ as it comes */
static void what_is_there_is_looked_at_while_the_rest_is_on_its_way(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct node *a = &w->node[0];
    static struct wire wire;
    struct look l = {0};
    watch(w, &wire);
    look_one(&l, peer, &w->node[1], REGION, to[0]);
    assert_in_range(wire.reads, 4, KVF_PART_BLOCK);
    for (unsigned i = 1; i < wire.reads; i++) {
        assert_int_equal(l.result.count, 0);
        assert_true(sim_net_step(w->net));
        assert_true(kvf_fabric_poll(a->fabric) > 0);
        assert_int_equal(l.total, (uint64_t)REGION * i / wire.reads);
    }
    settle(w);
    assert_int_equal(l.result.oks, 1);
    assert_false(l.wrong);
    assert_memory_equal(to[0], w->node[1].base, REGION);
    world_free(w);
}

/* Between two polls of the network a portion, so that what comes is not kept waiting. */
static void a_look_is_a_portion(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct node *a = &w->node[0];
    struct look l = {.n = 2};
    l.ranges[0] = (struct kvf_pull_range){.offset = 0, .bytes = REGION - 1000, .to = to[0]};
    l.ranges[1] = (struct kvf_pull_range){.offset = 1, .bytes = 1000, .to = to[1]};
    look_start(&l, peer, &w->node[1], UINT64_MAX);
    for (unsigned i = 0; i < 6; i++)
        assert_true(sim_net_step(w->net));
    for (uint64_t before = 0; before < REGION / 2; before = l.total) {
        assert_true(kvf_fabric_next_timer(a->fabric) == 0 || before == 0);
        assert_true(kvf_fabric_poll(a->fabric) > 0);
        assert_in_range(l.total, before + 1, before + KVF_LOOK_BYTES);
    }
    settle(w);
    assert_int_equal(l.result.oks, 1);
    assert_false(l.wrong);
    assert_memory_equal(to[1], w->node[1].base + 1, 1000);
    world_free(w);
}

static void ranges_of_any_length_are_looked_at_in_order(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    for (unsigned round = 0; round < 200; round++) {
        struct look l = {.n = 1 + (unsigned)sim_env_random(&w->env, RANGES)};
        size_t at = 0;
        memset(to[0], 0xcc, sizeof to[0]);
        for (unsigned i = 0; i < l.n; i++) {
            uint32_t bytes = 1 + (uint32_t)sim_env_random(&w->env, REGION / RANGES - 3);
            l.ranges[i] = (struct kvf_pull_range){
                .offset = sim_env_random(&w->env, REGION - bytes), .bytes = bytes, .to = to[0] + at};
            at += bytes + 3; /* a gap that must stay as it was */
        }
        look_start(&l, peer, &w->node[1], UINT64_MAX);
        while (l.result.count == 0) { /* one after the other, or several at once */
            for (uint64_t n = sim_env_random(&w->env, 4); n > 0; n--)
                sim_net_step(w->net);
            kvf_fabric_poll(w->node[0].fabric);
        }
        assert_int_equal(l.result.oks, 1);
        assert_false(l.wrong);
        for (unsigned i = 0; i < l.n; i++) {
            assert_memory_equal(l.ranges[i].to, w->node[1].base + l.ranges[i].offset, l.ranges[i].bytes);
            assert_memory_equal((uint8_t *)l.ranges[i].to + l.ranges[i].bytes, "\xcc\xcc\xcc", 3);
        }
    }
    world_free(w);
}

/* Reads that end in another order: nothing is shown before what lies before it. */
static void a_piece_that_is_late_holds_up_the_looks_behind_it(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    static struct wire wire = {.first_late_ns = 5 * KVF_MS}; /* the net outlives a call */
    struct look l = {0};
    watch(w, &wire);
    look_one(&l, peer, &w->node[1], REGION, to[0]);
    run_for(w, 1 * KVF_MS);
    assert_int_equal(l.result.count, 0);
    assert_int_equal(l.shows, 0);
    run_for(w, 10 * KVF_MS);
    assert_int_equal(l.result.oks, 1);
    assert_false(l.wrong);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ how many reads */
static unsigned reads_of(struct world *w, struct kvf_peer *peer, uint32_t bytes, uint64_t takes_ns)
{
    static struct wire wire;
    struct look l = {0};
    watch(w, &wire);
    look_one(&l, peer, &w->node[1], bytes, to[0]);
    sim_env_advance(&w->env, takes_ns);
    settle(w);
    assert_int_equal(l.result.oks, 1);
    assert_false(l.wrong);
    return wire.reads;
}

static void only_what_gains_by_it_is_cut(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct result r = {0};
    static struct wire wire;
    struct look l = {0};
    assert_int_equal(reads_of(w, peer, KVF_GET_PIECE_MIN, 0), 1);
    assert_in_range(reads_of(w, peer, 4 * KVF_GET_PIECE_MIN, 0), 2, 4);
    /* Nobody looks. */
    watch(w, &wire);
    assert_int_equal(pull1(peer, 0, REGION, to[0], UINT64_MAX, &r), KVF_OK);
    assert_int_equal(wire.reads, 1);
    /* There is another to look at meanwhile. */
    look_one(&l, peer, &w->node[1], REGION, to[1]);
    assert_int_equal(wire.reads, 2);
    settle(w);
    assert_int_equal(r.oks + l.result.oks, 2);
    /* A slow wire; and when it is fast again. */
    reads_of(w, peer, REGION, REGION / 1024 * 8 * KVF_US);
    assert_int_equal(reads_of(w, peer, REGION, 0), 1);
    unsigned rounds = 0;
    while (reads_of(w, peer, REGION, 0) == 1)
        assert_true(++rounds < 64);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ ends */
/* Half of it is there. Then: its deadline, the link's end, or the peer's removal. */
enum end { END_DEADLINE, END_BROKEN, END_REMOVED };

static void half_a_pull_ends(enum end how)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct look l = {.n = 1, .ranges = {{.offset = 0, .bytes = REGION, .to = to[0]}}};
    look_start(&l, peer, b, w->env.now_ns + 50 * KVF_MS);
    for (unsigned i = 0; i < 4; i++)
        assert_true(sim_net_step(w->net));
    while (kvf_fabric_poll(a->fabric) > 0)
        continue;
    assert_true(l.shows > 0 && l.total < REGION);
    sim_net_path(a->t, b->t)->held = true;
    if (how == END_BROKEN)
        sim_net_break(a->t, b->t);
    if (how == END_REMOVED)
        kvf_fabric_peer_remove(a->fabric, peer);
    uint64_t total = l.total;
    run_for(w, how == END_DEADLINE ? 60 * KVF_MS : 10 * KVF_MS);
    assert_int_equal(l.result.count, 1);
    assert_int_equal(l.result.status, how == END_DEADLINE ? KVF_ERR_DEADLINE : KVF_ERR_PEER_LOST);
    assert_false(l.wrong);
    assert_int_equal(l.total, total);
    memset(to[0], 0xcc, REGION);
    sim_net_path(a->t, b->t)->held = false;
    run_for(w, 60 * KVF_MS);
    for (size_t i = 0; i < REGION; i++)
        assert_int_equal(to[0][i], 0xcc);
    assert_int_equal(l.result.count, 1);
    assert_int_equal(a->fabric->held_count, 0);
    assert_int_equal(a->fabric->work, 0);
    assert_int_equal(a->fabric->free_parts_n, a->fabric->part_blocks);
    world_free(w);
}

static void half_a_pull_ends_at_its_deadline(void **state) { half_a_pull_ends(END_DEADLINE); }
static void half_a_pull_ends_with_its_link(void **state) { half_a_pull_ends(END_BROKEN); }
static void half_a_pull_ends_with_its_peer(void **state) { half_a_pull_ends(END_REMOVED); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_there_is_looked_at_while_the_rest_is_on_its_way),
        cmocka_unit_test(a_look_is_a_portion),
        cmocka_unit_test(ranges_of_any_length_are_looked_at_in_order),
        cmocka_unit_test(a_piece_that_is_late_holds_up_the_looks_behind_it),
        cmocka_unit_test(only_what_gains_by_it_is_cut),
        cmocka_unit_test(half_a_pull_ends_at_its_deadline),
        cmocka_unit_test(half_a_pull_ends_with_its_link),
        cmocka_unit_test(half_a_pull_ends_with_its_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
