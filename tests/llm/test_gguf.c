/* The reader of model files: what it expands, and what it does with files that lie. */
#include "fixture.h"

#include <examples/llm/gguf.h>
#include <examples/llm/model.h>
#include <examples/llm/quant.h>

#include <math.h>

#define SEED 20240611u

/* A file under construction. */
struct maker {
    uint8_t data[4096];
    size_t n;
};

static void put(struct maker *m, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        m->data[m->n++] = (uint8_t)(value >> (8 * i));
}

static void put_text(struct maker *m, const char *text)
{
    put(m, strlen(text), 8);
    memcpy(m->data + m->n, text, strlen(text));
    m->n += strlen(text);
}

static void put_header(struct maker *m, uint32_t version, uint64_t tensors, uint64_t values)
{
    *m = (struct maker){.n = 0};
    put(m, 0x46554747, 4);
    put(m, version, 4);
    put(m, tensors, 8);
    put(m, values, 8);
}

static void put_tensor(struct maker *m, uint64_t dim0, uint64_t dim1, uint32_t type, uint64_t offset)
{
    put_text(m, "t");
    put(m, 2, 4);
    put(m, dim0, 8);
    put(m, dim1, 8);
    put(m, type, 4);
    put(m, offset, 8);
}

static bool parses(const struct maker *m, struct llm_error *error)
{
    struct llm_gguf g;
    uint8_t *exact = malloc(m->n); /* on the heap, so that a byte too far is seen by the sanitizer */
    memcpy(exact, m->data, m->n);
    bool ok = llm_gguf_parse(&g, exact, m->n, error);
    if (ok) {
        g.map = NULL; /* not a map: nothing to undo but the lists */
        llm_gguf_close(&g);
    }
    free(exact);
    return ok;
}

/* ---- values and tensors */

static void values_are_found_by_key_and_kind(void **state)
{
    struct maker m;
    struct llm_gguf g;
    struct llm_error error;
    put_header(&m, 3, 0, 4);
    put_text(&m, "number"), put(&m, LLM_GGUF_U16, 4), put(&m, 513, 2);
    put_text(&m, "negative"), put(&m, LLM_GGUF_I32, 4), put(&m, 0xffffffff, 4);
    put_text(&m, "word"), put(&m, LLM_GGUF_STRING, 4), put_text(&m, "abc");
    put_text(&m, "list"), put(&m, LLM_GGUF_ARRAY, 4), put(&m, LLM_GGUF_STRING, 4), put(&m, 2, 8);
    put_text(&m, "x"), put_text(&m, "");
    assert_true(llm_gguf_parse(&g, m.data, m.n, &error));

    uint64_t number;
    struct llm_text text;
    assert_true(llm_gguf_uint(&g, "number", &number));
    assert_int_equal(number, 513);
    assert_false(llm_gguf_uint(&g, "negative", &number));
    assert_false(llm_gguf_uint(&g, "word", &number));
    assert_false(llm_gguf_uint(&g, "numbe", &number));
    assert_true(llm_gguf_string(&g, "word", &text));
    assert_int_equal(text.length, 3);
    assert_memory_equal(text.data, "abc", 3);
    assert_null(llm_gguf_array(&g, "list", LLM_GGUF_F32));
    const struct llm_gguf_value *list = llm_gguf_array(&g, "list", LLM_GGUF_STRING);
    assert_non_null(list);
    const uint8_t *at = list->data;
    assert_true(llm_gguf_next_string(list, &at, &text));
    assert_int_equal(text.length, 1);
    assert_true(llm_gguf_next_string(list, &at, &text));
    assert_int_equal(text.length, 0);
    assert_false(llm_gguf_next_string(list, &at, &text));
    g.map = NULL;
    llm_gguf_close(&g);
}

static void a_tensor_must_lie_within_the_file(void **state)
{
    struct maker m;
    struct llm_error error;
    const struct {
        uint64_t dim0, dim1, offset;
        uint32_t type;
        size_t bytes;
        bool fine;
    } cases[] = {
        {8, 2, 0, LLM_QUANT_F32, 64, true},          {8, 2, 0, LLM_QUANT_F32, 63, false},
        {8, 2, 32, LLM_QUANT_F32, 96, true},         {8, 2, 16, LLM_QUANT_F32, 96, false}, /* not aligned */
        {8, 2, UINT64_MAX - 31, LLM_QUANT_F32, 64, false}, {33, 1, 0, LLM_QUANT_Q8_0, 128, false},
        {1ull << 32, 1ull << 32, 0, LLM_QUANT_F32, 64, false}, {1ull << 62, 2, 0, LLM_QUANT_F32, 64, false},
        {0, 2, 0, LLM_QUANT_F32, 64, false},         {64, 1, 0, LLM_QUANT_Q4_1, 40, true},
        {8, 2, 0, 99, 0, true}, /* a type that nobody asks for is no error */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_header(&m, 2, 1, 0);
        put_tensor(&m, cases[i].dim0, cases[i].dim1, cases[i].type, cases[i].offset);
        m.n = (m.n + 31) / 32 * 32 + cases[i].bytes;
        assert_int_equal(parses(&m, &error), cases[i].fine);
    }
}

static void headers_that_lie_are_refused_with_a_line(void **state)
{
    struct maker m;
    struct llm_error error = {{0}};
    put_header(&m, 1, 0, 0);
    assert_false(parses(&m, &error));
    assert_non_null(strstr(error.text, "version 1"));
    put_header(&m, 3, UINT64_MAX, 0);
    assert_false(parses(&m, &error));
    put_header(&m, 3, 0, UINT64_MAX);
    assert_false(parses(&m, &error));
    put_header(&m, 3, 1, 0);
    assert_false(parses(&m, &error));
    put_header(&m, 3, 0, 1);
    put(&m, UINT64_MAX, 8); /* length of the key */
    assert_false(parses(&m, &error));
    put_header(&m, 3, 0, 1);
    put_text(&m, "k"), put(&m, LLM_GGUF_ARRAY, 4), put(&m, LLM_GGUF_U64, 4), put(&m, 1ull << 61, 8);
    assert_false(parses(&m, &error));
    put_header(&m, 3, 0, 1);
    put_text(&m, "k"), put(&m, LLM_GGUF_ARRAY, 4), put(&m, LLM_GGUF_ARRAY, 4), put(&m, 1, 8);
    m.n += 64; /* whatever they hold */
    assert_false(parses(&m, &error));
    put_header(&m, 3, 0, 1);
    put_text(&m, "general.alignment"), put(&m, LLM_GGUF_U32, 4), put(&m, 48, 4);
    assert_false(parses(&m, &error));
    assert_non_null(strstr(error.text, "alignment"));
}

/* ---- expansion, each type against a formula for one element that is written another way */

static double half_value(uint16_t h)
{
    int exponent = h >> 10 & 31;
    double mantissa = h & 1023;
    double value = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -value : value;
}

static double half_of(const uint8_t *p)
{
    return half_value((uint16_t)(p[0] + 256 * p[1]));
}

static double element(uint32_t type, const uint8_t *b, unsigned i)
{
    if (type == LLM_QUANT_F16)
        return half_of(b);
    if (type == LLM_QUANT_Q8_0)
        return half_of(b) * (b[2 + i] < 128 ? b[2 + i] : b[2 + i] - 256);
    if (type == LLM_QUANT_Q4_0)
        return half_of(b) * ((i < 16 ? b[2 + i] % 16 : b[2 + i - 16] / 16) - 8);
    if (type == LLM_QUANT_Q4_1)
        return half_of(b) * (i < 16 ? b[4 + i] % 16 : b[4 + i - 16] / 16) + half_of(b + 2);
    /* Q6_K: place of element i within its half of 128, then within its run of 32. */
    unsigned part = i / 128, within = i % 128, run = within / 32, lane = within % 32;
    unsigned low_byte = b[part * 64 + (run & 1) * 32 + lane], low = run >= 2 ? low_byte / 16 : low_byte % 16;
    unsigned high = b[128 + part * 32 + lane] / (1u << (2 * run)) % 4;
    int scale = b[192 + i / 16] < 128 ? b[192 + i / 16] : b[192 + i / 16] - 256;
    return half_of(b + 208) * scale * ((int)(low + 16 * high) - 32);
}

static void every_type_expands_as_its_formula_says(void **state)
{
    static const uint32_t types[] = {LLM_QUANT_F16, LLM_QUANT_Q4_0, LLM_QUANT_Q4_1, LLM_QUANT_Q8_0, LLM_QUANT_Q6_K};
    uint64_t random = SEED;
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        const struct llm_quant *quant = llm_quant_of(types[t]);
        for (int round = 0; round < 200; round++) {
            uint8_t blocks[3 * 210];
            float out[3 * 256];
            for (size_t i = 0; i < sizeof blocks; i++)
                blocks[i] = (uint8_t)fixture_random(&random);
            for (size_t i = 1; i < sizeof blocks; i++) /* wherever a half may begin, keep it finite */
                blocks[i] &= quant->type == LLM_QUANT_F16 || i % quant->bytes < 4 || i % quant->bytes > 207 ? 0xbb : 0xff;
            quant->expand(blocks, 3, out);
            for (unsigned i = 0; i < 3 * quant->elements; i++) {
                double expected = element(types[t], blocks + i / quant->elements * quant->bytes, i % quant->elements);
                assert_true(fabs(out[i] - expected) <= 1e-6 * fabs(expected) + 1e-9);
            }
        }
    }
    assert_null(llm_quant_of(7));
}

static void halves_convert_the_same_in_every_version(void **state)
{
    static const char *const names[] = {"plain", "avx2", "avx512"};
    uint64_t random = SEED;
    static float from[65536 + 40000];
    static uint16_t plain[sizeof from / sizeof from[0]], other[sizeof from / sizeof from[0]];
    const size_t n = sizeof from / sizeof from[0];
    for (unsigned h = 0; h < 65536; h++) {
        from[h] = llm_quant_half((uint16_t)h);
        if ((h & 0x7c00) != 0x7c00)
            assert_true((double)from[h] == half_value((uint16_t)h));
    }
    for (size_t i = 65536; i < n; i++) { /* near and between halves, tiny and too large */
        uint32_t bits = (uint32_t)fixture_random(&random);
        bits = (bits & 0x807fffff) | (0x32800000 + (bits >> 8 & 0x1f) * 0x00800000);
        if (i % 3 == 0)
            bits = (bits & 0xffffe000) | 0x1000; /* half-way */
        memcpy(&from[i], &bits, sizeof bits);
    }
    llm_matmul_plain.to_half(from, plain, n);
    for (unsigned h = 0; h < 65536; h++)
        if ((h & 0x7c00) != 0x7c00 || (h & 0x3ff) == 0)
            assert_int_equal(plain[h], h);
    for (size_t v = 1; v < 3; v++)
        if (llm_matmul_named(names[v])) {
            llm_matmul_named(names[v])->to_half(from, other, n);
            for (size_t i = 0; i < n; i++)
                assert_true(plain[i] == other[i] || isnan(from[i]));
        }
}

/* ---- damaged files */

/* Reads a file as far as it goes; whatever it says, every tensor that has data lies within it. */
static bool walk(const uint8_t *data, size_t size)
{
    struct llm_gguf g;
    struct llm_error error = {{0}};
    if (!llm_gguf_parse(&g, data, size, &error)) {
        assert_true(error.text[0] != '\0');
        return false;
    }
    for (uint64_t i = 0; i < g.n_tensors; i++)
        if (g.tensors[i].data)
            assert_true(g.tensors[i].data >= data && g.tensors[i].bytes <= (size_t)(data + size - g.tensors[i].data));
    g.map = NULL;
    llm_gguf_close(&g);
    return true;
}

static void a_truncated_file_is_refused(void **state)
{
    struct fixture f;
    size_t size;
    fixture_open(&f, SEED);
    uint8_t *whole = fixture_read(f.path, &size);
    assert_true(walk(whole, size));
    for (size_t cut = 0; cut + 32 < size; cut += cut < 8192 ? 7 : 997) {
        uint8_t *part = malloc(cut ? cut : 1);
        memcpy(part, whole, cut);
        assert_false(walk(part, cut));
        free(part);
    }
    free(whole);
    fixture_close(&f);
}

static void flipped_bytes_never_crash_the_loader(void **state)
{
    struct fixture f;
    struct llm_pool *pool = llm_pool_create(1);
    uint64_t random = SEED;
    size_t size;
    int loaded = 0;
    fixture_open(&f, SEED);
    uint8_t *whole = fixture_read(f.path, &size), *bad = malloc(size);
    for (int round = 0; round < 3000; round++) {
        memcpy(bad, whole, size);
        for (int i = 0; i < 1 + round % 3; i++) /* the description is the first 8 kB or so */
            bad[fixture_random(&random) % (round % 2 ? 900 : 9000)] = (uint8_t)fixture_random(&random);
        walk(bad, size);
        if (round % 10)
            continue;
        struct llm_model model;
        struct llm_error error = {{0}};
        FILE *file = fopen(f.path, "wb");
        assert_int_equal(fwrite(bad, 1, size, file), size);
        fclose(file);
        if (llm_model_load(&model, f.path, pool, &error)) {
            loaded++;
            llm_model_free(&model);
        } else {
            assert_true(strlen(error.text) > 20 && !strchr(error.text, '\n'));
        }
    }
    assert_true(loaded > 0 && loaded < 300); /* some flips are harmless, most are not */
    free(bad);
    free(whole);
    llm_pool_destroy(pool);
    fixture_close(&f);
}

static void a_missing_or_foreign_file_gives_one_line(void **state)
{
    struct llm_model model;
    struct llm_error error = {{0}};
    struct llm_pool *pool = llm_pool_create(1);
    assert_false(llm_model_load(&model, "/nonexistent/model.gguf", pool, &error));
    assert_non_null(strstr(error.text, "/nonexistent/model.gguf"));
    assert_false(llm_model_load(&model, "/proc/self/exe", pool, &error));
    assert_non_null(strstr(error.text, "not a GGUF file"));
    assert_false(llm_model_load(&model, "/tmp", pool, &error));
    llm_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_found_by_key_and_kind),
        cmocka_unit_test(a_tensor_must_lie_within_the_file),
        cmocka_unit_test(headers_that_lie_are_refused_with_a_line),
        cmocka_unit_test(every_type_expands_as_its_formula_says),
        cmocka_unit_test(halves_convert_the_same_in_every_version),
        cmocka_unit_test(a_truncated_file_is_refused),
        cmocka_unit_test(flipped_bytes_never_crash_the_loader),
        cmocka_unit_test(a_missing_or_foreign_file_gives_one_line),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
