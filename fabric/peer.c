/* Peers: who they are and whether they live.
 *
 *     FREE -> CONNECTING -> PROVED -> UP -> DOWN -> FREE
 *                 \__________\_____________/
 *
 *   CONNECTING  the link is there; our hello goes out every heartbeat until a proof of the secret answers it (hello.c)
 *   PROVED      there is a session; our proof and welcome went out, theirs is awaited
 *   UP          things may be asked. Our welcome went out before, on the same link, so the peer has it before anything else
 *   DOWN        no link; requests that the transport does not hold have ended. The owner is told when all have
 *
 * A peer is taken DOWN only from poll (doomed first, anywhere) or by its owner's remove, so that nothing ends under the
 * feet of a caller that is in the middle of a post.
 */
#include "base/hash.h"
#include "fabric/internal.h"

/* ------------------------------------------------------------------------------------------------ finding */
static unsigned bucket_of(const struct kvf_fabric *fabric, uint64_t id)
{
    return (unsigned)(kvf_mix(id, 0) & fabric->by_id_mask);
}

struct kvf_peer *kvf_peer_by_id(struct kvf_fabric *fabric, uint64_t id)
{
    for (unsigned at = bucket_of(fabric, id); fabric->by_id[at] != 0; at = (at + 1) & fabric->by_id_mask) {
        struct kvf_peer *peer = &fabric->peers[fabric->by_id[at] - 1];
        if (peer->id == id)
            return peer;
    }
    return NULL;
}

static void index_peer(struct kvf_fabric *fabric, const struct kvf_peer *peer)
{
    unsigned at = bucket_of(fabric, peer->id);
    while (fabric->by_id[at] != 0)
        at = (at + 1) & fabric->by_id_mask;
    fabric->by_id[at] = (uint32_t)(peer - fabric->peers) + 1;
}

/* Peers go seldom: making the table anew is simpler than taking one out of it. */
static void index_all(struct kvf_fabric *fabric)
{
    memset(fabric->by_id, 0, (fabric->by_id_mask + 1) * sizeof fabric->by_id[0]);
    for (unsigned i = 0; i < fabric->peer_slots; i++) {
        if (fabric->peers[i].state != KVF_PEER_FREE)
            index_peer(fabric, &fabric->peers[i]);
    }
}

struct kvf_peer *kvf_fabric_peer_find(struct kvf_fabric *fabric, const char *name)
{
    struct kvf_peer *peer = kvf_peer_by_id(fabric, kvf_wire_node_id(name));
    return peer && strcmp(peer->name, name) == 0 ? peer : NULL;
}

struct kvf_peer *kvf_fabric_peer_at(struct kvf_fabric *fabric, unsigned index)
{
    for (unsigned i = 0; i < fabric->peer_slots; i++) {
        if (fabric->peers[i].state != KVF_PEER_FREE && index-- == 0)
            return &fabric->peers[i];
    }
    return NULL;
}

const char *kvf_peer_name(const struct kvf_peer *peer) { return peer->name; }
uint64_t kvf_peer_incarnation(const struct kvf_peer *peer) { return peer->incarnation; }
bool kvf_peer_is_up(const struct kvf_peer *peer) { return kvf_peer_usable(peer); }
enum kvf_way kvf_peer_way(const struct kvf_peer *peer) 
{
    return peer->n_pieces > 0 ? peer->pieces[0].way : KVF_WAY_ASK;
}
uint64_t kvf_peer_region_bytes(const struct kvf_peer *peer) { return peer->region_bytes; }
size_t kvf_peer_payload_max(const struct kvf_peer *peer)
{
    size_t ours = peer->fabric->payload_max;
    return peer->payload_max < ours ? peer->payload_max : ours;
}

void kvf_peer_about(const struct kvf_peer *peer, struct kvf_peer_about *out)
{
    struct kvf_peer_about about = {.pieces = peer->n_pieces, .pieces_there = peer->pieces_there, .inflight_bytes = peer->inflight,
                                   .served_bytes = peer->served_bytes};
    assert(peer->state != KVF_PEER_FREE && peer->n_pieces <= KVF_REGION_PIECES_MAX);
    const struct kvf_transport_ops *ops = peer->fabric->config.transport->ops;
    about.way = kvf_peer_way(peer);
    about.why = peer->n_pieces == 0 ? "it lends no memory, as far as it has said: messages only" : "";
    if (peer->n_pieces > 0 && ops->remote_why)
        about.why = ops->remote_why(peer->pieces[0].remote);
    if (peer->link && ops->link_describe)
        ops->link_describe(peer->link, about.congestion, sizeof about.congestion);
    about.frame_bytes = kvf_peer_payload_max(peer);
    for (unsigned i = 0; i < peer->n_pieces; i++)
        about.region_bytes[peer->pieces[i].way] += peer->pieces[i].bytes;
    *out = about;
}

void kvf_peer_user_set(struct kvf_peer *peer, void *user) { peer->user = user; }
void *kvf_peer_user(const struct kvf_peer *peer) { return peer->user; }

/* ------------------------------------------------------------------------------------------------ ends of requests */
/* Calls back for every ended request of the peer that is not held. Callbacks may remove the peer, so each round begins at
 * the front and asks whether it is still the same one. */
static void end_unheld(struct kvf_peer *peer)
{
    uint32_t life = peer->life;
    struct kvf_request_slot *slot;
    do {
        slot = NULL;
        for (struct kvf_ring *at = peer->requests.next; at != &peer->requests && !slot; at = at->next) {
            slot = KVF_RING_OF(at, struct kvf_request_slot, of_peer);
            slot = slot->ended && slot->held == 0 ? slot : NULL;
        }
        if (slot)
            kvf_request_end(slot, slot->status);
    } while (slot && peer->life == life);
}

/* ------------------------------------------------------------------------------------------------ add, remove */
static bool name_fits(const char *name)
{
    size_t length = strnlen(name, KVF_NODE_NAME_MAX);
    return length > 0 && length < KVF_NODE_NAME_MAX;
}

static struct kvf_peer *free_slot(struct kvf_fabric *fabric)
{
    if (fabric->peer_count == fabric->config.peers_max)
        return NULL;
    for (unsigned i = 0; i < fabric->peer_slots; i++) {
        struct kvf_peer *peer = &fabric->peers[i];
        if (peer->state == KVF_PEER_FREE && peer->frames_out == 0)
            return peer;
    }
    return NULL;
}

enum kvf_status kvf_fabric_peer_add(struct kvf_fabric *fabric, const char *name, uint64_t incarnation, const void *address,
                                    size_t address_bytes, struct kvf_peer **out)
{
    if (!name_fits(name) || incarnation == 0 || address_bytes == 0 || address_bytes > KVF_ADDRESS_MAX ||
        strcmp(name, fabric->config.name) == 0)
        return KVF_ERR_INVALID;
    struct kvf_peer *peer = kvf_peer_by_id(fabric, kvf_wire_node_id(name));
    if (peer && strcmp(peer->name, name) != 0)
        return KVF_ERR_INVALID; /* two names with one id: 2^-64, and no frame could tell them apart */
    if (peer && peer->incarnation == incarnation) {
        *out = peer;
        return KVF_OK;
    }
    if (peer)
        kvf_fabric_peer_remove(fabric, peer);
    peer = free_slot(fabric);
    if (!peer)
        return KVF_ERR_BUSY;
    struct kvf_transport *t = fabric->config.transport;
    struct kvf_link *link;
    if (!kvf_auth_begin(peer->auth, fabric->config.env))
        return KVF_ERR_UNSUPPORTED;
    enum kvf_status st = t->ops->connect(t, address, address_bytes, peer, &link);
    if (st != KVF_OK)
        return st;
    assert(peer->serve_count == 0 && kvf_ring_empty(&peer->requests) && kvf_ring_empty(&peer->asking));
    if (strcmp(peer->name, name) != 0) /* one that comes again and again is not logged again and again */
        peer->refusal_log_ns = 0;
    memcpy(peer->name, name, strlen(name) + 1);
    peer->id = kvf_wire_node_id(name);
    peer->incarnation = incarnation;
    peer->state = KVF_PEER_CONNECTING;
    peer->link = link;
    peer->payload_max = fabric->payload_max;
    peer->answer_ns = 0;
    peer->proof_out = peer->welcome_owed = false;
    uint64_t now = kvf_now(fabric->config.env);
    peer->heard_ns = peer->sent_ns = now;
    fabric->peer_count++;
    index_peer(fabric, peer);
    st = kvf_hello_send(peer);
    peer->hello_ns = st == KVF_ERR_BUSY ? now + KVF_RETRY_NS : now + fabric->config.heartbeat_ns;
    kvf_fabric_timer_peer(fabric, peer->hello_ns);
    *out = peer;
    return KVF_OK;
}

static void free_peer(struct kvf_peer *peer)
{
    struct kvf_fabric *fabric = peer->fabric;
    /* Requests that the transport still holds go on without their peer. */
    while (!kvf_ring_empty(&peer->requests)) {
        struct kvf_request_slot *slot = KVF_RING_OF(peer->requests.next, struct kvf_request_slot, of_peer);
        assert(slot->ended && slot->held > 0);
        kvf_ring_remove(&slot->of_peer);
        slot->peer = NULL;
    }
    /* Answered calls whose parts are not let go of yet are in no list of the peer's. */
    for (unsigned i = 0; fabric->held_count > 0 && i < fabric->config.requests_max; i++) {
        if (fabric->requests[i].kind != KVF_REQUEST_FREE && fabric->requests[i].peer == peer)
            fabric->requests[i].peer = NULL;
    }
    peer->state = KVF_PEER_FREE;
    peer->life++;
    peer->doom = peer->down_why = peer->suspect = KVF_OK;
    peer->rekey_ns = 0;
    peer->told = false;
    peer->user = NULL;
    peer->id = peer->incarnation = peer->region_bytes = peer->inflight = peer->get_ns = peer->served_bytes = peer->serve_tag = 0;
    fabric->peer_count--;
    index_all(fabric);
}

void kvf_fabric_peer_remove(struct kvf_fabric *fabric, struct kvf_peer *peer)
{
    assert(peer->fabric == fabric && peer->state != KVF_PEER_FREE);
    uint32_t life = peer->life;
    if (peer->state != KVF_PEER_DOWN) {
        if (peer->doom == KVF_OK) {
            peer->doom = KVF_CANCELLED;
            fabric->changes++;
        }
        peer->down_why = peer->doom;
        kvf_peer_cut(peer, KVF_ERR_PEER_LOST);
    } else {
        end_unheld(peer);
    }
    if (peer->life == life && !peer->told) {
        peer->told = true;
        fabric->changes--;
        if (fabric->config.handler.peer_down)
            fabric->config.handler.peer_down(fabric->config.handler.arg, peer, peer->down_why);
    }
    /* The owner may have removed it inside one of the callbacks. */
    if (peer->life == life)
        free_peer(peer);
}

/* ------------------------------------------------------------------------------------------------ down */
void kvf_peer_doom(struct kvf_peer *peer, enum kvf_status why)
{
    assert(why != KVF_OK);
    if (peer->doom != KVF_OK || peer->state == KVF_PEER_FREE || peer->state == KVF_PEER_DOWN)
        return;
    peer->doom = why;
    peer->fabric->changes++;
}

enum kvf_status kvf_peer_why_lost(const struct kvf_peer *peer)
{
    if (peer->state == KVF_PEER_UP)
        return KVF_ERR_PEER_LOST;
    return peer->suspect != KVF_OK ? peer->suspect : KVF_ERR_PEER_UNREACHABLE;
}

void kvf_peer_misbehaved(struct kvf_peer *peer, const char *what)
{
    kvf_fabric_refuse(peer->fabric, peer, what);
    kvf_peer_doom(peer, KVF_ERR_PEER_PROTOCOL);
}

void kvf_peer_cut(struct kvf_peer *peer, enum kvf_status status)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_transport *t = fabric->config.transport;
    assert(peer->state != KVF_PEER_DOWN && peer->state != KVF_PEER_FREE);
    if (peer->state == KVF_PEER_UP && fabric->config.counters)
        kvf_count(&fabric->config.counters->peers_lost, 1);
    peer->state = KVF_PEER_DOWN;
    kvf_serve_forget(peer);
    kvf_region_forget(peer);
    kvf_auth_end(peer->auth);
    t->ops->disconnect(t, peer->link);
    peer->link = NULL;

    /* All are marked before the first callback: none may find the peer's requests half ended. */
    for (struct kvf_ring *at = peer->requests.next; at != &peer->requests; at = at->next)
        kvf_request_mark(KVF_RING_OF(at, struct kvf_request_slot, of_peer), status);
    end_unheld(peer);
}

void kvf_peer_changes(struct kvf_fabric *fabric)
{
    for (unsigned i = 0; fabric->changes > 0 && i < fabric->peer_slots; i++) {
        struct kvf_peer *peer = &fabric->peers[i];
        uint32_t life = peer->life;
        if (peer->doom == KVF_OK || peer->told)
            continue;
        if (peer->state != KVF_PEER_DOWN) {
            peer->down_why = peer->doom;
            kvf_log_info(fabric->config.log, "peer %s is down: %s", peer->name, kvf_status_text(peer->doom));
            kvf_peer_cut(peer, KVF_ERR_PEER_LOST);
        }
        if (peer->life != life || peer->told || !kvf_ring_empty(&peer->requests))
            continue;
        peer->told = true;
        fabric->changes--;
        if (fabric->config.handler.peer_down)
            fabric->config.handler.peer_down(fabric->config.handler.arg, peer, peer->down_why);
    }
}

/* ------------------------------------------------------------------------------------------------ time */
/* The time at which the peer needs to be looked at again. */
static uint64_t peer_timer(struct kvf_peer *peer, uint64_t now)
{
    const struct kvf_fabric_config *config = &peer->fabric->config;
    uint64_t dead = kvf_deadline(peer->heard_ns, config->dead_ns);
    if (now >= dead) {
        kvf_peer_doom(peer, kvf_peer_why_lost(peer));
        return now;
    }
    uint64_t next = kvf_hello_timer(peer, now);
    if (peer->state == KVF_PEER_UP) {
        unsigned pieces = peer->fabric->pieces;
        kvf_region_timer(peer, now);
        uint64_t beat = peer->pieces_told != pieces ? now : kvf_deadline(peer->sent_ns, config->heartbeat_ns);
        if (now >= beat) {
            struct kvf_wire_header header = {.type = KVF_WIRE_HEARTBEAT, .position = pieces};
            enum kvf_status st = kvf_fabric_post(peer, &header, NULL, 0, NULL, NULL);
            peer->pieces_told = st == KVF_OK ? pieces : peer->pieces_told;
            beat = now + (st == KVF_ERR_BUSY ? KVF_RETRY_NS : config->heartbeat_ns);
        }
        next = beat < next ? beat : next;
    }
    return next < dead ? next : dead;
}

void kvf_peer_timers(struct kvf_fabric *fabric, uint64_t now_ns)
{
    if (now_ns < fabric->next_peer_ns)
        return;
    uint64_t next = UINT64_MAX;
    for (unsigned i = 0; i < fabric->peer_slots; i++) {
        struct kvf_peer *peer = &fabric->peers[i];
        if (peer->state == KVF_PEER_FREE || peer->state == KVF_PEER_DOWN || peer->doom != KVF_OK)
            continue;
        uint64_t at = peer_timer(peer, now_ns);
        next = at < next ? at : next;
    }
    fabric->next_peer_ns = next;
}

void kvf_peer_forgive(struct kvf_fabric *fabric, uint64_t now_ns)
{
    for (unsigned i = 0; i < fabric->peer_slots; i++)
        fabric->peers[i].heard_ns = now_ns;
    fabric->next_peer_ns = now_ns;
}
