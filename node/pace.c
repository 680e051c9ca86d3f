/* How fast peers answer, and which of them are slow.
 *
 * What is measured: reads (one message of at most 256 KiB, or what one READ brings) and the RESERVE that begins a spill, from
 * asking to the answer, waiting on our side for room in the fabric included. A request that has no answer yet counts with its age,
 * so that a peer that hangs is known before anything of it has ended.
 *
 * A peer is slow when its typical request takes more than a floor and much more than that of the fastest other one, or, with none
 * to compare with, more than ALONE. It is avoided then, so it would stay slow for ever: after a rest it is judged anew. */
#include "node/internal.h"
#include <assert.h>
#include <string.h>

#define LOOK_NS (10 * KVF_MS)
#define SAMPLES_MIN 8
#define FLOOR_NS (20 * KVF_MS)
#define TIMES 8
#define ALONE_NS (100 * KVF_MS)
#define REST_NS (5 * KVF_SEC)
#define LATE_MIN_NS (1 * KVF_MS)
#define LATE_UNKNOWN_NS (20 * KVF_MS) /* of a peer of whom too little is known */

void kvf_pace_add(struct kvf_node_peer *p, uint64_t ns)
{
    kvf_recent_add(&p->pace.recent, ns);
}

void kvf_pace_reset(struct kvf_node_peer *p)
{
    p->pace = (struct kvf_pace){0};
}

uint64_t kvf_pace_late_ns(const struct kvf_node_peer *p)
{
    if (p->pace.recent.total < SAMPLES_MIN)
        return LATE_UNKNOWN_NS;
    uint64_t late = kvf_recent_percentile(&p->pace.recent, 95);
    return late < LATE_MIN_NS ? LATE_MIN_NS : late;
}

/* The fastest other peer's typical request; 0: there is none to compare with. */
static uint64_t fastest_but(const struct kvf_core *core, const struct kvf_node_peer *but)
{
    uint64_t best = 0;
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++) {
        const struct kvf_node_peer *p = &core->peers[i];
        if (p == but || !p->up || p->pace.recent.total < SAMPLES_MIN)
            continue;
        uint64_t typical = kvf_recent_percentile(&p->pace.recent, 50);
        best = best == 0 || typical < best ? typical : best;
    }
    return best;
}

static bool judged_slow(struct kvf_core *core, const struct kvf_node_peer *p, uint64_t now)
{
    uint64_t typical = p->pace.recent.total < SAMPLES_MIN ? 0 : kvf_recent_percentile(&p->pace.recent, 50);
    uint64_t reads = kvf_reads_asked_ns(core, p->number), spills = kvf_spills_asked_ns(core, p);
    uint64_t oldest = reads < spills ? reads : spills, age = now > oldest ? now - oldest : 0;
    uint64_t takes = typical > age ? typical : age;
    if (takes <= FLOOR_NS)
        return false;
    uint64_t best = fastest_but(core, p), limit = best ? TIMES * best : ALONE_NS;
    return takes > (limit > FLOOR_NS ? limit : FLOOR_NS);
}

void kvf_pace_poll(struct kvf_core *core, uint64_t now)
{
    if (now < core->pace_look_ns)
        return;
    core->pace_look_ns = now + LOOK_NS;
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++) {
        struct kvf_node_peer *p = &core->peers[i];
        if (!p->up)
            continue;
        if (p->pace.slow && now - p->pace.slow_ns >= REST_NS)
            kvf_pace_reset(p);
        if (p->pace.slow || !judged_slow(core, p, now))
            continue;
        p->pace.slow = true;
        p->pace.slow_ns = now;
        kvf_count(&core->counters.peers_slow, 1);
        kvf_log_info(&core->log, "node %s is slow: it gets no blocks, and what has another copy is read there", p->member.name);
    }
}
