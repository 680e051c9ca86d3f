/* Views: a peer's memory used in place. Whatever the peer does meanwhile, nothing that was made of other bytes is believed. */
#include "tests/fabric/world.h"

#define AT (KVF_MARKS_UNIT + 8192) /* of what is viewed here */
#define BYTES 4096u

static struct kvf_view open_view(struct kvf_peer *peer, uint64_t offset, size_t bytes)
{
    struct kvf_view view;
    assert_int_equal(kvf_fabric_view_open(peer, offset, bytes, &view), KVF_OK);
    assert_non_null(view.data);
    assert_int_equal(view.bytes, bytes);
    return view;
}

static void write_there(struct node *n, uint64_t offset, uint8_t value, size_t bytes)
{
    uint8_t data[BYTES];
    assert_true(bytes <= sizeof data);
    memset(data, value, bytes);
    kvf_fabric_region_write(n->fabric, offset, data, bytes);
    assert_int_equal(n->base[offset], value);
}

static void what_is_seen_is_what_lies_there(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_MAPPED, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct kvf_view view = open_view(peer, AT, BYTES);
    assert_memory_equal(view.data, b->base + AT, BYTES);
    assert_true(kvf_view_same(&view));
    assert_int_equal(kvf_fabric_view_close(a->fabric, &view), KVF_OK);
    assert_null(view.data);
    view = open_view(peer, 0, REGION);
    assert_memory_equal(view.data, b->base, REGION);
    assert_int_equal(kvf_fabric_view_close(a->fabric, &view), KVF_OK);
    world_free(w);
}

/* The slot is given to somebody else in the middle, who puts other bytes there; or, worse for whoever looks at bytes alone, the old
 * ones come back before he looks. */
static void a_slot_that_is_reused_is_noticed(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_MAPPED, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    uint8_t before[BYTES];
    for (unsigned back = 0; back < 2; back++) {
        struct kvf_view view = open_view(peer, AT, BYTES);
        memcpy(before, view.data, BYTES);
        write_there(b, AT, (uint8_t)(before[0] + 1), BYTES);
        assert_true(memcmp(view.data, before, BYTES) != 0); /* what a reader without the check would compute with */
        if (back) {
            kvf_fabric_region_write(b->fabric, AT, before, BYTES);
            assert_memory_equal(view.data, before, BYTES);
        }
        assert_false(kvf_view_same(&view));
        assert_int_equal(kvf_fabric_view_close(a->fabric, &view), KVF_ERR_STALE);
        struct kvf_view again = open_view(peer, AT, BYTES);
        assert_int_equal(kvf_fabric_view_close(a->fabric, &again), KVF_OK);
    }
    world_free(w);
}

/* Every byte of a range counts, its first and last one too, whatever counters it lies under. */
static void one_byte_at_any_place_is_noticed(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_MAPPED, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    const struct {
        uint64_t offset, bytes;
    } ranges[] = {{0, 1}, {KVF_MARKS_UNIT - 1, 2}, {KVF_MARKS_UNIT, KVF_MARKS_UNIT}, {100, 3 * KVF_MARKS_UNIT}, {0, REGION}};
    for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const uint64_t at[] = {ranges[i].offset, ranges[i].offset + ranges[i].bytes / 2, ranges[i].offset + ranges[i].bytes - 1};
        for (unsigned j = 0; j < 3; j++) {
            struct kvf_view view = open_view(peer, ranges[i].offset, ranges[i].bytes);
            write_there(b, at[j], 7, 1);
            assert_int_equal(kvf_fabric_view_close(a->fabric, &view), KVF_ERR_STALE);
        }
    }
    /* What lies under other counters does not disturb. */
    struct kvf_view view = open_view(peer, KVF_MARKS_UNIT, KVF_MARKS_UNIT);
    write_there(b, 2 * KVF_MARKS_UNIT, 7, BYTES);
    write_there(b, KVF_MARKS_UNIT - BYTES, 7, BYTES);
    assert_int_equal(kvf_fabric_view_close(a->fabric, &view), KVF_OK);
    world_free(w);
}

/* A writer that is in the middle of it, or died there. */
static void nothing_is_viewed_while_it_is_written(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_MAPPED, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct kvf_marks *marks = b->t->ops->region_marks(b->region);
    static uint32_t writers[KVF_MARKS_N];
    struct kvf_view view, before = open_view(peer, AT, BYTES);
    kvf_marks_begin(marks, writers, AT + BYTES - 1, 1);
    assert_false(kvf_view_same(&before));
    assert_int_equal(kvf_fabric_view_open(peer, AT, BYTES, &view), KVF_ERR_BUSY);
    kvf_marks_end(marks, writers, AT + BYTES - 1, 1);
    assert_int_equal(kvf_fabric_view_close(a->fabric, &before), KVF_ERR_STALE);
    before = open_view(peer, AT, BYTES);
    assert_int_equal(kvf_fabric_view_close(a->fabric, &before), KVF_OK);
    world_free(w);
}

/* What its owner has taken for itself, in the middle of which it lets others write: neighbours under one counter. */
static void what_its_owner_took_is_not_viewed_until_it_gives_it_back(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_MAPPED, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct kvf_view view, before = open_view(peer, AT, BYTES);
    uint8_t bytes[100] = {1};
    kvf_fabric_region_take(b->fabric, AT, BYTES);
    assert_int_equal(kvf_fabric_view_close(a->fabric, &before), KVF_ERR_STALE);
    kvf_fabric_region_take(b->fabric, AT + BYTES, 1);
    kvf_fabric_region_write(b->fabric, AT + BYTES + 1, bytes, sizeof bytes);
    kvf_fabric_region_give(b->fabric, AT + BYTES, 1);
    assert_int_equal(kvf_fabric_view_open(peer, AT, BYTES, &view), KVF_ERR_BUSY);
    kvf_fabric_region_give(b->fabric, AT, BYTES);
    view = open_view(peer, AT, BYTES);
    assert_int_equal(kvf_fabric_view_close(a->fabric, &view), KVF_OK);
    world_free(w);
}

/* The memory stays where it is until the close, though the peer is dead, DOWN and removed; no new view begins. */
static void a_view_outlives_its_peer(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_MAPPED, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct kvf_view one = open_view(peer, AT, BYTES), two = open_view(peer, AT, BYTES), none;
    sim_net_kill(b->t, true);
    settle(w);
    assert_false(kvf_peer_is_up(peer));
    assert_int_equal(kvf_fabric_view_open(peer, AT, BYTES, &none), KVF_ERR_PEER_LOST);
    assert_memory_equal(one.data, b->base + AT, BYTES);
    assert_int_equal(kvf_fabric_view_close(a->fabric, &one), KVF_OK);
    kvf_fabric_peer_remove(a->fabric, peer);
    settle(w);
    assert_memory_equal(two.data, b->base + AT, BYTES);
    assert_int_equal(kvf_fabric_view_close(a->fabric, &two), KVF_OK);
    world_free(w);
}

static void what_is_not_mapped_is_not_viewed(void **state)
{
    struct kvf_view view;
    for (enum kvf_way way = KVF_WAY_ASK; way <= KVF_WAY_MAPPED; way++) {
        struct world *w = world_new();
        w->pieces = 2;
        w->piece_bytes = REGION / 4;
        struct node *a = add_node(w, "a", 1, way), *b = add_node(w, "b", 2, way);
        struct kvf_peer *peer = meet(a, b);
        assert_int_equal(kvf_fabric_view_open(peer, 0, BYTES, &view), KVF_ERR_PEER_REFUSED); /* nothing is known of it yet */
        settle(w);
        enum kvf_status want = way == KVF_WAY_MAPPED ? KVF_OK : KVF_ERR_UNSUPPORTED;
        assert_int_equal(kvf_fabric_view_open(peer, 0, BYTES, &view), want);
        if (want == KVF_OK)
            assert_int_equal(kvf_fabric_view_close(a->fabric, &view), KVF_OK);
        /* In two pieces, and in one that is not ready. */
        assert_int_equal(kvf_fabric_view_open(peer, w->piece_bytes - 100, 200, &view), KVF_ERR_UNSUPPORTED);
        assert_int_equal(kvf_fabric_view_open(peer, 3 * w->piece_bytes, BYTES, &view), KVF_ERR_UNSUPPORTED);
        assert_int_equal(kvf_fabric_view_open(peer, REGION - 100, 200, &view), KVF_ERR_PEER_REFUSED);
        assert_int_equal(kvf_fabric_view_open(peer, UINT64_MAX, 200, &view), KVF_ERR_PEER_REFUSED);
        assert_int_equal(kvf_fabric_view_open(peer, 0, 0, &view), KVF_ERR_PEER_REFUSED);
        world_free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_seen_is_what_lies_there),
        cmocka_unit_test(a_slot_that_is_reused_is_noticed),
        cmocka_unit_test(one_byte_at_any_place_is_noticed),
        cmocka_unit_test(nothing_is_viewed_while_it_is_written),
        cmocka_unit_test(what_its_owner_took_is_not_viewed_until_it_gives_it_back),
        cmocka_unit_test(a_view_outlives_its_peer),
        cmocka_unit_test(what_is_not_mapped_is_not_viewed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
