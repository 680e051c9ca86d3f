/* What the files of the fabric share. For the .c files of this room only.
 *
 *     fabric.c   life of the fabric, frames in, frames out, poll and timers
 *     peer.c     peers: add, down, remove, time
 *     hello.c    hello, proof, welcome: how a peer comes up
 *     request.c  calls, replies, the request table
 *     deadlines.c  ... when they end at the latest
 *     pull.c     reading a peer's memory
 *     ask.c      ... by PULL frames
 *     serve.c    answering the peers that ask for ours
 *     region.c   pieces of regions: ours and the peers'
 *     view.c     a peer's mapped memory used in place
 *
 * A request lives in a slot of a table made at start. A call's id on the wire is (generation, index): the generation changes
 * when the request ends, so what arrives late finds nothing. What asks for parts of pulls (ask.c) has ids of its own.
 * `held` counts operations in which the transport still uses the caller's memory; a request that ended while held calls back
 * when the last of them is over, and not before.
 */
#ifndef KVF_FABRIC_INTERNAL_H
#define KVF_FABRIC_INTERNAL_H

#include "fabric/auth.h"
#include "fabric/fabric.h"
#include "fabric/marks.h"
#include "fabric/wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define KVF_COPY_MAX 4096              /* payloads up to this are copied, larger ones stay the caller's */
#define KVF_MAPPED_BYTES (1u << 20)    /* copied from mapped memory in one poll: the owner's lock is not held longer */
#define KVF_ASKS_MAX 64                /* PULL frames that one peer may owe us */
#define KVF_ASK_PARTS_MAX 16           /* pulls that one of them asks for */
#define KVF_SERVES_MAX 128             /* PULL frames of one peer that wait here; more are refused with ERR_BUSY */
#define KVF_SERVE_FRAMES_MAX 8         /* PULL_DATA frames on their way to one peer */
#define KVF_SERVE_STREAK 64 /* frames in a row to one peer: it is alone */
#define KVF_SERVE_LEAD_BYTES (256u << 10) /* that a peer which comes back may be sent before the others have their next frame */
/* Bytes of one of them, at most. Smaller ones cost calls of the kernel (kvf bench fabric). */
#define KVF_SERVE_FRAME_BYTES (160u << 10)
#define KVF_PULL_ASKS_MAX 2            /* PULL frames for one pull on their way */
#define KVF_ASK_GAPS_MAX 8             /* stretches that arrived ahead of their turn; more are dropped */
/* A frame is taken when it is whole, and copied while the next one arrives. So what is asked for while nothing else is on its way
 * comes in smaller frames, that what one side does overlaps with what the other does: up to so many bytes, frames of that size. */
#define KVF_ASK_SMALL_BYTES (128u << 10)
#define KVF_ASK_SMALL_FRAME (32u << 10)
#define KVF_ASK_ALONE_BYTES (512u << 10)
#define KVF_ASK_ALONE_FRAME (96u << 10)
#define KVF_REKEY_NS (10 * KVF_SEC)    /* a peer has so long to prove a secret that is still accepted */
/* One-sided: a pull that is alone at its peer and whose bytes its owner looks at comes in about so many reads, of sizes between
 * these. What is there is looked at while the rest is on its way. Where a MiB takes longer than KVF_GET_SLOW_NS, a look at it is
 * short beside that, and more reads cost more than they gain: software RoCE lost a tenth (make test-rdma BENCH=1). */
#define KVF_GET_PIECES 8
#define KVF_GET_PIECE_MIN (16u << 10)
#define KVF_GET_PIECE_MAX (256u << 10)
#define KVF_GET_SLOW_NS (1 * KVF_MS)
#define KVF_LOOK_BYTES (64u << 10)     /* looked at between two polls of the transport */
#define KVF_PART_BLOCK 64              /* parts that a pull takes from the pool at once */
#define KVF_PART_BLOCKS_MAX (KVF_PULL_RANGES_MAX / KVF_PART_BLOCK)
#define KVF_ANSWER_NS (10 * KVF_MS)    /* between two answers to hellos of one peer */
#define KVF_RETRY_NS (1 * KVF_MS)      /* how soon poll is wanted again when the transport was busy */

/* Doubly linked ring; an empty one points to itself. */
struct kvf_ring {
    struct kvf_ring *prev, *next;
};
static inline void kvf_ring_init(struct kvf_ring *r) { r->prev = r->next = r; }
static inline bool kvf_ring_empty(const struct kvf_ring *r) { return r->next == r; }
static inline void kvf_ring_append(struct kvf_ring *head, struct kvf_ring *r)
{
    assert(kvf_ring_empty(r));
    r->prev = head->prev;
    r->next = head;
    head->prev->next = r;
    head->prev = r;
}
static inline void kvf_ring_remove(struct kvf_ring *r)
{
    r->prev->next = r->next;
    r->next->prev = r->prev;
    kvf_ring_init(r);
}
#define KVF_RING_OF(at, type, field) ((type *)(void *)((char *)(at) - offsetof(type, field)))

/* A copied payload on its way out, or a reply of the owner's memory. */
struct kvf_tx {
    struct kvf_fabric *fabric;
    struct kvf_tx *next; /* free list */
    struct kvf_peer *peer; /* whom it goes to, */
    uint32_t life;         /* ... in that life of the slot */
    kvf_done_fn done;    /* the caller's, may be NULL */
    void *arg;
    uint8_t data[KVF_COPY_MAX];
};

/* One range of a pull, or a piece of one that is read one-sided. `start` is where its bytes begin in the sequence of all the pull's
 * bytes. */
struct kvf_pull_part {
    struct kvf_request_slot *slot;
    uint64_t offset, start;
    uint8_t *to;
    uint32_t bytes;
    uint16_t piece; /* of the peer's region; not where the way is to ask */
    uint16_t range : 15, there : 1; /* the caller's; a one-sided read of it is over, and was good */
};
_Static_assert(KVF_PULL_RANGES_MAX < 1 << 15, "as wide");

struct kvf_ask_gap {
    uint64_t from, to;
};

/* A stretch of a pull that a PULL frame asks for. */
struct kvf_ask_part {
    struct kvf_request_slot *slot; /* NULL: all its bytes are there, or the pull ended and they are dropped */
    uint64_t from;                 /* in the pull */
    uint32_t bytes, taken;         /* taken: those that are there */
};

/* A PULL frame that the peer owes us something of. Its bytes are one sequence: those of its parts, one after the other. Its number
 * on the wire is made as a request's. */
struct kvf_ask {
    uint32_t generation; /* changes when it ends */
    unsigned n, living;  /* parts, and those with a pull; n is 0: it is free */
    uint64_t total;
    uint64_t arrived;    /* everything before it is there */
    unsigned n_gaps;
    struct kvf_ask_gap gaps[KVF_ASK_GAPS_MAX]; /* stretches that are there though bytes before them are not; sorted */
    struct kvf_ask_part parts[KVF_ASK_PARTS_MAX];
};

enum kvf_request_kind { KVF_REQUEST_FREE, KVF_REQUEST_CALL, KVF_REQUEST_PULL };

struct kvf_request_slot {
    /* identity */
    struct kvf_fabric *fabric;
    uint32_t index, generation;
    enum kvf_request_kind kind;
    struct kvf_peer *peer; /* NULL when the peer was removed before the transport let go of the memory */

    /* life */
    bool ended;             /* `status` is what the callback gets or got */
    bool called;            /* ... got */
    enum kvf_status status;
    unsigned held;
    uint64_t deadline_ns;
    unsigned deadline_at; /* its place in fabric->deadlines, from 1 on; 0: it has ended, or has none */
    kvf_reply_fn reply; /* of a call */
    kvf_done_fn done;   /* of a pull */
    kvf_take_fn take;   /* of a pull; NULL: memcpy */
    void *arg;

    /* links */
    struct kvf_ring of_peer; /* peer->requests, as long as the callback is owed */
    struct kvf_ring queue;   /* free list, peer->asking, fabric->copying, fabric->looking or fabric->due */

    /* of a pull: positions in the sequence of all its bytes */
    enum kvf_way way; /* of this pull: pieces that were not known when it began are asked for */
    bool sure;        /* asked for, of pieces that are known: it will not be refused */
    unsigned n_parts;
    uint32_t part_blocks[KVF_PART_BLOCKS_MAX]; /* where its parts are, KVF_PART_BLOCK of them in each */
    unsigned at_part;    /* the part that `asked` lies in */
    uint64_t total;
    uint64_t asked;      /* asked, posted or copied up to here */
    uint64_t taken;      /* bytes that are there */
    unsigned asks;       /* PULL frames that ask for a part of it and are not answered in full */

    /* of one that is read one-sided and whose owner looks at it; positions as above */
    bool looking;        /* in fabric->looking: there is something that was not looked at yet */
    unsigned look_part;  /* the part that `looked` lies in */
    uint64_t looked;     /* up to here its owner was shown what is there */
    uint64_t look_range; /* where the range of look_part begins */
    uint64_t start_ns;   /* it was alone when it began, then; 0: it was not */
};

struct kvf_deadline {
    uint64_t ns;
    struct kvf_request_slot *slot;
};

/* A peer's PULL frame that waits for its bytes to be sent. */
struct kvf_serve {
    uint64_t request, position, deadline_ns; /* position: of the next byte; deadline 0: none */
    uint32_t frame_bytes;                    /* of a PULL_DATA frame, at most */
    uint32_t at_byte;
    uint16_t at_range, n;
    struct kvf_wire_range ranges[KVF_WIRE_RANGES_MAX];
};

/* A piece of a peer's region. */
struct kvf_peer_piece {
    uint64_t offset, bytes;
    struct kvf_remote *remote;
    const uint8_t *mapped; /* WAY_MAPPED */
    enum kvf_way way;
};

enum kvf_peer_state { KVF_PEER_FREE, KVF_PEER_CONNECTING, KVF_PEER_PROVED, KVF_PEER_UP, KVF_PEER_DOWN };

struct kvf_peer {
    /* identity */
    struct kvf_fabric *fabric;
    char name[KVF_NODE_NAME_MAX];
    uint64_t id, incarnation;

    /* state */
    enum kvf_peer_state state;
    uint32_t life;             /* changes when the slot is freed: callbacks may do that under our feet */
    enum kvf_status doom;      /* not OK: it goes DOWN for this in the next poll, and nothing is posted any more */
    enum kvf_status down_why;
    bool told;                 /* DOWN: peer_down was called */
    struct kvf_link *link;     /* NULL when DOWN */
    uint64_t region_base, region_bytes;
    struct kvf_peer_piece pieces[KVF_REGION_PIECES_MAX];
    unsigned n_pieces, pieces_there; /* known; ready there, as it last said */
    unsigned pieces_told;            /* of ours, in our last hello or heartbeat */
    uint64_t piece_asked_ns;
    size_t payload_max; /* what it takes */
    uint64_t heard_ns, sent_ns, hello_ns; /* hello_ns: when the next hello or welcome is due, until it is UP */
    uint64_t refusal_log_ns;              /* no further line about frames in its name before it */
    void *user;

    /* who it is */
    struct kvf_auth *auth;
    enum kvf_status suspect; /* what was wrong with the last hello or proof in its name: why it may not come up */
    uint64_t answer_ns;      /* no hello is answered before it */
    bool proof_out;          /* a proof of ours is on its way */
    bool welcome_owed;       /* the transport was busy */
    uint64_t rekey_ns;       /* UP: until when it must prove a secret that is still accepted; 0: it has */

    /* asked of it */
    struct kvf_ring requests; /* whose callback is owed */
    struct kvf_ring asking;   /* pulls of which something is not asked yet, in order */
    unsigned gets;            /* of those, the ones that are read one-sided */
    uint64_t inflight;        /* bytes asked and not yet there */
    uint64_t get_ns;          /* what a MiB takes of pulls that are read one-sided and alone, smoothed; 0: not known */
    unsigned asks;            /* PULL frames it owes us: those of asks_table that are not free */
    struct kvf_ask *asks_table; /* [KVF_ASKS_MAX] */

    /* asked of us */
    struct kvf_serve *serves; /* [KVF_SERVES_MAX], a ring */
    unsigned serve_first, serve_count;
    struct kvf_ring served;   /* fabric->serving, while serve_count is not 0 */
    uint64_t serve_tag;       /* whose is lowest is sent the next frame (serve.c) */
    bool serve_full;          /* its last frame found no room: not tried again in this step */
    uint64_t served_bytes;    /* by PULL_DATA frames so far */
    unsigned frames_out;      /* PULL_DATA frames that the transport still reads; the slot is not reused before it is 0 */
};

struct kvf_fabric {
    struct kvf_fabric_config config;
    uint64_t id;
    const uint8_t *region;
    uint32_t *writers; /* [KVF_MARKS_N] of our region (marks.h) */
    unsigned pieces; /* of our region that are ready */
    size_t payload_max;

    struct kvf_peer *peers; /* [peer_slots] */
    unsigned peer_slots, peer_count;
    struct kvf_serve *serves;
    struct kvf_ask *asks;
    struct kvf_auth *auths;
    uint32_t *by_id; /* hash table of slot + 1; 0 is empty */
    unsigned by_id_mask;

    struct kvf_request_slot *requests; /* [requests_max] */
    struct kvf_deadline *deadlines;    /* [requests_max] a heap */
    unsigned deadlines_n;
    struct kvf_pull_part *parts;       /* [part_blocks][KVF_PART_BLOCK] of all pulls */
    uint32_t *free_parts;              /* [part_blocks] a stack of blocks that no pull has */
    uint32_t part_blocks, free_parts_n;
    struct kvf_ring free_requests, due, copying, looking;
    struct kvf_ring serving; /* peers that wait for bytes of ours */
    uint64_t serve_tag;      /* of who was sent the last frame */
    const struct kvf_peer *serve_last; /* who that was, or the slot's former peer */
    unsigned serve_streak;   /* frames that it was sent in a row */
    unsigned request_count;
    unsigned held_count; /* operations in which the transport uses callers' memory */

    struct kvf_tx *tx; /* [tx_count] */
    struct kvf_tx *tx_free;
    unsigned tx_count, tx_used;
    unsigned frames_out; /* PULL_DATA frames of all peers */

    unsigned work;       /* pulls that are asking plus serves that wait, over all peers */
    unsigned changes;    /* peers that are doomed, or DOWN and not told */
    bool polling, closing;
    uint64_t next_peer_ns; /* not before this; may be too early */
    uint64_t polled_ns;
    uint64_t refusal_log_ns; /* no further line about refused frames before it */
};

/* ---- fabric.c */

/* Sends a frame. `header` needs type, flags, status, request, position, budget; the rest is filled in. ERR_BUSY leaves
 * everything as it was; any other failure dooms the peer. */
enum kvf_status kvf_fabric_post(struct kvf_peer *peer, struct kvf_wire_header *header, const struct iovec *parts, unsigned n_parts,
                                kvf_done_fn done, void *arg);
/* The same for at most KVF_COPY_MAX bytes, which are copied. done may be NULL. */
enum kvf_status kvf_fabric_post_copy(struct kvf_peer *peer, struct kvf_wire_header *header, const struct iovec *parts,
                                     unsigned n_parts, kvf_done_fn done, void *arg);
/* A frame of the caller's memory whose end the close waits for, as for those that are copied. ERR_BUSY: too many are under way. */
enum kvf_status kvf_fabric_post_counted(struct kvf_peer *peer, struct kvf_wire_header *header, const struct iovec *parts,
                                        unsigned n_parts, kvf_done_fn done, void *arg);
/* Bytes of all parts; SIZE_MAX when there are too many of them. */
size_t kvf_fabric_parts_bytes(const struct iovec *parts, unsigned n_parts);
/* Counts a frame that is not believed, and says so now and then. peer is the one in whose name it came, or NULL. */
void kvf_fabric_refuse(struct kvf_fabric *fabric, struct kvf_peer *peer, const char *why);
void kvf_fabric_timer_peer(struct kvf_fabric *fabric, uint64_t at_ns);
uint32_t kvf_fabric_budget_us(uint64_t now_ns, uint64_t deadline_ns);

/* ---- peer.c */
struct kvf_peer *kvf_peer_by_id(struct kvf_fabric *fabric, uint64_t id);
/* Why a peer whose link failed, or who is silent, goes DOWN. */
enum kvf_status kvf_peer_why_lost(const struct kvf_peer *peer);
/* For what the peer itself sent, as its tag proves, and nobody who keeps to the protocol sends: refused, and it goes DOWN. */
void kvf_peer_misbehaved(struct kvf_peer *peer, const char *what);
/* The peer goes DOWN in this poll or the next. The first reason counts. */
void kvf_peer_doom(struct kvf_peer *peer, enum kvf_status why);
/* A send to the peer is over. The first that failed dooms it: the transport may take its time to say that the link did. */
static inline void kvf_peer_sent(struct kvf_peer *peer, enum kvf_status status)
{
    if (status != KVF_OK && status != KVF_CANCELLED)
        kvf_peer_doom(peer, kvf_peer_why_lost(peer));
}
/* Takes doomed peers DOWN and tells the owner of those that are. */
void kvf_peer_changes(struct kvf_fabric *fabric);
/* Heartbeats, hellos, silence. Sets the next timer. */
void kvf_peer_timers(struct kvf_fabric *fabric, uint64_t now_ns);
/* Every peer's silence is counted from now. */
void kvf_peer_forgive(struct kvf_fabric *fabric, uint64_t now_ns);
/* Ends link and queues without telling the owner. Requests that are not held end with `status`. */
void kvf_peer_cut(struct kvf_peer *peer, enum kvf_status status);
static inline bool kvf_peer_usable(const struct kvf_peer *peer)
{
    return peer->state == KVF_PEER_UP && peer->doom == KVF_OK;
}

/* ---- hello.c */
/* BUSY and other failures of the transport: to be tried again. */
enum kvf_status kvf_hello_send(struct kvf_peer *peer);
/* Frames of the handshake. peer is NULL when the sender is none of ours in that incarnation. */
void kvf_hello_heard(struct kvf_fabric *fabric, struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload);
void kvf_hello_proof(struct kvf_fabric *fabric, struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload);
void kvf_hello_welcome(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload);
/* Hellos, proofs and welcomes that are due. Returns when it wants to be called again. */
uint64_t kvf_hello_timer(struct kvf_peer *peer, uint64_t now_ns);

/* ---- request.c */
void kvf_request_init(struct kvf_fabric *fabric);
/* NULL: all are in use. */
struct kvf_request_slot *kvf_request_take(struct kvf_peer *peer, enum kvf_request_kind kind, uint64_t deadline_ns, void *arg);
/* Gives back a slot whose request never was (its send failed). */
void kvf_request_drop(struct kvf_request_slot *slot);
uint64_t kvf_request_id(const struct kvf_request_slot *slot);
/* The answer to a call arrived. Calls back inside. */
void kvf_request_answer(struct kvf_request_slot *slot, enum kvf_status status, const void *payload, size_t bytes);
/* Ends a request (one that ended already keeps its status). Calls back inside, or, while it is held, when it no longer is. */
void kvf_request_end(struct kvf_request_slot *slot, enum kvf_status status);
/* Only notes the end (one that ended already keeps its status): the callback is still owed. */
void kvf_request_mark(struct kvf_request_slot *slot, enum kvf_status status);
/* Ends a request; the callback waits for the next poll. */
void kvf_request_end_later(struct kvf_request_slot *slot, enum kvf_status status);
/* The transport let go of memory of the request. */
void kvf_request_release(struct kvf_request_slot *slot);
void kvf_request_deadlines(struct kvf_fabric *fabric, uint64_t now_ns);
unsigned kvf_request_due(struct kvf_fabric *fabric);
void kvf_request_reply(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload);

/* ---- deadlines.c */
void kvf_deadlines_add(struct kvf_request_slot *slot);
/* One that is not among them is left alone. */
void kvf_deadlines_remove(struct kvf_request_slot *slot);
/* The earliest; UINT64_MAX: there is none. */
uint64_t kvf_deadlines_next(const struct kvf_fabric *fabric);

/* ---- pull.c */
/* Part i of a pull. */
static inline struct kvf_pull_part *kvf_pull_part(const struct kvf_request_slot *slot, unsigned i)
{
    assert(i < slot->n_parts);
    return &slot->fabric->parts[(size_t)slot->part_blocks[i / KVF_PART_BLOCK] * KVF_PART_BLOCK + i % KVF_PART_BLOCK];
}
/* Gives a pull's parts back to the pool. */
void kvf_pull_release(struct kvf_request_slot *slot);
/* Asks for, or posts, as much of the peer's waiting pulls as is allowed. */
void kvf_pull_step(struct kvf_peer *peer);
/* Copies a portion from mapped memory; bytes copied. */
size_t kvf_pull_copy(struct kvf_fabric *fabric);
/* Shows the owners of one-sided pulls a portion of what is there; bytes shown. */
size_t kvf_pull_look(struct kvf_fabric *fabric);
/* Bytes of a pull from position on go to their places. */
void kvf_pull_bring(struct kvf_request_slot *slot, uint64_t position, const uint8_t *from, size_t bytes);
/* Takes an ended pull out of queues and gives back its credits. */
void kvf_pull_forget(struct kvf_request_slot *slot);

/* ---- ask.c */
/* Asks for what comes next of the peer's waiting pulls, in one frame. ERR_BUSY: nothing can be asked for now. */
enum kvf_status kvf_ask_post(struct kvf_peer *peer);
void kvf_ask_data(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload);
/* The pull has ended: what was asked for it is dropped when it comes, and its credits are back. */
void kvf_ask_forget(struct kvf_request_slot *slot);

/* ---- region.c */
/* Whether peers may read this range of our region now. */
bool kvf_region_ready(const struct kvf_fabric *fabric, uint64_t offset, uint64_t bytes);
/* The peer says how many pieces of its region are ready. */
void kvf_region_news(struct kvf_peer *peer, uint64_t pieces);
void kvf_region_timer(struct kvf_peer *peer, uint64_t now_ns);
void kvf_region_asked(struct kvf_peer *peer, const struct kvf_wire_header *header);
void kvf_region_told(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload);
void kvf_region_forget(struct kvf_peer *peer);
/* The piece that holds the range whole, or NULL. */
const struct kvf_peer_piece *kvf_region_piece_of(const struct kvf_peer *peer, uint64_t offset, uint64_t bytes);
/* The way of a pull: that of the pieces which hold its ranges, or to ask. Sets the parts' pieces, and whether it is sure. */
enum kvf_way kvf_region_way(const struct kvf_peer *peer, struct kvf_request_slot *slot);

/* ---- serve.c */
void kvf_serve_pull(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload);
/* Sends what the transport takes, to each peer its share. */
void kvf_serve_step(struct kvf_fabric *fabric);
void kvf_serve_forget(struct kvf_peer *peer);
#endif
