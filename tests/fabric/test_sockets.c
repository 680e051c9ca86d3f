/* Congestion control of sockets that are known by an epoll set alone. */
#include "fabric/sockets.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* A connection from one address of this host to another: [0] the end that connected, [1] the one that was accepted. */
static void connect_pair(const char *from, const char *to, int ends[2])
{
    struct sockaddr_in near = {.sin_family = AF_INET}, far = {.sin_family = AF_INET};
    socklen_t bytes = sizeof far;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(inet_pton(AF_INET, from, &near.sin_addr) + inet_pton(AF_INET, to, &far.sin_addr), 2);
    assert_int_equal(bind(listener, (struct sockaddr *)&far, sizeof far), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&far, &bytes), 0);
    assert_int_equal(bind(ends[0], (struct sockaddr *)&near, sizeof near), 0);
    assert_int_equal(connect(ends[0], (struct sockaddr *)&far, sizeof far), 0);
    ends[1] = accept(listener, NULL, NULL);
    assert_true(ends[1] >= 0);
    close(listener);
}

static void name_of(int fd, char name[KVF_SOCKETS_NAME_MAX])
{
    socklen_t bytes = KVF_SOCKETS_NAME_MAX;
    memset(name, 0, KVF_SOCKETS_NAME_MAX);
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes), 0);
}

static void put(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    assert_int_equal(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event), 0);
}

/* What is chosen for a socket that lies in a set in a set, beside things that are no sockets. */
static void choose(int fd, struct kvf_sockets_congestion *out)
{
    int outer = epoll_create1(EPOLL_CLOEXEC), inner = epoll_create1(EPOLL_CLOEXEC), other = eventfd(0, EFD_CLOEXEC);
    put(outer, other);
    put(outer, inner);
    put(inner, other);
    put(inner, fd);
    kvf_sockets_congestion(outer, out);
    close(outer);
    close(inner);
    close(other);
}

static void a_connection_within_the_host_is_not_paced(void **state)
{
    char system[KVF_SOCKETS_NAME_MAX], name[KVF_SOCKETS_NAME_MAX];
    struct kvf_sockets_congestion chosen;
    int ends[2];
    connect_pair("127.0.0.1", "127.0.0.1", ends);
    name_of(ends[1], system);
    choose(ends[0], &chosen);
    name_of(ends[0], name);
    assert_string_equal(name, "reno");
    assert_string_equal(chosen.used, "reno");
    assert_string_equal(chosen.system, system);
    name_of(ends[1], name); /* which is in no set */
    assert_string_equal(name, system);
    close(ends[0]);
    close(ends[1]);
}

static void between_addresses_the_system_chooses(void **state)
{
    char system[KVF_SOCKETS_NAME_MAX], name[KVF_SOCKETS_NAME_MAX];
    struct kvf_sockets_congestion chosen;
    int ends[2];
    connect_pair("127.0.0.2", "127.0.0.1", ends);
    name_of(ends[1], system);
    choose(ends[0], &chosen);
    name_of(ends[0], name);
    assert_string_equal(name, system);
    assert_string_equal(chosen.used, system);
    close(ends[0]);
    close(ends[1]);
}

static void no_socket_is_no_error(void **state)
{
    struct kvf_sockets_congestion chosen;
    int fd = eventfd(0, EFD_CLOEXEC);
    choose(fd, &chosen);
    assert_string_equal(chosen.used, "");
    assert_non_null(chosen.why);
    kvf_sockets_congestion(-1, &chosen);
    assert_string_equal(chosen.used, "");
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_connection_within_the_host_is_not_paced),
        cmocka_unit_test(between_addresses_the_system_chooses),
        cmocka_unit_test(no_socket_is_no_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
