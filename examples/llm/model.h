/* A model of the Llama architecture, read from a GGUF file: its shape, and its weights as fp16 panels (matmul.h). */
#ifndef LLM_MODEL_H
#define LLM_MODEL_H

#include "gguf.h"
#include "matmul.h"
#include "pool.h"

struct llm_matrix {
    uint32_t outputs, inputs;
    uint16_t *panels; /* [ceil(outputs / LLM_PANEL)][inputs][LLM_PANEL] */
};

struct llm_layer {
    float *attention_norm, *ffn_norm; /* [embedding] */
    struct llm_matrix q, k, v, o, gate, up, down;
};

struct llm_model {
    /* Shape. */
    char name[64];       /* letters, digits, . _ - */
    uint64_t weights_id; /* hash of the whole file */
    uint32_t layers, embedding, ffn, q_heads, kv_heads, dim, rope_dims, vocabulary, context;
    float rope_base, norm_epsilon;

    /* Weights. The map of the file stays open: rows of the embedding are expanded from it. */
    struct llm_gguf gguf;
    const struct llm_matmul *matmul;
    const struct llm_tensor *embeddings;
    struct llm_layer *layer; /* [layers] */
    struct llm_matrix output;
    float *output_norm;   /* [embedding] */
    float *rope_frequency; /* [rope_dims / 2] radians per position */
    void *weights;        /* one mapping that holds all panels */
    size_t weights_bytes;
};

/* Reads and checks the file, expands the weights on the pool. On false nothing is kept. */
bool llm_model_load(struct llm_model *model, const char *path, struct llm_pool *pool, struct llm_error *error);
void llm_model_free(struct llm_model *model);

/* The input vector of a token (0 <= token < vocabulary). */
void llm_model_embed(const struct llm_model *model, int32_t token, float *out);
#endif
