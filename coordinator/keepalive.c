/* One lease, kept. */
#include "coordinator/internal.h"

#include <assert.h>

static void schedule(struct kvf_coord *coord, struct kvf_keepalive *k, enum kvf_status status)
{
    if (status == KVF_OK) {
        k->failures = 0;
        k->next_ns = kvf_deadline(k->sent_ns, k->ttl_ns / 3);
        k->alive_until_ns = kvf_deadline(k->sent_ns, k->ttl_ns);
    } else {
        k->next_ns = kvf_coord_retry_at(coord, k->failures++);
    }
}

static void on_granted(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    struct kvf_keepalive *k = call->keepalive;
    kvf_calls_give(call);
    k->busy = false;
    if (result->status == KVF_OK) {
        k->id = result->lease;
        k->ttl_ns = result->ttl_ns;
    }
    schedule(coord, k, result->status);
    if (!k->ending)
        k->changed(coord, result->status == KVF_ERR_NOT_FOUND ? KVF_ERR_STORE : result->status);
}

static void on_renewed(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    struct kvf_keepalive *k = call->keepalive;
    uint64_t lease = call->lease;
    kvf_calls_give(call);
    k->busy = false;
    if (k->ending || lease != k->id)
        return;
    if (result->status == KVF_ERR_NOT_FOUND || (result->status == KVF_OK && !result->ttl_ns)) {
        kvf_keepalive_forget(coord, k);
        return;
    }
    schedule(coord, k, result->status); /* etcd away: nothing is concluded */
}

/* Whatever the answer is: a lease that could not be revoked runs out by itself. */
static void on_revoked(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    struct kvf_keepalive *k = call->keepalive;
    kvf_calls_give(call);
    k->busy = k->ending = k->wanted = false;
    k->id = 0;
}

void kvf_keepalive_start(struct kvf_keepalive *k, void (*changed)(struct kvf_coord *coord, enum kvf_status status))
{
    bool busy = k->busy;
    if (k->wanted && !k->ending)
        return;
    *k = (struct kvf_keepalive){.wanted = true, .changed = changed, .busy = busy};
}

void kvf_keepalive_end(struct kvf_keepalive *k)
{
    k->ending = k->wanted;
}

void kvf_keepalive_forget(struct kvf_coord *coord, struct kvf_keepalive *k)
{
    k->id = 0;
    k->next_ns = 0;
    k->alive_until_ns = 0;
    k->changed(coord, KVF_ERR_NOT_FOUND);
}

/* Sends one request about the lease. */
static bool send(struct kvf_coord *coord, struct kvf_keepalive *k)
{
    struct kvf_store *store = coord->store;
    struct kvf_call *call = kvf_calls_take(coord, k->ending ? on_revoked : k->id ? on_renewed : on_granted);
    enum kvf_status status = KVF_ERR_BUSY;
    if (call) {
        call->keepalive = k;
        call->lease = k->id;
        if (k->ending)
            status = store->ops->lease_revoke(store, k->id, kvf_calls_answered, call);
        else if (k->id)
            status = store->ops->lease_keepalive(store, k->id, kvf_calls_answered, call);
        else
            status = store->ops->lease_grant(store, coord->ttl_ns, kvf_calls_answered, call);
    }
    if (status != KVF_OK) {
        if (call)
            kvf_calls_give(call);
        k->next_ns = kvf_coord_retry_at(coord, 0);
        return false;
    }
    k->busy = true;
    k->sent_ns = kvf_now(coord->env);
    return true;
}

unsigned kvf_keepalive_poll(struct kvf_coord *coord, struct kvf_keepalive *k)
{
    assert(!k->ending || k->wanted);
    if (k->busy || !k->wanted)
        return 0;
    if (k->ending && !k->id) {
        k->ending = k->wanted = false;
        return 1;
    }
    if (!k->ending && kvf_now(coord->env) < k->next_ns)
        return 0;
    return send(coord, k);
}

uint64_t kvf_keepalive_next(const struct kvf_keepalive *k)
{
    if (k->busy || !k->wanted)
        return KVF_NEVER;
    return k->ending ? 0 : k->next_ns;
}
