/* Memory of callers that reads may use without a copy. */
#include "node/internal.h"
#include <stdlib.h>

struct kvf_memory {
    struct kvf_core *core;
    uint8_t *base;
    size_t bytes;
};

void kvf_registered_free(struct kvf_core *core)
{
    for (unsigned i = 0; i < KVF_MEMORIES_MAX; i++)
        free(core->memories[i]);
}

bool kvf_registered_has(const struct kvf_core *core, const uint8_t *data, size_t bytes)
{
    for (unsigned i = 0; i < KVF_MEMORIES_MAX; i++) {
        const struct kvf_memory *m = core->memories[i];
        if (m && data >= m->base && bytes <= m->bytes && (size_t)(data - m->base) <= m->bytes - bytes)
            return true;
    }
    return false;
}

enum kvf_status kvf_memory_register(struct kvf_node *node, void *memory, size_t bytes, struct kvf_memory **out)
{
    if (!node || !memory || !out || bytes == 0 || (uintptr_t)memory % 4096)
        return KVF_ERR_INVALID;
    struct kvf_core *core = node->core;
    struct kvf_memory *m = malloc(sizeof *m);
    if (!m)
        return KVF_ERR_NO_MEMORY;
    *m = (struct kvf_memory){.core = core, .base = memory, .bytes = bytes};
    enum kvf_status st = KVF_ERR_BUSY;
    kvf_core_lock(core);
    for (unsigned i = 0; i < KVF_MEMORIES_MAX && st != KVF_OK; i++) {
        if (core->memories[i])
            continue;
        core->memories[i] = m;
        st = KVF_OK;
    }
    kvf_core_unlock(core);
    if (st == KVF_OK)
        *out = m;
    else
        free(m);
    return st;
}

void kvf_memory_unregister(struct kvf_memory *m)
{
    if (!m)
        return;
    struct kvf_core *core = m->core;
    kvf_core_lock(core);
    for (unsigned i = 0; i < KVF_MEMORIES_MAX; i++)
        if (core->memories[i] == m)
            core->memories[i] = NULL;
    kvf_core_unlock(core);
    free(m);
}
