/* What attend.c and step.c share. */
#ifndef KVF_NODE_STEP_H
#define KVF_NODE_STEP_H

#include "node/internal.h"

struct kvf_ask;

/* One block of one head in an attend. */
struct kvf_want {
    kvf_handle handle;   /* KVF_HANDLE_NONE: an open block of the tail */
    uint32_t stage;      /* pinned, or KVF_STAGE_NONE */
    const uint8_t *data; /* pinned DRAM or the stage's slot; NULL: not there yet */
    const uint64_t *sums; /* the block's words: read without the lock, unchanged while the stage is pinned */
    uint64_t mask;       /* chunks to attend to */
    /* under a budget with a device cache; else 0 */
    bool known;          /* sealed, and its chunks' scores mean something: it goes through the cache */
    uint64_t cached;     /* of mask: lie in the cache */
    uint64_t fresh;      /* of mask: have a place there that is to be filled */
    const uint32_t *places; /* of the chunks of mask, in their order */
    bool dram_pinned;
    /* asked of its holder (attend_remote.h) */
    struct kvf_ask *ask; /* NULL: not, or no more */
    uint8_t item;        /* of the ask */
    bool arrived;        /* its part is here */
    bool pull;           /* it was asked for in vain */
    _Atomic bool bad; /* did not verify */
};

/* device.c. Where the scores of one head's `chunks` chunks go for kvf_device_step; NULL: there is no device cache for it. */
float *kvf_device_scores(struct kvf_sess *sess, uint32_t head, uint32_t chunks);
/* One step of one layer through the cache: sets cached, fresh and places of wants [blocks][kv_heads], all sealed blocks.
 * thresholds[kv_heads]: the lowest score that was chosen for its score. kvf_device_scores gave room for every head. */
void kvf_device_step(struct kvf_sess *sess, uint32_t layer, struct kvf_want *wants, uint32_t blocks, const float *thresholds);
const uint8_t *kvf_device_at(const struct kvf_core *core, uint32_t place);
/* Copies the fresh chunks of a want into their places: `data` is its block as attention reads it, verified; of a view, which is
 * verified behind its use, again if it did not match. Without the lock. */
void kvf_device_fill(struct kvf_core *core, const struct kvf_want *want, const uint8_t *data, uint32_t chunk_bytes);
/* The attend is over: places that are still to be filled are taken back. */
void kvf_device_end(struct kvf_sess *sess, uint32_t layer, struct kvf_want *wants, uint32_t blocks);
#endif
