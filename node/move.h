/* What move_out.c (the old home's side) and move_in.c (the target's) share. The protocol is in docs/PROTOCOL.md, "Move". */
#ifndef KVF_NODE_MOVE_H
#define KVF_NODE_MOVE_H

#include "node/internal.h"
#include "node/wire.h"

#define KVF_MOVES_MAX 16
#define KVF_MOVE_ADOPT_NS (30 * KVF_SEC)                 /* so long a new home tries to tell lenders that it is one */
#define KVF_MOVE_DISOWNED_NS (5 * KVF_SEC)               /* in this time lenders hear of it from etcd */
#define KVF_PIECE_HEADER 24 /* session id, number of the move, checksum of the rest */

/* OUT: WAITING (for blocks of the session that are being copied) -> OFFERING -> SENDING (pieces, one at a time) -> PLACING (etcd's
 *      transaction) [-> SETTLING (its outcome is not known: asked until it is)] -> COMMITTING (the target is told) -> free
 * IN:  RECEIVING -> STAGED (whole; waits for the word of the old home or of etcd) -> ADOPTING (active; lenders are told) -> free */
enum kvf_move_state {
    KVF_MOVE_FREE,
    KVF_MOVE_WAITING,
    KVF_MOVE_OFFERING,
    KVF_MOVE_SENDING,
    KVF_MOVE_PLACING,
    KVF_MOVE_SETTLING,
    KVF_MOVE_COMMITTING,
    KVF_MOVE_RECEIVING,
    KVF_MOVE_STAGED,
    KVF_MOVE_ADOPTING,
};

struct kvf_one_move {
    struct kvf_core *core;
    enum kvf_move_state state;
    uint64_t session;
    struct kvf_node_peer *peer; /* the target, or the old home */
    uint64_t incarnation;       /* of the peer when the move began */
    char peer_name[KVF_NODE_NAME_MAX];
    uint64_t deadline_ns, retry_ns;
    bool aborted; /* in: the old home keeps it, unless etcd says otherwise */
    bool calling; /* a call or a request to etcd is under way: its answer points here */

    /* out */
    struct kvf_move_outcome *outcome; /* the caller's, or NULL when it has gone */
    struct kvf_move_report report;
    uint64_t start_ns;
    uint64_t tokens_sent;
    uint64_t blocks_sent; /* of streams * sealed_blocks, by index, then stream */
    uint32_t tails_sent;  /* streams */
    bool released;        /* the target, which etcd told before us, needs nothing that lies here */
    uint8_t *piece;       /* [payload_max] */
    struct kvf_move_offer offer;

    /* in */
    uint64_t tokens_got, blocks_got, epoch;
    uint32_t tails_got;
    struct kvf_sess *sess;
    bool adopted[KVF_LENDERS_MAX];
    unsigned adopting; /* the lender that is being told */
};

struct kvf_move {
    struct kvf_one_move moves[KVF_MOVES_MAX];
    unsigned active;
    uint64_t number; /* of the last one out */
};

struct kvf_one_move *kvf_move_find(struct kvf_core *core, uint64_t session);
struct kvf_one_move *kvf_move_new(struct kvf_core *core, enum kvf_move_state state, uint64_t session, struct kvf_node_peer *peer);
void kvf_move_free(struct kvf_one_move *m);
bool kvf_move_peer_there(const struct kvf_one_move *m);

/* Whether lenders still have to hear whose blocks they hold now, of a session that moved here. */
bool kvf_moves_adopting(const struct kvf_core *core, uint64_t session);
/* Whether this one has to, of any session. */
bool kvf_moves_adopting_at(const struct kvf_core *core, const struct kvf_node_peer *lender);
/* Whether a session is on its way here from this node. */
bool kvf_moves_inward(const struct kvf_core *core, const struct kvf_node_peer *from);

/* move_out.c */
void kvf_move_out_poll(struct kvf_one_move *m);
void kvf_move_out_asked(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message);
void kvf_move_out_placement(struct kvf_one_move *m, const struct kvf_placement *placement);
void kvf_move_out_free_keys(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_key *keys, unsigned n);
void kvf_move_out_drop(struct kvf_sess *sess); /* a departed session whose new home is gone */
/* move_in.c */
void kvf_move_in_poll(struct kvf_one_move *m);
void kvf_move_in_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message);
void kvf_move_in_placement(struct kvf_one_move *m, const struct kvf_placement *placement);

/* Chunks of the open block that hold rows, and their bytes. */
static inline uint32_t kvf_move_tail_bytes(const struct kvf_model *model, uint64_t n_tokens)
{
    uint64_t open = n_tokens % model->desc.block_tokens;
    return (uint32_t)((open + model->desc.chunk_tokens - 1) / model->desc.chunk_tokens) * model->chunk_bytes;
}
#endif
