/* The table "cpu avx2". A product and a sum are fused where the code says so and nowhere else. */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#define XXH_VECTOR XXH_AVX2
#define DEVICE_TABLE kvf_ops_avx2_dev
#define DEVICE_NAME "cpu avx2"
#include "kernels/simd_avx2.h"

#include "kernels/ops_simd.h"

#include "kernels/ops_attend.h"

#include "kernels/ops_cold.h"

#include "kernels/ops_cache.h"

#include "kernels/ops_data.h"
