/* How old the view is: it is proven, not guessed, and a watch that tells nothing any more is made anew. */
#include "tests/coordinator/world.h"

#define FRESH (4 * KVF_SEC) /* as old may a view become whose watch is well */

static uint64_t age(const struct world *w, unsigned i)
{
    return w->sim.now_ns - kvf_coord_as_of(w->peer[i].coord);
}

static uint64_t revision_of(struct world *w, const char *key)
{
    const struct kvf_store_kv *kv = kvf_sim_etcd_get(w->etcd, key);
    return kv ? kv->mod_revision : 0;
}

static void a_quiet_view_stays_fresh_and_writes_nothing(void **state)
{
    struct world *w = *state;
    assert_int_equal(kvf_coord_as_of(w->peer[0].coord), 0);
    join_two(w);
    assert_int_equal(age(w, 0), 0);
    uint64_t before = kvf_sim_etcd_revision(w->etcd);
    for (unsigned i = 0; i < 600; i++) {
        pass(w, 100 * KVF_MS);
        assert_true(age(w, 0) <= FRESH && age(w, 1) <= FRESH);
    }
    assert_int_equal(kvf_sim_etcd_revision(w->etcd), before);
    uint64_t ticket = kvf_coord_refresh(w->peer[0].coord);
    assert_false(kvf_coord_refreshed(w->peer[0].coord, ticket));
    settle(w);
    assert_true(kvf_coord_refreshed(w->peer[0].coord, ticket));
    assert_int_equal(age(w, 0), 0);
    kvf_sim_etcd_down(w->etcd, true); /* it grows old, and that is all */
    pass(w, 20 * KVF_SEC);
    assert_true(age(w, 0) >= 20 * KVF_SEC && knows(&w->peer[0], "b"));
    kvf_sim_etcd_down(w->etcd, false);
    pass(w, FRESH);
    assert_true(age(w, 0) <= FRESH);
}

/* Revisions go on though nothing of ours changes: a member's own record shows that the watch lives, and nothing is ranged. */
static void what_others_write_in_etcd_makes_no_view_old(void **state)
{
    struct world *w = *state;
    join_two(w);
    unsigned ups = w->peer[0].ups;
    uint64_t record = revision_of(w, PREFIX "/members/a"), began = kvf_sim_store_requests(w->peer[0].store);
    for (unsigned i = 0; i < 120; i++) {
        kvf_sim_etcd_put(w->etcd, "/others/key", i % 2 ? "x" : "y");
        pass(w, 500 * KVF_MS);
        assert_true(age(w, 0) <= 2 * FRESH && age(w, 1) <= 2 * FRESH);
    }
    assert_true(revision_of(w, PREFIX "/members/a") > record);
    assert_true(kvf_sim_store_requests(w->peer[0].store) - began < 36 + 2 * 20 + 10); /* renewals; a proof and a put every 3 s */
    assert_int_equal(w->peer[0].ups, ups);
    assert_int_equal(w->peer[0].downs + w->peer[1].downs, 0);
    assert_int_equal(kvf_sim_etcd_leases(w->etcd), 2);
    kvf_sim_etcd_expire(w->etcd, kvf_sim_etcd_get(w->etcd, PREFIX "/members/a")->lease); /* it hangs on its lease still */
    settle(w);
    assert_int_equal(w->peer[1].downs, 1);
}

static void a_watch_that_died_silently_is_made_anew(void **state)
{
    struct world *w = *state;
    join_two(w);
    for (unsigned i = 0; i < 3; i++) {
        kvf_sim_store_deafen(w->peer[0].store);
        pass(w, 30 * KVF_SEC); /* nothing happens: nothing is missed */
        assert_true(age(w, 0) <= FRESH);
        assert_int_equal(create(w, 1, 7 + i, "b"), KVF_OK);
        assert_null(kvf_coord_placement_known(w->peer[0].coord, 7 + i));
        pass(w, 8 * KVF_SEC);
        assert_non_null(kvf_coord_placement_known(w->peer[0].coord, 7 + i));
        assert_int_equal(create(w, 1, 70 + i, "b"), KVF_OK); /* and the new one lives */
        assert_non_null(kvf_coord_placement_known(w->peer[0].coord, 70 + i));
    }
    pass(w, 10 * KVF_SEC);
    kvf_sim_store_deafen(w->peer[0].store);
    assert_int_equal(create(w, 1, 99, "b"), KVF_OK);
    uint64_t ticket = kvf_coord_refresh(w->peer[0].coord);
    settle(w);
    assert_false(kvf_coord_refreshed(w->peer[0].coord, ticket));
    pass(w, 4 * KVF_SEC); /* less than others wait for an answer */
    assert_true(kvf_coord_refreshed(w->peer[0].coord, ticket));
    assert_non_null(kvf_coord_placement_known(w->peer[0].coord, 99));
}

static void one_who_only_watches_finds_out_too(void **state)
{
    struct world *w = *state;
    join_two(w);
    assert_int_equal(kvf_coord_join(w->peer[2].coord, NULL, false), KVF_OK);
    settle(w);
    kvf_sim_store_deafen(w->peer[2].store);
    assert_int_equal(create(w, 1, 7, "b"), KVF_OK);
    pass(w, 40 * KVF_SEC);
    assert_non_null(kvf_coord_placement_known(w->peer[2].coord, 7));
    assert_int_equal(kvf_sim_etcd_leases(w->etcd), 2);
}

/* No watch that is made tells anything: the view is as old as the last range, and not everything is asked for all the time. */
static void watches_that_never_tell_are_made_anew_now_and_then(void **state)
{
    struct world *w = *state;
    join_two(w);
    kvf_sim_store_hold(w->peer[0].store, true);
    uint64_t began = kvf_sim_store_requests(w->peer[0].store);
    for (unsigned i = 0; i < 60; i++) {
        assert_int_equal(create(w, 1, 7 + i, "b"), KVF_OK);
        pass(w, KVF_SEC);
        assert_true(age(w, 0) <= 18 * KVF_SEC);
    }
    assert_true(kvf_sim_store_requests(w->peer[0].store) - began < 36 + 4 * 7);
    kvf_sim_store_hold(w->peer[0].store, false);
    pass(w, KVF_SEC);
    assert_true(age(w, 0) <= FRESH);
}

/* Whatever becomes of the watch and of requests, a view holds what was there when it says that it does. */
static void no_view_is_older_than_it_says(void **state)
{
    struct world *w = *state;
    uint64_t created[1600] = {0}, ticket[2] = {0};
    unsigned n = 0, refreshed = 0, wanted[2] = {0};
    print_message("seed %d\n", SEED);
    join(w, 0, "a", 1);
    join(w, 1, "b", 2);
    join(w, 2, "c", 3);
    settle(w);
    for (unsigned step = 0; step < 6000; step++) {
        unsigned i = (unsigned)sim_env_random(&w->sim, 2);
        struct kvf_store *store = w->peer[i].store;
        switch (sim_env_random(&w->sim, 40)) {
        case 0: kvf_sim_store_lag(store, sim_env_random(&w->sim, 3) * sim_env_random(&w->sim, 20 * KVF_SEC)); break;
        case 1: kvf_sim_store_deafen(store); break;
        case 2: kvf_sim_store_hold(store, sim_env_random(&w->sim, 3) == 0); break;
        case 3: kvf_sim_store_cut(store, sim_env_random(&w->sim, 4) == 0); break;
        case 4: kvf_sim_store_drop(store, 1, sim_env_random(&w->sim, 2)); break;
        case 5: kvf_sim_etcd_down(w->etcd, sim_env_random(&w->sim, 6) == 0); break;
        case 6: kvf_sim_etcd_put(w->etcd, "/others/key", step % 2 ? "x" : "y"); break;
        case 7: kvf_sim_etcd_compact(w->etcd); break;
        case 8:
            ticket[i] = kvf_coord_refresh(w->peer[i].coord);
            for (wanted[i] = 0; wanted[i] < n && created[wanted[i]];)
                wanted[i]++;
            break;
        case 9: case 10: case 11:
            if (n < 1600 && kvf_coord_session_create(w->peer[2].coord, n + 1, "c", "m", answered, w) == KVF_OK)
                n++;
            break;
        default: sim_env_advance(&w->sim, sim_env_random(&w->sim, 300 * KVF_MS)); break;
        }
        for (unsigned p = 0; p < PEERS; p++)
            kvf_coord_poll(w->peer[p].coord);
        for (unsigned s = 0; s < n; s++) {
            char key[KVF_STORE_KEY_MAX];
            if (!created[s] && kvf_records_session_key(PREFIX, s + 1, key) && kvf_sim_etcd_get(w->etcd, key))
                created[s] = w->sim.now_ns;
            for (unsigned p = 0; p < 2 && created[s]; p++) {
                bool known = kvf_coord_placement_known(w->peer[p].coord, s + 1);
                assert_true(known || kvf_coord_as_of(w->peer[p].coord) <= created[s]);
                assert_true(known || s >= wanted[p] || !kvf_coord_refreshed(w->peer[p].coord, ticket[p]));
            }
        }
        for (unsigned p = 0; p < 2; p++) {
            refreshed += ticket[p] && kvf_coord_refreshed(w->peer[p].coord, ticket[p]);
            ticket[p] = kvf_coord_refreshed(w->peer[p].coord, ticket[p]) ? 0 : ticket[p];
            wanted[p] = ticket[p] ? wanted[p] : 0;
        }
    }
    print_message("%u sessions, %u times refreshed\n", n, refreshed);
    assert_true(n > 200 && refreshed > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_quiet_view_stays_fresh_and_writes_nothing),
        TEST(what_others_write_in_etcd_makes_no_view_old),
        TEST(a_watch_that_died_silently_is_made_anew),
        TEST(one_who_only_watches_finds_out_too),
        TEST(watches_that_never_tell_are_made_anew_now_and_then),
        TEST(no_view_is_older_than_it_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
