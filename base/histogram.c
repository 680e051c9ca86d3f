/* Log-linear histogram. Values below 16 have a bucket each; above, every power of two is cut into 16 equal parts, so
 * bucket (e - 3) * 16 + s holds the values whose top bit is e and whose next four bits are s. */
#include "base/histogram.h"

#include <assert.h>
#include <math.h>

#define PARTS 16u

static unsigned bucket_of(uint64_t value)
{
    if (value < PARTS)
        return (unsigned)value;
    unsigned top = 63u - (unsigned)__builtin_clzll(value);
    unsigned index = (top - 3) * PARTS + (unsigned)((value >> (top - 4)) & (PARTS - 1));
    assert(index < KVF_HISTOGRAM_BUCKETS);
    return index;
}

/* The largest value of a bucket. For the last one the shift leaves 2^64, which wraps to 0 and so gives UINT64_MAX. */
static uint64_t bucket_last(unsigned index)
{
    assert(index < KVF_HISTOGRAM_BUCKETS);
    if (index < PARTS)
        return index;
    unsigned top = index / PARTS + 3;
    return ((uint64_t)(PARTS + index % PARTS + 1) << (top - 4)) - 1;
}

static uint64_t get(const _Atomic uint64_t *from)
{
    return atomic_load_explicit(from, memory_order_relaxed);
}

static void add(_Atomic uint64_t *to, uint64_t n)
{
    atomic_fetch_add_explicit(to, n, memory_order_relaxed);
}

static void raise_max(_Atomic uint64_t *max, uint64_t value)
{
    uint64_t seen = get(max);
    while (seen < value && !atomic_compare_exchange_weak_explicit(max, &seen, value, memory_order_relaxed, memory_order_relaxed))
        ;
}

void kvf_histogram_add(struct kvf_histogram *h, uint64_t value)
{
    add(&h->buckets[bucket_of(value)], 1);
    add(&h->count, 1);
    add(&h->sum, value);
    raise_max(&h->max, value);
}

void kvf_histogram_merge(struct kvf_histogram *into, const struct kvf_histogram *from)
{
    assert(into != from);
    for (unsigned i = 0; i < KVF_HISTOGRAM_BUCKETS; i++) {
        uint64_t n = get(&from->buckets[i]);
        if (n)
            add(&into->buckets[i], n);
    }
    add(&into->count, get(&from->count));
    add(&into->sum, get(&from->sum));
    raise_max(&into->max, get(&from->max));
}

uint64_t kvf_histogram_percentile(const struct kvf_histogram *h, double percentile)
{
    /* The total comes from the buckets: `count` may be a moment ahead of or behind them. */
    uint64_t total = 0, max = get(&h->max), passed = 0;
    for (unsigned i = 0; i < KVF_HISTOGRAM_BUCKETS; i++)
        total += get(&h->buckets[i]);
    if (!total)
        return 0;
    double share = percentile >= 0 ? fmin(percentile, 100) / 100 : 0;
    uint64_t rank = (uint64_t)ceil(share * (double)total);
    if (rank < 1)
        rank = 1;
    for (unsigned i = 0; i < KVF_HISTOGRAM_BUCKETS; i++) {
        passed += get(&h->buckets[i]);
        if (passed >= rank) {
            uint64_t last = bucket_last(i);
            return last < max ? last : max;
        }
    }
    return max;
}

uint64_t kvf_histogram_upto(const struct kvf_histogram *h, uint64_t value)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < KVF_HISTOGRAM_BUCKETS && bucket_last(i) <= value; i++)
        n += get(&h->buckets[i]);
    return n;
}
