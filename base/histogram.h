/* Latency histogram: log-linear buckets (16 per power of two, so values within 6.25 %), fixed memory, mergeable.
 * add may be called from any thread; the rest sees a recent state. */
#ifndef KVF_BASE_HISTOGRAM_H
#define KVF_BASE_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define KVF_HISTOGRAM_BUCKETS (61 * 16)

struct kvf_histogram {
    _Atomic uint64_t count, sum, max;
    _Atomic uint64_t buckets[KVF_HISTOGRAM_BUCKETS];
};

void kvf_histogram_add(struct kvf_histogram *h, uint64_t value);
void kvf_histogram_merge(struct kvf_histogram *into, const struct kvf_histogram *from);
/* percentile 0..100; the upper bound of the bucket that holds it, at most max; 0 when empty. */
uint64_t kvf_histogram_percentile(const struct kvf_histogram *h, double percentile);
/* How many values were at most `value`: exact for 2^n - 1, else of the buckets that end there or below. */
uint64_t kvf_histogram_upto(const struct kvf_histogram *h, uint64_t value);
#endif
