/* Mooncake Store's processes, and the lines that its reader is told and answers (mooncake.h). */
#include "bench/mooncake.h"
#include "bench/limits.h"

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#define START_MS 30000
#define ANSWER_MS 120000
#define MASTER_MS 15000 /* until it takes connections: the others are started anew as long */

struct child {
    pid_t pid;
    int in, out; /* what it reads; what it writes */
};

struct kvf_mooncake {
    struct child master, holder, reader;
    char line[4096];
};

static void *complain(struct kvf_mooncake *mooncake, const char *what, const char *why)
{
    fprintf(stderr, "kvf bench: Mooncake Store: %s: %s\n", what, why);
    if (mooncake)
        kvf_mooncake_stop(mooncake);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------- processes */

/* What it writes is read by child_line, or, `silent`, goes nowhere. */
static bool child_start(struct child *child, char *const *args, bool silent)
{
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0)
        return false;
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        return false;
    }
    child->pid = fork();
    if (child->pid == 0) {
        int none = open("/dev/null", O_WRONLY);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(in[0], STDIN_FILENO);
        dup2(silent ? none : out[1], STDOUT_FILENO);
        dup2(none, STDERR_FILENO);
        setenv("MC_TCP_ENABLE_CONNECTION_POOL", "1", 0); /* its faster way over TCP */
        setenv("GLOG_minloglevel", "2", 0);
        execvp(args[0], args);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    child->in = in[1];
    child->out = out[0];
    return child->pid > 0;
}

static void child_stop(struct child *child)
{
    if (child->pid <= 0)
        return;
    close(child->in);
    close(child->out);
    kill(child->pid, SIGKILL);
    waitpid(child->pid, NULL, 0);
    child->pid = 0;
}

/* A line that the process writes, without its end. False: none came in time. */
static bool child_line(const struct child *child, char *line, size_t size, int ms)
{
    for (size_t used = 0; used + 1 < size; used++) {
        struct pollfd fd = {.fd = child->out, .events = POLLIN};
        if (poll(&fd, 1, ms) <= 0 || read(child->out, line + used, 1) != 1)
            return false;
        line[used + 1] = 0;
        if (line[used] == '\n') {
            line[used] = 0;
            return true;
        }
    }
    return false;
}

/* The script lies beside this program's build folder, or where `make install` puts it. */
static bool script_path(char *path, size_t size)
{
    static const char *const places[] = {"../bench", "../../bench", "../share/kvf"};
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return false;
    self[n] = 0;
    const char *folder = dirname(self);
    for (unsigned i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(path, size, "%s/%s/mooncake_store.py", folder, places[i]);
        if (access(path, R_OK) == 0)
            return true;
    }
    return false;
}

/* The master comes with the wheel: beside the interpreter, or on the path. */
static void master_path(const char *python, char *path, size_t size)
{
    const char *slash = strrchr(python, '/');
    snprintf(path, size, "%.*smooncake_master", slash ? (int)(slash - python) + 1 : 0, python);
    if (slash && access(path, X_OK) != 0)
        snprintf(path, size, "mooncake_master");
}

/* Starts one of the script's roles, again while the master does not answer yet. */
static bool role_start(struct kvf_mooncake *m, struct child *child, char *const *args)
{
    for (int waited = 0; waited < MASTER_MS; waited += 500) {
        if (!child_start(child, args, false))
            return false;
        if (child_line(child, m->line, sizeof m->line, START_MS) && !strcmp(m->line, "ready"))
            return true;
        child_stop(child);
        usleep(500000);
    }
    return false;
}

struct kvf_mooncake *kvf_mooncake_start(const char *python, uint64_t held_bytes, uint64_t call_bytes)
{
    char script[PATH_MAX + 64], master[PATH_MAX], rpc[32], metrics[32], port[16], held[32], room[32];
    char interpreter[PATH_MAX];
    struct child probe = {0};
    snprintf(interpreter, sizeof interpreter, "%s", python);
    if (!script_path(script, sizeof script))
        return complain(NULL, "bench/mooncake_store.py", "it lies neither beside the build folder nor under share/kvf");
    char *there[] = {interpreter, "-c", "import mooncake.store; print('ready')", NULL};
    struct kvf_mooncake *m = calloc(1, sizeof *m);
    if (!m)
        return complain(NULL, "starting", "no memory");
    bool have = child_start(&probe, there, false) && child_line(&probe, m->line, sizeof m->line, START_MS) &&
                !strcmp(m->line, "ready");
    child_stop(&probe);
    if (!have)
        return complain(m, python, "finds no mooncake.store (pip install mooncake-transfer-engine-non-cuda, then --python FILE)");
    unsigned number = kvf_limits_port();
    snprintf(port, sizeof port, "%u", number);
    snprintf(rpc, sizeof rpc, "--rpc_port=%u", number);
    snprintf(metrics, sizeof metrics, "--metrics_port=%u", kvf_limits_port());
    snprintf(held, sizeof held, "%llu", (unsigned long long)held_bytes);
    snprintf(room, sizeof room, "%llu", (unsigned long long)call_bytes);
    master_path(python, master, sizeof master);
    char *master_args[] = {master, "--rpc_address=127.0.0.1", rpc, metrics, NULL};
    char *holder[] = {interpreter, script, "hold", port, held, NULL}, *reader[] = {interpreter, script, "read", port, room, NULL};
    if (!child_start(&m->master, master_args, true))
        return complain(m, master, "cannot be started");
    if (!role_start(m, &m->holder, holder) || !role_start(m, &m->reader, reader))
        return complain(m, "starting", *m->line ? m->line : "no answer");
    return m;
}

void kvf_mooncake_stop(struct kvf_mooncake *mooncake)
{
    child_stop(&mooncake->reader);
    child_stop(&mooncake->holder);
    child_stop(&mooncake->master);
    free(mooncake);
}

/* ------------------------------------------------------------------------------------------------- commands */

/* The reader's answer to a line; NULL, after a line on standard error: it failed. */
static json_t *obey(struct kvf_mooncake *m, const char *command)
{
    ssize_t length = (ssize_t)strlen(command);
    if (write(m->reader.in, command, (size_t)length) != length || !child_line(&m->reader, m->line, sizeof m->line, ANSWER_MS))
        return complain(NULL, command, "the reader does not answer");
    json_t *answer = json_loads(m->line, 0, NULL);
    const char *error = json_string_value(json_object_get(answer, "error"));
    if (answer && !error)
        return answer;
    complain(NULL, command, error ? error : "the reader's answer is not JSON");
    json_decref(answer);
    return NULL;
}

static bool do_all(struct kvf_mooncake *m, const char *verb, uint32_t bytes, unsigned count)
{
    char command[96];
    snprintf(command, sizeof command, "%s %u %u\n", verb, bytes, count);
    json_t *answer = obey(m, command);
    json_decref(answer);
    return answer != NULL;
}

bool kvf_mooncake_put(struct kvf_mooncake *mooncake, uint32_t bytes, unsigned count)
{
    return do_all(mooncake, "put", bytes, count);
}

bool kvf_mooncake_remove(struct kvf_mooncake *mooncake, uint32_t bytes, unsigned count)
{
    return do_all(mooncake, "drop", bytes, count);
}

bool kvf_mooncake_get(struct kvf_mooncake *mooncake, uint32_t bytes, unsigned count, unsigned batch, double seconds,
                      struct kvf_mooncake_rate *out)
{
    char command[128];
    snprintf(command, sizeof command, "get %u %u %u %.3f\n", bytes, count, batch, seconds);
    json_t *answer = obey(mooncake, command);
    if (!answer)
        return false;
    double objects = json_number_value(json_object_get(answer, "objects"));
    double took = json_number_value(json_object_get(answer, "seconds"));
    bool good = took > 0 && json_integer_value(json_object_get(answer, "wrong")) == 0 &&
                json_integer_value(json_object_get(answer, "missing")) == 0;
    if (good)
        *out = (struct kvf_mooncake_rate){.bytes_per_s = objects * bytes / took,
                                          .p50_us = json_number_value(json_object_get(answer, "call_p50_us"))};
    else
        complain(NULL, command, "objects were missing or wrong");
    json_decref(answer);
    return good;
}
