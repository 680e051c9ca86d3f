#include "tiers/dramlist.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

struct link {
    uint32_t older, newer; /* slots */
    uint32_t number;       /* handle + 1; 0, as fresh memory is: not in the list */
};

struct kvf_dramlist {
    uint32_t slots, oldest, newest;
    uint64_t count;
    struct link *links;
};

enum kvf_status kvf_dramlist_create(uint64_t slots, struct kvf_dramlist **out)
{
    if (!out || slots == 0 || slots >= KVF_DRAMSLOT_NONE)
        return KVF_ERR_INVALID;
    struct kvf_dramlist *l = calloc(1, sizeof *l);
    if (!l)
        return KVF_ERR_NO_MEMORY;
    l->slots = (uint32_t)slots;
    l->oldest = l->newest = KVF_DRAMSLOT_NONE;
    l->links = mmap(NULL, slots * sizeof *l->links, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (l->links == MAP_FAILED) {
        free(l);
        return KVF_ERR_NO_MEMORY;
    }
    *out = l;
    return KVF_OK;
}

void kvf_dramlist_destroy(struct kvf_dramlist *l)
{
    if (!l)
        return;
    munmap(l->links, l->slots * sizeof *l->links);
    free(l);
}

bool kvf_dramlist_has(const struct kvf_dramlist *l, uint32_t slot)
{
    assert(slot < l->slots);
    return l->links[slot].number != 0;
}

/* Behind `older`, or as the oldest when that is NONE. */
static void insert(struct kvf_dramlist *l, uint32_t slot, uint32_t older, uint32_t number)
{
    uint32_t newer = older != KVF_DRAMSLOT_NONE ? l->links[older].newer : l->oldest;
    l->links[slot] = (struct link){.older = older, .newer = newer, .number = number};
    if (older != KVF_DRAMSLOT_NONE)
        l->links[older].newer = slot;
    else
        l->oldest = slot;
    if (newer != KVF_DRAMSLOT_NONE)
        l->links[newer].older = slot;
    else
        l->newest = slot;
    l->count++;
}

void kvf_dramlist_push(struct kvf_dramlist *l, uint32_t slot, kvf_handle handle)
{
    assert(!kvf_dramlist_has(l, slot) && handle != KVF_HANDLE_NONE);
    insert(l, slot, l->newest, handle + 1);
}

void kvf_dramlist_push_oldest(struct kvf_dramlist *l, uint32_t slot, kvf_handle handle)
{
    assert(!kvf_dramlist_has(l, slot) && handle != KVF_HANDLE_NONE);
    insert(l, slot, KVF_DRAMSLOT_NONE, handle + 1);
}

void kvf_dramlist_swap(struct kvf_dramlist *l, uint32_t a, uint32_t b)
{
    assert(kvf_dramlist_has(l, a) && kvf_dramlist_has(l, b));
    struct link at_a = l->links[a], at_b = l->links[b];
    if (a == b)
        return;
    kvf_dramlist_remove(l, a);
    if (at_b.older == a) {
        insert(l, a, b, at_a.number);
    } else if (at_a.older == b) {
        insert(l, a, at_b.older, at_a.number);
    } else {
        kvf_dramlist_remove(l, b);
        insert(l, b, at_a.older, at_b.number);
        insert(l, a, at_b.older, at_a.number);
    }
}

void kvf_dramlist_remove(struct kvf_dramlist *l, uint32_t slot)
{
    assert(kvf_dramlist_has(l, slot));
    struct link *link = &l->links[slot];
    if (link->older != KVF_DRAMSLOT_NONE)
        l->links[link->older].newer = link->newer;
    else
        l->oldest = link->newer;
    if (link->newer != KVF_DRAMSLOT_NONE)
        l->links[link->newer].older = link->older;
    else
        l->newest = link->older;
    link->number = 0;
    l->count--;
}

void kvf_dramlist_shift(struct kvf_dramlist *l, uint32_t slot, uint32_t to)
{
    assert(kvf_dramlist_has(l, slot) && !kvf_dramlist_has(l, to));
    struct link at = l->links[slot];
    kvf_dramlist_remove(l, slot);
    insert(l, to, at.older, at.number);
}

uint64_t kvf_dramlist_count(const struct kvf_dramlist *l)
{
    return l->count;
}

uint32_t kvf_dramlist_oldest(const struct kvf_dramlist *l)
{
    return l->oldest;
}

uint32_t kvf_dramlist_newer(const struct kvf_dramlist *l, uint32_t slot)
{
    assert(kvf_dramlist_has(l, slot));
    return l->links[slot].newer;
}

kvf_handle kvf_dramlist_handle(const struct kvf_dramlist *l, uint32_t slot)
{
    assert(kvf_dramlist_has(l, slot));
    return l->links[slot].number - 1;
}

void kvf_dramlist_check(const struct kvf_dramlist *l)
{
    uint64_t n = 0;
    uint32_t before = KVF_DRAMSLOT_NONE;
    for (uint32_t slot = l->oldest; slot != KVF_DRAMSLOT_NONE; slot = l->links[slot].newer) {
        assert(kvf_dramlist_has(l, slot) && l->links[slot].older == before && n < l->count);
        before = slot;
        n++;
    }
    assert(n == l->count && l->newest == before);
}
