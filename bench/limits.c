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
#define TRIES 80      /* a client begins before its server listens */
#define ANYWHERE UINT32_MAX
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
    if (processor != ANYWHERE)
        kvf_limits_pin(processor);
    alarm(SECONDS_MAX); /* it goes on through exec */
    execvp(args[0], args);
    _exit(127);
}

/* Runs it to its end. Its output into `text`; false: it failed. */
static bool finish(char *const *args, const struct kvf_limits_task *task, char *text, size_t size)
{
    int ends[2], status = 0;
    size_t used = 0;
    ssize_t n = 1;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    pid_t pid = start(args, task->settings, ends[1], task->host ? ANYWHERE : 1);
    close(ends[1]);
    while (n > 0 && used + 1 < size) {
        n = read(ends[0], text + used, size - 1 - used);
        used += n > 0 ? (size_t)n : 0;
    }
    text[used] = 0;
    close(ends[0]);
    return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

pid_t kvf_limits_start(const char *program, const char *address, unsigned port, const char *settings)
{
    char number[16];
    snprintf(number, sizeof number, "%u", port);
    char *const perftest[] = {"ucx_perftest", "-p", number, NULL};
    char *const iperf[] = {"iperf3", "-s", "-1", "-B", (char *)(uintptr_t)address, "-p", number, NULL};
    return start(strcmp(program, "iperf3") == 0 ? iperf : perftest, settings, -1, 0);
}

void kvf_limits_stop(pid_t pid)
{
    for (unsigned i = 0; i < TRIES; i++) {
        if (waitpid(pid, NULL, WNOHANG) == pid)
            return;
        usleep(2500);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* A server, and a client of that command line, without its address and port, which is tried until the server listens. */
static bool pair(char **client, const struct kvf_limits_task *task, char *text, size_t size)
{
    const struct kvf_limits_host *host = task->host;
    bool good = false;
    unsigned port = host ? host->start(host->arg, client[0]) : kvf_limits_port(), n = 0;
    pid_t pid = host || port == 0 ? 0 : kvf_limits_start(client[0], "127.0.0.1", port, task->settings);
    char number[16];
    snprintf(number, sizeof number, "%u", port);
    while (client[n])
        n++;
    client[n++] = "-p";
    client[n++] = number;
    if (strcmp(client[0], "iperf3") == 0)
        client[n++] = "-c";
    client[n++] = (char *)(uintptr_t)(host ? host->address : "127.0.0.1");
    for (unsigned i = 0; i < TRIES && !good && port > 0 && (host || pid > 0); i++) {
        usleep(25000);
        good = finish(client, task, text, size);
    }
    if (pid > 0)
        kvf_limits_stop(pid);
    if (host && port > 0)
        host->stop(host->arg);
    return good;
}

bool kvf_limits_ucx(const struct kvf_limits_task *task, struct kvf_limits_ucx *out)
{
    char size[16], messages[24], under_way[16], warm_up[16], text[OUTPUT_MAX];
    double n = task->seconds * task->guess / task->bytes, least = 2 * task->depth + 2;
    snprintf(size, sizeof size, "%u", task->bytes);
    snprintf(messages, sizeof messages, "%.0f", n < least ? least : n > 300000 ? 300000 : n);
    snprintf(under_way, sizeof under_way, "%u", task->depth);
    snprintf(warm_up, sizeof warm_up, "%u", task->bytes > 4u << 20 ? 1 : task->host ? task->depth : 20);
    char *client[ARGS_MAX] = {"ucx_perftest", "-t", (char *)(uintptr_t)task->test, "-s", size, "-n", messages, "-w", warm_up,
                              "-O", under_way, "-f", NULL};
    double field[6];
    if (!pair(client, task, text, sizeof text))
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

double kvf_limits_iperf(const struct kvf_limits_task *task)
{
    char size[16], all[24], parallel[16], text[OUTPUT_MAX];
    snprintf(size, sizeof size, "%u", task->bytes < 1u << 20 ? task->bytes : 1u << 20); /* it takes no more */
    snprintf(all, sizeof all, "%.0f", task->seconds * task->guess);
    snprintf(parallel, sizeof parallel, "%u", task->depth);
    char *client[ARGS_MAX] = {"iperf3", "-n", all, "-P", parallel, "-l", size, "-J", NULL};
    if (!pair(client, task, text, sizeof text))
        return 0;
    json_t *root = json_loads(text, 0, NULL);
    const json_t *sum = json_object_get(json_object_get(root, "end"), "sum_received");
    double rate = json_number_value(json_object_get(sum, "bits_per_second")) / 8;
    json_decref(root);
    return rate;
}
