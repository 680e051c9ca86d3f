/* The cache in KVFabric: the calls of kvf.h, one to one. */
#include "cache.h"

#include "engine.h"

#include <math.h>
#include <string.h>

#define ATTEND_TRIES 5 /* of one layer, when not all blocks came in time */

void llm_cache_describe(const struct llm_model *model, struct kvf_model_desc *out)
{
    *out = (struct kvf_model_desc){
        .weights_id = model->weights_id,
        .layers = model->layers, .kv_heads = model->kv_heads, .q_heads = model->q_heads,
        .dim_k = model->dim, .dim_v = model->dim,
        .dtype = KVF_F16,
        .chunk_tokens = LLM_BLOCK_TOKENS,
        .block_tokens = LLM_BLOCK_TOKENS,
    };
    memcpy(out->name, model->name, sizeof out->name);
    /* The smallest chunk of at least 4096 bytes: one page, one direct read. */
    while (out->chunk_tokens > 4 && out->chunk_tokens / 2 * 2 * model->dim * sizeof(uint16_t) >= 4096)
        out->chunk_tokens /= 2;
}

static enum kvf_status begin(struct llm_cache *cache, const int32_t *tokens, uint32_t n)
{
    return kvf_step_begin(((struct llm_cache_kvf *)cache)->session, tokens, n);
}

static enum kvf_status refill(struct llm_cache *cache, uint64_t first, uint32_t n)
{
    return kvf_step_refill(((struct llm_cache_kvf *)cache)->session, first, n);
}

static enum kvf_status append(struct llm_cache *cache, uint32_t layer, const float *k, const float *v)
{
    struct llm_cache_kvf *c = (struct llm_cache_kvf *)cache;
    uint64_t start = llm_engine_now_ns();
    enum kvf_status st = kvf_step_append(c->session, layer, k, v);
    c->append_ns += llm_engine_now_ns() - start;
    return st;
}

static enum kvf_status attend(struct llm_cache *cache, uint32_t layer, const float *q, float *out)
{
    struct llm_cache_kvf *c = (struct llm_cache_kvf *)cache;
    struct kvf_attend_options options = {.scale = c->scale, .budget = c->budget};
    uint64_t start = llm_engine_now_ns();
    enum kvf_status st = KVF_ERR_DEADLINE;
    for (unsigned i = 0; i < ATTEND_TRIES && st == KVF_ERR_DEADLINE; i++) {
        st = kvf_step_attend(c->session, layer, q, out, &options);
        c->deadlines += st == KVF_ERR_DEADLINE;
    }
    c->attend_ns += llm_engine_now_ns() - start;
    return st;
}

static enum kvf_status commit(struct llm_cache *cache)
{
    return kvf_step_commit(((struct llm_cache_kvf *)cache)->session);
}

static void abort_step(struct llm_cache *cache)
{
    kvf_step_abort(((struct llm_cache_kvf *)cache)->session);
}

static enum kvf_status lost(struct llm_cache *cache, struct kvf_range *ranges, size_t max, size_t *count)
{
    return kvf_session_lost(((struct llm_cache_kvf *)cache)->session, ranges, max, count);
}

static enum kvf_status tokens(struct llm_cache *cache, uint64_t first, uint64_t n, int32_t *out)
{
    return kvf_session_tokens(((struct llm_cache_kvf *)cache)->session, first, n, out);
}

void llm_cache_kvf_init(struct llm_cache_kvf *c, const struct llm_model *model, struct kvf_session *session)
{
    *c = (struct llm_cache_kvf){
        .table = {begin, refill, append, attend, commit, abort_step, lost, tokens},
        .session = session,
        .scale = 1.0f / sqrtf((float)model->dim),
    };
}
