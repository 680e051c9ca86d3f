/* When lent memory comes back by itself, and when others may have it again (claim.h).
 *
 * Churn is what leaves DRAM for want of room and what is read below it: of blocks that are wanted, that is what a larger DRAM would
 * spare. What leaves for another reason (its session parks or has moved away, others may have memory again) is none. While DRAM is
 * full, and
 *
 *     churn of a window  >  lend.reclaim_above % of dram.bytes      others' limit goes down: by the churn, at least by a step
 *     ... < a quarter of that, and so for lend.return_after         it goes up again by a step
 *
 * A return that is followed by another claim was one too early: the next one waits twice as long, at most 16 times. */
#include "node/claim.h"
#include "node/dram.h"
#include "node/lend.h"
#include <assert.h>

#define WINDOW_NS (10 * KVF_SEC)
#define STEPS 8       /* of the lent part, from all to nothing */
#define WAIT_MAX 16   /* times lend.return_after */

void kvf_claim_create(struct kvf_core *core)
{
    struct kvf_claim *c = &core->lend->claim;
    c->limit_bytes = kvf_arena_planned(core->lent);
    c->window_ns = kvf_now(core->env);
    c->wait_ns = core->settings.lend_return_ns;
}

static bool is_on(const struct kvf_core *core)
{
    return core->lent && core->lend && core->settings.lend_reclaim_above > 0;
}

static uint64_t threshold(const struct kvf_core *core)
{
    return core->settings.dram_bytes / 100 * core->settings.lend_reclaim_above;
}

void kvf_claim_left(struct kvf_core *core, const struct kvf_entry *e)
{
    const struct kvf_sess *s = is_on(core) ? kvf_block_session(core, e) : NULL;
    if (!is_on(core) || (e->flags & KVF_FLAG_DEPARTED) || (s && s->parking))
        return;
    struct kvf_claim *c = &core->lend->claim;
    uint64_t expected = e->bytes < c->leaving_bytes ? e->bytes : c->leaving_bytes;
    c->leaving_bytes -= expected;
    c->churn_bytes += e->bytes - expected;
}

void kvf_claim_read(struct kvf_core *core, const struct kvf_entry *e, uint64_t bytes)
{
    if (is_on(core) && e->state == KVF_BLOCK_READY && !(e->flags & KVF_FLAG_DEPARTED))
        core->lend->claim.churn_bytes += bytes;
}

bool kvf_claim_waits(const struct kvf_core *core)
{
    uint64_t soon = kvf_deadline(kvf_now(core->env), core->settings.lend_reclaim_ns);
    return is_on(core) && kvf_reclaim_busy(core) && core->lend->deadline_ns <= soon;
}

/* 10 s, or lend.return_after, for nothing is given back in the middle of one. */
static uint64_t window(const struct kvf_core *core)
{
    return core->settings.lend_return_ns < WINDOW_NS ? core->settings.lend_return_ns : WINDOW_NS;
}

static uint64_t step_of(const struct kvf_core *core)
{
    uint64_t step = kvf_arena_planned(core->lent) / STEPS;
    return step < core->settings.block_bytes_max ? core->settings.block_bytes_max : step;
}

/* Others may have `bytes` less. false: they have no more than lend.min. */
static bool claim(struct kvf_core *core, uint64_t bytes, uint64_t now)
{
    struct kvf_claim *c = &core->lend->claim;
    uint64_t least = core->settings.lend_min_bytes;
    if (c->limit_bytes <= least)
        return false;
    bytes = bytes < step_of(core) ? step_of(core) : bytes;
    c->limit_bytes = c->limit_bytes - least < bytes ? least : c->limit_bytes - bytes;
    bool too_early = c->returned_ns && now < kvf_deadline(c->returned_ns, c->wait_ns);
    if (too_early && c->wait_ns < WAIT_MAX * core->settings.lend_return_ns)
        c->wait_ns *= 2;
    c->returned_ns = 0;
    c->calm_ns = now;
    kvf_count(&core->counters.lend_claims, 1);
    kvf_log_info(&core->log, "own DRAM is short: others may have %llu MiB of %llu lent MiB",
                 (unsigned long long)(c->limit_bytes >> 20), (unsigned long long)(kvf_arena_planned(core->lent) >> 20));
    kvf_reclaim_limit(core, kvf_deadline(now, core->settings.lend_reclaim_ns));
    return true;
}

bool kvf_claim_urge(struct kvf_core *core)
{
    return kvf_reclaim_busy(core) ? kvf_claim_waits(core) : is_on(core) && claim(core, 0, kvf_now(core->env));
}

/* Others may have a step more. */
static void give_back(struct kvf_core *core, uint64_t now)
{
    struct kvf_claim *c = &core->lend->claim;
    uint64_t all = kvf_arena_planned(core->lent);
    assert(c->limit_bytes < all);
    if (c->returned_ns) /* the one before did no harm */
        c->wait_ns = core->settings.lend_return_ns;
    c->limit_bytes = all - c->limit_bytes < step_of(core) ? all : c->limit_bytes + step_of(core);
    c->returned_ns = c->calm_ns = now;
    kvf_count(&core->counters.lend_returns, 1);
    kvf_log_info(&core->log, "own DRAM suffices: others may have %llu MiB of %llu lent MiB again",
                 (unsigned long long)(c->limit_bytes >> 20), (unsigned long long)(all >> 20));
    kvf_reclaim_ease(core);
}

unsigned kvf_claim_poll(struct kvf_core *core)
{
    if (!core->lent)
        return 0;
    unsigned moved = kvf_dram_overdrawn(core) > 0 ? kvf_dram_vacate(core) : 0;
    if (!is_on(core))
        return moved;
    struct kvf_claim *c = &core->lend->claim;
    uint64_t now = kvf_now(core->env), most = threshold(core);
    bool full = kvf_dram_used(core) >= kvf_dram_capacity(core) / 4 * 3, ended = now >= kvf_deadline(c->window_ns, window(core));
    if (c->churn_bytes > most && full && !kvf_reclaim_busy(core)) {
        claim(core, c->churn_bytes, now);
        ended = true;
    }
    if (!ended)
        return moved;
    if (full && c->churn_bytes > most / 4)
        c->calm_ns = now;
    else if (c->limit_bytes < kvf_arena_planned(core->lent) && now >= kvf_deadline(c->calm_ns, c->wait_ns))
        give_back(core, now);
    c->churn_bytes = 0;
    c->window_ns = now;
    return moved;
}

uint64_t kvf_claim_next_timer(const struct kvf_core *core, uint64_t now_ns)
{
    if (!core->lent)
        return UINT64_MAX;
    return kvf_dram_overdrawn(core) > 0 ? now_ns + KVF_MS : UINT64_MAX; /* windows end when the reactor wakes anyhow */
}
