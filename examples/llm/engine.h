/* The forward pass: n tokens through the model, with K and V in a cache (cache.h).
 *
 * DETERMINISM. Every number of a token is computed by a chain of operations that depends only on the tokens before it, not
 * on the number of tokens of the pass, on the threads or on which cache holds K and V. */
#ifndef LLM_ENGINE_H
#define LLM_ENGINE_H

#include "cache.h"

struct llm_engine;

enum llm_logits { LLM_LOGITS_NONE, LLM_LOGITS_LAST, LLM_LOGITS_ALL };

/* Buffers for passes of up to KVF_STEP_TOKENS_MAX tokens. The model and the pool must outlive it. NULL: out of memory. */
struct llm_engine *llm_engine_create(const struct llm_model *model, struct llm_pool *pool);
void llm_engine_destroy(struct llm_engine *engine);

/* Runs the layers over n tokens whose first has position `position`, in the step that is open on the cache; the caller
 * begins and commits it. `logits` gets [1 or n][vocabulary] and may be NULL with LLM_LOGITS_NONE. The first status of the
 * cache that is not KVF_OK ends the pass and is returned; the caller then aborts the step. */
enum kvf_status llm_engine_forward(struct llm_engine *engine, struct llm_cache *cache, const int32_t *tokens, uint32_t n,
                                   uint64_t position, enum llm_logits which, float *logits);

/* Index of the largest logit, the lowest of equals. */
int32_t llm_engine_argmax(const float *logits, uint32_t n);

/* Monotonic time in nanoseconds, for reports. */
uint64_t llm_engine_now_ns(void);
#endif
