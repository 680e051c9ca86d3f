/* Links that are set down, and that drop what goes one way, over real UCX: two network namespaces and a pair of virtual
 * devices between them, which this program makes and which go with it. Skips where the kernel does not let us. */
#include "tests/fabric/faults.h"
#include "bench/network.h"

#define LATE_NS (20 * KVF_MS)
#define HEAL_NS (15 * KVF_SEC) /* an attempt to connect that began on the dead link, and the next one */

static struct trial trial;
static struct kvf_network network;

static void go_far(void)
{
    if (!kvf_network_go_far(&network))
        _exit(6);
}

/* Reads and large calls are under way when the link goes. All end at their deadline, the peer is down after dead_after at the
 * latest, and nothing of what ended is written or sent when the link is there again. */
static void cut_off(enum kvf_network_fault fault, const char *kind)
{
    struct trial *t = &trial;
    interface = KVF_NETWORK_NEAR;
    assert_true(kvf_network_wait(interface));
    trial_begin(t, "islander", kind, KVF_NETWORK_FAR, go_far);
    assert_true(kvf_network_fault_set(&network, fault, true));
    uint64_t start = now_ns();
    ask_reads(t, READS / 2, 300 * KVF_MS);
    ask_sinks(t, SINKS / 2, 600 * KVF_MS);
    poll_watched(t, &t->ended, t->n, 5 * KVF_SEC);
    assert_ended_in_time(t, LATE_NS);
    poll_watched(t, &t->node.downs, 1, 5 * KVF_SEC);
    assert_int_equal(t->node.downs, 1);
    uint64_t down = t->node.down_ns - start;
    assert_true(down < 2500 * KVF_MS + 5 * stolen_ns(t)); /* a pause of our own begins silence anew */
    assert_true(kvf_network_fault_set(&network, fault, false));
    start = now_ns();
    meet_again(t);
    uint64_t met = now_ns() - start;
    pull_and_check(&t->node, t->peer, 64 << 10, 16);
    print_message("%s: the peer was down after %.0f ms; %.0f ms after the link was back it was met again\n", kind,
                  (double)down / 1e6, (double)met / 1e6);
    assert_true(met < HEAL_NS + 5 * stolen_ns(t));
    poll_for(t, 200 * KVF_MS);
    assert_untouched(t);
    assert_peer_saw_whole_messages(t);
    trial_end(t);
}

/* Every test begins with a whole link, whatever the one before it left. */
static int mend(void **state)
{
    bool whole = true;
    for (unsigned fault = KVF_NETWORK_NEAR_DOWN; fault <= KVF_NETWORK_FROM_FAR; fault++)
        whole = kvf_network_fault_set(&network, (enum kvf_network_fault)fault, false) && whole;
    return whole ? 0 : -1;
}

static void our_link_goes_down(void **state) { cut_off(KVF_NETWORK_NEAR_DOWN, "tcp"); }
static void the_peers_link_goes_down(void **state) { cut_off(KVF_NETWORK_FAR_DOWN, "tcp"); }
static void what_we_send_is_dropped(void **state) { cut_off(KVF_NETWORK_FROM_NEAR, "tcp"); }
static void what_the_peer_sends_is_dropped(void **state) { cut_off(KVF_NETWORK_FROM_FAR, "tcp"); }
static void the_link_beside_shared_memory_goes_down(void **state) { cut_off(KVF_NETWORK_FAR_DOWN, "shm"); }

int main(int argc, char **argv)
{
    int ended = program_start(argc, argv);
    if (ended >= 0)
        return ended;
    if (!kvf_network_open(&network)) {
        printf("skipped: network namespaces and virtual links cannot be made here (they take root, or user namespaces, and ip)\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(our_link_goes_down, mend),
        cmocka_unit_test_setup(the_peers_link_goes_down, mend),
        cmocka_unit_test_setup(what_we_send_is_dropped, mend),
        cmocka_unit_test_setup(what_the_peer_sends_is_dropped, mend),
        cmocka_unit_test_setup(the_link_beside_shared_memory_goes_down, mend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
