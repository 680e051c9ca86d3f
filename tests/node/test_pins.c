/* Pins without the lock while everything moves: one thread puts, removes and puts again, one parks and resumes a session, whose
 * blocks leave DRAM and rise again, DRAM is too small for all, so that the reactor spills all the while, and readers pin, read in
 * place, get and ask. A block says in its first bytes whose it is and which version; every byte follows from that, so that one
 * that is reused under a reader shows. Run it under TSan too. */
#include "base/hash.h"
#include "node/internal.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SEED 20261125
#define KEYS 340u
#define READERS 3u
#define WRITES 8000u /* and on until enough rose, but at most five times as many */
#define RISEN 20u
#define BYTES_MAX 16384u
#define HELD_MAX 8u

struct world {
    struct kvf_node *node;
    _Atomic bool over;
    _Atomic uint64_t pins, gets, misses, wrong, puts, removes, held_over_remove, parks, risen;
    _Atomic uint32_t version[KEYS]; /* the last one put; odd: it is there, as far as the writer knows */
};

struct thread {
    struct world *w;
    uint64_t random;
    pthread_t id;
};

static char directory[64];

static uint64_t draw(struct thread *t)
{
    return t->random = kvf_mix(t->random, 0x9e37);
}

static struct kvf_key key_at(uint32_t i)
{
    return (struct kvf_key){.hi = i % 2 ? kvf_mix(i, 1) >> 1 : 0, .lo = i};
}

static size_t bytes_at(uint32_t i)
{
    return 512 + kvf_mix(i, 77) % (BYTES_MAX - 512);
}

static void fill(uint32_t key, uint32_t version, uint32_t *words, size_t bytes)
{
    for (size_t i = 0; i < bytes / 4; i++)
        words[i] = i == 0 ? key : i == 1 ? version : (key * 2654435761u + version * 40503u) ^ (uint32_t)i;
}

static bool right(uint32_t key, const uint32_t *words, size_t bytes)
{
    bool same = words[0] == key;
    for (size_t i = 2; i < bytes / 4; i++)
        same &= words[i] == ((key * 2654435761u + words[1] * 40503u) ^ (uint32_t)i);
    return same;
}

/* ---------------------------------------------------------------- requests */

static struct kvf_completion one(struct kvf_queue *q, struct kvf_request r)
{
    struct kvf_completion done = {.status = KVF_ERR_BUSY};
    size_t n = 0;
    if (kvf_submit(q, &r, 1, 20 * KVF_SEC, &n) != KVF_OK || n != 1)
        return done;
    for (unsigned turns = 0; turns < 3000; turns++) {
        if (kvf_drain(q, &done, 1, &n) == KVF_OK && n == 1)
            return done;
        struct pollfd fd = {.fd = kvf_queue_fd(q), .events = POLLIN};
        poll(&fd, 1, 10);
    }
    return done;
}

/* ---------------------------------------------------------------- threads */

struct held {
    const uint32_t *data;
    uint32_t key, version;
    uint64_t bytes;
};

/* Every pin is looked at when it begins and when it ends: nothing may change in between, whatever happens to the block. */
static void let_go(struct world *w, struct held *h)
{
    if (!right(h->key, h->data, h->bytes) || h->data[1] != h->version || h->bytes != (bytes_at(h->key) & ~3ull))
        atomic_fetch_add(&w->wrong, 1);
    if (atomic_load(&w->version[h->key]) != h->version)
        atomic_fetch_add(&w->held_over_remove, 1);
    kvf_block_unpin(w->node, key_at(h->key));
    h->data = NULL;
}

static void take(struct thread *t, struct held *h, uint32_t key)
{
    struct world *w = t->w;
    const void *data;
    if (kvf_block_pin(w->node, key_at(key), &data, &h->bytes) != KVF_OK) {
        atomic_fetch_add(&w->misses, 1);
        return;
    }
    *h = (struct held){.data = data, .key = key, .version = ((const uint32_t *)data)[1], .bytes = h->bytes};
    atomic_fetch_add(&w->pins, 1);
    if (!right(key, h->data, h->bytes))
        atomic_fetch_add(&w->wrong, 1);
}

static void *reader(void *arg)
{
    struct thread *t = arg;
    struct world *w = t->w;
    struct held held[HELD_MAX] = {{0}};
    struct kvf_queue *q = NULL;
    uint32_t *to = malloc(BYTES_MAX);
    if (kvf_queue_create(w->node, 8, &q) != KVF_OK)
        atomic_fetch_add(&w->wrong, 1);
    while (q && !atomic_load(&w->over)) {
        uint64_t r = draw(t);
        uint32_t key = (uint32_t)(r >> 8) % KEYS;
        struct held *h = &held[(r >> 40) % HELD_MAX];
        if (h->data) {
            let_go(w, h);
        } else if (r % 8) {
            take(t, h, key);
        } else if (r >> 60 & 1) {
            size_t prefix, bytes = bytes_at(key) & ~3ull;
            struct kvf_key ask[3] = {key_at(key), key_at((key + 1) % KEYS), key_at(KEYS + 1)};
            if (kvf_exists_prefix(w->node, ask, 3, &prefix) != KVF_OK || prefix > 2)
                atomic_fetch_add(&w->wrong, 1);
            struct kvf_completion c =
                one(q, (struct kvf_request){.op = KVF_OP_GET, .key = key_at(key), .data = to, .length = bytes});
            if (c.status == KVF_OK && (c.length != bytes || !right(key, to, bytes)))
                atomic_fetch_add(&w->wrong, 1);
            if (c.status != KVF_OK && c.status != KVF_MISS)
                atomic_fetch_add(&w->wrong, 1);
            atomic_fetch_add(&w->gets, c.status == KVF_OK);
        }
    }
    for (unsigned i = 0; i < HELD_MAX; i++)
        if (held[i].data)
            let_go(w, &held[i]);
    kvf_queue_destroy(q);
    free(to);
    return NULL;
}

/* Puts what is not there and removes what is. A put that finds no room, as readers hold what should leave, is tried again later. */
static void *writer(void *arg)
{
    struct thread *t = arg;
    struct world *w = t->w;
    struct kvf_queue *q = NULL;
    uint32_t *from = malloc(BYTES_MAX);
    if (kvf_queue_create(w->node, 8, &q) != KVF_OK)
        atomic_fetch_add(&w->wrong, 1);
    for (unsigned n = 0; q && (n < WRITES || (atomic_load(&w->risen) < RISEN && n < 5 * WRITES)); n++) {
        uint32_t key = (uint32_t)(draw(t) >> 8) % KEYS, version = atomic_load(&w->version[key]);
        struct kvf_completion c;
        if (n / 500 % 2 && !(version & 1) && n % 8) { /* fewer now: room for what wants to rise */
            usleep(50);
            continue;
        }
        if (version & 1) {
            atomic_store(&w->version[key], version + 1);
            c = one(q, (struct kvf_request){.op = KVF_OP_REMOVE, .key = key_at(key)});
            atomic_fetch_add(&w->removes, c.status == KVF_OK);
            if (c.status != KVF_OK)
                atomic_fetch_add(&w->wrong, 1);
            continue;
        }
        size_t bytes = bytes_at(key) & ~3ull;
        fill(key, version + 1, from, bytes);
        atomic_store(&w->version[key], version + 1);
        c = one(q, (struct kvf_request){.op = KVF_OP_PUT, .key = key_at(key), .data = from, .length = bytes});
        if (c.status != KVF_OK)
            atomic_store(&w->version[key], version);
        if (c.status != KVF_OK && c.status != KVF_ERR_FULL)
            atomic_fetch_add(&w->wrong, 1);
        atomic_fetch_add(&w->puts, c.status == KVF_OK);
    }
    atomic_store(&w->over, true);
    kvf_queue_destroy(q);
    free(from);
    return NULL;
}

/* ---------------------------------------------------------------- a session beside them */

#define TOKENS 1024u
#define STEP 128u
#define DIM 32u
#define HEADS 2u

static void rows(uint64_t from, char what, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n * HEADS * DIM; i++)
        out[i] = (float)(int32_t)(kvf_mix(kvf_mix(SEED, (uint64_t)what), from * HEADS * DIM + i) >> 32) / 2147483648.0f;
}

/* n tokens from `from` on. The attention of the last goes to `out`, unless it is NULL; kept or, to ask again, given up. */
static enum kvf_status step(struct kvf_session *s, uint64_t from, uint32_t n, bool keep, float *out)
{
    static _Thread_local float k[STEP * HEADS * DIM], v[STEP * HEADS * DIM], q[STEP * HEADS * DIM], o[STEP * HEADS * DIM];
    const int32_t tokens[STEP] = {0};
    enum kvf_status st = kvf_step_begin(s, tokens, n);
    rows(from, 'k', n, k);
    rows(from, 'v', n, v);
    rows(from, 'q', n, q);
    if (st == KVF_OK)
        st = kvf_step_append(s, 0, k, v);
    if (st == KVF_OK && out)
        st = kvf_step_attend(s, 0, q, o, NULL);
    if (st == KVF_OK && out)
        memcpy(out, o + (n - 1) * HEADS * DIM, HEADS * DIM * sizeof *out);
    if (st == KVF_OK && keep)
        return kvf_step_commit(s);
    kvf_step_abort(s);
    return st;
}

/* The same question of the same session has the same answer, bit for bit, wherever its blocks lie. */
static void *sleeper(void *arg)
{
    struct thread *t = arg;
    struct world *w = t->w;
    const struct kvf_model_desc desc = {.name = "tiny", .weights_id = SEED, .layers = 1, .kv_heads = HEADS, .q_heads = HEADS,
                                        .dim_k = DIM, .dim_v = DIM, .dtype = KVF_F32, .chunk_tokens = 16, .block_tokens = 64};
    struct kvf_model *model;
    struct kvf_session *s = NULL;
    float first[HEADS * DIM], again[HEADS * DIM];
    enum kvf_status st = kvf_model_open(w->node, &desc, &model);
    if (st == KVF_OK)
        st = kvf_session_create(w->node, model, 7, &s);
    for (uint32_t at = 0; st == KVF_OK && at < TOKENS; at += STEP)
        st = step(s, at, STEP, true, NULL);
    if (st == KVF_OK)
        st = step(s, TOKENS, 1, false, first);
    while (st == KVF_OK && !atomic_load(&w->over)) {
        struct kvf_session_info info;
        st = kvf_session_park(s, 20 * KVF_SEC);
        if (st == KVF_OK)
            st = kvf_session_resume(s, 20 * KVF_SEC);
        for (unsigned i = 0; st == KVF_OK && i < 3; i++) { /* on SSD, while they rise, and then */
            st = step(s, TOKENS, 1, false, again);
            if (st == KVF_OK && memcmp(first, again, sizeof first) != 0)
                atomic_fetch_add(&w->wrong, 1);
            usleep(2000);
        }
        if (st == KVF_OK)
            st = kvf_session_info(s, &info);
        if (st == KVF_OK)
            atomic_fetch_add(&w->risen, info.blocks[KVF_TIER_DRAM]);
        atomic_fetch_add(&w->parks, 1);
    }
    if (st == KVF_OK)
        st = kvf_session_drop(s);
    if (st != KVF_OK) {
        fprintf(stderr, "the session: %s\n", kvf_status_name(st));
        atomic_fetch_add(&w->wrong, 1);
    }
    return NULL;
}

/* ---------------------------------------------------------------- the test */

static struct kvf_node *node_open(void)
{
    const char *const settings[] = {
        "node.name",       "pins",  "dram.bytes", "2M",      "fetch.staging", "1M", "block.bytes_max",  "64k",
        "block.count_max", "1024",  "ssd.path",   directory, "ssd.bytes",     "8M", "fabric.transport", "none",
        "log.level",       "error", "admin.listen", "",
    };
    struct kvf_config *config;
    struct kvf_node *node = NULL;
    assert_int_equal(kvf_config_create(&config), KVF_OK);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i += 2)
        if (kvf_config_set(config, settings[i], settings[i + 1]) != KVF_OK)
            fail_msg("%s: %s", settings[i], kvf_config_error(config));
    enum kvf_status st = kvf_node_open(config, &node);
    if (st != KVF_OK)
        fail_msg("opening the node: %s", kvf_config_error(config));
    kvf_config_destroy(config);
    return node;
}

static void readers_without_the_lock_see_whole_blocks_only(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct thread threads[READERS + 2];
    void *(*const work[READERS + 2])(void *) = {[READERS] = writer, [READERS + 1] = sleeper};
    w->node = node_open();
    for (unsigned i = 0; i < READERS + 2; i++) {
        threads[i] = (struct thread){.w = w, .random = SEED + i};
        assert_int_equal(pthread_create(&threads[i].id, NULL, work[i] ? work[i] : reader, &threads[i]), 0);
    }
    for (unsigned i = 0; i < READERS + 2; i++)
        pthread_join(threads[i].id, NULL);
    struct kvf_core *core = w->node->core;
    uint64_t spilled = kvf_counted(&core->counters.spill_ssd_blocks);
    print_message("%llu pins, %llu gets, %llu not in DRAM, %llu puts, %llu removes, %llu pins outlived a remove, %llu spilled, "
                  "%llu times parked, %llu blocks rose\n",
                  (unsigned long long)w->pins, (unsigned long long)w->gets, (unsigned long long)w->misses,
                  (unsigned long long)w->puts, (unsigned long long)w->removes, (unsigned long long)w->held_over_remove,
                  (unsigned long long)spilled, (unsigned long long)w->parks, (unsigned long long)w->risen);
    assert_int_equal(w->wrong, 0);
    assert_true(w->pins > 1000 && w->gets > 10 && w->misses > 10 && w->puts > 1000 && w->removes > 1000 && spilled > 30);
    assert_true(w->held_over_remove > 10 && w->parks > 1 && w->risen >= RISEN);
    kvf_core_lock(core);
    kvf_core_check(core);
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(core->index, &cursor)) != KVF_HANDLE_NONE;) {
        assert_int_equal(kvf_entry_pins(kvf_index_entry(core->index, h)), 0);
        assert_false(kvf_index_entry(core->index, h)->flags & KVF_FLAG_REMOVED); /* none was forgotten */
    }
    kvf_core_unlock(core);
    kvf_node_close(w->node);
    free(w);
}

static int open_world(void **state)
{
    printf("seed %d\n", SEED);
    snprintf(directory, sizeof directory, "/tmp/kvf-pins-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int close_world(void **state)
{
    char path[128];
    snprintf(path, sizeof path, "%s/kvf.area", directory);
    unlink(path);
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_without_the_lock_see_whole_blocks_only),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
