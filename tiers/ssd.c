/* The SSD tier's queues: one per priority, in order of arrival. order.c says which goes next and how much of it; a request
 * that is larger goes in pieces, one after the other, and stands at the head of its queue between them. */
#include "tiers/ssd.h"
#include "tiers/arena.h"
#include "tiers/order.h"
#include "tiers/superblock.h"

#include <assert.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define UNIT 4096u
#define SLOTS_START (1ull << 20)
#define PAGE_BYTES_MIN (1u << 20)
/* A degraded area is tried with one page, first after PROBE_NS, then after twice as long each time. An area that fails
 * again soon after it worked goes on from there. */
#define PROBE_NS (1 * KVF_SEC)
#define PROBE_MAX_NS (60 * KVF_SEC)
/* The superblock is read and written before the node serves, so this is the one place that waits. */
#define START_NAP_MS 10
#define START_NAPS_MAX 3000u

struct queue {
    struct kvf_ssd_request *head, **tail;
    unsigned count;
};

struct kvf_ssd {
    struct kvf_disk *disk;
    const struct kvf_env *env;
    struct kvf_arena *arena;
    struct kvf_latencies *latencies;

    struct queue queues[KVF_PRIORITY_COUNT];
    struct kvf_order order;
    bool degraded, closing;

    int degraded_error;
    uint64_t degraded_ns, recovered_ns;
    struct kvf_ssd_request probe;
    uint8_t *probe_page;
    bool probing;
    uint64_t probe_offset, probe_due_ns, probe_wait_ns;

    uint64_t reads_done, writes_done, read_bytes, written_bytes, errors;
};

static void queue_clear(struct queue *q)
{
    q->head = NULL;
    q->tail = &q->head;
    q->count = 0;
}

static void queue_push(struct queue *q, struct kvf_ssd_request *r)
{
    r->next = NULL;
    *q->tail = r;
    q->tail = &r->next;
    q->count++;
}

/* Back to where it came from: its next piece. */
static void queue_push_front(struct queue *q, struct kvf_ssd_request *r)
{
    r->next = q->head;
    if (!q->head)
        q->tail = &r->next;
    q->head = r;
    q->count++;
}

static void queue_remove(struct queue *q, struct kvf_ssd_request **at)
{
    struct kvf_ssd_request *r = *at;
    if (!(*at = r->next))
        q->tail = at;
    q->count--;
}

/* ------------------------------------------------------------------------------------------------- start */

/* One synchronous request. On the heap, because a disk that never answers keeps it (and its buffer) for ever. */
struct start_io {
    struct kvf_disk_request request;
    bool done, abandoned;
    enum kvf_status status;
    uint8_t *page;
};

static void start_io_free(struct start_io *io)
{
    if (io)
        free(io->page);
    free(io);
}

static void start_done(void *arg, enum kvf_status status)
{
    struct start_io *io = arg;
    if (io->abandoned) {
        start_io_free(io);
        return;
    }
    io->done = true;
    io->status = status;
}

/* Reads or writes the superblock's page; `page` is copied in or out. Waits at most half a minute: ERR_DEADLINE. */
static enum kvf_status transfer_page(struct kvf_disk *disk, bool write, uint8_t page[KVF_SUPERBLOCK_BYTES])
{
    struct start_io *io = calloc(1, sizeof *io);
    if (io)
        io->page = aligned_alloc(UNIT, KVF_SUPERBLOCK_BYTES);
    if (!io || !io->page) {
        start_io_free(io);
        return KVF_ERR_NO_MEMORY;
    }
    memcpy(io->page, page, KVF_SUPERBLOCK_BYTES);
    io->request = (struct kvf_disk_request){
        .write = write, .data = io->page, .offset = 0, .bytes = KVF_SUPERBLOCK_BYTES, .done = start_done, .arg = io};
    enum kvf_status st = disk->ops->submit(disk, &io->request);
    if (st != KVF_OK) {
        start_io_free(io);
        return st;
    }
    for (unsigned naps = 0; naps < START_NAPS_MAX && !io->done; naps++) {
        struct pollfd wait = {.fd = disk->ops->event_fd(disk), .events = POLLIN};
        disk->ops->poll(disk);
        if (!io->done)
            (void)poll(&wait, 1, START_NAP_MS);
    }
    if (!io->done) {
        io->abandoned = true;
        return KVF_ERR_DEADLINE;
    }
    st = io->status;
    if (st == KVF_OK && !write)
        memcpy(page, io->page, KVF_SUPERBLOCK_BYTES);
    start_io_free(io);
    return st;
}

/* Looks at what stands there, then claims the area. */
static enum kvf_status write_superblock(struct kvf_disk *disk, const struct kvf_superblock *ours)
{
    uint8_t page[KVF_SUPERBLOCK_BYTES] = {0};
    struct kvf_superblock theirs;
    enum kvf_status st = transfer_page(disk, false, page);
    if (st != KVF_OK)
        return st;
    st = kvf_superblock_decode(page, sizeof page, &theirs);
    if (st == KVF_ERR_UNSUPPORTED)
        return st;
    if (st == KVF_OK && strcmp(theirs.node, ours->node) != 0)
        return KVF_ERR_CONFIG;
    kvf_superblock_encode(ours, page);
    st = transfer_page(disk, true, page);
    return st == KVF_OK ? disk->ops->sync(disk) : st;
}

enum kvf_status kvf_ssd_create(struct kvf_disk *disk, uint64_t bytes, const char *node_name, uint64_t incarnation,
                               uint32_t block_max, unsigned depth, const struct kvf_env *env, struct kvf_ssd **out)
{
    assert(disk && env && out);
    struct kvf_superblock superblock = {.version = KVF_SUPERBLOCK_VERSION, .align = UNIT, .slots_start = SLOTS_START,
                                        .area_bytes = bytes - bytes % UNIT, .incarnation = incarnation};
    if (!node_name || !node_name[0] || strlen(node_name) >= sizeof superblock.node || depth == 0 || block_max == 0 ||
        block_max > UINT32_MAX - UNIT)
        return KVF_ERR_INVALID;
    memcpy(superblock.node, node_name, strlen(node_name) + 1);
    uint32_t largest = (block_max + UNIT - 1) / UNIT * UNIT;
    superblock.page_bytes = largest > PAGE_BYTES_MIN ? largest : PAGE_BYTES_MIN;
    if (superblock.area_bytes < SLOTS_START + superblock.page_bytes)
        return KVF_ERR_INVALID;
    struct kvf_ssd *s = calloc(1, sizeof *s);
    if (!s)
        return KVF_ERR_NO_MEMORY;
    s->disk = disk;
    s->env = env;
    kvf_order_init(&s->order, depth);
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
        queue_clear(&s->queues[p]);
    s->probe_page = aligned_alloc(UNIT, UNIT);
    enum kvf_status st = KVF_ERR_NO_MEMORY;
    if (!s->probe_page)
        goto free_ssd;
    memset(s->probe_page, 0, UNIT);
    st = kvf_arena_create(NULL, superblock.area_bytes - SLOTS_START, UNIT, superblock.page_bytes, &s->arena);
    if (st != KVF_OK)
        goto free_ssd;
    st = write_superblock(disk, &superblock);
    if (st != KVF_OK)
        goto destroy_arena;
    *out = s;
    return KVF_OK;

destroy_arena:
    kvf_arena_destroy(s->arena);
free_ssd:
    free(s->probe_page);
    free(s);
    return st;
}

/* ------------------------------------------------------------------------------------------------- the queues */

static void degrade(struct kvf_ssd *s, int error)
{
    uint64_t now = kvf_now(s->env);
    if (s->degraded)
        return;
    s->degraded = true;
    s->degraded_error = error;
    s->degraded_ns = now;
    if (s->probe_wait_ns == 0 || now - s->recovered_ns > PROBE_MAX_NS)
        s->probe_wait_ns = PROBE_NS;
    s->probe_due_ns = now + s->probe_wait_ns;
}

static void observe(struct kvf_ssd *s, enum kvf_latency first, const struct kvf_ssd_request *r, uint64_t since_ns, uint64_t now)
{
    if (s->latencies)
        kvf_latency_add(s->latencies, (enum kvf_latency)(first + r->stands), now - since_ns);
}

static void count_done(struct kvf_ssd *s, const struct kvf_ssd_request *r, enum kvf_status status)
{
    bool write = r->disk.write, good = status == KVF_OK;
    s->errors += !good;
    if (write && !good)
        degrade(s, r->disk.error);
    *(write ? &s->writes_done : &s->reads_done) += good;
    *(write ? &s->written_bytes : &s->read_bytes) += good ? r->bytes : 0;
}

static void request_done(void *arg, enum kvf_status status)
{
    struct kvf_ssd_request *r = arg;
    struct kvf_ssd *s = r->ssd;
    uint64_t now = kvf_now(s->env);
    kvf_order_ended(&s->order, r->stands, r->disk.bytes, now);
    observe(s, KVF_LATENCY_SSD_DEVICE_DEMAND, r, r->given_ns, now);
    if (status == KVF_OK && r->left) {
        r->disk.data = (uint8_t *)r->disk.data + r->disk.bytes;
        r->disk.offset += r->disk.bytes;
        r->disk.bytes = r->left;
        r->left = 0;
        if (!s->closing) {
            queue_push_front(&s->queues[r->stands], r);
            return;
        }
        status = KVF_CANCELLED;
    }
    if (status != KVF_CANCELLED)
        count_done(s, r, status);
    r->done(r->arg, status);
}

/* Hands at most `bytes` of the queue's first to the disk; false when the disk takes no more now. */
static bool start_first(struct kvf_ssd *s, struct queue *q, uint32_t bytes, uint64_t now)
{
    struct kvf_ssd_request *r = q->head;
    uint32_t whole = r->disk.bytes;
    if (bytes < whole)
        r->disk.bytes = bytes;
    enum kvf_status st = s->disk->ops->submit(s->disk, &r->disk);
    if (st != KVF_OK) {
        assert(st == KVF_ERR_BUSY); /* alignment was tested when it was queued */
        r->disk.bytes = whole;
        return false;
    }
    queue_remove(q, &q->head);
    if (!r->given_ns)
        observe(s, KVF_LATENCY_SSD_QUEUE_DEMAND, r, r->queued_ns, now);
    r->given_ns = now;
    r->left = whole - r->disk.bytes;
    kvf_order_given(&s->order, r->stands, r->disk.bytes, now);
    return true;
}

static bool any_queued(const struct kvf_ssd *s)
{
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
        if (s->queues[p].head)
            return true;
    return false;
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
                waiting[p] = (struct kvf_order_waiting){s->queues[p].head->disk.bytes, s->queues[p].head->queued_ns};
        if (!kvf_order_next(&s->order, waiting, now, &next, &bytes) || !start_first(s, &s->queues[next], bytes, now))
            return;
    }
}

static void enqueue(struct kvf_ssd *s, struct kvf_ssd_request *r, bool write, uint64_t offset, void *data, uint32_t bytes)
{
    assert(r->done && data && (uintptr_t)data % UNIT == 0 && bytes > 0 && bytes % UNIT == 0);
    assert(offset % UNIT == 0 && offset >= SLOTS_START && offset - SLOTS_START + bytes <= kvf_arena_bytes(s->arena));
    assert(r->priority < KVF_PRIORITY_COUNT && (write || r->priority != KVF_PRIORITY_WRITE_BACK));
    r->ssd = s;
    r->stands = write ? KVF_PRIORITY_WRITE_BACK : r->priority;
    r->queued_ns = kvf_now(s->env);
    r->given_ns = 0;
    r->left = 0;
    r->bytes = bytes;
    r->disk = (struct kvf_disk_request){
        .write = write, .data = data, .offset = offset, .bytes = bytes, .done = request_done, .arg = r};
    queue_push(&s->queues[r->stands], r);
    start_requests(s);
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

void kvf_ssd_promote(struct kvf_ssd *s, struct kvf_ssd_request *r)
{
    struct queue *q = &s->queues[r->stands];
    assert(r->stands != KVF_PRIORITY_WRITE_BACK);
    if (r->stands == KVF_PRIORITY_DEMAND)
        return;
    for (struct kvf_ssd_request **at = &q->head; *at; at = &(*at)->next) {
        if (*at != r)
            continue;
        queue_remove(q, at);
        r->stands = KVF_PRIORITY_DEMAND;
        queue_push(&s->queues[KVF_PRIORITY_DEMAND], r);
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
    if (status != KVF_OK)
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
    kvf_ssd_write(s, &s->probe, s->probe_offset + SLOTS_START, s->probe_page, UNIT);
}

unsigned kvf_ssd_poll(struct kvf_ssd *s)
{
    probe(s);
    start_requests(s);
    unsigned handled = s->disk->ops->poll(s->disk);
    /* What finished made room; the second poll hands the newcomers to the kernel instead of leaving them to the next. */
    if (handled && any_queued(s)) {
        start_requests(s);
        handled += s->disk->ops->poll(s->disk);
    }
    return handled;
}

int kvf_ssd_event_fd(const struct kvf_ssd *s)
{
    return s->disk->ops->event_fd(s->disk);
}

bool kvf_ssd_idle(const struct kvf_ssd *s)
{
    return !any_queued(s) && kvf_order_in_flight(&s->order) == 0;
}

static void cancel_queues(struct kvf_ssd *s)
{
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++) {
        struct kvf_ssd_request *r = s->queues[p].head, *next;
        queue_clear(&s->queues[p]);
        for (; r; r = next) {
            next = r->next;
            r->done(r->arg, KVF_CANCELLED);
        }
    }
}

void kvf_ssd_destroy(struct kvf_ssd *s)
{
    if (!s)
        return;
    s->closing = true;
    cancel_queues(s);
    s->disk->ops->close(s->disk);
    while (any_queued(s)) /* what callbacks queued meanwhile */
        cancel_queues(s);
    assert(kvf_order_in_flight(&s->order) == 0);
    kvf_arena_destroy(s->arena);
    free(s->probe_page);
    free(s);
}

/* ------------------------------------------------------------------------------------------------- slots */

bool kvf_ssd_degraded(const struct kvf_ssd *s)
{
    return s->degraded;
}

uint64_t kvf_ssd_alloc(struct kvf_ssd *s, uint32_t bytes)
{
    uint64_t offset = s->degraded ? KVF_ARENA_NONE : kvf_arena_alloc(s->arena, bytes);
    return offset == KVF_ARENA_NONE ? offset : offset + SLOTS_START;
}

void kvf_ssd_free(struct kvf_ssd *s, uint64_t offset, uint32_t bytes)
{
    assert(offset >= SLOTS_START);
    kvf_arena_free(s->arena, offset - SLOTS_START, bytes);
}

void kvf_ssd_stats(const struct kvf_ssd *s, struct kvf_ssd_stats *out)
{
    *out = (struct kvf_ssd_stats){
        .capacity_bytes = kvf_arena_bytes(s->arena),
        .used_bytes = kvf_arena_used(s->arena),
        .reads = s->reads_done,
        .writes = s->writes_done,
        .read_bytes = s->read_bytes,
        .written_bytes = s->written_bytes,
        .errors = s->errors,
        .degraded = s->degraded,
        .degraded_error = s->degraded_error,
        .degraded_ns = s->degraded_ns,
        .engine = s->disk->ops->name,
    };
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++) {
        out->queued[p] = s->queues[p].count;
        out->in_flight[p] = s->order.in_flight[p];
        out->in_flight_bytes[p] = s->order.bytes[p];
    }
}
