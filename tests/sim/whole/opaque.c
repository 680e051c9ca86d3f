/* Clients' opaque blocks: batches of puts, gets and removes on few keys, and a model that knows which bytes a get may bring. */
#include "tests/sim/whole/world.h"

#include "base/hash.h"
#include <string.h>

#define TIMEOUT_MAX_NS (2 * KVF_SEC)
#define IN_THE_WAY_NS (40 * KVF_SEC)
#define SLACK_NS (2 * KVF_SEC) /* what the disk may take beyond a deadline: memory that it reads into is not given back before */

static const uint32_t lengths[WORLD_KEYS] = {1, 100, 4096, 4096, 5000, 8192, 12288, 16384, 20000, WORLD_BLOCK_MAX};

struct batch {
    struct client *client;
    unsigned n, left;
    struct kvf_request requests[WORLD_BATCH];
    struct version *puts[WORLD_BATCH]; /* of the puts under way */
    unsigned keys[WORLD_BATCH];
    uint64_t begins[WORLD_BATCH];
};

static void bytes_of(unsigned key, uint64_t version, uint64_t offset, uint64_t length, uint8_t *out)
{
    uint64_t seed = kvf_mix(key + 1, version);
    for (uint64_t at = offset, end = offset + length; at < end;) {
        uint64_t word = kvf_mix(seed, at / 8) >> at % 8 * 8, n = 8 - at % 8 < end - at ? 8 - at % 8 : end - at;
        memcpy(out, &word, n);
        out += n;
        at += n;
    }
}

static bool is_version(unsigned key, uint64_t version, uint64_t offset, uint64_t length, const uint8_t *data)
{
    uint64_t seed = kvf_mix(key + 1, version);
    for (uint64_t at = offset, end = offset + length; at < end;) {
        uint64_t word = kvf_mix(seed, at / 8) >> at % 8 * 8, n = 8 - at % 8 < end - at ? 8 - at % 8 : end - at;
        if (memcmp(data, &word, n) != 0)
            return false;
        data += n;
        at += n;
    }
    return true;
}

static struct kvf_key key_of(unsigned key)
{
    return (struct kvf_key){.hi = 77, .lo = 1000 + key};
}

/* ---------------------------------------------------------------- the model */

/* A version's bytes differ on every node, too: what one put must not come out at another. */
static uint64_t stamp(const struct world_node *n, const struct version *v, const struct keyed *k)
{
    return (uint64_t)n->number << 32 | (uint64_t)(v - k->versions);
}

/* NULL: the key has had all its versions. */
static struct version *version_new(struct world *w, struct keyed *k)
{
    if (k->n == WORLD_VERSIONS)
        return NULL;
    struct version *v = &k->versions[k->n++];
    *v = (struct version){.begin = ++w->moment, .end = UINT64_MAX};
    return v;
}

/* What was there before is there no more. */
static void versions_end(struct keyed *k, const struct version *but, uint64_t moment)
{
    for (unsigned i = 0; i < k->n; i++)
        if (&k->versions[i] != but && k->versions[i].end > moment)
            k->versions[i].end = moment;
}

void opaque_crashed(struct world_node *n)
{
    for (unsigned i = 0; i < WORLD_KEYS; i++) {
        n->keys[i].writing = false;
        for (unsigned v = 0; v < n->keys[i].n; v++)
            if (n->keys[i].versions[v].end > 0)
                n->keys[i].versions[v].end = UINT64_MAX; /* a removal soon before a crash may be undone by it, a put may be done */
    }
}

/* A key's entry, and where its copy on SSD lies (0: it has none); NULL: there is no entry. */
static const struct kvf_entry *entry_of(const struct world_node *n, unsigned key, uint64_t *copy)
{
    struct kvf_core *core = n->sim->core;
    struct kvf_key k = key_of(key);
    k.hi |= KVF_OPAQUE_BIT;
    kvf_handle h = kvf_index_find(core->index, k);
    const struct kvf_entry *e = h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, h);
    if (!e || e->flags & KVF_FLAG_REMOVED)
        return NULL;
    bool below = e->tier == KVF_TIER_SSD && (e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_RISING);
    *copy = below ? kvf_entry_location(e) : (uint64_t)e->ssd4k * KVF_LOCATION_UNIT;
    return e;
}

/* A full SSD may evict a durable copy and, later, take the same block again without a promise. Looked at after every poll: no write
 * ends in the poll that begins it, so a copy that was freed is seen gone even where the next one lies in its place. */
static void copy_look(struct world_node *n, unsigned key)
{
    struct keyed *k = &n->keys[key];
    uint64_t copy = 0;
    if (!entry_of(n, key, &copy))
        copy = 0;
    if (copy == k->copy)
        return;
    if (k->copy) {
        k->lost = ++n->world->moment;
        k->durable = false;
    }
    k->copy = copy;
}

void opaque_step(struct world_node *n)
{
    for (unsigned key = 0; key < WORLD_KEYS && n->sim->media; key++)
        copy_look(n, key);
}

void opaque_crashing(struct world_node *n)
{
    for (unsigned key = 0; key < WORLD_KEYS; key++) {
        struct keyed *k = &n->keys[key];
        uint64_t copy = 0;
        k->comes_back = k->durable && !n->rotten && entry_of(n, key, &copy) && copy && copy == k->copy;
        k->durable = false;
        k->copy = 0;
    }
}

/* What was durable is on the disk, whole, and the node knows it, be the power lost in the middle of whatever it wrote. */
void opaque_restarted(struct world_node *n)
{
    for (unsigned key = 0; key < WORLD_KEYS; key++) {
        struct keyed *k = &n->keys[key];
        uint64_t copy = 0;
        bool whole = false;
        bool owed = k->comes_back && !n->hurt;
        k->comes_back = false;
        if (!owed)
            continue;
        if (!entry_of(n, key, &copy) || !copy)
            world_violated(n->world, "node %s: key %u was durable, and is not there after the crash", n->name, key);
        for (unsigned v = 0; v < k->n && !whole; v++)
            whole = k->versions[v].end == UINT64_MAX &&
                    is_version(key, stamp(n, &k->versions[v], k), 0, lengths[key], n->sim->media->bytes + copy);
        if (!whole)
            world_violated(n->world, "node %s: key %u was durable, and after the crash its bytes are others", n->name, key);
        k->copy = copy;
        k->durable = true;
        n->world->totals.durable++;
    }
}

static void check_got(struct batch *b, unsigned i, uint64_t length)
{
    struct client *c = b->client;
    const struct kvf_request *r = &b->requests[i];
    struct keyed *k = &c->node->keys[b->keys[i]];
    for (unsigned v = k->n; v-- > 0;) {
        struct version *version = &k->versions[v];
        if (version->end >= b->begins[i] && is_version(b->keys[i], stamp(c->node, version, k), r->offset, length, r->data)) {
            c->world->totals.hits++;
            return;
        }
    }
    for (unsigned v = 0; v < k->n; v++)
        if (is_version(b->keys[i], stamp(c->node, &k->versions[v], k), r->offset, length, r->data))
            world_violated(c->world, "node %s: key %u: a get brings version %u, which was removed or replaced before it began",
                           c->node->name, b->keys[i], v);
    world_violated(c->world, "node %s: key %u: a get of %llu bytes at %llu brings bytes that nobody put", c->node->name, b->keys[i],
                   (unsigned long long)length, (unsigned long long)r->offset);
}

/* ---------------------------------------------------------------- a batch */

static bool writes(enum kvf_op op)
{
    return op == KVF_OP_PUT || op == KVF_OP_REMOVE;
}

static void fill(struct batch *b, unsigned i, enum kvf_op op, unsigned key)
{
    struct client *c = b->client;
    struct world *w = c->world;
    struct keyed *k = &c->node->keys[key];
    struct kvf_request *r = &b->requests[i];
    struct version *v = NULL;
    if (writes(op) && k->writing)
        op = KVF_OP_GET;
    if (op == KVF_OP_PUT && !(v = version_new(w, k)))
        op = KVF_OP_GET;
    *r = (struct kvf_request){.op = op, .key = key_of(key), .user = i};
    b->keys[i] = key;
    b->puts[i] = v;
    b->begins[i] = ++w->moment;
    k->writing |= writes(op);
    k->removed = op == KVF_OP_REMOVE ? w->moment : k->removed;
    k->durable &= op != KVF_OP_REMOVE;
    if (op == KVF_OP_PUT || op == KVF_OP_GET) {
        r->data = c->buffers[i];
        r->length = lengths[key];
    }
    if (op == KVF_OP_PUT)
        bytes_of(key, stamp(c->node, v, k), 0, r->length, r->data);
    if (op == KVF_OP_GET && draw(&w->work, 3) == 0) {
        r->offset = draw(&w->work, lengths[key]);
        r->length = 1 + draw(&w->work, lengths[key] - r->offset);
    }
    if (op == KVF_OP_GET)
        memset(r->data, 0xa5, r->length);
}

static bool allowed(enum kvf_op op, enum kvf_status st)
{
    switch (st) {
    case KVF_OK:
    case KVF_ERR_BUSY:
        return true;
    case KVF_MISS:
        return op != KVF_OP_PUT;
    case KVF_ERR_EXISTS:
        return op == KVF_OP_PUT;
    case KVF_ERR_FULL:
        return op == KVF_OP_PUT || op == KVF_OP_PERSIST;
    case KVF_ERR_DEADLINE:
        return op != KVF_OP_EXISTS && op != KVF_OP_REMOVE;
    case KVF_ERR_CORRUPT:
        return op == KVF_OP_GET;
    case KVF_ERR_DISK_FULL:
        return op == KVF_OP_PERSIST;
    case KVF_ERR_IO:
        return op == KVF_OP_GET || op == KVF_OP_PERSIST;
    case KVF_ERR_STATE:
    case KVF_ERR_UNSUPPORTED:
        return op == KVF_OP_PERSIST;
    default:
        return false;
    }
}

static void judge(struct batch *b, const struct kvf_completion *done)
{
    struct client *c = b->client;
    struct world *w = c->world;
    unsigned i = (unsigned)done->user;
    const struct kvf_request *r = &b->requests[i];
    struct keyed *k = &c->node->keys[b->keys[i]];
    uint64_t moment = ++w->moment;
    world_trace(w, "done", c->node->number << 4 | r->op, b->keys[i], (uint64_t)(int64_t)done->status, done->length);
    if (!allowed(r->op, done->status))
        world_violated(w, "node %s: key %u: operation %d ends with %s", c->node->name, b->keys[i], r->op,
                       kvf_status_name(done->status));
    if (writes(r->op))
        k->writing = false;
    if (r->op == KVF_OP_PUT && done->status == KVF_OK) {
        b->puts[i]->came = true;
        k->durable = false;
        versions_end(k, b->puts[i], moment);
    } else if (r->op == KVF_OP_PUT) {
        b->puts[i]->end = 0;
    } else if (r->op == KVF_OP_REMOVE) {
        k->removed = moment;
        versions_end(k, NULL, moment);
    } else if (r->op == KVF_OP_PERSIST) {
        copy_look(c->node, b->keys[i]);
        k->durable |= done->status == KVF_OK && !k->writing && k->removed < b->begins[i] && k->copy && k->lost < b->begins[i];
    } else if (r->op == KVF_OP_GET) {
        w->totals.gets++;
        w->totals.misses += done->status == KVF_MISS;
        if (done->status == KVF_OK && done->length != r->length)
            world_violated(w, "node %s: key %u: a get of %llu bytes brings %llu", c->node->name, b->keys[i],
                           (unsigned long long)r->length, (unsigned long long)done->length);
        if (done->status == KVF_OK)
            check_got(b, i, done->length);
    }
}

/* Submits and waits for all. */
static void batch_run(struct batch *b, uint64_t timeout_ns)
{
    struct client *c = b->client;
    size_t accepted = 0, n;
    client_begin(c, "queue", timeout_ns + SLACK_NS);
    enum kvf_status st = kvf_submit(c->queue, b->requests, b->n, timeout_ns, &accepted);
    if (c->died)
        return;
    if (st != KVF_OK || accepted != b->n)
        world_violated(c->world, "node %s: an empty queue takes %zu of %u requests (%s)", c->node->name, accepted, b->n,
                       kvf_status_name(st));
    b->left = b->n;
    while (b->left > 0) {
        struct kvf_completion done[WORLD_BATCH];
        if (kvf_drain(c->queue, done, WORLD_BATCH, &n) != KVF_OK)
            world_violated(c->world, "node %s: draining a queue fails", c->node->name);
        for (size_t i = 0; i < n; i++)
            judge(b, &done[i]);
        b->left -= (unsigned)n;
        if (b->left > 0)
            client_wait(c);
        if (c->died)
            return;
    }
    client_end(c, KVF_OK, b->n);
}

void opaque_batch(struct client *c)
{
    static const enum kvf_op ops[] = {KVF_OP_GET, KVF_OP_GET, KVF_OP_GET,    KVF_OP_GET,    KVF_OP_PUT,
                                      KVF_OP_PUT, KVF_OP_PUT, KVF_OP_REMOVE, KVF_OP_EXISTS, KVF_OP_PERSIST};
    struct world *w = c->world;
    struct batch b = {.client = c, .n = 1 + (unsigned)draw(&w->work, WORLD_BATCH)};
    for (unsigned i = 0; i < b.n; i++)
        fill(&b, i, ops[draw(&w->work, sizeof ops / sizeof *ops)], (unsigned)draw(&w->work, WORLD_KEYS));
    batch_run(&b, draw(&w->work, 3) ? TIMEOUT_MAX_NS : KVF_MS + draw(&w->work, 100 * KVF_MS));
}

void opaque_drain(struct client *c)
{
    for (unsigned key = 0; key < WORLD_KEYS && !c->died; key++) {
        struct batch b = {.client = c, .n = 1};
        fill(&b, 0, KVF_OP_REMOVE, key);
        if (b.requests[0].op != KVF_OP_REMOVE)
            world_violated(c->world, "node %s: key %u is still being written at rest", c->node->name, key);
        batch_run(&b, TIMEOUT_MAX_NS);
    }
}

/* What was begun before all was whole may still end by its deadline, and be in the way so long: a block that its lender wants back
 * is read from there within 30 s, and a frame of that may be lost. */
static bool probe_once(struct client *c, unsigned key)
{
    static const enum kvf_op ops[] = {KVF_OP_REMOVE, KVF_OP_PUT, KVF_OP_GET, KVF_OP_REMOVE};
    uint64_t hits = c->world->totals.hits;
    for (unsigned i = 0; i < sizeof ops / sizeof *ops && !c->died; i++) {
        struct batch b = {.client = c, .n = 1};
        if (ops[i] == KVF_OP_PUT)
            c->node->keys[key].n = 0; /* all have ended: it was removed */
        fill(&b, 0, ops[i], key);
        batch_run(&b, TIMEOUT_MAX_NS);
    }
    return c->world->totals.hits > hits;
}

void opaque_probe(struct client *c)
{
    uint64_t until = world_now(c->world) + IN_THE_WAY_NS;
    for (unsigned i = 0; (i < 5 || world_now(c->world) < until) && !c->died; i++)
        if (probe_once(c, 4))
            return;
    if (!c->died)
        world_violated(c->world, "node %s: what was put a moment ago cannot be had, with nothing broken any more", c->node->name);
}
