/* Where own blocks lie in DRAM (dram.h). */
#include "node/dram.h"
#include "node/lend.h"
#include <assert.h>
#include <string.h>

#define LOOK_MAX 4096              /* places of the lent part that one turn looks at */
#define TURN_BYTES (256u << 10)    /* that one turn copies; at least one block */

static uint64_t slot_bytes(uint32_t bytes)
{
    return ((uint64_t)bytes + KVF_LOCATION_UNIT - 1) / KVF_LOCATION_UNIT * KVF_LOCATION_UNIT;
}

/* Of the lent part, what own blocks may have: all that others may not. */
static uint64_t lent_max(const struct kvf_core *core)
{
    uint64_t all = core->lent ? kvf_arena_bytes(core->lent) : 0, others = core->lend ? core->lend->limit_bytes : all;
    return all > others ? all - others : 0;
}

uint64_t kvf_dram_alloc(struct kvf_core *core, uint32_t bytes)
{
    uint64_t at = kvf_arena_alloc(core->dram, bytes);
    if (at != KVF_ARENA_NONE || core->lent_own_bytes + slot_bytes(bytes) > lent_max(core))
        return at;
    at = kvf_arena_alloc(core->lent, bytes);
    if (at == KVF_ARENA_NONE)
        return at;
    core->lent_own_bytes += slot_bytes(bytes);
    /* Who had it before may read there still, in place: own blocks are written as they come. */
    if (core->fabric)
        kvf_fabric_region_take(core->fabric, core->lent_at + at, slot_bytes(bytes));
    return core->lent_at + at;
}

void kvf_dram_free(struct kvf_core *core, uint64_t at, uint32_t bytes)
{
    if (at < kvf_arena_planned(core->dram)) {
        kvf_arena_free(core->dram, at, bytes);
        return;
    }
    assert(core->lent && at >= core->lent_at && core->lent_own_bytes >= slot_bytes(bytes));
    if (core->fabric)
        kvf_fabric_region_give(core->fabric, at, slot_bytes(bytes));
    kvf_arena_free(core->lent, at - core->lent_at, bytes);
    core->lent_own_bytes -= slot_bytes(bytes);
}

uint64_t kvf_dram_units(const struct kvf_core *core)
{
    uint64_t end = core->lent ? core->lent_at + kvf_arena_planned(core->lent) : kvf_arena_planned(core->dram);
    return end / KVF_LOCATION_UNIT;
}

uint64_t kvf_dram_used(const struct kvf_core *core)
{
    return kvf_arena_used(core->dram) + core->lent_own_bytes;
}

uint64_t kvf_dram_capacity(const struct kvf_core *core)
{
    uint64_t own = kvf_arena_bytes(core->dram), most = lent_max(core);
    if (most == 0)
        return own;
    uint64_t others = kvf_arena_used(core->lent) - core->lent_own_bytes, left = kvf_arena_bytes(core->lent) - others;
    return own + (most < left ? most : left);
}

uint64_t kvf_dram_overdrawn(const struct kvf_core *core)
{
    uint64_t most = lent_max(core);
    return core->lent_own_bytes > most ? core->lent_own_bytes - most : 0;
}

/* The open blocks of a session between two steps: nobody but the next step looks at them. */
static unsigned tails_vacate(struct kvf_core *core, struct kvf_sess *s)
{
    unsigned moved = 0;
    if (s->state != KVF_SESS_ACTIVE || s->step_open)
        return 0;
    for (uint32_t i = 0; i < s->model->streams * KVF_TAIL_BLOCKS && kvf_dram_overdrawn(core) > 0; i++) {
        uint64_t from = s->tail[i];
        if (from == KVF_ARENA_NONE || from < core->lent_at)
            continue;
        uint64_t to = kvf_arena_alloc(core->dram, s->model->block_bytes);
        if (to == KVF_ARENA_NONE)
            break;
        memcpy(core->memory + to, core->memory + from, s->model->block_bytes);
        s->tail[i] = to;
        kvf_dram_free(core, from, s->model->block_bytes);
        moved++;
    }
    return moved;
}

unsigned kvf_dram_vacate(struct kvf_core *core)
{
    uint64_t first = core->lent_at / KVF_LOCATION_UNIT, moved_bytes = 0;
    unsigned moved = 0;
    for (unsigned looked = 0; looked < LOOK_MAX && moved_bytes < TURN_BYTES && kvf_dram_overdrawn(core) > 0; looked++) {
        uint64_t units = kvf_arena_bytes(core->lent) / KVF_LOCATION_UNIT;
        uint32_t unit = (uint32_t)(first + core->lend->vacate_unit++ % units);
        if (!kvf_dramlist_has(core->dram_blocks, unit))
            continue; /* none begins there, or it is on its way down */
        kvf_handle h = kvf_dramlist_handle(core->dram_blocks, unit);
        uint32_t bytes = kvf_index_entry(core->index, h)->bytes;
        uint64_t to = kvf_arena_alloc(core->dram, bytes);
        if (to == KVF_ARENA_NONE)
            break; /* spilling makes room */
        if (!kvf_block_shift(core, h, to)) {
            kvf_arena_free(core->dram, to, bytes);
            continue;
        }
        moved_bytes += bytes;
        moved++;
    }
    uint32_t bucket = core->lend->vacate_bucket++ % core->session_buckets;
    for (struct kvf_sess *s = core->sessions[bucket]; s && kvf_dram_overdrawn(core) > 0; s = s->next)
        moved += tails_vacate(core, s);
    return moved;
}
