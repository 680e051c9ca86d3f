/* XXH3-64 with a seed, written out from its specification (xxHash 0.8) for lengths of every kind, one byte at a time.
 * Slow on purpose: the fast tables use libxxhash's code, and this one says whether that is right. */
#include "kernels/cpu.h"

enum { SECRET_BYTES = 192, SECRET_MIN = 136, STRIPE = 64, STRIPES_PER_BLOCK = (SECRET_BYTES - STRIPE) / 8 };

#define PRIME32_1 0x9E3779B1ull
#define PRIME32_2 0x85EBCA77ull
#define PRIME32_3 0xC2B2AE3Dull
#define PRIME64_1 0x9E3779B185EBCA87ull
#define PRIME64_2 0xC2B2AE3D27D4EB4Full
#define PRIME64_3 0x165667B19E3779F9ull
#define PRIME64_4 0x85EBCA77C2B2AE63ull
#define PRIME64_5 0x27D4EB2F165667C5ull

/* The specification's default secret. */
static const uint8_t secret_default[SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9,
    0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78,
    0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6,
    0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f,
    0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31,
    0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff,
    0xfa, 0x13, 0x63, 0xeb, 0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static uint64_t read_le(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static void write64(uint8_t *p, uint64_t v)
{
    for (unsigned i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t rotate(uint64_t v, unsigned bits)
{
    return (v << bits) | (v >> (64 - bits));
}

/* The 128-bit product, folded: low half xor high half. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t avalanche(uint64_t h)
{
    h = (h ^ (h >> 37)) * 0x165667919E3779F9ull;
    return h ^ (h >> 32);
}

static uint64_t avalanche_xxh64(uint64_t h)
{
    h = (h ^ (h >> 33)) * PRIME64_2;
    h = (h ^ (h >> 29)) * PRIME64_3;
    return h ^ (h >> 32);
}

static uint64_t secret64(unsigned at)
{
    return read_le(secret_default + at, 8);
}

static uint64_t mix16(const uint8_t *in, unsigned at, uint64_t seed)
{
    return fold(read_le(in, 8) ^ (secret64(at) + seed), read_le(in + 8, 8) ^ (secret64(at + 8) - seed));
}

static uint64_t hash_0_to_16(const uint8_t *in, size_t bytes, uint64_t seed)
{
    if (bytes > 8) {
        uint64_t low = read_le(in, 8) ^ ((secret64(24) ^ secret64(32)) + seed);
        uint64_t high = read_le(in + bytes - 8, 8) ^ ((secret64(40) ^ secret64(48)) - seed);
        return avalanche(bytes + __builtin_bswap64(low) + high + fold(low, high));
    }
    if (bytes >= 4) {
        seed ^= (uint64_t)__builtin_bswap32((uint32_t)seed) << 32;
        uint64_t word = read_le(in + bytes - 4, 4) + (read_le(in, 4) << 32);
        uint64_t h = word ^ ((secret64(8) ^ secret64(16)) - seed);
        h ^= rotate(h, 49) ^ rotate(h, 24);
        h *= 0x9FB21C651E98DF25ull;
        h ^= (h >> 35) + bytes;
        h *= 0x9FB21C651E98DF25ull;
        return h ^ (h >> 28);
    }
    if (bytes) {
        uint64_t word = (uint64_t)in[0] << 16 | (uint64_t)in[bytes / 2] << 24 | in[bytes - 1] | (uint64_t)bytes << 8;
        return avalanche_xxh64(word ^ ((read_le(secret_default, 4) ^ read_le(secret_default + 4, 4)) + seed));
    }
    return avalanche_xxh64(seed ^ secret64(56) ^ secret64(64));
}

/* Pairs of 16 bytes from both ends, from the middle outwards. */
static uint64_t hash_17_to_128(const uint8_t *in, size_t bytes, uint64_t seed)
{
    uint64_t acc = bytes * PRIME64_1;
    for (unsigned i = (unsigned)(bytes - 1) / 32 + 1; i-- > 0;) {
        acc += mix16(in + 16 * i, 32 * i, seed);
        acc += mix16(in + bytes - 16 * (i + 1), 32 * i + 16, seed);
    }
    return avalanche(acc);
}

static uint64_t hash_129_to_240(const uint8_t *in, size_t bytes, uint64_t seed)
{
    uint64_t acc = bytes * PRIME64_1;
    for (unsigned i = 0; i < 8; i++)
        acc += mix16(in + 16 * i, 16 * i, seed);
    acc = avalanche(acc);
    for (unsigned i = 8; i < bytes / 16; i++)
        acc += mix16(in + 16 * i, 16 * (i - 8) + 3, seed);
    return avalanche(acc + mix16(in + bytes - 16, SECRET_MIN - 17, seed));
}

static void accumulate(uint64_t acc[8], const uint8_t *in, const uint8_t *secret)
{
    for (unsigned i = 0; i < 8; i++) {
        uint64_t value = read_le(in + 8 * i, 8), key = value ^ read_le(secret + 8 * i, 8);
        acc[i ^ 1] += value;
        acc[i] += (key & 0xffffffff) * (key >> 32);
    }
}

static void scramble(uint64_t acc[8], const uint8_t *secret)
{
    for (unsigned i = 0; i < 8; i++)
        acc[i] = (acc[i] ^ (acc[i] >> 47) ^ read_le(secret + 8 * i, 8)) * PRIME32_1;
}

static uint64_t hash_long(const uint8_t *in, size_t bytes, uint64_t seed)
{
    uint8_t secret[SECRET_BYTES];
    for (unsigned i = 0; i < SECRET_BYTES; i += 16) {
        write64(secret + i, secret64(i) + seed);
        write64(secret + i + 8, secret64(i + 8) - seed);
    }
    uint64_t acc[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    size_t stripes = (bytes - 1) / STRIPE;
    for (size_t s = 0; s < stripes; s++) {
        accumulate(acc, in + s * STRIPE, secret + s % STRIPES_PER_BLOCK * 8);
        if (s % STRIPES_PER_BLOCK == STRIPES_PER_BLOCK - 1)
            scramble(acc, secret + SECRET_BYTES - STRIPE);
    }
    accumulate(acc, in + bytes - STRIPE, secret + SECRET_BYTES - STRIPE - 7);
    uint64_t result = bytes * PRIME64_1;
    for (unsigned i = 0; i < 4; i++)
        result += fold(acc[2 * i] ^ read_le(secret + 11 + 16 * i, 8), acc[2 * i + 1] ^ read_le(secret + 19 + 16 * i, 8));
    return avalanche(result);
}

uint64_t kvf_xxh3_hash(const void *data, size_t bytes, uint64_t seed)
{
    if (bytes <= 16)
        return hash_0_to_16(data, bytes, seed);
    if (bytes <= 128)
        return hash_17_to_128(data, bytes, seed);
    return bytes <= 240 ? hash_129_to_240(data, bytes, seed) : hash_long(data, bytes, seed);
}
