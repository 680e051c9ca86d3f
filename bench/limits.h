/* Programs beside which the fabric is measured: ucx_perftest and iperf3, where they are installed. Each call starts a server on the
 * first processor and a client on the second, over loopback, or the client alone, anywhere on this machine, where the server is
 * started on another; both have ended when it returns. One thread. */
#ifndef KVF_BENCH_LIMITS_H
#define KVF_BENCH_LIMITS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define KVF_LIMITS_GUESS 4e9 /* bytes per second, where nothing better is known */

/* This process, and what it starts from now on, runs on the processor of that number, modulo how many there are. */
void kvf_limits_pin(unsigned number);

/* Whether the program can be found. */
bool kvf_limits_have(const char *program);

/* A port of loopback that is free now. 0: none. */
unsigned kvf_limits_port(void);

/* Another machine, where the servers run. */
struct kvf_limits_host {
    const char *address;
    /* Starts the program's server there: its port; 0: it did not work. Ends it. */
    unsigned (*start)(void *arg, const char *program);
    void (*stop)(void *arg);
    void *arg;
};

/* Starts the server of one of the programs at a port, which listens at `address`; ends one. */
pid_t kvf_limits_start(const char *program, const char *address, unsigned port, const char *settings);
void kvf_limits_stop(pid_t pid);

struct kvf_limits_ucx {
    double bytes_per_s;
    double p50_us; /* of one message; of the latency tests half a round trip */
};
struct kvf_limits_task {
    const struct kvf_limits_host *host; /* NULL: this machine */
    const char *settings;               /* UCX's: NAME=VALUE words with spaces */
    const char *test;                   /* one of ucx_perftest's own: ucp_am_bw, tag_lat, .. */
    uint32_t bytes, depth;              /* of a message; how many are under way at most, or connections */
    double seconds, guess;              /* about how long, if as many bytes per second move as guessed */
};
/* ucx_perftest. False: it did not work. */
bool kvf_limits_ucx(const struct kvf_limits_task *task, struct kvf_limits_ucx *out);

/* Bytes per second that arrive over `depth` TCP connections, written and read `bytes` at a time; 0: it did not work. */
double kvf_limits_iperf(const struct kvf_limits_task *task);
#endif
