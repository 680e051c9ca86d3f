/* The whole cluster in one process, from one seed: nodes with clients that use the public API, faults, and properties that are
 * checked after every step.
 *
 *     world_create -> world_run: connect, WORK (clients work, faults happen), HEAL (no more faults; clients end what they began),
 *     DRAIN (everything is dropped), PROBE (a fresh session and block on every node), REST (nothing may be left) -> world_destroy
 *
 * A property that does not hold prints what happened last and the command that repeats it, and ends the process. Randomness comes
 * from the seed alone, by streams of their own for the options, the faults, the work and the order of things; every event goes into
 * a hash, which two builds must agree on. */
#ifndef KVF_TESTS_SIM_WHOLE_WORLD_H
#define KVF_TESTS_SIM_WHOLE_WORLD_H

#include "tests/sim/sim_cluster.h"
#include "tests/sim/sim_engine.h"
#include "tests/sim/whole/fiber.h"

#define WORLD_NODES 5
#define WORLD_CLIENTS 3  /* of a node, at most */
#define WORLD_SESSIONS 8 /* at one time */
#define WORLD_KEYS 10
#define WORLD_VERSIONS 48
#define WORLD_ENGINES 4
#define WORLD_TOKENS 384 /* of a session, at most */
#define WORLD_BATCH 4
#define WORLD_BLOCK_MAX (24u << 10)

/* ---------------------------------------------------------------- faults: X(name, text) */
#define FAULTS(X)                                     \
    X(DELAY, "frames delayed")                        \
    X(LOSS, "frames lost")                            \
    X(DUPLICATE, "frames duplicated")                 \
    X(REORDER, "frames reordered")                    \
    X(BREAK, "links broken")                          \
    X(CLOG, "directions clogged")                     \
    X(PARTITION, "pairs partitioned")                 \
    X(ONE_WAY, "directions cut")                      \
    X(PAUSE, "nodes paused")                          \
    X(CRASH, "nodes killed")                          \
    X(POWER, "power cuts")                            \
    X(DISK_SLOW, "disk requests slow")                \
    X(DISK_IO, "disk errors")                         \
    X(DISK_SHORT, "short reads and writes")           \
    X(DISK_FLIP, "bits flipped on the way")           \
    X(DISK_TEAR, "writes torn")                       \
    X(DISK_MISPLACE, "writes and reads misplaced")    \
    X(DISK_FULL, "writes without space")              \
    X(DISK_SYNC, "syncs failed")                      \
    X(ROT, "bits rotten on disk")                     \
    X(ETCD_DOWN, "times etcd was away")               \
    X(ETCD_CUT, "nodes cut from etcd")                \
    X(ETCD_SLOW, "etcd requests slow")                \
    X(ETCD_LOST, "etcd answers lost")                 \
    X(ETCD_LATE, "etcd requests carried out late")    \
    X(ETCD_HOLD, "watches held")                      \
    X(ETCD_COMPACT, "compactions")                    \
    X(LEASE, "leases ended")                          \
    X(RECLAIM, "times lent memory was wanted back")   \
    X(DRAIN, "nodes drained")                         \
    X(ORDER, "sessions ordered elsewhere")            \
    X(ETCD_DEAF, "watches that died silently")        \
    X(ETCD_LAG, "watches that lagged")                \
    X(START_READ, "starts with a bad sector")         \
    X(START_SYNC, "syncs failed at a start")

enum fault {
#define FAULT_ENUM(name, text) FAULT_##name,
    FAULTS(FAULT_ENUM)
#undef FAULT_ENUM
    FAULT_COUNT
};
extern const char *const fault_texts[FAULT_COUNT];

enum canary { CANARY_NONE, CANARY_CHECKSUM, CANARY_EPOCH };

struct world;
struct world_options {
    uint64_t seed;
    unsigned steps; /* of WORK; 0: as the seed says */
    enum canary canary;
    bool verbose;
    bool calm;      /* no faults but those that the script makes */
    bool drowsy;    /* as one seed in so many is */
    void (*script)(struct world *world); /* runs at the beginning of WORK; NULL: none */
};

/* What all seeds came to; adds up. */
struct world_totals {
    uint64_t seeds, steps, time_ns, events;
    uint64_t faults[FAULT_COUNT];
    uint64_t calls, rows, gets, hits, misses, refills, moves, crashes_survived;
    uint64_t durable;           /* blocks that were, and were there after a crash */
    uint64_t returned, revoked; /* blocks that went back to a lender: by its borrower, by force */
};

enum phase { PHASE_BOOT, PHASE_WORK, PHASE_HEAL, PHASE_DRAIN, PHASE_PROBE, PHASE_REST };

/* ---------------------------------------------------------------- what the model knows */
/* A session id and what was done with it. */
struct record {
    uint64_t id;
    unsigned engine;
    struct kvf_session *handle;
    struct world_node *node; /* of the handle */
    bool taken;              /* a client works with it */
    bool unknown;            /* created or dropped, perhaps */
    bool homeless;           /* it may have died with a node */
    bool parked;
    uint64_t tokens;         /* committed */
    unsigned parent_forks;   /* forks of it that were made here; for choosing only */
};

/* What etcd held of a record's session, when it stood at that revision. */
struct placed {
    uint64_t id, revision;
    bool there;
    struct kvf_placement placement;
};

/* An opaque key on one node. A version is the bytes of one put; moments count the beginnings and ends of requests. */
struct version {
    uint64_t begin, end; /* may be read from begin on, until end; end 0: it never was there */
    bool came;           /* its put succeeded */
};
struct keyed {
    bool writing;        /* a client puts or removes it */
    bool durable;        /* it was said to be, and nobody wanted it removed since */
    bool comes_back;     /* it was when the node died: it is there at the next start */
    uint64_t copy;       /* where its copy on SSD lay when last looked at, 0: nowhere */
    uint64_t lost;       /* the moment at which a copy was last seen gone; the next is written without a promise */
    uint64_t removed;    /* the moment at which a removal last began or ended */
    unsigned n;
    struct version versions[WORLD_VERSIONS];
};

struct client {
    struct world *world;
    struct world_node *node;
    unsigned number;
    struct fiber *fiber;
    struct kvf_queue *queue;
    struct sim_engine *engines[WORLD_ENGINES];
    struct kvf_attend_options attend;
    bool died;             /* its node did: only returns */
    const char *call;      /* under way, or NULL */
    uint64_t call_ns, call_bound_ns, call_paused_ns;
    uint8_t *buffers[WORLD_BATCH];
};

struct world_node {
    struct sim_node *sim;
    struct world *world;
    unsigned number;
    char name[8];
    struct client clients[WORLD_CLIENTS];
    struct keyed keys[WORLD_KEYS];
    struct kvf_memory *memory; /* the clients' buffers, registered */
    uint64_t paused_ns;        /* in all */
    uint64_t resume_ns, restart_ns; /* when; 0: not paused, not dead */
    uint64_t resumed_ns;       /* the last time */
    uint64_t reclaim_ns, lend_again_ns, reclaim_limit; /* others have at most so much from the first to the second moment; 0: any */
    bool draining;             /* as if it wanted all of it back; its sessions are ordered elsewhere, */
    uint64_t incoming;         /* ... and no more than so many are still on their way here */
    uint64_t etcd_back_ns, lag_until_ns;
    bool rotten;               /* what its disk holds was damaged without a word */
    bool hurt;                 /* its last start was told of an error by its disk: it need not have found all that was durable */
    uint64_t bad_sector;       /* which that start cannot read; UINT64_MAX: none */
    unsigned lives;
};

struct trace {
    const char *what;
    uint64_t time_ns, words[4];
};
#define WORLD_TRACES 64

struct world {
    struct world_options options;
    struct sim_cluster *cluster;
    struct sim_env chance, work, order; /* generators of the faults, the clients, the order of things, */
    struct sim_env later, orders, watches, starts; /* ... and of what was learned later: a seed without it is what it was */
    struct world_node nodes[WORLD_NODES];
    unsigned n, n_clients;
    enum phase phase;
    uint64_t steps, steps_max;
    uint64_t moment;
    uint64_t progress; /* calls that ended and frames that arrived */
    unsigned quiet;
    uint32_t preempt;  /* one in so many locks lets others go first; 0: none does */

    uint32_t planned[FAULT_COUNT], rates[FAULT_COUNT]; /* of WORK, and now; in 65536: of a frame, request or step */
    uint64_t delay_ns;           /* of frames */
    bool drowsy;                 /* nothing but etcd's watches fails, and clients rest for long: what is lent stays */
    uint64_t heal_ns[WORLD_NODES][WORLD_NODES]; /* when a direction is whole again; 0: it is */
    uint64_t etcd_up_ns;
    unsigned instances[SIM_NODES_MAX]; /* of the net -> node */
    struct sim_net_watch watch;

    struct record records[WORLD_SESSIONS];
    struct placed placed[WORLD_SESSIONS];
    uint64_t probes;    /* clients that are done with the phase */
    unsigned ids;       /* session ids that were drawn */
    struct sim_engine *const *engines;

    uint64_t hash;
    struct trace traces[WORLD_TRACES];
    uint64_t n_traces;
    struct world_totals totals;
};

/* engines.c would be too much: [WORLD_ENGINES], made once for all seeds. */
struct sim_engine **world_engines_create(void);
void world_engines_destroy(struct sim_engine **engines);

/* ---------------------------------------------------------------- world.c */
struct world *world_create(const struct world_options *options, struct sim_engine *const *engines);
void world_destroy(struct world *world);
/* All phases. */
void world_run(struct world *world);
/* For scenarios: single phases and steps. */
void world_step(struct world *world);
void world_settle(struct world *world, uint64_t ns);
void world_clients_start(struct world *world, enum phase phase);
/* Steps until every client has ended; a violation when that takes longer than `ns`. */
void world_clients_join(struct world *world, uint64_t ns);
void world_crash(struct world_node *node, bool power, bool tell);
void world_pause(struct world_node *node, uint64_t ns);
uint64_t world_now(const struct world *world);
/* 0 .. bound-1 */
uint64_t draw(struct sim_env *stream, uint64_t bound);
void world_trace(struct world *world, const char *what, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
/* A property does not hold: prints it with what went before, and ends the process. */
__attribute__((format(printf, 2, 3), noreturn)) void world_violated(struct world *world, const char *format, ...);

/* ---------------------------------------------------------------- faults.c */
void faults_draw(struct world *world);
void faults_begin(struct world *world);
/* Hooks of the net and etcd, and of a node's disk, which is new at every start. */
void faults_attach(struct world *world);
void faults_attach_disk(struct world_node *node);
/* What the node's next start meets. */
void faults_start(struct world_node *node);
/* Begins and ends what lasts. */
void faults_step(struct world *world);
void faults_heal(struct world *world);
/* Whether the operator wants something now. */
bool faults_order(struct world *world);
/* An operator drains a node, until the second moment; what it lends is free within the first time. */
void faults_drain(struct world_node *node, uint64_t within_ns, uint64_t end_ns);
/* One of them, now. */
void faults_direction(struct world *world, unsigned from, unsigned to, bool cut, uint64_t ns);

/* ---------------------------------------------------------------- client.c */
void client_run(void *client);
void client_probe(void *client);
void client_drain(void *client);
/* Handles of a node that is about to be buried. */
void client_close_records(struct world_node *node);
void client_begin(struct client *client, const char *call, uint64_t bound_ns);
void client_end(struct client *client, enum kvf_status status, uint64_t detail);
/* Lets the others go on, once. */
void client_wait(struct client *client);

/* ---------------------------------------------------------------- opaque.c */
void opaque_batch(struct client *client);
void opaque_probe(struct client *client);
/* Removes every key. */
void opaque_drain(struct client *client);
/* After every step: a durable copy that goes for want of room takes its promise along, wherever the block lies then. */
void opaque_step(struct world_node *node);
/* Just before a crash: which keys must be there after it. */
void opaque_crashing(struct world_node *node);
/* After a crash what was removed may be there again. */
void opaque_crashed(struct world_node *node);
/* At the next start: what was durable is there. */
void opaque_restarted(struct world_node *node);

/* ---------------------------------------------------------------- check.c */
/* After every step, and what costs more, after some. */
void check_step(struct world *world);
void check_rest(struct world *world);
/* What a node holds, to stderr. */
void check_show(const struct world_node *node);
bool check_connected(const struct world *world);
/* The node on which the session can be attached, or NULL. */
struct world_node *check_home(const struct world *world, uint64_t id);

/* ---------------------------------------------------------------- scenarios.c: the number of them; runs one */
unsigned scenarios_count(void);
const char *scenarios_name(unsigned number);
void scenarios_run(unsigned number, struct sim_engine *const *engines, bool verbose);
#endif
