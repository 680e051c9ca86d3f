/* Processes with a fabric each (fabric_node.h). A process's life: open, tell its address, meet its peers, say so, and then work
 * on tasks until its pipe is closed. */
#include "bench/fabric_node.h"
#include "base/hash.h"
#include "base/spin.h"
#include "bench/bench.h"
#include "bench/limits.h"
#include "kernels/dev.h"
#include "tiers/pages.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIECE_BYTES (256ull << 20) /* as a node's */
#define PIECES_MAX KVF_REGION_PIECES_MAX
#define DEPTH_MAX 64u
#define SAMPLES_MAX 65536u
#define TAKE_PAGES 256u /* compared at once */
#define MEET_SECONDS 20
#define PULL_NS (20 * KVF_SEC)

struct kvf_fabric_region {
    uint8_t *base;
    uint64_t bytes;
    unsigned n;
    int fds[PIECES_MAX];
    uint64_t *sums; /* [pages] */
};

/* What the processes of one set tell each other: shared memory. */
struct board {
    _Atomic unsigned ready, failed;
    struct kvf_fabric_node_address server[KVF_FABRIC_NODES_MAX];
};

struct kvf_fabric_nodes {
    const struct kvf_fabric_region *region;
    struct kvf_fabric_nodes_options options;
    struct board *board;
    char secret[KVF_SECRET_BYTES_MIN + 1]; /* of these processes, so that they may use any device */
    uint64_t incarnation; /* of the first process; the others follow */
    unsigned n; /* processes; the servers come first */
    pid_t pids[KVF_FABRIC_NODES_MAX];
    int to[KVF_FABRIC_NODES_MAX], from[KVF_FABRIC_NODES_MAX];
};

struct op {
    struct process *process;
    uint8_t *to;
    uint64_t *pages; /* [ranges] first page of each, in the region */
    uint64_t start_ns;
    uint64_t pages_right; /* that were compared while they were brought */
    bool busy;
};

/* One process from the inside. */
struct process {
    const struct kvf_fabric_nodes *nodes;
    const struct kvf_fabric_region *region; /* of the set */
    unsigned index;
    bool server;
    struct kvf_log log;
    struct kvf_counters counters;
    struct kvf_secret *secret;
    struct kvf_transport *transport;
    struct kvf_region *own;
    struct kvf_fabric *fabric;
    struct kvf_peer *peers[KVF_FABRIC_NODES_MAX]; /* of a reader: who serves */
    unsigned n_peers;
    unsigned ups, downs;
    int in, out, epoll_fd;
    struct kvf_spin spin;

    uint8_t *memory;
    void *registered;   /* what it is to the device, as a node's */
    uint64_t memory_at; /* where the next request's bytes go */
    struct kvf_fabric_task task;
    struct op ops[DEPTH_MAX];
    struct kvf_pull_range ranges[KVF_PULL_RANGES_MAX];
    unsigned outstanding;
    uint64_t random, done, next_peer;
    bool wrong;
    double samples[SAMPLES_MAX];
    unsigned n_samples;
};

static void *complain(const char *what, const char *why)
{
    fprintf(stderr, "kvf bench fabric: %s: %s\n", what, why);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------- the region */

static bool pages_of(struct kvf_pages *pages)
{
    return kvf_pages_init(pages, "auto", "off", "", 1, "/sys") == KVF_OK;
}

static bool back(uint8_t *at, uint64_t bytes, bool shared, int *fd)
{
    struct kvf_pages pages;
    enum kvf_page_kind kind;
    return pages_of(&pages) && kvf_pages_back(&pages, at, bytes, shared, &kind, fd) == KVF_OK &&
           kvf_pages_populate(&pages, at, bytes, kind == KVF_PAGE_THP, NULL) == KVF_OK;
}

struct kvf_fabric_region *kvf_fabric_region_create(uint64_t bytes, uint64_t seed)
{
    const struct kvf_dev *dev = kvf_dev_cpu();
    struct kvf_fabric_region *region = calloc(1, sizeof *region);
    uint64_t pages = bytes / KVF_FABRIC_NODE_PAGE;
    if (!region)
        return complain("the region", "no memory");
    region->bytes = bytes;
    region->base = kvf_pages_reserve(bytes);
    region->sums = mmap(NULL, pages * sizeof *region->sums, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bool good = region->base && region->sums != MAP_FAILED && bytes <= PIECES_MAX * PIECE_BYTES;
    for (uint64_t at = 0; at < bytes && good; at += PIECE_BYTES) {
        uint64_t left = bytes - at;
        good = back(region->base + at, left < PIECE_BYTES ? left : PIECE_BYTES, true, &region->fds[region->n]);
        region->n += good;
    }
    if (!good) {
        kvf_fabric_region_destroy(region);
        return complain("the region", "no memory");
    }
    uint64_t *words = (uint64_t *)(void *)region->base;
    for (uint64_t i = 0; i < bytes / 8; i++)
        words[i] = kvf_mix(i, seed);
    for (uint64_t i = 0; i < pages; i++)
        dev->checksum(dev, NULL, region->base + i * KVF_FABRIC_NODE_PAGE, KVF_FABRIC_NODE_PAGE, seed + i, &region->sums[i]);
    return region;
}

void kvf_fabric_region_destroy(struct kvf_fabric_region *region)
{
    for (unsigned i = 0; i < region->n; i++)
        close(region->fds[i]);
    if (region->base)
        kvf_pages_release(region->base, region->bytes);
    if (region->sums && region->sums != MAP_FAILED)
        munmap(region->sums, region->bytes / KVF_FABRIC_NODE_PAGE * sizeof *region->sums);
    free(region);
}

const uint8_t *kvf_fabric_region_page(const struct kvf_fabric_region *region, uint64_t page)
{
    return region->base + page * KVF_FABRIC_NODE_PAGE;
}

uint64_t kvf_fabric_region_pages(const struct kvf_fabric_region *region)
{
    return region->bytes / KVF_FABRIC_NODE_PAGE;
}

/* ------------------------------------------------------------------------------------------------- a process: tasks */

static uint64_t draw(struct process *p, uint64_t below)
{
    p->random = kvf_mix(p->random, 29);
    return p->random % below;
}

/* Whether the pages of an op, from number `first` on, are those of the region. */
static bool right_from(const struct process *p, const struct op *op, uint64_t first)
{
    const struct kvf_dev *dev = kvf_dev_cpu();
    uint64_t pages = p->task.bytes / KVF_FABRIC_NODE_PAGE;
    for (uint64_t i = first; i < pages * p->task.ranges; i++) {
        uint64_t sum, page = op->pages[i / pages] + i % pages;
        dev->checksum(dev, NULL, op->to + i * KVF_FABRIC_NODE_PAGE, KVF_FABRIC_NODE_PAGE, p->task.seed + page, &sum);
        if (sum != p->region->sums[page])
            return false;
    }
    return true;
}

static bool right(const struct process *p, const struct op *op) { return right_from(p, op, 0); }

/* Bytes are in their place, in order from the first: the pages that end with them are compared with their checksums. */
static void op_look(struct op *op, unsigned range, uint32_t end)
{
    struct process *p = op->process;
    const struct kvf_dev *dev = kvf_dev_cpu();
    uint64_t before = (uint64_t)range * (p->task.bytes / KVF_FABRIC_NODE_PAGE), past = before + end / KVF_FABRIC_NODE_PAGE;
    for (; op->pages_right < past; op->pages_right++) {
        uint64_t sum, page = op->pages[range] + op->pages_right - before;
        dev->checksum(dev, NULL, op->to + op->pages_right * KVF_FABRIC_NODE_PAGE, KVF_FABRIC_NODE_PAGE, p->task.seed + page, &sum);
        p->wrong |= sum != p->region->sums[page];
    }
}

/* Brings bytes to their place; whole pages are compared with their checksums on the way, those that come in two parts when all is
 * there. */
static void op_take(void *arg, unsigned range, uint32_t at, void *to, const void *from, bool foreign, uint32_t bytes)
{
    struct op *op = arg;
    struct process *p = op->process;
    const struct kvf_dev *dev = kvf_dev_cpu();
    uint64_t sums[TAKE_PAGES];
    if (from == to) {
        op_look(op, range, at + bytes);
        return;
    }
    uint32_t done = (KVF_FABRIC_NODE_PAGE - at % KVF_FABRIC_NODE_PAGE) % KVF_FABRIC_NODE_PAGE;
    done = done < bytes ? done : bytes;
    memcpy(to, from, done);
    while (bytes - done >= KVF_FABRIC_NODE_PAGE) {
        uint32_t n = (bytes - done) / KVF_FABRIC_NODE_PAGE < TAKE_PAGES ? (bytes - done) / KVF_FABRIC_NODE_PAGE : TAKE_PAGES;
        uint64_t page = op->pages[range] + (at + done) / KVF_FABRIC_NODE_PAGE;
        dev->copy_checksum(dev, NULL, (uint8_t *)to + done, (const uint8_t *)from + done, foreign,
                           (size_t)n * KVF_FABRIC_NODE_PAGE, KVF_FABRIC_NODE_PAGE, p->task.seed + page, sums);
        p->wrong |= memcmp(sums, &p->region->sums[page], n * sizeof *sums) != 0;
        op->pages_right += n;
        done += n * KVF_FABRIC_NODE_PAGE;
    }
    memcpy((uint8_t *)to + done, (const uint8_t *)from + done, bytes - done);
}

static void op_done(void *arg, enum kvf_status status)
{
    struct op *op = arg;
    struct process *p = op->process;
    if (status != KVF_OK)
        complain("a pull", kvf_status_text(status));
    uint64_t pages = (uint64_t)p->task.bytes / KVF_FABRIC_NODE_PAGE * p->task.ranges;
    /* What was read one-sided and not looked at yet is the rest; of what was copied any page may be missing. */
    uint64_t first = kvf_peer_way(p->peers[0]) == KVF_WAY_GET ? op->pages_right : 0;
    p->wrong |= status != KVF_OK || (p->task.verify && op->pages_right < pages && !right_from(p, op, first));
    if (p->n_samples < SAMPLES_MAX)
        p->samples[p->n_samples++] = (double)(kvf_now(kvf_env_real()) - op->start_ns) * 1e-3;
    op->busy = false;
    p->outstanding--;
    p->done++;
}

/* Chooses the op's blocks and its place: one after the other through the memory, which no cache holds. */
static void op_choose(struct process *p, struct op *op)
{
    uint64_t bytes = (uint64_t)p->task.bytes * p->task.ranges, blocks = p->region->bytes / p->task.bytes;
    if (p->memory_at + bytes > p->nodes->options.memory_bytes)
        p->memory_at = 0;
    op->to = p->memory + p->memory_at;
    p->memory_at += bytes;
    for (uint32_t r = 0; r < p->task.ranges; r++)
        op->pages[r] = draw(p, blocks) * (p->task.bytes / KVF_FABRIC_NODE_PAGE);
}

static void op_pull(struct process *p, struct op *op)
{
    for (uint32_t r = 0; r < p->task.ranges; r++)
        p->ranges[r] = (struct kvf_pull_range){.offset = op->pages[r] * KVF_FABRIC_NODE_PAGE,
                                               .bytes = p->task.bytes,
                                               .to = op->to + (uint64_t)r * p->task.bytes};
    struct kvf_peer *peer = p->peers[p->next_peer++ % p->n_peers];
    op->start_ns = kvf_now(kvf_env_real());
    op->pages_right = 0;
    enum kvf_status st = kvf_fabric_pull_take(peer, p->ranges, p->task.ranges, op->start_ns + PULL_NS,
                                              p->task.verify ? op_take : NULL, op_done, op);
    if (st != KVF_OK)
        complain("a pull", kvf_status_text(st));
    p->wrong |= st != KVF_OK;
    op->busy = st == KVF_OK;
    p->outstanding += st == KVF_OK;
}

static void op_copy(struct process *p, struct op *op)
{
    for (uint32_t r = 0; r < p->task.ranges; r++)
        memcpy(op->to + (uint64_t)r * p->task.bytes, p->region->base + op->pages[r] * KVF_FABRIC_NODE_PAGE, p->task.bytes);
    p->done++;
    p->wrong |= p->task.verify && !right(p, op);
}

/* Reads the block in the server's memory, or in ours. */
static void op_read(struct process *p, struct op *op)
{
    struct kvf_peer *peer = p->peers[p->next_peer++ % p->n_peers];
    uint64_t at = op->pages[0] * KVF_FABRIC_NODE_PAGE;
    struct kvf_view view;
    op->to = p->region->base + at;
    if (p->task.work == KVF_FABRIC_VIEW) {
        enum kvf_status st = kvf_fabric_view_open(peer, at, p->task.bytes, &view);
        if (st != KVF_OK) {
            complain("a view", kvf_status_text(st));
            p->wrong = true;
            return;
        }
        op->to = (uint8_t *)(uintptr_t)view.data;
    }
    p->wrong |= !right(p, op);
    if (p->task.work == KVF_FABRIC_VIEW)
        p->wrong |= kvf_fabric_view_close(p->fabric, &view) != KVF_OK; /* nobody writes */
    p->done++;
}

/* One turn of the reactor: as a node's, it polls for a while and then sleeps. False: it slept. */
static bool turn(struct process *p)
{
    struct epoll_event events[4];
    uint64_t start = kvf_now(kvf_env_real());
    unsigned n = kvf_fabric_poll(p->fabric);
    uint64_t now = kvf_now(kvf_env_real());
    if (!kvf_spin_tired(&p->spin, n, start, now) || !p->transport->ops->arm(p->transport))
        return true;
    uint64_t next = kvf_fabric_next_timer(p->fabric);
    uint64_t ms = next > now ? (next - now + KVF_MS - 1) / KVF_MS : 0;
    epoll_wait(p->epoll_fd, events, 4, (int)(ms < 100 ? ms : 100));
    return false;
}

static struct kvf_fabric_answer work(struct process *p)
{
    const struct kvf_fabric_task *task = &p->task;
    double start = kvf_bench_now(), end = start + task->seconds;
    p->random = task->seed + p->index * 7919;
    p->done = p->n_samples = 0;
    p->wrong = false;
    while (!p->wrong && kvf_bench_now() < end) {
        for (uint32_t i = 0; i < task->depth; i++) {
            struct op *op = &p->ops[i];
            if (op->busy)
                continue;
            op_choose(p, op);
            if (task->work == KVF_FABRIC_PULL)
                op_pull(p, op);
            else if (task->work == KVF_FABRIC_COPY)
                op_copy(p, op);
            else
                op_read(p, op);
        }
        if (task->work == KVF_FABRIC_PULL)
            turn(p);
    }
    while (p->outstanding > 0)
        turn(p);
    double seconds = kvf_bench_now() - start;
    bool brought = task->work == KVF_FABRIC_PULL || task->work == KVF_FABRIC_COPY;
    for (uint32_t i = 0; i < task->depth && brought; i++)
        p->wrong |= !right(p, &p->ops[i]);
    kvf_bench_sort(p->samples, p->n_samples);
    struct kvf_fabric_answer answer = {.good = !p->wrong, .requests = p->done};
    answer.bytes_per_s = (double)p->done * task->bytes * task->ranges / seconds;
    if (p->n_samples > 0) {
        answer.p50_us = p->samples[p->n_samples / 2];
        answer.p99_us = p->samples[p->n_samples * 99ull / 100];
    }
    return answer;
}

/* ------------------------------------------------------------------------------------------------- a process: life */

static void on_up(void *arg, struct kvf_peer *peer) { ((struct process *)arg)->ups++; }
static void on_down(void *arg, struct kvf_peer *peer, enum kvf_status why)
{
    struct process *p = arg;
    p->downs++;
    if (p->server) /* there may come others */
        kvf_fabric_peer_remove(p->fabric, peer);
}

static void on_stranger(void *arg, const char *name, uint64_t incarnation, const void *address, size_t bytes)
{
    struct process *p = arg;
    struct kvf_peer *peer;
    kvf_fabric_peer_add(p->fabric, name, incarnation, address, bytes, &peer);
}

static void process_name(const struct kvf_fabric_nodes *nodes, unsigned index, char name[KVF_NODE_NAME_MAX])
{
    snprintf(name, KVF_NODE_NAME_MAX, "bench-%llx-%u", (unsigned long long)nodes->incarnation, index);
}

static enum kvf_status region_offer(struct process *p)
{
    const struct kvf_fabric_region *region = p->region;
    enum kvf_status st = p->transport->ops->region_create(p->transport, region->base, region->bytes, &p->own);
    for (unsigned i = 0; i < region->n && st == KVF_OK; i++) {
        uint64_t at = i * PIECE_BYTES, left = region->bytes - at;
        st = p->transport->ops->region_add(p->transport, p->own, at, left < PIECE_BYTES ? left : PIECE_BYTES, region->fds[i]);
    }
    return st;
}

/* The secret by which the processes of this set know each other, and those outside. */
static enum kvf_status secret_take(struct process *p)
{
    const struct kvf_fabric_nodes_options *o = &p->nodes->options;
    const char *why;
    char error[256];
    enum kvf_status st = kvf_secret_create(&p->secret);
    if (st != KVF_OK || (o->outside && !o->secret_file))
        return st;
    if (!o->outside)
        return kvf_secret_set(p->secret, p->nodes->secret, strlen(p->nodes->secret), &why);
    st = kvf_secret_load(p->secret, o->secret_file, error, sizeof error);
    if (st != KVF_OK)
        complain("the secret", error);
    return st;
}

static enum kvf_status open_process(struct process *p)
{
    const struct kvf_fabric_nodes_options *o = &p->nodes->options;
    struct kvf_transport_config tc = {.kind = o->transport, .interface = o->interface, .segment_bytes = o->segment_bytes,
                                      .peers_max = KVF_FABRIC_NODES_MAX, .secret = !o->outside || o->secret_file,
                                      .log = &p->log};
    kvf_log_init(&p->log, p->server ? "server" : "reader", KVF_LOG_ERROR, stderr);
    enum kvf_status st = secret_take(p);
    if (st == KVF_OK)
        st = kvf_transport_ucx_create(&tc, &p->transport);
    /* It is there, but not in this process's page tables. */
    struct kvf_pages pages;
    if (st == KVF_OK)
        st = pages_of(&pages) ? kvf_pages_populate(&pages, p->region->base, p->region->bytes, false, NULL) : KVF_ERR_CONFIG;
    if (st == KVF_OK && p->server)
        st = region_offer(p);
    if (st != KVF_OK)
        return st;
    struct kvf_fabric_config config = {
        .env = kvf_env_real(), .transport = p->transport, .secret = p->secret, .log = &p->log, .counters = &p->counters,
        .incarnation = p->nodes->incarnation + p->index,
        .region = p->own, .region_base = p->region->base, .region_bytes = p->region->bytes,
        .peers_max = KVF_FABRIC_NODES_MAX, .requests_max = 4096, .inflight_bytes = o->inflight_bytes,
        .heartbeat_ns = 250 * KVF_MS, .dead_ns = 10 * KVF_SEC,
        .handler = {.arg = p, .peer_up = on_up, .peer_down = on_down, .stranger = on_stranger}};
    process_name(p->nodes, p->index, config.name);
    st = kvf_fabric_create(&config, &p->fabric);
    if (st == KVF_OK && !p->server) {
        int none;
        p->memory = kvf_pages_reserve(o->memory_bytes);
        st = p->memory && back(p->memory, o->memory_bytes, false, &none) ? KVF_OK : KVF_ERR_NO_MEMORY;
        if (st == KVF_OK)
            st = p->transport->ops->memory_register(p->transport, p->memory, o->memory_bytes, &p->registered);
        for (unsigned i = 0; i < DEPTH_MAX && st == KVF_OK; i++) {
            p->ops[i] = (struct op){.process = p, .pages = calloc(KVF_PULL_RANGES_MAX, sizeof(uint64_t))};
            st = p->ops[i].pages ? KVF_OK : KVF_ERR_NO_MEMORY;
        }
    }
    return st;
}

/* A reader knows all of a server when it knows how to read every piece of its region. */
static bool met(const struct process *p)
{
    for (unsigned i = 0; i < p->n_peers; i++) {
        struct kvf_peer_about about;
        kvf_peer_about(p->peers[i], &about);
        uint64_t known = 0;
        for (unsigned way = 0; way < KVF_WAYS; way++)
            known += about.region_bytes[way];
        if (known < p->region->bytes)
            return false;
    }
    return true;
}

static bool meet(struct process *p)
{
    const struct kvf_fabric_nodes_options *o = &p->nodes->options;
    struct board *board = p->nodes->board;
    double end = kvf_bench_now() + MEET_SECONDS;
    if (p->server) {
        struct kvf_fabric_node_address *own = &board->server[p->index];
        own->bytes = sizeof own->address;
        own->incarnation = p->nodes->incarnation + p->index;
        process_name(p->nodes, p->index, own->name);
        if (p->transport->ops->address(p->transport, own->address, &own->bytes) != KVF_OK)
            return false;
    }
    atomic_fetch_add(&board->ready, 1);
    while (atomic_load(&board->ready) < o->servers + o->readers && !atomic_load(&board->failed) && kvf_bench_now() < end)
        usleep(500);
    for (unsigned i = 0; i < o->servers + (o->server != NULL) && !p->server; i++) {
        const struct kvf_fabric_node_address *to = i < o->servers ? &board->server[i] : o->server;
        if (kvf_fabric_peer_add(p->fabric, to->name, to->incarnation, to->address, to->bytes, &p->peers[i]) != KVF_OK)
            return false;
        p->n_peers++;
    }
    while (!met(p) && !atomic_load(&board->failed) && p->downs == 0 && kvf_bench_now() < end)
        turn(p);
    return met(p);
}

/* Serves, and works on what it is told, until the pipe is closed. */
static void serve(struct process *p)
{
    for (;;) {
        ssize_t n = read(p->in, &p->task, sizeof p->task);
        if (n == (ssize_t)sizeof p->task) {
            struct kvf_fabric_answer answer = work(p);
            if (write(p->out, &answer, sizeof answer) != (ssize_t)sizeof answer)
                return;
        } else if (n >= 0 || errno != EAGAIN) {
            return;
        }
        while (turn(p))
            continue;
    }
}

/* The child: never returns. */
static void run_process(const struct kvf_fabric_nodes *nodes, unsigned index, int in, int out)
{
    struct process *p = calloc(1, sizeof *p);
    struct epoll_event event = {.events = EPOLLIN};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (nodes->options.pin)
        kvf_limits_pin(index);
    if (!p)
        _exit(1);
    *p = (struct process){.nodes = nodes, .region = nodes->region, .index = index, .server = index < nodes->options.servers,
                          .in = in, .out = out, .epoll_fd = epoll_create1(EPOLL_CLOEXEC)};
    kvf_spin_init(&p->spin, nodes->options.spin_ns, kvf_now(kvf_env_real()));
    enum kvf_status st = open_process(p);
    if (st != KVF_OK)
        complain("starting a process", kvf_status_text(st));
    bool good = st == KVF_OK && epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, in, &event) == 0 &&
                epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->transport->ops->event_fd(p->transport), &event) == 0 && meet(p);
    if (!good)
        atomic_store(&nodes->board->failed, 1);
    char word = good;
    if (write(out, &word, 1) == 1 && good)
        serve(p);
    if (p->fabric)
        kvf_fabric_destroy(p->fabric);
    if (p->own)
        p->transport->ops->region_destroy(p->transport, p->own);
    if (p->registered)
        p->transport->ops->memory_unregister(p->transport, p->registered);
    if (p->transport)
        p->transport->ops->destroy(p->transport);
    kvf_secret_destroy(p->secret);
    _exit(good ? 0 : 1);
}

/* ------------------------------------------------------------------------------------------------- the set */

static bool start_process(struct kvf_fabric_nodes *nodes, unsigned index)
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) != 0)
        return false;
    if (pipe2(from, O_CLOEXEC) != 0) {
        close(to[0]);
        close(to[1]);
        return false;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        /* The other processes' ends too: a pipe is closed only when all who have it close it. */
        for (unsigned i = 0; i < index; i++) {
            close(nodes->to[i]);
            close(nodes->from[i]);
        }
        close(to[1]);
        close(from[0]);
        fcntl(to[0], F_SETFL, O_NONBLOCK);
        run_process(nodes, index, to[0], from[1]);
    }
    close(to[0]);
    close(from[1]);
    nodes->to[index] = to[1];
    nodes->from[index] = from[0];
    nodes->pids[index] = pid;
    nodes->n += pid > 0;
    return pid > 0;
}

struct kvf_fabric_nodes *kvf_fabric_nodes_create(const struct kvf_fabric_region *region,
                                                 const struct kvf_fabric_nodes_options *options)
{
    unsigned n = options->servers + options->readers;
    struct kvf_fabric_nodes *nodes = calloc(1, sizeof *nodes);
    if (!nodes || n > KVF_FABRIC_NODES_MAX) {
        free(nodes);
        return complain("starting", "no memory, or too many processes");
    }
    nodes->region = region;
    nodes->options = *options;
    uint8_t drawn[KVF_SECRET_BYTES_MIN / 2];
    bool good = kvf_env_secure(kvf_env_real(), drawn, sizeof drawn) &&
                kvf_env_secure(kvf_env_real(), &nodes->incarnation, sizeof nodes->incarnation);
    nodes->incarnation = nodes->incarnation >> 1 | 1; /* never 0, and room for all */
    for (unsigned i = 0; i < sizeof drawn; i++)
        snprintf(nodes->secret + 2 * i, 3, "%02x", drawn[i]);
    nodes->board = mmap(NULL, sizeof *nodes->board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    good &= nodes->board != MAP_FAILED;
    for (unsigned i = 0; i < n && good; i++)
        good = start_process(nodes, i);
    for (unsigned i = 0; i < nodes->n; i++) {
        char up = 0;
        good &= read(nodes->from[i], &up, 1) == 1 && up == 1;
    }
    if (good)
        return nodes;
    kvf_fabric_nodes_destroy(nodes);
    return complain("starting", "the processes did not find each other");
}

void kvf_fabric_nodes_destroy(struct kvf_fabric_nodes *nodes)
{
    /* Readers first: they say goodbye to servers that still listen. */
    for (unsigned i = nodes->n; i-- > 0;) {
        close(nodes->to[i]);
        close(nodes->from[i]);
        waitpid(nodes->pids[i], NULL, 0);
    }
    if (nodes->board != MAP_FAILED)
        munmap(nodes->board, sizeof *nodes->board);
    free(nodes);
}

void kvf_fabric_nodes_server(const struct kvf_fabric_nodes *nodes, struct kvf_fabric_node_address *out)
{
    *out = nodes->board->server[0];
}

bool kvf_fabric_nodes_run(struct kvf_fabric_nodes *nodes, const struct kvf_fabric_task *task, struct kvf_fabric_answer *answers)
{
    unsigned servers = nodes->options.servers, readers = nodes->options.readers;
    bool look = task->work == KVF_FABRIC_VIEW || task->work == KVF_FABRIC_LOOK;
    bool good = task->depth >= 1 && task->depth <= DEPTH_MAX && task->ranges >= 1 &&
                task->ranges <= (look ? 1 : KVF_PULL_RANGES_MAX) &&
                (uint64_t)task->bytes * task->ranges * task->depth <= nodes->options.memory_bytes;
    for (unsigned i = 0; i < readers && good; i++)
        good = write(nodes->to[servers + i], task, sizeof *task) == (ssize_t)sizeof *task;
    for (unsigned i = 0; i < readers && good; i++)
        good = read(nodes->from[servers + i], &answers[i], sizeof *answers) == (ssize_t)sizeof *answers && answers[i].good;
    if (!good)
        complain("a measurement", "a request failed or brought wrong bytes, or the task is too large");
    return good;
}
