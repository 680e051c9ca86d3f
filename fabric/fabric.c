/* The fabric's life, its frames, and poll. */
#include "base/bytes.h"
#include "fabric/internal.h"

_Static_assert(KVF_WIRE_TYPE_NODE == KVF_MESSAGE_FIRST, "the node's types begin where ours end");
_Static_assert(KVF_WIRE_NAME_MAX == KVF_NODE_NAME_MAX, "a name that fits here fits in a hello");
_Static_assert(KVF_WIRE_RANGES_MAX <= KVF_FRAME_PARTS_MAX, "the ranges of a pull can be the parts of a frame");
_Static_assert(KVF_AUTH_COVERED_MAX <= KVF_COPY_MAX, "what a tag covers lies in one piece, or fits where it is gathered");
_Static_assert(KVF_WIRE_HELLO_BYTES_MAX <= KVF_COPY_MAX && KVF_WIRE_PULL_BYTES_MAX <= KVF_COPY_MAX, "ours are copied");

#define REFUSAL_LOG_NS (1 * KVF_SEC)        /* between two lines about frames of nobody */
#define REFUSAL_LOG_PEER_NS (10 * KVF_SEC)  /* ... about frames in one peer's name */
#define CLOSE_NS (100 * KVF_MS)
#define CLOSE_ROUNDS 10000 /* a clock that stands still must not hold the close */

uint64_t kvf_fabric_node_id(const char *name)
{
    return kvf_wire_node_id(name);
}

size_t kvf_fabric_payload_max(const struct kvf_fabric *fabric)
{
    return fabric->payload_max;
}

uint32_t kvf_fabric_budget_us(uint64_t now_ns, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX)
        return 0;
    uint64_t left = deadline_ns > now_ns ? (deadline_ns - now_ns) / KVF_US : 0;
    return left == 0 ? 1 : left > UINT32_MAX ? UINT32_MAX : (uint32_t)left;
}

void kvf_fabric_timer_peer(struct kvf_fabric *fabric, uint64_t at_ns)
{
    if (at_ns < fabric->next_peer_ns)
        fabric->next_peer_ns = at_ns;
}

void kvf_fabric_refuse(struct kvf_fabric *fabric, struct kvf_peer *peer, const char *why)
{
    if (fabric->config.counters)
        kvf_count(&fabric->config.counters->messages_refused, 1);
    uint64_t now = kvf_now(fabric->config.env);
    uint64_t *next = peer ? &peer->refusal_log_ns : &fabric->refusal_log_ns;
    if (now < *next)
        return;
    *next = now + (peer ? REFUSAL_LOG_PEER_NS : REFUSAL_LOG_NS);
    kvf_log_warn(fabric->config.log, "refused %s%s: %s", peer ? "in the name of " : "from a node that is no peer",
                 peer ? peer->name : "", why);
}

/* ------------------------------------------------------------------------------------------------ frames out */
size_t kvf_fabric_parts_bytes(const struct iovec *parts, unsigned n_parts)
{
    size_t bytes = 0;
    if (n_parts > KVF_FRAME_PARTS_MAX)
        return SIZE_MAX;
    for (unsigned i = 0; i < n_parts; i++) {
        if (parts[i].iov_len > KVF_WIRE_PAYLOAD_MAX)
            return SIZE_MAX;
        bytes += parts[i].iov_len;
    }
    return bytes;
}

/* Counts and tags the encoded header of a frame of the session. What the tag covers is gathered when it lies in several parts. */
static void seal(const struct kvf_peer *peer, const struct kvf_wire_header *header, uint8_t *bytes, const struct iovec *parts,
                 unsigned n_parts)
{
    uint8_t gathered[KVF_AUTH_COVERED_MAX];
    const void *payload = n_parts > 0 ? parts[0].iov_base : NULL;
    assert(header->counter == peer->auth->sent + 1);
    if (n_parts > 1 && kvf_auth_covers(header->type, header->payload_bytes)) {
        struct kvf_writer w = kvf_writer_of(gathered, sizeof gathered);
        for (unsigned i = 0; i < n_parts; i++)
            kvf_write_bytes(&w, parts[i].iov_base, parts[i].iov_len);
        assert(!w.bad && kvf_writer_used(&w) == header->payload_bytes);
        payload = gathered;
    }
    kvf_auth_seal(peer->auth, header->type, bytes, payload, header->payload_bytes);
}

enum kvf_status kvf_fabric_post(struct kvf_peer *peer, struct kvf_wire_header *header, const struct iovec *parts, unsigned n_parts,
                                kvf_done_fn done, void *arg)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_transport *t = fabric->config.transport;
    /* Our own state is asked before every post: the transport may not know yet that the peer is lost. */
    bool before = header->type == KVF_WIRE_HELLO || header->type == KVF_WIRE_PROOF;
    if (peer->doom != KVF_OK || !peer->link || (!before && !peer->auth->established))
        return KVF_ERR_PEER_LOST;
    header->sender = fabric->id;
    header->sender_incarnation = fabric->config.incarnation;
    header->receiver_incarnation = peer->incarnation;
    header->counter = before ? 0 : peer->auth->sent + 1;
    header->tag = 0;
    uint8_t bytes[KVF_WIRE_HEADER_BYTES];
    kvf_wire_header_encode(header, bytes);
    if (!before)
        seal(peer, header, bytes, parts, n_parts);
    enum kvf_status st = t->ops->send(t, peer->link, bytes, sizeof bytes, parts, n_parts, done, arg);
    if (st == KVF_ERR_BUSY)
        return st;
    if (st != KVF_OK) {
        kvf_peer_doom(peer, kvf_peer_why_lost(peer));
        return KVF_ERR_PEER_LOST;
    }
    if (!before) {
        peer->auth->sent++;
        peer->sent_ns = kvf_now(fabric->config.env); /* a hello is no sign of life */
    }
    if (fabric->config.counters)
        kvf_count(&fabric->config.counters->messages_sent, 1);
    return KVF_OK;
}

static void tx_free(struct kvf_tx *tx)
{
    tx->next = tx->fabric->tx_free;
    tx->fabric->tx_free = tx;
    tx->fabric->tx_used--;
}

static void tx_sent(void *arg, enum kvf_status status)
{
    struct kvf_tx *tx = arg;
    kvf_done_fn done = tx->done;
    void *done_arg = tx->arg;
    if (tx->peer->life == tx->life)
        kvf_peer_sent(tx->peer, status);
    tx_free(tx);
    if (done)
        done(done_arg, status);
}

/* NULL: all are in use. */
static struct kvf_tx *tx_take(struct kvf_peer *peer, kvf_done_fn done, void *arg)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_tx *tx = fabric->tx_free;
    if (!tx)
        return NULL;
    assert(fabric->tx_used < fabric->tx_count);
    fabric->tx_free = tx->next;
    fabric->tx_used++;
    tx->done = done;
    tx->arg = arg;
    tx->peer = peer;
    tx->life = peer->life;
    return tx;
}

static enum kvf_status tx_post(struct kvf_tx *tx, struct kvf_wire_header *header, const struct iovec *parts, unsigned n_parts)
{
    enum kvf_status st = kvf_fabric_post(tx->peer, header, parts, n_parts, tx_sent, tx);
    if (st != KVF_OK)
        tx_free(tx);
    return st;
}

enum kvf_status kvf_fabric_post_copy(struct kvf_peer *peer, struct kvf_wire_header *header, const struct iovec *parts,
                                     unsigned n_parts, kvf_done_fn done, void *arg)
{
    struct kvf_tx *tx = tx_take(peer, done, arg);
    if (!tx)
        return KVF_ERR_BUSY;
    size_t bytes = 0;
    for (unsigned i = 0; i < n_parts; i++) {
        assert(bytes + parts[i].iov_len <= sizeof tx->data);
        if (parts[i].iov_len)
            memcpy(tx->data + bytes, parts[i].iov_base, parts[i].iov_len);
        bytes += parts[i].iov_len;
    }
    struct iovec part = {.iov_base = tx->data, .iov_len = bytes};
    return tx_post(tx, header, &part, bytes ? 1 : 0);
}

enum kvf_status kvf_fabric_post_counted(struct kvf_peer *peer, struct kvf_wire_header *header, const struct iovec *parts,
                                        unsigned n_parts, kvf_done_fn done, void *arg)
{
    struct kvf_tx *tx = tx_take(peer, done, arg);
    return tx ? tx_post(tx, header, parts, n_parts) : KVF_ERR_BUSY;
}

/* ------------------------------------------------------------------------------------------------ frames in */
static void dispatch(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_fabric *fabric = peer->fabric;
    switch (header->type) {
    case KVF_WIRE_HEARTBEAT:
        kvf_region_news(peer, header->position);
        return;
    case KVF_WIRE_PIECE_ASK:
        kvf_region_asked(peer, header);
        return;
    case KVF_WIRE_PIECE:
        kvf_region_told(peer, header, payload);
        return;
    case KVF_WIRE_GOODBYE:
        kvf_peer_doom(peer, KVF_ERR_CLOSED);
        return;
    case KVF_WIRE_WELCOME:
        kvf_hello_welcome(peer, header, payload);
        return;
    case KVF_WIRE_PULL:
        kvf_serve_pull(peer, header, payload);
        return;
    case KVF_WIRE_PULL_DATA:
        kvf_ask_data(peer, header, payload);
        return;
    case KVF_WIRE_REPLY:
        kvf_request_reply(peer, header, payload);
        return;
    default:
        break;
    }
    assert(header->type >= KVF_MESSAGE_FIRST);
    struct kvf_message message = {
        .type = header->type, .request = header->request, .payload = payload, .bytes = header->payload_bytes};
    if (header->budget_us)
        message.deadline_ns = kvf_deadline(kvf_now(fabric->config.env), header->budget_us * KVF_US);
    if (fabric->config.handler.message)
        fabric->config.handler.message(fabric->config.handler.arg, peer, &message);
}

/* A frame that is none. Whoever could tag it is a peer who breaks the protocol; of anybody else it is only counted. */
static void on_malformed(struct kvf_fabric *fabric, const void *data, size_t header_bytes, const void *payload,
                         size_t payload_bytes, uint64_t now)
{
    struct kvf_wire_header header;
    enum kvf_status st = kvf_wire_header_peek(data, header_bytes, &header);
    struct kvf_peer *peer = header.sender ? kvf_peer_by_id(fabric, header.sender) : NULL;
    if (st == KVF_ERR_PEER_VERSION) {
        if (peer && peer->state == KVF_PEER_CONNECTING)
            peer->suspect = st;
        kvf_fabric_refuse(fabric, peer, "another version of the protocol");
        return;
    }
    if (st == KVF_OK && peer && peer->auth->established && header.counter > 0 &&
        kvf_auth_open(peer->auth, &header, data, payload, payload_bytes, now) == KVF_OK)
        kvf_peer_misbehaved(peer, "a malformed frame");
    else
        kvf_fabric_refuse(fabric, peer, "a malformed frame");
}

/* Whether a frame is of the peer's session: that it comes from it, is for us in this life, whole, and for the first time. */
static bool is_of_session(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *data, const void *payload,
                          uint64_t now)
{
    struct kvf_fabric *fabric = peer->fabric;
    enum kvf_status st = kvf_auth_open(peer->auth, header, data, payload, header->payload_bytes, now);
    if (st == KVF_OK)
        return true;
    if (fabric->config.counters)
        kvf_count(&fabric->config.counters->messages_unproved, 1);
    kvf_fabric_refuse(fabric, peer, st == KVF_ERR_STALE ? "a frame that came before" : "a frame that is of no session with it");
    return false;
}

static void on_frame(void *arg, const void *data, size_t header_bytes, const void *payload, size_t payload_bytes)
{
    struct kvf_fabric *fabric = arg;
    struct kvf_wire_header header;
    if (fabric->closing)
        return;
    if (fabric->config.counters)
        kvf_count(&fabric->config.counters->messages_received, 1);
    uint64_t now = kvf_now(fabric->config.env);
    if (kvf_wire_header_decode(data, header_bytes, &header) != KVF_OK || header.payload_bytes != payload_bytes) {
        on_malformed(fabric, data, header_bytes, payload, payload_bytes, now);
        return;
    }
    struct kvf_peer *peer = kvf_peer_by_id(fabric, header.sender);
    bool known = peer && peer->incarnation == header.sender_incarnation;
    if (header.type == KVF_WIRE_HELLO) {
        kvf_hello_heard(fabric, known ? peer : NULL, &header, payload);
        return;
    }
    if (header.type == KVF_WIRE_PROOF) {
        kvf_hello_proof(fabric, known ? peer : NULL, &header, payload);
        return;
    }
    if (!known || header.receiver_incarnation != fabric->config.incarnation) {
        kvf_fabric_refuse(fabric, peer, "a frame from or to an incarnation that is not known");
        return;
    }
    if (peer->state == KVF_PEER_CONNECTING || peer->state == KVF_PEER_DOWN || peer->doom != KVF_OK) {
        kvf_fabric_refuse(fabric, peer, "a frame before its proof or after its end");
        return;
    }
    if (!is_of_session(peer, &header, data, payload, now))
        return;
    bool opens = header.type == KVF_WIRE_WELCOME || header.type == KVF_WIRE_GOODBYE;
    if (peer->state == KVF_PEER_PROVED && !opens) {
        /* Not heard either: who says other things but no welcome goes DOWN after a while, and for this. */
        peer->suspect = KVF_ERR_PEER_PROTOCOL;
        kvf_fabric_refuse(fabric, peer, "a frame before its welcome");
        return;
    }
    if (payload_bytes > fabric->payload_max) { /* our welcome says what we take */
        kvf_peer_misbehaved(peer, "a payload larger than the welcome allows");
        return;
    }
    peer->heard_ns = now;
    dispatch(peer, &header, payload);
}

static void on_link_down(void *arg, struct kvf_link *link, enum kvf_status status)
{
    struct kvf_fabric *fabric = arg;
    struct kvf_peer *peer = fabric->config.transport->ops->link_user(link);
    if (peer->link == link)
        kvf_peer_doom(peer, kvf_peer_why_lost(peer));
}

/* ------------------------------------------------------------------------------------------------ poll */
/* What can be asked for now is, and what can be sent. */
static void step_peers(struct kvf_fabric *fabric)
{
    for (unsigned i = 0; fabric->work > 0 && i < fabric->peer_slots; i++) {
        struct kvf_peer *peer = &fabric->peers[i];
        if (!kvf_ring_empty(&peer->asking))
            kvf_pull_step(peer);
    }
    kvf_serve_step(fabric);
}

unsigned kvf_fabric_poll(struct kvf_fabric *fabric)
{
    struct kvf_transport *t = fabric->config.transport;
    assert(!fabric->polling);
    fabric->polling = true;
    step_peers(fabric); /* before what arrives keeps us busy: pulls since the last poll wait for this */
    unsigned n = t->ops->poll(t);
    /* After a pause of our own (a debugger, a suspended host, an overloaded machine) it was we who were silent: what the
     * peers said meanwhile takes several polls to read, so their silence is counted from now. */
    uint64_t now = kvf_now(fabric->config.env);
    bool paused = fabric->polled_ns > 0 && now - fabric->polled_ns >= fabric->config.dead_ns / 4;
    if (paused)
        kvf_peer_forgive(fabric, now);
    fabric->polled_ns = now;

    n += kvf_request_due(fabric);
    kvf_request_deadlines(fabric, now);
    kvf_peer_timers(fabric, now);
    if (fabric->changes > 0)
        kvf_peer_changes(fabric);
    step_peers(fabric);
    if (!kvf_ring_empty(&fabric->copying))
        n += kvf_pull_copy(fabric) > 0;
    if (!kvf_ring_empty(&fabric->looking)) /* behind what was posted: the wire goes on meanwhile */
        n += kvf_pull_look(fabric) > 0;
    n += kvf_request_due(fabric);
    fabric->polling = false;
    return n;
}

uint64_t kvf_fabric_next_timer(const struct kvf_fabric *fabric)
{
    uint64_t deadline = kvf_deadlines_next(fabric), next = deadline < fabric->next_peer_ns ? deadline : fabric->next_peer_ns;
    if (!kvf_ring_empty(&fabric->copying) || !kvf_ring_empty(&fabric->looking) || !kvf_ring_empty(&fabric->due) ||
        fabric->changes > 0)
        return 0;
    /* Room that is waited for comes with an event of the transport; this is in case it does not. */
    if (fabric->work > 0 && fabric->polled_ns + KVF_RETRY_NS < next)
        next = fabric->polled_ns + KVF_RETRY_NS;
    return next;
}

/* ------------------------------------------------------------------------------------------------ life */
static bool config_fits(const struct kvf_fabric_config *c)
{
    size_t length = strnlen(c->name, sizeof c->name);
    return c->env && c->transport && length > 0 && length < sizeof c->name && c->incarnation != 0 && c->peers_max > 0 &&
           c->requests_max > 0 && c->requests_max < UINT32_MAX && c->inflight_bytes > 0 && c->heartbeat_ns > 0 &&
           c->dead_ns > c->heartbeat_ns && (!c->region || (c->region_base && c->region_bytes > 0));
}

static void free_all(struct kvf_fabric *fabric)
{
    free(fabric->tx);
    free(fabric->writers);
    kvf_secret_free(fabric->auths, fabric->peer_slots * sizeof *fabric->auths);
    free(fabric->by_id);
    free(fabric->free_parts);
    free(fabric->parts);
    free(fabric->requests);
    free(fabric->deadlines);
    free(fabric->asks);
    free(fabric->serves);
    free(fabric->peers);
    free(fabric);
}

static enum kvf_status allocate(struct kvf_fabric *fabric)
{
    const struct kvf_fabric_config *c = &fabric->config;
    /* A few slots more than peers: one that was removed is not reused while the transport still sends from it. */
    fabric->peer_slots = c->peers_max + 8;
    fabric->by_id_mask = 15;
    while (fabric->by_id_mask + 1 < 2 * fabric->peer_slots)
        fabric->by_id_mask = 2 * fabric->by_id_mask + 1;
    fabric->tx_count = c->requests_max + 4 * c->peers_max + 16;
    fabric->peers = calloc(fabric->peer_slots, sizeof *fabric->peers);
    fabric->auths = kvf_secret_alloc(fabric->peer_slots * sizeof *fabric->auths);
    fabric->serves = calloc((size_t)fabric->peer_slots * KVF_SERVES_MAX, sizeof *fabric->serves);
    fabric->asks = calloc((size_t)fabric->peer_slots * KVF_ASKS_MAX, sizeof *fabric->asks);
    fabric->requests = calloc(c->requests_max, sizeof *fabric->requests);
    fabric->deadlines = calloc(c->requests_max, sizeof *fabric->deadlines);
    /* A block for each request, as much again for those with many ranges, and always some of the largest. */
    fabric->part_blocks = 2 * c->requests_max + 4 * KVF_PART_BLOCKS_MAX;
    fabric->parts = calloc((size_t)fabric->part_blocks * KVF_PART_BLOCK, sizeof *fabric->parts);
    fabric->free_parts = calloc(fabric->part_blocks, sizeof *fabric->free_parts);
    fabric->by_id = calloc(fabric->by_id_mask + 1, sizeof *fabric->by_id);
    fabric->tx = calloc(fabric->tx_count, sizeof *fabric->tx);
    fabric->writers = calloc(KVF_MARKS_N, sizeof *fabric->writers);
    if (!fabric->peers || !fabric->auths || !fabric->serves || !fabric->asks || !fabric->requests || !fabric->deadlines ||
        !fabric->parts || !fabric->free_parts || !fabric->by_id || !fabric->tx || !fabric->writers)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < fabric->peer_slots; i++) {
        struct kvf_peer *peer = &fabric->peers[i];
        peer->fabric = fabric;
        peer->auth = &fabric->auths[i];
        peer->serves = fabric->serves + (size_t)i * KVF_SERVES_MAX;
        peer->asks_table = fabric->asks + (size_t)i * KVF_ASKS_MAX;
        kvf_ring_init(&peer->requests);
        kvf_ring_init(&peer->asking);
        kvf_ring_init(&peer->served);
    }
    for (unsigned i = fabric->tx_count; i-- > 0;) {
        fabric->tx[i].fabric = fabric;
        fabric->tx[i].next = fabric->tx_free;
        fabric->tx_free = &fabric->tx[i];
    }
    kvf_request_init(fabric);
    return KVF_OK;
}

enum kvf_status kvf_fabric_create(const struct kvf_fabric_config *config, struct kvf_fabric **out)
{
    if (!config_fits(config))
        return KVF_ERR_INVALID;
    struct kvf_fabric *fabric = calloc(1, sizeof *fabric);
    if (!fabric)
        return KVF_ERR_NO_MEMORY;
    fabric->config = *config;
    enum kvf_status st = allocate(fabric);
    if (st != KVF_OK) {
        free_all(fabric);
        return st;
    }
    struct kvf_transport *t = config->transport;
    fabric->id = kvf_wire_node_id(config->name);
    fabric->region = config->region ? config->region_base : NULL;
    fabric->pieces = config->region ? t->ops->region_pieces(config->region) : 0;
    fabric->payload_max = t->ops->payload_max(t);
    if (fabric->payload_max > KVF_WIRE_PAYLOAD_MAX)
        fabric->payload_max = KVF_WIRE_PAYLOAD_MAX;
    fabric->next_peer_ns = UINT64_MAX;
    fabric->polled_ns = kvf_now(config->env);
    struct kvf_transport_handler handler = {.arg = fabric, .frame = on_frame, .link_down = on_link_down};
    t->ops->handler_set(t, &handler);
    *out = fabric;
    return KVF_OK;
}

static bool outstanding(const struct kvf_fabric *fabric)
{
    return fabric->tx_used > 0 || fabric->held_count > 0 || fabric->frames_out > 0 || !kvf_ring_empty(&fabric->due);
}

/* Drives the transport until it holds nothing of ours, within a time and a number of rounds. */
static void drain(struct kvf_fabric *fabric, uint64_t until_ns)
{
    struct kvf_transport *t = fabric->config.transport;
    for (unsigned round = 0; round < CLOSE_ROUNDS && outstanding(fabric); round++) {
        t->ops->poll(t);
        kvf_request_due(fabric);
        if (kvf_now(fabric->config.env) >= until_ns)
            return;
    }
}

void kvf_fabric_destroy(struct kvf_fabric *fabric)
{
    struct kvf_transport *t = fabric->config.transport;
    uint64_t start = kvf_now(fabric->config.env);
    assert(!fabric->polling);
    fabric->closing = true;
    for (unsigned i = 0; i < fabric->peer_slots; i++) {
        struct kvf_wire_header goodbye = {.type = KVF_WIRE_GOODBYE};
        struct kvf_peer *peer = &fabric->peers[i];
        if (peer->state == KVF_PEER_UP || peer->state == KVF_PEER_PROVED)
            kvf_fabric_post(peer, &goodbye, NULL, 0, NULL, NULL);
    }
    /* A few rounds even when nothing is held: goodbyes carry no memory of ours, but need the transport to be driven. */
    for (unsigned round = 0; round < 16; round++)
        t->ops->poll(t);
    drain(fabric, start + CLOSE_NS / 2);
    for (unsigned i = 0; i < fabric->peer_slots; i++) {
        struct kvf_peer *peer = &fabric->peers[i];
        if (peer->state != KVF_PEER_FREE && peer->state != KVF_PEER_DOWN)
            kvf_peer_cut(peer, KVF_CANCELLED);
    }
    drain(fabric, start + CLOSE_NS);
    t->ops->handler_set(t, &(struct kvf_transport_handler){0});
    if (outstanding(fabric)) {
        /* The transport may still call back into this memory: it is given up rather than freed under it. Nobody else is called
         * back from it: whoever gave us a callback goes when this returns. */
        for (unsigned i = 0; i < fabric->tx_count; i++)
            fabric->tx[i].done = NULL;
        kvf_log_error(fabric->config.log, "the transport did not let go of %u sends in time", fabric->tx_used + fabric->frames_out);
        return;
    }
    free_all(fabric);
}

const struct kvf_fabric_size *kvf_fabric_sizes(void)
{
    static const struct kvf_fabric_size sizes[] = {
        {"kvf_peer", "peer of the fabric", sizeof(struct kvf_peer)},
        {"kvf_auth", "peer of the fabric: its keys", sizeof(struct kvf_auth)},
        {"kvf_serve", "PULL of a peer that waits here, 128 a peer", sizeof(struct kvf_serve)},
        {"kvf_ask", "PULL that a peer owes us an answer to, 64 a peer", sizeof(struct kvf_ask)},
        {"kvf_request_slot", "call or pull in flight", sizeof(struct kvf_request_slot)},
        {"kvf_deadline", "call or pull in flight: when it ends at the latest", sizeof(struct kvf_deadline)},
        {"kvf_pull_part", "range of a pull, 64 at a time", sizeof(struct kvf_pull_part)},
        {"kvf_tx", "message of up to 4 KiB in flight", sizeof(struct kvf_tx)},
        {NULL, NULL, 0},
    };
    _Static_assert(KVF_SERVES_MAX == 128 && KVF_ASKS_MAX == 64 && KVF_PART_BLOCK == 64 && KVF_COPY_MAX == 4096, "as the texts say");
    return sizes;
}
