/* Where sessions live: a dense list, so that it can be walked, and an index by id. */
#include "coordinator/internal.h"
#include "base/hash.h"

#include <assert.h>
#include <stdlib.h>

#define NOT_THERE UINT32_MAX

static uint32_t *slot_of(const struct kvf_placements *p, uint64_t id)
{
    unsigned mask = p->index_size - 1;
    for (unsigned at = (unsigned)kvf_mix(id, 0) & mask;; at = (at + 1) & mask)
        if (!p->index[at] || p->list[p->index[at] - 1].placement.id == id)
            return &p->index[at];
}

static struct kvf_placement_entry *find(const struct kvf_placements *p, uint64_t id)
{
    if (!p->index_size)
        return NULL;
    uint32_t *slot = slot_of(p, id);
    return *slot ? &p->list[*slot - 1] : NULL;
}

static bool grow(struct kvf_placements *p)
{
    unsigned size = p->size ? p->size * 2 : 64;
    if (size > KVF_PLACEMENTS_MAX)
        return false;
    struct kvf_placement_entry *list = realloc(p->list, size * sizeof *list);
    if (!list)
        return false;
    p->list = list;
    uint32_t *index = calloc(size * 2, sizeof *index);
    if (!index)
        return false;
    free(p->index);
    p->index = index;
    p->index_size = size * 2;
    p->size = size;
    for (unsigned i = 0; i < p->n; i++)
        *slot_of(p, p->list[i].placement.id) = i + 1;
    return true;
}

static struct kvf_placement_entry *add(struct kvf_placements *p, uint64_t id)
{
    if (p->n == p->size && !grow(p))
        return NULL;
    uint32_t *slot = slot_of(p, id);
    assert(!*slot);
    *slot = ++p->n;
    return &p->list[p->n - 1];
}

/* Empties a slot and moves those behind it that probed past it (so no tombstones are needed). */
static void clear_slot(struct kvf_placements *p, unsigned at)
{
    unsigned mask = p->index_size - 1;
    p->index[at] = 0;
    for (unsigned next = (at + 1) & mask; p->index[next]; next = (next + 1) & mask) {
        unsigned home = (unsigned)kvf_mix(p->list[p->index[next] - 1].placement.id, 0) & mask;
        if (((next - home) & mask) < ((next - at) & mask))
            continue;
        p->index[at] = p->index[next];
        p->index[next] = 0;
        at = next;
    }
}

/* The entry goes before the handler hears of it; the last takes its place. */
static void take_out(struct kvf_coord *coord, struct kvf_placement_entry *entry)
{
    struct kvf_placements *p = &coord->placements;
    uint64_t id = entry->placement.id;
    struct kvf_placement_entry *last = &p->list[p->n - 1];
    uint32_t position = (uint32_t)(entry - p->list) + 1;
    clear_slot(p, (unsigned)(slot_of(p, id) - p->index));
    if (last != entry) {
        *slot_of(p, last->placement.id) = position;
        *entry = *last;
    }
    p->n--;
    if (coord->handler.placement_gone)
        coord->handler.placement_gone(coord->handler.arg, id);
}

static void set(struct kvf_coord *coord, struct kvf_placement_entry *entry, const struct kvf_placement *placement)
{
    if (!entry && !(entry = add(&coord->placements, placement->id))) {
        kvf_log_error(coord->log, "session %016lx is ignored: no room for more sessions", (unsigned long)placement->id);
        coord->placements.partial = true;
        return;
    }
    *entry = (struct kvf_placement_entry){.placement = *placement, .seen = true};
    if (coord->handler.placement)
        coord->handler.placement(coord->handler.arg, placement);
}

void kvf_placement_put(struct kvf_coord *coord, uint64_t id, const struct kvf_store_kv *kv, bool force)
{
    struct kvf_placement_entry *entry = find(&coord->placements, id);
    struct kvf_placement placement;
    if (entry) {
        uint64_t known = entry->placement.mod_revision;
        entry->seen = true;
        if (force ? kv->mod_revision == known : kv->mod_revision <= known)
            return;
    }
    if (!kvf_records_decode_placement(id, kv->value, &placement)) {
        kvf_coord_refuse_record(coord, kv->key, kv->mod_revision);
        coord->placements.partial = true;
        return;
    }
    placement.mod_revision = kv->mod_revision;
    set(coord, entry, &placement);
}

void kvf_placement_delete(struct kvf_coord *coord, uint64_t id, uint64_t revision)
{
    struct kvf_placement_entry *entry = find(&coord->placements, id);
    if (entry && revision > entry->placement.mod_revision)
        take_out(coord, entry);
}

void kvf_placement_learn(struct kvf_coord *coord, const struct kvf_placement *placement, uint64_t revision)
{
    struct kvf_placement_entry *entry = find(&coord->placements, placement->id);
    if (!coord->synced || revision < coord->revision || (entry && placement->mod_revision <= entry->placement.mod_revision))
        return;
    set(coord, entry, placement);
}

void kvf_placement_unsee(struct kvf_coord *coord)
{
    for (unsigned i = 0; i < coord->placements.n; i++)
        coord->placements.list[i].seen = false;
    coord->placements.partial = false;
}

void kvf_placement_sweep(struct kvf_coord *coord, uint64_t revision)
{
    for (unsigned i = coord->placements.n; i-- > 0;) {
        struct kvf_placement_entry *entry = &coord->placements.list[i];
        if (!entry->seen && entry->placement.mod_revision <= revision)
            take_out(coord, entry);
    }
}

void kvf_placement_free(struct kvf_placements *placements)
{
    free(placements->list);
    free(placements->index);
}

const struct kvf_placement *kvf_coord_placement_known(const struct kvf_coord *coord, uint64_t id)
{
    struct kvf_placement_entry *entry = find(&coord->placements, id);
    return entry ? &entry->placement : NULL;
}

bool kvf_coord_placements_whole(const struct kvf_coord *coord)
{
    return coord->synced && !coord->placements.partial;
}

const struct kvf_placement *kvf_coord_placement_at(const struct kvf_coord *coord, unsigned index)
{
    return index < coord->placements.n ? &coord->placements.list[index].placement : NULL;
}
