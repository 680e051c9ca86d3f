/* kvf bench failure: how long it takes to know that a peer is gone, and to read from it again, and what is lost meanwhile.
 *
 * One round: a peer and a reader start, 64 reads of 64 KiB with a deadline of 200 ms are under way at any time, something happens
 * to the peer or its link, and is undone 300 ms after the reader knew. This process opens no network of its own. */
#include "bench/bench.h"
#include "bench/failure.h"
#include "bench/network.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 5u
#define STEADY_READS 500
#define PATIENCE_NS (30 * KVF_SEC)
#define REST_NS (300 * KVF_MS)

enum kind { KILL, STOP, LINK };

static const struct fault {
    const char *name;
    enum kind kind;
    enum kvf_network_fault link;
} faults[] = {
    {"kill -9", KILL, 0},
    {"SIGSTOP", STOP, 0},
    {"link down", LINK, KVF_NETWORK_FAR_DOWN},
    {"peer unheard", LINK, KVF_NETWORK_FROM_FAR},
    {"peer deaf", LINK, KVF_NETWORK_FROM_NEAR},
};

enum figure { REFUSED, DOWN, RECOVERED, LOST, LATE, LATEST, N_FIGURES };

static const struct {
    const char *name, *unit;
} figures[N_FIGURES] = {
    [REFUSED] = {"first read that fails", "ms"}, [DOWN] = {"time to detect", "ms"},       [RECOVERED] = {"time to recover", "ms"},
    [LOST] = {"reads lost", "reads"},            [LATE] = {"reads ended late", "reads"}, [LATEST] = {"latest past deadline", "ms"},
};

struct round {
    const struct fault *fault;
    const char *transport;
    const struct kvf_network *network; /* NULL: loopback */
    struct kvf_failure_board *board;
    pid_t peer, reader;
    uint64_t incarnation;
};

static uint64_t now_ns(void) { return kvf_now(kvf_env_real()); }

static bool complain(const struct round *r, const char *what)
{
    fprintf(stderr, "kvf bench failure: %s, %s: %s\n", r->fault->name, r->transport, what);
    return false;
}

static pid_t start_peer(struct round *r)
{
    uint64_t incarnation = ++r->incarnation;
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (r->network && !kvf_network_go_far(r->network)) {
        atomic_store(&r->board->failed, 1);
        _exit(1);
    }
    kvf_failure_peer(r->board, r->transport, r->network ? KVF_NETWORK_FAR : "lo", incarnation);
}

static pid_t start_reader(struct round *r)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    kvf_failure_reader(r->board, r->transport, r->network ? KVF_NETWORK_NEAR : "lo");
}

static void end(pid_t pid)
{
    if (pid <= 0)
        return;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* Until the board's word is at least that; false: in vain. */
static bool wait_for(struct round *r, const _Atomic uint64_t *word, uint64_t least)
{
    uint64_t until = now_ns() + PATIENCE_NS;
    while (atomic_load(word) < least && now_ns() < until && !atomic_load(&r->board->failed))
        usleep(1000);
    return atomic_load(word) >= least;
}

/* Does it, or undoes it. */
static bool happen(struct round *r, bool on)
{
    switch (r->fault->kind) {
    case KILL:
        if (on)
            return kill(r->peer, SIGKILL) == 0;
        waitpid(r->peer, NULL, 0);
        r->peer = start_peer(r);
        return r->peer > 0;
    case STOP:
        return kill(r->peer, on ? SIGSTOP : SIGCONT) == 0;
    default:
        return kvf_network_fault_set(r->network, r->fault->link, on);
    }
}

static bool play(struct round *r)
{
    struct kvf_failure_board *b = r->board;
    if (r->network && !kvf_network_wait(KVF_NETWORK_NEAR))
        return complain(r, "the link does not come up");
    r->peer = start_peer(r);
    r->reader = start_reader(r);
    if (r->peer < 0 || r->reader < 0 || !wait_for(r, &b->good, STEADY_READS))
        return complain(r, "reading does not begin");
    atomic_store(&b->fault_ns, now_ns());
    if (!happen(r, true) || !wait_for(r, &b->down_ns, 1))
        return complain(r, "it is not noticed");
    usleep(REST_NS / 1000);
    atomic_store(&b->repair_ns, now_ns());
    if (!happen(r, false) || !wait_for(r, &b->recovered_ns, 1))
        return complain(r, "reading does not begin again");
    return atomic_load(&b->wrong) == 0 ? true : complain(r, "wrong bytes were read");
}

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-6 : 0;
}

static bool run_round(struct round *r, double out[N_FIGURES])
{
    struct kvf_failure_board *b = mmap(NULL, sizeof *b, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (b == MAP_FAILED)
        return complain(r, "no memory");
    r->board = b;
    bool good = play(r);
    end(r->reader);
    end(r->peer);
    r->reader = r->peer = 0;
    uint64_t fault = atomic_load(&b->fault_ns);
    out[REFUSED] = ms_between(fault, atomic_load(&b->refused_ns));
    out[DOWN] = ms_between(fault, atomic_load(&b->down_ns));
    out[RECOVERED] = ms_between(atomic_load(&b->repair_ns), atomic_load(&b->recovered_ns));
    out[LOST] = (double)atomic_load(&b->lost);
    out[LATE] = (double)atomic_load(&b->late);
    out[LATEST] = (double)atomic_load(&b->latest_ns) * 1e-6;
    munmap(b, sizeof *b);
    return good;
}

static bool run_fault(struct kvf_bench *bench, const struct fault *fault, const char *transport, const struct kvf_network *network)
{
    double values[N_FIGURES][64];
    unsigned rounds = bench->rounds ? bench->rounds : ROUNDS;
    struct round r = {.fault = fault, .transport = transport, .network = network};
    for (unsigned i = 0; i < rounds; i++) {
        double one[N_FIGURES];
        if (!run_round(&r, one))
            return false;
        for (int f = 0; f < N_FIGURES; f++)
            values[f][i] = one[f];
    }
    for (int f = 0; f < N_FIGURES; f++) {
        char name[96];
        kvf_bench_sort(values[f], rounds);
        snprintf(name, sizeof name, "%s, %s: %s", fault->name, transport, figures[f].name);
        kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = figures[f].unit, .value = values[f][rounds / 2],
                                                        .p50 = values[f][rounds / 2], .p99 = values[f][rounds - 1], .n = rounds});
    }
    return true;
}

bool kvf_bench_failure_run(struct kvf_bench *bench)
{
    static const char *const transports[] = {"tcp", "shm"};
    struct kvf_network network;
    bool links = kvf_network_open(&network);
    if (!links)
        fprintf(stderr, "kvf bench failure: no network namespaces here (they take root and ip): links that fail are left out\n");
    json_object_set_new(bench->config, "links", json_boolean(links));
    json_object_set_new(bench->config, "reads", json_integer(KVF_FAILURE_READS));
    json_object_set_new(bench->config, "read_bytes", json_integer(KVF_FAILURE_READ_BYTES));
    json_object_set_new(bench->config, "deadline_ms", json_integer(KVF_FAILURE_DEADLINE_NS / KVF_MS));
    json_object_set_new(bench->config, "heartbeat_ms", json_integer(KVF_FAILURE_HEARTBEAT_NS / KVF_MS));
    json_object_set_new(bench->config, "dead_after_ms", json_integer(KVF_FAILURE_DEAD_NS / KVF_MS));
    for (size_t t = 0; t < sizeof transports / sizeof *transports; t++) {
        if (bench->tls && strcmp(bench->tls, transports[t]) != 0)
            continue;
        for (size_t f = 0; f < sizeof faults / sizeof *faults; f++)
            if ((links || faults[f].kind != LINK) && !run_fault(bench, &faults[f], transports[t], links ? &network : NULL))
                return false;
    }
    bench->verified = true;
    return true;
}
