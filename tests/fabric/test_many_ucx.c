/* 16 nodes pull from one over TCP. They and the one take turns in one thread, so that a loaded machine slows all of them alike, and
 * who gets how much is the server's doing. */
#include "tests/fabric/processes.h"

#define PULLERS 16u
#define PULL_BYTES (256u << 10)
#define PULLS 256u /* of each */
#define DEPTH 12u
#define INFLIGHT (2u << 20)

struct puller;

struct pull {
    struct puller *puller;
    uint8_t *to;
    uint64_t offset;
};

struct puller {
    struct node node;
    struct kvf_peer *server;
    struct pull pulls[DEPTH];
    unsigned asked, done, failed;
};

static struct node server;
static struct puller pullers[PULLERS];

static void puller_open(struct puller *p, unsigned i)
{
    struct node *n = &p->node;
    char name[16];
    const char *why;
    snprintf(name, sizeof name, "puller-%u", i);
    kvf_log_init(&n->log, name, KVF_LOG_ERROR, stderr);
    assert_int_equal(kvf_secret_create(&n->secret), KVF_OK);
    assert_int_equal(kvf_secret_set(n->secret, secret, strlen(secret), &why), KVF_OK);
    struct kvf_transport_config tc = {.kind = "tcp", .interface = interface, .segment_bytes = segment_bytes, .peers_max = 1,
                                      .secret = true, .log = &n->log};
    assert_int_equal(kvf_transport_ucx_create(&tc, &n->transport), KVF_OK);
    struct kvf_fabric_config fc = {.env = kvf_env_real(), .transport = n->transport, .secret = n->secret, .log = &n->log,
                                   .counters = &n->counters, .incarnation = 100 + i, .peers_max = 1, .requests_max = DEPTH,
                                   .inflight_bytes = INFLIGHT, .heartbeat_ns = 100 * KVF_MS, .dead_ns = 20 * KVF_SEC,
                                   .handler = {.arg = n, .peer_up = on_up, .peer_down = on_down}};
    snprintf(fc.name, sizeof fc.name, "%s", name);
    assert_int_equal(kvf_fabric_create(&fc, &n->fabric), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(n->fabric, "server", 1, server.address, server.address_bytes, &p->server), KVF_OK);
    for (unsigned k = 0; k < DEPTH; k++) {
        p->pulls[k] = (struct pull){.puller = p, .to = malloc(PULL_BYTES)};
        assert_non_null(p->pulls[k].to);
    }
}

static void pull_next(struct pull *pull);

static void on_pull(void *arg, enum kvf_status status)
{
    struct pull *pull = arg;
    bool good = status == KVF_OK && matches(seed_of("server", 1), pull->offset, pull->to, PULL_BYTES);
    pull->puller->failed += !good;
    pull->puller->done++;
    if (pull->puller->asked < PULLS)
        pull_next(pull);
}

static void pull_next(struct pull *pull)
{
    struct puller *p = pull->puller;
    pull->offset = kvf_mix(p->asked++, (uint64_t)(p - pullers)) % (REGION_BYTES / PULL_BYTES) * PULL_BYTES;
    struct kvf_pull_range range = {.offset = pull->offset, .bytes = PULL_BYTES, .to = pull->to};
    assert_int_equal(kvf_fabric_pull(p->server, &range, 1, now_ns() + 60 * KVF_SEC, on_pull, pull), KVF_OK);
}

/* One turn of everybody; whether all pullers have all. */
static bool turn(void)
{
    bool all = true;
    kvf_fabric_poll(server.fabric);
    for (unsigned i = 0; i < PULLERS; i++) {
        struct kvf_peer_about about;
        kvf_fabric_poll(pullers[i].node.fabric);
        kvf_peer_about(pullers[i].server, &about);
        assert_true(about.inflight_bytes <= INFLIGHT);
        all &= pullers[i].done == PULLS;
    }
    return all;
}

/* What the server has sent to each, the least and the most of it. */
static void served(uint64_t *least, uint64_t *most)
{
    *least = UINT64_MAX;
    *most = 0;
    for (unsigned i = 0; i < PULLERS; i++) {
        struct kvf_peer_about about;
        char name[16];
        snprintf(name, sizeof name, "puller-%u", i);
        kvf_peer_about(kvf_fabric_peer_find(server.fabric, name), &about);
        *least = about.served_bytes < *least ? about.served_bytes : *least;
        *most = about.served_bytes > *most ? about.served_bytes : *most;
    }
}

static void sixteen_pull_from_one(void **state)
{
    uint64_t least = 0, most = 0, until = now_ns() + 100 * KVF_SEC;
    bool all = false;
    assert_int_equal(node_open(&server, "server", 1, "tcp"), KVF_OK);
    for (unsigned i = 0; i < PULLERS; i++)
        puller_open(&pullers[i], i);
    for (unsigned ups = 0; ups < PULLERS && now_ns() < until;) {
        turn();
        ups = 0;
        for (unsigned i = 0; i < PULLERS; i++)
            ups += kvf_peer_is_up(pullers[i].server);
    }
    for (unsigned i = 0; i < PULLERS; i++)
        for (unsigned k = 0; k < DEPTH; k++)
            pull_next(&pullers[i].pulls[k]);
    while (most < (uint64_t)PULLS * PULL_BYTES && now_ns() < until) {
        turn();
        served(&least, &most);
    }
    print_message("when the first of %u was sent its last byte, the last was sent %.2f of that\n", PULLERS,
                  (double)least / (double)most);
    assert_true(least * 10 >= most * 8);
    while (!all && now_ns() < until)
        all = turn();
    assert_true(all);
    served(&least, &most);
    assert_int_equal(least, (uint64_t)PULLS * PULL_BYTES);
    assert_int_equal(most, least);
    for (unsigned i = 0; i < PULLERS; i++) {
        assert_int_equal(pullers[i].failed + pullers[i].node.downs, 0);
        node_close(&pullers[i].node);
        for (unsigned k = 0; k < DEPTH; k++)
            free(pullers[i].pulls[k].to);
    }
    node_close(&server);
}

int main(int argc, char **argv)
{
    int ended = program_start(argc, argv);
    if (ended >= 0)
        return ended;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sixteen_pull_from_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
