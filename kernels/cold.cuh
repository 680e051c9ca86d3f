/* Cold blocks on a GPU (cold_cuda.cu), for the device table (dev_cuda.cu). The GPU is the current one; pointers are its memory. */
#ifndef KVF_KERNELS_COLD_CUH
#define KVF_KERNELS_COLD_CUH

#include <cuda_runtime.h>

#include "kernels/dev.h"

bool kvf_cold_cuda_valid(const kvf_cold *shape, const void *block, const void *codes, const void *scales);
cudaError_t kvf_cold_cuda_encode(cudaStream_t stream, const kvf_cold &shape, const void *block, void *codes, void *scales);
cudaError_t kvf_cold_cuda_decode(cudaStream_t stream, const kvf_cold &shape, uint64_t mask, const void *codes, const void *scales,
                                 void *block);
#endif
