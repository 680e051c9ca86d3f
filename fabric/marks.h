/* Marks: how one who reads a peer's memory in place finds out that it was written meanwhile. Counters in shared memory, one for
 * every 64 KiB of a region (and for what lies 4 GiB further), of which the owner of the region is the only writer:
 *
 *     even   nobody writes there          begin: +1, then the bytes are written
 *     odd    somebody does                end: the bytes are there, then +1
 *
 * A counter never falls. So if all counters of a range are even, and later are the same, no byte of the range was written between
 * the two looks: what was read between them, in any order and as often as one likes, were the same bytes. Counters are shared by
 * several slots, so they may also tell of a change that was none; never the other way round.
 *
 * Threads: begin and end one at a time; looks by anybody, in any process that has the table mapped. */
#ifndef KVF_FABRIC_MARKS_H
#define KVF_FABRIC_MARKS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define KVF_MARKS_N 65536u
#define KVF_MARKS_UNIT 65536u /* bytes of the region that one counter is for */

struct kvf_marks {
    _Atomic uint64_t counters[KVF_MARKS_N];
};

/* Around every write to bytes [offset, offset + bytes) of the region. Several may have begun, under the same counters too:
 * `writers`, [KVF_MARKS_N] of the owner's own and zeros at first, counts them. */
void kvf_marks_begin(struct kvf_marks *marks, uint32_t *writers, uint64_t offset, uint64_t bytes);
void kvf_marks_end(struct kvf_marks *marks, uint32_t *writers, uint64_t offset, uint64_t bytes);

/* Before the first read. *seen: what kvf_marks_same compares. False: they are being written now. */
bool kvf_marks_look(const struct kvf_marks *marks, uint64_t offset, uint64_t bytes, uint64_t *seen);
/* After the last one: whether nothing was written there since that look. */
bool kvf_marks_same(const struct kvf_marks *marks, uint64_t offset, uint64_t bytes, uint64_t seen);
#endif
