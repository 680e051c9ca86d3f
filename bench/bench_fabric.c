/* The fabric between real processes, beside what the same machine can do without it: ucx_perftest with the settings that the
 * fabric gives to UCX, iperf3, and memcpy of the same blocks. Every number is a median over rounds in which all take turns.
 * The processes are of this machine, or one of them is of another (--serve there, --peer here). */
#include "base/config.h"
#include "bench/bench.h"
#include "bench/fabric_node.h"
#include "bench/far.h"
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
#define LIMITS_MAX 3
/* What ucx_perftest is asked for: messages and writes, which may take the way of our answers; over RDMA we read, and so does it. */
static const char *const message_tests[] = {"ucp_am_bw", "tag_bw", "ucp_put_bw", NULL}, *const read_tests[] = {"ucp_get", NULL};

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
    const char *const *tests; /* ucx_perftest's */
    struct kvf_far *far;      /* the machine that serves, and where its programs are started; or NULL: this one */
    struct kvf_far_node server;
    struct kvf_limits_host host;
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

/* What the programs are given; over a network they move about as much as the pulls did. */
static struct kvf_limits_task limits_task(const struct bench *b, const char *test, uint32_t bytes, uint32_t depth, double pulled)
{
    return (struct kvf_limits_task){.host = b->far ? &b->host : NULL, .settings = b->ucx, .test = test, .bytes = bytes,
                                    .depth = depth, .seconds = b->slice,
                                    .guess = b->far && pulled > 0 ? pulled * 1e9 : KVF_LIMITS_GUESS};
}

/* What one size at one depth came to, round by round. */
struct comparison {
    struct series pulls[PULLS], copies[PULLS], limits[LIMITS_MAX], iperf;
};

/* One round: pulls with and without checks, in turns with the limits. */
static bool compare_round(struct bench *b, uint32_t bytes, uint32_t depth, struct comparison *to)
{
    for (unsigned i = 0; i < PULLS; i++) {
        struct kvf_fabric_task task = {.work = KVF_FABRIC_PULL, .bytes = bytes, .ranges = 1, .depth = depth, .verify = i == 0};
        if (!measure(b, &task, &to->pulls[i]))
            return false;
        task.work = KVF_FABRIC_COPY;
        if (b->mapped && !measure(b, &task, &to->copies[i]))
            return false;
    }
    double pulled = to->pulls[0].value[to->pulls[0].n - 1];
    for (unsigned i = 0; b->tests[i] && b->perftest && !b->mapped; i++) {
        struct kvf_limits_task task = limits_task(b, b->tests[i], bytes, depth, pulled);
        struct kvf_limits_ucx limit;
        if (kvf_limits_ucx(&task, &limit))
            note(&to->limits[i], limit.bytes_per_s / 1e9);
    }
    struct kvf_limits_task task = limits_task(b, NULL, bytes, 1, pulled);
    if (b->iperf && !b->mapped)
        note(&to->iperf, kvf_limits_iperf(&task) / 1e9);
    return true;
}

static bool compare(struct bench *b, uint32_t bytes, uint32_t depth)
{
    struct comparison c = {0};
    char name[64], row[96];
    for (unsigned round = 0; round < b->rounds; round++)
        if (!compare_round(b, bytes, depth, &c))
            return false;
    snprintf(name, sizeof name, "%s %u KiB depth %u", b->tls, bytes / 1024, depth);
    unsigned best = 0;
    for (unsigned i = 0; b->tests[i]; i++) {
        best = median(&c.limits[i]) > median(&c.limits[best]) ? i : best;
        snprintf(row, sizeof row, "%s: %s", name, b->tests[i]);
        add(b, row, "GB/s", &c.limits[i], NULL, 0);
    }
    if (!b->mapped) {
        add(b, name, "GB/s", &c.pulls[0], b->tests[best], median(&c.limits[best]));
        if (b->iperf)
            add(b, name, "GB/s", &c.pulls[0], "iperf3", median(&c.iperf));
        if (b->cold > 0)
            add(b, name, "GB/s", &c.pulls[0], "tag_bw, cold", b->cold);
    } else {
        add(b, name, "GB/s", &c.pulls[0], "memcpy+check", median(&c.copies[0]));
    }
    add(b, name, "GB/s", &c.pulls[0], "unchecked", median(&c.pulls[1]));
    snprintf(row, sizeof row, "%s unchecked", name);
    if (b->mapped)
        add(b, row, "GB/s", &c.pulls[1], "memcpy", median(&c.copies[1]));
    else
        add(b, row, "GB/s", &c.pulls[1], b->tests[best], median(&c.limits[best]));
    return true;
}

/* Blocks read once, every page compared with its checksum: where they lie at the peer, beside the same in memory of one's own, and
 * beside a copy that is read then. */
static bool in_place(struct bench *b, uint32_t bytes)
{
    static const enum kvf_fabric_work works[] = {KVF_FABRIC_VIEW, KVF_FABRIC_LOOK, KVF_FABRIC_COPY, KVF_FABRIC_COPY};
    struct series s[4] = {0};
    char name[64];
    for (unsigned round = 0; round < b->rounds; round++) {
        for (unsigned i = 0; i < 4; i++) {
            struct kvf_fabric_task task = {.work = works[i], .bytes = bytes, .ranges = 1, .depth = 1, .verify = i < 3};
            if (!measure(b, &task, &s[i]))
                return false;
        }
    }
    snprintf(name, sizeof name, "%s %u KiB in place", b->tls, bytes / 1024);
    add(b, name, "GB/s", &s[0], "own memory", median(&s[1]));
    add(b, name, "GB/s", &s[0], "memcpy+check", median(&s[2]));
    add(b, name, "GB/s", &s[0], "memcpy alone", median(&s[3]));
    return true;
}

/* ucx_perftest sends the same buffer again and again, which stays in the caches; what is pulled does not. As large messages as
 * no cache holds show what the memory costs. */
static void cold(struct bench *b)
{
    struct series s = {0};
    for (unsigned round = 0; round < b->rounds && b->perftest && !b->mapped && !b->far; round++) {
        struct kvf_limits_task task = limits_task(b, "tag_bw", COLD_BYTES, 2, 0);
        struct kvf_limits_ucx limit;
        task.seconds = 0.3;
        if (kvf_limits_ucx(&task, &limit))
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
            struct kvf_limits_task limit_task = limits_task(b, tests[i], task.bytes, 1, answer.bytes_per_s / 1e9);
            struct kvf_limits_ucx limit;
            if (kvf_limits_ucx(&limit_task, &limit))
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


/* The settings of UCX that ucx_perftest gets. Over RDMA it needs ud for its connections, where ours are made by librdmacm; and ud
 * works over software RoCE only without a test of addresses. */
static bool limits_settings(struct bench *b)
{
    static const char more[] = " UCX_TLS=rc_v,ud_v,self UCX_UD_VERBS_ETH_DGID_CHECK=n";
    struct kvf_log log;
    kvf_log_init(&log, "bench", KVF_LOG_ERROR, stderr);
    struct kvf_transport_config config = {.kind = b->tls, .interface = b->settings.fabric_interface, .peers_max = 8,
                                          .segment_bytes = b->settings.fabric_segment, .log = &log};
    enum kvf_status st = kvf_transport_ucx_settings(&config, b->ucx, sizeof b->ucx - sizeof more);
    if (st != KVF_OK)
        return fail(b->tls, kvf_status_text(st));
    bool rdma = !strcmp(b->tls, "rdma");
    b->tests = rdma ? read_tests : message_tests;
    size_t used = strlen(b->ucx);
    snprintf(b->ucx + used, sizeof b->ucx - used, "%s", rdma ? more : "");
    return true;
}

static bool nodes_start(struct bench *b, unsigned servers, unsigned readers, uint64_t memory_bytes)
{
    const struct kvf_fabric_nodes_options options = {.transport = b->tls, .interface = b->settings.fabric_interface,
                                                     .segment_bytes = b->settings.fabric_segment,
                                                     .inflight_bytes = b->settings.fabric_inflight,
                                                     .spin_ns = b->settings.reactor_spin_ns, .memory_bytes = memory_bytes,
                                                     .servers = servers, .readers = readers,
                                                     .outside = b->far || b->bench->serve, .secret_file = b->bench->secret_file,
                                                     .server = b->far ? &b->server.at : NULL,
                                                     .pin = servers == 1 && readers == 1};
    if (!limits_settings(b))
        return false;
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
    b->mapped = !b->far && (!strcmp(tls, "shm") || !strcmp(tls, "auto"));
    b->slice = bench->seconds / (n_sizes * n_depths * b->rounds * 5 * (bench->tls ? 1 : 2));
    b->slice = b->slice < 0.05 ? 0.05 : b->slice;
    if (!nodes_start(b, b->far ? 0 : 1, 1, memory_bytes))
        return false;
    cold(b);
    bool good = alone(b) && (b->mapped || b->far || chunks(b));
    for (unsigned i = 0; i < n_sizes * n_depths && good; i++) {
        uint32_t bytes = (bench->n_sizes ? bench->sizes : sizes)[i / n_depths];
        uint32_t depth = (bench->n_depths ? bench->depths : depths)[i % n_depths];
        good = compare(b, bytes, depth) && (!b->mapped || i % n_depths > 0 || in_place(b, bytes));
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
    if (!b->perftest || !kvf_limits_have("iperf3"))
        fprintf(stderr, "kvf bench fabric: %s is not installed: its limits are not measured\n",
                b->perftest ? "iperf3" : "ucx_perftest");
}

/* ------------------------------------------------------------------------------------------------- two machines */

/* --serve: a region for others to measure with, until it is told to end. */
static bool serve_run(struct bench *b, const struct kvf_secret *secret, uint64_t memory_bytes)
{
    struct kvf_far_node node = {.region_bytes = memory_bytes, .seed = b->bench->seed};
    b->tls = b->bench->tls ? b->bench->tls : "tcp";
    if (!nodes_start(b, 1, 0, memory_bytes))
        return false;
    kvf_fabric_nodes_server(b->nodes, &node.at);
    snprintf(node.transport, sizeof node.transport, "%s", b->tls);
    bool good = kvf_far_serve(b->bench->serve, secret, &node, b->ucx);
    kvf_fabric_nodes_destroy(b->nodes);
    b->bench->printed = true;
    return good;
}

/* Everything that the options ask for, with a region. */
static bool run(struct bench *b, const struct kvf_secret *secret, uint64_t memory_bytes)
{
    struct kvf_bench *bench = b->bench;
    bool (*one)(struct bench *, const char *, uint64_t) = bench->peers && !b->far ? many_run : pair_run;
    if (bench->serve)
        return serve_run(b, secret, memory_bytes);
    if (b->far)
        return pair_run(b, b->server.transport, memory_bytes);
    return ((bench->tls && !strcmp(bench->tls, "shm")) || one(b, bench->tls ? bench->tls : "tcp", memory_bytes)) &&
           ((bench->tls && strcmp(bench->tls, "shm") != 0) || one(b, "shm", memory_bytes));
}

/* The secret that proves who we are to another machine; its processes read it for themselves. */
static bool secret_open(const struct bench *b, struct kvf_secret **secret)
{
    char error[256] = "no memory";
    enum kvf_status st = kvf_secret_create(secret);
    if (st == KVF_OK && b->bench->secret_file)
        st = kvf_secret_load(*secret, b->bench->secret_file, error, sizeof error);
    return st == KVF_OK || fail("the secret", error);
}

bool kvf_bench_fabric_run(struct kvf_bench *bench)
{
    struct bench *b = calloc(1, sizeof *b);
    struct kvf_secret *secret = NULL;
    struct kvf_config *config;
    if (!b || kvf_config_create(&config) != KVF_OK) {
        free(b);
        return fail("starting", "no memory");
    }
    b->bench = bench;
    b->settings = *kvf_config_settings(config); /* a node's defaults */
    kvf_config_destroy(config);
    if (bench->interface)
        snprintf(b->settings.fabric_interface, sizeof b->settings.fabric_interface, "%s", bench->interface);
    b->perftest = kvf_limits_have("ucx_perftest");
    b->rounds = bench->rounds ? bench->rounds : 5;
    uint64_t memory_bytes = (uint64_t)((bench->memory_gib > 0 ? bench->memory_gib : 1) * 1024) << 20;
    bool good = secret_open(b, &secret);
    if (good && bench->peer) {
        b->far = kvf_far_open(bench->peer, secret, &b->server);
        good = b->far && (!bench->tls || !strcmp(bench->tls, b->server.transport) ||
                          fail(bench->peer, "it was started with another --tls"));
    }
    if (good && b->far && b->server.region_bytes > memory_bytes) /* as much is needed here: that is not for others to say */
        good = fail(bench->peer, "its region is larger than --memory says here");
    if (b->far) {
        b->host = kvf_far_host(b->far);
        memory_bytes = b->server.region_bytes;
        bench->seed = b->server.seed;
    }
    if (bench->spin_us > 0)
        b->settings.reactor_spin_ns = (uint64_t)bench->spin_us * KVF_US;
    json_object_set_new(bench->config, "reactor_spin_us", json_integer((json_int_t)(b->settings.reactor_spin_ns / KVF_US)));
    const char *tls = b->far ? b->server.transport : bench->tls;
    b->iperf = kvf_limits_have("iperf3") && !(tls && !strcmp(tls, "rdma"));
    if (!bench->serve)
        describe(b, memory_bytes);
    b->region = good ? kvf_fabric_region_create(memory_bytes, bench->seed) : NULL;
    good = b->region && run(b, secret, memory_bytes);
    if (b->region)
        kvf_fabric_region_destroy(b->region);
    if (b->far)
        kvf_far_close(b->far);
    kvf_secret_destroy(secret);
    bench->verified = good;
    free(b);
    return good;
}
