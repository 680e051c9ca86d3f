/* The chunk checksums of blocks: arrays of 1..64 words, from memory reserved at creation. One thread at a time. */
#ifndef KVF_TIERS_SUMS_H
#define KVF_TIERS_SUMS_H

#include <kvf/kvf.h>

struct kvf_sums;
#define KVF_SUMS_NONE UINT32_MAX

/* Room for `words_max` checksums in all (address space; memory is touched as used). */
enum kvf_status kvf_sums_create(uint64_t words_max, struct kvf_sums **out);
void kvf_sums_destroy(struct kvf_sums *sums);
uint32_t kvf_sums_alloc(struct kvf_sums *sums, uint32_t count); /* KVF_SUMS_NONE when full */
void kvf_sums_free(struct kvf_sums *sums, uint32_t handle, uint32_t count);
uint64_t *kvf_sums_at(const struct kvf_sums *sums, uint32_t handle);
#endif
