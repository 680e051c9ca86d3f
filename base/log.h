/* Log lines to one FILE: time, level, the node's name, the text. An error is logged once, where it is first known.
 * Thread-safe: a line is written with one call. */
#ifndef KVF_BASE_LOG_H
#define KVF_BASE_LOG_H

#include <stdio.h>

enum kvf_log_level { KVF_LOG_ERROR, KVF_LOG_WARN, KVF_LOG_INFO, KVF_LOG_DEBUG };

struct kvf_log {
    enum kvf_log_level level; /* lines above it are dropped */
    char name[64];            /* the node's */
    FILE *out;                /* NULL drops everything */
};

void kvf_log_init(struct kvf_log *log, const char *name, enum kvf_log_level level, FILE *out);
void kvf_log_write(const struct kvf_log *log, enum kvf_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define kvf_log_error(log, ...) kvf_log_write(log, KVF_LOG_ERROR, __VA_ARGS__)
#define kvf_log_warn(log, ...) kvf_log_write(log, KVF_LOG_WARN, __VA_ARGS__)
#define kvf_log_info(log, ...) kvf_log_write(log, KVF_LOG_INFO, __VA_ARGS__)
#define kvf_log_debug(log, ...) kvf_log_write(log, KVF_LOG_DEBUG, __VA_ARGS__)
#endif
