/* Blocks on their way down: from DRAM to a lender's DRAM, else to SSD, oldest first, whenever DRAM runs short, as many bytes per
 * second as move.down_budget allows. Who waits for room is demand: for him blocks go beyond the budget, which is paid back.
 *
 * To a lender, in batches (struct job): RESERVING (slots asked for) -> PUTTING (bytes sent, a few messages at a time) -> COMMITTING
 * (the lender verifies every block against its checksums) -> FINISHING. To SSD, block by block (struct drop): WRITING -> FINISHING.
 * Readers use the DRAM copy until FINISHING, which closes the block to pins without the lock, finds no pin on it; only then is its
 * memory free. */
#include "node/claim.h"
#include "node/cold.h"
#include "node/dram.h"
#include "node/persist.h"
#include "node/wire.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define JOBS_MAX 8
#define DROPS_MAX 64
#define LOOK_MAX 4096 /* blocks looked at in one choice */
#define PUTS_MAX 4 /* messages of one job under way */
#define JOB_BYTES (4u << 20) /* and the block that passes it: the lender checks a whole job in one turn */
#define CALL_TIMEOUT_NS (5 * KVF_SEC)
#define LENDER_FULL_NS (5 * KVF_SEC)
#define LENDER_FAILED_NS (1 * KVF_SEC)
#define HURRY_NS (10 * KVF_MS)

enum job_state { JOB_FREE, JOB_RESERVING, JOB_PUTTING, JOB_COMMITTING, JOB_FINISHING };

struct put {
    struct job *job;
    bool busy;
    uint8_t header[2 + KVF_BATCH_MAX * 24];
};

struct job {
    struct kvf_core *core;
    enum job_state state;
    struct kvf_node_peer *lender;
    uint64_t incarnation; /* of the lender */
    unsigned n, granted;
    kvf_handle handles[KVF_BATCH_MAX];
    struct kvf_key keys[KVF_BATCH_MAX];
    uint64_t offsets[KVF_BATCH_MAX];
    struct kvf_cold_copy copies[KVF_BATCH_MAX]; /* what is sent of each */
    bool stored[KVF_BATCH_MAX];  /* verified at the lender */
    bool settled[KVF_BATCH_MAX]; /* FINISHING is done with it */
    bool recalled[KVF_BATCH_MAX]; /* the lender wants the slot back already */
    unsigned at;                 /* PUTTING: the block being sent, */
    uint32_t at_byte;            /* ... from here */
    struct put puts[PUTS_MAX];
    bool failed;
    bool answered; /* the lender said what it grants */
    uint64_t start_ns;
    uint8_t *commit; /* payload buffer of the commit */
};

enum drop_state { DROP_FREE, DROP_WRITING, DROP_FINISHING };

struct drop {
    struct kvf_core *core;
    enum drop_state state;
    kvf_handle handle;
    uint64_t offset;
    struct kvf_cold_copy copy; /* what is written */
    enum kvf_status status;
    uint64_t start_ns;
    struct kvf_ssd_request request;
};

struct kvf_spill {
    struct job jobs[JOBS_MAX];
    struct drop drops[DROPS_MAX];
    unsigned active;
    uint64_t shed_bytes;  /* in this turn, by blocks that went back to a copy on SSD */
    uint64_t going_bytes; /* DRAM that will be free when what is under way ends */
    bool held;            /* in this turn a block was met that stays only while attention reads it */
    bool emptying;        /* it was above 15/16 and is not yet at 7/8 */
    uint16_t next_lender;
    uint64_t park_session, park_at; /* the parking session being looked through, and where */
    bool park_found;                /* a block to go, since the lowest of them was begun; or one may have come behind it */
    struct kvf_bucket budget;
    uint64_t hurry_ns;    /* until then writes go beside reads: somebody waited for room a moment ago */
};

#define COMMIT_BYTES (KVF_BATCH_MAX * (16 + 8 + 8 + 4 + 4 + 1 + 64 * 8))

enum kvf_status kvf_spills_create(struct kvf_core *core)
{
    struct kvf_spill *sp = core->spills = calloc(1, sizeof *sp);
    if (!sp)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < JOBS_MAX; i++) {
        sp->jobs[i].core = core;
        sp->jobs[i].commit = malloc(COMMIT_BYTES);
        if (!sp->jobs[i].commit)
            return KVF_ERR_NO_MEMORY;
        for (unsigned p = 0; p < PUTS_MAX; p++)
            sp->jobs[i].puts[p].job = &sp->jobs[i];
    }
    for (unsigned i = 0; i < DROPS_MAX; i++)
        sp->drops[i].core = core;
    kvf_bucket_init(&sp->budget, core->settings.down_budget, kvf_now(core->env));
    return KVF_OK;
}

void kvf_spills_destroy(struct kvf_core *core)
{
    struct kvf_spill *sp = core->spills;
    for (unsigned i = 0; sp && i < JOBS_MAX; i++)
        free(sp->jobs[i].commit);
    free(sp);
    core->spills = NULL;
}

void kvf_spills_look_again(struct kvf_core *core)
{
    core->spills->park_found = true;
}

bool kvf_spills_idle(const struct kvf_core *core)
{
    return core->spills->active == 0;
}

uint64_t kvf_spills_bytes(const struct kvf_core *core)
{
    return core->spills ? core->spills->going_bytes : 0;
}

/* ---------------------------------------------------------------- one block */

static void take(struct kvf_core *core, kvf_handle h, struct kvf_cold_copy *copy)
{
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    assert(e->state == KVF_BLOCK_READY && e->tier == KVF_TIER_DRAM);
    kvf_block_unlist(core, h);
    e->state = KVF_BLOCK_SPILLING;
    core->spills->going_bytes += e->bytes;
    kvf_bucket_take(&core->spills->budget, copy->bytes, kvf_now(core->env));
    copy->life = kvf_sess_copy_begin(core, e);
}

/* Whether the block still has to wait in DRAM though its copy is whole: somebody reads it. Else nobody can any more. */
static bool in_use(struct kvf_core *core, kvf_handle h, const struct kvf_cold_copy *copy)
{
    return !kvf_cold_may_change(core, h, copy->format) || !kvf_entry_close(kvf_index_entry(core->index, h), false);
}

/* Ends SPILLING. `to` COUNT: the block stays in DRAM. Removes it if that was asked for meanwhile. */
static void give(struct kvf_core *core, kvf_handle h, enum kvf_tier to, uint16_t peer, uint64_t location, uint64_t start_ns,
                 struct kvf_cold_copy *copy)
{
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    assert(e->state == KVF_BLOCK_SPILLING);
    core->spills->going_bytes -= e->bytes;
    kvf_sess_copy_end(core, e, copy->life);
    bool removed = e->flags & KVF_FLAG_REMOVED;
    if (to == KVF_TIER_COUNT) {
        e->state = KVF_BLOCK_READY;
        kvf_block_list(core, h);
        if (!removed) {
            kvf_entry_open(e); /* FINISHING may have closed it */
            kvf_count(&core->counters.spill_failed, 1);
        }
    } else {
        uint64_t slot = kvf_entry_location(e);
        kvf_latency_add(&core->latencies, to == KVF_TIER_SSD ? KVF_LATENCY_SPILL_SSD : KVF_LATENCY_SPILL_REMOTE,
                        kvf_now(core->env) - start_ns);
        e->state = KVF_BLOCK_READY;
        kvf_block_list(core, h); /* place takes it off again */
        uint32_t bytes = e->bytes;
        kvf_block_place_as(core, h, to, peer, location, copy->format, copy->words);
        kvf_dram_free(core, slot, bytes);
        kvf_count(to == KVF_TIER_SSD ? &core->counters.spill_ssd_blocks : &core->counters.spill_remote_blocks, 1);
        kvf_count(to == KVF_TIER_SSD ? &core->counters.spill_ssd_bytes : &core->counters.spill_remote_bytes, e->bytes);
    }
    kvf_cold_copy_free(core, copy);
    if (removed)
        kvf_block_remove(core, h);
    core->spill_stuck = false;
    kvf_core_changed(core);
}

/* ---------------------------------------------------------------- to SSD */

static void drop_done(void *arg, enum kvf_status status)
{
    struct drop *d = arg;
    d->status = status;
    d->state = DROP_FINISHING;
}

static bool drop_finish(struct drop *d)
{
    struct kvf_core *core = d->core;
    struct kvf_entry *e = kvf_index_entry(core->index, d->handle);
    bool kept = d->status != KVF_OK || (e->flags & KVF_FLAG_REMOVED);
    if (!kept && in_use(core, d->handle, &d->copy))
        return false;
    if (kept)
        kvf_ssd_free(core->ssd, d->offset, d->copy.bytes, kvf_entry_chunks(e));
    if (d->status != KVF_OK)
        kvf_log_error(&core->log, "writing a block to SSD: %s (%s)", kvf_status_text(d->status), kvf_status_name(d->status));
    give(core, d->handle, kept ? KVF_TIER_COUNT : KVF_TIER_SSD, KVF_PEER_NONE, d->offset, d->start_ns, &d->copy);
    d->state = DROP_FREE;
    core->spills->active--;
    return true;
}

static struct drop *drop_free(struct kvf_core *core)
{
    for (unsigned i = 0; i < DROPS_MAX; i++)
        if (core->spills->drops[i].state == DROP_FREE)
            return &core->spills->drops[i];
    return NULL;
}

/* false: SSD takes no more now; *full: for want of room. */
static bool drop_start(struct kvf_core *core, kvf_handle h, bool *full)
{
    struct kvf_spill *sp = core->spills;
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    struct drop *d = drop_free(core);
    if (!d)
        return false;
    uint32_t bytes = kvf_cold_copy_bytes(core, e); /* room first: encoding for nothing is dear */
    uint64_t offset = kvf_ssd_alloc(core->ssd, bytes, kvf_entry_chunks(e));
    *full = offset == KVF_ARENA_NONE;
    if (*full)
        return false;
    bool made = kvf_cold_copy_make(core, e, &d->copy);
    if (!made || d->copy.bytes != bytes) {
        kvf_ssd_free(core->ssd, offset, bytes, kvf_entry_chunks(e));
        offset = made ? kvf_ssd_alloc(core->ssd, d->copy.bytes, kvf_entry_chunks(e)) : KVF_ARENA_NONE;
        *full = made && offset == KVF_ARENA_NONE;
        if (offset == KVF_ARENA_NONE)
            return false; /* a copy of another size is the block itself: nothing to free */
    }
    take(core, h, &d->copy);
    sp->active++;
    d->state = DROP_WRITING;
    d->handle = h;
    d->offset = offset;
    d->start_ns = kvf_now(core->env);
    d->request.done = drop_done;
    d->request.arg = d;
    if (d->copy.format != KVF_COLD_EXACT) { /* its scales have no place in a record: it is not found after a restart */
        kvf_ssd_write(core->ssd, &d->request, offset, d->copy.data, (d->copy.bytes + 4095) / 4096 * 4096);
        return true;
    }
    struct kvf_ssd_record record;
    kvf_persist_record(core, e, offset, &record);
    kvf_ssd_put(core->ssd, &d->request, &record, d->copy.data, false);
    return true;
}

bool kvf_spills_walk(const struct kvf_core *core, uint64_t *cursor, struct kvf_ssd_record *out)
{
    while (core->spills && *cursor < DROPS_MAX) {
        const struct drop *d = &core->spills->drops[(*cursor)++];
        if (d->state != DROP_FINISHING || d->status != KVF_OK || d->copy.format != KVF_COLD_EXACT)
            continue;
        kvf_persist_record(core, kvf_index_entry(core->index, d->handle), d->offset, out);
        return true;
    }
    return false;
}

/* ---------------------------------------------------------------- to a lender */

static bool puts_busy(const struct job *j)
{
    for (unsigned i = 0; i < PUTS_MAX; i++)
        if (j->puts[i].busy)
            return true;
    return false;
}

/* Etcd may have dropped the lender between two messages, and its place may be another's by now. */
static bool lender_there(const struct job *j)
{
    return j->lender->up && j->lender->member.incarnation == j->incarnation;
}

/* The lender is told to forget what was reserved and not stored. */
static void job_finish(struct job *j)
{
    struct kvf_core *core = j->core;
    bool all = true;
    for (unsigned i = 0; i < j->n; i++) {
        if (j->settled[i])
            continue;
        struct kvf_entry *e = kvf_index_entry(core->index, j->handles[i]);
        bool removed = e->flags & KVF_FLAG_REMOVED;
        bool good = j->stored[i] && !removed && !j->recalled[i] && lender_there(j);
        if (good && in_use(core, j->handles[i], &j->copies[i])) {
            all = false;
            continue;
        }
        if (!good && i < j->granted && lender_there(j))
            kvf_cluster_release(core, j->lender, KVF_TIER_REMOTE, j->keys[i]);
        else if (!good && !(j->answered && i >= j->granted))
            j->lender->reset = true; /* it may hold the slot: told when it is back */
        j->settled[i] = true;
        give(core, j->handles[i], good ? KVF_TIER_REMOTE : KVF_TIER_COUNT, j->lender->number, j->offsets[i], j->start_ns,
             &j->copies[i]);
    }
    if (!all)
        return;
    j->state = JOB_FREE;
    core->spills->active--;
}

static void job_fail(struct job *j, enum kvf_status status)
{
    j->failed = true;
    j->lender->lend_retry_ns = kvf_deadline(kvf_now(j->core->env), status == KVF_ERR_FULL ? LENDER_FULL_NS : LENDER_FAILED_NS);
    if (status != KVF_ERR_FULL)
        kvf_log_info(&j->core->log, "spilling to node %s: %s (%s)", j->lender->member.name, kvf_status_text(status),
                     kvf_status_name(status));
}

static void commit_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct job *j = arg;
    uint8_t statuses[KVF_BATCH_MAX];
    unsigned n = 0;
    struct kvf_reader r = kvf_reader_of(payload, bytes);
    if (status == KVF_OK && kvf_wire_statuses_read(&r, statuses, &n) && n == j->granted)
        for (unsigned i = 0; i < n; i++)
            j->stored[i] = statuses[i] == 0;
    else
        job_fail(j, status == KVF_OK ? KVF_ERR_PEER_PROTOCOL : status);
    j->state = JOB_FINISHING;
}

static void job_commit(struct job *j)
{
    struct kvf_core *core = j->core;
    struct kvf_writer w = kvf_writer_of(j->commit, COMMIT_BYTES);
    for (unsigned i = 0; i < j->granted; i++) {
        const struct kvf_cold_copy *copy = &j->copies[i];
        struct kvf_entry *e = kvf_index_entry(core->index, j->handles[i]);
        struct kvf_commit_item item = {.key = e->key, .seed = copy->seed, .offset = j->offsets[i], .bytes = copy->bytes,
                                       .chunk_bytes = copy->chunk_bytes, .chunks = kvf_entry_chunks(e)};
        memcpy(item.sums, copy->words, kvf_entry_chunks(e) * sizeof *item.sums);
        kvf_wire_commit(&w, &item);
    }
    assert(!w.bad);
    struct iovec part = {.iov_base = j->commit, .iov_len = kvf_writer_used(&w)};
    enum kvf_status st = kvf_fabric_call(j->lender->peer, KVF_MSG_COMMIT, &part, 1,
                                         kvf_deadline(kvf_now(core->env), CALL_TIMEOUT_NS), commit_reply, j);
    if (st == KVF_ERR_BUSY)
        return;
    j->state = JOB_COMMITTING;
    if (st != KVF_OK) {
        job_fail(j, st);
        j->state = JOB_FINISHING;
    }
}

static void put_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct put *p = arg;
    p->busy = false;
    if (status != KVF_OK && !p->job->failed)
        job_fail(p->job, status);
}

/* Sends one message of pieces. false: nothing more can be sent now. */
static bool put_send(struct job *j, struct put *p)
{
    struct kvf_core *core = j->core;
    struct kvf_put_item items[KVF_BATCH_MAX];
    struct iovec parts[KVF_FRAME_PARTS_MAX];
    size_t most = kvf_peer_payload_max(j->lender->peer), room = most > sizeof p->header ? most - sizeof p->header : 0;
    unsigned n = 0, at = j->at;
    uint32_t at_byte = j->at_byte;
    while (at < j->granted && n < KVF_FRAME_PARTS_MAX - 1 && room >= 4096) {
        const struct kvf_cold_copy *copy = &j->copies[at];
        uint32_t piece = copy->bytes - at_byte < room ? copy->bytes - at_byte : (uint32_t)(room / 4096 * 4096);
        items[n] = (struct kvf_put_item){.key = j->keys[at], .at = at_byte, .bytes = piece};
        parts[1 + n++] = (struct iovec){.iov_base = (void *)(uintptr_t)(copy->data + at_byte), .iov_len = piece};
        room -= piece;
        at_byte += piece;
        if (at_byte == copy->bytes) {
            at++;
            at_byte = 0;
        }
    }
    struct kvf_writer w = kvf_writer_of(p->header, sizeof p->header);
    kvf_wire_put(&w, items, n);
    parts[0] = (struct iovec){.iov_base = p->header, .iov_len = kvf_writer_used(&w)};
    enum kvf_status st = kvf_fabric_call(j->lender->peer, KVF_MSG_PUT, parts, n + 1,
                                         kvf_deadline(kvf_now(core->env), CALL_TIMEOUT_NS), put_reply, p);
    if (st == KVF_OK) {
        p->busy = true;
        j->at = at;
        j->at_byte = at_byte;
        return true;
    }
    if (st != KVF_ERR_BUSY)
        job_fail(j, st);
    return false;
}

static void job_put(struct job *j)
{
    if (!j->failed && !lender_there(j))
        job_fail(j, KVF_ERR_PEER_LOST);
    for (unsigned i = 0; i < PUTS_MAX && !j->failed && j->at < j->granted; i++)
        if (!j->puts[i].busy && !put_send(j, &j->puts[i]))
            break;
    if (puts_busy(j))
        return;
    if (j->failed)
        j->state = JOB_FINISHING;
    else if (j->at == j->granted)
        job_commit(j);
}

static void reserve_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct job *j = arg;
    struct kvf_reader r = kvf_reader_of(payload, bytes);
    unsigned n = 0;
    if (status == KVF_OK && (!kvf_wire_granted_read(&r, j->offsets, &n) || n > j->n))
        status = KVF_ERR_PEER_PROTOCOL;
    for (unsigned i = 0; status == KVF_OK && i < n; i++)
        if (!kvf_location_fits(j->offsets[i]))
            status = KVF_ERR_PEER_PROTOCOL;
    if (status == KVF_OK && n < j->n) /* it is full, or nearly so */
        j->lender->lend_retry_ns = kvf_deadline(kvf_now(j->core->env), LENDER_FULL_NS);
    if (status != KVF_ERR_PEER_LOST && status != KVF_CANCELLED)
        kvf_pace_add(j->lender, kvf_now(j->core->env) - j->start_ns);
    if (status != KVF_OK)
        job_fail(j, status);
    /* Its own word, so that what it did not grant is not there. */
    j->answered = status == KVF_OK || status == KVF_ERR_FULL || status == KVF_ERR_EXISTS || status == KVF_ERR_INVALID;
    j->granted = status == KVF_OK ? n : 0;
    j->state = j->granted ? JOB_PUTTING : JOB_FINISHING;
}

/* Copies of the first of `handles`, as many as can be had now. */
static unsigned job_copies(struct kvf_core *core, struct job *j, const kvf_handle *handles, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct kvf_entry *e = kvf_index_entry(core->index, handles[i]);
        if (!kvf_cold_copy_make(core, e, &j->copies[i]))
            return i;
        j->handles[i] = handles[i];
        j->keys[i] = e->key;
    }
    return n;
}

/* Sends some of `handles` down, the first of them. false: the fabric is busy, or nothing can be encoded now. */
static bool job_start(struct kvf_core *core, struct job *j, struct kvf_node_peer *lender, const kvf_handle *handles, unsigned n)
{
    struct kvf_reserve_item items[KVF_BATCH_MAX];
    uint8_t payload[2 + KVF_BATCH_MAX * 20];
    n = job_copies(core, j, handles, n);
    if (n == 0)
        return false;
    for (unsigned i = 0; i < n; i++)
        items[i] = (struct kvf_reserve_item){.key = j->keys[i], .bytes = j->copies[i].bytes};
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_reserve(&w, items, n);
    struct iovec part = {.iov_base = payload, .iov_len = kvf_writer_used(&w)};
    enum kvf_status st = kvf_fabric_call(lender->peer, KVF_MSG_RESERVE, &part, 1, kvf_deadline(kvf_now(core->env), CALL_TIMEOUT_NS),
                                         reserve_reply, j);
    if (st != KVF_OK) {
        for (unsigned i = 0; i < n; i++)
            kvf_cold_copy_free(core, &j->copies[i]);
        return false;
    }
    j->state = JOB_RESERVING;
    j->lender = lender;
    j->incarnation = lender->member.incarnation;
    j->n = n;
    j->granted = j->at = 0;
    j->at_byte = 0;
    j->failed = j->answered = false;
    j->start_ns = kvf_now(core->env);
    memset(j->stored, 0, sizeof j->stored);
    memset(j->settled, 0, sizeof j->settled);
    memset(j->recalled, 0, sizeof j->recalled);
    for (unsigned i = 0; i < n; i++)
        take(core, handles[i], &j->copies[i]);
    core->spills->active++;
    return true;
}

/* ---------------------------------------------------------------- what goes where */

static bool lends(const struct kvf_core *core, const struct kvf_node_peer *p, uint64_t now)
{
    return core->settings.borrow && p->member.name[0] && p->up && p->member.lend_bytes > 0 && now >= p->lend_retry_ns &&
           p->borrowed_bytes < p->member.lend_bytes && !p->reset && !p->resetting;
}

bool kvf_spills_busy_at(const struct kvf_core *core, const struct kvf_node_peer *p)
{
    for (unsigned i = 0; i < JOBS_MAX; i++)
        if (core->spills->jobs[i].state != JOB_FREE && core->spills->jobs[i].lender == p)
            return true;
    return false;
}

bool kvf_spills_recall(struct kvf_core *core, const struct kvf_node_peer *p, struct kvf_key key, uint64_t location)
{
    for (unsigned i = 0; i < JOBS_MAX; i++) {
        struct job *j = &core->spills->jobs[i];
        for (unsigned b = 0; j->state > JOB_RESERVING && j->lender == p && b < j->granted; b++) {
            if (j->settled[b] || j->offsets[b] != location || j->keys[b].hi != key.hi || j->keys[b].lo != key.lo)
                continue;
            j->recalled[b] = true;
            return true;
        }
    }
    return false;
}

uint64_t kvf_spills_asked_ns(const struct kvf_core *core, const struct kvf_node_peer *p)
{
    uint64_t oldest = UINT64_MAX;
    for (unsigned i = 0; core->spills->active && i < JOBS_MAX; i++) {
        const struct job *j = &core->spills->jobs[i];
        if (j->state == JOB_RESERVING && j->lender == p && j->start_ns < oldest)
            oldest = j->start_ns;
    }
    return oldest;
}

/* The next lender in turn that has room; *any: some lender has, though it may be busy now. `slow`: also slow ones. */
static struct kvf_node_peer *lender_of(struct kvf_core *core, bool slow, bool *any)
{
    struct kvf_spill *sp = core->spills;
    uint64_t now = kvf_now(core->env);
    *any = false;
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++) {
        uint16_t number = (uint16_t)((sp->next_lender + i) % core->settings.fabric_peers_max);
        struct kvf_node_peer *p = &core->peers[number];
        if (!lends(core, p, now) || (p->pace.slow && !slow))
            continue;
        *any = true;
        if (kvf_spills_busy_at(core, p))
            continue;
        sp->next_lender = (uint16_t)(number + 1);
        return p;
    }
    return NULL;
}

/* Slow ones only where there is nothing else. */
static struct kvf_node_peer *lender_next(struct kvf_core *core, bool *any)
{
    struct kvf_node_peer *p = lender_of(core, false, any);
    bool ssd = core->ssd && !kvf_ssd_degraded(core->ssd);
    return *any || ssd ? p : lender_of(core, true, any);
}

static bool may_go(struct kvf_core *core, const struct kvf_entry *e)
{
    struct kvf_sess *sess = kvf_block_session(core, e);
    return kvf_entry_pins(e) == 0 && !(sess && sess->state == KVF_SESS_FROZEN);
}

/* The oldest blocks that may go, at most `max` (and no more than `bytes`). `shed`: those that have a copy on SSD go back to it at
 * once, instead of being among them. When it is an opaque block's turn, the one that the
 * policy chooses takes its place: so the two kinds share the way down as they came. */
static unsigned pick(struct kvf_core *core, bool departed, bool shed, uint64_t bytes, kvf_handle *out, unsigned max)
{
    unsigned n = 0;
    bool none = false; /* no opaque block may go */
    uint64_t sum = 0, left = kvf_dramlist_count(core->dram_blocks);
    struct kvf_dramlist *list = core->dram_blocks;
    uint32_t slot = kvf_dramlist_oldest(list), next;
    left = left < LOOK_MAX ? left : LOOK_MAX;
    for (; left > 0 && n < max && sum < bytes; left--, slot = next) {
        kvf_handle h = kvf_dramlist_handle(list, slot);
        struct kvf_entry *e = kvf_index_entry(core->index, h);
        core->spills->held |= kvf_entry_model(e) != KVF_ENTRY_OPAQUE && kvf_entry_pins(e) > 0;
        bool goes = may_go(core, e) && (departed || !(e->flags & KVF_FLAG_DEPARTED));
        if (kvf_entry_model(e) == KVF_ENTRY_OPAQUE) {
            h = none ? KVF_HANDLE_NONE : kvf_evict_next(core, out, n);
            none = h == KVF_HANDLE_NONE;
            goes = !none;
            e = goes ? kvf_index_entry(core->index, h) : e;
            kvf_dramlist_swap(list, slot, goes ? e->location4k : slot);
            slot = goes ? e->location4k : slot;
        }
        next = kvf_dramlist_newer(list, slot);
        if (goes && e->ssd4k && shed) { /* it needs no writing */
            uint64_t freed = kvf_persist_shed(core, h) ? kvf_index_entry(core->index, h)->bytes : 0;
            core->spills->shed_bytes += freed;
            sum += freed;
            continue;
        }
        if (goes) {
            out[n++] = h;
            sum += e->bytes;
        }
    }
    return n;
}

/* The parking session of the next higher id, or of the lowest (*round); NULL: none parks. */
static struct kvf_sess *parking_next(struct kvf_core *core, uint64_t id, bool *round)
{
    struct kvf_sess *next = NULL, *lowest = NULL;
    for (struct kvf_sess *s = core->sessions_all; s; s = s->after) {
        if (!s->parking)
            continue;
        lowest = !lowest || s->id < lowest->id ? s : lowest;
        next = s->id > id && (!next || s->id < next->id) ? s : next;
    }
    *round = next == NULL;
    return next ? next : lowest;
}

/* Blocks of parking sessions, wherever they stand in the list of DRAM: looked for by key, LOOK_MAX of them at a time, from
 * where the last call ended. *ended: all were looked at since one was last found. */
static unsigned pick_parking(struct kvf_core *core, uint64_t bytes, kvf_handle *out, unsigned max, bool *ended)
{
    struct kvf_spill *sp = core->spills;
    unsigned n = 0;
    uint64_t sum = 0;
    *ended = false;
    for (unsigned looked = 0; looked < LOOK_MAX && n < max && sum < bytes; looked++) {
        struct kvf_sess *s = kvf_sess_find(core, sp->park_session);
        uint64_t streams = s ? s->model->streams : 1;
        if (!s || !s->parking || sp->park_at >= streams * s->sealed_blocks) {
            bool round;
            s = parking_next(core, sp->park_session, &round);
            *ended = !s || (round && !sp->park_found);
            if (*ended)
                break;
            sp->park_found = round ? false : sp->park_found;
            sp->park_session = s->id;
            sp->park_at = (uint64_t)s->model->streams * (s->n_origins ? s->origins[s->n_origins - 1].blocks_to : 0);
            if (round)
                break; /* none twice in one call */
            continue;
        }
        uint32_t stream = (uint32_t)(sp->park_at % streams), index = (uint32_t)(sp->park_at / streams);
        sp->park_at++;
        kvf_handle h = kvf_sess_block(s, stream / s->model->desc.kv_heads, stream % s->model->desc.kv_heads, index);
        struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, h);
        if (!e || e->tier != KVF_TIER_DRAM || e->state != KVF_BLOCK_READY || (e->flags & KVF_FLAG_REMOVED) || !may_go(core, e))
            continue;
        sp->park_found = true;
        out[n++] = h;
        sum += e->bytes;
    }
    return n;
}

/* Bytes that should leave DRAM now: down to 7/8 when above 15/16, or when somebody waits. */
static uint64_t excess(const struct kvf_core *core)
{
    uint64_t capacity = kvf_dram_capacity(core), used = kvf_dram_used(core), going = core->spills->going_bytes;
    uint64_t staying = used > going ? used - going : 0;
    if (!core->spill_urgent && (kvf_claim_waits(core) || (!core->spills->emptying && staying < capacity / 16 * 15)))
        return 0;
    return staying > capacity / 8 * 7 ? staying - capacity / 8 * 7 : core->spill_urgent && going == 0 ? 1 : 0;
}

/* Nothing takes blocks: opaque ones are dropped, those on the SSD first when it is full, those in DRAM only when somebody waits. */
static bool drop_some(struct kvf_core *core, uint64_t bytes, bool ssd_full)
{
    if (ssd_full && (kvf_persist_evict(core, bytes) || kvf_evict_ssd(core, bytes)))
        return true;
    uint64_t some = kvf_arena_bytes(core->dram) / 64;
    return core->spill_urgent && kvf_evict_dram(core, some < bytes ? some : bytes) > 0;
}

/* By session, layer, head and index: slots are given out in rising order where there is room, so what attention reads together
 * lies together, and goes down and comes up in few requests. */
static void group(const struct kvf_core *core, kvf_handle *handles, unsigned n)
{
    for (unsigned i = 1; i < n; i++) {
        kvf_handle h = handles[i];
        struct kvf_key key = kvf_index_entry(core->index, h)->key;
        unsigned at = i;
        for (; at > 0; at--) {
            struct kvf_key before = kvf_index_entry(core->index, handles[at - 1])->key;
            if (before.hi < key.hi || (before.hi == key.hi && before.lo <= key.lo))
                break;
            handles[at] = handles[at - 1];
        }
        handles[at] = h;
    }
}

/* Starts what can be started for `bytes`; true when something is or will be under way. */
static bool send_down(struct kvf_core *core, bool only_parking, uint64_t bytes)
{
    kvf_handle handles[KVF_BATCH_MAX];
    bool any = false, started = false, ended = true; /* ended: no block is left that could be found by looking further */
    core->spills->shed_bytes = 0;
    for (;;) {
        struct kvf_node_peer *lender = lender_next(core, &any);
        struct job *j = NULL;
        for (unsigned i = 0; i < JOBS_MAX && lender && !j; i++)
            if (core->spills->jobs[i].state == JOB_FREE)
                j = &core->spills->jobs[i];
        uint64_t most = bytes < JOB_BYTES ? bytes : JOB_BYTES;
        unsigned n = !j ? 0 : only_parking ? pick_parking(core, most, handles, KVF_BATCH_MAX, &ended)
                                           : pick(core, false, core->spill_urgent, most, handles, KVF_BATCH_MAX);
        if (n == 0 || !job_start(core, j, lender, handles, n))
            break;
        started = true;
        uint64_t sum = 0;
        for (unsigned i = 0; i < j->n; i++)
            sum += kvf_index_entry(core->index, handles[i])->bytes;
        if (sum >= bytes)
            return true;
        bytes -= sum;
    }
    bool ssd = core->ssd && !kvf_ssd_degraded(core->ssd), full = false;
    if (ssd && drop_free(core)) {
        /* Departed blocks go to SSD whatever the lenders say; the others only when no lender has room. */
        unsigned n = only_parking ? pick_parking(core, bytes, handles, KVF_BATCH_MAX, &ended)
                                  : pick(core, true, !any || core->spill_urgent, bytes, handles, KVF_BATCH_MAX);
        group(core, handles, n);
        for (unsigned i = 0; i < n; i++) {
            struct kvf_entry *e = kvf_index_entry(core->index, handles[i]);
            if (any && !(e->flags & KVF_FLAG_DEPARTED))
                continue;
            if (!drop_start(core, handles[i], &full))
                break;
            started = true;
        }
        ended |= n > 0 && !started; /* what was found has nowhere to go */
    }
    started |= core->spills->shed_bytes > 0;
    if (!started && !any && (full || (!ssd && !only_parking)))
        started = kvf_claim_urge(core) || drop_some(core, bytes < JOB_BYTES ? bytes : JOB_BYTES, full);
    return started || any || !ended || core->cold_wait;
}

unsigned kvf_spills_poll(struct kvf_core *core)
{
    struct kvf_spill *sp = core->spills;
    unsigned events = 0, before = sp->active;
    kvf_cold_turn(core);
    for (unsigned i = 0; i < JOBS_MAX && sp->active; i++) {
        if (sp->jobs[i].state == JOB_PUTTING)
            job_put(&sp->jobs[i]);
        if (sp->jobs[i].state == JOB_FINISHING)
            job_finish(&sp->jobs[i]);
    }
    for (unsigned i = 0; i < DROPS_MAX && sp->active; i++)
        if (sp->drops[i].state == DROP_FINISHING)
            events += drop_finish(&sp->drops[i]);
    sp->held = false;
    uint64_t bytes = excess(core);
    bool parks = core->n_parking > 0, wanted = bytes > 0;
    if (!core->spill_urgent && (bytes || parks)) {
        uint64_t room = kvf_bucket_room(&sp->budget, kvf_now(core->env));
        bytes = bytes < room ? bytes : room;
    }
    bool moving = bytes ? send_down(core, false, bytes) : core->spill_urgent;
    sp->emptying = wanted && (moving || bytes == 0 || sp->active > 0);
    if (core->ssd) {
        uint64_t now = kvf_now(core->env);
        if (core->spill_urgent || parks)
            sp->hurry_ns = kvf_deadline(now, HURRY_NS);
        kvf_ssd_hurry(core->ssd, now < sp->hurry_ns);
    }
    sp->park_found |= before > 0;
    if (parks) {
        uint64_t room = kvf_bucket_room(&sp->budget, kvf_now(core->env));
        moving |= room == 0 || send_down(core, true, room);
    }
    moving |= sp->held;
    /* Stuck stays until something changes that could help, so that nobody who waits can miss it. */
    if ((core->spill_urgent || parks) && !moving && sp->active == 0 && !core->spill_stuck) {
        core->spill_stuck = true;
        kvf_core_changed(core);
    }
    core->spill_urgent = false; /* whoever still waits asks again */
    return events + (before != sp->active) + (core->cold_left == 0);
}

/* When the budget lets more go, if more should. */
uint64_t kvf_spills_next_timer(const struct kvf_core *core, uint64_t now_ns)
{
    struct kvf_spill *sp = core->spills;
    if (core->settings.down_budget == 0 || (!core->n_parking && excess(core) == 0))
        return UINT64_MAX;
    uint64_t ready = kvf_bucket_ready_ns(&sp->budget, now_ns);
    return ready > now_ns ? ready : now_ns + KVF_MS;
}
