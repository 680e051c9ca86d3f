/* The request table, calls and replies. */
#include "fabric/internal.h"

void kvf_request_init(struct kvf_fabric *fabric)
{
    kvf_ring_init(&fabric->free_requests);
    kvf_ring_init(&fabric->due);
    kvf_ring_init(&fabric->copying);
    kvf_ring_init(&fabric->looking);
    kvf_ring_init(&fabric->serving);
    for (unsigned i = 0; i < fabric->config.requests_max; i++) {
        struct kvf_request_slot *slot = &fabric->requests[i];
        slot->fabric = fabric;
        slot->index = i;
        kvf_ring_init(&slot->of_peer);
        kvf_ring_init(&slot->queue);
        kvf_ring_append(&fabric->free_requests, &slot->queue);
    }
    for (uint32_t i = 0; i < fabric->part_blocks; i++)
        fabric->free_parts[fabric->free_parts_n++] = fabric->part_blocks - 1 - i;
}

struct kvf_request_slot *kvf_request_take(struct kvf_peer *peer, enum kvf_request_kind kind, uint64_t deadline_ns, void *arg)
{
    struct kvf_fabric *fabric = peer->fabric;
    if (kvf_ring_empty(&fabric->free_requests))
        return NULL;
    /* The slot that rested longest: its old id is the least likely to be on its way still. */
    struct kvf_request_slot *slot = KVF_RING_OF(fabric->free_requests.next, struct kvf_request_slot, queue);
    assert(slot->kind == KVF_REQUEST_FREE && slot->held == 0);
    kvf_ring_remove(&slot->queue);
    slot->kind = kind;
    slot->peer = peer;
    slot->ended = slot->called = false;
    slot->status = KVF_OK;
    slot->deadline_ns = deadline_ns;
    slot->reply = NULL;
    slot->done = NULL;
    slot->take = NULL;
    slot->arg = arg;
    slot->n_parts = slot->at_part = slot->asks = 0;
    slot->total = slot->asked = slot->taken = 0;
    slot->sure = slot->looking = false;
    slot->look_part = 0;
    slot->looked = slot->look_range = slot->start_ns = 0;
    kvf_ring_append(&peer->requests, &slot->of_peer);
    kvf_deadlines_add(slot);
    fabric->request_count++;
    return slot;
}

void kvf_request_drop(struct kvf_request_slot *slot)
{
    struct kvf_fabric *fabric = slot->fabric;
    assert(slot->kind != KVF_REQUEST_FREE && slot->held == 0);
    kvf_ring_remove(&slot->of_peer);
    kvf_ring_remove(&slot->queue);
    kvf_deadlines_remove(slot); /* it may never have been sent */
    if (slot->kind == KVF_REQUEST_PULL)
        kvf_pull_release(slot);
    slot->kind = KVF_REQUEST_FREE;
    slot->peer = NULL;
    slot->generation++;
    kvf_ring_append(&fabric->free_requests, &slot->queue);
    fabric->request_count--;
}

uint64_t kvf_request_id(const struct kvf_request_slot *slot)
{
    return (uint64_t)slot->generation << 32 | (slot->index + 1);
}

/* The living call of that id to the peer; NULL when there is none (any more). */
static struct kvf_request_slot *find_call(struct kvf_peer *peer, uint64_t id)
{
    uint64_t number = id & UINT32_MAX;
    if (number == 0 || number > peer->fabric->config.requests_max)
        return NULL;
    struct kvf_request_slot *slot = &peer->fabric->requests[number - 1];
    if (slot->kind != KVF_REQUEST_CALL || slot->ended || slot->generation != id >> 32 || slot->peer != peer)
        return NULL;
    return slot;
}

/* Calls back once and frees the slot unless the transport still holds memory of it. */
static void call_back(struct kvf_request_slot *slot, const void *payload, size_t bytes)
{
    assert(slot->ended && !slot->called);
    slot->called = true;
    kvf_ring_remove(&slot->of_peer);
    kvf_reply_fn reply = slot->reply;
    kvf_done_fn done = slot->done;
    void *arg = slot->arg;
    enum kvf_status status = slot->status;
    bool call = slot->kind == KVF_REQUEST_CALL;
    /* Freed first: the callback may ask for the next thing and must find the slot. */
    if (slot->held == 0)
        kvf_request_drop(slot);
    if (call)
        reply(arg, status, payload, bytes);
    else
        done(arg, status);
}

void kvf_request_mark(struct kvf_request_slot *slot, enum kvf_status status)
{
    assert(slot->kind != KVF_REQUEST_FREE);
    if (slot->ended)
        return;
    slot->ended = true;
    slot->status = status;
    kvf_deadlines_remove(slot);
    if (slot->kind == KVF_REQUEST_PULL)
        kvf_pull_forget(slot);
}

void kvf_request_answer(struct kvf_request_slot *slot, enum kvf_status status, const void *payload, size_t bytes)
{
    assert(slot->kind == KVF_REQUEST_CALL);
    kvf_request_mark(slot, status);
    /* Even if held: the answer proves that the peer has the whole request, so nothing reads the caller's parts any more. */
    call_back(slot, payload, bytes);
}

void kvf_request_end(struct kvf_request_slot *slot, enum kvf_status status)
{
    kvf_request_mark(slot, status);
    if (slot->held == 0)
        call_back(slot, NULL, 0);
}

void kvf_request_end_later(struct kvf_request_slot *slot, enum kvf_status status)
{
    assert(!slot->ended);
    kvf_request_mark(slot, status);
    if (slot->held == 0)
        kvf_ring_append(&slot->fabric->due, &slot->queue);
}

void kvf_request_release(struct kvf_request_slot *slot)
{
    assert(slot->held > 0 && slot->fabric->held_count > 0);
    slot->held--;
    slot->fabric->held_count--;
    if (slot->held > 0 || !slot->ended)
        return;
    if (slot->called)
        kvf_request_drop(slot);
    else
        kvf_ring_append(&slot->fabric->due, &slot->queue);
}

unsigned kvf_request_due(struct kvf_fabric *fabric)
{
    /* What callbacks add waits for the next round, so that this ends. */
    struct kvf_ring batch;
    unsigned n = 0;
    kvf_ring_init(&batch);
    if (kvf_ring_empty(&fabric->due))
        return 0;
    batch = fabric->due;
    batch.next->prev = batch.prev->next = &batch;
    kvf_ring_init(&fabric->due);
    while (!kvf_ring_empty(&batch)) {
        struct kvf_request_slot *slot = KVF_RING_OF(batch.next, struct kvf_request_slot, queue);
        kvf_ring_remove(&slot->queue);
        call_back(slot, NULL, 0);
        n++;
    }
    return n;
}

void kvf_request_deadlines(struct kvf_fabric *fabric, uint64_t now_ns)
{
    /* No more than there are now: callbacks may ask for new things, which are late already, for ever. */
    for (unsigned n = fabric->deadlines_n; n > 0 && kvf_deadlines_next(fabric) <= now_ns; n--) {
        struct kvf_request_slot *slot = fabric->deadlines[0].slot;
        assert(slot->kind != KVF_REQUEST_FREE && !slot->ended);
        /* The transport may still write to, or read from, the caller's memory. Nothing short of ending the link stops it:
         * the callback comes when the link's operations are cancelled. */
        if (slot->held)
            kvf_peer_doom(slot->peer, KVF_ERR_DEADLINE);
        kvf_request_end(slot, KVF_ERR_DEADLINE);
    }
}

bool kvf_fabric_cancel(struct kvf_peer *peer, const void *arg)
{
    for (struct kvf_ring *at = peer->requests.next; at != &peer->requests; at = at->next) {
        struct kvf_request_slot *slot = KVF_RING_OF(at, struct kvf_request_slot, of_peer);
        if (slot->arg != arg || slot->ended || slot->held > 0)
            continue;
        kvf_request_mark(slot, KVF_CANCELLED);
        kvf_request_drop(slot);
        return true;
    }
    return false;
}

/* ------------------------------------------------------------------------------------------------ calls */
static void call_sent(void *arg, enum kvf_status status)
{
    struct kvf_request_slot *slot = arg;
    if (slot->peer && !slot->called)
        kvf_peer_sent(slot->peer, status);
    kvf_request_release(slot);
}

enum kvf_status kvf_fabric_call(struct kvf_peer *peer, uint16_t type, const struct iovec *parts, unsigned n_parts,
                                uint64_t deadline_ns, kvf_reply_fn reply, void *arg)
{
    size_t bytes = kvf_fabric_parts_bytes(parts, n_parts);
    if (type < KVF_MESSAGE_FIRST || !reply || bytes > peer->fabric->payload_max)
        return KVF_ERR_INVALID;
    if (!kvf_peer_usable(peer))
        return KVF_ERR_PEER_LOST;
    if (bytes > peer->payload_max)
        return KVF_ERR_INVALID;
    struct kvf_request_slot *slot = kvf_request_take(peer, KVF_REQUEST_CALL, deadline_ns, arg);
    if (!slot)
        return KVF_ERR_BUSY;
    slot->reply = reply;
    struct kvf_wire_header header = {.type = type, .request = kvf_request_id(slot), .payload_bytes = (uint32_t)bytes};
    header.budget_us = kvf_fabric_budget_us(kvf_now(peer->fabric->config.env), deadline_ns);
    enum kvf_status st;
    if (bytes <= KVF_COPY_MAX) {
        st = kvf_fabric_post_copy(peer, &header, parts, n_parts, NULL, NULL);
    } else {
        slot->held++;
        peer->fabric->held_count++;
        st = kvf_fabric_post(peer, &header, parts, n_parts, call_sent, slot);
        if (st != KVF_OK) {
            slot->held--;
            peer->fabric->held_count--;
        }
    }
    if (st != KVF_OK)
        kvf_request_drop(slot);
    return st;
}

enum kvf_status kvf_fabric_notify(struct kvf_peer *peer, uint16_t type, const void *payload, size_t bytes)
{
    if (type < KVF_MESSAGE_FIRST || bytes > KVF_COPY_MAX)
        return KVF_ERR_INVALID;
    if (!kvf_peer_usable(peer))
        return KVF_ERR_PEER_LOST;
    struct iovec part = {.iov_base = (void *)(uintptr_t)payload, .iov_len = bytes};
    struct kvf_wire_header header = {.type = type, .payload_bytes = (uint32_t)bytes};
    return kvf_fabric_post_copy(peer, &header, &part, bytes ? 1 : 0, NULL, NULL);
}

enum kvf_status kvf_fabric_reply(struct kvf_peer *peer, uint64_t request, enum kvf_status status, const struct iovec *parts,
                                 unsigned n_parts, kvf_done_fn done, void *arg)
{
    size_t bytes = kvf_fabric_parts_bytes(parts, n_parts);
    if (request == 0 || bytes > peer->fabric->payload_max || (bytes > KVF_COPY_MAX && !done))
        return KVF_ERR_INVALID;
    if (!kvf_peer_usable(peer))
        return KVF_ERR_PEER_LOST;
    if (bytes > peer->payload_max)
        return KVF_ERR_INVALID;
    struct kvf_wire_header header = {
        .type = KVF_WIRE_REPLY, .request = request, .status = status, .payload_bytes = (uint32_t)bytes};
    if (bytes <= KVF_COPY_MAX)
        return kvf_fabric_post_copy(peer, &header, parts, n_parts, done, arg);
    return kvf_fabric_post_counted(peer, &header, parts, n_parts, done, arg);
}

/* What a peer may answer: success, or a failure that has a name. The other codes are outcomes of calls to this node (a block is
 * not here, that a session moved): from a peer they would become those of ours. */
static bool may_answer(int32_t status)
{
    switch ((enum kvf_status)status) {
#define KNOWN(name, value, group, text) case KVF_##name:
        KVF_STATUS_MAP(KNOWN)
#undef KNOWN
        return status <= 0;
    }
    return false;
}

void kvf_request_reply(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_request_slot *slot = find_call(peer, header->request);
    if (!slot) {
        kvf_fabric_refuse(peer->fabric, peer, "a reply to no request that is still open");
        return;
    }
    if (!may_answer(header->status)) {
        kvf_fabric_refuse(peer->fabric, peer, "a reply with a status that no reply has");
        kvf_request_answer(slot, KVF_ERR_PEER_PROTOCOL, NULL, 0);
        return;
    }
    kvf_request_answer(slot, (enum kvf_status)header->status, payload, header->payload_bytes);
}
