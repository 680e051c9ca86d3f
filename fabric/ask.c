/* PULL frames and their answers: reading a peer's region where the way is to ask.
 *
 * One frame asks for what comes next of as many waiting pulls as fit; the bytes come back in PULL_DATA frames that say where in the
 * sequence of the frame's ranges they begin. What a frame asks for of one pull is a part of it. A pull that ends leaves its parts:
 * their bytes are dropped when they come. A frame of which every part is whole or dropped is over, and its number void.
 *
 *     0 ........ arrived ..... [gap] ..... [there] ...... total      of a frame
 *      |  part: of pull a  |  part: of pull b  |  part: of c  |
 */
#include "fabric/internal.h"

static uint64_t number_of(const struct kvf_peer *peer, const struct kvf_ask *ask)
{
    return (uint64_t)ask->generation << 32 | (uint64_t)(ask - peer->asks_table + 1);
}

static struct kvf_ask *find(const struct kvf_peer *peer, uint64_t number)
{
    uint64_t index = number & UINT32_MAX;
    if (index == 0 || index > KVF_ASKS_MAX)
        return NULL;
    struct kvf_ask *ask = &peer->asks_table[index - 1];
    return ask->n > 0 && ask->generation == number >> 32 ? ask : NULL;
}

/* A part is whole, or its pull ends. */
static void part_over(struct kvf_peer *peer, struct kvf_ask *ask, struct kvf_ask_part *part)
{
    assert(part->slot && part->slot->asks > 0 && ask->living > 0);
    assert(peer->inflight >= part->bytes - part->taken);
    peer->inflight -= part->bytes - part->taken;
    part->slot->asks--;
    part->slot = NULL;
    if (--ask->living > 0)
        return;
    ask->n = 0;
    ask->generation++;
    assert(peer->asks > 0);
    peer->asks--;
}

void kvf_ask_forget(struct kvf_request_slot *slot)
{
    struct kvf_peer *peer = slot->peer;
    for (unsigned i = 0; slot->asks > 0 && i < KVF_ASKS_MAX; i++) {
        struct kvf_ask *ask = &peer->asks_table[i];
        for (unsigned p = 0; p < ask->n; p++)
            if (ask->parts[p].slot == slot)
                part_over(peer, ask, &ask->parts[p]);
    }
    assert(slot->asks == 0);
}

/* ------------------------------------------------------------------------------------------------ asking */
/* What comes next of a pull joins the frame, as far as there is room for it. */
static void add(struct kvf_ask *ask, struct kvf_wire_pull *pull, struct kvf_request_slot *slot, uint64_t room)
{
    uint64_t position = slot->asked, most = room < UINT32_MAX ? room : UINT32_MAX;
    unsigned at_part = slot->at_part;
    while (pull->n < KVF_WIRE_RANGES_MAX && most > 0 && position < slot->total) {
        const struct kvf_pull_part *part = kvf_pull_part(slot, at_part);
        uint64_t skip = position - part->start;
        uint64_t bytes = part->bytes - skip < most ? part->bytes - skip : most;
        pull->ranges[pull->n++] = (struct kvf_wire_range){.offset = part->offset + skip, .bytes = (uint32_t)bytes};
        position += bytes;
        most -= bytes;
        at_part += position == part->start + part->bytes;
    }
    uint32_t bytes = (uint32_t)(position - slot->asked);
    assert(bytes > 0 && ask->n < KVF_ASK_PARTS_MAX);
    ask->parts[ask->n++] = (struct kvf_ask_part){.slot = slot, .from = slot->asked, .bytes = bytes};
    ask->total += bytes;
}

/* Fills a free ask from the waiting pulls, in their order. Nothing else changes. */
static void compose(struct kvf_peer *peer, struct kvf_ask *ask, struct kvf_wire_pull *pull)
{
    uint64_t limit = peer->fabric->config.inflight_bytes;
    pull->n = ask->n = 0;
    ask->total = ask->arrived = 0;
    ask->n_gaps = 0;
    for (struct kvf_ring *at = peer->asking.next; at != &peer->asking; at = at->next) {
        struct kvf_request_slot *slot = KVF_RING_OF(at, struct kvf_request_slot, queue);
        uint64_t under_way = peer->inflight + ask->total;
        if (pull->n == KVF_WIRE_RANGES_MAX || ask->n == KVF_ASK_PARTS_MAX || under_way >= limit)
            return;
        /* One that has its own share on the way leaves room to others. */
        if (slot->way != KVF_WAY_ASK || slot->asks == KVF_PULL_ASKS_MAX)
            continue;
        /* What may be refused takes no others with it. */
        if (ask->n > 0 && !slot->sure)
            return;
        /* Not in crumbs: a part is what is left, or at least a frame full, unless nothing is on its way that would make room. */
        uint64_t room = limit - under_way;
        if (room < slot->total - slot->asked && room < peer->payload_max && under_way > 0)
            return;
        add(ask, pull, slot, room);
        if (!slot->sure)
            return;
    }
}

/* The latest deadline of its pulls: what comes for one that has ended is dropped. */
static uint64_t deadline_of(const struct kvf_ask *ask)
{
    uint64_t deadline_ns = 0;
    for (unsigned i = 0; i < ask->n; i++)
        deadline_ns = ask->parts[i].slot->deadline_ns > deadline_ns ? ask->parts[i].slot->deadline_ns : deadline_ns;
    return deadline_ns;
}

/* The largest frame of data that suits us; 0: any. */
static uint32_t frame_bytes(const struct kvf_peer *peer, const struct kvf_ask *ask)
{
    assert(ask->total > 0);
    if (peer->asks > 0 || ask->total > KVF_ASK_ALONE_BYTES)
        return 0;
    return ask->total > KVF_ASK_SMALL_BYTES ? KVF_ASK_ALONE_FRAME : KVF_ASK_SMALL_FRAME;
}

/* The frame went. */
static void commit(struct kvf_peer *peer, struct kvf_ask *ask)
{
    ask->living = ask->n;
    peer->asks++;
    peer->inflight += ask->total;
    for (unsigned i = 0; i < ask->n; i++) {
        struct kvf_request_slot *slot = ask->parts[i].slot;
        slot->asked += ask->parts[i].bytes;
        slot->asks++;
        while (slot->at_part < slot->n_parts) {
            const struct kvf_pull_part *part = kvf_pull_part(slot, slot->at_part);
            if (slot->asked < part->start + part->bytes)
                break;
            slot->at_part++;
        }
        if (slot->asked == slot->total) {
            kvf_ring_remove(&slot->queue);
            peer->fabric->work--;
        }
    }
}

enum kvf_status kvf_ask_post(struct kvf_peer *peer)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_wire_pull pull = {.n = 0};
    struct kvf_ask *ask = peer->asks_table;
    if (peer->asks == KVF_ASKS_MAX)
        return KVF_ERR_BUSY;
    while (ask->n > 0)
        ask++;
    assert(ask < peer->asks_table + KVF_ASKS_MAX);
    compose(peer, ask, &pull);
    if (ask->n == 0)
        return KVF_ERR_BUSY;
    pull.frame_pages = (uint16_t)(frame_bytes(peer, ask) / KVF_WIRE_PAGE);
    uint8_t payload[KVF_WIRE_PULL_BYTES_MAX];
    size_t bytes = sizeof payload;
    enum kvf_status st = kvf_wire_pull_encode(&pull, payload, &bytes);
    assert(st == KVF_OK);
    struct kvf_wire_header header = {.type = KVF_WIRE_PULL, .request = number_of(peer, ask), .payload_bytes = (uint32_t)bytes};
    header.budget_us = kvf_fabric_budget_us(kvf_now(fabric->config.env), deadline_of(ask));
    struct iovec part = {.iov_base = payload, .iov_len = bytes};
    st = kvf_fabric_post_copy(peer, &header, &part, 1, NULL, NULL);
    if (st == KVF_OK)
        commit(peer, ask);
    else
        ask->n = 0;
    return st;
}

/* ------------------------------------------------------------------------------------------------ answers */
/* Notes that [from, to) is there. False: some of it was there already, or it is too far out of order to be noted. */
static bool note_arrival(struct kvf_ask *ask, uint64_t from, uint64_t to)
{
    struct kvf_ask_gap *gaps = ask->gaps;
    unsigned at = 0;
    if (from < ask->arrived)
        return false;
    while (at < ask->n_gaps && gaps[at].from < from)
        at++;
    if ((at > 0 && gaps[at - 1].to > from) || (at < ask->n_gaps && gaps[at].from < to))
        return false;
    if (from == ask->arrived) {
        ask->arrived = to;
    } else if (at > 0 && gaps[at - 1].to == from) {
        gaps[at - 1].to = to;
    } else if (ask->n_gaps < KVF_ASK_GAPS_MAX) {
        memmove(&gaps[at + 1], &gaps[at], (ask->n_gaps - at) * sizeof gaps[0]);
        gaps[at] = (struct kvf_ask_gap){from, to};
        ask->n_gaps++;
    } else {
        return false;
    }
    while (ask->n_gaps > 0 && gaps[0].from == ask->arrived) {
        ask->arrived = gaps[0].to;
        ask->n_gaps--;
        memmove(&gaps[0], &gaps[1], ask->n_gaps * sizeof gaps[0]);
    }
    return true;
}

static void refused(struct kvf_ask *ask, enum kvf_status why)
{
    /* Each end takes its part out of the frame, and the last one the frame itself. */
    for (unsigned i = 0; i < ask->n; i++)
        if (ask->parts[i].slot)
            kvf_request_end_later(ask->parts[i].slot, why);
}

/* Bytes [from, to) of the frame's sequence go to the pulls whose they are. */
static void bring(struct kvf_peer *peer, struct kvf_ask *ask, uint64_t from, uint64_t to, const uint8_t *data)
{
    uint64_t base = 0;
    for (unsigned i = 0; i < ask->n && base < to; i++) {
        struct kvf_ask_part *part = &ask->parts[i];
        struct kvf_request_slot *slot = part->slot;
        uint64_t low = base > from ? base : from, high = base + part->bytes < to ? base + part->bytes : to;
        uint64_t skip = low - base;
        base += part->bytes;
        if (!slot || low >= high)
            continue;
        uint32_t bytes = (uint32_t)(high - low);
        kvf_pull_bring(slot, part->from + skip, data + (low - from), bytes);
        slot->taken += bytes;
        part->taken += bytes;
        peer->inflight -= bytes;
        if (part->taken == part->bytes)
            part_over(peer, ask, part);
        if (slot->taken == slot->total)
            kvf_request_end_later(slot, KVF_OK);
    }
}

void kvf_ask_data(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_ask *ask = find(peer, header->request);
    if (!ask) {
        kvf_fabric_refuse(peer->fabric, peer, "data of no pull that is still open");
        return;
    }
    if (header->status != KVF_OK) {
        refused(ask, header->status == KVF_ERR_BUSY ? KVF_ERR_BUSY : KVF_ERR_PEER_REFUSED);
        return;
    }
    uint64_t from = header->position, to = from + header->payload_bytes;
    if (to < from || to > ask->total || !note_arrival(ask, from, to)) {
        kvf_fabric_refuse(peer->fabric, peer, "data of a pull that was not asked or is there already");
        return;
    }
    bring(peer, ask, from, to, payload);
}
