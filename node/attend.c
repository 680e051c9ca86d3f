/* Attention over a session's blocks, wherever they lie.
 *
 * Blocks are taken in rising order, all heads of one block index together. A *wave* is a run of block indices whose bytes are all
 * here; its heads and slices of query rows are computed by the workers, each row merging block after block, so that the result has
 * the same bits whatever came from where and whenever. While a wave is computed the reactor brings the next blocks, and behind
 * them those of the next layers. Bytes from below DRAM are verified by the thread that is about to use them. Blocks in a lender's
 * memory that is mapped here are used where they lie, and verified behind that: what was computed from one is merged only if its
 * bytes match and its lender did not write there since the view was opened; else a private copy decides. Blocks at another node
 * may be attended there instead (attend_remote.h): then their partial results come, and are merged in their place. */
#include "node/attend_remote.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SLICE_ROWS 96
#define WAVE_BLOCKS 32

struct kvf_scratch {
    struct kvf_want *wants; /* [blocks][kv_heads] */
    uint32_t wants_room;
    float *q, *out, *lse;   /* [kv_heads][rows][dim_k], [..][dim_v], [..]: the running results */
    uint8_t *cold;          /* a block decoded from 8 bits an element, [workers][block_bytes]; NULL: none was met yet */
    uint8_t *copies;        /* of blocks that changed where they lay, [workers][block_bytes]; NULL: no lender could be mapped */
    float *part, *part_lse; /* one partial result, [workers][SLICE_ROWS][..] */
    uint32_t rows_room;
    float *scores;          /* [chunks_room], unless the device cache wants them */
    float *thresholds;      /* [kv_heads] the lowest score that was chosen for its score */
    uint32_t *picked;
    uint32_t chunks_room;
};

/* One attend under way. */
struct attend {
    struct kvf_core *core;
    struct kvf_sess *sess;
    const struct kvf_session *handle;
    const struct kvf_model *model;
    struct kvf_scratch *scratch;
    uint32_t layer, n, group, rows; /* rows = n * group: query rows per KV head */
    uint32_t heads, blocks, slices;
    float scale;
    uint64_t deadline_ns;
    bool budgeted;
    bool device;                   /* through the device cache */
    uint32_t asked;                /* wants whose block was looked up and asked for */
    struct kvf_attend_plan plan;   /* what is asked of other nodes */
    uint32_t wave_from, wave_to;   /* block indices being computed */
    _Atomic bool bad;              /* a block did not verify */
};

void kvf_sess_scratch_free(struct kvf_sess *s)
{
    struct kvf_scratch *x = s->scratch;
    if (!x)
        return;
    free(x->wants);
    free(x->q);
    free(x->out);
    free(x->lse);
    free(x->part);
    free(x->part_lse);
    free(x->cold);
    free(x->copies);
    free(x->scores);
    free(x->thresholds);
    free(x->picked);
    free(x);
    s->scratch = NULL;
}

static bool grow(void *pointer, size_t bytes)
{
    void **p = pointer;
    void *fresh = realloc(*p, bytes);
    if (!fresh)
        return false;
    *p = fresh;
    return true;
}

/* Grows with the session and the largest step, so not in a steady state. */
static enum kvf_status scratch_room(struct attend *a)
{
    struct kvf_sess *s = a->sess;
    const struct kvf_model_desc *d = &a->model->desc;
    if (!s->scratch && !(s->scratch = calloc(1, sizeof *s->scratch)))
        return KVF_ERR_NO_MEMORY;
    struct kvf_scratch *x = a->scratch = s->scratch;
    if (!x->thresholds && !(x->thresholds = calloc(a->heads, sizeof *x->thresholds)))
        return KVF_ERR_NO_MEMORY;
    if (a->blocks * a->heads > x->wants_room) {
        uint32_t room = (a->blocks + 64) * 2 * a->heads, chunks = (a->blocks + 64) * 2 * a->model->chunks;
        if (!grow(&x->wants, room * sizeof *x->wants) || !grow(&x->scores, chunks * sizeof *x->scores) ||
            !grow(&x->picked, chunks * sizeof *x->picked))
            return KVF_ERR_NO_MEMORY;
        x->wants_room = room;
        x->chunks_room = chunks;
    }
    size_t blocks = ((size_t)kvf_workers_count(a->core->workers) * a->model->block_bytes + 63) / 64 * 64;
    if (a->model->cold && !x->cold && !(x->cold = aligned_alloc(64, blocks)))
        return KVF_ERR_NO_MEMORY;
    if (a->core->transport && !x->copies && !(x->copies = aligned_alloc(64, blocks)))
        return KVF_ERR_NO_MEMORY;
    if (a->rows > x->rows_room) {
        size_t rows = (size_t)a->heads * a->rows, part = (size_t)kvf_workers_count(a->core->workers) * SLICE_ROWS;
        if (!grow(&x->q, rows * d->dim_k * sizeof(float)) || !grow(&x->out, rows * d->dim_v * sizeof(float)) ||
            !grow(&x->lse, rows * sizeof(float)) || !grow(&x->part, part * d->dim_v * sizeof(float)) ||
            !grow(&x->part_lse, part * sizeof(float)))
            return KVF_ERR_NO_MEMORY;
        x->rows_room = a->rows;
    }
    return KVF_OK;
}

static struct kvf_want *want_at(struct attend *a, uint32_t block, uint32_t head)
{
    return &a->scratch->wants[(size_t)block * a->heads + head];
}

/* ---------------------------------------------------------------- which chunks */

static uint64_t all_chunks(const struct kvf_model *m)
{
    return m->chunks == 64 ? UINT64_MAX : (1ull << m->chunks) - 1;
}

static void choose_all(struct attend *a)
{
    for (uint32_t b = 0; b < a->blocks; b++)
        for (uint32_t h = 0; h < a->heads; h++)
            *want_at(a, b, h) = (struct kvf_want){.handle = KVF_HANDLE_NONE, .stage = KVF_STAGE_NONE, .mask = all_chunks(a->model)};
}

/* Tells the handle's observer what was chosen of the first `chunks` chunks. */
static void observed(struct attend *a, uint32_t head, uint32_t chunks, uint32_t best, const float *scores)
{
    struct kvf_scratch *x = a->scratch;
    struct kvf_selection seen = {.first = a->sess->step_first, .tokens = a->n, .layer = a->layer, .head = head, .chunks = chunks,
                                 .best = best, .scores = scores, .chosen = x->picked};
    for (uint32_t c = 0; c < chunks; c++)
        if (want_at(a, c / a->model->chunks, head)->mask >> c % a->model->chunks & 1)
            x->picked[seen.n_chosen++] = c;
    a->handle->observe(&seen, a->handle->observe_arg);
}

static float lowest(const float *scores, const uint32_t *picked, uint32_t n)
{
    float x = n ? scores[picked[0]] : 0;
    for (uint32_t i = 1; i < n; i++)
        x = scores[picked[i]] < x ? scores[picked[i]] : x;
    return x;
}

/* Under a budget: the chunks with the best scores (ShadowKV's rule over mean keys), the first and the last tokens always; blocks
 * whose summaries are not here (they lie at an earlier home) are taken whole. */
static enum kvf_status choose_best(struct attend *a, const struct kvf_attend_options *o)
{
    const struct kvf_model *m = a->model;
    struct kvf_sess *s = a->sess;
    struct kvf_scratch *x = a->scratch;
    uint32_t sealed = s->sealed_blocks < a->blocks ? s->sealed_blocks : a->blocks, chunks = sealed * m->chunks, count;
    uint32_t k = (uint32_t)ceilf(o->budget * (float)(a->blocks * m->chunks));
    uint32_t sink = ((o->sink_tokens ? o->sink_tokens : 4) + m->desc.chunk_tokens - 1) / m->desc.chunk_tokens;
    uint64_t end = s->step_first + a->n, local = o->local_tokens ? o->local_tokens : 64;
    uint32_t local_from = (uint32_t)((end > local ? end - local : 0) / m->desc.chunk_tokens);
    /* Decode steps: a prompt's would only push out what those want, and a refill sees another end of the session. */
    a->device = a->core->device && a->slices == 1 && !s->step_refill;
    for (uint32_t h = 0; h < a->heads; h++) {
        float *scores = a->device ? kvf_device_scores(s, h, chunks) : NULL;
        a->device = scores != NULL;
        scores = scores ? scores : x->scores;
        const float *summaries = s->summaries + (size_t)(a->layer * a->heads + h) * s->summary_chunks_room * m->summary_floats;
        enum kvf_status st =
            a->core->dev->score(a->core->dev, NULL, KVF_SUMMARY_MEAN, summaries, chunks, m->desc.dim_k,
                                x->q + (size_t)h * a->rows * m->desc.dim_k, m->desc.dim_k, a->rows, a->scale, scores);
        if (st == KVF_OK)
            st = a->core->dev->topk(a->core->dev, NULL, scores, chunks, k, x->picked, &count);
        if (st != KVF_OK)
            return st;
        x->thresholds[h] = lowest(scores, x->picked, count);
        for (uint32_t b = 0; b < a->blocks; b++) {
            kvf_handle handle = b < sealed ? kvf_sess_block(s, a->layer, h, b) : KVF_HANDLE_NONE;
            bool known = handle != KVF_HANDLE_NONE && (kvf_index_entry(a->core->index, handle)->flags & KVF_FLAG_SUMMARY);
            want_at(a, b, h)->mask = known ? 0 : all_chunks(m);
            want_at(a, b, h)->known = known;
        }
        for (uint32_t i = 0; i < count; i++)
            want_at(a, x->picked[i] / m->chunks, h)->mask |= 1ull << x->picked[i] % m->chunks;
        for (uint32_t c = 0; c < chunks; c++)
            if (c < sink || c >= local_from)
                want_at(a, c / m->chunks, h)->mask |= 1ull << c % m->chunks;
        if (a->handle->observe)
            observed(a, h, chunks, count, scores);
    }
    if (a->device)
        kvf_device_step(s, a->layer, x->wants, sealed, x->thresholds);
    return KVF_OK;
}

/* The next step will want much the same; what lies in the device cache need not be read for it. */
static void remember(struct attend *a)
{
    uint32_t sealed = a->sess->sealed_blocks < a->blocks ? a->sess->sealed_blocks : a->blocks;
    uint64_t *masks = kvf_ahead_masks(a->sess, a->layer, sealed);
    for (uint32_t i = 0; masks && i < sealed * a->heads; i++)
        masks[i] = a->scratch->wants[i].mask & ~(a->scratch->wants[i].cached | a->scratch->wants[i].fresh);
}

/* ---------------------------------------------------------------- asking for blocks (under the lock) */

/* Chunks that are not in the device cache. */
static uint64_t need(const struct kvf_want *w)
{
    return w->mask & ~w->cached;
}

static void count_view(struct attend *a, const struct kvf_want *w)
{
    struct kvf_counters *n = &a->core->counters;
    uint64_t chunks = (uint64_t)__builtin_popcountll(need(w));
    kvf_count(&n->view_chunks_read, chunks);
    kvf_count(&n->remote_chunks_read, chunks);
    kvf_count(&n->remote_bytes_read, chunks * (a->core->stages[w->stage].bytes / a->model->chunks));
}

/* Finds one block and asks for it. false: not now, for want of staging room as a rule. */
static bool ask(struct attend *a, uint32_t block, uint32_t head, enum kvf_status *st)
{
    struct kvf_core *core = a->core;
    struct kvf_want *w = want_at(a, block, head);
    if (need(w) == 0 || w->data || w->stage != KVF_STAGE_NONE || w->ask)
        return true;
    if (block >= a->sess->sealed_blocks) {
        uint32_t stream = a->layer * a->heads + head;
        uint64_t slot = a->sess->tail[stream * KVF_TAIL_BLOCKS + (block - a->sess->sealed_blocks)];
        w->data = core->memory + slot;
        return true;
    }
    w->handle = kvf_sess_block(a->sess, a->layer, head, block);
    struct kvf_entry *e = w->handle == KVF_HANDLE_NONE ? NULL : kvf_cluster_judge(core, w->handle);
    if (!e || e->state == KVF_BLOCK_LOST) {
        *st = KVF_LOST;
        return true;
    }
    if (e->state == KVF_BLOCK_WRITING && !a->sess->step_refill)
        return false; /* a session that shares it by fork refills it: it is whole, or lost again, when that ends */
    if (e->tier == KVF_TIER_DRAM) {
        if (!kvf_entry_pin(e))
            return false;
        w->dram_pinned = true;
        w->data = core->memory + kvf_entry_location(e);
        kvf_count(&core->counters.dram_chunks_read, (uint64_t)__builtin_popcountll(need(w)));
        kvf_count(&core->counters.dram_bytes_read, (uint64_t)__builtin_popcountll(need(w)) * a->model->chunk_bytes);
        return true;
    }
    enum kvf_status asked = kvf_attend_remote_add(&a->plan, w, block, head);
    if (asked != KVF_ERR_STATE)
        return asked == KVF_OK;
    w->sums = kvf_sums_at(core->sums, e->sums);
    w->stage = kvf_stage_get(core, w->handle, need(w), a->deadline_ns);
    if (w->stage != KVF_STAGE_NONE && core->stages[w->stage].view.data)
        count_view(a, w);
    return w->stage != KVF_STAGE_NONE;
}

/* Asks for as many blocks as staging takes, in the order in which they will be used. */
static enum kvf_status ask_ahead(struct attend *a)
{
    enum kvf_status st = KVF_OK;
    while (a->asked < a->blocks * a->heads && st == KVF_OK) {
        if (!ask(a, a->asked / a->heads, a->asked % a->heads, &st))
            break;
        a->asked++;
    }
    kvf_attend_remote_flush(&a->plan);
    return st;
}

static void unpin(struct attend *a, struct kvf_want *w)
{
    if (w->dram_pinned)
        kvf_block_let_go(a->core, w->handle);
    if (w->stage != KVF_STAGE_NONE)
        kvf_stage_unpin(a->core, w->stage);
    if (w->ask)
        kvf_attend_remote_drop(&a->plan, w);
    w->dram_pinned = false;
    w->stage = KVF_STAGE_NONE;
    w->data = NULL;
}

/* A want was asked for in vain. It, and what comes behind it, is asked for anew: it needs room in staging, which those must not
 * keep from it. */
static void pull_instead(struct attend *a, uint32_t i)
{
    for (uint32_t behind = i + 1; behind < a->asked; behind++)
        if (!a->scratch->wants[behind].ask)
            unpin(a, &a->scratch->wants[behind]);
    a->asked = i < a->asked ? i : a->asked;
}

/* ---------------------------------------------------------------- waiting (under the lock) */

/* Whether the bytes of a want are here; *st tells of a failure. */
static bool arrived(struct attend *a, struct kvf_want *w, enum kvf_status *st)
{
    if (need(w) == 0 || w->data)
        return true;
    if (w->ask) {
        enum kvf_status there = kvf_attend_remote_arrived(&a->plan, w);
        if (there == KVF_ERR_STATE)
            pull_instead(a, (uint32_t)(w - a->scratch->wants));
        return there == KVF_OK;
    }
    if (w->stage == KVF_STAGE_NONE)
        return false;
    struct kvf_stage *s = &a->core->stages[w->stage];
    if ((atomic_load_explicit(&s->have, memory_order_acquire) & need(w)) == need(w)) {
        w->data = s->slot;
        kvf_attend_remote_pulled(&a->plan, w);
        return true;
    }
    int failed = atomic_load(&s->status);
    if (failed != KVF_OK && s->inflight == 0) {
        struct kvf_entry *e = kvf_index_entry(a->core->index, w->handle);
        bool still = !s->orphan && e->state != KVF_BLOCK_LOST;
        /* The block went elsewhere while it was asked for (it rose, say), and the old place knows it no more: no loss. */
        if (still && (e->tier == KVF_TIER_DRAM || kvf_entry_place(e) != s->asked)) {
            kvf_stage_retry(a->core, w->stage, need(w), a->deadline_ns);
            return false;
        }
        if (failed == KVF_ERR_IO && still) {
            kvf_log_error(&a->core->log, "reading a block of session %llx from %s failed", (unsigned long long)e->key.hi,
                          kvf_tier_name((enum kvf_tier)e->tier));
            kvf_block_lose(a->core, w->handle);
            still = false;
        }
        if (still && failed == KVF_LOST)
            kvf_block_lose(a->core, w->handle);
        if (!still || failed == KVF_LOST)
            *st = KVF_LOST;
        else if (failed == KVF_ERR_BUSY || (failed == KVF_ERR_DEADLINE && kvf_now(a->core->env) < a->deadline_ns))
            /* no room to ask, or the deadline of somebody who asked before us */
            kvf_stage_retry(a->core, w->stage, need(w), a->deadline_ns);
        else
            *st = (enum kvf_status)failed;
    }
    return false;
}

/* How many block indices from `from` on are ready in all heads, at most WAVE_BLOCKS. */
static uint32_t ready_run(struct attend *a, uint32_t from, enum kvf_status *st)
{
    uint32_t b = from;
    for (; b < a->blocks && b - from < WAVE_BLOCKS; b++)
        for (uint32_t h = 0; h < a->heads; h++)
            if (!arrived(a, want_at(a, b, h), st))
                return b - from;
    return b - from;
}

static enum kvf_status wave_wait(struct attend *a, uint32_t from)
{
    struct kvf_core *core = a->core;
    enum kvf_status st = ask_ahead(a);
    uint64_t start = 0;
    for (;;) {
        if (st != KVF_OK)
            return st;
        uint32_t asked = a->asked, n = ready_run(a, from, &st);
        if (st == KVF_OK && n > 0) {
            a->wave_from = from;
            a->wave_to = from + n;
            if (start)
                kvf_latency_add(&core->latencies, KVF_LATENCY_ATTEND_WAIT, kvf_now(core->env) - start);
            return KVF_OK;
        }
        if (st != KVF_OK)
            return st;
        if (!start)
            start = kvf_now(core->env);
        if (a->asked == asked) { /* else something is to be pulled instead: at once */
            uint64_t now = kvf_now(core->env), late = kvf_attend_remote_late(&a->plan, now);
            kvf_core_wake(core);
            if (now >= a->deadline_ns)
                return KVF_ERR_DEADLINE;
            kvf_core_wait(core, late < a->deadline_ns ? late : a->deadline_ns);
        }
        st = ask_ahead(a);
    }
}

/* ---------------------------------------------------------------- computing (without the lock) */

static bool is_view(const struct attend *a, const struct kvf_want *w)
{
    return w->stage != KVF_STAGE_NONE && a->core->stages[w->stage].view.data;
}

static bool verify(struct attend *a, struct kvf_want *w)
{
    struct kvf_stage *s = &a->core->stages[w->stage];
    uint64_t unchecked = need(w) & ~atomic_load_explicit(&s->verified, memory_order_acquire);
    if (unchecked == 0)
        return true;
    kvf_count(&a->core->counters.blocks_verified, 1);
    if (!kvf_block_verify(a->core->dev, s->seed, w->data, s->bytes, s->bytes / a->model->chunks, unchecked, w->sums))
        return false;
    atomic_fetch_or_explicit(&s->verified, unchecked, memory_order_release);
    return true;
}

/* The chunks of a view that are needed, as they are now, for this worker; NULL: they do not match. */
static const uint8_t *copied(struct attend *a, const struct kvf_want *w, unsigned worker)
{
    const struct kvf_stage *s = &a->core->stages[w->stage];
    uint32_t chunk = s->bytes / a->model->chunks;
    uint8_t *copy = a->scratch->copies + (size_t)worker * a->model->block_bytes;
    assert(s->view.data && s->bytes <= a->model->block_bytes);
    for (uint64_t left = need(w); left; left &= left - 1) {
        size_t at = (size_t)__builtin_ctzll(left) * chunk;
        memcpy(copy + at, w->data + at, chunk);
    }
    kvf_count(&a->core->counters.views_changed, 1);
    return kvf_block_verify(a->core->dev, s->seed, copy, s->bytes, chunk, need(w), w->sums) ? copy : NULL;
}

/* The bytes that attention reads of a block at `from`: these, or decoded for this worker. */
static const uint8_t *exact_bytes(struct attend *a, const struct kvf_want *w, const uint8_t *from, unsigned worker)
{
    const struct kvf_model *m = a->model;
    const struct kvf_stage *s = w->stage == KVF_STAGE_NONE ? NULL : &a->core->stages[w->stage];
    if (!s || s->format == KVF_COLD_EXACT)
        return from;
    uint8_t *block = a->scratch->cold + (size_t)worker * m->block_bytes;
    kvf_cold_decode(a->core, m, (enum kvf_cold_format)s->format, need(w), from, w->sums, block);
    kvf_count(&a->core->counters.cold_chunks_decoded, (uint64_t)__builtin_popcountll(need(w)));
    return block;
}

/* A partial result of n rows, `part`, is merged into the running one. */
static void merge_rows(struct attend *a, uint32_t n, float *out, float *lse, const float *part, const float *part_lse)
{
    uint32_t dim = a->model->desc.dim_v;
    struct kvf_merge merge = {.outs = (const float *const[]){out, part}, .lses = (const float *const[]){lse, part_lse},
                              .n_parts = 2, .n_queries = n, .dim_v = dim, .out_stride = dim, .out = out, .lse = lse};
    enum kvf_status st = a->core->dev->merge(a->core->dev, NULL, &merge);
    assert(st == KVF_OK);
    (void)st;
}

/* All rows of one head over one block, as its holder computed them. */
static void block_there(struct attend *a, uint32_t block, uint32_t head)
{
    const float *part = kvf_attend_remote_part(want_at(a, block, head));
    size_t rows = a->rows, dim = a->model->desc.dim_v;
    float *out = a->scratch->out + head * rows * dim, *lse = a->scratch->lse + head * rows;
    assert(a->slices == 1 && (part || block > 0));
    if (!part)
        return;
    if (block > 0) {
        merge_rows(a, a->rows, out, lse, part, part + rows * dim);
        return;
    }
    memcpy(out, part, rows * dim * sizeof *out);
    memcpy(lse, part + rows * dim, rows * sizeof *lse);
}

/* Rows [from, to) of one head over one block, whose bytes are at `bytes`: a partial result, merged into the running one. False: the
 * bytes lie at the block's lender, and were not the block's all the while. */
static bool block_rows(struct attend *a, uint32_t block, uint32_t head, uint32_t from, uint32_t to, unsigned worker,
                       const uint8_t *bytes)
{
    const struct kvf_model_desc *d = &a->model->desc;
    struct kvf_scratch *x = a->scratch;
    struct kvf_want *w = want_at(a, block, head);
    const uint8_t *data = exact_bytes(a, w, bytes, worker);
    const void *chunks[64];
    uint32_t visible[SLICE_ROWS], n_chunks = 0, n = to - from;
    const uint32_t *place = w->places;
    if (w->fresh) /* then the head's rows are one slice: nobody else fills them */
        kvf_device_fill(a->core, w, data, a->model->chunk_bytes);
    for (uint64_t left = w->mask; left; left &= left - 1) {
        uint32_t c = (uint32_t)__builtin_ctzll(left);
        bool device = (w->cached | w->fresh) >> c & 1;
        chunks[n_chunks] = device ? kvf_device_at(a->core, place[n_chunks]) : data + (size_t)c * a->model->chunk_bytes;
        n_chunks++;
    }
    uint64_t start = (uint64_t)block * d->block_tokens;
    bool whole = n_chunks < a->model->chunks; /* a choice of chunks is of sealed blocks before the step: all of it is seen */
    for (uint32_t r = 0; r < n; r++) {
        uint64_t at = a->sess->step_first + (from + r) / a->group + 1;
        uint64_t sees = at > start ? at - start : 0;
        visible[r] = whole ? n_chunks * d->chunk_tokens : (uint32_t)(sees < d->block_tokens ? sees : d->block_tokens);
    }
    size_t row = (size_t)head * a->rows + from;
    float *part = x->part + (size_t)worker * SLICE_ROWS * d->dim_v, *part_lse = x->part_lse + (size_t)worker * SLICE_ROWS;
    float *out = x->out + row * d->dim_v, *lse = x->lse + row;
    struct kvf_attend args = {.chunks = chunks,
                              .n_chunks = n_chunks,
                              .chunk_tokens = d->chunk_tokens,
                              .dim_k = d->dim_k,
                              .dim_v = d->dim_v,
                              .dtype = d->dtype,
                              .q = x->q + row * d->dim_k,
                              .q_stride = d->dim_k,
                              .n_queries = n,
                              .visible = visible,
                              .scale = a->scale,
                              .out = block == 0 ? out : part,
                              .out_stride = d->dim_v,
                              .lse = block == 0 ? lse : part_lse};
    enum kvf_status st = a->core->dev->attend(a->core->dev, NULL, &args);
    assert(st == KVF_OK);
    (void)st;
    if (is_view(a, w) && bytes == w->data && !(verify(a, w) && kvf_view_same(&a->core->stages[w->stage].view)))
        return false;
    if (block > 0)
        merge_rows(a, n, out, lse, part, part_lse);
    return true;
}

/* One head's slice of rows over the wave. */
static void compute_item(void *arg, unsigned item, unsigned worker)
{
    struct attend *a = arg;
    uint32_t head = item / a->slices, from = item % a->slices * SLICE_ROWS;
    uint32_t to = from + SLICE_ROWS < a->rows ? from + SLICE_ROWS : a->rows;
    for (uint32_t b = a->wave_from; b < a->wave_to; b++) {
        struct kvf_want *w = want_at(a, b, head);
        if (w->mask == 0)
            continue;
        if (w->ask) {
            block_there(a, b, head);
            continue;
        }
        bool good = w->stage == KVF_STAGE_NONE || is_view(a, w) || verify(a, w);
        if (good && !block_rows(a, b, head, from, to, worker, w->data)) {
            const uint8_t *copy = copied(a, w, worker);
            good = copy && block_rows(a, b, head, from, to, worker, copy);
        }
        if (!good) {
            atomic_store(&w->bad, true); /* several slices may say so: all of them say the same */
            atomic_store(&a->bad, true);
            return;
        }
    }
}

/* The workers serve one attend at a time; another session's computes on its own thread meanwhile. */
static void compute_wave(struct attend *a)
{
    unsigned items = a->heads * a->slices;
    if (atomic_exchange(&a->core->workers_busy, true)) {
        for (unsigned i = 0; i < items; i++)
            compute_item(a, i, 0);
        return;
    }
    kvf_workers_run(a->core->workers, items, compute_item, a);
    atomic_store(&a->core->workers_busy, false);
}

/* ---------------------------------------------------------------- damage (under the lock) */

/* A block did not match its checksum. Where it has moved meanwhile its old slot may hold another block by now: asked for again.
 * Else it is damaged, and lost. */
static enum kvf_status damaged(struct attend *a)
{
    struct kvf_core *core = a->core;
    enum kvf_status st = KVF_ERR_DEADLINE;
    for (uint32_t b = a->wave_from; b < a->wave_to; b++) {
        for (uint32_t h = 0; h < a->heads; h++) {
            struct kvf_want *w = want_at(a, b, h);
            if (!w->bad)
                continue;
            struct kvf_stage *s = &core->stages[w->stage];
            struct kvf_entry *e = kvf_index_entry(core->index, w->handle);
            if (s->orphan || kvf_entry_place(e) != s->place || e->tier == KVF_TIER_DRAM) {
                kvf_stage_drop(core, w->handle);
                continue;
            }
            kvf_count(&core->counters.blocks_corrupt, 1);
            kvf_log_error(&core->log,
                          "a block of session %llx (layer %u, head %u, index %u) from %s does not match its checksum: dropped",
                          (unsigned long long)e->key.hi, a->layer, h, b, kvf_tier_name((enum kvf_tier)e->tier));
            kvf_block_lose(core, w->handle);
            kvf_stage_drop(core, w->handle); /* it may have fallen back to its copy */
            st = KVF_LOST;
        }
    }
    return st;
}

/* ---------------------------------------------------------------- the call */

static void queries_in(struct attend *a, const float *q)
{
    const struct kvf_model_desc *d = &a->model->desc;
    for (uint32_t h = 0; h < a->heads; h++)
        for (uint32_t t = 0; t < a->n; t++)
            memcpy(a->scratch->q + ((size_t)h * a->rows + (size_t)t * a->group) * d->dim_k,
                   q + ((size_t)t * d->q_heads + (size_t)h * a->group) * d->dim_k, (size_t)a->group * d->dim_k * sizeof *q);
}

static void results_out(struct attend *a, float *out)
{
    const struct kvf_model_desc *d = &a->model->desc;
    for (uint32_t h = 0; h < a->heads; h++)
        for (uint32_t t = 0; t < a->n; t++)
            memcpy(out + ((size_t)t * d->q_heads + (size_t)h * a->group) * d->dim_v,
                   a->scratch->out + ((size_t)h * a->rows + (size_t)t * a->group) * d->dim_v,
                   (size_t)a->group * d->dim_v * sizeof *out);
}

static enum kvf_status attend_run(struct attend *a)
{
    struct kvf_core *core = a->core;
    uint32_t done = 0;
    enum kvf_status st = ask_ahead(a);
    if (st == KVF_OK)
        kvf_ahead_read(a->sess, a->layer, a->budgeted, a->plan.asking);
    kvf_core_wake(core);
    while (st == KVF_OK && done < a->blocks) {
        st = wave_wait(a, done);
        if (st != KVF_OK)
            break;
        kvf_core_unlock(core);
        compute_wave(a);
        kvf_core_lock(core);
        kvf_attend_remote_computed(&a->plan);
        if (atomic_load(&a->bad))
            st = damaged(a);
        for (uint32_t i = a->wave_from * a->heads; i < a->wave_to * a->heads; i++) {
            unpin(a, &a->scratch->wants[i]);
            if (st == KVF_OK)
                a->scratch->wants[i].fresh = 0; /* filled */
        }
        done = a->wave_to;
    }
    for (uint32_t i = done * a->heads; i < a->blocks * a->heads; i++)
        unpin(a, &a->scratch->wants[i]);
    kvf_stage_ahead_cancel(core, a->sess->id, a->layer); /* what was read ahead for this layer and is still queued: too late */
    return st;
}

/* Blocks that end before the step are seen by all of its rows: those may be attended elsewhere. */
static void plan(struct attend *a)
{
    const struct kvf_model_desc *d = &a->model->desc;
    uint64_t before = a->sess->step_first / d->block_tokens;
    uint32_t sealed = a->sess->sealed_blocks < before ? a->sess->sealed_blocks : (uint32_t)before;
    a->plan = (struct kvf_attend_plan){.core = a->core, .queries = a->scratch->q, .deadline_ns = a->deadline_ns, .blocks = sealed};
    a->plan.shape = (struct kvf_attend_shape){.fingerprint = a->model->fingerprint, .dtype = d->dtype, .rows = a->rows,
                                              .merged = a->core->attend_merged, .chunk_tokens = d->chunk_tokens,
                                              .chunks = a->model->chunks, .dim_k = d->dim_k, .dim_v = d->dim_v, .scale = a->scale};
    if (a->slices == 1)
        kvf_attend_remote_plan(&a->plan, a->sess, a->layer, a->scratch->wants);
}

static enum kvf_status attend_check(const struct kvf_session *handle, uint32_t layer, const float *q, const float *out,
                                    const struct kvf_attend_options *o)
{
    if (!handle || !q || !out)
        return KVF_ERR_INVALID;
    if (!handle->stepping)
        return atomic_load(&handle->moved) ? KVF_MOVED : KVF_ERR_STATE;
    if (layer >= handle->sess->model->desc.layers || (o && !(o->budget >= 0 && o->budget <= 1 && o->scale >= 0)))
        return KVF_ERR_INVALID;
    return handle->sess->step_layers[layer] ? KVF_OK : KVF_ERR_STATE;
}

enum kvf_status kvf_step_attend(struct kvf_session *handle, uint32_t layer, const float *q, float *out,
                                const struct kvf_attend_options *o)
{
    enum kvf_status st = attend_check(handle, layer, q, out, o);
    if (st != KVF_OK)
        return st;
    struct kvf_sess *s = handle->sess;
    const struct kvf_model_desc *d = &s->model->desc;
    struct attend a = {.core = s->core,
                       .sess = s,
                       .handle = handle,
                       .model = s->model,
                       .layer = layer,
                       .n = s->step_n,
                       .group = d->q_heads / d->kv_heads,
                       .heads = d->kv_heads};
    a.rows = a.n * a.group;
    a.slices = (a.rows + SLICE_ROWS - 1) / SLICE_ROWS;
    a.blocks = (uint32_t)((s->step_first + s->step_n + d->block_tokens - 1) / d->block_tokens);
    a.scale = o && o->scale > 0 ? o->scale : 1.0f / sqrtf((float)d->dim_k);
    a.deadline_ns = kvf_deadline(kvf_now(s->core->env), o && o->timeout_ns ? o->timeout_ns : s->core->settings.fetch_timeout_ns);
    st = scratch_room(&a);
    if (st != KVF_OK)
        return st;
    queries_in(&a, q);
    choose_all(&a);
    kvf_core_lock(s->core);
    a.budgeted = o && o->budget > 0 && o->budget < 1;
    if (a.budgeted)
        st = choose_best(&a, o);
    if (st == KVF_OK && a.budgeted)
        remember(&a);
    if (st == KVF_OK)
        plan(&a);
    if (st == KVF_OK)
        st = attend_run(&a);
    if (a.device)
        kvf_device_end(s, layer, a.scratch->wants, a.blocks);
    kvf_core_unlock(s->core);
    if (st == KVF_OK)
        results_out(&a, out);
    return st;
}
