/* Vectors of 8 floats for ops_simd.h. The other width is simd_avx512.h; both define the same names. */
#include <immintrin.h>
#include <stdint.h>

typedef __m256 vec;
enum { WIDTH = 8 };
/* Vectors of one strip of the inner loops: ROWS x STRIP accumulators fit the registers; STRIP_FEW for up to ROWS_FEW
 * rows; what is left of a multiple of 16 goes in strips of STRIP_LEAST. */
enum { ROWS = 6, STRIP = 2, ROWS_FEW = 3, STRIP_FEW = 4, STRIP_LEAST = 2 };

#define OWN static inline __attribute__((always_inline))

OWN vec v_set(float x) { return _mm256_set1_ps(x); }
OWN vec v_load(const float *p) { return _mm256_loadu_ps(p); }
OWN void v_store(float *p, vec a) { _mm256_storeu_ps(p, a); }
OWN void v_stream(float *p, vec a) { _mm256_stream_ps(p, a); } /* p aligned to the vector */
OWN vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
OWN vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
OWN vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
OWN vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
/* As `a < b ? a : b`: b where one is NaN and where both are zeros. */
OWN vec v_min(vec a, vec b) { return _mm256_min_ps(a, b); }
OWN vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
OWN float v_first(vec a) { return _mm256_cvtss_f32(a); }

OWN float v_hmax(vec a)
{
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}

/* Lanes are added in pairs of distance 4, 2, 1. */
OWN float v_hsum(vec a)
{
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

/* Lanes from `count` on become `fill`. */
OWN vec v_cut(vec a, uint32_t count, float fill)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i keep = _mm256_cmpgt_epi32(_mm256_set1_epi32(count > WIDTH ? WIDTH : (int)count), lane);
    return _mm256_blendv_ps(v_set(fill), a, _mm256_castsi256_ps(keep));
}

OWN vec v_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
OWN vec v_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
OWN void v_store_f16(uint16_t *p, vec a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
OWN void v_store_bf16(uint16_t *p, vec a)
{
    __m256i bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i round = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    __m256i all = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(round), _mm256_castsi256_ps(quiet), nan));
    __m256i high = _mm256_srli_epi32(all, 16);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

/* 2^n * p where x is not below `least`, else 0. n is an integer above -127. */
OWN vec v_scale(vec p, vec n, vec x, float least)
{
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), _mm256_cmp_ps(x, v_set(least), _CMP_NLT_UQ));
}
OWN vec v_round(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* Numbers without sign as integers, whose order is theirs, NaN above infinity: the larger of |a| and what was largest so far. */
OWN vec v_absmax(vec most, vec a)
{
    __m256i bits = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most), bits));
}
OWN uint32_t v_absmax_of(vec most)
{
    __m256i bits = _mm256_castps_si256(most);
    __m128i a = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    a = _mm_max_epi32(a, _mm_shuffle_epi32(a, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
}
/* kvf_cold_scale of every lane. */
OWN vec v_cold_scale(vec most, uint32_t least, uint32_t round)
{
    __m256i bits = _mm256_add_epi32(_mm256_castps_si256(most), _mm256_set1_epi32((int)round));
    bits = _mm256_andnot_si256(_mm256_set1_epi32((int)round), bits);
    bits = _mm256_min_epi32(_mm256_max_epi32(bits, _mm256_set1_epi32((int)least)), _mm256_set1_epi32(0x7f800000));
    return _mm256_castsi256_ps(bits);
}
OWN vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
OWN vec v_load_i8(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))); }
OWN void v_store_i8(uint8_t *p, vec a)
{
    __m256i code = _mm256_cvtps_epi32(a);
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(half, half));
}
/* E4M3 is binary16 with a narrower exponent: moved into place it is 2^8 too small, denormals included. */
OWN vec v_load_e4m3(const uint8_t *p)
{
    __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)p));
    __m128i sign = _mm_and_si128(_mm_slli_epi16(wide, 8), _mm_set1_epi16((short)0x8000));
    __m128i rest = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(0x3f80));
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, rest)), v_set(256));
}
OWN void v_store_e4m3(uint8_t *p, vec a)
{
    __m256i bits = _mm256_castps_si256(a), rest = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(rest, 20), _mm256_set1_epi32(1));
    __m256i code = _mm256_srli_epi32(_mm256_add_epi32(rest, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff))), 20);
    code = _mm256_min_epi32(_mm256_sub_epi32(code, _mm256_set1_epi32(120 << 3)), _mm256_set1_epi32(0x7e));
    __m256i tiny = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(rest), v_set(512)));
    code = _mm256_blendv_epi8(code, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), rest));
    code = _mm256_or_si256(code, _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
    __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(half, half));
}

/* One bit per lane; false for NaN. */
OWN uint32_t v_ge(vec a, vec b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
OWN uint32_t v_gt(vec a, vec b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
OWN uint32_t v_nan(vec a) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }

/* Sums in double of 8 lanes. */
struct vec_sum {
    __m256d low, high;
};
OWN struct vec_sum v_sum_zero(void) { return (struct vec_sum){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
OWN struct vec_sum v_sum_add(struct vec_sum s, vec a)
{
    s.low = _mm256_add_pd(s.low, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
    s.high = _mm256_add_pd(s.high, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    return s;
}
OWN vec v_sum_mean(struct vec_sum s, double n)
{
    __m128 low = _mm256_cvtpd_ps(_mm256_div_pd(s.low, _mm256_set1_pd(n)));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), _mm256_cvtpd_ps(_mm256_div_pd(s.high, _mm256_set1_pd(n))), 1);
}

/* Transposes the square in a[WIDTH]: pairs, quads, then halves. */
OWN void v_transpose(vec a[8])
{
    vec b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) { /* a[i + j]: column j of either half, rows i .. i+3 */
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 4; j++) {
        b[j] = _mm256_permute2f128_ps(a[j], a[j + 4], 0x20);
        b[j + 4] = _mm256_permute2f128_ps(a[j], a[j + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = b[i];
}
