/* kvf bench policy: miss curves of the rules for device caches, on selections that a real model made.
 *
 * Every log is replayed, one cache per (layer, KV head), at capacities from one to several times the largest choice of a step,
 * through every rule of kernels/chunk_policy.h and through Belady's optimum (replay.h says under which terms). */
#include "bench/bench.h"
#include "bench/replay.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOWS = 5, SHARES = 48 };

static const double capacities[] = {1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0};
enum { N_CAPACITIES = sizeof capacities / sizeof *capacities };

/* The optimum and the rules with a capacity; WINDOW has none and stands apart. */
enum { OPTIMUM, LRU, LFU, SCORE, OURS, SHARED, N_LINES };
static const struct {
    const char *name;
    enum kvf_chunk_policy policy;
} lines[N_LINES] = {
    [OPTIMUM] = {"optimum", KVF_CHUNK_LRU}, [LRU] = {"lru", KVF_CHUNK_LRU},     [LFU] = {"lfu", KVF_CHUNK_LFU},
    [SCORE] = {"score", KVF_CHUNK_SCORE},   [OURS] = {"blend", KVF_CHUNK_BLEND}, [SHARED] = {"blend-shared", KVF_CHUNK_BLEND},
};

struct curves {
    const char *name; /* of the log, without folders */
    struct kvf_selections log;
    struct kvf_replay *replay;
    double miss[N_LINES][N_CAPACITIES];                /* percent */
    double window_miss[WINDOWS], window_held[WINDOWS]; /* percent; multiples of the largest choice */
};

static uint32_t streams_of(const struct curves *c)
{
    return c->log.layers * c->log.heads;
}

static uint32_t capacity_of(const struct curves *c, double times)
{
    return (uint32_t)ceil(times * c->log.chosen_max);
}

static double percent(const struct kvf_replay_result *r)
{
    return r->chosen ? 100.0 * (double)r->missed / (double)r->chosen : 0;
}

static double equal_quotas(struct curves *c, unsigned line, double times)
{
    struct kvf_chunk_rule rule = kvf_chunk_rule_of(lines[line].policy);
    struct kvf_replay_result r = {0};
    for (uint32_t s = 0; s < streams_of(c); s++)
        kvf_replay_run(c->replay, s, capacity_of(c, times), line == OPTIMUM ? NULL : &rule, &r);
    return percent(&r);
}

/* ---------------------------------------------------------------- capacity shared out among the streams */

/* One stream's misses at need, need + step, need + 2 step, ... */
struct share {
    uint32_t need, at;
    uint64_t missed[SHARES];
};

/* The next point of a curve to go to: the one with the largest gain per step, which is the curve's concave hull. */
static uint32_t best_next(const struct share *s, double *gain)
{
    uint32_t best = s->at;
    *gain = 0;
    for (uint32_t i = s->at + 1; i < SHARES; i++) {
        double g = ((double)s->missed[s->at] - (double)s->missed[i]) / (i - s->at);
        if (g > *gain) {
            *gain = g;
            best = i;
        }
    }
    return best;
}

/* Gives out what all streams together have, by marginal gain, and counts what is missed then. */
static uint64_t share_out(struct share *shares, uint32_t n, uint64_t total, uint32_t step)
{
    uint64_t used = 0, missed = 0;
    for (uint32_t s = 0; s < n; s++) {
        shares[s].at = 0;
        used += shares[s].need;
    }
    for (;;) {
        uint32_t who = n, to = 0;
        double most = 0, gain;
        for (uint32_t s = 0; s < n; s++) {
            uint32_t next = best_next(&shares[s], &gain);
            if (gain > most && used + (uint64_t)(next - shares[s].at) * step <= total) {
                most = gain;
                who = s;
                to = next;
            }
        }
        if (who == n)
            break;
        used += (uint64_t)(to - shares[who].at) * step;
        shares[who].at = to;
    }
    for (uint32_t s = 0; s < n; s++)
        missed += shares[s].missed[shares[s].at];
    return missed;
}

/* The same total as equal quotas, given out with the whole log known: what sharing can win at most with our rule. */
static bool shared_quotas(struct curves *c)
{
    uint32_t n = streams_of(c), step = c->log.chosen_max / 8 ? c->log.chosen_max / 8 : 1;
    struct kvf_chunk_rule rule = kvf_chunk_rule_of(KVF_CHUNK_BLEND);
    struct share *shares = calloc(n, sizeof *shares);
    uint64_t chosen = 0;
    if (!shares)
        return false;
    for (uint32_t s = 0; s < n; s++) {
        shares[s].need = kvf_replay_need(c->replay, s);
        for (uint32_t i = 0; i < SHARES; i++) {
            struct kvf_replay_result r = {0};
            kvf_replay_run(c->replay, s, shares[s].need + i * step, &rule, &r);
            shares[s].missed[i] = r.missed;
            chosen += i ? 0 : r.chosen;
        }
    }
    for (unsigned i = 0; i < N_CAPACITIES; i++)
        c->miss[SHARED][i] = chosen ? 100.0 * (double)share_out(shares, n, (uint64_t)capacity_of(c, capacities[i]) * n, step) /
                                          (double)chosen
                                    : 0;
    free(shares);
    return true;
}

/* ---------------------------------------------------------------- one log */

static void windows(struct curves *c)
{
    for (uint32_t w = 0; w < WINDOWS; w++) {
        struct kvf_chunk_rule rule = kvf_chunk_rule_of(KVF_CHUNK_WINDOW);
        struct kvf_replay_result r = {0};
        rule.window = w + 1;
        for (uint32_t s = 0; s < streams_of(c); s++)
            kvf_replay_run(c->replay, s, c->log.chunks_max + 1, &rule, &r);
        c->window_miss[w] = percent(&r);
        c->window_held[w] = r.steps ? (double)r.held / (double)r.steps / c->log.chosen_max : 0;
    }
}

/* What must hold whatever the log: no rule beats the optimum, and more room never makes the optimum worse. */
static bool plausible(const struct curves *c)
{
    for (unsigned i = 0; i < N_CAPACITIES; i++)
        for (unsigned line = LRU; line < SHARED; line++)
            if (c->miss[line][i] < c->miss[OPTIMUM][i] || c->miss[line][i] > 100 ||
                (i && c->miss[OPTIMUM][i] > c->miss[OPTIMUM][i - 1])) {
                fprintf(stderr, "kvf bench: %s: impossible miss rates\n", c->name);
                return false;
            }
    return true;
}

static void print(const struct curves *c)
{
    printf("%s: %s, %u layers x %u heads, %u steps, budget %.3g %%, at most %u of %u chunks of %u tokens chosen (mean %.1f)\n",
           c->name, c->log.model, c->log.layers, c->log.heads, c->log.steps, 100 * (double)c->log.budget, c->log.chosen_max,
           c->log.chunks_max, c->log.chunk_tokens, (double)c->log.chosen / c->log.steps / streams_of(c));
    printf("  chosen in the last N steps:");
    for (unsigned w = 0; w < WINDOWS; w++)
        printf("  %u: %.1f %% (%.2fx)", w + 1, 100 - c->window_miss[w], c->window_held[w]);
    printf("\n  %-14s", "miss % at");
    for (unsigned i = 0; i < N_CAPACITIES; i++)
        printf(" %6.2fx", capacities[i]);
    for (unsigned line = 0; line < N_LINES; line++) {
        printf("\n  %-14s", lines[line].name);
        for (unsigned i = 0; i < N_CAPACITIES; i++)
            printf(" %7.2f", c->miss[line][i]);
    }
    printf("\n");
    for (unsigned i = 0; i < N_CAPACITIES; i++)
        if (c->miss[OURS][i] >= c->miss[SCORE][i] || c->miss[OURS][i] >= c->miss[LRU][i])
            printf("  blend does not beat %s at %.2fx\n", c->miss[OURS][i] >= c->miss[SCORE][i] ? "score" : "lru", capacities[i]);
    printf("\n");
}

static void add(struct kvf_bench *bench, const struct curves *c)
{
    char name[160];
    for (unsigned line = 0; line < N_LINES; line++)
        for (unsigned i = 0; i < N_CAPACITIES; i++) {
            snprintf(name, sizeof name, "%.100s %s %.2fx", c->name, lines[line].name, capacities[i]);
            kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "miss %", .value = c->miss[line][i],
                                                            .p50 = c->miss[line][i], .p99 = c->miss[line][i],
                                                            .n = c->log.chosen,
                                                            .limit_name = line == OPTIMUM ? NULL : "optimum",
                                                            .limit_value = c->miss[OPTIMUM][i]});
        }
    for (unsigned w = 0; w < WINDOWS; w++) {
        snprintf(name, sizeof name, "%.100s window %u", c->name, w + 1);
        kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "miss %", .value = c->window_miss[w],
                                                        .p50 = c->window_miss[w], .p99 = c->window_miss[w], .n = c->log.chosen});
        snprintf(name, sizeof name, "%.100s window %u holds", c->name, w + 1);
        kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "x", .value = c->window_held[w],
                                                        .p50 = c->window_held[w], .p99 = c->window_held[w], .n = c->log.chosen});
    }
}

static bool replay_all(struct curves *c)
{
    c->replay = kvf_replay_create(&c->log);
    if (!c->replay) {
        fprintf(stderr, "kvf bench: not enough memory for %s\n", c->name);
        return false;
    }
    for (unsigned line = 0; line < SHARED; line++)
        for (unsigned i = 0; i < N_CAPACITIES; i++)
            c->miss[line][i] = equal_quotas(c, line, capacities[i]);
    windows(c);
    bool good = shared_quotas(c) && plausible(c);
    kvf_replay_destroy(c->replay);
    return good;
}

static bool one_log(struct kvf_bench *bench, const char *path)
{
    struct curves c = {.name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path};
    const char *why = kvf_selections_load(&c.log, path);
    if (why) {
        fprintf(stderr, "kvf bench: %s: %s\n", path, why);
        return false;
    }
    bool good = replay_all(&c);
    if (good) {
        print(&c);
        add(bench, &c);
    }
    kvf_selections_free(&c.log);
    return good;
}

bool kvf_bench_policy_run(struct kvf_bench *bench)
{
    json_t *names = json_array();
    bool good = bench->n_logs > 0;
    if (!good)
        fprintf(stderr, "kvf bench: policy needs --log FILE, which llm --record writes\n");
    for (unsigned i = 0; i < bench->n_logs && good; i++) {
        json_array_append_new(names, json_string(bench->logs[i]));
        good = one_log(bench, bench->logs[i]);
    }
    json_object_set_new(bench->config, "logs", names);
    bench->printed = true;
    bench->verified = good;
    return good;
}
