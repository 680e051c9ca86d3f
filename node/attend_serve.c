/* The holder's side of attention where the bytes lie: other nodes' questions about blocks in our lent DRAM, or of sessions that
 * left. A question is copied into a job:
 *
 *     FREE -> READY (its blocks are found, ours pinned) -> WORKING (a thread of its own, and the workers) -> DONE
 *          -> SENDING (the answer is on its way) -> FREE
 *
 * What a block's chunks hold is copied into scratch, checked there against the checksums in the question, and attended there. So
 * a lent slot needs no pin: it may be given back, and be another block's, at any moment, which then does not match; the borrower
 * pulls it, or learns that it is lost. No more than attend.serve jobs are in work, of one peer no more than half of these. */
#include "node/attend_remote.h"
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SCRATCH_MAX (1u << 20) /* bytes of a block; larger ones are not attended here */

enum job_state { JOB_FREE, JOB_READY, JOB_WORKING, JOB_DONE, JOB_SENDING };

struct job_item {
    const uint8_t *data; /* NULL: it is not here, as the verdict says */
    kvf_handle handle;   /* pinned; KVF_HANDLE_NONE: lent */
};

struct job {
    struct kvf_core *core;
    enum job_state state;
    uint64_t number; /* rises */
    struct kvf_node_peer *peer;
    uint64_t incarnation, request, arrived_ns, deadline_ns;
    _Atomic bool over; /* nobody waits any more, or the deadline has passed */
    uint64_t hash;     /* of the question */
    struct kvf_attend_question question;
    struct job_item items[KVF_BATCH_MAX];
    uint8_t verdicts[KVF_BATCH_MAX];
    size_t bytes;      /* of the answer */
    uint8_t *message;  /* [KVF_ATTEND_QUESTION_BYTES] */
    float *queries;    /* [..] of the question, aligned */
    uint8_t *answer;   /* [KVF_ATTEND_ANSWER_BYTES]: head, then parts */
    float *parts;      /* [KVF_ATTEND_ANSWER_BYTES] one for every item */
};

struct kvf_attend_serve {
    struct job *jobs;
    unsigned n_jobs, active, ready;
    uint64_t numbers;
    uint8_t *memory, *scratch; /* scratch: [workers][2][scratch_bytes]: codes, and a block */
    size_t scratch_bytes;
    uint8_t probe[16 + KVF_ATTEND_PROBE_BYTES]; /* the answer to one */
    pthread_t thread;
    bool started, stop;
    pthread_cond_t work; /* with the core's lock */
};

enum kvf_status kvf_attend_serves_create(struct kvf_core *core)
{
    uint64_t n = core->settings.attend_serve;
    if (!core->transport || n == 0)
        return KVF_OK;
    struct kvf_attend_serve *s = core->attend_serve = calloc(1, sizeof *s);
    if (!s || pthread_cond_init(&s->work, NULL) != 0)
        return KVF_ERR_NO_MEMORY;
    size_t each = 2 * (KVF_ATTEND_QUESTION_BYTES + KVF_ATTEND_ANSWER_BYTES), workers = kvf_workers_count(core->workers);
    s->scratch_bytes = core->settings.block_bytes_max < SCRATCH_MAX ? core->settings.block_bytes_max : SCRATCH_MAX;
    s->scratch_bytes = (s->scratch_bytes + 63) / 64 * 64;
    s->jobs = calloc(n, sizeof *s->jobs);
    s->memory = aligned_alloc(64, n * each);
    s->scratch = aligned_alloc(64, workers * 2 * s->scratch_bytes);
    if (!s->jobs || !s->memory || !s->scratch)
        return KVF_ERR_NO_MEMORY;
    s->n_jobs = (unsigned)n;
    for (unsigned i = 0; i < s->n_jobs; i++) {
        struct job *job = &s->jobs[i];
        job->core = core;
        job->message = s->memory + i * each;
        job->queries = (float *)(void *)(job->message + KVF_ATTEND_QUESTION_BYTES);
        job->answer = job->message + 2 * KVF_ATTEND_QUESTION_BYTES;
        job->parts = (float *)(void *)(job->answer + KVF_ATTEND_ANSWER_BYTES);
    }
    struct kvf_attend_ability own;
    kvf_attend_cost_own(core, &own);
    struct kvf_writer w = kvf_writer_of(s->probe, sizeof s->probe);
    kvf_attend_wire_ability(&w, &own);
    return KVF_OK;
}

void kvf_attend_serves_destroy(struct kvf_core *core)
{
    struct kvf_attend_serve *s = core->attend_serve;
    if (!s)
        return;
    assert(!s->started);
    pthread_cond_destroy(&s->work);
    free(s->jobs);
    free(s->memory);
    free(s->scratch);
    free(s);
    core->attend_serve = NULL;
}

/* ---------------------------------------------------------------- the work (without the lock) */

struct work {
    struct kvf_attend_serve *serve;
    struct job *job;
};

/* Chunks of an item, copied to their places in `to` and checked there. */
static bool copy_checked(const struct job *job, const struct kvf_attend_item *it, const uint8_t *data, uint64_t seed, uint8_t *to)
{
    const struct kvf_dev *dev = job->core->dev;
    const struct kvf_attend_shape *s = &job->question.shape;
    uint32_t bytes = kvf_attend_block_bytes(s, it->format) / s->chunks;
    struct kvf_reader words = kvf_reader_of(it->words, 64 * 8);
    for (uint64_t left = it->mask; left; left &= left - 1) {
        unsigned c = (unsigned)__builtin_ctzll(left);
        uint64_t found = 0;
        memcpy(to + (size_t)c * bytes, data + (size_t)c * bytes, bytes);
        dev->checksum(dev, NULL, to + (size_t)c * bytes, bytes, seed + c, &found);
        if (found != kvf_read_u64(&words))
            return false;
    }
    return true;
}

/* The item's chunks as attention reads them, in a worker's scratch. NULL: they do not match. */
static const uint8_t *item_bytes(const struct work *w, const struct kvf_attend_item *it, const uint8_t *data, unsigned worker)
{
    const struct kvf_dev *dev = w->job->core->dev;
    const struct kvf_attend_shape *s = &w->job->question.shape;
    uint8_t *block = w->serve->scratch + (size_t)worker * 2 * w->serve->scratch_bytes, *codes = block + w->serve->scratch_bytes;
    uint64_t seed = kvf_block_seed(s->fingerprint, it->key), scales[KVF_SUMS_MAX];
    if (it->format == KVF_COLD_EXACT)
        return copy_checked(w->job, it, data, seed, block) ? block : NULL;
    struct kvf_cold shape = {.format = (enum kvf_cold_format)it->format, .dtype = s->dtype, .n_chunks = s->chunks,
                             .chunk_tokens = s->chunk_tokens, .dim_k = s->dim_k, .dim_v = s->dim_v};
    memcpy(scales, it->words + (size_t)__builtin_popcountll(it->mask) * 8, kvf_attend_scale_words(s) * sizeof *scales);
    if (!copy_checked(w->job, it, data, kvf_cold_seed(dev, seed, &shape, scales), codes))
        return NULL;
    return dev->decode(dev, NULL, &shape, it->mask, codes, scales, block) == KVF_OK ? block : NULL;
}

static void item_attend(void *arg, unsigned item, unsigned worker)
{
    const struct work *w = arg;
    struct job *job = w->job;
    const struct kvf_attend_shape *s = &job->question.shape;
    const struct kvf_attend_item *it = &job->question.items[item];
    const void *chunks[64];
    uint32_t visible[KVF_ATTEND_ROWS_MAX], n = 0;
    if (!job->items[item].data || atomic_load_explicit(&job->over, memory_order_relaxed))
        return;
    if (job->deadline_ns && kvf_now(job->core->env) >= job->deadline_ns) {
        atomic_store(&job->over, true);
        return;
    }
    const uint8_t *block = item_bytes(w, it, job->items[item].data, worker);
    job->verdicts[item] = block ? KVF_ATTEND_GOOD : KVF_ATTEND_NOT_HERE;
    if (!block)
        return;
    uint32_t bytes = kvf_attend_block_bytes(s, KVF_COLD_EXACT) / s->chunks;
    for (uint64_t left = it->mask; left; left &= left - 1)
        chunks[n++] = block + (size_t)__builtin_ctzll(left) * bytes;
    for (uint32_t r = 0; r < s->rows; r++)
        visible[r] = n * s->chunk_tokens;
    float *out = job->parts + item * kvf_attend_part_bytes(s) / sizeof(float);
    struct kvf_attend args = {.chunks = chunks, .n_chunks = n, .chunk_tokens = s->chunk_tokens, .dim_k = s->dim_k,
                              .dim_v = s->dim_v, .dtype = s->dtype, .q = job->queries + (size_t)it->set * s->rows * s->dim_k,
                              .q_stride = s->dim_k, .n_queries = s->rows, .visible = visible, .scale = s->scale, .out = out,
                              .out_stride = s->dim_v, .lse = out + (size_t)s->rows * s->dim_v};
    if (job->core->dev->attend(job->core->dev, NULL, &args) != KVF_OK)
        job->verdicts[item] = KVF_ATTEND_TOO_LARGE;
}

/* Merges the good parts of one set, in the order of the items, into one of them; NULL: there is none. */
static const float *set_merge(struct job *job, unsigned set)
{
    const struct kvf_attend_question *q = &job->question;
    const struct kvf_attend_shape *s = &q->shape;
    size_t floats = kvf_attend_part_bytes(s) / sizeof(float), lse = (size_t)s->rows * s->dim_v;
    float *sum = NULL;
    for (unsigned i = 0; i < q->n_items; i++) {
        float *part = job->parts + i * floats;
        if (q->items[i].set != set || job->verdicts[i] != KVF_ATTEND_GOOD)
            continue;
        if (!sum) {
            sum = part;
            continue;
        }
        struct kvf_merge merge = {.outs = (const float *const[]){sum, part}, .lses = (const float *const[]){sum + lse, part + lse},
                                  .n_parts = 2, .n_queries = s->rows, .dim_v = s->dim_v, .out_stride = s->dim_v, .out = sum,
                                  .lse = sum + lse};
        job->core->dev->merge(job->core->dev, NULL, &merge);
    }
    return sum;
}

static void answer_make(struct job *job)
{
    const struct kvf_attend_question *q = &job->question;
    size_t part = kvf_attend_part_bytes(&q->shape);
    struct kvf_writer w = kvf_writer_of(job->answer + 8, KVF_ATTEND_ANSWER_BYTES - 8);
    uint64_t us = (kvf_now(job->core->env) - job->arrived_ns) / KVF_US, hash = 0;
    kvf_attend_wire_answer(&w, job->verdicts, q->n_items, us < UINT32_MAX ? (uint32_t)us : UINT32_MAX);
    for (unsigned i = 0; i < (q->shape.merged ? q->n_sets : q->n_items); i++) {
        const float *from = job->parts + i * part / sizeof(float);
        if (q->shape.merged)
            from = set_merge(job, i);
        else if (job->verdicts[i] != KVF_ATTEND_GOOD)
            from = NULL;
        if (from)
            kvf_write_bytes(&w, from, part);
    }
    assert(!w.bad);
    job->core->dev->checksum(job->core->dev, NULL, job->answer + 8, kvf_writer_used(&w), job->hash, &hash);
    job->bytes = 8 + kvf_writer_used(&w);
    w = kvf_writer_of(job->answer, 8);
    kvf_write_u64(&w, hash);
}

static void job_work(struct kvf_attend_serve *s, struct job *job)
{
    struct kvf_core *core = job->core;
    struct work w = {.serve = s, .job = job};
    unsigned n = job->question.n_items;
    uint64_t start = kvf_now(core->env);
    if (atomic_exchange(&core->workers_busy, true)) {
        for (unsigned i = 0; i < n; i++)
            item_attend(&w, i, 0);
    } else {
        kvf_workers_run(core->workers, n, item_attend, &w);
        atomic_store(&core->workers_busy, false);
    }
    if (!atomic_load(&job->over))
        answer_make(job);
    kvf_latency_add(&core->latencies, KVF_LATENCY_ATTEND_SERVE, kvf_now(core->env) - start);
}

/* ---------------------------------------------------------------- jobs (under the lock) */

static void job_free(struct job *job)
{
    job->state = JOB_FREE;
    job->core->attend_serve->active--;
}

static void unpin(struct job *job)
{
    for (unsigned i = 0; i < job->question.n_items; i++) {
        if (job->items[i].handle != KVF_HANDLE_NONE)
            kvf_block_let_go(job->core, job->items[i].handle);
        job->items[i].handle = KVF_HANDLE_NONE;
    }
}

static void count_job(const struct job *job)
{
    struct kvf_counters *c = &job->core->counters;
    const struct kvf_attend_question *q = &job->question;
    for (unsigned i = 0; i < q->n_items; i++) {
        if (job->verdicts[i] == KVF_ATTEND_NOT_HERE)
            kvf_count(&c->attend_serve_missed, 1);
        if (job->verdicts[i] != KVF_ATTEND_GOOD)
            continue;
        kvf_count(&c->attend_serve_blocks, 1);
        kvf_count(&c->attend_serve_bytes, (uint64_t)__builtin_popcountll(q->items[i].mask) *
                                              (kvf_attend_block_bytes(&q->shape, q->items[i].format) / q->shape.chunks));
    }
}

/* The oldest job that waits, worked on. false: there is none. The lock is given back meanwhile when there is a thread. */
static bool work_next(struct kvf_core *core)
{
    struct kvf_attend_serve *s = core->attend_serve;
    struct job *job = NULL;
    for (unsigned i = 0; i < s->n_jobs; i++)
        if (s->jobs[i].state == JOB_READY && (!job || s->jobs[i].number < job->number))
            job = &s->jobs[i];
    if (!job)
        return false;
    job->state = JOB_WORKING;
    s->ready--;
    bool there = job->peer->up && job->peer->member.incarnation == job->incarnation;
    atomic_store(&job->over, !there || (job->deadline_ns && kvf_now(core->env) >= job->deadline_ns));
    if (!atomic_load(&job->over)) {
        if (s->started)
            kvf_core_unlock(core);
        job_work(s, job);
        if (s->started)
            kvf_core_lock(core);
    }
    unpin(job);
    job->state = JOB_DONE;
    if (atomic_load(&job->over))
        kvf_count(&core->counters.attend_serve_dropped, 1);
    else
        count_job(job);
    return true;
}

static void *serve_run(void *arg)
{
    struct kvf_core *core = arg;
    struct kvf_attend_serve *s = core->attend_serve;
    kvf_core_lock(core);
    while (!s->stop) {
        if (work_next(core))
            kvf_core_wake(core);
        else
            pthread_cond_wait(&s->work, &core->lock);
    }
    kvf_core_unlock(core);
    return NULL;
}

enum kvf_status kvf_attend_serve_start(struct kvf_core *core)
{
    struct kvf_attend_serve *s = core->attend_serve;
    if (!s)
        return KVF_OK;
    s->started = pthread_create(&s->thread, NULL, serve_run, core) == 0;
    if (s->started)
        pthread_setname_np(s->thread, "kvf-attend");
    return s->started ? KVF_OK : KVF_ERR_NO_MEMORY;
}

void kvf_attend_serve_stop(struct kvf_core *core)
{
    struct kvf_attend_serve *s = core->attend_serve;
    if (!s)
        return;
    kvf_core_lock(core);
    s->stop = true;
    pthread_cond_signal(&s->work);
    kvf_core_unlock(core);
    if (s->started)
        pthread_join(s->thread, NULL);
    s->started = false;
    for (unsigned i = 0; i < s->n_jobs; i++)
        if (s->jobs[i].state == JOB_READY)
            unpin(&s->jobs[i]);
}

/* ---------------------------------------------------------------- questions (under the lock) */

static void refuse(struct kvf_node_peer *p, uint64_t request, enum kvf_status status)
{
    if (request)
        kvf_fabric_reply(p->peer, request, status, NULL, 0, NULL, NULL);
}

/* Where the block of an item lies. */
static void item_find(struct job *job, unsigned i)
{
    struct kvf_core *core = job->core;
    const struct kvf_attend_item *it = &job->question.items[i];
    uint32_t bytes = kvf_attend_block_bytes(&job->question.shape, it->format);
    job->items[i] = (struct job_item){.handle = KVF_HANDLE_NONE};
    job->verdicts[i] = KVF_ATTEND_NOT_HERE;
    if (kvf_attend_block_bytes(&job->question.shape, KVF_COLD_EXACT) > core->attend_serve->scratch_bytes) {
        job->verdicts[i] = KVF_ATTEND_TOO_LARGE;
        return;
    }
    if (it->offset != KVF_ATTEND_BY_KEY) {
        job->items[i].data = kvf_lend_data(core, job->peer, it->key, it->offset, bytes);
        return;
    }
    kvf_handle handle = kvf_index_find(core->index, it->key);
    struct kvf_entry *e = handle == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, handle);
    if (!e || e->bytes != bytes || (e->flags & KVF_FLAG_REMOVED) || e->state == KVF_BLOCK_LOST || e->state == KVF_BLOCK_WRITING)
        return;
    job->verdicts[i] = KVF_ATTEND_NOT_NOW;
    if (e->tier != KVF_TIER_DRAM || !kvf_entry_pin(e))
        return;
    job->items[i].handle = handle;
    job->items[i].data = core->memory + kvf_entry_location(e);
}

static struct job *job_new(struct kvf_attend_serve *s, const struct kvf_node_peer *from)
{
    struct job *job = NULL;
    unsigned of_peer = 0;
    for (unsigned i = 0; i < s->n_jobs; i++) {
        if (s->jobs[i].state == JOB_FREE)
            job = &s->jobs[i];
        else
            of_peer += s->jobs[i].peer == from;
    }
    return of_peer < (s->n_jobs + 1) / 2 ? job : NULL;
}

/* Copied and decoded. false: it is no question. */
static bool job_fill(struct job *job, const struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_attend_question *q = &job->question;
    const struct kvf_dev *dev = job->core->dev;
    if (message->bytes > KVF_ATTEND_QUESTION_BYTES)
        return false;
    memcpy(job->message, message->payload, message->bytes);
    struct kvf_reader r = kvf_reader_of(job->message, message->bytes);
    if (!kvf_attend_wire_question_read(&r, q))
        return false;
    size_t most = kvf_peer_payload_max(from->peer), part = kvf_attend_part_bytes(&q->shape);
    most = most < KVF_ATTEND_ANSWER_BYTES ? most : KVF_ATTEND_ANSWER_BYTES;
    if (14 + KVF_BATCH_MAX + (q->shape.merged ? q->n_sets : q->n_items) * part > most)
        return false;
    if (q->n_items * part > KVF_ATTEND_ANSWER_BYTES) /* merged ones too have a part each while they are computed */
        return false;
    memcpy(job->queries, q->queries, (size_t)q->n_sets * q->shape.rows * q->shape.dim_k * sizeof(float));
    dev->checksum(dev, NULL, job->message, message->bytes, q->shape.fingerprint, &job->hash);
    return true;
}

static void on_attend(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_attend_serve *s = core->attend_serve;
    struct job *job = job_new(s, from);
    if (!job) {
        kvf_count(&core->counters.attend_serve_busy, 1);
        refuse(from, message->request, KVF_ERR_BUSY);
        return;
    }
    if (!job_fill(job, from, message)) {
        kvf_count(&core->counters.messages_refused, 1);
        refuse(from, message->request, KVF_ERR_INVALID);
        return;
    }
    job->peer = from;
    job->incarnation = from->member.incarnation;
    job->request = message->request;
    job->arrived_ns = kvf_now(core->env);
    job->deadline_ns = message->deadline_ns;
    job->number = s->numbers++;
    for (unsigned i = 0; i < job->question.n_items; i++)
        item_find(job, i);
    job->state = JOB_READY;
    s->active++;
    s->ready++;
    pthread_cond_signal(&s->work);
}

static void probe_sent(void *arg, enum kvf_status status)
{
    /* The answer is the same for all, and stays. */
}

static void on_probe(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    uint32_t padding;
    if (!kvf_attend_wire_probe_read(&r, &padding)) {
        kvf_count(&core->counters.messages_refused, 1);
        refuse(from, message->request, KVF_ERR_INVALID);
        return;
    }
    struct iovec part = {.iov_base = core->attend_serve->probe, .iov_len = 16 + padding};
    kvf_fabric_reply(from->peer, message->request, KVF_OK, &part, 1, probe_sent, NULL);
}

void kvf_attend_serve_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    if (!core->attend_serve)
        refuse(from, message->request, KVF_ERR_UNSUPPORTED);
    else if (message->type == KVF_MSG_ATTEND)
        on_attend(core, from, message);
    else
        on_probe(core, from, message);
}

static void sent(void *arg, enum kvf_status status)
{
    job_free(arg);
}

unsigned kvf_attend_serves_poll(struct kvf_core *core)
{
    struct kvf_attend_serve *s = core->attend_serve;
    unsigned events = 0;
    if (!s || s->active == 0)
        return 0;
    while (!s->started && !s->stop && work_next(core)) /* a stepped test */
        events++;
    for (unsigned i = 0; i < s->n_jobs; i++) {
        struct job *job = &s->jobs[i];
        if (job->state != JOB_DONE)
            continue;
        bool there = job->peer->up && job->peer->member.incarnation == job->incarnation && !atomic_load(&job->over);
        struct iovec part = {.iov_base = job->answer, .iov_len = job->bytes};
        enum kvf_status st = KVF_ERR_PEER_LOST;
        if (there)
            st = kvf_fabric_reply(job->peer->peer, job->request, KVF_OK, &part, 1, sent, job);
        if (st == KVF_ERR_BUSY)
            continue;
        events++;
        if (st == KVF_OK)
            job->state = JOB_SENDING;
        else
            job_free(job);
    }
    return events;
}

bool kvf_attend_serves_idle(const struct kvf_core *core)
{
    return !core->attend_serve || core->attend_serve->active == 0;
}
