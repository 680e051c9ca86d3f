/* Vectors of 16 floats for ops_simd.h. The other width is simd_avx2.h; both define the same names. */
#include <immintrin.h>
#include <stdint.h>

typedef __m512 vec;
enum { WIDTH = 16 };
/* Vectors of one strip of the inner loops: ROWS x STRIP accumulators fit the registers; STRIP_FEW for up to ROWS_FEW
 * rows; what is left of a multiple of 16 goes in strips of STRIP_LEAST. */
enum { ROWS = 6, STRIP = 4, ROWS_FEW = 3, STRIP_FEW = 4, STRIP_LEAST = 1 };

#define OWN static inline __attribute__((always_inline))

OWN vec v_set(float x) { return _mm512_set1_ps(x); }
OWN vec v_load(const float *p) { return _mm512_loadu_ps(p); }
OWN void v_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
OWN void v_stream(float *p, vec a) { _mm512_stream_ps(p, a); } /* p aligned to the vector */
OWN vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
OWN vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
OWN vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
OWN vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
/* As `a < b ? a : b`: b where one is NaN and where both are zeros. */
OWN vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
OWN vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
OWN float v_hmax(vec a) { return _mm512_reduce_max_ps(a); }
OWN float v_first(vec a) { return _mm512_cvtss_f32(a); }

/* Lanes are added in pairs of distance 8, 4, 2, 1. */
OWN float v_hsum(vec a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

/* Lanes from `count` on become `fill`. */
OWN vec v_cut(vec a, uint32_t count, float fill)
{
    __mmask16 keep = count >= WIDTH ? 0xffff : (__mmask16)((1u << count) - 1);
    return _mm512_mask_mov_ps(v_set(fill), keep, a);
}

OWN vec v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
OWN vec v_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
OWN void v_store_f16(uint16_t *p, vec a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
OWN void v_store_bf16(uint16_t *p, vec a)
{
    __m512i bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i round = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __m512i all = _mm512_mask_mov_epi32(round, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(all, 16)));
}

/* 2^n * p where x is not below `least`, else 0. */
OWN vec v_scale(vec p, vec n, vec x, float least)
{
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, v_set(least), _CMP_NLT_UQ), p, n);
}
OWN vec v_round(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* Numbers without sign as integers, whose order is theirs, NaN above infinity: the larger of |a| and what was largest so far. */
OWN vec v_absmax(vec most, vec a)
{
    __m512i bits = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(most), bits));
}
OWN uint32_t v_absmax_of(vec most) { return (uint32_t)_mm512_reduce_max_epi32(_mm512_castps_si512(most)); }
/* kvf_cold_scale of every lane. */
OWN vec v_cold_scale(vec most, uint32_t least, uint32_t round)
{
    __m512i bits = _mm512_add_epi32(_mm512_castps_si512(most), _mm512_set1_epi32((int)round));
    bits = _mm512_andnot_si512(_mm512_set1_epi32((int)round), bits);
    bits = _mm512_min_epi32(_mm512_max_epi32(bits, _mm512_set1_epi32((int)least)), _mm512_set1_epi32(0x7f800000));
    return _mm512_castsi512_ps(bits);
}
OWN vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
OWN vec v_load_i8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
OWN void v_store_i8(uint8_t *p, vec a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a))); }
/* E4M3 is binary16 with a narrower exponent: moved into place it is 2^8 too small, denormals included. */
OWN vec v_load_e4m3(const uint8_t *p)
{
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    __m256i sign = _mm256_and_si256(_mm256_slli_epi16(wide, 8), _mm256_set1_epi16((short)0x8000));
    __m256i rest = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(0x3f80));
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, rest)), v_set(256));
}
OWN void v_store_e4m3(uint8_t *p, vec a)
{
    __m512i bits = _mm512_castps_si512(a), rest = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(rest, 20), _mm512_set1_epi32(1));
    __m512i code = _mm512_srli_epi32(_mm512_add_epi32(rest, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff))), 20);
    code = _mm512_min_epi32(_mm512_sub_epi32(code, _mm512_set1_epi32(120 << 3)), _mm512_set1_epi32(0x7e));
    __m512i tiny = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(rest), v_set(512)));
    code = _mm512_mask_mov_epi32(code, _mm512_cmplt_epi32_mask(rest, _mm512_set1_epi32(0x3c800000)), tiny);
    code = _mm512_or_si512(code, _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80)));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(code));
}

/* One bit per lane; false for NaN. */
OWN uint32_t v_ge(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
OWN uint32_t v_gt(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
OWN uint32_t v_nan(vec a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }

/* Sums in double of 16 lanes. */
struct vec_sum {
    __m512d low, high;
};
OWN struct vec_sum v_sum_zero(void) { return (struct vec_sum){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
OWN struct vec_sum v_sum_add(struct vec_sum s, vec a)
{
    s.low = _mm512_add_pd(s.low, _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
    s.high = _mm512_add_pd(s.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
    return s;
}
OWN vec v_sum_mean(struct vec_sum s, double n)
{
    __m256 low = _mm512_cvtpd_ps(_mm512_div_pd(s.low, _mm512_set1_pd(n)));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), _mm512_cvtpd_ps(_mm512_div_pd(s.high, _mm512_set1_pd(n))), 1);
}

/* Transposes the square in a[WIDTH]: pairs, quads, then 128-bit lanes. */
OWN void v_transpose(vec a[16])
{
    vec b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) { /* a[i + j]: column j of every 128-bit lane, rows i .. i+3 */
        a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 2])));
        a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 2])));
        a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b[i + 1]), _mm512_castps_pd(b[i + 3])));
        a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b[i + 1]), _mm512_castps_pd(b[i + 3])));
    }
#pragma GCC unroll 16
    for (int j = 0; j < 4; j++) {
        vec low = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88), high = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0x88);
        vec low_odd = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd), high_odd = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0xdd);
        b[j] = _mm512_shuffle_f32x4(low, high, 0x88);
        b[j + 8] = _mm512_shuffle_f32x4(low, high, 0xdd);
        b[j + 4] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
        b[j + 12] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        a[i] = b[i];
}
