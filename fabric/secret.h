/* The cluster's secret: who knows it is a member. It lies in a file of one or two lines; the first is the one we prove with,
 * both are accepted, so that a secret can be changed while nodes run (docs/SECURITY.md). In memory it lies in pages that are
 * locked, left out of core dumps and wiped at the end, and nothing here prints it.
 *
 * Without a secret (nothing set, or NULL given for the object) everything works with an empty one: sessions are kept apart,
 * but nobody is kept out. Such a node speaks over loopback only (devices.h).
 *
 * Threads: one at a time.
 */
#ifndef KVF_FABRIC_SECRET_H
#define KVF_FABRIC_SECRET_H

#include <kvf/kvf.h>

#define KVF_SECRET_BYTES_MIN 32  /* characters: 128 bits in hex */
#define KVF_SECRET_BYTES_MAX 256
#define KVF_SECRET_COUNT 2
#define KVF_SECRET_ID_BYTES 8
#define KVF_SECRET_MAC_BYTES 32

struct kvf_secret;

/* One that holds nothing yet. ERR_NO_MEMORY. */
enum kvf_status kvf_secret_create(struct kvf_secret **out);
/* Wipes it. NULL is fine. */
void kvf_secret_destroy(struct kvf_secret *secret);

/* Takes one or two lines. ERR_CONFIG: too few, too many, too short, too long, or with characters that are not printable; then
 * what was held stays, and *why is a static phrase, which says nothing of the secret. */
enum kvf_status kvf_secret_set(struct kvf_secret *secret, const char *text, size_t bytes, const char **why);

/* Reads a file that nobody but its owner may read, and whose owner we are, or root. ERR_CONFIG as above, or the file cannot be
 * used: then what was held stays, and `error` gets one line. Blocks as long as the disk needs for a few hundred bytes. */
enum kvf_status kvf_secret_load(struct kvf_secret *secret, const char *path, char *error, size_t size);

/* Whether the file is another one than when it was last read, well or not. */
bool kvf_secret_changed(const struct kvf_secret *secret, const char *path);

/* Whether there is a secret at all. */
bool kvf_secret_present(const struct kvf_secret *secret);

/* Names the secret that we prove with, and whether `id` names one that we accept. An id tells nothing of its secret. */
void kvf_secret_id(const struct kvf_secret *secret, uint8_t id[KVF_SECRET_ID_BYTES]);
bool kvf_secret_accepts(const struct kvf_secret *secret, const uint8_t id[KVF_SECRET_ID_BYTES]);

/* HMAC-SHA-256 under the secret of that id. false: there is none (any more). */
bool kvf_secret_mac(const struct kvf_secret *secret, const uint8_t id[KVF_SECRET_ID_BYTES], const void *data, size_t bytes,
                    uint8_t mac[KVF_SECRET_MAC_BYTES]);

/* Zeroed memory of the same kind, for keys that are derived from it: locked where the limits allow, in no dump, wiped when it
 * is freed. NULL when there is none. `bytes` of free are those of alloc. */
void *kvf_secret_alloc(size_t bytes);
void kvf_secret_free(void *memory, size_t bytes);
#endif
