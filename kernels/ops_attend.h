/* attend, merge and score over the products of ops_simd.h.
 *
 * attend goes over the list in tiles of TILE tokens, counted from the list's start. K of a tile is transposed into
 * scratch once and serves every row; V is read where it lies for few rows and converted once for many (the values are
 * the same). The softmax keeps a running maximum, tile after tile. Scratch is on the stack: at most 260 KiB. */

/* Rows whose running maximum and sum fit on the stack; more rows take another round over the tiles. */
enum { ROUND = 384, ROWS_IN_PLACE = 2 * ROWS };

struct softmax {
    float max, sum;
};

struct tile {
    const void *k[TILE], *v[TILE];
    uint32_t first, tokens;  /* of the list */
    enum kvf_dtype v_dtype;  /* KVF_F32 once V is converted */
    const float *kt;         /* K transposed: [dim_k][TILE] */
};

/* Blocks lie anywhere, and the CPU's own prefetch stops at each page's end, so a tile's K is read before it is used, in
 * the order in which it lies: by loads, a line each, as prefetches beyond what can be in flight are dropped. V comes
 * while K is packed. */
static void touch(const char *from, size_t bytes)
{
    for (size_t b = 0; b < bytes; b += 64)
        (void)*(const volatile char *)(from + b);
}

/* Finds the tile's rows. Behind the last token, up to a multiple of 16, they repeat it: those logits are not used. */
static void tile_find(struct tile *tile, const struct kvf_attend *a)
{
    size_t bytes = kvf_cpu_element(a->dtype), k_bytes = a->dim_k * bytes, v_bytes = a->dim_v * bytes;
    uint32_t chunk = tile->first / a->chunk_tokens, in_chunk = tile->first % a->chunk_tokens;
    for (uint32_t t = 0; t < tile->tokens; chunk++, in_chunk = 0) {
        const char *k = (const char *)a->chunks[chunk] + in_chunk * k_bytes;
        const char *v = (const char *)a->chunks[chunk] + a->chunk_tokens * k_bytes + in_chunk * v_bytes;
        uint32_t run = a->chunk_tokens - in_chunk < tile->tokens - t ? a->chunk_tokens - in_chunk : tile->tokens - t;
        touch(k, run * k_bytes);
        for (uint32_t end = t + run; t < end; t++, k += k_bytes, v += v_bytes) {
            tile->k[t] = k;
            tile->v[t] = v;
        }
    }
    for (uint32_t t = tile->tokens; t % 16; t++) {
        tile->k[t] = tile->k[tile->tokens - 1];
        tile->v[t] = tile->v[tile->tokens - 1];
    }
}

static void tile_convert_v(struct tile *tile, float *scratch, uint32_t dim)
{
    bool f16 = tile->v_dtype == KVF_F16;
    for (uint32_t t = 0; t < tile->tokens; t++) {
        for (uint32_t d = 0; d < dim; d += WIDTH)
            v_store(scratch + t * dim + d, f16 ? load_as(tile->v[t], d, KVF_F16) : load_as(tile->v[t], d, KVF_BF16));
        tile->v[t] = scratch + t * dim;
    }
    tile->v_dtype = KVF_F32;
}

/* Logits s of one row become weights; returns what the earlier sum and output are to be multiplied with. */
OWN float weights(float *s, uint32_t seen, float scale, struct softmax *state)
{
    enum { N = TILE / WIDTH };
    vec x[N], top = v_set(-INFINITY), sum[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        x[i] = v_mul(v_load(s + i * WIDTH), v_set(scale));
        if (seen < TILE)
            x[i] = v_cut(x[i], seen > (uint32_t)i * WIDTH ? seen - i * WIDTH : 0, -INFINITY);
        top = v_max(x[i], top);
    }
    float max = v_hmax(top), keep = 1;
    if (!(max > state->max)) {
        max = state->max;
    } else {
        if (state->max != -INFINITY)
            keep = v_first(v_exp(v_set(state->max - max)));
        state->max = max;
    }
    vec base = v_set(max == -INFINITY ? 0 : max); /* all logits -inf: every weight is 0, not NaN */
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        sum[i] = v_exp(v_sub(x[i], base));
        v_store(s + i * WIDTH, sum[i]);
    }
#pragma GCC unroll 4
    for (int half = N / 2; half; half /= 2)
#pragma GCC unroll 4
        for (int i = 0; i < half; i++)
            sum[i] = v_add(sum[i], sum[i + half]);
    state->sum = fmaf(state->sum, keep, v_hsum(sum[0]));
    return keep;
}

/* n <= ROWS rows over one tile. */
static void tile_rows(const struct tile *tile, const struct kvf_attend *a, uint32_t first, uint32_t n, struct softmax *state)
{
    uint32_t seen[ROWS], least = TILE, most = 0;
    for (uint32_t r = 0; r < n; r++) {
        uint32_t visible = a->visible[first + r], left = visible > tile->first ? visible - tile->first : 0;
        seen[r] = left < TILE ? left : TILE;
        least = seen[r] < least ? seen[r] : least;
        most = seen[r] > most ? seen[r] : most;
    }
    if (!most)
        return;
    float s[ROWS * TILE] __attribute__((aligned(64))), keep[ROWS];
    logits(s, a->q + first * a->q_stride, a->q_stride, tile->kt, most, a->dim_k, n);
    for (uint32_t r = 0; r < n; r++)
        keep[r] = seen[r] ? weights(s + r * TILE, seen[r], a->scale, state + r) : 1;
    /* Tokens that all rows see, together; then each row's own, so that no row multiplies what it must not see. */
    struct weigh w = {.rows = tile->v, .end = least, .dim = a->dim_v, .p = s, .keep = tile->first ? keep : NULL,
                      .out = a->out + first * a->out_stride, .out_stride = a->out_stride};
    weigh(&w, tile->v_dtype, n);
    for (uint32_t r = 0; r < n; r++) {
        const float one = 1;
        struct weigh own = w;
        own.first = least;
        own.end = seen[r];
        own.p += r * TILE;
        own.keep = &one;
        own.out += r * a->out_stride;
        if (own.first < own.end)
            weigh(&own, tile->v_dtype, 1);
    }
}

/* Divides by the sums and writes the log-sum-exps. */
static void finish(const struct kvf_attend *a, uint32_t first, uint32_t n, const struct softmax *state)
{
    for (uint32_t r = 0; r < n; r++) {
        float *out = a->out + (first + r) * a->out_stride, sum = state[r].sum;
        a->lse[first + r] = sum == 0 ? -INFINITY : state[r].max + logf(sum);
        for (uint32_t d = 0; d < a->dim_v; d += WIDTH)
            v_store(out + d, sum == 0 ? v_set(0) : v_mul(v_load(out + d), v_set(1 / sum)));
    }
}

static void attend_round(const struct kvf_attend *a, uint32_t first, uint32_t n)
{
    float kt[DIM_MAX * TILE] __attribute__((aligned(64))), converted[DIM_MAX * TILE] __attribute__((aligned(64)));
    struct softmax state[ROUND];
    uint32_t tokens = 0;
    for (uint32_t r = 0; r < n; r++) {
        state[r] = (struct softmax){.max = -INFINITY};
        tokens = a->visible[first + r] > tokens ? a->visible[first + r] : tokens;
    }
    for (uint32_t t = 0; t < tokens; t += TILE) {
        struct tile tile = {.first = t, .tokens = tokens - t < TILE ? tokens - t : TILE, .v_dtype = a->dtype, .kt = kt};
        tile_find(&tile, a);
        pack(kt, tile.k, tile.tokens, a->dim_k, a->dtype, tile.v, a->dim_v * (uint32_t)kvf_cpu_element(a->dtype));
        if (n > ROWS_IN_PLACE && a->dtype != KVF_F32)
            tile_convert_v(&tile, converted, a->dim_v);
        for (uint32_t r = 0; r < n; r += ROWS)
            tile_rows(&tile, a, first + r, n - r < ROWS ? n - r : ROWS, state + r);
        if (t > UINT32_MAX - TILE)
            break;
    }
    finish(a, first, n, state);
}

static enum kvf_status attend(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_attend *args)
{
    if (!kvf_check_attend(args))
        return KVF_ERR_INVALID;
    for (uint32_t r = 0; r < args->n_queries; r += ROUND)
        attend_round(args, r, args->n_queries - r < ROUND ? args->n_queries - r : ROUND);
    return KVF_OK;
}

/* Adds up parts [first, first + n) of row r with their weights w (0 does not count) at elements d .. of out. */
OWN vec merge_vec(const struct kvf_merge *m, size_t at, uint32_t first, uint32_t n, const float *w, float inverse)
{
    vec acc = first ? v_load(m->out + at) : v_set(0);
    for (uint32_t p = 0; p < n; p++)
        if (w[p] != 0)
            acc = v_fma(v_set(w[p]), v_load(m->outs[first + p] + at), acc);
    return v_mul(acc, v_set(inverse));
}

static float merge_one(const struct kvf_merge *m, size_t at, uint32_t first, uint32_t n, const float *w, float inverse)
{
    float acc = first ? m->out[at] : 0;
    for (uint32_t p = 0; p < n; p++)
        if (w[p] != 0)
            acc = fmaf(w[p], m->outs[first + p][at], acc);
    return acc * inverse;
}

static void merge_row(const struct kvf_merge *m, uint32_t r)
{
    float max = -INFINITY, sum = 0, w[WIDTH], inverse = 1;
    for (uint32_t p = 0; p < m->n_parts; p++)
        max = m->lses[p][r] > max ? m->lses[p][r] : max;
    size_t row = r * m->out_stride;
    for (uint32_t first = 0; first < m->n_parts; first += WIDTH) {
        uint32_t n = m->n_parts - first < WIDTH ? m->n_parts - first : WIDTH;
        for (uint32_t p = 0; p < WIDTH; p++)
            w[p] = p < n ? m->lses[first + p][r] : -INFINITY;
        v_store(w, v_exp(v_sub(v_load(w), v_set(max == -INFINITY ? 0 : max))));
        for (uint32_t p = 0; p < n; p++)
            sum += w[p];
        if (first + n == m->n_parts)
            inverse = sum == 0 ? 0 : 1 / sum;
        uint32_t d = 0;
        for (; d + WIDTH <= m->dim_v; d += WIDTH)
            v_store(m->out + row + d, merge_vec(m, row + d, first, n, w, inverse));
        for (; d < m->dim_v; d++)
            m->out[row + d] = merge_one(m, row + d, first, n, w, inverse);
    }
    if (!m->n_parts)
        memset(m->out + row, 0, m->dim_v * sizeof *m->out);
    m->lse[r] = sum == 0 ? -INFINITY : max + logf(sum);
}

static enum kvf_status merge(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_merge *args)
{
    if (!kvf_check_merge(args))
        return KVF_ERR_INVALID;
    for (uint32_t r = 0; r < args->n_queries; r++)
        merge_row(args, r);
    return KVF_OK;
}

/* ROWS query rows at a time against all chunks. MINMAX: with q- = min(q, 0) and q+ = max(q, 0),
 * sum_j max(q_j min_j, q_j max_j) = q- . min + q+ . max, two products of the kind that attention has. */
struct scoring {
    enum kvf_summary_kind kind;
    const float *summaries;
    uint32_t n_chunks, dim;
    const float *q, *q_low; /* MEAN: q; MINMAX: q+ and q- */
    size_t q_stride;
    uint32_t rows;
    float scale;
};

/* Scaled logits of the TILE chunks from `first`; those behind the last chunk are -inf. */
static void score_tile(const struct scoring *a, uint32_t first, float *s, float *kt)
{
    const void *rows[TILE];
    bool two = a->kind == KVF_SUMMARY_MINMAX;
    uint32_t n = a->n_chunks - first < TILE ? a->n_chunks - first : TILE;
    float low[ROWS * TILE];
    for (int pass = two ? 0 : 1; pass < 2; pass++) {
        for (uint32_t c = 0; c < n || c % 16; c++)
            rows[c] = a->summaries + ((size_t)first + (c < n ? c : n - 1)) * a->dim * (two ? 2 : 1) + (two && pass ? a->dim : 0);
        pack(kt, rows, n, a->dim, KVF_F32, NULL, 0);
        logits(pass ? s : low, pass ? a->q : a->q_low, a->q_stride, kt, n, a->dim, a->rows);
    }
    for (uint32_t r = 0; r < a->rows; r++)
        for (uint32_t t = 0; t < TILE; t += WIDTH) {
            vec x = v_load(s + r * TILE + t);
            if (two)
                x = v_add(x, v_load(low + r * TILE + t));
            v_store(s + r * TILE + t, v_cut(v_mul(x, v_set(a->scale)), n > t ? n - t : 0, -INFINITY));
        }
}

/* Tiles of logits that are kept between the two passes; the rest is computed twice. */
enum { KEPT = 16384 };

static void score_rows(const struct scoring *a, float *scores, bool more)
{
    float kt[DIM_MAX * TILE] __attribute__((aligned(64))), kept[KEPT] __attribute__((aligned(64))), s[ROWS * TILE];
    uint32_t size = a->rows * TILE, tiles_kept = a->kind == KVF_SUMMARY_MEAN ? KEPT / size : 0;
    struct softmax state[ROWS];
    float shift[ROWS];
    for (uint32_t r = 0; r < a->rows; r++) {
        state[r] = (struct softmax){.max = -INFINITY};
        shift[r] = 0;
    }
    if (a->kind == KVF_SUMMARY_MEAN) {
        for (uint32_t first = 0; first < a->n_chunks; first += TILE) {
            float *keep = first / TILE < tiles_kept ? kept + first / TILE * size : s, w[TILE];
            score_tile(a, first, keep, kt);
            for (uint32_t r = 0; r < a->rows; r++) {
                memcpy(w, keep + r * TILE, sizeof w);
                weights(w, TILE, 1, state + r);
            }
        }
        for (uint32_t r = 0; r < a->rows; r++)
            shift[r] = state[r].max + logf(state[r].sum);
    }
    for (uint32_t first = 0; first < a->n_chunks; first += TILE) {
        const float *x = first / TILE < tiles_kept ? kept + first / TILE * size : s;
        if (x == s)
            score_tile(a, first, s, kt);
        for (uint32_t t = 0; t < TILE && first + t < a->n_chunks; t += WIDTH) {
            vec best = v_sub(v_load(x + t), v_set(shift[0]));
            for (uint32_t r = 1; r < a->rows; r++)
                best = v_max(v_sub(v_load(x + r * TILE + t), v_set(shift[r])), best);
            best = a->kind == KVF_SUMMARY_MEAN ? v_exp(best) : best;
            float out[WIDTH];
            v_store(out, best);
            for (uint32_t i = 0; i < WIDTH && first + t + i < a->n_chunks; i++)
                scores[first + t + i] = more && scores[first + t + i] > out[i] ? scores[first + t + i] : out[i];
        }
    }
}

static enum kvf_status score(const struct kvf_dev *dev, struct kvf_stream *stream, enum kvf_summary_kind kind,
                             const float *summaries, uint32_t n_chunks, uint32_t dim_k, const float *q, size_t q_stride,
                             uint32_t group, float scale, float *scores)
{
    if (!kvf_check_score(kind, summaries, n_chunks, dim_k, q, q_stride, group, scores))
        return KVF_ERR_INVALID;
    float high[ROWS * DIM_MAX], low[ROWS * DIM_MAX];
    for (uint32_t g = 0; g < group && n_chunks; g += ROWS) {
        struct scoring a = {.kind = kind, .summaries = summaries, .n_chunks = n_chunks, .dim = dim_k, .q = q + g * q_stride,
                            .q_stride = q_stride, .rows = group - g < ROWS ? group - g : ROWS, .scale = scale};
        if (kind == KVF_SUMMARY_MINMAX) {
            for (uint32_t r = 0; r < a.rows; r++)
                for (uint32_t d = 0; d < dim_k; d += WIDTH) {
                    vec x = v_load(a.q + r * q_stride + d);
                    v_store(high + r * dim_k + d, v_max(x, v_set(0)));
                    v_store(low + r * dim_k + d, v_min(x, v_set(0)));
                }
            a.q = high;
            a.q_low = low;
            a.q_stride = dim_k;
        }
        score_rows(&a, scores, g > 0);
    }
    return KVF_OK;
}
