/* The block index: a pool of entries and a table that finds them.
 *
 *     bucket, one cache line: | slot x 15 | overflow |      pool: entry 0, entry 1, ... (a handle is a number here)
 *     slot, 32 bits:          | tag | handle + 1 |          0: empty, as fresh memory is
 *
 * A key's home bucket comes from the upper half of its hash, its tag from the lower: as many bits as the handles leave over (12 at
 * a million entries, 7 at 32 million), so that few entries are touched in vain. A key goes to the first bucket from its home on
 * that has an empty slot, and `overflow` counts in every bucket the keys that were sent past it: a search ends at the first bucket
 * that sent none on (as in F14, Facebook's folly). At 12 of 15 slots in use, the load at entries_max, nearly all keys are at home.
 * A slot once filled stays where it is until its key is removed, so that a reader without the lock who walks the same way cannot
 * miss a key that is there all the while; a key that comes or goes meanwhile may be seen or not.
 *
 * A reader's look at an entry is a guess until it has pinned it: the slot may have been emptied, and the entry be another key's
 * by now. Hence key, open, pin, key: an entry is pinned only while it is open, no open or pinned entry changes its key, and the
 * second look, after the pin, is the one that counts. Entries never move. All memory is address space that is touched as used. */
#define XXH_INLINE_ALL /* a key has a fixed size: much of the hash is known when this is compiled */
#include <xxhash.h>

#include "tiers/index.h"

#include <stdlib.h>
#include <sys/mman.h>

_Static_assert(sizeof(struct kvf_entry) == 40, "the index holds a million of these: growth is a decision");

#define ENTRIES_MAX (UINT32_MAX / 4)
#define HASH_SEED 0x6b7666696e646578ull
#define SLOTS 15u
#define FILL 12u /* of the slots of a bucket, on average, when the index is full: 80 % */
#define HUGE_BYTES (2ull << 20)
#define FLIGHT 16u /* look-ups of kvf_index_pin_many at once: more than a core has line fill buffers for */

struct bucket {
    _Atomic uint32_t slots[SLOTS];
    _Atomic uint32_t overflow;
};
_Static_assert(sizeof(struct bucket) == 64, "a bucket is a cache line");

/* Address space; `at` is aligned to huge pages and asks for them where that is worth it. */
struct space {
    void *map, *at;
    size_t map_bytes;
};

struct kvf_index {
    uint32_t entries_max, count;
    uint32_t fresh; /* entries from here on were never used */
    uint32_t free;  /* list of removed entries, by location4k */
    uint32_t buckets_count;
    uint32_t handle_mask; /* the bits of a slot that hold handle + 1; the others hold the tag */
    struct bucket *buckets;
    struct kvf_entry *entries;
    uint64_t *live; /* a bit per entry: in use */
    struct space buckets_space, entries_space, live_space;
    void (*last)(void *arg, kvf_handle handle);
    void *last_arg;
};

static void *reserve(struct space *s, uint64_t bytes)
{
    s->map_bytes = bytes < HUGE_BYTES ? bytes : bytes + HUGE_BYTES;
    s->map = mmap(NULL, s->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->map == MAP_FAILED) {
        s->map = NULL;
        return NULL;
    }
    s->at = s->map;
    if (bytes >= HUGE_BYTES) {
        s->at = (void *)(((uintptr_t)s->map + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES);
        madvise(s->at, bytes, MADV_HUGEPAGE); /* where there are none, small ones do */
    }
    return s->at;
}

static void release(struct space *s)
{
    if (s->map)
        munmap(s->map, s->map_bytes);
}

enum kvf_status kvf_index_create(uint64_t entries_max, struct kvf_index **out)
{
    if (!out || entries_max == 0 || entries_max > ENTRIES_MAX)
        return KVF_ERR_INVALID;
    struct kvf_index *x = calloc(1, sizeof *x);
    if (!x)
        return KVF_ERR_NO_MEMORY;
    x->entries_max = (uint32_t)entries_max;
    x->buckets_count = (uint32_t)((entries_max + FILL - 1) / FILL);
    x->handle_mask = 1;
    while (x->handle_mask < entries_max)
        x->handle_mask = x->handle_mask << 1 | 1;
    x->free = KVF_HANDLE_NONE;
    x->buckets = reserve(&x->buckets_space, x->buckets_count * sizeof *x->buckets);
    x->entries = reserve(&x->entries_space, entries_max * sizeof *x->entries);
    x->live = reserve(&x->live_space, (entries_max + 63) / 64 * sizeof *x->live);
    if (!x->buckets || !x->entries || !x->live) {
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
    release(&x->buckets_space);
    release(&x->entries_space);
    release(&x->live_space);
    free(x);
}

void kvf_index_on_last(struct kvf_index *x, void (*last)(void *arg, kvf_handle handle), void *arg)
{
    x->last = last;
    x->last_arg = arg;
}

uint64_t kvf_index_bytes(const struct kvf_index *x)
{
    return x->buckets_count * sizeof *x->buckets + x->entries_max * sizeof *x->entries +
           (x->entries_max + 63) / 64 * sizeof *x->live;
}

/* ---------------------------------------------------------------- finding, with and without the lock */

/* Content hashes may be chosen by whoever chooses the content, so both words go through a full mix. */
static uint64_t hash_of(struct kvf_key key)
{
    return XXH3_64bits_withSeed(&key, sizeof key, HASH_SEED);
}

static uint32_t home_of(const struct kvf_index *x, uint64_t hash)
{
    return (uint32_t)((hash >> 32) * x->buckets_count >> 32);
}

static uint32_t tag_of(const struct kvf_index *x, uint64_t hash)
{
    return (uint32_t)hash & ~x->handle_mask;
}

static uint32_t after(const struct kvf_index *x, uint32_t bucket)
{
    return bucket + 1 == x->buckets_count ? 0 : bucket + 1;
}

static bool key_is(const struct kvf_entry *e, struct kvf_key key)
{
    return __atomic_load_n(&e->key.hi, __ATOMIC_RELAXED) == key.hi && __atomic_load_n(&e->key.lo, __ATOMIC_RELAXED) == key.lo;
}

typedef uint32_t quad __attribute__((vector_size(16), may_alias));
typedef uint64_t pair __attribute__((vector_size(16)));

/* Slots of a bucket whose tag is this one, as bits; empty ones may be among them. Four slots at a time: no machine tears an
 * aligned word of a vector, which is all that is asked of it; what matches is read again, as an atomic. */
__attribute__((no_sanitize("thread")))
static inline unsigned matches(const struct kvf_index *x, const struct bucket *b, uint32_t tag)
{
    const volatile quad *slots = (const volatile quad *)b;
    quad mask = (quad){0} + ~x->handle_mask, want = (quad){0} + tag;
    quad found = ((quad)((slots[0] & mask) == want) & (quad){1, 2, 4, 8}) |
                 ((quad)((slots[1] & mask) == want) & (quad){1 << 4, 1 << 5, 1 << 6, 1 << 7}) |
                 ((quad)((slots[2] & mask) == want) & (quad){1 << 8, 1 << 9, 1 << 10, 1 << 11}) |
                 ((quad)((slots[3] & mask) == want) & (quad){1 << 12, 1 << 13, 1 << 14, 0}); /* the last word is `overflow` */
    pair both = (pair)found;
    uint64_t bits = both[0] | both[1];
    return (unsigned)(bits | bits >> 32);
}

static inline kvf_handle search(const struct kvf_index *x, struct kvf_key key, uint64_t hash)
{
    uint32_t tag = tag_of(x, hash), at = home_of(x, hash);
    for (uint32_t looked = 0; looked < x->buckets_count; looked++, at = after(x, at)) {
        const struct bucket *b = &x->buckets[at];
        for (unsigned bits = matches(x, b, tag); bits; bits &= bits - 1) {
            uint32_t slot = atomic_load_explicit(&b->slots[__builtin_ctz(bits)], memory_order_acquire);
            uint32_t number = slot & x->handle_mask;
            if (number && key_is(&x->entries[number - 1], key))
                return number - 1;
        }
        if (atomic_load_explicit(&b->overflow, memory_order_acquire) == 0)
            break;
    }
    return KVF_HANDLE_NONE;
}

kvf_handle kvf_index_find(const struct kvf_index *x, struct kvf_key key)
{
    return search(x, key, hash_of(key));
}

kvf_handle kvf_index_find_pinned(const struct kvf_index *x, struct kvf_key key)
{
    return search(x, key, hash_of(key));
}

struct kvf_entry *kvf_index_pinned(const struct kvf_index *x, kvf_handle handle)
{
    assert(handle < x->entries_max && kvf_entry_pins(&x->entries[handle]) > 0);
    return &x->entries[handle];
}

/* ---------------------------------------------------------------- without the lock */

static bool pin_open(struct kvf_entry *e)
{
    uint32_t word = atomic_load_explicit(&e->word, memory_order_relaxed);
    do
        if (!(word & KVF_WORD_OPEN) || (word & KVF_WORD_PINS) == KVF_ENTRY_PINS_MAX)
            return false;
    while (!atomic_compare_exchange_weak_explicit(&e->word, &word, word + 1, memory_order_acquire, memory_order_relaxed));
    return true;
}

/* `guess`: the handle to try first, or KVF_HANDLE_NONE. */
static enum kvf_seen pin(const struct kvf_index *x, struct kvf_key key, uint64_t hash, kvf_handle guess, kvf_handle *handle)
{
    for (;;) { /* again only when the entry became another key's under our eyes */
        kvf_handle h = guess != KVF_HANDLE_NONE && key_is(&x->entries[guess], key) ? guess : search(x, key, hash);
        if (h == KVF_HANDLE_NONE)
            return KVF_SEEN_NOT;
        struct kvf_entry *e = &x->entries[h];
        guess = KVF_HANDLE_NONE;
        if (!pin_open(e)) {
            if (key_is(e, key))
                return KVF_SEEN_CLOSED;
            continue;
        }
        if (key_is(e, key)) {
            *handle = h;
            return KVF_SEEN_OPEN;
        }
        kvf_index_unpin(x, h);
    }
}

enum kvf_seen kvf_index_pin(const struct kvf_index *x, struct kvf_key key, kvf_handle *handle)
{
    return pin(x, key, hash_of(key), KVF_HANDLE_NONE, handle);
}

void kvf_index_unpin(const struct kvf_index *x, kvf_handle handle)
{
    struct kvf_entry *e = &x->entries[handle];
    uint32_t word = atomic_load_explicit(&e->word, memory_order_relaxed);
    do
        if ((word & KVF_WORD_PINS) == 0)
            return; /* a caller that lets go what it never held */
    while (!atomic_compare_exchange_weak_explicit(&e->word, &word, word - 1, memory_order_acq_rel, memory_order_relaxed));
    if ((word & (KVF_WORD_PINS | KVF_WORD_AWAITED)) == (1 | KVF_WORD_AWAITED) && x->last)
        x->last(x->last_arg, handle);
}

/* Buckets first, then the entries that their tags name, then the pins: the waits for memory of up to FLIGHT keys overlap. */
size_t kvf_index_pin_many(const struct kvf_index *x, const struct kvf_key *keys, size_t n, kvf_handle *handles)
{
    size_t pinned = 0;
    uint64_t hashes[FLIGHT];
    kvf_handle guesses[FLIGHT];
    for (size_t from = 0; from < n; from += FLIGHT) {
        size_t m = n - from < FLIGHT ? n - from : FLIGHT;
        for (size_t i = 0; i < m; i++) {
            hashes[i] = hash_of(keys[from + i]);
            __builtin_prefetch(&x->buckets[home_of(x, hashes[i])]);
        }
        for (size_t i = 0; i < m; i++) {
            const struct bucket *b = &x->buckets[home_of(x, hashes[i])];
            unsigned bits = matches(x, b, tag_of(x, hashes[i]));
            uint32_t slot = bits ? atomic_load_explicit(&b->slots[__builtin_ctz(bits)], memory_order_acquire) : 0;
            guesses[i] = (slot & x->handle_mask) - 1; /* of an empty slot KVF_HANDLE_NONE */
            if (guesses[i] == KVF_HANDLE_NONE)
                continue;
            const struct kvf_entry *e = &x->entries[guesses[i]];
            __builtin_prefetch(e, 1);
            __builtin_prefetch(&e->bytes, 1);
        }
        for (size_t i = 0; i < m; i++) {
            bool held = pin(x, keys[from + i], hashes[i], guesses[i], &handles[from + i]) == KVF_SEEN_OPEN;
            if (!held)
                handles[from + i] = KVF_HANDLE_NONE;
            pinned += held;
        }
    }
    return pinned;
}

enum kvf_seen kvf_index_peek(const struct kvf_index *x, struct kvf_key key)
{
    kvf_handle h = search(x, key, hash_of(key));
    if (h == KVF_HANDLE_NONE)
        return KVF_SEEN_NOT;
    bool open = kvf_entry_is_open(&x->entries[h]);
    return open && key_is(&x->entries[h], key) ? KVF_SEEN_OPEN : KVF_SEEN_CLOSED;
}

/* ---------------------------------------------------------------- under the lock */

bool kvf_index_is_live(const struct kvf_index *x, kvf_handle handle)
{
    return handle < x->fresh && (x->live[handle / 64] >> handle % 64 & 1);
}

static void entry_init(struct kvf_entry *e, struct kvf_key key)
{
    __atomic_store_n(&e->key.hi, key.hi, __ATOMIC_RELAXED); /* readers may be looking */
    __atomic_store_n(&e->key.lo, key.lo, __ATOMIC_RELAXED);
    atomic_store_explicit(&e->word, 0, memory_order_relaxed);
    e->location4k = e->ssd4k = e->bytes = e->sums = 0;
    e->peer = 0;
    e->tier = e->state = 0;
    e->flags = 0;
}

/* The first bucket from `at` on with an empty slot; those before it are told that they sent a key on. */
static _Atomic uint32_t *slot_take(struct kvf_index *x, uint32_t at)
{
    for (uint32_t looked = 0; looked < x->buckets_count; looked++, at = after(x, at)) {
        struct bucket *b = &x->buckets[at];
        for (unsigned i = 0; i < SLOTS; i++)
            if (atomic_load_explicit(&b->slots[i], memory_order_relaxed) == 0)
                return &b->slots[i];
        atomic_fetch_add_explicit(&b->overflow, 1, memory_order_release); /* before the slot is filled: no reader stops short */
    }
    assert(!"a table of 15 slots for every 12 entries has an empty one");
    return NULL;
}

enum kvf_status kvf_index_add(struct kvf_index *x, struct kvf_key key, kvf_handle *out)
{
    uint64_t hash = hash_of(key);
    if (search(x, key, hash) != KVF_HANDLE_NONE)
        return KVF_ERR_EXISTS;
    if (x->count == x->entries_max)
        return KVF_ERR_BUSY;
    kvf_handle handle = x->free;
    if (handle != KVF_HANDLE_NONE)
        x->free = x->entries[handle].location4k;
    else
        handle = x->fresh++;
    assert(handle < x->entries_max);
    entry_init(&x->entries[handle], key);
    x->live[handle / 64] |= 1ull << handle % 64;
    atomic_store_explicit(slot_take(x, home_of(x, hash)), tag_of(x, hash) | (handle + 1), memory_order_release);
    x->count++;
    *out = handle;
    return KVF_OK;
}

struct kvf_entry *kvf_index_entry(const struct kvf_index *x, kvf_handle handle)
{
    assert(kvf_index_is_live(x, handle));
    return &x->entries[handle];
}

/* Empties the slot of a handle, and takes the key off the counts of the buckets that had sent it on. */
static void slot_give(struct kvf_index *x, kvf_handle handle, uint64_t hash)
{
    uint32_t slot = tag_of(x, hash) | (handle + 1), at = home_of(x, hash);
    for (uint32_t looked = 0; looked < x->buckets_count; looked++, at = after(x, at)) {
        struct bucket *b = &x->buckets[at];
        for (unsigned i = 0; i < SLOTS; i++) {
            if (atomic_load_explicit(&b->slots[i], memory_order_relaxed) == slot) {
                atomic_store_explicit(&b->slots[i], 0, memory_order_relaxed);
                return;
            }
        }
        assert(atomic_load_explicit(&b->overflow, memory_order_relaxed) > 0);
        atomic_fetch_sub_explicit(&b->overflow, 1, memory_order_relaxed);
    }
    assert(!"an entry in use has a slot");
}

void kvf_index_remove(struct kvf_index *x, kvf_handle handle)
{
    struct kvf_entry *e = kvf_index_entry(x, handle);
    assert(!kvf_entry_is_open(e) && kvf_entry_pins(e) == 0);
    slot_give(x, handle, hash_of(e->key));
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

/* Every slot in use names an entry that a search from its key finds; counts what each bucket should have sent on. */
static uint32_t check_slots(const struct kvf_index *x, uint32_t *sent)
{
    uint32_t found = 0;
    for (uint32_t at = 0; at < x->buckets_count; at++) {
        for (unsigned i = 0; i < SLOTS; i++) {
            uint32_t slot = x->buckets[at].slots[i], handle = (slot & x->handle_mask) - 1;
            if (!slot)
                continue;
            assert(kvf_index_is_live(x, handle));
            struct kvf_key key = x->entries[handle].key;
            uint64_t hash = hash_of(key);
            assert((slot & ~x->handle_mask) == tag_of(x, hash) && search(x, key, hash) == handle);
            for (uint32_t b = home_of(x, hash); sent && b != at; b = after(x, b))
                sent[b]++;
            found++;
        }
    }
    return found;
}

void kvf_index_check(const struct kvf_index *x)
{
    uint32_t listed = 0, live = 0, *sent = calloc(x->buckets_count, sizeof *sent);
    uint32_t found = check_slots(x, sent);
    for (uint32_t at = 0; sent && at < x->buckets_count; at++)
        assert(x->buckets[at].overflow == sent[at]);
    free(sent);
    for (kvf_handle h = 0; h < x->fresh; h++)
        live += kvf_index_is_live(x, h);
    for (kvf_handle h = x->free; h != KVF_HANDLE_NONE; h = x->entries[h].location4k) {
        assert(h < x->fresh && !kvf_index_is_live(x, h) && listed <= x->fresh);
        listed++;
    }
    assert(found == x->count && live == x->count && listed + live == x->fresh);
    (void)found;
}
