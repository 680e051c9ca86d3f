/* What the fabric keeps per peer and per request is pinned, and nothing of ours is allocated while data moves: this program counts
 * the calls of malloc that come from its own code (the library is linked into it), over thousands of pulls through real UCX. */
#include "tests/fabric/processes.h"
#include "tests/support/allocations.h"

struct end {
    unsigned done, bad;
};

static void on_end(void *arg, enum kvf_status status)
{
    struct end *e = arg;
    e->done++;
    e->bad += status != KVF_OK;
}

static void on_replied(void *arg, enum kvf_status status, const void *payload, size_t bytes) { on_end(arg, status); }

static void take(void *arg, unsigned range, uint32_t at, void *to, const void *from, bool foreign, uint32_t bytes)
{
    memcpy(to, from, bytes);
}

/* Pulls of one range and of many, with and without taking, and calls, all kinds in turn. */
static void move_data(struct node *a, struct node *b, struct kvf_peer *peer, unsigned rounds)
{
    static uint8_t to[16][BLOCK];
    static struct kvf_pull_range scattered[KVF_PULL_RANGES_MAX];
    static uint8_t chunks[KVF_PULL_RANGES_MAX][512];
    for (unsigned round = 0; round < rounds; round++) {
        struct end e = {0};
        for (unsigned i = 0; i < 16; i++) {
            struct kvf_pull_range range = {.offset = (uint64_t)(round * 16 + i) % 1000 * BLOCK, .bytes = BLOCK, .to = to[i]};
            kvf_take_fn by = i % 2 ? take : NULL;
            assert_int_equal(kvf_fabric_pull_take(peer, &range, 1, now_ns() + 10 * KVF_SEC, by, on_end, &e), KVF_OK);
        }
        for (unsigned i = 0; i < KVF_PULL_RANGES_MAX; i++)
            scattered[i] = (struct kvf_pull_range){.offset = (uint64_t)i * 4096, .bytes = 512, .to = chunks[i]};
        assert_int_equal(kvf_fabric_pull(peer, scattered, KVF_PULL_RANGES_MAX, now_ns() + 10 * KVF_SEC, on_end, &e), KVF_OK);
        struct iovec part = {.iov_base = &(uint64_t){0}, .iov_len = 8};
        assert_int_equal(kvf_fabric_call(peer, COUNT, &part, 1, now_ns() + 10 * KVF_SEC, on_replied, &e), KVF_OK);
        while (e.done < 18) {
            kvf_fabric_poll(a->fabric);
            kvf_fabric_poll(b->fabric);
        }
        assert_int_equal(e.bad, 0);
    }
    assert_true(right(peer, (uint64_t)((rounds - 1) * 16 + 15) % 1000 * BLOCK, to[15], BLOCK));
}

static void nothing_is_allocated(const char *kind, enum kvf_way way)
{
    static struct node a, b;
    struct kvf_peer *peer;
    struct kvf_peer_about about = {0};
    if (!COUNTED)
        skip();
    assert_int_equal(node_open(&a, "a", 11, kind), KVF_OK);
    assert_int_equal(node_open(&b, "b", 12, kind), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a.fabric, "b", 12, b.address, b.address_bytes, &peer), KVF_OK);
    for (uint64_t end = now_ns() + 10 * KVF_SEC; about.region_bytes[way] < REGION_BYTES && now_ns() < end;) {
        kvf_fabric_poll(a.fabric);
        kvf_fabric_poll(b.fabric);
        kvf_peer_about(peer, &about);
    }
    assert_int_equal(about.region_bytes[way], REGION_BYTES);
    assert_int_equal(about.way, way);
    assert_true(strlen(about.why) > 0);
    move_data(&a, &b, peer, 30);
    counting_begin();
    move_data(&a, &b, peer, 200);
    counting_end();
    print_message("%s: 3,400 pulls and 200 calls: %u allocations of ours, %u of UCX's\n", kind, atomic_load(&ours),
                  atomic_load(&others));
    assert_int_equal(atomic_load(&ours), 0);
    node_close(&a);
    node_close(&b);
}

static void nothing_is_allocated_while_pulling_over_tcp(void **state) { nothing_is_allocated("tcp", KVF_WAY_ASK); }
static void nothing_is_allocated_while_pulling_from_shared_memory(void **state) { nothing_is_allocated("shm", KVF_WAY_MAPPED); }

/* The counter counts. */
static void an_allocation_of_ours_is_seen(void **state)
{
    if (!COUNTED)
        skip();
    counting_begin();
    void *volatile one = malloc(100), *volatile two = calloc(1, 100); /* volatile: not for the compiler to leave out */
    counting_end();
    assert_int_equal(atomic_load(&ours), 2);
    free(one);
    free(two);
}

/* Who makes one of them larger says so here. */
static void state_per_peer_and_per_request_is_pinned(void **state)
{
    static const struct {
        const char *name;
        size_t most;
    } limits[] = {{"kvf_peer", 4096},        {"kvf_auth", 1536},    {"kvf_serve", 1152},       {"kvf_ask", 576},
                  {"kvf_request_slot", 448}, {"kvf_deadline", 16},  {"kvf_pull_part", 40},     {"kvf_tx", 4096 + 64}};
    size_t link_bytes, operation_bytes;
    unsigned n = 0;
    for (const struct kvf_fabric_size *s = kvf_fabric_sizes(); s->name; s++, n++) {
        assert_true(n < sizeof limits / sizeof *limits);
        assert_string_equal(s->name, limits[n].name);
        assert_in_range(s->bytes, 1, limits[n].most);
    }
    assert_int_equal(n, sizeof limits / sizeof *limits);
    kvf_transport_ucx_sizes(&link_bytes, &operation_bytes);
    assert_in_range(link_bytes, 0, 192);
    assert_in_range(operation_bytes, 0, 1280);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_allocation_of_ours_is_seen),
        cmocka_unit_test(nothing_is_allocated_while_pulling_over_tcp),
        cmocka_unit_test(nothing_is_allocated_while_pulling_from_shared_memory),
        cmocka_unit_test(state_per_peer_and_per_request_is_pinned),
    };
    struct node probe;
    if (node_open(&probe, "probe", 1, "tcp") == KVF_ERR_UNSUPPORTED)
        return 77;
    node_close(&probe);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
