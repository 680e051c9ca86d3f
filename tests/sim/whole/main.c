/* The simulator's command line. `sim --help` tells it. */
#include "tests/sim/whole/world.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CANARY_SEEDS 200
#define SEED_SECONDS 20 /* of CPU time: one that takes longer hangs */

/* What the process that runs seeds tells the one that waits for it. */
struct shared {
    uint64_t seed; /* under way */
    struct world_totals totals;
};

struct run {
    struct world_options options;
    uint64_t count; /* of seeds; UINT64_MAX: until the time is over */
    double seconds;
    bool hashes, keep_going;
};

static struct shared *shared;
static enum canary canary;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* An assertion, a crash or a hang: the seed is all that is needed. */
static void died(int signal)
{
    static const char *const canaries[] = {"", " --canary checksum", " --canary epoch"};
    char text[128];
    int n = snprintf(text, sizeof text, "\nVIOLATED by %s\nrepeat with: sim --seed %llu%s --verbose\n",
                     signal == SIGVTALRM ? "a hang"
                     : signal == SIGABRT ? "an assertion"
                                         : "a crash",
                     (unsigned long long)shared->seed, canaries[canary]);
    (void)!write(STDERR_FILENO, text, (size_t)n);
    _exit(1);
}

static void totals_add(struct world_totals *to, const struct world_totals *from)
{
    const uint64_t *a = (const uint64_t *)from;
    uint64_t *b = (uint64_t *)to;
    _Static_assert(sizeof *to % sizeof *b == 0, "counts and nothing else");
    for (size_t i = 0; i < sizeof *to / sizeof *b; i++)
        b[i] += a[i];
}

static void one_seed(const struct run *r, struct sim_engine *const *engines, uint64_t seed)
{
    struct world_options options = r->options;
    struct itimerval limit = {.it_value.tv_sec = SEED_SECONDS};
    options.seed = seed;
    shared->seed = seed;
    setitimer(ITIMER_VIRTUAL, &limit, NULL);
    struct world *w = world_create(&options, engines);
    world_run(w);
    w->totals.seeds = 1;
    w->totals.steps = w->steps;
    if (r->hashes)
        printf("%llu %016llx %016llx\n", (unsigned long long)seed, (unsigned long long)w->hash,
               (unsigned long long)kvf_sim_etcd_hash(w->cluster->etcd));
    totals_add(&shared->totals, &w->totals);
    world_destroy(w);
}

static void seeds_run(const struct run *r, uint64_t first, uint64_t count, double until)
{
    const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGVTALRM};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        signal(signals[i], died);
    struct sim_engine **engines = world_engines_create();
    for (uint64_t i = 0; i < count && now_s() < until; i++)
        one_seed(r, engines, first + i);
    world_engines_destroy(engines);
    fflush(NULL);
}

/* In a process of its own, so that one seed's end is not that of all. Its exit status. */
static int seeds_fork(const struct run *r, uint64_t first, uint64_t count, double until)
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        seeds_run(r, first, count, until);
        exit(0); /* by the ordinary way: leaks are looked for */
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static void totals_print(const struct world_totals *t, unsigned failed)
{
    printf("%llu seeds, %llu failed: %.2f simulated hours, %llu steps, %llu events, %llu calls\n",
           (unsigned long long)t->seeds + failed, (unsigned long long)failed, (double)t->time_ns / 3600e9,
           (unsigned long long)t->steps, (unsigned long long)t->events, (unsigned long long)t->calls);
    printf("%llu gets: %llu with the right bytes, %llu misses; %llu rows of attention right, %llu refills; %llu moves, %llu "
           "restarts, %llu durable blocks there after them; %llu blocks given back to lenders, %llu taken by force\n",
           (unsigned long long)t->gets, (unsigned long long)t->hits, (unsigned long long)t->misses, (unsigned long long)t->rows,
           (unsigned long long)t->refills, (unsigned long long)t->moves, (unsigned long long)t->crashes_survived,
           (unsigned long long)t->durable, (unsigned long long)t->returned, (unsigned long long)t->revoked);
    for (unsigned i = 0; i < FAULT_COUNT; i++)
        printf("%s%llu %s", i % 4 ? ", " : i ? ",\n" : "faults: ", (unsigned long long)t->faults[i], fault_texts[i]);
    printf("\n");
}

/* Seeds from first on; true: all are right. */
static bool seeds(const struct run *r, uint64_t first)
{
    double until = r->count == UINT64_MAX ? now_s() + r->seconds : 1e18;
    uint64_t end = r->count == UINT64_MAX ? UINT64_MAX : first + r->count;
    unsigned failed = 0;
    while (first < end && now_s() < until) {
        shared->seed = first;
        if (seeds_fork(r, first, end - first, until) == 0)
            break;
        failed++;
        printf("seed %llu failed\n", (unsigned long long)shared->seed);
        if (!r->keep_going)
            break;
        first = shared->seed + 1;
    }
    if (!r->hashes)
        totals_print(&shared->totals, failed);
    return failed == 0;
}

/* Each planted bug must be found within so many seeds. */
static bool canaries(const struct run *r, uint64_t first)
{
    static const char *const names[] = {[CANARY_CHECKSUM] = "checksum", [CANARY_EPOCH] = "epoch"};
    bool all = true;
    for (canary = CANARY_CHECKSUM; canary <= CANARY_EPOCH; canary++) {
        struct run planted = *r;
        planted.options.canary = canary;
        int rc = seeds_fork(&planted, first, CANARY_SEEDS, 1e18);
        printf("canary %s: %s after %llu seeds\n", names[canary], rc == 1 ? "caught" : "NOT CAUGHT",
               (unsigned long long)(shared->seed - first + 1));
        all &= rc == 1;
    }
    return all;
}

static bool scenarios(bool verbose)
{
    bool all = true;
    for (unsigned i = 0; i < scenarios_count(); i++) {
        int status = 0;
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            struct sim_engine **engines = world_engines_create();
            scenarios_run(i, engines, verbose);
            world_engines_destroy(engines);
            exit(0);
        }
        while (waitpid(child, &status, 0) < 0 && errno == EINTR)
            ;
        printf("scenario %s: %s\n", scenarios_name(i), status == 0 ? "holds" : "FAILED");
        all &= status == 0;
    }
    return all;
}

static const char help[] =
    "sim: a whole cluster in one process, from a seed\n"
    "\n"
    "  sim --seed N [--events M] [--canary checksum|epoch] [--verbose]   one seed; M steps of work instead of the seed's\n"
    "  sim --seconds S [--start-seed N] [--keep-going]                   as many seeds as there is time for\n"
    "  sim --count C [--start-seed N] [--hashes]                         C seeds; --hashes prints what two builds must agree on\n"
    "  sim --scenarios [--verbose]                                       the scripted cases and the seeds that found bugs\n"
    "  sim --canaries [--start-seed N]                                   planted bugs: each must be found within 200 seeds\n"
    "\n"
    "A property that does not hold prints what happened last and the command that repeats it. Exit: 0 all held, 1 one did not,\n"
    "2 wrong usage.\n"
    "\n"
    "Example: sim --seconds 10 --start-seed 1000\n";

enum what { ONE, MANY, SCENARIOS, CANARIES, HELP };

static bool number(const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return errno == 0 && *text && !*end;
}

static bool options_read(int argc, char **argv, struct run *r, uint64_t *first, enum what *what)
{
    static const struct option longs[] = {{"seed", required_argument, NULL, 's'},
                                          {"events", required_argument, NULL, 'e'},
                                          {"canary", required_argument, NULL, 'c'},
                                          {"verbose", no_argument, NULL, 'v'},
                                          {"seconds", required_argument, NULL, 't'},
                                          {"start-seed", required_argument, NULL, 'f'},
                                          {"count", required_argument, NULL, 'n'},
                                          {"hashes", no_argument, NULL, 'h'},
                                          {"keep-going", no_argument, NULL, 'k'},
                                          {"scenarios", no_argument, NULL, 'x'},
                                          {"canaries", no_argument, NULL, 'y'},
                                          {"help", no_argument, NULL, '?'},
                                          {NULL, 0, NULL, 0}};
    uint64_t value = 0;
    for (int o; (o = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (strchr("setfn", o) && !number(optarg, &value) && o != 'c')
            return false;
        switch (o) {
        case 's':
            *what = ONE;
            *first = value;
            r->count = 1;
            break;
        case 'e':
            r->options.steps = (unsigned)value;
            break;
        case 'c':
            canary = strcmp(optarg, "checksum") == 0 ? CANARY_CHECKSUM : strcmp(optarg, "epoch") == 0 ? CANARY_EPOCH : CANARY_NONE;
            if (canary == CANARY_NONE)
                return false;
            r->options.canary = canary;
            break;
        case 'v':
            r->options.verbose = true;
            break;
        case 't':
            r->seconds = (double)value;
            break;
        case 'f':
            *first = value;
            break;
        case 'n':
            r->count = value;
            break;
        case 'h':
            r->hashes = true;
            break;
        case 'k':
            r->keep_going = true;
            break;
        case 'x':
            *what = SCENARIOS;
            break;
        case 'y':
            *what = CANARIES;
            break;
        default:
            *what = HELP;
            return optopt == 0;
        }
    }
    return optind == argc;
}

int main(int argc, char **argv)
{
    struct run r = {.count = UINT64_MAX, .seconds = 10};
    uint64_t first = 1;
    enum what what = MANY;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 1;
    bool fine = options_read(argc, argv, &r, &first, &what);
    if (!fine || what == HELP) {
        fputs(help, fine ? stdout : stderr);
        return fine ? 0 : 2;
    }
    switch (what) {
    case ONE:
        seeds_run(&r, first, 1, 1e18);
        totals_print(&shared->totals, 0);
        return 0;
    case SCENARIOS:
        return scenarios(r.options.verbose) ? 0 : 1;
    case CANARIES:
        return canaries(&r, first) ? 0 : 1;
    default:
        return seeds(&r, first) ? 0 : 1;
    }
}
