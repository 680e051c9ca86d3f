/* What survives on this node's SSD: blocks that are found there at the start, and blocks that are put there to stay.
 *
 * Opaque blocks that are found are in the index, and served, before the node is open. Blocks of sessions are *orphans*: nobody
 * claims them yet, since their sessions were in the memory of the node that ended. They keep their slots, without an entry,
 * until a session of their id is made, or until the SSD needs room: they go before anything else does.
 *
 * A block in DRAM may have a copy on the SSD beside it (ssd4k of its entry): one that was made to persist, or one that rose from
 * there. When it leaves DRAM it goes to a lender as any other and keeps the copy, or back to it, and nothing is written. When the
 * lender is lost, or wants its memory back, the block lies where its copy is. */
#include "node/dram.h"
#include "node/persist.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define GROW 1024u

struct orphan {
    struct kvf_ssd_record record;
    uint32_t sums; /* handle of its checksums */
};

struct kvf_persist {
    struct orphan *orphans;
    uint64_t n, room, bytes;
};

void kvf_persist_destroy(struct kvf_core *core)
{
    if (core->persist)
        free(core->persist->orphans);
    free(core->persist);
    core->persist = NULL;
}

/* ---------------------------------------------------------------- orphans */

static bool orphan_add(struct kvf_core *core, const struct kvf_ssd_record *r)
{
    struct kvf_persist *p = core->persist;
    if (kvf_index_count(core->index) + p->n >= core->settings.blocks_max)
        return false;
    if (p->n == p->room) {
        uint64_t room = p->room ? 2 * p->room : GROW;
        struct orphan *more = realloc(p->orphans, room * sizeof *more);
        if (!more)
            return false;
        p->orphans = more;
        p->room = room;
    }
    uint32_t sums = kvf_sums_alloc(core->sums, r->chunks);
    if (sums == KVF_SUMS_NONE)
        return false;
    memcpy(kvf_sums_at(core->sums, sums), r->sums, r->chunks * sizeof *r->sums);
    p->orphans[p->n++] = (struct orphan){.record = *r, .sums = sums};
    p->bytes += r->bytes;
    return true;
}

static void orphan_remove(struct kvf_core *core, uint64_t i)
{
    struct kvf_persist *p = core->persist;
    struct orphan *o = &p->orphans[i];
    kvf_ssd_free(core->ssd, o->record.offset, o->record.bytes, o->record.chunks);
    kvf_sums_free(core->sums, o->sums, o->record.chunks);
    p->bytes -= o->record.bytes;
    *o = p->orphans[--p->n];
}

void kvf_persist_session(struct kvf_core *core, uint64_t session)
{
    struct kvf_persist *p = core->persist;
    for (uint64_t i = p ? p->n : 0; i-- > 0;)
        if (p->orphans[i].record.key.hi == session)
            orphan_remove(core, i);
}

uint64_t kvf_persist_evict(struct kvf_core *core, uint64_t bytes)
{
    struct kvf_persist *p = core->persist;
    uint64_t sum = 0;
    while (p && p->n > 0 && sum < bytes) {
        sum += p->orphans[p->n - 1].record.bytes;
        orphan_remove(core, p->n - 1);
    }
    return sum;
}

void kvf_persist_limit(struct kvf_core *core, uint64_t orphans_max)
{
    while (core->persist && core->persist->n > orphans_max)
        orphan_remove(core, core->persist->n - 1);
}

uint64_t kvf_persist_orphans(const struct kvf_core *core, uint64_t *bytes)
{
    *bytes = core->persist ? core->persist->bytes : 0;
    return core->persist ? core->persist->n : 0;
}

/* ---------------------------------------------------------------- the tier's owner */

static bool opaque_add(struct kvf_core *core, const struct kvf_ssd_record *r)
{
    uint32_t chunk = kvf_block_opaque_chunk_bytes(r->bytes);
    if (r->fingerprint != 0 || r->bytes > core->settings.block_bytes_max || r->chunks != (r->bytes + chunk - 1) / chunk ||
        !kvf_location_fits(r->offset) ||
        kvf_index_count(core->index) + core->persist->n >= core->settings.blocks_max || !kvf_block_reserve(core, 1))
        return false;
    core->entries_reserved--;
    uint32_t sums = kvf_sums_alloc(core->sums, r->chunks);
    kvf_handle h;
    if (sums == KVF_SUMS_NONE || kvf_index_add(core->index, r->key, &h) != KVF_OK) {
        if (sums != KVF_SUMS_NONE)
            kvf_sums_free(core->sums, sums, r->chunks);
        return false;
    }
    memcpy(kvf_sums_at(core->sums, sums), r->sums, r->chunks * sizeof *r->sums);
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    e->bytes = r->bytes;
    e->sums = sums;
    kvf_entry_set_shape(e, KVF_ENTRY_OPAQUE, r->chunks);
    e->state = KVF_BLOCK_WRITING;
    e->flags = KVF_FLAG_FOUND;
    kvf_block_place(core, h, KVF_TIER_SSD, KVF_PEER_NONE, r->offset);
    return true;
}

static bool owner_found(void *arg, const struct kvf_ssd_record *r)
{
    struct kvf_core *core = arg;
    return r->flags == 0 && (r->key.hi & KVF_OPAQUE_BIT ? opaque_add(core, r) : orphan_add(core, r));
}

void kvf_persist_record(const struct kvf_core *core, const struct kvf_entry *e, uint64_t offset, struct kvf_ssd_record *out)
{
    unsigned model = kvf_entry_model(e);
    *out = (struct kvf_ssd_record){.key = e->key, .offset = offset, .bytes = e->bytes, .chunks = (uint8_t)kvf_entry_chunks(e),
                                   .fingerprint = model == KVF_ENTRY_OPAQUE ? 0 : core->models[model]->fingerprint,
                                   .sums = kvf_sums_at(core->sums, e->sums)};
}

/* The copy of an entry that lies here and has a record, or 0. */
static uint64_t copy_of(const struct kvf_entry *e)
{
    bool there = e->tier == KVF_TIER_SSD && (e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_RISING);
    if (there && kvf_cold_format_of(e) == KVF_COLD_EXACT)
        return kvf_entry_location(e);
    return (uint64_t)e->ssd4k * KVF_LOCATION_UNIT;
}

/* First the blocks that are written but still wait for their readers in DRAM: what ends its waiting later is met as an entry. Then
 * the orphans, from the last, since they go from there; then the index. */
static bool owner_walk(void *arg, uint64_t *cursor, struct kvf_ssd_record *out)
{
    struct kvf_core *core = arg;
    struct kvf_persist *p = core->persist;
    const uint64_t step = 1ull << 60; /* the cursor's upper bits say which of the three */
    if (*cursor < step) {
        if (kvf_spills_walk(core, cursor, out))
            return true;
        *cursor = step + p->n;
    }
    if (*cursor < 2 * step) {
        uint64_t i = *cursor - step < p->n ? *cursor - step : p->n;
        if (i > 0) {
            *out = p->orphans[i - 1].record;
            out->sums = kvf_sums_at(core->sums, p->orphans[i - 1].sums);
            *cursor = step + i - 1;
            return true;
        }
        *cursor = 2 * step;
    }
    uint64_t at = *cursor - 2 * step;
    for (kvf_handle h; (h = kvf_index_walk(core->index, &at)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(core->index, h);
        uint64_t offset = copy_of(e);
        if (!offset)
            continue;
        kvf_persist_record(core, e, offset, out);
        *cursor = 2 * step + at;
        return true;
    }
    *cursor = 2 * step + at;
    return false;
}

enum kvf_status kvf_persist_create(struct kvf_core *core, struct kvf_ssd_owner *out)
{
    core->persist = calloc(1, sizeof *core->persist);
    *out = (struct kvf_ssd_owner){.arg = core, .found = owner_found, .walk = owner_walk};
    return core->persist ? KVF_OK : KVF_ERR_NO_MEMORY;
}

void kvf_persist_report(const struct kvf_core *core)
{
    struct kvf_ssd_stats s;
    kvf_ssd_stats(core->ssd, &s);
    if (s.recovered_blocks)
        kvf_log_info(&core->log, "SSD: %llu blocks, %.1f MiB, found in %.0f ms, %llu of them of sessions",
                     (unsigned long long)s.recovered_blocks, (double)s.recovered_bytes / (1 << 20), (double)s.recovery_ns / 1e6,
                     (unsigned long long)core->persist->n);
}

void kvf_persist_abandon(struct kvf_core *core)
{
    struct kvf_persist *p = core->persist;
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(core->index, h);
        core->tier_blocks[KVF_TIER_SSD]--;
        core->tier_bytes[KVF_TIER_SSD] -= e->bytes;
        kvf_sums_free(core->sums, e->sums, kvf_entry_chunks(e));
        kvf_index_remove(core->index, h);
    }
    for (uint64_t i = 0; i < p->n; i++)
        kvf_sums_free(core->sums, p->orphans[i].sums, p->orphans[i].record.chunks);
    p->n = p->bytes = 0;
}

/* ---------------------------------------------------------------- copies beside DRAM */

void kvf_persist_copy(struct kvf_core *core, struct kvf_entry *e, uint64_t offset)
{
    core->ssd_copies += (offset != 0);
    core->ssd_copies -= (e->ssd4k != 0);
    e->ssd4k = (uint32_t)(offset / KVF_LOCATION_UNIT);
}

void kvf_persist_forget(struct kvf_core *core, struct kvf_entry *e)
{
    if (!e->ssd4k || kvf_persist_keeping(e))
        return;
    assert(kvf_entry_model(e) == KVF_ENTRY_OPAQUE);
    if (core->ssd)
        kvf_ssd_free(core->ssd, (uint64_t)e->ssd4k * KVF_LOCATION_UNIT, e->bytes, kvf_entry_chunks(e));
    e->flags &= (uint8_t)~KVF_FLAG_FOUND;
    kvf_persist_copy(core, e, 0);
}

bool kvf_persist_shed(struct kvf_core *core, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    uint64_t slot = kvf_entry_location(e), copy = (uint64_t)e->ssd4k * KVF_LOCATION_UNIT;
    assert(e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_DRAM && copy);
    if (!kvf_entry_close(e, false)) {
        kvf_entry_open(e);
        return false;
    }
    kvf_persist_copy(core, e, 0);
    kvf_block_place(core, handle, KVF_TIER_SSD, KVF_PEER_NONE, copy);
    kvf_dram_free(core, slot, e->bytes);
    core->spill_stuck = false;
    kvf_core_changed(core);
    return true;
}

bool kvf_persist_fall_back(struct kvf_core *core, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    uint64_t copy = (uint64_t)e->ssd4k * KVF_LOCATION_UNIT, location = kvf_entry_location(e);
    uint16_t peer = e->peer;
    if (!copy || !core->ssd || e->tier != KVF_TIER_REMOTE || e->state != KVF_BLOCK_READY || (e->flags & KVF_FLAG_REMOVED))
        return false;
    kvf_persist_copy(core, e, 0);
    kvf_block_place(core, handle, KVF_TIER_SSD, KVF_PEER_NONE, copy);
    kvf_stage_moved(core, handle);
    kvf_block_release_copy(core, KVF_TIER_REMOTE, peer, location, e->bytes, kvf_entry_chunks(e), e->key);
    kvf_count(&core->counters.blocks_fell_back, 1);
    return true;
}

/* ---------------------------------------------------------------- one block to stay */

static void copy_done(void *arg, enum kvf_status status)
{
    struct kvf_keep *k = arg;
    struct kvf_core *core = k->core;
    struct kvf_entry *e = kvf_index_entry(core->index, k->handle); /* pinned: it is still that block */
    e->flags &= (uint8_t)~KVF_FLAG_KEEPING;
    bool use = status == KVF_OK && !e->ssd4k && !(e->flags & KVF_FLAG_REMOVED);
    if (use)
        kvf_persist_copy(core, e, k->offset);
    else
        kvf_ssd_free(core->ssd, k->offset, e->bytes, kvf_entry_chunks(e));
    k->status = status == KVF_OK && e->flags & KVF_FLAG_REMOVED ? KVF_MISS : status;
    k->busy = false;
    kvf_block_let_go(core, k->handle);
}

static void commit_done(void *arg, enum kvf_status status)
{
    struct kvf_keep *k = arg;
    k->status = status;
    k->busy = false;
}

/* Writes the copy. IN_PROGRESS: begun, or it has to wait. */
static enum kvf_status copy_start(struct kvf_core *core, struct kvf_keep *k, struct kvf_entry *e)
{
    struct kvf_ssd_record record;
    k->offset = kvf_ssd_alloc(core->ssd, e->bytes, kvf_entry_chunks(e));
    if (k->offset == KVF_ARENA_NONE)
        return kvf_ssd_degraded(core->ssd) ? KVF_ERR_IO
               : kvf_persist_evict(core, e->bytes) || kvf_evict_ssd(core, e->bytes) ? KVF_IN_PROGRESS : KVF_ERR_FULL;
    if (!kvf_entry_pin(e)) {
        kvf_ssd_free(core->ssd, k->offset, e->bytes, kvf_entry_chunks(e));
        return KVF_ERR_BUSY;
    }
    kvf_persist_record(core, e, k->offset, &record);
    e->flags |= KVF_FLAG_KEEPING;
    k->busy = true;
    k->request.done = copy_done;
    k->request.arg = k;
    kvf_ssd_put(core->ssd, &k->request, &record, core->memory + kvf_entry_location(e), true);
    return KVF_IN_PROGRESS;
}

/* A copy that was found at the start is no promise, whatever the syncs since have said: it may have been written by an earlier
 * process whose sync failed, which no later one tells; its slot may have been another block's when the power went; it may have
 * rotted. So it is read, compared, and written once more to where it lies, with its record. The bytes are the same: whoever reads
 * them meanwhile is right, and what a power cut leaves of the write is the block.
 *
 *     found_start -> (SSD reads) -> found_read -> (the owner compares) -> kvf_persist_compared -> (SSD writes) -> found_end */

/* The copy is no good: what is above it is another matter. */
static void found_drop(struct kvf_core *core, kvf_handle handle, const char *why)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    kvf_log_error(&core->log, "block %016llx%016llx, found on SSD at the start, %s: dropped", (unsigned long long)e->key.hi,
                  (unsigned long long)e->key.lo, why);
    if (e->tier == KVF_TIER_SSD)
        kvf_block_lose(core, handle);
    else
        kvf_persist_forget(core, e);
}

/* `why` the copy is dropped, or NULL: then with OK it is as good as one that was written in this life. */
static void found_end(struct kvf_keep *k, enum kvf_status status, const char *why)
{
    struct kvf_core *core = k->core;
    struct kvf_entry *e = kvf_index_entry(core->index, k->handle); /* KEEPING: it is still that block */
    bool removed = e->flags & KVF_FLAG_REMOVED;
    assert(k->data && kvf_persist_keeping(e));
    kvf_arena_free(core->staging, (uint64_t)(k->data - core->memory) - core->staging_at, e->bytes);
    k->data = NULL;
    k->busy = false;
    k->status = removed && status == KVF_OK ? KVF_MISS : status;
    e->flags &= (uint8_t)~(status == KVF_OK ? KVF_FLAG_KEEPING | KVF_FLAG_FOUND : KVF_FLAG_KEEPING);
    if (removed)
        kvf_block_reap(core, k->handle);
    else if (why)
        found_drop(core, k->handle, why);
    kvf_core_changed(core);
}

static void found_written(void *arg, enum kvf_status status)
{
    found_end(arg, status, NULL);
}

static void found_read(void *arg, enum kvf_status status)
{
    struct kvf_keep *k = arg;
    k->busy = false;
    if (status == KVF_OK)
        return; /* the owner compares it in its turn */
    kvf_count(&k->core->counters.ssd_read_failed, status != KVF_CANCELLED);
    if (status == KVF_CANCELLED)
        found_end(k, status, NULL);
    else
        found_end(k, KVF_IN_PROGRESS, "cannot be read"); /* what there is now is looked at again */
}

void kvf_persist_compared(struct kvf_keep *k, enum kvf_status status)
{
    struct kvf_core *core = k->core;
    const struct kvf_entry *e = kvf_index_entry(core->index, k->handle);
    assert(k->data && !k->busy && status != KVF_IN_PROGRESS);
    if (status == KVF_ERR_CORRUPT) {
        kvf_count(&core->counters.blocks_corrupt, 1);
        found_end(k, KVF_IN_PROGRESS, "does not match its checksum");
        return;
    }
    if (status != KVF_OK || (e->flags & KVF_FLAG_REMOVED)) {
        found_end(k, status, NULL);
        return;
    }
    struct kvf_ssd_record record;
    assert(copy_of(e) == k->offset);
    kvf_persist_record(core, e, k->offset, &record);
    k->busy = true;
    k->request.done = found_written;
    kvf_ssd_put(core->ssd, &k->request, &record, k->data, true);
}

static enum kvf_status found_start(struct kvf_core *core, struct kvf_keep *k, struct kvf_entry *e)
{
    uint64_t slot;
    if (kvf_ssd_degraded(core->ssd))
        return KVF_ERR_IO;
    if (kvf_persist_keeping(e) || (slot = kvf_stage_memory(core, e->bytes, false)) == KVF_ARENA_NONE)
        return KVF_IN_PROGRESS;
    e->flags |= KVF_FLAG_KEEPING;
    k->offset = copy_of(e);
    k->data = core->memory + core->staging_at + slot;
    k->busy = true;
    k->request = (struct kvf_ssd_request){.done = found_read, .arg = k, .priority = KVF_PRIORITY_DEMAND};
    kvf_ssd_read(core->ssd, &k->request, k->offset, k->data, (e->bytes + 4095) / 4096 * 4096);
    return KVF_IN_PROGRESS;
}

enum kvf_status kvf_persist_keep(struct kvf_core *core, struct kvf_keep *k, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    k->core = core;
    k->handle = handle;
    k->status = KVF_IN_PROGRESS;
    if (!core->ssd)
        return KVF_ERR_UNSUPPORTED;
    if (!copy_of(e) && (e->tier == KVF_TIER_REMOTE || e->tier == KVF_TIER_PEER))
        return KVF_ERR_STATE;
    if (copy_of(e) && (e->flags & KVF_FLAG_FOUND))
        return found_start(core, k, e);
    if (copy_of(e)) { /* it was written to there: its record must be safe */
        k->busy = true;
        k->request.done = commit_done;
        k->request.arg = k;
        kvf_ssd_commit(core->ssd, &k->request);
        return KVF_IN_PROGRESS;
    }
    /* Never two copies: the later record, of the one that is then freed, would hide the other after a power cut. */
    bool may_copy = e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_DRAM && !(e->flags & KVF_FLAG_KEEPING);
    return may_copy ? copy_start(core, k, e) : KVF_IN_PROGRESS;
}
