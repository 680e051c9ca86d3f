/* Index, slabs (DRAM and SSD), checksums' memory and the list of DRAM blocks together, driven through every state that a node's
 * block has by random operations from a seed, against a twin that is an array with a line per key. The owner below does to the real
 * objects what a node does, in the same order; the twin knows what must come of it. Bytes are compared wherever they are read. */
#include "base/hash.h"
#include "tiers/arena.h"
#include "tiers/dramlist.h"
#include "tiers/index.h"
#include "tiers/sums.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 20261126u
#define KEYS 400u
#define ENTRIES 300u
#define PAGE (64u << 10)
#define DRAM (2u << 20)
#define SSD (4u << 20)
#define HELD 64u
#define OPERATIONS 300000u

enum where { NOWHERE, IN_DRAM, GOING_DOWN, ON_SSD, GOING_UP };

/* What the twin knows of one key. */
struct line {
    enum where where;
    bool removed; /* goes when its copying and its pins end */
    bool closed;  /* its copying is done, pins keep it in DRAM: no new ones */
    uint32_t version, bytes;
    unsigned pins;
    uint64_t came; /* when it was listed; 0: it is not */
    kvf_handle handle;
    uint64_t other; /* GOING_DOWN, GOING_UP: the slot it will have */
};

struct world {
    struct kvf_index *index;
    struct kvf_arena *dram, *ssd;
    struct kvf_sums *sums;
    struct kvf_dramlist *list;
    uint8_t *memory, *media;
    struct line lines[KEYS];
    struct {
        bool used;
        uint32_t key;
        const uint8_t *data;
    } held[HELD];
    uint64_t random, clock, told;
    uint64_t puts, hits, spills, rises, removes, deferred, waits, full; /* how often what mattered happened */
};

static uint64_t draw(struct world *w)
{
    return w->random = kvf_mix(w->random, 0x51);
}

static struct kvf_key key_at(uint32_t k)
{
    return k % 2 ? (struct kvf_key){.hi = k} : (struct kvf_key){.hi = kvf_mix(k, 3), .lo = kvf_mix(k, 4)};
}

static uint32_t slot_bytes(uint32_t bytes)
{
    return (bytes + 4095) / 4096 * 4096;
}

static uint32_t chunks_of(uint32_t bytes)
{
    return slot_bytes(bytes) / 4096;
}

static void fill(uint8_t *to, uint32_t k, const struct line *l)
{
    uint64_t word = kvf_mix(k, l->version);
    for (uint32_t i = 0; i < l->bytes; i++)
        to[i] = (uint8_t)(word >> i % 8 * 8) ^ (uint8_t)(i >> 8);
}

static void assert_bytes(const uint8_t *data, uint32_t k, const struct line *l)
{
    uint64_t word = kvf_mix(k, l->version);
    bool same = true;
    for (uint32_t i = 0; i < l->bytes; i++)
        same &= data[i] == ((uint8_t)(word >> i % 8 * 8) ^ (uint8_t)(i >> 8));
    assert_true(same);
}

static struct kvf_entry *entry(struct world *w, const struct line *l)
{
    return kvf_index_entry(w->index, l->handle);
}

/* ---------------------------------------------------------------- the owner, and what the twin makes of it */

static void list(struct world *w, struct line *l)
{
    kvf_dramlist_push(w->list, entry(w, l)->location4k, l->handle);
    l->came = ++w->clock;
}

static void unlist(struct world *w, struct line *l)
{
    assert_int_equal(kvf_dramlist_has(w->list, entry(w, l)->location4k), l->came != 0);
    if (l->came)
        kvf_dramlist_remove(w->list, entry(w, l)->location4k);
    l->came = 0;
}

static void put(struct world *w, uint32_t k)
{
    struct line *l = &w->lines[k];
    kvf_handle h;
    if (l->where != NOWHERE) {
        assert_int_equal(kvf_index_add(w->index, key_at(k), &h), KVF_ERR_EXISTS);
        return;
    }
    uint32_t bytes = draw(w) % 8 ? 1 + (uint32_t)(draw(w) % 16384) : 1 + (uint32_t)(draw(w) % PAGE);
    uint64_t room = kvf_arena_room(w->dram, bytes), slot = kvf_arena_alloc(w->dram, bytes);
    assert_int_equal(slot == KVF_ARENA_NONE, room == 0);
    if (slot == KVF_ARENA_NONE) {
        w->full++;
        return;
    }
    enum kvf_status st = kvf_index_add(w->index, key_at(k), &h);
    assert_int_equal(st, kvf_index_count(w->index) == ENTRIES && st != KVF_OK ? KVF_ERR_BUSY : KVF_OK);
    if (st != KVF_OK) {
        kvf_arena_free(w->dram, slot, bytes);
        w->full++;
        return;
    }
    *l = (struct line){.where = IN_DRAM, .version = l->version + 1, .bytes = bytes, .handle = h};
    struct kvf_entry *e = entry(w, l);
    e->bytes = bytes;
    e->sums = kvf_sums_alloc(w->sums, chunks_of(bytes));
    assert_int_not_equal(e->sums, KVF_SUMS_NONE);
    for (uint32_t c = 0; c < chunks_of(bytes); c++)
        kvf_sums_at(w->sums, e->sums)[c] = kvf_mix(kvf_mix(k, l->version), c);
    kvf_entry_set_shape(e, k % 128, chunks_of(bytes));
    fill(w->memory + slot, k, l);
    kvf_entry_set_location(e, slot);
    list(w, l);
    kvf_entry_open(e);
    w->puts++;
}

/* The copy's memory and the entry itself. */
static void erase(struct world *w, uint32_t k)
{
    struct line *l = &w->lines[k];
    struct kvf_entry *e = entry(w, l);
    assert_true(kvf_entry_close(e, false));
    if (l->where == IN_DRAM)
        unlist(w, l);
    kvf_arena_free(l->where == IN_DRAM ? w->dram : w->ssd, kvf_entry_location(e), l->bytes);
    kvf_sums_free(w->sums, e->sums, kvf_entry_chunks(e));
    kvf_index_remove(w->index, l->handle);
    *l = (struct line){.version = l->version};
    w->removes++;
}

static void remove_key(struct world *w, uint32_t k)
{
    struct line *l = &w->lines[k];
    if (l->where == NOWHERE || l->removed)
        return;
    bool held = !kvf_entry_close(entry(w, l), true);
    assert_int_equal(held, l->pins > 0);
    if (!held && l->where != GOING_DOWN && l->where != GOING_UP) {
        erase(w, k);
        return;
    }
    l->removed = true;
    w->deferred++;
    if (l->where == IN_DRAM)
        unlist(w, l);
}

/* What was to be removed goes when nothing keeps it. */
static void settle(struct world *w, uint32_t k)
{
    struct line *l = &w->lines[k];
    if (l->removed && l->pins == 0 && (l->where == IN_DRAM || l->where == ON_SSD))
        erase(w, k);
}

static void last_pin_gone(void *arg, kvf_handle handle)
{
    ((struct world *)arg)->told++;
}

static void take(struct world *w, uint32_t k)
{
    const struct line *l = &w->lines[k];
    kvf_handle h = KVF_HANDLE_NONE;
    bool open = (l->where == IN_DRAM || l->where == GOING_DOWN) && !l->removed && !l->closed;
    enum kvf_seen expected = l->where == NOWHERE ? KVF_SEEN_NOT : open ? KVF_SEEN_OPEN : KVF_SEEN_CLOSED, seen;
    struct kvf_key key = key_at(k);
    assert_int_equal(kvf_index_peek(w->index, key), expected);
    if (draw(w) & 1)
        seen = kvf_index_pin(w->index, key, &h);
    else
        seen = kvf_index_pin_many(w->index, &key, 1, &h) ? KVF_SEEN_OPEN : expected;
    assert_int_equal(seen, expected);
    if (seen != KVF_SEEN_OPEN)
        return;
    assert_int_equal(h, l->handle);
    const struct kvf_entry *e = kvf_index_pinned(w->index, h);
    const uint8_t *data = w->memory + kvf_entry_location(e);
    assert_int_equal(e->bytes, l->bytes);
    assert_bytes(data, k, l);
    w->hits++;
    for (unsigned i = 0; i < HELD; i++) {
        if (w->held[i].used)
            continue;
        w->held[i].used = true;
        w->held[i].key = k;
        w->held[i].data = data;
        w->lines[k].pins++;
        return;
    }
    kvf_index_unpin(w->index, h); /* no place to keep it */
    assert_int_equal(kvf_entry_pins(e), l->pins);
}

static void let_go(struct world *w, unsigned i)
{
    if (!w->held[i].used)
        return;
    uint32_t k = w->held[i].key;
    struct line *l = &w->lines[k];
    uint64_t told = w->told;
    assert_bytes(w->held[i].data, k, l); /* whatever happened to the block meanwhile */
    assert_int_equal(kvf_index_find_pinned(w->index, key_at(k)), l->handle);
    w->held[i].used = false;
    l->pins--;
    kvf_index_unpin(w->index, l->handle);
    assert_int_equal(w->told - told, l->removed && l->pins == 0);
    settle(w, k);
}

/* The oldest that nobody holds. */
static void spill_start(struct world *w)
{
    uint32_t slot = kvf_dramlist_oldest(w->list);
    uint64_t before = 0;
    for (; slot != KVF_DRAMSLOT_NONE; slot = kvf_dramlist_newer(w->list, slot)) {
        struct kvf_entry *e = kvf_index_entry(w->index, kvf_dramlist_handle(w->list, slot));
        uint32_t k = 0;
        while (w->lines[k].where == NOWHERE || w->lines[k].handle != kvf_dramlist_handle(w->list, slot))
            k++;
        struct line *l = &w->lines[k];
        assert_true(l->came > before); /* oldest first */
        before = l->came;
        if (kvf_entry_pins(e) > 0)
            continue;
        l->other = kvf_arena_alloc(w->ssd, l->bytes);
        if (l->other == KVF_ARENA_NONE)
            return;
        unlist(w, l);
        l->where = GOING_DOWN;
        memcpy(w->media + l->other, w->memory + kvf_entry_location(e), l->bytes);
        return;
    }
}

static void spill_end(struct world *w, uint32_t k)
{
    struct line *l = &w->lines[k];
    struct kvf_entry *e = entry(w, l);
    bool fails = draw(w) % 8 == 0;
    if (!fails && !l->removed) {
        bool free = kvf_entry_close(e, false);
        assert_int_equal(free, l->pins == 0);
        l->closed = !free;
        w->waits += !free;
        if (!free)
            return;
    }
    if (fails || l->removed) { /* stays where it is */
        kvf_arena_free(w->ssd, l->other, l->bytes);
        l->where = IN_DRAM;
        l->closed = false;
        if (!l->removed) {
            list(w, l);
            kvf_entry_open(e);
        }
        settle(w, k);
        return;
    }
    kvf_arena_free(w->dram, kvf_entry_location(e), l->bytes);
    kvf_entry_set_location(e, l->other);
    l->where = ON_SSD;
    w->spills++;
}

static void rise_start(struct world *w, uint32_t k)
{
    struct line *l = &w->lines[k];
    uint64_t slot = kvf_arena_alloc(w->dram, l->bytes);
    if (l->removed || slot == KVF_ARENA_NONE) {
        if (slot != KVF_ARENA_NONE)
            kvf_arena_free(w->dram, slot, l->bytes);
        return;
    }
    l->other = slot;
    l->where = GOING_UP;
    memcpy(w->memory + slot, w->media + kvf_entry_location(entry(w, l)), l->bytes);
}

static void rise_end(struct world *w, uint32_t k)
{
    struct line *l = &w->lines[k];
    struct kvf_entry *e = entry(w, l);
    if (l->removed || draw(w) % 8 == 0) {
        kvf_arena_free(w->dram, l->other, l->bytes);
        l->where = ON_SSD;
        settle(w, k);
        return;
    }
    kvf_arena_free(w->ssd, kvf_entry_location(e), l->bytes);
    kvf_entry_set_location(e, l->other);
    l->where = IN_DRAM;
    list(w, l);
    kvf_entry_open(e);
    w->rises++;
}

/* ---------------------------------------------------------------- all of it, against the twin */

static void check(struct world *w)
{
    uint64_t dram = 0, ssd = 0, entries = 0, listed = 0;
    for (uint32_t k = 0; k < KEYS; k++) {
        const struct line *l = &w->lines[k];
        assert_int_equal(kvf_index_find(w->index, key_at(k)), l->where == NOWHERE ? KVF_HANDLE_NONE : l->handle);
        if (l->where == NOWHERE)
            continue;
        const struct kvf_entry *e = kvf_index_entry(w->index, l->handle);
        uint32_t slot = slot_bytes(l->bytes);
        entries++;
        listed += l->came != 0;
        dram += l->where != ON_SSD ? slot : 0;
        ssd += l->where != IN_DRAM ? slot : 0;
        assert_int_equal(e->bytes, l->bytes);
        assert_int_equal(kvf_entry_pins(e), l->pins);
        assert_int_equal(kvf_entry_model(e), k % 128);
        assert_int_equal(kvf_entry_chunks(e), chunks_of(l->bytes));
        for (uint32_t c = 0; c < chunks_of(l->bytes); c++)
            assert_int_equal(kvf_sums_at(w->sums, e->sums)[c], kvf_mix(kvf_mix(k, l->version), c));
        bool up = l->where == IN_DRAM || l->where == GOING_DOWN;
        assert_bytes((up ? w->memory : w->media) + kvf_entry_location(e), k, l);
    }
    assert_int_equal(kvf_index_count(w->index), entries);
    assert_int_equal(kvf_dramlist_count(w->list), listed);
    assert_int_equal(kvf_arena_used(w->dram), dram);
    assert_int_equal(kvf_arena_used(w->ssd), ssd);
    kvf_index_check(w->index);
    kvf_arena_check(w->dram);
    kvf_arena_check(w->ssd);
    kvf_dramlist_check(w->list);
}

/* An operation on a random key that is in the state for it. */
static void operation(struct world *w)
{
    uint32_t k = (uint32_t)(draw(w) >> 8) % KEYS;
    const struct line *l = &w->lines[k];
    switch (draw(w) % 16) {
    case 0:
    case 1:
    case 2:
        put(w, k);
        break;
    case 3:
        remove_key(w, k);
        break;
    case 4:
    case 5:
        spill_start(w);
        break;
    case 6:
    case 7:
    case 8:
    case 9:
        if (l->where == GOING_DOWN)
            spill_end(w, k);
        else if (l->where == GOING_UP)
            rise_end(w, k);
        else if (l->where == ON_SSD)
            rise_start(w, k);
        break;
    case 10:
    case 11:
        take(w, k);
        break;
    default:
        let_go(w, (unsigned)draw(w) % HELD);
    }
}

static struct world *world_make(void)
{
    struct world *w = calloc(1, sizeof *w);
    w->random = SEED;
    w->memory = aligned_alloc(4096, DRAM);
    w->media = malloc(SSD);
    assert_int_equal(kvf_index_create(ENTRIES, &w->index), KVF_OK);
    assert_int_equal(kvf_arena_create(w->memory, DRAM, 4096, PAGE, &w->dram), KVF_OK);
    assert_int_equal(kvf_arena_create(NULL, SSD, 4096, PAGE, &w->ssd), KVF_OK);
    assert_int_equal(kvf_sums_create(ENTRIES * 64, &w->sums), KVF_OK);
    assert_int_equal(kvf_dramlist_create(DRAM / 4096, &w->list), KVF_OK);
    kvf_index_on_last(w->index, last_pin_gone, w);
    return w;
}

static void world_free(struct world *w)
{
    kvf_dramlist_destroy(w->list);
    kvf_sums_destroy(w->sums);
    kvf_arena_destroy(w->ssd);
    kvf_arena_destroy(w->dram);
    kvf_index_destroy(w->index);
    free(w->media);
    free(w->memory);
    free(w);
}

static void random_lives_of_blocks_agree_with_the_twin(void **state)
{
    struct world *w = world_make();
    print_message("seed %u\n", SEED);
    for (unsigned n = 0; n < OPERATIONS; n++) {
        operation(w);
        if (n % 2000 == 0)
            check(w);
    }
    print_message("%llu puts (%llu times full), %llu hits, %llu down (%llu waits for pins), %llu up, %llu removed (%llu later)\n",
                  (unsigned long long)w->puts, (unsigned long long)w->full, (unsigned long long)w->hits,
                  (unsigned long long)w->spills, (unsigned long long)w->waits, (unsigned long long)w->rises,
                  (unsigned long long)w->removes, (unsigned long long)w->deferred);
    assert_true(w->puts > 1000 && w->hits > 1000 && w->spills > 1000 && w->rises > 1000 && w->removes > 1000);
    assert_true(w->deferred > 100 && w->waits > 100 && w->full > 100);
    /* And everything goes again. */
    for (unsigned i = 0; i < HELD; i++)
        let_go(w, i);
    for (uint32_t k = 0; k < KEYS; k++) {
        while (w->lines[k].where == GOING_DOWN)
            spill_end(w, k);
        if (w->lines[k].where == GOING_UP)
            rise_end(w, k);
        remove_key(w, k);
        assert_int_equal(w->lines[k].where, NOWHERE);
    }
    check(w);
    assert_int_equal(kvf_index_count(w->index), 0);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_lives_of_blocks_agree_with_the_twin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
