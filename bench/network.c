/* Namespaces and a link that fails (network.h). */
#include "bench/network.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEAR_MAC "02:00:00:00:00:01"
#define FAR_MAC "02:00:00:00:00:02"
#define NO_MAC "02:00:00:00:00:99" /* nobody's: frames to it vanish */
#define NEAR_IP "10.77.0.1"
#define FAR_IP "10.77.0.2"
#define NEIGHBOUR(ip, mac, dev) "ip neigh replace " ip " lladdr " mac " dev " dev " nud permanent"

static const struct {
    bool far; /* where the commands are run */
    const char *begin, *end;
} faults[] = {
    [KVF_NETWORK_NEAR_DOWN] = {false, "ip link set near0 down", "ip link set near0 up"},
    [KVF_NETWORK_FAR_DOWN] = {true, "ip link set far0 down", "ip link set far0 up"},
    [KVF_NETWORK_FROM_NEAR] = {false, NEIGHBOUR(FAR_IP, NO_MAC, "near0"), NEIGHBOUR(FAR_IP, FAR_MAC, "near0")},
    [KVF_NETWORK_FROM_FAR] = {true, NEIGHBOUR(NEAR_IP, NO_MAC, "far0"), NEIGHBOUR(NEAR_IP, NEAR_MAC, "far0")},
};

static bool run(const char *command) { return system(command) == 0; }

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

/* As root, or as root of a user namespace. */
static bool leave(void)
{
    char map[64];
    if (unshare(CLONE_NEWNET) == 0)
        return see_devices();
    snprintf(map, sizeof map, "0 %u 1", (unsigned)geteuid());
    return unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 && write_file("/proc/self/setgroups", "deny") &&
           write_file("/proc/self/uid_map", map) && see_devices();
}

/* In a child: makes the far namespace and the link, tells by a byte, and stays until its input ends. */
static void far_child(int done, int go, const char *command)
{
    char byte = unshare(CLONE_NEWNET) == 0 && run(command) ? 'y' : 'n';
    if (write(done, &byte, 1) == 1 && read(go, &byte, 1) < 0)
        _exit(1);
    _exit(0);
}

static int far_make(void)
{
    char path[64], command[512], byte = 'n';
    int done[2], go[2];
    if (pipe2(done, O_CLOEXEC) != 0 || pipe2(go, O_CLOEXEC) != 0)
        return -1;
    snprintf(command, sizeof command,
             "ip link set lo up && ip link add far0 address " FAR_MAC " type veth peer name near0 address " NEAR_MAC
             " netns %d && ip addr add " FAR_IP "/24 dev far0 && ip link set far0 up",
             (int)getpid());
    pid_t pid = fork();
    if (pid == 0) {
        close(go[1]);
        far_child(done[1], go[0], command);
    }
    close(go[0]);
    close(done[1]);
    bool made = pid > 0 && read(done[0], &byte, 1) == 1 && byte == 'y';
    snprintf(path, sizeof path, "/proc/%d/ns/net", (int)pid);
    int fd = made ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    close(go[1]);
    close(done[0]);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    return fd;
}

bool kvf_network_open(struct kvf_network *network)
{
    network->far_fd = leave() ? far_make() : -1;
    return network->far_fd >= 0 && run("ip link set lo up && ip addr add " NEAR_IP "/24 dev near0 && ip link set near0 up") &&
           kvf_network_wait(KVF_NETWORK_NEAR);
}

bool kvf_network_go_far(const struct kvf_network *network)
{
    return setns(network->far_fd, CLONE_NEWNET) == 0 && see_devices() && kvf_network_wait(KVF_NETWORK_FAR);
}

bool kvf_network_fault_set(const struct kvf_network *network, enum kvf_network_fault fault, bool on)
{
    const char *command = on ? faults[fault].begin : faults[fault].end;
    int status = 1;
    if (!faults[fault].far)
        return run(command);
    pid_t pid = fork();
    if (pid == 0)
        _exit(setns(network->far_fd, CLONE_NEWNET) == 0 && run(command) ? 0 : 1);
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

bool kvf_network_wait(const char *device)
{
    bool up = false;
    for (unsigned tries = 0; !up && tries < 500; tries++) {
        struct ifreq request = {0};
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        snprintf(request.ifr_name, sizeof request.ifr_name, "%s", device);
        up = fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &request) == 0 && request.ifr_flags & IFF_RUNNING;
        if (fd >= 0)
            close(fd);
        usleep(up ? 0 : 10000);
    }
    return up;
}
