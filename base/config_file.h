/* The text form of a whole configuration. For the files of the configuration, and tests, only. */
#ifndef KVF_BASE_CONFIG_FILE_H
#define KVF_BASE_CONFIG_FILE_H

#include "base/config.h"

#define KVF_CONFIG_FILE_MAX (1u << 20)

/* Reads `name = value` lines from memory into *settings. `label` stands for the file in the message. False on the first
 * line that is wrong: then `error` holds one line that says what and where, and *settings may be half changed. */
bool kvf_config_file_parse(struct kvf_settings *settings, const char *label, const char *text, size_t bytes,
                           char *error, size_t error_size);

/* Writes every setting with its help, type, bounds and default. ERR_IO. */
enum kvf_status kvf_config_file_write(const struct kvf_settings *settings, FILE *out);
#endif
