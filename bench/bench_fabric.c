/* The fabric between real processes, beside what the same machine can do without it: ucx_perftest with the settings that the
 * fabric gives to UCX, iperf3, and memcpy of the same blocks. Every number is a median over rounds in which all take turns. */
#include "base/config.h"
#include "bench/bench.h"
#include "bench/fabric_node.h"
#include "bench/limits.h"
#include "bench/redis.h"
#include "base/hash.h"
#include "fabric/fabric.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS_MAX 64u
#define PULLS 2 /* with and without checks */
#define COLD_BYTES (256u << 20)
enum limit { AM, TAG, PUT, LIMITS };
static const char *const limit_tests[LIMITS] = {"ucp_am_bw", "tag_bw", "ucp_put_bw"};

/* Values of one thing, round by round. */
struct series {
    double value[ROUNDS_MAX];
    unsigned n;
};

struct bench {
    struct kvf_bench *bench;
    struct kvf_settings settings;
    struct kvf_fabric_region *region;
    struct kvf_fabric_nodes *nodes;
    const char *tls;
    char ucx[2048]; /* its settings */
    bool mapped;    /* the region is read as shared memory */
    bool perftest, iperf;
    unsigned rounds;
    double slice; /* seconds of one measurement */
    double cold;  /* GB/s of ucx_perftest's messages that no cache holds */
};

static bool fail(const char *what, const char *why)
{
    fprintf(stderr, "kvf bench fabric: %s: %s\n", what, why);
    return false;
}

static void note(struct series *s, double value)
{
    if (s->n < ROUNDS_MAX)
        s->value[s->n++] = value;
}

static double median(const struct series *s)
{
    struct series sorted = *s;
    kvf_bench_sort(sorted.value, sorted.n);
    return sorted.n ? sorted.value[sorted.n / 2] : 0;
}

/* The worst round: the least of a rate, the most of a time. */
static double worst(const struct series *s, bool rate)
{
    double value = s->n ? s->value[0] : 0;
    for (unsigned i = 1; i < s->n; i++)
        value = (s->value[i] < value) == rate ? s->value[i] : value;
    return value;
}

/* A row: the series, beside a limit that may be 0 (none). */
static void add(struct bench *b, const char *name, const char *unit, const struct series *s, const char *limit, double limit_value)
{
    double value = median(s);
    if (s->n > 0 && value > 0)
        kvf_bench_add(b->bench, &(struct kvf_bench_result){.name = name, .unit = unit, .value = value, .p50 = value,
                                                           .p99 = worst(s, strcmp(unit, "us") != 0), .n = s->n,
                                                           .limit_name = limit_value > 0 ? limit : NULL,
                                                           .limit_value = limit_value});
}

/* ------------------------------------------------------------------------------------------------- pulls */

static bool measure(struct bench *b, struct kvf_fabric_task *task, struct series *to)
{
    struct kvf_fabric_answer answer;
    task->seconds = b->slice;
    task->seed = b->bench->seed;
    if (!kvf_fabric_nodes_run(b->nodes, task, &answer))
        return false;
    note(to, answer.bytes_per_s / 1e9);
    return true;
}

/* One size at one depth: pulls with and without checks, in turns with the limits. */
static bool compare(struct bench *b, uint32_t bytes, uint32_t depth)
{
    struct series pulls[PULLS] = {0}, limits[LIMITS] = {0}, iperf = {0}, copies[PULLS] = {0};
    char name[64], row[96];
    for (unsigned round = 0; round < b->rounds; round++) {
        for (unsigned i = 0; i < PULLS; i++) {
            struct kvf_fabric_task task = {.work = KVF_FABRIC_PULL, .bytes = bytes, .ranges = 1, .depth = depth, .verify = i == 0};
            if (!measure(b, &task, &pulls[i]))
                return false;
            task.work = KVF_FABRIC_COPY;
            if (b->mapped && !measure(b, &task, &copies[i]))
                return false;
        }
        for (unsigned i = 0; i < LIMITS && b->perftest && !b->mapped; i++) {
            struct kvf_limits_ucx limit;
            if (kvf_limits_ucx(b->ucx, limit_tests[i], bytes, depth, b->slice, &limit))
                note(&limits[i], limit.bytes_per_s / 1e9);
        }
        if (b->iperf && !b->mapped)
            note(&iperf, kvf_limits_iperf(1, bytes, b->slice) / 1e9);
    }
    snprintf(name, sizeof name, "%s %u KiB depth %u", b->tls, bytes / 1024, depth);
    enum limit best = AM;
    for (unsigned i = 0; i < LIMITS; i++) {
        best = median(&limits[i]) > median(&limits[best]) ? (enum limit)i : best;
        snprintf(row, sizeof row, "%s: %s", name, limit_tests[i]);
        add(b, row, "GB/s", &limits[i], NULL, 0);
    }
    if (!b->mapped) {
        add(b, name, "GB/s", &pulls[0], limit_tests[best], median(&limits[best]));
        add(b, name, "GB/s", &pulls[0], "iperf3", median(&iperf));
        add(b, name, "GB/s", &pulls[0], "tag_bw, cold", b->cold);
    } else {
        add(b, name, "GB/s", &pulls[0], "memcpy+check", median(&copies[0]));
    }
    add(b, name, "GB/s", &pulls[0], "unchecked", median(&pulls[1]));
    snprintf(row, sizeof row, "%s unchecked", name);
    if (b->mapped)
        add(b, row, "GB/s", &pulls[1], "memcpy", median(&copies[1]));
    else
        add(b, row, "GB/s", &pulls[1], limit_tests[best], median(&limits[best]));
    return true;
}

/* ucx_perftest sends the same buffer again and again, which stays in the caches; what is pulled does not. As large messages as
 * no cache holds show what the memory costs. */
static void cold(struct bench *b)
{
    struct series s = {0};
    for (unsigned round = 0; round < b->rounds && b->perftest && !b->mapped; round++) {
        struct kvf_limits_ucx limit;
        if (kvf_limits_ucx(b->ucx, "tag_bw", COLD_BYTES, 2, 0.3, &limit))
            note(&s, limit.bytes_per_s / 1e9);
    }
    b->cold = median(&s);
    add(b, "tag_bw of 256 MiB: memory that no cache holds", "GB/s", &s, NULL, 0);
}

/* One block of 64 KiB at a time: how long it takes, beside a round trip of as many bytes there and back. */
static bool alone(struct bench *b)
{
    static const char *const tests[] = {"ucp_am_lat", "tag_lat"};
    struct kvf_fabric_task task = {.work = KVF_FABRIC_PULL, .bytes = 65536, .ranges = 1, .depth = 1, .verify = true,
                                   .seed = b->bench->seed, .seconds = b->slice};
    struct series pull = {0}, trip[2] = {0};
    char name[64];
    for (unsigned round = 0; round < b->rounds; round++) {
        struct kvf_fabric_answer answer;
        if (!kvf_fabric_nodes_run(b->nodes, &task, &answer))
            return false;
        note(&pull, answer.p50_us);
        for (unsigned i = 0; i < 2 && b->perftest; i++) {
            struct kvf_limits_ucx limit;
            if (kvf_limits_ucx(b->ucx, tests[i], task.bytes, 1, b->slice, &limit))
                note(&trip[i], 2 * limit.p50_us);
        }
    }
    double am = median(&trip[0]), tag = median(&trip[1]);
    snprintf(name, sizeof name, "%s 64 KiB alone", b->tls);
    add(b, name, "us", &pull, "round trip", am > 0 && am < tag ? am : tag);
    return true;
}

/* ------------------------------------------------------------------------------------------------- chunks, beside Redis */

#define CHUNK KVF_FABRIC_NODE_PAGE
#define CHUNKS_MAX KVF_PULL_RANGES_MAX

static bool redis_fill(struct bench *b, struct kvf_redis *redis)
{
    for (uint64_t page = 0; page < kvf_fabric_region_pages(b->region); page += 256)
        if (!kvf_redis_set(redis, page, 256, kvf_fabric_region_page(b->region, page), CHUNK))
            return fail("redis", "it does not take the chunks");
    return true;
}

/* Chunks per second by GETs of `n` at a time. The last ones are compared. */
static bool redis_rate(struct bench *b, struct kvf_redis *redis, unsigned n, uint8_t *to, double *rate)
{
    uint64_t keys[CHUNKS_MAX], random = b->bench->seed, got = 0;
    double start = kvf_bench_now(), end = start + b->slice;
    bool good = true;
    while (good && kvf_bench_now() < end) {
        for (unsigned i = 0; i < n; i++) {
            random = kvf_mix(random, 31);
            keys[i] = random % kvf_fabric_region_pages(b->region);
        }
        good = kvf_redis_get(redis, keys, n, to, CHUNK);
        got += n;
    }
    *rate = (double)got / (kvf_bench_now() - start);
    for (unsigned i = 0; i < n && good; i++)
        good = memcmp(to + (size_t)i * CHUNK, kvf_fabric_region_page(b->region, keys[i]), CHUNK) == 0;
    return good || fail("redis", "an answer is missing or wrong");
}

/* Requests of one chunk and of many, scattered over the region. */
static bool chunks(struct bench *b)
{
    static const struct {
        unsigned depth, count;
    } cases[] = {{1, 1}, {16, 1}, {1, 16}, {1, 64}, {1, 256}, {1, CHUNKS_MAX}};
    struct kvf_redis *redis = kvf_redis_start();
    uint8_t *to = malloc((size_t)CHUNKS_MAX * CHUNK);
    bool good = to && (!redis || redis_fill(b, redis));
    json_object_set_new(b->bench->config, "redis", json_boolean(redis != NULL));
    for (unsigned i = 0; i < sizeof cases / sizeof *cases && good; i++) {
        struct kvf_fabric_task task = {.work = KVF_FABRIC_PULL, .bytes = CHUNK, .ranges = cases[i].count, .depth = cases[i].depth,
                                       .verify = true, .seconds = b->slice, .seed = b->bench->seed};
        struct series pulls = {0}, gets[2] = {0}; /* client and server on two processors, and on one */
        char name[64];
        for (unsigned round = 0; round < b->rounds && good; round++) {
            struct kvf_fabric_answer answer;
            good = kvf_fabric_nodes_run(b->nodes, &task, &answer);
            note(&pulls, answer.bytes_per_s / CHUNK / 1e3);
            for (unsigned one = 0; one < 2 && redis && good; one++) {
                double rate = 0;
                kvf_limits_pin(!one);
                good = redis_rate(b, redis, cases[i].count * cases[i].depth, to, &rate);
                note(&gets[one], rate / 1e3);
            }
        }
        snprintf(name, sizeof name, "%s %u of %u chunks of 4 KiB", b->tls, cases[i].depth, cases[i].count);
        add(b, name, "k/s", &pulls, "Redis GET", median(&gets[0]));
        add(b, name, "k/s", &pulls, "on one cpu", median(&gets[1]));
    }
    if (redis)
        kvf_redis_stop(redis);
    free(to);
    return good;
}

/* ------------------------------------------------------------------------------------------------- many */


static bool nodes_start(struct bench *b, unsigned servers, unsigned readers, uint64_t memory_bytes)
{
    struct kvf_log log;
    kvf_log_init(&log, "bench", KVF_LOG_ERROR, stderr);
    struct kvf_transport_config config = {.kind = b->tls, .interface = b->settings.fabric_interface, .peers_max = 8,
                                          .segment_bytes = b->settings.fabric_segment, .log = &log};
    const struct kvf_fabric_nodes_options options = {.transport = b->tls, .interface = b->settings.fabric_interface,
                                                     .segment_bytes = b->settings.fabric_segment,
                                                     .inflight_bytes = b->settings.fabric_inflight,
                                                     .spin_ns = b->settings.reactor_spin_ns, .memory_bytes = memory_bytes,
                                                     .servers = servers, .readers = readers,
                                                     .pin = servers == 1 && readers == 1};
    enum kvf_status st = kvf_transport_ucx_settings(&config, b->ucx, sizeof b->ucx);
    if (st != KVF_OK)
        return fail(b->tls, kvf_status_text(st));
    b->nodes = kvf_fabric_nodes_create(b->region, &options);
    return b->nodes != NULL;
}

/* N readers of one server, or one reader of N servers: all together, and the slowest and the fastest of N readers. */
static bool many(struct bench *b, const char *tls, unsigned servers, unsigned readers, uint64_t memory_bytes)
{
    struct series total = {0}, slowest = {0}, fastest = {0};
    struct kvf_fabric_answer answers[KVF_FABRIC_NODES_MAX];
    struct kvf_fabric_task task = {.work = KVF_FABRIC_PULL, .bytes = b->bench->n_sizes ? b->bench->sizes[0] : 256u << 10,
                                   .ranges = 1, .depth = b->bench->n_depths ? b->bench->depths[0] : 16, .verify = true,
                                   .seed = b->bench->seed, .seconds = b->slice};
    char name[64], row[96];
    b->tls = tls;
    if (!nodes_start(b, servers, readers, memory_bytes))
        return false;
    bool good = true;
    for (unsigned round = 0; round < b->rounds && good; round++) {
        good = kvf_fabric_nodes_run(b->nodes, &task, answers);
        double sum = 0, least_rate = answers[0].bytes_per_s, most_rate = least_rate;
        for (unsigned i = 0; i < readers && good; i++) {
            double rate = answers[i].bytes_per_s;
            sum += rate;
            least_rate = rate < least_rate ? rate : least_rate;
            most_rate = rate > most_rate ? rate : most_rate;
        }
        note(&total, sum / 1e9);
        note(&slowest, least_rate / 1e9);
        note(&fastest, most_rate / 1e9);
    }
    kvf_fabric_nodes_destroy(b->nodes);
    snprintf(name, sizeof name, "%s %u KiB depth %u, %u %s", tls, task.bytes / 1024, task.depth, servers + readers - 1,
             readers > 1 ? "to one" : "servers of one");
    add(b, name, "GB/s", &total, NULL, 0);
    if (readers > 1 && good) {
        snprintf(row, sizeof row, "%s: slowest reader", name);
        add(b, row, "GB/s", &slowest, "fastest", median(&fastest));
    }
    return good;
}

static bool many_run(struct bench *b, const char *tls, uint64_t memory_bytes)
{
    unsigned n = b->bench->peers;
    uint64_t each = memory_bytes / n / (2 << 20) * (2 << 20), least_bytes = 64 << 20;
    b->slice = b->bench->seconds / (b->rounds * 2 * (b->bench->tls ? 1 : 2));
    return many(b, tls, 1, n, each > least_bytes ? each : least_bytes) && many(b, tls, n, 1, memory_bytes);
}

static bool pair_run(struct bench *b, const char *tls, uint64_t memory_bytes)
{
    static const uint32_t sizes[] = {64 << 10, 256 << 10, 1 << 20, 4 << 20}, depths[] = {1, 4, 16, 64};
    const struct kvf_bench *bench = b->bench;
    unsigned n_sizes = bench->n_sizes ? bench->n_sizes : 4, n_depths = bench->n_depths ? bench->n_depths : 4;
    b->tls = tls;
    b->mapped = !strcmp(tls, "shm") || !strcmp(tls, "auto");
    b->slice = bench->seconds / (n_sizes * n_depths * b->rounds * 5 * (bench->tls ? 1 : 2));
    b->slice = b->slice < 0.05 ? 0.05 : b->slice;
    if (!nodes_start(b, 1, 1, memory_bytes))
        return false;
    cold(b);
    bool good = alone(b) && (b->mapped || chunks(b));
    for (unsigned i = 0; i < n_sizes * n_depths && good; i++) {
        uint32_t bytes = (bench->n_sizes ? bench->sizes : sizes)[i / n_depths];
        uint32_t depth = (bench->n_depths ? bench->depths : depths)[i % n_depths];
        good = compare(b, bytes, depth);
    }
    kvf_fabric_nodes_destroy(b->nodes);
    return good;
}

static void describe(struct bench *b, uint64_t memory_bytes)
{
    json_t *config = b->bench->config;
    char text[64] = "unknown";
    FILE *f = fopen("/proc/sys/net/ipv4/tcp_congestion_control", "re");
    if (f && fgets(text, sizeof text, f))
        text[strcspn(text, "\n")] = 0;
    if (f)
        fclose(f);
    json_object_set_new(config, "tcp_congestion_control", json_string(text));
    json_object_set_new(config, "segment_bytes", json_integer((json_int_t)b->settings.fabric_segment));
    json_object_set_new(config, "region_bytes", json_integer((json_int_t)memory_bytes));
    json_object_set_new(config, "rounds", json_integer(b->rounds));
    json_object_set_new(config, "ucx_perftest", json_boolean(b->perftest));
    json_object_set_new(config, "iperf3", json_boolean(b->iperf));
    if (!b->perftest || !b->iperf)
        fprintf(stderr, "kvf bench fabric: %s is not installed: its limits are not measured\n",
                b->perftest ? "iperf3" : "ucx_perftest");
}

bool kvf_bench_fabric_run(struct kvf_bench *bench)
{
    struct bench *b = calloc(1, sizeof *b);
    struct kvf_config *config;
    if (!b)
        return fail("starting", "no memory");
    if (kvf_config_create(&config) != KVF_OK) {
        free(b);
        return fail("starting", "no memory");
    }
    b->bench = bench;
    b->settings = *kvf_config_settings(config); /* a node's defaults */
    kvf_config_destroy(config);
    b->perftest = kvf_limits_have("ucx_perftest");
    b->iperf = kvf_limits_have("iperf3");
    b->rounds = bench->rounds ? bench->rounds : 5;
    uint64_t memory_bytes = (uint64_t)((bench->memory_gib > 0 ? bench->memory_gib : 1) * 1024) << 20;
    describe(b, memory_bytes);
    b->region = kvf_fabric_region_create(memory_bytes, bench->seed);
    bool good = b->region != NULL;
    bool (*run)(struct bench *, const char *, uint64_t) = bench->peers ? many_run : pair_run;
    if (good && (!bench->tls || strcmp(bench->tls, "shm") != 0))
        good = run(b, bench->tls ? bench->tls : "tcp", memory_bytes);
    if (good && (!bench->tls || !strcmp(bench->tls, "shm")))
        good = run(b, "shm", memory_bytes);
    if (b->region)
        kvf_fabric_region_destroy(b->region);
    bench->verified = good;
    free(b);
    return good;
}
