/* Arrays of 1..208 words, one per block: its chunk checksums, and scales that may follow. From memory reserved at creation. One
 * thread at a time. */
#ifndef KVF_TIERS_SUMS_H
#define KVF_TIERS_SUMS_H

#include <kvf/kvf.h>

struct kvf_sums;
#define KVF_SUMS_NONE UINT32_MAX
#define KVF_SUMS_MAX 208   /* words of one array: 64 checksums, and the scales of 512 dimensions and 64 chunks in 16 bits */
#define KVF_SUMS_PAGE 1024 /* words; no array crosses one */

/* Room for `words_max` checksums in all (address space; memory is touched as used). */
enum kvf_status kvf_sums_create(uint64_t words_max, struct kvf_sums **out);
void kvf_sums_destroy(struct kvf_sums *sums);
uint32_t kvf_sums_alloc(struct kvf_sums *sums, uint32_t count); /* KVF_SUMS_NONE when full */
void kvf_sums_free(struct kvf_sums *sums, uint32_t handle, uint32_t count);
uint64_t *kvf_sums_at(const struct kvf_sums *sums, uint32_t handle);
#endif
