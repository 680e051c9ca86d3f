/* The SSD tier's queues: one per priority, in order of arrival. order.c says which goes next and how much of it.
 *
 * What goes to the disk is a *flight*: the first request of a queue, whole or (when it is large) a piece of it; or it and
 * those behind it, within LOOK_AHEAD of each other, whose places continue it on the disk. A joined flight that fails is
 * taken apart, so that one bad place fails one request. */
#include "tiers/ssd_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define UNIT KVF_SSD_UNIT
#define JOIN_BYTES_MAX (1u << 20)
#define LOOK_AHEAD 16u
/* The journal may be written this long when the tier is closed. */
#define FLUSH_NAPS_MAX 200u
/* A degraded area is tried with one page, first after PROBE_NS, then after twice as long each time. An area that fails
 * again soon after it worked goes on from there. */
#define PROBE_NS (1 * KVF_SEC)
#define PROBE_MAX_NS (60 * KVF_SEC)

/* ------------------------------------------------------------------------------------------------- life */

static enum kvf_status make_flights(struct kvf_ssd *s)
{
    s->flights = calloc(s->depth, sizeof *s->flights);
    s->probe_page = aligned_alloc(UNIT, UNIT);
    if (!s->flights || !s->probe_page)
        return KVF_ERR_NO_MEMORY;
    memset(s->probe_page, 0, UNIT);
    for (unsigned i = s->depth; i-- > 0; s->free_flight = &s->flights[i]) {
        s->flights[i].next = s->free_flight;
        s->flights[i].ssd = s;
    }
    return KVF_OK;
}

static void free_all(struct kvf_ssd *s)
{
    kvf_journal_fini(&s->journal);
    kvf_arena_destroy(s->arena);
    free(s->flights);
    free(s->probe_page);
    free(s);
}

enum kvf_status kvf_ssd_create(struct kvf_disk *disk, const struct kvf_ssd_options *o, struct kvf_ssd **out)
{
    assert(disk && o && o->env && o->log && out);
    if (!o->node || !o->node[0] || strlen(o->node) >= KVF_SUPERBLOCK_NAME_MAX || o->depth == 0 || o->block_max == 0 ||
        o->block_max > UINT32_MAX - UNIT)
        return KVF_ERR_INVALID;
    struct kvf_ssd *s = calloc(1, sizeof *s);
    if (!s)
        return KVF_ERR_NO_MEMORY;
    s->disk = disk;
    s->env = o->env;
    s->log = o->log;
    s->owner = o->owner;
    s->depth = o->depth;
    kvf_order_init(&s->order, o->depth);
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
        kvf_ssd_queue_clear(&s->queues[p]);
    kvf_ssd_queue_clear(&s->unrecorded);
    kvf_ssd_queue_clear(&s->waiting);
    enum kvf_status st = make_flights(s);
    if (st == KVF_OK)
        st = kvf_ssd_start(s, o);
    if (st == KVF_OK)
        *out = s;
    else
        free_all(s);
    return st;
}

static void cancel_queue(struct kvf_ssd_queue *q)
{
    struct kvf_ssd_request *r = q->head, *next;
    kvf_ssd_queue_clear(q);
    for (; r; r = next) {
        next = r->next;
        r->done(r->arg, KVF_CANCELLED);
    }
}

static void cancel_queues(struct kvf_ssd *s)
{
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
        cancel_queue(&s->queues[p]);
}

static bool any_queued(const struct kvf_ssd *s)
{
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
        if (s->queues[p].head)
            return true;
    return false;
}

void kvf_ssd_destroy(struct kvf_ssd *s)
{
    if (!s)
        return;
    s->closing = true;
    cancel_queues(s);
    if (!kvf_ssd_commit_flush(s, FLUSH_NAPS_MAX))
        kvf_log_warn(s->log, "SSD: the journal's last records could not be written; their blocks may not be found again");
    s->disk->ops->close(s->disk);
    while (any_queued(s) || !kvf_ssd_commit_idle(s)) { /* what callbacks queued meanwhile */
        cancel_queues(s);
        cancel_queue(&s->unrecorded);
        cancel_queue(&s->waiting);
    }
    assert(kvf_order_in_flight(&s->order) == 0);
    free_all(s);
}

/* ------------------------------------------------------------------------------------------------- flights */

void kvf_ssd_degrade(struct kvf_ssd *s, int error)
{
    uint64_t now = kvf_now(s->env);
    if (s->degraded)
        return;
    s->degraded = true;
    s->stats.degraded_error = error;
    s->stats.degraded_ns = now;
    if (s->probe_wait_ns == 0 || now - s->recovered_ns > PROBE_MAX_NS)
        s->probe_wait_ns = PROBE_NS;
    s->probe_due_ns = now + s->probe_wait_ns;
}

static void observe(struct kvf_ssd *s, enum kvf_latency first, const struct kvf_ssd_request *r, uint64_t since_ns, uint64_t now)
{
    if (s->latencies)
        kvf_latency_add(s->latencies, (enum kvf_latency)(first + r->stands), now - since_ns);
}

/* All of it is on the disk or in memory, or it failed with `error`. */
static void end_request(struct kvf_ssd *s, struct kvf_ssd_request *r, enum kvf_status status, int error)
{
    bool good = status == KVF_OK;
    if (status != KVF_CANCELLED) {
        s->stats.errors += !good;
        if (r->write && !good)
            kvf_ssd_degrade(s, error);
        *(r->write ? &s->stats.writes : &s->stats.reads) += good;
        *(r->write ? &s->stats.written_bytes : &s->stats.read_bytes) += good ? r->bytes : 0;
    }
    if (good && r->recorded)
        kvf_ssd_commit_written(s, r);
    else
        r->done(r->arg, status);
}

/* A request of a flight that ended: on to its next piece, alone another time, or done. */
static void member_done(struct kvf_ssd *s, struct kvf_ssd_request *r, uint32_t bytes, bool joined, enum kvf_status status,
                        int error)
{
    bool again = status != KVF_OK && joined;
    if (status == KVF_OK)
        r->at += bytes;
    if (again)
        r->alone = true;
    if (!again && (status != KVF_OK || r->at == r->bytes))
        end_request(s, r, status, error);
    else if (s->closing)
        end_request(s, r, KVF_CANCELLED, 0);
    else
        kvf_ssd_queue_push_front(&s->queues[r->stands], r);
}

static void flight_done(void *arg, enum kvf_status status)
{
    struct kvf_ssd_flight *f = arg;
    struct kvf_ssd *s = f->ssd;
    struct kvf_ssd_request *r = f->members.head, *next;
    bool joined = r->next != NULL;
    uint64_t now = kvf_now(s->env);
    uint32_t bytes = f->disk.bytes;
    int error = f->disk.error;
    kvf_order_ended(&s->order, r->stands, bytes, now);
    *(f->disk.write ? &s->stats.disk_writes : &s->stats.disk_reads) += 1;
    *(f->disk.write ? &s->stats.disk_written_bytes : &s->stats.disk_read_bytes) += bytes;
    f->next = s->free_flight;
    s->free_flight = f;
    for (; r; r = next) {
        next = r->next;
        observe(s, KVF_LATENCY_SSD_DEVICE_DEMAND, r, r->given_ns, now);
        member_done(s, r, joined ? r->bytes : bytes, joined, status, error);
    }
}

/* Adds `bytes` of a request behind what the flight has. False: it has too many pieces of memory. */
static bool add_member(struct kvf_ssd_flight *f, struct kvf_ssd_request *r, uint32_t bytes)
{
    struct iovec *last = f->disk.iov_count ? &f->pieces[f->disk.iov_count - 1] : NULL;
    uint8_t *data = r->data + r->at;
    if (last && (uint8_t *)last->iov_base + last->iov_len == data)
        last->iov_len += bytes;
    else if (f->disk.iov_count < KVF_DISK_PIECES_MAX)
        f->pieces[f->disk.iov_count++] = (struct iovec){.iov_base = data, .iov_len = bytes};
    else
        return false;
    f->disk.bytes += bytes;
    kvf_ssd_queue_push(&f->members, r);
    return true;
}

/* Whether a request continues, whole, what ends at `end`. */
static bool continues(const struct kvf_ssd_request *r, uint64_t end)
{
    return r->offset == end && !r->alone && r->at == 0;
}

/* Takes from the queue what continues the flight on the disk. */
static void join(struct kvf_ssd_flight *f, struct kvf_ssd_queue *q, uint32_t bytes_max)
{
    struct kvf_ssd_request *r, **at = &q->head;
    for (unsigned looked = 0; (r = *at) && looked < LOOK_AHEAD; looked++) {
        struct kvf_ssd_request *next = r->next;
        if (!continues(r, f->disk.offset + f->disk.bytes) || r->bytes > bytes_max - f->disk.bytes) {
            at = &r->next;
            continue;
        }
        if (!add_member(f, r, r->bytes))
            return;
        *at = next;
        q->tail = next ? q->tail : at;
        q->count--;
        looked = 0;
    }
}

/* Bytes that the next flight of the queue could have: what join will find, not more than it may take. */
static uint32_t first_bytes(const struct kvf_ssd_queue *q)
{
    const struct kvf_ssd_request *r = q->head;
    if (!r)
        return 0;
    uint32_t bytes = r->bytes - r->at;
    uint64_t end = r->offset + r->bytes;
    if (r->alone || r->stands == KVF_PRIORITY_DEMAND) /* which is never told to be shorter */
        return bytes;
    unsigned looked = 0;
    for (r = r->next; r && looked < LOOK_AHEAD && bytes < JOIN_BYTES_MAX; r = r->next, looked++) {
        if (!continues(r, end))
            continue;
        bytes += r->bytes;
        end += r->bytes;
        looked = 0;
    }
    return bytes;
}

static void give_back(struct kvf_ssd_queue *q, struct kvf_ssd_queue *members)
{
    *members->tail = q->head;
    if (!q->head)
        q->tail = members->tail;
    q->head = members->head;
    q->count += members->count;
}

/* Hands at most `bytes` of the queue's first, and what continues it, to the disk; false when the disk takes no more now. */
static bool start_first(struct kvf_ssd *s, struct kvf_ssd_queue *q, uint32_t bytes, uint64_t now)
{
    struct kvf_ssd_flight *f = s->free_flight;
    struct kvf_ssd_request *first = kvf_ssd_queue_pop(q);
    assert(f); /* as many as the order lets fly */
    uint32_t left = first->bytes - first->at, max = first->stands == KVF_PRIORITY_DEMAND ? JOIN_BYTES_MAX : bytes;
    f->disk = (struct kvf_disk_request){.write = first->write, .offset = first->offset + first->at, .done = flight_done, .arg = f};
    kvf_ssd_queue_clear(&f->members);
    add_member(f, first, left < bytes ? left : bytes);
    if (left < max && !first->alone && q->head)
        join(f, q, max);
    if (f->disk.iov_count == 1)
        f->disk.data = f->pieces[0].iov_base;
    else
        f->disk.iov = f->pieces;
    enum kvf_status st = s->disk->ops->submit(s->disk, &f->disk);
    if (st != KVF_OK) {
        assert(st == KVF_ERR_BUSY); /* alignment was tested when it was queued */
        give_back(q, &f->members);
        return false;
    }
    s->free_flight = f->next;
    for (struct kvf_ssd_request *r = f->members.head; r; r = r->next) {
        if (!r->given_ns)
            observe(s, KVF_LATENCY_SSD_QUEUE_DEMAND, r, r->queued_ns, now);
        r->given_ns = now;
    }
    kvf_order_given(&s->order, first->stands, f->disk.bytes, now);
    return true;
}

static void start_requests(struct kvf_ssd *s)
{
    if (s->closing || !any_queued(s))
        return;
    uint64_t now = kvf_now(s->env);
    enum kvf_priority next;
    uint32_t bytes;
    for (;;) {
        struct kvf_order_waiting waiting[KVF_PRIORITY_COUNT] = {{0}};
        for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
            if (s->queues[p].head)
                waiting[p] = (struct kvf_order_waiting){first_bytes(&s->queues[p]), s->queues[p].head->queued_ns};
        if (!kvf_order_next(&s->order, waiting, now, &next, &bytes) || !start_first(s, &s->queues[next], bytes, now))
            return;
    }
}

/* ------------------------------------------------------------------------------------------------- requests */

static void enqueue(struct kvf_ssd *s, struct kvf_ssd_request *r, bool write, uint64_t offset, void *data, uint32_t bytes)
{
    assert(r->done && data && (uintptr_t)data % UNIT == 0 && bytes > 0 && bytes % UNIT == 0);
    assert(offset % UNIT == 0 && offset >= s->slots_start && offset - s->slots_start + bytes <= kvf_arena_bytes(s->arena));
    assert(r->priority < KVF_PRIORITY_COUNT && (write || r->priority != KVF_PRIORITY_WRITE_BACK));
    r->ssd = s;
    r->stands = write ? KVF_PRIORITY_WRITE_BACK : r->priority;
    r->queued_ns = kvf_now(s->env);
    r->given_ns = 0;
    r->write = write;
    r->alone = r->recorded = r->durable = false;
    r->offset = offset;
    r->data = data;
    r->bytes = bytes;
    r->at = 0;
    kvf_ssd_queue_push(&s->queues[r->stands], r);
}

void kvf_ssd_read(struct kvf_ssd *s, struct kvf_ssd_request *r, uint64_t offset, void *data, uint32_t bytes)
{
    enqueue(s, r, false, offset, data, bytes);
}

void kvf_ssd_write(struct kvf_ssd *s, struct kvf_ssd_request *r, uint64_t offset, const void *data, uint32_t bytes)
{
    /* The disk's requests have one pointer for both directions; a write only reads it. */
    enqueue(s, r, true, offset, (void *)(uintptr_t)data, bytes);
}

void kvf_ssd_put(struct kvf_ssd *s, struct kvf_ssd_request *r, const struct kvf_ssd_record *record, const void *data, bool durable)
{
    kvf_ssd_write(s, r, record->offset, data, (record->bytes + UNIT - 1) / UNIT * UNIT);
    r->record = *record;
    r->recorded = true;
    r->durable = durable;
}

void kvf_ssd_promote(struct kvf_ssd *s, struct kvf_ssd_request *r)
{
    struct kvf_ssd_queue *q = &s->queues[r->stands];
    assert(r->stands != KVF_PRIORITY_WRITE_BACK);
    if (r->stands == KVF_PRIORITY_DEMAND)
        return;
    for (struct kvf_ssd_request **at = &q->head; *at; at = &(*at)->next) {
        if (*at != r)
            continue;
        if (!(*at = r->next))
            q->tail = at;
        q->count--;
        r->stands = KVF_PRIORITY_DEMAND;
        kvf_ssd_queue_push(&s->queues[KVF_PRIORITY_DEMAND], r);
        return;
    }
}

void kvf_ssd_hurry(struct kvf_ssd *s, bool hurry)
{
    s->order.hurry = hurry;
}

unsigned kvf_ssd_queued(const struct kvf_ssd *s, enum kvf_priority priority)
{
    return s->queues[priority].count;
}

void kvf_ssd_observe(struct kvf_ssd *s, struct kvf_latencies *latencies)
{
    s->latencies = latencies;
}

static void probe_done(void *arg, enum kvf_status status)
{
    struct kvf_ssd *s = arg;
    s->probing = false;
    kvf_arena_free(s->arena, s->probe_offset, UNIT);
    uint64_t now = kvf_now(s->env);
    s->probe_wait_ns = s->probe_wait_ns < PROBE_MAX_NS / 2 ? 2 * s->probe_wait_ns : PROBE_MAX_NS;
    s->probe_due_ns = now + s->probe_wait_ns;
    if (status != KVF_OK || !kvf_ssd_commit_revive(s))
        return;
    s->degraded = false;
    s->recovered_ns = now;
}

static void probe(struct kvf_ssd *s)
{
    if (!s->degraded || s->probing || s->closing || kvf_now(s->env) < s->probe_due_ns)
        return;
    s->probe_offset = kvf_arena_alloc(s->arena, UNIT);
    if (s->probe_offset == KVF_ARENA_NONE) /* full: nothing waits to be written either */
        return;
    s->probing = true;
    s->probe.done = probe_done;
    s->probe.arg = s;
    kvf_ssd_write(s, &s->probe, s->probe_offset + s->slots_start, s->probe_page, UNIT);
}

static void start_all(struct kvf_ssd *s)
{
    probe(s);
    kvf_ssd_commit_step(s);
    start_requests(s);
}

unsigned kvf_ssd_poll(struct kvf_ssd *s)
{
    start_all(s);
    unsigned handled = s->disk->ops->poll(s->disk);
    /* What finished made room; the second poll hands the newcomers to the kernel instead of leaving them to the next. */
    if (handled) {
        kvf_ssd_commit_step(s);
        start_requests(s);
        handled += s->disk->ops->poll(s->disk);
    }
    return handled;
}

unsigned kvf_ssd_wait(struct kvf_ssd *s, uint64_t timeout_ns)
{
    start_all(s);
    return kvf_disk_wait(s->disk, timeout_ns);
}

int kvf_ssd_event_fd(const struct kvf_ssd *s)
{
    return s->disk->ops->event_fd(s->disk);
}

bool kvf_ssd_idle(const struct kvf_ssd *s)
{
    return !any_queued(s) && kvf_order_in_flight(&s->order) == 0 && kvf_ssd_commit_idle(s);
}

/* ------------------------------------------------------------------------------------------------- slots */

bool kvf_ssd_degraded(const struct kvf_ssd *s)
{
    return s->degraded;
}

static bool record_fits(const struct kvf_ssd *s, uint32_t chunks)
{
    return !s->degraded && s->live_bytes + kvf_journal_record_bytes(chunks) <= s->live_max;
}

uint64_t kvf_ssd_alloc(struct kvf_ssd *s, uint32_t bytes, uint32_t chunks)
{
    uint64_t offset = record_fits(s, chunks) ? kvf_arena_alloc(s->arena, bytes) : KVF_ARENA_NONE;
    if (offset == KVF_ARENA_NONE)
        return offset;
    s->live_bytes += kvf_journal_record_bytes(chunks);
    return offset + s->slots_start;
}

void kvf_ssd_free(struct kvf_ssd *s, uint64_t offset, uint32_t bytes, uint32_t chunks)
{
    uint32_t record = kvf_journal_record_bytes(chunks);
    assert(offset >= s->slots_start && s->live_bytes >= record);
    kvf_arena_free(s->arena, offset - s->slots_start, bytes);
    s->live_bytes -= record;
    kvf_ssd_commit_freed(s, offset, bytes);
}

void kvf_ssd_stats(const struct kvf_ssd *s, struct kvf_ssd_stats *out)
{
    *out = s->stats;
    out->capacity_bytes = kvf_arena_bytes(s->arena);
    out->used_bytes = kvf_arena_used(s->arena);
    out->degraded = s->degraded;
    out->engine = s->disk->ops->name;
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++) {
        out->queued[p] = s->queues[p].count;
        out->in_flight[p] = s->order.in_flight[p];
        out->in_flight_bytes[p] = s->order.bytes[p];
    }
}
