/* The SSD tier loses power, over and over, from seeds: what was acknowledged as durable and not freed is found again with its
 * bytes; whatever else is found is either right or fails its checksums. Also when the power goes while the area starts or while
 * it records all its blocks anew, and when the process died before the machine does. */
#include "base/hash.h"
#include "tests/sim/sim_disk.h"
#include "tiers/arena.h"
#include "tiers/ssd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define AREA_BYTES (4u << 20)
#define CHUNK 4096u
#define CHUNKS_MAX 4u
#define KEYS 300u
#define SLOTS 24u
#define DEPTH 8u
#define SEEDS 60u

/* What the test knows of a key. */
enum fate { ABSENT, WRITING, WRITTEN, DURABLE, FREED };
struct block {
    enum fate fate;
    uint64_t version; /* of the bytes now */
    uint64_t offset;
    uint32_t bytes;
    uint8_t chunks;
    uint64_t sums[CHUNKS_MAX];
    /* at a start */
    bool found;
};

struct slot {
    struct kvf_ssd_request request;
    struct world *world;
    unsigned key;
    bool busy, durable;
    uint8_t *data;
};

struct world {
    struct sim_media *media;
    struct sim_disk *sim;
    struct kvf_ssd *ssd;
    struct kvf_env env;
    struct kvf_log log; /* silent */
    uint64_t now_ns, random, incarnation;
    struct block blocks[KEYS];
    struct slot slots[SLOTS];
    uint8_t *scratch;
    unsigned misdirect;
    bool committing, closing, starting;
    bool aim; /* the power goes during the next checkpoint */
    struct kvf_ssd_request commit;
    unsigned cut_at_write; /* of the next start; 0: none */
    unsigned acknowledged, found, refused, checkpoints, cuts, aimed, kills;
};

static struct {
    unsigned acknowledged, found, refused, checkpoints, cuts, aimed, kills;
} totals;
static volatile uint64_t seed_now;

static uint64_t draw(struct world *w, uint64_t below)
{
    w->random = kvf_mix(w->random, 7);
    return w->random % below;
}

static uint64_t world_now(void *arg)
{
    return ((struct world *)arg)->now_ns;
}

static uint64_t world_random(void *arg)
{
    return draw(arg, UINT64_MAX);
}

static struct kvf_key key_of(unsigned k)
{
    return (struct kvf_key){.hi = 1000 + k % 3, .lo = k};
}

/* The version itself, then words made of it. */
static void fill(uint8_t *data, unsigned k, uint64_t version, uint32_t bytes)
{
    memset(data, 0, (bytes + CHUNK - 1) / CHUNK * CHUNK);
    memcpy(data, &version, 8);
    for (uint32_t i = 8; i + 8 <= bytes; i += 8)
        memcpy(data + i, &(uint64_t){kvf_mix(kvf_mix(k, version), i)}, 8);
}

static uint64_t sum_of(unsigned k, unsigned c, const uint8_t *data, uint32_t bytes)
{
    uint32_t size = bytes - c * CHUNK < CHUNK ? bytes - c * CHUNK : CHUNK;
    return kvf_hash(data + c * CHUNK, size, kvf_mix(k, c));
}

/* ------------------------------------------------------------------------------------------------- the owner */

static bool owner_found(void *arg, const struct kvf_ssd_record *r)
{
    struct world *w = arg;
    unsigned k = (unsigned)r->key.lo;
    assert_true(k < KEYS && r->key.hi == key_of(k).hi && r->flags == k % 5 && r->fingerprint == 77 && r->chunks <= CHUNKS_MAX);
    struct block *b = &w->blocks[k];
    if (b->found)
        return false;
    b->found = true;
    b->offset = r->offset;
    b->bytes = r->bytes;
    b->chunks = r->chunks;
    memcpy(b->sums, r->sums, r->chunks * sizeof *b->sums);
    return true;
}

static void record_of(const struct world *w, unsigned k, struct kvf_ssd_record *out)
{
    const struct block *b = &w->blocks[k];
    *out = (struct kvf_ssd_record){.key = key_of(k), .fingerprint = 77, .offset = b->offset, .bytes = b->bytes,
                                   .flags = (uint16_t)(k % 5), .chunks = b->chunks, .sums = b->sums};
}

static bool owner_walk(void *arg, uint64_t *cursor, struct kvf_ssd_record *out)
{
    struct world *w = arg;
    if (*cursor == 0 && w->aim && !w->starting) {
        sim_disk_cut_at_write(w->sim, (unsigned)draw(w, 8), draw(w, UINT64_MAX), w->misdirect);
        w->aim = false;
        w->aimed++;
    }
    for (; *cursor < KEYS; ++*cursor) {
        enum fate fate = w->blocks[*cursor].fate;
        if (w->starting ? w->blocks[*cursor].found : fate == WRITTEN || fate == DURABLE) {
            record_of(w, (unsigned)(*cursor)++, out);
            return true;
        }
    }
    return false;
}

static enum kvf_status start(struct world *w)
{
    assert_int_equal(sim_disk_create(w->media, DEPTH, &w->sim), KVF_OK);
    if (w->cut_at_write)
        sim_disk_cut_at_write(w->sim, w->cut_at_write - 1, draw(w, UINT64_MAX), w->misdirect);
    const struct kvf_ssd_options options = {
        .bytes = AREA_BYTES, .node = "alpha", .incarnation = ++w->incarnation, .block_max = 1 << 20, .depth = DEPTH,
        .env = &w->env, .log = &w->log, .owner = {.arg = w, .found = owner_found, .walk = owner_walk}};
    w->starting = true;
    enum kvf_status st = kvf_ssd_create(sim_disk_seam(w->sim), &options, &w->ssd);
    w->starting = false;
    return st;
}

/* ------------------------------------------------------------------------------------------------- work */

static void put_done(void *arg, enum kvf_status status)
{
    struct slot *s = arg;
    struct world *w = s->world;
    struct block *b = &w->blocks[s->key];
    assert_int_equal(b->fate, WRITING);
    s->busy = false;
    if (status == KVF_OK) {
        b->fate = s->durable ? DURABLE : WRITTEN;
        w->acknowledged += s->durable;
        return;
    }
    assert_true(sim_disk_dead(w->sim) || w->closing);
    b->fate = FREED;
}

static void put(struct world *w)
{
    unsigned k = (unsigned)draw(w, KEYS), i = 0;
    struct block *b = &w->blocks[k];
    while (i < SLOTS && w->slots[i].busy)
        i++;
    if (i == SLOTS || (b->fate != ABSENT && b->fate != FREED))
        return;
    struct slot *s = &w->slots[i];
    b->bytes = (uint32_t)(64 + draw(w, CHUNKS_MAX * CHUNK - 64));
    b->chunks = (uint8_t)((b->bytes + CHUNK - 1) / CHUNK);
    b->offset = kvf_ssd_alloc(w->ssd, b->bytes, b->chunks);
    if (b->offset == KVF_ARENA_NONE)
        return;
    b->version = w->random;
    fill(s->data, k, b->version, b->bytes);
    for (unsigned c = 0; c < b->chunks; c++)
        b->sums[c] = sum_of(k, c, s->data, b->bytes);
    b->fate = WRITING;
    b->found = false;
    s->key = k;
    s->busy = true;
    s->durable = draw(w, 3) > 0;
    s->request.done = put_done;
    s->request.arg = s;
    struct kvf_ssd_record record;
    record_of(w, k, &record);
    kvf_ssd_put(w->ssd, &s->request, &record, s->data, s->durable);
}

static void release(struct world *w)
{
    struct block *b = &w->blocks[draw(w, KEYS)];
    if (b->fate != WRITTEN && b->fate != DURABLE)
        return;
    kvf_ssd_free(w->ssd, b->offset, b->bytes, b->chunks);
    b->fate = FREED;
}

/* What was written when it was asked for is durable then. */
static void commit_done(void *arg, enum kvf_status status)
{
    struct world *w = arg;
    w->committing = false;
    for (unsigned k = 0; status == KVF_OK && k < KEYS; k++)
        if (w->blocks[k].fate == WRITTEN && w->blocks[k].found) {
            w->blocks[k].fate = DURABLE;
            w->acknowledged++;
        }
}

static void commit(struct world *w)
{
    if (w->committing)
        return;
    for (unsigned k = 0; k < KEYS; k++) /* `found` marks those that the commit covers */
        w->blocks[k].found = w->blocks[k].fate == WRITTEN;
    w->committing = true;
    w->commit.done = commit_done;
    w->commit.arg = w;
    kvf_ssd_commit(w->ssd, &w->commit);
}

static void work(struct world *w, unsigned steps)
{
    sim_disk_hold(w->sim, true);
    for (unsigned n = 0; n < steps && !sim_disk_dead(w->sim); n++) {
        uint64_t what = draw(w, 100);
        w->now_ns += draw(w, 20) * KVF_MS;
        if (what < 45)
            put(w);
        else if (what < 62)
            release(w);
        else if (what < 64)
            commit(w);
        for (unsigned i = 0; i < 3 && sim_disk_pending(w->sim); i++)
            sim_disk_release(w->sim, (unsigned)draw(w, sim_disk_pending(w->sim)));
        if (draw(w, 3))
            kvf_ssd_poll(w->ssd);
    }
}

/* ------------------------------------------------------------------------------------------------- power */

static void read_done(void *arg, enum kvf_status status)
{
    *(int *)arg = (int)status;
}

static bool verified(struct world *w, unsigned k)
{
    const struct block *b = &w->blocks[k];
    struct kvf_ssd_request r = {.done = read_done};
    int status = -1000;
    r.arg = &status;
    kvf_ssd_read(w->ssd, &r, b->offset, w->scratch, (b->bytes + CHUNK - 1) / CHUNK * CHUNK);
    for (unsigned n = 0; n < 100 && status == -1000; n++)
        kvf_ssd_poll(w->ssd);
    assert_int_equal(status, KVF_OK);
    for (unsigned c = 0; c < b->chunks; c++)
        if (sum_of(k, c, w->scratch, b->bytes) != b->sums[c])
            return false;
    return true;
}

/* Bytes that pass their checksums are some version of this very block, as it was put; the last one where that is owed. */
static void check_bytes(struct world *w, unsigned k, bool must)
{
    struct block *b = &w->blocks[k];
    uint8_t *want = w->scratch + CHUNKS_MAX * CHUNK;
    uint64_t version;
    memcpy(&version, w->scratch, 8);
    fill(want, k, version, b->bytes);
    assert_memory_equal(want, w->scratch, b->bytes);
    assert_true(!must || version == b->version);
    b->version = version;
}

static void check_after_start(struct world *w)
{
    for (unsigned k = 0; k < KEYS; k++) {
        struct block *b = &w->blocks[k];
        bool must = b->fate == DURABLE && !w->misdirect;
        bool good = b->found && verified(w, k);
        if (must && !good)
            fail_msg("seed %llu: block %u, durable, was %s", (unsigned long long)seed_now, k,
                     b->found ? "found damaged" : "not found");
        if (good)
            check_bytes(w, k, must);
        w->found += good;
        w->refused += b->found && !good;
        if (b->found && !good)
            kvf_ssd_free(w->ssd, b->offset, b->bytes, b->chunks);
        b->fate = good ? DURABLE : ABSENT; /* the start synced what it found */
        b->found = false;
    }
}

static void stop(struct world *w)
{
    struct kvf_ssd_stats stats;
    kvf_ssd_stats(w->ssd, &stats);
    w->checkpoints += (unsigned)stats.checkpoints;
    w->closing = true;
    kvf_ssd_destroy(w->ssd);
    w->closing = false;
    w->ssd = NULL;
    w->committing = false;
    for (unsigned i = 0; i < SLOTS; i++)
        assert_false(w->slots[i].busy);
}

/* Starts until it succeeds; some starts lose power, too. */
static void restart(struct world *w)
{
    for (unsigned tries = 0;; tries++) {
        assert_true(tries < 20);
        for (unsigned k = 0; k < KEYS; k++)
            w->blocks[k].found = false;
        enum kvf_status st;
        if (tries < 10 && draw(w, 3) == 0) {
            w->cut_at_write = 1 + (unsigned)draw(w, 4);
            st = start(w);
            w->cut_at_write = 0;
            if (st != KVF_OK) {
                struct kvf_disk *disk = sim_disk_seam(w->sim);
                disk->ops->close(disk);
                w->cuts++;
                continue;
            }
        } else {
            st = start(w);
        }
        assert_int_equal(st, KVF_OK);
        if (!sim_disk_dead(w->sim))
            return;
        stop(w);
    }
}

static void live(uint64_t seed, unsigned lives, unsigned misdirect)
{
    struct world *w = calloc(1, sizeof *w);
    w->env = (struct kvf_env){.arg = w, .now_ns = world_now, .random = world_random};
    w->now_ns = KVF_SEC;
    w->random = seed;
    w->misdirect = misdirect;
    kvf_log_init(&w->log, "test", KVF_LOG_ERROR, NULL);
    w->scratch = aligned_alloc(CHUNK, 2 * CHUNKS_MAX * CHUNK);
    for (unsigned i = 0; i < SLOTS; i++)
        w->slots[i] = (struct slot){.world = w, .data = aligned_alloc(CHUNK, CHUNKS_MAX * CHUNK)};
    assert_int_equal(sim_media_create(AREA_BYTES, &w->media), KVF_OK);
    assert_int_equal(sim_media_track(w->media), KVF_OK);
    assert_int_equal(start(w), KVF_OK);
    for (unsigned n = 0; n < lives; n++) {
        bool gently = draw(w, 8) == 0, kill = draw(w, 4) == 0;
        w->aim = !gently && draw(w, 2);
        work(w, w->aim ? 3000 : 200 + (unsigned)draw(w, 800));
        w->aim = false;
        gently = gently && !sim_disk_dead(w->sim); /* the start may have planned a cut that came only now */
        kill = kill && !gently && !sim_disk_dead(w->sim);
        w->kills += kill;
        w->cuts += !gently && !kill;
        if (kill)
            sim_disk_kill(w->sim, draw(w, UINT64_MAX));
        else if (!gently && !sim_disk_dead(w->sim))
            sim_disk_cut(w->sim, draw(w, UINT64_MAX), misdirect);
        sim_disk_hold(w->sim, false);
        stop(w);
        if (gently) /* all that was written stays when the tier is closed */
            for (unsigned k = 0; k < KEYS; k++)
                w->blocks[k].fate = w->blocks[k].fate == WRITTEN ? DURABLE : w->blocks[k].fate;
        restart(w);
        check_after_start(w);
    }
    stop(w);
    totals.acknowledged += w->acknowledged;
    totals.found += w->found;
    totals.refused += w->refused;
    totals.checkpoints += w->checkpoints;
    totals.cuts += w->cuts;
    totals.aimed += w->aimed;
    totals.kills += w->kills;
    sim_media_destroy(w->media);
    for (unsigned i = 0; i < SLOTS; i++)
        free(w->slots[i].data);
    free(w->scratch);
    free(w);
}

static void lives(uint64_t first, unsigned seeds, unsigned misdirect)
{
    memset(&totals, 0, sizeof totals);
    for (unsigned n = 0; n < seeds; n++) {
        seed_now = first + n; /* for the debugger */
        live(first + n, 8, misdirect);
    }
    print_message("seeds %llu to %llu: %u cuts, %u of them in checkpoints, %u kills, %u acknowledged, %u found, %u refused, "
                  "%u checkpoints\n", (unsigned long long)first, (unsigned long long)(first + seeds - 1), totals.cuts, totals.aimed,
                  totals.kills, totals.acknowledged, totals.found, totals.refused, totals.checkpoints);
    assert_true(totals.acknowledged > 100 * seeds && totals.found > 100 * seeds && totals.checkpoints > seeds);
    assert_true(totals.aimed > seeds && totals.kills > seeds / 2);
}

static void durable_blocks_survive_power_cuts(void **state)
{
    lives(1, SEEDS, 0);
}

static void misdirected_writes_cost_misses_only(void **state)
{
    lives(100000, SEEDS, 9);
    assert_true(totals.refused > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(durable_blocks_survive_power_cuts),
        cmocka_unit_test(misdirected_writes_cost_misses_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
