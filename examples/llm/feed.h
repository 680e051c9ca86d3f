/* Feeds tokens to the engine step by step, and repairs what KVFabric lost: one struct per cache. */
#ifndef LLM_FEED_H
#define LLM_FEED_H

#include "engine.h"

struct llm_feed {
    struct llm_engine *engine;
    struct llm_cache *cache;
    uint64_t position; /* tokens committed */

    /* What repair had to do. */
    uint64_t lost_ranges, recomputed_tokens;
};

/* One step of n tokens (1..KVF_STEP_TOKENS_MAX): begin, forward, commit. When K and V are lost on the way, the step is
 * given up, the lost ranges are computed again from the session's tokens, and the step is repeated; a bounded number of
 * times, then KVF_LOST. Other failures are returned with the step aborted and nothing changed. */
enum kvf_status llm_feed_step(struct llm_feed *feed, const int32_t *tokens, uint32_t n, enum llm_logits which, float *logits);
#endif
