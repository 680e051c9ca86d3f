/* Who is where: membership under a lease, models, and the placement of sessions (session -> home, guarded by an epoch).
 * State machines over the store seam; no thread, no clock of their own. docs/PROTOCOL.md lists the keys.
 *
 *   <prefix>/members/<name>       {"incarnation","address"(base64),"admin","host","lend_bytes","roles"...}   with the lease
 *   <prefix>/models/<name>        {"fingerprint", shape}
 *   <prefix>/sessions/<id hex>    {"home","epoch","state","tokens","model"}
 *   <prefix>/leader               {"name"}                                                         with the leader's lease
 *
 * JOIN: grant a lease, put the member record if absent (or if it is an old incarnation whose lease is gone: the key is
 * absent then), range the prefix, watch from that revision. Keepalive at a third of the TTL; a lost lease is granted anew and
 * the record put again (same incarnation), then everything is ranged again. While etcd is away nothing is concluded: members
 * stay.
 *
 * One thread at a time; callbacks inside poll. Every request ends (the store's deadline). */
#ifndef KVF_COORDINATOR_COORDINATOR_H
#define KVF_COORDINATOR_COORDINATOR_H

#include "base/env.h"
#include "coordinator/store.h"

struct kvf_coord;

struct kvf_member {
    char name[64];
    uint64_t incarnation;
    uint8_t address[1024]; /* the transport's */
    size_t address_bytes;
    char admin[64];        /* host:port of the admin interface, or "" */
    char host[64];         /* identity of the machine */
    uint64_t lend_bytes;
    uint64_t dram_bytes;
};

enum kvf_session_state { KVF_SESSION_ACTIVE, KVF_SESSION_PARKED };

struct kvf_placement {
    uint64_t id;
    char home[64];
    char model[64];
    uint64_t epoch;
    uint64_t tokens;
    enum kvf_session_state state;
    uint64_t mod_revision;
};

struct kvf_coord_handler {
    void *arg;
    /* Of other members and of ourselves; one that is another is `up` again. All optional (NULL). */
    void (*member_up)(void *arg, const struct kvf_member *member);
    void (*member_down)(void *arg, const char *name, uint64_t incarnation);
    void (*placement)(void *arg, const struct kvf_placement *placement); /* created or changed, by anyone */
    void (*placement_gone)(void *arg, uint64_t id);
    void (*leader)(void *arg, const char *name); /* "" : none */
    /* The end of join: OK once synced; ERR_EXISTS: the name lives; ERR_STORE. Later only ERR_EXISTS: our lease ended while etcd
     * was out of reach and another incarnation took the name; then we are no member any more. */
    void (*joined)(void *arg, enum kvf_status status);
    void (*store_state)(void *arg, bool reachable);
};

struct kvf_coord_config {
    const struct kvf_env *env;
    struct kvf_store *store; /* not owned */
    const struct kvf_log *log;
    const char *prefix;
    uint64_t lease_ttl_ns;
    struct kvf_coord_handler handler;
};

/* env, store and log must outlive it; prefix is copied. ERR_INVALID (a prefix that is empty or too long), ERR_NO_MEMORY. */
enum kvf_status kvf_coord_create(const struct kvf_coord_config *config, struct kvf_coord **out);
/* ERR_INVALID (a name, admin or host that is no plain word, an address that is too long), ERR_STATE (joined, or still leaving).
 * Starts to join; `member` NULL: an observer, that only watches (kvfcoord, kvf). retry: on ERR_STORE go on trying for ever. */
enum kvf_status kvf_coord_join(struct kvf_coord *coord, const struct kvf_member *member, bool retry);
/* Revokes the lease (peers see us go at once). Poll until left() or a deadline of the caller's. */
void kvf_coord_leave(struct kvf_coord *coord);
bool kvf_coord_left(const struct kvf_coord *coord);
/* Ends what is outstanding with CANCELLED. Not from a callback. */
void kvf_coord_destroy(struct kvf_coord *coord);

/* poll runs the store's poll and the timers that are due, and returns how many things happened. next_timer: when it wants to be
 * called at the latest (the env's time), UINT64_MAX: never; the store's event_fd tells the rest. */
unsigned kvf_coord_poll(struct kvf_coord *coord);
uint64_t kvf_coord_next_timer(const struct kvf_coord *coord);

/* The view below holds all that etcd had at this moment (the env's time), and perhaps more; 0: it holds nothing yet. It is proven
 * anew every few seconds, so what is much older means that etcd is away or its watch tells nothing any more. Such a watch a member
 * makes anew some 6 s after the first change that it kept to itself, or 10 s after the last time that this was done; an observer
 * after some 33 s. Nothing is to be taken from anybody because of what an old view says. */
uint64_t kvf_coord_as_of(const struct kvf_coord *coord);
/* Wants the view to hold what etcd has had up to this call. It does once refreshed(ticket): a matter of milliseconds, of seconds
 * where the watch has to be made anew, and while etcd is away it waits. */
uint64_t kvf_coord_refresh(struct kvf_coord *coord);
bool kvf_coord_refreshed(const struct kvf_coord *coord, uint64_t ticket);

/* What is known now (from the watch). NULL: unknown. Valid until the next poll. */
const struct kvf_member *kvf_coord_member(const struct kvf_coord *coord, const char *name);
const struct kvf_member *kvf_coord_member_at(const struct kvf_coord *coord, unsigned index);
const struct kvf_placement *kvf_coord_placement_known(const struct kvf_coord *coord, uint64_t id);
/* Whether a session that is unknown is in no record: false while the list is asked for again, and as long as a record in it could
 * not be read. */
bool kvf_coord_placements_whole(const struct kvf_coord *coord);
const struct kvf_placement *kvf_coord_placement_at(const struct kvf_coord *coord, unsigned index);

/* status OK: `placement` is what stands now. ERR_EXISTS / ERR_NOT_FOUND / ERR_STALE (the epoch or home differ: `placement` is
 * what stands), ERR_STORE: not done. ERR_DEADLINE: not known; ask placement_read until it answers. placement may be NULL on
 * errors. */
typedef void (*kvf_coord_fn)(void *arg, enum kvf_status status, const struct kvf_placement *placement);

/* One transaction each. */
enum kvf_status kvf_coord_session_create(struct kvf_coord *coord, uint64_t id, const char *home, const char *model,
                                         kvf_coord_fn done, void *arg);
/* home -> to, epoch + 1; guarded by (home, epoch). */
enum kvf_status kvf_coord_session_move(struct kvf_coord *coord, uint64_t id, const char *home, uint64_t epoch, const char *to,
                                       uint64_t tokens, kvf_coord_fn done, void *arg);
/* state and tokens; guarded by (home, epoch), which stay. */
enum kvf_status kvf_coord_session_update(struct kvf_coord *coord, uint64_t id, const char *home, uint64_t epoch,
                                         enum kvf_session_state state, uint64_t tokens, kvf_coord_fn done, void *arg);
enum kvf_status kvf_coord_session_remove(struct kvf_coord *coord, uint64_t id, const char *home, uint64_t epoch,
                                         kvf_coord_fn done, void *arg);
enum kvf_status kvf_coord_session_read(struct kvf_coord *coord, uint64_t id, kvf_coord_fn done, void *arg);

/* Registers a model or compares it with what stands. OK, ERR_MODEL (another shape or other weights under the name), ERR_STORE. */
typedef void (*kvf_coord_model_fn)(void *arg, enum kvf_status status);
enum kvf_status kvf_coord_model_register(struct kvf_coord *coord, const struct kvf_model_desc *desc, uint64_t fingerprint,
                                         kvf_coord_model_fn done, void *arg);

/* Election: tries to become the leader for as long as the coordinator lives; handler.leader tells who is. */
enum kvf_status kvf_coord_campaign(struct kvf_coord *coord, const char *name);
#endif
