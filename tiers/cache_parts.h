/* What cache.c and cache_share.c share. */
#ifndef KVF_TIERS_CACHE_PARTS_H
#define KVF_TIERS_CACHE_PARTS_H

#include "tiers/arena.h"
#include "tiers/cache.h"

struct kvf_cache_part {
    /* device memory, one piece from `state` on */
    struct kvf_chunk_state *state; /* [room] */
    uint32_t *chunk, *place, *scratch;
    struct kvf_shadow *shadow;
    uint32_t room;  /* slots that the tables take */
    uint32_t slots; /* that it has */
    uint32_t quota; /* that it should have: grows into it, and is cut to it, in its next step */
    uint32_t shift; /* of the shadow's sampling */
};

struct kvf_cache_session {
    struct kvf_cache *cache;
    uint32_t layers, heads, chunk_bytes;
    uint32_t number;           /* in cache->sessions */
    uint32_t step, n_chunks;   /* of the last one */
    bool busy;                 /* places of `busy_layer` are being read */
    uint32_t busy_layer;
    struct kvf_cache_part *parts; /* [layers][heads] */
    struct kvf_shadow *shadows;   /* device memory, [layers * heads] */
    struct kvf_cache_step *steps; /* [heads] */
    struct kvf_cache_result *results; /* [heads] memory of the host that the device writes */
};

struct kvf_cache {
    const struct kvf_dev *dev;
    struct kvf_cache_options options;
    uint8_t *memory;
    struct kvf_arena *arena;
    struct kvf_cache_result *result; /* of a cut */
    struct kvf_cache_session **sessions;
    uint32_t n_sessions, sessions_room;
    uint64_t parts, layers; /* of all sessions */
    uint64_t quota_bytes;   /* sum of the quotas; never above the capacity */
    uint64_t steps;
    double clock;           /* epochs of the shadows */
    uint64_t random;
    bool broken;
    uint32_t cursor_session, cursor_part; /* where the search for places above a quota goes on */
    struct kvf_cache_stats stats;
};

static inline uint32_t kvf_cache_parts_of(const struct kvf_cache_session *s)
{
    return s->layers * s->heads;
}

/* cache_share.c: who has how many slots. Bounded work per call. */
/* Quotas of a session that opens, taken in fair shares from the others. */
void kvf_cache_share_open(struct kvf_cache_session *session);
void kvf_cache_share_close(struct kvf_cache_session *session);
/* After every step: sometimes moves slots from where they are worth least to where they are worth most. */
void kvf_cache_share_step(struct kvf_cache *cache);
/* The clock that this step's samples bear. */
struct kvf_shadow_clock kvf_cache_share_clock(struct kvf_cache_part *part, uint32_t n_selected);
#endif
