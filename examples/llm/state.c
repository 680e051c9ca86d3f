#include "run.h"

#include <base/bytes.h>

#define STATE_MAGIC 0x534d4c4cu /* "LLMS" */
#define STATE_VERSION 1u
#define STATE_BYTES 28u

enum kvf_status llm_state_save(struct kvf_session *session, const struct llm_state *state)
{
    uint8_t bytes[STATE_BYTES];
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_write_u32(&w, STATE_MAGIC);
    kvf_write_u32(&w, STATE_VERSION);
    kvf_write_u32(&w, (uint32_t)state->next_token);
    kvf_write_u64(&w, state->generated);
    kvf_write_u64(&w, state->prompt_tokens);
    return kvf_session_state_set(session, bytes, kvf_writer_used(&w));
}

enum kvf_status llm_state_load(struct kvf_session *session, struct llm_state *state)
{
    uint8_t bytes[KVF_STATE_BYTES_MAX];
    size_t size = sizeof bytes;
    enum kvf_status st = kvf_session_state_get(session, bytes, &size);
    if (st != KVF_OK)
        return st;
    struct kvf_reader r = kvf_reader_of(bytes, size);
    bool ours = kvf_read_u32(&r) == STATE_MAGIC;
    ours = kvf_read_u32(&r) == STATE_VERSION && ours;
    struct llm_state read = {.next_token = (int32_t)kvf_read_u32(&r)};
    read.generated = kvf_read_u64(&r);
    read.prompt_tokens = kvf_read_u64(&r);
    if (r.bad || !ours || read.next_token < 0)
        return KVF_ERR_MODEL;
    *state = read;
    return KVF_OK;
}
