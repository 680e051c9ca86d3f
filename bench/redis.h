/* A Redis server of our own on loopback, where redis-server is installed, and a client that pipelines: for benches that compare
 * with it. It runs on the first processor. No persistence; it ends with stop. One thread. */
#ifndef KVF_BENCH_REDIS_H
#define KVF_BENCH_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvf_redis;

/* NULL, with a line on standard error: it is not installed, or did not start. */
struct kvf_redis *kvf_redis_start(void);
void kvf_redis_stop(struct kvf_redis *redis);

/* SETs n values of `bytes` each, that lie one after the other at `data`, for the keys first .. first + n - 1. */
bool kvf_redis_set(struct kvf_redis *redis, uint64_t first, unsigned n, const void *data, size_t bytes);

/* GETs of n keys, all sent before the first answer is read, into `to`, one after the other. False: an answer is missing or has
 * another size. */
bool kvf_redis_get(struct kvf_redis *redis, const uint64_t *keys, unsigned n, void *to, size_t bytes);
#endif
