/* Reads by key that other nodes ask of us: a session's new home fetches what still lies here, in DRAM or on SSD. A request
 * is answered in one message: FILLING (blocks on SSD are being read into staging) -> SENDING (the reply is on its way, its
 * memory pinned) -> free. What is not here is answered as a miss. */
#include "node/internal.h"
#include "node/wire.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SERVES_MAX 64
#define FILL_TIMEOUT_NS (5 * KVF_SEC)

struct item {
    struct serve *serve;
    kvf_handle handle;
    struct kvf_key key;
    uint64_t mask;
    bool pinned;   /* read in place in DRAM */
    uint64_t slot; /* of staging; KVF_ARENA_NONE: none */
    const uint8_t *data;
    uint32_t bytes, chunk_bytes; /* of the block: it may be removed while it is read, when the asker has it already */
    uint8_t status; /* 0: good */
};

struct serve {
    struct kvf_core *core;
    bool busy, sending;
    struct kvf_node_peer *peer;
    uint64_t incarnation; /* the peer's when it asked */
    uint64_t request;
    unsigned n, filling;
    struct item items[KVF_BATCH_MAX];
    uint8_t header[2 + KVF_BATCH_MAX];
};

struct kvf_serve {
    struct serve serves[SERVES_MAX];
    unsigned active;
};

enum kvf_status kvf_serves_create(struct kvf_core *core)
{
    core->serves = calloc(1, sizeof *core->serves);
    if (!core->serves)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < SERVES_MAX; i++)
        core->serves->serves[i].core = core;
    return KVF_OK;
}

void kvf_serves_destroy(struct kvf_core *core)
{
    free(core->serves);
    core->serves = NULL;
}

static void serve_free(struct serve *s)
{
    struct kvf_core *core = s->core;
    for (unsigned i = 0; i < s->n; i++) {
        struct item *it = &s->items[i];
        if (it->slot != KVF_ARENA_NONE)
            kvf_arena_free(core->staging, it->slot, it->bytes);
        if (it->pinned)
            kvf_block_let_go(core, it->handle);
    }
    s->busy = false;
    core->serves->active--;
}

static void serve_sent(void *arg, enum kvf_status status)
{
    serve_free(arg);
}

/* Adds the runs of an item's chunks to the reply. false: too many parts or bytes. */
static bool parts_add(struct kvf_core *core, const struct item *it, struct iovec *parts, unsigned *n, size_t *bytes)
{
    for (uint32_t c = 0; c < 64 && c * it->chunk_bytes < it->bytes; c++) {
        if (!(it->mask >> c & 1))
            continue;
        uint32_t offset = c * it->chunk_bytes, left = it->bytes - offset;
        uint32_t size = left < it->chunk_bytes ? left : it->chunk_bytes;
        struct iovec *last = &parts[*n - 1];
        *bytes += size;
        if (*n > 1 && (const uint8_t *)last->iov_base + last->iov_len == it->data + offset) {
            last->iov_len += size;
            continue;
        }
        if (*n == KVF_FRAME_PARTS_MAX)
            return false;
        parts[(*n)++] = (struct iovec){.iov_base = (void *)(uintptr_t)(it->data + offset), .iov_len = size};
    }
    return *bytes <= kvf_fabric_payload_max(core->fabric);
}

static void serve_send(struct serve *s)
{
    struct kvf_core *core = s->core;
    struct iovec parts[KVF_FRAME_PARTS_MAX];
    uint8_t statuses[KVF_BATCH_MAX];
    unsigned n = 1;
    size_t bytes = 2 + s->n;
    bool fits = true;
    for (unsigned i = 0; i < s->n; i++) {
        statuses[i] = s->items[i].status;
        if (statuses[i] == 0 && fits)
            fits = parts_add(core, &s->items[i], parts, &n, &bytes);
    }
    struct kvf_writer w = kvf_writer_of(s->header, sizeof s->header);
    kvf_wire_statuses(&w, statuses, s->n);
    parts[0] = (struct iovec){.iov_base = s->header, .iov_len = kvf_writer_used(&w)};
    enum kvf_status st = KVF_ERR_PEER_LOST;
    bool there = s->peer->up && s->peer->member.incarnation == s->incarnation;
    if (there && fits)
        st = kvf_fabric_reply(s->peer->peer, s->request, KVF_OK, parts, n, serve_sent, s);
    else if (there)
        kvf_fabric_reply(s->peer->peer, s->request, KVF_ERR_INVALID, NULL, 0, NULL, NULL);
    if (st == KVF_OK)
        s->sending = true;
    else if (st != KVF_ERR_BUSY)
        serve_free(s);
}

static void item_read(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct item *it = arg;
    if (status != KVF_OK)
        it->status = 1;
    it->serve->filling--;
}

/* Finds one block: in place in DRAM, or read from SSD into staging. ERR_BUSY: no room now. */
static enum kvf_status item_start(struct serve *s, struct item *it)
{
    struct kvf_core *core = s->core;
    it->handle = kvf_index_find(core->index, it->key);
    struct kvf_entry *e = it->handle == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, it->handle);
    bool here = e && (e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_SPILLING || e->state == KVF_BLOCK_RISING) &&
                (e->tier == KVF_TIER_DRAM || e->tier == KVF_TIER_SSD) && !(e->flags & KVF_FLAG_REMOVED);
    if (!here || (kvf_entry_chunks(e) < 64 && it->mask >> kvf_entry_chunks(e))) {
        it->status = 1;
        return KVF_OK;
    }
    it->bytes = e->bytes;
    it->chunk_bytes = kvf_block_chunk_bytes(core, e);
    if (e->tier == KVF_TIER_DRAM) {
        if (!kvf_entry_pin(e))
            return KVF_ERR_BUSY;
        it->pinned = true;
        it->data = core->memory + kvf_entry_location(e);
        return KVF_OK;
    }
    it->slot = kvf_stage_memory(core, e->bytes, false);
    if (it->slot == KVF_ARENA_NONE)
        return KVF_ERR_BUSY;
    it->data = core->memory + core->staging_at + it->slot;
    enum kvf_status st = kvf_read_start(core, it->handle, it->mask, core->memory + core->staging_at + it->slot,
                                        kvf_deadline(kvf_now(core->env), FILL_TIMEOUT_NS), KVF_PRIORITY_DEMAND,
                                        item_read, it, NULL);
    if (st == KVF_OK)
        s->filling++;
    return st;
}

static void refuse(struct kvf_node_peer *p, uint64_t request, enum kvf_status status)
{
    if (request)
        kvf_fabric_reply(p->peer, request, status, NULL, 0, NULL, NULL);
}

void kvf_serve_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_read_item wanted[KVF_BATCH_MAX];
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    unsigned n;
    if (!kvf_wire_reads_read(&r, wanted, &n)) {
        kvf_count(&core->counters.messages_refused, 1);
        refuse(from, message->request, KVF_ERR_INVALID);
        return;
    }
    struct serve *s = NULL;
    for (unsigned i = 0; i < SERVES_MAX && !s; i++)
        if (!core->serves->serves[i].busy)
            s = &core->serves->serves[i];
    if (!s || message->request == 0) {
        refuse(from, message->request, KVF_ERR_BUSY);
        return;
    }
    s->busy = true;
    s->sending = false;
    s->peer = from;
    s->incarnation = from->member.incarnation;
    s->request = message->request;
    s->n = n;
    s->filling = 0;
    core->serves->active++;
    enum kvf_status st = KVF_OK;
    for (unsigned i = 0; i < n; i++) {
        s->items[i] = (struct item){.serve = s, .key = wanted[i].key, .mask = wanted[i].mask, .slot = KVF_ARENA_NONE};
        if (st == KVF_OK)
            st = item_start(s, &s->items[i]);
        if (st != KVF_OK)
            s->items[i].status = 2; /* not now: the asker comes again */
    }
}

unsigned kvf_serves_poll(struct kvf_core *core)
{
    unsigned events = 0;
    for (unsigned i = 0; i < SERVES_MAX && core->serves->active; i++) {
        struct serve *s = &core->serves->serves[i];
        if (!s->busy || s->sending || s->filling)
            continue;
        serve_send(s);
        events++;
    }
    return events;
}
