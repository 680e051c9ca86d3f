#include "bench/replay.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NEVER UINT32_MAX

struct leaver {
    float value;
    uint32_t slot;
};

struct kvf_replay {
    const struct kvf_selections *log;
    uint32_t *held;                 /* [chunks] the chunks in the cache, slot by slot */
    struct kvf_chunk_state *states; /* [chunks] by slot */
    bool *here;                     /* [chunks] by chunk */
    struct leaver *leavers;         /* [chunks] */
    uint32_t *next;                 /* [steps][chunks_max] optimum: the next step after this one that chooses the chunk */
    float *thresholds;              /* [entries] the lowest score that was chosen for its score */
    uint32_t next_stream;           /* which stream `next` is of, or NEVER */
    uint32_t count;
};

static int falling(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The chosen ones hold the `best` highest scores, and those chosen for their place. */
static float threshold_of(const struct kvf_selections_entry *e, float *scores)
{
    uint32_t n = 0;
    for (uint32_t c = 0; c < e->chunks; c++) {
        float score = kvf_selections_score(e, c);
        if (kvf_selections_chose(e, c))
            scores[n++] = score > 0 ? score : 0; /* NaN is 0 */
    }
    qsort(scores, n, sizeof *scores, falling);
    return e->best ? scores[e->best - 1] : 0;
}

static bool find_thresholds(struct kvf_replay *r)
{
    size_t n = (size_t)r->log->steps * r->log->layers * r->log->heads;
    float *scores = malloc(((size_t)r->log->chunks_max + 1) * sizeof *scores);
    r->thresholds = malloc(n * sizeof *r->thresholds);
    for (size_t i = 0; scores && r->thresholds && i < n; i++)
        r->thresholds[i] = threshold_of(&r->log->entries[i], scores);
    free(scores);
    return scores && r->thresholds;
}

struct kvf_replay *kvf_replay_create(const struct kvf_selections *log)
{
    struct kvf_replay *r = calloc(1, sizeof *r);
    size_t n = (size_t)log->chunks_max + 1;
    if (!r)
        return NULL;
    *r = (struct kvf_replay){.log = log, .next_stream = NEVER};
    r->held = malloc(n * sizeof *r->held);
    r->states = malloc(n * sizeof *r->states);
    r->here = malloc(n * sizeof *r->here);
    r->leavers = malloc(n * sizeof *r->leavers);
    r->next = malloc(log->steps * n * sizeof *r->next);
    if (r->held && r->states && r->here && r->leavers && r->next && find_thresholds(r))
        return r;
    kvf_replay_destroy(r);
    return NULL;
}

void kvf_replay_destroy(struct kvf_replay *r)
{
    if (!r)
        return;
    free(r->held);
    free(r->states);
    free(r->here);
    free(r->leavers);
    free(r->next);
    free(r->thresholds);
    free(r);
}

static const struct kvf_selections_entry *entry_of(const struct kvf_replay *r, uint32_t stream, uint32_t step)
{
    return &r->log->entries[(size_t)step * r->log->layers * r->log->heads + stream];
}

uint32_t kvf_replay_need(const struct kvf_replay *r, uint32_t stream)
{
    uint32_t most = 0;
    for (uint32_t step = 0; step < r->log->steps; step++)
        most = entry_of(r, stream, step)->chosen > most ? entry_of(r, stream, step)->chosen : most;
    return most;
}

/* From the last step backwards. */
static void look_ahead(struct kvf_replay *r, uint32_t stream)
{
    uint32_t n = r->log->chunks_max;
    if (r->next_stream == stream)
        return;
    r->next_stream = stream;
    for (uint32_t step = r->log->steps; step-- > 0;) {
        uint32_t *now = r->next + (size_t)step * n;
        if (step + 1 == r->log->steps) {
            for (uint32_t c = 0; c < n; c++)
                now[c] = NEVER;
            continue;
        }
        const struct kvf_selections_entry *e = entry_of(r, stream, step + 1);
        for (uint32_t c = 0; c < n; c++)
            now[c] = c < e->chunks && kvf_selections_chose(e, c) ? step + 1 : now[n + c];
    }
}

static int lower_first(const void *a, const void *b)
{
    const struct leaver *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? -1 : 1;
    return x->slot < y->slot ? -1 : 1;
}

static int higher_slot_first(const void *a, const void *b)
{
    const struct leaver *x = a, *y = b;
    return x->slot > y->slot ? -1 : 1;
}

/* Lets go of those that are not wanted any more, and of at least `need`. */
static void let_go(struct kvf_replay *r, uint32_t n, uint32_t need)
{
    qsort(r->leavers, n, sizeof *r->leavers, lower_first);
    uint32_t go = 0;
    while (go < n && (go < need || r->leavers[go].value < 0))
        go++;
    assert(go >= need);
    qsort(r->leavers, go, sizeof *r->leavers, higher_slot_first); /* so that the last slot can fill the hole */
    for (uint32_t i = 0; i < go; i++) {
        uint32_t slot = r->leavers[i].slot;
        r->here[r->held[slot]] = false;
        r->count--;
        r->held[slot] = r->held[r->count];
        r->states[slot] = r->states[r->count];
    }
}

static void one_step(struct kvf_replay *r, uint32_t stream, uint32_t step, uint32_t capacity, const struct kvf_chunk_rule *rule,
                     struct kvf_replay_result *result)
{
    const struct kvf_selections_entry *e = entry_of(r, stream, step);
    struct kvf_chunk_now now = {.step = step, .threshold = r->thresholds[e - r->log->entries]};
    uint32_t hits = 0, n = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        uint32_t c = r->held[i];
        if (kvf_selections_chose(e, c)) {
            hits++;
            if (rule)
                kvf_chunk_touch(*rule, &r->states[i], now, kvf_selections_score(e, c));
            continue;
        }
        uint32_t next = rule ? 0 : r->next[(size_t)step * r->log->chunks_max + c];
        float value = rule ? kvf_chunk_keep(*rule, &r->states[i], now, kvf_selections_score(e, c)) : 1.0f / (float)(next - step);
        r->leavers[n++] = (struct leaver){.value = value, .slot = i};
    }
    uint32_t missed = e->chosen - hits;
    let_go(r, n, r->count + missed > capacity ? r->count + missed - capacity : 0);
    for (uint32_t c = 0; c < e->chunks; c++) {
        if (!kvf_selections_chose(e, c) || r->here[c])
            continue;
        r->here[c] = true;
        r->held[r->count] = c;
        if (rule)
            kvf_chunk_enter(*rule, &r->states[r->count], now, kvf_selections_score(e, c));
        r->count++;
    }
    if (step == 0)
        return;
    result->chosen += e->chosen;
    result->missed += missed;
    result->held += r->count;
    result->steps++;
}

void kvf_replay_run(struct kvf_replay *r, uint32_t stream, uint32_t capacity, const struct kvf_chunk_rule *rule,
                    struct kvf_replay_result *result)
{
    assert(capacity >= kvf_replay_need(r, stream));
    if (!rule)
        look_ahead(r, stream);
    memset(r->here, 0, (size_t)r->log->chunks_max * sizeof *r->here);
    r->count = 0;
    for (uint32_t step = 0; step < r->log->steps; step++)
        one_step(r, stream, step, capacity, rule, result);
}
