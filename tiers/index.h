/* Where every block of this node lies: a hash table of 128-bit keys, fixed in size at creation. Entries are found by key and then
 * held by a 32-bit handle that stays valid until the entry is removed.
 *
 * One thread at a time (the node's lock) adds, removes and changes entries. Any number of threads beside it look up and pin:
 * kvf_index_pin, kvf_index_pin_many, kvf_index_peek and kvf_index_unpin take no lock and never wait.
 *
 * A pin holds a block where it is. The life of an entry, as readers without the lock see it:
 *
 *     closed (new) -- kvf_entry_open --> open: may be pinned by anyone
 *     open -- kvf_entry_close --> closed: no new pins but under the lock; those that stand stay until they are let go
 *     closed, no pins: location, bytes and memory may be changed, the entry may be removed or opened again
 *
 * So what a reader finds in a pinned entry stays until it lets go: key, location4k, bytes, sums, model and chunks. The rest (tier,
 * state, flags, peer, ssd4k) changes under a pin, and is the lock's. An owner that wants the memory back closes first and looks at
 * the pins then. */
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
#define KVF_ENTRY_OPAQUE 127 /* in place of a model: an opaque block */
#define KVF_ENTRY_PINS_MAX 0xffffu

/* One block. The node owns the meaning of everything below `key`. What is not named here is read and set by the calls below. */
struct kvf_entry {
    struct kvf_key key;
    _Atomic uint32_t word; /* pins 16 | model 7 | chunks 7 | open 1 | awaited 1 */
    uint32_t location4k;   /* DRAM: arena offset; REMOTE: offset in the lender's region; SSD: offset in the area */
    uint32_t ssd4k;        /* a copy on this node's SSD beside the one at `location`; 0: none */
    uint32_t bytes;
    uint32_t sums;         /* handle of its chunk checksums (sums.h) */
    uint16_t peer;         /* REMOTE, PEER: the node's number of that peer */
    uint8_t tier : 4;      /* enum kvf_tier */
    uint8_t state : 4;     /* the node's */
    uint8_t flags;         /* the node's */
};
#define KVF_WORD_PINS KVF_ENTRY_PINS_MAX
#define KVF_WORD_OPEN (1u << 30)
#define KVF_WORD_AWAITED (1u << 31)

static inline uint64_t kvf_entry_location(const struct kvf_entry *e)
{
    return (uint64_t)e->location4k * KVF_LOCATION_UNIT;
}

/* Where the block lies, tier and peer included, to be compared. */
static inline uint64_t kvf_entry_place(const struct kvf_entry *e)
{
    return (uint64_t)e->tier << 48 | (uint64_t)e->peer << 32 | e->location4k;
}

/* Whether an offset can be kept: whole units, not too far. What comes from outside is asked about first. */
static inline bool kvf_location_fits(uint64_t bytes)
{
    return bytes % KVF_LOCATION_UNIT == 0 && bytes <= KVF_LOCATION_MAX;
}

/* Of a closed entry without pins. */
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

/* Of a new entry, before it is opened for the first time; never changes. */
static inline void kvf_entry_set_shape(struct kvf_entry *e, unsigned model, unsigned chunks)
{
    assert(model <= KVF_ENTRY_OPAQUE && chunks >= 1 && chunks <= 64);
    atomic_store_explicit(&e->word, model << 16 | chunks << 23, memory_order_relaxed);
}

/* Readers in DRAM. Of an open entry it may have changed when it is looked at. */
static inline unsigned kvf_entry_pins(const struct kvf_entry *e)
{
    return atomic_load_explicit(&e->word, memory_order_acquire) & KVF_WORD_PINS;
}

static inline bool kvf_entry_is_open(const struct kvf_entry *e)
{
    return atomic_load_explicit(&e->word, memory_order_relaxed) & KVF_WORD_OPEN;
}

/* Under the lock, when key, location, bytes and the memory are what a reader may see. */
static inline void kvf_entry_open(struct kvf_entry *e)
{
    atomic_fetch_or_explicit(&e->word, KVF_WORD_OPEN, memory_order_release);
}

/* Under the lock. true: no pin stands, and none can come but under the lock. false: some do; with `await` the last one to go tells
 * the owner (kvf_index_on_last), else the owner looks again. */
static inline bool kvf_entry_close(struct kvf_entry *e, bool await)
{
    uint32_t word = atomic_load_explicit(&e->word, memory_order_relaxed), next;
    do
        next = (word & ~KVF_WORD_OPEN) | (await && (word & KVF_WORD_PINS) ? KVF_WORD_AWAITED : 0);
    while (!atomic_compare_exchange_weak_explicit(&e->word, &word, next, memory_order_acq_rel, memory_order_relaxed));
    return (word & KVF_WORD_PINS) == 0;
}

/* Under the lock, open or closed. false: it has as many pins as it can have. */
static inline bool kvf_entry_pin(struct kvf_entry *e)
{
    uint32_t word = atomic_load_explicit(&e->word, memory_order_relaxed);
    do
        if ((word & KVF_WORD_PINS) == KVF_ENTRY_PINS_MAX)
            return false;
    while (!atomic_compare_exchange_weak_explicit(&e->word, &word, word + 1, memory_order_acquire, memory_order_relaxed));
    return true;
}

/* Under the lock: the pins that are left. Whether somebody waits for the last is the caller's to know. */
static inline unsigned kvf_entry_unpin(struct kvf_entry *e)
{
    uint32_t before = atomic_fetch_sub_explicit(&e->word, 1, memory_order_acq_rel);
    assert((before & KVF_WORD_PINS) > 0);
    return (before & KVF_WORD_PINS) - 1;
}

enum kvf_status kvf_index_create(uint64_t entries_max, struct kvf_index **out);
void kvf_index_destroy(struct kvf_index *index);
/* Whom to tell that the last pin of an awaited entry has gone; called from kvf_index_unpin and kvf_index_pin*, without the
 * lock. By then the entry may be gone already, or the handle be another's: the callee looks. Before other threads come. */
void kvf_index_on_last(struct kvf_index *index, void (*last)(void *arg, kvf_handle handle), void *arg);

/* ---- under the lock */

/* A new entry, zeroed but for the key, closed. ERR_EXISTS, ERR_BUSY (entries_max). */
enum kvf_status kvf_index_add(struct kvf_index *index, struct kvf_key key, kvf_handle *out);
kvf_handle kvf_index_find(const struct kvf_index *index, struct kvf_key key);
struct kvf_entry *kvf_index_entry(const struct kvf_index *index, kvf_handle handle);
bool kvf_index_is_live(const struct kvf_index *index, kvf_handle handle);
void kvf_index_remove(struct kvf_index *index, kvf_handle handle); /* of a closed entry without pins */
uint64_t kvf_index_count(const struct kvf_index *index);
/* Walks all entries in no particular order: start with *cursor = 0; KVF_HANDLE_NONE at the end. Removing the entry just
 * returned is allowed. */
kvf_handle kvf_index_walk(const struct kvf_index *index, uint64_t *cursor);
void kvf_index_check(const struct kvf_index *index); /* all invariants, by assert: for tests */
/* Bytes of address space that table and entries take, all of them touched when the index is full. */
uint64_t kvf_index_bytes(const struct kvf_index *index);

/* ---- from any thread, without the lock */

enum kvf_seen {
    KVF_SEEN_NOT,    /* no such key */
    KVF_SEEN_CLOSED, /* it is there, but not for pinning without the lock (or has all the pins it can have) */
    KVF_SEEN_OPEN,   /* ... and (pin) is held now */
};
/* Finds and pins in one: OPEN gives the handle, which stays this key's until kvf_index_unpin. */
enum kvf_seen kvf_index_pin(const struct kvf_index *index, struct kvf_key key, kvf_handle *handle);
/* The same for many keys, several look-ups in flight at once: what a table beyond the caches wants. The number that were pinned;
 * handles[i] is KVF_HANDLE_NONE for what was not. */
size_t kvf_index_pin_many(const struct kvf_index *index, const struct kvf_key *keys, size_t n, kvf_handle *handles);
void kvf_index_unpin(const struct kvf_index *index, kvf_handle handle);
/* The entry of a handle that the caller has pinned. */
struct kvf_entry *kvf_index_pinned(const struct kvf_index *index, kvf_handle handle);
/* Whether the key is there and open just now. */
enum kvf_seen kvf_index_peek(const struct kvf_index *index, struct kvf_key key);
/* The handle of a key of which the caller has a pin; of any other key KVF_HANDLE_NONE or any handle. */
kvf_handle kvf_index_find_pinned(const struct kvf_index *index, struct kvf_key key);
#endif
