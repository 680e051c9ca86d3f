/* Cold blocks: codes of 8 bits and back. Bounds against the numbers themselves, bits against the reference. */
#include "fixture.h"

#include "kernels/cold.h"

#define EACH_TABLE(dev) \
    for (const struct kvf_dev *const *table = kvf_dev_cpu_all(), *dev; (dev = *table) != NULL; table++)

static const enum kvf_dtype dtypes[] = {KVF_F32, KVF_F16, KVF_BF16};
static const enum kvf_cold_format formats[] = {KVF_COLD_INT8, KVF_COLD_FP8};

enum { ELEMENTS_MAX = 8 * 16 * 640, GUARD = 64 };

/* One block with its codes, and room to come back to. */
struct cold {
    struct kvf_cold shape;
    size_t elements, scale_bytes;
    uint8_t block[ELEMENTS_MAX * 4 + GUARD], back[ELEMENTS_MAX * 4 + GUARD];
    uint8_t codes[ELEMENTS_MAX + GUARD], scales[(512 + 64) * 4 + GUARD];
};

static struct cold one, two; /* large */

/* What the numbers of a block look like. */
enum kind { PLAIN, OUTLIERS, TINY, HUGE_NUMBERS, ZEROS, KINDS };

static float number(enum kind kind, enum kvf_dtype dtype, size_t i)
{
    float x = random_float();
    switch (kind) {
    case OUTLIERS: /* some places are large wherever they come up, some nearly nothing */
        return i % 16 == 3 ? 60 + x : i % 16 == 9 ? x * 0x1p-12f : i % 97 == 0 ? 0 : x;
    case TINY: /* the denormals of f16; about the least scale elsewhere */
        return dtype == KVF_F16 ? x * 0x1p-15f : ldexpf(x, -98 - (int)random_below(20));
    case HUGE_NUMBERS:
        return dtype == KVF_F16 ? 60000 * x : ldexpf(x, 126);
    case ZEROS:
        return i % 2 ? -0.0f : 0;
    default:
        return 3 * x;
    }
}

static void cold_init(struct cold *c, struct kvf_cold shape, enum kind kind)
{
    memset(c, 0xee, sizeof *c);
    c->shape = shape;
    c->elements = kvf_cold_chunk_bytes(&shape) * shape.n_chunks;
    c->scale_bytes = kvf_cold_scale_bytes(&shape);
    assert_true(c->elements <= ELEMENTS_MAX);
    for (size_t i = 0; i < c->elements; i++) /* converted by the reference: element_set knows no denormals */
        assert_int_equal(kvf_dev_cpu_reference()->convert(kvf_dev_cpu_reference(), NULL, c->block + i * element_bytes(shape.dtype),
                                                          shape.dtype, &(float){number(kind, shape.dtype, i)}, KVF_F32, 1), KVF_OK);
}

/* The shapes that tests go through: small, of the demo, of a large model, with one chunk, with odd dimensions. */
static struct kvf_cold shape_of(unsigned i, enum kvf_dtype dtype, enum kvf_cold_format format)
{
    static const uint32_t shapes[][4] = {{1, 1, 16, 16}, {4, 16, 64, 64},  {8, 8, 128, 128},
                                         {3, 5, 48, 16}, {2, 7, 512, 128}, {64, 2, 16, 48}};
    const uint32_t *s = shapes[i % 6];
    return (struct kvf_cold){format, dtype, s[0], s[1], s[2], s[3]};
}

/* The scale of an element, by its place. */
static double scale_at(const struct cold *c, const void *scales, size_t i)
{
    const struct kvf_cold *s = &c->shape;
    size_t chunk = kvf_cold_chunk_bytes(s), in = i % chunk;
    size_t at = in < (size_t)s->chunk_tokens * s->dim_k ? in % s->dim_k : s->dim_k + i / chunk;
    return element_at(scales, s->dtype, at);
}

/* The OCP E4M3 number of a code, from the format's definition. */
static double e4m3(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    double x = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return code & 0x80 ? -x : x;
}

/* Each scale is the largest of its elements, each element as near as promised, and the largest exact. */
static void check_bounds(const struct cold *c)
{
    const struct kvf_cold *s = &c->shape;
    double least = s->dtype != KVF_F16 ? 0x1p-100 : s->format == KVF_COLD_INT8 ? 0x1p-14 : 0x1p-4;
    double rounding = s->dtype == KVF_F32 ? 0x1p-22 : s->dtype == KVF_F16 ? 0x1p-11 : 0x1p-8;
    double found[512 + 64] = {0};
    for (size_t i = 0; i < c->elements; i++) {
        double x = element_at(c->block, s->dtype, i), y = element_at(c->back, s->dtype, i), a = scale_at(c, c->scales, i);
        double code = c->codes[i], m = s->format == KVF_COLD_INT8 ? 127 : 448;
        double step = s->format == KVF_COLD_INT8 ? a / 254 : fmax(fabs(x) / 16, a * 0x1p-18);
        size_t chunk = kvf_cold_chunk_bytes(s), in = i % chunk;
        size_t group = in < (size_t)s->chunk_tokens * s->dim_k ? in % s->dim_k : s->dim_k + i / chunk;
        found[group] = fmax(found[group], fabs(x));
        assert_true(fabs(x) <= a && fabs(y) <= a);
        assert_true(fabs(y - x) <= step * (1 + 1e-5) + fabs(x) * rounding + (s->dtype == KVF_F16 ? 0x1p-25 : 0));
        code = s->format == KVF_COLD_INT8 ? (double)(int8_t)c->codes[i] : e4m3(c->codes[i]);
        assert_true(fabs(y - code * a / m) <= fabs(y) * rounding + (s->dtype == KVF_F16 ? 0x1p-25 : 0) + a * 1e-7);
        if (fabs(x) == a)
            assert_true(s->dtype == KVF_F32 ? fabs(x - y) <= a * 0x1p-22 : x == y);
    }
    for (uint32_t g = 0; g < s->dim_k + s->n_chunks; g++) {
        double a = element_at(c->scales, s->dtype, g), most = fmax(found[g], least);
        assert_true(s->dtype == KVF_F32 ? a >= most && a <= most * (1 + 0x1p-15) : a == most);
    }
}

static void check_guards(const struct cold *c)
{
    for (size_t i = 0; i < GUARD; i++) {
        assert_int_equal(c->codes[c->elements + i], 0xee);
        assert_int_equal(c->scales[c->scale_bytes + i], 0xee);
        assert_int_equal(c->back[c->elements * element_bytes(c->shape.dtype) + i], 0xee);
    }
}

static void encode(const struct kvf_dev *dev, struct cold *c)
{
    assert_int_equal(dev->encode(dev, NULL, &c->shape, c->block, c->codes, c->scales), KVF_OK);
}

static void decode(const struct kvf_dev *dev, struct cold *c, uint64_t mask)
{
    assert_int_equal(dev->decode(dev, NULL, &c->shape, mask, c->codes, c->scales, c->back), KVF_OK);
}

static void elements_stay_within_the_bound(void **state)
{
    EACH_TABLE(dev) {
        for (unsigned i = 0; i < 6 * 3 * 2 * KINDS; i++) {
            cold_init(&one, shape_of(i, dtypes[i / 6 % 3], formats[i / 18 % 2]), (enum kind)(i / 36));
            encode(dev, &one);
            assert_true(kvf_cold_has_form(&one.shape, one.scales));
            decode(dev, &one, UINT64_MAX);
            check_bounds(&one);
            check_guards(&one);
        }
    }
}

static void devices_agree_bit_for_bit(void **state)
{
    const struct kvf_dev *reference = kvf_dev_cpu_reference();
    EACH_TABLE(dev) {
        for (unsigned i = 0; i < 6 * 3 * 2 * KINDS; i++) {
            cold_init(&one, shape_of(i, dtypes[i / 6 % 3], formats[i / 18 % 2]), (enum kind)(i / 36));
            two = one;
            encode(reference, &one);
            decode(reference, &one, UINT64_MAX);
            encode(dev, &two);
            decode(dev, &two, UINT64_MAX);
            assert_memory_equal(&one, &two, sizeof one);
        }
        for (int f = 0; f < 2; f++) { /* every code, those that are never written too */
            cold_init(&one, shape_of(1, KVF_F32, formats[f]), PLAIN);
            for (size_t i = 0; i < one.elements; i++)
                one.codes[i] = (uint8_t)i;
            for (uint32_t i = 0; i < 64 + 4; i++)
                ((float *)one.scales)[i] = f ? 448 : 127;
            decode(dev, &one, UINT64_MAX);
            for (size_t i = 0; i < one.elements; i++) {
                double x = f ? e4m3((uint8_t)i) : (double)(int8_t)i, most = f ? 448 : 127;
                assert_true(((float *)one.back)[i] == fmax(fmin(x, most), -most));
            }
        }
    }
}

static void encoding_again_gives_the_same_bytes(void **state)
{
    EACH_TABLE(dev) {
        for (unsigned i = 0; i < 6 * 3 * 2 * KINDS; i++) {
            cold_init(&one, shape_of(i, dtypes[i / 6 % 3], formats[i / 18 % 2]), (enum kind)(i / 36 % KINDS));
            encode(dev, &one);
            decode(dev, &one, UINT64_MAX);
            two = one;
            memcpy(two.block, one.back, one.elements * element_bytes(one.shape.dtype));
            encode(dev, &two);
            assert_memory_equal(two.scales, one.scales, one.scale_bytes);
            assert_memory_equal(two.codes, one.codes, one.elements);
        }
    }
}

static void only_the_chunks_of_the_mask_are_written(void **state)
{
    EACH_TABLE(dev) {
        cold_init(&one, shape_of(2, KVF_F16, KVF_COLD_INT8), PLAIN);
        encode(dev, &one);
        decode(dev, &one, UINT64_MAX);
        two = one;
        memset(two.back, 0xee, sizeof two.back);
        decode(dev, &two, 0xffffff42);
        size_t chunk = kvf_cold_chunk_bytes(&one.shape) * 2;
        for (uint32_t c = 0; c < 8; c++) {
            bool in = 0x42 >> c & 1;
            for (size_t i = 0; i < chunk; i++)
                assert_int_equal(two.back[c * chunk + i], in ? one.back[c * chunk + i] : 0xee);
        }
        check_guards(&two);
    }
}

static void a_block_with_nan_or_infinity_has_no_cold_form(void **state)
{
    EACH_TABLE(dev) {
        for (unsigned i = 0; i < 6 * 3 * 2 * 4; i++) {
            enum kvf_dtype dtype = dtypes[i / 6 % 3];
            cold_init(&one, shape_of(i, dtype, formats[i / 18 % 2]), PLAIN);
            float odd = i / 36 == 0 ? NAN : i / 36 == 1 ? -NAN : i / 36 == 2 ? INFINITY : -INFINITY;
            size_t at = random_below((uint32_t)one.elements), bytes = element_bytes(dtype);
            assert_int_equal(dev->convert(dev, NULL, one.block + at * bytes, dtype, &odd, KVF_F32, 1), KVF_OK);
            encode(dev, &one);
            assert_false(kvf_cold_has_form(&one.shape, one.scales));
        }
    }
}

static void broken_bounds_are_refused(void **state)
{
    EACH_TABLE(dev) {
        const struct kvf_cold good = shape_of(1, KVF_F16, KVF_COLD_INT8);
        cold_init(&one, good, PLAIN);
        for (int i = 0; i < 9; i++) {
            struct kvf_cold s = good;
            s.format = i == 0 ? KVF_COLD_EXACT : i == 1 ? (enum kvf_cold_format)9 : s.format;
            s.dtype = i == 2 ? (enum kvf_dtype)7 : s.dtype;
            s.n_chunks = i == 3 ? 0 : i == 4 ? 65 : s.n_chunks;
            s.chunk_tokens = i == 5 ? 0 : s.chunk_tokens;
            s.dim_k = i == 6 ? 63 : i == 7 ? 528 : s.dim_k;
            s.dim_v = i == 8 ? 8 : s.dim_v;
            assert_int_equal(dev->encode(dev, NULL, &s, one.block, one.codes, one.scales), KVF_ERR_INVALID);
            assert_int_equal(dev->decode(dev, NULL, &s, 1, one.codes, one.scales, one.back), KVF_ERR_INVALID);
        }
        assert_int_equal(dev->encode(dev, NULL, NULL, one.block, one.codes, one.scales), KVF_ERR_INVALID);
        assert_int_equal(dev->encode(dev, NULL, &good, NULL, one.codes, one.scales), KVF_ERR_INVALID);
        assert_int_equal(dev->encode(dev, NULL, &good, one.block, NULL, one.scales), KVF_ERR_INVALID);
        assert_int_equal(dev->decode(dev, NULL, &good, 1, one.codes, NULL, one.back), KVF_ERR_INVALID);
        assert_int_equal(dev->decode(dev, NULL, &good, 1, one.codes, one.scales, NULL), KVF_ERR_INVALID);
    }
}

static void cuda_agrees_bit_for_bit(void **state)
{
    const char *why = "";
    const struct kvf_dev *dev = kvf_dev_cuda(0, &why);
    if (!dev) {
        print_message("skipped: %s\n", why);
        skip();
    }
    void *block, *codes, *scales;
    assert_int_equal(dev->alloc(dev, sizeof one.block, &block), KVF_OK);
    assert_int_equal(dev->alloc(dev, sizeof one.codes, &codes), KVF_OK);
    assert_int_equal(dev->alloc(dev, sizeof one.scales, &scales), KVF_OK);
    for (unsigned i = 0; i < 6 * 3 * 2 * KINDS; i++) {
        cold_init(&one, shape_of(i, dtypes[i / 6 % 3], formats[i / 18 % 2]), (enum kind)(i / 36));
        two = one;
        encode(kvf_dev_cpu_reference(), &one);
        decode(kvf_dev_cpu_reference(), &one, UINT64_MAX);
        size_t bytes = one.elements * element_bytes(one.shape.dtype);
        assert_int_equal(dev->upload(dev, NULL, block, two.block, bytes), KVF_OK);
        assert_int_equal(dev->encode(dev, NULL, &two.shape, block, codes, scales), KVF_OK);
        assert_int_equal(dev->decode(dev, NULL, &two.shape, UINT64_MAX, codes, scales, block), KVF_OK);
        assert_int_equal(dev->download(dev, NULL, two.codes, codes, two.elements), KVF_OK);
        assert_int_equal(dev->download(dev, NULL, two.scales, scales, two.scale_bytes), KVF_OK);
        assert_int_equal(dev->download(dev, NULL, two.back, block, bytes), KVF_OK);
        assert_int_equal(dev->stream_sync(dev, NULL), KVF_OK);
        assert_memory_equal(&one, &two, sizeof one);
    }
    dev->free(dev, block);
    dev->free(dev, codes);
    dev->free(dev, scales);
}

int main(void)
{
    print_message("seed %llu\n", (unsigned long long)SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elements_stay_within_the_bound),
        cmocka_unit_test(devices_agree_bit_for_bit),
        cmocka_unit_test(encoding_again_gives_the_same_bytes),
        cmocka_unit_test(only_the_chunks_of_the_mask_are_written),
        cmocka_unit_test(a_block_with_nan_or_infinity_has_no_cold_form),
        cmocka_unit_test(broken_bounds_are_refused),
        cmocka_unit_test(cuda_agrees_bit_for_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
