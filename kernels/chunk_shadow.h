/* What a partition of the chunk cache would hit if it were larger or smaller, sampled while it runs.
 *
 * A policy whose value of a chunk does not depend on the capacity is a stack algorithm (Mattson 1970): what a cache of w chunks
 * holds, one of w + 1 holds too, so the contents for all capacities are one stack, and a chunk found at depth d hits in every
 * cache of more than d chunks. The stack here holds at most KVF_SHADOW_TAGS chunks, those whose hash ends in `shift` zero bits:
 * a sample of 1 / 2^shift of the chunks behaves like a cache of 1 / 2^shift of the size (SHARDS, Waldspurger 2015). hits[d] is
 * the decayed number of sampled hits at depth d, so the cumulated counts are the partition's hit curve:
 *
 *   hits per step of a cache of w chunks  ~  2^shift * (hits[0] + ... + hits[w / 2^shift - 1])
 *
 * In one step the chosen chunks go on top. For every capacity w the others that stay are the w - |chosen| of highest value among
 * those that were within w; going through w in rising order, each place takes the best that was met and has none yet.
 *
 * Pure functions over the struct, the same in C and in CUDA (one thread). */
#ifndef KVF_KERNELS_CHUNK_SHADOW_H
#define KVF_KERNELS_CHUNK_SHADOW_H

#include "kernels/chunk_policy.h"

enum { KVF_SHADOW_TAGS = 128, KVF_SHADOW_SHIFT_MAX = 16 };

/* Decay without touching the counts at every step: what comes later weighs more, and all partitions use one clock, so that their
 * counts compare. Counts lose half per epoch. */
struct kvf_shadow_clock {
    uint32_t epoch;
    float weight; /* 1 .. 2 within an epoch */
    uint32_t shift; /* the rate to sample at */
};

struct kvf_shadow {
    uint32_t shift, n, epoch;
    uint32_t chunk[KVF_SHADOW_TAGS]; /* the stack, top first */
    struct kvf_chunk_state state[KVF_SHADOW_TAGS];
    float hits[KVF_SHADOW_TAGS];
    float cold; /* sampled choices that no cache would have held, or only one beyond the stack */
};

static inline KVF_HD int kvf_shadow_samples(uint32_t chunk, uint32_t shift)
{
    uint32_t x = (chunk + 1) * 0x9e3779b1u;
    x = (x ^ x >> 15) * 0x85ebca77u;
    return ((x ^ x >> 13) & ((1u << shift) - 1)) == 0;
}

static inline KVF_HD void kvf_shadow_age(struct kvf_shadow *s, uint32_t epoch)
{
    uint32_t age = epoch - s->epoch;
    float left = age < 32 ? 1.0f / (float)(1u << age) : 0;
    for (uint32_t i = 0; age && i < KVF_SHADOW_TAGS; i++)
        s->hits[i] *= left;
    s->cold *= left;
    s->epoch = epoch;
}

/* Another rate: chunks that it does not sample leave the stack, and the curve keeps its shape. */
static inline KVF_HD void kvf_shadow_rate(struct kvf_shadow *s, uint32_t shift)
{
    uint32_t n = 0;
    for (; s->shift < shift; s->shift++) /* twice the span, half the sample */
        for (uint32_t i = 0; i < KVF_SHADOW_TAGS; i++)
            s->hits[i] = i < KVF_SHADOW_TAGS / 2 ? (s->hits[2 * i] + s->hits[2 * i + 1]) / 2 : 0;
    for (; s->shift > shift; s->shift--)
        for (uint32_t i = KVF_SHADOW_TAGS; i-- > 0;)
            s->hits[i] = s->hits[i / 2];
    for (uint32_t i = 0; i < s->n; i++) {
        if (!kvf_shadow_samples(s->chunk[i], shift))
            continue;
        s->chunk[n] = s->chunk[i];
        s->state[n++] = s->state[i];
    }
    s->n = n;
}

struct kvf_shadow_stack {
    uint32_t n;
    uint32_t chunk[KVF_SHADOW_TAGS];
    struct kvf_chunk_state state[KVF_SHADOW_TAGS];
};

static inline KVF_HD void kvf_shadow_push(struct kvf_shadow_stack *to, uint32_t chunk, struct kvf_chunk_state state)
{
    if (to->n == KVF_SHADOW_TAGS)
        return;
    to->chunk[to->n] = chunk;
    to->state[to->n++] = state;
}

/* The best that waits goes to the next place. */
static inline KVF_HD void kvf_shadow_place(struct kvf_shadow_stack *to, const struct kvf_shadow *s, const float *value,
                                           uint32_t *waiting, uint32_t *n_waiting)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < *n_waiting; i++)
        best = value[waiting[i]] > value[waiting[best]] ? i : best;
    kvf_shadow_push(to, s->chunk[waiting[best]], s->state[waiting[best]]);
    for (uint32_t i = best + 1; i < *n_waiting; i++) /* in the order of the old stack: ties go to the upper */
        waiting[i - 1] = waiting[i];
    --*n_waiting;
}

/* One step: `selected` in rising order, `scores` of all chunks or NULL. */
static inline KVF_HD void kvf_shadow_step(struct kvf_shadow *s, struct kvf_chunk_rule rule, struct kvf_chunk_now now,
                                          const uint32_t *selected, uint32_t n_selected, const float *scores,
                                          struct kvf_shadow_clock clock)
{
    struct kvf_shadow_stack to;
    uint32_t fresh[KVF_SHADOW_TAGS], waiting[KVF_SHADOW_TAGS], n_fresh = 0, n_waiting = 0, chosen = 0;
    uint8_t again[KVF_SHADOW_TAGS]; /* in the stack and chosen */
    float value[KVF_SHADOW_TAGS];
    if (s->shift != clock.shift)
        kvf_shadow_rate(s, clock.shift);
    if (s->epoch != clock.epoch)
        kvf_shadow_age(s, clock.epoch);
    to.n = 0;
    for (uint32_t i = 0; i < s->n; i++)
        again[i] = 0;
    for (uint32_t i = 0; i < n_selected && chosen < KVF_SHADOW_TAGS; i++) {
        uint32_t c = selected[i], d = 0;
        if (!kvf_shadow_samples(c, s->shift))
            continue;
        chosen++;
        while (d < s->n && s->chunk[d] != c)
            d++;
        if (d < s->n)
            again[d] = 1;
        else
            fresh[n_fresh++] = c;
    }
    for (uint32_t d = 0; d < s->n; d++) {
        float score = scores ? scores[s->chunk[d]] : 0;
        if (again[d]) {
            s->hits[d] += clock.weight;
            kvf_chunk_touch(rule, &s->state[d], now, score);
            kvf_shadow_push(&to, s->chunk[d], s->state[d]);
        } else {
            value[d] = kvf_chunk_keep(rule, &s->state[d], now, score);
        }
    }
    s->cold += clock.weight * (float)n_fresh;
    for (uint32_t i = 0; i < n_fresh; i++) {
        struct kvf_chunk_state state;
        kvf_chunk_enter(rule, &state, now, scores ? scores[fresh[i]] : 0);
        kvf_shadow_push(&to, fresh[i], state);
    }
    for (uint32_t d = 0; d < s->n; d++) {
        if (!again[d])
            waiting[n_waiting++] = d;
        if (d + 1 > chosen && n_waiting)
            kvf_shadow_place(&to, s, value, waiting, &n_waiting);
    }
    while (n_waiting && to.n < KVF_SHADOW_TAGS)
        kvf_shadow_place(&to, s, value, waiting, &n_waiting);
    s->n = to.n;
    for (uint32_t d = 0; d < to.n; d++) {
        s->chunk[d] = to.chunk[d];
        s->state[d] = to.state[d];
    }
}
#endif
