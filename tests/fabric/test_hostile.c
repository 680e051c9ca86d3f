/* A member that proves the secret and then says anything: every frame is tagged as it should be, and hardly any is right. What was
 * asked of it ends all the same, once and in time, and nothing is written but where it was asked for. */
#include "tests/fabric/world.h"

#define ROUNDS 60
#define PULLS 12u
#define RANGES 3u
#define BYTES (8u << 10)  /* of a range */
#define GUARD 64u         /* behind each */
#define DEADLINE (200 * KVF_MS)

struct asked {
    struct result result;
    uint8_t to[RANGES][BYTES + GUARD];
    bool begun, cancelled;
};

static struct asked asked[PULLS];

static uint64_t draw(struct world *w, uint64_t below) { return sim_env_random(&w->env, below); }

/* Of something that a waits for, or waited for, or of nothing. */
static uint64_t number(struct world *w, const struct kvf_peer *a_to_b)
{
    unsigned i = (unsigned)draw(w, draw(w, 4) ? 3 : KVF_ASKS_MAX);
    uint32_t generation = a_to_b->asks_table[i].generation - (draw(w, 8) == 0);
    return draw(w, 16) == 0 ? 1 + draw(w, 1000) : (uint64_t)generation << 32 | (i + 1);
}

static uint64_t position(struct world *w)
{
    uint64_t kind = draw(w, 8);
    return kind == 0 ? UINT64_MAX - draw(w, 5000) : kind < 5 ? 1024 * draw(w, 100) : draw(w, PULLS * RANGES * BYTES);
}

static size_t pull(struct world *w, uint8_t *payload)
{
    struct kvf_wire_pull pull = {.n = 1 + (unsigned)draw(w, 6), .frame_pages = (uint16_t)draw(w, 65536)};
    size_t bytes = KVF_WIRE_PULL_BYTES_MAX;
    for (unsigned i = 0; i < pull.n; i++)
        pull.ranges[i] = (struct kvf_wire_range){.offset = draw(w, REGION - 2000), .bytes = 1 + (uint32_t)draw(w, 3000)};
    assert_int_equal(kvf_wire_pull_encode(&pull, payload, &bytes), KVF_OK);
    if (draw(w, 60) == 0)
        payload[draw(w, bytes)] ^= (uint8_t)(1 + draw(w, 255)); /* malformed, perhaps: that ends it */
    return bytes;
}

static void lie(struct world *w, struct node *a, struct node *b, const struct kvf_peer *a_to_b)
{
    static uint8_t payload[BYTES];
    struct kvf_wire_header h = {.type = KVF_WIRE_PULL_DATA, .request = number(w, a_to_b), .position = position(w)};
    uint64_t kind = draw(w, 100);
    size_t bytes = 1 + draw(w, draw(w, 2) ? 64 : sizeof payload - 1);
    if (kind < 3) {
        h.status = (int32_t)draw(w, 2001) - 1000;
        bytes = h.status ? 0 : bytes;
    } else if (kind < 40) {
        h.type = KVF_WIRE_PULL;
        h.request = 1 + draw(w, UINT64_MAX - 1);
        h.budget_us = (uint32_t)draw(w, 3) * 20000;
        bytes = pull(w, payload);
    } else if (kind < 42) {
        h = (struct kvf_wire_header){.type = KVF_WIRE_HEARTBEAT, .position = draw(w, 2)};
        bytes = 0;
    } else if (kind < 44) {
        h = (struct kvf_wire_header){.type = KVF_WIRE_REPLY, .request = h.request};
    }
    h.payload_bytes = (uint32_t)bytes;
    say(b, a, h, payload, bytes);
}

static void ask(struct world *w, struct kvf_peer *peer, struct asked *p)
{
    struct kvf_pull_range ranges[RANGES];
    unsigned n = 1 + (unsigned)draw(w, RANGES);
    memset(p, 0, sizeof *p);
    for (unsigned i = 0; i < RANGES; i++) {
        uint32_t bytes = i < n ? 1 + (uint32_t)draw(w, BYTES) : 0;
        memset(p->to[i] + bytes, 0xcc, sizeof p->to[i] - bytes);
        ranges[i] = (struct kvf_pull_range){.offset = draw(w, REGION - BYTES), .bytes = bytes, .to = p->to[i]};
    }
    uint64_t deadline_ns = w->env.now_ns + DEADLINE / 2 + draw(w, DEADLINE / 2);
    p->begun = kvf_fabric_pull(peer, ranges, n, deadline_ns, on_done, &p->result) == KVF_OK;
}

static void check(const struct asked *p)
{
    for (unsigned i = 0; i < RANGES; i++)
        for (unsigned k = BYTES; k < BYTES + GUARD; k++)
            assert_int_equal(p->to[i][k], 0xcc);
    assert_int_equal(p->result.count, p->begun && !p->cancelled);
}

/* That b has a session with a still. */
static bool speaks(const struct node *b, const struct node *a)
{
    const struct kvf_peer *peer = kvf_fabric_peer_find(b->fabric, a->name);
    return peer && kvf_peer_is_up(peer);
}

static void whatever_a_member_says_pulls_end_in_time(void **state)
{
    uint64_t oks = 0, others = 0, up = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct world *w = world_new();
        sim_env_init(&w->env, SEED + round);
        w->inflight = 5000 + draw(w, 2) * (1 << 20);
        struct node *a = add_node(w, "a", 1, KVF_WAY_ASK), *b = add_node(w, "b", 2, KVF_WAY_ASK);
        struct kvf_peer *peer = meet(a, b);
        settle(w);
        sim_net_path(a->t, b->t)->held = round % 2; /* then nothing is answered: it is all lies */
        for (unsigned i = 0; i < PULLS; i++)
            ask(w, peer, &asked[i]);
        for (unsigned n = 0; n < 200 && kvf_peer_is_up(peer) && speaks(b, a); n++) {
            lie(w, a, b, peer);
            for (uint64_t steps = draw(w, 4); steps > 0; steps--)
                sim_net_step(w->net);
            kvf_fabric_poll(draw(w, 2) ? a->fabric : b->fabric);
            struct asked *p = &asked[draw(w, PULLS)];
            if (draw(w, 30) == 0 && p->begun && !p->cancelled)
                p->cancelled = kvf_fabric_cancel(peer, &p->result);
            if (n % 20 == 0)
                sim_env_advance(&w->env, KVF_MS);
        }
        run_for(w, DEADLINE);
        for (unsigned i = 0; i < PULLS; i++) {
            check(&asked[i]);
            oks += asked[i].result.oks;
            others += asked[i].result.count - asked[i].result.oks;
        }
        struct kvf_peer_about about;
        kvf_peer_about(peer, &about);
        assert_int_equal(about.inflight_bytes, 0);
        up += kvf_peer_is_up(peer);
        world_free(w);
    }
    assert_true(oks > ROUNDS && others > ROUNDS && up > ROUNDS / 2 && up < ROUNDS); /* all of it was tried */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whatever_a_member_says_pulls_end_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
