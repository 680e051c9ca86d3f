/* SipHash-2-4 (Aumasson and Bernstein, 2012): two rounds per word, four at the end. */
#include "base/siphash.h"

#include <assert.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are loaded as they lie");

static inline uint64_t rotate(uint64_t x, unsigned bits) { return x << bits | x >> (64 - bits); }

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static inline void absorb(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    sip_round(v);
    sip_round(v);
    v[0] ^= word;
}

static inline void absorb_words(uint64_t v[4], const uint8_t *at, size_t words)
{
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, at + 8 * i, sizeof word);
        absorb(v, word);
    }
}

uint64_t kvf_siphash(const uint8_t key[KVF_SIPHASH_KEY_BYTES], const void *head, size_t head_bytes, const void *data, size_t bytes)
{
    uint64_t k[2];
    assert(head_bytes % 8 == 0 && (data || bytes == 0));
    memcpy(k, key, sizeof k);
    uint64_t v[4] = {k[0] ^ 0x736f6d6570736575ull, k[1] ^ 0x646f72616e646f6dull, k[0] ^ 0x6c7967656e657261ull,
                     k[1] ^ 0x7465646279746573ull};
    absorb_words(v, head, head_bytes / 8);
    absorb_words(v, data, bytes / 8);
    /* The last word: what is left, and the length modulo 256 on top. */
    uint64_t last = 0;
    if (bytes % 8)
        memcpy(&last, (const uint8_t *)data + bytes / 8 * 8, bytes % 8);
    absorb(v, last | (uint64_t)(head_bytes + bytes) << 56);
    v[2] ^= 0xff;
    for (unsigned i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}
