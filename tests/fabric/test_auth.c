/* The handshake, with somebody in the middle who hears, changes, keeps and repeats what is said, and strangers around. */
#include "base/bytes.h"
#include "tests/fabric/world.h"

#include <malloc.h>

#define OLD "old-secret-0f1e2d3c4b5a69788796a5b4"
#define NEW "new-secret-1122334455667788aabbccdd"

/* ------------------------------------------------------------------------------------------------ the middle */
#define HEARD_MAX 64

struct heard {
    uint8_t header[KVF_WIRE_HEADER_BYTES], payload[KVF_WIRE_HELLO_BYTES_MAX];
    size_t bytes;
    uint16_t type;
};

/* An endpoint on the way from one node to another: what comes is passed on, changed or kept. */
struct middle {
    struct kvf_transport *t;
    struct kvf_transport *to;
    struct heard heard[HEARD_MAX]; /* the first, shorter ones */
    unsigned n, of_type[64];
    bool deaf;         /* passes nothing on */
    uint16_t drops;    /* the type that is not passed on; 0: none */
    uint16_t changes;  /* the type of which a byte of the payload is changed; 0: none */
    size_t change_at;
    struct sim_path *busy_after_proof; /* the next send there is refused once a proof came; NULL: none */
};

static void on_heard(void *arg, const void *header, size_t header_bytes, const void *payload, size_t bytes)
{
    struct middle *m = arg;
    struct wire {
        uint8_t header[KVF_WIRE_HEADER_BYTES], payload[70000];
    } *frame = calloc(1, sizeof *frame);
    assert_true(header_bytes == sizeof frame->header && bytes <= sizeof frame->payload);
    memcpy(frame->header, header, header_bytes);
    if (bytes)
        memcpy(frame->payload, payload, bytes);
    uint16_t type = (uint16_t)(frame->header[6] | frame->header[7] << 8);
    m->of_type[type % 64]++;
    if (type == KVF_WIRE_PROOF && m->busy_after_proof)
        m->busy_after_proof->busy = 1;
    if (m->n < HEARD_MAX && bytes <= sizeof m->heard[0].payload) {
        struct heard *h = &m->heard[m->n++];
        *h = (struct heard){.bytes = bytes, .type = type};
        memcpy(h->header, header, header_bytes);
        memcpy(h->payload, frame->payload, bytes);
    }
    if (type == m->changes)
        frame->payload[m->change_at] ^= 0x40;
    if (!m->deaf && type != m->drops)
        sim_net_inject(m->t, m->to, frame->header, header_bytes, frame->payload, bytes);
    free(frame);
}

static void middle_open(struct world *w, struct middle *m, struct node *to)
{
    *m = (struct middle){.t = sim_net_add(w->net, "middle", KVF_WAY_ASK), .to = to->t};
    m->t->ops->handler_set(m->t, &(struct kvf_transport_handler){.arg = m, .frame = on_heard});
}

static const struct heard *heard_of(const struct middle *m, uint16_t type)
{
    for (unsigned i = 0; i < m->n; i++) {
        if (m->heard[i].type == type)
            return &m->heard[i];
    }
    return NULL;
}

static void again(struct middle *m, struct node *to, const struct heard *h)
{
    assert_non_null(h);
    sim_net_inject(m->t, to->t, h->header, sizeof h->header, h->payload, h->bytes);
}

/* a and b, who know each other by the addresses of the middle. */
struct between {
    struct world *w;
    struct node *a, *b;
    struct kvf_peer *a_to_b, *b_to_a;
    struct middle from_a, from_b;
};

static struct kvf_peer *meet_at(struct node *n, const struct node *other, struct kvf_transport *at)
{
    uint8_t address[KVF_ADDRESS_MAX];
    size_t bytes = sizeof address;
    struct kvf_peer *peer;
    assert_int_equal(at->ops->address(at, address, &bytes), KVF_OK);
    assert_int_equal(kvf_fabric_peer_add(n->fabric, other->name, other->incarnation, address, bytes, &peer), KVF_OK);
    return peer;
}

static void run_between(struct between *x, uint64_t ns)
{
    uint64_t until = x->w->env.now_ns + ns;
    for (;;) {
        for (unsigned i = 0; i < 8; i++) {
            settle(x->w);
            x->from_a.t->ops->poll(x->from_a.t);
            x->from_b.t->ops->poll(x->from_b.t);
        }
        if (x->w->env.now_ns >= until)
            return;
        sim_env_advance(&x->w->env, 10 * KVF_MS);
    }
}

static struct between *between_open(FILE *log)
{
    struct between *x = calloc(1, sizeof *x);
    x->w = world_new();
    x->w->pieces = 0; /* a region is not reached through the middle */
    x->w->log = log;
    x->a = add_node(x->w, "a", 1, KVF_WAY_ASK);
    x->b = add_node(x->w, "b", 2, KVF_WAY_ASK);
    middle_open(x->w, &x->from_a, x->b);
    middle_open(x->w, &x->from_b, x->a);
    return x;
}

static void between_meet(struct between *x)
{
    x->a_to_b = meet_at(x->a, x->b, x->from_a.t);
    x->b_to_a = meet_at(x->b, x->a, x->from_b.t);
    run_between(x, 0);
}

static void between_close(struct between *x)
{
    close_node(x->a);
    close_node(x->b);
    x->from_a.t->ops->destroy(x->from_a.t);
    x->from_b.t->ops->destroy(x->from_b.t);
    world_free(x->w);
    free(x);
}

static void demand_answer(struct between *x, struct kvf_peer *peer)
{
    struct result r = {0};
    assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
    run_between(x, 0);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.status, KVF_ERR_NOT_FOUND);
}

/* ------------------------------------------------------------------------------------------------ secrets */
/* Whether nodes with these secrets come up for each other. */
static bool come_up(const char *of_a, const char *of_b)
{
    struct world *w = world_new();
    w->secret = of_a;
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK);
    w->secret = of_b;
    struct node *b = add_node(w, "b", 2, KVF_WAY_ASK);
    meet(a, b);
    meet(b, a);
    run_for(w, DEAD + 5 * HEARTBEAT);
    bool up = a->ups == 1 && b->ups == 1;
    assert_true(up || (a->ups == 0 && b->ups == 0));
    if (!up) {
        assert_int_equal(a->downs + b->downs, 2);
        assert_true(a->down_why == KVF_ERR_PEER_AUTH || b->down_why == KVF_ERR_PEER_AUTH);
        assert_true(unproved_to(a) + unproved_to(b) > 0);
    }
    world_free(w);
    return up;
}

static void the_secret_decides_who_is_a_peer(void **state)
{
    assert_true(come_up(OLD, OLD));
    assert_true(come_up(NULL, NULL));
    assert_false(come_up(OLD, NEW));
    assert_false(come_up(OLD, NULL));
    assert_false(come_up(NULL, OLD));
    assert_false(come_up(OLD, OLD "x"));
}

/* Every step of a change of secret, one node before the other. */
static void two_secrets_are_accepted_while_one_takes_the_place_of_the_other(void **state)
{
    const char *const steps[] = {OLD "\n", OLD "\n" NEW "\n", NEW "\n" OLD "\n", NEW "\n"};
    for (unsigned i = 0; i < 4; i++)
        assert_true(come_up(steps[i], steps[i]));
    for (unsigned i = 0; i < 3; i++) {
        assert_true(come_up(steps[i], steps[i + 1]));
        assert_true(come_up(steps[i + 1], steps[i]));
    }
    assert_false(come_up(steps[0], steps[2])); /* it accepts the old one, but proves with the new */
    assert_false(come_up(steps[0], steps[3]));
}

static void a_node_without_the_secret_hears_nothing_but_hellos(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK);
    w->secret = NULL;
    struct node *b = add_node(w, "b", 2, KVF_WAY_ASK);
    struct middle m;
    middle_open(w, &m, b);
    meet_at(a, b, m.t);
    meet(b, a);
    for (unsigned i = 0; i < 20; i++) {
        run_for(w, HEARTBEAT / 2);
        m.t->ops->poll(m.t);
    }
    assert_true(m.n > 3);
    assert_true(unproved_to(a) > 3);
    uint64_t region = (uintptr_t)a->base;
    for (unsigned i = 0; i < m.n; i++) {
        assert_int_equal(m.heard[i].type, KVF_WIRE_HELLO);
        assert_null(memmem(m.heard[i].payload, m.heard[i].bytes, &region, sizeof region));
    }
    close_node(a);
    m.t->ops->destroy(m.t);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ handshakes */
static void a_changed_hello_proof_or_welcome_brings_nobody_up(void **state)
{
    const struct {
        uint16_t type;
        size_t bytes;
    } kinds[] = {{KVF_WIRE_HELLO, 3 + 8 + 2 + 72},
                 {KVF_WIRE_PROOF, KVF_WIRE_PROOF_BYTES},
                 {KVF_WIRE_WELCOME, KVF_WIRE_WELCOME_BYTES}};
    for (unsigned kind = 0; kind < 3; kind++) {
        for (size_t at = 0; at < kinds[kind].bytes; at += kind == 0 ? 5 : 3) {
            struct between *x = between_open(NULL);
            x->from_b.changes = kinds[kind].type;
            x->from_b.change_at = at;
            between_meet(x);
            run_between(x, 3 * HEARTBEAT);
            /* A hello is answered anyway, by one who answers b's: what counts is that the proof was made. */
            if (kinds[kind].type != KVF_WIRE_HELLO)
                assert_int_equal(x->a->ups, 0);
            assert_true(unproved_to(x->a) > 0);
            assert_int_equal(x->a->messages + x->a->downs, 0);
            x->from_b.changes = 0;
            run_between(x, 3 * HEARTBEAT);
            assert_int_equal(x->a->ups, 1);
            assert_int_equal(x->b->ups, 1);
            demand_answer(x, x->a_to_b);
            between_close(x);
        }
    }
}

static void what_is_said_again_is_refused(void **state)
{
    struct between *x = between_open(NULL);
    between_meet(x);
    assert_int_equal(x->a->ups + x->b->ups, 2);
    assert_int_equal(refused_by(x->a) + refused_by(x->b), 0);
    demand_answer(x, x->b_to_a);
    const uint16_t types[] = {KVF_WIRE_HELLO, KVF_WIRE_PROOF, KVF_WIRE_WELCOME, 40};
    unsigned messages = x->a->messages;
    for (unsigned i = 0; i < 4; i++) {
        unsigned said = x->from_a.n;
        again(&x->from_b, x->a, heard_of(&x->from_b, types[i]));
        run_between(x, 0);
        assert_int_equal(refused_by(x->a), i + 1);
        assert_int_equal(unproved_to(x->a), i + 1);
        assert_int_equal(x->from_a.n, said); /* nothing is answered */
    }
    assert_int_equal(x->a->messages, messages);
    demand_answer(x, x->a_to_b);
    between_close(x);
}

/* All of an earlier life, in its order, said to one who begins anew. */
static void what_was_said_in_an_earlier_life_begins_no_session(void **state)
{
    struct between *x = between_open(NULL);
    between_meet(x);
    demand_answer(x, x->b_to_a);
    unsigned n = x->from_b.n, messages = x->a->messages;
    x->from_a.deaf = x->from_b.deaf = true;
    kvf_fabric_peer_remove(x->a->fabric, x->a_to_b);
    struct kvf_peer *peer = meet_at(x->a, x->b, x->from_a.t);
    uint64_t before = unproved_to(x->a);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < n; i++)
            again(&x->from_b, x->a, &x->from_b.heard[i]);
        run_between(x, 0);
        assert_false(kvf_peer_is_up(peer));
        assert_int_equal(peer->state, KVF_PEER_CONNECTING);
    }
    assert_true(unproved_to(x->a) > before);
    assert_int_equal(x->a->messages, messages);
    assert_int_equal(x->a->ups, 1);
    /* And it hinders nobody: the real one is heard. */
    x->from_a.deaf = x->from_b.deaf = false;
    run_between(x, 3 * HEARTBEAT);
    assert_true(kvf_peer_is_up(peer));
    demand_answer(x, peer);
    between_close(x);
}

/* Hellos of earlier lives, which fit, by the thousand: few are answered, and the session goes on. */
static void recorded_hellos_cost_little(void **state)
{
    struct between *x = between_open(NULL);
    between_meet(x);
    for (unsigned i = 0; i < 3; i++) {
        run_between(x, KVF_ANSWER_NS);
        kvf_fabric_peer_remove(x->b->fabric, x->b_to_a);
        x->b_to_a = meet_at(x->b, x->a, x->from_b.t);
        run_between(x, 0);
        assert_true(kvf_peer_is_up(x->b_to_a));
    }
    demand_answer(x, x->a_to_b);
    run_between(x, KVF_ANSWER_NS);
    const struct heard *h = heard_of(&x->from_b, KVF_WIRE_HELLO);
    uint64_t sent = kvf_counted(&x->a->counters.messages_sent), refused = refused_by(x->a);
    for (unsigned i = 0; i < 1000; i++)
        again(&x->from_b, x->a, h);
    run_between(x, 0);
    assert_in_range(kvf_counted(&x->a->counters.messages_sent), sent, sent + 1);
    assert_in_range(refused_by(x->a), refused + 999, refused + 1000);
    demand_answer(x, x->a_to_b);
    demand_answer(x, x->b_to_a);
    assert_int_equal(x->a->downs, 0);
    between_close(x);
}

/* The same said to one who is not up: on a link that does not connect, answers do not pile up. */
static void recorded_hellos_cost_little_before_the_peer_is_up(void **state)
{
    struct between *x = between_open(NULL);
    x->from_a.deaf = x->from_b.deaf = true;
    x->b_to_a = meet_at(x->b, x->a, x->from_b.t);
    run_between(x, 0);
    const struct heard *h = heard_of(&x->from_b, KVF_WIRE_HELLO);
    x->a_to_b = meet_at(x->a, x->b, x->from_a.t);
    struct sim_path *path = sim_net_path(x->a->t, x->from_a.t);
    path->held = true;
    uint64_t sent = kvf_counted(&x->a->counters.messages_sent);
    for (unsigned i = 0; i < 100; i++) {
        again(&x->from_b, x->a, h);
        settle(x->w);
    }
    assert_int_equal(kvf_counted(&x->a->counters.messages_sent), sent + 1); /* the first is answered at once */
    run_between(x, 2 * KVF_ANSWER_NS);
    sent = kvf_counted(&x->a->counters.messages_sent);
    again(&x->from_b, x->a, h);
    settle(x->w);
    assert_int_equal(kvf_counted(&x->a->counters.messages_sent), sent); /* one is on its way */
    path->held = false;
    run_between(x, 2 * KVF_ANSWER_NS);
    again(&x->from_b, x->a, h);
    settle(x->w);
    assert_int_equal(kvf_counted(&x->a->counters.messages_sent), sent + 1);
    x->from_a.deaf = x->from_b.deaf = false;
    run_between(x, 3 * HEARTBEAT);
    assert_int_equal(x->a->ups + x->b->ups, 2);
    between_close(x);
}

/* What a node says, sent back to itself: as it is, and in the name of the peer. */
static void what_is_sent_back_proves_nothing(void **state)
{
    struct between *x = between_open(NULL);
    x->from_a.deaf = x->from_b.deaf = true;
    x->a_to_b = meet_at(x->a, x->b, x->from_a.t);
    x->b_to_a = meet_at(x->b, x->a, x->from_b.t);
    run_between(x, 0);
    again(&x->from_b, x->a, heard_of(&x->from_b, KVF_WIRE_HELLO)); /* so that a makes a proof */
    run_between(x, 0);
    assert_non_null(heard_of(&x->from_a, KVF_WIRE_PROOF));
    const uint16_t types[] = {KVF_WIRE_HELLO, KVF_WIRE_PROOF};
    for (unsigned i = 0; i < 4; i++) {
        struct heard h = *heard_of(&x->from_a, types[i / 2]);
        if (i % 2) {
            struct kvf_writer w = kvf_writer_of(h.header + 16, 24);
            kvf_write_u64(&w, kvf_wire_node_id("b"));
            kvf_write_u64(&w, 2);
            kvf_write_u64(&w, 1);
        }
        again(&x->from_b, x->a, &h);
        run_between(x, 0);
        assert_int_equal(unproved_to(x->a), i + 1);
        assert_int_equal(x->a_to_b->state, KVF_PEER_CONNECTING);
    }
    /* A third node's proof to b is none to a. */
    struct node *c = add_node(x->w, "c", 3, KVF_WAY_ASK);
    meet_at(c, x->b, x->from_a.t);
    run_between(x, 0);
    assert_int_equal(x->a->ups, 0);
    between_close(x);
}

static void a_half_open_handshake_expires(void **state)
{
    struct between *x = between_open(NULL);
    x->from_b.drops = KVF_WIRE_WELCOME;
    between_meet(x);
    assert_int_equal(x->a_to_b->state, KVF_PEER_PROVED);
    assert_int_equal(x->b->ups, 1);
    struct result r = {0};
    assert_int_equal(call(x->a_to_b, "x", 1, UINT64_MAX, &r), KVF_ERR_PEER_LOST);
    /* b, who is up, says more than its welcome: that is refused, is no sign of life, and is the reason in the end. */
    run_between(x, DEAD + 2 * HEARTBEAT);
    assert_int_equal(x->a->ups, 0);
    assert_int_equal(x->a->downs, 1);
    assert_int_equal(x->a->down_why, KVF_ERR_PEER_PROTOCOL);
    kvf_fabric_peer_remove(x->a->fabric, x->a_to_b);
    x->from_b.drops = 0;
    x->a_to_b = meet_at(x->a, x->b, x->from_a.t);
    run_between(x, 3 * HEARTBEAT);
    assert_true(kvf_peer_is_up(x->a_to_b));
    between_close(x);
}

static void a_lost_proof_or_welcome_comes_again(void **state)
{
    const uint16_t types[] = {KVF_WIRE_HELLO, KVF_WIRE_PROOF, KVF_WIRE_WELCOME};
    for (unsigned i = 0; i < 6; i++) {
        struct between *x = between_open(NULL);
        struct middle *m = i % 2 ? &x->from_a : &x->from_b;
        m->drops = types[i / 2];
        between_meet(x);
        run_between(x, 2 * HEARTBEAT);
        m->drops = 0;
        run_between(x, 2 * HEARTBEAT);
        assert_int_equal(x->a->ups, 1);
        assert_int_equal(x->b->ups, 1);
        demand_answer(x, x->a_to_b);
        demand_answer(x, x->b_to_a);
        between_close(x);
    }
}

/* The transport has no room for the welcome: it goes out later, to a new peer and to one that took up the connection again. */
static void a_welcome_that_found_no_room_goes_out_later(void **state)
{
    struct between *x = between_open(NULL);
    x->from_a.busy_after_proof = sim_net_path(x->a->t, x->from_a.t);
    between_meet(x);
    run_between(x, KVF_ANSWER_NS);
    assert_int_equal(x->a->ups + x->b->ups, 2);
    demand_answer(x, x->a_to_b);
    run_between(x, KVF_ANSWER_NS);
    kvf_fabric_peer_remove(x->b->fabric, x->b_to_a);
    x->b_to_a = meet_at(x->b, x->a, x->from_b.t);
    run_between(x, 2 * KVF_ANSWER_NS);
    assert_true(kvf_peer_is_up(x->b_to_a));
    demand_answer(x, x->b_to_a);
    assert_int_equal(x->a->downs, 0);
    between_close(x);
}

static void a_peer_that_could_not_be_sent_anything_was_unreachable(void **state)
{
    struct between *x = between_open(NULL);
    sim_net_path(x->a->t, x->from_a.t)->lost = 1;
    x->a_to_b = meet_at(x->a, x->b, x->from_a.t);
    run_between(x, 0);
    assert_int_equal(x->a->downs, 1);
    assert_int_equal(x->a->down_why, KVF_ERR_PEER_UNREACHABLE);
    between_close(x);
}

/* ------------------------------------------------------------------------------------------------ sessions */
static void a_peer_that_lost_its_side_takes_up_the_connection_again(void **state)
{
    struct between *x = between_open(NULL);
    between_meet(x);
    for (unsigned i = 0; i < 3; i++) {
        run_between(x, KVF_ANSWER_NS);
        kvf_fabric_peer_remove(x->b->fabric, x->b_to_a);
        x->b_to_a = meet_at(x->b, x->a, x->from_b.t);
        run_between(x, 0);
        assert_true(kvf_peer_is_up(x->b_to_a));
        demand_answer(x, x->a_to_b);
        demand_answer(x, x->b_to_a);
    }
    assert_int_equal(x->a->downs, 0);
    assert_int_equal(x->a->ups, 1);
    between_close(x);
}

static void secret_becomes(struct node *n, const char *text)
{
    const char *why;
    assert_int_equal(kvf_secret_set(n->secret, text, strlen(text), &why), KVF_OK);
    kvf_fabric_secret_changed(n->fabric);
}

static void a_secret_changes_and_nobody_goes_down(void **state)
{
    struct between *x = between_open(NULL);
    between_meet(x);
    const char *const steps[] = {SECRET "\n" NEW, NEW "\n" SECRET, NEW};
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned who = 0; who < 2; who++) {
            secret_becomes(who ? x->b : x->a, steps[i]);
            for (unsigned round = 0; round < 15; round++) {
                demand_answer(x, x->a_to_b);
                demand_answer(x, x->b_to_a);
                run_between(x, KVF_SEC);
            }
        }
    }
    assert_int_equal(x->a->downs + x->b->downs, 0);
    assert_true(kvf_auth_current(x->a_to_b->auth, x->a->secret));
    assert_true(kvf_auth_current(x->b_to_a->auth, x->b->secret));
    /* One who does not follow is not kept. */
    secret_becomes(x->a, OLD);
    run_between(x, 11 * KVF_SEC);
    assert_int_equal(x->a->downs, 1);
    assert_int_equal(x->a->down_why, KVF_ERR_PEER_AUTH);
    between_close(x);
}

/* A proof was made with a secret that is dropped before the peer's comes: it makes no session. */
static void a_proof_with_a_dropped_secret_makes_no_session(void **state)
{
    struct between *x = between_open(NULL);
    secret_becomes(x->a, OLD "\n" NEW);
    secret_becomes(x->b, NEW "\n" OLD);
    x->from_b.drops = KVF_WIRE_PROOF;
    between_meet(x);
    assert_int_equal(x->a_to_b->state, KVF_PEER_CONNECTING);
    assert_true(x->a_to_b->auth->proved);
    const struct heard *proof = heard_of(&x->from_b, KVF_WIRE_PROOF);
    secret_becomes(x->a, NEW);
    x->from_b.drops = 0;
    again(&x->from_b, x->a, proof);
    for (unsigned i = 0; i < 30; i++) {
        run_between(x, 10 * KVF_MS);
        if (x->a_to_b->auth->established)
            assert_true(kvf_secret_accepts(x->a->secret, x->a_to_b->auth->said.key_id));
    }
    assert_int_equal(x->a->ups + x->b->ups, 2);
    assert_true(kvf_auth_current(x->a_to_b->auth, x->a->secret));
    demand_answer(x, x->a_to_b);
    demand_answer(x, x->b_to_a);
    between_close(x);
}

/* Frames of a session whose secret is dropped are not taken for longer than the peer has to prove another one. */
static void a_dropped_secret_ends_with_its_deadline(void **state)
{
    struct between *x = between_open(NULL);
    between_meet(x);
    secret_becomes(x->b, NEW "\n" SECRET);
    x->from_a.deaf = x->from_b.deaf = true;
    secret_becomes(x->a, NEW);
    uint64_t deadline = x->a_to_b->rekey_ns;
    assert_int_equal(deadline, x->w->env.now_ns + KVF_REKEY_NS);
    x->a_to_b->rekey_ns = deadline = x->w->env.now_ns + DEAD / 2; /* as if most of it were over */
    x->from_a.deaf = x->from_b.deaf = false;
    run_between(x, 3 * HEARTBEAT);
    assert_int_equal(x->a_to_b->rekey_ns, 0);
    assert_in_range(x->a_to_b->auth->before_until_ns, 1, deadline);
    assert_int_equal(x->a->downs, 0);
    between_close(x);
}

/* ------------------------------------------------------------------------------------------------ hostile ones */
/* Any header and payload, mostly in the name of b, sometimes well-formed hellos of it or of nobody. */
static void forge(struct world *w, struct node *a, struct kvf_transport *from)
{
    struct sim_env *env = &w->env;
    uint8_t payload[KVF_WIRE_HELLO_BYTES_MAX], frame[KVF_WIRE_HEADER_BYTES];
    static const uint16_t types[] = {1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 32, 40};
    struct kvf_wire_header h = {.type = types[sim_env_random(env, 15)], .sender = kvf_wire_node_id("b"), .sender_incarnation = 2,
                                .receiver_incarnation = 1};
    bool before = h.type == KVF_WIRE_HELLO || h.type == KVF_WIRE_PROOF;
    size_t bytes = 1 + sim_env_random(env, 200);
    for (size_t i = 0; i < bytes; i++)
        payload[i] = (uint8_t)sim_env_random(env, 256);
    if (h.type == KVF_WIRE_HELLO) {
        struct kvf_wire_hello hello = {.address_bytes = 8};
        snprintf(hello.name, sizeof hello.name, sim_env_random(env, 2) ? "b" : "n%u", (unsigned)sim_env_random(env, 1000000));
        memcpy(hello.nonce, payload, sizeof hello.nonce);
        memcpy(hello.mac, payload + 1, sizeof hello.mac);
        kvf_secret_id(a->secret, hello.key_id);
        bytes = sizeof payload;
        assert_int_equal(kvf_wire_hello_encode(&hello, payload, &bytes), KVF_OK);
        h.sender = kvf_wire_node_id(hello.name);
    } else if (h.type == KVF_WIRE_PROOF) {
        bytes = KVF_WIRE_PROOF_BYTES;
    } else if (h.type == 2 || h.type == 3 || h.type == 7) {
        bytes = 0;
    }
    h.request = h.type >= 4 && h.type <= 6 ? 1 + sim_env_random(env, 8) : 0;
    h.payload_bytes = (uint32_t)bytes;
    h.counter = before ? 0 : 1 + sim_env_random(env, 1000);
    h.tag = before ? 0 : env->env.random(env->env.arg);
    kvf_wire_header_encode(&h, frame);
    sim_net_inject(from, a->t, frame, sizeof frame, payload, bytes);
}

/* Half-open connections and forged frames by the thousand, before two nodes meet and while they speak. */
static void a_flood_of_strangers_hinders_nobody_and_takes_no_memory(void **state)
{
    struct world *w = world_new();
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    struct kvf_transport *stranger = sim_net_add(w->net, "stranger", KVF_WAY_ASK);
    struct result r[40] = {{0}};
    for (unsigned i = 0; i < 2000; i++)
        forge(w, a, stranger);
    settle(w);
    struct kvf_peer *peer = meet(a, b);
    for (unsigned i = 0; i < 2000; i++)
        forge(w, a, stranger);
    settle(w);
    for (unsigned i = 0; i < 2000; i++) /* and between the frames of the handshake */
        forge(w, a, stranger);
    run_for(w, 2 * HEARTBEAT);
    assert_true(kvf_peer_is_up(peer));
    uint64_t sent = kvf_counted(&a->counters.messages_sent);
    size_t memory = mallinfo2().uordblks; /* of the program; 0 always where a sanitizer has malloc for itself */
    for (unsigned round = 0; round < 40; round++) {
        assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r[round]), KVF_OK);
        for (unsigned i = 0; i < 250; i++)
            forge(w, a, stranger);
        settle(w);
        assert_int_equal(r[round].count, 1);
        assert_int_equal(r[round].status, KVF_ERR_NOT_FOUND);
    }
    assert_true(mallinfo2().uordblks <= memory + 4096); /* nothing of 10,000 frames is kept */
    assert_int_equal(kvf_counted(&a->counters.messages_sent), sent + 40); /* no forged frame is answered */
    assert_int_equal(a->downs, 0);
    assert_int_equal(a->messages, 0);
    assert_int_equal(a->strangers, 0);
    assert_null(kvf_fabric_peer_at(a->fabric, 1));
    assert_true(refused_by(a) >= 16000);
    stranger->ops->destroy(stranger);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ not said aloud */
static void demand_silence(const char *text, const char *secret)
{
    for (size_t at = 0; at + 10 <= strlen(secret); at++) {
        char slice[11];
        memcpy(slice, secret + at, 10);
        slice[10] = 0;
        assert_null(strstr(text, slice));
    }
}

static void no_log_line_tells_a_secret(void **state)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *log = open_memstream(&text, &bytes);
    struct between *x = between_open(log);
    x->w->secret = NEW;
    struct node *c = add_node(x->w, "c", 3, KVF_WAY_ASK);
    between_meet(x);
    meet(c, x->a);
    meet(x->a, c);
    run_between(x, DEAD + HEARTBEAT);
    assert_int_equal(x->a->ups, 1);
    for (unsigned i = 0; i < 500; i++)
        forge(x->w, x->a, x->from_b.t);
    secret_becomes(x->a, OLD);
    run_between(x, 12 * KVF_SEC);
    assert_int_equal(x->a->downs, 2);
    between_close(x);
    fclose(log);
    assert_non_null(strstr(text, "is up"));
    assert_non_null(strstr(text, "another cluster secret"));
    assert_non_null(strstr(text, "the peer does not prove"));
    demand_silence(text, SECRET);
    demand_silence(text, OLD);
    demand_silence(text, NEW);
    free(text);
}

/* Lines are few whatever the number of frames: one for a peer in 10 s, one for all others in 1 s. */
static void a_flood_is_logged_in_a_few_lines(void **state)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *log = open_memstream(&text, &bytes);
    struct world *w = world_new();
    w->log = log;
    struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
    struct kvf_transport *stranger = sim_net_add(w->net, "stranger", KVF_WAY_ASK);
    meet(a, b);
    for (unsigned second = 0; second < 30; second++) {
        for (unsigned i = 0; i < 100; i++)
            forge(w, a, stranger);
        run_for(w, KVF_SEC);
    }
    stranger->ops->destroy(stranger);
    world_free(w);
    fclose(log);
    unsigned lines = 0;
    for (const char *at = text; (at = strstr(at, "refused")); at++)
        lines++;
    assert_in_range(lines, 10, 3 + 31 + 1);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_secret_decides_who_is_a_peer),
        cmocka_unit_test(two_secrets_are_accepted_while_one_takes_the_place_of_the_other),
        cmocka_unit_test(a_node_without_the_secret_hears_nothing_but_hellos),
        cmocka_unit_test(a_changed_hello_proof_or_welcome_brings_nobody_up),
        cmocka_unit_test(what_is_said_again_is_refused),
        cmocka_unit_test(what_was_said_in_an_earlier_life_begins_no_session),
        cmocka_unit_test(recorded_hellos_cost_little),
        cmocka_unit_test(recorded_hellos_cost_little_before_the_peer_is_up),
        cmocka_unit_test(a_welcome_that_found_no_room_goes_out_later),
        cmocka_unit_test(a_peer_that_could_not_be_sent_anything_was_unreachable),
        cmocka_unit_test(a_proof_with_a_dropped_secret_makes_no_session),
        cmocka_unit_test(a_dropped_secret_ends_with_its_deadline),
        cmocka_unit_test(what_is_sent_back_proves_nothing),
        cmocka_unit_test(a_half_open_handshake_expires),
        cmocka_unit_test(a_lost_proof_or_welcome_comes_again),
        cmocka_unit_test(a_peer_that_lost_its_side_takes_up_the_connection_again),
        cmocka_unit_test(a_secret_changes_and_nobody_goes_down),
        cmocka_unit_test(a_flood_of_strangers_hinders_nobody_and_takes_no_memory),
        cmocka_unit_test(no_log_line_tells_a_secret),
        cmocka_unit_test(a_flood_is_logged_in_a_few_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
