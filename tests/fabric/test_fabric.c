/* Peers and calls, stepped by hand: hello, life and death, replies, deadlines, trouble. */
#include "tests/fabric/world.h"

/* ------------------------------------------------------------------------------------------------ life */
static void a_hello_brings_both_sides_up(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_MAPPED);
    struct kvf_peer *peer = meet(a, b);
    assert_false(kvf_peer_is_up(peer));
    struct result r = {0};
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_ERR_PEER_LOST);
    settle(w);
    assert_true(kvf_peer_is_up(peer));
    assert_int_equal(a->ups, 1);
    assert_int_equal(b->ups, 1);
    assert_int_equal(b->strangers, 1);
    assert_string_equal(kvf_peer_name(peer), "b");
    assert_int_equal(kvf_peer_incarnation(peer), 2);
    assert_int_equal(kvf_peer_region_bytes(peer), REGION);
    assert_int_equal(kvf_peer_way(peer), KVF_WAY_ASK);
    assert_int_equal(kvf_peer_way(kvf_fabric_peer_find(b->fabric, "a")), KVF_WAY_MAPPED);
    assert_ptr_equal(kvf_fabric_peer_at(a->fabric, 0), peer);
    assert_null(kvf_fabric_peer_at(a->fabric, 1));
    assert_null(kvf_fabric_peer_find(a->fabric, "c"));
    assert_ptr_equal(meet(a, b), peer);
    /* Quiet afterwards: nobody answers hellos for ever. */
    sim_net_path(a->t, b->t)->delivered = 0;
    run_for(w, 50 * KVF_MS);
    assert_int_equal(sim_net_path(a->t, b->t)->delivered, 0);
    world_free(w);
}

static void hellos_are_sent_until_one_arrives(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    sim_net_path(a->t, b->t)->drop = 3;
    sim_net_path(b->t, a->t)->drop = 2;
    struct kvf_peer *peer = meet(a, b);
    run_for(w, 7 * HEARTBEAT);
    assert_true(kvf_peer_is_up(peer));
    assert_int_equal(a->ups, 1);
    assert_int_equal(b->ups, 1);
    world_free(w);
}

static void what_is_asked_when_up_finds_the_peer_up(void **state)
{
    /* Whatever hello is lost or late, a call from an UP peer must not reach one who does not know us. */
    for (unsigned drop = 0; drop < 4; drop++) {
        struct world *w = world_new();
        struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
        struct result r = {0};
        sim_net_path(b->t, a->t)->drop = drop;
        sim_net_path(a->t, b->t)->delay_ns = 30 * KVF_MS;
        struct kvf_peer *peer = meet(a, b);
        while (!kvf_peer_is_up(peer))
            run_for(w, 10 * KVF_MS);
        assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
        run_for(w, 5 * HEARTBEAT);
        assert_int_equal(r.count, 1);
        assert_int_equal(r.status, KVF_ERR_NOT_FOUND);
        world_free(w);
    }
}

static void a_quiet_pair_lives_by_heartbeats(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    run_for(w, 20 * DEAD);
    assert_true(kvf_peer_is_up(peer));
    assert_int_equal(w->node[0].downs + w->node[1].downs, 0);
    uint64_t frames = sim_net_path(w->node[0].t, w->node[1].t)->delivered;
    assert_in_range(frames, 190, 220); /* one per heartbeat, not more */
    world_free(w);
}

static void silence_is_death(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r[3] = {{0}};
    uint8_t to[64];
    run_for(w, 10 * HEARTBEAT); /* past the time in which we are up */
    uint64_t cut = w->env.now_ns;
    sim_net_kill(w->node[1].t, false);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[0]), KVF_OK);
    assert_int_equal(pull1(peer, 0, 64, to, UINT64_MAX, &r[1]), KVF_OK);
    a->ended_before_down = &r[0].count;
    run_for(w, DEAD - 2 * HEARTBEAT);
    assert_true(kvf_peer_is_up(peer));
    assert_int_equal(r[0].count, 0);
    while (kvf_peer_is_up(peer))
        run_for(w, 10 * KVF_MS);
    assert_true(w->env.now_ns - cut <= DEAD + 20 * KVF_MS);
    settle(w);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->down_why, KVF_ERR_PEER_LOST);
    assert_int_equal(a->ended_at_down, 1);
    assert_int_equal(r[0].status, KVF_ERR_PEER_LOST);
    assert_int_equal(r[1].status, KVF_ERR_PEER_LOST);
    assert_int_equal(r[1].count, 1);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[2]), KVF_ERR_PEER_LOST);
    assert_int_equal(kvf_fabric_notify(peer, 40, NULL, 0), KVF_ERR_PEER_LOST);
    assert_int_equal(kvf_counted(&a->counters.peers_lost), 1);
    kvf_fabric_peer_remove(a->fabric, peer);
    assert_int_equal(a->downs, 1); /* told once */
    assert_null(kvf_fabric_peer_find(a->fabric, "b"));
    world_free(w);
}

static void a_peer_that_never_answers_goes_down(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    sim_net_kill(b->t, false);
    meet(a, b);
    run_for(w, DEAD + 20 * KVF_MS);
    assert_int_equal(a->ups, 0);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->down_why, KVF_ERR_PEER_UNREACHABLE);
    world_free(w);
}

static void a_failed_link_ends_everything_at_once(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct node *a = &w->node[0];
    struct result r[2] = {{0}};
    static uint8_t to[4096], big[8192];
    assert_int_equal(pull1(peer, 0, sizeof to, to, UINT64_MAX, &r[0]), KVF_OK);
    assert_int_equal(call(peer, big, sizeof big, UINT64_MAX, &r[1]), KVF_OK);
    a->ended_before_down = &r[1].count;
    sim_net_kill(w->node[1].t, true);
    settle(w);
    assert_int_equal(r[0].status, KVF_ERR_PEER_LOST);
    assert_int_equal(r[1].status, KVF_ERR_PEER_LOST);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->ended_at_down, 1); /* what the transport held too ended before peer_down */
    world_free(w);
}

static void an_error_of_a_post_dooms_the_peer(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r[2] = {{0}};
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[0]), KVF_OK);
    sim_net_path(a->t, w->node[1].t)->lost = 1;
    assert_int_equal(call(peer, "y", 1, UINT64_MAX, &r[1]), KVF_ERR_PEER_LOST);
    assert_false(kvf_peer_is_up(peer)); /* at once, though nothing was called back yet */
    assert_int_equal(a->downs, 0);
    assert_int_equal(r[0].count, 0);
    settle(w);
    assert_int_equal(a->downs, 1);
    assert_int_equal(r[0].count, 1);
    assert_int_equal(r[1].count, 0);
    world_free(w);
}

/* The window between a peer's death and the transport's word about the link: what was on it ends with an error, and that is enough.
 * Nothing is posted on the link from then on. */
static void the_first_failed_send_dooms_the_peer(bool large)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct sim_path *path = sim_net_path(a->t, b->t);
    struct result r[2] = {{0}};
    static uint8_t data[8192], to[4096];
    run_for(w, HEARTBEAT / 2);
    path->held = true;
    assert_int_equal(call(peer, data, large ? sizeof data : 1, UINT64_MAX, &r[0]), KVF_OK);
    path->untold = true;
    sim_net_kill(b->t, true);
    settle(w);
    assert_int_equal(r[0].count, 1);
    assert_int_equal(r[0].status, KVF_ERR_PEER_LOST);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->down_why, KVF_ERR_PEER_LOST);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[1]), KVF_ERR_PEER_LOST);
    assert_int_equal(pull1(peer, 0, sizeof to, to, UINT64_MAX, &r[1]), KVF_ERR_PEER_LOST);
    run_for(w, 2 * DEAD);
    assert_int_equal(path->misposted, 0);
    assert_int_equal(r[1].count, 0);
    world_free(w);
}

static void the_first_failed_large_send_dooms_the_peer(void **state) { the_first_failed_send_dooms_the_peer(true); }
static void the_first_failed_small_send_dooms_the_peer(void **state) { the_first_failed_send_dooms_the_peer(false); }

/* The same for the bytes that a peer asked for and that we send. */
static void the_first_failed_answer_dooms_the_peer(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct sim_path *path = sim_net_path(b->t, a->t);
    struct result r = {0};
    static uint8_t to[4096];
    run_for(w, HEARTBEAT / 2);
    path->held = true;
    assert_int_equal(pull1(peer, 0, sizeof to, to, UINT64_MAX, &r), KVF_OK);
    settle(w);
    path->untold = true;
    sim_net_kill(a->t, true);
    settle(w);
    assert_int_equal(b->downs, 1);
    run_for(w, 2 * DEAD);
    assert_int_equal(path->misposted, 0);
    world_free(w);
}

static void what_is_cancelled_ends_without_a_word(void **state)
{
    const enum kvf_way ways[] = {KVF_WAY_ASK, KVF_WAY_MAPPED};
    for (unsigned i = 0; i < 2; i++) {
        struct kvf_peer *peer;
        struct world *w = pair(ways[i], &peer);
        struct result r[2] = {{0}};
        static uint8_t to[2][4096];
        for (unsigned k = 0; k < 2; k++)
            assert_int_equal(pull1(peer, k * 4096, 4096, to[k], UINT64_MAX, &r[k]), KVF_OK);
        assert_true(kvf_fabric_cancel(peer, &r[0]));
        assert_false(kvf_fabric_cancel(peer, &r[0]));
        memset(to[0], 0xcc, sizeof to[0]);
        settle(w);
        assert_int_equal(r[0].count, 0);
        assert_int_equal(r[1].oks, 1);
        assert_memory_equal(to[1], w->node[1].base + 4096, 4096);
        for (unsigned k = 0; k < 4096; k++)
            assert_int_equal(to[0][k], 0xcc);
        assert_true(kvf_peer_is_up(peer));
        for (unsigned k = 0; k < 2 * w->requests_max; k++) { /* slots and credit came back */
            assert_int_equal(pull1(peer, 0, 4096, to[0], UINT64_MAX, &r[0]), KVF_OK);
            assert_true(kvf_fabric_cancel(peer, &r[0]));
            settle(w);
        }
        world_free(w);
    }
}

/* ... but not while the transport uses its memory. */
static void a_one_sided_read_is_not_cancelled(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct result r = {0};
    static uint8_t to[4096];
    assert_int_equal(pull1(peer, 0, sizeof to, to, UINT64_MAX, &r), KVF_OK);
    assert_false(kvf_fabric_cancel(peer, &r));
    settle(w);
    assert_int_equal(r.oks, 1);
    world_free(w);
}

static void goodbye_is_believed_at_once(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    w->node[1].echoes = false;
    settle(w);
    close_node(&w->node[1]);
    settle(w);
    assert_int_equal(w->node[0].downs, 0); /* the goodbye lay on the wire when its sender ended */
    world_free(w);

    w = pair(KVF_WAY_ASK, &peer);
    kvf_fabric_notify(kvf_fabric_peer_find(w->node[1].fabric, "a"), 40, NULL, 0);
    say(&w->node[1], &w->node[0], (struct kvf_wire_header){.type = KVF_WIRE_GOODBYE}, NULL, 0);
    settle(w);
    assert_int_equal(w->node[0].downs, 1);
    assert_int_equal(w->node[0].down_why, KVF_ERR_CLOSED);
    world_free(w);
}

static void a_restarted_node_is_another_peer(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r[2] = {{0}};
    w->node[1].echoes = false;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[0]), KVF_OK);
    settle(w);
    sim_net_kill(w->node[1].t, false);
    struct node *b = add_node(w, "b", 3, KVF_WAY_ASK);
    meet(b, a); /* it finds a by itself, and a hears of it as a stranger with a known name */
    settle(w);
    assert_int_equal(a->strangers, 1);
    assert_int_equal(a->downs, 1);
    assert_int_equal(r[0].status, KVF_ERR_PEER_LOST);
    peer = kvf_fabric_peer_find(a->fabric, "b");
    assert_int_equal(kvf_peer_incarnation(peer), 3);
    assert_true(kvf_peer_is_up(peer));
    assert_null(kvf_fabric_peer_at(a->fabric, 1));
    assert_int_equal(call(peer, "y", 1, UINT64_MAX, &r[1]), KVF_OK);
    settle(w);
    assert_int_equal(r[1].status, KVF_ERR_NOT_FOUND);
    world_free(w);
}

static void frames_of_old_incarnations_are_refused(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    uint64_t id = kvf_wire_node_id("b");
    say(b, a, (struct kvf_wire_header){.type = 40}, NULL, 0);
    settle(w);
    assert_int_equal(a->messages, 1);
    assert_int_equal(kvf_counted(&a->counters.messages_refused), 0);
    const struct {
        uint64_t sender, from, to;
    } wrong[] = {{id, 1, 1}, {id, 3, 1}, {id, 2, 2}, {id, 2, 7}, {kvf_wire_node_id("c"), 2, 1}};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct kvf_wire_header h = {.type = 40, .sender = wrong[i].sender, .sender_incarnation = wrong[i].from,
                                    .receiver_incarnation = wrong[i].to};
        say(b, a, h, NULL, 0);
        settle(w);
        assert_int_equal(a->messages, 1);
        assert_int_equal(kvf_counted(&a->counters.messages_refused), i + 1);
    }
    assert_true(kvf_peer_is_up(peer));
    world_free(w);
}

static void garbage_is_refused_and_hurts_nobody(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct kvf_wire_header h = {.type = 40, .sender = kvf_wire_node_id("b"), .sender_incarnation = 2, .receiver_incarnation = 1,
                                .payload_bytes = 8, .counter = 99};
    uint8_t bytes[KVF_WIRE_HEADER_BYTES], junk[80];
    kvf_wire_header_encode(&h, bytes);
    memset(junk, 0xa5, sizeof junk);
    sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, junk, 7);   /* shorter than it says */
    sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, junk, 9);   /* longer */
    sim_net_inject(w->node[1].t, a->t, junk, sizeof junk, junk, 64);    /* no frame */
    sim_net_inject(w->node[1].t, a->t, NULL, 0, NULL, 0);
    bytes[4] = 9; /* another version */
    sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, junk, 8);
    for (uint16_t type = 1; type <= 10; type++) { /* every message of the fabric, of nobody */
        h.type = type;
        h.request = type >= 4 && type <= 6 ? 77 : 0;
        h.payload_bytes = type == 2 || type == 3 || type == 7 ? 0 : 8;
        h.counter = type == 1 || type == 9 ? 0 : 99;
        kvf_wire_header_encode(&h, bytes);
        sim_net_inject(w->node[1].t, a->t, bytes, sizeof bytes, junk, h.payload_bytes);
    }
    settle(w);
    assert_int_equal(a->messages, 0);
    assert_int_equal(kvf_counted(&a->counters.messages_refused), 5 + 10);
    assert_int_equal(kvf_counted(&a->counters.messages_unproved), 10);
    assert_true(kvf_peer_is_up(peer));
    world_free(w);
}

static void there_are_at_most_peers_max(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    uint8_t address[64];
    size_t bytes = sizeof address;
    struct kvf_peer *peer;
    assert_int_equal(b->t->ops->address(b->t, address, &bytes), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p1", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p2", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p3", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p4", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p5", 1, address, bytes, &peer), KVF_ERR_BUSY);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p4", 2, address, bytes, &peer), KVF_OK); /* in place of the old one */
    kvf_fabric_peer_remove(a->fabric, kvf_fabric_peer_find(a->fabric, "p2"));
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p5", 1, address, bytes, &peer), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "a", 9, address, bytes, &peer), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "", 9, address, bytes, &peer), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "x", 0, address, bytes, &peer), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_peer_add(a->fabric, "p5", 7, "junk", 4, &peer), KVF_ERR_INVALID);
    world_free(w);
}

static void a_peer_may_be_removed_inside_its_callbacks(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r[4] = {{0}};
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[i]), KVF_OK);
    a->remove_on_down = true;
    sim_net_kill(w->node[1].t, true);
    settle(w);
    assert_int_equal(a->downs, 1);
    assert_null(kvf_fabric_peer_at(a->fabric, 0));
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(r[i].count, 1);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ calls */
static void a_call_brings_the_reply(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    char text[] = "what do you hold?";
    assert_int_equal(call(peer, text, sizeof text, w->env.now_ns + KVF_SEC, &r), KVF_OK);
    memset(text, 0, sizeof text); /* small parts are copied */
    settle(w);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_NOT_FOUND);
    assert_string_equal((char *)r.payload, "what do you hold?");
    assert_int_equal(w->node[1].messages, 1);
    run_for(w, 2 * KVF_SEC); /* its deadline passes without a second callback */
    assert_int_equal(r.count, 1);
    world_free(w);
}

static void large_parts_travel_without_a_copy(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    static uint8_t data[8000];
    struct iovec parts[8];
    for (unsigned i = 0; i < 8; i++)
        parts[i] = (struct iovec){.iov_base = data + i * 1000, .iov_len = 1000};
    assert_int_equal(kvf_fabric_call(peer, 40, parts, 8, UINT64_MAX, on_reply, &r), KVF_OK);
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 31); /* after the call: the wire reads our memory itself */
    settle(w);
    assert_int_equal(r.status, KVF_ERR_NOT_FOUND);
    assert_int_equal(r.bytes, sizeof data);
    assert_memory_equal(r.payload, data, sizeof data);
    world_free(w);
}

static void bad_calls_are_refused(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r = {0};
    static uint8_t data[70000];
    struct iovec part = {.iov_base = data, .iov_len = sizeof data};
    assert_int_equal(kvf_fabric_payload_max(a->fabric), 65536);
    assert_int_equal(kvf_fabric_call(peer, 40, &part, 1, UINT64_MAX, on_reply, &r), KVF_ERR_INVALID);
    part.iov_len = 10;
    assert_int_equal(kvf_fabric_call(peer, 31, &part, 1, UINT64_MAX, on_reply, &r), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_call(peer, 40, &part, KVF_FRAME_PARTS_MAX + 1, UINT64_MAX, on_reply, &r), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_notify(peer, 40, data, 4097), KVF_ERR_INVALID);
    assert_int_equal(kvf_fabric_reply(peer, 0, KVF_OK, NULL, 0, NULL, NULL), KVF_ERR_INVALID);
    part.iov_len = 5000;
    assert_int_equal(kvf_fabric_reply(peer, 5, KVF_OK, &part, 1, NULL, NULL), KVF_ERR_INVALID);
    assert_int_equal(r.count, 0);
    world_free(w);
}

static void a_late_reply_is_dropped(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct result r = {0}, second = {0};
    sim_net_path(b->t, a->t)->delay_ns = 300 * KVF_MS;
    assert_int_equal(call(peer, "x", 1, w->env.now_ns + 200 * KVF_MS, &r), KVF_OK);
    run_for(w, 190 * KVF_MS);
    assert_int_equal(r.count, 0);
    run_for(w, 20 * KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    for (unsigned i = 0; i < w->requests_max; i++) /* the slot is used again, by other requests */
        assert_int_equal(call(peer, "y", 1, UINT64_MAX, &second), KVF_OK);
    run_for(w, 150 * KVF_MS);
    assert_int_equal(second.count, 0);
    assert_int_equal(kvf_counted(&a->counters.messages_refused), 1);
    run_for(w, 300 * KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(second.count, w->requests_max);
    world_free(w);
}

static void there_are_at_most_requests_max(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    uint8_t to[16];
    w->node[1].echoes = false;
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(call(peer, "x", 1, w->env.now_ns + 100 * KVF_MS, &r), KVF_OK);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_ERR_BUSY);
    assert_int_equal(pull1(peer, 0, 16, to, UINT64_MAX, &r), KVF_ERR_BUSY);
    run_for(w, 150 * KVF_MS);
    assert_int_equal(r.count, 16);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    world_free(w);
}

static void a_busy_transport_refuses_and_recovers(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct result r = {0};
    struct sim_path *path = sim_net_path(w->node[0].t, w->node[1].t);
    path->busy = 1;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_ERR_BUSY);
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    settle(w);
    assert_int_equal(r.count, 1);
    world_free(w);
}

/* The transport still reads the caller's parts at the deadline: the link is ended before the caller gets them back. */
static void a_stuck_large_call_ends_with_the_link(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r = {0};
    static uint8_t data[8000];
    sim_net_path(a->t, w->node[1].t)->held = true;
    assert_int_equal(call(peer, data, sizeof data, w->env.now_ns + 50 * KVF_MS, &r), KVF_OK);
    run_for(w, 60 * KVF_MS);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    assert_int_equal(a->downs, 1);
    assert_int_equal(w->node[1].messages, 0);
    world_free(w);
}

static void duplicated_frames_do_no_harm(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct result r = {0}, p = {0};
    static uint8_t to[200000];
    sim_net_path(a->t, b->t)->duplicate = 100;
    sim_net_path(b->t, a->t)->duplicate = 100;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    assert_int_equal(pull1(peer, 100, sizeof to, to, UINT64_MAX, &p), KVF_OK);
    settle(w);
    assert_int_equal(r.count, 1);
    assert_int_equal(p.count, 1);
    assert_int_equal(p.status, KVF_OK);
    assert_memory_equal(to, b->base + 100, sizeof to);
    assert_true(kvf_counted(&a->counters.messages_refused) > 0);
    world_free(w);
}

/* What would be an outcome of our own calls (not finished, moved, cancelled), or nothing at all, is no answer of a peer's. */
static void an_answer_is_success_or_a_failure(void **state)
{
    static const int32_t none[] = {1, 2, 3, 4, 5, 6, 1000, -10, -99, -1000};
    static const int32_t some[] = {KVF_OK, KVF_ERR_INVALID, KVF_ERR_FULL, KVF_ERR_STALE, KVF_ERR_CORRUPT, KVF_ERR_NO_MEMORY};
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    unsigned n = sizeof none / sizeof none[0], all = n + sizeof some / sizeof some[0];
    char text[] = "abc";
    struct iovec part = {.iov_base = text, .iov_len = 3};
    b->echoes = false;
    for (unsigned i = 0; i < all; i++) {
        struct result r = {0};
        int32_t status = i < n ? none[i] : some[i - n];
        uint64_t refused = kvf_counted(&a->counters.messages_refused);
        assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
        settle(w);
        assert_int_equal(kvf_fabric_reply(b->last_peer, b->last_request, (enum kvf_status)status, &part, 1, NULL, NULL), KVF_OK);
        settle(w);
        assert_int_equal(r.count, 1);
        assert_int_equal(r.status, i < n ? KVF_ERR_PEER_PROTOCOL : status);
        assert_int_equal(r.bytes, i < n ? 0 : 3);
        assert_int_equal(kvf_counted(&a->counters.messages_refused) - refused, i < n);
    }
    assert_true(kvf_peer_is_up(peer));
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ the whole */
static void destroy_cancels_what_is_open(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_GET, &peer);
    struct result r[3] = {{0}};
    static uint8_t to[100], big[8000];
    w->node[1].echoes = false;
    sim_net_path(w->node[0].t, w->node[1].t)->held = true;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[0]), KVF_OK);
    assert_int_equal(pull1(peer, 0, 100, to, UINT64_MAX, &r[1]), KVF_OK);
    assert_int_equal(call(peer, big, sizeof big, UINT64_MAX, &r[2]), KVF_OK);
    close_node(&w->node[0]);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(r[i].count, 1);
        assert_int_equal(r[i].status, KVF_CANCELLED);
    }
    world_free(w);
}

/* A reply of the owner's memory, too: its callback comes before the owner goes on to free what that needs. */
static void destroy_waits_for_replies(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct result r = {0}, sent = {0};
    static uint8_t big[8000];
    struct iovec part = {.iov_base = big, .iov_len = sizeof big};
    b->echoes = false;
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    settle(w);
    sim_net_path(b->t, a->t)->held = true;
    assert_int_equal(kvf_fabric_reply(b->last_peer, b->last_request, KVF_OK, &part, 1, on_done, &sent), KVF_OK);
    settle(w);
    assert_int_equal(sent.count, 0);
    kvf_fabric_destroy(b->fabric);
    assert_int_equal(sent.count, 1);
    assert_int_equal(sent.status, KVF_CANCELLED);
    b->fabric = NULL;
    kvf_secret_destroy(b->secret);
    b->t->ops->region_destroy(b->t, b->region);
    b->t->ops->destroy(b->t);
    assert_int_equal(sent.count, 1);
    world_free(w);
}

static void timers_say_when_poll_is_needed(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0];
    struct result r = {0};
    uint64_t next = kvf_fabric_next_timer(a->fabric);
    assert_true(next > w->env.now_ns && next <= w->env.now_ns + HEARTBEAT);
    w->node[1].echoes = false;
    uint64_t deadline = w->env.now_ns + 7 * KVF_MS;
    assert_int_equal(call(peer, "x", 1, deadline, &r), KVF_OK);
    settle(w);
    assert_int_equal(kvf_fabric_next_timer(a->fabric), deadline);
    w->env.now_ns = deadline;
    kvf_fabric_poll(a->fabric);
    assert_int_equal(r.status, KVF_ERR_DEADLINE);
    assert_true(kvf_fabric_next_timer(a->fabric) > deadline);
    world_free(w);
}

/* After a long pause of our own, what lies in the queue is heard before anybody is declared dead. */
static void a_pause_of_ours_is_not_their_death(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    for (unsigned i = 0; i < 30; i++) { /* b alone goes on for three seconds */
        sim_env_advance(&w->env, 100 * KVF_MS);
        sim_net_run(w->net);
        if (i % 3 == 0) {
            say(a, b, (struct kvf_wire_header){.type = KVF_WIRE_HEARTBEAT}, NULL, 0);
        }
        kvf_fabric_poll(b->fabric);
    }
    assert_int_equal(b->downs, 0);
    settle(w);
    assert_int_equal(a->downs, 0);
    assert_true(kvf_peer_is_up(peer));
    world_free(w);
}

static void heal(struct world *w)
{
    struct node *a = &w->node[0], *b = &w->node[1];
    *sim_net_path(a->t, b->t) = *sim_net_path(b->t, a->t) = (struct sim_path){0};
    run_for(w, DEAD + 100 * KVF_MS); /* who is to die does */
    struct kvf_peer *one = kvf_fabric_peer_find(a->fabric, "b"), *two = kvf_fabric_peer_find(b->fabric, "a");
    if (one)
        kvf_fabric_peer_remove(a->fabric, one);
    if (two)
        kvf_fabric_peer_remove(b->fabric, two);
    settle(w);
}

/* Losses, delays, doubles and partitions from a seed: every request ends once, good data is right, and afterwards the pair
 * works as before. */
static void random_trouble_ends_every_request(void **state)
{
    unsigned good = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct world *w = world_new();
        sim_env_init(&w->env, seed);
        enum kvf_way way = (enum kvf_way)(seed % 3);
        struct node *a = add_node(w, "a", 1, way), *b = add_node(w, "b", 2, way);
        static uint8_t to[64][8192];
        struct result r[64] = {{0}};
        uint64_t offset[64];
        unsigned asked = 0;
        meet(a, b);
        settle(w);
        while (asked < 64) {
            struct sim_path *path = sim_env_random(&w->env, 2) ? sim_net_path(a->t, b->t) : sim_net_path(b->t, a->t);
            switch (sim_env_random(&w->env, 12)) {
            case 0: path->drop = 1; break;
            case 1: path->duplicate = 2; break;
            case 2: path->delay_ns = sim_env_random(&w->env, 50) * KVF_MS; break;
            case 3: path->delay_ns = 0; break;
            case 4: path->busy = 2; break;
            case 5: path->cut = sim_env_random(&w->env, 4) == 0; break;
            case 6: path->lost = sim_env_random(&w->env, 8) == 0; break;
            default: break;
            }
            struct kvf_peer *peer = kvf_fabric_peer_find(a->fabric, "b");
            if (peer && !kvf_peer_is_up(peer) && sim_env_random(&w->env, 4) == 0)
                kvf_fabric_peer_remove(a->fabric, peer);
            struct kvf_peer *other = kvf_fabric_peer_find(b->fabric, "a");
            if (other && !kvf_peer_is_up(other) && sim_env_random(&w->env, 4) == 0)
                kvf_fabric_peer_remove(b->fabric, other);
            peer = kvf_fabric_peer_find(a->fabric, "b");
            if (!peer)
                peer = meet(a, b);
            uint64_t deadline = w->env.now_ns + (1 + sim_env_random(&w->env, 100)) * KVF_MS;
            offset[asked] = sim_env_random(&w->env, REGION - 8192);
            if (asked % 2 ? pull1(peer, offset[asked], 8192, to[asked], deadline, &r[asked]) == KVF_OK
                          : call(peer, to[asked], asked % 4 ? 8192 : 9, deadline, &r[asked]) == KVF_OK)
                asked++;
            run_for(w, sim_env_random(&w->env, 30) * KVF_MS);
            if (w->env.now_ns > 200 * KVF_SEC)
                break;
        }
        run_for(w, 150 * KVF_MS);
        for (unsigned i = 0; i < asked; i++) {
            if (r[i].count != 1)
                print_error("seed %llu: request %u ended %u times\n", (unsigned long long)seed, i, r[i].count);
            assert_int_equal(r[i].count, 1);
            good += r[i].status == KVF_OK || r[i].status == KVF_ERR_NOT_FOUND;
            if (i % 2 && r[i].status == KVF_OK)
                assert_memory_equal(to[i], b->base + offset[i], 8192);
        }
        heal(w);
        /* Every slot is free again: as many as there are can be asked at once, and are answered. */
        struct kvf_peer *peer = meet(a, b);
        run_for(w, 500 * KVF_MS);
        assert_true(kvf_peer_is_up(peer));
        struct result last = {0};
        for (unsigned i = 0; i < w->requests_max; i++)
            assert_int_equal(pull1(peer, 0, 8192, to[i], UINT64_MAX, &last), KVF_OK);
        run_for(w, 20 * KVF_MS);
        assert_int_equal(last.oks, w->requests_max);
        world_free(w);
    }
    print_message("60 seeds from 1, %u requests ended well amid the trouble\n", good);
    assert_true(good > 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hello_brings_both_sides_up),
        cmocka_unit_test(hellos_are_sent_until_one_arrives),
        cmocka_unit_test(what_is_asked_when_up_finds_the_peer_up),
        cmocka_unit_test(a_quiet_pair_lives_by_heartbeats),
        cmocka_unit_test(silence_is_death),
        cmocka_unit_test(a_peer_that_never_answers_goes_down),
        cmocka_unit_test(a_failed_link_ends_everything_at_once),
        cmocka_unit_test(an_error_of_a_post_dooms_the_peer),
        cmocka_unit_test(the_first_failed_large_send_dooms_the_peer),
        cmocka_unit_test(the_first_failed_small_send_dooms_the_peer),
        cmocka_unit_test(the_first_failed_answer_dooms_the_peer),
        cmocka_unit_test(what_is_cancelled_ends_without_a_word),
        cmocka_unit_test(a_one_sided_read_is_not_cancelled),
        cmocka_unit_test(goodbye_is_believed_at_once),
        cmocka_unit_test(a_restarted_node_is_another_peer),
        cmocka_unit_test(frames_of_old_incarnations_are_refused),
        cmocka_unit_test(garbage_is_refused_and_hurts_nobody),
        cmocka_unit_test(there_are_at_most_peers_max),
        cmocka_unit_test(a_peer_may_be_removed_inside_its_callbacks),
        cmocka_unit_test(a_call_brings_the_reply),
        cmocka_unit_test(large_parts_travel_without_a_copy),
        cmocka_unit_test(bad_calls_are_refused),
        cmocka_unit_test(a_late_reply_is_dropped),
        cmocka_unit_test(there_are_at_most_requests_max),
        cmocka_unit_test(a_busy_transport_refuses_and_recovers),
        cmocka_unit_test(a_stuck_large_call_ends_with_the_link),
        cmocka_unit_test(duplicated_frames_do_no_harm),
        cmocka_unit_test(an_answer_is_success_or_a_failure),
        cmocka_unit_test(destroy_cancels_what_is_open),
        cmocka_unit_test(destroy_waits_for_replies),
        cmocka_unit_test(timers_say_when_poll_is_needed),
        cmocka_unit_test(a_pause_of_ours_is_not_their_death),
        cmocka_unit_test(random_trouble_ends_every_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
