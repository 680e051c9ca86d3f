/* encode and decode of cold blocks on a GPU (dev.h, COLD BLOCKS): the same roundings as on a CPU, step by step, so the same bits.
 * One launch finds the scales (a thread block per vector of dimensions of K, and one per chunk for V), one writes the codes. */
#include "kernels/cold.cuh"

#include <cuda_fp16.h>

#include "kernels/cold.h"

namespace {

enum { THREADS = 256, COLUMNS = 16, ROWS = THREADS / COLUMNS };

/* Elements of the three storage types, as floats. */
template <kvf_dtype TYPE> struct storage;
template <> struct storage<KVF_F32> {
    typedef float type;
    static __device__ float load(float x) { return x; }
    static __device__ float store(float x) { return x; }
};
template <> struct storage<KVF_F16> {
    typedef __half type;
    static __device__ float load(__half x) { return __half2float(x); }
    static __device__ __half store(float x) { return __float2half_rn(x); }
};
template <> struct storage<KVF_BF16> {
    typedef uint16_t type;
    static __device__ float load(uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); }
    static __device__ uint16_t store(float x) /* finite: what has no cold form is not stored from codes */
    {
        uint32_t bits = __float_as_uint(x);
        return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
};

__device__ uint8_t to_e4m3(float x)
{
    uint32_t all = __float_as_uint(x), bits = all & 0x7fffffff, sign = all >> 24 & 0x80;
    if (bits < 0x3c800000)
        return static_cast<uint8_t>(sign | __float2uint_rn(__fmul_rn(__uint_as_float(bits), 512.0f)));
    uint32_t code = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
    return static_cast<uint8_t>(sign | (code < 0x7e ? code : 0x7e));
}

__device__ float from_e4m3(uint8_t code)
{
    uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
    float x = exponent ? __uint_as_float((exponent + 120) << 23 | mantissa << 20) : mantissa * (1.0f / 512);
    return code & 0x80 ? -x : x;
}

template <kvf_cold_format FORMAT> __device__ float most()
{
    return FORMAT == KVF_COLD_INT8 ? KVF_COLD_INT8_MOST : KVF_COLD_FP8_MOST;
}

/* Thread block b finds the scales of 16 dimensions of K, or, behind those, of the V of one chunk. */
template <kvf_dtype TYPE>
__global__ void find_scales(kvf_cold s, const typename storage<TYPE>::type *block, typename storage<TYPE>::type *scales)
{
    __shared__ uint32_t largest[COLUMNS];
    uint32_t column = threadIdx.x % COLUMNS, row = threadIdx.x / COLUMNS, k_blocks = s.dim_k / COLUMNS;
    size_t chunk = kvf_cold_chunk_bytes(&s), k = static_cast<size_t>(s.chunk_tokens) * s.dim_k;
    uint32_t own = 0;
    if (threadIdx.x < COLUMNS)
        largest[threadIdx.x] = 0;
    __syncthreads();
    if (blockIdx.x < k_blocks) {
        for (uint32_t t = row; t < s.n_chunks * s.chunk_tokens; t += ROWS) {
            size_t at = t / s.chunk_tokens * chunk + static_cast<size_t>(t % s.chunk_tokens) * s.dim_k;
            at += blockIdx.x * COLUMNS + column;
            own = max(own, __float_as_uint(storage<TYPE>::load(block[at])) & 0x7fffffff);
        }
        atomicMax(&largest[column], own);
    } else {
        const typename storage<TYPE>::type *v = block + (blockIdx.x - k_blocks) * chunk;
        for (size_t i = k + threadIdx.x; i < chunk; i += THREADS)
            own = max(own, __float_as_uint(storage<TYPE>::load(v[i])) & 0x7fffffff);
        atomicMax(&largest[0], own);
    }
    __syncthreads();
    uint32_t n = blockIdx.x < k_blocks ? COLUMNS : 1;
    uint32_t at = blockIdx.x < k_blocks ? blockIdx.x * COLUMNS : s.dim_k + blockIdx.x - k_blocks;
    if (threadIdx.x >= n)
        return;
    float scale = __uint_as_float(kvf_cold_scale(largest[threadIdx.x], TYPE, s.format));
    scales[at + threadIdx.x] = storage<TYPE>::store(scale);
}

/* The scale of element i of the block. */
template <kvf_dtype TYPE> __device__ float scale_of(const kvf_cold &s, const typename storage<TYPE>::type *scales, size_t i)
{
    size_t chunk = kvf_cold_chunk_bytes(&s), in = i % chunk;
    size_t at = in < static_cast<size_t>(s.chunk_tokens) * s.dim_k ? in % s.dim_k : s.dim_k + i / chunk;
    return storage<TYPE>::load(scales[at]);
}

template <kvf_dtype TYPE, kvf_cold_format FORMAT>
__global__ void write_codes(kvf_cold s, const typename storage<TYPE>::type *block, uint8_t *codes,
                            const typename storage<TYPE>::type *scales)
{
    size_t elements = s.n_chunks * kvf_cold_chunk_bytes(&s), step = static_cast<size_t>(gridDim.x) * THREADS;
    for (size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x; i < elements; i += step) {
        float factor = __fdiv_rn(most<FORMAT>(), scale_of<TYPE>(s, scales, i));
        float y = __fmul_rn(storage<TYPE>::load(block[i]), factor);
        codes[i] = FORMAT == KVF_COLD_INT8 ? static_cast<uint8_t>(__float2int_rn(y)) : to_e4m3(y);
    }
}

template <kvf_dtype TYPE, kvf_cold_format FORMAT>
__global__ void read_codes(kvf_cold s, uint64_t mask, const uint8_t *codes, const typename storage<TYPE>::type *scales,
                           typename storage<TYPE>::type *block)
{
    size_t chunk = kvf_cold_chunk_bytes(&s), elements = s.n_chunks * chunk, step = static_cast<size_t>(gridDim.x) * THREADS;
    for (size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x; i < elements; i += step) {
        if (!(mask >> (i / chunk) & 1))
            continue;
        float scale = scale_of<TYPE>(s, scales, i);
        float code = FORMAT == KVF_COLD_INT8 ? static_cast<float>(static_cast<int8_t>(codes[i])) : from_e4m3(codes[i]);
        float x = __fmul_rn(code, __fdiv_rn(scale, most<FORMAT>()));
        if (TYPE == KVF_F32)
            x = fminf(fmaxf(x, -scale), scale);
        block[i] = storage<TYPE>::store(x);
    }
}

unsigned grid_of(const kvf_cold &s)
{
    size_t blocks = (s.n_chunks * kvf_cold_chunk_bytes(&s) + THREADS - 1) / THREADS;
    return static_cast<unsigned>(blocks < 1024 ? blocks : 1024);
}

template <kvf_dtype TYPE, kvf_cold_format FORMAT>
cudaError_t encode(cudaStream_t stream, const kvf_cold &s, const void *block, void *codes, void *scales)
{
    typedef typename storage<TYPE>::type element;
    const element *from = static_cast<const element *>(block);
    find_scales<TYPE><<<s.dim_k / COLUMNS + s.n_chunks, THREADS, 0, stream>>>(s, from, static_cast<element *>(scales));
    write_codes<TYPE, FORMAT><<<grid_of(s), THREADS, 0, stream>>>(s, from, static_cast<uint8_t *>(codes),
                                                                  static_cast<const element *>(scales));
    return cudaGetLastError();
}

template <kvf_dtype TYPE, kvf_cold_format FORMAT>
cudaError_t decode(cudaStream_t stream, const kvf_cold &s, uint64_t mask, const void *codes, const void *scales, void *block)
{
    typedef typename storage<TYPE>::type element;
    const element *own = static_cast<const element *>(scales);
    read_codes<TYPE, FORMAT><<<grid_of(s), THREADS, 0, stream>>>(s, mask, static_cast<const uint8_t *>(codes), own,
                                                                 static_cast<element *>(block));
    return cudaGetLastError();
}

bool dim_ok(uint32_t dim)
{
    return dim >= 16 && dim <= 512 && dim % 16 == 0;
}

} // namespace

bool kvf_cold_cuda_valid(const kvf_cold *s, const void *block, const void *codes, const void *scales)
{
    return s && (s->format == KVF_COLD_INT8 || s->format == KVF_COLD_FP8) &&
           (s->dtype == KVF_F32 || s->dtype == KVF_F16 || s->dtype == KVF_BF16) && s->n_chunks >= 1 && s->n_chunks <= 64 &&
           s->chunk_tokens && dim_ok(s->dim_k) && dim_ok(s->dim_v) && block && codes && scales;
}

cudaError_t kvf_cold_cuda_encode(cudaStream_t stream, const kvf_cold &s, const void *block, void *codes, void *scales)
{
    bool int8 = s.format == KVF_COLD_INT8;
    switch (s.dtype) {
    case KVF_F32:
        return int8 ? encode<KVF_F32, KVF_COLD_INT8>(stream, s, block, codes, scales)
                    : encode<KVF_F32, KVF_COLD_FP8>(stream, s, block, codes, scales);
    case KVF_F16:
        return int8 ? encode<KVF_F16, KVF_COLD_INT8>(stream, s, block, codes, scales)
                    : encode<KVF_F16, KVF_COLD_FP8>(stream, s, block, codes, scales);
    default:
        return int8 ? encode<KVF_BF16, KVF_COLD_INT8>(stream, s, block, codes, scales)
                    : encode<KVF_BF16, KVF_COLD_FP8>(stream, s, block, codes, scales);
    }
}

cudaError_t kvf_cold_cuda_decode(cudaStream_t stream, const kvf_cold &s, uint64_t mask, const void *codes, const void *scales,
                                 void *block)
{
    bool int8 = s.format == KVF_COLD_INT8;
    switch (s.dtype) {
    case KVF_F32:
        return int8 ? decode<KVF_F32, KVF_COLD_INT8>(stream, s, mask, codes, scales, block)
                    : decode<KVF_F32, KVF_COLD_FP8>(stream, s, mask, codes, scales, block);
    case KVF_F16:
        return int8 ? decode<KVF_F16, KVF_COLD_INT8>(stream, s, mask, codes, scales, block)
                    : decode<KVF_F16, KVF_COLD_FP8>(stream, s, mask, codes, scales, block);
    default:
        return int8 ? decode<KVF_BF16, KVF_COLD_INT8>(stream, s, mask, codes, scales, block)
                    : decode<KVF_BF16, KVF_COLD_FP8>(stream, s, mask, codes, scales, block);
    }
}
