/* The device cache against a trivial twin: every place that it calls a hit holds the bytes that were put there for that chunk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiers/cache.h"

enum { SEED = 20261125, SESSIONS = 5, LAYERS = 3, HEADS = 2, CHUNKS = 400 };

static uint64_t random_state = SEED;

static uint64_t random_u64(void)
{
    uint64_t x = random_state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint32_t below(uint32_t n)
{
    return (uint32_t)(random_u64() % n);
}

struct session {
    struct kvf_cache_session *cache;
    uint32_t chunk_bytes, steps, n_chunks, generation; /* generation: of a session that was closed and opened anew */
    uint8_t wanted[LAYERS][HEADS][CHUNKS];
    uint8_t here[LAYERS][HEADS][CHUNKS]; /* was filled and not forgotten: may be a hit */
};

struct world {
    struct kvf_cache *cache;
    struct session sessions[SESSIONS];
    uint32_t selected[HEADS][CHUNKS], places[HEADS][CHUNKS], misses[HEADS][CHUNKS];
    float scores[HEADS][CHUNKS];
    uint64_t hits, misses_seen;
};

/* What chunk c of a partition looks like. */
static uint64_t tag(const struct world *w, const struct session *s, uint32_t layer, uint32_t head, uint32_t c)
{
    uint64_t session = (uint64_t)(s - w->sessions), generation = s->generation & 0xffff;
    return session << 56 | generation << 40 | (uint64_t)layer << 36 | (uint64_t)head << 32 | c;
}

static void fill(uint64_t *at, uint32_t bytes, uint64_t value)
{
    for (uint32_t i = 0; i < bytes / sizeof value; i++)
        at[i] = value;
}

static void check_filled(const uint64_t *at, uint32_t bytes, uint64_t value)
{
    for (uint32_t i = 0; i < bytes / sizeof value; i++)
        assert_true(at[i] == value);
}

static uint32_t choose(struct world *w, struct session *s, uint32_t layer, uint32_t head, uint32_t one_in)
{
    uint8_t *wanted = s->wanted[layer][head];
    uint32_t n = 0;
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        wanted[c] = wanted[c] ? below(6) != 0 : below(one_in) == 0;
        w->scores[head][c] = (float)below(1000) / 1000;
        if (wanted[c])
            w->selected[head][n++] = c;
    }
    return n;
}

/* One step of one layer; sometimes the bytes of misses do not come. */
static void step(struct world *w, struct session *s, uint32_t layer, bool fails)
{
    struct kvf_cache_want wants[HEADS];
    for (uint32_t h = 0; h < HEADS; h++)
        wants[h] = (struct kvf_cache_want){.selected = w->selected[h], .n_selected = choose(w, s, layer, h, 40),
                                           .scores = w->scores[h], .places = w->places[h], .misses = w->misses[h]};
    assert_int_equal(kvf_cache_step(s->cache, layer, s->steps, s->n_chunks, wants), KVF_OK);
    for (uint32_t h = 0; h < HEADS; h++) {
        uint32_t miss = 0;
        for (uint32_t i = 0; i < wants[h].n_selected; i++) {
            uint32_t c = w->selected[h][i], place = w->places[h][i];
            uint64_t *at = place == KVF_CACHE_NONE ? NULL : (uint64_t *)(void *)kvf_cache_at(w->cache, place);
            if (miss == wants[h].n_misses || w->misses[h][miss] != i) {
                assert_true(s->here[layer][h][c]);
                check_filled(at, s->chunk_bytes, tag(w, s, layer, h, c));
                w->hits++;
                continue;
            }
            miss++;
            if (at && fails && below(2)) {
                kvf_cache_forget(s->cache, layer, h, c, c + 1);
                s->here[layer][h][c] = 0;
            } else if (at) {
                fill(at, s->chunk_bytes, tag(w, s, layer, h, c));
                s->here[layer][h][c] = 1;
            }
        }
        w->misses_seen += wants[h].n_misses;
        assert_int_equal(miss, wants[h].n_misses);
    }
}

static void random_operations_on(const struct kvf_dev *dev, enum kvf_chunk_policy policy)
{
    static struct world world;
    struct world *w = memset(&world, 0, sizeof world);
    const struct kvf_cache_options options = {.bytes = 700 * 1024, .policy = policy, .seed = SEED};
    struct kvf_cache_stats stats;
    assert_int_equal(kvf_cache_create(dev, &options, &w->cache), KVF_OK);
    for (uint32_t i = 0; i < 1500; i++) {
        struct session *s = &w->sessions[below(SESSIONS)];
        uint32_t what = below(100);
        if (!s->cache) {
            s->chunk_bytes = below(2) ? 512 : 1280;
            s->n_chunks = 1 + below(CHUNKS);
            s->generation++;
            s->steps = UINT32_MAX - below(40); /* it wraps */
            memset(s->wanted, 0, sizeof s->wanted);
            memset(s->here, 0, sizeof s->here);
            assert_int_equal(kvf_cache_open(w->cache, LAYERS, HEADS, s->chunk_bytes, &s->cache), KVF_OK);
        } else if (what < 2) {
            kvf_cache_close(s->cache);
            s->cache = NULL;
        } else if (what < 10) {
            uint32_t from = below(s->n_chunks), to = from + below(20), layer = below(LAYERS), head = below(HEADS);
            kvf_cache_forget(s->cache, layer, head, from, to);
            for (uint32_t c = from; c < to && c < s->n_chunks; c++) {
                s->here[layer][head][c] = 0;
                s->wanted[layer][head][c] = 1;
            }
        } else if (what < 15) {
            s->n_chunks += below(CHUNKS - s->n_chunks + 1) / 4;
        } else {
            s->steps++;
            for (uint32_t l = 0; l < LAYERS; l++)
                step(w, s, l, below(8) == 0);
            if (below(4))
                kvf_cache_end(s->cache);
        }
        if (i % 16 == 0)
            kvf_cache_check(w->cache);
    }
    kvf_cache_check(w->cache);
    kvf_cache_stats(w->cache, &stats);
    assert_int_equal(stats.hits, w->hits);
    assert_int_equal(stats.misses, w->misses_seen);
    assert_true(stats.hits > 1000 && stats.evictions > 1000 && stats.moves > 100);
    printf("%s, policy %d: %llu hits, %llu misses (%llu without a place), %llu evictions, %llu moves of slots\n", dev->name, policy,
           (unsigned long long)stats.hits, (unsigned long long)stats.misses, (unsigned long long)stats.uncached,
           (unsigned long long)stats.evictions, (unsigned long long)stats.moves);
    for (uint32_t i = 0; i < SESSIONS; i++)
        kvf_cache_close(w->sessions[i].cache);
    kvf_cache_check(w->cache);
    kvf_cache_stats(w->cache, &stats);
    assert_int_equal(stats.used_bytes, 0);
    assert_int_equal(stats.table_bytes, 0);
    kvf_cache_destroy(w->cache);
}

static void hits_are_what_was_put_there(void **state)
{
    for (int policy = 0; policy < KVF_CHUNK_POLICIES; policy++)
        random_operations_on(kvf_dev_cpu(), (enum kvf_chunk_policy)policy);
    random_operations_on(kvf_dev_cpu_reference(), KVF_CHUNK_LRU);
}

/* Two heads: one goes round in a few chunks, the other in many. */
struct rounds {
    uint32_t at[2], span[2];
};

static uint64_t run_rounds(struct kvf_cache *cache, struct kvf_cache_session *s, struct rounds *r, uint32_t steps, uint32_t *clock)
{
    static uint32_t selected[2][CHUNKS], places[2][CHUNKS], misses[2][CHUNKS];
    struct kvf_cache_stats before, after;
    kvf_cache_stats(cache, &before);
    for (uint32_t i = 0; i < steps; i++) {
        struct kvf_cache_want wants[2];
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t n = 0, first = r->at[h];
            r->at[h] = (r->at[h] + 8) % r->span[h];
            for (uint32_t k = 0; k < 8 && first + k < r->span[h]; k++)
                selected[h][n++] = first + k;
            wants[h] = (struct kvf_cache_want){.selected = selected[h], .n_selected = n, .places = places[h], .misses = misses[h]};
        }
        assert_int_equal(kvf_cache_step(s, 0, ++*clock, CHUNKS, wants), KVF_OK);
    }
    kvf_cache_stats(cache, &after);
    kvf_cache_check(cache);
    return after.hits - before.hits;
}

/* 128 slots for rounds of 24 and of 96 chunks: in halves the second never hits under LRU; when the shares follow the gain both
 * fit, and when the heads change their ways the shares change sides. */
static void shares_follow_the_gain(void **state)
{
    const struct kvf_cache_options options = {.bytes = 128 * 512, .policy = KVF_CHUNK_LRU, .seed = SEED};
    struct kvf_cache *cache;
    struct kvf_cache_session *s;
    struct kvf_cache_stats warm, stats;
    struct rounds r = {{0, 0}, {24, 96}};
    uint32_t clock = 0;
    assert_int_equal(kvf_cache_create(kvf_dev_cpu(), &options, &cache), KVF_OK);
    assert_int_equal(kvf_cache_open(cache, 1, 2, 512, &s), KVF_OK);
    assert_int_equal(kvf_cache_quota(s, 0, 0), 64);
    assert_int_equal(kvf_cache_quota(s, 0, 1), 64);
    run_rounds(cache, s, &r, 600, &clock);
    printf("shares of rounds of 24 and 96: %u and %u\n", kvf_cache_quota(s, 0, 0), kvf_cache_quota(s, 0, 1));
    assert_true(kvf_cache_quota(s, 0, 1) >= 96 && kvf_cache_quota(s, 0, 0) >= 24);
    kvf_cache_stats(cache, &warm);
    assert_int_equal(run_rounds(cache, s, &r, 120, &clock), 120 * 16); /* everything hits */
    kvf_cache_stats(cache, &stats);
    assert_int_equal(stats.moves, warm.moves); /* and nothing moves without need */
    assert_int_equal(stats.table_bytes, warm.table_bytes);
    r = (struct rounds){{0, 0}, {96, 24}};
    run_rounds(cache, s, &r, 900, &clock);
    printf("and with their ways changed: %u and %u\n", kvf_cache_quota(s, 0, 0), kvf_cache_quota(s, 0, 1));
    assert_int_equal(run_rounds(cache, s, &r, 120, &clock), 120 * 16);
    kvf_cache_close(s);
    kvf_cache_destroy(cache);
}

/* A session that opens gets its fair share, also where another has everything and stands still. */
static void a_new_session_gets_its_share(void **state)
{
    const struct kvf_cache_options options = {.bytes = 128 * 512, .policy = KVF_CHUNK_LRU, .seed = SEED};
    struct kvf_cache *cache;
    struct kvf_cache_session *first, *second;
    struct kvf_cache_stats stats;
    struct rounds r = {{0, 0}, {64, 64}};
    uint32_t clock = 0;
    assert_int_equal(kvf_cache_create(kvf_dev_cpu(), &options, &cache), KVF_OK);
    assert_int_equal(kvf_cache_open(cache, 1, 2, 512, &first), KVF_OK);
    run_rounds(cache, first, &r, 50, &clock);
    kvf_cache_stats(cache, &stats);
    assert_int_equal(stats.used_bytes, 128 * 512);
    kvf_cache_end(first);
    assert_int_equal(kvf_cache_open(cache, 1, 2, 512, &second), KVF_OK);
    assert_int_equal(kvf_cache_quota(second, 0, 0), 32);
    assert_int_equal(kvf_cache_quota(first, 0, 0), 32);
    r = (struct rounds){{0, 0}, {24, 24}};
    run_rounds(cache, second, &r, 6, &clock);
    assert_int_equal(run_rounds(cache, second, &r, 30, &clock), 30 * 16);
    kvf_cache_close(first);
    kvf_cache_close(second);
    kvf_cache_destroy(cache);
}

static void what_does_not_fit_is_refused(void **state)
{
    const struct kvf_cache_options options = {.bytes = 64 * 1024, .policy = KVF_CHUNK_LRU};
    struct kvf_cache *cache = NULL;
    struct kvf_cache_session *s = NULL;
    assert_int_equal(kvf_cache_create(kvf_dev_cpu(), &(struct kvf_cache_options){.bytes = 100}, &cache), KVF_ERR_INVALID);
    assert_int_equal(kvf_cache_create(kvf_dev_cpu(), &(struct kvf_cache_options){.bytes = 1ull << 40}, &cache), KVF_ERR_INVALID);
    assert_int_equal(kvf_cache_create(kvf_dev_cpu(), &options, &cache), KVF_OK);
    assert_int_equal(kvf_cache_open(cache, 1, 1, 100, &s), KVF_ERR_INVALID);
    assert_int_equal(kvf_cache_open(cache, 1, 1, 65536, &s), KVF_ERR_INVALID); /* larger than a page of so small an arena */
    assert_int_equal(kvf_cache_open(cache, 0, 1, 512, &s), KVF_ERR_INVALID);
    kvf_cache_close(NULL);
    kvf_cache_destroy(cache);
    kvf_cache_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hits_are_what_was_put_there),
        cmocka_unit_test(shares_follow_the_gain),
        cmocka_unit_test(a_new_session_gets_its_share),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    printf("seed %d\n", SEED);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
