/* The order of the disk's requests, against its rules, over random loads on a clock in hand. */
#include "tiers/order.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define SEED 31337u
#define STEPS 200000u
#define UNIT 4096u

/* A disk of a given rate that serves one request after the other, and queues of one size of request each. */
struct load {
    struct kvf_order order;
    uint64_t now, x;
    uint32_t size[KVF_PRIORITY_COUNT]; /* of a request; 0: none ever comes */
    struct kvf_order_waiting first[KVF_PRIORITY_COUNT];
    struct {
        enum kvf_priority priority;
        uint32_t bytes;
    } at_disk[64];
    unsigned n_at_disk;
    uint64_t moved[KVF_PRIORITY_COUNT], longest_ns[KVF_PRIORITY_COUNT], before_demand_max;
};

static uint32_t random_below(struct load *l, uint32_t n)
{
    l->x = l->x * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(l->x >> 33) % n;
}

static void check(const struct load *l)
{
    const struct kvf_order *o = &l->order;
    assert_true(kvf_order_in_flight(o) <= o->depth);
    assert_true(o->bytes[KVF_PRIORITY_AHEAD] <= KVF_ORDER_AHEAD_BYTES);
    assert_true(o->bytes[KVF_PRIORITY_WRITE_BACK] <= KVF_ORDER_WRITE_BYTES);
    assert_true(o->in_flight[KVF_PRIORITY_SCRUB] <= 1);
    assert_true(o->bytes[KVF_PRIORITY_SCRUB] <= KVF_ORDER_TURN_BYTES);
}

/* Hands over all that may go now. */
static void give(struct load *l)
{
    enum kvf_priority p;
    uint32_t bytes;
    while (kvf_order_next(&l->order, l->first, l->now, &p, &bytes)) {
        struct kvf_order_waiting *w = &l->first[p];
        assert_true(bytes > 0 && bytes <= w->bytes && bytes % UNIT == 0);
        if (p == KVF_PRIORITY_DEMAND) {
            uint64_t before = 0;
            for (unsigned i = 0; i < l->n_at_disk; i++)
                before += l->at_disk[i].priority == KVF_PRIORITY_DEMAND ? 0 : l->at_disk[i].bytes;
            l->before_demand_max = before > l->before_demand_max ? before : l->before_demand_max;
        }
        if (l->now - w->since_ns > l->longest_ns[p])
            l->longest_ns[p] = l->now - w->since_ns;
        kvf_order_given(&l->order, p, bytes, l->now);
        l->at_disk[l->n_at_disk].priority = p;
        l->at_disk[l->n_at_disk++].bytes = bytes;
        w->bytes -= bytes;
        if (w->bytes == 0 && p != KVF_PRIORITY_DEMAND) /* the next stands behind it */
            *w = (struct kvf_order_waiting){.bytes = l->size[p], .since_ns = l->now};
        check(l);
    }
}

/* The disk ends its oldest request: 2 GiB per second and 20 us each. */
static void end_oldest(struct load *l)
{
    l->now += 20 * KVF_US + l->at_disk[0].bytes / 2;
    l->moved[l->at_disk[0].priority] += l->at_disk[0].bytes;
    kvf_order_ended(&l->order, l->at_disk[0].priority, l->at_disk[0].bytes, l->now);
    l->n_at_disk--;
    memmove(l->at_disk, l->at_disk + 1, l->n_at_disk * sizeof *l->at_disk);
}

/* Demand of 4 KiB that comes one after the other with a short pause, or none; the rest waits always. */
static void run(struct load *l, bool demand, bool hurry, unsigned depth)
{
    kvf_order_init(&l->order, depth);
    l->order.hurry = hurry;
    l->now = KVF_SEC;
    l->x = SEED;
    for (int p = 1; p < KVF_PRIORITY_COUNT; p++)
        l->first[p] = (struct kvf_order_waiting){.bytes = l->size[p], .since_ns = l->now};
    for (unsigned i = 0; i < STEPS; i++) {
        if (demand && l->order.in_flight[KVF_PRIORITY_DEMAND] == 0 && l->first[KVF_PRIORITY_DEMAND].bytes == 0)
            l->first[KVF_PRIORITY_DEMAND] = (struct kvf_order_waiting){.bytes = UNIT, .since_ns = l->now};
        give(l);
        if (l->n_at_disk)
            end_oldest(l);
        else
            l->now += 100 * KVF_US;
        if (random_below(l, 4) == 0)
            l->now += random_below(l, 50) * KVF_US;
    }
}

static void little_stands_before_demand_that_comes_in_a_row(void **state)
{
    for (unsigned hurry = 0; hurry < 2; hurry++) {
        struct load l = {.size = {0, 1 << 20, 1 << 20, 1 << 20}};
        run(&l, true, hurry, 64);
        /* But for the first, which finds what had gone while nobody read. */
        unsigned long long mib[KVF_PRIORITY_COUNT];
        for (int p = 0; p < KVF_PRIORITY_COUNT; p++)
            mib[p] = (unsigned long long)(l.moved[p] >> 20);
        printf("before demand at the disk: %llu KiB; moved, MiB: %llu %llu %llu %llu\n",
               (unsigned long long)(l.before_demand_max >> 10), mib[0], mib[1], mib[2], mib[3]);
        assert_true(l.before_demand_max <= 3 * KVF_ORDER_TURN_BYTES + KVF_ORDER_SCRUB_BYTES);
    }
}

static void nothing_starves(void **state)
{
    static const uint32_t sizes[] = {UNIT, 64 << 10, 1 << 20};
    for (unsigned i = 0; i < 3; i++) {
        struct load l = {.size = {0, sizes[i], sizes[i], sizes[i]}};
        run(&l, true, false, i == 0 ? 2 : 64);
        for (int p = 0; p < KVF_PRIORITY_COUNT; p++) {
            assert_true(l.moved[p] >= 1 << 20);
            assert_true(l.longest_ns[p] <= 100 * KVF_MS);
        }
    }
}

static void a_quiet_disk_is_used_whole(void **state)
{
    struct load l = {.size = {0, 0, 1 << 20, 0}};
    run(&l, false, false, 64);
    assert_true(l.moved[KVF_PRIORITY_WRITE_BACK] > (uint64_t)STEPS / 2 << 20); /* whole pieces, one a step */
    struct load s = {.size = {0, 0, 0, 1 << 20}};
    run(&s, false, false, 64);
    assert_true(s.moved[KVF_PRIORITY_SCRUB] > (uint64_t)STEPS / 4 * KVF_ORDER_TURN_BYTES);
}

/* The first demand after a pause finds at most what the rules let go meanwhile. */
static void the_first_after_a_pause_finds_what_was_let_go(void **state)
{
    struct load l = {.size = {0, 1 << 20, 1 << 20, 1 << 20}};
    kvf_order_init(&l.order, 64);
    l.now = KVF_SEC;
    for (int p = 1; p < KVF_PRIORITY_COUNT; p++)
        l.first[p] = (struct kvf_order_waiting){.bytes = l.size[p], .since_ns = l.now};
    give(&l);
    l.first[KVF_PRIORITY_DEMAND] = (struct kvf_order_waiting){.bytes = UNIT, .since_ns = l.now};
    give(&l);
    assert_int_equal(l.order.in_flight[KVF_PRIORITY_DEMAND], 1);
    assert_true(l.before_demand_max <= KVF_ORDER_AHEAD_BYTES + KVF_ORDER_TURN_BYTES + KVF_ORDER_SCRUB_BYTES);
    l = (struct load){.size = {0, 0, 1 << 20, 0}, .now = KVF_SEC};
    kvf_order_init(&l.order, 64);
    l.first[KVF_PRIORITY_WRITE_BACK] = (struct kvf_order_waiting){.bytes = 1 << 20, .since_ns = l.now};
    give(&l);
    assert_int_equal(l.order.bytes[KVF_PRIORITY_WRITE_BACK], KVF_ORDER_WRITE_BYTES);
}

int main(void)
{
    printf("seed %u\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(little_stands_before_demand_that_comes_in_a_row),
        cmocka_unit_test(nothing_starves),
        cmocka_unit_test(a_quiet_disk_is_used_whole),
        cmocka_unit_test(the_first_after_a_pause_finds_what_was_let_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
