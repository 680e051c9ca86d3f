/* What the fabric keeps to whatever peers and callers do: memory is given back when nothing uses it any more, nobody is sent
 * anything once he is lost, and what waits here for one peer is bounded. */
#include "tests/fabric/world.h"

/* ------------------------------------------------------------------------------------------------ memory */
/* What held true of the link when a request called back. */
struct ending {
    struct result result;
    const struct kvf_peer *peer;
    unsigned linked, held;
};

static void ended(void *arg, enum kvf_status status)
{
    struct ending *e = arg;
    on_done(&e->result, status);
    e->linked += e->peer->link != NULL;
    e->held += e->peer->fabric->held_count;
}

static void replied(void *arg, enum kvf_status status, const void *payload, size_t bytes) { ended(arg, status); }

static void assert_let_go(const struct ending *e, enum kvf_status status)
{
    assert_int_equal(e->result.count, 1);
    assert_int_equal(e->result.status, status);
    assert_int_equal(e->linked, 0);
    assert_int_equal(e->held, 0);
}

/* A read that the network may still write, and a call whose parts it may still read: at the deadline the link ends first. */
static void at_the_deadline_nothing_holds_the_callers_memory(void **state)
{
    for (unsigned calls = 0; calls < 2; calls++) {
        struct kvf_peer *peer;
        struct world *w = pair(KVF_WAY_GET, &peer);
        struct node *a = &w->node[0], *b = &w->node[1];
        struct ending e = {.peer = peer};
        static uint8_t memory[32 << 10];
        uint64_t deadline = w->env.now_ns + 50 * KVF_MS;
        const struct kvf_pull_range range = {.offset = 0, .bytes = sizeof memory, .to = memory};
        const struct iovec part = {.iov_base = memory, .iov_len = sizeof memory};
        sim_net_path(a->t, b->t)->held = true;
        if (calls)
            assert_int_equal(kvf_fabric_call(peer, 40, &part, 1, deadline, replied, &e), KVF_OK);
        else
            assert_int_equal(kvf_fabric_pull(peer, &range, 1, deadline, ended, &e), KVF_OK);
        assert_true(a->fabric->held_count > 0);
        run_for(w, 60 * KVF_MS);
        assert_let_go(&e, KVF_ERR_DEADLINE);
        memset(memory, 0xcc, sizeof memory);
        sim_net_path(a->t, b->t)->held = false;
        run_for(w, 60 * KVF_MS);
        for (size_t i = 0; i < sizeof memory; i++)
            assert_int_equal(memory[i], 0xcc);
        assert_int_equal(b->messages, 0);
        world_free(w);
    }
}

/* The same where the peer is lost before. */
static void a_lost_peers_requests_end_when_nothing_holds_their_memory(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct ending e[8];
    static uint8_t to[8][4096];
    sim_net_path(a->t, b->t)->held = true;
    for (unsigned i = 0; i < 8; i++) {
        const struct kvf_pull_range range = {.offset = i * 4096, .bytes = 4096, .to = to[i]};
        e[i] = (struct ending){.peer = peer};
        assert_int_equal(kvf_fabric_pull(peer, &range, 1, UINT64_MAX, ended, &e[i]), KVF_OK);
    }
    kvf_peer_doom(peer, KVF_ERR_PEER_LOST);
    run_for(w, 10 * KVF_MS);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(e[i].result.count, 1);
        assert_int_equal(e[i].result.status, KVF_ERR_PEER_LOST);
        assert_int_equal(e[i].linked, 0);
    }
    assert_int_equal(a->fabric->held_count, 0);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ who is lost */
/* Frames that the transport was given, by sender. */
struct wire {
    unsigned sent[2], busy;
};

static void count_sent(void *arg, unsigned from, unsigned to, bool read, const void *header, size_t bytes, struct sim_fate *fate)
{
    struct wire *wire = arg;
    struct kvf_wire_header h;
    assert_true(from < 2);
    wire->sent[from]++;
    if (kvf_wire_header_decode(header, KVF_WIRE_HEADER_BYTES, &h) == KVF_OK)
        wire->busy += h.type == KVF_WIRE_PULL_DATA && h.status == KVF_ERR_BUSY;
}

static void ignore_left(void *arg, unsigned from, unsigned to, bool read, bool arrived, const void *header, size_t header_bytes,
                        const struct iovec *parts, unsigned n_parts)
{
}

/* Two nodes that know each other, on a watched net. */
static struct world *watched_pair(struct sim_net_watch *watch, struct wire *wire, struct kvf_peer **peer)
{
    struct world *w = world_new();
    *wire = (struct wire){.busy = 0};
    *watch = (struct sim_net_watch){.arg = wire, .sent = count_sent, .left = ignore_left};
    sim_net_watch(w->net, watch);
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    *peer = meet(a, b);
    settle(w);
    assert_true(kvf_peer_is_up(*peer));
    return w;
}

/* The PULL of one range, in a session that is up. */
static void forge_pull(struct node *from, struct node *to, uint64_t request, uint32_t bytes)
{
    uint8_t payload[KVF_WIRE_PULL_BYTES_MAX];
    struct kvf_wire_pull pull = {.n = 1, .ranges = {{.offset = 0, .bytes = bytes}}};
    size_t n = sizeof payload;
    assert_int_equal(kvf_wire_pull_encode(&pull, payload, &n), KVF_OK);
    say(from, to, (struct kvf_wire_header){.type = KVF_WIRE_PULL, .request = request, .payload_bytes = (uint32_t)n}, payload, n);
}

/* A peer that breaks the protocol while a heartbeat to it is due, bytes of ours wait for it, and it asks for more. */
static void nothing_is_sent_to_a_peer_that_is_lost(void **state)
{
    struct sim_net_watch watch;
    struct wire wire;
    struct kvf_peer *peer;
    struct world *w = watched_pair(&watch, &wire, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct kvf_peer *back = kvf_fabric_peer_find(b->fabric, "a");
    sim_net_path(b->t, a->t)->busy = 1;
    forge_pull(a, b, 4711, 4096);
    while (sim_net_step(w->net))
        ;
    kvf_fabric_poll(b->fabric);
    assert_int_equal(back->serve_count, 1); /* there was no room for it */
    unsigned before = wire.sent[1];
    kvf_peer_doom(back, KVF_ERR_PEER_PROTOCOL);
    sim_env_advance(&w->env, 2 * HEARTBEAT);
    struct kvf_wire_header heartbeat = {.type = KVF_WIRE_HEARTBEAT};
    assert_int_equal(kvf_fabric_post(back, &heartbeat, NULL, 0, NULL, NULL), KVF_ERR_PEER_LOST);
    assert_int_equal(kvf_fabric_post_copy(back, &heartbeat, NULL, 0, NULL, NULL), KVF_ERR_PEER_LOST);
    assert_int_equal(kvf_fabric_notify(back, 40, "x", 1), KVF_ERR_PEER_LOST);
    assert_int_equal(kvf_fabric_reply(back, 1, KVF_OK, NULL, 0, NULL, NULL), KVF_ERR_PEER_LOST);
    forge_pull(a, b, 4712, REGION + 1); /* one that would be refused with a frame */
    while (sim_net_step(w->net))
        ;
    kvf_fabric_poll(b->fabric);
    assert_int_equal(wire.sent[1], before);
    assert_int_equal(b->downs, 1);
    assert_int_equal(back->serve_count, 0);
    assert_int_equal(b->fabric->tx_used, 0);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ bounds */
/* More PULLs than may wait: each one above is refused, and nothing is written behind the ring. */
static void pulls_of_one_peer_that_wait_are_bounded(void **state)
{
    enum { MORE = 5, BYTES = 64 << 10 };
    struct sim_net_watch watch;
    struct wire wire;
    struct kvf_peer *peer;
    struct world *w = watched_pair(&watch, &wire, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    const struct kvf_peer *back = kvf_fabric_peer_find(b->fabric, "a");
    sim_net_path(b->t, a->t)->held = true; /* so many frames are under way, and no more */
    for (unsigned i = 0; i < KVF_SERVE_FRAMES_MAX + KVF_SERVES_MAX + MORE; i++) {
        forge_pull(a, b, 1000 + i, BYTES);
        while (sim_net_step(w->net))
            ;
        kvf_fabric_poll(b->fabric);
        assert_true(back->serve_count <= KVF_SERVES_MAX);
    }
    assert_int_equal(back->frames_out, KVF_SERVE_FRAMES_MAX);
    assert_int_equal(back->serve_count, KVF_SERVES_MAX);
    assert_int_equal(wire.busy, MORE);
    sim_net_path(b->t, a->t)->held = false;
    run_for(w, 50 * KVF_MS);
    assert_int_equal(back->serve_count, 0);
    assert_int_equal(back->served_bytes, (uint64_t)(KVF_SERVE_FRAMES_MAX + KVF_SERVES_MAX) * BYTES);
    assert_true(kvf_peer_is_up(peer) && kvf_peer_is_up(back));
    world_free(w);
}

/* A message larger than our welcome allows, from one who could tag it. */
static void a_payload_beyond_the_welcome_ends_the_peer(void **state)
{
    static uint8_t payload[(64 << 10) + 1];
    for (unsigned over = 0; over < 2; over++) {
        struct kvf_peer *peer;
        struct world *w = pair(KVF_WAY_ASK, &peer);
        struct node *a = &w->node[0], *b = &w->node[1];
        uint32_t bytes = (uint32_t)kvf_fabric_payload_max(b->fabric) + over;
        assert_true(bytes <= sizeof payload);
        say(a, b, (struct kvf_wire_header){.type = 40, .payload_bytes = bytes}, payload, bytes);
        settle(w);
        assert_int_equal(b->messages, !over);
        assert_int_equal(refused_by(b), over);
        assert_int_equal(b->downs, over);
        assert_int_equal(b->down_why, over ? KVF_ERR_PEER_PROTOCOL : KVF_OK);
        world_free(w);
    }
}

int main(void)
{
    printf("seed %llu\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(at_the_deadline_nothing_holds_the_callers_memory),
        cmocka_unit_test(a_lost_peers_requests_end_when_nothing_holds_their_memory),
        cmocka_unit_test(nothing_is_sent_to_a_peer_that_is_lost),
        cmocka_unit_test(pulls_of_one_peer_that_wait_are_bounded),
        cmocka_unit_test(a_payload_beyond_the_welcome_ends_the_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
