/* Moving sessions: the table of moves under way and who hears what. */
#include "node/move.h"
#include <stdlib.h>
#include <string.h>

enum kvf_status kvf_moves_create(struct kvf_core *core)
{
    core->moves = calloc(1, sizeof *core->moves);
    if (!core->moves)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < KVF_MOVES_MAX; i++)
        core->moves->moves[i].core = core;
    return KVF_OK;
}

void kvf_moves_destroy(struct kvf_core *core)
{
    for (unsigned i = 0; core->moves && i < KVF_MOVES_MAX; i++)
        free(core->moves->moves[i].piece);
    free(core->moves);
    core->moves = NULL;
}

struct kvf_one_move *kvf_move_find(struct kvf_core *core, uint64_t session)
{
    for (unsigned i = 0; i < KVF_MOVES_MAX; i++)
        if (core->moves->moves[i].state != KVF_MOVE_FREE && core->moves->moves[i].session == session)
            return &core->moves->moves[i];
    return NULL;
}

struct kvf_one_move *kvf_move_new(struct kvf_core *core, enum kvf_move_state state, uint64_t session, struct kvf_node_peer *peer)
{
    for (unsigned i = 0; i < KVF_MOVES_MAX; i++) {
        struct kvf_one_move *m = &core->moves->moves[i];
        if (m->state != KVF_MOVE_FREE || m->calling)
            continue;
        memset(m, 0, sizeof *m);
        m->core = core;
        m->state = state;
        m->session = session;
        m->peer = peer;
        m->incarnation = peer->member.incarnation;
        memcpy(m->peer_name, peer->member.name, sizeof m->peer_name);
        core->moves->active++;
        return m;
    }
    return NULL;
}

void kvf_move_free(struct kvf_one_move *m)
{
    free(m->piece);
    m->piece = NULL;
    m->outcome = NULL;
    m->sess = NULL;
    m->state = KVF_MOVE_FREE;
    m->core->moves->active--;
    kvf_core_changed(m->core);
}

bool kvf_move_peer_there(const struct kvf_one_move *m)
{
    return m->peer->up && m->peer->member.incarnation == m->incarnation && strcmp(m->peer->member.name, m->peer_name) == 0;
}

static bool inward(const struct kvf_one_move *m)
{
    return m->state >= KVF_MOVE_RECEIVING;
}

bool kvf_moves_adopting(const struct kvf_core *core, uint64_t session)
{
    for (unsigned i = 0; i < KVF_MOVES_MAX && core->moves->active; i++) {
        const struct kvf_one_move *m = &core->moves->moves[i];
        if (m->state == KVF_MOVE_ADOPTING && m->session == session)
            return true;
    }
    return false;
}

bool kvf_moves_adopting_at(const struct kvf_core *core, const struct kvf_node_peer *lender)
{
    for (unsigned i = 0; i < KVF_MOVES_MAX && core->moves->active; i++) {
        const struct kvf_one_move *m = &core->moves->moves[i];
        for (unsigned l = 0; m->state == KVF_MOVE_ADOPTING && l < m->offer.n_lenders; l++)
            if (!m->adopted[l] && m->offer.lenders[l].incarnation == lender->member.incarnation)
                return true;
    }
    return false;
}

bool kvf_moves_inward(const struct kvf_core *core, const struct kvf_node_peer *from)
{
    for (unsigned i = 0; i < KVF_MOVES_MAX && core->moves->active; i++)
        if (core->moves->moves[i].state != KVF_MOVE_FREE && inward(&core->moves->moves[i]) && core->moves->moves[i].peer == from)
            return true;
    return false;
}

static void departed_free(struct kvf_core *core)
{
    core->departed_done = false;
    for (uint32_t b = 0; b < core->session_buckets; b++) {
        struct kvf_sess *next;
        for (struct kvf_sess *s = core->sessions[b]; s; s = next) {
            next = s->next;
            if (s->state == KVF_SESS_DEPARTED && s->departed_left == 0)
                kvf_sess_free(s);
        }
    }
}

unsigned kvf_moves_poll(struct kvf_core *core)
{
    if (core->departed_done)
        departed_free(core);
    for (unsigned i = 0; i < KVF_MOVES_MAX && core->moves->active; i++) {
        struct kvf_one_move *m = &core->moves->moves[i];
        if (m->state == KVF_MOVE_FREE)
            continue;
        if (inward(m))
            kvf_move_in_poll(m);
        else
            kvf_move_out_poll(m);
    }
    return 0;
}

void kvf_move_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_key keys[KVF_BATCH_MAX];
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    unsigned n;
    bool good;
    switch (message->type) {
    case KVF_MSG_FREE:
        good = kvf_wire_keys_read(&r, keys, &n);
        if (good)
            kvf_move_out_free_keys(core, from, keys, n);
        kvf_count(&core->counters.messages_refused, !good);
        if (message->request)
            kvf_fabric_reply(from->peer, message->request, good ? KVF_OK : KVF_ERR_INVALID, NULL, 0, NULL, NULL);
        return;
    case KVF_MSG_MOVE_OFFER:
    case KVF_MSG_MOVE_TOKENS:
    case KVF_MSG_MOVE_BLOCKS:
    case KVF_MSG_MOVE_TAIL:
    case KVF_MSG_MOVE_COMMIT:
    case KVF_MSG_MOVE_ABORT:
        kvf_move_in_message(core, from, message);
        return;
    case KVF_MSG_MOVE_ASK:
        kvf_move_out_asked(core, from, message);
        return;
    default:
        kvf_count(&core->counters.messages_refused, 1);
        if (message->request)
            kvf_fabric_reply(from->peer, message->request, KVF_ERR_UNSUPPORTED, NULL, 0, NULL, NULL);
    }
}

void kvf_move_placement(struct kvf_core *core, const struct kvf_placement *placement)
{
    struct kvf_one_move *m = kvf_move_find(core, placement->id);
    if (m && inward(m))
        kvf_move_in_placement(m, placement);
    else if (m)
        kvf_move_out_placement(m, placement);
}

void kvf_move_peer_down(struct kvf_core *core, struct kvf_node_peer *peer)
{
    /* Calls to it end by themselves; both sides look at the peer in their polls. */
    kvf_core_wake(core);
}

/* Calls fn for every session that departed to this node; fn may free it. */
static void each_departed(struct kvf_core *core, const char *new_home, void (*fn)(struct kvf_sess *s))
{
    for (uint32_t b = 0; b < core->session_buckets; b++) {
        struct kvf_sess *next;
        for (struct kvf_sess *s = core->sessions[b]; s; s = next) {
            next = s->next;
            if (s->state == KVF_SESS_DEPARTED && strcmp(s->new_home, new_home) == 0)
                fn(s);
        }
    }
}

void kvf_move_member_down(struct kvf_core *core, const char *name)
{
    each_departed(core, name, kvf_move_out_drop);
}

void kvf_move_release_all(struct kvf_core *core, struct kvf_node_peer *from)
{
    each_departed(core, from->member.name, kvf_sess_free);
    for (unsigned i = 0; i < KVF_MOVES_MAX; i++) {
        struct kvf_one_move *m = &core->moves->moves[i];
        m->released |= m->peer == from && (m->state == KVF_MOVE_PLACING || m->state == KVF_MOVE_SETTLING);
    }
}

void kvf_move_forget_outcome(struct kvf_core *core, uint64_t session)
{
    struct kvf_one_move *m = kvf_move_find(core, session);
    if (m)
        m->outcome = NULL;
}
