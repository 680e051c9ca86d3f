/* Lent memory that its owner wants back: the lender's side (reclaim.c), the borrower's (yield.c). docs/PROTOCOL.md, "Lending". */
#ifndef KVF_NODE_RECLAIM_H
#define KVF_NODE_RECLAIM_H

#include "node/internal.h"

/* reclaim.c: lent memory that we want back */
struct kvf_reclaim_stats {
    uint64_t limit_bytes, others_bytes, dead_bytes; /* others may have, have, of it what dead ones left */
    uint64_t wanted_bytes, asked_bytes;             /* still to come back; of it asked for */
    uint64_t own_bytes, claimed_bytes;              /* in use by own blocks; kept from others because own DRAM was short */
    uint64_t revoked;                               /* blocks that the last time were taken by force */
};
/* From now on others have at most `limit_bytes` of the lent part. What is above it is free by the deadline, with the borrowers'
 * help or without; kvf_reclaim_busy tells until then. An earlier deadline that is still under way stands. ERR_UNSUPPORTED: this
 * node lends nothing. */
enum kvf_status kvf_reclaim_start(struct kvf_core *core, uint64_t limit_bytes, uint64_t deadline_ns);
bool kvf_reclaim_busy(const struct kvf_core *core);
/* The same for what else bounds it: what our own claim leaves to others, or the node's being drained, has just changed. */
void kvf_reclaim_limit(struct kvf_core *core, uint64_t deadline_ns);
/* ... and leaves more to others: what is wanted back still, for another reason, has the time that it was given. */
void kvf_reclaim_ease(struct kvf_core *core);
/* Starts it and waits for its end. Any thread, without the lock. *out tells how it stands then. ERR_DEADLINE: the
 * reactor is late. */
enum kvf_status kvf_reclaim_wait(struct kvf_core *core, uint64_t limit_bytes, uint64_t within_ns, struct kvf_reclaim_stats *out);
uint64_t kvf_reclaim_next_timer(const struct kvf_core *core);
void kvf_reclaim_stats(const struct kvf_core *core, struct kvf_reclaim_stats *out);

/* yield.c: blocks of ours whose lender wants his memory back */
enum kvf_status kvf_yields_create(struct kvf_core *core);
void kvf_yields_destroy(struct kvf_core *core);
void kvf_yield_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message);
unsigned kvf_yields_poll(struct kvf_core *core);
bool kvf_yields_idle(const struct kvf_core *core);
#endif
