/* kvf bench start: how soon a node serves, how fast its memory is made ready, and what the same memory costs without a node.
 *
 * In turns: fresh memory set to zero by memset and by one and two threads; the same made ready as a node does it, by one and by two
 * threads, in small pages and in huge ones; then whole nodes, alone, without an SSD: from kvf_node_open to the first put that is
 * done, and until all memory is ready, with nothing but what serving needs prepared before it opens (start_budget 0), with the
 * default budget, and with all of it before. The first block that was put is read back and compared. */
#include "bench/bench.h"
#include "base/env.h"
#include "node/internal.h"
#include "tiers/pages.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ROUNDS = 5, BLOCK = 65536 };
#define GIB (1ull << 30)

enum way { SET_SMALL, SET_SMALL_2, SET_HUGE, SET_HUGE_2, READY_SMALL, READY_SMALL_2, READY_HUGE, READY_HUGE_2, WAYS };
static const struct {
    const char *name;
    bool huge, set;
    unsigned threads;
} ways[WAYS] = {
    {"memset", false, true, 1},           {"memset", false, true, 2},           {"memset", true, true, 1},
    {"memset", true, true, 2},            {"made ready", false, false, 1},      {"made ready", false, false, 2},
    {"made ready", true, false, 1},       {"made ready", true, false, 2},
};

enum start { START_MINIMUM, START_BUDGET, START_ALL, STARTS };
static const struct {
    const char *name, *budget;
} starts[STARTS] = {{"budget 0", "0s"}, {"budget 2 s", "2s"}, {"all before", "3600s"}};

struct slice {
    void *at;
    size_t bytes;
};

static void *set_slice(void *arg)
{
    struct slice *s = arg;
    memset(s->at, 0, s->bytes);
    return NULL;
}

/* Seconds that fresh memory takes; negative: it cannot be had. */
static double touch(enum way way, size_t bytes)
{
    struct kvf_pages pages;
    enum kvf_page_kind kind;
    int fd;
    double seconds = -1;
    if (kvf_pages_init(&pages, ways[way].huge ? "auto" : "off", "off", "", ways[way].threads, "/sys") != KVF_OK)
        return -1;
    uint8_t *base = kvf_pages_reserve(bytes);
    if (!base || kvf_pages_back(&pages, base, bytes, false, &kind, &fd) != KVF_OK)
        goto release;
    double start = kvf_bench_now();
    if (ways[way].set) {
        struct slice half[2] = {{base, bytes / ways[way].threads}, {base + bytes / 2, bytes / 2}};
        pthread_t thread;
        bool two = ways[way].threads == 2 && pthread_create(&thread, NULL, set_slice, &half[1]) == 0;
        set_slice(&half[0]);
        if (two)
            pthread_join(thread, NULL);
        else if (ways[way].threads == 2)
            set_slice(&half[1]);
    } else if (kvf_pages_populate(&pages, base, bytes, false, NULL) != KVF_OK) {
        goto release;
    }
    seconds = kvf_bench_now() - start;
release:
    kvf_pages_release(base, bytes);
    return seconds;
}

/* ---------------------------------------------------------------- a node */

static struct kvf_node *node_open(const char *bytes, const char *budget)
{
    const char *const settings[] = {"node.name",    "bench", "dram.bytes",      bytes,   "fetch.staging",       "32M",
                                    "admin.listen", "",      "block.count_max", "65536", "memory.start_budget", budget,
                                    "log.level",    "error"};
    struct kvf_config *config = NULL;
    struct kvf_node *node = NULL;
    enum kvf_status st = kvf_config_create(&config);
    for (unsigned i = 0; i < sizeof settings / sizeof *settings && st == KVF_OK; i += 2)
        st = kvf_config_set(config, settings[i], settings[i + 1]);
    if (st == KVF_OK)
        st = kvf_node_open(config, &node);
    if (st != KVF_OK)
        fprintf(stderr, "kvf bench start: %s\n", config ? kvf_config_error(config) : kvf_status_text(st));
    kvf_config_destroy(config);
    return node;
}

/* One request, to its end. */
static bool one(struct kvf_queue *queue, enum kvf_op op, void *data)
{
    struct kvf_request r = {.op = op, .key = {.hi = 7, .lo = 11}, .data = data, .length = BLOCK};
    struct kvf_completion done;
    size_t n = 0;
    if (kvf_submit(queue, &r, 1, 10 * KVF_SEC, &n) != KVF_OK || n != 1)
        return false;
    for (n = 0; n == 0;) {
        struct pollfd wait = {.fd = kvf_queue_fd(queue), .events = POLLIN};
        if (poll(&wait, 1, 10000) != 1 || kvf_drain(queue, &done, 1, &n) != KVF_OK)
            return false;
    }
    return done.status == KVF_OK;
}

static bool put_and_get(struct kvf_node *node, double start, double *first)
{
    static _Alignas(4096) uint8_t data[BLOCK], back[BLOCK];
    struct kvf_queue *queue = NULL;
    for (unsigned i = 0; i < BLOCK; i++)
        data[i] = (uint8_t)(i * 7 + i / 251);
    bool good = kvf_queue_create(node, 4, &queue) == KVF_OK && one(queue, KVF_OP_PUT, data);
    *first = kvf_bench_now() - start;
    good = good && one(queue, KVF_OP_GET, back) && memcmp(data, back, BLOCK) == 0;
    kvf_queue_destroy(queue);
    return good;
}

/* Seconds from the start to the first put that is done, and until all memory is ready. */
static bool node_start(const char *bytes, uint64_t wanted, const char *budget, double *first, double *all)
{
    struct kvf_node_stats stats = {.blocks_sealed = 0};
    double start = kvf_bench_now();
    struct kvf_node *node = node_open(bytes, budget);
    if (!node)
        return false;
    bool good = put_and_get(node, start, first);
    while (good && stats.tier[KVF_TIER_DRAM].capacity_bytes < wanted) {
        good = kvf_node_stats(node, &stats) == KVF_OK && kvf_bench_now() - start < 600;
        poll(NULL, 0, 1);
    }
    *all = kvf_bench_now() - start;
    kvf_node_close(node);
    return good;
}

/* ---------------------------------------------------------------- the bench */

static double median(double *values)
{
    kvf_bench_sort(values, ROUNDS);
    return values[ROUNDS / 2];
}

static void add(struct kvf_bench *bench, const char *name, const char *unit, double value, double worst, const char *limit_name,
                double limit)
{
    struct kvf_bench_result r = {.name = name, .unit = unit, .value = value, .p50 = value, .p99 = worst, .n = ROUNDS,
                                 .limit_name = limit_name, .limit_value = limit};
    kvf_bench_add(bench, &r);
}

static void report(struct kvf_bench *bench, double gib, double touched[WAYS][ROUNDS], double first[STARTS][ROUNDS],
                   double all[STARTS][ROUNDS])
{
    char name[96];
    double rate[WAYS], least = 1e9;
    for (int w = 0; w < WAYS; w++) {
        rate[w] = gib * (double)GIB / 1e9 / median(touched[w]);
        snprintf(name, sizeof name, "%s, %s pages, %u thread%s", ways[w].name, ways[w].huge ? "huge" : "small", ways[w].threads,
                 ways[w].threads == 1 ? "" : "s");
        add(bench, name, "GB/s", rate[w], gib * (double)GIB / 1e9 / touched[w][ROUNDS - 1], w < READY_SMALL ? NULL : "memset",
            w < READY_SMALL ? 0 : rate[w - READY_SMALL]);
        if (ways[w].set && touched[w][ROUNDS / 2] < least)
            least = touched[w][ROUNDS / 2];
    }
    for (int s = 0; s < STARTS; s++) {
        double at = median(first[s]), end = median(all[s]);
        snprintf(name, sizeof name, "node, %s: first put done", starts[s].name);
        add(bench, name, "ms", 1e3 * at, 1e3 * first[s][ROUNDS - 1], "memset all", 1e3 * least);
        snprintf(name, sizeof name, "node, %s: all ready", starts[s].name);
        add(bench, name, "ms", 1e3 * end, 1e3 * all[s][ROUNDS - 1], "memset all", 1e3 * least);
    }
}

bool kvf_bench_start_run(struct kvf_bench *bench)
{
    static double touched[WAYS][ROUNDS], first[STARTS][ROUNDS], all[STARTS][ROUNDS];
    double gib = bench->memory_gib > 0 ? bench->memory_gib : 2;
    uint64_t bytes = (uint64_t)(gib * 1024) << 20;
    char text[32];
    snprintf(text, sizeof text, "%lluM", (unsigned long long)(bytes >> 20));
    if (kvf_pages_available() < bytes + GIB) {
        fprintf(stderr, "kvf bench start: %.1f GiB and one more are not free; ask for less (--memory)\n", gib);
        return false;
    }
    json_object_set_new(bench->config, "memory_gib", json_real(gib));
    json_object_set_new(bench->config, "rounds", json_integer(ROUNDS));
    for (int round = 0; round < ROUNDS; round++) {
        for (int w = 0; w < WAYS; w++) {
            touched[w][round] = touch((enum way)w, bytes);
            if (touched[w][round] <= 0) {
                fprintf(stderr, "kvf bench start: memory could not be had (%s)\n", ways[w].name);
                return false;
            }
        }
        for (int s = 0; s < STARTS; s++) {
            if (!node_start(text, bytes, starts[s].budget, &first[s][round], &all[s][round])) {
                fprintf(stderr, "kvf bench start: a node did not start, or its first block was wrong (%s)\n", starts[s].name);
                return false;
            }
        }
    }
    bench->verified = true;
    report(bench, gib, touched, first, all);
    return true;
}
