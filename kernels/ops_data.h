/* gather, scatter, checksum, convert, summarise and topk over the vectors of ops_simd.h, and the table itself
 * (DEVICE_TABLE, DEVICE_NAME). XXH_VECTOR says for which instructions libxxhash's code is compiled here. */
#define XXH_INLINE_ALL
#include <xxhash.h>

/* Lists from here on (bytes) are written past the caches: they would not stay there, and a line that is written whole
 * need not be read first. */
enum { PAST_CACHE = 8 << 20 };

/* `next`: asked for meanwhile, as many bytes; it need not be there. */
static void copy_past_cache(char *to, const char *from, size_t bytes, const char *next)
{
    if (bytes < 1024) {
        if (bytes)
            memcpy(to, from, bytes);
        return;
    }
    size_t i = -(uintptr_t)to % 64;
    memcpy(to, from, i);
    for (; i + 64 <= bytes; i += 64) {
        _mm_prefetch(next + i, _MM_HINT_T0);
        for (int part = 0; part < 64; part += WIDTH * 4) /* bits: nothing computes with them */
            v_stream((float *)(void *)(to + i + part), v_load((const float *)(const void *)(from + i + part)));
    }
    memcpy(to + i, from + i, bytes - i);
}

/* The next source is asked for while this one is copied: scattered chunks defeat the CPU's own prefetch. */
static enum kvf_status copy_all(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_copy *copies, size_t n)
{
    if (!kvf_check_copies(copies, n))
        return KVF_ERR_INVALID;
    size_t total = 0;
    for (size_t i = 0; i < n; i++)
        total += copies[i].bytes;
    for (size_t i = 0; i < n; i++) {
        if (i + 1 < n) {
            const char *next = copies[i + 1].from;
            size_t ahead = copies[i + 1].bytes < 512 ? copies[i + 1].bytes : 512;
            for (size_t b = 0; b < ahead; b += 64)
                _mm_prefetch(next + b, _MM_HINT_T0);
        }
        if (total >= PAST_CACHE)
            copy_past_cache(copies[i].to, copies[i].from, copies[i].bytes, (const char *)copies[i].from + 512);
        else if (copies[i].bytes)
            memcpy(copies[i].to, copies[i].from, copies[i].bytes);
    }
    if (total >= PAST_CACHE)
        _mm_sfence(); /* such stores are ordered by nothing else */
    return KVF_OK;
}

static enum kvf_status checksum(const struct kvf_dev *dev, struct kvf_stream *stream, const void *data, size_t bytes, uint64_t seed,
                                uint64_t *out)
{
    if (!out || (bytes && !data))
        return KVF_ERR_INVALID;
    *out = XXH3_64bits_withSeed(data, bytes, seed);
    return KVF_OK;
}

/* Foreign memory goes in steps that the first cache holds twice: `from`, and a copy of it that nobody else writes. What is hashed
 * is what is written: both come from that copy. What comes next, which as a rule is what lies behind it, is fetched meanwhile. */
enum { STEP = 8 << 10 };

/* As memcpy; nothing behind it reads `from` in place of `to`. */
static void copy_own(char *to, const char *from, size_t bytes)
{
    memcpy(to, from, bytes);
    __asm__ volatile("" : : "r"(to) : "memory");
}

/* Fewer bytes than these will be read soon, and need no place for long. */
enum { CHECKED_PAST_CACHE = 32 << 10 };

/* Past the caches, memory that others may write. */
static uint64_t copy_foreign(char *to, const char *from, size_t bytes, uint64_t seed)
{
    _Alignas(64) char own[STEP];
    if (bytes <= STEP) {
        copy_own(own, from, bytes);
        copy_past_cache(to, own, bytes, from + bytes);
        return XXH3_64bits_withSeed(own, bytes, seed);
    }
    XXH3_state_t state;
    XXH3_INITSTATE(&state); /* reset asks what seed it had */
    XXH3_64bits_reset_withSeed(&state, seed);
    for (size_t at = 0; at < bytes; at += STEP) {
        size_t n = bytes - at < STEP ? bytes - at : STEP;
        copy_own(own, from + at, n);
        copy_past_cache(to + at, own, n, from + at + n);
        XXH3_64bits_update(&state, own, n);
    }
    return XXH3_64bits_digest(&state);
}

/* Writes past the caches are done long after the processor took them. Hashed in slices, the next slice's hash fills that time; with
 * whole chunks the queue of such writes is full before the hash begins. A slice is copied when the hash is two ahead of it: the
 * processor takes a load for one that must wait when it lies at the same place of a page as a write before it. */
enum { SLICE = 1 << 10 };

/* Past the caches, memory that nobody writes. */
static void copy_hashed(char *to, const char *from, size_t bytes, size_t chunk_bytes, uint64_t seed, uint64_t *out)
{
    XXH3_state_t state;
    size_t copied = 0;
    XXH3_INITSTATE(&state);
    for (size_t chunk = 0; chunk < bytes; chunk += chunk_bytes) {
        size_t end = bytes - chunk < chunk_bytes ? bytes : chunk + chunk_bytes;
        XXH3_64bits_reset_withSeed(&state, seed++);
        for (size_t at = chunk; at < end; at += SLICE) {
            size_t n = end - at < SLICE ? end - at : SLICE;
            XXH3_64bits_update(&state, from + at, n);
            if (at + n >= copied + 3 * SLICE) {
                copy_past_cache(to + copied, from + copied, SLICE, from + at + n);
                copied += SLICE;
            }
        }
        *out++ = XXH3_64bits_digest(&state);
    }
    copy_past_cache(to + copied, from + copied, bytes - copied, from + bytes);
}

static enum kvf_status copy_checksum(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from, bool foreign,
                                     size_t bytes, size_t chunk_bytes, uint64_t seed, uint64_t *out)
{
    if (!kvf_check_copy_checksum(to, from, bytes, chunk_bytes, out))
        return KVF_ERR_INVALID;
    bool past_cache = bytes >= CHECKED_PAST_CACHE;
    if (past_cache && !foreign)
        copy_hashed(to, from, bytes, chunk_bytes, seed, out);
    for (size_t at = 0; at < bytes && (!past_cache || foreign); at += chunk_bytes) {
        size_t n = bytes - at < chunk_bytes ? bytes - at : chunk_bytes;
        if (past_cache) {
            *out++ = copy_foreign((char *)to + at, (const char *)from + at, n, seed++);
            continue;
        }
        copy_own((char *)to + at, (const char *)from + at, n);
        *out++ = XXH3_64bits_withSeed((char *)to + at, n, seed++); /* nobody else writes `to` */
    }
    if (past_cache)
        _mm_sfence(); /* such stores are ordered by nothing else */
    return KVF_OK;
}

/* Whole vectors where they lie; the rest through a padded copy. */
OWN void convert_as(void *to, enum kvf_dtype to_type, const void *from, enum kvf_dtype from_type, size_t n)
{
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        store_as(to, i, load_as(from, i, from_type), to_type);
    if (i < n) {
        char in[WIDTH * 4] = {0}, out[WIDTH * 4];
        memcpy(in, (const char *)from + i * kvf_cpu_element(from_type), (n - i) * kvf_cpu_element(from_type));
        store_as(out, 0, load_as(in, 0, from_type), to_type);
        memcpy((char *)to + i * kvf_cpu_element(to_type), out, (n - i) * kvf_cpu_element(to_type));
    }
}

static enum kvf_status convert(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, enum kvf_dtype to_type,
                               const void *from, enum kvf_dtype from_type, size_t n)
{
    if (!kvf_check_convert(to, to_type, from, from_type, n))
        return KVF_ERR_INVALID;
    if (to_type == from_type && n)
        memmove(to, from, n * kvf_cpu_element(to_type));
    else if (from_type == KVF_F32 && to_type == KVF_F16)
        convert_as(to, KVF_F16, from, KVF_F32, n);
    else if (from_type == KVF_F32)
        convert_as(to, KVF_BF16, from, KVF_F32, n);
    else if (from_type == KVF_F16 && to_type == KVF_F32)
        convert_as(to, KVF_F32, from, KVF_F16, n);
    else if (from_type == KVF_F16)
        convert_as(to, KVF_BF16, from, KVF_F16, n);
    else if (to_type == KVF_F32)
        convert_as(to, KVF_F32, from, KVF_BF16, n);
    else
        convert_as(to, KVF_F16, from, KVF_BF16, n);
    return KVF_OK;
}

OWN void summarise_as(enum kvf_summary_kind kind, const void *k, enum kvf_dtype dtype, uint32_t tokens, uint32_t dim,
                      float *summary)
{
    for (uint32_t d = 0; d < dim; d += WIDTH) {
        vec low = load_as(k, d, dtype), high = low;
        struct vec_sum sum = v_sum_add(v_sum_zero(), low);
        for (uint32_t t = 1; t < tokens; t++) {
            vec x = load_as(k, (size_t)t * dim + d, dtype);
            if (kind == KVF_SUMMARY_MEAN) {
                sum = v_sum_add(sum, x);
            } else {
                low = v_min(x, low);
                high = v_max(x, high);
            }
        }
        v_store(summary + d, kind == KVF_SUMMARY_MEAN ? v_sum_mean(sum, tokens) : low);
        if (kind == KVF_SUMMARY_MINMAX)
            v_store(summary + dim + d, high);
    }
}

static enum kvf_status summarise(const struct kvf_dev *dev, struct kvf_stream *stream, enum kvf_summary_kind kind, const void *k,
                                 enum kvf_dtype dtype, uint32_t tokens, uint32_t dim_k, float *summary)
{
    if (!kvf_check_summarise(kind, k, dtype, tokens, dim_k, summary))
        return KVF_ERR_INVALID;
    if (kind == KVF_SUMMARY_MEAN && dtype == KVF_F16)
        summarise_as(KVF_SUMMARY_MEAN, k, KVF_F16, tokens, dim_k, summary);
    else if (kind == KVF_SUMMARY_MEAN && dtype == KVF_BF16)
        summarise_as(KVF_SUMMARY_MEAN, k, KVF_BF16, tokens, dim_k, summary);
    else if (kind == KVF_SUMMARY_MEAN)
        summarise_as(KVF_SUMMARY_MEAN, k, KVF_F32, tokens, dim_k, summary);
    else if (dtype == KVF_F16)
        summarise_as(KVF_SUMMARY_MINMAX, k, KVF_F16, tokens, dim_k, summary);
    else if (dtype == KVF_BF16)
        summarise_as(KVF_SUMMARY_MINMAX, k, KVF_BF16, tokens, dim_k, summary);
    else
        summarise_as(KVF_SUMMARY_MINMAX, k, KVF_F32, tokens, dim_k, summary);
    return KVF_OK;
}

/* The float whose rank among all floats is `key`; -inf is 0x007fffff, +inf 0xff800000, and no NaN lies between. */
static float float_of_key(uint32_t key)
{
    uint32_t bits = key & 0x80000000 ? key ^ 0x80000000 : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* How many scores reach x. NaN reaches nothing. */
static uint32_t count_reaching(const float *scores, uint32_t n, float x)
{
    uint32_t count = 0, i = 0;
    vec least = v_set(x);
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH) {
        uint64_t a = v_ge(v_load(scores + i), least), b = v_ge(v_load(scores + i + WIDTH), least);
        uint64_t c = v_ge(v_load(scores + i + 2 * WIDTH), least), d = v_ge(v_load(scores + i + 3 * WIDTH), least);
        count += (uint32_t)__builtin_popcountll(a | b << 16 | c << 32 | d << 48);
    }
    for (; i < n; i++)
        count += scores[i] >= x;
    return count;
}

/* The k-th largest score: bisection over the ranks of floats, 32 counts at most. -inf is reached by all, NaN too. */
static float kth_largest(const float *scores, uint32_t n, uint32_t k)
{
    uint32_t low = 0x007fffff, high = 0xff800001;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2, count = count_reaching(scores, n, float_of_key(middle));
        if (count >= k)
            low = middle;
        else
            high = middle;
        if (count == k)
            break;
    }
    return float_of_key(low);
}

static enum kvf_status topk(const struct kvf_dev *dev, struct kvf_stream *stream, const float *scores, uint32_t n, uint32_t k,
                            uint32_t *indices, uint32_t *count)
{
    if (!kvf_check_topk(scores, n, k, indices, count))
        return KVF_ERR_INVALID;
    k = k < n ? k : n;
    float least = k ? kth_largest(scores, n, k) : 0;
    uint32_t above = 0, found = 0;
    for (uint32_t i = 0; i < n && k; i++)
        above += scores[i] > least;
    uint32_t ties = k > above ? k - above : 0;
    for (uint32_t i = 0; i < n && found < k; i += WIDTH) {
        float last[WIDTH];
        const float *at = scores + i;
        if (n - i < WIDTH) { /* past the end: NaN is not above, and behind all others among the ties */
            for (uint32_t j = 0; j < WIDTH; j++)
                last[j] = j < n - i ? at[j] : NAN;
            at = last;
        }
        vec x = v_load(at);
        uint32_t more = v_gt(x, v_set(least)), same = v_ge(x, v_set(least)) & ~more;
        if (least == -INFINITY)
            same |= v_nan(x);
        for (uint32_t all = more | same; all && found < k; all &= all - 1) {
            uint32_t bit = all & -all;
            if (bit & same && !ties)
                continue;
            ties -= (bit & same) != 0;
            indices[found++] = i + (uint32_t)__builtin_ctz(bit);
        }
    }
    *count = found;
    return KVF_OK;
}

const struct kvf_dev DEVICE_TABLE = {.name = DEVICE_NAME, KVF_CPU_MEMORY, .gather = copy_all, .scatter = copy_all,
                                     .checksum = checksum, .copy_checksum = copy_checksum, .convert = convert,
                                     .summarise = summarise, .score = score, .topk = topk, .attend = attend, .merge = merge,
                                     .encode = encode, .decode = decode, .cache_step = cache_step,
                                     .cache_forget = kvf_cache_reference_forget};
