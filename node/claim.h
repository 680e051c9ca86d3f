/* This node's right to its own DRAM: while its own blocks are pushed out of DRAM, or read from below it, others give back what they
 * have of the lent part, down to lend.min; when that is over for long, they may have it again. docs/PROTOCOL.md, "Lending". */
#ifndef KVF_NODE_CLAIM_H
#define KVF_NODE_CLAIM_H

#include "node/internal.h"

struct kvf_claim {
    uint64_t limit_bytes;                    /* what it leaves to others; all of the lent part while nothing is claimed */
    uint64_t window_ns, churn_bytes;         /* since when, and what was pushed out or read from below since then */
    uint64_t calm_ns, wait_ns;               /* since when own DRAM suffices; after how long of this others get some back */
    uint64_t returned_ns;                    /* when they last did; 0: something was claimed since */
    uint64_t leaving_bytes;                  /* what has to leave DRAM because others may have more again: no churn */
};

void kvf_claim_create(struct kvf_core *core);
/* A block of ours leaves DRAM for want of room. */
void kvf_claim_left(struct kvf_core *core, const struct kvf_entry *entry);
/* So many bytes of it were read below DRAM. */
void kvf_claim_read(struct kvf_core *core, const struct kvf_entry *entry, uint64_t bytes);
/* Lent memory is back within lend.reclaim_within: whoever can waits for that, rather than push blocks out. */
bool kvf_claim_waits(const struct kvf_core *core);
/* Nothing takes blocks that have to leave. true: lent memory is, or comes soon, in their place. */
bool kvf_claim_urge(struct kvf_core *core);
unsigned kvf_claim_poll(struct kvf_core *core);
uint64_t kvf_claim_next_timer(const struct kvf_core *core, uint64_t now_ns);
#endif
