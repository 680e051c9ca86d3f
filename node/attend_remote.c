/* The asker's side of attention where the bytes lie. A question (struct kvf_ask) lives in a slot of a table made at start:
 *
 *     FREE -> OPEN (an attend adds blocks) -> QUEUED -> SENT -> DONE -> FREE when the last want has dropped it
 *                                                          \-> FREE with the answer, where nobody waits for it any more
 *
 * Few questions are under way at one peer at a time; the others wait here, where they can be given up. A want whose answer is late
 * or of no use is pulled: late is long before the caller's deadline, so that there is time left for it. */
#include "node/attend_remote.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ASKS_MAX 32
#define CALL_LEAST_NS (2 * KVF_SEC) /* a call is given */
#define ASKS_AT_PEER 4
#define LATE_TIMES 8              /* ... of what was expected, and LATE_NS: then a want is pulled instead */
#define LATE_NS (20 * KVF_MS)

enum ask_state { ASK_FREE, ASK_OPEN, ASK_QUEUED, ASK_SENT, ASK_DONE };

struct kvf_ask {
    struct kvf_core *core;
    enum ask_state state;
    uint16_t peer;
    uint64_t incarnation;
    uint64_t number;      /* rises: the order in which they go out */
    unsigned refs;        /* wants */
    bool late;            /* a want did without it: so do the others, whose part may hold that one's block too */
    uint64_t queued_ns, late_ns, deadline_ns;
    enum kvf_status status;
    struct kvf_attend_shape shape;
    unsigned n_items, n_sets;
    uint64_t work_bytes;  /* of chunks that are attended there */
    uint16_t heads[KVF_BATCH_MAX];   /* of the sets */
    uint8_t sets[KVF_BATCH_MAX];     /* of the items */
    uint8_t verdicts[KVF_BATCH_MAX];
    uint8_t parts[KVF_BATCH_MAX];    /* of the items: which part of the answer; NO_PART: it is in that of another */
    size_t bytes;
    uint64_t hash;        /* of the question */
    uint8_t *question;    /* [KVF_ATTEND_QUESTION_BYTES] */
    float *answer;        /* [KVF_ATTEND_ANSWER_BYTES] */
};
#define NO_PART UINT8_MAX

struct kvf_attend_remote {
    struct kvf_ask asks[ASKS_MAX];
    unsigned queued;
    uint64_t numbers;
    unsigned *sent_to; /* [peers_max] */
    bool *expected;    /* [peers_max] the last attend that had a choice asked there */
    uint8_t *memory;
};

enum kvf_status kvf_attend_remotes_create(struct kvf_core *core)
{
    core->attend_merged = strcmp(core->settings.attend_parts, "merged") == 0;
    if (!core->transport || strcmp(core->settings.attend_remote, "off") == 0)
        return KVF_OK;
    core->attend_mode = strcmp(core->settings.attend_remote, "always") == 0 ? KVF_ATTEND_ALWAYS : KVF_ATTEND_AUTO;
    struct kvf_attend_remote *rs = core->attend_remote = calloc(1, sizeof *rs);
    if (!rs)
        return KVF_ERR_NO_MEMORY;
    size_t each = KVF_ATTEND_QUESTION_BYTES + KVF_ATTEND_ANSWER_BYTES;
    rs->sent_to = calloc(core->settings.fabric_peers_max, sizeof *rs->sent_to);
    rs->expected = calloc(core->settings.fabric_peers_max, sizeof *rs->expected);
    rs->memory = aligned_alloc(64, ASKS_MAX * each);
    if (!rs->sent_to || !rs->expected || !rs->memory)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < ASKS_MAX; i++) {
        rs->asks[i].core = core;
        rs->asks[i].question = rs->memory + i * each;
        rs->asks[i].answer = (float *)(void *)(rs->asks[i].question + KVF_ATTEND_QUESTION_BYTES);
    }
    return KVF_OK;
}

void kvf_attend_remotes_destroy(struct kvf_core *core)
{
    struct kvf_attend_remote *rs = core->attend_remote;
    if (!rs)
        return;
    free(rs->memory);
    free(rs->sent_to);
    free(rs->expected);
    free(rs);
    core->attend_remote = NULL;
}

bool kvf_attend_remotes_idle(const struct kvf_core *core)
{
    return !core->attend_remote || core->attend_remote->queued == 0;
}

bool kvf_attend_remote_expected(const struct kvf_core *core, uint16_t peer)
{
    return core->attend_remote && core->attend_mode != KVF_ATTEND_OFF && core->attend_remote->expected[peer];
}

void kvf_attend_remote_mode_set(struct kvf_core *core, enum kvf_attend_mode mode)
{
    if (core->attend_remote)
        core->attend_mode = mode;
}

/* ---------------------------------------------------------------- the plan */

/* What goes between us and a peer at most. */
static size_t frame_most(const struct kvf_core *core, uint16_t peer)
{
    const struct kvf_peer *p = core->peers[peer].peer;
    return p ? kvf_peer_payload_max(p) : kvf_fabric_payload_max(core->fabric);
}

static size_t question_most(const struct kvf_core *core, uint16_t peer)
{
    size_t most = frame_most(core, peer);
    return most < KVF_ATTEND_QUESTION_BYTES ? most : KVF_ATTEND_QUESTION_BYTES;
}

static size_t answer_most(const struct kvf_core *core, uint16_t peer)
{
    size_t most = frame_most(core, peer), head = 8 + 6 + KVF_BATCH_MAX;
    most = most < KVF_ATTEND_ANSWER_BYTES ? most : KVF_ATTEND_ANSWER_BYTES;
    return most > head ? most - head : 0;
}

static size_t queries_bytes(const struct kvf_attend_shape *s)
{
    return (size_t)s->rows * s->dim_k * sizeof(float);
}

static struct kvf_attend_plan_peer *peer_of(struct kvf_attend_plan *plan, uint16_t peer)
{
    for (unsigned i = 0; i < plan->n_peers; i++)
        if (plan->peers[i].peer == peer)
            return &plan->peers[i];
    return NULL;
}

/* The block of a want, if it can be asked for: all of it is seen by every row, it lies at a peer that is up, and none of it is in
 * the device cache or on its way here. */
static struct kvf_entry *entry_at_peer(const struct kvf_attend_plan *plan, kvf_handle handle, uint64_t mask)
{
    struct kvf_core *core = plan->core;
    struct kvf_entry *e = handle == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, handle);
    if (!e || (e->tier != KVF_TIER_REMOTE && e->tier != KVF_TIER_PEER) || e->peer == KVF_PEER_NONE || !core->peers[e->peer].up)
        return NULL;
    if (e->state != KVF_BLOCK_READY && e->state != KVF_BLOCK_RISING)
        return NULL;
    return kvf_stage_has(core, handle, mask) ? NULL : e;
}

static void plan_add(struct kvf_attend_plan *plan, const struct kvf_entry *e, uint64_t mask, uint32_t head)
{
    const struct kvf_attend_shape *s = &plan->shape;
    struct kvf_attend_plan_peer *p = peer_of(plan, e->peer);
    if (!p && plan->n_peers < KVF_ATTEND_PEERS_MAX) {
        p = &plan->peers[plan->n_peers++];
        *p = (struct kvf_attend_plan_peer){.peer = e->peer, .work = {.tier = (enum kvf_tier)e->tier, .rows = s->rows}};
    }
    if (!p)
        return;
    uint8_t format = (uint8_t)kvf_cold_format_of(e);
    uint32_t n = (uint32_t)__builtin_popcountll(mask);
    p->work.chunk_bytes = e->bytes / s->chunks;
    p->work.bytes += (uint64_t)n * p->work.chunk_bytes;
    p->work.wire_bytes += kvf_attend_wire_item_bytes(s, mask, format) + (s->merged ? 1 : kvf_attend_part_bytes(s));
    p->items++;
    p->left++;
    if (p->sets <= head)
        p->sets = head + 1;
    if (e->tier == KVF_TIER_REMOTE)
        kvf_attend_cost_seen(plan->core, e->peer, kvf_entry_location(e), e->bytes);
}

/* What does not grow with the blocks: queries and heads, once for each question. */
static void plan_close(struct kvf_attend_plan *plan, struct kvf_attend_plan_peer *p)
{
    const struct kvf_attend_shape *s = &plan->shape;
    uint64_t questions = (p->items + KVF_BATCH_MAX - 1) / KVF_BATCH_MAX, sets = p->sets < p->items ? p->sets : p->items;
    size_t head = kvf_attend_wire_head_bytes() + 2 * 64 + 14;
    uint64_t each = head + sets * (queries_bytes(s) + (s->merged ? kvf_attend_part_bytes(s) : 0));
    p->work.fixed_bytes = each;
    p->work.wire_bytes += questions * each;
}

void kvf_attend_remote_plan(struct kvf_attend_plan *plan, struct kvf_sess *sess, uint32_t layer, const struct kvf_want *wants)
{
    struct kvf_core *core = plan->core;
    uint32_t heads = sess->model->desc.kv_heads;
    plan->n_peers = plan->asks = 0;
    if (!core->attend_remote || core->attend_mode == KVF_ATTEND_OFF || !core->fabric || plan->shape.rows > KVF_ATTEND_ROWS_MAX)
        return;
    if (core->tier_blocks[KVF_TIER_REMOTE] + core->tier_blocks[KVF_TIER_PEER] == 0)
        return;
    size_t most = kvf_attend_wire_head_bytes() + queries_bytes(&plan->shape) +
                  kvf_attend_wire_item_bytes(&plan->shape, UINT64_MAX, KVF_COLD_INT8);
    plan->asking = !sess->step_refill;
    for (uint32_t i = 0; i < plan->blocks * heads; i++) {
        uint64_t mask = wants[i].mask;
        if (!mask || wants[i].cached || wants[i].fresh)
            continue;
        const struct kvf_entry *e = entry_at_peer(plan, kvf_sess_block(sess, layer, i % heads, i / heads), mask);
        if (e && most <= question_most(core, e->peer) && kvf_attend_part_bytes(&plan->shape) <= answer_most(core, e->peer))
            plan_add(plan, e, mask, i % heads);
    }
    for (unsigned i = 0; i < plan->n_peers; i++) {
        struct kvf_attend_plan_peer *p = &plan->peers[i];
        double expected[KVF_ATTEND_WAYS];
        plan_close(plan, p);
        p->way = kvf_attend_cost_choose(core, p->peer, &p->work, expected);
        p->expected_ns = expected[p->way];
        p->start_ns = kvf_now(core->env);
        core->attend_remote->expected[p->peer] = p->way == KVF_ATTEND_THERE;
    }
}

/* ---------------------------------------------------------------- asking */

static void ask_free(struct kvf_ask *ask)
{
    assert(ask->refs == 0 && ask->state != ASK_SENT);
    ask->core->attend_remote->queued -= ask->state == ASK_QUEUED;
    ask->state = ASK_FREE;
}

static struct kvf_ask *ask_new(struct kvf_attend_plan *plan, uint16_t peer)
{
    struct kvf_attend_remote *rs = plan->core->attend_remote;
    for (unsigned i = 0; i < ASKS_MAX; i++) {
        struct kvf_ask *ask = &rs->asks[i];
        if (ask->state != ASK_FREE)
            continue;
        ask->state = ASK_OPEN;
        ask->peer = peer;
        ask->incarnation = plan->core->peers[peer].member.incarnation;
        ask->number = rs->numbers++;
        ask->status = KVF_IN_PROGRESS;
        ask->late = false;
        ask->shape = plan->shape;
        ask->n_items = ask->n_sets = 0;
        ask->work_bytes = 0;
        ask->bytes = kvf_attend_wire_head_bytes();
        return ask;
    }
    return NULL;
}

/* The set of a head's queries; n_sets: it has none yet. */
static unsigned set_of(const struct kvf_ask *ask, uint32_t head)
{
    unsigned set = 0;
    while (set < ask->n_sets && ask->heads[set] != head)
        set++;
    return set;
}

static bool fits(const struct kvf_ask *ask, uint32_t head, uint64_t mask, uint8_t format)
{
    const struct kvf_attend_shape *s = &ask->shape;
    size_t sets = ask->n_sets + (set_of(ask, head) == ask->n_sets);
    size_t bytes = ask->bytes + kvf_attend_wire_item_bytes(s, mask, format) + sets * queries_bytes(s);
    size_t items = ask->n_items + 1, parts = s->merged ? sets : items, part = kvf_attend_part_bytes(s);
    return items <= KVF_BATCH_MAX && bytes <= question_most(ask->core, ask->peer) &&
           parts * part <= answer_most(ask->core, ask->peer) && items * part <= KVF_ATTEND_ANSWER_BYTES;
}

/* Queries go behind the items; then it may be sent. */
static void ask_close(struct kvf_attend_plan *plan, struct kvf_attend_plan_peer *p)
{
    struct kvf_ask *ask = p->open;
    struct kvf_core *core = plan->core;
    size_t queries = queries_bytes(&ask->shape);
    p->open = NULL;
    assert(ask->n_items > 0 && ask->refs > 0);
    struct kvf_writer w = kvf_writer_of(ask->question, KVF_ATTEND_QUESTION_BYTES);
    kvf_attend_wire_head(&w, &ask->shape, ask->n_items, ask->n_sets);
    for (unsigned set = 0; set < ask->n_sets; set++) {
        memcpy(ask->question + ask->bytes, (const uint8_t *)plan->queries + ask->heads[set] * queries, queries);
        ask->bytes += queries;
    }
    core->dev->checksum(core->dev, NULL, ask->question, ask->bytes, ask->shape.fingerprint, &ask->hash);
    ask->queued_ns = kvf_now(core->env);
    ask->deadline_ns = plan->deadline_ns;
    uint64_t left = plan->deadline_ns > ask->queued_ns ? plan->deadline_ns - ask->queued_ns : 0;
    uint64_t late = (uint64_t)(LATE_TIMES * p->expected_ns) + LATE_NS;
    ask->late_ns = kvf_deadline(ask->queued_ns, late < left / 2 ? late : left / 2);
    ask->state = ASK_QUEUED;
    core->attend_remote->queued++;
}

void kvf_attend_remote_flush(struct kvf_attend_plan *plan)
{
    for (unsigned i = 0; i < plan->n_peers; i++)
        if (plan->peers[i].open)
            ask_close(plan, &plan->peers[i]);
}

/* The ask that takes the item next. NULL: there is none now. */
static struct kvf_ask *ask_for(struct kvf_attend_plan *plan, struct kvf_attend_plan_peer *p, uint32_t head, uint64_t mask,
                               uint8_t format)
{
    if (p->open && !fits(p->open, head, mask, format))
        ask_close(plan, p);
    if (!p->open) {
        p->open = ask_new(plan, p->peer);
        plan->asks += p->open != NULL;
    }
    return p->open;
}

enum kvf_status kvf_attend_remote_add(struct kvf_attend_plan *plan, struct kvf_want *want, uint32_t block, uint32_t head)
{
    struct kvf_core *core = plan->core;
    if (plan->n_peers == 0 || block >= plan->blocks || want->pull || want->cached || want->fresh)
        return KVF_ERR_STATE;
    const struct kvf_entry *e = entry_at_peer(plan, want->handle, want->mask);
    struct kvf_attend_plan_peer *p = e ? peer_of(plan, e->peer) : NULL;
    if (!p || p->way != KVF_ATTEND_THERE || p->failed)
        return KVF_ERR_STATE;
    uint8_t format = (uint8_t)kvf_cold_format_of(e);
    struct kvf_ask *ask = ask_for(plan, p, head, want->mask, format);
    if (!ask)
        return plan->asks > 0 ? KVF_ERR_BUSY : KVF_ERR_STATE;
    unsigned set = set_of(ask, head), item = ask->n_items++;
    if (set == ask->n_sets)
        ask->heads[ask->n_sets++] = (uint16_t)head;
    struct kvf_attend_item it = {.key = e->key, .mask = want->mask, .set = (uint8_t)set, .format = format,
                                 .offset = e->tier == KVF_TIER_REMOTE ? kvf_entry_location(e) : KVF_ATTEND_BY_KEY};
    struct kvf_writer w = kvf_writer_of(ask->question + ask->bytes, KVF_ATTEND_QUESTION_BYTES - ask->bytes);
    kvf_attend_wire_item(&w, &ask->shape, &it, kvf_sums_at(core->sums, e->sums));
    assert(!w.bad);
    ask->bytes += kvf_writer_used(&w);
    ask->work_bytes += (uint64_t)__builtin_popcountll(want->mask) * (e->bytes / ask->shape.chunks);
    ask->sets[item] = (uint8_t)set;
    ask->refs++;
    want->ask = ask;
    want->item = (uint8_t)item;
    return KVF_OK;
}

/* ---------------------------------------------------------------- answers */

/* Which part of the answer every item has. */
static void parts_number(struct kvf_ask *ask, const struct kvf_attend_answer *answer)
{
    uint64_t seen = 0;
    unsigned next = 0;
    for (unsigned i = 0; i < ask->n_items; i++) {
        bool good = answer->verdicts[i] == KVF_ATTEND_GOOD;
        bool first = good && (!ask->shape.merged || !(seen >> ask->sets[i] & 1));
        ask->verdicts[i] = answer->verdicts[i];
        ask->parts[i] = first && !ask->shape.merged ? (uint8_t)next : NO_PART;
        next += first;
        seen |= good ? 1ull << ask->sets[i] : 0;
    }
    /* Merged: parts lie in the order of the sets; the first good item of a set has it. */
    for (unsigned set = 0, part = 0; ask->shape.merged && set < ask->n_sets; set++) {
        if (!(seen >> set & 1))
            continue;
        unsigned i = 0;
        while (ask->sets[i] != set || ask->verdicts[i] != KVF_ATTEND_GOOD)
            i++;
        ask->parts[i] = (uint8_t)part++;
    }
}

/* The hash binds the answer to this very question, as the holder read it: what was damaged on either way does not match. */
static bool answer_take(struct kvf_ask *ask, const void *payload, size_t bytes)
{
    struct kvf_core *core = ask->core;
    struct kvf_attend_answer answer;
    struct kvf_reader r = kvf_reader_of(payload, bytes);
    uint64_t said = kvf_read_u64(&r), hash = 0;
    if (r.bad)
        return false;
    core->dev->checksum(core->dev, NULL, r.at, kvf_reader_left(&r), ask->hash, &hash);
    if (hash != said || !kvf_attend_wire_answer_read(&r, &ask->shape, ask->sets, ask->n_items, &answer))
        return false;
    memcpy(ask->answer, answer.numbers, answer.parts * kvf_attend_part_bytes(&ask->shape));
    parts_number(ask, &answer);
    return true;
}

static void count_answer(struct kvf_ask *ask, size_t answer_bytes)
{
    struct kvf_counters *n = &ask->core->counters;
    uint64_t good = 0;
    for (unsigned i = 0; i < ask->n_items; i++)
        good += ask->verdicts[i] == KVF_ATTEND_GOOD;
    kvf_count(&n->attend_there_blocks, good);
    kvf_count(&n->attend_there_bytes, ask->work_bytes * good / ask->n_items);
    kvf_count(&n->attend_wire_bytes, ask->bytes + answer_bytes);
    kvf_latency_add(&ask->core->latencies, KVF_LATENCY_ATTEND_THERE, kvf_now(ask->core->env) - ask->queued_ns);
}

static void on_answer(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_ask *ask = arg;
    struct kvf_core *core = ask->core;
    assert(ask->state == ASK_SENT);
    ask->state = ASK_DONE;
    core->attend_remote->sent_to[ask->peer]--;
    if (status == KVF_OK && !answer_take(ask, payload, bytes)) {
        kvf_count(&core->counters.messages_refused, 1);
        status = KVF_ERR_PEER_PROTOCOL;
    }
    ask->status = status;
    if (status == KVF_OK)
        count_answer(ask, bytes);
    else if (status == KVF_ERR_BUSY || status == KVF_ERR_UNSUPPORTED)
        kvf_attend_cost_refused(core, ask->peer, status);
    if (ask->refs == 0)
        ask_free(ask);
    kvf_core_changed(core);
}

static void ask_fail(struct kvf_ask *ask, enum kvf_status status)
{
    ask->core->attend_remote->queued--;
    ask->state = ASK_DONE;
    ask->status = status;
    kvf_core_changed(ask->core);
}

/* The oldest that may go out now. */
static struct kvf_ask *ask_next(struct kvf_attend_remote *rs)
{
    struct kvf_ask *best = NULL;
    for (unsigned i = 0; i < ASKS_MAX; i++) {
        struct kvf_ask *ask = &rs->asks[i];
        if (ask->state == ASK_QUEUED && rs->sent_to[ask->peer] < ASKS_AT_PEER && (!best || ask->number < best->number))
            best = ask;
    }
    return best;
}

/* Who waits for it stops at its own deadline. The call may go on: at the end of one that is still being sent the fabric ends
 * the link, and with it every block there, which a short wait for an attend is not worth. */
static uint64_t call_deadline(const struct kvf_ask *ask)
{
    uint64_t least = kvf_deadline(kvf_now(ask->core->env), CALL_LEAST_NS);
    return ask->deadline_ns > least ? ask->deadline_ns : least;
}

unsigned kvf_attend_remotes_poll(struct kvf_core *core)
{
    struct kvf_attend_remote *rs = core->attend_remote;
    unsigned events = kvf_attend_cost_poll(core);
    struct kvf_ask *ask;
    while (rs && rs->queued > 0 && (ask = ask_next(rs))) {
        struct kvf_node_peer *p = &core->peers[ask->peer];
        struct iovec part = {.iov_base = ask->question, .iov_len = ask->bytes};
        enum kvf_status st = KVF_ERR_PEER_LOST;
        if (p->up && p->member.incarnation == ask->incarnation)
            st = kvf_fabric_call(p->peer, KVF_MSG_ATTEND, &part, 1, call_deadline(ask), on_answer, ask);
        if (st == KVF_ERR_BUSY)
            break;
        if (st != KVF_OK) {
            ask_fail(ask, st);
            continue;
        }
        ask->state = ASK_SENT;
        rs->queued--;
        rs->sent_to[ask->peer]++;
        events++;
    }
    return events;
}

/* ---------------------------------------------------------------- the attend's wants */

static void one_less(struct kvf_attend_plan_peer *p)
{
    p->left -= p->left > 0;
    p->here = p->left == 0;
}

void kvf_attend_remote_computed(struct kvf_attend_plan *plan)
{
    for (unsigned i = 0; i < plan->n_peers; i++) {
        struct kvf_attend_plan_peer *p = &plan->peers[i];
        if (p->here && !p->failed)
            kvf_attend_cost_learn(plan->core, p->peer, p->way, &p->work, kvf_now(plan->core->env) - p->start_ns);
        p->here = false;
    }
}

enum kvf_status kvf_attend_remote_arrived(struct kvf_attend_plan *plan, struct kvf_want *want)
{
    struct kvf_ask *ask = want->ask;
    struct kvf_attend_plan_peer *p = peer_of(plan, ask->peer);
    assert(ask->refs > 0 && p);
    bool done = ask->state == ASK_DONE && !ask->late;
    if (done && ask->status == KVF_OK && ask->verdicts[want->item] == KVF_ATTEND_GOOD) {
        if (!want->arrived)
            one_less(p);
        want->arrived = true;
        return KVF_OK;
    }
    if (!done && !ask->late && kvf_now(plan->core->env) < ask->late_ns)
        return KVF_IN_PROGRESS;
    ask->late |= !done;
    if (done && ask->status == KVF_OK)
        kvf_count(&plan->core->counters.attend_there_refused, 1);
    else
        p->failed = true; /* busy, late or lost: the rest of this attend is pulled too */
    kvf_count(&plan->core->counters.attend_there_failed, 1);
    kvf_attend_remote_drop(plan, want);
    want->pull = true;
    return KVF_ERR_STATE;
}

uint64_t kvf_attend_remote_late(const struct kvf_attend_plan *plan, uint64_t now_ns)
{
    const struct kvf_attend_remote *rs = plan->core->attend_remote;
    uint64_t next = UINT64_MAX;
    for (unsigned i = 0; plan->asks > 0 && i < ASKS_MAX; i++) { /* another attend's do no harm */
        const struct kvf_ask *ask = &rs->asks[i];
        if ((ask->state == ASK_QUEUED || ask->state == ASK_SENT) && ask->late_ns > now_ns && ask->late_ns < next)
            next = ask->late_ns;
    }
    return next;
}

void kvf_attend_remote_drop(struct kvf_attend_plan *plan, struct kvf_want *want)
{
    struct kvf_ask *ask = want->ask;
    want->ask = NULL;
    want->arrived = false;
    assert(ask->refs > 0);
    if (--ask->refs > 0)
        return;
    assert(plan->asks > 0);
    plan->asks--;
    for (unsigned i = 0; i < plan->n_peers; i++)
        if (plan->peers[i].open == ask)
            plan->peers[i].open = NULL;
    if (ask->state != ASK_SENT) /* else its answer frees it */
        ask_free(ask);
}

void kvf_attend_remote_pulled(struct kvf_attend_plan *plan, const struct kvf_want *want)
{
    const struct kvf_entry *e = kvf_index_entry(plan->core->index, want->handle);
    struct kvf_attend_plan_peer *p = plan->n_peers && e->peer != KVF_PEER_NONE ? peer_of(plan, e->peer) : NULL;
    if (p && p->way == KVF_ATTEND_PULL && !want->pull)
        one_less(p);
}

const float *kvf_attend_remote_part(const struct kvf_want *want)
{
    const struct kvf_ask *ask = want->ask;
    unsigned part = ask->parts[want->item];
    size_t floats = kvf_attend_part_bytes(&ask->shape) / sizeof(float);
    return part == NO_PART ? NULL : ask->answer + part * floats;
}
