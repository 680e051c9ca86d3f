/* HTTP against a server of our own that answers, breaks off, or says nothing. */
#include "base/env.h"
#include "coordinator/http.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define ANSWER(body_length, body) "HTTP/1.1 200 OK\r\nContent-Length: " body_length "\r\n\r\n" body

/* What the server does with the n-th request: sends the text and keeps the connection, or, for NULL, closes it. */
struct server {
    int fd;
    char url[64];
    pthread_t thread;
    const char *const *script;
    unsigned n_script;
    atomic_uint requests;
    atomic_bool stop;
};

static bool read_request(struct server *s, int fd)
{
    char text[8192];
    size_t used = 0;
    while (!atomic_load(&s->stop)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        ssize_t n = recv(fd, text + used, sizeof text - 1 - used, 0);
        if (n <= 0)
            return false;
        used += (size_t)n;
        text[used] = 0;
        char *body = strstr(text, "\r\n\r\n"), *length = strstr(text, "Content-Length: ");
        if (body && strlen(body + 4) >= (length ? strtoul(length + 16, NULL, 10) : 0))
            return true;
    }
    return false;
}

static void *serve(void *arg)
{
    struct server *s = arg;
    while (!atomic_load(&s->stop)) {
        struct pollfd p = {.fd = s->fd, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        int fd = accept(s->fd, NULL, NULL);
        while (fd >= 0 && read_request(s, fd)) {
            unsigned n = atomic_fetch_add(&s->requests, 1);
            const char *text = n < s->n_script ? s->script[n] : NULL;
            if (!text)
                break;
            send(fd, text, strlen(text), MSG_NOSIGNAL);
        }
        if (fd >= 0)
            close(fd);
    }
    return NULL;
}

static void start(struct server *s, const char *const *script, unsigned n)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    *s = (struct server){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .script = script, .n_script = n};
    assert_int_equal(bind(s->fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(s->fd, 8), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&address, &size), 0);
    snprintf(s->url, sizeof s->url, "http://127.0.0.1:%d/x", ntohs(address.sin_port));
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void stop(struct server *s)
{
    atomic_store(&s->stop, true);
    pthread_join(s->thread, NULL);
    close(s->fd);
}

static enum kvf_status request(struct kvf_http *http, struct server *s, const char *body, uint64_t timeout_ns, char **text)
{
    char error[200];
    long code = 0;
    size_t bytes = 0;
    *text = NULL;
    enum kvf_status status = kvf_http_request(http, s->url, body, timeout_ns, &code, text, &bytes, error, sizeof error);
    if (status == KVF_OK) {
        assert_int_equal(code, 200);
        assert_int_equal(bytes, strlen(*text));
    }
    return status;
}

static void answers_come_whole_over_one_connection(void **state)
{
    static const char *const script[] = {ANSWER("5", "hello"), ANSWER("0", "")};
    struct server s;
    struct kvf_http *http;
    char *text;
    start(&s, script, 2);
    assert_int_equal(kvf_http_create(NULL, &http), KVF_OK);
    assert_int_equal(request(http, &s, "{}", 5 * KVF_SEC, &text), KVF_OK);
    assert_string_equal(text, "hello");
    kvf_free(text);
    assert_int_equal(request(http, &s, NULL, 5 * KVF_SEC, &text), KVF_OK);
    assert_string_equal(text, "");
    kvf_free(text);
    kvf_http_destroy(http);
    stop(&s);
}

/* The case that would make our own transaction look like somebody else's. */
static void a_request_that_broke_off_is_not_sent_again(void **state)
{
    static const char *const script[] = {ANSWER("2", "ok"), NULL, ANSWER("2", "no")};
    struct server s;
    struct kvf_http *http;
    char *text;
    start(&s, script, 3);
    assert_int_equal(kvf_http_create(NULL, &http), KVF_OK);
    assert_int_equal(request(http, &s, "{}", 5 * KVF_SEC, &text), KVF_OK);
    kvf_free(text);
    assert_int_equal(request(http, &s, "{}", 5 * KVF_SEC, &text), KVF_ERR_PEER_LOST);
    assert_int_equal(atomic_load(&s.requests), 2);
    assert_int_equal(request(http, &s, "{}", 5 * KVF_SEC, &text), KVF_OK); /* the next one is a new request */
    kvf_free(text);
    kvf_http_destroy(http);
    stop(&s);
}

static void silence_ends_at_the_deadline(void **state)
{
    static const char *const script[] = {""};
    struct server s;
    struct kvf_http *http;
    char *text;
    uint64_t began = kvf_now(kvf_env_real());
    start(&s, script, 1);
    assert_int_equal(kvf_http_create(NULL, &http), KVF_OK);
    assert_int_equal(request(http, &s, "{}", 150 * KVF_MS, &text), KVF_ERR_DEADLINE);
    assert_true(kvf_now(kvf_env_real()) - began < 2 * KVF_SEC);
    kvf_http_destroy(http);
    stop(&s);
}

static void half_an_answer_is_no_answer(void **state)
{
    static const char *const script[] = {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", NULL};
    struct server s;
    struct kvf_http *http;
    char *text;
    start(&s, script, 2);
    assert_int_equal(kvf_http_create(NULL, &http), KVF_OK);
    assert_int_equal(request(http, &s, "{}", 150 * KVF_MS, &text), KVF_ERR_DEADLINE);
    assert_null(text);
    kvf_http_destroy(http);
    stop(&s);
}

struct lines {
    unsigned n;
    char last[64];
    bool stop;
};

static void on_line(void *arg, const char *text, size_t bytes)
{
    struct lines *l = arg;
    assert_int_equal(strlen(text), bytes);
    l->n++;
    snprintf(l->last, sizeof l->last, "%s", text);
}

static bool should_stop(void *arg)
{
    return ((struct lines *)arg)->stop;
}

static void a_stream_is_handed_out_by_lines(void **state)
{
    static const char *const script[] = {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n6\r\ntwo\nth\r\n9\r\nree\n\nfour\r\n0\r\n\r\n"};
    struct server s;
    struct kvf_http *http;
    struct lines l = {.n = 0};
    char error[200];
    start(&s, script, 1);
    assert_int_equal(kvf_http_create(NULL, &http), KVF_OK);
    assert_int_equal(kvf_http_stream(http, s.url, "{}", on_line, should_stop, &l, error, sizeof error), KVF_OK);
    assert_int_equal(l.n, 4);
    assert_string_equal(l.last, "four");
    kvf_http_destroy(http);
    stop(&s);
}

static void *interrupt_soon(void *http)
{
    usleep(100000);
    kvf_http_interrupt(http);
    return NULL;
}

static void a_stream_ends_when_told(void **state)
{
    static const char *const script[] = {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n",
                                         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n"};
    struct server s;
    struct kvf_http *http;
    struct lines l = {.stop = true};
    char error[200];
    pthread_t thread;
    start(&s, script, 2);
    assert_int_equal(kvf_http_create(NULL, &http), KVF_OK);
    assert_int_equal(kvf_http_stream(http, s.url, "{}", on_line, should_stop, &l, error, sizeof error), KVF_OK);
    l.stop = false;
    assert_int_equal(pthread_create(&thread, NULL, interrupt_soon, http), 0);
    uint64_t began = kvf_now(kvf_env_real());
    assert_int_equal(kvf_http_stream(http, s.url, "{}", on_line, should_stop, &l, error, sizeof error), KVF_CANCELLED);
    assert_true(kvf_now(kvf_env_real()) - began < 2 * KVF_SEC);
    pthread_join(thread, NULL);
    kvf_http_destroy(http);
    stop(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_come_whole_over_one_connection), cmocka_unit_test(a_request_that_broke_off_is_not_sent_again),
        cmocka_unit_test(silence_ends_at_the_deadline),           cmocka_unit_test(half_an_answer_is_no_answer),
        cmocka_unit_test(a_stream_is_handed_out_by_lines),        cmocka_unit_test(a_stream_ends_when_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
