/* Peers that are killed or stopped, over real UCX: how long that goes unnoticed, when what was asked of them ends, and whether
 * its memory may be used again then. */
#include "tests/fabric/faults.h"

#define DETECT_NS (100 * KVF_MS)
#define LATE_NS (20 * KVF_MS) /* past a deadline: a turn of the loop, and the forced close of a link */

static struct trial trial;

/* ------------------------------------------------------------------------------------------------ kill -9 */
/* Reaps the child as soon as it is gone, and says when; until then the loop goes on. */
struct reaper {
    pthread_t thread;
    pid_t pid;
    uint64_t gone_ns;
};

static void *reap(void *arg)
{
    struct reaper *reaper = arg;
    waitpid(reaper->pid, NULL, 0);
    reaper->gone_ns = now_ns();
    return NULL;
}

static void killed(const char *kind, unsigned reads)
{
    struct trial *t = &trial;
    bool mapped = strcmp(kind, "shm") == 0;
    trial_begin(t, "mortal", kind, interface, NULL);
    struct reaper reaper = {.pid = t->child.pid};
    uint64_t incarnation = t->child.incarnation;
    ask_reads(t, reads, 60 * KVF_SEC);
    poll_watched(t, &t->ended, reads / 16, 10 * KVF_SEC);
    assert_true(t->ended <= reads / 4); /* the others are outstanding */
    stolen_reset(t);
    uint64_t start = now_ns();
    kill(t->child.pid, SIGKILL);
    assert_int_equal(pthread_create(&reaper.thread, NULL, reap, &reaper), 0);
    if (reads && mapped) /* its memory is read without it: what is left is to be read when it is gone */
        pthread_join(reaper.thread, NULL);
    poll_watched(t, &t->ended, reads, 10 * KVF_SEC);
    poll_watched(t, &t->node.downs, 1, 10 * KVF_SEC);
    if (!reads || !mapped)
        pthread_join(reaper.thread, NULL);
    uint64_t stolen = stolen_ns(t), told = t->node.down_ns - start, died = reaper.gone_ns - start;
    uint64_t ended = reads && t->last_ns > start ? t->last_ns - start : 0;
    print_message("%s, %u reads: the last ended %.2f ms after the kill, peer down after %.2f ms (the process was gone after "
                  "%.2f ms, the machine took %.1f ms)\n",
                  kind, reads, (double)ended / 1e6, (double)told / 1e6, (double)died / 1e6, (double)stolen / 1e6);
    assert_int_equal(t->node.downs, 1);
    /* A process that was killed needs the processor to end, and its sockets are open until then. */
    assert_true(told <= DETECT_NS + stolen + died);
    assert_true(ended <= DETECT_NS + stolen + died);
    assert_ended_in_time(t, 0);
    assert_int_equal(t->ok + t->lost, reads);
    assert_true(t->lost >= reads / 4); /* they were outstanding when it died */

    /* From now on it is asked for nothing, although its memory may still be mapped. */
    uint8_t byte;
    struct tally none = {0};
    struct kvf_pull_range range = {.offset = 0, .bytes = 1, .to = &byte};
    assert_false(kvf_peer_is_up(t->peer));
    assert_int_equal(kvf_fabric_pull(t->peer, &range, 1, UINT64_MAX, on_pulled, &none), KVF_ERR_PEER_LOST);
    assert_int_equal(shm_files(), 0);

    /* Anew: another incarnation with other bytes, of which every word is compared. */
    child_forget(&t->child);
    child_start(&t->child, "mortal", kind);
    assert_true(t->child.incarnation != incarnation);
    meet_again(t);
    pull_and_check(&t->node, t->peer, 64 << 10, 16);
    await_way(&t->node, t->peer, mapped ? KVF_WAY_MAPPED : KVF_WAY_ASK);
    pull_and_check(&t->node, t->peer, 64 << 10, 16);
    assert_untouched(t);
    trial_end(t);
}

static void killed_amid_64_reads_over_tcp(void **state) { killed("tcp", READS); }
static void killed_amid_64_reads_over_shared_memory(void **state) { killed("shm", READS); }
static void killed_while_nothing_is_asked_over_tcp(void **state) { killed("tcp", 0); }
static void killed_while_nothing_is_asked_over_shared_memory(void **state) { killed("shm", 0); }

/* ------------------------------------------------------------------------------------------------ SIGSTOP */
/* A process that hangs: its kernel goes on answering, so only deadlines and heartbeats tell. Reads alone do not cost the peer
 * its link: what it sends of them later is not written. */
static void stopped_amid_reads(void **state)
{
    struct trial *t = &trial;
    trial_begin(t, "sleeper", "tcp", interface, NULL);
    kill(t->child.pid, SIGSTOP);
    ask_reads(t, READS, 300 * KVF_MS);
    poll_watched(t, &t->ended, t->n, 5 * KVF_SEC);
    assert_ended_in_time(t, LATE_NS);
    assert_int_equal(t->late_status, READS);
    assert_true(kvf_peer_is_up(t->peer));
    kill(t->child.pid, SIGCONT);
    pull_and_check(&t->node, t->peer, 64 << 10, 4);
    poll_for(t, 200 * KVF_MS);
    assert_untouched(t);

    /* Silent for dead_after. A pause of our own begins it anew: one of 500 ms may cost 2 s. */
    stolen_reset(t);
    kill(t->child.pid, SIGSTOP);
    uint64_t start = now_ns();
    poll_watched(t, &t->node.downs, 1, 60 * KVF_SEC);
    assert_int_equal(t->node.downs, 1);
    assert_in_range(now_ns() - start, 1500 * KVF_MS, 2500 * KVF_MS + 5 * stolen_ns(t));
    kill(t->child.pid, SIGCONT);
    meet_again(t);
    pull_and_check(&t->node, t->peer, 64 << 10, 4);
    assert_untouched(t);
    trial_end(t);
}

/* With more sent to it than its socket holds the transport still reads the callers' memory at their deadline: the link is ended
 * for that, at once, and what was half sent never arrives. */
static void stopped_amid_large_calls(const char *kind)
{
    struct trial *t = &trial;
    trial_begin(t, "sleeper", kind, interface, NULL);
    kill(t->child.pid, SIGSTOP);
    ask_reads(t, READS / 2, 300 * KVF_MS);
    unsigned sinks = ask_sinks(t, SINKS, 300 * KVF_MS);
    assert_true(sinks > 32);
    poll_watched(t, &t->ended, t->n, 5 * KVF_SEC);
    assert_ended_in_time(t, LATE_NS);
    poll_watched(t, &t->node.downs, 1, 5 * KVF_SEC);
    assert_int_equal(t->node.downs, 1);
    assert_true(t->node.down_ns <= t->last_ns + LATE_NS + stolen_ns(t));
    kill(t->child.pid, SIGCONT);
    meet_again(t);
    pull_and_check(&t->node, t->peer, 64 << 10, 4);
    poll_for(t, 200 * KVF_MS);
    assert_untouched(t);
    assert_peer_saw_whole_messages(t);
    trial_end(t);
}

static void stopped_amid_large_calls_over_tcp(void **state) { stopped_amid_large_calls("tcp"); }
static void stopped_amid_large_calls_over_shared_memory(void **state) { stopped_amid_large_calls("shm"); }

int main(int argc, char **argv)
{
    int ended = program_start(argc, argv);
    if (ended >= 0)
        return ended;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_amid_64_reads_over_tcp),
        cmocka_unit_test(killed_amid_64_reads_over_shared_memory),
        cmocka_unit_test(killed_while_nothing_is_asked_over_tcp),
        cmocka_unit_test(killed_while_nothing_is_asked_over_shared_memory),
        cmocka_unit_test(stopped_amid_reads),
        cmocka_unit_test(stopped_amid_large_calls_over_tcp),
        cmocka_unit_test(stopped_amid_large_calls_over_shared_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
