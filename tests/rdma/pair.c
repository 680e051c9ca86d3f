/* The fabric over RDMA verbs between two machines. tests/rdma/run runs it in two virtual ones:
 *
 *     pair keeper PORT           on one: starts peers, and does to them what the other asks for, by lines over TCP
 *     pair test HOST PORT        on the other: the tests
 *     pair quit HOST PORT        ends the keeper
 *
 * KVF_TEST_RDMA names the RDMA device of each (rxe0:1), KVF_TEST_NETDEV the network device under it (eth0). */
#include "tests/fabric/processes.h"


#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#define PULLS 64
#define PULL_BYTES (1u << 20)

static const char *keeper_host, *keeper_port;

static const char *netdev(void)
{
    const char *name = getenv("KVF_TEST_NETDEV");
    return name ? name : "eth0";
}

/* `ip link set down`, and up. */
static void link_set(bool up)
{
    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", netdev());
    bool good = ioctl(fd, SIOCGIFFLAGS, &request) == 0;
    request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
    good = good && ioctl(fd, SIOCSIFFLAGS, &request) == 0;
    close(fd);
    if (!good)
        fprintf(stderr, "the link of %s cannot be set\n", netdev());
}

/* Not by a shell: that of a small system may have a tc of its own. */
static void run(const char *const words[])
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        execvp(words[0], (char *const *)words);
        _exit(127);
    }
    waitpid(pid, &status, 0);
    if (status != 0)
        fprintf(stderr, "failed: %s %s\n", words[0], words[1]);
}

/* Everything that this side sends is lost, without anybody being told: a cable that drops one way. */
static void drop_set(bool on)
{
    const char *const lose[] = {"tc", "qdisc", "replace", "dev", netdev(), "root", "netem", "loss", "100%", NULL};
    const char *const stop[] = {"tc", "qdisc", "del", "dev", netdev(), "root", NULL};
    run(on ? lose : stop);
}

/* A process that takes the link away in a moment, and gives it back later. */
static void blink(void (*set)(bool), bool away, unsigned ms)
{
    if (fork() != 0)
        return;
    usleep(30000); /* the answer goes out first */
    set(away);
    usleep(ms * 1000);
    set(!away);
    _exit(0);
}

/* ------------------------------------------------------------------------------------------------ the keeper */
static void keeper_start(struct child *c, const char *name, FILE *to)
{
    if (c->pid > 0) { /* of a test that failed */
        child_kill(c);
        child_forget(c);
    }
    child_start(c, name, "rdma");
    fprintf(to, "%llu ", (unsigned long long)c->incarnation);
    for (size_t i = 0; i < c->address_bytes; i++)
        fprintf(to, "%02x", c->address[i]);
    fprintf(to, "\n");
}

/* Does one line's worth; false: the end. */
static bool keeper_do(char *line, struct child *c, FILE *to)
{
    char word[32] = "", what[32] = "";
    sscanf(line, "%31s %31s", word, what);
    if (strcmp(word, "start") == 0) {
        keeper_start(c, what, to);
        return true;
    }
    if (strcmp(word, "kill") == 0) {
        child_kill(c);
        child_forget(c);
        c->pid = 0;
    }
    if (strcmp(word, "end") == 0) {
        child_stop(c);
        c->pid = 0;
    }
    if (strcmp(word, "stop") == 0)
        kill(c->pid, SIGSTOP);
    if (strcmp(word, "continue") == 0)
        kill(c->pid, SIGCONT);
    if (strcmp(word, "link-down") == 0)
        blink(link_set, false, (unsigned)strtoul(what, NULL, 10));
    if (strcmp(word, "drop") == 0)
        blink(drop_set, true, (unsigned)strtoul(what, NULL, 10));
    fprintf(to, "ok\n");
    return strcmp(word, "quit") != 0;
}

static int keeper_main(const char *port)
{
    static struct child c;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(port, NULL, 10))};
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 4) != 0)
        return 1;
    for (bool more = true; more;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        FILE *from = fdopen(fd, "r"), *to = fdopen(dup(fd), "w");
        char line[128];
        while (more && from && to && fgets(line, sizeof line, from)) {
            printf("%s", line);
            fflush(stdout);
            more = keeper_do(line, &c, to);
            fflush(to);
        }
        if (from)
            fclose(from);
        if (to)
            fclose(to);
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------ asking it */
struct keeper {
    FILE *from, *to;
};

static struct keeper keeper_open(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(keeper_port, NULL, 10))};
    uint64_t until = now_ns() + 60 * KVF_SEC;
    inet_pton(AF_INET, keeper_host, &at.sin_addr);
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0) {
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
            return (struct keeper){.from = fdopen(fd, "r"), .to = fdopen(dup(fd), "w")};
        }
        close(fd);
        if (now_ns() > until) {
            fprintf(stderr, "the keeper at %s cannot be reached\n", keeper_host);
            exit(1);
        }
        usleep(100000);
    }
}

static void keeper_close(struct keeper *k)
{
    fclose(k->to);
    fclose(k->from);
}

static void ask(struct keeper *k, const char *line, char *answer, int size)
{
    fprintf(k->to, "%s\n", line);
    fflush(k->to);
    if (!fgets(answer, size, k->from)) {
        fprintf(stderr, "the keeper went away at '%s'\n", line);
        exit(1);
    }
}

static void tell(struct keeper *k, const char *line)
{
    char answer[64];
    ask(k, line, answer, sizeof answer);
    assert_string_equal(answer, "ok\n");
}

/* A peer over there. */
struct far {
    char name[32];
    uint64_t incarnation;
    uint8_t address[KVF_ADDRESS_MAX];
    size_t address_bytes;
};

static void far_start(struct keeper *k, struct far *f, const char *name)
{
    char line[64], answer[2 * KVF_ADDRESS_MAX + 64];
    int skip = 0;
    unsigned byte;
    unsigned long long incarnation;
    snprintf(line, sizeof line, "start %s", name);
    ask(k, line, answer, sizeof answer);
    snprintf(f->name, sizeof f->name, "%s", name);
    assert_int_equal(sscanf(answer, "%llu %n", &incarnation, &skip), 1);
    f->incarnation = incarnation;
    f->address_bytes = 0;
    for (const char *at = answer + skip; sscanf(at, "%2x", &byte) == 1; at += 2)
        f->address[f->address_bytes++] = (uint8_t)byte;
    assert_true(f->address_bytes > 0);
}

static struct kvf_peer *far_meet(struct node *n, const struct far *f)
{
    struct kvf_peer *peer = kvf_fabric_peer_find(n->fabric, f->name);
    if (peer && !kvf_peer_is_up(peer))
        kvf_fabric_peer_remove(n->fabric, peer);
    peer = meet(n, f->name, f->incarnation, f->address, f->address_bytes);
    await_way(n, peer, KVF_WAY_GET);
    return peer;
}

/* ------------------------------------------------------------------------------------------------ tests */
struct fixture {
    struct keeper keeper;
    struct node node;
    struct far far;
    uint8_t *buffer; /* PULLS * PULL_BYTES */
};

static int set_up(void **state)
{
    static struct fixture f;
    memset(&f, 0, sizeof f);
    f.keeper = keeper_open();
    f.buffer = mmap(NULL, (size_t)PULLS * PULL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *state = &f;
    return f.buffer == MAP_FAILED || node_open(&f.node, "near", 12, "rdma") != KVF_OK;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    node_close(&f->node);
    munmap(f->buffer, (size_t)PULLS * PULL_BYTES);
    keeper_close(&f->keeper);
    return 0;
}

/* Ranges of any size and place, many at once, word for word. */
static void pulls_bring_the_right_bytes(void **state)
{
    struct fixture *f = *state;
    struct kvf_pull_range ranges[PULLS];
    far_start(&f->keeper, &f->far, "right");
    struct kvf_peer *peer = far_meet(&f->node, &f->far);
    pull_and_check(&f->node, peer, 4 << 10, 256);
    pull_and_check(&f->node, peer, 64 << 10, 64);
    pull_and_check(&f->node, peer, 1 << 20, 16);
    for (uint64_t round = 0, random = SEED; round < 8; round++) {
        struct tally t = {0};
        size_t at = 0;
        for (unsigned i = 0; i < PULLS; i++) {
            random = kvf_mix(random, i);
            uint32_t bytes = (uint32_t)(8 + random % (round % 2 ? 4096 : 200000)) & ~7u;
            ranges[i] = (struct kvf_pull_range){
                .offset = kvf_mix(random, 1) % (REGION_BYTES - bytes) & ~7ull, .bytes = bytes, .to = f->buffer + at};
            at += bytes;
        }
        memset(f->buffer, 0xee, at + 64);
        assert_int_equal(kvf_fabric_pull(peer, ranges, PULLS, now_ns() + 20 * KVF_SEC, on_pulled, &t), KVF_OK);
        poll_until(&f->node, &t.total, 1, 30 * KVF_SEC);
        assert_int_equal(t.ok, 1);
        for (unsigned i = 0; i < PULLS; i++)
            assert_true(right(peer, ranges[i].offset, ranges[i].to, ranges[i].bytes));
        for (unsigned i = 0; i < 64; i++)
            assert_int_equal(f->buffer[at + i], 0xee);
    }
    tell(&f->keeper, "end");
}

static void calls_bring_the_right_bytes(void **state)
{
    struct fixture *f = *state;
    far_start(&f->keeper, &f->far, "caller");
    struct kvf_peer *peer = far_meet(&f->node, &f->far);
    call_and_check(&f->node, peer, 0, 0);
    call_and_check(&f->node, peer, 100, 1);
    call_and_check(&f->node, peer, 64 << 10, 16);
    for (unsigned i = 0; i < 8; i++)
        call_and_check(&f->node, peer, kvf_fabric_payload_max(f->node.fabric), i ? 64 : 1);
    tell(&f->keeper, "end");
}

/* The reads are the NIC's: the process over there is stopped. */
static void pulls_go_on_while_the_peer_is_stopped(void **state)
{
    struct fixture *f = *state;
    far_start(&f->keeper, &f->far, "stopped");
    struct kvf_peer *peer = far_meet(&f->node, &f->far);
    pull_and_check(&f->node, peer, 4 << 10, 8);
    tell(&f->keeper, "stop");
    pull_and_check(&f->node, peer, 64 << 10, 8);
    pull_and_check(&f->node, peer, 4 << 10, 64);
    assert_true(kvf_peer_is_up(peer));
    tell(&f->keeper, "continue");
    tell(&f->keeper, "end");
}

static void pull_all(struct fixture *f, struct kvf_peer *peer, struct tally *t, uint64_t deadline_ns)
{
    for (unsigned i = 0; i < PULLS; i++) {
        struct kvf_pull_range range = {
            .offset = (uint64_t)i * PULL_BYTES % REGION_BYTES, .bytes = PULL_BYTES, .to = f->buffer + (size_t)i * PULL_BYTES};
        assert_int_equal(kvf_fabric_pull(peer, &range, 1, deadline_ns, on_pulled, t), KVF_OK);
    }
}

static void a_killed_peer_ends_all_pulls_within_a_second(void **state)
{
    struct fixture *f = *state;
    for (unsigned life = 0; life < 3; life++) {
        struct tally t = {0};
        f->node.downs = 0;
        far_start(&f->keeper, &f->far, "mortal");
        struct kvf_peer *peer = far_meet(&f->node, &f->far);
        pull_and_check(&f->node, peer, 64 << 10, 16);
        pull_all(f, peer, &t, now_ns() + 60 * KVF_SEC);
        poll_until(&f->node, &t.total, 3, 20 * KVF_SEC);
        uint64_t start = now_ns();
        tell(&f->keeper, "kill");
        poll_until(&f->node, &t.total, PULLS, 20 * KVF_SEC);
        uint64_t ended = now_ns() - start;
        poll_until(&f->node, &f->node.downs, 1, 10 * KVF_SEC);
        print_message("# killed: %u of %u pulls ok, %u lost; the last ended %.0f ms after it was asked to be, down after %.0f ms\n",
                      t.ok, t.total, t.lost, (double)ended / 1e6, (double)(now_ns() - start) / 1e6);
        assert_int_equal(t.ok + t.lost, PULLS);
        assert_true(t.lost >= PULLS / 4);
        assert_true(ended < KVF_SEC);
        assert_int_equal(f->node.downs, 1);
        assert_false(kvf_peer_is_up(peer));
    }
    far_start(&f->keeper, &f->far, "mortal");
    pull_and_check(&f->node, far_meet(&f->node, &f->far), 64 << 10, 16);
    tell(&f->keeper, "end");
}

/* Nothing comes any more and nothing is said: only the deadline ends the pulls, and what comes later must not be written. */
static void away(struct fixture *f, const char *name, const char *there, void (*here)(bool), bool set)
{
    struct tally t = {0};
    far_start(&f->keeper, &f->far, name);
    struct kvf_peer *peer = far_meet(&f->node, &f->far);
    pull_and_check(&f->node, peer, 64 << 10, 16);
    uint64_t start = now_ns(), wait = 300 * KVF_MS;
    pull_all(f, peer, &t, start + wait);
    if (there)
        tell(&f->keeper, there);
    if (here)
        blink(here, set, 1500);
    poll_until(&f->node, &t.total, PULLS, 10 * KVF_SEC);
    uint64_t ended = now_ns() - start;
    print_message("# %s: %u of %u pulls ok; the last ended %.0f ms after the start, deadline %.0f ms\n", name, t.ok, t.total,
                  (double)ended / 1e6, (double)wait / 1e6);
    assert_int_equal(t.total, PULLS);
    assert_true(t.ok < PULLS);
    assert_true(ended < KVF_SEC);
    memset(f->buffer, 0xcc, (size_t)PULLS * PULL_BYTES);
    for (uint64_t until = now_ns() + 2500 * KVF_MS; now_ns() < until;)
        kvf_fabric_poll(f->node.fabric);
    for (size_t i = 0; i < (size_t)PULLS * PULL_BYTES; i++) {
        if (f->buffer[i] != 0xcc)
            fail_msg("byte %zu was written after its pull had ended", i);
    }
}

static void again(struct fixture *f)
{
    pull_and_check(&f->node, far_meet(&f->node, &f->far), 64 << 10, 16);
    tell(&f->keeper, "end");
}

static void pulls_end_at_their_deadline_when_what_the_peer_sends_is_lost(void **state)
{
    away(*state, "far-drops", "drop 1500", NULL, false);
    again(*state);
}

static void pulls_end_at_their_deadline_when_what_we_send_is_lost(void **state)
{
    away(*state, "near-drops", NULL, drop_set, true);
    again(*state);
}

static void pulls_end_at_their_deadline_when_the_cable_is_cut(void **state)
{
    away(*state, "cut", "drop 1500", drop_set, true);
    again(*state);
}

/* The last test: the software device does not survive it. The kernel's own queue pair on it, by which connections are made, stays
 * in error. */
static void pulls_end_at_their_deadline_when_the_link_goes_down(void **state)
{
    struct fixture *f = *state;
    /* The last test, and nobody comes again: what the kernel's software RoCE sends for connections while its link is down fails,
     * and then none can be made to that machine by any process. */
    away(f, "down", "link-down 1500", NULL, false);
    tell(&f->keeper, "kill");
}

/* Cut off before the first word: no call blocks, and the peer goes DOWN by our own deadline. */
static void a_cut_while_connecting_ends_by_our_own_deadline(void **state)
{
    struct fixture *f = *state;
    struct kvf_peer *peer;
    far_start(&f->keeper, &f->far, "unmet");
    tell(&f->keeper, "drop 3500");
    usleep(200000);
    uint64_t start = now_ns();
    enum kvf_status st = kvf_fabric_peer_add(f->node.fabric, f->far.name, f->far.incarnation, f->far.address,
                                             f->far.address_bytes, &peer);
    assert_true(now_ns() - start < KVF_SEC);
    if (st == KVF_OK)
        poll_until(&f->node, &f->node.downs, 1, 5 * KVF_SEC);
    uint64_t ended = now_ns() - start;
    print_message("# cut while connecting: %s, down after %.0f ms\n", kvf_status_name(st), (double)ended / 1e6);
    assert_true(st != KVF_OK || f->node.downs == 1);
    assert_true(ended < 3 * KVF_SEC);
    for (uint64_t until = now_ns() + 2 * KVF_SEC; now_ns() < until;)
        kvf_fabric_poll(f->node.fabric);
    again(f);
}

static void a_peer_that_is_gone_goes_down(void **state)
{
    struct fixture *f = *state;
    struct kvf_peer *peer;
    far_start(&f->keeper, &f->far, "ghost");
    tell(&f->keeper, "kill");
    uint64_t start = now_ns();
    enum kvf_status st = kvf_fabric_peer_add(f->node.fabric, f->far.name, f->far.incarnation, f->far.address,
                                             f->far.address_bytes, &peer);
    if (st == KVF_OK)
        poll_until(&f->node, &f->node.downs, 1, 5 * KVF_SEC);
    assert_true(st != KVF_OK || f->node.downs == 1);
    assert_true(now_ns() - start < 3 * KVF_SEC);
}

static int tests_main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pulls_bring_the_right_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(calls_bring_the_right_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pulls_go_on_while_the_peer_is_stopped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_killed_peer_ends_all_pulls_within_a_second, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pulls_end_at_their_deadline_when_what_the_peer_sends_is_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pulls_end_at_their_deadline_when_what_we_send_is_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pulls_end_at_their_deadline_when_the_cable_is_cut, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_cut_while_connecting_ends_by_our_own_deadline, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_peer_that_is_gone_goes_down, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pulls_end_at_their_deadline_when_the_link_goes_down, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        return 1;
    if (argc > 1 && strcmp(argv[1], "peer") == 0)
        return child_main(argc, argv);
    if (getenv("KVF_TEST_RDMA"))
        interface = getenv("KVF_TEST_RDMA");
    if (argc == 3 && strcmp(argv[1], "keeper") == 0)
        return keeper_main(argv[2]);
    if (argc < 4) {
        fprintf(stderr, "usage: pair keeper PORT | pair test|quit HOST PORT\n");
        return 2;
    }
    keeper_host = argv[2];
    keeper_port = argv[3];
    if (strcmp(argv[1], "test") == 0)
        return tests_main();
    if (strcmp(argv[1], "quit") != 0)
        return 2;
    struct keeper k = keeper_open();
    tell(&k, "quit");
    keeper_close(&k);
    return 0;
}
