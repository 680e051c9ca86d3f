/* etcd in memory: one shared object, and as many clients on it as a test wants, each a struct kvf_store of the usual seam.
 *
 *     struct kvf_sim_etcd *etcd = kvf_sim_etcd_create(env);
 *     struct kvf_store *a = kvf_sim_store_create(etcd), *b = kvf_sim_store_create(etcd);
 *     ... kvf_coord_create with .store = a ...; kvf_coord_poll(...) ...
 *     a->ops->destroy(a); b->ops->destroy(b); kvf_sim_etcd_destroy(etcd);
 *
 * A request waits in its client until it is carried out: by the client's own poll (at once, the default), or by
 * kvf_sim_etcd_step when stepping by hand is on. Its answer, and watch events, are handed out by the client's poll. Time is the
 * env's: leases end when its clock says so. Nothing here is random: the same calls give the same bytes.
 *
 * What can go wrong (all of it is off at first):
 *   down      nobody reaches etcd: requests end with ERR_STORE, watches are silent; leases stand still, and have their whole TTL
 *             again when it comes back (etcd does that after a restart)
 *   cut       one client does not reach it; the others do, and leases go on
 *   drop      answers of a client get lost: ERR_DEADLINE for a transaction (ERR_STORE for the rest), carried out or not
 *   hang      requests of a client are not answered at all for the time being
 *   hold      watch events of a client are held back, also those of a watch that is made anew
 *   deafen    the watch that a client has now tells nothing more, and nobody notices: its connection stands, and is dead
 *   lag       watch events of a client come so much later
 *   compact   watches that have not seen everything yet get `lost`
 * One thread. */
#ifndef KVF_TESTS_SIM_SIM_STORE_H
#define KVF_TESTS_SIM_SIM_STORE_H

#include "base/env.h"
#include "coordinator/store.h"

struct kvf_sim_etcd;

/* `env` must outlive it. Aborts when out of memory, as tests may. */
struct kvf_sim_etcd *kvf_sim_etcd_create(const struct kvf_env *env);
void kvf_sim_etcd_destroy(struct kvf_sim_etcd *etcd); /* after its clients */

/* A client; destroyed with its ops->destroy. At most 64 requests are outstanding (ERR_BUSY). event_fd is -1. */
struct kvf_store *kvf_sim_store_create(struct kvf_sim_etcd *etcd);

/* Stepping by hand: poll carries nothing out any more, step carries out the oldest request of all clients. False: none waits. */
void kvf_sim_etcd_manual(struct kvf_sim_etcd *etcd, bool on);
bool kvf_sim_etcd_step(struct kvf_sim_etcd *etcd);

/* Faults. */
void kvf_sim_etcd_down(struct kvf_sim_etcd *etcd, bool down);
void kvf_sim_store_cut(struct kvf_store *store, bool cut);
/* The next `n` requests of this client lose their answer; carried out or not. */
void kvf_sim_store_drop(struct kvf_store *store, unsigned n, bool carried_out);
void kvf_sim_store_hang(struct kvf_store *store, bool on);
void kvf_sim_store_hold(struct kvf_store *store, bool on);
void kvf_sim_store_deafen(struct kvf_store *store);
void kvf_sim_store_lag(struct kvf_store *store, uint64_t ns); /* 0: not */
void kvf_sim_etcd_compact(struct kvf_sim_etcd *etcd);

/* What becomes of a request that is made now, when somebody is asked (fate). Stepping by hand must be on. */
struct kvf_sim_store_fate {
    uint64_t delay_ns;  /* until etcd carries it out (in a step) */
    uint64_t answer_ns; /* from then until the client's poll may have the answer */
    bool lost;          /* the answer never comes: an error after timeout_ns, though it is carried out at its time, be that later */
    uint64_t timeout_ns;
};
void kvf_sim_etcd_fate(struct kvf_sim_etcd *etcd, void (*fate)(void *arg, struct kvf_sim_store_fate *fate), void *arg);
/* The planted bug of the simulator: compares of a revision hold, whatever stands. */
void kvf_sim_etcd_unguarded(struct kvf_sim_etcd *etcd, bool on);
/* Changes so far, by revision and what was written: equal histories have equal hashes. */
uint64_t kvf_sim_etcd_hash(const struct kvf_sim_etcd *etcd);

/* A look and a hand inside, without a client. NULL: no such key; valid until the next change. get also ends leases that are
 * over. */
const struct kvf_store_kv *kvf_sim_etcd_get(struct kvf_sim_etcd *etcd, const char *key);
void kvf_sim_etcd_put(struct kvf_sim_etcd *etcd, const char *key, const char *value); /* value NULL: removes */
uint64_t kvf_sim_etcd_revision(const struct kvf_sim_etcd *etcd);
unsigned kvf_sim_etcd_leases(struct kvf_sim_etcd *etcd); /* that live */
/* Ends a lease at once, with its keys, as if its time were over. */
void kvf_sim_etcd_expire(struct kvf_sim_etcd *etcd, uint64_t lease);
/* All requests that this client ever made. */
uint64_t kvf_sim_store_requests(const struct kvf_store *store);
#endif
