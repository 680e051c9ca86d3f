// needs: node/wire.c
/* Every decoder of the node's payloads on any bytes: the first byte chooses it. What a decoder takes must survive being encoded and
 * decoded again. */
#include "node/wire.h"

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const decoders[])(const uint8_t *, size_t) = {reserve, granted, put, commit, keys, reads, statuses, offer, block};
    if (size == 0)
        return 0;
    decoders[data[0] % 9](data + 1, size - 1);
    return 0;
}
