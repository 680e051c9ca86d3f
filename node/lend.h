/* What lend.c (the slots that others have of us) and reclaim.c (getting them back) share. docs/PROTOCOL.md, "Lending". */
#ifndef KVF_NODE_LEND_H
#define KVF_NODE_LEND_H

#include "node/claim.h"
#include "node/reclaim.h"
#include "node/wire.h"

#define KVF_DEAD_MAX 32       /* borrowers that are gone and whose blocks are kept */
#define KVF_PEER_DEAD 0xf000u /* + place in the table: whose a slot is, in place of a peer's number */
#define KVF_ASKS_MAX 16       /* RECLAIMs under way */

/* States of a slot: RESERVED (for a borrower, who writes it) -> WHOLE (verified) <-> ASKED (he was told to move it away). */
enum kvf_lent_state { KVF_LENT_RESERVED, KVF_LENT_WHOLE, KVF_LENT_ASKED };

/* A borrower that etcd no longer lists. */
struct kvf_dead {
    char name[KVF_NODE_NAME_MAX]; /* "": free */
    uint64_t incarnation;
    uint64_t until_ns;            /* its blocks are kept */
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
};

static inline bool kvf_lend_is_dead(const struct kvf_entry *slot)
{
    return slot->peer >= KVF_PEER_DEAD && slot->peer < KVF_PEER_DEAD + KVF_DEAD_MAX;
}

void kvf_lend_slot_free(struct kvf_core *core, kvf_handle slot);
void kvf_lend_check(const struct kvf_core *core); /* lists and counts agree with the slots, by assert: for tests */
/* Every change of a slot's state goes through this, so that the counts agree. */
void kvf_lend_slot_state(struct kvf_core *core, struct kvf_entry *slot, enum kvf_lent_state state);
/* reclaim.c */
void kvf_reclaim_create(struct kvf_core *core);
unsigned kvf_reclaim_poll(struct kvf_core *core);
#endif
