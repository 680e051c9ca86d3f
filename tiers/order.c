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

/* Demand is there, or was a moment ago and may be again. */
static bool demanded(const struct kvf_order *o, const struct kvf_order_waiting *w, uint64_t now)
{
    return any(o, w, KVF_PRIORITY_DEMAND) || (o->read_ns && now - o->read_ns < KVF_ORDER_BURST_NS);
}

/* Reads come in a row: writes keep out of their way. */
static bool burst(const struct kvf_order *o, const struct kvf_order_waiting *w, uint64_t now)
{
    return demanded(o, w, now) || any(o, w, KVF_PRIORITY_AHEAD);
}

/* Whether a piece is within what the class may have in this turn. */
static bool in_turn(const struct kvf_order *o, enum kvf_priority p, uint32_t piece, uint64_t most, uint64_t now)
{
    return now - o->turn_ns[p] >= KVF_ORDER_TURN_NS || o->turn_bytes[p] + piece <= most;
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
    const struct kvf_order_waiting *first = &w[KVF_PRIORITY_AHEAD];
    if (!demanded(o, w, now))
        return beside(o, KVF_PRIORITY_AHEAD, least(first->bytes, KVF_ORDER_PIECE_BYTES), KVF_ORDER_AHEAD_BYTES);
    bool aged = now - first->since_ns >= KVF_ORDER_AHEAD_TURN_NS;
    if (w[KVF_PRIORITY_DEMAND].bytes && !(aged && now - o->given_ns[KVF_PRIORITY_AHEAD] >= KVF_ORDER_AHEAD_TURN_NS))
        return 0;
    return beside(o, KVF_PRIORITY_AHEAD, least(first->bytes, KVF_ORDER_TURN_BYTES), 2 * KVF_ORDER_TURN_BYTES);
}

static uint32_t write_back(const struct kvf_order *o, const struct kvf_order_waiting *w, uint64_t now)
{
    const struct kvf_order_waiting *first = &w[KVF_PRIORITY_WRITE_BACK];
    if (!burst(o, w, now))
        return beside(o, KVF_PRIORITY_WRITE_BACK, least(first->bytes, KVF_ORDER_PIECE_BYTES), KVF_ORDER_WRITE_BYTES);
    uint32_t piece = beside(o, KVF_PRIORITY_WRITE_BACK, least(first->bytes, KVF_ORDER_TURN_BYTES), KVF_ORDER_TURN_BYTES);
    bool turn = now - first->since_ns >= KVF_ORDER_TURN_NS && in_turn(o, KVF_PRIORITY_WRITE_BACK, piece, KVF_ORDER_TURN_BYTES, now);
    return o->hurry || turn ? piece : 0;
}

static uint32_t scrub(const struct kvf_order *o, const struct kvf_order_waiting *w, uint64_t now)
{
    uint32_t bytes = w[KVF_PRIORITY_SCRUB].bytes;
    bool aged = now - w[KVF_PRIORITY_SCRUB].since_ns >= KVF_ORDER_TURN_NS;
    bool others = w[KVF_PRIORITY_DEMAND].bytes || w[KVF_PRIORITY_AHEAD].bytes || w[KVF_PRIORITY_WRITE_BACK].bytes;
    if (o->in_flight[KVF_PRIORITY_SCRUB] || (others && !aged))
        return 0;
    if (!burst(o, w, now) && !any(o, w, KVF_PRIORITY_WRITE_BACK))
        return least(bytes, KVF_ORDER_TURN_BYTES);
    bytes = least(bytes, KVF_ORDER_SCRUB_BYTES);
    return in_turn(o, KVF_PRIORITY_SCRUB, bytes, KVF_ORDER_SCRUB_BYTES, now) ? bytes : 0;
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
    bool new_turn = now - o->turn_ns[p] >= KVF_ORDER_TURN_NS;
    o->turn_ns[p] = new_turn ? now : o->turn_ns[p];
    o->turn_bytes[p] = new_turn ? bytes : o->turn_bytes[p] + bytes;
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
