/* The bounded reader and writer, the hash and the env. */
#include "base/bytes.h"
#include "base/env.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void values_come_back_and_are_little_endian(void **state)
{
    uint8_t memory[15];
    struct kvf_writer w = kvf_writer_of(memory, sizeof memory);
    kvf_write_u8(&w, 0xa1);
    kvf_write_u16(&w, 0xb1b2);
    kvf_write_u32(&w, 0xc1c2c3c4);
    kvf_write_u64(&w, 0xd1d2d3d4d5d6d7d8);
    assert_false(w.bad);
    assert_int_equal(kvf_writer_used(&w), sizeof memory);
    const uint8_t expected[] = {0xa1, 0xb2, 0xb1, 0xc4, 0xc3, 0xc2, 0xc1, 0xd8, 0xd7, 0xd6, 0xd5, 0xd4, 0xd3, 0xd2, 0xd1};
    assert_memory_equal(memory, expected, sizeof memory);

    struct kvf_reader r = kvf_reader_of(memory, sizeof memory);
    assert_int_equal(kvf_read_u8(&r), 0xa1);
    assert_int_equal(kvf_read_u16(&r), 0xb1b2);
    assert_int_equal(kvf_read_u32(&r), 0xc1c2c3c4);
    assert_true(kvf_read_u64(&r) == 0xd1d2d3d4d5d6d7d8);
    assert_int_equal(kvf_reader_left(&r), 0);
    assert_false(r.bad);
}

static void reading_past_the_end_gives_zeros_and_stays_bad(void **state)
{
    /* The memory is exactly as long as the reader says, on the heap: a byte too far is seen by the sanitizer. */
    for (size_t bytes = 0; bytes < 8; bytes++) {
        uint8_t *memory = malloc(bytes ? bytes : 1);
        memset(memory, 0xff, bytes ? bytes : 1);
        struct kvf_reader r = kvf_reader_of(memory, bytes);
        assert_true(kvf_read_u64(&r) == 0);
        assert_true(r.bad);
        assert_int_equal(kvf_reader_left(&r), bytes);
        assert_int_equal(kvf_read_u8(&r), 0); /* would fit, but the structure is already refused */
        assert_null(kvf_read_bytes(&r, 0));
        free(memory);
    }
}

static void a_huge_length_is_refused(void **state)
{
    uint8_t memory[4] = {1, 2, 3, 4};
    struct kvf_reader r = kvf_reader_of(memory, sizeof memory);
    assert_null(kvf_read_bytes(&r, SIZE_MAX));
    assert_true(r.bad);
    struct kvf_writer w = kvf_writer_of(memory, sizeof memory);
    kvf_write_bytes(&w, memory, SIZE_MAX);
    assert_true(w.bad);
    assert_int_equal(kvf_writer_used(&w), 0);
}

static void writing_past_the_end_changes_nothing_there(void **state)
{
    for (size_t bytes = 0; bytes < 8; bytes++) {
        uint8_t *memory = calloc(1, bytes ? bytes : 1);
        struct kvf_writer w = kvf_writer_of(memory, bytes);
        kvf_write_u64(&w, UINT64_MAX);
        assert_true(w.bad);
        kvf_write_u8(&w, 0xff);
        assert_int_equal(kvf_writer_used(&w), 0);
        for (size_t i = 0; i < bytes; i++)
            assert_int_equal(memory[i], 0);
        free(memory);
    }
}

static void an_empty_reader_and_writer_take_empty_things(void **state)
{
    uint8_t byte = 0;
    struct kvf_reader r = kvf_reader_of(&byte, 0);
    assert_non_null(kvf_read_bytes(&r, 0));
    assert_false(r.bad);
    struct kvf_writer w = kvf_writer_of(&byte, 0);
    kvf_write_bytes(&w, NULL, 0);
    assert_false(w.bad);
}

static void hash_depends_on_bytes_length_and_seed(void **state)
{
    const char text[] = "model-a\0model-b";
    assert_true(kvf_hash("", 0, 0) == 0x2d06800538d394c2ull); /* XXH3-64's published value */
    assert_true(kvf_hash(text, 7, 0) != kvf_hash(text, 8, 0));
    assert_true(kvf_hash(text, 7, 0) != kvf_hash(text, 7, 1));
    assert_true(kvf_hash(text, 7, 0) != kvf_hash(text + 8, 7, 0));
    assert_true(kvf_hash(text, 7, 5) == kvf_hash("model-a", 7, 5));
    assert_true(kvf_mix(1, 2) != kvf_mix(2, 1));
}

static void the_clock_never_goes_back_and_randoms_differ(void **state)
{
    const struct kvf_env *env = kvf_env_real();
    uint64_t last = kvf_now(env), seen[64];
    for (int i = 0; i < 10000; i++) {
        uint64_t now = kvf_now(env);
        assert_true(now >= last);
        last = now;
    }
    for (int i = 0; i < 64; i++) {
        seen[i] = env->random(env->arg);
        for (int j = 0; j < i; j++)
            assert_true(seen[i] != seen[j]);
    }
}

static void deadlines_saturate(void **state)
{
    assert_true(kvf_deadline(5, 10) == 15);
    assert_true(kvf_deadline(UINT64_MAX - 1, 10) == UINT64_MAX);
    assert_true(kvf_deadline(1, UINT64_MAX) == UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_come_back_and_are_little_endian),
        cmocka_unit_test(reading_past_the_end_gives_zeros_and_stays_bad),
        cmocka_unit_test(a_huge_length_is_refused),
        cmocka_unit_test(writing_past_the_end_changes_nothing_there),
        cmocka_unit_test(an_empty_reader_and_writer_take_empty_things),
        cmocka_unit_test(hash_depends_on_bytes_length_and_seed),
        cmocka_unit_test(the_clock_never_goes_back_and_randoms_differ),
        cmocka_unit_test(deadlines_saturate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
