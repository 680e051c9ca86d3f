/* Blocks on their way up: a session that moved here streams its blocks in from the old home; a resumed one comes back to DRAM; what
 * a lender wants its memory back from passes through DRAM (yield.c).
 * One rise per block: memory first, then a read at low priority, then the checksums, then the block lies in DRAM and the lower copy
 * is released. Readers use the lower copy until then. */
#include "node/dram.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define RISES_MAX 32
#define READ_TIMEOUT_NS (30 * KVF_SEC)
#define PAUSE_NS (20 * KVF_MS)
#define LOOK_MAX 4096 /* blocks looked at in one poll */
#define TURN_BYTES (256u << 10) /* of arrived blocks that one poll checks, under the lock; at least one block */

struct rise {
    struct kvf_core *core;
    bool busy;
    kvf_handle handle;
    uint64_t slot;      /* of DRAM */
    uint32_t bytes;     /* ... which are the exact block's */
    uint64_t codes;     /* of staging, where a block in 8 bits an element arrives; else KVF_ARENA_NONE */
    uint32_t codes_bytes;
    struct kvf_read *read; /* under way, or NULL */
    bool arrived;       /* its read has ended, with this status: a poll checks it */
    enum kvf_status status;
    bool decoded;       /* ... in its slot */
    bool whole;         /* its bytes are right: it waits until nobody needs the lower copy as it is */
    bool yields;        /* its lender wants the memory back: in DRAM it is the next to go down */
    uint64_t mask;
    uint64_t verified;  /* of it, when it came */
    uint64_t life;      /* of the session that counts it */
    uint64_t start_ns;
};

struct kvf_rise {
    struct rise rises[RISES_MAX];
    unsigned active;
    struct kvf_bucket budget;
    uint64_t pause_ns;    /* no new rise before then */
    uint64_t session;     /* the session being looked through, and where */
    uint64_t at;
};

enum kvf_status kvf_rises_create(struct kvf_core *core)
{
    core->rise = calloc(1, sizeof *core->rise);
    if (!core->rise)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < RISES_MAX; i++)
        core->rise->rises[i].core = core;
    kvf_bucket_init(&core->rise->budget, core->settings.up_budget, kvf_now(core->env));
    return KVF_OK;
}

void kvf_rises_destroy(struct kvf_core *core)
{
    free(core->rise);
    core->rise = NULL;
}

uint64_t kvf_rises_bytes(const struct kvf_core *core)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; core->rise && i < RISES_MAX; i++)
        bytes += core->rise->rises[i].busy ? core->rise->rises[i].bytes : 0;
    return bytes;
}

static void codes_free(struct rise *r)
{
    if (r->codes != KVF_ARENA_NONE)
        kvf_cold_slot_free(r->core, r->codes, r->codes_bytes);
    r->codes = KVF_ARENA_NONE;
}

/* Into DRAM, in whose format the block is exact; the checksums follow. */
static void place(struct rise *r)
{
    struct kvf_core *core = r->core;
    struct kvf_entry *e = kvf_index_entry(core->index, r->handle);
    enum kvf_tier tier = (enum kvf_tier)e->tier;
    uint16_t peer = e->peer;
    uint64_t location = kvf_entry_location(e);
    uint32_t bytes = e->bytes;
    kvf_block_place_as(core, r->handle, KVF_TIER_DRAM, KVF_PEER_NONE, r->slot, KVF_COLD_EXACT, NULL);
    kvf_stage_moved(core, r->handle);
    if (r->decoded)
        kvf_block_sum(core->dev, kvf_block_seed_of(core, e), core->memory + r->slot, e->bytes, kvf_block_chunk_bytes(core, e),
                      UINT64_MAX, kvf_sums_at(core->sums, e->sums));
    if (kvf_entry_model(e) == KVF_ENTRY_OPAQUE) /* the SSD writes whole pages: no old bytes behind */
        memset(core->memory + r->slot + e->bytes, 0, (4096 - e->bytes % 4096) % 4096);
    if (r->yields && kvf_dramlist_has(core->dram_blocks, e->location4k)) {
        kvf_dramlist_remove(core->dram_blocks, e->location4k);
        kvf_dramlist_push_oldest(core->dram_blocks, e->location4k, r->handle);
    }
    kvf_block_release_copy(core, tier, peer, location, bytes, kvf_entry_chunks(e), e->key);
}

/* Ends RISING: in DRAM, or where it was, or lost, or removed. */
static void rise_end(struct rise *r, enum kvf_status status)
{
    struct kvf_core *core = r->core;
    struct kvf_entry *e = kvf_index_entry(core->index, r->handle);
    struct kvf_sess *sess = kvf_block_session(core, e);
    bool keep = status == KVF_OK && e->state == KVF_BLOCK_RISING && !(e->flags & KVF_FLAG_REMOVED);
    codes_free(r);
    r->busy = false;
    core->rise->active--;
    kvf_sess_copy_end(core, e, r->life);
    if (keep) {
        kvf_latency_add(&core->latencies, KVF_LATENCY_RISE, kvf_now(core->env) - r->start_ns);
        place(r);
        if (sess && sess->parking)
            kvf_spills_look_again(core);
        if (sess && e->key.hi == sess->id && sess->summary_chunks_room) {
            uint32_t stream = (uint32_t)(e->key.lo >> 32);
            kvf_sess_summarise(sess, stream >> 16, stream & 0xffff, (uint32_t)e->key.lo, core->memory + r->slot);
            if (sess->forks == 0) /* those that it has by now were given no summary of this block */
                e->flags |= KVF_FLAG_SUMMARY;
        }
    } else {
        kvf_dram_free(core, r->slot, r->bytes);
        bool rising = e->state == KVF_BLOCK_RISING; /* else it was lost meanwhile, and perhaps refilled */
        if (rising)
            e->state = KVF_BLOCK_READY;
        bool removed = e->flags & KVF_FLAG_REMOVED;
        if (removed)
            kvf_block_remove(core, r->handle);
        else if (rising && (status == KVF_LOST || status == KVF_ERR_CORRUPT || status == KVF_ERR_IO))
            kvf_block_lose(core, r->handle);
        core->rise->pause_ns = kvf_deadline(kvf_now(core->env), PAUSE_NS);
    }
    kvf_core_changed(core);
}

static bool verified(struct rise *r, const uint8_t *data)
{
    struct kvf_core *core = r->core;
    struct kvf_entry *e = kvf_index_entry(core->index, r->handle);
    kvf_count(&core->counters.blocks_verified, 1);
    if (kvf_block_verify(core->dev, kvf_block_seed_of(core, e), data, e->bytes, kvf_block_chunk_bytes(core, e),
                         r->mask & ~r->verified, kvf_sums_at(core->sums, e->sums)))
        return true;
    kvf_count(&core->counters.blocks_corrupt, 1);
    kvf_log_error(&core->log, "a block of session %llx from %s does not match its checksum: dropped",
                  (unsigned long long)e->key.hi, kvf_tier_name((enum kvf_tier)e->tier));
    return false;
}

static void rise_read(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct rise *r = arg;
    r->read = NULL;
    r->arrived = true;
    r->status = status;
    r->verified = read->verified;
}

/* Whether nobody reads the lower copy in a way that forbids to leave it: in another format, or where it lies at its lender, who
 * would give the slot away. */
static bool may_end(const struct rise *r)
{
    bool format = !r->decoded || kvf_cold_may_change(r->core, r->handle, KVF_COLD_EXACT);
    return format && !kvf_stage_viewed(r->core, r->handle);
}

static void rise_check(struct rise *r)
{
    struct kvf_core *core = r->core;
    enum kvf_status status = r->status;
    r->arrived = false;
    struct kvf_entry *e = kvf_index_entry(core->index, r->handle);
    bool here = status == KVF_OK && e->state == KVF_BLOCK_RISING; /* a block that was lost meanwhile has other words */
    const uint8_t *codes = core->memory + core->staging_at + r->codes;
    if (here && !verified(r, r->codes == KVF_ARENA_NONE ? core->memory + r->slot : codes))
        status = KVF_ERR_CORRUPT;
    r->whole = here && status == KVF_OK;
    if (r->whole && r->codes != KVF_ARENA_NONE) {
        kvf_cold_decode(core, core->models[kvf_entry_model(e)], kvf_cold_format_of(e), r->mask, codes,
                        kvf_sums_at(core->sums, e->sums), core->memory + r->slot);
        kvf_count(&core->counters.cold_chunks_decoded, kvf_entry_chunks(e));
        codes_free(r);
        r->decoded = true;
    }
    if (!r->whole || may_end(r)) /* else the poll ends it */
        rise_end(r, status);
}

/* Memory for the block as it arrives and as it will lie. false: none now. */
static bool rise_memory(struct rise *r, const struct kvf_entry *e)
{
    struct kvf_core *core = r->core;
    enum kvf_cold_format format = kvf_cold_format_of(e);
    r->codes = KVF_ARENA_NONE;
    r->decoded = r->arrived = r->whole = false;
    bool opaque = kvf_entry_model(e) == KVF_ENTRY_OPAQUE;
    r->bytes = opaque ? e->bytes : kvf_cold_bytes(core->models[kvf_entry_model(e)], KVF_COLD_EXACT);
    r->slot = kvf_block_memory(core, r->bytes);
    if (r->slot == KVF_ARENA_NONE)
        return false;
    if (format == KVF_COLD_EXACT)
        return true;
    r->codes_bytes = e->bytes;
    r->codes = kvf_cold_slot(core, e->bytes, true);
    if (r->codes == KVF_ARENA_NONE)
        kvf_dram_free(core, r->slot, r->bytes);
    return r->codes != KVF_ARENA_NONE;
}

/* false: no room or no slot now. */
static bool rise_start(struct kvf_core *core, kvf_handle h, uint64_t now, bool yields)
{
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    struct rise *r = NULL;
    for (unsigned i = 0; i < RISES_MAX && !r; i++)
        if (!core->rise->rises[i].busy)
            r = &core->rise->rises[i];
    if (!r || !rise_memory(r, e))
        return false;
    r->yields = yields;
    r->mask = kvf_entry_chunks(e) == 64 ? UINT64_MAX : (1ull << kvf_entry_chunks(e)) - 1;
    r->handle = h;
    r->start_ns = now;
    uint8_t *to = core->memory + (r->codes == KVF_ARENA_NONE ? r->slot : core->staging_at + r->codes);
    if (kvf_read_start(core, h, r->mask, to, kvf_deadline(now, READ_TIMEOUT_NS),
                       KVF_PRIORITY_AHEAD, rise_read, r, &r->read) != KVF_OK) {
        kvf_dram_free(core, r->slot, r->bytes);
        codes_free(r);
        return false;
    }
    r->life = kvf_sess_copy_begin(core, e);
    e->state = KVF_BLOCK_RISING;
    kvf_bucket_take(&core->rise->budget, e->bytes, now);
    r->busy = true;
    core->rise->active++;
    return true;
}

bool kvf_rise_yield(struct kvf_core *core, kvf_handle h)
{
    const struct kvf_entry *e = kvf_index_entry(core->index, h);
    assert(e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_REMOTE && !(e->flags & KVF_FLAG_REMOVED));
    return rise_start(core, h, kvf_now(core->env), true);
}

void kvf_rises_cancel(struct kvf_core *core, uint64_t session)
{
    for (unsigned i = 0; core->rise && i < RISES_MAX && core->rise->active; i++) {
        struct rise *r = &core->rise->rises[i];
        if (r->busy && r->read && kvf_index_entry(core->index, r->handle)->key.hi == session && kvf_read_cancel(core, r->read))
            kvf_count(&core->counters.rises_cancelled, 1);
    }
}

/* Whether blocks of the session should rise: streaming in (from the old home only), or wherever they are. */
static bool wanted(const struct kvf_sess *s)
{
    return s->state == KVF_SESS_ACTIVE && !s->parked && (s->from_peer > 0 || s->rising);
}

void kvf_rises_room(struct kvf_core *core)
{
    for (uint32_t b = 0; core->n_sessions > 0 && b < core->session_buckets; b++)
        for (struct kvf_sess *s = core->sessions[b]; s; s = s->next)
            s->rising |= s->state == KVF_SESS_ACTIVE && !s->parked;
}

static struct kvf_sess *session_next(struct kvf_core *core)
{
    struct kvf_sess *s = kvf_sess_find(core, core->rise->session);
    if (s && wanted(s))
        return s;
    for (s = core->sessions_all; s && !wanted(s);)
        s = s->after;
    if (s) {
        core->rise->session = s->id;
        core->rise->at = 0;
    }
    return s;
}

/* A resumed session, and one for which there is more memory than before, takes room that is free; it pushes nothing out. */
static bool has_free_room(struct kvf_core *core)
{
    return kvf_dram_used(core) < kvf_dram_capacity(core) / 4 * 3;
}

/* Blocks that came while somebody read them below. */
static void whole_end(struct kvf_core *core)
{
    for (unsigned i = 0; i < RISES_MAX && core->rise->active; i++) {
        struct rise *r = &core->rise->rises[i];
        if (r->busy && r->whole && may_end(r))
            rise_end(r, KVF_OK);
    }
}

/* Checks what has arrived, as much as a turn allows. */
static unsigned arrived_check(struct kvf_core *core)
{
    unsigned events = 0;
    uint64_t bytes = 0;
    for (unsigned i = 0; i < RISES_MAX && core->rise->active && bytes < TURN_BYTES; i++) {
        struct rise *r = &core->rise->rises[i];
        if (!r->busy || !r->arrived)
            continue;
        bytes += r->bytes;
        rise_check(r);
        events++;
    }
    return events;
}

unsigned kvf_rises_poll(struct kvf_core *core)
{
    struct kvf_rise *rise = core->rise;
    unsigned events = arrived_check(core);
    whole_end(core);
    if (core->n_sessions == 0 || core->reads_queued || rise->active == RISES_MAX)
        return events;
    uint64_t now = kvf_now(core->env);
    if (now < rise->pause_ns || kvf_bucket_room(&rise->budget, now) == 0)
        return events;
    struct kvf_sess *s = session_next(core);
    if (!s)
        return events;
    const struct kvf_model_desc *d = &s->model->desc;
    uint64_t all = (uint64_t)s->model->streams * s->sealed_blocks;
    for (unsigned looked = 0; looked < LOOK_MAX; looked++, rise->at++) {
        if (rise->at >= all) {
            rise->at = 0;
            s->rising = false;
            rise->pause_ns = kvf_deadline(kvf_now(core->env), PAUSE_NS);
            break;
        }
        uint32_t stream = (uint32_t)(rise->at % s->model->streams), index = (uint32_t)(rise->at / s->model->streams);
        kvf_handle h = kvf_sess_block(s, stream / d->kv_heads, stream % d->kv_heads, index);
        struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, h);
        if (!e || e->state != KVF_BLOCK_READY || e->tier == KVF_TIER_DRAM || (e->flags & KVF_FLAG_REMOVED))
            continue;
        if (e->tier != KVF_TIER_PEER && !(s->rising && has_free_room(core)))
            continue;
        if (kvf_bucket_room(&rise->budget, now) == 0 || !rise_start(core, h, now, false))
            break;
        events++;
    }
    return events;
}
