/* What a lender cannot judge yet by what it knows of etcd: an ADOPT of whom etcd does not name to our knowledge, and any
 * RELEASE_ALL, because what its sender gave up is not his where a session has moved. They wait until our view of etcd is newer than
 * they are, a matter of milliseconds, and are decided then. */
#include "node/lend.h"
#include <assert.h>

#define WAIT_NS (5 * KVF_SEC) /* of one that does not say how long it waits */

static void answer(const struct kvf_lend_wait *w, enum kvf_status status)
{
    if (w->request)
        kvf_fabric_reply(w->peer->peer, w->request, status, NULL, 0, NULL, NULL);
}

static void end(struct kvf_core *core, struct kvf_lend_wait *w)
{
    assert(w->peer && core->lend->n_waits > 0);
    core->lend->n_waits--;
    w->peer = NULL;
}

bool kvf_lend_wait_add(struct kvf_core *core, struct kvf_node_peer *p, const struct kvf_message *message, uint64_t session,
                       uint64_t epoch)
{
    assert(message->type == KVF_MSG_ADOPT || message->type == KVF_MSG_RELEASE_ALL);
    for (unsigned i = 0; core->coord && i < KVF_LEND_WAITS; i++) {
        struct kvf_lend_wait *w = &core->lend->waits[i];
        if (w->peer)
            continue;
        *w = (struct kvf_lend_wait){.peer = p, .request = message->request,
                                    .type = message->type, .session = session, .epoch = epoch};
        w->ticket = kvf_coord_refresh(core->coord);
        w->deadline_ns = message->deadline_ns ? message->deadline_ns : kvf_deadline(kvf_now(core->env), WAIT_NS);
        core->lend->n_waits++;
        return true;
    }
    return false;
}

void kvf_lend_wait_overtaken(struct kvf_core *core, const struct kvf_node_peer *p)
{
    for (unsigned i = 0; core->lend->n_waits && i < KVF_LEND_WAITS; i++) {
        struct kvf_lend_wait *w = &core->lend->waits[i];
        if (w->peer != p || w->type != KVF_MSG_RELEASE_ALL)
            continue;
        answer(w, KVF_ERR_BUSY);
        end(core, w);
    }
}

void kvf_lend_wait_drop(struct kvf_core *core, const struct kvf_node_peer *p)
{
    for (unsigned i = 0; core->lend && core->lend->n_waits && i < KVF_LEND_WAITS; i++)
        if (core->lend->waits[i].peer == p)
            end(core, &core->lend->waits[i]);
}

/* KVF_IN_PROGRESS: not yet. */
static enum kvf_status decide(struct kvf_core *core, const struct kvf_lend_wait *w)
{
    bool known = kvf_coord_refreshed(core->coord, w->ticket);
    if (w->type == KVF_MSG_RELEASE_ALL && known) {
        kvf_lend_release_all(core, w->peer);
        return KVF_OK;
    }
    enum kvf_status st = w->type == KVF_MSG_ADOPT ? kvf_lend_adopt(core, w->peer, w->session, w->epoch) : KVF_ERR_BUSY;
    if (st == KVF_OK || known)
        return st;
    return kvf_now(core->env) >= w->deadline_ns ? KVF_ERR_BUSY : KVF_IN_PROGRESS;
}

unsigned kvf_lend_wait_poll(struct kvf_core *core)
{
    unsigned n = 0;
    for (unsigned i = 0; core->lend->n_waits && i < KVF_LEND_WAITS; i++) {
        struct kvf_lend_wait *w = &core->lend->waits[i];
        enum kvf_status st = w->peer ? decide(core, w) : KVF_IN_PROGRESS;
        if (st == KVF_IN_PROGRESS)
            continue;
        kvf_count(&core->counters.messages_refused, st == KVF_ERR_STALE);
        answer(w, st);
        end(core, w);
        n++;
    }
    return n;
}
