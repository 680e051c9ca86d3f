/* KVFabric: one memory for the KV caches of a GPU cluster.
 *
 * This header is the whole public interface and its manual.
 *
 * THE MODEL
 *   A *node* owns DRAM, a piece of SSD, and links to its peers. A *model* is the shape of a language model's KV cache.
 *   A *session* is one growing sequence of tokens of one model; it has exactly one home node, which decodes it. The K
 *   and V of `block_tokens` consecutive tokens, for one layer and one KV head, are a *block*; a block is sealed when it
 *   is full and never changes afterwards. A block consists of *chunks* of `chunk_tokens` tokens: the unit of selection
 *   and of the smallest read. Sealed blocks move down the tiers in the background (own DRAM, a lender's DRAM, SSD) and
 *   come back, chunk by chunk, when attention wants them.
 *
 *   One promise rules: a miss costs time; a wrong byte is a bug. Every byte that comes from SSD or from a peer is
 *   checked before it is used. It is a cache: data can be lost (a lender dies), and then the call says which token
 *   ranges to recompute; it never returns other bytes instead.
 *
 * A STEP (what an engine does for n new tokens; n is 1 in decode and up to KVF_STEP_TOKENS_MAX in prefill)
 *
 *     kvf_step_begin(session, tokens, n);
 *     for (layer = 0; layer < layers; layer++) {
 *         ... project q, k, v ...
 *         kvf_step_append(session, layer, k, v);
 *         st = kvf_step_attend(session, layer, q, out, NULL);
 *         if (st == KVF_LOST) { kvf_step_abort(session); refill, see below; start the step again; }
 *     }
 *     kvf_step_commit(session);
 *
 * REFILL (after KVF_LOST)
 *     kvf_session_lost(session, ranges, max, &count);
 *     for every range, in order: kvf_step_refill(session, range.first, range.count), then the same loop of append and
 *     attend over those tokens, then kvf_step_commit. Attention inside a refill sees the tokens before and in the
 *     range, exactly as when they were first computed.
 *
 * LIFE CYCLES
 *     config   create -> load/set -> (node_open) -> destroy. A node copies what it needs.
 *     node     open -> ... -> close. Close ends every session handle and queue of the node; pointers to them die.
 *     session  create | attach -> steps, park, resume, fork, move -> close (handle only) | drop (the data too)
 *     queue    create -> submit, drain -> destroy (cancels what is outstanding)
 *
 * THREADS
 *     A node runs one reactor thread of its own. Every call may be made from any thread; a session handle and a queue
 *     are each used by one thread at a time (no lock is taken for you). No call waits without a deadline.
 *
 * ERRORS
 *     Every call returns an enum kvf_status: 0 is success, positive is a normal outcome that is not success (a miss, a
 *     lost range, a session that lives elsewhere), negative is a failure. The group of a failure (kvf_status_group)
 *     says what it broke. Outputs are written only on KVF_OK unless a call says otherwise. The library never exits or
 *     aborts for what a peer, a disk, a file or a caller can cause.
 *
 * UNITS
 *     Sizes are bytes, times are nanoseconds of a monotonic clock, positions and lengths of sessions are tokens.
 */
#ifndef KVF_KVF_H
#define KVF_KVF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVF_API __attribute__((visibility("default")))

/* The version of this header; kvf_version() tells the library's. A minor version only adds. */
#define KVF_VERSION_MAJOR 0
#define KVF_VERSION_MINOR 1

/* ------------------------------------------------------------------------------------------------- status
 * X(name, value, group, text). The group says what a failure broke, so what a caller has to make anew:
 *   OK       nothing failed
 *   REQUEST  this call alone: its arguments, a limit, a deadline; call again, corrected or later
 *   PEER     one peer: others still answer
 *   DATA     the bytes of some blocks: recompute them
 *   DEVICE   a disk or GPU of this node: the tier is degraded, the node lives
 *   NODE     this node or its configuration
 */
#define KVF_STATUS_MAP(X)                                                                             \
    X(OK, 0, OK, "success")                                                                           \
    X(MISS, 1, OK, "the block is not here")                                                           \
    X(LOST, 2, OK, "some tokens' K and V are lost: recompute the listed ranges")                      \
    X(MOVED, 3, OK, "the session's home is another node now")                                         \
    X(CANCELLED, 4, OK, "cancelled by the caller or by close")                                        \
    X(IN_PROGRESS, 5, OK, "not finished yet")                                                         \
    X(ERR_INVALID, -1, REQUEST, "an argument is out of bounds or of the wrong form")                  \
    X(ERR_EXISTS, -2, REQUEST, "it exists already")                                                   \
    X(ERR_NOT_FOUND, -3, REQUEST, "no such thing")                                                    \
    X(ERR_BUSY, -4, REQUEST, "a limit is reached or something is in progress: try again later")       \
    X(ERR_FULL, -5, REQUEST, "no room is left in the tier")                                           \
    X(ERR_DEADLINE, -6, REQUEST, "the deadline passed")                                               \
    X(ERR_STATE, -7, REQUEST, "not allowed in this state")                                            \
    X(ERR_MODEL, -8, REQUEST, "the model's shape or weights differ from the session's")               \
    X(ERR_UNSUPPORTED, -9, REQUEST, "this build or machine cannot do that")                           \
    X(ERR_PEER_LOST, -20, PEER, "the peer is gone")                                                   \
    X(ERR_PEER_UNREACHABLE, -21, PEER, "the peer cannot be reached")                                  \
    X(ERR_PEER_PROTOCOL, -22, PEER, "the peer sent something that is not our protocol")               \
    X(ERR_PEER_VERSION, -23, PEER, "the peer speaks another version")                                 \
    X(ERR_PEER_REFUSED, -24, PEER, "the peer refused the request")                                    \
    X(ERR_STALE, -25, PEER, "the epoch or incarnation is old")                                        \
    X(ERR_PEER_AUTH, -26, PEER, "the peer does not prove the cluster's secret")                       \
    X(ERR_CORRUPT, -40, DATA, "the bytes do not match their checksum")                                \
    X(ERR_IO, -60, DEVICE, "a read or write failed")                                                  \
    X(ERR_DISK_FULL, -61, DEVICE, "no space is left on the disk")                                     \
    X(ERR_NO_DEVICE, -62, DEVICE, "no such device, or its driver is missing")                         \
    X(ERR_NO_MEMORY, -80, NODE, "out of memory")                                                      \
    X(ERR_CONFIG, -81, NODE, "the configuration has an unknown key or a value out of bounds")         \
    X(ERR_STORE, -82, NODE, "etcd cannot be reached or refused the request")                          \
    X(ERR_CLOSED, -83, NODE, "closed")                                                                \
    X(ERR_INTERNAL, -84, NODE, "a bug in KVFabric")

enum kvf_status {
#define KVF_STATUS_ENUM(name, value, group, text) KVF_##name = (value),
    KVF_STATUS_MAP(KVF_STATUS_ENUM)
#undef KVF_STATUS_ENUM
};

enum kvf_status_group { KVF_GROUP_OK, KVF_GROUP_REQUEST, KVF_GROUP_PEER, KVF_GROUP_DATA, KVF_GROUP_DEVICE, KVF_GROUP_NODE };

/* The code's name ("ERR_FULL") and its sentence. Static strings; an unknown code gives "UNKNOWN". Any thread. */
KVF_API const char *kvf_status_name(enum kvf_status status);
KVF_API const char *kvf_status_text(enum kvf_status status);
KVF_API enum kvf_status_group kvf_status_group(enum kvf_status status);

/* "0.1 (commit, features)". A static string. Any thread. */
KVF_API const char *kvf_version(void);

/* Frees what a call of this header says to free with it. NULL is fine. */
KVF_API void kvf_free(void *memory);

/* ------------------------------------------------------------------------------------------------- configuration
 * One table of settings (`kvf info -c` prints it with defaults, bounds and help). Later sources win: the defaults, a
 * file (`name = value` lines, # comments), the environment (KVF_NODE_NAME for node.name), kvf_config_set. */
struct kvf_config;

/* A configuration of defaults. The caller destroys it. ERR_NO_MEMORY. */
KVF_API enum kvf_status kvf_config_create(struct kvf_config **out);
KVF_API void kvf_config_destroy(struct kvf_config *config);

/* Reads a file. ERR_NOT_FOUND, ERR_CONFIG (kvf_config_error names file, line, key and bounds; nothing is changed). */
KVF_API enum kvf_status kvf_config_load(struct kvf_config *config, const char *path);

/* Takes every KVF_<NAME> of the environment; an unknown name that begins with KVF_ is left alone, a bad value is ERR_CONFIG. */
KVF_API enum kvf_status kvf_config_load_env(struct kvf_config *config);

/* Sets one value from text; sizes take k, M, G, T (powers of 1024), times take ns, us, ms, s. ERR_CONFIG. */
KVF_API enum kvf_status kvf_config_set(struct kvf_config *config, const char *name, const char *value);

/* Copies the value as text, cut to `size` with a NUL. ERR_NOT_FOUND for an unknown name. */
KVF_API enum kvf_status kvf_config_get(const struct kvf_config *config, const char *name, char *value, size_t size);

/* Writes an annotated file that kvf_config_load reads back. */
KVF_API enum kvf_status kvf_config_dump(const struct kvf_config *config, FILE *out);

/* One line about the last failure of a call with this configuration (kvf_node_open too). Valid until the next such call. */
KVF_API const char *kvf_config_error(const struct kvf_config *config);

/* ------------------------------------------------------------------------------------------------- node */
struct kvf_node;

/* Opens a node in this process: DRAM arena, SSD area, fabric, membership in etcd (when etcd.endpoints is set), a reactor
 * thread. The configuration may be destroyed afterwards. With etcd absent at start the call fails with ERR_STORE within
 * etcd.timeout unless etcd.required = false; kvf_config_error says what was being done and what to try.
 * An SSD area that cannot be used (no room, no permission, another process's, a later version's) is no failure unless
 * ssd.required = true: the node runs without it and its status says why.
 * Errors: ERR_CONFIG, ERR_STORE, ERR_EXISTS (a living node has this name), ERR_NO_MEMORY; with ssd.required also ERR_IO,
 * ERR_DISK_FULL, ERR_BUSY, ERR_UNSUPPORTED. */
KVF_API enum kvf_status kvf_node_open(struct kvf_config *config, struct kvf_node **out);

/* Leaves the cluster and frees everything; waits at most two seconds for what is in flight. */
KVF_API void kvf_node_close(struct kvf_node *node);

/* The node's name as peers know it. Valid until close. */
KVF_API const char *kvf_node_name(const struct kvf_node *node);

/* The node's state as JSON: tiers, bytes, sessions, peers, counters, latencies (what `kvf status` shows). *out is a
 * NUL-ended string that the caller frees with kvf_free. */
KVF_API enum kvf_status kvf_node_status_json(struct kvf_node *node, char **out);

/* Where bytes lie. REMOTE is a lender's DRAM, PEER is a session's earlier home from which it is still streaming. */
enum kvf_tier { KVF_TIER_GPU, KVF_TIER_DRAM, KVF_TIER_REMOTE, KVF_TIER_SSD, KVF_TIER_PEER, KVF_TIER_COUNT };
KVF_API const char *kvf_tier_name(enum kvf_tier tier);

struct kvf_tier_stats {
    uint64_t blocks;         /* sealed blocks that lie there now */
    uint64_t bytes;          /* their bytes */
    uint64_t capacity_bytes; /* 0 where not known */
    uint64_t chunks_read;    /* chunks that attention and gets took from there since open */
    uint64_t bytes_read;
};

struct kvf_node_stats {
    struct kvf_tier_stats tier[KVF_TIER_COUNT];
    uint64_t blocks_sealed;
    uint64_t blocks_verified; /* whole or part reads from SSD or a peer whose checksums were tested */
    uint64_t blocks_corrupt;  /* ... and did not match: reported, never returned */
    uint64_t blocks_lost;     /* blocks of sessions that became misses */
};
KVF_API enum kvf_status kvf_node_stats(struct kvf_node *node, struct kvf_node_stats *out);

/* ------------------------------------------------------------------------------------------------- model */
enum kvf_dtype { KVF_F32 = 0, KVF_F16 = 1, KVF_BF16 = 2 };
/* Bytes of one element. 0 for an unknown type. */
KVF_API size_t kvf_dtype_bytes(enum kvf_dtype dtype);

struct kvf_model_desc {
    char name[64];         /* NUL-ended; letters, digits, . _ - */
    uint64_t weights_id;   /* identity of the weights: a hash of them; two weights never share bytes */
    uint32_t layers;       /* 1..1024 */
    uint32_t kv_heads;     /* 1..1024 */
    uint32_t q_heads;      /* a multiple of kv_heads (GQA) */
    uint32_t dim_k, dim_v; /* head dimension of K and of V: 16..512, multiples of 16 */
    enum kvf_dtype dtype;  /* of K and V as stored */
    uint32_t chunk_tokens; /* a power of two, 4..64; chunk bytes = chunk_tokens * (dim_k + dim_v) * element bytes */
    uint32_t block_tokens; /* a multiple of chunk_tokens, at most 64 chunks, at most 256; block bytes must be a multiple of 4096 */
};

struct kvf_model;

/* Opens a model on a node; the same description gives the same model. The node owns it until close. The model is also
 * registered in etcd; another shape under the same name is ERR_MODEL. ERR_INVALID, ERR_STORE, ERR_BUSY (64 models). */
KVF_API enum kvf_status kvf_model_open(struct kvf_node *node, const struct kvf_model_desc *desc, struct kvf_model **out);

/* 64 bits over shape, type and weights: part of every block's checksum. */
KVF_API uint64_t kvf_model_fingerprint(const struct kvf_model *model);

/* ------------------------------------------------------------------------------------------------- session */
#define KVF_STEP_TOKENS_MAX 256
#define KVF_STATE_BYTES_MAX 4096
#define KVF_SESSION_TOKENS_MAX (1u << 20)

struct kvf_session;

struct kvf_range {
    uint64_t first; /* token position */
    uint64_t count; /* tokens */
};

struct kvf_session_info {
    uint64_t id;
    uint64_t epoch;         /* rises by one at every change of home */
    uint64_t tokens;        /* committed */
    uint64_t tokens_sealed; /* of these in sealed blocks */
    uint64_t blocks[KVF_TIER_COUNT];
    bool parked;
    bool streaming; /* blocks still come from the earlier home */
    char model[64]; /* the model's name */
};

/* Creates an empty session whose home is this node: one etcd transaction. `id` is 1..2^63-1, unique in the cluster.
 * The caller closes or drops it. ERR_EXISTS (a session of that id has a home), ERR_STORE, ERR_BUSY (sessions_max). */
KVF_API enum kvf_status kvf_session_create(struct kvf_node *node, struct kvf_model *model, uint64_t id, struct kvf_session **out);

/* Opens a session whose home is this node (it was moved here, or its handle was closed). Waits until it arrives or
 * `timeout_ns` passes. ERR_NOT_FOUND / ERR_DEADLINE, ERR_MODEL (the model differs), ERR_STATE (a handle is open). */
KVF_API enum kvf_status kvf_session_attach(struct kvf_node *node, struct kvf_model *model, uint64_t id, uint64_t timeout_ns,
                                           struct kvf_session **out);

/* Ends the handle. The session stays on the node. An open step is aborted. */
KVF_API void kvf_session_close(struct kvf_session *session);

/* Ends the handle and frees the session's blocks everywhere, and its placement. ERR_BUSY while a fork of it lives, ERR_STATE while
 * a move is under way, ERR_STORE: nothing was done. ERR_DEADLINE: etcd did not answer in time, and may have forgotten the session:
 * the handle takes only drop (to try again) and close from then on; attach gives another one for drop. */
KVF_API enum kvf_status kvf_session_drop(struct kvf_session *session);

KVF_API enum kvf_status kvf_session_info(struct kvf_session *session, struct kvf_session_info *out);

/* Copies `count` committed token ids from position `first`. ERR_INVALID beyond the end. */
KVF_API enum kvf_status kvf_session_tokens(struct kvf_session *session, uint64_t first, uint64_t count, int32_t *out);

/* The engine's own state (a sampler's seed, say) that travels with the session: at most KVF_STATE_BYTES_MAX, copied. */
KVF_API enum kvf_status kvf_session_state_set(struct kvf_session *session, const void *state, size_t bytes);
/* *bytes is the room on entry and the size on return; ERR_INVALID when the room is too small (*bytes tells the size). */
KVF_API enum kvf_status kvf_session_state_get(struct kvf_session *session, void *state, size_t *bytes);

/* Token ranges whose K and V are lost, whole blocks, in rising order, not overlapping; 0 ranges when nothing is lost.
 * *count is the number written, at most `max`; refill them and ask again. */
KVF_API enum kvf_status kvf_session_lost(struct kvf_session *session, struct kvf_range *ranges, size_t max, size_t *count);

/* A second session with the same tokens that shares the sealed blocks (copy on write); no step may be open.
 * Waits for room in DRAM for the open blocks, at most fetch.timeout. ERR_EXISTS, ERR_STATE, ERR_STORE, ERR_FULL. When it fails for
 * want of room while etcd is away, the new id stays taken here: attach and drop it. */
KVF_API enum kvf_status kvf_session_fork(struct kvf_session *session, uint64_t new_id, struct kvf_session **out);

/* Moves the session's blocks out of DRAM (to lenders, then SSD), and back as far as there is room. A parked session
 * refuses steps with ERR_STATE until resumed. ERR_FULL when there is nowhere to put the blocks (nothing is lost). */
KVF_API enum kvf_status kvf_session_park(struct kvf_session *session, uint64_t timeout_ns);
KVF_API enum kvf_status kvf_session_resume(struct kvf_session *session, uint64_t timeout_ns);

struct kvf_move_report {
    uint64_t stop_ns;             /* from the freeze of the old home to the target's word that it can decode */
    uint64_t bytes_before_switch; /* sent to the target before the placement changed: index, tokens, open blocks */
    uint64_t bytes_after_switch;  /* of sealed blocks that the target will pull from the old home */
    uint64_t epoch;               /* the new one */
};

/* Moves the session to the node named `target`. No step may be open. On KVF_OK the session's home is the target, which
 * can decode at once; this handle only takes close and answers KVF_MOVED otherwise; the old home serves cold blocks
 * until the target has them. On failure the session is still here and usable, except KVF_ERR_DEADLINE while etcd is
 * unreachable: then the outcome is settled when etcd answers, and until then steps return ERR_STATE.
 * ERR_NOT_FOUND (no such node), ERR_PEER_*, ERR_STORE, ERR_DEADLINE, ERR_BUSY (forks share its blocks, it still
 * streams in from its earlier home, or the target is being drained), ERR_UNSUPPORTED (a chunk or an open block is larger than
 * the target's messages, which fabric.segment sets). */
KVF_API enum kvf_status kvf_session_move(struct kvf_session *session, const char *target, uint64_t timeout_ns,
                                         struct kvf_move_report *report);

/* ------------------------------------------------------------------------------------------------- step
 * All of them: the session's thread. K, V, q and out are fp32, row-major, dense, owned by the caller, used only during
 * the call. A step is not visible to fork, move or park until committed. */

/* Opens a step that adds n tokens (1..KVF_STEP_TOKENS_MAX). KVF_LOST: refill the lost ranges first. KVF_MOVED when the home
 * changed (kvf move on the command line), ERR_STATE (parked, or a step is open), ERR_BUSY while a move is under way,
 * ERR_INVALID. */
KVF_API enum kvf_status kvf_step_begin(struct kvf_session *session, const int32_t *tokens, uint32_t n);

/* Opens a step that recomputes n committed tokens from position `first`, at most KVF_STEP_TOKENS_MAX; both are multiples of
 * the model's block_tokens (the ranges of kvf_session_lost are whole blocks). Blocks that are not lost stay as they are. Of a
 * session and its forks one refills at a time: the others get ERR_BUSY, and their attends wait for blocks that are refilled. */
KVF_API enum kvf_status kvf_step_refill(struct kvf_session *session, uint64_t first, uint32_t n);

/* The step's K [n][kv_heads][dim_k] and V [n][kv_heads][dim_v] of one layer, after position encoding; once per layer.
 * ERR_FULL when neither DRAM nor a lower tier has room: nothing that was committed is lost. */
KVF_API enum kvf_status kvf_step_append(struct kvf_session *session, uint32_t layer, const float *k, const float *v);

struct kvf_attend_options {
    float scale;           /* of the logits; 0 means 1/sqrt(dim_k) */
    float budget;          /* share of the chunks to attend to, (0, 1]; 0 means 1: all of them */
    uint32_t sink_tokens;  /* always attended at the start and the end, under a budget; 0 means 4 and 64 */
    uint32_t local_tokens;
    uint64_t timeout_ns;   /* 0 means fetch.timeout of the configuration */
};

/* Causal attention of the step's queries q [n][q_heads][dim_k] over everything before and in the step; out is
 * [n][q_heads][dim_v]. The result does not depend on which tier a block came from nor on n: partial results are merged
 * in the order of the blocks (bit for bit the same as kernels over plain memory with the same blocks). Blocks at another node may
 * be attended there (attend.remote): then that node's kernels compute the same bits as ours. Not so where attend.parts is merged:
 * results may then differ from run to run, each within the kernels' bound of the exact one (relative, L2: 1e-4). Nor where
 * cold.format is int8 or fp8, here or at an earlier home: then a block that went below DRAM has lost some precision since,
 * as kernels/dev.h states, and the result differs a little with where the blocks are and were. It loses once: going up and
 * down again in one format changes nothing more.
 * `options` may be NULL. KVF_LOST: some blocks are lost (kvf_session_lost lists them); abort the step and refill.
 * ERR_DEADLINE: not all blocks came in time; the step may be tried again from this call. */
KVF_API enum kvf_status kvf_step_attend(struct kvf_session *session, uint32_t layer, const float *q, float *out,
                                        const struct kvf_attend_options *options);

/* What one attend under a budget chose, of one layer and KV head. Chunk c holds the tokens from c * chunk_tokens on. */
struct kvf_selection {
    uint64_t first;        /* position of the step's first token */
    uint32_t tokens;       /* of the step */
    uint32_t layer, head;
    uint32_t chunks;       /* sealed chunks before the step: what was chosen from */
    uint32_t best;         /* so many were chosen for their score; the rest of `chosen` for their place */
    uint32_t n_chosen;
    const float *scores;    /* [chunks] every chunk's score for this step's queries, chosen or not */
    const uint32_t *chosen; /* [n_chosen] in rising order */
};
typedef void (*kvf_selection_fn)(const struct kvf_selection *selection, void *arg);

/* A debugging aid: `observe` is called by every kvf_step_attend of this handle that selects (0 < budget < 1), once per KV head
 * and before the bytes are fetched, in the caller's thread. What it is given is valid during its call. The node waits
 * meanwhile, so it returns soon and calls nothing of this header. NULL ends it; closing the handle does too. The session's
 * thread. ERR_INVALID. An attend that is tried again is seen again. */
KVF_API enum kvf_status kvf_session_observe(struct kvf_session *session, kvf_selection_fn observe, void *arg);

/* Makes the step's tokens part of the session, seals full blocks. ERR_STATE when a layer was not appended. */
KVF_API enum kvf_status kvf_step_commit(struct kvf_session *session);

/* Forgets the step. Always succeeds; without an open step it does nothing. */
KVF_API void kvf_step_abort(struct kvf_session *session);

/* ------------------------------------------------------------------------------------------------- blocks
 * For prefix caches: a block is opaque bytes under a 128-bit key (a content hash that includes model and layout). They share
 * memory, lenders and SSD with the sessions' blocks. Where none of these has room the node drops opaque blocks (dram.policy and
 * counters evicted_blocks, evicted_bytes): a later get is KVF_MISS. It never drops a session's.
 * Requests are submitted in batches and complete in any order; wait on the event fd or poll, then drain. */
struct kvf_key {
    uint64_t hi, lo;
};

/* PERSIST makes a block that was put durable: it completes when the block lies on this node's SSD such that a node of the same
 * name finds it there after kill -9 or the loss of power. The copy in DRAM stays. Like every block on a full SSD it may be
 * evicted later for want of room; REMOVE removes it for good, though a crash soon after (about a second; longer
 * where the SSD cannot keep up) may bring it back. OK is said of what this process wrote and synced: a block that the node found at
 * its start is read, compared with its checksums and written once more first; one that does not match or cannot be read is dropped.
 * KVF_MISS when there is no such block (any more); ERR_UNSUPPORTED (no SSD), ERR_FULL, ERR_IO, ERR_DISK_FULL (the SSD takes no
 * blocks now; after a sync that failed, until the node starts again),
 * ERR_STATE (the block lies at a lender, without a copy here: get it, remove it, put it again), ERR_DEADLINE. */
enum kvf_op { KVF_OP_PUT, KVF_OP_GET, KVF_OP_EXISTS, KVF_OP_REMOVE, KVF_OP_PERSIST };

struct kvf_request {
    enum kvf_op op;
    struct kvf_key key;
    void *data;      /* PUT: the bytes to read; GET: where to write; else NULL. The caller's until the completion */
    uint64_t offset; /* GET: first byte of the range; PUT: 0 */
    uint64_t length; /* PUT: the block's size, 1..block_bytes_max; GET: of the range */
    uint64_t user;   /* comes back in the completion */
};

struct kvf_completion {
    uint64_t user;
    enum kvf_status status; /* GET, EXISTS, REMOVE: KVF_MISS when there is no such block; PUT: ERR_EXISTS, ERR_FULL (none may go) */
    enum kvf_tier tier;     /* GET, EXISTS: where it lay */
    uint64_t length;        /* EXISTS: the block's size; GET: bytes written */
};

struct kvf_queue;

/* A queue of at most `depth` (1..65536) outstanding requests. ERR_BUSY (256 queues), ERR_NO_MEMORY. */
KVF_API enum kvf_status kvf_queue_create(struct kvf_node *node, uint32_t depth, struct kvf_queue **out);
/* Cancels what is outstanding; when it returns no buffer of a request is touched any more. */
KVF_API void kvf_queue_destroy(struct kvf_queue *queue);

/* Takes the first *accepted requests of the batch; the rest did not fit (ERR_BUSY when none did). `timeout_ns` 0 means
 * fetch.timeout. Memory of a GET that lies in registered memory and is 4096-aligned is written without a copy. */
KVF_API enum kvf_status kvf_submit(struct kvf_queue *queue, const struct kvf_request *requests, size_t count, uint64_t timeout_ns,
                                   size_t *accepted);

/* Becomes readable when completions wait; draining them all resets it. Valid until destroy; never close it. */
KVF_API int kvf_queue_fd(const struct kvf_queue *queue);

/* Copies out at most `max` completions and returns at once; *count may be 0. */
KVF_API enum kvf_status kvf_drain(struct kvf_queue *queue, struct kvf_completion *completions, size_t max, size_t *count);

/* The length of the longest prefix of `keys` that this node can serve: one call instead of many. No I/O. */
KVF_API enum kvf_status kvf_exists_prefix(struct kvf_node *node, const struct kvf_key *keys, size_t count, size_t *prefix);

/* Pins a block that lies in this node's DRAM and gives its address for reading in place, until unpin. KVF_MISS when it
 * is not in DRAM (or is pinned 65535 times). Pins are counted: one unpin each. A pinned block that is removed stays readable until
 * the last unpin; its key can be put again only then. Any thread; a block at rest in DRAM takes no lock and no message. */
KVF_API enum kvf_status kvf_block_pin(struct kvf_node *node, struct kvf_key key, const void **data, uint64_t *length);
KVF_API void kvf_block_unpin(struct kvf_node *node, struct kvf_key key);

/* Memory of the caller's that reads and transfers may use without a copy. `memory` is 4096-aligned; it stays the
 * caller's and must outlive the registration. At most 64. ERR_INVALID, ERR_BUSY. */
struct kvf_memory;
KVF_API enum kvf_status kvf_memory_register(struct kvf_node *node, void *memory, size_t bytes, struct kvf_memory **out);
KVF_API void kvf_memory_unregister(struct kvf_memory *registration);

#ifdef __cplusplus
}
#endif
#endif
