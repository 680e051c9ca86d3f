/* A session on its way out: the old home's side of a move.
 * The session is FROZEN from the start until the outcome is known, so nothing is appended to what was handed over. Until etcd has
 * changed the placement every failure leaves it here, active; after that it lives at the target whatever becomes of us. */
#include "base/hash.h"
#include "node/dram.h"
#include "node/move.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CALL_TIMEOUT_NS (5 * KVF_SEC)
#define RETRY_NS (200 * KVF_MS)

static struct kvf_sess *sess_of(const struct kvf_one_move *m)
{
    return kvf_sess_find(m->core, m->session);
}

static uint64_t call_deadline(const struct kvf_one_move *m)
{
    return kvf_deadline(kvf_now(m->core->env), CALL_TIMEOUT_NS);
}

/* Ends a move whose outcome is known. */
static void end(struct kvf_one_move *m, enum kvf_status status)
{
    if (m->outcome) {
        m->outcome->status = status;
        m->outcome->report = m->report;
        m->outcome->done = true;
    }
    kvf_move_free(m);
}

static void abort_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    /* A target that did not hear of it drops what it has when it asks etcd. */
}

/* Calls fn for every entry that the session has in the index. */
static void each_block(struct kvf_sess *s, void (*fn)(struct kvf_sess *s, kvf_handle h))
{
    const struct kvf_model_desc *d = &s->model->desc;
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            for (uint32_t i = 0; i < s->sealed_blocks; i++) {
                kvf_handle handle = kvf_index_find(s->core->index, kvf_block_key(s->id, l, h, i));
                if (handle != KVF_HANDLE_NONE)
                    fn(s, handle);
            }
        }
    }
}

static void block_stay(struct kvf_sess *s, kvf_handle h)
{
    kvf_index_entry(s->core->index, h)->flags &= (uint8_t)~KVF_FLAG_FETCHED;
}

/* The session stays here. */
static void stay(struct kvf_one_move *m, enum kvf_status status)
{
    struct kvf_sess *s = sess_of(m);
    uint8_t which[16];
    struct kvf_writer w = kvf_writer_of(which, sizeof which);
    kvf_write_u64(&w, m->session);
    kvf_write_u64(&w, m->offer.number);
    struct iovec part = {.iov_base = which, .iov_len = sizeof which};
    if (kvf_move_peer_there(m))
        kvf_fabric_call(m->peer->peer, KVF_MSG_MOVE_ABORT, &part, 1, call_deadline(m), abort_reply, NULL);
    each_block(s, block_stay);
    s->state = KVF_SESS_ACTIVE;
    kvf_count(&m->core->counters.moves_failed, 1);
    kvf_log_warn(&m->core->log, "moving session %llx to node %s: %s (%s); it stays here", (unsigned long long)m->session,
                 m->peer_name, kvf_status_text(status), kvf_status_name(status));
    end(m, status);
}

#define NO_LENDER UINT8_MAX
_Static_assert(KVF_LENDERS_MAX <= NO_LENDER, "no lender has the number that says none");

/* The number in the offer of the lender that a block lies at; NO_LENDER: it is not in it, or is about to be lost here. */
static uint8_t lender_number(const struct kvf_one_move *m, const struct kvf_entry *e)
{
    const char *name = e->peer == KVF_PEER_NONE ? m->core->name : m->core->peers[e->peer].member.name;
    uint64_t incarnation = e->peer == KVF_PEER_NONE ? m->core->incarnation : m->core->peers[e->peer].member.incarnation;
    assert(e->tier == KVF_TIER_REMOTE && m->offer.n_lenders > 0);
    for (uint8_t i = 0; i < m->offer.n_lenders && !kvf_cluster_left(m->core, e); i++)
        if (m->offer.lenders[i].incarnation == incarnation && strcmp(m->offer.lenders[i].name, name) == 0)
            return i;
    return NO_LENDER;
}

/* ---------------------------------------------------------------- departing */

/* What a lender holds belongs to the new home now, what is lost is its business too; the rest waits to be fetched. */
static void block_depart(struct kvf_sess *s, kvf_handle h)
{
    struct kvf_core *core = s->core;
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    const struct kvf_one_move *m = kvf_move_find(core, s->id);
    if (e->state == KVF_BLOCK_LOST || (e->flags & KVF_FLAG_FETCHED)) {
        kvf_block_remove(core, h);
    } else if (e->tier == KVF_TIER_REMOTE && m && lender_number(m, e) == NO_LENDER) {
        kvf_block_remove(core, h); /* the new home was told that it is lost */
    } else if (e->tier == KVF_TIER_REMOTE) {
        if (e->peer != KVF_PEER_NONE) /* the lender has it under our name until ADOPT */
            core->peers[e->peer].adopt_ns = kvf_deadline(kvf_now(core->env), KVF_MOVE_DISOWNED_NS);
        kvf_block_disown(core, h);
    } else {
        e->flags |= KVF_FLAG_DEPARTED;
        s->departed_left++;
    }
}

static void block_fetched(struct kvf_sess *s, kvf_handle h)
{
    struct kvf_entry *e = kvf_index_entry(s->core->index, h);
    e->flags |= e->tier == KVF_TIER_REMOTE ? 0 : KVF_FLAG_FETCHED;
}

static void depart(struct kvf_one_move *m, struct kvf_sess *s)
{
    struct kvf_core *core = m->core;
    if (m->released)
        each_block(s, block_fetched);
    s->state = KVF_SESS_DEPARTED;
    kvf_device_close(s);
    memcpy(s->new_home, m->peer_name, sizeof s->new_home);
    for (uint32_t i = 0; i < s->model->streams * KVF_TAIL_BLOCKS; i++) {
        if (s->tail[i] != KVF_ARENA_NONE)
            kvf_dram_free(core, s->tail[i], s->model->block_bytes);
        s->tail[i] = KVF_ARENA_NONE;
    }
    each_block(s, block_depart);
    kvf_lend_departed(core, s->id);
    if (s->handle) {
        atomic_store(&s->handle->moved, true);
        s->handle = NULL;
    }
    kvf_count(&core->counters.moves_out, 1);
    if (s->departed_left == 0)
        kvf_sess_free(s);
}

/* What lenders hold of the session is still ours for those whom the new home could not tell; the others do not mind. */
static void lenders_release(struct kvf_sess *s)
{
    struct kvf_core *core = s->core;
    const struct kvf_model_desc *d = &s->model->desc;
    for (unsigned p = 0; p < core->settings.fabric_peers_max; p++) {
        if (!core->peers[p].up || core->peers[p].member.lend_bytes == 0)
            continue;
        for (uint32_t stream = 0; stream < s->model->streams; stream++)
            for (uint32_t i = 0; i < s->sealed_blocks; i++)
                kvf_cluster_release(core, &core->peers[p], KVF_TIER_REMOTE,
                                    kvf_block_key(s->id, stream / d->kv_heads, stream % d->kv_heads, i));
    }
}

void kvf_move_out_drop(struct kvf_sess *s)
{
    kvf_log_info(&s->core->log, "node %s is gone: what was left here of session %llx is freed", s->new_home,
                 (unsigned long long)s->id);
    lenders_release(s);
    kvf_sess_free(s);
}

void kvf_move_out_free_keys(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_key *keys, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct kvf_sess *s = kvf_sess_find(core, keys[i].hi);
        kvf_handle h = kvf_index_find(core->index, keys[i]);
        if (!s || h == KVF_HANDLE_NONE)
            continue;
        struct kvf_entry *e = kvf_index_entry(core->index, h);
        struct kvf_one_move *m = kvf_move_find(core, s->id);
        if (s->state != KVF_SESS_DEPARTED && m && m->peer == from &&
            (m->state == KVF_MOVE_PLACING || m->state == KVF_MOVE_SETTLING))
            e->flags |= KVF_FLAG_FETCHED; /* etcd told it before us */
        if (s->state != KVF_SESS_DEPARTED || strcmp(s->new_home, from->member.name) != 0)
            continue;
        if (!(e->flags & KVF_FLAG_DEPARTED) || (e->flags & KVF_FLAG_REMOVED))
            continue;
        kvf_block_remove(core, h);
        if (--s->departed_left == 0)
            kvf_sess_free(s);
    }
}

/* ---------------------------------------------------------------- the pieces */

/* The lenders that hold any of this session's blocks, ourselves first; as many as the target's message has room for beside the
 * rest of the offer. */
static void lenders_list(struct kvf_one_move *m, struct kvf_sess *s, size_t room)
{
    struct kvf_core *core = m->core;
    struct kvf_move_offer *o = &m->offer;
    const struct kvf_model_desc *d = &s->model->desc;
    size_t most = room / KVF_LENDER_BYTES < KVF_LENDERS_MAX ? room / KVF_LENDER_BYTES : KVF_LENDERS_MAX;
    memcpy(o->lenders[0].name, core->name, sizeof o->lenders[0].name);
    o->lenders[0].incarnation = core->incarnation;
    o->n_lenders = 1;
    for (uint64_t i = 0; i < (uint64_t)s->sealed_blocks * s->model->streams && o->n_lenders < most; i++) {
        uint32_t stream = (uint32_t)(i % s->model->streams), index = (uint32_t)(i / s->model->streams);
        const struct kvf_entry *e =
            kvf_index_entry(core->index, kvf_sess_block(s, stream / d->kv_heads, stream % d->kv_heads, index));
        bool there = e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_REMOTE && !kvf_cluster_left(core, e);
        if (!there || lender_number(m, e) != NO_LENDER)
            continue;
        assert(e->peer != KVF_PEER_NONE);
        const struct kvf_member *lender = &core->peers[e->peer].member;
        memcpy(o->lenders[o->n_lenders].name, lender->name, sizeof o->lenders[0].name);
        o->lenders[o->n_lenders++].incarnation = lender->incarnation;
    }
}

static bool piece_tokens(struct kvf_one_move *m, struct kvf_sess *s, struct kvf_writer *w, uint16_t *type)
{
    if (m->tokens_sent == s->n_tokens)
        return false;
    uint64_t words = (uint64_t)(w->end - w->at) / 4, room = words > 8 ? words - 8 : 0, left = s->n_tokens - m->tokens_sent;
    uint32_t n = (uint32_t)(left < room ? left : room);
    *type = KVF_MSG_MOVE_TOKENS;
    if (n == 0)
        return true;
    kvf_write_u32(w, n);
    for (uint32_t i = 0; i < n; i++)
        kvf_write_u32(w, (uint32_t)s->tokens[m->tokens_sent + i]);
    m->tokens_sent += n;
    return true;
}

static bool piece_blocks(struct kvf_one_move *m, struct kvf_sess *s, struct kvf_writer *w, uint16_t *type)
{
    const struct kvf_model_desc *d = &s->model->desc;
    uint64_t all = (uint64_t)s->sealed_blocks * s->model->streams;
    uint32_t scale_words = kvf_cold_scale_words(s->model);
    size_t one = 19 + 8 * ((size_t)s->model->chunks + scale_words);
    if (m->blocks_sent == all)
        return false;
    *type = KVF_MSG_MOVE_BLOCKS;
    while (m->blocks_sent < all && (size_t)(w->end - w->at) >= one) {
        uint32_t stream = (uint32_t)(m->blocks_sent % s->model->streams), index = (uint32_t)(m->blocks_sent / s->model->streams);
        struct kvf_move_block b = {.layer = (uint16_t)(stream / d->kv_heads),
                                   .head = (uint16_t)(stream % d->kv_heads),
                                   .index = index,
                                   .tier = KVF_TIER_COUNT};
        const struct kvf_entry *e = kvf_index_entry(m->core->index, kvf_sess_block(s, b.layer, b.head, index));
        uint8_t lender = e->tier == KVF_TIER_REMOTE ? lender_number(m, e) : 0;
        if (e->state == KVF_BLOCK_READY && lender != NO_LENDER) { /* else it is lost */
            b.tier = e->tier == KVF_TIER_REMOTE ? KVF_TIER_REMOTE : KVF_TIER_PEER;
            b.lender = lender;
            b.location = kvf_entry_location(e);
            b.format = (uint8_t)kvf_cold_format_of(e);
            m->report.bytes_after_switch += b.tier == KVF_TIER_PEER ? e->bytes : 0;
        }
        memcpy(b.words, kvf_sums_at(m->core->sums, e->sums),
               (s->model->chunks + (b.format == KVF_COLD_EXACT ? 0 : scale_words)) * sizeof *b.words);
        kvf_wire_block(w, &b, s->model->chunks, scale_words);
        m->blocks_sent++;
    }
    return true;
}

static bool piece_tail(struct kvf_one_move *m, struct kvf_sess *s, struct kvf_writer *w, uint16_t *type)
{
    uint32_t bytes = kvf_move_tail_bytes(s->model, s->n_tokens);
    if (bytes == 0 || m->tails_sent == s->model->streams)
        return false;
    *type = KVF_MSG_MOVE_TAIL;
    while (m->tails_sent < s->model->streams && (size_t)(w->end - w->at) >= 4 + (size_t)bytes) {
        kvf_write_u32(w, m->tails_sent);
        kvf_write_bytes(w, m->core->memory + s->tail[(size_t)m->tails_sent * KVF_TAIL_BLOCKS], bytes);
        m->tails_sent++;
    }
    return true;
}

static void piece_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_one_move *m = arg;
    m->calling = false;
    if (status != KVF_OK)
        stay(m, status);
    else if (m->state == KVF_MOVE_OFFERING)
        m->state = KVF_MOVE_SENDING;
}

static void call(struct kvf_one_move *m, uint16_t type, size_t bytes)
{
    struct iovec part = {.iov_base = m->piece, .iov_len = bytes};
    enum kvf_status st = kvf_move_peer_there(m) ? kvf_fabric_call(m->peer->peer, type, &part, 1, call_deadline(m), piece_reply, m)
                                                : KVF_ERR_PEER_LOST;
    if (st != KVF_OK) {
        stay(m, st);
        return;
    }
    m->calling = true;
    m->report.bytes_before_switch += bytes;
}

/* Bytes of m->piece that the target takes. */
static size_t piece_bytes(const struct kvf_one_move *m)
{
    return kvf_move_peer_there(m) ? kvf_peer_payload_max(m->peer->peer) : kvf_fabric_payload_max(m->core->fabric);
}

/* Whether the target takes messages with what is never cut: an open block, now, and a chunk, when it fetches from here. */
static bool pieces_fit(const struct kvf_one_move *m, const struct kvf_sess *s)
{
    size_t most = piece_bytes(m), tail = kvf_move_tail_bytes(s->model, s->n_tokens);
    return (tail == 0 || KVF_PIECE_HEADER + 4 + tail <= most) &&
           (s->sealed_blocks == 0 || KVF_PIECES_HEADER_MAX + s->model->chunk_bytes <= most);
}

static void offer(struct kvf_one_move *m, struct kvf_sess *s)
{
    struct kvf_move_offer *o = &m->offer;
    o->session = s->id;
    o->epoch = s->epoch + 1;
    o->fingerprint = s->model->fingerprint;
    o->desc = s->model->desc;
    o->n_tokens = s->n_tokens;
    o->sealed_blocks = s->sealed_blocks;
    o->blob_bytes = (uint32_t)s->blob_bytes;
    memcpy(o->blob, s->blob, s->blob_bytes);
    o->n_lenders = 0;
    struct kvf_writer w = kvf_writer_of(m->piece, piece_bytes(m));
    kvf_wire_offer(&w, o);
    lenders_list(m, s, w.bad ? 0 : (size_t)(w.end - w.at));
    w = kvf_writer_of(m->piece, piece_bytes(m));
    kvf_wire_offer(&w, o);
    if (w.bad || !pieces_fit(m, s)) { /* its messages are smaller than the offer, or than what follows */
        stay(m, KVF_ERR_UNSUPPORTED);
        return;
    }
    m->state = KVF_MOVE_OFFERING;
    call(m, KVF_MSG_MOVE_OFFER, kvf_writer_used(&w));
}

static void placed(void *arg, enum kvf_status status, const struct kvf_placement *placement);

static void send_next(struct kvf_one_move *m, struct kvf_sess *s)
{
    uint8_t *body = m->piece + KVF_PIECE_HEADER;
    size_t bytes = piece_bytes(m);
    struct kvf_writer w = kvf_writer_of(body, bytes > KVF_PIECE_HEADER ? bytes - KVF_PIECE_HEADER : 0);
    uint16_t type;
    if (piece_tokens(m, s, &w, &type) || piece_blocks(m, s, &w, &type) || piece_tail(m, s, &w, &type)) {
        if (w.bad || kvf_writer_used(&w) == 0) { /* not one block or tail fits into a message */
            stay(m, KVF_ERR_UNSUPPORTED);
            return;
        }
        struct kvf_writer head = kvf_writer_of(m->piece, KVF_PIECE_HEADER);
        kvf_write_u64(&head, m->session);
        kvf_write_u64(&head, m->offer.number);
        kvf_write_u64(&head, kvf_hash(body, kvf_writer_used(&w), m->session));
        call(m, type, KVF_PIECE_HEADER + kvf_writer_used(&w));
        return;
    }
    m->state = KVF_MOVE_PLACING;
    enum kvf_status st =
        kvf_coord_session_move(m->core->coord, s->id, m->core->name, s->epoch, m->peer_name, s->n_tokens, placed, m);
    if (st != KVF_OK) {
        stay(m, st);
        return;
    }
    m->calling = true;
}

/* ---------------------------------------------------------------- the switch */

static void commit_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_one_move *m = arg;
    m->calling = false;
    m->report.stop_ns = kvf_now(m->core->env) - m->start_ns;
    if (status != KVF_OK)
        kvf_log_warn(&m->core->log, "node %s did not answer after session %llx became its own (%s); etcd tells it", m->peer_name,
                     (unsigned long long)m->session, kvf_status_name(status));
    end(m, KVF_OK);
}

/* The placement has changed: the session is the target's. */
static void switched(struct kvf_one_move *m)
{
    struct kvf_sess *s = sess_of(m);
    uint8_t payload[16];
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    m->report.epoch = s->epoch + 1;
    kvf_write_u64(&w, m->session);
    kvf_write_u64(&w, m->report.epoch);
    depart(m, s);
    m->state = KVF_MOVE_COMMITTING;
    struct iovec part = {.iov_base = payload, .iov_len = sizeof payload};
    enum kvf_status st = kvf_move_peer_there(m) ? kvf_fabric_call(m->peer->peer, KVF_MSG_MOVE_COMMIT, &part, 1, call_deadline(m),
                                                                  commit_reply, m)
                                                : KVF_ERR_PEER_LOST;
    m->calling = st == KVF_OK;
    if (st != KVF_OK)
        commit_reply(m, st, NULL, 0);
}

/* What stands in etcd: ours still, the target's, or somebody else's. */
static void settle(struct kvf_one_move *m, const struct kvf_placement *p)
{
    struct kvf_sess *s = sess_of(m);
    if (strcmp(p->home, m->core->name) == 0 && p->epoch == s->epoch)
        stay(m, KVF_ERR_DEADLINE);
    else
        switched(m);
}

static void placed(void *arg, enum kvf_status status, const struct kvf_placement *placement)
{
    struct kvf_one_move *m = arg;
    m->calling = false;
    struct kvf_sess *s = sess_of(m);
    switch (status) {
    case KVF_OK:
        switched(m);
        break;
    case KVF_ERR_STALE:
        if (placement) {
            settle(m, placement);
            break;
        }
        /* fall through */
    case KVF_ERR_DEADLINE:
        s->state = KVF_SESS_UNKNOWN;
        m->state = KVF_MOVE_SETTLING;
        m->retry_ns = 0;
        break;
    default:
        stay(m, status);
    }
}

/* etcd knows the session no more: it became the target's, and was dropped there. */
static void gone(struct kvf_one_move *m)
{
    struct kvf_sess *s = sess_of(m);
    assert(s->state == KVF_SESS_UNKNOWN);
    if (s->handle) {
        atomic_store(&s->handle->moved, true);
        s->handle = NULL;
    }
    m->report.epoch = s->epoch + 1;
    kvf_count(&m->core->counters.moves_out, 1);
    kvf_sess_free(s);
    end(m, KVF_OK);
}

/* SETTLING asks by a write that changes nothing but the record's revision: when it succeeds, the transaction whose outcome is not
 * known can never take effect any more, for it was guarded by the old revision. A mere read could be overtaken by it. */
static void settled(void *arg, enum kvf_status status, const struct kvf_placement *placement)
{
    struct kvf_one_move *m = arg;
    m->calling = false;
    m->retry_ns = kvf_deadline(kvf_now(m->core->env), RETRY_NS);
    if (status == KVF_OK)
        stay(m, KVF_ERR_DEADLINE);
    else if (status == KVF_ERR_STALE && placement)
        settle(m, placement);
    else if (status == KVF_ERR_NOT_FOUND)
        gone(m);
}

/* A target that has all of a session wants to know whether to wait for more. ERR_STALE: there is no such move, or no more; what
 * became of it stands in etcd. */
void kvf_move_out_asked(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    uint64_t session = kvf_read_u64(&r), number = kvf_read_u64(&r);
    bool good = !r.bad && kvf_reader_left(&r) == 0;
    const struct kvf_one_move *m = good ? kvf_move_find(core, session) : NULL;
    bool under_way = m && m->state < KVF_MOVE_RECEIVING && m->peer == from && m->offer.number == number;
    enum kvf_status st = !good ? KVF_ERR_INVALID : under_way ? KVF_OK : KVF_ERR_STALE;
    kvf_count(&core->counters.messages_refused, !good);
    if (message->request)
        kvf_fabric_reply(from->peer, message->request, st, NULL, 0, NULL, NULL);
}

void kvf_move_out_placement(struct kvf_one_move *m, const struct kvf_placement *placement)
{
    const struct kvf_sess *s = sess_of(m);
    if (m->state == KVF_MOVE_SETTLING && placement->epoch > s->epoch)
        m->retry_ns = 0; /* a watch tells what stood there once, perhaps of an earlier session of this id: it is asked */
}

/* ---------------------------------------------------------------- start and poll */

enum kvf_status kvf_move_start(struct kvf_core *core, struct kvf_sess *s, const char *target, uint64_t deadline_ns,
                               struct kvf_move_outcome *outcome)
{
    if (strcmp(target, core->name) == 0)
        return KVF_ERR_INVALID;
    struct kvf_node_peer *peer = kvf_cluster_peer(core, target);
    if (!peer)
        return KVF_ERR_NOT_FOUND;
    if (!peer->up)
        return KVF_ERR_PEER_UNREACHABLE;
    if (!core->coord)
        return KVF_ERR_UNSUPPORTED;
    if (s->step_open || s->state != KVF_SESS_ACTIVE || s->parked)
        return KVF_ERR_STATE;
    bool unsealed = s->n_tokens >= ((uint64_t)s->sealed_blocks + 1) * s->model->desc.block_tokens;
    if (s->forks || s->parent || s->from_peer || unsealed || kvf_move_find(core, s->id))
        return KVF_ERR_BUSY;
    uint8_t *piece = malloc(kvf_fabric_payload_max(core->fabric));
    struct kvf_one_move *m = piece ? kvf_move_new(core, KVF_MOVE_WAITING, s->id, peer) : NULL;
    if (!m) {
        free(piece);
        return piece ? KVF_ERR_BUSY : KVF_ERR_NO_MEMORY;
    }
    m->piece = piece;
    m->deadline_ns = deadline_ns;
    m->outcome = outcome;
    m->start_ns = kvf_now(core->env);
    m->offer.number = ++core->moves->number;
    *outcome = (struct kvf_move_outcome){.done = false};
    s->state = KVF_SESS_FROZEN;
    kvf_ahead_cancel(s);
    kvf_rises_cancel(s->core, s->id);
    kvf_core_wake(core);
    return KVF_OK;
}

void kvf_move_out_poll(struct kvf_one_move *m)
{
    struct kvf_core *core = m->core;
    struct kvf_sess *s = sess_of(m);
    if (m->calling)
        return;
    uint64_t now = kvf_now(core->env);
    if (m->state < KVF_MOVE_PLACING && now >= m->deadline_ns) {
        stay(m, KVF_ERR_DEADLINE);
        return;
    }
    switch (m->state) {
    case KVF_MOVE_WAITING:
        if (s->spilling == 0)
            offer(m, s);
        break;
    case KVF_MOVE_SENDING:
        send_next(m, s);
        break;
    case KVF_MOVE_SETTLING:
        if (now >= m->retry_ns) {
            m->calling = kvf_coord_session_update(core->coord, m->session, core->name, s->epoch, KVF_SESSION_ACTIVE, s->n_tokens,
                                                  settled, m) == KVF_OK;
            m->retry_ns = kvf_deadline(now, RETRY_NS);
        }
        break;
    default:
        break;
    }
}
