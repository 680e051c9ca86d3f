/* cache_step on a CPU, compiled once per set of instructions. Nothing here branches on whether a slot is hit, which is as good as
 * random: the slots are sorted into two lists first. The selected are a bitmap over the chunks (4 KiB for 2^15 of them), and the
 * rank of a bit in it is the chunk's index in `selected`. The victims' threshold is found by bisection over the keys, 32 passes of
 * vector compares at most, as in topk. */
#include "kernels/cpu.h"

#include <string.h>

struct cache_marks {
    uint64_t bits[KVF_CACHE_CHUNKS_MAX / 64 + 1]; /* one word behind, always 0: where empty slots look */
    uint32_t rank[KVF_CACHE_CHUNKS_MAX / 64 + 1];
    uint32_t words;
};

static void cache_mark(struct cache_marks *m, const struct kvf_cache_step *s)
{
    m->words = (s->n_chunks + 63) / 64;
    memset(m->bits, 0, (m->words + 1) * sizeof *m->bits);
    for (uint32_t i = 0; i < s->n_selected; i++) {
        m->bits[s->selected[i] / 64] |= 1ull << s->selected[i] % 64;
        s->places[i] = KVF_CACHE_NONE;
    }
    for (uint32_t w = 0, rank = 0; w < m->words; w++) {
        m->rank[w] = rank;
        rank += (uint32_t)__builtin_popcountll(m->bits[w]);
    }
}

static inline float cache_score(const float *scores, uint32_t chunk)
{
    return scores ? scores[chunk] : 0;
}

/* Slots with a selected chunk to list[slots - 1] downwards, the others to list[0] upwards; returns the others' number. */
static uint32_t cache_sort(const struct cache_marks *m, const struct kvf_cache_step *s, uint32_t *list)
{
    uint32_t hits = 0;
    for (uint32_t slot = 0; slot < s->slots; slot++) {
        uint32_t c = s->chunk[slot], word = c / 64 < m->words ? c / 64 : m->words;
        uint32_t hit = (uint32_t)(m->bits[word] >> c % 64 & 1);
        list[hit ? s->slots - 1 - hits : slot - hits] = slot;
        hits += hit;
    }
    for (uint32_t i = 0; i < hits; i++) {
        uint32_t slot = list[s->slots - 1 - i], c = s->chunk[slot], word = c / 64;
        uint32_t at = m->rank[word] + (uint32_t)__builtin_popcountll(m->bits[word] & ((1ull << c % 64) - 1));
        s->places[at] = s->place[slot];
        kvf_chunk_touch(s->rule, &s->state[slot], s->now, cache_score(s->scores, c));
    }
    return s->slots - hits;
}

/* Inlined into each case below, where the compiler knows the policy and leaves the others' code out. */
static inline __attribute__((always_inline)) void cache_keys_by(const struct kvf_cache_step *s, struct kvf_chunk_rule rule,
                                                                const uint32_t *list, uint32_t n, uint32_t *key)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = list[i], c = s->chunk[slot];
        key[i] = c == KVF_CACHE_NONE
                     ? 0
                     : kvf_cache_key(kvf_chunk_keep(rule, &s->state[slot], s->now, cache_score(s->scores, c)));
    }
}

static void cache_keys(const struct kvf_cache_step *s, const uint32_t *list, uint32_t n, uint32_t *key)
{
    struct kvf_chunk_rule rule = s->rule;
    if (rule.policy == KVF_CHUNK_BLEND)
        cache_keys_by(s, rule, list, n, key);
    else if (rule.policy == KVF_CHUNK_SCORE)
        cache_keys_by(s, rule, list, n, key);
    else
        cache_keys_by(s, rule, list, n, key);
}

static uint32_t cache_count(const uint32_t *key, uint32_t n, uint32_t most)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        count += key[i] <= most;
    return count;
}

/* The n-th lowest key; n is 1 .. total. */
static uint32_t cache_threshold(const uint32_t *key, uint32_t total, uint32_t n)
{
    uint32_t low = 0, high = UINT32_MAX;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, count = cache_count(key, total, middle);
        if (count == n)
            return middle; /* splits as the n-th lowest does */
        if (count > n)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The `n` victims among `total` listed slots, in rising order, to the front of the list. What is not a victim is overwritten. */
static void cache_victims(uint32_t *list, const uint32_t *key, uint32_t total, uint32_t n)
{
    if (n == total || !n)
        return;
    uint32_t most = cache_threshold(key, total, n), below = 0, found = 0;
    for (uint32_t i = 0; i < total; i++)
        below += key[i] < most;
    uint32_t ties = n - below; /* of those with this key the ones of the lowest slots */
    for (uint32_t i = 0; i < total && found < n; i++) {
        uint32_t tie = key[i] == most && ties;
        list[found] = list[i];
        found += key[i] < most || tie;
        ties -= tie;
    }
}

static bool cache_copied(const struct kvf_cache_step *s, uint32_t i)
{
    const char *block = s->blocks ? s->blocks[s->selected[i] / s->block_chunks] : NULL;
    if (!block || s->places[i] == KVF_CACHE_NONE)
        return false;
    memcpy(s->memory + (size_t)s->places[i] * KVF_CACHE_UNIT,
           block + (size_t)(s->selected[i] % s->block_chunks) * s->chunk_bytes, s->chunk_bytes);
    return true;
}

/* The first misses get the first of the victims. */
static void cache_assign(const struct kvf_cache_step *s, const uint32_t *victim, uint32_t assigned)
{
    struct kvf_cache_result *r = s->result;
    uint32_t used = 0;
    for (uint32_t i = 0; i < s->n_selected; i++) {
        if (s->places[i] != KVF_CACHE_NONE)
            continue;
        if (used < assigned) {
            uint32_t slot = victim[used++];
            r->evicted += s->chunk[slot] != KVF_CACHE_NONE;
            s->chunk[slot] = s->selected[i];
            s->places[i] = s->place[slot];
            kvf_chunk_enter(s->rule, &s->state[slot], s->now, cache_score(s->scores, s->selected[i]));
        }
        if (cache_copied(s, i))
            r->filled++;
        else
            s->misses[r->misses++] = i;
    }
}

/* Releases the slots of the rising list `gone`: what stays above the new end moves into those of them below it. */
static void cache_release(const struct kvf_cache_step *s, const uint32_t *gone, uint32_t n)
{
    uint32_t end = s->slots - n, next = 0, behind = 0;
    for (uint32_t i = 0; i < n; i++)
        s->result->evicted += s->chunk[gone[i]] != KVF_CACHE_NONE;
    while (behind < n && gone[behind] < end)
        behind++;
    for (uint32_t slot = end; slot < s->slots; slot++) {
        if (behind < n && gone[behind] == slot) {
            behind++;
            s->chunk[slot] = KVF_CACHE_NONE;
            continue;
        }
        uint32_t to = gone[next++], place = s->place[to];
        s->chunk[to] = s->chunk[slot];
        s->place[to] = s->place[slot];
        s->state[to] = s->state[slot];
        s->chunk[slot] = KVF_CACHE_NONE;
        s->place[slot] = place;
    }
}

static void cache_step_one(const struct kvf_cache_step *s, struct cache_marks *marks)
{
    uint32_t *list = s->scratch, *key = s->scratch + s->slots;
    struct kvf_cache_result *r = s->result;
    cache_mark(marks, s);
    uint32_t others = cache_sort(marks, s, list), hits = s->slots - others;
    uint32_t surplus = s->slots - s->keep < others ? s->slots - s->keep : others;
    uint32_t wanted = s->n_selected - hits + surplus, victims = wanted < others ? wanted : others;
    *r = (struct kvf_cache_result){.hits = hits, .slots = s->slots - surplus};
    cache_keys(s, list, others, key);
    cache_victims(list, key, others, victims);
    cache_assign(s, list, victims - surplus);
    if (surplus)
        cache_release(s, list + (victims - surplus), surplus);
    if (s->shadow)
        kvf_shadow_step(s->shadow, s->rule, s->now, s->selected, s->n_selected, s->scores, s->clock);
}

static enum kvf_status cache_step(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cache_step *steps,
                                  size_t n)
{
    struct cache_marks marks;
    if (!kvf_check_cache_step(steps, n))
        return KVF_ERR_INVALID;
    for (size_t i = 0; i < n; i++)
        cache_step_one(&steps[i], &marks);
    return KVF_OK;
}
