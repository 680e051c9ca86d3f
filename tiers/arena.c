/* Slabs without headers. Per page one small record and a bitmap of free slots in two levels (a bit per slot, and a bit
 * per word of those that has any), so that giving out and taking back touch a handful of words. The records and bitmaps
 * live in address space of their own that is touched as pages come into use.
 *
 *   class (by slot size)         page record              bitmap of the page
 *   +--------------------+      +------------------+      +------------------+----------------+
 *   | head ------------- | ---> | class, free, used|  ->  | summary words    | slot words     |
 *   | free slots in them |      | next, prev       |      +------------------+----------------+
 *   +--------------------+      +------------------+
 *
 * A page is fresh (never used), spare (in the spare list), partial (in its class's list: some slots free, some used) or
 * full (in no list). */
#include "tiers/arena.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NO_PAGE UINT32_MAX
#define WORD_BITS 64u
/* Two levels with at most 64 summary words: the search of a page has a fixed bound. */
#define PAGE_SLOTS_MAX (WORD_BITS * WORD_BITS * 64u)

struct page {
    uint32_t units; /* slot size in units of align; 0 while the page belongs to no size */
    uint32_t slots, free;
    uint32_t next, prev; /* partial list of the size, or spare list */
};

struct size_class {
    uint32_t head;      /* first partial page, plus 1; 0 for none, so that untouched memory is an empty class */
    uint64_t free_slots; /* in its partial pages */
};

struct kvf_arena {
    uint8_t *base;
    uint64_t bytes; /* whole pages */
    uint32_t align, page_bytes;
    uint32_t units_max; /* page_bytes / align */
    uint32_t slot_words, summary_words;

    uint32_t pages, fresh; /* pages from `fresh` on were never used */
    uint32_t planned;      /* pages that there is address space and room in the tables for */
    uint32_t spare, spares;
    uint64_t used_bytes;

    struct size_class *classes; /* [units_max + 1] */
    struct page *page;          /* [pages] */
    uint64_t *bits;             /* [pages][summary_words + slot_words] */
    size_t classes_bytes, page_table_bytes, bits_bytes;
};

static void *reserve(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

enum kvf_status kvf_arena_create(void *base, uint64_t bytes, uint32_t align, uint32_t page_bytes, struct kvf_arena **out)
{
    if (!out || align == 0 || (align & (align - 1)) || page_bytes < align || page_bytes % align || bytes < page_bytes)
        return KVF_ERR_INVALID;
    if (page_bytes / align > PAGE_SLOTS_MAX || bytes / page_bytes >= NO_PAGE || (uintptr_t)base % align)
        return KVF_ERR_INVALID;
    struct kvf_arena *a = calloc(1, sizeof *a);
    if (!a)
        return KVF_ERR_NO_MEMORY;
    a->base = base;
    a->align = align;
    a->page_bytes = page_bytes;
    a->units_max = page_bytes / align;
    a->slot_words = (a->units_max + WORD_BITS - 1) / WORD_BITS;
    a->summary_words = (a->slot_words + WORD_BITS - 1) / WORD_BITS;
    a->pages = a->planned = (uint32_t)(bytes / page_bytes);
    a->bytes = (uint64_t)a->pages * page_bytes;
    a->spare = NO_PAGE;
    a->classes_bytes = ((size_t)a->units_max + 1) * sizeof *a->classes;
    a->page_table_bytes = (size_t)a->pages * sizeof *a->page;
    a->bits_bytes = (size_t)a->pages * (a->summary_words + a->slot_words) * sizeof *a->bits;
    a->classes = reserve(a->classes_bytes);
    a->page = reserve(a->page_table_bytes);
    a->bits = reserve(a->bits_bytes);
    if (!a->classes || !a->page || !a->bits) {
        kvf_arena_destroy(a);
        return KVF_ERR_NO_MEMORY;
    }
    *out = a;
    return KVF_OK;
}

void kvf_arena_destroy(struct kvf_arena *a)
{
    if (!a)
        return;
    if (a->classes)
        munmap(a->classes, a->classes_bytes);
    if (a->page)
        munmap(a->page, a->page_table_bytes);
    if (a->bits)
        munmap(a->bits, a->bits_bytes);
    free(a);
}

static uint32_t units_of(const struct kvf_arena *a, uint32_t bytes)
{
    return bytes / a->align + (bytes % a->align != 0);
}

static uint64_t *summary_of(const struct kvf_arena *a, uint32_t page)
{
    return a->bits + (size_t)page * (a->summary_words + a->slot_words);
}

static uint64_t *slots_of(const struct kvf_arena *a, uint32_t page)
{
    return summary_of(a, page) + a->summary_words;
}

/* Sets the first n bits of `words` words and clears the rest. */
static void fill_bits(uint64_t *at, uint32_t words, uint32_t n)
{
    for (uint32_t w = 0; w < words; w++, n -= n < WORD_BITS ? n : WORD_BITS)
        at[w] = n >= WORD_BITS ? UINT64_MAX : (1ull << n) - 1;
}

static void link_partial(struct kvf_arena *a, uint32_t number)
{
    struct page *p = &a->page[number];
    struct size_class *c = &a->classes[p->units];
    p->prev = NO_PAGE;
    p->next = c->head ? c->head - 1 : NO_PAGE;
    if (c->head)
        a->page[c->head - 1].prev = number;
    c->head = number + 1;
    c->free_slots += p->free;
}

static void unlink_partial(struct kvf_arena *a, uint32_t number)
{
    struct page *p = &a->page[number];
    struct size_class *c = &a->classes[p->units];
    if (p->prev == NO_PAGE)
        c->head = p->next == NO_PAGE ? 0 : p->next + 1;
    else
        a->page[p->prev].next = p->next;
    if (p->next != NO_PAGE)
        a->page[p->next].prev = p->prev;
    p->next = p->prev = NO_PAGE;
    c->free_slots -= p->free;
}

static void push_spare(struct kvf_arena *a, uint32_t number)
{
    struct page *p = &a->page[number];
    p->prev = NO_PAGE;
    p->next = a->spare;
    if (a->spare != NO_PAGE)
        a->page[a->spare].prev = number;
    a->spare = number;
    a->spares++;
}

static void unlink_spare(struct kvf_arena *a, uint32_t number)
{
    struct page *p = &a->page[number];
    if (p->prev == NO_PAGE)
        a->spare = p->next;
    else
        a->page[p->prev].next = p->next;
    if (p->next != NO_PAGE)
        a->page[p->next].prev = p->prev;
    a->spares--;
}

static void give_page(struct kvf_arena *a, uint32_t number, uint32_t units)
{
    struct page *p = &a->page[number];
    assert(p->units == 0);
    p->units = units;
    p->slots = p->free = a->units_max / units;
    fill_bits(slots_of(a, number), a->slot_words, p->slots);
    fill_bits(summary_of(a, number), a->summary_words, (p->slots + WORD_BITS - 1) / WORD_BITS);
    link_partial(a, number);
}

/* Gives the size a page with every slot free. */
static bool claim_page(struct kvf_arena *a, uint32_t units)
{
    uint32_t number = a->spare;
    if (number != NO_PAGE)
        unlink_spare(a, number);
    else if (a->fresh < a->pages)
        number = a->fresh++;
    else
        return false;
    give_page(a, number, units);
    return true;
}

static void release_page(struct kvf_arena *a, uint32_t number)
{
    struct page *p = &a->page[number];
    assert(p->free == p->slots);
    p->units = p->slots = p->free = 0;
    push_spare(a, number);
}

/* A free slot is given out. */
static void mark_taken(struct kvf_arena *a, uint32_t number, uint32_t slot)
{
    struct page *p = &a->page[number];
    uint64_t *summary = summary_of(a, number), *slots = slots_of(a, number);
    uint32_t w = slot / WORD_BITS;
    assert(p->free > 0 && (slots[w] >> slot % WORD_BITS & 1));
    slots[w] &= ~(1ull << slot % WORD_BITS);
    if (!slots[w])
        summary[w / WORD_BITS] &= ~(1ull << w % WORD_BITS);
    if (p->free == 1)
        unlink_partial(a, number);
    else
        a->classes[p->units].free_slots--;
    p->free--;
    a->used_bytes += (uint64_t)p->units * a->align;
}

uint64_t kvf_arena_alloc(struct kvf_arena *a, uint32_t bytes)
{
    uint32_t units = units_of(a, bytes);
    if (units == 0 || units > a->units_max)
        return KVF_ARENA_NONE;
    const struct size_class *c = &a->classes[units];
    if (!c->head && !claim_page(a, units))
        return KVF_ARENA_NONE;
    uint32_t number = c->head - 1;
    assert(a->page[number].units == units && a->page[number].free > 0);

    const uint64_t *summary = summary_of(a, number), *slots = slots_of(a, number);
    uint32_t s = 0;
    while (!summary[s])
        s++;
    assert(s < a->summary_words);
    uint32_t w = s * WORD_BITS + (uint32_t)__builtin_ctzll(summary[s]);
    uint32_t slot = w * WORD_BITS + (uint32_t)__builtin_ctzll(slots[w]);
    mark_taken(a, number, slot);
    return (uint64_t)number * a->page_bytes + (uint64_t)slot * units * a->align;
}

bool kvf_arena_take(struct kvf_arena *a, uint64_t offset, uint32_t bytes)
{
    uint32_t units = units_of(a, bytes);
    if (units == 0 || units > a->units_max || offset >= a->bytes)
        return false;
    uint32_t number = (uint32_t)(offset / a->page_bytes), inside = (uint32_t)(offset % a->page_bytes);
    uint32_t slot = inside / (units * a->align);
    if (inside % (units * a->align) || slot >= a->units_max / units)
        return false;
    for (; a->fresh <= number; a->fresh++)
        push_spare(a, a->fresh);
    if (a->page[number].units == 0) {
        unlink_spare(a, number);
        give_page(a, number, units);
    }
    if (a->page[number].units != units || !(slots_of(a, number)[slot / WORD_BITS] >> slot % WORD_BITS & 1))
        return false;
    mark_taken(a, number, slot);
    return true;
}

void kvf_arena_free(struct kvf_arena *a, uint64_t offset, uint32_t bytes)
{
    uint32_t units = units_of(a, bytes);
    assert(offset < a->bytes && units > 0 && units <= a->units_max);
    uint32_t number = (uint32_t)(offset / a->page_bytes);
    uint32_t inside = (uint32_t)(offset % a->page_bytes);
    struct page *p = &a->page[number];
    assert(p->units == units && inside % (units * a->align) == 0);
    uint32_t slot = inside / (units * a->align), w = slot / WORD_BITS;
    uint64_t *slots = slots_of(a, number), bit = 1ull << slot % WORD_BITS;
    assert(slot < p->slots && !(slots[w] & bit));

    slots[w] |= bit;
    summary_of(a, number)[w / WORD_BITS] |= 1ull << w % WORD_BITS;
    a->used_bytes -= (uint64_t)units * a->align;
    if (p->free == 0) {
        p->free = 1;
        link_partial(a, number);
    } else {
        p->free++;
        a->classes[units].free_slots++;
    }
    if (p->free == p->slots) {
        unlink_partial(a, number);
        release_page(a, number);
    }
}

void *kvf_arena_at(const struct kvf_arena *a, uint64_t offset)
{
    assert(a->base && offset < a->bytes);
    return a->base + offset;
}

uint64_t kvf_arena_bytes(const struct kvf_arena *a)
{
    return a->bytes;
}

uint64_t kvf_arena_planned(const struct kvf_arena *a)
{
    return (uint64_t)a->planned * a->page_bytes;
}

void kvf_arena_limit(struct kvf_arena *a, uint64_t bytes)
{
    uint64_t pages = bytes / a->page_bytes;
    a->pages = pages < a->planned ? (uint32_t)pages : a->planned;
    assert(a->pages >= a->fresh);
    a->bytes = (uint64_t)a->pages * a->page_bytes;
}

uint64_t kvf_arena_used(const struct kvf_arena *a)
{
    return a->used_bytes;
}

uint64_t kvf_arena_room(const struct kvf_arena *a, uint32_t bytes)
{
    uint32_t units = units_of(a, bytes);
    if (units == 0 || units > a->units_max)
        return 0;
    uint64_t pages_free = (uint64_t)a->spares + (a->pages - a->fresh);
    return a->classes[units].free_slots + pages_free * (a->units_max / units);
}

/* One page's counts and bitmaps against each other. */
static void check_page(const struct kvf_arena *a, uint32_t number)
{
    const struct page *p = &a->page[number];
    const uint64_t *summary = summary_of(a, number), *slots = slots_of(a, number);
    uint32_t free_slots = 0;
    assert(p->slots == a->units_max / p->units && p->free < p->slots);
    for (uint32_t w = 0; w < a->slot_words; w++) {
        bool any = summary[w / WORD_BITS] >> w % WORD_BITS & 1;
        assert(any == (slots[w] != 0));
        free_slots += (uint32_t)__builtin_popcountll(slots[w]);
    }
    assert(free_slots == p->free);
}

void kvf_arena_check(const struct kvf_arena *a)
{
    uint64_t used = 0, partial = 0, listed = 0;
    uint32_t owned = 0, spares = 0;
    for (uint32_t n = 0; n < a->fresh; n++) {
        const struct page *p = &a->page[n];
        if (p->units == 0)
            continue;
        check_page(a, n);
        owned++;
        partial += p->free > 0;
        used += (uint64_t)(p->slots - p->free) * p->units * a->align;
    }
    for (uint32_t n = a->spare, before = NO_PAGE; n != NO_PAGE; before = n, n = a->page[n].next, spares++)
        assert(n < a->fresh && a->page[n].units == 0 && a->page[n].prev == before && spares < a->spares);
    for (uint32_t u = 1; u <= a->units_max; u++) {
        uint64_t free_slots = 0;
        uint32_t before = NO_PAGE;
        for (uint32_t n = a->classes[u].head - 1; n != NO_PAGE; before = n, n = a->page[n].next) {
            assert(a->page[n].units == u && a->page[n].free > 0 && a->page[n].prev == before && listed < partial);
            free_slots += a->page[n].free;
            listed++;
        }
        assert(free_slots == a->classes[u].free_slots);
    }
    assert(listed == partial && spares == a->spares && owned + spares == a->fresh && used == a->used_bytes);
    (void)spares, (void)owned, (void)used, (void)listed;
}
