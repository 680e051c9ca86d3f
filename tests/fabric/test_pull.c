/* Reading a peer's memory in each of the three ways, with deadlines, refusals and back-pressure. */
#include "tests/fabric/world.h"

/* ------------------------------------------------------------------------------------------------ pulls */
static void pulls_bring_the_bytes(enum kvf_way way, uint64_t inflight)
{
    struct kvf_peer *peer;
    struct world *w = world_new();
    w->inflight = inflight;
    struct node *a = add_node(w, "a", 1, way), *b = add_node(w, "b", 2, way);
    peer = meet(a, b);
    settle(w);
    assert_int_equal(kvf_peer_way(peer), way);
    static uint8_t to[4][REGION];
    static struct kvf_pull_range ranges[4][KVF_PULL_RANGES_MAX];
    struct result r[4] = {{0}};
    memset(to, 0xcc, sizeof to);
    for (unsigned k = 0; k < 4; k++) {
        size_t at = 0;
        for (unsigned i = 0; i < KVF_PULL_RANGES_MAX; i++) {
            uint32_t bytes = 1 + (uint32_t)sim_env_random(&w->env, i % 200 == 0 ? 20000 : 200);
            uint64_t offset = sim_env_random(&w->env, REGION - bytes);
            ranges[k][i] = (struct kvf_pull_range){.offset = offset, .bytes = bytes, .to = to[k] + at};
            at += bytes + 3; /* a gap that must stay as it was */
        }
        assert_true(at <= REGION);
        assert_int_equal(kvf_fabric_pull(peer, ranges[k], KVF_PULL_RANGES_MAX, UINT64_MAX, on_done, &r[k]), KVF_OK);
        assert_int_equal(r[k].count, 0);
    }
    run_for(w, 20 * KVF_MS);
    for (unsigned k = 0; k < 4; k++) {
        assert_int_equal(r[k].count, 1);
        assert_int_equal(r[k].status, KVF_OK);
        for (unsigned i = 0; i < KVF_PULL_RANGES_MAX; i++) {
            const struct kvf_pull_range *range = &ranges[k][i];
            assert_memory_equal(range->to, b->base + range->offset, range->bytes);
            assert_memory_equal((uint8_t *)range->to + range->bytes, "\xcc\xcc\xcc", 3);
        }
    }
    world_free(w);
}

static void a_pull_by_asking_brings_the_bytes(void **state) { pulls_bring_the_bytes(KVF_WAY_ASK, 1 << 20); }
static void a_pull_by_get_brings_the_bytes(void **state) { pulls_bring_the_bytes(KVF_WAY_GET, 1 << 20); }
static void a_pull_from_mapped_memory_brings_the_bytes(void **state) { pulls_bring_the_bytes(KVF_WAY_MAPPED, 1 << 20); }
static void a_narrow_window_brings_the_bytes_too(void **state)
{
    pulls_bring_the_bytes(KVF_WAY_ASK, 5000);
    pulls_bring_the_bytes(KVF_WAY_GET, 5000);
}

/* ------------------------------------------------------------------------------------------------ taking */
struct taker {
    struct result result;
    const struct kvf_pull_range *ranges;
    uint32_t at[64]; /* of each range: bytes taken so far */
    bool foreign, wrong;
};

static void taken(void *arg, unsigned range, uint32_t at, void *to, const void *from, bool foreign, uint32_t bytes)
{
    struct taker *t = arg;
    t->wrong |= foreign != t->foreign || t->result.count > 0 || range >= 64 || at != t->at[range] || bytes == 0 ||
                (uint8_t *)to != (uint8_t *)t->ranges[range].to + at || at + bytes > t->ranges[range].bytes;
    if (t->wrong)
        return;
    t->at[range] += bytes;
    for (uint32_t i = 0; i < bytes; i++)
        ((uint8_t *)to)[i] = ((const uint8_t *)from)[i] ^ 0x5a; /* nobody else writes there */
}

static void taker_done(void *arg, enum kvf_status status) { on_done(&((struct taker *)arg)->result, status); }

static void the_owner_brings_the_bytes_itself(void **state)
{
    static const enum kvf_way ways[] = {KVF_WAY_ASK, KVF_WAY_MAPPED};
    for (unsigned way = 0; way < 2; way++) {
        struct world *w = world_new();
        w->inflight = 9000;
        struct node *a = add_node(w, "a", 1, ways[way]), *b = add_node(w, "b", 2, ways[way]);
        struct kvf_peer *peer = meet(a, b);
        settle(w);
        static uint8_t to[64][4000];
        struct kvf_pull_range ranges[64];
        struct taker t = {.ranges = ranges, .foreign = ways[way] == KVF_WAY_MAPPED};
        for (unsigned i = 0; i < 64; i++)
            ranges[i] = (struct kvf_pull_range){.offset = 4000 * i + i % 7, .bytes = 1 + 61 * i, .to = to[i]};
        assert_int_equal(kvf_fabric_pull_take(peer, ranges, 64, UINT64_MAX, taken, taker_done, &t), KVF_OK);
        run_for(w, 20 * KVF_MS);
        assert_int_equal(t.result.count, 1);
        assert_int_equal(t.result.status, KVF_OK);
        assert_false(t.wrong);
        for (unsigned i = 0; i < 64; i++) {
            assert_int_equal(t.at[i], ranges[i].bytes);
            for (uint32_t k = 0; k < ranges[i].bytes; k++)
                assert_int_equal(to[i][k] ^ 0x5a, b->base[ranges[i].offset + k]);
        }
        world_free(w);
    }
}

/* Many pulls with many ranges: some are told that there is no room, and there is again when others ended. */
static void room_for_ranges_is_bounded_and_comes_back(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    struct kvf_peer *peer = meet(a, b);
    settle(w);
    static uint8_t to[KVF_PULL_RANGES_MAX];
    static struct kvf_pull_range ranges[KVF_PULL_RANGES_MAX];
    for (unsigned i = 0; i < KVF_PULL_RANGES_MAX; i++)
        ranges[i] = (struct kvf_pull_range){.offset = 8 * i, .bytes = 1, .to = to + i};
    for (unsigned round = 0; round < 3; round++) {
        struct result r = {0};
        unsigned n = 0;
        while (kvf_fabric_pull(peer, ranges, KVF_PULL_RANGES_MAX, UINT64_MAX, on_done, &r) == KVF_OK)
            n++;
        assert_true(n >= 4 && n < w->requests_max);
        assert_int_equal(kvf_fabric_pull(peer, ranges, KVF_PULL_RANGES_MAX, UINT64_MAX, on_done, &r), KVF_ERR_BUSY);
        run_for(w, 50 * KVF_MS);
        assert_int_equal(r.oks, n);
    }
    world_free(w);
}

static void no_more_than_inflight_is_asked(void **state)
{
    struct world *w = world_new();
    w->inflight = 64 << 10;
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    struct kvf_peer *peer = meet(a, b);
    static uint8_t to[8][32 << 10];
    struct result r = {0};
    settle(w);
    struct sim_path *back = sim_net_path(b->t, a->t);
    back->held = true;
    back->delivered = 0;
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(pull1(peer, i << 15, 32 << 10, to[i], UINT64_MAX, &r), KVF_OK);
    run_for(w, 20 * KVF_MS);
    uint64_t asked = sim_net_path(a->t, b->t)->delivered;
    back->held = false;
    settle(w);
    assert_int_equal(r.oks, 8);
    assert_true(sim_net_path(a->t, b->t)->delivered > asked); /* the rest was asked when the first came */
    for (unsigned i = 0; i < 8; i++)
        assert_memory_equal(to[i], b->base + (i << 15), 32 << 10);
    world_free(w);
}

/* The first is asked for at once, those that come while it is on its way together, so many in a frame. */
static void waiting_pulls_are_asked_for_together(void **state)
{
    enum { N = 40, BYTES = 3000 };
    struct world *w = world_new();
    w->requests_max = N;
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    struct kvf_peer *peer = meet(a, b);
    static uint8_t to[N][BYTES];
    struct result r[N] = {{0}};
    struct sim_path *out = sim_net_path(a->t, b->t), *back = sim_net_path(b->t, a->t);
    settle(w);
    out->delivered = back->delivered = 0;
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(pull1(peer, i * 5000, BYTES, to[i], UINT64_MAX, &r[i]), KVF_OK);
    settle(w);
    assert_in_range(out->delivered, 2, 1 + (N - 1 + 15) / 16);
    assert_in_range(back->delivered, 2, 5); /* the answers are no smaller than they must be */
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(r[i].oks, 1);
        assert_memory_equal(to[i], b->base + i * 5000, BYTES);
    }
    world_free(w);
}

/* Pulls that share a frame end each by itself: by deadline, cancelled, or with every byte. */
static void a_pull_that_ends_leaves_the_others_of_its_frame(void **state)
{
    enum { N = 12, BYTES = 20000, LATE = 3, CANCELLED = 7 };
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    static uint8_t to[N][BYTES], untouched[BYTES];
    struct result r[N] = {{0}};
    struct sim_path *back = sim_net_path(b->t, a->t);
    settle(w);
    memset(to, 0xcc, sizeof to);
    memset(untouched, 0xcc, sizeof untouched);
    back->held = true;
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(pull1(peer, i * BYTES, BYTES, to[i], i == LATE ? w->env.now_ns + 20 * KVF_MS : UINT64_MAX, &r[i]), KVF_OK);
    run_for(w, 10 * KVF_MS);
    assert_true(kvf_fabric_cancel(peer, &r[CANCELLED]));
    run_for(w, 20 * KVF_MS);
    assert_int_equal(r[LATE].status, KVF_ERR_DEADLINE);
    back->held = false;
    settle(w);
    for (unsigned i = 0; i < N; i++) {
        bool ended = i == LATE || i == CANCELLED;
        assert_int_equal(r[i].count, i != CANCELLED);
        assert_int_equal(r[i].oks, !ended);
        assert_memory_equal(to[i], ended ? untouched : b->base + i * BYTES, BYTES);
    }
    struct kvf_peer_about about;
    kvf_peer_about(peer, &about);
    assert_int_equal(about.inflight_bytes, 0);
    world_free(w);
}

/* What is in no piece that the asker knows may be refused: it takes nobody with it. */
static void a_refusal_is_for_one_pull_alone(void **state)
{
    enum { N = 9, BAD = 4 };
    struct world *w = world_new();
    w->piece_bytes = REGION / 8; /* one of eight is ready */
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    struct kvf_peer *peer = meet(a, b);
    static uint8_t to[N][1000];
    struct result r[N] = {{0}};
    settle(w);
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(pull1(peer, i == BAD ? REGION / 2 : i * 1000, 1000, to[i], UINT64_MAX, &r[i]), KVF_OK);
    settle(w);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(r[i].count, 1);
        assert_int_equal(r[i].status, i == BAD ? KVF_ERR_PEER_REFUSED : KVF_OK);
        assert_true(i == BAD || memcmp(to[i], b->base + i * 1000, 1000) == 0);
    }
    world_free(w);
}

/* A small pull that is alone comes in two frames, so that the sides work at the same time; among others it does not. */
static void a_lone_pull_comes_in_smaller_frames(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    static uint8_t to[2][64 << 10];
    struct result r = {0};
    struct sim_path *back = sim_net_path(b->t, a->t);
    settle(w);
    back->delivered = 0;
    assert_int_equal(pull1(peer, 0, 64 << 10, to[0], UINT64_MAX, &r), KVF_OK);
    settle(w);
    assert_int_equal(back->delivered, 2);
    assert_int_equal(pull1(peer, 0, 1, to[1], UINT64_MAX, &r), KVF_OK);
    assert_int_equal(pull1(peer, 0, 64 << 10, to[0], UINT64_MAX, &r), KVF_OK);
    settle(w);
    assert_int_equal(back->delivered, 2 + 1 + 1);
    assert_int_equal(r.oks, 3);
    world_free(w);
}

static void a_pull_outside_the_region_is_refused(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++) {
        struct kvf_peer *peer;
        struct world *w = pair(way, &peer);
        struct result r[3] = {{0}};
        uint8_t to[16];
        assert_int_equal(pull1(peer, REGION - 8, 9, to, UINT64_MAX, &r[0]), KVF_OK);
        assert_int_equal(pull1(peer, UINT64_MAX - 3, 16, to, UINT64_MAX, &r[1]), KVF_OK);
        assert_int_equal(pull1(peer, REGION - 8, 8, to, UINT64_MAX, &r[2]), KVF_OK);
        assert_int_equal(r[0].count, 0);
        settle(w);
        assert_int_equal(r[0].status, KVF_ERR_PEER_REFUSED);
        assert_int_equal(r[1].status, KVF_ERR_PEER_REFUSED);
        assert_int_equal(r[2].status, KVF_OK);
        assert_int_equal(pull1(peer, 0, 0, to, UINT64_MAX, &r[0]), KVF_ERR_INVALID);
        assert_int_equal(kvf_fabric_pull(peer, NULL, 0, UINT64_MAX, on_done, &r[0]), KVF_ERR_INVALID);
        world_free(w);
    }
}

/* The one who is asked tests too: he does not trust the one who asks. */
static void a_hostile_pull_is_refused_by_the_server(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct kvf_wire_pull pull = {.n = 2, .ranges = {{0, 16}, {REGION - 4, 16}}};
    uint8_t payload[KVF_WIRE_PULL_BYTES_MAX];
    size_t n = sizeof payload;
    assert_int_equal(kvf_wire_pull_encode(&pull, payload, &n), KVF_OK);
    struct kvf_wire_header h = {.type = KVF_WIRE_PULL, .request = 5, .payload_bytes = (uint32_t)n};
    struct sim_path *back = sim_net_path(a->t, b->t);
    uint64_t before = back->delivered;
    say(b, a, h, payload, n);
    settle(w);
    assert_int_equal(kvf_counted(&a->counters.messages_refused), 1);
    assert_int_equal(back->delivered, before + 1); /* one refusal, no data */
    assert_int_equal(kvf_counted(&b->counters.messages_refused), 1); /* b asked nothing */
    /* More jobs than a peer may have: the rest is refused, nothing is lost or grows. */
    pull.n = 1;
    n = sizeof payload;
    assert_int_equal(kvf_wire_pull_encode(&pull, payload, &n), KVF_OK);
    h.payload_bytes = (uint32_t)n;
    back->held = true;
    for (unsigned i = 0; i < 1000; i++)
        say(b, a, h, payload, n);
    run_for(w, 10 * KVF_MS);
    back->held = false;
    run_for(w, 10 * KVF_MS);
    assert_true(kvf_peer_is_up(peer));
    world_free(w);
}

static void late_data_is_never_written(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct result r = {0}, next = {0};
    static uint8_t to[100000], other[100000];
    memset(to, 0xcc, sizeof to);
    sim_net_path(b->t, a->t)->held = true;
    assert_int_equal(pull1(peer, 0, sizeof to, to, w->env.now_ns + 100 * KVF_MS, &r), KVF_OK);
    run_for(w, 110 * KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    assert_int_equal(a->downs, 0);
    /* All the slots are taken again, so that the old one is too. */
    for (unsigned i = 0; i < w->requests_max; i++)
        assert_int_equal(pull1(peer, 0, 5000, other + 5000 * i, UINT64_MAX, &next), KVF_OK);
    sim_net_path(b->t, a->t)->held = false;
    run_for(w, 50 * KVF_MS);
    for (size_t i = 0; i < sizeof to; i++)
        assert_int_equal(to[i], 0xcc);
    assert_int_equal(next.oks, w->requests_max);
    assert_memory_equal(other, b->base, 5000);
    assert_true(kvf_counted(&a->counters.messages_refused) > 0);
    world_free(w);
}

/* A read that the network still may write takes the link with it; only then does the caller get the memory back. */
static void a_read_at_its_deadline_ends_the_link_first(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct node *a = &w->node[0];
    struct result r = {0};
    static uint8_t to[1000];
    memset(to, 0xcc, sizeof to);
    sim_net_path(a->t, w->node[1].t)->held = true;
    assert_int_equal(pull1(peer, 0, sizeof to, to, w->env.now_ns + 50 * KVF_MS, &r), KVF_OK);
    run_for(w, 60 * KVF_MS);
    assert_int_equal(r.count, 1); /* not before the link had ended: test_bounds.c */
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->down_why, KVF_ERR_DEADLINE);
    sim_net_path(a->t, w->node[1].t)->held = false;
    run_for(w, 60 * KVF_MS);
    for (size_t i = 0; i < sizeof to; i++)
        assert_int_equal(to[i], 0xcc);
    world_free(w);
}

/* Removed by its owner while reads are out: their callbacks come when the transport let go, without the peer. */
static void reads_of_a_removed_peer_end_later(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct node *a = &w->node[0];
    struct result r = {0}, c = {0};
    static uint8_t to[1000];
    assert_int_equal(pull1(peer, 0, sizeof to, to, UINT64_MAX, &r), KVF_OK);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &c), KVF_OK);
    kvf_fabric_peer_remove(a->fabric, peer);
    assert_int_equal(a->downs, 1);
    assert_int_equal(c.count, 1);
    assert_int_equal(r.count, 0);
    kvf_fabric_poll(a->fabric);
    kvf_fabric_poll(a->fabric);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_PEER_LOST);
    world_free(w);
}

static void a_slow_wire_pushes_back_and_nothing_is_lost(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    sim_net_limits(b->t, 64 << 10, 3); /* three frames at a time */
    struct kvf_peer *peer = meet(a, b);
    settle(w);
    static uint8_t to[8][REGION];
    struct result r = {0};
    struct sim_path *back = sim_net_path(b->t, a->t);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(pull1(peer, 0, REGION, to[i], UINT64_MAX, &r), KVF_OK);
    for (unsigned i = 0; i < 200 && r.count < 8; i++) {
        back->busy = (unsigned)sim_env_random(&w->env, 4);
        run_for(w, 5 * KVF_MS);
    }
    assert_int_equal(r.oks, 8);
    for (unsigned i = 0; i < 8; i++)
        assert_memory_equal(to[i], b->base, REGION);
    world_free(w);
}

static void mapped_memory_is_copied_in_portions(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_MAPPED, &peer);
    static uint8_t to[12][REGION];
    struct result r = {0};
    for (unsigned i = 0; i < 12; i++)
        assert_int_equal(pull1(peer, 0, REGION, to[i], UINT64_MAX, &r), KVF_OK);
    assert_int_equal(kvf_fabric_next_timer(w->node[0].fabric), 0);
    kvf_fabric_poll(w->node[0].fabric);
    assert_int_equal(r.count, 4); /* 1 MiB, and no more, in one poll */
    kvf_fabric_poll(w->node[0].fabric);
    assert_int_equal(r.count, 8);
    kvf_fabric_peer_remove(w->node[0].fabric, peer);
    assert_int_equal(r.count, 12);
    assert_int_equal(r.oks, 8);
    kvf_fabric_poll(w->node[0].fabric);
    world_free(w);
}

static void an_old_pull_is_not_served_past_its_budget(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    static uint8_t to[REGION];
    struct result r = {0};
    struct sim_path *back = sim_net_path(b->t, a->t);
    assert_int_equal(pull1(peer, 0, REGION, to, w->env.now_ns + 50 * KVF_MS, &r), KVF_OK);
    back->busy = 1000000;
    run_for(w, 60 * KVF_MS);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    back->busy = 0;
    back->delivered = 0;
    run_for(w, 30 * KVF_MS);
    assert_int_equal(back->delivered, 0);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pull_by_asking_brings_the_bytes),
        cmocka_unit_test(a_pull_by_get_brings_the_bytes),
        cmocka_unit_test(a_pull_from_mapped_memory_brings_the_bytes),
        cmocka_unit_test(a_narrow_window_brings_the_bytes_too),
        cmocka_unit_test(the_owner_brings_the_bytes_itself),
        cmocka_unit_test(room_for_ranges_is_bounded_and_comes_back),
        cmocka_unit_test(no_more_than_inflight_is_asked),
        cmocka_unit_test(waiting_pulls_are_asked_for_together),
        cmocka_unit_test(a_pull_that_ends_leaves_the_others_of_its_frame),
        cmocka_unit_test(a_refusal_is_for_one_pull_alone),
        cmocka_unit_test(a_lone_pull_comes_in_smaller_frames),
        cmocka_unit_test(a_pull_outside_the_region_is_refused),
        cmocka_unit_test(a_hostile_pull_is_refused_by_the_server),
        cmocka_unit_test(late_data_is_never_written),
        cmocka_unit_test(a_read_at_its_deadline_ends_the_link_first),
        cmocka_unit_test(reads_of_a_removed_peer_end_later),
        cmocka_unit_test(a_slow_wire_pushes_back_and_nothing_is_lost),
        cmocka_unit_test(mapped_memory_is_copied_in_portions),
        cmocka_unit_test(an_old_pull_is_not_served_past_its_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
