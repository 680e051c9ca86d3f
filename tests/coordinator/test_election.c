/* The election over etcd in memory and a clock set by hand. */
#include "tests/coordinator/world.h"

static void campaign_three(struct world *w)
{
    static const char *const names[PEERS] = {"x", "y", "z"};
    for (unsigned i = 0; i < PEERS; i++) {
        assert_int_equal(kvf_coord_join(w->peer[i].coord, NULL, true), KVF_OK);
        assert_int_equal(kvf_coord_campaign(w->peer[i].coord, names[i]), KVF_OK);
    }
    pass(w, KVF_SEC);
}

static unsigned who_leads(struct world *w)
{
    for (unsigned i = 0; i < PEERS; i++)
        if (w->peer[i].coord && w->peer[i].leader[0])
            return (unsigned)(w->peer[i].leader[0] - 'x');
    fail_msg("nobody leads");
    return 0;
}

static void there_is_one_leader_and_another_when_it_leaves(void **state)
{
    struct world *w = *state;
    campaign_three(w);
    unsigned first = who_leads(w);
    for (unsigned i = 1; i < PEERS; i++)
        assert_string_equal(w->peer[i].leader, w->peer[0].leader);
    pass(w, 3 * TTL);
    assert_int_equal(who_leads(w), first);
    kvf_coord_leave(w->peer[first].coord);
    settle(w);
    close_peer(&w->peer[first]);
    settle(w);
    unsigned second = who_leads(w);
    assert_int_not_equal(second, first);
    close_peer(&w->peer[second]); /* this one dies */
    pass(w, TTL + KVF_SEC);
    assert_int_equal(who_leads(w), 3 - first - second);
}

static void a_leader_that_is_cut_off_steps_down_before_another_stands_up(void **state)
{
    struct world *w = *state;
    campaign_three(w);
    unsigned first = who_leads(w), other = (first + 1) % PEERS;
    char name[64];
    snprintf(name, sizeof name, "%s", w->peer[first].leader);
    kvf_sim_store_cut(w->peer[first].store, true);
    for (uint64_t t = 0; t < 2 * TTL; t += 100 * KVF_MS) {
        pass(w, 100 * KVF_MS);
        assert_false(!strcmp(w->peer[first].leader, name) && strcmp(w->peer[other].leader, name) && w->peer[other].leader[0]);
    }
    assert_string_equal(w->peer[first].leader, "");
    assert_string_not_equal(w->peer[other].leader, name);
    assert_true(w->peer[other].leader[0]);
    kvf_sim_store_cut(w->peer[first].store, false);
    pass(w, TTL);
    assert_string_equal(w->peer[first].leader, w->peer[other].leader);
}

static void leadership_survives_an_etcd_that_was_away(void **state)
{
    struct world *w = *state;
    campaign_three(w);
    unsigned first = who_leads(w), other = (first + 1) % PEERS;
    kvf_sim_etcd_down(w->etcd, true);
    pass(w, 2 * TTL);
    assert_string_equal(w->peer[first].leader, ""); /* it cannot know */
    assert_int_equal(w->peer[other].leader[0] - 'x', first);
    kvf_sim_etcd_down(w->etcd, false);
    pass(w, 3 * KVF_SEC);
    assert_int_equal(who_leads(w), first);
    assert_string_equal(w->peer[first].leader, w->peer[other].leader);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(there_is_one_leader_and_another_when_it_leaves),
        TEST(a_leader_that_is_cut_off_steps_down_before_another_stands_up),
        TEST(leadership_survives_an_etcd_that_was_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
