/* Reads from another process's memory on this host, as the fabric, Mooncake Store and Redis do them: objects of one size, in
 * random order, so many per call, one call at a time, from more bytes than the caches hold. All take turns in every round, and
 * every one's bytes are compared. The rivals use TCP; the fabric does too, and then what it chooses by itself: shared memory.
 *
 * What differs: the two stores find an object by its key (Mooncake asks its master; Redis looks it up), while the fabric's
 * reader knows where a block lies, as a home does. The fabric verifies a checksum of every 4 KiB in the measured time, Redis and
 * Mooncake Store verify nothing there. */
#include "base/config.h"
#include "base/hash.h"
#include "bench/bench.h"
#include "bench/fabric_node.h"
#include "bench/limits.h"
#include "bench/mooncake.h"
#include "bench/redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS_MAX 64u
#define OBJECT_BYTES (256ull << 20)   /* of one size, in all */
#define OBJECTS_MAX 8192u
#define CALL_BYTES (64u << 20)        /* read by one call, at most */
#define REDIS_VALUE_MAX (128u << 10)  /* larger ones do not fit its client's buffers: not compared */
#define BATCH_MAX 64u
enum reader { OURS_TCP, OURS_AUTO, REDIS, MOONCAKE, READERS };
static const char *const transports[] = {[OURS_TCP] = "tcp", [OURS_AUTO] = "auto"};

struct bench {
    struct kvf_bench *bench;
    struct kvf_fabric_region *region;
    struct kvf_fabric_nodes *nodes[2]; /* by transport */
    struct kvf_redis *redis;       /* NULL: not installed */
    struct kvf_mooncake *mooncake; /* NULL: not installed */
    uint8_t *to;
    double slice; /* seconds of one measurement */
    unsigned rounds;
};

static bool fail(const char *what, const char *why)
{
    fprintf(stderr, "kvf bench rivals: %s: %s\n", what, why);
    return false;
}

static const uint8_t *object(const struct bench *b, uint32_t bytes, uint64_t i)
{
    return kvf_fabric_region_page(b->region, i * (bytes / KVF_FABRIC_NODE_PAGE));
}

static unsigned objects(uint32_t bytes)
{
    return OBJECT_BYTES / bytes < OBJECTS_MAX ? (unsigned)(OBJECT_BYTES / bytes) : OBJECTS_MAX;
}

/* ------------------------------------------------------------------------------------------------- the three */

static bool ours(struct bench *b, enum reader reader, uint32_t bytes, unsigned batch, double *rate)
{
    struct kvf_fabric_answer answer;
    struct kvf_fabric_task task = {.work = KVF_FABRIC_PULL, .bytes = bytes, .ranges = batch, .depth = 1, .verify = true,
                                   .seconds = b->slice, .seed = b->bench->seed};
    bool good = kvf_fabric_nodes_run(b->nodes[reader], &task, &answer) && answer.good;
    *rate = answer.bytes_per_s;
    return good || fail("the fabric", "a pull failed");
}

static bool of_redis(struct bench *b, enum reader reader, uint32_t bytes, unsigned batch, double *rate)
{
    uint64_t keys[BATCH_MAX], random = b->bench->seed, got = 0;
    double start = kvf_bench_now(), took = 0;
    bool good = true;
    for (; good && took < b->slice; took = kvf_bench_now() - start) {
        for (unsigned i = 0; i < batch; i++) {
            random = kvf_mix(random, 31);
            keys[i] = random % objects(bytes);
        }
        good = kvf_redis_get(b->redis, keys, batch, b->to, bytes);
        got += batch;
    }
    *rate = (double)got * bytes / took;
    for (unsigned i = 0; i < batch && good; i++)
        good = memcmp(b->to + (size_t)i * bytes, object(b, bytes, keys[i]), bytes) == 0;
    return good || fail("Redis", "an answer is missing or wrong");
}

static bool of_mooncake(struct bench *b, enum reader reader, uint32_t bytes, unsigned batch, double *rate)
{
    struct kvf_mooncake_rate got = {0};
    bool good = kvf_mooncake_get(b->mooncake, bytes, objects(bytes), batch, b->slice, &got);
    *rate = got.bytes_per_s;
    return good;
}

/* ------------------------------------------------------------------------------------------------- rows */

/* The rows of one of ours beside both rivals. */
static void rows(struct bench *b, enum reader reader, uint32_t bytes, unsigned batch, double rates[READERS][ROUNDS_MAX],
                 const bool *there)
{
    static const char *const names[READERS] = {[REDIS] = "Redis", [MOONCAKE] = "Mooncake Store"};
    double value = rates[reader][b->rounds / 2] / 1e9;
    char name[96];
    snprintf(name, sizeof name, "%s %u KiB, %u a call", transports[reader], bytes / 1024, batch);
    for (unsigned i = REDIS; i < READERS; i++) {
        const struct kvf_bench_result row = {.name = name, .unit = "GB/s", .value = value, .p50 = value, .n = b->rounds,
                                             .p99 = rates[reader][0] / 1e9, .limit_name = names[i],
                                             .limit_value = rates[i][b->rounds / 2] / 1e9};
        if (there[i])
            kvf_bench_add(b->bench, &row);
    }
}

static bool compare(struct bench *b, uint32_t bytes, unsigned batch)
{
    typedef bool (*measure_fn)(struct bench *, enum reader, uint32_t, unsigned, double *);
    static const measure_fn measure[READERS] = {ours, ours, of_redis, of_mooncake};
    const bool there[READERS] = {true, true, b->redis && bytes <= REDIS_VALUE_MAX, b->mooncake != NULL};
    double rates[READERS][ROUNDS_MAX] = {0};
    for (unsigned round = 0; round < b->rounds; round++) {
        for (unsigned i = 0; i < READERS; i++) {
            if (there[i] && !measure[i](b, (enum reader)i, bytes, batch, &rates[i][round]))
                return false;
        }
    }
    for (unsigned i = 0; i < READERS; i++)
        kvf_bench_sort(rates[i], b->rounds);
    rows(b, OURS_TCP, bytes, batch, rates, there);
    rows(b, OURS_AUTO, bytes, batch, rates, there);
    return true;
}

static bool size_run(struct bench *b, uint32_t bytes)
{
    static const unsigned batches[] = {1, 16, BATCH_MAX};
    bool good = true;
    if (b->mooncake && !kvf_mooncake_put(b->mooncake, bytes, objects(bytes)))
        return false;
    if (b->redis && bytes <= REDIS_VALUE_MAX) {
        for (unsigned i = 0; i < objects(bytes) && good; i++)
            good = kvf_redis_set(b->redis, i, 1, object(b, bytes, i), bytes);
    }
    for (unsigned i = 0; i < sizeof batches / sizeof *batches && good; i++) {
        if ((uint64_t)batches[i] * bytes <= CALL_BYTES)
            good = compare(b, bytes, batches[i]);
    }
    return good && (!b->mooncake || kvf_mooncake_remove(b->mooncake, bytes, objects(bytes)));
}

static bool all_sizes(struct bench *b)
{
    static const uint32_t sizes[] = {4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20};
    unsigned n = b->bench->n_sizes ? b->bench->n_sizes : sizeof sizes / sizeof *sizes;
    bool good = true;
    b->slice = b->bench->seconds / (n * 3 * READERS * b->rounds);
    for (unsigned i = 0; i < n && good; i++)
        good = size_run(b, b->bench->n_sizes ? b->bench->sizes[i] : sizes[i]);
    return good;
}

/* ------------------------------------------------------------------------------------------------- life */

static bool nodes_start(struct bench *b)
{
    struct kvf_config *config;
    bool good = true;
    if (kvf_config_create(&config) != KVF_OK)
        return fail("starting", "no memory");
    const struct kvf_settings *s = kvf_config_settings(config); /* a node's defaults */
    for (unsigned i = 0; i < 2 && good; i++) {
        struct kvf_fabric_nodes_options options = {.transport = transports[i], .interface = s->fabric_interface,
                                                   .segment_bytes = s->fabric_segment, .inflight_bytes = s->fabric_inflight,
                                                   .spin_ns = s->reactor_spin_ns, .memory_bytes = 2ull * CALL_BYTES,
                                                   .servers = 1, .readers = 1};
        b->nodes[i] = kvf_fabric_nodes_create(b->region, &options);
        good = b->nodes[i] != NULL;
    }
    kvf_config_destroy(config);
    return good;
}

static void stop(struct bench *b)
{
    if (b->mooncake)
        kvf_mooncake_stop(b->mooncake);
    if (b->redis)
        kvf_redis_stop(b->redis);
    /* The later processes hold the earlier ones' pipes too. */
    for (unsigned i = 2; i-- > 0;)
        if (b->nodes[i])
            kvf_fabric_nodes_destroy(b->nodes[i]);
    if (b->region)
        kvf_fabric_region_destroy(b->region);
    free(b->to);
    free(b);
}

bool kvf_bench_rivals_run(struct kvf_bench *bench)
{
    struct bench *b = calloc(1, sizeof *b);
    if (!b)
        return fail("starting", "no memory");
    b->bench = bench;
    b->rounds = bench->rounds ? bench->rounds : 5;
    b->to = malloc(CALL_BYTES);
    b->region = kvf_fabric_region_create(OBJECT_BYTES, bench->seed);
    bool good = b->to && b->region && nodes_start(b);
    if (good) {
        b->redis = kvf_redis_start();
        b->mooncake = kvf_mooncake_start(bench->python ? bench->python : "python3", 8 * OBJECT_BYTES, CALL_BYTES);
        good = b->redis || b->mooncake || fail("starting", "no rival is installed");
    }
    json_object_set_new(bench->config, "redis", json_boolean(b->redis != NULL));
    json_object_set_new(bench->config, "mooncake_store", json_boolean(b->mooncake != NULL));
    json_object_set_new(bench->config, "rounds", json_integer(b->rounds));
    good = good && all_sizes(b);
    bench->verified = good;
    stop(b);
    return good;
}
