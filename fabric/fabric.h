/* Peers: who they are, whether they live, requests with deadlines, and pulls of ranges of their memory.
 *
 * LIFE OF A PEER
 *     peer_add -> CONNECTING (hello sent, again every heartbeat) -> PROVED (it proved the secret, to us and now) -> UP (its
 *     welcome arrived) -> DOWN (its link failed, it was silent for dead_after, it said goodbye, it broke the protocol, or
 *     peer_remove) -> freed by peer_remove.
 *     A peer is one incarnation of a node: a node that restarts is another peer. Our own state is asked before every post.
 *     DOWN ends everything asked of the peer with ERR_PEER_LOST before peer_down is called. A peer that is DOWN is not
 *     revived; the owner removes it and may add it anew. peer_down says why: ERR_PEER_LOST, ERR_PEER_UNREACHABLE (it was
 *     never UP), ERR_PEER_AUTH, ERR_PEER_VERSION (nor UP, and what came in its name proved another secret or none, or was of
 *     another version), ERR_PEER_PROTOCOL (it sent what nobody sends), ERR_CLOSED (it said goodbye), ERR_DEADLINE (its link had
 *     to be ended so that a caller got back memory that the transport was still using at the deadline of a read or a large call),
 *     CANCELLED (peer_remove).
 *     Silence is judged when the transport has nothing more to hand over, so that a pause of our own kills nobody.
 *
 * MESSAGES carry a versioned header (wire.h, docs/PROTOCOL.md): magic, version, type, sender's node id and incarnation,
 * the receiver's incarnation, request id, status, payload length, counter, tag. Frames of another magic, version, incarnation,
 * length or session are refused and counted, and never reach the handler. A frame whose tag does not fit is nobody's: it cannot
 * hurt the peer in whose name it came. A peer whose tag fits and who breaks the protocol goes DOWN. A hello from a node that we
 * have no peer for is handed to `stranger` when it knows the secret, so that the owner can add the peer.
 *
 * Threads: one at a time; callbacks run inside poll() or inside the call that ended the request (stated below).
 * Time comes from env only. Every call and pull ends exactly once: at the latest at its deadline.
 */
#ifndef KVF_FABRIC_FABRIC_H
#define KVF_FABRIC_FABRIC_H

#include "base/counters.h"
#include "fabric/secret.h"
#include "fabric/transport.h"

struct kvf_fabric;
struct kvf_peer;

#define KVF_NODE_NAME_MAX 64
#define KVF_PULL_RANGES_MAX 1024

/* Message types below 32 are the fabric's own (hello, heartbeat, goodbye, pull, pull data); the node's begin here. */
#define KVF_MESSAGE_FIRST 32

struct kvf_message {
    uint16_t type;
    uint64_t request;        /* 0: a notice, no reply is expected */
    const void *payload;     /* valid during the callback */
    size_t bytes;
    uint64_t deadline_ns;    /* when whoever asked stops waiting, as far as its budget tells; 0: not said */
};

struct kvf_fabric_handler {
    void *arg;
    void (*peer_up)(void *arg, struct kvf_peer *peer);
    void (*peer_down)(void *arg, struct kvf_peer *peer, enum kvf_status why);
    /* A request or notice; answer a request with kvf_fabric_reply, now or later (once). */
    void (*message)(void *arg, struct kvf_peer *peer, const struct kvf_message *message);
    /* A hello, by the secret's MAC, of a node that is no peer yet, with its address: the owner may peer_add it, or ignore it. */
    void (*stranger)(void *arg, const char *name, uint64_t incarnation, const void *address, size_t address_bytes);
};

struct kvf_fabric_config {
    const struct kvf_env *env;
    struct kvf_transport *transport; /* the fabric does not own it */
    const struct kvf_secret *secret; /* nor this; NULL: the empty one (secret.h) */
    const struct kvf_log *log;
    struct kvf_counters *counters;
    char name[KVF_NODE_NAME_MAX]; /* ours */
    uint64_t incarnation;         /* ours; never 0 */
    struct kvf_region *region;    /* ours that peers may pull from, as far as its pieces are ready; NULL: none */
    const void *region_base;
    uint64_t region_bytes;
    unsigned peers_max;
    unsigned requests_max;        /* calls and pulls outstanding over all peers */
    uint64_t inflight_bytes;      /* asked of one peer by pull and not yet arrived */
    uint64_t heartbeat_ns, dead_ns;
    struct kvf_fabric_handler handler;
};

enum kvf_status kvf_fabric_create(const struct kvf_fabric_config *config, struct kvf_fabric **out);
/* Pieces were added to the region: the peers are told. */
void kvf_fabric_region_grown(struct kvf_fabric *fabric);
/* Other secrets are accepted now: peers that proved one which is not must prove another within 10 s, or go DOWN with
 * ERR_PEER_AUTH. Nothing is interrupted for those that can. */
void kvf_fabric_secret_changed(struct kvf_fabric *fabric);
/* Says goodbye to every peer, ends every request with CANCELLED, drives the transport for at most 100 ms of env time. */
void kvf_fabric_destroy(struct kvf_fabric *fabric);

/* A node's 64-bit id on the wire: a hash of its name. Never 0. */
uint64_t kvf_fabric_node_id(const char *name);

/* Starts to know a peer. A second add of the same (name, incarnation) returns the same peer. An add of the same name with
 * another incarnation first takes the old one DOWN (peer_down is called inside) and frees it.
 * ERR_BUSY (peers_max), ERR_INVALID, ERR_PEER_UNREACHABLE. */
enum kvf_status kvf_fabric_peer_add(struct kvf_fabric *fabric, const char *name, uint64_t incarnation, const void *address,
                                    size_t address_bytes, struct kvf_peer **out);
/* DOWN (peer_down is called inside if it was not already), then freed: the pointer is dead. Requests end inside, before
 * peer_down, except reads and large calls whose memory the transport still uses: those end in a later poll. */
void kvf_fabric_peer_remove(struct kvf_fabric *fabric, struct kvf_peer *peer);
/* NULL when there is none. */
struct kvf_peer *kvf_fabric_peer_find(struct kvf_fabric *fabric, const char *name);
/* index 0.. in a stable order; NULL past the end. */
struct kvf_peer *kvf_fabric_peer_at(struct kvf_fabric *fabric, unsigned index);

const char *kvf_peer_name(const struct kvf_peer *peer);
uint64_t kvf_peer_incarnation(const struct kvf_peer *peer);
bool kvf_peer_is_up(const struct kvf_peer *peer);
/* How its region is read: as the first piece of it that is known; ASK until one is. */
enum kvf_way kvf_peer_way(const struct kvf_peer *peer);
uint64_t kvf_peer_region_bytes(const struct kvf_peer *peer);
/* Largest payload of a call or reply between us: what both sides take. What the peer says is not trusted: it may be 1. */
size_t kvf_peer_payload_max(const struct kvf_peer *peer);

/* What is known of a peer. */
struct kvf_peer_about {
    uint64_t region_bytes[KVF_WAYS]; /* of the pieces of its region that are known, by the way they are read */
    unsigned pieces, pieces_there;   /* known here; ready there, as it last said */
    enum kvf_way way;                /* as kvf_peer_way */
    const char *why;                 /* the reason for it; a constant */
    char congestion[96];             /* the congestion control of our link to it, and why; empty: nothing to tell */
    size_t frame_bytes;              /* the largest payload between us */
    uint64_t inflight_bytes;         /* asked of it and not yet there */
    uint64_t served_bytes;           /* of our region, that were sent to it for its pulls since it is known */
};
void kvf_peer_about(const struct kvf_peer *peer, struct kvf_peer_about *out);
/* Free for the owner. */
void kvf_peer_user_set(struct kvf_peer *peer, void *user);
void *kvf_peer_user(const struct kvf_peer *peer);

/* status: the peer's answer (its reply's status: OK or a failure), or ERR_PEER_LOST, ERR_DEADLINE, CANCELLED, or, when what it
 * answered is none, ERR_PEER_PROTOCOL, with no payload. */
typedef void (*kvf_reply_fn)(void *arg, enum kvf_status status, const void *payload, size_t bytes);

/* A request. The parts are copied when they are at most 4 KiB in all; larger ones stay the caller's until the callback.
 * Never calls back inside. ERR_BUSY, ERR_PEER_LOST (not UP), ERR_INVALID (more than payload_max). `deadline_ns` is absolute. */
enum kvf_status kvf_fabric_call(struct kvf_peer *peer, uint16_t type, const struct iovec *parts, unsigned n_parts,
                                uint64_t deadline_ns, kvf_reply_fn reply, void *arg);
/* A notice of at most 4 KiB, copied; it may be lost. */
enum kvf_status kvf_fabric_notify(struct kvf_peer *peer, uint16_t type, const void *payload, size_t bytes);
/* Answers a request. Parts beyond 4 KiB in all stay the caller's until done (called also when the peer dies, and before
 * kvf_fabric_destroy returns, unless the transport lets nothing go within a deadline then, which is logged: such memory must
 * outlive the transport); done may be NULL for smaller ones. A reply that cannot be sent now (ERR_BUSY) is not queued: try
 * again later, or let the peer time out. */
enum kvf_status kvf_fabric_reply(struct kvf_peer *peer, uint64_t request, enum kvf_status status, const struct iovec *parts,
                                 unsigned n_parts, kvf_done_fn done, void *arg);
/* Largest payload of a call or reply that this side sends or takes; to one peer see kvf_peer_payload_max. */
size_t kvf_fabric_payload_max(const struct kvf_fabric *fabric);

struct kvf_pull_range {
    uint64_t offset; /* in the peer's region */
    uint32_t bytes;
    void *to;
};

/* Reads up to KVF_PULL_RANGES_MAX ranges of the peer's region, by the peer's way, at most inflight_bytes at once (the rest
 * waits inside). Calls back once, inside a later poll: OK (every byte is there, unverified: test checksums), ERR_PEER_LOST,
 * ERR_DEADLINE, ERR_PEER_REFUSED (out of the region), ERR_BUSY (the peer's queue is full), CANCELLED. After the callback
 * no memory of `to` is written any more. The ranges are copied. ERR_BUSY (requests_max, or no room for so many
 * ranges beside the others'), ERR_PEER_LOST, ERR_INVALID. */
enum kvf_status kvf_fabric_pull(struct kvf_peer *peer, const struct kvf_pull_range *ranges, unsigned n, uint64_t deadline_ns,
                                kvf_done_fn done, void *arg);

/* Brings bytes of a pull to their place, instead of memcpy: those of range number `range` (of the array) from its byte `at` on,
 * which lie at `from` during the call; `foreign`: in memory of the peer, who may write it meanwhile. A range comes in stretches of
 * any length, in rising order and each byte once. So its owner can compute checksums of what it has in hand anyway.
 * Where the peer's memory is read one-sided the bytes are in place already, and `from` is `to`: there is nothing to bring, but they
 * can be looked at while more is on its way. What is not shown by the time all is there, of the later ranges or the end of one, is
 * not shown any more: a pull does not wait for its owner. */
typedef void (*kvf_take_fn)(void *arg, unsigned range, uint32_t at, void *to, const void *from, bool foreign, uint32_t bytes);
/* As pull. take is called with done's arg, inside polls, never after done. */
enum kvf_status kvf_fabric_pull_take(struct kvf_peer *peer, const struct kvf_pull_range *ranges, unsigned n, uint64_t deadline_ns,
                                     kvf_take_fn take, kvf_done_fn done, void *arg);

/* A range of a peer's memory that is mapped here, to be used where it lies. Its owner may look at `data` and `bytes`. */
struct kvf_view {
    const uint8_t *data; /* NULL: not open */
    size_t bytes;
    /* the fabric's */
    struct kvf_remote *remote;
    const struct kvf_marks *marks;
    uint64_t offset, seen;
};

/* Opens a view of bytes [offset, offset + bytes) of the peer's region, without a copy and without a message. From now until close
 * `data` may be read, by any thread, whatever becomes of the peer: also when it dies, goes DOWN or is removed; each read sees some
 * byte, never a fault. But the peer may write there, so nothing that was made of the bytes counts before kvf_view_same or close has
 * said afterwards that it did not: then all reads since the open saw the same bytes. Whether these are the bytes that are wanted
 * only their checksum tells, which may be tested before or after they are used, on the view itself. `view` is the caller's memory;
 * close it soon, and before the transport is destroyed. Never waits, nothing is allocated, no callback.
 * ERR_UNSUPPORTED (the range is not mapped here as a whole: pull it), ERR_BUSY (it is being written), ERR_PEER_LOST (not UP),
 * ERR_PEER_REFUSED (outside the region). */
enum kvf_status kvf_fabric_view_open(struct kvf_peer *peer, uint64_t offset, size_t bytes, struct kvf_view *view);
/* Whether nothing was written there since the open: if not, discard what was made of it, and read again or pull. A write of a
 * neighbour may be taken for one. Any thread, as often as wanted. */
bool kvf_view_same(const struct kvf_view *view);
/* Ends the view: `data` must not be read any more. OK, or ERR_STALE: it was written under you, discard. The fabric's threads. */
enum kvf_status kvf_fabric_view_close(struct kvf_fabric *fabric, struct kvf_view *view);

/* Writes into our own region so that peers who read it in place notice: nothing that is there may be overwritten in another way,
 * but what was taken. The range is inside it, and ready. The fabric's threads. */
void kvf_fabric_region_write(struct kvf_fabric *fabric, uint64_t offset, const void *from, size_t bytes);
/* From take to give, of the same range, its bytes may be written in any way and at any time: peers read nothing of it in place, nor
 * of what shares its counters (marks.h). The fabric's threads. */
void kvf_fabric_region_take(struct kvf_fabric *fabric, uint64_t offset, uint64_t bytes);
void kvf_fabric_region_give(struct kvf_fabric *fabric, uint64_t offset, uint64_t bytes);

/* Ends what the peer was asked for with this `arg`, without its callback: nothing writes to its memory any more, and the answer
 * that still comes is dropped. The peer's requests are looked at in the order in which they were asked. False: there is no such
 * request, it has ended and calls back in the next poll, or the transport is using its memory. */
bool kvf_fabric_cancel(struct kvf_peer *peer, const void *arg);

/* What the fabric keeps in memory, for people: of what, one for each of what, and how many bytes. A NULL name ends the list. */
struct kvf_fabric_size {
    const char *name, *per;
    size_t bytes;
};
const struct kvf_fabric_size *kvf_fabric_sizes(void);

/* Moves everything forward: transport, heartbeats, deadlines; copies at most 1 MiB from mapped memory. Returns events
 * handled. Call it again at once while it returns more than 0 or next_timer is in the past. */
unsigned kvf_fabric_poll(struct kvf_fabric *fabric);
/* env time at which poll must be called at the latest. */
uint64_t kvf_fabric_next_timer(const struct kvf_fabric *fabric);
#endif
