/* Payloads of ATTEND and ATTEND_PROBE. */
#include "node/attend_remote.h"
#include <assert.h>
#include <math.h>

enum { HEAD_BYTES = 8 + 2 + 7 * 2 + 4, ITEM_BYTES = 16 + 8 + 8 + 2 };

static void float_write(struct kvf_writer *w, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    kvf_write_u32(w, bits);
}

static float float_read(struct kvf_reader *r)
{
    uint32_t bits = kvf_read_u32(r);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static bool dim_valid(uint32_t dim)
{
    return dim >= 16 && dim <= 512 && dim % 16 == 0;
}

bool kvf_attend_shape_valid(const struct kvf_attend_shape *s)
{
    if (kvf_dtype_bytes(s->dtype) == 0 || !dim_valid(s->dim_k) || !dim_valid(s->dim_v))
        return false;
    if (s->chunk_tokens < 4 || s->chunk_tokens > 64 || (s->chunk_tokens & (s->chunk_tokens - 1)) != 0)
        return false;
    if (s->chunks < 1 || s->chunks > 64 || s->chunks * s->chunk_tokens > KVF_STEP_TOKENS_MAX)
        return false;
    return s->rows >= 1 && s->rows <= KVF_ATTEND_ROWS_MAX && isfinite(s->scale) && s->scale > 0;
}

uint32_t kvf_attend_block_bytes(const struct kvf_attend_shape *s, uint8_t format)
{
    uint32_t element = format == KVF_COLD_EXACT ? (uint32_t)kvf_dtype_bytes(s->dtype) : 1;
    return s->chunks * s->chunk_tokens * (s->dim_k + s->dim_v) * element;
}

uint32_t kvf_attend_scale_words(const struct kvf_attend_shape *s)
{
    return (uint32_t)(((s->dim_k + s->chunks) * kvf_dtype_bytes(s->dtype) + 7) / 8);
}

static uint32_t item_words(const struct kvf_attend_shape *s, uint64_t mask, uint8_t format)
{
    return (uint32_t)__builtin_popcountll(mask) + (format == KVF_COLD_EXACT ? 0 : kvf_attend_scale_words(s));
}

size_t kvf_attend_wire_head_bytes(void)
{
    return HEAD_BYTES;
}

size_t kvf_attend_wire_item_bytes(const struct kvf_attend_shape *s, uint64_t mask, uint8_t format)
{
    return ITEM_BYTES + (size_t)item_words(s, mask, format) * 8;
}

void kvf_attend_wire_head(struct kvf_writer *w, const struct kvf_attend_shape *s, unsigned n_items, unsigned n_sets)
{
    assert(n_items >= 1 && n_items <= KVF_BATCH_MAX && n_sets >= 1 && n_sets <= n_items);
    kvf_write_u64(w, s->fingerprint);
    kvf_write_u8(w, (uint8_t)s->dtype);
    kvf_write_u8(w, s->merged);
    kvf_write_u16(w, (uint16_t)s->chunk_tokens);
    kvf_write_u16(w, (uint16_t)s->chunks);
    kvf_write_u16(w, (uint16_t)s->dim_k);
    kvf_write_u16(w, (uint16_t)s->dim_v);
    kvf_write_u16(w, (uint16_t)s->rows);
    kvf_write_u16(w, (uint16_t)n_items);
    kvf_write_u16(w, (uint16_t)n_sets);
    float_write(w, s->scale);
}

void kvf_attend_wire_item(struct kvf_writer *w, const struct kvf_attend_shape *s, const struct kvf_attend_item *item,
                          const uint64_t *sums)
{
    assert(item->mask != 0);
    kvf_write_u64(w, item->key.hi);
    kvf_write_u64(w, item->key.lo);
    kvf_write_u64(w, item->offset);
    kvf_write_u64(w, item->mask);
    kvf_write_u8(w, item->set);
    kvf_write_u8(w, item->format);
    for (uint64_t left = item->mask; left; left &= left - 1)
        kvf_write_u64(w, sums[__builtin_ctzll(left)]);
    for (uint32_t i = 0; item->format != KVF_COLD_EXACT && i < kvf_attend_scale_words(s); i++)
        kvf_write_u64(w, sums[s->chunks + i]);
}

static bool item_read(struct kvf_reader *r, const struct kvf_attend_shape *s, unsigned n_sets, struct kvf_attend_item *item)
{
    item->key.hi = kvf_read_u64(r);
    item->key.lo = kvf_read_u64(r);
    item->offset = kvf_read_u64(r);
    item->mask = kvf_read_u64(r);
    item->set = kvf_read_u8(r);
    item->format = kvf_read_u8(r);
    if (r->bad || item->mask == 0 || (s->chunks < 64 && item->mask >> s->chunks) || item->set >= n_sets)
        return false;
    if (item->format > KVF_COLD_FP8)
        return false;
    if (item->format != KVF_COLD_EXACT && s->chunks + kvf_attend_scale_words(s) > KVF_SUMS_MAX)
        return false;
    item->words = kvf_read_bytes(r, (size_t)item_words(s, item->mask, item->format) * 8);
    return item->words != NULL;
}

bool kvf_attend_wire_question_read(struct kvf_reader *r, struct kvf_attend_question *out)
{
    struct kvf_attend_shape *s = &out->shape;
    s->fingerprint = kvf_read_u64(r);
    s->dtype = (enum kvf_dtype)kvf_read_u8(r);
    uint8_t flags = kvf_read_u8(r);
    s->merged = flags & 1;
    s->chunk_tokens = kvf_read_u16(r);
    s->chunks = kvf_read_u16(r);
    s->dim_k = kvf_read_u16(r);
    s->dim_v = kvf_read_u16(r);
    s->rows = kvf_read_u16(r);
    out->n_items = kvf_read_u16(r);
    out->n_sets = kvf_read_u16(r);
    s->scale = float_read(r);
    if (r->bad || flags > 1 || !kvf_attend_shape_valid(s) || out->n_items < 1 || out->n_items > KVF_BATCH_MAX)
        return false;
    if (out->n_sets < 1 || out->n_sets > out->n_items)
        return false;
    for (unsigned i = 0; i < out->n_items; i++)
        if (!item_read(r, s, out->n_sets, &out->items[i]))
            return false;
    out->queries = kvf_read_bytes(r, (size_t)out->n_sets * s->rows * s->dim_k * sizeof(float));
    return out->queries && kvf_reader_left(r) == 0;
}

/* ---------------------------------------------------------------- answers */

void kvf_attend_wire_answer(struct kvf_writer *w, const uint8_t *verdicts, unsigned n, uint32_t busy_us)
{
    kvf_write_u16(w, (uint16_t)n);
    kvf_write_u32(w, busy_us);
    kvf_write_bytes(w, verdicts, n);
}

/* Of good items: one part for each, or one for every set among them. */
static unsigned parts_of(const struct kvf_attend_shape *s, const uint8_t *sets, const uint8_t *verdicts, unsigned n)
{
    uint64_t seen = 0;
    unsigned good = 0;
    for (unsigned i = 0; i < n; i++) {
        if (verdicts[i] != KVF_ATTEND_GOOD)
            continue;
        good++;
        seen |= 1ull << sets[i];
    }
    return s->merged ? (unsigned)__builtin_popcountll(seen) : good;
}

bool kvf_attend_wire_answer_read(struct kvf_reader *r, const struct kvf_attend_shape *shape, const uint8_t *sets, unsigned n,
                                 struct kvf_attend_answer *out)
{
    out->n = kvf_read_u16(r);
    out->busy_us = kvf_read_u32(r);
    if (r->bad || out->n != n || n < 1 || n > KVF_BATCH_MAX)
        return false;
    for (unsigned i = 0; i < n; i++) {
        out->verdicts[i] = kvf_read_u8(r);
        if (out->verdicts[i] >= KVF_ATTEND_VERDICTS)
            return false;
    }
    out->parts = r->bad ? 0 : parts_of(shape, sets, out->verdicts, n);
    out->numbers = kvf_read_bytes(r, out->parts * kvf_attend_part_bytes(shape));
    return out->numbers && kvf_reader_left(r) == 0;
}

/* ---------------------------------------------------------------- probes */

static void zeros_write(struct kvf_writer *w, uint32_t n)
{
    static const uint8_t zeros[256];
    for (uint32_t left = n; left > 0;) {
        uint32_t some = left < sizeof zeros ? left : (uint32_t)sizeof zeros;
        kvf_write_bytes(w, zeros, some);
        left -= some;
    }
}

void kvf_attend_wire_probe(struct kvf_writer *w, uint32_t answer_bytes, uint32_t padding)
{
    kvf_write_u32(w, answer_bytes);
    zeros_write(w, padding);
}

bool kvf_attend_wire_probe_read(struct kvf_reader *r, uint32_t *answer_bytes)
{
    *answer_bytes = kvf_read_u32(r);
    return !r->bad && *answer_bytes <= KVF_ATTEND_PROBE_BYTES && kvf_reader_left(r) <= KVF_ATTEND_PROBE_BYTES;
}

void kvf_attend_wire_ability(struct kvf_writer *w, const struct kvf_attend_ability *a)
{
    kvf_write_u64(w, a->print);
    kvf_write_u32(w, a->chunk_ps);
    kvf_write_u32(w, a->row_ps);
}

bool kvf_attend_wire_ability_read(struct kvf_reader *r, uint32_t padding, struct kvf_attend_ability *out)
{
    out->print = kvf_read_u64(r);
    out->chunk_ps = kvf_read_u32(r);
    out->row_ps = kvf_read_u32(r);
    return !r->bad && kvf_reader_left(r) == padding;
}
