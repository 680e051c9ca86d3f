/* kvf bench attend: attention over chunks at a lender in another process, by pulling them, in the lender's memory where that is
 * mapped, and by asking for it (attend.remote), over TCP and over shared memory, by the number of chunks and the head dimension.
 * Every turn is one kvf_step_attend, end to end, with nothing in staging; pulling, asking and what the node chooses itself take
 * turns. Results are compared with those of a node that has the session in its own DRAM: the same bits, or, of merged parts,
 * within the bound. */
#include "base/env.h"
#include "base/hash.h"
#include "bench/bench.h"
#include "bench/lender.h"
#include "node/attend_remote.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK_TOKENS = 8, CHUNKS = 2048, BLOCK_TOKENS = 128, GROUP = 4, DIM_MAX = 256, ROUNDS_MAX = 101, WARM_UP = 40 };
enum { TOKENS = CHUNKS * CHUNK_TOKENS, STEP = 256 };
#define BOUND 2e-4 /* relative, L2: two results that are each within 1e-4 of the exact one */

enum way { PULLED, IN_PLACE, ASKED, CHOSEN, MERGED, WAYS };
static const char *const way_names[WAYS] = {"pulled", "in place", "asked", "chosen", "asked, merged"};
static const uint32_t dims[] = {64, 128, 256};
static const uint32_t counts[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
enum { N_DIMS = sizeof dims / sizeof *dims, N_COUNTS = sizeof counts / sizeof *counts };

/* One (transport, dimension, number of chunks). */
struct point {
    double us[WAYS], us_p99[WAYS];
    double wire[WAYS]; /* bytes of chunks, or of questions and answers, in one attend */
    double chunks;     /* that really lay at the lender */
    double asked;      /* share of the attends that chose to ask */
};

struct attend_bench {
    struct kvf_bench *bench;
    const char *transport;
    struct kvf_node *home, *plain; /* plain: alone, with everything in DRAM */
    struct kvf_session *s, *twin;
    struct kvf_model_desc desc;
    unsigned rounds;
    float *k, *v, *q, *out, *want;
    double error; /* the largest of merged parts so far */
};

static bool fail(const char *what, enum kvf_status st)
{
    fprintf(stderr, "kvf bench attend: %s: %s\n", what, kvf_status_text(st));
    return false;
}

static void fill(float *to, uint64_t seed, uint64_t what, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = (float)(int32_t)(uint32_t)(kvf_mix(kvf_mix(seed, what), i) >> 16) * (1.0f / 2147483648.0f);
}

/* ---------------------------------------------------------------- the session */

/* The step's K and V; committed, or open for attends. */
static enum kvf_status step(struct attend_bench *b, struct kvf_session *s, uint64_t first, uint32_t n, bool commit)
{
    int32_t tokens[STEP] = {0};
    enum kvf_status st = kvf_step_begin(s, tokens, n);
    fill(b->k, b->bench->seed, first * 2, (size_t)n * b->desc.dim_k);
    fill(b->v, b->bench->seed, first * 2 + 1, (size_t)n * b->desc.dim_v);
    if (st == KVF_OK)
        st = kvf_step_append(s, 0, b->k, b->v);
    return st == KVF_OK && commit ? kvf_step_commit(s) : st;
}

static struct kvf_session *session_make(struct attend_bench *b, struct kvf_node *node)
{
    struct kvf_model *model;
    struct kvf_session *s = NULL;
    enum kvf_status st = kvf_model_open(node, &b->desc, &model);
    if (st == KVF_OK)
        st = kvf_session_create(node, model, b->desc.dim_k, &s);
    for (uint64_t at = 0; at < TOKENS && st == KVF_OK; at += STEP)
        st = step(b, s, at, STEP, true);
    if (st == KVF_OK)
        st = step(b, s, TOKENS, 1, false); /* stays open: attends may be repeated */
    if (st == KVF_OK)
        return s;
    fail("making the session", st);
    return NULL;
}

static uint64_t counted(const struct attend_bench *b, size_t offset)
{
    return kvf_counted((const _Atomic uint64_t *)((const char *)&b->home->core->counters + offset));
}
#define COUNTED(b, name) counted(b, offsetof(struct kvf_counters, name))

/* Waits until what can go down is down, so that nothing else moves while attends are timed. */
static bool settle(struct attend_bench *b)
{
    uint64_t before = UINT64_MAX, now;
    for (unsigned i = 0; i < 500; i++, before = now) {
        usleep(100000);
        now = COUNTED(b, spill_remote_blocks);
        if (now == before && now > 0)
            return true;
    }
    return fail("no blocks went to the lender", KVF_ERR_FULL);
}

/* ---------------------------------------------------------------- one attend */

static void way_set(struct attend_bench *b, enum way way)
{
    struct kvf_core *core = b->home->core;
    uint64_t cursor = 0;
    kvf_core_lock(core);
    core->in_place = way != PULLED;
    kvf_attend_remote_mode_set(core, way <= IN_PLACE ? KVF_ATTEND_OFF : way == CHOSEN ? KVF_ATTEND_AUTO : KVF_ATTEND_ALWAYS);
    core->attend_merged = way == MERGED;
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;)
        kvf_stage_drop(core, h);
    kvf_core_unlock(core);
}

/* Relative L2 error of out against want. */
static double error_of(const struct attend_bench *b)
{
    double error = 0, norm = 0;
    for (uint32_t i = 0; i < GROUP * b->desc.dim_v; i++) {
        error += ((double)b->out[i] - b->want[i]) * ((double)b->out[i] - b->want[i]);
        norm += (double)b->want[i] * b->want[i];
    }
    return sqrt(error / norm);
}

/* Microseconds; below 0 after a line on standard error. *wire: bytes of chunks, questions and answers. *asked: the holder was. */
static double attend(struct attend_bench *b, enum way way, const struct kvf_attend_options *options, double *wire, bool *asked)
{
    way_set(b, way);
    uint64_t bytes = COUNTED(b, remote_bytes_read) + COUNTED(b, attend_wire_bytes), there = COUNTED(b, attend_there_blocks);
    double start = kvf_bench_now();
    enum kvf_status st = kvf_step_attend(b->s, 0, b->q, b->out, options);
    double us = (kvf_bench_now() - start) * 1e6;
    if (st != KVF_OK) {
        fail("attending", st);
        return -1;
    }
    *wire = (double)(COUNTED(b, remote_bytes_read) + COUNTED(b, attend_wire_bytes) - bytes);
    *asked = COUNTED(b, attend_there_blocks) > there;
    double error = error_of(b);
    if (way == MERGED && error > b->error)
        b->error = error;
    if (error <= (way == MERGED ? BOUND : 0))
        return us;
    fprintf(stderr, "kvf bench attend: %s differs by %.1e from what lies in DRAM\n", way_names[way], error);
    return -1;
}

/* Ways from `first` to `last`, in turns. */
static bool measure(struct attend_bench *b, enum way first, enum way last, const struct kvf_attend_options *options,
                    struct point *p)
{
    static double us[WAYS][ROUNDS_MAX], wire[WAYS][ROUNDS_MAX]; /* benches have one thread */
    unsigned asked = 0;
    for (unsigned round = 0; round < b->rounds; round++) {
        for (unsigned turn = 0; turn <= last - first; turn++) {
            unsigned way = first + (round + turn) % (last - first + 1);
            bool there;
            us[way][round] = attend(b, (enum way)way, options, &wire[way][round], &there);
            if (us[way][round] < 0)
                return false;
            asked += way == CHOSEN && there;
        }
    }
    for (unsigned way = first; way <= last; way++) {
        kvf_bench_sort(us[way], b->rounds);
        kvf_bench_sort(wire[way], b->rounds);
        p->us[way] = us[way][b->rounds / 2];
        p->us_p99[way] = us[way][(b->rounds - 1) * 99 / 100];
        p->wire[way] = wire[way][b->rounds / 2];
    }
    if (first <= CHOSEN && last >= CHOSEN)
        p->asked = (double)asked / b->rounds;
    return true;
}

static bool point_measure(struct attend_bench *b, uint32_t count, struct point *p)
{
    struct kvf_attend_options options = {.budget = (float)count / (CHUNKS + BLOCK_TOKENS / CHUNK_TOKENS), .sink_tokens = 1,
                                         .local_tokens = 1};
    double unused;
    bool there;
    enum kvf_status st = kvf_step_attend(b->twin, 0, b->q, b->want, &options);
    if (st != KVF_OK)
        return fail("attending in DRAM", st);
    for (unsigned i = 0; i < WARM_UP; i++) /* the node learns, as it does in use; its first probes too */
        if (attend(b, i < 4 ? ASKED : CHOSEN, &options, &unused, &there) < 0)
            return false;
    if (!measure(b, PULLED, CHOSEN, &options, p))
        return false;
    p->chunks = p->wire[PULLED] / (CHUNK_TOKENS * 2.0 * 2.0 * b->desc.dim_k);
    return measure(b, MERGED, MERGED, &options, p);
}

/* ---------------------------------------------------------------- results */

static void add(struct attend_bench *b, uint32_t count, const char *what, const char *unit, double value, double p99,
                const char *limit, double limit_value)
{
    char name[96];
    snprintf(name, sizeof name, "%s, dim %u, %u chunks: %s", b->transport, b->desc.dim_k, count, what);
    kvf_bench_add(b->bench, &(struct kvf_bench_result){.name = name, .unit = unit, .value = value, .p50 = value, .p99 = p99,
                                                       .n = b->rounds, .limit_name = limit, .limit_value = limit_value});
}

static void point_report(struct attend_bench *b, uint32_t count, const struct point *p)
{
    double best = fmin(p->us[IN_PLACE], p->us[ASKED]);
    add(b, count, "in place", "us", p->us[IN_PLACE], p->us_p99[IN_PLACE], "pulled", p->us[PULLED]);
    add(b, count, "asked", "us", p->us[ASKED], p->us_p99[ASKED], "pulled", p->us[PULLED]);
    add(b, count, "asked, merged", "us", p->us[MERGED], p->us_p99[MERGED], "pulled", p->us[PULLED]);
    add(b, count, "chosen", "us", p->us[CHOSEN], p->us_p99[CHOSEN], "the faster", best);
    add(b, count, "bytes asked", "bytes", p->wire[ASKED], p->wire[ASKED], "pulled", p->wire[PULLED]);
    add(b, count, "bytes asked, merged", "bytes", p->wire[MERGED], p->wire[MERGED], "pulled", p->wire[PULLED]);
    printf("%-4s %4u %6u %7.0f  %9.1f %9.1f %9.1f %9.1f %9.1f   %8.1f %8.1f %8.1f  %5.0f %%  %5.2f\n", b->transport, b->desc.dim_k,
           count, p->chunks, p->us[PULLED], p->us[IN_PLACE], p->us[ASKED], p->us[MERGED], p->us[CHOSEN], p->wire[PULLED] / 1024,
           p->wire[ASKED] / 1024, p->wire[MERGED] / 1024, 100 * p->asked, p->us[CHOSEN] / best);
    fflush(stdout);
}

/* From which number of chunks on the way was faster than pulling (in place, where that goes) in every point,
 * or (CHOSEN) the node mostly asked; 0: in none. */
static uint32_t break_even(const struct point *points, enum way way)
{
    uint32_t from = 0;
    for (unsigned i = 0; i < N_COUNTS; i++) {
        bool faster = way == CHOSEN ? points[i].asked > 0.5 : points[i].us[way] < points[i].us[IN_PLACE];
        from = !faster ? 0 : from ? from : counts[i];
    }
    return from;
}

static bool dim_run(struct attend_bench *b, uint32_t dim)
{
    struct point points[N_COUNTS] = {0};
    double regret = 0;
    bool good = true;
    b->desc = (struct kvf_model_desc){.weights_id = b->bench->seed, .layers = 1, .kv_heads = 1, .q_heads = GROUP, .dim_k = dim,
                                      .dim_v = dim, .dtype = KVF_F16, .chunk_tokens = CHUNK_TOKENS, .block_tokens = BLOCK_TOKENS};
    snprintf(b->desc.name, sizeof b->desc.name, "bench-%u", dim);
    b->twin = session_make(b, b->plain);
    b->s = b->twin ? session_make(b, b->home) : NULL;
    fill(b->q, b->bench->seed, 1ull << 40, (size_t)GROUP * dim);
    good = b->s && settle(b);
    for (unsigned i = 0; i < N_COUNTS && good; i++) {
        good = point_measure(b, counts[i], &points[i]);
        if (good)
            point_report(b, counts[i], &points[i]);
        regret += good ? points[i].us[CHOSEN] / fmin(points[i].us[IN_PLACE], points[i].us[ASKED]) : 0;
    }
    if (good) {
        uint32_t at = break_even(points, ASKED), merged = break_even(points, MERGED), chosen = break_even(points, CHOSEN);
        add(b, 0, "asking pays from", "chunks", at, at, NULL, 0);
        add(b, 0, "the node asks from", "chunks", chosen, chosen, NULL, 0);
        add(b, 0, "merged pays from", "chunks", merged, merged, NULL, 0);
        add(b, 0, "chosen beside the faster, mean", "times", regret / N_COUNTS, regret / N_COUNTS, NULL, 0);
        printf("%-4s %4u asking pays from %u chunks on, merged from %u (0: never); the node asks from %u on, and takes %.2f times "
               "the faster way's time\n\n", b->transport, dim, at, merged, chosen, regret / N_COUNTS);
    }
    for (int i = 0; i < 2; i++) {
        struct kvf_session *s = i ? b->twin : b->s;
        if (s) {
            kvf_step_abort(s);
            kvf_session_drop(s);
        }
    }
    return good;
}

static bool transport_run(struct attend_bench *b, const struct kvf_bench_etcd *etcd)
{
    static const char *const small[] = {"dram.bytes", "1M", "fetch.staging", "64M", "block.count_max", "65536", NULL};
    static const char *const large[] = {"dram.bytes", "64M", "block.count_max", "65536", NULL};
    struct kvf_node_stats stats = {0};
    b->home = kvf_bench_node_open(etcd, "home", b->transport, small);
    b->plain = kvf_bench_node_open(etcd, "plain", NULL, large);
    bool good = b->home && b->plain;
    for (unsigned i = 0; good && i < 1000 && stats.tier[KVF_TIER_REMOTE].capacity_bytes == 0; i++) {
        usleep(10000);
        good = kvf_node_stats(b->home, &stats) == KVF_OK;
    }
    for (unsigned i = 0; i < N_DIMS && good; i++)
        good = dim_run(b, dims[i]);
    kvf_node_close(b->home);
    kvf_node_close(b->plain);
    return good;
}

bool kvf_bench_attend_run(struct kvf_bench *bench)
{
    static const char *const transports[] = {"tcp", "shm"};
    struct kvf_bench_lender *lenders[2] = {NULL, NULL};
    struct attend_bench b = {.bench = bench};
    size_t row = (size_t)STEP * DIM_MAX;
    float *memory = calloc(2 * row + 3 * GROUP * DIM_MAX, sizeof *memory);
    struct kvf_bench_etcd *etcd = memory ? kvf_bench_etcd_start() : NULL;
    bool good = etcd != NULL;
    b.k = memory;
    b.v = b.k + row;
    b.q = b.v + row;
    b.out = b.q + GROUP * DIM_MAX;
    b.want = b.out + GROUP * DIM_MAX;
    b.rounds = (unsigned)fmin(fmax(bench->seconds * 1.5, 5), ROUNDS_MAX);
    json_object_set_new(bench->config, "tokens", json_integer(TOKENS));
    json_object_set_new(bench->config, "chunk_tokens", json_integer(CHUNK_TOKENS));
    json_object_set_new(bench->config, "block_tokens", json_integer(BLOCK_TOKENS));
    json_object_set_new(bench->config, "rows", json_integer(GROUP));
    json_object_set_new(bench->config, "bound", json_real(BOUND));
    json_object_set_new(bench->config, "device", json_string(kvf_dev_cpu()->name));
    for (unsigned i = 0; i < 2 && good; i++)
        good = (lenders[i] = kvf_bench_lender_start(etcd, transports[i], "64M")) != NULL;
    printf("%-4s %4s %6s %7s  %9s %9s %9s %9s %9s   %8s %8s %8s  %7s  %5s\n", "", "dim", "chunks", "remote", "pulled us",
           "place us", "asked us", "merged us", "chosen us", "pulled K", "asked K", "merged K", "asks", "ratio");
    for (unsigned i = 0; i < 2 && good; i++) {
        b.transport = transports[i];
        good = transport_run(&b, etcd);
    }
    json_object_set_new(bench->config, "error_of_merged_parts", json_real(b.error));
    for (unsigned i = 0; i < 2; i++)
        kvf_bench_lender_stop(lenders[i]);
    kvf_bench_etcd_stop(etcd);
    free(memory);
    bench->verified = good;
    bench->printed = good;
    return good;
}
