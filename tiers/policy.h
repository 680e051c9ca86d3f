/* Which block leaves a full tier: pure objects over small integers, with no clock and no memory but what create took.
 *
 * An id is a place that can hold a block, 0 .. ids - 1. The owner says what comes to an id (insert), what is used (touch) and what
 * leaves (remove), and asks who should leave next (victim). A fingerprint is a hash of the block's key: by it a block is
 * remembered after it has gone (a ghost). s3fifo and arc learn from ghosts that come back.
 *
 *   lru     the longest unused
 *   lfu     the least often used since it came; among equals the longest unused
 *   s3fifo  three queues (Yang et al., SOSP 2023): newcomers in one, what was used there goes on to the other, whose used
 *           blocks get another round; half of the blocks each
 *   arc     the balance between lately used and often used follows the ghosts (Megiddo and Modha, FAST 2003)
 *
 * PREFIX CHAINS. Blocks of a prefix cache are used as chains: a later block is worth nothing without the earlier ones. Whoever
 * touches or inserts a chain does it from its end to its beginning; then its end leaves first, with every policy here. */
#ifndef KVF_TIERS_POLICY_H
#define KVF_TIERS_POLICY_H

#include <kvf/kvf.h>
#include <stdbool.h>
#include <stdint.h>

enum kvf_policy_kind { KVF_POLICY_LRU, KVF_POLICY_LFU, KVF_POLICY_S3FIFO, KVF_POLICY_ARC, KVF_POLICY_KINDS };
extern const char *const kvf_policy_names[KVF_POLICY_KINDS];

#define KVF_POLICY_NONE UINT32_MAX
#define KVF_POLICY_LOOK_MAX 4096 /* blocks that victim looks at before it gives up */

struct kvf_policy;

/* 12 bytes of address space per id, touched where ids are used, and 32 per ghost. `ghosts` 0 forgets at once; as many as blocks
 * fit is what the papers have.
 * ERR_NO_MEMORY. */
enum kvf_status kvf_policy_create(enum kvf_policy_kind kind, uint32_t ids, uint32_t ghosts, struct kvf_policy **out);
void kvf_policy_destroy(struct kvf_policy *p);

/* A block comes to a free id. */
void kvf_policy_insert(struct kvf_policy *p, uint32_t id, uint64_t fingerprint);
/* It was used. */
void kvf_policy_touch(struct kvf_policy *p, uint32_t id);
/* It was used, said by any thread at any time, without a lock: victim counts it as one touch when it next meets the block. */
void kvf_policy_mark(struct kvf_policy *p, uint32_t id);
/* It left for want of room (a ghost may stay), or for any other reason (no ghost). */
void kvf_policy_evicted(struct kvf_policy *p, uint32_t id, uint64_t fingerprint);
void kvf_policy_removed(struct kvf_policy *p, uint32_t id);
/* A block that is at no id was used where it lies. True: it left, or was missed, not long ago, so a little more room would have
 * kept it, and it should come back. False: it is remembered now. */
bool kvf_policy_missed(struct kvf_policy *p, uint64_t fingerprint);
bool kvf_policy_has(const struct kvf_policy *p, uint32_t id);
uint32_t kvf_policy_count(const struct kvf_policy *p);

/* Who should leave next among those that `may` (NULL: all), or NONE. It stays until it is evicted or removed. */
uint32_t kvf_policy_victim(struct kvf_policy *p, bool (*may)(void *arg, uint32_t id), void *arg);

/* Asserts that all lists hold together; for tests. */
void kvf_policy_check(const struct kvf_policy *p);
#endif
