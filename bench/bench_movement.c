/* kvf bench movement: what a demand read of 4 KiB waits while other things move over the same SSD.
 *
 * A node alone, DRAM of 128 MiB, an SSD area in a folder. One thread reads random pages of 4 KiB from SSD, one at a time, through
 * kvf_submit, and compares their bytes. Beside it, in turns: nothing; blocks of 1 MiB put at a set pace, or as fast as there is
 * room, so that as many go down; the scrub; reads of 1 MiB ahead. After each such turn comes its twin without a node: pread of
 * 4 KiB from a file of its own while a second thread writes or reads as many bytes per second in pieces of 1 MiB, all O_DIRECT. So
 * what the device itself makes of such a load stands beside what the node makes of it. */
#include "bench/bench.h"
#include "node/scrub.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SMALL = 4096, LARGE = 1 << 20, SMALLS = 16384, AHEAD = 8, LARGES = 1024, SAMPLES_MAX = 1 << 20 };
#define RAW_BYTES (1ull << 30)
#define PACE (128.0 * LARGE) /* bytes per second of the paced writer */
#define SCRUB_RATE (64ull << 20)

enum load { QUIET, PACED, FULL, SCRUB, PREFETCH, LOADS };
static const char *const load_names[LOADS] = {"quiet", "write-back, 128 MiB/s", "write-back, as fast as it goes", "scrub, 64 MiB/s",
                                              "prefetch"};

/* Latencies of one load, of the node or of its twin. */
struct sample {
    uint32_t *ns;
    size_t n;
    double bytes, seconds; /* what the load moved */
};

struct movement {
    struct kvf_node *node;
    struct kvf_memory *memory;
    char folder[256], raw_path[300];
    int raw;
    uint64_t seed;
    uint8_t *page, *large; /* of the reader, of the load */
    bool failed;
    _Atomic bool stop;
    _Atomic uint64_t moved; /* bytes, by the load's thread */
    enum load load;
    double pace; /* of the twin's load, bytes per second; 0: none */
    uint64_t next_put, first_put;
    struct sample samples[LOADS][2];
};

static uint64_t now_ns(void)
{
    return kvf_now(kvf_env_real());
}

static uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static void fill(uint8_t *to, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = mixed(seed + i);
        memcpy(to + i, &word, 8);
    }
}

static bool matches(const uint8_t *from, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = mixed(seed + i);
        if (memcmp(from + i, &word, 8))
            return false;
    }
    return true;
}

static bool fail(struct movement *m, const char *what, const char *why)
{
    fprintf(stderr, "kvf bench: %s: %s\n", what, why);
    m->failed = true;
    return false;
}

/* ------------------------------------------------------------------------------------------------- the node */

/* Submits one request and sleeps until it has ended. */
static enum kvf_status request(struct kvf_queue *q, struct kvf_request r, enum kvf_tier *tier)
{
    struct kvf_completion done;
    size_t n = 0;
    enum kvf_status st = kvf_submit(q, &r, 1, 60 * KVF_SEC, &n);
    while (st == KVF_OK) {
        st = kvf_drain(q, &done, 1, &n);
        if (n) {
            if (tier)
                *tier = done.tier;
            return done.status;
        }
        struct pollfd wait = {.fd = kvf_queue_fd(q), .events = POLLIN};
        (void)poll(&wait, 1, 1000);
    }
    return st;
}

static struct kvf_key small_key(uint64_t i)
{
    return (struct kvf_key){.hi = 1, .lo = i};
}

static struct kvf_key large_key(uint64_t i)
{
    return (struct kvf_key){.hi = 2, .lo = i};
}

static enum kvf_status put_large(struct movement *m, struct kvf_queue *q)
{
    enum kvf_status st = request(
        q, (struct kvf_request){.op = KVF_OP_PUT, .key = large_key(m->next_put), .data = m->large, .length = LARGE}, NULL);
    m->next_put += st == KVF_OK;
    while (m->next_put - m->first_put > LARGES)
        request(q, (struct kvf_request){.op = KVF_OP_REMOVE, .key = large_key(m->first_put++)}, NULL);
    return st;
}

/* Small blocks of two pages first, then as many large ones as push them down. One page of a block is read at a time: a block that
 * is read whole may come back to DRAM. */
static bool node_fill(struct movement *m)
{
    struct kvf_queue *q = NULL;
    enum kvf_tier tier = KVF_TIER_DRAM;
    enum kvf_status st = kvf_queue_create(m->node, 8, &q);
    for (uint64_t i = 0; i < SMALLS && st == KVF_OK; i += 2) {
        for (uint64_t page = 0; page < 2; page++)
            fill(m->page + page * SMALL, SMALL, m->seed + (i + page) * SMALL);
        struct kvf_request put = {.op = KVF_OP_PUT, .key = small_key(i / 2), .data = m->page, .length = 2 * SMALL};
        st = request(q, put, NULL);
    }
    for (unsigned i = 0; i < LARGES && st == KVF_OK; i++)
        st = put_large(m, q);
    for (uint64_t i = 0; i < SMALLS / 2 && st == KVF_OK; i++) {
        st = request(q, (struct kvf_request){.op = KVF_OP_EXISTS, .key = small_key(i)}, &tier);
        if (st == KVF_OK && tier != KVF_TIER_SSD)
            st = KVF_ERR_STATE;
    }
    kvf_queue_destroy(q);
    return st == KVF_OK || fail(m, "filling the node", kvf_status_text(st));
}

static bool node_open(struct movement *m)
{
    static const char *const settings[] = {"node.name", "bench", "dram.bytes", "128M", "fetch.staging", "64M", "ssd.bytes", "4G",
                                           "admin.listen", "", "ssd.scrub_rate", "1", "block.count_max", "100000"};
    struct kvf_config *config = NULL;
    enum kvf_status st = kvf_config_create(&config);
    for (unsigned i = 0; i < sizeof settings / sizeof *settings && st == KVF_OK; i += 2)
        st = kvf_config_set(config, settings[i], settings[i + 1]);
    if (st == KVF_OK)
        st = kvf_config_set(config, "ssd.path", m->folder);
    if (st == KVF_OK)
        st = kvf_node_open(config, &m->node);
    if (st != KVF_OK)
        fail(m, "opening a node", config ? kvf_config_error(config) : kvf_status_text(st));
    kvf_config_destroy(config);
    return st == KVF_OK && node_fill(m);
}

/* One read; false when it is wrong. */
static bool node_read(struct movement *m, struct kvf_queue *q, uint64_t i, uint32_t *ns)
{
    enum kvf_tier tier = KVF_TIER_DRAM;
    struct kvf_request get = {
        .op = KVF_OP_GET, .key = small_key(i / 2), .data = m->page, .offset = i % 2 * SMALL, .length = SMALL};
    uint64_t start = now_ns();
    enum kvf_status st = request(q, get, &tier);
    uint64_t took = now_ns() - start;
    *ns = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    if (st != KVF_OK)
        return fail(m, "reading a block", kvf_status_text(st));
    if (tier != KVF_TIER_SSD)
        return fail(m, "reading a block from SSD: it came from", kvf_tier_name(tier));
    return matches(m->page, SMALL, m->seed + i * SMALL) || fail(m, "reading a block", "wrong bytes");
}

/* ------------------------------------------------------------------------------------------------- loads */

/* Sleeps until as much as was moved should have been. */
static void keep_pace(uint64_t began, double bytes, double rate)
{
    double ahead = bytes / rate - (double)(now_ns() - began) / 1e9;
    if (ahead > 0)
        usleep((useconds_t)(ahead * 1e6 < 100000 ? ahead * 1e6 : 100000));
}

static void load_puts(struct movement *m)
{
    struct kvf_queue *q = NULL;
    uint64_t began = now_ns();
    double put = 0;
    enum kvf_status st = kvf_queue_create(m->node, 8, &q);
    while (st == KVF_OK && !atomic_load(&m->stop)) {
        st = put_large(m, q);
        put += LARGE;
        if (m->load == PACED)
            keep_pace(began, put, PACE);
    }
    kvf_queue_destroy(q);
    if (st != KVF_OK)
        fail(m, "putting a block", kvf_status_text(st));
}

struct ahead {
    struct movement *m;
    _Atomic bool busy;
    uint8_t *to;
};

static void ahead_done(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct ahead *a = arg;
    atomic_fetch_add(&a->m->moved, status == KVF_OK ? LARGE : 0);
    atomic_store(&a->busy, false);
}

/* AHEAD reads of large blocks under way at any time, as a session that reads ahead has. */
static void load_ahead(struct movement *m)
{
    struct kvf_core *core = m->node->core;
    struct ahead ahead[AHEAD];
    uint64_t at = m->first_put;
    for (unsigned i = 0; i < AHEAD; i++)
        ahead[i] = (struct ahead){.m = m, .to = m->large + (size_t)(1 + i) * LARGE};
    bool busy = true;
    while (busy) {
        bool stop = atomic_load(&m->stop);
        busy = !stop;
        kvf_core_lock(core);
        for (unsigned i = 0; i < AHEAD; i++) {
            busy |= atomic_load(&ahead[i].busy);
            if (stop || atomic_load(&ahead[i].busy))
                continue;
            struct kvf_key key = large_key(at);
            key.hi |= KVF_OPAQUE_BIT;
            kvf_handle h = kvf_index_find(core->index, key);
            struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, h);
            at = at + 1 < m->next_put ? at + 1 : m->first_put;
            if (!e || e->tier != KVF_TIER_SSD || e->state != KVF_BLOCK_READY)
                continue;
            uint64_t mask = kvf_entry_chunks(e) == 64 ? UINT64_MAX : (1ull << kvf_entry_chunks(e)) - 1;
            atomic_store(&ahead[i].busy, true);
            if (kvf_read_start(core, h, mask, ahead[i].to, UINT64_MAX, KVF_PRIORITY_AHEAD, ahead_done, &ahead[i], NULL) != KVF_OK)
                atomic_store(&ahead[i].busy, false);
        }
        kvf_core_unlock(core);
        kvf_core_wake(core);
        usleep(200);
    }
}

/* The twin's load: pieces of 1 MiB at the pace that the node's load had, written or read. */
static void load_raw(struct movement *m)
{
    bool write = m->load == PACED || m->load == FULL;
    uint64_t began = now_ns(), at = 0;
    while (!atomic_load(&m->stop)) {
        ssize_t n = write ? pwrite(m->raw, m->large, LARGE, (off_t)(RAW_BYTES + at % RAW_BYTES))
                          : pread(m->raw, m->large, LARGE, (off_t)(at % RAW_BYTES));
        if (n != LARGE) {
            fail(m, "moving bytes beside raw reads", n < 0 ? strerror(errno) : "it came short");
            return;
        }
        at += LARGE;
        atomic_fetch_add(&m->moved, LARGE);
        keep_pace(began, (double)at, m->pace);
    }
}

static void *load_run(void *arg)
{
    struct movement *m = arg;
    if (m->pace > 0)
        load_raw(m);
    else if (m->load == PREFETCH)
        load_ahead(m);
    else
        load_puts(m);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------- a turn */

static uint64_t moved_by_node(const struct movement *m)
{
    const struct kvf_counters *c = &m->node->core->counters;
    switch (m->load) {
    case PACED:
    case FULL: return kvf_counted(&c->spill_ssd_bytes);
    case SCRUB: return kvf_counted(&c->scrub_bytes);
    default: return atomic_load(&m->moved);
    }
}

static void reads_node(struct movement *m, struct sample *s, uint64_t end_ns, uint64_t *x)
{
    struct kvf_queue *q = NULL;
    if (kvf_queue_create(m->node, 8, &q) != KVF_OK) {
        fail(m, "making a queue", "too many");
        return;
    }
    while (now_ns() < end_ns && s->n < SAMPLES_MAX && node_read(m, q, mixed((*x)++) % SMALLS, &s->ns[s->n]))
        s->n++;
    kvf_queue_destroy(q);
}

static void reads_raw(struct movement *m, struct sample *s, uint64_t end_ns, uint64_t *x)
{
    while (now_ns() < end_ns && s->n < SAMPLES_MAX) {
        uint64_t i = mixed((*x)++) % (RAW_BYTES / SMALL), start = now_ns();
        ssize_t n = pread(m->raw, m->page, SMALL, (off_t)(i * SMALL));
        uint64_t took = now_ns() - start;
        if (n != SMALL || !matches(m->page, SMALL, m->seed + i % (LARGE / SMALL) * SMALL)) {
            fail(m, "raw reads", n < 0 ? strerror(errno) : "wrong bytes");
            return;
        }
        s->ns[s->n++] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    }
}

/* One load, of the node (pace 0) or the twin's, for some time; the first tenth lets it begin. */
static void turn(struct movement *m, enum load load, double pace, double seconds, uint64_t *x)
{
    bool raw = pace > 0;
    struct sample *s = &m->samples[load][raw], warm = {.ns = malloc(SAMPLES_MAX * sizeof *warm.ns)};
    pthread_t thread;
    bool threaded = load != QUIET && (raw || load != SCRUB);
    m->load = load;
    m->pace = load == QUIET ? 0 : pace;
    atomic_store(&m->stop, false);
    atomic_store(&m->moved, 0);
    if (load == SCRUB && !raw)
        kvf_scrub_set_rate(m->node->core, SCRUB_RATE);
    if (!warm.ns || (threaded && pthread_create(&thread, NULL, load_run, m) != 0)) {
        free(warm.ns);
        fail(m, "starting a load", "out of memory");
        return;
    }
    void (*reads)(struct movement *, struct sample *, uint64_t, uint64_t *) = raw ? reads_raw : reads_node;
    reads(m, &warm, now_ns() + (uint64_t)(seconds * 1e8), x);
    uint64_t began = now_ns(), before = raw ? atomic_load(&m->moved) : moved_by_node(m);
    reads(m, s, began + (uint64_t)(seconds * 9e8), x);
    s->bytes += (double)((raw ? atomic_load(&m->moved) : moved_by_node(m)) - before);
    s->seconds += (double)(now_ns() - began) / 1e9;
    atomic_store(&m->stop, true);
    if (threaded)
        pthread_join(thread, NULL);
    if (load == SCRUB && !raw)
        kvf_scrub_set_rate(m->node->core, 1);
    free(warm.ns);
    /* What the load left behind goes down before the next turn. */
    for (unsigned i = 0; i < 100 && !raw && load != QUIET && kvf_spills_bytes(m->node->core) > 0; i++)
        usleep(20000);
}

static bool measure(struct movement *m, double seconds)
{
    unsigned rounds = seconds < 20 ? 3 : 5;
    double each = seconds / rounds / (2 * LOADS);
    uint64_t x = m->seed;
    for (unsigned r = 0; r < rounds && !m->failed; r++) {
        for (enum load load = QUIET; load < LOADS && !m->failed; load++) {
            turn(m, load, 0, each, &x);
            const struct sample *s = &m->samples[load][0];
            double pace = s->seconds > 0 ? s->bytes / s->seconds : 0;
            if (!m->failed)
                turn(m, load, load == QUIET || pace < LARGE ? LARGE : pace, each, &x);
        }
    }
    return !m->failed;
}

/* ------------------------------------------------------------------------------------------------- report */

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile(const struct sample *s, double percent)
{
    size_t i = (size_t)((double)s->n * percent / 100);
    return s->n ? s->ns[i < s->n ? i : s->n - 1] / 1e3 : 0;
}

static void add(struct kvf_bench *bench, enum load load, const char *what, const struct sample *s, double percent,
                const char *limit_name, double limit)
{
    char name[128];
    snprintf(name, sizeof name, "%s, %s", load_names[load], what);
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "us", .value = percentile(s, percent),
                                                    .p50 = percentile(s, 50), .p99 = percentile(s, 99), .n = s->n,
                                                    .limit_name = limit_name, .limit_value = limit});
}

static void report(struct kvf_bench *bench, struct movement *m)
{
    for (int load = 0; load < LOADS; load++)
        for (int raw = 0; raw < 2; raw++)
            qsort(m->samples[load][raw].ns, m->samples[load][raw].n, sizeof(uint32_t), by_size);
    const struct sample *quiet = &m->samples[QUIET][0];
    for (enum load load = QUIET; load < LOADS; load++) {
        const struct sample *node = &m->samples[load][0], *raw = &m->samples[load][1];
        add(bench, load, "p50", node, 50, "device p50", percentile(raw, 50));
        add(bench, load, "p99", node, 99, "device p99", percentile(raw, 99));
        add(bench, load, "p99.9", node, 99.9, "device p99.9", percentile(raw, 99.9));
        if (load == QUIET)
            continue;
        add(bench, load, "p99", node, 99, "quiet p99", percentile(quiet, 99));
        add(bench, load, "p99 of device", raw, 99, "quiet p99 of it", percentile(&m->samples[QUIET][1], 99));
        char name[128];
        snprintf(name, sizeof name, "%s, moved", load_names[load]);
        double rate = node->bytes / node->seconds / LARGE;
        kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "MiB/s", .value = rate, .p50 = rate, .p99 = rate,
                                                        .n = (uint64_t)(node->bytes / LARGE), .limit_name = "device twin",
                                                        .limit_value = raw->bytes / raw->seconds / LARGE});
    }
}

/* ------------------------------------------------------------------------------------------------- set-up */

/* The twin's file: the first half read, the second written. Every 1 MiB of it holds the same 256 pages. */
static bool raw_open(struct movement *m)
{
    m->raw = open(m->raw_path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
    for (uint64_t i = 0; i < LARGE / SMALL; i++)
        fill(m->large + i * SMALL, SMALL, m->seed + i * SMALL);
    for (uint64_t at = 0; m->raw >= 0 && at < 2 * RAW_BYTES; at += LARGE)
        if (pwrite(m->raw, m->large, LARGE, (off_t)at) != LARGE)
            return fail(m, m->raw_path, strerror(errno));
    return m->raw >= 0 || fail(m, m->raw_path, strerror(errno));
}

static bool set_up(struct movement *m, const struct kvf_bench *bench)
{
    const char *base = bench->path ? bench->path : ".";
    snprintf(m->folder, sizeof m->folder, "%.200s/kvf-bench-XXXXXX", base);
    m->seed = bench->seed;
    m->raw = -1;
    m->page = aligned_alloc(SMALL, 2 * SMALL);
    m->large = aligned_alloc(SMALL, (size_t)(1 + AHEAD) * LARGE);
    if (!m->page || !m->large)
        return fail(m, "memory", strerror(ENOMEM));
    for (int load = 0; load < LOADS; load++)
        for (int raw = 0; raw < 2; raw++)
            if (!(m->samples[load][raw].ns = malloc(SAMPLES_MAX * sizeof(uint32_t))))
                return fail(m, "memory", strerror(ENOMEM));
    if (!mkdtemp(m->folder)) {
        m->folder[0] = 0;
        return fail(m, base, strerror(errno));
    }
    snprintf(m->raw_path, sizeof m->raw_path, "%.255s/raw", m->folder);
    if (!raw_open(m) || !node_open(m))
        return false;
    enum kvf_status st = kvf_memory_register(m->node, m->page, SMALL, &m->memory);
    return st == KVF_OK || fail(m, "registering memory", kvf_status_text(st));
}

static void remove_folder(const char *folder)
{
    char path[300];
    static const char *const names[] = {"raw", "kvf.area", "kvf.journal"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%.255s/%s", folder, names[i]);
        (void)unlink(path);
    }
    if (rmdir(folder) != 0)
        fprintf(stderr, "kvf bench: %s is left: %s\n", folder, strerror(errno));
}

static void tear_down(struct movement *m)
{
    kvf_memory_unregister(m->memory);
    kvf_node_close(m->node);
    if (m->raw >= 0)
        close(m->raw);
    if (m->folder[0])
        remove_folder(m->folder);
    for (int load = 0; load < LOADS; load++)
        for (int raw = 0; raw < 2; raw++)
            free(m->samples[load][raw].ns);
    free(m->page);
    free(m->large);
}

bool kvf_bench_movement_run(struct kvf_bench *bench)
{
    struct movement *m = calloc(1, sizeof *m);
    if (!m)
        return false;
    bool good = set_up(m, bench) && measure(m, bench->seconds);
    if (good) {
        json_object_set_new(bench->config, "path", json_string(bench->path ? bench->path : "."));
        json_object_set_new(bench->config, "pages", json_integer(SMALLS));
        json_object_set_new(bench->config, "large_bytes", json_integer(LARGE));
        bench->verified = true;
        report(bench, m);
    }
    tear_down(m);
    free(m);
    return good;
}
