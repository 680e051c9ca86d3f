/* The token bucket. */
#include "base/bucket.h"
#include "base/env.h"

#include <assert.h>

static uint64_t depth(const struct kvf_bucket *b)
{
    return b->rate / 10 + 1;
}

/* bytes = rate * ns / second and back; in 128 bits, since a rate may be 2^50. */
static uint64_t bytes_of(const struct kvf_bucket *b, uint64_t ns)
{
    unsigned __int128 bytes = (unsigned __int128)b->rate * ns / KVF_SEC;
    return bytes > INT64_MAX / 2 ? INT64_MAX / 2 : (uint64_t)bytes;
}

static uint64_t ns_of(const struct kvf_bucket *b, uint64_t bytes)
{
    return (uint64_t)(((unsigned __int128)bytes * KVF_SEC + b->rate - 1) / b->rate);
}

void kvf_bucket_init(struct kvf_bucket *b, uint64_t rate, uint64_t now_ns)
{
    assert(rate <= 1ull << 60);
    *b = (struct kvf_bucket){.rate = rate, .at_ns = now_ns};
    b->level = (int64_t)depth(b);
}

/* Moves the clock on by whole bytes only, so that nothing is lost between calls that come fast. */
static void refill(struct kvf_bucket *b, uint64_t now_ns)
{
    if (now_ns <= b->at_ns)
        return;
    uint64_t bytes = bytes_of(b, now_ns - b->at_ns);
    int64_t most = (int64_t)depth(b);
    if (b->level + (int64_t)bytes >= most) {
        b->level = most;
        b->at_ns = now_ns;
    } else if (bytes > 0) {
        b->level += (int64_t)bytes;
        uint64_t used = ns_of(b, bytes);
        b->at_ns += used < now_ns - b->at_ns ? used : now_ns - b->at_ns;
    }
}

uint64_t kvf_bucket_room(struct kvf_bucket *b, uint64_t now_ns)
{
    if (b->rate == 0)
        return UINT64_MAX;
    refill(b, now_ns);
    return b->level > 0 ? (uint64_t)b->level : 0;
}

void kvf_bucket_take(struct kvf_bucket *b, uint64_t bytes, uint64_t now_ns)
{
    if (b->rate == 0)
        return;
    refill(b, now_ns);
    int64_t least = -(int64_t)b->rate;
    int64_t cost = bytes < (uint64_t)(b->level - least) ? (int64_t)bytes : b->level - least;
    b->level -= cost;
    assert(b->level >= least);
}

uint64_t kvf_bucket_ready_ns(struct kvf_bucket *b, uint64_t now_ns)
{
    if (kvf_bucket_room(b, now_ns) > 0)
        return now_ns;
    return b->at_ns + ns_of(b, (uint64_t)(1 - b->level));
}
