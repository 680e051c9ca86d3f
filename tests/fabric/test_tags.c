/* Sessions: keys, tags and counters of frames, and peers whose tags fit but who break the protocol. */
#include "tests/fabric/world.h"

#include <openssl/evp.h>

static void a_frame_that_is_changed_is_nobodys(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct kvf_auth *auth = kvf_fabric_peer_find(b->fabric, "a")->auth;
    uint8_t payload[KVF_AUTH_COVERED_MAX];
    memset(payload, 7, sizeof payload);
    struct kvf_wire_header h = {.type = 40, .sender = kvf_wire_node_id("b"), .sender_incarnation = 2, .receiver_incarnation = 1,
                                .request = 3, .payload_bytes = sizeof payload, .budget_us = 5, .counter = ++auth->sent};
    uint8_t frame[KVF_WIRE_HEADER_BYTES];
    kvf_wire_header_encode(&h, frame);
    kvf_auth_seal(auth, h.type, frame, payload, sizeof payload);
    for (unsigned i = 0; i < sizeof frame + 40; i++) {
        uint8_t *byte = i < sizeof frame ? &frame[i] : &payload[(i - sizeof frame) * 105];
        *byte ^= 1;
        sim_net_inject(b->t, a->t, frame, sizeof frame, payload, sizeof payload);
        settle(w);
        *byte ^= 1;
        assert_int_equal(refused_by(a), i + 1);
        assert_int_equal(a->messages + a->downs, 0);
    }
    a->echoes = false;
    sim_net_inject(b->t, a->t, frame, sizeof frame, payload, sizeof payload);
    settle(w);
    assert_int_equal(a->messages, 1);
    world_free(w);
}

/* Both sides of one handshake; true when each takes the other's proof. */
static bool shake(const struct kvf_env *env, struct kvf_secret *s, struct kvf_auth *x, struct kvf_auth *y,
                  struct kvf_auth_party at_x, struct kvf_auth_party at_y)
{
    kvf_auth_prove(x, s, at_x, at_y, y->nonce);
    kvf_auth_prove(y, s, at_y, at_x, x->nonce);
    struct kvf_wire_proof of_x = x->proof, of_y = y->proof;
    return kvf_auth_proof_check(x, s, at_y, at_x, &of_y) == KVF_OK && kvf_auth_proof_check(y, s, at_x, at_y, &of_x) == KVF_OK &&
           kvf_auth_establish(x, s, at_y, at_x, &of_y, env, 100) && kvf_auth_establish(y, s, at_x, at_y, &of_x, env, 100);
}

static void a_proof_names_who_proves_and_to_whom(void **state)
{
    struct sim_env env;
    struct kvf_auth *x = calloc(1, sizeof *x), *y = calloc(1, sizeof *y);
    struct kvf_secret *s = secret_of(SECRET);
    const struct kvf_auth_party at_x = {"x", 1}, at_y = {"y", 2};
    const struct kvf_auth_party others[] = {{"x", 2}, {"z", 1}, {"xx", 1}, {"y", 2}, {"y", 1}};
    sim_env_init(&env, SEED);
    assert_true(kvf_auth_begin(x, &env.env) && kvf_auth_begin(y, &env.env));
    kvf_auth_prove(x, s, at_x, at_y, y->nonce);
    assert_int_equal(kvf_auth_proof_check(y, s, at_x, at_y, &x->proof), KVF_OK);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(kvf_auth_proof_check(y, s, others[i], at_y, &x->proof), KVF_ERR_PEER_AUTH);
        if (i != 3)
            assert_int_equal(kvf_auth_proof_check(y, s, at_x, others[i], &x->proof), KVF_ERR_PEER_AUTH);
    }
    struct kvf_wire_proof other = x->proof;
    other.nonce[31] ^= 1;
    assert_int_equal(kvf_auth_proof_check(y, s, at_x, at_y, &other), KVF_ERR_PEER_AUTH);
    /* The two directions have two keys, and another session two others. */
    assert_true(shake(&env.env, s, x, y, at_x, at_y));
    uint8_t keys[4][KVF_SIPHASH_KEY_BYTES];
    for (unsigned i = 0; i < 4; i += 2) {
        memcpy(keys[i], x->key, sizeof keys[i]);
        memcpy(keys[i + 1], y->key, sizeof keys[i + 1]);
        assert_memory_equal(x->key, y->in.key, sizeof x->key);
        assert_memory_equal(y->key, x->in.key, sizeof y->key);
        assert_true(shake(&env.env, s, x, y, at_x, at_y));
    }
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned j = 0; j < i; j++)
            assert_memory_not_equal(keys[i], keys[j], sizeof keys[i]);
    }
    kvf_secret_destroy(s);
    free(x);
    free(y);
}

/* What is on its way when a session takes the place of another is taken, once, for a while. */
static void frames_under_the_session_before_are_taken_for_a_while(void **state)
{
    struct sim_env env;
    struct kvf_auth *x = calloc(1, sizeof *x), *y = calloc(1, sizeof *y);
    struct kvf_secret *s = secret_of(SECRET);
    const struct kvf_auth_party at_x = {"x", 1}, at_y = {"y", 2};
    uint8_t frames[3][KVF_WIRE_HEADER_BYTES];
    struct kvf_wire_header h = {.type = 40, .sender = 1, .sender_incarnation = 1, .receiver_incarnation = 2}, back[3];
    sim_env_init(&env, SEED);
    assert_true(kvf_auth_begin(x, &env.env) && kvf_auth_begin(y, &env.env));
    assert_true(shake(&env.env, s, x, y, at_x, at_y));
    for (unsigned i = 0; i < 3; i++) {
        h.counter = i + 1;
        kvf_wire_header_encode(&h, frames[i]);
        kvf_auth_seal(x, h.type, frames[i], NULL, 0);
        assert_int_equal(kvf_wire_header_decode(frames[i], sizeof frames[i], &back[i]), KVF_OK);
    }
    assert_int_equal(kvf_auth_open(y, &back[0], frames[0], NULL, 0, 10), KVF_OK);
    assert_true(shake(&env.env, s, x, y, at_x, at_y));
    assert_int_equal(kvf_auth_open(y, &back[0], frames[0], NULL, 0, 10), KVF_ERR_STALE);
    assert_int_equal(kvf_auth_open(y, &back[1], frames[1], NULL, 0, 10), KVF_OK);
    assert_int_equal(kvf_auth_open(y, &back[1], frames[1], NULL, 0, 10), KVF_ERR_STALE);
    assert_int_equal(kvf_auth_open(y, &back[2], frames[2], NULL, 0, 100), KVF_ERR_PEER_AUTH);
    assert_false(y->confirmed); /* the old one says nothing of the new */
    kvf_secret_destroy(s);
    free(x);
    free(y);
}

/* The window of counters against a plain list of those that came. */
static void every_counter_is_taken_once(void **state)
{
    struct sim_env env;
    static bool came[20000];
    uint64_t highest = 0, late = 0;
    sim_env_init(&env, SEED);
    memset(came, 0, sizeof came);
    struct kvf_auth *sender = calloc(1, sizeof *sender), *receiver = calloc(1, sizeof *receiver);
    sender->established = receiver->established = true;
    memset(sender->key, 9, sizeof sender->key);
    memset(receiver->in.key, 9, sizeof receiver->in.key);
    for (unsigned round = 0; round < 60000; round++) {
        uint64_t reach = sim_env_random(&env, 100) == 0 ? 3000 : 1100, low = highest > 1050 ? highest - 1050 : 1;
        struct kvf_wire_header h = {.type = 40, .sender = 1, .sender_incarnation = 1, .receiver_incarnation = 1}, back;
        h.counter = low + sim_env_random(&env, reach);
        if (h.counter >= sizeof came)
            break;
        uint8_t frame[KVF_WIRE_HEADER_BYTES];
        kvf_wire_header_encode(&h, frame);
        kvf_auth_seal(sender, h.type, frame, NULL, 0);
        assert_int_equal(kvf_wire_header_decode(frame, sizeof frame, &back), KVF_OK);
        bool old = h.counter + KVF_AUTH_WINDOW < highest, fits = !came[h.counter] && !old;
        assert_int_equal(kvf_auth_open(receiver, &back, frame, NULL, 0, 0), fits ? KVF_OK : KVF_ERR_STALE);
        late += fits && h.counter < highest;
        came[h.counter] = came[h.counter] || fits;
        highest = h.counter > highest ? h.counter : highest;
    }
    assert_true(highest > 10000 && late > 1000);
    free(sender);
    free(receiver);
}

static void frames_may_overtake_each_other(void **state)
{
    struct kvf_peer *peer;
    struct world *w = pair(KVF_WAY_ASK, &peer);
    struct node *a = &w->node[0], *b = &w->node[1];
    struct result r[16] = {{0}};
    struct sim_path *path = sim_net_path(a->t, b->t);
    for (unsigned i = 0; i < 16; i++) {
        path->delay_ns = (16 - i) * KVF_MS;
        assert_int_equal(call(peer, &i, sizeof i, UINT64_MAX, &r[i]), KVF_OK);
    }
    run_for(w, 30 * KVF_MS);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(r[i].count, 1);
    assert_int_equal(refused_by(a) + refused_by(b), 0);
    world_free(w);
}

/* ------------------------------------------------------------------------------------------------ known, and hostile */
static void a_peer_that_breaks_the_protocol_is_not_kept(void **state)
{
    const uint8_t junk[KVF_WIRE_WELCOME_BYTES] = {0};
    const struct {
        struct kvf_wire_header h;
        size_t bytes;
    } wrong[] = {
        {{.type = KVF_WIRE_WELCOME, .payload_bytes = sizeof junk}, sizeof junk}, /* takes payloads of 0 bytes */
        {{.type = KVF_WIRE_WELCOME, .payload_bytes = 3}, 3},
        {{.type = KVF_WIRE_PIECE_ASK, .position = 60}, 0},
        {{.type = KVF_WIRE_PIECE, .position = 1, .payload_bytes = 9}, 9},
        {{.type = KVF_WIRE_PULL, .request = 1, .payload_bytes = 9}, 9},
        {{.type = 40, .payload_bytes = 10}, 9}, /* shorter than it says */
    };
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct kvf_peer *peer;
        struct world *w = pair(KVF_WAY_ASK, &peer);
        struct node *a = &w->node[0], *b = &w->node[1];
        struct result r = {0};
        b->echoes = false;
        assert_int_equal(call(peer, "x", 1, UINT64_MAX, &r), KVF_OK);
        settle(w);
        say(b, a, wrong[i].h, junk, wrong[i].bytes);
        settle(w);
        assert_int_equal(refused_by(a), 1);
        assert_int_equal(unproved_to(a), 0);
        assert_int_equal(a->downs, 1);
        assert_int_equal(a->down_why, KVF_ERR_PEER_PROTOCOL);
        assert_int_equal(r.status, KVF_ERR_PEER_LOST);
        assert_int_equal(a->messages, 0);
        world_free(w);
    }
}

/* Its region is that of its life: a peer that says another one would have us read elsewhere. */
static void a_welcome_to_another_region_ends_the_connection(void **state)
{
    for (unsigned other = 0; other < 2; other++) {
        struct kvf_peer *peer;
        struct world *w = pair(KVF_WAY_ASK, &peer);
        struct node *a = &w->node[0], *b = &w->node[1];
        struct kvf_wire_welcome welcome = {.region_base = (uintptr_t)b->base + other * 4096, .region_bytes = REGION,
                                           .payload_max = 65536};
        uint8_t payload[KVF_WIRE_WELCOME_BYTES];
        assert_int_equal(kvf_wire_welcome_encode(&welcome, payload), KVF_OK);
        struct kvf_wire_header h = {.type = KVF_WIRE_WELCOME, .position = 1, .payload_bytes = sizeof payload};
        say(b, a, h, payload, sizeof payload);
        settle(w);
        assert_int_equal(kvf_peer_is_up(peer), other == 0);
        assert_int_equal(refused_by(a), other);
        world_free(w);
    }
}

/* A header that no encoder makes, tagged as the peer tags. */
static void a_tagged_frame_that_is_none_ends_the_connection(void **state)
{
    const struct {
        size_t at;
        uint8_t value;
    } wrong[] = {{10, 1}, {6, 20}, {8, 1}, {59, 5}}; /* the zero, the type, a flag, a length of 64 MiB and more */
    for (unsigned i = 0; i < 4; i++) {
        struct kvf_peer *peer;
        struct world *w = pair(KVF_WAY_ASK, &peer);
        struct node *a = &w->node[0], *b = &w->node[1];
        struct kvf_auth *auth = kvf_fabric_peer_find(b->fabric, "a")->auth;
        struct kvf_wire_header h = {.type = 40, .sender = kvf_wire_node_id("b"), .sender_incarnation = 2,
                                    .receiver_incarnation = 1, .counter = ++auth->sent};
        uint8_t frame[KVF_WIRE_HEADER_BYTES];
        kvf_wire_header_encode(&h, frame);
        frame[wrong[i].at] = wrong[i].value;
        sim_net_inject(b->t, a->t, frame, sizeof frame, NULL, 0); /* by a stranger: nothing */
        settle(w);
        assert_true(kvf_peer_is_up(peer));
        kvf_auth_seal(auth, h.type, frame, NULL, 0);
        sim_net_inject(b->t, a->t, frame, sizeof frame, NULL, 0);
        settle(w);
        assert_false(kvf_peer_is_up(peer));
        assert_int_equal(a->down_why, KVF_ERR_PEER_PROTOCOL);
        assert_int_equal(refused_by(a), 2);
        world_free(w);
    }
}

/* ------------------------------------------------------------------------------------------------ SipHash */
static void siphash_is_the_one_of_the_books(void **state)
{
    uint8_t key[16], data[256];
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)i;
    memcpy(key, data, sizeof key);
    assert_true(kvf_siphash(key, data, 8, data + 8, 7) == 0xa129ca6149be45e5ull); /* the example of the paper */
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "SIPHASH", NULL);
    if (!mac)
        return;
    for (size_t n = 0; n < sizeof data; n++) {
        EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(mac);
        size_t eight = 8, got = 0;
        uint8_t tag[8];
        OSSL_PARAM params[] = {{"size", OSSL_PARAM_UNSIGNED_INTEGER, &eight, sizeof eight, 0}, {0}};
        key[n % 16] ^= (uint8_t)(n * 7);
        assert_true(EVP_MAC_init(ctx, key, sizeof key, params) && EVP_MAC_update(ctx, data, n) &&
                    EVP_MAC_final(ctx, tag, &got, sizeof tag));
        size_t head = n / 2 / 8 * 8;
        uint64_t ours = kvf_siphash(key, data, head, data + head, n - head);
        assert_int_equal(got, sizeof ours);
        assert_memory_equal(&ours, tag, sizeof ours);
        EVP_MAC_CTX_free(ctx);
    }
    EVP_MAC_free(mac);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_that_is_changed_is_nobodys),
        cmocka_unit_test(a_proof_names_who_proves_and_to_whom),
        cmocka_unit_test(frames_under_the_session_before_are_taken_for_a_while),
        cmocka_unit_test(every_counter_is_taken_once),
        cmocka_unit_test(frames_may_overtake_each_other),
        cmocka_unit_test(a_peer_that_breaks_the_protocol_is_not_kept),
        cmocka_unit_test(a_welcome_to_another_region_ends_the_connection),
        cmocka_unit_test(a_tagged_frame_that_is_none_ends_the_connection),
        cmocka_unit_test(siphash_is_the_one_of_the_books),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
