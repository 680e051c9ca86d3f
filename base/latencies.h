/* The node's latency histograms, in nanoseconds: one list gives the enum, the names in JSON and those of Prometheus
 * (kvf_<metric>_seconds). Entries of one metric stand together and differ by the value of their label. */
#ifndef KVF_BASE_LATENCIES_H
#define KVF_BASE_LATENCIES_H

#include "base/histogram.h"

#include <stdbool.h>
#include <stddef.h>

/* X(name, metric, label, value, help): label and value are "" for a metric of one entry. The fetches stand in the order of
 * enum kvf_tier. */
#define KVF_LATENCY_MAP(X)                                                                                        \
    X(FETCH_GPU, "fetch", "tier", "gpu", "from a read's start to its bytes, by source")                           \
    X(FETCH_DRAM, "fetch", "tier", "dram", "")                                                                    \
    X(FETCH_REMOTE, "fetch", "tier", "remote", "")                                                                \
    X(FETCH_SSD, "fetch", "tier", "ssd", "")                                                                      \
    X(FETCH_PEER, "fetch", "tier", "peer", "")                                                                    \
    X(SSD_QUEUE_DEMAND, "ssd_queue", "priority", "demand", "what a request waited before the disk was given it")  \
    X(SSD_QUEUE_AHEAD, "ssd_queue", "priority", "ahead", "")                                                      \
    X(SSD_QUEUE_WRITE_BACK, "ssd_queue", "priority", "write_back", "")                                            \
    X(SSD_QUEUE_SCRUB, "ssd_queue", "priority", "scrub", "")                                                      \
    X(SSD_DEVICE_DEMAND, "ssd_device", "priority", "demand", "from when the disk was given a request to its end") \
    X(SSD_DEVICE_AHEAD, "ssd_device", "priority", "ahead", "")                                                    \
    X(SSD_DEVICE_WRITE_BACK, "ssd_device", "priority", "write_back", "")                                          \
    X(SSD_DEVICE_SCRUB, "ssd_device", "priority", "scrub", "")                                                    \
    X(SPILL_SSD, "spill", "tier", "ssd", "from when a block begins its way down to when its memory is free")      \
    X(SPILL_REMOTE, "spill", "tier", "remote", "")                                                                \
    X(RISE, "rise", "", "", "from when a block begins its way up to when it lies in DRAM")                        \
    X(RECLAIM, "reclaim", "", "", "from when lent memory is wanted back to when this node has it")                \
    X(PUT, "put", "", "", "from the submit of a put to its completion")                                           \
    X(GET, "get", "", "", "from the submit of a get to its completion")                                           \
    X(SEAL, "seal", "", "", "checksums and summaries of the blocks that one commit seals")                        \
    X(SCRUB, "scrub", "", "", "from the first read of a block by the scrub to its verdict")                       \
    X(ATTEND_WAIT, "attend_wait", "", "", "what attention waited for cold blocks, per call")                      \
    X(ATTEND_THERE, "attend_there", "", "", "from a question to another node to its answer")                      \
    X(ATTEND_SERVE, "attend_serve", "", "", "what attending took for a question of another node")                 \
    X(REACTOR_TURN, "reactor_turn", "", "", "a turn of the reactor that had something to do, all of it under the node's lock")

enum kvf_latency {
#define KVF_LATENCY_NAME(name, metric, label, value, help) KVF_LATENCY_##name,
    KVF_LATENCY_MAP(KVF_LATENCY_NAME)
#undef KVF_LATENCY_NAME
    KVF_LATENCY_COUNT
};

struct kvf_latencies {
    struct kvf_histogram of[KVF_LATENCY_COUNT];
};

/* From any thread. */
static inline void kvf_latency_add(struct kvf_latencies *latencies, enum kvf_latency which, uint64_t ns)
{
    kvf_histogram_add(&latencies->of[which], ns);
}

/* The list as a table; strings live for ever. `help` is that of the metric, "" for all but its first entry. */
struct kvf_latency_entry {
    const char *metric, *label, *value, *help;
};
bool kvf_latencies_entry(size_t index, struct kvf_latency_entry *out); /* false: past the end */
#endif
