/* The transactions on placement.
 *
 * A change is guarded by the mod_revision of the record whose (home, epoch) the caller named: if that still stands, nobody
 * changed anything. What the watch knows is tried first; when it is not what the caller named or not what stands any more, what
 * stands is looked at and either refused or tried again with its revision:
 *
 *     start -> writing -> done
 *        \        | the compare failed: here is what stands
 *         \       v
 *          `-> reading -> (guard holds) writing ...  |  (not) done: STALE, NOT_FOUND */
#include "coordinator/internal.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define TRIES_MAX 8

static void finish(struct kvf_call *call, enum kvf_status status, const struct kvf_placement *standing)
{
    kvf_coord_fn done = call->done;
    void *arg = call->arg;
    kvf_calls_give(call);
    if (done)
        done(arg, status, standing);
}

static enum kvf_status send_txn(struct kvf_coord *coord, struct kvf_call *call, uint64_t mod_revision)
{
    struct kvf_store_txn *txn = &coord->txn;
    char key[KVF_STORE_KEY_MAX];
    txn->n_compare = txn->n_put = 0;
    txn->n_read = 1;
    if (!kvf_records_session_key(coord->prefix, call->want.id, key))
        return KVF_ERR_INVALID;
    snprintf(txn->read[0], sizeof txn->read[0], "%s", key);
    if (call->writing) {
        struct kvf_store_compare *compare = &txn->compare[txn->n_compare++];
        struct kvf_store_put *put = &txn->put[txn->n_put++];
        compare->what = mod_revision ? KVF_COMPARE_MOD_REVISION : KVF_COMPARE_ABSENT;
        compare->mod_revision = mod_revision;
        snprintf(compare->key, sizeof compare->key, "%s", key);
        snprintf(put->key, sizeof put->key, "%s", key);
        put->lease = 0;
        put->remove = call->op == KVF_OP_SESSION_REMOVE;
        if (!put->remove && !kvf_records_encode_placement(&call->want, put->value))
            return KVF_ERR_NO_MEMORY;
    }
    return coord->store->ops->txn(coord->store, txn, kvf_calls_answered, call);
}

/* Writes over what stands at `mod_revision` (0: nothing). */
static enum kvf_status write_over(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_placement *standing)
{
    struct kvf_placement *want = &call->want;
    call->writing = true;
    call->tries++;
    if (standing)
        snprintf(want->model, sizeof want->model, "%s", standing->model);
    if (standing && call->op == KVF_OP_SESSION_MOVE)
        want->state = standing->state;
    return send_txn(coord, call, standing ? standing->mod_revision : 0);
}

static bool guard_holds(const struct kvf_call *call, const struct kvf_placement *standing)
{
    return standing && standing->epoch == call->epoch && !strcmp(standing->home, call->home);
}

/* What stands is known: goes on, or ends the call. */
static void judge(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_placement *standing)
{
    if (!standing) {
        finish(call, KVF_ERR_NOT_FOUND, NULL);
    } else if (!guard_holds(call, standing)) {
        finish(call, KVF_ERR_STALE, standing);
    } else if (call->tries >= TRIES_MAX || write_over(coord, call, standing) != KVF_OK) {
        finish(call, KVF_ERR_STORE, NULL);
    }
}

/* The answer to a write or a read that etcd carried out. */
static void on_known(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    char key[KVF_STORE_KEY_MAX];
    struct kvf_placement room;
    kvf_records_session_key(coord->prefix, call->want.id, key);
    const struct kvf_store_kv *kv = kvf_coord_find(result, key);
    const struct kvf_placement *standing = NULL;
    if (kv) {
        if (!kvf_records_decode_placement(call->want.id, kv->value, &room)) {
            kvf_coord_refuse_record(coord, key, kv->mod_revision);
            finish(call, KVF_ERR_STORE, NULL);
            return;
        }
        room.mod_revision = kv->mod_revision;
        standing = &room;
        kvf_placement_learn(coord, standing, result->revision);
    }
    if (call->op == KVF_OP_SESSION_READ)
        finish(call, standing ? KVF_OK : KVF_ERR_NOT_FOUND, standing);
    else if (call->writing && result->succeeded)
        finish(call, KVF_OK, standing);
    else if (call->op == KVF_OP_SESSION_CREATE)
        finish(call, standing ? KVF_ERR_EXISTS : KVF_ERR_STORE, standing);
    else
        judge(coord, call, standing);
}

static void on_answer(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    if (result->status == KVF_OK)
        on_known(coord, call, result);
    else if (result->status == KVF_CANCELLED)
        finish(call, KVF_CANCELLED, NULL);
    else if (result->status == KVF_ERR_DEADLINE && call->writing)
        finish(call, KVF_ERR_DEADLINE, NULL);
    else
        finish(call, KVF_ERR_STORE, NULL); /* a read that failed changed nothing */
}

static struct kvf_call *take(struct kvf_coord *coord, enum kvf_session_op op, uint64_t id, kvf_coord_fn done, void *arg)
{
    struct kvf_call *call = kvf_calls_take(coord, on_answer);
    if (call) {
        call->op = op;
        call->want.id = id;
        call->done = done;
        call->arg = arg;
    }
    return call;
}

/* Sends the first request. On a failure the callback is not called. */
static enum kvf_status begin(struct kvf_coord *coord, struct kvf_call *call)
{
    enum kvf_status status;
    const struct kvf_placement *known = kvf_coord_placement_known(coord, call->want.id);
    if (call->op == KVF_OP_SESSION_CREATE)
        status = write_over(coord, call, NULL);
    else if (call->op != KVF_OP_SESSION_READ && guard_holds(call, known))
        status = write_over(coord, call, known);
    else
        status = send_txn(coord, call, 0);
    if (status != KVF_OK)
        kvf_calls_give(call);
    return status;
}

/* A change of what stands under the guard (home, epoch). */
static enum kvf_status change(struct kvf_coord *coord, enum kvf_session_op op, const struct kvf_placement *want, const char *home,
                              uint64_t epoch, kvf_coord_fn done, void *arg)
{
    if (!want->id || !kvf_records_name_ok(home) || !kvf_records_name_ok(want->home) || !epoch || epoch >= INT64_MAX - 1 ||
        want->tokens > INT64_MAX)
        return KVF_ERR_INVALID;
    struct kvf_call *call = take(coord, op, want->id, done, arg);
    if (!call)
        return KVF_ERR_BUSY;
    call->want = *want;
    call->epoch = epoch;
    snprintf(call->home, sizeof call->home, "%s", home);
    return begin(coord, call);
}

enum kvf_status kvf_coord_session_create(struct kvf_coord *coord, uint64_t id, const char *home, const char *model,
                                         kvf_coord_fn done, void *arg)
{
    assert(coord);
    if (!id || !kvf_records_name_ok(home) || !kvf_records_name_ok(model))
        return KVF_ERR_INVALID;
    struct kvf_call *call = take(coord, KVF_OP_SESSION_CREATE, id, done, arg);
    if (!call)
        return KVF_ERR_BUSY;
    call->want.epoch = 1;
    snprintf(call->want.home, sizeof call->want.home, "%s", home);
    snprintf(call->want.model, sizeof call->want.model, "%s", model);
    return begin(coord, call);
}

enum kvf_status kvf_coord_session_move(struct kvf_coord *coord, uint64_t id, const char *home, uint64_t epoch, const char *to,
                                       uint64_t tokens, kvf_coord_fn done, void *arg)
{
    struct kvf_placement want = {.id = id, .epoch = epoch + 1, .tokens = tokens};
    snprintf(want.home, sizeof want.home, "%s", to);
    return strlen(to) < sizeof want.home ? change(coord, KVF_OP_SESSION_MOVE, &want, home, epoch, done, arg) : KVF_ERR_INVALID;
}

enum kvf_status kvf_coord_session_update(struct kvf_coord *coord, uint64_t id, const char *home, uint64_t epoch,
                                         enum kvf_session_state state, uint64_t tokens, kvf_coord_fn done, void *arg)
{
    struct kvf_placement want = {.id = id, .epoch = epoch, .tokens = tokens, .state = state};
    snprintf(want.home, sizeof want.home, "%s", home);
    if (state != KVF_SESSION_ACTIVE && state != KVF_SESSION_PARKED)
        return KVF_ERR_INVALID;
    return change(coord, KVF_OP_SESSION_UPDATE, &want, home, epoch, done, arg);
}

enum kvf_status kvf_coord_session_remove(struct kvf_coord *coord, uint64_t id, const char *home, uint64_t epoch,
                                         kvf_coord_fn done, void *arg)
{
    struct kvf_placement want = {.id = id, .epoch = epoch};
    snprintf(want.home, sizeof want.home, "%s", home);
    return change(coord, KVF_OP_SESSION_REMOVE, &want, home, epoch, done, arg);
}

enum kvf_status kvf_coord_session_read(struct kvf_coord *coord, uint64_t id, kvf_coord_fn done, void *arg)
{
    if (!id)
        return KVF_ERR_INVALID;
    struct kvf_call *call = take(coord, KVF_OP_SESSION_READ, id, done, arg);
    return call ? begin(coord, call) : KVF_ERR_BUSY;
}
