/* What goes down of a block (cold.c makes it, spill.c sends it). */
#ifndef KVF_NODE_COLD_H
#define KVF_NODE_COLD_H

#include "node/internal.h"

/* A block in DRAM as it goes down: in place, or encoded in staging memory. */
struct kvf_cold_copy {
    const uint8_t *data; /* whole pages may be written from it */
    uint32_t bytes, chunk_bytes;
    enum kvf_cold_format format;
    uint64_t *words;       /* its checksums and scales */
    uint64_t seed;         /* of the checksums */
    uint64_t slot;         /* of staging, KVF_ARENA_NONE: none */
    uint32_t slot_bytes;
    uint64_t life;         /* of the session that counts it (kvf_sess_copy_begin) */
};
void kvf_cold_turn(struct kvf_core *core); /* a new turn of the reactor: some blocks may be encoded again */
/* false: not now (no staging memory, or enough for this turn). A block that has no cold form is taken as it is. */
bool kvf_cold_copy_make(struct kvf_core *core, const struct kvf_entry *entry, struct kvf_cold_copy *copy);
/* The size that the copy will have, unless the block has no cold form: then it is the block's. */
uint32_t kvf_cold_copy_bytes(const struct kvf_core *core, const struct kvf_entry *entry);
void kvf_cold_copy_free(struct kvf_core *core, struct kvf_cold_copy *copy);
#endif
