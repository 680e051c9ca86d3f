/* Hashing of names and keys; the checksum of block data is an operation of the device table (kernels/dev.h). */
#ifndef KVF_BASE_HASH_H
#define KVF_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

/* XXH3-64 of a byte string. */
uint64_t kvf_hash(const void *data, size_t bytes, uint64_t seed);

/* A fast mix of two words (for seeds and hash tables); not for untrusted input. */
static inline uint64_t kvf_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a ^ (b + 0x9e3779b97f4a7c15ull + (a << 6) + (a >> 2));
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
#endif
