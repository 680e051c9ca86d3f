/* ucx_perftest and iperf3 as limits (limits.h). */
#include "bench/limits.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#define ARGS_MAX 24
#define GUESS 4e9     /* bytes per second: how much to send for about so many seconds */
#define TRIES 40      /* a client begins before its server listens */
#define SECONDS_MAX 20 /* a program that takes longer is ended */
#define OUTPUT_MAX 65536

void kvf_limits_pin(unsigned number)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(number % (unsigned)sysconf(_SC_NPROCESSORS_ONLN), &set);
    (void)sched_setaffinity(0, sizeof set, &set); /* refused: it runs anywhere */
}

bool kvf_limits_have(const char *program)
{
    char path[512];
    const char *folders = getenv("PATH");
    for (const char *at = folders ? folders : ""; *at;) {
        int length = (int)strcspn(at, ":");
        snprintf(path, sizeof path, "%.*s/%s", length, at, program);
        if (access(path, X_OK) == 0)
            return true;
        at += length;
        at += *at == ':';
    }
    return false;
}

unsigned kvf_limits_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && bind(fd, (struct sockaddr *)&address, bytes) == 0 &&
                getsockname(fd, (struct sockaddr *)&address, &bytes) == 0;
    if (fd >= 0)
        close(fd);
    return good ? ntohs(address.sin_port) : 0;
}

/* Starts a program with UCX's settings in its environment; its output goes to `out`, or nowhere (-1). */
static pid_t start(char *const *args, const char *settings, int out, unsigned processor)
{
    char words[2048], *save = NULL;
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    int none = open("/dev/null", O_RDWR);
    dup2(none, STDIN_FILENO);
    dup2(out >= 0 ? out : none, STDOUT_FILENO);
    dup2(none, STDERR_FILENO);
    snprintf(words, sizeof words, "%s", settings);
    for (char *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save))
        putenv(word);
    kvf_limits_pin(processor);
    alarm(SECONDS_MAX); /* it goes on through exec */
    execvp(args[0], args);
    _exit(127);
}

/* Runs it to its end. Its output into `text`; false: it failed. */
static bool finish(char *const *args, const char *settings, char *text, size_t size)
{
    int ends[2], status = 0;
    size_t used = 0;
    ssize_t n = 1;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    pid_t pid = start(args, settings, ends[1], 1);
    close(ends[1]);
    while (n > 0 && used + 1 < size) {
        n = read(ends[0], text + used, size - 1 - used);
        used += n > 0 ? (size_t)n : 0;
    }
    text[used] = 0;
    close(ends[0]);
    return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* A server, and a client that is tried until the server listens. */
static bool pair(char *const *server, char *const *client, const char *settings, char *text, size_t size)
{
    bool good = false, ended = false;
    pid_t pid = start(server, settings, -1, 0);
    for (unsigned i = 0; i < TRIES && !good && !ended && pid > 0; i++) {
        usleep(25000);
        ended = waitpid(pid, NULL, WNOHANG) == pid;
        good = !ended && finish(client, settings, text, size);
    }
    for (unsigned i = 0; i < TRIES && good && !ended; i++) {
        usleep(5000);
        ended = waitpid(pid, NULL, WNOHANG) == pid;
    }
    if (pid > 0 && !ended) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    return good;
}

bool kvf_limits_ucx(const char *settings, const char *test, uint32_t bytes, uint32_t depth, double seconds,
                    struct kvf_limits_ucx *out)
{
    char port[16], size[16], messages[24], under_way[16], text[OUTPUT_MAX];
    double n = seconds * GUESS / bytes;
    snprintf(port, sizeof port, "%u", kvf_limits_port());
    snprintf(size, sizeof size, "%u", bytes);
    snprintf(messages, sizeof messages, "%.0f", n < 4 ? 4 : n > 300000 ? 300000 : n);
    snprintf(under_way, sizeof under_way, "%u", depth);
    char *server[ARGS_MAX] = {"ucx_perftest", "-p", port, NULL};
    char *client[ARGS_MAX] = {"ucx_perftest", "127.0.0.1", "-p", port, "-t", (char *)(uintptr_t)test, "-s", size,
                              "-n", messages, "-w", bytes > 4u << 20 ? "1" : "20", "-O", under_way, "-f", NULL};
    double field[6];
    if (!pair(server, client, settings, text, sizeof text))
        return false;
    /* The last line: messages, the median, average and overall time of one in microseconds, average and overall MiB/s. */
    char *line = text, *end = text + strlen(text);
    while (end > text && end[-1] == '\n')
        *--end = 0;
    if (strrchr(text, '\n'))
        line = strrchr(text, '\n') + 1;
    if (sscanf(line, "%lf %lf %lf %lf %lf %lf", &field[0], &field[1], &field[2], &field[3], &field[4], &field[5]) != 6)
        return false;
    *out = (struct kvf_limits_ucx){.bytes_per_s = field[5] * 1048576, .p50_us = field[1]};
    return field[5] > 0;
}

double kvf_limits_iperf(unsigned streams, uint32_t bytes, double seconds)
{
    char port[16], size[16], all[24], parallel[16], text[OUTPUT_MAX];
    snprintf(port, sizeof port, "%u", kvf_limits_port());
    snprintf(size, sizeof size, "%u", bytes < 1u << 20 ? bytes : 1u << 20); /* it takes no more */
    snprintf(all, sizeof all, "%.0f", seconds * GUESS);
    snprintf(parallel, sizeof parallel, "%u", streams);
    char *server[ARGS_MAX] = {"iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port, NULL};
    char *client[ARGS_MAX] = {"iperf3", "-c", "127.0.0.1", "-p", port, "-n", all, "-P", parallel, "-l", size, "-J",
                              NULL};
    if (!pair(server, client, "", text, sizeof text))
        return 0;
    json_t *root = json_loads(text, 0, NULL);
    const json_t *sum = json_object_get(json_object_get(root, "end"), "sum_received");
    double rate = json_number_value(json_object_get(sum, "bits_per_second")) / 8;
    json_decref(root);
    return rate;
}
