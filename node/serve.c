/* Reads by key that other nodes ask of us: a session's new home fetches what still lies here, in DRAM or on SSD. The chunks that
 * one READ asks for go out in pieces of at most a frame, in order:
 *
 *     made (the next chunks, pinned in DRAM or on their way from SSD to a slot of staging as large as they are) -> sent when they
 *     are there (READ_DATA) -> acknowledged: its memory is free, and the window of its request wider again
 *
 * and when all have gone, or could not be had, the READ is answered. One that fits into one piece is answered with its bytes.
 * Whoever asks is given a piece in turn, peer by peer and request by request, small ones first: so no large read keeps others
 * waiting, and what is in memory for one peer is bounded. The asker's deadline ends a request, as a piece that it does not take. */
#include "node/internal.h"
#include "node/wire.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SERVES_MAX 128
#define SERVES_PER_PEER 32
#define PIECES_MAX 64
#define PIECES_OF_SMALL 16           /* of all, kept for requests that are small */
#define PIECES_PER_PEER 8
#define PIECES_READING_MAX 12        /* at the disk, of requests that are not small: what a small one waits behind */
#define PIECE_BYTES (256u << 10)
#define SMALL_BYTES (64u << 10)      /* a request of so much goes first, and is not counted among the others' pieces */
#define TIMEOUT_NS (10 * KVF_SEC)    /* of a request that does not say how long it waits */
#define SEND_TIMEOUT_NS (10 * KVF_SEC)

enum { GOOD, GONE, LATER, STREAMED }; /* what the answer says of an item */

struct part {
    struct piece *piece;
    unsigned item;
    uint64_t mask;
    kvf_handle handle;
    bool pinned;
    uint8_t *data;               /* where the block's first byte would be */
    uint32_t bytes, chunk_bytes; /* of the block, as it lay when the part was made */
    bool failed;
};

struct piece {
    struct serve *serve; /* NULL: free */
    unsigned n, reading;
    bool sent;
    uint64_t slot; /* of staging; KVF_ARENA_NONE: none */
    uint32_t slot_bytes, bytes;
    struct part parts[KVF_BATCH_MAX];
    uint8_t header[KVF_PIECES_HEADER_MAX];
};

struct serve {
    struct kvf_core *core;
    bool busy;
    bool given_up;        /* nobody waits for it any more: it is over when its pieces are */
    bool all;             /* every piece is made */
    bool stalled;         /* in this turn there is no room for its next one */
    struct kvf_node_peer *peer;
    uint64_t incarnation; /* the peer's when it asked */
    uint64_t request, id; /* the fabric's number, and the asker's own */
    uint64_t deadline_ns;
    uint32_t window, out_bytes; /* in pieces, at most, and now */
    unsigned pieces, frames;    /* under way, and sent so far */
    bool small;
    unsigned n, item;     /* the item whose chunks come next, */
    uint64_t done;        /* ... but for these */
    struct kvf_read_item items[KVF_BATCH_MAX];
    uint8_t statuses[KVF_BATCH_MAX];
};

struct kvf_serve {
    struct serve serves[SERVES_MAX];
    struct piece pieces[PIECES_MAX];
    unsigned active, pieces_out, reading;
    uint64_t staged_bytes;
    unsigned next; /* the serve whose turn it is */
};

enum kvf_status kvf_serves_create(struct kvf_core *core)
{
    core->serves = calloc(1, sizeof *core->serves);
    if (!core->serves)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < SERVES_MAX; i++)
        core->serves->serves[i].core = core;
    return KVF_OK;
}

void kvf_serves_destroy(struct kvf_core *core)
{
    free(core->serves);
    core->serves = NULL;
}

bool kvf_serves_idle(const struct kvf_core *core)
{
    return core->serves->active == 0;
}

void kvf_serves_stats(const struct kvf_core *core, struct kvf_serves_stats *out)
{
    const struct kvf_serve *sv = core->serves;
    *out = (struct kvf_serves_stats){.requests = sv->active, .pieces = sv->pieces_out, .staged_bytes = sv->staged_bytes};
    for (unsigned i = 0; i < SERVES_MAX; i++)
        out->bytes += sv->serves[i].busy ? sv->serves[i].out_bytes : 0;
}

static bool peer_there(const struct serve *s)
{
    return s->peer->up && s->peer->member.incarnation == s->incarnation;
}

static void serve_free(struct serve *s)
{
    assert(s->pieces == 0 && s->out_bytes == 0);
    s->busy = false;
    s->core->serves->active--;
}

static void give_up(struct serve *s)
{
    if (!s->given_up)
        kvf_count(&s->core->counters.requests_given_up, 1);
    s->given_up = s->all = true;
}

/* ---------------------------------------------------------------- making a piece */

/* What a piece may hold. */
struct room {
    uint32_t bytes, slot_bytes;
    unsigned runs;
};

/* Chunk c of a block. */
static uint32_t chunk_size(const struct part *p, unsigned c)
{
    uint32_t at = c * p->chunk_bytes;
    return p->bytes - at < p->chunk_bytes ? p->bytes - at : p->chunk_bytes;
}

/* The first chunks of `left` that fit, as a part; its bytes. What comes from SSD takes room from its first page to its last, at
 * *slot_at of the slot. */
static uint32_t part_fill(struct part *p, uint64_t left, bool in_dram, const struct room *room, uint32_t slot_at,
                          uint32_t *slot_end, unsigned *runs)
{
    uint32_t bytes = 0, first = (uint32_t)__builtin_ctzll(left) * p->chunk_bytes / 4096 * 4096;
    p->mask = 0;
    *runs = 0;
    *slot_end = slot_at;
    for (; left; left &= left - 1) {
        unsigned c = (unsigned)__builtin_ctzll(left);
        uint32_t size = chunk_size(p, c), end = (c * p->chunk_bytes + size + 4095) / 4096 * 4096;
        bool joined = c > 0 && (p->mask >> (c - 1) & 1);
        if (bytes + size > room->bytes || *runs + !joined > room->runs || (!in_dram && slot_at + end - first > room->slot_bytes))
            break;
        p->mask |= 1ull << c;
        bytes += size;
        *runs += !joined;
        *slot_end = in_dram ? slot_at : slot_at + end - first;
    }
    p->data = in_dram ? NULL : (uint8_t *)(uintptr_t)(slot_at - (uint64_t)first); /* made whole when the slot is known */
    return bytes;
}

/* Where an item's block is, or NULL: not here. */
static struct kvf_entry *find(struct kvf_core *core, const struct kvf_read_item *item, kvf_handle *h)
{
    *h = kvf_index_find(core->index, item->key);
    struct kvf_entry *e = *h == KVF_HANDLE_NONE ? NULL : kvf_index_entry(core->index, *h);
    bool here = e && (e->state == KVF_BLOCK_READY || e->state == KVF_BLOCK_SPILLING || e->state == KVF_BLOCK_RISING) &&
                (e->tier == KVF_TIER_DRAM || e->tier == KVF_TIER_SSD) && !(e->flags & KVF_FLAG_REMOVED);
    return here && (kvf_entry_chunks(e) == 64 || item->mask >> kvf_entry_chunks(e) == 0) ? e : NULL;
}

/* On to the next item. */
static void item_end(struct serve *s, uint8_t status)
{
    s->statuses[s->item] = s->statuses[s->item] == GOOD ? status : s->statuses[s->item];
    s->item++;
    s->done = 0;
    s->all |= s->item == s->n;
}

/* The largest slot of staging that a piece may take: staging gives out no larger ones than its largest block. */
static uint32_t slot_bytes_max(const struct kvf_core *core)
{
    uint32_t most = 4096;
    while (most < core->settings.block_bytes_max && most < PIECE_BYTES)
        most *= 2;
    return most;
}

/* Plans the next parts of a request; the bytes of staging that they need. */
static uint32_t plan(struct serve *s, struct piece *p, unsigned parts_max)
{
    struct kvf_core *core = s->core;
    size_t frame = peer_there(s) ? kvf_peer_payload_max(s->peer->peer) : kvf_fabric_payload_max(core->fabric);
    frame = frame > KVF_PIECES_HEADER_MAX ? frame - KVF_PIECES_HEADER_MAX : 0;
    struct room room = {.bytes = frame < PIECE_BYTES ? (uint32_t)frame : PIECE_BYTES,
                        .slot_bytes = slot_bytes_max(core),
                        .runs = KVF_FRAME_PARTS_MAX - 1};
    uint32_t slot = 0;
    p->n = 0;
    p->bytes = 0;
    while (!s->all && p->n < parts_max) {
        struct part *part = &p->parts[p->n];
        const struct kvf_read_item *item = &s->items[s->item];
        kvf_handle h;
        struct kvf_entry *e = s->statuses[s->item] == GOOD ? find(core, item, &h) : NULL;
        if (!e) {
            item_end(s, GONE);
            continue;
        }
        *part = (struct part){.piece = p, .item = s->item, .handle = h, .bytes = e->bytes,
                              .chunk_bytes = kvf_block_chunk_bytes(core, e)};
        unsigned runs;
        uint32_t end, bytes = part_fill(part, item->mask & ~s->done, e->tier == KVF_TIER_DRAM, &room, slot, &end, &runs);
        if (!bytes && p->n > 0)
            break;
        if (!bytes) { /* a chunk that no frame takes */
            item_end(s, GONE);
            continue;
        }
        p->n++;
        p->bytes += bytes;
        slot = end;
        room.bytes -= bytes;
        room.runs -= runs;
        s->done |= part->mask;
        if (s->done != item->mask)
            break; /* the rest of the item does not fit: nothing behind it goes before it */
        item_end(s, GOOD);
    }
    return slot;
}

static void part_read(void *arg, struct kvf_read *read, enum kvf_status status)
{
    struct part *part = arg;
    struct piece *p = part->piece;
    p->reading--;
    p->serve->core->serves->reading -= p->reading == 0;
    if (status == KVF_OK)
        return;
    part->failed = true;
    p->serve->statuses[part->item] = status == KVF_LOST || status == KVF_ERR_IO ? GONE : LATER;
}

/* Pins it, or has it read into the slot. */
static void part_start(struct serve *s, struct part *part)
{
    struct kvf_core *core = s->core;
    struct piece *p = part->piece;
    struct kvf_entry *e = kvf_index_entry(core->index, part->handle);
    if (e->tier == KVF_TIER_DRAM) {
        part->pinned = kvf_entry_pin(e);
        part->failed = !part->pinned;
        part->data = core->memory + kvf_entry_location(e);
    } else {
        /* Before the slot, if the part is not the block's first: but inside core->memory, of which own blocks are the beginning. */
        part->data = core->memory + (core->staging_at + p->slot + (uint64_t)(uintptr_t)part->data);
        assert(part->data >= core->memory);
        part->failed = kvf_read_start(core, part->handle, part->mask, part->data, s->deadline_ns, KVF_PRIORITY_DEMAND, part_read,
                                      part, NULL) != KVF_OK;
        core->serves->reading += !part->failed && p->reading == 0;
        p->reading += !part->failed;
    }
    if (part->failed)
        s->statuses[part->item] = LATER;
}

static struct piece *piece_new(struct kvf_core *core)
{
    for (unsigned i = 0; i < PIECES_MAX; i++)
        if (!core->serves->pieces[i].serve)
            return &core->serves->pieces[i];
    return NULL;
}

/* A slot of staging, of few sizes. At most half of staging is used so, but one slot always may be. */
static uint64_t slot_new(struct kvf_core *core, uint32_t *bytes)
{
    struct kvf_serve *sv = core->serves;
    uint32_t size = 4096;
    while (size < *bytes)
        size *= 2;
    *bytes = size;
    if (sv->staged_bytes && sv->staged_bytes + size > core->settings.staging_bytes / 2)
        return KVF_ARENA_NONE;
    uint64_t slot = kvf_stage_memory(core, size, false);
    sv->staged_bytes += slot == KVF_ARENA_NONE ? 0 : size;
    return slot;
}

static void piece_free(struct piece *p)
{
    struct serve *s = p->serve;
    struct kvf_core *core = s->core;
    assert(p->reading == 0);
    for (unsigned i = 0; i < p->n; i++)
        if (p->parts[i].pinned)
            kvf_block_let_go(core, p->parts[i].handle);
    if (p->slot != KVF_ARENA_NONE) {
        kvf_arena_free(core->staging, p->slot, p->slot_bytes);
        core->serves->staged_bytes -= p->slot_bytes;
    }
    s->out_bytes -= p->bytes;
    s->pieces--;
    s->peer->serving_pieces -= !s->small;
    core->serves->pieces_out--;
    p->serve = NULL;
}

/* The next piece of a request is made and on its way. false: there is no room for it now. */
static bool piece_make(struct serve *s)
{
    struct kvf_core *core = s->core;
    struct piece *p = piece_new(core);
    if (!p)
        return false;
    struct serve before = *s;
    p->slot_bytes = plan(s, p, KVF_BATCH_MAX);
    p->slot = p->slot_bytes ? slot_new(core, &p->slot_bytes) : KVF_ARENA_NONE;
    if (p->slot_bytes && p->slot == KVF_ARENA_NONE) {
        *s = before;
        p->slot_bytes = plan(s, p, 1); /* less of it, perhaps */
        p->slot = p->slot_bytes ? slot_new(core, &p->slot_bytes) : KVF_ARENA_NONE;
    }
    if (p->slot_bytes && p->slot == KVF_ARENA_NONE) {
        *s = before;
        return false;
    }
    if (p->n == 0) /* nothing of what is left is here */
        return true;
    p->serve = s;
    p->reading = 0;
    p->sent = false;
    s->pieces++;
    s->peer->serving_pieces += !s->small;
    s->out_bytes += p->bytes;
    core->serves->pieces_out++;
    for (unsigned i = 0; i < p->n; i++)
        part_start(s, &p->parts[i]);
    return true;
}

/* ---------------------------------------------------------------- sending */

/* The runs of a part's chunks. */
static void runs_add(const struct part *part, struct iovec *parts, unsigned *n)
{
    for (uint64_t left = part->mask; left; left &= left - 1) {
        unsigned c = (unsigned)__builtin_ctzll(left);
        uint8_t *at = part->data + (size_t)c * part->chunk_bytes;
        struct iovec *last = &parts[*n - 1];
        if (*n > 1 && (uint8_t *)last->iov_base + last->iov_len == at)
            last->iov_len += chunk_size(part, c);
        else
            parts[(*n)++] = (struct iovec){.iov_base = at, .iov_len = chunk_size(part, c)};
        assert(*n <= KVF_FRAME_PARTS_MAX);
    }
}

/* Acknowledged: a reply that carried it has left, or the asker has taken it. */
static void piece_taken(struct piece *p, enum kvf_status status)
{
    struct serve *s = p->serve;
    for (unsigned i = 0; status == KVF_ERR_INVALID && i < p->n; i++) /* not what the asker thinks it is */
        s->statuses[p->parts[i].item] = GONE;
    piece_free(p);
    if (status != KVF_OK && status != KVF_ERR_INVALID)
        give_up(s);
}

static void data_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    piece_taken(arg, status);
}

static void answer_sent(void *arg, enum kvf_status status)
{
    struct piece *p = arg;
    struct serve *s = p->serve;
    piece_free(p);
    serve_free(s);
}

/* All of the request is in this piece: its answer carries it. */
static enum kvf_status answer_whole(struct serve *s, struct piece *p)
{
    struct iovec parts[KVF_FRAME_PARTS_MAX];
    unsigned n = 1;
    struct kvf_writer w = kvf_writer_of(p->header, sizeof p->header);
    kvf_wire_statuses(&w, s->statuses, s->n);
    parts[0] = (struct iovec){.iov_base = p->header, .iov_len = kvf_writer_used(&w)};
    for (unsigned i = 0; i < p->n; i++)
        if (s->statuses[p->parts[i].item] == GOOD)
            runs_add(&p->parts[i], parts, &n);
    return kvf_fabric_reply(s->peer->peer, s->request, KVF_OK, parts, n, answer_sent, p);
}

static enum kvf_status data_send(struct serve *s, struct piece *p)
{
    struct iovec parts[KVF_FRAME_PARTS_MAX];
    struct kvf_piece_item items[KVF_BATCH_MAX];
    unsigned n = 1, n_items = 0;
    for (unsigned i = 0; i < p->n; i++) {
        if (s->statuses[p->parts[i].item] != GOOD)
            continue;
        items[n_items++] = (struct kvf_piece_item){.item = (uint16_t)p->parts[i].item, .mask = p->parts[i].mask};
        runs_add(&p->parts[i], parts, &n);
    }
    if (n_items == 0)
        return KVF_MISS;
    struct kvf_writer w = kvf_writer_of(p->header, sizeof p->header);
    kvf_wire_pieces(&w, s->id, items, n_items);
    parts[0] = (struct iovec){.iov_base = p->header, .iov_len = kvf_writer_used(&w)};
    enum kvf_status st = kvf_fabric_call(s->peer->peer, KVF_MSG_READ_DATA, parts, n,
                                         kvf_deadline(kvf_now(s->core->env), SEND_TIMEOUT_NS), data_reply, p);
    if (st == KVF_OK)
        s->frames++;
    return st;
}

static void piece_send(struct piece *p)
{
    struct serve *s = p->serve;
    if (s->given_up || !peer_there(s)) {
        piece_taken(p, KVF_ERR_PEER_LOST);
        return;
    }
    bool whole = s->all && s->pieces == 1 && s->frames == 0;
    enum kvf_status st = whole ? answer_whole(s, p) : data_send(s, p);
    p->sent = st == KVF_OK;
    if (st == KVF_ERR_INVALID) { /* our own fabric's word, for a frame that is too large: the blocks are here */
        for (unsigned i = 0; i < p->n; i++)
            s->statuses[p->parts[i].item] = LATER;
        piece_free(p);
    } else if (st == KVF_MISS) { /* nothing of it came from the disk */
        piece_free(p);
    } else if (st != KVF_OK && st != KVF_ERR_BUSY) {
        piece_taken(p, st);
    }
}

/* Every piece has gone. false: the fabric takes no answer now. */
static bool answer(struct serve *s)
{
    uint8_t payload[2 + KVF_BATCH_MAX];
    for (unsigned i = 0; i < s->n; i++)
        s->statuses[i] = s->statuses[i] == GOOD ? STREAMED : s->statuses[i];
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_wire_statuses(&w, s->statuses, s->n);
    struct iovec part = {.iov_base = payload, .iov_len = kvf_writer_used(&w)};
    return s->given_up || !peer_there(s) ||
           kvf_fabric_reply(s->peer->peer, s->request, KVF_OK, &part, 1, NULL, NULL) != KVF_ERR_BUSY;
}

/* ---------------------------------------------------------------- whose turn it is */

static bool may_make(const struct serve *s)
{
    const struct kvf_serve *sv = s->core->serves;
    if (!s->busy || s->all || s->stalled)
        return false;
    if (s->small)
        return true;
    return (s->pieces == 0 || s->out_bytes < s->window) && sv->reading < PIECES_READING_MAX &&
           sv->pieces_out < PIECES_MAX - PIECES_OF_SMALL && s->peer->serving_pieces < PIECES_PER_PEER;
}

/* The request that is given a piece next: of the peer that has fewest under way, and of its own in turn. */
static struct serve *next(struct kvf_core *core)
{
    struct kvf_serve *sv = core->serves;
    struct serve *best = NULL;
    unsigned fewest = UINT32_MAX;
    for (unsigned i = 0; i < SERVES_MAX; i++) {
        struct serve *s = &sv->serves[(sv->next + i) % SERVES_MAX];
        if (!may_make(s))
            continue;
        unsigned has = s->small ? 0 : 1 + s->peer->serving_pieces;
        if (has < fewest) {
            fewest = has;
            best = s;
        }
    }
    if (best)
        sv->next = (unsigned)(best - sv->serves + 1) % SERVES_MAX;
    return best;
}

unsigned kvf_serves_poll(struct kvf_core *core)
{
    struct kvf_serve *sv = core->serves;
    unsigned events = 0;
    if (!sv->active)
        return 0;
    uint64_t now = kvf_now(core->env);
    for (unsigned i = 0; i < SERVES_MAX; i++) {
        struct serve *s = &sv->serves[i];
        s->stalled = false;
        if (s->busy && !s->given_up && (now >= s->deadline_ns || !peer_there(s)))
            give_up(s);
    }
    for (struct serve *s; sv->pieces_out < PIECES_MAX && (s = next(core)) != NULL;) {
        s->stalled = !piece_make(s);
        events += !s->stalled;
    }
    for (unsigned i = 0; i < PIECES_MAX && sv->pieces_out; i++) {
        struct piece *p = &sv->pieces[i];
        if (!p->serve || p->reading || p->sent)
            continue;
        piece_send(p);
        events += !p->serve || p->sent;
    }
    for (unsigned i = 0; i < SERVES_MAX && sv->active; i++) {
        struct serve *s = &sv->serves[i];
        if (!s->busy || !s->all || s->pieces || !answer(s))
            continue;
        serve_free(s);
        events++;
    }
    return events;
}

/* ---------------------------------------------------------------- what is asked */

static void refuse(struct kvf_node_peer *p, uint64_t request, enum kvf_status status)
{
    if (request)
        kvf_fabric_reply(p->peer, request, status, NULL, 0, NULL, NULL);
}

/* A free place, as long as the peer has not its share of them. */
static struct serve *serve_new(struct kvf_core *core, const struct kvf_node_peer *from)
{
    struct serve *found = NULL;
    unsigned has = 0;
    for (unsigned i = 0; i < SERVES_MAX; i++) {
        struct serve *s = &core->serves->serves[i];
        has += s->busy && s->peer == from;
        found = s->busy || found ? found : s;
    }
    return has < SERVES_PER_PEER ? found : NULL;
}

/* Whether all that is asked for is little, as far as it is here. */
static bool is_small(struct kvf_core *core, const struct serve *s)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < s->n && sum <= SMALL_BYTES; i++) {
        kvf_handle h;
        const struct kvf_entry *e = find(core, &s->items[i], &h);
        sum += e ? (uint64_t)__builtin_popcountll(s->items[i].mask) * kvf_block_chunk_bytes(core, e) : 0;
    }
    return sum <= SMALL_BYTES;
}

void kvf_serve_message(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    struct kvf_read_item items[KVF_BATCH_MAX];
    struct kvf_reader r = kvf_reader_of(message->payload, message->bytes);
    uint64_t id = kvf_read_u64(&r);
    uint32_t window = kvf_read_u32(&r);
    unsigned n;
    if (!kvf_wire_reads_read(&r, items, &n)) {
        kvf_count(&core->counters.messages_refused, 1);
        refuse(from, message->request, KVF_ERR_INVALID);
        return;
    }
    struct serve *s = serve_new(core, from);
    if (!s) {
        refuse(from, message->request, KVF_ERR_BUSY);
        return;
    }
    *s = (struct serve){.core = core, .busy = true, .peer = from, .incarnation = from->member.incarnation,
                        .request = message->request, .id = id, .window = window, .n = n};
    s->deadline_ns = message->deadline_ns ? message->deadline_ns : kvf_deadline(kvf_now(core->env), TIMEOUT_NS);
    memcpy(s->items, items, n * sizeof *items);
    s->small = is_small(core, s);
    core->serves->active++;
}
