/* Which opaque blocks leave, and what is dropped when nothing takes them: the node as a cache.
 *
 * Opaque blocks in DRAM (READY or SPILLING) stand in a policy (tiers/policy.h, dram.policy) under the slot where they begin. It
 * chooses who goes down when spill.c wants one of them to go. Where neither a lender nor the SSD has room it chooses whom to drop:
 * a later get is a miss, which is what a cache may say. Sessions' blocks are never dropped. On the SSD a hand goes round the index
 * and drops the opaque blocks that were not read since it last came by. One that is read below DRAM while the policy remembers it
 * comes back. */
#include "base/hash.h"
#include "node/claim.h"
#include "node/dram.h"
#include "node/persist.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define HAND_LOOK_MAX 4096 /* entries that the hand passes in one call */
#define BLOCKS_PER_GHOST 16 /* 4096-byte units: as many ghosts as blocks of 64 KiB fit */
#define GHOSTS_MIN 1024

struct kvf_evict {
    struct kvf_policy *policy;
    uint64_t hand; /* cursor over the index */
};

enum kvf_status kvf_evict_create(struct kvf_core *core)
{
    uint64_t slots = kvf_dram_units(core), ghosts = slots / BLOCKS_PER_GHOST + GHOSTS_MIN;
    int kind = 0;
    core->evict = calloc(1, sizeof *core->evict);
    if (!core->evict || slots >= KVF_POLICY_NONE)
        return KVF_ERR_NO_MEMORY;
    while (strcmp(kvf_policy_names[kind], core->settings.dram_policy) != 0)
        kind++;
    assert(kind < KVF_POLICY_KINDS); /* the settings' table allows no other word */
    ghosts = ghosts < core->settings.blocks_max ? ghosts : core->settings.blocks_max;
    return kvf_policy_create((enum kvf_policy_kind)kind, (uint32_t)slots, (uint32_t)ghosts, &core->evict->policy);
}

void kvf_evict_destroy(struct kvf_core *core)
{
    if (core->evict)
        kvf_policy_destroy(core->evict->policy);
    free(core->evict);
    core->evict = NULL;
}

static bool opaque(const struct kvf_entry *e)
{
    return kvf_entry_model(e) == KVF_ENTRY_OPAQUE;
}

static uint64_t fingerprint(const struct kvf_entry *e)
{
    return kvf_mix(e->key.hi, e->key.lo);
}

void kvf_evict_came(struct kvf_core *core, const struct kvf_entry *e)
{
    assert(e->tier == KVF_TIER_DRAM);
    if (opaque(e))
        kvf_policy_insert(core->evict->policy, e->location4k, fingerprint(e));
}

void kvf_evict_left(struct kvf_core *core, const struct kvf_entry *e, bool for_room)
{
    struct kvf_policy *p = core->evict->policy;
    if (!opaque(e) || e->tier != KVF_TIER_DRAM || !kvf_policy_has(p, e->location4k))
        return;
    if (for_room)
        kvf_policy_evicted(p, e->location4k, fingerprint(e));
    else
        kvf_policy_removed(p, e->location4k);
}

void kvf_evict_used(struct kvf_core *core, const struct kvf_entry *e)
{
    if (opaque(e)) /* not a look at its tier: that shares a byte with its state, which may change under a pin */
        kvf_policy_mark(core->evict->policy, e->location4k);
}

void kvf_evict_rise(struct kvf_core *core, kvf_handle h, const uint8_t *data)
{
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    enum kvf_tier tier = (enum kvf_tier)e->tier;
    uint16_t peer = e->peer;
    uint64_t location = kvf_entry_location(e);
    if (e->state != KVF_BLOCK_READY || (tier != KVF_TIER_SSD && tier != KVF_TIER_REMOTE) || (e->flags & KVF_FLAG_REMOVED) ||
        !kvf_policy_missed(core->evict->policy, fingerprint(e)))
        return;
    uint64_t slot = kvf_dram_alloc(core, e->bytes); /* room that is free: nobody waits for this */
    if (slot == KVF_ARENA_NONE)
        return;
    uint8_t *to = core->memory + slot;
    memcpy(to, data, e->bytes);
    memset(to + e->bytes, 0, (4096 - e->bytes % 4096) % 4096); /* SSD writes whole pages: no old bytes behind */
    /* The caller's memory, where the bytes may have been verified, was not ours alone. */
    if (!kvf_block_verify(core->dev, kvf_block_seed_of(core, e), to, e->bytes, kvf_block_chunk_bytes(core, e), UINT64_MAX,
                          kvf_sums_at(core->sums, e->sums))) {
        kvf_dram_free(core, slot, e->bytes);
        return;
    }
    kvf_stage_drop(core, h);
    kvf_block_place(core, h, KVF_TIER_DRAM, KVF_PEER_NONE, slot);
    if (tier == KVF_TIER_SSD)
        kvf_persist_copy(core, e, location); /* the copy stays: it may have been made durable */
    else
        kvf_block_release_copy(core, tier, peer, location, e->bytes, kvf_entry_chunks(e), e->key);
    kvf_count(&core->counters.returned_blocks, 1);
}

struct choice {
    struct kvf_core *core;
    const kvf_handle *not_these;
    unsigned n;
};

static bool may_go(void *arg, uint32_t slot)
{
    const struct choice *c = arg;
    if (!kvf_dramlist_has(c->core->dram_blocks, slot)) /* on its way down already */
        return false;
    kvf_handle h = kvf_dramlist_handle(c->core->dram_blocks, slot);
    for (unsigned i = 0; i < c->n; i++)
        if (c->not_these[i] == h)
            return false;
    return kvf_entry_pins(kvf_index_entry(c->core->index, h)) == 0;
}

kvf_handle kvf_evict_next(struct kvf_core *core, const kvf_handle *not_these, unsigned n)
{
    struct choice c = {.core = core, .not_these = not_these, .n = n};
    uint32_t slot = kvf_policy_victim(core->evict->policy, may_go, &c);
    return slot == KVF_POLICY_NONE ? KVF_HANDLE_NONE : kvf_dramlist_handle(core->dram_blocks, slot);
}

/* The entry's bytes. */
static uint64_t drop(struct kvf_core *core, kvf_handle h)
{
    const struct kvf_entry *e = kvf_index_entry(core->index, h);
    uint64_t bytes = e->bytes;
    assert(opaque(e) && e->state == KVF_BLOCK_READY);
    kvf_count(&core->counters.evicted_blocks, 1);
    kvf_count(&core->counters.evicted_bytes, bytes);
    kvf_evict_left(core, e, true);
    if (e->tier == KVF_TIER_DRAM)
        kvf_claim_left(core, e);
    kvf_block_remove(core, h);
    return bytes;
}

uint64_t kvf_evict_dram(struct kvf_core *core, uint64_t bytes)
{
    uint64_t sum = 0;
    while (sum < bytes) {
        kvf_handle h = kvf_evict_next(core, NULL, 0);
        if (h == KVF_HANDLE_NONE)
            break;
        const struct kvf_entry *e = kvf_index_entry(core->index, h);
        if (!e->ssd4k)
            sum += drop(core, h);
        else if (kvf_persist_shed(core, h)) /* also where the SSD takes no more: it has this one */
            sum += e->bytes;
        else
            break; /* a reader came at this moment */
    }
    return sum;
}

/* `copies`: those beside blocks in DRAM or at lenders too, which frees SSD but no entry. */
static uint64_t hand_on(struct kvf_core *core, uint64_t bytes, bool copies)
{
    struct kvf_evict *ev = core->evict;
    uint64_t sum = 0;
    for (unsigned looked = 0; looked < HAND_LOOK_MAX && sum < bytes; looked++) {
        kvf_handle h = kvf_index_walk(core->index, &ev->hand);
        if (h == KVF_HANDLE_NONE) {
            ev->hand = 0;
            continue;
        }
        struct kvf_entry *e = kvf_index_entry(core->index, h);
        bool above = e->tier == KVF_TIER_DRAM || e->tier == KVF_TIER_REMOTE;
        if (kvf_persist_keeping(e)) /* its slot is being written */
            continue;
        if (copies && opaque(e) && e->ssd4k && above && e->state == KVF_BLOCK_READY) {
            sum += e->bytes;
            kvf_persist_forget(core, e);
        }
        if (!opaque(e) || e->tier != KVF_TIER_SSD || e->state != KVF_BLOCK_READY)
            continue;
        if (!(e->flags & KVF_FLAG_USED))
            sum += drop(core, h);
        else
            e->flags &= (uint8_t)~KVF_FLAG_USED;
    }
    return sum;
}

uint64_t kvf_evict_ssd(struct kvf_core *core, uint64_t bytes)
{
    return hand_on(core, bytes, true);
}

bool kvf_evict_entry(struct kvf_core *core)
{
    if (hand_on(core, 1, false) > 0)
        return true;
    kvf_handle h = kvf_evict_next(core, NULL, 0);
    return h != KVF_HANDLE_NONE && drop(core, h) > 0;
}

void kvf_evict_check(const struct kvf_core *core)
{
    uint64_t cursor = 0, opaques = 0;
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(core->index, h);
        bool there = opaque(e) && e->tier == KVF_TIER_DRAM &&
                     (e->state == KVF_BLOCK_SPILLING || (e->state == KVF_BLOCK_READY && !(e->flags & KVF_FLAG_REMOVED)));
        assert(!there || kvf_policy_has(core->evict->policy, e->location4k));
        opaques += there;
    }
    assert(opaques == kvf_policy_count(core->evict->policy));
    kvf_policy_check(core->evict->policy);
}
