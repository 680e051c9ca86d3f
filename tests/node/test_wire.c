/* The payloads of the node's messages: what is written is read back, and nothing else is taken. */
#include "node/wire.h"
#include "tests/sim/sim_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 20261124

/* One of every kind of message, at its largest. */
union message {
    struct kvf_reserve_item reserve[KVF_BATCH_MAX];
    uint64_t offsets[KVF_BATCH_MAX];
    struct kvf_put_item put[KVF_BATCH_MAX];
    struct kvf_commit_item commit;
    struct kvf_key keys[KVF_BATCH_MAX];
    struct kvf_read_item reads[KVF_BATCH_MAX];
    struct kvf_place places[KVF_BATCH_MAX];
    struct kvf_piece_item pieces[KVF_BATCH_MAX];
    uint8_t statuses[KVF_BATCH_MAX];
    struct kvf_move_offer offer;
    struct kvf_move_block block;
};
enum kind { RESERVE, GRANTED, PUT, COMMIT, KEYS, READS, PLACES, PIECES, STATUSES, OFFER, BLOCK, KINDS };
#define CHUNKS 8 /* of a moving block here */
#define SCALES 10 /* words of its scales */

static bool decode(enum kind kind, const uint8_t *bytes, size_t size, union message *m, unsigned *n)
{
    struct kvf_reader r = kvf_reader_of(bytes, size);
    uint64_t id;
    *n = 0;
    switch (kind) {
    case RESERVE: return kvf_wire_reserve_read(&r, m->reserve, n);
    case GRANTED: return kvf_wire_granted_read(&r, m->offsets, n);
    case PUT: return kvf_wire_put_read(&r, m->put, n);
    case COMMIT: return kvf_wire_commit_read(&r, &m->commit) && kvf_reader_left(&r) == 0;
    case KEYS: return kvf_wire_keys_read(&r, m->keys, n);
    case READS: return kvf_wire_reads_read(&r, m->reads, n);
    case PLACES: return kvf_wire_places_read(&r, m->places, n);
    case PIECES: return kvf_wire_pieces_read(&r, &id, m->pieces, n) && id == 77 && kvf_reader_left(&r) == 0;
    case STATUSES: return kvf_wire_statuses_read(&r, m->statuses, n) && kvf_reader_left(&r) == 0;
    case OFFER: return kvf_wire_offer_read(&r, &m->offer);
    default: return kvf_wire_block_read(&r, &m->block, CHUNKS, SCALES) && kvf_reader_left(&r) == 0;
    }
}

static size_t encode(enum kind kind, const union message *m, unsigned n, uint8_t *bytes, size_t size)
{
    struct kvf_writer w = kvf_writer_of(bytes, size);
    switch (kind) {
    case RESERVE: kvf_wire_reserve(&w, m->reserve, n); break;
    case GRANTED: kvf_wire_granted(&w, m->offsets, n); break;
    case PUT:
        kvf_wire_put(&w, m->put, n);
        for (unsigned i = 0; i < n; i++) /* the data behind */
            for (uint32_t b = 0; b < m->put[i].bytes; b++)
                kvf_write_u8(&w, (uint8_t)b);
        break;
    case COMMIT: kvf_wire_commit(&w, &m->commit); break;
    case KEYS: kvf_wire_keys(&w, m->keys, n); break;
    case READS: kvf_wire_reads(&w, m->reads, n); break;
    case PLACES: kvf_wire_places(&w, m->places, n); break;
    case PIECES: kvf_wire_pieces(&w, 77, m->pieces, n); break;
    case STATUSES: kvf_wire_statuses(&w, m->statuses, n); break;
    case OFFER: kvf_wire_offer(&w, &m->offer); break;
    default: kvf_wire_block(&w, &m->block, CHUNKS, SCALES);
    }
    assert_false(w.bad);
    return kvf_writer_used(&w);
}

static void offer_make(struct sim_env *rng, struct kvf_move_offer *o)
{
    o->desc = (struct kvf_model_desc){.name = "tiny.model-1_b",
                                      .weights_id = sim_env_random(rng, UINT64_MAX),
                                      .layers = 2,
                                      .kv_heads = 2,
                                      .q_heads = 4,
                                      .dim_k = 16,
                                      .dim_v = 16,
                                      .dtype = KVF_F16,
                                      .chunk_tokens = 8,
                                      .block_tokens = 64};
    o->session = 1 + sim_env_random(rng, 1ull << 62);
    o->epoch = sim_env_random(rng, UINT64_MAX);
    o->n_tokens = sim_env_random(rng, 5000);
    o->sealed_blocks = (uint32_t)(o->n_tokens / 64);
    o->blob_bytes = (uint32_t)sim_env_random(rng, KVF_STATE_BYTES_MAX + 1);
    for (uint32_t i = 0; i < o->blob_bytes; i++)
        o->blob[i] = (uint8_t)sim_env_random(rng, 256);
    o->n_lenders = (uint8_t)sim_env_random(rng, KVF_LENDERS_MAX + 1);
    for (unsigned i = 0; i < o->n_lenders; i++) {
        snprintf(o->lenders[i].name, sizeof o->lenders[i].name, "node-%u", i);
        o->lenders[i].incarnation = sim_env_random(rng, UINT64_MAX);
    }
}

/* Any valid message of a kind. */
static unsigned make(struct sim_env *rng, enum kind kind, union message *m)
{
    unsigned n = 1 + (unsigned)sim_env_random(rng, KVF_BATCH_MAX);
    memset(m, 0, sizeof *m);
    for (unsigned i = 0; i < n; i++) {
        struct kvf_key key = {.hi = sim_env_random(rng, UINT64_MAX), .lo = sim_env_random(rng, UINT64_MAX)};
        switch (kind) {
        case RESERVE: m->reserve[i] = (struct kvf_reserve_item){.key = key, .bytes = (uint32_t)key.hi}; break;
        case GRANTED: m->offsets[i] = key.hi; break;
        case PUT:
            m->put[i] = (struct kvf_put_item){.key = key, .at = (uint32_t)key.hi, .bytes = (uint32_t)sim_env_random(rng, 300)};
            break;
        case KEYS: m->keys[i] = key; break;
        case READS: m->reads[i] = (struct kvf_read_item){.key = key, .mask = key.lo | 1}; break;
        case PLACES: m->places[i] = (struct kvf_place){.key = key, .location = key.lo}; break;
        case PIECES: m->pieces[i] = (struct kvf_piece_item){.item = (uint16_t)(key.hi % KVF_BATCH_MAX), .mask = key.lo | 1}; break;
        case STATUSES: m->statuses[i] = (uint8_t)key.hi; break;
        default: break;
        }
    }
    if (kind == COMMIT) {
        m->commit = (struct kvf_commit_item){.key = {1, 2}, .seed = 3, .offset = 4, .chunk_bytes = 512,
                                             .chunks = (uint8_t)(1 + sim_env_random(rng, 64))};
        m->commit.bytes = m->commit.chunks * 512u - (uint32_t)sim_env_random(rng, 512);
        for (unsigned c = 0; c < m->commit.chunks; c++)
            m->commit.sums[c] = sim_env_random(rng, UINT64_MAX);
    } else if (kind == OFFER) {
        offer_make(rng, &m->offer);
    } else if (kind == BLOCK) {
        static const uint8_t tiers[] = {KVF_TIER_REMOTE, KVF_TIER_PEER, KVF_TIER_COUNT};
        m->block = (struct kvf_move_block){
            .layer = 1, .head = 2, .index = 3, .tier = tiers[sim_env_random(rng, 3)], .lender = 4, .location = 5};
        if (m->block.tier != KVF_TIER_COUNT)
            m->block.format = (uint8_t)sim_env_random(rng, 3);
        for (unsigned c = 0; c < CHUNKS + (m->block.format ? SCALES : 0); c++)
            m->block.words[c] = sim_env_random(rng, UINT64_MAX);
    }
    return n;
}

static void what_is_written_is_read_back(void **state)
{
    static union message m, back;
    static uint8_t bytes[65536];
    struct sim_env rng;
    unsigned n_back;
    printf("seed %d\n", SEED);
    sim_env_init(&rng, SEED);
    for (unsigned round = 0; round < 200; round++) {
        for (enum kind kind = 0; kind < KINDS; kind++) {
            unsigned n = make(&rng, kind, &m);
            size_t size = encode(kind, &m, n, bytes, sizeof bytes);
            memset(&back, 0, sizeof back);
            assert_true(decode(kind, bytes, size, &back, &n_back));
            if (kind != COMMIT && kind != OFFER && kind != BLOCK)
                assert_int_equal(n_back, n);
            assert_memory_equal(&back, &m, sizeof m);
        }
    }
}

static void a_message_that_is_too_short_or_too_long_is_refused(void **state)
{
    static union message m, back;
    static uint8_t bytes[65536];
    struct sim_env rng;
    unsigned n_back;
    sim_env_init(&rng, SEED + 1);
    for (enum kind kind = 0; kind < KINDS; kind++) {
        unsigned n = make(&rng, kind, &m);
        size_t size = encode(kind, &m, n, bytes, sizeof bytes - 1);
        for (size_t cut = 0; cut < size; cut += cut < 200 || size - cut < 50 ? 1 : 41) {
            uint8_t *exact = malloc(cut + 1); /* so that a sanitizer sees a read behind the end */
            memcpy(exact, bytes, cut);
            assert_false(decode(kind, exact, cut, &back, &n_back));
            free(exact);
        }
        bytes[size] = 0;
        assert_false(decode(kind, bytes, size + 1, &back, &n_back));
    }
}

static void counts_outside_their_bounds_are_refused(void **state)
{
    static union message back;
    static uint8_t bytes[65536];
    unsigned n;
    static const enum kind counted[] = {RESERVE, PUT, KEYS, READS, STATUSES, GRANTED};
    for (unsigned i = 0; i < 6; i++) {
        for (unsigned count = 0; count <= 65535; count += count < 80 ? 1 : 6545) {
            bytes[0] = (uint8_t)count;
            bytes[1] = (uint8_t)(count >> 8);
            bool fits = decode(counted[i], bytes, sizeof bytes, &back, &n);
            assert_false(fits); /* never of that length */
        }
        bytes[0] = bytes[1] = 0;
        assert_int_equal(decode(counted[i], bytes, 2, &back, &n), counted[i] == GRANTED); /* nothing was granted: fine */
    }
}

static void shapes_outside_their_bounds_are_refused(void **state)
{
    static union message m, back;
    static uint8_t bytes[65536];
    struct sim_env rng;
    unsigned n;
    sim_env_init(&rng, SEED + 2);
#define REFUSED(change)                                                      \
    do {                                                                     \
        make(&rng, OFFER, &m);                                               \
        change;                                                              \
        size_t size = encode(OFFER, &m, 1, bytes, sizeof bytes);             \
        assert_false(decode(OFFER, bytes, size, &back, &n));                 \
    } while (0)
    REFUSED(m.offer.session = 0);
    REFUSED(m.offer.session |= KVF_OPAQUE_BIT);
    REFUSED(m.offer.n_tokens = KVF_SESSION_TOKENS_MAX + 64);
    REFUSED(m.offer.sealed_blocks++);
    REFUSED(m.offer.desc.layers = 0);
    REFUSED(m.offer.desc.layers = 1025);
    REFUSED(m.offer.desc.kv_heads = 0);
    REFUSED(m.offer.desc.q_heads = 3);
    REFUSED(m.offer.desc.q_heads = 65536 * 2);
    REFUSED(m.offer.desc.dim_k = 17);
    REFUSED(m.offer.desc.dim_v = 528);
    REFUSED(m.offer.desc.dtype = (enum kvf_dtype)99);
    REFUSED(m.offer.desc.chunk_tokens = 12);
    REFUSED(m.offer.desc.chunk_tokens = 0);
    REFUSED(m.offer.desc.block_tokens = 0);
    REFUSED(m.offer.desc.block_tokens = 512);
    REFUSED(m.offer.desc.block_tokens = 24); /* no multiple of 4096 bytes */
    REFUSED(m.offer.desc.name[0] = 0);
    REFUSED(m.offer.desc.name[2] = '/');
    REFUSED(memset(m.offer.desc.name, 'a', sizeof m.offer.desc.name));
#undef REFUSED
    make(&rng, COMMIT, &m);
    m.commit.chunk_bytes = 0;
    assert_false(decode(COMMIT, bytes, encode(COMMIT, &m, 1, bytes, sizeof bytes), &back, &n));
    make(&rng, COMMIT, &m);
    m.commit.bytes = UINT32_MAX;
    assert_false(decode(COMMIT, bytes, encode(COMMIT, &m, 1, bytes, sizeof bytes), &back, &n));
    make(&rng, BLOCK, &m);
    m.block.tier = KVF_TIER_SSD;
    assert_false(decode(BLOCK, bytes, encode(BLOCK, &m, 1, bytes, sizeof bytes), &back, &n));
    make(&rng, BLOCK, &m);
    m.block.format = KVF_COLD_FP8 + 1;
    assert_false(decode(BLOCK, bytes, encode(BLOCK, &m, 1, bytes, sizeof bytes), &back, &n));
    make(&rng, BLOCK, &m);
    m.block.tier = KVF_TIER_COUNT; /* what is lost has no format */
    m.block.format = KVF_COLD_INT8;
    assert_false(decode(BLOCK, bytes, encode(BLOCK, &m, 1, bytes, sizeof bytes), &back, &n));
    make(&rng, READS, &m);
    m.reads[0].mask = 0;
    assert_false(decode(READS, bytes, encode(READS, &m, 1, bytes, sizeof bytes), &back, &n));
}

/* Whatever comes: no read behind the end, and what is taken is written back the same. */
static void any_bytes_are_survived(void **state)
{
    static union message m;
    static uint8_t bytes[65536], again[65536];
    struct sim_env rng;
    unsigned n;
    sim_env_init(&rng, SEED + 3);
    for (unsigned round = 0; round < 20000; round++) {
        enum kind kind = (enum kind)sim_env_random(&rng, KINDS);
        size_t size = encode(kind, &m, make(&rng, kind, &m), bytes, sizeof bytes);
        for (uint64_t flips = 1 + sim_env_random(&rng, 4); flips > 0; flips--)
            bytes[sim_env_random(&rng, sim_env_random(&rng, 2) && size > 8 ? 8 : size)] = (uint8_t)sim_env_random(&rng, 256);
        if (!decode(kind, bytes, size, &m, &n) || kind == OFFER || kind == PUT)
            continue; /* names may hold bytes behind their NUL, and the data of a put is not ours */
        assert_int_equal(encode(kind, &m, n, again, sizeof again), size);
        assert_memory_equal(again, bytes, size);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(a_message_that_is_too_short_or_too_long_is_refused),
        cmocka_unit_test(counts_outside_their_bounds_are_refused),
        cmocka_unit_test(shapes_outside_their_bounds_are_refused),
        cmocka_unit_test(any_bytes_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
