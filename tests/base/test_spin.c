/* Polling before sleep: all of its time while events come in close order, a fifth of it otherwise. */
#include "base/spin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define MOST 100000u

/* How long it polls behind a turn with an event that began `wait` after the one before. */
static uint64_t polls_after(struct kvf_spin *spin, uint64_t *now, uint64_t wait)
{
    uint64_t ns = 0;
    *now += wait;
    assert_false(kvf_spin_tired(spin, 1, *now, *now + 10));
    *now += 10;
    while (!kvf_spin_tired(spin, 0, *now + ns, *now + ns))
        ns++;
    return ns;
}

static void it_polls_as_long_as_that_pays(void **state)
{
    struct kvf_spin spin;
    uint64_t now = 1000;
    kvf_spin_init(&spin, MOST, now);
    assert_int_equal(polls_after(&spin, &now, 5 * MOST), MOST / 5); /* polling would not have caught it */
    assert_int_equal(polls_after(&spin, &now, MOST / 2), MOST);     /* it would */
    assert_int_equal(polls_after(&spin, &now, 10), MOST);           /* it did */
    assert_int_equal(polls_after(&spin, &now, MOST + 1), MOST / 5);
    assert_int_equal(polls_after(&spin, &now, MOST / 10), MOST / 5); /* less does as well */
}

/* What a turn takes is no wait: a long one says nothing of how soon the next event comes. */
static void work_is_no_wait(void **state)
{
    struct kvf_spin spin;
    kvf_spin_init(&spin, MOST, 0);
    assert_false(kvf_spin_tired(&spin, 1, MOST / 2, MOST));
    assert_false(kvf_spin_tired(&spin, 1, MOST + 1, 9 * MOST));
    assert_false(kvf_spin_tired(&spin, 0, 9 * MOST, 10 * MOST - 1));
    assert_true(kvf_spin_tired(&spin, 0, 10 * MOST, 10 * MOST));
}

static void none_at_all(void **state)
{
    struct kvf_spin spin;
    kvf_spin_init(&spin, 0, 7);
    assert_true(kvf_spin_tired(&spin, 0, 7, 7));
    assert_true(kvf_spin_tired(&spin, 3, 8, 9));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_polls_as_long_as_that_pays),
        cmocka_unit_test(work_is_no_wait),
        cmocka_unit_test(none_at_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
