/* A node that is to be stopped: it takes on nothing more of others, and gets rid of what it has of them. */
#ifndef KVF_NODE_DRAIN_H
#define KVF_NODE_DRAIN_H

#include "node/internal.h"

struct kvf_drain_stats {
    bool draining, empty;          /* empty: it is draining, and has nothing of others any more */
    uint64_t lent_bytes;           /* others' blocks here, those of dead nodes too */
    uint64_t departed_sessions, departed_blocks; /* that moved away, and whose new homes still fetch blocks from here */
    uint64_t incoming_sessions;    /* on their way here when it began */
    uint64_t home_sessions;        /* that have their home here: they are for the operator to move, or end with the node */
};

/* Begins: nothing is lent from now on and no session is taken in; borrowers have `within_ns` to move what they have here. Or ends
 * it: what was lent before may be lent again. Takes the lock; any thread. */
void kvf_drain_set(struct kvf_core *core, bool on, uint64_t within_ns);
/* Under the lock. */
void kvf_drain_stats(const struct kvf_core *core, struct kvf_drain_stats *out);
#endif
