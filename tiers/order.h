/* Who goes to the disk next. A pure object: it is told what waits, what was handed over and what ended, and says which class
 * may hand over how many bytes now. The order is that of enum kvf_priority:
 *
 *   demand      at once, while fewer than `depth` requests are in flight
 *   ahead       when no demand waits; at most half of the depth and AHEAD_BYTES at a time
 *   write-back  quiet: pieces of at most PIECE_BYTES, half of the depth and WRITE_BYTES at a time.
 *               while reads wait, are in flight or ended less than BURST_NS ago: of what has waited TURN_NS, TURN_BYTES in
 *               every TURN_NS; or, when somebody waits for the room that writes make (hurry), TURN_BYTES at a time
 *   scrub       when nothing else waits or is in flight, one piece at a time; else one every SCRUB_TURN_NS
 *
 * So a demand read never finds more than AHEAD_BYTES + TURN_BYTES + one scrub piece ahead of it at the disk while reads come
 * in a row, and WRITE_BYTES more when it is the first after a pause; and no class starves. */
#ifndef KVF_TIERS_ORDER_H
#define KVF_TIERS_ORDER_H

#include "base/env.h"
#include "base/priority.h"

#include <stdbool.h>

#define KVF_ORDER_AHEAD_BYTES (2u << 20)
#define KVF_ORDER_WRITE_BYTES (4u << 20)
#define KVF_ORDER_PIECE_BYTES (1u << 20)
#define KVF_ORDER_TURN_BYTES (256u << 10)
#define KVF_ORDER_TURN_NS (4 * KVF_MS)
#define KVF_ORDER_AHEAD_TURN_NS (20 * KVF_MS)
#define KVF_ORDER_SCRUB_TURN_NS (250 * KVF_MS)
#define KVF_ORDER_BURST_NS (2 * KVF_MS)

struct kvf_order {
    unsigned depth;
    bool hurry;                            /* somebody waits for the room that writes make; the caller's to set */
    unsigned in_flight[KVF_PRIORITY_COUNT];
    uint64_t bytes[KVF_PRIORITY_COUNT];    /* in flight */
    uint64_t given_ns[KVF_PRIORITY_COUNT]; /* when a class was last given anything */
    uint64_t read_ns;                      /* when a demand read was last seen */
    uint64_t turn_ns, turn_bytes;          /* since when, and how much: the writes of this turn */
};

/* The first that waits of a class; bytes 0: none waits. */
struct kvf_order_waiting {
    uint32_t bytes; /* not handed over yet */
    uint64_t since_ns;
};

void kvf_order_init(struct kvf_order *order, unsigned depth);
/* The class that may hand its first over now, and how much of it at most (*bytes, a multiple of 4096). false: none now. */
bool kvf_order_next(const struct kvf_order *order, const struct kvf_order_waiting waiting[KVF_PRIORITY_COUNT], uint64_t now_ns,
                    enum kvf_priority *priority, uint32_t *bytes);
void kvf_order_given(struct kvf_order *order, enum kvf_priority priority, uint32_t bytes, uint64_t now_ns);
void kvf_order_ended(struct kvf_order *order, enum kvf_priority priority, uint32_t bytes, uint64_t now_ns);
unsigned kvf_order_in_flight(const struct kvf_order *order); /* of all classes */
#endif
