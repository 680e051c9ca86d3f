/* The cache in KVFabric: the calls of kvf.h, one to one. */
#include "cache.h"

#include "engine.h"

#include <math.h>
#include <string.h>
#include <time.h>

#define TRIES 7            /* more, of a call that found a limit reached or did not get all blocks in time */
#define PAUSE_NS 10000000u /* before the first of them; doubled for each further one: 1.3 s in all */

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

/* Whether to make a call again that gave `st` at try number `i`; waits a little first, because a peer or a disk that is
 * overloaded needs some time and not more questions. */
static bool again(enum kvf_status st, unsigned i)
{
    if ((st != KVF_ERR_DEADLINE && st != KVF_ERR_BUSY) || i >= TRIES)
        return false;
    uint64_t ns = (uint64_t)PAUSE_NS << i;
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
    return true;
}

static enum kvf_status begin(struct llm_cache *cache, const int32_t *tokens, uint32_t n)
{
    struct llm_cache_kvf *c = (struct llm_cache_kvf *)cache;
    enum kvf_status st = kvf_step_begin(c->session, tokens, n);
    for (unsigned i = 0; again(st, i); i++)
        st = kvf_step_begin(c->session, tokens, n);
    return st;
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
    for (unsigned i = 0; again(st, i); i++)
        st = kvf_step_append(c->session, layer, k, v);
    c->append_ns += llm_engine_now_ns() - start;
    return st;
}

static enum kvf_status attend(struct llm_cache *cache, uint32_t layer, const float *q, float *out)
{
    struct llm_cache_kvf *c = (struct llm_cache_kvf *)cache;
    struct kvf_attend_options options = {.scale = c->scale, .budget = c->budget};
    uint64_t start = llm_engine_now_ns();
    enum kvf_status st = kvf_step_attend(c->session, layer, q, out, &options);
    for (unsigned i = 0; again(st, i); i++) {
        c->deadlines++;
        st = kvf_step_attend(c->session, layer, q, out, &options);
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
