/* The SSD tier: slots in one area file over the disk seam. Who goes first is order.h's to say. Contents are
 * not found again after a restart yet: the area begins empty (docs/FORMAT.md). One thread at a time; callbacks inside poll. */
#ifndef KVF_TIERS_SSD_H
#define KVF_TIERS_SSD_H

#include "base/env.h"
#include "base/latencies.h"
#include "base/priority.h"
#include "tiers/disk.h"

struct kvf_ssd;

/* The caller's until done. `data` is 4096-aligned; offset as given by alloc plus a multiple of 4096; bytes likewise. */
struct kvf_ssd_request {
    struct kvf_disk_request disk; /* the piece under way, or the next one */
    struct kvf_ssd_request *next;
    struct kvf_ssd *ssd;
    uint64_t queued_ns, given_ns;
    uint32_t left;                /* bytes behind the piece */
    uint32_t bytes;               /* of the whole */
    enum kvf_priority stands;     /* in which queue */
    enum kvf_priority priority;   /* of a read: yours to set (0 is demand). A write's is WRITE_BACK, whatever stands here */
    void (*done)(void *arg, enum kvf_status status);
    void *arg;
};

/* Takes the disk over on success (register memory with it before). Reads the superblock that stands there and writes ours
 * (version, size, the node's name, incarnation); waits for the disk, so for start only. `bytes` is the whole area: 1 MiB and at
 * least one page of slots (1 MiB, or block_max if that is more). The node's name has 1..63 bytes. ERR_INVALID (these bounds),
 * ERR_UNSUPPORTED (a later version wrote the area: nothing was touched), ERR_CONFIG (another node's area: likewise), ERR_IO,
 * ERR_DISK_FULL, ERR_DEADLINE (the disk does not answer), ERR_NO_MEMORY. A damaged or absent superblock is written anew. */
enum kvf_status kvf_ssd_create(struct kvf_disk *disk, uint64_t bytes, const char *node_name, uint64_t incarnation,
                               uint32_t block_max, unsigned depth, const struct kvf_env *env, struct kvf_ssd **out);
/* Finishes what is in flight (calls back; what is queued with CANCELLED). */
void kvf_ssd_destroy(struct kvf_ssd *ssd);

/* A failed write makes the area degraded: no new blocks are taken, reads go on. After a second, and then ever less often (a
 * minute at most), poll writes 4096 bytes to a free slot; when that works the area takes blocks again. */
bool kvf_ssd_degraded(const struct kvf_ssd *ssd);

/* A slot's offset in the area, or KVF_ARENA_NONE (UINT64_MAX) when full or degraded. */
uint64_t kvf_ssd_alloc(struct kvf_ssd *ssd, uint32_t bytes);
void kvf_ssd_free(struct kvf_ssd *ssd, uint64_t offset, uint32_t bytes);

/* Queued without a limit of its own: the caller bounds its requests (they are its memory). Never calls back inside. Poll
 * after a batch: only then does the kernel see them. A block is read only after its write has called back, and its slot is
 * freed only when nothing of it is queued or in flight. What is large goes to the disk in pieces, one after the other. */
void kvf_ssd_read(struct kvf_ssd *ssd, struct kvf_ssd_request *request, uint64_t offset, void *data, uint32_t bytes);
void kvf_ssd_write(struct kvf_ssd *ssd, struct kvf_ssd_request *request, uint64_t offset, const void *data, uint32_t bytes);

/* A read that is wanted now, wherever it stands: before all that are not. Nothing when the disk has it already. */
void kvf_ssd_promote(struct kvf_ssd *ssd, struct kvf_ssd_request *request);
/* Whether somebody waits for the room that writes make: they then go beside reads, a small piece at a time. */
void kvf_ssd_hurry(struct kvf_ssd *ssd, bool hurry);
/* Requests of a priority that the disk was not given yet: what is not urgent had better wait with its owner, who can drop it. */
unsigned kvf_ssd_queued(const struct kvf_ssd *ssd, enum kvf_priority priority);
/* Where times are counted (SSD_QUEUE and SSD_DEVICE); NULL, as at first: nowhere. Must outlive the tier. */
void kvf_ssd_observe(struct kvf_ssd *ssd, struct kvf_latencies *latencies);

unsigned kvf_ssd_poll(struct kvf_ssd *ssd);
int kvf_ssd_event_fd(const struct kvf_ssd *ssd);
bool kvf_ssd_idle(const struct kvf_ssd *ssd); /* nothing queued or in flight */

struct kvf_ssd_stats {
    uint64_t capacity_bytes, used_bytes, reads, writes, read_bytes, written_bytes, errors;
    unsigned queued[KVF_PRIORITY_COUNT], in_flight[KVF_PRIORITY_COUNT];
    uint64_t in_flight_bytes[KVF_PRIORITY_COUNT];
    bool degraded;
    int degraded_error;   /* errno of the write that made it so; 0: it came short */
    uint64_t degraded_ns; /* env time of it */
    const char *engine;
};
void kvf_ssd_stats(const struct kvf_ssd *ssd, struct kvf_ssd_stats *out);
#endif
