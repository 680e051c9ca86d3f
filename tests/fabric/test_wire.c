/* Frames: what is encoded is decoded; what is cut, hostile or of another version is refused. */
#include "base/bytes.h"
#include "fabric/wire.h"
#include "tests/sim/sim_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define SEED 7411ull

static struct kvf_wire_header sample_header(void)
{
    return (struct kvf_wire_header){.type = 40,
                                    .sender = 0x1122334455667788ull,
                                    .sender_incarnation = 9,
                                    .receiver_incarnation = 10,
                                    .request = 0xfedcba9876543210ull,
                                    .payload_bytes = 4096,
                                    .budget_us = 250000,
                                    .counter = 0x0102030405060708ull,
                                    .tag = 0x99};
}

static struct kvf_wire_hello sample_hello(void)
{
    struct kvf_wire_hello h = {.address_bytes = 50, .key_id = {1, 2}, .nonce = {3, 4}, .mac = {5, 6}};
    snprintf(h.name, sizeof h.name, "node-1.rack_2");
    for (unsigned i = 0; i < 50; i++)
        h.address[i] = (uint8_t)(i * 3);
    return h;
}

static void a_header_has_the_bytes_of_the_protocol(void **state)
{
    struct kvf_wire_header h = sample_header(), back;
    uint8_t bytes[KVF_WIRE_HEADER_BYTES];
    kvf_wire_header_encode(&h, bytes);
    assert_memory_equal(bytes, "KVFB\6\0\50\0", 8);
    assert_int_equal(bytes[16], 0x88); /* little-endian, at the offsets of the table in wire.h */
    assert_int_equal(bytes[24], 9);
    assert_int_equal(bytes[32], 10);
    assert_int_equal(bytes[40], 0x10);
    assert_int_equal(bytes[57], 0x10);
    assert_int_equal(bytes[64], 8);
    assert_int_equal(bytes[72], 0x99);
    assert_int_equal(kvf_wire_header_decode(bytes, sizeof bytes, &back), KVF_OK);
    assert_int_equal(back.type, h.type);
    assert_int_equal(back.sender, h.sender);
    assert_int_equal(back.request, h.request);
    assert_int_equal(back.payload_bytes, h.payload_bytes);
    assert_int_equal(back.budget_us, h.budget_us);
    assert_int_equal(back.counter, h.counter);
    assert_int_equal(back.tag, h.tag);
}

static void a_negative_status_survives(void **state)
{
    struct kvf_wire_header h = sample_header(), back;
    uint8_t bytes[KVF_WIRE_HEADER_BYTES];
    h.type = KVF_WIRE_REPLY;
    h.status = KVF_ERR_FULL;
    kvf_wire_header_encode(&h, bytes);
    assert_int_equal(kvf_wire_header_decode(bytes, sizeof bytes, &back), KVF_OK);
    assert_int_equal(back.status, KVF_ERR_FULL);
}

static void a_header_of_any_other_length_is_refused(void **state)
{
    struct kvf_wire_header h = sample_header(), back;
    uint8_t bytes[KVF_WIRE_HEADER_BYTES + 1] = {0};
    kvf_wire_header_encode(&h, bytes);
    for (size_t n = 0; n <= sizeof bytes; n++) {
        if (n != KVF_WIRE_HEADER_BYTES)
            assert_int_equal(kvf_wire_header_decode(bytes, n, &back), KVF_ERR_PEER_PROTOCOL);
    }
}

static void another_magic_or_version_is_refused(void **state)
{
    struct kvf_wire_header h = sample_header(), back;
    uint8_t bytes[KVF_WIRE_HEADER_BYTES];
    kvf_wire_header_encode(&h, bytes);
    bytes[4] = KVF_WIRE_VERSION - 1;
    assert_int_equal(kvf_wire_header_decode(bytes, sizeof bytes, &back), KVF_ERR_PEER_VERSION);
    bytes[4] = KVF_WIRE_VERSION + 1;
    assert_int_equal(kvf_wire_header_decode(bytes, sizeof bytes, &back), KVF_ERR_PEER_VERSION);
    assert_int_equal(kvf_wire_header_decode(bytes, 40, &back), KVF_ERR_PEER_VERSION);
    bytes[0] = 'X';
    assert_int_equal(kvf_wire_header_decode(bytes, sizeof bytes, &back), KVF_ERR_PEER_PROTOCOL);
}

/* Sets n bytes at offset of a good header of the type to `value` and wants a refusal. */
static void refused(uint16_t type, size_t offset, unsigned n, uint64_t value)
{
    struct kvf_wire_header h = sample_header(), back;
    uint8_t bytes[KVF_WIRE_HEADER_BYTES];
    h.type = type;
    if (type == KVF_WIRE_HELLO || type == KVF_WIRE_PROOF)
        h.counter = h.tag = 0;
    bool bare = type == KVF_WIRE_HEARTBEAT || type == KVF_WIRE_GOODBYE || type == KVF_WIRE_PIECE_ASK;
    bool asks = type == KVF_WIRE_PULL || type == KVF_WIRE_PULL_DATA || type == KVF_WIRE_REPLY || type >= KVF_WIRE_TYPE_NODE;
    h.request = asks ? h.request : 0;
    h.payload_bytes = bare ? 0 : h.payload_bytes;
    kvf_wire_header_encode(&h, bytes);
    assert_int_equal(kvf_wire_header_decode(bytes, sizeof bytes, &back), KVF_OK);
    for (unsigned i = 0; i < n; i++)
        bytes[offset + i] = (uint8_t)(value >> (8 * i));
    assert_int_equal(kvf_wire_header_decode(bytes, sizeof bytes, &back), KVF_ERR_PEER_PROTOCOL);
}

static void fields_that_a_type_does_not_allow_are_refused(void **state)
{
    refused(40, 6, 2, 0);                    /* no type */
    refused(40, 6, 2, 31);                   /* a type of nobody */
    refused(40, 8, 2, 1);                    /* flags */
    refused(40, 10, 2, 1);                   /* the zero */
    refused(40, 12, 4, 1);                   /* a status in a request */
    refused(KVF_WIRE_REPLY, 12, 4, 0x7fffffff);
    refused(KVF_WIRE_REPLY, 12, 4, 0x80000000);
    refused(40, 16, 8, 0);                   /* no sender */
    refused(40, 24, 8, 0);                   /* no incarnation */
    refused(40, 32, 8, 0);
    refused(40, 48, 8, 1);                   /* a position in a request */
    refused(40, 56, 4, KVF_WIRE_PAYLOAD_MAX + 1);
    refused(40, 56, 4, UINT32_MAX);
    refused(KVF_WIRE_HELLO, 40, 8, 1);
    refused(KVF_WIRE_HELLO, 8, 2, 1);
    refused(KVF_WIRE_HELLO, 32, 8, 0);
    refused(KVF_WIRE_HELLO, 56, 4, 0);
    refused(KVF_WIRE_HELLO, 64, 8, 1);       /* counted before a session */
    refused(KVF_WIRE_PROOF, 72, 8, 1);       /* tagged */
    refused(KVF_WIRE_PROOF, 40, 8, 1);
    refused(KVF_WIRE_PROOF, 48, 8, 1);
    refused(KVF_WIRE_PROOF, 56, 4, 0);
    refused(KVF_WIRE_WELCOME, 8, 2, 2);
    refused(KVF_WIRE_WELCOME, 64, 8, 0);     /* not counted in it */
    refused(40, 64, 8, 0);
    refused(KVF_WIRE_HEARTBEAT, 56, 4, 1);
    refused(KVF_WIRE_GOODBYE, 40, 8, 1);
    refused(KVF_WIRE_GOODBYE, 48, 8, 1);
    refused(KVF_WIRE_HELLO, 48, 8, 1);
    refused(KVF_WIRE_WELCOME, 48, 8, KVF_REGION_PIECES_MAX + 1);
    refused(KVF_WIRE_HEARTBEAT, 48, 8, UINT64_MAX);
    refused(KVF_WIRE_PIECE_ASK, 48, 8, KVF_REGION_PIECES_MAX);
    refused(KVF_WIRE_PIECE_ASK, 40, 8, 1);
    refused(KVF_WIRE_PIECE_ASK, 56, 4, 1);
    refused(KVF_WIRE_PIECE, 48, 8, KVF_REGION_PIECES_MAX);
    refused(KVF_WIRE_PIECE, 56, 4, 0);
    refused(KVF_WIRE_PIECE, 40, 8, 1);
    refused(KVF_WIRE_PULL, 40, 8, 0);
    refused(KVF_WIRE_PULL, 56, 4, 0);
    refused(KVF_WIRE_PULL_DATA, 56, 4, 0);   /* neither bytes nor a refusal */
    refused(KVF_WIRE_PULL_DATA, 12, 4, (uint64_t)(uint32_t)KVF_ERR_BUSY); /* both */
    refused(KVF_WIRE_REPLY, 40, 8, 0);
}

static void a_hello_survives_with_the_largest_fields(void **state)
{
    struct kvf_wire_hello h = sample_hello(), *back = calloc(1, sizeof *back);
    uint8_t bytes[KVF_WIRE_HELLO_BYTES_MAX];
    memset(h.name, 'n', sizeof h.name - 1);
    h.address_bytes = sizeof h.address;
    size_t n = sizeof bytes;
    assert_int_equal(kvf_wire_hello_encode(&h, bytes, &n), KVF_OK);
    assert_int_equal(n, sizeof bytes - 1); /* the NUL of the name does not travel */
    assert_int_equal(kvf_wire_hello_decode(bytes, n, back), KVF_OK);
    assert_string_equal(back->name, h.name);
    assert_memory_equal(back->address, h.address, sizeof h.address);
    assert_memory_equal(back->key_id, h.key_id, sizeof h.key_id);
    assert_memory_equal(back->nonce, h.nonce, sizeof h.nonce);
    assert_memory_equal(back->mac, h.mac, sizeof h.mac);
    free(back);
}

static void a_cut_or_longer_hello_is_refused(void **state)
{
    struct kvf_wire_hello h = sample_hello(), back;
    uint8_t bytes[KVF_WIRE_HELLO_BYTES_MAX] = {0};
    size_t n = sizeof bytes;
    assert_int_equal(kvf_wire_hello_encode(&h, bytes, &n), KVF_OK);
    for (size_t i = 0; i <= n + 1; i++) {
        /* An exact allocation, so that a sanitizer sees a read past its end. */
        uint8_t *exact = malloc(i + (i == 0));
        memcpy(exact, bytes, i);
        assert_int_equal(kvf_wire_hello_decode(exact, i, &back), i == n ? KVF_OK : KVF_ERR_PEER_PROTOCOL);
        free(exact);
    }
}

static void hostile_hellos_are_refused(void **state)
{
    struct kvf_wire_hello h, back;
    uint8_t bytes[KVF_WIRE_HELLO_BYTES_MAX];
    size_t n;
    const char *const names[] = {"", "a b", "a/b", "a\nb", "caf\xc3\xa9"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        h = sample_hello();
        snprintf(h.name, sizeof h.name, "%s", names[i]);
        n = sizeof bytes;
        assert_int_equal(kvf_wire_hello_encode(&h, bytes, &n), KVF_ERR_INVALID);
    }
    h = sample_hello();
    n = sizeof bytes;
    assert_int_equal(kvf_wire_hello_encode(&h, bytes, &n), KVF_OK);
    bytes[3] = 0; /* a NUL inside the name */
    assert_int_equal(kvf_wire_hello_decode(bytes, n, &back), KVF_ERR_PEER_PROTOCOL);
    h = sample_hello();
    n = 20; /* no room */
    assert_int_equal(kvf_wire_hello_encode(&h, bytes, &n), KVF_ERR_INVALID);
}

static void proofs_and_welcomes_survive_and_their_bounds_hold(void **state)
{
    struct kvf_wire_proof proof = {.key_id = {1}, .nonce = {2}, .answers = {3}, .mac = {4}}, proof_back;
    struct kvf_wire_welcome welcome = {.region_base = 0x7f0000001000ull, .region_bytes = 1 << 20, .payload_max = 258048}, back;
    uint8_t bytes[KVF_WIRE_PROOF_BYTES + 1] = {0};
    kvf_wire_proof_encode(&proof, bytes);
    for (size_t i = 0; i <= sizeof bytes; i++)
        assert_int_equal(kvf_wire_proof_decode(bytes, i, &proof_back),
                         i == KVF_WIRE_PROOF_BYTES ? KVF_OK : KVF_ERR_PEER_PROTOCOL);
    assert_memory_equal(&proof_back, &proof, sizeof proof);
    assert_int_equal(kvf_wire_welcome_encode(&welcome, bytes), KVF_OK);
    for (size_t i = 0; i <= sizeof bytes; i++)
        assert_int_equal(kvf_wire_welcome_decode(bytes, i, &back), i == KVF_WIRE_WELCOME_BYTES ? KVF_OK : KVF_ERR_PEER_PROTOCOL);
    assert_int_equal(back.region_base, welcome.region_base);
    assert_int_equal(back.region_bytes, welcome.region_bytes);
    assert_int_equal(back.payload_max, welcome.payload_max);
    const struct kvf_wire_welcome wrong[] = {{.payload_max = 0},
                                             {.payload_max = KVF_WIRE_PAYLOAD_MAX + 1},
                                             {.region_base = UINT64_MAX - 4096, .region_bytes = 8192, .payload_max = 1}};
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(kvf_wire_welcome_encode(&wrong[i], bytes), KVF_ERR_INVALID);
    memset(bytes + 16, 0, 4);
    assert_int_equal(kvf_wire_welcome_decode(bytes, KVF_WIRE_WELCOME_BYTES, &back), KVF_ERR_PEER_PROTOCOL);
}

static void a_pull_survives_and_its_bounds_hold(void **state)
{
    struct kvf_wire_pull p = {.n = KVF_WIRE_RANGES_MAX, .frame_pages = 0x102}, back;
    uint8_t bytes[KVF_WIRE_PULL_BYTES_MAX + 1] = {0};
    size_t n = sizeof bytes;
    for (unsigned i = 0; i < p.n; i++)
        p.ranges[i] = (struct kvf_wire_range){.offset = i * 0x100000001ull, .bytes = 4096 + i};
    assert_int_equal(kvf_wire_pull_encode(&p, bytes, &n), KVF_OK);
    assert_int_equal(n, KVF_WIRE_PULL_BYTES_MAX);
    assert_int_equal(kvf_wire_pull_decode(bytes, n, &back), KVF_OK);
    assert_int_equal(back.n, p.n);
    assert_int_equal(back.frame_pages, 0x102);
    assert_memory_equal(bytes, "\100\0\2\1", 4);
    for (unsigned i = 0; i < p.n; i++) {
        assert_int_equal(back.ranges[i].offset, p.ranges[i].offset);
        assert_int_equal(back.ranges[i].bytes, p.ranges[i].bytes);
    }
    for (size_t i = 0; i <= sizeof bytes; i++)
        assert_int_equal(kvf_wire_pull_decode(bytes, i, &back), i == n ? KVF_OK : KVF_ERR_PEER_PROTOCOL);
    bytes[0] = 0;
    assert_int_equal(kvf_wire_pull_decode(bytes, 4, &back), KVF_ERR_PEER_PROTOCOL); /* no ranges */
    p.n = 1;
    p.ranges[0] = (struct kvf_wire_range){.offset = UINT64_MAX - 10, .bytes = 100};
    n = sizeof bytes;
    assert_int_equal(kvf_wire_pull_encode(&p, bytes, &n), KVF_ERR_INVALID);
    p.ranges[0] = (struct kvf_wire_range){.offset = 0, .bytes = 0};
    n = sizeof bytes;
    assert_int_equal(kvf_wire_pull_encode(&p, bytes, &n), KVF_ERR_INVALID);
}

static void a_piece_survives_and_a_wrong_one_is_refused(void **state)
{
    struct kvf_region_piece p = {.offset = 1ull << 40, .bytes = 1 << 30, .key_bytes = KVF_REGION_KEY_MAX}, back;
    uint8_t bytes[KVF_WIRE_PIECE_BYTES_MAX];
    size_t n = sizeof bytes;
    memset(p.key, 7, sizeof p.key);
    assert_int_equal(kvf_wire_piece_encode(&p, bytes, &n), KVF_OK);
    assert_int_equal(n, sizeof bytes);
    for (size_t i = 0; i <= n; i++) {
        uint8_t *exact = malloc(i + (i == 0));
        memcpy(exact, bytes, i);
        assert_int_equal(kvf_wire_piece_decode(exact, i, &back), i == n ? KVF_OK : KVF_ERR_PEER_PROTOCOL);
        free(exact);
    }
    assert_int_equal(back.offset, p.offset);
    assert_int_equal(back.bytes, p.bytes);
    assert_memory_equal(back.key, p.key, sizeof p.key);
    const struct kvf_region_piece wrong[] = {{.bytes = 0, .key_bytes = 1},
                                             {.offset = UINT64_MAX, .bytes = 2, .key_bytes = 1},
                                             {.bytes = 1, .key_bytes = 0},
                                             {.bytes = 1, .key_bytes = KVF_REGION_KEY_MAX + 1}};
    for (unsigned i = 0; i < 4; i++) {
        n = sizeof bytes;
        assert_int_equal(kvf_wire_piece_encode(&wrong[i], bytes, &n), KVF_ERR_INVALID);
    }
}

/* Good frames with random bytes changed: decoders take or refuse, and what they take is in bounds. */
static void changed_bytes_never_break_a_decoder(void **state)
{
    struct sim_env env;
    sim_env_init(&env, SEED);
    print_message("seed %llu\n", SEED);
    struct kvf_wire_hello h = sample_hello(), hello;
    struct kvf_wire_pull p = {.n = 9}, pull;
    struct kvf_wire_header header, first = sample_header();
    for (unsigned i = 0; i < p.n; i++)
        p.ranges[i] = (struct kvf_wire_range){.offset = i, .bytes = 1 + i};
    for (unsigned round = 0; round < 20000; round++) {
        uint8_t bytes[KVF_WIRE_HELLO_BYTES_MAX];
        size_t n = sizeof bytes;
        unsigned kind = round % 3;
        if (kind == 0)
            assert_int_equal(kvf_wire_hello_encode(&h, bytes, &n), KVF_OK);
        else if (kind == 1)
            assert_int_equal(kvf_wire_pull_encode(&p, bytes, &n), KVF_OK);
        else
            kvf_wire_header_encode(&first, bytes), n = KVF_WIRE_HEADER_BYTES;
        for (unsigned i = 0; i < 1 + round % 4; i++)
            bytes[sim_env_random(&env, n)] = (uint8_t)sim_env_random(&env, 256);
        if (kind == 0 && kvf_wire_hello_decode(bytes, n, &hello) == KVF_OK)
            assert_true(hello.address_bytes <= sizeof hello.address);
        if (kind == 1 && kvf_wire_pull_decode(bytes, n, &pull) == KVF_OK)
            assert_true(pull.n >= 1 && pull.n <= KVF_WIRE_RANGES_MAX);
        if (kind == 2 && kvf_wire_header_decode(bytes, n, &header) == KVF_OK)
            assert_true(header.payload_bytes <= KVF_WIRE_PAYLOAD_MAX && header.sender != 0);
    }
}

static void node_ids_differ_and_are_never_zero(void **state)
{
    assert_int_not_equal(kvf_wire_node_id("a"), kvf_wire_node_id("b"));
    assert_int_not_equal(kvf_wire_node_id(""), 0);
    assert_int_equal(kvf_wire_node_id("node"), kvf_wire_node_id("node"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_has_the_bytes_of_the_protocol),
        cmocka_unit_test(a_negative_status_survives),
        cmocka_unit_test(a_header_of_any_other_length_is_refused),
        cmocka_unit_test(another_magic_or_version_is_refused),
        cmocka_unit_test(fields_that_a_type_does_not_allow_are_refused),
        cmocka_unit_test(a_hello_survives_with_the_largest_fields),
        cmocka_unit_test(a_cut_or_longer_hello_is_refused),
        cmocka_unit_test(hostile_hellos_are_refused),
        cmocka_unit_test(proofs_and_welcomes_survive_and_their_bounds_hold),
        cmocka_unit_test(a_pull_survives_and_its_bounds_hold),
        cmocka_unit_test(a_piece_survives_and_a_wrong_one_is_refused),
        cmocka_unit_test(changed_bytes_never_break_a_decoder),
        cmocka_unit_test(node_ids_differ_and_are_never_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
