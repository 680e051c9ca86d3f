/* A small model of the same architecture with random weights, for machines that cannot fetch a real one: the job is the
 * same, only the text makes no sense. */
#ifndef LLM_RANDOM_H
#define LLM_RANDOM_H

#include "error.h"

#include <stdint.h>

struct llm_random_shape {
    uint32_t layers, embedding, ffn, q_heads, kv_heads, dim, context;
};

/* 8 layers of 256, 4 query heads on 2 KV heads of 64, a context of 8192. */
extern const struct llm_random_shape llm_random_default;

/* Writes a GGUF file (F16; a vocabulary of the 256 bytes and three control tokens). The same seed gives the same file. A
 * file of that name is replaced once the new one is whole. */
bool llm_random_write(const char *path, const struct llm_random_shape *shape, uint64_t seed, struct llm_error *error);
#endif
