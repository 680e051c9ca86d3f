/* Histogram against exact percentiles; the counters' list; log lines. */
#include "base/counters.h"
#include "base/hash.h"
#include "base/histogram.h"
#include "base/log.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 20240611u
#define SAMPLES 20000

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Rounded up to the same rank as the histogram's, the answer is at least the exact one and at most 1/16 above it. */
static void assert_near(const struct kvf_histogram *h, const uint64_t *sorted, size_t n, double percentile)
{
    size_t rank = (size_t)ceil(percentile / 100 * (double)n);
    uint64_t exact = sorted[rank ? rank - 1 : 0], got = kvf_histogram_percentile(h, percentile);
    assert_true(got >= exact);
    assert_true(got - exact <= exact / 16);
    assert_true(got <= sorted[n - 1]);
}

static void percentiles_are_within_a_sixteenth_of_exact(void **state)
{
    static const double percentiles[] = {0, 0.1, 1, 10, 25, 50, 75, 90, 99, 99.9, 99.99, 100};
    uint64_t *values = malloc(SAMPLES * sizeof *values);
    struct kvf_histogram *h = malloc(sizeof *h);
    for (unsigned shape = 0; shape < 64; shape += 7) { /* spans from one bit to the whole 64 */
        memset(h, 0, sizeof *h);
        for (uint64_t i = 0; i < SAMPLES; i++) {
            values[i] = kvf_mix(SEED + shape, i) >> (63 - shape) >> (kvf_mix(i, shape) % 8);
            kvf_histogram_add(h, values[i]);
        }
        qsort(values, SAMPLES, sizeof *values, compare);
        for (size_t p = 0; p < sizeof percentiles / sizeof percentiles[0]; p++)
            assert_near(h, values, SAMPLES, percentiles[p]);
        assert_int_equal(atomic_load(&h->count), SAMPLES);
        assert_true(atomic_load(&h->max) == values[SAMPLES - 1]);
    }
    free(h);
    free(values);
}

static void edges_of_buckets_hold(void **state)
{
    struct kvf_histogram *h = malloc(sizeof *h);
    for (unsigned bit = 0; bit < 64; bit++)
        for (int step = -1; step <= 1; step++) {
            uint64_t value = (1ull << bit) + (uint64_t)step;
            memset(h, 0, sizeof *h);
            kvf_histogram_add(h, value);
            assert_true(kvf_histogram_percentile(h, 50) == value); /* one value: max bounds its bucket */
        }
    memset(h, 0, sizeof *h);
    kvf_histogram_add(h, UINT64_MAX);
    assert_true(kvf_histogram_percentile(h, 100) == UINT64_MAX);
    free(h);
}

static void an_empty_one_gives_zero_and_odd_percentiles_are_clamped(void **state)
{
    struct kvf_histogram *h = calloc(1, sizeof *h);
    assert_true(kvf_histogram_percentile(h, 50) == 0);
    kvf_histogram_add(h, 3);
    kvf_histogram_add(h, 9);
    assert_true(kvf_histogram_percentile(h, -5) == 3);
    assert_true(kvf_histogram_percentile(h, 500) == 9);
    assert_true(kvf_histogram_percentile(h, NAN) == 3);
    free(h);
}

static void merging_is_the_same_as_adding_to_one(void **state)
{
    struct kvf_histogram *all = calloc(1, sizeof *all), *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b);
    for (uint64_t i = 0; i < 5000; i++) {
        uint64_t value = kvf_mix(SEED, i) >> 30;
        kvf_histogram_add(all, value);
        kvf_histogram_add(i % 3 ? a : b, value);
    }
    kvf_histogram_merge(a, b);
    assert_memory_equal(a, all, sizeof *a);
    free(all);
    free(a);
    free(b);
}

static void *add_many(void *arg)
{
    for (uint64_t i = 0; i < 5000; i++)
        kvf_histogram_add(arg, i);
    return NULL;
}

static void threads_add_without_losing_any(void **state)
{
    struct kvf_histogram *h = calloc(1, sizeof *h);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, h), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&h->count), 20000);
    assert_int_equal(atomic_load(&h->sum), 4ull * 4999 * 5000 / 2);
    assert_int_equal(atomic_load(&h->max), 4999);
    free(h);
}

static void the_counters_list_is_whole_and_in_order(void **state)
{
    struct kvf_counters counters;
    _Atomic uint64_t *fields = (_Atomic uint64_t *)&counters;
    struct kvf_counter_entry entry;
    size_t n = 0;
    memset(&counters, 0, sizeof counters);
    for (; kvf_counters_entry(n, &entry); n++) {
        assert_int_equal(entry.offset, n * sizeof(uint64_t));
        assert_true(strspn(entry.name, "abcdefghijklmnopqrstuvwxyz_") == strlen(entry.name));
        assert_true(*entry.help);
        kvf_count(&fields[n], 100 + n);
    }
    assert_int_equal(n, sizeof counters / sizeof(uint64_t));
    for (size_t i = 0; i < n; i++)
        assert_int_equal(kvf_counters_get(&counters, i), 100 + i);
    assert_true(kvf_counters_entry(0, &entry));
    assert_string_equal(entry.name, "blocks_sealed");
    assert_int_equal(kvf_counted(&counters.blocks_sealed), 100);
}

static void a_log_line_is_one_line_with_level_and_name(void **state)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    struct kvf_log log;
    kvf_log_init(&log, "n1", KVF_LOG_INFO, out);
    errno = EAGAIN;
    kvf_log_debug(&log, "dropped");
    kvf_log_warn(&log, "peer %s said %d", "a\nb\x1b[2J", 7);
    assert_int_equal(errno, EAGAIN);
    fclose(out);
    assert_non_null(strstr(text, "Z warn n1: peer a?b?[2J said 7\n"));
    assert_ptr_equal(strchr(text, '\n'), text + bytes - 1);
    free(text);
}

static void a_log_line_too_long_is_cut(void **state)
{
    char *text = NULL, long_name[4000];
    size_t bytes = 0;
    memset(long_name, 'x', sizeof long_name);
    long_name[sizeof long_name - 1] = 0;
    FILE *out = open_memstream(&text, &bytes);
    struct kvf_log log;
    kvf_log_init(&log, long_name, KVF_LOG_DEBUG, out);
    kvf_log_debug(&log, "%s", long_name);
    fclose(out);
    assert_true(bytes < 2100);
    assert_int_equal(text[bytes - 1], '\n');
    assert_non_null(strstr(text, "x.."));
    free(text);
    log.out = NULL;
    kvf_log_error(&log, "nowhere");
}

/* Prometheus' cumulative buckets: exact where a bucket ends, and never more than was added. */
static void counts_up_to_a_bound_are_exact_at_powers_of_two(void **state)
{
    struct kvf_histogram *h = calloc(1, sizeof *h);
    assert_int_equal(kvf_histogram_upto(h, UINT64_MAX), 0);
    static const uint64_t values[] = {0, 1, 1023, 1023, 1024, 1500, 2047, 2048, 1ull << 40, UINT64_MAX};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        kvf_histogram_add(h, values[i]);
    assert_int_equal(kvf_histogram_upto(h, 0), 1);
    assert_int_equal(kvf_histogram_upto(h, 1023), 4);
    assert_int_equal(kvf_histogram_upto(h, 2047), 7);
    assert_int_equal(kvf_histogram_upto(h, (1ull << 40) - 1), 8);
    assert_int_equal(kvf_histogram_upto(h, (1ull << 41) - 1), 9);
    assert_int_equal(kvf_histogram_upto(h, UINT64_MAX), 10);
    free(h);
}

int main(void)
{
    printf("seed %u\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_up_to_a_bound_are_exact_at_powers_of_two),
        cmocka_unit_test(percentiles_are_within_a_sixteenth_of_exact),
        cmocka_unit_test(edges_of_buckets_hold),
        cmocka_unit_test(an_empty_one_gives_zero_and_odd_percentiles_are_clamped),
        cmocka_unit_test(merging_is_the_same_as_adding_to_one),
        cmocka_unit_test(threads_add_without_losing_any),
        cmocka_unit_test(the_counters_list_is_whole_and_in_order),
        cmocka_unit_test(a_log_line_is_one_line_with_level_and_name),
        cmocka_unit_test(a_log_line_too_long_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
