/* The journal's I/O: which records go into it when, group commit, checkpoints.
 *
 * Commit. The data of several puts is written; as each completes its record enters the open block. When somebody waits for
 * durability, and neither a journal write nor a sync is under way, the open block is sealed and written, and then one
 * fdatasync covers its records and, because they were complete before, their data. Who comes meanwhile shares the next one.
 * A block nobody waits for is sealed when it is full or LAZY_NS old.
 *
 * Why a crash never takes a living durable block:
 *  - Its record was synced in a block that is not written again in its generation, and a generation is overwritten only
 *    when a later one, which has the record too (the walk, or waiting puts: there are none at a switch), is synced to its END.
 *  - Its slot is given to another block only after free, that is, when it lives no more. The order of the records in the
 *    journal is the order of events, and replay believes the last one about a place. So a slot that was freed and reused
 *    is the new block's as soon as the new record is durable, whether or not the FREE record got through.
 *  - Until then replay may find the old block in the reused slot. Its checksums, seeded by key and chunk, do not match
 *    the new bytes: a miss, and of a block that was freed.
 * So FREE records are a courtesy: without them freed blocks may come back (whole, or as a miss). When there is no room for
 * one it is left out.
 *
 * Checkpoint. When the half is full, everything in it is made durable (SWITCHING), a generation begins in the other half, and
 * the owner's walk refills it, mixed with new records, which wait when the rest of the half is needed for the walk. When all of
 * that is durable, END follows. */
#include "tiers/ssd_internal.h"

#include <assert.h>
#include <string.h>

#define LAZY_NS (1 * KVF_SEC)
#define WALK_RECORDS 256u /* per step */
#define NAP_NS (10 * KVF_MS)
/* Blocks of a half that records never count on: END, and those that were sealed before they were full. */
#define SPARE_BLOCKS 3u

static bool dead(const struct kvf_ssd *s)
{
    return s->journal_dead;
}

/* ---------------------------------------------------------------- records */

/* During a walk the half keeps room for what the walk has still to write, and for END. */
static bool has_room(const struct kvf_ssd *s, uint32_t bytes)
{
    uint64_t left = kvf_journal_left(&s->journal);
    return (s->checkpoint != KVF_SSD_WALKING && s->checkpoint != KVF_SSD_WALKED) ||
           (left > SPARE_BLOCKS && (left - SPARE_BLOCKS) * KVF_JOURNAL_FILL >= s->reserved_bytes + bytes);
}

static bool may_record(const struct kvf_ssd *s, uint32_t bytes)
{
    return !dead(s) && s->checkpoint != KVF_SSD_SWITCHING && has_room(s, bytes);
}

/* After an append: when the open block got its first record. */
static void note_open(struct kvf_ssd *s)
{
    if (s->journal.count == 1)
        s->open_ns = kvf_now(s->env);
}

/* Appends a put's record. False: not now; a full half is on its way to be followed by the other. */
static bool record(struct kvf_ssd *s, struct kvf_ssd_request *r)
{
    if (!may_record(s, 2 * kvf_journal_record_bytes(r->record.chunks)))
        return false;
    if (!kvf_journal_put(&s->journal, &r->record)) {
        if (kvf_journal_left(&s->journal) == 0 && s->checkpoint == KVF_SSD_WHOLE)
            s->checkpoint = KVF_SSD_SWITCHING;
        return false;
    }
    note_open(s);
    r->ticket = kvf_journal_ticket(&s->journal);
    if (s->checkpoint == KVF_SSD_WALKING)
        s->reserved_bytes += kvf_journal_record_bytes(r->record.chunks); /* the walk may meet it again */
    return true;
}

/* Its record stands in the journal: done, or it waits to be durable. */
static void recorded(struct kvf_ssd *s, struct kvf_ssd_request *r)
{
    if (!r->durable) {
        r->done(r->arg, KVF_OK);
        return;
    }
    s->want = r->ticket;
    kvf_ssd_queue_push(&s->waiting, r);
}

void kvf_ssd_commit_written(struct kvf_ssd *s, struct kvf_ssd_request *r)
{
    if (dead(s))
        r->done(r->arg, KVF_ERR_IO);
    else if (!s->unrecorded.head && record(s, r))
        recorded(s, r);
    else
        kvf_ssd_queue_push(&s->unrecorded, r);
}

void kvf_ssd_commit_freed(struct kvf_ssd *s, uint64_t offset, uint32_t bytes)
{
    /* The walk's record of the block must not come behind: its slot may be another block's by then. */
    if (s->has_pending && s->pending.offset == offset)
        s->has_pending = false;
    if (may_record(s, 16) && kvf_journal_free(&s->journal, offset, bytes))
        note_open(s);
}

void kvf_ssd_commit(struct kvf_ssd *s, struct kvf_ssd_request *r)
{
    assert(r->done);
    r->ssd = s;
    r->write = r->recorded = r->durable = false;
    r->ticket = s->want = kvf_journal_ticket(&s->journal);
    kvf_ssd_queue_push(&s->waiting, r);
}

/* ---------------------------------------------------------------- waiting */

static void end_all(struct kvf_ssd_queue *q, enum kvf_status status)
{
    struct kvf_ssd_request *r = q->head, *next;
    kvf_ssd_queue_clear(q);
    for (; r; r = next) {
        next = r->next;
        r->done(r->arg, status);
    }
}

/* The disk failed a write or a sync: nothing more is promised. */
static void fail_journal(struct kvf_ssd *s, enum kvf_status status, int error)
{
    if (!dead(s))
        kvf_log_error(s->log, "SSD: the journal cannot be written (%s): no new blocks are taken", kvf_status_name(status));
    s->journal_dead = true;
    kvf_ssd_degrade(s, error);
    s->stats.errors++;
    end_all(&s->unrecorded, status);
    end_all(&s->waiting, status);
}

static void end_waiting(struct kvf_ssd *s)
{
    while (s->waiting.head && s->waiting.head->ticket <= s->journal.durable) {
        struct kvf_ssd_request *r = kvf_ssd_queue_pop(&s->waiting);
        r->done(r->arg, KVF_OK);
    }
}

bool kvf_ssd_commit_idle(const struct kvf_ssd *s)
{
    return !s->unrecorded.head && !s->waiting.head;
}

/* ---------------------------------------------------------------- checkpoints */

static void begin_generation(struct kvf_ssd *s)
{
    struct kvf_journal *j = &s->journal;
    kvf_journal_position(j, j->generation + 1, s->env->random(s->env->arg), 0, 0);
    s->reserved_bytes = s->live_bytes;
    s->cursor = 0;
    s->has_pending = false;
    s->checkpoint = KVF_SSD_WALKING;
}

/* The next record of the walk, copied: the owner's sums may move. */
static bool fetch_pending(struct kvf_ssd *s)
{
    if (s->has_pending)
        return true;
    if (!s->owner.walk || !s->owner.walk(s->owner.arg, &s->cursor, &s->pending))
        return false;
    assert(s->pending.chunks >= 1 && s->pending.chunks <= KVF_JOURNAL_CHUNKS_MAX);
    memcpy(s->pending_sums, s->pending.sums, s->pending.chunks * sizeof *s->pending_sums);
    s->pending.sums = s->pending_sums;
    return s->has_pending = true;
}

static void walk(struct kvf_ssd *s)
{
    for (unsigned n = 0; n < WALK_RECORDS && s->checkpoint == KVF_SSD_WALKING; n++) {
        if (!fetch_pending(s)) {
            s->reserved_bytes = 0;
            s->end_ticket = s->want = kvf_journal_ticket(&s->journal);
            s->checkpoint = KVF_SSD_WALKED;
            return;
        }
        if (!kvf_journal_put(&s->journal, &s->pending)) {
            if (kvf_journal_left(&s->journal) == 0) {
                kvf_log_error(s->log, "SSD: the journal has no room for its checkpoint");
                s->sync_failed = true; /* nothing helps but a restart */
                fail_journal(s, KVF_ERR_DISK_FULL, 0);
            }
            return;
        }
        note_open(s);
        uint32_t bytes = kvf_journal_record_bytes(s->pending.chunks);
        s->reserved_bytes -= s->reserved_bytes < bytes ? s->reserved_bytes : bytes;
        s->has_pending = false;
    }
}

/* A power cut may keep the block with END and lose those before it, so it is written when all of them are durable. */
static void end_walk(struct kvf_ssd *s)
{
    if (s->checkpoint != KVF_SSD_WALKED || s->journal.durable < s->end_ticket || !kvf_journal_end(&s->journal))
        return;
    note_open(s);
    s->end_ticket = s->want = kvf_journal_ticket(&s->journal);
    s->checkpoint = KVF_SSD_ENDING;
    s->stats.checkpoints++;
}

/* ---------------------------------------------------------------- I/O */

static void write_done(void *arg, enum kvf_status status)
{
    struct kvf_ssd *s = arg;
    s->writing = false;
    if (status != KVF_OK) {
        fail_journal(s, status, s->journal_write.error);
        return;
    }
    kvf_journal_wrote(&s->journal, s->journal_write.bytes);
    s->stats.disk_writes++;
    s->stats.disk_written_bytes += s->journal_write.bytes;
    s->stats.journal_bytes += s->journal_write.bytes;
}

static void sync_done(void *arg, enum kvf_status status)
{
    struct kvf_ssd *s = arg;
    s->syncing = false;
    if (status != KVF_OK) {
        s->sync_failed = true;
        fail_journal(s, status, s->journal_sync.error);
        return;
    }
    s->stats.syncs++;
    kvf_journal_synced(&s->journal, s->sync_mark);
    if (s->checkpoint == KVF_SSD_ENDING && s->journal.durable >= s->end_ticket)
        s->checkpoint = KVF_SSD_WHOLE;
    end_waiting(s);
}

static void start_write(struct kvf_ssd *s)
{
    struct kvf_journal *j = &s->journal;
    struct kvf_disk_request *r = &s->journal_write;
    *r = (struct kvf_disk_request){.write = true, .done = write_done, .arg = s};
    if (s->writing || !kvf_journal_hand(j, &r->data, &r->offset, &r->bytes))
        return;
    if (s->disk->ops->submit(s->disk, r) == KVF_OK)
        s->writing = true;
    else
        j->handed = j->written; /* the disk takes no more now */
}

static void start_sync(struct kvf_ssd *s)
{
    s->journal_sync = (struct kvf_disk_request){.sync = true, .done = sync_done, .arg = s};
    s->sync_mark = s->journal.written;
    s->syncing = s->disk->ops->submit(s->disk, &s->journal_sync) == KVF_OK;
}

void kvf_ssd_commit_step(struct kvf_ssd *s)
{
    struct kvf_journal *j = &s->journal;
    if (dead(s)) {
        end_all(&s->waiting, KVF_ERR_IO);
        return;
    }
    walk(s);
    end_walk(s);
    while (s->unrecorded.head && record(s, s->unrecorded.head))
        recorded(s, kvf_ssd_queue_pop(&s->unrecorded));
    if (s->checkpoint == KVF_SSD_SWITCHING) {
        s->want = kvf_journal_ticket(j);
        if (j->durable == s->want && !s->waiting.head)
            begin_generation(s);
    }
    end_waiting(s);
    /* A block that is sealed early wastes room that the walk may need: then who waits, waits for its end. */
    bool may_seal = !s->writing && !s->syncing && j->count && (has_room(s, 0) || s->checkpoint == KVF_SSD_WALKED);
    if (may_seal && (s->want > j->sealed || kvf_now(s->env) - s->open_ns >= LAZY_NS))
        kvf_journal_seal(j);
    if (!s->writing && j->written - j->durable <= KVF_SSD_GAP_BLOCKS - KVF_JOURNAL_RING)
        start_write(s);
    bool wanted = s->want > j->durable || j->written - j->durable >= KVF_SSD_UNSYNCED_BLOCKS;
    if (!s->writing && !s->syncing && wanted && j->written > j->durable)
        start_sync(s);
}

/* What the failed write carried was promised to nobody, so it is written to the same place again. */
bool kvf_ssd_commit_revive(struct kvf_ssd *s)
{
    if (s->sync_failed)
        return false;
    if (s->journal_dead && !s->writing)
        s->journal.handed = s->journal.written;
    s->journal_dead = false;
    return true;
}

bool kvf_ssd_commit_flush(struct kvf_ssd *s, unsigned naps_max)
{
    for (unsigned naps = 0; !dead(s) && naps < naps_max;) {
        bool busy = s->order.in_flight[KVF_PRIORITY_WRITE_BACK] || s->unrecorded.head || s->checkpoint != KVF_SSD_WHOLE;
        s->want = kvf_journal_ticket(&s->journal);
        if (!busy && s->journal.durable >= s->want)
            return true;
        kvf_ssd_commit_step(s);
        if (!kvf_disk_wait(s->disk, NAP_NS))
            naps++;
    }
    return false;
}
