/* The order of the disk's requests: order.h has the rules. */
#include "tiers/order.h"

#include <assert.h>

void kvf_order_init(struct kvf_order *o, unsigned depth)
{
    assert(depth > 0);
    *o = (struct kvf_order){.depth = depth};
}

unsigned kvf_order_in_flight(const struct kvf_order *o)
{
    unsigned n = 0;
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
        n += o->in_flight[p];
    return n;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static bool any(const struct kvf_order *o, const struct kvf_order_waiting *w, enum kvf_priority p)
{
    return w[p].bytes || o->in_flight[p];
}

/* Reads come in a row: writes keep out of their way. */
static bool burst(const struct kvf_order *o, const struct kvf_order_waiting *w, uint64_t now)
{
    return any(o, w, KVF_PRIORITY_DEMAND) || any(o, w, KVF_PRIORITY_AHEAD) ||
           (o->read_ns && now - o->read_ns < KVF_ORDER_BURST_NS);
}

/* Has waited for its turn, and the last one is as long ago. */
static bool aged(const struct kvf_order *o, const struct kvf_order_waiting *w, enum kvf_priority p, uint64_t turn_ns, uint64_t now)
{
    return now - w[p].since_ns >= turn_ns && now - o->given_ns[p] >= turn_ns;
}

/* A piece of the class beside what of it is in flight; one may always go. */
static uint32_t beside(const struct kvf_order *o, enum kvf_priority p, uint32_t bytes, uint64_t most)
{
    if (o->in_flight[p] && (o->in_flight[p] >= (o->depth + 1) / 2 || o->bytes[p] + bytes > most))
        return 0;
    return bytes;
}

static uint32_t ahead(const struct kvf_order *o, const struct kvf_order_waiting *w, uint64_t now)
{
    uint32_t piece = least(w[KVF_PRIORITY_AHEAD].bytes, KVF_ORDER_PIECE_BYTES);
    if (w[KVF_PRIORITY_DEMAND].bytes && !aged(o, w, KVF_PRIORITY_AHEAD, KVF_ORDER_AHEAD_TURN_NS, now))
        return 0;
    return beside(o, KVF_PRIORITY_AHEAD, piece, KVF_ORDER_AHEAD_BYTES);
}

static uint32_t write_back(const struct kvf_order *o, const struct kvf_order_waiting *w, uint64_t now)
{
    const struct kvf_order_waiting *first = &w[KVF_PRIORITY_WRITE_BACK];
    if (!burst(o, w, now))
        return beside(o, KVF_PRIORITY_WRITE_BACK, least(first->bytes, KVF_ORDER_PIECE_BYTES), KVF_ORDER_WRITE_BYTES);
    uint32_t piece = least(first->bytes, KVF_ORDER_TURN_BYTES);
    if (o->in_flight[KVF_PRIORITY_WRITE_BACK] && o->bytes[KVF_PRIORITY_WRITE_BACK] + piece > KVF_ORDER_TURN_BYTES)
        return 0;
    bool fits = now - o->turn_ns >= KVF_ORDER_TURN_NS || o->turn_bytes + piece <= KVF_ORDER_TURN_BYTES;
    return o->hurry || (fits && now - first->since_ns >= KVF_ORDER_TURN_NS) ? piece : 0;
}

static uint32_t scrub(const struct kvf_order *o, const struct kvf_order_waiting *w, uint64_t now)
{
    if (o->in_flight[KVF_PRIORITY_SCRUB])
        return 0;
    bool quiet = !burst(o, w, now) && !any(o, w, KVF_PRIORITY_WRITE_BACK);
    bool turn = quiet || aged(o, w, KVF_PRIORITY_SCRUB, KVF_ORDER_SCRUB_TURN_NS, now);
    return turn ? least(w[KVF_PRIORITY_SCRUB].bytes, KVF_ORDER_TURN_BYTES) : 0;
}

bool kvf_order_next(const struct kvf_order *o, const struct kvf_order_waiting w[KVF_PRIORITY_COUNT], uint64_t now,
                    enum kvf_priority *priority, uint32_t *bytes)
{
    uint32_t may[KVF_PRIORITY_COUNT] = {0};
    if (kvf_order_in_flight(o) >= o->depth)
        return false;
    may[KVF_PRIORITY_DEMAND] = w[KVF_PRIORITY_DEMAND].bytes;
    if (w[KVF_PRIORITY_AHEAD].bytes)
        may[KVF_PRIORITY_AHEAD] = ahead(o, w, now);
    if (w[KVF_PRIORITY_WRITE_BACK].bytes)
        may[KVF_PRIORITY_WRITE_BACK] = write_back(o, w, now);
    if (w[KVF_PRIORITY_SCRUB].bytes)
        may[KVF_PRIORITY_SCRUB] = scrub(o, w, now);
    /* A class that may go although demand waits has its turn, before it: demand that always waits would take every place. */
    int first = -1;
    for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
        if (may[p] && first <= KVF_PRIORITY_DEMAND)
            first = p;
    if (first < 0)
        return false;
    *priority = (enum kvf_priority)first;
    *bytes = may[first];
    return true;
}

void kvf_order_given(struct kvf_order *o, enum kvf_priority p, uint32_t bytes, uint64_t now)
{
    assert(p < KVF_PRIORITY_COUNT && bytes > 0);
    o->in_flight[p]++;
    o->bytes[p] += bytes;
    o->given_ns[p] = now;
    if (p == KVF_PRIORITY_WRITE_BACK) {
        bool new_turn = now - o->turn_ns >= KVF_ORDER_TURN_NS;
        o->turn_ns = new_turn ? now : o->turn_ns;
        o->turn_bytes = new_turn ? bytes : o->turn_bytes + bytes;
    }
    if (p == KVF_PRIORITY_DEMAND)
        o->read_ns = now;
}

void kvf_order_ended(struct kvf_order *o, enum kvf_priority p, uint32_t bytes, uint64_t now)
{
    assert(p < KVF_PRIORITY_COUNT && o->in_flight[p] > 0 && o->bytes[p] >= bytes);
    o->in_flight[p]--;
    o->bytes[p] -= bytes;
    if (p == KVF_PRIORITY_DEMAND)
        o->read_ns = now;
}
