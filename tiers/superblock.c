/* The superblock's bytes. Magic, version and checksum keep their places in every version to come, so that an older program
 * can tell a later version (refuse it) from damage (write it anew). */
#include "tiers/superblock.h"
#include "base/bytes.h"
#include "base/hash.h"

#include <assert.h>

#define MAGIC "KVFAREA\n"
#define MAGIC_BYTES 8u
#define CHECKSUM_AT (KVF_SUPERBLOCK_BYTES - 8u)

void kvf_superblock_encode(const struct kvf_superblock *s, uint8_t out[KVF_SUPERBLOCK_BYTES])
{
    assert(strnlen(s->node, sizeof s->node) < sizeof s->node);
    memset(out, 0, KVF_SUPERBLOCK_BYTES);
    struct kvf_writer w = kvf_writer_of(out, CHECKSUM_AT);
    char name[KVF_SUPERBLOCK_NAME_MAX] = {0};
    memcpy(name, s->node, strlen(s->node));
    kvf_write_bytes(&w, MAGIC, MAGIC_BYTES);
    kvf_write_u32(&w, s->version);
    kvf_write_u32(&w, s->align);
    kvf_write_u64(&w, s->area_bytes);
    kvf_write_u64(&w, s->slots_start);
    kvf_write_u32(&w, s->page_bytes);
    kvf_write_u32(&w, 0);
    kvf_write_u64(&w, s->incarnation);
    kvf_write_bytes(&w, name, sizeof name);
    kvf_write_u64(&w, s->journal_start);
    kvf_write_u64(&w, s->half_bytes);
    assert(!w.bad && kvf_writer_used(&w) == 128);
    w = kvf_writer_of(out + CHECKSUM_AT, 8);
    kvf_write_u64(&w, kvf_hash(out, CHECKSUM_AT, 0));
    assert(!w.bad);
}

/* Two halves of at least two blocks between the superblocks and the slots; none in version 1. */
static bool plausible_journal(const struct kvf_superblock *s)
{
    if (s->version == 1)
        return s->journal_start == 0 && s->half_bytes == 0;
    return s->journal_start >= 2 * KVF_SUPERBLOCK_BYTES && s->journal_start < s->slots_start && s->half_bytes >= 8192 &&
           s->half_bytes / 4096 < UINT32_MAX && s->half_bytes <= (s->slots_start - s->journal_start) / 2 &&
           s->journal_start % 4096 == 0 && s->half_bytes % 4096 == 0;
}

/* Sizes that no program of its version wrote are damage that the checksum let through, or somebody's forgery. */
static bool plausible(const struct kvf_superblock *s)
{
    return plausible_journal(s) && s->align >= 512 && !(s->align & (s->align - 1)) && s->slots_start >= KVF_SUPERBLOCK_BYTES &&
           s->slots_start % s->align == 0 && s->page_bytes >= s->align && s->area_bytes >= s->slots_start &&
           s->area_bytes - s->slots_start >= s->page_bytes && s->node[0] && memchr(s->node, 0, sizeof s->node);
}

enum kvf_status kvf_superblock_decode(const void *data, size_t bytes, struct kvf_superblock *out)
{
    if (bytes < KVF_SUPERBLOCK_BYTES || memcmp(data, MAGIC, MAGIC_BYTES) != 0)
        return KVF_ERR_CORRUPT;
    struct kvf_reader r = kvf_reader_of((const uint8_t *)data + CHECKSUM_AT, 8);
    if (kvf_read_u64(&r) != kvf_hash(data, CHECKSUM_AT, 0))
        return KVF_ERR_CORRUPT;

    struct kvf_superblock s = {0};
    r = kvf_reader_of((const uint8_t *)data + MAGIC_BYTES, CHECKSUM_AT - MAGIC_BYTES);
    s.version = kvf_read_u32(&r);
    if (s.version > KVF_SUPERBLOCK_VERSION) {
        out->version = s.version;
        return KVF_ERR_UNSUPPORTED;
    }
    s.align = kvf_read_u32(&r);
    s.area_bytes = kvf_read_u64(&r);
    s.slots_start = kvf_read_u64(&r);
    s.page_bytes = kvf_read_u32(&r);
    (void)kvf_read_u32(&r);
    s.incarnation = kvf_read_u64(&r);
    const uint8_t *name = kvf_read_bytes(&r, sizeof s.node);
    assert(name);
    memcpy(s.node, name, sizeof s.node);
    s.journal_start = kvf_read_u64(&r);
    s.half_bytes = kvf_read_u64(&r);
    if (s.version == 0 || !plausible(&s))
        return KVF_ERR_CORRUPT;
    *out = s;
    return KVF_OK;
}
