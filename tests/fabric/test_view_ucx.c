/* Views over real shared memory: the peer is a process that overwrites, and is killed, while its memory is used in place. */
#include "tests/fabric/processes.h"

#define AT (8u << 20)

static struct kvf_peer *peer_open(struct node *n, struct child *c)
{
    assert_int_equal(node_open(n, "viewer", 12, "shm"), KVF_OK);
    child_start(c, "viewed", "shm");
    struct kvf_peer *peer = meet(n, c->name, c->incarnation, c->address, c->address_bytes);
    await_way(n, peer, KVF_WAY_MAPPED);
    return peer;
}

static void rewrite(struct kvf_peer *peer, uint64_t first, uint64_t rounds, struct answer *a)
{
    struct rewrite what = {.offset = AT, .bytes = BLOCK, .first = first, .rounds = rounds};
    struct iovec part = {.iov_base = &what, .iov_len = sizeof what};
    *a = (struct answer){.total = 0};
    assert_int_equal(kvf_fabric_call(peer, REWRITE, &part, 1, now_ns() + 30 * KVF_SEC, on_answer, a), KVF_OK);
}

/* Uses the view as a consumer does: every word is read, once. *whole: all were the same. */
static uint64_t use(const struct kvf_view *view, bool *whole)
{
    const uint64_t *words = (const uint64_t *)(const void *)view->data;
    uint64_t first = words[0], other = 0;
    for (size_t i = 0; i < view->bytes / sizeof *words; i++)
        other |= words[i] ^ first;
    *whole = other == 0;
    return first;
}

/* The peer writes other words over the block again and again, each time all the same ones. Now and then the reader meets a mixture:
 * never when the close says OK. */
static void a_mixture_of_two_writes_is_never_believed(void **state)
{
    static struct node n;
    struct child c;
    struct kvf_peer *peer = peer_open(&n, &c);
    unsigned accepted = 0, changed = 0, busy = 0, mixtures = 0;
    uint64_t until = now_ns() + 40 * KVF_SEC, first = 1;
    const uint64_t rounds = 4000;
    while ((mixtures == 0 || changed == 0) && now_ns() < until) {
        struct answer a;
        rewrite(peer, first, rounds, &a);
        while (a.total == 0) {
            kvf_fabric_poll(n.fabric);
            for (unsigned i = 0; i < 200; i++) {
                struct kvf_view view;
                bool whole;
                enum kvf_status st = kvf_fabric_view_open(peer, AT, BLOCK, &view);
                busy += st == KVF_ERR_BUSY;
                if (st != KVF_OK)
                    continue;
                uint64_t word = use(&view, &whole);
                st = kvf_fabric_view_close(n.fabric, &view);
                assert_true(st == KVF_OK || st == KVF_ERR_STALE);
                accepted += st == KVF_OK;
                changed += st == KVF_ERR_STALE;
                mixtures += !whole && word >= first;
                bool before = first == 1 && word == kvf_mix(AT, seed_of(c.name, c.incarnation)); /* its region's own words */
                assert_true(st != KVF_OK || whole || before);
            }
        }
        assert_int_equal(a.status, KVF_OK);
        first += rounds;
    }
    print_message("%u views believed, %u written meanwhile, %u being written; %u saw a mixture\n", accepted, changed, busy,
                  mixtures);
    assert_true(mixtures > 0 && changed > 0); /* else nothing was tested */
    struct kvf_view view;
    bool whole;
    assert_int_equal(kvf_fabric_view_open(peer, AT, BLOCK, &view), KVF_OK);
    assert_int_equal(use(&view, &whole), first - 1);
    assert_true(whole);
    assert_int_equal(kvf_fabric_view_close(n.fabric, &view), KVF_OK);
    child_stop(&c);
    node_close(&n);
}

/* kill -9 of the peer under an open view: no fault, the bytes are still those of its life; what it starts anew is another's. */
static void a_peer_is_killed_under_a_view(void **state)
{
    static struct node n;
    struct child c;
    struct kvf_peer *peer = peer_open(&n, &c);
    struct kvf_view views[2], none;
    uint64_t seed = seed_of(c.name, c.incarnation);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(kvf_fabric_view_open(peer, AT * i, 4 * BLOCK, &views[i]), KVF_OK);
    child_kill(&c);
    poll_until(&n, &n.downs, 1, 10 * KVF_SEC);
    assert_int_equal(n.downs, 1);
    assert_int_equal(kvf_fabric_view_open(peer, AT, BLOCK, &none), KVF_ERR_PEER_LOST);
    assert_true(matches(seed, 0, views[0].data, views[0].bytes));
    assert_int_equal(kvf_fabric_view_close(n.fabric, &views[0]), KVF_OK);
    kvf_fabric_peer_remove(n.fabric, peer);
    child_forget(&c);

    child_start(&c, "viewed", "shm");
    peer = meet(&n, c.name, c.incarnation, c.address, c.address_bytes);
    await_way(&n, peer, KVF_WAY_MAPPED);
    struct kvf_view fresh;
    assert_int_equal(kvf_fabric_view_open(peer, AT, 4 * BLOCK, &fresh), KVF_OK);
    assert_true(matches(seed_of(c.name, c.incarnation), AT, fresh.data, fresh.bytes));
    assert_true(matches(seed, AT, views[1].data, views[1].bytes));
    assert_int_equal(kvf_fabric_view_close(n.fabric, &fresh), KVF_OK);
    assert_int_equal(kvf_fabric_view_close(n.fabric, &views[1]), KVF_OK);
    child_stop(&c);
    node_close(&n);
}

/* ... while it overwrites what is viewed: whatever came of it, a view that says OK saw the old bytes or none of the new. */
static void a_peer_is_killed_while_it_writes_under_a_view(void **state)
{
    static struct node n;
    for (unsigned round = 0; round < 8; round++) {
        struct child c;
        struct kvf_peer *peer = peer_open(&n, &c);
        struct answer a;
        struct kvf_view view;
        uint64_t seed = seed_of(c.name, c.incarnation);
        assert_int_equal(kvf_fabric_view_open(peer, AT, BLOCK, &view), KVF_OK);
        rewrite(peer, 1, UINT64_MAX, &a);
        for (uint64_t end = now_ns() + round * KVF_MS; now_ns() < end;)
            kvf_fabric_poll(n.fabric);
        child_kill(&c);
        bool old = matches(seed, AT, view.data, view.bytes), same = kvf_view_same(&view);
        assert_true(old || !same);
        poll_until(&n, &n.downs, 1, 10 * KVF_SEC);
        assert_int_equal(a.total, 1);
        assert_int_equal(a.status, KVF_ERR_PEER_LOST);
        assert_int_equal(matches(seed, AT, view.data, view.bytes), old);
        assert_int_equal(kvf_fabric_view_close(n.fabric, &view), same ? KVF_OK : KVF_ERR_STALE);
        child_forget(&c);
        node_close(&n);
    }
}

int main(int argc, char **argv)
{
    int ended = program_start(argc, argv);
    if (ended >= 0)
        return ended;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mixture_of_two_writes_is_never_believed),
        cmocka_unit_test(a_peer_is_killed_under_a_view),
        cmocka_unit_test(a_peer_is_killed_while_it_writes_under_a_view),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
