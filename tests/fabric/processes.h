/* Fabrics over real UCX, here and in processes that are killed, stopped and cut off. A peer process is the test program again,
 * with arguments: main() hands them to child_main. */
#ifndef KVF_TESTS_FABRIC_PROCESSES_H
#define KVF_TESTS_FABRIC_PROCESSES_H

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
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define REGION_BYTES (64u << 20)
#define BLOCK (64u << 10)
#define PEERS_MAX 16
#define ECHO 32  /* a message whose payload comes back */
#define COUNT 33 /* answered by a u64: the payloads of SINK so far that were not whole */
#define SINK 34  /* a message of sink_fill's bytes, of which nothing comes back but the status */
#define REWRITE 35 /* a struct rewrite; answered by the status alone when it is done */
#define BRING 36   /* a u32: so many bytes come back, all of them 0 */
#define SEED 20240613ull

/* Words over a range of the receiver's region, all of them the same: `first`, then the next number, `rounds` times. */
struct rewrite {
    uint64_t offset, bytes, first, rounds;
};

static char program[4096];
static size_t segment_bytes = 256 << 10;
static const char *interface = "lo"; /* of this process's node */
static const char *secret = "of-every-process-0123456789abcdef"; /* likewise; NULL: none */

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
    struct kvf_secret *secret;
    struct kvf_fabric *fabric;
    unsigned ups, downs;
    unsigned replying; /* replies to ECHO and BRING whose end was not told yet */
    uint64_t down_ns, broken; /* when the last one went down; payloads of SINK that were not whole */
    bool forgets;             /* a peer that is down is removed, so that it may come again as a stranger */
    uint8_t address[KVF_ADDRESS_MAX];
    size_t address_bytes;
};

static inline uint64_t now_ns(void) { return kvf_now(kvf_env_real()); }

/* A node's region holds other words in every life of the node. */
static inline uint64_t seed_of(const char *name, uint64_t incarnation)
{
    return kvf_mix(incarnation, kvf_hash(name, strlen(name), SEED));
}

static inline void fill(uint64_t seed, void *region, size_t bytes)
{
    uint64_t *words = region;
    for (size_t i = 0; i < bytes / 8; i++)
        words[i] = kvf_mix(i * 8, seed);
}

/* `data` may lie anywhere: a payload does. */
static inline bool matches(uint64_t seed, uint64_t offset, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes / 8; i++) {
        uint64_t word;
        memcpy(&word, (const char *)data + i * 8, sizeof word);
        if (word != kvf_mix(offset + i * 8, seed))
            return false;
    }
    return true;
}

/* The bytes of a peer's region at `offset`. */
static inline bool right(const struct kvf_peer *peer, uint64_t offset, const void *data, size_t bytes)
{
    return matches(seed_of(kvf_peer_name(peer), kvf_peer_incarnation(peer)), offset, data, bytes);
}

static inline void on_up(void *arg, struct kvf_peer *peer) { ((struct node *)arg)->ups++; }

static inline void on_down(void *arg, struct kvf_peer *peer, enum kvf_status why)
{
    struct node *n = arg;
    n->downs++;
    n->down_ns = now_ns();
    if (n->forgets)
        kvf_fabric_peer_remove(n->fabric, peer);
}

struct echo {
    struct node *node;
    uint8_t bytes[];
};

static inline void echo_done(void *arg, enum kvf_status status)
{
    struct echo *echo = arg;
    echo->node->replying--;
    free(echo);
}

static inline void rewrite_region(struct node *n, const struct rewrite *what)
{
    uint64_t *words = malloc(what->bytes);
    assert_non_null(words);
    for (uint64_t round = 0; round < what->rounds; round++) {
        for (uint64_t i = 0; i < what->bytes / sizeof *words; i++)
            words[i] = what->first + round;
        kvf_fabric_region_write(n->fabric, what->offset, words, what->bytes);
    }
    free(words);
}

static inline void on_message(void *arg, struct kvf_peer *peer, const struct kvf_message *m)
{
    struct node *n = arg;
    if (m->type == REWRITE) {
        struct rewrite what;
        memcpy(&what, m->payload, sizeof what);
        rewrite_region(n, &what);
        kvf_fabric_reply(peer, m->request, KVF_OK, NULL, 0, NULL, NULL);
        return;
    }
    if (m->type == SINK)
        n->broken += !matches(SEED, 0, m->payload, m->bytes);
    if (m->type == SINK || m->type == COUNT) {
        struct iovec count = {.iov_base = &n->broken, .iov_len = sizeof n->broken};
        kvf_fabric_reply(peer, m->request, KVF_OK, &count, m->type == COUNT, NULL, NULL);
        return;
    }
    uint32_t bytes = (uint32_t)m->bytes;
    if (m->type == BRING)
        memcpy(&bytes, m->payload, sizeof bytes);
    struct echo *echo = calloc(1, sizeof *echo + bytes);
    assert_non_null(echo);
    echo->node = n;
    struct iovec part = {.iov_base = echo->bytes, .iov_len = bytes};
    if (m->type != BRING && bytes)
        memcpy(echo->bytes, m->payload, bytes);
    n->replying++;
    if (kvf_fabric_reply(peer, m->request, KVF_OK, &part, 1, echo_done, echo) != KVF_OK)
        echo_done(echo, KVF_CANCELLED);
}

static inline void on_stranger(void *arg, const char *name, uint64_t incarnation, const void *address, size_t bytes)
{
    struct node *n = arg;
    struct kvf_peer *peer;
    kvf_fabric_peer_add(n->fabric, name, incarnation, address, bytes, &peer);
}

/* Memory as a node's: a sealed memfd. */
static inline int region_memory(uint8_t **base)
{
    int fd = memfd_create("kvf-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0 && ftruncate(fd, REGION_BYTES) == 0);
    void *memory = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(memory != MAP_FAILED);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    *base = memory;
    return fd;
}

static inline enum kvf_status node_open(struct node *n, const char *name, uint64_t incarnation, const char *kind)
{
    memset(n, 0, sizeof *n);
    kvf_log_init(&n->log, name, KVF_LOG_ERROR, stderr);
    const char *why;
    enum kvf_status st = secret ? kvf_secret_create(&n->secret) : KVF_OK;
    if (st == KVF_OK && secret)
        st = kvf_secret_set(n->secret, secret, strlen(secret), &why);
    struct kvf_transport_config tc = {.kind = kind, .interface = interface, .segment_bytes = segment_bytes, .peers_max = PEERS_MAX,
                                      .secret = secret, .log = &n->log};
    if (st == KVF_OK)
        st = kvf_transport_ucx_create(&tc, &n->transport);
    if (st != KVF_OK)
        return st;
    n->fd = region_memory(&n->base);
    st = n->transport->ops->region_create(n->transport, n->base, REGION_BYTES, &n->region);
    if (st == KVF_OK)
        st = n->transport->ops->region_add(n->transport, n->region, 0, REGION_BYTES, strcmp(kind, "rdma") ? n->fd : -1);
    if (st != KVF_OK)
        return st;
    fill(seed_of(name, incarnation), n->base, REGION_BYTES);
    n->address_bytes = sizeof n->address;
    st = n->transport->ops->address(n->transport, n->address, &n->address_bytes);
    if (st != KVF_OK)
        return st;
    struct kvf_fabric_config fc = {
        .env = kvf_env_real(),
        .transport = n->transport,
        .secret = n->secret,
        .log = &n->log,
        .counters = &n->counters,
        .incarnation = incarnation,
        .region = n->region,
        .region_base = n->base,
        .region_bytes = REGION_BYTES,
        .peers_max = PEERS_MAX,
        .requests_max = 256,
        .inflight_bytes = 8 << 20,
        .heartbeat_ns = 100 * KVF_MS,
        .dead_ns = 2 * KVF_SEC,
        .handler = {.arg = n, .peer_up = on_up, .peer_down = on_down, .message = on_message, .stranger = on_stranger},
    };
    snprintf(fc.name, sizeof fc.name, "%s", name);
    return kvf_fabric_create(&fc, &n->fabric);
}

static inline void node_close(struct node *n)
{
    if (n->fabric)
        kvf_fabric_destroy(n->fabric);
    if (n->region)
        n->transport->ops->region_destroy(n->transport, n->region);
    if (n->transport)
        n->transport->ops->destroy(n->transport);
    kvf_secret_destroy(n->secret);
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

/* Writes its address, then serves until its input ends. Its arguments are those of child_start. */
static inline int child_main(int argc, char **argv)
{
    static struct node n;
    uint64_t incarnation = (uint64_t)getpid();
    if (argc != 5)
        return 2;
    interface = argv[4];
    if (node_open(&n, argv[2], incarnation, argv[3]) != KVF_OK)
        return 3;
    n.forgets = true;
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

/* What a child does before it becomes the program: goes to where its network is. NULL: nothing. */
typedef void (*child_before_fn)(void);

static inline void child_start_at(struct child *c, const char *name, const char *kind, const char *its_interface,
                                  child_before_fn before)
{
    int to[2], from[2];
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    snprintf(c->name, sizeof c->name, "%s", name);
    c->pid = fork();
    assert_true(c->pid >= 0);
    if (c->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* one that is stopped does not see its input end */
        dup2(to[0], 0);
        dup2(from[1], 1);
        if (before)
            before();
        execl(program, program, "peer", name, kind, its_interface, (char *)NULL);
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

static inline void child_start(struct child *c, const char *name, const char *kind)
{
    child_start_at(c, name, kind, interface, NULL);
}

/* Ends it by closing its input and wants a clean exit (sanitizers speak by the exit status). */
static inline void child_stop(struct child *c)
{
    int status;
    close(c->to);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    close(c->from);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* As init would, it is reaped at once: UCX takes a zombie for alive. */
static inline void child_kill(struct child *c)
{
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
}

static inline void child_forget(struct child *c)
{
    close(c->to);
    close(c->from);
}

/* Files of UCX in /dev/shm that stay. Any program that uses it has one for an instant when it starts, so each that is seen
 * is given time to go. */
static inline unsigned shm_files(void)
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
static inline struct kvf_peer *meet(struct node *n, const char *name, uint64_t incarnation, const void *address, size_t bytes)
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
static inline void await_way(struct node *n, struct kvf_peer *peer, enum kvf_way way)
{
    for (uint64_t until = now_ns() + 10 * KVF_SEC; kvf_peer_way(peer) != way && now_ns() < until;)
        kvf_fabric_poll(n->fabric);
    assert_int_equal(kvf_peer_way(peer), way);
}

struct tally {
    unsigned ok, lost, other, total;
};

static inline void on_pulled(void *arg, enum kvf_status status)
{
    struct tally *t = arg;
    t->total++;
    t->ok += status == KVF_OK;
    t->lost += status == KVF_ERR_PEER_LOST;
    t->other += status != KVF_OK && status != KVF_ERR_PEER_LOST;
}

static inline void poll_until(struct node *n, const unsigned *counter, unsigned value, uint64_t limit_ns)
{
    uint64_t until = now_ns() + limit_ns;
    while (*counter < value && now_ns() < until)
        kvf_fabric_poll(n->fabric);
}

/* Pulls scattered ranges of `bytes` each and compares every word. */
static inline void pull_and_check(struct node *n, struct kvf_peer *peer, uint32_t bytes, unsigned count)
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
        assert_true(right(peer, ranges[i].offset, ranges[i].to, bytes));
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

static inline void on_answer(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct answer *a = arg;
    a->total++;
    a->status = status;
    a->equal = status == KVF_OK && bytes == a->bytes && (bytes == 0 || memcmp(payload, a->sent, bytes) == 0);
}

static inline void call_and_check(struct node *n, struct kvf_peer *peer, size_t bytes, unsigned n_parts)
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

static inline bool no_ucx(void)
{
    char about[256];
    kvf_transport_ucx_about(about, sizeof about);
    return strncmp(about, "UCX ", 4) != 0;
}

/* How main() of a test program begins: as a peer, or not at all without UCX. The exit code; -1: its tests are to be run. */
static inline int program_start(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "peer") == 0)
        return child_main(argc, argv);
    if (no_ucx()) {
        printf("skipped: UCX is not built in\n");
        return 77;
    }
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        return 1;
    signal(SIGPIPE, SIG_IGN);
    return -1;
}
#endif
