/* The SSD tier over the simulated disk, with an owner that keeps a block's place by its key, and journals written by hand: what the
 * tests of its journal share. */
#ifndef KVF_TESTS_TIERS_AREA_H
#define KVF_TESTS_TIERS_AREA_H

#include "base/hash.h"
#include "tests/sim/sim_disk.h"
#include "tiers/arena.h"
#include "tiers/ssd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define UNIT 4096u
#define CHUNKS 64u /* the largest records: seven to a block of the journal */
#define KEYS 20000u
#define JOURNAL_START 8192u
#define AREA 7u /* its incarnation */

struct fixture {
    uint64_t area_bytes;
    unsigned depth;
    struct sim_media *media;
    struct sim_disk *sim;
    struct kvf_ssd *ssd;
    uint64_t now_ns, random;
    struct kvf_env env;
    struct kvf_log log; /* silent */
    /* the owner: a block's slot by its key, 0 where there is none */
    uint64_t offset[KEYS];
    uint64_t sums[CHUNKS];
    bool freeze; /* the disk holds its breath once the owner is asked for the first block of a walk */
    uint64_t walked; /* key that the walk came to last */
    unsigned walks, found;
    uint8_t *data;
    enum kvf_status status;
};

static inline uint64_t fixture_now(void *arg)
{
    return ((struct fixture *)arg)->now_ns;
}

static inline uint64_t fixture_random(void *arg)
{
    struct fixture *f = arg;
    return f->random = kvf_mix(f->random, 1);
}

static inline bool owner_found(void *arg, const struct kvf_ssd_record *r)
{
    struct fixture *f = arg;
    if (r->key.lo >= KEYS || f->offset[r->key.lo])
        return false;
    f->offset[r->key.lo] = r->offset;
    f->found++;
    return true;
}

static inline void record_of(const struct fixture *f, uint64_t key, uint64_t offset, struct kvf_ssd_record *out)
{
    *out = (struct kvf_ssd_record){.key = {.hi = 1, .lo = key}, .offset = offset, .bytes = UNIT, .chunks = CHUNKS, .sums = f->sums};
}

static inline bool owner_walk(void *arg, uint64_t *cursor, struct kvf_ssd_record *out)
{
    struct fixture *f = arg;
    f->walks += *cursor == 0;
    if (f->freeze && *cursor == 0)
        sim_disk_hold(f->sim, true);
    for (; *cursor < KEYS; ++*cursor)
        if (f->offset[*cursor]) {
            f->walked = *cursor;
            record_of(f, *cursor, f->offset[*cursor], out);
            ++*cursor;
            return true;
        }
    return false;
}

/* Over f->sim, which it takes over when it is OK. */
static inline enum kvf_status start_over(struct fixture *f)
{
    const struct kvf_ssd_options options = {
        .bytes = f->area_bytes, .node = "alpha", .incarnation = AREA, .block_max = 1 << 20, .depth = f->depth, .env = &f->env,
        .log = &f->log, .owner = {.arg = f, .found = owner_found, .walk = owner_walk}};
    memset(f->offset, 0, sizeof f->offset);
    f->found = f->walks = 0;
    return kvf_ssd_create(sim_disk_seam(f->sim), &options, &f->ssd);
}

static inline enum kvf_status start(struct fixture *f)
{
    assert_int_equal(sim_disk_create(f->media, f->depth, &f->sim), KVF_OK);
    return start_over(f);
}

static inline void stop(struct fixture *f)
{
    sim_disk_hold(f->sim, false);
    kvf_ssd_destroy(f->ssd);
    f->ssd = NULL;
}

static inline struct fixture *set_up(uint64_t area_bytes)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->area_bytes = area_bytes;
    f->depth = 8;
    f->env = (struct kvf_env){.arg = f, .now_ns = fixture_now, .random = fixture_random};
    kvf_log_init(&f->log, "test", KVF_LOG_ERROR, NULL);
    f->now_ns = KVF_SEC;
    f->data = aligned_alloc(UNIT, UNIT);
    memset(f->data, 0, UNIT);
    assert_int_equal(sim_media_create(area_bytes, &f->media), KVF_OK);
    assert_int_equal(start(f), KVF_OK);
    return f;
}

static inline void tear_down(struct fixture *f)
{
    if (f->ssd)
        stop(f);
    sim_media_destroy(f->media);
    free(f->data);
    free(f);
}

static inline void put_done(void *arg, enum kvf_status status)
{
    ((struct fixture *)arg)->status = status;
}

static inline void post(struct fixture *f, struct kvf_ssd_request *r, uint64_t key, uint64_t offset, bool durable)
{
    struct kvf_ssd_record record;
    record_of(f, key, offset, &record);
    *r = (struct kvf_ssd_request){.done = put_done, .arg = f};
    f->status = KVF_IN_PROGRESS;
    kvf_ssd_put(f->ssd, r, &record, f->data, durable);
}

static inline void settle(struct fixture *f)
{
    for (unsigned n = 0; f->status == KVF_IN_PROGRESS; n++) {
        assert_true(n < 10000);
        kvf_ssd_poll(f->ssd);
    }
}

static inline void put(struct fixture *f, uint64_t key, bool durable)
{
    struct kvf_ssd_request r;
    uint64_t offset = kvf_ssd_alloc(f->ssd, UNIT, CHUNKS);
    assert_true(offset != KVF_ARENA_NONE);
    post(f, &r, key, offset, durable);
    settle(f);
    if (f->status == KVF_OK)
        f->offset[key] = offset;
    else
        kvf_ssd_free(f->ssd, offset, UNIT, CHUNKS);
}

static inline void drop(struct fixture *f, uint64_t key)
{
    kvf_ssd_free(f->ssd, f->offset[key], UNIT, CHUNKS);
    f->offset[key] = 0;
}

static inline uint64_t half_blocks_of(const struct fixture *f)
{
    uint64_t slots_start = f->area_bytes / 32 < 1 << 20 ? 1 << 20 : f->area_bytes / 32;
    return (slots_start - JOURNAL_START) / 2 / UNIT;
}

/* Journals by hand. */
struct author {
    struct fixture *f;
    struct kvf_journal journal;
};

static inline void author_write(struct author *a)
{
    void *data;
    uint64_t offset;
    uint32_t bytes;
    kvf_journal_seal(&a->journal);
    while (kvf_journal_hand(&a->journal, &data, &offset, &bytes)) {
        memcpy(a->f->media->bytes + offset, data, bytes);
        kvf_journal_wrote(&a->journal, bytes);
    }
}

static inline void author_begin(struct author *a, struct fixture *f, uint64_t generation)
{
    uint64_t half_blocks = half_blocks_of(f);
    *a = (struct author){.f = f};
    assert_int_equal(kvf_journal_init(&a->journal, AREA, JOURNAL_START, (uint32_t)half_blocks), KVF_OK);
    kvf_journal_position(&a->journal, generation, generation, 0, 0);
}

static inline void author_put(struct author *a, uint64_t key, uint64_t offset, uint32_t bytes)
{
    struct kvf_ssd_record r;
    record_of(a->f, key, offset, &r);
    r.bytes = bytes;
    if (!kvf_journal_put(&a->journal, &r)) {
        author_write(a);
        assert_true(kvf_journal_put(&a->journal, &r));
    }
}

static inline void author_end(struct author *a, bool end)
{
    assert_true(!end || kvf_journal_end(&a->journal));
    author_write(a);
    kvf_journal_fini(&a->journal);
}
#endif
