/* kvf bench index: look-up, pin and unpin of blocks in DRAM, by one thread and by as many as there are cores, without a lock.
 *
 * Beside it, in the same rounds, the same work on a plain array: the index's own entries, reached by a number that was written
 * down before instead of by key. What the index costs is the difference. Both draw their blocks in the same random order; both
 * compare what they pinned with what they should have. */
#include "bench/bench.h"
#include "base/hash.h"
#include "tiers/index.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { THREADS_MAX = 64, BATCH = 64, FLIGHT = 16, SAMPLE_EVERY = 16, LATENCY_ROUNDS = 5 };
#define OPS (1u << 15)        /* of a thread per turn: a millisecond or a few, which a busy machine may leave whole */
#define DRAWS_MAX (1u << 23)  /* blocks in a thread's list, which it goes through again and again: more than caches hold */
#define SAMPLES (1u << 15)    /* timed operations of a thread and latency round */
#define ABSENT 100000u

/* What a thread looks up: keys for the index, handles for the array. */
struct draws {
    struct kvf_key *keys;
    kvf_handle *handles;
    uint32_t at;
};

struct set {
    struct kvf_index *index;
    struct kvf_entry *entries; /* all of them, by handle */
    uint64_t n;
    unsigned cores;
    uint32_t draws_count;
    struct draws draws[THREADS_MAX];
    _Atomic uint64_t wrong;
};

enum way { ARRAY, INDEX, ARRAY_MANY, INDEX_MANY, WAYS };

struct work {
    struct set *set;
    enum way way;
    unsigned threads, number; /* how many there are, and which this one is */
    uint32_t *samples;        /* ns of single operations, or NULL: throughput */
};

static struct kvf_key key_at(uint64_t seed, uint64_t i)
{
    return (struct kvf_key){.hi = kvf_mix(seed, i), .lo = kvf_mix(i, seed + 1)};
}

/* ---------------------------------------------------------------- the work */

/* As kvf_index_pin and kvf_index_unpin do it, without the look-up. */
static bool array_pin(struct kvf_entry *e)
{
    uint32_t word = atomic_load_explicit(&e->word, memory_order_relaxed);
    do
        if (!(word & KVF_WORD_OPEN) || (word & KVF_WORD_PINS) == KVF_ENTRY_PINS_MAX)
            return false;
    while (!atomic_compare_exchange_weak_explicit(&e->word, &word, word + 1, memory_order_acquire, memory_order_relaxed));
    return true;
}

static void array_unpin(struct kvf_entry *e)
{
    uint32_t word = atomic_load_explicit(&e->word, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&e->word, &word, word - 1, memory_order_acq_rel, memory_order_relaxed)) {
    }
}

static uint64_t array_one(const struct set *s, kvf_handle handle)
{
    struct kvf_entry *e = &s->entries[handle];
    uint64_t wrong = !array_pin(e) || e->location4k != handle;
    array_unpin(e);
    return wrong;
}

static uint64_t index_one(const struct set *s, struct kvf_key key, kvf_handle handle)
{
    kvf_handle found = KVF_HANDLE_NONE;
    if (kvf_index_pin(s->index, key, &found) != KVF_SEEN_OPEN)
        return 1;
    uint64_t wrong = found != handle || kvf_index_pinned(s->index, found)->location4k != handle;
    kvf_index_unpin(s->index, found);
    return wrong;
}

static uint64_t array_many(const struct set *s, const kvf_handle *handles)
{
    uint64_t wrong = 0;
    for (unsigned from = 0; from < BATCH; from += FLIGHT) {
        for (unsigned i = from; i < from + FLIGHT; i++) {
            __builtin_prefetch(&s->entries[handles[i]], 1);
            __builtin_prefetch(&s->entries[handles[i]].bytes, 1);
        }
        for (unsigned i = from; i < from + FLIGHT; i++)
            wrong += !array_pin(&s->entries[handles[i]]) || s->entries[handles[i]].location4k != handles[i];
    }
    for (unsigned i = 0; i < BATCH; i++)
        array_unpin(&s->entries[handles[i]]);
    return wrong;
}

static uint64_t index_many(const struct set *s, const struct kvf_key *keys, const kvf_handle *handles)
{
    kvf_handle found[BATCH];
    uint64_t wrong = BATCH - kvf_index_pin_many(s->index, keys, BATCH, found);
    if (wrong)
        return wrong;
    for (unsigned i = 0; i < BATCH; i++) {
        wrong += found[i] != handles[i] || kvf_index_pinned(s->index, found[i])->location4k != handles[i];
        kvf_index_unpin(s->index, found[i]);
    }
    return wrong;
}

/* Keeps the loops of the ways apart, so that none pays for a choice per operation. */
static uint64_t ops(struct set *s, struct draws *d, enum way way, uint32_t n)
{
    uint64_t wrong = 0;
    if (d->at + n > s->draws_count)
        d->at = 0;
    const struct kvf_key *keys = d->keys + d->at;
    const kvf_handle *handles = d->handles + d->at;
    d->at += n;
    if (way == ARRAY)
        for (uint32_t i = 0; i < n; i++)
            wrong += array_one(s, handles[i]);
    else if (way == INDEX)
        for (uint32_t i = 0; i < n; i++)
            wrong += index_one(s, keys[i], handles[i]);
    else if (way == ARRAY_MANY)
        for (uint32_t i = 0; i < n; i += BATCH)
            wrong += array_many(s, handles + i);
    else
        for (uint32_t i = 0; i < n; i += BATCH)
            wrong += index_many(s, keys + i, handles + i);
    return wrong;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Single operations, one in SAMPLE_EVERY with the clock read before and after it. */
static uint64_t timed_ops(struct set *s, struct draws *d, enum way way, uint32_t *samples)
{
    uint64_t wrong = 0;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        wrong += ops(s, d, way, SAMPLE_EVERY - 1);
        if (d->at == s->draws_count)
            d->at = 0;
        uint32_t at = d->at++;
        uint64_t start = now_ns();
        wrong += way == ARRAY ? array_one(s, d->handles[at]) : index_one(s, d->keys[at], d->handles[at]);
        samples[i] = (uint32_t)(now_ns() - start);
    }
    return wrong;
}

static void *work_thread(void *arg)
{
    struct work *w = arg;
    struct draws *d = &w->set->draws[w->number];
    uint64_t wrong = w->samples ? timed_ops(w->set, d, w->way, w->samples) : ops(w->set, d, w->way, OPS);
    if (wrong)
        atomic_fetch_add(&w->set->wrong, wrong);
    return NULL;
}

/* One turn: all threads do it once. Making threads costs some 20 us, a turn takes milliseconds. */
static void work_run(void *arg)
{
    struct work *w = arg, parts[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    unsigned made = 1;
    for (unsigned i = 0; i < w->threads; i++) {
        parts[i] = *w;
        parts[i].number = i;
        if (w->samples)
            parts[i].samples = w->samples + (size_t)i * SAMPLES;
    }
    while (made < w->threads && pthread_create(&threads[made], NULL, work_thread, &parts[made]) == 0)
        made++;
    work_thread(&parts[0]);
    for (unsigned i = 1; i < made; i++)
        pthread_join(threads[i], NULL);
    if (made < w->threads)
        atomic_fetch_add(&w->set->wrong, 1);
}

/* ---------------------------------------------------------------- set-up */

static uint64_t meminfo(const char *what)
{
    char line[128];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, what, strlen(what)))
            kib = strtoull(line + strlen(what), NULL, 10);
    if (f)
        fclose(f);
    return kib * 1024;
}

static uint64_t resident(void)
{
    unsigned long long size = 0, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%llu %llu", &size, &pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void set_free(struct set *s)
{
    for (unsigned t = 0; t < s->cores; t++) {
        free(s->draws[t].keys);
        free(s->draws[t].handles);
    }
    kvf_index_destroy(s->index);
}

/* An index that is full, 80 % of its table in use, all of it open. *rate: entries added per second. */
static bool set_fill(struct set *s, uint64_t seed, double *rate)
{
    double start = kvf_bench_now();
    for (uint64_t i = 0; i < s->n; i++) {
        kvf_handle h;
        if (kvf_index_add(s->index, key_at(seed, i), &h) != KVF_OK || h != i)
            return false;
        struct kvf_entry *e = kvf_index_entry(s->index, h);
        e->location4k = h;
        kvf_entry_open(e);
    }
    *rate = (double)s->n / (kvf_bench_now() - start);
    return true;
}

static bool set_make(struct set *s, uint64_t seed, double *rate, double *touched)
{
    if (kvf_index_create(s->n, &s->index) != KVF_OK)
        return false;
    uint64_t before = resident();
    if (!set_fill(s, seed, rate))
        return false;
    *touched = (double)(resident() - before) / (double)s->n;
    s->entries = kvf_index_entry(s->index, 0);
    for (unsigned t = 0; t < s->cores; t++) {
        struct draws *d = &s->draws[t];
        d->keys = malloc(s->draws_count * sizeof *d->keys);
        d->handles = malloc(s->draws_count * sizeof *d->handles);
        if (!d->keys || !d->handles)
            return false;
        for (uint32_t i = 0; i < s->draws_count; i++) {
            uint64_t block = kvf_mix(seed + t, i) % s->n;
            d->keys[i] = key_at(seed, block);
            d->handles[i] = (kvf_handle)block;
        }
    }
    return true;
}

/* Every key finds its own handle, and none is found that was not put. */
static bool set_verify(const struct set *s, uint64_t seed)
{
    for (uint64_t i = 0; i < s->n; i++)
        if (kvf_index_find(s->index, key_at(seed, i)) != i)
            return false;
    for (uint64_t i = 0; i < ABSENT; i++)
        if (kvf_index_peek(s->index, key_at(seed + 7, s->n + i)) != KVF_SEEN_NOT)
            return false;
    return true;
}

/* ---------------------------------------------------------------- results */

static const char *const way_names[WAYS] = {"plain array", "index", "plain array, 64 at once", "index, 64 at once"};

static void name_of(char *name, size_t size, enum way way, const char *blocks, unsigned threads, const char *what)
{
    snprintf(name, size, "%s, %s, %u thread%s%s", way_names[way], blocks, threads, threads == 1 ? "" : "s", what);
}

static void throughput(struct kvf_bench *bench, struct set *s, const char *blocks, double seconds)
{
    unsigned counts[2] = {1, s->cores}, n_counts = s->cores > 1 ? 2 : 1;
    struct work work[2 * WAYS];
    struct kvf_bench_case *cases = calloc(2 * WAYS, sizeof *cases);
    assert(2 * WAYS <= KVF_BENCH_CASES_MAX);
    for (unsigned c = 0; c < n_counts; c++)
        for (unsigned w = 0; w < WAYS; w++) {
            work[c * WAYS + w] = (struct work){.set = s, .way = (enum way)w, .threads = counts[c]};
            cases[c * WAYS + w] = (struct kvf_bench_case){.run = work_run, .arg = &work[c * WAYS + w], .work = OPS};
        }
    kvf_bench_interleave(cases, n_counts * WAYS, seconds);
    for (unsigned i = 0; i < n_counts * WAYS; i++) {
        char name[96];
        bool is_index = work[i].way == INDEX || work[i].way == INDEX_MANY;
        name_of(name, sizeof name, work[i].way, blocks, work[i].threads, "");
        kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "M/s/core", .n = cases[i].rounds,
                                                        .value = kvf_bench_rate(&cases[i], 50) / 1e6,
                                                        .p50 = kvf_bench_rate(&cases[i], 50) / 1e6,
                                                        .p99 = kvf_bench_rate(&cases[i], 99) / 1e6,
                                                        .limit_name = is_index ? "array" : NULL,
                                                        .limit_value = is_index ? kvf_bench_rate(&cases[i - 1], 50) / 1e6 : 0});
    }
    free(cases);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static bool latency(struct kvf_bench *bench, struct set *s, const char *blocks, unsigned threads)
{
    size_t per_round = (size_t)threads * SAMPLES, n = per_round * LATENCY_ROUNDS;
    uint32_t *samples[2] = {malloc(n * sizeof **samples), malloc(n * sizeof **samples)};
    double p99_array = 0;
    for (unsigned r = 0; samples[0] && samples[1] && r < LATENCY_ROUNDS; r++)
        for (unsigned w = 0; w < 2; w++)
            work_run(&(struct work){.set = s, .way = (enum way)w, .threads = threads, .samples = samples[w] + r * per_round});
    bool good = samples[0] && samples[1];
    for (unsigned w = 0; good && w < 2; w++) {
        char name[96];
        qsort(samples[w], n, sizeof **samples, by_value);
        name_of(name, sizeof name, (enum way)w, blocks, threads, ", p99 of one");
        double p50 = samples[w][n / 2], p99 = samples[w][n / 100 * 99];
        kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "ns", .n = n, .value = p99, .p50 = p50, .p99 = p99,
                                                        .limit_name = w ? "array" : NULL, .limit_value = p99_array});
        p99_array = p99;
    }
    free(samples[0]);
    free(samples[1]);
    return good;
}

static void sizes(struct kvf_bench *bench, const struct set *s, const char *blocks, double rate, double touched)
{
    char name[96];
    double all = (double)kvf_index_bytes(s->index) / (double)s->n;
    snprintf(name, sizeof name, "index, %s, memory per block", blocks);
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "bytes", .n = s->n, .value = all, .p50 = all, .p99 = all,
                                                    .limit_name = "at most", .limit_value = 48});
    snprintf(name, sizeof name, "index, %s, resident per block when full", blocks);
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "bytes", .n = s->n, .value = touched, .p50 = touched,
                                                    .p99 = touched, .limit_name = "at most", .limit_value = 48});
    snprintf(name, sizeof name, "index, %s, add", blocks);
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "M/s", .n = s->n, .value = rate / 1e6, .p50 = rate / 1e6,
                                                    .p99 = rate / 1e6});
}

static bool measure(struct kvf_bench *bench, uint64_t n, const char *blocks, unsigned cores)
{
    struct set *s = calloc(1, sizeof *s);
    double rate = 0, touched = 0;
    if (!s)
        return false;
    s->n = n;
    s->draws_count = n < DRAWS_MAX ? (uint32_t)n : DRAWS_MAX;
    s->cores = cores;
    bool good = set_make(s, bench->seed, &rate, &touched) && set_verify(s, bench->seed);
    if (good) {
        sizes(bench, s, blocks, rate, touched);
        throughput(bench, s, blocks, bench->seconds / 2);
        good = latency(bench, s, blocks, 1) && (cores == 1 || latency(bench, s, blocks, cores));
    }
    good = good && atomic_load(&s->wrong) == 0;
    if (!good)
        fprintf(stderr, "kvf bench index: %s blocks: no memory, or a look-up was wrong\n", blocks);
    set_free(s);
    free(s);
    return good;
}

/* The clock's own share of a latency. */
static void clock_cost(struct kvf_bench *bench)
{
    uint32_t *samples = malloc(SAMPLES * sizeof *samples);
    for (uint32_t i = 0; samples && i < SAMPLES; i++) {
        uint64_t start = now_ns();
        samples[i] = (uint32_t)(now_ns() - start);
    }
    if (!samples)
        return;
    qsort(samples, SAMPLES, sizeof *samples, by_value);
    double p50 = samples[SAMPLES / 2], p99 = samples[SAMPLES / 100 * 99];
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = "the clock alone, in every latency below", .unit = "ns", .n = SAMPLES,
                                                    .value = p50, .p50 = p50, .p99 = p99});
    free(samples);
}

bool kvf_bench_index_run(struct kvf_bench *bench)
{
    static const struct {
        uint64_t n;
        const char *name;
    } of[] = {{1u << 20, "1M"}, {1u << 25, "32M"}};
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned cores = online < 1 ? 1 : online > THREADS_MAX ? THREADS_MAX : (unsigned)online;
    bool good = true;
    json_object_set_new(bench->config, "cores", json_integer(cores));
    json_object_set_new(bench->config, "entry_bytes", json_integer(sizeof(struct kvf_entry)));
    json_t *skipped = json_object();
    clock_cost(bench);
    for (unsigned i = 0; good && i < sizeof of / sizeof *of; i++) {
        uint64_t need = of[i].n * 64 + (uint64_t)cores * DRAWS_MAX * 20, available = meminfo("MemAvailable:");
        if (available < need) {
            char why[128];
            snprintf(why, sizeof why, "%llu MiB of memory are available, %llu are needed", (unsigned long long)available >> 20,
                     (unsigned long long)need >> 20);
            fprintf(stderr, "kvf bench index: %s blocks left out: %s\n", of[i].name, why);
            json_object_set_new(skipped, of[i].name, json_string(why));
            continue;
        }
        good = measure(bench, of[i].n, of[i].name, cores);
    }
    json_object_set_new(bench->config, "skipped", skipped);
    bench->verified = good;
    return good;
}
