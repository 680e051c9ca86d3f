/* A cluster of two for measuring: an etcd of its own, a lender in a process of its own, and a home that the caller opens. Processes
 * are forked before the caller opens any node. All end with the caller. One thread. */
#ifndef KVF_BENCH_LENDER_H
#define KVF_BENCH_LENDER_H

#include <kvf/kvf.h>

struct kvf_bench_etcd;
struct kvf_bench_lender;

/* NULL, with a line on standard error: there is none, or it does not start. */
struct kvf_bench_etcd *kvf_bench_etcd_start(void);
void kvf_bench_etcd_stop(struct kvf_bench_etcd *etcd);

/* Opens the node "lender" in a process of its own, in a cluster that has the transport's name. NULL, with a line on standard
 * error: it did not open. */
struct kvf_bench_lender *kvf_bench_lender_start(const struct kvf_bench_etcd *etcd, const char *transport, const char *lend_bytes);
void kvf_bench_lender_stop(struct kvf_bench_lender *lender);

/* A node of this process. transport NULL: alone, without the cluster. settings: name, value, ..., NULL. NULL as above. */
struct kvf_node *kvf_bench_node_open(const struct kvf_bench_etcd *etcd, const char *name, const char *transport,
                                     const char *const *settings);
#endif
