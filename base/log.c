/* One log line, one write. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#define LINE_MAX_BYTES 2048

void kvf_log_init(struct kvf_log *log, const char *name, enum kvf_log_level level, FILE *out)
{
    *log = (struct kvf_log){.level = level, .out = out};
    snprintf(log->name, sizeof log->name, "%s", name ? name : "");
}

/* Texts may hold what a peer or a file said: a line stays one line, and a terminal gets no control codes. */
static void make_printable(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

void kvf_log_write(const struct kvf_log *log, enum kvf_log_level level, const char *format, ...)
{
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    if (!log->out || level > log->level)
        return;
    int saved_errno = errno;

    struct timespec t;
    struct tm day;
    char line[LINE_MAX_BYTES];
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &day);
    size_t used = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &day);
    used += (size_t)snprintf(line + used, sizeof line - used, ".%03ldZ %s %s: ", t.tv_nsec / 1000000, levels[level], log->name);

    va_list args;
    va_start(args, format);
    int n = vsnprintf(line + used, sizeof line - used, format, args);
    va_end(args);
    if (n < 0)
        snprintf(line + used, sizeof line - used, "(a log line that cannot be formatted: %s)", format);
    else if ((size_t)n >= sizeof line - used)
        memcpy(line + sizeof line - 4, "...", 4);
    make_printable(line);
    size_t length = strlen(line);
    if (length == sizeof line - 1)
        length--;
    line[length] = '\n';
    fwrite(line, 1, length + 1, log->out);
    errno = saved_errno;
}
