/* Cuts a text into the words that BPE works on, by hand instead of by a regular expression. The GPT-2 rule, in order:
 *   's 't 're 've 'm 'll 'd | ' '? letters | ' '? digits | ' '? others | spaces, without the last one before a word
 * Letters and digits are Unicode's L and N. Here ASCII is exact; beyond it the ranges below cover what ordinary text
 * holds, and whatever is in none of them counts as a letter. A wrong class changes only where a rare word is cut. */
#include "tokenizer.h"

#include <string.h>

enum class { LETTER, DIGIT, SPACE, OTHER };

struct range {
    uint32_t first, last;
    enum class class;
};

/* Sorted. What is not listed at or above 0x80 is a letter. */
static const struct range ranges[] = {
    {0x80, 0x84, OTHER},       {0x85, 0x85, SPACE},     {0x86, 0x9f, OTHER},       {0xa0, 0xa0, SPACE},
    {0xa1, 0xa9, OTHER},       {0xab, 0xb1, OTHER},     {0xb2, 0xb3, DIGIT},       {0xb4, 0xb4, OTHER},
    {0xb6, 0xb8, OTHER},       {0xb9, 0xb9, DIGIT},     {0xbb, 0xbb, OTHER},       {0xbc, 0xbe, DIGIT},
    {0xbf, 0xbf, OTHER},       {0xd7, 0xd7, OTHER},     {0xf7, 0xf7, OTHER},       {0x2c2, 0x2c5, OTHER},
    {0x2d2, 0x2df, OTHER},     {0x300, 0x36f, OTHER},   {0x37e, 0x37e, OTHER},     {0x483, 0x489, OTHER},
    {0x55a, 0x55f, OTHER},     {0x591, 0x5cf, OTHER},   {0x600, 0x61f, OTHER},     {0x64b, 0x65f, OTHER},
    {0x660, 0x669, DIGIT},     {0x66a, 0x66d, OTHER},   {0x6d4, 0x6d4, OTHER},     {0x6f0, 0x6f9, DIGIT},
    {0x93c, 0x93c, OTHER},     {0x93e, 0x94f, OTHER},   {0x964, 0x965, OTHER},     {0x966, 0x96f, DIGIT},
    {0xe50, 0xe59, DIGIT},     {0x1680, 0x1680, SPACE}, {0x2000, 0x200a, SPACE},   {0x200b, 0x2027, OTHER},
    {0x2028, 0x2029, SPACE},   {0x202a, 0x202e, OTHER}, {0x202f, 0x202f, SPACE},   {0x2030, 0x205e, OTHER},
    {0x205f, 0x205f, SPACE},   {0x2060, 0x206f, OTHER}, {0x2070, 0x2070, DIGIT},   {0x2074, 0x2079, DIGIT},
    {0x207a, 0x207e, OTHER},   {0x2080, 0x2089, DIGIT}, {0x208a, 0x208e, OTHER},   {0x20a0, 0x2101, OTHER},
    {0x2103, 0x2106, OTHER},   {0x2116, 0x2118, OTHER}, {0x2120, 0x2123, OTHER},   {0x2150, 0x2189, DIGIT},
    {0x2190, 0x245f, OTHER},   {0x2460, 0x249b, DIGIT}, {0x249c, 0x24e9, OTHER},   {0x24ea, 0x24ff, DIGIT},
    {0x2500, 0x2775, OTHER},   {0x2776, 0x2793, DIGIT}, {0x2794, 0x2bff, OTHER},   {0x2e00, 0x2e7f, OTHER},
    {0x3000, 0x3000, SPACE},   {0x3001, 0x3004, OTHER}, {0x3007, 0x3007, DIGIT},   {0x3008, 0x3020, OTHER},
    {0x3021, 0x3029, DIGIT},   {0x3030, 0x3030, OTHER}, {0xe000, 0xf8ff, OTHER},   {0xfe00, 0xfe6f, OTHER},
    {0xff01, 0xff0f, OTHER},   {0xff10, 0xff19, DIGIT}, {0xff1a, 0xff20, OTHER},   {0xff3b, 0xff40, OTHER},
    {0xff5b, 0xff65, OTHER},   {0xfff0, 0xffff, OTHER}, {0x1f000, 0x1faff, OTHER}, {0xe0000, 0x10ffff, OTHER},
};

static enum class class_of(uint32_t c)
{
    if (c < 0x80) {
        if ((c | 32) >= 'a' && (c | 32) <= 'z')
            return LETTER;
        if (c >= '0' && c <= '9')
            return DIGIT;
        return c == ' ' || (c >= '\t' && c <= '\r') ? SPACE : OTHER;
    }
    size_t low = 0, high = sizeof ranges / sizeof ranges[0];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof ranges / sizeof ranges[0] && c >= ranges[low].first ? ranges[low].class : LETTER;
}

/* Class and length in bytes of the character at text[at]. Bytes that are not UTF-8 are single OTHERs. */
static enum class look(const char *text, size_t length, size_t at, size_t *bytes)
{
    const unsigned char *p = (const unsigned char *)text + at;
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    *bytes = 1;
    if (n == 0 || n > length - at)
        return OTHER;
    uint32_t c = n == 1 ? p[0] : p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return OTHER;
        c = c << 6 | (p[i] & 0x3f);
    }
    *bytes = n;
    return class_of(c);
}

/* End of the run of characters of one class that begins at `at`. */
static size_t run_end(const char *text, size_t length, size_t at, enum class class)
{
    size_t bytes;
    while (at < length && look(text, length, at, &bytes) == class)
        at += bytes;
    return at;
}

static size_t contraction(const char *text, size_t length)
{
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t n = strlen(endings[i]);
        if (length >= n && memcmp(text, endings[i], n) == 0)
            return n;
    }
    return 0;
}

/* A run of spaces is one word, but its last character is left to the next word when something follows; a plain blank
 * then joins that word, other white space stands alone. */
static size_t spaces(const char *text, size_t length)
{
    size_t at = 0, bytes, last = 0;
    while (at < length && look(text, length, at, &bytes) == SPACE) {
        last = at;
        at += bytes;
    }
    return at == length || last == 0 ? at : last;
}

/* The GPT-2 rule for text in which no character must be kept apart. */
static size_t gpt2_word(const char *text, size_t length)
{
    size_t bytes, n = contraction(text, length);
    if (n)
        return n;
    size_t at = text[0] == ' ' && length > 1 ? 1 : 0;
    enum class class = look(text, length, at, &bytes);
    if (class == SPACE)
        return spaces(text, length);
    return run_end(text, length, at, class);
}

size_t llm_words_next(const char *text, size_t length, bool single_digits)
{
    size_t bytes;
    if (!single_digits)
        return gpt2_word(text, length);
    enum class class = look(text, length, 0, &bytes);
    if (class == DIGIT)
        return bytes;
    /* Digits are cut out first and the rest is cut as if the text ended there. A word never reaches beyond two runs of
     * characters of one class, so what follows the second run does not matter. */
    size_t limit = run_end(text, length, 0, class);
    if (limit < length) {
        class = look(text, length, limit, &bytes);
        if (class != DIGIT)
            limit = run_end(text, length, limit, class);
    }
    return gpt2_word(text, limit);
}
