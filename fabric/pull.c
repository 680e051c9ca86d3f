/* Reading ranges of a peer's region.
 *
 * A pull is taken for one sequence of bytes: its ranges, one after the other. Up to `asked` they are on their way or there.
 *
 *   WAY_MAPPED  the bytes are copied in portions, poll by poll
 *   WAY_GET     each range is one read of the transport, or several; while one is posted the pull is held. What is there its
 *               owner may look at, in order, until all is
 *   WAY_ASK     a PULL frame asks for what comes next of it and of others (ask.c)
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

/* A range's pieces of so many bytes. */
static unsigned pieces_of(const struct kvf_pull_part *part, uint32_t piece)
{
    return part->bytes / piece + (part->bytes % piece > 0);
}

/* Makes parts of the ranges' pieces, as many as the blocks of parts hold that it has: it takes no more of them. */
static void cut(struct kvf_request_slot *slot)
{
    const unsigned n = slot->n_parts, spare = (KVF_PART_BLOCK - n % KVF_PART_BLOCK) % KVF_PART_BLOCK;
    uint64_t piece = slot->total / KVF_GET_PIECES;
    unsigned all = 0;
    if (spare == 0)
        return;
    piece = piece < KVF_GET_PIECE_MIN ? KVF_GET_PIECE_MIN : piece > KVF_GET_PIECE_MAX ? KVF_GET_PIECE_MAX : piece;
    piece = piece < slot->total / spare + 1 ? slot->total / spare + 1 : piece; /* no more than one for each, and `spare` */
    if (piece > UINT32_MAX - KVF_WIRE_PAGE)
        return; /* no range is longer */
    piece = (piece + KVF_WIRE_PAGE - 1) / KVF_WIRE_PAGE * KVF_WIRE_PAGE;
    for (unsigned i = 0; i < n; i++)
        all += pieces_of(kvf_pull_part(slot, i), (uint32_t)piece);
    assert(all >= n && all <= n + spare);
    slot->n_parts = all;
    /* From the last on, so that none is overwritten before its turn. */
    for (unsigned i = n, at = all; i-- > 0;) {
        const struct kvf_pull_part whole = *kvf_pull_part(slot, i);
        for (unsigned k = pieces_of(&whole, (uint32_t)piece); k-- > 0;) {
            struct kvf_pull_part *part = kvf_pull_part(slot, --at);
            uint32_t skip = k * (uint32_t)piece;
            *part = whole;
            part->offset += skip;
            part->start += skip;
            part->to += skip;
            part->bytes = whole.bytes - skip < piece ? whole.bytes - skip : (uint32_t)piece;
        }
        assert(at >= i);
    }
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
            .slot = slot, .offset = ranges[i].offset, .start = slot->total, .to = ranges[i].to, .bytes = ranges[i].bytes,
            .range = (uint16_t)i};
        slot->total += ranges[i].bytes;
    }
    if (outside) {
        kvf_request_end_later(slot, KVF_ERR_PEER_REFUSED);
        return KVF_OK;
    }
    slot->way = kvf_region_way(peer, slot);
    bool lone = peer->inflight < slot->total; /* else others are looked at meanwhile */
    if (slot->way == KVF_WAY_GET && take && lone && slot->total >= 2 * KVF_GET_PIECE_MIN) {
        slot->start_ns = kvf_now(fabric->config.env);
        if (peer->get_ns < KVF_GET_SLOW_NS)
            cut(slot);
    }
    if (slot->way == KVF_WAY_MAPPED) {
        kvf_ring_append(&fabric->copying, &slot->queue);
    } else {
        kvf_ring_append(&peer->asking, &slot->queue);
        peer->gets += slot->way == KVF_WAY_GET;
        fabric->work++;
        /* While answers are on their way, those that come until the next poll are asked for together. */
        if (slot->way != KVF_WAY_ASK || peer->asks == 0)
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
        slot->take(slot->arg, i, (uint32_t)at, part->to + at, from, slot->way == KVF_WAY_MAPPED, (uint32_t)bytes);
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

void kvf_pull_bring(struct kvf_request_slot *slot, uint64_t position, const uint8_t *from, size_t bytes)
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

static void asked_all(struct kvf_request_slot *slot)
{
    kvf_ring_remove(&slot->queue);
    slot->fabric->work--;
    slot->peer->gets -= slot->way == KVF_WAY_GET;
}

void kvf_pull_forget(struct kvf_request_slot *slot)
{
    bool queued = !kvf_ring_empty(&slot->queue);
    if (queued && slot->way != KVF_WAY_MAPPED && !slot->looking)
        asked_all(slot);
    else if (queued)
        kvf_ring_remove(&slot->queue);
    slot->looking = false;
    if (slot->way == KVF_WAY_ASK)
        kvf_ask_forget(slot); /* what still comes is dropped; the peer stops by itself when the budget is over */
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
/* There is something for the owner to look at, as soon as all is asked for. */
static void look_later(struct kvf_request_slot *slot)
{
    /* While it is asked for it stands in peer->asking, also in a get that completes inside its call. */
    if (!slot->take || slot->ended || slot->looking || !kvf_ring_empty(&slot->queue) || slot->look_part == slot->n_parts ||
        !kvf_pull_part(slot, slot->look_part)->there)
        return;
    kvf_ring_append(&slot->fabric->looking, &slot->queue);
    slot->looking = true;
}

size_t kvf_pull_look(struct kvf_fabric *fabric)
{
    size_t left = KVF_LOOK_BYTES;
    while (left > 0 && !kvf_ring_empty(&fabric->looking)) {
        struct kvf_request_slot *slot = KVF_RING_OF(fabric->looking.next, struct kvf_request_slot, queue);
        const struct kvf_pull_part *part = kvf_pull_part(slot, slot->look_part);
        assert(slot->looking && !slot->ended && part->there && slot->looked >= part->start);
        size_t skip = slot->looked - part->start;
        size_t bytes = part->bytes - skip < left ? part->bytes - skip : left;
        slot->take(slot->arg, part->range, (uint32_t)(slot->looked - slot->look_range), part->to + skip, part->to + skip, false,
                   (uint32_t)bytes);
        left -= bytes;
        slot->looked += bytes;
        if (slot->looked < part->start + part->bytes)
            continue;
        const struct kvf_pull_part *next = ++slot->look_part < slot->n_parts ? kvf_pull_part(slot, slot->look_part) : NULL;
        if (next && next->range != part->range)
            slot->look_range = next->start;
        if (next && next->there)
            continue;
        kvf_ring_remove(&slot->queue);
        slot->looking = false;
    }
    return KVF_LOOK_BYTES - left;
}

/* All is there. One that began alone tells how long that takes. */
static void got_all(struct kvf_request_slot *slot)
{
    struct kvf_peer *peer = slot->peer;
    assert(peer && !slot->ended && slot->taken == slot->total);
    if (slot->start_ns > 0) {
        uint64_t ns = (kvf_now(slot->fabric->config.env) - slot->start_ns) * (1 << 20) / slot->total;
        peer->get_ns = peer->get_ns == 0 ? ns : (7 * peer->get_ns + ns) / 8;
    }
    kvf_request_end_later(slot, KVF_OK);
}

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
    part->there = status == KVF_OK;
    /* Still held by this very read, so this only notes the end; release queues the callback when the last one is over. */
    if (!slot->ended && status != KVF_OK)
        kvf_request_end_later(slot, KVF_ERR_PEER_LOST);
    else if (!slot->ended && slot->taken == slot->total)
        got_all(slot);
    else
        look_later(slot);
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
        if (!slot->ended && slot->asked == slot->total) {
            asked_all(slot);
            look_later(slot);
        }
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

/* ------------------------------------------------------------------------------------------------ steps */
void kvf_pull_step(struct kvf_peer *peer)
{
    struct kvf_ring *at = peer->asking.next;
    enum kvf_status st = KVF_OK;
    while (peer->gets > 0 && at != &peer->asking && st == KVF_OK && kvf_peer_usable(peer)) {
        struct kvf_request_slot *slot = KVF_RING_OF(at, struct kvf_request_slot, queue);
        at = at->next;
        while (slot->way == KVF_WAY_GET && st == KVF_OK && !slot->ended && slot->asked < slot->total)
            st = get_post(slot);
    }
    for (st = KVF_OK; st == KVF_OK && !kvf_ring_empty(&peer->asking) && kvf_peer_usable(peer);)
        st = kvf_ask_post(peer);
}
