/* Reads: chunks of one block, from SSD, a lender's DRAM or the session's old home, to a place in memory.
 *
 * Waiting reads stand in two queues, demand and ahead. Each poll posts as many as their sources take, demand first: an SSD
 * request per run of adjacent chunks, one pull per batch of ranges at a lender, one READ per batch of keys at an old home, which
 * sends the bytes in pieces as it has them. What is not demand takes at most half of each source's places, so that a demand read
 * always finds one soon. */
#include "node/claim.h"
#include "node/persist.h"
#include "node/read.h"
#include "node/wire.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_MAX 1024 /* reads of a queue looked at in one poll */
#define BATCHES_PER_PEER 8
#define PULL_BYTES 262144
#define READ_BYTES (1u << 20)  /* of one READ, unless a single block is more; and at most under way of it at once */
#define SSD_REQUESTS_MAX 256
#define SSD_AHEAD_TURN_BYTES (256u << 10) /* reads ahead that are handed to the SSD's queue in one turn */
#define SSD_REQUESTS_AHEAD_MAX (SSD_REQUESTS_MAX / 2) /* of reads that are not demand */

enum kvf_status kvf_reads_create(struct kvf_core *core)
{
    struct kvf_reads *rs = calloc(1, sizeof *rs);
    if (!rs)
        return KVF_ERR_NO_MEMORY;
    core->reads = rs;
    core->reads_max = (unsigned)(core->settings.staging_bytes / 4096 < 16384 ? core->settings.staging_bytes / 4096 : 16384) + 256;
    rs->pool = calloc(core->reads_max, sizeof *rs->pool);
    rs->batches = calloc(KVF_BATCHES_MAX, sizeof *rs->batches);
    rs->runs = calloc(SSD_REQUESTS_MAX, sizeof *rs->runs);
    rs->batches_at = calloc(core->settings.fabric_peers_max, sizeof *rs->batches_at);
    if (!rs->pool || !rs->batches || !rs->runs || !rs->batches_at)
        return KVF_ERR_NO_MEMORY;
    for (unsigned i = 0; i < core->reads_max; i++) {
        rs->pool[i].next = rs->free;
        rs->free = &rs->pool[i];
    }
    for (unsigned i = 0; i < KVF_BATCHES_MAX; i++) {
        rs->batches[i].next = rs->batch_free;
        rs->batch_free = &rs->batches[i];
    }
    for (unsigned i = 0; i < SSD_REQUESTS_MAX; i++) {
        rs->runs[i].next = rs->run_free;
        rs->run_free = &rs->runs[i];
    }
    rs->demand.end = &rs->demand.head;
    rs->ahead.end = &rs->ahead.head;
    rs->late_ns = UINT64_MAX;
    return KVF_OK;
}

void kvf_reads_destroy(struct kvf_core *core)
{
    struct kvf_reads *rs = core->reads;
    if (!rs)
        return;
    free(rs->pool);
    free(rs->batches);
    free(rs->runs);
    free(rs->batches_at);
    free(rs);
    core->reads = NULL;
}

static struct kvf_read_queue *queue_of(struct kvf_reads *rs, const struct kvf_read *read)
{
    return read->priority == KVF_PRIORITY_DEMAND ? &rs->demand : &rs->ahead;
}

static void enqueue(struct kvf_core *core, struct kvf_read *read)
{
    struct kvf_read_queue *q = queue_of(core->reads, read);
    read->next = NULL;
    read->at = q->end;
    *q->end = read;
    q->end = &read->next;
    core->reads_queued++;
}

static void dequeue(struct kvf_core *core, struct kvf_read *read)
{
    struct kvf_read_queue *q = queue_of(core->reads, read);
    *read->at = read->next;
    if (read->next)
        read->next->at = read->at;
    else
        q->end = read->at;
    read->at = NULL;
    core->reads_queued--;
}

enum kvf_status kvf_read_start(struct kvf_core *core, kvf_handle handle, uint64_t mask, void *to, uint64_t deadline_ns,
                               enum kvf_priority priority,
                               void (*done)(void *arg, struct kvf_read *read, enum kvf_status status), void *arg,
                               struct kvf_read **out)
{
    struct kvf_reads *rs = core->reads;
    struct kvf_read *read = rs->free;
    assert(mask != 0 && priority <= KVF_PRIORITY_AHEAD);
    if (!read)
        return KVF_ERR_BUSY;
    rs->free = read->next;
    rs->active++;
    *read = (struct kvf_read){.core = core,
                              .handle = handle,
                              .key = kvf_index_entry(core->index, handle)->key,
                              .mask = mask,
                              .bytes = kvf_index_entry(core->index, handle)->bytes,
                              .chunk_bytes = kvf_block_chunk_bytes(core, kvf_index_entry(core->index, handle)),
                              .to = to,
                              .deadline_ns = deadline_ns,
                              .priority = priority,
                              .start_ns = kvf_now(core->env),
                              .done = done,
                              .arg = arg,
                              .peer = KVF_PEER_NONE};
    enqueue(core, read);
    if (out)
        *out = read;
    return KVF_OK;
}

/* Chunk c of a read's block; false: it has no more. */
static bool chunk_at(const struct kvf_read *read, unsigned c, uint32_t *offset, uint32_t *bytes)
{
    *offset = c * read->chunk_bytes;
    if (c >= 64 || *offset >= read->bytes)
        return false;
    *bytes = read->bytes - *offset < read->chunk_bytes ? read->bytes - *offset : read->chunk_bytes;
    return true;
}

/* The bytes of the chunks of a mask. */
static uint64_t mask_bytes(const struct kvf_read *read, uint64_t mask)
{
    uint64_t sum = 0;
    uint32_t offset, bytes;
    for (unsigned c = 0; chunk_at(read, c, &offset, &bytes); c++)
        sum += mask >> c & 1 ? bytes : 0;
    return sum;
}

static void count_bytes(struct kvf_core *core, const struct kvf_read *read, uint64_t bytes)
{
    struct kvf_counters *n = &core->counters;
    uint64_t chunks = (uint64_t)__builtin_popcountll(read->mask);
    kvf_latency_add(&core->latencies, (enum kvf_latency)(KVF_LATENCY_FETCH_GPU + read->tier), kvf_now(core->env) - read->start_ns);
    switch (read->tier) {
    case KVF_TIER_SSD:
        kvf_count(&n->ssd_chunks_read, chunks);
        kvf_count(&n->ssd_bytes_read, bytes);
        break;
    case KVF_TIER_REMOTE:
        kvf_count(&n->remote_chunks_read, chunks);
        kvf_count(&n->remote_bytes_read, bytes);
        break;
    case KVF_TIER_PEER:
        kvf_count(&n->peer_chunks_read, chunks);
        kvf_count(&n->peer_bytes_read, bytes);
        break;
    default:
        break;
    }
}

/* The block of a read, or NULL when it is gone. */
struct kvf_entry *kvf_read_entry(struct kvf_core *core, const struct kvf_read *read)
{
    kvf_handle h = kvf_index_find(core->index, read->key);
    if (h != read->handle)
        return NULL;
    struct kvf_entry *e = kvf_index_entry(core->index, h);
    return e->flags & KVF_FLAG_REMOVED ? NULL : e;
}

void kvf_read_finish(struct kvf_core *core, struct kvf_read *read, enum kvf_status status)
{
    struct kvf_reads *rs = core->reads;
    struct kvf_entry *e = kvf_read_entry(core, read);
    if (status == KVF_OK && e)
        count_bytes(core, read, mask_bytes(read, read->mask));
    if (status == KVF_OK && e && (read->tier == KVF_TIER_SSD || read->tier == KVF_TIER_REMOTE))
        kvf_claim_read(core, e, mask_bytes(read, read->mask));
    if (status == KVF_ERR_DEADLINE)
        kvf_count(&core->counters.fetch_deadline, 1);
    read->done(read->arg, read, status);
    read->next = rs->free;
    rs->free = read;
    rs->active--;
    kvf_core_changed(core);
}

void kvf_read_promote(struct kvf_core *core, struct kvf_read *read)
{
    struct kvf_reads *rs = core->reads;
    if (read->priority == KVF_PRIORITY_DEMAND)
        return;
    bool queued = read->at != NULL;
    if (queued)
        dequeue(core, read);
    read->priority = KVF_PRIORITY_DEMAND;
    if (queued)
        enqueue(core, read);
    for (unsigned i = 0; i < SSD_REQUESTS_MAX && !queued && read->tier == KVF_TIER_SSD && rs->runs_ahead; i++) {
        struct kvf_ssd_run *run = &rs->runs[i];
        if (run->read != read || !run->ahead)
            continue;
        run->ahead = false;
        rs->runs_ahead--;
        kvf_ssd_promote(core->ssd, &run->request);
    }
}

bool kvf_read_cancel(struct kvf_core *core, struct kvf_read *read)
{
    if (!read->at)
        return false;
    dequeue(core, read);
    kvf_read_finish(core, read, KVF_CANCELLED);
    return true;
}

/* ---------------------------------------------------------------- SSD */

static void ssd_done(void *arg, enum kvf_status status)
{
    struct kvf_ssd_run *run = arg;
    struct kvf_read *read = run->read;
    struct kvf_reads *rs = read->core->reads;
    run->next = rs->run_free;
    rs->run_free = run;
    rs->runs_ahead -= run->ahead;
    run->ahead = false;
    run->read = NULL;
    if (status != KVF_OK)
        read->status = status;
    if (status != KVF_OK && status != KVF_CANCELLED)
        kvf_count(&read->core->counters.ssd_read_failed, 1);
    if (--read->runs == 0)
        kvf_read_finish(read->core, read, read->status);
}

/* Runs of adjacent chunks; widened to whole 4096s where chunks are smaller. */
static unsigned runs_of(const struct kvf_read *read, uint64_t mask, uint32_t align, uint32_t (*runs)[2], unsigned runs_max)
{
    unsigned n = 0;
    uint32_t offset, bytes;
    for (unsigned c = 0; chunk_at(read, c, &offset, &bytes); c++) {
        if (!(mask >> c & 1))
            continue;
        uint32_t from = offset / align * align, to = (offset + bytes + align - 1) / align * align;
        if (n && runs[n - 1][1] >= from) {
            runs[n - 1][1] = to;
        } else {
            if (n == runs_max)
                return runs_max + 1;
            runs[n][0] = from;
            runs[n][1] = to;
            n++;
        }
    }
    return n;
}

/* *ahead_room: bytes of reads ahead that may still be posted in this turn. */
static bool post_ssd(struct kvf_core *core, struct kvf_read *read, struct kvf_entry *e, uint64_t *ahead_room)
{
    struct kvf_reads *rs = core->reads;
    uint32_t runs[64][2];
    bool ahead = read->priority != KVF_PRIORITY_DEMAND;
    if (ahead && *ahead_room == 0)
        return false;
    unsigned n = runs_of(read, read->mask, 4096, runs, 64), have = 0;
    for (struct kvf_ssd_run *r = rs->run_free; r && have < n; r = r->next)
        have++;
    if (have < n || (ahead && rs->runs_ahead > 0 && rs->runs_ahead + n > SSD_REQUESTS_AHEAD_MAX))
        return false;
    uint64_t bytes = mask_bytes(read, read->mask);
    *ahead_room -= !ahead ? 0 : bytes < *ahead_room ? bytes : *ahead_room;
    read->tier = KVF_TIER_SSD;
    read->runs = n;
    read->status = KVF_OK;
    for (unsigned i = 0; i < n; i++) {
        struct kvf_ssd_run *run = rs->run_free;
        rs->run_free = run->next;
        run->read = read;
        run->ahead = ahead;
        rs->runs_ahead += ahead;
        run->request.priority = read->priority;
        run->request.done = ssd_done;
        run->request.arg = run;
        kvf_ssd_read(core->ssd, &run->request, kvf_entry_location(e) + runs[i][0], read->to + runs[i][0], runs[i][1] - runs[i][0]);
    }
    return true;
}

/* ---------------------------------------------------------------- lenders */

void kvf_batch_free(struct kvf_batch *b)
{
    struct kvf_reads *rs = b->core->reads;
    b->asked_ns = 0;
    b->id = 0;
    rs->batches_at[b->peer]--;
    b->next = rs->batch_free;
    rs->batch_free = b;
}

/* One is free. */
static struct kvf_batch *batch_take(struct kvf_core *core, uint16_t peer)
{
    struct kvf_reads *rs = core->reads;
    struct kvf_batch *b = rs->batch_free;
    rs->batch_free = b->next;
    rs->batches_at[peer]++;
    b->core = core;
    b->peer = peer;
    b->n = b->runs = 0;
    b->bytes = b->asked_ns = b->id = 0;
    b->deadline_ns = b->late_ns = UINT64_MAX;
    memset(b->got, 0, sizeof b->got);
    return b;
}

static struct kvf_batch *batch_new(struct kvf_core *core, uint16_t peer, bool demand)
{
    struct kvf_reads *rs = core->reads;
    unsigned most = demand ? BATCHES_PER_PEER : BATCHES_PER_PEER / 2;
    return rs->batch_free && rs->batches_at[peer] < most ? batch_take(core, peer) : NULL;
}

/* Back into its queue: its source is chosen anew. */
void kvf_read_again(struct kvf_core *core, struct kvf_read *read)
{
    assert(!read->at && read->runs == 0 && !read->hedge);
    read->peer = KVF_PEER_NONE;
    read->verified = 0; /* what comes now is written over it */
    enqueue(core, read);
}

/* The lender does not have it any more, but somebody here does: it lies elsewhere by now, or goes back to its copy. */
static bool elsewhere(struct kvf_core *core, const struct kvf_read *read)
{
    const struct kvf_entry *e = kvf_read_entry(core, read);
    if (read->tier != KVF_TIER_REMOTE || read->no_copy || !e)
        return false;
    return e->tier == KVF_TIER_SSD || e->tier == KVF_TIER_DRAM || kvf_persist_fall_back(core, read->handle);
}

/* A read whose last message has ended, ends, unless there is a second copy to wait for or to ask for. */
static void part_end(struct kvf_read *read, enum kvf_status status)
{
    struct kvf_core *core = read->core;
    if (status != KVF_OK)
        read->status = status;
    if (--read->runs > 0)
        return;
    /* The deadline of another read of its message. */
    bool early = read->status == KVF_ERR_DEADLINE && kvf_now(core->env) < read->deadline_ns;
    if (read->hedge && (read->status == KVF_OK || (read->status == KVF_ERR_DEADLINE && !early)))
        kvf_hedge_drop(read);
    if (read->hedge)
        return;
    if (early || (read->status == KVF_LOST && elsewhere(core, read)))
        kvf_read_again(core, read);
    else
        kvf_read_finish(core, read, read->status);
}

static void batch_end(struct kvf_batch *b, enum kvf_status status)
{
    if (status == KVF_OK || status == KVF_ERR_DEADLINE)
        kvf_pace_add(&b->core->peers[b->peer], kvf_now(b->core->env) - b->asked_ns);
    /* A refusal means that the peer does not have what we thought: a miss, as a lost peer is. */
    if (status == KVF_ERR_PEER_LOST || status == KVF_ERR_PEER_REFUSED)
        status = KVF_LOST;
    for (unsigned i = 0; i < b->n; i++)
        if (b->reads[i])
            part_end(b->reads[i], status);
    kvf_batch_free(b);
}

static void pull_done(void *arg, enum kvf_status status)
{
    batch_end(arg, status);
}

/* Bytes of a pull are in their place, and so is what is before them of their range: chunks that end here are compared with their
 * checksums. One that does not match is for its user to find. */
static void pull_look(const struct kvf_batch *b, unsigned range, uint32_t at, uint32_t bytes)
{
    struct kvf_core *core = b->core;
    struct kvf_read *read = b->reads[b->ranges[range].read];
    const struct kvf_entry *e = kvf_read_entry(core, read);
    uint32_t offset = b->ranges[range].offset + at, chunk = read->chunk_bytes, end = offset + bytes;
    unsigned first = offset / chunk, past = end == read->bytes ? (end + chunk - 1) / chunk : end / chunk;
    assert(end <= read->bytes && b->ranges[range].offset % chunk == 0);
    if (!e || e->bytes != read->bytes || first == past)
        return;
    uint64_t mask = (past - first == 64 ? UINT64_MAX : (1ull << (past - first)) - 1) << first;
    if (kvf_block_verify(core->dev, kvf_block_seed_of(core, e), read->to, e->bytes, chunk, mask, kvf_sums_at(core->sums, e->sums)))
        read->verified |= mask;
}

/* Bytes of a pull arrive: chunks that are whole are compared with their checksums while they are copied. */
static void pull_take(void *arg, unsigned range, uint32_t at, void *to, const void *from, bool foreign, uint32_t bytes)
{
    struct kvf_batch *b = arg;
    struct kvf_core *core = b->core;
    struct kvf_read *read = b->reads[b->ranges[range].read];
    const struct kvf_entry *e = kvf_read_entry(core, read);
    uint32_t offset = b->ranges[range].offset + at, chunk = read->chunk_bytes, end = offset + bytes, done = 0;
    uint64_t sums[64];
    assert(end <= read->bytes && read->to + offset == (uint8_t *)to);
    if (from == to) {
        pull_look(b, range, at, bytes);
        return;
    }
    unsigned first = (offset + chunk - 1) / chunk, past = end == read->bytes ? (end + chunk - 1) / chunk : end / chunk;
    if (e && e->bytes == read->bytes && first < past) {
        done = first * chunk - offset;
        uint32_t n = past * chunk < end ? (past - first) * chunk : end - first * chunk;
        memcpy(to, from, done);
        enum kvf_status st = core->dev->copy_checksum(core->dev, NULL, (uint8_t *)to + done, (const uint8_t *)from + done, foreign,
                                                      n, chunk, kvf_block_seed_of(core, e) + first, sums);
        assert(st == KVF_OK);
        (void)st;
        const uint64_t *wanted = kvf_sums_at(core->sums, e->sums);
        for (unsigned c = first; c < past; c++)
            read->verified |= (uint64_t)(sums[c - first] == wanted[c]) << c;
        done += n;
    }
    memcpy((uint8_t *)to + done, (const uint8_t *)from + done, bytes - done);
}

static void send_pull(struct kvf_batch *b)
{
    struct kvf_core *core = b->core;
    struct kvf_pull_range ranges[KVF_PULL_RANGES_MAX];
    unsigned n = 0;
    for (unsigned i = 0; i < b->n; i++) {
        struct kvf_entry *e = kvf_index_entry(core->index, b->reads[i]->handle);
        uint32_t runs[64][2];
        unsigned m = runs_of(b->reads[i], b->reads[i]->mask, 1, runs, 64);
        for (unsigned r = 0; r < m && n < KVF_PULL_RANGES_MAX; r++) {
            b->ranges[n].offset = runs[r][0];
            b->ranges[n].read = (uint8_t)i;
            ranges[n++] = (struct kvf_pull_range){.offset = kvf_entry_location(e) + runs[r][0], .bytes = runs[r][1] - runs[r][0],
                                                  .to = b->reads[i]->to + runs[r][0]};
        }
    }
    enum kvf_status st = kvf_fabric_pull_take(core->peers[b->peer].peer, ranges, n, b->deadline_ns,
                                              core->dev->copy_checksum ? pull_take : NULL, pull_done, b);
    if (st != KVF_OK)
        batch_end(b, st);
}

/* ---------------------------------------------------------------- the old home */

static void scatter_chunks(struct kvf_read *read, uint64_t mask, struct kvf_reader *r, bool *bad)
{
    uint32_t offset, bytes;
    for (unsigned c = 0; chunk_at(read, c, &offset, &bytes); c++) {
        if (!(mask >> c & 1))
            continue;
        const uint8_t *from = kvf_read_bytes(r, bytes);
        if (!from) {
            *bad = true;
            return;
        }
        memcpy(read->to + offset, from, bytes);
    }
}

/* Read number i of a batch ends. A block that went away here meanwhile is lost to whoever waits for it. */
static void item_end(struct kvf_batch *b, unsigned i, enum kvf_status status)
{
    struct kvf_read *read = b->reads[i];
    b->reads[i] = NULL;
    part_end(read, kvf_read_entry(b->core, read) ? status : KVF_LOST);
}

/* The last word about a READ: per block whether its bytes are here (0), not there (1), to be asked for again (2), or came before
 * (3). */
static void read_reply(void *arg, enum kvf_status status, const void *payload, size_t bytes)
{
    struct kvf_batch *b = arg;
    struct kvf_core *core = b->core;
    uint8_t statuses[KVF_BATCH_MAX];
    unsigned n = 0;
    struct kvf_reader r = kvf_reader_of(payload, bytes);
    if (status == KVF_OK && (!kvf_wire_statuses_read(&r, statuses, &n) || n != b->n)) {
        kvf_count(&core->counters.messages_refused, 1);
        status = KVF_ERR_PEER_PROTOCOL;
    }
    if (status != KVF_OK) {
        batch_end(b, status == KVF_ERR_PEER_PROTOCOL ? KVF_LOST : status);
        return;
    }
    if (b->bytes <= PULL_BYTES) /* more takes longer, and says nothing */
        kvf_pace_add(&core->peers[b->peer], kvf_now(core->env) - b->asked_ns);
    for (unsigned i = 0; i < b->n; i++) {
        bool bad = statuses[i] == 0 && !b->reads[i]; /* twice: what is behind it is not where it should be */
        if (bad) {
            kvf_count(&core->counters.messages_refused, 1);
            batch_end(b, KVF_LOST);
            return;
        }
        if (!b->reads[i])
            continue;
        if (statuses[i] == 0)
            scatter_chunks(b->reads[i], b->reads[i]->mask, &r, &bad);
        item_end(b, i, statuses[i] == 0 && !bad ? KVF_OK : statuses[i] == 1 ? KVF_LOST : KVF_ERR_BUSY);
    }
    kvf_batch_free(b);
}

/* Whether these are chunks that the batch still waits for, and exactly their bytes. */
static bool pieces_fit(const struct kvf_batch *b, const struct kvf_piece_item *items, unsigned n, size_t bytes)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned at = items[i].item;
        if (at >= b->n || !b->reads[at] || (items[i].mask & (~b->reads[at]->mask | b->got[at])))
            return false;
        for (unsigned before = 0; before < i; before++)
            if (items[before].item == at)
                return false;
        sum += mask_bytes(b->reads[at], items[i].mask);
    }
    return sum == bytes;
}

static enum kvf_status data_take(struct kvf_core *core, const struct kvf_node_peer *from, struct kvf_reader r)
{
    struct kvf_piece_item items[KVF_BATCH_MAX];
    uint64_t id;
    unsigned n;
    if (!kvf_wire_pieces_read(&r, &id, items, &n))
        return KVF_ERR_INVALID;
    struct kvf_batch *b = &core->reads->batches[id % KVF_BATCHES_MAX];
    if (id == 0 || b->id != id || b->peer != from->number)
        return KVF_ERR_STALE; /* whoever wanted it has given up */
    if (!pieces_fit(b, items, n, kvf_reader_left(&r)))
        return KVF_ERR_INVALID;
    for (unsigned i = 0; i < n; i++) {
        unsigned at = items[i].item;
        bool bad = false;
        scatter_chunks(b->reads[at], items[i].mask, &r, &bad);
        assert(!bad);
        b->got[at] |= items[i].mask;
        if (b->got[at] == b->reads[at]->mask)
            item_end(b, at, KVF_OK);
    }
    return KVF_OK;
}

void kvf_read_data(struct kvf_core *core, struct kvf_node_peer *from, const struct kvf_message *message)
{
    enum kvf_status st = data_take(core, from, kvf_reader_of(message->payload, message->bytes));
    if (st == KVF_ERR_INVALID)
        kvf_count(&core->counters.messages_refused, 1);
    if (message->request)
        kvf_fabric_reply(from->peer, message->request, st, NULL, 0, NULL, NULL);
}

static void send_read(struct kvf_batch *b)
{
    struct kvf_core *core = b->core;
    struct kvf_read_item items[KVF_BATCH_MAX];
    uint8_t payload[12 + 2 + KVF_BATCH_MAX * 24];
    uint64_t window = core->settings.fabric_inflight / BATCHES_PER_PEER;
    for (unsigned i = 0; i < b->n; i++)
        items[i] = (struct kvf_read_item){.key = b->reads[i]->key, .mask = b->reads[i]->mask};
    b->id = ++core->reads->asked * KVF_BATCHES_MAX + (uint64_t)(b - core->reads->batches);
    struct kvf_writer w = kvf_writer_of(payload, sizeof payload);
    kvf_write_u64(&w, b->id);
    kvf_write_u32(&w, (uint32_t)(window < READ_BYTES ? window : READ_BYTES));
    kvf_wire_reads(&w, items, b->n);
    struct iovec part = {.iov_base = payload, .iov_len = kvf_writer_used(&w)};
    enum kvf_status st = kvf_fabric_call(core->peers[b->peer].peer, KVF_MSG_READ, &part, 1, b->deadline_ns, read_reply, b);
    if (st != KVF_OK)
        batch_end(b, st);
}

/* ---------------------------------------------------------------- dispatch */

struct dispatch {
    struct kvf_batch *open[64]; /* by peer number modulo: the batch being filled */
    unsigned n_open;
    bool ssd_busy;   /* takes no more reads of the queue that is looked at */
    uint64_t ahead_room; /* bytes of reads ahead that the SSD may still be given in this turn */
};

static void batch_send(struct kvf_batch *b)
{
    struct kvf_reads *rs = b->core->reads;
    struct kvf_entry *e = kvf_index_entry(b->core->index, b->reads[0]->handle);
    const struct kvf_node_peer *p = &b->core->peers[b->peer];
    b->asked_ns = kvf_now(b->core->env);
    for (unsigned i = 0; i < b->n && kvf_peer_way(p->peer) != KVF_WAY_GET; i++)
        if (kvf_hedge_exists(b->core, kvf_index_entry(b->core->index, b->reads[i]->handle)))
            b->late_ns = kvf_deadline(b->asked_ns, kvf_pace_late_ns(p));
    rs->late_ns = b->late_ns < rs->late_ns ? b->late_ns : rs->late_ns;
    if (e->tier == KVF_TIER_REMOTE)
        send_pull(b);
    else
        send_read(b);
}

/* Adds a read to a batch. */
static void batch_add(struct kvf_batch *b, struct kvf_read *read, uint64_t bytes, unsigned runs)
{
    b->reads[b->n++] = read;
    b->runs += runs;
    b->bytes += bytes;
    if (read->deadline_ns < b->deadline_ns)
        b->deadline_ns = read->deadline_ns;
}

static struct kvf_batch *batch_for(struct kvf_core *core, struct dispatch *d, uint16_t peer, uint8_t tier, uint64_t bytes,
                               unsigned runs, bool demand)
{
    uint64_t most = tier == KVF_TIER_REMOTE ? PULL_BYTES : READ_BYTES;
    for (unsigned i = 0; i < d->n_open; i++) {
        struct kvf_batch *b = d->open[i];
        if (b->peer != peer || b->reads[0]->tier != tier)
            continue;
        bool fits = tier != KVF_TIER_REMOTE || b->runs + runs <= KVF_PULL_RANGES_MAX;
        if (b->n < KVF_BATCH_MAX && b->bytes + bytes <= most && fits)
            return b;
        d->open[i] = d->open[--d->n_open];
        batch_send(b);
        break;
    }
    struct kvf_batch *b = d->n_open < 64 ? batch_new(core, peer, demand) : NULL;
    if (b)
        d->open[d->n_open++] = b;
    return b;
}

/* Posts a read: true when it has left the queue. */
static bool post_peer(struct kvf_core *core, struct dispatch *d, struct kvf_read *read, struct kvf_entry *e)
{
    uint32_t runs[64][2];
    uint64_t bytes = mask_bytes(read, read->mask);
    unsigned n = runs_of(read, read->mask, 1, runs, 64);
    struct kvf_batch *b = batch_for(core, d, e->peer, e->tier, bytes, n, read->priority == KVF_PRIORITY_DEMAND);
    if (!b)
        return false;
    read->tier = e->tier;
    read->peer = e->peer;
    read->runs = 1;
    read->status = KVF_OK;
    batch_add(b, read, bytes, n);
    return true;
}

void kvf_read_copy(struct kvf_read *read, const uint8_t *block)
{
    uint32_t offset, bytes;
    for (unsigned c = 0; chunk_at(read, c, &offset, &bytes); c++)
        if (read->mask >> c & 1)
            memcpy(read->to + offset, block + offset, bytes);
}

/* The block rose to DRAM while the read waited, or lies in our own lent part. */
static enum kvf_status copy_from_dram(struct kvf_core *core, struct kvf_read *read, struct kvf_entry *e)
{
    kvf_read_copy(read, core->memory + kvf_entry_location(e));
    read->tier = e->tier;
    return KVF_OK;
}

/* Its lender is slow or gone: the copy on SSD is read instead. */
static bool post_copy(struct kvf_core *core, struct kvf_read *read, const struct kvf_entry *e)
{
    const struct kvf_node_peer *p = &core->peers[e->peer];
    if (read->no_copy || !kvf_hedge_exists(core, e) || (p->up && kvf_peer_is_up(p->peer) && !p->pace.slow))
        return false;
    read->tier = KVF_TIER_SSD;
    read->runs = 0;
    read->status = KVF_OK;
    bool posted = kvf_hedge_start(core, read, e);
    kvf_count(&core->counters.copies_read, posted);
    return posted;
}

/* Tries one read; true when it has left the queue (posted or finished). */
static bool post(struct kvf_core *core, struct dispatch *d, struct kvf_read *read, uint64_t now, enum kvf_status *ended)
{
    struct kvf_entry *e = kvf_read_entry(core, read);
    *ended = KVF_IN_PROGRESS;
    if (!e || e->state == KVF_BLOCK_LOST || e->state == KVF_BLOCK_WRITING) {
        *ended = KVF_LOST;
        return true;
    }
    if (now >= read->deadline_ns) {
        *ended = KVF_ERR_DEADLINE;
        return true;
    }
    if (e->bytes != read->bytes || kvf_block_chunk_bytes(core, e) != read->chunk_bytes) {
        *ended = KVF_ERR_BUSY; /* it has another format by now: there is other room for it */
        return true;
    }
    switch (e->tier) {
    case KVF_TIER_DRAM:
        *ended = copy_from_dram(core, read, e);
        return true;
    case KVF_TIER_SSD:
        if (d->ssd_busy || !post_ssd(core, read, e, &d->ahead_room)) {
            d->ssd_busy = true;
            return false;
        }
        return true;
    default:
        if (e->peer == KVF_PEER_NONE) {
            *ended = copy_from_dram(core, read, e);
            return true;
        }
        if (post_copy(core, read, e))
            return true;
        if (!core->peers[e->peer].up) {
            *ended = KVF_LOST;
            return true;
        }
        return post_peer(core, d, read, e);
    }
}

/* Posts what its source takes of one queue; what ended without being posted goes on the list. */
static unsigned queue_post(struct kvf_core *core, struct dispatch *d, struct kvf_read_queue *q, uint64_t now,
                           struct kvf_read **ended)
{
    unsigned events = 0, looked = 0;
    d->ssd_busy = false;
    for (struct kvf_read *read = q->head, *next; read && looked++ < LOOK_MAX; read = next) {
        enum kvf_status st;
        next = read->next;
        if (!post(core, d, read, now, &st))
            continue;
        dequeue(core, read);
        events++;
        if (st != KVF_IN_PROGRESS) {
            read->status = st;
            read->next = *ended;
            *ended = read;
        }
    }
    return events;
}

unsigned kvf_reads_poll(struct kvf_core *core)
{
    struct kvf_reads *rs = core->reads;
    /* What the disk does not take at once waits here, where it can be dropped: no more until it has taken what it was given. */
    struct dispatch d = {.ahead_room = core->ssd && kvf_ssd_queued(core->ssd, KVF_PRIORITY_AHEAD) ? 0 : SSD_AHEAD_TURN_BYTES};
    struct kvf_read *ended = NULL;
    if (core->reads_queued == 0 && rs->active == 0)
        return 0;
    uint64_t now = kvf_now(core->env);
    if (now >= rs->late_ns)
        kvf_reads_late(core, now);
    kvf_hedges_poll(core, now);
    if (core->reads_queued == 0)
        return 0;
    unsigned events = queue_post(core, &d, &rs->demand, now, &ended);
    events += queue_post(core, &d, &rs->ahead, now, &ended);
    for (unsigned i = 0; i < d.n_open; i++)
        batch_send(d.open[i]);
    while (ended) {
        struct kvf_read *read = ended;
        ended = read->next;
        kvf_read_finish(core, read, read->status);
    }
    return events;
}
