/* Layout of a file: magic, version, number of tensors, number of values; the values (key, type, data); the tensors' names,
 * dimensions, types and offsets; padding to the alignment; the tensors' bytes. */
#include "gguf.h"

#include "quant.h"
#include "reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define GGUF_MAGIC 0x46554747u /* "GGUF" */
#define ENTRIES_MAX 65536u     /* values, tensors: real files have some hundreds */
#define ALIGNMENT_MAX (1u << 20)

static const uint8_t type_bytes[LLM_GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static struct llm_text read_text(struct llm_reader *r)
{
    uint64_t length = llm_reader_number(r, 8);
    const uint8_t *data = llm_reader_bytes(r, length);
    return (struct llm_text){.data = (const char *)data, .length = data ? length : 0};
}

/* Steps over `count` elements of a type; false when they do not lie in the file. */
static bool skip_elements(struct llm_reader *r, uint32_t type, uint64_t count)
{
    if (type == LLM_GGUF_STRING) {
        for (uint64_t i = 0; i < count && !r->bad; i++)
            read_text(r);
        return !r->bad;
    }
    if (count > llm_reader_left(r) / type_bytes[type])
        return false;
    return llm_reader_bytes(r, count * type_bytes[type]) != NULL;
}

static bool read_value(struct llm_reader *r, struct llm_gguf_value *v, uint64_t index, struct llm_error *error)
{
    v->key = read_text(r);
    v->type = (uint32_t)llm_reader_number(r, 4);
    v->count = 1;
    v->element_type = v->type;
    if (!r->bad && v->type == LLM_GGUF_ARRAY) {
        v->element_type = (uint32_t)llm_reader_number(r, 4);
        v->count = llm_reader_number(r, 8);
    }
    if (r->bad)
        return llm_error_set(error, "the file ends inside metadata value %llu", (unsigned long long)index);
    if (v->element_type >= LLM_GGUF_TYPES || v->element_type == LLM_GGUF_ARRAY)
        return llm_error_set(error, "metadata value %llu has the unknown type %u", (unsigned long long)index, v->element_type);
    v->data = r->at;
    if (!skip_elements(r, v->element_type, v->count))
        return llm_error_set(error, "metadata value %llu (%.*s) reaches past the end of the file", (unsigned long long)index,
                             (int)(v->key.length < 64 ? v->key.length : 64), v->key.data);
    v->end = r->at;
    return true;
}

static bool read_tensor(struct llm_reader *r, struct llm_tensor *t, uint64_t *offset, uint64_t index, struct llm_error *error)
{
    t->name = read_text(r);
    t->n_dims = (uint32_t)llm_reader_number(r, 4);
    if (r->bad || t->n_dims < 1 || t->n_dims > 4)
        return llm_error_set(error, "tensor %llu has no name or not 1 to 4 dimensions", (unsigned long long)index);
    uint64_t elements = 1;
    for (unsigned d = 0; d < 4; d++) {
        t->dims[d] = d < t->n_dims ? llm_reader_number(r, 8) : 1;
        if (r->bad || t->dims[d] == 0 || __builtin_mul_overflow(elements, t->dims[d], &elements))
            return llm_error_set(error, "tensor %llu has impossible dimensions", (unsigned long long)index);
    }
    t->type = (uint32_t)llm_reader_number(r, 4);
    *offset = llm_reader_number(r, 8);
    if (r->bad)
        return llm_error_set(error, "the file ends inside the list of tensors");
    return true;
}

/* Finds the bytes of a tensor behind the list; `base` is where the data part begins. */
static bool place_tensor(const struct llm_gguf *g, struct llm_tensor *t, uint64_t base, uint64_t offset, uint64_t alignment,
                         struct llm_error *error)
{
    int shown = (int)(t->name.length < 64 ? t->name.length : 64);
    const struct llm_quant *quant = llm_quant_of(t->type);
    t->data = NULL;
    t->bytes = 0;
    if (!quant)
        return true; /* an error only if somebody wants this tensor */
    uint64_t rows = t->dims[1] * t->dims[2] * t->dims[3]; /* cannot overflow: the product of all four did not */
    uint64_t row_blocks = t->dims[0] / quant->elements, bytes;
    if (t->dims[0] % quant->elements || __builtin_mul_overflow(row_blocks, quant->bytes, &bytes) ||
        __builtin_mul_overflow(bytes, rows, &bytes))
        return llm_error_set(error, "tensor %.*s: its rows are not whole %s blocks", shown, t->name.data, quant->name);
    if (offset % alignment || offset > g->size || base > g->size - offset || bytes > g->size - offset - base)
        return llm_error_set(error, "tensor %.*s lies past the end of the file (truncated?)", shown, t->name.data);
    t->data = g->map + base + offset;
    t->bytes = bytes;
    return true;
}

static bool parse_tensors(struct llm_gguf *g, struct llm_reader *r, uint64_t *offsets, struct llm_error *error)
{
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (!read_tensor(r, &g->tensors[i], &offsets[i], i, error))
            return false;
    uint64_t alignment = 32;
    llm_gguf_uint(g, "general.alignment", &alignment);
    if (alignment == 0 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return llm_error_set(error, "general.alignment is not a power of two up to 1 MiB");
    uint64_t base = ((uint64_t)(r->at - g->map) + alignment - 1) & ~(alignment - 1);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (!place_tensor(g, &g->tensors[i], base, offsets[i], alignment, error))
            return false;
    return true;
}

static bool parse(struct llm_gguf *g, struct llm_error *error)
{
    struct llm_reader r = {.at = g->map, .end = g->map + g->size};
    if ((uint32_t)llm_reader_number(&r, 4) != GGUF_MAGIC)
        return llm_error_set(error, "not a GGUF file");
    g->version = (uint32_t)llm_reader_number(&r, 4);
    g->n_tensors = llm_reader_number(&r, 8);
    uint64_t n_values = llm_reader_number(&r, 8);
    if (r.bad)
        return llm_error_set(error, "the file ends inside its header");
    if (g->version != 2 && g->version != 3)
        return llm_error_set(error, "GGUF version %u, this reads little-endian versions 2 and 3", g->version);
    if (g->n_tensors > ENTRIES_MAX || n_values > ENTRIES_MAX)
        return llm_error_set(error, "the header claims more than %u values or tensors", ENTRIES_MAX);
    g->values = calloc(n_values + 1, sizeof *g->values);
    g->tensors = calloc(g->n_tensors + 1, sizeof *g->tensors);
    uint64_t *offsets = calloc(g->n_tensors + 1, sizeof *offsets);
    bool ok = true;
    if (!g->values || !g->tensors || !offsets)
        ok = llm_error_set(error, "out of memory");
    while (ok && g->n_values < n_values) {
        ok = read_value(&r, &g->values[g->n_values], g->n_values, error);
        g->n_values += ok;
    }
    ok = ok && parse_tensors(g, &r, offsets, error);
    free(offsets);
    return ok;
}

bool llm_gguf_parse(struct llm_gguf *g, const void *data, size_t size, struct llm_error *error)
{
    *g = (struct llm_gguf){.map = data, .size = size};
    bool ok = parse(g, error);
    if (!ok) {
        free(g->values);
        free(g->tensors);
        *g = (struct llm_gguf){0};
    }
    return ok;
}

bool llm_gguf_open(struct llm_gguf *g, const char *path, struct llm_error *error)
{
    struct llm_error cause;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return llm_error_set(error, "cannot open the model %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < 24) {
        close(fd);
        return llm_error_set(error, "cannot read the model %s: not a file of at least 24 bytes", path);
    }
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int failed = errno;
    close(fd);
    if (map == MAP_FAILED)
        return llm_error_set(error, "cannot map the model %s: %s", path, strerror(failed));
    if (!llm_gguf_parse(g, map, (size_t)st.st_size, &cause)) {
        munmap(map, (size_t)st.st_size);
        return llm_error_set(error, "cannot read the model %.200s: %.200s", path, cause.text);
    }
    return true;
}

void llm_gguf_close(struct llm_gguf *g)
{
    free(g->values);
    free(g->tensors);
    if (g->map)
        munmap((void *)g->map, g->size);
    *g = (struct llm_gguf){0};
}

static const struct llm_gguf_value *find(const struct llm_gguf *g, const char *key)
{
    size_t length = strlen(key);
    for (uint64_t i = 0; i < g->n_values; i++)
        if (g->values[i].key.length == length && memcmp(g->values[i].key.data, key, length) == 0)
            return &g->values[i];
    return NULL;
}

bool llm_gguf_uint(const struct llm_gguf *g, const char *key, uint64_t *out)
{
    const struct llm_gguf_value *v = find(g, key);
    if (!v || v->type >= LLM_GGUF_TYPES || v->type == LLM_GGUF_STRING || v->type == LLM_GGUF_ARRAY || v->type == LLM_GGUF_F32 ||
        v->type == LLM_GGUF_F64)
        return false;
    struct llm_reader r = {.at = v->data, .end = v->end};
    uint64_t raw = llm_reader_number(&r, type_bytes[v->type]);
    bool is_signed = v->type == LLM_GGUF_I8 || v->type == LLM_GGUF_I16 || v->type == LLM_GGUF_I32 || v->type == LLM_GGUF_I64;
    if (is_signed && (raw >> (8 * type_bytes[v->type] - 1)) & 1)
        return false;
    *out = raw;
    return true;
}

bool llm_gguf_float(const struct llm_gguf *g, const char *key, float *out)
{
    const struct llm_gguf_value *v = find(g, key);
    if (v && v->type == LLM_GGUF_F32) {
        memcpy(out, v->data, sizeof *out);
        return true;
    }
    if (v && v->type == LLM_GGUF_F64) {
        double wide;
        memcpy(&wide, v->data, sizeof wide);
        *out = (float)wide;
        return true;
    }
    return false;
}

bool llm_gguf_string(const struct llm_gguf *g, const char *key, struct llm_text *out)
{
    const struct llm_gguf_value *v = find(g, key);
    const uint8_t *at = v ? v->data : NULL;
    return v && v->type == LLM_GGUF_STRING && llm_gguf_next_string(v, &at, out);
}

const struct llm_gguf_value *llm_gguf_array(const struct llm_gguf *g, const char *key, enum llm_gguf_type element_type)
{
    const struct llm_gguf_value *v = find(g, key);
    return v && v->type == LLM_GGUF_ARRAY && v->element_type == (uint32_t)element_type ? v : NULL;
}

const struct llm_tensor *llm_gguf_tensor(const struct llm_gguf *g, const char *name)
{
    size_t length = strlen(name);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (g->tensors[i].name.length == length && memcmp(g->tensors[i].name.data, name, length) == 0)
            return &g->tensors[i];
    return NULL;
}

bool llm_gguf_next_string(const struct llm_gguf_value *value, const uint8_t **at, struct llm_text *out)
{
    if (*at >= value->end)
        return false;
    struct llm_reader r = {.at = *at, .end = value->end};
    *out = read_text(&r);
    *at = r.at;
    return !r.bad;
}
