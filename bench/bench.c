/* kvf bench: options, the table of benches, the interleaved measuring, the printed table and the JSON. */
#include "bench/bench.h"
#include "base/version.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "kernels/dev.h"

static const struct kvf_bench_entry benches[] = {
    {"kernels", "every operation of every CPU table, beside the reference and beside memcpy", kvf_bench_kernels_run},
    {"movement", "demand reads from SSD while blocks go down, are scrubbed and read ahead, beside the device alone",
     kvf_bench_movement_run},
    {"fabric", "pulls from a peer's memory over TCP and shared memory, beside ucx_perftest, iperf3, memcpy and Redis",
     kvf_bench_fabric_run},
    {"failure", "how long a peer's death, stop or dead link goes unnoticed, and what is lost, over TCP and shared memory",
     kvf_bench_failure_run},
    {"rivals", "reads of another process's memory over TCP, beside Redis and Mooncake Store where they are installed",
     kvf_bench_rivals_run},
    {"serve", "blocks on another node's SSD, read over TCP, beside the same blocks read by their own node", kvf_bench_serve_run},
    {"ssd", "the SSD tier beside fio, what it writes under churn, and how fast it recovers", kvf_bench_ssd_run},
    {"index", "look-up, pin and unpin of blocks in DRAM, beside a plain array, at 1 M and 32 M blocks", kvf_bench_index_run},
    {"cold", "what 8 bits an element below DRAM cost attention, and how fast they are made and read", kvf_bench_cold_run},
    {"cache", "the device cache's pass for one head, beside scoring its chunks and copying those selected", kvf_bench_cache_run},
    {"policy", "miss curves of the device cache's rules on recorded selections (--log)", kvf_bench_policy_run},
    {"trace", "hit rates of the block policies on a trace of requests (--trace)", kvf_bench_trace_run},
    {"attend", "attention over chunks at a lender in another process: pulled, or asked for where they lie", kvf_bench_attend_run},
    {"start", "how soon a node serves and its memory is ready, beside memset of as much (--memory)", kvf_bench_start_run},
};
enum { N_BENCHES = sizeof benches / sizeof *benches };

double kvf_bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Runs of a case that take about 300 us, found by doubling; also its warm-up. */
static uint32_t repeats_of(const struct kvf_bench_case *one)
{
    for (uint32_t n = 1;; n *= 2) {
        double start = kvf_bench_now();
        for (uint32_t i = 0; i < n; i++)
            one->run(one->arg);
        if (kvf_bench_now() - start > 150e-6 || n >= 1u << 20)
            return n == 1 ? 1 : n * 2;
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void kvf_bench_sort(double *values, size_t n) { qsort(values, n, sizeof *values, by_value); }

void kvf_bench_interleave(struct kvf_bench_case *cases, size_t n, double seconds)
{
    uint32_t repeats[KVF_BENCH_CASES_MAX];
    for (size_t c = 0; c < n; c++) {
        repeats[c] = repeats_of(cases + c);
        cases[c].rounds = 0;
    }
    double end = kvf_bench_now() + seconds;
    for (uint32_t round = 0; round < KVF_BENCH_ROUNDS_MAX && (round < 5 || kvf_bench_now() < end); round++) {
        for (size_t c = 0; c < n; c++) {
            double start = kvf_bench_now();
            for (uint32_t i = 0; i < repeats[c]; i++)
                cases[c].run(cases[c].arg);
            cases[c].rate[cases[c].rounds++] = cases[c].work * repeats[c] / (kvf_bench_now() - start);
        }
    }
    for (size_t c = 0; c < n; c++)
        kvf_bench_sort(cases[c].rate, cases[c].rounds);
}

double kvf_bench_rate(const struct kvf_bench_case *one, double percent)
{
    size_t i = (size_t)((100 - percent) / 100 * one->rounds);
    return one->rate[i < one->rounds ? i : one->rounds - 1];
}

void kvf_bench_add(struct kvf_bench *bench, const struct kvf_bench_result *r)
{
    json_t *row = json_pack("{s:s, s:s, s:f, s:f, s:f, s:I}", "name", r->name, "unit", r->unit, "value", r->value, "p50", r->p50,
                            "p99", r->p99, "n", (json_int_t)r->n);
    bool limit = r->limit_name && r->limit_value > 0;
    json_object_set_new(row, "limit_name", limit ? json_string(r->limit_name) : json_null());
    json_object_set_new(row, "limit_value", limit ? json_real(r->limit_value) : json_null());
    json_object_set_new(row, "ratio", limit ? json_real(r->value / r->limit_value) : json_null());
    json_array_append_new(bench->results, row);
}

/* The processor's name as the kernel gives it. */
static void cpu_name(char *name, size_t size)
{
    char line[256];
    snprintf(name, size, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (!strncmp(line, "model name", 10) && colon) {
            snprintf(name, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
            break;
        }
    }
    if (f)
        fclose(f);
}

static json_t *machine(void)
{
    char cpu[256];
    struct utsname kernel = {0};
    const struct kvf_dev *gpu = kvf_dev_cuda(0, NULL);
    cpu_name(cpu, sizeof cpu);
    uname(&kernel);
    return json_pack("{s:s, s:I, s:s, s:s}", "cpu", cpu, "cores", (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "kernel",
                     kernel.release, "gpu", gpu ? gpu->name : "none");
}

static bool write_json(const struct kvf_bench *bench, const char *name)
{
    json_t *root = json_pack("{s:s, s:s, s:o, s:s, s:O, s:I, s:b, s:O}", "schema", "kvf-bench/1", "name", name, "machine",
                             machine(), "commit", kvf_version_commit(), "config", bench->config, "seed", (json_int_t)bench->seed,
                             "verified", (int)bench->verified, "results", bench->results);
    bool done = root && !json_dump_file(root, bench->json, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    json_decref(root);
    if (!done)
        fprintf(stderr, "kvf bench: cannot write %s\n", bench->json);
    return done;
}

static void print_table(const struct kvf_bench *bench)
{
    size_t i;
    json_t *row;
    printf("%-46s %10s %10s %-8s %6s   %-12s %10s %7s\n", "result", "median", "p99", "unit", "n", "beside", "limit", "ratio");
    json_array_foreach(bench->results, i, row) {
        const char *limit = json_string_value(json_object_get(row, "limit_name"));
        printf("%-46s %10.2f %10.2f %-8s %6lld   ", json_string_value(json_object_get(row, "name")),
               json_number_value(json_object_get(row, "value")), json_number_value(json_object_get(row, "p99")),
               json_string_value(json_object_get(row, "unit")), (long long)json_integer_value(json_object_get(row, "n")));
        if (limit)
            printf("%-12s %10.2f %6.2fx", limit, json_number_value(json_object_get(row, "limit_value")),
                   json_number_value(json_object_get(row, "ratio")));
        printf("\n");
    }
    printf("outputs verified before timing: %s\n", bench->verified ? "yes" : "no");
}

static void usage(FILE *out)
{
    fprintf(out, "usage: kvf bench NAME [options]\n\nbenches:\n");
    for (size_t i = 0; i < N_BENCHES; i++)
        fprintf(out, "  %-12s %s\n", benches[i].name, benches[i].help);
    fprintf(out, "\noptions:\n"
                 "  --json FILE      write the results as JSON (schema kvf-bench/1, see bench/README.md)\n"
                 "  --seed N         seed of the data (default 1)\n"
                 "  --time SECONDS   about how long to measure in all, 0.1 to 3600 (default 15)\n"
                 "  --dtype TYPE     f16, bf16 or f32: this element type alone (default: all that a bench knows)\n"
                 "  --table NAME     this device table alone: plain, avx2 or avx512 (default: all of this machine)\n"
                 "  --log FILE       policy: a selection log that llm --record wrote; may be repeated, at most 16 times\n"
                 "  --trace FILE     trace: JSON lines with hash_ids (default ../shared/traces/conversation_trace.jsonl)\n"
                 "  --path FOLDER    movement, serve, ssd: a folder on the disk to measure; what it makes goes again (default .)\n"
                 "  --capacity N     trace: percent of all blocks that fit; may be repeated (default 1 2 5 10 20 30 50 100)\n"
                 "  --memory GIB     start: memory of the node, 0.25 to 1024 (default 2); one more must be free\n"
                 "                   fabric: of the region (of another's: at most), and of each process that pulls (default 1)\n"
                 "  --tls NAME       fabric, failure: tcp, shm, auto or rdma: this transport alone (default tcp and shm)\n"
                 "  --size KIB       fabric, rivals: of a block, 4 to 16384; may be repeated (default 64 256 1024 4096)\n"
                 "  --depth N        fabric: pulls under way, 1 to 64; may be repeated (default 1 4 16 64)\n"
                 "  --rounds N       fabric, failure, rivals: 1 to 64 (default 5)\n"
                 "  --peers N        fabric: many to one and one to many instead, with N peers, 2 to 60\n"
                 "  --spin US        fabric: reactor.spin of its processes, which poll so long before they sleep (default 100)\n"
                 "  --serve PORT     fabric: lets another machine measure with this one; [ADDRESS:]PORT, until it is interrupted\n"
                 "  --peer WHERE     fabric: measures with the machine that serves there, ADDRESS:PORT\n"
                 "  --interface NAME fabric with --serve or --peer: of this machine, fabric.interface of its nodes (default lo)\n"
                 "  --secret-file F  fabric with --serve or --peer: the secret of both, which all but loopback needs\n"
                 "  --python FILE    rivals: an interpreter that finds Mooncake's wheel (default python3)\n"
                 "  --help           this text\n"
                 "\nexit codes: 0 done, 1 a result was wrong or could not be written, 2 wrong usage\n"
                 "\nexamples:\n"
                 "  kvf bench kernels\n"
                 "  kvf bench kernels --table avx2 --time 5 --json build/bench-kernels.json\n"
                 "  kvf bench policy --log build/gpl3.sel --json build/bench-policy.json\n"
                 "  kvf bench fabric --serve 7700 --tls rdma --interface mlx5_0:1 --secret-file /etc/kvfabric/secret\n"
                 "  kvf bench fabric --peer node-a:7700 --tls rdma --interface mlx5_0:1 --secret-file /etc/kvfabric/secret\n");
}

static bool parse_number(const char *text, double least, double most, double *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most))
        return false;
    *out = value;
    return true;
}

static bool one_of(const char *word, const char *const *words)
{
    while (*words && strcmp(word, *words))
        words++;
    return *words != NULL;
}

/* Whether it is one of theirs that takes any word. */
static bool word_option(struct kvf_bench *bench, const char *name, const char *value)
{
    const struct {
        const char *name, **to;
    } words[] = {{"--python", &bench->python}, {"--serve", &bench->serve}, {"--peer", &bench->peer},
                 {"--interface", &bench->interface}, {"--secret-file", &bench->secret_file}};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!strcmp(name, words[i].name)) {
            *words[i].to = value;
            return true;
        }
    return false;
}

/* Whether it is an option of `fabric` or `rivals`; *good: with a value that it may have. */
static bool fabric_option(struct kvf_bench *bench, const char *name, const char *value, bool *good)
{
    static const char *const tls[] = {"tcp", "shm", "auto", "rdma", NULL};
    double number = 0;
    if (!strcmp(name, "--tls")) {
        bench->tls = value;
        *good = one_of(value, tls);
    } else if (!strcmp(name, "--size")) {
        *good = bench->n_sizes < KVF_BENCH_LIST_MAX && parse_number(value, 4, 16384, &number) && (uint32_t)number % 4 == 0;
        if (*good)
            bench->sizes[bench->n_sizes++] = (uint32_t)number * 1024;
    } else if (!strcmp(name, "--depth")) {
        *good = bench->n_depths < KVF_BENCH_LIST_MAX && parse_number(value, 1, 64, &number);
        if (*good)
            bench->depths[bench->n_depths++] = (uint32_t)number;
    } else if (!strcmp(name, "--rounds")) {
        *good = parse_number(value, 1, 64, &number);
        bench->rounds = (unsigned)number;
    } else if (!strcmp(name, "--spin")) {
        *good = parse_number(value, 1, 1e6, &number);
        bench->spin_us = (unsigned)number;
    } else if (word_option(bench, name, value)) {
        *good = *value;
    } else if (!strcmp(name, "--peers")) {
        *good = parse_number(value, 2, 60, &number);
        bench->peers = (unsigned)number;
    } else {
        return false;
    }
    return true;
}

/* False after a line on standard error. */
static bool parse(struct kvf_bench *bench, int argc, char **argv)
{
    static const char *const dtypes[] = {"f16", "bf16", "f32", NULL}, *const tables[] = {"plain", "avx2", "avx512", NULL};
    for (int i = 2; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        double number = 0;
        bool good = false;
        if (!value) {
            fprintf(stderr, "kvf bench: %s needs a value (kvf bench --help)\n", argv[i]);
            return false;
        }
        if (!strcmp(argv[i], "--json")) {
            bench->json = value;
            good = *value;
        } else if (!strcmp(argv[i], "--seed")) {
            good = parse_number(value, 0, 9e15, &number);
            bench->seed = (uint64_t)number;
        } else if (!strcmp(argv[i], "--time")) {
            good = parse_number(value, 0.1, 3600, &bench->seconds);
        } else if (!strcmp(argv[i], "--dtype")) {
            bench->dtype = value;
            good = one_of(value, dtypes);
        } else if (!strcmp(argv[i], "--log")) {
            good = bench->n_logs < KVF_BENCH_LOGS_MAX;
            if (good)
                bench->logs[bench->n_logs++] = value;
        } else if (!strcmp(argv[i], "--path")) {
            bench->path = value;
            good = *value;
        } else if (!strcmp(argv[i], "--memory")) {
            good = parse_number(value, 0.25, 1024, &bench->memory_gib);
        } else if (!strcmp(argv[i], "--trace")) {
            bench->trace = value;
            good = *value;
        } else if (!strcmp(argv[i], "--capacity")) {
            good = bench->n_capacities < KVF_BENCH_CAPACITIES_MAX && parse_number(value, 0.001, 100, &number);
            if (good)
                bench->capacities[bench->n_capacities++] = number;
        } else if (fabric_option(bench, argv[i], value, &good)) {
            ;
        } else if (!strcmp(argv[i], "--table")) {
            bench->table = value;
            good = one_of(value, tables);
        } else {
            fprintf(stderr, "kvf bench: unknown option %s (kvf bench --help)\n", argv[i]);
            return false;
        }
        if (!good) {
            fprintf(stderr, "kvf bench: %s cannot be %s (kvf bench --help)\n", argv[i], value);
            return false;
        }
    }
    return true;
}

/* Asks the kernel for this process's scheduling group to come first; without the right to, nothing changes. */
static bool raise_group(void)
{
    int fd = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, "-20", 3) == 3;
    if (fd >= 0)
        close(fd);
    return done;
}

/* Asked before the measuring, which takes a while. */
static bool can_write(const char *path)
{
    FILE *f = fopen(path, "a");
    if (!f) {
        fprintf(stderr, "kvf bench: cannot write %s\n", path);
        return false;
    }
    fclose(f);
    return true;
}

static int run_one(const struct kvf_bench_entry *entry, struct kvf_bench *bench)
{
    if (bench->json && !can_write(bench->json))
        return 1;
    bench->config = json_object();
    bench->results = json_array();
    json_object_set_new(bench->config, "seconds", json_real(bench->seconds));
    json_object_set_new(bench->config, "dtype", bench->dtype ? json_string(bench->dtype) : json_null());
    json_object_set_new(bench->config, "table", bench->table ? json_string(bench->table) : json_null());
    json_object_set_new(bench->config, "group_raised", json_boolean(raise_group()));
    bool good = entry->run(bench);
    if (good && !bench->printed)
        print_table(bench);
    if (good && bench->json)
        good = write_json(bench, entry->name);
    json_decref(bench->config);
    json_decref(bench->results);
    return good ? 0 : 1;
}

int kvf_bench_main(int argc, char **argv)
{
    struct kvf_bench bench = {.seed = 1, .seconds = 15};
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            usage(stdout);
            return 0;
        }
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    for (size_t i = 0; i < N_BENCHES; i++)
        if (!strcmp(argv[1], benches[i].name))
            return parse(&bench, argc, argv) ? run_one(benches + i, &bench) : 2;
    fprintf(stderr, "kvf bench: no bench is called %s (kvf bench --help lists them)\n", argv[1]);
    return 2;
}
