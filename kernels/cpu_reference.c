/* The reference: plain loops, one thing after another, that the fast tables and the GPU are tested against. It is also, but for the
 * checksums and the cache step, the table "cpu plain" of machines without AVX2. */
#include "kernels/cpu.h"

#include <math.h>
#include <string.h>

static uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Binary16 to binary32: exact; a NaN becomes quiet and keeps its payload, as the CPU's own instruction has it. */
static float from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31)
        return bits_float(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    if (exponent)
        return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 0x1p-24f;
    return sign ? -tiny : tiny;
}

/* Round to nearest even, in integers. */
static uint16_t to_f16(float x)
{
    uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff));
    if (rest >= 0x47800000)
        return (uint16_t)(sign | 0x7c00);
    if (rest < 0x33000000) /* below half of the least denormal, 2^-25 */
        return (uint16_t)sign;
    uint32_t drop = 13, mantissa = rest;
    if (rest < 0x38800000) { /* below 2^-14: denormal, the leading one becomes visible */
        drop = 126 - (rest >> 23);
        mantissa = (rest & 0x7fffff) | 0x800000;
    } else {
        mantissa = rest - (112u << 23);
    }
    uint32_t result = mantissa >> drop, rem = mantissa & ((1u << drop) - 1), half = 1u << (drop - 1);
    if (rem > half || (rem == half && (result & 1)))
        result++; /* may carry into the exponent, up to infinity: that is right */
    return (uint16_t)(sign | result);
}

static uint16_t to_bf16(float x)
{
    uint32_t bits = float_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Element i as a float. */
static float element(const void *data, enum kvf_dtype dtype, size_t i)
{
    if (dtype == KVF_F16)
        return from_f16(((const uint16_t *)data)[i]);
    return dtype == KVF_BF16 ? bits_float((uint32_t)((const uint16_t *)data)[i] << 16) : ((const float *)data)[i];
}

static enum kvf_status copy_all(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_copy *copies, size_t n)
{
    if (!kvf_check_copies(copies, n))
        return KVF_ERR_INVALID;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *from = copies[i].from;
        uint8_t *to = copies[i].to;
        for (size_t b = 0; b < copies[i].bytes; b++)
            to[b] = from[b];
    }
    return KVF_OK;
}

static enum kvf_status checksum(const struct kvf_dev *dev, struct kvf_stream *stream, const void *data, size_t bytes, uint64_t seed,
                                uint64_t *out)
{
    if (!out || (bytes && !data))
        return KVF_ERR_INVALID;
    *out = kvf_xxh3_hash(data, bytes, seed);
    return KVF_OK;
}

static enum kvf_status copy_checksum(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from, bool foreign,
                                     size_t bytes, size_t chunk_bytes, uint64_t seed, uint64_t *out)
{
    if (!kvf_check_copy_checksum(to, from, bytes, chunk_bytes, out))
        return KVF_ERR_INVALID;
    for (size_t b = 0; b < bytes; b++)
        ((uint8_t *)to)[b] = ((const uint8_t *)from)[b];
    for (size_t at = 0; at < bytes; at += chunk_bytes) { /* of what was written: `from` may have changed since */
        size_t n = bytes - at < chunk_bytes ? bytes - at : chunk_bytes;
        *out++ = kvf_xxh3_hash((const uint8_t *)to + at, n, seed++);
    }
    return KVF_OK;
}

static enum kvf_status convert(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, enum kvf_dtype to_type,
                               const void *from, enum kvf_dtype from_type, size_t n)
{
    if (!kvf_check_convert(to, to_type, from, from_type, n))
        return KVF_ERR_INVALID;
    if (to_type == from_type) {
        if (n)
            memmove(to, from, n * kvf_cpu_element(to_type));
        return KVF_OK;
    }
    for (size_t i = 0; i < n; i++) {
        float x = element(from, from_type, i);
        if (to_type == KVF_F32)
            ((float *)to)[i] = x;
        else
            ((uint16_t *)to)[i] = to_type == KVF_F16 ? to_f16(x) : to_bf16(x);
    }
    return KVF_OK;
}

static enum kvf_status summarise(const struct kvf_dev *dev, struct kvf_stream *stream, enum kvf_summary_kind kind, const void *k,
                                 enum kvf_dtype dtype, uint32_t tokens, uint32_t dim_k, float *summary)
{
    if (!kvf_check_summarise(kind, k, dtype, tokens, dim_k, summary))
        return KVF_ERR_INVALID;
    for (uint32_t d = 0; d < dim_k; d++) {
        float low = element(k, dtype, d), high = low;
        double sum = 0; /* the bound is relative to the mean, which may be small beside its terms */
        for (uint32_t t = 0; t < tokens; t++) {
            float x = element(k, dtype, (size_t)t * dim_k + d);
            sum += x;
            low = x < low ? x : low;
            high = x > high ? x : high;
        }
        if (kind == KVF_SUMMARY_MEAN) {
            summary[d] = (float)(sum / tokens);
        } else {
            summary[d] = low;
            summary[dim_k + d] = high;
        }
    }
    return KVF_OK;
}

static float dot(const float *a, const float *b, uint32_t n)
{
    float sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Quest's upper bound of q.k over a chunk. */
static float bound(const float *q, const float *low, const float *high, uint32_t n)
{
    float sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += fmaxf(q[i] * low[i], q[i] * high[i]);
    return sum;
}

static enum kvf_status score(const struct kvf_dev *dev, struct kvf_stream *stream, enum kvf_summary_kind kind,
                             const float *summaries, uint32_t n_chunks, uint32_t dim_k, const float *q, size_t q_stride,
                             uint32_t group, float scale, float *scores)
{
    if (!kvf_check_score(kind, summaries, n_chunks, dim_k, q, q_stride, group, scores))
        return KVF_ERR_INVALID;
    for (uint32_t g = 0; g < group; g++, q += q_stride) {
        float max = -INFINITY, sum = 0, log_sum = 0;
        if (kind == KVF_SUMMARY_MEAN) { /* the softmax's denominator first */
            for (uint32_t c = 0; c < n_chunks; c++)
                max = fmaxf(max, scale * dot(q, summaries + (size_t)c * dim_k, dim_k));
            for (uint32_t c = 0; c < n_chunks; c++)
                sum += expf(scale * dot(q, summaries + (size_t)c * dim_k, dim_k) - max);
            log_sum = max + logf(sum);
        }
        for (uint32_t c = 0; c < n_chunks; c++) {
            const float *low = summaries + (size_t)c * dim_k * 2;
            float s = kind == KVF_SUMMARY_MEAN ? expf(scale * dot(q, summaries + (size_t)c * dim_k, dim_k) - log_sum)
                                               : scale * bound(q, low, low + dim_k, dim_k);
            scores[c] = g && scores[c] > s ? scores[c] : s;
        }
    }
    return KVF_OK;
}

/* An unsigned number that orders like the score: NaN is -inf, the two zeros are one. */
static uint32_t order_key(float x)
{
    uint32_t bits = float_bits(x != x ? -INFINITY : x + 0.0f);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

static uint32_t count_above(const float *scores, uint32_t n, uint64_t key)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        count += order_key(scores[i]) >= key;
    return count;
}

static enum kvf_status topk(const struct kvf_dev *dev, struct kvf_stream *stream, const float *scores, uint32_t n, uint32_t k,
                            uint32_t *indices, uint32_t *count)
{
    if (!kvf_check_topk(scores, n, k, indices, count))
        return KVF_ERR_INVALID;
    k = k < n ? k : n;
    /* The k-th largest key is the largest one that at least k scores reach: bit by bit from the top. */
    uint64_t key = 0;
    for (uint32_t bit = 0x80000000; bit && k; bit >>= 1)
        if (count_above(scores, n, key | bit) >= k)
            key |= bit;
    uint32_t ties = k ? k - count_above(scores, n, key + 1) : 0, found = 0;
    for (uint32_t i = 0; i < n && found < k; i++) {
        uint32_t own = order_key(scores[i]);
        if (own < key || (own == key && !ties))
            continue;
        ties -= own == key;
        indices[found++] = i;
    }
    *count = found;
    return KVF_OK;
}

/* One row: softmax with a running maximum, token after token. */
static void attend_row(const struct kvf_attend *a, uint32_t r)
{
    const float *q = a->q + r * a->q_stride;
    float *out = a->out + r * a->out_stride, max = -INFINITY, sum = 0;
    memset(out, 0, a->dim_v * sizeof *out);
    for (uint32_t t = 0; t < a->visible[r]; t++) {
        const void *chunk = a->chunks[t / a->chunk_tokens];
        size_t in_chunk = t % a->chunk_tokens;
        size_t k_at = in_chunk * a->dim_k, v_at = (size_t)a->chunk_tokens * a->dim_k + in_chunk * a->dim_v;
        float logit = 0;
        for (uint32_t d = 0; d < a->dim_k; d++)
            logit += q[d] * element(chunk, a->dtype, k_at + d);
        logit *= a->scale;
        if (logit > max) {
            float shrink = expf(max - logit);
            sum *= shrink;
            for (uint32_t d = 0; d < a->dim_v; d++)
                out[d] *= shrink;
            max = logit;
        }
        float weight = expf(logit - (max == -INFINITY ? 0 : max));
        sum += weight;
        for (uint32_t d = 0; d < a->dim_v; d++)
            out[d] += weight * element(chunk, a->dtype, v_at + d);
    }
    for (uint32_t d = 0; d < a->dim_v; d++)
        out[d] = sum == 0 ? 0 : out[d] / sum;
    a->lse[r] = sum == 0 ? -INFINITY : max + logf(sum);
}

static enum kvf_status attend(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_attend *args)
{
    if (!kvf_check_attend(args))
        return KVF_ERR_INVALID;
    for (uint32_t r = 0; r < args->n_queries; r++)
        attend_row(args, r);
    return KVF_OK;
}

static void merge_row(const struct kvf_merge *m, uint32_t r)
{
    float max = -INFINITY, sum = 0;
    for (uint32_t p = 0; p < m->n_parts; p++)
        max = m->lses[p][r] > max ? m->lses[p][r] : max;
    float *out = m->out + r * m->out_stride;
    for (uint32_t p = 0; p < m->n_parts; p++) { /* part 0 is read before out, which may be the same, is written */
        const float *part = m->outs[p] + r * m->out_stride;
        bool counts = m->lses[p][r] != -INFINITY;
        float weight = counts ? expf(m->lses[p][r] - max) : 0;
        sum += weight;
        for (uint32_t d = 0; d < m->dim_v; d++)
            out[d] = (p ? out[d] : 0) + (counts ? weight * part[d] : 0);
    }
    for (uint32_t d = 0; d < m->dim_v; d++)
        out[d] = sum == 0 ? 0 : out[d] / sum;
    m->lse[r] = sum == 0 ? -INFINITY : max + logf(sum);
}

static enum kvf_status merge(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_merge *args)
{
    if (!kvf_check_merge(args))
        return KVF_ERR_INVALID;
    for (uint32_t r = 0; r < args->n_queries; r++)
        merge_row(args, r);
    return KVF_OK;
}

#define OPS                                                                                                            \
    KVF_CPU_MEMORY, .gather = copy_all, .scatter = copy_all,                                                           \
    .convert = convert, .summarise = summarise, .score = score, .topk = topk, .attend = attend, .merge = merge,      \
    .cache_forget = kvf_cache_reference_forget,                                                                        \
    .encode = kvf_cold_reference_encode, .decode = kvf_cold_reference_decode

const struct kvf_dev kvf_cpu_reference_dev = {.name = "cpu reference", .cache_step = kvf_cache_reference_step,
                                              .checksum = checksum, .copy_checksum = copy_checksum, OPS};
const struct kvf_dev kvf_cpu_plain_dev = {.name = "cpu plain", .cache_step = kvf_cache_plain_step,
                                          .checksum = kvf_checksum_plain, .copy_checksum = kvf_checksum_plain_copy, OPS};
