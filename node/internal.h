/* The node from the inside. One struct kvf_core holds everything; its lock guards all of it but what says otherwise.
 *
 * The reactor thread calls kvf_core_poll under the lock; API threads take the lock for short, bounded pieces (look-ups,
 * pins, starting a request) and wait on core->changed. Data is copied, checked and attended outside the lock, on memory
 * that is pinned. Tests create a core without a reactor and call kvf_core_poll by hand.
 *
 * Who calls whom, top down:
 *     node.c (API, reactor thread)   step.c (attend)   blocks.c (put, get)   admin.c, status.c
 *     session.c   move.c (move a session)   promote.c (blocks up)   spill.c (blocks down)   staging.c (cold blocks for attend)
 *     ahead.c (which cold chunks the next layers will want)   cold.c (blocks in 8 bits an element)
 *     device.c (which chunks lie in the device cache)
 *     pace.c (which peers are slow)   hedge.c (the second copy of a block at a lender)
 *     read.c (bring chunks of one block to a place)   serve.c (reads by key for other nodes)
 *     lend.c (the lender's side)   claim.c, reclaim.c (it wants memory back)   yield.c (the borrower moves blocks away)
 *     area.c (the SSD area: open, off, degraded)   scrub.c (blocks on SSD are checked again and again)
 *     ram.c (the memory, made ready in pieces)   dram.c (where own blocks lie in it)   drain.c (nothing more of others)
 *     attend_remote.c, attend_serve.c, attend_cost.c (attention where the bytes lie: asker, holder, whether it pays)
 *     cluster.c (members, peers, placement)   core.c (memory, blocks, poll)   wire.c (message payloads)
 */
#ifndef KVF_NODE_INTERNAL_H
#define KVF_NODE_INTERNAL_H

#include "base/bucket.h"
#include "base/bytes.h"
#include "base/config.h"
#include "base/counters.h"
#include "base/env.h"
#include "base/latencies.h"
#include "base/log.h"
#include "base/priority.h"
#include "base/recent.h"
#include "base/workers.h"
#include "coordinator/coordinator.h"
#include "fabric/fabric.h"
#include "kernels/dev.h"
#include "tiers/arena.h"
#include "tiers/cache.h"
#include "tiers/dramlist.h"
#include "tiers/policy.h"
#include "tiers/index.h"
#include "tiers/ssd.h"
#include "tiers/sums.h"
#include <pthread.h>

#define KVF_MODELS_MAX 64
#define KVF_PEER_NONE UINT16_MAX
#define KVF_ORIGINS_MAX 16
#define KVF_MEMORIES_MAX 64 /* pieces of callers' memory that are registered */
#define KVF_TAIL_BLOCKS 18 /* open blocks of one (layer, head): one, and what a step of 256 tokens adds with blocks of 16 */
#define KVF_BATCH_MAX 64   /* blocks in one message */
#define KVF_OPAQUE_BIT (1ull << 63)

/* ---------------------------------------------------------------- blocks (core.c)
 * States of an entry of the index:
 *   WRITING   its bytes are being put into DRAM (put, refill, promote from a dead tier): not visible to readers
 *   READY     whole, at (tier, peer, location)
 *   SPILLING  READY in DRAM and being copied down; readers go on using DRAM
 *   RISING    READY below DRAM and being copied up; readers go on using the lower copy
 *   LOST      was here once; its key and checksums are kept, its bytes are gone
 * WRITING -> READY <-> SPILLING -> READY(lower); READY(lower) <-> RISING -> READY(DRAM); any READY -> LOST -> WRITING (refill). */
enum kvf_block_state { KVF_BLOCK_WRITING, KVF_BLOCK_READY, KVF_BLOCK_SPILLING, KVF_BLOCK_RISING, KVF_BLOCK_LOST };
/* flags of an entry */
#define KVF_FLAG_DEPARTED 1 /* of a session that moved away: goes down to SSD only, freed when the new home says so */
#define KVF_FLAG_SUMMARY 4  /* its chunks' summaries are known here */
#define KVF_FLAG_FETCHED 8  /* the new home has it already, though we have not heard yet that the session is its own */
#define KVF_FLAG_REMOVED 2  /* to be removed when its spill, rise or pins end */
#define KVF_FLAG_FOUND 4    /* opaque, so SUMMARY never: its copy on SSD was found at the start, and not written since */
#define KVF_FLAG_KEEPING 8  /* opaque, so FETCHED never: a durable copy of it is being written; the copy that it has stays */
#define KVF_FLAG_WIDE 16    /* its words have room for scales (cold.c); set when the entry is made */
#define KVF_FLAG_INT8 32    /* it lies in 8 bits an element: bytes, chunks and checksums are of these */
#define KVF_FLAG_FP8 64
#define KVF_FLAG_USED 128   /* opaque, below DRAM: read since the hand that evicts from the SSD last came by */

struct kvf_model {
    struct kvf_core *core;
    struct kvf_model_desc desc;
    uint16_t number;
    uint64_t fingerprint;
    uint32_t chunk_bytes, block_bytes, chunks; /* chunks of a block */
    uint32_t streams;                          /* layers * kv_heads: sequences of blocks of a session */
    uint32_t summary_floats;
    bool cold; /* some block of it may lie in 8 bits an element */
};

/* How fast a peer answers (pace.c). */
struct kvf_pace {
    struct kvf_recent recent;
    bool slow;
    uint64_t slow_ns; /* since when */
};

/* One peer of the fabric, by number; entries of the index name lenders and old homes so. */
struct kvf_node_peer {
    struct kvf_core *core;
    struct kvf_peer *peer; /* NULL: the number is free */
    uint16_t number;
    struct kvf_member member;    /* from etcd, or name and incarnation alone */
    bool up;
    uint64_t lend_retry_ns;      /* it said it was full: not asked for slots before then */
    uint64_t borrowed_blocks, borrowed_bytes, streaming_blocks; /* ours that it lends for; of sessions that moved here from it */
    uint64_t lent_blocks, lent_bytes;         /* theirs that lie here */
    uint64_t asked_bytes, ask_retry_ns;       /* of these, asked back; when it may be asked again */
    bool reset;                  /* it may hold blocks of ours that we gave up: RELEASE_ALL goes first */
    bool untidy, resetting;      /* it may hold a few beside those in use: RELEASE_ALL goes when these are no more; it is sent */
    uint64_t adopt_ns;           /* until then it may hold blocks under our name that moved with a session: no RELEASE_ALL */
    uint64_t retry_ns;           /* DOWN: when to connect anew */
    bool leaving;                /* DOWN: blocks that lay there are still to be given up (cluster.c) */
    char leave_name[64];         /* who it was, by then */
    uint64_t leave_cursor, leave_lost;
    unsigned serving_pieces;     /* of its READs, on their way to it, but for small ones (serve.c) */
    struct kvf_pace pace;        /* how fast it answers */
    struct kvf_key releases[2][KVF_BATCH_MAX]; /* waiting to be sent: to a lender, to an old home */
    unsigned n_releases[2];
};

/* ---------------------------------------------------------------- sessions (session.c) */
enum kvf_sess_state {
    KVF_SESS_CREATING, /* waiting for etcd */
    KVF_SESS_ACTIVE,
    KVF_SESS_FROZEN,   /* a move is under way: no step, no spill */
    KVF_SESS_UNKNOWN,  /* the transaction of its move or drop has no known outcome yet */
    KVF_SESS_DEPARTED, /* its home is another node; blocks stay for it to fetch */
    KVF_SESS_INCOMING, /* being handed over to us */
};

struct kvf_origin {
    uint64_t owner;     /* session id in the keys of the blocks */
    uint32_t blocks_to; /* ... whose index is below this */
};

struct kvf_sess {
    struct kvf_core *core;
    struct kvf_model *model;
    uint64_t id, epoch;
    enum kvf_sess_state state;
    bool parked;
    bool parking; /* its blocks are leaving DRAM */
    bool rising;  /* resumed, or there is more room: its blocks come back to DRAM */
    struct kvf_sess *next;   /* in the table's bucket */
    struct kvf_sess *before, *after; /* in the list of all, for what looks at each of them in every poll */
    struct kvf_sess *parent; /* it shares blocks with this one */
    unsigned forks;          /* living forks */
    char new_home[64];       /* DEPARTED */

    struct kvf_origin origins[KVF_ORIGINS_MAX];
    unsigned n_origins;

    int32_t *tokens; /* [tokens_room] */
    uint64_t n_tokens, tokens_room;
    uint32_t sealed_blocks; /* per stream */
    uint8_t blob[KVF_STATE_BYTES_MAX];
    size_t blob_bytes;
    uint64_t *tail;      /* [streams][KVF_TAIL_BLOCKS] arena offsets of open blocks, KVF_ARENA_NONE */
    float *summaries;    /* [streams][summary_chunks_room][summary_floats] mean keys of sealed chunks */
    uint32_t summary_chunks_room;
    uint64_t lost;       /* entries in state LOST */
    uint64_t spilling;   /* copies of its blocks under way, up or down */
    uint64_t life;       /* which of the sessions that had this id it is: each copy knows whose it is */
    uint64_t from_peer;  /* entries in tier PEER: still to stream in */
    uint64_t departed_left; /* DEPARTED: entries that the new home has not said it has */
    bool dropping, move_wanted; /* UNKNOWN: etcd may have forgotten it, another drop can tell; a move waits for the step to end */
    struct kvf_session *handle; /* the open handle, or NULL */

    /* the open step; the handle's thread writes it under the lock */
    bool step_open, step_refill;
    struct kvf_sess *refiller; /* of a session that is no fork: who of it and its forks has a refill open, or NULL */
    uint64_t step_first;
    uint32_t step_n;
    int32_t step_tokens[KVF_STEP_TOKENS_MAX];
    uint8_t *step_layers;  /* [layers] appended */
    struct kvf_scratch *scratch; /* of attend (step.c) */
    struct kvf_ahead *ahead;     /* ahead.c */
    struct kvf_device_session *device; /* device.c: its chunks in the device cache, once it had a budgeted step */
};

/* The public handle. */
struct kvf_session {
    struct kvf_node *node;
    struct kvf_sess *sess;
    _Atomic bool moved; /* the home is elsewhere: sess may be gone. Set under the lock, never while a step is open */
    bool stepping;      /* a step is open; for its own thread, which may look at sess without the lock only then */
    uint64_t id;
    kvf_selection_fn observe; /* kvf_session_observe, or NULL */
    void *observe_arg;
};

/* ---------------------------------------------------------------- reads (read.c)
 * Brings chunks of one block from wherever it lies below DRAM to a place in memory. What is copied on its way here is verified in
 * the same pass (`verified`), what comes one-sided while more is on its way; the rest, and what did not match, is for who uses it.
 * QUEUED -> POSTED -> (done called, freed). Grouped by source when dispatched. */
struct kvf_read {
    struct kvf_core *core;
    kvf_handle handle;
    uint64_t mask;     /* chunks wanted */
    uint64_t verified; /* of these, those that were compared with their checksums when they came */
    uint32_t bytes, chunk_bytes; /* of the block, in the format that it had when it was asked for */
    uint8_t *to;       /* where chunk 0 of the block would go: a chunk goes to to + its offset in the block */
    uint64_t deadline_ns;
    enum kvf_priority priority; /* DEMAND or AHEAD */
    uint8_t tier;      /* the source, once posted */
    uint16_t peer;
    uint32_t runs;     /* SSD requests outstanding */
    enum kvf_status status;
    uint64_t start_ns;
    struct kvf_key key; /* of the entry: a handle may be another block's by the time it is looked at */
    struct hedge *hedge; /* its second copy is being read too (hedge.c), or NULL */
    bool no_copy;        /* ... was, in vain */
    struct kvf_read *next, **at; /* at: where it is linked while QUEUED, else NULL */
    /* KVF_OK; KVF_LOST (no copy exists any more); ERR_BUSY (the source takes no more now: ask again); ERR_DEADLINE; ERR_IO;
     * CANCELLED. Called under the lock. */
    void (*done)(void *arg, struct kvf_read *read, enum kvf_status status);
    void *arg;
};

/* ---------------------------------------------------------------- staging (staging.c)
 * Cold blocks on their way to attention or a get, and a small cache of them: one slot of memory per block, filled chunk by chunk. A
 * session's block in a lender's memory that is mapped here is not brought: its stage is a view of it, all of which is `have`, as
 * long as it is pinned.
 * Bit c of the masks is chunk c. have and failed are written by the reactor and read by waiting threads; verified and
 * corrupt are written by the thread that checks. */
struct kvf_stage {
    kvf_handle handle;          /* KVF_HANDLE_NONE: free */
    const uint8_t *slot;        /* of staging, or the view's */
    struct kvf_view view;       /* open, or data is NULL. Nothing made of its bytes counts before kvf_view_same says so */
    uint32_t bytes;
    uint64_t inflight;          /* chunks asked for */
    _Atomic uint64_t have;      /* chunks whose bytes are here */
    _Atomic uint64_t verified;  /* ... and match */
    _Atomic int status;         /* of the last failed read; KVF_OK: none */
    uint32_t pins;              /* attends that use it (under the lock) */
    bool orphan;                /* its block is gone: freed when the last pin and read end */
    bool prefetched;            /* read ahead and not used yet */
    struct kvf_read *ahead;     /* the read ahead under way, for this session and layer, or NULL */
    uint64_t ahead_session;
    uint32_t ahead_layer;
    uint8_t format;             /* enum kvf_cold_format: of the bytes in the slot */
    uint64_t seed;              /* of the block when it was asked for */
    uint64_t place, asked;      /* where it lay when its bytes were asked for first, and last: a mismatch after a move is none */
    uint32_t chain;             /* the next in its bucket of the hash table by handle */
    uint32_t next, prev;        /* LRU of those at rest; or the list of those with a read ahead under way */
};
#define KVF_STAGE_NONE UINT32_MAX

struct kvf_list {
    uint32_t head, tail; /* stage numbers; KVF_STAGE_NONE when empty */
    uint64_t count;
};

struct kvf_device; /* device.c */
struct kvf_reads; /* read.c */
struct hedge;     /* hedge.c: one read of a second copy */
struct kvf_hedges;
struct kvf_spill; /* spill.c */
struct kvf_rise;  /* promote.c */
struct kvf_move;  /* move.c: one session on its way out or in */
struct kvf_scrub; /* scrub.c */
struct kvf_serve; /* serve.c */
struct kvf_lend;  /* lend.c, reclaim.c */
struct kvf_yields; /* yield.c */
struct kvf_blocks; /* blocks.c */
struct kvf_persist; /* persist.c */
struct kvf_admin;  /* admin.c */
struct kvf_ram;    /* ram.c */
struct kvf_attend_remote; /* attend_remote.c */
struct kvf_attend_serve;  /* attend_serve.c */
struct kvf_attend_costs;  /* attend_cost.c */

/* ---------------------------------------------------------------- the core */
struct kvf_core {
    struct kvf_settings settings;
    char name[KVF_NODE_NAME_MAX];
    uint64_t incarnation;
    const struct kvf_env *env;
    struct kvf_log log;
    struct kvf_counters counters;
    struct kvf_latencies latencies;

    pthread_mutex_t lock;
    pthread_cond_t changed;  /* something that an API thread may wait for happened */
    _Atomic unsigned waiting; /* API threads that want the lock: the reactor lets them */
    bool closing;

    const struct kvf_dev *dev;
    struct kvf_workers *workers;
    _Atomic bool workers_busy; /* an attend has them; another one at the same time computes alone */

    /* Memory: one range of addresses, [own DRAM | lent DRAM | staging], ready piece by piece (ram.h). */
    struct kvf_ram *ram;
    bool ram_by_hand;
    struct kvf_transport *transport; /* NULL: no peers */
    struct kvf_secret *secret;       /* NULL: none */
    uint64_t secret_look_ns;         /* when its file is looked at again */
    struct kvf_region *region;       /* what peers may read: of core->memory, the lent part; NULL: none */
    uint8_t *memory;
    uint64_t memory_bytes;
    struct kvf_arena *dram, *lent, *staging;
    uint64_t lent_at, staging_at; /* offsets of the parts */
    uint64_t lent_own_bytes;      /* of the lent part, slots that own blocks have (dram.h) */
    struct kvf_index *index;
    struct kvf_sums *sums;
    struct kvf_disk *disk;
    struct kvf_ssd *ssd; /* NULL: no SSD tier */
    struct kvf_persist *persist; /* NULL as long as there is no SSD tier */
    char ssd_off[KVF_CONFIG_TEXT_MAX]; /* why there is none though ssd.path is set; else "" */
    bool ssd_degraded;                 /* as last logged */
    char ssd_reason[256];              /* ... and why */
    enum kvf_cold_format cold_format; /* of this node's session blocks below DRAM */
    uint64_t cold_left;               /* bytes that may still be encoded in this turn */
    bool cold_wait;                   /* some block had to wait in this turn */
    uint64_t cold_bytes;              /* of staging, lent to blocks on their way down or up */
    uint64_t words_excess, words_excess_max; /* of `sums`: beyond 64 words a block */
    uint64_t entries_reserved;   /* of the index, promised to commits that must not fail half-way */
    struct kvf_dramlist *dram_blocks; /* READY in DRAM */
    struct kvf_evict *evict;
    uint64_t tier_blocks[KVF_TIER_COUNT], tier_bytes[KVF_TIER_COUNT];
    uint64_t ssd_copies; /* entries with a copy beside their block (ssd4k) */

    struct kvf_fabric *fabric; /* NULL: no peers */
    struct kvf_node_peer *peers; /* [peers_max] */
    struct kvf_store *store;   /* NULL: alone */
    struct kvf_coord *coord;
    bool joined, store_up;
    enum kvf_status join_status;
    bool join_ended;

    struct kvf_model *models[KVF_MODELS_MAX];
    unsigned n_models;
    struct kvf_sess **sessions; /* hash table of `session_buckets` */
    uint32_t session_buckets;
    struct kvf_sess *sessions_all; /* the same, the newest first */
    uint64_t n_sessions, session_lives;

    struct kvf_reads *reads;
    struct kvf_hedges *hedges;
    uint64_t pace_look_ns; /* when the peers' pace is looked at next */
    unsigned reads_max, reads_queued; /* queued: not yet posted */
    struct kvf_stage *stages;   /* [stages_max] */
    uint32_t stages_max;
    uint32_t *stage_table;         /* hash table by entry handle: stages, linked by their `chain` */
    uint32_t stage_buckets;
    struct kvf_list stage_free, stage_lru, stage_ahead;
    bool in_place;          /* lenders' memory that is mapped here is read where it lies; benches set it */
    uint32_t stage_orphans; /* stages whose block is gone that an attend still has pinned */

    struct kvf_device *device; /* NULL: gpu.bytes is 0 */
    struct kvf_spill *spills;
    struct kvf_rise *rise;
    struct kvf_scrub *scrub; /* NULL: off */
    struct kvf_move *moves;
    struct kvf_serve *serves;
    struct kvf_lend *lend;
    struct kvf_yields *yields;
    struct kvf_blocks *blocks;
    struct kvf_memory *memories[KVF_MEMORIES_MAX]; /* registered.c; NULL: free */
    /* attend_remote.h; all NULL: no peers */
    struct kvf_attend_remote *attend_remote; /* NULL too: attend.remote is off */
    struct kvf_attend_serve *attend_serve;   /* NULL too: attend.serve is 0 */
    struct kvf_attend_costs *attend_costs;
    unsigned attend_mode;    /* enum kvf_attend_mode */
    bool attend_merged;      /* attend.parts */
    bool draining;       /* nothing of others is taken on any more (drain.c) */
    unsigned n_parking;  /* sessions on their way out of DRAM */
    unsigned leaving;    /* peers that are */
    uint64_t leave_entries; /* of the index, looked at in one turn of their walk; 0: as many as suit. For tests */
    bool departed_done;  /* some session that departed has nothing left here */
    bool spill_urgent;   /* somebody waits for room */
    bool spill_stuck;    /* ... and there is nowhere to spill to */

    char admin_address[64];
    int wake_fd; /* eventfd: API threads wake the reactor; -1 in stepped tests */
    void (*idle)(void *arg); /* stepped tests: what a wait does instead of polling this core alone; NULL: polls it */
    void *idle_arg;
};

/* What a core is built over. Tests give doubles. The core takes over all but env and log (also when create fails). */
struct kvf_core_parts {
    const struct kvf_env *env;
    struct kvf_transport *transport;
    struct kvf_secret *secret;
    struct kvf_store *store;
    struct kvf_disk *disk;
    enum kvf_status disk_status; /* why disk is NULL though ssd.path is set, and in a line; else OK and NULL */
    const char *disk_error;
    const struct kvf_dev *dev; /* NULL: this machine's best CPU table */
    bool ram_by_hand; /* stepped tests: only what is needed to serve is ready; kvf_ram_step does the rest */
    FILE *log;
};

/* core.c */
/* Whether a node may have that name: etcd keys, file names and frames hold it. */
bool kvf_core_name_fine(const char *name);
enum kvf_status kvf_core_create(const struct kvf_settings *settings, const struct kvf_core_parts *parts, char *error,
                                size_t error_size, struct kvf_core **out);
void kvf_core_destroy(struct kvf_core *core);
/* One turn of every machine; returns the events handled. Under the lock. */
unsigned kvf_core_poll(struct kvf_core *core);
uint64_t kvf_core_next_timer(const struct kvf_core *core);
void kvf_core_lock(struct kvf_core *core);   /* an API thread's way in */
void kvf_core_unlock(struct kvf_core *core);
void kvf_core_wake(struct kvf_core *core);   /* the reactor has something new to do */
void kvf_core_changed(struct kvf_core *core); /* wakes API threads that wait */
/* Waits for core->changed under the lock, at most until `deadline_ns`. Stepped tests (no reactor) poll instead. false: past it. */
bool kvf_core_wait(struct kvf_core *core, uint64_t deadline_ns);

struct kvf_key kvf_block_key(uint64_t session, uint32_t layer, uint32_t head, uint32_t index);
/* Of the checksums of a block: mixes the model's fingerprint (opaque: 0) and the key. */
uint64_t kvf_block_seed(uint64_t fingerprint, struct kvf_key key);
uint64_t kvf_block_seed_of(const struct kvf_core *core, const struct kvf_entry *entry);
uint32_t kvf_block_opaque_chunk_bytes(uint32_t bytes); /* of an opaque block of so many bytes */
/* Size of a chunk of an entry, as it lies now; the last one may be smaller. */
uint32_t kvf_block_chunk_bytes(const struct kvf_core *core, const struct kvf_entry *entry);
/* Checksums of the chunks of `mask` of bytes at `data` (chunk c at its offset). Without the lock, on pinned data. */
void kvf_block_sum(const struct kvf_dev *dev, uint64_t seed, const void *data, uint32_t bytes, uint32_t chunk_bytes, uint64_t mask,
                   uint64_t *sums);
/* True when the chunks of `mask` match. */
bool kvf_block_verify(const struct kvf_dev *dev, uint64_t seed, const void *data, uint32_t bytes, uint32_t chunk_bytes,
                      uint64_t mask, const uint64_t *sums);
/* Stands for the bytes of these chunks: other bytes give another number. */
uint64_t kvf_block_content(const struct kvf_core *core, const struct kvf_entry *entry, uint64_t mask);
/* Books: every change of tier, state or list goes through these, so that the counts agree with the entries. */
void kvf_block_place(struct kvf_core *core, kvf_handle handle, enum kvf_tier tier, uint16_t peer, uint64_t location); /* -> READY */
/* ... in another format, of which these are the words. kvf_cold_may_change allows it. */
void kvf_block_place_as(struct kvf_core *core, kvf_handle handle, enum kvf_tier tier, uint16_t peer, uint64_t location,
                        enum kvf_cold_format format, const uint64_t *words);
void kvf_block_lose(struct kvf_core *core, kvf_handle handle);  /* frees its copy, -> LOST */
void kvf_block_remove(struct kvf_core *core, kvf_handle handle); /* frees its copy and the entry (now or when it comes to rest) */
/* Forgets a block in tier REMOTE or PEER without telling who holds it: its copy is another home's. */
void kvf_block_disown(struct kvf_core *core, kvf_handle handle);
/* Ends a pin; a block marked REMOVED goes with its last one. */
void kvf_block_let_go(struct kvf_core *core, kvf_handle handle);
/* A block marked REMOVED goes, if nothing holds it any more. */
void kvf_block_reap(struct kvf_core *core, kvf_handle handle);
void kvf_block_release_copy(struct kvf_core *core, enum kvf_tier tier, uint16_t peer, uint64_t location, uint32_t bytes,
                            unsigned chunks, struct kvf_key key);
/* Takes a DRAM block out of the list of blocks that may be spilled, and back. */
void kvf_block_unlist(struct kvf_core *core, kvf_handle handle);
void kvf_block_list(struct kvf_core *core, kvf_handle handle);
struct kvf_sess *kvf_block_session(struct kvf_core *core, const struct kvf_entry *entry); /* NULL: opaque, or its session is gone */
/* Promises room for n more entries, so that adding them cannot fail; taken back one by one as they are added. False: no room. */
bool kvf_block_reserve(struct kvf_core *core, uint64_t n);
/* DRAM for a block, or KVF_ARENA_NONE (then spilling was asked to make room). */
uint64_t kvf_block_memory(struct kvf_core *core, uint32_t bytes);
void kvf_core_check(struct kvf_core *core); /* every invariant, by assert: for tests */

/* registered.c */
bool kvf_registered_has(const struct kvf_core *core, const uint8_t *data, size_t bytes); /* all of it, in one piece */
void kvf_registered_free(struct kvf_core *core);

/* evict.c: under the lock but for kvf_evict_used */
enum kvf_status kvf_evict_create(struct kvf_core *core);
void kvf_evict_destroy(struct kvf_core *core);
/* A block came to DRAM, or leaves it: to make room, or for another reason. Of sessions' blocks they do nothing. */
void kvf_evict_came(struct kvf_core *core, const struct kvf_entry *entry);
void kvf_evict_left(struct kvf_core *core, const struct kvf_entry *entry, bool for_room);
/* A block in DRAM was used. Any thread that holds a pin of it. */
void kvf_evict_used(struct kvf_core *core, const struct kvf_entry *entry);
/* A block below DRAM was read whole to `data`, and nothing else is reading it: brings it up when the policy wants it and there is
 * room, and frees the lower copy. */
void kvf_evict_rise(struct kvf_core *core, kvf_handle handle, const uint8_t *data);
/* The opaque block that should leave DRAM next, but for these n; KVF_HANDLE_NONE: none may. */
kvf_handle kvf_evict_next(struct kvf_core *core, const kvf_handle *not_these, unsigned n);
/* Drop opaque blocks in DRAM or on the SSD until so many bytes are free; the bytes dropped, less when there were no more (or, of
 * the SSD, none among those looked at). */
uint64_t kvf_evict_dram(struct kvf_core *core, uint64_t bytes);
uint64_t kvf_evict_ssd(struct kvf_core *core, uint64_t bytes);
/* Drops one, wherever: the index has no room. */
bool kvf_evict_entry(struct kvf_core *core);
void kvf_evict_check(const struct kvf_core *core);

/* area.c */
/* Opens the area's file. OK with *out unset: ssd.path is empty. `error` gets one line. */
enum kvf_status kvf_area_open(const struct kvf_settings *settings, const struct kvf_log *log, char *error, size_t size,
                              struct kvf_disk **out);
/* Starts the tier over core->disk. Without ssd.required, OK also when the area cannot be used: then core->ssd is NULL. */
enum kvf_status kvf_area_create(struct kvf_core *core, char *error, size_t error_size);
/* The node goes on without its SSD tier: logs it and keeps the line for kvf status. */
void kvf_area_off(struct kvf_core *core, enum kvf_status status, const char *why);
/* Each turn: logs and counts when the tier becomes degraded or recovers. */
void kvf_area_watch(struct kvf_core *core);

/* cluster.c */
enum kvf_status kvf_cluster_start(struct kvf_core *core);
void kvf_cluster_poll(struct kvf_core *core);
/* Reads cluster.secret_file now; poll does it when the file has changed. What cannot be used is logged, and nothing changes. */
void kvf_cluster_secret_read(struct kvf_core *core);
void kvf_cluster_stop(struct kvf_core *core);
struct kvf_node_peer *kvf_cluster_peer(struct kvf_core *core, const char *name); /* UP or not; NULL: unknown */
struct kvf_node_peer *kvf_cluster_peer_at(struct kvf_core *core, uint16_t number);
/* Whether the block lies at a peer that is leaving: it is as good as lost. */
bool kvf_cluster_left(const struct kvf_core *core, const struct kvf_entry *entry);
/* The block as it stands: one at a peer that is leaving is given up here, which is LOST, back at its copy, or removed (NULL). */
struct kvf_entry *kvf_cluster_judge(struct kvf_core *core, kvf_handle handle);
/* Tells a lender (tier REMOTE) or an old home (PEER) that we need its copy no more; batched, at best effort: a peer that misses
 * it is told again by RELEASE_ALL when it comes back, or drops everything of ours when our lease ends. */
void kvf_cluster_release(struct kvf_core *core, struct kvf_node_peer *peer, enum kvf_tier tier, struct kvf_key key);
void kvf_cluster_coord_handler(struct kvf_core *core, struct kvf_coord_handler *out);
void kvf_cluster_fabric_handler(struct kvf_core *core, struct kvf_fabric_handler *out);

/* session.c */
enum kvf_status kvf_sess_new(struct kvf_core *core, struct kvf_model *model, uint64_t id, struct kvf_sess **out);
void kvf_sess_free(struct kvf_sess *sess);      /* blocks and memory; not its placement */
struct kvf_sess *kvf_sess_find(struct kvf_core *core, uint64_t id);
/* The session in the key of its block `index`: its own, or that it was forked from. */
uint64_t kvf_sess_owner(const struct kvf_sess *sess, uint32_t index);
kvf_handle kvf_sess_block(struct kvf_sess *sess, uint32_t layer, uint32_t head, uint32_t index);
enum kvf_status kvf_sess_tokens_room(struct kvf_sess *sess, uint64_t tokens);
/* A block begins to be copied up or down, and has been: its session counts that. Returns the session's life, 0 where there is none.
 * The block may outlive its session, and another session have its id by then. */
uint64_t kvf_sess_copy_begin(struct kvf_core *core, const struct kvf_entry *entry);
void kvf_sess_copy_end(struct kvf_core *core, const struct kvf_entry *entry, uint64_t life);
void kvf_sess_summarise(struct kvf_sess *sess, uint32_t layer, uint32_t head, uint32_t index, const uint8_t *block);
enum kvf_status kvf_model_add(struct kvf_core *core, const struct kvf_model_desc *desc, struct kvf_model **out);
void kvf_sess_scratch_free(struct kvf_sess *sess); /* step.c */
void kvf_sess_step_end(struct kvf_sess *sess);     /* step.c: frees what an uncommitted step holds */

/* read.c */
enum kvf_status kvf_reads_create(struct kvf_core *core);
void kvf_reads_destroy(struct kvf_core *core);
/* ERR_BUSY: the pool is empty. The callback comes from a later poll. *out (if asked for) is good until then. */
enum kvf_status kvf_read_start(struct kvf_core *core, kvf_handle handle, uint64_t mask, void *to, uint64_t deadline_ns,
                               enum kvf_priority priority,
                               void (*done)(void *arg, struct kvf_read *read, enum kvf_status status), void *arg,
                               struct kvf_read **out);
/* A read that is wanted now: before all that are not. */
void kvf_read_promote(struct kvf_core *core, struct kvf_read *read);
/* A read that nobody wants any more: ends CANCELLED inside the call if it is still queued (true), else when it arrives. */
bool kvf_read_cancel(struct kvf_core *core, struct kvf_read *read);
unsigned kvf_reads_poll(struct kvf_core *core);
/* Bytes that an old home sends for a READ of ours. */
void kvf_read_data(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message);
/* When the oldest request of a read to this peer that has no answer yet was asked; UINT64_MAX: there is none. */
uint64_t kvf_reads_asked_ns(const struct kvf_core *core, uint16_t peer);
/* When some read becomes late and its other copy should be read too; UINT64_MAX: none can. */
uint64_t kvf_reads_next_timer(const struct kvf_core *core);
/* The second copy of a read's block is here, whole and verified (`block` is where chunk 0 would lie), or NULL: it was in vain. */
void kvf_read_hedged(struct kvf_core *core, struct kvf_read *read, const uint8_t *block);

/* hedge.c: the second copy of a block that lies at a lender */
enum kvf_status kvf_hedges_create(struct kvf_core *core);
void kvf_hedges_destroy(struct kvf_core *core);
bool kvf_hedge_exists(const struct kvf_core *core, const struct kvf_entry *entry);
/* Reads it. false: no room now. kvf_read_hedged is called from a later poll, unless it is dropped before. */
bool kvf_hedge_start(struct kvf_core *core, struct kvf_read *read, const struct kvf_entry *entry);
void kvf_hedge_drop(struct kvf_read *read);
void kvf_hedges_poll(struct kvf_core *core, uint64_t now_ns);
bool kvf_hedges_idle(const struct kvf_core *core);

/* pace.c: which peers are slow */
void kvf_pace_add(struct kvf_node_peer *peer, uint64_t ns); /* a request was answered after so long */
void kvf_pace_reset(struct kvf_node_peer *peer);
/* After so long an answer of this peer is late. */
uint64_t kvf_pace_late_ns(const struct kvf_node_peer *peer);
void kvf_pace_poll(struct kvf_core *core, uint64_t now_ns);

/* staging.c */
enum kvf_status kvf_staging_create(struct kvf_core *core);
void kvf_staging_destroy(struct kvf_core *core);
/* The stage of a block with reads under way for the chunks of `mask` that it lacks, pinned. KVF_STAGE_NONE: no room now. */
uint32_t kvf_stage_get(struct kvf_core *core, kvf_handle handle, uint64_t mask, uint64_t deadline_ns);
/* Reads chunks ahead for a layer of a session, at low priority and only into room that nobody waits for. false: none left. */
bool kvf_stage_ahead(struct kvf_core *core, kvf_handle handle, uint64_t mask, uint64_t deadline_ns, uint64_t session,
                     uint32_t layer);
/* Drops what is still queued of the reads ahead for a session: of one layer, or of all (UINT32_MAX). */
void kvf_stage_ahead_cancel(struct kvf_core *core, uint64_t session, uint32_t layer);
void kvf_stage_unpin(struct kvf_core *core, uint32_t stage);
/* A pinned stage whose reads failed: asks again for what is missing. */
void kvf_stage_retry(struct kvf_core *core, uint32_t stage, uint64_t mask, uint64_t deadline_ns);
/* A slot of staging memory (an offset of core->staging), made by dropping what nobody uses, or KVF_ARENA_NONE. A prefetch does not
 * drop what was read ahead and not yet used. */
uint64_t kvf_stage_memory(struct kvf_core *core, uint32_t bytes, bool prefetch);
/* Whether attention uses the block's stage, or still one from before it was lost. */
bool kvf_stage_pinned(const struct kvf_core *core, kvf_handle handle);
/* Whether these chunks of the block are in its stage, or on their way there. */
bool kvf_stage_has(const struct kvf_core *core, kvf_handle handle, uint64_t mask);
bool kvf_stage_busy(const struct kvf_core *core, kvf_handle handle); /* pinned, or being read into */
/* Whether attention reads the block where it lies at its lender: that slot is not to be given back yet. The reactor is woken when
 * the last one has read a block that is RISING. */
bool kvf_stage_viewed(const struct kvf_core *core, kvf_handle handle);
/* Forgets a block's stage (its entry is removed or lost). */
void kvf_stage_drop(struct kvf_core *core, kvf_handle handle);
/* The block lies elsewhere by now, and what is still read where it lay, or was not compared, may be another's: such a stage goes,
 * unless it is pinned and no view. */
void kvf_stage_moved(struct kvf_core *core, kvf_handle handle);

/* device.c: the device cache (gpu.bytes). What attend asks of it is in step.h. */
enum kvf_status kvf_device_create(struct kvf_core *core);
void kvf_device_destroy(struct kvf_core *core);
/* The session's chunks leave the device: it ends, parks or goes away. */
void kvf_device_close(struct kvf_sess *sess);
/* A block is lost: its chunks leave the device, also those of sessions that share it. */
void kvf_device_lose(struct kvf_core *core, struct kvf_key key);
bool kvf_device_stats(const struct kvf_core *core, struct kvf_cache_stats *out); /* false: none */
void kvf_device_check(const struct kvf_core *core); /* for tests */

/* ahead.c: what the next layers will want is read before they ask. All under the lock.
 * While `layer` is computed: asks for the cold chunks of the layers behind it, as far as there is room that nobody waits
 * for. Without a budget all of them are wanted; under one, those that the layer's last selection took (sparse-attention
 * literature: 55 to 90 % are selected again), and nothing where little of what was read ahead is used. `asking`: what lies at
 * holders that were asked lately (attend_remote.h) will be asked for again, and is not read. */
void kvf_ahead_read(struct kvf_sess *sess, uint32_t layer, bool budgeted, bool asking);
/* Where to write what a layer's selection took: [blocks][kv_heads] masks of chunks. NULL: no memory, nothing is remembered. */
uint64_t *kvf_ahead_masks(struct kvf_sess *sess, uint32_t layer, uint32_t blocks);
/* The step was given up, the session leaves or closes: drops what is queued. */
void kvf_ahead_cancel(struct kvf_sess *sess);
void kvf_ahead_free(struct kvf_sess *sess);

/* cold.c: blocks in 8 bits an element. How they go down is in cold.h. */
enum kvf_cold_format kvf_cold_format_named(const char *name); /* of the setting */
enum kvf_cold_format kvf_cold_format_of(const struct kvf_entry *entry);
struct kvf_cold kvf_cold_shape(const struct kvf_model *model, enum kvf_cold_format format);
uint32_t kvf_cold_bytes(const struct kvf_model *model, enum kvf_cold_format format); /* of a block in this format */
uint32_t kvf_cold_scale_words(const struct kvf_model *model);
uint64_t kvf_cold_excess_max(uint64_t blocks_max);
/* Words of a new block that may have to lie in `format` some day; *flags says what it got (KVF_FLAG_WIDE, or nothing: then it
 * stays exact). KVF_SUMS_NONE: full; not before all blocks of the index have theirs. */
uint32_t kvf_cold_words_new(struct kvf_core *core, struct kvf_model *model, enum kvf_cold_format format, uint8_t *flags);
void kvf_cold_words_free(struct kvf_core *core, const struct kvf_entry *entry);
/* The seed of a cold block's checksums: `seed` is kvf_block_seed's. */
uint64_t kvf_cold_seed(const struct kvf_dev *dev, uint64_t seed, const struct kvf_cold *shape, const void *scales);

/* Staging memory for codes on their way, of the share that such may have; KVF_ARENA_NONE: not now. */
uint64_t kvf_cold_slot(struct kvf_core *core, uint32_t bytes, bool prefetch);
void kvf_cold_slot_free(struct kvf_core *core, uint64_t slot, uint32_t bytes);
/* Whether the block may take on a format now: nobody reads its lower copy in another one. */
bool kvf_cold_may_change(const struct kvf_core *core, kvf_handle handle, enum kvf_cold_format to);
/* Its format, bytes and words (NULL: they follow) from now on. It is not booked meanwhile: kvf_block_place_as calls this. */
void kvf_cold_become(struct kvf_core *core, kvf_handle handle, enum kvf_cold_format format, const uint64_t *words);
/* Verified chunks to their places in a whole block. Without the lock, on what is pinned. */
void kvf_cold_decode(const struct kvf_core *core, const struct kvf_model *model, enum kvf_cold_format format, uint64_t mask,
                     const void *codes, const uint64_t *words, void *block);

/* spill.c */
enum kvf_status kvf_spills_create(struct kvf_core *core);
void kvf_spills_destroy(struct kvf_core *core);
unsigned kvf_spills_poll(struct kvf_core *core);
bool kvf_spills_idle(const struct kvf_core *core);
/* When this lender was asked for slots and has not answered since; UINT64_MAX: it was not. */
uint64_t kvf_spills_asked_ns(const struct kvf_core *core, const struct kvf_node_peer *peer);
/* A session begins to park, or a block of one that does came up: all of its blocks are looked at (again). */
void kvf_spills_look_again(struct kvf_core *core);
/* Blocks that are written to SSD, with a record, and still stand as being in DRAM; one per call, *cursor begins as 0. */
bool kvf_spills_walk(const struct kvf_core *core, uint64_t *cursor, struct kvf_ssd_record *out);
uint64_t kvf_spills_next_timer(const struct kvf_core *core, uint64_t now_ns);
uint64_t kvf_spills_bytes(const struct kvf_core *core); /* on their way down */
/* The lender wants back a slot to which a block is on its way: the block stays in DRAM. false: none is. */
bool kvf_spills_recall(struct kvf_core *core, const struct kvf_node_peer *peer, struct kvf_key key, uint64_t location);
/* Whether blocks are on their way to this lender. */
bool kvf_spills_busy_at(const struct kvf_core *core, const struct kvf_node_peer *peer);

/* promote.c */
enum kvf_status kvf_rises_create(struct kvf_core *core);
void kvf_rises_destroy(struct kvf_core *core);
unsigned kvf_rises_poll(struct kvf_core *core);
/* There is more DRAM than before: sessions that are not parked bring blocks up, as one that is resumed. */
void kvf_rises_room(struct kvf_core *core);
/* The session is parked or leaves: drops the reads of its rising blocks that are still queued. */
void kvf_rises_cancel(struct kvf_core *core, uint64_t session);
/* Brings up a block that lies at a lender who wants his memory back, whatever the budget. In DRAM it is the next to go down. false:
 * not now. */
bool kvf_rise_yield(struct kvf_core *core, kvf_handle handle);
uint64_t kvf_rises_bytes(const struct kvf_core *core); /* on their way up */

/* lend.c: the lender's side */
enum kvf_status kvf_lend_create(struct kvf_core *core);
void kvf_lend_destroy(struct kvf_core *core);
void kvf_lend_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message);
void kvf_lend_borrower_gone(struct kvf_core *core, const char *name, uint64_t incarnation);
void kvf_lend_wait_drop(struct kvf_core *core, const struct kvf_node_peer *p); /* of it nothing waits for etcd any more */
/* A session whose blocks lie in our own lent part moved here: they are our own (tier REMOTE, peer NONE), and freed by key. */
void kvf_lend_adopt_own(struct kvf_core *core, uint64_t session);
/* One that lay in our own lent part has left us: what its new home does not adopt in 30 s is freed. */
void kvf_lend_departed(struct kvf_core *core, uint64_t session);
void kvf_lend_release_own(struct kvf_core *core, struct kvf_key key);
uint64_t kvf_lend_blocks(const struct kvf_core *core);
unsigned kvf_lend_poll(struct kvf_core *core);
/* The whole block of a borrower that lies at just this offset of our region; NULL: there is none. It may be given back, and its
 * memory be another's, whenever the lock is free: who reads it checks what he read. */
const uint8_t *kvf_lend_data(const struct kvf_core *core, const struct kvf_node_peer *borrower, struct kvf_key key, uint64_t offset,
                             uint32_t bytes);

/* serve.c: reads by key that other nodes ask for */
enum kvf_status kvf_serves_create(struct kvf_core *core);
void kvf_serves_destroy(struct kvf_core *core);
void kvf_serve_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message);
unsigned kvf_serves_poll(struct kvf_core *core);
bool kvf_serves_idle(const struct kvf_core *core);
struct kvf_serves_stats {
    unsigned requests, pieces;    /* under way; pieces of the requests in memory */
    uint64_t bytes, staged_bytes; /* of the pieces; of staging for those that come from SSD */
};
void kvf_serves_stats(const struct kvf_core *core, struct kvf_serves_stats *out);

/* attend_remote.c, attend_serve.c, attend_cost.c: life; the rest is in attend_remote.h */
enum kvf_status kvf_attend_costs_create(struct kvf_core *core); /* before the others */
void kvf_attend_costs_destroy(struct kvf_core *core);
enum kvf_status kvf_attend_remotes_create(struct kvf_core *core);
void kvf_attend_remotes_destroy(struct kvf_core *core); /* after the fabric's calls have ended */
unsigned kvf_attend_remotes_poll(struct kvf_core *core);
bool kvf_attend_remotes_idle(const struct kvf_core *core);
enum kvf_status kvf_attend_serves_create(struct kvf_core *core);
void kvf_attend_serves_destroy(struct kvf_core *core); /* likewise */
/* The thread that attends for others; without one (stepped tests) the poll does. Stop before the core is destroyed. */
enum kvf_status kvf_attend_serve_start(struct kvf_core *core);
void kvf_attend_serve_stop(struct kvf_core *core);
unsigned kvf_attend_serves_poll(struct kvf_core *core);
bool kvf_attend_serves_idle(const struct kvf_core *core);
void kvf_attend_serve_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message);

/* move.c */
enum kvf_status kvf_moves_create(struct kvf_core *core);
void kvf_moves_destroy(struct kvf_core *core);
unsigned kvf_moves_poll(struct kvf_core *core);
void kvf_move_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message);
void kvf_move_placement(struct kvf_core *core, const struct kvf_placement *placement); /* etcd's word about a session */
void kvf_move_peer_down(struct kvf_core *core, struct kvf_node_peer *peer);
void kvf_move_member_down(struct kvf_core *core, const char *name);
/* A node that lost us for a while needs nothing any more of the sessions that went to it. */
void kvf_move_release_all(struct kvf_core *core, struct kvf_node_peer *from);
/* Starts to move a session away; *done is set (under the lock, core->changed) with the outcome. */
struct kvf_move_outcome {
    bool done;
    enum kvf_status status;
    struct kvf_move_report report;
};
void kvf_move_forget_outcome(struct kvf_core *core, uint64_t session); /* the waiter leaves */
enum kvf_status kvf_move_start(struct kvf_core *core, struct kvf_sess *sess, const char *target, uint64_t deadline_ns,
                               struct kvf_move_outcome *outcome);

/* blocks.c: opaque blocks by key */
enum kvf_status kvf_blocks_create(struct kvf_core *core);
void kvf_blocks_destroy(struct kvf_core *core);
unsigned kvf_blocks_poll(struct kvf_core *core);
bool kvf_blocks_idle(const struct kvf_core *core);
/* The entry of an opaque block (its key in the index) that a reader may see, or NULL. */
struct kvf_entry *kvf_block_readable(struct kvf_core *core, struct kvf_key key, kvf_handle *handle);

/* node.c */
struct kvf_node {
    struct kvf_core *core;
    pthread_t reactor;
    bool reactor_started;
    _Atomic bool stop;
    int epoll_fd;
    struct kvf_admin *admin;
    struct kvf_log log;                  /* of disk, transport and store, which are made before the core */
    struct kvf_counters store_counters;  /* theirs */
};
/* Moves a session that may have an open handle: waits for its step to end. For `kvf move` (admin.c). Any thread. */
enum kvf_status kvf_node_move(struct kvf_node *node, uint64_t id, const char *target, uint64_t timeout_ns,
                              struct kvf_move_report *report);

/* admin.c: HTTP on loopback by libmicrohttpd, a thread of its own */
enum kvf_status kvf_admin_start(struct kvf_node *node, const char *listen, char *error, size_t error_size, struct kvf_admin **out);
/* host:port that was bound. */
void kvf_admin_address(const struct kvf_admin *admin, char *address, size_t size);
void kvf_admin_stop(struct kvf_admin *admin);

/* status.c: JSON and Prometheus text; malloc'ed strings. Take the lock themselves. */
char *kvf_status_json(struct kvf_core *core);
char *kvf_sessions_json(struct kvf_core *core);
char *kvf_metrics_text(struct kvf_core *core);
#endif
