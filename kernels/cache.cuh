/* Inside this room: the cache step on a GPU (cache_cuda.cu), as dev_cuda.cu calls it. */
#ifndef KVF_KERNELS_CACHE_CUH
#define KVF_KERNELS_CACHE_CUH

#include <cuda_runtime.h>

#include "kernels/dev.h"

/* check.c: the bounds of dev.h. */
extern "C" bool kvf_check_cache_step(const kvf_cache_step *steps, size_t n);
extern "C" bool kvf_check_cache_forget(const kvf_cache_forget *parts, size_t n);

/* n steps, or partitions, that lie in device memory. selected_most: the most that one of them has selected. */
cudaError_t kvf_cache_cuda_step(cudaStream_t stream, const kvf_cache_step *steps, unsigned n, uint32_t selected_most);
cudaError_t kvf_cache_cuda_forget(cudaStream_t stream, const kvf_cache_forget *parts, unsigned n);
#endif
