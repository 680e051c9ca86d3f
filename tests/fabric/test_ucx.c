/* The fabric over real UCX: two threads of one process, and processes. What befalls peers is in test_faults_*.c. */
#include "tests/fabric/processes.h"

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

/* Both nodes have one address: their connection is not paced, whatever the system's congestion control does. */
static void assert_not_paced(const struct kvf_peer *peer)
{
    struct kvf_peer_about about;
    kvf_peer_about(peer, &about);
    assert_int_equal(strncmp(about.congestion, "reno", 4), 0);
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
    assert_not_paced(peer);
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

/* A poll ends though more has come already: what its bytes complete is told, and asked for anew, while the rest is on its way. */
static void one_poll_does_not_wait_for_the_last_byte(void **state)
{
    enum { PULLS = 64, BYTES = 8 << 10 };
    static struct server s;
    static struct node n;
    static uint8_t to[PULLS * BYTES];
    struct tally t = {0};
    pthread_t thread;
    memset(&s, 0, sizeof s);
    segment_bytes = BYTES;
    assert_int_equal(node_open(&s.node, "server", 11, "tcp"), KVF_OK);
    assert_int_equal(node_open(&n, "client", 12, "tcp"), KVF_OK);
    segment_bytes = 256 << 10;
    assert_int_equal(pthread_create(&thread, NULL, serve, &s), 0);
    struct kvf_peer *peer = meet(&n, "server", 11, s.node.address, s.node.address_bytes);
    await_way(&n, peer, KVF_WAY_ASK);
    atomic_store(&s.stop, true);
    pthread_join(thread, NULL);
    for (unsigned i = 0; i < PULLS; i++) {
        const struct kvf_pull_range range = {.offset = i * BYTES, .bytes = BYTES, .to = to + i * BYTES};
        assert_int_equal(kvf_fabric_pull(peer, &range, 1, now_ns() + 10 * KVF_SEC, on_pulled, &t), KVF_OK);
    }
    kvf_fabric_poll(n.fabric); /* all of them are asked for */
    for (unsigned i = 0; i < 1000; i++)
        kvf_fabric_poll(s.node.fabric);
    unsigned most = 0; /* that one poll told of */
    for (unsigned i = 0; i < 1000; i++) {
        unsigned before = t.total;
        kvf_fabric_poll(n.fabric);
        most = t.total - before > most ? t.total - before : most;
    }
    assert_true(most > 0 && most <= t.total / 2); /* these came without the server's doing */
    for (uint64_t end = now_ns() + 10 * KVF_SEC; t.total < PULLS && now_ns() < end;) {
        kvf_fabric_poll(s.node.fabric);
        kvf_fabric_poll(n.fabric);
    }
    assert_int_equal(t.ok, PULLS);
    assert_true(right(peer, 0, to, sizeof to));
    node_close(&n);
    node_close(&s.node);
}

static void processes_pull(const char *kind, enum kvf_way way)
{
    static struct node n;
    struct child c[2];
    bool slow = false;
    child_start(&c[0], "one", kind);
    child_start(&c[1], "two", kind);
    assert_int_equal(node_open(&n, "three", 12, kind), KVF_OK);
    for (unsigned i = 0; i < 2; i++) {
        uint64_t start = now_ns();
        struct kvf_peer *peer = meet(&n, c[i].name, c[i].incarnation, c[i].address, c[i].address_bytes);
        slow = slow || now_ns() - start > 50 * KVF_MS;
        await_way(&n, peer, way);
        pull_and_check(&n, peer, 4 << 10, 256);
        pull_and_check(&n, peer, 64 << 10, 64);
        pull_and_check(&n, peer, 1 << 20, 16);
        call_and_check(&n, peer, 0, 0);
        call_and_check(&n, peer, 64 << 10, 16);
        call_and_check(&n, peer, kvf_fabric_payload_max(n.fabric), 1);
    }
    assert_int_equal(n.ups, 2);
    /* Over RDMA the first words wait for the connection and are said again meanwhile, as on a machine that is too busy to answer
     * within a heartbeat: what comes twice is refused. */
    if (way != KVF_WAY_GET && !slow)
        assert_int_equal(kvf_counted(&n.counters.messages_refused), 0);
    node_close(&n);
    child_stop(&c[0]);
    child_stop(&c[1]);
    assert_int_equal(shm_files(), 0);
}

static void processes_pull_over_tcp(void **state) { processes_pull("tcp", KVF_WAY_ASK); }
static void processes_pull_over_shared_memory(void **state) { processes_pull("shm", KVF_WAY_MAPPED); }

/* A reactor that sleeps is woken by a frame. */
static void an_armed_transport_wakes(const char *kind)
{
    static struct node n;
    struct child c;
    child_start(&c, "ticker", kind);
    assert_int_equal(node_open(&n, "reactor", 12, kind), KVF_OK);
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


static void an_armed_transport_wakes_by_its_event_fd(void **state)
{
    an_armed_transport_wakes("tcp");
    an_armed_transport_wakes("shm");
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

/* A node that closes while a peer that hangs does not take its replies: whoever waits for the end of one is told before the fabric
 * is gone, because it frees what its callback needs next. */
static void replies_that_are_not_taken_end_before_the_fabric(void **state)
{
    static struct node n, hung;
    static struct answer answers[100];
    uint32_t bytes = 200 << 10;
    struct iovec part = {.iov_base = &bytes, .iov_len = sizeof bytes};
    assert_int_equal(node_open(&n, "closer", 12, "tcp"), KVF_OK);
    assert_int_equal(node_open(&hung, "hung", 13, "tcp"), KVF_OK);
    struct kvf_peer *peer, *back;
    assert_int_equal(kvf_fabric_peer_add(hung.fabric, "closer", 12, n.address, n.address_bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(n.fabric, "hung", 13, hung.address, hung.address_bytes, &back), KVF_OK);
    for (uint64_t start = now_ns(); (!n.ups || !hung.ups) && now_ns() - start < 5 * KVF_SEC;) {
        kvf_fabric_poll(n.fabric);
        kvf_fabric_poll(hung.fabric);
    }
    assert_true(kvf_peer_is_up(peer) && kvf_peer_is_up(back));
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(kvf_fabric_call(peer, BRING, &part, 1, UINT64_MAX, on_answer, &answers[i]), KVF_OK);
    for (unsigned i = 0; i < 50; i++) /* the questions go out, and that is the last it does */
        kvf_fabric_poll(hung.fabric);
    for (uint64_t start = now_ns(); now_ns() - start < 200 * KVF_MS;)
        kvf_fabric_poll(n.fabric);
    assert_true(n.replying > 0);
    kvf_fabric_destroy(n.fabric);
    assert_int_equal(n.replying, 0);
    n.fabric = NULL;
    node_close(&n);
    node_close(&hung);
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

/* An address is another node's word: what it says of its length and family is tested before UCX sees it. */
static void what_is_no_address_is_refused(void **state)
{
    const uint8_t *const wrong[] = {
        (const uint8_t *)"\xc8 behind the end", (const uint8_t *)"\7\5port and ip", (const uint8_t *)"\x13\4a family of other size",
        (const uint8_t *)"\1\4"};
    const uint8_t rdma_only[] = {7, 4, 0x12, 0x34, 192, 0, 2, 1};
    static struct node n;
    struct kvf_link *link;
    assert_int_equal(node_open(&n, "judge", 12, "tcp"), KVF_OK);
    const struct kvf_transport_ops *ops = n.transport->ops;
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(ops->connect(n.transport, wrong[i], i == 2 ? 25 : 12, NULL, &link), KVF_ERR_INVALID);
    assert_int_equal(ops->connect(n.transport, wrong[0], 0, NULL, &link), KVF_ERR_INVALID);
    assert_int_equal(ops->connect(n.transport, rdma_only, sizeof rdma_only, NULL, &link), KVF_ERR_PEER_UNREACHABLE);
    node_close(&n);
}

static void processes_pull_over_rdma(void **state) { processes_pull("rdma", KVF_WAY_GET); }
static void an_absent_peer_goes_down_over_rdma(void **state) { an_absent_peer_goes_down("rdma"); }
static void an_armed_transport_wakes_over_rdma(void **state) { an_armed_transport_wakes("rdma"); }

/* Where there is a device for them, which KVF_TEST_RDMA names: over RDMA, from this host to itself. */
static int rdma_tests(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(processes_pull_over_rdma),
        cmocka_unit_test(an_absent_peer_goes_down_over_rdma),
        cmocka_unit_test(an_armed_transport_wakes_over_rdma),
    };
    interface = getenv("KVF_TEST_RDMA");
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    int ended = program_start(argc, argv);
    if (ended >= 0)
        return ended;
    if (getenv("KVF_TEST_RDMA"))
        return rdma_tests();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_settings_are_refused),
        cmocka_unit_test(what_is_no_region_or_piece_is_refused),
        cmocka_unit_test(what_is_no_address_is_refused),
        cmocka_unit_test(threads_pull_over_tcp),
        cmocka_unit_test(threads_pull_over_shared_memory),
        cmocka_unit_test(nodes_with_different_segments_understand_each_other),
        cmocka_unit_test(one_poll_does_not_wait_for_the_last_byte),
        cmocka_unit_test(processes_pull_over_tcp),
        cmocka_unit_test(processes_pull_over_shared_memory),
        cmocka_unit_test(an_armed_transport_wakes_by_its_event_fd),
        cmocka_unit_test(a_goodbye_takes_the_peer_down_at_once),
        cmocka_unit_test(replies_that_are_not_taken_end_before_the_fabric),
        cmocka_unit_test(an_absent_peer_goes_down_over_tcp),
        cmocka_unit_test(an_absent_peer_goes_down_over_shared_memory),
        cmocka_unit_test(the_environment_does_not_leak_in),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
