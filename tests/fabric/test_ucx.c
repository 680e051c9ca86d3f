/* The fabric over real UCX: two threads of one process, and processes that are killed. A peer process is this program
 * again, with arguments. */
#include "fabric/fabric.h"
#include "fabric/wire.h"
#include "base/hash.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define REGION_BYTES (64u << 20)
#define BLOCK (64u << 10)
#define ECHO 32
#define SEED 20240613ull

static char program[4096];
static size_t segment_bytes = 256 << 10;

/* UCX loses the table of a shared memory endpoint that it could not connect (the peer's memory is gone): 100 bytes. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libuct.so\n";
}

struct node {
    struct kvf_log log;
    struct kvf_counters counters;
    struct kvf_transport *transport;
    struct kvf_region *region;
    uint8_t *base;
    int fd;
    struct kvf_fabric *fabric;
    unsigned ups, downs;
    uint8_t address[KVF_ADDRESS_MAX];
    size_t address_bytes;
};

static uint64_t now_ns(void) { return kvf_now(kvf_env_real()); }

static uint64_t word_at(const char *name, uint64_t offset)
{
    return kvf_mix(offset, kvf_hash(name, strlen(name), SEED));
}

static void fill(const char *name, void *region, size_t bytes)
{
    uint64_t *words = region;
    uint64_t seed = kvf_hash(name, strlen(name), SEED);
    for (size_t i = 0; i < bytes / 8; i++)
        words[i] = kvf_mix(i * 8, seed);
}

static bool matches(const char *name, uint64_t offset, const void *data, size_t bytes)
{
    const uint64_t *words = data;
    for (size_t i = 0; i < bytes / 8; i++) {
        if (words[i] != word_at(name, offset + i * 8))
            return false;
    }
    return true;
}

static void on_up(void *arg, struct kvf_peer *peer) { ((struct node *)arg)->ups++; }
static void on_down(void *arg, struct kvf_peer *peer, enum kvf_status why) { ((struct node *)arg)->downs++; }

static void echo_done(void *arg, enum kvf_status status) { free(arg); }

/* Sends the payload back. */
static void on_message(void *arg, struct kvf_peer *peer, const struct kvf_message *m)
{
    void *copy = malloc(m->bytes + 1);
    struct iovec part = {.iov_base = copy, .iov_len = m->bytes};
    if (m->bytes)
        memcpy(copy, m->payload, m->bytes);
    if (kvf_fabric_reply(peer, m->request, KVF_OK, &part, 1, echo_done, copy) != KVF_OK)
        free(copy);
}

static void on_stranger(void *arg, const char *name, uint64_t incarnation, const void *address, size_t bytes)
{
    struct node *n = arg;
    struct kvf_peer *peer;
    kvf_fabric_peer_add(n->fabric, name, incarnation, address, bytes, &peer);
}

/* Memory as a node's: a sealed memfd. */
static int region_memory(uint8_t **base)
{
    int fd = memfd_create("kvf-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0 && ftruncate(fd, REGION_BYTES) == 0);
    void *memory = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(memory != MAP_FAILED);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    *base = memory;
    return fd;
}

static enum kvf_status node_open(struct node *n, const char *name, uint64_t incarnation, const char *kind)
{
    memset(n, 0, sizeof *n);
    kvf_log_init(&n->log, name, KVF_LOG_ERROR, stderr);
    struct kvf_transport_config tc = {
        .kind = kind, .interface = "lo", .segment_bytes = segment_bytes, .peers_max = 8, .log = &n->log};
    enum kvf_status st = kvf_transport_ucx_create(&tc, &n->transport);
    if (st != KVF_OK)
        return st;
    n->fd = region_memory(&n->base);
    st = n->transport->ops->region_create(n->transport, n->base, REGION_BYTES, &n->region);
    if (st == KVF_OK)
        st = n->transport->ops->region_add(n->transport, n->region, 0, REGION_BYTES, n->fd);
    if (st != KVF_OK)
        return st;
    fill(name, n->base, REGION_BYTES);
    n->address_bytes = sizeof n->address;
    st = n->transport->ops->address(n->transport, n->address, &n->address_bytes);
    if (st != KVF_OK)
        return st;
    struct kvf_fabric_config fc = {
        .env = kvf_env_real(),
        .transport = n->transport,
        .log = &n->log,
        .counters = &n->counters,
        .incarnation = incarnation,
        .region = n->region,
        .region_base = n->base,
        .region_bytes = REGION_BYTES,
        .peers_max = 8,
        .requests_max = 256,
        .inflight_bytes = 8 << 20,
        .heartbeat_ns = 100 * KVF_MS,
        .dead_ns = 2 * KVF_SEC,
        .handler = {.arg = n, .peer_up = on_up, .peer_down = on_down, .message = on_message, .stranger = on_stranger},
    };
    snprintf(fc.name, sizeof fc.name, "%s", name);
    return kvf_fabric_create(&fc, &n->fabric);
}

static void node_close(struct node *n)
{
    if (n->fabric)
        kvf_fabric_destroy(n->fabric);
    if (n->region)
        n->transport->ops->region_destroy(n->transport, n->region);
    if (n->transport)
        n->transport->ops->destroy(n->transport);
    if (n->base) {
        munmap(n->base, REGION_BYTES);
        close(n->fd);
    }
}

/* ------------------------------------------------------------------------------------------------ peer process */
struct child {
    pid_t pid;
    int to, from; /* pipes */
    char name[32];
    uint64_t incarnation;
    uint8_t address[KVF_ADDRESS_MAX];
    size_t address_bytes;
};

/* Writes its address, then serves until its input ends. */
static int child_main(const char *name, const char *kind)
{
    static struct node n;
    uint64_t incarnation = (uint64_t)getpid();
    if (node_open(&n, name, incarnation, kind) != KVF_OK)
        return 3;
    uint64_t head[2] = {incarnation, n.address_bytes};
    if (write(1, head, sizeof head) != sizeof head || write(1, n.address, n.address_bytes) != (ssize_t)n.address_bytes)
        return 4;
    uint64_t looked = 0;
    for (;;) {
        if (kvf_fabric_poll(n.fabric) == 0)
            usleep(20);
        if (now_ns() - looked < 10 * KVF_MS)
            continue;
        looked = now_ns();
        fd_set set;
        FD_ZERO(&set);
        FD_SET(0, &set);
        if (select(1, &set, NULL, NULL, &(struct timeval){0}) > 0)
            break;
    }
    node_close(&n);
    return 0;
}

static void child_start(struct child *c, const char *name, const char *kind)
{
    int to[2], from[2];
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    snprintf(c->name, sizeof c->name, "%s", name);
    c->pid = fork();
    assert_true(c->pid >= 0);
    if (c->pid == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        execl(program, program, "peer", name, kind, (char *)NULL);
        _exit(5);
    }
    close(to[0]);
    close(from[1]);
    c->to = to[1];
    c->from = from[0];
    uint64_t head[2];
    assert_int_equal(read(c->from, head, sizeof head), sizeof head);
    c->incarnation = head[0];
    c->address_bytes = head[1];
    assert_true(c->address_bytes <= sizeof c->address);
    assert_int_equal(read(c->from, c->address, c->address_bytes), c->address_bytes);
}

/* Ends it by closing its input and wants a clean exit (sanitizers speak by the exit status). */
static void child_stop(struct child *c)
{
    int status;
    close(c->to);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    close(c->from);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* As init would, it is reaped at once: UCX takes a zombie for alive. */
static void child_kill(struct child *c)
{
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
}

static void child_forget(struct child *c)
{
    close(c->to);
    close(c->from);
}

/* Files of UCX in /dev/shm that stay. Any program that uses it has one for an instant when it starts, so each that is seen
 * is given time to go. */
static unsigned shm_files(void)
{
    char names[64][64];
    unsigned n = 0, stay = 0;
    DIR *d = opendir("/dev/shm");
    for (struct dirent *e; d && n < 64 && (e = readdir(d));) {
        if (strncmp(e->d_name, "ucx_shm", 7) == 0)
            snprintf(names[n++], sizeof names[0], "%.63s", e->d_name);
    }
    if (d)
        closedir(d);
    for (unsigned i = 0; i < n; i++) {
        char path[128];
        snprintf(path, sizeof path, "/dev/shm/%.63s", names[i]);
        unsigned tries = 200;
        while (access(path, F_OK) == 0 && --tries > 0)
            usleep(50000);
        stay += tries == 0;
    }
    return stay;
}

/* ------------------------------------------------------------------------------------------------ helpers */
static struct kvf_peer *meet(struct node *n, const char *name, uint64_t incarnation, const void *address, size_t bytes)
{
    struct kvf_peer *peer;
    assert_int_equal(kvf_fabric_peer_add(n->fabric, name, incarnation, address, bytes, &peer), KVF_OK);
    /* On an overloaded machine the other side may be silent for longer than dead_ns: then it is met anew. */
    uint64_t until = now_ns() + 30 * KVF_SEC;
    int downs = (int)n->downs;
    while (!kvf_peer_is_up(peer) && now_ns() < until) {
        kvf_fabric_poll(n->fabric);
        if ((int)n->downs == downs)
            continue;
        n->downs = 0;
        downs = 0;
        kvf_fabric_peer_remove(n->fabric, peer);
        assert_int_equal(kvf_fabric_peer_add(n->fabric, name, incarnation, address, bytes, &peer), KVF_OK);
    }
    assert_true(kvf_peer_is_up(peer));
    return peer;
}

/* It is up before it has told of the pieces of its region. */
static void await_way(struct node *n, struct kvf_peer *peer, enum kvf_way way)
{
    for (uint64_t until = now_ns() + 10 * KVF_SEC; kvf_peer_way(peer) != way && now_ns() < until;)
        kvf_fabric_poll(n->fabric);
    assert_int_equal(kvf_peer_way(peer), way);
}

struct tally {
    unsigned ok, lost, other, total;
};

static void on_pulled(void *arg, enum kvf_status status)
{
    struct tally *t = arg;
    t->total++;
    t->ok += status == KVF_OK;
    t->lost += status == KVF_ERR_PEER_LOST;
    t->other += status != KVF_OK && status != KVF_ERR_PEER_LOST;
}

static void poll_until(struct node *n, const unsigned *counter, unsigned value, uint64_t limit_ns)
{
    uint64_t until = now_ns() + limit_ns;
    while (*counter < value && now_ns() < until)
        kvf_fabric_poll(n->fabric);
}

/* Pulls scattered ranges of `bytes` each and compares every word. */
static void pull_and_check(struct node *n, struct kvf_peer *peer, uint32_t bytes, unsigned count)
{
    uint8_t *buffer = aligned_alloc(4096, (size_t)bytes * count);
    struct kvf_pull_range *ranges = calloc(count, sizeof *ranges);
    struct tally t = {0};
    assert_non_null(buffer);
    memset(buffer, 0xee, (size_t)bytes * count);
    for (unsigned i = 0; i < count; i++) {
        uint64_t slots = REGION_BYTES / bytes;
        ranges[i] = (struct kvf_pull_range){.offset = (i * 7919ull + 3) % slots * bytes, .bytes = bytes,
                                            .to = buffer + (size_t)i * bytes};
    }
    assert_int_equal(kvf_fabric_pull(peer, ranges, count, now_ns() + 20 * KVF_SEC, on_pulled, &t), KVF_OK);
    assert_int_equal(t.total, 0);
    poll_until(n, &t.total, 1, 30 * KVF_SEC);
    assert_int_equal(t.ok, 1);
    for (unsigned i = 0; i < count; i++)
        assert_true(matches(kvf_peer_name(peer), ranges[i].offset, ranges[i].to, bytes));
    free(ranges);
    free(buffer);
}

struct answer {
    unsigned total;
    enum kvf_status status;
    bool equal;
    const uint8_t *sent;
    size_t bytes;
};

static void on_answer(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct answer *a = arg;
    a->total++;
    a->status = status;
    a->equal = status == KVF_OK && bytes == a->bytes && (bytes == 0 || memcmp(payload, a->sent, bytes) == 0);
}

static void call_and_check(struct node *n, struct kvf_peer *peer, size_t bytes, unsigned n_parts)
{
    uint8_t *data = malloc(bytes + 1);
    struct iovec parts[KVF_FRAME_PARTS_MAX];
    struct answer a = {.sent = data, .bytes = bytes};
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)kvf_mix(i, SEED);
    for (unsigned i = 0; i < n_parts; i++) {
        size_t from = bytes * i / n_parts, to = bytes * (i + 1) / n_parts;
        parts[i] = (struct iovec){.iov_base = data + from, .iov_len = to - from};
    }
    assert_int_equal(kvf_fabric_call(peer, ECHO, parts, n_parts, now_ns() + 20 * KVF_SEC, on_answer, &a), KVF_OK);
    poll_until(n, &a.total, 1, 30 * KVF_SEC);
    assert_int_equal(a.total, 1);
    assert_int_equal(a.status, KVF_OK);
    assert_true(a.equal);
    free(data);
}

static bool no_ucx(void)
{
    char about[256];
    kvf_transport_ucx_about(about, sizeof about);
    return strncmp(about, "UCX ", 4) != 0;
}

/* ------------------------------------------------------------------------------------------------ tests */
struct server {
    struct node node;
    _Atomic bool stop;
};

static void *serve(void *arg)
{
    struct server *s = arg;
    while (!atomic_load(&s->stop))
        kvf_fabric_poll(s->node.fabric);
    return NULL;
}

static void threads_pull(const char *kind, enum kvf_way way)
{
    static struct server s;
    static struct node n;
    pthread_t thread;
    memset(&s, 0, sizeof s);
    assert_int_equal(node_open(&s.node, "server", 11, kind), KVF_OK);
    assert_int_equal(node_open(&n, "client", 12, kind), KVF_OK);
    assert_int_equal(pthread_create(&thread, NULL, serve, &s), 0);
    struct kvf_peer *peer = meet(&n, "server", 11, s.node.address, s.node.address_bytes);
    await_way(&n, peer, way);
    pull_and_check(&n, peer, 64 << 10, 100);
    pull_and_check(&n, peer, 1 << 20, 8);
    call_and_check(&n, peer, 100, 1);
    call_and_check(&n, peer, kvf_fabric_payload_max(n.fabric), 64);
    atomic_store(&s.stop, true);
    pthread_join(thread, NULL);
    node_close(&n);
    node_close(&s.node);
}

static void threads_pull_over_tcp(void **state) { threads_pull("tcp", KVF_WAY_ASK); }
static void threads_pull_over_shared_memory(void **state) { threads_pull("shm", KVF_WAY_MAPPED); }

/* One node has smaller segments: what goes between the two fits the smaller. */
static void nodes_with_different_segments_understand_each_other(void **state)
{
    static struct server s;
    static struct node n;
    static uint8_t big[128 << 10];
    pthread_t thread;
    for (unsigned turn = 0; turn < 2; turn++) {
        memset(&s, 0, sizeof s);
        segment_bytes = turn ? 256 << 10 : 32 << 10;
        assert_int_equal(node_open(&s.node, "server", 11, "tcp"), KVF_OK);
        segment_bytes = turn ? 32 << 10 : 256 << 10;
        assert_int_equal(node_open(&n, "client", 12, "tcp"), KVF_OK);
        segment_bytes = 256 << 10;
        assert_int_equal(pthread_create(&thread, NULL, serve, &s), 0);
        struct kvf_peer *peer = meet(&n, "server", 11, s.node.address, s.node.address_bytes);
        pull_and_check(&n, peer, 64 << 10, 64);
        pull_and_check(&n, peer, 1 << 20, 4);
        call_and_check(&n, peer, 32 << 10, 4);
        struct iovec part = {.iov_base = big, .iov_len = sizeof big};
        struct answer a = {0};
        assert_int_equal(kvf_fabric_call(peer, ECHO, &part, 1, UINT64_MAX, on_answer, &a), KVF_ERR_INVALID);
        atomic_store(&s.stop, true);
        pthread_join(thread, NULL);
        node_close(&n);
        node_close(&s.node);
    }
}

static void processes_pull(const char *kind, enum kvf_way way)
{
    static struct node n;
    struct child c[2];
    child_start(&c[0], "one", kind);
    child_start(&c[1], "two", kind);
    assert_int_equal(node_open(&n, "three", 12, kind), KVF_OK);
    for (unsigned i = 0; i < 2; i++) {
        struct kvf_peer *peer = meet(&n, c[i].name, c[i].incarnation, c[i].address, c[i].address_bytes);
        await_way(&n, peer, way);
        pull_and_check(&n, peer, 4 << 10, 256);
        pull_and_check(&n, peer, 64 << 10, 64);
        pull_and_check(&n, peer, 1 << 20, 16);
        call_and_check(&n, peer, 0, 0);
        call_and_check(&n, peer, 64 << 10, 16);
        call_and_check(&n, peer, kvf_fabric_payload_max(n.fabric), 1);
    }
    assert_int_equal(n.ups, 2);
    assert_int_equal(kvf_counted(&n.counters.messages_refused), 0);
    node_close(&n);
    child_stop(&c[0]);
    child_stop(&c[1]);
    assert_int_equal(shm_files(), 0);
}

static void processes_pull_over_tcp(void **state) { processes_pull("tcp", KVF_WAY_ASK); }
static void processes_pull_over_shared_memory(void **state) { processes_pull("shm", KVF_WAY_MAPPED); }

/* 64 pulls are outstanding when the peer dies; every one ends, and what ended well is right. Then the peer starts anew. */
static void killed_peer_ends_pulls(const char *kind)
{
    static struct node n;
    struct child c;
    struct tally t = {0};
    enum { PULLS = 64, BYTES = 1 << 20 };
    child_start(&c, "mortal", kind);
    assert_int_equal(node_open(&n, "watcher", 12, kind), KVF_OK);
    struct kvf_peer *peer = meet(&n, c.name, c.incarnation, c.address, c.address_bytes);
    uint8_t *buffer = malloc((size_t)PULLS * BYTES);
    assert_non_null(buffer);
    for (unsigned i = 0; i < PULLS; i++) {
        struct kvf_pull_range range = {.offset = (uint64_t)i * BYTES, .bytes = BYTES, .to = buffer + (size_t)i * BYTES};
        assert_int_equal(kvf_fabric_pull(peer, &range, 1, now_ns() + 60 * KVF_SEC, on_pulled, &t), KVF_OK);
    }
    poll_until(&n, &t.total, 3, 10 * KVF_SEC);
    child_kill(&c);
    uint64_t start = now_ns();
    poll_until(&n, &t.total, PULLS, 10 * KVF_SEC);
    uint64_t ended = now_ns() - start;
    poll_until(&n, &n.downs, 1, 10 * KVF_SEC);
    uint64_t told = now_ns() - start;
    print_message("%s: %u of %u pulls ok, %u lost, the last ended %.1f ms after the kill, peer down after %.1f ms\n", kind, t.ok,
                  t.total, t.lost, (double)ended / 1e6, (double)told / 1e6);
    assert_int_equal(t.total, PULLS);
    assert_int_equal(t.other, 0);
    assert_true(ended < 3 * KVF_SEC);
    assert_true(told < 3 * KVF_SEC);
    assert_int_equal(n.downs, 1);
    assert_false(kvf_peer_is_up(peer));
    struct kvf_pull_range range = {.offset = 0, .bytes = BYTES, .to = buffer};
    assert_int_equal(kvf_fabric_pull(peer, &range, 1, UINT64_MAX, on_pulled, &t), KVF_ERR_PEER_LOST);
    child_forget(&c);
    assert_int_equal(shm_files(), 0);

    child_start(&c, "mortal", kind);
    peer = meet(&n, c.name, c.incarnation, c.address, c.address_bytes);
    pull_and_check(&n, peer, 64 << 10, 16);
    node_close(&n);
    child_stop(&c);
    free(buffer);
}

static void killed_peer_ends_pulls_over_tcp(void **state) { killed_peer_ends_pulls("tcp"); }
static void killed_peer_ends_pulls_over_shared_memory(void **state) { killed_peer_ends_pulls("shm"); }

/* A process that hangs: its kernel goes on answering, so only deadlines and heartbeats tell. */
static void a_stopped_peer_ends_pulls_at_their_deadline(void **state)
{
    static struct node n;
    static uint8_t buffer[1 << 20];
    struct child c;
    struct tally t = {0};
    child_start(&c, "sleeper", "tcp");
    assert_int_equal(node_open(&n, "waker", 12, "tcp"), KVF_OK);
    struct kvf_peer *peer = meet(&n, c.name, c.incarnation, c.address, c.address_bytes);
    kill(c.pid, SIGSTOP);
    uint64_t start = now_ns();
    struct kvf_pull_range range = {.offset = 0, .bytes = sizeof buffer, .to = buffer};
    assert_int_equal(kvf_fabric_pull(peer, &range, 1, start + 300 * KVF_MS, on_pulled, &t), KVF_OK);
    poll_until(&n, &t.total, 1, 5 * KVF_SEC);
    assert_int_equal(t.other, 1);
    assert_in_range(now_ns() - start, 300 * KVF_MS, 800 * KVF_MS);
    assert_true(kvf_peer_is_up(peer));
    memset(buffer, 0xcc, sizeof buffer);
    kill(c.pid, SIGCONT); /* what it still sends of the old pull is not written */
    pull_and_check(&n, peer, 64 << 10, 4);
    for (size_t i = 0; i < sizeof buffer; i++)
        assert_int_equal(buffer[i], 0xcc);
    kill(c.pid, SIGSTOP);
    start = now_ns();
    poll_until(&n, &n.downs, 1, 10 * KVF_SEC);
    assert_in_range(now_ns() - start, 1500 * KVF_MS, 3500 * KVF_MS);
    kill(c.pid, SIGCONT);
    child_kill(&c);
    child_forget(&c);
    node_close(&n);
}

/* A reactor that sleeps is woken by a frame. */
static void an_armed_transport_wakes_by_its_event_fd(void **state)
{
    const char *const kinds[] = {"tcp", "shm"};
    for (unsigned k = 0; k < 2; k++) {
        static struct node n;
        struct child c;
        child_start(&c, "ticker", kinds[k]);
        assert_int_equal(node_open(&n, "reactor", 12, kinds[k]), KVF_OK);
        struct kvf_peer *peer = meet(&n, c.name, c.incarnation, c.address, c.address_bytes);
        for (unsigned i = 0; i < 5; i++) {
            struct answer a = {.bytes = 0};
            assert_int_equal(kvf_fabric_call(peer, ECHO, NULL, 0, now_ns() + 5 * KVF_SEC, on_answer, &a), KVF_OK);
            uint64_t start = now_ns();
            while (a.total == 0 && now_ns() - start < 5 * KVF_SEC) {
                kvf_fabric_poll(n.fabric);
                struct pollfd fd = {.fd = n.transport->ops->event_fd(n.transport), .events = POLLIN};
                if (a.total == 0 && n.transport->ops->arm(n.transport))
                    assert_int_equal(poll(&fd, 1, 4000), 1);
            }
            assert_int_equal(a.status, KVF_OK);
            assert_true(now_ns() - start < KVF_SEC);
        }
        node_close(&n);
        child_stop(&c);
    }
}

static void a_goodbye_takes_the_peer_down_at_once(void **state)
{
    static struct node n;
    struct child c;
    child_start(&c, "guest", "tcp");
    assert_int_equal(node_open(&n, "host", 12, "tcp"), KVF_OK);
    meet(&n, c.name, c.incarnation, c.address, c.address_bytes);
    close(c.to);
    uint64_t start = now_ns();
    poll_until(&n, &n.downs, 1, 5 * KVF_SEC);
    assert_int_equal(n.downs, 1);
    assert_true(now_ns() - start < KVF_SEC);
    int status;
    assert_int_equal(waitpid(c.pid, &status, 0), c.pid);
    assert_int_equal(status, 0);
    close(c.from);
    node_close(&n);
}

/* A peer that is not there: no call blocks, and the peer goes DOWN. */
static void an_absent_peer_goes_down(const char *kind)
{
    static struct node n;
    struct child c;
    struct kvf_peer *peer;
    child_start(&c, "ghost", kind);
    child_kill(&c);
    child_forget(&c);
    assert_int_equal(node_open(&n, "seeker", 12, kind), KVF_OK);
    uint64_t start = now_ns();
    enum kvf_status st = kvf_fabric_peer_add(n.fabric, c.name, c.incarnation, c.address, c.address_bytes, &peer);
    assert_true(now_ns() - start < KVF_SEC);
    if (st == KVF_OK)
        poll_until(&n, &n.downs, 1, 5 * KVF_SEC);
    else
        assert_int_equal(st, KVF_ERR_PEER_UNREACHABLE);
    assert_true(st != KVF_OK || n.downs == 1);
    assert_true(now_ns() - start < 3 * KVF_SEC);
    node_close(&n);
}

static void an_absent_peer_goes_down_over_tcp(void **state) { an_absent_peer_goes_down("tcp"); }
static void an_absent_peer_goes_down_over_shared_memory(void **state) { an_absent_peer_goes_down("shm"); }

static void wrong_settings_are_refused(void **state)
{
    struct kvf_log log;
    kvf_log_init(&log, "test", KVF_LOG_ERROR, NULL);
    struct kvf_transport *t;
    struct kvf_transport_config c = {.kind = "tcp", .interface = "nosuch0", .segment_bytes = 65536, .peers_max = 4, .log = &log};
    assert_int_equal(kvf_transport_ucx_create(&c, &t), KVF_ERR_CONFIG);
    c.interface = "lo";
    c.kind = "carrier-pigeon";
    assert_int_equal(kvf_transport_ucx_create(&c, &t), KVF_ERR_CONFIG);
    c.kind = "rdma";
    assert_int_equal(kvf_transport_ucx_create(&c, &t), KVF_ERR_CONFIG);
    c.kind = "tcp";
    assert_int_equal(kvf_transport_ucx_create(&c, &t), KVF_OK);
    char text[256];
    t->ops->describe(t, text, sizeof text);
    assert_non_null(strstr(text, "tcp"));
    assert_int_equal(t->ops->payload_max(t), 65536);
    t->ops->destroy(t);
}

static void what_is_no_region_or_piece_is_refused(void **state)
{
    const char *const kinds[] = {"tcp", "shm", "auto"};
    struct kvf_log log;
    kvf_log_init(&log, "test", KVF_LOG_ERROR, stderr);
    for (unsigned k = 0; k < 3; k++) {
        struct kvf_transport *t;
        struct kvf_region *region;
        uint8_t *base;
        void *registered = &region;
        int fd = region_memory(&base);
        struct kvf_transport_config c = {.kind = kinds[k], .interface = "lo", .segment_bytes = 65536, .peers_max = 4, .log = &log};
        assert_int_equal(kvf_transport_ucx_create(&c, &t), KVF_OK);
        assert_int_equal(t->ops->region_create(t, base, 0, &region), KVF_ERR_INVALID);
        assert_int_equal(t->ops->region_create(t, NULL, 4096, &region), KVF_ERR_INVALID);
        assert_int_equal(t->ops->region_create(t, base + 1, 4096, &region), KVF_ERR_INVALID);
        assert_int_equal(t->ops->region_create(t, base, REGION_BYTES, &region), KVF_OK);
        assert_int_equal(t->ops->region_add(t, region, REGION_BYTES, 4096, -1), KVF_ERR_INVALID);
        assert_int_equal(t->ops->region_add(t, region, 4096, REGION_BYTES, fd), KVF_ERR_INVALID);
        assert_int_equal(t->ops->region_pieces(region), 0);
        for (unsigned i = 0; i < KVF_REGION_PIECES_MAX; i++)
            assert_int_equal(t->ops->region_add(t, region, i * 4096, 4096, -1), KVF_OK);
        assert_int_equal(t->ops->region_add(t, region, 0, 4096, -1), KVF_ERR_BUSY);
        assert_int_equal(t->ops->region_pieces(region), KVF_REGION_PIECES_MAX);
        assert_int_equal(t->ops->region_piece(region, 3)->offset, 3 * 4096);
        assert_int_equal(t->ops->memory_register(t, base, REGION_BYTES, &registered), KVF_OK);
        t->ops->memory_unregister(t, registered);
        t->ops->region_destroy(t, region);
        t->ops->destroy(t);
        munmap(base, REGION_BYTES);
        close(fd);
    }
}

/* A user's UCX_* for another program in the same process does not change what we chose. */
static void the_environment_does_not_leak_in(void **state)
{
    setenv("UCX_TLS", "self", 1);
    setenv("UCX_NET_DEVICES", "nosuch0", 1);
    setenv("UCX_TCP_TX_SEG_SIZE", "1k", 1);
    setenv("UCX_RNDV_THRESH", "0", 1);
    setenv("UCX_POSIX_USE_PROC_LINK", "n", 1);
    processes_pull("tcp", KVF_WAY_ASK);
    processes_pull("shm", KVF_WAY_MAPPED);
    unsetenv("UCX_TLS");
    unsetenv("UCX_NET_DEVICES");
    unsetenv("UCX_TCP_TX_SEG_SIZE");
    unsetenv("UCX_RNDV_THRESH");
    unsetenv("UCX_POSIX_USE_PROC_LINK");
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "peer") == 0)
        return child_main(argv[2], argv[3]);
    if (no_ucx()) {
        printf("skipped: UCX is not built in\n");
        return 77;
    }
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        return 1;
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_settings_are_refused),
        cmocka_unit_test(what_is_no_region_or_piece_is_refused),
        cmocka_unit_test(threads_pull_over_tcp),
        cmocka_unit_test(threads_pull_over_shared_memory),
        cmocka_unit_test(nodes_with_different_segments_understand_each_other),
        cmocka_unit_test(processes_pull_over_tcp),
        cmocka_unit_test(processes_pull_over_shared_memory),
        cmocka_unit_test(killed_peer_ends_pulls_over_tcp),
        cmocka_unit_test(killed_peer_ends_pulls_over_shared_memory),
        cmocka_unit_test(a_stopped_peer_ends_pulls_at_their_deadline),
        cmocka_unit_test(an_armed_transport_wakes_by_its_event_fd),
        cmocka_unit_test(a_goodbye_takes_the_peer_down_at_once),
        cmocka_unit_test(an_absent_peer_goes_down_over_tcp),
        cmocka_unit_test(an_absent_peer_goes_down_over_shared_memory),
        cmocka_unit_test(the_environment_does_not_leak_in),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
