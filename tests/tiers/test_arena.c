/* The arena against a twin that only remembers every slot given out. */
#include "tiers/arena.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 20250711u

struct held {
    uint64_t offset;
    uint32_t bytes;
};

struct twin {
    struct kvf_arena *arena;
    uint8_t *taken; /* a byte per unit of align */
    uint32_t align;
    struct held *held;
    size_t count;
    uint64_t used;
    uint64_t random;
};

static uint64_t draw(struct twin *t, uint64_t below)
{
    t->random = kvf_mix(t->random, 1);
    return t->random % below;
}

static uint32_t rounded(const struct twin *t, uint32_t bytes)
{
    return (bytes + t->align - 1) / t->align * t->align;
}

static void take(struct twin *t, uint32_t bytes)
{
    uint64_t room = kvf_arena_room(t->arena, bytes);
    uint64_t offset = kvf_arena_alloc(t->arena, bytes);
    assert_int_equal(offset == KVF_ARENA_NONE, room == 0);
    if (offset == KVF_ARENA_NONE)
        return;
    assert_int_equal(offset % t->align, 0);
    assert_true(offset + rounded(t, bytes) <= kvf_arena_bytes(t->arena));
    for (uint64_t u = offset / t->align; u < (offset + rounded(t, bytes)) / t->align; u++) {
        assert_int_equal(t->taken[u], 0);
        t->taken[u] = 1;
    }
    t->held[t->count++] = (struct held){offset, bytes};
    t->used += rounded(t, bytes);
    assert_int_equal(kvf_arena_room(t->arena, bytes), room - 1);
}

/* What is held, taken slot by slot in a new arena, is the same arena again; nothing that overlaps it can be taken. */
static void rebuild(struct twin *t, uint64_t bytes, uint32_t page_bytes)
{
    struct kvf_arena *old = t->arena;
    assert_int_equal(kvf_arena_create(NULL, bytes, t->align, page_bytes, &t->arena), KVF_OK);
    for (size_t i = t->count; i > 1; i--) {
        size_t j = draw(t, i);
        struct held h = t->held[j];
        t->held[j] = t->held[i - 1];
        t->held[i - 1] = h;
    }
    for (size_t i = 0; i < t->count; i++)
        assert_true(kvf_arena_take(t->arena, t->held[i].offset, t->held[i].bytes));
    for (size_t i = 0; i < t->count; i++) {
        struct held h = t->held[i];
        assert_false(kvf_arena_take(t->arena, h.offset, h.bytes));
        assert_false(kvf_arena_take(t->arena, h.offset, h.bytes + t->align));
        assert_false(kvf_arena_take(t->arena, h.offset + 1, h.bytes));
    }
    assert_false(kvf_arena_take(t->arena, kvf_arena_bytes(t->arena), t->align));
    assert_false(kvf_arena_take(t->arena, 0, page_bytes + 1));
    assert_false(kvf_arena_take(t->arena, 0, 0));
    kvf_arena_check(t->arena);
    assert_int_equal(kvf_arena_used(t->arena), kvf_arena_used(old));
    assert_int_equal(kvf_arena_room(t->arena, page_bytes), kvf_arena_room(old, page_bytes));
    kvf_arena_destroy(old);
}

static void give_back(struct twin *t, size_t i)
{
    struct held h = t->held[i];
    kvf_arena_free(t->arena, h.offset, h.bytes);
    memset(t->taken + h.offset / t->align, 0, rounded(t, h.bytes) / t->align);
    t->held[i] = t->held[--t->count];
    t->used -= rounded(t, h.bytes);
}

/* Random sizes, with phases in which taking or giving back prevails, so that the arena fills and empties several times. */
static void drive(uint64_t bytes, uint32_t align, uint32_t page_bytes, unsigned operations, uint64_t seed)
{
    print_message("seed %llu, align %u, page %u\n", (unsigned long long)seed, align, page_bytes);
    struct twin t = {.align = align, .random = seed};
    assert_int_equal(kvf_arena_create(NULL, bytes, align, page_bytes, &t.arena), KVF_OK);
    t.taken = calloc(bytes / align, 1);
    t.held = calloc(bytes / align, sizeof *t.held);
    uint32_t sizes[6];
    for (unsigned i = 0; i < 6; i++)
        sizes[i] = 1 + (uint32_t)draw(&t, i < 3 ? page_bytes / 16 : page_bytes);
    for (unsigned n = 0; n < operations; n++) {
        bool filling = n / 2000 % 2 == 0;
        if (n % 2000 == 0)
            sizes[draw(&t, 6)] = 1 + (uint32_t)draw(&t, page_bytes);
        if (t.count == 0 || draw(&t, 10) < (filling ? 8u : 2u))
            take(&t, sizes[draw(&t, 6)]);
        else
            give_back(&t, draw(&t, t.count));
        assert_int_equal(kvf_arena_used(t.arena), t.used);
        if (n % 997 == 0)
            kvf_arena_check(t.arena);
        if (n % 2999 == 0)
            rebuild(&t, bytes, page_bytes);
    }
    while (t.count)
        give_back(&t, draw(&t, t.count));
    kvf_arena_check(t.arena);
    assert_int_equal(kvf_arena_used(t.arena), 0);
    assert_int_equal(kvf_arena_room(t.arena, page_bytes), bytes / page_bytes);
    kvf_arena_destroy(t.arena);
    free(t.taken);
    free(t.held);
}

static void random_use_never_overlaps_and_ends_empty(void **state)
{
    drive(16u << 20, 4096, 1u << 20, 20000, SEED);
    drive(8u << 20, 64, 256u << 10, 20000, SEED + 1);
    drive(1u << 20, 4096, 4096, 10000, SEED + 2);
    drive(3u * 100 * 4096, 4096, 100 * 4096, 20000, SEED + 3);
}

static void pages_move_between_sizes(void **state)
{
    struct kvf_arena *a;
    uint64_t small[256], big[16];
    assert_int_equal(kvf_arena_create(NULL, 4u << 20, 4096, 1u << 20, &a), KVF_OK);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 256; i++)
            assert_true((small[i] = kvf_arena_alloc(a, 16384)) != KVF_ARENA_NONE);
        assert_int_equal(kvf_arena_alloc(a, 16384), KVF_ARENA_NONE);
        assert_int_equal(kvf_arena_alloc(a, 262144), KVF_ARENA_NONE);
        for (unsigned i = 0; i < 256; i++)
            kvf_arena_free(a, small[i], 16384);
        for (unsigned i = 0; i < 16; i++)
            assert_true((big[i] = kvf_arena_alloc(a, 262144)) != KVF_ARENA_NONE);
        assert_int_equal(kvf_arena_room(a, 4096), 0);
        for (unsigned i = 0; i < 16; i++)
            kvf_arena_free(a, big[i], 262144);
        kvf_arena_check(a);
    }
    assert_int_equal(kvf_arena_room(a, 4096), 1024);
    kvf_arena_destroy(a);
}

static void slots_are_memory_over_the_base(void **state)
{
    struct kvf_arena *a;
    uint8_t *memory = aligned_alloc(4096, 1u << 20);
    assert_int_equal(kvf_arena_create(memory, 1u << 20, 4096, 65536, &a), KVF_OK);
    uint64_t first = kvf_arena_alloc(a, 5000), second = kvf_arena_alloc(a, 5000);
    memset(kvf_arena_at(a, first), 1, 8192);
    memset(kvf_arena_at(a, second), 2, 8192);
    assert_ptr_equal(kvf_arena_at(a, first), memory + first);
    assert_int_equal(memory[first + 8191], 1);
    assert_int_equal(memory[second], 2);
    kvf_arena_destroy(a);
    free(memory);
}

static void bad_arguments_are_refused(void **state)
{
    struct kvf_arena *a;
    assert_int_equal(kvf_arena_create(NULL, 1u << 20, 0, 65536, &a), KVF_ERR_INVALID);
    assert_int_equal(kvf_arena_create(NULL, 1u << 20, 4095, 65536, &a), KVF_ERR_INVALID);
    assert_int_equal(kvf_arena_create(NULL, 1u << 20, 4096, 65537, &a), KVF_ERR_INVALID);
    assert_int_equal(kvf_arena_create(NULL, 65535, 4096, 65536, &a), KVF_ERR_INVALID);
    assert_int_equal(kvf_arena_create(NULL, 1u << 30, 1, 1u << 30, &a), KVF_ERR_INVALID);
    assert_int_equal(kvf_arena_create((void *)(uintptr_t)64, 1u << 20, 4096, 65536, &a), KVF_ERR_INVALID);
    assert_int_equal(kvf_arena_create(NULL, 100000, 4096, 65536, &a), KVF_OK);
    assert_int_equal(kvf_arena_bytes(a), 65536);
    assert_int_equal(kvf_arena_alloc(a, 0), KVF_ARENA_NONE);
    assert_int_equal(kvf_arena_alloc(a, 65537), KVF_ARENA_NONE);
    assert_int_equal(kvf_arena_alloc(a, UINT32_MAX), KVF_ARENA_NONE);
    assert_int_equal(kvf_arena_room(a, 0), 0);
    assert_int_equal(kvf_arena_room(a, UINT32_MAX), 0);
    kvf_arena_destroy(a);
    kvf_arena_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_use_never_overlaps_and_ends_empty),
        cmocka_unit_test(pages_move_between_sizes),
        cmocka_unit_test(slots_are_memory_over_the_base),
        cmocka_unit_test(bad_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
