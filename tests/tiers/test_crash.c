/* A process that writes blocks durably is killed at a random moment, over and over, on a real file: after each kill all that
 * was acknowledged as durable is found with its bytes, and nothing that is found is wrong.
 *
 * The child notes what it does in shared memory, which outlives it. KVF_KILLS sets how often it dies. */
#include "base/hash.h"
#include "tiers/arena.h"
#include "tiers/ssd.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define SEED 20261125u
#define KILLS 200u
#define AREA_BYTES (24u << 20)
#define CHUNK 4096u
#define CHUNKS_MAX 16u
#define KEYS 250u
#define SLOTS 24u
#define DEPTH 32u

enum fate { ABSENT, WRITING, DURABLE, FREEING };
struct noted {
    _Atomic uint32_t fate;
    uint64_t version;
    uint32_t bytes;
};

struct slot {
    struct kvf_ssd_request request;
    struct area *area;
    unsigned key;
    bool busy;
    uint8_t *data;
};

struct block {
    bool found;
    uint64_t offset;
    uint32_t bytes;
    uint8_t chunks;
    uint64_t sums[CHUNKS_MAX];
};

struct area {
    char dir[256], path[300];
    struct noted *noted; /* [KEYS], shared */
    bool child;
    struct kvf_log log; /* silent */
    struct kvf_ssd *ssd;
    struct block blocks[KEYS];
    struct slot slots[SLOTS];
    uint8_t *memory; /* SLOTS + 1 blocks */
    uint64_t random;
};

static uint64_t draw(struct area *a, uint64_t below)
{
    a->random = kvf_mix(a->random, 3);
    return a->random % below;
}

static void fill(uint8_t *data, unsigned k, uint64_t version, uint32_t bytes)
{
    memcpy(data, &version, 8);
    for (uint32_t i = 8; i < bytes; i += 8)
        memcpy(data + i, &(uint64_t){kvf_mix(version ^ k, i)}, 8);
}

static uint64_t sum_of(unsigned k, unsigned c, const uint8_t *data)
{
    return kvf_hash(data + c * CHUNK, CHUNK, kvf_mix(k, c));
}

static bool owner_found(void *arg, const struct kvf_ssd_record *r)
{
    struct area *a = arg;
    unsigned k = (unsigned)r->key.lo;
    if (k >= KEYS || a->blocks[k].found || (a->child && a->noted[k].fate != DURABLE))
        return false;
    struct block *b = &a->blocks[k];
    *b = (struct block){.found = true, .offset = r->offset, .bytes = r->bytes, .chunks = r->chunks};
    memcpy(b->sums, r->sums, r->chunks * sizeof *b->sums);
    return true;
}

static void record_of(const struct area *a, unsigned k, struct kvf_ssd_record *out)
{
    const struct block *b = &a->blocks[k];
    *out = (struct kvf_ssd_record){.key = {.hi = 9, .lo = k}, .fingerprint = 5, .offset = b->offset, .bytes = b->bytes,
                                   .chunks = b->chunks, .sums = b->sums};
}

static bool owner_walk(void *arg, uint64_t *cursor, struct kvf_ssd_record *out)
{
    struct area *a = arg;
    while (*cursor < KEYS && !a->blocks[*cursor].found)
        ++*cursor;
    if (*cursor == KEYS)
        return false;
    record_of(a, (unsigned)(*cursor)++, out);
    return true;
}

/* A killed process's requests may hold the file a moment longer. */
static enum kvf_status open_area(struct area *a, struct kvf_disk **disk)
{
    char error[300];
    enum kvf_status st = KVF_ERR_BUSY;
    for (unsigned n = 0; n < 500 && st == KVF_ERR_BUSY; n++) {
        st = kvf_disk_open(a->path, AREA_BYTES, "auto", DEPTH, &a->log, error, sizeof error, disk);
        if (st == KVF_ERR_BUSY)
            usleep(10000);
    }
    return st;
}

static enum kvf_status start(struct area *a)
{
    struct kvf_disk *disk;
    memset(a->blocks, 0, sizeof a->blocks);
    enum kvf_status st = open_area(a, &disk);
    if (st != KVF_OK)
        return st;
    disk->ops->register_memory(disk, a->memory, (size_t)(SLOTS + 1) * CHUNKS_MAX * CHUNK);
    const struct kvf_ssd_options options = {
        .bytes = AREA_BYTES, .node = "alpha", .incarnation = kvf_env_real()->random(NULL), .block_max = 1 << 20, .depth = DEPTH,
        .env = kvf_env_real(), .log = &a->log, .owner = {.arg = a, .found = owner_found, .walk = owner_walk}};
    st = kvf_ssd_create(disk, &options, &a->ssd);
    if (st != KVF_OK)
        disk->ops->close(disk);
    return st;
}

/* ------------------------------------------------------------------------------------------------- the child */

static void put_done(void *arg, enum kvf_status status)
{
    struct slot *s = arg;
    s->busy = false;
    if (status != KVF_OK)
        _exit(3);
    s->area->blocks[s->key].found = true;
    s->area->noted[s->key].fate = DURABLE;
}

static void put(struct area *a, struct slot *s, unsigned k)
{
    struct noted *n = &a->noted[k];
    struct block *b = &a->blocks[k];
    b->chunks = (uint8_t)(1 + draw(a, CHUNKS_MAX));
    b->bytes = b->chunks * CHUNK;
    b->offset = kvf_ssd_alloc(a->ssd, b->bytes, b->chunks);
    if (b->offset == KVF_ARENA_NONE)
        return;
    n->fate = WRITING;
    n->version = a->random;
    n->bytes = b->bytes;
    fill(s->data, k, n->version, b->bytes);
    for (unsigned c = 0; c < b->chunks; c++)
        b->sums[c] = sum_of(k, c, s->data);
    s->busy = true;
    s->key = k;
    s->request.done = put_done;
    s->request.arg = s;
    struct kvf_ssd_record record;
    record_of(a, k, &record);
    kvf_ssd_put(a->ssd, &s->request, &record, s->data, true);
}

/* Until it is killed. */
static void child_main(struct area *a)
{
    a->child = true;
    if (start(a) != KVF_OK)
        _exit(2);
    for (unsigned k = 0; k < KEYS; k++)
        if (!a->blocks[k].found)
            a->noted[k].fate = ABSENT;
    for (;;) {
        for (unsigned i = 0; i < SLOTS; i++) {
            unsigned k = (unsigned)draw(a, KEYS);
            if (a->noted[k].fate == ABSENT && !a->slots[i].busy) {
                put(a, &a->slots[i], k);
            } else if (a->noted[k].fate == DURABLE && draw(a, 3) == 0) {
                a->noted[k].fate = FREEING;
                a->blocks[k].found = false;
                kvf_ssd_free(a->ssd, a->blocks[k].offset, a->blocks[k].bytes, a->blocks[k].chunks);
                a->noted[k].fate = ABSENT;
            }
        }
        if (!kvf_ssd_poll(a->ssd)) {
            struct pollfd wait = {.fd = kvf_ssd_event_fd(a->ssd), .events = POLLIN};
            poll(&wait, 1, 1);
        }
        if (getppid() == 1)
            _exit(4);
    }
}

/* ------------------------------------------------------------------------------------------------- the parent */

static void read_done(void *arg, enum kvf_status status)
{
    *(int *)arg = (int)status;
}

static bool verified(struct area *a, unsigned k, uint8_t *data)
{
    const struct block *b = &a->blocks[k];
    int status = -1000;
    struct kvf_ssd_request r = {.done = read_done, .arg = &status};
    kvf_ssd_read(a->ssd, &r, b->offset, data, b->bytes);
    for (unsigned n = 0; n < 5000 && status == -1000; n++) {
        struct pollfd wait = {.fd = kvf_ssd_event_fd(a->ssd), .events = POLLIN};
        if (!kvf_ssd_poll(a->ssd))
            poll(&wait, 1, 1);
    }
    assert_int_equal(status, KVF_OK);
    for (unsigned c = 0; c < b->chunks; c++)
        if (sum_of(k, c, data) != b->sums[c])
            return false;
    return true;
}

static unsigned check(struct area *a, unsigned kill_number, unsigned *found)
{
    uint8_t *data = a->memory + (size_t)SLOTS * CHUNKS_MAX * CHUNK, *want = malloc(CHUNKS_MAX * CHUNK);
    unsigned durable = 0;
    for (unsigned k = 0; k < KEYS; k++) {
        const struct noted *n = &a->noted[k];
        bool must = n->fate == DURABLE, good = a->blocks[k].found && verified(a, k, data);
        if (must && !good)
            fail_msg("kill %u: block %u, durable, was %s", kill_number, k, a->blocks[k].found ? "found damaged" : "not found");
        durable += must;
        *found += good;
        if (!good)
            continue;
        uint64_t version;
        memcpy(&version, data, 8);
        fill(want, k, version, a->blocks[k].bytes);
        assert_memory_equal(want, data, a->blocks[k].bytes);
        assert_true(!must || version == n->version);
    }
    free(want);
    return durable;
}

static void kills_lose_nothing_durable(void **state)
{
    const char *tmp = getenv("TMPDIR"), *times = getenv("KVF_KILLS");
    unsigned kills = times ? (unsigned)strtoull(times, NULL, 10) : KILLS, durable = 0, found = 0;
#ifdef __SANITIZE_ADDRESS__
    kills = times ? kills : 40;
#endif
    print_message("seed %u, %u kills\n", SEED, kills);
    struct area *a = calloc(1, sizeof *a);
    kvf_log_init(&a->log, "test", KVF_LOG_ERROR, NULL);
    snprintf(a->dir, sizeof a->dir, "%s/kvf-crash-XXXXXX", tmp && strlen(tmp) < 200 ? tmp : "/tmp");
    assert_non_null(mkdtemp(a->dir));
    snprintf(a->path, sizeof a->path, "%s/area", a->dir);
    a->noted = mmap(NULL, KEYS * sizeof *a->noted, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(a->noted != MAP_FAILED);
    a->memory = aligned_alloc(CHUNK, (size_t)(SLOTS + 1) * CHUNKS_MAX * CHUNK);
    memset(a->memory, 0, (size_t)(SLOTS + 1) * CHUNKS_MAX * CHUNK);
    a->random = SEED;
    for (unsigned i = 0; i < SLOTS; i++)
        a->slots[i] = (struct slot){.area = a, .data = a->memory + (size_t)i * CHUNKS_MAX * CHUNK};
    for (unsigned n = 0; n < kills; n++) {
        uint64_t nap_us = 3000 + draw(a, 60000);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            child_main(a);
        usleep((useconds_t)nap_us);
        assert_int_equal(kill(pid, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        assert_int_equal(start(a), KVF_OK);
        durable += check(a, n, &found);
        kvf_ssd_destroy(a->ssd);
        draw(a, 2);
    }
    print_message("%u durable blocks were owed and found, %u found in all\n", durable, found);
    assert_true(durable > kills);
    munmap(a->noted, KEYS * sizeof *a->noted);
    free(a->memory);
    assert_int_equal(unlink(a->path), 0);
    assert_int_equal(rmdir(a->dir), 0);
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kills_lose_nothing_durable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
