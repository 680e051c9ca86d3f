// needs: tiers/superblock.c
/* Any bytes as a superblock: no crash; what is accepted encodes to bytes that decode to the same; and so does any input
 * whose checksum is made right, so that the fields behind it are reached. */
#include "base/bytes.h"
#include "base/hash.h"
#include "tiers/superblock.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool truth)
{
    if (!truth)
        abort();
}

static void check_page(const uint8_t *page, size_t bytes)
{
    struct kvf_superblock s = {0}, again;
    uint8_t out[KVF_SUPERBLOCK_BYTES];
    enum kvf_status st = kvf_superblock_decode(page, bytes, &s);
    require(st == KVF_OK || st == KVF_ERR_CORRUPT || st == KVF_ERR_UNSUPPORTED);
    require(st != KVF_ERR_UNSUPPORTED || s.version > KVF_SUPERBLOCK_VERSION);
    if (st != KVF_OK)
        return;
    require((s.version >= 1 && s.version <= KVF_SUPERBLOCK_VERSION) && s.node[0] && s.area_bytes > s.slots_start);
    kvf_superblock_encode(&s, out);
    require(kvf_superblock_decode(out, sizeof out, &again) == KVF_OK);
    require(again.journal_start == s.journal_start && again.half_bytes == s.half_bytes);
    require(again.area_bytes == s.area_bytes && again.slots_start == s.slots_start && again.align == s.align &&
            again.page_bytes == s.page_bytes && again.incarnation == s.incarnation && !strcmp(again.node, s.node));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint8_t page[KVF_SUPERBLOCK_BYTES] = "KVFAREA\n";
    check_page(data, bytes);
    /* The input as the fields after the magic, under a right checksum. */
    memcpy(page + 8, data, bytes < sizeof page - 16 ? bytes : sizeof page - 16);
    struct kvf_writer w = kvf_writer_of(page + sizeof page - 8, 8);
    kvf_write_u64(&w, kvf_hash(page, sizeof page - 8, 0));
    check_page(page, sizeof page);
    return 0;
}
