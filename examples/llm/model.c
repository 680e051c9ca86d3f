#include "model.h"

#include "quant.h"

#include <kvf/kvf.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#define EMBEDDING_MAX (1u << 16)
#define CONTEXT_MAX KVF_SESSION_TOKENS_MAX
#define HUGE_PAGE (2u << 20)

/* A matrix to be filled from a tensor: the tensors of a model are listed first, then expanded on all threads. */
struct plan {
    const struct llm_tensor *tensor;
    struct llm_matrix *matrix;
    size_t offset;        /* of its panels in the mapping */
    unsigned first_panel; /* of all panels of the model */
};

struct loader {
    struct llm_model *model;
    struct llm_error *error;
    struct plan *plans; /* [7 * layers + 1] */
    unsigned n_plans, n_panels;
    size_t bytes;
    float *rows; /* [threads][longest row] */
    uint32_t row_max;
};

static bool read_uint(struct loader *l, const char *key, uint64_t low, uint64_t high, uint32_t *out)
{
    uint64_t value;
    if (!llm_gguf_uint(&l->model->gguf, key, &value))
        return llm_error_set(l->error, "the model lacks the setting %s", key);
    if (value < low || value > high)
        return llm_error_set(l->error, "the model's %s is %llu, not within %llu..%llu", key, (unsigned long long)value,
                             (unsigned long long)low, (unsigned long long)high);
    *out = (uint32_t)value;
    return true;
}

/* The general name, with what KVFabric does not take in a name replaced. */
static void read_name(struct llm_model *m)
{
    struct llm_text name = {0};
    llm_gguf_string(&m->gguf, "general.name", &name);
    size_t n = 0;
    for (; n < name.length && n + 1 < sizeof m->name; n++) {
        char c = name.data[n];
        bool keep = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
        m->name[n] = keep ? c : '-';
    }
    m->name[n] = '\0';
    if (n == 0)
        snprintf(m->name, sizeof m->name, "llama");
}

static bool read_shape(struct loader *l)
{
    struct llm_model *m = l->model;
    struct llm_text text;
    uint64_t value;
    if (!llm_gguf_string(&m->gguf, "general.architecture", &text) || text.length != 5 || memcmp(text.data, "llama", 5) != 0)
        return llm_error_set(l->error, "the model is not of the Llama architecture (general.architecture is not 'llama')");
    if (!read_uint(l, "llama.block_count", 1, 1024, &m->layers) ||
        !read_uint(l, "llama.embedding_length", 1, EMBEDDING_MAX, &m->embedding) ||
        !read_uint(l, "llama.feed_forward_length", 1, 1u << 18, &m->ffn) ||
        !read_uint(l, "llama.context_length", 1, UINT32_MAX, &m->context) ||
        !read_uint(l, "llama.attention.head_count", 1, 1024, &m->q_heads))
        return false;
    m->kv_heads = m->q_heads;
    if (llm_gguf_uint(&m->gguf, "llama.attention.head_count_kv", &value) &&
        !read_uint(l, "llama.attention.head_count_kv", 1, m->q_heads, &m->kv_heads))
        return false;
    if (m->q_heads % m->kv_heads)
        return llm_error_set(l->error, "the model's %u query heads are not a multiple of its %u KV heads", m->q_heads, m->kv_heads);
    m->dim = m->embedding / m->q_heads;
    if (llm_gguf_uint(&m->gguf, "llama.attention.key_length", &value) &&
        !read_uint(l, "llama.attention.key_length", 16, 512, &m->dim))
        return false;
    if (m->dim < 16 || m->dim > 512 || m->dim % 16)
        return llm_error_set(l->error, "the model's head dimension is %u, not a multiple of 16 within 16..512", m->dim);
    m->rope_dims = m->dim;
    if (llm_gguf_uint(&m->gguf, "llama.rope.dimension_count", &value) &&
        (!read_uint(l, "llama.rope.dimension_count", 2, m->dim, &m->rope_dims) || m->rope_dims % 2))
        return llm_error_set(l->error, "the model's llama.rope.dimension_count does not fit its heads");
    m->rope_base = 10000.0f;
    llm_gguf_float(&m->gguf, "llama.rope.freq_base", &m->rope_base);
    m->norm_epsilon = 1e-5f;
    llm_gguf_float(&m->gguf, "llama.attention.layer_norm_rms_epsilon", &m->norm_epsilon);
    m->context = m->context < CONTEXT_MAX ? m->context : CONTEXT_MAX;
    return true;
}

/* What a Llama file may ask for and this engine does not do: better refused than computed wrong. */
static bool refuse_unsupported(struct loader *l)
{
    const struct llm_gguf *g = &l->model->gguf;
    struct llm_text text;
    uint64_t value;
    if (llm_gguf_uint(g, "llama.expert_count", &value) && value > 0)
        return llm_error_set(l->error, "models with experts are not supported");
    if (llm_gguf_string(g, "llama.rope.scaling.type", &text) && !(text.length == 4 && memcmp(text.data, "none", 4) == 0))
        return llm_error_set(l->error, "rope scaling '%.*s' is not supported", (int)(text.length < 32 ? text.length : 32),
                             text.data);
    if (llm_gguf_tensor(g, "blk.0.attn_q.bias"))
        return llm_error_set(l->error, "biases in attention are not supported");
    return true;
}

static const struct llm_tensor *need_tensor(struct loader *l, const char *name, uint64_t inputs, uint64_t outputs)
{
    const struct llm_tensor *t = llm_gguf_tensor(&l->model->gguf, name);
    if (!t)
        llm_error_set(l->error, "the model lacks the tensor %s", name);
    else if (!t->data)
        llm_error_set(l->error, "tensor %s has element type %u; read are F32, F16, Q4_0, Q4_1, Q6_K, Q8_0", name, t->type);
    else if (t->dims[0] != inputs || t->dims[1] != outputs || t->dims[2] * t->dims[3] != 1)
        llm_error_set(l->error, "tensor %s is %llu x %llu, expected %llu x %llu", name, (unsigned long long)t->dims[0],
                      (unsigned long long)t->dims[1], (unsigned long long)inputs, (unsigned long long)outputs);
    else
        return t;
    return NULL;
}

static bool plan_matrix(struct loader *l, struct llm_matrix *matrix, const char *name, uint32_t inputs, uint32_t outputs)
{
    const struct llm_tensor *t = need_tensor(l, name, inputs, outputs);
    if (!t)
        return false;
    unsigned panels = (outputs + LLM_PANEL - 1) / LLM_PANEL;
    *matrix = (struct llm_matrix){.outputs = outputs, .inputs = inputs};
    l->plans[l->n_plans++] = (struct plan){.tensor = t, .matrix = matrix, .offset = l->bytes, .first_panel = l->n_panels};
    l->n_panels += panels;
    l->bytes += (size_t)panels * inputs * LLM_PANEL * sizeof(uint16_t); /* <= 2^18 * 2^18 * 2 for each of 7169 */
    l->row_max = inputs > l->row_max ? inputs : l->row_max;
    return true;
}

static bool load_vector(struct loader *l, float **out, const char *name, uint32_t length)
{
    const struct llm_tensor *t = need_tensor(l, name, length, 1);
    *out = t ? malloc(length * sizeof **out) : NULL;
    if (!*out)
        return t ? llm_error_set(l->error, "out of memory") : false;
    const struct llm_quant *quant = llm_quant_of(t->type);
    quant->expand(t->data, length / quant->elements, *out);
    return true;
}

static bool plan_layer(struct loader *l, uint32_t index)
{
    struct llm_model *m = l->model;
    struct llm_layer *layer = &m->layer[index];
    const struct {
        const char *name;
        struct llm_matrix *matrix;
        uint32_t inputs, outputs;
    } matrices[] = {
        {"attn_q", &layer->q, m->embedding, m->q_heads * m->dim},  {"attn_k", &layer->k, m->embedding, m->kv_heads * m->dim},
        {"attn_v", &layer->v, m->embedding, m->kv_heads * m->dim}, {"attn_output", &layer->o, m->q_heads * m->dim, m->embedding},
        {"ffn_gate", &layer->gate, m->embedding, m->ffn},          {"ffn_up", &layer->up, m->embedding, m->ffn},
        {"ffn_down", &layer->down, m->ffn, m->embedding},
    };
    char name[64];
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
        snprintf(name, sizeof name, "blk.%u.%s.weight", index, matrices[i].name);
        if (!plan_matrix(l, matrices[i].matrix, name, matrices[i].inputs, matrices[i].outputs))
            return false;
    }
    snprintf(name, sizeof name, "blk.%u.attn_norm.weight", index);
    if (!load_vector(l, &layer->attention_norm, name, m->embedding))
        return false;
    snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", index);
    return load_vector(l, &layer->ffn_norm, name, m->embedding);
}

/* Frequencies of the rotations; a file may divide them one by one (Llama 3). */
static bool load_rope(struct loader *l)
{
    struct llm_model *m = l->model;
    uint32_t pairs = m->rope_dims / 2;
    float *factors = NULL;
    m->rope_frequency = malloc(pairs * sizeof *m->rope_frequency);
    if (!m->rope_frequency)
        return llm_error_set(l->error, "out of memory");
    if (llm_gguf_tensor(&m->gguf, "rope_freqs.weight") && !load_vector(l, &factors, "rope_freqs.weight", pairs))
        return false;
    for (uint32_t i = 0; i < pairs; i++)
        m->rope_frequency[i] = (float)(pow(m->rope_base, -2.0 * i / m->rope_dims) / (factors ? factors[i] : 1.0f));
    free(factors);
    return true;
}

static bool plan_all(struct loader *l)
{
    struct llm_model *m = l->model;
    const struct llm_tensor *embeddings = llm_gguf_tensor(&m->gguf, "token_embd.weight");
    m->layer = calloc(m->layers, sizeof *m->layer);
    l->plans = calloc(7 * (size_t)m->layers + 1, sizeof *l->plans);
    if (!m->layer || !l->plans)
        return llm_error_set(l->error, "out of memory");
    m->vocabulary = embeddings && embeddings->dims[1] <= 1u << 24 ? (uint32_t)embeddings->dims[1] : 0;
    m->embeddings = need_tensor(l, "token_embd.weight", m->embedding, m->vocabulary);
    if (!m->embeddings || !load_vector(l, &m->output_norm, "output_norm.weight", m->embedding) || !load_rope(l))
        return false;
    for (uint32_t i = 0; i < m->layers; i++)
        if (!plan_layer(l, i))
            return false;
    const char *output = llm_gguf_tensor(&m->gguf, "output.weight") ? "output.weight" : "token_embd.weight"; /* tied */
    return plan_matrix(l, &m->output, output, m->embedding, m->vocabulary);
}

/* Expands the outputs of one panel row by row and writes each as a column of the panel. */
static void fill_panel(void *arg, unsigned item, unsigned thread)
{
    struct loader *l = arg;
    unsigned low = 0, high = l->n_plans - 1;
    while (low < high) { /* the last plan that begins at or before this panel */
        unsigned middle = (low + high + 1) / 2;
        if (l->plans[middle].first_panel <= item)
            low = middle;
        else
            high = middle - 1;
    }
    const struct plan *p = &l->plans[low];
    const struct llm_quant *quant = llm_quant_of(p->tensor->type);
    uint32_t inputs = p->matrix->inputs, first = (item - p->first_panel) * LLM_PANEL;
    size_t row_bytes = (size_t)inputs / quant->elements * quant->bytes;
    float *row = l->rows + (size_t)thread * 2 * l->row_max;
    uint16_t *half = (void *)(row + l->row_max);
    uint16_t *panel = p->matrix->panels + (size_t)first * inputs;
    for (uint32_t j = 0; j < LLM_PANEL && first + j < p->matrix->outputs; j++) {
        quant->expand(p->tensor->data + (first + j) * row_bytes, inputs / quant->elements, row);
        l->model->matmul->to_half(row, half, inputs);
        for (uint32_t i = 0; i < inputs; i++)
            panel[(size_t)i * LLM_PANEL + j] = half[i];
    }
}

static bool fill(struct loader *l, struct llm_pool *pool)
{
    struct llm_model *m = l->model;
    size_t bytes = (l->bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    m->weights = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->weights == MAP_FAILED) {
        m->weights = NULL;
        return llm_error_set(l->error, "no memory for the model's weights (%zu MiB)", bytes >> 20);
    }
    m->weights_bytes = bytes;
    madvise(m->weights, bytes, MADV_HUGEPAGE); /* a hint: decoding reads all of it for every token */
    l->rows = malloc((size_t)llm_pool_threads(pool) * 2 * l->row_max * sizeof *l->rows);
    if (!l->rows)
        return llm_error_set(l->error, "out of memory");
    for (unsigned i = 0; i < l->n_plans; i++)
        l->plans[i].matrix->panels = (uint16_t *)((char *)m->weights + l->plans[i].offset);
    llm_pool_run(pool, l->n_panels, fill_panel, l);
    return true;
}

bool llm_model_load(struct llm_model *m, const char *path, struct llm_pool *pool, struct llm_error *error)
{
    struct llm_error cause = {{0}};
    struct loader l = {.model = m, .error = &cause};
    *m = (struct llm_model){.matmul = llm_matmul_best()};
    if (!llm_gguf_open(&m->gguf, path, error))
        return false;
    bool ok = read_shape(&l) && refuse_unsupported(&l) && plan_all(&l) && fill(&l, pool);
    free(l.plans);
    free(l.rows);
    if (!ok) {
        llm_error_set(error, "cannot use the model %.200s: %.250s", path, cause.text);
        llm_model_free(m);
        return false;
    }
    read_name(m);
    m->weights_id = XXH3_64bits(m->gguf.map, m->gguf.size);
    return true;
}

void llm_model_free(struct llm_model *m)
{
    for (uint32_t i = 0; m->layer && i < m->layers; i++) {
        free(m->layer[i].attention_norm);
        free(m->layer[i].ffn_norm);
    }
    free(m->layer);
    free(m->output_norm);
    free(m->rope_frequency);
    if (m->weights)
        munmap(m->weights, m->weights_bytes);
    llm_gguf_close(&m->gguf);
    *m = (struct llm_model){0};
}

void llm_model_embed(const struct llm_model *m, int32_t token, float *out)
{
    const struct llm_quant *quant = llm_quant_of(m->embeddings->type);
    size_t row_bytes = (size_t)m->embedding / quant->elements * quant->bytes;
    quant->expand(m->embeddings->data + (size_t)token * row_bytes, m->embedding / quant->elements, out);
}
