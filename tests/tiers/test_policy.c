/* Each block policy beside a twin that keeps its queues as plain arrays: the same victim at every step of a random use. */
#include "tiers/policy.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 20261125u
enum { IDS = 40, ROOM = 24, KEYS = 90, STEPS = 40000 };

/* A queue of numbers, oldest first. */
struct row {
    uint64_t at[256];
    unsigned n;
};

struct twin {
    enum kvf_policy_kind kind;
    struct row queue[64], ghosts[2];
    unsigned uses[IDS];
    bool marked[IDS];
    double balance;
};

static unsigned find(const struct row *r, uint64_t x)
{
    for (unsigned i = 0; i < r->n; i++)
        if (r->at[i] == x)
            return i;
    return UINT32_MAX;
}

static bool cut(struct row *r, uint64_t x)
{
    unsigned i = find(r, x);
    if (i == UINT32_MAX)
        return false;
    memmove(r->at + i, r->at + i + 1, (r->n - i - 1) * sizeof *r->at);
    r->n--;
    return true;
}

static void put(struct row *r, uint64_t x)
{
    r->at[r->n++] = x;
}

static unsigned total(const struct twin *t)
{
    unsigned n = 0;
    for (unsigned q = 0; q < 64; q++)
        n += t->queue[q].n;
    return n;
}

static unsigned queue_of(const struct twin *t, uint32_t id)
{
    unsigned q = 0;
    while (find(&t->queue[q], id) == UINT32_MAX)
        q++;
    return q;
}

static void twin_insert(struct twin *t, uint32_t id, uint64_t key)
{
    unsigned to = 0;
    double b1 = t->ghosts[0].n, b2 = t->ghosts[1].n, most = total(t) + 1;
    if (find(&t->ghosts[0], key) != UINT32_MAX) {
        t->balance = t->balance + (b2 > b1 ? b2 / b1 : 1);
        to = 1;
    } else if (find(&t->ghosts[1], key) != UINT32_MAX) {
        t->balance = t->balance - (b1 > b2 ? b1 / b2 : 1);
        to = 1;
    }
    if (to)
        t->balance = t->balance < 0 ? 0 : t->balance > most ? most : t->balance;
    cut(&t->ghosts[0], key);
    cut(&t->ghosts[1], key);
    t->uses[id] = 0;
    t->marked[id] = false;
    put(&t->queue[to], id);
}

static void twin_touch(struct twin *t, uint32_t id)
{
    unsigned q = queue_of(t, id), to = t->kind == KVF_POLICY_ARC ? 1 : t->kind == KVF_POLICY_LFU ? (q < 63 ? q + 1 : 63) : 0;
    t->uses[id]++;
    if (t->kind == KVF_POLICY_S3FIFO) {
        t->uses[id] = t->uses[id] < 3 ? t->uses[id] : 3;
        return;
    }
    cut(&t->queue[q], id);
    put(&t->queue[to], id);
}

static void twin_leave(struct twin *t, uint32_t id, bool evicted, uint64_t key)
{
    unsigned q = queue_of(t, id), size = total(t);
    cut(&t->queue[q], id);
    if (!evicted || t->kind == KVF_POLICY_LRU || t->kind == KVF_POLICY_LFU || (t->kind == KVF_POLICY_S3FIFO && q == 1))
        return;
    cut(&t->ghosts[0], key);
    cut(&t->ghosts[1], key);
    struct row *longer = &t->ghosts[t->ghosts[1].n > t->ghosts[0].n];
    if (t->ghosts[0].n + t->ghosts[1].n == ROOM)
        cut(longer, longer->at[0]);
    put(&t->ghosts[q], key);
    if (t->kind == KVF_POLICY_S3FIFO) {
        while (t->ghosts[0].n > size)
            cut(&t->ghosts[0], t->ghosts[0].at[0]);
        return;
    }
    while (t->ghosts[0].n && t->queue[0].n + t->ghosts[0].n > size)
        cut(&t->ghosts[0], t->ghosts[0].at[0]);
    while (t->ghosts[1].n && t->ghosts[0].n + t->ghosts[1].n > size)
        cut(&t->ghosts[1], t->ghosts[1].at[0]);
}

/* Ids whose bit is set may leave. */
static bool may(void *arg, uint32_t id)
{
    return *(uint64_t *)arg >> id & 1;
}

static uint32_t oldest(struct twin *t, unsigned queue, uint64_t which)
{
    struct row *r = &t->queue[queue];
    for (unsigned i = 0; i < r->n;) {
        uint32_t id = (uint32_t)r->at[i];
        bool last = i + 1 == r->n;
        if (t->marked[id]) {
            t->marked[id] = false;
            twin_touch(t, id);
            if (t->kind != KVF_POLICY_S3FIFO) { /* it moved: the next one stands here now */
                i = last ? 0 : i;
                continue;
            }
        }
        if (which >> id & 1)
            return id;
        i++;
    }
    return KVF_POLICY_NONE;
}

static uint32_t either(struct twin *t, unsigned first, uint64_t which)
{
    uint32_t id = oldest(t, first, which);
    return id != KVF_POLICY_NONE ? id : oldest(t, !first, which);
}

static uint32_t twin_victim(struct twin *t, uint64_t which)
{
    uint32_t id = KVF_POLICY_NONE;
    if (t->kind == KVF_POLICY_ARC)
        return either(t, t->queue[0].n <= t->balance, which);
    if (t->kind == KVF_POLICY_S3FIFO) {
        for (;;) {
            id = either(t, !(t->queue[0].n && t->queue[0].n * 2 >= total(t)), which);
            if (id == KVF_POLICY_NONE || t->uses[id] == 0)
                return id;
            unsigned q = queue_of(t, id);
            t->uses[id] = q == 0 ? 0 : t->uses[id] - 1;
            cut(&t->queue[q], id);
            put(&t->queue[1], id);
        }
    }
    for (unsigned q = 0; q < 64 && id == KVF_POLICY_NONE; q++)
        id = oldest(t, q, which);
    return id;
}

/* Where a key lies, or KVF_POLICY_NONE; and a free place. */
static uint32_t place_of(const uint64_t *keys, uint64_t key)
{
    for (uint32_t i = 0; i < IDS; i++)
        if (keys[i] == key)
            return i;
    return KVF_POLICY_NONE;
}

static void random_use(enum kvf_policy_kind kind)
{
    struct twin *t = calloc(1, sizeof *t);
    struct kvf_policy *p;
    uint64_t keys[IDS] = {0}, seen = 0; /* 0: free */
    t->kind = kind;
    assert_int_equal(kvf_policy_create(kind, IDS, ROOM, &p), KVF_OK);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint64_t random = kvf_mix(SEED + kind, step), key = 1 + (random % 3 ? random >> 8 & 31 : (random >> 8) % KEYS);
        uint32_t id = place_of(keys, key), room = ROOM - (step / 5000) % 8; /* the room changes now and then */
        if (id != KVF_POLICY_NONE && (random >> 40 & 15) < 6) {
            kvf_policy_mark(p, id);
            t->marked[id] = true;
        } else if (id != KVF_POLICY_NONE && (random >> 40 & 15) < 15) {
            kvf_policy_touch(p, id);
            twin_touch(t, id);
        } else if (id != KVF_POLICY_NONE) {
            kvf_policy_removed(p, id);
            twin_leave(t, id, false, key);
            keys[id] = 0;
        } else {
            uint64_t which = random >> 44 & 3 ? UINT64_MAX : kvf_mix(random, 1);
            while (kvf_policy_count(p) >= room) {
                uint32_t victim = kvf_policy_victim(p, may, &which);
                assert_int_equal(victim, twin_victim(t, which));
                if (victim == KVF_POLICY_NONE) {
                    which = UINT64_MAX;
                    continue;
                }
                kvf_policy_evicted(p, victim, keys[victim]);
                twin_leave(t, victim, true, keys[victim]);
                keys[victim] = 0;
                seen++;
            }
            id = place_of(keys, 0);
            kvf_policy_insert(p, id, key);
            twin_insert(t, id, key);
            keys[id] = key;
        }
        assert_int_equal(kvf_policy_count(p), total(t));
        if (step % 97 == 0)
            kvf_policy_check(p);
    }
    assert_true(seen > 1000);
    kvf_policy_destroy(p);
    free(t);
}

static void lru_is_its_twin(void **state) { random_use(KVF_POLICY_LRU); }
static void lfu_is_its_twin(void **state) { random_use(KVF_POLICY_LFU); }
static void s3fifo_is_its_twin(void **state) { random_use(KVF_POLICY_S3FIFO); }
static void arc_is_its_twin(void **state) { random_use(KVF_POLICY_ARC); }

/* A chain that was touched from its end leaves from its end, whatever the policy. */
static void the_end_of_a_chain_leaves_first(void **state)
{
    for (int kind = 0; kind < KVF_POLICY_KINDS; kind++) {
        struct kvf_policy *p;
        assert_int_equal(kvf_policy_create((enum kvf_policy_kind)kind, 8, 8, &p), KVF_OK);
        assert_int_equal(kvf_policy_victim(p, NULL, NULL), KVF_POLICY_NONE);
        for (uint32_t i = 8; i-- > 0;)
            kvf_policy_insert(p, i, 100 + i);
        for (uint32_t i = 8; i-- > 0;)
            kvf_policy_touch(p, i);
        for (uint32_t i = 8; i-- > 0;) {
            assert_int_equal(kvf_policy_victim(p, NULL, NULL), i);
            kvf_policy_evicted(p, i, 100 + i);
        }
        kvf_policy_destroy(p);
    }
}

/* What comes back after it left is not a newcomer: a scan does not push it out again. */
static void a_ghost_that_returns_outlives_a_scan(void **state)
{
    for (int kind = KVF_POLICY_S3FIFO; kind < KVF_POLICY_KINDS; kind++) {
        struct kvf_policy *p;
        assert_int_equal(kvf_policy_create((enum kvf_policy_kind)kind, 4, 8, &p), KVF_OK);
        for (uint32_t i = 0; i < 4; i++)
            kvf_policy_insert(p, i, 100 + i);
        assert_int_equal(kvf_policy_victim(p, NULL, NULL), 0);
        kvf_policy_evicted(p, 0, 100);
        kvf_policy_insert(p, 0, 100);
        for (uint32_t i = 0; i < 50; i++) {
            uint32_t victim = kvf_policy_victim(p, NULL, NULL);
            assert_int_not_equal(victim, 0);
            kvf_policy_evicted(p, victim, 200 + i);
            kvf_policy_insert(p, victim, 300 + i);
        }
        kvf_policy_check(p);
        kvf_policy_destroy(p);
    }
}

/* A block that is not here is wanted back when it left, or was asked for, not long ago. */
static void what_is_missed_twice_is_wanted(void **state)
{
    for (int kind = 0; kind < KVF_POLICY_KINDS; kind++) {
        struct kvf_policy *p;
        assert_int_equal(kvf_policy_create((enum kvf_policy_kind)kind, 4, 8, &p), KVF_OK);
        assert_false(kvf_policy_missed(p, 7)); /* an empty tier remembers nothing */
        assert_false(kvf_policy_missed(p, 7));
        for (uint32_t i = 0; i < 4; i++)
            kvf_policy_insert(p, i, 100 + i);
        assert_false(kvf_policy_missed(p, 7));
        assert_true(kvf_policy_missed(p, 7));
        kvf_policy_evicted(p, 0, 100);
        assert_true(kvf_policy_missed(p, 100));
        kvf_policy_insert(p, 0, 100);
        for (uint64_t i = 0; i < 20; i++)
            assert_false(kvf_policy_missed(p, 200 + i));
        assert_false(kvf_policy_missed(p, 7)); /* too long ago */
        kvf_policy_check(p);
        kvf_policy_destroy(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lru_is_its_twin),
        cmocka_unit_test(lfu_is_its_twin),
        cmocka_unit_test(s3fifo_is_its_twin),
        cmocka_unit_test(arc_is_its_twin),
        cmocka_unit_test(the_end_of_a_chain_leaves_first),
        cmocka_unit_test(what_is_missed_twice_is_wanted),
        cmocka_unit_test(a_ghost_that_returns_outlives_a_scan),
    };
    print_message("seed %u\n", SEED);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
