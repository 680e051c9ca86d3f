/* Staging: memory for cold blocks on their way to attention, and what is left of it as a cache, least recently used out first; and
 * views of those that need not come. */
#include "node/internal.h"
#include <assert.h>
#include <stdlib.h>

enum kvf_status kvf_staging_create(struct kvf_core *core)
{
    uint64_t most = core->settings.staging_bytes / 4096;
    core->stages_max = (uint32_t)(most < 65536 ? most : 65536);
    core->stages = calloc(core->stages_max, sizeof *core->stages);
    core->stage_buckets = 1;
    while (core->stage_buckets < core->stages_max)
        core->stage_buckets *= 2;
    core->stage_table = malloc(core->stage_buckets * sizeof *core->stage_table);
    core->stage_free = core->stage_lru = core->stage_ahead = (struct kvf_list){KVF_STAGE_NONE, KVF_STAGE_NONE, 0};
    if (!core->stages || !core->stage_table)
        return KVF_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < core->stage_buckets; i++)
        core->stage_table[i] = KVF_STAGE_NONE;
    for (uint32_t i = 0; i < core->stages_max; i++) {
        core->stages[i].handle = KVF_HANDLE_NONE;
        core->stages[i].next = core->stage_free.head;
        core->stage_free.head = i;
    }
    core->stage_free.count = core->stages_max;
    return KVF_OK;
}

void kvf_staging_destroy(struct kvf_core *core)
{
    free(core->stages);
    free(core->stage_table);
    core->stages = NULL;
    core->stage_table = NULL;
}

/* Where in the hash table the stage of a block is linked, or would be: KVF_STAGE_NONE stands there then. */
static uint32_t *place_of(const struct kvf_core *core, kvf_handle handle)
{
    uint32_t *at = &core->stage_table[handle * 0x9e3779b1u & (core->stage_buckets - 1)];
    while (*at != KVF_STAGE_NONE && core->stages[*at].handle != handle)
        at = &core->stages[*at].chain;
    return at;
}

static void forget(struct kvf_core *core, kvf_handle handle)
{
    uint32_t *at = place_of(core, handle);
    *at = core->stages[*at].chain;
}

static void list_push(struct kvf_core *core, struct kvf_list *list, uint32_t n)
{
    struct kvf_stage *s = &core->stages[n];
    s->next = KVF_STAGE_NONE;
    s->prev = list->tail;
    if (s->prev != KVF_STAGE_NONE)
        core->stages[s->prev].next = n;
    else
        list->head = n;
    list->tail = n;
    list->count++;
}

static void list_remove(struct kvf_core *core, struct kvf_list *list, uint32_t n)
{
    struct kvf_stage *s = &core->stages[n];
    if (s->prev != KVF_STAGE_NONE)
        core->stages[s->prev].next = s->next;
    else
        list->head = s->next;
    if (s->next != KVF_STAGE_NONE)
        core->stages[s->next].prev = s->prev;
    else
        list->tail = s->prev;
    list->count--;
}

static bool at_rest(const struct kvf_stage *s)
{
    return s->pins == 0 && s->inflight == 0;
}

static void stage_free(struct kvf_core *core, uint32_t n)
{
    struct kvf_stage *s = &core->stages[n];
    assert(at_rest(s));
    if (s->view.data) {
        kvf_fabric_view_close(core->fabric, &s->view);
        if (!s->orphan && kvf_index_entry(core->index, s->handle)->state == KVF_BLOCK_RISING)
            kvf_core_wake(core);
    } else {
        kvf_arena_free(core->staging, (uint64_t)(s->slot - core->memory) - core->staging_at, s->bytes);
    }
    if (!s->orphan)
        forget(core, s->handle);
    s->handle = KVF_HANDLE_NONE;
    s->next = core->stage_free.head;
    core->stage_free.head = n;
    core->stage_free.count++;
}

/* Came to rest: to the cache, or away. */
static void settle(struct kvf_core *core, uint32_t n)
{
    struct kvf_stage *s = &core->stages[n];
    if (!at_rest(s))
        return;
    if (s->orphan || s->view.data || atomic_load(&s->have) == 0)
        stage_free(core, n);
    else
        list_push(core, &core->stage_lru, n);
    kvf_core_changed(core);
}

static void read_done(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct kvf_core *core = read->core;
    struct kvf_stage *s = arg;
    uint32_t n = (uint32_t)(s - core->stages);
    s->inflight &= ~read->mask;
    if (s->ahead == read) {
        s->ahead = NULL;
        list_remove(core, &core->stage_ahead, n);
    }
    if (status == KVF_OK) {
        kvf_count(&core->counters.blocks_verified, read->verified != 0);
        atomic_fetch_or_explicit(&s->verified, read->verified & read->mask, memory_order_relaxed);
        atomic_fetch_or_explicit(&s->have, read->mask, memory_order_release);
    }
    if (status != KVF_OK)
        atomic_store(&s->status, status);
    s->prefetched &= status == KVF_OK;
    settle(core, n);
}

/* A mask widened to whole pages of the disk: a page is never read again over a chunk of it that was verified already. */
static uint64_t whole_pages(const struct kvf_core *core, const struct kvf_entry *e, uint64_t mask)
{
    uint32_t chunk = kvf_block_chunk_bytes(core, e), run = 1;
    while ((uint64_t)run * chunk % 4096 && run < kvf_entry_chunks(e))
        run++; /* chunks that fill whole pages together */
    uint64_t group = run >= 64 ? UINT64_MAX : (1ull << run) - 1, wide = 0;
    for (uint32_t c = 0; c < kvf_entry_chunks(e); c += run)
        wide |= mask >> c & group ? group << c : 0;
    return wide & (kvf_entry_chunks(e) == 64 ? UINT64_MAX : (1ull << kvf_entry_chunks(e)) - 1);
}

/* The chunks of a mask, widened to whole pages, that are neither here nor on their way. */
static uint64_t lacking(const struct kvf_core *core, const struct kvf_stage *s, uint64_t mask)
{
    return whole_pages(core, kvf_index_entry(core->index, s->handle), mask) & ~(atomic_load(&s->have) | s->inflight);
}

/* What is on its way already but was only read ahead is wanted now. */
static void ask(struct kvf_core *core, struct kvf_stage *s, uint64_t mask, uint64_t deadline_ns)
{
    if (s->ahead && (s->ahead->mask & mask))
        kvf_read_promote(core, s->ahead);
    uint64_t chunks = lacking(core, s, mask);
    if (chunks == 0)
        return;
    enum kvf_status st = kvf_read_start(core, s->handle, chunks, (uint8_t *)(uintptr_t)s->slot, deadline_ns, KVF_PRIORITY_DEMAND,
                                        read_done, s, NULL);
    if (st == KVF_OK)
        s->inflight |= chunks;
    else
        atomic_store(&s->status, st);
}

/* What has rested for longest goes. false: nothing rests, or, for a read ahead, that was read ahead itself. */
static bool make_way(struct kvf_core *core, bool prefetch)
{
    uint32_t oldest = core->stage_lru.head;
    if (oldest == KVF_STAGE_NONE || (prefetch && core->stages[oldest].prefetched))
        return false;
    list_remove(core, &core->stage_lru, oldest);
    stage_free(core, oldest);
    return true;
}

uint64_t kvf_stage_memory(struct kvf_core *core, uint32_t bytes, bool prefetch)
{
    for (;;) {
        uint64_t at = kvf_arena_alloc(core->staging, bytes);
        if (at != KVF_ARENA_NONE || !make_way(core, prefetch))
            return at;
    }
}

/* The lender of a block whose memory is mapped here, or NULL. Not of an opaque one: a get copies what it has checked, and what lies
 * at a lender may be another's between the two. */
static struct kvf_peer *mapped_lender(const struct kvf_core *core, const struct kvf_entry *e)
{
    if (kvf_entry_model(e) == KVF_ENTRY_OPAQUE)
        return NULL;
    const struct kvf_node_peer *p = e->tier == KVF_TIER_REMOTE && e->peer != KVF_PEER_NONE ? &core->peers[e->peer] : NULL;
    return core->in_place && p && p->up && kvf_peer_way(p->peer) == KVF_WAY_MAPPED ? p->peer : NULL;
}

/* Where the block is to be used: in its lender's memory, or in a slot of staging. false: no room. */
static bool place_new(struct kvf_core *core, const struct kvf_entry *e, struct kvf_stage *s, bool prefetch)
{
    struct kvf_peer *lender = mapped_lender(core, e);
    s->view.data = NULL;
    if (lender && kvf_fabric_view_open(lender, kvf_entry_location(e), e->bytes, &s->view) == KVF_OK) {
        s->slot = s->view.data;
        return true;
    }
    uint64_t at = kvf_stage_memory(core, e->bytes, prefetch);
    s->slot = at == KVF_ARENA_NONE ? NULL : core->memory + core->staging_at + at;
    return at != KVF_ARENA_NONE;
}

static uint32_t stage_new(struct kvf_core *core, kvf_handle handle, bool prefetch)
{
    struct kvf_entry *e = kvf_index_entry(core->index, handle);
    struct kvf_stage made = {.handle = KVF_HANDLE_NONE};
    while (core->stage_free.head == KVF_STAGE_NONE) /* a view needs no memory, and small blocks not all of it */
        if (!make_way(core, prefetch))
            return KVF_STAGE_NONE;
    if (!place_new(core, e, &made, prefetch))
        return KVF_STAGE_NONE;
    uint32_t n = core->stage_free.head;
    assert(n != KVF_STAGE_NONE && made.slot);
    struct kvf_stage *s = &core->stages[n];
    core->stage_free.head = s->next;
    core->stage_free.count--;
    s->handle = handle;
    s->slot = made.slot;
    s->view = made.view;
    s->bytes = e->bytes;
    s->inflight = 0;
    atomic_store(&s->have, s->view.data ? UINT64_MAX : 0);
    atomic_store(&s->verified, 0);
    atomic_store(&s->status, KVF_OK);
    s->pins = 0;
    s->orphan = false;
    s->prefetched = false;
    s->ahead = NULL;
    s->format = (uint8_t)kvf_cold_format_of(e);
    s->seed = kvf_block_seed_of(core, e);
    s->place = s->asked = kvf_entry_place(e);
    s->chain = KVF_STAGE_NONE;
    *place_of(core, handle) = n;
    return n;
}

uint32_t kvf_stage_get(struct kvf_core *core, kvf_handle handle, uint64_t mask, uint64_t deadline_ns)
{
    uint32_t n = *place_of(core, handle);
    bool fresh = n == KVF_STAGE_NONE;
    if (fresh)
        n = stage_new(core, handle, false);
    if (n == KVF_STAGE_NONE)
        return n;
    struct kvf_stage *s = &core->stages[n];
    if (!fresh && at_rest(s))
        list_remove(core, &core->stage_lru, n);
    if (s->prefetched)
        kvf_count(&core->counters.prefetch_used, 1);
    s->prefetched = false;
    s->pins++;
    if (s->inflight == 0)
        atomic_store(&s->status, KVF_OK);
    ask(core, s, mask, deadline_ns);
    return n;
}

bool kvf_stage_ahead(struct kvf_core *core, kvf_handle handle, uint64_t mask, uint64_t deadline_ns, uint64_t session,
                     uint32_t layer)
{
    uint32_t n = *place_of(core, handle);
    bool fresh = n == KVF_STAGE_NONE;
    if (fresh && mapped_lender(core, kvf_index_entry(core->index, handle)))
        return true; /* it is here already */
    if (fresh)
        n = stage_new(core, handle, true);
    if (n == KVF_STAGE_NONE)
        return false;
    struct kvf_stage *s = &core->stages[n];
    uint64_t chunks = lacking(core, s, mask);
    if (s->pins || s->ahead || chunks == 0)
        return true;
    if (!fresh && at_rest(s))
        list_remove(core, &core->stage_lru, n);
    enum kvf_status st = kvf_read_start(core, handle, chunks, (uint8_t *)(uintptr_t)s->slot, deadline_ns, KVF_PRIORITY_AHEAD,
                                        read_done, s, &s->ahead);
    if (st != KVF_OK) {
        s->ahead = NULL;
        settle(core, n);
        return false;
    }
    s->inflight |= chunks;
    s->prefetched = true;
    s->ahead_session = session;
    s->ahead_layer = layer;
    list_push(core, &core->stage_ahead, n);
    kvf_count(&core->counters.prefetch_blocks, 1);
    return true;
}

void kvf_stage_ahead_cancel(struct kvf_core *core, uint64_t session, uint32_t layer)
{
    for (uint32_t n = core->stage_ahead.head, next; n != KVF_STAGE_NONE; n = next) {
        struct kvf_stage *s = &core->stages[n];
        next = s->next;
        if (s->ahead_session != session || (layer != UINT32_MAX && s->ahead_layer != layer) || s->pins)
            continue;
        if (kvf_read_cancel(core, s->ahead))
            kvf_count(&core->counters.prefetch_cancelled, 1);
    }
}

void kvf_stage_retry(struct kvf_core *core, uint32_t stage, uint64_t mask, uint64_t deadline_ns)
{
    struct kvf_stage *s = &core->stages[stage];
    assert(s->pins > 0);
    if (s->orphan || s->inflight)
        return;
    s->asked = kvf_entry_place(kvf_index_entry(core->index, s->handle));
    if (atomic_load(&s->have) == 0)
        s->place = s->asked;
    atomic_store(&s->status, KVF_OK);
    ask(core, s, mask, deadline_ns);
}

void kvf_stage_unpin(struct kvf_core *core, uint32_t stage)
{
    struct kvf_stage *s = &core->stages[stage];
    assert(s->pins > 0);
    s->pins--;
    core->stage_orphans -= s->orphan && s->pins == 0;
    settle(core, stage);
}

bool kvf_stage_pinned(const struct kvf_core *core, kvf_handle handle)
{
    uint32_t n = *place_of(core, handle);
    if (n != KVF_STAGE_NONE && core->stages[n].pins > 0)
        return true;
    for (uint32_t i = 0; core->stage_orphans > 0 && i < core->stages_max; i++) /* seldom: a block was lost while it was read */
        if (core->stages[i].handle == handle && core->stages[i].orphan && core->stages[i].pins > 0)
            return true;
    return false;
}

bool kvf_stage_has(const struct kvf_core *core, kvf_handle handle, uint64_t mask)
{
    uint32_t n = *place_of(core, handle);
    return n != KVF_STAGE_NONE && (mask & ~(atomic_load(&core->stages[n].have) | core->stages[n].inflight)) == 0;
}

bool kvf_stage_busy(const struct kvf_core *core, kvf_handle handle)
{
    uint32_t n = *place_of(core, handle);
    return n != KVF_STAGE_NONE && !at_rest(&core->stages[n]);
}

bool kvf_stage_viewed(const struct kvf_core *core, kvf_handle handle)
{
    uint32_t n = *place_of(core, handle);
    return n != KVF_STAGE_NONE && core->stages[n].view.data;
}

void kvf_stage_drop(struct kvf_core *core, kvf_handle handle)
{
    uint32_t n = *place_of(core, handle);
    if (n == KVF_STAGE_NONE)
        return;
    struct kvf_stage *s = &core->stages[n];
    forget(core, handle);
    bool resting = at_rest(s);
    if (resting)
        list_remove(core, &core->stage_lru, n);
    s->orphan = true;
    core->stage_orphans += s->pins > 0;
    if (resting)
        stage_free(core, n);
}

void kvf_stage_moved(struct kvf_core *core, kvf_handle handle)
{
    uint32_t n = *place_of(core, handle);
    const struct kvf_stage *s = n == KVF_STAGE_NONE ? NULL : &core->stages[n];
    if (s && s->view.data)
        kvf_stage_drop(core, handle);
    else if (s && s->pins == 0 && (s->inflight || (atomic_load(&s->have) & ~atomic_load(&s->verified))))
        kvf_stage_drop(core, handle);
}
