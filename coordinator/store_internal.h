/* The etcd store's own structure, for store_etcd.c (requests) and store_watch.c (the watch).
 *
 *   owner's thread:  submit -> [worker's queue] ...      ... [done] -> poll -> callback
 *   worker 0:        leases only, so that a keepalive never waits behind a slow transaction
 *   worker 1:        ranges and transactions, in the order in which they were submitted
 *   watch thread:    one stream -> [batches] -> poll -> callback
 *
 * Everything below `lock` is guarded by it. The eventfd is written whenever done or batches gets an entry. */
#ifndef KVF_COORDINATOR_STORE_INTERNAL_H
#define KVF_COORDINATOR_STORE_INTERNAL_H

#include "coordinator/http.h"
#include "coordinator/store_json.h"

#include <pthread.h>
#include <stdatomic.h>

#define KVF_STORE_REQUESTS_MAX 64
#define KVF_STORE_ENDPOINTS_MAX 8
#define KVF_STORE_BATCHES_MAX 256
#define KVF_STORE_WORKERS 2

/* A request belongs to one list at a time. */
struct kvf_store_request {
    struct kvf_store_request *next;
    enum kvf_store_json_what what;
    char *body;
    uint64_t deadline_ns;
    kvf_store_fn done;
    void *arg;
    struct kvf_store_json_answer answer;
};

struct kvf_store_list {
    struct kvf_store_request *first, *last;
};

struct kvf_store_etcd;

struct kvf_store_worker {
    struct kvf_store_etcd *etcd;
    struct kvf_http *http;
    pthread_t thread;
    pthread_cond_t wake;
    struct kvf_store_list queue;
    unsigned endpoint; /* the one that answered last */
};

struct kvf_store_batch {
    struct kvf_store_batch *next;
    struct kvf_store_json_line line;
    uint64_t generation;
};

struct kvf_store_watch {
    struct kvf_http *http;
    pthread_t thread;
    pthread_cond_t wake; /* a new watch, room in batches, or the end */
    /* what is wanted; generation 0: nothing yet */
    char prefix[KVF_STORE_KEY_MAX];
    uint64_t from, generation;
    kvf_store_watch_fn event;
    void *arg;
    bool active;
    /* what came */
    struct kvf_store_batch *first, *last;
    unsigned n_batches;
    /* the thread's own: the stream that runs */
    uint64_t streaming, cluster, began_ns, kicked_ns;
    bool created, ended;
    unsigned endpoint;
};

struct kvf_store_etcd {
    struct kvf_store store; /* first: the handle that callers hold */
    char *endpoints_text;
    const char *endpoints[KVF_STORE_ENDPOINTS_MAX];
    unsigned n_endpoints;
    uint64_t timeout_ns;
    const struct kvf_log *log;
    struct kvf_counters *counters;
    int event_fd;
    atomic_bool stopping;
    atomic_bool reachable;         /* for the log: said once when it changes */
    _Atomic uint64_t failed_at_ns; /* the watch may hang on the same server: it connects anew */

    pthread_mutex_t lock;
    char error[512];
    struct kvf_store_request requests[KVF_STORE_REQUESTS_MAX];
    struct kvf_store_list idle, done;
    struct kvf_store_worker worker[KVF_STORE_WORKERS];
    struct kvf_store_watch watch;
};

/* Wakes the owner. Any thread. */
void kvf_store_etcd_signal(struct kvf_store_etcd *etcd);
/* Remembers and, when it is news, logs that etcd does (not) answer. error NULL: it does. Any thread. */
void kvf_store_etcd_note(struct kvf_store_etcd *etcd, const char *error);

/* The watch: its thread, the seam's call, and what poll hands out. destroy needs the thread to have been joined. */
void *kvf_store_watch_main(void *etcd);
enum kvf_status kvf_store_watch_start(struct kvf_store *store, const char *prefix, uint64_t from_revision,
                                      kvf_store_watch_fn event, void *arg);
unsigned kvf_store_watch_poll(struct kvf_store_etcd *etcd);
void kvf_store_watch_drop(struct kvf_store_etcd *etcd);
#endif
