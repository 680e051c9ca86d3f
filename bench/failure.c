/* The processes of `kvf bench failure` (failure.h). */
#include "bench/failure.h"
#include "base/hash.h"
#include "fabric/fabric.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGION_BYTES (16ull << 20)
#define SEGMENT_BYTES (256u << 10)
#define SECRET "of-the-processes-of-kvf-bench-failure" /* the same for both, as in a cluster that has one */

struct read {
    struct reader *reader;
    uint64_t offset, start_ns, deadline_ns;
    bool busy;
    uint8_t *to;
};

struct process {
    struct kvf_failure_board *board;
    struct kvf_log log;
    struct kvf_secret *secret;
    struct kvf_transport *transport;
    struct kvf_region *region;
    struct kvf_fabric *fabric;
};

struct reader {
    struct process process;
    struct kvf_peer *peer; /* NULL: none now */
    uint64_t incarnation, retry_ns, next;
    struct read reads[KVF_FAILURE_READS];
};

static uint64_t now_ns(void) { return kvf_now(kvf_env_real()); }

static _Noreturn void give_up(struct kvf_failure_board *board)
{
    atomic_store(&board->failed, 1);
    _exit(1);
}

/* A word of the region of one life of the peer: a peer that starts anew has other bytes. */
static uint64_t word_at(uint64_t incarnation, uint64_t offset) { return kvf_mix(offset, incarnation); }

/* Sleeps as a node does when nothing moved: until the network has something, or a timer. */
static void idle(struct process *p, uint64_t until_ns)
{
    uint64_t timer = kvf_fabric_next_timer(p->fabric), now = now_ns();
    timer = until_ns < timer ? until_ns : timer;
    if (timer <= now || !p->transport->ops->arm(p->transport))
        return;
    struct pollfd fd = {.fd = p->transport->ops->event_fd(p->transport), .events = POLLIN};
    uint64_t wait = timer - now < 100 * KVF_MS ? timer - now : 100 * KVF_MS;
    ppoll(&fd, 1, &(struct timespec){.tv_nsec = (long)wait}, NULL);
}

static bool process_open(struct process *p, const char *name, const char *kind, const char *interface, uint64_t incarnation,
                         void *base, struct kvf_fabric_handler handler)
{
    const char *why = NULL;
    struct kvf_transport_config tc = {.kind = kind, .interface = interface, .segment_bytes = SEGMENT_BYTES, .peers_max = 4,
                                      .secret = true, .log = &p->log};
    kvf_log_init(&p->log, name, KVF_LOG_ERROR, stderr);
    if (kvf_secret_create(&p->secret) != KVF_OK || kvf_secret_set(p->secret, SECRET, strlen(SECRET), &why) != KVF_OK)
        return false;
    if (kvf_transport_ucx_create(&tc, &p->transport) != KVF_OK)
        return false;
    if (base && p->transport->ops->region_create(p->transport, base, REGION_BYTES, &p->region) != KVF_OK)
        return false;
    struct kvf_fabric_config fc = {
        .env = kvf_env_real(),
        .transport = p->transport,
        .log = &p->log,
        .secret = p->secret,
        .incarnation = incarnation,
        .region = p->region,
        .region_base = base,
        .region_bytes = base ? REGION_BYTES : 0,
        .peers_max = 4,
        .requests_max = 2 * KVF_FAILURE_READS,
        .inflight_bytes = 16 << 20,
        .heartbeat_ns = KVF_FAILURE_HEARTBEAT_NS,
        .dead_ns = KVF_FAILURE_DEAD_NS,
        .handler = handler,
    };
    snprintf(fc.name, sizeof fc.name, "%s", name);
    return kvf_fabric_create(&fc, &p->fabric) == KVF_OK;
}

/* ------------------------------------------------------------------------------------------------ the peer */

static void peer_stranger(void *arg, const char *name, uint64_t incarnation, const void *address, size_t bytes)
{
    struct process *p = arg;
    struct kvf_peer *peer;
    kvf_fabric_peer_add(p->fabric, name, incarnation, address, bytes, &peer);
}

static void peer_down(void *arg, struct kvf_peer *peer, enum kvf_status why)
{
    struct process *p = arg;
    kvf_fabric_peer_remove(p->fabric, peer);
}

_Noreturn void kvf_failure_peer(struct kvf_failure_board *board, const char *kind, const char *interface, uint64_t incarnation)
{
    struct process p = {.board = board};
    struct kvf_fabric_handler handler = {.arg = &p, .peer_down = peer_down, .stranger = peer_stranger};
    int fd = memfd_create("kvf-failure", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    uint64_t *words = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, REGION_BYTES) == 0)
        words = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (words == MAP_FAILED || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        give_up(board);
    for (uint64_t i = 0; i < REGION_BYTES / 8; i++)
        words[i] = word_at(incarnation, i * 8);
    if (!process_open(&p, "peer", kind, interface, incarnation, words, handler) ||
        p.transport->ops->region_add(p.transport, p.region, 0, REGION_BYTES, fd) != KVF_OK)
        give_up(board);
    kvf_fabric_region_grown(p.fabric);
    board->address_bytes = sizeof board->address;
    if (p.transport->ops->address(p.transport, board->address, &board->address_bytes) != KVF_OK)
        give_up(board);
    atomic_store(&board->incarnation, incarnation);
    for (;;)
        if (kvf_fabric_poll(p.fabric) == 0)
            idle(&p, UINT64_MAX);
}

/* ------------------------------------------------------------------------------------------------ the reader */

static bool right(const struct reader *r, const struct read *read)
{
    for (uint64_t i = 0; i < KVF_FAILURE_READ_BYTES; i += 8) {
        uint64_t word;
        memcpy(&word, read->to + i, sizeof word);
        if (word != word_at(r->incarnation, read->offset + i))
            return false;
    }
    return true;
}

static void read_ended(void *arg, enum kvf_status status)
{
    struct read *read = arg;
    struct kvf_failure_board *board = read->reader->process.board;
    uint64_t now = now_ns(), fault = atomic_load(&board->fault_ns), repair = atomic_load(&board->repair_ns), none = 0;
    uint64_t past = now > read->deadline_ns ? now - read->deadline_ns : 0;
    read->busy = false;
    if (status == KVF_OK && !right(read->reader, read))
        atomic_fetch_add(&board->wrong, 1);
    if (status == KVF_OK) {
        atomic_fetch_add(&board->good, 1);
        if (repair && read->start_ns >= repair)
            atomic_compare_exchange_strong(&board->recovered_ns, &none, now);
    } else if (fault) {
        atomic_fetch_add(&board->lost, 1);
        atomic_compare_exchange_strong(&board->refused_ns, &none, now);
    }
    if (fault && past > KVF_FAILURE_LATE_NS)
        atomic_fetch_add(&board->late, 1);
    if (fault && past > atomic_load(&board->latest_ns))
        atomic_store(&board->latest_ns, past);
}

static void reader_down(void *arg, struct kvf_peer *peer, enum kvf_status why)
{
    struct reader *r = arg;
    uint64_t none = 0, now = now_ns();
    if (atomic_load(&r->process.board->fault_ns))
        atomic_compare_exchange_strong(&r->process.board->down_ns, &none, now);
    r->peer = NULL;
    r->retry_ns = now + KVF_FAILURE_RECONNECT_NS;
    kvf_fabric_peer_remove(r->process.fabric, peer);
}

/* As a node does: a new incarnation at once, the same one again a second after it went down. */
static void reader_meet(struct reader *r)
{
    struct kvf_failure_board *board = r->process.board;
    uint64_t incarnation = atomic_load(&board->incarnation);
    if (incarnation == 0 || (incarnation == r->incarnation && (r->peer || now_ns() < r->retry_ns)))
        return;
    r->incarnation = incarnation;
    r->retry_ns = now_ns() + KVF_FAILURE_RECONNECT_NS;
    if (kvf_fabric_peer_add(r->process.fabric, "peer", incarnation, board->address, board->address_bytes, &r->peer) != KVF_OK)
        r->peer = NULL;
}

static void reader_ask(struct reader *r)
{
    for (unsigned i = 0; i < KVF_FAILURE_READS && r->peer && kvf_peer_is_up(r->peer); i++) {
        struct read *read = &r->reads[i];
        if (read->busy)
            continue;
        read->offset = r->next++ * 7919 % (REGION_BYTES / KVF_FAILURE_READ_BYTES) * KVF_FAILURE_READ_BYTES;
        read->start_ns = now_ns();
        read->deadline_ns = read->start_ns + KVF_FAILURE_DEADLINE_NS;
        struct kvf_pull_range range = {.offset = read->offset, .bytes = KVF_FAILURE_READ_BYTES, .to = read->to};
        read->busy = kvf_fabric_pull(r->peer, &range, 1, read->deadline_ns, read_ended, read) == KVF_OK;
    }
}

/* Comes back only when it cannot begin. */
static void reader_run(struct reader *r, const char *kind, const char *interface)
{
    struct kvf_fabric_handler handler = {.arg = r, .peer_down = reader_down};
    for (unsigned i = 0; i < KVF_FAILURE_READS; i++) {
        r->reads[i].reader = r;
        r->reads[i].to = malloc(KVF_FAILURE_READ_BYTES);
        if (!r->reads[i].to)
            return;
    }
    if (!process_open(&r->process, "reader", kind, interface, (uint64_t)getpid(), NULL, handler))
        return;
    for (;;) {
        reader_meet(r);
        reader_ask(r);
        if (kvf_fabric_poll(r->process.fabric) == 0)
            idle(&r->process, now_ns() + KVF_MS);
    }
}

_Noreturn void kvf_failure_reader(struct kvf_failure_board *board, const char *kind, const char *interface)
{
    struct reader r = {.process = {.board = board}};
    reader_run(&r, kind, interface);
    give_up(board);
}
