/* Sessions and models: what a home knows of them. Steps are in step.c, moves in move.c. */
#include "base/hash.h"
#include "node/dram.h"
#include "node/persist.h"
#include "node/wire.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- models */

static uint64_t fingerprint_of(const struct kvf_model_desc *d)
{
    uint8_t bytes[48];
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_write_u64(&w, d->weights_id);
    const uint32_t shape[] = {d->layers, d->kv_heads,        d->q_heads,      d->dim_k,
                              d->dim_v,  (uint32_t)d->dtype, d->chunk_tokens, d->block_tokens};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        kvf_write_u32(&w, shape[i]);
    return kvf_hash(bytes, kvf_writer_used(&w), kvf_hash(d->name, strlen(d->name), 0));
}

enum kvf_status kvf_model_add(struct kvf_core *core, const struct kvf_model_desc *desc, struct kvf_model **out)
{
    if (!kvf_model_desc_valid(desc))
        return KVF_ERR_INVALID;
    uint64_t fingerprint = fingerprint_of(desc);
    for (unsigned i = 0; i < core->n_models; i++) {
        if (core->models[i]->fingerprint == fingerprint) {
            *out = core->models[i];
            return KVF_OK;
        }
    }
    if (core->n_models == KVF_MODELS_MAX)
        return KVF_ERR_BUSY;
    struct kvf_model *m = calloc(1, sizeof *m);
    if (!m)
        return KVF_ERR_NO_MEMORY;
    m->core = core;
    m->desc = *desc;
    m->number = (uint16_t)core->n_models;
    m->fingerprint = fingerprint;
    m->chunk_bytes = (uint32_t)(desc->chunk_tokens * (desc->dim_k + desc->dim_v) * kvf_dtype_bytes(desc->dtype));
    m->chunks = desc->block_tokens / desc->chunk_tokens;
    m->block_bytes = m->chunk_bytes * m->chunks;
    m->streams = desc->layers * desc->kv_heads;
    m->summary_floats = desc->dim_k;
    if (m->block_bytes > core->settings.block_bytes_max) {
        free(m);
        return KVF_ERR_INVALID;
    }
    core->models[core->n_models++] = m;
    *out = m;
    return KVF_OK;
}

/* ---------------------------------------------------------------- sessions */

struct kvf_sess *kvf_sess_find(struct kvf_core *core, uint64_t id)
{
    struct kvf_sess *s = core->sessions[kvf_mix(id, 1) % core->session_buckets];
    while (s && s->id != id)
        s = s->next;
    return s;
}

enum kvf_status kvf_sess_new(struct kvf_core *core, struct kvf_model *model, uint64_t id, struct kvf_sess **out)
{
    if (id == 0 || (id & KVF_OPAQUE_BIT))
        return KVF_ERR_INVALID;
    if (kvf_sess_find(core, id))
        return KVF_ERR_EXISTS;
    if (core->n_sessions >= core->settings.sessions_max)
        return KVF_ERR_BUSY;
    kvf_persist_session(core, id);
    struct kvf_sess *s = calloc(1, sizeof *s);
    if (!s)
        return KVF_ERR_NO_MEMORY;
    s->core = core;
    s->model = model;
    s->id = id;
    s->life = ++core->session_lives;
    s->tail = malloc(sizeof *s->tail * model->streams * KVF_TAIL_BLOCKS);
    s->step_layers = calloc(model->desc.layers, 1);
    if (!s->tail || !s->step_layers) {
        free(s->tail);
        free(s->step_layers);
        free(s);
        return KVF_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < model->streams * KVF_TAIL_BLOCKS; i++)
        s->tail[i] = KVF_ARENA_NONE;
    struct kvf_sess **bucket = &core->sessions[kvf_mix(id, 1) % core->session_buckets];
    s->next = *bucket;
    *bucket = s;
    s->after = core->sessions_all;
    if (s->after)
        s->after->before = s;
    core->sessions_all = s;
    core->n_sessions++;
    *out = s;
    return KVF_OK;
}

uint64_t kvf_sess_owner(const struct kvf_sess *s, uint32_t index)
{
    for (unsigned i = 0; i < s->n_origins; i++)
        if (index < s->origins[i].blocks_to)
            return s->origins[i].owner;
    return s->id;
}

kvf_handle kvf_sess_block(struct kvf_sess *s, uint32_t layer, uint32_t head, uint32_t index)
{
    return kvf_index_find(s->core->index, kvf_block_key(kvf_sess_owner(s, index), layer, head, index));
}

void kvf_sess_free(struct kvf_sess *s)
{
    struct kvf_core *core = s->core;
    const struct kvf_model_desc *d = &s->model->desc;
    kvf_sess_step_end(s);
    uint32_t first = s->n_origins ? s->origins[s->n_origins - 1].blocks_to : 0;
    uint32_t blocks = (uint32_t)((s->n_tokens + d->block_tokens - 1) / d->block_tokens);
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            for (uint32_t i = first; i < blocks; i++) {
                kvf_handle handle = kvf_index_find(core->index, kvf_block_key(s->id, l, h, i));
                if (handle != KVF_HANDLE_NONE)
                    kvf_block_remove(core, handle);
            }
        }
    }
    for (uint32_t i = 0; i < s->model->streams * KVF_TAIL_BLOCKS; i++)
        if (s->tail[i] != KVF_ARENA_NONE)
            kvf_dram_free(core, s->tail[i], s->model->block_bytes);
    struct kvf_sess **at = &core->sessions[kvf_mix(s->id, 1) % core->session_buckets];
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    *(s->before ? &s->before->after : &core->sessions_all) = s->after;
    if (s->after)
        s->after->before = s->before;
    core->n_sessions--;
    if (s->parent)
        s->parent->forks--;
    kvf_ahead_cancel(s);
    kvf_ahead_free(s);
    kvf_device_close(s);
    kvf_sess_scratch_free(s);
    free(s->tokens);
    free(s->tail);
    free(s->summaries);
    free(s->step_layers);
    free(s);
    kvf_core_changed(core);
}

uint64_t kvf_sess_copy_begin(struct kvf_core *core, const struct kvf_entry *e)
{
    struct kvf_sess *s = kvf_block_session(core, e);
    assert(!(e->flags & KVF_FLAG_REMOVED));
    if (!s)
        return 0;
    s->spilling++;
    return s->life;
}

void kvf_sess_copy_end(struct kvf_core *core, const struct kvf_entry *e, uint64_t life)
{
    struct kvf_sess *s = life ? kvf_block_session(core, e) : NULL;
    if (!s || s->life != life)
        return;
    assert(s->spilling > 0);
    s->spilling--;
}

enum kvf_status kvf_sess_tokens_room(struct kvf_sess *s, uint64_t tokens)
{
    if (tokens > KVF_SESSION_TOKENS_MAX)
        return KVF_ERR_FULL;
    if (tokens > s->tokens_room) {
        uint64_t room = s->tokens_room ? s->tokens_room * 2 : 4096;
        while (room < tokens)
            room *= 2;
        int32_t *p = realloc(s->tokens, room * sizeof *p);
        if (!p)
            return KVF_ERR_NO_MEMORY;
        s->tokens = p;
        s->tokens_room = room;
    }
    uint32_t chunks = (uint32_t)(tokens / s->model->desc.chunk_tokens) + 1;
    if (chunks <= s->summary_chunks_room)
        return KVF_OK;
    uint32_t room = s->summary_chunks_room ? s->summary_chunks_room : 256;
    while (room < chunks)
        room *= 2;
    size_t floats = s->model->summary_floats;
    float *p = calloc((size_t)s->model->streams * room, floats * sizeof *p);
    if (!p)
        return KVF_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < s->model->streams && s->summary_chunks_room; i++)
        memcpy(p + (size_t)i * room * floats, s->summaries + (size_t)i * s->summary_chunks_room * floats,
               s->summary_chunks_room * floats * sizeof *p);
    free(s->summaries);
    s->summaries = p;
    s->summary_chunks_room = room;
    return KVF_OK;
}

void kvf_sess_summarise(struct kvf_sess *s, uint32_t layer, uint32_t head, uint32_t index, const uint8_t *block)
{
    const struct kvf_model *m = s->model;
    uint32_t stream = layer * m->desc.kv_heads + head;
    for (uint32_t c = 0; c < m->chunks; c++) {
        float *to = s->summaries + ((size_t)stream * s->summary_chunks_room + (size_t)index * m->chunks + c) * m->summary_floats;
        s->core->dev->summarise(s->core->dev, NULL, KVF_SUMMARY_MEAN, block + (size_t)c * m->chunk_bytes, m->desc.dtype,
                                m->desc.chunk_tokens, m->desc.dim_k, to);
    }
}
