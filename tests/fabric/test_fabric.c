/* Peers, calls and pulls, stepped by hand over the in-process network and a clock that is set by hand. */
#include "fabric/fabric.h"
#include "fabric/wire.h"
#include "base/hash.h"
#include "tests/sim/sim_env.h"
#include "tests/sim/sim_transport.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define REGION (256u << 10)
#define HEARTBEAT (100 * KVF_MS)
#define DEAD (1 * KVF_SEC)
#define SEED 99ull

struct world;

struct node {
    struct world *world;
    char name[16];
    uint64_t incarnation;
    struct kvf_transport *t;
    struct kvf_region *region;
    uint8_t *base;
    struct kvf_fabric *fabric;
    struct kvf_counters counters;
    struct kvf_log log;
    unsigned ups, downs, messages, strangers;
    enum kvf_status down_why;
    uint64_t last_request;
    struct kvf_peer *last_peer;
    size_t last_bytes;
    uint8_t last_payload[8192];
    bool adds_strangers, echoes;
    bool remove_on_down;
    unsigned *ended_before_down; /* what a callback counter was when peer_down came */
    unsigned ended_at_down;
};

struct world {
    struct sim_env env;
    struct sim_net *net;
    struct node node[4];
    unsigned n;
    unsigned requests_max, peers_max;
    uint64_t inflight;
};

/* ------------------------------------------------------------------------------------------------ nodes */
static void on_up(void *arg, struct kvf_peer *peer)
{
    struct node *n = arg;
    n->ups++;
    n->last_peer = peer;
}

static void on_down(void *arg, struct kvf_peer *peer, enum kvf_status why)
{
    struct node *n = arg;
    n->downs++;
    n->down_why = why;
    if (n->ended_before_down)
        n->ended_at_down = *n->ended_before_down;
    if (n->remove_on_down) {
        n->remove_on_down = false;
        kvf_fabric_peer_remove(n->fabric, peer);
    }
}

static void ignore_done(void *arg, enum kvf_status status) {}

static void on_message(void *arg, struct kvf_peer *peer, const struct kvf_message *m)
{
    struct node *n = arg;
    n->messages++;
    n->last_request = m->request;
    n->last_peer = peer;
    n->last_bytes = m->bytes;
    memcpy(n->last_payload, m->payload, m->bytes < sizeof n->last_payload ? m->bytes : sizeof n->last_payload);
    if (!n->echoes || !m->request)
        return;
    struct iovec part = {.iov_base = n->last_payload, .iov_len = m->bytes};
    kvf_fabric_reply(peer, m->request, KVF_MISS, &part, m->bytes ? 1 : 0, ignore_done, NULL);
}

static void on_stranger(void *arg, const char *name, uint64_t incarnation, const void *address, size_t bytes)
{
    struct node *n = arg;
    struct kvf_peer *peer;
    n->strangers++;
    if (n->adds_strangers)
        assert_int_equal(kvf_fabric_peer_add(n->fabric, name, incarnation, address, bytes, &peer), KVF_OK);
}

static struct node *add_node(struct world *w, const char *name, uint64_t incarnation, enum kvf_way way)
{
    struct node *n = &w->node[w->n++];
    n->world = w;
    n->adds_strangers = n->echoes = true;
    n->incarnation = incarnation;
    snprintf(n->name, sizeof n->name, "%s", name);
    kvf_log_init(&n->log, name, KVF_LOG_ERROR, NULL);
    n->t = sim_net_add(w->net, name, way);
    assert_int_equal(n->t->ops->region_create(n->t, REGION, &n->region), KVF_OK);
    n->base = n->t->ops->region_base(n->region);
    for (unsigned i = 0; i < REGION; i++)
        n->base[i] = (uint8_t)kvf_mix(i, kvf_hash(name, strlen(name), SEED));
    struct kvf_fabric_config c = {
        .env = &w->env.env,
        .transport = n->t,
        .log = &n->log,
        .counters = &n->counters,
        .incarnation = incarnation,
        .region = n->region,
        .region_bytes = REGION,
        .peers_max = w->peers_max,
        .requests_max = w->requests_max,
        .inflight_bytes = w->inflight,
        .heartbeat_ns = HEARTBEAT,
        .dead_ns = DEAD,
        .handler = {.arg = n, .peer_up = on_up, .peer_down = on_down, .message = on_message, .stranger = on_stranger},
    };
    snprintf(c.name, sizeof c.name, "%s", name);
    assert_int_equal(kvf_fabric_create(&c, &n->fabric), KVF_OK);
    return n;
}

static struct world *world_new(void)
{
    struct world *w = calloc(1, sizeof *w);
    sim_env_init(&w->env, SEED);
    w->net = sim_net_create(&w->env.env);
    w->requests_max = 16;
    w->peers_max = 4;
    w->inflight = 1 << 20;
    return w;
}

static void close_node(struct node *n)
{
    if (!n->fabric)
        return;
    kvf_fabric_destroy(n->fabric);
    n->fabric = NULL;
    n->t->ops->region_destroy(n->t, n->region);
    n->t->ops->destroy(n->t);
}

static void world_free(struct world *w)
{
    for (unsigned i = 0; i < w->n; i++)
        close_node(&w->node[i]);
    sim_net_destroy(w->net);
    free(w);
}

/* Until nothing moves at this time. */
static void settle(struct world *w)
{
    bool moved = true;
    for (unsigned round = 0; moved; round++) {
        assert_true(round < 10000);
        moved = sim_net_step(w->net);
        for (unsigned i = 0; i < w->n; i++)
            moved |= w->node[i].fabric && kvf_fabric_poll(w->node[i].fabric) > 0;
    }
}

static void run_for(struct world *w, uint64_t ns)
{
    uint64_t until = w->env.now_ns + ns;
    settle(w);
    while (w->env.now_ns < until) {
        uint64_t left = until - w->env.now_ns;
        sim_env_advance(&w->env, left < 10 * KVF_MS ? left : 10 * KVF_MS);
        settle(w);
    }
}

/* n learns of other as from a membership list. */
static struct kvf_peer *meet(struct node *n, const struct node *other)
{
    uint8_t address[KVF_ADDRESS_MAX];
    size_t bytes = sizeof address;
    struct kvf_peer *peer;
    assert_int_equal(other->t->ops->address(other->t, address, &bytes), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(n->fabric, other->name, other->incarnation, address, bytes, &peer), KVF_OK);
    return peer;
}

/* Two nodes that know each other; a pulls by `way`. */
static struct world *pair(enum kvf_way way, struct kvf_peer **peer)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, way), *b = add_node(w, "b", 2, way);
    *peer = meet(a, b);
    settle(w);
    assert_true(kvf_peer_is_up(*peer));
    return w;
}

struct result {
    unsigned count, oks;
    enum kvf_status status;
    uint8_t payload[8192];
    size_t bytes;
};

static void on_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct result *r = arg;
    r->count++;
    r->oks += status == KVF_OK;
    r->status = status;
    r->bytes = bytes;
    if (bytes)
        memcpy(r->payload, payload, bytes < sizeof r->payload ? bytes : sizeof r->payload);
}

static void on_done(void *arg, enum kvf_status status)
{
    on_reply(arg, status, NULL, 0);
}

static enum kvf_status call(struct kvf_peer *peer, const void *data, size_t bytes, uint64_t deadline_ns, struct result *r)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    return kvf_fabric_call(peer, 40, &part, 1, deadline_ns, on_reply, r);
}

static enum kvf_status pull1(struct kvf_peer *peer, uint64_t offset, uint32_t bytes, void *to, uint64_t deadline_ns, struct result *r)
{
    struct kvf_pull_range range = {.offset = offset, .bytes = bytes, .to = to};
    return kvf_fabric_pull(peer, &range, 1, deadline_ns, on_done, r);
}

/* ------------------------------------------------------------------------------------------------ life */
static void a_hello_brings_both_sides_up(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_MAPPED);
    struct kvf_peer *peer = meet(a, b);
    assert_false(kvf_peer_is_up(peer));
    struct result r = {0};
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_ERR_PEER_LOST);
    settle(w);
    assert_true(kvf_peer_is_up(peer));
    assert_int_equal(a->ups, 1);
    assert_int_equal(b->ups, 1);
    assert_int_equal(b->strangers, 1);
    assert_string_equal(kvf_peer_name(peer), "b");
    assert_int_equal(kvf_peer_incarnation(peer), 2);
    assert_int_equal(kvf_peer_region_bytes(peer), REGION);
    assert_int_equal(kvf_peer_way(peer), KVF_WAY_ASK);
    assert_int_equal(kvf_peer_way(kvf_fabric_peer_find(b->fabric, "a")), KVF_WAY_MAPPED);
    assert_ptr_equal(kvf_fabric_peer_at(a->fabric, 0), peer);
    assert_null(kvf_fabric_peer_at(a->fabric, 1));
    assert_null(kvf_fabric_peer_find(a->fabric, "c"));
    assert_ptr_equal(meet(a, b), peer);
    /* Quiet afterwards: nobody answers hellos for ever. */
    sim_net_path(a->t, b->t)->delivered = 0;
    run_for(w, 50 * KVF_MS);
    assert_int_equal(sim_net_path(a->t, b->t)->delivered, 0);
    world_free(w);
}

static void hellos_are_sent_until_one_arrives(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    sim_net_path(a->t, b->t)->drop = 3;
    sim_net_path(b->t, a->t)->drop = 2;
    struct kvf_peer *peer = meet(a, b);
    run_for(w, 7 * HEARTBEAT);
    assert_true(kvf_peer_is_up(peer));
    assert_int_equal(a->ups, 1);
    assert_int_equal(b->ups, 1);
    world_free(w);
}

static void what_is_asked_when_up_finds_the_peer_up(void **state)
{
    /* Whatever hello is lost or late, a call from an UP peer must not reach one who does not know us. */
    for (unsigned drop = 0; drop < 4; drop++) {
        struct world *w = world_new();
        struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
        struct result r = {0};
        sim_net_path(b->t, a->t)->drop = drop;
        sim_net_path(a->t, b->t)->delay_ns = 30 * KVF_MS;
        struct kvf_peer *peer = meet(a, b);
        while (!kvf_peer_is_up(peer))
            run_for(w, 10 * KVF_MS);
        assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
        run_for(w, 5 * HEARTBEAT);
        assert_int_equal(r.count, 1);
        assert_int_equal(r.status, KVF_MISS);
        world_free(w);
    }
}

static void a_quiet_pair_lives_by_heartbeats(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    run_for(w, 20 * DEAD);
    assert_true(kvf_peer_is_up(peer));
    assert_int_equal(w->node[0].downs + w->node[1].downs, 0);
    uint64_t frames = sim_net_path(w->node[0].t, w->node[1].t)->delivered;
    assert_in_range(frames, 190, 220); /* one per heartbeat, not more */
    world_free(w);
}

static void silence_is_death(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r[3] = {{0}};
    uint8_t to[64];
    run_for(w, 10 * HEARTBEAT); /* past the time in which we are up */
    uint64_t cut = w->env.now_ns;
    sim_net_kill(w->node[1].t, false);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[0]), KVF_OK);
    assert_int_equal(pull1(peer, 0, 64, to, UINT64_MAX, &r[1]), KVF_OK);
    a->ended_before_down = &r[0].count;
    run_for(w, DEAD - 2 * HEARTBEAT);
    assert_true(kvf_peer_is_up(peer));
    assert_int_equal(r[0].count, 0);
    while (kvf_peer_is_up(peer))
        run_for(w, 10 * KVF_MS);
    assert_true(w->env.now_ns - cut <= DEAD + 20 * KVF_MS);
    settle(w);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->down_why, KVF_ERR_PEER_LOST);
    assert_int_equal(a->ended_at_down, 1);
    assert_int_equal(r[0].status, KVF_ERR_PEER_LOST);
    assert_int_equal(r[1].status, KVF_ERR_PEER_LOST);
    assert_int_equal(r[1].count, 1);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[2]), KVF_ERR_PEER_LOST);
    assert_int_equal(kvf_fabric_notify(peer, 40, NULL, 0), KVF_ERR_PEER_LOST);
    assert_int_equal(kvf_counted(&a->counters.peers_lost), 1);
    kvf_fabric_peer_remove(a->fabric, peer);
    assert_int_equal(a->downs, 1); /* told once */
    assert_null(kvf_fabric_peer_find(a->fabric, "b"));
    world_free(w);
}

static void a_peer_that_never_answers_goes_down(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    sim_net_kill(b->t, false);
    meet(a, b);
    run_for(w, DEAD + 20 * KVF_MS);
    assert_int_equal(a->ups, 0);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->down_why, KVF_ERR_PEER_UNREACHABLE);
    world_free(w);
}

static void a_failed_link_ends_everything_at_once(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct node *a = &w->node[0];
    struct result r[2] = {{0}};
    static uint8_t to[4096], big[8192];
    assert_int_equal(pull1(peer, 0, sizeof to, to, UINT64_MAX, &r[0]), KVF_OK);
    assert_int_equal(call(peer, big, sizeof big, UINT64_MAX, &r[1]), KVF_OK);
    a->ended_before_down = &r[1].count;
    sim_net_kill(w->node[1].t, true);
    settle(w);
    assert_int_equal(r[0].status, KVF_ERR_PEER_LOST);
    assert_int_equal(r[1].status, KVF_ERR_PEER_LOST);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->ended_at_down, 1); /* what the transport held too ended before peer_down */
    world_free(w);
}

static void an_error_of_a_post_dooms_the_peer(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r[2] = {{0}};
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[0]), KVF_OK);
    sim_net_path(a->t, w->node[1].t)->lost = 1;
    assert_int_equal(call(peer, "y", 1, UINT64_MAX, &r[1]), KVF_ERR_PEER_LOST);
    assert_false(kvf_peer_is_up(peer)); /* at once, though nothing was called back yet */
    assert_int_equal(a->downs, 0);
    assert_int_equal(r[0].count, 0);
    settle(w);
    assert_int_equal(a->downs, 1);
    assert_int_equal(r[0].count, 1);
    assert_int_equal(r[1].count, 0);
    world_free(w);
}

static void goodbye_is_believed_at_once(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    w->node[1].echoes = false;
    settle(w);
    close_node(&w->node[1]);
    settle(w);
    assert_int_equal(w->node[0].downs, 0); /* the goodbye lay on the wire when its sender ended */
    world_free(w);

    w = pair(KVF_WAY_ASK, &peer);
    kvf_fabric_notify(kvf_fabric_peer_find(w->node[1].fabric, "a"), 40, NULL, 0);
    struct kvf_wire_header h = {.type = KVF_WIRE_GOODBYE, .sender = kvf_wire_node_id("b"), .sender_incarnation = 2,
                                .receiver_incarnation = 1};
    uint8_t bytes[KVF_WIRE_HEADER_BYTES];
    kvf_wire_header_encode(&h, bytes);
    sim_net_inject(w->node[1].t, w->node[0].t, bytes, sizeof bytes, NULL, 0);
    settle(w);
    assert_int_equal(w->node[0].downs, 1);
    assert_int_equal(w->node[0].down_why, KVF_ERR_CLOSED);
    world_free(w);
}

static void a_restarted_node_is_another_peer(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r[2] = {{0}};
    w->node[1].echoes = false;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[0]), KVF_OK);
    settle(w);
    sim_net_kill(w->node[1].t, false);
    struct node *b = add_node(w, "b", 3, KVF_WAY_ASK);
    meet(b, a); /* it finds a by itself, and a hears of it as a stranger with a known name */
    settle(w);
    assert_int_equal(a->strangers, 1);
    assert_int_equal(a->downs, 1);
    assert_int_equal(r[0].status, KVF_ERR_PEER_LOST);
    peer = kvf_fabric_peer_find(a->fabric, "b");
    assert_int_equal(kvf_peer_incarnation(peer), 3);
    assert_true(kvf_peer_is_up(peer));
    assert_null(kvf_fabric_peer_at(a->fabric, 1));
    assert_int_equal(call(peer, "y", 1, UINT64_MAX, &r[1]), KVF_OK);
    settle(w);
    assert_int_equal(r[1].status, KVF_MISS);
    world_free(w);
}

static void frames_of_old_incarnations_are_refused(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct kvf_wire_header h = {.type = 40, .sender = kvf_wire_node_id("b"), .sender_incarnation = 2, .receiver_incarnation = 1};
    uint8_t bytes[KVF_WIRE_HEADER_BYTES];
    kvf_wire_header_encode(&h, bytes);
    sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, NULL, 0);
    settle(w);
    assert_int_equal(a->messages, 1);
    assert_int_equal(kvf_counted(&a->counters.messages_refused), 0);
    const struct {
        uint64_t sender, from, to;
    } wrong[] = {{h.sender, 1, 1}, {h.sender, 3, 1}, {h.sender, 2, 2}, {h.sender, 2, 7}, {kvf_wire_node_id("c"), 2, 1}};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        h.sender = wrong[i].sender;
        h.sender_incarnation = wrong[i].from;
        h.receiver_incarnation = wrong[i].to;
        kvf_wire_header_encode(&h, bytes);
        sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, NULL, 0);
        settle(w);
        assert_int_equal(a->messages, 1);
        assert_int_equal(kvf_counted(&a->counters.messages_refused), i + 1);
    }
    assert_true(kvf_peer_is_up(peer));
    world_free(w);
}

static void garbage_is_refused_and_hurts_nobody(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct kvf_wire_header h = {.type = 40, .sender = kvf_wire_node_id("b"), .sender_incarnation = 2, .receiver_incarnation = 1,
                                .payload_bytes = 8};
    uint8_t bytes[KVF_WIRE_HEADER_BYTES], junk[64];
    kvf_wire_header_encode(&h, bytes);
    memset(junk, 0xa5, sizeof junk);
    sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, junk, 7);   /* shorter than it says */
    sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, junk, 9);   /* longer */
    sim_net_inject(w->node[1].t, a->t, junk, sizeof junk, junk, 64);    /* no frame */
    sim_net_inject(w->node[1].t, a->t, NULL, 0, NULL, 0);
    bytes[4] = 9; /* another version */
    sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, junk, 8);
    for (uint16_t type = 1; type <= 6; type++) { /* every message of the fabric with a wrong payload */
        h.type = type;
        h.request = type >= 4 ? 77 : 0;
        h.payload_bytes = type == 2 || type == 3 ? 0 : 8;
        if (type == 3)
            continue;
        kvf_wire_header_encode(&h, bytes);
        sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, junk, h.payload_bytes);
    }
    settle(w);
    assert_int_equal(a->messages, 0);
    assert_int_equal(kvf_counted(&a->counters.messages_refused), 5 + 4); /* the heartbeat among the six is a good one */
    assert_true(kvf_peer_is_up(peer));
    world_free(w);
}

static void there_are_at_most_peers_max(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    uint8_t address[64];
    size_t bytes = sizeof address;
    struct kvf_peer *peer;
    assert_int_equal(b->t->ops->address(b->t, address, &bytes), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p1", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p2", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p3", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p4", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p5", 1, address, bytes, &peer), KVF_ERR_BUSY);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p4", 2, address, bytes, &peer), KVF_OK); /* in place of the old one */
    kvf_fabric_peer_remove(a->fabric, kvf_fabric_peer_find(a->fabric, "p2"));
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p5", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "a", 9, address, bytes, &peer), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "", 9, address, bytes, &peer), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "x", 0, address, bytes, &peer), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p5", 7, "junk", 4, &peer), KVF_ERR_INVALID);
    world_free(w);
}

static void a_peer_may_be_removed_inside_its_callbacks(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r[4] = {{0}};
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[i]), KVF_OK);
    a->remove_on_down = true;
    sim_net_kill(w->node[1].t, true);
    settle(w);
    assert_int_equal(a->downs, 1);
    assert_null(kvf_fabric_peer_at(a->fabric, 0));
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(r[i].count, 1);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ calls */
static void a_call_brings_the_reply(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    char text[] = "what do you hold?";
    assert_int_equal(call(peer, text, sizeof text, w->env.now_ns + KVF_SEC, &r), KVF_OK);
    memset(text, 0, sizeof text); /* small parts are copied */
    settle(w);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_MISS);
    assert_string_equal((char *)r.payload, "what do you hold?");
    assert_int_equal(w->node[1].messages, 1);
    run_for(w, 2 * KVF_SEC); /* its deadline passes without a second callback */
    assert_int_equal(r.count, 1);
    world_free(w);
}

static void large_parts_travel_without_a_copy(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    static uint8_t data[8000];
    struct iovec parts[8];
    for (unsigned i = 0; i < 8; i++)
        parts[i] = (struct iovec){.iov_base = data + i * 1000, .iov_len = 1000};
    assert_int_equal(kvf_fabric_call(peer, 40, parts, 8, UINT64_MAX, on_reply, &r), KVF_OK);
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 31); /* after the call: the wire reads our memory itself */
    settle(w);
    assert_int_equal(r.status, KVF_MISS);
    assert_int_equal(r.bytes, sizeof data);
    assert_memory_equal(r.payload, data, sizeof data);
    world_free(w);
}

static void bad_calls_are_refused(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r = {0};
    static uint8_t data[70000];
    struct iovec part = {.iov_base = data, .iov_len = sizeof data};
    assert_int_equal(kvf_fabric_payload_max(a->fabric), 65536);
    assert_int_equal(kvf_fabric_call(peer, 40, &part, 1, UINT64_MAX, on_reply, &r), KVF_ERR_INVALID);
    part.iov_len = 10;
    assert_int_equal(kvf_fabric_call(peer, 31, &part, 1, UINT64_MAX, on_reply, &r), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_call(peer, 40, &part, KVF_FRAME_PARTS_MAX + 1, UINT64_MAX, on_reply, &r), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_notify(peer, 40, data, 4097), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_reply(peer, 0, KVF_OK, NULL, 0, NULL, NULL), KVF_ERR_INVALID);
    part.iov_len = 5000;
    assert_int_equal(kvf_fabric_reply(peer, 5, KVF_OK, &part, 1, NULL, NULL), KVF_ERR_INVALID);
    assert_int_equal(r.count, 0);
    world_free(w);
}

static void a_late_reply_is_dropped(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct result r = {0}, second = {0};
    sim_net_path(b->t, a->t)->delay_ns = 300 * KVF_MS;
    assert_int_equal(call(peer, "x", 1, w->env.now_ns + 200 * KVF_MS, &r), KVF_OK);
    run_for(w, 190 * KVF_MS);
    assert_int_equal(r.count, 0);
    run_for(w, 20 * KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    for (unsigned i = 0; i < w->requests_max; i++) /* the slot is used again, by other requests */
        assert_int_equal(call(peer, "y", 1, UINT64_MAX, &second), KVF_OK);
    run_for(w, 150 * KVF_MS);
    assert_int_equal(second.count, 0);
    assert_int_equal(kvf_counted(&a->counters.messages_refused), 1);
    run_for(w, 300 * KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(second.count, w->requests_max);
    world_free(w);
}

static void there_are_at_most_requests_max(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    uint8_t to[16];
    w->node[1].echoes = false;
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(call(peer, "x", 1, w->env.now_ns + 100 * KVF_MS, &r), KVF_OK);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_ERR_BUSY);
    assert_int_equal(pull1(peer, 0, 16, to, UINT64_MAX, &r), KVF_ERR_BUSY);
    run_for(w, 150 * KVF_MS);
    assert_int_equal(r.count, 16);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    world_free(w);
}

static void a_busy_transport_refuses_and_recovers(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    struct sim_path *path = sim_net_path(w->node[0].t, w->node[1].t);
    path->busy = 1;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_ERR_BUSY);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    settle(w);
    assert_int_equal(r.count, 1);
    world_free(w);
}

/* The transport still reads the caller's parts at the deadline: the link is ended before the caller gets them back. */
static void a_stuck_large_call_ends_with_the_link(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r = {0};
    static uint8_t data[8000];
    sim_net_path(a->t, w->node[1].t)->held = true;
    assert_int_equal(call(peer, data, sizeof data, w->env.now_ns + 50 * KVF_MS, &r), KVF_OK);
    run_for(w, 60 * KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    assert_int_equal(a->downs, 1);
    assert_int_equal(w->node[1].messages, 0);
    world_free(w);
}

static void duplicated_frames_do_no_harm(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct result r = {0}, p = {0};
    static uint8_t to[200000];
    sim_net_path(a->t, b->t)->duplicate = 100;
    sim_net_path(b->t, a->t)->duplicate = 100;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    assert_int_equal(pull1(peer, 100, sizeof to, to, UINT64_MAX, &p), KVF_OK);
    settle(w);
    assert_int_equal(r.count, 1);
    assert_int_equal(p.count, 1);
    assert_int_equal(p.status, KVF_OK);
    assert_memory_equal(to, b->base + 100, sizeof to);
    assert_true(kvf_counted(&a->counters.messages_refused) > 0);
    world_free(w);
}

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
    struct kvf_pull_range ranges[4][KVF_PULL_RANGES_MAX];
    struct result r[4] = {{0}};
    memset(to, 0xcc, sizeof to);
    for (unsigned k = 0; k < 4; k++) {
        size_t at = 0;
        for (unsigned i = 0; i < KVF_PULL_RANGES_MAX; i++) {
            uint32_t bytes = 1 + (uint32_t)sim_env_random(&w->env, i % 50 == 0 ? 20000 : 700);
            ranges[k][i] = (struct kvf_pull_range){.offset = sim_env_random(&w->env, REGION - bytes), .bytes = bytes, .to = to[k] + at};
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
    uint8_t bytes[KVF_WIRE_HEADER_BYTES], payload[KVF_WIRE_PULL_BYTES_MAX];
    size_t n = sizeof payload;
    assert_int_equal(kvf_wire_pull_encode(&pull, payload, &n), KVF_OK);
    struct kvf_wire_header h = {.type = KVF_WIRE_PULL, .sender = kvf_wire_node_id("b"), .sender_incarnation = 2,
                                .receiver_incarnation = 1, .request = 5, .payload_bytes = (uint32_t)n};
    kvf_wire_header_encode(&h, bytes);
    struct sim_path *back = sim_net_path(a->t, b->t);
    uint64_t before = back->delivered;
    sim_net_inject(b->t, a->t, bytes, sizeof bytes, payload, n);
    settle(w);
    assert_int_equal(kvf_counted(&a->counters.messages_refused), 1);
    assert_int_equal(back->delivered, before + 1); /* one refusal, no data */
    assert_int_equal(kvf_counted(&b->counters.messages_refused), 1); /* b asked nothing */
    /* More jobs than a peer may have: the rest is refused, nothing is lost or grows. */
    pull.n = 1;
    n = sizeof payload;
    assert_int_equal(kvf_wire_pull_encode(&pull, payload, &n), KVF_OK);
    h.payload_bytes = (uint32_t)n;
    kvf_wire_header_encode(&h, bytes);
    back->held = true;
    for (unsigned i = 0; i < 1000; i++)
        sim_net_inject(b->t, a->t, bytes, sizeof bytes, payload, n);
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
    a->ended_before_down = &r.count;
    run_for(w, 60 * KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->down_why, KVF_ERR_DEADLINE);
    assert_int_equal(a->ended_at_down, 1);
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

/* ------------------------------------------------------------------------------------------------ the whole */
static void destroy_cancels_what_is_open(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct result r[3] = {{0}};
    static uint8_t to[100], big[8000];
    w->node[1].echoes = false;
    sim_net_path(w->node[0].t, w->node[1].t)->held = true;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[0]), KVF_OK);
    assert_int_equal(pull1(peer, 0, 100, to, UINT64_MAX, &r[1]), KVF_OK);
    assert_int_equal(call(peer, big, sizeof big, UINT64_MAX, &r[2]), KVF_OK);
    close_node(&w->node[0]);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(r[i].count, 1);
        assert_int_equal(r[i].status, KVF_CANCELLED);
    }
    world_free(w);
}

static void timers_say_when_poll_is_needed(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r = {0};
    uint64_t next = kvf_fabric_next_timer(a->fabric);
    assert_true(next > w->env.now_ns && next <= w->env.now_ns + HEARTBEAT);
    w->node[1].echoes = false;
    uint64_t deadline = w->env.now_ns + 7 * KVF_MS;
    assert_int_equal(call(peer, "x", 1, deadline, &r), KVF_OK);
    settle(w);
    assert_int_equal(kvf_fabric_next_timer(a->fabric), deadline);
    w->env.now_ns = deadline;
    kvf_fabric_poll(a->fabric);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    assert_true(kvf_fabric_next_timer(a->fabric) > deadline);
    world_free(w);
}

/* After a long pause of our own, what lies in the queue is heard before anybody is declared dead. */
static void a_pause_of_ours_is_not_their_death(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    for (unsigned i = 0; i < 30; i++) { /* b alone goes on for three seconds */
        sim_env_advance(&w->env, 100 * KVF_MS);
        sim_net_run(w->net);
        if (i % 3 == 0) {
            struct kvf_wire_header h = {.type = KVF_WIRE_HEARTBEAT, .sender = kvf_wire_node_id("a"), .sender_incarnation = 1,
                                        .receiver_incarnation = 2};
            uint8_t bytes[KVF_WIRE_HEADER_BYTES];
            kvf_wire_header_encode(&h, bytes);
            sim_net_inject(a->t, b->t, bytes, sizeof bytes, NULL, 0);
        }
        kvf_fabric_poll(b->fabric);
    }
    assert_int_equal(b->downs, 0);
    settle(w);
    assert_int_equal(a->downs, 0);
    assert_true(kvf_peer_is_up(peer));
    world_free(w);
}

static void heal(struct world *w)
{
    struct node *a = &w->node[0], *b = &w->node[1];
    *sim_net_path(a->t, b->t) = *sim_net_path(b->t, a->t) = (struct sim_path){0};
    run_for(w, DEAD + 100 * KVF_MS); /* who is to die does */
    struct kvf_peer *one = kvf_fabric_peer_find(a->fabric, "b"), *two = kvf_fabric_peer_find(b->fabric, "a");
    if (one)
        kvf_fabric_peer_remove(a->fabric, one);
    if (two)
        kvf_fabric_peer_remove(b->fabric, two);
    settle(w);
}

/* Losses, delays, doubles and partitions from a seed: every request ends once, good data is right, and afterwards the pair
 * works as before. */
static void random_trouble_ends_every_request(void **state)
{
    unsigned good = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct world *w = world_new();
        sim_env_init(&w->env, seed);
        enum kvf_way way = (enum kvf_way)(seed % 3);
        struct node *a = add_node(w, "a", 1, way), *b = add_node(w, "b", 2, way);
        static uint8_t to[64][8192];
        struct result r[64] = {{0}};
        uint64_t offset[64];
        unsigned asked = 0;
        meet(a, b);
        settle(w);
        while (asked < 64) {
            struct sim_path *path = sim_env_random(&w->env, 2) ? sim_net_path(a->t, b->t) : sim_net_path(b->t, a->t);
            switch (sim_env_random(&w->env, 12)) {
            case 0: path->drop = 1; break;
            case 1: path->duplicate = 2; break;
            case 2: path->delay_ns = sim_env_random(&w->env, 50) * KVF_MS; break;
            case 3: path->delay_ns = 0; break;
            case 4: path->busy = 2; break;
            case 5: path->cut = sim_env_random(&w->env, 4) == 0; break;
            case 6: path->lost = sim_env_random(&w->env, 8) == 0; break;
            default: break;
            }
            struct kvf_peer *peer = kvf_fabric_peer_find(a->fabric, "b");
            if (peer && !kvf_peer_is_up(peer) && sim_env_random(&w->env, 4) == 0)
                kvf_fabric_peer_remove(a->fabric, peer);
            struct kvf_peer *other = kvf_fabric_peer_find(b->fabric, "a");
            if (other && !kvf_peer_is_up(other) && sim_env_random(&w->env, 4) == 0)
                kvf_fabric_peer_remove(b->fabric, other);
            peer = kvf_fabric_peer_find(a->fabric, "b");
            if (!peer)
                peer = meet(a, b);
            uint64_t deadline = w->env.now_ns + (1 + sim_env_random(&w->env, 100)) * KVF_MS;
            offset[asked] = sim_env_random(&w->env, REGION - 8192);
            if (asked % 2 ? pull1(peer, offset[asked], 8192, to[asked], deadline, &r[asked]) == KVF_OK
                          : call(peer, to[asked], asked % 4 ? 8192 : 9, deadline, &r[asked]) == KVF_OK)
                asked++;
            run_for(w, sim_env_random(&w->env, 30) * KVF_MS);
            if (w->env.now_ns > 200 * KVF_SEC)
                break;
        }
        run_for(w, 150 * KVF_MS);
        for (unsigned i = 0; i < asked; i++) {
            if (r[i].count != 1)
                print_error("seed %llu: request %u ended %u times\n", (unsigned long long)seed, i, r[i].count);
            assert_int_equal(r[i].count, 1);
            good += r[i].status == KVF_OK || r[i].status == KVF_MISS;
            if (i % 2 && r[i].status == KVF_OK)
                assert_memory_equal(to[i], b->base + offset[i], 8192);
        }
        heal(w);
        /* Every slot is free again: as many as there are can be asked at once, and are answered. */
        struct kvf_peer *peer = meet(a, b);
        run_for(w, 500 * KVF_MS);
        assert_true(kvf_peer_is_up(peer));
        struct result last = {0};
        for (unsigned i = 0; i < w->requests_max; i++)
            assert_int_equal(pull1(peer, 0, 8192, to[i], UINT64_MAX, &last), KVF_OK);
        run_for(w, 20 * KVF_MS);
        assert_int_equal(last.oks, w->requests_max);
        world_free(w);
    }
    print_message("60 seeds from 1, %u requests ended well amid the trouble\n", good);
    assert_true(good > 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hello_brings_both_sides_up),
        cmocka_unit_test(hellos_are_sent_until_one_arrives),
        cmocka_unit_test(what_is_asked_when_up_finds_the_peer_up),
        cmocka_unit_test(a_quiet_pair_lives_by_heartbeats),
        cmocka_unit_test(silence_is_death),
        cmocka_unit_test(a_peer_that_never_answers_goes_down),
        cmocka_unit_test(a_failed_link_ends_everything_at_once),
        cmocka_unit_test(an_error_of_a_post_dooms_the_peer),
        cmocka_unit_test(goodbye_is_believed_at_once),
        cmocka_unit_test(a_restarted_node_is_another_peer),
        cmocka_unit_test(frames_of_old_incarnations_are_refused),
        cmocka_unit_test(garbage_is_refused_and_hurts_nobody),
        cmocka_unit_test(there_are_at_most_peers_max),
        cmocka_unit_test(a_peer_may_be_removed_inside_its_callbacks),
        cmocka_unit_test(a_call_brings_the_reply),
        cmocka_unit_test(large_parts_travel_without_a_copy),
        cmocka_unit_test(bad_calls_are_refused),
        cmocka_unit_test(a_late_reply_is_dropped),
        cmocka_unit_test(there_are_at_most_requests_max),
        cmocka_unit_test(a_busy_transport_refuses_and_recovers),
        cmocka_unit_test(a_stuck_large_call_ends_with_the_link),
        cmocka_unit_test(duplicated_frames_do_no_harm),
        cmocka_unit_test(a_pull_by_asking_brings_the_bytes),
        cmocka_unit_test(a_pull_by_get_brings_the_bytes),
        cmocka_unit_test(a_pull_from_mapped_memory_brings_the_bytes),
        cmocka_unit_test(a_narrow_window_brings_the_bytes_too),
        cmocka_unit_test(no_more_than_inflight_is_asked),
        cmocka_unit_test(a_pull_outside_the_region_is_refused),
        cmocka_unit_test(a_hostile_pull_is_refused_by_the_server),
        cmocka_unit_test(late_data_is_never_written),
        cmocka_unit_test(a_read_at_its_deadline_ends_the_link_first),
        cmocka_unit_test(reads_of_a_removed_peer_end_later),
        cmocka_unit_test(a_slow_wire_pushes_back_and_nothing_is_lost),
        cmocka_unit_test(mapped_memory_is_copied_in_portions),
        cmocka_unit_test(an_old_pull_is_not_served_past_its_budget),
        cmocka_unit_test(destroy_cancels_what_is_open),
        cmocka_unit_test(timers_say_when_poll_is_needed),
        cmocka_unit_test(a_pause_of_ours_is_not_their_death),
        cmocka_unit_test(random_trouble_ends_every_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
