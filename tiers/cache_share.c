/* The shares of the device cache: which partition has how many slots.
 *
 * The shadow of a partition (kernels/chunk_shadow.h) counts hits by stack depth, so hits[q >> shift] is what one more slot on top
 * of q brings, per unit of decayed time, and the mean of the bins just below q what the last slots bring. Every SHARE_STEPS steps
 * a few partitions are drawn; the one with the most to gain per byte gets slots of the one with the least to lose, if the
 * difference is clear. That is the greedy solution of the knapsack, taken one exchange at a time: it needs no sorting of all
 * partitions, follows what changes, and costs the same however many there are.
 */
#include "tiers/cache_parts.h"

#include <assert.h>

enum { SHARE_STEPS = 2, DRAWN = 12 };
#define HALF_LIFE 64.0  /* steps of all layers of all sessions in which a sample loses half of its weight */
#define CLEARLY 1.2f    /* a gain must be so many times the loss ... */
#define AT_LEAST 0.25f  /* ... and more by so many sampled hits per slot: less is noise */

static uint64_t draw(struct kvf_cache *c)
{
    uint64_t x = c->random += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static void quota_set(struct kvf_cache_session *s, struct kvf_cache_part *p, uint32_t quota)
{
    struct kvf_cache *c = s->cache;
    c->quota_bytes -= (uint64_t)p->quota * s->chunk_bytes;
    p->quota = quota;
    c->quota_bytes += (uint64_t)quota * s->chunk_bytes;
    assert(c->quota_bytes <= c->stats.capacity_bytes);
}

/* ---------------------------------------------------------------- open and close */

/* Every partition gives up the same part of what it has, so that `bytes` are free. */
static void cut_all(struct kvf_cache *c, uint64_t bytes)
{
    double left = c->quota_bytes > bytes ? (double)(c->quota_bytes - bytes) / (double)c->quota_bytes : 0;
    for (uint32_t i = 0; i < c->n_sessions; i++) {
        struct kvf_cache_session *s = c->sessions[i];
        for (uint32_t p = 0; p < kvf_cache_parts_of(s); p++)
            quota_set(s, &s->parts[p], (uint32_t)((double)s->parts[p].quota * left));
    }
}

void kvf_cache_share_open(struct kvf_cache_session *s)
{
    struct kvf_cache *c = s->cache;
    uint32_t parts = kvf_cache_parts_of(s);
    uint64_t fair = c->stats.capacity_bytes / (c->parts + parts) / s->chunk_bytes; /* slots of one of them */
    uint64_t bytes = fair * parts * s->chunk_bytes, unused = c->stats.capacity_bytes - c->quota_bytes;
    if (unused < bytes)
        cut_all(c, bytes - unused);
    for (uint32_t p = 0; p < parts; p++)
        quota_set(s, &s->parts[p], (uint32_t)fair);
    c->parts += parts;
    c->layers += s->layers;
}

void kvf_cache_share_close(struct kvf_cache_session *s)
{
    for (uint32_t p = 0; p < kvf_cache_parts_of(s); p++)
        quota_set(s, &s->parts[p], 0);
    s->cache->parts -= kvf_cache_parts_of(s);
    s->cache->layers -= s->layers;
}

/* ---------------------------------------------------------------- samples */

struct kvf_shadow_clock kvf_cache_share_clock(struct kvf_cache_part *p, uint32_t n_selected)
{
    /* The stack reaches four times as far as the quota and as what is selected: so far what more slots would bring is seen. */
    uint64_t span = 4ull * (p->quota > n_selected ? p->quota : n_selected);
    while (((uint64_t)KVF_SHADOW_TAGS << p->shift) < span && p->shift < KVF_SHADOW_SHIFT_MAX)
        p->shift++;
    if (p->shift && ((uint64_t)KVF_SHADOW_TAGS << p->shift) >= 8 * span)
        p->shift--;
    return (struct kvf_shadow_clock){.shift = p->shift};
}

struct worth {
    struct kvf_cache_session *session;
    struct kvf_cache_part *part;
    float gain, loss; /* sampled hits per slot: of more slots, at best on the way to any size; of the last eighth of those it has */
};

/* What a partition gets or gives at once. */
static uint32_t portion(const struct kvf_cache_part *p)
{
    return p->quota > 8 ? p->quota / 8 : p->quota ? 1 : 0;
}

static float mean_of(const struct kvf_shadow *s, uint32_t from, uint32_t to)
{
    float sum = 0;
    for (uint32_t d = from; d < to; d++)
        sum += s->hits[d];
    return to > from ? sum / (float)(to - from) : 0;
}

/* Where more slots bring nothing at first and much later (a cycle that does not fit yet), the mean on the way counts. */
static void worth_of(struct kvf_cache *c, struct worth *w)
{
    struct kvf_shadow s;
    w->gain = w->loss = 0;
    if (c->dev->download(c->dev, NULL, &s, w->part->shadow, sizeof s) != KVF_OK || c->dev->stream_sync(c->dev, NULL) != KVF_OK)
        return;
    kvf_shadow_age(&s, (uint32_t)c->clock);
    uint32_t quota = w->part->quota, above = quota >> s.shift, last = (quota - portion(w->part)) >> s.shift;
    float sum = 0;
    for (uint32_t d = above; d < KVF_SHADOW_TAGS; d++) {
        sum += s.hits[d];
        float mean = sum / (float)(d + 1 - above);
        w->gain = mean > w->gain ? mean : w->gain;
    }
    uint32_t end = ((quota ? quota - 1 : 0) >> s.shift) + 1, tags = KVF_SHADOW_TAGS;
    w->loss = quota ? mean_of(&s, last < tags ? last : tags, end < tags ? end : tags) : 0;
}

/* ---------------------------------------------------------------- exchange */

static void grow_from_unused(struct kvf_cache *c, struct worth *to)
{
    uint64_t slots = (c->stats.capacity_bytes - c->quota_bytes) / to->session->chunk_bytes;
    uint32_t step = portion(to->part) ? portion(to->part) : 1;
    quota_set(to->session, to->part, to->part->quota + (uint32_t)(slots < step ? slots : step));
    c->stats.moves++;
}

/* A portion of the taker's, and no more than one of the giver's; where one slot of the taker is more than that, one slot. */
static void exchange(struct kvf_cache *c, struct worth *from, struct worth *to)
{
    uint64_t in = to->session->chunk_bytes, out = from->session->chunk_bytes;
    uint64_t unused = c->stats.capacity_bytes - c->quota_bytes; /* less than a slot of the taker */
    uint64_t take = portion(to->part) ? portion(to->part) : 1, most = portion(from->part) * out + unused;
    take = take * in <= most ? take : most / in ? most / in : 1;
    uint64_t give = (take * in - unused + out - 1) / out;
    if (give > from->part->quota)
        return;
    quota_set(from->session, from->part, from->part->quota - (uint32_t)give);
    quota_set(to->session, to->part, to->part->quota + (uint32_t)take);
    c->stats.moves++;
}

static void compare(struct kvf_cache *c)
{
    struct worth drawn[DRAWN], *to = drawn, *from = NULL;
    for (int i = 0; i < DRAWN; i++) {
        struct worth *w = &drawn[i];
        w->session = c->sessions[draw(c) % c->n_sessions];
        w->part = &w->session->parts[draw(c) % kvf_cache_parts_of(w->session)];
        worth_of(c, w);
        if (w->gain * (float)to->session->chunk_bytes > to->gain * (float)w->session->chunk_bytes)
            to = w;
    }
    for (struct worth *w = drawn; w < drawn + DRAWN; w++)
        if (w->part != to->part && w->part->quota &&
            (!from || w->loss * (float)from->session->chunk_bytes < from->loss * (float)w->session->chunk_bytes))
            from = w;
    if (to->gain <= AT_LEAST)
        return;
    if (c->stats.capacity_bytes - c->quota_bytes >= to->session->chunk_bytes) {
        grow_from_unused(c, to);
        return;
    }
    if (!from)
        return;
    float loss = from->loss * (float)to->session->chunk_bytes / (float)from->session->chunk_bytes;
    if (to->gain > loss * CLEARLY + AT_LEAST)
        exchange(c, from, to);
}

void kvf_cache_share_step(struct kvf_cache *c)
{
    c->clock += 1 / (HALF_LIFE * (double)c->layers);
    if (c->steps++ % SHARE_STEPS == 0)
        compare(c);
}
