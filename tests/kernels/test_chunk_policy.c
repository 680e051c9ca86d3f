/* The rules by which chunks leave a full cache: who goes first, and that they are functions of their arguments alone. */
#include "kernels/chunk_policy.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#define AT(step_) ((struct kvf_chunk_now){.step = (step_), .threshold = 0.01f})

/* A chunk entered at step 10 and chosen again at `last` (0: not again), asked at step 20 with a score of 0.001. */
static float value_of(enum kvf_chunk_policy policy, uint32_t last, float score)
{
    struct kvf_chunk_rule rule = kvf_chunk_rule_of(policy);
    struct kvf_chunk_state s;
    kvf_chunk_enter(rule, &s, AT(10), 0.02f);
    for (uint32_t step = 11; step < 20; step++) {
        if (step == last)
            kvf_chunk_touch(rule, &s, AT(step), 0.02f);
        else
            kvf_chunk_keep(rule, &s, AT(step), 0.001f);
    }
    return kvf_chunk_keep(rule, &s, AT(20), score);
}

static void the_longest_unused_leaves_first(void **state)
{
    assert_true(value_of(KVF_CHUNK_LRU, 15, 0) > value_of(KVF_CHUNK_LRU, 14, 0.009f));
    assert_true(value_of(KVF_CHUNK_WINDOW, 19, 0) > value_of(KVF_CHUNK_WINDOW, 18, 0.009f));
}

static void a_window_lets_go_of_what_is_older(void **state)
{
    struct kvf_chunk_rule rule = kvf_chunk_rule_of(KVF_CHUNK_WINDOW);
    struct kvf_chunk_state s;
    rule.window = 3;
    kvf_chunk_enter(rule, &s, AT(5), 0.1f);
    assert_true(kvf_chunk_keep(rule, &s, AT(6), 0) > 0);
    assert_true(kvf_chunk_keep(rule, &s, AT(7), 0) > 0);
    assert_true(kvf_chunk_keep(rule, &s, AT(8), 0.9f) < 0);
}

static void the_seldom_chosen_leaves_first(void **state)
{
    assert_true(value_of(KVF_CHUNK_LFU, 12, 0) > value_of(KVF_CHUNK_LFU, 0, 0.009f));
    assert_true(value_of(KVF_CHUNK_LFU, 12, 0) == value_of(KVF_CHUNK_LFU, 17, 0));
}

static void the_score_of_this_step_counts(void **state)
{
    assert_true(value_of(KVF_CHUNK_SCORE, 0, 0.009f) > value_of(KVF_CHUNK_SCORE, 19, 0.008f));
    assert_true(value_of(KVF_CHUNK_BLEND, 0, 0.009f) > value_of(KVF_CHUNK_BLEND, 0, 0.001f));
}

static void ours_prefers_the_lately_chosen_among_equal_scores(void **state)
{
    assert_true(value_of(KVF_CHUNK_BLEND, 19, 0.002f) > value_of(KVF_CHUNK_BLEND, 12, 0.002f));
}

static void the_step_may_wrap(void **state)
{
    for (int p = 0; p < KVF_CHUNK_POLICIES; p++) {
        struct kvf_chunk_rule rule = kvf_chunk_rule_of((enum kvf_chunk_policy)p);
        struct kvf_chunk_state near, far;
        kvf_chunk_enter(rule, &near, AT(2), 0.02f);
        kvf_chunk_enter(rule, &far, AT(UINT32_MAX), 0.02f);
        float young = kvf_chunk_keep(rule, &near, AT(4), 0.001f), old = kvf_chunk_keep(rule, &far, AT(6), 0.001f);
        assert_true(young >= old);
        struct kvf_chunk_state plain;
        kvf_chunk_enter(rule, &plain, AT(100), 0.02f);
        assert_true(kvf_chunk_keep(rule, &plain, AT(107), 0.001f) == old);
    }
}

static void no_number_is_no_trap(void **state)
{
    const float odd[] = {NAN, INFINITY, -INFINITY, -1.0f, 0.0f};
    for (int p = 0; p < KVF_CHUNK_POLICIES; p++) {
        struct kvf_chunk_rule rule = kvf_chunk_rule_of((enum kvf_chunk_policy)p);
        for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
            struct kvf_chunk_state s;
            struct kvf_chunk_now now = {.step = 1, .threshold = odd[i]};
            kvf_chunk_enter(rule, &s, now, odd[i]);
            now.step = 2;
            kvf_chunk_touch(rule, &s, now, odd[(i + 1) % 5]);
            now.step = 3;
            assert_false(isnan(kvf_chunk_keep(rule, &s, now, odd[i])));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_longest_unused_leaves_first),
        cmocka_unit_test(a_window_lets_go_of_what_is_older),
        cmocka_unit_test(the_seldom_chosen_leaves_first),
        cmocka_unit_test(the_score_of_this_step_counts),
        cmocka_unit_test(ours_prefers_the_lately_chosen_among_equal_scores),
        cmocka_unit_test(the_step_may_wrap),
        cmocka_unit_test(no_number_is_no_trap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
