/* One setting: its text form, its bounds, its place in struct kvf_settings. For the files of the configuration only. */
#ifndef KVF_BASE_CONFIG_VALUE_H
#define KVF_BASE_CONFIG_VALUE_H

#include "base/config.h"

enum kvf_config_type {
    KVF_CONFIG_TEXT,
    KVF_CONFIG_SIZE,
    KVF_CONFIG_TIME,
    KVF_CONFIG_COUNT,
    KVF_CONFIG_BOOL,
    KVF_CONFIG_LIST,
};

struct kvf_config_value {
    const char *name;  /* "dram.bytes" */
    const char *value; /* the default, as text */
    const char *words; /* of a LIST: "a|b|c" */
    const char *help;
    enum kvf_config_type type;
    size_t offset; /* in struct kvf_settings */
    uint64_t min, max;
};

/* The entry at `index` of the table, in the table's order; NULL past the end. */
const struct kvf_config_value *kvf_config_value_at(size_t index);

/* The entry of that name, NULL when there is none. */
const struct kvf_config_value *kvf_config_value_find(const char *name, size_t length);

/* The known name with the fewest letters to change; of equals the first of the table. */
const char *kvf_config_value_nearest(const char *name, size_t length);

/* "text", "size", ... Static. */
const char *kvf_config_value_type(const struct kvf_config_value *value);

/* The bounds for people: "1M to 1024T", "true|false", a list's words. Static. */
const char *kvf_config_value_bounds(const struct kvf_config_value *value);

/* Reads `length` bytes of text (white space around them is dropped) into the setting. False when they are not a value of
 * that type or out of bounds: then nothing is written and *why is a static phrase. */
bool kvf_config_value_parse(const struct kvf_config_value *value, const char *text, size_t length,
                            struct kvf_settings *settings, const char **why);

/* The setting as text that kvf_config_value_parse reads back; cut to `size` with a NUL. */
void kvf_config_value_print(const struct kvf_config_value *value, const struct kvf_settings *settings, char *text, size_t size);

/* Every setting to its default. */
void kvf_config_value_defaults(struct kvf_settings *settings);
#endif
