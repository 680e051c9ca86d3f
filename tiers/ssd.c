/* The SSD tier's queues. Reads are what a decode step waits for, so they go first:
 *
 *   read queue  --------------------> disk     as long as fewer than `depth` requests are in flight
 *   write queue --(no read waits)---> disk     at most half of the depth and WRITES_BYTES_MAX bytes at a time, so that a
 *                                              read that comes during a burst of writes finds room and little ahead of it
 *
 * Writes cannot starve: when the oldest has waited AGE_NS and AGE_NS have passed since writes last had a turn, up to
 * TURN_BYTES of them (at least one) go beside the reads. */
#include "tiers/ssd.h"
#include "tiers/arena.h"
#include "tiers/superblock.h"

#include <assert.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define UNIT 4096u
#define SLOTS_START (1ull << 20)
#define PAGE_BYTES_MIN (1u << 20)
#define AGE_NS (50 * KVF_MS)
#define TURN_BYTES (2u << 20)
#define WRITES_BYTES_MAX (4u << 20)
/* The superblock is read and written before the node serves, so this is the one place that waits. */
#define START_NAP_MS 10
#define START_NAPS_MAX 3000u

struct queue {
    struct kvf_ssd_request *head, **tail;
};

struct kvf_ssd {
    struct kvf_disk *disk;
    const struct kvf_env *env;
    struct kvf_arena *arena;
    unsigned depth;

    struct queue reads, writes;
    unsigned reads_in_flight, writes_in_flight;
    uint64_t write_bytes_in_flight;
    uint64_t turn_ns; /* when writes last had an aged turn */
    bool degraded, closing;

    uint64_t reads_done, writes_done, read_bytes, written_bytes, errors;
};

static void queue_clear(struct queue *q)
{
    q->head = NULL;
    q->tail = &q->head;
}

static void queue_push(struct queue *q, struct kvf_ssd_request *r)
{
    r->next = NULL;
    *q->tail = r;
    q->tail = &r->next;
}

static struct kvf_ssd_request *queue_pop(struct queue *q)
{
    struct kvf_ssd_request *r = q->head;
    if (r && !(q->head = r->next))
        q->tail = &q->head;
    return r;
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
    s->depth = depth;
    queue_clear(&s->reads);
    queue_clear(&s->writes);
    enum kvf_status st = kvf_arena_create(NULL, superblock.area_bytes - SLOTS_START, UNIT, superblock.page_bytes, &s->arena);
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
    free(s);
    return st;
}

/* ------------------------------------------------------------------------------------------------- the queues */

static void request_done(void *arg, enum kvf_status status)
{
    struct kvf_ssd_request *r = arg;
    struct kvf_ssd *s = r->ssd;
    uint32_t bytes = r->disk.bytes;
    s->errors += status != KVF_OK;
    if (r->disk.write) {
        assert(s->writes_in_flight > 0 && s->write_bytes_in_flight >= bytes);
        s->writes_in_flight--;
        s->write_bytes_in_flight -= bytes;
        s->writes_done += status == KVF_OK;
        s->written_bytes += status == KVF_OK ? bytes : 0;
        s->degraded |= status != KVF_OK;
    } else {
        assert(s->reads_in_flight > 0);
        s->reads_in_flight--;
        s->reads_done += status == KVF_OK;
        s->read_bytes += status == KVF_OK ? bytes : 0;
    }
    r->done(r->arg, status);
}

/* Hands the queue's first to the disk; false when the disk takes no more now. */
static bool start_first(struct kvf_ssd *s, struct queue *q)
{
    struct kvf_ssd_request *r = q->head;
    if (s->reads_in_flight + s->writes_in_flight >= s->depth)
        return false;
    enum kvf_status st = s->disk->ops->submit(s->disk, &r->disk);
    if (st != KVF_OK) {
        assert(st == KVF_ERR_BUSY); /* alignment was tested when it was queued */
        return false;
    }
    queue_pop(q);
    if (r->disk.write) {
        s->writes_in_flight++;
        s->write_bytes_in_flight += r->disk.bytes;
    } else {
        s->reads_in_flight++;
    }
    return true;
}

/* Room for the first write beside those in flight; one may always go. */
static bool write_fits(const struct kvf_ssd *s)
{
    return s->writes_in_flight == 0 || (s->writes_in_flight < (s->depth + 1) / 2 &&
                                        s->write_bytes_in_flight + s->writes.head->disk.bytes <= WRITES_BYTES_MAX);
}

/* The aged turn comes before the reads of this round, or a read queue that is never empty would take every place. */
static void start_aged(struct kvf_ssd *s, uint64_t now_ns)
{
    if (!s->writes.head || now_ns - s->writes.head->queued_ns < AGE_NS || now_ns - s->turn_ns < AGE_NS)
        return;
    for (uint64_t bytes = 0; s->writes.head && write_fits(s);) {
        bytes += s->writes.head->disk.bytes;
        if ((bytes > TURN_BYTES && bytes != s->writes.head->disk.bytes) || !start_first(s, &s->writes))
            break;
        s->turn_ns = now_ns;
    }
}

static void start_requests(struct kvf_ssd *s)
{
    if (s->closing)
        return;
    if (s->writes.head && (s->reads.head || s->reads_in_flight))
        start_aged(s, kvf_now(s->env));
    while (s->reads.head && start_first(s, &s->reads))
        ;
    while (s->writes.head && !s->reads.head && !s->reads_in_flight && write_fits(s) && start_first(s, &s->writes))
        ;
}

static void enqueue(struct kvf_ssd *s, struct queue *q, struct kvf_ssd_request *r, bool write, uint64_t offset, void *data,
                    uint32_t bytes)
{
    assert(r->done && data && (uintptr_t)data % UNIT == 0 && bytes > 0 && bytes % UNIT == 0);
    assert(offset % UNIT == 0 && offset >= SLOTS_START && offset - SLOTS_START + bytes <= kvf_arena_bytes(s->arena));
    r->ssd = s;
    r->queued_ns = kvf_now(s->env);
    r->disk = (struct kvf_disk_request){
        .write = write, .data = data, .offset = offset, .bytes = bytes, .done = request_done, .arg = r};
    queue_push(q, r);
    start_requests(s);
}

void kvf_ssd_read(struct kvf_ssd *s, struct kvf_ssd_request *r, uint64_t offset, void *data, uint32_t bytes)
{
    enqueue(s, &s->reads, r, false, offset, data, bytes);
}

void kvf_ssd_write(struct kvf_ssd *s, struct kvf_ssd_request *r, uint64_t offset, const void *data, uint32_t bytes)
{
    /* The disk's requests have one pointer for both directions; a write only reads it. */
    enqueue(s, &s->writes, r, true, offset, (void *)(uintptr_t)data, bytes);
}

unsigned kvf_ssd_poll(struct kvf_ssd *s)
{
    start_requests(s);
    unsigned handled = s->disk->ops->poll(s->disk);
    /* What finished made room; the second poll hands the newcomers to the kernel instead of leaving them to the next. */
    if (handled && (s->reads.head || s->writes.head)) {
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
    return !s->reads.head && !s->writes.head && !s->reads_in_flight && !s->writes_in_flight;
}

static void cancel_queue(struct queue *q)
{
    struct kvf_ssd_request *r = q->head, *next;
    queue_clear(q);
    for (; r; r = next) {
        next = r->next;
        r->done(r->arg, KVF_CANCELLED);
    }
}

void kvf_ssd_destroy(struct kvf_ssd *s)
{
    if (!s)
        return;
    s->closing = true;
    cancel_queue(&s->reads);
    cancel_queue(&s->writes);
    s->disk->ops->close(s->disk);
    /* What callbacks queued meanwhile. */
    while (s->reads.head || s->writes.head) {
        cancel_queue(&s->reads);
        cancel_queue(&s->writes);
    }
    assert(!s->reads_in_flight && !s->writes_in_flight);
    kvf_arena_destroy(s->arena);
    free(s);
}

/* ------------------------------------------------------------------------------------------------- slots */

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
        .engine = s->disk->ops->name,
    };
}
