/* Configuration files: one `name = value` to a line; # begins a comment at the start of a line or after white space. */
#include "base/config_file.h"
#include "base/config_value.h"

#include <string.h>

/* How much of a wrong key or value a message repeats. */
#define QUOTE_MAX 64

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static void trim(const char **text, size_t *length)
{
    for (; *length && is_space(**text); --*length)
        ++*text;
    while (*length && is_space((*text)[*length - 1]))
        --*length;
}

/* The length of the line without its comment. */
static size_t without_comment(const char *line, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (line[i] == '#' && (!i || is_space(line[i - 1])))
            return i;
    return length;
}

static int quoted(size_t length)
{
    return (int)(length < QUOTE_MAX ? length : QUOTE_MAX);
}

static bool parse_line(struct kvf_settings *settings, const char *where, const char *line, size_t length, char *error, size_t size)
{
    length = without_comment(line, length);
    trim(&line, &length);
    if (!length)
        return true;
    const char *equals = memchr(line, '=', length);
    if (!equals) {
        snprintf(error, size, "%s: '%.*s' is not of the form name = value", where, quoted(length), line);
        return false;
    }
    const char *name = line, *text = equals + 1;
    size_t name_length = (size_t)(equals - line), text_length = length - name_length - 1;
    trim(&name, &name_length);
    trim(&text, &text_length);
    const struct kvf_config_value *value = kvf_config_value_find(name, name_length);
    if (!value) {
        snprintf(error, size, "%s: unknown key '%.*s' (value '%.*s'); the nearest is '%s'", where, quoted(name_length), name,
                 quoted(text_length), text, kvf_config_value_nearest(name, name_length));
        return false;
    }
    const char *why = "";
    if (!kvf_config_value_parse(value, text, text_length, settings, &why)) {
        snprintf(error, size, "%s: %s = '%.*s' %s; allowed: %s", where, value->name, quoted(text_length), text, why,
                 kvf_config_value_bounds(value));
        return false;
    }
    return true;
}

bool kvf_config_file_parse(struct kvf_settings *settings, const char *label, const char *text, size_t bytes,
                           char *error, size_t error_size)
{
    const char *end = text + bytes;
    unsigned line_number = 1;
    if (bytes > KVF_CONFIG_FILE_MAX) {
        snprintf(error, error_size, "%.256s: larger than %u bytes, so not a configuration", label, KVF_CONFIG_FILE_MAX);
        return false;
    }
    for (const char *line = text; line < end; line_number++) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t length = (size_t)((newline ? newline : end) - line);
        char where[300];
        snprintf(where, sizeof where, "%.256s:%u", label, line_number);
        if (memchr(line, 0, length)) {
            snprintf(error, error_size, "%s: a NUL byte, so not a text file", where);
            return false;
        }
        if (!parse_line(settings, where, line, length, error, error_size))
            return false;
        line += length + 1;
    }
    return true;
}

enum kvf_status kvf_config_file_write(const struct kvf_settings *settings, FILE *out)
{
    const struct kvf_config_value *value;
    fprintf(out, "# KVFabric configuration: name = value; # begins a comment.\n"
                 "# Sizes take k, M, G, T (powers of 1024), times ns, us, ms, s.\n");
    for (size_t i = 0; (value = kvf_config_value_at(i)); i++) {
        char text[KVF_CONFIG_TEXT_MAX];
        kvf_config_value_print(value, settings, text, sizeof text);
        fprintf(out, "\n# %s\n# %s, %s; default: %s\n%s =%s%s\n", value->help, kvf_config_value_type(value),
                kvf_config_value_bounds(value), *value->value ? value->value : "(empty)", value->name, *text ? " " : "", text);
    }
    return fflush(out) || ferror(out) ? KVF_ERR_IO : KVF_OK;
}
