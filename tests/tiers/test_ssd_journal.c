/* The SSD tier and its journal in situations that chance does not bring about: a block that goes while the checkpoint is about to
 * record it, a sync that takes its time or fails, freed blocks that come back, a first superblock that cannot be read, and
 * journals that somebody made up. Over the simulated disk. */
#include "base/bytes.h"
#include "tests/tiers/area.h"
#include "tiers/superblock.h"

/* A put that stands for itself: its end enters the block where it belongs. */
static void keyed_done(void *arg, enum kvf_status status)
{
    struct kvf_ssd_request *r = arg;
    struct fixture *f = (struct fixture *)(uintptr_t)r->record.fingerprint;
    assert_int_equal(status, KVF_OK);
    f->offset[r->record.key.lo] = r->record.offset;
    r->arg = NULL;
}

static void post_key(struct fixture *f, struct kvf_ssd_request *r, uint64_t key, uint64_t offset)
{
    struct kvf_ssd_record record;
    record_of(f, key, offset, &record);
    record.fingerprint = (uintptr_t)f;
    *r = (struct kvf_ssd_request){.done = keyed_done, .arg = r};
    kvf_ssd_put(f->ssd, r, &record, f->data, key % 7 == 0);
}

/* ------------------------------------------------------------------------------------------------- what time brings */

/* The walk was told of a block, and there was no room to write its record yet. Meanwhile the block is freed and another, durable
 * one is written into its slot. Its record must not be followed by the old one. */
static void a_block_freed_before_the_walk_wrote_it_is_not_recorded(void **state)
{
    struct fixture *f = set_up(64u << 20);
    struct kvf_ssd_request r;
    for (uint64_t k = 1; k <= 1000; k++)
        put(f, k, false);
    f->freeze = true;
    for (unsigned n = 0; f->walks == 0; n++) { /* fills the half */
        assert_true(n < 5000);
        uint64_t offset = kvf_ssd_alloc(f->ssd, UNIT, CHUNKS);
        post(f, &r, 2000, offset, false);
        for (unsigned i = 0; f->status == KVF_IN_PROGRESS && f->walks == 0; i++) {
            assert_true(i < 1000);
            kvf_ssd_poll(f->ssd);
        }
        if (f->walks == 0)
            kvf_ssd_free(f->ssd, offset, UNIT, CHUNKS);
        else
            f->offset[2000] = offset;
    }
    f->freeze = false;
    for (unsigned n = 0; n < 20; n++) /* the journal's memory is full, its write does not end */
        kvf_ssd_poll(f->ssd);
    uint64_t victim = f->walked, slot = f->offset[victim];
    assert_true(victim > 400 && victim < 1000);
    drop(f, victim);
    assert_true(kvf_ssd_alloc(f->ssd, UNIT, CHUNKS) == slot);
    struct kvf_ssd_request mine;
    post(f, &mine, 0, slot, true); /* key 0: the walk has passed it */
    kvf_ssd_poll(f->ssd);
    sim_disk_release_all(f->sim); /* the journal's write, then this one's data */
    kvf_ssd_poll(f->ssd);
    sim_disk_hold(f->sim, false);
    settle(f);
    assert_int_equal(f->status, KVF_OK);
    stop(f);
    assert_int_equal(start(f), KVF_OK);
    assert_true(f->offset[0] == slot);
    assert_int_equal(f->offset[victim], 0);
    tear_down(f);
}

static bool has_end(const struct fixture *f, uint64_t generation)
{
    struct kvf_journal_head head;
    struct kvf_journal_entry e;
    uint64_t half_blocks = half_blocks_of(f);
    for (uint64_t i = 0; i < half_blocks; i++) {
        const uint8_t *block = f->media->bytes + JOURNAL_START + (generation % 2 * half_blocks + i) * UNIT;
        if (!kvf_journal_open(block, AREA, &head) || head.generation != generation)
            continue;
        for (uint32_t at = 0; kvf_journal_read(block, &head, &at, &e);)
            if (e.kind == KVF_JOURNAL_END)
                return true;
    }
    return false;
}

/* END says that nothing is missing before it, so it is written when a sync has covered that: a power cut might keep its block
 * alone. */
static void the_end_of_a_checkpoint_waits_for_a_sync(void **state)
{
    struct fixture *f = set_up(64u << 20);
    struct kvf_ssd_request r;
    for (uint64_t k = 1; k <= 100; k++)
        put(f, k, false);
    f->freeze = true;
    for (unsigned n = 0; f->walks == 0; n++) {
        assert_true(n < 5000);
        uint64_t offset = kvf_ssd_alloc(f->ssd, UNIT, CHUNKS);
        post(f, &r, 2000, offset, false);
        for (unsigned i = 0; f->status == KVF_IN_PROGRESS && f->walks == 0; i++)
            kvf_ssd_poll(f->ssd);
        if (f->walks == 0)
            kvf_ssd_free(f->ssd, offset, UNIT, CHUNKS);
        else
            f->offset[2000] = offset;
    }
    f->freeze = false;
    uint64_t syncs = sim_disk_syncs(f->sim);
    for (unsigned n = 0; n < 100; n++) { /* all writes go through, no sync does */
        kvf_ssd_poll(f->ssd);
        for (unsigned i = 0; i < sim_disk_pending(f->sim); i++)
            if (!sim_disk_pending_at(f->sim, i)->sync)
                sim_disk_release(f->sim, i);
    }
    assert_true(f->walked == 100 && sim_disk_syncs(f->sim) == syncs);
    assert_true(!has_end(f, 2));
    sim_disk_hold(f->sim, false);
    for (unsigned n = 0; n < 100; n++)
        kvf_ssd_poll(f->ssd);
    assert_true(has_end(f, 2));
    stop(f);
    assert_int_equal(start(f), KVF_OK);
    assert_int_equal(f->found, 101);
    tear_down(f);
}

/* Recovery looks for the end of a generation behind gaps up to a limit, so no crash may leave a longer one. */
static void the_journal_does_not_run_away_from_a_slow_sync(void **state)
{
    struct fixture *f = set_up(1u << 30);
    struct kvf_ssd_stats stats;
    sim_disk_hold(f->sim, true);
    for (unsigned n = 0; n < 6000; n++) {
        for (unsigned i = 0; i < 250; i++) {
            uint64_t offset = kvf_ssd_alloc(f->ssd, UNIT, CHUNKS);
            kvf_ssd_free(f->ssd, offset, UNIT, CHUNKS);
        }
        kvf_ssd_poll(f->ssd);
        for (unsigned i = 0; i < sim_disk_pending(f->sim); i++)
            if (!sim_disk_pending_at(f->sim, i)->sync)
                sim_disk_release(f->sim, i);
    }
    kvf_ssd_stats(f->ssd, &stats);
    assert_int_equal(stats.syncs, 0);
    assert_in_range(stats.journal_bytes, 1024 * UNIT, 2048 * UNIT);
    sim_disk_hold(f->sim, false);
    put(f, 1, true);
    assert_int_equal(f->status, KVF_OK);
    tear_down(f);
}

/* After a sync that failed nothing is believed, though the next ones say OK: what was written before it may be gone. */
static void a_failed_sync_is_never_made_good(void **state)
{
    struct fixture *f = set_up(64u << 20);
    struct kvf_ssd_request r;
    assert_int_equal(sim_media_track(f->media), KVF_OK);
    memcpy(f->media->durable, f->media->bytes, f->media->size);
    put(f, 1, true);
    assert_int_equal(f->status, KVF_OK);
    put(f, 2, false);
    assert_int_equal(f->status, KVF_OK);
    sim_disk_fail_sync(f->sim, 0, 1);
    put(f, 3, true);
    assert_int_equal(f->status, KVF_ERR_IO);
    for (unsigned s = 0; s < 300; s++) { /* probes */
        f->now_ns += KVF_SEC;
        kvf_ssd_poll(f->ssd);
        assert_true(kvf_ssd_degraded(f->ssd));
    }
    r = (struct kvf_ssd_request){.done = put_done, .arg = f};
    f->status = KVF_IN_PROGRESS;
    kvf_ssd_commit(f->ssd, &r);
    settle(f);
    assert_int_equal(f->status, KVF_ERR_IO);
    sim_disk_cut(f->sim, 1, 0);
    stop(f);
    assert_int_equal(start(f), KVF_OK);
    assert_true(f->offset[1] && !f->offset[2] && !f->offset[3]);
    put(f, 4, true);
    assert_int_equal(f->status, KVF_OK);
    tear_down(f);
}

/* A write of the journal that failed is made good once the disk writes again: what was only written keeps its record. */
static void a_failed_journal_write_is_repeated(void **state)
{
    struct fixture *f = set_up(64u << 20);
    assert_int_equal(sim_media_track(f->media), KVF_OK);
    memcpy(f->media->durable, f->media->bytes, f->media->size);
    put(f, 1, false);
    assert_int_equal(f->status, KVF_OK);
    sim_disk_fail(f->sim, true, SIM_FAULT_SHORT, 1, 1); /* the data, then the journal */
    put(f, 2, true);
    assert_int_equal(f->status, KVF_ERR_IO);
    assert_true(kvf_ssd_degraded(f->ssd));
    for (unsigned s = 0; kvf_ssd_degraded(f->ssd); s++) {
        assert_true(s < 100);
        f->now_ns += KVF_SEC;
        kvf_ssd_poll(f->ssd);
    }
    put(f, 3, true);
    assert_int_equal(f->status, KVF_OK);
    sim_disk_cut(f->sim, 1, 0);
    stop(f);
    assert_int_equal(start(f), KVF_OK);
    assert_true(f->offset[1] && f->offset[3]);
    tear_down(f);
}

/* New records do not take the room that the walk needs, however many come. */
static void a_flood_of_puts_leaves_a_checkpoint_its_room(void **state)
{
    enum { live = 1200, flood = 300 }; /* as many as may live, nearly */
    struct fixture *f = set_up(64u << 20);
    static struct kvf_ssd_request requests[flood];
    uint64_t at = 0, puts = 0;
    stop(f);
    f->depth = 2 * flood;
    assert_int_equal(start(f), KVF_OK);
    for (uint64_t k = 0; k < live; k++)
        put(f, k, false);
    for (unsigned n = 0; f->walks < 4; n++) {
        assert_true(n < 5000);
        for (unsigned i = 0; i < flood; i++) {
            if (requests[i].done && requests[i].arg) /* under way */
                continue;
            uint64_t key = at++ % live, offset;
            if (!f->offset[key])
                continue;
            drop(f, key);
            offset = kvf_ssd_alloc(f->ssd, UNIT, CHUNKS);
            assert_true(offset != KVF_ARENA_NONE);
            post_key(f, &requests[i], key, offset);
            puts++;
        }
        kvf_ssd_poll(f->ssd);
    }
    for (unsigned n = 0; !kvf_ssd_idle(f->ssd); n++) {
        assert_true(n < 10000);
        kvf_ssd_poll(f->ssd);
    }
    assert_false(kvf_ssd_degraded(f->ssd));
    print_message("%llu puts\n", (unsigned long long)puts);
    stop(f);
    assert_int_equal(start(f), KVF_OK);
    assert_int_equal(f->found, live);
    tear_down(f);
}

/* ------------------------------------------------------------------------------------------------- what stands there */

static void an_unreadable_superblock_has_a_copy(void **state)
{
    struct fixture *f = set_up(64u << 20);
    put(f, 1, true);
    stop(f);
    memset(f->offset, 0, sizeof f->offset);
    assert_int_equal(sim_disk_create(f->media, 8, &f->sim), KVF_OK);
    sim_disk_fail(f->sim, false, SIM_FAULT_IO, 0, 1);
    struct kvf_ssd_options options = {.bytes = f->area_bytes, .node = "alpha", .incarnation = 8, .block_max = 1 << 20, .depth = 8,
                                      .env = &f->env, .log = &f->log, .owner = {.arg = f, .found = owner_found}};
    assert_int_equal(kvf_ssd_create(sim_disk_seam(f->sim), &options, &f->ssd), KVF_OK);
    assert_true(f->offset[1] != 0);
    stop(f);

    /* It cannot be read and its copy is damaged: it may be whole another time, so nothing is written. */
    uint8_t before[2 * UNIT];
    f->media->bytes[UNIT + 9] ^= 1;
    memcpy(before, f->media->bytes, sizeof before);
    assert_int_equal(sim_disk_create(f->media, 8, &f->sim), KVF_OK);
    struct kvf_disk *disk = sim_disk_seam(f->sim);
    sim_disk_fail(f->sim, false, SIM_FAULT_IO, 0, 1);
    assert_int_equal(kvf_ssd_create(disk, &options, &f->ssd), KVF_ERR_IO);
    assert_memory_equal(before, f->media->bytes, sizeof before);
    disk->ops->close(disk);
    f->ssd = NULL;
    tear_down(f);
}

/* More records than may live at a time: blocks that were freed without a record of it. They do not push out the oldest. */
static void freed_blocks_that_come_back_cost_no_living_one(void **state)
{
    struct fixture *f = set_up(64u << 20);
    uint64_t slots_start = f->area_bytes / 32;
    struct author a;
    stop(f);
    author_begin(&a, f, 2);
    for (uint64_t k = 0; k < 1400; k++) /* 1213 may live */
        author_put(&a, k, slots_start + k * UNIT, UNIT);
    author_end(&a, true);
    assert_int_equal(start(f), KVF_OK);
    assert_int_equal(f->found, 1400);
    assert_true(f->offset[0] == slots_start);
    assert_true(kvf_ssd_alloc(f->ssd, UNIT, CHUNKS) == KVF_ARENA_NONE);
    for (uint64_t k = 0; k < 300; k++)
        drop(f, k);
    for (unsigned n = 0; f->walks < 2; n++) { /* through two checkpoints */
        assert_true(n < 5000);
        put(f, 1999, true);
        assert_int_equal(f->status, KVF_OK);
        drop(f, 1999);
    }
    tear_down(f);
}

/* A long checkpoint that recovery finishes is synced on the way, too. */
static void recovery_does_not_run_away_from_its_sync(void **state)
{
    struct fixture *f = set_up(1u << 30);
    uint64_t slots_start = f->area_bytes / 32;
    struct author a;
    stop(f);
    author_begin(&a, f, 2);
    for (uint64_t k = 0; k < 7 * 4094; k++) /* a full half; 2857 blocks of it are of records that live */
        author_put(&a, k % KEYS, slots_start + k % KEYS * UNIT, UNIT);
    author_end(&a, true);
    author_begin(&a, f, 3);
    author_put(&a, 0, slots_start, UNIT);
    author_end(&a, false);
    assert_int_equal(start(f), KVF_OK);
    assert_int_equal(f->found, KEYS);
    assert_true(sim_disk_syncs(f->sim) >= 4); /* two on the way, one before END, one behind it */
    stop(f);
    assert_int_equal(start(f), KVF_OK);
    assert_int_equal(f->found, KEYS);
    tear_down(f);
}

/* Whole blocks where they do not belong: one that was written to a wrong place, and one of a generation of the same number that
 * a power cut kept from beginning. Neither is newer than what stands in its place before it. */
static void misplaced_and_stale_blocks_are_passed_over(void **state)
{
    struct fixture *f = set_up(64u << 20);
    uint64_t slot = f->area_bytes / 32;
    struct author a;
    for (unsigned stale = 0; stale < 2; stale++) {
        stop(f);
        author_begin(&a, f, 2 + 2 * stale);
        if (stale)
            kvf_journal_position(&a.journal, 4, 99, 0, 0); /* another nonce */
        author_put(&a, 1, slot, UNIT);
        author_write(&a);
        uint8_t *first = f->media->bytes + JOURNAL_START;
        memcpy(f->data, first, UNIT);
        if (stale) { /* ... of the same number: as it stood behind, in place */
            author_put(&a, 1, slot, UNIT);
            author_write(&a);
            memcpy(f->data, first + UNIT, UNIT);
            author_end(&a, false);
            author_begin(&a, f, 4);
            author_put(&a, 3, slot, UNIT);
        } else {
            author_put(&a, 2, slot, UNIT);
        }
        author_end(&a, true);
        memcpy(first + (stale ? 1 : 2) * UNIT, f->data, UNIT);
        memset(f->data, 0, UNIT);
        assert_int_equal(start(f), KVF_OK);
        assert_int_equal(f->found, 1);
        assert_true(f->offset[stale ? 3 : 2] == slot);
    }
    tear_down(f);
}

/* Whole blocks with records that no node wrote: passed over, and what is sensible among them is found. */
static void made_up_records_are_refused(void **state)
{
    struct fixture *f = set_up(64u << 20);
    uint64_t slots_start = f->area_bytes / 32, end = f->area_bytes;
    struct author a;
    stop(f);
    author_begin(&a, f, 2);
    author_put(&a, 1, slots_start, UNIT);
    author_put(&a, 2, 0, UNIT);                                 /* the superblock */
    author_put(&a, 3, JOURNAL_START, UNIT);                     /* the journal */
    author_put(&a, 4, slots_start - UNIT, 2 * UNIT);            /* both */
    author_put(&a, 5, end, UNIT);                               /* behind the area */
    author_put(&a, 6, end - UNIT, 2 * UNIT);                    /* over its end */
    author_put(&a, 7, UINT64_MAX - UNIT + 1, UNIT);
    author_put(&a, 8, UINT64_MAX - UNIT + 1, UINT32_MAX);
    author_put(&a, 9, slots_start + UNIT + 1, UNIT);            /* not in steps of a unit */
    author_put(&a, 10, slots_start + 2 * UNIT, 0);              /* nothing */
    author_put(&a, 11, slots_start + (1 << 20), 2 << 20);       /* more than a page */
    author_put(&a, 12, slots_start + 255 * UNIT, 2 * UNIT);     /* over the end of its page */
    author_put(&a, 13, slots_start + (4 << 20), 3 * UNIT);
    author_put(&a, 14, slots_start + (4 << 20) + UNIT, 3 * UNIT); /* overlaps, and is newer; not where such a slot begins */
    author_put(&a, UINT64_MAX, slots_start + 8 * UNIT, UNIT);   /* no key of ours */
    author_put(&a, 15, slots_start + 9 * UNIT, UNIT);
    author_end(&a, true);
    assert_int_equal(start(f), KVF_OK);
    assert_int_equal(f->found, 2);
    assert_true(f->offset[1] == slots_start && f->offset[15] == slots_start + 9 * UNIT);
    put(f, 16, true);
    assert_int_equal(f->status, KVF_OK);
    tear_down(f);
}

/* Any bytes as records of a whole block. */
static void random_records_are_survived(void **state)
{
    struct fixture *f = set_up(64u << 20);
    uint64_t random = 20260;
    print_message("seed %llu\n", (unsigned long long)random);
    stop(f);
    for (unsigned n = 0; n < 200; n++) {
        uint8_t *block = f->media->bytes + JOURNAL_START; /* generation 2, block 0 */
        for (unsigned i = 0; i < UNIT; i += 8) {
            random = kvf_mix(random, i);
            memcpy(block + i, &random, 8);
            if (i % 24 == 16) /* sizes and offsets that may pass */
                memcpy(block + i, &(uint64_t){random % (80u << 20) / UNIT * UNIT}, 8);
            if (random % 3 == 0) /* kinds that there are */
                memcpy(block + i, (uint8_t[]){(uint8_t)(1 + random % 4), (uint8_t)(random >> 8 & 67), 0, 0}, 4);
        }
        struct kvf_writer w = kvf_writer_of(block, 40);
        kvf_write_bytes(&w, "KVFJ", 4);
        kvf_write_u32(&w, (uint32_t)(random % 4100));
        kvf_write_u64(&w, AREA);
        kvf_write_u64(&w, 2 + 2 * n);
        kvf_write_u64(&w, random);
        kvf_write_u32(&w, 0);
        kvf_write_u32(&w, (uint32_t)random);
        w = kvf_writer_of(block + 4088, 8);
        kvf_write_u64(&w, kvf_hash(block, 4088, AREA));
        enum kvf_status st = start(f);
        assert_int_equal(st, KVF_OK);
        put(f, 3, true);
        assert_int_equal(f->status, KVF_OK);
        stop(f);
    }
    tear_down(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_block_freed_before_the_walk_wrote_it_is_not_recorded),
        cmocka_unit_test(the_end_of_a_checkpoint_waits_for_a_sync),
        cmocka_unit_test(the_journal_does_not_run_away_from_a_slow_sync),
        cmocka_unit_test(a_failed_sync_is_never_made_good),
        cmocka_unit_test(a_failed_journal_write_is_repeated),
        cmocka_unit_test(a_flood_of_puts_leaves_a_checkpoint_its_room),
        cmocka_unit_test(an_unreadable_superblock_has_a_copy),
        cmocka_unit_test(freed_blocks_that_come_back_cost_no_living_one),
        cmocka_unit_test(recovery_does_not_run_away_from_its_sync),
        cmocka_unit_test(misplaced_and_stale_blocks_are_passed_over),
        cmocka_unit_test(made_up_records_are_refused),
        cmocka_unit_test(random_records_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
