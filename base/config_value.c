/* The table of settings, and values from and to text. */
#include "base/config_value.h"

#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#define NAME_MAX_BYTES 64
#define BOUNDS_MAX_BYTES 96

static const struct kvf_config_value table[] = {
#define KVF_SETTING(type, field, name, value, min, max, words, help) \
    {name, value, words, help, KVF_CONFIG_##type, offsetof(struct kvf_settings, field), min, max},
#include "base/config_table.h"
#undef KVF_SETTING
};
#define TABLE_COUNT (sizeof table / sizeof table[0])

struct unit {
    const char *suffix;
    uint64_t factor;
};
/* Largest first: printing takes the first that divides. */
static const struct unit size_units[] = {{"T", 1ull << 40}, {"G", 1ull << 30}, {"M", 1ull << 20}, {"k", 1ull << 10}, {"", 1}, {0}};
static const struct unit time_units[] = {{"s", 1000000000}, {"ms", 1000000}, {"us", 1000}, {"ns", 1}, {0}};
static const struct unit count_units[] = {{"", 1}, {0}};

static const struct unit *units_of(const struct kvf_config_value *value)
{
    assert(value->type == KVF_CONFIG_SIZE || value->type == KVF_CONFIG_TIME || value->type == KVF_CONFIG_COUNT);
    return value->type == KVF_CONFIG_SIZE ? size_units : value->type == KVF_CONFIG_TIME ? time_units : count_units;
}

const struct kvf_config_value *kvf_config_value_at(size_t index)
{
    return index < TABLE_COUNT ? &table[index] : NULL;
}

const struct kvf_config_value *kvf_config_value_find(const char *name, size_t length)
{
    for (size_t i = 0; i < TABLE_COUNT; i++)
        if (strlen(table[i].name) == length && !memcmp(table[i].name, name, length))
            return &table[i];
    return NULL;
}

/* Levenshtein's distance with one row, or `limit` as soon as it is known to be no less. Both strings are at most NAME_MAX_BYTES
 * long. */
static unsigned distance(const char *a, size_t a_length, const char *b, size_t b_length, unsigned limit)
{
    assert(a_length <= NAME_MAX_BYTES && b_length <= NAME_MAX_BYTES);
    unsigned row[NAME_MAX_BYTES + 1];
    if ((a_length > b_length ? a_length - b_length : b_length - a_length) >= limit)
        return limit;
    for (size_t j = 0; j <= b_length; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= a_length; i++) {
        unsigned diagonal = row[0], least = (unsigned)i;
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= b_length; j++) {
            unsigned best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
            if (best < least)
                least = best;
        }
        if (least >= limit)
            return limit;
    }
    return row[b_length];
}

const char *kvf_config_value_nearest(const char *name, size_t length)
{
    const char *best = table[0].name;
    unsigned best_distance = UINT32_MAX;
    if (length > NAME_MAX_BYTES)
        length = NAME_MAX_BYTES;
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        unsigned d = distance(name, length, table[i].name, strlen(table[i].name), best_distance);
        if (d < best_distance) {
            best = table[i].name;
            best_distance = d;
        }
    }
    return best;
}

const char *kvf_config_value_type(const struct kvf_config_value *value)
{
    static const char *const names[] = {"text", "size", "time", "count", "bool", "list"};
    assert((size_t)value->type < sizeof names / sizeof names[0]);
    return names[value->type];
}

static void print_number(const struct unit *units, uint64_t number, char *text, size_t size)
{
    const struct unit *unit = units;
    if (!number) {
        snprintf(text, size, "0");
        return;
    }
    while (number % unit->factor)
        unit++;
    assert(unit->suffix);
    snprintf(text, size, "%" PRIu64 "%s", number / unit->factor, unit->suffix);
}

/* The phrases are built once and then only read, so that every entry has a static string. */
static char bounds_text[TABLE_COUNT][BOUNDS_MAX_BYTES];
static pthread_once_t bounds_once = PTHREAD_ONCE_INIT;

static void build_bounds(void)
{
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        const struct kvf_config_value *value = &table[i];
        char low[32], high[32];
        switch (value->type) {
        case KVF_CONFIG_TEXT:
            snprintf(bounds_text[i], BOUNDS_MAX_BYTES, "at most %d bytes", KVF_CONFIG_TEXT_MAX - 1);
            break;
        case KVF_CONFIG_BOOL:
            snprintf(bounds_text[i], BOUNDS_MAX_BYTES, "true|false");
            break;
        case KVF_CONFIG_LIST:
            snprintf(bounds_text[i], BOUNDS_MAX_BYTES, "%s", value->words);
            break;
        case KVF_CONFIG_SIZE:
        case KVF_CONFIG_TIME:
        case KVF_CONFIG_COUNT:
            print_number(units_of(value), value->min, low, sizeof low);
            print_number(units_of(value), value->max, high, sizeof high);
            snprintf(bounds_text[i], BOUNDS_MAX_BYTES, "%s to %s", low, high);
            break;
        }
    }
}

const char *kvf_config_value_bounds(const struct kvf_config_value *value)
{
    assert(value >= table && value < table + TABLE_COUNT);
    pthread_once(&bounds_once, build_bounds);
    return bounds_text[value - table];
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* Digits and a unit, nothing else; false when it is anything else or does not fit 64 bits. */
static bool parse_number(const struct unit *units, const char *text, size_t length, uint64_t *out, const char **why)
{
    uint64_t number = 0;
    size_t at = 0;
    for (; at < length && text[at] >= '0' && text[at] <= '9'; at++) {
        if (__builtin_mul_overflow(number, 10, &number) || __builtin_add_overflow(number, (uint64_t)(text[at] - '0'), &number)) {
            *why = "is too large";
            return false;
        }
    }
    *why = units == size_units   ? "is not a size (digits, then k, M, G or T)"
           : units == time_units ? "is not a time (digits, then ns, us, ms or s)"
                                 : "is not a number";
    if (!at)
        return false;
    const char *suffix = text + at;
    size_t suffix_length = length - at;
    if (!suffix_length && !number) {
        *out = 0;
        return true;
    }
    /* "K" and "g" are as clear as "k" and "G"; among times "MS" is not. */
    char letter;
    if (units == size_units && suffix_length == 1) {
        letter = *suffix == 'K' ? 'k' : *suffix == 'm' || *suffix == 'g' || *suffix == 't' ? (char)(*suffix - 'a' + 'A') : *suffix;
        suffix = &letter;
    }
    for (const struct unit *unit = units; unit->suffix; unit++) {
        if (strlen(unit->suffix) != suffix_length || memcmp(unit->suffix, suffix, suffix_length))
            continue;
        if (__builtin_mul_overflow(number, unit->factor, out)) {
            *why = "is too large";
            return false;
        }
        return true;
    }
    return false;
}

static bool parse_bool(const char *text, size_t length, bool *out)
{
    static const char *const words[2][4] = {{"false", "no", "off", "0"}, {"true", "yes", "on", "1"}};
    for (unsigned i = 0; i < 8; i++) {
        const char *word = words[i / 4][i % 4];
        if (strlen(word) == length && !memcmp(word, text, length)) {
            *out = i / 4;
            return true;
        }
    }
    return false;
}

static bool in_list(const char *words, const char *text, size_t length)
{
    for (const char *word = words; length; ) {
        size_t word_length = strcspn(word, "|");
        if (word_length == length && !memcmp(word, text, length))
            return true;
        if (!word[word_length])
            return false;
        word += word_length + 1;
    }
    return false;
}

/* What a line of a file can hold, so that every value that is accepted can be dumped and read back. */
static bool is_line_text(const char *text, size_t length, const char **why)
{
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) {
            *why = "holds a control character";
            return false;
        }
        if (text[i] == '#' && (!i || is_space(text[i - 1]))) {
            *why = "holds a # after white space, which begins a comment";
            return false;
        }
    }
    *why = "is too long";
    return length < KVF_CONFIG_TEXT_MAX;
}

bool kvf_config_value_parse(const struct kvf_config_value *value, const char *text, size_t length,
                            struct kvf_settings *settings, const char **why)
{
    void *field = (char *)settings + value->offset;
    for (; length && is_space(*text); length--)
        text++;
    while (length && is_space(text[length - 1]))
        length--;

    uint64_t number;
    switch (value->type) {
    case KVF_CONFIG_BOOL:
        *why = "is neither true nor false";
        return parse_bool(text, length, field);
    case KVF_CONFIG_LIST:
        *why = "is none of the words";
        if (!in_list(value->words, text, length))
            return false;
        break;
    case KVF_CONFIG_TEXT:
        if (!is_line_text(text, length, why))
            return false;
        break;
    case KVF_CONFIG_SIZE:
    case KVF_CONFIG_TIME:
    case KVF_CONFIG_COUNT:
        if (!parse_number(units_of(value), text, length, &number, why))
            return false;
        *why = "is out of bounds";
        if (number < value->min || number > value->max)
            return false;
        memcpy(field, &number, sizeof number);
        return true;
    }
    assert(length < KVF_CONFIG_TEXT_MAX);
    memmove(field, text, length); /* the text may be the setting itself */
    memset((char *)field + length, 0, KVF_CONFIG_TEXT_MAX - length);
    return true;
}

void kvf_config_value_print(const struct kvf_config_value *value, const struct kvf_settings *settings, char *text, size_t size)
{
    const void *field = (const char *)settings + value->offset;
    switch (value->type) {
    case KVF_CONFIG_BOOL:
        snprintf(text, size, "%s", *(const bool *)field ? "true" : "false");
        return;
    case KVF_CONFIG_LIST:
    case KVF_CONFIG_TEXT:
        snprintf(text, size, "%s", (const char *)field);
        return;
    case KVF_CONFIG_SIZE:
    case KVF_CONFIG_TIME:
    case KVF_CONFIG_COUNT:
        print_number(units_of(value), *(const uint64_t *)field, text, size);
        return;
    }
}

void kvf_config_value_defaults(struct kvf_settings *settings)
{
    memset(settings, 0, sizeof *settings);
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        const char *why = "";
        bool fits = kvf_config_value_parse(&table[i], table[i].value, strlen(table[i].value), settings, &why);
        assert(fits && "a default of config_table.h is out of its own bounds");
        (void)fits;
    }
}
