#include "node/drain.h"
#include "node/reclaim.h"

void kvf_drain_set(struct kvf_core *core, bool on, uint64_t within_ns)
{
    kvf_core_lock(core);
    if (core->draining != on)
        kvf_log_warn(&core->log, on ? "draining: nothing more is lent, no session comes in" : "draining has ended");
    core->draining = on;
    if (on)
        kvf_reclaim_limit(core, kvf_deadline(kvf_now(core->env), within_ns));
    else
        kvf_reclaim_ease(core);
    kvf_core_unlock(core);
    kvf_core_wake(core);
}

void kvf_drain_stats(const struct kvf_core *core, struct kvf_drain_stats *out)
{
    struct kvf_reclaim_stats lent;
    kvf_reclaim_stats(core, &lent);
    *out = (struct kvf_drain_stats){.draining = core->draining, .lent_bytes = lent.others_bytes};
    for (uint32_t b = 0; core->n_sessions > 0 && b < core->session_buckets; b++) {
        for (const struct kvf_sess *s = core->sessions[b]; s; s = s->next) {
            bool departed = s->state == KVF_SESS_DEPARTED, incoming = s->state == KVF_SESS_INCOMING;
            out->departed_sessions += departed;
            out->departed_blocks += departed ? s->departed_left : 0;
            out->incoming_sessions += incoming;
            out->home_sessions += !departed && !incoming;
        }
    }
    out->empty = core->draining && out->lent_bytes == 0 && out->departed_sessions == 0 && out->incoming_sessions == 0;
}
