/* Nodes for the fabric's tests: fabrics over the in-process network and a clock that is set by hand. */
#ifndef KVF_TESTS_FABRIC_WORLD_H
#define KVF_TESTS_FABRIC_WORLD_H

#include "base/hash.h"
#include "fabric/internal.h"
#include "tests/sim/sim_env.h"
#include "tests/sim/sim_transport.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define REGION (256u << 10)
#define WORLD_NODES 17
#define HEARTBEAT (100 * KVF_MS)
#define DEAD (1 * KVF_SEC)
#define SEED 99ull
#define SECRET "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

struct world;

struct node {
    struct world *world;
    char name[16];
    uint64_t incarnation;
    struct kvf_transport *t;
    struct kvf_region *region;
    uint8_t *base;
    struct kvf_secret *secret;
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
    struct node node[WORLD_NODES];
    unsigned n;
    unsigned requests_max, peers_max;
    uint64_t inflight;
    unsigned pieces;      /* of a new node's region that are ready at once */
    uint64_t piece_bytes;
    const char *secret;   /* of a new node, as in its file; NULL: none */
    FILE *log;            /* of a new node */
};

/* ------------------------------------------------------------------------------------------------ nodes */
static inline void on_up(void *arg, struct kvf_peer *peer)
{
    struct node *n = arg;
    n->ups++;
    n->last_peer = peer;
}

static inline void on_down(void *arg, struct kvf_peer *peer, enum kvf_status why)
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

static inline void ignore_done(void *arg, enum kvf_status status) {}

static inline void on_message(void *arg, struct kvf_peer *peer, const struct kvf_message *m)
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
    kvf_fabric_reply(peer, m->request, KVF_ERR_NOT_FOUND, &part, m->bytes ? 1 : 0, ignore_done, NULL);
}

static inline void on_stranger(void *arg, const char *name, uint64_t incarnation, const void *address, size_t bytes)
{
    struct node *n = arg;
    struct kvf_peer *peer;
    n->strangers++;
    if (n->adds_strangers)
        assert_int_equal(kvf_fabric_peer_add(n->fabric, name, incarnation, address, bytes, &peer), KVF_OK);
}

/* Piece i of the node's region becomes ready: all of it, or as many as w->pieces are cut from it. */
static inline void add_piece(struct node *n, unsigned i)
{
    uint64_t bytes = n->world->piece_bytes;
    assert_int_equal(n->t->ops->region_add(n->t, n->region, i * bytes, bytes, -1), KVF_OK);
    if (n->fabric)
        kvf_fabric_region_grown(n->fabric);
}

static inline struct kvf_secret *secret_of(const char *text)
{
    struct kvf_secret *secret;
    const char *why;
    if (!text)
        return NULL;
    assert_int_equal(kvf_secret_create(&secret), KVF_OK);
    assert_int_equal(kvf_secret_set(secret, text, strlen(text), &why), KVF_OK);
    return secret;
}

static inline struct node *add_node(struct world *w, const char *name, uint64_t incarnation, enum kvf_way way)
{
    struct node *n = &w->node[w->n++];
    n->world = w;
    n->adds_strangers = n->echoes = true;
    n->incarnation = incarnation;
    snprintf(n->name, sizeof n->name, "%s", name);
    kvf_log_init(&n->log, name, KVF_LOG_DEBUG, w->log);
    n->secret = secret_of(w->secret);
    n->t = sim_net_add(w->net, name, way);
    n->base = aligned_alloc(4096, (REGION + 4095) / 4096 * 4096);
    assert_int_equal(n->t->ops->region_create(n->t, n->base, REGION, &n->region), KVF_OK);
    for (unsigned i = 0; i < w->pieces; i++)
        add_piece(n, i);
    for (unsigned i = 0; i < REGION; i++)
        n->base[i] = (uint8_t)kvf_mix(i, kvf_hash(name, strlen(name), SEED));
    struct kvf_fabric_config c = {
        .env = &w->env.env,
        .transport = n->t,
        .secret = n->secret,
        .log = &n->log,
        .counters = &n->counters,
        .incarnation = incarnation,
        .region = n->region,
        .region_base = n->base,
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

static inline struct world *world_new(void)
{
    struct world *w = calloc(1, sizeof *w);
    sim_env_init(&w->env, SEED);
    w->net = sim_net_create(&w->env.env);
    w->requests_max = 16;
    w->pieces = 1;
    w->piece_bytes = REGION;
    w->peers_max = 4;
    w->inflight = 1 << 20;
    w->secret = SECRET;
    return w;
}

static inline void close_node(struct node *n)
{
    if (!n->fabric)
        return;
    kvf_fabric_destroy(n->fabric);
    n->fabric = NULL;
    kvf_secret_destroy(n->secret);
    n->t->ops->region_destroy(n->t, n->region);
    n->t->ops->destroy(n->t);
}

static inline void world_free(struct world *w)
{
    for (unsigned i = 0; i < w->n; i++)
        close_node(&w->node[i]);
    for (unsigned i = 0; i < w->n; i++)
        free(w->node[i].base); /* others may have read it to the end */
    sim_net_destroy(w->net);
    free(w);
}

/* Until nothing moves at this time. */
static inline void settle(struct world *w)
{
    bool moved = true;
    for (unsigned round = 0; moved; round++) {
        assert_true(round < 10000);
        moved = sim_net_step(w->net);
        for (unsigned i = 0; i < w->n; i++)
            moved |= w->node[i].fabric && kvf_fabric_poll(w->node[i].fabric) > 0;
    }
}

static inline void run_for(struct world *w, uint64_t ns)
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
static inline struct kvf_peer *meet(struct node *n, const struct node *other)
{
    uint8_t address[KVF_ADDRESS_MAX];
    size_t bytes = sizeof address;
    struct kvf_peer *peer;
    assert_int_equal(other->t->ops->address(other->t, address, &bytes), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(n->fabric, other->name, other->incarnation, address, bytes, &peer), KVF_OK);
    return peer;
}

/* A frame from `from` in its session with `to`, as only one who has that session's key can make it. sender and receiver, counter
 * and tag are filled in where they are 0. */
static inline void say(struct node *from, const struct node *to, struct kvf_wire_header h, const void *payload, size_t bytes)
{
    struct kvf_auth *auth = kvf_fabric_peer_find(from->fabric, to->name)->auth;
    uint8_t frame[KVF_WIRE_HEADER_BYTES];
    h.sender = h.sender ? h.sender : kvf_wire_node_id(from->name);
    h.sender_incarnation = h.sender_incarnation ? h.sender_incarnation : from->incarnation;
    h.receiver_incarnation = h.receiver_incarnation ? h.receiver_incarnation : to->incarnation;
    h.counter = ++auth->sent;
    kvf_wire_header_encode(&h, frame);
    kvf_auth_seal(auth, h.type, frame, payload, bytes);
    sim_net_inject(from->t, to->t, frame, sizeof frame, payload, bytes);
}

/* Two nodes that know each other; a pulls by `way`. */
static inline struct world *pair(enum kvf_way way, struct kvf_peer **peer)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, way), *b = add_node(w, "b", 2, way);
    *peer = meet(a, b);
    settle(w);
    assert_true(kvf_peer_is_up(*peer));
    return w;
}

static inline uint64_t refused_by(const struct node *n) { return kvf_counted(&n->counters.messages_refused); }
static inline uint64_t unproved_to(const struct node *n) { return kvf_counted(&n->counters.messages_unproved); }

struct result {
    unsigned count, oks;
    enum kvf_status status;
    uint8_t payload[8192];
    size_t bytes;
};

static inline void on_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct result *r = arg;
    r->count++;
    r->oks += status == KVF_OK;
    r->status = status;
    r->bytes = bytes;
    if (bytes)
        memcpy(r->payload, payload, bytes < sizeof r->payload ? bytes : sizeof r->payload);
}

static inline void on_done(void *arg, enum kvf_status status)
{
    on_reply(arg, status, NULL, 0);
}

static inline enum kvf_status call(struct kvf_peer *peer, const void *data, size_t bytes, uint64_t deadline_ns, struct result *r)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    return kvf_fabric_call(peer, 40, &part, 1, deadline_ns, on_reply, r);
}

static inline enum kvf_status pull1(struct kvf_peer *peer, uint64_t offset, uint32_t bytes, void *to, uint64_t deadline_ns,
                                    struct result *r)
{
    struct kvf_pull_range range = {.offset = offset, .bytes = bytes, .to = to};
    return kvf_fabric_pull(peer, &range, 1, deadline_ns, on_done, r);
}
#endif
