/* The element types of GGUF tensors that are read here, and their expansion to fp32. */
#ifndef LLM_QUANT_H
#define LLM_QUANT_H

#include <stddef.h>
#include <stdint.h>

/* Numbers of the format. */
enum llm_quant_type {
    LLM_QUANT_F32 = 0,
    LLM_QUANT_F16 = 1,
    LLM_QUANT_Q4_0 = 2,
    LLM_QUANT_Q4_1 = 3,
    LLM_QUANT_Q8_0 = 8,
    LLM_QUANT_Q6_K = 14,
};

struct llm_quant {
    uint32_t type;
    const char *name;
    uint32_t elements; /* of a block; rows are whole blocks */
    uint32_t bytes;    /* of a block */
    /* Expands `blocks` blocks. Any alignment of `from`. */
    void (*expand)(const uint8_t *from, size_t blocks, float *to);
};

/* NULL for a type that is not read here. */
const struct llm_quant *llm_quant_of(uint32_t type);

/* IEEE half to float, exact. */
float llm_quant_half(uint16_t half);
#endif
