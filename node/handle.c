/* Sessions as the API sees them: handles, information, fork, park, move. Waiting happens here; the machines never wait. */
#include "node/internal.h"
#include "node/move.h"
#include <stdlib.h>
#include <string.h>

#define STORE_EXTRA_NS (1 * KVF_SEC) /* a request to etcd ends by its own deadline; this is the net below it */

/* What a request to etcd came to. The waiter may leave before the answer, so it is counted, not owned. */
struct answer {
    bool done, left;
    enum kvf_status status;
    struct kvf_placement placement;
    bool has_placement;
};

static void answered(void *arg, enum kvf_status status, const struct kvf_placement *placement)
{
    struct answer *a = arg;
    if (a->left) {
        free(a);
        return;
    }
    a->done = true;
    a->status = status;
    a->has_placement = placement != NULL;
    if (placement)
        a->placement = *placement;
}

/* Waits for the answer of a request that was started with status `st`, and takes it. Under the lock. */
static enum kvf_status answer_wait(struct kvf_core *core, struct answer *a, enum kvf_status st)
{
    uint64_t deadline = kvf_deadline(kvf_now(core->env), core->settings.etcd_timeout_ns + STORE_EXTRA_NS);
    kvf_core_wake(core);
    while (st == KVF_OK && !a->done)
        if (!kvf_core_wait(core, deadline))
            break;
    if (st == KVF_OK && !a->done) {
        a->left = true;
        return KVF_ERR_DEADLINE;
    }
    st = st == KVF_OK ? a->status : st;
    free(a);
    return st;
}

static struct kvf_session *handle_new(struct kvf_node *node, uint64_t id)
{
    struct kvf_session *h = calloc(1, sizeof *h);
    if (h) {
        h->node = node;
        h->id = id;
    }
    return h;
}

static void handle_bind(struct kvf_session *h, struct kvf_sess *s)
{
    h->sess = s;
    s->handle = h;
}

/* ---------------------------------------------------------------- create, attach, close, drop */

static enum kvf_status place_new(struct kvf_core *core, uint64_t id, const char *model)
{
    if (!core->coord)
        return KVF_OK;
    struct answer *a = calloc(1, sizeof *a);
    if (!a)
        return KVF_ERR_NO_MEMORY;
    return answer_wait(core, a, kvf_coord_session_create(core->coord, id, core->name, model, answered, a));
}

/* `forked`: it stays CREATING until it is filled, so that nobody moves it before. */
static enum kvf_status create(struct kvf_node *node, struct kvf_model *model, uint64_t id, bool forked, struct kvf_session **out)
{
    if (!node || !model || !out || model->core != node->core)
        return KVF_ERR_INVALID;
    struct kvf_core *core = node->core;
    struct kvf_session *h = handle_new(node, id);
    if (!h)
        return KVF_ERR_NO_MEMORY;
    struct kvf_sess *s = NULL;
    kvf_core_lock(core);
    enum kvf_status st = kvf_sess_new(core, model, id, &s);
    if (st == KVF_OK) {
        s->state = KVF_SESS_CREATING;
        handle_bind(h, s);
        st = kvf_sess_tokens_room(s, 1);
        if (st == KVF_OK)
            st = place_new(core, id, model->desc.name);
        if (st == KVF_OK) {
            s->state = forked ? KVF_SESS_CREATING : KVF_SESS_ACTIVE;
            s->epoch = 1;
        } else {
            kvf_sess_free(s);
        }
    }
    kvf_core_unlock(core);
    if (st != KVF_OK) {
        free(h);
        return st;
    }
    *out = h;
    return KVF_OK;
}

enum kvf_status kvf_session_create(struct kvf_node *node, struct kvf_model *model, uint64_t id, struct kvf_session **out)
{
    return create(node, model, id, false, out);
}

enum kvf_status kvf_session_attach(struct kvf_node *node, struct kvf_model *model, uint64_t id, uint64_t timeout_ns,
                                   struct kvf_session **out)
{
    if (!node || !model || !out || model->core != node->core)
        return KVF_ERR_INVALID;
    struct kvf_core *core = node->core;
    struct kvf_session *h = handle_new(node, id);
    if (!h)
        return KVF_ERR_NO_MEMORY;
    kvf_core_lock(core);
    uint64_t deadline = kvf_deadline(kvf_now(core->env), timeout_ns);
    struct kvf_sess *s;
    enum kvf_status st = KVF_OK;
    for (;;) {
        s = kvf_sess_find(core, id);
        if (s && (s->state == KVF_SESS_ACTIVE || s->dropping))
            break;
        if (!kvf_core_wait(core, deadline)) {
            st = timeout_ns == 0 ? KVF_ERR_NOT_FOUND : KVF_ERR_DEADLINE;
            break;
        }
    }
    if (st == KVF_OK && s->model != model)
        st = KVF_ERR_MODEL;
    if (st == KVF_OK && s->handle)
        st = KVF_ERR_STATE;
    if (st == KVF_OK)
        handle_bind(h, s);
    kvf_core_unlock(core);
    if (st != KVF_OK) {
        free(h);
        return st;
    }
    *out = h;
    return KVF_OK;
}

void kvf_session_close(struct kvf_session *h)
{
    if (!h)
        return;
    struct kvf_core *core = h->node->core;
    kvf_core_lock(core);
    if (!atomic_load(&h->moved)) {
        kvf_sess_step_end(h->sess);
        kvf_ahead_cancel(h->sess);
        kvf_ahead_free(h->sess);
        kvf_sess_scratch_free(h->sess);
        h->sess->handle = NULL;
    }
    kvf_core_unlock(core);
    free(h);
}

/* Blocks that are being copied would stay in the index after the session, and its id may come again at once; a lender that takes
 * its blocks for another's would keep them. Under the lock. */
static enum kvf_status copies_wait(struct kvf_core *core, struct kvf_sess *s)
{
    uint64_t deadline = kvf_deadline(kvf_now(core->env), core->settings.fetch_timeout_ns);
    s->state = KVF_SESS_FROZEN; /* so that no other block begins to move */
    kvf_rises_cancel(core, s->id);
    while (s->spilling || kvf_moves_adopting(core, s->id)) {
        kvf_core_wake(core);
        if (!kvf_core_wait(core, deadline))
            return KVF_ERR_BUSY;
    }
    return KVF_OK;
}

enum kvf_status kvf_session_drop(struct kvf_session *h)
{
    if (!h)
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    kvf_core_lock(core);
    enum kvf_status st = KVF_OK;
    struct kvf_sess *s = h->sess;
    if (atomic_load(&h->moved))
        st = KVF_MOVED;
    else if (s->forks)
        st = KVF_ERR_BUSY;
    else if (s->state != KVF_SESS_ACTIVE && !(s->state == KVF_SESS_UNKNOWN && s->dropping))
        st = KVF_ERR_STATE;
    bool frozen = st == KVF_OK, dropping = frozen && s->dropping;
    if (frozen)
        st = copies_wait(core, s);
    if (st == KVF_OK && core->coord) {
        struct answer *a = calloc(1, sizeof *a);
        st = a ? answer_wait(core, a, kvf_coord_session_remove(core->coord, s->id, core->name, s->epoch, answered, a))
               : KVF_ERR_NO_MEMORY;
        if (st == KVF_ERR_NOT_FOUND || (dropping && st == KVF_ERR_STALE)) /* STALE: the id is another session's already */
            st = KVF_OK;
        dropping |= st == KVF_ERR_DEADLINE;
    }
    if (st == KVF_OK) {
        kvf_sess_free(s);
    } else if (frozen) {
        /* Once an answer was lost the record may be gone, and the id another session's: no more steps under it. */
        s->dropping = dropping;
        s->state = dropping ? KVF_SESS_UNKNOWN : KVF_SESS_ACTIVE;
    }
    kvf_core_unlock(core);
    if (st == KVF_OK)
        free(h);
    return st;
}

/* ---------------------------------------------------------------- information */

static void blocks_count(struct kvf_sess *s, uint64_t blocks[KVF_TIER_COUNT])
{
    const struct kvf_model_desc *d = &s->model->desc;
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            for (uint32_t i = 0; i < s->sealed_blocks; i++) {
                kvf_handle handle = kvf_sess_block(s, l, h, i);
                struct kvf_entry *e = handle == KVF_HANDLE_NONE ? NULL : kvf_index_entry(s->core->index, handle);
                if (e && e->state != KVF_BLOCK_LOST && e->state != KVF_BLOCK_WRITING)
                    blocks[e->tier]++;
            }
        }
    }
}

enum kvf_status kvf_session_info(struct kvf_session *h, struct kvf_session_info *out)
{
    if (!h || !out)
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    struct kvf_session_info info = {.id = h->id};
    kvf_core_lock(core);
    bool moved = atomic_load(&h->moved);
    if (!moved) {
        struct kvf_sess *s = h->sess;
        info.epoch = s->epoch;
        info.tokens = s->n_tokens;
        info.tokens_sealed = (uint64_t)s->sealed_blocks * s->model->desc.block_tokens;
        info.parked = s->parked;
        info.streaming = s->from_peer > 0;
        memcpy(info.model, s->model->desc.name, sizeof info.model);
        blocks_count(s, info.blocks);
    }
    kvf_core_unlock(core);
    if (moved)
        return KVF_MOVED;
    *out = info;
    return KVF_OK;
}

enum kvf_status kvf_session_tokens(struct kvf_session *h, uint64_t first, uint64_t count, int32_t *out)
{
    if (!h || (!out && count))
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    enum kvf_status st = KVF_OK;
    kvf_core_lock(core);
    if (atomic_load(&h->moved))
        st = KVF_MOVED;
    else if (first > h->sess->n_tokens || count > h->sess->n_tokens - first)
        st = KVF_ERR_INVALID;
    else if (count)
        memcpy(out, h->sess->tokens + first, count * sizeof *out);
    kvf_core_unlock(core);
    return st;
}

enum kvf_status kvf_session_state_set(struct kvf_session *h, const void *state, size_t bytes)
{
    if (!h || bytes > KVF_STATE_BYTES_MAX || (!state && bytes))
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    kvf_core_lock(core);
    bool moved = atomic_load(&h->moved);
    bool frozen = !moved && h->sess->state != KVF_SESS_ACTIVE;
    if (!moved && !frozen) {
        if (bytes)
            memcpy(h->sess->blob, state, bytes);
        h->sess->blob_bytes = bytes;
    }
    kvf_core_unlock(core);
    return moved ? KVF_MOVED : frozen ? KVF_ERR_BUSY : KVF_OK;
}

enum kvf_status kvf_session_state_get(struct kvf_session *h, void *state, size_t *bytes)
{
    if (!h || !bytes || (!state && *bytes))
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    enum kvf_status st = KVF_OK;
    kvf_core_lock(core);
    if (atomic_load(&h->moved)) {
        st = KVF_MOVED;
    } else {
        st = *bytes < h->sess->blob_bytes ? KVF_ERR_INVALID : KVF_OK;
        *bytes = h->sess->blob_bytes;
        if (st == KVF_OK && *bytes)
            memcpy(state, h->sess->blob, *bytes);
    }
    kvf_core_unlock(core);
    return st;
}

/* Whether any stream's block of this index is lost. All of them are judged, so that a refill finds each as it was listed. */
static bool index_lost(struct kvf_sess *s, uint32_t index)
{
    const struct kvf_model_desc *d = &s->model->desc;
    bool lost = false;
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            kvf_handle handle = kvf_sess_block(s, l, h, index);
            struct kvf_entry *e = handle == KVF_HANDLE_NONE ? NULL : kvf_cluster_judge(s->core, handle);
            lost |= !e || e->state == KVF_BLOCK_LOST;
        }
    }
    return lost;
}

enum kvf_status kvf_session_observe(struct kvf_session *h, kvf_selection_fn observe, void *arg)
{
    if (!h)
        return KVF_ERR_INVALID;
    h->observe = observe;
    h->observe_arg = arg;
    return KVF_OK;
}

enum kvf_status kvf_session_lost(struct kvf_session *h, struct kvf_range *ranges, size_t max, size_t *count)
{
    if (!h || !count || (!ranges && max))
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    kvf_core_lock(core);
    bool moved = atomic_load(&h->moved);
    size_t n = 0;
    /* Of shared blocks their owner has the count; it lacks those at a peer that is leaving. */
    if (!moved && (h->sess->lost > 0 || h->sess->n_origins > 0 || core->leaving > 0)) {
        uint64_t block = h->sess->model->desc.block_tokens;
        for (uint32_t i = 0; i < h->sess->sealed_blocks; i++) {
            if (!index_lost(h->sess, i))
                continue;
            if (n && ranges[n - 1].first + ranges[n - 1].count == i * block)
                ranges[n - 1].count += block;
            else if (n < max)
                ranges[n++] = (struct kvf_range){.first = i * block, .count = block};
            else
                break;
        }
    }
    kvf_core_unlock(core);
    if (moved)
        return KVF_MOVED;
    *count = n;
    return KVF_OK;
}

/* ---------------------------------------------------------------- fork */

static bool fork_fits(const struct kvf_session *h)
{
    return !atomic_load(&h->moved) && !h->sess->step_open && h->sess->state == KVF_SESS_ACTIVE;
}

/* Memory for the child's open blocks; waits for spilling to make room. */
static enum kvf_status fork_memory(struct kvf_session *h, struct kvf_session *child)
{
    struct kvf_core *core = h->node->core;
    uint64_t deadline = kvf_deadline(kvf_now(core->env), core->settings.fetch_timeout_ns);
    for (bool first = true;; first = false) {
        if (!fork_fits(h))
            return atomic_load(&h->moved) ? KVF_MOVED : KVF_ERR_STATE;
        const struct kvf_model *m = h->sess->model;
        bool all = true;
        for (uint32_t i = 0; i < m->streams * KVF_TAIL_BLOCKS && all; i++) {
            if (h->sess->tail[i] != KVF_ARENA_NONE && child->sess->tail[i] == KVF_ARENA_NONE)
                child->sess->tail[i] = kvf_block_memory(core, m->block_bytes);
            all = h->sess->tail[i] == KVF_ARENA_NONE || child->sess->tail[i] != KVF_ARENA_NONE;
        }
        if (all)
            return KVF_OK;
        if (first)
            core->spill_stuck = false;
        kvf_core_wake(core);
        if (core->spill_stuck || !kvf_core_wait(core, deadline))
            return KVF_ERR_FULL;
    }
}

/* The open blocks are copied, the sealed ones shared. */
static enum kvf_status fork_fill(struct kvf_sess *from, struct kvf_sess *to)
{
    struct kvf_core *core = from->core;
    enum kvf_status st = kvf_sess_tokens_room(to, from->n_tokens + 1);
    if (st != KVF_OK)
        return st;
    if (from->n_origins == KVF_ORIGINS_MAX)
        return KVF_ERR_BUSY;
    for (uint32_t i = 0; i < from->model->streams * KVF_TAIL_BLOCKS; i++) {
        if (from->tail[i] == KVF_ARENA_NONE)
            continue;
        memcpy(core->memory + to->tail[i], core->memory + from->tail[i], from->model->block_bytes);
    }
    if (from->n_tokens) /* one that arrived without any has no room for them yet */
        memcpy(to->tokens, from->tokens, from->n_tokens * sizeof *to->tokens);
    size_t floats = from->model->summary_floats, chunks = (size_t)from->sealed_blocks * from->model->chunks;
    for (uint32_t i = 0; i < from->model->streams; i++)
        memcpy(to->summaries + i * to->summary_chunks_room * floats, from->summaries + i * from->summary_chunks_room * floats,
               chunks * floats * sizeof *to->summaries);
    memcpy(to->origins, from->origins, sizeof to->origins);
    to->n_origins = from->n_origins;
    to->origins[to->n_origins++] = (struct kvf_origin){.owner = from->id, .blocks_to = from->sealed_blocks};
    to->n_tokens = from->n_tokens;
    to->sealed_blocks = from->sealed_blocks;
    memcpy(to->blob, from->blob, from->blob_bytes);
    to->blob_bytes = from->blob_bytes;
    return KVF_OK;
}

/* A fork that cannot be filled goes again. Where etcd does not take its record back now, it stays to be dropped. */
static void fork_undo(struct kvf_session *child)
{
    struct kvf_core *core = child->node->core;
    kvf_core_lock(core);
    child->sess->dropping = true;
    child->sess->state = KVF_SESS_UNKNOWN;
    kvf_core_unlock(core);
    if (kvf_session_drop(child) != KVF_OK)
        kvf_session_close(child);
}

enum kvf_status kvf_session_fork(struct kvf_session *h, uint64_t new_id, struct kvf_session **out)
{
    if (!h || !out)
        return KVF_ERR_INVALID;
    if (atomic_load(&h->moved))
        return KVF_MOVED;
    struct kvf_core *core = h->node->core;
    struct kvf_session *child = NULL;
    kvf_core_lock(core);
    bool fit = fork_fits(h) && h->sess->lost == 0;
    struct kvf_model *model = fit ? h->sess->model : NULL;
    kvf_core_unlock(core);
    if (!fit)
        return KVF_ERR_STATE;
    enum kvf_status st = create(h->node, model, new_id, true, &child);
    if (st != KVF_OK)
        return st;
    kvf_core_lock(core);
    st = fork_memory(h, child);
    if (st == KVF_OK)
        st = fork_fill(h->sess, child->sess);
    if (st == KVF_OK) {
        child->sess->parent = h->sess;
        h->sess->forks++;
        child->sess->state = KVF_SESS_ACTIVE;
    }
    kvf_core_unlock(core);
    if (st != KVF_OK) {
        fork_undo(child);
        return st;
    }
    *out = child;
    return KVF_OK;
}

/* ---------------------------------------------------------------- park and resume */

/* Whether blocks of its own are in DRAM; those that a fork shares stay with their owner. */
static bool has_dram(struct kvf_sess *s)
{
    const struct kvf_model_desc *d = &s->model->desc;
    uint32_t first = s->n_origins ? s->origins[s->n_origins - 1].blocks_to : 0;
    for (uint32_t l = 0; l < d->layers; l++) {
        for (uint32_t h = 0; h < d->kv_heads; h++) {
            for (uint32_t i = first; i < s->sealed_blocks; i++) {
                kvf_handle handle = kvf_sess_block(s, l, h, i);
                struct kvf_entry *e = handle == KVF_HANDLE_NONE ? NULL : kvf_index_entry(s->core->index, handle);
                if (e && e->state != KVF_BLOCK_LOST && e->state != KVF_BLOCK_WRITING && e->tier == KVF_TIER_DRAM)
                    return true;
            }
        }
    }
    return false;
}

/* While it waits, a session that is not parked may move away and be gone. */
static void placement_update(struct kvf_core *core, struct kvf_sess *s)
{
    if (!core->coord)
        return;
    struct answer *a = calloc(1, sizeof *a);
    if (!a)
        return;
    uint64_t id = s->id;
    bool parked = s->parked;
    enum kvf_status st =
        answer_wait(core, a,
                    kvf_coord_session_update(core->coord, id, core->name, s->epoch,
                                             parked ? KVF_SESSION_PARKED : KVF_SESSION_ACTIVE, s->n_tokens, answered, a));
    if (st != KVF_OK)
        kvf_log_warn(&core->log, "telling etcd that session %llx is %s: %s", (unsigned long long)id, parked ? "parked" : "resumed",
                     kvf_status_text(st));
}

enum kvf_status kvf_session_park(struct kvf_session *h, uint64_t timeout_ns)
{
    if (!h)
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    kvf_core_lock(core);
    enum kvf_status st = atomic_load(&h->moved) ? KVF_MOVED : KVF_OK;
    struct kvf_sess *s = h->sess;
    if (st == KVF_OK && (s->step_open || s->state != KVF_SESS_ACTIVE))
        st = KVF_ERR_STATE;
    if (st == KVF_OK && !s->parked) {
        uint64_t deadline = kvf_deadline(kvf_now(core->env), timeout_ns);
        s->parked = s->parking = true;
        kvf_device_close(s);
        kvf_rises_cancel(core, s->id);
        s->rising = false;
        core->n_parking++;
        core->spill_stuck = false;
        kvf_spills_look_again(core);
        while (st == KVF_OK && has_dram(s)) {
            kvf_core_wake(core);
            if (core->spill_stuck)
                st = KVF_ERR_FULL;
            else if (!kvf_core_wait(core, deadline))
                st = KVF_ERR_DEADLINE;
        }
        s->parking = false;
        core->n_parking--;
        if (st != KVF_OK)
            s->parked = false;
        else
            placement_update(core, s);
    }
    kvf_core_unlock(core);
    return st;
}

enum kvf_status kvf_session_resume(struct kvf_session *h, uint64_t timeout_ns)
{
    if (!h)
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    kvf_core_lock(core);
    enum kvf_status st = atomic_load(&h->moved) ? KVF_MOVED : KVF_OK;
    struct kvf_sess *s = h->sess;
    if (st == KVF_OK && s->parked) {
        uint64_t deadline = kvf_deadline(kvf_now(core->env), timeout_ns);
        s->parked = false;
        s->rising = true;
        placement_update(core, s);
        kvf_core_wake(core);
        while (!atomic_load(&h->moved) && (s->rising || s->spilling))
            if (!kvf_core_wait(core, deadline))
                break; /* what is not up yet comes when it is read */
        st = atomic_load(&h->moved) ? KVF_MOVED : KVF_OK; /* an operator may move it meanwhile */
    }
    kvf_core_unlock(core);
    return st;
}

/* ---------------------------------------------------------------- move */

/* Starts and waits. Under the lock. When the deadline passes while etcd's word is outstanding, the move goes on by itself. */
static enum kvf_status move_wait(struct kvf_core *core, struct kvf_sess *s, const char *target, uint64_t deadline,
                                 struct kvf_move_report *report)
{
    struct kvf_move_outcome outcome = {.done = false};
    uint64_t id = s->id;
    enum kvf_status st = kvf_move_start(core, s, target, deadline, &outcome);
    if (st != KVF_OK)
        return st;
    uint64_t net = kvf_deadline(deadline, core->settings.etcd_timeout_ns);
    while (!outcome.done && kvf_core_wait(core, net))
        ;
    if (!outcome.done) {
        kvf_move_forget_outcome(core, id);
        return KVF_ERR_DEADLINE;
    }
    if (outcome.status == KVF_OK && report)
        *report = outcome.report;
    return outcome.status;
}

enum kvf_status kvf_session_move(struct kvf_session *h, const char *target, uint64_t timeout_ns, struct kvf_move_report *report)
{
    if (!h || !target || !target[0])
        return KVF_ERR_INVALID;
    struct kvf_core *core = h->node->core;
    kvf_core_lock(core);
    enum kvf_status st = KVF_MOVED;
    if (!atomic_load(&h->moved))
        st = move_wait(core, h->sess, target, kvf_deadline(kvf_now(core->env), timeout_ns), report);
    kvf_core_unlock(core);
    return st;
}

enum kvf_status kvf_node_move(struct kvf_node *node, uint64_t id, const char *target, uint64_t timeout_ns,
                              struct kvf_move_report *report)
{
    struct kvf_core *core = node->core;
    kvf_core_lock(core);
    uint64_t deadline = kvf_deadline(kvf_now(core->env), timeout_ns);
    struct kvf_sess *s = kvf_sess_find(core, id);
    enum kvf_status st = s && s->state == KVF_SESS_ACTIVE ? KVF_OK : KVF_ERR_NOT_FOUND;
    /* The engine's next step waits for us: kvf_step_begin answers BUSY meanwhile. */
    while (st == KVF_OK && s->step_open) {
        s->move_wanted = true;
        bool in_time = kvf_core_wait(core, deadline);
        s = kvf_sess_find(core, id);
        if (!s || s->state != KVF_SESS_ACTIVE)
            st = KVF_ERR_NOT_FOUND;
        else if (!in_time)
            st = KVF_ERR_DEADLINE;
    }
    if (s)
        s->move_wanted = false;
    if (st == KVF_OK)
        st = move_wait(core, s, target, deadline, report);
    kvf_core_unlock(core);
    return st;
}
