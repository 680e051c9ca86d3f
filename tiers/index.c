/* The block index: a pool of entries and a table that finds them.
 *
 *   table slot: | tag 32 | handle + 1 |      pool: entry 0, entry 1, ... (a handle is a number here)
 *
 * The table is open addressing with linear probing at a load of at most 80 %. A slot's home is the low bits of its tag, so
 * that removal can shift the rest of a cluster back (no tombstones: a table that lived long is as fast as a new one)
 * without touching the entries; the tag's high bits spare most comparisons of keys. Entries never move, so a handle and a
 * pointer stay good until the entry is removed. All memory is address space that is touched as used. */
#include "tiers/index.h"
#include "base/hash.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* And 10 to 20 bytes of table per block. */
_Static_assert(sizeof(struct kvf_entry) == 40, "the index holds a million of these: growth is a decision");

#define ENTRIES_MAX (UINT32_MAX / 2)
#define HASH_SEED 0x6b7666696e646578ull

struct slot {
    uint32_t tag;
    uint32_t number; /* handle + 1; 0 is empty, as fresh memory is */
};

struct kvf_index {
    uint32_t entries_max, count;
    uint32_t fresh; /* entries from here on were never used */
    uint32_t free;  /* list of removed entries, by location4k */
    uint32_t mask;  /* slots - 1 */
    struct slot *slots;
    struct kvf_entry *entries;
    uint64_t *live; /* a bit per entry: in use */
    size_t slots_bytes, entries_bytes, live_bytes;
};

static void *reserve(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

enum kvf_status kvf_index_create(uint64_t entries_max, struct kvf_index **out)
{
    if (!out || entries_max == 0 || entries_max > ENTRIES_MAX)
        return KVF_ERR_INVALID;
    struct kvf_index *x = calloc(1, sizeof *x);
    if (!x)
        return KVF_ERR_NO_MEMORY;
    uint64_t slots = 8;
    while (slots * 4 < entries_max * 5)
        slots *= 2;
    x->entries_max = (uint32_t)entries_max;
    x->mask = (uint32_t)(slots - 1);
    x->free = KVF_HANDLE_NONE;
    x->slots_bytes = slots * sizeof *x->slots;
    x->entries_bytes = entries_max * sizeof *x->entries;
    x->live_bytes = (entries_max + 63) / 64 * sizeof *x->live;
    x->slots = reserve(x->slots_bytes);
    x->entries = reserve(x->entries_bytes);
    x->live = reserve(x->live_bytes);
    if (!x->slots || !x->entries || !x->live) {
        kvf_index_destroy(x);
        return KVF_ERR_NO_MEMORY;
    }
    *out = x;
    return KVF_OK;
}

void kvf_index_destroy(struct kvf_index *x)
{
    if (!x)
        return;
    if (x->slots)
        munmap(x->slots, x->slots_bytes);
    if (x->entries)
        munmap(x->entries, x->entries_bytes);
    if (x->live)
        munmap(x->live, x->live_bytes);
    free(x);
}

/* Content hashes may be chosen by whoever chooses the content, so both words go through a full mix. */
static uint32_t tag_of(struct kvf_key key)
{
    return (uint32_t)(kvf_hash(&key, sizeof key, HASH_SEED) >> 32);
}

static bool is_live(const struct kvf_index *x, kvf_handle handle)
{
    return handle < x->fresh && (x->live[handle / 64] >> handle % 64 & 1);
}

static bool same_key(struct kvf_key a, struct kvf_key b)
{
    return a.hi == b.hi && a.lo == b.lo;
}

/* The slot that holds the key, or the empty slot where the search ended. */
static uint32_t probe(const struct kvf_index *x, struct kvf_key key, uint32_t tag)
{
    uint32_t at = tag & x->mask;
    for (;; at = (at + 1) & x->mask) {
        const struct slot *s = &x->slots[at];
        if (s->number == 0 || (s->tag == tag && same_key(x->entries[s->number - 1].key, key)))
            return at;
    }
}

enum kvf_status kvf_index_add(struct kvf_index *x, struct kvf_key key, kvf_handle *out)
{
    uint32_t tag = tag_of(key), at = probe(x, key, tag);
    if (x->slots[at].number)
        return KVF_ERR_EXISTS;
    if (x->count == x->entries_max)
        return KVF_ERR_BUSY;
    kvf_handle handle = x->free;
    if (handle != KVF_HANDLE_NONE)
        x->free = x->entries[handle].location4k;
    else
        handle = x->fresh++;
    assert(handle < x->entries_max);
    struct kvf_entry *e = &x->entries[handle];
    memset(e, 0, sizeof *e);
    e->key = key;
    x->live[handle / 64] |= 1ull << handle % 64;
    x->slots[at] = (struct slot){.tag = tag, .number = handle + 1};
    x->count++;
    *out = handle;
    return KVF_OK;
}

kvf_handle kvf_index_find(const struct kvf_index *x, struct kvf_key key)
{
    uint32_t number = x->slots[probe(x, key, tag_of(key))].number;
    return number ? number - 1 : KVF_HANDLE_NONE;
}

struct kvf_entry *kvf_index_entry(const struct kvf_index *x, kvf_handle handle)
{
    assert(is_live(x, handle));
    return &x->entries[handle];
}

/* Empties slot `hole` and moves later members of its cluster back over it, as far as their home allows. */
static void shift_back(struct kvf_index *x, uint32_t hole)
{
    for (uint32_t at = (hole + 1) & x->mask; x->slots[at].number; at = (at + 1) & x->mask) {
        uint32_t home = x->slots[at].tag & x->mask;
        /* It may move when its home is not between the hole (excluded) and where it stands. */
        if (((at - home) & x->mask) >= ((at - hole) & x->mask)) {
            x->slots[hole] = x->slots[at];
            hole = at;
        }
    }
    x->slots[hole] = (struct slot){0};
}

void kvf_index_remove(struct kvf_index *x, kvf_handle handle)
{
    assert(is_live(x, handle));
    struct kvf_entry *e = &x->entries[handle];
    uint32_t at = probe(x, e->key, tag_of(e->key));
    assert(x->slots[at].number == handle + 1);
    shift_back(x, at);
    x->live[handle / 64] &= ~(1ull << handle % 64);
    e->location4k = x->free;
    x->free = handle;
    x->count--;
}

uint64_t kvf_index_count(const struct kvf_index *x)
{
    return x->count;
}

kvf_handle kvf_index_walk(const struct kvf_index *x, uint64_t *cursor)
{
    /* Over the pool, not the table: removal moves table slots but never entries. */
    while (*cursor < x->fresh) {
        uint64_t word = x->live[*cursor / 64] >> *cursor % 64;
        if (word) {
            kvf_handle handle = (kvf_handle)(*cursor + (unsigned)__builtin_ctzll(word));
            *cursor = (uint64_t)handle + 1;
            return handle;
        }
        *cursor = (*cursor / 64 + 1) * 64;
    }
    return KVF_HANDLE_NONE;
}

void kvf_index_check(const struct kvf_index *x)
{
    uint32_t listed = 0, found = 0, live = 0;
    for (uint64_t at = 0; at <= x->mask; at++) {
        const struct slot *s = &x->slots[at];
        if (!s->number)
            continue;
        assert(is_live(x, s->number - 1));
        assert(s->tag == tag_of(x->entries[s->number - 1].key));
        assert(probe(x, x->entries[s->number - 1].key, s->tag) == at);
        found++;
    }
    for (kvf_handle h = 0; h < x->fresh; h++)
        live += is_live(x, h);
    for (kvf_handle h = x->free; h != KVF_HANDLE_NONE; h = x->entries[h].location4k) {
        assert(h < x->fresh && !is_live(x, h) && listed <= x->fresh);
        listed++;
    }
    assert(found == x->count && live == x->count && listed + live == x->fresh);
    (void)found;
}
