/* The node among others: members from etcd become peers of the fabric; a peer's death makes its blocks misses. */
#include "node/internal.h"
#include "node/move.h"
#include "node/persist.h"
#include "node/reclaim.h"
#include "node/wire.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define RECONNECT_NS (1 * KVF_SEC)
#define CALL_TIMEOUT_NS (5 * KVF_SEC)
#define SECRET_LOOK_NS (2 * KVF_SEC)

struct kvf_node_peer *kvf_cluster_peer(struct kvf_core *core, const char *name)
{
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++)
        if (core->peers[i].member.name[0] && strcmp(core->peers[i].member.name, name) == 0)
            return &core->peers[i];
    return NULL;
}

struct kvf_node_peer *kvf_cluster_peer_at(struct kvf_core *core, uint16_t number)
{
    if (number >= core->settings.fabric_peers_max || !core->peers[number].member.name[0])
        return NULL;
    return &core->peers[number];
}

/* ---------------------------------------------------------------- blocks at a peer that is gone
 *
 * Every block of ours that lies at a peer that goes down is a miss from then on. The peer is LEAVING until the last one is given
 * up: whoever looks such a block up gives it up there and then (kvf_cluster_judge), and the rest is found by a walk of the index,
 * a bounded part of it in each poll. Until its end the peer is not connected anew and its number is nobody else's, so that
 * nothing can be added there and nothing of its former life be read. */

/* The walk's part in one poll, under the lock, at about 16 ns an entry and 1 us a block that is given up. */
#define LEAVE_ENTRIES 65536
#define LEAVE_BLOCKS 1024

static bool lies_at(const struct kvf_entry *e, const struct kvf_node_peer *p)
{
    return (e->tier == KVF_TIER_REMOTE || e->tier == KVF_TIER_PEER) && e->peer == p->number &&
           (e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_RISING);
}

static bool nothing_at(const struct kvf_node_peer *p)
{
    return p->borrowed_blocks == 0 && p->streaming_blocks == 0;
}

static void give_up(struct kvf_core *core, struct kvf_node_peer *p, kvf_handle h)
{
    assert(lies_at(kvf_index_entry(core->index, h), p) && !p->up);
    p->reset = true; /* it may come back, and hold them still */
    if (kvf_persist_fall_back(core, h))
        return;
    kvf_block_lose(core, h);
    p->leave_lost++;
}

bool kvf_cluster_left(const struct kvf_core *core, const struct kvf_entry *e)
{
    bool away = core->leaving > 0 && (e->tier == KVF_TIER_REMOTE || e->tier == KVF_TIER_PEER) && e->peer != KVF_PEER_NONE;
    return away && core->peers[e->peer].leaving && lies_at(e, &core->peers[e->peer]);
}

struct kvf_entry *kvf_cluster_judge(struct kvf_core *core, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    if (!kvf_cluster_left(core, e))
        return e;
    give_up(core, &core->peers[e->peer], handle);
    return kvf_index_is_live(core->index, handle) ? e : NULL;
}

static void leave_end(struct kvf_core *core, struct kvf_node_peer *p)
{
    assert(p->leaving && core->leaving > 0);
    p->leaving = false;
    core->leaving--;
    if (p->leave_lost)
        kvf_log_warn(&core->log, "node %s is gone: %llu blocks that lay there must be recomputed", p->leave_name,
                     (unsigned long long)p->leave_lost);
}

static void leave_turn(struct kvf_core *core, struct kvf_node_peer *p)
{
    uint64_t most = core->leave_entries ? core->leave_entries : LEAVE_ENTRIES, blocks = 0;
    kvf_handle h = 0;
    for (uint64_t n = 0; n < most && blocks < LEAVE_BLOCKS && !nothing_at(p) && h != KVF_HANDLE_NONE; n++) {
        h = kvf_index_walk(core->index, &p->leave_cursor);
        if (h == KVF_HANDLE_NONE || !lies_at(kvf_index_entry(core->index, h), p))
            continue;
        give_up(core, p, h);
        blocks++;
    }
    if (h == KVF_HANDLE_NONE || nothing_at(p))
        leave_end(core, p);
}

/* Every block of ours that lies at the peer is a miss from now on. */
static void lose_blocks_at(struct kvf_core *core, struct kvf_node_peer *p)
{
    if (nothing_at(p) && !p->leaving)
        return;
    assert(!p->up);
    if (!p->leaving) {
        p->leaving = true;
        core->leaving++;
        p->leave_lost = 0;
        memcpy(p->leave_name, p->member.name, sizeof p->leave_name);
    }
    p->leave_cursor = 0;
    leave_turn(core, p);
}

/* A number for a new peer: of those that are taken by one that is still leaving only if there is no other. */
static struct kvf_node_peer *peer_number(struct kvf_core *core)
{
    struct kvf_node_peer *found = NULL;
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++)
        if (!core->peers[i].member.name[0] && (!found || found->leaving))
            found = &core->peers[i];
    while (found && found->leaving)
        leave_turn(core, found);
    return found;
}

static void peer_connect(struct kvf_core *core, struct kvf_node_peer *p)
{
    enum kvf_status st = kvf_fabric_peer_add(core->fabric, p->member.name, p->member.incarnation, p->member.address,
                                             p->member.address_bytes, &p->peer);
    if (st != KVF_OK) {
        kvf_log_warn(&core->log, "connecting to node %s: %s (%s)", p->member.name, kvf_status_text(st), kvf_status_name(st));
        p->peer = NULL;
        p->retry_ns = kvf_now(core->env) + RECONNECT_NS;
        return;
    }
    kvf_peer_user_set(p->peer, p);
}

static void peer_drop(struct kvf_core *core, struct kvf_node_peer *p)
{
    struct kvf_peer *peer = p->peer;
    p->up = false;
    kvf_lend_wait_drop(core, p);
    lose_blocks_at(core, p);
    p->peer = NULL;
    if (peer)
        kvf_fabric_peer_remove(core->fabric, peer);
    kvf_core_changed(core);
}

/* ---------------------------------------------------------------- the fabric's word */

static void on_peer_up(void *arg, struct kvf_peer *peer)
{
    struct kvf_core *core = arg;
    struct kvf_node_peer *p = kvf_peer_user(peer);
    if (!p)
        return;
    p->up = true;
    p->lend_retry_ns = 0;
    kvf_pace_reset(p);
    core->spill_stuck = false;
    kvf_log_info(&core->log, "node %s is up", p->member.name);
    kvf_core_changed(core);
}

static void on_peer_down(void *arg, struct kvf_peer *peer, enum kvf_status why)
{
    struct kvf_core *core = arg;
    struct kvf_node_peer *p = kvf_peer_user(peer);
    if (!p)
        return;
    if (p->up && !core->closing)
        kvf_log_warn(&core->log, "node %s is down: %s", p->member.name, kvf_status_text(why));
    if (p->up)
        kvf_count(&core->counters.peers_lost, 1);
    if (p->up)
        p->reset = true; /* releases and blocks may have been on their way */
    p->up = false;
    kvf_lend_wait_drop(core, p);
    p->retry_ns = kvf_now(core->env) + RECONNECT_NS;
    if (!core->closing)
        lose_blocks_at(core, p);
    kvf_move_peer_down(core, p);
    kvf_core_changed(core);
}

static void on_message(void *arg, struct kvf_peer *peer, const struct kvf_message *message)
{
    struct kvf_core *core = arg;
    struct kvf_node_peer *p = kvf_peer_user(peer);
    if (!p || message->request == 0) { /* all are calls: what has no answer is none of ours */
        kvf_count(&core->counters.messages_refused, 1);
        return;
    }
    switch (message->type) {
    case KVF_MSG_RESERVE:
    case KVF_MSG_PUT:
    case KVF_MSG_COMMIT:
    case KVF_MSG_RELEASE:
    case KVF_MSG_ADOPT:
        kvf_lend_message(core, p, message);
        return;
    case KVF_MSG_RELEASE_ALL:
        if (message->bytes == 0)
            kvf_move_release_all(core, p);
        kvf_lend_message(core, p, message);
        return;
    case KVF_MSG_RECLAIM:
    case KVF_MSG_REVOKED:
        kvf_yield_message(core, p, message);
        return;
    case KVF_MSG_READ_DATA:
        kvf_read_data(core, p, message);
        return;
    case KVF_MSG_READ:
        kvf_serve_message(core, p, message);
        return;
    case KVF_MSG_ATTEND:
    case KVF_MSG_ATTEND_PROBE:
        kvf_attend_serve_message(core, p, message);
        return;
    default:
        kvf_move_message(core, p, message);
    }
}

void kvf_cluster_fabric_handler(struct kvf_core *core, struct kvf_fabric_handler *out)
{
    *out = (struct kvf_fabric_handler){.arg = core, .peer_up = on_peer_up, .peer_down = on_peer_down, .message = on_message};
}

/* ---------------------------------------------------------------- etcd's word */

static void on_member_up(void *arg, const struct kvf_member *member)
{
    struct kvf_core *core = arg;
    if (strcmp(member->name, core->name) == 0 || !core->fabric)
        return;
    struct kvf_node_peer *p = kvf_cluster_peer(core, member->name);
    if (p && p->member.incarnation == member->incarnation) {
        p->member = *member;
        return;
    }
    bool restarted = p != NULL;
    if (restarted) {
        kvf_lend_borrower_gone(core, p->member.name, p->member.incarnation);
        peer_drop(core, p);
    }
    p = p ? p : peer_number(core);
    if (!p) {
        kvf_log_error(&core->log, "node %s is left out: fabric.peers_max (%llu) peers are known already", member->name,
                      (unsigned long long)core->settings.fabric_peers_max);
        return;
    }
    /* A member that is new to us may be one that etcd lost sight of for a while, and hold what we gave up then. */
    p->reset = !restarted;
    p->adopt_ns = restarted ? 0 : p->adopt_ns;
    p->untidy = false;
    p->member = *member;
    p->retry_ns = 0;
    if (!p->leaving)
        peer_connect(core, p);
}

static void on_member_down(void *arg, const char *name, uint64_t incarnation)
{
    struct kvf_core *core = arg;
    struct kvf_node_peer *p = kvf_cluster_peer(core, name);
    if (p && p->member.incarnation == incarnation) {
        kvf_lend_borrower_gone(core, name, incarnation);
        peer_drop(core, p);
        memset(&p->member, 0, sizeof p->member);
        p->reset = p->untidy = false;
        p->n_releases[0] = p->n_releases[1] = 0;
    }
    kvf_move_member_down(core, name);
}

static void on_placement(void *arg, const struct kvf_placement *placement)
{
    kvf_move_placement(arg, placement);
}

static void on_joined(void *arg, enum kvf_status status)
{
    struct kvf_core *core = arg;
    core->join_ended = true;
    core->join_status = status;
    core->joined = status == KVF_OK;
    kvf_core_changed(core);
}

static void on_store_state(void *arg, bool reachable)
{
    struct kvf_core *core = arg;
    if (core->store_up != reachable && core->joined)
        kvf_log_warn(&core->log, "etcd is %s", reachable ? "back" : "away: sessions go on, creating and moving them waits");
    core->store_up = reachable;
    kvf_core_changed(core);
}

void kvf_cluster_coord_handler(struct kvf_core *core, struct kvf_coord_handler *out)
{
    *out = (struct kvf_coord_handler){.arg = core,
                                      .member_up = on_member_up,
                                      .member_down = on_member_down,
                                      .placement = on_placement,
                                      .joined = on_joined,
                                      .store_state = on_store_state};
}

/* ---------------------------------------------------------------- giving back what peers hold for us */

static void reset_done(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_node_peer *p = arg;
    p->resetting = false;
    if (status == KVF_OK)
        p->reset = p->untidy = false;
    else
        p->retry_ns = kvf_now(p->core->env) + RECONNECT_NS;
}

/* What was not answered is said later, in one word. */
static void release_done(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_node_peer *p = arg;
    p->untidy |= status != KVF_OK;
}

static void releases_flush(struct kvf_core *core, struct kvf_node_peer *p)
{
    for (unsigned kind = 0; kind < 2; kind++) {
        if (p->n_releases[kind] == 0)
            continue;
        uint8_t payload[2 + KVF_BATCH_MAX * 16];
        struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
        kvf_wire_keys(&w, p->releases[kind], p->n_releases[kind]);
        struct iovec part = {.iov_base = payload, .iov_len = kvf_writer_used(&w)};
        enum kvf_status st = p->up ? kvf_fabric_call(p->peer, kind == 0 ? KVF_MSG_RELEASE : KVF_MSG_FREE, &part, 1,
                                                     kvf_deadline(kvf_now(core->env), CALL_TIMEOUT_NS), release_done, p)
                                   : KVF_ERR_PEER_LOST;
        if (st != KVF_ERR_BUSY)
            p->n_releases[kind] = 0;
    }
}

void kvf_cluster_release(struct kvf_core *core, struct kvf_node_peer *p, enum kvf_tier tier, struct kvf_key key)
{
    unsigned kind = tier == KVF_TIER_REMOTE ? 0 : 1;
    if (p->n_releases[kind] == KVF_BATCH_MAX)
        releases_flush(core, p);
    if (p->n_releases[kind] == KVF_BATCH_MAX) {
        p->untidy = true; /* busy beyond measure: said later, in one word */
        return;
    }
    p->releases[kind][p->n_releases[kind]++] = key;
}

/* RELEASE_ALL would take blocks that are in use too: it is sent only while none of ours lies there, is on its way or comes from
 * there, and when it holds none of a session that it takes for another's, be that ours now or no more. */
static void reset_send(struct kvf_core *core, struct kvf_node_peer *p)
{
    if (!(p->reset || p->untidy) || p->resetting || kvf_now(core->env) < p->retry_ns || kvf_now(core->env) < p->adopt_ns)
        return;
    if (p->borrowed_blocks > 0 || p->streaming_blocks > 0 || kvf_spills_busy_at(core, p) || kvf_moves_inward(core, p) ||
        kvf_moves_adopting_at(core, p))
        return;
    if (kvf_fabric_call(p->peer, KVF_MSG_RELEASE_ALL, NULL, 0, kvf_deadline(kvf_now(core->env), CALL_TIMEOUT_NS), reset_done, p) ==
        KVF_OK)
        p->resetting = true;
}

/* ---------------------------------------------------------------- the secret */

void kvf_cluster_secret_read(struct kvf_core *core)
{
    char error[KVF_CONFIG_TEXT_MAX];
    if (!core->secret || !core->settings.secret_file[0])
        return;
    if (kvf_secret_load(core->secret, core->settings.secret_file, error, sizeof error) != KVF_OK) {
        kvf_log_error(&core->log, "%s; what it held before stays in use", error);
        return;
    }
    kvf_log_warn(&core->log, "cluster.secret_file was read anew");
    if (core->fabric)
        kvf_fabric_secret_changed(core->fabric);
}

/* The file is small and local: looking whether it is another one takes microseconds. */
static void secret_look(struct kvf_core *core, uint64_t now)
{
    if (!core->secret || !core->settings.secret_file[0] || now < core->secret_look_ns)
        return;
    core->secret_look_ns = now + SECRET_LOOK_NS;
    if (kvf_secret_changed(core->secret, core->settings.secret_file))
        kvf_cluster_secret_read(core);
}

/* ---------------------------------------------------------------- life */

static enum kvf_status fabric_start(struct kvf_core *core)
{
    const struct kvf_settings *s = &core->settings;
    struct kvf_fabric_config config = {
        .env = core->env,
        .transport = core->transport,
        .secret = core->secret,
        .log = &core->log,
        .counters = &core->counters,
        .incarnation = core->incarnation,
        .region = core->region,
        .region_base = core->memory,
        .region_bytes = core->region ? core->lent_at + kvf_arena_planned(core->lent) : 0,
        .peers_max = (unsigned)s->fabric_peers_max,
        .requests_max = (unsigned)s->fabric_requests,
        .inflight_bytes = s->fabric_inflight,
        .heartbeat_ns = s->fabric_heartbeat_ns,
        .dead_ns = s->fabric_dead_ns,
    };
    memcpy(config.name, core->name, sizeof config.name);
    kvf_cluster_fabric_handler(core, &config.handler);
    return kvf_fabric_create(&config, &core->fabric);
}

enum kvf_status kvf_cluster_start(struct kvf_core *core)
{
    if (core->transport) {
        enum kvf_status st = fabric_start(core);
        if (st != KVF_OK)
            return st;
    }
    if (!core->store)
        return KVF_OK;
    struct kvf_coord_config config = {
        .env = core->env,
        .store = core->store,
        .log = &core->log,
        .prefix = core->settings.etcd_prefix,
        .lease_ttl_ns = core->settings.lease_ttl_ns,
    };
    kvf_cluster_coord_handler(core, &config.handler);
    return kvf_coord_create(&config, &core->coord);
}

void kvf_cluster_poll(struct kvf_core *core)
{
    if (core->coord)
        kvf_coord_poll(core->coord);
    if (!core->fabric)
        return;
    uint64_t now = kvf_now(core->env);
    secret_look(core, now);
    bool turned = false;
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++) {
        struct kvf_node_peer *p = &core->peers[i];
        if (p->leaving && !turned) { /* one part of one walk in each poll */
            leave_turn(core, p);
            turned = true;
        }
        if (!p->member.name[0] || p->leaving)
            continue;
        if (p->up) {
            releases_flush(core, p);
            reset_send(core, p);
        } else if (now >= p->retry_ns && (!p->peer || p->retry_ns > 0)) {
            if (p->peer)
                peer_drop(core, p);
            p->retry_ns = 0;
            peer_connect(core, p);
        }
    }
}

void kvf_cluster_stop(struct kvf_core *core)
{
    if (core->coord)
        kvf_coord_destroy(core->coord);
    core->coord = NULL;
    if (core->fabric)
        kvf_fabric_destroy(core->fabric);
    core->fabric = NULL;
    for (unsigned i = 0; core->peers && i < core->settings.fabric_peers_max; i++) {
        core->peers[i].peer = NULL;
        core->peers[i].up = false;
    }
}
