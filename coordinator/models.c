/* Models: the first who names one says what it is, everybody else is compared with that. */
#include "coordinator/internal.h"

#include <stdio.h>
#include <string.h>

static bool is_same(const struct kvf_records_model *a, const struct kvf_records_model *b)
{
    const struct kvf_model_desc *x = &a->desc, *y = &b->desc;
    return a->fingerprint == b->fingerprint && x->weights_id == y->weights_id && x->layers == y->layers &&
           x->kv_heads == y->kv_heads && x->q_heads == y->q_heads && x->dim_k == y->dim_k && x->dim_v == y->dim_v &&
           x->dtype == y->dtype && x->chunk_tokens == y->chunk_tokens && x->block_tokens == y->block_tokens;
}

/* An outcome that is not known is a failure here: registering again finds the record and compares. */
static enum kvf_status verdict(struct kvf_coord *coord, const struct kvf_call *call, const struct kvf_store_result *result)
{
    char key[KVF_STORE_KEY_MAX];
    struct kvf_records_model standing;
    if (result->status != KVF_OK)
        return result->status == KVF_CANCELLED ? KVF_CANCELLED : KVF_ERR_STORE;
    if (result->succeeded)
        return KVF_OK;
    kvf_records_model_key(coord->prefix, call->model.desc.name, key);
    const struct kvf_store_kv *kv = kvf_coord_find(result, key);
    if (!kv)
        return KVF_ERR_STORE;
    if (!kvf_records_decode_model(call->model.desc.name, kv->value, &standing)) {
        kvf_coord_refuse_record(coord, key, kv->mod_revision);
        return KVF_ERR_MODEL;
    }
    return is_same(&call->model, &standing) ? KVF_OK : KVF_ERR_MODEL;
}

static void on_answer(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    enum kvf_status status = verdict(coord, call, result);
    kvf_coord_model_fn done = call->model_done;
    void *arg = call->arg;
    kvf_calls_give(call);
    if (done)
        done(arg, status);
}

static enum kvf_status send_txn(struct kvf_coord *coord, struct kvf_call *call)
{
    struct kvf_store_txn *txn = &coord->txn;
    struct kvf_store_compare *compare = &txn->compare[0];
    struct kvf_store_put *put = &txn->put[0];
    txn->n_compare = txn->n_put = txn->n_read = 1;
    if (!kvf_records_model_key(coord->prefix, call->model.desc.name, put->key) ||
        !kvf_records_encode_model(&call->model.desc, call->model.fingerprint, put->value))
        return KVF_ERR_INVALID;
    put->lease = 0;
    put->remove = false;
    compare->what = KVF_COMPARE_ABSENT;
    memcpy(compare->key, put->key, sizeof put->key);
    memcpy(txn->read[0], put->key, sizeof put->key);
    return coord->store->ops->txn(coord->store, txn, kvf_calls_answered, call);
}

enum kvf_status kvf_coord_model_register(struct kvf_coord *coord, const struct kvf_model_desc *desc, uint64_t fingerprint,
                                         kvf_coord_model_fn done, void *arg)
{
    if (!memchr(desc->name, 0, sizeof desc->name) || !kvf_records_name_ok(desc->name))
        return KVF_ERR_INVALID;
    struct kvf_call *call = kvf_calls_take(coord, on_answer);
    if (!call)
        return KVF_ERR_BUSY;
    call->model = (struct kvf_records_model){.desc = *desc, .fingerprint = fingerprint};
    call->model_done = done;
    call->arg = arg;
    enum kvf_status status = send_txn(coord, call);
    if (status != KVF_OK)
        kvf_calls_give(call);
    return status;
}
