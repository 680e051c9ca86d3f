/* The SSD tier's queues over a scripted disk and a clock in hand, its superblock, and once the real disk. */
#include "tiers/ssd.h"
#include "base/bytes.h"
#include "base/hash.h"
#include "tests/sim/sim_disk.h"
#include "tiers/arena.h"
#include "tiers/order.h"
#include "tiers/superblock.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SEED 90210u
#define AREA_BYTES (64u << 20)
#define BLOCK 65536u
#define SLOTS_START (2u << 20) /* of an area of this size */
#define IO_MAX 256

struct io {
    struct kvf_ssd_request request;
    unsigned done, order;
    enum kvf_status status;
    struct fixture *fixture;
    uint8_t *data;
};

struct fixture {
    struct sim_media *media;
    struct sim_disk *sim;
    struct kvf_ssd *ssd;
    uint64_t now_ns, random;
    struct kvf_env env;
    struct kvf_log log; /* silent */
    unsigned finished;
    uint8_t *buffer; /* IO_MAX blocks */
    struct io io[IO_MAX];
};

static uint64_t fixture_now(void *arg)
{
    return ((struct fixture *)arg)->now_ns;
}

static uint64_t fixture_random(void *arg)
{
    struct fixture *f = arg;
    return f->random = kvf_mix(f->random, 1);
}

static enum kvf_status create(struct fixture *f, struct kvf_disk *disk, uint64_t bytes, const char *node, uint32_t block_max,
                              unsigned depth)
{
    const struct kvf_ssd_options options = {.bytes = bytes, .node = node, .incarnation = 7, .block_max = block_max,
                                            .depth = depth, .env = &f->env, .log = &f->log};
    return kvf_ssd_create(disk, &options, &f->ssd);
}

static enum kvf_status start(struct fixture *f, unsigned depth, const char *node)
{
    assert_int_equal(sim_disk_create(f->media, depth, &f->sim), KVF_OK);
    enum kvf_status st = create(f, sim_disk_seam(f->sim), AREA_BYTES, node, 1 << 20, depth);
    if (st != KVF_OK) {
        struct kvf_disk *disk = sim_disk_seam(f->sim);
        disk->ops->close(disk); /* stays the caller's when creation fails */
        f->sim = NULL;
    }
    return st;
}

static struct fixture *set_up(unsigned depth)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->env = (struct kvf_env){.arg = f, .now_ns = fixture_now, .random = fixture_random};
    kvf_log_init(&f->log, "test", KVF_LOG_ERROR, NULL);
    f->now_ns = KVF_SEC;
    f->buffer = aligned_alloc(4096, (size_t)IO_MAX * BLOCK);
    memset(f->buffer, 0, (size_t)IO_MAX * BLOCK);
    assert_int_equal(sim_media_create(AREA_BYTES, &f->media), KVF_OK);
    for (unsigned i = 0; i < IO_MAX; i++)
        f->io[i] = (struct io){.fixture = f, .data = f->buffer + (size_t)i * BLOCK};
    if (depth)
        assert_int_equal(start(f, depth, "alpha"), KVF_OK);
    return f;
}

static void tear_down(struct fixture *f)
{
    kvf_ssd_destroy(f->ssd);
    sim_media_destroy(f->media);
    free(f->buffer);
    free(f);
}

static void io_done(void *arg, enum kvf_status status)
{
    struct io *io = arg;
    io->done++;
    io->status = status;
    io->order = ++io->fixture->finished;
}

static struct io *post(struct fixture *f, unsigned i, bool write, uint64_t offset, uint32_t bytes)
{
    struct io *io = &f->io[i];
    io->done = 0;
    io->request.done = io_done;
    io->request.arg = io;
    if (write)
        kvf_ssd_write(f->ssd, &io->request, offset, io->data, bytes);
    else
        kvf_ssd_read(f->ssd, &io->request, offset, io->data, bytes);
    assert_int_equal(io->done, 0);
    return io;
}

static unsigned pending_of(const struct fixture *f, bool write)
{
    unsigned n = 0;
    for (unsigned i = 0; i < sim_disk_pending(f->sim); i++)
        n += sim_disk_pending_at(f->sim, i)->write == write;
    return n;
}

static void settle(struct fixture *f)
{
    sim_disk_hold(f->sim, false);
    for (unsigned n = 0; !kvf_ssd_idle(f->ssd); n++) {
        assert_true(n < 1000);
        f->now_ns += KVF_MS;
        kvf_ssd_poll(f->ssd);
    }
}

static void bytes_come_back_and_slots_return(void **state)
{
    struct fixture *f = set_up(16);
    uint64_t offsets[100];
    struct kvf_ssd_stats stats;
    for (unsigned i = 0; i < 100; i++) {
        offsets[i] = kvf_ssd_alloc(f->ssd, BLOCK, 1);
        assert_true(offsets[i] >= SLOTS_START && offsets[i] % 4096 == 0);
        memset(f->io[i].data, (int)i + 1, BLOCK);
        post(f, i, true, offsets[i], BLOCK);
    }
    settle(f);
    memset(f->buffer, 0, (size_t)IO_MAX * BLOCK);
    for (unsigned i = 0; i < 100; i++)
        post(f, i, false, offsets[i] + 4096, 8192); /* a range of the block */
    settle(f);
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(f->io[i].status, KVF_OK);
        assert_int_equal(f->io[i].data[0], i + 1);
        assert_int_equal(f->io[i].data[8191], i + 1);
        assert_int_equal(f->io[i].data[8192], 0);
        kvf_ssd_free(f->ssd, offsets[i], BLOCK, 1);
    }
    kvf_ssd_stats(f->ssd, &stats);
    assert_int_equal(stats.used_bytes, 0);
    assert_int_equal(stats.capacity_bytes, AREA_BYTES - SLOTS_START);
    assert_int_equal(stats.writes, 100);
    assert_int_equal(stats.written_bytes, 100ull * BLOCK);
    assert_int_equal(stats.reads, 100);
    assert_int_equal(stats.read_bytes, 100ull * 8192);
    assert_int_equal(stats.errors, 0);
    assert_false(stats.degraded);
    assert_string_equal(stats.engine, "simulated");
    assert_int_equal(sim_disk_most_pending(f->sim), 16);
    tear_down(f);
}

static void a_full_area_says_so(void **state)
{
    struct fixture *f = set_up(4);
    unsigned slots = 0;
    uint64_t last = 0, offset;
    while ((offset = kvf_ssd_alloc(f->ssd, 1 << 20, 1)) != KVF_ARENA_NONE) {
        last = offset;
        slots++;
    }
    assert_int_equal(slots, 62);
    assert_true(last + (1 << 20) <= AREA_BYTES);
    kvf_ssd_free(f->ssd, last, 1 << 20, 1);
    assert_int_equal(kvf_ssd_alloc(f->ssd, 1 << 20, 1), last);
    tear_down(f);
}

static void reads_go_before_writes(void **state)
{
    struct fixture *f = set_up(4);
    uint64_t at = kvf_ssd_alloc(f->ssd, BLOCK, 1);
    sim_disk_hold(f->sim, true);
    post(f, 0, false, at, 4096);
    for (unsigned i = 10; i < 14; i++)
        post(f, i, true, at, 4096);
    for (unsigned i = 1; i < 10; i++)
        post(f, i, false, at, 4096);
    kvf_ssd_poll(f->ssd);
    assert_int_equal(pending_of(f, false), 4);
    assert_int_equal(pending_of(f, true), 0);
    /* Each read that ends makes room for a read; writes wait until the last has ended. */
    for (unsigned n = 0; n < 9; n++) {
        sim_disk_release(f->sim, 0);
        kvf_ssd_poll(f->ssd);
        assert_int_equal(pending_of(f, true), 0);
    }
    sim_disk_release(f->sim, 0);
    kvf_ssd_poll(f->ssd);
    assert_int_equal(f->finished, 10);
    assert_int_equal(pending_of(f, true), 0); /* the next read may be on its way: they wait a moment */
    f->now_ns += KVF_ORDER_BURST_NS;
    kvf_ssd_poll(f->ssd);
    assert_int_equal(pending_of(f, true), 2); /* half of the depth */
    /* A read that comes now finds room beside them. */
    post(f, 20, false, at, 4096);
    kvf_ssd_poll(f->ssd);
    assert_int_equal(pending_of(f, false), 1);
    settle(f);
    for (unsigned i = 0; i < 14; i++)
        assert_int_equal(f->io[i].status, KVF_OK);
    assert_true(f->io[20].order < f->io[13].order);
    tear_down(f);
}

/* Reads never let up, and the clock moves: writes still get their turns, and only then. */
static void writes_age_and_do_not_starve(void **state)
{
    struct fixture *f = set_up(8);
    uint64_t at = kvf_ssd_alloc(f->ssd, 1 << 20, 1), turns[200] = {0}, began_ns = f->now_ns;
    uint64_t before = sim_disk_writes(f->sim);
    unsigned last = 0;
    for (unsigned i = 0; i < 60; i++)
        post(f, i, false, at, 4096);
    for (unsigned i = 100; i < 200; i++)
        post(f, i, true, at, BLOCK);
    for (unsigned step = 0; step < 2000 && sim_disk_writes(f->sim) < before + 100; step++) {
        f->now_ns += KVF_MS;
        sim_disk_hold(f->sim, true);
        kvf_ssd_poll(f->ssd);
        unsigned given = (unsigned)(sim_disk_writes(f->sim) - before) + pending_of(f, true);
        assert_true(given == last || f->now_ns - began_ns >= KVF_ORDER_TURN_NS);
        for (; last < given; last++)
            turns[last] = f->now_ns;
        assert_true(pending_of(f, true) * BLOCK <= KVF_ORDER_TURN_BYTES);
        assert_true(pending_of(f, false) > 0);
        sim_disk_release_all(f->sim);
        kvf_ssd_poll(f->ssd);
        for (unsigned i = 0; i < 60; i++)
            if (f->io[i].done)
                post(f, i, false, at, 4096);
    }
    assert_int_equal(sim_disk_writes(f->sim), before + 100);
    for (unsigned i = 0; i + KVF_ORDER_TURN_BYTES / BLOCK < 100; i++) /* one turn's worth in any turn's time */
        assert_true(turns[i + KVF_ORDER_TURN_BYTES / BLOCK] - turns[i] >= KVF_ORDER_TURN_NS);
    print_message("100 writes of 64 KiB beside endless reads: %llu ms\n", (unsigned long long)((f->now_ns - began_ns) / KVF_MS));
    settle(f);
    tear_down(f);
}

/* Somebody waits for the room that writes make: they go beside the reads, a turn's worth at a time, in pieces. */
static void writes_in_a_hurry_go_beside_reads(void **state)
{
    struct fixture *f = set_up(8);
    uint8_t *big = aligned_alloc(4096, 1 << 20), *back = aligned_alloc(4096, 1 << 20);
    for (unsigned i = 0; i < 1 << 20; i++)
        big[i] = (uint8_t)(i * 2654435761u >> 13);
    uint64_t at = kvf_ssd_alloc(f->ssd, 1 << 20, 1);
    sim_disk_hold(f->sim, true);
    post(f, 1, false, at, 4096);
    f->io[0].request.done = io_done;
    f->io[0].request.arg = &f->io[0];
    kvf_ssd_write(f->ssd, &f->io[0].request, at, big, 1 << 20);
    kvf_ssd_poll(f->ssd);
    assert_int_equal(pending_of(f, true), 0);
    kvf_ssd_hurry(f->ssd, true);
    for (unsigned piece = 0; piece < 4; piece++) {
        kvf_ssd_poll(f->ssd);
        assert_int_equal(sim_disk_pending(f->sim), 2);
        assert_true(sim_disk_pending_at(f->sim, 1)->write);
        assert_int_equal(sim_disk_pending_at(f->sim, 1)->bytes, KVF_ORDER_TURN_BYTES);
        assert_int_equal(f->io[0].done, 0);
        sim_disk_release(f->sim, 1);
        kvf_ssd_poll(f->ssd);
    }
    assert_int_equal(f->io[0].done, 1);
    settle(f);
    f->io[2].request.done = io_done;
    f->io[2].request.arg = &f->io[2];
    kvf_ssd_read(f->ssd, &f->io[2].request, at, back, 1 << 20);
    settle(f);
    assert_memory_equal(big, back, 1 << 20);
    struct kvf_ssd_stats stats;
    kvf_ssd_stats(f->ssd, &stats);
    assert_int_equal(stats.writes, 1); /* pieces are one write */
    assert_int_equal(stats.written_bytes, 1 << 20);
    tear_down(f);
    free(big);
    free(back);
}

/* A piece that fails ends its request with what is left of it unwritten. */
static void a_piece_that_fails_ends_the_whole(void **state)
{
    struct fixture *f = set_up(8);
    uint8_t *big = aligned_alloc(4096, 4 << 20);
    memset(big, 3, 4 << 20);
    uint64_t at = kvf_ssd_alloc(f->ssd, 1 << 20, 1);
    sim_disk_fail(f->sim, true, SIM_FAULT_IO, 1, 1);
    kvf_ssd_hurry(f->ssd, true);
    post(f, 1, false, at, 4096);
    f->io[0].request.done = io_done;
    f->io[0].request.arg = &f->io[0];
    kvf_ssd_write(f->ssd, &f->io[0].request, at, big, 1 << 20);
    settle(f);
    assert_int_equal(f->io[0].done, 1);
    assert_int_equal(f->io[0].status, KVF_ERR_IO);
    assert_int_equal(f->media->bytes[at], 3);
    assert_int_equal(f->media->bytes[at + KVF_ORDER_TURN_BYTES], 0);
    tear_down(f);
    free(big);
}

/* Demand, then what is read ahead, then writes, then the scrub; a read that becomes demand overtakes. */
static void priorities_are_kept_and_reads_are_promoted(void **state)
{
    struct fixture *f = set_up(1);
    uint64_t at = kvf_ssd_alloc(f->ssd, BLOCK, 1);
    sim_disk_hold(f->sim, true);
    post(f, 0, false, at, 4096); /* has the disk's one place */
    kvf_ssd_poll(f->ssd);
    f->io[1].request.priority = KVF_PRIORITY_SCRUB;
    post(f, 1, false, at, 4096);
    post(f, 2, true, at, 4096);
    f->io[3].request.priority = f->io[4].request.priority = KVF_PRIORITY_AHEAD;
    post(f, 3, false, at, 4096);
    post(f, 4, false, at, 4096);
    post(f, 5, false, at, 4096);
    assert_int_equal(kvf_ssd_queued(f->ssd, KVF_PRIORITY_AHEAD), 2);
    kvf_ssd_promote(f->ssd, &f->io[4].request);
    assert_int_equal(kvf_ssd_queued(f->ssd, KVF_PRIORITY_AHEAD), 1);
    assert_int_equal(kvf_ssd_queued(f->ssd, KVF_PRIORITY_DEMAND), 2);
    sim_disk_hold(f->sim, false);
    for (unsigned n = 0; n < 10; n++) /* at one moment: nothing has waited so long that it had a turn */
        kvf_ssd_poll(f->ssd);
    assert_int_equal(f->finished, 4);
    settle(f);
    const unsigned order[] = {0, 5, 4, 3, 2, 1};
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(f->io[order[i]].order, i + 1);
    tear_down(f);
}

/* However much is read ahead, a demand read finds few bytes before it; and reading ahead does not starve behind demand. */
static void reading_ahead_is_bounded_and_ages(void **state)
{
    struct fixture *f = set_up(64);
    uint8_t *big = aligned_alloc(4096, 1 << 20);
    uint64_t at = kvf_ssd_alloc(f->ssd, 1 << 20, 1);
    sim_disk_hold(f->sim, true);
    for (unsigned i = 0; i < 20; i++) {
        f->io[i].request.done = io_done;
        f->io[i].request.arg = &f->io[i];
        f->io[i].request.priority = KVF_PRIORITY_AHEAD;
        kvf_ssd_read(f->ssd, &f->io[i].request, at, big, 1 << 20);
    }
    kvf_ssd_poll(f->ssd);
    struct kvf_ssd_stats stats;
    kvf_ssd_stats(f->ssd, &stats);
    assert_int_equal(stats.in_flight_bytes[KVF_PRIORITY_AHEAD], KVF_ORDER_AHEAD_BYTES);
    for (unsigned i = 100; i < 200; i++)
        post(f, i, false, at, 4096);
    kvf_ssd_poll(f->ssd);
    assert_int_equal(pending_of(f, false), 64);
    for (unsigned n = 0; n < 1000 && !f->io[19].done; n++) {
        f->now_ns += KVF_MS;
        sim_disk_release_all(f->sim);
        kvf_ssd_poll(f->ssd);
        for (unsigned i = 100; i < 200; i++)
            if (f->io[i].done)
                post(f, i, false, at, 4096);
        kvf_ssd_stats(f->ssd, &stats);
        assert_true(stats.in_flight_bytes[KVF_PRIORITY_AHEAD] <= KVF_ORDER_AHEAD_BYTES);
        assert_true(stats.in_flight[KVF_PRIORITY_DEMAND] > 0);
    }
    assert_int_equal(f->io[19].done, 1);
    settle(f);
    tear_down(f);
    free(big);
}

static void writes_in_flight_are_bounded(void **state)
{
    struct fixture *f = set_up(64);
    uint8_t *big = aligned_alloc(4096, 1 << 20);
    memset(big, 5, 1 << 20);
    uint64_t at = kvf_ssd_alloc(f->ssd, 1 << 20, 1);
    sim_disk_hold(f->sim, true);
    for (unsigned i = 0; i < 20; i++) {
        f->io[i].request.done = io_done;
        f->io[i].request.arg = &f->io[i];
        kvf_ssd_write(f->ssd, &f->io[i].request, at, big, 1 << 20);
    }
    for (unsigned i = 20; i < 100; i++)
        post(f, i, true, at, 4096);
    settle(f);
    assert_true(sim_disk_most_write_bytes(f->sim) <= 4u << 20);
    assert_true(sim_disk_most_write_bytes(f->sim) >= 4u << 20);
    assert_true(sim_disk_most_pending(f->sim) <= 32);
    assert_int_equal(f->finished, 100);
    tear_down(f);
    free(big);
}

static void a_disk_of_less_depth_is_waited_for(void **state)
{
    struct fixture *f = set_up(0);
    assert_int_equal(sim_disk_create(f->media, 2, &f->sim), KVF_OK);
    assert_int_equal(create(f, sim_disk_seam(f->sim), AREA_BYTES, "alpha", 1 << 20, 64), KVF_OK);
    uint64_t at = kvf_ssd_alloc(f->ssd, BLOCK, 1);
    for (unsigned i = 0; i < 50; i++)
        post(f, i, i % 2, at, 4096);
    settle(f);
    assert_int_equal(f->finished, 50);
    tear_down(f);
}

static void a_failed_write_degrades_and_reads_go_on(void **state)
{
    static const struct {
        enum sim_fault fault;
        enum kvf_status status;
    } faults[] = {{SIM_FAULT_IO, KVF_ERR_IO}, {SIM_FAULT_FULL, KVF_ERR_DISK_FULL}, {SIM_FAULT_SHORT, KVF_ERR_IO}};
    for (unsigned n = 0; n < 3; n++) {
        struct fixture *f = set_up(4);
        struct kvf_ssd_stats stats;
        uint64_t good = kvf_ssd_alloc(f->ssd, BLOCK, 1), bad = kvf_ssd_alloc(f->ssd, BLOCK, 1);
        memset(f->io[0].data, 9, BLOCK);
        post(f, 0, true, good, BLOCK);
        settle(f);
        sim_disk_fail(f->sim, true, faults[n].fault, 0, 1);
        post(f, 1, true, bad, BLOCK);
        settle(f);
        assert_int_equal(f->io[1].status, faults[n].status);
        kvf_ssd_stats(f->ssd, &stats);
        assert_true(stats.degraded);
        assert_int_equal(stats.errors, 1);
        assert_int_equal(kvf_ssd_alloc(f->ssd, BLOCK, 1), KVF_ARENA_NONE);
        post(f, 2, false, good, BLOCK);
        settle(f);
        assert_int_equal(f->io[2].status, KVF_OK);
        assert_int_equal(f->io[2].data[BLOCK - 1], 9);
        kvf_ssd_free(f->ssd, bad, BLOCK, 1);
        tear_down(f);
    }
}

static void a_failed_read_fails_alone(void **state)
{
    struct fixture *f = set_up(4);
    struct kvf_ssd_stats stats;
    uint64_t at = kvf_ssd_alloc(f->ssd, BLOCK, 1);
    sim_disk_fail(f->sim, false, SIM_FAULT_SHORT, 1, 1);
    for (unsigned i = 0; i < 3; i++)
        post(f, i, false, at, BLOCK);
    settle(f);
    assert_int_equal(f->io[0].status, KVF_OK);
    assert_int_equal(f->io[1].status, KVF_ERR_IO);
    assert_int_equal(f->io[2].status, KVF_OK);
    kvf_ssd_stats(f->ssd, &stats);
    assert_false(stats.degraded);
    assert_true(kvf_ssd_alloc(f->ssd, BLOCK, 1) != KVF_ARENA_NONE);
    tear_down(f);
}

/* Silent faults are the checksums' to find: each of them must change bytes, or that test of the node tests nothing. */
static void the_double_damages_as_told(void **state)
{
    static const enum sim_fault faults[] = {SIM_FAULT_FLIP, SIM_FAULT_TEAR, SIM_FAULT_MISPLACE};
    for (unsigned n = 0; n < 3; n++) {
        struct fixture *f = set_up(4);
        uint64_t at = kvf_ssd_alloc(f->ssd, BLOCK, 1);
        for (uint32_t i = 0; i < BLOCK; i++)
            f->io[0].data[i] = (uint8_t)(i / 4096 + 1);
        sim_disk_slow(f->sim, 3);
        sim_disk_fail(f->sim, true, faults[n], 0, 1);
        post(f, 0, true, at, BLOCK);
        settle(f);
        post(f, 1, false, at, BLOCK);
        settle(f);
        assert_int_equal(f->io[0].status, KVF_OK);
        assert_int_equal(f->io[1].status, KVF_OK);
        assert_true(memcmp(f->io[0].data, f->io[1].data, BLOCK) != 0);
        tear_down(f);
    }
}

static void destroy_cancels_the_queue_and_finishes_the_rest(void **state)
{
    struct fixture *f = set_up(4);
    uint64_t at = kvf_ssd_alloc(f->ssd, BLOCK, 1);
    sim_disk_hold(f->sim, true);
    for (unsigned i = 0; i < 10; i++)
        post(f, i, false, at, 4096);
    for (unsigned i = 10; i < 20; i++)
        post(f, i, true, at, 4096);
    kvf_ssd_poll(f->ssd);
    kvf_ssd_destroy(f->ssd);
    f->ssd = NULL;
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(f->io[i].done, 1);
        assert_int_equal(f->io[i].status, i < 4 ? KVF_OK : KVF_CANCELLED);
    }
    tear_down(f);
}

/* ------------------------------------------------------------------------------------------------- superblock */

/* Writes the bytes again as a whole superblock of that version. */
static void make_version(uint8_t *page, uint32_t version)
{
    struct kvf_writer w = kvf_writer_of(page + 8, 4);
    kvf_write_u32(&w, version);
    w = kvf_writer_of(page + 4088, 8);
    kvf_write_u64(&w, kvf_hash(page, 4088, 0));
}

static void superblock_is_as_documented(void **state)
{
    struct fixture *f = set_up(4);
    const uint8_t *page = f->media->bytes;
    struct kvf_superblock s;
    assert_int_equal(sim_disk_syncs(f->sim), 2); /* the journal's beginnings, then the superblocks */
    assert_memory_equal(page, page + 4096, 4096);
    assert_memory_equal(page, "KVFAREA\n", 8);
    struct kvf_reader r = kvf_reader_of(page + 8, 4080);
    assert_int_equal(kvf_read_u32(&r), 3);
    assert_int_equal(kvf_read_u32(&r), 4096);
    assert_int_equal(kvf_read_u64(&r), AREA_BYTES);
    assert_int_equal(kvf_read_u64(&r), SLOTS_START);
    assert_int_equal(kvf_read_u32(&r), 1 << 20);
    assert_int_equal(kvf_read_u32(&r), 0);
    assert_int_equal(kvf_read_u64(&r), 7);
    assert_string_equal((const char *)page + 48, "alpha");
    r = kvf_reader_of(page + 112, 16);
    assert_int_equal(kvf_read_u64(&r), 8192);
    assert_int_equal(kvf_read_u64(&r), (SLOTS_START - 8192) / 2 / 4096 * 4096);
    for (unsigned i = 128; i < 4088; i++)
        assert_int_equal(page[i], 0);
    assert_int_equal(kvf_superblock_decode(page, 4096, &s), KVF_OK);
    assert_string_equal(s.node, "alpha");
    assert_int_equal(s.incarnation, 7);
    assert_int_equal(s.area_bytes, AREA_BYTES);
    tear_down(f);
}

static void a_restart_begins_empty_and_names_itself_again(void **state)
{
    struct fixture *f = set_up(4);
    struct kvf_ssd_stats stats;
    assert_true(kvf_ssd_alloc(f->ssd, BLOCK, 1) != KVF_ARENA_NONE);
    kvf_ssd_destroy(f->ssd);
    f->ssd = NULL;
    assert_int_equal(start(f, 4, "alpha"), KVF_OK);
    kvf_ssd_stats(f->ssd, &stats);
    assert_int_equal(stats.used_bytes, 0);
    tear_down(f);
}

static void a_later_version_is_refused_untouched(void **state)
{
    struct fixture *f = set_up(4);
    uint8_t before[4096];
    kvf_ssd_destroy(f->ssd);
    f->ssd = NULL;
    make_version(f->media->bytes, KVF_SUPERBLOCK_VERSION + 1);
    memcpy(before, f->media->bytes, sizeof before);
    assert_int_equal(start(f, 4, "alpha"), KVF_ERR_UNSUPPORTED);
    assert_memory_equal(before, f->media->bytes, sizeof before);
    tear_down(f);
}

static void another_nodes_area_is_refused_untouched(void **state)
{
    struct fixture *f = set_up(4);
    uint8_t before[4096];
    kvf_ssd_destroy(f->ssd);
    f->ssd = NULL;
    memcpy(before, f->media->bytes, sizeof before);
    assert_int_equal(start(f, 4, "beta"), KVF_ERR_CONFIG);
    assert_memory_equal(before, f->media->bytes, sizeof before);
    tear_down(f);
}

/* Every single flipped bit makes the superblock damaged, never another one; a damaged one is written anew. */
static void a_damaged_superblock_is_written_anew(void **state)
{
    struct fixture *f = set_up(4);
    struct kvf_superblock s;
    uint8_t page[4096];
    memcpy(page, f->media->bytes, sizeof page);
    for (unsigned bit = 0; bit < 4096 * 8; bit++) {
        page[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(kvf_superblock_decode(page, sizeof page, &s), KVF_ERR_CORRUPT);
        page[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_int_equal(kvf_superblock_decode(page, 4095, &s), KVF_ERR_CORRUPT);
    make_version(page, 0);
    assert_int_equal(kvf_superblock_decode(page, sizeof page, &s), KVF_ERR_CORRUPT);
    kvf_ssd_destroy(f->ssd);
    f->ssd = NULL;
    f->media->bytes[9] ^= 1;
    assert_int_equal(start(f, 4, "beta"), KVF_ERR_CONFIG); /* the copy stands */
    f->media->bytes[4096 + 9] ^= 1;
    assert_int_equal(start(f, 4, "beta"), KVF_OK);
    assert_int_equal(kvf_superblock_decode(f->media->bytes, 4096, &s), KVF_OK);
    assert_string_equal(s.node, "beta");
    tear_down(f);
}

static void start_fails_with_the_disk(void **state)
{
    struct fixture *f = set_up(0);
    struct kvf_disk *disk;
    for (unsigned write = 0; write < 2; write++) {
        assert_int_equal(sim_disk_create(f->media, 4, &f->sim), KVF_OK);
        disk = sim_disk_seam(f->sim);
        sim_disk_fail(f->sim, write, SIM_FAULT_IO, 0, 1);
        assert_int_equal(create(f, disk, AREA_BYTES, "alpha", 1 << 20, 4), KVF_ERR_IO);
        disk->ops->close(disk);
    }
    assert_int_equal(sim_disk_create(f->media, 4, &f->sim), KVF_OK);
    disk = sim_disk_seam(f->sim);
    assert_int_equal(create(f, disk, AREA_BYTES, "", 1 << 20, 4), KVF_ERR_INVALID);
    assert_int_equal(create(f, disk, 2 << 20, "alpha", (1 << 20) + 1, 4), KVF_ERR_INVALID);
    assert_int_equal(create(f, disk, AREA_BYTES, "alpha", UINT32_MAX, 4), KVF_ERR_INVALID);
    assert_int_equal(create(f, disk, AREA_BYTES, "alpha", 1 << 20, 0), KVF_ERR_INVALID);
    char long_name[80];
    memset(long_name, 'n', sizeof long_name);
    long_name[64] = 0;
    assert_int_equal(create(f, disk, AREA_BYTES, long_name, 1 << 20, 4), KVF_ERR_INVALID);
    disk->ops->close(disk);
    tear_down(f);
}

/* ------------------------------------------------------------------------------------------------- a real disk */

/* Random blocks of 4 KiB to 1 MiB on a temporary file, written, read back whole and in parts, freed and reused, with a
 * few hundred requests queued at once. */
struct block {
    struct io io;
    uint64_t offset, mark;
    uint32_t bytes;
    uint8_t *data;
};

static void block_done(void *arg, enum kvf_status status)
{
    struct block *b = arg;
    b->io.done = 1;
    b->io.status = status;
}

static void wait_idle(struct kvf_ssd *ssd)
{
    for (unsigned naps = 0; naps < 2000; naps++) {
        kvf_ssd_poll(ssd);
        if (kvf_ssd_idle(ssd))
            return;
        struct pollfd wait = {.fd = kvf_ssd_event_fd(ssd), .events = POLLIN};
        poll(&wait, 1, 10);
    }
    fail_msg("the disk did not finish");
}

static void mark_block(struct block *b, uint64_t mark)
{
    b->mark = mark;
    for (uint32_t i = 0; i < b->bytes; i += 512)
        memcpy(b->data + i, &(uint64_t){kvf_mix(mark, i)}, 8);
}

static bool block_is_marked(const struct block *b)
{
    for (uint32_t i = 0; i < b->bytes; i += 512)
        if (memcmp(b->data + i, &(uint64_t){kvf_mix(b->mark, i)}, 8))
            return false;
    return true;
}

static void churn(struct kvf_ssd *ssd, struct block *blocks, unsigned count, uint64_t *random)
{
    for (unsigned i = 0; i < count; i++) {
        struct block *b = &blocks[i];
        *random = kvf_mix(*random, i);
        if (b->offset && *random % 3 == 0)
            continue; /* keeps its bytes for this round */
        if (b->offset)
            kvf_ssd_free(ssd, b->offset, b->bytes, 1);
        b->bytes = 4096u << (*random >> 8) % 9;
        b->offset = kvf_ssd_alloc(ssd, b->bytes, 1);
        assert_true(b->offset != KVF_ARENA_NONE);
        mark_block(b, *random);
        b->io.request.done = block_done;
        b->io.request.arg = b;
        kvf_ssd_write(ssd, &b->io.request, b->offset, b->data, b->bytes);
    }
    wait_idle(ssd);
    for (unsigned i = 0; i < count; i++) {
        memset(blocks[i].data, 0xcc, blocks[i].bytes);
        kvf_ssd_read(ssd, &blocks[i].io.request, blocks[i].offset, blocks[i].data, blocks[i].bytes);
    }
    wait_idle(ssd);
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(blocks[i].io.status, KVF_OK);
        assert_true(block_is_marked(&blocks[i]));
    }
}

static void a_real_disk_returns_every_block(void **state)
{
    enum { count = 100 };
    static const char *const engines[] = {"uring", "posix"};
    const char *tmp = getenv("TMPDIR");
    char dir[256], path[300], error[300];
    struct kvf_log log;
    struct kvf_disk *disk;
    struct kvf_ssd *ssd;
    uint64_t random = SEED;
    uint8_t *memory = aligned_alloc(4096, (size_t)count << 20);
    print_message("seed %u\n", SEED);
    kvf_log_init(&log, "test", KVF_LOG_ERROR, NULL);
    snprintf(dir, sizeof dir, "%s/kvf-ssd-XXXXXX", tmp && strlen(tmp) < 200 ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/area", dir);
    for (unsigned e = 0; e < 2; e++) {
        struct block *blocks = calloc(count, sizeof *blocks);
        enum kvf_status st = kvf_disk_open(path, 160u << 20, engines[e], 32, &log, error, sizeof error, &disk);
        if (st == KVF_ERR_UNSUPPORTED) {
            print_message("%s not tested: %s\n", engines[e], error);
            free(blocks);
            continue;
        }
        assert_int_equal(st, KVF_OK);
        disk->ops->register_memory(disk, memory, (size_t)count << 20);
        const struct kvf_ssd_options options = {.bytes = 160u << 20, .node = "alpha", .incarnation = e + 1, .block_max = 1 << 20,
                                                .depth = 32, .env = kvf_env_real(), .log = &log};
        assert_int_equal(kvf_ssd_create(disk, &options, &ssd), KVF_OK);
        for (unsigned i = 0; i < count; i++)
            blocks[i].data = memory + ((size_t)i << 20);
        for (unsigned round = 0; round < 4; round++)
            churn(ssd, blocks, count, &random);
        kvf_ssd_destroy(ssd);
        free(blocks);
    }
    free(memory);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_back_and_slots_return),
        cmocka_unit_test(a_full_area_says_so),
        cmocka_unit_test(reads_go_before_writes),
        cmocka_unit_test(writes_age_and_do_not_starve),
        cmocka_unit_test(writes_in_a_hurry_go_beside_reads),
        cmocka_unit_test(a_piece_that_fails_ends_the_whole),
        cmocka_unit_test(priorities_are_kept_and_reads_are_promoted),
        cmocka_unit_test(reading_ahead_is_bounded_and_ages),
        cmocka_unit_test(writes_in_flight_are_bounded),
        cmocka_unit_test(a_disk_of_less_depth_is_waited_for),
        cmocka_unit_test(a_failed_write_degrades_and_reads_go_on),
        cmocka_unit_test(a_failed_read_fails_alone),
        cmocka_unit_test(the_double_damages_as_told),
        cmocka_unit_test(destroy_cancels_the_queue_and_finishes_the_rest),
        cmocka_unit_test(superblock_is_as_documented),
        cmocka_unit_test(a_restart_begins_empty_and_names_itself_again),
        cmocka_unit_test(a_later_version_is_refused_untouched),
        cmocka_unit_test(another_nodes_area_is_refused_untouched),
        cmocka_unit_test(a_damaged_superblock_is_written_anew),
        cmocka_unit_test(start_fails_with_the_disk),
        cmocka_unit_test(a_real_disk_returns_every_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
