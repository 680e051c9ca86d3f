/* How a peer comes up: hello, proof, welcome (auth.h has what they are made of).
 *
 *   CONNECTING  our hello goes out every heartbeat; a hello of theirs is answered with our proof
 *   PROVED      their proof fits, and ours went out. Our welcome is the first frame of the session; both go out again every
 *               heartbeat until their welcome comes
 *   UP          a hello with a new nonce is answered still: the peer lost its side of the connection, or changes its secret.
 *               When its proof fits, the next session takes the place of this one, and nothing else changes
 *
 * Until a proof fits, nothing is changed by what anybody sends, but for one thing: what was wrong with it is remembered, so that
 * a peer that never comes up goes DOWN for a reason that helps. All state is the peer's own: hellos of others take none. */
#include "fabric/internal.h"

static struct kvf_auth_party us(const struct kvf_fabric *fabric)
{
    return (struct kvf_auth_party){.name = fabric->config.name, .incarnation = fabric->config.incarnation};
}

static struct kvf_auth_party them(const struct kvf_peer *peer)
{
    return (struct kvf_auth_party){.name = peer->name, .incarnation = peer->incarnation};
}

/* Something in the name of a peer that does not prove it. */
static void unproved(struct kvf_fabric *fabric, struct kvf_peer *peer, enum kvf_status why, const char *text)
{
    if (fabric->config.counters)
        kvf_count(&fabric->config.counters->messages_unproved, 1);
    if (peer && peer->state == KVF_PEER_CONNECTING)
        peer->suspect = why;
    kvf_fabric_refuse(fabric, peer, text);
}

/* ------------------------------------------------------------------------------------------------ out */
enum kvf_status kvf_hello_send(struct kvf_peer *peer)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_transport *t = fabric->config.transport;
    struct kvf_wire_hello hello = {.address_bytes = sizeof hello.address};
    memcpy(hello.name, fabric->config.name, sizeof hello.name);
    enum kvf_status st = t->ops->address(t, hello.address, &hello.address_bytes);
    if (st != KVF_OK)
        return st;
    kvf_auth_hello(peer->auth, fabric->config.secret, us(fabric), them(peer), &hello);
    uint8_t payload[KVF_WIRE_HELLO_BYTES_MAX];
    size_t bytes = sizeof payload;
    st = kvf_wire_hello_encode(&hello, payload, &bytes);
    if (st != KVF_OK)
        return st;
    struct kvf_wire_header header = {.type = KVF_WIRE_HELLO, .payload_bytes = (uint32_t)bytes};
    struct iovec part = {.iov_base = payload, .iov_len = bytes};
    return kvf_fabric_post_copy(peer, &header, &part, 1, NULL, NULL);
}

/* Of another life of the slot, too, it only lets the next proof out a little early. */
static void proof_sent(void *arg, enum kvf_status status)
{
    struct kvf_peer *peer = arg;
    (void)status;
    peer->proof_out = false;
}

static enum kvf_status send_proof(struct kvf_peer *peer, const struct kvf_wire_proof *proof)
{
    uint8_t payload[KVF_WIRE_PROOF_BYTES];
    kvf_wire_proof_encode(proof, payload);
    struct kvf_wire_header header = {.type = KVF_WIRE_PROOF, .payload_bytes = sizeof payload};
    struct iovec part = {.iov_base = payload, .iov_len = sizeof payload};
    peer->proof_out = true; /* before: it may be over at once */
    enum kvf_status st = kvf_fabric_post_copy(peer, &header, &part, 1, proof_sent, peer);
    if (st != KVF_OK)
        peer->proof_out = false;
    return st;
}

/* One that cannot go out now is owed: the timer sends it. */
static enum kvf_status send_welcome(struct kvf_peer *peer, bool heard)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_wire_welcome welcome = {.payload_max = (uint32_t)fabric->payload_max};
    uint8_t payload[KVF_WIRE_WELCOME_BYTES];
    if (fabric->region) {
        welcome.region_base = (uintptr_t)fabric->region;
        welcome.region_bytes = fabric->config.region_bytes;
    }
    enum kvf_status st = kvf_wire_welcome_encode(&welcome, payload);
    assert(st == KVF_OK);
    struct kvf_wire_header header = {.type = KVF_WIRE_WELCOME, .payload_bytes = sizeof payload, .position = fabric->pieces};
    header.flags = heard ? KVF_WIRE_FLAG_HEARD : 0;
    struct iovec part = {.iov_base = payload, .iov_len = sizeof payload};
    st = kvf_fabric_post_copy(peer, &header, &part, 1, NULL, NULL);
    if (st == KVF_OK)
        peer->pieces_told = fabric->pieces;
    peer->welcome_owed = st == KVF_ERR_BUSY;
    if (peer->welcome_owed) {
        peer->hello_ns = kvf_now(fabric->config.env) + KVF_RETRY_NS;
        kvf_fabric_timer_peer(fabric, peer->hello_ns);
    }
    return st;
}

/* Makes our proof over that nonce of the peer's, and sends it. */
static enum kvf_status prove(struct kvf_peer *peer, const uint8_t *nonce)
{
    kvf_auth_prove(peer->auth, peer->fabric->config.secret, us(peer->fabric), them(peer), nonce);
    enum kvf_status st = send_proof(peer, &peer->auth->proof);
    peer->auth->proved = st == KVF_OK;
    return st;
}

/* ------------------------------------------------------------------------------------------------ in */
void kvf_hello_heard(struct kvf_fabric *fabric, struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_wire_hello hello;
    if (kvf_wire_hello_decode(payload, header->payload_bytes, &hello) != KVF_OK ||
        kvf_wire_node_id(hello.name) != header->sender || strcmp(hello.name, fabric->config.name) == 0) {
        unproved(fabric, peer, KVF_ERR_PEER_PROTOCOL, "a malformed hello");
        return;
    }
    struct kvf_auth_party sender = {.name = hello.name, .incarnation = header->sender_incarnation};
    if (header->receiver_incarnation != fabric->config.incarnation) {
        unproved(fabric, peer, KVF_ERR_STALE, "a hello to another incarnation");
        return;
    }
    if (kvf_auth_hello_check(fabric->config.secret, sender, us(fabric), &hello) != KVF_OK) {
        unproved(fabric, peer, KVF_ERR_PEER_AUTH, "a hello with another cluster secret, or none");
        return;
    }
    if (!peer || strcmp(peer->name, hello.name) != 0) {
        if (fabric->config.handler.stranger)
            fabric->config.handler.stranger(fabric->config.handler.arg, hello.name, header->sender_incarnation, hello.address,
                                            hello.address_bytes);
        return;
    }
    if (peer->state == KVF_PEER_DOWN || peer->doom != KVF_OK)
        return;
    struct kvf_auth *auth = peer->auth;
    bool of_session = auth->established && memcmp(hello.nonce, auth->heard.nonce, sizeof hello.nonce) == 0;
    if (of_session && auth->confirmed) {
        unproved(fabric, peer, KVF_ERR_STALE, "a hello that was said before");
        return;
    }
    /* Who recorded it can say it too. So it is no sign of life, and what the link is used for comes before answers. While the
     * peer must prove another secret, only one that was answered just now waits: others' must not keep its own from us. */
    uint64_t now = kvf_now(fabric->config.env);
    bool again = of_session || (auth->proved && memcmp(hello.nonce, auth->proof.answers, sizeof hello.nonce) == 0);
    if (now < peer->answer_ns && (again || peer->rekey_ns == 0)) {
        kvf_fabric_refuse(fabric, peer, "more hellos than a peer says");
        return;
    }
    /* On a link that does not connect they would pile up, and take what sends to others need. */
    if (peer->proof_out)
        return;
    peer->answer_ns = now + KVF_ANSWER_NS;
    /* What cannot be sent now comes with their next hello. */
    if (of_session)
        send_proof(peer, &auth->said);
    else
        prove(peer, hello.nonce);
}

/* The peer has proved itself, and our proof is on its way. */
static void begin_session(struct kvf_peer *peer, const struct kvf_wire_proof *proof)
{
    struct kvf_fabric *fabric = peer->fabric;
    const struct kvf_fabric_config *config = &fabric->config;
    uint64_t now = kvf_now(config->env), before_until = kvf_deadline(now, config->dead_ns);
    if (peer->rekey_ns != 0 && peer->rekey_ns < before_until)
        before_until = peer->rekey_ns; /* a secret that is not accepted any more is worth nothing after it */
    if (!kvf_auth_establish(peer->auth, config->secret, them(peer), us(fabric), proof, config->env, before_until)) {
        kvf_log_error(config->log, "peer %s: this machine gives no random numbers that are good enough", peer->name);
        kvf_peer_doom(peer, KVF_ERR_UNSUPPORTED);
        return;
    }
    peer->heard_ns = now;
    peer->suspect = KVF_OK;
    peer->answer_ns = 0; /* should it begin again */
    peer->rekey_ns = 0; /* both proofs were made with what is accepted now */
    if (peer->state == KVF_PEER_CONNECTING)
        peer->state = KVF_PEER_PROVED;
    peer->hello_ns = now + (send_welcome(peer, false) == KVF_OK ? config->heartbeat_ns : KVF_RETRY_NS);
    kvf_fabric_timer_peer(fabric, peer->hello_ns);
}

void kvf_hello_proof(struct kvf_fabric *fabric, struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_wire_proof proof;
    if (kvf_wire_proof_decode(payload, header->payload_bytes, &proof) != KVF_OK) {
        unproved(fabric, peer, KVF_ERR_PEER_PROTOCOL, "a malformed proof");
        return;
    }
    if (!peer || header->receiver_incarnation != fabric->config.incarnation || peer->state == KVF_PEER_DOWN ||
        peer->doom != KVF_OK) {
        unproved(fabric, peer, KVF_ERR_STALE, "a proof from or to an incarnation that is not known");
        return;
    }
    struct kvf_auth *auth = peer->auth;
    enum kvf_status st = kvf_auth_proof_check(auth, fabric->config.secret, them(peer), us(fabric), &proof);
    if (st != KVF_OK) {
        bool stale = st == KVF_ERR_STALE;
        unproved(fabric, peer, st, stale ? "a proof that answers no nonce of now" : "a proof with another cluster secret, or none");
        return;
    }
    /* Ours first, and over the same nonce: what we say in the session must find that it knows us. If it cannot go out now,
     * theirs is forgotten; it comes again when they hear our next hello. */
    bool said = auth->proved && memcmp(auth->proof.answers, proof.nonce, sizeof proof.nonce) == 0;
    if (said || prove(peer, proof.nonce) == KVF_OK)
        begin_session(peer, &proof);
}

void kvf_hello_welcome(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_wire_welcome welcome;
    if (kvf_wire_welcome_decode(payload, header->payload_bytes, &welcome) != KVF_OK) {
        kvf_peer_misbehaved(peer, "a malformed welcome");
        return;
    }
    bool was_up = peer->state == KVF_PEER_UP;
    if (was_up && (welcome.region_base != peer->region_base || welcome.region_bytes != peer->region_bytes)) {
        kvf_peer_misbehaved(peer, "a welcome to another region");
        return;
    }
    peer->payload_max = welcome.payload_max;
    peer->region_base = welcome.region_base;
    peer->region_bytes = welcome.region_bytes;
    /* Nothing may go out before our own. When it went, theirs comes again. */
    if (!was_up && peer->welcome_owed && send_welcome(peer, false) != KVF_OK)
        return;
    peer->state = KVF_PEER_UP;
    kvf_region_news(peer, header->position);
    kvf_fabric_timer_peer(fabric, peer->heard_ns);
    if (was_up) {
        if (!(header->flags & KVF_WIRE_FLAG_HEARD))
            send_welcome(peer, true);
        return;
    }
    kvf_log_info(fabric->config.log, "peer %s is up", peer->name);
    if (fabric->config.handler.peer_up)
        fabric->config.handler.peer_up(fabric->config.handler.arg, peer);
}

/* ------------------------------------------------------------------------------------------------ time */
uint64_t kvf_hello_timer(struct kvf_peer *peer, uint64_t now_ns)
{
    enum kvf_status st = KVF_OK;
    bool waits = peer->state != KVF_PEER_UP || peer->rekey_ns != 0 || peer->welcome_owed;
    if (!waits)
        return UINT64_MAX;
    if (peer->rekey_ns != 0 && now_ns >= peer->rekey_ns) {
        kvf_peer_doom(peer, KVF_ERR_PEER_AUTH);
        return now_ns;
    }
    if (now_ns < peer->hello_ns)
        return peer->hello_ns;
    if (peer->state == KVF_PEER_PROVED) {
        st = send_proof(peer, &peer->auth->said);
        if (st == KVF_OK)
            st = send_welcome(peer, false);
    } else {
        if (peer->welcome_owed)
            st = send_welcome(peer, false);
        if (st == KVF_OK && (peer->state != KVF_PEER_UP || peer->rekey_ns != 0))
            st = kvf_hello_send(peer);
    }
    peer->hello_ns = now_ns + (st == KVF_ERR_BUSY ? KVF_RETRY_NS : peer->fabric->config.heartbeat_ns);
    return peer->hello_ns;
}

void kvf_fabric_secret_changed(struct kvf_fabric *fabric)
{
    uint64_t now = kvf_now(fabric->config.env);
    for (unsigned i = 0; i < fabric->peer_slots; i++) {
        struct kvf_peer *peer = &fabric->peers[i];
        if (peer->state == KVF_PEER_FREE || peer->state == KVF_PEER_DOWN)
            continue;
        if (!kvf_auth_secret_changed(peer->auth, fabric->config.secret, fabric->config.env, kvf_deadline(now, KVF_REKEY_NS))) {
            kvf_peer_doom(peer, KVF_ERR_UNSUPPORTED);
            continue;
        }
        bool session = peer->state == KVF_PEER_PROVED || peer->state == KVF_PEER_UP;
        if (!session || kvf_auth_current(peer->auth, fabric->config.secret)) {
            peer->rekey_ns = 0;
            continue;
        }
        peer->rekey_ns = kvf_deadline(now, KVF_REKEY_NS);
        peer->hello_ns = now;
        kvf_fabric_timer_peer(fabric, now);
    }
}
