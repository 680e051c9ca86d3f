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
 * value leave, as many as room is needed for, and all with a value below 0; the caller breaks ties by the lower slot. Also
 * chunks that were not chosen have a score of this step: that is what a rule can know beyond the past ("lookahead" in KVDrive,
 * 2605.18071 sec. 5.1).
 *
 * No globals, no clock, no allocation: a value depends on the arguments alone (a device that fuses additions may round it
 * otherwise). A score that is NaN counts as 0. The state of a slot is cleared by enter, so it needs no other start.
 *
 * BLEND, our own, looks at three things at once: how far the score of this step lies below what was chosen (in octaves, which is
 * how scores vary), the same over the last steps, and how often the chunk was chosen lately. Its constants were fitted on two
 * recorded logs and judged on others (`kvf bench policy`, bench/README.md). */
#ifndef KVF_KERNELS_CHUNK_POLICY_H
#define KVF_KERNELS_CHUNK_POLICY_H

#include <stdint.h>
#include <string.h>

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
    KVF_CHUNK_BLEND,  /* our own: score of this step and of the past, and how often it was chosen lately */
    KVF_CHUNK_POLICIES
};

/* A policy and its constants. Passed by value to a kernel. */
struct kvf_chunk_rule {
    enum kvf_chunk_policy policy;
    uint32_t window; /* WINDOW: steps, at least 1 */
    float past_weight, past_decay;   /* BLEND: of the scores before this one; what is left of them after a step, 0..1 */
    float often_weight, often_decay; /* BLEND: of the choices, alike */
};

/* What is known of the step under way. */
struct kvf_chunk_now {
    uint32_t step;   /* counts this session's steps; may wrap */
    float threshold; /* the lowest score that was chosen for its score in this step; 0 where not known */
};

/* Of one slot. */
struct kvf_chunk_state {
    uint32_t last; /* step of the last choice */
    float past;    /* BLEND: decayed mean of the scores, in octaves */
    float often;   /* LFU: choices; BLEND: decayed share of the steps that chose it */
};

static inline KVF_HD struct kvf_chunk_rule kvf_chunk_rule_of(enum kvf_chunk_policy policy)
{
    struct kvf_chunk_rule rule = {policy, 4, 0.8f, 0.88f, 4.0f, 0.84f};
    return rule;
}

/* log2 of a positive normal number, a chord of the curve between powers of two (at most 0.09 too low): monotonic, and the same
 * on every device. */
static inline KVF_HD float kvf_chunk_log2(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (float)(bits >> 23) - 127.0f + (float)(bits & 0x7fffff) * (1.0f / 8388608.0f);
}

/* How many octaves a score lies above a 2^24th of the threshold: from 0 to 32. */
static inline KVF_HD float kvf_chunk_octaves(struct kvf_chunk_now now, float score)
{
    float least = 1e-30f, low = now.threshold > least ? now.threshold : 1.0f / 256, x = score > least ? score : least;
    float d = kvf_chunk_log2(x) - kvf_chunk_log2(low) + 24;
    return d < 0 ? 0 : d > 32 ? 32 : d;
}

static inline KVF_HD void kvf_chunk_enter(struct kvf_chunk_rule rule, struct kvf_chunk_state *s, struct kvf_chunk_now now,
                                          float score)
{
    s->last = now.step;
    s->past = kvf_chunk_octaves(now, score);
    s->often = rule.policy == KVF_CHUNK_LFU ? 1 : 1 - rule.often_decay;
}

static inline KVF_HD void kvf_chunk_touch(struct kvf_chunk_rule rule, struct kvf_chunk_state *s, struct kvf_chunk_now now,
                                          float score)
{
    s->last = now.step;
    s->past = rule.past_decay * s->past + (1 - rule.past_decay) * kvf_chunk_octaves(now, score);
    s->often = rule.policy == KVF_CHUNK_LFU ? s->often + 1 : rule.often_decay * s->often + (1 - rule.often_decay);
}

/* The value of keeping a chunk that was not chosen: the lowest leaves first. */
static inline KVF_HD float kvf_chunk_keep(struct kvf_chunk_rule rule, struct kvf_chunk_state *s, struct kvf_chunk_now now,
                                          float score)
{
    uint32_t age = now.step - s->last;
    switch (rule.policy) {
    case KVF_CHUNK_LFU:
        return s->often;
    case KVF_CHUNK_SCORE:
        return score > 0 ? score : 0; /* NaN is 0 */
    case KVF_CHUNK_BLEND: {
        float d = kvf_chunk_octaves(now, score);
        s->past = rule.past_decay * s->past + (1 - rule.past_decay) * d;
        s->often = rule.often_decay * s->often;
        return d + rule.past_weight * s->past + rule.often_weight * s->often;
    }
    case KVF_CHUNK_WINDOW:
        return age >= rule.window ? -1.0f : 1.0f / (float)(age + 1);
    default:
        return 1.0f / (float)(age + 1);
    }
}
#endif
