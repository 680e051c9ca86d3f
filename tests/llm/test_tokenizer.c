/* Text to tokens and back, on a tiny vocabulary: the 256 bytes, some merges, one control token. */
#include "fixture.h"

#include <examples/llm/tokenizer.h>

#define SEED 20240612u

/* A GGUF file in memory, grown as needed by the fixed room. */
struct maker {
    uint8_t data[1 << 16];
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

static void put_array(struct maker *m, const char *key, uint32_t type, uint64_t count)
{
    put_text(m, key);
    put(m, LLM_GGUF_ARRAY, 4);
    put(m, type, 4);
    put(m, count, 8);
}

/* Bytes that GPT-2 writes as themselves here: the printable ones of ASCII. A blank is U+0120, a line end U+010A. */
#define BLANK "\xc4\xa0"
static const char *const joined[] = {"he", "ll",        "llo", "hello",       BLANK "w",
                                     "or", BLANK "wor", "ld",  BLANK "world", "<|end|>"};
static const char *const merges[] = {"h e", "l l", "ll o", "he llo", "\xc4\xa0 w", "o r", "\xc4\xa0w or", "l d", "\xc4\xa0wor ld"};
#define JOINED (sizeof joined / sizeof joined[0])
#define MERGES (sizeof merges / sizeof merges[0])

static void put_tokens(struct maker *m, bool without_z)
{
    unsigned next = 256;
    put_array(m, "tokenizer.ggml.tokens", LLM_GGUF_STRING, 256 + JOINED);
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
        unsigned c = printable ? b : next++;
        char text[3] = {(char)c};
        if (c >= 0x80) {
            text[0] = (char)(0xc0 | c >> 6);
            text[1] = (char)(0x80 | (c & 0x3f));
        }
        put_text(m, without_z && b == 'z' ? "no-z" : text);
    }
    for (size_t i = 0; i < JOINED; i++)
        put_text(m, joined[i]);
}

static struct llm_tokenizer *make(struct maker *m, struct llm_gguf *g, bool smollm, bool without_z)
{
    struct llm_error error = {{0}};
    struct llm_tokenizer *t = NULL;
    m->n = 0;
    put(m, 0x46554747, 4), put(m, 3, 4), put(m, 0, 8), put(m, 7, 8);
    put_text(m, "tokenizer.ggml.model"), put(m, LLM_GGUF_STRING, 4), put_text(m, "gpt2");
    put_text(m, "tokenizer.ggml.pre"), put(m, LLM_GGUF_STRING, 4), put_text(m, smollm ? "smollm" : "gpt-2");
    put_tokens(m, without_z);
    put_array(m, "tokenizer.ggml.token_type", LLM_GGUF_I32, 256 + JOINED);
    for (size_t i = 0; i < 256 + JOINED; i++)
        put(m, i == 255 + JOINED ? 3 : 1, 4);
    put_array(m, "tokenizer.ggml.merges", LLM_GGUF_STRING, MERGES);
    for (size_t i = 0; i < MERGES; i++)
        put_text(m, merges[i]);
    put_text(m, "tokenizer.ggml.eos_token_id"), put(m, LLM_GGUF_U32, 4), put(m, 255 + JOINED, 4);
    put_text(m, "tokenizer.ggml.unknown_token_id"), put(m, LLM_GGUF_U32, 4), put(m, '?', 4);
    assert_true(m->n <= sizeof m->data);
    assert_true(llm_gguf_parse(g, m->data, m->n, &error));
    assert_true(llm_tokenizer_create(g, &t, &error));
    return t;
}

static void drop(struct llm_tokenizer *t, struct llm_gguf *g)
{
    llm_tokenizer_destroy(t);
    g->map = NULL;
    llm_gguf_close(g);
}

static size_t decode(const struct llm_tokenizer *t, const int32_t *ids, size_t count, char *out, size_t room)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        n += llm_tokenizer_decode(t, ids[i], out + n, room - n);
    return n;
}

static void merges_join_in_the_order_of_the_list(void **state)
{
    static struct maker m;
    struct llm_gguf g;
    struct llm_tokenizer *t = make(&m, &g, true, false);
    const struct {
        const char *text;
        int32_t ids[8];
        size_t count;
    } cases[] = {
        {"hello", {256 + 3}, 1},
        {"hello world", {256 + 3, 256 + 8}, 2},
        {"world", {'w', 256 + 5, 256 + 7}, 3}, /* "or" stands before "ld", and " wor" needs the blank */
        {"lll", {256 + 1, 'l'}, 2},             /* the leftmost of equals */
        {"", {0}, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t *ids;
        size_t count;
        assert_true(llm_tokenizer_encode(t, cases[i].text, strlen(cases[i].text), false, &ids, &count));
        assert_int_equal(count, cases[i].count);
        assert_memory_equal(ids, cases[i].ids, count * sizeof *ids);
        free(ids);
    }
    assert_int_equal(llm_tokenizer_size(t), 256 + JOINED);
    assert_int_equal(llm_tokenizer_end(t), 255 + JOINED);
    drop(t, &g);
}

static void any_bytes_come_back(void **state)
{
    static struct maker m;
    static const char letters[] = "helowrd 'st19\n\xc3\xa9\xe4\xbd\xa0\xff";
    struct llm_gguf g;
    uint64_t random = SEED;
    struct llm_tokenizer *t = make(&m, &g, true, false);
    for (int round = 0; round < 2000; round++) {
        char text[64], back[2048];
        int32_t *ids;
        size_t count, length = fixture_random(&random) % sizeof text;
        for (size_t i = 0; i < length; i++)
            text[i] = round % 2 ? (char)fixture_random(&random) : letters[fixture_random(&random) % (sizeof letters - 1)];
        assert_true(llm_tokenizer_encode(t, text, length, round % 3 == 0, &ids, &count));
        assert_true(count <= length);
        assert_int_equal(decode(t, ids, count, back, sizeof back), length);
        assert_memory_equal(back, text, length);
        free(ids);
    }
    drop(t, &g);
}

static void control_tokens_are_made_only_when_asked(void **state)
{
    static struct maker m;
    static const char text[] = "hello<|end|>hello<|end";
    struct llm_gguf g;
    struct llm_tokenizer *t = make(&m, &g, true, false);
    int32_t *ids;
    size_t count;
    char back[64];
    assert_true(llm_tokenizer_encode(t, text, strlen(text), true, &ids, &count));
    assert_int_equal(ids[0], 256 + 3);
    assert_int_equal(ids[1], 255 + JOINED);
    assert_int_equal(ids[2], 256 + 3);
    assert_int_equal(decode(t, ids, count, back, sizeof back), strlen(text));
    assert_memory_equal(back, text, strlen(text));
    free(ids);
    assert_true(llm_tokenizer_encode(t, text, strlen(text), false, &ids, &count));
    for (size_t i = 0; i < count; i++)
        assert_int_not_equal(ids[i], 255 + JOINED);
    free(ids);
    drop(t, &g);
}

static void a_byte_outside_the_vocabulary_is_the_unknown_token(void **state)
{
    static struct maker m;
    struct llm_gguf g;
    struct llm_tokenizer *t = make(&m, &g, true, true);
    int32_t *ids;
    size_t count;
    assert_true(llm_tokenizer_encode(t, "z", 1, false, &ids, &count));
    assert_int_equal(count, 1);
    assert_int_equal(ids[0], '?');
    free(ids);
    char out[8];
    assert_int_equal(llm_tokenizer_decode(t, -1, out, sizeof out), 0);
    assert_int_equal(llm_tokenizer_decode(t, 1 << 30, out, sizeof out), 0);
    assert_int_equal(llm_tokenizer_decode(t, 256 + 3, out, 2), 2); /* as much as fits */
    drop(t, &g);
}

/* Words are separated by | in `words`. */
static void check_words(const char *words, bool single_digits)
{
    char text[128];
    size_t length = 0;
    for (const char *p = words; *p; p++)
        if (*p != '|')
            text[length++] = *p;
    size_t at = 0;
    for (const char *p = words; *p;) {
        size_t expected = strcspn(p, "|");
        size_t got = llm_words_next(text + at, length - at, single_digits);
        if (got != expected)
            print_error("in '%s' at byte %zu\n", words, at);
        assert_int_equal(got, expected);
        at += got;
        p += expected + (p[expected] == '|');
    }
}

static void texts_are_cut_as_gpt2_does(void **state)
{
    static const char *const both[] = {
        "Hello| world|!",
        "it|'s|  | they|'ll| can|'t",
        "a|   | b", /* the last blank before a word joins it */
        "x|   ",
        "end|.|\n|\n|Next",
        " \n\n|\t|b", /* other white space is left to the next word but stands alone */
        "na\xc3\xafve| caf\xc3\xa9|,",
        "(|see| http|://|www|.|org|/)",
        "'|S",
        "\xe2\x80\x9c|So|\xe2\x80\x9d",
        "a|\xc2\xa0|b",
        " \xff|a",
    };
    for (size_t i = 0; i < sizeof both / sizeof both[0]; i++) {
        check_words(both[i], true);
        check_words(both[i], false);
    }
    check_words("in| |2|0|2|4|,| v|3|.|1", true);
    check_words("in| 2024|,| v|3|.|1", false);
    check_words("a|  |7", true); /* digits are cut out first: the blanks before them are the end of their text */
    check_words("a| | 7", false);
}

static void other_kinds_of_tokenizers_are_refused(void **state)
{
    static struct maker m;
    struct llm_gguf g;
    struct llm_error error = {{0}};
    struct llm_tokenizer *t = NULL;
    put(&m, 0x46554747, 4), put(&m, 3, 4), put(&m, 0, 8), put(&m, 1, 8);
    put_text(&m, "tokenizer.ggml.model"), put(&m, LLM_GGUF_STRING, 4), put_text(&m, "llama");
    assert_true(llm_gguf_parse(&g, m.data, m.n, &error));
    assert_false(llm_tokenizer_create(&g, &t, &error));
    assert_non_null(strstr(error.text, "llama"));
    assert_null(t);
    g.map = NULL;
    llm_gguf_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_join_in_the_order_of_the_list),
        cmocka_unit_test(any_bytes_come_back),
        cmocka_unit_test(control_tokens_are_made_only_when_asked),
        cmocka_unit_test(a_byte_outside_the_vocabulary_is_the_unknown_token),
        cmocka_unit_test(texts_are_cut_as_gpt2_does),
        cmocka_unit_test(other_kinds_of_tokenizers_are_refused),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
