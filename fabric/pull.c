/* Reading ranges of a peer's region.
 *
 * A pull is taken for one sequence of bytes: its ranges, one after the other. `asked` runs ahead of `arrived` in it:
 *
 *     0 ........ arrived ...... asked ...... total
 *      all there   [gap] [there]   not yet asked
 *
 *   WAY_MAPPED  the bytes are copied in portions, poll by poll
 *   WAY_GET     each range is one read of the transport; while one is posted the pull is held
 *   WAY_ASK     a PULL frame asks for a piece (up to KVF_WIRE_RANGES_MAX ranges, as many bytes as inflight allows); the
 *               peer's PULL_DATA frames say which position they begin at
 */
#include "fabric/internal.h"

/* Room for n parts. False: there is not enough of it. */
static bool reserve(struct kvf_request_slot *slot, unsigned n)
{
    struct kvf_fabric *fabric = slot->fabric;
    unsigned blocks = (n + KVF_PART_BLOCK - 1) / KVF_PART_BLOCK;
    assert(slot->n_parts == 0 && blocks <= KVF_PART_BLOCKS_MAX);
    if (fabric->free_parts_n < blocks)
        return false;
    for (unsigned i = 0; i < blocks; i++)
        slot->part_blocks[i] = fabric->free_parts[--fabric->free_parts_n];
    slot->n_parts = n;
    return true;
}

void kvf_pull_release(struct kvf_request_slot *slot)
{
    struct kvf_fabric *fabric = slot->fabric;
    unsigned blocks = (slot->n_parts + KVF_PART_BLOCK - 1) / KVF_PART_BLOCK;
    assert(fabric->free_parts_n + blocks <= fabric->part_blocks);
    for (unsigned i = blocks; i-- > 0;)
        fabric->free_parts[fabric->free_parts_n++] = slot->part_blocks[i];
    slot->n_parts = 0;
}

enum kvf_status kvf_fabric_pull(struct kvf_peer *peer, const struct kvf_pull_range *ranges, unsigned n, uint64_t deadline_ns,
                                kvf_done_fn done, void *arg)
{
    return kvf_fabric_pull_take(peer, ranges, n, deadline_ns, NULL, done, arg);
}

enum kvf_status kvf_fabric_pull_take(struct kvf_peer *peer, const struct kvf_pull_range *ranges, unsigned n, uint64_t deadline_ns,
                                     kvf_take_fn take, kvf_done_fn done, void *arg)
{
    struct kvf_fabric *fabric = peer->fabric;
    if (n == 0 || n > KVF_PULL_RANGES_MAX || !done)
        return KVF_ERR_INVALID;
    bool outside = false;
    for (unsigned i = 0; i < n; i++) {
        if (ranges[i].bytes == 0 || !ranges[i].to)
            return KVF_ERR_INVALID;
        outside |= ranges[i].offset > peer->region_bytes || ranges[i].bytes > peer->region_bytes - ranges[i].offset;
    }
    if (!kvf_peer_usable(peer))
        return KVF_ERR_PEER_LOST;
    struct kvf_request_slot *slot = kvf_request_take(peer, KVF_REQUEST_PULL, deadline_ns, arg);
    if (!slot || !reserve(slot, n)) {
        if (slot)
            kvf_request_drop(slot);
        return KVF_ERR_BUSY;
    }
    slot->done = done;
    slot->take = take;
    for (unsigned i = 0; i < n; i++) {
        *kvf_pull_part(slot, i) = (struct kvf_pull_part){
            .slot = slot, .offset = ranges[i].offset, .start = slot->total, .to = ranges[i].to, .bytes = ranges[i].bytes};
        slot->total += ranges[i].bytes;
    }
    if (outside) {
        kvf_request_end_later(slot, KVF_ERR_PEER_REFUSED);
        return KVF_OK;
    }
    slot->way = kvf_region_way(peer, slot);
    if (slot->way == KVF_WAY_MAPPED) {
        kvf_ring_append(&fabric->copying, &slot->queue);
    } else {
        kvf_ring_append(&peer->asking, &slot->queue);
        fabric->work++;
        kvf_pull_step(peer);
    }
    return KVF_OK;
}

/* Bytes of a part, from its byte `at` on, go to their place. */
static void bring(const struct kvf_request_slot *slot, unsigned i, size_t at, const uint8_t *from, size_t bytes)
{
    const struct kvf_pull_part *part = kvf_pull_part(slot, i);
    assert(at < part->bytes && bytes <= part->bytes - at);
    if (slot->take)
        slot->take(slot->arg, i, (uint32_t)at, part->to + at, from, (uint32_t)bytes);
    else
        memcpy(part->to + at, from, bytes);
}

/* The part in which position lies. */
static unsigned part_at(const struct kvf_request_slot *slot, uint64_t position)
{
    unsigned low = 0, high = slot->n_parts;
    assert(position < slot->total);
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (kvf_pull_part(slot, middle)->start <= position)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void asked_all(struct kvf_request_slot *slot)
{
    kvf_ring_remove(&slot->queue);
    slot->fabric->work--;
}

void kvf_pull_forget(struct kvf_request_slot *slot)
{
    struct kvf_peer *peer = slot->peer;
    bool queued = !kvf_ring_empty(&slot->queue);
    if (queued && slot->way != KVF_WAY_MAPPED)
        asked_all(slot);
    else if (queued)
        kvf_ring_remove(&slot->queue);
    if (slot->way == KVF_WAY_ASK) {
        /* What still comes is dropped; the peer stops by itself when the budget of the pull is over. */
        assert(peer->inflight >= slot->asked - slot->taken && peer->asks >= slot->n_pieces);
        peer->inflight -= slot->asked - slot->taken;
        peer->asks -= slot->n_pieces;
        slot->n_pieces = 0;
    }
}

/* ------------------------------------------------------------------------------------------------ mapped */
size_t kvf_pull_copy(struct kvf_fabric *fabric)
{
    size_t left = KVF_MAPPED_BYTES;
    while (left > 0 && !kvf_ring_empty(&fabric->copying)) {
        struct kvf_request_slot *slot = KVF_RING_OF(fabric->copying.next, struct kvf_request_slot, queue);
        const struct kvf_pull_part *part = kvf_pull_part(slot, slot->at_part);
        const struct kvf_peer_piece *piece = &slot->peer->pieces[part->piece];
        assert(piece->mapped && !slot->ended && slot->asked < slot->total);
        size_t at = slot->asked - part->start;
        size_t bytes = part->bytes - at < left ? part->bytes - at : left;
        bring(slot, slot->at_part, at, piece->mapped + (part->offset - piece->offset) + at, bytes);
        left -= bytes;
        slot->asked += bytes;
        if (slot->asked == part->start + part->bytes)
            slot->at_part++;
        if (slot->asked == slot->total)
            kvf_request_end_later(slot, KVF_OK);
    }
    return KVF_MAPPED_BYTES - left;
}

/* ------------------------------------------------------------------------------------------------ get */
static void got(void *arg, enum kvf_status status)
{
    struct kvf_pull_part *part = arg;
    struct kvf_request_slot *slot = part->slot;
    struct kvf_peer *peer = slot->peer;
    if (peer) {
        assert(peer->inflight >= part->bytes);
        peer->inflight -= part->bytes;
        if (status != KVF_OK && !slot->ended)
            kvf_peer_doom(peer, KVF_ERR_PEER_LOST);
    }
    slot->taken += part->bytes;
    /* Still held by this very read, so this only notes the end; release queues the callback when the last one is over. */
    if (!slot->ended && status != KVF_OK)
        kvf_request_end_later(slot, KVF_ERR_PEER_LOST);
    else if (!slot->ended && slot->taken == slot->total)
        kvf_request_end_later(slot, KVF_OK);
    kvf_request_release(slot);
}

static enum kvf_status get_post(struct kvf_request_slot *slot)
{
    struct kvf_peer *peer = slot->peer;
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_transport *t = fabric->config.transport;
    struct kvf_pull_part *part = kvf_pull_part(slot, slot->at_part);
    if (peer->inflight > 0 && peer->inflight + part->bytes > fabric->config.inflight_bytes)
        return KVF_ERR_BUSY;
    /* Before the call: it may complete inside. */
    slot->held++;
    fabric->held_count++;
    slot->at_part++;
    slot->asked += part->bytes;
    peer->inflight += part->bytes;
    const struct kvf_peer_piece *piece = &peer->pieces[part->piece];
    enum kvf_status st = t->ops->get(t, piece->remote, part->offset - piece->offset, part->to, part->bytes, got, part);
    if (st == KVF_OK) {
        if (!slot->ended && slot->asked == slot->total)
            asked_all(slot);
        return KVF_OK;
    }
    slot->held--;
    fabric->held_count--;
    slot->at_part--;
    slot->asked -= part->bytes;
    peer->inflight -= part->bytes;
    if (st != KVF_ERR_BUSY)
        kvf_peer_doom(peer, KVF_ERR_PEER_LOST);
    return st;
}

/* ------------------------------------------------------------------------------------------------ ask */
/* Asks for the next piece of a pull. KVF_OK: go on with it; ERR_BUSY: not now. */
static enum kvf_status ask_post(struct kvf_request_slot *slot)
{
    struct kvf_peer *peer = slot->peer;
    struct kvf_fabric *fabric = peer->fabric;
    uint64_t limit = fabric->config.inflight_bytes;
    if (slot->n_pieces == KVF_PULL_PIECES_MAX || peer->asks >= KVF_ASKS_MAX || peer->inflight >= limit)
        return KVF_ERR_BUSY;
    uint64_t room = limit - peer->inflight, position = slot->asked, left = slot->total - position;
    /* Not in crumbs: a piece is what is left, or at least a frame full, unless nothing is on its way that would make room. */
    if (room < left && room < peer->payload_max && peer->inflight > 0)
        return KVF_ERR_BUSY;
    struct kvf_wire_pull pull = {.n = 0};
    unsigned at_part = slot->at_part;
    while (pull.n < KVF_WIRE_RANGES_MAX && room > 0 && position < slot->total) {
        const struct kvf_pull_part *part = kvf_pull_part(slot, at_part);
        uint64_t skip = position - part->start;
        uint64_t bytes = part->bytes - skip < room ? part->bytes - skip : room;
        pull.ranges[pull.n++] = (struct kvf_wire_range){.offset = part->offset + skip, .bytes = (uint32_t)bytes};
        position += bytes;
        room -= bytes;
        at_part += position == part->start + part->bytes;
    }
    uint8_t payload[KVF_WIRE_PULL_BYTES_MAX];
    size_t bytes = sizeof payload;
    enum kvf_status st = kvf_wire_pull_encode(&pull, payload, &bytes);
    assert(st == KVF_OK);
    struct kvf_wire_header header = {.type = KVF_WIRE_PULL, .request = kvf_request_id(slot), .position = slot->asked};
    header.payload_bytes = (uint32_t)bytes;
    header.budget_us = kvf_fabric_budget_us(kvf_now(fabric->config.env), slot->deadline_ns);
    struct iovec part = {.iov_base = payload, .iov_len = bytes};
    st = kvf_fabric_post_copy(peer, &header, &part, 1, NULL, NULL);
    if (st != KVF_OK)
        return st;
    peer->inflight += position - slot->asked;
    peer->asks++;
    slot->piece_end[slot->n_pieces++] = position;
    slot->asked = position;
    slot->at_part = at_part;
    if (slot->asked == slot->total)
        asked_all(slot);
    return KVF_OK;
}

void kvf_pull_step(struct kvf_peer *peer)
{
    struct kvf_ring *at = peer->asking.next;
    while (at != &peer->asking && kvf_peer_usable(peer)) {
        struct kvf_request_slot *slot = KVF_RING_OF(at, struct kvf_request_slot, queue);
        enum kvf_status st;
        at = at->next;
        do
            st = slot->way == KVF_WAY_GET ? get_post(slot) : ask_post(slot);
        while (st == KVF_OK && !slot->ended && slot->asked < slot->total);
        /* A pull that has its own share on the way leaves room to others; a transport or a peer without room does not. */
        if (st != KVF_OK && slot->n_pieces < KVF_PULL_PIECES_MAX)
            return;
    }
}

static void copy_in(struct kvf_request_slot *slot, uint64_t position, const uint8_t *from, size_t bytes)
{
    unsigned i = part_at(slot, position);
    while (bytes > 0) {
        assert(i < slot->n_parts);
        const struct kvf_pull_part *part = kvf_pull_part(slot, i);
        size_t skip = position - part->start;
        size_t n = part->bytes - skip < bytes ? part->bytes - skip : bytes;
        bring(slot, i++, skip, from, n);
        from += n;
        position += n;
        bytes -= n;
    }
}

/* Notes that [from, to) is there. False: some of it was there already, or it is too far out of order to be noted. */
static bool note_arrival(struct kvf_request_slot *slot, uint64_t from, uint64_t to)
{
    struct kvf_pull_gap *gaps = slot->gaps;
    unsigned at = 0;
    if (from < slot->arrived)
        return false;
    while (at < slot->n_gaps && gaps[at].from < from)
        at++;
    if ((at > 0 && gaps[at - 1].to > from) || (at < slot->n_gaps && gaps[at].from < to))
        return false;
    if (from == slot->arrived) {
        slot->arrived = to;
    } else if (at > 0 && gaps[at - 1].to == from) {
        gaps[at - 1].to = to;
    } else if (slot->n_gaps < KVF_PULL_GAPS_MAX) {
        memmove(&gaps[at + 1], &gaps[at], (slot->n_gaps - at) * sizeof gaps[0]);
        gaps[at] = (struct kvf_pull_gap){from, to};
        slot->n_gaps++;
    } else {
        return false;
    }
    while (slot->n_gaps > 0 && gaps[0].from == slot->arrived) {
        slot->arrived = gaps[0].to;
        slot->n_gaps--;
        memmove(&gaps[0], &gaps[1], slot->n_gaps * sizeof gaps[0]);
    }
    return true;
}

void kvf_pull_data(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_request_slot *slot = kvf_request_find(peer, header->request, KVF_REQUEST_PULL);
    if (!slot || slot->way != KVF_WAY_ASK) {
        kvf_fabric_refuse(fabric, peer, "data of no pull that is still open");
        return;
    }
    if (header->status != KVF_OK) {
        bool busy = header->status == KVF_ERR_BUSY;
        kvf_request_end_later(slot, busy ? KVF_ERR_BUSY : KVF_ERR_PEER_REFUSED);
        return;
    }
    uint64_t from = header->position, to = from + header->payload_bytes;
    if (to < from || to > slot->asked || !note_arrival(slot, from, to)) {
        kvf_fabric_refuse(fabric, peer, "data of a pull that was not asked or is there already");
        return;
    }
    copy_in(slot, from, payload, header->payload_bytes);
    slot->taken += header->payload_bytes;
    peer->inflight -= header->payload_bytes;
    while (slot->n_pieces > 0 && slot->piece_end[0] <= slot->arrived) {
        slot->n_pieces--;
        peer->asks--;
        memmove(&slot->piece_end[0], &slot->piece_end[1], slot->n_pieces * sizeof slot->piece_end[0]);
    }
    if (slot->arrived == slot->total)
        kvf_request_end_later(slot, KVF_OK);
}
