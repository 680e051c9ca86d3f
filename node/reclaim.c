/* Lent memory that its owner wants back. Others may have at most `limit_bytes` of the lent part; when that is lowered below what
 * they have, the slots of dead borrowers are freed, and the others asked (RECLAIM), those who have most first, until enough is
 * promised. A borrower answers when he has moved a batch away. At the deadline what is still missing is taken without him: the
 * slots are free from that moment, he is told (REVOKED), and what he reads, puts or commits there meanwhile does not match. */
#include "node/dram.h"
#include "node/lend.h"
#include <assert.h>
#include <string.h>

#define LOOK_MAX 4096          /* slots looked at in one turn */
#define ASKS_PER_PEER 4
#define RETRY_NS (50 * KVF_MS) /* after a borrower said no, or nothing */
#define REVOKED_TIMEOUT_NS (5 * KVF_SEC)
#define LATE_NS (1 * KVF_SEC)  /* for the turns that taking by force takes */
#define REVOKED_MAX 8          /* borrowers that one turn takes from */

void kvf_reclaim_create(struct kvf_core *core)
{
    for (unsigned i = 0; i < KVF_ASKS_MAX; i++)
        core->lend->asks[i].core = core;
}

bool kvf_reclaim_busy(const struct kvf_core *core)
{
    return core->lend && core->lend->deadline_ns != 0;
}

void kvf_reclaim_limit(struct kvf_core *core, uint64_t deadline_ns)
{
    struct kvf_lend *lend = core->lend;
    uint64_t now = kvf_now(core->env);
    if (!lend || !lend->index)
        return;
    uint64_t before = lend->limit_bytes, claimed = lend->claim.limit_bytes;
    lend->limit_bytes = core->draining ? 0 : lend->ordered_bytes < claimed ? lend->ordered_bytes : claimed;
    assert(lend->limit_bytes <= kvf_arena_planned(core->lent));
    uint64_t stays = kvf_dram_capacity(core) / 8 * 7, used = kvf_dram_used(core);
    lend->claim.leaving_bytes = lend->limit_bytes > before && used > stays ? used - stays : 0;
    core->spill_stuck = false; /* what is not in use is ours at once */
    kvf_rises_room(core);
    kvf_core_changed(core);
    if (lend->others_bytes <= lend->limit_bytes && !lend->deadline_ns)
        return;
    if (!lend->deadline_ns) {
        lend->start_ns = now;
        lend->revoked = 0;
        kvf_log_info(&core->log, "lent memory is wanted back: others may keep %llu of %llu bytes",
                     (unsigned long long)lend->limit_bytes, (unsigned long long)lend->others_bytes);
    }
    /* Somebody may wait for an earlier end already. */
    deadline_ns = deadline_ns ? deadline_ns : 1;
    lend->deadline_ns = lend->deadline_ns && lend->deadline_ns < deadline_ns ? lend->deadline_ns : deadline_ns;
}

void kvf_reclaim_ease(struct kvf_core *core)
{
    uint64_t usual = kvf_deadline(kvf_now(core->env), core->settings.lend_reclaim_ns);
    kvf_reclaim_limit(core, kvf_reclaim_busy(core) ? core->lend->deadline_ns : usual);
}

enum kvf_status kvf_reclaim_start(struct kvf_core *core, uint64_t limit_bytes, uint64_t deadline_ns)
{
    struct kvf_lend *lend = core->lend;
    if (!lend || !lend->index)
        return KVF_ERR_UNSUPPORTED;
    uint64_t most = kvf_arena_planned(core->lent);
    lend->ordered_bytes = limit_bytes < most ? limit_bytes : most;
    kvf_reclaim_limit(core, deadline_ns);
    return KVF_OK;
}

enum kvf_status kvf_reclaim_wait(struct kvf_core *core, uint64_t limit_bytes, uint64_t within_ns, struct kvf_reclaim_stats *out)
{
    kvf_core_lock(core);
    uint64_t deadline = kvf_deadline(kvf_now(core->env), within_ns);
    enum kvf_status st = kvf_reclaim_start(core, limit_bytes, deadline);
    kvf_core_wake(core);
    while (st == KVF_OK && kvf_reclaim_busy(core))
        if (!kvf_core_wait(core, kvf_deadline(deadline, LATE_NS)))
            st = KVF_ERR_DEADLINE;
    kvf_reclaim_stats(core, out);
    kvf_core_unlock(core);
    return st;
}

/* ---------------------------------------------------------------- asking */

/* The slot that a place names, as long as it is this borrower's and he was asked for it; HANDLE_NONE: it has changed. */
static kvf_handle asked_slot(struct kvf_core *core, const struct kvf_ask *a, const struct kvf_place *place)
{
    kvf_handle h = kvf_index_find(core->lend->index, place->key);
    const struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->lend->index, h);
    bool same = e && e->peer == a->peer->number && e->state == KVF_LENT_ASKED && kvf_entry_location(e) == place->location;
    return same ? h : KVF_HANDLE_NONE;
}

static void ask_end(struct kvf_ask *a, const uint8_t *statuses)
{
    struct kvf_core *core = a->core;
    for (unsigned i = 0; i < a->n; i++) {
        kvf_handle h = asked_slot(core, a, &a->places[i]);
        if (h == KVF_HANDLE_NONE)
            continue;
        if (statuses && statuses[i] == 0) {
            kvf_count(&core->counters.lent_blocks_returned, 1);
            kvf_lend_slot_free(core, h);
        } else {
            kvf_lend_slot_state(core, kvf_index_entry(core->lend->index, h), KVF_LENT_WHOLE);
            a->peer->ask_retry_ns = kvf_deadline(kvf_now(core->env), RETRY_NS);
        }
    }
    a->busy = false;
}

static void ask_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_ask *a = arg;
    uint8_t statuses[KVF_BATCH_MAX];
    unsigned n = 0;
    struct kvf_reader r = kvf_reader_of(payload, bytes);
    bool good = status == KVF_OK && kvf_wire_statuses_read(&r, statuses, &n) && n == a->n;
    /* The peer's number may be another's by now: then its slots are not his, and none is found. */
    ask_end(a, good && a->peer->member.incarnation == a->incarnation ? statuses : NULL);
}

static void ask_send(struct kvf_ask *a)
{
    struct kvf_core *core = a->core;
    uint8_t payload[4 + 2 + KVF_BATCH_MAX * 24];
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    uint64_t now = kvf_now(core->env), deadline = core->lend->deadline_ns;
    kvf_write_u32(&w, (uint32_t)((deadline > now ? deadline - now : 0) / KVF_MS));
    kvf_wire_places(&w, a->places, a->n);
    struct iovec part = {.iov_base = payload, .iov_len = kvf_writer_used(&w)};
    /* A late answer is waited for, so that at the deadline it is known still what was asked for. */
    if (kvf_fabric_call(a->peer->peer, KVF_MSG_RECLAIM, &part, 1, kvf_deadline(deadline, KVF_SEC), ask_reply, a) == KVF_OK)
        kvf_count(&core->counters.lent_blocks_asked, a->n);
    else
        ask_end(a, NULL);
}

/* What every borrower may keep: those who have more give it, so that all of them have at most the limit. */
static uint64_t level_of(const struct kvf_core *core)
{
    uint64_t low = 0, high = core->lend->limit_bytes;
    while (low < high) {
        uint64_t middle = high - (high - low) / 2, sum = 0;
        for (unsigned i = 0; i < core->settings.fabric_peers_max; i++)
            sum += core->peers[i].lent_bytes < middle ? core->peers[i].lent_bytes : middle;
        if (sum <= core->lend->limit_bytes)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* The ask to this peer that this turn fills; NULL: it has enough to do. */
static struct kvf_ask *ask_of(struct kvf_core *core, struct kvf_node_peer *p, struct kvf_ask **open, unsigned *n_open)
{
    struct kvf_ask *found = NULL;
    unsigned at_peer = 0;
    for (unsigned i = 0; i < *n_open; i++)
        if (open[i]->peer == p && open[i]->n < KVF_BATCH_MAX)
            return open[i];
    for (unsigned i = 0; i < KVF_ASKS_MAX; i++) {
        struct kvf_ask *a = &core->lend->asks[i];
        at_peer += a->busy && a->peer == p;
        found = a->busy ? found : a;
    }
    if (!found || at_peer >= ASKS_PER_PEER)
        return NULL;
    found->busy = true;
    found->peer = p;
    found->incarnation = p->member.incarnation;
    found->n = 0;
    open[(*n_open)++] = found;
    return found;
}

/* true: asked for, or free already. */
static bool slot_want(struct kvf_core *core, kvf_handle h, uint64_t level, struct kvf_ask **open, unsigned *n_open)
{
    struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
    if (kvf_lend_is_dead(e)) {
        kvf_count(&core->counters.lent_blocks_expired, 1);
        kvf_lend_slot_free(core, h);
        return true;
    }
    if (e->peer == KVF_PEER_NONE || e->state != KVF_LENT_WHOLE)
        return false;
    struct kvf_node_peer *p = &core->peers[e->peer];
    if (!p->up || kvf_now(core->env) < p->ask_retry_ns || p->lent_bytes - p->asked_bytes <= level)
        return false;
    struct kvf_ask *a = ask_of(core, p, open, n_open);
    if (!a)
        return false;
    a->places[a->n++] = (struct kvf_place){.key = e->key, .location = kvf_entry_location(e)};
    kvf_lend_slot_state(core, e, KVF_LENT_ASKED);
    return true;
}

/* Asks for what is not promised yet. */
static unsigned ask(struct kvf_core *core)
{
    struct kvf_lend *lend = core->lend;
    struct kvf_ask *open[KVF_ASKS_MAX];
    unsigned n_open = 0, events = 0;
    uint64_t asked = 0, level = level_of(core);
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++)
        asked += core->peers[i].asked_bytes;
    for (unsigned looked = 0; looked < LOOK_MAX && lend->others_bytes > lend->limit_bytes + asked; looked++) {
        kvf_handle h = kvf_index_walk(lend->index, &lend->cursor);
        if (h == KVF_HANDLE_NONE) {
            lend->cursor = 0;
            break; /* none twice in one turn */
        }
        const struct kvf_entry *e = kvf_index_entry(lend->index, h);
        bool dead = kvf_lend_is_dead(e);
        uint32_t bytes = e->bytes;
        if (!slot_want(core, h, level, open, &n_open))
            continue;
        asked += dead ? 0 : bytes;
        events++;
    }
    for (unsigned i = 0; i < n_open; i++)
        ask_send(open[i]);
    return events;
}

/* ---------------------------------------------------------------- by force */

struct revoked {
    struct kvf_node_peer *peer;
    unsigned n;
    struct kvf_place places[KVF_BATCH_MAX];
};

static void revoked_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    /* Nothing to do: whoever did not hear of it finds other bytes there. */
}

static void revoked_send(struct kvf_core *core, struct revoked *r)
{
    uint8_t payload[2 + KVF_BATCH_MAX * 24];
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_places(&w, r->places, r->n);
    struct iovec part = {.iov_base = payload, .iov_len = kvf_writer_used(&w)};
    if (r->n && r->peer->up)
        kvf_fabric_call(r->peer->peer, KVF_MSG_REVOKED, &part, 1, kvf_deadline(kvf_now(core->env), REVOKED_TIMEOUT_NS),
                        revoked_reply, NULL);
    r->n = 0;
}

/* false: it stays in this turn. */
static bool slot_take(struct kvf_core *core, kvf_handle h, struct revoked *lists, unsigned *n_lists)
{
    struct kvf_lend *lend = core->lend;
    struct kvf_entry *e = kvf_index_entry(lend->index, h);
    if (e->peer == KVF_PEER_NONE || (lend->forcing == 1 && e->state == KVF_LENT_WHOLE && !kvf_lend_is_dead(e)))
        return false;
    struct revoked *r = NULL;
    if (!kvf_lend_is_dead(e) && e->state != KVF_LENT_RESERVED) {
        for (unsigned i = 0; i < *n_lists && !r; i++)
            r = lists[i].peer->number == e->peer ? &lists[i] : NULL;
        if (!r && *n_lists == REVOKED_MAX)
            return false;
        r = r ? r : &lists[(*n_lists)++];
        r->peer = &core->peers[e->peer];
        r->places[r->n++] = (struct kvf_place){.key = e->key, .location = kvf_entry_location(e)};
        lend->revoked++;
        kvf_count(&core->counters.lent_blocks_revoked, 1);
    }
    kvf_lend_slot_free(core, h);
    if (r && r->n == KVF_BATCH_MAX)
        revoked_send(core, r);
    return true;
}

/* Takes what was asked for and did not come; in a second round, anything. */
static void force(struct kvf_core *core)
{
    struct kvf_lend *lend = core->lend;
    struct revoked lists[REVOKED_MAX];
    unsigned n_lists = 0;
    memset(lists, 0, sizeof lists);
    if (!lend->forcing)
        lend->cursor = 0;
    lend->forcing = lend->forcing ? lend->forcing : 1;
    for (unsigned looked = 0; looked < LOOK_MAX && lend->others_bytes > lend->limit_bytes; looked++) {
        kvf_handle h = kvf_index_walk(lend->index, &lend->cursor);
        if (h == KVF_HANDLE_NONE) {
            lend->cursor = 0;
            lend->forcing = 2;
            continue;
        }
        slot_take(core, h, lists, &n_lists);
    }
    for (unsigned i = 0; i < n_lists; i++)
        revoked_send(core, &lists[i]);
}

static void end(struct kvf_core *core, uint64_t now)
{
    struct kvf_lend *lend = core->lend;
    kvf_latency_add(&core->latencies, KVF_LATENCY_RECLAIM, now - lend->start_ns);
    if (lend->revoked)
        kvf_log_warn(&core->log, "%llu blocks of borrowers were taken back by force: they were not moved in time",
                     (unsigned long long)lend->revoked);
    lend->deadline_ns = 0;
    lend->forcing = 0;
    kvf_rises_room(core);
    kvf_core_changed(core);
}

unsigned kvf_reclaim_poll(struct kvf_core *core)
{
    struct kvf_lend *lend = core->lend;
    if (!lend->deadline_ns && lend->others_bytes <= lend->limit_bytes)
        return 0;
    uint64_t now = kvf_now(core->env);
    unsigned events = 1;
    if (!lend->deadline_ns) /* what was ours, by a session that moved here, is a borrower's: it has moved on */
        kvf_reclaim_limit(core, kvf_deadline(now, core->settings.lend_reclaim_ns));
    if (lend->others_bytes > lend->limit_bytes && now >= lend->deadline_ns)
        force(core);
    else if (lend->others_bytes > lend->limit_bytes)
        events = ask(core);
    if (lend->others_bytes <= lend->limit_bytes)
        end(core, now);
    return events;
}

uint64_t kvf_reclaim_next_timer(const struct kvf_core *core)
{
    return kvf_reclaim_busy(core) ? core->lend->deadline_ns : UINT64_MAX;
}

void kvf_reclaim_stats(const struct kvf_core *core, struct kvf_reclaim_stats *out)
{
    const struct kvf_lend *lend = core->lend;
    *out = (struct kvf_reclaim_stats){0};
    if (!lend || !lend->index)
        return;
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++)
        out->asked_bytes += core->peers[i].asked_bytes;
    out->limit_bytes = lend->limit_bytes;
    out->others_bytes = lend->others_bytes;
    out->dead_bytes = lend->dead_bytes;
    out->own_bytes = core->lent_own_bytes;
    out->claimed_bytes = kvf_arena_planned(core->lent) - lend->claim.limit_bytes;
    out->wanted_bytes = lend->deadline_ns && lend->others_bytes > lend->limit_bytes ? lend->others_bytes - lend->limit_bytes : 0;
    out->revoked = lend->revoked;
}
