/* What a node says about itself: JSON for `kvf status` and `kvf sessions`, Prometheus text for /metrics.
 *
 * The figures are copied under the core's lock into plain structs; the text is made from the copy, without the lock, so
 * that a slow reader of the admin interface never holds up the reactor. Counters and histograms are atomic. */
#include "node/attend_remote.h"
#include "node/drain.h"
#include "node/dram.h"
#include "node/persist.h"
#include "node/ram.h"
#include "node/reclaim.h"
#include "node/scrub.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Bounds of Prometheus' buckets: 2^n - 1 ns, from a microsecond to 17 seconds; there the histogram's own buckets end. */
#define BOUND_FIRST 10
#define BOUND_LAST 34

struct tier_copy {
    uint64_t blocks, bytes, capacity_bytes, used_bytes, chunks_read, bytes_read;
    const char *state, *reason;
};

struct peer_copy {
    char name[64];
    uint64_t incarnation, borrowed_blocks, borrowed_bytes, lent_blocks, lent_bytes, lend_bytes, p50_ns, p95_ns;
    bool up, slow;
    enum kvf_way way;
    bool attend_known;
    struct kvf_attend_cost_stats attend;
};

struct session_copy {
    uint64_t id, epoch, tokens, sealed_blocks, blocks, lost, from_peer, forks;
    enum kvf_sess_state state;
    bool parked, handle_open;
    char model[64], new_home[64];
};

struct copy {
    struct tier_copy tier[KVF_TIER_COUNT];
    uint64_t n_sessions, lend_capacity, lend_used, lend_blocks;
    unsigned n_peers;
    struct peer_copy *peers;
    bool etcd_configured, etcd_reachable, joined;
    enum kvf_status join_status;
    const char *transport;
    struct kvf_ssd_stats ssd;
    struct kvf_cache_stats device;
    bool has_device;
    uint64_t orphans, orphan_bytes;
    bool has_ssd;
    char ssd_why[KVF_CONFIG_TEXT_MAX];
    struct kvf_ram_stats ram;
    struct kvf_reclaim_stats reclaim;
    struct kvf_serves_stats serves;
    uint64_t reads_queued, going_down, going_up;
    struct kvf_scrub_progress scrub;
    struct kvf_drain_stats drain;
};

static const char *way_name(enum kvf_way way)
{
    switch (way) {
    case KVF_WAY_ASK: return "ask";
    case KVF_WAY_GET: return "get";
    case KVF_WAY_MAPPED: return "mapped";
    }
    return "unknown";
}

static const char *sess_state_name(enum kvf_sess_state state)
{
    switch (state) {
    case KVF_SESS_CREATING: return "creating";
    case KVF_SESS_ACTIVE: return "active";
    case KVF_SESS_FROZEN: return "frozen";
    case KVF_SESS_UNKNOWN: return "unknown";
    case KVF_SESS_DEPARTED: return "departed";
    case KVF_SESS_INCOMING: return "incoming";
    }
    return "unknown";
}

/* ---------------------------------------------------------------- the copy */

static void copy_peers(struct kvf_core *core, struct copy *copy)
{
    for (unsigned i = 0; core->peers && i < core->settings.fabric_peers_max; i++) {
        const struct kvf_node_peer *from = &core->peers[i];
        if (!from->peer)
            continue;
        struct peer_copy *to = &copy->peers[copy->n_peers++];
        snprintf(to->name, sizeof to->name, "%s", kvf_peer_name(from->peer));
        to->incarnation = kvf_peer_incarnation(from->peer);
        to->up = from->up;
        to->way = kvf_peer_way(from->peer);
        to->borrowed_blocks = from->borrowed_blocks;
        to->borrowed_bytes = from->borrowed_bytes;
        to->lent_blocks = from->lent_blocks;
        to->lent_bytes = from->lent_bytes;
        to->lend_bytes = from->member.lend_bytes;
        to->attend_known = from->up && kvf_attend_cost_stats(core, from->number, &to->attend);
        to->slow = from->pace.slow;
        to->p50_ns = kvf_recent_percentile(&from->pace.recent, 50);
        to->p95_ns = kvf_recent_percentile(&from->pace.recent, 95);
    }
}

static void copy_reads(struct kvf_core *core, struct copy *copy)
{
    const struct kvf_counters *c = &core->counters;
    copy->tier[KVF_TIER_DRAM].chunks_read = kvf_counted(&c->dram_chunks_read);
    copy->tier[KVF_TIER_DRAM].bytes_read = kvf_counted(&c->dram_bytes_read);
    copy->tier[KVF_TIER_REMOTE].chunks_read = kvf_counted(&c->remote_chunks_read);
    copy->tier[KVF_TIER_REMOTE].bytes_read = kvf_counted(&c->remote_bytes_read);
    copy->tier[KVF_TIER_GPU].chunks_read = kvf_counted(&c->gpu_chunks_read);
    copy->tier[KVF_TIER_GPU].bytes_read = kvf_counted(&c->gpu_bytes_read);
    copy->tier[KVF_TIER_SSD].chunks_read = kvf_counted(&c->ssd_chunks_read);
    copy->tier[KVF_TIER_SSD].bytes_read = kvf_counted(&c->ssd_bytes_read);
    copy->tier[KVF_TIER_PEER].chunks_read = kvf_counted(&c->peer_chunks_read);
    copy->tier[KVF_TIER_PEER].bytes_read = kvf_counted(&c->peer_bytes_read);
}

static void tier_state(struct tier_copy *tier, const char *state, const char *reason)
{
    tier->state = state;
    tier->reason = reason;
}

static void copy_remote_state(struct kvf_core *core, struct copy *copy)
{
    struct tier_copy *remote = &copy->tier[KVF_TIER_REMOTE];
    bool known = false;
    for (unsigned i = 0; i < copy->n_peers; i++) {
        if (copy->peers[i].up)
            remote->capacity_bytes += copy->peers[i].lend_bytes;
        known |= copy->peers[i].lend_bytes > 0;
    }
    remote->used_bytes = remote->bytes;
    if (!core->fabric)
        tier_state(remote, "absent", core->store ? "fabric.transport is none" : "etcd.endpoints is empty: this node is alone");
    else if (!core->settings.borrow)
        tier_state(remote, "absent", "lend.borrow is false");
    else if (!known)
        tier_state(remote, "absent", "no peer lends DRAM");
    else if (!remote->capacity_bytes)
        tier_state(remote, "degraded", "no lender is up");
    else
        tier_state(remote, "ok", NULL);
}

static void copy_device(struct kvf_core *core, struct copy *copy)
{
    struct tier_copy *gpu = &copy->tier[KVF_TIER_GPU];
    copy->has_device = kvf_device_stats(core, &copy->device);
    gpu->capacity_bytes = copy->device.capacity_bytes;
    gpu->used_bytes = copy->device.used_bytes;
    if (!copy->has_device)
        tier_state(gpu, "absent", "gpu.bytes is 0");
    else if (copy->device.broken)
        tier_state(gpu, "degraded", "the device failed: nothing is served from it");
    else
        tier_state(gpu, "ok", "copies of chunks, in host memory that stands for a GPU's");
}

static void copy_tiers(struct kvf_core *core, struct copy *copy)
{
    for (unsigned t = 0; t < KVF_TIER_COUNT; t++) {
        copy->tier[t].blocks = core->tier_blocks[t];
        copy->tier[t].bytes = core->tier_bytes[t];
    }
    copy_reads(core, copy);

    copy_device(core, copy);
    struct tier_copy *dram = &copy->tier[KVF_TIER_DRAM];
    dram->capacity_bytes = core->dram ? kvf_dram_capacity(core) : 0;
    dram->used_bytes = core->dram ? kvf_dram_used(core) : 0;
    if (core->spill_stuck)
        tier_state(dram, "degraded", "full, and no lower tier has room");
    else
        tier_state(dram, "ok", NULL);

    copy_remote_state(core, copy);

    struct tier_copy *ssd = &copy->tier[KVF_TIER_SSD];
    copy->has_ssd = core->ssd != NULL;
    snprintf(copy->ssd_why, sizeof copy->ssd_why, "%s", core->ssd_off[0] ? core->ssd_off : core->ssd_reason);
    if (core->ssd) {
        kvf_ssd_stats(core->ssd, &copy->ssd);
        copy->orphans = kvf_persist_orphans(core, &copy->orphan_bytes);
        ssd->capacity_bytes = copy->ssd.capacity_bytes;
        ssd->used_bytes = copy->ssd.used_bytes;
        if (copy->ssd.degraded)
            tier_state(ssd, "degraded", copy->ssd_why);
        else
            tier_state(ssd, "ok", NULL);
    } else if (core->ssd_off[0]) {
        tier_state(ssd, "off", copy->ssd_why);
    } else {
        tier_state(ssd, "absent", "ssd.path is empty");
    }

    struct tier_copy *peer = &copy->tier[KVF_TIER_PEER];
    peer->used_bytes = peer->bytes;
    if (core->fabric)
        tier_state(peer, "ok", NULL);
    else
        tier_state(peer, "absent", "no peers");
}

/* False: out of memory. The caller frees copy->peers. */
static bool copy_core(struct kvf_core *core, struct copy *copy)
{
    memset(copy, 0, sizeof *copy);
    copy->peers = calloc(core->settings.fabric_peers_max, sizeof *copy->peers);
    if (!copy->peers)
        return false;
    kvf_core_lock(core);
    copy_peers(core, copy);
    copy_tiers(core, copy);
    kvf_ram_stats(core, &copy->ram);
    copy->n_sessions = core->n_sessions;
    copy->reads_queued = core->reads_queued;
    copy->going_down = kvf_spills_bytes(core);
    copy->going_up = kvf_rises_bytes(core);
    kvf_scrub_progress(core, &copy->scrub);
    copy->lend_capacity = core->lent ? kvf_arena_bytes(core->lent) : 0;
    copy->lend_used = core->lent ? kvf_arena_used(core->lent) - core->lent_own_bytes : 0;
    copy->lend_blocks = core->lend ? kvf_lend_blocks(core) : 0;
    kvf_reclaim_stats(core, &copy->reclaim);
    kvf_drain_stats(core, &copy->drain);
    kvf_serves_stats(core, &copy->serves);
    copy->etcd_configured = core->store != NULL;
    copy->etcd_reachable = core->store && core->store_up;
    copy->joined = core->joined;
    copy->join_status = core->join_status;
    copy->transport = core->transport ? core->transport->ops->name : "none";
    kvf_core_unlock(core);
    return true;
}

/* Seconds since this process began; the node of an engine may be a little younger. */
static uint64_t uptime_s(void)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "re");
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
        fclose(file);
    text[n] = 0;
    /* Field 22, counted from the end of the command's name, which may hold anything. */
    const char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++) {
        at = strchr(at + 1, ' ');
    }
    struct timespec now;
    long ticks = sysconf(_SC_CLK_TCK);
    if (!at || ticks <= 0 || clock_gettime(CLOCK_BOOTTIME, &now))
        return 0;
    uint64_t began = strtoull(at + 1, NULL, 10) / (uint64_t)ticks;
    return (uint64_t)now.tv_sec > began ? (uint64_t)now.tv_sec - began : 0;
}

/* ---------------------------------------------------------------- JSON */

/* Names of peers come from etcd: what is not UTF-8 becomes "?" rather than a hole in the answer. */
static json_t *text_of(const char *text)
{
    json_t *string = text ? json_string(text) : json_null();
    return string ? string : json_string("?");
}

static json_t *number_of(uint64_t value)
{
    return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

/* 64 random bits do not survive every JSON reader as a number. */
static json_t *hex_of(uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%016" PRIx64, value);
    return json_string(text);
}

/* What the disk did for the bytes that were asked of it, and what the start found. */
static void ssd_json(const struct copy *copy, json_t *tier)
{
    const struct kvf_ssd_stats *s = &copy->ssd;
    json_object_set_new(tier, "write_amplification",
                        json_real(s->written_bytes ? (double)s->disk_written_bytes / (double)s->written_bytes : 1));
    json_object_set_new(tier, "read_amplification",
                        json_real(s->read_bytes ? (double)s->disk_read_bytes / (double)s->read_bytes : 1));
    json_object_set_new(tier, "disk_reads", number_of(s->disk_reads));
    json_object_set_new(tier, "disk_writes", number_of(s->disk_writes));
    json_object_set_new(tier, "journal_bytes", number_of(s->journal_bytes));
    json_object_set_new(tier, "checkpoints", number_of(s->checkpoints));
    json_object_set_new(tier, "recovered_blocks", number_of(s->recovered_blocks));
    json_object_set_new(tier, "recovered_bytes", number_of(s->recovered_bytes));
    json_object_set_new(tier, "recovery_ms", json_real((double)s->recovery_ns / 1e6));
    json_object_set_new(tier, "orphan_blocks", number_of(copy->orphans));
    json_object_set_new(tier, "orphan_bytes", number_of(copy->orphan_bytes));
}

static json_t *tiers_json(const struct copy *copy)
{
    json_t *tiers = json_array();
    for (unsigned t = 0; t < KVF_TIER_COUNT; t++) {
        const struct tier_copy *from = &copy->tier[t];
        json_t *tier = json_object();
        json_object_set_new(tier, "name", text_of(kvf_tier_name((enum kvf_tier)t)));
        json_object_set_new(tier, "state", text_of(from->state));
        if (from->reason)
            json_object_set_new(tier, "reason", text_of(from->reason));
        json_object_set_new(tier, "blocks", number_of(from->blocks));
        json_object_set_new(tier, "bytes", number_of(from->bytes));
        json_object_set_new(tier, "capacity_bytes", number_of(from->capacity_bytes));
        json_object_set_new(tier, "used_bytes", number_of(from->used_bytes));
        json_object_set_new(tier, "chunks_read", number_of(from->chunks_read));
        json_object_set_new(tier, "bytes_read", number_of(from->bytes_read));
        if (t == KVF_TIER_SSD && copy->has_ssd) {
            json_object_set_new(tier, "engine", text_of(copy->ssd.engine));
            json_object_set_new(tier, "errors", number_of(copy->ssd.errors));
            ssd_json(copy, tier);
        }
        if (t == KVF_TIER_GPU && copy->has_device) {
            json_object_set_new(tier, "chunks_missed", number_of(copy->device.misses));
            json_object_set_new(tier, "chunks_evicted", number_of(copy->device.evictions));
            json_object_set_new(tier, "share_moves", number_of(copy->device.moves));
            json_object_set_new(tier, "table_bytes", number_of(copy->device.table_bytes));
            json_object_set_new(tier, "sessions", number_of(copy->device.sessions));
        }
        json_array_append_new(tiers, tier);
    }
    return tiers;
}

/* Of the node's memory, which becomes ready after the node serves. */
static json_t *memory_json(const struct kvf_ram_stats *ram)
{
    json_t *memory = json_object();
    json_object_set_new(memory, "total_bytes", number_of(ram->total_bytes));
    json_object_set_new(memory, "ready_bytes", number_of(ram->ready_bytes));
    json_object_set_new(memory, "done", json_boolean(ram->done));
    json_object_set_new(memory, "elapsed_ms", number_of(ram->elapsed_ns / KVF_MS));
    json_object_set_new(memory, "pages", text_of(kvf_page_kind_name(ram->kind)));
    json_object_set_new(memory, "huge_bytes", number_of(ram->huge_bytes));
    json_object_set_new(memory, "numa", text_of(ram->numa));
    if (ram->error[0])
        json_object_set_new(memory, "error", text_of(ram->error));
    return memory;
}

/* What pulling from the peer and asking it for attention were measured to take. */
static json_t *attend_json(const struct kvf_attend_cost_stats *a)
{
    json_t *attend = json_object();
    json_object_set_new(attend, "same_bits", json_boolean(a->same_bits));
    json_object_set_new(attend, "rtt_ns", number_of(a->rtt_ns));
    json_object_set_new(attend, "message_bytes_per_s", number_of((uint64_t)a->wire_rate));
    json_object_set_new(attend, "pull_bytes_per_s", number_of((uint64_t)a->pull_rate));
    json_object_set_new(attend, "attend_bytes_per_s", number_of((uint64_t)a->compute_rate));
    json_object_set_new(attend, "rows", number_of(a->rows));
    json_object_set_new(attend, "break_even_chunks", a->break_even_chunks ? number_of(a->break_even_chunks) : json_null());
    json_object_set_new(attend, "pulled", number_of(a->chosen[KVF_ATTEND_PULL]));
    json_object_set_new(attend, "asked", number_of(a->chosen[KVF_ATTEND_THERE]));
    return attend;
}

static json_t *peers_json(const struct copy *copy)
{
    json_t *peers = json_array();
    for (unsigned i = 0; i < copy->n_peers; i++) {
        const struct peer_copy *from = &copy->peers[i];
        json_t *peer = json_object();
        json_object_set_new(peer, "name", text_of(from->name));
        json_object_set_new(peer, "incarnation", hex_of(from->incarnation));
        json_object_set_new(peer, "up", json_boolean(from->up));
        json_object_set_new(peer, "slow", json_boolean(from->slow));
        json_object_set_new(peer, "request_p50_ns", number_of(from->p50_ns));
        json_object_set_new(peer, "request_p95_ns", number_of(from->p95_ns));
        json_object_set_new(peer, "way", text_of(from->up ? way_name(from->way) : "none"));
        json_object_set_new(peer, "transport", text_of(copy->transport));
        json_object_set_new(peer, "lend_bytes", number_of(from->lend_bytes));
        json_object_set_new(peer, "borrowed_blocks", number_of(from->borrowed_blocks));
        json_object_set_new(peer, "borrowed_bytes", number_of(from->borrowed_bytes));
        json_object_set_new(peer, "lent_blocks", number_of(from->lent_blocks));
        json_object_set_new(peer, "lent_bytes", number_of(from->lent_bytes));
        json_object_set_new(peer, "attend", from->attend_known ? attend_json(&from->attend) : json_null());
        json_array_append_new(peers, peer);
    }
    return peers;
}

static json_t *histogram_json(const struct kvf_histogram *h)
{
    json_t *latency = json_object();
    json_object_set_new(latency, "n", number_of(atomic_load_explicit(&h->count, memory_order_relaxed)));
    json_object_set_new(latency, "p50_ns", number_of(kvf_histogram_percentile(h, 50)));
    json_object_set_new(latency, "p99_ns", number_of(kvf_histogram_percentile(h, 99)));
    json_object_set_new(latency, "p999_ns", number_of(kvf_histogram_percentile(h, 99.9)));
    json_object_set_new(latency, "max_ns", number_of(atomic_load_explicit(&h->max, memory_order_relaxed)));
    return latency;
}

/* {metric: {..}}, or {metric: {value of the label: {..}}}. */
static json_t *latencies_json(const struct kvf_core *core)
{
    json_t *latencies = json_object(), *group = NULL;
    struct kvf_latency_entry entry;
    for (size_t i = 0; kvf_latencies_entry(i, &entry); i++) {
        json_t *one = histogram_json(&core->latencies.of[i]);
        if (!*entry.label) {
            json_object_set_new(latencies, entry.metric, one);
            continue;
        }
        group = json_object_get(latencies, entry.metric);
        if (!group) {
            json_object_set_new(latencies, entry.metric, json_object());
            group = json_object_get(latencies, entry.metric);
        }
        json_object_set_new(group, entry.value, one);
    }
    return latencies;
}

static json_t *counters_json(const struct kvf_core *core)
{
    json_t *counters = json_object();
    struct kvf_counter_entry entry;
    for (size_t i = 0; kvf_counters_entry(i, &entry); i++)
        json_object_set_new(counters, entry.name, number_of(kvf_counters_get(&core->counters, i)));
    return counters;
}

static json_t *movement_json(const struct copy *copy)
{
    json_t *movement = json_object();
    json_object_set_new(movement, "down_bytes", number_of(copy->going_down));
    json_object_set_new(movement, "up_bytes", number_of(copy->going_up));
    json_object_set_new(movement, "reads_queued", number_of(copy->reads_queued));
    json_object_set_new(movement, "serving", number_of(copy->serves.requests));
    json_object_set_new(movement, "serving_bytes", number_of(copy->serves.bytes));
    return movement;
}

/* since_s is null until a pass has ended. */
static json_t *scrub_json(const struct copy *copy)
{
    json_t *scrub = json_object();
    json_object_set_new(scrub, "rate", number_of(copy->scrub.rate));
    json_object_set_new(scrub, "pass_blocks", number_of(copy->scrub.pass_blocks));
    json_object_set_new(scrub, "pass_bytes", number_of(copy->scrub.pass_bytes));
    json_object_set_new(scrub, "blocks", number_of(copy->scrub.blocks));
    json_object_set_new(scrub, "passes", number_of(copy->scrub.passes));
    json_object_set_new(scrub, "since_s", copy->scrub.passes ? number_of(copy->scrub.since_ns / KVF_SEC) : json_null());
    return scrub;
}

static json_t *lending_json(const struct copy *copy)
{
    json_t *lending = json_object();
    json_object_set_new(lending, "capacity_bytes", number_of(copy->lend_capacity));
    json_object_set_new(lending, "blocks", number_of(copy->lend_blocks));
    json_object_set_new(lending, "bytes", number_of(copy->lend_used));
    json_object_set_new(lending, "limit_bytes", number_of(copy->reclaim.limit_bytes));
    json_object_set_new(lending, "others_bytes", number_of(copy->reclaim.others_bytes));
    json_object_set_new(lending, "dead_bytes", number_of(copy->reclaim.dead_bytes));
    json_object_set_new(lending, "wanted_bytes", number_of(copy->reclaim.wanted_bytes));
    json_object_set_new(lending, "asked_bytes", number_of(copy->reclaim.asked_bytes));
    json_object_set_new(lending, "claimed_bytes", number_of(copy->reclaim.claimed_bytes));
    json_object_set_new(lending, "own_bytes", number_of(copy->reclaim.own_bytes));
    return lending;
}

static json_t *drain_json(const struct kvf_drain_stats *d)
{
    json_t *drain = json_object();
    json_object_set_new(drain, "draining", json_boolean(d->draining));
    json_object_set_new(drain, "empty", json_boolean(d->empty));
    json_object_set_new(drain, "lent_bytes", number_of(d->lent_bytes));
    json_object_set_new(drain, "departed_sessions", number_of(d->departed_sessions));
    json_object_set_new(drain, "departed_blocks", number_of(d->departed_blocks));
    json_object_set_new(drain, "incoming_sessions", number_of(d->incoming_sessions));
    json_object_set_new(drain, "home_sessions", number_of(d->home_sessions));
    return drain;
}

char *kvf_status_json(struct kvf_core *core)
{
    struct copy copy;
    if (!copy_core(core, &copy))
        return NULL;
    json_t *root = json_object(), *etcd = json_object();
    json_object_set_new(root, "schema", json_string("kvf-node/1"));
    json_object_set_new(root, "node", text_of(core->name));
    json_object_set_new(root, "incarnation", hex_of(core->incarnation));
    json_object_set_new(root, "version", text_of(kvf_version()));
    json_object_set_new(root, "pid", json_integer(getpid()));
    json_object_set_new(root, "uptime_s", number_of(uptime_s()));
    json_object_set_new(root, "transport", text_of(copy.transport));
    json_object_set_new(root, "tiers", tiers_json(&copy));
    json_object_set_new(root, "memory", memory_json(&copy.ram));
    json_object_set_new(root, "sessions", number_of(copy.n_sessions));
    json_object_set_new(root, "lending", lending_json(&copy));
    json_object_set_new(root, "drain", drain_json(&copy.drain));
    json_object_set_new(root, "peers", peers_json(&copy));
    json_object_set_new(etcd, "configured", json_boolean(copy.etcd_configured));
    json_object_set_new(etcd, "reachable", json_boolean(copy.etcd_reachable));
    json_object_set_new(etcd, "joined", json_boolean(copy.joined));
    json_object_set_new(etcd, "join", text_of(kvf_status_name(copy.join_status)));
    json_object_set_new(root, "etcd", etcd);
    json_object_set_new(root, "movement", movement_json(&copy));
    json_object_set_new(root, "scrub", scrub_json(&copy));
    json_object_set_new(root, "counters", counters_json(core));
    json_object_set_new(root, "latencies", latencies_json(core));
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    free(copy.peers);
    return text;
}

/* ---------------------------------------------------------------- sessions */

static void copy_session(const struct kvf_sess *from, struct session_copy *to)
{
    to->id = from->id;
    to->epoch = from->epoch;
    to->tokens = from->n_tokens;
    to->sealed_blocks = from->sealed_blocks;
    to->blocks = (uint64_t)from->sealed_blocks * (from->model ? from->model->streams : 0);
    to->lost = from->lost;
    to->from_peer = from->from_peer;
    to->forks = from->forks;
    to->state = from->state;
    to->parked = from->parked;
    to->handle_open = from->handle != NULL;
    snprintf(to->model, sizeof to->model, "%s", from->model ? from->model->desc.name : "");
    snprintf(to->new_home, sizeof to->new_home, "%s", from->new_home);
}

static int session_order(const void *a, const void *b)
{
    const struct session_copy *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The sessions in order of id; NULL with *count 0: out of memory. Those that come between the two locks may be missed. */
static struct session_copy *copy_sessions(struct kvf_core *core, size_t *count)
{
    *count = 0;
    kvf_core_lock(core);
    size_t room = core->n_sessions + 16;
    kvf_core_unlock(core);
    struct session_copy *copies = calloc(room, sizeof *copies);
    if (!copies)
        return NULL;
    size_t n = 0;
    kvf_core_lock(core);
    for (uint32_t bucket = 0; bucket < core->session_buckets; bucket++)
        for (const struct kvf_sess *sess = core->sessions[bucket]; sess && n < room; sess = sess->next)
            copy_session(sess, &copies[n++]);
    kvf_core_unlock(core);
    qsort(copies, n, sizeof *copies, session_order);
    *count = n;
    return copies;
}

static json_t *session_json(const struct session_copy *from)
{
    json_t *session = json_object();
    json_object_set_new(session, "id", number_of(from->id));
    json_object_set_new(session, "model", text_of(from->model));
    json_object_set_new(session, "epoch", number_of(from->epoch));
    json_object_set_new(session, "state", text_of(sess_state_name(from->state)));
    json_object_set_new(session, "parked", json_boolean(from->parked));
    json_object_set_new(session, "handle_open", json_boolean(from->handle_open));
    json_object_set_new(session, "tokens", number_of(from->tokens));
    json_object_set_new(session, "sealed_per_stream", number_of(from->sealed_blocks));
    json_object_set_new(session, "sealed_blocks", number_of(from->blocks));
    json_object_set_new(session, "lost_blocks", number_of(from->lost));
    json_object_set_new(session, "streaming", json_boolean(from->from_peer > 0));
    json_object_set_new(session, "streaming_blocks", number_of(from->from_peer));
    json_object_set_new(session, "forks", number_of(from->forks));
    if (from->state == KVF_SESS_DEPARTED)
        json_object_set_new(session, "new_home", text_of(from->new_home));
    return session;
}

char *kvf_sessions_json(struct kvf_core *core)
{
    size_t count;
    struct session_copy *copies = copy_sessions(core, &count);
    if (!copies)
        return NULL;
    json_t *root = json_object(), *list = json_array();
    json_object_set_new(root, "schema", json_string("kvf-node-sessions/1"));
    json_object_set_new(root, "node", text_of(core->name));
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, session_json(&copies[i]));
    json_object_set_new(root, "sessions", list);
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    free(copies);
    return text;
}

/* ---------------------------------------------------------------- Prometheus */

static void metric(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP kvf_%s %s\n# TYPE kvf_%s %s\n", name, help, name, type);
}

static void gauge(FILE *out, const char *name, const char *help, uint64_t value)
{
    metric(out, name, "gauge", help);
    fprintf(out, "kvf_%s %" PRIu64 "\n", name, value);
}

static void tier_gauges(FILE *out, const struct copy *copy)
{
    static const struct {
        const char *name, *help;
        size_t offset;
    } gauges[] = {
        {"tier_blocks", "sealed blocks that lie there", offsetof(struct tier_copy, blocks)},
        {"tier_bytes", "bytes of sealed blocks that lie there", offsetof(struct tier_copy, bytes)},
        {"tier_used_bytes", "bytes in use there, open blocks included", offsetof(struct tier_copy, used_bytes)},
        {"tier_capacity_bytes", "room there; 0 where not known", offsetof(struct tier_copy, capacity_bytes)},
    };
    for (size_t i = 0; i < sizeof gauges / sizeof gauges[0]; i++) {
        metric(out, gauges[i].name, "gauge", gauges[i].help);
        for (unsigned t = 0; t < KVF_TIER_COUNT; t++)
            fprintf(out, "kvf_%s{tier=\"%s\"} %" PRIu64 "\n", gauges[i].name, kvf_tier_name((enum kvf_tier)t),
                    *(const uint64_t *)((const char *)&copy->tier[t] + gauges[i].offset));
    }
    metric(out, "tier_up", "gauge", "1: the tier works; 0: degraded, off or absent");
    for (unsigned t = 0; t < KVF_TIER_COUNT; t++)
        fprintf(out, "kvf_tier_up{tier=\"%s\"} %d\n", kvf_tier_name((enum kvf_tier)t), !strcmp(copy->tier[t].state, "ok"));
}

/* `label` is `tier="x"` or empty. Buckets are read before the total, which so is never below them by more than a moment. */
static void histogram_text(FILE *out, const char *metric_name, const char *label, const struct kvf_histogram *h)
{
    const char *comma = *label ? "," : "", *open = *label ? "{" : "", *close = *label ? "}" : "";
    uint64_t last = 0;
    for (unsigned n = BOUND_FIRST; n <= BOUND_LAST; n++) {
        uint64_t bound = (1ull << n) - 1;
        last = kvf_histogram_upto(h, bound);
        fprintf(out, "kvf_%s_seconds_bucket{%s%sle=\"%.12g\"} %" PRIu64 "\n", metric_name, label, comma, (double)bound / 1e9, last);
    }
    uint64_t all = kvf_histogram_upto(h, UINT64_MAX);
    all = all > last ? all : last;
    fprintf(out, "kvf_%s_seconds_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", metric_name, label, comma, all);
    fprintf(out, "kvf_%s_seconds_sum%s%s%s %.9f\n", metric_name, open, label, close,
            (double)atomic_load_explicit(&h->sum, memory_order_relaxed) / 1e9);
    fprintf(out, "kvf_%s_seconds_count%s%s%s %" PRIu64 "\n", metric_name, open, label, close, all);
}

static void latencies_text(FILE *out, const struct kvf_core *core)
{
    struct kvf_latency_entry entry;
    for (size_t i = 0; kvf_latencies_entry(i, &entry); i++) {
        char name[96], label[96] = "";
        snprintf(name, sizeof name, "%s_seconds", entry.metric);
        if (*entry.help)
            metric(out, name, "histogram", entry.help);
        if (*entry.label)
            snprintf(label, sizeof label, "%s=\"%s\"", entry.label, entry.value);
        histogram_text(out, entry.metric, label, &core->latencies.of[i]);
    }
}

/* Queues and what is under way: of the SSD by priority. */
static void movement_gauges(FILE *out, const struct copy *copy)
{
    static const char *const names[KVF_PRIORITY_COUNT] = {"demand", "ahead", "write_back", "scrub"};
    metric(out, "ssd_queued", "gauge", "requests that the disk was not given yet");
    for (unsigned p = 0; p < KVF_PRIORITY_COUNT; p++)
        fprintf(out, "kvf_ssd_queued{priority=\"%s\"} %u\n", names[p], copy->ssd.queued[p]);
    metric(out, "ssd_in_flight", "gauge", "requests that the disk has");
    for (unsigned p = 0; p < KVF_PRIORITY_COUNT; p++)
        fprintf(out, "kvf_ssd_in_flight{priority=\"%s\"} %u\n", names[p], copy->ssd.in_flight[p]);
    metric(out, "ssd_in_flight_bytes", "gauge", "bytes of the requests that the disk has");
    for (unsigned p = 0; p < KVF_PRIORITY_COUNT; p++)
        fprintf(out, "kvf_ssd_in_flight_bytes{priority=\"%s\"} %" PRIu64 "\n", names[p], copy->ssd.in_flight_bytes[p]);
    gauge(out, "reads_queued", "reads of blocks below DRAM that no source was asked yet", copy->reads_queued);
    gauge(out, "spill_bytes", "bytes of blocks on their way down", copy->going_down);
    gauge(out, "scrub_rate_bytes", "bytes per second at which blocks on SSD are checked; 0: off", copy->scrub.rate);
    gauge(out, "scrub_pass_blocks", "blocks that the scrub's pass under way has checked", copy->scrub.pass_blocks);
    if (copy->scrub.passes)
        gauge(out, "scrub_pass_age_seconds", "since the scrub's last pass ended", copy->scrub.since_ns / KVF_SEC);
    gauge(out, "rise_bytes", "bytes of blocks on their way up", copy->going_up);
}

static void write_metrics(FILE *out, const struct kvf_core *core, const struct copy *copy)
{
    struct kvf_counter_entry entry;
    for (size_t i = 0; kvf_counters_entry(i, &entry); i++) {
        char name[96];
        snprintf(name, sizeof name, "%s_total", entry.name);
        metric(out, name, "counter", entry.help);
        fprintf(out, "kvf_%s %" PRIu64 "\n", name, kvf_counters_get(&core->counters, i));
    }
    tier_gauges(out, copy);
    uint64_t up = 0;
    for (unsigned i = 0; i < copy->n_peers; i++)
        up += copy->peers[i].up;
    gauge(out, "memory_total_bytes", "DRAM that this node is to have: own, lent and staging", copy->ram.total_bytes);
    gauge(out, "memory_ready_bytes", "of it, ready for use", copy->ram.ready_bytes);
    gauge(out, "sessions", "sessions that this node holds", copy->n_sessions);
    gauge(out, "peers_up", "peers that answer", up);
    gauge(out, "lend_capacity_bytes", "DRAM for other nodes' blocks", copy->lend_capacity);
    gauge(out, "lend_used_bytes", "of it, in use", copy->lend_used);
    gauge(out, "lend_blocks", "other nodes' blocks here", copy->lend_blocks);
    gauge(out, "lend_limit_bytes", "what others may have of it", copy->reclaim.limit_bytes);
    gauge(out, "lend_dead_bytes", "of what is in use, left by nodes that are gone", copy->reclaim.dead_bytes);
    gauge(out, "lend_wanted_bytes", "of it, to come back", copy->reclaim.wanted_bytes);
    gauge(out, "draining", "whether this node takes on nothing more of others", copy->drain.draining);
    gauge(out, "lend_claimed_bytes", "kept from others because own DRAM was short", copy->reclaim.claimed_bytes);
    gauge(out, "lend_own_bytes", "of the memory for other nodes, in use by own blocks", copy->reclaim.own_bytes);
    gauge(out, "etcd_up", "1: etcd answers", copy->etcd_reachable);
    gauge(out, "uptime_seconds", "seconds since the process began", uptime_s());
    movement_gauges(out, copy);
    latencies_text(out, core);
}

char *kvf_metrics_text(struct kvf_core *core)
{
    struct copy copy;
    char *text = NULL;
    size_t bytes = 0;
    if (!copy_core(core, &copy))
        return NULL;
    FILE *out = open_memstream(&text, &bytes);
    if (out) {
        write_metrics(out, core, &copy);
        if (fclose(out)) {
            free(text);
            text = NULL;
        }
    }
    free(copy.peers);
    return text;
}
