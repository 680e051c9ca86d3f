/* Fork and join over a fixed set of threads. One caller at a time per pool; the caller works too. */
#ifndef KVF_BASE_WORKERS_H
#define KVF_BASE_WORKERS_H

#include <kvf/kvf.h>

struct kvf_workers;

/* threads counts the caller: 1 makes no thread. ERR_NO_MEMORY. */
enum kvf_status kvf_workers_create(unsigned threads, struct kvf_workers **out);
void kvf_workers_destroy(struct kvf_workers *workers);
unsigned kvf_workers_count(const struct kvf_workers *workers);

/* Calls fn(arg, item, worker) for every item 0..items-1, each once, on any of the threads (worker < count), and returns
 * when all are done. Items are handed out one by one. Idle threads spin a few microseconds, then sleep. */
void kvf_workers_run(struct kvf_workers *workers, unsigned items, void (*fn)(void *arg, unsigned item, unsigned worker), void *arg);
#endif
