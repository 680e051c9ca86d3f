/* The device cache in the node: what a budgeted decode step selected is looked for in the cache before anything else is asked for.
 *
 * Hits are attended where they lie in the cache: no look-up in the index, no pin, no read, whatever tier their blocks went to.
 * Misses are brought as ever, checked, copied into their places by the thread that attends, and attended there. A place whose
 * bytes did not come is taken back before the attend ends.
 *
 * Chunks of sealed blocks never change, so what is cached stays right until its block is lost: a refill computes it anew, and need
 * not give the same bits. (Where cold blocks lie in 8 bits an element, what is cached is what attention saw first.) All under the
 * lock but for reading and filling the places of a step. */
#include "node/step.h"
#include <assert.h>
#include <stdlib.h>

struct kvf_device {
    struct kvf_cache *cache;
    struct kvf_device_session *sessions; /* those that have partitions */
};

struct kvf_device_session {
    struct kvf_sess *sess;
    struct kvf_device_session *next, **at;
    struct kvf_cache_session *cache; /* NULL: chunks of this model do not fit, or it was no use */
    struct kvf_cache_want *wants;    /* [kv_heads] */
    /* of one layer's step, [kv_heads][room]; in memory that the device reads and writes */
    float *scores;
    uint32_t *selected, *places, *misses;
    uint32_t room; /* chunks */
};

static enum kvf_chunk_policy policy_of(const char *word)
{
    static const char *const words[KVF_CHUNK_POLICIES] = {"lru", "lfu", "window", "score", "blend"};
    for (int i = 0; i < KVF_CHUNK_POLICIES; i++)
        if (strcmp(words[i], word) == 0)
            return (enum kvf_chunk_policy)i;
    return KVF_CHUNK_BLEND;
}

enum kvf_status kvf_device_create(struct kvf_core *core)
{
    const struct kvf_settings *settings = &core->settings;
    if (!settings->gpu_bytes)
        return KVF_OK;
    struct kvf_device *d = calloc(1, sizeof *d);
    if (!d)
        return KVF_ERR_NO_MEMORY;
    const struct kvf_cache_options options = {.bytes = settings->gpu_bytes, .policy = policy_of(settings->gpu_policy),
                                              .seed = core->incarnation};
    enum kvf_status st = kvf_cache_create(core->dev, &options, &d->cache);
    if (st != KVF_OK) {
        kvf_log_error(&core->log, "making the device cache of %llu bytes (gpu.bytes): %s", (unsigned long long)settings->gpu_bytes,
                      kvf_status_text(st));
        free(d);
        return st;
    }
    core->device = d;
    return KVF_OK;
}

void kvf_device_destroy(struct kvf_core *core)
{
    if (!core->device)
        return;
    assert(!core->device->sessions);
    kvf_cache_destroy(core->device->cache);
    free(core->device);
    core->device = NULL;
}

/* ---------------------------------------------------------------- sessions */

static void buffers_free(struct kvf_device_session *x)
{
    const struct kvf_dev *dev = x->sess->core->dev;
    dev->free_host(dev, x->scores);
    dev->free_host(dev, x->selected);
    dev->free_host(dev, x->places);
    dev->free_host(dev, x->misses);
    x->scores = NULL;
    x->selected = x->places = x->misses = NULL;
    x->room = 0;
}

void kvf_device_close(struct kvf_sess *s)
{
    struct kvf_device_session *x = s->device;
    if (!x)
        return;
    kvf_cache_close(x->cache);
    buffers_free(x);
    *x->at = x->next;
    if (x->next)
        x->next->at = x->at;
    free(x->wants);
    free(x);
    s->device = NULL;
}

/* Grows with the session, so not in a steady state. */
static bool buffers_room(struct kvf_device_session *x, uint32_t chunks)
{
    const struct kvf_dev *dev = x->sess->core->dev;
    if (chunks <= x->room)
        return true;
    buffers_free(x);
    uint32_t room = (chunks + 512) * 2;
    size_t n = (size_t)room * x->sess->model->desc.kv_heads;
    if (dev->alloc_host(dev, n * sizeof *x->scores, (void **)&x->scores) != KVF_OK ||
        dev->alloc_host(dev, n * sizeof *x->selected, (void **)&x->selected) != KVF_OK ||
        dev->alloc_host(dev, n * sizeof *x->places, (void **)&x->places) != KVF_OK ||
        dev->alloc_host(dev, n * sizeof *x->misses, (void **)&x->misses) != KVF_OK) {
        buffers_free(x);
        return false;
    }
    x->room = room;
    return true;
}

static struct kvf_device_session *session_of(struct kvf_sess *s)
{
    struct kvf_device *d = s->core->device;
    const struct kvf_model *m = s->model;
    if (s->device)
        return s->device;
    struct kvf_device_session *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->sess = s;
    x->wants = calloc(m->desc.kv_heads, sizeof *x->wants);
    enum kvf_status st = KVF_ERR_NO_MEMORY;
    if (x->wants)
        st = kvf_cache_open(d->cache, m->desc.layers, m->desc.kv_heads, m->chunk_bytes, &x->cache);
    if (st != KVF_OK) /* asked once per session: the step goes on without */
        kvf_log_warn(&s->core->log, "session %llx goes without the device cache: %s", (unsigned long long)s->id,
                     kvf_status_text(st));
    x->next = d->sessions;
    x->at = &d->sessions;
    if (x->next)
        x->next->at = &x->next;
    d->sessions = s->device = x;
    return x;
}

/* ---------------------------------------------------------------- a step */

float *kvf_device_scores(struct kvf_sess *s, uint32_t head, uint32_t chunks)
{
    struct kvf_device_session *x = s->core->device ? session_of(s) : NULL;
    if (!x || !x->cache || !buffers_room(x, chunks))
        return NULL;
    return x->scores + (size_t)head * x->room;
}

/* The wants of one head as a list of chunks. false: more than the cache takes in one step. */
static bool list_of(struct kvf_device_session *x, struct kvf_want *wants, uint32_t blocks, uint32_t head)
{
    const struct kvf_model *m = x->sess->model;
    struct kvf_cache_want *out = &x->wants[head];
    uint32_t *selected = x->selected + (size_t)head * x->room, *places = x->places + (size_t)head * x->room, n = 0;
    for (uint32_t b = 0; b < blocks; b++) {
        struct kvf_want *w = &wants[(size_t)b * m->desc.kv_heads + head];
        if (!w->known)
            continue;
        w->places = places + n;
        for (uint64_t left = w->mask; left; left &= left - 1)
            selected[n++] = b * m->chunks + (uint32_t)__builtin_ctzll(left);
    }
    out->selected = selected;
    out->n_selected = n;
    out->scores = x->scores + (size_t)head * x->room;
    out->places = places;
    out->misses = x->misses + (size_t)head * x->room;
    return n <= KVF_CACHE_SELECTED_MAX;
}

/* What the step said, as masks of the wants. */
static void masks_of(struct kvf_device_session *x, struct kvf_want *wants, uint32_t blocks, uint32_t head)
{
    const struct kvf_model *m = x->sess->model;
    const struct kvf_cache_want *in = &x->wants[head];
    for (uint32_t b = 0; b < blocks; b++) {
        struct kvf_want *w = &wants[(size_t)b * m->desc.kv_heads + head];
        w->cached = w->known ? w->mask : 0;
    }
    for (uint32_t i = 0; i < in->n_misses; i++) {
        uint32_t at = in->misses[i], chunk = in->selected[at];
        struct kvf_want *w = &wants[(size_t)(chunk / m->chunks) * m->desc.kv_heads + head];
        uint64_t bit = 1ull << chunk % m->chunks;
        w->cached &= ~bit;
        if (in->places[at] != KVF_CACHE_NONE)
            w->fresh |= bit;
    }
}

static void count(struct kvf_core *core, const struct kvf_device_session *x, const struct kvf_cache_stats *before)
{
    struct kvf_cache_stats after;
    kvf_cache_stats(core->device->cache, &after);
    uint64_t hits = after.hits - before->hits;
    kvf_count(&core->counters.gpu_chunks_read, hits);
    kvf_count(&core->counters.gpu_bytes_read, hits * x->sess->model->chunk_bytes);
    kvf_count(&core->counters.gpu_chunks_missed, after.misses - before->misses);
    kvf_count(&core->counters.gpu_chunks_uncached, after.uncached - before->uncached);
    kvf_count(&core->counters.gpu_chunks_evicted, after.evictions - before->evictions);
    kvf_count(&core->counters.gpu_share_moves, after.moves - before->moves);
}

void kvf_device_step(struct kvf_sess *s, uint32_t layer, struct kvf_want *wants, uint32_t blocks, const float *thresholds)
{
    struct kvf_core *core = s->core;
    struct kvf_device_session *x = s->device;
    uint32_t heads = s->model->desc.kv_heads;
    struct kvf_cache_stats before;
    assert(x && x->cache);
    bool fits = true;
    for (uint32_t h = 0; h < heads; h++) {
        fits &= list_of(x, wants, blocks, h);
        x->wants[h].threshold = thresholds[h];
    }
    if (!fits)
        return;
    kvf_cache_stats(core->device->cache, &before);
    enum kvf_status st = kvf_cache_step(x->cache, layer, (uint32_t)s->step_first, blocks * s->model->chunks, x->wants);
    if (st != KVF_OK) {
        if (!before.broken)
            kvf_log_error(&core->log, "the device cache failed (%s) and is not used any more", kvf_status_text(st));
        return;
    }
    for (uint32_t h = 0; h < heads; h++)
        masks_of(x, wants, blocks, h);
    count(core, x, &before);
}

const uint8_t *kvf_device_at(const struct kvf_core *core, uint32_t place)
{
    return kvf_cache_at(core->device->cache, place);
}

/* Outside the lock, by the thread that attends. */
void kvf_device_fill(struct kvf_core *core, const struct kvf_want *w, const uint8_t *data, uint32_t chunk_bytes)
{
    struct kvf_copy copies[64];
    size_t n = 0;
    const uint32_t *place = w->places;
    for (uint64_t left = w->mask; left; left &= left - 1, place++) {
        uint32_t c = (uint32_t)__builtin_ctzll(left);
        if (w->fresh >> c & 1)
            copies[n++] = (struct kvf_copy){data + (size_t)c * chunk_bytes, kvf_cache_at(core->device->cache, *place),
                                            chunk_bytes};
    }
    enum kvf_status st = core->dev->gather(core->dev, NULL, copies, n);
    assert(st == KVF_OK);
    (void)st;
}

void kvf_device_end(struct kvf_sess *s, uint32_t layer, struct kvf_want *wants, uint32_t blocks)
{
    const struct kvf_model *m = s->model;
    if (!s->device || !s->device->cache)
        return;
    for (uint32_t i = 0; i < blocks * m->desc.kv_heads; i++) {
        uint32_t b = i / m->desc.kv_heads;
        if (wants[i].fresh)
            kvf_cache_forget(s->device->cache, layer, i % m->desc.kv_heads, b * m->chunks, (b + 1) * m->chunks);
        wants[i].fresh = 0;
    }
    kvf_cache_end(s->device->cache);
}

void kvf_device_lose(struct kvf_core *core, struct kvf_key key)
{
    uint32_t layer = (uint32_t)(key.lo >> 48), head = (uint32_t)(key.lo >> 32 & 0xffff), index = (uint32_t)key.lo;
    for (struct kvf_device_session *x = core->device ? core->device->sessions : NULL; x; x = x->next) {
        uint32_t chunks = x->sess->model->chunks;
        if (x->cache && kvf_sess_owner(x->sess, index) == key.hi)
            kvf_cache_forget(x->cache, layer, head, index * chunks, (index + 1) * chunks);
    }
}

bool kvf_device_stats(const struct kvf_core *core, struct kvf_cache_stats *out)
{
    if (core->device)
        kvf_cache_stats(core->device->cache, out);
    return core->device != NULL;
}

void kvf_device_check(const struct kvf_core *core)
{
    if (core->device)
        kvf_cache_check(core->device->cache);
}
