/* etcd in memory. Small and slow on purpose: linear lists, one allocation per thing. */
#include "tests/sim/sim_store.h"
#include "base/hash.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define OUTSTANDING_MAX 64

struct item {
    struct item *next;
    struct kvf_store_kv kv;
};

/* Every change ever made, for watches. */
struct change {
    struct change *next;
    struct kvf_store_kv kv; /* value NULL: removed */
    uint64_t time_ns;
};

struct lease {
    struct lease *next;
    uint64_t id, ttl_ns, end_ns;
};

enum what { RANGE, TXN, GRANT, KEEPALIVE, REVOKE };

struct request {
    struct request *next;
    struct client *client;
    enum what what;
    uint64_t sequence;
    char prefix[KVF_STORE_KEY_MAX];
    struct kvf_store_txn *txn;
    uint64_t lease, ttl_ns;
    kvf_store_fn done;
    void *arg;
    bool answered;
    struct kvf_store_result result;
    struct kvf_store_kv *kvs;
    /* fate */
    uint64_t due_ns, ready_ns, gives_up_ns, answer_ns;
    bool lost;
};

struct client {
    struct kvf_store store; /* first */
    struct kvf_sim_etcd *etcd;
    struct client *next;
    struct request *first, **end;
    unsigned outstanding;
    uint64_t requests;
    /* faults */
    bool cut, hang, hold, deaf;
    uint64_t lag_ns;
    unsigned drop;
    bool drop_carried_out;
    /* watch */
    bool watching;
    char prefix[KVF_STORE_KEY_MAX];
    uint64_t from;
    struct change *after; /* every change up to this one was handed out; NULL: none */
    kvf_store_watch_fn event;
    void *arg;
};

struct kvf_sim_etcd {
    const struct kvf_env *env;
    struct item *items; /* by key */
    struct change *changes, **changes_end;
    struct lease *leases;
    struct client *clients;
    uint64_t revision, compacted, next_lease, sequence, hash;
    bool down, manual, unguarded;
    void (*fate)(void *arg, struct kvf_sim_store_fate *fate);
    void *fate_arg;
    struct request *late; /* their clients have given up; they are carried out at their time */
};

static void *get_memory(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (!memory)
        abort();
    return memory;
}

static char *copy_text(const char *text)
{
    if (!text)
        return NULL;
    size_t size = strlen(text) + 1;
    return memcpy(get_memory(size), text, size);
}

static struct kvf_store_kv copy_kv(const struct kvf_store_kv *kv)
{
    struct kvf_store_kv copy = *kv;
    copy.key = copy_text(kv->key);
    copy.value = copy_text(kv->value);
    return copy;
}

static void free_kv(struct kvf_store_kv *kv)
{
    free((char *)kv->key);
    free((char *)kv->value);
}

/* Room for eight values is large, and most have one. */
static struct kvf_store_txn *copy_txn(const struct kvf_store_txn *txn)
{
    struct kvf_store_txn *copy = malloc(sizeof *copy);
    if (!copy)
        abort();
    copy->n_compare = txn->n_compare;
    copy->n_put = txn->n_put;
    copy->n_read = txn->n_read;
    memcpy(copy->compare, txn->compare, txn->n_compare * sizeof *txn->compare);
    memcpy(copy->put, txn->put, txn->n_put * sizeof *txn->put);
    memcpy(copy->read, txn->read, txn->n_read * sizeof *txn->read);
    return copy;
}

/* ---------------------------------------------------------------------------------------------------- the data */

static struct item **place_of(struct kvf_sim_etcd *etcd, const char *key)
{
    struct item **at = &etcd->items;
    while (*at && strcmp((*at)->kv.key, key) < 0)
        at = &(*at)->next;
    return at;
}

static struct item *item_of(struct kvf_sim_etcd *etcd, const char *key)
{
    struct item *item = *place_of(etcd, key);
    return item && !strcmp(item->kv.key, key) ? item : NULL;
}

static void note_change(struct kvf_sim_etcd *etcd, const struct kvf_store_kv *kv)
{
    struct change *change = get_memory(sizeof *change);
    change->kv = copy_kv(kv);
    change->time_ns = kvf_now(etcd->env);
    etcd->hash = kvf_mix(etcd->hash, kv->mod_revision);
    etcd->hash = kvf_hash(kv->key, strlen(kv->key), etcd->hash);
    etcd->hash = kv->value ? kvf_hash(kv->value, strlen(kv->value), etcd->hash) : etcd->hash;
    *etcd->changes_end = change;
    etcd->changes_end = &change->next;
}

/* Sets or removes a key at `revision`. False: there was nothing to remove. */
static bool set(struct kvf_sim_etcd *etcd, const char *key, const char *value, uint64_t lease, uint64_t revision)
{
    struct item **at = place_of(etcd, key), *item = item_of(etcd, key);
    struct kvf_store_kv kv = {.key = key, .value = value, .mod_revision = revision, .create_revision = revision, .lease = lease};
    if (!value && !item)
        return false;
    if (item) {
        kv.create_revision = value ? item->kv.create_revision : 0;
        *at = item->next;
    }
    note_change(etcd, &kv);
    if (value) {
        struct item *fresh = get_memory(sizeof *fresh);
        fresh->kv = copy_kv(&kv);
        fresh->next = *at;
        *at = fresh;
    }
    if (item) { /* last: `key` may be the item's own */
        free_kv(&item->kv);
        free(item);
    }
    return true;
}

static struct lease *lease_of(struct kvf_sim_etcd *etcd, uint64_t id)
{
    struct lease *lease = etcd->leases;
    while (lease && lease->id != id)
        lease = lease->next;
    return lease;
}

/* All keys of a lease go in one revision. */
static void end_lease(struct kvf_sim_etcd *etcd, struct lease *lease)
{
    struct lease **at = &etcd->leases;
    while (*at != lease)
        at = &(*at)->next;
    *at = lease->next;
    bool any = false;
    for (struct item *item = etcd->items, *next; item; item = next) {
        next = item->next;
        if (item->kv.lease == lease->id)
            any |= set(etcd, item->kv.key, NULL, 0, etcd->revision + 1);
    }
    etcd->revision += any;
    free(lease);
}

static void end_leases(struct kvf_sim_etcd *etcd)
{
    uint64_t now = kvf_now(etcd->env);
    for (struct lease *lease = etcd->leases, *next; lease && !etcd->down; lease = next) {
        next = lease->next;
        if (now >= lease->end_ns)
            end_lease(etcd, lease);
    }
}

/* ---------------------------------------------------------------------------------------------------- requests */

static void add_kv(struct request *request, const struct kvf_store_kv *kv)
{
    struct kvf_store_kv *kvs = realloc(request->kvs, (request->result.n_kvs + 1) * sizeof *kvs);
    if (!kvs)
        abort();
    kvs[request->result.n_kvs++] = copy_kv(kv);
    request->result.kvs = request->kvs = kvs;
}

static bool holds(struct kvf_sim_etcd *etcd, const struct kvf_store_compare *compare)
{
    struct item *item = item_of(etcd, compare->key);
    switch (compare->what) {
    case KVF_COMPARE_ABSENT:
        return !item;
    case KVF_COMPARE_MOD_REVISION:
        return etcd->unguarded || (item ? item->kv.mod_revision : 0) == compare->mod_revision;
    case KVF_COMPARE_VALUE:
        return item && !strcmp(item->kv.value, compare->value);
    }
    return false;
}

static void do_txn(struct kvf_sim_etcd *etcd, struct request *request)
{
    struct kvf_store_txn *txn = request->txn;
    struct kvf_store_result *result = &request->result;
    bool good = true, changed = false;
    for (unsigned i = 0; i < txn->n_compare; i++)
        good &= holds(etcd, &txn->compare[i]);
    for (unsigned i = 0; i < txn->n_put && good; i++)
        if (!txn->put[i].remove && txn->put[i].lease && !lease_of(etcd, txn->put[i].lease)) {
            result->status = KVF_ERR_NOT_FOUND;
            return;
        }
    for (unsigned i = 0; i < txn->n_put && good; i++) {
        struct kvf_store_put *put = &txn->put[i];
        changed |= set(etcd, put->key, put->remove ? NULL : put->value, put->lease, etcd->revision + 1);
    }
    etcd->revision += changed;
    result->succeeded = good;
    for (unsigned i = 0; i < txn->n_read; i++) {
        struct item *item = item_of(etcd, txn->read[i]);
        if (item)
            add_kv(request, &item->kv);
    }
}

static void do_lease(struct kvf_sim_etcd *etcd, struct request *request)
{
    struct lease *lease = request->what == GRANT ? get_memory(sizeof *lease) : lease_of(etcd, request->lease);
    struct kvf_store_result *result = &request->result;
    if (!lease) {
        result->status = KVF_ERR_NOT_FOUND;
        return;
    }
    if (request->what == REVOKE) {
        end_lease(etcd, lease);
        return;
    }
    if (request->what == GRANT) {
        *lease = (struct lease){.next = etcd->leases, .id = ++etcd->next_lease, .ttl_ns = request->ttl_ns};
        etcd->leases = lease;
    }
    lease->end_ns = kvf_deadline(kvf_now(etcd->env), lease->ttl_ns);
    result->lease = lease->id;
    result->ttl_ns = lease->ttl_ns;
}

static void do_range(struct kvf_sim_etcd *etcd, struct request *request)
{
    for (struct item *item = etcd->items; item; item = item->next)
        if (!strncmp(item->kv.key, request->prefix, strlen(request->prefix)))
            add_kv(request, &item->kv);
}

static void drop_kvs(struct request *request)
{
    for (size_t i = 0; i < request->result.n_kvs; i++)
        free_kv(&request->kvs[i]);
    free(request->kvs);
    request->kvs = NULL;
    request->result.kvs = NULL;
    request->result.n_kvs = 0;
}

static void perform(struct kvf_sim_etcd *etcd, struct request *request)
{
    end_leases(etcd);
    if (request->what == TXN)
        do_txn(etcd, request);
    else if (request->what == RANGE)
        do_range(etcd, request);
    else
        do_lease(etcd, request);
    request->result.revision = etcd->revision;
}

/* The client will never know what became of it. */
static void forget_answer(struct request *request)
{
    drop_kvs(request);
    request->result = (struct kvf_store_result){.status = request->what == TXN ? KVF_ERR_DEADLINE : KVF_ERR_STORE};
}

static void carry_out(struct request *request)
{
    struct client *client = request->client;
    struct kvf_sim_etcd *etcd = client->etcd;
    bool drop = client->drop > 0;
    client->drop -= drop;
    request->answered = true;
    request->ready_ns = kvf_deadline(kvf_now(etcd->env), request->answer_ns);
    request->result = (struct kvf_store_result){.status = KVF_OK};
    if (etcd->down || client->cut) {
        request->result.status = KVF_ERR_STORE;
        return;
    }
    if (!drop || client->drop_carried_out)
        perform(etcd, request);
    if (drop)
        forget_answer(request);
    if (request->lost) {
        forget_answer(request);
        request->ready_ns = request->gives_up_ns;
    }
}

static void free_request(struct request *request)
{
    drop_kvs(request);
    free(request->txn);
    free(request);
}

/* Carries out what is due of the requests whose clients have given up; false: none. */
static bool step_late(struct kvf_sim_etcd *etcd)
{
    for (struct request **at = &etcd->late; *at; at = &(*at)->next) {
        struct request *request = *at;
        if (kvf_now(etcd->env) < request->due_ns)
            continue;
        *at = request->next;
        if (!etcd->down)
            perform(etcd, request);
        free_request(request);
        return true;
    }
    return false;
}

static struct client *client_of(struct kvf_store *store)
{
    return (struct client *)store;
}

static struct request *submit(struct kvf_store *store, enum what what, kvf_store_fn done, void *arg)
{
    struct client *client = client_of(store);
    if (client->outstanding >= OUTSTANDING_MAX)
        return NULL;
    struct request *request = get_memory(sizeof *request);
    request->client = client;
    request->what = what;
    request->sequence = ++client->etcd->sequence;
    request->done = done;
    request->arg = arg;
    if (client->etcd->fate) {
        struct kvf_sim_store_fate fate = {0};
        uint64_t now = kvf_now(client->etcd->env);
        client->etcd->fate(client->etcd->fate_arg, &fate);
        request->due_ns = kvf_deadline(now, fate.delay_ns);
        request->answer_ns = fate.answer_ns;
        request->lost = fate.lost;
        request->gives_up_ns = kvf_deadline(now, fate.timeout_ns);
    }
    *client->end = request;
    client->end = &request->next;
    client->outstanding++;
    client->requests++;
    return request;
}

static enum kvf_status sim_range(struct kvf_store *store, const char *prefix, kvf_store_fn done, void *arg)
{
    struct request *request = submit(store, RANGE, done, arg);
    if (request)
        snprintf(request->prefix, sizeof request->prefix, "%s", prefix);
    return request ? KVF_OK : KVF_ERR_BUSY;
}

static enum kvf_status sim_txn(struct kvf_store *store, const struct kvf_store_txn *txn, kvf_store_fn done, void *arg)
{
    struct request *request = submit(store, TXN, done, arg);
    if (request)
        request->txn = copy_txn(txn);
    return request ? KVF_OK : KVF_ERR_BUSY;
}

static enum kvf_status sim_grant(struct kvf_store *store, uint64_t ttl_ns, kvf_store_fn done, void *arg)
{
    struct request *request = submit(store, GRANT, done, arg);
    if (request)
        request->ttl_ns = ttl_ns;
    return request ? KVF_OK : KVF_ERR_BUSY;
}

static enum kvf_status sim_keepalive(struct kvf_store *store, uint64_t lease, kvf_store_fn done, void *arg)
{
    struct request *request = submit(store, KEEPALIVE, done, arg);
    if (request)
        request->lease = lease;
    return request ? KVF_OK : KVF_ERR_BUSY;
}

static enum kvf_status sim_revoke(struct kvf_store *store, uint64_t lease, kvf_store_fn done, void *arg)
{
    struct request *request = submit(store, REVOKE, done, arg);
    if (request)
        request->lease = lease;
    return request ? KVF_OK : KVF_ERR_BUSY;
}

static enum kvf_status sim_watch(struct kvf_store *store, const char *prefix, uint64_t from_revision, kvf_store_watch_fn event,
                                 void *arg)
{
    struct client *client = client_of(store);
    client->after = NULL;
    client->watching = prefix != NULL;
    client->deaf = false;
    client->from = from_revision;
    client->event = event;
    client->arg = arg;
    snprintf(client->prefix, sizeof client->prefix, "%s", prefix ? prefix : "");
    return KVF_OK;
}

/* ---------------------------------------------------------------------------------------------------- poll */

/* Hands out one batch: the changes of the oldest revision that the watch has not seen. */
static bool hand_out(struct client *client)
{
    struct kvf_sim_etcd *etcd = client->etcd;
    struct kvf_store_kv *kvs = NULL;
    size_t n = 0;
    uint64_t revision = 0;
    if (!client->watching || client->hold || client->deaf || client->cut || etcd->down)
        return false;
    if (client->from <= etcd->compacted) {
        client->watching = false;
        client->event(client->arg, NULL, 0, etcd->compacted, true);
        return true;
    }
    struct change *change = client->after ? client->after->next : etcd->changes;
    for (; change && (!revision || change->kv.mod_revision == revision); change = change->next) {
        if (kvf_now(etcd->env) < kvf_deadline(change->time_ns, client->lag_ns))
            break;
        client->after = change;
        if (change->kv.mod_revision < client->from || strncmp(change->kv.key, client->prefix, strlen(client->prefix)))
            continue;
        revision = change->kv.mod_revision;
        kvs = realloc(kvs, (n + 1) * sizeof *kvs);
        if (!kvs)
            abort();
        kvs[n++] = change->kv;
    }
    if (n) {
        client->from = revision + 1;
        client->event(client->arg, kvs, n, revision, false);
    }
    free(kvs);
    return n > 0;
}

static void finish(struct client *client, struct request *request)
{
    struct kvf_sim_etcd *etcd = client->etcd;
    client->outstanding--;
    if (!request->answered && request->lost) {
        struct kvf_store_result result = {.status = request->what == TXN ? KVF_ERR_DEADLINE : KVF_ERR_STORE};
        request->next = etcd->late;
        etcd->late = request;
        request->done(request->arg, &result);
        return;
    }
    request->done(request->arg, &request->result);
    free_request(request);
}

/* Takes the oldest request that is answered (or, not by hand, carries it out). Only those that stood there when poll began. */
static struct request *take_answered(struct client *client, uint64_t until)
{
    for (struct request **at = &client->first; *at && (*at)->sequence <= until; at = &(*at)->next) {
        struct request *request = *at;
        uint64_t now = kvf_now(client->etcd->env);
        bool gave_up = request->lost && !request->answered && now >= request->gives_up_ns;
        if (!request->answered && (client->etcd->manual || client->hang) && !gave_up)
            continue;
        if (request->answered && now < request->ready_ns)
            continue;
        if (!request->answered && !gave_up)
            carry_out(request);
        *at = request->next;
        if (client->end == &request->next)
            client->end = at;
        return request;
    }
    return NULL;
}

static unsigned sim_poll(struct kvf_store *store)
{
    struct client *client = client_of(store);
    uint64_t until = client->etcd->sequence;
    unsigned n = 0;
    end_leases(client->etcd);
    for (struct request *request; (request = take_answered(client, until)); n++)
        finish(client, request);
    while (hand_out(client))
        n++;
    return n;
}

static int sim_event_fd(struct kvf_store *store)
{
    return -1;
}

static void sim_destroy(struct kvf_store *store)
{
    struct client *client = client_of(store), **at = &client->etcd->clients;
    for (struct request *request; (request = client->first);) {
        client->first = request->next;
        if (!request->answered)
            request->result = (struct kvf_store_result){.status = KVF_CANCELLED};
        request->answered = true;
        client->outstanding = OUTSTANDING_MAX + 1; /* no new ones from the callback */
        finish(client, request);
    }
    while (*at != client)
        at = &(*at)->next;
    *at = client->next;
    free(client);
}

static const struct kvf_store_ops sim_ops = {
    .name = "sim",
    .destroy = sim_destroy,
    .range = sim_range,
    .txn = sim_txn,
    .lease_grant = sim_grant,
    .lease_keepalive = sim_keepalive,
    .lease_revoke = sim_revoke,
    .watch = sim_watch,
    .poll = sim_poll,
    .event_fd = sim_event_fd,
};

struct kvf_store *kvf_sim_store_create(struct kvf_sim_etcd *etcd)
{
    struct client *client = get_memory(sizeof *client);
    client->store.ops = &sim_ops;
    client->etcd = etcd;
    client->end = &client->first;
    client->next = etcd->clients;
    etcd->clients = client;
    return &client->store;
}

/* ---------------------------------------------------------------------------------------------------- the shared object */

struct kvf_sim_etcd *kvf_sim_etcd_create(const struct kvf_env *env)
{
    struct kvf_sim_etcd *etcd = get_memory(sizeof *etcd);
    etcd->env = env;
    etcd->revision = 1;
    etcd->next_lease = 1000;
    etcd->changes_end = &etcd->changes;
    return etcd;
}

void kvf_sim_etcd_destroy(struct kvf_sim_etcd *etcd)
{
    if (!etcd)
        return;
    assert(!etcd->clients);
    for (struct item *item; (item = etcd->items);) {
        etcd->items = item->next;
        free_kv(&item->kv);
        free(item);
    }
    for (struct change *change; (change = etcd->changes);) {
        etcd->changes = change->next;
        free_kv(&change->kv);
        free(change);
    }
    for (struct lease *lease; (lease = etcd->leases);) {
        etcd->leases = lease->next;
        free(lease);
    }
    for (struct request *request; (request = etcd->late);) {
        etcd->late = request->next;
        free_request(request);
    }
    free(etcd);
}

void kvf_sim_etcd_fate(struct kvf_sim_etcd *etcd, void (*fate)(void *arg, struct kvf_sim_store_fate *fate), void *arg)
{
    etcd->fate = fate;
    etcd->fate_arg = arg;
}

void kvf_sim_etcd_unguarded(struct kvf_sim_etcd *etcd, bool on)
{
    etcd->unguarded = on;
}

uint64_t kvf_sim_etcd_hash(const struct kvf_sim_etcd *etcd)
{
    return etcd->hash;
}

void kvf_sim_etcd_manual(struct kvf_sim_etcd *etcd, bool on)
{
    etcd->manual = on;
}

bool kvf_sim_etcd_step(struct kvf_sim_etcd *etcd)
{
    struct request *oldest = NULL;
    uint64_t now = kvf_now(etcd->env);
    end_leases(etcd);
    if (step_late(etcd))
        return true;
    for (struct client *client = etcd->clients; client; client = client->next)
        for (struct request *request = client->first; request && !client->hang; request = request->next)
            if (!request->answered && request->due_ns <= now &&
                (!oldest || request->due_ns < oldest->due_ns ||
                 (request->due_ns == oldest->due_ns && request->sequence < oldest->sequence)))
                oldest = request;
    if (oldest)
        carry_out(oldest);
    return oldest != NULL;
}

void kvf_sim_etcd_down(struct kvf_sim_etcd *etcd, bool down)
{
    if (!down && etcd->down)
        for (struct lease *lease = etcd->leases; lease; lease = lease->next)
            lease->end_ns = kvf_deadline(kvf_now(etcd->env), lease->ttl_ns);
    else
        end_leases(etcd);
    etcd->down = down;
}

void kvf_sim_store_cut(struct kvf_store *store, bool cut)
{
    client_of(store)->cut = cut;
}

void kvf_sim_store_drop(struct kvf_store *store, unsigned n, bool carried_out)
{
    client_of(store)->drop = n;
    client_of(store)->drop_carried_out = carried_out;
}

void kvf_sim_store_hang(struct kvf_store *store, bool on)
{
    client_of(store)->hang = on;
}

void kvf_sim_store_hold(struct kvf_store *store, bool on)
{
    client_of(store)->hold = on;
}

void kvf_sim_store_deafen(struct kvf_store *store)
{
    client_of(store)->deaf = client_of(store)->watching;
}

void kvf_sim_store_lag(struct kvf_store *store, uint64_t ns)
{
    client_of(store)->lag_ns = ns;
}

void kvf_sim_etcd_compact(struct kvf_sim_etcd *etcd)
{
    etcd->compacted = etcd->revision;
}

const struct kvf_store_kv *kvf_sim_etcd_get(struct kvf_sim_etcd *etcd, const char *key)
{
    end_leases(etcd);
    struct item *item = item_of(etcd, key);
    return item ? &item->kv : NULL;
}

void kvf_sim_etcd_put(struct kvf_sim_etcd *etcd, const char *key, const char *value)
{
    etcd->revision += set(etcd, key, value, 0, etcd->revision + 1);
}

uint64_t kvf_sim_etcd_revision(const struct kvf_sim_etcd *etcd)
{
    return etcd->revision;
}

unsigned kvf_sim_etcd_leases(struct kvf_sim_etcd *etcd)
{
    unsigned n = 0;
    end_leases(etcd);
    for (struct lease *lease = etcd->leases; lease; lease = lease->next)
        n++;
    return n;
}

void kvf_sim_etcd_expire(struct kvf_sim_etcd *etcd, uint64_t lease)
{
    if (lease_of(etcd, lease))
        end_lease(etcd, lease_of(etcd, lease));
}

uint64_t kvf_sim_store_requests(const struct kvf_store *store)
{
    return ((const struct client *)store)->requests;
}
