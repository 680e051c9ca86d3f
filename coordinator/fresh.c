/* How old our view of etcd is. A watch that nothing comes from may be one without news, one that lags, or one that is dead though
 * its connection stands; only a proof tells. One is made every few seconds, and when somebody wants a newer one:
 *
 *   IDLE --a linearizable read, sent at T, is answered at revision R--> the view has come to R:  it holds all that etcd had at T
 *        \--it has not--> BEHIND --the watch comes to R--> as above, IDLE
 *
 *   BEHIND --for a while--> R may be a change that is none of this prefix: a member puts its own record again, as it is, for that
 *                           one must come. TOUCHING until etcd has done so, at a revision that is R then --> TOUCHED
 *   TOUCHED --and it does not come--> the watch is dead or too slow: everything is ranged anew, and another watch begun
 *
 * One who watches and is no member waits for longer, and then ranges anew. */
#include "coordinator/internal.h"

#include <assert.h>

#define PROOF_NS (3 * KVF_SEC)       /* from one to the next */
#define CATCH_UP_NS (1 * KVF_SEC)    /* so much may the watch lag before anything is done, and then twice that */
#define OBSERVER_NS (30 * KVF_SEC)
#define RENEW_NS (10 * KVF_SEC)      /* at most so often is everything ranged for want of a word */

static void proven(struct kvf_coord *coord, const struct kvf_proof *proof)
{
    struct kvf_fresh *f = &coord->fresh;
    f->state = KVF_FRESH_IDLE;
    if (proof->number > f->shown.number)
        f->shown = *proof;
    f->next_ns = f->shown.number < f->wanted ? 0 : kvf_deadline(f->shown.sent_ns, PROOF_NS);
}

struct kvf_proof kvf_fresh_sends(struct kvf_coord *coord)
{
    return (struct kvf_proof){.number = ++coord->fresh.numbers, .sent_ns = kvf_now(coord->env)};
}

void kvf_fresh_ranged(struct kvf_coord *coord)
{
    proven(coord, &coord->range);
}

void kvf_fresh_told(struct kvf_coord *coord)
{
    const struct kvf_fresh *f = &coord->fresh;
    if (f->state != KVF_FRESH_IDLE && coord->revision >= f->revision)
        proven(coord, &f->proof);
}

static void on_read(struct kvf_coord *coord, struct kvf_call *call, const struct kvf_store_result *result)
{
    struct kvf_fresh *f = &coord->fresh;
    uint64_t now = kvf_now(coord->env);
    kvf_calls_give(call);
    f->busy = false;
    f->next_ns = kvf_deadline(now, PROOF_NS / 3);
    if (result->status != KVF_OK)
        return;
    f->state = KVF_FRESH_BEHIND;
    f->revision = result->revision;
    f->since_ns = now;
    if (coord->synced)
        kvf_fresh_told(coord);
}

/* Any key will do: what counts is the revision that comes with the answer. */
static bool send_read(struct kvf_coord *coord)
{
    struct kvf_fresh *f = &coord->fresh;
    char key[KVF_STORE_KEY_MAX];
    struct kvf_call *call = kvf_calls_take(coord, on_read);
    f->next_ns = kvf_coord_retry_at(coord, 0);
    if (!call)
        return false;
    if (!kvf_records_leader_key(coord->prefix, key) ||
        coord->store->ops->range(coord->store, key, kvf_calls_answered, call) != KVF_OK) {
        kvf_calls_give(call);
        return false;
    }
    f->proof = kvf_fresh_sends(coord);
    f->busy = true;
    return true;
}

/* Our record is put again, guarded by the revision of the one that stands. */
static unsigned touch(struct kvf_coord *coord, uint64_t now)
{
    struct kvf_fresh *f = &coord->fresh;
    f->state = KVF_FRESH_TOUCHING;
    if (!coord->registered) /* being put, or soon */
        return 0;
    if (coord->registered_revision > f->revision) {
        f->state = KVF_FRESH_TOUCHED;
        f->revision = coord->registered_revision;
        f->since_ns = now;
        return 1;
    }
    coord->registered = false;
    coord->put_guard = coord->registered_revision;
    coord->next_ns = 0;
    return 1;
}

static unsigned renew(struct kvf_coord *coord, uint64_t now)
{
    struct kvf_fresh *f = &coord->fresh;
    f->renew_ns = kvf_deadline(now, RENEW_NS);
    f->state = KVF_FRESH_IDLE;
    coord->synced = false;
    coord->next_ns = 0;
    kvf_log_warn(coord->log, "etcd's watch tells nothing, though there is something to tell; everything is asked for anew");
    return 1;
}

/* When something is to be done next in this state. */
static uint64_t due(const struct kvf_coord *coord)
{
    const struct kvf_fresh *f = &coord->fresh;
    uint64_t patience = coord->observer ? OBSERVER_NS : CATCH_UP_NS;
    if (!coord->synced || f->busy || coord->state != KVF_JOIN_JOINED)
        return KVF_NEVER;
    if (f->state == KVF_FRESH_IDLE)
        return f->next_ns;
    if (f->state == KVF_FRESH_TOUCHING)
        return coord->registered ? 0 : KVF_NEVER;
    uint64_t at = kvf_deadline(f->since_ns, f->state == KVF_FRESH_TOUCHED ? 2 * CATCH_UP_NS : patience);
    bool renews = f->state == KVF_FRESH_TOUCHED || coord->observer;
    return renews && at < f->renew_ns ? f->renew_ns : at;
}

unsigned kvf_fresh_poll(struct kvf_coord *coord)
{
    struct kvf_fresh *f = &coord->fresh;
    uint64_t now = kvf_now(coord->env);
    assert(f->state == KVF_FRESH_IDLE || !f->busy);
    if (now < due(coord))
        return 0;
    if (f->state == KVF_FRESH_IDLE)
        return send_read(coord);
    return f->state == KVF_FRESH_TOUCHED || coord->observer ? renew(coord, now) : touch(coord, now);
}

uint64_t kvf_fresh_next(const struct kvf_coord *coord)
{
    return due(coord);
}

uint64_t kvf_coord_as_of(const struct kvf_coord *coord)
{
    return coord->fresh.shown.sent_ns;
}

uint64_t kvf_coord_refresh(struct kvf_coord *coord)
{
    struct kvf_fresh *f = &coord->fresh;
    f->wanted = f->numbers + 1; /* what is under way may have been answered already */
    if (f->state == KVF_FRESH_IDLE && !f->busy)
        f->next_ns = 0;
    return f->wanted;
}

bool kvf_coord_refreshed(const struct kvf_coord *coord, uint64_t ticket)
{
    return coord->fresh.shown.number >= ticket;
}
