// needs: tiers/journal.c
/* Any bytes as a block of the journal: no crash, no read outside it, records within bounds; also under a right checksum, so
 * that the records are reached. What the machine appends is read back. */
#include "base/bytes.h"
#include "base/hash.h"
#include "tiers/journal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool truth)
{
    if (!truth)
        abort();
}

static void check_block(const uint8_t *block, uint64_t area)
{
    struct kvf_journal_head head;
    struct kvf_journal_entry e;
    uint32_t at = 0, before, n = 0;
    if (!kvf_journal_open(block, area, &head))
        return;
    require(!head.tentative || head.synced == 0);
    for (before = 0; kvf_journal_read(block, &head, &at, &e); before = at, n++) {
        require(at > before && at <= head.used && n < KVF_JOURNAL_BLOCK / 8);
        require(kvf_journal_size(block, &head, before) == at - before);
        require(e.kind != KVF_JOURNAL_PUT || (e.record.chunks >= 1 && e.record.chunks <= KVF_JOURNAL_CHUNKS_MAX));
    }
    require(at == before && kvf_journal_size(block, &head, at) == 0);
}

/* The input as a list of puts, frees and ends. */
static void check_machine(const uint8_t *data, size_t bytes)
{
    struct kvf_journal j;
    struct kvf_journal_head head;
    struct kvf_journal_entry e;
    uint64_t sums[KVF_JOURNAL_CHUNKS_MAX] = {0};
    uint32_t at = 0, appended = 0, seen = 0;
    require(kvf_journal_init(&j, 5, 8192, 4) == KVF_OK);
    kvf_journal_position(&j, 3, 9, 1, bytes % 2 ? KVF_JOURNAL_TENTATIVE : 1);
    for (size_t i = 0; i + 2 < bytes; i += 3) {
        struct kvf_ssd_record r = {.key = {data[i], data[i + 1]}, .offset = data[i + 2] * 4096ull, .bytes = 1u + data[i + 1],
                                   .chunks = (uint8_t)(1 + data[i] % 64), .flags = data[i + 1], .sums = sums};
        memcpy(sums, &data[i], 3);
        appended += data[i] % 3 == 0 ? kvf_journal_put(&j, &r) : data[i] % 3 == 1 ? kvf_journal_free(&j, r.offset, r.bytes)
                                                                                   : kvf_journal_end(&j);
    }
    kvf_journal_seal(&j);
    require(j.sealed <= 3 && j.next <= 4);
    for (uint64_t i = 0; i < j.sealed; i++, at = 0) {
        require(kvf_journal_open(j.ring + i * KVF_JOURNAL_BLOCK, 5, &head) && head.number == 1 + i && head.generation == 3);
        require(head.tentative == (bytes % 2 == 1) && head.synced == !head.tentative);
        while (kvf_journal_read(j.ring + i * KVF_JOURNAL_BLOCK, &head, &at, &e))
            seen++;
        require(at == head.used);
    }
    require(seen == appended);
    kvf_journal_fini(&j);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint8_t *block = aligned_alloc(KVF_JOURNAL_BLOCK, KVF_JOURNAL_BLOCK);
    require(block != NULL);
    memset(block, 0, KVF_JOURNAL_BLOCK);
    memcpy(block, data, bytes < KVF_JOURNAL_BLOCK ? bytes : KVF_JOURNAL_BLOCK);
    check_block(block, 5);
    /* The same under our magic, area and checksum. */
    struct kvf_writer w = kvf_writer_of(block, 4);
    kvf_write_u32(&w, 0x4a46564bu);
    w = kvf_writer_of(block + 8, 8);
    kvf_write_u64(&w, 5);
    w = kvf_writer_of(block + KVF_JOURNAL_BLOCK - 8, 8);
    kvf_write_u64(&w, kvf_hash(block, KVF_JOURNAL_BLOCK - 8, 5));
    check_block(block, 5);
    free(block);
    check_machine(data, bytes);
    return 0;
}
