// needs: node/wire.c node/attend_wire.c
/* Every decoder of the node's payloads on any bytes: the first byte chooses it. What a decoder takes must survive being encoded and
 * decoded again. */
#include "node/attend_remote.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t bytes[1 << 16];

static void demand(bool holds)
{
    if (!holds)
        abort();
}

/* What was written is exactly what was read. */
static void same(const struct kvf_writer *w, const uint8_t *data, size_t size)
{
    demand(!w->bad && kvf_writer_used(w) == size && memcmp(bytes, data, size) == 0);
}

static void reserve(const uint8_t *data, size_t size)
{
    struct kvf_reserve_item items[KVF_BATCH_MAX];
    unsigned n;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_wire_reserve_read(&r, items, &n))
        return;
    kvf_wire_reserve(&w, items, n);
    same(&w, data, size);
}

static void granted(const uint8_t *data, size_t size)
{
    uint64_t offsets[KVF_BATCH_MAX];
    unsigned n;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_wire_granted_read(&r, offsets, &n))
        return;
    kvf_wire_granted(&w, offsets, n);
    same(&w, data, size);
}

static void put(const uint8_t *data, size_t size)
{
    struct kvf_put_item items[KVF_BATCH_MAX];
    unsigned n;
    uint64_t sum = 0;
    struct kvf_reader r = kvf_reader_of(data, size);
    if (!kvf_wire_put_read(&r, items, &n))
        return;
    for (unsigned i = 0; i < n; i++) {
        demand(kvf_read_bytes(&r, items[i].bytes) != NULL || items[i].bytes == 0);
        sum += items[i].bytes;
    }
    demand(sum <= size && kvf_reader_left(&r) == 0);
}

static void commit(const uint8_t *data, size_t size)
{
    struct kvf_commit_item item;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    while (kvf_reader_left(&r) > 0) {
        if (!kvf_wire_commit_read(&r, &item))
            return;
        demand(item.chunks >= 1 && item.chunks <= 64);
        kvf_wire_commit(&w, &item);
    }
    same(&w, data, size);
}

static void keys(const uint8_t *data, size_t size)
{
    struct kvf_key list[KVF_BATCH_MAX];
    unsigned n;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_wire_keys_read(&r, list, &n))
        return;
    kvf_wire_keys(&w, list, n);
    same(&w, data, size);
}

static void reads(const uint8_t *data, size_t size)
{
    struct kvf_read_item items[KVF_BATCH_MAX];
    unsigned n;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_wire_reads_read(&r, items, &n))
        return;
    kvf_wire_reads(&w, items, n);
    same(&w, data, size);
}

static void places(const uint8_t *data, size_t size)
{
    struct kvf_place items[KVF_BATCH_MAX];
    unsigned n;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_wire_places_read(&r, items, &n))
        return;
    kvf_wire_places(&w, items, n);
    same(&w, data, size);
}

static void pieces(const uint8_t *data, size_t size)
{
    struct kvf_piece_item items[KVF_BATCH_MAX];
    uint64_t id;
    unsigned n;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_wire_pieces_read(&r, &id, items, &n))
        return;
    kvf_wire_pieces(&w, id, items, n);
    same(&w, data, size - kvf_reader_left(&r));
}

static void statuses(const uint8_t *data, size_t size)
{
    uint8_t list[KVF_BATCH_MAX];
    unsigned n;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_wire_statuses_read(&r, list, &n))
        return;
    kvf_wire_statuses(&w, list, n);
    same(&w, data, size - kvf_reader_left(&r));
}

/* Names may hold anything behind their NUL, so the second encoding is compared with the first. */
static void offer(const uint8_t *data, size_t size)
{
    static struct kvf_move_offer first, second;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_wire_offer_read(&r, &first))
        return;
    demand(kvf_model_desc_valid(&first.desc));
    kvf_wire_offer(&w, &first);
    demand(!w.bad && kvf_writer_used(&w) == size);
    r = kvf_reader_of(bytes, size);
    demand(kvf_wire_offer_read(&r, &second) && memcmp(&first, &second, sizeof first) == 0);
}

static void block(const uint8_t *data, size_t size)
{
    struct kvf_move_block b;
    unsigned chunks = size > 0 ? 1 + data[0] % 64 : 1, scales = size > 1 ? data[1] : 0;
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    while (kvf_reader_left(&r) > 0) {
        if (!kvf_wire_block_read(&r, &b, chunks, scales))
            return;
        kvf_wire_block(&w, &b, chunks, scales);
    }
    same(&w, data, size);
}

/* Its words lie in the message: they are spread out again, as a home has them. */
static void question(const uint8_t *data, size_t size)
{
    static struct kvf_attend_question q;
    uint64_t words[KVF_SUMS_MAX + 64];
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_attend_wire_question_read(&r, &q))
        return;
    demand(kvf_attend_shape_valid(&q.shape));
    kvf_attend_wire_head(&w, &q.shape, q.n_items, q.n_sets);
    for (unsigned i = 0; i < q.n_items; i++) {
        const struct kvf_attend_item *it = &q.items[i];
        size_t none = kvf_attend_wire_item_bytes(&q.shape, 0, KVF_COLD_EXACT);
        size_t n = kvf_attend_wire_item_bytes(&q.shape, it->mask, it->format) - none;
        struct kvf_reader from = kvf_reader_of(it->words, n);
        demand(it->set < q.n_sets && it->mask != 0);
        for (uint64_t left = it->mask; left; left &= left - 1)
            words[__builtin_ctzll(left)] = kvf_read_u64(&from);
        for (unsigned k = 0; kvf_reader_left(&from) > 0; k++)
            words[q.shape.chunks + k] = kvf_read_u64(&from);
        kvf_attend_wire_item(&w, &q.shape, it, words);
    }
    kvf_write_bytes(&w, q.queries, (size_t)q.n_sets * q.shape.rows * q.shape.dim_k * sizeof(float));
    same(&w, data, size);
}

/* To a question of 1 to 64 blocks in three sets. */
static void answer(const uint8_t *data, size_t size)
{
    struct kvf_attend_shape shape = {.dim_v = 16, .rows = 2, .merged = size > 0 && data[size - 1] & 1};
    struct kvf_attend_answer a;
    uint8_t sets[KVF_BATCH_MAX];
    unsigned n = size > 0 ? data[0] : 0; /* as the message says, or it is no answer to the question */
    for (unsigned i = 0; i < KVF_BATCH_MAX; i++)
        sets[i] = (uint8_t)(i % 3);
    struct kvf_reader r = kvf_reader_of(data, size);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    if (!kvf_attend_wire_answer_read(&r, &shape, sets, n, &a))
        return;
    kvf_attend_wire_answer(&w, a.verdicts, a.n, a.busy_us);
    kvf_write_bytes(&w, a.numbers, a.parts * kvf_attend_part_bytes(&shape));
    same(&w, data, size);
}

static void probe(const uint8_t *data, size_t size)
{
    struct kvf_attend_ability ability;
    uint32_t padding;
    struct kvf_reader r = kvf_reader_of(data, size), again = r;
    if (kvf_attend_wire_probe_read(&r, &padding))
        demand(padding <= KVF_ATTEND_PROBE_BYTES && size >= 4);
    if (size >= 16 && !kvf_attend_wire_ability_read(&again, (uint32_t)size - 16, &ability))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* The seeds name them by their places: new ones come last. */
    static void (*const decoders[])(const uint8_t *, size_t) = {reserve, granted, put,      commit, keys,  reads,  statuses,
                                                               offer,   block,   question, answer, probe, places, pieces};
    if (size == 0)
        return 0;
    decoders[data[0] % (sizeof decoders / sizeof *decoders)](data + 1, size - 1);
    return 0;
}
