/* A budget of bytes per second: a token bucket over a clock that the caller reads. Pure; one thread at a time.
 *
 * Something may go while the bucket is not empty, and then may take more than is in it: so what is larger than the bucket passes
 * too, and the debt is waited off afterwards, a second's worth at most. */
#ifndef KVF_BASE_BUCKET_H
#define KVF_BASE_BUCKET_H

#include <stdbool.h>
#include <stdint.h>

struct kvf_bucket {
    uint64_t rate;  /* bytes per second; 0: no limit */
    int64_t level;  /* bytes that may go now; below 0: debt */
    uint64_t at_ns; /* level is of then */
};

/* Full: a tenth of a second's worth, which is what it holds. */
void kvf_bucket_init(struct kvf_bucket *bucket, uint64_t rate, uint64_t now_ns);
/* Bytes that may go now: 0 when it is empty, UINT64_MAX without a limit. */
uint64_t kvf_bucket_room(struct kvf_bucket *bucket, uint64_t now_ns);
void kvf_bucket_take(struct kvf_bucket *bucket, uint64_t bytes, uint64_t now_ns);
/* When it will not be empty: at most now when it is not. */
uint64_t kvf_bucket_ready_ns(struct kvf_bucket *bucket, uint64_t now_ns);
#endif
