/* What lend.c (the slots that others have of us), lend_wait.c (what waits for etcd's word) and reclaim.c (getting slots back)
 * share. docs/PROTOCOL.md, "Lending". */
#ifndef KVF_NODE_LEND_H
#define KVF_NODE_LEND_H

#include "node/claim.h"
#include "node/reclaim.h"
#include "node/wire.h"

#define KVF_DEAD_MAX 32       /* borrowers that are gone and whose blocks are kept */
#define KVF_PEER_DEAD 0xf000u /* + place in the table: whose a slot is, in place of a peer's number */
#define KVF_ASKS_MAX 16       /* RECLAIMs under way */
#define KVF_LEND_WAITS 64     /* messages that wait for etcd's word; more are told to come again */

/* States of a slot: RESERVED (for a borrower, who writes it) -> WHOLE (verified) <-> ASKED (he was told to move it away). */
enum kvf_lent_state { KVF_LENT_RESERVED, KVF_LENT_WHOLE, KVF_LENT_ASKED };

/* A borrower that etcd no longer lists. */
struct kvf_dead {
    char name[KVF_NODE_NAME_MAX]; /* "": free */
    uint64_t incarnation;
    uint64_t until_ns;            /* its blocks are kept */
    uint64_t expired;             /* blocks that were freed since */
    uint64_t blocks, bytes;
};

/* One RECLAIM on its way. */
struct kvf_ask {
    struct kvf_core *core;
    bool busy;
    struct kvf_node_peer *peer;
    uint64_t incarnation;
    unsigned n;
    struct kvf_place places[KVF_BATCH_MAX];
};

/* A message that is answered when our view of etcd has come to what etcd had when it arrived, or at its deadline: come again. */
struct kvf_lend_wait {
    struct kvf_node_peer *peer; /* NULL: free */
    uint16_t type;              /* ADOPT, RELEASE_ALL */
    uint64_t request, ticket, deadline_ns;
    uint64_t session, epoch;    /* of ADOPT */
};

/* Where a slot stands in its holder's list, and in that of its session (and of others whose hash is the same). */
struct kvf_lent_link {
    kvf_handle next[2], prev[2]; /* KVF_HANDLE_NONE: none */
};
enum { KVF_LENT_BY_HOLDER, KVF_LENT_BY_SESSION };

struct kvf_lend {
    struct kvf_lent_link *links;      /* [entries of the index] */
    kvf_handle *heads[2];             /* by holder_of and session_of (lend.c) */
    uint32_t session_buckets;         /* a power of two */
    struct kvf_index *index; /* of slots: location in our region; peer: the borrower; sums: when it was reserved or last
                              * known to be its borrower's, in seconds */
    uint64_t next_sweep_ns, sweep_cursor;
    struct kvf_dead dead[KVF_DEAD_MAX];
    uint64_t dead_bytes;
    uint64_t others_bytes;   /* lent to others, also to dead ones */
    uint64_t limit_bytes;    /* the most that may be: the least of what was ordered (kvf lend) and what our own claim leaves */
    uint64_t ordered_bytes;
    struct kvf_claim claim;
    uint64_t vacate_unit;    /* dram.c: where in the lent part own blocks are looked for, */
    uint32_t vacate_bucket;  /* ... and in which bucket sessions whose open blocks lie there */

    /* reclaim.c */
    uint64_t start_ns, deadline_ns; /* 0: nothing is wanted back */
    uint64_t cursor;
    unsigned forcing;               /* after the deadline: 1 takes what was asked for, 2 anything; else 0 */
    uint64_t revoked;               /* so far, this time */
    struct kvf_ask asks[KVF_ASKS_MAX];

    /* lend_wait.c */
    struct kvf_lend_wait waits[KVF_LEND_WAITS];
    unsigned n_waits;
};

static inline bool kvf_lend_is_dead(const struct kvf_entry *slot)
{
    return slot->peer >= KVF_PEER_DEAD && slot->peer < KVF_PEER_DEAD + KVF_DEAD_MAX;
}

void kvf_lend_slot_free(struct kvf_core *core, kvf_handle slot);
void kvf_lend_check(const struct kvf_core *core); /* lists and counts agree with the slots, by assert: for tests */
/* Every change of a slot's state goes through this, so that the counts agree. */
void kvf_lend_slot_state(struct kvf_core *core, struct kvf_entry *slot, enum kvf_lent_state state);
/* By what we know of etcd. The session's blocks become p's. BUSY: that epoch is not known; STALE: it is somebody else's. */
enum kvf_status kvf_lend_adopt(struct kvf_core *core, struct kvf_node_peer *p, uint64_t session, uint64_t epoch);
/* p gave up everything. What he had of sessions that have another home by now was not his to give up: its new home is about to
 * say so (ADOPT), or it goes with the sweep. */
void kvf_lend_release_all(struct kvf_core *core, const struct kvf_node_peer *p);
/* lend_wait.c. false: it has no room, or there is no etcd */
bool kvf_lend_wait_add(struct kvf_core *core, struct kvf_node_peer *p, const struct kvf_message *message, uint64_t session,
                       uint64_t epoch);
/* p wants room or blocks again, so a RELEASE_ALL of his that waits is not meant any more. */
void kvf_lend_wait_overtaken(struct kvf_core *core, const struct kvf_node_peer *p);
unsigned kvf_lend_wait_poll(struct kvf_core *core);
/* reclaim.c */
void kvf_reclaim_create(struct kvf_core *core);
unsigned kvf_reclaim_poll(struct kvf_core *core);
#endif
