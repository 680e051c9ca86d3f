/* A bounded little-endian reader. Past the end it gives zeros and says so in `bad`: callers read, then test once. */
#ifndef LLM_READER_H
#define LLM_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct llm_reader {
    const uint8_t *at, *end;
    bool bad;
};

static inline size_t llm_reader_left(const struct llm_reader *r)
{
    return (size_t)(r->end - r->at);
}

/* Steps over n bytes and returns where they begin, or NULL. */
static inline const uint8_t *llm_reader_bytes(struct llm_reader *r, uint64_t n)
{
    if (r->bad || n > llm_reader_left(r)) {
        r->bad = true;
        return NULL;
    }
    r->at += n;
    return r->at - n;
}

/* An unsigned number of 1 to 8 bytes. */
static inline uint64_t llm_reader_number(struct llm_reader *r, unsigned bytes)
{
    const uint8_t *p = llm_reader_bytes(r, bytes);
    uint64_t value = 0;
    for (unsigned i = 0; p && i < bytes; i++)
        value |= (uint64_t)p[i] << (8 * i);
    return value;
}
#endif
