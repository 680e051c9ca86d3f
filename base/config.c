/* The configuration object: settings and the last failure's line. Every change is made on a copy and taken over whole. */
#include "base/config.h"
#include "base/config_file.h"
#include "base/config_value.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ERROR_MAX_BYTES 1024

struct kvf_config {
    struct kvf_settings settings;
    char error[ERROR_MAX_BYTES];
};

enum kvf_status kvf_config_create(struct kvf_config **out)
{
    if (!out)
        return KVF_ERR_INVALID;
    struct kvf_config *config = calloc(1, sizeof *config);
    if (!config)
        return KVF_ERR_NO_MEMORY;
    kvf_config_value_defaults(&config->settings);
    *out = config;
    return KVF_OK;
}

void kvf_config_destroy(struct kvf_config *config)
{
    free(config);
}

const struct kvf_settings *kvf_config_settings(const struct kvf_config *config)
{
    return &config->settings;
}

const char *kvf_config_error(const struct kvf_config *config)
{
    return config ? config->error : "";
}

void kvf_config_fail(struct kvf_config *config, const char *format, ...)
{
    char text[ERROR_MAX_BYTES]; /* an argument may be the present error */
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0)
        text[0] = 0;
    /* What is quoted comes from files: the message stays one line and sends no codes to a terminal. */
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    memcpy(config->error, text, strlen(text) + 1);
}

/* Reads a whole file that is at most KVF_CONFIG_FILE_MAX long into *text, which the caller frees. Opened without waiting:
 * a pipe that nobody writes must not hold the caller. */
static enum kvf_status read_file(struct kvf_config *config, const char *path, char **text, size_t *bytes)
{
    enum kvf_status status = KVF_ERR_CONFIG;
    struct stat about;
    size_t used = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        status = errno == ENOENT || errno == ENOTDIR ? KVF_ERR_NOT_FOUND : KVF_ERR_CONFIG;
        kvf_config_fail(config, "%.256s: cannot be opened: %s", path, strerror(errno));
        return status;
    }
    char *buffer = malloc(KVF_CONFIG_FILE_MAX + 1);
    if (!buffer) {
        kvf_config_fail(config, "%.256s: out of memory", path);
        status = KVF_ERR_NO_MEMORY;
        goto close_file;
    }
    if (fstat(fd, &about) || !(S_ISREG(about.st_mode) || S_ISCHR(about.st_mode))) {
        kvf_config_fail(config, "%.256s: not a file", path);
        goto free_buffer;
    }
    while (used <= KVF_CONFIG_FILE_MAX) {
        ssize_t n = read(fd, buffer + used, KVF_CONFIG_FILE_MAX + 1 - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            kvf_config_fail(config, "%.256s: cannot be read: %s", path, strerror(errno));
            goto free_buffer;
        }
        if (!n)
            break;
        used += (size_t)n;
    }
    *text = buffer;
    *bytes = used;
    close(fd);
    return KVF_OK;

free_buffer:
    free(buffer);
close_file:
    close(fd);
    return status;
}

enum kvf_status kvf_config_load(struct kvf_config *config, const char *path)
{
    if (!config || !path)
        return KVF_ERR_INVALID;
    char *text = NULL, error[ERROR_MAX_BYTES] = "";
    size_t bytes = 0;
    enum kvf_status status = read_file(config, path, &text, &bytes);
    if (status != KVF_OK)
        return status;
    struct kvf_settings changed = config->settings;
    if (kvf_config_file_parse(&changed, path, text, bytes, error, sizeof error)) {
        config->settings = changed;
    } else {
        kvf_config_fail(config, "%s", error);
        status = KVF_ERR_CONFIG;
    }
    free(text);
    return status;
}

/* "dram.bytes" is KVF_DRAM_BYTES. */
static void environment_name(const char *name, char *out, size_t size)
{
    int n = snprintf(out, size, "KVF_%s", name);
    for (int i = 4; i < n && i < (int)size - 1; i++)
        out[i] = out[i] == '.' ? '_' : out[i] >= 'a' && out[i] <= 'z' ? (char)(out[i] - 'a' + 'A') : out[i];
}

enum kvf_status kvf_config_load_env(struct kvf_config *config)
{
    if (!config)
        return KVF_ERR_INVALID;
    struct kvf_settings changed = config->settings;
    const struct kvf_config_value *value;
    for (size_t i = 0; (value = kvf_config_value_at(i)); i++) {
        char name[128];
        const char *why = "";
        environment_name(value->name, name, sizeof name);
        const char *text = getenv(name);
        if (!text || kvf_config_value_parse(value, text, strlen(text), &changed, &why))
            continue;
        kvf_config_fail(config, "environment: %s (%s) = '%.64s' %s; allowed: %s", name, value->name, text, why,
                        kvf_config_value_bounds(value));
        return KVF_ERR_CONFIG;
    }
    config->settings = changed;
    return KVF_OK;
}

enum kvf_status kvf_config_set(struct kvf_config *config, const char *name, const char *text)
{
    if (!config || !name || !text)
        return KVF_ERR_INVALID;
    const char *why = "";
    const struct kvf_config_value *value = kvf_config_value_find(name, strlen(name));
    if (!value) {
        kvf_config_fail(config, "unknown key '%.64s' (value '%.64s'); the nearest is '%s'", name, text,
                        kvf_config_value_nearest(name, strlen(name)));
        return KVF_ERR_CONFIG;
    }
    if (!kvf_config_value_parse(value, text, strlen(text), &config->settings, &why)) {
        kvf_config_fail(config, "%s = '%.64s' %s; allowed: %s", value->name, text, why, kvf_config_value_bounds(value));
        return KVF_ERR_CONFIG;
    }
    return KVF_OK;
}

enum kvf_status kvf_config_get(const struct kvf_config *config, const char *name, char *text, size_t size)
{
    if (!config || !name || (!text && size))
        return KVF_ERR_INVALID;
    const struct kvf_config_value *value = kvf_config_value_find(name, strlen(name));
    if (!value)
        return KVF_ERR_NOT_FOUND;
    kvf_config_value_print(value, &config->settings, text, size);
    return KVF_OK;
}

enum kvf_status kvf_config_dump(const struct kvf_config *config, FILE *out)
{
    if (!config || !out)
        return KVF_ERR_INVALID;
    return kvf_config_file_write(&config->settings, out);
}

bool kvf_config_entry(size_t index, struct kvf_config_entry *out)
{
    const struct kvf_config_value *value = kvf_config_value_at(index);
    if (!value)
        return false;
    *out = (struct kvf_config_entry){
        .name = value->name,
        .value = value->value,
        .type = kvf_config_value_type(value),
        .bounds = kvf_config_value_bounds(value),
        .help = value->help,
    };
    return true;
}
