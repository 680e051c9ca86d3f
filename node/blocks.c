/* Opaque blocks under a key: put, get, exists, remove, in batches, with completions and an event fd.
 *
 * What can be done at once (exists, remove, a get from DRAM, a put into free DRAM) is done in the submit, a get from DRAM and
 * a pin without the lock wherever the index lets them (tiers/index.h); the rest stands in the node's list of pending requests and
 * is looked at in every poll: a put waits for room in DRAM, a get for its bytes in staging or, where the caller's memory is
 * registered and aligned, for the read that goes straight there. */
#include "node/dram.h"
#include "node/persist.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define QUEUES_MAX 256
#define RUN_MAX 64 /* requests that are started together: bits of a mask */
enum pending_state { PENDING_FREE, PENDING_PUT, PENDING_FILL, PENDING_STAGED, PENDING_DIRECT, PENDING_PERSIST };

/* Bytes that one turn of the reactor copies and checks, under the lock: what is larger goes on in the next turn, so that
 * what comes meanwhile waits for little. */
#define TURN_BYTES (256u << 10)

struct pending {
    struct kvf_queue *queue;
    enum pending_state state;
    struct kvf_request request;
    struct kvf_key key; /* in the index */
    uint64_t start_ns, deadline_ns;
    uint32_t stage;
    uint64_t mask, checked; /* chunks wanted; of them, checked */
    uint32_t bytes;         /* of the block when the get began, */
    uint64_t content;       /* ... and what its wanted chunks should be */
    uint64_t place;         /* where it lay when what is here of it was asked for */
    uint64_t slot;          /* FILL: where in DRAM */
    uint64_t copied;        /* FILL: bytes, whole chunks; STAGED: bytes of the range */
    kvf_handle handle;
    bool read_ended, cancelled;
    enum kvf_status read_status;
    struct kvf_keep keep;
    struct pending *next, **at; /* in the node's list, or the queue's free list */
};

struct kvf_queue {
    struct kvf_node *node;
    int fd;
    uint32_t depth, outstanding, n_done, first_done;
    bool closing;
    struct pending *pool, *free;
    struct kvf_completion *done; /* ring of depth */
    struct kvf_queue *next;
};

struct kvf_blocks {
    struct pending *pending;
    uint32_t turn_left; /* of TURN_BYTES */
    unsigned n_queues;
    struct kvf_queue *queues;
};

enum kvf_status kvf_blocks_create(struct kvf_core *core)
{
    core->blocks = calloc(1, sizeof *core->blocks);
    return core->blocks ? KVF_OK : KVF_ERR_NO_MEMORY;
}

static void queue_free(struct kvf_queue *q)
{
    if (q->fd >= 0)
        close(q->fd);
    free(q->pool);
    free(q->done);
    free(q);
}

void kvf_blocks_destroy(struct kvf_core *core)
{
    if (!core->blocks)
        return;
    for (struct kvf_queue *q = core->blocks->queues, *next; q; q = next) {
        next = q->next;
        queue_free(q);
    }
    free(core->blocks);
    core->blocks = NULL;
}

static struct kvf_key key_of(struct kvf_key key)
{
    return (struct kvf_key){.hi = key.hi | KVF_OPAQUE_BIT, .lo = key.lo};
}

/* ---------------------------------------------------------------- completions */

static void complete(struct kvf_queue *q, uint64_t user, enum kvf_status status, enum kvf_tier tier, uint64_t length)
{
    assert(q->n_done < q->depth);
    q->done[(q->first_done + q->n_done++) % q->depth] =
        (struct kvf_completion){.user = user, .status = status, .tier = tier, .length = length};
    uint64_t one = 1;
    if (q->n_done == 1 && write(q->fd, &one, sizeof one) < 0)
        assert(errno == EAGAIN);
}

static void count_time(struct kvf_core *core, enum kvf_op op, uint64_t start_ns)
{
    if (op == KVF_OP_PUT || op == KVF_OP_GET)
        kvf_latency_add(&core->latencies, op == KVF_OP_PUT ? KVF_LATENCY_PUT : KVF_LATENCY_GET, kvf_now(core->env) - start_ns);
}

static void pending_end(struct kvf_core *core, struct pending *p, enum kvf_status status, enum kvf_tier tier, uint64_t length)
{
    struct kvf_queue *q = p->queue;
    *p->at = p->next;
    if (p->next)
        p->next->at = p->at;
    p->state = PENDING_FREE;
    count_time(core, p->request.op, p->start_ns);
    complete(q, p->request.user, q->closing ? KVF_CANCELLED : status, tier, length);
    p->next = q->free;
    q->free = p;
    kvf_core_changed(core);
}

static struct pending *pending_new(struct kvf_queue *q, const struct kvf_request *r, uint64_t start_ns, uint64_t deadline_ns,
                                   enum pending_state state)
{
    struct kvf_core *core = q->node->core;
    struct pending *p = q->free;
    assert(p);
    q->free = p->next;
    *p = (struct pending){.queue = q, .state = state, .request = *r, .key = key_of(r->key), .start_ns = start_ns,
                          .deadline_ns = deadline_ns, .stage = KVF_STAGE_NONE, .next = core->blocks->pending,
                          .at = &core->blocks->pending};
    if (p->next)
        p->next->at = &p->next;
    core->blocks->pending = p;
    return p;
}

/* ---------------------------------------------------------------- put */

static uint32_t chunk_count(uint32_t bytes, uint32_t chunk)
{
    return (bytes + chunk - 1) / chunk;
}

/* Memory, checksums and an entry in state WRITING. IN_PROGRESS: no room in DRAM now. */
static enum kvf_status put_begin(struct kvf_core *core, const struct kvf_request *r, kvf_handle *handle, uint64_t *slot)
{
    struct kvf_key key = key_of(r->key);
    uint32_t bytes = (uint32_t)r->length, chunks = chunk_count(bytes, kvf_block_opaque_chunk_bytes(bytes));
    kvf_handle standing = kvf_index_find(core->index, key);
    const struct kvf_entry *there = standing == KVF_HANDLE_NONE ? NULL : kvf_cluster_judge(core, standing);
    if (there) /* one that was removed goes when its copying or its pins end */
        return there->flags & KVF_FLAG_REMOVED ? KVF_IN_PROGRESS : KVF_ERR_EXISTS;
    if (!kvf_block_reserve(core, 1) && !(kvf_evict_entry(core) && kvf_block_reserve(core, 1)))
        return KVF_ERR_FULL;
    core->entries_reserved--;
    *slot = kvf_block_memory(core, bytes);
    if (*slot == KVF_ARENA_NONE)
        return KVF_IN_PROGRESS;
    uint32_t sums_at = kvf_sums_alloc(core->sums, chunks);
    enum kvf_status st = sums_at == KVF_SUMS_NONE ? KVF_ERR_FULL : kvf_index_add(core->index, key, handle);
    if (st != KVF_OK) {
        if (sums_at != KVF_SUMS_NONE)
            kvf_sums_free(core->sums, sums_at, chunks);
        kvf_dram_free(core, *slot, bytes);
        return KVF_ERR_FULL;
    }
    struct kvf_entry *e = kvf_index_entry(core->index, *handle);
    e->sums = sums_at;
    kvf_entry_set_shape(e, KVF_ENTRY_OPAQUE, chunks);
    e->bytes = bytes;
    e->state = KVF_BLOCK_WRITING;
    return KVF_OK;
}

/* Copies and seals the bytes from `from` (whole chunks) up to `to`. Needs no lock: nobody else touches a block in WRITING. */
static void put_fill(struct kvf_core *core, const struct kvf_request *r, struct kvf_entry *e, uint64_t slot, uint64_t from,
                     uint64_t to)
{
    uint32_t bytes = (uint32_t)r->length, chunk = kvf_block_opaque_chunk_bytes(bytes);
    unsigned first = (unsigned)(from / chunk), end = chunk_count((uint32_t)to, chunk);
    uint64_t mask = (end >= 64 ? UINT64_MAX : (1ull << end) - 1) & ~((1ull << first) - 1);
    uint8_t *block = core->memory + slot;
    memcpy(block + from, (const uint8_t *)r->data + from, to - from);
    if (to == bytes)
        memset(block + bytes, 0, (4096 - bytes % 4096) % 4096); /* SSD writes whole pages: no old bytes behind */
    kvf_block_sum(core->dev, kvf_block_seed(0, key_of(r->key)), block, bytes, chunk, mask, kvf_sums_at(core->sums, e->sums));
}

static void put_end(struct kvf_core *core, kvf_handle h, uint64_t slot)
{
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    kvf_block_place(core, h, KVF_TIER_DRAM, KVF_PEER_NONE, slot);
    kvf_count(&core->counters.blocks_sealed, 1);
    if (e->flags & KVF_FLAG_REMOVED)
        kvf_block_remove(core, h);
}

/* A put that finds room at once is done by its caller, who gives up the lock for the copy. */
static enum kvf_status put_now(struct kvf_core *core, const struct kvf_request *r)
{
    kvf_handle h;
    uint64_t slot;
    enum kvf_status st = put_begin(core, r, &h, &slot);
    if (st != KVF_OK)
        return st;
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    kvf_core_unlock(core);
    put_fill(core, r, e, slot, 0, r->length);
    kvf_core_lock(core);
    put_end(core, h, slot);
    return KVF_OK;
}

/* Whole chunks of at least one, as far as this turn goes, of `left` bytes; 0: nothing more in this turn. */
static uint64_t portion(struct kvf_core *core, uint64_t left, uint32_t chunk)
{
    struct kvf_blocks *b = core->blocks;
    if (b->turn_left == 0)
        return 0;
    uint64_t bytes = b->turn_left < chunk ? chunk : b->turn_left / chunk * chunk;
    bytes = bytes < left ? bytes : left;
    b->turn_left -= bytes < b->turn_left ? (uint32_t)bytes : b->turn_left;
    return bytes;
}

static void put_poll(struct kvf_core *core, struct pending *p, uint64_t now)
{
    if (p->state == PENDING_PUT) {
        enum kvf_status st = p->queue->closing ? KVF_CANCELLED : put_begin(core, &p->request, &p->handle, &p->slot);
        if (st == KVF_IN_PROGRESS && (core->spill_stuck || now >= p->deadline_ns))
            st = KVF_ERR_FULL;
        if (st == KVF_OK)
            p->state = PENDING_FILL; /* and stays so until it is whole: what is WRITING cannot be given up */
        else if (st != KVF_IN_PROGRESS)
            pending_end(core, p, st, KVF_TIER_DRAM, 0);
        if (st != KVF_OK)
            return;
    }
    uint64_t bytes = p->request.length, n = portion(core, bytes - p->copied, kvf_block_opaque_chunk_bytes((uint32_t)bytes));
    if (n == 0)
        return;
    put_fill(core, &p->request, kvf_index_entry(core->index, p->handle), p->slot, p->copied, p->copied + n);
    p->copied += n;
    if (p->copied < bytes)
        return;
    put_end(core, p->handle, p->slot);
    pending_end(core, p, KVF_OK, KVF_TIER_DRAM, 0);
}

/* ---------------------------------------------------------------- get */

struct kvf_entry *kvf_block_readable(struct kvf_core *core, struct kvf_key key, kvf_handle *handle)
{
    *handle = kvf_index_find(core->index, key);
    struct kvf_entry *e = *handle == KVF_HANDLE_NONE ? NULL : kvf_cluster_judge(core, *handle);
    if (!e || e->state == KVF_BLOCK_WRITING || e->state == KVF_BLOCK_LOST || (e->flags & KVF_FLAG_REMOVED))
        return NULL;
    return e;
}

static void get_dram(struct kvf_queue *q, const struct kvf_request *r, struct kvf_entry *e, kvf_handle h)
{
    struct kvf_core *core = q->node->core;
    if (!kvf_entry_pin(e)) {
        complete(q, r->user, KVF_ERR_BUSY, KVF_TIER_DRAM, 0);
        return;
    }
    const uint8_t *from = core->memory + kvf_entry_location(e) + r->offset;
    uint32_t chunk = kvf_block_chunk_bytes(core, e);
    kvf_core_unlock(core);
    memcpy(r->data, from, r->length);
    if (r->offset == 0)
        kvf_evict_used(core, e);
    kvf_core_lock(core);
    kvf_block_let_go(core, h);
    kvf_count(&core->counters.dram_chunks_read, chunk_count((uint32_t)r->length, chunk));
    kvf_count(&core->counters.dram_bytes_read, r->length);
    complete(q, r->user, KVF_OK, KVF_TIER_DRAM, r->length);
}

static void direct_done(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct pending *p = arg;
    p->read_ended = true;
    p->read_status = status;
}

/* Whole chunks into registered, aligned memory: read there, without a copy. */
static bool get_direct(struct kvf_core *core, const struct kvf_entry *e, const struct kvf_request *r)
{
    uint32_t chunk = kvf_block_chunk_bytes(core, e);
    return kvf_registered_has(core, r->data, r->length) && (uintptr_t)r->data % 4096 == 0 && r->offset % chunk == 0 &&
           r->length % 4096 == 0 && (r->length % chunk == 0 || r->offset + r->length == e->bytes);
}

static uint64_t mask_of(const struct kvf_core *core, const struct kvf_entry *e, uint64_t offset, uint64_t length)
{
    uint32_t chunk = kvf_block_chunk_bytes(core, e);
    uint64_t mask = 0;
    for (uint64_t c = offset / chunk; c <= (offset + length - 1) / chunk; c++)
        mask |= 1ull << c;
    return mask;
}

/* The entry that a get began with, or NULL: its block went away. One that was put under the key since may have got the same handle;
 * if it also has the same size, it is for the caller to know. */
static struct kvf_entry *still(struct kvf_core *core, const struct pending *p)
{
    kvf_handle h;
    struct kvf_entry *e = kvf_block_readable(core, p->key, &h);
    return e && h == p->handle && e->bytes == p->bytes ? e : NULL;
}

/* false: it waits in the list of pending requests. */
static bool get_start(struct kvf_queue *q, const struct kvf_request *r, uint64_t start_ns, uint64_t deadline_ns)
{
    struct kvf_core *core = q->node->core;
    kvf_handle h;
    struct kvf_entry *e = kvf_block_readable(core, key_of(r->key), &h);
    if (!e) {
        complete(q, r->user, KVF_MISS, KVF_TIER_DRAM, 0);
        return true;
    }
    if (r->offset > e->bytes || r->length > e->bytes - r->offset) {
        complete(q, r->user, KVF_ERR_INVALID, (enum kvf_tier)e->tier, 0);
        return true;
    }
    if (e->tier == KVF_TIER_DRAM) {
        get_dram(q, r, e, h);
        return true;
    }
    e->flags |= KVF_FLAG_USED;
    struct pending *p = pending_new(q, r, start_ns, deadline_ns, PENDING_STAGED);
    p->handle = h;
    p->mask = mask_of(core, e, r->offset, r->length);
    p->bytes = e->bytes;
    p->place = kvf_entry_place(e);
    p->content = kvf_block_content(core, e, p->mask);
    if (!get_direct(core, e, r))
        return false; /* the poll finds it room in staging */
    p->state = PENDING_DIRECT;
    uint8_t *to = (uint8_t *)r->data - r->offset;
    if (kvf_read_start(core, h, p->mask, to, deadline_ns, KVF_PRIORITY_DEMAND, direct_done, p, NULL) != KVF_OK)
        p->state = PENDING_STAGED;
    return false;
}

/* From the start, through staging. */
static void staged_anew(struct pending *p)
{
    p->state = PENDING_STAGED;
    p->stage = KVF_STAGE_NONE;
    p->checked = p->copied = 0;
}

/* Ends a get whose bytes did not match or could not be had. Where the block lies elsewhere by now, if only on its copy on SSD since
 * it was given up at its lender, that says nothing about it, and it is read again. */
static void get_damaged(struct kvf_core *core, struct pending *p, struct kvf_entry *e, enum kvf_status status)
{
    enum kvf_tier tier = (enum kvf_tier)e->tier;
    bool bad = status == KVF_ERR_CORRUPT || status == KVF_LOST || status == KVF_ERR_IO, moved = kvf_entry_place(e) != p->place;
    if (status == KVF_ERR_CORRUPT && !moved) {
        kvf_count(&core->counters.blocks_corrupt, 1);
        kvf_log_error(&core->log, "block %016llx%016llx from %s does not match its checksum: dropped",
                      (unsigned long long)p->key.hi, (unsigned long long)p->key.lo, kvf_tier_name(tier));
    }
    if (bad && !moved && tier != KVF_TIER_DRAM) {
        kvf_block_lose(core, p->handle);
        e = still(core, p);
        moved = e && kvf_entry_place(e) != p->place;
    }
    if (bad && moved) {
        kvf_stage_drop(core, p->handle);
        staged_anew(p);
        kvf_core_wake(core); /* for the next turn, which asks */
        return;
    }
    pending_end(core, p, status == KVF_LOST ? KVF_MISS : status, tier, 0);
}

/* Checks a portion of what is wanted of a block. IN_PROGRESS: more in the next turn; OK: all of it matches; ERR_CORRUPT. */
static enum kvf_status verify(struct kvf_core *core, struct pending *p, const struct kvf_entry *e, const void *block)
{
    uint32_t chunk = kvf_block_chunk_bytes(core, e);
    uint64_t left = p->mask & ~p->checked, part = 0;
    uint64_t bytes = portion(core, (uint64_t)__builtin_popcountll(left) * chunk, chunk);
    for (; bytes >= chunk; bytes -= chunk, left &= left - 1)
        part |= left & -left;
    if (!part)
        return KVF_IN_PROGRESS;
    if (!p->checked)
        kvf_count(&core->counters.blocks_verified, 1);
    p->checked |= part;
    if (!kvf_block_verify(core->dev, kvf_block_seed_of(core, e), block, e->bytes, chunk, part, kvf_sums_at(core->sums, e->sums)))
        return KVF_ERR_CORRUPT;
    return p->checked == p->mask ? KVF_OK : KVF_IN_PROGRESS;
}

/* After a get that read a whole block: up with it, if that is wanted and nobody else reads the lower copy. Not one that is more
 * than a turn may copy and check. */
static void come_back(struct kvf_core *core, const struct kvf_request *r, kvf_handle h, const uint8_t *data)
{
    uint32_t bytes = kvf_index_entry(core->index, h)->bytes;
    if (r->offset > 0 || r->length < bytes || bytes > TURN_BYTES || kvf_stage_busy(core, h))
        return;
    for (const struct pending *p = core->blocks->pending; p; p = p->next)
        if (p->state == PENDING_DIRECT && p->handle == h)
            return;
    kvf_evict_rise(core, h, data);
}

static void direct_check(struct kvf_core *core, struct pending *p, struct kvf_entry *e)
{
    struct kvf_request r = p->request;
    kvf_handle h = p->handle;
    enum kvf_status st = verify(core, p, e, (uint8_t *)r.data - r.offset);
    if (st == KVF_OK) {
        pending_end(core, p, KVF_OK, (enum kvf_tier)e->tier, r.length);
        come_back(core, &r, h, r.data);
    } else if (st != KVF_IN_PROGRESS)
        get_damaged(core, p, e, st);
}

static void direct_poll(struct kvf_core *core, struct pending *p)
{
    if (!p->read_ended)
        return;
    struct kvf_entry *e = still(core, p);
    if (!e || kvf_block_content(core, e, p->mask) != p->content)
        pending_end(core, p, KVF_MISS, KVF_TIER_DRAM, 0);
    else if (p->read_status == KVF_ERR_BUSY)
        p->state = PENDING_STAGED;
    else if (p->read_status != KVF_OK)
        get_damaged(core, p, e, p->read_status);
    else
        direct_check(core, p, e);
}

static void staged_end(struct kvf_core *core, struct pending *p, struct kvf_entry *e, enum kvf_status status)
{
    if (p->stage != KVF_STAGE_NONE)
        kvf_stage_unpin(core, p->stage);
    p->stage = KVF_STAGE_NONE;
    if (!e)
        pending_end(core, p, status, KVF_TIER_DRAM, 0);
    else if (status == KVF_OK)
        pending_end(core, p, KVF_OK, (enum kvf_tier)e->tier, p->request.length);
    else
        get_damaged(core, p, e, status);
}

/* All bytes are here: they are checked, then copied, a portion per turn. */
static void staged_check(struct kvf_core *core, struct pending *p, struct kvf_entry *e, struct kvf_stage *s)
{
    struct kvf_request r = p->request;
    kvf_handle h = p->handle;
    enum kvf_status st = KVF_OK;
    if ((atomic_load(&s->verified) & p->mask) != p->mask)
        st = verify(core, p, e, s->slot);
    if (st == KVF_IN_PROGRESS)
        return;
    if (st == KVF_OK) {
        atomic_fetch_or(&s->verified, p->mask);
        uint64_t n = portion(core, p->request.length - p->copied, 4096);
        memcpy((uint8_t *)p->request.data + p->copied, s->slot + p->request.offset + p->copied, n);
        p->copied += n;
        if (p->copied < p->request.length)
            return;
    }
    staged_end(core, p, e, st);
    if (st == KVF_OK)
        come_back(core, &r, h, s->slot);
}

static void staged_poll(struct kvf_core *core, struct pending *p, uint64_t now)
{
    struct kvf_entry *e = still(core, p);
    if (p->stage != KVF_STAGE_NONE && core->stages[p->stage].orphan) {
        kvf_stage_unpin(core, p->stage);
        staged_anew(p);
        if (e && kvf_block_content(core, e, p->mask) != p->content)
            e = NULL; /* what is read there is of a block that went away */
    }
    if (p->queue->closing || !e) {
        staged_end(core, p, NULL, p->queue->closing ? KVF_CANCELLED : KVF_MISS);
        return;
    }
    if (e->tier == KVF_TIER_DRAM) { /* it rose meanwhile */
        memcpy(p->request.data, core->memory + kvf_entry_location(e) + p->request.offset, p->request.length);
        staged_end(core, p, e, KVF_OK);
        return;
    }
    if (p->stage == KVF_STAGE_NONE)
        p->stage = kvf_stage_get(core, p->handle, p->mask, p->deadline_ns);
    if (p->stage == KVF_STAGE_NONE) {
        if (now >= p->deadline_ns)
            staged_end(core, p, e, KVF_ERR_DEADLINE);
        return;
    }
    struct kvf_stage *s = &core->stages[p->stage];
    p->place = s->place;
    if ((atomic_load(&s->have) & p->mask) == p->mask) {
        staged_check(core, p, e, s);
    } else if (s->inflight == 0 && (atomic_load(&s->status) == KVF_ERR_BUSY || atomic_load(&s->status) == KVF_ERR_DEADLINE) &&
               now < p->deadline_ns) { /* no room to ask, or the deadline of somebody who asked before us */
        kvf_stage_retry(core, p->stage, p->mask, p->deadline_ns);
    } else if (s->inflight == 0 && atomic_load(&s->status) != KVF_OK) {
        staged_end(core, p, e, (enum kvf_status)atomic_load(&s->status));
    } else if (now >= p->deadline_ns) {
        staged_end(core, p, e, KVF_ERR_DEADLINE); /* what still comes goes into the stage, which is ours */
    }
}

/* ---------------------------------------------------------------- persist */

/* A copy that was found has been read: a portion of it is compared. false: that goes on, or the SSD does. */
static bool found_compare(struct kvf_core *core, struct pending *p, uint64_t now)
{
    const struct kvf_entry *e = kvf_index_entry(core->index, p->keep.handle); /* which is there as long as the keep has data */
    enum kvf_status st = p->queue->closing ? KVF_CANCELLED : now >= p->deadline_ns ? KVF_ERR_DEADLINE : KVF_OK;
    p->mask = mask_of(core, e, 0, e->bytes);
    if (st == KVF_OK && (st = verify(core, p, e, p->keep.data)) == KVF_IN_PROGRESS)
        return false;
    kvf_persist_compared(&p->keep, st);
    return !p->keep.busy;
}

static void persist_poll(struct kvf_core *core, struct pending *p, uint64_t now)
{
    kvf_handle h = KVF_HANDLE_NONE;
    if (p->keep.busy || (p->keep.data && !found_compare(core, p, now)))
        return; /* the SSD has the request: it ends it */
    enum kvf_status st = p->keep.status;
    if (st == KVF_IN_PROGRESS) {
        struct kvf_entry *e = kvf_block_readable(core, p->key, &h);
        st = p->queue->closing ? KVF_CANCELLED : !e ? KVF_MISS : kvf_persist_keep(core, &p->keep, h);
    }
    if (st == KVF_IN_PROGRESS && !p->keep.busy && now >= p->deadline_ns)
        st = KVF_ERR_DEADLINE;
    if (st != KVF_IN_PROGRESS)
        pending_end(core, p, st, KVF_TIER_SSD, 0);
}

unsigned kvf_blocks_poll(struct kvf_core *core)
{
    uint64_t now = core->blocks->pending ? kvf_now(core->env) : 0;
    core->blocks->turn_left = TURN_BYTES;
    for (int puts = 0; puts < 2; puts++) { /* gets first: somebody waits for their bytes */
        for (struct pending *p = core->blocks->pending, *next; p; p = next) {
            next = p->next;
            bool put = p->state == PENDING_PUT || p->state == PENDING_FILL;
            if (put != puts)
                continue;
            if (put)
                put_poll(core, p, now);
            else if (p->state == PENDING_STAGED)
                staged_poll(core, p, now);
            else if (p->state == PENDING_PERSIST)
                persist_poll(core, p, now);
            else
                direct_poll(core, p);
        }
    }
    return core->blocks->turn_left < TURN_BYTES;
}

bool kvf_blocks_idle(const struct kvf_core *core)
{
    return core->blocks->pending == NULL;
}

/* ---------------------------------------------------------------- the public calls */

enum kvf_status kvf_queue_create(struct kvf_node *node, uint32_t depth, struct kvf_queue **out)
{
    if (!node || !out || depth < 1 || depth > 65536)
        return KVF_ERR_INVALID;
    struct kvf_core *core = node->core;
    struct kvf_queue *q = calloc(1, sizeof *q);
    if (!q)
        return KVF_ERR_NO_MEMORY;
    q->node = node;
    q->depth = depth;
    q->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    q->pool = calloc(depth, sizeof *q->pool);
    q->done = calloc(depth, sizeof *q->done);
    kvf_core_lock(core);
    bool room = core->blocks->n_queues < QUEUES_MAX;
    if (q->fd >= 0 && q->pool && q->done && room) {
        for (uint32_t i = 0; i < depth; i++) {
            q->pool[i].next = q->free;
            q->free = &q->pool[i];
        }
        q->next = core->blocks->queues;
        core->blocks->queues = q;
        core->blocks->n_queues++;
        kvf_core_unlock(core);
        *out = q;
        return KVF_OK;
    }
    kvf_core_unlock(core);
    queue_free(q);
    return room ? KVF_ERR_NO_MEMORY : KVF_ERR_BUSY;
}

void kvf_queue_destroy(struct kvf_queue *q)
{
    if (!q)
        return;
    struct kvf_core *core = q->node->core;
    kvf_core_lock(core);
    q->closing = true;
    /* What goes straight into the caller's memory ends at its own deadline at the latest; the rest ends in the next poll. */
    for (;;) {
        bool any = false;
        for (uint32_t i = 0; i < q->depth; i++)
            any |= q->pool[i].state != PENDING_FREE;
        if (!any)
            break;
        kvf_core_wake(core);
        kvf_core_wait(core, UINT64_MAX);
    }
    struct kvf_queue **at = &core->blocks->queues;
    while (*at != q)
        at = &(*at)->next;
    *at = q->next;
    core->blocks->n_queues--;
    kvf_core_unlock(core);
    queue_free(q);
}

static bool request_valid(const struct kvf_core *core, const struct kvf_request *r)
{
    if (r->op == KVF_OP_EXISTS || r->op == KVF_OP_REMOVE || r->op == KVF_OP_PERSIST)
        return true;
    if (r->op == KVF_OP_GET)
        return r->data && r->length > 0;
    return r->op == KVF_OP_PUT && r->data && r->offset == 0 && r->length > 0 && r->length <= core->settings.block_bytes_max;
}

/* Under the lock. */
static void request_start(struct kvf_queue *q, const struct kvf_request *r, uint64_t start_ns, uint64_t deadline_ns)
{
    struct kvf_core *core = q->node->core;
    kvf_handle h;
    bool ended = true;
    if (!request_valid(core, r)) {
        complete(q, r->user, KVF_ERR_INVALID, KVF_TIER_DRAM, 0);
    } else if (r->op == KVF_OP_PUT) {
        enum kvf_status st = put_now(core, r);
        ended = st != KVF_IN_PROGRESS;
        if (ended)
            complete(q, r->user, st, KVF_TIER_DRAM, 0);
        else
            pending_new(q, r, start_ns, deadline_ns, PENDING_PUT);
        core->spill_stuck &= ended; /* what was true for an earlier waiter need not be true now */
    } else if (r->op == KVF_OP_GET) {
        ended = get_start(q, r, start_ns, deadline_ns);
    } else if (r->op == KVF_OP_PERSIST) {
        pending_new(q, r, start_ns, deadline_ns, PENDING_PERSIST)->keep.status = KVF_IN_PROGRESS;
        ended = false;
    } else {
        struct kvf_entry *e = kvf_block_readable(core, key_of(r->key), &h);
        enum kvf_tier tier = e ? (enum kvf_tier)e->tier : KVF_TIER_DRAM;
        uint64_t length = e ? e->bytes : 0;
        if (e && r->op == KVF_OP_REMOVE)
            kvf_block_remove(core, h);
        complete(q, r->user, e ? KVF_OK : KVF_MISS, tier, length);
    }
    if (ended)
        count_time(core, r->op, start_ns);
}

/* Serves the gets of a run whose blocks are open to pins without the lock. Bit i of the result: request i was served; the others
 * are looked at again under the lock, in their turn. */
static uint64_t gets_at_once(struct kvf_core *core, const struct kvf_request *requests, size_t n)
{
    struct kvf_key keys[RUN_MAX];
    kvf_handle handles[RUN_MAX];
    uint64_t served = 0, chunks = 0, bytes = 0;
    assert(n >= 1 && n <= RUN_MAX);
    for (size_t i = 0; i < n; i++)
        keys[i] = key_of(requests[i].key);
    kvf_index_pin_many(core->index, keys, n, handles);
    for (size_t i = 0; i < n; i++) {
        const struct kvf_request *r = &requests[i];
        if (handles[i] == KVF_HANDLE_NONE)
            continue;
        const struct kvf_entry *e = kvf_index_pinned(core->index, handles[i]);
        if (request_valid(core, r) && r->offset <= e->bytes && r->length <= e->bytes - r->offset) {
            memcpy(r->data, core->memory + kvf_entry_location(e) + r->offset, r->length);
            served |= 1ull << i;
            chunks += chunk_count((uint32_t)r->length, kvf_block_opaque_chunk_bytes(e->bytes));
            bytes += r->length;
            if (r->offset == 0) /* of a block that is read in pieces the first counts */
                kvf_evict_used(core, e);
        }
        kvf_index_unpin(core->index, handles[i]);
    }
    kvf_count(&core->counters.dram_chunks_read, chunks);
    kvf_count(&core->counters.dram_bytes_read, bytes);
    return served;
}

/* The next requests that are all gets, or none of which is; at most RUN_MAX. */
static size_t run_of(const struct kvf_request *requests, size_t n)
{
    size_t run = 1;
    while (run < n && run < RUN_MAX && (requests[run].op == KVF_OP_GET) == (requests[0].op == KVF_OP_GET))
        run++;
    return run;
}

enum kvf_status kvf_submit(struct kvf_queue *q, const struct kvf_request *requests, size_t count, uint64_t timeout_ns,
                           size_t *accepted)
{
    if (!q || !accepted || (!requests && count))
        return KVF_ERR_INVALID;
    struct kvf_core *core = q->node->core;
    uint64_t start = kvf_now(core->env);
    uint64_t deadline = kvf_deadline(start, timeout_ns ? timeout_ns : core->settings.fetch_timeout_ns);
    kvf_core_lock(core);
    size_t n = count < q->depth - q->outstanding ? count : q->depth - q->outstanding;
    q->outstanding += (uint32_t)n;
    kvf_core_unlock(core);
    for (size_t from = 0, run; from < n; from += run) {
        run = run_of(requests + from, n - from);
        uint64_t served = requests[from].op == KVF_OP_GET ? gets_at_once(core, requests + from, run) : 0;
        kvf_core_lock(core);
        for (size_t i = 0; i < run; i++) {
            const struct kvf_request *r = &requests[from + i];
            if (!(served >> i & 1)) {
                request_start(q, r, start, deadline);
                continue;
            }
            complete(q, r->user, KVF_OK, KVF_TIER_DRAM, r->length);
            count_time(core, r->op, start);
        }
        kvf_core_unlock(core);
    }
    kvf_core_wake(core);
    if (n == 0 && count > 0)
        return KVF_ERR_BUSY;
    *accepted = n;
    return KVF_OK;
}

int kvf_queue_fd(const struct kvf_queue *q)
{
    return q ? q->fd : -1;
}

enum kvf_status kvf_drain(struct kvf_queue *q, struct kvf_completion *completions, size_t max, size_t *count)
{
    if (!q || !count || (!completions && max))
        return KVF_ERR_INVALID;
    struct kvf_core *core = q->node->core;
    kvf_core_lock(core);
    if (core->wake_fd < 0)
        kvf_core_poll(core);
    size_t n = 0;
    while (n < max && q->n_done > 0) {
        completions[n++] = q->done[q->first_done];
        q->first_done = (q->first_done + 1) % q->depth;
        q->n_done--;
        q->outstanding--;
    }
    uint64_t value;
    if (q->n_done == 0 && read(q->fd, &value, sizeof value) < 0)
        assert(errno == EAGAIN);
    kvf_core_unlock(core);
    *count = n;
    return KVF_OK;
}

enum kvf_status kvf_exists_prefix(struct kvf_node *node, const struct kvf_key *keys, size_t count, size_t *prefix)
{
    if (!node || !prefix || (!keys && count))
        return KVF_ERR_INVALID;
    struct kvf_core *core = node->core;
    kvf_handle h;
    size_t n = 0, end = 0;
    for (enum kvf_seen seen; n < count && n >= end && (seen = kvf_index_peek(core->index, key_of(keys[n]))) != KVF_SEEN_NOT;) {
        if (seen == KVF_SEEN_OPEN) {
            n++;
            continue;
        }
        end = count - n < RUN_MAX ? count : n + RUN_MAX; /* what lies below DRAM is known under the lock, which others want too */
        kvf_core_lock(core);
        while (n < end && kvf_block_readable(core, key_of(keys[n]), &h))
            n++;
        kvf_core_unlock(core);
    }
    *prefix = n;
    return KVF_OK;
}
