/* Which chunk leaves a full device cache: pure functions over a few bytes of state per slot, the same in C and in CUDA.
 *
 * One cache of one (layer, KV head), one decode step: the selection has just given every chunk a score (dev.h, `score`: the
 * softmax maximum over the group's queries) and chosen the best. Then, per slot of the cache:
 *
 *   the chunk was chosen and is new here    kvf_chunk_enter(rule, &state, now, score)
 *   the chunk was chosen and was here       kvf_chunk_touch(rule, &state, now, score)
 *   the chunk was not chosen                value = kvf_chunk_keep(rule, &state, now, score)
 *
 * Exactly one of them once per step. Chosen chunks stay, since attention reads them now. Of the others those with the lowest
 * value leave, as many as room is needed for; the caller breaks ties by the lower slot. Also chunks that were not chosen have a
 * score of this step: that is what a rule can know beyond the past ("lookahead" in KVDrive, 2605.18071 sec. 5.1).
 *
 * No globals, no allocation, no branch on anything but the arguments: the same calls give the same bits everywhere. A score that
 * is NaN counts as 0. The state of a slot is cleared by enter, so it needs no other start. */
#ifndef KVF_KERNELS_CHUNK_POLICY_H
#define KVF_KERNELS_CHUNK_POLICY_H

#include <stdint.h>

#ifndef KVF_HD
#ifdef __CUDACC__
#define KVF_HD __host__ __device__
#else
#define KVF_HD
#endif
#endif

enum kvf_chunk_policy {
    KVF_CHUNK_LRU,    /* the one whose last choice is longest ago */
    KVF_CHUNK_LFU,    /* the one chosen least often since it came */
    KVF_CHUNK_WINDOW, /* the union of the last `window` steps' choices; what is older leaves even without need (value < 0) */
    KVF_CHUNK_SCORE,  /* KVDrive's rule: the lowest score of this step */
    KVF_CHUNK_BLEND,  /* our own: score of this step and of the past, and how lately it was chosen */
    KVF_CHUNK_POLICIES
};

/* A policy and its constants. Passed by value to a kernel. */
struct kvf_chunk_rule {
    enum kvf_chunk_policy policy;
    uint32_t window; /* WINDOW: steps, at least 1 */
    float decay;     /* BLEND: what is left of the past after one step, 0..1 */
    float recency;   /* BLEND: weight of how lately it was chosen beside the score */
};

/* What is known of the step under way. */
struct kvf_chunk_now {
    uint32_t step;   /* counts this session's steps; may wrap */
    float threshold; /* the lowest score that was chosen for its score in this step; 0 where not known */
};

/* Of one slot. */
struct kvf_chunk_state {
    uint32_t last; /* step of the last choice */
    float past;    /* LFU: choices; BLEND: decayed mean of the scores */
};

static inline KVF_HD struct kvf_chunk_rule kvf_chunk_rule_of(enum kvf_chunk_policy policy)
{
    struct kvf_chunk_rule rule = {policy, 4, 0.7f, 0.5f};
    return rule;
}

static inline KVF_HD float kvf_chunk_score(float score)
{
    return score > 0 ? score : 0; /* NaN is 0 */
}

static inline KVF_HD void kvf_chunk_enter(struct kvf_chunk_rule rule, struct kvf_chunk_state *s, struct kvf_chunk_now now,
                                          float score)
{
    s->last = now.step;
    s->past = rule.policy == KVF_CHUNK_LFU ? 1 : kvf_chunk_score(score);
}

static inline KVF_HD void kvf_chunk_touch(struct kvf_chunk_rule rule, struct kvf_chunk_state *s, struct kvf_chunk_now now,
                                          float score)
{
    s->last = now.step;
    if (rule.policy == KVF_CHUNK_LFU)
        s->past += 1;
    else
        s->past = rule.decay * s->past + (1 - rule.decay) * kvf_chunk_score(score);
}

/* The value of keeping a chunk that was not chosen: the lowest leaves first. */
static inline KVF_HD float kvf_chunk_keep(struct kvf_chunk_rule rule, struct kvf_chunk_state *s, struct kvf_chunk_now now,
                                          float score)
{
    uint32_t age = now.step - s->last;
    float x = kvf_chunk_score(score);
    switch (rule.policy) {
    case KVF_CHUNK_LFU:
        return s->past;
    case KVF_CHUNK_SCORE:
        return x;
    case KVF_CHUNK_BLEND:
        s->past = rule.decay * s->past + (1 - rule.decay) * x;
        return (x + s->past) * (1 + rule.recency / (float)(age ? age : 1));
    case KVF_CHUNK_WINDOW:
        return age >= rule.window ? -1.0f : 1.0f / (float)(age + 1);
    default:
        return 1.0f / (float)(age + 1);
    }
}
#endif
