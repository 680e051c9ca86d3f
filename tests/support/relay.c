/* Forwards connections, and counts and silences those that carry a watch. */
#include "tests/support/relay.h"

#include <arpa/inet.h>
#include <assert.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 16
#define WATCH "POST /v3/watch"

/* fd[0] is the client's, fd[1] ours to the server; both -1: free. */
struct connection {
    int fd[2];
    char head[sizeof WATCH - 1]; /* the first bytes that the client sent */
    size_t head_bytes;
    bool watch, silent;
};

struct kvf_test_relay {
    int listener;
    struct sockaddr_in server;
    char url[64];
    pthread_t thread;
    atomic_bool stop;
    pthread_mutex_t lock; /* what follows; held while bytes are forwarded, so that what was silenced is silent */
    struct connection connection[CONNECTIONS_MAX];
    unsigned watches;
};

static void end(struct connection *c)
{
    close(c->fd[0]);
    close(c->fd[1]);
    *c = (struct connection){.fd = {-1, -1}};
}

static void take_one(struct kvf_test_relay *relay)
{
    struct connection *c = relay->connection;
    struct timeval patience = {.tv_sec = 5};
    int client = accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC), server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (c < relay->connection + CONNECTIONS_MAX && c->fd[0] >= 0)
        c++;
    if (client < 0 || server < 0 || c == relay->connection + CONNECTIONS_MAX ||
        connect(server, (struct sockaddr *)&relay->server, sizeof relay->server)) {
        close(client);
        close(server);
        return;
    }
    setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(server, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    *c = (struct connection){.fd = {client, server}};
}

static void look_at(struct kvf_test_relay *relay, struct connection *c, const char *data, size_t bytes)
{
    size_t room = sizeof c->head - c->head_bytes, n = bytes < room ? bytes : room;
    memcpy(c->head + c->head_bytes, data, n);
    c->head_bytes += n;
    if (n && c->head_bytes == sizeof c->head && !memcmp(c->head, WATCH, sizeof c->head)) {
        c->watch = true;
        relay->watches++;
    }
}

/* What came from one side goes to the other; what a silent server says goes nowhere. */
static void forward(struct kvf_test_relay *relay, struct connection *c, unsigned from)
{
    char data[16384];
    ssize_t n = recv(c->fd[from], data, sizeof data, MSG_DONTWAIT);
    if (n <= 0) {
        end(c);
        return;
    }
    if (from == 0)
        look_at(relay, c, data, (size_t)n);
    else if (c->silent)
        return;
    for (ssize_t sent = 0, one; sent < n; sent += one) {
        one = send(c->fd[!from], data + sent, (size_t)(n - sent), MSG_NOSIGNAL);
        if (one <= 0) {
            end(c);
            return;
        }
    }
}

static void *relay_main(void *arg)
{
    struct kvf_test_relay *relay = arg;
    while (!atomic_load(&relay->stop)) {
        struct pollfd fds[1 + 2 * CONNECTIONS_MAX] = {{.fd = relay->listener, .events = POLLIN}};
        for (unsigned i = 0; i < 2 * CONNECTIONS_MAX; i++) /* only this thread opens and closes them: no lock */
            fds[1 + i] = (struct pollfd){.fd = relay->connection[i / 2].fd[i % 2], .events = POLLIN};
        if (poll(fds, 1 + 2 * CONNECTIONS_MAX, 50) <= 0)
            continue;
        pthread_mutex_lock(&relay->lock);
        for (unsigned i = 0; i < 2 * CONNECTIONS_MAX; i++)
            if (fds[1 + i].revents && relay->connection[i / 2].fd[i % 2] >= 0)
                forward(relay, &relay->connection[i / 2], i % 2);
        if (fds[0].revents)
            take_one(relay);
        pthread_mutex_unlock(&relay->lock);
    }
    return NULL;
}

static bool listen_on_loopback(struct kvf_test_relay *relay)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    relay->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (relay->listener < 0 || bind(relay->listener, (struct sockaddr *)&address, size) || listen(relay->listener, 8) ||
        getsockname(relay->listener, (struct sockaddr *)&address, &size))
        return false;
    snprintf(relay->url, sizeof relay->url, "http://127.0.0.1:%u", ntohs(address.sin_port));
    return true;
}

struct kvf_test_relay *kvf_test_relay_start(const char *url)
{
    struct kvf_test_relay *relay = calloc(1, sizeof *relay);
    const char *colon = strrchr(url, ':');
    char *end_of_port = NULL;
    unsigned long long port = colon ? strtoull(colon + 1, &end_of_port, 10) : 0;
    assert(relay && port && port <= UINT16_MAX && !*end_of_port);
    relay->server = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        relay->connection[i] = (struct connection){.fd = {-1, -1}};
    pthread_mutex_init(&relay->lock, NULL);
    if (listen_on_loopback(relay) && !pthread_create(&relay->thread, NULL, relay_main, relay))
        return relay;
    close(relay->listener);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
    return NULL;
}

const char *kvf_test_relay_url(const struct kvf_test_relay *relay)
{
    return relay->url;
}

unsigned kvf_test_relay_silence_watches(struct kvf_test_relay *relay)
{
    unsigned n = 0;
    pthread_mutex_lock(&relay->lock);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (relay->connection[i].watch && !relay->connection[i].silent) {
            relay->connection[i].silent = true;
            n++;
        }
    pthread_mutex_unlock(&relay->lock);
    return n;
}

unsigned kvf_test_relay_watches(struct kvf_test_relay *relay)
{
    pthread_mutex_lock(&relay->lock);
    unsigned n = relay->watches;
    pthread_mutex_unlock(&relay->lock);
    return n;
}

unsigned kvf_test_relay_silenced(struct kvf_test_relay *relay)
{
    unsigned n = 0;
    pthread_mutex_lock(&relay->lock);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        n += relay->connection[i].silent;
    pthread_mutex_unlock(&relay->lock);
    return n;
}

void kvf_test_relay_stop(struct kvf_test_relay *relay)
{
    if (!relay)
        return;
    atomic_store(&relay->stop, true);
    pthread_join(relay->thread, NULL);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (relay->connection[i].fd[0] >= 0)
            end(&relay->connection[i]);
    close(relay->listener);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
}
