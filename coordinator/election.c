/* The leader: whoever creates the one key, for as long as its lease lives.
 *
 *   no key stands  -> create it under our lease; etcd lets one win
 *   a key stands   -> wait until the watch says that it is gone
 *   ours stands, but our lease was not renewed within its time by our own clock -> we tell ourselves that there is no leader,
 *                     because somebody else may be one already */
#include "coordinator/internal.h"

#include <stdio.h>
#include <string.h>

static bool is_ours(const struct kvf_election *e)
{
    return e->present && e->lease.id && e->leader_lease == e->lease.id;
}

/* Tells the handler when what there is to tell has changed. */
static unsigned announce(struct kvf_coord *coord)
{
    struct kvf_election *e = &coord->election;
    bool stale = is_ours(e) && kvf_now(coord->env) >= e->lease.alive_until_ns;
    const char *leader = e->present && !stale ? e->leader : "";
    if (!strcmp(leader, e->announced))
        return 0;
    snprintf(e->announced, sizeof e->announced, "%s", leader);
    if (coord->handler.leader)
        coord->handler.leader(coord->handler.arg, e->announced);
    return 1;
}

void kvf_election_put(struct kvf_coord *coord, const struct kvf_store_kv *kv, bool force)
{
    struct kvf_election *e = &coord->election;
    e->seen = true;
    if (force ? kv->mod_revision == e->mod_revision : kv->mod_revision <= e->mod_revision)
        return;
    e->present = true;
    e->mod_revision = kv->mod_revision;
    e->leader_lease = kv->lease;
    if (!kvf_records_decode_leader(kv->value, e->leader)) {
        e->leader[0] = 0;
        kvf_coord_refuse_record(coord, kv->key, kv->mod_revision);
    }
    announce(coord);
}

void kvf_election_delete(struct kvf_coord *coord, uint64_t revision)
{
    struct kvf_election *e = &coord->election;
    if (revision <= e->mod_revision)
        return;
    e->present = false;
    e->mod_revision = revision;
    e->next_ns = 0;
    announce(coord);
}

void kvf_election_sweep(struct kvf_coord *coord, uint64_t revision)
{
    struct kvf_election *e = &coord->election;
    if (!e->seen && e->mod_revision <= revision) {
        e->present = false;
        e->mod_revision = revision;
        announce(coord);
    }
}

static void on_lease(struct kvf_coord *coord, enum kvf_status status)
{
    coord->election.next_ns = 0;
    announce(coord);
}

static void on_answer(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    struct kvf_election *e = &coord->election;
    char key[KVF_STORE_KEY_MAX];
    kvf_calls_give(call);
    e->busy = false;
    e->next_ns = kvf_coord_retry_at(coord, e->failures);
    if (result->status != KVF_OK) {
        e->failures++;
        if (result->status == KVF_ERR_NOT_FOUND)
            kvf_keepalive_forget(coord, &e->lease);
        return;
    }
    e->failures = 0;
    kvf_records_leader_key(coord->prefix, key);
    const struct kvf_store_kv *kv = kvf_coord_find(result, key);
    if (kv && result->revision >= coord->revision)
        kvf_election_put(coord, kv, false);
}

/* Tries to create the key. */
static bool stand(struct kvf_coord *coord)
{
    struct kvf_election *e = &coord->election;
    struct kvf_store_txn *txn = &coord->txn;
    struct kvf_store_compare *compare = &txn->compare[0];
    struct kvf_store_put *put = &txn->put[0];
    struct kvf_call *call = kvf_calls_take(coord, on_answer);
    txn->n_compare = txn->n_put = txn->n_read = 1;
    compare->what = KVF_COMPARE_ABSENT;
    put->lease = e->lease.id;
    put->remove = false;
    bool good = call && kvf_records_leader_key(coord->prefix, put->key) && kvf_records_encode_leader(e->name, put->value);
    if (good) {
        memcpy(compare->key, put->key, sizeof put->key);
        memcpy(txn->read[0], put->key, sizeof put->key);
        good = coord->store->ops->txn(coord->store, txn, kvf_calls_answered, call) == KVF_OK;
    }
    if (!good) {
        if (call)
            kvf_calls_give(call);
        e->next_ns = kvf_coord_retry_at(coord, 0);
        return false;
    }
    e->busy = true;
    return true;
}

static bool may_stand(const struct kvf_coord *coord)
{
    const struct kvf_election *e = &coord->election;
    return e->name[0] && coord->state == KVF_JOIN_JOINED && coord->synced && e->lease.id && !e->lease.ending && !e->present &&
           !e->busy;
}

unsigned kvf_election_poll(struct kvf_coord *coord)
{
    struct kvf_election *e = &coord->election;
    unsigned n = kvf_keepalive_poll(coord, &e->lease) + announce(coord);
    if (may_stand(coord) && kvf_now(coord->env) >= e->next_ns)
        n += stand(coord);
    return n;
}

uint64_t kvf_election_next(const struct kvf_coord *coord)
{
    const struct kvf_election *e = &coord->election;
    uint64_t next = kvf_keepalive_next(&e->lease);
    if (may_stand(coord) && e->next_ns < next)
        next = e->next_ns;
    if (is_ours(e) && !strcmp(e->announced, e->leader) && e->lease.alive_until_ns < next)
        next = e->lease.alive_until_ns;
    return next;
}

enum kvf_status kvf_coord_campaign(struct kvf_coord *coord, const char *name)
{
    struct kvf_election *e = &coord->election;
    if (!kvf_records_name_ok(name))
        return KVF_ERR_INVALID;
    if (e->name[0] || coord->state == KVF_JOIN_LEAVING || coord->state == KVF_JOIN_LEFT)
        return KVF_ERR_STATE;
    snprintf(e->name, sizeof e->name, "%s", name);
    kvf_keepalive_start(&e->lease, on_lease);
    return KVF_OK;
}
