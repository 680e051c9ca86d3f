/* A member process, which knows the secret, sends bad frames over real UCX: they are refused, counted, and logged in a line; what
 * it could tag and is no message of the protocol ends its link; and the other member notices nothing. The liar is this program
 * again. */
#include "fabric/internal.h"
#include "tests/fabric/processes.h"

#define FRAMES 50u

/* What the liar is told to send FRAMES of, a byte of its input each. */
enum lie {
    OTHER_VERSION = 'v', /* of the protocol, and no tag that would fit */
    GARBAGE = 'g',       /* random bytes as long as a header */
    OLD_LIFE = 'o',      /* to an earlier incarnation of ours, well tagged */
    UNTAGGED = 'u',      /* right but for the tag */
    NO_REQUEST = 'r',    /* the answer to nothing, well tagged */
    BAD_PULL = 'p',      /* a malformed pull, well tagged: it need not be said twice */
};

/* ------------------------------------------------------------------------------------------------ the liar */
static void nothing_sent(void *arg, enum kvf_status status) {}

static void send_lie(struct node *n, struct kvf_peer *peer, enum lie lie, uint64_t random)
{
    static uint8_t payload[16]; /* no ranges: malformed as a pull */
    uint8_t frame[KVF_WIRE_HEADER_BYTES];
    struct kvf_wire_header h = {.type = 40, .sender = peer->fabric->id, .sender_incarnation = peer->fabric->config.incarnation,
                                .receiver_incarnation = peer->incarnation - (lie == OLD_LIFE)};
    if (lie == NO_REQUEST)
        h = (struct kvf_wire_header){.type = KVF_WIRE_REPLY, .sender = h.sender, .sender_incarnation = h.sender_incarnation,
                                     .receiver_incarnation = h.receiver_incarnation, .request = 4711};
    if (lie == BAD_PULL) {
        h.type = KVF_WIRE_PULL;
        h.request = 1;
        h.payload_bytes = sizeof payload;
    }
    h.counter = ++peer->auth->sent;
    kvf_wire_header_encode(&h, frame);
    kvf_auth_seal(peer->auth, h.type, frame, payload, h.payload_bytes);
    if (lie == OTHER_VERSION)
        frame[4]++;
    if (lie == UNTAGGED)
        frame[sizeof frame - 1] ^= 1;
    for (unsigned i = 0; lie == GARBAGE && i < sizeof frame; i++)
        frame[i] = (uint8_t)kvf_mix(random, i);
    const struct iovec part = {.iov_base = payload, .iov_len = h.payload_bytes};
    while (n->transport->ops->send(n->transport, peer->link, frame, sizeof frame, &part, h.payload_bytes > 0, nothing_sent, NULL) ==
           KVF_ERR_BUSY)
        n->transport->ops->poll(n->transport);
}

/* Its arguments are those of a peer. */
static int liar_main(int argc, char **argv)
{
    static struct node n;
    uint64_t incarnation = (uint64_t)getpid();
    if (argc != 5 || node_open(&n, argv[2], incarnation, argv[3]) != KVF_OK)
        return 3;
    n.forgets = true;
    uint64_t head[2] = {incarnation, n.address_bytes};
    if (write(1, head, sizeof head) != sizeof head || write(1, n.address, n.address_bytes) != (ssize_t)n.address_bytes)
        return 4;
    for (uint8_t lie;;) {
        kvf_fabric_poll(n.fabric);
        struct pollfd in = {.fd = 0, .events = POLLIN};
        if (poll(&in, 1, 0) <= 0)
            continue;
        if (read(0, &lie, 1) != 1)
            break;
        struct kvf_peer *peer = kvf_fabric_peer_find(n.fabric, "watcher");
        for (unsigned i = 0; i < (lie == BAD_PULL ? 1 : FRAMES) && peer && kvf_peer_is_up(peer); i++)
            send_lie(&n, peer, (enum lie)lie, i);
    }
    node_close(&n);
    return 0;
}

static void liar_start(struct child *c)
{
    int to[2], from[2];
    uint64_t head[2];
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    snprintf(c->name, sizeof c->name, "liar");
    c->pid = fork();
    assert_true(c->pid >= 0);
    if (c->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(to[0], 0);
        dup2(from[1], 1);
        execl(program, program, "liar", "liar", "tcp", interface, (char *)NULL);
        _exit(5);
    }
    close(to[0]);
    close(from[1]);
    c->to = to[1];
    c->from = from[0];
    assert_int_equal(read(c->from, head, sizeof head), sizeof head);
    c->incarnation = head[0];
    c->address_bytes = head[1];
    assert_true(c->address_bytes <= sizeof c->address);
    assert_int_equal(read(c->from, c->address, c->address_bytes), c->address_bytes);
}

/* ------------------------------------------------------------------------------------------------ the test */
/* Lines of the log that say so of the liar. */
static unsigned lines_of(FILE *log, const char *what)
{
    char line[512];
    unsigned n = 0;
    fflush(log);
    rewind(log);
    while (fgets(line, sizeof line, log))
        n += strstr(line, "liar") && strstr(line, what);
    fseek(log, 0, SEEK_END);
    return n;
}

static void bad_frames_of_a_member_are_refused(void **state)
{
    static struct node n;
    struct child liar, other;
    FILE *log = tmpfile();
    assert_non_null(log);
    assert_int_equal(node_open(&n, "watcher", 12, "tcp"), KVF_OK);
    kvf_log_init(&n.log, "watcher", KVF_LOG_INFO, log);
    child_start(&other, "other", "tcp");
    liar_start(&liar);
    struct kvf_peer *good = meet(&n, other.name, other.incarnation, other.address, other.address_bytes);
    struct kvf_peer *bad = meet(&n, liar.name, liar.incarnation, liar.address, liar.address_bytes);
    call_and_check(&n, bad, 100, 1);
    const enum lie lies[] = {OTHER_VERSION, GARBAGE, OLD_LIFE, UNTAGGED, NO_REQUEST};
    for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint64_t refused = kvf_counted(&n.counters.messages_refused);
        const uint8_t lie = (uint8_t)lies[i];
        assert_int_equal(write(liar.to, &lie, 1), 1);
        for (uint64_t until = now_ns() + 20 * KVF_SEC;
             kvf_counted(&n.counters.messages_refused) < refused + FRAMES && now_ns() < until;)
            kvf_fabric_poll(n.fabric);
        assert_int_equal(kvf_counted(&n.counters.messages_refused), refused + FRAMES);
        assert_true(kvf_peer_is_up(bad)); /* who cannot tag hurts nobody, and a late answer is none's fault */
        call_and_check(&n, good, 64 << 10, 4);
    }
    assert_true(kvf_counted(&n.counters.messages_unproved) >= FRAMES);
    unsigned lines = lines_of(log, "refused"); /* one in 10 s, of 200 frames */
    assert_in_range(lines, 1, 3);
    const uint8_t last = BAD_PULL;
    assert_int_equal(write(liar.to, &last, 1), 1);
    poll_until(&n, &n.downs, 1, 20 * KVF_SEC);
    assert_int_equal(n.downs, 1);
    assert_false(kvf_peer_is_up(bad));
    assert_int_equal(lines_of(log, "is down"), 1);
    assert_true(kvf_peer_is_up(good));
    call_and_check(&n, good, 64 << 10, 4);
    pull_and_check(&n, good, 64 << 10, 16);
    child_stop(&liar);
    child_stop(&other);
    node_close(&n);
    fclose(log);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "liar") == 0)
        return liar_main(argc, argv);
    int ended = program_start(argc, argv);
    if (ended >= 0)
        return ended;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_frames_of_a_member_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
