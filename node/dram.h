/* DRAM for this node's own blocks: its own part of core->memory, and of the lent part what others may not have (any more). A block
 * is named by its offset in core->memory, wherever it lies. When others may have more again, blocks go back to the own part as it
 * gets room. All under the lock. */
#ifndef KVF_NODE_DRAM_H
#define KVF_NODE_DRAM_H

#include "node/internal.h"

/* An offset in core->memory, or KVF_ARENA_NONE: none is free. */
uint64_t kvf_dram_alloc(struct kvf_core *core, uint32_t bytes);
void kvf_dram_free(struct kvf_core *core, uint64_t at, uint32_t bytes);
/* Units of KVF_LOCATION_UNIT up to the end of what may ever hold own blocks. */
uint64_t kvf_dram_units(const struct kvf_core *core);
uint64_t kvf_dram_used(const struct kvf_core *core);     /* bytes in slots given out */
uint64_t kvf_dram_capacity(const struct kvf_core *core); /* bytes that could be, now */
/* Of the lent part, what own blocks have beyond what they may have. */
uint64_t kvf_dram_overdrawn(const struct kvf_core *core);
/* Moves some of that to the own part. The blocks moved. */
unsigned kvf_dram_vacate(struct kvf_core *core);
/* core.c: moves a block at rest to a slot that was given out for it, and frees the old one. false: somebody reads it. */
bool kvf_block_shift(struct kvf_core *core, kvf_handle handle, uint64_t to);
#endif
