#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#define NONE (-1)
#define TOKENS_MAX (1u << 24)
#define WORD_MAX 2048 /* bytes: a longer word is cut here, which bounds the quadratic part of merging */
#define TYPE_CONTROL 3

struct merge {
    int32_t left, right; /* NONE in a free place */
    int32_t joined;
    uint32_t rank;
};

struct llm_tokenizer {
    uint32_t size;
    struct llm_text *texts; /* [size] as in the file: bytes as printable characters */
    uint8_t *control;       /* [size] a token that is never made from plain text */
    int32_t end, unknown;
    bool single_digits;
    int32_t byte_token[256];
    uint16_t byte_char[256]; /* the character that stands for a byte */
    uint8_t char_byte[512];  /* and back */

    int32_t *by_text; /* hash table of texts, open addressing, NONE in a free place */
    size_t by_text_mask;
    struct merge *merges; /* hash table of pairs */
    size_t merges_mask;
};

static uint64_t hash_text(const char *data, size_t length)
{
    uint64_t h = 0xcbf29ce484222325ull; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        h = (h ^ (unsigned char)data[i]) * 0x100000001b3ull;
    return h ^ h >> 32;
}

static uint64_t hash_pair(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15ull;
    return h ^ h >> 29;
}

static int32_t find_text(const struct llm_tokenizer *t, const char *data, size_t length)
{
    for (size_t at = hash_text(data, length) & t->by_text_mask; t->by_text[at] != NONE; at = (at + 1) & t->by_text_mask) {
        const struct llm_text *text = &t->texts[t->by_text[at]];
        if (text->length == length && memcmp(text->data, data, length) == 0)
            return t->by_text[at];
    }
    return NONE;
}

static const struct merge *find_merge(const struct llm_tokenizer *t, int32_t left, int32_t right)
{
    for (size_t at = hash_pair(left, right) & t->merges_mask; t->merges[at].left != NONE; at = (at + 1) & t->merges_mask)
        if (t->merges[at].left == left && t->merges[at].right == right)
            return &t->merges[at];
    return NULL;
}

/* GPT-2 writes bytes as printable characters: those that are printable in Latin-1 stand for themselves, the others
 * follow from U+0100 in order. */
static void map_bytes(struct llm_tokenizer *t)
{
    uint16_t next = 256;
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
        t->byte_char[b] = printable ? (uint16_t)b : next++;
        t->char_byte[t->byte_char[b]] = (uint8_t)b;
    }
    for (unsigned b = 0; b < 256; b++) {
        uint16_t c = t->byte_char[b];
        char utf8[2] = {(char)(0xc0 | c >> 6), (char)(0x80 | (c & 0x3f))};
        char ascii = (char)c;
        t->byte_token[b] = c < 0x80 ? find_text(t, &ascii, 1) : find_text(t, utf8, 2);
    }
}

static size_t table_size(uint64_t entries)
{
    size_t size = 16;
    while (size < 2 * entries)
        size *= 2;
    return size;
}

static bool load_tokens(struct llm_tokenizer *t, const struct llm_gguf *g, struct llm_error *error)
{
    const struct llm_gguf_value *tokens = llm_gguf_array(g, "tokenizer.ggml.tokens", LLM_GGUF_STRING);
    const struct llm_gguf_value *types = llm_gguf_array(g, "tokenizer.ggml.token_type", LLM_GGUF_I32);
    if (!tokens || tokens->count == 0 || tokens->count > TOKENS_MAX)
        return llm_error_set(error, "the model has no usable list of tokens (tokenizer.ggml.tokens)");
    t->size = (uint32_t)tokens->count;
    size_t places = table_size(t->size);
    t->by_text_mask = places - 1;
    t->texts = calloc(t->size, sizeof *t->texts);
    t->control = calloc(t->size, 1);
    t->by_text = malloc(places * sizeof *t->by_text);
    if (!t->texts || !t->control || !t->by_text)
        return llm_error_set(error, "out of memory for %u tokens", t->size);
    memset(t->by_text, 0xff, places * sizeof *t->by_text);
    const uint8_t *at = tokens->data;
    for (uint32_t i = 0; i < t->size && llm_gguf_next_string(tokens, &at, &t->texts[i]); i++) {
        if (types && i < types->count) {
            int32_t type;
            memcpy(&type, types->data + 4 * (size_t)i, 4);
            t->control[i] = type == TYPE_CONTROL;
        }
        if (find_text(t, t->texts[i].data, t->texts[i].length) != NONE)
            continue; /* the first of equal texts counts */
        size_t place = hash_text(t->texts[i].data, t->texts[i].length) & t->by_text_mask;
        while (t->by_text[place] != NONE)
            place = (place + 1) & t->by_text_mask;
        t->by_text[place] = (int32_t)i;
    }
    return true;
}

static void add_merge(struct llm_tokenizer *t, struct llm_text line, uint32_t rank)
{
    /* "left right"; a blank inside a token is written as another character, so the first blank separates. */
    const char *blank = line.length > 1 ? memchr(line.data + 1, ' ', line.length - 1) : NULL;
    char joined[512];
    if (!blank || line.length > sizeof joined)
        return;
    size_t n_left = (size_t)(blank - line.data), n_right = line.length - n_left - 1;
    memcpy(joined, line.data, n_left);
    memcpy(joined + n_left, blank + 1, n_right);
    struct merge m = {.left = find_text(t, line.data, n_left),
                      .right = find_text(t, blank + 1, n_right),
                      .joined = find_text(t, joined, n_left + n_right),
                      .rank = rank};
    if (m.left == NONE || m.right == NONE || m.joined == NONE || find_merge(t, m.left, m.right))
        return;
    size_t place = hash_pair(m.left, m.right) & t->merges_mask;
    while (t->merges[place].left != NONE)
        place = (place + 1) & t->merges_mask;
    t->merges[place] = m;
}

static bool load_merges(struct llm_tokenizer *t, const struct llm_gguf *g, struct llm_error *error)
{
    const struct llm_gguf_value *merges = llm_gguf_array(g, "tokenizer.ggml.merges", LLM_GGUF_STRING);
    uint64_t count = merges ? merges->count : 0;
    if (count > TOKENS_MAX)
        return llm_error_set(error, "the model's list of merges is too long");
    size_t places = table_size(count);
    t->merges_mask = places - 1;
    t->merges = malloc(places * sizeof *t->merges);
    if (!t->merges)
        return llm_error_set(error, "out of memory for %llu merges", (unsigned long long)count);
    for (size_t i = 0; i < places; i++)
        t->merges[i].left = NONE;
    struct llm_text line;
    const uint8_t *at = merges ? merges->data : NULL;
    for (uint32_t rank = 0; rank < count && llm_gguf_next_string(merges, &at, &line); rank++)
        add_merge(t, line, rank);
    return true;
}

static int32_t load_id(const struct llm_tokenizer *t, const struct llm_gguf *g, const char *key)
{
    uint64_t id;
    return llm_gguf_uint(g, key, &id) && id < t->size ? (int32_t)id : NONE;
}

bool llm_tokenizer_create(const struct llm_gguf *g, struct llm_tokenizer **out, struct llm_error *error)
{
    struct llm_text kind = {0}, pre = {0};
    if (!llm_gguf_string(g, "tokenizer.ggml.model", &kind) || kind.length != 4 || memcmp(kind.data, "gpt2", 4) != 0)
        return llm_error_set(error, "the model's tokenizer is '%.*s'; only byte-level BPE ('gpt2') is read",
                             (int)(kind.length < 32 ? kind.length : 32), kind.data ? kind.data : "");
    struct llm_tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return llm_error_set(error, "out of memory");
    if (!load_tokens(t, g, error) || !load_merges(t, g, error)) {
        llm_tokenizer_destroy(t);
        return false;
    }
    llm_gguf_string(g, "tokenizer.ggml.pre", &pre);
    t->single_digits = pre.length == 6 && memcmp(pre.data, "smollm", 6) == 0;
    t->end = load_id(t, g, "tokenizer.ggml.eos_token_id");
    t->unknown = load_id(t, g, "tokenizer.ggml.unknown_token_id");
    map_bytes(t);
    *out = t;
    return true;
}

void llm_tokenizer_destroy(struct llm_tokenizer *t)
{
    if (!t)
        return;
    free(t->texts);
    free(t->control);
    free(t->by_text);
    free(t->merges);
    free(t);
}

uint32_t llm_tokenizer_size(const struct llm_tokenizer *t)
{
    return t->size;
}

int32_t llm_tokenizer_end(const struct llm_tokenizer *t)
{
    return t->end;
}

/* Ids of one word, at most WORD_MAX bytes, into out; returns how many. */
static size_t encode_word(const struct llm_tokenizer *t, const char *word, size_t length, int32_t *out)
{
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        int32_t id = t->byte_token[(unsigned char)word[i]];
        id = id == NONE ? t->unknown : id; /* a byte that the vocabulary leaves out */
        if (id != NONE)
            out[n++] = id;
    }
    for (;;) {
        const struct merge *best = NULL;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            const struct merge *m = find_merge(t, out[i], out[i + 1]);
            if (m && (!best || m->rank < best->rank)) {
                best = m;
                at = i;
            }
        }
        if (!best)
            return n;
        out[at] = best->joined;
        memmove(out + at + 1, out + at + 2, (n - at - 2) * sizeof *out);
        n--;
    }
}

/* The control token that is written at the start of the text, the longest such; NONE for none. */
static int32_t control_at(const struct llm_tokenizer *t, const char *text, size_t length, size_t *bytes)
{
    int32_t found = NONE;
    *bytes = 0;
    for (uint32_t i = 0; i < t->size; i++) {
        const struct llm_text *c = &t->texts[i];
        if (t->control[i] && c->length > *bytes && c->length <= length && memcmp(c->data, text, c->length) == 0) {
            found = (int32_t)i;
            *bytes = c->length;
        }
    }
    return found;
}

bool llm_tokenizer_encode(const struct llm_tokenizer *t, const char *text, size_t length, bool specials, int32_t **out,
                          size_t *count)
{
    int32_t *ids = malloc((length + 1) * sizeof *ids); /* never more tokens than bytes */
    size_t n = 0;
    if (!ids)
        return false;
    while (length > 0) {
        size_t bytes = 0, plain = length;
        if (specials) {
            int32_t control = control_at(t, text, length, &bytes);
            if (control != NONE) {
                ids[n++] = control;
                text += bytes;
                length -= bytes;
                continue;
            }
            for (plain = 1; plain < length; plain++) /* words do not run into a control token */
                if (text[plain] == '<' && control_at(t, text + plain, length - plain, &bytes) != NONE)
                    break;
        }
        while (plain > 0) {
            size_t word = llm_words_next(text, plain, t->single_digits);
            word = word > WORD_MAX ? WORD_MAX : word;
            n += encode_word(t, text, word, ids + n);
            text += word;
            length -= word;
            plain -= word;
        }
    }
    *out = ids;
    *count = n;
    return true;
}

size_t llm_tokenizer_decode(const struct llm_tokenizer *t, int32_t token, char *out, size_t size)
{
    if (token < 0 || (uint32_t)token >= t->size)
        return 0;
    const struct llm_text *text = &t->texts[token];
    size_t n = 0;
    for (size_t i = 0; i < text->length && n < size; i++) {
        unsigned char c = (unsigned char)text->data[i];
        unsigned stands = c; /* the character here, if it is one that stands for a byte */
        bool two = c >= 0xc2 && c <= 0xc5 && i + 1 < text->length;
        if (two)
            stands = (c & 0x1fu) << 6 | ((unsigned char)text->data[i + 1] & 0x3f);
        bool known = !t->control[token] && t->byte_char[t->char_byte[stands]] == stands;
        out[n++] = known ? (char)t->char_byte[stands] : (char)c;
        i += known && two;
    }
    return n;
}
