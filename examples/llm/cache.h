/* The KV cache as the engine sees it: a table of the calls of one step, with two implementations that give the same bits.
 * cache_plain.c keeps everything in ordinary memory; cache_kvf.c hands everything to KVFabric. */
#ifndef LLM_CACHE_H
#define LLM_CACHE_H

#include "model.h"

#include <kvf/kvf.h>

#define LLM_BLOCK_TOKENS 64

struct llm_cache {
    /* Opens a step that adds n tokens (1..KVF_STEP_TOKENS_MAX), or recomputes n committed ones from position `first`. */
    enum kvf_status (*begin)(struct llm_cache *cache, const int32_t *tokens, uint32_t n);
    enum kvf_status (*refill)(struct llm_cache *cache, uint64_t first, uint32_t n);
    /* K and V of the step [n][kv_heads][dim], then the attention of its queries [n][q_heads][dim]. */
    enum kvf_status (*append)(struct llm_cache *cache, uint32_t layer, const float *k, const float *v);
    enum kvf_status (*attend)(struct llm_cache *cache, uint32_t layer, const float *q, float *out);
    enum kvf_status (*commit)(struct llm_cache *cache);
    void (*abort)(struct llm_cache *cache);
    /* After KVF_LOST: the ranges to recompute, and the committed tokens to do it with, as kvf_session_lost and
     * kvf_session_tokens give them. NULL in a cache that loses nothing. */
    enum kvf_status (*lost)(struct llm_cache *cache, struct kvf_range *ranges, size_t max, size_t *count);
    enum kvf_status (*tokens)(struct llm_cache *cache, uint64_t first, uint64_t n, int32_t *out);
};

/* The model's KV shape for KVFabric; the plain cache lays its blocks out by the same numbers. */
void llm_cache_describe(const struct llm_model *model, struct kvf_model_desc *out);

/* ---- plain memory */
struct llm_cache_plain;

/* Room for `tokens` tokens. The model and the pool must outlive it. NULL when out of memory. */
struct llm_cache_plain *llm_cache_plain_create(const struct llm_model *model, struct llm_pool *pool, uint64_t tokens);
void llm_cache_plain_destroy(struct llm_cache_plain *plain);
struct llm_cache *llm_cache_plain_table(struct llm_cache_plain *plain);
/* Forgets all tokens from position `tokens` on. */
void llm_cache_plain_cut(struct llm_cache_plain *plain, uint64_t tokens);

/* ---- KVFabric */
struct llm_cache_kvf {
    struct llm_cache table;
    struct kvf_session *session; /* borrowed */
    float budget;                /* share of the chunks to attend to; 0 for all */
    float scale;
    /* What happened, for the report. */
    uint64_t deadlines; /* attends that ran out of time, or found the node busy, and were tried again */
    uint64_t attend_ns; /* spent in kvf_step_attend, pauses before a new try included */
    uint64_t append_ns; /* ... in kvf_step_append */
};
void llm_cache_kvf_init(struct llm_cache_kvf *kvf, const struct llm_model *model, struct kvf_session *session);
#endif
