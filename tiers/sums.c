/* Chunk checksums: an arena of 8-byte units, so that an array of n words takes n words. A handle is its offset in words.
 * Pages are small (1024 words), so that blocks with few and with many chunks can live side by side; the slack at creation
 * pays for one page begun in each of the sizes and for the ends of pages, so that words_max really fit. */
#include "tiers/sums.h"
#include "tiers/arena.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

#define COUNT_MAX ((uint32_t)KVF_SUMS_MAX)
#define PAGE_WORDS ((uint32_t)KVF_SUMS_PAGE)
#define WORD_BYTES 8u

struct kvf_sums {
    uint64_t *words;
    size_t bytes;
    struct kvf_arena *arena;
};

enum kvf_status kvf_sums_create(uint64_t words_max, struct kvf_sums **out)
{
    /* The worst size up to 64, 57 words, fills 969 words of a page: one sixteenth more is enough for any of those. Who takes more
     * counts them as what they leave of a page. */
    uint64_t pages = words_max / PAGE_WORDS + words_max / PAGE_WORDS / 16 + 1 + COUNT_MAX;
    if (!out || words_max == 0 || words_max > UINT32_MAX || pages * PAGE_WORDS > UINT32_MAX)
        return KVF_ERR_INVALID;
    struct kvf_sums *s = calloc(1, sizeof *s);
    if (!s)
        return KVF_ERR_NO_MEMORY;
    enum kvf_status st = KVF_ERR_NO_MEMORY;
    s->bytes = (size_t)pages * PAGE_WORDS * WORD_BYTES;
    s->words = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->words == MAP_FAILED)
        goto free_sums;
    st = kvf_arena_create(s->words, s->bytes, WORD_BYTES, PAGE_WORDS * WORD_BYTES, &s->arena);
    if (st != KVF_OK)
        goto unmap_words;
    *out = s;
    return KVF_OK;

unmap_words:
    munmap(s->words, s->bytes);
free_sums:
    free(s);
    return st;
}

void kvf_sums_destroy(struct kvf_sums *s)
{
    if (!s)
        return;
    kvf_arena_destroy(s->arena);
    munmap(s->words, s->bytes);
    free(s);
}

uint32_t kvf_sums_alloc(struct kvf_sums *s, uint32_t count)
{
    assert(count >= 1 && count <= COUNT_MAX);
    uint64_t offset = kvf_arena_alloc(s->arena, count * WORD_BYTES);
    return offset == KVF_ARENA_NONE ? KVF_SUMS_NONE : (uint32_t)(offset / WORD_BYTES);
}

void kvf_sums_free(struct kvf_sums *s, uint32_t handle, uint32_t count)
{
    assert(handle != KVF_SUMS_NONE && count >= 1 && count <= COUNT_MAX);
    kvf_arena_free(s->arena, (uint64_t)handle * WORD_BYTES, count * WORD_BYTES);
}

uint64_t *kvf_sums_at(const struct kvf_sums *s, uint32_t handle)
{
    assert(handle < s->bytes / WORD_BYTES);
    return s->words + handle;
}
