/* The index against an array that is searched from end to end by a number in the key. */
#include "tiers/index.h"
#include "base/hash.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 31337u

_Static_assert(sizeof(struct kvf_entry) == 40, "bytes of memory per block, without the table");

/* Keys of three kinds: counting up in either word, and mixed. Few bits differ in the first two. */
static struct kvf_key key_of(uint64_t n)
{
    switch (n % 3) {
    case 0:
        return (struct kvf_key){.hi = n, .lo = 0};
    case 1:
        return (struct kvf_key){.hi = 0, .lo = n << 40};
    default:
        return (struct kvf_key){.hi = kvf_mix(n, 1), .lo = kvf_mix(n, 2)};
    }
}

struct twin {
    struct kvf_index *index;
    kvf_handle *handles; /* by key number; NONE when not there */
    uint64_t keys, count;
};

static void twin_start(struct twin *t, uint64_t entries_max, uint64_t keys)
{
    *t = (struct twin){.keys = keys};
    assert_int_equal(kvf_index_create(entries_max, &t->index), KVF_OK);
    t->handles = malloc(keys * sizeof *t->handles);
    memset(t->handles, 0xff, keys * sizeof *t->handles);
}

static void twin_end(struct twin *t)
{
    kvf_index_destroy(t->index);
    free(t->handles);
}

static void add(struct twin *t, uint64_t n)
{
    kvf_handle handle = KVF_HANDLE_NONE;
    enum kvf_status st = kvf_index_add(t->index, key_of(n), &handle);
    if (t->handles[n] != KVF_HANDLE_NONE) {
        assert_int_equal(st, KVF_ERR_EXISTS);
        return;
    }
    assert_int_equal(st, KVF_OK);
    struct kvf_entry *e = kvf_index_entry(t->index, handle);
    assert_int_equal(e->word | e->location4k | e->ssd4k | e->bytes | e->sums | e->peer | e->tier | e->state | e->flags, 0);
    e->location4k = (uint32_t)n;
    t->handles[n] = handle;
    t->count++;
}

static void drop(struct twin *t, uint64_t n)
{
    kvf_index_remove(t->index, t->handles[n]);
    t->handles[n] = KVF_HANDLE_NONE;
    t->count--;
}

/* Handles found are those given at add, and what they name is untouched. */
static void compare(const struct twin *t, uint64_t n)
{
    kvf_handle handle = kvf_index_find(t->index, key_of(n));
    assert_int_equal(handle, t->handles[n]);
    if (handle != KVF_HANDLE_NONE)
        assert_int_equal(kvf_index_entry(t->index, handle)->location4k, n);
}

static void random_use_agrees_with_the_twin(void **state)
{
    struct twin t;
    uint64_t random = SEED;
    print_message("seed %u; %zu bytes per entry\n", SEED, sizeof(struct kvf_entry));
    twin_start(&t, 200000, 250000);
    for (unsigned n = 0; n < 1200000; n++) {
        random = kvf_mix(random, n);
        uint64_t key = (random >> 8) % t.keys;
        bool growing = n / 300000 % 2 == 0;
        if (random % 100 < (growing ? 75u : 25u)) {
            if (t.count < 200000)
                add(&t, key);
        } else if (t.handles[key] != KVF_HANDLE_NONE) {
            drop(&t, key);
        }
        compare(&t, (random >> 36) % t.keys);
        assert_int_equal(kvf_index_count(t.index), t.count);
        if (n % 400000 == 0)
            kvf_index_check(t.index);
    }
    for (uint64_t n = 0; n < t.keys; n++)
        compare(&t, n);
    kvf_index_check(t.index);
    twin_end(&t);
}

/* A table at its highest load, where clusters are long and wrap around the end, removed and refilled many times. */
static void small_full_tables_survive_churn(void **state)
{
    for (uint64_t max = 1; max <= 26; max++) {
        struct twin t;
        twin_start(&t, max, 100);
        uint64_t random = SEED + max;
        for (unsigned n = 0; n < 3000; n++) {
            random = kvf_mix(random, n);
            uint64_t key = (random >> 8) % t.keys;
            kvf_handle unused;
            if (t.handles[key] != KVF_HANDLE_NONE)
                drop(&t, key);
            else if (t.count < max)
                add(&t, key);
            else
                assert_int_equal(kvf_index_add(t.index, key_of(key), &unused), KVF_ERR_BUSY);
            kvf_index_check(t.index);
        }
        for (uint64_t n = 0; n < t.keys; n++)
            compare(&t, n);
        twin_end(&t);
    }
}

static void a_full_index_is_busy_and_a_known_key_exists(void **state)
{
    struct twin t;
    kvf_handle handle;
    twin_start(&t, 1000, 1001);
    for (uint64_t n = 0; n < 1000; n++)
        add(&t, n);
    assert_int_equal(kvf_index_add(t.index, key_of(1000), &handle), KVF_ERR_BUSY);
    assert_int_equal(kvf_index_add(t.index, key_of(5), &handle), KVF_ERR_EXISTS);
    drop(&t, 5);
    add(&t, 1000);
    twin_end(&t);
}

static void walk_meets_each_entry_once_also_while_removing(void **state)
{
    struct twin t;
    twin_start(&t, 5000, 5000);
    for (uint64_t n = 0; n < 5000; n++)
        add(&t, n);
    for (uint64_t n = 0; n < 5000; n += 7)
        drop(&t, n);
    uint8_t *met = calloc(5000, 1);
    uint64_t cursor = 0, walked = 0, before = t.count;
    for (kvf_handle h; (h = kvf_index_walk(t.index, &cursor)) != KVF_HANDLE_NONE; walked++) {
        uint64_t n = kvf_index_entry(t.index, h)->location4k;
        assert_int_equal(t.handles[n], h);
        assert_int_equal(met[n]++, 0);
        if (n % 2)
            drop(&t, n);
    }
    assert_int_equal(walked, before);
    assert_int_equal(kvf_index_walk(t.index, &cursor), KVF_HANDLE_NONE);
    kvf_index_check(t.index);
    free(met);
    twin_end(&t);
}

static void a_million_blocks_cost_only_address_space(void **state)
{
    struct kvf_index *x;
    kvf_handle handle;
    assert_int_equal(kvf_index_create(1000000, &x), KVF_OK);
    assert_int_equal(kvf_index_add(x, key_of(1), &handle), KVF_OK);
    kvf_index_destroy(x);
    assert_int_equal(kvf_index_create(0, &x), KVF_ERR_INVALID);
    assert_int_equal(kvf_index_create(UINT32_MAX, &x), KVF_ERR_INVALID);
    kvf_index_destroy(NULL);
}

/* ---------------------------------------------------------------- pins */

static void pins_follow_open_and_close(void **state)
{
    struct twin t;
    kvf_handle h;
    twin_start(&t, 10, 10);
    add(&t, 3);
    struct kvf_entry *e = kvf_index_entry(t.index, t.handles[3]);
    kvf_entry_set_shape(e, 5, 64);
    assert_int_equal(kvf_index_pin(t.index, key_of(4), &h), KVF_SEEN_NOT);
    assert_int_equal(kvf_index_pin(t.index, key_of(3), &h), KVF_SEEN_CLOSED);
    assert_int_equal(kvf_index_peek(t.index, key_of(3)), KVF_SEEN_CLOSED);
    kvf_entry_open(e);
    assert_int_equal(kvf_index_peek(t.index, key_of(3)), KVF_SEEN_OPEN);
    assert_int_equal(kvf_index_pin(t.index, key_of(3), &h), KVF_SEEN_OPEN);
    assert_int_equal(h, t.handles[3]);
    assert_ptr_equal(kvf_index_pinned(t.index, h), e);
    assert_false(kvf_entry_close(e, false));
    assert_int_equal(kvf_index_pin(t.index, key_of(3), &h), KVF_SEEN_CLOSED);
    assert_true(kvf_entry_pin(e)); /* under the lock it still may be */
    assert_int_equal(kvf_entry_unpin(e), 1);
    kvf_index_unpin(t.index, h);
    kvf_index_unpin(t.index, h); /* one too many is forgiven */
    assert_int_equal(kvf_entry_pins(e), 0);
    assert_true(kvf_entry_close(e, false));
    assert_int_equal(kvf_entry_model(e), 5);
    assert_int_equal(kvf_entry_chunks(e), 64);
    drop(&t, 3);
    twin_end(&t);
}

static void pins_end_at_their_limit_and_not_beyond(void **state)
{
    struct twin t;
    kvf_handle h;
    twin_start(&t, 10, 10);
    add(&t, 3);
    struct kvf_entry *e = kvf_index_entry(t.index, t.handles[3]);
    kvf_entry_set_shape(e, 0, 1);
    kvf_entry_open(e);
    for (unsigned i = 0; i < KVF_ENTRY_PINS_MAX; i++)
        assert_int_equal(kvf_index_pin(t.index, key_of(3), &h), KVF_SEEN_OPEN);
    assert_int_equal(kvf_index_pin(t.index, key_of(3), &h), KVF_SEEN_CLOSED);
    assert_false(kvf_entry_pin(e));
    assert_int_equal(kvf_entry_model(e), 0);
    assert_int_equal(kvf_entry_chunks(e), 1);
    for (unsigned i = 0; i < KVF_ENTRY_PINS_MAX; i++)
        kvf_index_unpin(t.index, t.handles[3]);
    assert_true(kvf_entry_close(e, false));
    drop(&t, 3);
    twin_end(&t);
}

static void count_last(void *arg, kvf_handle handle)
{
    *(unsigned *)arg += 1 + handle;
}

static void the_last_pin_of_an_awaited_entry_tells(void **state)
{
    struct twin t;
    kvf_handle h;
    unsigned told = 0;
    twin_start(&t, 10, 10);
    kvf_index_on_last(t.index, count_last, &told);
    add(&t, 3);
    struct kvf_entry *e = kvf_index_entry(t.index, t.handles[3]);
    kvf_entry_open(e);
    kvf_index_pin(t.index, key_of(3), &h);
    kvf_index_pin(t.index, key_of(3), &h);
    assert_false(kvf_entry_close(e, true));
    kvf_index_unpin(t.index, h);
    assert_int_equal(told, 0);
    kvf_index_unpin(t.index, h);
    assert_int_equal(told, 1 + h);
    drop(&t, 3);
    add(&t, 4); /* in the same entry: nobody waits for this one */
    e = kvf_index_entry(t.index, t.handles[4]);
    kvf_entry_open(e);
    kvf_index_pin(t.index, key_of(4), &h);
    assert_false(kvf_entry_close(e, false));
    kvf_index_unpin(t.index, h);
    assert_int_equal(told, 1 + h);
    drop(&t, 4);
    twin_end(&t);
}

static void many_are_pinned_as_one_by_one(void **state)
{
    enum { N = 1000 };
    struct twin t;
    struct kvf_key keys[N];
    kvf_handle handles[N];
    twin_start(&t, N, N);
    for (uint64_t n = 0; n < N; n++) {
        keys[n] = key_of(n);
        if (n % 3 == 0)
            continue;
        add(&t, n);
        if (n % 3 == 1)
            kvf_entry_open(kvf_index_entry(t.index, t.handles[n]));
    }
    for (size_t count = 0; count <= N; count += count < 40 ? 1 : 480) { /* whole flights and parts of one */
        size_t pinned = 0;
        assert_int_equal(kvf_index_pin_many(t.index, keys, count, handles), (count + 1) / 3);
        for (size_t n = 0; n < count; n++) {
            assert_int_equal(handles[n], n % 3 == 1 ? t.handles[n] : KVF_HANDLE_NONE);
            pinned += handles[n] != KVF_HANDLE_NONE;
            if (handles[n] != KVF_HANDLE_NONE)
                kvf_index_unpin(t.index, handles[n]);
        }
        assert_int_equal(pinned, (count + 1) / 3);
    }
    twin_end(&t);
}

/* Keys that come and go as fast as one thread can make them, in an index so small that every entry is another key's all the time;
 * beside some that stay. Readers without the lock find their own key or none, and those that stay always. */
#define CHURN 12u
#define STAY 12u

struct churn {
    struct kvf_index *index;
    _Atomic bool over;
    _Atomic uint64_t pins, wrong, told;
};

static void *churn_reader(void *arg)
{
    struct churn *c = arg;
    uint64_t random = SEED;
    kvf_handle handles[4];
    while (!atomic_load(&c->over)) {
        random = kvf_mix(random, 1);
        uint64_t n = random % CHURN, stay = CHURN + (random >> 8) % STAY;
        struct kvf_key keys[4] = {key_of(n), key_of(stay), key_of((n + 1) % CHURN), key_of((n + 2) % CHURN)};
        uint64_t of[4] = {n, stay, (n + 1) % CHURN, (n + 2) % CHURN};
        size_t held = 0;
        if (random >> 32 & 1) {
            kvf_index_pin_many(c->index, keys, 4, handles);
        } else {
            for (unsigned i = 0; i < 4; i++)
                if (kvf_index_pin(c->index, keys[i], &handles[i]) != KVF_SEEN_OPEN)
                    handles[i] = KVF_HANDLE_NONE;
        }
        for (unsigned i = 0; i < 4; i++) {
            if (handles[i] == KVF_HANDLE_NONE)
                continue;
            const struct kvf_entry *e = kvf_index_pinned(c->index, handles[i]);
            if (e->location4k != of[i] || kvf_index_find_pinned(c->index, keys[i]) != handles[i])
                atomic_fetch_add(&c->wrong, 1);
            kvf_index_unpin(c->index, handles[i]);
            held++;
        }
        if (handles[1] == KVF_HANDLE_NONE || kvf_index_peek(c->index, keys[1]) != KVF_SEEN_OPEN)
            atomic_fetch_add(&c->wrong, 1);
        atomic_fetch_add(&c->pins, held);
    }
    return NULL;
}

static void churn_told(void *arg, kvf_handle handle)
{
    atomic_fetch_add(&((struct churn *)arg)->told, 1);
}

static kvf_handle churn_add(struct churn *c, uint64_t n)
{
    kvf_handle h;
    assert_int_equal(kvf_index_add(c->index, key_of(n), &h), KVF_OK);
    struct kvf_entry *e = kvf_index_entry(c->index, h);
    e->location4k = (uint32_t)n;
    kvf_entry_open(e);
    return h;
}

static void readers_beside_a_writer_find_their_own_key(void **state)
{
    struct churn c = {.pins = 0};
    pthread_t readers[2];
    kvf_handle handles[CHURN];
    uint64_t random = SEED, awaited = 0;
    /* Two buckets, more than one of them full now and then: keys go past their home. */
    assert_int_equal(kvf_index_create(CHURN / 3 + STAY, &c.index), KVF_OK);
    kvf_index_on_last(c.index, churn_told, &c);
    for (uint64_t n = 0; n < STAY; n++)
        churn_add(&c, CHURN + n);
    memset(handles, 0xff, sizeof handles);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, churn_reader, &c), 0);
    for (unsigned n = 0; n < 400000; n++) {
        random = kvf_mix(random, n);
        uint64_t key = random % CHURN;
        if (handles[key] == KVF_HANDLE_NONE) {
            if (kvf_index_count(c.index) < CHURN / 3 + STAY)
                handles[key] = churn_add(&c, key);
            continue;
        }
        struct kvf_entry *e = kvf_index_entry(c.index, handles[key]);
        if (!kvf_entry_close(e, true)) {
            awaited++;
            while (kvf_entry_pins(e) > 0)
                sched_yield();
        }
        kvf_index_remove(c.index, handles[key]);
        handles[key] = KVF_HANDLE_NONE;
    }
    atomic_store(&c.over, true);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    kvf_index_check(c.index);
    print_message("%llu pins, %llu awaited\n", (unsigned long long)c.pins, (unsigned long long)awaited);
    assert_int_equal(c.wrong, 0);
    assert_int_equal(c.told, awaited); /* each once */
    assert_true(c.pins > 1000);
    kvf_index_destroy(c.index);
}

/* One entry that is two keys' in turn, as fast as it can be: a reader that finds its key there and then pins the entry has pinned
 * the other's now and then, and must see that. */
static void *flip_reader(void *arg)
{
    struct churn *c = arg;
    kvf_handle h;
    for (uint64_t n = 0; !atomic_load_explicit(&c->over, memory_order_relaxed); n ^= 1) {
        if (kvf_index_pin(c->index, key_of(n), &h) != KVF_SEEN_OPEN)
            continue;
        if (kvf_index_pinned(c->index, h)->location4k != n)
            atomic_fetch_add(&c->wrong, 1);
        kvf_index_unpin(c->index, h);
        atomic_fetch_add_explicit(&c->pins, 1, memory_order_relaxed);
    }
    return NULL;
}

static void an_entry_that_became_anothers_is_not_taken_for_ones_own(void **state)
{
    struct churn c = {.pins = 0};
    pthread_t readers[2];
    assert_int_equal(kvf_index_create(1, &c.index), KVF_OK);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, flip_reader, &c), 0);
    for (uint64_t n = 0; n < 400000; n++) {
        kvf_handle h = churn_add(&c, n & 1);
        struct kvf_entry *e = kvf_index_entry(c.index, h);
        while (!kvf_entry_close(e, false))
            sched_yield();
        kvf_index_remove(c.index, h);
    }
    atomic_store(&c.over, true);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    print_message("%llu pins\n", (unsigned long long)c.pins);
    assert_int_equal(c.wrong, 0);
    kvf_index_destroy(c.index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_use_agrees_with_the_twin),
        cmocka_unit_test(small_full_tables_survive_churn),
        cmocka_unit_test(a_full_index_is_busy_and_a_known_key_exists),
        cmocka_unit_test(walk_meets_each_entry_once_also_while_removing),
        cmocka_unit_test(a_million_blocks_cost_only_address_space),
        cmocka_unit_test(pins_follow_open_and_close),
        cmocka_unit_test(pins_end_at_their_limit_and_not_beyond),
        cmocka_unit_test(the_last_pin_of_an_awaited_entry_tells),
        cmocka_unit_test(many_are_pinned_as_one_by_one),
        cmocka_unit_test(readers_beside_a_writer_find_their_own_key),
        cmocka_unit_test(an_entry_that_became_anothers_is_not_taken_for_ones_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
