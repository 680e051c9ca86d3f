/* The journal's bytes and its blocks in memory. */
#include "tiers/journal.h"
#include "base/bytes.h"
#include "base/hash.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>

#define MAGIC 0x4a46564bu /* "KVFJ" */
#define HEAD_BYTES 40u
#define CHECKSUM_AT (KVF_JOURNAL_BLOCK - 8u)
#define PAYLOAD (CHECKSUM_AT - HEAD_BYTES)
#define FREE_BYTES 16u
#define END_BYTES 8u

_Static_assert(PAYLOAD - (40 + 8 * KVF_JOURNAL_CHUNKS_MAX - 8) >= KVF_JOURNAL_FILL, "a block holds what is promised");

/* ---------------------------------------------------------------- one block */

bool kvf_journal_open(const void *block, uint64_t area, struct kvf_journal_head *out)
{
    struct kvf_reader r = kvf_reader_of(block, HEAD_BYTES);
    uint64_t sum;
    memcpy(&sum, (const uint8_t *)block + CHECKSUM_AT, sizeof sum);
    /* Most blocks that are not ours are told by the first words, without hashing. */
    if (kvf_read_u32(&r) != MAGIC)
        return false;
    out->used = kvf_read_u32(&r);
    if (kvf_read_u64(&r) != area || out->used > PAYLOAD)
        return false;
    out->generation = kvf_read_u64(&r);
    out->nonce = kvf_read_u64(&r);
    out->number = kvf_read_u32(&r);
    out->synced = kvf_read_u32(&r);
    out->tentative = out->synced == KVF_JOURNAL_TENTATIVE;
    if (out->tentative)
        out->synced = 0;
    return le64toh(sum) == kvf_hash(block, CHECKSUM_AT, area);
}

static uint64_t word_at(const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, sizeof w);
    return le64toh(w);
}

/* Every record begins with a word: kind 1 byte, chunks 1, flags 2, bytes 4. */
uint32_t kvf_journal_size(const void *block, const struct kvf_journal_head *head, uint32_t at)
{
    if (at > head->used || head->used - at < END_BYTES)
        return 0;
    const uint8_t *p = (const uint8_t *)block + HEAD_BYTES + at;
    uint32_t size = 0;
    if (p[0] == KVF_JOURNAL_END)
        size = END_BYTES;
    else if (p[0] == KVF_JOURNAL_FREE)
        size = FREE_BYTES;
    else if (p[0] == KVF_JOURNAL_PUT && p[1] >= 1 && p[1] <= KVF_JOURNAL_CHUNKS_MAX)
        size = kvf_journal_record_bytes(p[1]);
    return size <= head->used - at ? size : 0;
}

bool kvf_journal_read(const void *block, const struct kvf_journal_head *head, uint32_t *at, struct kvf_journal_entry *out)
{
    const uint8_t *p = (const uint8_t *)block + HEAD_BYTES + *at;
    uint32_t size = kvf_journal_size(block, head, *at);
    if (!size)
        return false;
    uint64_t first = word_at(p);
    out->kind = (enum kvf_journal_kind)(first & 0xff);
    out->record = (struct kvf_ssd_record){.chunks = (uint8_t)(first >> 8), .flags = (uint16_t)(first >> 16),
                                          .bytes = (uint32_t)(first >> 32), .sums = out->sums};
    if (size > END_BYTES)
        out->record.offset = word_at(p + 8);
    if (out->kind == KVF_JOURNAL_PUT) {
        out->record.key = (struct kvf_key){.hi = word_at(p + 16), .lo = word_at(p + 24)};
        out->record.fingerprint = word_at(p + 32);
        for (unsigned c = 0; c < out->record.chunks; c++)
            out->sums[c] = word_at(p + 40 + 8 * c);
    }
    *at += size;
    return true;
}

/* ---------------------------------------------------------------- the machine */

enum kvf_status kvf_journal_init(struct kvf_journal *j, uint64_t area, uint64_t start, uint32_t half_blocks)
{
    assert(half_blocks >= 2);
    *j = (struct kvf_journal){.area = area, .start = start, .half_blocks = half_blocks, .end = half_blocks};
    j->ring = aligned_alloc(KVF_JOURNAL_BLOCK, (size_t)KVF_JOURNAL_RING * KVF_JOURNAL_BLOCK);
    return j->ring ? KVF_OK : KVF_ERR_NO_MEMORY;
}

void kvf_journal_fini(struct kvf_journal *j)
{
    free(j->ring);
    j->ring = NULL;
}

void kvf_journal_position(struct kvf_journal *j, uint64_t generation, uint64_t nonce, uint32_t next, uint32_t synced)
{
    assert(j->count == 0 && j->written == j->sealed && next <= j->half_blocks);
    assert(synced <= j->half_blocks || synced == KVF_JOURNAL_TENTATIVE);
    j->generation = generation;
    j->nonce = nonce;
    j->next = next;
    j->end = j->half_blocks;
    j->synced = synced;
}

static uint8_t *open_block(const struct kvf_journal *j)
{
    return j->ring + j->sealed % KVF_JOURNAL_RING * KVF_JOURNAL_BLOCK;
}

/* Head, checksum and the zeros behind the records of a block. */
static void close_block(const struct kvf_journal *j, uint8_t *block, uint32_t number, uint32_t used)
{
    struct kvf_writer w = kvf_writer_of(block, HEAD_BYTES);
    kvf_write_u32(&w, MAGIC);
    kvf_write_u32(&w, used);
    kvf_write_u64(&w, j->area);
    kvf_write_u64(&w, j->generation);
    kvf_write_u64(&w, j->nonce);
    kvf_write_u32(&w, number);
    kvf_write_u32(&w, j->synced);
    assert(!w.bad && kvf_writer_used(&w) == HEAD_BYTES);
    memset(block + HEAD_BYTES + used, 0, PAYLOAD - used);
    w = kvf_writer_of(block + CHECKSUM_AT, 8);
    kvf_write_u64(&w, kvf_hash(block, CHECKSUM_AT, j->area));
    assert(!w.bad);
}

void kvf_journal_blank(const struct kvf_journal *j, uint32_t number, void *block)
{
    assert(number < j->half_blocks);
    close_block(j, block, number, 0);
}

void kvf_journal_seal(struct kvf_journal *j)
{
    if (j->count == 0)
        return;
    close_block(j, open_block(j), j->next, j->used);
    j->sealed++;
    j->next++;
    j->used = j->count = 0;
}

/* Room for a record in the open block, or in the next. NULL: the half or the ring is full. */
static uint8_t *append(struct kvf_journal *j, uint32_t bytes)
{
    bool fits = j->count > 0 && j->used + bytes <= PAYLOAD;
    unsigned ahead = j->count > 0;
    if (!fits) {
        if (j->next + ahead >= j->end || j->sealed + ahead - j->written >= KVF_JOURNAL_RING)
            return NULL;
        kvf_journal_seal(j);
    }
    uint8_t *at = open_block(j) + HEAD_BYTES + j->used;
    j->used += bytes;
    j->count++;
    return at;
}

static void write_first(struct kvf_writer *w, enum kvf_journal_kind kind, uint8_t chunks, uint16_t flags, uint32_t bytes)
{
    kvf_write_u8(w, (uint8_t)kind);
    kvf_write_u8(w, chunks);
    kvf_write_u16(w, flags);
    kvf_write_u32(w, bytes);
}

bool kvf_journal_put(struct kvf_journal *j, const struct kvf_ssd_record *r)
{
    assert(r->chunks >= 1 && r->chunks <= KVF_JOURNAL_CHUNKS_MAX);
    uint32_t bytes = kvf_journal_record_bytes(r->chunks);
    uint8_t *at = append(j, bytes);
    if (!at)
        return false;
    struct kvf_writer w = kvf_writer_of(at, bytes);
    write_first(&w, KVF_JOURNAL_PUT, r->chunks, r->flags, r->bytes);
    kvf_write_u64(&w, r->offset);
    kvf_write_u64(&w, r->key.hi);
    kvf_write_u64(&w, r->key.lo);
    kvf_write_u64(&w, r->fingerprint);
    for (unsigned c = 0; c < r->chunks; c++)
        kvf_write_u64(&w, r->sums[c]);
    assert(!w.bad && kvf_writer_used(&w) == bytes);
    return true;
}

bool kvf_journal_free(struct kvf_journal *j, uint64_t offset, uint32_t bytes)
{
    uint8_t *at = append(j, FREE_BYTES);
    if (!at)
        return false;
    struct kvf_writer w = kvf_writer_of(at, FREE_BYTES);
    write_first(&w, KVF_JOURNAL_FREE, 0, 0, bytes);
    kvf_write_u64(&w, offset);
    return true;
}

bool kvf_journal_end(struct kvf_journal *j)
{
    uint8_t *at = append(j, END_BYTES);
    if (!at)
        return false;
    struct kvf_writer w = kvf_writer_of(at, END_BYTES);
    write_first(&w, KVF_JOURNAL_END, 0, 0, 0);
    return true;
}

uint64_t kvf_journal_ticket(const struct kvf_journal *j)
{
    return j->sealed + (j->count > 0);
}

uint32_t kvf_journal_left(const struct kvf_journal *j)
{
    return j->next + 1 < j->end ? j->end - j->next - 1 : 0;
}

bool kvf_journal_hand(struct kvf_journal *j, void **data, uint64_t *offset, uint32_t *bytes)
{
    if (j->handed != j->written || j->sealed == j->handed)
        return false;
    uint64_t first = j->handed % KVF_JOURNAL_RING, n = j->sealed - j->handed;
    if (n > KVF_JOURNAL_RING - first)
        n = KVF_JOURNAL_RING - first;
    uint64_t number = j->next - (j->sealed - j->handed);
    *data = j->ring + first * KVF_JOURNAL_BLOCK;
    *offset = j->start + (j->generation % 2 * j->half_blocks + number) * KVF_JOURNAL_BLOCK;
    *bytes = (uint32_t)(n * KVF_JOURNAL_BLOCK);
    j->handed += n;
    return true;
}

void kvf_journal_wrote(struct kvf_journal *j, uint32_t bytes)
{
    j->written += bytes / KVF_JOURNAL_BLOCK;
    assert(j->written == j->handed);
}

void kvf_journal_synced(struct kvf_journal *j, uint64_t durable)
{
    assert(durable >= j->durable && durable <= j->written && j->sealed - durable <= j->next);
    j->durable = durable;
    j->synced = j->next - (uint32_t)(j->sealed - durable);
}
