/* A member that proves the secret and then says anything: messages of every type, in their form or nearly so, about sessions,
 * blocks, loans and moves that are others' or nobody's, in whatever state they are. Meanwhile a session is decoded, spilled and
 * moved: its bits stay what they are, nothing crashes, and in the end every pool is full again. */
#include "tests/node/world.h"

#include "base/hash.h"
#include "node/attend_remote.h"
#include "node/lend.h"
#include "node/move.h"

#define ID 7      /* the honest session */
#define ROUNDS 24
#define TYPES 24  /* of messages, some of which there are not */

/* `a` and `b` have the session in turn and lend; `evil` is a member too. */
struct scene {
    struct sim_cluster *c;
    struct sim_node *a, *b, *evil;
    const struct kvf_model *model;
    uint64_t *said;             /* [TYPES] messages, by type */
    uint64_t answered, refused; /* of them; refused: as no messages */
};

static uint64_t draw(struct scene *x, uint64_t below) { return sim_env_random(&x->c->env, below); }

/* ---------------------------------------------------------------- pieces of messages */

static uint64_t session(struct scene *x) { return ID + draw(x, 4); }

static struct kvf_key key(struct scene *x)
{
    struct kvf_key k = kvf_block_key(session(x), (uint32_t)draw(x, 3), (uint32_t)draw(x, 2), (uint32_t)draw(x, 12));
    if (draw(x, 8) == 0)
        k.hi = draw(x, UINT64_MAX);
    return k;
}

static uint64_t mask(struct scene *x) { return draw(x, 4) ? 1 + draw(x, 255) : 1 + draw(x, UINT64_MAX - 1); }
static unsigned count(struct scene *x) { return 1 + (unsigned)draw(x, draw(x, 4) ? 3 : KVF_BATCH_MAX); }

/* A place in a lent part, or nearly. */
static uint64_t location(struct scene *x, const struct sim_node *of)
{
    return of->core->lent_at + 4096 * draw(x, 40) + (draw(x, 8) ? 0 : draw(x, 4096));
}

static void places(struct scene *x, struct kvf_writer *w, const struct sim_node *of)
{
    struct kvf_place p[KVF_BATCH_MAX];
    unsigned n = count(x);
    for (unsigned i = 0; i < n; i++)
        p[i] = (struct kvf_place){.key = key(x), .location = location(x, of)};
    kvf_wire_places(w, p, n);
}

static void keys(struct scene *x, struct kvf_writer *w)
{
    struct kvf_key k[KVF_BATCH_MAX];
    unsigned n = count(x);
    for (unsigned i = 0; i < n; i++)
        k[i] = key(x);
    kvf_wire_keys(w, k, n);
}

static void noise(struct scene *x, struct kvf_writer *w, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++)
        kvf_write_u8(w, (uint8_t)draw(x, 256));
}

/* ---------------------------------------------------------------- messages */

static void lending(struct scene *x, struct kvf_writer *w, uint16_t type, struct sim_node *to)
{
    struct kvf_reserve_item slots[KVF_BATCH_MAX];
    struct kvf_put_item puts[4];
    unsigned n = count(x);
    uint64_t bytes = 0;
    if (type == KVF_MSG_RESERVE) {
        for (unsigned i = 0; i < n; i++)
            slots[i] = (struct kvf_reserve_item){.key = key(x), .bytes = draw(x, 6) ? SLOT : (uint32_t)draw(x, 100000)};
        kvf_wire_reserve(w, slots, n);
    } else if (type == KVF_MSG_PUT) {
        n = 1 + n % 4;
        for (unsigned i = 0; i < n; i++) {
            puts[i] = (struct kvf_put_item){.key = key(x), .at = (uint32_t)draw(x, 5000), .bytes = 1 + (uint32_t)draw(x, 200)};
            bytes += puts[i].bytes;
        }
        kvf_wire_put(w, puts, n);
        noise(x, w, bytes);
    } else {
        struct kvf_commit_item item = {.key = key(x), .seed = draw(x, 9), .offset = location(x, to), .bytes = SLOT,
                                       .chunk_bytes = SLOT, .chunks = 1};
        if (item.offset + SLOT <= to->core->lent_at + kvf_arena_bytes(to->core->lent)) /* it knows what it put */
            kvf_block_sum(to->core->dev, item.seed, to->core->memory + item.offset, SLOT, SLOT, 1, item.sums);
        kvf_wire_commit(w, &item);
    }
}

static void reading(struct scene *x, struct kvf_writer *w, uint16_t type)
{
    struct kvf_read_item reads[KVF_BATCH_MAX];
    struct kvf_piece_item pieces[4];
    unsigned n = count(x);
    if (type == KVF_MSG_READ) {
        for (unsigned i = 0; i < n; i++)
            reads[i] = (struct kvf_read_item){.key = key(x), .mask = mask(x)};
        kvf_write_u64(w, draw(x, 300));
        kvf_write_u32(w, (uint32_t)draw(x, 1 << 20));
        kvf_wire_reads(w, reads, n);
        return;
    }
    n = 1 + n % 4;
    for (unsigned i = 0; i < n; i++)
        pieces[i] = (struct kvf_piece_item){.item = (uint16_t)draw(x, 8), .mask = mask(x)};
    kvf_wire_pieces(w, draw(x, 300), pieces, n);
    noise(x, w, 512 * draw(x, 8));
}

static void offer(struct scene *x, struct kvf_writer *w)
{
    const struct kvf_model *m = x->model;
    static struct kvf_move_offer o;
    uint64_t tokens = draw(x, 200);
    o = (struct kvf_move_offer){.session = session(x), .number = draw(x, 6), .epoch = draw(x, 4), .fingerprint = m->fingerprint,
                                .desc = m->desc, .n_tokens = tokens, .sealed_blocks = (uint32_t)(tokens / m->desc.block_tokens),
                                .blob_bytes = (uint32_t)draw(x, 100), .n_lenders = 2};
    if (draw(x, 8) == 0)
        o.desc.chunk_tokens = (uint32_t)draw(x, 64);
    snprintf(o.lenders[0].name, sizeof o.lenders[0].name, "evil");
    o.lenders[0].incarnation = x->evil->core->incarnation;
    snprintf(o.lenders[1].name, sizeof o.lenders[1].name, draw(x, 2) ? "a" : "b");
    o.lenders[1].incarnation = (draw(x, 2) ? x->a : x->b)->core->incarnation;
    kvf_wire_offer(w, &o);
}

static void piece(struct scene *x, struct kvf_writer *w, uint16_t type, const struct sim_node *to)
{
    static uint8_t rest[16 * KIB];
    struct kvf_writer r = kvf_writer_of(rest, sizeof rest);
    const struct kvf_one_move *m = kvf_move_find(to->core, session(x)); /* of one that is under way, mostly */
    uint64_t id = m ? m->session : session(x), n = 1 + draw(x, 40);
    if (type == KVF_MSG_MOVE_TOKENS) {
        n = m && m->sess && draw(x, 2) ? m->sess->n_tokens : n;
        kvf_write_u32(&r, (uint32_t)n);
        for (uint64_t i = 0; i < n; i++)
            kvf_write_u32(&r, (uint32_t)i);
    } else if (type == KVF_MSG_MOVE_BLOCKS) {
        for (uint64_t i = 0; i < n; i++) {
            struct kvf_move_block b = {.layer = (uint16_t)draw(x, 2), .head = (uint16_t)draw(x, 2), .index = (uint32_t)draw(x, 4),
                                       .tier = (uint8_t)(draw(x, 3) ? KVF_TIER_REMOTE : KVF_TIER_PEER),
                                       .lender = (uint8_t)draw(x, 3), .location = location(x, to)};
            kvf_wire_block(&r, &b, 8, 0);
        }
    } else {
        kvf_write_u32(&r, (uint32_t)draw(x, 5));
        noise(x, &r, m && m->sess ? kvf_move_tail_bytes(m->sess->model, m->sess->n_tokens) : draw(x, 600));
    }
    kvf_write_u64(w, id);
    kvf_write_u64(w, m ? m->offer.number : draw(x, 6));
    kvf_write_u64(w, kvf_hash(rest, kvf_writer_used(&r), id) + (draw(x, 8) == 0));
    kvf_write_bytes(w, rest, kvf_writer_used(&r));
}

/* Never the epoch of an offer of its own: a member may hand over what it has. */
static void word(struct scene *x, struct kvf_writer *w, uint16_t type)
{
    kvf_write_u64(w, session(x));
    kvf_write_u64(w, type == KVF_MSG_MOVE_COMMIT ? 4 + draw(x, 3) : draw(x, 6));
}

static void question(struct scene *x, struct kvf_writer *w, const struct sim_node *to)
{
    const struct kvf_model *m = x->model;
    struct kvf_attend_shape shape = {.fingerprint = m->fingerprint, .dtype = m->desc.dtype, .chunk_tokens = m->desc.chunk_tokens,
                                     .chunks = m->chunks, .dim_k = m->desc.dim_k, .dim_v = m->desc.dim_v,
                                     .rows = 1 + (uint32_t)draw(x, 8), .scale = 0.25f, .merged = draw(x, 2)};
    uint64_t sums[64] = {draw(x, UINT64_MAX)};
    unsigned n = 1 + (unsigned)draw(x, 8), sets = 1 + (unsigned)draw(x, n);
    kvf_attend_wire_head(w, &shape, n, sets);
    for (unsigned i = 0; i < n; i++) {
        struct kvf_attend_item item = {.key = key(x), .mask = 1 + draw(x, 255), .set = (uint8_t)draw(x, sets),
                                       .offset = draw(x, 2) ? KVF_ATTEND_BY_KEY : location(x, to)};
        kvf_attend_wire_item(w, &shape, &item, sums);
    }
    noise(x, w, (uint64_t)sets * shape.rows * shape.dim_k * sizeof(float));
}

static void compose(struct scene *x, struct kvf_writer *w, uint16_t type, struct sim_node *to)
{
    switch (type) {
    case KVF_MSG_RESERVE:
    case KVF_MSG_PUT:
    case KVF_MSG_COMMIT:
        lending(x, w, type, to);
        return;
    case KVF_MSG_RELEASE:
    case KVF_MSG_FREE:
        keys(x, w);
        return;
    case KVF_MSG_READ:
    case KVF_MSG_READ_DATA:
        reading(x, w, type);
        return;
    case KVF_MSG_MOVE_OFFER:
        offer(x, w);
        return;
    case KVF_MSG_MOVE_TOKENS:
    case KVF_MSG_MOVE_BLOCKS:
    case KVF_MSG_MOVE_TAIL:
        piece(x, w, type, to);
        return;
    case KVF_MSG_ADOPT:
    case KVF_MSG_MOVE_COMMIT:
    case KVF_MSG_MOVE_ABORT:
    case KVF_MSG_MOVE_ASK:
        word(x, w, type);
        return;
    case KVF_MSG_RECLAIM:
        kvf_write_u32(w, (uint32_t)draw(x, 2000));
        places(x, w, x->evil->core->lent ? x->evil : to);
        return;
    case KVF_MSG_REVOKED:
        places(x, w, to);
        return;
    case KVF_MSG_ATTEND:
        question(x, w, to);
        return;
    case KVF_MSG_ATTEND_PROBE:
        kvf_attend_wire_probe(w, (uint32_t)draw(x, 3000), (uint32_t)draw(x, 3000));
        return;
    default: /* RELEASE_ALL, and types that there are none of */
        return;
    }
}

/* ---------------------------------------------------------------- saying them */

static void on_answer(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct scene *x = arg;
    x->answered++;
    x->refused += status == KVF_ERR_INVALID;
}

static void lie(struct scene *x)
{
    static uint8_t payload[48 * KIB];
    struct sim_node *to = draw(x, 2) ? x->a : x->b;
    uint16_t type = (uint16_t)(KVF_MESSAGE_FIRST + draw(x, TYPES));
    const struct kvf_node_peer *p = sim_cluster_peer(x->evil, to);
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    if (!p || !p->up || (type == KVF_MSG_RELEASE_ALL && draw(x, 8)))
        return;
    compose(x, &w, type, to);
    assert_false(w.bad);
    size_t bytes = kvf_writer_used(&w);
    uint64_t kind = draw(x, 12);
    if (kind == 0 && bytes > 0)
        bytes = draw(x, bytes);
    else if (kind == 1 && bytes > 0)
        payload[draw(x, bytes)] ^= (uint8_t)(1u << draw(x, 8));
    else if (kind == 2)
        payload[bytes++] = 0;
    struct iovec part = {.iov_base = payload, .iov_len = bytes};
    enum kvf_status st = kvf_fabric_call(p->peer, type, &part, bytes > 0, x->c->env.now_ns + 300 * KVF_MS, on_answer, x);
    x->said[type - KVF_MESSAGE_FIRST] += st == KVF_OK;
}

static void stepped(struct sim_cluster *c, void *arg)
{
    struct scene *x = arg;
    if (draw(x, 4) == 0) /* the clock goes on in steps in which nothing happens */
        lie(x);
}

/* ---------------------------------------------------------------- the test */

static struct kvf_session *attach(struct sim_node *n)
{
    struct kvf_session *s = NULL;
    assert_int_equal(kvf_session_attach(&n->node, sim_engine_model(engine, n), ID, 10 * KVF_SEC, &s), KVF_OK);
    return s;
}

static void assert_at_rest(struct sim_node *n)
{
    struct kvf_reclaim_stats stats;
    struct kvf_serves_stats serves;
    kvf_reclaim_stats(n->core, &stats);
    kvf_serves_stats(n->core, &serves);
    assert_int_equal(stats.others_bytes, 0);
    assert_int_equal(serves.requests + serves.pieces + serves.bytes + serves.staged_bytes, 0);
    assert_true(kvf_serves_idle(n->core) && kvf_yields_idle(n->core) && kvf_spills_idle(n->core) && kvf_blocks_idle(n->core));
    assert_true(kvf_attend_serves_idle(n->core) && kvf_attend_remotes_idle(n->core));
    assert_int_equal(n->core->moves->active, 0);
    assert_int_equal(n->core->n_sessions, 0);
    assert_true(sim_cluster_empty(n));
}

/* The session goes to the other node, unless the liar is in the way: that may cost a move, and nothing else. */
static void move(struct scene *x, struct kvf_session **s, struct sim_node **home)
{
    struct sim_node *to = *home == x->a ? x->b : x->a;
    enum kvf_status st = kvf_session_move(*s, to == x->a ? "a" : "b", 10 * KVF_SEC, NULL);
    if (st != KVF_OK) {
        assert_true(st == KVF_ERR_BUSY || st == KVF_ERR_STALE || st == KVF_ERR_FULL || st == KVF_ERR_STATE);
        return;
    }
    kvf_session_close(*s);
    *s = attach(to);
    *home = to;
}

static void whatever_a_member_says_bits_and_pools_stay(void **state)
{
    uint64_t said[TYPES] = {0}, answered = 0, refused = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct scene x = {.c = sim_cluster_create(SEED + round), .said = said};
        struct sim_node_config config = {.name = "a", .dram = 112 * KIB, .lend = 320 * KIB, .ssd = 8192 * KIB,
                                         .way = round % 2 ? KVF_WAY_MAPPED : KVF_WAY_ASK};
        x.a = sim_cluster_add(x.c, &config);
        config.name = "b";
        x.b = sim_cluster_add(x.c, &config);
        x.evil = sim_cluster_add(x.c, &(struct sim_node_config){.name = "evil", .dram = 64 * KIB, .no_borrow = true});
        sim_cluster_connect(x.c);
        struct sim_node *home = x.a;
        struct kvf_session *s = session_on(home, ID);
        assert_int_equal(sim_engine_run(engine, s, 400, 50), KVF_OK);
        x.model = sim_engine_model(engine, home);
        x.c->stepped = stepped;
        x.c->stepped_arg = &x;
        for (uint64_t tokens = 450; tokens <= 750; tokens += 50) {
            staging_forget(home);
            assert_int_equal(sim_engine_run(engine, s, tokens, 25), KVF_OK);
            if (tokens % 100 == 0)
                move(&x, &s, &home);
            sim_cluster_settle(x.c, 200 * KVF_MS);
        }
        x.c->stepped = NULL;
        sim_cluster_check(x.c);
        assert_same_bits(engine);
        assert_int_equal(COUNTED(x.a, blocks_lost) + COUNTED(x.b, blocks_lost), 0);
        sim_cluster_kill(x.evil, true);
        sim_cluster_settle(x.c, 45 * KVF_SEC); /* what it reserved, staged and began is over */
        assert_int_equal(kvf_session_drop(s), KVF_OK);
        sim_cluster_settle(x.c, 10 * KVF_SEC);
        sim_cluster_check(x.c);
        assert_at_rest(x.a);
        assert_at_rest(x.b);
        sim_cluster_destroy(x.c);
        answered += x.answered;
        refused += x.refused;
    }
    for (unsigned type = 0; type < TYPES; type++)
        assert_true(said[type] > 0);
    print_message("%llu lies answered, %llu of them as no messages\n", (unsigned long long)answered, (unsigned long long)refused);
    assert_true(refused > 0 && answered > 4 * refused); /* most were understood */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whatever_a_member_says_bits_and_pools_stay),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
