/* The SSD tier starts on a journal of which something is missing: what a power cut took, what rotted, what cannot be read, what a
 * sync that failed left in a cache. It serves what can be trusted, and never a block that was removed. */
#include "tests/tiers/area.h"

#define SMALL (2u << 20) /* halves of 127 blocks; four times that, too */
#define HALF_BLOCKS 127u
#define JOURNAL_END (JOURNAL_START + 2 * HALF_BLOCKS * UNIT)

static uint64_t block_at(uint64_t generation, uint64_t number)
{
    return JOURNAL_START + (generation % 2 * HALF_BLOCKS + number) * UNIT;
}

/* The number of the block of the generation that has a record of this place, or of the last one there is; HALF_BLOCKS: none. */
static uint64_t block_with(const struct fixture *f, uint64_t generation, enum kvf_journal_kind kind, uint64_t offset)
{
    struct kvf_journal_head head;
    struct kvf_journal_entry e;
    for (uint64_t n = 0; n < HALF_BLOCKS; n++) {
        const uint8_t *block = f->media->bytes + block_at(generation, n);
        if (!kvf_journal_open(block, AREA, &head) || head.generation != generation)
            continue;
        for (uint32_t at = 0; kvf_journal_read(block, &head, &at, &e);)
            if (e.kind == kind && e.record.offset == offset)
                return n;
    }
    return HALF_BLOCKS;
}

static uint32_t tail_of(const struct fixture *f, uint64_t generation)
{
    struct kvf_journal_head head;
    uint32_t tail = 0;
    for (uint32_t n = 0; n < HALF_BLOCKS; n++)
        if (kvf_journal_open(f->media->bytes + block_at(generation, n), AREA, &head) && head.generation == generation)
            tail = n + 1;
    return tail;
}

/* Reads of this one block of the disk fail. */
static uint64_t unreadable;
static enum sim_fault bad_sector(void *arg, const struct kvf_disk_request *r, unsigned *polls)
{
    bool hit = !r->sync && !r->write && unreadable >= r->offset && unreadable < r->offset + r->bytes;
    return hit ? SIM_FAULT_IO : SIM_FAULT_NONE;
}

static enum kvf_status start_with_bad_sector(struct fixture *f, uint64_t offset)
{
    unreadable = offset;
    assert_int_equal(sim_disk_create(f->media, f->depth, &f->sim), KVF_OK);
    sim_disk_fate(f->sim, bad_sector, NULL);
    return start_over(f);
}

/* Keys 1 to 60 are put, 10 is removed, 61 to `last` are put; all of it durable. Returns the block in which the removal stands. */
static uint64_t lived_long(struct fixture *f, uint64_t last)
{
    for (uint64_t k = 1; k <= 60; k++)
        put(f, k, k % 5 == 0);
    uint64_t place = f->offset[10];
    drop(f, 10);
    for (uint64_t k = 61; k <= last; k++) {
        uint64_t offset = kvf_ssd_alloc(f->ssd, UNIT, CHUNKS);
        struct kvf_ssd_request r;
        if (offset == place) /* which nobody writes to: its bytes stay */
            offset = kvf_ssd_alloc(f->ssd, UNIT, CHUNKS);
        post(f, &r, k, offset, k % 5 == 0);
        settle(f);
        assert_int_equal(f->status, KVF_OK);
        f->offset[k] = offset;
    }
    stop(f);
    uint64_t n = block_with(f, 1, KVF_JOURNAL_FREE, place);
    assert_true(n < HALF_BLOCKS && n > 4 && n + 4 < tail_of(f, 1));
    return n;
}

static uint64_t lived(struct fixture *f)
{
    return lived_long(f, 120);
}

/* What was put after the damage is there, and nothing that was put before it; least of all what was removed. */
static void check_doubted(struct fixture *f, enum kvf_status status)
{
    assert_int_equal(status, KVF_OK);
    assert_int_equal(f->offset[10], 0);
    assert_int_equal(f->offset[1], 0);
    assert_true(f->offset[120] && f->offset[100]);
}

/* ------------------------------------------------------------------------------------------------- damage */

/* The block of the journal that tells of a removal has rotted, or cannot be read; later it can be again. */
static void a_removal_that_is_lost_brings_nothing_back(void **state)
{
    for (unsigned rot = 0; rot < 2; rot++) {
        struct fixture *f = set_up(SMALL);
        uint64_t at = block_at(1, lived(f));
        f->media->bytes[at + 99] ^= rot;
        check_doubted(f, rot ? start(f) : start_with_bad_sector(f, at));
        unsigned found = f->found;
        put(f, 200, true);
        assert_int_equal(f->status, KVF_OK);
        stop(f);
        f->media->bytes[at + 99] ^= rot;
        check_doubted(f, start(f));
        assert_int_equal(f->found, found + 1);
        assert_true(f->offset[200] != 0);
        tear_down(f);
    }
}

/* A block that cannot be read behind the last one may have been the newest: nothing is known of what it removed. */
static void an_unreadable_end_is_no_end(void **state)
{
    struct fixture *f = set_up(SMALL);
    lived(f);
    assert_int_equal(start_with_bad_sector(f, block_at(1, tail_of(f, 1))), KVF_OK);
    assert_int_equal(f->found, 0);
    put(f, 7, true);
    assert_int_equal(f->status, KVF_OK);
    stop(f);
    assert_int_equal(start(f), KVF_OK);
    assert_int_equal(f->found, 1);
    tear_down(f);
}

/* Where it says nothing of what the journal holds, it costs nothing. */
static void an_unreadable_block_elsewhere_costs_nothing(void **state)
{
    struct fixture *f = set_up(SMALL);
    lived(f);
    assert_int_equal(start_with_bad_sector(f, block_at(1, tail_of(f, 1) + 3)), KVF_OK);
    assert_int_equal(f->found, 119);
    stop(f);
    assert_int_equal(start_with_bad_sector(f, block_at(0, 3)), KVF_OK); /* the generation before */
    assert_int_equal(f->found, 119);
    tear_down(f);
}

/* A disk of which much cannot be read is ill, not damaged: the start fails, and the area is left for another one. */
static void a_journal_that_cannot_be_read_is_left_alone(void **state)
{
    struct fixture *f = set_up(SMALL);
    lived(f);
    uint8_t *before = malloc(JOURNAL_END);
    memcpy(before, f->media->bytes, JOURNAL_END);
    assert_int_equal(sim_disk_create(f->media, f->depth, &f->sim), KVF_OK);
    struct kvf_disk *disk = sim_disk_seam(f->sim);
    sim_disk_fail(f->sim, false, SIM_FAULT_IO, 1, UINT32_MAX); /* the superblock can be read */
    assert_int_equal(start_over(f), KVF_ERR_IO);
    disk->ops->close(disk);
    assert_memory_equal(before, f->media->bytes, JOURNAL_END);
    free(before);
    assert_int_equal(start(f), KVF_OK);
    assert_int_equal(f->found, 119);
    tear_down(f);
}

/* ------------------------------------------------------------------------------------------------- power */

static void track(struct fixture *f)
{
    assert_int_equal(sim_media_track(f->media), KVF_OK);
    memcpy(f->media->durable, f->media->bytes, f->media->size);
}

/* A block that no sync had covered is missing between two that came through: what is older is as good as before, at this start and
 * at later ones, when there are newer blocks behind it that were synced. */
static void what_a_power_cut_took_is_no_damage(void **state)
{
    struct fixture *f = set_up(SMALL);
    stop(f);
    struct author a;
    author_begin(&a, f, 2);
    for (uint64_t k = 0; k < 70; k++)
        author_put(&a, k, SMALL / 2 + k * UNIT, UNIT);
    author_end(&a, true);
    memset(f->media->bytes + block_at(2, 5), 0xee, UNIT);
    for (unsigned starts = 0; starts < 3; starts++) {
        assert_int_equal(start(f), KVF_OK);
        assert_int_equal(f->found, 63 + starts);
        put(f, 100 + starts, true);
        assert_int_equal(f->status, KVF_OK);
        stop(f);
    }
    assert_int_equal(start(f), KVF_OK);
    tear_down(f);
}

/* The power went when a checkpoint's blocks were written and not synced, and it is the last ones of a small half that came through:
 * what is to be recorded again finds room in the holes. */
static void a_torn_checkpoint_of_a_full_half_is_finished(void **state)
{
    struct fixture *f = set_up(SMALL);
    uint64_t slots = SMALL / 2, places = (SMALL - slots) / UNIT;
    struct author a;
    stop(f);
    author_begin(&a, f, 2);
    for (uint64_t k = 0; k < 7 * HALF_BLOCKS; k++)
        author_put(&a, k % places, slots + k % places * UNIT, UNIT);
    author_end(&a, false);
    author_begin(&a, f, 3);
    for (uint64_t k = 0; k < 7 * (HALF_BLOCKS - 2); k++)
        author_put(&a, k % 3, slots + k % 3 * UNIT, UNIT);
    author_end(&a, false);
    for (uint64_t n = 0; n + 4 < HALF_BLOCKS; n++)
        memset(f->media->bytes + block_at(3, n), 0, UNIT);
    for (unsigned starts = 0; starts < 3; starts++) {
        assert_int_equal(start(f), KVF_OK);
        assert_int_equal(f->found, places);
        assert_false(kvf_ssd_degraded(f->ssd));
        drop(f, 5);
        put(f, 5, true);
        assert_int_equal(f->status, KVF_OK);
        stop(f);
    }
    tear_down(f);
}

/* The power goes at the n-th write of a start, while reads of one block fail; 0: of none. False: the start came through. */
static bool cut_short(struct fixture *f, unsigned n, uint64_t seed, uint64_t offset)
{
    unreadable = offset;
    assert_int_equal(sim_disk_create(f->media, f->depth, &f->sim), KVF_OK);
    sim_disk_fate(f->sim, bad_sector, NULL);
    sim_disk_cut_at_write(f->sim, n, seed, 0);
    enum kvf_status st = start_over(f);
    if (st == KVF_OK) {
        stop(f);
        return false;
    }
    struct kvf_disk *disk = sim_disk_seam(f->sim);
    disk->ops->close(disk);
    return true;
}

/* Starts find so many that were put behind the damage, and what is put now; also when the next generation has begun. */
static void check_lives_on(struct fixture *f, unsigned found)
{
    for (uint64_t k = 1000; k < 1003; k++, found++) {
        check_doubted(f, start(f));
        assert_int_equal(f->found, found);
        put(f, k, true);
        assert_int_equal(f->status, KVF_OK);
        stop(f);
    }
    check_doubted(f, start(f));
    for (uint64_t n = 0; n < 8 * HALF_BLOCKS; n++) {
        put(f, 2000, false);
        assert_int_equal(f->status, KVF_OK);
        drop(f, 2000);
    }
    assert_true(f->walks > 0);
    stop(f);
    check_doubted(f, start(f));
    assert_int_equal(f->found, found);
}

/* What a start on a damaged journal still believes it writes down in a new generation. Power goes meanwhile, once or twice: the
 * next start finds as much as if it had not. */
static void a_start_on_a_damaged_journal_may_be_cut_short(void **state)
{
    enum { seeds = 12 };
    unsigned whole = 0, cuts = 0, twice = 0, came_through = 0;
    for (unsigned i = 0; came_through < 2 * seeds; i++) { /* first without a cut; at last it is planned behind all writes */
        for (unsigned seed = 1; seed <= seeds; seed++) {
            struct fixture *f = set_up(4 * SMALL);
            uint64_t at = block_at(1, lived_long(f, 540)); /* so that what is believed takes two writes */
            f->media->bytes[at + 99] ^= 1;
            track(f);
            bool cut = cut_short(f, i ? i - 1 : UINT32_MAX, seed, 0);
            cuts += cut;
            came_through += !cut;
            whole = i ? whole : f->found;
            twice += seed % 2 == 0 && cut_short(f, seed % 4, 100 + seed, 0);
            check_lives_on(f, whole);
            tear_down(f);
        }
    }
    assert_true(cuts > 2 * seeds && twice > seeds);
}

/* Nothing was served from a generation that has no END: where the block can be read the next time, nothing is lost at all; and what
 * is removed then stays so, whatever still lies in the other half. */
static void a_start_that_was_cut_short_changes_nothing(void **state)
{
    unsigned begun = 0;
    for (unsigned seed = 1; seed <= 12; seed++) {
        struct fixture *f = set_up(SMALL);
        uint64_t at = block_at(1, lived(f));
        track(f);
        assert_true(cut_short(f, 1, seed, at));
        begun += tail_of(f, 2) > 0;
        assert_int_equal(start(f), KVF_OK);
        assert_int_equal(f->found, 119);
        drop(f, 11);
        put(f, 200, true);
        assert_int_equal(f->status, KVF_OK);
        stop(f);
        assert_int_equal(start(f), KVF_OK);
        assert_int_equal(f->found, 119);
        assert_true(!f->offset[10] && !f->offset[11] && f->offset[200]);
        tear_down(f);
    }
    assert_true(begun > 0);
}

/* Where END may have been and cannot be read, the node may have served and removed. */
static void an_unreadable_end_of_a_new_generation_is_no_end(void **state)
{
    struct fixture *f = set_up(SMALL);
    uint64_t at = block_at(1, lived(f));
    f->media->bytes[at + 99] ^= 1;
    check_doubted(f, start(f));
    drop(f, 110);
    stop(f);
    uint32_t tail = tail_of(f, 2);
    assert_true(tail > 2);
    f->media->bytes[block_at(2, tail - 1) + 99] ^= 1; /* the removal; END before it cannot be read */
    assert_int_equal(start_with_bad_sector(f, block_at(2, tail - 2)), KVF_OK);
    assert_int_equal(f->offset[110], 0);
    tear_down(f);
}

/* ------------------------------------------------------------------------------------------------- syncs */

/* An earlier process wrote them and saw its sync fail; syncs of this one say OK whatever lies in the cache. So a start writes again
 * what it builds on, and is not OK before that is safe. */
static void a_start_makes_good_what_a_failed_sync_left(void **state)
{
    struct fixture *f = set_up(SMALL);
    track(f);
    put(f, 1, true);
    sim_disk_fail_sync(f->sim, 0, 1);
    put(f, 2, true);
    assert_int_equal(f->status, KVF_ERR_IO);
    stop(f);
    assert_true(memcmp(f->media->durable, f->media->bytes, JOURNAL_END) != 0);
    assert_int_equal(sim_disk_create(f->media, f->depth, &f->sim), KVF_OK);
    sim_disk_fail_sync(f->sim, 0, 1);
    struct kvf_disk *disk = sim_disk_seam(f->sim);
    assert_int_equal(start_over(f), KVF_ERR_IO);
    disk->ops->close(disk);
    assert_int_equal(start(f), KVF_OK);
    assert_true(f->offset[1] && f->offset[2]);
    assert_memory_equal(f->media->durable, f->media->bytes, JOURNAL_END);
    tear_down(f);
}

/* The same of an area whose making was not synced: a durable block in it would be lost with its superblock. */
static void a_superblock_whose_sync_failed_is_written_again(void **state)
{
    for (unsigned after = 0; after < 2; after++) {
        struct fixture *f = set_up(SMALL);
        stop(f);
        memset(f->media->bytes, 0, SMALL);
        track(f);
        assert_int_equal(sim_disk_create(f->media, f->depth, &f->sim), KVF_OK);
        struct kvf_disk *disk = sim_disk_seam(f->sim);
        sim_disk_fail_sync(f->sim, after, 1);
        assert_int_equal(start_over(f), KVF_ERR_IO);
        disk->ops->close(disk);
        assert_int_equal(start(f), KVF_OK);
        put(f, 1, true);
        assert_int_equal(f->status, KVF_OK);
        sim_disk_cut(f->sim, 3, 0);
        stop(f);
        assert_int_equal(start(f), KVF_OK);
        assert_true(f->offset[1] != 0);
        tear_down(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_removal_that_is_lost_brings_nothing_back),
        cmocka_unit_test(an_unreadable_end_is_no_end),
        cmocka_unit_test(an_unreadable_block_elsewhere_costs_nothing),
        cmocka_unit_test(a_journal_that_cannot_be_read_is_left_alone),
        cmocka_unit_test(what_a_power_cut_took_is_no_damage),
        cmocka_unit_test(a_torn_checkpoint_of_a_full_half_is_finished),
        cmocka_unit_test(a_start_on_a_damaged_journal_may_be_cut_short),
        cmocka_unit_test(a_start_that_was_cut_short_changes_nothing),
        cmocka_unit_test(an_unreadable_end_of_a_new_generation_is_no_end),
        cmocka_unit_test(a_start_makes_good_what_a_failed_sync_left),
        cmocka_unit_test(a_superblock_whose_sync_failed_is_written_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
