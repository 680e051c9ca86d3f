/* Encoding and decoding of frames (wire.h). */
#include "fabric/wire.h"
#include "base/bytes.h"
#include "base/hash.h"

#include <assert.h>
#include <string.h>

#define STATUS_LIMIT 1000 /* codes beyond it are nobody's */

uint64_t kvf_wire_node_id(const char *name)
{
    uint64_t id = kvf_hash(name, strlen(name), 0x6b76666e6f646531ull);
    return id ? id : 1;
}

static bool positioned(const struct kvf_wire_header *h)
{
    switch (h->type) {
    case KVF_WIRE_PULL:
    case KVF_WIRE_PULL_DATA:
        return true;
    case KVF_WIRE_WELCOME:
    case KVF_WIRE_HEARTBEAT:
        return h->position <= KVF_REGION_PIECES_MAX;
    case KVF_WIRE_PIECE_ASK:
    case KVF_WIRE_PIECE:
        return h->position < KVF_REGION_PIECES_MAX;
    default:
        return false;
    }
}

/* What each type allows beside the fields that all have. */
static bool type_fits(const struct kvf_wire_header *h)
{
    bool answer = h->type == KVF_WIRE_REPLY || h->type == KVF_WIRE_PULL_DATA;
    if (!answer && h->status != 0)
        return false;
    if (!positioned(h) && h->position != 0)
        return false;
    /* Before a session nothing is counted and tagged, in it everything is. */
    bool before = h->type == KVF_WIRE_HELLO || h->type == KVF_WIRE_PROOF;
    if (before ? h->counter != 0 || h->tag != 0 : h->counter == 0)
        return false;
    if (h->flags != 0 && (h->type != KVF_WIRE_WELCOME || h->flags != KVF_WIRE_FLAG_HEARD))
        return false;
    switch (h->type) {
    case KVF_WIRE_HELLO:
    case KVF_WIRE_PROOF:
    case KVF_WIRE_WELCOME:
        return h->request == 0 && h->payload_bytes != 0;
    case KVF_WIRE_HEARTBEAT:
    case KVF_WIRE_GOODBYE:
    case KVF_WIRE_PIECE_ASK:
        return h->request == 0 && h->payload_bytes == 0;
    case KVF_WIRE_PIECE:
        return h->request == 0 && h->payload_bytes != 0;
    case KVF_WIRE_PULL:
        return h->request != 0 && h->payload_bytes != 0;
    case KVF_WIRE_PULL_DATA: /* bytes or a refusal, never both and never neither */
        return h->request != 0 && (h->status == 0) == (h->payload_bytes != 0);
    case KVF_WIRE_REPLY:
        return h->request != 0;
    default:
        return h->type >= KVF_WIRE_TYPE_NODE;
    }
}

static bool header_fits(const struct kvf_wire_header *h)
{
    if (h->sender == 0 || h->sender_incarnation == 0 || h->receiver_incarnation == 0)
        return false;
    if (h->payload_bytes > KVF_WIRE_PAYLOAD_MAX || h->status < -STATUS_LIMIT || h->status > STATUS_LIMIT)
        return false;
    return type_fits(h);
}

void kvf_wire_header_encode(const struct kvf_wire_header *h, void *out)
{
    assert(header_fits(h));
    struct kvf_writer w = kvf_writer_of(out, KVF_WIRE_HEADER_BYTES);
    kvf_write_u32(&w, KVF_WIRE_MAGIC);
    kvf_write_u16(&w, KVF_WIRE_VERSION);
    kvf_write_u16(&w, h->type);
    kvf_write_u16(&w, h->flags);
    kvf_write_u16(&w, 0);
    kvf_write_u32(&w, (uint32_t)h->status);
    kvf_write_u64(&w, h->sender);
    kvf_write_u64(&w, h->sender_incarnation);
    kvf_write_u64(&w, h->receiver_incarnation);
    kvf_write_u64(&w, h->request);
    kvf_write_u64(&w, h->position);
    kvf_write_u32(&w, h->payload_bytes);
    kvf_write_u32(&w, h->budget_us);
    kvf_write_u64(&w, h->counter);
    kvf_write_u64(&w, h->tag);
    assert(!w.bad && kvf_writer_used(&w) == KVF_WIRE_HEADER_BYTES);
}

/* Every field as it stands there; *zero is what must be 0. */
static enum kvf_status header_read(const void *data, size_t bytes, struct kvf_wire_header *h, uint16_t *zero)
{
    struct kvf_reader r = kvf_reader_of(data, bytes);
    uint32_t magic = kvf_read_u32(&r);
    uint16_t version = kvf_read_u16(&r);
    if (r.bad || magic != KVF_WIRE_MAGIC)
        return KVF_ERR_PEER_PROTOCOL;
    h->type = kvf_read_u16(&r);
    h->flags = kvf_read_u16(&r);
    *zero = kvf_read_u16(&r);
    h->status = (int32_t)kvf_read_u32(&r);
    h->sender = kvf_read_u64(&r);
    /* Before the length: another version may have another header. */
    if (version != KVF_WIRE_VERSION)
        return KVF_ERR_PEER_VERSION;
    if (bytes != KVF_WIRE_HEADER_BYTES)
        return KVF_ERR_PEER_PROTOCOL;
    h->sender_incarnation = kvf_read_u64(&r);
    h->receiver_incarnation = kvf_read_u64(&r);
    h->request = kvf_read_u64(&r);
    h->position = kvf_read_u64(&r);
    h->payload_bytes = kvf_read_u32(&r);
    h->budget_us = kvf_read_u32(&r);
    h->counter = kvf_read_u64(&r);
    h->tag = kvf_read_u64(&r);
    assert(!r.bad && kvf_reader_left(&r) == 0);
    return KVF_OK;
}

enum kvf_status kvf_wire_header_peek(const void *data, size_t bytes, struct kvf_wire_header *out)
{
    struct kvf_wire_header h = {.sender = 0};
    uint16_t zero;
    enum kvf_status st = header_read(data, bytes, &h, &zero);
    *out = h;
    return st;
}

enum kvf_status kvf_wire_header_decode(const void *data, size_t bytes, struct kvf_wire_header *out)
{
    struct kvf_wire_header h;
    uint16_t zero;
    enum kvf_status st = header_read(data, bytes, &h, &zero);
    if (st != KVF_OK)
        return st;
    if (zero != 0 || !header_fits(&h))
        return KVF_ERR_PEER_PROTOCOL;
    *out = h;
    return KVF_OK;
}

static bool name_fits(const char *name, size_t length)
{
    if (length == 0 || length >= KVF_WIRE_NAME_MAX)
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-')
            return false;
    }
    return true;
}

static bool hello_fits(const struct kvf_wire_hello *h)
{
    if (!name_fits(h->name, strnlen(h->name, sizeof h->name)))
        return false;
    return h->address_bytes != 0 && h->address_bytes <= sizeof h->address;
}

enum kvf_status kvf_wire_hello_encode(const struct kvf_wire_hello *h, void *out, size_t *bytes)
{
    if (!hello_fits(h))
        return KVF_ERR_INVALID;
    struct kvf_writer w = kvf_writer_of(out, *bytes);
    size_t length = strlen(h->name);
    kvf_write_u8(&w, (uint8_t)length);
    kvf_write_bytes(&w, h->name, length);
    kvf_write_u16(&w, (uint16_t)h->address_bytes);
    kvf_write_bytes(&w, h->address, h->address_bytes);
    kvf_write_bytes(&w, h->key_id, sizeof h->key_id);
    kvf_write_bytes(&w, h->nonce, sizeof h->nonce);
    kvf_write_bytes(&w, h->mac, sizeof h->mac);
    if (w.bad)
        return KVF_ERR_INVALID;
    *bytes = kvf_writer_used(&w);
    return KVF_OK;
}

/* Copies a field whose length comes first, when it fits. */
static size_t read_field(struct kvf_reader *r, size_t length, void *to, size_t room)
{
    if (length > room)
        r->bad = true;
    const uint8_t *from = kvf_read_bytes(r, length);
    if (from && length)
        memcpy(to, from, length);
    return from ? length : 0;
}

enum kvf_status kvf_wire_hello_decode(const void *data, size_t bytes, struct kvf_wire_hello *out)
{
    struct kvf_reader r = kvf_reader_of(data, bytes);
    struct kvf_wire_hello h;
    memset(&h, 0, sizeof h);
    size_t length = read_field(&r, kvf_read_u8(&r), h.name, sizeof h.name - 1);
    h.address_bytes = read_field(&r, kvf_read_u16(&r), h.address, sizeof h.address);
    read_field(&r, sizeof h.key_id, h.key_id, sizeof h.key_id);
    read_field(&r, sizeof h.nonce, h.nonce, sizeof h.nonce);
    read_field(&r, sizeof h.mac, h.mac, sizeof h.mac);
    if (r.bad || kvf_reader_left(&r) != 0)
        return KVF_ERR_PEER_PROTOCOL;
    /* The length is tested apart: a NUL inside the name must not shorten it. */
    if (!name_fits(h.name, length) || !hello_fits(&h))
        return KVF_ERR_PEER_PROTOCOL;
    *out = h;
    return KVF_OK;
}

void kvf_wire_proof_encode(const struct kvf_wire_proof *proof, void *out)
{
    struct kvf_writer w = kvf_writer_of(out, KVF_WIRE_PROOF_BYTES);
    kvf_write_bytes(&w, proof->key_id, sizeof proof->key_id);
    kvf_write_bytes(&w, proof->nonce, sizeof proof->nonce);
    kvf_write_bytes(&w, proof->answers, sizeof proof->answers);
    kvf_write_bytes(&w, proof->mac, sizeof proof->mac);
    assert(!w.bad && kvf_writer_used(&w) == KVF_WIRE_PROOF_BYTES);
}

enum kvf_status kvf_wire_proof_decode(const void *data, size_t bytes, struct kvf_wire_proof *out)
{
    struct kvf_reader r = kvf_reader_of(data, bytes);
    struct kvf_wire_proof proof;
    memset(&proof, 0, sizeof proof);
    read_field(&r, sizeof proof.key_id, proof.key_id, sizeof proof.key_id);
    read_field(&r, sizeof proof.nonce, proof.nonce, sizeof proof.nonce);
    read_field(&r, sizeof proof.answers, proof.answers, sizeof proof.answers);
    read_field(&r, sizeof proof.mac, proof.mac, sizeof proof.mac);
    if (r.bad || kvf_reader_left(&r) != 0)
        return KVF_ERR_PEER_PROTOCOL;
    *out = proof;
    return KVF_OK;
}

static bool welcome_fits(const struct kvf_wire_welcome *w)
{
    if (w->region_base + w->region_bytes < w->region_base)
        return false;
    return w->payload_max > 0 && w->payload_max <= KVF_WIRE_PAYLOAD_MAX;
}

enum kvf_status kvf_wire_welcome_encode(const struct kvf_wire_welcome *welcome, void *out)
{
    if (!welcome_fits(welcome))
        return KVF_ERR_INVALID;
    struct kvf_writer w = kvf_writer_of(out, KVF_WIRE_WELCOME_BYTES);
    kvf_write_u64(&w, welcome->region_base);
    kvf_write_u64(&w, welcome->region_bytes);
    kvf_write_u32(&w, welcome->payload_max);
    assert(!w.bad && kvf_writer_used(&w) == KVF_WIRE_WELCOME_BYTES);
    return KVF_OK;
}

enum kvf_status kvf_wire_welcome_decode(const void *data, size_t bytes, struct kvf_wire_welcome *out)
{
    struct kvf_reader r = kvf_reader_of(data, bytes);
    struct kvf_wire_welcome welcome;
    welcome.region_base = kvf_read_u64(&r);
    welcome.region_bytes = kvf_read_u64(&r);
    welcome.payload_max = kvf_read_u32(&r);
    if (r.bad || kvf_reader_left(&r) != 0 || !welcome_fits(&welcome))
        return KVF_ERR_PEER_PROTOCOL;
    *out = welcome;
    return KVF_OK;
}

static bool piece_fits(const struct kvf_region_piece *piece)
{
    return piece->bytes != 0 && piece->offset + piece->bytes >= piece->offset && piece->key_bytes != 0 &&
           piece->key_bytes <= sizeof piece->key;
}

enum kvf_status kvf_wire_piece_encode(const struct kvf_region_piece *piece, void *out, size_t *bytes)
{
    if (!piece_fits(piece))
        return KVF_ERR_INVALID;
    struct kvf_writer w = kvf_writer_of(out, *bytes);
    kvf_write_u64(&w, piece->offset);
    kvf_write_u64(&w, piece->bytes);
    kvf_write_u16(&w, (uint16_t)piece->key_bytes);
    kvf_write_bytes(&w, piece->key, piece->key_bytes);
    if (w.bad)
        return KVF_ERR_INVALID;
    *bytes = kvf_writer_used(&w);
    return KVF_OK;
}

enum kvf_status kvf_wire_piece_decode(const void *data, size_t bytes, struct kvf_region_piece *out)
{
    struct kvf_reader r = kvf_reader_of(data, bytes);
    struct kvf_region_piece piece;
    memset(&piece, 0, sizeof piece);
    piece.offset = kvf_read_u64(&r);
    piece.bytes = kvf_read_u64(&r);
    piece.key_bytes = read_field(&r, kvf_read_u16(&r), piece.key, sizeof piece.key);
    if (r.bad || kvf_reader_left(&r) != 0 || !piece_fits(&piece))
        return KVF_ERR_PEER_PROTOCOL;
    *out = piece;
    return KVF_OK;
}

static bool range_fits(const struct kvf_wire_range *range)
{
    return range->bytes != 0 && range->offset + range->bytes >= range->offset;
}

enum kvf_status kvf_wire_pull_encode(const struct kvf_wire_pull *pull, void *out, size_t *bytes)
{
    if (pull->n == 0 || pull->n > KVF_WIRE_RANGES_MAX)
        return KVF_ERR_INVALID;
    struct kvf_writer w = kvf_writer_of(out, *bytes);
    kvf_write_u16(&w, (uint16_t)pull->n);
    kvf_write_u16(&w, pull->frame_pages);
    for (unsigned i = 0; i < pull->n; i++) {
        if (!range_fits(&pull->ranges[i]))
            return KVF_ERR_INVALID;
        kvf_write_u64(&w, pull->ranges[i].offset);
        kvf_write_u32(&w, pull->ranges[i].bytes);
    }
    if (w.bad)
        return KVF_ERR_INVALID;
    *bytes = kvf_writer_used(&w);
    return KVF_OK;
}

enum kvf_status kvf_wire_pull_decode(const void *data, size_t bytes, struct kvf_wire_pull *out)
{
    struct kvf_reader r = kvf_reader_of(data, bytes);
    struct kvf_wire_pull pull;
    pull.n = kvf_read_u16(&r);
    pull.frame_pages = kvf_read_u16(&r);
    if (r.bad || pull.n == 0 || pull.n > KVF_WIRE_RANGES_MAX || kvf_reader_left(&r) != 12u * pull.n)
        return KVF_ERR_PEER_PROTOCOL;
    for (unsigned i = 0; i < pull.n; i++) {
        pull.ranges[i].offset = kvf_read_u64(&r);
        pull.ranges[i].bytes = kvf_read_u32(&r);
        if (!range_fits(&pull.ranges[i]))
            return KVF_ERR_PEER_PROTOCOL;
    }
    assert(!r.bad);
    out->n = pull.n;
    out->frame_pages = pull.frame_pages;
    memcpy(out->ranges, pull.ranges, pull.n * sizeof pull.ranges[0]);
    return KVF_OK;
}
