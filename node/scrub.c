/* The scrub: reads every block that lies on this node's SSD again and again, at a set rate and behind everything else, and
 * checks it, so that a damaged block is found, and can be recomputed, before somebody needs it.
 *
 *   RESTING -> READING (into a slot of its own) -> CHECKING (a portion per turn) -> RESTING
 *
 * A pass goes through the index by handle: what is added meanwhile may wait for the next one. Between passes it pauses. A
 * block that does not match is read once more, because its slot may have been given to another block while it was read; one
 * that still does not match is lost, as if a reader had found it. */
#include "node/persist.h"
#include "node/scrub.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PASS_PAUSE_NS (60 * KVF_SEC)
#define EMPTY_PAUSE_NS (1 * KVF_SEC)
#define FAILED_PAUSE_NS (1 * KVF_SEC)     /* after a block that could not be read; doubles up to PASS_PAUSE_NS */
#define LOOK_MAX 256                      /* entries looked at in one turn */
#define PORTION_BYTES (256u << 10)        /* checked in one turn, under the lock */

enum scrub_state { RESTING, READING, CHECKING };

struct kvf_scrub {
    struct kvf_core *core;
    enum scrub_state state;
    struct kvf_bucket budget;
    uint64_t next_ns;          /* RESTING: not before */
    uint64_t failed_pause_ns;
    uint8_t *slot;             /* block.bytes_max */
    uint64_t slot_bytes;

    struct kvf_ssd_request request;
    bool arrived;
    enum kvf_status status;
    kvf_handle handle;         /* the block being read: still that one if its key and place are the same */
    struct kvf_key key;
    uint64_t location, start_ns;
    uint32_t bytes;
    unsigned chunk;            /* CHECKING: the next */
    bool again;                /* read a second time */

    uint64_t cursor, pass_blocks, pass_bytes;
    uint64_t passes, ended_ns; /* of passes that found something to read */
};

enum kvf_status kvf_scrub_create(struct kvf_core *core)
{
    if (!core->ssd || core->settings.scrub_rate == 0)
        return KVF_OK;
    struct kvf_scrub *s = core->scrub = calloc(1, sizeof *s);
    if (!s)
        return KVF_ERR_NO_MEMORY;
    s->core = core;
    s->slot_bytes = (core->settings.block_bytes_max + 4095) / 4096 * 4096;
    s->slot = mmap(NULL, s->slot_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->slot == MAP_FAILED) {
        s->slot = NULL;
        return KVF_ERR_NO_MEMORY;
    }
    uint64_t now = kvf_now(core->env);
    s->failed_pause_ns = FAILED_PAUSE_NS;
    s->next_ns = kvf_deadline(now, EMPTY_PAUSE_NS);
    kvf_bucket_init(&s->budget, core->settings.scrub_rate, now);
    return KVF_OK;
}

void kvf_scrub_destroy(struct kvf_core *core)
{
    struct kvf_scrub *s = core->scrub;
    if (s && s->slot)
        munmap(s->slot, s->slot_bytes);
    free(s);
    core->scrub = NULL;
}

/* Where the block's bytes lie on SSD: those of the block, or of a copy beside the one in DRAM or at a lender. 0: nowhere. */
static uint64_t place_of(const struct kvf_entry *e)
{
    if (e->flags & KVF_FLAG_REMOVED)
        return 0;
    if (e->tier == KVF_TIER_SSD && (e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_RISING))
        return kvf_entry_location(e);
    bool above = e->tier == KVF_TIER_DRAM || e->tier == KVF_TIER_REMOTE;
    return above && e->state == KVF_BLOCK_READY ? (uint64_t)e->ssd4k * KVF_LOCATION_UNIT : 0;
}

/* The block being scrubbed, or NULL when it is gone or elsewhere by now. */
static struct kvf_entry *entry_of(const struct kvf_scrub *s)
{
    if (kvf_index_find(s->core->index, s->key) != s->handle)
        return NULL;
    struct kvf_entry *e = kvf_index_entry(s->core->index, s->handle);
    return place_of(e) == s->location && e->bytes == s->bytes ? e : NULL;
}

static void rest(struct kvf_scrub *s, uint64_t pause_ns)
{
    s->state = RESTING;
    s->next_ns = pause_ns ? kvf_deadline(kvf_now(s->core->env), pause_ns) : 0;
}

static void read_done(void *arg, enum kvf_status status)
{
    struct kvf_scrub *s = arg;
    s->arrived = true;
    s->status = status;
}

static void read_start(struct kvf_scrub *s, uint64_t now)
{
    uint32_t bytes = (s->bytes + 4095) / 4096 * 4096;
    s->state = READING;
    s->arrived = false;
    s->request.done = read_done;
    s->request.arg = s;
    s->request.priority = KVF_PRIORITY_SCRUB;
    kvf_bucket_take(&s->budget, bytes, now);
    kvf_ssd_read(s->core->ssd, &s->request, s->location, s->slot, bytes);
}

/* The pass is through. One that found nothing is not counted. */
static void pass_end(struct kvf_scrub *s, uint64_t now)
{
    if (s->pass_blocks) {
        s->passes++;
        s->ended_ns = now;
        kvf_count(&s->core->counters.scrub_passes, 1);
    }
    rest(s, s->pass_blocks ? PASS_PAUSE_NS : EMPTY_PAUSE_NS);
    s->cursor = s->pass_blocks = s->pass_bytes = 0;
}

/* Demand and prefetch go first here too: a scrub that waits in the disk's queue could not be put off any more. */
static bool must_yield(struct kvf_core *core)
{
    return core->reads_queued > 0 || kvf_ssd_queued(core->ssd, KVF_PRIORITY_DEMAND) > 0 ||
           kvf_ssd_queued(core->ssd, KVF_PRIORITY_AHEAD) > 0;
}

static unsigned look(struct kvf_scrub *s, uint64_t now)
{
    struct kvf_core *core = s->core;
    if (now < s->next_ns || kvf_bucket_room(&s->budget, now) == 0 || must_yield(core))
        return 0;
    for (unsigned looked = 0; looked < LOOK_MAX; looked++) {
        kvf_handle h = kvf_index_walk(core->index, &s->cursor);
        if (h == KVF_HANDLE_NONE) {
            pass_end(s, now);
            return 0;
        }
        struct kvf_entry *e = kvf_index_entry(core->index, h);
        if (place_of(e) == 0 || e->bytes > s->slot_bytes)
            continue;
        s->handle = h;
        s->key = e->key;
        s->location = place_of(e);
        s->bytes = e->bytes;
        s->start_ns = now;
        s->again = false;
        read_start(s, now);
        return 1;
    }
    return 0;
}

/* The verdict. */
static void block_end(struct kvf_scrub *s, struct kvf_entry *e, enum kvf_status status)
{
    struct kvf_core *core = s->core;
    uint64_t now = kvf_now(core->env), pause = 0;
    if (e && status != KVF_OK && !s->again) {
        s->again = true;
        read_start(s, now);
        return;
    }
    if (e) {
        s->pass_blocks++;
        s->pass_bytes += s->bytes;
        kvf_count(&core->counters.scrub_blocks, 1);
        kvf_count(&core->counters.scrub_bytes, s->bytes);
        kvf_count(&core->counters.blocks_verified, 1);
        kvf_latency_add(&core->latencies, KVF_LATENCY_SCRUB, now - s->start_ns);
    }
    s->failed_pause_ns = status == KVF_ERR_IO ? s->failed_pause_ns : FAILED_PAUSE_NS;
    if (e && status != KVF_OK) {
        bool corrupt = status == KVF_ERR_CORRUPT;
        kvf_count(corrupt ? &core->counters.scrub_corrupt : &core->counters.scrub_unreadable, 1);
        if (corrupt)
            kvf_count(&core->counters.blocks_corrupt, 1);
        kvf_log_error(&core->log, "scrub: block %016llx%016llx on SSD %s: dropped", (unsigned long long)s->key.hi,
                      (unsigned long long)s->key.lo, corrupt ? "does not match its checksum" : "cannot be read");
        if (e->tier == KVF_TIER_SSD)
            kvf_block_lose(core, s->handle);
        else
            kvf_persist_forget(core, e); /* the one above is good */
        /* A disk that fails altogether is not to lose us everything at once: it may come back. */
        if (!corrupt) {
            pause = s->failed_pause_ns;
            s->failed_pause_ns = pause < PASS_PAUSE_NS / 2 ? 2 * pause : PASS_PAUSE_NS;
        }
    }
    rest(s, pause);
}

/* One portion of whole chunks, at least one. */
static void check(struct kvf_scrub *s)
{
    struct kvf_core *core = s->core;
    struct kvf_entry *e = entry_of(s);
    if (!e || s->status == KVF_CANCELLED) {
        block_end(s, NULL, KVF_OK);
        return;
    }
    if (s->status != KVF_OK) {
        block_end(s, e, KVF_ERR_IO);
        return;
    }
    uint32_t chunk_bytes = kvf_block_chunk_bytes(core, e);
    unsigned chunks = kvf_entry_chunks(e), n = PORTION_BYTES / chunk_bytes;
    unsigned to = s->chunk + (n ? n : 1) < chunks ? s->chunk + (n ? n : 1) : chunks;
    uint64_t mask = (to == 64 ? UINT64_MAX : (1ull << to) - 1) & ~((1ull << s->chunk) - 1);
    if (!kvf_block_verify(core->dev, kvf_block_seed_of(core, e), s->slot, e->bytes, chunk_bytes, mask,
                          kvf_sums_at(core->sums, e->sums)))
        block_end(s, e, KVF_ERR_CORRUPT);
    else if (to == chunks)
        block_end(s, e, KVF_OK);
    s->chunk = to;
}

unsigned kvf_scrub_poll(struct kvf_core *core)
{
    struct kvf_scrub *s = core->scrub;
    if (!s || !core->ssd)
        return 0;
    if (s->state == RESTING)
        return look(s, kvf_now(core->env));
    if (s->state == READING) {
        if (!s->arrived)
            return 0;
        s->state = CHECKING;
        s->chunk = 0;
    }
    check(s);
    return 1;
}

uint64_t kvf_scrub_next_timer(const struct kvf_core *core, uint64_t now_ns)
{
    struct kvf_scrub *s = core->scrub;
    if (!s || !core->ssd)
        return UINT64_MAX;
    if (s->state == CHECKING)
        return now_ns;
    if (s->state == READING || core->tier_blocks[KVF_TIER_SSD] + core->ssd_copies == 0)
        return UINT64_MAX;
    uint64_t ready = kvf_bucket_ready_ns(&s->budget, now_ns);
    uint64_t next = ready > s->next_ns ? ready : s->next_ns;
    return next > now_ns ? next : now_ns + KVF_MS;
}

void kvf_scrub_progress(const struct kvf_core *core, struct kvf_scrub_progress *out)
{
    const struct kvf_scrub *s = core->scrub;
    *out = (struct kvf_scrub_progress){.blocks = core->tier_blocks[KVF_TIER_SSD] + core->ssd_copies};
    if (!s)
        return;
    out->rate = core->settings.scrub_rate;
    out->pass_blocks = s->pass_blocks;
    out->pass_bytes = s->pass_bytes;
    out->passes = s->passes;
    out->since_ns = s->passes ? kvf_now(core->env) - s->ended_ns : 0;
}

void kvf_scrub_set_rate(struct kvf_core *core, uint64_t rate)
{
    struct kvf_scrub *s = core->scrub;
    if (!s || rate == 0)
        return;
    kvf_core_lock(core);
    core->settings.scrub_rate = rate;
    kvf_bucket_init(&s->budget, rate, kvf_now(core->env));
    s->next_ns = 0;
    kvf_core_unlock(core);
    kvf_core_wake(core);
}
