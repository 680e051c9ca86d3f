/* The cache step as dev.h words it: every look-up is a search, the victims are found one by one. */
#include "kernels/cpu.h"

#include <string.h>

static uint32_t slot_of(const struct kvf_cache_step *s, uint32_t chunk)
{
    for (uint32_t slot = 0; slot < s->slots; slot++)
        if (s->chunk[slot] == chunk)
            return slot;
    return KVF_CACHE_NONE;
}

static bool selected(const struct kvf_cache_step *s, uint32_t chunk)
{
    for (uint32_t i = 0; i < s->n_selected; i++)
        if (s->selected[i] == chunk)
            return true;
    return false;
}

static float score_of(const struct kvf_cache_step *s, uint32_t chunk)
{
    return s->scores ? s->scores[chunk] : 0;
}

enum { STAYS = 0, VICTIM = 1, RELEASED = 2 };

/* Marks the `n` of lowest value among the slots that hold no selected chunk, in scratch[slots ..]. */
static void mark_victims(const struct kvf_cache_step *s, uint32_t n)
{
    uint32_t *key = s->scratch, *mark = s->scratch + s->slots;
    for (uint32_t slot = 0; slot < s->slots; slot++) {
        uint32_t c = s->chunk[slot];
        key[slot] = mark[slot] = 0;
        if (c != KVF_CACHE_NONE && !selected(s, c))
            key[slot] = kvf_cache_key(kvf_chunk_keep(s->rule, &s->state[slot], s->now, score_of(s, c)));
    }
    for (; n; n--) {
        uint32_t best = KVF_CACHE_NONE;
        for (uint32_t slot = 0; slot < s->slots; slot++) {
            bool may = !mark[slot] && (s->chunk[slot] == KVF_CACHE_NONE || !selected(s, s->chunk[slot]));
            if (may && (best == KVF_CACHE_NONE || key[slot] < key[best]))
                best = slot;
        }
        mark[best] = VICTIM;
        s->result->evicted += s->chunk[best] != KVF_CACHE_NONE;
    }
}

/* The copy that the step itself can do. */
static bool copied(const struct kvf_cache_step *s, uint32_t i)
{
    const char *block = s->blocks ? s->blocks[s->selected[i] / s->block_chunks] : NULL;
    if (!block || s->places[i] == KVF_CACHE_NONE)
        return false;
    memcpy(s->memory + (size_t)s->places[i] * KVF_CACHE_UNIT,
           block + (size_t)(s->selected[i] % s->block_chunks) * s->chunk_bytes, s->chunk_bytes);
    return true;
}

/* Hits, and the first victims for the first misses; the victims behind these are marked released. */
static void place_selected(const struct kvf_cache_step *s, uint32_t assigned)
{
    uint32_t *mark = s->scratch + s->slots, slot = 0;
    for (uint32_t i = 0; i < s->n_selected; i++) {
        if (s->places[i] != KVF_CACHE_NONE) /* a hit */
            continue;
        if (assigned) {
            while (mark[slot] != VICTIM)
                slot++;
            mark[slot] = STAYS;
            s->chunk[slot] = s->selected[i];
            s->places[i] = s->place[slot];
            kvf_chunk_enter(s->rule, &s->state[slot], s->now, score_of(s, s->selected[i]));
            assigned--;
        }
        if (copied(s, i))
            s->result->filled++;
        else
            s->misses[s->result->misses++] = i;
    }
    for (slot = 0; slot < s->slots; slot++)
        if (mark[slot] == VICTIM)
            mark[slot] = RELEASED;
}

/* Slots above the new end move into released ones below it. */
static void close_up(const struct kvf_cache_step *s)
{
    uint32_t *mark = s->scratch + s->slots, to = 0;
    for (uint32_t slot = s->result->slots; slot < s->slots; slot++) {
        if (mark[slot] == RELEASED)
            continue;
        while (mark[to] != RELEASED)
            to++;
        uint32_t place = s->place[to];
        s->chunk[to] = s->chunk[slot];
        s->place[to] = s->place[slot];
        s->state[to] = s->state[slot];
        s->place[slot] = place;
        mark[to++] = STAYS;
    }
    for (uint32_t slot = s->result->slots; slot < s->slots; slot++)
        s->chunk[slot] = KVF_CACHE_NONE;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void step_one(const struct kvf_cache_step *s)
{
    *s->result = (struct kvf_cache_result){0};
    for (uint32_t i = 0; i < s->n_selected; i++) {
        uint32_t slot = slot_of(s, s->selected[i]);
        s->places[i] = slot == KVF_CACHE_NONE ? KVF_CACHE_NONE : s->place[slot];
        s->result->hits += slot != KVF_CACHE_NONE;
        if (slot != KVF_CACHE_NONE)
            kvf_chunk_touch(s->rule, &s->state[slot], s->now, score_of(s, s->selected[i]));
    }
    uint32_t others = s->slots - s->result->hits, surplus = least(s->slots - s->keep, others);
    uint32_t victims = least(s->n_selected - s->result->hits + surplus, others);
    s->result->slots = s->slots - surplus;
    mark_victims(s, victims);
    place_selected(s, victims - surplus);
    close_up(s);
    if (s->shadow)
        kvf_shadow_step(s->shadow, s->rule, s->now, s->selected, s->n_selected, s->scores, s->clock);
}

enum kvf_status kvf_cache_reference_step(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cache_step *steps,
                                         size_t n)
{
    if (!kvf_check_cache_step(steps, n))
        return KVF_ERR_INVALID;
    for (size_t i = 0; i < n; i++)
        step_one(&steps[i]);
    return KVF_OK;
}

enum kvf_status kvf_cache_reference_forget(const struct kvf_dev *dev, struct kvf_stream *stream,
                                           const struct kvf_cache_forget *parts, size_t n)
{
    if (!kvf_check_cache_forget(parts, n))
        return KVF_ERR_INVALID;
    for (size_t i = 0; i < n; i++)
        for (uint32_t slot = 0; slot < parts[i].slots; slot++)
            if (parts[i].chunk[slot] >= parts[i].from && parts[i].chunk[slot] < parts[i].to)
                parts[i].chunk[slot] = KVF_CACHE_NONE;
    return KVF_OK;
}
