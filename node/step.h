/* What attend.c and step.c share. */
#ifndef KVF_NODE_STEP_H
#define KVF_NODE_STEP_H

#include "node/internal.h"

/* One block of one head in an attend. */
struct kvf_want {
    kvf_handle handle;   /* KVF_HANDLE_NONE: an open block of the tail */
    uint32_t stage;      /* pinned, or KVF_STAGE_NONE */
    const uint8_t *data; /* pinned DRAM or the stage's slot; NULL: not there yet */
    const uint64_t *sums; /* the block's words: read without the lock, unchanged while the stage is pinned */
    uint64_t mask;       /* chunks to attend to */
    bool dram_pinned;
    _Atomic bool bad; /* did not verify */
};
#endif
