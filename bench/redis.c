/* Redis over its own protocol (redis.h): RESP arrays of bulk strings out, bulk strings in. */
#include "bench/redis.h"
#include "bench/limits.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define TRIES 100 /* of 20 ms, until the server listens */
#define OUT_BYTES (256u << 10)
#define IN_BYTES (256u << 10)
#define COMMAND_MAX 128 /* a GET, or a SET without its value */

struct kvf_redis {
    pid_t pid;
    int fd;
    uint8_t out[OUT_BYTES], in[IN_BYTES]; /* not yet written; read and not yet used */
    size_t out_n, in_n, in_at;
};

static void *complain(struct kvf_redis *redis, const char *why)
{
    fprintf(stderr, "kvf bench: redis: %s\n", why);
    if (redis)
        kvf_redis_stop(redis);
    return NULL;
}

static int connect_to(unsigned port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)port);
    for (unsigned i = 0; i < TRIES; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
        if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0) {
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            return fd;
        }
        if (fd >= 0)
            close(fd);
        usleep(20000);
    }
    return -1;
}

struct kvf_redis *kvf_redis_start(void)
{
    char port[16];
    unsigned number = kvf_limits_port();
    if (!kvf_limits_have("redis-server"))
        return complain(NULL, "redis-server is not installed");
    struct kvf_redis *redis = calloc(1, sizeof *redis);
    if (!redis)
        return complain(NULL, "no memory");
    redis->fd = -1;
    snprintf(port, sizeof port, "%u", number);
    redis->pid = fork();
    if (redis->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        kvf_limits_pin(0);
        execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
               "--logfile", "/dev/null", "--dir", "/tmp", (char *)NULL);
        _exit(127);
    }
    redis->fd = redis->pid > 0 ? connect_to(number) : -1;
    return redis->fd >= 0 ? redis : complain(redis, "it does not listen");
}

void kvf_redis_stop(struct kvf_redis *redis)
{
    if (redis->fd >= 0)
        close(redis->fd);
    if (redis->pid > 0) {
        kill(redis->pid, SIGKILL);
        waitpid(redis->pid, NULL, 0);
    }
    free(redis);
}

/* ------------------------------------------------------------------------------------------------- bytes */

/* Reads some more answers into the buffer, behind what is there. */
static bool more(struct kvf_redis *redis, int flags)
{
    memmove(redis->in, redis->in + redis->in_at, redis->in_n - redis->in_at);
    redis->in_n -= redis->in_at;
    redis->in_at = 0;
    ssize_t n = recv(redis->fd, redis->in + redis->in_n, sizeof redis->in - redis->in_n, flags);
    redis->in_n += n > 0 ? (size_t)n : 0;
    return n > 0;
}

/* Writes all of the buffer. Where the server takes no more because its answers are not read, some are. */
static bool flush(struct kvf_redis *redis)
{
    for (size_t at = 0; at < redis->out_n;) {
        ssize_t n = send(redis->fd, redis->out + at, redis->out_n - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        at += n > 0 ? (size_t)n : 0;
        struct pollfd fd = {.fd = redis->fd, .events = POLLOUT | (redis->in_n - redis->in_at < IN_BYTES ? POLLIN : 0)};
        if (n <= 0 && poll(&fd, 1, 5000) <= 0)
            return false;
        if (n <= 0 && fd.revents & POLLIN && !more(redis, MSG_DONTWAIT))
            return false;
    }
    redis->out_n = 0;
    return true;
}

static bool put(struct kvf_redis *redis, const void *data, size_t bytes)
{
    if (redis->out_n + bytes > sizeof redis->out && !flush(redis))
        return false;
    if (bytes > sizeof redis->out)
        return false;
    memcpy(redis->out + redis->out_n, data, bytes);
    redis->out_n += bytes;
    return true;
}

/* Bytes of an answer, into `to`: from the buffer, then from the socket straight to their place. */
static bool take(struct kvf_redis *redis, uint8_t *to, size_t bytes)
{
    size_t n = redis->in_n - redis->in_at < bytes ? redis->in_n - redis->in_at : bytes;
    memcpy(to, redis->in + redis->in_at, n);
    redis->in_at += n;
    while (n < bytes) {
        ssize_t got = recv(redis->fd, to + n, bytes - n, 0);
        if (got <= 0)
            return false;
        n += (size_t)got;
    }
    return true;
}

/* A line of an answer, without its end. */
static bool line(struct kvf_redis *redis, char *text, size_t size)
{
    for (;;) {
        const uint8_t *from = redis->in + redis->in_at, *end = memchr(from, '\n', redis->in_n - redis->in_at);
        if (end) {
            size_t length = (size_t)(end - from);
            snprintf(text, size, "%.*s", (int)length - 1, (const char *)from);
            redis->in_at += length + 1;
            return true;
        }
        if (redis->in_n - redis->in_at == sizeof redis->in || !more(redis, 0))
            return false;
    }
}

/* ------------------------------------------------------------------------------------------------- commands */

bool kvf_redis_set(struct kvf_redis *redis, uint64_t first, unsigned n, const void *data, size_t bytes)
{
    char text[COMMAND_MAX];
    bool good = true;
    for (unsigned i = 0; i < n && good; i++) {
        int length = snprintf(text, sizeof text, "*3\r\n$3\r\nSET\r\n$16\r\n%016llx\r\n$%zu\r\n",
                              (unsigned long long)(first + i), bytes);
        good = put(redis, text, (size_t)length) && put(redis, (const uint8_t *)data + i * bytes, bytes) && put(redis, "\r\n", 2);
    }
    good = good && flush(redis);
    for (unsigned i = 0; i < n && good; i++)
        good = line(redis, text, sizeof text) && !strcmp(text, "+OK");
    return good;
}

bool kvf_redis_get(struct kvf_redis *redis, const uint64_t *keys, unsigned n, void *to, size_t bytes)
{
    char text[COMMAND_MAX], want[COMMAND_MAX];
    uint8_t end[2];
    bool good = true;
    for (unsigned i = 0; i < n && good; i++) {
        int length = snprintf(text, sizeof text, "*2\r\n$3\r\nGET\r\n$16\r\n%016llx\r\n", (unsigned long long)keys[i]);
        good = put(redis, text, (size_t)length);
    }
    snprintf(want, sizeof want, "$%zu", bytes);
    good = good && flush(redis);
    for (unsigned i = 0; i < n && good; i++)
        good = line(redis, text, sizeof text) && !strcmp(text, want) && take(redis, (uint8_t *)to + i * bytes, bytes) &&
               take(redis, end, 2);
    return good;
}
