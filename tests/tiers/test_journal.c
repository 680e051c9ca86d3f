/* The journal's bytes, as docs/FORMAT.md has them, and its machine: appending, sealing, handing out, being full. */
#include "tiers/journal.h"
#include "base/bytes.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define AREA 0x1122334455667788ull
#define BLOCK KVF_JOURNAL_BLOCK

static const uint64_t sums[64] = {11, 22, 33, 44};

static struct kvf_ssd_record record(uint64_t n, unsigned chunks)
{
    return (struct kvf_ssd_record){.key = {.hi = n, .lo = n + 1}, .fingerprint = 3, .offset = n * 4096, .bytes = 5000,
                                   .flags = 0x0102, .chunks = (uint8_t)chunks, .sums = sums};
}

static void bytes_are_as_documented(void **state)
{
    struct kvf_journal j;
    assert_int_equal(kvf_journal_init(&j, AREA, 8192, 16), KVF_OK);
    kvf_journal_position(&j, 7, 99, 5, 3);
    struct kvf_ssd_record put = record(6, 2);
    assert_true(kvf_journal_put(&j, &put));
    assert_true(kvf_journal_free(&j, 40960, 123));
    assert_true(kvf_journal_end(&j));
    assert_int_equal(kvf_journal_ticket(&j), 1);
    kvf_journal_seal(&j);
    assert_int_equal(kvf_journal_ticket(&j), 1);
    void *data;
    uint64_t offset;
    uint32_t bytes;
    assert_true(kvf_journal_hand(&j, &data, &offset, &bytes));
    assert_int_equal(bytes, BLOCK);
    assert_int_equal(offset, 8192 + (16 + 5) * 4096); /* half 1, block 5 */
    struct kvf_reader r = kvf_reader_of(data, BLOCK);
    assert_memory_equal(kvf_read_bytes(&r, 4), "KVFJ", 4);
    assert_int_equal(kvf_read_u32(&r), 56 + 16 + 8);
    assert_true(kvf_read_u64(&r) == AREA);
    assert_int_equal(kvf_read_u64(&r), 7);
    assert_int_equal(kvf_read_u64(&r), 99);
    assert_int_equal(kvf_read_u32(&r), 5);
    assert_int_equal(kvf_read_u32(&r), 3);
    assert_int_equal(kvf_read_u8(&r), 1); /* PUT */
    assert_int_equal(kvf_read_u8(&r), 2);
    assert_int_equal(kvf_read_u16(&r), 0x0102);
    assert_int_equal(kvf_read_u32(&r), 5000);
    assert_int_equal(kvf_read_u64(&r), 6 * 4096);
    assert_int_equal(kvf_read_u64(&r), 6);
    assert_int_equal(kvf_read_u64(&r), 7);
    assert_int_equal(kvf_read_u64(&r), 3);
    assert_int_equal(kvf_read_u64(&r), 11);
    assert_int_equal(kvf_read_u64(&r), 22);
    assert_int_equal(kvf_read_u32(&r), 2); /* FREE */
    assert_int_equal(kvf_read_u32(&r), 123);
    assert_int_equal(kvf_read_u64(&r), 40960);
    assert_int_equal(kvf_read_u64(&r), 3); /* END */
    while (kvf_reader_left(&r) > 8)
        assert_int_equal(kvf_read_u8(&r), 0);
    assert_true(kvf_read_u64(&r) == kvf_hash(data, BLOCK - 8, AREA));
    kvf_journal_fini(&j);
}

/* Until something was synced, and not again. */
static void a_tentative_block_says_so(void **state)
{
    struct kvf_journal j;
    struct kvf_journal_head head;
    void *data;
    uint64_t offset;
    uint32_t bytes;
    assert_int_equal(kvf_journal_init(&j, AREA, 8192, 16), KVF_OK);
    kvf_journal_position(&j, 7, 99, 0, KVF_JOURNAL_TENTATIVE);
    assert_true(kvf_journal_end(&j));
    kvf_journal_seal(&j);
    assert_true(kvf_journal_open(j.ring, AREA, &head));
    assert_true(head.tentative && head.synced == 0);
    struct kvf_reader r = kvf_reader_of(j.ring + 36, 4);
    assert_true(kvf_read_u32(&r) == UINT32_MAX);
    assert_true(kvf_journal_hand(&j, &data, &offset, &bytes));
    kvf_journal_wrote(&j, bytes);
    kvf_journal_synced(&j, j.written);
    assert_true(kvf_journal_end(&j));
    kvf_journal_seal(&j);
    assert_true(kvf_journal_open(j.ring + BLOCK, AREA, &head));
    assert_true(!head.tentative && head.synced == 1);
    kvf_journal_fini(&j);
}

/* No flipped bit gets through, nor another area's block. */
static void damage_is_seen(void **state)
{
    struct kvf_journal j;
    struct kvf_journal_head head;
    assert_int_equal(kvf_journal_init(&j, AREA, 8192, 16), KVF_OK);
    struct kvf_ssd_record put = record(6, 64);
    assert_true(kvf_journal_put(&j, &put));
    kvf_journal_seal(&j);
    assert_true(kvf_journal_open(j.ring, AREA, &head));
    assert_false(kvf_journal_open(j.ring, AREA + 1, &head));
    for (unsigned bit = 0; bit < BLOCK * 8; bit++) {
        j.ring[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_false(kvf_journal_open(j.ring, AREA, &head));
        j.ring[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    kvf_journal_fini(&j);
}

/* Random records through several generations come out as they went in, and full is said in time. */
static void what_is_appended_is_read(void **state)
{
    enum { half = 9 };
    struct kvf_journal j;
    uint64_t random = 4711, refused = 0;
    uint8_t *disk = aligned_alloc(BLOCK, 2 * half * BLOCK);
    print_message("seed %llu\n", (unsigned long long)random);
    memset(disk, 0, 2 * half * BLOCK);
    assert_int_equal(kvf_journal_init(&j, AREA, 0, half), KVF_OK);
    for (uint64_t generation = 1; generation < 40; generation++) {
        uint64_t n = 0, seen = 0, key = generation << 32;
        kvf_journal_position(&j, generation, random, 0, 0);
        for (bool room = true; room; n += room) {
            random = kvf_mix(random, n);
            struct kvf_ssd_record put = record(key + n, 1 + (unsigned)(random % 64));
            room = random % 5 ? kvf_journal_put(&j, &put) : kvf_journal_free(&j, (key + n) * 4096, 1);
            if (random % 17 == 0)
                kvf_journal_seal(&j);
            void *data;
            uint64_t offset;
            uint32_t bytes;
            if (random % 3 == 0 && kvf_journal_hand(&j, &data, &offset, &bytes)) {
                assert_true(offset / BLOCK / half == generation % 2 && offset + bytes <= 2 * half * BLOCK);
                memcpy(disk + offset, data, bytes);
                assert_false(kvf_journal_hand(&j, &data, &offset, &bytes)); /* one at a time */
                kvf_journal_wrote(&j, bytes);
            }
            refused += !room;
        }
        assert_int_equal(kvf_journal_left(&j), 0);
        kvf_journal_seal(&j);
        void *data;
        uint64_t offset;
        uint32_t bytes;
        while (kvf_journal_hand(&j, &data, &offset, &bytes)) {
            memcpy(disk + offset, data, bytes);
            kvf_journal_wrote(&j, bytes);
        }
        assert_int_equal(j.written, j.sealed);
        for (uint32_t i = 0; i < j.next; i++) {
            const uint8_t *block = disk + (generation % 2 * half + i) * BLOCK;
            struct kvf_journal_head head;
            struct kvf_journal_entry e;
            assert_true(kvf_journal_open(block, AREA, &head));
            assert_true(head.generation == generation && head.number == i);
            for (uint32_t at = 0; kvf_journal_read(block, &head, &at, &e); seen++) {
                assert_int_equal(e.record.offset, (key + seen) * 4096);
                assert_true(e.kind == KVF_JOURNAL_FREE || (e.record.key.hi == key + seen && e.record.sums[0] == 11));
            }
        }
        assert_int_equal(seen, n);
    }
    assert_int_equal(refused, 39);
    free(disk);
    kvf_journal_fini(&j);
}

/* Memory for blocks that are not written is bounded. */
static void a_ring_that_is_full_says_so(void **state)
{
    struct kvf_journal j;
    void *data;
    uint64_t offset, n = 0;
    uint32_t bytes;
    assert_int_equal(kvf_journal_init(&j, AREA, 0, 1000), KVF_OK);
    struct kvf_ssd_record put = record(1, 64);
    while (kvf_journal_put(&j, &put))
        n++;
    assert_int_equal(n, KVF_JOURNAL_RING * 7); /* seven of the largest in a block */
    assert_true(kvf_journal_left(&j) > 0);
    assert_true(kvf_journal_hand(&j, &data, &offset, &bytes));
    assert_int_equal(bytes, (KVF_JOURNAL_RING - 1) * BLOCK); /* the last is open */
    assert_false(kvf_journal_put(&j, &put));
    kvf_journal_wrote(&j, bytes);
    assert_true(kvf_journal_put(&j, &put));
    kvf_journal_fini(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_as_documented),
        cmocka_unit_test(a_tentative_block_says_so),
        cmocka_unit_test(damage_is_seen),
        cmocka_unit_test(what_is_appended_is_read),
        cmocka_unit_test(a_ring_that_is_full_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
