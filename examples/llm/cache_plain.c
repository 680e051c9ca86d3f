/* The cache in ordinary memory, and the yardstick for KVFabric: blocks and chunks have the node's layout, and attention
 * is put together exactly as a node does it, so that the bits must agree. */
#include "cache.h"

#include <kernels/dev.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TILE_TOKENS 32u /* of a step, attended by one thread at a time; the result does not depend on it */
#define CHUNKS_MAX 64u  /* of a block, by kvf.h */

struct llm_cache_plain {
    struct llm_cache table;
    const struct llm_model *model;
    const struct kvf_dev *dev;
    struct llm_pool *pool;
    struct kvf_model_desc desc;
    size_t chunk_bytes, block_bytes;
    uint64_t blocks;    /* room, per layer and head */
    uint8_t *data;      /* [layer][kv head][block] */
    uint64_t committed; /* tokens */
    uint64_t first;     /* of the open step */
    uint32_t n;         /* of the open step; 0 when none is open */
    float *scratch;     /* [threads] partial results of one block */
    size_t scratch_floats;
};

/* One attend call, as the threads see it. */
struct job {
    struct llm_cache_plain *plain;
    const float *q;
    float *out;
    uint32_t layer, tiles;
    float scale;
};

/* Everything one tile needs: rows are token-major, row = token * group + query head within the group. */
struct tile {
    uint32_t rows, group;
    const float *q; /* gathered rows [rows][dim] */
    float *out;     /* running result [rows][dim] */
    float *lse;     /* [rows] */
    float *part;    /* the block's partial result */
    float *part_lse;
    uint32_t *visible;
};

static uint8_t *block_at(const struct llm_cache_plain *p, uint32_t layer, uint32_t head, uint64_t block)
{
    return p->data + (((uint64_t)layer * p->desc.kv_heads + head) * p->blocks + block) * p->block_bytes;
}

static enum kvf_status append(struct llm_cache *cache, uint32_t layer, const float *k, const float *v)
{
    struct llm_cache_plain *p = (struct llm_cache_plain *)cache;
    uint32_t heads = p->desc.kv_heads, dim = p->desc.dim_k;
    enum kvf_status st = KVF_OK;
    for (uint32_t t = 0; t < p->n; t++) {
        uint64_t position = p->first + t, block = position / LLM_BLOCK_TOKENS;
        uint32_t chunk = (uint32_t)(position % LLM_BLOCK_TOKENS) / p->desc.chunk_tokens;
        uint32_t row = (uint32_t)position % p->desc.chunk_tokens;
        for (uint32_t h = 0; h < heads && st == KVF_OK; h++) {
            uint8_t *keys = block_at(p, layer, h, block) + chunk * p->chunk_bytes;
            uint8_t *values = keys + p->chunk_bytes / 2;
            size_t from = ((size_t)t * heads + h) * dim, to = (size_t)row * dim * 2;
            st = p->dev->convert(p->dev, NULL, keys + to, KVF_F16, k + from, KVF_F32, dim);
            if (st == KVF_OK)
                st = p->dev->convert(p->dev, NULL, values + to, KVF_F16, v + from, KVF_F32, dim);
        }
    }
    return st;
}

/* Attention of the tile's rows over the blocks of one head, in rising order: the first block's result is the running
 * one, each later block's partial is merged into it as part 1. `end` is one past the last position that a row sees. */
static enum kvf_status attend_blocks(const struct llm_cache_plain *p, const struct job *job, uint32_t head, const struct tile *tile,
                                     uint64_t first, uint64_t end)
{
    uint32_t dim = p->desc.dim_k, per_block = LLM_BLOCK_TOKENS / p->desc.chunk_tokens;
    const void *chunks[CHUNKS_MAX];
    enum kvf_status st = KVF_OK;
    for (uint64_t block = 0; block * LLM_BLOCK_TOKENS < end && st == KVF_OK; block++) {
        uint64_t start = block * LLM_BLOCK_TOKENS;
        for (uint32_t c = 0; c < per_block; c++)
            chunks[c] = block_at(p, job->layer, head, block) + c * p->chunk_bytes;
        for (uint32_t r = 0; r < tile->rows; r++) {
            uint64_t sees = first + r / tile->group + 1; /* positions 0 .. sees-1 */
            uint64_t here = sees > start ? sees - start : 0;
            tile->visible[r] = (uint32_t)(here < LLM_BLOCK_TOKENS ? here : LLM_BLOCK_TOKENS);
        }
        uint64_t held = end - start < LLM_BLOCK_TOKENS ? end - start : LLM_BLOCK_TOKENS;
        struct kvf_attend args = {
            .chunks = chunks, .n_chunks = (uint32_t)(held + p->desc.chunk_tokens - 1) / p->desc.chunk_tokens,
            .chunk_tokens = p->desc.chunk_tokens, .dim_k = dim, .dim_v = dim, .dtype = KVF_F16,
            .q = tile->q, .q_stride = dim, .n_queries = tile->rows, .visible = tile->visible, .scale = job->scale,
            .out = block == 0 ? tile->out : tile->part, .out_stride = dim, .lse = block == 0 ? tile->lse : tile->part_lse,
        };
        st = p->dev->attend(p->dev, NULL, &args);
        if (block == 0 || st != KVF_OK)
            continue;
        struct kvf_merge merge = {
            .outs = (const float *const[]){tile->out, tile->part}, .lses = (const float *const[]){tile->lse, tile->part_lse},
            .n_parts = 2, .n_queries = tile->rows, .dim_v = dim, .out_stride = dim, .out = tile->out, .lse = tile->lse,
        };
        st = p->dev->merge(p->dev, NULL, &merge);
    }
    return st;
}

static void attend_tile(void *arg, unsigned item, unsigned thread)
{
    struct job *job = arg;
    struct llm_cache_plain *p = job->plain;
    uint32_t dim = p->desc.dim_k, group = p->desc.q_heads / p->desc.kv_heads, q_heads = p->desc.q_heads;
    /* The last tokens see most: they come first, so that no thread is left with a long tile at the end. */
    uint32_t head = item % p->desc.kv_heads, token = (job->tiles - 1 - item / p->desc.kv_heads) * TILE_TOKENS;
    uint32_t count = p->n - token < TILE_TOKENS ? p->n - token : TILE_TOKENS;
    size_t rows_max = (size_t)TILE_TOKENS * group;
    float *memory = p->scratch + thread * p->scratch_floats;
    float *q = memory;
    struct tile tile = {.rows = count * group, .group = group, .q = q};
    tile.out = q + rows_max * dim;
    tile.part = tile.out + rows_max * dim;
    tile.lse = tile.part + rows_max * dim;
    tile.part_lse = tile.lse + rows_max;
    tile.visible = (void *)(tile.part_lse + rows_max);
    for (uint32_t t = 0; t < count; t++) /* the heads of a group lie side by side in q and in out */
        memcpy(q + (size_t)t * group * dim, job->q + ((size_t)(token + t) * q_heads + head * group) * dim, group * dim * sizeof *q);
    enum kvf_status st = attend_blocks(p, job, head, &tile, p->first + token, p->first + token + count);
    for (uint32_t t = 0; t < count; t++) {
        float *to = job->out + ((size_t)(token + t) * q_heads + head * group) * dim;
        if (st == KVF_OK)
            memcpy(to, tile.out + (size_t)t * group * dim, group * dim * sizeof *to);
        else
            memset(to, 0xff, group * dim * sizeof *to); /* NaN: cannot happen with the bounds that the model was checked for */
    }
}

static enum kvf_status attend(struct llm_cache *cache, uint32_t layer, const float *q, float *out)
{
    struct llm_cache_plain *p = (struct llm_cache_plain *)cache;
    struct job job = {.plain = p, .q = q, .out = out, .layer = layer, .scale = 1.0f / sqrtf((float)p->desc.dim_k),
                      .tiles = (p->n + TILE_TOKENS - 1) / TILE_TOKENS};
    llm_pool_run(p->pool, job.tiles * p->desc.kv_heads, attend_tile, &job);
    return KVF_OK;
}

static enum kvf_status begin(struct llm_cache *cache, const int32_t *tokens, uint32_t n)
{
    struct llm_cache_plain *p = (struct llm_cache_plain *)cache;
    if (n == 0 || n > KVF_STEP_TOKENS_MAX)
        return KVF_ERR_INVALID;
    if (p->committed + n > p->blocks * LLM_BLOCK_TOKENS)
        return KVF_ERR_FULL;
    p->first = p->committed;
    p->n = n;
    return KVF_OK;
}

static enum kvf_status refill(struct llm_cache *cache, uint64_t first, uint32_t n)
{
    struct llm_cache_plain *p = (struct llm_cache_plain *)cache;
    if (n == 0 || n > KVF_STEP_TOKENS_MAX || first > p->committed || n > p->committed - first)
        return KVF_ERR_INVALID;
    p->first = first;
    p->n = n;
    return KVF_OK;
}

static enum kvf_status commit(struct llm_cache *cache)
{
    struct llm_cache_plain *p = (struct llm_cache_plain *)cache;
    if (p->n == 0)
        return KVF_ERR_STATE;
    if (p->first + p->n > p->committed)
        p->committed = p->first + p->n;
    p->n = 0;
    return KVF_OK;
}

static void abort_step(struct llm_cache *cache)
{
    ((struct llm_cache_plain *)cache)->n = 0;
}

struct llm_cache_plain *llm_cache_plain_create(const struct llm_model *model, struct llm_pool *pool, uint64_t tokens)
{
    struct llm_cache_plain *p = calloc(1, sizeof *p);
    if (!p || tokens == 0 || tokens > KVF_SESSION_TOKENS_MAX) {
        free(p);
        return NULL;
    }
    p->table = (struct llm_cache){begin, refill, append, attend, commit, abort_step, NULL, NULL};
    p->model = model;
    p->dev = kvf_dev_cpu();
    p->pool = pool;
    llm_cache_describe(model, &p->desc);
    p->chunk_bytes = (size_t)p->desc.chunk_tokens * 2 * p->desc.dim_k * sizeof(uint16_t);
    p->block_bytes = LLM_BLOCK_TOKENS / p->desc.chunk_tokens * p->chunk_bytes;
    p->blocks = (tokens + LLM_BLOCK_TOKENS - 1) / LLM_BLOCK_TOKENS;
    size_t rows = (size_t)TILE_TOKENS * (p->desc.q_heads / p->desc.kv_heads);
    p->scratch_floats = rows * (3 * p->desc.dim_k + 3);
    p->scratch_floats = (p->scratch_floats + 15) / 16 * 16;
    p->scratch = malloc(llm_pool_threads(pool) * p->scratch_floats * sizeof *p->scratch);
    size_t bytes = (size_t)p->desc.layers * p->desc.kv_heads * p->blocks * p->block_bytes;
    p->data = aligned_alloc(4096, bytes);
    if (!p->data || !p->scratch) {
        llm_cache_plain_destroy(p);
        return NULL;
    }
    /* Zeros: the part of a chunk that holds no token yet must not be NaN by accident. */
    memset(p->data, 0, bytes);
    return p;
}

void llm_cache_plain_destroy(struct llm_cache_plain *p)
{
    if (!p)
        return;
    free(p->data);
    free(p->scratch);
    free(p);
}

struct llm_cache *llm_cache_plain_table(struct llm_cache_plain *p)
{
    return &p->table;
}

void llm_cache_plain_cut(struct llm_cache_plain *p, uint64_t tokens)
{
    if (tokens < p->committed)
        p->committed = tokens;
    p->n = 0;
}
