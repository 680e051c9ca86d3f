/* The blocks that lie in DRAM and may leave it, in the order in which they came: a list threaded through a table that has a place
 * per 4096-byte unit of the arena, so that the index's entries, of which most lie elsewhere, carry no links. A block is named
 * by the slot where it begins (location / 4096). One thread at a time (the node's lock). */
#ifndef KVF_TIERS_DRAMLIST_H
#define KVF_TIERS_DRAMLIST_H

#include "tiers/index.h"

struct kvf_dramlist;
#define KVF_DRAMSLOT_NONE UINT32_MAX

/* For slots 0 .. slots - 1. 12 bytes of address space each, touched where blocks begin. ERR_NO_MEMORY, ERR_INVALID. */
enum kvf_status kvf_dramlist_create(uint64_t slots, struct kvf_dramlist **out);
void kvf_dramlist_destroy(struct kvf_dramlist *list);

/* At the newest end, or at the oldest. The slot is not in the list. */
void kvf_dramlist_push(struct kvf_dramlist *list, uint32_t slot, kvf_handle handle);
void kvf_dramlist_push_oldest(struct kvf_dramlist *list, uint32_t slot, kvf_handle handle);
void kvf_dramlist_remove(struct kvf_dramlist *list, uint32_t slot); /* it is in the list */
/* Two of the list change places in it. */
void kvf_dramlist_swap(struct kvf_dramlist *list, uint32_t a, uint32_t b);
/* The block at a slot of the list begins at another one from now on, which is not in the list; its place in the order stays. */
void kvf_dramlist_shift(struct kvf_dramlist *list, uint32_t slot, uint32_t to);
bool kvf_dramlist_has(const struct kvf_dramlist *list, uint32_t slot);
uint64_t kvf_dramlist_count(const struct kvf_dramlist *list);

/* Oldest first: KVF_DRAMSLOT_NONE at the end. Take the next one before removing this one. */
uint32_t kvf_dramlist_oldest(const struct kvf_dramlist *list);
uint32_t kvf_dramlist_newer(const struct kvf_dramlist *list, uint32_t slot);
kvf_handle kvf_dramlist_handle(const struct kvf_dramlist *list, uint32_t slot); /* of a slot in the list */

void kvf_dramlist_check(const struct kvf_dramlist *list); /* all invariants, by assert: for tests */
#endif
