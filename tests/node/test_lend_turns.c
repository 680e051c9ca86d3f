/* What a dead borrower left is freed in turns: a lender of much memory is not held up by it. */
#include "tests/node/store.h"

#define BLOCKS 2200u
#define TURN 1024u /* slots at most, in one poll */

static void what_the_dead_left_goes_in_turns(void **state)
{
    struct sim_cluster *c = sim_cluster_create(SEED);
    struct store t = {.c = c};
    t.n = sim_cluster_add(c, &(struct sim_node_config){.name = "n", .dram = 128 * KIB});
    t.lender = sim_cluster_add(c, &(struct sim_node_config){
                                      .name = "lender", .dram = 64 * KIB, .lend = 12 * 1024 * KIB, .keep_dead_ns = 5 * KVF_SEC});
    sim_cluster_connect(c);
    assert_int_equal(kvf_queue_create(&t.n->node, 16, &t.q), KVF_OK);
    for (uint64_t i = 0; i < BLOCKS; i++)
        assert_int_equal(put(&t, i, 0, 4 * KIB), KVF_OK);
    uint64_t before = kvf_lend_blocks(t.lender->core), most = 0;
    assert_true(before > 2 * TURN);
    kvf_queue_destroy(t.q);
    sim_cluster_kill(t.n, true);
    for (uint64_t end = c->env.now_ns + 120 * KVF_SEC; before > 0 && c->env.now_ns < end;) {
        sim_cluster_step(c);
        uint64_t now = kvf_lend_blocks(t.lender->core);
        most = before - now > most ? before - now : most;
        before = now;
    }
    assert_int_equal(before, 0);
    assert_in_range(most, 1, TURN);
    assert_true(COUNTED(t.lender, lent_blocks_expired) > 2 * TURN);
    assert_true(sim_cluster_empty(t.lender));
    sim_cluster_check(c);
    sim_cluster_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_the_dead_left_goes_in_turns)};
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
