/* Mooncake Store on loopback, where its wheel is installed: a master, a process that holds objects, and one that reads them over
 * TCP (bench/mooncake_store.py). For benches that compare with it. All three end with stop. One thread. */
#ifndef KVF_BENCH_MOONCAKE_H
#define KVF_BENCH_MOONCAKE_H

#include <stdbool.h>
#include <stdint.h>

struct kvf_mooncake;

/* `python` is an interpreter that finds the wheel; mooncake_master lies beside it or on the path. The holder lends held_bytes, one
 * call reads at most call_bytes. NULL, with a line on standard error: it is not installed, or did not start. */
struct kvf_mooncake *kvf_mooncake_start(const char *python, uint64_t held_bytes, uint64_t call_bytes);
void kvf_mooncake_stop(struct kvf_mooncake *mooncake);

/* Stores `count` objects of `bytes` each. False, with a line on standard error: it failed. */
bool kvf_mooncake_put(struct kvf_mooncake *mooncake, uint32_t bytes, unsigned count);
bool kvf_mooncake_remove(struct kvf_mooncake *mooncake, uint32_t bytes, unsigned count);

struct kvf_mooncake_rate {
    double bytes_per_s;
    double p50_us; /* of one call */
};
/* Reads objects that were put, in random order, `batch` per call, for that long, after each was read once and compared. False,
 * with a line on standard error: an object was missing or wrong, or it failed. */
bool kvf_mooncake_get(struct kvf_mooncake *mooncake, uint32_t bytes, unsigned count, unsigned batch, double seconds,
                      struct kvf_mooncake_rate *out);
#endif
