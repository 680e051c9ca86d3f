/* The benches: one table of them, one schema that all write, and helpers for measuring beside a limit.
 *
 * A bench fills a struct kvf_bench: rows of results, configuration, and whether it verified the bytes or numbers that it
 * timed. bench.c prints the table and writes the JSON ("kvf-bench/1", bench/README.md). Benches run in one thread. */
#ifndef KVF_BENCH_BENCH_H
#define KVF_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

enum { KVF_BENCH_ROUNDS_MAX = 512, KVF_BENCH_CASES_MAX = 8, KVF_BENCH_LOGS_MAX = 16, KVF_BENCH_CAPACITIES_MAX = 32,
       KVF_BENCH_LIST_MAX = 16 };

struct kvf_bench {
    /* options */
    uint64_t seed;
    double seconds;    /* about how long the whole bench may take */
    const char *dtype; /* f16, bf16, f32, or NULL for the bench's own choice */
    const char *table; /* only the device table of this name, or NULL for all */
    const char *json;  /* file, or NULL */
    const char *logs[KVF_BENCH_LOGS_MAX]; /* --log, in the order given */
    unsigned n_logs;
    const char *trace; /* --trace, or NULL */
    const char *path;  /* --path, or NULL: a folder on the disk to measure */
    double memory_gib; /* --memory, or 0 */
    double capacities[KVF_BENCH_CAPACITIES_MAX]; /* --capacity, percent */
    unsigned n_capacities;
    const char *tls;      /* --tls, or NULL: every transport that the bench knows */
    uint32_t sizes[KVF_BENCH_LIST_MAX], depths[KVF_BENCH_LIST_MAX]; /* --size in bytes, --depth */
    unsigned n_sizes, n_depths;
    unsigned rounds, peers, spin_us; /* or 0 */
    const char *serve, *peer, *interface, *secret_file; /* --serve, --peer, --interface, --secret-file, or NULL */
    const char *python;   /* --python, or NULL */
    /* filled by the bench */
    bool verified;
    bool printed; /* it printed a table of its own: the plain one is left out */
    json_t *config, *results; /* owned by bench.c */
};

/* Runs one bench. False, with a line on standard error, when something could not be measured or was not right. */
struct kvf_bench_entry {
    const char *name, *help;
    bool (*run)(struct kvf_bench *bench);
};

/* One result: `value` in `unit`, the median over rounds; p50 and p99 of what `sampled` says (the same unit). */
struct kvf_bench_result {
    const char *name, *unit;
    double value, p50, p99;
    uint64_t n;             /* rounds or operations behind it */
    const char *limit_name; /* NULL: none was measured */
    double limit_value;     /* same unit, measured in the same run */
};
/* Appends it; ratio = value / limit_value. */
void kvf_bench_add(struct kvf_bench *bench, const struct kvf_bench_result *result);

/* Something to time: run(arg) once does `work` units (bytes, operations). */
struct kvf_bench_case {
    void (*run)(void *arg);
    void *arg;
    double work;
    double rate[KVF_BENCH_ROUNDS_MAX]; /* work per second of every round; sorted, slowest first, after measuring */
    uint32_t rounds;
};
/* Times n cases in turns (case 0, 1, .. n-1, 0, ..), so that a disturbed moment or a changed clock hits them alike, for
 * about `seconds` in all, at least 5 rounds; every turn repeats its case for about 300 us, or once. */
void kvf_bench_interleave(struct kvf_bench_case *cases, size_t n, double seconds);
/* The rate that `percent` of the rounds reached: 50 is the median, 99 nearly the slowest. */
double kvf_bench_rate(const struct kvf_bench_case *one, double percent);

/* Smallest first. */
void kvf_bench_sort(double *values, size_t n);

/* Seconds of a monotonic clock. */
double kvf_bench_now(void);

bool kvf_bench_kernels_run(struct kvf_bench *bench);
bool kvf_bench_cache_run(struct kvf_bench *bench);
bool kvf_bench_movement_run(struct kvf_bench *bench);
bool kvf_bench_serve_run(struct kvf_bench *bench);
bool kvf_bench_ssd_run(struct kvf_bench *bench);
bool kvf_bench_index_run(struct kvf_bench *bench);
bool kvf_bench_cold_run(struct kvf_bench *bench);
bool kvf_bench_policy_run(struct kvf_bench *bench);
bool kvf_bench_trace_run(struct kvf_bench *bench);
bool kvf_bench_start_run(struct kvf_bench *bench);
bool kvf_bench_attend_run(struct kvf_bench *bench);
bool kvf_bench_fabric_run(struct kvf_bench *bench);
bool kvf_bench_failure_run(struct kvf_bench *bench);
bool kvf_bench_rivals_run(struct kvf_bench *bench);

/* `kvf bench NAME [options]`; argv[0] is "bench". Returns the exit code: 0 done, 1 failed, 2 wrong usage. */
int kvf_bench_main(int argc, char **argv);
#endif
