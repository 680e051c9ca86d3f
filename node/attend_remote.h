/* Attention where the bytes lie. Instead of pulling chunks from a lender or an old home, a step may send its queries there and get
 * back a partial result of every block: head_dim + 1 numbers a row.
 *
 *     attend.c  -- plan, add, arrived, part -->  attend_remote.c (asker)  -- ATTEND -->  attend_serve.c (holder)
 *                                                     |
 *                                          attend_cost.c: pull, or ask? Measured: probes at first contact, then what attends took
 *     attend_wire.c: the payloads (docs/PROTOCOL.md)
 *
 * What goes wrong there is never a result here: a block that the holder does not have, or whose bytes do not match the checksums
 * in the question, is pulled, and so is everything that was asked of a holder that is busy, slow or gone. */
#ifndef KVF_NODE_ATTEND_REMOTE_H
#define KVF_NODE_ATTEND_REMOTE_H

#include "node/step.h"
#include "node/wire.h"

#define KVF_ATTEND_ROWS_MAX 96                 /* query rows of a KV head */
#define KVF_ATTEND_QUESTION_BYTES (56u << 10)
#define KVF_ATTEND_ANSWER_BYTES (120u << 10)
#define KVF_ATTEND_PROBE_BYTES (48u << 10)     /* padding of a question or answer that measures */
#define KVF_ATTEND_BY_KEY UINT64_MAX           /* an offset: the block lies at an old home, which finds it by its key */
#define KVF_ATTEND_PEERS_MAX 8                 /* that one attend asks */

/* ---------------------------------------------------------------- attend_wire.c */

/* What all items of a question have in common. */
struct kvf_attend_shape {
    uint64_t fingerprint;
    enum kvf_dtype dtype;
    bool merged;                      /* one partial result for all blocks of a set, not one for each */
    uint32_t chunk_tokens, chunks;    /* of a block */
    uint32_t dim_k, dim_v, rows;      /* rows: of every set of queries */
    float scale;
};

/* Chunks of one block. */
struct kvf_attend_item {
    struct kvf_key key;
    uint64_t offset;      /* in the holder's region, or KVF_ATTEND_BY_KEY */
    uint64_t mask;        /* not 0 */
    uint8_t set;          /* of queries */
    uint8_t format;       /* enum kvf_cold_format, as it lies there */
    const uint8_t *words; /* a checksum per chunk of the mask, then the scales; little-endian, in the message */
};

struct kvf_attend_question {
    struct kvf_attend_shape shape;
    unsigned n_items, n_sets; /* 1 to KVF_BATCH_MAX each */
    struct kvf_attend_item items[KVF_BATCH_MAX];
    const uint8_t *queries;   /* [n_sets][rows][dim_k] floats in the message */
};

enum kvf_attend_verdict {
    KVF_ATTEND_GOOD,
    KVF_ATTEND_NOT_HERE,  /* or its bytes are not those of the checksums */
    KVF_ATTEND_NOT_NOW,   /* on SSD, or on its way */
    KVF_ATTEND_TOO_LARGE, /* for the holder's scratch */
    KVF_ATTEND_VERDICTS
};

struct kvf_attend_answer {
    unsigned n;
    uint8_t verdicts[KVF_BATCH_MAX];
    uint32_t busy_us;       /* from the question's arrival at the holder to the end of its work */
    unsigned parts;
    const uint8_t *numbers; /* [parts]: [rows][dim_v] floats, then [rows] log-sum-exps; in the message */
};

bool kvf_attend_shape_valid(const struct kvf_attend_shape *shape);
uint32_t kvf_attend_block_bytes(const struct kvf_attend_shape *shape, uint8_t format);
uint32_t kvf_attend_scale_words(const struct kvf_attend_shape *shape); /* of a block that does not lie exact */
static inline size_t kvf_attend_part_bytes(const struct kvf_attend_shape *s)
{
    return (size_t)s->rows * (s->dim_v + 1) * sizeof(float);
}
size_t kvf_attend_wire_head_bytes(void);
void kvf_attend_wire_head(struct kvf_writer *w, const struct kvf_attend_shape *shape, unsigned n_items, unsigned n_sets);
/* Its words: `sums` has one for every chunk of the block, and behind them, unless it lies exact, the scales. */
void kvf_attend_wire_item(struct kvf_writer *w, const struct kvf_attend_shape *shape, const struct kvf_attend_item *item,
                          const uint64_t *sums);
size_t kvf_attend_wire_item_bytes(const struct kvf_attend_shape *shape, uint64_t mask, uint8_t format);
bool kvf_attend_wire_question_read(struct kvf_reader *r, struct kvf_attend_question *out);
/* The answer without its numbers, behind the 8 bytes of its hash. */
void kvf_attend_wire_answer(struct kvf_writer *w, const uint8_t *verdicts, unsigned n, uint32_t busy_us);
/* sets: of the n items asked for. False also when it is no answer to just these. */
bool kvf_attend_wire_answer_read(struct kvf_reader *r, const struct kvf_attend_shape *shape, const uint8_t *sets, unsigned n,
                                 struct kvf_attend_answer *out);

/* What a node says of itself when it is probed. */
struct kvf_attend_ability {
    uint64_t print;     /* of its kernels' bits: who has the same computes the same */
    uint32_t chunk_ps;  /* picoseconds per KiB of K and V: to check and load it */
    uint32_t row_ps;    /* ... and for every row over it */
};
void kvf_attend_wire_probe(struct kvf_writer *w, uint32_t answer_bytes, uint32_t padding);
bool kvf_attend_wire_probe_read(struct kvf_reader *r, uint32_t *answer_bytes);
void kvf_attend_wire_ability(struct kvf_writer *w, const struct kvf_attend_ability *ability);
bool kvf_attend_wire_ability_read(struct kvf_reader *r, uint32_t padding, struct kvf_attend_ability *out);

/* ---------------------------------------------------------------- attend_cost.c; all under the lock */

enum kvf_attend_way { KVF_ATTEND_PULL, KVF_ATTEND_THERE, KVF_ATTEND_WAYS };

/* Work that lies at one peer. */
struct kvf_attend_work {
    enum kvf_tier tier;      /* REMOTE or PEER */
    uint64_t bytes;          /* of chunks as they lie there */
    uint64_t wire_bytes;     /* of questions and answers instead */
    uint64_t fixed_bytes;    /* of these, what does not grow with the chunks */
    uint32_t chunk_bytes;
    uint32_t rows;
};

/* Of this node, measured when it started. */
void kvf_attend_cost_own(const struct kvf_core *core, struct kvf_attend_ability *out);
/* Where the work takes less time, by what was measured so far; what both are thought to take (0: not known). */
enum kvf_attend_way kvf_attend_cost_choose(struct kvf_core *core, uint16_t peer, const struct kvf_attend_work *work,
                                           double expected_ns[KVF_ATTEND_WAYS]);
/* What it took. */
void kvf_attend_cost_learn(struct kvf_core *core, uint16_t peer, enum kvf_attend_way way, const struct kvf_attend_work *work,
                           uint64_t took_ns);
/* The holder does not serve now. */
void kvf_attend_cost_refused(struct kvf_core *core, uint16_t peer, enum kvf_status status);
/* Some block of ours that lies at the peer: pulls of it measure. */
void kvf_attend_cost_seen(struct kvf_core *core, uint16_t peer, uint64_t location, uint32_t bytes);
unsigned kvf_attend_cost_poll(struct kvf_core *core);

struct kvf_attend_cost_stats {
    bool same_bits;
    uint64_t rtt_ns;
    double wire_rate, pull_rate, compute_rate; /* bytes per second; compute: of the holder, for `rows` of the last attend */
    uint32_t rows;
    uint64_t break_even_chunks; /* from so many on it pays to ask, for the last attend's shape; 0: from none */
    uint64_t chosen[KVF_ATTEND_WAYS];
};
bool kvf_attend_cost_stats(struct kvf_core *core, uint16_t peer, struct kvf_attend_cost_stats *out); /* false: none are known */

/* ---------------------------------------------------------------- attend_remote.c; all under the lock but for the last */

enum kvf_attend_mode { KVF_ATTEND_OFF, KVF_ATTEND_AUTO, KVF_ATTEND_ALWAYS };

/* One attend's side: a part of struct attend. */
struct kvf_attend_plan {
    struct kvf_core *core;
    struct kvf_attend_shape shape;
    const float *queries; /* [kv_heads][rows][dim_k] */
    uint64_t deadline_ns;
    uint32_t blocks;      /* those below may be asked for */
    bool asking;          /* attends of such steps may be asked for */
    unsigned n_peers, asks; /* asks: that still have wants */
    struct kvf_attend_plan_peer {
        uint16_t peer;
        enum kvf_attend_way way;
        struct kvf_attend_work work;
        uint32_t items, sets;
        double expected_ns;          /* of the way */
        struct kvf_ask *open;        /* takes more items */
        uint64_t left;               /* wants whose bytes or results are not here yet */
        bool here;                   /* none is left: with the next wave the work is done, and what it took is learnt */
        uint64_t start_ns;           /* when the first was asked for */
        bool failed;                 /* something was pulled after all: no measurement */
    } peers[KVF_ATTEND_PEERS_MAX];
};

/* Decides for every peer that holds some of the blocks whether it is asked. wants: [blocks][kv_heads] */
void kvf_attend_remote_plan(struct kvf_attend_plan *plan, struct kvf_sess *sess, uint32_t layer, const struct kvf_want *wants);
/* Whether the plan leaves the block at its holder; an open attend's want of it is then added. OK: asked. ERR_BUSY: not now, it can
 * be when some that were asked for have been used. ERR_STATE: it is to be pulled. */
enum kvf_status kvf_attend_remote_add(struct kvf_attend_plan *plan, struct kvf_want *want, uint32_t block, uint32_t head);
/* No more will be added for now: questions go out. */
void kvf_attend_remote_flush(struct kvf_attend_plan *plan);
/* OK: its part is here. IN_PROGRESS. ERR_STATE: it must be pulled (want->pull is set, and it is not asked for any more). */
enum kvf_status kvf_attend_remote_arrived(struct kvf_attend_plan *plan, struct kvf_want *want);
/* The next time after now at which a want may have to be pulled because its answer is late; UINT64_MAX: none. */
uint64_t kvf_attend_remote_late(const struct kvf_attend_plan *plan, uint64_t now_ns);
/* The want needs its part no more. */
void kvf_attend_remote_drop(struct kvf_attend_plan *plan, struct kvf_want *want);
/* A want that was pulled has its bytes. */
void kvf_attend_remote_pulled(struct kvf_attend_plan *plan, const struct kvf_want *want);
/* A wave was computed. */
void kvf_attend_remote_computed(struct kvf_attend_plan *plan);
/* The partial result of a want that arrived: [rows][dim_v], then [rows]; NULL: it is in that of another block. Without the lock. */
const float *kvf_attend_remote_part(const struct kvf_want *want);
/* Whether what lies at the peer is likely to be asked for, and so not read ahead. */
bool kvf_attend_remote_expected(const struct kvf_core *core, uint16_t peer);
/* For benches and tests: another mode from now on. */
void kvf_attend_remote_mode_set(struct kvf_core *core, enum kvf_attend_mode mode);

#endif
