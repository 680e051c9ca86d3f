/* Recent durations (recent.h). Bucket 2k holds what is below 1.5 x 2^(10+k) ns, bucket 2k + 1 what is below 2^(11+k). */
#include "base/recent.h"

#include <assert.h>

#define FIRST_BIT 10
#define TOTAL_MAX 256

static unsigned bucket_of(uint64_t ns)
{
    if (ns < 1ull << FIRST_BIT)
        return 0;
    unsigned bit = 63 - (unsigned)__builtin_clzll(ns), bucket = 2 * (bit - FIRST_BIT) + (ns >> (bit - 1) & 1);
    return bucket < KVF_RECENT_BUCKETS ? bucket : KVF_RECENT_BUCKETS - 1;
}

static uint64_t bound_of(unsigned bucket)
{
    uint64_t power = 1ull << (FIRST_BIT + bucket / 2);
    return bucket % 2 ? 2 * power : power + power / 2;
}

void kvf_recent_add(struct kvf_recent *recent, uint64_t ns)
{
    if (recent->total == TOTAL_MAX) {
        recent->total = 0;
        for (unsigned i = 0; i < KVF_RECENT_BUCKETS; i++) {
            recent->buckets[i] /= 2;
            recent->total = (uint16_t)(recent->total + recent->buckets[i]);
        }
    }
    assert(recent->total < TOTAL_MAX);
    recent->buckets[bucket_of(ns)]++;
    recent->total++;
}

uint64_t kvf_recent_percentile(const struct kvf_recent *recent, unsigned percentile)
{
    unsigned below = 0, wanted = (recent->total * percentile + 99) / 100;
    assert(percentile <= 100);
    wanted = wanted ? wanted : 1;
    for (unsigned i = 0; recent->total && i < KVF_RECENT_BUCKETS; i++) {
        below += recent->buckets[i];
        if (below >= wanted)
            return bound_of(i);
    }
    return 0;
}
