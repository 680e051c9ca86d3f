/* What the tests of faults share: requests whose memory is used for something else at the moment they end, and a measure of
 * what the machine took from us, so that a bound can be asserted on one that is loaded. */
#ifndef KVF_TESTS_FABRIC_FAULTS_H
#define KVF_TESTS_FABRIC_FAULTS_H

#include "tests/fabric/processes.h"
#include "tests/support/twin.h"

#define READS 64
#define READ_BYTES (1u << 20)
#define SINKS 64

/* ------------------------------------------------------------------------------------------------ requests */
struct request {
    struct trial *trial;
    const struct kvf_peer *peer;
    uint64_t offset, bytes, deadline_ns, ended_ns;
    uint8_t *memory;
    enum kvf_status status;
    bool read;
};

/* One node of ours, one peer, and what is asked of it. */
struct trial {
    struct node node;
    struct child child;
    struct kvf_peer *peer;
    struct twin twin;
    struct request requests[READS + SINKS];
    unsigned n, ended, ok, lost, late_status, other, wrong;
    uint64_t last_ns, taken_ns; /* taken from this thread while it asked and polled (twin.h) */
};

/* What the machine took from us: of this thread's time, or of the twin's. A bound holds when it holds without that. */
static inline uint64_t stolen_ns(struct trial *t)
{
    uint64_t twins = atomic_load(&t->twin.stolen_ns);
    return twins > t->taken_ns ? twins : t->taken_ns;
}

static inline void stolen_reset(struct trial *t)
{
    atomic_store(&t->twin.stolen_ns, 0);
    t->taken_ns = 0;
}

static inline uint8_t mark_of(const struct request *r) { return (uint8_t)(0x80 | (r - r->trial->requests)); }

/* The memory is ours again, and at once used for something else. */
static inline void request_ended(struct request *r, enum kvf_status status)
{
    struct trial *t = r->trial;
    assert_int_equal(r->ended_ns, 0);
    r->ended_ns = t->last_ns = now_ns();
    r->status = status;
    t->ended++;
    t->ok += status == KVF_OK;
    t->lost += status == KVF_ERR_PEER_LOST;
    t->late_status += status == KVF_ERR_DEADLINE;
    t->other += status != KVF_OK && status != KVF_ERR_PEER_LOST && status != KVF_ERR_DEADLINE;
    if (status == KVF_OK && r->read)
        t->wrong += !right(r->peer, r->offset, r->memory, r->bytes);
    memset(r->memory, mark_of(r), r->bytes);
}

static inline void read_ended(void *arg, enum kvf_status status) { request_ended(arg, status); }
static inline void sink_ended(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    request_ended(arg, status);
}

static inline struct request *request_new(struct trial *t, bool read, uint64_t bytes, uint64_t deadline_ns)
{
    struct request *r = &t->requests[t->n];
    *r = (struct request){.trial = t, .peer = t->peer, .read = read, .bytes = bytes, .deadline_ns = deadline_ns};
    r->offset = (uint64_t)t->n * 7919 % (REGION_BYTES / READ_BYTES) * READ_BYTES;
    r->memory = malloc(bytes);
    assert_non_null(r->memory);
    memset(r->memory, 0, bytes); /* the pages are there: a bound is not about the kernel's */
    t->n++;
    return r;
}

static inline void ask_reads(struct trial *t, unsigned n, uint64_t timeout_ns)
{
    for (unsigned i = 0; i < n; i++) {
        struct twin_watch turn = twin_watch_begin();
        struct request *r = request_new(t, true, READ_BYTES, now_ns() + timeout_ns);
        struct kvf_pull_range range = {.offset = r->offset, .bytes = READ_BYTES, .to = r->memory};
        assert_int_equal(kvf_fabric_pull(t->peer, &range, 1, r->deadline_ns, read_ended, r), KVF_OK);
        t->taken_ns += twin_watch_end(&turn);
    }
}

/* Large calls, whose memory the transport reads until it has sent it; as many as the link takes. */
static inline unsigned ask_sinks(struct trial *t, unsigned n, uint64_t timeout_ns)
{
    for (unsigned i = 0; i < n; i++) {
        struct twin_watch turn = twin_watch_begin();
        struct request *r = request_new(t, false, kvf_fabric_payload_max(t->node.fabric), now_ns() + timeout_ns);
        fill(SEED, r->memory, r->bytes);
        struct iovec part = {.iov_base = r->memory, .iov_len = r->bytes};
        enum kvf_status st = kvf_fabric_call(t->peer, SINK, &part, 1, r->deadline_ns, sink_ended, r);
        t->taken_ns += twin_watch_end(&turn);
        if (st == KVF_OK)
            continue;
        assert_int_equal(st, KVF_ERR_BUSY);
        free(r->memory);
        t->n--;
        return i;
    }
    return n;
}

static inline void trial_begin(struct trial *t, const char *name, const char *kind, const char *its_interface,
                               child_before_fn before)
{
    memset(t, 0, sizeof *t);
    child_start_at(&t->child, name, kind, its_interface, before);
    assert_int_equal(node_open(&t->node, "watcher", 12, kind), KVF_OK);
    t->peer = meet(&t->node, t->child.name, t->child.incarnation, t->child.address, t->child.address_bytes);
    await_way(&t->node, t->peer, strcmp(kind, "shm") == 0 ? KVF_WAY_MAPPED : KVF_WAY_ASK);
    twin_start(&t->twin);
}

/* The peer is used again, by whoever is called so now. A device that was down may take a moment before it lets us connect. */
static inline void meet_again(struct trial *t)
{
    const struct child *c = &t->child;
    struct kvf_peer *peer = kvf_fabric_peer_find(t->node.fabric, c->name);
    if (peer && !kvf_peer_is_up(peer))
        kvf_fabric_peer_remove(t->node.fabric, peer);
    for (uint64_t until = now_ns() + 10 * KVF_SEC; now_ns() < until;) {
        if (kvf_fabric_peer_add(t->node.fabric, c->name, c->incarnation, c->address, c->address_bytes, &peer) == KVF_OK)
            break;
        usleep(1000);
    }
    t->peer = meet(&t->node, c->name, c->incarnation, c->address, c->address_bytes);
}

static inline void poll_for(struct trial *t, uint64_t ns)
{
    for (uint64_t until = now_ns() + ns; now_ns() < until;)
        kvf_fabric_poll(t->node.fabric);
}

/* poll_until, with each turn of the loop watched. */
static inline void poll_watched(struct trial *t, const unsigned *counter, unsigned value, uint64_t limit_ns)
{
    for (uint64_t until = now_ns() + limit_ns; *counter < value && now_ns() < until;) {
        struct twin_watch turn = twin_watch_begin();
        kvf_fabric_poll(t->node.fabric);
        t->taken_ns += twin_watch_end(&turn);
    }
}

/* Every request ended when it had to, with a status that says so; at most `slack_ns` late without what the machine took. */
static inline void assert_ended_in_time(struct trial *t, uint64_t slack_ns)
{
    uint64_t latest = 0, stolen = stolen_ns(t);
    for (unsigned i = 0; i < t->n; i++) {
        const struct request *r = &t->requests[i];
        assert_true(r->ended_ns > 0);
        assert_true(r->status != KVF_ERR_DEADLINE || r->ended_ns >= r->deadline_ns);
        if (r->ended_ns > r->deadline_ns && r->ended_ns - r->deadline_ns > latest)
            latest = r->ended_ns - r->deadline_ns;
    }
    print_message("%u requests: %u ok, %u lost, %u at their deadline, the last %.2f ms past it (the machine took %.1f ms)\n", t->n,
                  t->ok, t->lost, t->late_status, (double)latest / 1e6, (double)stolen / 1e6);
    assert_int_equal(t->other, 0);
    assert_int_equal(t->wrong, 0);
    assert_true(latest <= slack_ns + stolen);
}

/* What the peer and the transport did since the requests ended touched none of their memory. */
static inline void assert_untouched(const struct trial *t)
{
    for (unsigned i = 0; i < t->n; i++) {
        const struct request *r = &t->requests[i];
        for (uint64_t b = 0; b < r->bytes; b++)
            if (r->memory[b] != mark_of(r))
                fail_msg("byte %llu of request %u was written after its end", (unsigned long long)b, i);
    }
}

static inline void on_count(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    assert_int_equal(status, KVF_OK);
    assert_int_equal(bytes, sizeof(uint64_t));
    memcpy(arg, payload, bytes);
}

/* Nothing that the transport read of our memory after the requests' ends reached the peer as a message. */
static inline void assert_peer_saw_whole_messages(struct trial *t)
{
    uint64_t broken = UINT64_MAX;
    assert_int_equal(kvf_fabric_call(t->peer, COUNT, NULL, 0, now_ns() + 10 * KVF_SEC, on_count, &broken), KVF_OK);
    for (uint64_t until = now_ns() + 10 * KVF_SEC; broken == UINT64_MAX && now_ns() < until;)
        kvf_fabric_poll(t->node.fabric);
    assert_int_equal(broken, 0);
}

static inline void trial_end(struct trial *t)
{
    twin_stop(&t->twin);
    node_close(&t->node);
    child_stop(&t->child);
    for (unsigned i = 0; i < t->n; i++)
        free(t->requests[i].memory);
}
#endif
