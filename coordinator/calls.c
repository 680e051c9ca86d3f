/* Requests to the store that are under way. */
#include "coordinator/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct kvf_calls *kvf_calls_create(struct kvf_coord *coord)
{
    struct kvf_calls *calls = calloc(1, sizeof *calls);
    if (calls)
        calls->coord = coord;
    return calls;
}

void kvf_calls_destroy(struct kvf_calls *calls)
{
    if (!calls)
        return;
    for (unsigned i = 0; i < KVF_CALLS_MAX; i++) {
        struct kvf_call *call = &calls->call[i];
        if (call->used && call->done)
            call->done(call->arg, KVF_CANCELLED, NULL);
        if (call->used && call->model_done)
            call->model_done(call->arg, KVF_CANCELLED);
    }
    calls->coord = NULL;
    if (!calls->n_used)
        free(calls);
}

struct kvf_call *kvf_calls_take(struct kvf_coord *coord, kvf_call_fn ended)
{
    struct kvf_calls *calls = coord->calls;
    for (unsigned i = 0; i < KVF_CALLS_MAX; i++) {
        struct kvf_call *call = &calls->call[i];
        if (call->used)
            continue;
        *call = (struct kvf_call){.pool = calls, .used = true, .ended = ended};
        calls->n_used++;
        return call;
    }
    return NULL;
}

void kvf_calls_give(struct kvf_call *call)
{
    assert(call->used && call->pool->n_used);
    call->used = false;
    call->pool->n_used--;
}

void kvf_calls_answered(void *arg, const struct kvf_store_result *result)
{
    struct kvf_call *call = arg;
    struct kvf_calls *calls = call->pool;
    if (!calls->coord) {
        kvf_calls_give(call);
        if (!calls->n_used)
            free(calls);
        return;
    }
    kvf_coord_note(calls->coord, result->status);
    call->ended(calls->coord, call, result);
}
