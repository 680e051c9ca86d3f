#include "node/wire.h"

static void key_write(struct kvf_writer *w, struct kvf_key key)
{
    kvf_write_u64(w, key.hi);
    kvf_write_u64(w, key.lo);
}

static struct kvf_key key_read(struct kvf_reader *r)
{
    struct kvf_key key;
    key.hi = kvf_read_u64(r);
    key.lo = kvf_read_u64(r);
    return key;
}

/* A count of 1..KVF_BATCH_MAX. */
static bool count_read(struct kvf_reader *r, unsigned *n)
{
    *n = kvf_read_u16(r);
    return !r->bad && *n >= 1 && *n <= KVF_BATCH_MAX;
}

static bool ended(const struct kvf_reader *r)
{
    return !r->bad && kvf_reader_left(r) == 0;
}

void kvf_wire_reserve(struct kvf_writer *w, const struct kvf_reserve_item *items, unsigned n)
{
    kvf_write_u16(w, (uint16_t)n);
    for (unsigned i = 0; i < n; i++) {
        key_write(w, items[i].key);
        kvf_write_u32(w, items[i].bytes);
    }
}

bool kvf_wire_reserve_read(struct kvf_reader *r, struct kvf_reserve_item *items, unsigned *n)
{
    if (!count_read(r, n))
        return false;
    for (unsigned i = 0; i < *n; i++) {
        items[i].key = key_read(r);
        items[i].bytes = kvf_read_u32(r);
    }
    return ended(r);
}

void kvf_wire_granted(struct kvf_writer *w, const uint64_t *offsets, unsigned n)
{
    kvf_write_u16(w, (uint16_t)n);
    for (unsigned i = 0; i < n; i++)
        kvf_write_u64(w, offsets[i]);
}

bool kvf_wire_granted_read(struct kvf_reader *r, uint64_t *offsets, unsigned *n)
{
    *n = kvf_read_u16(r);
    if (r->bad || *n > KVF_BATCH_MAX)
        return false;
    for (unsigned i = 0; i < *n; i++)
        offsets[i] = kvf_read_u64(r);
    return ended(r);
}

void kvf_wire_put(struct kvf_writer *w, const struct kvf_put_item *items, unsigned n)
{
    kvf_write_u16(w, (uint16_t)n);
    for (unsigned i = 0; i < n; i++) {
        key_write(w, items[i].key);
        kvf_write_u32(w, items[i].at);
        kvf_write_u32(w, items[i].bytes);
    }
}

bool kvf_wire_put_read(struct kvf_reader *r, struct kvf_put_item *items, unsigned *n)
{
    if (!count_read(r, n))
        return false;
    uint64_t sum = 0;
    for (unsigned i = 0; i < *n; i++) {
        items[i].key = key_read(r);
        items[i].at = kvf_read_u32(r);
        items[i].bytes = kvf_read_u32(r);
        sum += items[i].bytes;
    }
    return !r->bad && kvf_reader_left(r) == sum;
}

void kvf_wire_commit(struct kvf_writer *w, const struct kvf_commit_item *item)
{
    key_write(w, item->key);
    kvf_write_u64(w, item->seed);
    kvf_write_u64(w, item->offset);
    kvf_write_u32(w, item->bytes);
    kvf_write_u32(w, item->chunk_bytes);
    kvf_write_u8(w, item->chunks);
    for (unsigned c = 0; c < item->chunks; c++)
        kvf_write_u64(w, item->sums[c]);
}

bool kvf_wire_commit_read(struct kvf_reader *r, struct kvf_commit_item *item)
{
    item->key = key_read(r);
    item->seed = kvf_read_u64(r);
    item->offset = kvf_read_u64(r);
    item->bytes = kvf_read_u32(r);
    item->chunk_bytes = kvf_read_u32(r);
    item->chunks = kvf_read_u8(r);
    if (r->bad || item->chunks < 1 || item->chunks > 64 || item->chunk_bytes == 0)
        return false;
    if (((uint64_t)item->bytes + item->chunk_bytes - 1) / item->chunk_bytes != item->chunks)
        return false;
    for (unsigned c = 0; c < item->chunks; c++)
        item->sums[c] = kvf_read_u64(r);
    return !r->bad;
}

void kvf_wire_keys(struct kvf_writer *w, const struct kvf_key *keys, unsigned n)
{
    kvf_write_u16(w, (uint16_t)n);
    for (unsigned i = 0; i < n; i++)
        key_write(w, keys[i]);
}

bool kvf_wire_keys_read(struct kvf_reader *r, struct kvf_key *keys, unsigned *n)
{
    if (!count_read(r, n))
        return false;
    for (unsigned i = 0; i < *n; i++)
        keys[i] = key_read(r);
    return ended(r);
}

void kvf_wire_places(struct kvf_writer *w, const struct kvf_place *places, unsigned n)
{
    kvf_write_u16(w, (uint16_t)n);
    for (unsigned i = 0; i < n; i++) {
        key_write(w, places[i].key);
        kvf_write_u64(w, places[i].location);
    }
}

bool kvf_wire_places_read(struct kvf_reader *r, struct kvf_place *places, unsigned *n)
{
    if (!count_read(r, n))
        return false;
    for (unsigned i = 0; i < *n; i++) {
        places[i].key = key_read(r);
        places[i].location = kvf_read_u64(r);
    }
    return ended(r);
}

void kvf_wire_reads(struct kvf_writer *w, const struct kvf_read_item *items, unsigned n)
{
    kvf_write_u16(w, (uint16_t)n);
    for (unsigned i = 0; i < n; i++) {
        key_write(w, items[i].key);
        kvf_write_u64(w, items[i].mask);
    }
}

bool kvf_wire_reads_read(struct kvf_reader *r, struct kvf_read_item *items, unsigned *n)
{
    if (!count_read(r, n))
        return false;
    for (unsigned i = 0; i < *n; i++) {
        items[i].key = key_read(r);
        items[i].mask = kvf_read_u64(r);
        if (items[i].mask == 0)
            return false;
    }
    return ended(r);
}

void kvf_wire_pieces(struct kvf_writer *w, uint64_t id, const struct kvf_piece_item *items, unsigned n)
{
    kvf_write_u64(w, id);
    kvf_write_u16(w, (uint16_t)n);
    for (unsigned i = 0; i < n; i++) {
        kvf_write_u16(w, items[i].item);
        kvf_write_u64(w, items[i].mask);
    }
}

bool kvf_wire_pieces_read(struct kvf_reader *r, uint64_t *id, struct kvf_piece_item *items, unsigned *n)
{
    *id = kvf_read_u64(r);
    if (!count_read(r, n))
        return false;
    for (unsigned i = 0; i < *n; i++) {
        items[i].item = kvf_read_u16(r);
        items[i].mask = kvf_read_u64(r);
        if (items[i].item >= KVF_BATCH_MAX || items[i].mask == 0)
            return false;
    }
    return !r->bad;
}

void kvf_wire_statuses(struct kvf_writer *w, const uint8_t *statuses, unsigned n)
{
    kvf_write_u16(w, (uint16_t)n);
    kvf_write_bytes(w, statuses, n);
}

bool kvf_wire_statuses_read(struct kvf_reader *r, uint8_t *statuses, unsigned *n)
{
    if (!count_read(r, n))
        return false;
    const uint8_t *bytes = kvf_read_bytes(r, *n);
    if (!bytes)
        return false;
    memcpy(statuses, bytes, *n);
    return true;
}

static void desc_write(struct kvf_writer *w, const struct kvf_model_desc *d)
{
    kvf_write_bytes(w, d->name, sizeof d->name);
    kvf_write_u64(w, d->weights_id);
    kvf_write_u32(w, d->layers);
    kvf_write_u32(w, d->kv_heads);
    kvf_write_u32(w, d->q_heads);
    kvf_write_u32(w, d->dim_k);
    kvf_write_u32(w, d->dim_v);
    kvf_write_u32(w, (uint32_t)d->dtype);
    kvf_write_u32(w, d->chunk_tokens);
    kvf_write_u32(w, d->block_tokens);
}

static void name_read(struct kvf_reader *r, char *name, size_t size)
{
    const uint8_t *bytes = kvf_read_bytes(r, size);
    memset(name, 0, size);
    if (bytes)
        memcpy(name, bytes, size);
    if (name[size - 1] != 0)
        r->bad = true;
}

static void desc_read(struct kvf_reader *r, struct kvf_model_desc *d)
{
    memset(d, 0, sizeof *d);
    name_read(r, d->name, sizeof d->name);
    d->weights_id = kvf_read_u64(r);
    d->layers = kvf_read_u32(r);
    d->kv_heads = kvf_read_u32(r);
    d->q_heads = kvf_read_u32(r);
    d->dim_k = kvf_read_u32(r);
    d->dim_v = kvf_read_u32(r);
    d->dtype = (enum kvf_dtype)kvf_read_u32(r);
    d->chunk_tokens = kvf_read_u32(r);
    d->block_tokens = kvf_read_u32(r);
}

static bool name_valid(const char *name, size_t size)
{
    size_t n = strnlen(name, size);
    if (n == 0 || n == size)
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
        if (!fine)
            return false;
    }
    return true;
}

bool kvf_model_desc_valid(const struct kvf_model_desc *d)
{
    if (!name_valid(d->name, sizeof d->name))
        return false;
    if (d->layers < 1 || d->layers > 1024 || d->kv_heads < 1 || d->kv_heads > 1024)
        return false;
    if (d->q_heads < d->kv_heads || d->q_heads > 65536 || d->q_heads % d->kv_heads != 0)
        return false;
    if (d->dim_k < 16 || d->dim_k > 512 || d->dim_k % 16 || d->dim_v < 16 || d->dim_v > 512 || d->dim_v % 16)
        return false;
    if (kvf_dtype_bytes(d->dtype) == 0)
        return false;
    if (d->chunk_tokens < 4 || d->chunk_tokens > 64 || (d->chunk_tokens & (d->chunk_tokens - 1)) != 0)
        return false;
    if (d->block_tokens < 16 || d->block_tokens > KVF_STEP_TOKENS_MAX || d->block_tokens % d->chunk_tokens != 0)
        return false;
    if (d->block_tokens / d->chunk_tokens > 64)
        return false;
    return d->block_tokens * (uint64_t)(d->dim_k + d->dim_v) * kvf_dtype_bytes(d->dtype) % 4096 == 0;
}

void kvf_wire_offer(struct kvf_writer *w, const struct kvf_move_offer *o)
{
    kvf_write_u64(w, o->session);
    kvf_write_u64(w, o->number);
    kvf_write_u64(w, o->epoch);
    kvf_write_u64(w, o->fingerprint);
    desc_write(w, &o->desc);
    kvf_write_u64(w, o->n_tokens);
    kvf_write_u32(w, o->sealed_blocks);
    kvf_write_u32(w, o->blob_bytes);
    kvf_write_bytes(w, o->blob, o->blob_bytes);
    kvf_write_u8(w, o->n_lenders);
    for (unsigned i = 0; i < o->n_lenders; i++) {
        kvf_write_bytes(w, o->lenders[i].name, sizeof o->lenders[i].name);
        kvf_write_u64(w, o->lenders[i].incarnation);
    }
}

bool kvf_wire_offer_read(struct kvf_reader *r, struct kvf_move_offer *o)
{
    memset(o, 0, sizeof *o);
    o->session = kvf_read_u64(r);
    o->number = kvf_read_u64(r);
    o->epoch = kvf_read_u64(r);
    o->fingerprint = kvf_read_u64(r);
    desc_read(r, &o->desc);
    o->n_tokens = kvf_read_u64(r);
    o->sealed_blocks = kvf_read_u32(r);
    o->blob_bytes = kvf_read_u32(r);
    if (r->bad || o->blob_bytes > KVF_STATE_BYTES_MAX)
        return false;
    const uint8_t *blob = kvf_read_bytes(r, o->blob_bytes);
    if (blob && o->blob_bytes)
        memcpy(o->blob, blob, o->blob_bytes);
    o->n_lenders = kvf_read_u8(r);
    if (r->bad || o->n_lenders > KVF_LENDERS_MAX)
        return false;
    for (unsigned i = 0; i < o->n_lenders; i++) {
        name_read(r, o->lenders[i].name, sizeof o->lenders[i].name);
        o->lenders[i].incarnation = kvf_read_u64(r);
    }
    if (!ended(r) || !kvf_model_desc_valid(&o->desc) || o->n_tokens > KVF_SESSION_TOKENS_MAX)
        return false;
    if (o->session == 0 || (o->session & KVF_OPAQUE_BIT))
        return false;
    return o->sealed_blocks == o->n_tokens / o->desc.block_tokens;
}

static unsigned block_words(const struct kvf_move_block *b, unsigned chunks, unsigned scale_words)
{
    return b->format == KVF_COLD_EXACT ? chunks : chunks + scale_words;
}

void kvf_wire_block(struct kvf_writer *w, const struct kvf_move_block *b, unsigned chunks, unsigned scale_words)
{
    kvf_write_u16(w, b->layer);
    kvf_write_u16(w, b->head);
    kvf_write_u32(w, b->index);
    kvf_write_u8(w, b->tier);
    kvf_write_u8(w, b->lender);
    kvf_write_u8(w, b->format);
    kvf_write_u64(w, b->location);
    for (unsigned i = 0; i < block_words(b, chunks, scale_words); i++)
        kvf_write_u64(w, b->words[i]);
}

bool kvf_wire_block_read(struct kvf_reader *r, struct kvf_move_block *b, unsigned chunks, unsigned scale_words)
{
    b->layer = kvf_read_u16(r);
    b->head = kvf_read_u16(r);
    b->index = kvf_read_u32(r);
    b->tier = kvf_read_u8(r);
    b->lender = kvf_read_u8(r);
    b->format = kvf_read_u8(r);
    b->location = kvf_read_u64(r);
    if (r->bad || b->format > KVF_COLD_FP8 || (b->format != KVF_COLD_EXACT && b->tier == KVF_TIER_COUNT))
        return false;
    unsigned words = block_words(b, chunks, scale_words);
    for (unsigned i = 0; i < words && words <= KVF_SUMS_MAX; i++)
        b->words[i] = kvf_read_u64(r);
    return !r->bad && words <= KVF_SUMS_MAX &&
           (b->tier == KVF_TIER_REMOTE || b->tier == KVF_TIER_PEER || b->tier == KVF_TIER_COUNT);
}
