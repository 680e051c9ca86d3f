/* Base64 with padding (RFC 4648, section 4): etcd's gateway wraps keys and values in it, member records the fabric's address. */
#ifndef KVF_COORDINATOR_BASE64_H
#define KVF_COORDINATOR_BASE64_H

#include <stdbool.h>
#include <stddef.h>

/* Room for the text of `bytes` bytes, its NUL included. */
#define KVF_BASE64_SIZE(bytes) (((bytes) + 2) / 3 * 4 + 1)

/* Writes KVF_BASE64_SIZE(bytes) characters, the last a NUL. Any thread. */
void kvf_base64_encode(const void *data, size_t bytes, char *text);

/* Reads `length` characters into at most `max` bytes. False, with *bytes untouched, when they are not base64 with its padding
 * or do not fit. Any thread. */
bool kvf_base64_decode(const char *text, size_t length, void *data, size_t max, size_t *bytes);
#endif
