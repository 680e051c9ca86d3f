#include "bench/selections.h"
#include "base/bytes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (4ull << 30)

bool kvf_selections_chose(const struct kvf_selections_entry *e, uint32_t chunk)
{
    return e->bits[chunk / 32 * 4 + chunk % 32 / 8] >> chunk % 8 & 1;
}

float kvf_selections_score(const struct kvf_selections_entry *e, uint32_t chunk)
{
    struct kvf_reader r = kvf_reader_of(e->scores + (size_t)chunk * 4, 4);
    uint32_t bits = kvf_read_u32(&r);
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

static const char *decode_head(struct kvf_selections *s, struct kvf_reader *r)
{
    const uint8_t *magic = kvf_read_bytes(r, 8);
    if (!magic || memcmp(magic, "KVFSELEC", 8) != 0)
        return "it is no selection log";
    uint32_t version = kvf_read_u32(r);
    s->layers = kvf_read_u32(r);
    s->heads = kvf_read_u32(r);
    s->chunk_tokens = kvf_read_u32(r);
    uint32_t budget = kvf_read_u32(r);
    kvf_read_u32(r);
    const uint8_t *model = kvf_read_bytes(r, sizeof s->model);
    if (version != 1)
        return "its version is not 1";
    if (!model || memchr(model, 0, sizeof s->model) == NULL)
        return "its head is cut short";
    memcpy(s->model, model, sizeof s->model);
    memcpy(&s->budget, &budget, sizeof s->budget);
    bool shape = s->layers >= 1 && s->heads >= 1 && s->layers <= 1024 && s->heads <= 1024 &&
                 s->layers * s->heads <= KVF_SELECTIONS_STREAMS_MAX;
    return shape && s->budget > 0 && s->budget < 1 ? NULL : "its head holds impossible numbers";
}

static uint32_t count_bits(const uint8_t *bits, uint32_t bytes)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < bytes; i++)
        n += (uint32_t)__builtin_popcount(bits[i]);
    return n;
}

/* The entry number `at` of the log. */
static const char *decode_entry(const struct kvf_selections *s, struct kvf_reader *r, uint64_t at, struct kvf_selections_entry *e)
{
    uint32_t streams = s->layers * s->heads, step = kvf_read_u32(r), stream = kvf_read_u32(r);
    e->chunks = kvf_read_u32(r);
    e->best = kvf_read_u32(r);
    if (r->bad || e->chunks > KVF_SELECTIONS_CHUNKS_MAX)
        return "an entry is cut short or has too many chunks";
    if (step != at / streams || (stream & 0xffff) != at % streams / s->heads || stream >> 16 != at % streams % s->heads)
        return "its entries are not in order of step, layer and head";
    uint32_t words = (e->chunks + 31) / 32;
    e->bits = kvf_read_bytes(r, (size_t)words * 4);
    e->scores = kvf_read_bytes(r, (size_t)e->chunks * 4);
    if (r->bad)
        return "an entry is cut short";
    e->chosen = count_bits(e->bits, words * 4);
    for (uint32_t c = e->chunks; c < words * 32; c++)
        if (kvf_selections_chose(e, c))
            return "an entry chose a chunk that is not there";
    return e->best <= e->chosen ? NULL : "an entry chose fewer chunks than for their score";
}

static const char *decode_entries(struct kvf_selections *s, struct kvf_reader *r)
{
    uint64_t room = 0, streams = (uint64_t)s->layers * s->heads, n = 0;
    for (; kvf_reader_left(r) > 0; n++) {
        if (n == room) {
            room = room ? room * 2 : streams;
            struct kvf_selections_entry *larger = realloc(s->entries, room * sizeof *larger);
            if (!larger)
                return "there is not enough memory for it";
            s->entries = larger;
        }
        struct kvf_selections_entry *e = &s->entries[n];
        const char *why = n / streams < KVF_SELECTIONS_STEPS_MAX ? decode_entry(s, r, n, e) : "it has too many steps";
        if (why)
            return why;
        if (n >= streams && e->chunks < s->entries[n - streams].chunks)
            return "the number of chunks falls";
        s->chosen += e->chosen;
        s->chosen_max = e->chosen > s->chosen_max ? e->chosen : s->chosen_max;
        s->chunks_max = e->chunks > s->chunks_max ? e->chunks : s->chunks_max;
    }
    s->steps = (uint32_t)(n / streams);
    if (n == 0 || n % streams)
        return "its last step is missing or not whole";
    return NULL;
}

const char *kvf_selections_decode(struct kvf_selections *out, const void *bytes, size_t size)
{
    struct kvf_selections s = {0};
    struct kvf_reader r = kvf_reader_of(bytes, size);
    const char *why = decode_head(&s, &r);
    if (!why)
        why = decode_entries(&s, &r);
    if (why)
        free(s.entries);
    else
        *out = s;
    return why;
}

static const char *read_file(FILE *f, uint8_t **out, size_t *size)
{
    size_t room = 1 << 20, n = 0, got;
    uint8_t *bytes = malloc(room);
    while (bytes && (got = fread(bytes + n, 1, room - n, f)) > 0) {
        n += got;
        if (n < room)
            continue;
        uint8_t *larger = room < FILE_BYTES_MAX ? realloc(bytes, room *= 2) : NULL;
        if (!larger)
            free(bytes);
        bytes = larger;
    }
    if (!bytes)
        return "it is too large";
    if (ferror(f)) {
        free(bytes);
        return "it cannot be read";
    }
    *out = bytes;
    *size = n;
    return NULL;
}

const char *kvf_selections_load(struct kvf_selections *out, const char *path)
{
    uint8_t *bytes = NULL;
    size_t size = 0;
    FILE *f = fopen(path, "rb");
    if (!f)
        return "it cannot be opened";
    const char *why = read_file(f, &bytes, &size);
    fclose(f);
    if (why)
        return why;
    why = kvf_selections_decode(out, bytes, size);
    if (why)
        free(bytes);
    else
        out->bytes = bytes;
    return why;
}

void kvf_selections_free(struct kvf_selections *s)
{
    free(s->entries);
    free(s->bytes);
    *s = (struct kvf_selections){0};
}
