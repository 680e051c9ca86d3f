/* The list of DRAM blocks against an array kept in order. */
#include "tiers/dramlist.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 4711u
#define SLOTS 300u

struct twin {
    uint32_t slots[SLOTS], n;
    kvf_handle handles[SLOTS];
};

static void twin_remove(struct twin *t, uint32_t slot)
{
    uint32_t i = 0;
    while (t->slots[i] != slot)
        i++;
    memmove(&t->slots[i], &t->slots[i + 1], (t->n - i - 1) * sizeof *t->slots);
    memmove(&t->handles[i], &t->handles[i + 1], (t->n - i - 1) * sizeof *t->handles);
    t->n--;
}

static void compare(const struct kvf_dramlist *l, const struct twin *t)
{
    uint32_t slot = kvf_dramlist_oldest(l);
    for (uint32_t i = 0; i < t->n; i++) {
        assert_int_equal(slot, t->slots[i]);
        assert_int_equal(kvf_dramlist_handle(l, slot), t->handles[i]);
        slot = kvf_dramlist_newer(l, slot);
    }
    assert_int_equal(slot, KVF_DRAMSLOT_NONE);
    assert_int_equal(kvf_dramlist_count(l), t->n);
    kvf_dramlist_check(l);
}

static void random_use_agrees_with_the_twin(void **state)
{
    struct kvf_dramlist *l;
    struct twin t = {.n = 0};
    uint64_t random = SEED;
    print_message("seed %u\n", SEED);
    assert_int_equal(kvf_dramlist_create(SLOTS, &l), KVF_OK);
    for (uint32_t n = 0; n < 20000; n++) {
        random = kvf_mix(random, n);
        uint32_t slot = random % SLOTS;
        if (kvf_dramlist_has(l, slot)) {
            kvf_dramlist_remove(l, slot);
            twin_remove(&t, slot);
        } else if (random >> 32 & 3) { /* mostly full */
            kvf_dramlist_push(l, slot, n);
            t.slots[t.n] = slot;
            t.handles[t.n++] = n;
        }
        assert_true(t.n <= SLOTS);
        if (t.n && random >> 40 & 1) {
            uint32_t a = (uint32_t)(random >> 41) % t.n, b = random >> 58 & 1 ? (a + 1) % t.n : (uint32_t)(random >> 50) % t.n;
            kvf_handle handle = t.handles[a];
            kvf_dramlist_swap(l, t.slots[a], t.slots[b]);
            slot = t.slots[a];
            t.slots[a] = t.slots[b];
            t.handles[a] = t.handles[b];
            t.slots[b] = slot;
            t.handles[b] = handle;
        }
        compare(l, &t);
    }
    kvf_dramlist_destroy(l);
}

static void an_empty_list_ends_at_once_and_bounds_are_refused(void **state)
{
    struct kvf_dramlist *l;
    assert_int_equal(kvf_dramlist_create(0, &l), KVF_ERR_INVALID);
    assert_int_equal(kvf_dramlist_create(1ull << 32, &l), KVF_ERR_INVALID);
    assert_int_equal(kvf_dramlist_create(1, &l), KVF_OK);
    assert_int_equal(kvf_dramlist_oldest(l), KVF_DRAMSLOT_NONE);
    assert_false(kvf_dramlist_has(l, 0));
    kvf_dramlist_check(l);
    kvf_dramlist_destroy(l);
    kvf_dramlist_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_use_agrees_with_the_twin),
        cmocka_unit_test(an_empty_list_ends_at_once_and_bounds_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
