/* Steps: append, seal, commit, refill. Attention over what was appended is in attend.c. */
#include "node/dram.h"
#include "node/step.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- begin and end */

/* Under the lock. */
static enum kvf_status step_allowed(struct kvf_session *handle)
{
    if (atomic_load(&handle->moved))
        return KVF_MOVED;
    const struct kvf_sess *s = handle->sess;
    if (s->state == KVF_SESS_FROZEN || s->move_wanted)
        return KVF_ERR_BUSY;
    if (s->state != KVF_SESS_ACTIVE || s->parked || s->step_open)
        return KVF_ERR_STATE;
    return KVF_OK;
}

enum kvf_status kvf_step_begin(struct kvf_session *handle, const int32_t *tokens, uint32_t n)
{
    if (!handle || !tokens || n < 1 || n > KVF_STEP_TOKENS_MAX)
        return KVF_ERR_INVALID;
    struct kvf_core *core = handle->node->core;
    kvf_core_lock(core);
    enum kvf_status st = step_allowed(handle);
    struct kvf_sess *s = handle->sess;
    if (st == KVF_OK && s->lost > 0)
        st = KVF_LOST;
    if (st == KVF_OK)
        st = kvf_sess_tokens_room(s, s->n_tokens + n);
    if (st == KVF_OK) {
        s->step_open = true;
        s->step_refill = false;
        s->step_first = s->n_tokens;
        s->step_n = n;
        memcpy(s->step_tokens, tokens, n * sizeof *tokens);
        memset(s->step_layers, 0, s->model->desc.layers);
        handle->stepping = true;
    }
    kvf_core_unlock(core);
    return st;
}

/* Of a session and its forks, which share blocks, one refills at a time: so a block that is WRITING is that one's. */
static struct kvf_sess **refiller_of(struct kvf_sess *s)
{
    while (s->parent)
        s = s->parent;
    return &s->refiller;
}

enum kvf_status kvf_step_refill(struct kvf_session *handle, uint64_t first, uint32_t n)
{
    if (!handle || n < 1 || n > KVF_STEP_TOKENS_MAX)
        return KVF_ERR_INVALID;
    struct kvf_core *core = handle->node->core;
    kvf_core_lock(core);
    enum kvf_status st = step_allowed(handle);
    struct kvf_sess *s = handle->sess;
    uint32_t block = st == KVF_OK ? s->model->desc.block_tokens : 1;
    if (st == KVF_OK && (first % block || n % block || first + n > (uint64_t)s->sealed_blocks * block))
        st = KVF_ERR_INVALID;
    if (st == KVF_OK && *refiller_of(s))
        st = KVF_ERR_BUSY;
    if (st == KVF_OK) {
        *refiller_of(s) = s;
        s->step_open = s->step_refill = true;
        s->step_first = first;
        s->step_n = n;
        memcpy(s->step_tokens, s->tokens + first, n * sizeof *s->tokens);
        memset(s->step_layers, 0, s->model->desc.layers);
        handle->stepping = true;
    }
    kvf_core_unlock(core);
    return st;
}

/* The blocks that a refill was writing are lost again. */
static void refill_drop(struct kvf_sess *s)
{
    struct kvf_core *core = s->core;
    const struct kvf_model_desc *d = &s->model->desc;
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            for (uint64_t i = s->step_first / d->block_tokens; i < (s->step_first + s->step_n) / d->block_tokens; i++) {
                kvf_handle handle = kvf_sess_block(s, l, h, (uint32_t)i);
                struct kvf_entry *e = handle == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, handle);
                if (!e || e->state != KVF_BLOCK_WRITING)
                    continue;
                kvf_dram_free(core, kvf_entry_location(e), e->bytes);
                e->state = KVF_BLOCK_LOST;
            }
        }
    }
}

void kvf_sess_step_end(struct kvf_sess *s)
{
    if (!s->step_open)
        return;
    const struct kvf_model_desc *d = &s->model->desc;
    uint64_t open = s->n_tokens - (uint64_t)s->sealed_blocks * d->block_tokens;
    uint32_t keep = (uint32_t)((open + d->block_tokens - 1) / d->block_tokens);
    for (uint32_t stream = 0; stream < s->model->streams; stream++) {
        for (uint32_t i = keep; i < KVF_TAIL_BLOCKS; i++) {
            uint64_t *slot = &s->tail[stream * KVF_TAIL_BLOCKS + i];
            if (*slot != KVF_ARENA_NONE)
                kvf_dram_free(s->core, *slot, s->model->block_bytes);
            *slot = KVF_ARENA_NONE;
        }
    }
    if (s->step_refill) {
        refill_drop(s);
        *refiller_of(s) = NULL;
    }
    s->step_open = s->step_refill = false;
    kvf_core_changed(s->core);
}

void kvf_step_abort(struct kvf_session *handle)
{
    if (!handle || !handle->stepping)
        return;
    struct kvf_core *core = handle->node->core;
    handle->stepping = false;
    kvf_core_lock(core);
    kvf_sess_step_end(handle->sess);
    kvf_ahead_cancel(handle->sess);
    kvf_core_unlock(core);
}

/* ---------------------------------------------------------------- append */

/* Memory for one block; waits for spilling to make room. */
static enum kvf_status slot_wait(struct kvf_sess *s, uint64_t deadline_ns, uint64_t *out)
{
    struct kvf_core *core = s->core;
    for (bool first = true;; first = false) {
        *out = kvf_block_memory(core, s->model->block_bytes);
        if (*out != KVF_ARENA_NONE)
            return KVF_OK;
        if (first) /* what was true for an earlier waiter need not be true now */
            core->spill_stuck = false;
        kvf_core_wake(core);
        if (core->spill_stuck)
            return KVF_ERR_FULL;
        if (!kvf_core_wait(core, deadline_ns))
            return KVF_ERR_FULL;
    }
}

/* Where the rows of block `index` go in this step; NULL: it stands already (a refill beside blocks that are not lost). */
static enum kvf_status row_memory(struct kvf_sess *s, uint32_t layer, uint32_t head, uint32_t index, uint64_t deadline_ns,
                                  uint8_t **out)
{
    struct kvf_core *core = s->core;
    if (!s->step_refill) {
        uint32_t stream = layer * s->model->desc.kv_heads + head;
        if (index - s->sealed_blocks >= KVF_TAIL_BLOCKS)
            return KVF_ERR_FULL; /* the index is full, so nothing could be sealed for a while */
        uint64_t *slot = &s->tail[stream * KVF_TAIL_BLOCKS + (index - s->sealed_blocks)];
        if (*slot == KVF_ARENA_NONE) {
            enum kvf_status st = slot_wait(s, deadline_ns, slot);
            if (st != KVF_OK)
                return st;
        }
        *out = core->memory + *slot;
        return KVF_OK;
    }
    kvf_handle handle = kvf_sess_block(s, layer, head, index);
    struct kvf_entry *e = kvf_cluster_judge(core, handle);
    *out = NULL;
    if (!e)
        return KVF_LOST;
    if (e->state == KVF_BLOCK_LOST) {
        uint64_t at;
        enum kvf_status st = slot_wait(s, deadline_ns, &at);
        if (st != KVF_OK)
            return st;
        kvf_entry_set_location(e, at);
        e->tier = KVF_TIER_DRAM;
        e->peer = KVF_PEER_NONE;
        e->state = KVF_BLOCK_WRITING;
    }
    if (e->state == KVF_BLOCK_WRITING)
        *out = core->memory + kvf_entry_location(e);
    return KVF_OK;
}

/* The rows of the step that fall into one block. */
static void rows_write(struct kvf_sess *s, uint8_t *block, uint32_t index, uint32_t head, const float *k, const float *v)
{
    const struct kvf_model *m = s->model;
    const struct kvf_model_desc *d = &m->desc;
    const struct kvf_dev *dev = s->core->dev;
    size_t element = kvf_dtype_bytes(d->dtype);
    uint64_t from = (uint64_t)index * d->block_tokens, to = from + d->block_tokens;
    for (uint32_t t = 0; t < s->step_n; t++) {
        uint64_t at = s->step_first + t;
        if (at < from || at >= to)
            continue;
        uint32_t chunk = (uint32_t)(at - from) / d->chunk_tokens, row = (uint32_t)(at - from) % d->chunk_tokens;
        uint8_t *base = block + (size_t)chunk * m->chunk_bytes;
        dev->convert(dev, NULL, base + row * d->dim_k * element, d->dtype, k + ((size_t)t * d->kv_heads + head) * d->dim_k, KVF_F32,
                     d->dim_k);
        dev->convert(dev, NULL, base + (d->chunk_tokens * d->dim_k + row * d->dim_v) * element, d->dtype,
                     v + ((size_t)t * d->kv_heads + head) * d->dim_v, KVF_F32, d->dim_v);
    }
}

enum kvf_status kvf_step_append(struct kvf_session *handle, uint32_t layer, const float *k, const float *v)
{
    if (!handle || !k || !v)
        return KVF_ERR_INVALID;
    if (!handle->stepping)
        return atomic_load(&handle->moved) ? KVF_MOVED : KVF_ERR_STATE;
    struct kvf_sess *s = handle->sess;
    const struct kvf_model_desc *d = &s->model->desc;
    if (layer >= d->layers)
        return KVF_ERR_INVALID;
    if (s->step_layers[layer])
        return KVF_ERR_STATE;
    uint32_t first = (uint32_t)(s->step_first / d->block_tokens);
    uint32_t last = (uint32_t)((s->step_first + s->step_n - 1) / d->block_tokens);
    uint64_t deadline = kvf_deadline(kvf_now(s->core->env), s->core->settings.fetch_timeout_ns);
    for (uint32_t h = 0; h < d->kv_heads; h++) {
        for (uint32_t i = first; i <= last; i++) {
            uint8_t *block;
            kvf_core_lock(s->core);
            enum kvf_status st = row_memory(s, layer, h, i, deadline, &block);
            kvf_core_unlock(s->core);
            if (st != KVF_OK)
                return st;
            if (block)
                rows_write(s, block, i, h, k, v);
        }
    }
    s->step_layers[layer] = 1;
    return KVF_OK;
}

/* ---------------------------------------------------------------- commit */

/* A sealed block enters the index; room was reserved. Its checksums are computed outside the lock. */
static void seal_one(struct kvf_sess *s, uint32_t layer, uint32_t head, uint32_t index, uint64_t slot)
{
    struct kvf_core *core = s->core;
    const struct kvf_model *m = s->model;
    struct kvf_key key = kvf_block_key(s->id, layer, head, index);
    uint64_t sums[64], seed = kvf_block_seed(m->fingerprint, key);
    kvf_block_sum(core->dev, seed, core->memory + slot, m->block_bytes, m->chunk_bytes, UINT64_MAX, sums);
    kvf_sess_summarise(s, layer, head, index, core->memory + slot);
    kvf_core_lock(core);
    uint8_t wide;
    uint32_t sums_at = kvf_cold_words_new(core, s->model, core->cold_format, &wide);
    kvf_handle handle = KVF_HANDLE_NONE;
    enum kvf_status st = kvf_index_add(core->index, key, &handle);
    assert(sums_at != KVF_SUMS_NONE && st == KVF_OK);
    (void)st;
    core->entries_reserved--;
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    memcpy(kvf_sums_at(core->sums, sums_at), sums, m->chunks * sizeof *sums);
    e->sums = sums_at;
    kvf_entry_set_shape(e, m->number, m->chunks);
    e->bytes = m->block_bytes;
    e->flags = KVF_FLAG_SUMMARY | wide;
    e->state = KVF_BLOCK_WRITING;
    kvf_block_place(core, handle, KVF_TIER_DRAM, KVF_PEER_NONE, slot);
    kvf_count(&core->counters.blocks_sealed, 1);
    kvf_core_unlock(core);
}

/* Whether a block of an earlier session of this id still stands where the next one goes: it was removed, and goes when those who
 * read or copy it have ended. */
static bool seal_waits(struct kvf_sess *s)
{
    const struct kvf_model_desc *d = &s->model->desc;
    for (uint32_t l = 0; l < d->layers; l++)
        for (uint32_t h = 0; h < d->kv_heads; h++)
            if (kvf_index_find(s->core->index, kvf_block_key(s->id, l, h, s->sealed_blocks)) != KVF_HANDLE_NONE)
                return true;
    return false;
}

/* Seals the first open block of every stream. ERR_BUSY: the index takes none now; nothing was sealed. */
static enum kvf_status seal_blocks(struct kvf_sess *s)
{
    const struct kvf_model_desc *d = &s->model->desc;
    kvf_core_lock(s->core);
    bool room = !seal_waits(s) && kvf_block_reserve(s->core, s->model->streams);
    kvf_core_unlock(s->core);
    if (!room)
        return KVF_ERR_BUSY;
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            uint64_t *tail = &s->tail[(l * d->kv_heads + h) * KVF_TAIL_BLOCKS];
            seal_one(s, l, h, s->sealed_blocks, tail[0]);
            memmove(tail, tail + 1, (KVF_TAIL_BLOCKS - 1) * sizeof *tail);
            tail[KVF_TAIL_BLOCKS - 1] = KVF_ARENA_NONE;
        }
    }
    kvf_core_lock(s->core);
    s->sealed_blocks++;
    kvf_core_unlock(s->core);
    return KVF_OK;
}

/* The blocks that this refill wrote are whole again. */
static void refill_commit(struct kvf_sess *s)
{
    struct kvf_core *core = s->core;
    const struct kvf_model *m = s->model;
    const struct kvf_model_desc *d = &m->desc;
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            for (uint64_t i = s->step_first / d->block_tokens; i < (s->step_first + s->step_n) / d->block_tokens; i++) {
                kvf_core_lock(core);
                kvf_handle handle = kvf_sess_block(s, l, h, (uint32_t)i);
                struct kvf_entry *e = kvf_index_entry(core->index, handle);
                bool ours = e->state == KVF_BLOCK_WRITING; /* nobody else touches it until it is placed */
                uint64_t *sums = kvf_sums_at(core->sums, e->sums);
                kvf_core_unlock(core);
                if (!ours)
                    continue;
                const uint8_t *block = core->memory + kvf_entry_location(e);
                kvf_block_sum(core->dev, kvf_block_seed(m->fingerprint, e->key), block, e->bytes, m->chunk_bytes, UINT64_MAX, sums);
                kvf_core_lock(core);
                struct kvf_sess *owner = kvf_block_session(core, e); /* a fork refills its parent's blocks too */
                kvf_sess_summarise(s, l, h, (uint32_t)i, block);
                if (owner == s && s->forks == 0) /* who shares it has no summary of it, unless it had one before */
                    e->flags |= KVF_FLAG_SUMMARY;
                kvf_block_place(core, handle, KVF_TIER_DRAM, KVF_PEER_NONE, kvf_entry_location(e));
                owner->lost--;
                kvf_count(&core->counters.blocks_refilled, 1);
                kvf_core_unlock(core);
            }
        }
    }
}

enum kvf_status kvf_step_commit(struct kvf_session *handle)
{
    if (!handle)
        return KVF_ERR_INVALID;
    if (!handle->stepping)
        return atomic_load(&handle->moved) ? KVF_MOVED : KVF_ERR_STATE;
    struct kvf_core *core = handle->node->core;
    struct kvf_sess *s = handle->sess;
    const struct kvf_model_desc *d = &s->model->desc;
    if (memchr(s->step_layers, 0, d->layers))
        return KVF_ERR_STATE;
    if (s->step_refill) {
        refill_commit(s);
    } else {
        memcpy(s->tokens + s->n_tokens, s->step_tokens, s->step_n * sizeof *s->tokens);
    }
    kvf_core_lock(s->core);
    if (!s->step_refill)
        s->n_tokens += s->step_n;
    kvf_core_unlock(s->core);
    /* An index that takes none now delays sealing only: blocks stay in the tail until it does, or append says that it is full. */
    enum kvf_status st = KVF_OK;
    uint64_t sealed = s->sealed_blocks, start = kvf_now(s->core->env);
    while (st == KVF_OK && s->n_tokens >= ((uint64_t)s->sealed_blocks + 1) * d->block_tokens)
        st = seal_blocks(s);
    if (s->sealed_blocks > sealed)
        kvf_latency_add(&s->core->latencies, KVF_LATENCY_SEAL, kvf_now(s->core->env) - start);
    handle->stepping = false;
    kvf_core_lock(core);
    kvf_sess_step_end(s);
    kvf_core_unlock(core); /* from here on it may move away */
    kvf_core_wake(core);
    return KVF_OK;
}
