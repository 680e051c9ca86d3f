/* The store of chunk checksums: words stay what was written while others come and go. */
#include "tiers/sums.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define SEED 977u
#define HELD_MAX 4000

struct held {
    uint32_t handle, count;
    uint64_t mark;
};

static void check_words(const struct kvf_sums *s, const struct held *h)
{
    const uint64_t *words = kvf_sums_at(s, h->handle);
    for (uint32_t i = 0; i < h->count; i++)
        assert_int_equal(words[i], h->mark + i);
}

static void random_use_keeps_every_word(void **state)
{
    struct kvf_sums *s;
    struct held *held = calloc(HELD_MAX, sizeof *held);
    uint64_t random = SEED, words = 0;
    size_t count = 0;
    print_message("seed %u\n", SEED);
    assert_int_equal(kvf_sums_create(100000, &s), KVF_OK);
    for (unsigned n = 0; n < 60000; n++) {
        random = kvf_mix(random, n);
        uint32_t want = 1 + (uint32_t)(random >> 8) % 64;
        if (count < HELD_MAX && words + want <= 90000 && random % 100 < 55) {
            struct held h = {.handle = kvf_sums_alloc(s, want), .count = want, .mark = random};
            assert_true(h.handle != KVF_SUMS_NONE);
            for (uint32_t i = 0; i < want; i++)
                kvf_sums_at(s, h.handle)[i] = h.mark + i;
            held[count++] = h;
            words += want;
        } else if (count) {
            size_t i = (random >> 32) % count;
            check_words(s, &held[i]);
            kvf_sums_free(s, held[i].handle, held[i].count);
            words -= held[i].count;
            held[i] = held[--count];
        }
    }
    for (size_t i = 0; i < count; i++)
        check_words(s, &held[i]);
    kvf_sums_destroy(s);
    free(held);
}

/* From empty, every size alone gets all the words that were promised, and then a clear "full". */
static void promised_words_fit_in_every_size(void **state)
{
    const uint64_t words_max = 20000;
    for (uint32_t size = 1; size <= 64; size++) {
        struct kvf_sums *s;
        assert_int_equal(kvf_sums_create(words_max, &s), KVF_OK);
        for (uint64_t words = 0; words + size <= words_max; words += size)
            assert_true(kvf_sums_alloc(s, size) != KVF_SUMS_NONE);
        unsigned more = 0;
        while (kvf_sums_alloc(s, size) != KVF_SUMS_NONE)
            assert_true(++more < 400000);
        kvf_sums_destroy(s);
    }
}

static void sizes_share_the_words(void **state)
{
    struct kvf_sums *s;
    uint64_t words = 0;
    assert_int_equal(kvf_sums_create(20000, &s), KVF_OK);
    for (uint32_t size = 1; words + size <= 20000; words += size, size = size % KVF_SUMS_MAX + 1)
        assert_true(kvf_sums_alloc(s, size) != KVF_SUMS_NONE);
    kvf_sums_destroy(s);
}

static void bad_sizes_are_refused(void **state)
{
    struct kvf_sums *s;
    assert_int_equal(kvf_sums_create(0, &s), KVF_ERR_INVALID);
    assert_int_equal(kvf_sums_create(UINT64_MAX, &s), KVF_ERR_INVALID);
    assert_int_equal(kvf_sums_create(1ull << 32, &s), KVF_ERR_INVALID);
    assert_int_equal(kvf_sums_create(1, &s), KVF_OK);
    assert_true(kvf_sums_alloc(s, 64) != KVF_SUMS_NONE);
    kvf_sums_destroy(s);
    kvf_sums_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_use_keeps_every_word),
        cmocka_unit_test(promised_words_fit_in_every_size),
        cmocka_unit_test(sizes_share_the_words),
        cmocka_unit_test(bad_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
