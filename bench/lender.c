/* Processes for benches of whole nodes. */
#include "bench/lender.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_TRIES 500 /* of 20 ms */

struct kvf_bench_etcd {
    pid_t pid;
    char directory[64], url[64], peer_url[64];
};

struct kvf_bench_lender {
    pid_t pid;
};

/* ---------------------------------------------------------------- etcd */

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* A port that nobody listens on just now; 0: none. */
static int free_port(void)
{
    struct sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool bound = fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 &&
                 getsockname(fd, (struct sockaddr *)&address, &size) == 0;
    if (fd >= 0)
        close(fd);
    return bound ? ntohs(address.sin_port) : 0;
}

static bool listens(int port)
{
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0)
        close(fd);
    return good;
}

static void become_etcd(const struct kvf_bench_etcd *etcd)
{
    char cluster[100];
    int null = open("/dev/null", O_RDWR);
    snprintf(cluster, sizeof cluster, "bench=%s", etcd->peer_url);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    execlp("etcd", "etcd", "--name", "bench", "--data-dir", etcd->directory, "--unsafe-no-fsync", "--listen-client-urls", etcd->url,
           "--advertise-client-urls", etcd->url, "--listen-peer-urls", etcd->peer_url, "--initial-advertise-peer-urls",
           etcd->peer_url, "--initial-cluster", cluster, "--logger", "zap", (char *)NULL);
    _exit(127);
}

struct kvf_bench_etcd *kvf_bench_etcd_start(void)
{
    struct kvf_bench_etcd *etcd = calloc(1, sizeof *etcd);
    int port = free_port(), peer_port = free_port();
    if (!etcd || !port || !peer_port)
        goto fail;
    snprintf(etcd->directory, sizeof etcd->directory, "/tmp/kvf-bench-XXXXXX");
    snprintf(etcd->url, sizeof etcd->url, "http://127.0.0.1:%d", port);
    snprintf(etcd->peer_url, sizeof etcd->peer_url, "http://127.0.0.1:%d", peer_port);
    if (!mkdtemp(etcd->directory))
        goto fail;
    etcd->pid = fork();
    if (etcd->pid == 0)
        become_etcd(etcd);
    for (unsigned i = 0; etcd->pid > 0 && i < START_TRIES; i++) {
        if (waitpid(etcd->pid, NULL, WNOHANG) == etcd->pid)
            etcd->pid = 0;
        else if (listens(port))
            return etcd;
        usleep(20000);
    }
    kvf_bench_etcd_stop(etcd);
    etcd = NULL;
fail:
    free(etcd);
    fprintf(stderr, "kvf bench: etcd does not start; is it installed?\n");
    return NULL;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    return remove(path);
}

void kvf_bench_etcd_stop(struct kvf_bench_etcd *etcd)
{
    if (!etcd)
        return;
    if (etcd->pid > 0) {
        kill(etcd->pid, SIGKILL);
        waitpid(etcd->pid, NULL, 0);
    }
    nftw(etcd->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(etcd);
}

/* ---------------------------------------------------------------- nodes */

struct kvf_node *kvf_bench_node_open(const struct kvf_bench_etcd *etcd, const char *name, const char *transport,
                                     const char *const *settings)
{
    char prefix[64];
    snprintf(prefix, sizeof prefix, "/kvf/bench/%s", transport ? transport : "");
    const char *const own[] = {"node.name", name, "admin.listen", "", "log.level", "error", "etcd.endpoints",
                               transport ? etcd->url : "", "etcd.prefix", prefix, "fabric.transport",
                               transport ? transport : "none", NULL};
    const char *const *const lists[] = {own, settings};
    struct kvf_config *config = NULL;
    struct kvf_node *node = NULL;
    enum kvf_status st = kvf_config_create(&config);
    for (unsigned list = 0; list < 2; list++)
        for (unsigned i = 0; st == KVF_OK && lists[list][i]; i += 2)
            st = kvf_config_set(config, lists[list][i], lists[list][i + 1]);
    if (st == KVF_OK)
        st = kvf_node_open(config, &node);
    if (st != KVF_OK)
        fprintf(stderr, "kvf bench: %s\n", config ? kvf_config_error(config) : kvf_status_text(st));
    kvf_config_destroy(config);
    return node;
}

static void become_lender(const struct kvf_bench_etcd *etcd, const char *transport, const char *lend_bytes, int up)
{
    const char *const settings[] = {"dram.bytes", "16M", "lend.bytes", lend_bytes, "block.count_max", "65536", NULL};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (kvf_bench_node_open(etcd, "lender", transport, settings) && write(up, "y", 1) == 1)
        for (;;)
            pause(); /* until it is killed */
    _exit(0);
}

struct kvf_bench_lender *kvf_bench_lender_start(const struct kvf_bench_etcd *etcd, const char *transport, const char *lend_bytes)
{
    struct kvf_bench_lender *lender = calloc(1, sizeof *lender);
    int up[2] = {-1, -1};
    char said = 0;
    if (!lender || pipe2(up, O_CLOEXEC) != 0) {
        free(lender);
        return NULL;
    }
    fflush(NULL);
    lender->pid = fork();
    if (lender->pid == 0) {
        close(up[0]);
        become_lender(etcd, transport, lend_bytes, up[1]);
    }
    close(up[1]);
    bool good = lender->pid > 0 && read(up[0], &said, 1) == 1;
    close(up[0]);
    if (good)
        return lender;
    fprintf(stderr, "kvf bench: no lender over %s\n", transport);
    kvf_bench_lender_stop(lender);
    return NULL;
}

void kvf_bench_lender_stop(struct kvf_bench_lender *lender)
{
    if (!lender)
        return;
    if (lender->pid > 0) {
        kill(lender->pid, SIGKILL);
        waitpid(lender->pid, NULL, 0);
    }
    free(lender);
}
