/* Cold blocks: below DRAM, K and V of sessions may lie in 8 bits an element with scales (cold.format; kernels/dev.h says what is
 * lost). What a block is where it lies now stands in its flags; DRAM always holds it exact. So a block is encoded on its way down,
 * into staging memory from where it is written, and decoded by whoever uses it: attention into scratch, a rising block into DRAM.
 *
 * The words of a block (sums.h) are its checksums, of the bytes as they lie now, and behind them, where KVF_FLAG_WIDE says that
 * there is room, the scales. Who reads a lower copy reads these words without the lock: they change only while nobody has the
 * block's stage pinned (kvf_stage_pinned). A scale that changed by itself is found like a damaged chunk, since the checksums of
 * a cold block are seeded with its scales. */
#include "kernels/cold.h"
#include "node/cold.h"
#include <assert.h>
#include <string.h>

#define PORTION_BYTES (512 << 10) /* of blocks encoded in one turn of the reactor */
#define STAGING_SHARE 4           /* of staging, one part of so many at most is lent to blocks on their way down or up */

enum kvf_cold_format kvf_cold_format_of(const struct kvf_entry *e)
{
    return e->flags & KVF_FLAG_INT8 ? KVF_COLD_INT8 : e->flags & KVF_FLAG_FP8 ? KVF_COLD_FP8 : KVF_COLD_EXACT;
}

enum kvf_cold_format kvf_cold_format_named(const char *name)
{
    return strcmp(name, "int8") == 0 ? KVF_COLD_INT8 : strcmp(name, "fp8") == 0 ? KVF_COLD_FP8 : KVF_COLD_EXACT;
}

struct kvf_cold kvf_cold_shape(const struct kvf_model *m, enum kvf_cold_format format)
{
    return (struct kvf_cold){.format = format, .dtype = m->desc.dtype, .n_chunks = m->chunks, .chunk_tokens = m->desc.chunk_tokens,
                             .dim_k = m->desc.dim_k, .dim_v = m->desc.dim_v};
}

uint32_t kvf_cold_bytes(const struct kvf_model *m, enum kvf_cold_format format)
{
    return format == KVF_COLD_EXACT ? m->block_bytes : m->block_bytes / (uint32_t)kvf_dtype_bytes(m->desc.dtype);
}

/* ---------------------------------------------------------------- words */

uint32_t kvf_cold_scale_words(const struct kvf_model *m)
{
    struct kvf_cold shape = kvf_cold_shape(m, KVF_COLD_INT8);
    return (uint32_t)((kvf_cold_scale_bytes(&shape) + 7) / 8);
}

static uint32_t words_of(const struct kvf_core *core, const struct kvf_entry *e)
{
    uint32_t chunks = kvf_entry_chunks(e);
    return e->flags & KVF_FLAG_WIDE ? chunks + kvf_cold_scale_words(core->models[kvf_entry_model(e)]) : chunks;
}

/* What an array of so many words may take of the room for words beyond the 64 that every block has: arrays do not cross pages of
 * KVF_SUMS_PAGE words. */
static uint64_t excess_of(uint32_t words)
{
    uint32_t fit = KVF_SUMS_PAGE / words, cost = (KVF_SUMS_PAGE + fit - 1) / fit;
    return words > 64 ? cost - 64 : 0;
}

uint64_t kvf_cold_excess_max(uint64_t blocks_max)
{
    uint64_t most = 3ull << 30, own = blocks_max * 64, excess = blocks_max * (KVF_SUMS_MAX - 64);
    return own >= most ? 0 : excess < most - own ? excess : most - own;
}

uint32_t kvf_cold_words_new(struct kvf_core *core, struct kvf_model *m, enum kvf_cold_format format, uint8_t *flags)
{
    uint32_t wide = m->chunks + kvf_cold_scale_words(m);
    *flags = 0;
    if (format != KVF_COLD_EXACT && wide <= KVF_SUMS_MAX && core->words_excess + excess_of(wide) <= core->words_excess_max) {
        uint32_t at = kvf_sums_alloc(core->sums, wide);
        if (at != KVF_SUMS_NONE) {
            core->words_excess += excess_of(wide);
            m->cold = true;
            *flags = KVF_FLAG_WIDE;
            return at;
        }
    }
    return kvf_sums_alloc(core->sums, m->chunks);
}

void kvf_cold_words_free(struct kvf_core *core, const struct kvf_entry *e)
{
    uint32_t words = words_of(core, e);
    if (e->flags & KVF_FLAG_WIDE)
        core->words_excess -= excess_of(words);
    kvf_sums_free(core->sums, e->sums, words);
}

uint64_t kvf_cold_seed(const struct kvf_dev *dev, uint64_t seed, const struct kvf_cold *shape, const void *scales)
{
    uint64_t out = 0;
    dev->checksum(dev, NULL, scales, kvf_cold_scale_bytes(shape), seed + ((uint64_t)shape->format << 56), &out);
    return out;
}

/* ---------------------------------------------------------------- down */

void kvf_cold_turn(struct kvf_core *core)
{
    core->cold_left = PORTION_BYTES;
    core->cold_wait = false;
}

static uint32_t pages_of(uint32_t bytes)
{
    return (bytes + 4095) / 4096 * 4096;
}

/* Codes, then from the next 4096 on the words: what is written to SSD is whole pages, and no old bytes go with them. */
static void encode(struct kvf_core *core, const struct kvf_entry *e, const struct kvf_cold *shape, struct kvf_cold_copy *copy)
{
    const struct kvf_dev *dev = core->dev;
    uint8_t *codes = core->memory + core->staging_at + copy->slot;
    uint32_t chunks = kvf_entry_chunks(e), pages = pages_of(copy->bytes);
    const struct kvf_model *m = core->models[kvf_entry_model(e)];
    copy->data = codes;
    copy->words = (uint64_t *)(void *)(codes + pages);
    copy->words[chunks + kvf_cold_scale_words(m) - 1] = 0; /* its end may lie behind the last scale */
    enum kvf_status st = dev->encode(dev, NULL, shape, core->memory + kvf_entry_location(e), codes, copy->words + chunks);
    assert(st == KVF_OK);
    (void)st;
    core->cold_left = core->cold_left > m->block_bytes ? core->cold_left - m->block_bytes : 0;
    if (!kvf_cold_has_form(shape, copy->words + chunks))
        return;
    memset(codes + copy->bytes, 0, pages - copy->bytes);
    copy->format = shape->format;
    copy->seed = kvf_cold_seed(dev, kvf_block_seed(m->fingerprint, e->key), shape, copy->words + chunks);
    kvf_block_sum(dev, copy->seed, codes, copy->bytes, (uint32_t)kvf_cold_chunk_bytes(shape), UINT64_MAX, copy->words);
}

static void exact(struct kvf_core *core, const struct kvf_entry *e, struct kvf_cold_copy *copy)
{
    *copy = (struct kvf_cold_copy){.data = core->memory + kvf_entry_location(e), .bytes = e->bytes, .slot = KVF_ARENA_NONE,
                                   .chunk_bytes = kvf_block_chunk_bytes(core, e), .format = KVF_COLD_EXACT,
                                   .words = kvf_sums_at(core->sums, e->sums), .seed = kvf_block_seed_of(core, e)};
}

/* Of staging, for a block of this model on its way down. */
static uint32_t slot_bytes_of(const struct kvf_core *core, const struct kvf_model *m)
{
    return pages_of(kvf_cold_bytes(m, core->cold_format)) + (m->chunks + kvf_cold_scale_words(m)) * 8;
}

static uint64_t staging_share(const struct kvf_core *core)
{
    return kvf_arena_bytes(core->staging) / STAGING_SHARE;
}

uint64_t kvf_cold_slot(struct kvf_core *core, uint32_t bytes, bool prefetch)
{
    if (core->cold_bytes > 0 && core->cold_bytes + bytes > staging_share(core)) /* a single large block may go */
        return KVF_ARENA_NONE;
    uint64_t slot = kvf_stage_memory(core, bytes, prefetch);
    if (slot != KVF_ARENA_NONE)
        core->cold_bytes += bytes;
    return slot;
}

void kvf_cold_slot_free(struct kvf_core *core, uint64_t slot, uint32_t bytes)
{
    kvf_arena_free(core->staging, slot, bytes);
    core->cold_bytes -= bytes;
}

/* What a new home was told of a departed block stays true. */
static bool is_encoded(const struct kvf_core *core, const struct kvf_entry *e)
{
    return core->cold_format != KVF_COLD_EXACT && (e->flags & KVF_FLAG_WIDE) && !(e->flags & KVF_FLAG_DEPARTED) &&
           slot_bytes_of(core, core->models[kvf_entry_model(e)]) <= staging_share(core);
}

uint32_t kvf_cold_copy_bytes(const struct kvf_core *core, const struct kvf_entry *e)
{
    return is_encoded(core, e) ? kvf_cold_bytes(core->models[kvf_entry_model(e)], core->cold_format) : e->bytes;
}

bool kvf_cold_copy_make(struct kvf_core *core, const struct kvf_entry *e, struct kvf_cold_copy *copy)
{
    assert(e->tier == KVF_TIER_DRAM && kvf_cold_format_of(e) == KVF_COLD_EXACT);
    if (!is_encoded(core, e)) {
        exact(core, e, copy);
        return true;
    }
    const struct kvf_model *m = core->models[kvf_entry_model(e)];
    struct kvf_cold shape = kvf_cold_shape(m, core->cold_format);
    uint32_t slot_bytes = slot_bytes_of(core, m);
    /* Before what was read ahead: somebody waits for room. */
    uint64_t slot = core->cold_left > 0 ? kvf_cold_slot(core, slot_bytes, false) : KVF_ARENA_NONE;
    if (slot == KVF_ARENA_NONE) {
        core->cold_wait = true;
        return false;
    }
    *copy = (struct kvf_cold_copy){.bytes = kvf_cold_bytes(m, core->cold_format), .slot = slot, .slot_bytes = slot_bytes,
                                   .chunk_bytes = (uint32_t)kvf_cold_chunk_bytes(&shape), .format = KVF_COLD_EXACT};
    encode(core, e, &shape, copy);
    kvf_count(&core->counters.cold_blocks, 1);
    if (copy->format == KVF_COLD_EXACT) { /* NaN or infinity */
        kvf_count(&core->counters.cold_refused, 1);
        kvf_cold_copy_free(core, copy);
        exact(core, e, copy);
    }
    return true;
}

void kvf_cold_copy_free(struct kvf_core *core, struct kvf_cold_copy *copy)
{
    if (copy->slot == KVF_ARENA_NONE)
        return;
    kvf_cold_slot_free(core, copy->slot, copy->slot_bytes);
    copy->slot = KVF_ARENA_NONE;
}

bool kvf_cold_may_change(const struct kvf_core *core, kvf_handle handle, enum kvf_cold_format to)
{
    const struct kvf_entry *e = kvf_index_entry(core->index, handle);
    return kvf_cold_format_of(e) == to || !kvf_stage_pinned(core, handle);
}

void kvf_cold_become(struct kvf_core *core, kvf_handle handle, enum kvf_cold_format format, const uint64_t *words)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    assert(!words || kvf_cold_may_change(core, handle, format));
    if (format == kvf_cold_format_of(e))
        return;
    assert(e->flags & KVF_FLAG_WIDE);
    kvf_stage_drop(core, handle); /* what is there has the other format */
    const struct kvf_model *m = core->models[kvf_entry_model(e)];
    e->flags &= (uint8_t) ~(KVF_FLAG_INT8 | KVF_FLAG_FP8);
    e->flags |= format == KVF_COLD_INT8 ? KVF_FLAG_INT8 : format == KVF_COLD_FP8 ? KVF_FLAG_FP8 : 0;
    e->bytes = kvf_cold_bytes(m, format);
    uint32_t n = format == KVF_COLD_EXACT ? m->chunks : m->chunks + kvf_cold_scale_words(m);
    if (words)
        memcpy(kvf_sums_at(core->sums, e->sums), words, n * sizeof *words);
}

/* ---------------------------------------------------------------- up */

void kvf_cold_decode(const struct kvf_core *core, const struct kvf_model *m, enum kvf_cold_format format, uint64_t mask,
                     const void *codes, const uint64_t *words, void *block)
{
    struct kvf_cold shape = kvf_cold_shape(m, format);
    enum kvf_status st = core->dev->decode(core->dev, NULL, &shape, mask, codes, words + m->chunks, block);
    assert(st == KVF_OK);
    (void)st;
}
