/* The budget of bytes per second, on a clock in hand. */
#include "base/bucket.h"
#include "base/env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#define SEED 4711u
#define MIB (1ull << 20)

static void without_a_rate_everything_goes(void **state)
{
    struct kvf_bucket b;
    kvf_bucket_init(&b, 0, 5);
    kvf_bucket_take(&b, UINT64_MAX / 2, 5);
    assert_int_equal(kvf_bucket_room(&b, 5), UINT64_MAX);
    assert_int_equal(kvf_bucket_ready_ns(&b, 5), 5);
}

static void what_is_larger_than_the_bucket_passes_and_is_waited_off(void **state)
{
    struct kvf_bucket b;
    kvf_bucket_init(&b, 10 * MIB, KVF_SEC);
    assert_int_equal(kvf_bucket_room(&b, KVF_SEC), MIB + 1);
    kvf_bucket_take(&b, 5 * MIB, KVF_SEC); /* 4 MiB of debt: 0.4 s */
    assert_int_equal(kvf_bucket_room(&b, KVF_SEC), 0);
    assert_in_range(kvf_bucket_ready_ns(&b, KVF_SEC), KVF_SEC + 399 * KVF_MS, KVF_SEC + 401 * KVF_MS);
    assert_int_equal(kvf_bucket_room(&b, KVF_SEC + 399 * KVF_MS), 0);
    uint64_t ready = kvf_bucket_ready_ns(&b, KVF_SEC);
    assert_true(kvf_bucket_room(&b, ready) > 0);
}

static void debt_ends(void **state)
{
    struct kvf_bucket b;
    kvf_bucket_init(&b, MIB, 0);
    for (unsigned i = 0; i < 100; i++)
        kvf_bucket_take(&b, 1ull << 40, 0);
    assert_in_range(kvf_bucket_ready_ns(&b, 0), KVF_SEC, KVF_SEC + KVF_MS);
}

/* A clock that goes back or stands still gives nothing, and nothing is saved up beyond the bucket. */
static void the_level_has_a_limit(void **state)
{
    struct kvf_bucket b;
    kvf_bucket_init(&b, MIB, 100 * KVF_SEC);
    assert_int_equal(kvf_bucket_room(&b, 200 * KVF_SEC), MIB / 10 + 1);
    kvf_bucket_take(&b, MIB / 10 + 1, 200 * KVF_SEC);
    assert_int_equal(kvf_bucket_room(&b, 199 * KVF_SEC), 0);
    assert_int_equal(kvf_bucket_room(&b, UINT64_MAX), MIB / 10 + 1);
}

/* However often and unevenly it is asked, the rate is kept: within the bucket's own depth and one taking. */
static void the_rate_is_kept(void **state)
{
    static const uint64_t rates[] = {1, 1000, 3 * MIB + 7, 8ull << 30, 1ull << 50};
    printf("seed %u\n", SEED);
    for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
        struct kvf_bucket b;
        uint64_t now = 12345, start = now, taken = 0, x = SEED, piece = rates[r] / 50 + 1;
        kvf_bucket_init(&b, rates[r], now);
        while (now - start < 20 * KVF_SEC) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            now += (x >> 33) % (2 * KVF_MS);
            if (kvf_bucket_room(&b, now) > 0) {
                kvf_bucket_take(&b, piece, now);
                taken += piece;
            }
        }
        uint64_t due = rates[r] * 20;
        assert_true(taken <= due + due / 100 + rates[r] / 10 + 1 + piece);
        assert_true(taken + piece >= due - due / 50);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_rate_everything_goes),
        cmocka_unit_test(what_is_larger_than_the_bucket_passes_and_is_waited_off),
        cmocka_unit_test(debt_ends),
        cmocka_unit_test(the_level_has_a_limit),
        cmocka_unit_test(the_rate_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
