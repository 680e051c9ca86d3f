/* The deadlines of requests that have not ended: a heap of them, the earliest first. What comes and goes in the order of time, as
 * most requests do, moves few of its entries. */
#include "fabric/internal.h"

static void put(struct kvf_fabric *fabric, unsigned at, struct kvf_deadline entry)
{
    fabric->deadlines[at] = entry;
    entry.slot->deadline_at = at + 1;
}

/* The entry goes towards the front as long as those before it are later. Where it ended. */
static unsigned rise(struct kvf_fabric *fabric, unsigned at, struct kvf_deadline entry)
{
    while (at > 0 && fabric->deadlines[(at - 1) / 2].ns > entry.ns) {
        put(fabric, at, fabric->deadlines[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    put(fabric, at, entry);
    return at;
}

static void sink(struct kvf_fabric *fabric, unsigned at, struct kvf_deadline entry)
{
    for (unsigned next; (next = 2 * at + 1) < fabric->deadlines_n; at = next) {
        if (next + 1 < fabric->deadlines_n && fabric->deadlines[next + 1].ns < fabric->deadlines[next].ns)
            next++;
        if (fabric->deadlines[next].ns >= entry.ns)
            break;
        put(fabric, at, fabric->deadlines[next]);
    }
    put(fabric, at, entry);
}

void kvf_deadlines_add(struct kvf_request_slot *slot)
{
    struct kvf_fabric *fabric = slot->fabric;
    assert(slot->deadline_at == 0 && fabric->deadlines_n < fabric->config.requests_max);
    if (slot->deadline_ns < UINT64_MAX) /* else it has none */
        rise(fabric, fabric->deadlines_n++, (struct kvf_deadline){.ns = slot->deadline_ns, .slot = slot});
}

void kvf_deadlines_remove(struct kvf_request_slot *slot)
{
    struct kvf_fabric *fabric = slot->fabric;
    if (slot->deadline_at == 0)
        return;
    unsigned at = slot->deadline_at - 1;
    assert(at < fabric->deadlines_n && fabric->deadlines[at].slot == slot);
    slot->deadline_at = 0;
    struct kvf_deadline last = fabric->deadlines[--fabric->deadlines_n];
    if (last.slot == slot)
        return;
    if (rise(fabric, at, last) == at) /* its place is not among those it was behind before */
        sink(fabric, at, last);
}

uint64_t kvf_deadlines_next(const struct kvf_fabric *fabric)
{
    return fabric->deadlines_n > 0 ? fabric->deadlines[0].ns : UINT64_MAX;
}
