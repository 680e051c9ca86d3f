/* Payloads of the node's messages (docs/PROTOCOL.md). Little-endian, bounded; decoders take bytes from outside and answer false for
 * anything that is not exactly a message. Pure functions. */
#ifndef KVF_NODE_WIRE_H
#define KVF_NODE_WIRE_H

#include "node/internal.h"

enum kvf_node_message {
    KVF_MSG_RESERVE = KVF_MESSAGE_FIRST, /* borrower -> lender: slots for these blocks */
    KVF_MSG_PUT,                         /* borrower -> lender: bytes into reserved slots */
    KVF_MSG_COMMIT,                      /* borrower -> lender: these blocks are whole; the lender verifies */
    KVF_MSG_RELEASE,                     /* borrower -> lender: forget these */
    KVF_MSG_RELEASE_ALL,                 /* borrower -> lender: forget everything of mine */
    KVF_MSG_ADOPT,                       /* new home -> lender: a session's blocks are mine now */
    KVF_MSG_READ,                        /* new home -> old home: chunks by key */
    KVF_MSG_FREE,                        /* new home -> old home: I have these blocks */
    KVF_MSG_MOVE_OFFER,                  /* home -> target: a session, its shape and state */
    KVF_MSG_MOVE_TOKENS,
    KVF_MSG_MOVE_BLOCKS,
    KVF_MSG_MOVE_TAIL,
    KVF_MSG_MOVE_COMMIT, /* the placement has changed: it is yours */
    KVF_MSG_MOVE_ABORT,
    KVF_MSG_RECLAIM, /* lender -> borrower: move these away, I want the memory back */
    KVF_MSG_REVOKED, /* lender -> borrower: these are gone */
    KVF_MSG_READ_DATA, /* the one who was asked to READ -> the asker: some of it */
    KVF_MSG_ATTEND = 52,   /* home -> lender or old home: partial attention over these chunks (attend_remote.h) */
    KVF_MSG_ATTEND_PROBE,  /* home -> them: how fast would you be? */
    KVF_MSG_MOVE_ASK,      /* target -> home: is that move still under way? */
};

/* Of a READ_DATA, or of the answer to a READ, what may stand before the bytes. */
#define KVF_PIECES_HEADER_MAX (8 + 2 + KVF_BATCH_MAX * 10)

struct kvf_reserve_item {
    struct kvf_key key;
    uint32_t bytes;
};
struct kvf_put_item {
    struct kvf_key key; /* of a slot reserved by the sender */
    uint32_t at, bytes; /* the piece of it */
};
struct kvf_commit_item {
    struct kvf_key key;
    uint64_t seed, offset;
    uint32_t bytes, chunk_bytes;
    uint8_t chunks;
    uint64_t sums[64];
};
/* One loan: a block and where it lies in the lender's region. */
struct kvf_place {
    struct kvf_key key;
    uint64_t location;
};
struct kvf_read_item {
    struct kvf_key key;
    uint64_t mask;
};

/* Chunks of one item of a READ, whose bytes follow. */
struct kvf_piece_item {
    uint16_t item;
    uint64_t mask;
};

/* One block of a moving session. */
struct kvf_move_block {
    uint16_t layer, head;
    uint32_t index;
    uint8_t tier;     /* REMOTE (at lender number `lender`), PEER (at the old home); KVF_TIER_COUNT: lost */
    uint8_t lender;
    uint64_t location;
    uint8_t format;    /* enum kvf_cold_format, as it lies there */
    uint64_t words[KVF_SUMS_MAX]; /* a checksum per chunk; unless it lies exact, the scales behind them */
};
#define KVF_LENDERS_MAX 254 /* of one session; a u8 numbers them, and 255 is none. The first is the old home */
#define KVF_LENDER_BYTES (KVF_NODE_NAME_MAX + 8)
struct kvf_move_offer {
    uint64_t session, number; /* of the move: higher than those of all earlier ones of this home */
    uint64_t epoch;           /* the new one */
    uint64_t fingerprint;
    struct kvf_model_desc desc;
    uint64_t n_tokens;
    uint32_t sealed_blocks;
    uint8_t blob[KVF_STATE_BYTES_MAX];
    uint32_t blob_bytes;
    uint8_t n_lenders;
    struct {
        char name[KVF_NODE_NAME_MAX];
        uint64_t incarnation;
    } lenders[KVF_LENDERS_MAX];
};

void kvf_wire_reserve(struct kvf_writer *w, const struct kvf_reserve_item *items, unsigned n);
bool kvf_wire_reserve_read(struct kvf_reader *r, struct kvf_reserve_item *items, unsigned *n);
/* The reply: offsets of the first n that were granted. */
void kvf_wire_granted(struct kvf_writer *w, const uint64_t *offsets, unsigned n);
bool kvf_wire_granted_read(struct kvf_reader *r, uint64_t *offsets, unsigned *n);
void kvf_wire_put(struct kvf_writer *w, const struct kvf_put_item *items, unsigned n);
bool kvf_wire_put_read(struct kvf_reader *r, struct kvf_put_item *items, unsigned *n); /* the data follows */
void kvf_wire_commit(struct kvf_writer *w, const struct kvf_commit_item *item);  /* items one after the other, no count */
bool kvf_wire_commit_read(struct kvf_reader *r, struct kvf_commit_item *item);
void kvf_wire_keys(struct kvf_writer *w, const struct kvf_key *keys, unsigned n);
bool kvf_wire_keys_read(struct kvf_reader *r, struct kvf_key *keys, unsigned *n);
void kvf_wire_places(struct kvf_writer *w, const struct kvf_place *places, unsigned n);
bool kvf_wire_places_read(struct kvf_reader *r, struct kvf_place *places, unsigned *n);
void kvf_wire_reads(struct kvf_writer *w, const struct kvf_read_item *items, unsigned n);
bool kvf_wire_reads_read(struct kvf_reader *r, struct kvf_read_item *items, unsigned *n);
void kvf_wire_pieces(struct kvf_writer *w, uint64_t id, const struct kvf_piece_item *items, unsigned n);
bool kvf_wire_pieces_read(struct kvf_reader *r, uint64_t *id, struct kvf_piece_item *items, unsigned *n); /* the data follows */
/* One byte per item, 0 is success: replies to commit, reclaim and read (there the data follows). */
void kvf_wire_statuses(struct kvf_writer *w, const uint8_t *statuses, unsigned n);
bool kvf_wire_statuses_read(struct kvf_reader *r, uint8_t *statuses, unsigned *n);
void kvf_wire_offer(struct kvf_writer *w, const struct kvf_move_offer *offer);
bool kvf_wire_offer_read(struct kvf_reader *r, struct kvf_move_offer *offer);
void kvf_wire_block(struct kvf_writer *w, const struct kvf_move_block *block, unsigned chunks, unsigned scale_words);
bool kvf_wire_block_read(struct kvf_reader *r, struct kvf_move_block *block, unsigned chunks, unsigned scale_words);
bool kvf_model_desc_valid(const struct kvf_model_desc *desc);
#endif
