/* Arithmetic of cold blocks (dev.h, COLD BLOCKS) that every device must do alike, and sizes. Also for CUDA. */
#ifndef KVF_KERNELS_COLD_H
#define KVF_KERNELS_COLD_H

#include "kernels/dev.h"

#define KVF_COLD_INT8_MOST 127.0f
#define KVF_COLD_FP8_MOST 448.0f

#ifdef __CUDACC__ /* the same text for nvcc, which must know that it runs on both sides */
#define KVF_COLD_BOTH __host__ __device__ static inline
#else
#define KVF_COLD_BOTH static inline
#endif

/* A scale is never below this (bits of a float): what is smaller need not be told apart from 0. It keeps M / A finite and,
 * in f16, the steps of the codes above the steps of the type's denormals, without which encoding twice could differ. */
KVF_COLD_BOTH uint32_t kvf_cold_least(enum kvf_dtype dtype, enum kvf_cold_format format)
{
    return dtype != KVF_F16 ? 0x0d800000u : format == KVF_COLD_INT8 ? 0x38800000u : 0x3d800000u;
}

/* The scale of elements whose largest magnitude has these bits, NaN counting as larger than infinity. */
KVF_COLD_BOTH uint32_t kvf_cold_scale(uint32_t bits, enum kvf_dtype dtype, enum kvf_cold_format format)
{
    uint32_t least = kvf_cold_least(dtype, format);
    if (dtype == KVF_F32)
        bits = (bits + 0xff) & ~0xffu;
    return bits > 0x7f800000 ? 0x7f800000 : bits < least ? least : bits;
}

KVF_COLD_BOTH size_t kvf_cold_element_bytes(enum kvf_dtype dtype)
{
    return dtype == KVF_F32 ? 4 : 2;
}

/* Bytes of one chunk's codes. */
KVF_COLD_BOTH size_t kvf_cold_chunk_bytes(const struct kvf_cold *shape)
{
    return (size_t)shape->chunk_tokens * (shape->dim_k + shape->dim_v);
}

KVF_COLD_BOTH size_t kvf_cold_scale_bytes(const struct kvf_cold *shape)
{
    return (shape->dim_k + shape->n_chunks) * kvf_cold_element_bytes(shape->dtype);
}

/* Whether a block with these scales has a cold form: none of them is infinite. */
static inline bool kvf_cold_has_form(const struct kvf_cold *shape, const void *scales)
{
    uint32_t most = 0, infinite = shape->dtype == KVF_F32 ? 0x7f800000 : shape->dtype == KVF_F16 ? 0x7c00 : 0x7f80;
    for (uint32_t i = 0; i < shape->dim_k + shape->n_chunks; i++) {
        uint32_t bits = shape->dtype == KVF_F32 ? ((const uint32_t *)scales)[i] : ((const uint16_t *)scales)[i];
        most = bits > most ? bits : most;
    }
    return most < infinite;
}
#endif
