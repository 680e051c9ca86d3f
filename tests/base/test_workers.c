/* The worker pool: every item once, in every round, by threads that spin, sleep or come late. */
#include "base/env.h"
#include "base/workers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define ITEMS_MAX 5000

struct job {
    unsigned char done[ITEMS_MAX]; /* plain bytes: a second call for an item is a race that TSan sees */
    unsigned workers;
    unsigned long long sums[64];
};

static void mark(void *arg, unsigned item, unsigned worker)
{
    struct job *job = arg;
    if (worker >= job->workers || item >= ITEMS_MAX)
        abort();
    job->done[item]++;
    job->sums[worker] += item; /* one worker's own: no other thread may use its number at the same time */
}

static void run_and_check(struct kvf_workers *pool, struct job *job, unsigned items)
{
    memset(job, 0, sizeof *job);
    job->workers = kvf_workers_count(pool);
    kvf_workers_run(pool, items, mark, job);
    unsigned long long sum = 0;
    for (unsigned i = 0; i < 64; i++)
        sum += job->sums[i];
    for (unsigned i = 0; i < ITEMS_MAX; i++)
        if (job->done[i] != (i < items))
            fail_msg("item %u of %u was done %d times", i, items, job->done[i]);
    assert_true(sum == (unsigned long long)items * (items ? items - 1 : 0) / 2);
}

static void every_item_is_done_once(void **state)
{
    static const unsigned threads[] = {1, 2, 3, 7}, items[] = {0, 1, 2, 3, 7, 8, 100, ITEMS_MAX};
    struct job *job = malloc(sizeof *job);
    for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
        struct kvf_workers *pool = NULL;
        assert_int_equal(kvf_workers_create(threads[t], &pool), KVF_OK);
        assert_int_equal(kvf_workers_count(pool), threads[t]);
        for (size_t i = 0; i < sizeof items / sizeof items[0]; i++)
            run_and_check(pool, job, items[i]);
        kvf_workers_destroy(pool);
    }
    free(job);
}

static void many_rounds_back_to_back(void **state)
{
    struct job *job = malloc(sizeof *job);
    struct kvf_workers *pool = NULL;
    assert_int_equal(kvf_workers_create(4, &pool), KVF_OK);
    for (unsigned round = 0; round < 3000; round++)
        run_and_check(pool, job, round % 37);
    kvf_workers_destroy(pool);
    free(job);
}

static void rounds_after_sleep(void **state)
{
    /* Pauses around the length of the spin, so that some threads are just going to sleep when the round begins. */
    struct job *job = malloc(sizeof *job);
    struct kvf_workers *pool = NULL;
    assert_int_equal(kvf_workers_create(3, &pool), KVF_OK);
    for (unsigned round = 0; round < 400; round++) {
        struct timespec pause = {.tv_nsec = (round % 20) * 10000};
        nanosleep(&pause, NULL);
        run_and_check(pool, job, 16);
    }
    kvf_workers_destroy(pool);
    free(job);
}

static void slow(void *arg, unsigned item, unsigned worker)
{
    struct timespec pause = {.tv_nsec = 2000000};
    nanosleep(&pause, NULL);
    atomic_fetch_add((_Atomic unsigned *)arg, 1);
}

static void the_caller_waits_for_slow_items(void **state)
{
    struct kvf_workers *pool = NULL;
    assert_int_equal(kvf_workers_create(4, &pool), KVF_OK);
    for (unsigned round = 0; round < 20; round++) {
        _Atomic unsigned done = 0;
        kvf_workers_run(pool, 5, slow, &done);
        assert_int_equal(atomic_load(&done), 5);
    }
    kvf_workers_destroy(pool);
}

static void threads_take_part(void **state)
{
    /* Items that sleep: four threads must overlap them, on however few cores. */
    struct kvf_workers *pool = NULL;
    _Atomic unsigned done = 0;
    assert_int_equal(kvf_workers_create(8, &pool), KVF_OK);
    uint64_t start_ns = kvf_now(kvf_env_real());
    kvf_workers_run(pool, 400, slow, &done);
    uint64_t spent_ns = kvf_now(kvf_env_real()) - start_ns;
    assert_true(spent_ns < 400 * 2 * KVF_MS);
    kvf_workers_destroy(pool);
}

static void create_and_destroy_without_work(void **state)
{
    for (unsigned i = 0; i < 50; i++) {
        struct kvf_workers *pool = NULL;
        assert_int_equal(kvf_workers_create(1 + i % 5, &pool), KVF_OK);
        kvf_workers_destroy(pool);
    }
    kvf_workers_destroy(NULL);
}

static void no_threads_is_refused(void **state)
{
    struct kvf_workers *pool = (void *)0x10;
    assert_int_equal(kvf_workers_create(0, &pool), KVF_ERR_INVALID);
    assert_int_equal(kvf_workers_create(1u << 20, &pool), KVF_ERR_INVALID);
    assert_ptr_equal(pool, (void *)0x10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_is_done_once),
        cmocka_unit_test(many_rounds_back_to_back),
        cmocka_unit_test(rounds_after_sleep),
        cmocka_unit_test(the_caller_waits_for_slow_items),
        cmocka_unit_test(threads_take_part),
        cmocka_unit_test(create_and_destroy_without_work),
        cmocka_unit_test(no_threads_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
