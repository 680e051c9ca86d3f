/* The coordinator's life: joining, what the watch says, leaving. internal.h names the other parts. */
#include "coordinator/internal.h"
#include "base/hash.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_FIRST_NS (100 * KVF_MS)
#define RETRY_LAST_NS (2 * KVF_SEC)

/* ---------------------------------------------------------------------------------------------------- shared with the parts */

uint64_t kvf_coord_retry_at(struct kvf_coord *coord, unsigned failures)
{
    uint64_t delay = RETRY_FIRST_NS << (failures < 8 ? failures : 8), last = RETRY_LAST_NS;
    if (coord->ttl_ns / 3 < last)
        last = coord->ttl_ns / 3;
    if (delay > last)
        delay = last;
    delay -= coord->env->random(coord->env->arg) % (delay / 4 + 1);
    return kvf_deadline(kvf_now(coord->env), delay);
}

void kvf_coord_refuse_record(struct kvf_coord *coord, const char *key, uint64_t mod_revision)
{
    uint64_t hash = kvf_hash(key, strlen(key), mod_revision);
    unsigned known = coord->n_hostile < KVF_HOSTILE_MAX ? coord->n_hostile : KVF_HOSTILE_MAX;
    for (unsigned i = 0; i < known; i++)
        if (coord->hostile[i] == hash)
            return;
    coord->hostile[coord->n_hostile++ % KVF_HOSTILE_MAX] = hash;
    kvf_log_warn(coord->log, "key %s in etcd holds no record of this version; it is ignored", key);
}

void kvf_coord_note(struct kvf_coord *coord, enum kvf_status status)
{
    if (status == KVF_CANCELLED)
        return;
    bool yes = status == KVF_OK || status == KVF_ERR_NOT_FOUND;
    if (coord->reachable == (yes ? KVF_REACHABLE_YES : KVF_REACHABLE_NO))
        return;
    coord->reachable = yes ? KVF_REACHABLE_YES : KVF_REACHABLE_NO;
    if (coord->handler.store_state)
        coord->handler.store_state(coord->handler.arg, yes);
}

const struct kvf_store_kv *kvf_coord_find(const struct kvf_store_result *result, const char *key)
{
    for (size_t i = 0; i < result->n_kvs; i++)
        if (!strcmp(result->kvs[i].key, key))
            return &result->kvs[i];
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- news */

static void take_in(struct kvf_coord *coord, const struct kvf_store_kv *kv, bool force)
{
    const char *name;
    uint64_t id;
    switch (kvf_records_key(coord->prefix, kv->key, &name, &id)) {
    case KVF_RECORDS_MEMBER:
        if (kv->value)
            kvf_members_put(coord, name, kv, force);
        else
            kvf_members_delete(coord, name, kv->mod_revision);
        break;
    case KVF_RECORDS_SESSION:
        if (kv->value)
            kvf_placement_put(coord, id, kv, force);
        else
            kvf_placement_delete(coord, id, kv->mod_revision);
        break;
    case KVF_RECORDS_LEADER:
        if (kv->value)
            kvf_election_put(coord, kv, force);
        else
            kvf_election_delete(coord, kv->mod_revision);
        break;
    case KVF_RECORDS_MODEL:
        break; /* compared when somebody registers one */
    case KVF_RECORDS_OTHER:
        if (kv->value)
            kvf_coord_refuse_record(coord, kv->key, kv->mod_revision);
        break;
    }
}

static void on_watch(void *arg, const struct kvf_store_kv *kvs, size_t n, uint64_t revision, bool lost)
{
    struct kvf_coord *coord = arg;
    kvf_coord_note(coord, KVF_OK);
    if (lost) {
        coord->synced = false;
        coord->next_ns = 0;
        return;
    }
    for (size_t i = 0; i < n; i++)
        take_in(coord, &kvs[i], false);
    if (revision > coord->revision)
        coord->revision = revision;
    kvf_fresh_told(coord);
}

/* ---------------------------------------------------------------------------------------------------- joining */

static void end_join(struct kvf_coord *coord, enum kvf_status status)
{
    coord->state = status == KVF_OK ? KVF_JOIN_JOINED : KVF_JOIN_OFF;
    if (status != KVF_OK)
        kvf_keepalive_end(&coord->lease);
    if (coord->handler.joined)
        coord->handler.joined(coord->handler.arg, status);
}

static void step_failed(struct kvf_coord *coord)
{
    coord->next_ns = kvf_coord_retry_at(coord, coord->failures++);
    if (coord->state == KVF_JOIN_JOINING && !coord->retry)
        end_join(coord, KVF_ERR_STORE);
}

static bool is_in(const struct kvf_coord *coord)
{
    return coord->state == KVF_JOIN_JOINING || coord->state == KVF_JOIN_JOINED;
}

/* A new lease holds no record yet; and while the old one ended much may have happened. */
static void on_lease(struct kvf_coord *coord, enum kvf_status status)
{
    if (!is_in(coord))
        return;
    coord->registered = false;
    coord->next_ns = 0;
    if (status == KVF_ERR_NOT_FOUND) {
        coord->synced = false;
        kvf_log_warn(coord->log, "the lease ended; joining again");
    } else if (status != KVF_OK) {
        step_failed(coord);
    }
}

void kvf_coord_self_removed(struct kvf_coord *coord, uint64_t revision)
{
    if (coord->registered && revision > coord->registered_revision) {
        coord->registered = false;
        coord->next_ns = 0;
    }
}

static void set_registered(struct kvf_coord *coord, uint64_t revision)
{
    coord->registered = true;
    coord->registered_revision = revision;
    coord->put_guard = 0;
    coord->failures = 0;
    coord->next_ns = 0;
}

/* Our name has a record already: an earlier put of ours, or somebody else. */
static void on_taken(struct kvf_coord *coord, const struct kvf_store_kv *kv)
{
    struct kvf_member standing;
    bool readable = kvf_records_decode_member(coord->self.name, kv->value, &standing);
    if (!readable || standing.incarnation != coord->self.incarnation) {
        /* Who waits for the join is told by its status; who goes on without is told here. */
        kvf_log_write(coord->log, coord->retry ? KVF_LOG_ERROR : KVF_LOG_INFO, "the name %s is taken by another living node",
                      coord->self.name);
        end_join(coord, KVF_ERR_EXISTS);
    } else if (kv->lease == coord->lease.id) {
        set_registered(coord, kv->mod_revision);
    } else {
        coord->put_guard = kv->mod_revision; /* it hangs on a lease that we no longer keep: put it again, over that one */
        coord->next_ns = 0;
    }
}

static void on_put(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    char key[KVF_STORE_KEY_MAX];
    uint64_t lease = call->lease;
    kvf_calls_give(call);
    coord->busy = false;
    if (!is_in(coord) || result->status == KVF_CANCELLED || lease != coord->lease.id)
        return;
    kvf_records_member_key(coord->prefix, coord->self.name, key);
    const struct kvf_store_kv *kv = kvf_coord_find(result, key);
    coord->put_guard = 0;
    if (result->status == KVF_ERR_NOT_FOUND)
        kvf_keepalive_forget(coord, &coord->lease);
    else if (result->status != KVF_OK)
        step_failed(coord);
    else if (result->succeeded)
        set_registered(coord, result->revision);
    else if (kv)
        on_taken(coord, kv);
}

static bool send_put(struct kvf_coord *coord)
{
    struct kvf_store_txn *txn = &coord->txn;
    struct kvf_store_compare *compare = &txn->compare[0];
    struct kvf_store_put *put = &txn->put[0];
    struct kvf_call *call = kvf_calls_take(coord, on_put);
    if (!call)
        return false;
    txn->n_compare = txn->n_put = txn->n_read = 1;
    compare->what = coord->put_guard ? KVF_COMPARE_MOD_REVISION : KVF_COMPARE_ABSENT;
    compare->mod_revision = coord->put_guard;
    call->lease = put->lease = coord->lease.id;
    put->remove = false;
    bool good = kvf_records_member_key(coord->prefix, coord->self.name, put->key) &&
                kvf_records_encode_member(&coord->self, put->value);
    memcpy(compare->key, put->key, sizeof put->key);
    memcpy(txn->read[0], put->key, sizeof put->key);
    if (!good || coord->store->ops->txn(coord->store, txn, kvf_calls_answered, call) != KVF_OK) {
        kvf_calls_give(call);
        return false;
    }
    return true;
}

/* A range is as new as anything known when it was sent. Older than that: etcd was restored from a backup or is another one, and
 * its word counts against ours. */
static void on_range(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    kvf_calls_give(call);
    coord->busy = false;
    if (!is_in(coord) || result->status == KVF_CANCELLED)
        return;
    if (result->status != KVF_OK) {
        step_failed(coord);
        return;
    }
    bool back = result->revision < coord->range_sent_revision;
    uint64_t sweep = back ? UINT64_MAX : result->revision;
    kvf_members_unsee(coord);
    kvf_placement_unsee(coord);
    coord->election.seen = false;
    for (size_t i = 0; i < result->n_kvs; i++)
        take_in(coord, &result->kvs[i], back);
    kvf_members_sweep(coord, sweep);
    kvf_placement_sweep(coord, sweep);
    kvf_election_sweep(coord, back ? UINT64_MAX : result->revision);
    if (back && !coord->election.present)
        coord->election.mod_revision = result->revision;

    coord->revision = result->revision;
    char prefix[KVF_STORE_KEY_MAX];
    snprintf(prefix, sizeof prefix, "%.254s/", coord->prefix);
    if (coord->store->ops->watch(coord->store, prefix, result->revision + 1, on_watch, coord) != KVF_OK) {
        step_failed(coord);
        return;
    }
    coord->synced = true;
    coord->failures = 0;
    kvf_fresh_ranged(coord);
    if (coord->state == KVF_JOIN_JOINING)
        end_join(coord, KVF_OK);
}

static bool send_range(struct kvf_coord *coord)
{
    char prefix[KVF_STORE_KEY_MAX];
    struct kvf_call *call = kvf_calls_take(coord, on_range);
    if (!call)
        return false;
    snprintf(prefix, sizeof prefix, "%.254s/", coord->prefix);
    coord->range_sent_revision = coord->revision;
    coord->range = kvf_fresh_sends(coord);
    if (coord->store->ops->range(coord->store, prefix, kvf_calls_answered, call) != KVF_OK) {
        kvf_calls_give(call);
        return false;
    }
    return true;
}

/* Whether a step of joining is to be made: the record first, then the range. */
static bool wants_step(const struct kvf_coord *coord)
{
    if (!is_in(coord) || coord->busy || (!coord->observer && !coord->lease.id))
        return false;
    return (!coord->observer && !coord->registered) || !coord->synced;
}

static unsigned advance(struct kvf_coord *coord)
{
    if (!wants_step(coord) || kvf_now(coord->env) < coord->next_ns)
        return 0;
    coord->busy = !coord->observer && !coord->registered ? send_put(coord) : send_range(coord);
    if (!coord->busy)
        coord->next_ns = kvf_coord_retry_at(coord, 0);
    return coord->busy;
}

/* ---------------------------------------------------------------------------------------------------- life */

enum kvf_status kvf_coord_create(const struct kvf_coord_config *config, struct kvf_coord **out)
{
    assert(config && config->env && config->store && config->log && out);
    size_t length = config->prefix ? strlen(config->prefix) : 0;
    while (length && config->prefix[length - 1] == '/')
        length--;
    if (!length || length > KVF_STORE_KEY_MAX - 96) /* room for "/sessions/" and the longest name */
        return KVF_ERR_INVALID;
    struct kvf_coord *coord = calloc(1, sizeof *coord);
    if (!coord)
        return KVF_ERR_NO_MEMORY;
    coord->calls = kvf_calls_create(coord);
    if (!coord->calls) {
        free(coord);
        return KVF_ERR_NO_MEMORY;
    }
    memcpy(coord->prefix, config->prefix, length);
    coord->env = config->env;
    coord->store = config->store;
    coord->log = config->log;
    coord->handler = config->handler;
    coord->ttl_ns = config->lease_ttl_ns ? config->lease_ttl_ns : 5 * KVF_SEC;
    coord->observer = true;
    *out = coord;
    return KVF_OK;
}

enum kvf_status kvf_coord_join(struct kvf_coord *coord, const struct kvf_member *member, bool retry)
{
    if (coord->state != KVF_JOIN_OFF || coord->busy || coord->lease.ending)
        return KVF_ERR_STATE;
    struct kvf_member again; /* what others could not read is not published */
    char *text = coord->txn.put[0].value;
    if (member && (!kvf_records_encode_member(member, text) || !kvf_records_decode_member(member->name, text, &again)))
        return KVF_ERR_INVALID;
    coord->state = KVF_JOIN_JOINING;
    coord->observer = !member;
    coord->retry = retry;
    coord->registered = coord->synced = false;
    coord->next_ns = 0;
    coord->failures = 0;
    if (member) {
        coord->self = *member;
        kvf_keepalive_start(&coord->lease, on_lease);
    }
    return KVF_OK;
}

void kvf_coord_leave(struct kvf_coord *coord)
{
    if (coord->state == KVF_JOIN_LEAVING || coord->state == KVF_JOIN_LEFT)
        return;
    coord->state = KVF_JOIN_LEAVING;
    coord->store->ops->watch(coord->store, NULL, 0, NULL, NULL);
    kvf_keepalive_end(&coord->lease);
    kvf_keepalive_end(&coord->election.lease);
}

bool kvf_coord_left(const struct kvf_coord *coord)
{
    return coord->state == KVF_JOIN_LEFT;
}

void kvf_coord_destroy(struct kvf_coord *coord)
{
    if (!coord)
        return;
    coord->store->ops->watch(coord->store, NULL, 0, NULL, NULL);
    kvf_calls_destroy(coord->calls);
    kvf_members_free(&coord->members);
    kvf_placement_free(&coord->placements);
    free(coord);
}

unsigned kvf_coord_poll(struct kvf_coord *coord)
{
    unsigned n = coord->store->ops->poll(coord->store);
    n += kvf_keepalive_poll(coord, &coord->lease);
    n += kvf_fresh_poll(coord);
    n += advance(coord);
    n += kvf_election_poll(coord);
    if (coord->state == KVF_JOIN_LEAVING && !coord->lease.wanted && !coord->election.lease.wanted && !coord->busy) {
        coord->state = KVF_JOIN_LEFT;
        n++;
    }
    return n;
}

uint64_t kvf_coord_next_timer(const struct kvf_coord *coord)
{
    uint64_t next = kvf_keepalive_next(&coord->lease), election = kvf_election_next(coord);
    uint64_t fresh = kvf_fresh_next(coord);
    if (wants_step(coord) && coord->next_ns < next)
        next = coord->next_ns;
    next = fresh < next ? fresh : next;
    return election < next ? election : next;
}
