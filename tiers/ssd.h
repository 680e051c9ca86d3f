/* The SSD tier: slots in one area file over the disk seam, and a journal of what lies in them, so that a restart finds it.
 * Who goes first is order.h's to say. Requests for neighbouring places that wait together become one request to the disk.
 * One thread at a time; callbacks inside poll.
 *
 *   put -> data written -> record in the journal -> done (written)
 *                                                -> journal block written -> fdatasync -> done (durable)
 *
 * A block that was put and not freed is found at the next start, unless the machine lost power (or the disk its memory)
 * before it was durable. Which bytes are right only the checksums in the records tell: a slot may hold anything. */
#ifndef KVF_TIERS_SSD_H
#define KVF_TIERS_SSD_H

#include "base/env.h"
#include "base/latencies.h"
#include "base/priority.h"
#include "tiers/disk.h"
#include "tiers/journal.h"

struct kvf_ssd;

/* Whose blocks lie here. */
struct kvf_ssd_owner {
    void *arg;
    /* At start, for every block that is found, newest first. False: not wanted, its slot is free again. NULL: none is. */
    bool (*found)(void *arg, const struct kvf_ssd_record *record);
    /* The blocks that lie here now, in any order, one per call: *cursor begins as 0 and is the owner's. False at the end. Every
     * block whose put called back OK and that is not freed before the end must come, from that callback on; those that come
     * and go meanwhile may. Called inside poll. NULL: nothing survives a checkpoint. */
    bool (*walk)(void *arg, uint64_t *cursor, struct kvf_ssd_record *out);
};

struct kvf_ssd_options {
    uint64_t bytes;       /* the whole area: 1 MiB and at least one page of slots (1 MiB, or block_max if that is more) */
    const char *node;     /* the node's name: 1..63 bytes */
    uint64_t incarnation; /* of this start */
    uint32_t block_max;   /* bytes of the largest block */
    unsigned depth;       /* requests in flight, joined ones counted once */
    const struct kvf_env *env;
    const struct kvf_log *log;
    struct kvf_ssd_owner owner;
};

/* Takes the disk over on success (register memory with it before). Reads the superblock that stands there: an area of ours is
 * recovered (owner.found is called), anything else is made anew. Waits for the disk, so for start only. ERR_INVALID (the
 * bounds above), ERR_UNSUPPORTED (a later version wrote the area: nothing was touched), ERR_CONFIG (another node's area:
 * likewise), ERR_IO, ERR_DISK_FULL, ERR_DEADLINE (the disk does not answer), ERR_NO_MEMORY. */
enum kvf_status kvf_ssd_create(struct kvf_disk *disk, const struct kvf_ssd_options *options, struct kvf_ssd **out);
/* Finishes what is in flight (calls back; what is queued with CANCELLED) and makes durable what was put, as far as the disk
 * does that within two seconds. */
void kvf_ssd_destroy(struct kvf_ssd *ssd);

/* A failed write makes the area degraded: no new blocks are taken, reads go on. After a second, and then ever less often (a
 * minute at most), poll writes 4096 bytes to a free slot; when that works the area takes blocks again. After a failed sync
 * it stays degraded: what was written may be gone, and no later sync would tell. */
bool kvf_ssd_degraded(const struct kvf_ssd *ssd);

/* A slot's offset in the area, or KVF_ARENA_NONE (UINT64_MAX) when full or degraded. `chunks` of the record to be put there;
 * free gets the same values. */
uint64_t kvf_ssd_alloc(struct kvf_ssd *ssd, uint32_t bytes, uint32_t chunks);
void kvf_ssd_free(struct kvf_ssd *ssd, uint64_t offset, uint32_t bytes, uint32_t chunks);

/* The caller's until done. */
struct kvf_ssd_request {
    /* OK, ERR_IO, ERR_DISK_FULL, CANCELLED */
    void (*done)(void *arg, enum kvf_status status);
    void *arg;
    enum kvf_priority priority; /* of a read: yours to set (0 is demand). A write's is WRITE_BACK, whatever stands here */
    /* the tier's */
    struct kvf_ssd *ssd;
    struct kvf_ssd_request *next;
    enum kvf_priority stands; /* in which queue */
    uint64_t offset, queued_ns, given_ns, ticket;
    uint8_t *data;
    uint32_t bytes, at; /* of these so many are done */
    bool write, recorded, durable;
    bool alone; /* failed in company: not joined again */
    struct kvf_ssd_record record;
};

/* Queued without a limit of its own: the caller bounds its requests (they are its memory). Never calls back inside. Poll
 * after a batch: only then does the kernel see them. `data` is 4096-aligned; offset as given by alloc plus a multiple of 4096;
 * bytes likewise. A block is read only after its put has called back, and its slot is freed only when nothing of it is queued
 * or in flight. What is large goes to the disk in pieces, one after the other. */
void kvf_ssd_read(struct kvf_ssd *ssd, struct kvf_ssd_request *request, uint64_t offset, void *data, uint32_t bytes);
/* A whole block into its slot. The record's sums must stay until done; `data` up to a whole multiple of 4096 is written. With
 * `durable` done comes when the block survives the loss of power; otherwise when it is written, and its record follows within
 * about a second. */
void kvf_ssd_put(struct kvf_ssd *ssd, struct kvf_ssd_request *request, const struct kvf_ssd_record *record, const void *data,
                 bool durable);
/* Bytes without a record: nobody finds them after a restart. */
void kvf_ssd_write(struct kvf_ssd *ssd, struct kvf_ssd_request *request, uint64_t offset, const void *data, uint32_t bytes);
/* Done when every put that called back before survives the loss of power. */
void kvf_ssd_commit(struct kvf_ssd *ssd, struct kvf_ssd_request *request);

/* A read that is wanted now, wherever it stands: before all that are not. Nothing when the disk has it already. */
void kvf_ssd_promote(struct kvf_ssd *ssd, struct kvf_ssd_request *request);
/* Whether somebody waits for the room that writes make: they then go beside reads, a small piece at a time. */
void kvf_ssd_hurry(struct kvf_ssd *ssd, bool hurry);
/* Requests of a priority that the disk was not given yet: what is not urgent had better wait with its owner, who can drop it. */
unsigned kvf_ssd_queued(const struct kvf_ssd *ssd, enum kvf_priority priority);
/* Where times are counted (SSD_QUEUE and SSD_DEVICE); NULL, as at first: nowhere. Must outlive the tier. */
void kvf_ssd_observe(struct kvf_ssd *ssd, struct kvf_latencies *latencies);

unsigned kvf_ssd_poll(struct kvf_ssd *ssd);
/* The same, waiting at most `timeout_ns` for something to happen: for who waits for nothing else. */
unsigned kvf_ssd_wait(struct kvf_ssd *ssd, uint64_t timeout_ns);
int kvf_ssd_event_fd(const struct kvf_ssd *ssd);
bool kvf_ssd_idle(const struct kvf_ssd *ssd); /* no request of the owner's is queued or in flight */

struct kvf_ssd_stats {
    uint64_t capacity_bytes, used_bytes, reads, writes, read_bytes, written_bytes, errors;
    /* What the disk was asked for: reads and writes after joining, their bytes, and of these the journal's. */
    uint64_t disk_reads, disk_writes, disk_read_bytes, disk_written_bytes, journal_bytes, syncs;
    uint64_t checkpoints;       /* times all live records were written anew */
    uint64_t recovered_blocks;  /* found at start */
    uint64_t recovered_bytes;
    uint64_t recovery_ns;       /* how long that took */
    uint64_t journal_damaged;   /* blocks of the journal that were not whole at start */
    unsigned queued[KVF_PRIORITY_COUNT], in_flight[KVF_PRIORITY_COUNT];
    uint64_t in_flight_bytes[KVF_PRIORITY_COUNT];
    bool degraded;
    int degraded_error;   /* errno of the write that made it so; 0: it came short */
    uint64_t degraded_ns; /* env time of it */
    const char *engine;
};
void kvf_ssd_stats(const struct kvf_ssd *ssd, struct kvf_ssd_stats *out);
#endif
