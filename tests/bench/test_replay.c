/* The replay of selection logs: its optimum is what trying every way finds, its LRU is what a trivial LRU does. */
#include "bench/replay.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 4711u
enum { CHUNKS = 7, STEPS = 9, CHOSEN = 2, CAPACITY = 4 };

struct tiny {
    uint8_t bytes[4096];
    size_t size;
    uint32_t sets[STEPS]; /* bit masks of chunks */
    struct kvf_selections log;
};

static void put32(struct tiny *t, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        t->bytes[t->size++] = (uint8_t)(value >> 8 * i);
}

static void put_float(struct tiny *t, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put32(t, bits);
}

/* One layer and head; every step chooses the CHOSEN chunks of the highest scores. */
static void make(struct tiny *t, uint64_t seed)
{
    *t = (struct tiny){0};
    memcpy(t->bytes, "KVFSELEC", 8);
    t->size = 8;
    put32(t, 1);
    put32(t, 1);
    put32(t, 1);
    put32(t, 16);
    put_float(t, 0.25f);
    put32(t, 0);
    t->size += 64;
    for (uint32_t step = 0; step < STEPS; step++) {
        uint64_t random = kvf_mix(seed, step);
        uint32_t a = (uint32_t)(random % CHUNKS), b = (uint32_t)((a + 1 + (random >> 20) % (CHUNKS - 1)) % CHUNKS);
        t->sets[step] = 1u << a | 1u << b;
        put32(t, step);
        put32(t, 0);
        put32(t, CHUNKS);
        put32(t, CHOSEN);
        put32(t, t->sets[step]);
        for (uint32_t c = 0; c < CHUNKS; c++)
            put_float(t, t->sets[step] >> c & 1 ? 0.4f : 0.01f * (float)(random >> (30 + 3 * c) & 7));
    }
    assert_null(kvf_selections_decode(&t->log, t->bytes, t->size));
}

static uint32_t bits(uint32_t x)
{
    return (uint32_t)__builtin_popcount(x);
}

/* The fewest misses from `step` on, whatever leaves; the first step is not counted. */
static uint32_t fewest(const struct tiny *t, uint32_t step, uint32_t held)
{
    uint32_t best = UINT32_MAX, set = step < STEPS ? t->sets[step] : 0, missed = step ? bits(set & ~held) : 0;
    if (step == STEPS)
        return 0;
    for (uint32_t kept = held & ~set;; kept = (kept - 1) & held & ~set) {
        if (bits(kept | set) <= CAPACITY) {
            uint32_t rest = fewest(t, step + 1, kept | set);
            best = missed + rest < best ? missed + rest : best;
        }
        if (kept == 0)
            return best;
    }
}

static struct kvf_replay_result replayed(const struct tiny *t, uint32_t capacity, const struct kvf_chunk_rule *rule)
{
    struct kvf_replay_result result = {0};
    struct kvf_replay *r = kvf_replay_create(&t->log);
    assert_non_null(r);
    assert_int_equal(kvf_replay_need(r, 0), CHOSEN);
    kvf_replay_run(r, 0, capacity, rule, &result);
    kvf_replay_destroy(r);
    assert_int_equal(result.chosen, CHOSEN * (STEPS - 1));
    assert_int_equal(result.steps, STEPS - 1);
    assert_in_range(result.held, CHOSEN * (STEPS - 1), (uint64_t)capacity * (STEPS - 1));
    return result;
}

static void the_optimum_is_what_trying_everything_finds(void **state)
{
    print_message("seed %u\n", SEED);
    for (uint32_t i = 0; i < 300; i++) {
        struct tiny t;
        make(&t, SEED + i);
        uint64_t optimum = replayed(&t, CAPACITY, NULL).missed;
        assert_int_equal(optimum, fewest(&t, 0, 0));
        for (int p = 0; p < KVF_CHUNK_POLICIES; p++) {
            struct kvf_chunk_rule rule = kvf_chunk_rule_of((enum kvf_chunk_policy)p);
            assert_true(replayed(&t, CAPACITY, &rule).missed >= optimum);
        }
        kvf_selections_free(&t.log);
    }
}

/* The fewest and the most misses of an LRU from `step` on: of chunks that were last used in the same step either may leave.
 * What leaves is never chosen in this step, so that the recursion within a step counts its misses once, at its end. */
struct range {
    uint32_t low, high;
};

static struct range trivial_lru(const struct tiny *t, uint32_t step, uint32_t held, const uint32_t last[CHUNKS])
{
    struct range all = {.low = UINT32_MAX};
    uint32_t oldest = UINT32_MAX, now[CHUNKS];
    if (step == STEPS)
        return (struct range){0};
    uint32_t set = t->sets[step], missed = step ? bits(set & ~held) : 0, idle = held & ~set;
    if (bits(held | set) <= CAPACITY) {
        for (uint32_t c = 0; c < CHUNKS; c++)
            now[c] = set >> c & 1 ? step : last[c];
        all = trivial_lru(t, step + 1, held | set, now);
        return (struct range){.low = all.low + missed, .high = all.high + missed};
    }
    for (uint32_t c = 0; c < CHUNKS; c++)
        oldest = idle >> c & 1 && last[c] < oldest ? last[c] : oldest;
    for (uint32_t c = 0; c < CHUNKS; c++) {
        if (!(idle >> c & 1) || last[c] != oldest)
            continue;
        struct range r = trivial_lru(t, step, held & ~(1u << c), last);
        all.low = r.low < all.low ? r.low : all.low;
        all.high = r.high > all.high ? r.high : all.high;
    }
    return all;
}

static void lru_is_a_trivial_lru(void **state)
{
    struct kvf_chunk_rule rule = kvf_chunk_rule_of(KVF_CHUNK_LRU);
    uint32_t exact = 0;
    for (uint32_t i = 0; i < 300; i++) {
        struct tiny t;
        make(&t, SEED + 1000 + i);
        struct range r = trivial_lru(&t, 0, 0, (const uint32_t[CHUNKS]){0});
        exact += r.low == r.high;
        assert_in_range(replayed(&t, CAPACITY, &rule).missed, r.low, r.high);
        kvf_selections_free(&t.log);
    }
    assert_true(exact > 100);
}

static void room_for_all_misses_only_what_is_new(void **state)
{
    struct tiny t;
    make(&t, SEED);
    uint32_t seen = t.sets[0], first = 0;
    for (uint32_t step = 1; step < STEPS; seen |= t.sets[step++])
        first += bits(t.sets[step] & ~seen);
    for (int p = 0; p < KVF_CHUNK_POLICIES; p++) {
        struct kvf_chunk_rule rule = kvf_chunk_rule_of((enum kvf_chunk_policy)p);
        if (p != KVF_CHUNK_WINDOW) /* lets go without need */
            assert_int_equal(replayed(&t, CHUNKS, &rule).missed, first);
    }
    assert_int_equal(replayed(&t, CHUNKS, NULL).missed, first);
    kvf_selections_free(&t.log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_optimum_is_what_trying_everything_finds),
        cmocka_unit_test(lru_is_a_trivial_lru),
        cmocka_unit_test(room_for_all_misses_only_what_is_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
