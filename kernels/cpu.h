/* Inside this room: what the CPU tables share. Each table's file owns its operations; dev_cpu.c owns memory and streams
 * (a CPU stream is done when the call returns) and the choice among the tables. */
#ifndef KVF_KERNELS_CPU_H
#define KVF_KERNELS_CPU_H

#include "kernels/dev.h"

/* The tables. A wide one may only be called where the CPU has its instructions: kvf_dev_cpu_all() knows. */
extern const struct kvf_dev kvf_cpu_reference_dev, kvf_cpu_plain_dev, kvf_ops_avx2_dev, kvf_ops_avx512_dev;

enum kvf_status kvf_dev_cpu_alloc(const struct kvf_dev *dev, size_t bytes, void **out);
void kvf_dev_cpu_free(const struct kvf_dev *dev, void *memory);
enum kvf_status kvf_dev_cpu_register(const struct kvf_dev *dev, void *memory, size_t bytes);
void kvf_dev_cpu_unregister(const struct kvf_dev *dev, void *memory);
enum kvf_status kvf_dev_cpu_copy(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from, size_t bytes);
enum kvf_status kvf_dev_cpu_stream_create(const struct kvf_dev *dev, struct kvf_stream **out);
void kvf_dev_cpu_stream_destroy(const struct kvf_dev *dev, struct kvf_stream *stream);
enum kvf_status kvf_dev_cpu_stream_sync(const struct kvf_dev *dev, struct kvf_stream *stream);

/* The part of a CPU table that does not compute. */
#define KVF_CPU_MEMORY                                                                                         \
    .kind = KVF_DEV_CPU, .alloc = kvf_dev_cpu_alloc, .free = kvf_dev_cpu_free, .alloc_host = kvf_dev_cpu_alloc, \
    .free_host = kvf_dev_cpu_free, .upload = kvf_dev_cpu_copy, .download = kvf_dev_cpu_copy,                    \
    .host_register = kvf_dev_cpu_register, .host_unregister = kvf_dev_cpu_unregister,                           \
    .stream_create = kvf_dev_cpu_stream_create, .stream_destroy = kvf_dev_cpu_stream_destroy,                   \
    .stream_sync = kvf_dev_cpu_stream_sync

/* Bytes of one element; 0 for an unknown type. */
static inline size_t kvf_cpu_element(enum kvf_dtype dtype)
{
    return dtype == KVF_F32 ? 4 : dtype == KVF_F16 || dtype == KVF_BF16 ? 2 : 0;
}

/* Whether the arguments keep the bounds of dev.h; every operation of every CPU table asks before it writes anything. */
bool kvf_check_copies(const struct kvf_copy *copies, size_t n);
bool kvf_check_copy_checksum(const void *to, const void *from, size_t bytes, size_t chunk_bytes, const uint64_t *out);
bool kvf_check_convert(const void *to, enum kvf_dtype to_type, const void *from, enum kvf_dtype from_type, size_t n);
bool kvf_check_summarise(enum kvf_summary_kind kind, const void *k, enum kvf_dtype dtype, uint32_t tokens, uint32_t dim_k,
                         const float *summary);
bool kvf_check_score(enum kvf_summary_kind kind, const float *summaries, uint32_t n_chunks, uint32_t dim_k, const float *q,
                     size_t q_stride, uint32_t group, const float *scores);
bool kvf_check_topk(const float *scores, uint32_t n, uint32_t k, const uint32_t *indices, const uint32_t *count);
bool kvf_check_attend(const struct kvf_attend *args);
bool kvf_check_merge(const struct kvf_merge *args);
bool kvf_check_cold(const struct kvf_cold *shape, const void *block, const void *codes, const void *scales);

/* cold_reference.c: encode and decode of the reference. */
enum kvf_status kvf_cold_reference_encode(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cold *shape,
                                          const void *block, void *codes, void *scales);
enum kvf_status kvf_cold_reference_decode(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cold *shape,
                                          uint64_t mask, const void *codes, const void *scales, void *block);

bool kvf_check_cache_step(const struct kvf_cache_step *steps, size_t n);
bool kvf_check_cache_forget(const struct kvf_cache_forget *parts, size_t n);

/* The cache step by search and sort: the ground truth of `cache_step` (cache_reference.c), and forgetting, which has one way. */
enum kvf_status kvf_cache_reference_step(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cache_step *steps,
                                         size_t n);
enum kvf_status kvf_cache_reference_forget(const struct kvf_dev *dev, struct kvf_stream *stream,
                                           const struct kvf_cache_forget *parts, size_t n);
/* The fast one as the compiler makes it without wide instructions (cache_plain.c). */
enum kvf_status kvf_cache_plain_step(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cache_step *steps,
                                     size_t n);

/* The checksums as the compiler makes them without wide instructions (checksum_plain.c). */
enum kvf_status kvf_checksum_plain(const struct kvf_dev *dev, struct kvf_stream *stream, const void *data, size_t bytes,
                                   uint64_t seed, uint64_t *out);
enum kvf_status kvf_checksum_plain_copy(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from,
                                        bool foreign, size_t bytes, size_t chunk_bytes, uint64_t seed, uint64_t *out);

/* A number that orders like the value, below which nothing is but the key 0 of an empty slot. No value is NaN. */
static inline uint32_t kvf_cache_key(float value)
{
    union {
        float value;
        uint32_t bits;
    } x = {value + 0.0f}; /* one zero */
    return x.bits & 0x80000000 ? ~x.bits : x.bits | 0x80000000;
}

/* XXH3-64 written out from its specification, byte by byte: the ground truth of `checksum`. */
uint64_t kvf_xxh3_hash(const void *data, size_t bytes, uint64_t seed);
#endif
