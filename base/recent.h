/* How long things took lately: counts in buckets of half powers of two, halved whenever 256 have come together, so that what is
 * long ago fades. 98 bytes, for one per peer. One thread. */
#ifndef KVF_BASE_RECENT_H
#define KVF_BASE_RECENT_H

#include <stdint.h>

#define KVF_RECENT_BUCKETS 48 /* from a microsecond to 16 s */

struct kvf_recent {
    uint16_t total;
    uint16_t buckets[KVF_RECENT_BUCKETS];
};

void kvf_recent_add(struct kvf_recent *recent, uint64_t ns);
/* The upper bound of the bucket that holds it, 0 to 100; 0 when there is nothing. */
uint64_t kvf_recent_percentile(const struct kvf_recent *recent, unsigned percentile);
#endif
