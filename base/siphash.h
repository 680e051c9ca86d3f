/* SipHash-2-4: a short tag under a 128-bit key, for messages that are too many for an HMAC. Who does not know the key finds
 * the tag of a message no better than by guessing, 2^-64 a try. Any thread. */
#ifndef KVF_BASE_SIPHASH_H
#define KVF_BASE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

#define KVF_SIPHASH_KEY_BYTES 16

/* Of the bytes of `head` followed by those of `data`. head_bytes is a multiple of 8; data may be NULL when it has none. */
uint64_t kvf_siphash(const uint8_t key[KVF_SIPHASH_KEY_BYTES], const void *head, size_t head_bytes, const void *data, size_t bytes);
#endif
