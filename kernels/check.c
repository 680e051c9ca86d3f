/* The bounds that dev.h states, tested in one place for all CPU tables. */
#include "kernels/cpu.h"

static bool dim_ok(uint32_t dim)
{
    return dim >= 16 && dim <= 512 && dim % 16 == 0;
}

bool kvf_check_copies(const struct kvf_copy *copies, size_t n)
{
    if (n && !copies)
        return false;
    for (size_t i = 0; i < n; i++)
        if (copies[i].bytes && (!copies[i].from || !copies[i].to))
            return false;
    return true;
}

bool kvf_check_copy_checksum(const void *to, const void *from, size_t bytes, size_t chunk_bytes, const uint64_t *out)
{
    return chunk_bytes && (!bytes || (to && from && out));
}

bool kvf_check_convert(const void *to, enum kvf_dtype to_type, const void *from, enum kvf_dtype from_type, size_t n)
{
    return kvf_cpu_element(to_type) && kvf_cpu_element(from_type) && (!n || (to && from));
}

bool kvf_check_summarise(enum kvf_summary_kind kind, const void *k, enum kvf_dtype dtype, uint32_t tokens, uint32_t dim_k,
                         const float *summary)
{
    return (kind == KVF_SUMMARY_MEAN || kind == KVF_SUMMARY_MINMAX) && k && kvf_cpu_element(dtype) && tokens && dim_ok(dim_k) &&
           summary;
}

bool kvf_check_score(enum kvf_summary_kind kind, const float *summaries, uint32_t n_chunks, uint32_t dim_k, const float *q,
                     size_t q_stride, uint32_t group, const float *scores)
{
    if ((kind != KVF_SUMMARY_MEAN && kind != KVF_SUMMARY_MINMAX) || !dim_ok(dim_k) || !group || !q)
        return false;
    return (group == 1 || q_stride >= dim_k) && (!n_chunks || (summaries && scores));
}

bool kvf_check_topk(const float *scores, uint32_t n, uint32_t k, const uint32_t *indices, const uint32_t *count)
{
    return count && (!n || scores) && (!n || !k || indices);
}

bool kvf_check_attend(const struct kvf_attend *args)
{
    if (!args || !kvf_cpu_element(args->dtype) || !dim_ok(args->dim_k) || !dim_ok(args->dim_v) || !args->chunk_tokens)
        return false;
    if (args->n_chunks && !args->chunks)
        return false;
    for (uint32_t c = 0; c < args->n_chunks; c++)
        if (!args->chunks[c] || (uintptr_t)args->chunks[c] % 16)
            return false;
    if (!args->n_queries)
        return true;
    if (!args->q || !args->visible || !args->out || !args->lse)
        return false;
    if (args->n_queries > 1 && (args->q_stride < args->dim_k || args->out_stride < args->dim_v))
        return false;
    uint64_t tokens = (uint64_t)args->n_chunks * args->chunk_tokens;
    for (uint32_t r = 0; r < args->n_queries; r++)
        if (args->visible[r] > tokens)
            return false;
    return true;
}

bool kvf_check_merge(const struct kvf_merge *args)
{
    if (!args || !args->dim_v)
        return false;
    if (!args->n_queries)
        return true;
    if (!args->out || !args->lse || (args->n_queries > 1 && args->out_stride < args->dim_v))
        return false;
    if (args->n_parts && (!args->outs || !args->lses))
        return false;
    for (uint32_t p = 0; p < args->n_parts; p++)
        if (!args->outs[p] || !args->lses[p])
            return false;
    return true;
}

bool kvf_check_cold(const struct kvf_cold *shape, const void *block, const void *codes, const void *scales)
{
    if (!shape || (shape->format != KVF_COLD_INT8 && shape->format != KVF_COLD_FP8) || !kvf_cpu_element(shape->dtype))
        return false;
    return shape->n_chunks >= 1 && shape->n_chunks <= 64 && shape->chunk_tokens && dim_ok(shape->dim_k) && dim_ok(shape->dim_v) &&
           block && codes && scales;
}

static bool cache_step_ok(const struct kvf_cache_step *s)
{
    if (s->keep > s->slots || s->n_selected > KVF_CACHE_SELECTED_MAX || s->n_chunks > KVF_CACHE_CHUNKS_MAX || !s->result)
        return false;
    if (s->slots && (!s->chunk || !s->place || !s->state || !s->scratch))
        return false;
    if (s->blocks && (!s->block_chunks || !s->memory || !s->chunk_bytes || s->chunk_bytes % KVF_CACHE_UNIT))
        return false;
    if (s->shadow && s->clock.shift > KVF_SHADOW_SHIFT_MAX)
        return false;
    return !s->n_selected || (s->selected && s->places && s->misses);
}

bool kvf_check_cache_step(const struct kvf_cache_step *steps, size_t n)
{
    if (n && !steps)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!cache_step_ok(&steps[i]))
            return false;
    return true;
}

bool kvf_check_cache_forget(const struct kvf_cache_forget *parts, size_t n)
{
    if (n && !parts)
        return false;
    for (size_t i = 0; i < n; i++)
        if (parts[i].slots && !parts[i].chunk)
            return false;
    return true;
}
