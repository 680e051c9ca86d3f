#include "record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_BYTES 96
#define ENTRY_BYTES 16

static void put32(uint8_t *to, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        to[i] = (uint8_t)(value >> 8 * i);
}

static void put_float(uint8_t *to, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put32(to, bits);
}

static void write_all(struct llm_record *r, const void *bytes, size_t n)
{
    r->failed |= fwrite(bytes, 1, n, r->file) != n;
    r->bytes += n;
}

/* An attend that was tried again comes again from its head 0 on: told by the order, and left out. */
static bool seen_before(const struct llm_record *r, const struct kvf_selection *s)
{
    return r->begun && s->first == r->first && (s->layer < r->layer || (s->layer == r->layer && s->head <= r->head));
}

static void observe(const struct kvf_selection *s, void *arg)
{
    struct llm_record *r = arg;
    uint8_t entry[ENTRY_BYTES], word[4];
    if (r->failed || seen_before(r, s))
        return;
    if (r->begun && s->first != r->first)
        r->steps++;
    r->begun = true;
    r->first = s->first;
    r->layer = s->layer;
    r->head = s->head;
    put32(entry, r->steps);
    put32(entry + 4, s->layer | s->head << 16);
    put32(entry + 8, s->chunks);
    put32(entry + 12, s->best);
    write_all(r, entry, sizeof entry);
    for (uint32_t from = 0, at = 0; from < s->chunks; from += 32) {
        uint32_t bits = 0;
        for (; at < s->n_chosen && s->chosen[at] < from + 32; at++)
            bits |= 1u << (s->chosen[at] - from);
        put32(word, bits);
        write_all(r, word, sizeof word);
    }
    for (uint32_t c = 0; c < s->chunks; c++) {
        put_float(word, s->scores[c]);
        write_all(r, word, sizeof word);
    }
}

bool llm_record_start(struct llm_record *r, const char *path, const struct kvf_model_desc *model, float budget,
                      struct kvf_session *session, struct llm_error *error)
{
    uint8_t head[HEAD_BYTES] = {'K', 'V', 'F', 'S', 'E', 'L', 'E', 'C', 1};
    *r = (struct llm_record){.file = fopen(path, "wb")};
    if (!r->file)
        return llm_error_set(error, "cannot create %s: %s", path, strerror(errno));
    put32(head + 12, model->layers);
    put32(head + 16, model->kv_heads);
    put32(head + 20, model->chunk_tokens);
    put_float(head + 24, budget);
    memcpy(head + 32, model->name, strnlen(model->name, HEAD_BYTES - 32 - 1));
    write_all(r, head, sizeof head);
    return kvf_session_observe(session, observe, r) == KVF_OK || llm_error_set(error, "cannot observe the session");
}

bool llm_record_end(struct llm_record *r, struct kvf_session *session, struct llm_error *error)
{
    if (!r->file)
        return true;
    if (session)
        kvf_session_observe(session, NULL, NULL);
    r->failed |= fclose(r->file) != 0;
    r->file = NULL;
    return !r->failed || llm_error_set(error, "the selection log could not be written: %s", strerror(errno));
}
