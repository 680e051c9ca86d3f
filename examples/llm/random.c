#include "random.h"

#include "gguf.h"
#include "matmul.h"
#include "quant.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ALIGNMENT 32u
#define BYTE_TOKENS 256u
#define VOCABULARY (BYTE_TOKENS + 3)

const struct llm_random_shape llm_random_default = {
    .layers = 8, .embedding = 256, .ffn = 512, .q_heads = 4, .kv_heads = 2, .dim = 64, .context = 8192};

/* The file is written in two passes over the same list of tensors: first their descriptions, then their data. */
struct out {
    FILE *file;
    const struct llm_random_shape *shape;
    uint64_t random; /* state of the generator */
    uint64_t offset; /* of the next tensor */
    uint32_t tensors;
    bool data; /* the second pass */
};

static uint64_t next_random(struct out *o)
{
    uint64_t z = o->random += 0x9e3779b97f4a7c15ull; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static void put(struct out *o, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        fputc((int)(value >> (8 * i) & 255), o->file);
}

static void put_text(struct out *o, const char *text)
{
    put(o, strlen(text), 8);
    fputs(text, o->file);
}

static void put_key(struct out *o, const char *key, uint32_t type)
{
    put_text(o, key);
    put(o, type, 4);
}

static void put_uint(struct out *o, const char *key, uint32_t value)
{
    put_key(o, key, LLM_GGUF_U32);
    put(o, value, 4);
}

static void put_float(struct out *o, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(o, key, LLM_GGUF_F32);
    put(o, bits, 4);
}

static void put_string(struct out *o, const char *key, const char *value)
{
    put_key(o, key, LLM_GGUF_STRING);
    put_text(o, value);
}

static void put_array(struct out *o, const char *key, uint32_t type, uint64_t count)
{
    put_key(o, key, LLM_GGUF_ARRAY);
    put(o, type, 4);
    put(o, count, 8);
}

/* The tokens are the bytes in GPT-2's printable writing (tokenizer.c), then the control tokens. */
static void put_vocabulary(struct out *o)
{
    static const char *const controls[VOCABULARY - BYTE_TOKENS] = {"<|endoftext|>", "<|start|>", "<|end|>"};
    put_array(o, "tokenizer.ggml.tokens", LLM_GGUF_STRING, VOCABULARY);
    unsigned next = 256;
    for (unsigned b = 0; b < BYTE_TOKENS; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
        unsigned c = printable ? b : next++;
        char text[3] = {(char)c};
        if (c >= 0x80) {
            text[0] = (char)(0xc0 | c >> 6);
            text[1] = (char)(0x80 | (c & 0x3f));
        }
        put_text(o, text);
    }
    for (unsigned i = 0; i < VOCABULARY - BYTE_TOKENS; i++)
        put_text(o, controls[i]);
    put_array(o, "tokenizer.ggml.token_type", LLM_GGUF_I32, VOCABULARY);
    for (unsigned i = 0; i < VOCABULARY; i++)
        put(o, i < BYTE_TOKENS ? 1 : 3, 4);
    put_array(o, "tokenizer.ggml.merges", LLM_GGUF_STRING, 0);
}

static void put_values(struct out *o)
{
    const struct llm_random_shape *s = o->shape;
    put_string(o, "general.architecture", "llama");
    put_string(o, "general.name", "random");
    put_uint(o, "general.alignment", ALIGNMENT);
    put_uint(o, "llama.block_count", s->layers);
    put_uint(o, "llama.context_length", s->context);
    put_uint(o, "llama.embedding_length", s->embedding);
    put_uint(o, "llama.feed_forward_length", s->ffn);
    put_uint(o, "llama.attention.head_count", s->q_heads);
    put_uint(o, "llama.attention.head_count_kv", s->kv_heads);
    put_uint(o, "llama.attention.key_length", s->dim);
    put_uint(o, "llama.rope.dimension_count", s->dim);
    put_float(o, "llama.rope.freq_base", 10000.0f);
    put_float(o, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    put_string(o, "tokenizer.ggml.model", "gpt2");
    put_string(o, "tokenizer.ggml.pre", "smollm");
    put_uint(o, "tokenizer.ggml.eos_token_id", BYTE_TOKENS);
    put_uint(o, "tokenizer.ggml.unknown_token_id", BYTE_TOKENS);
    put_vocabulary(o);
}
#define VALUES 20u

/* One tensor of inputs x outputs: weights of mean 0 and the given spread, or ones when spread is 0. */
static void put_tensor(struct out *o, const char *name, uint32_t inputs, uint32_t outputs, float spread)
{
    uint64_t elements = (uint64_t)inputs * outputs, bytes = elements * 2;
    uint64_t padded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (!o->data) {
        put_text(o, name);
        put(o, outputs == 1 ? 1 : 2, 4);
        put(o, inputs, 8);
        if (outputs != 1)
            put(o, outputs, 8);
        put(o, LLM_QUANT_F16, 4);
        put(o, o->offset, 8);
        o->offset += padded;
        o->tensors++;
        return;
    }
    for (uint64_t i = 0; i < elements; i++) {
        /* The sum of four uniform numbers is near enough to a normal one; its variance is 1/3. */
        uint64_t r = next_random(o);
        float sum = (float)(r & 0xffff) + (float)(r >> 16 & 0xffff) + (float)(r >> 32 & 0xffff) + (float)(r >> 48);
        float value = spread > 0 ? (sum / 65536.0f - 2.0f) * 1.7320508f * spread : 1.0f;
        uint16_t half;
        llm_matmul_plain.to_half(&value, &half, 1);
        put(o, half, 2);
    }
    for (uint64_t i = bytes; i < padded; i++)
        fputc(0, o->file);
}

static float inverse_root(uint32_t n)
{
    float x = 1.0f; /* Newton, so that the file does not depend on a library's rounding */
    for (int i = 0; i < 60; i++)
        x = 0.5f * (x + 1.0f / ((float)n * x));
    return x;
}

static void put_tensors(struct out *o)
{
    const struct llm_random_shape *s = o->shape;
    float wide = inverse_root(s->embedding), narrow = inverse_root(s->ffn), heads = inverse_root(s->q_heads * s->dim);
    char name[64];
    put_tensor(o, "token_embd.weight", s->embedding, VOCABULARY, 1.0f);
    for (uint32_t i = 0; i < s->layers; i++) {
        const struct {
            const char *name;
            uint32_t inputs, outputs;
            float spread;
        } list[] = {
            {"attn_norm", s->embedding, 1, 0},
            {"attn_q", s->embedding, s->q_heads * s->dim, 3.0f * wide}, /* sharp: the text wanders */
            {"attn_k", s->embedding, s->kv_heads * s->dim, 3.0f * wide},
            {"attn_v", s->embedding, s->kv_heads * s->dim, wide},
            {"attn_output", s->q_heads * s->dim, s->embedding, 3.0f * heads},
            {"ffn_norm", s->embedding, 1, 0},
            {"ffn_gate", s->embedding, s->ffn, wide},
            {"ffn_up", s->embedding, s->ffn, wide},
            {"ffn_down", s->ffn, s->embedding, narrow},
        };
        for (size_t t = 0; t < sizeof list / sizeof list[0]; t++) {
            snprintf(name, sizeof name, "blk.%u.%s.weight", i, list[t].name);
            put_tensor(o, name, list[t].inputs, list[t].outputs, list[t].spread);
        }
    }
    put_tensor(o, "output_norm.weight", s->embedding, 1, 0);
    put_tensor(o, "output.weight", s->embedding, VOCABULARY, 2.0f * wide);
}

static void write_all(struct out *o)
{
    put(o, 0x46554747, 4);
    put(o, 3, 4);
    put(o, 3 + 9 * (uint64_t)o->shape->layers, 8);
    put(o, VALUES, 8);
    put_values(o);
    put_tensors(o);
    for (long at = ftell(o->file); at > 0 && at % ALIGNMENT; at++)
        fputc(0, o->file);
    o->data = true;
    put_tensors(o);
}

bool llm_random_write(const char *path, const struct llm_random_shape *shape, uint64_t seed, struct llm_error *error)
{
    char part[4096];
    struct out o = {.shape = shape, .random = seed};
    if ((size_t)snprintf(part, sizeof part, "%s.part", path) >= sizeof part)
        return llm_error_set(error, "the path of the new model is too long");
    o.file = fopen(part, "wb");
    if (!o.file)
        return llm_error_set(error, "cannot create the model %s: %s", part, strerror(errno));
    write_all(&o);
    bool ok = !ferror(o.file);
    ok = fclose(o.file) == 0 && ok && rename(part, path) == 0;
    if (!ok) {
        llm_error_set(error, "cannot write the model %s: %s", path, strerror(errno));
        unlink(part);
    }
    return ok;
}
