/* The lender's side: slots of our lent DRAM that hold other nodes' blocks. A slot is RESERVED for a borrower and key,
 * written by PUT, and LENT once COMMIT has verified it whole. It is freed by the borrower's release, or when the borrower's
 * lease has ended; a reservation that is not committed in time is taken back. */
#include "node/internal.h"
#include "node/wire.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define RESERVE_TIMEOUT_NS (30 * KVF_SEC)

enum lent_state { LENT_RESERVED, LENT_WHOLE };

struct kvf_lend {
    struct kvf_index *index; /* of slots: location in our region; peer: the borrower; sums: when reserved, in seconds */
    uint64_t next_sweep_ns;
};

enum kvf_status kvf_lend_create(struct kvf_core *core)
{
    core->lend = calloc(1, sizeof *core->lend);
    if (!core->lend)
        return KVF_ERR_NO_MEMORY;
    if (!core->lent)
        return KVF_OK;
    uint64_t most = kvf_arena_planned(core->lent) / 4096;
    return kvf_index_create(most < core->settings.blocks_max ? most : core->settings.blocks_max, &core->lend->index);
}

void kvf_lend_destroy(struct kvf_core *core)
{
    if (!core->lend)
        return;
    if (core->lend->index)
        kvf_index_destroy(core->lend->index);
    free(core->lend);
    core->lend = NULL;
}

uint64_t kvf_lend_blocks(const struct kvf_core *core)
{
    return core->lend->index ? kvf_index_count(core->lend->index) : 0;
}

static void slot_free(struct kvf_core *core, kvf_handle h)
{
    struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
    kvf_arena_free(core->lent, kvf_entry_location(e) - core->lent_at, e->bytes);
    if (e->peer != KVF_PEER_NONE) {
        core->peers[e->peer].lent_blocks--;
        core->peers[e->peer].lent_bytes -= e->bytes;
    }
    kvf_count(&core->counters.lent_blocks_freed, 1);
    kvf_index_remove(core->lend->index, h);
}

static void free_of(struct kvf_core *core, const struct kvf_node_peer *p, bool reserved_only, uint64_t before_ns)
{
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(core->lend->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
        if (p && e->peer != p->number)
            continue;
        if (reserved_only && (e->state != LENT_RESERVED || e->sums >= before_ns / KVF_SEC))
            continue;
        slot_free(core, h);
    }
}

void kvf_lend_borrower_gone(struct kvf_core *core, const char *name, uint64_t incarnation)
{
    struct kvf_node_peer *p = kvf_cluster_peer(core, name);
    if (!core->lend || !core->lend->index || !p || p->member.incarnation != incarnation || p->lent_blocks == 0)
        return;
    kvf_log_info(&core->log, "node %s is gone: its %llu lent blocks are freed", name, (unsigned long long)p->lent_blocks);
    free_of(core, p, false, 0);
}

static void answer(struct kvf_node_peer *p, uint64_t request, enum kvf_status status, const void *payload, size_t bytes)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)payload, .iov_len = bytes};
    if (request)
        kvf_fabric_reply(p->peer, request, status, &part, bytes ? 1 : 0, NULL, NULL);
}

static enum kvf_status reserve_one(struct kvf_core *core, struct kvf_node_peer *p, const struct kvf_reserve_item *item,
                                   uint64_t *offset)
{
    struct kvf_index *index = core->lend->index;
    if (item->bytes < 1 || item->bytes > core->settings.block_bytes_max)
        return KVF_ERR_INVALID;
    kvf_handle h = kvf_index_find(index, item->key);
    if (h != KVF_HANDLE_NONE) { /* a borrower that gave it up and comes again; nobody else's may be taken */
        if (kvf_index_entry(index, h)->peer != p->number)
            return KVF_ERR_EXISTS;
        slot_free(core, h);
    }
    uint64_t at = kvf_arena_alloc(core->lent, item->bytes);
    if (at == KVF_ARENA_NONE)
        return KVF_ERR_FULL;
    enum kvf_status st = kvf_index_add(index, item->key, &h);
    if (st != KVF_OK) {
        kvf_arena_free(core->lent, at, item->bytes);
        return KVF_ERR_FULL;
    }
    struct kvf_entry *e = kvf_index_entry(index, h);
    kvf_entry_set_location(e, core->lent_at + at);
    e->bytes = item->bytes;
    e->peer = p->number;
    e->state = LENT_RESERVED;
    e->sums = (uint32_t)(kvf_now(core->env) / KVF_SEC);
    p->lent_blocks++;
    p->lent_bytes += item->bytes;
    *offset = kvf_entry_location(e);
    return KVF_OK;
}

static void on_reserve(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    struct kvf_reserve_item items[KVF_BATCH_MAX];
    uint64_t offsets[KVF_BATCH_MAX];
    uint8_t payload[2 + KVF_BATCH_MAX * 8];
    unsigned n, granted = 0;
    if (!kvf_wire_reserve_read(&r, items, &n)) {
        kvf_count(&core->counters.messages_refused, 1);
        answer(p, request, KVF_ERR_INVALID, NULL, 0);
        return;
    }
    enum kvf_status st = KVF_OK;
    while (granted < n && st == KVF_OK) {
        st = reserve_one(core, p, &items[granted], &offsets[granted]);
        granted += st == KVF_OK;
    }
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_granted(&w, offsets, granted);
    answer(p, request, granted ? KVF_OK : st, payload, granted ? kvf_writer_used(&w) : 0);
}

/* Bytes go only into slots that this borrower has reserved and not yet committed. NULL: refused. */
static uint8_t *put_place(struct kvf_core *core, const struct kvf_node_peer *p, const struct kvf_put_item *item)
{
    kvf_handle h = kvf_index_find(core->lend->index, item->key);
    struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->lend->index, h);
    if (!e || e->peer != p->number || e->state != LENT_RESERVED || item->at > e->bytes || item->bytes > e->bytes - item->at)
        return NULL;
    return core->memory + kvf_entry_location(e) + item->at;
}

static void on_put(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    struct kvf_put_item items[KVF_BATCH_MAX];
    unsigned n = 0;
    enum kvf_status st = kvf_wire_put_read(&r, items, &n) ? KVF_OK : KVF_ERR_INVALID;
    for (unsigned i = 0; i < n && st == KVF_OK; i++) {
        uint8_t *to = put_place(core, p, &items[i]);
        if (to)
            memcpy(to, kvf_read_bytes(&r, items[i].bytes), items[i].bytes);
        else
            st = KVF_ERR_INVALID;
    }
    if (st != KVF_OK)
        kvf_count(&core->counters.messages_refused, 1);
    answer(p, request, st, NULL, 0);
}

static bool commit_one(struct kvf_core *core, struct kvf_node_peer *p, const struct kvf_commit_item *item)
{
    kvf_handle h = kvf_index_find(core->lend->index, item->key);
    if (h == KVF_HANDLE_NONE)
        return false;
    struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
    if (e->peer != p->number || kvf_entry_location(e) != item->offset || e->bytes != item->bytes || e->state != LENT_RESERVED)
        return false;
    const uint8_t *data = core->memory + kvf_entry_location(e);
    if (!kvf_block_verify(core->dev, item->seed, data, e->bytes, item->chunk_bytes, UINT64_MAX, item->sums)) {
        kvf_log_warn(&core->log, "a block that node %s wrote here does not match its checksums: refused", p->member.name);
        kvf_count(&core->counters.blocks_corrupt, 1);
        return false;
    }
    e->state = LENT_WHOLE;
    kvf_count(&core->counters.lent_blocks_put, 1);
    return true;
}

static void on_commit(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    uint8_t statuses[KVF_BATCH_MAX], payload[2 + KVF_BATCH_MAX];
    unsigned n = 0;
    struct kvf_commit_item item;
    bool bad = false;
    while (kvf_reader_left(&r) > 0 && !bad) {
        bad = n == KVF_BATCH_MAX || !kvf_wire_commit_read(&r, &item);
        if (!bad)
            statuses[n++] = commit_one(core, p, &item) ? 0 : 1;
    }
    if (bad || n == 0) {
        kvf_count(&core->counters.messages_refused, 1);
        answer(p, request, KVF_ERR_INVALID, NULL, 0);
        return;
    }
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_statuses(&w, statuses, n);
    answer(p, request, KVF_OK, payload, kvf_writer_used(&w));
}

static void on_release(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    struct kvf_key keys[KVF_BATCH_MAX];
    unsigned n;
    if (!kvf_wire_keys_read(&r, keys, &n)) {
        kvf_count(&core->counters.messages_refused, 1);
        answer(p, request, KVF_ERR_INVALID, NULL, 0);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        kvf_handle h = kvf_index_find(core->lend->index, keys[i]);
        if (h != KVF_HANDLE_NONE && kvf_index_entry(core->lend->index, h)->peer == p->number)
            slot_free(core, h);
    }
    answer(p, request, KVF_OK, NULL, 0);
}

/* The session's blocks have another borrower now: a peer, or (NULL) we ourselves. */
static void adopt(struct kvf_core *core, uint64_t session, struct kvf_node_peer *p)
{
    uint16_t number = p ? p->number : KVF_PEER_NONE;
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(core->lend->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
        if (e->key.hi != session || e->state != LENT_WHOLE || e->peer == number)
            continue;
        if (e->peer != KVF_PEER_NONE) {
            core->peers[e->peer].lent_blocks--;
            core->peers[e->peer].lent_bytes -= e->bytes;
        }
        e->peer = number;
        if (p) {
            p->lent_blocks++;
            p->lent_bytes += e->bytes;
        }
    }
}

static void on_adopt(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    uint64_t session = kvf_read_u64(&r);
    if (!r.bad)
        adopt(core, session, p);
    answer(p, request, r.bad ? KVF_ERR_INVALID : KVF_OK, NULL, 0);
}

void kvf_lend_adopt_own(struct kvf_core *core, uint64_t session)
{
    if (core->lend->index)
        adopt(core, session, NULL);
}

void kvf_lend_release_own(struct kvf_core *core, struct kvf_key key)
{
    kvf_handle h = core->lend && core->lend->index ? kvf_index_find(core->lend->index, key) : KVF_HANDLE_NONE;
    if (h != KVF_HANDLE_NONE && kvf_index_entry(core->lend->index, h)->peer == KVF_PEER_NONE)
        slot_free(core, h);
}

void kvf_lend_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    if (!core->lend->index) { /* what lies nowhere is forgotten, and adopted, already */
        bool nothing = message->type == KVF_MSG_RELEASE || message->type == KVF_MSG_RELEASE_ALL || message->type == KVF_MSG_ADOPT;
        answer(from, message->request, nothing ? KVF_OK : KVF_ERR_FULL, NULL, 0);
        return;
    }
    uint64_t now = kvf_now(core->env);
    if (now >= core->lend->next_sweep_ns) {
        core->lend->next_sweep_ns = kvf_deadline(now, RESERVE_TIMEOUT_NS / 4);
        free_of(core, NULL, true, now > RESERVE_TIMEOUT_NS ? now - RESERVE_TIMEOUT_NS : 0);
    }
    switch (message->type) {
    case KVF_MSG_RESERVE:
        on_reserve(core, from, message->request, r);
        break;
    case KVF_MSG_PUT:
        on_put(core, from, message->request, r);
        break;
    case KVF_MSG_COMMIT:
        on_commit(core, from, message->request, r);
        break;
    case KVF_MSG_RELEASE:
        on_release(core, from, message->request, r);
        break;
    case KVF_MSG_RELEASE_ALL:
        free_of(core, from, false, 0);
        answer(from, message->request, KVF_OK, NULL, 0);
        break;
    default:
        on_adopt(core, from, message->request, r);
    }
}
