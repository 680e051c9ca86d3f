/* The disk double. Effects on media and buffers happen at completion, as with a real disk that was asked and not yet done. */
#include "tests/sim/sim_disk.h"
#include "base/hash.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define UNIT 4096u
#define SECTOR 512u

struct sim_unsynced {
    uint64_t offset;
    uint32_t bytes;
    uint8_t *data;
};

struct pending {
    struct kvf_disk_request *request;
    enum sim_fault fault;
    unsigned polls_left;
    uint64_t mark; /* sync: writes that had completed when it was submitted */
    bool released;
};

struct plan {
    enum sim_fault fault;
    unsigned after, count;
};

struct sim_disk {
    struct kvf_disk disk;
    struct sim_media *media;
    unsigned depth, count, slow;
    struct pending *pending; /* [depth], oldest first */
    struct plan plans[3];    /* reads, writes, syncs */
    bool hold, closing, dead, cut_planned;
    unsigned cut_after, cut_misdirect;
    uint64_t cut_seed;
    int event_fd;
    bool signalled;
    sim_disk_fate_fn fate;
    void *fate_arg;
    uint64_t reads, writes, syncs, most_write_bytes;
    unsigned most_pending;
};

enum kvf_status sim_media_create(uint64_t size, struct sim_media **out)
{
    struct sim_media *m = calloc(1, sizeof *m);
    if (!m)
        return KVF_ERR_NO_MEMORY;
    m->size = size;
    m->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->bytes == MAP_FAILED) {
        free(m);
        return KVF_ERR_NO_MEMORY;
    }
    *out = m;
    return KVF_OK;
}

void sim_media_destroy(struct sim_media *m)
{
    if (!m)
        return;
    for (unsigned i = 0; i < m->n_unsynced; i++)
        free(m->unsynced[i].data);
    free(m->unsynced);
    if (m->durable)
        munmap(m->durable, m->size);
    munmap(m->bytes, m->size);
    free(m);
}

enum kvf_status sim_media_track(struct sim_media *m)
{
    m->durable = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->durable == MAP_FAILED) {
        m->durable = NULL;
        return KVF_ERR_NO_MEMORY;
    }
    return KVF_OK;
}

/* The first `mark` writes ever are safe; or lost, as far as no sync before made them safe. */
static void media_sync(struct sim_media *m, uint64_t mark, bool lost)
{
    unsigned count = mark > m->synced ? (unsigned)(mark - m->synced) : 0;
    assert(count <= m->n_unsynced);
    for (unsigned i = 0; i < count; i++) {
        if (!lost)
            memcpy(m->durable + m->unsynced[i].offset, m->unsynced[i].data, m->unsynced[i].bytes);
        free(m->unsynced[i].data);
    }
    m->n_unsynced -= count;
    m->synced += count;
    if (count)
        memmove(m->unsynced, m->unsynced + count, m->n_unsynced * sizeof *m->unsynced);
}

static void remember(struct sim_media *m, uint64_t offset, const uint8_t *data, uint32_t bytes)
{
    if (m->n_unsynced == m->unsynced_room) {
        m->unsynced_room = m->unsynced_room ? 2 * m->unsynced_room : 64;
        m->unsynced = realloc(m->unsynced, m->unsynced_room * sizeof *m->unsynced);
        assert(m->unsynced);
    }
    struct sim_unsynced *u = &m->unsynced[m->n_unsynced++];
    *u = (struct sim_unsynced){.offset = offset, .bytes = bytes, .data = malloc(bytes)};
    assert(u->data);
    memcpy(u->data, data, bytes);
}

static void media_write(struct sim_disk *d, uint64_t offset, const uint8_t *data, uint32_t bytes)
{
    memcpy(d->media->bytes + offset, data, bytes);
    if (d->media->durable)
        remember(d->media, offset, data, bytes);
}

/* One write after a power cut: what of it is found on the media. */
static void survive(struct sim_media *m, const struct sim_unsynced *u, uint64_t *random, unsigned misdirect)
{
    uint64_t fate = *random = kvf_mix(*random, u->offset), offset = u->offset;
    if (misdirect && fate % misdirect == 0 && u->bytes < m->size)
        offset = fate / misdirect % ((m->size - u->bytes) / UNIT + 1) * UNIT;
    else if (fate % 3 == 0)
        return;
    for (uint32_t at = 0; at < u->bytes; at += SECTOR) {
        if (fate % 3 == 1 && ((*random = kvf_mix(*random, at)) & 1))
            continue; /* torn */
        memcpy(m->durable + offset + at, u->data + at, SECTOR);
    }
}

void sim_disk_cut(struct sim_disk *d, uint64_t seed, unsigned misdirect)
{
    struct sim_media *m = d->media;
    uint64_t random = seed;
    assert(m->durable);
    for (unsigned i = 0; i < d->count; i++) {
        const struct kvf_disk_request *r = d->pending[i].request;
        struct iovec one = {.iov_base = r->data, .iov_len = r->bytes};
        uint64_t offset = r->offset;
        for (unsigned v = 0; r->write && !r->sync && v < (r->iov ? r->iov_count : 1); v++) {
            const struct iovec *piece = r->iov ? &r->iov[v] : &one;
            remember(m, offset, piece->iov_base, (uint32_t)piece->iov_len);
            offset += piece->iov_len;
        }
    }
    for (unsigned i = 0; i < m->n_unsynced; i++) {
        survive(m, &m->unsynced[i], &random, misdirect);
        free(m->unsynced[i].data);
    }
    m->synced += m->n_unsynced;
    m->n_unsynced = 0;
    memcpy(m->bytes, m->durable, m->size);
    d->dead = true;
}

static bool transfer(struct sim_disk *d, const struct kvf_disk_request *r, uint64_t offset, uint32_t bytes);

void sim_disk_kill(struct sim_disk *d, uint64_t seed)
{
    for (unsigned i = 0; i < d->count; i++) {
        const struct kvf_disk_request *r = d->pending[i].request;
        if (r->write && !r->sync && kvf_mix(seed, i) % 2)
            (void)transfer(d, r, r->offset, r->bytes);
    }
    d->dead = true;
}

/* The event fd, where one was asked for, is readable while something may complete at the next poll. */
static void signal_ready(struct sim_disk *d)
{
    if (!d->signalled && d->event_fd >= 0)
        (void)!write(d->event_fd, &(uint64_t){1}, sizeof(uint64_t));
    d->signalled = true;
}

static enum sim_fault next_fault(struct sim_disk *d, unsigned kind)
{
    struct plan *p = &d->plans[kind];
    if (!p->count)
        return SIM_FAULT_NONE;
    if (p->after) {
        p->after--;
        return SIM_FAULT_NONE;
    }
    p->count--;
    return p->fault;
}

void sim_disk_cut_at_write(struct sim_disk *d, unsigned n, uint64_t seed, unsigned misdirect)
{
    d->cut_planned = true;
    d->cut_after = n;
    d->cut_seed = seed;
    d->cut_misdirect = misdirect;
}

bool sim_disk_dead(const struct sim_disk *d)
{
    return d->dead;
}

static bool pieces_valid(const struct kvf_disk_request *r)
{
    struct iovec one = {.iov_base = r->data, .iov_len = r->bytes};
    uint64_t sum = 0;
    for (unsigned i = 0; i < (r->iov ? r->iov_count : 1); i++) {
        const struct iovec *v = r->iov ? &r->iov[i] : &one;
        if ((uintptr_t)v->iov_base % UNIT || v->iov_len % UNIT || !v->iov_len)
            return false;
        sum += v->iov_len;
    }
    return sum == r->bytes;
}

static enum kvf_status sim_submit(struct kvf_disk *disk, struct kvf_disk_request *r)
{
    struct sim_disk *d = (struct sim_disk *)disk;
    if (!r->sync && (!r->bytes || r->offset % UNIT || r->bytes % UNIT || !pieces_valid(r)))
        return KVF_ERR_INVALID;
    if (d->count == d->depth || d->closing)
        return KVF_ERR_BUSY;
    unsigned polls = d->slow;
    enum sim_fault fault = d->fate ? d->fate(d->fate_arg, r, &polls) : SIM_FAULT_NONE;
    if (fault == SIM_FAULT_NONE)
        fault = next_fault(d, r->sync ? 2 : r->write);
    d->pending[d->count++] = (struct pending){
        .request = r, .fault = fault, .polls_left = polls, .mark = d->media->synced + d->media->n_unsynced};
    if (r->write && !r->sync && d->cut_planned && !d->dead && d->cut_after-- == 0)
        sim_disk_cut(d, d->cut_seed, d->cut_misdirect);
    uint64_t write_bytes = 0;
    for (unsigned i = 0; i < d->count; i++)
        write_bytes += d->pending[i].request->write && !d->pending[i].request->sync ? d->pending[i].request->bytes : 0;
    if (write_bytes > d->most_write_bytes)
        d->most_write_bytes = write_bytes;
    if (d->count > d->most_pending)
        d->most_pending = d->count;
    if (!d->hold)
        signal_ready(d);
    return KVF_OK;
}

/* Moves `bytes` between the buffer and the media at `offset`; false when that is not all on the media. */
static bool transfer(struct sim_disk *d, const struct kvf_disk_request *r, uint64_t offset, uint32_t bytes)
{
    if (offset > d->media->size || bytes > d->media->size - offset)
        return false;
    struct iovec one = {.iov_base = r->data, .iov_len = r->bytes};
    for (unsigned i = 0; bytes > 0; i++) {
        const struct iovec *v = r->iov ? &r->iov[i] : &one;
        uint32_t n = bytes < v->iov_len ? bytes : (uint32_t)v->iov_len;
        if (r->write)
            media_write(d, offset, v->iov_base, n);
        else
            memcpy(v->iov_base, d->media->bytes + offset, n);
        offset += n;
        bytes -= n;
    }
    return true;
}

/* The n-th byte of a request: on the media (write) or in its buffer (read). */
static uint8_t *byte_of(struct sim_disk *d, const struct kvf_disk_request *r, uint64_t offset, size_t n)
{
    if (r->write)
        return d->media->bytes + offset + n;
    unsigned i = 0;
    for (; r->iov && n >= r->iov[i].iov_len; i++)
        n -= r->iov[i].iov_len;
    return (uint8_t *)(r->iov ? r->iov[i].iov_base : r->data) + n;
}

static enum kvf_status perform(struct sim_disk *d, const struct pending *p)
{
    struct kvf_disk_request *r = p->request;
    uint64_t offset = r->offset;
    uint32_t bytes = r->bytes;
    r->error = 0;
    if (d->dead) {
        r->error = EIO;
        return KVF_ERR_IO;
    }
    if (r->sync) {
        media_sync(d->media, p->mark, p->fault != SIM_FAULT_NONE);
        r->error = p->fault == SIM_FAULT_NONE ? 0 : EIO;
        return p->fault == SIM_FAULT_NONE ? KVF_OK : KVF_ERR_IO;
    }
    switch (p->fault) {
    case SIM_FAULT_IO:
        r->error = EIO;
        return KVF_ERR_IO;
    case SIM_FAULT_FULL:
        r->error = ENOSPC;
        return KVF_ERR_DISK_FULL;
    case SIM_FAULT_SHORT:
        (void)transfer(d, r, offset, bytes / 2);
        return KVF_ERR_IO;
    case SIM_FAULT_TEAR:
        bytes = r->write ? bytes / 2 : bytes;
        break;
    case SIM_FAULT_MISPLACE:
        offset += offset + UNIT + bytes <= d->media->size ? UNIT : 0;
        break;
    case SIM_FAULT_FLIP:
    case SIM_FAULT_NONE:
        break;
    }
    if (!transfer(d, r, offset, bytes))
        return KVF_ERR_IO;
    if (p->fault == SIM_FAULT_FLIP)
        *byte_of(d, r, offset, bytes / 2) ^= 0x10;
    return KVF_OK;
}

static unsigned sim_poll(struct kvf_disk *disk)
{
    struct sim_disk *d = (struct sim_disk *)disk;
    uint64_t signals;
    unsigned handled = 0, before = d->count;
    if (d->signalled && d->event_fd >= 0)
        (void)!read(d->event_fd, &signals, sizeof signals);
    d->signalled = false;
    /* Only what was there at the start: what callbacks submit completes at a later poll. */
    for (unsigned i = 0, seen = 0; seen < before; seen++) {
        struct pending *p = &d->pending[i];
        bool due = d->closing || p->released || (!d->hold && p->polls_left == 0);
        if (!due) {
            p->polls_left -= p->polls_left > 0;
            i++;
            continue;
        }
        struct pending taken = *p;
        memmove(p, p + 1, (--d->count - i) * sizeof *p);
        enum kvf_status status = perform(d, &taken);
        d->syncs += taken.request->sync;
        d->reads += !taken.request->sync && !taken.request->write;
        d->writes += !taken.request->sync && taken.request->write;
        handled++;
        taken.request->done(taken.request->arg, status);
    }
    if (d->count && !d->hold)
        signal_ready(d);
    return handled;
}

static int sim_event_fd(struct kvf_disk *disk)
{
    struct sim_disk *d = (struct sim_disk *)disk;
    if (d->event_fd < 0)
        d->event_fd = eventfd(d->signalled, EFD_CLOEXEC | EFD_NONBLOCK);
    return d->event_fd;
}

static void sim_register_memory(struct kvf_disk *disk, void *base, size_t bytes)
{
}

static enum kvf_status sim_sync(struct kvf_disk *disk)
{
    struct sim_disk *d = (struct sim_disk *)disk;
    if (d->dead)
        return KVF_ERR_IO;
    const struct kvf_disk_request request = {.sync = true};
    unsigned polls = 0;
    enum sim_fault fault = d->fate ? d->fate(d->fate_arg, &request, &polls) : SIM_FAULT_NONE;
    if (fault == SIM_FAULT_NONE)
        fault = next_fault(d, 2);
    d->syncs++;
    media_sync(d->media, d->media->synced + d->media->n_unsynced, fault != SIM_FAULT_NONE);
    return fault == SIM_FAULT_NONE ? KVF_OK : KVF_ERR_IO;
}

static void sim_close(struct kvf_disk *disk)
{
    struct sim_disk *d = (struct sim_disk *)disk;
    d->closing = true;
    while (d->count)
        sim_poll(disk);
    if (d->event_fd >= 0)
        close(d->event_fd);
    free(d->pending);
    free(d);
}

static const struct kvf_disk_ops sim_ops = {
    .name = "simulated",
    .submit = sim_submit,
    .poll = sim_poll,
    .event_fd = sim_event_fd,
    .register_memory = sim_register_memory,
    .sync = sim_sync,
    .close = sim_close,
};

enum kvf_status sim_disk_create(struct sim_media *media, unsigned depth, struct sim_disk **out)
{
    struct sim_disk *d = calloc(1, sizeof *d);
    if (!d)
        return KVF_ERR_NO_MEMORY;
    d->disk.ops = &sim_ops;
    d->media = media;
    d->depth = depth;
    d->pending = calloc(depth, sizeof *d->pending);
    d->event_fd = -1;
    if (!d->pending) {
        free(d);
        return KVF_ERR_NO_MEMORY;
    }
    *out = d;
    return KVF_OK;
}

struct kvf_disk *sim_disk_seam(struct sim_disk *d)
{
    return &d->disk;
}

void sim_disk_hold(struct sim_disk *d, bool hold)
{
    d->hold = hold;
    if (!hold && d->count)
        signal_ready(d);
}

void sim_disk_slow(struct sim_disk *d, unsigned polls)
{
    d->slow = polls;
}

unsigned sim_disk_pending(const struct sim_disk *d)
{
    return d->count;
}

const struct kvf_disk_request *sim_disk_pending_at(const struct sim_disk *d, unsigned position)
{
    return position < d->count ? d->pending[position].request : NULL;
}

void sim_disk_release(struct sim_disk *d, unsigned position)
{
    assert(position < d->count);
    d->pending[position].released = true;
    signal_ready(d);
}

void sim_disk_release_all(struct sim_disk *d)
{
    for (unsigned i = 0; i < d->count; i++)
        sim_disk_release(d, i);
}

void sim_disk_fail(struct sim_disk *d, bool write, enum sim_fault fault, unsigned after, unsigned count)
{
    d->plans[write] = (struct plan){.fault = fault, .after = after, .count = count};
}

void sim_disk_fate(struct sim_disk *d, sim_disk_fate_fn fate, void *arg)
{
    d->fate = fate;
    d->fate_arg = arg;
}

void sim_disk_fail_sync(struct sim_disk *d, unsigned after, unsigned count)
{
    d->plans[2] = (struct plan){.fault = SIM_FAULT_IO, .after = after, .count = count};
}

uint64_t sim_disk_reads(const struct sim_disk *d)
{
    return d->reads;
}

uint64_t sim_disk_writes(const struct sim_disk *d)
{
    return d->writes;
}

uint64_t sim_disk_syncs(const struct sim_disk *d)
{
    return d->syncs;
}

uint64_t sim_disk_most_write_bytes(const struct sim_disk *d)
{
    return d->most_write_bytes;
}

unsigned sim_disk_most_pending(const struct sim_disk *d)
{
    return d->most_pending;
}
