/* The core: the node's memory, the books of its blocks, and one turn of every machine. */
#include "base/hash.h"
#include "node/claim.h"
#include "node/dram.h"
#include "node/lend.h"
#include "node/persist.h"
#include "node/ram.h"
#include "node/scrub.h"
#include <assert.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------- the lock */

void kvf_core_lock(struct kvf_core *core)
{
    atomic_fetch_add(&core->waiting, 1);
    pthread_mutex_lock(&core->lock);
    atomic_fetch_sub(&core->waiting, 1);
}

void kvf_core_unlock(struct kvf_core *core)
{
    pthread_mutex_unlock(&core->lock);
}

void kvf_core_wake(struct kvf_core *core)
{
    uint64_t one = 1;
    if (core->wake_fd >= 0 && write(core->wake_fd, &one, sizeof one) < 0) {
        /* The counter is full: the reactor is awake already. */
    }
}

void kvf_core_changed(struct kvf_core *core)
{
    pthread_cond_broadcast(&core->changed);
}

bool kvf_core_wait(struct kvf_core *core, uint64_t deadline_ns)
{
    uint64_t now = kvf_now(core->env);
    if (now >= deadline_ns)
        return false;
    if (core->wake_fd < 0) {
        if (core->idle)
            core->idle(core->idle_arg);
        else
            kvf_core_poll(core);
        return true;
    }
    uint64_t until = deadline_ns - now > 100 * KVF_MS ? now + 100 * KVF_MS : deadline_ns;
    struct timespec ts = {.tv_sec = (time_t)(until / KVF_SEC), .tv_nsec = (long)(until % KVF_SEC)};
    pthread_cond_timedwait(&core->changed, &core->lock, &ts);
    return true;
}

/* ---------------------------------------------------------------- blocks */

struct kvf_key kvf_block_key(uint64_t session, uint32_t layer, uint32_t head, uint32_t index)
{
    return (struct kvf_key){.hi = session, .lo = (uint64_t)layer << 48 | (uint64_t)head << 32 | index};
}

uint64_t kvf_block_seed(uint64_t fingerprint, struct kvf_key key)
{
    return kvf_mix(kvf_mix(fingerprint, key.hi), key.lo);
}

uint64_t kvf_block_seed_of(const struct kvf_core *core, const struct kvf_entry *entry)
{
    unsigned model = kvf_entry_model(entry);
    uint64_t seed = kvf_block_seed(model == KVF_ENTRY_OPAQUE ? 0 : core->models[model]->fingerprint, entry->key);
    enum kvf_cold_format format = kvf_cold_format_of(entry);
    if (format == KVF_COLD_EXACT)
        return seed;
    struct kvf_cold shape = kvf_cold_shape(core->models[model], format);
    return kvf_cold_seed(core->dev, seed, &shape, kvf_sums_at(core->sums, entry->sums) + kvf_entry_chunks(entry));
}

uint32_t kvf_block_opaque_chunk_bytes(uint32_t bytes)
{
    uint32_t chunk = (bytes + 63) / 64;
    return (chunk + 4095) / 4096 * 4096;
}

uint32_t kvf_block_chunk_bytes(const struct kvf_core *core, const struct kvf_entry *entry)
{
    unsigned model = kvf_entry_model(entry);
    if (model == KVF_ENTRY_OPAQUE)
        return kvf_block_opaque_chunk_bytes(entry->bytes);
    return kvf_cold_bytes(core->models[model], kvf_cold_format_of(entry)) / core->models[model]->chunks;
}

void kvf_block_sum(const struct kvf_dev *dev, uint64_t seed, const void *data, uint32_t bytes, uint32_t chunk_bytes, uint64_t mask,
                   uint64_t *sums)
{
    const uint8_t *p = data;
    for (unsigned c = 0; c < 64 && (uint64_t)c * chunk_bytes < bytes; c++) {
        if (!(mask >> c & 1))
            continue;
        uint32_t offset = c * chunk_bytes;
        uint32_t size = bytes - offset < chunk_bytes ? bytes - offset : chunk_bytes;
        dev->checksum(dev, NULL, p + offset, size, seed + c, &sums[c]);
    }
}

bool kvf_block_verify(const struct kvf_dev *dev, uint64_t seed, const void *data, uint32_t bytes, uint32_t chunk_bytes,
                      uint64_t mask, const uint64_t *sums)
{
    uint64_t found[64];
    kvf_block_sum(dev, seed, data, bytes, chunk_bytes, mask, found);
    for (unsigned c = 0; c < 64 && (uint64_t)c * chunk_bytes < bytes; c++)
        if ((mask >> c & 1) && found[c] != sums[c])
            return false;
    return true;
}

uint64_t kvf_block_content(const struct kvf_core *core, const struct kvf_entry *e, uint64_t mask)
{
    const uint64_t *sums = kvf_sums_at(core->sums, e->sums);
    uint64_t x = e->bytes;
    for (; mask; mask &= mask - 1)
        x = kvf_mix(x, sums[__builtin_ctzll(mask)]);
    return x;
}

struct kvf_sess *kvf_block_session(struct kvf_core *core, const struct kvf_entry *entry)
{
    return entry->key.hi & KVF_OPAQUE_BIT ? NULL : kvf_sess_find(core, entry->key.hi);
}

static bool booked(const struct kvf_entry *e)
{
    return e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_SPILLING || e->state == KVF_BLOCK_RISING;
}

/* Adds (or with sign -1 takes away) a block to the counts of its tier. */
static void book(struct kvf_core *core, const struct kvf_entry *e, int sign)
{
    core->tier_blocks[e->tier] += (uint64_t)(int64_t)sign;
    core->tier_bytes[e->tier] += (uint64_t)((int64_t)sign * e->bytes);
    if (e->tier == KVF_TIER_REMOTE && e->peer != KVF_PEER_NONE) {
        core->peers[e->peer].borrowed_blocks += (uint64_t)(int64_t)sign;
        core->peers[e->peer].borrowed_bytes += (uint64_t)((int64_t)sign * e->bytes);
    }
    if (e->tier == KVF_TIER_PEER) {
        core->peers[e->peer].streaming_blocks += (uint64_t)(int64_t)sign;
        struct kvf_sess *sess = kvf_block_session(core, e);
        if (sess)
            sess->from_peer += (uint64_t)(int64_t)sign;
    }
}

void kvf_block_list(struct kvf_core *core, kvf_handle handle)
{
    kvf_dramlist_push(core->dram_blocks, kvf_index_entry(core->index, handle)->location4k, handle);
}

void kvf_block_unlist(struct kvf_core *core, kvf_handle handle)
{
    const struct kvf_entry *e = kvf_index_entry(core->index, handle);
    if (e->tier != KVF_TIER_DRAM || !kvf_dramlist_has(core->dram_blocks, e->location4k))
        return;
    assert(kvf_dramlist_handle(core->dram_blocks, e->location4k) == handle);
    kvf_dramlist_remove(core->dram_blocks, e->location4k);
}

void kvf_block_place(struct kvf_core *core, kvf_handle handle, enum kvf_tier tier, uint16_t peer, uint64_t location)
{
    kvf_block_place_as(core, handle, tier, peer, location, kvf_cold_format_of(kvf_index_entry(core->index, handle)), NULL);
}

void kvf_block_place_as(struct kvf_core *core, kvf_handle handle, enum kvf_tier tier, uint16_t peer, uint64_t location,
                        enum kvf_cold_format format, const uint64_t *words)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    assert(tier != KVF_TIER_DRAM || format == KVF_COLD_EXACT);
    if (booked(e)) {
        book(core, e, -1);
        kvf_block_unlist(core, handle);
        kvf_evict_left(core, e, true);
        if (e->tier == KVF_TIER_DRAM && tier != KVF_TIER_DRAM)
            kvf_claim_left(core, e);
    }
    assert(!kvf_entry_is_open(e) && kvf_entry_pins(e) == 0);
    kvf_cold_become(core, handle, format, words);
    e->tier = tier & 15;
    e->peer = peer;
    kvf_entry_set_location(e, location);
    e->state = KVF_BLOCK_READY;
    book(core, e, +1);
    if (tier != KVF_TIER_DRAM)
        return;
    kvf_block_list(core, handle);
    kvf_evict_came(core, e);
    if (!(e->flags & KVF_FLAG_REMOVED))
        kvf_entry_open(e);
}

bool kvf_block_shift(struct kvf_core *core, kvf_handle handle, uint64_t to)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    uint64_t from = kvf_entry_location(e);
    assert(e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_DRAM);
    if (!kvf_entry_close(e, false)) {
        kvf_entry_open(e);
        return false;
    }
    memcpy(core->memory + to, core->memory + from, (e->bytes + 4095ull) / 4096 * 4096); /* the SSD writes whole pages */
    kvf_evict_left(core, e, false);
    kvf_dramlist_shift(core->dram_blocks, e->location4k, (uint32_t)(to / KVF_LOCATION_UNIT));
    kvf_entry_set_location(e, to);
    kvf_evict_came(core, e);
    kvf_entry_open(e);
    kvf_dram_free(core, from, e->bytes);
    return true;
}

void kvf_block_release_copy(struct kvf_core *core, enum kvf_tier tier, uint16_t peer, uint64_t location, uint32_t bytes,
                            unsigned chunks, struct kvf_key key)
{
    core->spill_stuck = false;
    switch (tier) {
    case KVF_TIER_DRAM:
        kvf_dram_free(core, location, bytes);
        kvf_core_changed(core);
        break;
    case KVF_TIER_SSD:
        if (core->ssd)
            kvf_ssd_free(core->ssd, location, bytes, chunks);
        break;
    case KVF_TIER_REMOTE:
    case KVF_TIER_PEER:
        if (peer == KVF_PEER_NONE)
            kvf_lend_release_own(core, key);
        else if (core->peers[peer].peer && core->peers[peer].up)
            kvf_cluster_release(core, &core->peers[peer], tier, key);
        break;
    default:
        break;
    }
}

/* Frees the entry itself. */
static void forget(struct kvf_core *core, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    kvf_stage_drop(core, handle);
    kvf_persist_forget(core, e);
    if (e->sums != KVF_SUMS_NONE)
        kvf_cold_words_free(core, e);
    kvf_index_remove(core->index, handle);
}

void kvf_block_lose(struct kvf_core *core, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    if (e->state == KVF_BLOCK_LOST)
        return;
    assert(booked(e) && e->tier != KVF_TIER_DRAM);
    if (kvf_persist_fall_back(core, handle))
        return;
    struct kvf_sess *sess = kvf_block_session(core, e);
    kvf_count(&core->counters.blocks_lost, 1);
    if (!sess || (e->flags & KVF_FLAG_DEPARTED)) {
        if (sess && !(e->flags & KVF_FLAG_REMOVED) && --sess->departed_left == 0)
            core->departed_done = true; /* the new home will not ask for the last one to be freed */
        kvf_block_remove(core, handle);
        return;
    }
    book(core, e, -1);
    /* One that is RISING: its rise finds it LOST and gives up. */
    kvf_block_release_copy(core, e->tier, e->peer, kvf_entry_location(e), e->bytes, kvf_entry_chunks(e), e->key);
    e->state = KVF_BLOCK_LOST;
    kvf_device_lose(core, e->key);
    kvf_stage_drop(core, handle);
    kvf_cold_become(core, handle, KVF_COLD_EXACT, NULL); /* as it will be refilled */
    sess->lost++;
    kvf_core_changed(core);
}

void kvf_block_remove(struct kvf_core *core, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    bool held = !kvf_entry_close(e, true) || kvf_persist_keeping(e);
    if (held || e->state == KVF_BLOCK_SPILLING || e->state == KVF_BLOCK_RISING || e->state == KVF_BLOCK_WRITING) {
        e->flags |= KVF_FLAG_REMOVED;
        if (e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_DRAM) {
            kvf_block_unlist(core, handle);
            kvf_evict_left(core, e, false);
        }
        return;
    }
    if (e->state == KVF_BLOCK_READY) {
        book(core, e, -1);
        if (e->tier == KVF_TIER_DRAM)
            kvf_block_unlist(core, handle);
        kvf_evict_left(core, e, false);
        kvf_block_release_copy(core, e->tier, e->peer, kvf_entry_location(e), e->bytes, kvf_entry_chunks(e), e->key);
    } else {
        struct kvf_sess *sess = kvf_block_session(core, e);
        if (sess && sess->lost > 0)
            sess->lost--;
    }
    forget(core, handle);
}

void kvf_block_disown(struct kvf_core *core, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    assert(e->state == KVF_BLOCK_READY && (e->tier == KVF_TIER_REMOTE || e->tier == KVF_TIER_PEER));
    book(core, e, -1);
    forget(core, handle);
}

void kvf_block_reap(struct kvf_core *core, kvf_handle handle)
{
    const struct kvf_entry *e = kvf_index_entry(core->index, handle);
    if (kvf_entry_pins(e) == 0 && e->state == KVF_BLOCK_READY && (e->flags & KVF_FLAG_REMOVED))
        kvf_block_remove(core, handle);
}

void kvf_block_let_go(struct kvf_core *core, kvf_handle handle)
{
    if (kvf_entry_unpin(kvf_index_entry(core->index, handle)) == 0)
        kvf_block_reap(core, handle);
}

/* A reader without the lock let go last of what somebody waits for. Whoever had the lock meanwhile may have been faster. */
static void last_pin_gone(void *arg, kvf_handle handle)
{
    struct kvf_core *core = arg;
    kvf_core_lock(core);
    if (kvf_index_is_live(core->index, handle))
        kvf_block_reap(core, handle);
    kvf_core_unlock(core);
}

bool kvf_block_reserve(struct kvf_core *core, uint64_t n)
{
    uint64_t taken = kvf_index_count(core->index) + core->entries_reserved + n;
    if (taken > core->settings.blocks_max)
        return false;
    kvf_persist_limit(core, core->settings.blocks_max - taken);
    core->entries_reserved += n;
    return true;
}

uint64_t kvf_block_memory(struct kvf_core *core, uint32_t bytes)
{
    uint64_t at = kvf_dram_alloc(core, bytes);
    if (at == KVF_ARENA_NONE)
        core->spill_urgent = true;
    return at;
}

/* ---------------------------------------------------------------- life */

static void fail(char *error, size_t size, const char *what, enum kvf_status st)
{
    snprintf(error, size, "%s: %s (%s)", what, kvf_status_text(st), kvf_status_name(st));
}

static enum kvf_status tiers_create(struct kvf_core *core, const struct kvf_core_parts *parts, char *error, size_t error_size)
{
    const struct kvf_settings *s = &core->settings;
    enum kvf_status st = kvf_ram_create(core, error, error_size);
    if (st != KVF_OK)
        return st;
    st = kvf_index_create(s->blocks_max, &core->index);
    if (st == KVF_OK)
        st = kvf_dramlist_create(kvf_dram_units(core), &core->dram_blocks);
    if (st == KVF_OK)
        core->words_excess_max = kvf_cold_excess_max(s->blocks_max);
    if (st == KVF_OK)
        st = kvf_sums_create(s->blocks_max * 64 + core->words_excess_max, &core->sums);
    if (st != KVF_OK) {
        fail(error, error_size, "making the block index (block.count_max)", st);
        return st;
    }
    kvf_index_on_last(core->index, last_pin_gone, core);
    if (parts->disk_status != KVF_OK)
        kvf_area_off(core, parts->disk_status, parts->disk_error);
    st = kvf_area_create(core, error, error_size);
    if (st == KVF_OK)
        kvf_ram_disk(core);
    return st;
}

static enum kvf_status machines_create(struct kvf_core *core)
{
    enum kvf_status (*const makers[])(struct kvf_core *) = {
        kvf_device_create, kvf_evict_create, kvf_reads_create,  kvf_hedges_create, kvf_staging_create,
        kvf_spills_create, kvf_rises_create, kvf_scrub_create,  kvf_lend_create,   kvf_yields_create,
        kvf_serves_create, kvf_moves_create, kvf_blocks_create,
        kvf_attend_costs_create, kvf_attend_remotes_create, kvf_attend_serves_create,
    };
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        enum kvf_status st = makers[i](core);
        if (st != KVF_OK)
            return st;
    }
    return KVF_OK;
}

static enum kvf_log_level level_of(const char *word)
{
    static const char *const words[] = {"error", "warn", "info", "debug"};
    for (int i = 0; i < 4; i++)
        if (strcmp(words[i], word) == 0)
            return (enum kvf_log_level)i;
    return KVF_LOG_WARN;
}

static enum kvf_status lock_create(struct kvf_core *core)
{
    pthread_condattr_t attr;
    if (pthread_mutex_init(&core->lock, NULL) != 0)
        return KVF_ERR_NO_MEMORY;
    if (pthread_condattr_init(&attr) != 0)
        return KVF_ERR_NO_MEMORY;
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    int rc = pthread_cond_init(&core->changed, &attr);
    pthread_condattr_destroy(&attr);
    return rc == 0 ? KVF_OK : KVF_ERR_NO_MEMORY;
}

bool kvf_core_name_fine(const char *name)
{
    size_t n = strlen(name);
    return n > 0 && n < KVF_NODE_NAME_MAX &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == n;
}

static void name_choose(struct kvf_core *core)
{
    char host[KVF_NODE_NAME_MAX] = "node";
    if (core->settings.node_name[0])
        snprintf(host, sizeof host, "%.*s", (int)sizeof host - 1, core->settings.node_name);
    else if (gethostname(host, sizeof host - 1) != 0)
        snprintf(host, sizeof host, "node");
    snprintf(core->name, sizeof core->name, "%s", host);
}

enum kvf_status kvf_core_create(const struct kvf_settings *settings, const struct kvf_core_parts *parts, char *error,
                                size_t error_size, struct kvf_core **out)
{
    struct kvf_core *core = calloc(1, sizeof *core);
    if (!core) {
        if (parts->disk)
            parts->disk->ops->close(parts->disk);
        if (parts->transport)
            parts->transport->ops->destroy(parts->transport);
        kvf_secret_destroy(parts->secret);
        if (parts->store)
            parts->store->ops->destroy(parts->store);
        snprintf(error, error_size, "out of memory");
        return KVF_ERR_NO_MEMORY;
    }
    core->settings = *settings;
    core->env = parts->env;
    core->transport = parts->transport;
    core->secret = parts->secret;
    core->store = parts->store;
    core->disk = parts->disk;
    core->ram_by_hand = parts->ram_by_hand;
    core->wake_fd = -1;
    core->in_place = true;
    name_choose(core);
    kvf_log_init(&core->log, core->name, level_of(settings->log_level), parts->log);
    core->cold_format = kvf_cold_format_named(settings->cold_format);
    core->incarnation = core->env->random(core->env->arg) | 1;
    core->dev = parts->dev ? parts->dev : kvf_dev_cpu();
    core->session_buckets = 1024;
    core->sessions = calloc(core->session_buckets, sizeof *core->sessions);
    core->peers = calloc(settings->fabric_peers_max, sizeof *core->peers);
    enum kvf_status st = core->sessions && core->peers ? lock_create(core) : KVF_ERR_NO_MEMORY;
    if (st != KVF_OK) {
        fail(error, error_size, "making the node", st);
        goto destroy;
    }
    if (!kvf_core_name_fine(core->name)) {
        st = KVF_ERR_CONFIG;
        snprintf(error, error_size, "this machine's name, %s, has more than letters, digits, . _ -: set node.name (ERR_CONFIG)",
                 core->name);
        goto destroy;
    }
    for (uint16_t i = 0; i < settings->fabric_peers_max; i++)
        core->peers[i] = (struct kvf_node_peer){.core = core, .number = i};
    st = kvf_workers_create((unsigned)settings->workers, &core->workers);
    if (st == KVF_OK)
        st = tiers_create(core, parts, error, error_size);
    else
        fail(error, error_size, "starting worker threads (workers)", st);
    if (st != KVF_OK)
        goto destroy;
    st = machines_create(core);
    if (st != KVF_OK) {
        fail(error, error_size, "making the node's queues", st);
        goto destroy;
    }
    st = kvf_cluster_start(core);
    if (st != KVF_OK) {
        fail(error, error_size, "starting the fabric", st);
        goto destroy;
    }
    kvf_ram_start(core);
    *out = core;
    return KVF_OK;
destroy:
    kvf_core_destroy(core);
    return st;
}

void kvf_core_destroy(struct kvf_core *core)
{
    if (!core)
        return;
    core->closing = true;
    kvf_ram_stop(core);
    kvf_attend_serve_stop(core);
    if (core->sessions && core->index)
        for (uint32_t b = 0; b < core->session_buckets; b++)
            for (struct kvf_sess *s = core->sessions[b]; s; s = s->next)
                kvf_sess_step_end(s);
    if (core->ssd)
        kvf_ssd_destroy(core->ssd); /* ends its requests: nothing writes into memory any more */
    else if (core->disk)
        core->disk->ops->close(core->disk);
    core->ssd = NULL;
    kvf_cluster_stop(core); /* ends every call and pull likewise */
    kvf_attend_serves_destroy(core);
    kvf_attend_remotes_destroy(core);
    kvf_attend_costs_destroy(core);
    kvf_blocks_destroy(core);
    kvf_persist_destroy(core);
    kvf_moves_destroy(core);
    kvf_serves_destroy(core);
    kvf_yields_destroy(core);
    kvf_lend_destroy(core);
    kvf_scrub_destroy(core);
    kvf_rises_destroy(core);
    kvf_spills_destroy(core);
    if (core->sessions && core->index)
        for (uint32_t b = 0; b < core->session_buckets; b++)
            for (struct kvf_sess *s = core->sessions[b]; s; s = s->next)
                s->parent = NULL; /* which may be freed before its fork */
    if (core->sessions)
        for (uint32_t b = 0; b < core->session_buckets; b++)
            while (core->sessions[b])
                kvf_sess_free(core->sessions[b]);
    kvf_device_destroy(core);
    kvf_staging_destroy(core);
    kvf_hedges_destroy(core);
    kvf_reads_destroy(core);
    for (unsigned i = 0; i < core->n_models; i++)
        free(core->models[i]);
    kvf_dramlist_destroy(core->dram_blocks);
    kvf_evict_destroy(core);
    kvf_registered_free(core);
    kvf_index_destroy(core->index);
    kvf_sums_destroy(core->sums);
    kvf_workers_destroy(core->workers);
    kvf_ram_destroy(core);
    if (core->transport)
        core->transport->ops->destroy(core->transport);
    kvf_secret_destroy(core->secret);
    if (core->store)
        core->store->ops->destroy(core->store);
    pthread_cond_destroy(&core->changed);
    pthread_mutex_destroy(&core->lock);
    free(core->peers);
    free(core->sessions);
    free(core);
}

/* ---------------------------------------------------------------- poll */

unsigned kvf_core_poll(struct kvf_core *core)
{
    unsigned events = 0;
    if (core->fabric)
        events += kvf_fabric_poll(core->fabric);
    if (core->ssd)
        events += kvf_ssd_poll(core->ssd);
    kvf_cluster_poll(core);
    if (core->fabric)
        kvf_pace_poll(core, kvf_now(core->env));
    events += kvf_lend_poll(core);
    events += kvf_yields_poll(core);
    events += kvf_moves_poll(core);
    events += kvf_serves_poll(core);
    events += kvf_attend_serves_poll(core);
    events += kvf_attend_remotes_poll(core);
    events += kvf_blocks_poll(core);
    events += kvf_reads_poll(core);
    events += kvf_spills_poll(core);
    events += kvf_rises_poll(core);
    events += kvf_scrub_poll(core);
    kvf_area_watch(core);
    if (core->ssd)
        events += kvf_ssd_poll(core->ssd); /* hands what was just queued to the kernel */
    return events;
}

uint64_t kvf_core_next_timer(const struct kvf_core *core)
{
    uint64_t now = kvf_now(core->env);
    if (core->leaving > 0)
        return now;
    uint64_t next = now + 100 * KVF_MS;
    if (!kvf_attend_serves_idle(core) || !kvf_attend_remotes_idle(core))
        next = now + KVF_MS; /* an answer or question that the transport did not take */
    if (core->reads_queued || !kvf_hedges_idle(core) || !kvf_blocks_idle(core) || !kvf_spills_idle(core) ||
        core->spill_urgent || !kvf_yields_idle(core) || !kvf_serves_idle(core))
        next = now + KVF_MS;
    next = kvf_reads_next_timer(core) < next ? kvf_reads_next_timer(core) : next;
    uint64_t spill = kvf_spills_next_timer(core, now), scrub = kvf_scrub_next_timer(core, now);
    next = spill < next ? spill : next;
    next = scrub < next ? scrub : next;
    next = kvf_reclaim_next_timer(core) < next ? kvf_reclaim_next_timer(core) : next;
    next = kvf_claim_next_timer(core, now) < next ? kvf_claim_next_timer(core, now) : next;
    if (core->fabric && kvf_fabric_next_timer(core->fabric) < next)
        next = kvf_fabric_next_timer(core->fabric);
    if (core->coord && kvf_coord_next_timer(core->coord) < next)
        next = kvf_coord_next_timer(core->coord);
    return next;
}

void kvf_core_check(struct kvf_core *core)
{
    kvf_device_check(core);
    uint64_t blocks[KVF_TIER_COUNT] = {0}, bytes[KVF_TIER_COUNT] = {0}, listed = 0, copies = 0, cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *e = kvf_index_entry(core->index, h);
        if (booked(e)) {
            blocks[e->tier]++;
            bytes[e->tier] += e->bytes;
        }
        copies += e->ssd4k != 0;
        bool opaque = kvf_entry_model(e) == KVF_ENTRY_OPAQUE;
        assert(!opaque || !(e->flags & KVF_FLAG_FOUND) || e->ssd4k || e->tier == KVF_TIER_SSD);
        bool in_dram = e->tier == KVF_TIER_DRAM && (e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_SPILLING);
        bool kept = in_dram && !(e->flags & KVF_FLAG_REMOVED);
        assert(!kvf_entry_is_open(e) || kept);
        assert(kvf_entry_is_open(e) || !kept || e->state == KVF_BLOCK_SPILLING); /* closed: it waits for pins to end */
        bool refilled = e->state == KVF_BLOCK_WRITING && e->tier == KVF_TIER_DRAM; /* attention of the refill itself reads it */
        assert(in_dram || refilled || kvf_entry_pins(e) == 0);
        listed += kept && e->state == KVF_BLOCK_READY;
    }
    for (int t = 0; t < KVF_TIER_COUNT; t++) {
        assert(blocks[t] == core->tier_blocks[t]);
        assert(bytes[t] == core->tier_bytes[t]);
    }
    for (const struct kvf_sess *s = core->sessions_all; s && kvf_spills_idle(core) && kvf_rises_bytes(core) == 0; s = s->after)
        assert(s->spilling == 0);
    assert(copies == core->ssd_copies);
    assert(listed == kvf_dramlist_count(core->dram_blocks));
    kvf_dramlist_check(core->dram_blocks);
    kvf_evict_check(core);
    kvf_arena_check(core->dram);
    kvf_arena_check(core->staging);
    assert(!core->lent_own_bytes || core->lent_own_bytes <= kvf_arena_used(core->lent));
    kvf_lend_check(core);
    kvf_index_check(core->index);
}
