/* Regions that grow: peers learn of pieces whatever is lost on the way, read what they do not know yet by asking, and never read
 * what is not ready. */
#include "tests/fabric/world.h"

#define PIECES 8u

static struct world *world_of(unsigned ready)
{
    struct world *w = world_new();
    w->pieces = ready;
    w->piece_bytes = REGION / PIECES;
    return w;
}

static bool pull_is(struct world *w, struct node *from, struct kvf_peer *peer, uint64_t offset, uint32_t bytes,
                    enum kvf_status want)
{
    uint8_t *to = malloc(bytes);
    struct result r = {.count = 0};
    assert_int_equal(pull1(peer, offset, bytes, to, UINT64_MAX, &r), KVF_OK);
    for (unsigned i = 0; i < 200 && r.count == 0; i++)
        run_for(w, KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, want);
    bool same = want != KVF_OK || memcmp(to, from->base + offset, bytes) == 0;
    free(to);
    return same;
}

static void late_pieces_are_told_and_read(void **state)
{
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++) {
        struct world *w = world_of(1);
        struct node *a = add_node(w, "a", 1, way), *b = add_node(w, "b", 2, way);
        struct kvf_peer *peer = meet(a, b);
        uint64_t piece = w->piece_bytes;
        settle(w);
        assert_int_equal(kvf_peer_way(peer), way);
        assert_true(pull_is(w, b, peer, 0, (uint32_t)piece, KVF_OK));
        /* Not ready: refused, by the one who is asked. */
        assert_true(pull_is(w, b, peer, piece, 4096, KVF_ERR_PEER_REFUSED));
        assert_true(pull_is(w, b, peer, piece - 100, 200, KVF_ERR_PEER_REFUSED));
        for (unsigned i = 1; i < PIECES; i++) {
            add_piece(b, i);
            /* Known or not yet: its bytes come. */
            assert_true(pull_is(w, b, peer, i * piece + 100, 5000, KVF_OK));
            settle(w);
            assert_true(pull_is(w, b, peer, i * piece, (uint32_t)piece, KVF_OK));
        }
        /* Over the border of two pieces, and the whole in one. */
        assert_true(pull_is(w, b, peer, 3 * piece - 2000, 4000, KVF_OK));
        assert_true(pull_is(w, b, peer, 0, REGION, KVF_OK));
        assert_int_equal(a->downs + b->downs, 0);
        world_free(w);
    }
}

/* With frames lost, doubled and refused at each step, in the end every piece is known: no PULL goes out any more. */
static void pieces_are_known_in_the_end_whatever_is_lost(void **state)
{
    for (unsigned trouble = 0; trouble < 48; trouble++) {
        struct world *w = world_of(2);
        struct node *a = add_node(w, "a", 1, KVF_WAY_MAPPED), *b = add_node(w, "b", 2, KVF_WAY_MAPPED);
        struct kvf_peer *peer = meet(a, b);
        if (trouble % 2)
            settle(w);
        struct sim_path *out = sim_net_path(a->t, b->t), *back = sim_net_path(b->t, a->t);
        *(trouble % 3 == 0 ? &out->drop : trouble % 3 == 1 ? &out->busy : &out->duplicate) = trouble % 7;
        *(trouble % 4 == 0 ? &back->drop : trouble % 4 == 1 ? &back->busy : &back->duplicate) = trouble % 5;
        for (unsigned i = 2; i < PIECES; i++) {
            add_piece(b, i);
            if (trouble % 5 == 0)
                run_for(w, 3 * KVF_MS);
        }
        run_for(w, 30 * HEARTBEAT);
        assert_true(kvf_peer_is_up(peer));
        settle(w);
        uint64_t before = out->delivered;
        for (unsigned i = 0; i < PIECES; i++)
            assert_true(pull_is(w, b, peer, i * w->piece_bytes, 4096, KVF_OK));
        assert_true(out->delivered <= before + 1); /* a heartbeat, perhaps: nothing was asked for */
        world_free(w);
    }
}

static void a_peer_that_comes_again_is_told_again(void **state)
{
    struct world *w = world_of(PIECES);
    struct node *a = add_node(w, "a", 1, KVF_WAY_GET), *b = add_node(w, "b", 2, KVF_WAY_GET);
    struct kvf_peer *peer = meet(a, b);
    settle(w);
    assert_int_equal(kvf_peer_way(peer), KVF_WAY_GET);
    kvf_fabric_peer_remove(a->fabric, peer);
    peer = meet(a, b);
    assert_int_equal(kvf_peer_way(peer), KVF_WAY_ASK);
    run_for(w, 10 * HEARTBEAT);
    assert_int_equal(kvf_peer_way(peer), KVF_WAY_GET);
    assert_true(pull_is(w, b, peer, REGION - 4096, 4096, KVF_OK));
    world_free(w);
}

/* Whoever can tag a frame is the peer itself, and one who lies is not kept. */
static void lies_about_pieces_end_the_connection(void **state)
{
    const struct kvf_region_piece lie = {.offset = REGION - 4096, .bytes = 8192, .key_bytes = 8}; /* beyond the region */
    for (unsigned position = 0; position < KVF_REGION_PIECES_MAX; position += 21) {
        struct world *w = world_of(PIECES);
        struct node *a = add_node(w, "a", 1, KVF_WAY_MAPPED), *b = add_node(w, "b", 2, KVF_WAY_MAPPED);
        struct kvf_peer *peer = meet(a, b);
        settle(w);
        assert_true(pull_is(w, b, peer, 0, REGION, KVF_OK));
        uint8_t payload[KVF_WIRE_PIECE_BYTES_MAX];
        size_t bytes = sizeof payload;
        assert_int_equal(kvf_wire_piece_encode(&lie, payload, &bytes), KVF_OK);
        uint64_t refused = a->counters.messages_refused;
        struct kvf_wire_header h = {.type = KVF_WIRE_PIECE, .position = position, .payload_bytes = (uint32_t)bytes};
        say(b, a, h, payload, bytes);
        settle(w);
        assert_int_equal(a->counters.messages_refused, refused + 1);
        assert_false(kvf_peer_is_up(peer));
        assert_int_equal(a->down_why, KVF_ERR_PEER_PROTOCOL);
        world_free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(late_pieces_are_told_and_read),
        cmocka_unit_test(pieces_are_known_in_the_end_whatever_is_lost),
        cmocka_unit_test(a_peer_that_comes_again_is_told_again),
        cmocka_unit_test(lies_about_pieces_end_the_connection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
