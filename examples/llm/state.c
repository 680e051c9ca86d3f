#include "reader.h"
#include "run.h"

#define STATE_MAGIC 0x534d4c4cu /* "LLMS" */
#define STATE_VERSION 1u
#define STATE_BYTES 28u

/* Little-endian: magic, version, next token (4 bytes each), generated, prompt tokens (8 bytes each). */
static void put(uint8_t *to, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

enum kvf_status llm_state_save(struct kvf_session *session, const struct llm_state *state)
{
    uint8_t bytes[STATE_BYTES];
    put(bytes, STATE_MAGIC, 4);
    put(bytes + 4, STATE_VERSION, 4);
    put(bytes + 8, (uint32_t)state->next_token, 4);
    put(bytes + 12, state->generated, 8);
    put(bytes + 20, state->prompt_tokens, 8);
    return kvf_session_state_set(session, bytes, sizeof bytes);
}

enum kvf_status llm_state_load(struct kvf_session *session, struct llm_state *state)
{
    uint8_t bytes[KVF_STATE_BYTES_MAX];
    size_t size = sizeof bytes;
    enum kvf_status st = kvf_session_state_get(session, bytes, &size);
    if (st != KVF_OK)
        return st;
    struct llm_reader r = {.at = bytes, .end = bytes + size};
    bool ours = llm_reader_number(&r, 4) == STATE_MAGIC;
    ours = llm_reader_number(&r, 4) == STATE_VERSION && ours;
    struct llm_state read = {.next_token = (int32_t)llm_reader_number(&r, 4)};
    read.generated = llm_reader_number(&r, 8);
    read.prompt_tokens = llm_reader_number(&r, 8);
    if (r.bad || !ours || read.next_token < 0)
        return KVF_ERR_MODEL;
    *state = read;
    return KVF_OK;
}
