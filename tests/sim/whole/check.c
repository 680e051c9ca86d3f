/* The properties. After every step: no two homes, deadlines, what the objects say of themselves (every so often). At rest: nothing
 * is left, and etcd and the nodes agree. */
#include "tests/sim/whole/world.h"

#include "coordinator/internal.h"
#include "node/drain.h"
#include "node/lend.h"
#include "node/move.h"
#include "node/persist.h"
#include <string.h>

#define CHECK_EVERY 16 /* steps between the checks of whole cores */
#define RECLAIM_SLACK_NS (500 * KVF_MS) /* some steps of a world in which nothing happens */
#define PREFIX "/kvfabric/default"

struct world_node *check_home(const struct world *w, uint64_t id)
{
    for (unsigned i = 0; i < w->n; i++) {
        struct kvf_core *core = w->nodes[i].sim->core;
        const struct kvf_sess *s = w->nodes[i].sim->dead ? NULL : kvf_sess_find(core, id);
        if (s && (s->state == KVF_SESS_ACTIVE || s->dropping))
            return (struct world_node *)&w->nodes[i];
    }
    return NULL;
}

bool check_connected(const struct world *w)
{
    for (unsigned i = 0; i < w->n; i++) {
        for (unsigned j = 0; j < w->n; j++) {
            struct sim_node *a = w->nodes[i].sim, *b = w->nodes[j].sim;
            if (a->dead || b->dead)
                return false;
            const struct kvf_node_peer *p = i == j ? NULL : sim_cluster_peer(a, b);
            if (i != j && (!p || !p->up || p->member.incarnation != b->core->incarnation))
                return false;
        }
    }
    return true;
}

/* What etcd holds of a record's session; NULL: nothing. It is read again when anything in etcd has changed. */
static const struct kvf_placement *placed(struct world *w, unsigned record)
{
    uint64_t id = w->records[record].id, revision = kvf_sim_etcd_revision(w->cluster->etcd);
    struct placed *p = &w->placed[record];
    char key[KVF_STORE_KEY_MAX];
    if (p->id == id && p->revision == revision)
        return p->there ? &p->placement : NULL;
    if (!kvf_records_session_key(PREFIX, id, key))
        world_violated(w, "a key for session %llu", (unsigned long long)id);
    const struct kvf_store_kv *kv = kvf_sim_etcd_get(w->cluster->etcd, key);
    *p = (struct placed){.id = id, .revision = revision, .there = kv != NULL};
    if (kv && !kvf_records_decode_placement(id, kv->value, &p->placement))
        world_violated(w, "session %llu: a record in etcd that cannot be read: %s", (unsigned long long)id, kv->value);
    return kv ? &p->placement : NULL;
}

/* A session takes steps at one node, and that is the one that etcd names, by the epoch. */
static void check_homes(struct world *w)
{
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        uint64_t id = w->records[i].id;
        const struct world_node *home = NULL;
        for (unsigned k = 0; id && k < w->n; k++) {
            const struct world_node *n = &w->nodes[k];
            const struct kvf_sess *s = n->sim->dead ? NULL : kvf_sess_find(n->sim->core, id);
            if (!s || s->state != KVF_SESS_ACTIVE)
                continue;
            if (home)
                world_violated(w, "session %llu has two homes: %s and %s", (unsigned long long)id, home->name, n->name);
            home = n;
            const struct kvf_placement *p = placed(w, i);
            if (!p)
                world_violated(w, "session %llu takes steps at %s, and etcd knows nothing of it", (unsigned long long)id, n->name);
            if (strcmp(p->home, n->name) != 0 || p->epoch != s->epoch)
                world_violated(w, "session %llu takes steps at %s with epoch %llu, and etcd says %s, %llu", (unsigned long long)id,
                               n->name, (unsigned long long)s->epoch, p->home, (unsigned long long)p->epoch);
        }
    }
}

static void check_deadlines(struct world *w)
{
    uint64_t now = world_now(w);
    for (unsigned i = 0; i < w->n * w->n_clients; i++) {
        const struct world_node *n = &w->nodes[i / w->n_clients];
        const struct client *c = &n->clients[i % w->n_clients];
        if (!c->call || c->died || !c->fiber || n->sim->paused)
            continue;
        uint64_t ns = now - c->call_ns - (n->paused_ns - c->call_paused_ns);
        if (ns > c->call_bound_ns)
            world_violated(w, "node %s, client %u: %s takes %.3f s, %.3f s are its bound", n->name, c->number, c->call,
                           (double)ns / 1e9, (double)c->call_bound_ns / 1e9);
    }
}

/* What a lender wants back is free at the deadline, whoever is dead or slow; later only where the lender itself did not run. */
static void check_reclaim(struct world *w, const struct world_node *n)
{
    const struct kvf_lend *lend = n->sim->core->lend;
    uint64_t now = world_now(w), late = now - RECLAIM_SLACK_NS;
    if (!lend || !lend->index || n->sim->paused || late < n->resumed_ns)
        return;
    /* By ADOPT what was its own may be a borrower's since: that is wanted back anew, by another deadline. */
    if (n->reclaim_ns && late > n->reclaim_ns && lend->others_bytes > n->reclaim_limit && !lend->deadline_ns)
        world_violated(w, "node %s: others have %llu bytes, %.3f s after the time at which it wanted all but %llu back", n->name,
                       (unsigned long long)lend->others_bytes, (double)(now - n->reclaim_ns) / 1e9,
                       (unsigned long long)n->reclaim_limit);
    if (lend->deadline_ns && late + n->sim->skew_ns > lend->deadline_ns)
        world_violated(w, "node %s: it wants %llu bytes back still, %.3f s after their deadline", n->name,
                       (unsigned long long)(lend->others_bytes - lend->limit_bytes),
                       (double)(now + n->sim->skew_ns - lend->deadline_ns) / 1e9);
}

/* A node that is drained takes on no session. */
static void check_drain(struct world *w, struct world_node *n)
{
    struct kvf_drain_stats stats;
    if (!n->draining)
        return;
    kvf_drain_stats(n->sim->core, &stats);
    if (!stats.draining || stats.incoming_sessions > n->incoming)
        world_violated(w, "node %s: %llu sessions are on their way to it, which is being drained; it were %llu", n->name,
                       (unsigned long long)stats.incoming_sessions, (unsigned long long)n->incoming);
    n->incoming = stats.incoming_sessions;
}

/* Lent memory is somebody's, and is counted as what it is. */
static void check_slots(struct world *w, const struct world_node *n)
{
    const struct kvf_core *core = n->sim->core;
    uint64_t cursor = 0, others = 0;
    if (!core->lent || !core->lend->index)
        return;
    for (kvf_handle h; (h = kvf_index_walk(core->lend->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
        others += e->peer == KVF_PEER_NONE ? 0 : e->bytes;
    }
    kvf_arena_check(core->lent);
    if (others != core->lend->others_bytes)
        world_violated(w, "node %s: others have %llu bytes of it, it counts %llu", n->name, (unsigned long long)others,
                       (unsigned long long)core->lend->others_bytes);
}

/* Nobody has died, been cut off or wanted its memory back at once: what a home has at a lender is there. */
static void check_loans(struct world *w, const struct world_node *n)
{
    struct kvf_core *core = n->sim->core;
    uint64_t cursor = 0;
    if (kvf_counted(&core->counters.lent_blocks_expired))
        world_violated(w, "node %s swept away %llu blocks of others, of whom nobody has lost anything", n->name,
                       (unsigned long long)kvf_counted(&core->counters.lent_blocks_expired));
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(core->index, h);
        const struct kvf_sess *s = e->key.hi & KVF_OPAQUE_BIT ? NULL : kvf_sess_find(core, e->key.hi);
        bool stands = (e->key.hi & KVF_OPAQUE_BIT) || (s && s->state == KVF_SESS_ACTIVE);
        if (!stands || e->state != KVF_BLOCK_READY || e->tier != KVF_TIER_REMOTE || (e->flags & KVF_FLAG_REMOVED))
            continue;
        const struct world_node *lender = n;
        for (unsigned i = 0; i < w->n && e->peer != KVF_PEER_NONE; i++)
            lender = strcmp(w->nodes[i].name, core->peers[e->peer].member.name) == 0 ? &w->nodes[i] : lender;
        const struct kvf_index *index = lender->sim->core->lend->index;
        kvf_handle slot = index ? kvf_index_find(lender->sim->core->lend->index, e->key) : KVF_HANDLE_NONE;
        if (slot == KVF_HANDLE_NONE)
            world_violated(w, "node %s has block %llx %llx at %s, which does not", n->name, (unsigned long long)e->key.hi,
                           (unsigned long long)e->key.lo, lender->name);
    }
}

void check_step(struct world *w)
{
    check_homes(w);
    check_deadlines(w);
    for (unsigned i = 0; i < w->n; i++) {
        if (w->nodes[i].sim->dead)
            continue;
        check_reclaim(w, &w->nodes[i]);
        check_drain(w, &w->nodes[i]);
        opaque_step(&w->nodes[i]);
        if ((w->steps + i) % CHECK_EVERY != 0)
            continue;
        kvf_core_check(w->nodes[i].sim->core);
        check_slots(w, &w->nodes[i]);
        if (w->drowsy && w->phase == PHASE_WORK)
            check_loans(w, &w->nodes[i]);
    }
}

/* ---------------------------------------------------------------- at rest */

void check_show(const struct world_node *n)
{
    struct kvf_core *core = n->sim->core;
    for (uint32_t b = 0; b < core->session_buckets; b++)
        for (const struct kvf_sess *s = core->sessions[b]; s; s = s->next)
            fprintf(stderr,
                    "  %s: session %llu, state %d, epoch %llu, %llu tokens, new home %s, %llu left, %llu lost, %llu from peer\n",
                    n->name, (unsigned long long)s->id, (int)s->state, (unsigned long long)s->epoch,
                    (unsigned long long)s->n_tokens, s->new_home, (unsigned long long)s->departed_left, (unsigned long long)s->lost,
                    (unsigned long long)s->from_peer);
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(core->index, h);
        fprintf(stderr, "  %s: block %llx %llx, state %u, tier %u, peer %u, %u bytes, flags %x, pins %u\n", n->name,
                (unsigned long long)e->key.hi, (unsigned long long)e->key.lo, e->state, e->tier, e->peer, e->bytes, e->flags,
                kvf_entry_pins(e));
    }
    cursor = 0;
    for (kvf_handle h; core->lend->index && (h = kvf_index_walk(core->lend->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
        fprintf(stderr, "  %s: lends %llx %llx, state %u, peer %u, %u bytes, since %u s\n", n->name, (unsigned long long)e->key.hi,
                (unsigned long long)e->key.lo, e->state, e->peer, e->bytes, e->sums);
    }
    fprintf(stderr, "  %s: dram %llu of %llu, lent %llu in %llu blocks\n", n->name, (unsigned long long)kvf_arena_used(core->dram),
            (unsigned long long)kvf_arena_bytes(core->dram), (unsigned long long)(core->lent ? kvf_arena_used(core->lent) : 0),
            (unsigned long long)kvf_lend_blocks(core));
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++)
        if (core->peers[i].member.name[0])
            fprintf(stderr, "  %s: peer %u is %s, up %d, borrowed %llu blocks, lent %llu, reset %d %d %d\n", n->name, i,
                    core->peers[i].member.name, core->peers[i].up, (unsigned long long)core->peers[i].borrowed_blocks,
                    (unsigned long long)core->peers[i].lent_blocks, core->peers[i].reset, core->peers[i].untidy,
                    core->peers[i].resetting);
    for (unsigned i = 0; i < KVF_MOVES_MAX; i++) {
        const struct kvf_one_move *m = &core->moves->moves[i];
        if (m->state != KVF_MOVE_FREE)
            fprintf(stderr, "  %s: move %d of session %llu, peer %s, epoch %llu, calling %d, aborted %d\n", n->name, (int)m->state,
                    (unsigned long long)m->session, m->peer_name, (unsigned long long)m->epoch, m->calling, m->aborted);
    }
}

/* Lenders hold nothing that nobody has. */
static void check_lent(struct world *w, const struct world_node *n)
{
    struct kvf_core *core = n->sim->core;
    uint64_t cursor = 0;
    kvf_handle h = core->lend->index ? kvf_index_walk(core->lend->index, &cursor) : KVF_HANDLE_NONE;
    if (h != KVF_HANDLE_NONE) {
        struct kvf_key key = kvf_index_entry(core->lend->index, h)->key;
        world_violated(w, "node %s at rest: it still lends memory for %llx %llx", n->name, (unsigned long long)key.hi,
                       (unsigned long long)key.lo);
    }
    if (core->lent && kvf_arena_used(core->lent))
        world_violated(w, "node %s at rest: %llu bytes are lent to nobody", n->name,
                       (unsigned long long)kvf_arena_used(core->lent));
}

static void check_empty(struct world *w, struct world_node *n)
{
    struct kvf_core *core = n->sim->core;
    struct kvf_ssd_stats stats = {0};
    uint64_t orphans_bytes, staged = 0, cursor = 0;
    uint64_t orphans = kvf_persist_orphans(core, &orphans_bytes);
    if (core->ssd)
        kvf_ssd_stats(core->ssd, &stats);
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;)
        kvf_stage_drop(core, h);
    for (uint32_t i = 0; i < core->stages_max; i++)
        staged += core->stages[i].handle != KVF_HANDLE_NONE;
    if (kvf_arena_used(core->dram) || kvf_index_count(core->index) || core->entries_reserved || staged ||
        kvf_arena_used(core->staging) || core->n_sessions || core->reads_queued || core->n_parking || core->cold_bytes ||
        !kvf_spills_idle(core) || !kvf_blocks_idle(core) || core->stage_orphans)
        world_violated(w, "node %s at rest: dram %llu, entries %llu, reserved %llu, staged %llu in %llu bytes, sessions %llu",
                       n->name, (unsigned long long)kvf_arena_used(core->dram), (unsigned long long)kvf_index_count(core->index),
                       (unsigned long long)core->entries_reserved, (unsigned long long)staged,
                       (unsigned long long)kvf_arena_used(core->staging), (unsigned long long)core->n_sessions);
    check_lent(w, n);
    if (stats.used_bytes > orphans_bytes + orphans * 4096)
        world_violated(w, "node %s at rest: %llu bytes of the SSD are used, %llu orphans have %llu", n->name,
                       (unsigned long long)stats.used_bytes, (unsigned long long)orphans, (unsigned long long)orphans_bytes);
}

/* Every session that etcd names is at its home, unless it may have died with a node. */
static void check_directory(struct world *w)
{
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        const struct record *r = &w->records[i];
        if (!r->id || r->homeless)
            continue;
        if (check_home(w, r->id))
            world_violated(w, "session %llu was not dropped at rest", (unsigned long long)r->id);
        const struct kvf_placement *p = placed(w, i);
        if (p)
            world_violated(w, "session %llu: etcd says %s, epoch %llu, and nobody has it", (unsigned long long)r->id, p->home,
                           (unsigned long long)p->epoch);
        world_violated(w, "session %llu is nowhere", (unsigned long long)r->id);
    }
}

void check_rest(struct world *w)
{
    for (unsigned i = 0; i < w->n; i++) {
        kvf_core_check(w->nodes[i].sim->core);
        check_empty(w, &w->nodes[i]);
    }
    check_directory(w);
}
