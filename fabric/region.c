/* Regions in pieces. Ours grow while the node starts, so a peer learns of pieces one by one, and asks for what it lacks:
 *
 *     welcome, heartbeat position: how many pieces of my region are ready
 *     PIECE_ASK          position: tell me of this piece (the first that I do not know)
 *     PIECE              position: this is it: where it lies in the region, how long it is, its key
 *
 * Nothing is lost when one of them is: the count comes again with every heartbeat, and an ask that stays without an answer goes
 * out again. What lies in a piece that is not known yet can be read all the same, by asking (PULL). */
#include "fabric/internal.h"

static unsigned own_pieces(const struct kvf_fabric *fabric)
{
    const struct kvf_transport_ops *ops = fabric->config.transport->ops;
    return fabric->config.region ? ops->region_pieces(fabric->config.region) : 0;
}

void kvf_fabric_region_grown(struct kvf_fabric *fabric)
{
    fabric->pieces = own_pieces(fabric);
    kvf_fabric_timer_peer(fabric, kvf_now(fabric->config.env));
}

bool kvf_region_ready(const struct kvf_fabric *fabric, uint64_t offset, uint64_t bytes)
{
    const struct kvf_transport_ops *ops = fabric->config.transport->ops;
    for (unsigned i = 0; i < fabric->pieces; i++) {
        const struct kvf_region_piece *piece = ops->region_piece(fabric->config.region, i);
        if (offset < piece->offset || offset - piece->offset >= piece->bytes)
            continue;
        uint64_t inside = piece->bytes - (offset - piece->offset);
        /* What goes on behind the piece's end must be in another. */
        return bytes <= inside || kvf_region_ready(fabric, offset + inside, bytes - inside);
    }
    return false;
}

/* ------------------------------------------------------------------------------------------------ a peer's */
static void ask(struct kvf_peer *peer)
{
    peer->piece_asked_ns = kvf_now(peer->fabric->config.env);
    if (peer->n_pieces >= peer->pieces_there)
        return;
    struct kvf_wire_header header = {.type = KVF_WIRE_PIECE_ASK, .position = peer->n_pieces};
    kvf_fabric_post(peer, &header, NULL, 0, NULL, NULL);
}

void kvf_region_news(struct kvf_peer *peer, uint64_t pieces)
{
    bool waits = peer->n_pieces < peer->pieces_there;
    if (pieces <= peer->pieces_there || pieces > KVF_REGION_PIECES_MAX)
        return;
    peer->pieces_there = (unsigned)pieces;
    if (!waits)
        ask(peer);
}

void kvf_region_timer(struct kvf_peer *peer, uint64_t now_ns)
{
    if (peer->n_pieces < peer->pieces_there && now_ns - peer->piece_asked_ns >= peer->fabric->config.heartbeat_ns)
        ask(peer);
}

void kvf_region_asked(struct kvf_peer *peer, const struct kvf_wire_header *asked)
{
    struct kvf_fabric *fabric = peer->fabric;
    if (asked->position >= fabric->pieces) {
        kvf_peer_misbehaved(peer, "a question for a piece that is not there");
        return;
    }
    const struct kvf_region_piece *own =
        fabric->config.transport->ops->region_piece(fabric->config.region, (unsigned)asked->position);
    uint8_t payload[KVF_WIRE_PIECE_BYTES_MAX];
    size_t bytes = sizeof payload;
    enum kvf_status st = kvf_wire_piece_encode(own, payload, &bytes);
    assert(st == KVF_OK);
    struct kvf_wire_header header = {.type = KVF_WIRE_PIECE, .position = asked->position, .payload_bytes = (uint32_t)bytes};
    struct iovec part = {.iov_base = payload, .iov_len = bytes};
    st = kvf_fabric_post_copy(peer, &header, &part, 1, NULL, NULL);
    (void)st; /* it asks again */
}

void kvf_region_told(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_transport *t = peer->fabric->config.transport;
    struct kvf_region_piece piece;
    if (kvf_wire_piece_decode(payload, header->payload_bytes, &piece) != KVF_OK || piece.offset > peer->region_bytes ||
        piece.bytes > peer->region_bytes - piece.offset || header->position >= KVF_REGION_PIECES_MAX) {
        kvf_peer_misbehaved(peer, "a malformed piece of a region");
        return;
    }
    if (header->position != peer->n_pieces)
        return; /* told twice */
    struct kvf_peer_piece *to = &peer->pieces[peer->n_pieces];
    *to = (struct kvf_peer_piece){.offset = piece.offset, .bytes = piece.bytes, .way = KVF_WAY_ASK};
    enum kvf_status st = t->ops->import(t, peer->link, piece.key, piece.key_bytes, peer->region_base + piece.offset, piece.bytes,
                                        &to->remote, &to->way);
    if (st != KVF_OK) {
        kvf_log_warn(peer->fabric->config.log, "peer %s: its region cannot be reached (%s)", peer->name, kvf_status_name(st));
        kvf_peer_doom(peer, st);
        return;
    }
    to->mapped = to->way == KVF_WAY_MAPPED ? t->ops->remote_mapped(to->remote) : NULL;
    if (to->way == KVF_WAY_MAPPED && !to->mapped)
        to->way = KVF_WAY_ASK;
    peer->n_pieces++;
    if (peer->pieces_there < peer->n_pieces)
        peer->pieces_there = peer->n_pieces;
    ask(peer);
}

void kvf_region_forget(struct kvf_peer *peer)
{
    struct kvf_transport *t = peer->fabric->config.transport;
    for (unsigned i = 0; i < peer->n_pieces; i++) {
        if (peer->pieces[i].remote)
            t->ops->remote_destroy(t, peer->pieces[i].remote);
    }
    peer->n_pieces = peer->pieces_there = peer->pieces_told = 0;
}

const struct kvf_peer_piece *kvf_region_piece_of(const struct kvf_peer *peer, uint64_t offset, uint64_t bytes)
{
    for (unsigned i = 0; i < peer->n_pieces; i++) {
        const struct kvf_peer_piece *piece = &peer->pieces[i];
        if (offset >= piece->offset && offset - piece->offset < piece->bytes)
            return bytes <= piece->bytes - (offset - piece->offset) ? piece : NULL;
    }
    return NULL;
}

enum kvf_way kvf_region_way(const struct kvf_peer *peer, struct kvf_request_slot *slot)
{
    enum kvf_way way = KVF_WAY_ASK;
    for (unsigned i = 0; i < slot->n_parts; i++) {
        struct kvf_pull_part *part = kvf_pull_part(slot, i);
        const struct kvf_peer_piece *piece = kvf_region_piece_of(peer, part->offset, part->bytes);
        if (!piece || (i > 0 && piece->way != way))
            return KVF_WAY_ASK; /* and not sure */
        way = piece->way;
        part->piece = (uint16_t)(piece - peer->pieces);
    }
    slot->sure = true;
    return way;
}
