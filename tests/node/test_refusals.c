/* What a node does not do for whoever asks: it is asked for each here by a member that proved the secret, in words that are well
 * formed, and nothing changes. */
#include "tests/node/store.h"

#include "base/hash.h"
#include "node/lend.h"
#include "node/move.h"

#define ID 7
#define CHUNKS 8 /* of a block of `engine` */

/* `home` has sessions and borrows, `lender` lends, and takes sessions; `other` has nothing to do with either. */
struct group {
    struct sim_cluster *c;
    struct sim_node *home, *lender, *other;
};

static struct group group_make(uint64_t dram)
{
    struct group g = {.c = sim_cluster_create(SEED)};
    g.home = sim_cluster_add(g.c, &(struct sim_node_config){.name = "home", .dram = dram});
    g.lender = sim_cluster_add(g.c, &(struct sim_node_config){.name = "lender", .dram = 1024 * KIB, .lend = 256 * KIB});
    g.other = sim_cluster_add(g.c, &(struct sim_node_config){.name = "other", .dram = 64 * KIB});
    sim_cluster_connect(g.c);
    return g;
}

static void group_end(struct group *g)
{
    sim_cluster_settle(g->c, KVF_SEC);
    sim_cluster_check(g->c);
    sim_cluster_destroy(g->c);
}

/* An answer. */
struct answer {
    enum kvf_status status;
    uint8_t payload[8192];
    size_t bytes;
};

static void on_answer(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct answer *a = arg;
    a->status = status;
    a->bytes = bytes;
    assert_true(bytes <= sizeof a->payload);
    if (bytes)
        memcpy(a->payload, payload, bytes);
}

/* What `from` says to `to`, over the wire. */
static const struct answer *say(struct sim_node *from, struct sim_node *to, uint16_t type, const void *payload, size_t bytes)
{
    static struct answer a;
    struct sim_cluster *c = from->cluster;
    struct iovec part = {.iov_base = (void *)(uintptr_t)payload, .iov_len = bytes};
    a = (struct answer){.status = KVF_IN_PROGRESS};
    assert_int_equal(kvf_fabric_call(sim_cluster_peer(from, to)->peer, type, &part, 1, c->env.now_ns + 5 * KVF_SEC, on_answer, &a),
                     KVF_OK);
    while (a.status == KVF_IN_PROGRESS)
        sim_cluster_step(c);
    return &a;
}

/* ---------------------------------------------------------------- lending */

static enum kvf_status reserve(struct group *g, struct kvf_key key)
{
    uint8_t bytes[256];
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_wire_reserve(&w, &(struct kvf_reserve_item){.key = key, .bytes = SLOT}, 1);
    return say(g->home, g->lender, KVF_MSG_RESERVE, bytes, kvf_writer_used(&w))->status;
}

/* Four bytes into the slot. */
static enum kvf_status put_four(struct sim_node *from, struct sim_node *lender, struct kvf_key key, uint32_t at, const char *four)
{
    uint8_t bytes[256];
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_wire_put(&w, &(struct kvf_put_item){.key = key, .at = at, .bytes = 4}, 1);
    kvf_write_bytes(&w, four, 4);
    return say(from, lender, KVF_MSG_PUT, bytes, kvf_writer_used(&w))->status;
}

/* Bytes go into a slot while it is reserved by their sender, inside it, and never after it is whole. */
static void only_a_reserved_slot_is_written(void **state)
{
    struct group g = group_make(128 * KIB);
    struct kvf_key key = kvf_block_key(99, 0, 0, 0);
    struct kvf_core *lender = g.lender->core;
    const uint8_t *slot = lender->memory + lender->lent_at;
    uint8_t bytes[1024], before[SLOT];
    uint64_t refused = COUNTED(g.lender, messages_refused);
    assert_int_equal(put_four(g.home, g.lender, key, 0, "free"), KVF_ERR_INVALID);
    assert_int_equal(reserve(&g, key), KVF_OK);
    assert_int_equal(put_four(g.other, g.lender, key, 0, "none"), KVF_ERR_INVALID);
    assert_int_equal(put_four(g.home, g.lender, key, SLOT - 3, "edge"), KVF_ERR_INVALID);
    assert_int_equal(put_four(g.home, g.lender, key, 0, "good"), KVF_OK);
    assert_memory_equal(slot, "good", 4);
    struct kvf_commit_item item = {.key = key, .seed = 5, .offset = lender->lent_at, .bytes = SLOT, .chunk_bytes = SLOT,
                                   .chunks = 1};
    kvf_block_sum(lender->dev, 5, slot, SLOT, SLOT, 1, item.sums);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_wire_commit(&w, &item);
    const struct answer *a = say(g.home, g.lender, KVF_MSG_COMMIT, bytes, kvf_writer_used(&w));
    assert_int_equal(a->status, KVF_OK);
    assert_int_equal(a->payload[2], 0);
    memcpy(before, slot, SLOT);
    assert_int_equal(put_four(g.home, g.lender, key, 0, "late"), KVF_ERR_INVALID);
    assert_int_equal(put_four(g.other, g.lender, key, 0, "none"), KVF_ERR_INVALID);
    assert_memory_equal(slot, before, SLOT);
    assert_int_equal(COUNTED(g.lender, messages_refused), refused + 5);
    group_end(&g);
}

/* A message is read to its end before anything of it is done: a good item with something else behind it changes nothing. */
static void half_a_message_does_nothing(void **state)
{
    struct group g = group_make(128 * KIB);
    struct kvf_key key = kvf_block_key(99, 0, 0, 0), none = kvf_block_key(99, 0, 0, 1);
    struct kvf_core *lender = g.lender->core;
    const uint8_t *slot = lender->memory + lender->lent_at;
    uint8_t bytes[1024];
    assert_int_equal(reserve(&g, key), KVF_OK);
    assert_int_equal(put_four(g.home, g.lender, key, 0, "good"), KVF_OK);
    struct kvf_commit_item item = {.key = key, .seed = 5, .offset = lender->lent_at, .bytes = SLOT, .chunk_bytes = SLOT,
                                   .chunks = 1};
    kvf_block_sum(lender->dev, 5, slot, SLOT, SLOT, 1, item.sums);
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_wire_commit(&w, &item);
    size_t good = kvf_writer_used(&w);
    kvf_write_u64(&w, 4711);
    assert_int_equal(say(g.home, g.lender, KVF_MSG_COMMIT, bytes, kvf_writer_used(&w))->status, KVF_ERR_INVALID);
    assert_int_equal(kvf_index_entry(lender->lend->index, kvf_index_find(lender->lend->index, key))->state, KVF_LENT_RESERVED);

    uint8_t put[256];
    struct kvf_put_item items[] = {{.key = key, .at = 0, .bytes = 4}, {.key = none, .at = 0, .bytes = 4}};
    w = kvf_writer_of(put, sizeof put);
    kvf_wire_put(&w, items, 2);
    kvf_write_bytes(&w, "halfhalf", 8);
    assert_int_equal(say(g.home, g.lender, KVF_MSG_PUT, put, kvf_writer_used(&w))->status, KVF_ERR_INVALID);
    assert_memory_equal(slot, "good", 4);

    const struct answer *a = say(g.home, g.lender, KVF_MSG_COMMIT, bytes, good);
    assert_int_equal(a->status, KVF_OK);
    assert_int_equal(a->payload[2], 0);
    group_end(&g);
}

/* Who reserved and says no more has nothing after half a minute, though etcd still lists him. */
static void a_reservation_ends(void **state)
{
    struct group g = group_make(128 * KIB);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(reserve(&g, kvf_block_key(99, 0, 0, i)), KVF_OK);
    sim_cluster_settle(g.c, 28 * KVF_SEC);
    assert_int_equal(kvf_lend_blocks(g.lender->core), 3);
    sim_cluster_settle(g.c, 12 * KVF_SEC);
    assert_int_equal(kvf_lend_blocks(g.lender->core), 0);
    assert_true(sim_cluster_empty(g.lender));
    assert_true(sim_cluster_peer(g.lender, g.home)->up);
    group_end(&g);
}

/* A block of ours that lies at the lender, or HANDLE_NONE. */
static kvf_handle lent(const struct store *t)
{
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(t->n->core->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(t->n->core->index, h);
        if (e->tier == KVF_TIER_REMOTE && e->state == KVF_BLOCK_READY)
            return h;
    }
    return KVF_HANDLE_NONE;
}

/* A late word about a loan that was given back names another offset: the block that lies elsewhere now stays where it is. */
static void a_loan_is_called_back_at_its_offset_only(void **state)
{
    struct store t = store_make(128 * KIB, 256 * KIB, 2048 * KIB, 16);
    for (uint64_t k = 0; k < 40; k++)
        assert_int_equal(put(&t, k, 1, 6000), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    kvf_handle h = lent(&t);
    assert_true(h != KVF_HANDLE_NONE);
    const struct kvf_entry *e = kvf_index_entry(t.n->core->index, h);
    uint64_t location = kvf_entry_location(e), there = kvf_lend_blocks(t.lender->core);
    struct kvf_place place = {.key = e->key, .location = location + 64 * KIB};
    uint8_t bytes[256];
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_write_u32(&w, 1000);
    kvf_wire_places(&w, &place, 1);
    const struct answer *a = say(t.lender, t.n, KVF_MSG_RECLAIM, bytes, kvf_writer_used(&w));
    assert_int_equal(a->status, KVF_OK);
    assert_int_equal(a->payload[2], 0); /* nothing of ours is there */
    w = kvf_writer_of(bytes, sizeof bytes);
    kvf_wire_places(&w, &place, 1);
    assert_int_equal(say(t.lender, t.n, KVF_MSG_REVOKED, bytes, kvf_writer_used(&w))->status, KVF_OK);
    sim_cluster_settle(t.c, 2 * KVF_SEC);
    assert_int_equal(e->tier, KVF_TIER_REMOTE);
    assert_int_equal(e->state, KVF_BLOCK_READY);
    assert_int_equal(kvf_entry_location(e), location);
    assert_int_equal(kvf_lend_blocks(t.lender->core), there);
    assert_int_equal(COUNTED(t.n, borrowed_blocks_revoked), 0);
    for (uint64_t k = 0; k < 40; k++) {
        assert_range(&t, k, 1, 6000, 0, 6000);
        assert_int_equal(op(&t, KVF_OP_REMOVE, k).status, KVF_OK);
    }
    store_end(&t);
}

/* ---------------------------------------------------------------- reads */

/* The answer to a READ of one block. */
static const struct answer *read_one(struct group *g, struct kvf_key key, uint64_t mask)
{
    uint8_t bytes[256];
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_write_u64(&w, 4711);
    kvf_write_u32(&w, 64 << 10);
    kvf_wire_reads(&w, &(struct kvf_read_item){.key = key, .mask = mask}, 1);
    return say(g->other, g->home, KVF_MSG_READ, bytes, kvf_writer_used(&w));
}

/* Chunks that a block does not have: what lies behind it is nobody's to read. */
static void a_read_beyond_the_block_is_not_answered_with_bytes(void **state)
{
    struct group g = group_make(1024 * KIB);
    struct kvf_session *s = session_on(g.home, ID);
    assert_int_equal(sim_engine_run(engine, s, 200, 50), KVF_OK);
    struct kvf_key key = kvf_block_key(ID, 0, 0, 0);
    kvf_handle h = kvf_index_find(g.home->core->index, key);
    assert_true(h != KVF_HANDLE_NONE);
    const struct kvf_entry *e = kvf_index_entry(g.home->core->index, h);
    assert_int_equal(kvf_entry_chunks(e), CHUNKS);
    assert_int_equal(e->tier, KVF_TIER_DRAM);
    const struct answer *a = read_one(&g, key, (1u << CHUNKS) - 1);
    assert_int_equal(a->status, KVF_OK);
    assert_int_equal(a->bytes, 3 + SLOT);
    assert_int_equal(a->payload[2], 0);
    assert_memory_equal(a->payload + 3, g.home->core->memory + kvf_entry_location(e), SLOT);
    const uint64_t beyond[] = {1u << CHUNKS, 1ull << 63, (2u << CHUNKS) - 1, UINT64_MAX};
    for (unsigned i = 0; i < sizeof beyond / sizeof *beyond; i++) {
        a = read_one(&g, key, beyond[i]);
        assert_int_equal(a->status, KVF_OK);
        assert_int_equal(a->bytes, 3);
        assert_int_equal(a->payload[2], 1);
    }
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    group_end(&g);
}

/* ---------------------------------------------------------------- moves */

/* An offer as the home would make it, of a session that is nowhere. */
static void offer(struct group *g, uint64_t number, uint64_t epoch, uint64_t n_tokens)
{
    static uint8_t bytes[16 * KIB];
    const struct kvf_model *m = sim_engine_model(engine, g->home);
    struct kvf_move_offer o = {.session = ID, .number = number, .epoch = epoch, .fingerprint = m->fingerprint, .desc = m->desc,
                               .n_tokens = n_tokens, .n_lenders = 1};
    snprintf(o.lenders[0].name, sizeof o.lenders[0].name, "home");
    o.lenders[0].incarnation = g->home->core->incarnation;
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_wire_offer(&w, &o);
    assert_int_equal(say(g->home, g->lender, KVF_MSG_MOVE_OFFER, bytes, kvf_writer_used(&w))->status, KVF_OK);
    assert_int_equal(kvf_sess_find(g->lender->core, ID)->state, KVF_SESS_INCOMING);
}

static enum kvf_status commit(struct sim_node *from, struct sim_node *to, uint64_t epoch)
{
    uint8_t bytes[16];
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    kvf_write_u64(&w, ID);
    kvf_write_u64(&w, epoch);
    return say(from, to, KVF_MSG_MOVE_COMMIT, bytes, sizeof bytes)->status;
}

/* The word that a session has moved counts for the very epoch that was offered, and from who offered it. */
static void a_move_is_committed_with_its_own_epoch_only(void **state)
{
    struct group g = group_make(128 * KIB);
    offer(&g, 1, 5, 0); /* a session without tokens is whole with its offer */
    const uint64_t others[] = {4, 6, 0, 1, UINT64_MAX};
    for (unsigned i = 0; i < sizeof others / sizeof *others; i++) {
        assert_int_equal(commit(g.home, g.lender, others[i]), KVF_ERR_STALE);
        assert_int_equal(kvf_sess_find(g.lender->core, ID)->state, KVF_SESS_INCOMING);
    }
    assert_int_equal(commit(g.other, g.lender, 5), KVF_ERR_STALE);
    assert_int_equal(kvf_sess_find(g.lender->core, ID)->state, KVF_SESS_INCOMING);
    assert_int_equal(commit(g.home, g.lender, 5), KVF_OK);
    assert_int_equal(kvf_sess_find(g.lender->core, ID)->state, KVF_SESS_ACTIVE);
    assert_int_equal(kvf_sess_find(g.lender->core, ID)->epoch, 5);
    group_end(&g);
}

/* A piece with tokens, of which a bit may be another than when its hash was made. */
static enum kvf_status send_tokens(struct group *g, uint64_t number, int flipped)
{
    uint8_t rest[4 + 3 * 4], bytes[KVF_PIECE_HEADER + sizeof rest];
    struct kvf_writer w = kvf_writer_of(rest, sizeof rest);
    kvf_write_u32(&w, 3);
    for (uint32_t i = 0; i < 3; i++)
        kvf_write_u32(&w, 100 + i);
    uint64_t hash = kvf_hash(rest, sizeof rest, ID);
    if (flipped >= 0)
        rest[4 + flipped / 8] ^= (uint8_t)(1u << flipped % 8);
    w = kvf_writer_of(bytes, sizeof bytes);
    kvf_write_u64(&w, ID);
    kvf_write_u64(&w, number);
    kvf_write_u64(&w, hash);
    kvf_write_bytes(&w, rest, sizeof rest);
    return say(g->home, g->lender, KVF_MSG_MOVE_TOKENS, bytes, sizeof bytes)->status;
}

static void a_damaged_piece_ends_the_move(void **state)
{
    struct group g = group_make(128 * KIB);
    uint64_t number = 0;
    for (int bit = 0; bit < 3 * 32; bit += 5) {
        offer(&g, ++number, 2, 3);
        assert_int_equal(send_tokens(&g, number, bit), KVF_ERR_CORRUPT);
        assert_null(kvf_sess_find(g.lender->core, ID));
        assert_int_equal(send_tokens(&g, number, -1), KVF_ERR_STATE);
    }
    offer(&g, ++number, 2, 3);
    assert_int_equal(send_tokens(&g, number, -1), KVF_OK);
    assert_int_equal(kvf_sess_find(g.lender->core, ID)->tokens[2], 102);
    group_end(&g);
}

/* Blocks of a session that left wait for its new home, whoever else says that he has them. */
static void only_the_new_home_frees_what_waits_for_it(void **state)
{
    struct group g = group_make(1024 * KIB);
    struct kvf_session *s = session_on(g.home, ID);
    assert_int_equal(sim_engine_run(engine, s, 700, 50), KVF_OK);
    g.c->single = true;
    assert_int_equal(kvf_session_move(s, "lender", 10 * KVF_SEC, NULL), KVF_OK);
    kvf_session_close(s);
    const struct kvf_sess *left = kvf_sess_find(g.home->core, ID);
    assert_non_null(left);
    assert_int_equal(left->state, KVF_SESS_DEPARTED);
    uint64_t blocks = left->departed_left;
    assert_true(blocks > 10);
    for (uint32_t i = 0; i < 700 / 64; i++) {
        struct kvf_key keys[4];
        uint8_t bytes[2 + sizeof keys];
        for (uint32_t k = 0; k < 4; k++)
            keys[k] = kvf_block_key(ID, k / 2, k % 2, i);
        struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
        kvf_wire_keys(&w, keys, 4);
        const struct kvf_message m = {.type = KVF_MSG_FREE, .payload = bytes, .bytes = kvf_writer_used(&w)};
        kvf_move_message(g.home->core, sim_cluster_peer(g.home, g.other), &m);
    }
    left = kvf_sess_find(g.home->core, ID);
    assert_non_null(left);
    assert_int_equal(left->departed_left, blocks);
    g.c->single = false;
    assert_int_equal(kvf_session_attach(&g.lender->node, sim_engine_model(engine, g.lender), ID, 10 * KVF_SEC, &s), KVF_OK);
    assert_int_equal(sim_engine_run(engine, s, 760, 20), KVF_OK);
    assert_same_bits(engine);
    assert_int_equal(COUNTED(g.lender, blocks_lost), 0);
    sim_cluster_settle(g.c, 5 * KVF_SEC);
    assert_null(kvf_sess_find(g.home->core, ID)); /* the new home has said so */
    assert_int_equal(kvf_session_drop(s), KVF_OK);
    group_end(&g);
}

/* ---------------------------------------------------------------- forms */

/* One byte is no message of any type, and bytes behind a message make it none. */
static void what_has_not_its_form_is_refused_and_counted(void **state)
{
    struct group g = group_make(128 * KIB);
    uint8_t bytes[17] = {0};
    for (uint16_t type = KVF_MESSAGE_FIRST; type < KVF_MESSAGE_FIRST + 32; type++) {
        bool known = type <= KVF_MSG_READ_DATA || (type >= KVF_MSG_ATTEND && type <= KVF_MSG_MOVE_ASK);
        uint64_t refused = COUNTED(g.lender, messages_refused);
        assert_int_equal(say(g.home, g.lender, type, bytes, 1)->status, known ? KVF_ERR_INVALID : KVF_ERR_UNSUPPORTED);
        assert_int_equal(COUNTED(g.lender, messages_refused), refused + 1);
    }
    const uint16_t pairs[] = {KVF_MSG_ADOPT, KVF_MSG_MOVE_COMMIT, KVF_MSG_MOVE_ABORT, KVF_MSG_MOVE_ASK};
    for (unsigned i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        assert_int_equal(say(g.home, g.lender, pairs[i], bytes, 17)->status, KVF_ERR_INVALID);
        assert_int_not_equal(say(g.home, g.lender, pairs[i], bytes, 16)->status, KVF_ERR_INVALID);
        assert_int_equal(say(g.home, g.lender, pairs[i], bytes, 15)->status, KVF_ERR_INVALID);
    }
    group_end(&g);
}

/* A RELEASE_ALL that is none releases nothing. */
static void a_release_all_with_a_payload_releases_nothing(void **state)
{
    struct group g = group_make(128 * KIB);
    assert_int_equal(reserve(&g, kvf_block_key(99, 0, 0, 0)), KVF_OK);
    assert_int_equal(say(g.home, g.lender, KVF_MSG_RELEASE_ALL, "x", 1)->status, KVF_ERR_INVALID);
    assert_int_equal(kvf_lend_blocks(g.lender->core), 1);
    assert_int_equal(say(g.home, g.lender, KVF_MSG_RELEASE_ALL, NULL, 0)->status, KVF_OK);
    assert_int_equal(kvf_lend_blocks(g.lender->core), 0);
    group_end(&g);
}

/* Without a number nothing is answered, and nothing done: whatever the type, it is counted. */
static void what_asks_for_no_answer_is_not_carried_out(void **state)
{
    struct group g = group_make(128 * KIB);
    struct kvf_peer *peer = sim_cluster_peer(g.home, g.lender)->peer;
    uint8_t bytes[256];
    struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
    uint64_t refused = COUNTED(g.lender, messages_refused);
    kvf_wire_reserve(&w, &(struct kvf_reserve_item){.key = kvf_block_key(99, 0, 0, 0), .bytes = SLOT}, 1);
    assert_int_equal(kvf_fabric_notify(peer, KVF_MSG_RESERVE, bytes, kvf_writer_used(&w)), KVF_OK);
    for (uint16_t type = KVF_MSG_PUT; type <= KVF_MSG_MOVE_ASK; type++)
        assert_int_equal(kvf_fabric_notify(peer, type, "x", 1), KVF_OK);
    sim_cluster_settle(g.c, 100 * KVF_MS);
    assert_int_equal(COUNTED(g.lender, messages_refused), refused + KVF_MSG_MOVE_ASK - KVF_MSG_RESERVE + 1);
    assert_int_equal(kvf_lend_blocks(g.lender->core), 0);
    group_end(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_a_reserved_slot_is_written),
        cmocka_unit_test(half_a_message_does_nothing),
        cmocka_unit_test(a_reservation_ends),
        cmocka_unit_test(a_loan_is_called_back_at_its_offset_only),
        cmocka_unit_test(a_read_beyond_the_block_is_not_answered_with_bytes),
        cmocka_unit_test(a_move_is_committed_with_its_own_epoch_only),
        cmocka_unit_test(a_damaged_piece_ends_the_move),
        cmocka_unit_test(only_the_new_home_frees_what_waits_for_it),
        cmocka_unit_test(what_has_not_its_form_is_refused_and_counted),
        cmocka_unit_test(a_release_all_with_a_payload_releases_nothing),
        cmocka_unit_test(what_asks_for_no_answer_is_not_carried_out),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
