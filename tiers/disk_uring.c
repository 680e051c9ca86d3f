/* The disk by io_uring: one ring, registered file, registered memory.
 *
 *   submit --> waiting list --> SQE (pushed list) --> kernel --> CQE --> callback
 *                       \______ poll does all of this ______/
 *
 * What was queued goes to the kernel in groups of GROUP, a full one already inside submit, the rest at the next poll: so the
 * owner polls after a batch of submits and whenever the event fd (the ring itself: readable while completions wait) says so.
 *
 * Why small groups: of more than two requests that come in one system call the kernel shows the device none before it has
 * prepared them all (it "plugs" the queue), and a device that answers many at once (virtio: one interrupt for all that waited)
 * stands idle that long after each of its answers. With all in one call, reads of 4 KiB at depth 32 were an eighth slower than
 * fio's, in pairs they are as fast; the processor's time per request is some 6 % more.
 *
 * Ring flags. One thread hands over and polls at a time, but not always the same: who opens, the reactor, who closes. So
 * SINGLE_ISSUER and DEFER_TASKRUN are not allowed (tried beside, they brought nothing). COOP_TASKRUN spares the interrupt of a
 * thread that runs: the reactor, which alone polls while the node serves, looks (TASKRUN_FLAG makes that look complete) or
 * sleeps, and is woken then. */
#include "tiers/disk_engine.h"
#include "base/env.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The kernel takes at most 1 GiB in one registered buffer: a larger area is registered in pieces. A request that crosses
 * the end of a piece, or lies beyond the last, goes as an ordinary one. */
#define PIECE_BYTES (1ull << 30)
#define PIECES_MAX 2048u
#define AREAS_MAX PIECES_MAX
#define ENTER_TRIES_MAX 16u
#define GROUP 2u /* the most that the kernel hands on one by one */

struct slot {
    struct kvf_disk_request *request;
    struct io_uring_sqe *sqe; /* while pushed */
    unsigned tries;
    struct slot *next;
};

struct list {
    struct slot *head, **tail;
};

struct area {
    uint8_t *base;
    size_t bytes;
    unsigned piece; /* number of its first registered buffer */
};

struct uring {
    struct kvf_disk disk;
    struct io_uring ring;
    int fd;
    const struct kvf_log *log;

    struct slot *slots, *free;
    unsigned in_flight; /* slots taken */
    unsigned in_kernel; /* SQEs consumed by the kernel whose CQE has not come */
    unsigned nops;      /* no-operations of fail_all, ahead of the pushed ones in the submission queue */
    struct list waiting, pushed;
    bool fixed_file, fixed_buffers, closing;
    unsigned failures_logged;

    struct area areas[AREAS_MAX]; /* by address */
    unsigned areas_count, pieces;
};

static void list_clear(struct list *l)
{
    l->head = NULL;
    l->tail = &l->head;
}

static void list_push(struct list *l, struct slot *s)
{
    s->next = NULL;
    *l->tail = s;
    l->tail = &s->next;
}

static struct slot *list_pop(struct list *l)
{
    struct slot *s = l->head;
    if (s && !(l->head = s->next))
        l->tail = &l->head;
    return s;
}

/* The first area that begins behind the address. */
static unsigned area_behind(const struct uring *u, const uint8_t *data)
{
    unsigned low = 0, high = u->areas_count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (u->areas[middle].base <= data)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The registered buffer that holds the range whole, or -1. */
static int buffer_of(const struct uring *u, const uint8_t *data, size_t bytes)
{
    unsigned behind = area_behind(u, data);
    const struct area *a = behind ? &u->areas[behind - 1] : NULL;
    if (!a || data >= a->base + a->bytes)
        return -1;
    uint64_t at = (uint64_t)(data - a->base), piece = at / PIECE_BYTES;
    uint64_t piece_end = (piece + 1) * PIECE_BYTES < a->bytes ? (piece + 1) * PIECE_BYTES : a->bytes;
    return at + bytes <= piece_end ? (int)(a->piece + piece) : -1;
}

/* One piece of memory. */
static void fill_piece(const struct uring *u, struct slot *s, int fd)
{
    struct kvf_disk_request *r = s->request;
    struct iovec v = kvf_disk_request_rest(r);
    unsigned left = (unsigned)v.iov_len;
    uint64_t offset = r->offset + r->transferred;
    int buffer = buffer_of(u, v.iov_base, left);
    if (buffer >= 0 && r->write)
        io_uring_prep_write_fixed(s->sqe, fd, v.iov_base, left, offset, buffer);
    else if (buffer >= 0)
        io_uring_prep_read_fixed(s->sqe, fd, v.iov_base, left, offset, buffer);
    else if (r->write)
        io_uring_prep_write(s->sqe, fd, v.iov_base, left, offset);
    else
        io_uring_prep_read(s->sqe, fd, v.iov_base, left, offset);
}

static void fill_sqe(const struct uring *u, struct slot *s)
{
    struct kvf_disk_request *r = s->request;
    int fd = u->fixed_file ? 0 : u->fd;
    if (r->sync)
        io_uring_prep_fsync(s->sqe, fd, IORING_FSYNC_DATASYNC);
    else if (r->iov && !r->transferred && r->write)
        io_uring_prep_writev(s->sqe, fd, r->iov, r->iov_count, r->offset);
    else if (r->iov && !r->transferred)
        io_uring_prep_readv(s->sqe, fd, r->iov, r->iov_count, r->offset);
    else
        fill_piece(u, s, fd); /* also what a short transfer left, piece by piece */
    if (u->fixed_file)
        io_uring_sqe_set_flags(s->sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(s->sqe, s);
}

/* Fills the submission queue up to one group, behind what fail_all left there. */
static void push_group(struct uring *u)
{
    assert(io_uring_sq_ready(&u->ring) >= u->nops);
    while (u->waiting.head && io_uring_sq_ready(&u->ring) - u->nops < GROUP) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
        if (!sqe)
            return;
        struct slot *s = list_pop(&u->waiting);
        s->sqe = sqe;
        fill_sqe(u, s);
        list_push(&u->pushed, s);
    }
}

/* Gives the slot back, then tells the owner, who may submit again from the callback. */
static void finish(struct uring *u, struct slot *s, enum kvf_status status, int64_t result)
{
    struct kvf_disk_request *r = s->request;
    if (status != KVF_OK)
        kvf_disk_log_failure(u->log, "io_uring", r, result, &u->failures_logged);
    s->request = NULL;
    s->next = u->free;
    u->free = s;
    assert(u->in_flight > 0);
    u->in_flight--;
    r->done(r->arg, status);
}

/* What the kernel did not take is turned into no-operations, which it may take later, and fails, as does what waits behind it.
 * All of it leaves the lists before the first callback, which may submit again. */
static unsigned fail_all(struct uring *u, int error)
{
    unsigned failed = 0;
    struct slot *next;
    for (struct slot *s = u->pushed.head; s; s = s->next, u->nops++) {
        io_uring_prep_nop(s->sqe);
        io_uring_sqe_set_data(s->sqe, NULL);
        s->sqe = NULL;
    }
    *u->pushed.tail = u->waiting.head;
    struct slot *first = u->pushed.head;
    list_clear(&u->pushed);
    list_clear(&u->waiting);
    for (struct slot *s = first; s; s = next, failed++) {
        next = s->next;
        finish(u, s, KVF_ERR_IO, error);
    }
    return failed;
}

/* The kernel took the first n of the submission queue. */
static void taken(struct uring *u, unsigned n)
{
    for (; n > 0; n--, u->in_kernel++) {
        if (u->nops)
            u->nops--;
        else
            list_pop(&u->pushed)->sqe = NULL;
    }
}

/* Hands over what is pushed and waiting. A refusal for lack of memory is no reason to wait when nothing of ours is in the
 * kernel whose completion would bring us back here: then it is tried a few times and fails. Returns how many failed. */
static unsigned hand_over(struct uring *u)
{
    for (unsigned tries = 0;;) {
        push_group(u);
        if (!io_uring_sq_ready(&u->ring))
            return 0;
        int n = io_uring_submit(&u->ring);
        if (n == -EINTR || n == 0)
            n = -EAGAIN;
        if (n == -EAGAIN || n == -EBUSY) {
            if (u->in_kernel)
                return 0;
            if (++tries < ENTER_TRIES_MAX) {
                sched_yield();
                continue;
            }
        }
        if (n < 0)
            return fail_all(u, n);
        taken(u, (unsigned)n);
        tries = 0;
    }
}

/* Calls back for the completions that wait; not for those of requests that its callbacks submit. */
static unsigned reap(struct uring *u)
{
    unsigned handled = 0;
    struct io_uring_cqe *cqe;
    for (unsigned left = u->in_kernel; left > 0 && io_uring_peek_cqe(&u->ring, &cqe) == 0; left--) {
        struct slot *s = io_uring_cqe_get_data(cqe);
        int64_t result = cqe->res;
        io_uring_cqe_seen(&u->ring, cqe);
        u->in_kernel--;
        if (!s)
            continue; /* a no-operation of fail_all */
        enum kvf_status status = kvf_disk_request_step(s->request, result, &s->tries);
        if (status == KVF_IN_PROGRESS) {
            list_push(&u->waiting, s);
            continue;
        }
        finish(u, s, status, result);
        handled++;
    }
    return handled;
}

/* Hands over the group that waits, if the kernel will have it; what it refuses is left to the poll, which may call back. */
static void start_group(struct uring *u)
{
    if (io_uring_sq_ready(&u->ring))
        return; /* it refused some before */
    push_group(u);
    int n = io_uring_submit(&u->ring);
    if (n > 0)
        taken(u, (unsigned)n);
}

static enum kvf_status uring_submit(struct kvf_disk *disk, struct kvf_disk_request *r)
{
    struct uring *u = (struct uring *)disk;
    if (!kvf_disk_request_valid(r))
        return KVF_ERR_INVALID;
    if (!u->free || u->closing)
        return KVF_ERR_BUSY;
    struct slot *s = u->free;
    u->free = s->next;
    r->transferred = 0;
    *s = (struct slot){.request = r};
    u->in_flight++;
    bool group = u->waiting.head != NULL;
    list_push(&u->waiting, s);
    if (group)
        start_group(u);
    return KVF_OK;
}

static unsigned uring_poll(struct kvf_disk *disk)
{
    struct uring *u = (struct uring *)disk;
    if (!u->in_flight && !u->in_kernel)
        return 0;
    unsigned handled = hand_over(u);
    handled += reap(u);
    /* Continued requests, and what the callbacks submitted: they do not wait for the next poll. */
    if (u->waiting.head)
        handled += hand_over(u);
    return handled;
}

/* What the kernel refuses here is left to the poll. */
static unsigned uring_wait(struct kvf_disk *disk, uint64_t timeout_ns)
{
    struct uring *u = (struct uring *)disk;
    if (u->in_flight && !io_uring_cq_ready(&u->ring)) {
        struct __kernel_timespec until = {.tv_sec = (int64_t)(timeout_ns / KVF_SEC), .tv_nsec = (int64_t)(timeout_ns % KVF_SEC)};
        struct io_uring_cqe *cqe;
        push_group(u);
        unsigned before = io_uring_sq_ready(&u->ring);
        (void)io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &until, NULL);
        taken(u, before - io_uring_sq_ready(&u->ring));
    }
    return uring_poll(disk);
}

static int uring_event_fd(struct kvf_disk *disk)
{
    return ((struct uring *)disk)->ring.ring_fd;
}

static void uring_register_memory(struct kvf_disk *disk, void *base, size_t bytes)
{
    struct uring *u = (struct uring *)disk;
    uint64_t pieces = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    if (!u->fixed_buffers || u->areas_count == AREAS_MAX || bytes == 0 || pieces > PIECES_MAX - u->pieces)
        return;
    for (uint64_t i = 0; i < pieces; i++) {
        uint64_t start = i * PIECE_BYTES, left = bytes - start;
        struct iovec v = {.iov_base = (uint8_t *)base + start, .iov_len = left < PIECE_BYTES ? left : PIECE_BYTES};
        __u64 tag = 0;
        int n = io_uring_register_buffers_update_tag(&u->ring, u->pieces + (unsigned)i, &v, &tag, 1);
        if (n != 1) {
            /* Pieces that were taken stay registered but unused until close: their memory is the caller's until then. */
            kvf_log_info(u->log, "SSD: %zu MiB not registered with io_uring (%s); reads there cost a little more", bytes >> 20,
                         n < 0 ? strerror(-n) : "no room");
            u->pieces += (unsigned)i;
            return;
        }
    }
    unsigned at = area_behind(u, base);
    memmove(&u->areas[at + 1], &u->areas[at], (u->areas_count - at) * sizeof u->areas[0]);
    u->areas[at] = (struct area){.base = base, .bytes = bytes, .piece = u->pieces};
    u->areas_count++;
    u->pieces += (unsigned)pieces;
}

static enum kvf_status uring_sync(struct kvf_disk *disk)
{
    struct uring *u = (struct uring *)disk;
    return kvf_disk_sync_fd(u->fd, u->log);
}

static void uring_close(struct kvf_disk *disk)
{
    struct uring *u = (struct uring *)disk;
    u->closing = true;
    while (u->in_flight)
        uring_wait(disk, 100 * KVF_MS);
    io_uring_queue_exit(&u->ring);
    kvf_disk_close_fd(u->fd);
    free(u->slots);
    free(u);
}

static const struct kvf_disk_ops uring_ops = {
    .name = "io_uring",
    .submit = uring_submit,
    .poll = uring_poll,
    .event_fd = uring_event_fd,
    .wait = uring_wait,
    .register_memory = uring_register_memory,
    .sync = uring_sync,
    .close = uring_close,
};

/* What we use beyond the ring itself. */
static bool has_operations(struct io_uring *ring)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool has = probe && io_uring_opcode_supported(probe, IORING_OP_READ) && io_uring_opcode_supported(probe, IORING_OP_WRITE);
    io_uring_free_probe(probe);
    return has;
}

bool kvf_disk_uring_usable(char *why, size_t size)
{
    struct io_uring ring;
    int rc = io_uring_queue_init(1, &ring, 0);
    if (rc < 0) {
        snprintf(why, size, "the kernel refuses a ring: %s%s", strerror(-rc),
                 rc == -EPERM ? " (kernel.io_uring_disabled, or a seccomp filter)" : "");
        return false;
    }
    bool usable = has_operations(&ring);
    io_uring_queue_exit(&ring);
    snprintf(why, size, "%s", usable ? "" : "the kernel's io_uring is too old (no read and write operations)");
    return usable;
}

enum kvf_status kvf_disk_uring_create(int fd, unsigned depth, const struct kvf_log *log, struct kvf_disk **out)
{
    if (fd < 0 || depth == 0 || depth > KVF_DISK_DEPTH_MAX)
        return KVF_ERR_INVALID;
    enum kvf_status st = KVF_ERR_NO_MEMORY;
    struct uring *u = calloc(1, sizeof *u);
    if (!u)
        return st;
    u->disk.ops = &uring_ops;
    u->fd = fd;
    u->log = log;
    list_clear(&u->waiting);
    list_clear(&u->pushed);
    u->slots = calloc(depth, sizeof *u->slots);
    if (!u->slots)
        goto free_disk;
    for (unsigned i = depth; i-- > 0; u->free = &u->slots[i])
        u->slots[i].next = u->free;
    st = KVF_ERR_UNSUPPORTED;
    if (io_uring_queue_init(depth, &u->ring, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG) < 0 &&
        io_uring_queue_init(depth, &u->ring, 0) < 0) /* before Linux 5.19 */
        goto free_slots;
    if (!has_operations(&u->ring))
        goto exit_ring;
    u->fixed_file = io_uring_register_files(&u->ring, &fd, 1) == 0;
    u->fixed_buffers = io_uring_register_buffers_sparse(&u->ring, PIECES_MAX) == 0;
    *out = &u->disk;
    return KVF_OK;

exit_ring:
    io_uring_queue_exit(&u->ring);
free_slots:
    free(u->slots);
free_disk:
    free(u);
    return st;
}
