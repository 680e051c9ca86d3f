/* The node's DRAM (ram.h). Under the core's lock: the arenas, the fabric, the disk, `next`, the statistics. The rest of a piece is
 * its preparer's alone, until it is ready. */
#include "node/ram.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of so little nobody asks in what pages it lies, and to find out takes longer than to prepare it. */
#define SMALL_BYTES (64ull << 20)
#define HEADROOM (256ull << 20) /* of the machine's memory, that a piece leaves to others */

enum part { PART_STAGING, PART_OWN, PART_LENT, PARTS };

struct piece {
    enum part part;
    uint64_t offset, bytes; /* in core->memory */
    enum kvf_page_kind kind;
    int fd;                 /* of a lent piece */
    void *registered;       /* with the transport */
    bool pinned;            /* by the device */
};

struct kvf_ram {
    struct kvf_pages pages;
    uint64_t page;   /* of the arenas */
    uint64_t at[PARTS], bytes[PARTS], ready[PARTS];
    struct piece *pieces; /* [n] */
    unsigned n, next;     /* next: the first that is not ready */
    bool ended;           /* no more are prepared */
    uint64_t start_ns, end_ns, huge_bytes;
    char error[160];
    bool disk;            /* pieces are registered with it */
    pthread_t thread;
    bool started;
    _Atomic bool stop;
};

static uint64_t up(uint64_t bytes, uint64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* ---------------------------------------------------------------- the plan */

static unsigned cut(struct kvf_ram *ram, enum part part, uint64_t piece_bytes, struct piece *to)
{
    unsigned n = 0;
    for (uint64_t at = 0; at < ram->bytes[part]; at += piece_bytes, n++) {
        uint64_t left = ram->bytes[part] - at;
        if (to)
            to[n] = (struct piece){
                .part = part, .offset = ram->at[part] + at, .bytes = left < piece_bytes ? left : piece_bytes, .fd = -1};
    }
    return n;
}

static enum kvf_status plan(struct kvf_core *core, struct kvf_ram *ram)
{
    const struct kvf_settings *s = &core->settings;
    ram->page = 4096;
    while (ram->page < s->block_bytes_max)
        ram->page *= 2;
    /* Blocks lie inside an arena's page, so pieces of whole pages hold them whole. */
    uint64_t unit = ram->page > KVF_PAGES_HUGE ? ram->page : KVF_PAGES_HUGE;
    uint64_t piece = up(s->memory_piece_bytes, ram->pages.wanted == KVF_PAGE_1G ? 1ull << 30 : unit);
    ram->bytes[PART_OWN] = up(s->dram_bytes, ram->page);
    ram->bytes[PART_LENT] = up(s->lend_bytes, ram->page);
    ram->bytes[PART_STAGING] = up(s->staging_bytes, ram->page);
    ram->at[PART_OWN] = 0;
    ram->at[PART_LENT] = up(ram->bytes[PART_OWN], piece);
    ram->at[PART_STAGING] = ram->at[PART_LENT] + up(ram->bytes[PART_LENT], piece);
    core->lent_at = ram->at[PART_LENT];
    core->staging_at = ram->at[PART_STAGING];
    core->memory_bytes = core->staging_at + ram->bytes[PART_STAGING];

    uint64_t lent_piece = up((ram->bytes[PART_LENT] + KVF_REGION_PIECES_MAX - 1) / KVF_REGION_PIECES_MAX, unit);
    const uint64_t sizes[PARTS] = {piece, piece, lent_piece > piece ? lent_piece : piece};
    for (int p = 0; p < PARTS; p++)
        ram->n += cut(ram, (enum part)p, sizes[p], NULL);
    ram->pieces = calloc(ram->n, sizeof *ram->pieces);
    if (!ram->pieces)
        return KVF_ERR_NO_MEMORY;
    for (unsigned p = 0, n = 0; p < PARTS; p++)
        n += cut(ram, (enum part)p, sizes[p], &ram->pieces[n]);
    return KVF_OK;
}

static struct kvf_arena *arena_of(struct kvf_core *core, enum part part)
{
    return part == PART_OWN ? core->dram : part == PART_LENT ? core->lent : core->staging;
}

static enum kvf_status arenas_create(struct kvf_core *core, struct kvf_ram *ram)
{
    struct kvf_arena **const arenas[PARTS] = {&core->staging, &core->dram, &core->lent};
    for (int p = 0; p < PARTS; p++) {
        if (!ram->bytes[p])
            continue;
        enum kvf_status st = kvf_arena_create(core->memory + ram->at[p], ram->bytes[p], 4096, (uint32_t)ram->page, arenas[p]);
        if (st != KVF_OK)
            return st;
        kvf_arena_limit(*arenas[p], 0);
    }
    return KVF_OK;
}

/* ---------------------------------------------------------------- one piece */

/* Memory, and the device and the network pin it. Takes long; without the lock. */
static enum kvf_status prepare(struct kvf_core *core, struct kvf_ram *ram, struct piece *piece)
{
    uint8_t *at = core->memory + piece->offset;
    bool lent = piece->part == PART_LENT && core->region;
    enum kvf_status st = kvf_pages_back(&ram->pages, at, piece->bytes, lent, &piece->kind, &piece->fd);
    if (st == KVF_OK && piece->kind < KVF_PAGE_2M && kvf_pages_available() < piece->bytes + HEADROOM)
        st = KVF_ERR_NO_MEMORY; /* rather than be killed for it */
    if (st == KVF_OK)
        st = kvf_pages_populate(&ram->pages, at, piece->bytes, lent && piece->kind == KVF_PAGE_THP, &ram->stop);
    if (st == KVF_OK && lent)
        st = core->transport->ops->region_add(core->transport, core->region, piece->offset, piece->bytes, piece->fd);
    if (st != KVF_OK)
        return st;
    /* Without these two all works, but every transfer pins its own. */
    if (!lent && core->transport &&
        core->transport->ops->memory_register(core->transport, at, piece->bytes, &piece->registered) != KVF_OK)
        kvf_log_warn(&core->log, "memory: %" PRIu64 " MiB cannot be registered with the network (ulimit -l?)", piece->bytes >> 20);
    piece->pinned = core->dev->host_register(core->dev, at, piece->bytes) == KVF_OK;
    if (!piece->pinned)
        kvf_log_warn(&core->log, "memory: %" PRIu64 " MiB cannot be pinned for %s", piece->bytes >> 20, core->dev->name);
    return KVF_OK;
}

static void give_back(struct kvf_core *core, struct piece *piece)
{
    if (piece->pinned)
        core->dev->host_unregister(core->dev, core->memory + piece->offset);
    if (piece->registered)
        core->transport->ops->memory_unregister(core->transport, piece->registered);
    if (piece->fd >= 0)
        close(piece->fd);
}

static uint64_t sum(const uint64_t values[PARTS])
{
    return values[PART_STAGING] + values[PART_OWN] + values[PART_LENT];
}

static void end(struct kvf_core *core, struct kvf_ram *ram)
{
    ram->ended = true;
    ram->end_ns = kvf_now(core->env);
    double s = (double)(ram->end_ns - ram->start_ns) / 1e9;
    kvf_log_info(&core->log, "memory: %.1f MiB ready after %.2f s", (double)sum(ram->ready) / (1 << 20), s);
}

/* Its memory is given out from now on. Under the lock. */
static void ready(struct kvf_core *core, struct kvf_ram *ram, const struct piece *piece)
{
    ram->ready[piece->part] += piece->bytes;
    ram->next++;
    kvf_arena_limit(arena_of(core, piece->part), ram->ready[piece->part]);
    if (ram->disk && core->disk)
        core->disk->ops->register_memory(core->disk, core->memory + piece->offset, piece->bytes);
    if (piece->part == PART_LENT && core->fabric)
        kvf_fabric_region_grown(core->fabric);
    core->spill_stuck = false; /* there is room, perhaps */
    kvf_core_changed(core);
    kvf_log_info(&core->log, "memory: %.1f of %.1f MiB ready (%s pages)", (double)sum(ram->ready) / (1 << 20),
                 (double)sum(ram->bytes) / (1 << 20), kvf_page_kind_name(piece->kind));
    if (ram->next == ram->n)
        end(core, ram);
}

bool kvf_ram_step(struct kvf_core *core)
{
    struct kvf_ram *ram = core->ram;
    if (ram->ended || ram->next == ram->n)
        return false;
    struct piece *piece = &ram->pieces[ram->next];
    enum kvf_status st = prepare(core, ram, piece);
    kvf_core_lock(core);
    if (st == KVF_OK) {
        ready(core, ram, piece);
    } else if (st != KVF_CANCELLED) {
        snprintf(ram->error, sizeof ram->error, "%.1f of %.1f MiB could be had: %s (%s)", (double)sum(ram->ready) / (1 << 20),
                 (double)sum(ram->bytes) / (1 << 20), kvf_status_text(st), kvf_status_name(st));
        kvf_log_error(&core->log, "memory: %s; the node goes on with that", ram->error);
        end(core, ram);
    }
    bool more = !ram->ended && st == KVF_OK;
    kvf_core_unlock(core);
    return more;
}

/* ---------------------------------------------------------------- life */

/* What must be there before the node can serve: a piece of staging and one of its own. */
static bool enough(const struct kvf_ram *ram)
{
    return ram->ready[PART_STAGING] > 0 && ram->ready[PART_OWN] > 0;
}

static enum kvf_status begin(struct kvf_core *core, struct kvf_ram *ram)
{
    enum kvf_status st = plan(core, ram);
    if (st != KVF_OK)
        return st;
    if (sum(ram->bytes) > kvf_pages_machine())
        return KVF_ERR_NO_MEMORY;
    core->memory = kvf_pages_reserve(core->memory_bytes);
    if (!core->memory)
        return KVF_ERR_NO_MEMORY;
    st = arenas_create(core, ram);
    if (st == KVF_OK && core->transport && ram->bytes[PART_LENT])
        st = core->transport->ops->region_create(core->transport, core->memory, core->lent_at + ram->bytes[PART_LENT],
                                                 &core->region);
    return st;
}

enum kvf_status kvf_ram_create(struct kvf_core *core, char *error, size_t error_size)
{
    const struct kvf_settings *s = &core->settings;
    struct kvf_ram *ram = core->ram = calloc(1, sizeof *ram);
    if (!ram) {
        snprintf(error, error_size, "out of memory");
        return KVF_ERR_NO_MEMORY;
    }
    ram->start_ns = kvf_now(core->env);
    enum kvf_status st = kvf_pages_init(&ram->pages, s->memory_huge, s->memory_numa, s->fabric_interface,
                                        (unsigned)s->memory_threads, "/sys");
    if (st != KVF_OK) {
        snprintf(error, error_size, "memory.numa = %.100s: auto, off, interleave, or nodes of this machine that have memory (%s)",
                 s->memory_numa, kvf_status_name(st));
        return st;
    }
    st = begin(core, ram);
    uint64_t until = kvf_deadline(ram->start_ns, s->memory_budget_ns);
    while (st == KVF_OK && (!enough(ram) || (kvf_now(core->env) < until && !core->ram_by_hand)))
        if (!kvf_ram_step(core))
            break;
    if (st == KVF_OK && !enough(ram))
        st = KVF_ERR_NO_MEMORY;
    if (st != KVF_OK)
        snprintf(error, error_size,
                 "allocating %" PRIu64 " bytes of memory (dram.bytes, lend.bytes, fetch.staging): %s (%s); ask for less",
                 sum(ram->bytes), kvf_status_text(st), kvf_status_name(st));
    return st;
}

void kvf_ram_disk(struct kvf_core *core)
{
    struct kvf_ram *ram = core->ram;
    ram->disk = true;
    for (unsigned i = 0; core->disk && i < ram->next; i++)
        core->disk->ops->register_memory(core->disk, core->memory + ram->pieces[i].offset, ram->pieces[i].bytes);
}

static void *prepare_rest(void *arg)
{
    struct kvf_core *core = arg;
    struct kvf_ram *ram = core->ram;
    while (!atomic_load(&ram->stop) && kvf_ram_step(core))
        ;
    if (!ram->ended)
        return NULL;
    uint64_t huge = kvf_pages_huge_bytes(core->memory, core->memory_bytes);
    kvf_core_lock(core);
    ram->huge_bytes = huge;
    kvf_core_unlock(core);
    return NULL;
}

void kvf_ram_start(struct kvf_core *core)
{
    struct kvf_ram *ram = core->ram;
    if (core->ram_by_hand)
        return;
    if (ram->ended) {
        ram->huge_bytes = sum(ram->ready) < SMALL_BYTES ? 0 : kvf_pages_huge_bytes(core->memory, core->memory_bytes);
        return;
    }
    kvf_log_info(&core->log, "memory: serving with %.1f of %.1f MiB, the rest follows", (double)sum(ram->ready) / (1 << 20),
                 (double)sum(ram->bytes) / (1 << 20));
    ram->started = pthread_create(&ram->thread, NULL, prepare_rest, core) == 0;
    if (!ram->started)
        kvf_log_error(&core->log, "memory: no thread to prepare the rest: the node goes on with what is ready");
}

void kvf_ram_stop(struct kvf_core *core)
{
    struct kvf_ram *ram = core->ram;
    if (!ram)
        return;
    atomic_store(&ram->stop, true);
    if (ram->started)
        pthread_join(ram->thread, NULL);
    ram->started = false;
}

void kvf_ram_destroy(struct kvf_core *core)
{
    struct kvf_ram *ram = core->ram;
    if (!ram)
        return;
    kvf_arena_destroy(core->dram);
    kvf_arena_destroy(core->lent);
    kvf_arena_destroy(core->staging);
    if (core->region)
        core->transport->ops->region_destroy(core->transport, core->region);
    for (unsigned i = 0; ram->pieces && i < ram->n && i <= ram->next; i++)
        give_back(core, &ram->pieces[i]);
    kvf_pages_release(core->memory, core->memory_bytes);
    free(ram->pieces);
    free(ram);
    core->ram = NULL;
}

void kvf_ram_stats(const struct kvf_core *core, struct kvf_ram_stats *out)
{
    const struct kvf_ram *ram = core->ram;
    *out = (struct kvf_ram_stats){.total_bytes = sum(ram->bytes),
                                  .ready_bytes = sum(ram->ready),
                                  .own_bytes = ram->bytes[PART_OWN],
                                  .own_ready_bytes = ram->ready[PART_OWN],
                                  .lent_bytes = ram->bytes[PART_LENT],
                                  .lent_ready_bytes = ram->ready[PART_LENT],
                                  .elapsed_ns = (ram->ended ? ram->end_ns : kvf_now(core->env)) - ram->start_ns,
                                  .huge_bytes = ram->huge_bytes,
                                  .done = ram->ended,
                                  .kind = ram->next ? ram->pieces[ram->next - 1].kind : KVF_PAGE_SMALL};
    snprintf(out->error, sizeof out->error, "%s", ram->error);
    snprintf(out->numa, sizeof out->numa, "%s", ram->pages.numa_text);
}
