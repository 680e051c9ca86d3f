#include "tiers/policy.h"
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>

#define NONE KVF_POLICY_NONE
enum {
    COUNT_MAX = 63,    /* LFU: uses that are told apart */
    LISTS = COUNT_MAX + 1,
    FIRST = 0,         /* S3-FIFO: the short queue; ARC: used once (T1); LRU: all */
    AGAIN = 1,         /* S3-FIFO: the long queue; ARC: used again (T2) */
    S3_SHARE = 2,      /* the short queue's share: a half. The paper's tenth throws newcomers out before a conversation's next
                        * turn: on the trace of `kvf bench trace` it hits less at every capacity from 5 % on */
    S3_COUNT_MAX = 3,
};

/* Of an id: its neighbours in its list, and the policy's count of its uses. All zero when free, so that memory for ids that never
 * hold a block is never touched. */
struct link {
    uint32_t older, newer;
    uint8_t place; /* its list + 1; 0: free */
    uint8_t count;
    _Atomic uint8_t marked; /* used since victim last looked at it; the only field that is not the owner's alone */
};

struct list {
    uint32_t oldest, newest, count;
};

/* A block that left, in the list of those that left the same queue. */
struct ghost {
    uint64_t fingerprint;
    uint32_t older, newer, chain; /* chain: the next of its bucket, + 1; the next free one */
    uint8_t list;
};

struct kvf_policy {
    enum kvf_policy_kind kind;
    uint32_t ids, count;
    struct link *links; /* [ids] */
    struct list lists[LISTS];
    /* ghosts */
    uint32_t n_ghosts, free_ghost, fresh, mask; /* fresh: the first that was never used */
    struct ghost *ghosts; /* [n_ghosts] */
    uint32_t *buckets;    /* [mask + 1] ghost + 1; 0: none */
    struct list left[2];  /* of FIRST and AGAIN */
    double balance;       /* ARC: how many FIRST should hold (p of the paper) */
};

const char *const kvf_policy_names[KVF_POLICY_KINDS] = {"lru", "lfu", "s3fifo", "arc"};

enum kvf_status kvf_policy_create(enum kvf_policy_kind kind, uint32_t ids, uint32_t ghosts, struct kvf_policy **out)
{
    struct kvf_policy *p = calloc(1, sizeof *p);
    assert(kind < KVF_POLICY_KINDS && ids < NONE && ghosts < UINT32_MAX / 2);
    if (!p)
        return KVF_ERR_NO_MEMORY;
    *p = (struct kvf_policy){.kind = kind, .ids = ids, .n_ghosts = ghosts, .free_ghost = NONE};
    while (p->mask < p->n_ghosts)
        p->mask = p->mask * 2 + 1;
    p->links = calloc((size_t)ids + 1, sizeof *p->links);
    p->ghosts = calloc((size_t)p->n_ghosts + 1, sizeof *p->ghosts);
    p->buckets = calloc((size_t)p->mask + 1, sizeof *p->buckets);
    if (!p->links || !p->ghosts || !p->buckets) {
        kvf_policy_destroy(p);
        return KVF_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < LISTS; i++)
        p->lists[i] = (struct list){NONE, NONE, 0};
    p->left[FIRST] = p->left[AGAIN] = (struct list){NONE, NONE, 0};
    *out = p;
    return KVF_OK;
}

void kvf_policy_destroy(struct kvf_policy *p)
{
    if (!p)
        return;
    free(p->links);
    free(p->ghosts);
    free(p->buckets);
    free(p);
}

/* ---------------------------------------------------------------- lists */

static void push(struct kvf_policy *p, unsigned list, uint32_t id)
{
    struct list *l = &p->lists[list];
    p->links[id].older = l->newest;
    p->links[id].newer = NONE;
    p->links[id].place = (uint8_t)(list + 1);
    if (l->newest != NONE)
        p->links[l->newest].newer = id;
    else
        l->oldest = id;
    l->newest = id;
    l->count++;
}

static void take(struct kvf_policy *p, uint32_t id)
{
    struct link *k = &p->links[id];
    struct list *l = &p->lists[k->place - 1];
    if (k->older != NONE)
        p->links[k->older].newer = k->newer;
    else
        l->oldest = k->newer;
    if (k->newer != NONE)
        p->links[k->newer].older = k->older;
    else
        l->newest = k->older;
    l->count--;
    k->place = 0;
}

static void move(struct kvf_policy *p, unsigned list, uint32_t id)
{
    take(p, id);
    push(p, list, id);
}

/* ---------------------------------------------------------------- ghosts */

static uint32_t *bucket_of(struct kvf_policy *p, uint64_t fingerprint)
{
    return &p->buckets[(fingerprint ^ fingerprint >> 32) & p->mask];
}

static uint32_t ghost_find(struct kvf_policy *p, uint64_t fingerprint)
{
    uint32_t at = p->n_ghosts ? *bucket_of(p, fingerprint) : 0;
    while (at && p->ghosts[at - 1].fingerprint != fingerprint)
        at = p->ghosts[at - 1].chain;
    return at ? at - 1 : NONE;
}

static void ghost_forget(struct kvf_policy *p, uint32_t g)
{
    struct ghost *x = &p->ghosts[g];
    struct list *l = &p->left[x->list];
    uint32_t *at = bucket_of(p, x->fingerprint);
    while (*at != g + 1)
        at = &p->ghosts[*at - 1].chain;
    *at = x->chain;
    if (x->older != NONE)
        p->ghosts[x->older].newer = x->newer;
    else
        l->oldest = x->newer;
    if (x->newer != NONE)
        p->ghosts[x->newer].older = x->older;
    else
        l->newest = x->older;
    l->count--;
    x->chain = p->free_ghost;
    p->free_ghost = g;
}

static void ghost_remember(struct kvf_policy *p, unsigned list, uint64_t fingerprint)
{
    if (p->n_ghosts == 0)
        return;
    uint32_t known = ghost_find(p, fingerprint);
    if (known != NONE)
        ghost_forget(p, known);
    if (p->left[FIRST].count + p->left[AGAIN].count == p->n_ghosts) /* the longer list gives one up */
        ghost_forget(p, p->left[p->left[AGAIN].count > p->left[FIRST].count ? AGAIN : FIRST].oldest);
    uint32_t g = p->free_ghost != NONE ? p->free_ghost : p->fresh++, *bucket = bucket_of(p, fingerprint);
    struct list *l = &p->left[list];
    if (g == p->free_ghost)
        p->free_ghost = p->ghosts[g].chain;
    p->ghosts[g] = (struct ghost){.fingerprint = fingerprint, .older = l->newest, .newer = NONE, .chain = *bucket,
                                  .list = (uint8_t)list};
    *bucket = g + 1;
    if (l->newest != NONE)
        p->ghosts[l->newest].newer = g;
    else
        l->oldest = g;
    l->newest = g;
    l->count++;
}

/* ---------------------------------------------------------------- coming, used, leaving */

/* The list that a newcomer belongs to. ARC learns here: what comes back too soon moves the balance towards where it left. */
static unsigned welcome(struct kvf_policy *p, uint64_t fingerprint)
{
    uint32_t g = ghost_find(p, fingerprint);
    if (g == NONE)
        return FIRST;
    double once = p->left[FIRST].count, again = p->left[AGAIN].count, most = (double)p->count + 1;
    if (p->ghosts[g].list == FIRST)
        p->balance += again > once ? again / once : 1;
    else
        p->balance -= once > again ? once / again : 1;
    p->balance = p->balance < 0 ? 0 : p->balance > most ? most : p->balance;
    ghost_forget(p, g);
    return p->kind == KVF_POLICY_S3FIFO || p->kind == KVF_POLICY_ARC ? AGAIN : FIRST;
}

void kvf_policy_insert(struct kvf_policy *p, uint32_t id, uint64_t fingerprint)
{
    assert(id < p->ids && p->links[id].place == 0);
    p->links[id].count = 0;
    atomic_store_explicit(&p->links[id].marked, 0, memory_order_relaxed);
    push(p, welcome(p, fingerprint), id);
    p->count++;
}

void kvf_policy_touch(struct kvf_policy *p, uint32_t id)
{
    assert(kvf_policy_has(p, id));
    struct link *k = &p->links[id];
    switch (p->kind) {
    case KVF_POLICY_LFU:
        k->count = k->count < COUNT_MAX ? k->count + 1 : COUNT_MAX;
        move(p, k->count, id);
        break;
    case KVF_POLICY_S3FIFO:
        k->count = k->count < S3_COUNT_MAX ? k->count + 1 : S3_COUNT_MAX;
        break;
    case KVF_POLICY_ARC:
        move(p, AGAIN, id);
        break;
    default:
        move(p, FIRST, id);
    }
}

void kvf_policy_mark(struct kvf_policy *p, uint32_t id)
{
    assert(id < p->ids);
    /* Read first: a block that everybody uses is written to once. */
    if (!atomic_load_explicit(&p->links[id].marked, memory_order_relaxed))
        atomic_store_explicit(&p->links[id].marked, 1, memory_order_relaxed);
}

/* Remembers as many as there are blocks. */
static void newcomer_left(struct kvf_policy *p, uint64_t fingerprint, uint32_t size)
{
    ghost_remember(p, FIRST, fingerprint);
    while (p->left[FIRST].count > size)
        ghost_forget(p, p->left[FIRST].oldest);
}

bool kvf_policy_missed(struct kvf_policy *p, uint64_t fingerprint)
{
    if (ghost_find(p, fingerprint) != NONE)
        return true;
    newcomer_left(p, fingerprint, p->count);
    return false;
}

void kvf_policy_removed(struct kvf_policy *p, uint32_t id)
{
    assert(kvf_policy_has(p, id));
    take(p, id);
    p->count--;
}

void kvf_policy_evicted(struct kvf_policy *p, uint32_t id, uint64_t fingerprint)
{
    assert(kvf_policy_has(p, id));
    unsigned list = p->links[id].place - 1u;
    uint32_t size = p->count;
    kvf_policy_removed(p, id);
    if (p->kind != KVF_POLICY_ARC) {
        if (p->kind != KVF_POLICY_S3FIFO || list == FIRST)
            newcomer_left(p, fingerprint, size);
    } else {
        ghost_remember(p, list, fingerprint);
        while (p->left[FIRST].count && p->lists[FIRST].count + p->left[FIRST].count > size)
            ghost_forget(p, p->left[FIRST].oldest);
        while (p->left[AGAIN].count && p->left[FIRST].count + p->left[AGAIN].count > size)
            ghost_forget(p, p->left[AGAIN].oldest);
    }
}

bool kvf_policy_has(const struct kvf_policy *p, uint32_t id)
{
    return id < p->ids && p->links[id].place != 0;
}

uint32_t kvf_policy_count(const struct kvf_policy *p)
{
    return p->count;
}

/* ---------------------------------------------------------------- who leaves */

struct search {
    struct kvf_policy *p;
    bool (*may)(void *arg, uint32_t id);
    void *arg;
    uint32_t looked;
};

/* The oldest of a list that may leave. What was marked is touched on the way. */
static uint32_t oldest_that_may(struct search *s, unsigned list)
{
    struct kvf_policy *p = s->p;
    uint32_t id = p->lists[list].oldest, next;
    for (; id != NONE && s->looked++ < KVF_POLICY_LOOK_MAX; id = next) {
        next = p->links[id].newer;
        if (atomic_exchange_explicit(&p->links[id].marked, 0, memory_order_relaxed)) {
            kvf_policy_touch(p, id);
            if (p->kind != KVF_POLICY_S3FIFO) { /* it moved, perhaps to the newest end of this list */
                next = next != NONE ? next : p->lists[list].oldest;
                continue;
            }
        }
        if (!s->may || s->may(s->arg, id))
            return id;
    }
    return NONE;
}

static uint32_t victim_of_either(struct search *s, unsigned first, unsigned second)
{
    uint32_t id = oldest_that_may(s, first);
    return id != NONE ? id : oldest_that_may(s, second);
}

static uint32_t s3fifo_victim(struct search *s)
{
    struct kvf_policy *p = s->p;
    for (;;) {
        bool short_one = p->lists[FIRST].count && (uint64_t)p->lists[FIRST].count * S3_SHARE >= p->count;
        uint32_t id = short_one ? victim_of_either(s, FIRST, AGAIN) : victim_of_either(s, AGAIN, FIRST);
        if (id == NONE || p->links[id].count == 0)
            return id;
        /* Used since it came or since its last round. */
        p->links[id].count = p->links[id].place == FIRST + 1 ? 0 : p->links[id].count - 1;
        move(p, AGAIN, id);
    }
}

uint32_t kvf_policy_victim(struct kvf_policy *p, bool (*may)(void *arg, uint32_t id), void *arg)
{
    struct search s = {.p = p, .may = may, .arg = arg};
    uint32_t id = NONE;
    switch (p->kind) {
    case KVF_POLICY_LFU:
        for (unsigned list = 0; list < LISTS && id == NONE; list++)
            id = oldest_that_may(&s, list);
        return id;
    case KVF_POLICY_S3FIFO:
        return s3fifo_victim(&s);
    case KVF_POLICY_ARC:
        return p->lists[FIRST].count > p->balance ? victim_of_either(&s, FIRST, AGAIN) : victim_of_either(&s, AGAIN, FIRST);
    default:
        return oldest_that_may(&s, FIRST);
    }
}

void kvf_policy_check(const struct kvf_policy *p)
{
    uint32_t total = 0, ghosts = 0;
    for (unsigned list = 0; list < LISTS; list++) {
        uint32_t before = NONE, n = 0;
        for (uint32_t id = p->lists[list].oldest; id != NONE; before = id, id = p->links[id].newer, n++)
            assert(p->links[id].place == list + 1 && p->links[id].older == before && n < p->ids);
        assert(p->lists[list].newest == before && p->lists[list].count == n);
        total += n;
    }
    for (unsigned list = 0; list < 2; list++)
        for (uint32_t g = p->left[list].oldest; g != NONE; g = p->ghosts[g].newer)
            ghosts++;
    assert(total == p->count && ghosts == p->left[FIRST].count + p->left[AGAIN].count && ghosts <= p->n_ghosts);
}
