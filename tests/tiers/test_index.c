/* The index against an array that is searched from end to end by a number in the key. */
#include "tiers/index.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 31337u

_Static_assert(sizeof(struct kvf_entry) == 40, "bytes of memory per block, without the table");

/* Keys of three kinds: counting up in either word, and mixed. Few bits differ in the first two. */
static struct kvf_key key_of(uint64_t n)
{
    switch (n % 3) {
    case 0:
        return (struct kvf_key){.hi = n, .lo = 0};
    case 1:
        return (struct kvf_key){.hi = 0, .lo = n << 40};
    default:
        return (struct kvf_key){.hi = kvf_mix(n, 1), .lo = kvf_mix(n, 2)};
    }
}

struct twin {
    struct kvf_index *index;
    kvf_handle *handles; /* by key number; NONE when not there */
    uint64_t keys, count;
};

static void twin_start(struct twin *t, uint64_t entries_max, uint64_t keys)
{
    *t = (struct twin){.keys = keys};
    assert_int_equal(kvf_index_create(entries_max, &t->index), KVF_OK);
    t->handles = malloc(keys * sizeof *t->handles);
    memset(t->handles, 0xff, keys * sizeof *t->handles);
}

static void twin_end(struct twin *t)
{
    kvf_index_destroy(t->index);
    free(t->handles);
}

static void add(struct twin *t, uint64_t n)
{
    kvf_handle handle = KVF_HANDLE_NONE;
    enum kvf_status st = kvf_index_add(t->index, key_of(n), &handle);
    if (t->handles[n] != KVF_HANDLE_NONE) {
        assert_int_equal(st, KVF_ERR_EXISTS);
        return;
    }
    assert_int_equal(st, KVF_OK);
    struct kvf_entry *e = kvf_index_entry(t->index, handle);
    assert_int_equal(e->word | e->location4k | e->ssd4k | e->bytes | e->sums | e->peer | e->tier | e->state | e->flags, 0);
    e->location4k = (uint32_t)n;
    t->handles[n] = handle;
    t->count++;
}

static void drop(struct twin *t, uint64_t n)
{
    kvf_index_remove(t->index, t->handles[n]);
    t->handles[n] = KVF_HANDLE_NONE;
    t->count--;
}

/* Handles found are those given at add, and what they name is untouched. */
static void compare(const struct twin *t, uint64_t n)
{
    kvf_handle handle = kvf_index_find(t->index, key_of(n));
    assert_int_equal(handle, t->handles[n]);
    if (handle != KVF_HANDLE_NONE)
        assert_int_equal(kvf_index_entry(t->index, handle)->location4k, n);
}

static void random_use_agrees_with_the_twin(void **state)
{
    struct twin t;
    uint64_t random = SEED;
    print_message("seed %u; %zu bytes per entry\n", SEED, sizeof(struct kvf_entry));
    twin_start(&t, 200000, 250000);
    for (unsigned n = 0; n < 1200000; n++) {
        random = kvf_mix(random, n);
        uint64_t key = (random >> 8) % t.keys;
        bool growing = n / 300000 % 2 == 0;
        if (random % 100 < (growing ? 75u : 25u)) {
            if (t.count < 200000)
                add(&t, key);
        } else if (t.handles[key] != KVF_HANDLE_NONE) {
            drop(&t, key);
        }
        compare(&t, (random >> 36) % t.keys);
        assert_int_equal(kvf_index_count(t.index), t.count);
        if (n % 400000 == 0)
            kvf_index_check(t.index);
    }
    for (uint64_t n = 0; n < t.keys; n++)
        compare(&t, n);
    kvf_index_check(t.index);
    twin_end(&t);
}

/* A table at its highest load, where clusters are long and wrap around the end, removed and refilled many times. */
static void small_full_tables_survive_churn(void **state)
{
    for (uint64_t max = 1; max <= 26; max++) {
        struct twin t;
        twin_start(&t, max, 100);
        uint64_t random = SEED + max;
        for (unsigned n = 0; n < 3000; n++) {
            random = kvf_mix(random, n);
            uint64_t key = (random >> 8) % t.keys;
            kvf_handle unused;
            if (t.handles[key] != KVF_HANDLE_NONE)
                drop(&t, key);
            else if (t.count < max)
                add(&t, key);
            else
                assert_int_equal(kvf_index_add(t.index, key_of(key), &unused), KVF_ERR_BUSY);
            kvf_index_check(t.index);
        }
        for (uint64_t n = 0; n < t.keys; n++)
            compare(&t, n);
        twin_end(&t);
    }
}

static void a_full_index_is_busy_and_a_known_key_exists(void **state)
{
    struct twin t;
    kvf_handle handle;
    twin_start(&t, 1000, 1001);
    for (uint64_t n = 0; n < 1000; n++)
        add(&t, n);
    assert_int_equal(kvf_index_add(t.index, key_of(1000), &handle), KVF_ERR_BUSY);
    assert_int_equal(kvf_index_add(t.index, key_of(5), &handle), KVF_ERR_EXISTS);
    drop(&t, 5);
    add(&t, 1000);
    twin_end(&t);
}

static void walk_meets_each_entry_once_also_while_removing(void **state)
{
    struct twin t;
    twin_start(&t, 5000, 5000);
    for (uint64_t n = 0; n < 5000; n++)
        add(&t, n);
    for (uint64_t n = 0; n < 5000; n += 7)
        drop(&t, n);
    uint8_t *met = calloc(5000, 1);
    uint64_t cursor = 0, walked = 0, before = t.count;
    for (kvf_handle h; (h = kvf_index_walk(t.index, &cursor)) != KVF_HANDLE_NONE; walked++) {
        uint64_t n = kvf_index_entry(t.index, h)->location4k;
        assert_int_equal(t.handles[n], h);
        assert_int_equal(met[n]++, 0);
        if (n % 2)
            drop(&t, n);
    }
    assert_int_equal(walked, before);
    assert_int_equal(kvf_index_walk(t.index, &cursor), KVF_HANDLE_NONE);
    kvf_index_check(t.index);
    free(met);
    twin_end(&t);
}

static void a_million_blocks_cost_only_address_space(void **state)
{
    struct kvf_index *x;
    kvf_handle handle;
    assert_int_equal(kvf_index_create(1000000, &x), KVF_OK);
    assert_int_equal(kvf_index_add(x, key_of(1), &handle), KVF_OK);
    kvf_index_destroy(x);
    assert_int_equal(kvf_index_create(0, &x), KVF_ERR_INVALID);
    assert_int_equal(kvf_index_create(UINT32_MAX, &x), KVF_ERR_INVALID);
    kvf_index_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_use_agrees_with_the_twin),
        cmocka_unit_test(small_full_tables_survive_churn),
        cmocka_unit_test(a_full_index_is_busy_and_a_known_key_exists),
        cmocka_unit_test(walk_meets_each_entry_once_also_while_removing),
        cmocka_unit_test(a_million_blocks_cost_only_address_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
