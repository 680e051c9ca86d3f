/* Slabs over one piece of memory: slots of a few sizes, given out and taken back in O(1), no header in the slots.
 * Memory is divided into pages; a page belongs to one size class while any slot of it is in use and returns to the pool
 * when the last is freed, so that memory moves between block sizes without restart. One thread at a time. */
#ifndef KVF_TIERS_ARENA_H
#define KVF_TIERS_ARENA_H

#include <kvf/kvf.h>

struct kvf_arena;

#define KVF_ARENA_NONE UINT64_MAX

/* base may be NULL: then only offsets are given out (the SSD area uses that). Slots are multiples of `align` (a power of
 * two). page_bytes at least the largest slot. ERR_NO_MEMORY, ERR_INVALID. */
enum kvf_status kvf_arena_create(void *base, uint64_t bytes, uint32_t align, uint32_t page_bytes, struct kvf_arena **out);
void kvf_arena_destroy(struct kvf_arena *arena);

/* A slot for `bytes` (rounded up to align): its offset from base, or KVF_ARENA_NONE when full. */
uint64_t kvf_arena_alloc(struct kvf_arena *arena, uint32_t bytes);
/* This very slot, as alloc gave it out in an earlier life. False: not a place of such a slot, taken, or its page has slots of
 * another size. */
bool kvf_arena_take(struct kvf_arena *arena, uint64_t offset, uint32_t bytes);
/* `bytes` as given to alloc. */
void kvf_arena_free(struct kvf_arena *arena, uint64_t offset, uint32_t bytes);

void *kvf_arena_at(const struct kvf_arena *arena, uint64_t offset);
uint64_t kvf_arena_bytes(const struct kvf_arena *arena);      /* capacity now */
uint64_t kvf_arena_planned(const struct kvf_arena *arena);    /* capacity when all of its memory is there */
/* Only the first `bytes` (whole pages of them) may be given out: the memory behind is not there yet. Never below what was
 * given out already. All of it, at first. */
void kvf_arena_limit(struct kvf_arena *arena, uint64_t bytes);
uint64_t kvf_arena_used(const struct kvf_arena *arena);       /* in slots given out */
/* Slots of this size that could still be had now. */
uint64_t kvf_arena_room(const struct kvf_arena *arena, uint32_t bytes);
/* All invariants, by assert: for tests. */
void kvf_arena_check(const struct kvf_arena *arena);
#endif
