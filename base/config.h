/* The one table of settings. From it come the parser, the environment names, the bounds, the annotated dump and the
 * typed struct that the rooms read. To add a setting, add a line to config_table.h. */
#ifndef KVF_BASE_CONFIG_H
#define KVF_BASE_CONFIG_H

#include <kvf/kvf.h>

#define KVF_CONFIG_TEXT_MAX 512

/* Types of the table: TEXT char[512]; SIZE uint64_t bytes; TIME uint64_t ns; COUNT uint64_t; BOOL bool;
 * LIST(words) one of the words of `bounds`, kept as text. */
struct kvf_settings {
#define KVF_TEXT(field) char field[KVF_CONFIG_TEXT_MAX];
#define KVF_SIZE(field) uint64_t field;
#define KVF_TIME(field) uint64_t field;
#define KVF_COUNT(field) uint64_t field;
#define KVF_BOOL(field) bool field;
#define KVF_LIST(field) char field[KVF_CONFIG_TEXT_MAX];
#define KVF_SETTING(type, field, name, value, min, max, words, help) KVF_##type(field)
#include "config_table.h"
#undef KVF_SETTING
#undef KVF_TEXT
#undef KVF_SIZE
#undef KVF_TIME
#undef KVF_COUNT
#undef KVF_BOOL
#undef KVF_LIST
};

/* The typed values. Valid until the configuration changes or dies; copy the struct to keep it. */
const struct kvf_settings *kvf_config_settings(const struct kvf_config *config);

/* Sets what kvf_config_error returns. */
void kvf_config_fail(struct kvf_config *config, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Walks the table: name, default, type's name, bounds as text, help. Returns false past the end. */
struct kvf_config_entry {
    const char *name, *value, *type, *bounds, *help;
};
bool kvf_config_entry(size_t index, struct kvf_config_entry *out);
#endif
