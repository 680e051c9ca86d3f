/* The SSD tier from the inside: ssd.c (queues), ssd_commit.c (the journal's I/O), ssd_start.c (superblock and recovery). */
#ifndef KVF_TIERS_SSD_INTERNAL_H
#define KVF_TIERS_SSD_INTERNAL_H

#include "tiers/arena.h"
#include "tiers/order.h"
#include "tiers/ssd.h"
#include "tiers/superblock.h"

#define KVF_SSD_UNIT 4096u
/* The journal is synced when so much of it was written since the last time, whether or not somebody waits. */
#define KVF_SSD_UNSYNCED_BLOCKS 1024u
/* ... and no more than this is ever written and not synced: recovery finds the end of a generation behind any gap shorter than
 * this. Blocks behind a longer one would stay there as seemingly newer than those that are written into the gap later. */
#define KVF_SSD_GAP_BLOCKS (2 * KVF_SSD_UNSYNCED_BLOCKS)

struct kvf_ssd_queue {
    struct kvf_ssd_request *head, **tail;
    unsigned count;
};

/* One request to the disk: one of the owner's, or several that lie side by side. */
struct kvf_ssd_flight {
    struct kvf_disk_request disk;
    struct iovec pieces[KVF_DISK_PIECES_MAX];
    struct kvf_ssd *ssd;
    struct kvf_ssd_queue members;
    struct kvf_ssd_flight *next; /* free */
};

/* WHOLE: the newest generation ends its checkpoint on disk, so the other half may be overwritten.
 * WALKING: the owner's blocks are being recorded anew in a new generation.
 * WALKED: they are, and what was recorded is on its way to be durable: END must not be there before all that it speaks of.
 * ENDING: the END record is on its way.
 * SWITCHING: the half is full; everything in it becomes durable before the next generation begins. */
enum kvf_ssd_checkpoint { KVF_SSD_WHOLE, KVF_SSD_WALKING, KVF_SSD_WALKED, KVF_SSD_ENDING, KVF_SSD_SWITCHING };

struct kvf_ssd {
    struct kvf_disk *disk;
    const struct kvf_env *env;
    const struct kvf_log *log;
    struct kvf_ssd_owner owner;
    struct kvf_arena *arena;
    uint64_t slots_start;
    unsigned depth;

    /* ssd.c */
    struct kvf_ssd_queue queues[KVF_PRIORITY_COUNT];
    struct kvf_order order;
    struct kvf_ssd_flight *flights, *free_flight; /* [depth] */
    struct kvf_latencies *latencies;
    bool degraded, closing;
    uint64_t recovered_ns; /* when a probe last went through */
    struct kvf_ssd_request probe;
    uint8_t *probe_page;
    bool probing;
    uint64_t probe_offset, probe_due_ns, probe_wait_ns;

    /* ssd_commit.c */
    struct kvf_journal journal;
    enum kvf_ssd_checkpoint checkpoint;
    uint64_t live_bytes, live_max; /* of the records of all slots given out */
    uint64_t reserved_bytes;       /* of records that the checkpoint under way has still to write, at most */
    uint64_t cursor;               /* the owner's, of the walk */
    uint64_t end_ticket;
    struct kvf_ssd_record pending; /* a record of the walk that found no room yet */
    uint64_t pending_sums[KVF_JOURNAL_CHUNKS_MAX];
    bool has_pending;
    struct kvf_ssd_queue unrecorded; /* written, waiting for room in the journal */
    struct kvf_ssd_queue waiting;    /* recorded, waiting to be durable, in the order of their tickets */
    uint64_t want;                   /* ticket up to which somebody waits */
    uint64_t open_ns;                /* when the open block got its first record */
    struct kvf_disk_request journal_write, journal_sync;
    bool writing, syncing;
    bool journal_dead; /* a journal write or a sync failed */
    bool sync_failed;  /* ... a sync: what was written before may be gone, and no later one tells */
    uint64_t sync_mark; /* blocks that the sync under way covers */

    struct kvf_ssd_stats stats; /* counters only */
};

static inline void kvf_ssd_queue_clear(struct kvf_ssd_queue *q)
{
    q->head = NULL;
    q->tail = &q->head;
    q->count = 0;
}

static inline void kvf_ssd_queue_push(struct kvf_ssd_queue *q, struct kvf_ssd_request *r)
{
    r->next = NULL;
    *q->tail = r;
    q->tail = &r->next;
    q->count++;
}

static inline void kvf_ssd_queue_push_front(struct kvf_ssd_queue *q, struct kvf_ssd_request *r)
{
    r->next = q->head;
    if (!q->head)
        q->tail = &r->next;
    q->head = r;
    q->count++;
}

static inline struct kvf_ssd_request *kvf_ssd_queue_pop(struct kvf_ssd_queue *q)
{
    struct kvf_ssd_request *r = q->head;
    if (!r)
        return NULL;
    if (!(q->head = r->next))
        q->tail = &q->head;
    q->count--;
    return r;
}

/* ssd.c */
/* A write failed with this errno (0: it came short). */
void kvf_ssd_degrade(struct kvf_ssd *ssd, int error);

/* ssd_commit.c */
/* A put's data is on the disk. */
void kvf_ssd_commit_written(struct kvf_ssd *ssd, struct kvf_ssd_request *request);
void kvf_ssd_commit_freed(struct kvf_ssd *ssd, uint64_t offset, uint32_t bytes);
/* Does what can be done now: records, seals, writes, syncs, calls back. */
void kvf_ssd_commit_step(struct kvf_ssd *ssd);
bool kvf_ssd_commit_idle(const struct kvf_ssd *ssd); /* nobody waits */
/* A degraded area took a write again: the journal is tried anew. False: it cannot be. */
bool kvf_ssd_commit_revive(struct kvf_ssd *ssd);
/* At the end: makes durable what was put. False: not possible, or not within the time. */
bool kvf_ssd_commit_flush(struct kvf_ssd *ssd, unsigned naps_max);

/* ssd_start.c */
/* Superblock, arena, journal, recovery. */
enum kvf_status kvf_ssd_start(struct kvf_ssd *ssd, const struct kvf_ssd_options *options);
#endif
