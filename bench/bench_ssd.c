/* The SSD tier beside fio on a file of the same size in the same folder: random reads and writes through kvf_ssd_read and
 * kvf_ssd_put, in turns with fio (io_uring, O_DIRECT, registered buffers and file). Then what it writes to a full area that
 * is overwritten five times, and how fast a journal of many records is recovered into an index. */
#include "base/hash.h"
#include "bench/bench.h"
#include "tiers/arena.h"
#include "tiers/index.h"
#include "tiers/ssd.h"
#include "tiers/sums.h"
#include "tiers/superblock.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define AREA_BYTES (1ull << 30)
#define CHURN_BYTES (256ull << 20)
#define SPARSE_BYTES (64ull << 30)
#define RECORDS 4000000u
#define LARGE (1u << 20)
#define DEPTH_MAX 32u
#define TIER_DEPTH 64u /* as ssd.depth is by default; writes may have half of it */
#define ROUNDS 5u

struct op {
    struct kvf_ssd_request request;
    struct bench *b;
    uint8_t *data;
    uint64_t offset;
    unsigned slot;
    bool ready;
};

struct slot {
    uint64_t offset; /* KVF_ARENA_NONE: free */
    uint32_t bytes;
    bool busy;
};

struct bench {
    char area[512], twin[512];
    struct kvf_log log;
    struct kvf_ssd *ssd;
    uint8_t *memory; /* DEPTH_MAX of LARGE */
    struct op ops[DEPTH_MAX];
    uint64_t *blocks; /* slots of 1 MiB with known bytes */
    unsigned n_blocks;
    struct slot *slots; /* of writes */
    unsigned n_slots;
    uint64_t write_bytes; /* of the area's part for writes */
    unsigned depth;
    uint64_t random, done;
    double rest; /* seconds that fio lets the disk rest before it begins */
    bool wrong;
};

static uint64_t draw(struct bench *b, uint64_t below)
{
    b->random = kvf_mix(b->random, 11);
    return b->random % below;
}

static bool fail(const char *what, const char *why)
{
    fprintf(stderr, "kvf bench ssd: %s: %s\n", what, why);
    return false;
}

/* Every page of 4 KiB begins with a word that its place tells. */
static void mark(uint8_t *data, uint64_t offset, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i += 4096)
        memcpy(data + i, &(uint64_t){kvf_mix(offset + i, 5)}, 8);
}

static bool marked(const uint8_t *data, uint64_t offset, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i += 4096)
        if (memcmp(data + i, &(uint64_t){kvf_mix(offset + i, 5)}, 8))
            return false;
    return true;
}

static void turn(struct bench *b)
{
    kvf_ssd_wait(b->ssd, 100 * KVF_MS);
}

static bool open_area(struct bench *b, const char *path, uint64_t bytes, const struct kvf_ssd_owner *owner)
{
    char error[300];
    struct kvf_disk *disk;
    uint64_t incarnation = kvf_env_real()->random(NULL);
    if (kvf_disk_open(path, bytes, "auto", TIER_DEPTH, &b->log, error, sizeof error, &disk) != KVF_OK)
        return fail("opening the area", error);
    disk->ops->register_memory(disk, b->memory, (size_t)DEPTH_MAX * LARGE);
    struct kvf_ssd_options o = {.bytes = bytes, .node = "bench", .incarnation = incarnation, .block_max = LARGE,
                                .depth = TIER_DEPTH, .env = kvf_env_real(), .log = &b->log};
    if (owner)
        o.owner = *owner;
    enum kvf_status st = kvf_ssd_create(disk, &o, &b->ssd);
    if (st == KVF_OK)
        return true;
    disk->ops->close(disk);
    return fail("starting the tier", kvf_status_text(st));
}

static void op_done(void *arg, enum kvf_status status)
{
    struct op *op = arg;
    struct bench *b = op->b;
    op->ready = true;
    b->done++;
    b->wrong |= status != KVF_OK;
}

/* ------------------------------------------------------------------------------------------------- reads and writes */

static void read_start(struct bench *b, struct op *op, uint32_t bytes)
{
    if (op->offset)
        b->wrong |= !marked(op->data, op->offset, bytes);
    op->offset = b->blocks[draw(b, b->n_blocks)] + draw(b, LARGE / bytes) * bytes;
    kvf_ssd_read(b->ssd, &op->request, op->offset, op->data, bytes);
}

static uint32_t chunks_of(uint32_t bytes)
{
    return bytes / 4096 < 16 ? bytes / 4096 : 16;
}

static void write_start(struct bench *b, struct op *op, uint32_t bytes)
{
    static const uint64_t sums[64];
    if (op->slot != UINT32_MAX)
        b->slots[op->slot].busy = false;
    do
        op->slot = (unsigned)draw(b, b->n_slots);
    while (b->slots[op->slot].busy);
    struct slot *s = &b->slots[op->slot];
    if (s->offset != KVF_ARENA_NONE)
        kvf_ssd_free(b->ssd, s->offset, s->bytes, chunks_of(s->bytes));
    s->offset = kvf_ssd_alloc(b->ssd, bytes, chunks_of(bytes));
    s->bytes = bytes;
    s->busy = true;
    if (s->offset == KVF_ARENA_NONE) {
        b->wrong = true;
        return;
    }
    struct kvf_ssd_record r = {.key = {.lo = op->slot}, .offset = s->offset, .bytes = bytes, .chunks = (uint8_t)chunks_of(bytes),
                               .sums = sums};
    kvf_ssd_put(b->ssd, &op->request, &r, op->data, false);
}

/* Bytes per second at this depth, for about `seconds`. The disk rests before as long as it does while fio starts: a shared disk
 * gives more to who asked for nothing a moment ago. */
static double run_tier(struct bench *b, bool write, uint32_t bytes, unsigned depth, double seconds)
{
    if (b->rest > 0)
        usleep((unsigned)(b->rest * 1e6));
    double began = kvf_bench_now(), end = began + seconds, now = began;
    b->done = 0;
    b->depth = depth;
    for (unsigned i = 0; i < depth; i++) {
        b->ops[i].ready = true;
        b->ops[i].offset = 0;
        b->ops[i].slot = UINT32_MAX;
    }
    while (now < end && !b->wrong) {
        for (unsigned i = 0; i < depth; i++) {
            if (!b->ops[i].ready)
                continue;
            b->ops[i].ready = false;
            if (write)
                write_start(b, &b->ops[i], bytes);
            else
                read_start(b, &b->ops[i], bytes);
        }
        turn(b);
        now = kvf_bench_now();
    }
    while (!kvf_ssd_idle(b->ssd))
        turn(b);
    double rate = (double)b->done * bytes / (kvf_bench_now() - began);
    for (unsigned i = 0; i < depth && write; i++)
        if (b->ops[i].slot != UINT32_MAX)
            b->slots[b->ops[i].slot].busy = false;
    return rate;
}

/* The same by fio; 0: it could not. It reads the area's own blocks (which lie side by side), for another file may be faster or
 * slower: where it lies, and what the host keeps of it, differ. It writes to the twin. In a thread: a process of fio's begins a
 * session, and with it loses the first place among all processes that this one has. */
static double run_fio(struct bench *b, bool write, uint32_t bytes, unsigned depth, double seconds)
{
    char command[1400], line[4096];
    double rate = 0, began = kvf_bench_now();
    snprintf(command, sizeof command,
             "fio --name=x --filename='%s' --offset=%llu --size=%llu --rw=%s --bs=%u --iodepth=%u --ioengine=io_uring --direct=1 "
             "--fixedbufs=1 --registerfiles=1 --time_based --runtime=%.0fms --norandommap --randrepeat=0 --allow_file_create=0 "
             "--thread --output-format=terse --terse-version=3 2>/dev/null",
             write ? b->twin : b->area, write ? 0 : (unsigned long long)b->blocks[0],
             (unsigned long long)(write ? AREA_BYTES : (uint64_t)b->n_blocks * LARGE), write ? "randwrite" : "randread", bytes,
             depth, seconds * 1000);
    FILE *f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        /* Terse: field 7 is the read bandwidth in KiB/s, field 48 the write bandwidth. */
        char *at = line;
        for (int field = 1; at && field < (write ? 48 : 7); field++) {
            at = strchr(at, ';');
            at = at ? at + 1 : NULL;
        }
        if (at && line[0] == '3')
            rate = strtod(at, NULL) * 1024;
    }
    if (f && pclose(f) != 0)
        rate = 0;
    b->rest = kvf_bench_now() - began - seconds;
    return rate;
}

static bool compare(struct kvf_bench *bench, struct bench *b, bool write, uint32_t bytes, unsigned depth, double slice)
{
    double tier[ROUNDS], fio[ROUNDS];
    char name[64];
    for (unsigned n = 0; n < ROUNDS; n++) {
        if (n % 2)
            fio[n] = run_fio(b, write, bytes, depth, slice);
        tier[n] = run_tier(b, write, bytes, depth, slice) / 1e6;
        if (n % 2 == 0)
            fio[n] = run_fio(b, write, bytes, depth, slice);
        fio[n] /= 1e6;
        if (b->wrong)
            return fail("reading and writing", "a request failed or brought wrong bytes");
    }
    kvf_bench_sort(tier, ROUNDS);
    kvf_bench_sort(fio, ROUNDS);
    snprintf(name, sizeof name, "%s %u KiB depth %u", write ? "write" : "read", bytes / 1024, depth);
    double median = tier[ROUNDS / 2], limit = fio[ROUNDS / 2];
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "MB/s", .value = median, .p50 = median, .p99 = tier[0],
                                                    .n = ROUNDS, .limit_name = limit > 0 ? "fio" : NULL, .limit_value = limit});
    return true;
}

/* Writes a block of LARGE into the next slot of the area; its offset, or KVF_ARENA_NONE. */
static uint64_t fill_next(struct bench *b)
{
    struct op *op = &b->ops[0];
    uint64_t offset = kvf_ssd_alloc(b->ssd, LARGE, chunks_of(LARGE));
    if (offset == KVF_ARENA_NONE)
        return offset;
    mark(op->data, offset, LARGE);
    op->ready = false;
    kvf_ssd_write(b->ssd, &op->request, offset, op->data, LARGE);
    while (!op->ready)
        turn(b);
    return offset;
}

/* Two thirds of the area: blocks to read. The rest is for writes; it is written once, for a file's first write to a place costs
 * more than another. The twin gets the same bytes. */
static bool prepare(struct bench *b)
{
    struct kvf_ssd_stats stats;
    kvf_ssd_stats(b->ssd, &stats);
    b->n_blocks = (unsigned)(stats.capacity_bytes / LARGE * 2 / 3);
    b->write_bytes = stats.capacity_bytes / 4 / LARGE * LARGE;
    b->n_slots = (unsigned)(b->write_bytes / LARGE);
    b->blocks = calloc(b->n_blocks, sizeof *b->blocks);
    b->slots = calloc(b->write_bytes / 4096, sizeof *b->slots);
    int twin = open(b->twin, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
    if (!b->blocks || !b->slots || twin < 0)
        return fail("making the files", "no memory, or the folder cannot be written");
    /* Not zeros, which a virtual disk need not keep. */
    for (uint64_t i = 0; i < (uint64_t)DEPTH_MAX * LARGE; i += 8)
        memcpy(b->memory + i, &(uint64_t){kvf_mix(i, 7)}, 8);
    bool good = true;
    for (uint64_t at = 0; at < AREA_BYTES && good; at += LARGE)
        good = pwrite(twin, b->memory, LARGE, (off_t)at) == LARGE;
    close(twin);
    for (unsigned i = 0; i < b->n_blocks && good; i++) {
        b->blocks[i] = fill_next(b);
        good = b->blocks[i] == b->blocks[0] + (uint64_t)i * LARGE && b->blocks[i] != KVF_ARENA_NONE;
    }
    for (unsigned i = 0; i < b->n_slots && good; i++) {
        uint64_t offset = fill_next(b);
        good = offset != KVF_ARENA_NONE;
        b->slots[i] = (struct slot){.offset = offset, .bytes = LARGE};
    }
    return (good && !b->wrong) || fail("filling the files", "a write failed");
}

/* Slots for blocks of this size all over the part of the area that is for writes: they go to random places, as fio's do. */
static bool spread(struct bench *b, uint32_t bytes)
{
    bool good = true;
    for (unsigned i = 0; i < b->n_slots; i++)
        kvf_ssd_free(b->ssd, b->slots[i].offset, b->slots[i].bytes, chunks_of(b->slots[i].bytes));
    b->n_slots = (unsigned)(b->write_bytes / bytes);
    for (unsigned i = 0; i < b->n_slots && good; i++) {
        uint64_t offset = kvf_ssd_alloc(b->ssd, bytes, chunks_of(bytes));
        good = offset != KVF_ARENA_NONE;
        b->slots[i] = (struct slot){.offset = offset, .bytes = bytes};
    }
    return good || fail("giving out slots", "the area is full");
}

static bool speeds(struct kvf_bench *bench, struct bench *b, double slice)
{
    static const uint32_t sizes[] = {4096, 65536, LARGE};
    static const unsigned depths[] = {1, 8, 32};
    if (!open_area(b, b->area, AREA_BYTES, NULL))
        return false;
    bool good = prepare(b);
    for (unsigned write = 0; write < 2; write++)
        for (unsigned i = 0; i < 9 && good; i++) {
            good = !write || i % 3 > 0 || spread(b, sizes[i / 3]);
            good = good && compare(bench, b, write, sizes[i / 3], depths[i % 3], slice);
        }
    kvf_ssd_destroy(b->ssd);
    free(b->blocks);
    free(b->slots);
    unlink(b->area);
    unlink(b->twin);
    return good;
}

/* ------------------------------------------------------------------------------------------------- churn */

static bool churn_walk(void *arg, uint64_t *cursor, struct kvf_ssd_record *out)
{
    static const uint64_t sums[64];
    struct bench *b = arg;
    while (*cursor < b->n_slots && (b->slots[*cursor].offset == KVF_ARENA_NONE || b->slots[*cursor].busy))
        ++*cursor;
    if (*cursor >= b->n_slots)
        return false;
    *out = (struct kvf_ssd_record){.key = {.lo = *cursor}, .offset = b->slots[*cursor].offset, .bytes = 65536, .chunks = 16,
                                   .sums = sums};
    ++*cursor;
    return true;
}

static bool churn(struct kvf_bench *bench, struct bench *b)
{
    struct kvf_ssd_stats stats;
    const struct kvf_ssd_owner owner = {.arg = b, .walk = churn_walk};
    if (!open_area(b, b->area, CHURN_BYTES, &owner))
        return false;
    kvf_ssd_stats(b->ssd, &stats);
    b->n_slots = (unsigned)(stats.capacity_bytes / 65536);
    b->slots = calloc(b->n_slots, sizeof *b->slots);
    for (unsigned i = 0; i < b->n_slots; i++)
        b->slots[i].offset = KVF_ARENA_NONE;
    for (uint64_t written = 0; written < 6 * stats.capacity_bytes && !b->wrong; written += b->done * 65536)
        (void)run_tier(b, true, 65536, DEPTH_MAX, 0.1);
    kvf_ssd_stats(b->ssd, &stats);
    double writes = (double)stats.disk_written_bytes / (double)stats.written_bytes;
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = "write amplification, full and overwritten five times",
                                                    .unit = "bytes/byte", .value = writes, .p50 = writes, .p99 = writes,
                                                    .n = stats.writes});
    json_object_set_new(bench->config, "churn_checkpoints", json_integer((json_int_t)stats.checkpoints));
    kvf_ssd_destroy(b->ssd);
    free(b->slots);
    unlink(b->area);
    return !b->wrong || fail("churning", "a write failed");
}

/* ------------------------------------------------------------------------------------------------- recovery */

struct catalogue {
    struct kvf_index *index;
    struct kvf_sums *sums;
    uint64_t found, wrong;
};

static uint64_t sum_at(uint64_t key, unsigned c)
{
    return kvf_mix(key, c);
}

/* As a node does it: an entry, and a copy of the checksums. */
static bool catalogue_found(void *arg, const struct kvf_ssd_record *r)
{
    struct catalogue *c = arg;
    kvf_handle h;
    uint32_t at = kvf_sums_alloc(c->sums, r->chunks);
    if (at == KVF_SUMS_NONE || kvf_index_add(c->index, r->key, &h) != KVF_OK)
        return false;
    memcpy(kvf_sums_at(c->sums, at), r->sums, r->chunks * sizeof *r->sums);
    struct kvf_entry *e = kvf_index_entry(c->index, h);
    e->bytes = r->bytes;
    e->sums = at;
    kvf_entry_set_shape(e, KVF_ENTRY_OPAQUE, r->chunks);
    kvf_entry_set_location(e, r->offset);
    c->found++;
    c->wrong += r->sums[r->chunks - 1] != sum_at(r->key.lo, r->chunks - 1u);
    return true;
}

/* A generation of RECORDS live blocks in random places, written straight into the area's journal. */
static bool write_journal(const struct bench *b)
{
    struct kvf_superblock sb;
    struct kvf_journal j;
    uint8_t page[KVF_SUPERBLOCK_BYTES];
    int fd = open(b->area, O_RDWR | O_CLOEXEC);
    bool good = fd >= 0 && pread(fd, page, sizeof page, 0) == sizeof page &&
                kvf_superblock_decode(page, sizeof page, &sb) == KVF_OK &&
                kvf_journal_init(&j, sb.incarnation, sb.journal_start, (uint32_t)(sb.half_bytes / 4096)) == KVF_OK;
    if (!good)
        return false;
    kvf_journal_position(&j, 2, 77, 0, 0);
    for (uint64_t i = 0; i <= RECORDS && good; i++) {
        uint64_t sums[16], place = i * 2654435761u % RECORDS, key = kvf_mix(i, 3);
        struct kvf_ssd_record r = {.key = {.hi = 1ull << 63 | key >> 1, .lo = i}, .offset = sb.slots_start + place * 4096,
                                   .bytes = 4096, .chunks = (uint8_t)(1 + key % 16), .sums = sums};
        for (unsigned c = 0; c < 16; c++)
            sums[c] = sum_at(i, c);
        for (unsigned tries = 0; tries < 2; tries++) {
            if (i < RECORDS ? kvf_journal_put(&j, &r) : kvf_journal_end(&j))
                break;
            void *data;
            uint64_t offset;
            uint32_t bytes;
            good = kvf_journal_hand(&j, &data, &offset, &bytes) && pwrite(fd, data, bytes, (off_t)offset) == bytes;
            if (good)
                kvf_journal_wrote(&j, bytes);
        }
    }
    kvf_journal_seal(&j);
    void *data;
    uint64_t offset;
    uint32_t bytes;
    while (good && kvf_journal_hand(&j, &data, &offset, &bytes)) {
        good = pwrite(fd, data, bytes, (off_t)offset) == bytes;
        kvf_journal_wrote(&j, bytes);
    }
    kvf_journal_fini(&j);
    good = good && fsync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0;
    close(fd);
    return good;
}

/* The area is a file with holes: only its journal is read. */
static bool start_sparse(struct bench *b, const struct kvf_ssd_owner *owner)
{
    struct kvf_disk *disk;
    int fd = open(b->area, O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)SPARSE_BYTES) != 0 ||
        (kvf_disk_uring_create(fd, DEPTH_MAX, &b->log, &disk) != KVF_OK &&
         kvf_disk_posix_create(fd, DEPTH_MAX, &b->log, &disk) != KVF_OK))
        return fail("recovery", "the sparse file could not be made");
    struct kvf_ssd_options o = {.bytes = SPARSE_BYTES, .node = "bench", .incarnation = 4711, .block_max = LARGE,
                                .depth = DEPTH_MAX, .env = kvf_env_real(), .log = &b->log, .owner = *owner};
    enum kvf_status st = kvf_ssd_create(disk, &o, &b->ssd);
    if (st != KVF_OK)
        disk->ops->close(disk);
    return st == KVF_OK || fail("recovery", kvf_status_text(st));
}

static bool recovery(struct kvf_bench *bench, struct bench *b)
{
    double rate[ROUNDS];
    bool good = start_sparse(b, &(struct kvf_ssd_owner){0});
    if (good)
        kvf_ssd_destroy(b->ssd);
    good = good && (write_journal(b) || fail("recovery", "the journal could not be written"));
    for (unsigned n = 0; n < ROUNDS && good; n++) {
        struct catalogue c = {0};
        const struct kvf_ssd_owner owner = {.arg = &c, .found = catalogue_found};
        good = kvf_index_create(RECORDS + 1000, &c.index) == KVF_OK;
        good = good && kvf_sums_create((uint64_t)RECORDS * 16, &c.sums) == KVF_OK;
        good = good && start_sparse(b, &owner);
        if (good) {
            struct kvf_ssd_stats stats;
            kvf_ssd_stats(b->ssd, &stats);
            rate[n] = RECORDS / ((double)stats.recovery_ns * 1e-9) / 1e6;
            good = c.found == RECORDS && c.wrong == 0;
            if (!good)
                fprintf(stderr, "kvf bench ssd: recovery: %llu records found, %llu of them wrong\n", (unsigned long long)c.found,
                        (unsigned long long)c.wrong);
            kvf_ssd_destroy(b->ssd);
        }
        kvf_index_destroy(c.index);
        kvf_sums_destroy(c.sums);
    }
    unlink(b->area);
    if (!good)
        return false;
    kvf_bench_sort(rate, ROUNDS);
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = "recovery of 4 M records into an index", .unit = "M/s",
                                                    .value = rate[ROUNDS / 2], .p50 = rate[ROUNDS / 2], .p99 = rate[0],
                                                    .n = ROUNDS});
    return true;
}

bool kvf_bench_ssd_run(struct kvf_bench *bench)
{
    const char *folder = bench->path ? bench->path : ".";
    struct bench *b = calloc(1, sizeof *b);
    if (!b)
        return fail("starting", "no memory");
    snprintf(b->area, sizeof b->area, "%.400s/kvf-bench-%d.area", folder, (int)getpid());
    snprintf(b->twin, sizeof b->twin, "%.400s/kvf-bench-%d.twin", folder, (int)getpid());
    kvf_log_init(&b->log, "bench", KVF_LOG_ERROR, stderr);
    b->memory = aligned_alloc(1u << 21, (size_t)DEPTH_MAX * LARGE);
    if (b->memory) /* as the node's memory is */
        (void)madvise(b->memory, (size_t)DEPTH_MAX * LARGE, MADV_HUGEPAGE);
    b->random = bench->seed;
    if (!b->memory) {
        free(b);
        return fail("starting", "no memory");
    }
    for (size_t i = 0; i < (size_t)DEPTH_MAX * LARGE; i += 8) {
        uint64_t word = kvf_mix(i, bench->seed);
        memcpy(b->memory + i, &word, 8);
    }
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        b->ops[i] = (struct op){.b = b, .data = b->memory + (size_t)i * LARGE};
        b->ops[i].request.done = op_done;
        b->ops[i].request.arg = &b->ops[i];
    }
    bool fio = system("command -v fio >/dev/null 2>&1") == 0;
    if (!fio)
        fprintf(stderr, "kvf bench ssd: fio is not installed: no limits are measured\n");
    json_object_set_new(bench->config, "fio", json_boolean(fio));
    double slice = bench->seconds / (18 * ROUNDS * 2);
    slice = slice < 0.2 ? 0.2 : slice;
    json_object_set_new(bench->config, "slice_seconds", json_real(slice));
    json_object_set_new(bench->config, "area_bytes", json_integer((json_int_t)AREA_BYTES));
    bool good = speeds(bench, b, slice) && churn(bench, b) && recovery(bench, b);
    bench->verified = good && !b->wrong;
    free(b->memory);
    free(b);
    return good;
}
