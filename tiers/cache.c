/* The device cache as cache.h words it: the arena, the partitions' tables, and one step of a layer. */
#include "tiers/cache_parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIRST_ROOM = 146, /* slots whose tables fill a page of 4096 */
    GROW_MOST = 256,  /* slots that a partition gets in one step */
    CUT_MOST = 8,     /* partitions that are cut to their quota for one that finds no place */
    PIECE = 256,      /* places that are read back at once */
};

/* ---------------------------------------------------------------- create */

/* Pages of the arena: small in a small one, so that sizes can share it, and never below what a chunk of usual size needs. */
static uint32_t page_of(uint64_t bytes)
{
    uint32_t page = 4096;
    while (page < 1u << 20 && (uint64_t)page * 32 < bytes)
        page *= 2;
    return page;
}

enum kvf_status kvf_cache_create(const struct kvf_dev *dev, const struct kvf_cache_options *options, struct kvf_cache **out)
{
    uint32_t page = page_of(options->bytes);
    uint64_t bytes = options->bytes / page * page;
    if (!dev->cache_step || !dev->cache_forget || !bytes || bytes > (uint64_t)UINT32_MAX * KVF_CACHE_UNIT)
        return KVF_ERR_INVALID;
    struct kvf_cache *c = calloc(1, sizeof *c);
    if (!c)
        return KVF_ERR_NO_MEMORY;
    *c = (struct kvf_cache){.dev = dev, .options = *options, .random = options->seed};
    enum kvf_status st = kvf_arena_create(NULL, bytes, KVF_CACHE_UNIT, page, &c->arena);
    if (st == KVF_OK)
        st = dev->alloc(dev, bytes, (void **)&c->memory);
    if (st == KVF_OK)
        st = dev->alloc_host(dev, sizeof *c->result, (void **)&c->result);
    if (st != KVF_OK) {
        kvf_cache_destroy(c);
        return st;
    }
    c->stats.capacity_bytes = kvf_arena_bytes(c->arena);
    *out = c;
    return KVF_OK;
}

void kvf_cache_destroy(struct kvf_cache *c)
{
    if (!c)
        return;
    assert(c->n_sessions == 0);
    c->dev->free_host(c->dev, c->result);
    c->dev->free(c->dev, c->memory);
    if (c->arena)
        kvf_arena_destroy(c->arena);
    free(c->sessions);
    free(c);
}

/* ---------------------------------------------------------------- tables */

static size_t table_bytes(uint32_t room)
{
    return (size_t)room * (sizeof(struct kvf_chunk_state) + 4 * sizeof(uint32_t));
}

static void tables_at(struct kvf_cache_part *p, void *memory, uint32_t room)
{
    p->state = memory;
    p->chunk = (uint32_t *)(p->state + room);
    p->place = p->chunk + room;
    p->scratch = p->place + room;
    p->room = room;
}

/* Tables for at least `slots`, with what the old ones held. */
static enum kvf_status tables_grow(struct kvf_cache *c, struct kvf_cache_part *p, uint32_t slots)
{
    uint32_t room = p->room ? p->room * 2 : FIRST_ROOM;
    while (room < slots)
        room *= 2;
    void *memory = NULL, *old = p->state;
    enum kvf_status st = c->dev->alloc(c->dev, table_bytes(room), &memory);
    if (st != KVF_OK)
        return st;
    struct kvf_cache_part was = *p;
    tables_at(p, memory, room);
    struct kvf_copy copies[] = {{was.state, p->state, p->slots * sizeof *p->state},
                                {was.chunk, p->chunk, p->slots * sizeof *p->chunk},
                                {was.place, p->place, p->slots * sizeof *p->place}};
    if (p->slots)
        st = c->dev->gather(c->dev, NULL, copies, 3);
    if (st == KVF_OK)
        st = c->dev->stream_sync(c->dev, NULL);
    if (st != KVF_OK) {
        *p = was;
        c->dev->free(c->dev, memory);
        return st;
    }
    c->dev->free(c->dev, old);
    c->stats.table_bytes += table_bytes(room) - (old ? table_bytes(was.room) : 0);
    return KVF_OK;
}

/* ---------------------------------------------------------------- places */

/* A partition's places from `from` to `to` of its table go back to the arena. */
static void places_free(struct kvf_cache_session *s, struct kvf_cache_part *p, uint32_t from, uint32_t to)
{
    struct kvf_cache *c = s->cache;
    uint32_t places[PIECE];
    while (from < to) {
        uint32_t n = to - from < PIECE ? to - from : PIECE;
        enum kvf_status st = c->dev->download(c->dev, NULL, places, p->place + from, n * sizeof *places);
        if (st == KVF_OK)
            st = c->dev->stream_sync(c->dev, NULL);
        for (uint32_t i = 0; i < n && st == KVF_OK; i++) /* a device that fails here loses the room, no more */
            kvf_arena_free(c->arena, (uint64_t)places[i] * KVF_CACHE_UNIT, s->chunk_bytes);
        from += n;
    }
}

/* Cuts one partition to its quota outside its own step; by the state alone, since there are no scores. */
static bool cut(struct kvf_cache_session *s, struct kvf_cache_part *p)
{
    struct kvf_cache *c = s->cache;
    struct kvf_cache_step step = {.chunk = p->chunk, .place = p->place, .state = p->state, .scratch = p->scratch,
                                  .slots = p->slots, .keep = p->quota, .rule = kvf_chunk_rule_of(c->options.policy),
                                  .now = {.step = s->step}, .n_chunks = s->n_chunks, .result = c->result};
    if (c->dev->cache_step(c->dev, NULL, &step, 1) != KVF_OK || c->dev->stream_sync(c->dev, NULL) != KVF_OK)
        return false;
    places_free(s, p, c->result->slots, p->slots);
    p->slots = c->result->slots;
    c->stats.evictions += c->result->evicted;
    return true;
}

/* Looks for partitions that have more than their quota and are not being read, a few at a time. */
static void cut_some(struct kvf_cache *c)
{
    for (unsigned looked = 0, done = 0; looked < 64 * CUT_MOST && done < CUT_MOST; looked++) {
        struct kvf_cache_session *s = c->sessions[c->cursor_session % c->n_sessions];
        struct kvf_cache_part *p = &s->parts[c->cursor_part % kvf_cache_parts_of(s)];
        bool read = s->busy && c->cursor_part % kvf_cache_parts_of(s) / s->heads == s->busy_layer;
        if (p->slots > p->quota && !read)
            done += cut(s, p);
        if (++c->cursor_part >= kvf_cache_parts_of(s)) {
            c->cursor_part = 0;
            c->cursor_session = (c->cursor_session + 1) % c->n_sessions;
        }
    }
}

/* As many of the slots that its quota allows as there are places for now. */
static void grow(struct kvf_cache_session *s, struct kvf_cache_part *p)
{
    struct kvf_cache *c = s->cache;
    uint32_t places[GROW_MOST], none[GROW_MOST], n = 0, most = p->quota > p->slots ? p->quota - p->slots : 0;
    if (!most || (p->quota > p->room && tables_grow(c, p, p->quota) != KVF_OK))
        return;
    most = most < GROW_MOST ? most : GROW_MOST;
    for (bool cuts = true; n < most; n++) {
        uint64_t at = kvf_arena_alloc(c->arena, s->chunk_bytes);
        if (at == KVF_ARENA_NONE && cuts) {
            cut_some(c);
            cuts = false;
            at = kvf_arena_alloc(c->arena, s->chunk_bytes);
        }
        if (at == KVF_ARENA_NONE)
            break;
        places[n] = (uint32_t)(at / KVF_CACHE_UNIT);
        none[n] = KVF_CACHE_NONE;
    }
    if (!n)
        return;
    enum kvf_status st = c->dev->upload(c->dev, NULL, p->place + p->slots, places, n * sizeof *places);
    if (st == KVF_OK)
        st = c->dev->upload(c->dev, NULL, p->chunk + p->slots, none, n * sizeof *none);
    if (st == KVF_OK)
        st = c->dev->stream_sync(c->dev, NULL);
    if (st == KVF_OK)
        p->slots += n;
    for (uint32_t i = 0; i < n && st != KVF_OK; i++)
        kvf_arena_free(c->arena, (uint64_t)places[i] * KVF_CACHE_UNIT, s->chunk_bytes);
}

/* ---------------------------------------------------------------- sessions */

static void session_free(struct kvf_cache_session *s)
{
    const struct kvf_dev *dev = s->cache->dev;
    for (uint32_t i = 0; s->parts && i < kvf_cache_parts_of(s); i++) {
        if (s->parts[i].state)
            s->cache->stats.table_bytes -= table_bytes(s->parts[i].room);
        dev->free(dev, s->parts[i].state);
    }
    dev->free(dev, s->shadows);
    dev->free_host(dev, s->results);
    free(s->steps);
    free(s->parts);
    free(s);
}

static enum kvf_status session_memory(struct kvf_cache_session *s)
{
    struct kvf_cache *c = s->cache;
    uint32_t parts = kvf_cache_parts_of(s);
    s->parts = calloc(parts, sizeof *s->parts);
    s->steps = calloc(s->heads, sizeof *s->steps);
    if (!s->parts || !s->steps)
        return KVF_ERR_NO_MEMORY;
    if (c->n_sessions == c->sessions_room) {
        uint32_t room = c->sessions_room ? c->sessions_room * 2 : 16;
        void *grown = realloc(c->sessions, room * sizeof *c->sessions);
        if (!grown)
            return KVF_ERR_NO_MEMORY;
        c->sessions = grown;
        c->sessions_room = room;
    }
    static const struct kvf_shadow empty;
    enum kvf_status st = c->dev->alloc_host(c->dev, s->heads * sizeof *s->results, (void **)&s->results);
    if (st == KVF_OK)
        st = c->dev->alloc(c->dev, parts * sizeof *s->shadows, (void **)&s->shadows);
    for (uint32_t i = 0; i < parts && st == KVF_OK; i++) {
        s->parts[i].shadow = s->shadows + i;
        st = c->dev->upload(c->dev, NULL, s->parts[i].shadow, &empty, sizeof empty);
        if (st == KVF_OK)
            st = tables_grow(c, &s->parts[i], FIRST_ROOM);
    }
    return st;
}

enum kvf_status kvf_cache_open(struct kvf_cache *c, uint32_t layers, uint32_t heads, uint32_t chunk_bytes,
                               struct kvf_cache_session **out)
{
    if (!layers || !heads || layers > 65536 / heads || !chunk_bytes || chunk_bytes % KVF_CACHE_UNIT ||
        chunk_bytes > page_of(c->options.bytes))
        return KVF_ERR_INVALID;
    struct kvf_cache_session *s = calloc(1, sizeof *s);
    if (!s)
        return KVF_ERR_NO_MEMORY;
    *s = (struct kvf_cache_session){.cache = c, .layers = layers, .heads = heads, .chunk_bytes = chunk_bytes};
    enum kvf_status st = session_memory(s);
    if (st != KVF_OK) {
        session_free(s);
        return st;
    }
    kvf_cache_share_open(s);
    s->number = c->n_sessions;
    c->sessions[c->n_sessions++] = s;
    *out = s;
    return KVF_OK;
}

void kvf_cache_close(struct kvf_cache_session *s)
{
    if (!s)
        return;
    struct kvf_cache *c = s->cache;
    for (uint32_t i = 0; i < kvf_cache_parts_of(s); i++)
        places_free(s, &s->parts[i], 0, s->parts[i].slots);
    kvf_cache_share_close(s);
    c->sessions[s->number] = c->sessions[--c->n_sessions];
    c->sessions[s->number]->number = s->number;
    c->cursor_session = c->cursor_part = 0;
    session_free(s);
}

/* ---------------------------------------------------------------- a step */

static struct kvf_cache_step step_of(struct kvf_cache_session *s, struct kvf_cache_part *p, const struct kvf_cache_want *w)
{
    struct kvf_cache *c = s->cache;
    struct kvf_shadow_clock clock = kvf_cache_share_clock(p, w->n_selected);
    clock.epoch = (uint32_t)c->clock;
    clock.weight = 1 + (float)(c->clock - (double)clock.epoch);
    return (struct kvf_cache_step){.chunk = p->chunk, .place = p->place, .state = p->state, .scratch = p->scratch,
                                   .slots = p->slots, .keep = p->quota < p->slots ? p->quota : p->slots,
                                   .rule = kvf_chunk_rule_of(c->options.policy),
                                   .now = {.step = s->step, .threshold = w->threshold}, .selected = w->selected,
                                   .n_selected = w->n_selected, .n_chunks = s->n_chunks, .scores = w->scores,
                                   .chunk_bytes = s->chunk_bytes, .shadow = p->shadow, .clock = clock,
                                   .places = w->places, .misses = w->misses};
}

enum kvf_status kvf_cache_step(struct kvf_cache_session *s, uint32_t layer, uint32_t step, uint32_t n_chunks,
                               struct kvf_cache_want *wants)
{
    struct kvf_cache *c = s->cache;
    struct kvf_cache_part *parts = &s->parts[(size_t)layer * s->heads];
    assert(layer < s->layers && n_chunks >= s->n_chunks);
    s->busy = true;
    s->busy_layer = layer;
    s->step = step;
    s->n_chunks = n_chunks;
    for (uint32_t h = 0; h < s->heads; h++) {
        grow(s, &parts[h]);
        s->steps[h] = step_of(s, &parts[h], &wants[h]);
        s->steps[h].result = &s->results[h];
    }
    enum kvf_status st = c->broken ? KVF_ERR_IO : c->dev->cache_step(c->dev, NULL, s->steps, s->heads);
    if (st == KVF_OK)
        st = c->dev->stream_sync(c->dev, NULL);
    if (st != KVF_OK) {
        c->broken = true;
        s->busy = false;
        return st;
    }
    for (uint32_t h = 0; h < s->heads; h++) {
        const struct kvf_cache_result *r = &s->results[h];
        places_free(s, &parts[h], r->slots, parts[h].slots);
        parts[h].slots = r->slots;
        wants[h].n_misses = r->misses;
        c->stats.hits += r->hits;
        c->stats.misses += r->misses;
        c->stats.evictions += r->evicted;
        for (uint32_t i = r->misses; i > 0 && wants[h].places[wants[h].misses[i - 1]] == KVF_CACHE_NONE; i--)
            c->stats.uncached++; /* the last ones, if any */
    }
    kvf_cache_share_step(c);
    return KVF_OK;
}

void kvf_cache_end(struct kvf_cache_session *s)
{
    s->busy = false;
}

uint8_t *kvf_cache_at(const struct kvf_cache *c, uint32_t place)
{
    return c->memory + (size_t)place * KVF_CACHE_UNIT;
}

void kvf_cache_forget(struct kvf_cache_session *s, uint32_t layer, uint32_t head, uint32_t from, uint32_t to)
{
    const struct kvf_cache_part *p = &s->parts[(size_t)layer * s->heads + head];
    struct kvf_cache_forget part = {p->chunk, p->slots, from, to};
    if (s->cache->dev->cache_forget(s->cache->dev, NULL, &part, 1) != KVF_OK)
        s->cache->broken = true;
}

/* ---------------------------------------------------------------- looking in */

void kvf_cache_stats(const struct kvf_cache *c, struct kvf_cache_stats *out)
{
    *out = c->stats;
    out->used_bytes = kvf_arena_used(c->arena);
    out->sessions = c->n_sessions;
    out->broken = c->broken;
}

uint32_t kvf_cache_quota(const struct kvf_cache_session *s, uint32_t layer, uint32_t head)
{
    return s->parts[(size_t)layer * s->heads + head].quota;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void check_distinct(uint32_t *values, size_t n)
{
    if (n)
        qsort(values, n, sizeof *values, by_value);
    for (size_t i = 1; i < n; i++)
        assert(values[i] == KVF_CACHE_NONE || values[i] != values[i - 1]);
}

void kvf_cache_check(const struct kvf_cache *c)
{
    uint64_t quota = 0, bytes = 0, places = 0, at = 0, parts = 0;
    kvf_arena_check(c->arena);
    for (uint32_t i = 0; i < c->n_sessions; i++)
        for (uint32_t p = 0; p < kvf_cache_parts_of(c->sessions[i]); p++)
            places += c->sessions[i]->parts[p].slots;
    uint32_t *all = malloc((places + 1) * sizeof *all), *chunks = malloc((places + 1) * sizeof *chunks);
    assert(all && chunks);
    for (uint32_t i = 0; i < c->n_sessions; i++) {
        const struct kvf_cache_session *s = c->sessions[i];
        assert(s->number == i && s->cache == c);
        parts += kvf_cache_parts_of(s);
        for (uint32_t n = 0; n < kvf_cache_parts_of(s); n++) {
            const struct kvf_cache_part *p = &s->parts[n];
            assert(p->slots <= p->room);
            quota += (uint64_t)p->quota * s->chunk_bytes;
            bytes += (uint64_t)p->slots * s->chunk_bytes;
            memcpy(all + at, p->place, p->slots * sizeof *all);
            memcpy(chunks, p->chunk, p->slots * sizeof *chunks);
            at += p->slots;
            check_distinct(chunks, p->slots);
            for (uint32_t k = 0; k < p->slots; k++)
                assert(chunks[k] == KVF_CACHE_NONE || chunks[k] < s->n_chunks);
        }
    }
    check_distinct(all, places);
    assert(quota == c->quota_bytes && quota <= c->stats.capacity_bytes && parts == c->parts);
    assert(bytes == kvf_arena_used(c->arena));
    free(all);
    free(chunks);
}
