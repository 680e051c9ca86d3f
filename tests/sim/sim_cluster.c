/* The nodes of sim_cluster.h. */
#include "tests/sim/sim_cluster.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define IDLE_MS_MAX 16 /* the clock goes on by more when nothing happens for long, but never jumps over a heartbeat */

static void demand(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "sim_cluster: %s failed\n", what);
    abort();
}

struct sim_cluster *sim_cluster_create(uint64_t seed)
{
    struct sim_cluster *c = calloc(1, sizeof *c);
    demand(c != NULL, "memory");
    sim_env_init(&c->env, seed);
    c->net = sim_net_create(&c->env.env);
    demand(c->net != NULL, "sim_net_create");
    c->etcd = kvf_sim_etcd_create(&c->env.env);
    c->log = fopen(getenv("SIM_LOG") ? "/dev/stderr" : "/dev/null", "w");
    demand(c->log != NULL, "opening the log");
    return c;
}

void sim_cluster_destroy(struct sim_cluster *c)
{
    c->stepped = NULL;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->nodes[i].core)
            sim_cluster_bury(&c->nodes[i]);
        sim_media_destroy(c->nodes[i].media);
    }
    sim_net_destroy(c->net);
    kvf_sim_etcd_destroy(c->etcd);
    fclose(c->log);
    free(c);
}

static void settings_of(const struct sim_node_config *config, struct kvf_settings *out)
{
    struct kvf_config *defaults;
    demand(kvf_config_create(&defaults) == KVF_OK, "kvf_config_create");
    *out = *kvf_config_settings(defaults);
    kvf_config_destroy(defaults);
    snprintf(out->node_name, sizeof out->node_name, "%s", config->name);
    snprintf(out->log_level, sizeof out->log_level, "info");
    out->dram_bytes = config->dram;
    out->lend_bytes = config->lend;
    snprintf(out->cold_format, sizeof out->cold_format, "%s", config->cold ? config->cold : "exact");
    out->borrow = !config->no_borrow;
    out->gpu_bytes = config->gpu;
    out->staging_bytes = config->staging ? config->staging : 256 << 10;
    out->block_bytes_max = config->block_max ? config->block_max : 64 << 10;
    out->blocks_max = config->blocks_max ? config->blocks_max : 4096;
    out->ssd_bytes = config->ssd;
    out->memory_piece_bytes = config->ram_by_hand ? 2 << 20 : out->memory_piece_bytes;
    out->fabric_peers_max = config->peers_max ? config->peers_max : SIM_CLUSTER_PEERS;
    out->fabric_requests = 128;
    out->workers = 1;
    out->lend_keep_dead_ns = config->keep_dead_ns;
    out->lend_min_bytes = config->lend_min;
    if (config->no_claims)
        out->lend_reclaim_above = 0;
    if (config->attend)
        snprintf(out->attend_remote, sizeof out->attend_remote, "%s", config->attend);
    if (config->attend_parts)
        snprintf(out->attend_parts, sizeof out->attend_parts, "%s", config->attend_parts);
    if (config->attend_nobody || config->attend_serve)
        out->attend_serve = config->attend_serve;
    out->scrub_rate = config->scrub_rate;
    out->down_budget = config->down_budget;
    out->up_budget = config->up_budget;
    out->fetch_timeout_ns = config->fetch_timeout_ns ? config->fetch_timeout_ns : out->fetch_timeout_ns;
    out->etcd_timeout_ns = config->etcd_timeout_ns ? config->etcd_timeout_ns : out->etcd_timeout_ns;
    out->memory_threads = 1;
    snprintf(out->memory_huge, sizeof out->memory_huge, "off");
    snprintf(out->memory_numa, sizeof out->memory_numa, "off");
}

static uint64_t node_now(void *arg)
{
    struct sim_node *n = arg;
    n->skew_ns += n->dead ? 10 * KVF_MS : 0; /* its calls are over soon, though nobody moves the cluster's clock meanwhile */
    return n->cluster->env.now_ns + n->skew_ns;
}

static uint64_t node_random(void *arg)
{
    const struct sim_node *n = arg;
    return n->cluster->env.env.random(n->cluster->env.env.arg);
}

static bool node_secure(void *arg, void *out, size_t bytes)
{
    const struct sim_node *n = arg;
    return kvf_env_secure(&n->cluster->env.env, out, bytes);
}

/* The cluster's secret, as its file would have it. */
static struct kvf_secret *secret_of_cluster(void)
{
    static const char text[] = "5e2c1a0f9b8d7e6c5e2c1a0f9b8d7e6c\n";
    struct kvf_secret *secret;
    const char *why;
    demand(kvf_secret_create(&secret) == KVF_OK, "kvf_secret_create");
    demand(kvf_secret_set(secret, text, sizeof text - 1, &why) == KVF_OK, "kvf_secret_set");
    return secret;
}

static void idle(void *arg)
{
    sim_cluster_step(arg);
}

static void member_join(struct sim_node *n, const struct sim_node_config *config)
{
    struct kvf_member m = {.incarnation = n->core->incarnation, .lend_bytes = config->lend, .dram_bytes = config->dram,
                           .address_bytes = sizeof m.address};
    memcpy(m.name, n->core->name, sizeof m.name);
    snprintf(m.host, sizeof m.host, "simulated");
    demand(n->transport->ops->address(n->transport, m.address, &m.address_bytes) == KVF_OK, "the transport's address");
    demand(kvf_coord_join(n->core->coord, &m, false) == KVF_OK, "kvf_coord_join");
}

static void node_boot(struct sim_node *n)
{
    struct sim_cluster *c = n->cluster;
    const struct sim_node_config *config = &n->config;
    char error[256] = "";
    struct kvf_settings settings;
    settings_of(config, &settings);
    struct kvf_core_parts parts = {.env = &n->env, .log = c->log, .dev = config->dev, .ram_by_hand = config->ram_by_hand};
    if (config->ssd) {
        demand(sim_disk_create(n->media, (unsigned)settings.ssd_depth, &n->disk) == KVF_OK, "sim_disk_create");
        parts.disk = sim_disk_seam(n->disk);
        sim_disk_fate(n->disk, n->start_fate, n->start_fate_arg);
    }
    if (!config->alone) {
        parts.transport = n->transport = sim_net_add(c->net, config->name, config->way);
        if (config->frame)
            sim_net_limits(n->transport, config->frame, 64);
        parts.secret = secret_of_cluster();
        parts.store = n->store = kvf_sim_store_create(c->etcd);
    }
    if (kvf_core_create(&settings, &parts, error, sizeof error, &n->core) != KVF_OK)
        demand(false, error);
    n->core->leave_entries = config->leave_entries;
    if (!n->core->disk) /* it goes on without */
        n->disk = NULL;
    else if (n->disk)
        sim_disk_fate(n->disk, NULL, NULL);
    n->core->idle = idle;
    n->core->idle_arg = c;
    n->node.core = n->core;
}

struct sim_node *sim_cluster_add(struct sim_cluster *c, const struct sim_node_config *config)
{
    demand(c->n < SIM_CLUSTER_NODES, "a free place for a node");
    struct sim_node *n = &c->nodes[c->n];
    *n = (struct sim_node){.cluster = c, .config = *config, .skew_ns = config->skew_ns};
    n->env = (struct kvf_env){.arg = n, .now_ns = node_now, .random = node_random, .secure = node_secure};
    if (config->ssd)
        demand(sim_media_create(config->ssd, &n->media) == KVF_OK, "sim_media_create");
    if (config->ssd && config->power)
        demand(sim_media_track(n->media) == KVF_OK, "sim_media_track");
    node_boot(n);
    c->n++;
    if (!config->alone)
        member_join(n, config);
    return n;
}

void sim_cluster_bury(struct sim_node *node)
{
    node->core->idle = NULL;
    kvf_core_destroy(node->core);
    node->core = node->node.core = NULL;
    node->transport = NULL;
    node->store = NULL;
    node->disk = NULL;
}

void sim_cluster_restart(struct sim_node *node)
{
    demand(node->dead && !node->core, "a node that was buried");
    node->dead = node->paused = false;
    node->skew_ns = node->config.skew_ns;
    node_boot(node);
    if (!node->config.alone)
        member_join(node, &node->config);
}

struct kvf_node_peer *sim_cluster_peer(struct sim_node *node, const struct sim_node *other)
{
    return kvf_cluster_peer(node->core, other->core->name);
}

static bool all_connected(struct sim_cluster *c)
{
    for (unsigned i = 0; i < c->n; i++) {
        for (unsigned j = 0; j < c->n; j++) {
            struct sim_node *a = &c->nodes[i], *b = &c->nodes[j];
            if (i == j || a->dead || b->dead || !a->transport || !b->transport)
                continue;
            struct kvf_node_peer *p = sim_cluster_peer(a, b);
            if (!p || !p->up || p->reset || p->member.incarnation != b->core->incarnation)
                return false;
        }
    }
    return true;
}

void sim_cluster_connect(struct sim_cluster *c)
{
    for (unsigned i = 0; i < 20000 && !all_connected(c); i++)
        sim_cluster_step(c);
    demand(all_connected(c), "connecting every node with every other");
}

unsigned sim_cluster_poll(struct sim_node *node)
{
    return node->dead || node->paused ? 0 : kvf_core_poll(node->core);
}

void sim_cluster_step(struct sim_cluster *c)
{
    unsigned events = 0;
    while (sim_net_step(c->net)) {
        c->delivered++;
        events++;
        if (c->single)
            break;
    }
    for (unsigned i = 0; i < c->n; i++)
        events += sim_cluster_poll(&c->nodes[i]);
    if (c->stepped)
        c->stepped(c, c->stepped_arg);
    c->quiet = events ? 0 : c->quiet + 1;
    if (c->quiet >= 4) { /* answers of etcd and of disks come without an event */
        uint64_t ms = c->quiet / 4 < IDLE_MS_MAX ? c->quiet / 4 : IDLE_MS_MAX;
        sim_env_advance(&c->env, ms * KVF_MS);
    }
}

void sim_cluster_settle(struct sim_cluster *c, uint64_t ns)
{
    uint64_t until = c->env.now_ns + ns;
    while (c->env.now_ns < until)
        sim_cluster_step(c);
}

void sim_cluster_kill(struct sim_node *node, bool tell)
{
    node->dead = true;
    if (node->transport)
        sim_net_kill(node->transport, tell);
    if (node->store)
        kvf_sim_store_cut(node->store, true);
}

void sim_cluster_partition(struct sim_node *a, struct sim_node *b, bool cut)
{
    sim_net_partition(a->transport, b->transport, cut);
}

void sim_cluster_check(struct sim_cluster *c)
{
    for (unsigned i = 0; i < c->n; i++)
        if (c->nodes[i].core)
            kvf_core_check(c->nodes[i].core);
}

bool sim_cluster_empty(struct sim_node *n)
{
    struct kvf_core *core = n->core;
    uint64_t lent = core->lent ? kvf_arena_used(core->lent) : 0, ssd = 0, staged = 0;
    struct kvf_ssd_stats stats;
    if (core->ssd) {
        kvf_ssd_stats(core->ssd, &stats);
        ssd = stats.used_bytes;
    }
    for (uint32_t i = 0; i < core->stages_max; i++)
        staged += core->stages[i].handle != KVF_HANDLE_NONE;
    bool empty = kvf_arena_used(core->dram) == 0 && lent == 0 && ssd == 0 && kvf_index_count(core->index) == 0 &&
                 core->entries_reserved == 0 && staged == 0 && kvf_arena_used(core->staging) == 0;
    if (!empty)
        fprintf(stderr,
                "%s holds dram %llu, lent %llu (%llu blocks), ssd %llu, staging %llu (%llu stages), %llu entries, %llu reserved\n",
                core->name, (unsigned long long)kvf_arena_used(core->dram), (unsigned long long)lent,
                (unsigned long long)kvf_lend_blocks(core), (unsigned long long)ssd,
                (unsigned long long)kvf_arena_used(core->staging), (unsigned long long)staged,
                (unsigned long long)kvf_index_count(core->index), (unsigned long long)core->entries_reserved);
    return empty;
}
