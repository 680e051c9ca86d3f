/* Pins of opaque blocks: their bytes where they lie in DRAM, without a copy. */
#include "node/internal.h"

static struct kvf_key key_of(struct kvf_key key)
{
    return (struct kvf_key){.hi = key.hi | KVF_OPAQUE_BIT, .lo = key.lo};
}

/* What the index would not say without the lock: a block on its way down that readers still wait for, say. */
static bool pin_locked(struct kvf_core *core, struct kvf_key key, kvf_handle *h)
{
    kvf_core_lock(core);
    struct kvf_entry *e = kvf_block_readable(core, key, h);
    bool here = e && e->tier == KVF_TIER_DRAM && kvf_entry_pin(e);
    kvf_core_unlock(core);
    return here;
}

enum kvf_status kvf_block_pin(struct kvf_node *node, struct kvf_key key, const void **data, uint64_t *length)
{
    if (!node || !data || !length)
        return KVF_ERR_INVALID;
    struct kvf_core *core = node->core;
    kvf_handle h;
    enum kvf_seen seen = kvf_index_pin(core->index, key_of(key), &h);
    if (seen == KVF_SEEN_NOT || (seen == KVF_SEEN_CLOSED && !pin_locked(core, key_of(key), &h)))
        return KVF_MISS;
    const struct kvf_entry *e = kvf_index_pinned(core->index, h);
    *data = core->memory + kvf_entry_location(e);
    *length = e->bytes;
    kvf_evict_used(core, e);
    return KVF_OK;
}

void kvf_block_unpin(struct kvf_node *node, struct kvf_key key)
{
    if (!node)
        return;
    kvf_handle h = kvf_index_find_pinned(node->core->index, key_of(key));
    if (h != KVF_HANDLE_NONE)
        kvf_index_unpin(node->core->index, h);
}
