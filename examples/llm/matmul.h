/* Matrix products of the engine.
 *
 * LAYOUT. A weight matrix is cut into panels of LLM_PANEL outputs; a panel is [inputs][LLM_PANEL] fp16, so the weights of
 * one input lie side by side and a decode step reads memory in one stream. The last panel is filled up with zeros.
 *
 * ORDER. Output o of token t is one chain of additions over the inputs 0, 1, 2, ...: it depends neither on the number of
 * tokens nor on how they are tiled nor on the thread. That is what makes the logits of a token the same bits whether it
 * was decoded alone or in a batch. The versions round differently from each other only where one has a fused
 * multiply-add and the other has not. */
#ifndef LLM_MATMUL_H
#define LLM_MATMUL_H

#include <stddef.h>
#include <stdint.h>

#define LLM_PANEL 32

struct llm_matmul {
    const char *name;
    /* y[t * y_stride + j] = sum over i of x[t * x_stride + i] * panel[i][j], for t < tokens and j < LLM_PANEL. */
    void (*panel)(const uint16_t *panel, size_t inputs, const float *x, size_t x_stride, size_t tokens, float *y, size_t y_stride);
    /* fp32 to fp16, to nearest even, NaN stays NaN. The same bits in all versions. */
    void (*to_half)(const float *from, uint16_t *to, size_t n);
};

/* The fastest that this CPU can run; KVF_CPU=plain|avx2|avx512 in the environment asks for a lesser one. */
const struct llm_matmul *llm_matmul_best(void);
/* By name, NULL when this CPU cannot run it. */
const struct llm_matmul *llm_matmul_named(const char *name);

extern const struct llm_matmul llm_matmul_plain, llm_matmul_avx2, llm_matmul_avx512;
#endif
