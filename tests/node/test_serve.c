/* Reads by key at another node: they come in pieces, whose memory is bounded; nobody waits long behind somebody's large ones; and
 * who gives up, dies or sends what was not asked for costs nobody else anything. */
#include "tests/node/store.h"

#include "node/wire.h"

#define LARGE (512 * KIB)
#define SMALL (8 * KIB)
#define LARGES 12
#define SMALLS 8
#define READERS 3

struct hall {
    struct sim_cluster *c;
    struct sim_node *owner, *reader[READERS];
    struct kvf_queue *q;
};

/* Reads of one block, as a session's new home does them. */
struct read {
    enum kvf_status status;
    uint8_t *data;
    size_t bytes;
    uint64_t key, end_ns, order;
};
static uint64_t ended;      /* reads so far */
static size_t reader_frame; /* what hall_make gives readers for their messages; 0: as owners */

static size_t bytes_at(uint64_t key)
{
    return key < 100 ? LARGE : SMALL;
}

static struct hall hall_make(uint64_t dram)
{
    struct hall t = {.c = sim_cluster_create(SEED)};
    t.owner = sim_cluster_add(t.c, &(struct sim_node_config){.name = "owner", .dram = dram, .ssd = 32 << 20, .staging = 4 << 20,
                                                             .block_max = LARGE});
    static const char *const names[READERS] = {"r0", "r1", "r2"};
    for (unsigned i = 0; i < READERS; i++)
        t.reader[i] = sim_cluster_add(
            t.c, &(struct sim_node_config){.name = names[i], .dram = 1 << 20, .staging = 1 << 20, .block_max = LARGE,
                                           .frame = reader_frame});
    sim_cluster_connect(t.c);
    assert_int_equal(kvf_queue_create(&t.owner->node, 16, &t.q), KVF_OK);
    struct store s = {.c = t.c, .n = t.owner, .q = t.q};
    for (uint64_t k = 0; k < SMALLS; k++)
        assert_int_equal(put(&s, 100 + k, 1, SMALL), KVF_OK);
    for (uint64_t k = 0; k < LARGES; k++)
        assert_int_equal(put(&s, k, 1, LARGE), KVF_OK);
    sim_cluster_settle(t.c, KVF_SEC);
    ended = 0;
    return t;
}

static void hall_end(struct hall *t)
{
    struct store s = {.c = t->c, .n = t->owner, .q = t->q};
    struct kvf_serves_stats stats;
    sim_cluster_settle(t->c, 2 * KVF_SEC);
    kvf_serves_stats(t->owner->core, &stats);
    assert_int_equal(stats.requests + stats.pieces + stats.bytes + stats.staged_bytes, 0);
    for (uint64_t k = 0; k < LARGES; k++)
        assert_int_equal(op(&s, KVF_OP_REMOVE, k).status, KVF_OK); /* nothing of them is pinned any more */
    for (uint64_t k = 0; k < SMALLS; k++)
        assert_int_equal(op(&s, KVF_OP_REMOVE, 100 + k).status, KVF_OK);
    kvf_queue_destroy(t->q);
    sim_cluster_settle(t->c, KVF_SEC);
    sim_cluster_check(t->c);
    assert_true(sim_cluster_empty(t->owner));
    sim_cluster_destroy(t->c);
}

static kvf_handle owner_entry(struct hall *t, uint64_t key)
{
    struct kvf_key k = key_at(key);
    k.hi |= KVF_OPAQUE_BIT;
    kvf_handle h = kvf_index_find(t->owner->core->index, k);
    if (h == KVF_HANDLE_NONE)
        h = kvf_index_find(t->owner->core->index, key_at(key));
    assert_true(h != KVF_HANDLE_NONE);
    return h;
}

/* The reader knows the block as one that lies at the owner. */
static kvf_handle known(struct hall *t, struct sim_node *reader, uint64_t key)
{
    struct kvf_core *core = reader->core;
    const struct kvf_entry *from = kvf_index_entry(t->owner->core->index, owner_entry(t, key));
    kvf_handle h = kvf_index_find(core->index, from->key);
    if (h != KVF_HANDLE_NONE)
        return h;
    assert_int_equal(kvf_index_add(core->index, from->key, &h), KVF_OK);
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    e->sums = kvf_sums_alloc(core->sums, kvf_entry_chunks(from));
    e->bytes = from->bytes;
    kvf_entry_set_shape(e, KVF_ENTRY_OPAQUE, kvf_entry_chunks(from));
    memcpy(kvf_sums_at(core->sums, e->sums), kvf_sums_at(t->owner->core->sums, from->sums), 8 * kvf_entry_chunks(from));
    kvf_block_place(core, h, KVF_TIER_PEER, sim_cluster_peer(reader, t->owner)->number, 0);
    return h;
}

static void on_read(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct read *r = arg;
    r->status = status;
    r->end_ns = kvf_now(read->core->env);
    r->order = ++ended;
}

static struct read *read_begin(struct hall *t, struct sim_node *reader, uint64_t key, uint64_t mask, uint64_t timeout_ns)
{
    struct read *r = calloc(1, sizeof *r);
    kvf_handle h = known(t, reader, key);
    const struct kvf_entry *e = kvf_index_entry(reader->core->index, h);
    r->status = KVF_IN_PROGRESS;
    r->bytes = bytes_at(key);
    r->data = calloc(1, r->bytes);
    r->key = key;
    mask &= kvf_entry_chunks(e) == 64 ? UINT64_MAX : (1ull << kvf_entry_chunks(e)) - 1;
    assert_int_equal(kvf_read_start(reader->core, h, mask, r->data, t->c->env.now_ns + timeout_ns, KVF_PRIORITY_DEMAND, on_read, r,
                                    NULL),
                     KVF_OK);
    return r;
}

static void read_free(struct read *r)
{
    free(r->data);
    free(r);
}

/* The chunks of the mask are the block's, and nothing was written beside them. */
static void assert_chunks(const struct read *r, uint64_t mask)
{
    uint8_t *want = malloc(r->bytes);
    uint32_t chunk = kvf_block_opaque_chunk_bytes((uint32_t)r->bytes);
    bytes_of(r->key, 1, want, r->bytes);
    for (size_t at = 0; at < r->bytes; at++)
        if (!(mask >> (at / chunk) & 1))
            want[at] = 0;
    assert_memory_equal(r->data, want, r->bytes);
    free(want);
}

static enum kvf_status wait_for(struct hall *t, const struct read *r)
{
    for (unsigned i = 0; i < 200000 && r->status == KVF_IN_PROGRESS; i++)
        sim_cluster_step(t->c);
    return r->status;
}

static unsigned on_ssd(struct hall *t)
{
    unsigned n = 0;
    for (uint64_t k = 0; k < LARGES; k++)
        n += kvf_index_entry(t->owner->core->index, owner_entry(t, k))->tier == KVF_TIER_SSD;
    return n;
}

/* ---------------------------------------------------------------- pieces */

static uint64_t most_staged, most_bytes;

static void watch(struct sim_cluster *c, void *arg)
{
    struct hall *t = arg;
    struct kvf_serves_stats s;
    kvf_serves_stats(t->owner->core, &s);
    most_staged = s.staged_bytes > most_staged ? s.staged_bytes : most_staged;
    most_bytes = s.bytes > most_bytes ? s.bytes : most_bytes;
}

static void large_blocks_come_in_pieces(void **state)
{
    struct hall t = hall_make(2 << 20);
    struct read *reads[LARGES];
    assert_true(on_ssd(&t) >= 8 && on_ssd(&t) < LARGES); /* of both kinds */
    t.c->stepped = watch;
    t.c->stepped_arg = &t;
    most_staged = most_bytes = 0;
    for (unsigned i = 0; i < LARGES; i++)
        reads[i] = read_begin(&t, t.reader[0], i, UINT64_MAX, 10 * KVF_SEC);
    for (unsigned i = 0; i < LARGES; i++) {
        assert_int_equal(wait_for(&t, reads[i]), KVF_OK);
        assert_chunks(reads[i], UINT64_MAX);
        read_free(reads[i]);
    }
    t.c->stepped = NULL;
    assert_true(most_staged > 64 * KIB && most_staged <= 2 << 20); /* never all that was asked for */
    assert_true(most_bytes < 3 << 20);
    assert_int_equal(COUNTED(t.owner, requests_given_up), 0);
    assert_int_equal(COUNTED(t.reader[0], messages_refused), 0);
    hall_end(&t);
}

/* The pieces are as large as the asker's messages, where those are the smaller ones. */
static void whoever_takes_smaller_messages_gets_smaller_pieces(void **state)
{
    reader_frame = 12 * KIB;
    struct hall t = hall_make(2 << 20);
    reader_frame = 0;
    for (unsigned i = 0; i < LARGES; i++) {
        struct read *r = read_begin(&t, t.reader[0], i, UINT64_MAX, 10 * KVF_SEC);
        assert_int_equal(wait_for(&t, r), KVF_OK);
        assert_chunks(r, UINT64_MAX);
        read_free(r);
    }
    assert_int_equal(COUNTED(t.owner, requests_given_up), 0);
    hall_end(&t);
}

static void any_chunks_come_and_no_others(void **state)
{
    struct hall t = hall_make(2 << 20);
    for (unsigned round = 0; round < 40; round++) {
        uint64_t mask = sim_env_random(&t.c->env, UINT64_MAX), key = sim_env_random(&t.c->env, LARGES);
        if (round % 4 == 1)
            mask &= sim_env_random(&t.c->env, UINT64_MAX) & sim_env_random(&t.c->env, UINT64_MAX);
        if (round % 4 == 2)
            mask = 0x5555555555555555ull << (round / 4 % 2);
        mask |= 1ull << sim_env_random(&t.c->env, 64);
        struct read *r = read_begin(&t, t.reader[0], key, mask, 10 * KVF_SEC);
        assert_int_equal(wait_for(&t, r), KVF_OK);
        assert_chunks(r, mask);
        read_free(r);
    }
    hall_end(&t);
}

/* Chunks of 8 KiB that have arrived. */
static unsigned arrived(const struct read *r)
{
    static const uint8_t nothing[8192];
    unsigned n = 0;
    for (size_t at = 0; at < r->bytes; at += sizeof nothing)
        n += memcmp(r->data + at, nothing, sizeof nothing) != 0;
    return n;
}

/* The first pieces are there before the disk has read the last; and no more are on their way than the asker's window allows. */
static void a_piece_is_sent_when_its_read_has_ended(void **state)
{
    struct hall t = hall_make(2 << 20);
    t.reader[0]->core->settings.fabric_inflight = 512 * KIB; /* a window of 64 KiB */
    sim_disk_hold(t.owner->disk, true);
    struct read *r = read_begin(&t, t.reader[0], 0, UINT64_MAX, 60 * KVF_SEC);
    assert_int_equal(kvf_index_entry(t.owner->core->index, owner_entry(&t, 0))->tier, KVF_TIER_SSD);
    unsigned before = 0;
    t.c->stepped = watch;
    t.c->stepped_arg = &t;
    most_bytes = 0;
    for (unsigned round = 0; r->status == KVF_IN_PROGRESS; round++) {
        assert_true(round < 20);
        for (unsigned i = 0; i < 60; i++)
            sim_cluster_step(t.c);
        assert_true(arrived(r) <= before + 16);
        assert_true(r->status != KVF_IN_PROGRESS || round == 0 || arrived(r) > before);
        before = arrived(r);
        sim_disk_release_all(t.owner->disk);
    }
    t.c->stepped = NULL;
    assert_true(most_bytes <= 128 * KIB);
    sim_disk_hold(t.owner->disk, false);
    sim_disk_release_all(t.owner->disk);
    assert_int_equal(wait_for(&t, r), KVF_OK);
    assert_chunks(r, UINT64_MAX);
    read_free(r);
    hall_end(&t);
}

/* ---------------------------------------------------------------- whose turn it is */

static void a_small_read_does_not_wait_behind_large_ones(void **state)
{
    struct hall t = hall_make(2 << 20);
    struct read *larges[LARGES];
    sim_disk_slow(t.owner->disk, 8);
    for (unsigned same = 0; same < 2; same++) { /* at another node, and at the same */
        for (unsigned i = 0; i < LARGES; i++)
            larges[i] = read_begin(&t, t.reader[0], i, UINT64_MAX, 60 * KVF_SEC);
        for (unsigned i = 0; i < 30; i++)
            sim_cluster_step(t.c);
        struct read *small = read_begin(&t, t.reader[same ? 0 : 1], 100, UINT64_MAX, 60 * KVF_SEC);
        assert_int_equal(wait_for(&t, small), KVF_OK);
        assert_chunks(small, UINT64_MAX);
        assert_true(small->order <= ended && ended <= (same + 1) * (LARGES + 1));
        unsigned before = 0;
        for (unsigned i = 0; i < LARGES; i++)
            before += larges[i]->status != KVF_IN_PROGRESS;
        assert_true(before <= 4);
        read_free(small);
        for (unsigned i = 0; i < LARGES; i++) {
            assert_int_equal(wait_for(&t, larges[i]), KVF_OK);
            read_free(larges[i]);
        }
    }
    hall_end(&t);
}

/* One asks for everything first; the others are served at the same pace all the same. */
static void several_readers_share(void **state)
{
    struct hall t = hall_make(2 << 20);
    struct read *reads[READERS][LARGES];
    unsigned left = LARGES;
    sim_disk_slow(t.owner->disk, 8);
    for (unsigned n = 0; n < READERS; n++) {
        for (unsigned i = 0; i < LARGES; i++)
            reads[n][i] = read_begin(&t, t.reader[n], i, UINT64_MAX, 60 * KVF_SEC);
        for (unsigned i = 0; n == 0 && i < 4; i++)
            sim_cluster_step(t.c);
    }
    while (left > 0) {
        sim_cluster_step(t.c);
        left = 0;
        for (unsigned i = 0; i < LARGES; i++)
            left += reads[0][i]->status == KVF_IN_PROGRESS;
    }
    for (unsigned n = 1; n < READERS; n++) {
        unsigned chunks = 0;
        for (unsigned i = 0; i < LARGES; i++)
            chunks += arrived(reads[n][i]);
        assert_true(chunks >= LARGES * 64 * 8 / 10);
    }
    for (unsigned n = 0; n < READERS; n++) {
        for (unsigned i = 0; i < LARGES; i++) {
            assert_int_equal(wait_for(&t, reads[n][i]), KVF_OK);
            assert_chunks(reads[n][i], UINT64_MAX);
            read_free(reads[n][i]);
        }
    }
    hall_end(&t);
}

/* ---------------------------------------------------------------- giving up, dying, nonsense */

static void who_gives_up_costs_nothing_more(void **state)
{
    struct hall t = hall_make(2 << 20);
    struct read *reads[LARGES];
    sim_disk_hold(t.owner->disk, true);
    for (unsigned i = 0; i < LARGES; i++)
        reads[i] = read_begin(&t, t.reader[0], i, UINT64_MAX, 20 * KVF_MS);
    for (unsigned i = 0; i < LARGES; i++) {
        enum kvf_status st = wait_for(&t, reads[i]);
        assert_true(st == KVF_OK || st == KVF_ERR_DEADLINE);
        if (st == KVF_OK)
            assert_chunks(reads[i], UINT64_MAX);
        else
            memset(reads[i]->data, 0xee, reads[i]->bytes); /* it is the caller's again */
    }
    uint64_t disk = sim_disk_reads(t.owner->disk);
    sim_disk_hold(t.owner->disk, false);
    sim_disk_release_all(t.owner->disk);
    sim_cluster_settle(t.c, 3 * KVF_SEC);
    assert_true(COUNTED(t.owner, requests_given_up) > 0);
    assert_true(sim_disk_reads(t.owner->disk) < disk + 20);
    for (unsigned i = 0; i < LARGES; i++) {
        for (size_t at = 0; reads[i]->status != KVF_OK && at < reads[i]->bytes; at++)
            assert_int_equal(reads[i]->data[at], 0xee);
        read_free(reads[i]);
    }
    hall_end(&t);
}

static void somebody_dies_in_the_middle(void **state)
{
    for (unsigned at = 0; at < 40; at += 4) {
        struct hall t = hall_make(2 << 20);
        struct read *reads[LARGES];
        bool owner = at % 8 == 0;
        t.c->single = true;
        for (unsigned i = 0; i < LARGES; i++)
            reads[i] = read_begin(&t, t.reader[0], i, UINT64_MAX, 5 * KVF_SEC);
        for (uint64_t until = t.c->delivered + at; t.c->delivered < until;)
            sim_cluster_step(t.c);
        t.c->single = false;
        sim_cluster_kill(owner ? t.owner : t.reader[0], at % 3 != 0);
        for (unsigned i = 0; owner && i < LARGES; i++) {
            enum kvf_status st = wait_for(&t, reads[i]);
            assert_true(st == KVF_OK || st == KVF_LOST || st == KVF_ERR_DEADLINE);
            if (st == KVF_OK)
                assert_chunks(reads[i], UINT64_MAX);
        }
        sim_cluster_settle(t.c, 12 * KVF_SEC);
        if (owner) {
            kvf_queue_destroy(t.q);
            sim_cluster_destroy(t.c);
        } else {
            hall_end(&t); /* all its memory is free */
        }
        for (unsigned i = 0; i < LARGES; i++)
            read_free(reads[i]);
    }
}

static void on_answer(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    *(enum kvf_status *)arg = status;
}

/* What somebody sends to the first reader, and what it says to that. */
static enum kvf_status send_data_from(struct sim_node *from, struct hall *t, uint64_t id, struct kvf_piece_item item, size_t bytes)
{
    static uint8_t payload[64 << 10];
    enum kvf_status st = KVF_IN_PROGRESS;
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_pieces(&w, id, &item, 1);
    struct iovec part = {.iov_base = payload, .iov_len = kvf_writer_used(&w) + bytes};
    assert_int_equal(kvf_fabric_call(sim_cluster_peer(from, t->reader[0])->peer, KVF_MSG_READ_DATA, &part, 1,
                                     t->c->env.now_ns + 5 * KVF_SEC, on_answer, &st),
                     KVF_OK);
    while (st == KVF_IN_PROGRESS)
        sim_cluster_step(t->c);
    return st;
}

static enum kvf_status send_data(struct hall *t, uint64_t id, struct kvf_piece_item item, size_t bytes)
{
    return send_data_from(t->owner, t, id, item, bytes);
}

static void what_was_not_asked_for_is_refused(void **state)
{
    struct hall t = hall_make(2 << 20);
    assert_int_equal(send_data(&t, 1234, (struct kvf_piece_item){.mask = 1}, 8192), KVF_ERR_STALE);
    assert_int_equal(send_data(&t, 0, (struct kvf_piece_item){.mask = 1}, 8192), KVF_ERR_STALE);
    sim_disk_hold(t.owner->disk, true);
    struct read *r = read_begin(&t, t.reader[0], 0, 0xff, 60 * KVF_SEC);
    while (sim_disk_pending(t.owner->disk) == 0)
        sim_cluster_step(t.c);
    uint64_t id = 0; /* of the one READ that is open: the first of 64 times any batch */
    for (uint64_t i = 64; i < 128 && !id; i++)
        id = send_data(&t, i, (struct kvf_piece_item){.item = 1, .mask = 1}, 8192) == KVF_ERR_STALE ? 0 : i;
    assert_true(id > 0);
    uint64_t refused = COUNTED(t.reader[0], messages_refused);
    assert_int_equal(send_data(&t, id, (struct kvf_piece_item){.mask = 0x100}, 8192), KVF_ERR_INVALID); /* another chunk */
    assert_int_equal(send_data(&t, id, (struct kvf_piece_item){.mask = 3}, 8192), KVF_ERR_INVALID);     /* too few bytes */
    assert_int_equal(send_data(&t, id, (struct kvf_piece_item){.mask = 1}, 8193), KVF_ERR_INVALID);     /* too many */
    assert_int_equal(send_data(&t, id, (struct kvf_piece_item){.item = 64, .mask = 1}, 8192), KVF_ERR_INVALID);
    assert_int_equal(COUNTED(t.reader[0], messages_refused), refused + 4);
    /* Of somebody else, who knows the number: it is no answer to what the owner was asked. */
    assert_int_equal(send_data_from(t.reader[1], &t, id, (struct kvf_piece_item){.mask = 1}, 8192), KVF_ERR_STALE);
    assert_int_equal(r->status, KVF_IN_PROGRESS);
    for (size_t at = 0; at < r->bytes; at++)
        assert_int_equal(r->data[at], 0);
    struct read *twice = read_begin(&t, t.reader[0], 1, 0xff, 60 * KVF_SEC); /* the next READ, of another batch or the same */
    for (unsigned i = 0; i < 30; i++)
        sim_cluster_step(t.c);
    uint64_t other = 0;
    for (uint64_t i = 128; i < 192 && !other; i++)
        other = send_data(&t, i, (struct kvf_piece_item){.mask = 1}, 8192) == KVF_OK ? i : 0;
    assert_true(other > 0);
    assert_int_equal(send_data(&t, other, (struct kvf_piece_item){.mask = 1}, 8192), KVF_ERR_INVALID); /* it is here */
    sim_disk_hold(t.owner->disk, false);
    sim_disk_release_all(t.owner->disk);
    assert_int_equal(wait_for(&t, r), KVF_OK);
    assert_chunks(r, 0xff);
    assert_int_equal(wait_for(&t, twice), KVF_LOST); /* the owner's own piece was refused */
    read_free(twice);
    read_free(r);
    hall_end(&t);
}

/* READs of a large block, as a reader's words. */
static void ask(struct hall *t, struct sim_node *reader, unsigned n)
{
    uint8_t bytes[256];
    const struct kvf_entry *e = kvf_index_entry(t->owner->core->index, owner_entry(t, 0));
    for (unsigned i = 0; i < n; i++) {
        struct kvf_writer w = kvf_writer_of(bytes, sizeof bytes);
        kvf_write_u64(&w, 1000 + i);
        kvf_write_u32(&w, 1 << 20);
        kvf_wire_reads(&w, &(struct kvf_read_item){.key = e->key, .mask = 1}, 1);
        const struct kvf_message m = {.type = KVF_MSG_READ, .request = 1ull << 40 | i, .payload = bytes,
                                      .bytes = kvf_writer_used(&w), .deadline_ns = t->c->env.now_ns + KVF_SEC};
        kvf_serve_message(t->owner->core, sim_cluster_peer(t->owner, reader), &m);
    }
}

/* Who asks for very much fills his own share alone. */
static void one_reader_does_not_take_all_places(void **state)
{
    struct hall t = hall_make(2 << 20);
    struct kvf_serves_stats stats;
    sim_disk_hold(t.owner->disk, true);
    ask(&t, t.reader[0], 40);
    kvf_serves_stats(t.owner->core, &stats);
    assert_int_equal(stats.requests, 32);
    ask(&t, t.reader[1], 31);
    kvf_serves_stats(t.owner->core, &stats);
    assert_int_equal(stats.requests, 32 + 31);
    ask(&t, t.reader[2], 33);
    kvf_serves_stats(t.owner->core, &stats);
    assert_int_equal(stats.requests, 32 + 31 + 32);
    sim_disk_hold(t.owner->disk, false);
    sim_disk_release_all(t.owner->disk);
    hall_end(&t);
}

static void a_failed_read_at_the_owner_is_a_miss(void **state)
{
    struct hall t = hall_make(2 << 20);
    sim_disk_fail(t.owner->disk, false, SIM_FAULT_IO, 0, 1000);
    struct read *r = read_begin(&t, t.reader[0], 0, UINT64_MAX, 10 * KVF_SEC), *other;
    assert_int_equal(wait_for(&t, r), KVF_LOST);
    sim_disk_fail(t.owner->disk, false, SIM_FAULT_NONE, 0, 0);
    other = read_begin(&t, t.reader[0], 1, UINT64_MAX, 10 * KVF_SEC);
    assert_int_equal(wait_for(&t, other), KVF_OK);
    assert_chunks(other, UINT64_MAX);
    read_free(r);
    read_free(other);
    hall_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(large_blocks_come_in_pieces),
        cmocka_unit_test(whoever_takes_smaller_messages_gets_smaller_pieces),
        cmocka_unit_test(any_chunks_come_and_no_others),
        cmocka_unit_test(a_piece_is_sent_when_its_read_has_ended),
        cmocka_unit_test(a_small_read_does_not_wait_behind_large_ones),
        cmocka_unit_test(several_readers_share),
        cmocka_unit_test(who_gives_up_costs_nothing_more),
        cmocka_unit_test(somebody_dies_in_the_middle),
        cmocka_unit_test(what_was_not_asked_for_is_refused),
        cmocka_unit_test(one_reader_does_not_take_all_places),
        cmocka_unit_test(a_failed_read_at_the_owner_is_a_miss),
    };
    return cmocka_run_group_tests(tests, engine_make, engine_free);
}
