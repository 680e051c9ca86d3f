/* The second copy of a block: an opaque block that was persisted, or rose from SSD, keeps its copy there when it goes to a lender.
 *
 * A read of such a block asks the lender first. When the answer is late, by what that peer's answers usually take, the copy is
 * read too, and the first of the two that is whole wins. Where the lender is slow or gone the copy is read at once. It goes into
 * staging memory of its own: the disk cannot be told to stop, so it must not write where the lender's bytes may have been handed
 * over long since. It is verified here, so that a damaged copy loses the race instead of spoiling it.
 *
 * Not for one-sided reads (RDMA): nothing short of ending the link stops them from writing into the caller's memory. */
#include "node/persist.h"
#include "node/read.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define HEDGES_MAX 32
#define BYTES_MAX (1u << 20) /* verified and copied by the reactor in one turn */

struct hedge {
    struct kvf_core *core;
    struct kvf_read *read; /* NULL: the read has ended otherwise, or none uses this */
    bool busy;
    kvf_handle handle;
    struct kvf_key key;
    uint64_t mask, slot, location;
    uint32_t bytes;
    struct kvf_ssd_request request;
};

struct kvf_hedges {
    struct hedge hedges[HEDGES_MAX];
    unsigned active;
};

enum kvf_status kvf_hedges_create(struct kvf_core *core)
{
    core->hedges = calloc(1, sizeof *core->hedges);
    for (unsigned i = 0; core->hedges && i < HEDGES_MAX; i++)
        core->hedges->hedges[i].core = core;
    return core->hedges ? KVF_OK : KVF_ERR_NO_MEMORY;
}

void kvf_hedges_destroy(struct kvf_core *core)
{
    free(core->hedges);
    core->hedges = NULL;
}

bool kvf_hedge_exists(const struct kvf_core *core, const struct kvf_entry *e)
{
    return core->ssd && e->tier == KVF_TIER_REMOTE && e->ssd4k && e->state == KVF_BLOCK_READY && e->bytes <= BYTES_MAX;
}

/* The entry whose copy was read, if that is still its copy, or what it lies in by now. */
static struct kvf_entry *entry_of(const struct hedge *h)
{
    if (kvf_index_find(h->core->index, h->key) != h->handle)
        return NULL;
    struct kvf_entry *e = kvf_index_entry(h->core->index, h->handle);
    bool copy = (uint64_t)e->ssd4k * KVF_LOCATION_UNIT == h->location;
    bool fell = e->tier == KVF_TIER_SSD && kvf_entry_location(e) == h->location;
    return (copy || fell) && e->bytes == h->bytes && !(e->flags & KVF_FLAG_REMOVED) ? e : NULL;
}

static void hedge_done(void *arg, enum kvf_status status)
{
    struct hedge *h = arg;
    struct kvf_core *core = h->core;
    struct kvf_read *read = h->read;
    const uint8_t *block = core->memory + core->staging_at + h->slot;
    struct kvf_entry *e = status == KVF_CANCELLED ? NULL : entry_of(h);
    bool good = status == KVF_OK && e && read;
    if (good) {
        kvf_count(&core->counters.blocks_verified, 1);
        good = kvf_block_verify(core->dev, kvf_block_seed_of(core, e), block, e->bytes, kvf_block_chunk_bytes(core, e), h->mask,
                                kvf_sums_at(core->sums, e->sums));
        if (!good)
            kvf_count(&core->counters.blocks_corrupt, 1);
    }
    if (e && read && !good && e->ssd4k) { /* the block at the lender is another matter */
        kvf_log_error(&core->log, "the copy on SSD of a block at a lender %s: dropped",
                      status == KVF_OK ? "does not match its checksum" : "cannot be read");
        kvf_persist_forget(core, e);
    }
    h->read = NULL;
    if (read) {
        read->hedge = NULL;
        kvf_read_hedged(core, read, good ? block : NULL);
    }
    kvf_arena_free(core->staging, h->slot, h->bytes);
    h->busy = false;
    core->hedges->active--;
}

bool kvf_hedge_start(struct kvf_core *core, struct kvf_read *read, const struct kvf_entry *e)
{
    struct hedge *h = NULL;
    assert(kvf_hedge_exists(core, e) && !read->hedge && read->mask != 0);
    for (unsigned i = 0; i < HEDGES_MAX && !h; i++)
        h = core->hedges->hedges[i].busy ? NULL : &core->hedges->hedges[i];
    if (!h)
        return false;
    uint64_t slot = kvf_stage_memory(core, e->bytes, false);
    if (slot == KVF_ARENA_NONE)
        return false;
    *h = (struct hedge){.core = core, .read = read, .busy = true, .handle = read->handle, .key = e->key, .mask = read->mask,
                        .slot = slot, .location = (uint64_t)e->ssd4k * KVF_LOCATION_UNIT, .bytes = e->bytes};
    core->hedges->active++;
    read->hedge = h;
    /* From the first chunk that is wanted to the last: reading what lies between is cheaper than another request. */
    uint32_t chunk = read->chunk_bytes, from = (uint32_t)__builtin_ctzll(read->mask) * chunk / 4096 * 4096;
    uint64_t to = (uint64_t)(64 - __builtin_clzll(read->mask)) * chunk;
    to = ((to < e->bytes ? to : e->bytes) + 4095) / 4096 * 4096;
    h->request.priority = KVF_PRIORITY_DEMAND;
    h->request.done = hedge_done;
    h->request.arg = h;
    kvf_ssd_read(core->ssd, &h->request, h->location + from, core->memory + core->staging_at + slot + from, (uint32_t)(to - from));
    return true;
}

void kvf_hedge_drop(struct kvf_read *read)
{
    assert(read->hedge && read->hedge->read == read);
    read->hedge->read = NULL; /* the disk goes on, into memory of the hedge's own */
    read->hedge = NULL;
}

void kvf_hedges_poll(struct kvf_core *core, uint64_t now)
{
    for (unsigned i = 0; i < HEDGES_MAX && core->hedges->active; i++) {
        struct kvf_read *read = core->hedges->hedges[i].read;
        if (!read || read->runs > 0 || now < read->deadline_ns)
            continue;
        kvf_hedge_drop(read);
        kvf_read_hedged(core, read, NULL); /* which finds that its time is over */
    }
}

bool kvf_hedges_idle(const struct kvf_core *core) { return core->hedges->active == 0; }

/* ---------------------------------------------------------------- the race */

uint64_t kvf_reads_asked_ns(const struct kvf_core *core, uint16_t peer)
{
    const struct kvf_reads *rs = core->reads;
    uint64_t oldest = UINT64_MAX;
    for (unsigned i = 0; rs->batches_at[peer] && i < KVF_BATCHES_MAX; i++) {
        const struct kvf_batch *b = &rs->batches[i];
        if (b->asked_ns && b->peer == peer && b->asked_ns < oldest)
            oldest = b->asked_ns;
    }
    return oldest;
}

uint64_t kvf_reads_next_timer(const struct kvf_core *core)
{
    return core->reads->late_ns;
}

/* The other copies of what is late are read too. */
void kvf_reads_late(struct kvf_core *core, uint64_t now)
{
    struct kvf_reads *rs = core->reads;
    uint64_t next = UINT64_MAX;
    for (unsigned i = 0; i < KVF_BATCHES_MAX; i++) {
        struct kvf_batch *b = &rs->batches[i];
        if (b->asked_ns && b->late_ns <= now) {
            b->late_ns = UINT64_MAX;
            for (unsigned r = 0; r < b->n; r++) {
                const struct kvf_entry *e = kvf_read_entry(core, b->reads[r]);
                bool same = e && e->bytes == b->reads[r]->bytes; /* the key may have been put anew */
                bool races = same && !b->reads[r]->no_copy && !b->reads[r]->hedge && kvf_hedge_exists(core, e) &&
                             kvf_hedge_start(core, b->reads[r], e);
                kvf_count(&core->counters.hedges, races);
            }
        }
        next = b->asked_ns && b->late_ns < next ? b->late_ns : next;
    }
    rs->late_ns = next;
}

/* The copy was faster than the lender: the lender's answer is not waited for. What else it was to bring is asked for anew. */
static bool withdraw(struct kvf_core *core, struct kvf_read *read)
{
    struct kvf_reads *rs = core->reads;
    struct kvf_batch *b = NULL;
    for (unsigned i = 0; i < KVF_BATCHES_MAX && !b; i++)
        for (unsigned r = 0; r < rs->batches[i].n && rs->batches[i].asked_ns; r++)
            b = rs->batches[i].reads[r] == read ? &rs->batches[i] : b;
    struct kvf_peer *peer = b ? core->peers[b->peer].peer : NULL;
    if (read->runs != 1 || !peer || !kvf_fabric_cancel(peer, b))
        return false;
    for (unsigned r = 0; r < b->n; r++) {
        struct kvf_read *other = b->reads[r];
        other->runs = 0;
        if (other != read && !other->hedge)
            kvf_read_again(core, other);
    }
    kvf_batch_free(b);
    return true;
}

void kvf_read_hedged(struct kvf_core *core, struct kvf_read *read, const uint8_t *block)
{
    bool raced = read->runs > 0;
    read->no_copy = true;
    if (raced && (!block || !withdraw(core, read)))
        return; /* the lender's answer ends it */
    if (!block) {
        kvf_read_again(core, read);
        return;
    }
    kvf_read_copy(read, block);
    read->verified = read->mask;
    read->tier = KVF_TIER_SSD;
    kvf_count(&core->counters.hedges_won, raced);
    kvf_read_finish(core, read, KVF_OK);
}
