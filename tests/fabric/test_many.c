/* Many that pull from one: what is on its way is bounded by those who ask, and who is served is not a matter of luck. */
#include "tests/fabric/world.h"

#define PULLERS 16u
#define BLOCK (128u << 10)
#define PULLS 64u /* of each */
#define PLACES 8u  /* in the region and here, of the pulls in turn */

struct puller {
    struct node *node;
    struct kvf_peer *server;
    uint8_t *memory;
    struct result result;
};

static struct world *world;
static struct node *server;
static struct puller pullers[PULLERS];

static void many_open(unsigned sends_max, uint64_t inflight)
{
    world = world_new();
    world->peers_max = PULLERS;
    world->requests_max = PULLS;
    world->inflight = inflight;
    server = add_node(world, "server", 1, KVF_WAY_ASK);
    sim_net_limits(server->t, 64 << 10, sends_max);
    for (unsigned i = 0; i < PULLERS; i++) {
        char name[16];
        snprintf(name, sizeof name, "p%u", i);
        pullers[i] = (struct puller){.node = add_node(world, name, 2 + i, KVF_WAY_ASK), .memory = malloc(PLACES * BLOCK)};
        pullers[i].server = meet(pullers[i].node, server);
    }
    run_for(world, KVF_SEC);
    for (unsigned i = 0; i < PULLERS; i++)
        assert_true(kvf_peer_is_up(pullers[i].server));
}

static void many_close(void)
{
    for (unsigned i = 0; i < PULLERS; i++)
        free(pullers[i].memory);
    world_free(world);
}

static void ask_all(unsigned i, uint32_t bytes)
{
    for (unsigned k = 0; k < PULLS; k++) {
        uint64_t offset = (k % PLACES * 7 + i) * 4096 % (REGION - bytes);
        uint8_t *to = pullers[i].memory + k % PLACES * bytes;
        assert_int_equal(pull1(pullers[i].server, offset, bytes, to, UINT64_MAX, &pullers[i].result), KVF_OK);
    }
}

static uint64_t served(unsigned i)
{
    struct kvf_peer_about about;
    kvf_peer_about(kvf_fabric_peer_find(server->fabric, pullers[i].node->name), &about);
    return about.served_bytes;
}

/* One turn of everybody. The most that any puller had asked for and did not have yet. */
static uint64_t step(void)
{
    uint64_t most = 0;
    sim_net_run(world->net);
    for (unsigned i = 0; i < world->n; i++)
        kvf_fabric_poll(world->node[i].fabric);
    for (unsigned i = 0; i < PULLERS; i++) {
        struct kvf_peer_about about;
        kvf_peer_about(pullers[i].server, &about);
        most = about.inflight_bytes > most ? about.inflight_bytes : most;
    }
    return most;
}

/* Until the first puller has been sent all its bytes: then the least and the most that any was. */
static void until_first(uint32_t bytes, uint64_t inflight, uint64_t *least, uint64_t *most)
{
    *most = 0;
    for (unsigned turns = 0; *most < (uint64_t)PULLS * bytes; turns++) {
        assert_true(turns < 100000);
        assert_true(step() <= inflight);
        *least = UINT64_MAX;
        for (unsigned i = 0; i < PULLERS; i++) {
            uint64_t n = served(i);
            *least = n < *least ? n : *least;
            *most = n > *most ? n : *most;
        }
    }
}

static void all_get_what_they_asked_for(uint32_t bytes, uint64_t inflight)
{
    for (unsigned turns = 0; turns < 100000; turns++) {
        bool all = true;
        assert_true(step() <= inflight);
        for (unsigned i = 0; i < PULLERS; i++)
            all &= pullers[i].result.count == PULLS;
        if (all)
            break;
    }
    for (unsigned i = 0; i < PULLERS; i++) {
        assert_int_equal(pullers[i].result.oks, PULLS);
        assert_int_equal(served(i), (uint64_t)PULLS * bytes);
        for (unsigned k = 0; k < PLACES; k++)
            assert_memory_equal(pullers[i].memory + k * bytes, server->base + (k * 7 + i) * 4096 % (REGION - bytes), bytes);
    }
}

/* The server's transport takes fewer frames than one for each: the peers take turns. */
static void a_transport_without_room_for_all_serves_all(void **state)
{
    static const unsigned sends[] = {3, 24, 64};
    const uint64_t inflight = 256 << 10;
    for (unsigned i = 0; i < sizeof sends / sizeof *sends; i++) {
        uint64_t least, most;
        many_open(sends[i], inflight);
        for (unsigned k = 0; k < PULLERS; k++)
            ask_all(k, BLOCK);
        until_first(BLOCK, inflight, &least, &most);
        assert_true(least * 10 >= most * 8);
        all_get_what_they_asked_for(BLOCK, inflight);
        many_close();
    }
}

/* One who asks for as much as it may from the first, and others who come later, have the same of the server from then on. */
static void who_came_first_is_not_served_first(void **state)
{
    const uint64_t inflight = 1 << 20;
    many_open(24, inflight);
    ask_all(0, BLOCK);
    for (unsigned i = 0; i < 3; i++)
        step();
    uint64_t ahead = served(0), least = UINT64_MAX;
    assert_true(ahead > 0 && ahead < PULLS * BLOCK / 2);
    for (unsigned k = 1; k < PULLERS; k++)
        ask_all(k, BLOCK);
    while (served(0) < PULLS * BLOCK)
        step();
    for (unsigned k = 1; k < PULLERS; k++)
        least = served(k) < least ? served(k) : least;
    assert_true(least * 10 >= (PULLS * BLOCK - ahead) * 8);
    all_get_what_they_asked_for(BLOCK, inflight);
    many_close();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_transport_without_room_for_all_serves_all),
        cmocka_unit_test(who_came_first_is_not_served_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
