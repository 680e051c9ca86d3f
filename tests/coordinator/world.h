/* Three coordinators over one etcd in memory and a clock set by hand: what the tests of this folder share. */
#ifndef KVF_TESTS_COORDINATOR_WORLD_H
#define KVF_TESTS_COORDINATOR_WORLD_H

#include "coordinator/coordinator.h"
#include "coordinator/records.h"
#include "tests/sim/sim_env.h"
#include "tests/sim/sim_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifndef SEED
#define SEED 20261123
#endif
#define PREFIX "/kvf/test"
#define TTL (5 * KVF_SEC)
#define PEERS 3

/* One participant and what its handler was told. */
struct peer {
    struct world *world;
    struct kvf_store *store;
    struct kvf_coord *coord;
    unsigned ups, downs, placements, gone;
    char last_down[64], leader[64];
    uint64_t last_down_incarnation;
    struct kvf_placement last_placement;
    int joined; /* status, 99: not yet */
    unsigned joined_calls;
    int reachable; /* -1: not told */
};

struct world {
    struct sim_env sim;
    struct kvf_log log;
    struct kvf_sim_etcd *etcd;
    struct peer peer[PEERS];
    /* the last answer of a session or model request */
    unsigned answers;
    enum kvf_status status;
    struct kvf_placement standing;
    bool has_standing;
};

static inline void member_up(void *arg, const struct kvf_member *member)
{
    ((struct peer *)arg)->ups++;
}

static inline void member_down(void *arg, const char *name, uint64_t incarnation)
{
    struct peer *p = arg;
    p->downs++;
    p->last_down_incarnation = incarnation;
    snprintf(p->last_down, sizeof p->last_down, "%s", name);
}

static inline void placement(void *arg, const struct kvf_placement *placement)
{
    struct peer *p = arg;
    p->placements++;
    p->last_placement = *placement;
}

static inline void placement_gone(void *arg, uint64_t id)
{
    ((struct peer *)arg)->gone++;
}

static inline void leader(void *arg, const char *name)
{
    struct peer *p = arg;
    snprintf(p->leader, sizeof p->leader, "%s", name);
}

static inline void joined(void *arg, enum kvf_status status)
{
    struct peer *p = arg;
    p->joined = status;
    p->joined_calls++;
}

static inline void store_state(void *arg, bool reachable)
{
    ((struct peer *)arg)->reachable = reachable;
}

static inline void answered(void *arg, enum kvf_status status, const struct kvf_placement *standing)
{
    struct world *w = arg;
    w->answers++;
    w->status = status;
    w->has_standing = standing != NULL;
    if (standing)
        w->standing = *standing;
}

static inline void model_answered(void *arg, enum kvf_status status)
{
    answered(arg, status, NULL);
}

static inline void open_peer(struct world *w, unsigned i)
{
    struct peer *p = &w->peer[i];
    *p = (struct peer){.world = w, .joined = 99, .reachable = -1};
    p->store = kvf_sim_store_create(w->etcd);
    struct kvf_coord_config config = {
        .env = &w->sim.env,
        .store = p->store,
        .log = &w->log,
        .prefix = PREFIX "/",
        .lease_ttl_ns = TTL,
        .handler = {p, member_up, member_down, placement, placement_gone, leader, joined, store_state},
    };
    assert_int_equal(kvf_coord_create(&config, &p->coord), KVF_OK);
}

static inline void close_peer(struct peer *p)
{
    kvf_coord_destroy(p->coord);
    if (p->store)
        p->store->ops->destroy(p->store);
    p->coord = NULL;
    p->store = NULL;
}

static inline int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    sim_env_init(&w->sim, SEED);
    kvf_log_init(&w->log, "test", KVF_LOG_DEBUG, NULL);
    w->etcd = kvf_sim_etcd_create(&w->sim.env);
    for (unsigned i = 0; i < PEERS; i++)
        open_peer(w, i);
    *state = w;
    return 0;
}

static inline int tear_down(void **state)
{
    struct world *w = *state;
    for (unsigned i = 0; i < PEERS; i++)
        close_peer(&w->peer[i]);
    kvf_sim_etcd_destroy(w->etcd);
    free(w);
    return 0;
}

/* Polls everybody until nothing happens any more, without time. */
static inline void settle(struct world *w)
{
    for (unsigned rounds = 0, n = 1; n; rounds++) {
        n = 0;
        for (unsigned i = 0; i < PEERS; i++)
            if (w->peer[i].coord)
                n += kvf_coord_poll(w->peer[i].coord);
        assert_true(rounds < 200);
    }
}

/* Lets time pass in steps of 100 ms. */
static inline void pass(struct world *w, uint64_t ns)
{
    for (uint64_t t = 0; t < ns; t += 100 * KVF_MS) {
        sim_env_advance(&w->sim, 100 * KVF_MS);
        settle(w);
    }
}

static inline struct kvf_member member_of(const char *name, uint64_t incarnation)
{
    struct kvf_member m = {.incarnation = incarnation, .address = "address", .address_bytes = 7, .host = "h"};
    snprintf(m.name, sizeof m.name, "%s", name);
    return m;
}

static inline void join(struct world *w, unsigned i, const char *name, uint64_t incarnation)
{
    struct kvf_member m = member_of(name, incarnation);
    assert_int_equal(kvf_coord_join(w->peer[i].coord, &m, false), KVF_OK);
}

static inline void join_two(struct world *w)
{
    join(w, 0, "a", 1);
    join(w, 1, "b", 2);
    settle(w);
    assert_int_equal(w->peer[0].joined, KVF_OK);
    assert_int_equal(w->peer[1].joined, KVF_OK);
}

static inline bool knows(struct peer *p, const char *name)
{
    return kvf_coord_member(p->coord, name) != NULL;
}

/* Runs a session request to its answer. */
static inline enum kvf_status wait_answer(struct world *w, enum kvf_status started)
{
    unsigned before = w->answers;
    assert_int_equal(started, KVF_OK);
    settle(w);
    assert_int_equal(w->answers, before + 1);
    return w->status;
}

static inline enum kvf_status create(struct world *w, unsigned i, uint64_t id, const char *home)
{
    return wait_answer(w, kvf_coord_session_create(w->peer[i].coord, id, home, "m", answered, w));
}

static inline enum kvf_status move(struct world *w, unsigned i, uint64_t id, const char *home, uint64_t epoch, const char *to)
{
    return wait_answer(w, kvf_coord_session_move(w->peer[i].coord, id, home, epoch, to, 100, answered, w));
}

static inline enum kvf_status read_back(struct world *w, unsigned i, uint64_t id)
{
    return wait_answer(w, kvf_coord_session_read(w->peer[i].coord, id, answered, w));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#endif
