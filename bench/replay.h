/* Replays one stream of a selection log, the chunks that one (layer, KV head) chose step by step, through a cache of
 * `capacity` chunks that follows a rule of kernels/chunk_policy.h, or through the optimum.
 *
 * As the device cache does it: all chosen chunks are there while they are read (nothing bypasses the cache), and room for those
 * that were not is made by letting go of chunks that this step did not choose. The optimum lets go of those that are chosen again
 * the latest (Belady 1966, which no rule can beat under these terms). The first step fills an empty cache and is not counted. */
#ifndef KVF_BENCH_REPLAY_H
#define KVF_BENCH_REPLAY_H

#include "bench/selections.h"
#include "kernels/chunk_policy.h"

struct kvf_replay; /* its working memory, for one log */

struct kvf_replay_result {
    uint64_t chosen, missed;
    uint64_t held; /* chunks in the cache after every step, summed */
    uint64_t steps;
};

/* NULL when out of memory. The log must outlive it. */
struct kvf_replay *kvf_replay_create(const struct kvf_selections *log);
void kvf_replay_destroy(struct kvf_replay *r);

/* The most chunks that one step of the stream chooses: the smallest cache that can serve it. */
uint32_t kvf_replay_need(const struct kvf_replay *r, uint32_t stream);

/* Adds to *result. `rule` NULL is the optimum. capacity >= the stream's need. */
void kvf_replay_run(struct kvf_replay *r, uint32_t stream, uint32_t capacity, const struct kvf_chunk_rule *rule,
                    struct kvf_replay_result *result);
#endif
