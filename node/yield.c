/* Blocks of ours whose lender wants his memory back (RECLAIM), a batch at a time:
 *
 *     AT_LENDER -> RISING (promote.c: read, verified, into DRAM) -> GONE from there
 *
 * In DRAM such a block is the next to go down, to another lender or the SSD: so DRAM is the one way to anywhere, and the checksums
 * are tested on it. Where neither DRAM nor anything below it has room, or the time is over, the block is dropped: an opaque one is
 * a miss, a session's is listed as lost. The batch is answered when the last of it has gone. A block of a session that is being
 * moved stays: where it lies was told to the new home already. */
#include "node/persist.h"
#include "node/reclaim.h"
#include "node/wire.h"
#include <assert.h>
#include <stdlib.h>

#define YIELDS_MAX 16
#define RECLAIMED_RETRY_NS (5 * KVF_SEC) /* a lender who wants memory back is given nothing for so long */

enum { GIVEN, KEPT, PENDING };

struct yield {
    struct kvf_core *core;
    bool busy;
    struct kvf_node_peer *peer;
    uint64_t incarnation; /* the lender's */
    uint64_t request;
    uint64_t drop_ns;     /* from then on blocks are dropped where nothing has room, */
    uint64_t end_ns;      /* ... and from then on anyway */
    unsigned n, pending;
    struct kvf_place places[KVF_BATCH_MAX];
    uint8_t statuses[KVF_BATCH_MAX];
};

struct kvf_yields {
    struct yield yields[YIELDS_MAX];
    unsigned active;
};

enum kvf_status kvf_yields_create(struct kvf_core *core)
{
    core->yields = calloc(1, sizeof *core->yields);
    if (!core->yields)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < YIELDS_MAX; i++)
        core->yields->yields[i].core = core;
    return KVF_OK;
}

void kvf_yields_destroy(struct kvf_core *core)
{
    free(core->yields);
    core->yields = NULL;
}

bool kvf_yields_idle(const struct kvf_core *core)
{
    return core->yields->active == 0;
}

/* ---------------------------------------------------------------- one block */

/* The block that lies there, or HANDLE_NONE: another does, or none. */
static kvf_handle block_at(struct kvf_core *core, const struct kvf_node_peer *p, const struct kvf_place *place)
{
    kvf_handle h = kvf_index_find(core->index, place->key);
    const struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, h);
    bool there = e && e->tier == KVF_TIER_REMOTE && e->peer == p->number && kvf_entry_location(e) == place->location &&
                 (e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_RISING);
    return there ? h : KVF_HANDLE_NONE;
}

/* Whether the lender may forget what we have no block for. What a session had there is its new home's once it has moved, and where
 * a session is not (or not yet) ours, we do not know. */
static bool is_ours(struct kvf_core *core, struct kvf_key key)
{
    if (key.hi & KVF_OPAQUE_BIT)
        return true;
    const struct kvf_sess *s = kvf_sess_find(core, key.hi);
    return s && (s->state == KVF_SESS_ACTIVE || s->state == KVF_SESS_FROZEN);
}

static void drop(struct kvf_core *core, kvf_handle h)
{
    kvf_count(&core->counters.borrowed_blocks_dropped, 1);
    kvf_block_lose(core, h);
}

/* Moves one on; how it stands. */
static uint8_t step(struct yield *y, const struct kvf_place *place, uint64_t now)
{
    struct kvf_core *core = y->core;
    kvf_handle h = block_at(core, y->peer, place);
    if (h == KVF_HANDLE_NONE) {
        if (kvf_spills_recall(core, y->peer, place->key, place->location))
            return PENDING;
        return is_ours(core, place->key) ? GIVEN : KEPT;
    }
    const struct kvf_entry *e = kvf_index_entry(core->index, h);
    const struct kvf_sess *s = kvf_block_session(core, e);
    if (s && s->state != KVF_SESS_ACTIVE)
        return now < y->end_ns ? PENDING : KEPT;
    if (now >= y->end_ns) {
        drop(core, h);
        return GIVEN;
    }
    if (kvf_persist_fall_back(core, h))
        return GIVEN;
    if (e->state == KVF_BLOCK_RISING || (e->flags & KVF_FLAG_REMOVED) || kvf_rise_yield(core, h))
        return PENDING;
    if (now < y->drop_ns || !core->spill_stuck)
        return PENDING;
    drop(core, h);
    return GIVEN;
}

/* ---------------------------------------------------------------- a batch */

static bool lender_there(const struct yield *y)
{
    return y->peer->up && y->peer->member.incarnation == y->incarnation;
}

static unsigned yield_poll(struct yield *y)
{
    struct kvf_core *core = y->core;
    uint64_t now = kvf_now(core->env);
    unsigned before = y->pending;
    if (!lender_there(y)) { /* its blocks were lost with it */
        y->busy = false;
        core->yields->active--;
        return 1;
    }
    for (unsigned i = 0; i < y->n; i++) {
        if (y->statuses[i] != PENDING)
            continue;
        y->statuses[i] = step(y, &y->places[i], now);
        y->pending -= y->statuses[i] != PENDING;
        kvf_count(&core->counters.borrowed_blocks_yielded, y->statuses[i] == GIVEN);
    }
    if (y->pending > 0)
        return before - y->pending;
    uint8_t payload[2 + KVF_BATCH_MAX];
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_statuses(&w, y->statuses, y->n);
    struct iovec part = {.iov_base = payload, .iov_len = kvf_writer_used(&w)};
    if (kvf_fabric_reply(y->peer->peer, y->request, KVF_OK, &part, 1, NULL, NULL) == KVF_ERR_BUSY && now < y->end_ns)
        return 0;
    y->busy = false;
    core->yields->active--;
    return 1;
}

unsigned kvf_yields_poll(struct kvf_core *core)
{
    unsigned events = 0;
    for (unsigned i = 0; i < YIELDS_MAX && core->yields->active; i++)
        if (core->yields->yields[i].busy)
            events += yield_poll(&core->yields->yields[i]);
    return events;
}

/* ---------------------------------------------------------------- what lenders say */

static void answer(struct kvf_node_peer *p, uint64_t request, enum kvf_status status)
{
    if (request)
        kvf_fabric_reply(p->peer, request, status, NULL, 0, NULL, NULL);
}

static enum kvf_status on_reclaim(struct kvf_core *core, struct kvf_node_peer *from, uint64_t request, struct kvf_reader r)
{
    struct yield *y = NULL;
    for (unsigned i = 0; i < YIELDS_MAX && !y; i++)
        if (!core->yields->yields[i].busy)
            y = &core->yields->yields[i];
    if (!y)
        return KVF_ERR_BUSY;
    uint64_t time_ns = kvf_read_u32(&r) * KVF_MS, now = kvf_now(core->env);
    if (!kvf_wire_places_read(&r, y->places, &y->n)) {
        kvf_count(&core->counters.messages_refused, 1);
        return KVF_ERR_INVALID;
    }
    y->busy = true;
    y->peer = from;
    y->incarnation = from->member.incarnation;
    y->request = request;
    y->drop_ns = kvf_deadline(now, time_ns / 2);
    y->end_ns = kvf_deadline(now, time_ns / 8 * 7); /* the answer has a way to go */
    y->pending = y->n;
    for (unsigned i = 0; i < y->n; i++)
        y->statuses[i] = PENDING;
    core->yields->active++;
    from->lend_retry_ns = kvf_deadline(now, RECLAIMED_RETRY_NS);
    return KVF_IN_PROGRESS;
}

static enum kvf_status on_revoked(struct kvf_core *core, struct kvf_node_peer *from, struct kvf_reader r)
{
    struct kvf_place places[KVF_BATCH_MAX];
    unsigned n;
    if (!kvf_wire_places_read(&r, places, &n)) {
        kvf_count(&core->counters.messages_refused, 1);
        return KVF_ERR_INVALID;
    }
    for (unsigned i = 0; i < n; i++) {
        kvf_handle h = block_at(core, from, &places[i]);
        if (h == KVF_HANDLE_NONE) {
            kvf_spills_recall(core, from, places[i].key, places[i].location);
            continue;
        }
        kvf_count(&core->counters.borrowed_blocks_revoked, 1);
        kvf_block_lose(core, h);
    }
    from->lend_retry_ns = kvf_deadline(kvf_now(core->env), RECLAIMED_RETRY_NS);
    return KVF_OK;
}

void kvf_yield_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    enum kvf_status st = message->type == KVF_MSG_RECLAIM ? on_reclaim(core, from, message->request, r) : on_revoked(core, from, r);
    if (st != KVF_IN_PROGRESS)
        answer(from, message->request, st);
}
