/* kvf bench trace: hit rates of the block policies on a trace of a prefix cache's requests.
 *
 * The trace is JSON lines, one request each, with "hash_ids": the ids of its prefix blocks in order (Mooncake's format). A request
 * hits the blocks that are there from its beginning on without a gap; blocks behind a gap are worth nothing to it. It touches what
 * is there and inserts what is not, its end first (policy.h says why). The optimum is Belady's with bypass: it knows the future
 * and may leave a block out, so no policy with that capacity hits more blocks, let alone more without a gap. */
#include "base/hash.h"
#include "bench/bench.h"
#include "tiers/policy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRACE_DEFAULT "../shared/traces/conversation_trace.jsonl"
#define NEVER UINT32_MAX

enum { ACCESSES_MAX = 1 << 28, LINE_MAX_BYTES = 1 << 22 };

static const double capacities_default[] = {1, 2, 5, 10, 20, 30, 50, 100};

struct trace {
    uint64_t *raw;   /* [accesses] the file's ids, then, sorted and unique, the dense ids' names */
    uint32_t *ids;   /* [accesses] 0 .. blocks - 1 */
    uint32_t *ends;  /* [requests] one past its last access */
    uint32_t requests, accesses, blocks;
};

struct hits {
    uint64_t prefix, plain;
};

static void trace_free(struct trace *t)
{
    free(t->raw);
    free(t->ids);
    free(t->ends);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static bool grow(void *pointer, uint32_t n, size_t bytes)
{
    void **p = pointer;
    if (n & (n - 1)) /* room doubles at powers of two */
        return true;
    void *larger = realloc(*p, (n ? (size_t)n * 2 : 1) * bytes);
    if (larger)
        *p = larger;
    return larger;
}

/* One line. NULL, or why not. */
static const char *add_request(struct trace *t, const char *line)
{
    json_t *request = json_loads(line, 0, NULL), *hashes = json_object_get(request, "hash_ids"), *hash;
    const char *why = json_is_array(hashes) ? NULL : "a line is no JSON object with hash_ids";
    size_t i;
    json_array_foreach(hashes, i, hash) {
        if (!json_is_integer(hash) || t->accesses == ACCESSES_MAX || !grow(&t->raw, t->accesses, sizeof *t->raw))
            why = json_is_integer(hash) ? "it is too large" : "a hash id is no integer";
        if (why)
            break;
        t->raw[t->accesses++] = (uint64_t)json_integer_value(hash);
    }
    if (!why && !grow(&t->ends, t->requests, sizeof *t->ends))
        why = "it is too large";
    if (!why)
        t->ends[t->requests++] = t->accesses;
    json_decref(request);
    return why;
}

static const char *number(struct trace *t)
{
    uint64_t *sorted = malloc(((size_t)t->accesses + 1) * sizeof *sorted);
    t->ids = malloc(((size_t)t->accesses + 1) * sizeof *t->ids);
    if (!sorted || !t->ids) {
        free(sorted);
        return "it is too large";
    }
    memcpy(sorted, t->raw, t->accesses * sizeof *sorted);
    qsort(sorted, t->accesses, sizeof *sorted, by_value);
    for (uint32_t i = 0; i < t->accesses; i++)
        if (i == 0 || sorted[i] != sorted[t->blocks - 1])
            sorted[t->blocks++] = sorted[i];
    for (uint32_t i = 0; i < t->accesses; i++)
        t->ids[i] = (uint32_t)((uint64_t *)bsearch(&t->raw[i], sorted, t->blocks, sizeof *sorted, by_value) - sorted);
    free(sorted);
    return NULL;
}

static const char *trace_load(struct trace *t, FILE *f)
{
    char *line = NULL;
    size_t room = 0;
    const char *why = NULL;
    for (ssize_t n; !why && (n = getline(&line, &room, f)) > 0;)
        why = n > LINE_MAX_BYTES ? "a line is too long" : line[strspn(line, " \t\r\n")] ? add_request(t, line) : NULL;
    free(line);
    if (!why && t->accesses == 0)
        why = "it holds no requests";
    return why ? why : number(t);
}

/* ---------------------------------------------------------------- policies */

static void one_request(struct kvf_policy *p, const uint32_t *ids, uint32_t n, uint32_t capacity, struct hits *hits)
{
    bool whole = true;
    for (uint32_t i = 0; i < n; i++) {
        bool here = kvf_policy_has(p, ids[i]);
        whole = whole && here;
        hits->plain += here;
        hits->prefix += whole;
    }
    for (uint32_t i = n; i-- > 0;)
        if (kvf_policy_has(p, ids[i]))
            kvf_policy_mark(p, ids[i]); /* as the node says it, without its lock */
    for (uint32_t i = n; i-- > 0;) {
        if (kvf_policy_has(p, ids[i]))
            continue;
        if (kvf_policy_count(p) == capacity) {
            uint32_t victim = kvf_policy_victim(p, NULL, NULL);
            kvf_policy_evicted(p, victim, kvf_mix(victim, 0));
        }
        kvf_policy_insert(p, ids[i], kvf_mix(ids[i], 0));
    }
}

static bool run_policy(const struct trace *t, enum kvf_policy_kind kind, uint32_t capacity, struct hits *hits)
{
    struct kvf_policy *p;
    if (kvf_policy_create(kind, t->blocks, capacity, &p) != KVF_OK)
        return false;
    for (uint32_t r = 0; r < t->requests; r++) {
        uint32_t from = r ? t->ends[r - 1] : 0;
        one_request(p, t->ids + from, t->ends[r] - from, capacity, hits);
    }
    kvf_policy_destroy(p);
    return true;
}

/* ---------------------------------------------------------------- the optimum */

struct optimum {
    uint32_t *next;      /* [accesses] the next access of the same block, or NEVER */
    uint32_t *until;     /* [blocks] of a block that is here: its next access; else 0 */
    uint32_t *heap;      /* of accesses, the latest next one on top; stale ones are thrown away when they come up */
    uint32_t count, here;
};

static void sift(struct optimum *o, uint32_t at, bool up)
{
    uint32_t *h = o->heap;
    for (;;) {
        uint32_t other = up ? (at - 1) / 2 : 2 * at + 1;
        if (up ? at == 0 : other >= o->count)
            return;
        if (!up && other + 1 < o->count && o->next[h[other + 1]] > o->next[h[other]])
            other++;
        if (up ? o->next[h[at]] <= o->next[h[other]] : o->next[h[at]] >= o->next[h[other]])
            return;
        uint32_t x = h[at];
        h[at] = h[other];
        h[other] = x;
        at = other;
    }
}

static void let_go(struct optimum *o, const struct trace *t)
{
    uint32_t top = o->heap[0];
    o->heap[0] = o->heap[--o->count];
    sift(o, 0, false);
    if (o->until[t->ids[top]] == o->next[top]) { /* else it was used meanwhile, and stands elsewhere in the heap */
        o->until[t->ids[top]] = 0;
        o->here--;
    }
}

static uint64_t optimum_hits(struct optimum *o, const struct trace *t, uint32_t capacity)
{
    uint64_t hits = 0;
    memset(o->until, 0, t->blocks * sizeof *o->until);
    o->count = o->here = 0;
    for (uint32_t i = 0; i < t->accesses; i++) {
        bool here = o->until[t->ids[i]] != 0;
        hits += here;
        if (o->next[i] == NEVER) { /* never again: it leaves, or does not come in */
            o->here -= here;
            o->until[t->ids[i]] = 0;
            continue;
        }
        o->here += !here;
        o->until[t->ids[i]] = o->next[i];
        o->heap[o->count++] = i;
        sift(o, o->count - 1, true);
        while (o->here > capacity)
            let_go(o, t);
    }
    return hits;
}

static bool optimum_create(struct optimum *o, const struct trace *t)
{
    o->next = malloc(t->accesses * sizeof *o->next);
    o->until = malloc(t->blocks * sizeof *o->until);
    o->heap = malloc(t->accesses * sizeof *o->heap);
    if (!o->next || !o->until || !o->heap)
        return false;
    for (uint32_t b = 0; b < t->blocks; b++)
        o->until[b] = NEVER;
    for (uint32_t i = t->accesses; i-- > 0;) {
        o->next[i] = o->until[t->ids[i]];
        o->until[t->ids[i]] = i;
    }
    return true;
}

static void optimum_free(struct optimum *o)
{
    free(o->next);
    free(o->until);
    free(o->heap);
}

/* ---------------------------------------------------------------- the bench */

static double share(const struct trace *t, uint64_t hits)
{
    return 100.0 * (double)hits / t->accesses;
}

static void add(struct kvf_bench *bench, double capacity, const char *policy, const char *what, double value, uint64_t n,
                double best)
{
    char name[96];
    snprintf(name, sizeof name, "%s %g %% %s", policy, capacity, what);
    struct kvf_bench_result result = {.name = name, .unit = "hit %", .value = value, .p50 = value, .p99 = value, .n = n,
                                      .limit_name = best > 0 ? "optimum" : NULL, .limit_value = best};
    kvf_bench_add(bench, &result);
}

/* One capacity: a line of the table. */
static bool one_capacity(struct kvf_bench *bench, const struct trace *t, struct optimum *o, double percent)
{
    uint32_t capacity = (uint32_t)(percent / 100 * t->blocks);
    capacity = capacity ? capacity : 1;
    uint64_t best = optimum_hits(o, t, capacity);
    bool good = true;
    printf("%8g %% %9u %8.2f", percent, capacity, share(t, best));
    add(bench, percent, "optimum", "plain", share(t, best), t->accesses, 0);
    for (int kind = 0; kind < KVF_POLICY_KINDS && good; kind++) {
        struct hits hits = {0};
        good = run_policy(t, (enum kvf_policy_kind)kind, capacity, &hits);
        bool possible = hits.prefix <= hits.plain && hits.plain <= best && (percent < 100 || hits.plain == best);
        if (good && !possible)
            fprintf(stderr, "kvf bench: impossible hit rates of %s\n", kvf_policy_names[kind]);
        good = good && possible;
        printf("   %6.2f (%5.2f)", share(t, hits.prefix), share(t, hits.plain));
        add(bench, percent, kvf_policy_names[kind], "prefix", share(t, hits.prefix), t->accesses, share(t, best));
        add(bench, percent, kvf_policy_names[kind], "plain", share(t, hits.plain), t->accesses, share(t, best));
    }
    printf("\n");
    return good;
}

static bool run_all(struct kvf_bench *bench, const struct trace *t)
{
    struct optimum o = {0};
    const double *capacities = bench->n_capacities ? bench->capacities : capacities_default;
    unsigned n = bench->n_capacities ? bench->n_capacities : sizeof capacities_default / sizeof *capacities_default;
    bool good = optimum_create(&o, t);
    printf("%u requests, %u blocks used %u times; hits of %% of all uses: without a gap (and any)\n", t->requests, t->blocks,
           t->accesses);
    printf("%10s %9s %8s", "capacity", "blocks", "optimum");
    for (int kind = 0; kind < KVF_POLICY_KINDS; kind++)
        printf("   %14s", kvf_policy_names[kind]);
    printf("\n");
    for (unsigned i = 0; i < n && good; i++)
        good = one_capacity(bench, t, &o, capacities[i]);
    optimum_free(&o);
    return good;
}

bool kvf_bench_trace_run(struct kvf_bench *bench)
{
    const char *path = bench->trace ? bench->trace : TRACE_DEFAULT;
    FILE *f = fopen(path, "r");
    bench->printed = true;
    json_object_set_new(bench->config, "trace", json_string(path));
    if (!f && !bench->trace) {
        printf("skipped: there is no %s; give another with --trace\n", path);
        return true;
    }
    struct trace t = {0};
    const char *why = f ? trace_load(&t, f) : "it cannot be opened";
    if (f)
        fclose(f);
    if (why)
        fprintf(stderr, "kvf bench: %s: %s\n", path, why);
    bench->verified = !why && run_all(bench, &t);
    trace_free(&t);
    return bench->verified;
}
