/* Little-endian accessors, a bounded reader and a bounded writer for wire and disk structures. A reader that ran past
 * its end returns zeros and says so in `bad`: decoders read everything and test once. */
#ifndef KVF_BASE_BYTES_H
#define KVF_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct kvf_reader {
    const uint8_t *at, *end;
    bool bad;
};
struct kvf_writer {
    uint8_t *start, *at, *end;
    bool bad; /* did not fit */
};

static inline struct kvf_reader kvf_reader_of(const void *data, size_t bytes)
{
    return (struct kvf_reader){.at = data, .end = (const uint8_t *)data + bytes};
}
static inline struct kvf_writer kvf_writer_of(void *data, size_t bytes)
{
    return (struct kvf_writer){.start = data, .at = data, .end = (uint8_t *)data + bytes};
}
static inline size_t kvf_reader_left(const struct kvf_reader *r)
{
    return (size_t)(r->end - r->at);
}
static inline size_t kvf_writer_used(const struct kvf_writer *w)
{
    return (size_t)(w->at - w->start);
}
static inline const uint8_t *kvf_read_bytes(struct kvf_reader *r, size_t n)
{
    if (r->bad || kvf_reader_left(r) < n) {
        r->bad = true;
        return NULL;
    }
    r->at += n;
    return r->at - n;
}
static inline void kvf_write_bytes(struct kvf_writer *w, const void *data, size_t n)
{
    if (w->bad || (size_t)(w->end - w->at) < n) {
        w->bad = true;
        return;
    }
    if (n)
        memcpy(w->at, data, n);
    w->at += n;
}
static inline uint64_t kvf_read_le(struct kvf_reader *r, unsigned bytes)
{
    const uint8_t *p = kvf_read_bytes(r, bytes);
    uint64_t v = 0;
    for (unsigned i = 0; p && i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}
static inline void kvf_write_le(struct kvf_writer *w, uint64_t v, unsigned bytes)
{
    uint8_t b[8];
    for (unsigned i = 0; i < bytes; i++)
        b[i] = (uint8_t)(v >> (8 * i));
    kvf_write_bytes(w, b, bytes);
}
static inline uint8_t kvf_read_u8(struct kvf_reader *r) { return (uint8_t)kvf_read_le(r, 1); }
static inline uint16_t kvf_read_u16(struct kvf_reader *r) { return (uint16_t)kvf_read_le(r, 2); }
static inline uint32_t kvf_read_u32(struct kvf_reader *r) { return (uint32_t)kvf_read_le(r, 4); }
static inline uint64_t kvf_read_u64(struct kvf_reader *r) { return kvf_read_le(r, 8); }
static inline void kvf_write_u8(struct kvf_writer *w, uint8_t v) { kvf_write_le(w, v, 1); }
static inline void kvf_write_u16(struct kvf_writer *w, uint16_t v) { kvf_write_le(w, v, 2); }
static inline void kvf_write_u32(struct kvf_writer *w, uint32_t v) { kvf_write_le(w, v, 4); }
static inline void kvf_write_u64(struct kvf_writer *w, uint64_t v) { kvf_write_le(w, v, 8); }
#endif
