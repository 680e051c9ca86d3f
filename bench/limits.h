/* Programs beside which the fabric is measured: ucx_perftest and iperf3, where they are installed. Each call starts a server on the
 * first processor and a client on the second, over loopback; both have ended when it returns. One thread. */
#ifndef KVF_BENCH_LIMITS_H
#define KVF_BENCH_LIMITS_H

#include <stdbool.h>
#include <stdint.h>

/* This process, and what it starts from now on, runs on the processor of that number, modulo how many there are. */
void kvf_limits_pin(unsigned number);

/* Whether the program can be found. */
bool kvf_limits_have(const char *program);

/* A port of loopback that is free now. 0: none. */
unsigned kvf_limits_port(void);

struct kvf_limits_ucx {
    double bytes_per_s;
    double p50_us; /* of one message; of the latency tests half a round trip */
};
/* ucx_perftest with UCX's settings from `settings` (NAME=VALUE words with spaces). `test` is one of its own (ucp_am_bw, tag_lat,
 * ..), `bytes` the size of a message, `depth` how many are under way at most. False: it did not work. */
bool kvf_limits_ucx(const char *settings, const char *test, uint32_t bytes, uint32_t depth, double seconds,
                    struct kvf_limits_ucx *out);

/* Bytes per second that arrive over `streams` TCP connections, written and read `bytes` at a time; 0: it did not work. */
double kvf_limits_iperf(unsigned streams, uint32_t bytes, double seconds);
#endif
