/* Pull the chunks, or ask for their attention? What either takes is predicted from four figures of each peer, which probes measure
 * when blocks of ours are first wanted from it and every PROBE_EVERY_NS while they are:
 *
 *     pull:   start + bytes / rate of pulls                           + checking and attending here
 *     asked:  round trip + (question + answer) / rate of messages     + checking and attending there
 *
 * How fast a node checks and attends it measures itself when it starts, and tells those who probe it. What attends then really
 * take, by size and by way, corrects the predictions (a factor per power of two, moving averages); a probe moves the factors half
 * the way back to 1, so that one bad moment is not remembered for ever. The way that was not taken is taken all the same once in
 * EXPLORE decisions, while it is not believed to be much the slower: otherwise nothing would ever correct it. */
#include "node/attend_remote.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define PROBE_EVERY_NS (10 * KVF_SEC)
#define PROBE_TIMEOUT_NS (2 * KVF_SEC)
#define REFUSED_NS (1 * KVF_SEC) /* a holder that does not serve is left alone for so long; one that is busy for BUSY_NS */
#define BUSY_NS (5 * KVF_MS)
#define EXPLORE 64
#define EXPLORE_MOST 3.0 /* ... times as slow as the other way */
#define BUCKETS 24       /* powers of two from 4 KiB on */
#define PULL_BYTES_MAX (64u << 10)
#define DEFAULT_CHUNK_PS 100000 /* per KiB: where a clock that stands still measures nothing */
#define DEFAULT_ROW_PS 50000

/* Each is done a few times, and the best taken. */
enum probe { PROBE_SMALL, PROBE_LARGE, PROBE_PULL_SMALL, PROBE_PULL_LARGE, PROBES };
static const unsigned probe_times[PROBES] = {4, 3, 4, 3};

struct peer_cost {
    struct kvf_core *core;
    uint64_t incarnation;  /* of the peer that the rest is of */
    /* probing */
    bool wanted, probing, measured;
    enum probe probe;
    unsigned done;
    uint64_t next_ns, start_ns;
    uint32_t padding;      /* of a large one */
    uint8_t question[8];   /* of the one under way */
    uint64_t best[PROBES]; /* ns; 0: not measured */
    uint64_t location;     /* of a block of ours; `bytes` of it */
    uint32_t bytes;
    /* figures */
    struct kvf_attend_ability ability;
    double rtt_ns, wire_ns, pull_ns, pull_byte_ns; /* wire_ns and pull_byte_ns: per byte */
    float factor[KVF_ATTEND_WAYS][BUCKETS];        /* 0: no attend was measured */
    uint64_t closed_until_ns;
    /* statistics */
    uint64_t chosen[KVF_ATTEND_WAYS], decisions;
    struct kvf_attend_work last;
};

struct kvf_attend_costs {
    struct kvf_attend_ability own;
    struct peer_cost *peers; /* [peers_max] */
    uint64_t look_ns;        /* when a probe may be due; UINT64_MAX: none is wanted */
    uint8_t zeros[KVF_ATTEND_PROBE_BYTES]; /* the padding of a large probe */
    uint8_t sink[PULL_BYTES_MAX];          /* what probes of all holders pull: nobody reads it */
};

/* ---------------------------------------------------------------- this node's own figures */

/* Numbers in [-1, 1) that are the same everywhere. */
static void numbers_fill(float *to, size_t n)
{
    uint32_t x = 12345;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        to[i] = (float)((int32_t)(x >> 8) - (1 << 23)) / (float)(1 << 23);
    }
}

enum { SAMPLE_CHUNKS = 16, SAMPLE_TOKENS = 8, SAMPLE_DIM = 128, SAMPLE_ROWS = 8 };
enum { SAMPLE_ELEMENTS = SAMPLE_CHUNKS * SAMPLE_TOKENS * SAMPLE_DIM * 2 };

struct sample {
    float numbers[SAMPLE_ELEMENTS];
    _Alignas(64) uint8_t block[SAMPLE_ELEMENTS * sizeof(float)];
    float out[2][SAMPLE_ROWS * SAMPLE_DIM], lse[2][SAMPLE_ROWS];
};

static void sample_attend(const struct kvf_dev *dev, struct sample *s, enum kvf_dtype dtype, uint32_t first, uint32_t n_chunks,
                          uint32_t rows, unsigned to)
{
    const void *chunks[SAMPLE_CHUNKS];
    uint32_t visible[SAMPLE_ROWS];
    size_t chunk = SAMPLE_TOKENS * SAMPLE_DIM * 2 * kvf_dtype_bytes(dtype);
    for (uint32_t c = 0; c < n_chunks; c++)
        chunks[c] = s->block + (first + c) * chunk;
    for (uint32_t r = 0; r < rows; r++)
        visible[r] = n_chunks * SAMPLE_TOKENS;
    struct kvf_attend args = {.chunks = chunks, .n_chunks = n_chunks, .chunk_tokens = SAMPLE_TOKENS, .dim_k = SAMPLE_DIM,
                              .dim_v = SAMPLE_DIM, .dtype = dtype, .q = s->numbers, .q_stride = SAMPLE_DIM, .n_queries = rows,
                              .visible = visible, .scale = 0.3f, .out = s->out[to], .out_stride = SAMPLE_DIM, .lse = s->lse[to]};
    enum kvf_status st = dev->attend(dev, NULL, &args);
    assert(st == KVF_OK);
    (void)st;
}

/* A hash of what the kernels make of fixed numbers, to the last bit: nodes of other instructions or another version of the kernels
 * have another one. */
static uint64_t print_of(const struct kvf_dev *dev, struct sample *s)
{
    static const enum kvf_dtype dtypes[] = {KVF_F32, KVF_F16, KVF_BF16};
    uint64_t print = 0;
    for (unsigned i = 0; i < 3; i++) {
        dev->convert(dev, NULL, s->block, dtypes[i], s->numbers, KVF_F32, SAMPLE_ELEMENTS);
        sample_attend(dev, s, dtypes[i], 0, 11, 7, 0);
        sample_attend(dev, s, dtypes[i], 11, 5, 7, 1);
        struct kvf_merge merge = {.outs = (const float *const[]){s->out[0], s->out[1]},
                                  .lses = (const float *const[]){s->lse[0], s->lse[1]}, .n_parts = 2, .n_queries = 7,
                                  .dim_v = SAMPLE_DIM, .out_stride = SAMPLE_DIM, .out = s->out[0], .lse = s->lse[0]};
        dev->merge(dev, NULL, &merge);
        dev->checksum(dev, NULL, s->out[0], 7 * SAMPLE_DIM * sizeof(float), print, &print);
        dev->checksum(dev, NULL, s->lse[0], 7 * sizeof(float), print, &print);
    }
    return print;
}

/* Nanoseconds to check and attend the sample with so many rows, at best. */
static uint64_t sample_ns(const struct kvf_core *core, struct sample *s, uint32_t rows)
{
    uint64_t best = UINT64_MAX, sum;
    for (int i = 0; i < 7; i++) {
        uint64_t start = kvf_now(core->env);
        for (uint32_t c = 0; c < SAMPLE_CHUNKS; c++)
            core->dev->checksum(core->dev, NULL, s->block + c * 4096, 4096, c, &sum);
        sample_attend(core->dev, s, KVF_F16, 0, SAMPLE_CHUNKS, rows, 0);
        uint64_t ns = kvf_now(core->env) - start;
        best = ns < best ? ns : best;
    }
    return best;
}

static void measure(const struct kvf_core *core, struct kvf_attend_ability *out)
{
    struct sample *s = aligned_alloc(64, (sizeof *s + 63) / 64 * 64);
    *out = (struct kvf_attend_ability){.chunk_ps = DEFAULT_CHUNK_PS, .row_ps = DEFAULT_ROW_PS};
    if (!s)
        return;
    numbers_fill(s->numbers, SAMPLE_ELEMENTS);
    out->print = print_of(core->dev, s);
    core->dev->convert(core->dev, NULL, s->block, KVF_F16, s->numbers, KVF_F32, SAMPLE_ELEMENTS);
    uint64_t one = sample_ns(core, s, 1), many = sample_ns(core, s, SAMPLE_ROWS), kib = SAMPLE_ELEMENTS * 2 / 1024;
    if (one > 0 && many >= one) {
        out->row_ps = (uint32_t)((many - one) * 1000 / (kib * (SAMPLE_ROWS - 1)));
        out->chunk_ps = (uint32_t)(one * 1000 / kib);
        out->chunk_ps -= out->row_ps < out->chunk_ps ? out->row_ps : 0;
    }
    free(s);
}

void kvf_attend_cost_own(const struct kvf_core *core, struct kvf_attend_ability *out)
{
    *out = core->attend_costs->own;
}

static double compute_ns(const struct kvf_attend_ability *a, const struct kvf_attend_work *work)
{
    return (double)work->bytes / 1024 * ((double)a->chunk_ps + (double)a->row_ps * work->rows) / 1000;
}

/* ---------------------------------------------------------------- life */

enum kvf_status kvf_attend_costs_create(struct kvf_core *core)
{
    if (!core->transport)
        return KVF_OK;
    struct kvf_attend_costs *costs = core->attend_costs = calloc(1, sizeof *costs);
    if (!costs)
        return KVF_ERR_NO_MEMORY;
    costs->peers = calloc(core->settings.fabric_peers_max, sizeof *costs->peers);
    if (!costs->peers)
        return KVF_ERR_NO_MEMORY;
    for (uint64_t i = 0; i < core->settings.fabric_peers_max; i++)
        costs->peers[i].core = core;
    costs->look_ns = UINT64_MAX;
    measure(core, &costs->own);
    return KVF_OK;
}

void kvf_attend_costs_destroy(struct kvf_core *core)
{
    struct kvf_attend_costs *costs = core->attend_costs;
    if (!costs)
        return;
    free(costs->peers);
    free(costs);
    core->attend_costs = NULL;
}

/* The peer's, begun anew when another incarnation has its number. */
static struct peer_cost *cost_of(struct kvf_core *core, uint16_t peer)
{
    assert(peer < core->settings.fabric_peers_max && core->attend_costs);
    struct peer_cost *p = &core->attend_costs->peers[peer];
    uint64_t incarnation = core->peers[peer].member.incarnation;
    if (p->incarnation == incarnation)
        return p;
    /* A probe that is still out ends without success. */
    *p = (struct peer_cost){.core = core, .incarnation = incarnation, .probing = p->probing};
    return p;
}

/* ---------------------------------------------------------------- predictions */

static unsigned bucket_of(uint64_t bytes)
{
    unsigned b = 0;
    while (b + 1 < BUCKETS && bytes >> (13 + b))
        b++;
    return b;
}

/* Of the nearest size that was measured. */
static double factor_of(const struct peer_cost *p, enum kvf_attend_way way, uint64_t bytes)
{
    unsigned at = bucket_of(bytes);
    for (unsigned d = 0; d < BUCKETS; d++) {
        if (at + d < BUCKETS && p->factor[way][at + d] > 0)
            return p->factor[way][at + d];
        if (at >= d && p->factor[way][at - d] > 0)
            return p->factor[way][at - d];
    }
    return 1;
}

static double raw_ns(const struct peer_cost *p, enum kvf_attend_way way, const struct kvf_attend_work *work)
{
    const struct kvf_attend_ability *own = &p->core->attend_costs->own;
    if (way == KVF_ATTEND_THERE)
        return p->rtt_ns + (double)work->wire_bytes * p->wire_ns + compute_ns(&p->ability, work);
    if (work->tier == KVF_TIER_REMOTE && p->pull_byte_ns > 0)
        return p->pull_ns + (double)work->bytes * p->pull_byte_ns + compute_ns(own, work);
    return p->rtt_ns + (double)work->bytes * p->wire_ns + compute_ns(own, work);
}

static double expected(const struct peer_cost *p, enum kvf_attend_way way, const struct kvf_attend_work *work)
{
    return raw_ns(p, way, work) * factor_of(p, way, work->bytes);
}

/* Where results must have the same bits, only a holder whose kernels give them is asked. */
static bool may_ask(const struct peer_cost *p)
{
    const struct kvf_core *core = p->core;
    return kvf_now(core->env) >= p->closed_until_ns &&
           (core->attend_merged || p->ability.print == core->attend_costs->own.print);
}

enum kvf_attend_way kvf_attend_cost_choose(struct kvf_core *core, uint16_t peer, const struct kvf_attend_work *work,
                                           double expected_ns[KVF_ATTEND_WAYS])
{
    struct peer_cost *p = cost_of(core, peer);
    if (!p->wanted)
        core->attend_costs->look_ns = 0;
    p->wanted = true;
    expected_ns[KVF_ATTEND_PULL] = expected_ns[KVF_ATTEND_THERE] = 0;
    if (!p->measured || !may_ask(p))
        return KVF_ATTEND_PULL;
    for (int way = 0; way < KVF_ATTEND_WAYS; way++)
        expected_ns[way] = expected(p, (enum kvf_attend_way)way, work);
    enum kvf_attend_way best = expected_ns[KVF_ATTEND_THERE] < expected_ns[KVF_ATTEND_PULL] ? KVF_ATTEND_THERE : KVF_ATTEND_PULL;
    enum kvf_attend_way other = best == KVF_ATTEND_PULL ? KVF_ATTEND_THERE : KVF_ATTEND_PULL;
    p->last = *work;
    if (++p->decisions % EXPLORE == 0 && expected_ns[other] < EXPLORE_MOST * expected_ns[best])
        best = other;
    if (core->attend_mode == KVF_ATTEND_ALWAYS)
        best = KVF_ATTEND_THERE;
    p->chosen[best]++;
    return best;
}

void kvf_attend_cost_learn(struct kvf_core *core, uint16_t peer, enum kvf_attend_way way, const struct kvf_attend_work *work,
                           uint64_t took_ns)
{
    struct peer_cost *p = cost_of(core, peer);
    double raw = p->measured ? raw_ns(p, way, work) : 0;
    if (raw <= 0 || took_ns == 0)
        return;
    float *factor = &p->factor[way][bucket_of(work->bytes)];
    double seen = fmin(fmax((double)took_ns / raw, 0.05), 50), before = factor_of(p, way, work->bytes);
    /* A first measurement is believed half, a slow moment little. */
    double weight = *factor > 0 ? (seen > 2 * before ? 0.05 : 0.25) : 0.5;
    *factor = (float)(before + weight * (seen - before));
}

void kvf_attend_cost_refused(struct kvf_core *core, uint16_t peer, enum kvf_status status)
{
    struct peer_cost *p = cost_of(core, peer);
    p->closed_until_ns = kvf_deadline(kvf_now(core->env), status == KVF_ERR_BUSY ? BUSY_NS : REFUSED_NS);
}

void kvf_attend_cost_seen(struct kvf_core *core, uint16_t peer, uint64_t location, uint32_t bytes)
{
    struct peer_cost *p = cost_of(core, peer);
    p->location = location;
    p->bytes = bytes < PULL_BYTES_MAX ? bytes : PULL_BYTES_MAX;
}

/* ---------------------------------------------------------------- probes */

static uint32_t padding_of(const struct kvf_peer *peer)
{
    size_t most = kvf_peer_payload_max(peer);
    most = most > 128 ? most - 64 : 64;
    return most < KVF_ATTEND_PROBE_BYTES ? (uint32_t)most : KVF_ATTEND_PROBE_BYTES;
}

static void settle(struct peer_cost *p)
{
    double small = (double)p->best[PROBE_SMALL], large = (double)p->best[PROBE_LARGE];
    p->rtt_ns = small;
    p->wire_ns = (large > small ? large - small : 0) / (2.0 * p->padding);
    if (p->best[PROBE_PULL_LARGE] && p->bytes > 4096) {
        small = (double)p->best[PROBE_PULL_SMALL];
        large = (double)p->best[PROBE_PULL_LARGE];
        p->pull_ns = small;
        p->pull_byte_ns = (large > small ? large - small : 1) / (p->bytes - 4096);
    }
    for (int way = 0; way < KVF_ATTEND_WAYS; way++)
        for (unsigned b = 0; b < BUCKETS; b++)
            p->factor[way][b] = sqrtf(p->factor[way][b]);
    p->measured = true;
}

static void probe_end(struct peer_cost *p, bool good)
{
    struct kvf_core *core = p->core;
    uint64_t now = kvf_now(core->env), ns = now - p->start_ns;
    p->probing = false;
    core->attend_costs->look_ns = 0;
    if (!good) {
        p->next_ns = kvf_deadline(now, REFUSED_NS);
        p->probe = PROBE_SMALL;
        p->done = 0;
        return;
    }
    if (!p->best[p->probe] || ns < p->best[p->probe])
        p->best[p->probe] = ns ? ns : 1;
    if (++p->done < probe_times[p->probe])
        return;
    p->done = 0;
    p->probe++;
    if (p->probe == PROBES || (p->probe >= PROBE_PULL_SMALL && p->bytes == 0)) {
        settle(p);
        p->probe = PROBE_SMALL;
        p->next_ns = kvf_deadline(now, PROBE_EVERY_NS);
        p->wanted = false;
        kvf_core_changed(core);
    }
}

static void probe_answered(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct peer_cost *p = arg;
    struct kvf_reader r = kvf_reader_of(payload, bytes);
    uint32_t padding = p->probe == PROBE_LARGE ? p->padding : 0;
    bool good = status == KVF_OK && kvf_attend_wire_ability_read(&r, padding, &p->ability);
    if (status == KVF_OK && !good)
        kvf_count(&p->core->counters.messages_refused, 1);
    probe_end(p, good);
}

static void probe_pulled(void *arg, enum kvf_status status)
{
    probe_end(arg, status == KVF_OK);
}

static enum kvf_status probe_send(struct peer_cost *p, struct kvf_peer *peer, uint64_t deadline_ns)
{
    struct kvf_attend_costs *costs = p->core->attend_costs;
    if (p->probe <= PROBE_LARGE) {
        uint32_t padding = p->probe == PROBE_LARGE ? padding_of(peer) : 0;
        if (padding)
            p->padding = padding;
        /* A large one stays ours until it is sent: its padding is the same for every peer. A small one is copied. */
        struct kvf_writer w = kvf_writer_of(p->question, sizeof p->question);
        kvf_attend_wire_probe(&w, padding, 0);
        struct iovec parts[] = {{.iov_base = p->question, .iov_len = kvf_writer_used(&w)},
                                {.iov_base = costs->zeros, .iov_len = padding}};
        return kvf_fabric_call(peer, KVF_MSG_ATTEND_PROBE, parts, padding ? 2 : 1, deadline_ns, probe_answered, p);
    }
    struct kvf_pull_range range = {
        .offset = p->location, .bytes = p->probe == PROBE_PULL_SMALL ? 4096 : p->bytes, .to = costs->sink};
    return kvf_fabric_pull(peer, &range, 1, deadline_ns, probe_pulled, p);
}

unsigned kvf_attend_cost_poll(struct kvf_core *core)
{
    struct kvf_attend_costs *costs = core->attend_costs;
    unsigned events = 0;
    uint64_t now = costs && costs->look_ns < UINT64_MAX ? kvf_now(core->env) : 0;
    if (!costs || now < costs->look_ns)
        return 0;
    costs->look_ns = UINT64_MAX;
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++) {
        struct peer_cost *p = &costs->peers[i];
        if (!p->wanted || p->probing || p->incarnation != core->peers[i].member.incarnation)
            continue;
        uint64_t due = core->peers[i].up ? p->next_ns : kvf_deadline(now, REFUSED_NS);
        if (now < due) {
            costs->look_ns = due < costs->look_ns ? due : costs->look_ns;
            continue;
        }
        p->start_ns = now;
        enum kvf_status st = probe_send(p, core->peers[i].peer, kvf_deadline(now, PROBE_TIMEOUT_NS));
        p->probing = st == KVF_OK;
        if (st != KVF_OK) {
            p->next_ns = kvf_deadline(now, REFUSED_NS);
            costs->look_ns = p->next_ns < costs->look_ns ? p->next_ns : costs->look_ns;
        }
        events += p->probing;
    }
    return events;
}

/* ---------------------------------------------------------------- what is shown */

/* The least number of chunks from which on asking is faster, the last attend's proportions given; 0: none up to 2^16. */
static uint64_t break_even(const struct peer_cost *p)
{
    const struct kvf_attend_work *last = &p->last;
    uint64_t chunks = last->chunk_bytes ? last->bytes / last->chunk_bytes : 0, from = 0;
    if (chunks == 0)
        return 0;
    double each = (double)(last->wire_bytes - last->fixed_bytes) / (double)chunks;
    for (uint64_t n = 1; n <= 1 << 16; n = n < 16 ? n + 1 : n + n / 8) {
        struct kvf_attend_work work = *last;
        work.bytes = n * last->chunk_bytes;
        work.wire_bytes = last->fixed_bytes + (uint64_t)(each * (double)n);
        bool faster = expected(p, KVF_ATTEND_THERE, &work) < expected(p, KVF_ATTEND_PULL, &work);
        from = !faster ? 0 : from ? from : n;
    }
    return from;
}

bool kvf_attend_cost_stats(struct kvf_core *core, uint16_t peer, struct kvf_attend_cost_stats *out)
{
    if (!core->attend_costs)
        return false;
    struct peer_cost *p = cost_of(core, peer);
    if (!p->measured)
        return false;
    struct kvf_attend_work kib = {.bytes = 1024, .rows = p->last.rows ? p->last.rows : 1};
    *out = (struct kvf_attend_cost_stats){.same_bits = p->ability.print == core->attend_costs->own.print,
                                          .rtt_ns = (uint64_t)p->rtt_ns, .rows = kib.rows,
                                          .wire_rate = p->wire_ns > 0 ? 1e9 / p->wire_ns : 0,
                                          .pull_rate = p->pull_byte_ns > 0 ? 1e9 / p->pull_byte_ns : 0,
                                          .compute_rate = 1024e9 / fmax(compute_ns(&p->ability, &kib), 1e-3),
                                          .break_even_chunks = break_even(p)};
    memcpy(out->chosen, p->chosen, sizeof out->chosen);
    return true;
}
