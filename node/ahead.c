/* Reading ahead: the cold chunks that the next layers will want, at low priority.
 *
 * Without a budget every chunk is wanted, so nothing is guessed. Under a budget the guess is the layer's last selection:
 * adjacent steps select mostly the same. Whether that pays is measured: of every WINDOW blocks read ahead at least a quarter must
 * have been used by attention, else reading ahead rests for REST layers and tries again. */
#include "node/attend_remote.h"
#include <stdlib.h>

#define WINDOW 256
#define REST 64

struct layer_masks {
    uint64_t *masks; /* [blocks][kv_heads] */
    uint32_t blocks, room;
};

struct kvf_ahead {
    uint64_t asked, used; /* the counters when the window began */
    unsigned rest;        /* layers to go without */
    struct layer_masks layers[];
};

static struct kvf_ahead *ahead_of(struct kvf_sess *s)
{
    if (!s->ahead)
        s->ahead = calloc(1, sizeof *s->ahead + s->model->desc.layers * sizeof *s->ahead->layers);
    return s->ahead;
}

uint64_t *kvf_ahead_masks(struct kvf_sess *s, uint32_t layer, uint32_t blocks)
{
    struct kvf_ahead *a = ahead_of(s);
    if (!a)
        return NULL;
    struct layer_masks *m = &a->layers[layer];
    if (blocks > m->room) { /* grows with the session, by doubling */
        uint32_t room = (blocks + 32) * 2;
        uint64_t *masks = realloc(m->masks, (size_t)room * s->model->desc.kv_heads * sizeof *masks);
        if (!masks)
            return NULL;
        m->masks = masks;
        m->room = room;
    }
    m->blocks = blocks;
    return m->masks;
}

void kvf_ahead_free(struct kvf_sess *s)
{
    if (!s->ahead)
        return;
    for (uint32_t l = 0; l < s->model->desc.layers; l++)
        free(s->ahead->layers[l].masks);
    free(s->ahead);
    s->ahead = NULL;
}

void kvf_ahead_cancel(struct kvf_sess *s)
{
    kvf_stage_ahead_cancel(s->core, s->id, UINT32_MAX);
}

/* Whether guessing pays; called once per layer. */
static bool pays(struct kvf_core *core, struct kvf_ahead *a)
{
    if (a->rest > 0)
        return --a->rest == 0;
    uint64_t asked = kvf_counted(&core->counters.prefetch_blocks), used = kvf_counted(&core->counters.prefetch_used);
    if (asked - a->asked < WINDOW)
        return true;
    bool good = (used - a->used) * 4 >= asked - a->asked;
    a->asked = asked;
    a->used = used;
    if (!good)
        a->rest = REST;
    return good;
}

/* The chunks of one block that the layer is thought to want. */
static uint64_t wanted(const struct kvf_sess *s, uint32_t layer, uint32_t block, uint32_t head, bool budgeted)
{
    uint32_t chunks = s->model->chunks;
    if (!budgeted)
        return chunks == 64 ? UINT64_MAX : (1ull << chunks) - 1;
    const struct layer_masks *m = &s->ahead->layers[layer];
    return block < m->blocks ? m->masks[(size_t)block * s->model->desc.kv_heads + head] : 0;
}

/* false: no room is left. */
static bool read_layer(struct kvf_sess *s, uint32_t layer, bool budgeted, bool asking, uint64_t deadline_ns)
{
    struct kvf_core *core = s->core;
    for (uint32_t b = 0; b < s->sealed_blocks; b++) {
        for (uint32_t h = 0; h < s->model->desc.kv_heads; h++) {
            uint64_t mask = wanted(s, layer, b, h, budgeted);
            kvf_handle handle = mask ? kvf_sess_block(s, layer, h, b) : KVF_HANDLE_NONE;
            struct kvf_entry *e = handle == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, handle);
            if (!e || e->tier == KVF_TIER_DRAM || (e->state != KVF_BLOCK_READY && e->state != KVF_BLOCK_RISING))
                continue;
            bool at_peer = (e->tier == KVF_TIER_REMOTE || e->tier == KVF_TIER_PEER) && e->peer != KVF_PEER_NONE;
            if (asking && at_peer && kvf_attend_remote_expected(core, e->peer))
                continue;
            if (!kvf_stage_ahead(core, handle, mask, deadline_ns, s->id, layer))
                return false;
        }
    }
    return true;
}

void kvf_ahead_read(struct kvf_sess *s, uint32_t layer, bool budgeted, bool asking)
{
    struct kvf_core *core = s->core;
    uint32_t layers = s->model->desc.layers;
    uint64_t most = core->settings.prefetch_layers < layers ? core->settings.prefetch_layers : layers - 1;
    uint64_t deadline = kvf_deadline(kvf_now(core->env), core->settings.fetch_timeout_ns);
    if (budgeted && (!ahead_of(s) || !pays(core, s->ahead)))
        return;
    for (uint32_t n = 1; n <= most; n++)
        if (!read_layer(s, (layer + n) % layers, budgeted, asking, deadline))
            return;
}
