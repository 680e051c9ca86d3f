/* A bench between two machines (far.h): the door. Its lines are in far_lines.h. */
#include "bench/far.h"
#include "base/env.h"
#include "bench/bench.h"
#include "bench/far_lines.h"
#include "bench/limits.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/crypto.h>

#define LABEL "kvf bench"
#define WAIT_SECONDS 10
#define PROOF_SECONDS 3 /* for all of a caller's proof: others wait behind it */
#define HOST_MAX 256

/* One end of the door. */
struct door {
    int fd;
    double until; /* by when a line must be whole (kvf_bench_now); 0: each part of it in the socket's time */
    size_t used; /* bytes in `text` that were read, of a line and what follows it */
    char text[KVF_FAR_LINE_MAX];
};

struct kvf_far {
    struct door door;
    char host[HOST_MAX];
};

static volatile sig_atomic_t stopped;

static void on_signal(int number) { stopped = 1; }

static bool fail(const char *what, const char *why)
{
    fprintf(stderr, "kvf bench fabric: %s: %s\n", what, why);
    return false;
}

/* ------------------------------------------------------------------------------------------------- lines */

/* A line with its end. */
static bool say(struct door *d, const char *line, size_t bytes)
{
    return send(d->fd, line, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static bool say_word(struct door *d, const char *line) { return say(d, line, strlen(line)); }

static void wait_at_most(int fd, double seconds)
{
    long us = (long)(seconds * 1e6);
    struct timeval limit = {.tv_sec = us / 1000000, .tv_usec = us % 1000000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

/* The next line without its end, in `line`. False: there was none in time, it is too long, or the other is gone. */
static bool hear(struct door *d, char line[KVF_FAR_LINE_MAX])
{
    char *end;
    while (!(end = memchr(d->text, '\n', d->used))) {
        double left = d->until - kvf_bench_now();
        if (d->until > 0 && left < 1e-3)
            return false;
        if (d->until > 0)
            wait_at_most(d->fd, left);
        ssize_t n = d->used < sizeof d->text ? recv(d->fd, d->text + d->used, sizeof d->text - d->used, 0) : 0;
        if (n <= 0)
            return false;
        d->used += (size_t)n;
    }
    size_t length = (size_t)(end - d->text);
    memcpy(line, d->text, length);
    line[length] = 0;
    d->used -= length + 1;
    memmove(d->text, end + 1, d->used);
    return true;
}

/* What proves the secret to whoever drew the nonce. */
static bool proof_of(const struct kvf_secret *secret, const uint8_t *id, const uint8_t *nonce, uint8_t mac[KVF_SECRET_MAC_BYTES])
{
    uint8_t words[sizeof LABEL + KVF_FAR_NONCE_BYTES];
    memcpy(words, LABEL, sizeof LABEL);
    memcpy(words + sizeof LABEL, nonce, KVF_FAR_NONCE_BYTES);
    return kvf_secret_mac(secret, id, words, sizeof words, mac);
}

/* `where` in two: what stands before the last colon, and after it. */
static bool split(const char *where, char host[HOST_MAX], const char **port)
{
    const char *colon = strrchr(where, ':');
    size_t length = colon ? (size_t)(colon - where) : 0;
    if (length >= HOST_MAX)
        return false;
    memcpy(host, where, length);
    host[length] = 0;
    *port = colon ? colon + 1 : where;
    return **port != 0;
}

/* ------------------------------------------------------------------------------------------------- serving */

/* Whether the caller knows the secret. */
static bool proved(struct door *d, const struct kvf_secret *secret)
{
    char line[KVF_FAR_LINE_MAX];
    uint8_t nonce[KVF_FAR_NONCE_BYTES], id[KVF_SECRET_ID_BYTES], mac[KVF_SECRET_MAC_BYTES], right[KVF_SECRET_MAC_BYTES];
    if (!kvf_env_secure(kvf_env_real(), nonce, sizeof nonce))
        return false;
    return say(d, line, kvf_far_lines_challenge_write(line, nonce)) && hear(d, line) && kvf_far_lines_proof_read(line, id, mac) &&
           proof_of(secret, id, nonce, right) && CRYPTO_memcmp(mac, right, sizeof mac) == 0;
}

/* Starts a server of the program that the line names; what ran before ends. False: the caller is gone. */
static bool obey(struct door *d, const char *line, const char *address, const char *settings, pid_t *running)
{
    enum kvf_far_order order = kvf_far_lines_order_read(line);
    const char *program = order == KVF_FAR_IPERF ? "iperf3" : "ucx_perftest";
    char answer[32];
    unsigned port = 0;
    if (*running > 0)
        kvf_limits_stop(*running);
    *running = 0;
    if (order == KVF_FAR_STOP)
        return say_word(d, "ok\n");
    if (order != KVF_FAR_NONE && kvf_limits_have(program)) {
        port = kvf_limits_port();
        *running = port ? kvf_limits_start(program, address, port, settings) : 0;
    }
    snprintf(answer, sizeof answer, "ok %u\n", port);
    return say_word(d, *running > 0 ? answer : "no\n");
}

static void receive(int fd, const struct kvf_secret *secret, const struct kvf_far_node *node, const char *address,
                    const char *settings)
{
    struct door d = {.fd = fd, .until = kvf_bench_now() + PROOF_SECONDS};
    char line[KVF_FAR_LINE_MAX];
    pid_t running = 0;
    int on = 1;
    if (!proved(&d, secret)) {
        fail("a caller", "it does not prove the secret");
        return;
    }
    /* From now on it may be silent for as long as it measures; a machine that is gone is found by the kernel. */
    d.until = 0;
    wait_at_most(fd, 0);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &(int){WAIT_SECONDS}, sizeof(int));
    bool good = say(&d, line, kvf_far_lines_offer_write(line, node));
    while (good && !stopped && hear(&d, line))
        good = obey(&d, line, address, settings, &running);
    if (running > 0)
        kvf_limits_stop(running);
}

static int listen_at(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
    int on = 1;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return -1;
    int fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
                bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 4) == 0;
    freeaddrinfo(found);
    if (good)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

bool kvf_far_serve(const char *where, const struct kvf_secret *secret, const struct kvf_far_node *node, const char *settings)
{
    struct sigaction action = {.sa_handler = on_signal};
    struct sockaddr_in at;
    socklen_t bytes = sizeof at;
    char host[HOST_MAX];
    const char *port;
    if (!split(where, host, &port))
        return fail(where, "it is no [ADDRESS:]PORT");
    if (!*host)
        snprintf(host, sizeof host, "%s", kvf_secret_present(secret) ? "0.0.0.0" : "127.0.0.1");
    int fd = listen_at(host, port);
    if (fd < 0 || getsockname(fd, (struct sockaddr *)&at, &bytes) != 0)
        return fail(where, "cannot listen there");
    if (!kvf_secret_present(secret) && ntohl(at.sin_addr.s_addr) >> 24 != 127) {
        close(fd);
        return fail(where, "beyond loopback a secret is needed (--secret-file)");
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    printf("serving at %s:%u; measure with: kvf bench fabric --peer ADDRESS:%u\n", host, ntohs(at.sin_port), ntohs(at.sin_port));
    fflush(stdout);
    while (!stopped) {
        int caller = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (caller < 0)
            continue;
        receive(caller, secret, node, host, settings);
        close(caller);
    }
    close(fd);
    return true;
}

/* ------------------------------------------------------------------------------------------------- measuring */

static int call(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return -1;
    int fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        wait_at_most(fd, WAIT_SECONDS);
    if (fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) != 0) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

/* Proves the secret, and takes in what the other side has. */
static bool enter(struct door *d, const struct kvf_secret *secret, struct kvf_far_node *out)
{
    char line[KVF_FAR_LINE_MAX];
    uint8_t nonce[KVF_FAR_NONCE_BYTES], id[KVF_SECRET_ID_BYTES], mac[KVF_SECRET_MAC_BYTES];
    if (!hear(d, line) || !kvf_far_lines_challenge_read(line, nonce))
        return false;
    kvf_secret_id(secret, id);
    return proof_of(secret, id, nonce, mac) && say(d, line, kvf_far_lines_proof_write(line, id, mac)) && hear(d, line) &&
           kvf_far_lines_offer_read(line, out);
}

struct kvf_far *kvf_far_open(const char *where, const struct kvf_secret *secret, struct kvf_far_node *out)
{
    struct kvf_far *far = calloc(1, sizeof *far);
    const char *port;
    if (!far)
        return NULL;
    far->door.fd = split(where, far->host, &port) && *far->host ? call(far->host, port) : -1;
    if (far->door.fd >= 0 && enter(&far->door, secret, out))
        return far;
    fail(where, far->door.fd < 0 ? "nobody serves there (kvf bench fabric --serve)"
                                 : "it wants another secret (--secret-file), or is of another version");
    kvf_far_close(far);
    return NULL;
}

void kvf_far_close(struct kvf_far *far)
{
    if (far->door.fd >= 0)
        close(far->door.fd);
    free(far);
}

static unsigned far_start(void *arg, const char *program)
{
    struct kvf_far *far = arg;
    char line[KVF_FAR_LINE_MAX];
    snprintf(line, sizeof line, "start %s\n", program);
    return say_word(&far->door, line) && hear(&far->door, line) ? kvf_far_lines_port_read(line) : 0;
}

static void far_stop(void *arg)
{
    struct kvf_far *far = arg;
    char line[KVF_FAR_LINE_MAX];
    if (!say_word(&far->door, "stop\n") || !hear(&far->door, line))
        fail(far->host, "it does not answer any more");
}

struct kvf_limits_host kvf_far_host(struct kvf_far *far)
{
    return (struct kvf_limits_host){.address = far->host, .start = far_start, .stop = far_stop, .arg = far};
}
