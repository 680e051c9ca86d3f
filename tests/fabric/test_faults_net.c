/* Links that are set down, and that drop what goes one way, over real UCX: two network namespaces and a pair of virtual
 * devices between them, which this program makes and which go with it. Skips where the kernel does not let us. */
#include "tests/fabric/faults.h"

#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>

#define LATE_NS (20 * KVF_MS)
#define HEAL_NS (15 * KVF_SEC) /* an attempt to connect that began on the dead link, and the next one */
#define OUR_MAC "02:00:00:00:00:01"
#define ITS_MAC "02:00:00:00:00:02"
#define NO_MAC "02:00:00:00:00:99" /* nobody's: frames to it vanish */
#define OUR_IP "10.77.0.1"
#define ITS_IP "10.77.0.2"

static struct trial trial;
static int far_fd = -1; /* the namespace of the peer */

/* ------------------------------------------------------------------------------------------------ namespaces */
static bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return done;
}

/* UCX looks for network devices below /sys, which shows those of the namespace that it was mounted in. */
static bool see_devices(void)
{
    return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("sysfs", "/sys", "sysfs", 0, NULL) == 0;
}

/* This process moves to a network of its own: as root, or as root of a user namespace where that is allowed. */
static bool leave_network(void)
{
    char map[64];
    if (unshare(CLONE_NEWNET) == 0)
        return see_devices();
    snprintf(map, sizeof map, "0 %u 1", (unsigned)geteuid());
    return unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 && write_file("/proc/self/setgroups", "deny") &&
           write_file("/proc/self/uid_map", map) && see_devices();
}

static bool run(const char *command) { return system(command) == 0; }

/* The kernel says a moment later that a link is up at both ends; until then UCX passes over the device. */
static bool running(const char *device)
{
    bool up = false;
    for (unsigned tries = 0; !up && tries < 500; tries++) {
        struct ifreq request = {0};
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        snprintf(request.ifr_name, sizeof request.ifr_name, "%s", device);
        up = fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &request) == 0 && request.ifr_flags & IFF_RUNNING;
        close(fd);
        usleep(up ? 0 : 10000);
    }
    return up;
}

/* The link between both namespaces. The child that makes the second one is gone when this returns; a descriptor keeps it. */
static bool far_make(void)
{
    char path[64], command[512];
    int done[2], go[2];
    if (pipe2(done, O_CLOEXEC) != 0 || pipe2(go, O_CLOEXEC) != 0)
        return false;
    snprintf(command, sizeof command,
             "ip link set lo up && ip link add far0 address " ITS_MAC " type veth peer name near0 address " OUR_MAC
             " netns %d && ip addr add " ITS_IP "/24 dev far0 && ip link set far0 up",
             (int)getpid());
    pid_t pid = fork();
    if (pid == 0) {
        close(go[1]);
        char byte = unshare(CLONE_NEWNET) == 0 && run(command) ? 'y' : 'n';
        if (write(done[1], &byte, 1) == 1 && read(go[0], &byte, 1) < 0)
            _exit(1);
        _exit(0);
    }
    char byte = 'n';
    close(go[0]);
    bool made = pid > 0 && read(done[0], &byte, 1) == 1 && byte == 'y';
    snprintf(path, sizeof path, "/proc/%d/ns/net", (int)pid);
    far_fd = made ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    close(go[1]);
    close(done[0]);
    close(done[1]);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    return far_fd >= 0 && run("ip link set lo up && ip addr add " OUR_IP "/24 dev near0 && ip link set near0 up");
}

static void far_enter(void)
{
    if (setns(far_fd, CLONE_NEWNET) != 0 || !see_devices() || !running("far0"))
        _exit(6);
}

static void far_run(const char *command)
{
    int status = 1;
    pid_t pid = fork();
    if (pid == 0)
        _exit(setns(far_fd, CLONE_NEWNET) == 0 && run(command) ? 0 : 1);
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

/* ------------------------------------------------------------------------------------------------ faults */
struct fault {
    const char *name;
    const char *begin, *end;     /* commands here */
    const char *far_begin, *far_end; /* ... and at the peer; NULL: none */
};

#define NEIGHBOUR(ip, mac, dev) "ip neigh replace " ip " lladdr " mac " dev " dev " nud permanent"

static const struct fault link_down = {"our link down", "ip link set near0 down", "ip link set near0 up", NULL, NULL};
static const struct fault far_down = {"the peer's link down", NULL, NULL, "ip link set far0 down", "ip link set far0 up"};
static const struct fault deaf_peer = {"what we send is dropped", NEIGHBOUR(ITS_IP, NO_MAC, "near0"),
                                       NEIGHBOUR(ITS_IP, ITS_MAC, "near0"), NULL, NULL};
static const struct fault mute_peer = {"what the peer sends is dropped", NULL, NULL, NEIGHBOUR(OUR_IP, NO_MAC, "far0"),
                                       NEIGHBOUR(OUR_IP, OUR_MAC, "far0")};

static void fault_set(const struct fault *f, bool on)
{
    const char *here = on ? f->begin : f->end, *there = on ? f->far_begin : f->far_end;
    if (here)
        assert_true(run(here));
    if (there)
        far_run(there);
}

/* Reads and large calls are under way when the link goes. All end at their deadline, the peer is down after dead_after at the
 * latest, and nothing of what ended is written or sent when the link is there again. */
static void cut_off(const struct fault *fault, const char *kind)
{
    struct trial *t = &trial;
    interface = "near0";
    assert_true(running(interface));
    trial_begin(t, "islander", kind, "far0", far_enter);
    fault_set(fault, true);
    uint64_t start = now_ns();
    ask_reads(t, READS / 2, 300 * KVF_MS);
    ask_sinks(t, SINKS / 2, 600 * KVF_MS);
    poll_until(&t->node, &t->ended, t->n, 5 * KVF_SEC);
    assert_ended_in_time(t, LATE_NS);
    poll_until(&t->node, &t->node.downs, 1, 5 * KVF_SEC);
    assert_int_equal(t->node.downs, 1);
    uint64_t down = t->node.down_ns - start;
    assert_true(down < 2500 * KVF_MS + 5 * atomic_load(&t->twin.stolen_ns)); /* a pause of our own begins silence anew */
    fault_set(fault, false);
    start = now_ns();
    meet_again(t);
    uint64_t met = now_ns() - start;
    pull_and_check(&t->node, t->peer, 64 << 10, 16);
    print_message("%s, %s: the peer was down after %.0f ms; %.0f ms after the link was back it was met again\n", fault->name, kind,
                  (double)down / 1e6, (double)met / 1e6);
    assert_true(met < HEAL_NS + 5 * atomic_load(&t->twin.stolen_ns));
    poll_for(t, 200 * KVF_MS);
    assert_untouched(t);
    assert_peer_saw_whole_messages(t);
    trial_end(t);
}

static void our_link_goes_down(void **state) { cut_off(&link_down, "tcp"); }
static void the_peers_link_goes_down(void **state) { cut_off(&far_down, "tcp"); }
static void what_we_send_is_dropped(void **state) { cut_off(&deaf_peer, "tcp"); }
static void what_the_peer_sends_is_dropped(void **state) { cut_off(&mute_peer, "tcp"); }
static void the_link_beside_shared_memory_goes_down(void **state) { cut_off(&far_down, "shm"); }

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "peer") == 0)
        return child_main(argc, argv);
    if (no_ucx()) {
        printf("skipped: UCX is not built in\n");
        return 77;
    }
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        return 1;
    if (!leave_network() || !far_make()) {
        printf("skipped: network namespaces and virtual links cannot be made here (they take root, or user namespaces, and ip)\n");
        return 77;
    }
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(our_link_goes_down),
        cmocka_unit_test(the_peers_link_goes_down),
        cmocka_unit_test(what_we_send_is_dropped),
        cmocka_unit_test(what_the_peer_sends_is_dropped),
        cmocka_unit_test(the_link_beside_shared_memory_goes_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
