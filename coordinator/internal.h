/* The coordinator's own structure. One file one part:
 *
 *   coordinator.c  life, joining (lease -> member record -> range -> watch), and where each key's news goes
 *   keepalive.c    one lease that is granted, renewed, granted anew when lost, revoked at the end
 *   calls.c        requests to the store that are under way
 *   members.c      who lives          placement.c  where sessions live (what the watch says)
 *   sessions.c     the transactions on placement     models.c  those on models
 *   election.c     the leader         records.c    keys and records as text
 *   fresh.c        how old all this may be, and a watch that tells nothing any more
 *
 * News have revisions. A key's record is replaced only by one with a higher mod_revision, so that an answer of our own and the
 * watch may tell the same thing in any order. Only a range may take things back (etcd restored from a backup). */
#ifndef KVF_COORDINATOR_INTERNAL_H
#define KVF_COORDINATOR_INTERNAL_H

#include "coordinator/records.h"

#define KVF_CALLS_MAX 64
#define KVF_MEMBERS_MAX 4096
#define KVF_PLACEMENTS_MAX (1u << 20)
#define KVF_HOSTILE_MAX 32
#define KVF_NEVER UINT64_MAX

struct kvf_call;
typedef void (*kvf_call_fn)(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result);

enum kvf_session_op {
    KVF_OP_SESSION_CREATE,
    KVF_OP_SESSION_MOVE,
    KVF_OP_SESSION_UPDATE,
    KVF_OP_SESSION_REMOVE,
    KVF_OP_SESSION_READ
};

/* One request of a caller's, or one of our own, from its start until its last answer. */
struct kvf_call {
    struct kvf_calls *pool;
    bool used;
    kvf_call_fn ended; /* the store answered; it ends the call or sends the next request */
    struct kvf_keepalive *keepalive;
    uint64_t lease;
    /* sessions.c */
    enum kvf_session_op op;
    bool writing;              /* false: reading what stands */
    char home[64];             /* the guard */
    uint64_t epoch;
    struct kvf_placement want; /* what is written; its mod_revision is not used */
    unsigned tries;
    kvf_coord_fn done;
    /* models.c */
    struct kvf_records_model model;
    kvf_coord_model_fn model_done;
    void *arg;
};

/* On the heap by itself: the store may answer after the coordinator has died. */
struct kvf_calls {
    struct kvf_coord *coord; /* NULL: died; the last answer frees this */
    unsigned n_used;
    struct kvf_call call[KVF_CALLS_MAX];
};

struct kvf_calls *kvf_calls_create(struct kvf_coord *coord);
void kvf_calls_destroy(struct kvf_calls *calls); /* ends the callers' requests with CANCELLED */
/* NULL: too many. Cleared but for `ended`. */
struct kvf_call *kvf_calls_take(struct kvf_coord *coord, kvf_call_fn ended);
void kvf_calls_give(struct kvf_call *call);
/* The callback of every request to the store; arg is the call. */
void kvf_calls_answered(void *arg, const struct kvf_store_result *result);

/* ---------------------------------------------------------------------------------------------------- keepalive.c
 * The lease's state, by its fields:
 *   !wanted                 no lease and none asked for
 *   wanted, id 0            to be granted at next_ns (or busy: asked)
 *   wanted, id              to be renewed at next_ns (or busy: asked); etcd keeps it at least until alive_until_ns
 *   ending                  to be revoked, then !wanted */
struct kvf_keepalive {
    bool wanted, busy, ending;
    uint64_t id, ttl_ns, next_ns, sent_ns, alive_until_ns;
    unsigned failures;
    /* OK: granted; ERR_NOT_FOUND: lost; else: the grant failed, and is tried again while the lease is wanted */
    void (*changed)(struct kvf_coord *coord, enum kvf_status status);
};
void kvf_keepalive_start(struct kvf_keepalive *k, void (*changed)(struct kvf_coord *coord, enum kvf_status status));
void kvf_keepalive_end(struct kvf_keepalive *k);
/* etcd said elsewhere that the lease is gone. */
void kvf_keepalive_forget(struct kvf_coord *coord, struct kvf_keepalive *k);
unsigned kvf_keepalive_poll(struct kvf_coord *coord, struct kvf_keepalive *k);
uint64_t kvf_keepalive_next(const struct kvf_keepalive *k);

/* ---------------------------------------------------------------------------------------------------- members.c */
struct kvf_member_entry {
    struct kvf_member member;
    uint64_t mod_revision;
    bool seen; /* by the range that is being taken in */
};
struct kvf_members {
    struct kvf_member_entry *list;
    unsigned n, size;
};
struct kvf_placement_entry {
    struct kvf_placement placement;
    bool seen;
};
struct kvf_placements {
    struct kvf_placement_entry *list;
    unsigned n, size;
    uint32_t *index; /* open addressing by id: position + 1, 0 is empty; a power of two, at most half full */
    unsigned index_size;
    bool partial; /* a record of them could not be read, or had no room, since they were last asked for */
};

/* What a range's or a watch's kv means. Ranges have `force`: after etcd went back, older revisions count too. */
void kvf_members_put(struct kvf_coord *coord, const char *name, const struct kvf_store_kv *kv, bool force);
void kvf_members_delete(struct kvf_coord *coord, const char *name, uint64_t revision);
void kvf_members_unsee(struct kvf_coord *coord);
void kvf_members_sweep(struct kvf_coord *coord, uint64_t revision); /* those not seen and not younger than revision go */
void kvf_members_free(struct kvf_members *members);

void kvf_placement_put(struct kvf_coord *coord, uint64_t id, const struct kvf_store_kv *kv, bool force);
void kvf_placement_delete(struct kvf_coord *coord, uint64_t id, uint64_t revision);
void kvf_placement_unsee(struct kvf_coord *coord);
void kvf_placement_sweep(struct kvf_coord *coord, uint64_t revision);
/* An answer at `revision` tells what stands; taken when it is not older than the watch. */
void kvf_placement_learn(struct kvf_coord *coord, const struct kvf_placement *placement, uint64_t revision);
void kvf_placement_free(struct kvf_placements *placements);

/* ---------------------------------------------------------------------------------------------------- election.c */
struct kvf_election {
    char name[64];            /* ours; "": no candidate */
    struct kvf_keepalive lease;
    bool busy;
    uint64_t next_ns;
    unsigned failures;
    /* what stands, and what the handler was told */
    bool present;
    char leader[64];          /* "" with present: a record that is not ours to read */
    uint64_t leader_lease, mod_revision;
    bool seen;
    char announced[64];
};
void kvf_election_put(struct kvf_coord *coord, const struct kvf_store_kv *kv, bool force);
void kvf_election_delete(struct kvf_coord *coord, uint64_t revision);
void kvf_election_sweep(struct kvf_coord *coord, uint64_t revision);
unsigned kvf_election_poll(struct kvf_coord *coord);
uint64_t kvf_election_next(const struct kvf_coord *coord);

/* ---------------------------------------------------------------------------------------------------- fresh.c */
/* A read or range that tells, by its answer's revision, what etcd had when it was sent. */
struct kvf_proof {
    uint64_t number, sent_ns;
};
struct kvf_fresh {
    enum { KVF_FRESH_IDLE, KVF_FRESH_BEHIND, KVF_FRESH_TOUCHING, KVF_FRESH_TOUCHED } state;
    struct kvf_proof shown; /* the view holds all that etcd had when this was sent; number 0: nothing yet */
    uint64_t numbers;       /* of proofs that were sent */
    uint64_t wanted;        /* somebody waits for this one */
    struct kvf_proof proof; /* the read that is under way (busy), or (not IDLE) shown when the view has come to `revision` */
    bool busy;
    uint64_t revision, since_ns;
    uint64_t next_ns;       /* IDLE: the next read */
    uint64_t renew_ns;      /* not before is everything ranged anew again */
};
struct kvf_proof kvf_fresh_sends(struct kvf_coord *coord); /* one that is being sent */
void kvf_fresh_ranged(struct kvf_coord *coord);            /* the answer to coord->range was taken in */
void kvf_fresh_told(struct kvf_coord *coord); /* coord->revision is another */
unsigned kvf_fresh_poll(struct kvf_coord *coord);
uint64_t kvf_fresh_next(const struct kvf_coord *coord);

/* ---------------------------------------------------------------------------------------------------- coordinator.c */
enum kvf_join_state {
    KVF_JOIN_OFF,     /* join was not called, or it failed */
    KVF_JOIN_JOINING, /* the first time */
    KVF_JOIN_JOINED,  /* joined was told; lease, record and watch are made anew whenever they are lost */
    KVF_JOIN_LEAVING, /* leases are being revoked */
    KVF_JOIN_LEFT,
};

struct kvf_coord {
    const struct kvf_env *env;
    struct kvf_store *store;
    const struct kvf_log *log;
    struct kvf_coord_handler handler;
    char prefix[KVF_STORE_KEY_MAX];
    uint64_t ttl_ns;
    struct kvf_calls *calls;
    struct kvf_store_txn txn; /* room to build one in; too large for the stack */

    enum kvf_join_state state;
    struct kvf_member self;
    bool observer, retry;
    bool busy;       /* the member's put or the range is under way */
    bool registered; /* our record stands under our lease */
    bool synced;     /* ranged, and the watch runs from there */
    uint64_t registered_revision, put_guard; /* put_guard: mod_revision of an earlier record of ours to replace; 0: none */
    uint64_t next_ns;
    unsigned failures;
    uint64_t revision, range_sent_revision; /* the newest that the watch or a range told; the same when the range was sent */
    struct kvf_proof range;
    struct kvf_keepalive lease;
    enum { KVF_REACHABLE_UNKNOWN, KVF_REACHABLE_NO, KVF_REACHABLE_YES } reachable;

    struct kvf_members members;
    struct kvf_placements placements;
    struct kvf_election election;
    struct kvf_fresh fresh;
    uint64_t hostile[KVF_HOSTILE_MAX]; /* records already complained about, as hashes */
    unsigned n_hostile;
};

/* When to try again after so many failures: 100 ms doubling to 2 s or a third of the TTL, a quarter of it random. */
uint64_t kvf_coord_retry_at(struct kvf_coord *coord, unsigned failures);
/* Logs, once, that a key holds something that is no record. */
void kvf_coord_refuse_record(struct kvf_coord *coord, const char *key, uint64_t mod_revision);
/* Our own record was removed at that revision, by somebody else. */
void kvf_coord_self_removed(struct kvf_coord *coord, uint64_t revision);
/* Takes note of what an answer says about etcd. */
void kvf_coord_note(struct kvf_coord *coord, enum kvf_status status);
/* The kv of that key among a result's, NULL: it does not stand. */
const struct kvf_store_kv *kvf_coord_find(const struct kvf_store_result *result, const char *key);
#endif
