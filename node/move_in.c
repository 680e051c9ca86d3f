/* A session on its way in: the target's side of a move. Everything is staged before the placement changes, so that at the
 * switch nothing is missing but cold bytes. A staged session becomes ours by the old home's word or by etcd's, whichever
 * comes first; while neither comes, etcd is asked. */
#include "base/hash.h"
#include "kernels/cold.h"
#include "node/move.h"
#include <assert.h>
#include <string.h>

#define RECEIVE_TIMEOUT_NS (30 * KVF_SEC)
#define ASK_NS (1 * KVF_SEC)
#define CALL_TIMEOUT_NS (5 * KVF_SEC)

static void answer(struct kvf_node_peer *p, uint64_t request, enum kvf_status status)
{
    if (request)
        kvf_fabric_reply(p->peer, request, status, NULL, 0, NULL, NULL);
}

/* Gives up a session that is not ours: entries are forgotten, nobody's copy is touched. */
static void discard(struct kvf_one_move *m)
{
    struct kvf_core *core = m->core;
    struct kvf_sess *s = m->sess;
    const struct kvf_model_desc *d = &s->model->desc;
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            for (uint32_t i = 0; i < s->sealed_blocks; i++) {
                kvf_handle handle = kvf_index_find(core->index, kvf_block_key(s->id, l, h, i));
                if (handle == KVF_HANDLE_NONE)
                    continue;
                struct kvf_entry *e = kvf_index_entry(core->index, handle);
                if (e->flags & KVF_FLAG_REMOVED)
                    continue; /* of an earlier session of this id: it goes when its pins or its copying end */
                if (e->state == KVF_BLOCK_READY)
                    kvf_block_disown(core, handle);
                else
                    kvf_block_remove(core, handle);
            }
        }
    }
    core->entries_reserved -= (uint64_t)s->sealed_blocks * s->model->streams - m->blocks_got;
    kvf_sess_free(s);
    kvf_move_free(m);
}

/* ---------------------------------------------------------------- receiving */

/* A session without tokens is whole with its offer. */
static bool complete(const struct kvf_one_move *m)
{
    const struct kvf_sess *s = m->sess;
    bool tail = kvf_move_tail_bytes(s->model, s->n_tokens) == 0 || m->tails_got == s->model->streams;
    return tail && m->tokens_got == s->n_tokens && m->blocks_got == (uint64_t)s->sealed_blocks * s->model->streams;
}

static void stage_if_complete(struct kvf_one_move *m)
{
    if (!complete(m))
        return;
    m->state = KVF_MOVE_STAGED;
    m->retry_ns = kvf_deadline(kvf_now(m->core->env), 5 * ASK_NS);
}

static bool is_of(const struct kvf_one_move *m, const struct kvf_node_peer *from)
{
    return m->peer == from && m->incarnation == from->member.incarnation;
}

static enum kvf_status on_offer(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    struct kvf_move_offer offer;
    struct kvf_model *model;
    if (!kvf_wire_offer_read(&r, &offer)) {
        kvf_count(&core->counters.messages_refused, 1);
        return KVF_ERR_INVALID;
    }
    bool untold = from->reset || from->resetting; /* RELEASE_ALL must go first */
    enum kvf_status st = untold || core->draining ? KVF_ERR_BUSY : kvf_model_add(core, &offer.desc, &model);
    if (st == KVF_OK && model->fingerprint != offer.fingerprint)
        st = KVF_ERR_MODEL;
    struct kvf_one_move *old = kvf_move_find(core, offer.session);
    if (st == KVF_OK && old && is_of(old, from) && offer.number <= old->offer.number)
        st = KVF_ERR_STALE; /* late: the old home has begun again since */
    if (st == KVF_OK && old && (old->state == KVF_MOVE_RECEIVING || old->state == KVF_MOVE_STAGED) && old->peer == from &&
        !old->calling)
        discard(old); /* the old home begins again */
    else if (st == KVF_OK && (old || kvf_sess_find(core, offer.session)))
        st = KVF_ERR_BUSY;
    uint64_t blocks = (uint64_t)offer.sealed_blocks * (st == KVF_OK ? model->streams : 0);
    if (st == KVF_OK && !kvf_block_reserve(core, blocks))
        st = KVF_ERR_FULL;
    if (st != KVF_OK)
        return st;
    struct kvf_one_move *m = kvf_move_new(core, KVF_MOVE_RECEIVING, offer.session, from);
    struct kvf_sess *s = NULL;
    st = m ? kvf_sess_new(core, model, offer.session, &s) : KVF_ERR_BUSY;
    if (st == KVF_OK)
        st = kvf_sess_tokens_room(s, offer.n_tokens);
    if (st != KVF_OK) {
        core->entries_reserved -= blocks;
        if (s)
            kvf_sess_free(s);
        if (m)
            kvf_move_free(m);
        return st;
    }
    s->state = KVF_SESS_INCOMING;
    s->epoch = offer.epoch;
    s->n_tokens = offer.n_tokens;
    s->sealed_blocks = offer.sealed_blocks;
    s->blob_bytes = offer.blob_bytes;
    memcpy(s->blob, offer.blob, offer.blob_bytes);
    m->offer = offer;
    m->sess = s;
    m->epoch = offer.epoch;
    m->deadline_ns = kvf_deadline(kvf_now(core->env), RECEIVE_TIMEOUT_NS);
    stage_if_complete(m);
    return KVF_OK;
}

static bool got_tokens(struct kvf_one_move *m, struct kvf_reader *r)
{
    uint32_t n = kvf_read_u32(r);
    if (r->bad || kvf_reader_left(r) != (uint64_t)n * 4 || n > m->sess->n_tokens - m->tokens_got)
        return false;
    for (uint32_t i = 0; i < n; i++)
        m->sess->tokens[m->tokens_got++] = (int32_t)kvf_read_u32(r);
    return true;
}

/* The number of the peer that holds a block; NONE: ourselves (or nobody we know: then *known is false). */
static uint16_t holder(struct kvf_one_move *m, const struct kvf_move_block *b, bool *known)
{
    struct kvf_core *core = m->core;
    *known = true;
    if (b->tier == KVF_TIER_PEER)
        return m->peer->number;
    const char *name = m->offer.lenders[b->lender].name;
    uint64_t incarnation = m->offer.lenders[b->lender].incarnation;
    if (incarnation == core->incarnation && strcmp(name, core->name) == 0)
        return KVF_PEER_NONE;
    struct kvf_node_peer *p = kvf_cluster_peer(core, name);
    *known = p && p->up && p->member.incarnation == incarnation;
    return *known ? p->number : KVF_PEER_NONE;
}

/* Whether a block's scales, if it has any, are such as encoding makes. */
static bool scales_good(const struct kvf_model *model, const struct kvf_move_block *b)
{
    struct kvf_cold shape = kvf_cold_shape(model, (enum kvf_cold_format)b->format);
    return b->format == KVF_COLD_EXACT || kvf_cold_has_form(&shape, b->words + model->chunks);
}

static bool got_block(struct kvf_one_move *m, const struct kvf_move_block *b)
{
    struct kvf_core *core = m->core;
    struct kvf_sess *s = m->sess;
    struct kvf_model *model = s->model;
    if (b->layer >= model->desc.layers || b->head >= model->desc.kv_heads || b->index >= s->sealed_blocks)
        return false;
    if ((b->tier == KVF_TIER_REMOTE && b->lender >= m->offer.n_lenders) || !scales_good(model, b))
        return false;
    struct kvf_key key = kvf_block_key(s->id, b->layer, b->head, b->index);
    kvf_handle h;
    enum kvf_cold_format format = (enum kvf_cold_format)b->format;
    uint8_t wide;
    if (kvf_index_add(core->index, key, &h) != KVF_OK)
        return false;
    uint32_t sums = kvf_cold_words_new(core, model, format == KVF_COLD_EXACT ? core->cold_format : format, &wide);
    if (sums == KVF_SUMS_NONE) {
        kvf_index_remove(core->index, h);
        return false;
    }
    core->entries_reserved--;
    m->blocks_got++;
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    memcpy(kvf_sums_at(core->sums, sums), b->words, model->chunks * sizeof *b->words);
    e->sums = sums;
    kvf_entry_set_shape(e, model->number, model->chunks);
    e->bytes = model->block_bytes;
    e->flags = wide;
    e->state = KVF_BLOCK_LOST;
    bool known = b->tier != KVF_TIER_COUNT && kvf_location_fits(b->location) && (wide || format == KVF_COLD_EXACT);
    uint16_t peer = known ? holder(m, b, &known) : KVF_PEER_NONE;
    /* Blocks in our own lent part are believed only inside it. */
    uint32_t bytes = kvf_cold_bytes(model, format);
    uint64_t lent = core->lent ? kvf_arena_bytes(core->lent) : 0; /* as far as there is memory */
    bool inside = b->location >= core->lent_at && lent >= bytes && b->location - core->lent_at <= lent - bytes;
    if (known && peer == KVF_PEER_NONE && !inside)
        known = false;
    if (known)
        kvf_block_place_as(core, h, (enum kvf_tier)b->tier, peer, b->location, format, b->words);
    else
        s->lost++;
    return true;
}

static bool got_blocks(struct kvf_one_move *m, struct kvf_reader *r)
{
    struct kvf_move_block b;
    while (kvf_reader_left(r) > 0)
        if (!kvf_wire_block_read(r, &b, m->sess->model->chunks, kvf_cold_scale_words(m->sess->model)) || !got_block(m, &b))
            return false;
    return true;
}

/* ERR_BUSY: no memory for the open blocks yet; the old home's piece is refused and the move fails there. */
static enum kvf_status got_tail(struct kvf_one_move *m, struct kvf_reader *r)
{
    struct kvf_sess *s = m->sess;
    uint32_t bytes = kvf_move_tail_bytes(s->model, s->n_tokens);
    while (kvf_reader_left(r) > 0) {
        uint32_t stream = kvf_read_u32(r);
        const uint8_t *data = kvf_read_bytes(r, bytes);
        if (!data || bytes == 0 || stream >= s->model->streams || s->tail[(size_t)stream * KVF_TAIL_BLOCKS] != KVF_ARENA_NONE)
            return KVF_ERR_INVALID;
        uint64_t slot = kvf_block_memory(m->core, s->model->block_bytes);
        if (slot == KVF_ARENA_NONE)
            return KVF_ERR_FULL;
        s->tail[(size_t)stream * KVF_TAIL_BLOCKS] = slot;
        memcpy(m->core->memory + slot, data, bytes);
        m->tails_got++;
    }
    return KVF_OK;
}

static enum kvf_status on_piece(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    uint64_t session = kvf_read_u64(&r), number = kvf_read_u64(&r), sum = kvf_read_u64(&r);
    if (r.bad)
        return KVF_ERR_INVALID;
    struct kvf_one_move *m = kvf_move_find(core, session);
    if (!m || m->state != KVF_MOVE_RECEIVING || !is_of(m, from) || m->offer.number != number)
        return KVF_ERR_STATE;
    enum kvf_status st = KVF_OK;
    if (kvf_hash(r.at, kvf_reader_left(&r), session) != sum)
        st = KVF_ERR_CORRUPT;
    else if (message->type == KVF_MSG_MOVE_TOKENS)
        st = got_tokens(m, &r) ? KVF_OK : KVF_ERR_INVALID;
    else if (message->type == KVF_MSG_MOVE_BLOCKS)
        st = got_blocks(m, &r) ? KVF_OK : KVF_ERR_INVALID;
    else
        st = got_tail(m, &r);
    m->deadline_ns = kvf_deadline(kvf_now(core->env), RECEIVE_TIMEOUT_NS);
    if (st != KVF_OK) {
        kvf_log_warn(&core->log, "taking session %llx from node %s: %s (%s)", (unsigned long long)session, from->member.name,
                     kvf_status_text(st), kvf_status_name(st));
        discard(m);
    } else {
        stage_if_complete(m);
    }
    return st;
}

/* ---------------------------------------------------------------- the switch */

static void activate(struct kvf_one_move *m)
{
    struct kvf_core *core = m->core;
    m->sess->state = KVF_SESS_ACTIVE;
    kvf_count(&core->counters.moves_in, 1);
    kvf_log_info(&core->log, "session %llx is ours now, from node %s, epoch %llu", (unsigned long long)m->session, m->peer_name,
                 (unsigned long long)m->epoch);
    kvf_lend_adopt_own(core, m->session);
    m->state = KVF_MOVE_ADOPTING;
    m->retry_ns = 0;
    m->deadline_ns = kvf_deadline(kvf_now(core->env), KVF_MOVE_ADOPT_NS);
    kvf_core_changed(core);
}

/* A watch tells what stood in etcd once, perhaps of an earlier session of this id: what stands there now is asked for. */
void kvf_move_in_placement(struct kvf_one_move *m, const struct kvf_placement *p)
{
    if (p->epoch >= m->epoch)
        m->retry_ns = 0;
}

static void home_asked(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_one_move *m = arg;
    m->calling = false;
    if (status != KVF_ERR_STALE)
        return;
    m->aborted = true;
    m->retry_ns = 0; /* etcd has the last word */
}

/* Its MOVE_ABORT may be lost, and then nothing tells that its transaction will not come. */
static void ask_home(struct kvf_one_move *m)
{
    uint8_t which[16];
    struct kvf_writer w = kvf_writer_of(which, sizeof which);
    kvf_write_u64(&w, m->session);
    kvf_write_u64(&w, m->offer.number);
    struct iovec part = {.iov_base = which, .iov_len = sizeof which};
    uint64_t deadline = kvf_deadline(kvf_now(m->core->env), CALL_TIMEOUT_NS);
    m->calling = kvf_fabric_call(m->peer->peer, KVF_MSG_MOVE_ASK, &part, 1, deadline, home_asked, m) == KVF_OK;
}

static void asked(void *arg, enum kvf_status status, const struct kvf_placement *placement)
{
    struct kvf_one_move *m = arg;
    m->calling = false;
    if (m->state != KVF_MOVE_STAGED)
        return; /* the old home's word was faster: the lenders hear of it now */
    m->retry_ns = kvf_deadline(kvf_now(m->core->env), ASK_NS);
    bool settled = status == KVF_OK && placement && placement->epoch >= m->epoch;
    if (settled && placement->epoch == m->epoch && strcmp(placement->home, m->core->name) == 0)
        activate(m);
    else if (settled)
        discard(m); /* somebody else's */
    else if (status == KVF_ERR_NOT_FOUND || (status == KVF_OK && m->aborted) ||
             (status == KVF_OK && !kvf_move_peer_there(m) && kvf_now(m->core->env) >= m->deadline_ns))
        discard(m); /* the old home kept it, and is gone with it */
    else if (status == KVF_OK && kvf_move_peer_there(m))
        ask_home(m);
}

/* MOVE_COMMIT or MOVE_ABORT: what becomes of a session that is staged, or is on its way. */
static enum kvf_status on_word(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    uint64_t session = kvf_read_u64(&r), which = kvf_read_u64(&r); /* the epoch, or the number of the move */
    if (r.bad || kvf_reader_left(&r) > 0)
        return KVF_ERR_INVALID;
    struct kvf_one_move *m = kvf_move_find(core, session);
    if (message->type == KVF_MSG_MOVE_ABORT) {
        bool meant = m && is_of(m, from) && which == m->offer.number; /* not one before it */
        if (meant && (m->state == KVF_MOVE_RECEIVING || m->state == KVF_MOVE_STAGED)) {
            m->aborted = true;
            if (!m->calling) /* else etcd's answer comes first */
                discard(m);
        }
        return KVF_OK;
    }
    if (!m || m->peer != from || which != m->epoch || m->state == KVF_MOVE_RECEIVING)
        return KVF_ERR_STALE;
    if (m->state == KVF_MOVE_STAGED)
        activate(m);
    return KVF_OK;
}

void kvf_move_in_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    if (message->type == KVF_MSG_MOVE_OFFER) {
        answer(from, message->request, on_offer(core, from, message));
        return;
    }
    enum kvf_status st;
    if (message->type == KVF_MSG_MOVE_COMMIT || message->type == KVF_MSG_MOVE_ABORT)
        st = on_word(core, from, message);
    else
        st = on_piece(core, from, message);
    kvf_count(&core->counters.messages_refused, st == KVF_ERR_INVALID || st == KVF_ERR_CORRUPT);
    answer(from, message->request, st);
}

/* ---------------------------------------------------------------- adopting */

static void adopt_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_one_move *m = arg;
    m->calling = false;
    if (status != KVF_OK && status != KVF_ERR_STALE) /* stale: the session has moved on already */
        return;
    m->adopted[m->adopting] = true;
    m->retry_ns = 0;
}

/* Tells the lenders, one by one, whose blocks they hold now; a lender that is gone is left. */
static void adopt(struct kvf_one_move *m)
{
    struct kvf_core *core = m->core;
    for (unsigned i = 0; i < m->offer.n_lenders; i++) {
        struct kvf_node_peer *p = kvf_cluster_peer(core, m->offer.lenders[i].name);
        if (m->adopted[i] || !p || !p->up || p->member.incarnation != m->offer.lenders[i].incarnation)
            continue;
        uint8_t payload[16];
        struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
        kvf_write_u64(&w, m->session);
        kvf_write_u64(&w, m->epoch);
        struct iovec part = {.iov_base = payload, .iov_len = sizeof payload};
        m->adopting = i;
        m->calling = kvf_fabric_call(p->peer, KVF_MSG_ADOPT, &part, 1, kvf_deadline(kvf_now(core->env), CALL_TIMEOUT_NS),
                                     adopt_reply, m) == KVF_OK;
        m->retry_ns = kvf_deadline(kvf_now(core->env), ASK_NS / 5);
        return;
    }
    kvf_move_free(m);
}

void kvf_move_in_poll(struct kvf_one_move *m)
{
    struct kvf_core *core = m->core;
    uint64_t now = kvf_now(core->env);
    if (m->calling)
        return;
    switch (m->state) {
    case KVF_MOVE_RECEIVING:
        if (now >= m->deadline_ns || !kvf_move_peer_there(m))
            discard(m);
        break;
    case KVF_MOVE_STAGED:
        if (now >= m->retry_ns && core->coord) {
            m->calling = kvf_coord_session_read(core->coord, m->session, asked, m) == KVF_OK;
            m->retry_ns = kvf_deadline(now, ASK_NS);
        }
        break;
    case KVF_MOVE_ADOPTING:
        if (now >= m->deadline_ns)
            kvf_move_free(m);
        else if (now >= m->retry_ns)
            adopt(m);
        break;
    default:
        break;
    }
}
