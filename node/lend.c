/* The lender's side: slots of our lent DRAM that hold other nodes' blocks. A slot is RESERVED for a borrower and key,
 * written by PUT, and WHOLE once COMMIT has verified it. It is freed by the borrower's release; a reservation that is not
 * committed in time is taken back. A loan stands as long as etcd lists the borrower: after that his blocks are kept for
 * lend.keep_dead, for the node that takes his sessions over, unless their room is wanted before. A sweep finds blocks of sessions
 * that by etcd are not the borrower's any more, and that nobody released or adopted. */
#include "base/hash.h"
#include "node/lend.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define RESERVE_TIMEOUT_NS (30 * KVF_SEC)
#define SWEEP_NS (RESERVE_TIMEOUT_NS / 4)
#define ELSEWHERE_NS (45 * KVF_SEC) /* ADOPT comes within 30 s of the new home's hearing of the move, and that within some */
#define OLD_NS (10 * KVF_SEC) /* by a view of etcd that is so old nothing is swept */
#define SWEEP_MAX 1024 /* slots looked at in one turn, under the lock: of the sweep, and of what a dead borrower left */

/* ---------------------------------------------------------------- who has what, and of which session */

/* Number of a slot's holder: we ourselves, a dead one, a living peer. */
static uint32_t holder_of(uint16_t peer)
{
    return peer == KVF_PEER_NONE ? 0 : peer >= KVF_PEER_DEAD ? 1u + peer - KVF_PEER_DEAD : 1u + KVF_DEAD_MAX + peer;
}

static uint32_t session_of(const struct kvf_lend *lend, uint64_t session)
{
    return (uint32_t)(kvf_mix(session, 0) & (lend->session_buckets - 1));
}

static bool lists_create(struct kvf_core *core, uint64_t slots_max)
{
    struct kvf_lend *lend = core->lend;
    size_t holders = 1 + KVF_DEAD_MAX + core->settings.fabric_peers_max;
    lend->session_buckets = 64;
    while (lend->session_buckets < slots_max / 4)
        lend->session_buckets *= 2;
    lend->links = malloc(slots_max * sizeof *lend->links); /* touched as slots are given out */
    lend->heads[KVF_LENT_BY_HOLDER] = malloc(holders * sizeof(kvf_handle));
    lend->heads[KVF_LENT_BY_SESSION] = malloc(lend->session_buckets * sizeof(kvf_handle));
    if (!lend->links || !lend->heads[0] || !lend->heads[1])
        return false;
    memset(lend->heads[KVF_LENT_BY_HOLDER], 0xff, holders * sizeof(kvf_handle)); /* KVF_HANDLE_NONE */
    memset(lend->heads[KVF_LENT_BY_SESSION], 0xff, lend->session_buckets * sizeof(kvf_handle));
    return true;
}

static void link_to(struct kvf_lend *lend, kvf_handle h, int list, uint32_t number)
{
    kvf_handle *head = &lend->heads[list][number];
    lend->links[h].prev[list] = KVF_HANDLE_NONE;
    lend->links[h].next[list] = *head;
    if (*head != KVF_HANDLE_NONE)
        lend->links[*head].prev[list] = h;
    *head = h;
}

static void unlink_from(struct kvf_lend *lend, kvf_handle h, int list, uint32_t number)
{
    const struct kvf_lent_link *l = &lend->links[h];
    assert(l->prev[list] != KVF_HANDLE_NONE || lend->heads[list][number] == h);
    if (l->prev[list] != KVF_HANDLE_NONE)
        lend->links[l->prev[list]].next[list] = l->next[list];
    else
        lend->heads[list][number] = l->next[list];
    if (l->next[list] != KVF_HANDLE_NONE)
        lend->links[l->next[list]].prev[list] = l->prev[list];
}

/* The slots of a holder, or of a session; each may be freed or passed on before the next is asked for. */
struct walk {
    kvf_handle next;
    int list;
};

static struct walk walk_holder(const struct kvf_lend *lend, uint16_t peer)
{
    return (struct walk){.next = lend->heads[KVF_LENT_BY_HOLDER][holder_of(peer)], .list = KVF_LENT_BY_HOLDER};
}

static struct walk walk_session(const struct kvf_lend *lend, uint64_t session)
{
    return (struct walk){.next = lend->heads[KVF_LENT_BY_SESSION][session_of(lend, session)], .list = KVF_LENT_BY_SESSION};
}

/* KVF_HANDLE_NONE: there are no more. Of a session's some are others': their keys tell. */
static kvf_handle walk(const struct kvf_lend *lend, struct walk *w)
{
    kvf_handle h = w->next;
    w->next = h == KVF_HANDLE_NONE ? h : lend->links[h].next[w->list];
    return h;
}

/* ---------------------------------------------------------------- life */

enum kvf_status kvf_lend_create(struct kvf_core *core)
{
    core->lend = calloc(1, sizeof *core->lend);
    if (!core->lend)
        return KVF_ERR_NO_MEMORY;
    if (!core->lent)
        return KVF_OK;
    core->lend->limit_bytes = core->lend->ordered_bytes = kvf_arena_planned(core->lent);
    kvf_claim_create(core);
    kvf_reclaim_create(core);
    uint64_t most = kvf_arena_planned(core->lent) / 4096;
    most = most < core->settings.blocks_max ? most : core->settings.blocks_max;
    return lists_create(core, most) ? kvf_index_create(most, &core->lend->index) : KVF_ERR_NO_MEMORY;
}

void kvf_lend_destroy(struct kvf_core *core)
{
    if (!core->lend)
        return;
    if (core->lend->index)
        kvf_index_destroy(core->lend->index);
    free(core->lend->links);
    free(core->lend->heads[KVF_LENT_BY_HOLDER]);
    free(core->lend->heads[KVF_LENT_BY_SESSION]);
    free(core->lend);
    core->lend = NULL;
}

uint64_t kvf_lend_blocks(const struct kvf_core *core)
{
    return core->lend->index ? kvf_index_count(core->lend->index) : 0;
}

/* Whose a slot is: a living borrower, a dead one, or we ourselves (both NULL). */
static struct kvf_node_peer *borrower(struct kvf_core *core, const struct kvf_entry *e)
{
    return e->peer == KVF_PEER_NONE || kvf_lend_is_dead(e) ? NULL : &core->peers[e->peer];
}

/* Adds a slot to the counts of whoever has it, or (sign -1) takes it out. */
static void book(struct kvf_core *core, const struct kvf_entry *e, int sign)
{
    struct kvf_lend *lend = core->lend;
    struct kvf_node_peer *p = borrower(core, e);
    uint64_t one = (uint64_t)(int64_t)sign, bytes = (uint64_t)((int64_t)sign * e->bytes);
    if (e->peer == KVF_PEER_NONE)
        return;
    lend->others_bytes += bytes;
    if (p) {
        p->lent_blocks += one;
        p->lent_bytes += bytes;
        p->asked_bytes += e->state == KVF_LENT_ASKED ? bytes : 0;
        return;
    }
    struct kvf_dead *dead = &lend->dead[e->peer - KVF_PEER_DEAD];
    lend->dead_bytes += bytes;
    dead->blocks += one;
    dead->bytes += bytes;
}

static uint32_t now_s(const struct kvf_core *core)
{
    return (uint32_t)(kvf_now(core->env) / KVF_SEC);
}

static void slot_pass(struct kvf_core *core, kvf_handle h, uint16_t to)
{
    struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
    assert(e->state != KVF_LENT_RESERVED);
    book(core, e, -1);
    unlink_from(core->lend, h, KVF_LENT_BY_HOLDER, holder_of(e->peer));
    e->peer = to;
    link_to(core->lend, h, KVF_LENT_BY_HOLDER, holder_of(e->peer));
    e->state = KVF_LENT_WHOLE; /* the new one was not asked */
    e->sums = now_s(core);
    book(core, e, +1);
}

void kvf_lend_slot_state(struct kvf_core *core, struct kvf_entry *e, enum kvf_lent_state state)
{
    book(core, e, -1);
    e->state = (uint8_t)(state & 15);
    book(core, e, +1);
}

void kvf_lend_slot_free(struct kvf_core *core, kvf_handle h)
{
    struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
    book(core, e, -1);
    kvf_arena_free(core->lent, kvf_entry_location(e) - core->lent_at, e->bytes);
    kvf_count(&core->counters.lent_blocks_freed, 1);
    unlink_from(core->lend, h, KVF_LENT_BY_HOLDER, holder_of(e->peer));
    unlink_from(core->lend, h, KVF_LENT_BY_SESSION, session_of(core->lend, e->key.hi));
    kvf_index_remove(core->lend->index, h);
}

/* ---------------------------------------------------------------- borrowers that are gone */

/* Frees at most so many of the blocks of a dead borrower. true: that was all, and its place in the table is free. */
static bool dead_free(struct kvf_core *core, struct kvf_dead *dead, uint64_t most)
{
    struct walk w = walk_holder(core->lend, (uint16_t)(KVF_PEER_DEAD + (unsigned)(dead - core->lend->dead)));
    uint64_t n = 0;
    assert(dead->name[0] && most > 0);
    for (kvf_handle h; n < most && (h = walk(core->lend, &w)) != KVF_HANDLE_NONE; n++)
        kvf_lend_slot_free(core, h);
    kvf_count(&core->counters.lent_blocks_expired, n);
    dead->expired += n;
    if (dead->blocks > 0)
        return false;
    assert(dead->bytes == 0);
    if (dead->expired)
        kvf_log_info(&core->log, "nobody took over what node %s had lent here: %llu blocks are freed", dead->name,
                     (unsigned long long)dead->expired);
    dead->name[0] = 0;
    return true;
}

/* A free place in the table, or that of the one who has been dead for longest. */
static struct kvf_dead *dead_place(struct kvf_core *core)
{
    struct kvf_dead *oldest = &core->lend->dead[0];
    for (unsigned i = 0; i < KVF_DEAD_MAX; i++) {
        struct kvf_dead *d = &core->lend->dead[i];
        if (!d->name[0])
            return d;
        oldest = d->until_ns < oldest->until_ns ? d : oldest;
    }
    dead_free(core, oldest, UINT64_MAX);
    return oldest;
}

void kvf_lend_borrower_gone(struct kvf_core *core, const char *name, uint64_t incarnation)
{
    struct kvf_node_peer *p = kvf_cluster_peer(core, name);
    if (!core->lend || !core->lend->index || !p || p->member.incarnation != incarnation || p->lent_blocks == 0)
        return;
    struct kvf_dead *dead = core->settings.lend_keep_dead_ns ? dead_place(core) : NULL;
    if (dead) {
        snprintf(dead->name, sizeof dead->name, "%s", name);
        dead->incarnation = incarnation;
        dead->expired = 0;
        dead->until_ns = kvf_deadline(kvf_now(core->env), core->settings.lend_keep_dead_ns);
    }
    kvf_log_info(&core->log, "node %s is gone: its %llu lent blocks are %s", name, (unsigned long long)p->lent_blocks,
                 dead ? "kept for a while" : "freed");
    struct walk w = walk_holder(core->lend, p->number);
    for (kvf_handle h; (h = walk(core->lend, &w)) != KVF_HANDLE_NONE;) {
        if (dead && kvf_index_entry(core->lend->index, h)->state != KVF_LENT_RESERVED)
            slot_pass(core, h, (uint16_t)(KVF_PEER_DEAD + (unsigned)(dead - core->lend->dead)));
        else
            kvf_lend_slot_free(core, h);
    }
    assert(p->lent_blocks == 0 && p->lent_bytes == 0 && p->asked_bytes == 0);
}

/* Frees some slots of dead borrowers. false: they have none. */
static bool dead_make_room(struct kvf_core *core, uint64_t bytes)
{
    struct kvf_lend *lend = core->lend;
    uint64_t sum = 0;
    for (unsigned i = 0; lend->dead_bytes > 0 && i < KVF_DEAD_MAX && sum < bytes; i++) {
        struct walk w = walk_holder(lend, (uint16_t)(KVF_PEER_DEAD + i));
        for (kvf_handle h; sum < bytes && (h = walk(lend, &w)) != KVF_HANDLE_NONE;) {
            sum += kvf_index_entry(lend->index, h)->bytes;
            kvf_count(&core->counters.lent_blocks_expired, 1);
            kvf_lend_slot_free(core, h);
        }
    }
    return sum > 0;
}

/* ---------------------------------------------------------------- what borrowers say */

static void answer(struct kvf_node_peer *p, uint64_t request, enum kvf_status status, const void *payload, size_t bytes)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)payload, .iov_len = bytes};
    if (request)
        kvf_fabric_reply(p->peer, request, status, &part, bytes ? 1 : 0, NULL, NULL);
}

/* A slot for a block of another node, KVF_ARENA_NONE: there is no room. What dead borrowers left goes first. */
static uint64_t slot_memory(struct kvf_core *core, uint32_t bytes)
{
    struct kvf_lend *lend = core->lend;
    if (lend->deadline_ns) /* we want memory back ourselves */
        return KVF_ARENA_NONE;
    for (;;) {
        bool allowed = lend->others_bytes + bytes <= lend->limit_bytes;
        uint64_t at = allowed ? kvf_arena_alloc(core->lent, bytes) : KVF_ARENA_NONE;
        if (at != KVF_ARENA_NONE || !dead_make_room(core, bytes))
            return at;
    }
}

static enum kvf_status reserve_one(struct kvf_core *core, struct kvf_node_peer *p, const struct kvf_reserve_item *item,
                                   uint64_t *offset)
{
    struct kvf_index *index = core->lend->index;
    if (item->bytes < 1 || item->bytes > core->settings.block_bytes_max)
        return KVF_ERR_INVALID;
    kvf_handle h = kvf_index_find(index, item->key);
    if (h != KVF_HANDLE_NONE) { /* a borrower that gave it up and comes again; nobody else's may be taken */
        const struct kvf_entry *old = kvf_index_entry(index, h);
        if (old->peer != p->number && !kvf_lend_is_dead(old))
            return KVF_ERR_EXISTS;
        kvf_lend_slot_free(core, h);
    }
    uint64_t at = slot_memory(core, item->bytes);
    if (at == KVF_ARENA_NONE)
        return KVF_ERR_FULL;
    enum kvf_status st = kvf_index_add(index, item->key, &h);
    if (st != KVF_OK) {
        kvf_arena_free(core->lent, at, item->bytes);
        return KVF_ERR_FULL;
    }
    struct kvf_entry *e = kvf_index_entry(index, h);
    kvf_entry_set_location(e, core->lent_at + at);
    e->bytes = item->bytes;
    e->peer = p->number;
    e->state = KVF_LENT_RESERVED;
    e->sums = now_s(core);
    book(core, e, +1);
    link_to(core->lend, h, KVF_LENT_BY_HOLDER, holder_of(e->peer));
    link_to(core->lend, h, KVF_LENT_BY_SESSION, session_of(core->lend, e->key.hi));
    *offset = kvf_entry_location(e);
    return KVF_OK;
}

static void on_reserve(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    struct kvf_reserve_item items[KVF_BATCH_MAX];
    uint64_t offsets[KVF_BATCH_MAX];
    uint8_t payload[2 + KVF_BATCH_MAX * 8];
    unsigned n, granted = 0;
    if (!kvf_wire_reserve_read(&r, items, &n)) {
        kvf_count(&core->counters.messages_refused, 1);
        answer(p, request, KVF_ERR_INVALID, NULL, 0);
        return;
    }
    enum kvf_status st = KVF_OK;
    while (granted < n && st == KVF_OK) {
        st = reserve_one(core, p, &items[granted], &offsets[granted]);
        granted += st == KVF_OK;
    }
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_granted(&w, offsets, granted);
    answer(p, request, granted ? KVF_OK : st, payload, granted ? kvf_writer_used(&w) : 0);
}

/* Bytes go only into slots that this borrower has reserved and not yet committed. KVF_ARENA_NONE: refused. */
static uint64_t put_place(struct kvf_core *core, const struct kvf_node_peer *p, const struct kvf_put_item *item)
{
    kvf_handle h = kvf_index_find(core->lend->index, item->key);
    struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->lend->index, h);
    if (!e || e->peer != p->number || e->state != KVF_LENT_RESERVED || item->at > e->bytes || item->bytes > e->bytes - item->at)
        return KVF_ARENA_NONE;
    return kvf_entry_location(e) + item->at;
}

static void on_put(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    struct kvf_put_item items[KVF_BATCH_MAX];
    uint64_t to[KVF_BATCH_MAX];
    unsigned n = 0;
    enum kvf_status st = kvf_wire_put_read(&r, items, &n) ? KVF_OK : KVF_ERR_INVALID;
    for (unsigned i = 0; i < n && st == KVF_OK; i++) {
        to[i] = put_place(core, p, &items[i]);
        st = to[i] == KVF_ARENA_NONE ? KVF_ERR_INVALID : KVF_OK;
    }
    for (unsigned i = 0; i < n && st == KVF_OK; i++) /* whoever reads in place what lay here before is to notice */
        kvf_fabric_region_write(core->fabric, to[i], kvf_read_bytes(&r, items[i].bytes), items[i].bytes);
    if (st != KVF_OK)
        kvf_count(&core->counters.messages_refused, 1);
    answer(p, request, st, NULL, 0);
}

static bool commit_one(struct kvf_core *core, struct kvf_node_peer *p, const struct kvf_commit_item *item)
{
    kvf_handle h = kvf_index_find(core->lend->index, item->key);
    if (h == KVF_HANDLE_NONE)
        return false;
    struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
    if (e->peer != p->number || kvf_entry_location(e) != item->offset || e->bytes != item->bytes ||
        e->state != KVF_LENT_RESERVED)
        return false;
    const uint8_t *data = core->memory + kvf_entry_location(e);
    if (!kvf_block_verify(core->dev, item->seed, data, e->bytes, item->chunk_bytes, UINT64_MAX, item->sums)) {
        kvf_log_warn(&core->log, "a block that node %s wrote here does not match its checksums: refused", p->member.name);
        kvf_count(&core->counters.blocks_corrupt, 1);
        kvf_lend_slot_free(core, h); /* so that no slot is hashed twice */
        return false;
    }
    kvf_lend_slot_state(core, e, KVF_LENT_WHOLE);
    kvf_count(&core->counters.lent_blocks_put, 1);
    return true;
}

static void on_commit(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    uint8_t statuses[KVF_BATCH_MAX], payload[2 + KVF_BATCH_MAX];
    unsigned n = 0;
    struct kvf_commit_item item;
    struct kvf_reader all = r; /* read to its end before the first slot is anything else by it */
    while (kvf_reader_left(&all) > 0 && n <= KVF_BATCH_MAX && kvf_wire_commit_read(&all, &item))
        n++;
    if (all.bad || kvf_reader_left(&all) > 0 || n == 0 || n > KVF_BATCH_MAX) {
        kvf_count(&core->counters.messages_refused, 1);
        answer(p, request, KVF_ERR_INVALID, NULL, 0);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        bool read = kvf_wire_commit_read(&r, &item);
        assert(read);
        statuses[i] = read && commit_one(core, p, &item) ? 0 : 1;
    }
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_statuses(&w, statuses, n);
    answer(p, request, KVF_OK, payload, kvf_writer_used(&w));
}

static void on_release(struct kvf_core *core, struct kvf_node_peer *p, uint64_t request, struct kvf_reader r)
{
    struct kvf_key keys[KVF_BATCH_MAX];
    unsigned n;
    enum kvf_status st = KVF_OK;
    if (!kvf_wire_keys_read(&r, keys, &n)) {
        kvf_count(&core->counters.messages_refused, 1);
        answer(p, request, KVF_ERR_INVALID, NULL, 0);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        kvf_handle h = kvf_index_find(core->lend->index, keys[i]);
        const struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->lend->index, h);
        if (!e)
            continue;
        if (e->peer != p->number) {
            st = KVF_ERR_STALE; /* it may be its own soon, by ADOPT: it comes again then */
            continue;
        }
        kvf_count(&core->counters.lent_blocks_returned, e->state == KVF_LENT_ASKED);
        kvf_lend_slot_free(core, h);
    }
    answer(p, request, st, NULL, 0);
}

/* The session's blocks have another borrower now: a peer, or (NULL) we ourselves. Those of a dead one are found too. */
static void adopt(struct kvf_core *core, uint64_t session, struct kvf_node_peer *p)
{
    uint16_t number = p ? p->number : KVF_PEER_NONE;
    struct walk w = walk_session(core->lend, session);
    for (kvf_handle h; (h = walk(core->lend, &w)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(core->lend->index, h);
        if (e->key.hi == session && e->state != KVF_LENT_RESERVED && e->peer != number)
            slot_pass(core, h, number);
    }
}

/* Only whom etcd names as the session's home may take its blocks over. */
enum kvf_status kvf_lend_adopt(struct kvf_core *core, struct kvf_node_peer *p, uint64_t session, uint64_t epoch)
{
    const struct kvf_placement *placement = core->coord ? kvf_coord_placement_known(core->coord, session) : NULL;
    if (!placement || placement->epoch < epoch)
        return KVF_ERR_BUSY;
    if (placement->epoch != epoch || strcmp(placement->home, p->member.name) != 0)
        return KVF_ERR_STALE;
    kvf_lend_wait_overtaken(core, p);
    adopt(core, session, p);
    return KVF_OK;
}

/* What we know of etcd may be old: nobody is refused by it. */
static void on_adopt(struct kvf_core *core, struct kvf_node_peer *p, const struct kvf_message *message, struct kvf_reader r)
{
    uint64_t session = kvf_read_u64(&r), epoch = kvf_read_u64(&r);
    bool good = !r.bad && kvf_reader_left(&r) == 0;
    if (good && kvf_lend_adopt(core, p, session, epoch) == KVF_OK) {
        answer(p, message->request, KVF_OK, NULL, 0);
    } else if (!good) {
        kvf_count(&core->counters.messages_refused, 1);
        answer(p, message->request, KVF_ERR_INVALID, NULL, 0);
    } else if (!kvf_lend_wait_add(core, p, message, session, epoch)) {
        answer(p, message->request, KVF_ERR_BUSY, NULL, 0);
    }
}

/* Whether a block of ours lies in this slot. */
static bool is_own(struct kvf_core *core, const struct kvf_entry *slot)
{
    kvf_handle h = kvf_index_find(core->index, slot->key);
    const struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, h);
    return e && e->tier == KVF_TIER_REMOTE && e->peer == KVF_PEER_NONE && e->state != KVF_BLOCK_LOST &&
           e->state != KVF_BLOCK_WRITING && kvf_entry_location(e) == kvf_entry_location(slot);
}

void kvf_lend_departed(struct kvf_core *core, uint64_t session)
{
    if (!core->lend->index)
        return;
    struct walk w = walk_session(core->lend, session);
    for (kvf_handle h; (h = walk(core->lend, &w)) != KVF_HANDLE_NONE;) {
        struct kvf_entry *slot = kvf_index_entry(core->lend->index, h);
        if (slot->key.hi == session && slot->peer == KVF_PEER_NONE)
            slot->sums = now_s(core);
    }
}

/* What etcd says of the session whose block a living borrower has in this slot. NULL: nothing, or it is none of a session. */
static const struct kvf_placement *placement_of(const struct kvf_core *core, const struct kvf_entry *slot)
{
    return core->coord && !(slot->key.hi & KVF_OPAQUE_BIT) ? kvf_coord_placement_known(core->coord, slot->key.hi) : NULL;
}

void kvf_lend_release_all(struct kvf_core *core, const struct kvf_node_peer *p)
{
    struct walk w = walk_holder(core->lend, p->number);
    for (kvf_handle h; (h = walk(core->lend, &w)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *slot = kvf_index_entry(core->lend->index, h);
        const struct kvf_placement *placement = placement_of(core, slot);
        if (!placement || strcmp(placement->home, p->member.name) == 0 || slot->state == KVF_LENT_RESERVED)
            kvf_lend_slot_free(core, h);
    }
}

/* What has moved by now is known when our view of etcd is newer than the message. */
static void on_release_all(struct kvf_core *core, struct kvf_node_peer *p, const struct kvf_message *message)
{
    kvf_lend_wait_overtaken(core, p);
    if (!core->coord)
        kvf_lend_release_all(core, p);
    else if (kvf_lend_wait_add(core, p, message, 0, 0))
        return;
    answer(p, message->request, core->coord ? KVF_ERR_BUSY : KVF_OK, NULL, 0);
}

/* ---------------------------------------------------------------- what nobody will release */

/* Whether a borrower has a block of a session that by etcd is not his: it moved or ended, and its home could not tell us. What
 * counts is how long etcd has said so, to our knowledge: a view that is not proven grows old, and nothing with it. */
static bool is_elsewhere(struct kvf_core *core, struct kvf_entry *slot, uint32_t seconds)
{
    if (!core->coord || (slot->key.hi & KVF_OPAQUE_BIT) || kvf_lend_is_dead(slot))
        return false;
    const struct kvf_placement *placement = placement_of(core, slot);
    bool his = placement && strcmp(placement->home, core->peers[slot->peer].member.name) == 0;
    bool unknown = !core->store_up || (!placement && !kvf_coord_placements_whole(core->coord));
    if (his || unknown) /* etcd is away, or a record of it cannot be read: nothing is concluded */
        slot->sums = seconds;
    uint64_t as_of = kvf_coord_as_of(core->coord);
    return slot->sums + ELSEWHERE_NS / KVF_SEC < as_of / KVF_SEC && kvf_now(core->env) < kvf_deadline(as_of, OLD_NS);
}

/* Reservations without COMMIT, our own slots of sessions that moved away and were not adopted, others' of sessions elsewhere. */
static bool is_forgotten(struct kvf_core *core, struct kvf_entry *slot, uint32_t seconds)
{
    bool old = slot->sums + RESERVE_TIMEOUT_NS / KVF_SEC < seconds;
    if (slot->peer == KVF_PEER_NONE)
        return old && !is_own(core, slot);
    return slot->state == KVF_LENT_RESERVED ? old : is_elsewhere(core, slot, seconds);
}

/* A part of the index in every turn. true: it goes on. */
static bool sweep(struct kvf_core *core, uint64_t now)
{
    struct kvf_lend *lend = core->lend;
    for (unsigned looked = 0; now >= lend->next_sweep_ns && looked < SWEEP_MAX; looked++) {
        kvf_handle h = kvf_index_walk(lend->index, &lend->sweep_cursor);
        if (h == KVF_HANDLE_NONE) {
            lend->sweep_cursor = 0;
            lend->next_sweep_ns = kvf_deadline(now, SWEEP_NS);
            continue;
        }
        struct kvf_entry *slot = kvf_index_entry(lend->index, h);
        if (!is_forgotten(core, slot, (uint32_t)(now / KVF_SEC)))
            continue;
        kvf_count(&core->counters.lent_blocks_expired, slot->peer != KVF_PEER_NONE && slot->state != KVF_LENT_RESERVED);
        kvf_lend_slot_free(core, h);
    }
    return now >= lend->next_sweep_ns;
}

void kvf_lend_adopt_own(struct kvf_core *core, uint64_t session)
{
    if (!core->lend->index)
        return;
    adopt(core, session, NULL);
    /* What the old home had given up without our hearing of it is nobody's now. */
    struct walk w = walk_session(core->lend, session);
    for (kvf_handle h; (h = walk(core->lend, &w)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *slot = kvf_index_entry(core->lend->index, h);
        if (slot->key.hi == session && slot->peer == KVF_PEER_NONE && !is_own(core, slot))
            kvf_lend_slot_free(core, h);
    }
}

void kvf_lend_release_own(struct kvf_core *core, struct kvf_key key)
{
    kvf_handle h = core->lend && core->lend->index ? kvf_index_find(core->lend->index, key) : KVF_HANDLE_NONE;
    if (h != KVF_HANDLE_NONE && kvf_index_entry(core->lend->index, h)->peer == KVF_PEER_NONE)
        kvf_lend_slot_free(core, h);
}

const uint8_t *kvf_lend_data(const struct kvf_core *core, const struct kvf_node_peer *borrower, struct kvf_key key, uint64_t offset,
                             uint32_t bytes)
{
    kvf_handle h = core->lend && core->lend->index ? kvf_index_find(core->lend->index, key) : KVF_HANDLE_NONE;
    const struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->lend->index, h);
    if (!e || e->peer != borrower->number || e->state == KVF_LENT_RESERVED || e->bytes != bytes || kvf_entry_location(e) != offset)
        return NULL;
    return core->memory + offset;
}

void kvf_lend_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    if (message->type == KVF_MSG_RELEASE_ALL && message->bytes > 0) {
        kvf_count(&core->counters.messages_refused, 1);
        answer(from, message->request, KVF_ERR_INVALID, NULL, 0);
        return;
    }
    if (!core->lend->index) { /* what lies nowhere is forgotten, and adopted, already */
        bool nothing = message->type == KVF_MSG_RELEASE || message->type == KVF_MSG_RELEASE_ALL || message->type == KVF_MSG_ADOPT;
        answer(from, message->request, nothing ? KVF_OK : KVF_ERR_FULL, NULL, 0);
        return;
    }
    switch (message->type) {
    case KVF_MSG_RESERVE:
        kvf_lend_wait_overtaken(core, from);
        on_reserve(core, from, message->request, r);
        break;
    case KVF_MSG_PUT:
        on_put(core, from, message->request, r);
        break;
    case KVF_MSG_COMMIT:
        on_commit(core, from, message->request, r);
        break;
    case KVF_MSG_RELEASE:
        on_release(core, from, message->request, r);
        break;
    case KVF_MSG_RELEASE_ALL:
        on_release_all(core, from, message);
        break;
    default:
        on_adopt(core, from, message, r);
    }
}

unsigned kvf_lend_poll(struct kvf_core *core)
{
    struct kvf_lend *lend = core->lend;
    if (!lend->index)
        return 0;
    uint64_t now = kvf_now(core->env);
    unsigned judged = kvf_lend_wait_poll(core);
    bool more = sweep(core, now);
    for (unsigned i = 0; lend->dead_bytes > 0 && i < KVF_DEAD_MAX; i++)
        if (lend->dead[i].name[0] && now >= lend->dead[i].until_ns)
            more |= !dead_free(core, &lend->dead[i], SWEEP_MAX);
    return kvf_claim_poll(core) + kvf_reclaim_poll(core) + judged + more;
}

void kvf_lend_check(const struct kvf_core *core)
{
    const struct kvf_lend *lend = core->lend;
    uint64_t cursor = 0, slots = 0, others = 0, listed[2] = {0};
    if (!lend->index)
        return;
    for (kvf_handle h; (h = kvf_index_walk(lend->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(lend->index, h);
        others += e->peer == KVF_PEER_NONE ? 0 : e->bytes;
        slots++;
    }
    for (int list = 0; list < 2; list++) {
        uint32_t numbers = list == KVF_LENT_BY_SESSION ? lend->session_buckets
                                                       : 1u + KVF_DEAD_MAX + (uint32_t)core->settings.fabric_peers_max;
        for (uint32_t n = 0; n < numbers; n++) {
            for (kvf_handle h = lend->heads[list][n]; h != KVF_HANDLE_NONE; h = lend->links[h].next[list], listed[list]++) {
                const struct kvf_entry *e = kvf_index_entry(lend->index, h);
                assert(n == (list == KVF_LENT_BY_SESSION ? session_of(lend, e->key.hi) : holder_of(e->peer)));
                assert(listed[list] < slots);
            }
        }
        assert(listed[list] == slots);
    }
    assert(others == lend->others_bytes);
}
