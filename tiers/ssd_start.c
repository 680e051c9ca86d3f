/* The start of the SSD tier: superblock, layout, and recovery from the journal.
 *
 * Recovery reads backwards, newest record first. The first record about a place, PUT or FREE, is the true one: it claims the
 * place in a bitmap, and what is older there is passed over. So every live block is met once, its slot is taken in the arena
 * and the owner is told, and nothing is kept for the dead ones. The half is read in large pieces, several at a time.
 *
 *   newest generation has its END   -> it tells all
 *   it has none (a crash during the checkpoint) -> the generation before is read behind it; what still lives there is
 *                                      appended to the newest, or written into its holes where that is full; END follows, and so
 *                                      the checkpoint is finished here
 *
 * Holes, blocks of the journal that are not whole. A power cut leaves some among those that no sync had covered; what they told was
 * promised to nobody, and they are filled with empty blocks, so that there are none when the node serves. A block that *was* synced
 * (a later one says so), or that cannot be read, is damage: it may have told that older blocks were removed. So nothing older is
 * believed, which costs misses; and a new generation is written at once, so that nothing older is believed another time either. Its
 * blocks are tentative up to the one with END: a start that finds no other has nothing to lose with them, since no node has served
 * from them, and passes that generation over. The one before it still tells all.
 *
 * What the journal's last blocks say may lie in a cache whose sync failed in an earlier process. They, and the superblocks, are
 * written again and synced before the node serves: a start builds on nothing that its own sync did not cover. */
#include "base/hash.h"
#include "tiers/ssd_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define UNIT KVF_SSD_UNIT
#define BLOCK KVF_JOURNAL_BLOCK
#define PAGE_BYTES_MIN (1u << 20)
#define SLOTS_ALIGN (1ull << 20)
#define JOURNAL_START (2ull * KVF_SUPERBLOCK_BYTES)
/* Superblocks and journal together: this share of the area, so that records of 64 KiB blocks fill a small part of a half. */
#define JOURNAL_SHARE 32u
#define PIECE_BYTES (1u << 20)
#define PIECES 8u
#define PROBE_BYTES (64u << 10)
#define PROBE_BLOCKS (PROBE_BYTES / BLOCK)
#define PIECE_BLOCKS (PIECE_BYTES / BLOCK)
#define GAP_BLOCKS KVF_SSD_GAP_BLOCKS
/* A journal of which more blocks than this cannot be read is on a disk that is ill: the area is left as it is. */
#define UNREADABLE_MAX 64u
/* The disk is asked before the node serves, so this is the one place that waits. */
#define NAP_NS (10 * KVF_MS)
#define NAPS_MAX 3000u
#define TELL_NS (5 * KVF_SEC)

/* ------------------------------------------------------------------------------------------------- waiting I/O */

struct start_io;
struct piece {
    struct start_io *io;
    struct kvf_disk_request request;
    bool busy;
    enum kvf_status status;
    uint8_t *data; /* [PIECE_BYTES] */
    uint32_t first, blocks; /* of the half, while replaying */
};

/* On the heap, and left there when the disk never answers: it may still write into it. */
struct start_io {
    struct kvf_disk *disk;
    unsigned busy;
    bool abandoned;
    struct piece pieces[PIECES];
    uint8_t *memory;
    uint64_t unreadable[UNREADABLE_MAX]; /* offsets of blocks of the journal */
    unsigned n_unreadable;
    uint8_t superblock[KVF_SUPERBLOCK_BYTES]; /* as it was read */
};

static void io_free(struct start_io *io)
{
    io->abandoned = true;
    if (io->busy)
        return; /* the last io_done comes here again */
    free(io->memory);
    free(io);
}

static struct start_io *io_create(struct kvf_disk *disk)
{
    struct start_io *io = calloc(1, sizeof *io);
    if (!io)
        return NULL;
    io->disk = disk;
    io->memory = aligned_alloc(UNIT, (size_t)PIECES * PIECE_BYTES);
    if (!io->memory) {
        free(io);
        return NULL;
    }
    for (unsigned i = 0; i < PIECES; i++) {
        io->pieces[i].io = io;
        io->pieces[i].data = io->memory + (size_t)i * PIECE_BYTES;
    }
    return io;
}

static void io_done(void *arg, enum kvf_status status)
{
    struct piece *p = arg;
    p->status = status;
    p->busy = false;
    p->io->busy--;
    if (p->io->abandoned)
        io_free(p->io);
}

/* From or to the piece's memory, from its byte `at` on. */
static enum kvf_status io_post(struct piece *p, bool write, uint64_t offset, uint32_t at, uint32_t bytes)
{
    assert(!p->busy && at + bytes <= PIECE_BYTES);
    struct kvf_disk *disk = p->io->disk;
    p->request = (struct kvf_disk_request){
        .write = write, .data = p->data + at, .offset = offset, .bytes = bytes, .done = io_done, .arg = p};
    enum kvf_status st = disk->ops->submit(disk, &p->request);
    if (st == KVF_OK) {
        p->busy = true;
        p->io->busy++;
    }
    return st;
}

/* Waits at most half a minute: ERR_DEADLINE. */
static enum kvf_status io_await(struct piece *p)
{
    struct kvf_disk *disk = p->io->disk;
    for (unsigned naps = 0; p->busy; naps++) {
        if (naps == NAPS_MAX)
            return KVF_ERR_DEADLINE;
        kvf_disk_wait(disk, NAP_NS);
    }
    return p->status;
}

/* One request from beginning to end. */
static enum kvf_status io_run(struct piece *p, bool write, uint64_t offset, uint32_t at, uint32_t bytes)
{
    struct start_io *io = p->io;
    enum kvf_status st = io_post(p, write, offset, at, bytes);
    for (unsigned i = 0; i < PIECES && st == KVF_ERR_BUSY; i++) { /* what is read ahead has all places of the disk */
        if (io->pieces[i].busy && io_await(&io->pieces[i]) == KVF_ERR_DEADLINE)
            return KVF_ERR_DEADLINE;
        st = io_post(p, write, offset, at, bytes);
    }
    return st == KVF_OK ? io_await(p) : st;
}

static bool io_unreadable(const struct start_io *io, uint64_t offset)
{
    for (unsigned i = 0; i < io->n_unreadable; i++)
        if (io->unreadable[i] == offset)
            return true;
    return false;
}

/* A read of the journal failed: each of its blocks is read by itself. Those that cannot be are zeros, and remembered. */
static enum kvf_status io_salvage(struct piece *p, uint64_t offset, uint32_t bytes)
{
    struct start_io *io = p->io;
    for (uint32_t at = 0; at < bytes; at += BLOCK) {
        enum kvf_status st = io_run(p, false, offset + at, at, BLOCK);
        bool known = io_unreadable(io, offset + at);
        if (st == KVF_OK && !known)
            continue;
        if (st != KVF_OK && (st != KVF_ERR_IO || (!known && io->n_unreadable == UNREADABLE_MAX)))
            return st;
        if (!known)
            io->unreadable[io->n_unreadable++] = offset + at;
        memset(p->data + at, 0, BLOCK); /* also one that can be read now: it is one or the other for all of this start */
    }
    return KVF_OK;
}

/* Blocks of the journal into the first piece's memory. */
static enum kvf_status io_read(struct start_io *io, uint64_t offset, uint32_t bytes)
{
    enum kvf_status st = io_run(&io->pieces[0], false, offset, 0, bytes);
    return st == KVF_ERR_IO ? io_salvage(&io->pieces[0], offset, bytes) : st;
}

/* Everything that stands in the journal's memory goes to the disk. ERR_FULL: the half is full. */
static enum kvf_status io_flush(struct start_io *io, struct kvf_journal *j)
{
    void *data;
    uint64_t offset;
    uint32_t bytes;
    kvf_journal_seal(j);
    while (kvf_journal_hand(j, &data, &offset, &bytes)) {
        assert(bytes <= PIECE_BYTES);
        memcpy(io->pieces[0].data, data, bytes);
        enum kvf_status st = io_run(&io->pieces[0], true, offset, 0, bytes);
        if (st != KVF_OK)
            return st;
        kvf_journal_wrote(j, bytes);
    }
    if (j->written - j->durable < KVF_SSD_UNSYNCED_BLOCKS)
        return KVF_OK;
    enum kvf_status st = io->disk->ops->sync(io->disk); /* a crash in here may leave no longer gap than any other */
    if (st == KVF_OK)
        j->durable = j->written;
    return st;
}

/* ------------------------------------------------------------------------------------------------- the superblock */

/* Of the first copy that is whole; OK also for version 1. ERR_CORRUPT: neither is whole. */
static enum kvf_status read_superblock(struct start_io *io, struct kvf_superblock *out)
{
    enum kvf_status st = KVF_ERR_CORRUPT, first = KVF_ERR_CORRUPT;
    for (unsigned copy = 0; copy < 2 && (st == KVF_ERR_CORRUPT || st == KVF_ERR_IO); copy++) {
        first = st;
        st = io_run(&io->pieces[0], false, copy * KVF_SUPERBLOCK_BYTES, 0, KVF_SUPERBLOCK_BYTES);
        if (st == KVF_OK)
            st = kvf_superblock_decode(io->pieces[0].data, KVF_SUPERBLOCK_BYTES, out);
        memcpy(io->superblock, io->pieces[0].data, KVF_SUPERBLOCK_BYTES);
    }
    return st == KVF_ERR_CORRUPT ? first : st; /* what cannot be read now may be whole: it is not made anew */
}

/* The superblock as it was read, to one of its places: an earlier process may have written it and seen its sync fail. */
static enum kvf_status repeat_superblock(struct start_io *io, unsigned copy)
{
    memcpy(io->pieces[0].data, io->superblock, KVF_SUPERBLOCK_BYTES);
    return io_run(&io->pieces[0], true, copy * KVF_SUPERBLOCK_BYTES, 0, KVF_SUPERBLOCK_BYTES);
}

static void lay_out(struct kvf_superblock *sb, const struct kvf_ssd_options *o)
{
    uint64_t area = o->bytes - o->bytes % UNIT, share = area / JOURNAL_SHARE;
    uint32_t largest = (o->block_max + UNIT - 1) / UNIT * UNIT;
    *sb = (struct kvf_superblock){.version = KVF_SUPERBLOCK_VERSION, .align = UNIT, .area_bytes = area,
                                  .slots_start = (share / SLOTS_ALIGN + (share % SLOTS_ALIGN || !share)) * SLOTS_ALIGN,
                                  .page_bytes = largest > PAGE_BYTES_MIN ? largest : PAGE_BYTES_MIN,
                                  .incarnation = o->incarnation, .journal_start = JOURNAL_START};
    sb->half_bytes = (sb->slots_start - JOURNAL_START) / 2 / BLOCK * BLOCK;
    memcpy(sb->node, o->node, strlen(o->node) + 1);
}

/* An empty area: first the journal's two generations 0 and 1, both complete, then the superblocks, so that a whole superblock
 * never stands before something else's journal. */
static enum kvf_status format(struct kvf_ssd *s, struct start_io *io, const struct kvf_superblock *sb)
{
    struct kvf_journal *j = &s->journal;
    for (uint64_t generation = 0; generation < 2; generation++) {
        kvf_journal_position(j, generation, s->env->random(s->env->arg), 0, 0);
        (void)kvf_journal_end(j);
        enum kvf_status st = io_flush(io, j);
        if (st != KVF_OK)
            return st;
    }
    enum kvf_status st = s->disk->ops->sync(s->disk);
    for (unsigned copy = 0; copy < 2 && st == KVF_OK; copy++) {
        kvf_superblock_encode(sb, io->pieces[0].data);
        st = io_run(&io->pieces[0], true, copy * KVF_SUPERBLOCK_BYTES, 0, KVF_SUPERBLOCK_BYTES);
    }
    return st == KVF_OK ? s->disk->ops->sync(s->disk) : st;
}

/* ------------------------------------------------------------------------------------------------- the halves */

struct half {
    bool known;
    uint64_t generation, nonce;
    uint32_t tail; /* blocks up to the last whole one */
    bool tentative; /* that one is */
};

struct replay {
    struct kvf_ssd *s;
    struct start_io *io;
    uint64_t *claimed; /* a bit per unit of the slots */
    bool marks;  /* blocks say how many of their generation were synced: since version 3 */
    uint32_t synced; /* so many of the half's blocks were, as far as is known */
    bool ended;  /* END was met */
    bool append; /* what lives goes into the newest generation, too */
    bool damaged; /* something that was synced is missing: what is older is not believed */
    uint64_t doubted; /* records that are older */
    uint8_t *holes; /* [half_blocks] of the newest generation: 1 not whole, to be filled */
    uint64_t told_ns;
    enum kvf_status status;
};

static uint64_t block_at(const struct kvf_ssd *s, uint64_t generation, uint32_t number)
{
    return s->journal.start + (generation % 2 * s->journal.half_blocks + number) * (uint64_t)BLOCK;
}

/* Whether the block is of this generation and in its place. */
static bool belongs(const struct kvf_ssd *s, const struct half *h, const void *block, uint32_t number,
                    struct kvf_journal_head *head)
{
    return kvf_journal_open(block, s->journal.area, head) && head->generation == h->generation && head->nonce == h->nonce &&
           head->number == number;
}

/* The latest of the half's blocks among these says which generation it holds. */
static void look_for_generation(const struct kvf_ssd *s, const uint8_t *blocks, uint32_t first, uint32_t n, uint64_t parity,
                                struct half *h)
{
    for (uint32_t i = 0; i < n; i++) {
        struct kvf_journal_head head;
        if (!kvf_journal_open(blocks + (size_t)i * BLOCK, s->journal.area, &head) || head.generation % 2 != parity ||
            head.number != first + i || (h->known && head.generation <= h->generation))
            continue;
        *h = (struct half){.known = true, .generation = head.generation, .nonce = head.nonce};
    }
}

/* Reads the half's first blocks; all of it only where those are damaged. */
static enum kvf_status find_generation(struct kvf_ssd *s, struct start_io *io, uint64_t parity, struct half *h)
{
    uint32_t step = PROBE_BLOCKS, blocks = s->journal.half_blocks;
    for (uint32_t first = 0; first < blocks && !h->known; first += step, step = PIECE_BLOCKS) {
        uint32_t n = blocks - first < step ? blocks - first : step;
        enum kvf_status st = io_read(io, block_at(s, parity, first), n * BLOCK);
        if (st != KVF_OK)
            return st;
        look_for_generation(s, io->pieces[0].data, first, n, parity, h);
        if (!h->known && first == 0)
            kvf_log_warn(s->log, "SSD: the beginning of the journal's half %llu is damaged", (unsigned long long)parity);
        step = n;
    }
    return KVF_OK;
}

/* The last of n blocks from `first` on that belongs, plus one; 0 when none does. The half is tentative if that block is. */
static enum kvf_status last_of(struct kvf_ssd *s, struct start_io *io, struct half *h, uint32_t first, uint32_t n,
                               uint32_t *last)
{
    struct kvf_journal_head head;
    *last = 0;
    enum kvf_status st = io_read(io, block_at(s, h->generation, first), n * BLOCK);
    for (uint32_t i = n; st == KVF_OK && i-- > 0 && !*last;)
        if (belongs(s, h, io->pieces[0].data + (size_t)i * BLOCK, first + i, &head)) {
            *last = first + i + 1;
            h->tentative = head.tentative;
        }
    return st;
}

/* The end of the generation: bisection finds a place in it near its end, from there it is read until a gap that no crash can
 * leave inside it. */
static enum kvf_status find_tail(struct kvf_ssd *s, struct start_io *io, struct half *h)
{
    uint32_t blocks = s->journal.half_blocks, low = 0, high = blocks / PROBE_BLOCKS, last;
    while (high - low > GAP_BLOCKS / PROBE_BLOCKS) {
        uint32_t middle = low + (high - low) / 2;
        enum kvf_status st = last_of(s, io, h, middle * PROBE_BLOCKS, PROBE_BLOCKS, &last);
        if (st != KVF_OK)
            return st;
        if (last)
            low = middle;
        else
            high = middle;
    }
    h->tail = low * PROBE_BLOCKS;
    for (uint32_t first = h->tail; first < blocks && first - h->tail < GAP_BLOCKS;) {
        uint32_t n = blocks - first < PIECE_BLOCKS ? blocks - first : PIECE_BLOCKS;
        enum kvf_status st = last_of(s, io, h, first, n, &last);
        if (st != KVF_OK)
            return st;
        if (last)
            h->tail = last;
        first += n;
    }
    return KVF_OK;
}

/* ------------------------------------------------------------------------------------------------- replay */

/* True when any of the place was claimed before; all of it is afterwards. Places outside the area count as claimed. */
static bool claim(struct replay *r, uint64_t offset, uint64_t bytes)
{
    const struct kvf_ssd *s = r->s;
    uint64_t area = kvf_arena_bytes(s->arena);
    if (offset < s->slots_start || offset % UNIT || bytes == 0 || offset - s->slots_start >= area ||
        bytes > area - (offset - s->slots_start))
        return true;
    uint64_t first = (offset - s->slots_start) / UNIT, n = (bytes + UNIT - 1) / UNIT;
    bool any = false;
    for (uint64_t u = first; u < first + n;) {
        uint64_t run = 64 - u % 64 < first + n - u ? 64 - u % 64 : first + n - u;
        uint64_t mask = (run == 64 ? UINT64_MAX : (1ull << run) - 1) << u % 64;
        any |= (r->claimed[u / 64] & mask) != 0;
        r->claimed[u / 64] |= mask;
        u += run;
    }
    return any;
}

/* Where the newest generation is full, its holes are filled: what goes there is older than anything that stands in it. */
static enum kvf_status next_hole(struct replay *r)
{
    struct kvf_journal *j = &r->s->journal;
    uint32_t hole = 0;
    while (hole < j->half_blocks && !r->holes[hole])
        hole++;
    if (hole == j->half_blocks)
        return KVF_ERR_FULL;
    r->holes[hole] = 0;
    kvf_journal_position(j, j->generation, j->nonce, hole, j->synced);
    j->end = hole + 1;
    return KVF_OK;
}

/* Room for a record, when kvf_journal_put or _end found none. */
static enum kvf_status make_room(struct replay *r)
{
    struct kvf_journal *j = &r->s->journal;
    enum kvf_status st = io_flush(r->io, j);
    return st == KVF_OK && j->next == j->end ? next_hole(r) : st;
}

/* A record that lives and belongs to the generation before the newest is written into the newest. */
static void append(struct replay *r, const struct kvf_ssd_record *record)
{
    while (r->status == KVF_OK && !kvf_journal_put(&r->s->journal, record))
        r->status = make_room(r);
}

/* Records that may be found: more than may live, since freed blocks can come back, and these must not cost a living one its
 * place. The next checkpoint still has room for all of them. */
static uint64_t found_max(const struct kvf_ssd *s)
{
    uint32_t blocks = s->journal.half_blocks;
    uint64_t most = blocks > 8 ? (blocks - 8ull) * KVF_JOURNAL_FILL : 0;
    return most > s->live_max ? most : s->live_max;
}

static void replay_put(struct replay *r, const struct kvf_ssd_record *record)
{
    struct kvf_ssd *s = r->s;
    uint32_t size = kvf_journal_record_bytes(record->chunks);
    r->doubted += r->damaged;
    if (r->damaged)
        return;
    if (claim(r, record->offset, record->bytes) || !s->owner.found || s->live_bytes + size > found_max(s))
        return;
    if (!kvf_arena_take(s->arena, record->offset - s->slots_start, record->bytes))
        return; /* its page has slots of another size: it was freed before they were given out */
    if (!s->owner.found(s->owner.arg, record)) {
        kvf_arena_free(s->arena, record->offset - s->slots_start, record->bytes);
        return;
    }
    s->live_bytes += size;
    s->stats.recovered_blocks++;
    s->stats.recovered_bytes += record->bytes;
    if (r->append)
        append(r, record);
}

/* From here on what is older is not believed. */
static void doubt(struct replay *r, const struct half *h, uint32_t number, const char *why)
{
    if (!r->damaged)
        kvf_log_error(r->s->log, "SSD: block %u of generation %llu of the journal %s: all that was recorded before it, and may be "
                      "removed in it, is given up", number, (unsigned long long)h->generation, why);
    r->damaged = true;
}

/* A block that is not whole, or not in its place. */
static void hole(struct replay *r, const struct half *h, uint32_t number)
{
    r->s->stats.journal_damaged++;
    if (io_unreadable(r->io, block_at(r->s, h->generation, number)))
        doubt(r, h, number, "cannot be read");
    else if (number < r->synced)
        doubt(r, h, number, "is damaged");
    else if (!r->append)
        r->holes[number] = 1;
}

static void replay_block(struct replay *r, const struct half *h, const uint8_t *block, uint32_t number)
{
    uint32_t at[BLOCK / 8], n = 0;
    struct kvf_journal_head head;
    struct kvf_journal_entry e;
    if (!belongs(r->s, h, block, number, &head)) {
        hole(r, h, number);
        return;
    }
    if (r->marks && head.synced > r->synced)
        r->synced = head.synced;
    for (uint32_t next = 0, size; (size = kvf_journal_size(block, &head, next)) > 0; next += size)
        at[n++] = next;
    while (n-- > 0) {
        uint32_t from = at[n];
        if (!kvf_journal_read(block, &head, &from, &e))
            continue;
        if (e.kind == KVF_JOURNAL_END)
            r->ended = true;
        else if (e.kind == KVF_JOURNAL_FREE)
            (void)claim(r, e.record.offset, e.record.bytes);
        else
            replay_put(r, &e.record);
    }
}

/* A large journal takes its time. */
static void tell(struct replay *r, const struct half *h, uint32_t left)
{
    uint64_t now = kvf_now(r->s->env);
    if (now - r->told_ns < TELL_NS)
        return;
    r->told_ns = now;
    kvf_log_info(r->s->log, "SSD: looking for blocks: %llu found, %u of %u MiB of the journal still to read",
                 (unsigned long long)r->s->stats.recovered_blocks, left / (1048576 / BLOCK), h->tail / (1048576 / BLOCK));
}

/* Blocks tail-1 down to 0, pieces of the half read ahead in a ring. */
static enum kvf_status replay_half(struct replay *r, const struct half *h)
{
    struct start_io *io = r->io;
    uint32_t left = h->tail, asked = left;
    unsigned head = 1, n = 0; /* piece 0 is for what is done in between */
    while (left > 0) {
        while (asked > 0 && n < PIECES - 1) {
            struct piece *p = &io->pieces[1 + (head - 1 + n) % (PIECES - 1)];
            p->blocks = asked < PIECE_BLOCKS ? asked : PIECE_BLOCKS;
            p->first = asked - p->blocks;
            enum kvf_status st = io_post(p, false, block_at(r->s, h->generation, p->first), 0, p->blocks * BLOCK);
            if (st == KVF_ERR_BUSY && n > 0)
                break; /* a disk of less depth */
            if (st != KVF_OK)
                return st;
            asked = p->first;
            n++;
        }
        struct piece *p = &io->pieces[head];
        enum kvf_status st = io_await(p);
        if (st == KVF_ERR_IO)
            st = io_salvage(p, block_at(r->s, h->generation, p->first), p->blocks * BLOCK);
        if (st != KVF_OK)
            return st;
        for (uint32_t i = p->blocks; i-- > 0;)
            replay_block(r, h, p->data + (size_t)i * BLOCK, p->first + i);
        left -= p->blocks;
        head = 1 + head % (PIECES - 1);
        n--;
        tell(r, h, left);
    }
    return r->status;
}

/* ------------------------------------------------------------------------------------------------- what the node builds on */

/* The newest generation's last blocks, as far as no sync is known to have covered them, are written again as they stand. */
static enum kvf_status repeat_blocks(struct replay *r, const struct half *h)
{
    struct piece *p = &r->io->pieces[0];
    struct kvf_journal_head head;
    uint32_t first = h->tail > GAP_BLOCKS ? h->tail - GAP_BLOCKS : 0, n;
    for (first = r->synced > first ? r->synced : first; first < h->tail; first += n) {
        n = h->tail - first < PIECE_BLOCKS ? h->tail - first : PIECE_BLOCKS;
        enum kvf_status st = io_read(r->io, block_at(r->s, h->generation, first), n * BLOCK);
        for (uint32_t i = 0, end; i < n && st == KVF_OK; i = end + 1) {
            for (end = i; end < n && belongs(r->s, h, p->data + (size_t)end * BLOCK, first + end, &head);)
                end++;
            if (end > i)
                st = io_run(p, true, block_at(r->s, h->generation, first + i), i * BLOCK, (end - i) * BLOCK);
        }
        if (st != KVF_OK)
            return st;
    }
    return r->s->disk->ops->sync(r->s->disk);
}

/* Empty blocks into the holes that are left. */
static enum kvf_status fill_holes(struct replay *r)
{
    struct kvf_ssd *s = r->s;
    struct piece *p = &r->io->pieces[0];
    enum kvf_status st = KVF_OK;
    for (uint32_t n = 0; n < s->journal.half_blocks && st == KVF_OK; n++) {
        if (!r->holes[n])
            continue;
        kvf_journal_blank(&s->journal, n, p->data);
        st = io_run(p, true, block_at(s, s->journal.generation, n), 0, BLOCK);
    }
    return st;
}

/* All that was written and appended is durable then. */
static enum kvf_status flush_and_sync(struct replay *r)
{
    struct kvf_disk *disk = r->s->disk;
    enum kvf_status st = io_flush(r->io, &r->s->journal);
    return st == KVF_OK ? disk->ops->sync(disk) : st;
}

/* When all that it speaks of is durable. */
static enum kvf_status write_end(struct replay *r)
{
    struct kvf_journal *j = &r->s->journal;
    enum kvf_status st = KVF_OK;
    while (st == KVF_OK && !kvf_journal_end(j))
        st = make_room(r);
    return st == KVF_OK ? io_flush(r->io, j) : st;
}

/* A new generation with what was found, and nothing else: what is not believed now is not met again, whatever can be read then.
 * Only the block with END is not tentative: where that got through, all of them did. */
static enum kvf_status begin_anew(struct replay *r)
{
    struct kvf_ssd *s = r->s;
    struct kvf_journal *j = &s->journal;
    struct kvf_ssd_record record;
    uint64_t cursor = 0;
    memset(r->holes, 0, s->journal.half_blocks);
    kvf_journal_position(j, j->generation + 1, s->env->random(s->env->arg), 0, KVF_JOURNAL_TENTATIVE);
    while (r->status == KVF_OK && s->owner.walk && s->owner.walk(s->owner.arg, &cursor, &record))
        append(r, &record);
    enum kvf_status st = r->status == KVF_OK ? flush_and_sync(r) : r->status;
    if (st != KVF_OK)
        return st;
    kvf_journal_synced(j, j->written);
    return write_end(r);
}

/* The checkpoint that was under way is finished with what the generation before it has. */
static enum kvf_status finish_with(struct replay *r, struct half *before)
{
    struct kvf_ssd *s = r->s;
    r->append = true;
    r->synced = r->marks ? s->journal.half_blocks : 0; /* all of it was, before the next one began */
    enum kvf_status st = find_tail(s, r->io, before);
    if (st == KVF_OK && r->marks && before->tail + 1 < s->journal.half_blocks) /* the last block may have had no record */
        doubt(r, before, before->tail, "is lost");
    if (st == KVF_OK)
        st = replay_half(r, before);
    return st;
}

/* The newest blocks of all may be among those that cannot be read. */
static void look_behind(struct replay *r, const struct half *h)
{
    bool full = h->tail + 1 >= r->s->journal.half_blocks;
    if (!full && io_unreadable(r->io, block_at(r->s, h->generation, h->tail)))
        doubt(r, h, h->tail, "cannot be read");
    if (full && io_unreadable(r->io, block_at(r->s, h->generation + 1, 0)))
        doubt(r, h, h->tail, "is the last, and the first of the next generation cannot be read");
}

/* The newest generation tells all, or with the one before it. */
static enum kvf_status recover_from(struct replay *r, struct half *h, struct half *before)
{
    struct kvf_ssd *s = r->s;
    uint32_t hole = 0;
    kvf_journal_position(&s->journal, h->generation, h->nonce, h->tail, 0);
    look_behind(r, h);
    enum kvf_status st = replay_half(r, h);
    if (st == KVF_OK && r->damaged)
        return begin_anew(r);
    if (st == KVF_OK)
        st = repeat_blocks(r, h);
    while (hole < h->tail && !r->holes[hole])
        hole++;
    s->journal.synced = hole; /* what is written now must not say more: power may go again before the holes are filled */
    bool ended = r->ended; /* that of the generation before is not asked for */
    if (st == KVF_OK && !ended && before->known && before->generation + 1 == h->generation)
        st = finish_with(r, before);
    if (st == KVF_OK)
        st = fill_holes(r);
    if (st == KVF_OK && !ended)
        st = flush_and_sync(r);
    return st == KVF_OK && !ended ? write_end(r) : st;
}

/* Whether the newest generation was begun by a start that did not come to its END. What a block that cannot be read may have been,
 * END too, stands right behind the others. */
static bool never_ended(const struct kvf_ssd *s, const struct start_io *io, const struct half *h, const struct half *before)
{
    bool whole = h->tail == s->journal.half_blocks || !io_unreadable(io, block_at(s, h->generation, h->tail));
    return h->tentative && whole && before->known && before->generation + 1 == h->generation;
}

/* Positions the journal behind the newest generation and meets every live block. */
static enum kvf_status recover(struct kvf_ssd *s, struct replay *r)
{
    struct half halves[2] = {0};
    for (uint64_t parity = 0; parity < 2; parity++) {
        enum kvf_status st = find_generation(s, r->io, parity, &halves[parity]);
        if (st != KVF_OK)
            return st;
    }
    if (!halves[0].known && !halves[1].known) {
        kvf_log_error(s->log, "SSD: the journal is lost: nothing of the area can be found");
        return r->io->n_unreadable ? KVF_ERR_IO : KVF_ERR_CORRUPT; /* what cannot be read now is not made anew */
    }
    unsigned newest = !halves[0].known || (halves[1].known && halves[1].generation > halves[0].generation);
    enum kvf_status st = find_tail(s, r->io, &halves[newest]);
    if (st == KVF_OK && never_ended(s, r->io, &halves[newest], &halves[!newest])) {
        kvf_log_warn(s->log, "SSD: generation %llu of the journal was begun by a start that was cut short: it is passed over",
                     (unsigned long long)halves[newest].generation);
        newest = !newest;
        st = find_tail(s, r->io, &halves[newest]);
    }
    if (st == KVF_OK)
        st = recover_from(r, &halves[newest], &halves[!newest]);
    enum kvf_status again = st == KVF_OK || st == KVF_ERR_FULL ? repeat_superblock(r->io, 0) : st;
    return again == KVF_OK ? st : again;
}

/* What was found serves; what a full journal or a disk that fails forbids is taking more. */
static enum kvf_status recovered(struct kvf_ssd *s, enum kvf_status st)
{
    struct kvf_journal *j = &s->journal;
    if (st == KVF_ERR_FULL) {
        kvf_log_error(s->log, "SSD: the journal has no room to finish its checkpoint: no new blocks are taken");
        s->journal_dead = s->sync_failed = true;
        kvf_ssd_degrade(s, ENOSPC);
        st = KVF_OK;
    }
    if (st == KVF_OK)
        st = s->disk->ops->sync(s->disk);
    if (s->stats.journal_damaged)
        kvf_log_warn(s->log, "SSD: %llu blocks of the journal were not whole", (unsigned long long)s->stats.journal_damaged);
    if (st != KVF_OK)
        return st;
    if (j->end < j->half_blocks) /* that was a hole, of a half that is full */
        kvf_journal_position(j, j->generation, j->nonce, j->half_blocks, 0);
    kvf_journal_synced(j, j->written);
    return KVF_OK;
}

/* ------------------------------------------------------------------------------------------------- start */

/* The area that stands there, or a new one. *found: it is ours and may be recovered. */
static enum kvf_status choose_area(struct kvf_ssd *s, struct start_io *io, const struct kvf_ssd_options *o,
                                   struct kvf_superblock *sb, bool *found)
{
    struct kvf_superblock ours;
    lay_out(&ours, o);
    if (ours.area_bytes < ours.slots_start + ours.page_bytes)
        return KVF_ERR_INVALID;
    enum kvf_status st = read_superblock(io, sb);
    *found = st == KVF_OK && sb->version >= 2;
    if (st == KVF_OK && strcmp(sb->node, ours.node) != 0)
        return KVF_ERR_CONFIG;
    if (st != KVF_OK && st != KVF_ERR_CORRUPT)
        return st;
    bool fits = sb->align == UNIT && sb->page_bytes >= ours.page_bytes && ours.area_bytes >= sb->slots_start + sb->page_bytes;
    if (*found && !fits) {
        kvf_log_warn(s->log, "SSD: the area was made for other sizes (block.bytes_max, ssd.bytes): it begins empty");
        *found = false;
    }
    if (*found)
        sb->area_bytes = ours.area_bytes; /* it may have grown or shrunk: slots beyond its end are not found */
    else
        *sb = ours;
    return KVF_OK;
}

static enum kvf_status start(struct kvf_ssd *s, struct start_io *io, const struct kvf_ssd_options *o)
{
    struct kvf_superblock sb;
    bool found;
    enum kvf_status st = choose_area(s, io, o, &sb, &found);
    if (st != KVF_OK)
        return st;
    uint32_t half_blocks = (uint32_t)(sb.half_bytes / BLOCK);
    s->slots_start = sb.slots_start;
    s->live_max = (uint64_t)half_blocks * KVF_JOURNAL_FILL / 4 * 3;
    st = kvf_arena_create(NULL, sb.area_bytes - sb.slots_start, UNIT, sb.page_bytes, &s->arena);
    if (st == KVF_OK)
        st = kvf_journal_init(&s->journal, sb.incarnation, sb.journal_start, half_blocks);
    if (st == KVF_OK)
        st = found ? repeat_superblock(io, 1) : format(s, io, &sb); /* the other copy when a sync has made this one safe */
    if (st == KVF_OK && !found)
        kvf_journal_synced(&s->journal, s->journal.written);
    if (st != KVF_OK || !found)
        return st;

    uint64_t began = kvf_now(s->env);
    struct replay r = {.s = s, .io = io, .marks = sb.version >= 3, .status = KVF_OK, .told_ns = began};
    r.claimed = calloc(kvf_arena_bytes(s->arena) / UNIT / 64 + 1, sizeof *r.claimed);
    r.holes = calloc(half_blocks, 1);
    st = r.claimed && r.holes ? recover(s, &r) : KVF_ERR_NO_MEMORY;
    free(r.claimed);
    free(r.holes);
    if (r.doubted)
        kvf_log_warn(s->log, "SSD: %llu older records of the journal were passed over", (unsigned long long)r.doubted);
    st = recovered(s, st == KVF_ERR_CORRUPT ? format(s, io, &sb) : st);
    s->stats.recovery_ns = kvf_now(s->env) - began;
    return st;
}

enum kvf_status kvf_ssd_start(struct kvf_ssd *s, const struct kvf_ssd_options *o)
{
    struct start_io *io = io_create(s->disk);
    if (!io)
        return KVF_ERR_NO_MEMORY;
    enum kvf_status st = start(s, io, o);
    io_free(io);
    return st;
}
