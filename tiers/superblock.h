/* The first 4096 bytes of the SSD area, and the copy behind them (docs/FORMAT.md). Pure: bytes in, fields out. */
#ifndef KVF_TIERS_SUPERBLOCK_H
#define KVF_TIERS_SUPERBLOCK_H

#include <kvf/kvf.h>

#define KVF_SUPERBLOCK_BYTES 4096u
#define KVF_SUPERBLOCK_VERSION 3u
#define KVF_SUPERBLOCK_NAME_MAX 64u

struct kvf_superblock {
    uint32_t version;
    uint32_t align;       /* of slots: 4096 */
    uint64_t area_bytes;  /* of the whole area, superblock included, when it was made */
    uint64_t slots_start; /* offset of the first slot */
    uint32_t page_bytes;  /* the slots' pages (arena.h) */
    uint64_t incarnation; /* of the node that made the area: it tells this area's journal from an earlier one's */
    char node[KVF_SUPERBLOCK_NAME_MAX];
    uint64_t journal_start; /* of the first half; both 0 in version 1 */
    uint64_t half_bytes;
};

/* Fills all of `out`. The name must be shorter than its field. */
void kvf_superblock_encode(const struct kvf_superblock *superblock, uint8_t out[KVF_SUPERBLOCK_BYTES]);

/* ERR_CORRUPT: not a superblock, or a damaged one. ERR_UNSUPPORTED: whole, but of a later version (out->version is set
 * then, and nothing else). */
/* Version 1 is decoded too, whose area holds nothing that can be found again; and version 2, whose journal does not say what was
 * synced. */
enum kvf_status kvf_superblock_decode(const void *data, size_t bytes, struct kvf_superblock *out);
#endif
