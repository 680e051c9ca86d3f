/* Requests and answers of etcd's JSON gateway (v3): text in, text out, no network. int64 are strings there, and what is
 * false, zero or empty is left out. Answers are not trusted: a decoder never fails in another way than by its status. */
#ifndef KVF_COORDINATOR_STORE_JSON_H
#define KVF_COORDINATOR_STORE_JSON_H

#include "coordinator/store.h"

enum kvf_store_json_what {
    KVF_STORE_JSON_RANGE,
    KVF_STORE_JSON_TXN,
    KVF_STORE_JSON_GRANT,
    KVF_STORE_JSON_KEEPALIVE,
    KVF_STORE_JSON_REVOKE,
    KVF_STORE_JSON_WATCH,
};

/* "/v3/kv/range" and so on. Static. */
const char *kvf_store_json_path(enum kvf_store_json_what what);

/* The bodies: malloc'ed text that the caller frees, NULL when out of memory. Any thread. */
char *kvf_store_json_range(const char *prefix);
char *kvf_store_json_txn(const struct kvf_store_txn *txn);
char *kvf_store_json_grant(uint64_t ttl_ns); /* rounded up to whole seconds */
char *kvf_store_json_lease(uint64_t lease);  /* keepalive and revoke */
char *kvf_store_json_watch(const char *prefix, uint64_t from_revision);

struct kvf_store_json_answer {
    struct kvf_store_result result; /* kvs points to `kvs` */
    struct kvf_store_kv *kvs;
    char error[256]; /* what etcd said, or what is wrong with the answer; "" when OK */
};

/* Decodes any answer but a watch's. result.status: OK; ERR_NOT_FOUND (no such lease); ERR_DEADLINE (a transaction that etcd may
 * still apply: 5xx, or an answer we cannot read); else ERR_STORE. A key that is not text of our size is skipped; a value that is
 * not becomes "", which no record is. Free with release. */
void kvf_store_json_decode(enum kvf_store_json_what what, long code, const char *text, size_t bytes,
                           struct kvf_store_json_answer *out);
void kvf_store_json_release(struct kvf_store_json_answer *answer);

enum kvf_store_json_event {
    KVF_STORE_JSON_NOTHING, /* progress: revision is etcd's */
    KVF_STORE_JSON_CREATED, /* the watch stands; revision and cluster are etcd's */
    KVF_STORE_JSON_EVENTS,  /* revision is the newest of the events, so that a watch can go on after it */
    KVF_STORE_JSON_LOST,    /* the wanted revision was compacted away */
    KVF_STORE_JSON_FAILED,  /* an error, or not an answer at all */
};

struct kvf_store_json_line {
    enum kvf_store_json_event event;
    struct kvf_store_kv *kvs;
    size_t n_kvs;
    uint64_t revision, cluster;
    char error[256];
};

/* Decodes one line of a watch. Free with line_release. */
void kvf_store_json_decode_line(const char *text, size_t bytes, struct kvf_store_json_line *out);
void kvf_store_json_line_release(struct kvf_store_json_line *line);
#endif
