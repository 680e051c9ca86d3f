/* The device table: arithmetic and movement of KV blocks on one device, in plain C. No CUDA type appears here.
 *
 * kvf_dev_cpu_reference() is the plain loop that everything is tested against, kvf_dev_cpu() the fastest version that
 * this CPU can run (AVX-512, AVX2 or plain, chosen once at run time), kvf_dev_cuda(n) a GPU or NULL. Memory arguments
 * are device memory of that device (ordinary memory for the CPU ones).
 *
 * Streams: operations are queued on a stream and done in order; a CPU stream is done when the call returns. stream NULL
 * is the default stream. All calls are thread-safe for different streams. Operations not yet written for a device are
 * NULL in its table (on CUDA: those after gather and scatter, but for encode, decode and the cache's); callers that may run
 * on CUDA test for that.
 *
 * LAYOUT. A chunk is [K: chunk_tokens x dim_k][V: chunk_tokens x dim_v] in the storage type, contiguous, chunk after
 * chunk in a block. Arithmetic is fp32 whatever the storage type.
 *
 * DETERMINISM. attend and merge give, for one query row, the same bits whatever n_queries is and wherever the chunks
 * lie: the order of additions depends only on the position of a token in its list. Different tables (reference, AVX2,
 * AVX-512) differ within the error bounds below.
 */
#ifndef KVF_KERNELS_DEV_H
#define KVF_KERNELS_DEV_H

#include "kernels/chunk_shadow.h"
#include <kvf/kvf.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvf_dev;
struct kvf_stream; /* opaque */

/* One element of gather and scatter. */
struct kvf_copy {
    const void *from;
    void *to;
    size_t bytes; /* 0 is allowed and copies nothing */
};

struct kvf_attend {
    const void *const *chunks; /* [n_chunks] address of every chunk, in order of position; 16-byte aligned */
    uint32_t n_chunks;         /* 0 gives lse -inf and out 0 */
    uint32_t chunk_tokens;     /* tokens of a chunk, so token t of the list lies in chunk t / chunk_tokens */
    uint32_t dim_k, dim_v;     /* multiples of 16, at most 512 */
    enum kvf_dtype dtype;
    const float *q;          /* row r at q + r * q_stride: dim_k floats */
    size_t q_stride;         /* floats */
    uint32_t n_queries;      /* rows */
    const uint32_t *visible; /* [n_queries] the row sees tokens 0 .. visible-1 of the list (causal mask); 0 sees none */
    float scale;             /* logits = scale * q.k */
    float *out;              /* row r at out + r * out_stride: dim_v floats, normalised */
    size_t out_stride;       /* floats */
    float *lse;              /* [n_queries] log of the sum of exp(logits); -inf when nothing is visible (out is 0) */
};

/* Partial results of one set of queries over `n_parts` disjoint token sets, merged in the order 0 .. n_parts-1
 * (sparse-attention literature: log-sum-exp merge). Parts with lse = -inf do not count. In place over part 0 is allowed. */
struct kvf_merge {
    const float *const *outs; /* [n_parts] each [n_queries] rows of dim_v at out_stride */
    const float *const *lses; /* [n_parts] each [n_queries] */
    uint32_t n_parts;
    uint32_t n_queries;
    uint32_t dim_v;
    size_t out_stride; /* floats, of the parts and of out */
    float *out;
    float *lse;
};

/* COLD BLOCKS. K and V of a block in 8 bits an element, to lie in tiers where bytes are dear. K has a scale per dimension over
 * the whole block, since K has dimensions that are large in every token (KIVI, 2402.02750, section 3); V has one per chunk.
 * Codes: a chunk is [K: chunk_tokens x dim_k][V: chunk_tokens x dim_v] bytes, chunk after chunk, so every chunk is decoded
 * alone. Scales: dim_k + n_chunks numbers in the block's storage type: of each dimension of K the largest magnitude in the
 * block, then of each chunk that of its V; at least 2^-14 (fp8: 2^-4) in f16 and 2^-100 in bf16 and f32, where it is rounded
 * up to 16 bits of significand.
 *
 * With A the scale and M = 127 (int8) or 448 (fp8): code = x * (M / A), rounded to nearest even: to an integer, or to the OCP
 * format E4M3, which saturates at 448. Back: code * (A / M), rounded to the storage type; in f32 held within [-A, A]. So an
 * element is off by at most A / 254 and the rounding (fp8: by 1/16 of itself, or A / 2^18 where that is more), and the
 * largest is exact (in f32 but for a rounding). Decoding and encoding again gives the same codes and scales: a block that goes
 * down twice loses once. A block with NaN or infinity has no such form: a scale that it touches is infinite, and the codes
 * mean nothing. */
enum kvf_cold_format { KVF_COLD_EXACT, KVF_COLD_INT8, KVF_COLD_FP8 };

struct kvf_cold {
    enum kvf_cold_format format; /* INT8 or FP8 */
    enum kvf_dtype dtype;        /* of the block */
    uint32_t n_chunks;           /* of the block, 1 to 64 */
    uint32_t chunk_tokens;       /* at least 1 */
    uint32_t dim_k, dim_v;       /* multiples of 16, at most 512 */
};

enum kvf_summary_kind { KVF_SUMMARY_MEAN, KVF_SUMMARY_MINMAX };

/* THE CHUNK CACHE. One partition is the cached chunks of one (session, layer, KV head): `slots` slots, each with the chunk that
 * it holds, the place of its bytes, and the policy's state. A place is memory + KVF_CACHE_UNIT * place, chunk_bytes long, and
 * belongs to one slot. Slots are in no order; a chunk is in at most one. */
#define KVF_CACHE_NONE UINT32_MAX       /* no chunk, no place */
#define KVF_CACHE_UNIT 128u             /* bytes; every chunk is a multiple of it */
#define KVF_CACHE_CHUNKS_MAX (1u << 18) /* of a session: 2^20 tokens in chunks of 4 */
#define KVF_CACHE_SELECTED_MAX 16384u   /* of one partition in one step */

struct kvf_cache_result {
    uint32_t hits;    /* selected chunks that were here */
    uint32_t filled;  /* selected chunks that the step itself copied into their place */
    uint32_t misses;  /* the rest of the selected: in the list `misses` */
    uint32_t evicted; /* chunks that left */
    uint32_t slots;   /* what is left of them: slots - released */
};

/* One step of one partition. Everything that pointers point to is memory that the device reads and writes (for a GPU: its own
 * or pinned); the struct itself is host memory and may be reused when the call returns. */
struct kvf_cache_step {
    /* the slots, changed */
    uint32_t *chunk;               /* [slots] KVF_CACHE_NONE: empty */
    uint32_t *place;               /* [slots] never NONE */
    struct kvf_chunk_state *state; /* [slots] */
    uint32_t *scratch;             /* [2 * slots] */
    uint32_t slots;
    uint32_t keep; /* so many are to be left; fewer than slots: the surplus is released */
    struct kvf_chunk_rule rule;
    struct kvf_chunk_now now; /* a slot whose value is below 0 goes first, but not without need */
    /* what attention wants in this step */
    const uint32_t *selected; /* [n_selected] rising, below n_chunks */
    uint32_t n_selected;      /* 0: only releases */
    uint32_t n_chunks;        /* every chunk of a slot is below it too */
    const float *scores;      /* [n_chunks] of this step, or NULL: then every score counts as 0 */
    /* where the bytes of misses can be had at once; NULL: nowhere */
    const void *const *blocks; /* [block of the chunk] chunk c is at blocks[c / block_chunks] + c % block_chunks * chunk_bytes,
                                  16-byte aligned;
                                  NULL: not in memory that the device reads */
    uint32_t block_chunks, chunk_bytes;
    uint8_t *memory;
    /* sampling, or NULL */
    struct kvf_shadow *shadow;
    struct kvf_shadow_clock clock;
    /* results */
    uint32_t *places; /* [n_selected] KVF_CACHE_NONE: has no place, attended where it lies */
    uint32_t *misses; /* [n_selected] room; rising indices into `selected` of chunks whose bytes are not at a place: where it
                         has one the caller brings them there, or takes the chunk back with `cache_forget` */
    struct kvf_cache_result *result;
};

/* Empties the slots of one partition that hold a chunk of [from, to). */
struct kvf_cache_forget {
    uint32_t *chunk;
    uint32_t slots, from, to;
};

enum kvf_dev_kind { KVF_DEV_CPU, KVF_DEV_CUDA };

/* Every function returns KVF_OK or: ERR_INVALID (a bound above is broken), ERR_NO_MEMORY, ERR_NO_DEVICE, ERR_IO (the
 * driver failed). */
struct kvf_dev {
    const char *name; /* "cpu avx512", "cpu avx2", "cpu plain", "cpu reference", "cuda 0: NVIDIA H200" */
    enum kvf_dev_kind kind;
    int index;          /* CUDA ordinal, 0 for a CPU */
    size_t memory_bytes; /* total, 0 where not known */

    /* Memory. alloc is 4096-aligned. free takes NULL. alloc_host is host memory that the device copies at full speed
     * (pinned); for a CPU the same as alloc. upload and download may be asynchronous: sync the stream. */
    enum kvf_status (*alloc)(const struct kvf_dev *dev, size_t bytes, void **out);
    void (*free)(const struct kvf_dev *dev, void *memory);
    enum kvf_status (*alloc_host)(const struct kvf_dev *dev, size_t bytes, void **out);
    void (*free_host)(const struct kvf_dev *dev, void *memory);
    /* Pins host memory that is there already, so that copies of it run as those of alloc_host; before it is unmapped it is
     * unpinned. For a CPU nothing. ERR_NO_MEMORY, ERR_IO: it stays as it was, and copies are slower. Any thread. */
    enum kvf_status (*host_register)(const struct kvf_dev *dev, void *memory, size_t bytes);
    void (*host_unregister)(const struct kvf_dev *dev, void *memory);
    enum kvf_status (*upload)(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from, size_t bytes);
    enum kvf_status (*download)(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from, size_t bytes);

    enum kvf_status (*stream_create)(const struct kvf_dev *dev, struct kvf_stream **out);
    void (*stream_destroy)(const struct kvf_dev *dev, struct kvf_stream *stream);
    enum kvf_status (*stream_sync)(const struct kvf_dev *dev, struct kvf_stream *stream);

    /* n independent copies, not overlapping. The list itself is host memory and may be reused when the call returns.
     * gather: scattered chunks to one place or many; scatter: the reverse. Bit-exact. On CUDA `from` may be pinned host
     * memory in gather and `to` in scatter. */
    enum kvf_status (*gather)(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_copy *copies, size_t n);
    enum kvf_status (*scatter)(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_copy *copies, size_t n);

    /* XXH3-64 with a seed (xxHash 0.8 specification). Bit-exact with XXH3_64bits_withSeed. *out is host memory. */
    enum kvf_status (*checksum)(const struct kvf_dev *dev, struct kvf_stream *stream, const void *data, size_t bytes, uint64_t seed,
                                uint64_t *out);

    /* Copies bytes (not overlapping), past the caches where they are 32 KiB or more, and in the same pass computes the checksum of
     * each chunk of chunk_bytes (the last may be shorter), of chunk c with seed + c. `foreign`: others may write `from` meanwhile,
     * as it is another process's memory, and the checksums are of the bytes written all the same. out[]: host memory, one for
     * each chunk. chunk_bytes at least 1. */
    enum kvf_status (*copy_checksum)(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from, bool foreign,
                                     size_t bytes, size_t chunk_bytes, uint64_t seed, uint64_t *out);

    /* n elements from one type to another, round to nearest even, NaN stays NaN. Bit-exact among devices. */
    enum kvf_status (*convert)(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, enum kvf_dtype to_type,
                               const void *from, enum kvf_dtype from_type, size_t n);

    /* Summary of `tokens` K rows of a chunk (row stride dim_k, storage type). MEAN: dim_k floats, the mean key
     * (ShadowKV's landmark); MINMAX: dim_k minima then dim_k maxima (Quest, 2406.10774 alg. 1).
     * Mean: relative error 1e-5 against double; min and max exact. */
    enum kvf_status (*summarise)(const struct kvf_dev *dev, struct kvf_stream *stream, enum kvf_summary_kind kind, const void *k,
                                 enum kvf_dtype dtype, uint32_t tokens, uint32_t dim_k, float *summary);

    /* Score of every chunk for a group of G query rows that share a KV head. summaries: [n_chunks] of the kind's floats.
     * MEAN: scores[c] = max over g of softmax over c of scale * q_g.mean_c (ShadowKV). MINMAX: max over g of
     * scale * sum_j max(q_j min_j, q_j max_j). Relative error 1e-4. */
    enum kvf_status (*score)(const struct kvf_dev *dev, struct kvf_stream *stream, enum kvf_summary_kind kind,
                             const float *summaries, uint32_t n_chunks, uint32_t dim_k, const float *q, size_t q_stride,
                             uint32_t group, float scale, float *scores);

    /* Indices of the k largest scores, in rising order of index; ties go to the lower index, NaN counts as -inf.
     * k >= n gives all. *count is min(k, n). Exact. */
    enum kvf_status (*topk)(const struct kvf_dev *dev, struct kvf_stream *stream, const float *scores, uint32_t n, uint32_t k,
                            uint32_t *indices, uint32_t *count);

    /* Attention over chunks, one partial result per query row. Relative L2 error of out 1e-4 against double. */
    enum kvf_status (*attend)(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_attend *args);
    enum kvf_status (*merge)(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_merge *args);

    /* A whole block to codes and scales, and chunks of `mask` (bits from n_chunks on are not looked at) back to their places in
     * the block; nothing else of it is touched. No memory may overlap. Bit-exact among devices, but for the codes of a block
     * that has no cold form. kvf_cold_has_form (cold.h) tells from the scales. */
    enum kvf_status (*encode)(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cold *shape, const void *block,
                              void *codes, void *scales);
    enum kvf_status (*decode)(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cold *shape, uint64_t mask,
                              const void *codes, const void *scales, void *block);

    /* The cache step of n partitions, independent of each other: hit test, victims, slot map and the copies of what can be
     * copied at once, in one pass without a word from the host.
     *
     * A selected chunk in a slot is a hit: `touch`, its place is the slot's. The others miss. E slots hold no selected chunk
     * (each that is not empty: `keep`, once); min(slots - keep, E) of them are surplus, and V = min(misses + surplus, E) are
     * victims: those of the lowest value, empty slots first, ties to the lower slot. In rising order of slot and chunk the
     * first V - surplus victims take the first misses (`enter`); the rest is released. Slots that stay move down into
     * released ones, rising to rising, so that they are [0, slots - surplus) and the places of released ones lie in
     * place[] behind. No selected chunk is ever evicted; misses beyond the victims have no place. Last, the shadow samples
     * the step. Exact: every device gives the same slots, places and lists. */
    enum kvf_status (*cache_step)(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cache_step *steps,
                                  size_t n);
    enum kvf_status (*cache_forget)(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cache_forget *parts,
                                    size_t n);
};

/* Never NULL. */
const struct kvf_dev *kvf_dev_cpu_reference(void);
/* The best of this machine; KVF_CPU=plain|avx2|avx512 in the environment asks for a lesser one. Never NULL. */
const struct kvf_dev *kvf_dev_cpu(void);
/* The n-th GPU, or NULL: no CUDA in this build, no driver, no such GPU. *why (may be NULL) says which. */
const struct kvf_dev *kvf_dev_cuda(int index, const char **why);
/* Every CPU version that this machine can run, reference first, ended by NULL: for tests and benches. */
const struct kvf_dev *const *kvf_dev_cpu_all(void);

#ifdef __cplusplus
}
#endif
#endif
