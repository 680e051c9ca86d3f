/* Where every block of this node lies: an open-addressing hash table of 128-bit keys, fixed in size at creation.
 * Entries are found by key and then held by a 32-bit handle that stays valid until the entry is removed.
 * One thread at a time (the node's lock), but for pins, which are atomic. */
#ifndef KVF_TIERS_INDEX_H
#define KVF_TIERS_INDEX_H

#include <kvf/kvf.h>
#include <stdatomic.h>

struct kvf_index;

typedef uint32_t kvf_handle;
#define KVF_HANDLE_NONE UINT32_MAX

/* One block. The node owns the meaning of everything below `key`. */
struct kvf_entry {
    struct kvf_key key;
    uint64_t location;    /* DRAM: arena offset; REMOTE: offset in the lender's region; SSD: offset in the area */
    uint64_t seed;        /* of its checksums: mixes model fingerprint and key */
    uint32_t bytes;
    uint32_t sums;        /* handle of its chunk checksums (sums.h) */
    _Atomic uint32_t pins; /* readers in DRAM; the slot is not reused while above 0 */
    uint16_t peer;        /* REMOTE, PEER: the node's number of that peer */
    uint8_t tier;         /* enum kvf_tier */
    uint8_t state;        /* the node's */
    uint8_t chunks;       /* checksums in `sums`, 1..64; every chunk but the last has the same size */
    uint8_t flags;        /* the node's */
    uint16_t model;       /* the node's number of the model; UINT16_MAX: an opaque block */
    uint32_t next, prev;  /* links of the node's lists (by handle) */
};

enum kvf_status kvf_index_create(uint64_t entries_max, struct kvf_index **out);
void kvf_index_destroy(struct kvf_index *index);
/* A new entry, zeroed but for the key (next and prev KVF_HANDLE_NONE). ERR_EXISTS, ERR_BUSY (entries_max). */
enum kvf_status kvf_index_add(struct kvf_index *index, struct kvf_key key, kvf_handle *out);
kvf_handle kvf_index_find(const struct kvf_index *index, struct kvf_key key);
struct kvf_entry *kvf_index_entry(const struct kvf_index *index, kvf_handle handle);
void kvf_index_remove(struct kvf_index *index, kvf_handle handle);
uint64_t kvf_index_count(const struct kvf_index *index);
/* Walks all entries in no particular order: start with *cursor = 0; KVF_HANDLE_NONE at the end. Removing the entry just
 * returned is allowed. */
kvf_handle kvf_index_walk(const struct kvf_index *index, uint64_t *cursor);
void kvf_index_check(const struct kvf_index *index);
#endif
