/* kvf bench cache: the device cache's pass over one partition, beside the selection of the same step and a copy of its chunks.
 *
 * 256 of 15,000 chunks are selected per step (120,000 tokens in chunks of 8, KV heads of dimension 128), of which most were
 * selected in the step before; 512 slots. The pass is hit test, victims, slot map and the shadow's sample: `cache_step` as the
 * node calls it, for one head. */
#include "bench/bench.h"
#include "base/hash.h"
#include "kernels/dev.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNKS = 15000, SELECTED = 256, SLOTS = 512, STEPS = 64, DIM = 128, GROUP = 4, CHUNK_BYTES = 8 * 2 * DIM * 2, CASES = 6 };

/* One partition. */
struct part {
    const struct kvf_dev *dev;
    struct kvf_cache_step step;
    struct kvf_cache_result result;
    struct kvf_shadow shadow;
    uint32_t chunk[SLOTS], place[SLOTS], scratch[2 * SLOTS], places[SELECTED], misses[SELECTED];
    struct kvf_chunk_state state[SLOTS];
    struct inputs *in;
    uint32_t at;
    uint64_t missed, steps;
};

struct inputs {
    uint32_t selected[STEPS][SELECTED];
    float scores[STEPS][CHUNKS];
    float *summaries, *out; /* [CHUNKS][DIM], [CHUNKS] */
    float q[GROUP * DIM];
    uint8_t *from, *to; /* [CHUNKS] and [SELECTED] chunks */
    const struct kvf_dev *dev;
    uint32_t at;
};

static float uniform(uint64_t seed, uint64_t a, uint64_t b)
{
    return (float)(kvf_mix(kvf_mix(seed, a), b) >> 40) / 16777216.0f;
}

/* Every step replaces a seventh of the selection, mostly within a tenth of the chunks; what is selected scores higher. */
static void inputs_make(struct inputs *in, uint64_t seed)
{
    static uint8_t wanted[CHUNKS];
    uint32_t recent = CHUNKS / 10, n = 0;
    memset(wanted, 0, sizeof wanted);
    for (uint64_t i = 0; n < SELECTED; i++) {
        uint32_t c = (uint32_t)(uniform(seed, 1, i) * (float)recent);
        n += !wanted[c];
        wanted[c] = 1;
    }
    for (uint32_t t = 0; t < STEPS; t++) {
        for (uint32_t i = 0, draws = 0; i < SELECTED / 7; i++) {
            uint32_t goes, comes;
            do
                goes = (uint32_t)(uniform(seed, 2 + t, draws++) * CHUNKS);
            while (!wanted[goes]);
            do
                comes = (uint32_t)(uniform(seed, 2 + t, draws++) * (float)(i % 8 ? recent : CHUNKS));
            while (wanted[comes]);
            wanted[goes] = 0;
            wanted[comes] = 1;
        }
        n = 0;
        for (uint32_t c = 0; c < CHUNKS; c++) {
            in->scores[t][c] = uniform(seed, 1000 + t, c) * (wanted[c] ? 1e-2f : 1e-3f);
            if (wanted[c])
                in->selected[t][n++] = c;
        }
    }
    for (uint32_t i = 0; i < CHUNKS * DIM; i++)
        in->summaries[i] = uniform(seed, 3000, i) - 0.5f;
    for (uint32_t i = 0; i < GROUP * DIM; i++)
        in->q[i] = uniform(seed, 3001, i) - 0.5f;
    memset(in->from, 1, (size_t)CHUNKS * CHUNK_BYTES);
}

static void part_init(struct part *p, struct inputs *in, const struct kvf_dev *dev, enum kvf_chunk_policy policy, bool sampled)
{
    memset(p, 0, sizeof *p);
    p->dev = dev;
    p->in = in;
    p->step = (struct kvf_cache_step){.chunk = p->chunk, .place = p->place, .state = p->state, .scratch = p->scratch,
                                      .slots = SLOTS, .keep = SLOTS, .rule = kvf_chunk_rule_of(policy),
                                      .n_selected = SELECTED, .n_chunks = CHUNKS, .places = p->places, .misses = p->misses,
                                      .shadow = sampled ? &p->shadow : NULL, .clock = {0, 1, 4}, .result = &p->result};
    for (uint32_t i = 0; i < SLOTS; i++) {
        p->chunk[i] = KVF_CACHE_NONE;
        p->place[i] = i * (CHUNK_BYTES / KVF_CACHE_UNIT);
    }
}

static void part_run(void *arg)
{
    struct part *p = arg;
    uint32_t t = p->at++ % STEPS;
    p->step.selected = p->in->selected[t];
    p->step.scores = p->in->scores[t];
    p->step.now = (struct kvf_chunk_now){.step = p->at, .threshold = 1e-3f};
    p->dev->cache_step(p->dev, NULL, &p->step, 1);
    p->missed += p->result.misses;
    p->steps++;
}

static void copy_run(void *arg)
{
    struct inputs *in = arg;
    const uint32_t *selected = in->selected[in->at++ % STEPS];
    for (uint32_t i = 0; i < SELECTED; i++)
        memcpy(in->to + (size_t)i * CHUNK_BYTES, in->from + (size_t)selected[i] * CHUNK_BYTES, CHUNK_BYTES);
}

static void score_run(void *arg)
{
    struct inputs *in = arg;
    in->dev->score(in->dev, NULL, KVF_SUMMARY_MEAN, in->summaries, CHUNKS, DIM, in->q, DIM, GROUP, 0.1f, in->out);
}

/* The same steps by the reference: slots, places and lists must be the same. */
static bool part_check(struct inputs *in, enum kvf_chunk_policy policy)
{
    static struct part fast, slow;
    part_init(&fast, in, in->dev, policy, true);
    part_init(&slow, in, kvf_dev_cpu_reference(), policy, true);
    for (uint32_t i = 0; i < 2 * STEPS; i++) {
        part_run(&fast);
        part_run(&slow);
        if (memcmp(fast.chunk, slow.chunk, sizeof fast.chunk) || memcmp(fast.places, slow.places, sizeof fast.places) ||
            memcmp(fast.misses, slow.misses, fast.result.misses * sizeof *fast.misses) ||
            memcmp(&fast.result, &slow.result, sizeof fast.result) || memcmp(&fast.shadow, &slow.shadow, sizeof fast.shadow)) {
            fprintf(stderr, "kvf bench cache: step %u differs from the reference\n", i);
            return false;
        }
    }
    return true;
}

static void add(struct kvf_bench *bench, const char *name, const struct kvf_bench_case *one, const char *limit,
                const struct kvf_bench_case *beside)
{
    struct kvf_bench_result r = {.name = name, .unit = "us", .value = 1e6 / kvf_bench_rate(one, 50),
                                 .p50 = 1e6 / kvf_bench_rate(one, 50), .p99 = 1e6 / kvf_bench_rate(one, 99), .n = one->rounds,
                                 .limit_name = limit, .limit_value = beside ? 1e6 / kvf_bench_rate(beside, 50) : 0};
    kvf_bench_add(bench, &r);
}

static bool measure(struct kvf_bench *bench, struct inputs *in)
{
    static struct part parts[4];
    static const enum kvf_chunk_policy policies[4] = {KVF_CHUNK_LRU, KVF_CHUNK_SCORE, KVF_CHUNK_BLEND, KVF_CHUNK_BLEND};
    static const char *const names[4] = {"pass, lru", "pass, score", "pass, blend", "pass, blend, without samples"};
    struct kvf_bench_case cases[CASES];
    for (int i = 0; i < 4; i++) {
        if (!part_check(in, policies[i]))
            return false;
        part_init(&parts[i], in, in->dev, policies[i], i < 3);
        cases[i] = (struct kvf_bench_case){.run = part_run, .arg = &parts[i], .work = 1};
    }
    cases[4] = (struct kvf_bench_case){.run = copy_run, .arg = in, .work = 1};
    cases[5] = (struct kvf_bench_case){.run = score_run, .arg = in, .work = 1};
    bench->verified = true;
    kvf_bench_interleave(cases, CASES, bench->seconds > 0 ? bench->seconds : 5);
    for (int i = 0; i < 4; i++) {
        add(bench, names[i], &cases[i], "copy", &cases[4]);
        add(bench, names[i], &cases[i], "score", &cases[5]);
    }
    add(bench, "copy of the selected chunks", &cases[4], NULL, NULL);
    add(bench, "score of all chunks", &cases[5], NULL, NULL);
    json_object_set_new(bench->config, "table", json_string(in->dev->name));
    json_object_set_new(bench->config, "chunks", json_integer(CHUNKS));
    json_object_set_new(bench->config, "selected", json_integer(SELECTED));
    json_object_set_new(bench->config, "slots", json_integer(SLOTS));
    json_object_set_new(bench->config, "chunk_bytes", json_integer(CHUNK_BYTES));
    json_object_set_new(bench->config, "misses_per_step", json_real((double)parts[2].missed / (double)parts[2].steps));
    return true;
}

bool kvf_bench_cache_run(struct kvf_bench *bench)
{
    struct inputs *in = calloc(1, sizeof *in);
    bool good = in != NULL;
    if (good) {
        in->dev = kvf_dev_cpu();
        in->summaries = aligned_alloc(64, (size_t)CHUNKS * DIM * sizeof *in->summaries);
        in->out = calloc(CHUNKS, sizeof *in->out);
        in->from = aligned_alloc(4096, (size_t)CHUNKS * CHUNK_BYTES);
        in->to = aligned_alloc(4096, (size_t)SELECTED * CHUNK_BYTES);
        good = in->summaries && in->out && in->from && in->to;
    }
    if (!good)
        fprintf(stderr, "kvf bench cache: out of memory\n");
    if (good) {
        inputs_make(in, bench->seed);
        good = measure(bench, in);
    }
    if (in) {
        free(in->summaries);
        free(in->out);
        free(in->from);
        free(in->to);
    }
    free(in);
    return good;
}
