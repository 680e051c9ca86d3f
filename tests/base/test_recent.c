/* Durations of late: percentiles within half a power of two, and what is long ago fades. */
#include "base/recent.h"
#include "base/env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void percentiles_are_within_half_a_power_of_two(void **state)
{
    struct kvf_recent r = {0};
    assert_int_equal(kvf_recent_percentile(&r, 50), 0);
    for (uint64_t ns = 1; ns < 8 * KVF_SEC; ns = ns * 5 / 4 + 1) {
        memset(&r, 0, sizeof r);
        kvf_recent_add(&r, ns);
        for (unsigned p = 0; p <= 100; p += 50) {
            uint64_t found = kvf_recent_percentile(&r, p);
            assert_true(found > ns || (ns < 1024 && found == 1536));
            assert_true(ns < 1024 || found <= ns + ns / 2);
        }
    }
}

static void the_few_show_at_the_top(void **state)
{
    struct kvf_recent r = {0};
    for (unsigned i = 0; i < 100; i++)
        kvf_recent_add(&r, i % 10 == 0 ? 80 * KVF_MS : 100 * KVF_US);
    assert_in_range(kvf_recent_percentile(&r, 50), 100 * KVF_US, 150 * KVF_US);
    assert_in_range(kvf_recent_percentile(&r, 90), 100 * KVF_US, 150 * KVF_US);
    assert_in_range(kvf_recent_percentile(&r, 95), 80 * KVF_MS, 120 * KVF_MS);
}

static void what_is_long_ago_fades(void **state)
{
    struct kvf_recent r = {0};
    for (unsigned i = 0; i < 10000; i++)
        kvf_recent_add(&r, 80 * KVF_MS);
    for (unsigned i = 0; i < 300; i++)
        kvf_recent_add(&r, 100 * KVF_US);
    assert_in_range(kvf_recent_percentile(&r, 50), 100 * KVF_US, 150 * KVF_US);
    for (unsigned i = 0; i < 2000; i++)
        kvf_recent_add(&r, 100 * KVF_US);
    assert_in_range(kvf_recent_percentile(&r, 100), 100 * KVF_US, 150 * KVF_US);
}

static void beyond_its_range_the_last_bucket_holds_it(void **state)
{
    struct kvf_recent r = {0};
    kvf_recent_add(&r, UINT64_MAX);
    kvf_recent_add(&r, 0);
    assert_true(kvf_recent_percentile(&r, 100) > 16 * KVF_SEC);
    assert_true(kvf_recent_percentile(&r, 1) <= 2 * KVF_US);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_within_half_a_power_of_two),
        cmocka_unit_test(the_few_show_at_the_top),
        cmocka_unit_test(what_is_long_ago_fades),
        cmocka_unit_test(beyond_its_range_the_last_bucket_holds_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
