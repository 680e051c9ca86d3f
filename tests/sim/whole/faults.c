/* Faults: which kinds a seed has and how often, the hooks of the doubles, and what lasts for a while. */
#include "tests/sim/whole/world.h"

#include "base/hash.h"
#include "fabric/wire.h"
#include "node/drain.h"
#include "node/reclaim.h"
#include <string.h>

#define LIVES_MAX 40u /* starts of nodes in one world; the net has room for SIM_NODES_MAX */
#define LEASES_SEEN 24
#define DROWSY 12 /* one world in so many */
#define TAG_AT 72 /* in a frame's header */
#define SECTOR 4096u
#define JOURNAL_END (1u << 20) /* where the slots of a small area begin */

const char *const fault_texts[FAULT_COUNT] = {
#define FAULT_TEXT(name, text) text,
    FAULTS(FAULT_TEXT)
#undef FAULT_TEXT
};

/* Highest rates, in 65536: of frames, of disk requests, of etcd requests, of steps. */
static const uint32_t highest[FAULT_COUNT] = {
    [FAULT_DELAY] = 65536,       [FAULT_LOSS] = 3000,       [FAULT_DUPLICATE] = 3000,   [FAULT_REORDER] = 6000,
    [FAULT_BREAK] = 200,         [FAULT_CLOG] = 300,        [FAULT_PARTITION] = 200,    [FAULT_ONE_WAY] = 200,
    [FAULT_PAUSE] = 200,         [FAULT_CRASH] = 200,       [FAULT_POWER] = 150,        [FAULT_DISK_SLOW] = 20000,
    [FAULT_DISK_IO] = 1500,      [FAULT_DISK_SHORT] = 1000, [FAULT_DISK_FLIP] = 1500,   [FAULT_DISK_TEAR] = 1000,
    [FAULT_DISK_MISPLACE] = 800, [FAULT_DISK_FULL] = 1500,  [FAULT_DISK_SYNC] = 600,    [FAULT_ROT] = 500,
    [FAULT_ETCD_DOWN] = 60,      [FAULT_ETCD_CUT] = 150,    [FAULT_ETCD_SLOW] = 30000,  [FAULT_ETCD_LOST] = 6000,
    [FAULT_ETCD_LATE] = 6000,    [FAULT_ETCD_HOLD] = 200,   [FAULT_ETCD_COMPACT] = 200, [FAULT_LEASE] = 150,
    [FAULT_RECLAIM] = 1500,      [FAULT_DRAIN] = 300,       [FAULT_ORDER] = 6000,       [FAULT_ETCD_DEAF] = 150,
    [FAULT_ETCD_LAG] = 150,      [FAULT_START_READ] = 30000, [FAULT_START_SYNC] = 10000,
};

/* Of a drowsy world; its steps are longer. */
static const uint32_t drowsy[FAULT_COUNT] = {[FAULT_ETCD_HOLD] = 60, [FAULT_ETCD_DEAF] = 100, [FAULT_ETCD_LAG] = 60};

static struct sim_env *stream_of(struct world *w, enum fault fault)
{
    if (fault >= FAULT_START_READ)
        return &w->starts;
    struct sim_env *later = fault < FAULT_ETCD_DEAF ? &w->orders : &w->watches;
    return fault < FAULT_RECLAIM ? &w->chance : fault == FAULT_RECLAIM ? &w->later : later;
}

static bool strikes(struct world *w, enum fault fault)
{
    if (!w->rates[fault] || draw(stream_of(w, fault), 65536) >= w->rates[fault])
        return false;
    w->totals.faults[fault]++;
    return true;
}

/* 10 ms to 8 s: short ones as likely as long ones. */
static uint64_t a_while(struct sim_env *stream)
{
    uint64_t ns = 10 * KVF_MS << draw(stream, 10);
    return ns / 2 + draw(stream, ns);
}

void faults_draw(struct world *w)
{
    static const unsigned shares[] = {0, 1, 2, 4, 4};
    unsigned share = shares[draw(&w->chance, 5)]; /* so many kinds of 8 */
    for (unsigned i = 0; i < FAULT_COUNT && !w->options.calm; i++)
        if (draw(stream_of(w, (enum fault)i), 8) < share)
            w->planned[i] = 1 + (uint32_t)draw(stream_of(w, (enum fault)i), highest[i]);
    w->delay_ns = 20 * KVF_US << draw(&w->chance, 12);
    static const unsigned lengths[] = {200, 300, 400, 600, 800, 1200, 2500, 6000};
    w->steps_max = w->options.steps ? w->options.steps : lengths[draw(&w->chance, 8)];
    bool drawn = draw(&w->watches, DROWSY) == 0 && !w->options.calm && w->options.canary == CANARY_NONE;
    w->drowsy = drawn || w->options.drowsy;
    if (!w->drowsy)
        return;
    memcpy(w->planned, drowsy, sizeof w->planned);
    w->steps_max = w->options.steps ? w->options.steps : 4000 + (unsigned)draw(&w->watches, 4000);
}

void faults_begin(struct world *w)
{
    memcpy(w->rates, w->planned, sizeof w->rates);
}

/* ---------------------------------------------------------------- the net */

static void sent(void *arg, unsigned from, unsigned to, bool read, const void *header, size_t bytes, struct sim_fate *fate)
{
    struct world *w = arg;
    fate->delay_ns = 5 * KVF_US + draw(&w->chance, 30 * KVF_US) + bytes / 4; /* 4 GB a second */
    if (strikes(w, FAULT_DELAY))
        fate->delay_ns += draw(&w->chance, w->delay_ns);
    fate->drop = !read && strikes(w, FAULT_LOSS);
    fate->loose = strikes(w, FAULT_REORDER);
    if (fate->loose)
        fate->delay_ns += draw(&w->chance, 10 * KVF_MS);
    if (!read && strikes(w, FAULT_DUPLICATE))
        fate->again_ns = 1 + draw(&w->chance, 2 * KVF_MS);
}

static void left(void *arg, unsigned from, unsigned to, bool read, bool arrived, const void *header, size_t header_bytes,
                 const struct iovec *parts, unsigned n_parts)
{
    struct world *w = arg;
    uint16_t type = 0;
    uint64_t hash = 0;
    if (header_bytes >= 8)
        memcpy(&type, (const uint8_t *)header + 6, sizeof type);
    /* A hello tells an address, which no two runs have alike; so does a welcome, and the tag is over both. */
    for (unsigned i = 0; i < n_parts && (type >= KVF_MESSAGE_FIRST || type == KVF_WIRE_REPLY); i++)
        if (parts[i].iov_len)
            hash = kvf_hash(parts[i].iov_base, parts[i].iov_len, hash);
    hash = header_bytes ? kvf_hash(header, header_bytes < TAG_AT ? header_bytes : TAG_AT, hash) : hash;
    w->progress += arrived;
    w->totals.events++;
    world_trace(w,
                !arrived ? "lost"
                : read   ? "read"
                         : "frame",
                w->instances[from] << 4 | w->instances[to], type, from << 8 | to, hash);
}

/* ---------------------------------------------------------------- disks */

static enum sim_fault disk_fate(void *arg, const struct kvf_disk_request *request, unsigned *polls)
{
    static const enum sim_fault of[FAULT_COUNT] = {
        [FAULT_DISK_IO] = SIM_FAULT_IO,     [FAULT_DISK_SHORT] = SIM_FAULT_SHORT,       [FAULT_DISK_FLIP] = SIM_FAULT_FLIP,
        [FAULT_DISK_TEAR] = SIM_FAULT_TEAR, [FAULT_DISK_MISPLACE] = SIM_FAULT_MISPLACE, [FAULT_DISK_FULL] = SIM_FAULT_FULL};
    struct world_node *n = arg;
    struct world *w = n->world;
    enum sim_fault fault = SIM_FAULT_NONE;
    *polls = (unsigned)draw(&w->chance, 6);
    if (strikes(w, FAULT_DISK_SLOW))
        *polls += 1 + (unsigned)draw(&w->chance, draw(&w->chance, 16) ? 40 : 1000);
    if (request->sync)
        fault = strikes(w, FAULT_DISK_SYNC) ? SIM_FAULT_IO : SIM_FAULT_NONE;
    for (unsigned f = FAULT_DISK_IO; f <= FAULT_DISK_FULL && !request->sync; f++)
        if ((request->write || (f != FAULT_DISK_TEAR && f != FAULT_DISK_FULL)) && strikes(w, (enum fault)f))
            fault = of[f];
    n->rotten |= request->write && (fault == SIM_FAULT_FLIP || fault == SIM_FAULT_TEAR || fault == SIM_FAULT_MISPLACE);
    w->totals.events++;
    world_trace(w,
                request->sync    ? "sync"
                : request->write ? "write"
                                 : "disk read",
                n->number, request->offset, request->bytes, (uint64_t)fault << 32 | *polls);
    return fault;
}

/* One bit of what is on the disk, for good. */
static void rot(struct world_node *n)
{
    struct sim_media *m = n->sim->media;
    if (!m)
        return;
    uint64_t at = draw(&n->world->chance, m->size), bit = draw(&n->world->chance, 8);
    m->bytes[at] ^= (uint8_t)(1u << bit);
    m->durable[at] ^= (uint8_t)(1u << bit);
    n->rotten = true;
    world_trace(n->world, "rot", n->number, at, bit, 0);
}

static enum sim_fault start_fate(void *arg, const struct kvf_disk_request *r, unsigned *polls)
{
    struct world_node *n = arg;
    bool bad = !r->sync && !r->write && n->bad_sector >= r->offset && n->bad_sector < r->offset + r->bytes;
    if (!bad && !(r->sync && strikes(n->world, FAULT_START_SYNC)))
        return SIM_FAULT_NONE;
    n->hurt = true;
    world_trace(n->world, r->sync ? "sync at start" : "bad sector", n->number, r->offset, r->bytes, 0);
    return SIM_FAULT_IO;
}

void faults_start(struct world_node *n)
{
    struct world *w = n->world;
    n->hurt = false;
    n->bad_sector = strikes(w, FAULT_START_READ) ? draw(&w->starts, JOURNAL_END / SECTOR) * SECTOR : UINT64_MAX;
    n->sim->start_fate = start_fate;
    n->sim->start_fate_arg = n;
}

void faults_attach_disk(struct world_node *n)
{
    if (n->sim->disk)
        sim_disk_fate(n->sim->disk, disk_fate, n);
}

/* ---------------------------------------------------------------- etcd */

static void store_fate(void *arg, struct kvf_sim_store_fate *fate)
{
    struct world *w = arg;
    fate->delay_ns = 100 * KVF_US + draw(&w->chance, KVF_MS);
    fate->answer_ns = draw(&w->chance, KVF_MS);
    fate->timeout_ns = 2 * KVF_SEC;
    if (strikes(w, FAULT_ETCD_SLOW))
        fate->delay_ns += draw(&w->chance, 500 * KVF_MS);
    fate->lost = strikes(w, FAULT_ETCD_LOST);
    if (strikes(w, FAULT_ETCD_LATE)) {
        fate->lost = true;
        fate->delay_ns = KVF_SEC + draw(&w->chance, 3 * KVF_SEC);
    }
}

void faults_attach(struct world *w)
{
    w->watch = (struct sim_net_watch){.arg = w, .sent = sent, .left = left};
    sim_net_watch(w->cluster->net, &w->watch);
    kvf_sim_etcd_manual(w->cluster->etcd, true);
    kvf_sim_etcd_fate(w->cluster->etcd, store_fate, w);
    kvf_sim_etcd_unguarded(w->cluster->etcd, w->options.canary == CANARY_EPOCH);
}

/* ---------------------------------------------------------------- what lasts */

static struct sim_path *path_of(struct world *w, unsigned from, unsigned to)
{
    return sim_net_path(w->nodes[from].sim->transport, w->nodes[to].sim->transport);
}

static bool both_live(const struct world *w, unsigned a, unsigned b)
{
    return !w->nodes[a].sim->dead && !w->nodes[b].sim->dead;
}

void faults_direction(struct world *w, unsigned from, unsigned to, bool cut, uint64_t ns)
{
    if (from == to || !both_live(w, from, to))
        return;
    struct sim_path *path = path_of(w, from, to);
    path->cut = cut;
    path->held = !cut;
    w->heal_ns[from][to] = world_now(w) + ns;
    world_trace(w, cut ? "cut" : "clog", from, to, ns, 0);
}

static void direction_heal(struct world *w, unsigned from, unsigned to)
{
    w->heal_ns[from][to] = 0;
    if (!both_live(w, from, to))
        return; /* the next life has a path of its own */
    path_of(w, from, to)->cut = path_of(w, from, to)->held = false;
    world_trace(w, "whole", from, to, 0, 0);
}

static void node_etcd(struct world_node *n, bool cut, bool hold, uint64_t ns)
{
    kvf_sim_store_cut(n->sim->store, cut);
    kvf_sim_store_hold(n->sim->store, hold);
    n->etcd_back_ns = cut || hold ? world_now(n->world) + ns : 0;
    world_trace(n->world, "etcd", n->number, cut, hold, ns);
}

/* The watch that a node has dies, or what it tells comes late for a while. */
static void watch_faults(struct world_node *n)
{
    struct world *w = n->world;
    if (strikes(w, FAULT_ETCD_DEAF)) {
        kvf_sim_store_deafen(n->sim->store);
        world_trace(w, "deaf", n->number, 0, 0, 0);
    }
    if (!n->lag_until_ns && strikes(w, FAULT_ETCD_LAG)) {
        uint64_t lag = a_while(&w->watches), ns = 4 * a_while(&w->watches);
        kvf_sim_store_lag(n->sim->store, lag);
        n->lag_until_ns = world_now(w) + ns;
        world_trace(w, "lag", n->number, lag, ns, 0);
    }
}

/* Others may have so much of the memory that a node lends, by a time. */
static void lend_at_most(struct world_node *n, uint64_t bytes, uint64_t within_ns)
{
    struct kvf_core *core = n->sim->core;
    pthread_mutex_lock(&core->lock);
    enum kvf_status st = kvf_reclaim_start(core, bytes, kvf_now(core->env) + within_ns);
    pthread_mutex_unlock(&core->lock);
    world_trace(n->world, "lends", n->number, bytes, within_ns, (uint64_t)(int64_t)st);
}

/* A lender wants all or some of its memory back, in time or at once, and lends again later. */
static void reclaim(struct world_node *n)
{
    struct world *w = n->world;
    uint64_t within = draw(&w->later, 6) ? a_while(&w->later) / 2 : 0;
    n->reclaim_limit = draw(&w->later, 2) ? draw(&w->later, n->sim->config.lend) : 0;
    n->reclaim_ns = world_now(w) + within;
    n->lend_again_ns = n->reclaim_ns + a_while(&w->later);
    lend_at_most(n, n->reclaim_limit, within);
}

void faults_drain(struct world_node *n, uint64_t within_ns, uint64_t end_ns)
{
    struct world *w = n->world;
    n->draining = true;
    n->incoming = UINT64_MAX;
    n->reclaim_limit = 0;
    n->reclaim_ns = world_now(w) + within_ns;
    n->lend_again_ns = end_ns;
    kvf_drain_set(n->sim->core, true, within_ns);
    world_trace(w, "drain", n->number, within_ns, end_ns, 0);
}

bool faults_order(struct world *w)
{
    return strikes(w, FAULT_ORDER);
}

static unsigned lives(const struct world *w)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < w->n; i++)
        sum += w->nodes[i].lives;
    return sum;
}

static void net_faults(struct world *w)
{
    unsigned a = (unsigned)draw(&w->chance, w->n), b = (a + 1 + (unsigned)draw(&w->chance, w->n - 1)) % w->n;
    if (strikes(w, FAULT_BREAK) && both_live(w, a, b)) {
        sim_net_break(w->nodes[a].sim->transport, w->nodes[b].sim->transport);
        world_trace(w, "break", a, b, 0, 0);
    }
    if (strikes(w, FAULT_CLOG))
        faults_direction(w, a, b, false, a_while(&w->chance));
    if (strikes(w, FAULT_ONE_WAY))
        faults_direction(w, a, b, true, a_while(&w->chance));
    if (strikes(w, FAULT_PARTITION)) {
        uint64_t ns = a_while(&w->chance);
        faults_direction(w, a, b, true, ns);
        faults_direction(w, b, a, true, ns);
    }
}

static void node_faults(struct world *w)
{
    struct world_node *n = &w->nodes[draw(&w->chance, w->n)];
    if (n->sim->dead)
        return;
    if (strikes(w, FAULT_ROT))
        rot(n);
    if (!n->etcd_back_ns && strikes(w, FAULT_ETCD_CUT))
        node_etcd(n, true, false, a_while(&w->chance));
    if (!n->etcd_back_ns && strikes(w, FAULT_ETCD_HOLD))
        node_etcd(n, false, true, a_while(&w->chance));
    if (!n->sim->paused && strikes(w, FAULT_PAUSE))
        world_pause(n, a_while(&w->chance));
    if (n->sim->config.lend && !n->lend_again_ns && strikes(w, FAULT_RECLAIM))
        reclaim(n);
    if (!n->lend_again_ns && strikes(w, FAULT_DRAIN)) {
        uint64_t within = a_while(&w->orders) / 2;
        faults_drain(n, within, world_now(w) + within + a_while(&w->orders));
    }
    watch_faults(n);
    bool power = strikes(w, FAULT_POWER);
    if (lives(w) < LIVES_MAX && (power || strikes(w, FAULT_CRASH)))
        world_crash(n, power, draw(&w->chance, 2));
}

static void etcd_faults(struct world *w)
{
    struct kvf_sim_etcd *etcd = w->cluster->etcd;
    if (!w->etcd_up_ns && strikes(w, FAULT_ETCD_DOWN)) {
        kvf_sim_etcd_down(etcd, true);
        w->etcd_up_ns = world_now(w) + a_while(&w->chance);
        world_trace(w, "etcd down", w->etcd_up_ns, 0, 0, 0);
    }
    if (strikes(w, FAULT_ETCD_COMPACT))
        kvf_sim_etcd_compact(etcd);
    if (strikes(w, FAULT_LEASE)) {
        uint64_t lease = 1001 + draw(&w->chance, LEASES_SEEN);
        kvf_sim_etcd_expire(etcd, lease);
        world_trace(w, "lease", lease, 0, 0, 0);
    }
}

static void ends(struct world *w, uint64_t now)
{
    for (unsigned i = 0; i < w->n; i++) {
        struct world_node *n = &w->nodes[i];
        for (unsigned j = 0; j < w->n; j++)
            if (w->heal_ns[i][j] && now >= w->heal_ns[i][j])
                direction_heal(w, i, j);
        if (n->etcd_back_ns && now >= n->etcd_back_ns) {
            n->etcd_back_ns = 0;
            if (!n->sim->dead)
                node_etcd(n, false, false, 0);
        }
        if (n->lag_until_ns && now >= n->lag_until_ns) {
            n->lag_until_ns = 0;
            if (!n->sim->dead)
                kvf_sim_store_lag(n->sim->store, 0);
        }
        if (n->lend_again_ns && now >= n->lend_again_ns) {
            n->reclaim_ns = n->lend_again_ns = 0;
            if (!n->sim->dead && n->draining)
                kvf_drain_set(n->sim->core, false, 0);
            else if (!n->sim->dead)
                lend_at_most(n, UINT64_MAX, KVF_SEC);
            n->draining = false;
        }
    }
    if (w->etcd_up_ns && now >= w->etcd_up_ns) {
        w->etcd_up_ns = 0;
        kvf_sim_etcd_down(w->cluster->etcd, false);
        world_trace(w, "etcd up", 0, 0, 0, 0);
    }
}

void faults_step(struct world *w)
{
    ends(w, world_now(w));
    net_faults(w);
    node_faults(w);
    etcd_faults(w);
}

void faults_heal(struct world *w)
{
    memset(w->rates, 0, sizeof w->rates);
    ends(w, UINT64_MAX);
    for (unsigned i = 0; i < w->n; i++) {
        struct world_node *n = &w->nodes[i];
        n->resume_ns = n->resume_ns ? world_now(w) : 0;
        n->restart_ns = n->restart_ns ? world_now(w) : 0;
    }
}
