/* checksum and copy_checksum for the table "cpu plain": libxxhash's code, as the compiler makes it without wide instructions
 * (Makefile: with -O3, which doubles it). On a processor its SSE2 is 1.4 times as fast, in an emulated one less than half; the
 * processors that want this table are emulated ones, and elsewhere either is faster than memory. */
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_SCALAR
#include "kernels/cpu.h"

#include <assert.h>
#include <string.h>
#include <xxhash.h>

enum kvf_status kvf_checksum_plain(const struct kvf_dev *dev, struct kvf_stream *stream, const void *data, size_t bytes,
                                   uint64_t seed, uint64_t *out)
{
    if (!out || (bytes && !data))
        return KVF_ERR_INVALID;
    *out = XXH3_64bits_withSeed(data, bytes, seed);
    return KVF_OK;
}

enum kvf_status kvf_checksum_plain_copy(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from,
                                        bool foreign, size_t bytes, size_t chunk_bytes, uint64_t seed, uint64_t *out)
{
    if (!kvf_check_copy_checksum(to, from, bytes, chunk_bytes, out))
        return KVF_ERR_INVALID;
    assert(chunk_bytes > 0);
    for (size_t at = 0; at < bytes; at += chunk_bytes) {
        size_t n = bytes - at < chunk_bytes ? bytes - at : chunk_bytes;
        uint8_t *chunk = (uint8_t *)to + at;
        memcpy(chunk, (const uint8_t *)from + at, n);
        __asm__ volatile("" : : "r"(chunk) : "memory"); /* of what was written: `from` may have changed since */
        *out++ = XXH3_64bits_withSeed(chunk, n, seed++);
    }
    return KVF_OK;
}
