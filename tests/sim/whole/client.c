/* Clients: each is a fiber on one node that uses the public API as an engine does, and compares what it gets with the model. */
#include "tests/sim/whole/world.h"

#include <stdlib.h>
#include <string.h>

#define STORE_NS (3 * KVF_SEC) /* a request to etcd: its timeout, and the net below it */
#define FETCH_NS (2 * KVF_SEC)
#define CALLS_NS (5 * KVF_SEC) /* between nodes */
#define SLACK_NS (1 * KVF_SEC) /* of scheduling: what a step of the world takes, some hundred times */
#define IDS 24u                /* of sessions, which come again */
#define PROBE_TOKENS 70
#define TRIES 30
#define RESTS 12              /* in a drowsy world: one in so many calls is followed by a rest, */
#define REST_MAX_NS (60 * KVF_SEC) /* ... so long at most */

/* ---------------------------------------------------------------- calls */

void client_begin(struct client *c, const char *call, uint64_t bound_ns)
{
    c->call = call;
    c->call_ns = world_now(c->world);
    c->call_bound_ns = bound_ns + SLACK_NS;
    c->call_paused_ns = c->node->paused_ns;
}

void client_end(struct client *c, enum kvf_status status, uint64_t detail)
{
    struct world *w = c->world;
    w->totals.calls++;
    w->progress++;
    if (!c->died)
        world_trace(w, c->call, c->node->number << 8 | c->number, (uint64_t)(int64_t)status, detail, 0);
    c->call = NULL;
}

void client_wait(struct client *c)
{
    if (!c->died)
        fiber_yield();
}

static bool over(const struct client *c)
{
    return c->died;
}

/* A set of statuses: of those a client may meet, ERR_STORE is the only one below -31. */
#define MAY(status) (1ull << ((status) == KVF_ERR_STORE ? 0 : (status) < -31 ? 63 : ((status) + 32) & 63))

/* Ends a call and says whether its status is one that it may have. */
static enum kvf_status ended(struct client *c, enum kvf_status st, uint64_t detail, uint64_t may)
{
    const char *call = c->call;
    client_end(c, st, detail);
    if (!over(c) && st != KVF_OK && !(may & MAY(st)))
        world_violated(c->world, "node %s: %s ends with %s", c->node->name, call, kvf_status_name(st));
    return st;
}

static void engine_calls(void *arg, const char *call)
{
    struct client *c = arg;
    client_begin(c, call, strcmp(call, "step_attend") == 0 && c->attend.timeout_ns ? c->attend.timeout_ns : FETCH_NS);
}

static void engine_called(void *arg, enum kvf_status st)
{
    ended(arg, st, 0,
          MAY(KVF_LOST) | MAY(KVF_MOVED) | MAY(KVF_ERR_BUSY) | MAY(KVF_ERR_STATE) | MAY(KVF_ERR_FULL) | MAY(KVF_ERR_DEADLINE));
}

/* ---------------------------------------------------------------- records */

static struct kvf_node *node_of(const struct client *c)
{
    return &c->node->sim->node;
}

static void handle_close(struct record *r)
{
    kvf_session_close(r->handle);
    r->handle = NULL;
    r->node = NULL;
}

void client_close_records(struct world_node *n)
{
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        struct record *r = &n->world->records[i];
        struct kvf_sess *s = r->id ? kvf_sess_find(n->sim->core, r->id) : NULL;
        r->homeless |= r->node == n || (s && s->state != KVF_SESS_DEPARTED);
        if (r->node != n)
            continue;
        r->taken = false;
        if (r->handle)
            handle_close(r);
        r->node = NULL;
    }
}

/* A record's handle is no good any more: its session moved. */
static bool moved_away(struct client *c, struct record *r, enum kvf_status st)
{
    if (st == KVF_MOVED && !over(c))
        handle_close(r);
    return st == KVF_MOVED;
}

static struct record *record_of(struct world *w, uint64_t id)
{
    for (unsigned i = 0; i < WORLD_SESSIONS; i++)
        if (w->records[i].id == id)
            return &w->records[i];
    return NULL;
}

static void record_free(struct record *r)
{
    *r = (struct record){.id = 0};
}

/* Whether any node may still have it: it died with its home else, and its id comes again. */
static bool somewhere(const struct world *w, uint64_t id)
{
    for (unsigned i = 0; i < w->n; i++) {
        const struct kvf_sess *s = w->nodes[i].sim->dead ? NULL : kvf_sess_find(w->nodes[i].sim->core, id);
        if (s && s->state != KVF_SESS_DEPARTED)
            return true;
    }
    return false;
}

/* A free record; NULL: all are in use. */
static struct record *record_new(struct world *w)
{
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        struct record *r = &w->records[i];
        if (r->id && r->homeless && !r->handle && !r->taken && !somewhere(w, r->id))
            record_free(r);
    }
    return record_of(w, 0);
}

static uint64_t id_new(struct world *w)
{
    uint64_t id;
    do
        id = 1 + draw(&w->work, IDS) + (w->ids > 200 ? w->ids : 0);
    while (record_of(w, id));
    w->ids++;
    return id;
}

/* What the session says of itself is what was done with it. */
static void info_check(struct client *c, struct record *r)
{
    struct kvf_session_info info;
    int32_t tokens[WORLD_TOKENS];
    enum kvf_status st = kvf_session_info(r->handle, &info);
    if (over(c) || moved_away(c, r, st))
        return;
    if (info.tokens != r->tokens)
        world_violated(c->world, "node %s: session %llu has %llu tokens, %llu were committed", c->node->name,
                       (unsigned long long)r->id, (unsigned long long)info.tokens, (unsigned long long)r->tokens);
    r->parked = info.parked;
    if (kvf_session_tokens(r->handle, 0, r->tokens, tokens) != KVF_OK || over(c))
        return;
    for (uint64_t i = 0; i < r->tokens; i++)
        if (tokens[i] != sim_engine_token(c->engines[r->engine], i))
            world_violated(c->world, "node %s: session %llu: token %llu is another", c->node->name, (unsigned long long)r->id,
                           (unsigned long long)i);
}

static struct kvf_model *model_open(struct client *c, unsigned engine)
{
    struct kvf_model *model = NULL;
    client_begin(c, "model_open", STORE_NS);
    enum kvf_status st = ended(c, kvf_model_open(node_of(c), &c->engines[engine]->desc, &model), engine,
                               MAY(KVF_ERR_STORE) | MAY(KVF_ERR_DEADLINE) | MAY(KVF_ERR_BUSY));
    return st == KVF_OK && !over(c) ? model : NULL;
}

static void create(struct client *c)
{
    struct world *w = c->world;
    struct record *r = record_new(w);
    if (!r)
        return;
    *r = (struct record){.id = id_new(w), .engine = (unsigned)draw(&w->work, WORLD_ENGINES), .node = c->node, .taken = true};
    struct kvf_model *model = model_open(c, r->engine);
    if (over(c))
        return;
    if (!model) {
        record_free(r);
        return;
    }
    client_begin(c, "create", STORE_NS);
    enum kvf_status st = ended(c, kvf_session_create(node_of(c), model, r->id, &r->handle), r->id,
                               MAY(KVF_ERR_STORE) | MAY(KVF_ERR_DEADLINE) | MAY(KVF_ERR_EXISTS) | MAY(KVF_ERR_BUSY));
    if (over(c))
        return;
    r->taken = false;
    if (st != KVF_OK)
        record_free(r);
}

static void attach(struct client *c, struct record *r)
{
    r->taken = true;
    r->node = c->node;
    struct kvf_model *model = model_open(c, r->engine);
    if (over(c))
        return;
    r->node = NULL;
    r->taken = false;
    if (!model)
        return;
    r->taken = true;
    r->node = c->node;
    client_begin(c, "attach", 100 * KVF_MS);
    enum kvf_status st =
        ended(c, kvf_session_attach(node_of(c), model, r->id, 100 * KVF_MS, &r->handle), r->id, MAY(KVF_ERR_DEADLINE));
    if (over(c))
        return;
    if (st == KVF_OK)
        info_check(c, r);
    else
        r->node = NULL;
    r->taken = false;
}

/* A session that this client may work with now, with a handle here; NULL: none. */
static struct record *choose(struct client *c)
{
    struct world *w = c->world;
    unsigned first = (unsigned)draw(&w->work, WORLD_SESSIONS);
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        struct record *r = &w->records[(first + i) % WORLD_SESSIONS];
        if (!r->id || r->taken)
            continue;
        if (!r->handle && check_home(w, r->id) == c->node)
            attach(c, r);
        if (over(c))
            return NULL;
        if (r->handle && r->node == c->node && !r->taken) {
            r->taken = true;
            return r;
        }
    }
    return NULL;
}

/* ---------------------------------------------------------------- what is done with a session */

static void rows_check(struct client *c, struct record *r)
{
    struct sim_engine *e = c->engines[r->engine];
    c->world->totals.rows += e->compared;
    c->world->totals.refills += e->refills;
    if (e->different)
        world_violated(c->world, "node %s: session %llu: %llu of %llu rows of attention are not the twin's", c->node->name,
                       (unsigned long long)r->id, (unsigned long long)e->different, (unsigned long long)e->compared);
    e->compared = e->refills = 0;
}

/* Some tokens more, with refills where something is lost. */
static enum kvf_status grow(struct client *c, struct record *r, uint32_t n)
{
    struct sim_engine *e = c->engines[r->engine];
    if (r->tokens + n > WORLD_TOKENS)
        return KVF_ERR_FULL;
    enum kvf_status st = sim_engine_step(e, r->handle, n);
    if (!over(c) && st == KVF_LOST)
        st = sim_engine_refill(e, r->handle) == KVF_OK ? KVF_LOST : KVF_ERR_BUSY;
    else if (!over(c) && st == KVF_OK)
        r->tokens += n;
    if (over(c))
        return st;
    rows_check(c, r);
    moved_away(c, r, st);
    return st;
}

static void step(struct client *c, struct record *r)
{
    static const uint64_t timeouts[] = {0, 0, 20 * KVF_MS, 500 * KVF_MS};
    struct world *w = c->world;
    c->attend = (struct kvf_attend_options){.budget = draw(&w->work, 4) ? 1 : 0.5f, .timeout_ns = timeouts[draw(&w->work, 4)]};
    c->attend.sink_tokens = c->attend.local_tokens = 8;
    grow(c, r, 1 + (uint32_t)draw(&w->work, draw(&w->work, 4) ? 6 : 48));
}

static void fork_one(struct client *c, struct record *from)
{
    struct record *r = record_new(c->world);
    if (!r)
        return;
    *r = (struct record){.id = id_new(c->world), .engine = from->engine, .tokens = from->tokens, .node = c->node, .taken = true};
    client_begin(c, "fork", 2 * STORE_NS + 2 * FETCH_NS);
    enum kvf_status st = ended(c, kvf_session_fork(from->handle, r->id, &r->handle), r->id,
                               MAY(KVF_ERR_STORE) | MAY(KVF_ERR_DEADLINE) | MAY(KVF_ERR_EXISTS) | MAY(KVF_ERR_BUSY) |
                                   MAY(KVF_ERR_STATE) | MAY(KVF_ERR_FULL) | MAY(KVF_MOVED));
    if (over(c))
        return;
    r->taken = false;
    moved_away(c, from, st);
    r->tokens = st == KVF_OK ? r->tokens : 0;
    r->node = st == KVF_OK ? c->node : NULL;
    if (st != KVF_OK && check_home(c->world, r->id) != c->node) /* else it waits to be dropped */
        record_free(r);
}

static void park(struct client *c, struct record *r)
{
    client_begin(c, "park", KVF_SEC + STORE_NS);
    enum kvf_status st = ended(c, kvf_session_park(r->handle, KVF_SEC), r->id,
                               MAY(KVF_ERR_STATE) | MAY(KVF_ERR_FULL) | MAY(KVF_ERR_DEADLINE) | MAY(KVF_MOVED));
    if (over(c) || moved_away(c, r, st))
        return;
    r->parked = st == KVF_OK;
}

static void resume(struct client *c, struct record *r)
{
    client_begin(c, "resume", KVF_SEC + STORE_NS);
    enum kvf_status st = ended(c, kvf_session_resume(r->handle, KVF_SEC), r->id, MAY(KVF_MOVED));
    if (over(c) || moved_away(c, r, st))
        return;
    r->parked = false;
}

/* Whatever the target may answer to an offer or a piece is an answer to the caller, too. */
#define MOVE_MAY                                                                                                             \
    (MAY(KVF_MOVED) | MAY(KVF_ERR_INVALID) | MAY(KVF_ERR_NOT_FOUND) | MAY(KVF_ERR_BUSY) | MAY(KVF_ERR_FULL) |                \
     MAY(KVF_ERR_DEADLINE) | MAY(KVF_ERR_STATE) | MAY(KVF_ERR_PEER_LOST) | MAY(KVF_ERR_PEER_UNREACHABLE) |                   \
     MAY(KVF_ERR_STALE) | MAY(KVF_ERR_STORE))

static void move(struct client *c, struct record *r)
{
    struct world *w = c->world;
    const char *target = w->nodes[draw(&w->work, w->n)].name;
    struct kvf_move_report report;
    uint64_t timeout = draw(&w->work, 3) ? 5 * KVF_SEC : 200 * KVF_MS;
    client_begin(c, "move", timeout + STORE_NS + CALLS_NS);
    enum kvf_status st = kvf_session_move(r->handle, target, timeout, &report);
    ended(c, st, r->id, MOVE_MAY);
    if (over(c))
        return;
    w->totals.moves += st == KVF_OK;
    if (st == KVF_OK)
        handle_close(r);
    else
        moved_away(c, r, st);
}

/* An operator moves a session, whoever works with it: `kvf move`. */
static void order(struct client *c)
{
    struct world *w = c->world;
    const char *target = w->nodes[draw(&w->orders, w->n)].name;
    uint64_t timeout = draw(&w->orders, 3) ? 5 * KVF_SEC : 200 * KVF_MS;
    unsigned first = (unsigned)draw(&w->orders, WORLD_SESSIONS);
    const struct record *r = NULL;
    for (unsigned i = 0; i < WORLD_SESSIONS && !r; i++) {
        r = &w->records[(first + i) % WORLD_SESSIONS];
        r = r->id && check_home(w, r->id) == c->node ? r : NULL;
    }
    if (!r)
        return;
    uint64_t id = r->id;
    client_begin(c, "order", timeout + STORE_NS + CALLS_NS);
    enum kvf_status st = ended(c, kvf_node_move(node_of(c), id, target, timeout, NULL), id, MOVE_MAY);
    w->totals.moves += !over(c) && st == KVF_OK;
}

static enum kvf_status drop(struct client *c, struct record *r)
{
    client_begin(c, "drop", STORE_NS + FETCH_NS);
    enum kvf_status st = ended(c, kvf_session_drop(r->handle), r->id,
                               MAY(KVF_MOVED) | MAY(KVF_ERR_BUSY) | MAY(KVF_ERR_STATE) | MAY(KVF_ERR_DEADLINE) |
                                   MAY(KVF_ERR_STALE) | MAY(KVF_ERR_STORE));
    r->handle = st == KVF_OK ? NULL : r->handle;
    if (over(c))
        return st;
    if (st == KVF_OK)
        record_free(r);
    else
        moved_away(c, r, st);
    return st;
}

static void session_work(struct client *c)
{
    struct world *w = c->world;
    unsigned what = (unsigned)draw(&w->work, 100);
    struct record *r = what < 10 ? NULL : choose(c);
    if (over(c) || (!r && c->node->draining))
        return;
    if (!r) {
        create(c);
        return;
    }
    uint64_t id = r->id;
    if (r->parked && what < 80)
        resume(c, r);
    else if (what < 70)
        step(c, r);
    else if (what < 75)
        fork_one(c, r);
    else if (what < 80)
        park(c, r);
    else if (what < 91)
        move(c, r);
    else if (what < 96)
        drop(c, r);
    else
        handle_close(r);
    if (r->id == id) /* also of a client that died: it may have given its handle back already */
        r->taken = false;
}

/* ---------------------------------------------------------------- the fibers */

static bool client_open(struct client *c)
{
    for (unsigned i = 0; i < WORLD_ENGINES; i++) {
        c->engines[i]->options = &c->attend;
        c->engines[i]->calls = engine_calls;
        c->engines[i]->called = engine_called;
        c->engines[i]->calls_arg = c;
    }
    enum kvf_status st = kvf_queue_create(node_of(c), 2 * WORLD_BATCH, &c->queue);
    if (!over(c) && st != KVF_OK)
        world_violated(c->world, "node %s: no queue: %s", c->node->name, kvf_status_name(st));
    return !over(c);
}

static void client_done(struct client *c)
{
    if (over(c))
        return;
    client_begin(c, "queue_destroy", FETCH_NS);
    kvf_queue_destroy(c->queue);
    client_end(c, KVF_OK, 0);
    c->queue = NULL;
}

static void pause_for(struct client *c, uint64_t ns)
{
    uint64_t until = world_now(c->world) + ns;
    while (!over(c) && world_now(c->world) < until)
        client_wait(c);
}

void client_run(void *arg)
{
    struct client *c = arg;
    struct world *w = c->world;
    struct kvf_memory *memory = NULL;
    if (!client_open(c))
        return;
    if (draw(&w->work, 2) && kvf_memory_register(node_of(c), c->buffers[0], WORLD_BLOCK_MAX, &memory) != KVF_OK)
        memory = NULL;
    while (!over(c) && w->phase == PHASE_WORK) {
        for (uint64_t i = draw(&w->work, 4); i > 0; i--)
            client_wait(c);
        if (w->drowsy && draw(&w->watches, RESTS) == 0)
            pause_for(c, draw(&w->watches, REST_MAX_NS));
        if (over(c))
            return;
        if (faults_order(w) || (c->node->draining && draw(&w->orders, 2)))
            order(c);
        else if (draw(&w->work, 3))
            session_work(c);
        else
            opaque_batch(c);
    }
    client_done(c);
    if (!over(c) && memory)
        kvf_memory_unregister(memory);
}

/* Tries again what a node that has just come back may refuse. */
static void session_probe(struct client *c)
{
    struct world *w = c->world;
    struct kvf_session *s = NULL;
    struct kvf_model *model = NULL;
    struct sim_engine *e = c->engines[0];
    uint64_t id = 1000000 + c->node->number;
    enum kvf_status st = KVF_ERR_STORE;
    c->attend = (struct kvf_attend_options){.budget = 1};
    for (unsigned i = 0; i < TRIES && !model; i++) {
        model = model_open(c, 0);
        if (!model)
            pause_for(c, KVF_SEC / 2);
    }
    for (unsigned i = 0; model && i < TRIES && st != KVF_OK; i++) {
        client_begin(c, "probe create", STORE_NS);
        st = kvf_session_create(node_of(c), model, id, &s);
        client_end(c, st, id);
        if (st != KVF_OK)
            pause_for(c, KVF_SEC / 2);
    }
    if (st != KVF_OK)
        world_violated(w, "node %s: no session can be made with nothing broken any more: %s", c->node->name, kvf_status_name(st));
    uint64_t tokens = 0;
    for (unsigned i = 0; i < TRIES && tokens < PROBE_TOKENS; i++) {
        st = sim_engine_step(e, s, 35);
        if (st == KVF_LOST)
            sim_engine_refill(e, s);
        tokens += st == KVF_OK ? 35 : 0;
        if (st != KVF_OK)
            pause_for(c, KVF_SEC / 2);
    }
    struct record r = {.id = id};
    rows_check(c, &r);
    if (tokens < PROBE_TOKENS)
        world_violated(w, "node %s: a fresh session makes no steps with nothing broken any more: %s", c->node->name,
                       kvf_status_name(st));
    for (unsigned i = 0; i < TRIES && s; i++) {
        client_begin(c, "probe drop", STORE_NS + FETCH_NS);
        st = kvf_session_drop(s);
        client_end(c, st, id);
        s = st == KVF_OK ? NULL : s;
    }
    if (s)
        world_violated(w, "node %s: a session cannot be dropped: %s", c->node->name, kvf_status_name(st));
}

void client_probe(void *arg)
{
    struct client *c = arg;
    if (!client_open(c))
        return;
    opaque_probe(c);
    session_probe(c);
    client_done(c);
}

/* One session that may be here: a step, where it can be made, and its end. */
static void record_drain(struct client *c, struct record *r, bool first)
{
    if (!r->handle && !r->taken && check_home(c->world, r->id) == c->node)
        attach(c, r);
    if (over(c) || r->node != c->node || !r->handle || r->taken)
        return;
    r->taken = true;
    if (r->parked)
        resume(c, r);
    if (first && r->handle)
        grow(c, r, 2);
    uint64_t id = r->id;
    if (r->handle)
        drop(c, r);
    if (r->id == id)
        r->taken = false;
}

/* Until no session is left anywhere: what is not known of one yet may turn out to be here. */
static void records_drain(struct client *c)
{
    struct world *w = c->world;
    for (unsigned round = 0; round < TRIES; round++) {
        unsigned left = 0;
        for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
            struct record *r = &w->records[i];
            if (r->id)
                record_drain(c, r, round == 0);
            left += r->id && (!r->homeless || somewhere(w, r->id));
        }
        if (!left)
            return;
        pause_for(c, KVF_SEC);
    }
}

void client_drain(void *arg)
{
    struct client *c = arg;
    c->attend = (struct kvf_attend_options){.budget = 1};
    if (!client_open(c))
        return;
    records_drain(c);
    opaque_drain(c);
    client_done(c);
}
