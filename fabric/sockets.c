/* Sockets in epoll sets, and their congestion control (sockets.h). */
#include "fabric/sockets.h"

#include <assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define DEPTH_MAX 3 /* of sets in sets */
#define LOCAL "reno"

/* Whether both ends of the connection have one address: it never leaves the host. */
static bool stays_here(int fd)
{
    struct sockaddr_storage near = {0}, far = {0};
    socklen_t near_bytes = sizeof near, far_bytes = sizeof far;
    if (getsockname(fd, (struct sockaddr *)&near, &near_bytes) != 0 || getpeername(fd, (struct sockaddr *)&far, &far_bytes) != 0 ||
        near.ss_family != far.ss_family)
        return false;
    const struct sockaddr_in *near4 = (const struct sockaddr_in *)&near, *far4 = (const struct sockaddr_in *)&far;
    const struct sockaddr_in6 *near6 = (const struct sockaddr_in6 *)&near, *far6 = (const struct sockaddr_in6 *)&far;
    if (near.ss_family == AF_INET)
        return near4->sin_addr.s_addr == far4->sin_addr.s_addr;
    return near.ss_family == AF_INET6 && memcmp(&near6->sin6_addr, &far6->sin6_addr, sizeof near6->sin6_addr) == 0;
}

static bool name_of(int fd, char name[KVF_SOCKETS_NAME_MAX])
{
    socklen_t bytes = KVF_SOCKETS_NAME_MAX;
    memset(name, 0, KVF_SOCKETS_NAME_MAX);
    bool known = getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes) == 0;
    name[KVF_SOCKETS_NAME_MAX - 1] = 0;
    return known && name[0];
}

static void choose(int fd, struct kvf_sockets_congestion *out)
{
    char before[KVF_SOCKETS_NAME_MAX], after[KVF_SOCKETS_NAME_MAX];
    if (!name_of(fd, before))
        return; /* not TCP */
    bool here = stays_here(fd);
    bool set = here && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, LOCAL, sizeof LOCAL - 1) == 0;
    if (out->system[0] || !name_of(fd, after))
        return;
    memcpy(out->system, before, sizeof before);
    memcpy(out->used, after, sizeof after);
    if (!here)
        out->why = "the system's, as the peer has another address";
    else
        out->why = set ? "on one host no wire needs to be spared" : "the system's, which cannot be changed";
}

static void walk(int epoll_fd, unsigned depth, struct kvf_sockets_congestion *out)
{
    char path[64], line[256];
    int fd;
    assert(depth <= DEPTH_MAX);
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", epoll_fd);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "tfd: %d", &fd) != 1 || fd < 0)
            continue;
        choose(fd, out);
        if (depth < DEPTH_MAX)
            walk(fd, depth + 1, out);
    }
    if (f)
        fclose(f);
}

void kvf_sockets_congestion(int epoll_fd, struct kvf_sockets_congestion *out)
{
    *out = (struct kvf_sockets_congestion){.why = "its socket was not found"};
    walk(epoll_fd, 1, out);
}
