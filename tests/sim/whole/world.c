/* The world's life: its nodes, one step of everything, the phases, the trace. */
#include "tests/sim/whole/world.h"

#include "base/hash.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STEP_NS (20 * KVF_US) /* the clock goes on by so much and up to STEP_MORE_NS while things happen, */
#define STEP_MORE_NS (180 * KVF_US)
#define QUIET_NS (1 * KVF_MS)       /* and by ever more when nothing does, */
#define QUIET_MAX_NS (100 * KVF_MS) /* but never over a heartbeat */
#define CONNECT_NS (30 * KVF_SEC)
#define REST_NS (60 * KVF_SEC) /* lenders look for what nobody will release, and have waited 45 s and 7.5 s before they free it */
#define RESUMES_MAX 20000u /* of a fiber whose node died: every wait of its has a deadline, which is over */

void __real_kvf_core_lock(struct kvf_core *core);
void __wrap_kvf_core_lock(struct kvf_core *core);
bool __real_kvf_block_verify(const struct kvf_dev *dev, uint64_t seed, const void *data, uint32_t bytes, uint32_t chunk_bytes,
                             uint64_t mask, const uint64_t *sums);
bool __wrap_kvf_block_verify(const struct kvf_dev *dev, uint64_t seed, const void *data, uint32_t bytes, uint32_t chunk_bytes,
                             uint64_t mask, const uint64_t *sums);

/* What the linker's wrapped functions ask: they are called by the product, which knows no world. One lives at a time. */
static struct world *living;

uint64_t draw(struct sim_env *stream, uint64_t bound)
{
    return sim_env_random(stream, bound);
}

uint64_t world_now(const struct world *w)
{
    return w->cluster->env.now_ns;
}

/* ---------------------------------------------------------------- what the linker puts in */

/* A caller that wants the lock may have to wait for others, so they go first now and then. */
void __wrap_kvf_core_lock(struct kvf_core *core)
{
    if (living && living->preempt && core->idle && fiber_inside() && draw(&living->order, living->preempt) == 0)
        fiber_yield();
    __real_kvf_core_lock(core);
}

/* The planted bug: checksums are not tested. */
bool __wrap_kvf_block_verify(const struct kvf_dev *dev, uint64_t seed, const void *data, uint32_t bytes, uint32_t chunk_bytes,
                             uint64_t mask, const uint64_t *sums)
{
    return (living && living->options.canary == CANARY_CHECKSUM) ||
           __real_kvf_block_verify(dev, seed, data, bytes, chunk_bytes, mask, sums);
}

/* ---------------------------------------------------------------- trace */

static void trace_print(const struct trace *t)
{
    fprintf(stderr, "%12.6f %-14s %llx %llx %llx %llx\n", (double)t->time_ns / 1e9, t->what, (unsigned long long)t->words[0],
            (unsigned long long)t->words[1], (unsigned long long)t->words[2], (unsigned long long)t->words[3]);
}

void world_trace(struct world *w, const char *what, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    struct trace *t = &w->traces[w->n_traces++ % WORLD_TRACES];
    *t = (struct trace){.what = what, .time_ns = world_now(w), .words = {a, b, c, d}};
    w->hash = kvf_hash(what, strlen(what), w->hash);
    w->hash = kvf_hash(&t->time_ns, sizeof t->time_ns, w->hash);
    w->hash = kvf_hash(t->words, sizeof t->words, w->hash);
    if (w->options.verbose)
        trace_print(t);
}

void world_violated(struct world *w, const char *format, ...)
{
    static const char *const canaries[] = {"", " --canary checksum", " --canary epoch"};
    va_list args;
    uint64_t from = w->n_traces > 40 ? w->n_traces - 40 : 0;
    for (uint64_t i = from; i < w->n_traces && !w->options.verbose; i++)
        trace_print(&w->traces[i % WORLD_TRACES]);
    for (unsigned i = 0; i < w->n && w->phase > PHASE_WORK; i++)
        if (!w->nodes[i].sim->dead)
            check_show(&w->nodes[i]);
    fprintf(stderr, "VIOLATED in step %llu, phase %d, at %.6f s: ", (unsigned long long)w->steps, (int)w->phase,
            (double)world_now(w) / 1e9);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    /* Their number is a draw of the seed's unless it was given, and then every draw after it is another. */
    char events[32] = "";
    if (w->options.steps)
        snprintf(events, sizeof events, " --events %llu", (unsigned long long)w->options.steps);
    fprintf(stderr, "\nrepeat with: sim --seed %llu%s%s --verbose\n", (unsigned long long)w->options.seed, events,
            canaries[w->options.canary]);
    fflush(NULL);
    _exit(1);
}

/* ---------------------------------------------------------------- nodes */

/* A wait inside a call: like a condition variable it gives up the lock. */
static void idle(void *arg)
{
    struct world_node *n = arg;
    struct kvf_core *core = n->sim->core;
    pthread_mutex_unlock(&core->lock);
    if (fiber_inside())
        fiber_yield();
    else
        world_step(n->world);
    pthread_mutex_lock(&core->lock);
}

static void node_attach(struct world_node *n)
{
    struct world *w = n->world;
    unsigned instance = sim_net_number(n->sim->transport);
    n->sim->core->idle = idle;
    n->sim->core->idle_arg = n;
    w->instances[instance] = n->number;
    n->lives++;
    n->reclaim_ns = n->lend_again_ns = n->lag_until_ns = 0;
    n->draining = false;
    faults_attach_disk(n);
    world_trace(w, "start", n->number, instance, n->sim->core->incarnation, 0);
}

static void node_add(struct world *w)
{
    static const char *const colds[] = {NULL, NULL, NULL, "exact"};
    struct world_node *n = &w->nodes[w->n];
    *n = (struct world_node){.world = w, .number = w->n};
    snprintf(n->name, sizeof n->name, "n%u", w->n);
    struct sim_node_config config = {
        .name = n->name,
        .dram = (64 + 32 * draw(&w->order, 9)) << 10,
        .lend = draw(&w->order, 4) ? (32 + 32 * draw(&w->order, 8)) << 10 : 0,
        .staging = (64 + 64 * draw(&w->order, 3)) << 10,
        .gpu = draw(&w->order, 4) ? 0 : 64 << 10,
        .ssd = draw(&w->order, 5) ? (2048 + 256 * draw(&w->order, 5)) << 10 : 0,
        .power = true,
        .way = (enum kvf_way)draw(&w->order, 3),
        .no_claims = w->drowsy,
        .keep_dead_ns = draw(&w->order, 2) * 5 * KVF_SEC,
        .no_borrow = draw(&w->order, 8) == 0,
        .cold = colds[draw(&w->order, 4)],
        .block_max = 32 << 10,
        .peers_max = 8,
        .leave_entries = 4, /* many turns, so that much happens in between */
        .blocks_max = draw(&w->order, 4) ? 1024 : 128 + draw(&w->order, 256),
        .scrub_rate = draw(&w->order, 2) ? 0 : 1 << 20,
        .down_budget = draw(&w->order, 6) ? 0 : 4 << 20,
        .up_budget = draw(&w->order, 6) ? 0 : 4 << 20,
        .fetch_timeout_ns = 2 * KVF_SEC,
        .etcd_timeout_ns = 2 * KVF_SEC,
        .skew_ns = draw(&w->order, 1000 * KVF_SEC),
    };
    n->sim = sim_cluster_add(w->cluster, &config);
    w->n++;
    node_attach(n);
}

/* What waits in the dead node's calls comes back at once: its clock is far ahead, and every wait has a deadline. */
static void clients_unwind(struct world_node *n)
{
    for (unsigned i = 0; i < n->world->n_clients; i++) {
        struct client *c = &n->clients[i];
        unsigned resumes = 0;
        c->died = true;
        while (c->fiber && fiber_resume(c->fiber))
            if (++resumes > RESUMES_MAX)
                world_violated(n->world, "node %s, client %u: %s waits though its deadline is over", n->name, i,
                               c->call ? c->call : "nothing");
        fiber_destroy(c->fiber);
        c->fiber = NULL;
        c->queue = NULL; /* the core's to free */
        c->call = NULL;
    }
}

/* What a life of a node came to. */
static void node_count(struct world_node *n)
{
    const struct kvf_counters *counters = &n->sim->core->counters;
    n->world->totals.returned += atomic_load(&counters->lent_blocks_returned);
    n->world->totals.revoked += atomic_load(&counters->lent_blocks_revoked);
}

static void node_bury(struct world_node *n)
{
    node_count(n);
    n->sim->core->idle = NULL;
    n->sim->skew_ns += 1ull << 50;
    clients_unwind(n);
    client_close_records(n);
    opaque_crashed(n);
    n->memory = NULL;
    sim_cluster_bury(n->sim);
}

void world_crash(struct world_node *n, bool power, bool tell)
{
    struct world *w = n->world;
    world_trace(w, power ? "power" : "crash", n->number, tell, 0, 0);
    n->rotten |= power && w->rates[FAULT_DISK_MISPLACE];
    opaque_crashing(n);
    sim_cluster_kill(n->sim, tell);
    uint64_t seed = draw(&w->chance, UINT64_MAX);
    if (n->sim->disk && power)
        sim_disk_cut(n->sim->disk, seed, w->rates[FAULT_DISK_MISPLACE] ? 8 : 0);
    else if (n->sim->disk)
        sim_disk_kill(n->sim->disk, seed);
    n->sim->paused = false;
    n->resume_ns = 0;
    node_bury(n);
    n->restart_ns = world_now(w) + draw(&w->chance, 8) * KVF_SEC + 1;
}

void world_pause(struct world_node *n, uint64_t ns)
{
    n->sim->paused = true;
    n->resume_ns = world_now(n->world) + ns;
    world_trace(n->world, "pause", n->number, ns, 0, 0);
}

static void client_start(struct client *c, void (*run)(void *))
{
    c->died = false;
    c->call = NULL;
    fiber_destroy(c->fiber);
    c->fiber = fiber_create(run, c);
}

static void node_clients_start(struct world_node *n)
{
    static void (*const runs[])(void *) = {[PHASE_WORK] = client_run, [PHASE_DRAIN] = client_drain, [PHASE_PROBE] = client_probe};
    struct world *w = n->world;
    if (w->phase == PHASE_BOOT || w->phase > PHASE_PROBE || !runs[w->phase])
        return;
    for (unsigned i = 0; i < (w->phase == PHASE_WORK ? w->n_clients : 1); i++)
        client_start(&n->clients[i], runs[w->phase]);
}

/* Pauses end, and nodes start again; one whose join failed dies, and comes again. */
static void node_life(struct world_node *n)
{
    struct world *w = n->world;
    uint64_t now = world_now(w);
    if (n->resume_ns && now >= n->resume_ns) {
        n->sim->paused = false;
        n->resume_ns = 0;
        n->resumed_ns = now;
        world_trace(w, "resume", n->number, 0, 0, 0);
    }
    if (!n->sim->dead && n->sim->core->join_ended && !n->sim->core->joined)
        world_crash(n, false, true);
    if (n->restart_ns && now >= n->restart_ns) {
        n->restart_ns = 0;
        faults_start(n);
        sim_cluster_restart(n->sim);
        node_attach(n);
        opaque_restarted(n);
        w->totals.crashes_survived++;
        node_clients_start(n);
    }
}

/* ---------------------------------------------------------------- one step */

static unsigned nodes_poll(struct world *w)
{
    unsigned events = 0, first = (unsigned)draw(&w->order, w->n);
    for (unsigned i = 0; i < w->n; i++) {
        struct world_node *n = &w->nodes[(first + i) % w->n];
        if (n->sim->dead || n->sim->paused)
            continue;
        pthread_mutex_lock(&n->sim->core->lock);
        events += sim_cluster_poll(n->sim);
        pthread_mutex_unlock(&n->sim->core->lock);
        events += n->sim->disk && sim_disk_pending(n->sim->disk) > 0;
    }
    return events;
}

static void clients_resume(struct world *w)
{
    unsigned first = (unsigned)draw(&w->order, w->n * w->n_clients);
    for (unsigned i = 0; i < w->n * w->n_clients; i++) {
        unsigned at = (first + i) % (w->n * w->n_clients);
        struct world_node *n = &w->nodes[at / w->n_clients];
        struct client *c = &n->clients[at % w->n_clients];
        if (!n->sim->dead && !n->sim->paused && c->fiber && !fiber_ended(c->fiber) && draw(&w->order, 4))
            fiber_resume(c->fiber);
    }
}

static void clock_step(struct world *w, bool active)
{
    uint64_t now = world_now(w), ns = STEP_NS + draw(&w->order, STEP_MORE_NS);
    w->quiet = active ? 0 : w->quiet + 1;
    if (w->quiet > 2) {
        uint64_t next = sim_net_next(w->cluster->net);
        ns = w->quiet < 10 ? QUIET_NS << (w->quiet - 3) : QUIET_MAX_NS;
        if (next != UINT64_MAX && next > now && next - now < ns)
            ns = next - now;
    }
    for (unsigned i = 0; i < w->n; i++)
        w->nodes[i].paused_ns += w->nodes[i].sim->paused ? ns : 0;
    sim_env_advance(&w->cluster->env, ns);
    w->totals.time_ns += ns;
}

void world_step(struct world *w)
{
    uint64_t before = w->progress;
    unsigned events = 0, frames = 1 + (unsigned)draw(&w->order, 8);
    w->steps++;
    if (w->phase == PHASE_WORK)
        faults_step(w);
    for (unsigned i = 0; i < w->n; i++)
        node_life(&w->nodes[i]);
    while (frames-- > 0 && sim_net_step(w->cluster->net))
        events++;
    while (kvf_sim_etcd_step(w->cluster->etcd))
        events++;
    events += nodes_poll(w);
    clients_resume(w);
    check_step(w);
    clock_step(w, events > 0 || w->progress != before);
}

void world_settle(struct world *w, uint64_t ns)
{
    uint64_t until = world_now(w) + ns;
    while (world_now(w) < until)
        world_step(w);
}

/* ---------------------------------------------------------------- phases */

void world_clients_start(struct world *w, enum phase phase)
{
    w->phase = phase;
    w->probes = 0;
    world_trace(w, "phase", phase, 0, 0, 0);
    for (unsigned i = 0; i < w->n; i++)
        if (!w->nodes[i].sim->dead)
            node_clients_start(&w->nodes[i]);
}

void world_clients_join(struct world *w, uint64_t ns)
{
    uint64_t until = world_now(w) + ns;
    for (;;) {
        struct client *busy = NULL;
        for (unsigned i = 0; i < w->n * w->n_clients && !busy; i++) {
            struct client *c = &w->nodes[i / w->n_clients].clients[i % w->n_clients];
            busy = c->fiber && !fiber_ended(c->fiber) ? c : NULL;
        }
        if (!busy)
            return;
        if (world_now(w) >= until)
            world_violated(w, "node %s, client %u has not ended %.0f s later: %s", busy->node->name, busy->number, (double)ns / 1e9,
                           busy->call ? busy->call : "between calls");
        world_step(w);
    }
}

static void connect(struct world *w)
{
    uint64_t until = world_now(w) + CONNECT_NS;
    while (!check_connected(w)) {
        if (world_now(w) >= until)
            world_violated(w, "not every node sees every other one");
        world_step(w);
    }
}

void world_run(struct world *w)
{
    connect(w);
    world_clients_start(w, PHASE_WORK);
    faults_begin(w);
    if (w->options.script)
        w->options.script(w);
    for (uint64_t i = 0; i < w->steps_max; i++)
        world_step(w);
    w->phase = PHASE_HEAL;
    world_trace(w, "heal", 0, 0, 0, 0);
    faults_heal(w);
    world_clients_join(w, 60 * KVF_SEC);
    connect(w);
    world_clients_start(w, PHASE_DRAIN);
    world_clients_join(w, 120 * KVF_SEC);
    world_clients_start(w, PHASE_PROBE);
    world_clients_join(w, 60 * KVF_SEC);
    w->phase = PHASE_REST;
    world_settle(w, REST_NS);
    connect(w);
    check_rest(w);
    for (unsigned i = 0; i < w->n; i++)
        node_count(&w->nodes[i]);
}

/* ---------------------------------------------------------------- life */

struct sim_engine **world_engines_create(void)
{
    struct sim_engine **engines = calloc(WORLD_ENGINES, sizeof *engines);
    if (!engines)
        abort();
    for (unsigned i = 0; i < WORLD_ENGINES; i++) {
        /* Two of one model with other bytes, and two models. */
        engines[i] = sim_engine_create(100 + i, 32, KVF_F16, 8, 32, WORLD_TOKENS);
        snprintf(engines[i]->desc.name, sizeof engines[i]->desc.name, "model%u", i / 2);
        engines[i]->desc.weights_id = 1 + i / 2;
    }
    return engines;
}

void world_engines_destroy(struct sim_engine **engines)
{
    for (unsigned i = 0; i < WORLD_ENGINES; i++)
        sim_engine_destroy(engines[i]);
    free(engines);
}

static void clients_init(struct world_node *n)
{
    for (unsigned i = 0; i < n->world->n_clients; i++) {
        struct client *c = &n->clients[i];
        *c = (struct client){.world = n->world, .node = n, .number = i};
        for (unsigned b = 0; b < WORLD_BATCH; b++)
            if (posix_memalign((void **)&c->buffers[b], 4096, WORLD_BLOCK_MAX) != 0)
                abort();
        for (unsigned e = 0; e < WORLD_ENGINES; e++)
            c->engines[e] = sim_engine_clone(n->world->engines[e]);
    }
}

struct world *world_create(const struct world_options *options, struct sim_engine *const *engines)
{
    struct world *w = calloc(1, sizeof *w);
    if (!w)
        abort();
    w->options = *options;
    w->engines = engines;
    w->cluster = sim_cluster_create(kvf_mix(options->seed, 1));
    sim_env_init(&w->chance, kvf_mix(options->seed, 2));
    sim_env_init(&w->work, kvf_mix(options->seed, 3));
    sim_env_init(&w->order, kvf_mix(options->seed, 4));
    sim_env_init(&w->later, kvf_mix(options->seed, 5));
    sim_env_init(&w->starts, kvf_mix(options->seed, 8));
    sim_env_init(&w->orders, kvf_mix(options->seed, 6));
    sim_env_init(&w->watches, kvf_mix(options->seed, 7));
    living = w;
    w->n = 0;
    w->n_clients = 1 + (unsigned)draw(&w->order, WORLD_CLIENTS);
    w->preempt = draw(&w->order, 2) ? 2 + (uint32_t)draw(&w->order, 14) : 0;
    faults_draw(w);
    faults_attach(w);
    unsigned nodes = 2 + (unsigned)draw(&w->order, WORLD_NODES - 1);
    for (unsigned i = 0; i < nodes; i++)
        node_add(w);
    for (unsigned i = 0; i < nodes; i++)
        clients_init(&w->nodes[i]);
    return w;
}

void world_destroy(struct world *w)
{
    for (unsigned i = 0; i < w->n; i++) {
        struct world_node *n = &w->nodes[i];
        if (n->sim->core)
            client_close_records(n);
        for (unsigned k = 0; k < w->n_clients; k++) {
            struct client *c = &n->clients[k];
            fiber_destroy(c->fiber);
            for (unsigned b = 0; b < WORLD_BATCH; b++)
                free(c->buffers[b]);
            for (unsigned e = 0; e < WORLD_ENGINES; e++)
                sim_engine_destroy(c->engines[e]);
        }
    }
    sim_cluster_destroy(w->cluster);
    living = NULL;
    free(w);
}
