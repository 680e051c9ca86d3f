/* Starts and stops a real etcd. Speaks to it with a plain socket, so that tests of every room can link this. */
#include "tests/support/etcd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HEALTHY_MS 10000
#define ATTEMPTS 3 /* a port may be taken between our look and etcd's */

struct kvf_test_etcd {
    pid_t pid; /* 0: not running */
    char directory[256];
    char url[64], peer_url[64];
    int port;
};

static void sleep_ms(unsigned ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* A port that nobody listens on; *fd holds it until closed. */
static int free_port(int *fd)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0 || bind(*fd, (struct sockaddr *)&address, size) || getsockname(*fd, (struct sockaddr *)&address, &size))
        return 0;
    return ntohs(address.sin_port);
}

static bool is_healthy(int port)
{
    static const char request[] = "GET /health HTTP/1.0\r\n\r\n";
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = 1};
    char answer[2048];
    size_t used = 0;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (!connect(fd, (struct sockaddr *)&address, sizeof address) && send(fd, request, sizeof request - 1, MSG_NOSIGNAL) > 0)
        for (ssize_t n; used < sizeof answer - 1 && (n = recv(fd, answer + used, sizeof answer - 1 - used, 0)) > 0;)
            used += (size_t)n;
    close(fd);
    answer[used] = 0;
    return strstr(answer, "\"true\"") != NULL;
}

/* In the child. */
static void become_etcd(const struct kvf_test_etcd *etcd, pid_t parent)
{
    char data[300], log[300], cluster[100];
    snprintf(data, sizeof data, "%s/data", etcd->directory);
    snprintf(log, sizeof log, "%s/log", etcd->directory);
    snprintf(cluster, sizeof cluster, "test=%s", etcd->peer_url);
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600), in = open("/dev/null", O_RDONLY);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (out < 0 || in < 0 || getppid() != parent)
        _exit(126);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    execlp("etcd", "etcd", "--name", "test", "--data-dir", data, "--unsafe-no-fsync", "--heartbeat-interval", "50",
           "--election-timeout", "250", "--listen-client-urls", etcd->url, "--advertise-client-urls", etcd->url,
           "--listen-peer-urls", etcd->peer_url, "--initial-advertise-peer-urls", etcd->peer_url, "--initial-cluster", cluster,
           "--logger", "zap", (char *)NULL);
    _exit(127);
}

/* True: healthy. *missing: there is no etcd on this machine. */
static bool run_etcd(struct kvf_test_etcd *etcd, bool *missing)
{
    pid_t parent = getpid();
    int status;
    *missing = false;
    etcd->pid = fork();
    if (etcd->pid == 0)
        become_etcd(etcd, parent);
    if (etcd->pid < 0) {
        etcd->pid = 0;
        return false;
    }
    for (unsigned waited = 0; waited < HEALTHY_MS; waited += 20) {
        if (waitpid(etcd->pid, &status, WNOHANG) == etcd->pid) {
            *missing = WIFEXITED(status) && WEXITSTATUS(status) == 127;
            etcd->pid = 0;
            return false;
        }
        if (is_healthy(etcd->port))
            return true;
        sleep_ms(20);
    }
    kvf_test_etcd_kill(etcd);
    return false;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info;
    (void)type;
    (void)walk;
    return remove(path);
}

static bool choose_ports(struct kvf_test_etcd *etcd)
{
    int client, peer;
    int peer_port = free_port(&peer);
    etcd->port = free_port(&client);
    if (peer >= 0)
        close(peer);
    if (client >= 0)
        close(client);
    snprintf(etcd->url, sizeof etcd->url, "http://127.0.0.1:%d", etcd->port);
    snprintf(etcd->peer_url, sizeof etcd->peer_url, "http://127.0.0.1:%d", peer_port);
    return etcd->port && peer_port;
}

struct kvf_test_etcd *kvf_test_etcd_start(void)
{
    const char *temporary = getenv("TMPDIR");
    struct kvf_test_etcd *etcd = calloc(1, sizeof *etcd);
    if (!etcd)
        return NULL;
    snprintf(etcd->directory, sizeof etcd->directory, "%s/kvf-etcd-XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(etcd->directory)) {
        fprintf(stderr, "etcd for tests: %s: %s\n", etcd->directory, strerror(errno));
        free(etcd);
        return NULL;
    }
    bool missing = false;
    for (unsigned i = 0; i < ATTEMPTS && !missing; i++)
        if (choose_ports(etcd) && run_etcd(etcd, &missing))
            return etcd;
    fprintf(stderr, "etcd for tests: %s\n", missing ? "etcd is not installed" : "it did not become healthy");
    kvf_test_etcd_stop(etcd);
    return NULL;
}

const char *kvf_test_etcd_url(const struct kvf_test_etcd *etcd)
{
    return etcd->url;
}

void kvf_test_etcd_kill(struct kvf_test_etcd *etcd)
{
    if (!etcd->pid)
        return;
    kill(etcd->pid, SIGKILL);
    while (waitpid(etcd->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    etcd->pid = 0;
}

bool kvf_test_etcd_restart(struct kvf_test_etcd *etcd)
{
    bool missing;
    kvf_test_etcd_kill(etcd);
    return run_etcd(etcd, &missing);
}

void kvf_test_etcd_pause(struct kvf_test_etcd *etcd, bool paused)
{
    int status;
    if (!etcd->pid)
        return;
    kill(etcd->pid, paused ? SIGSTOP : SIGCONT);
    if (paused && waitpid(etcd->pid, &status, WUNTRACED) == etcd->pid && !WIFSTOPPED(status))
        etcd->pid = 0; /* it ended instead */
}

void kvf_test_etcd_stop(struct kvf_test_etcd *etcd)
{
    if (!etcd)
        return;
    kvf_test_etcd_kill(etcd);
    nftw(etcd->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(etcd);
}
