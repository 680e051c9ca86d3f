/* Requests end at their own deadlines, in the order of time, whatever else ends meanwhile; poll is wanted for the next of them. */
#include "tests/fabric/world.h"

#define N 300

struct one {
    struct result result;
    uint64_t deadline_ns;
    bool cancelled;
};

static struct one all[N];
static uint64_t last_ns; /* the deadline of whoever ended last in this poll */

static void on_late(void *arg, enum kvf_status status)
{
    struct one *one = arg;
    on_done(&one->result, status);
    assert_true(one->deadline_ns >= last_ns);
    last_ns = one->deadline_ns;
}

static void ask(struct world *w, struct kvf_peer *peer, struct one *one)
{
    static uint8_t to[8];
    struct kvf_pull_range range = {.bytes = sizeof to, .to = to};
    memset(one, 0, sizeof *one);
    one->deadline_ns = sim_env_random(&w->env, 8) == 0 ? UINT64_MAX : w->env.now_ns + 1 + sim_env_random(&w->env, 20 * KVF_MS);
    assert_int_equal(kvf_fabric_pull(peer, &range, 1, one->deadline_ns, on_late, one), KVF_OK);
}

static void each_ends_at_its_deadline(void **state)
{
    struct world *w = world_new();
    w->requests_max = N;
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    struct kvf_peer *peer = meet(a, b);
    settle(w);
    sim_net_path(b->t, a->t)->held = true; /* nothing is answered */
    for (unsigned i = 0; i < N; i++)
        ask(w, peer, &all[i]);
    unsigned late = 0, cancelled = 0;
    for (unsigned round = 0; round < 400; round++) {
        uint64_t next = UINT64_MAX;
        for (unsigned i = 0; i < N; i++)
            next = !all[i].cancelled && all[i].deadline_ns < next ? all[i].deadline_ns : next;
        assert_int_equal(kvf_deadlines_next(a->fabric), next);
        assert_true(kvf_fabric_next_timer(a->fabric) <= next);
        sim_env_advance(&w->env, 1 + sim_env_random(&w->env, 200 * KVF_US));
        last_ns = 0;
        kvf_fabric_poll(a->fabric);
        for (unsigned i = 0; i < N; i++) {
            bool over = !all[i].cancelled && all[i].deadline_ns <= w->env.now_ns;
            assert_int_equal(all[i].result.count, over);
            assert_true(!over || all[i].result.status == KVF_ERR_DEADLINE);
            late += over;
            bool ends = !over && sim_env_random(&w->env, 200) == 0;
            if (ends && !all[i].cancelled)
                assert_true(kvf_fabric_cancel(peer, &all[i]));
            cancelled += ends;
            all[i].cancelled |= ends;
            if (over || (all[i].cancelled && sim_env_random(&w->env, 4) == 0))
                ask(w, peer, &all[i]);
        }
    }
    assert_true(late > N && cancelled > N);
    assert_true(kvf_peer_is_up(peer)); /* nobody was taken down: nothing of it was read one-sided */
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(kvf_fabric_cancel(peer, &all[i]), !all[i].cancelled);
    assert_int_equal(kvf_deadlines_next(a->fabric), UINT64_MAX);
    world_free(w);
}

/* A callback that asks again, late already, does not keep poll for ever. */
static struct kvf_peer *again_peer;
static unsigned agains;

static void on_again(void *arg, enum kvf_status status)
{
    static uint8_t to[8];
    struct kvf_pull_range range = {.bytes = sizeof to, .to = to};
    if (++agains < 100)
        assert_int_equal(kvf_fabric_pull(again_peer, &range, 1, 1, on_again, NULL), KVF_OK);
}

static void who_asks_again_late_waits_for_the_next_poll(void **state)
{
    struct world *w = pair(KVF_WAY_ASK, &again_peer);
    sim_net_path(w->node[1].t, w->node[0].t)->held = true;
    agains = 0;
    on_again(NULL, KVF_OK);
    for (unsigned i = 1; i <= 3; i++) {
        kvf_fabric_poll(w->node[0].fabric);
        assert_int_equal(agains, 1 + i);
    }
    agains = 100; /* the end cancels the last */
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_ends_at_its_deadline),
        cmocka_unit_test(who_asks_again_late_waits_for_the_next_poll),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
