/* The etcd seam: a few operations on keys, asynchronous. The real one speaks to etcd's JSON gateway (store_etcd.c, over
 * http.c); tests and the simulator have one in memory. One thread at a time; callbacks run inside poll, once per call. */
#ifndef KVF_COORDINATOR_STORE_H
#define KVF_COORDINATOR_STORE_H

#include "base/counters.h"
#include "base/log.h"
#include <kvf/kvf.h>

struct kvf_store;

#define KVF_STORE_KEY_MAX 256
#define KVF_STORE_VALUE_MAX 8192
#define KVF_STORE_OPS_MAX 8

struct kvf_store_kv {
    const char *key, *value;   /* NUL-ended text; value NULL: deleted (in watches) */
    uint64_t mod_revision, create_revision;
    uint64_t lease;
};

struct kvf_store_compare {
    enum { KVF_COMPARE_ABSENT, KVF_COMPARE_MOD_REVISION, KVF_COMPARE_VALUE } what;
    char key[KVF_STORE_KEY_MAX];
    uint64_t mod_revision;
    char value[KVF_STORE_VALUE_MAX];
};

struct kvf_store_put {
    char key[KVF_STORE_KEY_MAX];
    char value[KVF_STORE_VALUE_MAX];
    uint64_t lease; /* 0: none */
    bool remove;
};

/* Compares and, when all hold, puts (or removes); when not, nothing. Then reads `read` keys either way. */
struct kvf_store_txn {
    struct kvf_store_compare compare[KVF_STORE_OPS_MAX];
    unsigned n_compare;
    struct kvf_store_put put[KVF_STORE_OPS_MAX];
    unsigned n_put;
    char read[KVF_STORE_OPS_MAX][KVF_STORE_KEY_MAX]; /* what stands there when the compares failed */
    unsigned n_read;
};

struct kvf_store_result {
    enum kvf_status
        status; /* OK; ERR_STORE (unreachable, refused); ERR_DEADLINE: the outcome is NOT known; ERR_NOT_FOUND (lease) */
    bool succeeded;         /* txn: the compares held */
    uint64_t revision;
    uint64_t lease;         /* lease_grant: its id; keepalive: the same */
    uint64_t ttl_ns;        /* lease_grant, keepalive; 0: the lease is gone */
    const struct kvf_store_kv *kvs; /* range and txn reads; valid during the callback */
    size_t n_kvs;
};
typedef void (*kvf_store_fn)(void *arg, const struct kvf_store_result *result);

/* A watch event batch of one revision; `lost` true: events may have been missed (compaction, reconnect below it): range anew. */
typedef void (*kvf_store_watch_fn)(void *arg, const struct kvf_store_kv *kvs, size_t n, uint64_t revision, bool lost);

struct kvf_store_ops {
    const char *name;
    void (*destroy)(struct kvf_store *store); /* ends everything with CANCELLED */
    /* All return ERR_BUSY when too many are outstanding. Structures are copied. */
    enum kvf_status (*range)(struct kvf_store *store, const char *prefix, kvf_store_fn done, void *arg);
    enum kvf_status (*txn)(struct kvf_store *store, const struct kvf_store_txn *txn, kvf_store_fn done, void *arg);
    enum kvf_status (*lease_grant)(struct kvf_store *store, uint64_t ttl_ns, kvf_store_fn done, void *arg);
    enum kvf_status (*lease_keepalive)(struct kvf_store *store, uint64_t lease, kvf_store_fn done, void *arg);
    enum kvf_status (*lease_revoke)(struct kvf_store *store, uint64_t lease, kvf_store_fn done, void *arg);
    /* One watch per store, of a prefix, from a revision on; reconnects by itself for ever. A second call replaces the first: none
     * of its events comes any more. After `lost` the watch is over until the next call. prefix NULL: ends it. */
    enum kvf_status (*watch)(struct kvf_store *store, const char *prefix, uint64_t from_revision, kvf_store_watch_fn event,
                             void *arg);
    unsigned (*poll)(struct kvf_store *store);
    int (*event_fd)(struct kvf_store *store); /* readable when poll has work; -1: none */
};

struct kvf_store {
    const struct kvf_store_ops *ops;
};

struct kvf_store_config {
    const char *endpoints; /* "http://a:2379,http://b:2379": tried in turn */
    const char *ca, *cert, *key;
    uint64_t timeout_ns; /* of one request */
    const struct kvf_log *log;
    struct kvf_counters *counters;
};
/* ERR_CONFIG (no endpoint, or one that is no URL), ERR_NO_MEMORY. Speaks to nobody yet. The log and counters (NULL: none)
 * outlive it. */
enum kvf_status kvf_store_etcd_create(const struct kvf_store_config *config, struct kvf_store **out);
/* One line about the last failed request of a store made by kvf_store_etcd_create ("" when none failed). Any thread. */
void kvf_store_etcd_error(struct kvf_store *store, char *text, size_t size);
#endif
