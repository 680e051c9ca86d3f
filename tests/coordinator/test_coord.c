/* The coordinator over etcd in memory and a clock set by hand: membership, etcd away, placement, any weather. */
#include "tests/coordinator/world.h"

/* ---------------------------------------------------------------------------------------------------- membership */

static void members_see_each_other_and_an_observer_sees_both(void **state)
{
    struct world *w = *state;
    join_two(w);
    assert_int_equal(kvf_coord_join(w->peer[2].coord, NULL, false), KVF_OK);
    settle(w);
    assert_int_equal(w->peer[2].joined, KVF_OK);
    for (unsigned i = 0; i < PEERS; i++) {
        assert_true(knows(&w->peer[i], "a") && knows(&w->peer[i], "b"));
        assert_non_null(kvf_coord_member_at(w->peer[i].coord, 1));
        assert_null(kvf_coord_member_at(w->peer[i].coord, 2));
    }
    const struct kvf_member *b = kvf_coord_member(w->peer[0].coord, "b");
    assert_int_equal(b->incarnation, 2);
    assert_int_equal(b->address_bytes, 7);
    assert_memory_equal(b->address, "address", 7);
    assert_int_equal(w->peer[0].ups, 2);
    assert_int_equal(w->peer[0].reachable, 1);
    assert_int_equal(kvf_sim_etcd_leases(w->etcd), 2);
}

static void leases_are_kept_while_time_passes(void **state)
{
    struct world *w = *state;
    join_two(w);
    pass(w, 10 * TTL);
    assert_int_equal(w->peer[0].downs + w->peer[1].downs, 0);
    assert_int_equal(w->peer[0].joined_calls, 1);
    assert_true(kvf_sim_store_requests(w->peer[0].store) < 65); /* three a TTL, and a look every 3 s how old the view is */
    uint64_t next = kvf_coord_next_timer(w->peer[0].coord);
    assert_true(next > w->sim.now_ns && next <= w->sim.now_ns + TTL / 3);
}

static void a_silent_member_goes_down_when_its_lease_ends(void **state)
{
    struct world *w = *state;
    join_two(w);
    kvf_sim_store_cut(w->peer[1].store, true);
    pass(w, TTL / 2);
    assert_int_equal(w->peer[0].downs, 0);
    pass(w, TTL);
    assert_int_equal(w->peer[0].downs, 1);
    assert_string_equal(w->peer[0].last_down, "b");
    assert_int_equal(w->peer[0].last_down_incarnation, 2);
    assert_false(knows(&w->peer[0], "b"));
    assert_int_equal(w->peer[1].downs, 0); /* it knows nothing and concludes nothing */
    assert_int_equal(w->peer[1].reachable, 0);
    kvf_sim_store_cut(w->peer[1].store, false);
    pass(w, 5 * KVF_SEC);
    assert_true(knows(&w->peer[0], "b")); /* under a new lease, the same incarnation */
    assert_int_equal(kvf_coord_member(w->peer[0].coord, "b")->incarnation, 2);
    assert_true(knows(&w->peer[1], "a") && knows(&w->peer[1], "b"));
    assert_int_equal(w->peer[1].joined_calls, 1);
}

static void a_member_that_leaves_is_gone_at_once(void **state)
{
    struct world *w = *state;
    join_two(w);
    kvf_coord_leave(w->peer[1].coord);
    assert_false(kvf_coord_left(w->peer[1].coord));
    settle(w);
    assert_true(kvf_coord_left(w->peer[1].coord));
    assert_int_equal(w->peer[0].downs, 1);
    assert_int_equal(kvf_sim_etcd_leases(w->etcd), 1);
}

static void leaving_while_etcd_is_away_ends(void **state)
{
    struct world *w = *state;
    join_two(w);
    kvf_sim_etcd_down(w->etcd, true);
    kvf_coord_leave(w->peer[1].coord);
    settle(w);
    assert_true(kvf_coord_left(w->peer[1].coord));
}

static void a_living_name_is_refused_until_its_lease_ends(void **state)
{
    struct world *w = *state;
    join_two(w);
    join(w, 2, "a", 9);
    settle(w);
    assert_int_equal(w->peer[2].joined, KVF_ERR_EXISTS);
    assert_int_equal(kvf_coord_member(w->peer[1].coord, "a")->incarnation, 1);
    assert_int_equal(kvf_sim_etcd_leases(w->etcd), 2); /* the refused one gave its lease back */
    close_peer(&w->peer[0]); /* dies without leaving */
    pass(w, TTL + KVF_SEC);
    join(w, 2, "a", 9);
    settle(w);
    assert_int_equal(w->peer[2].joined, KVF_OK);
    assert_int_equal(kvf_coord_member(w->peer[1].coord, "a")->incarnation, 9);
    assert_int_equal(w->peer[1].downs, 1);
}

static void bad_members_are_refused_before_anything_is_sent(void **state)
{
    struct world *w = *state;
    struct kvf_member m = member_of("a/b", 1);
    assert_int_equal(kvf_coord_join(w->peer[0].coord, &m, false), KVF_ERR_INVALID);
    m = member_of("a", 1);
    snprintf(m.host, sizeof m.host, "%s", "two words");
    assert_int_equal(kvf_coord_join(w->peer[0].coord, &m, false), KVF_ERR_INVALID);
    m = member_of("a", 1);
    m.address_bytes = sizeof m.address + 1;
    assert_int_equal(kvf_coord_join(w->peer[0].coord, &m, false), KVF_ERR_INVALID);
    settle(w);
    assert_int_equal(kvf_sim_store_requests(w->peer[0].store), 0);
}

static void a_put_of_unknown_outcome_is_recognised_as_ours(void **state)
{
    struct world *w = *state;
    struct kvf_member m = member_of("a", 1);
    kvf_sim_etcd_manual(w->etcd, true);
    assert_int_equal(kvf_coord_join(w->peer[0].coord, &m, true), KVF_OK);
    settle(w);
    assert_true(kvf_sim_etcd_step(w->etcd)); /* the grant */
    settle(w);
    kvf_sim_store_drop(w->peer[0].store, 1, true);
    assert_true(kvf_sim_etcd_step(w->etcd)); /* the put: carried out, its answer lost */
    kvf_sim_etcd_manual(w->etcd, false);
    pass(w, 3 * KVF_SEC);
    assert_int_equal(w->peer[0].joined, KVF_OK);
    assert_non_null(kvf_sim_etcd_get(w->etcd, PREFIX "/members/a"));
}

static void a_removed_record_is_put_again(void **state)
{
    struct world *w = *state;
    join_two(w);
    kvf_sim_etcd_put(w->etcd, PREFIX "/members/b", NULL);
    settle(w);
    assert_true(knows(&w->peer[0], "b"));
    assert_non_null(kvf_sim_etcd_get(w->etcd, PREFIX "/members/b"));
    assert_int_equal(w->peer[0].downs, 1);
}

static void a_lease_that_etcd_forgot_is_granted_anew(void **state)
{
    struct world *w = *state;
    join_two(w);
    kvf_sim_etcd_expire(w->etcd, kvf_sim_etcd_get(w->etcd, PREFIX "/members/b")->lease);
    settle(w);
    pass(w, TTL);
    assert_true(knows(&w->peer[0], "b") && knows(&w->peer[1], "b"));
    assert_int_equal(w->peer[1].joined_calls, 1);
    assert_int_equal(kvf_sim_etcd_leases(w->etcd), 2);
}

static void one_who_lost_its_name_is_told(void **state)
{
    struct world *w = *state;
    char text[KVF_STORE_VALUE_MAX];
    struct kvf_member other = member_of("b", 77);
    join_two(w);
    kvf_sim_store_cut(w->peer[1].store, true);
    pass(w, 2 * TTL);
    assert_true(kvf_records_encode_member(&other, text));
    kvf_sim_etcd_put(w->etcd, PREFIX "/members/b", text);
    kvf_sim_store_cut(w->peer[1].store, false);
    pass(w, TTL);
    assert_int_equal(w->peer[1].joined, KVF_ERR_EXISTS);
    assert_int_equal(kvf_coord_member(w->peer[0].coord, "b")->incarnation, 77);
}

/* ---------------------------------------------------------------------------------------------------- etcd away */

static void joining_without_etcd_fails_unless_it_may_wait(void **state)
{
    struct world *w = *state;
    struct kvf_member m = member_of("b", 2);
    kvf_sim_etcd_down(w->etcd, true);
    join(w, 0, "a", 1);
    assert_int_equal(kvf_coord_join(w->peer[1].coord, &m, true), KVF_OK);
    settle(w);
    assert_int_equal(w->peer[0].joined, KVF_ERR_STORE);
    assert_int_equal(w->peer[1].joined, 99);
    assert_int_equal(w->peer[1].reachable, 0);
    pass(w, 4 * KVF_SEC);
    assert_int_equal(w->peer[1].joined, 99);
    assert_true(kvf_sim_store_requests(w->peer[1].store) < 20); /* with back-off */
    kvf_sim_etcd_down(w->etcd, false);
    pass(w, 3 * KVF_SEC);
    assert_int_equal(w->peer[1].joined, KVF_OK);
    join(w, 0, "a", 1); /* may be tried again */
    settle(w);
    assert_int_equal(w->peer[0].joined, KVF_OK);
}

static void nobody_is_declared_down_while_etcd_is_away(void **state)
{
    struct world *w = *state;
    join_two(w);
    assert_int_equal(create(w, 0, 7, "a"), KVF_OK);
    kvf_sim_etcd_down(w->etcd, true);
    pass(w, 5 * TTL);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(w->peer[i].downs, 0);
        assert_int_equal(w->peer[i].reachable, 0);
        assert_true(knows(&w->peer[i], "a") && knows(&w->peer[i], "b"));
        assert_non_null(kvf_coord_placement_known(w->peer[i].coord, 7));
    }
    assert_int_equal(move(w, 0, 7, "a", 1, "b"), KVF_ERR_STORE);
    kvf_sim_etcd_down(w->etcd, false);
    pass(w, 3 * KVF_SEC);
    assert_int_equal(w->peer[0].reachable, 1);
    assert_int_equal(w->peer[0].downs, 0);
    assert_int_equal(move(w, 0, 7, "a", 1, "b"), KVF_OK);
    assert_string_equal(kvf_coord_placement_known(w->peer[1].coord, 7)->home, "b");
}

static void a_lost_watch_is_made_good_by_a_range(void **state)
{
    struct world *w = *state;
    join_two(w);
    assert_int_equal(create(w, 0, 7, "a"), KVF_OK);
    assert_int_equal(create(w, 0, 8, "a"), KVF_OK);
    join(w, 2, "c", 3);
    settle(w);
    kvf_sim_store_hold(w->peer[0].store, true);
    kvf_coord_leave(w->peer[2].coord);
    assert_int_equal(wait_answer(w, kvf_coord_session_remove(w->peer[1].coord, 7, "a", 1, answered, w)), KVF_OK);
    assert_int_equal(move(w, 1, 8, "a", 1, "b"), KVF_OK);
    assert_int_equal(create(w, 1, 9, "b"), KVF_OK);
    assert_true(knows(&w->peer[0], "c"));
    kvf_sim_etcd_compact(w->etcd);
    kvf_sim_store_hold(w->peer[0].store, false);
    settle(w);
    assert_false(knows(&w->peer[0], "c"));
    assert_string_equal(w->peer[0].last_down, "c");
    assert_null(kvf_coord_placement_known(w->peer[0].coord, 7));
    assert_int_equal(w->peer[0].gone, 1);
    assert_int_equal(kvf_coord_placement_known(w->peer[0].coord, 8)->epoch, 2);
    assert_non_null(kvf_coord_placement_known(w->peer[0].coord, 9));
    assert_int_equal(create(w, 1, 10, "b"), KVF_OK); /* and the new watch runs */
    assert_non_null(kvf_coord_placement_known(w->peer[0].coord, 10));
}

static void hostile_records_are_ignored_and_hide_nothing(void **state)
{
    struct world *w = *state;
    static const char *const junk[][2] = {
        {PREFIX "/members/evil", "{"},
        {PREFIX "/members/evil2", "{\"incarnation\":7}"},
        {PREFIX "/members/a/b", "{}"},
        {PREFIX "/sessions/zz", "{}"},
        {PREFIX "/sessions/0000000000000009", "[[[[[[[[["},
        {PREFIX "/what", ""},
        {PREFIX "/leader", "{\"name\":\"\\u001b[2J\"}"},
    };
    for (size_t i = 0; i < sizeof junk / sizeof junk[0]; i++)
        kvf_sim_etcd_put(w->etcd, junk[i][0], junk[i][1]);
    join_two(w);
    assert_int_equal(create(w, 0, 7, "a"), KVF_OK);
    assert_null(kvf_coord_member(w->peer[0].coord, "evil"));
    assert_null(kvf_coord_placement_known(w->peer[0].coord, 9));
    assert_int_equal(read_back(w, 0, 9), KVF_ERR_STORE);
    assert_int_equal(create(w, 0, 9, "a"), KVF_ERR_STORE);
    for (size_t i = 0; i < sizeof junk / sizeof junk[0]; i++)
        kvf_sim_etcd_put(w->etcd, junk[i][0], "\"again\"");
    kvf_sim_etcd_put(w->etcd, PREFIX "/members/b", "{}"); /* what was known stays known */
    kvf_sim_etcd_put(w->etcd, PREFIX "/sessions/0000000000000007", "{}");
    settle(w);
    assert_true(knows(&w->peer[0], "b"));
    assert_string_equal(kvf_coord_placement_known(w->peer[0].coord, 7)->home, "a");
    kvf_sim_store_hold(w->peer[0].store, true);
    kvf_sim_etcd_put(w->etcd, PREFIX "/what", NULL);
    kvf_sim_etcd_compact(w->etcd);
    kvf_sim_store_hold(w->peer[0].store, false);
    settle(w);
    assert_true(knows(&w->peer[0], "b")); /* through a range, too */
    assert_non_null(kvf_coord_placement_known(w->peer[0].coord, 7));
    assert_int_equal(move(w, 0, 7, "a", 1, "b"), KVF_ERR_STORE);
}

/* ---------------------------------------------------------------------------------------------------- placement */

static void a_session_has_one_home(void **state)
{
    struct world *w = *state;
    join_two(w);
    assert_int_equal(create(w, 0, 7, "a"), KVF_OK);
    assert_int_equal(w->standing.epoch, 1);
    assert_string_equal(w->standing.model, "m");
    assert_int_equal(w->peer[1].placements, 1);
    assert_string_equal(w->peer[1].last_placement.home, "a");
    assert_int_equal(create(w, 1, 7, "b"), KVF_ERR_EXISTS);
    assert_true(w->has_standing);
    assert_string_equal(w->standing.home, "a");
    assert_int_equal(read_back(w, 1, 7), KVF_OK);
    assert_int_equal(read_back(w, 1, 8), KVF_ERR_NOT_FOUND);
}

static void a_move_is_guarded_by_home_and_epoch(void **state)
{
    struct world *w = *state;
    join_two(w);
    assert_int_equal(create(w, 0, 7, "a"), KVF_OK);
    assert_int_equal(move(w, 0, 7, "a", 1, "b"), KVF_OK);
    assert_int_equal(w->standing.epoch, 2);
    assert_int_equal(w->standing.tokens, 100);
    assert_string_equal(w->standing.home, "b");
    assert_string_equal(w->standing.model, "m");
    assert_int_equal(move(w, 0, 7, "a", 1, "c"), KVF_ERR_STALE); /* by one who missed it */
    assert_string_equal(w->standing.home, "b");
    assert_int_equal(w->standing.epoch, 2);
    assert_int_equal(move(w, 0, 7, "b", 1, "c"), KVF_ERR_STALE);
    assert_int_equal(move(w, 0, 7, "a", 2, "c"), KVF_ERR_STALE);
    assert_int_equal(move(w, 0, 6, "a", 1, "c"), KVF_ERR_NOT_FOUND);
    assert_int_equal(read_back(w, 1, 7), KVF_OK);
    assert_int_equal(w->standing.epoch, 2);
}

static void of_two_moves_at_once_one_wins(void **state)
{
    struct world *w = *state;
    join_two(w);
    assert_int_equal(create(w, 0, 7, "a"), KVF_OK);
    kvf_sim_etcd_manual(w->etcd, true);
    assert_int_equal(kvf_coord_session_move(w->peer[0].coord, 7, "a", 1, "b", 1, answered, w), KVF_OK);
    assert_int_equal(kvf_coord_session_move(w->peer[1].coord, 7, "a", 1, "c", 1, answered, w), KVF_OK);
    while (kvf_sim_etcd_step(w->etcd))
        ;
    unsigned before = w->answers;
    kvf_coord_poll(w->peer[1].coord);
    assert_int_equal(w->answers, before + 1);
    assert_int_equal(w->status, KVF_ERR_STALE);
    assert_string_equal(w->standing.home, "b");
    kvf_coord_poll(w->peer[0].coord);
    assert_int_equal(w->status, KVF_OK);
    kvf_sim_etcd_manual(w->etcd, false);
}

static void updates_keep_home_and_epoch_and_do_not_disturb_a_move(void **state)
{
    struct world *w = *state;
    struct kvf_coord *a = w->peer[0].coord, *b = w->peer[1].coord;
    join_two(w);
    assert_int_equal(create(w, 0, 7, "a"), KVF_OK);
    kvf_sim_store_hold(w->peer[1].store, true); /* b's watch lags */
    assert_int_equal(wait_answer(w, kvf_coord_session_update(a, 7, "a", 1, KVF_SESSION_PARKED, 55, answered, w)), KVF_OK);
    assert_int_equal(w->standing.state, KVF_SESSION_PARKED);
    assert_int_equal(w->standing.epoch, 1);
    assert_int_equal(kvf_coord_placement_known(b, 7)->tokens, 0);
    assert_int_equal(wait_answer(w, kvf_coord_session_move(b, 7, "a", 1, "b", 60, answered, w)), KVF_OK);
    assert_int_equal(w->standing.epoch, 2);
    assert_int_equal(w->standing.state, KVF_SESSION_PARKED);
    assert_int_equal(wait_answer(w, kvf_coord_session_update(a, 7, "a", 1, KVF_SESSION_ACTIVE, 61, answered, w)), KVF_ERR_STALE);
    assert_int_equal(wait_answer(w, kvf_coord_session_remove(a, 7, "a", 1, answered, w)), KVF_ERR_STALE);
    assert_int_equal(wait_answer(w, kvf_coord_session_remove(b, 7, "b", 2, answered, w)), KVF_OK);
    assert_false(w->has_standing);
    kvf_sim_store_hold(w->peer[1].store, false);
    settle(w);
    assert_null(kvf_coord_placement_known(a, 7));
    assert_null(kvf_coord_placement_known(b, 7));
    assert_int_equal(create(w, 0, 7, "a"), KVF_OK); /* the id is free again */
}

static void an_unknown_outcome_is_settled_by_reading(void **state)
{
    struct world *w = *state;
    join_two(w);
    for (uint64_t applied = 0; applied < 2; applied++) {
        uint64_t id = 7 + applied;
        assert_int_equal(create(w, 0, id, "a"), KVF_OK);
        kvf_sim_store_drop(w->peer[0].store, 1, applied);
        assert_int_equal(move(w, 0, id, "a", 1, "b"), KVF_ERR_DEADLINE);
        assert_false(w->has_standing);
        assert_int_equal(read_back(w, 0, id), KVF_OK);
        assert_string_equal(w->standing.home, applied ? "b" : "a");
        assert_int_equal(w->standing.epoch, 1 + applied);
    }
    kvf_sim_store_drop(w->peer[0].store, 1, true);
    assert_int_equal(read_back(w, 0, 7), KVF_ERR_STORE); /* a read changes nothing: it just failed */
}

static void bad_arguments_and_too_many_requests_are_refused(void **state)
{
    struct world *w = *state;
    struct kvf_coord *a = w->peer[0].coord;
    assert_int_equal(kvf_coord_session_create(a, 0, "a", "m", answered, w), KVF_ERR_INVALID);
    assert_int_equal(kvf_coord_session_create(a, 1, "a/", "m", answered, w), KVF_ERR_INVALID);
    assert_int_equal(kvf_coord_session_move(a, 1, "a", 0, "b", 1, answered, w), KVF_ERR_INVALID);
    assert_int_equal(kvf_coord_session_update(a, 1, "a", 1, (enum kvf_session_state)7, 1, answered, w), KVF_ERR_INVALID);
    kvf_sim_store_hang(w->peer[0].store, true);
    unsigned started = 0;
    enum kvf_status status;
    while ((status = kvf_coord_session_create(a, 1 + started, "a", "m", answered, w)) == KVF_OK)
        assert_true(++started < 1000);
    assert_int_equal(status, KVF_ERR_BUSY);
    assert_int_equal(w->answers, 0);
    kvf_coord_destroy(a); /* ends them all; what etcd answers later goes nowhere */
    w->peer[0].coord = NULL;
    assert_int_equal(w->answers, started);
    assert_int_equal(w->status, KVF_CANCELLED);
    kvf_sim_store_hang(w->peer[0].store, false);
    w->peer[0].store->ops->poll(w->peer[0].store);
}

static void many_sessions_come_and_go(void **state)
{
    struct world *w = *state;
    join_two(w);
    for (uint64_t id = 1; id <= 500; id++)
        assert_int_equal(create(w, 0, id * 0x9e3779b97f4a7c15ull, "a"), KVF_OK);
    for (uint64_t id = 1; id <= 500; id += 2)
        assert_int_equal(
            wait_answer(w, kvf_coord_session_remove(w->peer[0].coord, id * 0x9e3779b97f4a7c15ull, "a", 1, answered, w)),
            KVF_OK);
    unsigned n = 0;
    while (kvf_coord_placement_at(w->peer[1].coord, n))
        n++;
    assert_int_equal(n, 250);
    for (uint64_t id = 1; id <= 500; id++)
        assert_int_equal(kvf_coord_placement_known(w->peer[1].coord, id * 0x9e3779b97f4a7c15ull) != NULL, id % 2 == 0);
    assert_int_equal(w->peer[1].gone, 250);
}

static void a_model_is_what_the_first_says_it_is(void **state)
{
    struct world *w = *state;
    struct kvf_model_desc d = {.name = "m", .layers = 2, .kv_heads = 2, .q_heads = 4, .dim_k = 64, .dim_v = 64, .dtype = KVF_F16,
                               .chunk_tokens = 8, .block_tokens = 64};
    assert_int_equal(wait_answer(w, kvf_coord_model_register(w->peer[0].coord, &d, 5, model_answered, w)), KVF_OK);
    assert_int_equal(wait_answer(w, kvf_coord_model_register(w->peer[1].coord, &d, 5, model_answered, w)), KVF_OK);
    assert_int_equal(wait_answer(w, kvf_coord_model_register(w->peer[1].coord, &d, 6, model_answered, w)), KVF_ERR_MODEL);
    d.layers = 3;
    assert_int_equal(wait_answer(w, kvf_coord_model_register(w->peer[1].coord, &d, 5, model_answered, w)), KVF_ERR_MODEL);
    snprintf(d.name, sizeof d.name, "%s", "bad name");
    assert_int_equal(kvf_coord_model_register(w->peer[1].coord, &d, 5, model_answered, w), KVF_ERR_INVALID);
    snprintf(d.name, sizeof d.name, "%s", "other");
    kvf_sim_etcd_put(w->etcd, PREFIX "/models/other", "junk");
    assert_int_equal(wait_answer(w, kvf_coord_model_register(w->peer[1].coord, &d, 5, model_answered, w)), KVF_ERR_MODEL);
    kvf_sim_etcd_down(w->etcd, true);
    assert_int_equal(wait_answer(w, kvf_coord_model_register(w->peer[1].coord, &d, 5, model_answered, w)), KVF_ERR_STORE);
}

/* ---------------------------------------------------------------------------------------------------- any weather */

/* Random faults over members and sessions; then fair weather, and everybody must know what stands. */
static void after_any_weather_everybody_knows_what_stands(void **state)
{
    struct world *w = *state;
    join(w, 0, "a", 1);
    join(w, 1, "b", 2);
    join(w, 2, "c", 3);
    settle(w);
    print_message("seed %d\n", SEED);
    for (unsigned step = 0; step < 3000; step++) {
        unsigned i = (unsigned)sim_env_random(&w->sim, PEERS);
        uint64_t id = 1 + sim_env_random(&w->sim, 8);
        struct kvf_coord *coord = w->peer[i].coord;
        const struct kvf_placement *known = kvf_coord_placement_known(coord, id);
        struct kvf_placement guard = known ? *known : (struct kvf_placement){.home = "a", .epoch = 1};
        char to[2] = {(char)('a' + sim_env_random(&w->sim, PEERS)), 0};
        switch (sim_env_random(&w->sim, 12)) {
        case 0: kvf_coord_session_create(coord, id, to, "m", answered, w); break;
        case 1: kvf_coord_session_move(coord, id, guard.home, guard.epoch, to, step, answered, w); break;
        case 2: kvf_coord_session_update(coord, id, guard.home, guard.epoch, KVF_SESSION_PARKED, step, answered, w); break;
        case 3: kvf_coord_session_remove(coord, id, guard.home, guard.epoch, answered, w); break;
        case 4: kvf_sim_store_drop(w->peer[i].store, 1, sim_env_random(&w->sim, 2)); break;
        case 5: kvf_sim_store_hold(w->peer[i].store, sim_env_random(&w->sim, 2)); break;
        case 6: kvf_sim_store_cut(w->peer[i].store, sim_env_random(&w->sim, 3) == 0); break;
        case 7: kvf_sim_etcd_down(w->etcd, sim_env_random(&w->sim, 4) == 0); break;
        case 8: kvf_sim_etcd_compact(w->etcd); break;
        case 9: kvf_sim_store_hang(w->peer[i].store, sim_env_random(&w->sim, 4) == 0); break;
        default: sim_env_advance(&w->sim, sim_env_random(&w->sim, KVF_SEC)); break;
        }
        kvf_coord_poll(coord);
    }
    kvf_sim_etcd_down(w->etcd, false);
    for (unsigned i = 0; i < PEERS; i++) {
        kvf_sim_store_cut(w->peer[i].store, false);
        kvf_sim_store_hold(w->peer[i].store, false);
        kvf_sim_store_hang(w->peer[i].store, false);
        kvf_sim_store_drop(w->peer[i].store, 0, false);
    }
    pass(w, 2 * TTL);
    for (unsigned i = 0; i < PEERS; i++) {
        assert_true(knows(&w->peer[i], "a") && knows(&w->peer[i], "b") && knows(&w->peer[i], "c"));
        for (uint64_t id = 1; id <= 8; id++) {
            char key[KVF_STORE_KEY_MAX];
            struct kvf_placement want;
            kvf_records_session_key(PREFIX, id, key);
            const struct kvf_store_kv *kv = kvf_sim_etcd_get(w->etcd, key);
            const struct kvf_placement *known = kvf_coord_placement_known(w->peer[i].coord, id);
            assert_int_equal(kv != NULL, known != NULL);
            if (!kv)
                continue;
            assert_true(kvf_records_decode_placement(id, kv->value, &want));
            want.mod_revision = kv->mod_revision;
            assert_memory_equal(&want, known, sizeof want);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(members_see_each_other_and_an_observer_sees_both),
        TEST(leases_are_kept_while_time_passes),
        TEST(a_silent_member_goes_down_when_its_lease_ends),
        TEST(a_member_that_leaves_is_gone_at_once),
        TEST(leaving_while_etcd_is_away_ends),
        TEST(a_living_name_is_refused_until_its_lease_ends),
        TEST(bad_members_are_refused_before_anything_is_sent),
        TEST(a_put_of_unknown_outcome_is_recognised_as_ours),
        TEST(a_removed_record_is_put_again),
        TEST(a_lease_that_etcd_forgot_is_granted_anew),
        TEST(one_who_lost_its_name_is_told),
        TEST(joining_without_etcd_fails_unless_it_may_wait),
        TEST(nobody_is_declared_down_while_etcd_is_away),
        TEST(a_lost_watch_is_made_good_by_a_range),
        TEST(hostile_records_are_ignored_and_hide_nothing),
        TEST(a_session_has_one_home),
        TEST(a_move_is_guarded_by_home_and_epoch),
        TEST(of_two_moves_at_once_one_wins),
        TEST(updates_keep_home_and_epoch_and_do_not_disturb_a_move),
        TEST(an_unknown_outcome_is_settled_by_reading),
        TEST(bad_arguments_and_too_many_requests_are_refused),
        TEST(many_sessions_come_and_go),
        TEST(a_model_is_what_the_first_says_it_is),
        TEST(after_any_weather_everybody_knows_what_stands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
