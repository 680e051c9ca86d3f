/* Where every block of this node lies: an open-addressing hash table of 128-bit keys, fixed in size at creation.
 * Entries are found by key and then held by a 32-bit handle that stays valid until the entry is removed.
 * One thread at a time (the node's lock), but for pins, which are atomic. */
#ifndef KVF_TIERS_INDEX_H
#define KVF_TIERS_INDEX_H

#include <assert.h>
#include <kvf/kvf.h>
#include <stdatomic.h>
#include <stdbool.h>

struct kvf_index;

typedef uint32_t kvf_handle;
#define KVF_HANDLE_NONE UINT32_MAX

#define KVF_LOCATION_UNIT 4096u
#define KVF_LOCATION_MAX ((uint64_t)UINT32_MAX * KVF_LOCATION_UNIT) /* the last byte offset that an entry can name */
#define KVF_ENTRY_MODEL_MAX 126
#define KVF_ENTRY_OPAQUE 127 /* in place of a model: an opaque block */

/* One block. The node owns the meaning of everything below `key`. What is not named here is read and set by the calls below. */
struct kvf_entry {
    struct kvf_key key;
    _Atomic uint32_t word; /* pins 16 | model 7 | chunks 7 */
    uint32_t location4k;   /* DRAM: arena offset; REMOTE: offset in the lender's region; SSD: offset in the area */
    uint32_t ssd4k;        /* a copy on this node's SSD beside the one at `location`; 0: none */
    uint32_t bytes;
    uint32_t sums;         /* handle of its chunk checksums (sums.h) */
    uint16_t peer;         /* REMOTE, PEER: the node's number of that peer */
    uint8_t tier : 4;      /* enum kvf_tier */
    uint8_t state : 4;     /* the node's */
    uint8_t flags;         /* the node's */
};

static inline uint64_t kvf_entry_location(const struct kvf_entry *e)
{
    return (uint64_t)e->location4k * KVF_LOCATION_UNIT;
}

/* Whether an offset can be kept: whole units, not too far. What comes from outside is asked about first. */
static inline bool kvf_location_fits(uint64_t bytes)
{
    return bytes % KVF_LOCATION_UNIT == 0 && bytes <= KVF_LOCATION_MAX;
}

static inline void kvf_entry_set_location(struct kvf_entry *e, uint64_t bytes)
{
    assert(kvf_location_fits(bytes));
    e->location4k = (uint32_t)(bytes / KVF_LOCATION_UNIT);
}

/* Number of the node's model, or KVF_ENTRY_OPAQUE. */
static inline unsigned kvf_entry_model(const struct kvf_entry *e)
{
    return atomic_load_explicit(&e->word, memory_order_relaxed) >> 16 & 127;
}

/* Checksums in `sums`, 1..64; every chunk but the last has the same size. */
static inline unsigned kvf_entry_chunks(const struct kvf_entry *e)
{
    return atomic_load_explicit(&e->word, memory_order_relaxed) >> 23 & 127;
}

/* Of a new entry, before anybody can pin it; never changes. */
static inline void kvf_entry_set_shape(struct kvf_entry *e, unsigned model, unsigned chunks)
{
    assert(model <= KVF_ENTRY_OPAQUE && chunks >= 1 && chunks <= 64);
    atomic_store_explicit(&e->word, model << 16 | chunks << 23, memory_order_relaxed);
}

/* Readers in DRAM; the memory is not reused while above 0. */
static inline unsigned kvf_entry_pins(const struct kvf_entry *e)
{
    return atomic_load(&e->word) & 0xffff;
}

/* false: it has as many pins as it can have. */
static inline bool kvf_entry_pin(struct kvf_entry *e)
{
    uint32_t word = atomic_load(&e->word);
    do
        if ((word & 0xffff) == 0xffff)
            return false;
    while (!atomic_compare_exchange_weak(&e->word, &word, word + 1));
    return true;
}

/* The pins that are left. */
static inline unsigned kvf_entry_unpin(struct kvf_entry *e)
{
    uint32_t before = atomic_fetch_sub(&e->word, 1);
    assert((before & 0xffff) > 0);
    return (before & 0xffff) - 1;
}

enum kvf_status kvf_index_create(uint64_t entries_max, struct kvf_index **out);
void kvf_index_destroy(struct kvf_index *index);
/* A new entry, zeroed but for the key. ERR_EXISTS, ERR_BUSY (entries_max). */
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
