/* Who goes to the disk next. A pure object: it is told what waits, what was handed over and what ended, and says which class
 * may hand over how many bytes now. The order is that of enum kvf_priority:
 *
 *   demand      at once, while fewer than `depth` requests are in flight
 *   ahead       when no demand waits (or once in AHEAD_TURN_NS); pieces of at most PIECE_BYTES, half of the depth and
 *               AHEAD_BYTES at a time; while demand is or was there less than BURST_NS ago: pieces of TURN_BYTES, two at a time
 *   write-back  quiet: pieces of at most PIECE_BYTES, half of the depth and WRITE_BYTES at a time.
 *               while reads wait, are in flight or ended less than BURST_NS ago: of what has waited TURN_NS, TURN_BYTES in
 *               every TURN_NS; or, when somebody waits for the room that writes make (hurry), TURN_BYTES at a time
 *   scrub       one piece at a time: quiet, when nothing else waits or is in flight; else SCRUB_BYTES in every TURN_NS, once it
 *               has waited TURN_NS if others wait
 *
 * So a demand read finds at most three times TURN_BYTES and one piece of the scrub before it at the disk while demand comes in a
 * row, AHEAD_BYTES or WRITE_BYTES when it is the first after a pause; and no class starves. */
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
#define KVF_ORDER_SCRUB_BYTES (64u << 10)
#define KVF_ORDER_BURST_NS (2 * KVF_MS)

struct kvf_order {
    unsigned depth;
    bool hurry;                            /* somebody waits for the room that writes make; the caller's to set */
    unsigned in_flight[KVF_PRIORITY_COUNT];
    uint64_t bytes[KVF_PRIORITY_COUNT];    /* in flight */
    uint64_t given_ns[KVF_PRIORITY_COUNT]; /* when a class was last given anything */
    uint64_t read_ns;                      /* when a demand read was last seen */
    uint64_t turn_ns[KVF_PRIORITY_COUNT], turn_bytes[KVF_PRIORITY_COUNT]; /* since when, and how much: given in this turn */
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
