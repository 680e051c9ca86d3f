/* The device cache: chunks that attention selected lately, in the device's memory, whatever tier their blocks lie in.
 *
 *   one arena of device memory, cut into places of a chunk each (sizes per model; memory moves between them)
 *   session  opened with layers x KV heads partitions
 *   partition  `slots` slots, each with a place; a quota of slots that moves with what it is worth
 *
 * One step of a layer is one call for all its heads (kernels/dev.h, `cache_step`): hits, victims and places come out of one pass
 * on the device, and every partition's shadow samples what a larger or a smaller quota would hit. Now and then a few partitions are
 * compared, and slots go from the one that loses least by it to the one that gains most. So the shares follow what
 * the heads do while they run; there is no profile made before.
 *
 * The cache knows chunk numbers, not bytes: the caller copies what missed into its place, or takes it back with kvf_cache_forget
 * before anybody else looks. Chunks never change, so what is here stays right until the caller forgets it.
 *
 * Limits: memory is asked for at create, open, and when a partition's table of slots must grow beyond twice what it ever was;
 * a step in which no shares move allocates nothing. One thread at a time. */
#ifndef KVF_TIERS_CACHE_H
#define KVF_TIERS_CACHE_H

#include "kernels/dev.h"

struct kvf_cache;
struct kvf_cache_session;

struct kvf_cache_options {
    uint64_t bytes; /* of the arena, at most 2^39 */
    enum kvf_chunk_policy policy;
    uint64_t seed;  /* of the choice of partitions that are compared */
};

struct kvf_cache_stats {
    uint64_t capacity_bytes;
    uint64_t used_bytes;  /* in places of partitions */
    uint64_t table_bytes; /* slots, shadows: beside the arena */
    uint64_t hits, misses, uncached, evictions; /* chunks; uncached: of the misses those without a place */
    uint64_t moves;       /* times that slots changed their partition */
    uint64_t sessions;
    bool broken;          /* the device failed: what its slots hold is not known, so nothing is served from here any more */
};

/* ERR_INVALID (too small or too large), ERR_NO_MEMORY, or what the device says. dev must outlive it. */
enum kvf_status kvf_cache_create(const struct kvf_dev *dev, const struct kvf_cache_options *options, struct kvf_cache **out);
void kvf_cache_destroy(struct kvf_cache *cache); /* after every session's close; NULL is allowed */

/* Room for a session's partitions; it takes its fair share from the others. ERR_INVALID: chunks of this size do not fit here. */
enum kvf_status kvf_cache_open(struct kvf_cache *cache, uint32_t layers, uint32_t heads, uint32_t chunk_bytes,
                               struct kvf_cache_session **out);
/* Its places are free at once: nobody may be reading them. NULL is allowed. */
void kvf_cache_close(struct kvf_cache_session *session);

/* What one head selected. All arrays in memory that the device reads and writes (alloc_host of it). */
struct kvf_cache_want {
    const uint32_t *selected; /* [n_selected] rising; at most KVF_CACHE_SELECTED_MAX */
    uint32_t n_selected;
    const float *scores;      /* [n_chunks] of this step, or NULL */
    float threshold;          /* the lowest score that was selected for its score; 0: not known */
    uint32_t *places;         /* out: [n_selected] KVF_CACHE_NONE, or what kvf_cache_at takes */
    uint32_t *misses;         /* out: rising indices into selected of those whose bytes are not here */
    uint32_t n_misses;        /* out */
};
/* One step of one layer: wants[heads]. `step` counts the session's steps, n_chunks never shrinks. Until kvf_cache_end the places
 * are the caller's to read, and those of misses to fill. The session's next step ends this one. An error is the device's: from then
 * on every step fails. */
enum kvf_status kvf_cache_step(struct kvf_cache_session *session, uint32_t layer, uint32_t step, uint32_t n_chunks,
                               struct kvf_cache_want *wants);
/* The caller reads no places of this session any more: others may have those above its shares. */
void kvf_cache_end(struct kvf_cache_session *session);
uint8_t *kvf_cache_at(const struct kvf_cache *cache, uint32_t place);
/* Chunks [from, to) of one head are not here any more: they were never filled, or their block's bytes are no longer believed. */
void kvf_cache_forget(struct kvf_cache_session *session, uint32_t layer, uint32_t head, uint32_t from, uint32_t to);

void kvf_cache_stats(const struct kvf_cache *cache, struct kvf_cache_stats *out);
uint32_t kvf_cache_quota(const struct kvf_cache_session *session, uint32_t layer, uint32_t head);
/* Every invariant, by assert: for tests. Reads what the device wrote, so only where that is the host's memory. */
void kvf_cache_check(const struct kvf_cache *cache);
#endif
