#include "feed.h"

#define REPAIRS_MAX 16 /* of one step: more means that blocks are lost faster than they are recomputed */
#define RANGES_MAX 64

/* Computes n committed tokens from `first` again. */
static enum kvf_status refill_part(struct llm_feed *f, uint64_t first, uint32_t n)
{
    int32_t tokens[KVF_STEP_TOKENS_MAX];
    enum kvf_status st = f->cache->tokens(f->cache, first, n, tokens);
    if (st != KVF_OK)
        return st;
    st = f->cache->refill(f->cache, first, n);
    if (st == KVF_OK)
        st = llm_engine_forward(f->engine, f->cache, tokens, n, first, LLM_LOGITS_NONE, NULL);
    if (st == KVF_OK)
        st = f->cache->commit(f->cache);
    if (st != KVF_OK)
        f->cache->abort(f->cache);
    else
        f->recomputed_tokens += n;
    return st;
}

/* Recomputes everything that is lost now. KVF_LOST when more was lost meanwhile. */
static enum kvf_status repair(struct llm_feed *f)
{
    struct kvf_range ranges[RANGES_MAX];
    size_t count;
    for (unsigned i = 0; i < REPAIRS_MAX; i++) {
        enum kvf_status st = f->cache->lost(f->cache, ranges, RANGES_MAX, &count);
        if (st != KVF_OK || count == 0)
            return st;
        for (size_t r = 0; r < count; r++) {
            uint64_t at = ranges[r].first, end = at + ranges[r].count;
            f->lost_ranges++;
            while (at < end) {
                uint32_t n = end - at < KVF_STEP_TOKENS_MAX ? (uint32_t)(end - at) : KVF_STEP_TOKENS_MAX;
                st = refill_part(f, at, n);
                if (st != KVF_OK)
                    return st;
                at += n;
            }
        }
    }
    return KVF_LOST;
}

enum kvf_status llm_feed_step(struct llm_feed *f, const int32_t *tokens, uint32_t n, enum llm_logits which, float *logits)
{
    enum kvf_status st = KVF_LOST;
    for (unsigned i = 0; i < REPAIRS_MAX && st == KVF_LOST; i++) {
        st = f->cache->begin(f->cache, tokens, n);
        if (st == KVF_OK)
            st = llm_engine_forward(f->engine, f->cache, tokens, n, f->position, which, logits);
        if (st == KVF_OK)
            st = f->cache->commit(f->cache);
        if (st == KVF_OK) {
            f->position += n;
            return KVF_OK;
        }
        f->cache->abort(f->cache);
        if (st == KVF_LOST && f->cache->lost) {
            enum kvf_status repaired = repair(f);
            if (repaired != KVF_OK && repaired != KVF_LOST)
                return repaired;
        }
    }
    return st;
}
