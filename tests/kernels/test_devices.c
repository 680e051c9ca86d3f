/* Every operation of every CPU table against a loop of its own in double precision, or bit for bit against the
 * reference where dev.h promises bits. */
#include "fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#define EACH_TABLE(dev) \
    for (const struct kvf_dev *const *table = kvf_dev_cpu_all(), *dev; (dev = *table) != NULL; table++)

static const enum kvf_dtype dtypes[] = {KVF_F32, KVF_F16, KVF_BF16};
enum { N_DTYPES = 3 };

static void tables_are_complete_and_named(void **state)
{
    assert_string_equal(kvf_dev_cpu_all()[0]->name, "cpu reference");
    assert_ptr_equal(kvf_dev_cpu_all()[0], kvf_dev_cpu_reference());
    EACH_TABLE(dev) {
        assert_int_equal(dev->kind, KVF_DEV_CPU);
        assert_true(dev->alloc && dev->free && dev->alloc_host && dev->free_host && dev->upload && dev->download);
        assert_true(dev->stream_create && dev->stream_destroy && dev->stream_sync && dev->gather && dev->scatter);
        assert_true(dev->checksum && dev->convert && dev->summarise && dev->score && dev->topk && dev->attend && dev->merge);
        assert_true(dev->cache_step && dev->cache_forget);
    }
}

/* The choice is made once per process, so each wish gets a process. */
static void environment_asks_for_a_lesser_table(void **state)
{
    const char *wishes[] = {"plain", "avx2", "avx512", "nonsense"};
    size_t last = 0;
    while (kvf_dev_cpu_all()[last + 1])
        last++;
    for (size_t w = 0; w < 4; w++) {
        const struct kvf_dev *expect = kvf_dev_cpu_all()[w + 1 < last ? w + 1 : last];
        pid_t child = fork();
        assert_true(child >= 0);
        if (!child) {
            setenv("KVF_CPU", wishes[w], 1);
            _exit(kvf_dev_cpu() == expect && kvf_dev_cpu() == expect ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
}

static void memory_is_aligned_and_copied(void **state)
{
    EACH_TABLE(dev) {
        void *a = NULL, *b = NULL;
        struct kvf_stream *stream = NULL;
        assert_int_equal(dev->alloc(dev, 0, &a), KVF_OK);
        assert_non_null(a);
        dev->free(dev, a);
        dev->free(dev, NULL);
        assert_int_equal(dev->alloc(dev, SIZE_MAX, &a), KVF_ERR_NO_MEMORY);
        assert_int_equal(dev->alloc(dev, 10000, &a), KVF_OK);
        assert_int_equal(dev->alloc_host(dev, 10000, &b), KVF_OK);
        assert_true((uintptr_t)a % 4096 == 0 && (uintptr_t)b % 4096 == 0);
        assert_int_equal(dev->stream_create(dev, &stream), KVF_OK);
        memset(b, 7, 10000);
        assert_int_equal(dev->upload(dev, stream, a, b, 10000), KVF_OK);
        memset(b, 0, 10000);
        assert_int_equal(dev->download(dev, stream, b, a, 9999), KVF_OK);
        assert_int_equal(dev->stream_sync(dev, stream), KVF_OK);
        assert_true(((char *)b)[9998] == 7 && ((char *)b)[9999] == 0);
        assert_int_equal(dev->upload(dev, stream, NULL, NULL, 0), KVF_OK);
        assert_int_equal(dev->upload(dev, stream, NULL, b, 1), KVF_ERR_INVALID);
        dev->stream_destroy(dev, stream);
        dev->free(dev, a);
        dev->free_host(dev, b);
        assert_int_equal(dev->host_register(dev, NULL, 4096), KVF_ERR_INVALID);
        assert_int_equal(dev->host_register(dev, &b, sizeof b), KVF_OK);
        dev->host_unregister(dev, &b);
    }
}

static void copies_are_exact_at_odd_sizes(void **state)
{
    enum { N = 40, ROOM = 5000 };
    uint8_t *from = malloc(N * ROOM), *to = malloc(N * ROOM), *back = malloc(N * ROOM);
    for (size_t i = 0; i < N * ROOM; i++)
        from[i] = (uint8_t)random_u64();
    EACH_TABLE(dev) {
        struct kvf_copy out[N], in[N];
        memset(to, 0xaa, N * ROOM);
        memset(back, 0xaa, N * ROOM);
        for (size_t i = 0; i < N; i++) {
            size_t bytes = i % 5 == 0 ? 0 : i % 5 == 1 ? 4096 : random_below(ROOM - 64), shift = random_below(32);
            out[i] = (struct kvf_copy){from + i * ROOM + shift, to + (N - 1 - i) * ROOM + random_below(32), bytes};
            in[i] = (struct kvf_copy){out[i].to, back + i * ROOM + shift, bytes};
        }
        out[0] = in[0] = (struct kvf_copy){NULL, NULL, 0};
        assert_int_equal(dev->gather(dev, NULL, out, N), KVF_OK);
        assert_int_equal(dev->scatter(dev, NULL, in, N), KVF_OK);
        for (size_t i = 1; i < N; i++) {
            uint8_t *end = (uint8_t *)out[i].to + out[i].bytes;
            assert_memory_equal(out[i].to, out[i].from, out[i].bytes);
            assert_memory_equal(in[i].to, out[i].from, out[i].bytes);
            assert_true(*end == 0xaa && ((uint8_t *)out[i].to)[-1] == 0xaa);
        }
        assert_int_equal(dev->gather(dev, NULL, NULL, 0), KVF_OK);
        assert_int_equal(dev->gather(dev, NULL, NULL, 1), KVF_ERR_INVALID);
        assert_int_equal(dev->scatter(dev, NULL, &(struct kvf_copy){from, NULL, 1}, 1), KVF_ERR_INVALID);
    }
    free(from);
    free(to);
    free(back);
}

/* Lists above some MiB may be written another way: odd places and sizes, nothing beside them touched. */
static void large_lists_are_copied_exactly(void **state)
{
    enum { N = 300, ROOM = 40000 };
    uint8_t *from = malloc(N * ROOM), *to = malloc(N * ROOM);
    for (size_t i = 0; i < N * ROOM; i++)
        from[i] = (uint8_t)random_u64();
    EACH_TABLE(dev) {
        struct kvf_copy list[N];
        memset(to, 0xaa, N * ROOM);
        for (size_t i = 0; i < N; i++) {
            size_t bytes = i % 10 ? 38000 - random_below(70) : random_below(1500);
            list[i] = (struct kvf_copy){from + i * ROOM + random_below(70), to + i * ROOM + 1 + random_below(70), bytes};
        }
        list[5].bytes = 0;
        assert_int_equal(dev->scatter(dev, NULL, list, N), KVF_OK);
        for (size_t i = 0; i < N; i++) {
            assert_memory_equal(list[i].to, list[i].from, list[i].bytes);
            assert_true(((uint8_t *)list[i].to)[list[i].bytes] == 0xaa && ((uint8_t *)list[i].to)[-1] == 0xaa);
        }
    }
    free(from);
    free(to);
}

static void checksums_equal_libxxhash(void **state)
{
    enum { ROOM = 300000 };
    uint8_t *data = malloc(ROOM + 64);
    for (size_t i = 0; i < ROOM + 64; i++)
        data[i] = (uint8_t)random_u64();
    const uint64_t seeds[] = {0, 1, 0xffffffffffffffffull, 0x123456789abcdef0ull};
    EACH_TABLE(dev) {
        for (size_t n = 0; n <= ROOM; n = n < 1300 ? n + 1 : n * 2 + random_below(100)) {
            uint64_t seed = seeds[random_below(4)], sum = 0;
            const uint8_t *at = data + random_below(64);
            assert_int_equal(dev->checksum(dev, NULL, at, n, seed, &sum), KVF_OK);
            assert_int_equal(sum, XXH3_64bits_withSeed(at, n, seed));
        }
        uint64_t sum = 0;
        assert_int_equal(dev->checksum(dev, NULL, NULL, 0, 5, &sum), KVF_OK);
        assert_int_equal(sum, XXH3_64bits_withSeed(data, 0, 5));
        assert_int_equal(dev->checksum(dev, NULL, NULL, 1, 5, &sum), KVF_ERR_INVALID);
        assert_int_equal(dev->checksum(dev, NULL, data, 1, 5, NULL), KVF_ERR_INVALID);
    }
    free(data);
}

static void a_copy_has_the_checksums_of_what_it_copied(void **state)
{
    enum { ROOM = 300000 };
    uint8_t *data = malloc(ROOM + 64), *to = malloc(ROOM + 192);
    uint64_t *sums = malloc((ROOM + 1) * sizeof *sums);
    for (size_t i = 0; i < ROOM + 64; i++)
        data[i] = (uint8_t)random_u64();
    EACH_TABLE(dev) {
        for (size_t n = 0; n <= ROOM; n = n < 300 ? n + 1 : n * 2 + random_below(100)) {
            uint64_t seed = random_u64();
            size_t chunk = n < 300 ? 1 + random_below(300) : 1 + random_below(40000), count = (n + chunk - 1) / chunk;
            const uint8_t *at = data + random_below(64);
            uint8_t *there = to + 64 + random_below(64);
            for (unsigned foreign = 0; foreign < 2; foreign++) {
                memset(to, 0xaa, ROOM + 192);
                sums[count] = 4711;
                assert_int_equal(dev->copy_checksum(dev, NULL, there, at, foreign, n, chunk, seed, sums), KVF_OK);
                for (size_t c = 0; c < count; c++) {
                    size_t bytes = n - c * chunk < chunk ? n - c * chunk : chunk;
                    assert_int_equal(sums[c], XXH3_64bits_withSeed(at + c * chunk, bytes, seed + c));
                }
                assert_memory_equal(there, at, n);
                assert_true(there[-1] == 0xaa && there[n] == 0xaa && sums[count] == 4711);
            }
        }
        assert_int_equal(dev->copy_checksum(dev, NULL, NULL, data, true, 1, 1, 5, sums), KVF_ERR_INVALID);
        assert_int_equal(dev->copy_checksum(dev, NULL, to, NULL, false, 1, 1, 5, sums), KVF_ERR_INVALID);
        assert_int_equal(dev->copy_checksum(dev, NULL, to, data, true, 1, 1, 5, NULL), KVF_ERR_INVALID);
        assert_int_equal(dev->copy_checksum(dev, NULL, to, data, false, 1, 0, 5, sums), KVF_ERR_INVALID);
    }
    free(data);
    free(to);
    free(sums);
}

struct flips {
    uint8_t *to;
    const uint8_t *patterns[2];
    size_t bytes;
    atomic_bool stop;
};

static void *flip(void *arg)
{
    struct flips *f = arg;
    for (unsigned i = 0; !atomic_load(&f->stop); i++)
        memcpy(f->to, f->patterns[i % 2], f->bytes);
    return NULL;
}

/* Another process's memory, which it writes meanwhile, as a lender does when it gives a slot to somebody else. */
static void a_copy_of_changing_memory_has_the_checksums_of_what_it_copied(void **state)
{
    enum { BYTES = 96 << 10 };
    uint8_t *a = malloc(BYTES), *b = malloc(BYTES), *to = malloc(BYTES);
    uint64_t sums[BYTES / 1024];
    int file = memfd_create("changing", 0);
    assert_true(file >= 0 && ftruncate(file, BYTES) == 0);
    uint8_t *theirs = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    const uint8_t *from = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, file, 0);
    assert_true(theirs != MAP_FAILED && from != MAP_FAILED);
    memset(a, 0x11, BYTES);
    memset(b, 0xee, BYTES);
    static struct flips flips; /* a failure leaves the thread behind */
    flips = (struct flips){.to = theirs, .patterns = {a, b}, .bytes = BYTES};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, flip, &flips), 0);
    /* each way through copy_checksum: through the caches, a chunk in one step, and in several */
    const size_t ways[][2] = {{16 << 10, 16 << 10}, {BYTES, 4096}, {BYTES, BYTES / 2}};
    EACH_TABLE(dev) {
        bool slow = dev == kvf_dev_cpu_reference() || strstr(dev->name, "plain");
        for (unsigned i = 0; i < (slow ? 60u : 6000u); i++) {
            size_t bytes = ways[i % 3][0], chunk = ways[i % 3][1];
            assert_int_equal(dev->copy_checksum(dev, NULL, to, from, true, bytes, chunk, 3, sums), KVF_OK);
            for (size_t c = 0; c < bytes / chunk; c++)
                assert_int_equal(sums[c], XXH3_64bits_withSeed(to + c * chunk, chunk, 3 + c));
        }
    }
    atomic_store(&flips.stop, true);
    pthread_join(thread, NULL);
    munmap(theirs, BYTES);
    munmap((void *)(uintptr_t)from, BYTES);
    close(file);
    free(a);
    free(b);
    free(to);
}

static uint16_t narrow(const struct kvf_dev *dev, enum kvf_dtype dtype, float x)
{
    uint16_t h = 0;
    assert_int_equal(dev->convert(dev, NULL, &h, dtype, &x, KVF_F32, 1), KVF_OK);
    return h;
}

/* Each finite 16-bit number, the middle to its upper neighbour, and what lies just beside that middle. */
static void conversion_rounds_to_nearest_even(void **state)
{
    EACH_TABLE(dev) {
        for (int t = 1; t < N_DTYPES; t++) {
            uint16_t last = dtypes[t] == KVF_F16 ? 0x7bff : 0x7f7f;
            for (uint32_t h = 0; h < last; h++) {
                float low = (float)half_as_double((uint16_t)h, dtypes[t]);
                double high = half_as_double((uint16_t)(h + 1), dtypes[t]);
                float middle = (float)((low + high) / 2), wide = 0;
                assert_int_equal(narrow(dev, dtypes[t], low), h);
                assert_int_equal(narrow(dev, dtypes[t], -middle), 0x8000 | (h + (h & 1)));
                assert_int_equal(narrow(dev, dtypes[t], nextafterf(middle, -INFINITY)), h);
                assert_int_equal(narrow(dev, dtypes[t], nextafterf(middle, INFINITY)), h + 1);
                assert_int_equal(dev->convert(dev, NULL, &wide, KVF_F32, &(uint16_t){(uint16_t)h}, dtypes[t], 1), KVF_OK);
                assert_true(wide == low);
            }
            assert_int_equal(narrow(dev, dtypes[t], INFINITY), last + 1);
            assert_true(isnan(half_as_double(narrow(dev, dtypes[t], NAN), dtypes[t])));
        }
        assert_int_equal(narrow(dev, KVF_F16, 65519.99f), 0x7bff);
        assert_int_equal(narrow(dev, KVF_F16, 65520.0f), 0x7c00);
        assert_int_equal(narrow(dev, KVF_BF16, -3.4028235e38f), 0xff80);
    }
}

static void conversions_agree_bit_for_bit(void **state)
{
    enum { N = 65536 + 7 };
    const struct kvf_dev *reference = kvf_dev_cpu_reference();
    uint32_t *from = malloc(N * 4), *expect = malloc(N * 4), *got = malloc(N * 4);
    EACH_TABLE(dev) {
        for (int pair = 0; pair < N_DTYPES * N_DTYPES; pair++) {
            enum kvf_dtype a = dtypes[pair / N_DTYPES], b = dtypes[pair % N_DTYPES];
            for (size_t i = 0; i < N; i++)
                if (a == KVF_F32) /* all bits; half of them with an exponent that 16 bits can hold */
                    from[i] = (uint32_t)random_u64() & (i % 2 ? 0xffffffff : 0xbfffffff);
                else
                    ((uint16_t *)from)[i] = (uint16_t)i;
            for (size_t n = 0; n <= N; n = n < 40 ? n + 1 : n < 1000 ? N - 3 : n + 1) {
                memset(expect, 0x55, N * 4);
                memset(got, 0x55, N * 4);
                assert_int_equal(reference->convert(reference, NULL, expect, b, from, a, n), KVF_OK);
                assert_int_equal(dev->convert(dev, NULL, got, b, from, a, n), KVF_OK);
                assert_memory_equal(expect, got, N * 4);
            }
        }
        assert_int_equal(dev->convert(dev, NULL, NULL, KVF_F32, NULL, KVF_F16, 0), KVF_OK);
        assert_int_equal(dev->convert(dev, NULL, NULL, KVF_F32, from, KVF_F16, 1), KVF_ERR_INVALID);
        assert_int_equal(dev->convert(dev, NULL, got, (enum kvf_dtype)7, from, KVF_F16, 1), KVF_ERR_INVALID);
    }
    free(from);
    free(expect);
    free(got);
}

static void summaries_match_double(void **state)
{
    const uint32_t dims[] = {16, 48, 64, 128, 512}, tokens[] = {1, 2, 7, 16, 64};
    char k[64 * 512 * 4] __attribute__((aligned(16)));
    float got[1024];
    EACH_TABLE(dev) {
        for (int i = 0; i < N_DTYPES * 5 * 5; i++) {
            enum kvf_dtype dtype = dtypes[i % N_DTYPES];
            uint32_t dim = dims[i / N_DTYPES % 5], n = tokens[i / N_DTYPES / 5];
            for (size_t e = 0; e < (size_t)n * dim; e++)
                element_set(k, dtype, e, 10 * random_float());
            assert_int_equal(dev->summarise(dev, NULL, KVF_SUMMARY_MEAN, k, dtype, n, dim, got), KVF_OK);
            for (uint32_t d = 0; d < dim; d++) {
                double sum = 0;
                for (uint32_t t = 0; t < n; t++)
                    sum += element_at(k, dtype, (size_t)t * dim + d);
                assert_true(fabs(got[d] - sum / n) <= 1e-5 * fabs(sum / n));
            }
            assert_int_equal(dev->summarise(dev, NULL, KVF_SUMMARY_MINMAX, k, dtype, n, dim, got), KVF_OK);
            for (uint32_t d = 0; d < dim; d++) {
                double low = element_at(k, dtype, d), high = low;
                for (uint32_t t = 0; t < n; t++) {
                    low = fmin(low, element_at(k, dtype, (size_t)t * dim + d));
                    high = fmax(high, element_at(k, dtype, (size_t)t * dim + d));
                }
                assert_true(got[d] == low && got[dim + d] == high);
            }
        }
        assert_int_equal(dev->summarise(dev, NULL, KVF_SUMMARY_MEAN, k, KVF_F16, 0, 64, got), KVF_ERR_INVALID);
        assert_int_equal(dev->summarise(dev, NULL, KVF_SUMMARY_MEAN, k, KVF_F16, 1, 63, got), KVF_ERR_INVALID);
        assert_int_equal(dev->summarise(dev, NULL, KVF_SUMMARY_MEAN, k, KVF_F16, 1, 528, got), KVF_ERR_INVALID);
        assert_int_equal(dev->summarise(dev, NULL, KVF_SUMMARY_MEAN, NULL, KVF_F16, 1, 64, got), KVF_ERR_INVALID);
        assert_int_equal(dev->summarise(dev, NULL, (enum kvf_summary_kind)9, k, KVF_F16, 1, 64, got), KVF_ERR_INVALID);
    }
}

static void exact_scores(enum kvf_summary_kind kind, const float *s, uint32_t n, uint32_t dim, const float *q, size_t stride,
                         uint32_t group, float scale, double *scores)
{
    double *logit = calloc(n, sizeof *logit);
    for (uint32_t c = 0; c < n; c++)
        scores[c] = -(double)INFINITY;
    for (uint32_t g = 0; g < group; g++) {
        double max = -(double)INFINITY, sum = 0;
        for (uint32_t c = 0; c < n; c++) {
            logit[c] = 0;
            for (uint32_t d = 0; d < dim; d++) {
                double x = q[g * stride + d];
                const float *own = s + (size_t)c * dim * (kind == KVF_SUMMARY_MINMAX ? 2 : 1);
                logit[c] += kind == KVF_SUMMARY_MEAN ? x * own[d] : fmax(x * own[d], x * own[dim + d]);
            }
            logit[c] *= scale;
            max = fmax(max, logit[c]);
        }
        for (uint32_t c = 0; c < n; c++)
            sum += exp(logit[c] - max);
        for (uint32_t c = 0; c < n; c++)
            scores[c] = fmax(scores[c], kind == KVF_SUMMARY_MEAN ? exp(logit[c] - max) / sum : logit[c]);
    }
    free(logit);
}

static void scores_match_double(void **state)
{
    enum { MOST = 6100, DIM = 512 };
    const uint32_t counts[] = {1, 15, 16, 17, 64, 65, 300, MOST}, dims[] = {64, 16, 80, 512}, groups[] = {1, 3, 4, 6, 7, 13};
    float *s = malloc((size_t)MOST * 128 * 4), *q = malloc(13 * (DIM + 1) * 4), *got = malloc((MOST + 1) * 4);
    double *expect = malloc(MOST * sizeof *expect);
    EACH_TABLE(dev) {
        for (int i = 0; i < 8 * 2 * 3; i++) {
            uint32_t n = counts[i % 8], dim = n > 300 ? 64 : n > 64 ? dims[i % 3] : dims[i % 4], group = groups[i % 6];
            enum kvf_summary_kind kind = i / 8 % 2 ? KVF_SUMMARY_MINMAX : KVF_SUMMARY_MEAN;
            for (size_t e = 0; e < (size_t)n * dim * 2 && e < (size_t)MOST * 128; e++)
                s[e] = random_float();
            for (uint32_t c = 0; c < n && kind == KVF_SUMMARY_MINMAX; c++)
                for (uint32_t d = 0; d < dim; d++)
                    s[(c * 2 + 1) * dim + d] = s[c * 2 * dim + d] + fabsf(random_float());
            for (size_t e = 0; e < 13 * (DIM + 1); e++)
                q[e] = 2 * random_float();
            got[n] = 77;
            exact_scores(kind, s, n, dim, q, DIM + 1, group, 0.3f, expect);
            assert_int_equal(dev->score(dev, NULL, kind, s, n, dim, q, DIM + 1, group, 0.3f, got), KVF_OK);
            for (uint32_t c = 0; c < n; c++)
                assert_true(fabs(got[c] - expect[c]) <= 1e-4 * fabs(expect[c]) + (kind == KVF_SUMMARY_MEAN ? 1e-37 : 1e-5));
            assert_true(got[n] == 77);
        }
        assert_int_equal(dev->score(dev, NULL, KVF_SUMMARY_MEAN, s, 0, 64, q, 64, 1, 1, NULL), KVF_OK);
        assert_int_equal(dev->score(dev, NULL, KVF_SUMMARY_MEAN, s, 1, 64, q, 64, 0, 1, got), KVF_ERR_INVALID);
        assert_int_equal(dev->score(dev, NULL, KVF_SUMMARY_MEAN, s, 1, 64, q, 63, 2, 1, got), KVF_ERR_INVALID);
        assert_int_equal(dev->score(dev, NULL, KVF_SUMMARY_MEAN, s, 1, 65, q, 65, 1, 1, got), KVF_ERR_INVALID);
        assert_int_equal(dev->score(dev, NULL, KVF_SUMMARY_MEAN, NULL, 1, 64, q, 64, 1, 1, got), KVF_ERR_INVALID);
    }
    free(s);
    free(q);
    free(got);
    free(expect);
}

static const float *sorted_scores;

static double rank_value(uint32_t i)
{
    return isnan(sorted_scores[i]) ? -(double)INFINITY : sorted_scores[i];
}

static int by_score(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (rank_value(i) != rank_value(j))
        return rank_value(i) > rank_value(j) ? -1 : 1;
    return i < j ? -1 : 1;
}

static int by_index(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    return (i > j) - (i < j);
}

static float odd_score(int kind)
{
    const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, -1e-45f, 3.4e38f, 1};
    return kind == 0 ? random_float() : kind == 1 ? (float)(int)random_below(5) - 2 : odd[random_below(kind == 2 ? 10 : 4)];
}

static void topk_is_exact_with_ties_and_nan(void **state)
{
    enum { MOST = 3000 };
    float *scores = malloc(MOST * 4);
    uint32_t *order = malloc(MOST * 4), *got = malloc((MOST + 1) * 4), count;
    EACH_TABLE(dev) {
        for (int i = 0; i < 400; i++) {
            uint32_t n = i < 100 ? (uint32_t)i : random_below(i % 20 ? 400 : MOST);
            uint32_t k = i % 7 == 0 ? n : i % 7 == 1 ? n + 5 : random_below(n + 1), expect = k < n ? k : n;
            for (uint32_t e = 0; e < n; e++) {
                scores[e] = odd_score(i % 4);
                order[e] = e;
            }
            sorted_scores = scores;
            qsort(order, n, sizeof *order, by_score);
            qsort(order, expect, sizeof *order, by_index);
            got[expect] = 0xabcdef;
            assert_int_equal(dev->topk(dev, NULL, scores, n, k, got, &count), KVF_OK);
            assert_int_equal(count, expect);
            assert_memory_equal(got, order, expect * sizeof *got);
            assert_int_equal(got[expect], 0xabcdef);
        }
        assert_int_equal(dev->topk(dev, NULL, NULL, 0, 3, NULL, &count), KVF_OK);
        assert_int_equal(count, 0);
        assert_int_equal(dev->topk(dev, NULL, NULL, 2, 3, got, &count), KVF_ERR_INVALID);
        assert_int_equal(dev->topk(dev, NULL, scores, 2, 1, NULL, &count), KVF_ERR_INVALID);
        assert_int_equal(dev->topk(dev, NULL, scores, 2, 1, got, NULL), KVF_ERR_INVALID);
    }
    free(scores);
    free(order);
    free(got);
}

struct shape {
    uint32_t n_chunks, chunk_tokens, dim_k, dim_v, n_queries;
};

static void check_attend(const struct kvf_dev *dev, struct fixture *f)
{
    double expect[512], lse;
    const struct kvf_attend *a = &f->args;
    for (size_t i = 0; i < (size_t)a->n_queries * a->out_stride; i++)
        f->out[i] = 12345;
    assert_int_equal(dev->attend(dev, NULL, a), KVF_OK);
    for (uint32_t r = 0; r < a->n_queries; r++) {
        const float *out = f->out + r * a->out_stride;
        fixture_exact(f, r, expect, &lse);
        assert_true(relative_l2(out, expect, a->dim_v) <= 1e-4);
        assert_true(lse == f->lse[r] || fabs(lse - f->lse[r]) <= 1e-4 * (1 + fabs(lse)));
        assert_true(out[a->dim_v] == 12345); /* the stride's gap is not ours */
    }
}

static void attend_matches_double(void **state)
{
    const struct shape shapes[] = {
        {1, 16, 64, 64, 1},   {4, 16, 64, 64, 3},   {8, 16, 128, 128, 3}, {5, 8, 128, 128, 4}, {3, 4, 16, 48, 5},
        {2, 64, 80, 96, 7},   {4, 16, 64, 64, 384}, {6, 16, 128, 64, 40}, {1, 16, 512, 512, 2}, {17, 8, 192, 128, 13},
        {70, 16, 64, 64, 3}, {40, 64, 32, 16, 1},  {9, 16, 64, 64, 0},   {0, 16, 64, 64, 6},
    };
    EACH_TABLE(dev) {
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes * N_DTYPES; s++) {
            const struct shape *h = shapes + s / N_DTYPES;
            struct fixture f;
            fixture_init(&f, dtypes[s % N_DTYPES], h->n_chunks, h->chunk_tokens, h->dim_k, h->dim_v, h->n_queries);
            check_attend(dev, &f);
            for (uint32_t r = 0; r < h->n_queries; r++) /* causal, some rows that see nothing */
                f.visible[r] = r % 5 == 4 ? 0 : random_below(fixture_tokens(&f) + 1);
            check_attend(dev, &f);
            fixture_fini(&f);
        }
    }
}

/* A running softmax must survive logits that would overflow, rise and fall. */
static void attend_keeps_extreme_logits(void **state)
{
    EACH_TABLE(dev) {
        struct fixture f;
        fixture_init(&f, KVF_F32, 20, 16, 16, 16, 4);
        for (uint32_t t = 0; t < fixture_tokens(&f); t++) {
            size_t at;
            void *k = fixture_place(&f, t, false, &at);
            element_set(k, KVF_F32, at, (float)(t % 97) * 5 - 240);
        }
        for (uint32_t r = 0; r < 4; r++)
            f.q[r * f.args.q_stride] = r % 2 ? -3.0f : 3.0f;
        f.args.scale = 1;
        check_attend(dev, &f);
        fixture_fini(&f);
    }
}

static void attend_refuses_broken_bounds(void **state)
{
    EACH_TABLE(dev) {
        struct fixture f;
        fixture_init(&f, KVF_F16, 2, 16, 64, 64, 2);
        const struct kvf_attend good = f.args;
        struct kvf_attend bad[14];
        for (size_t i = 0; i < 14; i++)
            bad[i] = good;
        bad[0].chunks = NULL;
        bad[1].chunk_tokens = 0;
        bad[2].dim_k = 24;
        bad[3].dim_v = 0;
        bad[4].dim_k = 528;
        bad[5].dtype = (enum kvf_dtype)3;
        bad[6].q = NULL;
        bad[7].q_stride = 63;
        bad[8].visible = NULL;
        bad[9].out = NULL;
        bad[10].out_stride = 16;
        bad[11].lse = NULL;
        bad[12].chunks = (const void *[]){f.chunks[0], NULL};
        bad[13].chunks = (const void *[]){f.chunks[0], (const char *)f.chunks[1] + 8};
        for (size_t i = 0; i < 14; i++)
            assert_int_equal(dev->attend(dev, NULL, bad + i), KVF_ERR_INVALID);
        assert_int_equal(dev->attend(dev, NULL, NULL), KVF_ERR_INVALID);
        f.visible[1] = 33;
        assert_int_equal(dev->attend(dev, NULL, &good), KVF_ERR_INVALID);
        f.visible[1] = 32;
        assert_int_equal(dev->attend(dev, NULL, &good), KVF_OK);
        fixture_fini(&f);
    }
}

enum { PARTS_MAX = 40 };

static void merge_matches_double(void **state)
{
    const uint32_t parts[] = {0, 1, 2, 3, 8, 17, PARTS_MAX}, dims[] = {64, 128, 16, 21};
    EACH_TABLE(dev) {
        for (int i = 0; i < 28; i++) {
            uint32_t n = parts[i % 7], dim = dims[i / 7], rows = 5;
            size_t stride = dim + 3;
            float *memory = malloc((PARTS_MAX + 1) * rows * (stride + 1) * 4), *out = memory, *lse = memory + rows * stride;
            const float *outs[PARTS_MAX], *lses[PARTS_MAX];
            for (size_t e = 0; e < (PARTS_MAX + 1) * rows * (stride + 1); e++)
                memory[e] = random_float();
            for (uint32_t p = 0; p < n; p++) {
                float *part = memory + (p + 1) * rows * (stride + 1);
                outs[p] = part;
                lses[p] = part + rows * stride;
                for (uint32_t r = 0; r < rows; r++) {
                    part[rows * stride + r] = r == 4 || (p + r) % 4 == 1 ? -INFINITY : 30 * random_float();
                    if (part[rows * stride + r] == -INFINITY)
                        part[r * stride] = NAN; /* what does not count is not read either */
                }
            }
            assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){outs, lses, n, rows, dim, stride, out, lse}), KVF_OK);
            for (uint32_t r = 0; r < rows; r++) {
                double expect[128] = {0}, sum = 0;
                for (uint32_t p = 0; p < n; p++)
                    for (uint32_t d = 0; d <= dim && lses[p][r] != -INFINITY; d++)
                        *(d < dim ? expect + d : &sum) += exp(lses[p][r]) * (d < dim ? outs[p][r * stride + d] : 1);
                for (uint32_t d = 0; d < dim; d++)
                    expect[d] = sum > 0 ? expect[d] / sum : 0;
                assert_true(relative_l2(out + r * stride, expect, dim) <= 1e-5);
                assert_true(sum > 0 ? fabs(lse[r] - log(sum)) <= 1e-5 * (1 + fabs(log(sum))) : lse[r] == -INFINITY);
            }
            free(memory);
        }
        float x = 1;
        const float *one[] = {&x}, *none[] = {NULL};
        assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){one, none, 1, 1, 1, 1, &x, &x}), KVF_ERR_INVALID);
        assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){one, one, 1, 2, 2, 1, &x, &x}), KVF_ERR_INVALID);
        assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){one, one, 1, 1, 0, 1, &x, &x}), KVF_ERR_INVALID);
        assert_int_equal(dev->merge(dev, NULL, NULL), KVF_ERR_INVALID);
    }
}

/* Attention over pieces of the list, merged in place into the first, is attention over the list. */
static void merged_pieces_equal_the_whole(void **state)
{
    EACH_TABLE(dev) {
        struct fixture f;
        fixture_init(&f, KVF_BF16, 24, 16, 64, 64, 3);
        float out[3 * 64], lse[3], next[3 * 64], next_lse[3];
        double expect[64], exact;
        for (uint32_t c = 0; c < 24; c += 8) {
            uint32_t all[] = {128, 128, 128};
            struct kvf_attend piece = f.args;
            piece.chunks += c;
            piece.n_chunks = 8;
            piece.visible = all;
            piece.out = c ? next : out;
            piece.lse = c ? next_lse : lse;
            piece.out_stride = 64;
            assert_int_equal(dev->attend(dev, NULL, &piece), KVF_OK);
            const float *outs[] = {out, next}, *lses[] = {lse, next_lse};
            if (c)
                assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){outs, lses, 2, 3, 64, 64, out, lse}), KVF_OK);
        }
        for (uint32_t r = 0; r < 3; r++) {
            fixture_exact(&f, r, expect, &exact);
            assert_true(relative_l2(out + r * 64, expect, 64) <= 1e-4);
            assert_true(fabs(lse[r] - exact) <= 1e-4 * (1 + fabs(exact)));
        }
        fixture_fini(&f);
    }
}

/* Chunks go to the GPU in scattered pieces, from pinned memory and on the GPU, and come back: bit for bit. */
static void cuda_copies_are_exact(void **state)
{
    const char *why = "";
    const struct kvf_dev *dev = kvf_dev_cuda(0, &why);
    if (!dev) {
        print_message("skipped: %s\n", why);
        skip();
    }
    print_message("on %s\n", dev->name);
    enum { N = 9000, ROOM = 4200, BYTES = N * ROOM };
    void *host, *on_gpu, *moved;
    struct kvf_stream *stream;
    struct kvf_copy *in = calloc(N, sizeof *in), *out = calloc(N, sizeof *out);
    assert_int_equal(dev->alloc_host(dev, 2 * BYTES, &host), KVF_OK);
    assert_int_equal(dev->alloc(dev, BYTES, &on_gpu), KVF_OK);
    assert_int_equal(dev->alloc(dev, BYTES, &moved), KVF_OK);
    assert_true((uintptr_t)on_gpu % 4096 == 0 && (uintptr_t)moved % 4096 == 0);
    assert_int_equal(dev->stream_create(dev, &stream), KVF_OK);
    uint8_t *from = host, *back = from + BYTES;
    for (int pass = 0; pass < 4; pass++) { /* streams: our own, the default; shifts: none, any */
        struct kvf_stream *s = pass % 2 ? stream : NULL;
        for (size_t i = 0; i < BYTES; i++)
            from[i] = (uint8_t)random_u64();
        memset(back, 0xaa, BYTES);
        for (size_t i = 0; i < N; i++) { /* pinned -> a GPU buffer, in reverse; that -> the other; that -> pinned */
            size_t bytes = i == 7 ? 0 : pass < 2 ? 4096 : random_below(4100), shift = pass < 2 ? 0 : random_below(60);
            in[i] = (struct kvf_copy){from + i * ROOM + shift, (char *)on_gpu + (N - 1 - i) * ROOM + shift, bytes};
            out[i] = (struct kvf_copy){(char *)moved + i * ROOM + shift / 2, back + i * ROOM + shift, bytes};
        }
        assert_int_equal(dev->gather(dev, s, in, N), KVF_OK);
        for (size_t i = 0; i < N; i++)
            in[i] = (struct kvf_copy){in[i].to, (void *)(uintptr_t)out[i].from, in[i].bytes};
        assert_int_equal(dev->gather(dev, s, in, N), KVF_OK);
        assert_int_equal(dev->scatter(dev, s, out, N), KVF_OK);
        assert_int_equal(dev->stream_sync(dev, s), KVF_OK);
        for (size_t i = 0; i < N; i++) {
            size_t at = (size_t)((uint8_t *)out[i].to - back);
            assert_memory_equal(out[i].to, from + at, out[i].bytes);
            assert_true(back[at + out[i].bytes] == 0xaa);
        }
    }
    assert_int_equal(dev->upload(dev, stream, on_gpu, from, BYTES), KVF_OK);
    assert_int_equal(dev->download(dev, stream, back, on_gpu, BYTES), KVF_OK);
    assert_int_equal(dev->stream_sync(dev, stream), KVF_OK);
    assert_memory_equal(from, back, BYTES);
    assert_int_equal(dev->gather(dev, NULL, NULL, 0), KVF_OK);
    assert_int_equal(dev->gather(dev, NULL, NULL, 1), KVF_ERR_INVALID);
    assert_int_equal(dev->alloc(dev, SIZE_MAX, &moved), KVF_ERR_NO_MEMORY);
    /* Memory that was there before and is pinned now is gathered from likewise. */
    uint8_t *plain = aligned_alloc(4096, 1 << 20);
    memset(plain, 0x5c, 1 << 20);
    assert_int_equal(dev->host_register(dev, plain, 1 << 20), KVF_OK);
    struct kvf_copy one = {plain + 4096, on_gpu, 65536}, two = {on_gpu, back, 65536};
    assert_int_equal(dev->gather(dev, stream, &one, 1), KVF_OK);
    assert_int_equal(dev->scatter(dev, stream, &two, 1), KVF_OK);
    assert_int_equal(dev->stream_sync(dev, stream), KVF_OK);
    assert_memory_equal(back, plain, 65536);
    dev->host_unregister(dev, plain);
    free(plain);
    dev->stream_destroy(dev, stream);
    dev->free(dev, on_gpu);
    dev->free(dev, moved);
    dev->free_host(dev, host);
    free(in);
    free(out);
}

static void an_absent_gpu_is_explained(void **state)
{
    const char *why = NULL;
    assert_null(kvf_dev_cuda(-1, &why));
    assert_true(why && *why);
    assert_null(kvf_dev_cuda(1000000, NULL));
}

int main(void)
{
    print_message("seed %llu\n", (unsigned long long)SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_complete_and_named),
        cmocka_unit_test(environment_asks_for_a_lesser_table),
        cmocka_unit_test(memory_is_aligned_and_copied),
        cmocka_unit_test(copies_are_exact_at_odd_sizes),
        cmocka_unit_test(large_lists_are_copied_exactly),
        cmocka_unit_test(checksums_equal_libxxhash),
        cmocka_unit_test(a_copy_has_the_checksums_of_what_it_copied),
        cmocka_unit_test(a_copy_of_changing_memory_has_the_checksums_of_what_it_copied),
        cmocka_unit_test(conversion_rounds_to_nearest_even),
        cmocka_unit_test(conversions_agree_bit_for_bit),
        cmocka_unit_test(summaries_match_double),
        cmocka_unit_test(scores_match_double),
        cmocka_unit_test(topk_is_exact_with_ties_and_nan),
        cmocka_unit_test(attend_matches_double),
        cmocka_unit_test(attend_keeps_extreme_logits),
        cmocka_unit_test(attend_refuses_broken_bounds),
        cmocka_unit_test(merge_matches_double),
        cmocka_unit_test(merged_pieces_equal_the_whole),
        cmocka_unit_test(an_absent_gpu_is_explained),
        cmocka_unit_test(cuda_copies_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
