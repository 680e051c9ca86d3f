/* kvf bench serve: blocks on another node's SSD, read over TCP, beside the same blocks read by their own node.
 *
 * Two nodes in this process, each with its reactor's turns in a thread of its own, over UCX on the loopback device; no etcd: each
 * is told of the other. The first puts blocks, which go down to its SSD in a folder (O_DIRECT). The second knows them as blocks
 * that lie at the first, as the new home of a session knows those at the old one, and reads them by READ and READ_DATA. In turns:
 * all blocks in an order by chance, so many at once, by their own node and by the other; every chunk is compared with its
 * checksum. */
#include "bench/bench.h"
#include "node/internal.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, BLOCKS = 192, OWN = 64, DEPTH_MAX = 16, ROUNDS = 5, CONNECT_SECONDS = 10 };

struct side {
    struct kvf_config *config;
    struct kvf_node node; /* for the public calls; without a reactor of its own */
    struct kvf_core *core;
    struct kvf_log log; /* of disk and transport */
    pthread_t thread;
    bool started;
    _Atomic bool stop;
    uint64_t slots[DEPTH_MAX]; /* of staging */
    kvf_handle handles[BLOCKS];
};

struct serve {
    struct side owner, reader;
    char folder[256];
    unsigned n; /* blocks on the owner's SSD */
    bool failed;
};

/* All blocks once, some at a time. */
struct pass {
    struct side *side;
    unsigned n, next, left;
    uint64_t mask;
    uint32_t order[BLOCKS];
    struct one {
        struct pass *pass;
        unsigned slot;
        kvf_handle handle;
        uint64_t start_ns;
    } ones[DEPTH_MAX];
    uint32_t ns[BLOCKS];
    unsigned bad;
    _Atomic bool done;
};

static bool fail(struct serve *b, const char *what, enum kvf_status status)
{
    fprintf(stderr, "kvf bench: %s: %s (%s)\n", what, kvf_status_text(status), kvf_status_name(status));
    b->failed = true;
    return false;
}

static void *turns(void *arg)
{
    struct side *s = arg;
    while (!atomic_load(&s->stop)) {
        pthread_mutex_lock(&s->core->lock);
        unsigned events = kvf_core_poll(s->core);
        pthread_mutex_unlock(&s->core->lock);
        if (!events || atomic_load(&s->core->waiting))
            sched_yield();
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------- reading */

static void one_next(struct one *o);

static void one_done(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct one *o = arg;
    struct pass *p = o->pass;
    struct kvf_core *core = read->core;
    const struct kvf_entry *e = kvf_index_entry(core->index, o->handle);
    p->ns[p->n - p->left] = (uint32_t)(kvf_now(core->env) - o->start_ns);
    p->bad += status != KVF_OK ||
              !kvf_block_verify(core->dev, kvf_block_seed_of(core, e), read->to, e->bytes, kvf_block_chunk_bytes(core, e), p->mask,
                                kvf_sums_at(core->sums, e->sums));
    p->left--;
    one_next(o);
}

static void one_next(struct one *o)
{
    struct pass *p = o->pass;
    struct kvf_core *core = p->side->core;
    if (p->next == p->n) {
        if (p->left == 0)
            atomic_store(&p->done, true);
        return;
    }
    o->handle = p->side->handles[p->order[p->next++]];
    o->start_ns = kvf_now(core->env);
    if (kvf_read_start(core, o->handle, p->mask, core->memory + core->staging_at + p->side->slots[o->slot],
                       kvf_deadline(o->start_ns, 20 * KVF_SEC), KVF_PRIORITY_DEMAND, one_done, o, NULL) == KVF_OK)
        return;
    p->bad++;
    p->left--;
    one_next(o);
}

/* Bytes per second; *p50_us of a block. */
static double read_all(struct serve *b, struct side *side, unsigned depth, uint64_t mask, uint64_t *x, double *p50_us)
{
    struct pass p = {.side = side, .n = b->n, .left = b->n, .mask = mask};
    for (unsigned i = 0; i < p.n; i++) {
        *x = *x * 6364136223846793005ull + 1442695040888963407ull;
        unsigned at = (unsigned)((*x >> 33) % (i + 1));
        p.order[i] = p.order[at];
        p.order[at] = i;
    }
    double start = kvf_bench_now();
    kvf_core_lock(side->core);
    for (unsigned i = 0; i < depth; i++) {
        p.ones[i] = (struct one){.pass = &p, .slot = i};
        one_next(&p.ones[i]);
    }
    kvf_core_unlock(side->core);
    while (!atomic_load(&p.done))
        usleep(200);
    double seconds = kvf_bench_now() - start;
    if (p.bad) {
        fprintf(stderr, "kvf bench: %u of %u blocks did not come, or not right\n", p.bad, p.n);
        b->failed = true;
    }
    for (unsigned i = 1; i < p.n; i++) /* few: sorted by insertion */
        for (unsigned k = i; k > 0 && p.ns[k] < p.ns[k - 1]; k--) {
            uint32_t t = p.ns[k];
            p.ns[k] = p.ns[k - 1];
            p.ns[k - 1] = t;
        }
    *p50_us = p.ns[p.n / 2] / 1e3;
    return (double)p.n * __builtin_popcountll(mask) * (BLOCK / 64) / seconds;
}

/* ------------------------------------------------------------------------------------------------- set-up */

static bool set(struct side *s, const char *name, const char *value)
{
    return kvf_config_set(s->config, name, value) == KVF_OK;
}

static bool side_open(struct serve *b, struct side *s, const char *name, const char *folder)
{
    char error[KVF_CONFIG_TEXT_MAX] = "";
    bool good = kvf_config_create(&s->config) == KVF_OK && set(s, "node.name", name) && set(s, "dram.bytes", "64M") &&
                set(s, "fetch.staging", "64M") && set(s, "ssd.scrub_rate", "0") && set(s, "log.level", "error") &&
                (!folder || (set(s, "ssd.path", folder) && set(s, "ssd.bytes", "512M")));
    if (!good)
        return fail(b, "settings", KVF_ERR_CONFIG);
    const struct kvf_settings *settings = kvf_config_settings(s->config);
    struct kvf_core_parts parts = {.env = kvf_env_real(), .log = stderr};
    kvf_log_init(&s->log, name, KVF_LOG_ERROR, stderr);
    struct kvf_transport_config transport = {.kind = "tcp", .interface = "lo", .segment_bytes = settings->fabric_segment,
                                             .peers_max = 8, .log = &s->log};
    enum kvf_status st = kvf_area_open(settings, &s->log, error, sizeof error, &parts.disk);
    if (st == KVF_OK)
        st = kvf_transport_ucx_create(&transport, &parts.transport);
    if (st == KVF_OK)
        st = kvf_core_create(settings, &parts, error, sizeof error, &s->core);
    s->node.core = s->core;
    return st == KVF_OK || fail(b, error[0] ? error : "opening a node", st);
}

/* Tells a side of the other, as etcd would. */
static bool introduce(struct side *s, const struct side *other)
{
    struct kvf_coord_handler handler;
    struct kvf_member m = {.incarnation = other->core->incarnation, .address_bytes = sizeof m.address};
    snprintf(m.name, sizeof m.name, "%s", other->core->name);
    if (other->core->transport->ops->address(other->core->transport, m.address, &m.address_bytes) != KVF_OK)
        return false;
    kvf_cluster_coord_handler(s->core, &handler);
    kvf_core_lock(s->core);
    handler.member_up(handler.arg, &m);
    kvf_core_unlock(s->core);
    return true;
}

static bool connect_both(struct serve *b)
{
    if (!introduce(&b->owner, &b->reader) || !introduce(&b->reader, &b->owner))
        return fail(b, "the transport's address", KVF_ERR_INVALID);
    struct side *sides[] = {&b->owner, &b->reader};
    for (unsigned i = 0; i < 2; i++) {
        if (pthread_create(&sides[i]->thread, NULL, turns, sides[i]) != 0)
            return fail(b, "starting a thread", KVF_ERR_NO_MEMORY);
        sides[i]->started = true;
    }
    double until = kvf_bench_now() + CONNECT_SECONDS;
    for (bool up = false; !up;) {
        if (kvf_bench_now() > until)
            return fail(b, "connecting over TCP", KVF_ERR_PEER_UNREACHABLE);
        usleep(10000);
        up = true;
        for (unsigned i = 0; i < 2; i++) {
            kvf_core_lock(sides[i]->core);
            const struct kvf_node_peer *p = kvf_cluster_peer(sides[i]->core, sides[1 - i]->core->name);
            up = up && p && p->up;
            kvf_core_unlock(sides[i]->core);
        }
    }
    return true;
}

/* Puts blocks, most of which go down. */
static bool blocks_put(struct serve *b, uint64_t seed)
{
    struct kvf_queue *q = NULL;
    uint8_t *data = malloc(BLOCK);
    enum kvf_status st = data ? kvf_queue_create(&b->owner.node, 4, &q) : KVF_ERR_NO_MEMORY;
    for (uint64_t i = 0; i < BLOCKS + OWN && st == KVF_OK; i++) {
        for (size_t at = 0; at < BLOCK; at += 8)
            memcpy(data + at, &(uint64_t){(seed + i * BLOCK + at) * 0x9e3779b97f4a7c15ull}, 8);
        struct kvf_request r = {.op = KVF_OP_PUT, .key = {.hi = 5, .lo = i}, .data = data, .length = BLOCK};
        struct kvf_completion done;
        size_t n = 0;
        st = kvf_submit(q, &r, 1, 60 * KVF_SEC, &n);
        for (n = 0; st == KVF_OK && n == 0; usleep(n ? 0 : 100))
            st = kvf_drain(q, &done, 1, &n);
        st = st == KVF_OK ? done.status : st;
    }
    if (q)
        kvf_queue_destroy(q);
    free(data);
    return st == KVF_OK || fail(b, "putting blocks", st);
}

/* The reader's index learns of a block at the owner. */
static enum kvf_status block_known(struct serve *b, kvf_handle from, kvf_handle *out)
{
    const struct kvf_core *owner = b->owner.core;
    struct kvf_core *core = b->reader.core;
    const struct kvf_entry *e = kvf_index_entry(owner->index, from);
    unsigned chunks = kvf_entry_chunks(e);
    enum kvf_status st = kvf_index_add(core->index, e->key, out);
    uint32_t sums = st == KVF_OK ? kvf_sums_alloc(core->sums, chunks) : KVF_SUMS_NONE;
    if (sums == KVF_SUMS_NONE)
        return KVF_ERR_FULL;
    struct kvf_entry *mine = kvf_index_entry(core->index, *out);
    mine->sums = sums;
    mine->bytes = e->bytes;
    kvf_entry_set_shape(mine, KVF_ENTRY_OPAQUE, chunks);
    memcpy(kvf_sums_at(core->sums, sums), kvf_sums_at(owner->sums, e->sums), chunks * sizeof(uint64_t));
    kvf_block_place(core, *out, KVF_TIER_PEER, kvf_cluster_peer(core, owner->name)->number, 0);
    return KVF_OK;
}

static bool blocks_learn(struct serve *b)
{
    enum kvf_status st = KVF_OK;
    uint64_t cursor = 0;
    usleep(500000); /* what is on its way down arrives */
    kvf_core_lock(b->owner.core);
    kvf_core_lock(b->reader.core);
    for (kvf_handle h; b->n < BLOCKS && st == KVF_OK && (h = kvf_index_walk(b->owner.core->index, &cursor)) != KVF_HANDLE_NONE;) {
        const struct kvf_entry *e = kvf_index_entry(b->owner.core->index, h);
        if (e->tier != KVF_TIER_SSD || e->state != KVF_BLOCK_READY)
            continue;
        b->owner.handles[b->n] = h;
        st = block_known(b, h, &b->reader.handles[b->n]);
        b->n += st == KVF_OK;
    }
    struct side *sides[] = {&b->owner, &b->reader};
    for (unsigned i = 0; i < 2; i++)
        for (unsigned d = 0; d < DEPTH_MAX; d++) {
            sides[i]->slots[d] = kvf_stage_memory(sides[i]->core, BLOCK, false);
            st = sides[i]->slots[d] == KVF_ARENA_NONE ? KVF_ERR_FULL : st;
        }
    kvf_core_unlock(b->reader.core);
    kvf_core_unlock(b->owner.core);
    return st == KVF_OK && b->n >= BLOCKS / 2 ? true : fail(b, "blocks on SSD", st == KVF_OK ? KVF_ERR_FULL : st);
}

static void side_close(struct side *s)
{
    atomic_store(&s->stop, true);
    if (s->started)
        pthread_join(s->thread, NULL);
    if (s->core)
        kvf_core_destroy(s->core);
    kvf_config_destroy(s->config);
}

/* ------------------------------------------------------------------------------------------------- the bench */

static void measure(struct kvf_bench *bench, struct serve *b, const char *what, unsigned depth, uint64_t mask)
{
    double rate[2][ROUNDS], p50[2][ROUNDS];
    uint64_t x = bench->seed;
    for (unsigned r = 0; r < ROUNDS && !b->failed; r++) {
        rate[0][r] = read_all(b, &b->owner, depth, mask, &x, &p50[0][r]);
        rate[1][r] = read_all(b, &b->reader, depth, mask, &x, &p50[1][r]);
    }
    if (b->failed)
        return;
    for (unsigned side = 0; side < 2; side++) {
        kvf_bench_sort(rate[side], ROUNDS);
        kvf_bench_sort(p50[side], ROUNDS);
    }
    char name[96];
    snprintf(name, sizeof name, "%s, %u at once", what, depth);
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "MiB/s", .value = rate[1][ROUNDS / 2] / (1 << 20),
                                                    .p50 = rate[1][ROUNDS / 2] / (1 << 20), .p99 = rate[1][0] / (1 << 20),
                                                    .n = ROUNDS, .limit_name = "own node",
                                                    .limit_value = rate[0][ROUNDS / 2] / (1 << 20)});
    snprintf(name, sizeof name, "%s, %u at once, each", what, depth);
    kvf_bench_add(bench, &(struct kvf_bench_result){.name = name, .unit = "us", .value = p50[1][ROUNDS / 2],
                                                    .p50 = p50[1][ROUNDS / 2], .p99 = p50[1][ROUNDS - 1], .n = ROUNDS,
                                                    .limit_name = "own node", .limit_value = p50[0][ROUNDS / 2]});
}

bool kvf_bench_serve_run(struct kvf_bench *bench)
{
    struct serve b = {.n = 0};
    snprintf(b.folder, sizeof b.folder, "%.200s/kvf-bench-XXXXXX", bench->path ? bench->path : ".");
    if (!mkdtemp(b.folder)) {
        perror("kvf bench: making a folder");
        return false;
    }
    bool ready = side_open(&b, &b.owner, "owner", b.folder) && side_open(&b, &b.reader, "reader", NULL) && connect_both(&b) &&
                 blocks_put(&b, bench->seed) && blocks_learn(&b);
    static const unsigned depths[] = {1, 4, 16};
    for (unsigned i = 0; ready && i < sizeof depths / sizeof *depths && !b.failed; i++)
        measure(bench, &b, "blocks of 1 MiB", depths[i], UINT64_MAX);
    for (unsigned i = 0; ready && i < sizeof depths / sizeof *depths && !b.failed; i++)
        measure(bench, &b, "one chunk of 16 KiB", depths[i], 1ull << 17);
    side_close(&b.reader);
    side_close(&b.owner);
    char path[300];
    snprintf(path, sizeof path, "%s/kvf.area", b.folder);
    unlink(path);
    rmdir(b.folder);
    json_object_set_new(bench->config, "blocks", json_integer(b.n));
    json_object_set_new(bench->config, "block_bytes", json_integer(BLOCK));
    bench->verified = ready && !b.failed;
    return bench->verified;
}
