/* Answering PULL frames: the bytes go from our region to the wire as parts of frames, without a copy of ours. What waits
 * is bounded per peer, and so is what the transport has in hand for it: a slow peer fills its own share alone.
 *
 * Of the peers that wait the one is sent the next frames that was sent fewest bytes (start-time fair queueing: a peer's `serve_tag`
 * counts its bytes, and one that comes back is put where the others are, or KVF_SERVE_LEAD_BYTES before). So who asks more often,
 * sooner or for smaller ranges gets no more than others, and who waited for its answer before it asked again gets no less. The
 * choice is made when a poll has heard all that came, not by who came first; but one that has long been the only one is not kept
 * waiting for that. */
#include "fabric/internal.h"

/* One frame back that says why there will be no bytes. When the transport has no room for it the asker's deadline tells. */
static void refuse(struct kvf_peer *peer, const struct kvf_wire_header *asked, enum kvf_status why)
{
    struct kvf_wire_header header = {
        .type = KVF_WIRE_PULL_DATA, .request = asked->request, .position = asked->position, .status = why};
    kvf_fabric_post(peer, &header, NULL, 0, NULL, NULL);
}

void kvf_serve_pull(struct kvf_peer *peer, const struct kvf_wire_header *header, const void *payload)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct kvf_wire_pull pull;
    if (kvf_wire_pull_decode(payload, header->payload_bytes, &pull) != KVF_OK) {
        kvf_peer_misbehaved(peer, "a malformed pull");
        return;
    }
    for (unsigned i = 0; i < pull.n; i++) {
        if (!kvf_region_ready(fabric, pull.ranges[i].offset, pull.ranges[i].bytes)) {
            kvf_fabric_refuse(fabric, peer, "a pull of bytes outside the region");
            refuse(peer, header, KVF_ERR_PEER_REFUSED);
            return;
        }
    }
    if (peer->serve_count == KVF_SERVES_MAX) {
        refuse(peer, header, KVF_ERR_BUSY);
        return;
    }
    struct kvf_serve *serve = &peer->serves[(peer->serve_first + peer->serve_count) % KVF_SERVES_MAX];
    serve->request = header->request;
    serve->position = header->position;
    serve->frame_bytes = pull.frame_pages ? pull.frame_pages * KVF_WIRE_PAGE : KVF_SERVE_FRAME_BYTES;
    if (serve->frame_bytes > KVF_SERVE_FRAME_BYTES)
        serve->frame_bytes = KVF_SERVE_FRAME_BYTES;
    serve->deadline_ns = 0;
    if (header->budget_us)
        serve->deadline_ns = kvf_deadline(kvf_now(fabric->config.env), header->budget_us * KVF_US);
    serve->at_byte = 0;
    serve->at_range = 0;
    serve->n = (uint16_t)pull.n;
    memcpy(serve->ranges, pull.ranges, pull.n * sizeof pull.ranges[0]);
    peer->serve_count++;
    fabric->work++;
    if (kvf_ring_empty(&peer->served)) {
        uint64_t least = fabric->serve_tag > KVF_SERVE_LEAD_BYTES ? fabric->serve_tag - KVF_SERVE_LEAD_BYTES : 0;
        peer->serve_tag = peer->serve_tag > least ? peer->serve_tag : least;
        kvf_ring_append(&fabric->serving, &peer->served);
    }
    if (fabric->serve_last == peer && fabric->serve_streak >= KVF_SERVE_STREAK)
        kvf_serve_step(fabric);
}

static void drop_first(struct kvf_peer *peer)
{
    assert(peer->serve_count > 0 && peer->fabric->work > 0);
    peer->serve_first = (peer->serve_first + 1) % KVF_SERVES_MAX;
    peer->serve_count--;
    peer->fabric->work--;
    if (peer->serve_count == 0)
        kvf_ring_remove(&peer->served);
}

void kvf_serve_forget(struct kvf_peer *peer)
{
    while (peer->serve_count > 0)
        drop_first(peer);
}

/* The peer's slot outlives its frames, whoever is in it by then. */
static void frame_sent(void *arg, enum kvf_status status)
{
    struct kvf_peer *peer = arg;
    kvf_peer_sent(peer, status);
    assert(peer->frames_out > 0 && peer->fabric->frames_out > 0);
    peer->frames_out--;
    peer->fabric->frames_out--;
}

/* The kernel copies page by page from memory that no cache holds. The first lines of each page are on their way before it begins:
 * what the processor fetches by itself ends at a page, and so does what it knows of addresses. */
static void fetch(const uint8_t *from, size_t bytes)
{
    enum { PAGE = 4096, AHEAD = 8 * 64 };
    for (size_t page = 0; page < bytes; page += PAGE)
        for (size_t at = page; at < page + AHEAD && at < bytes; at += 64)
            __builtin_prefetch(from + at, 0, 2);
}

/* Sends the next frame of a job. The job's cursor moves only when the frame went. */
static enum kvf_status send_frame(struct kvf_peer *peer, struct kvf_serve *serve)
{
    struct kvf_fabric *fabric = peer->fabric;
    struct iovec parts[KVF_FRAME_PARTS_MAX];
    size_t limit = peer->payload_max < fabric->payload_max ? peer->payload_max : fabric->payload_max;
    limit = limit < serve->frame_bytes ? limit : serve->frame_bytes;
    size_t bytes = 0;
    unsigned n_parts = 0, at_range = serve->at_range;
    uint32_t at_byte = serve->at_byte;
    while (at_range < serve->n && bytes < limit && n_parts < KVF_FRAME_PARTS_MAX) {
        const struct kvf_wire_range *range = &serve->ranges[at_range];
        size_t n = range->bytes - at_byte < limit - bytes ? range->bytes - at_byte : limit - bytes;
        const uint8_t *from = fabric->region + range->offset + at_byte;
        fetch(from, n);
        parts[n_parts++] = (struct iovec){.iov_base = (void *)(uintptr_t)from, .iov_len = n};
        bytes += n;
        at_byte += (uint32_t)n;
        if (at_byte == range->bytes) {
            at_range++;
            at_byte = 0;
        }
    }
    assert(bytes > 0);
    struct kvf_wire_header header = {.type = KVF_WIRE_PULL_DATA, .request = serve->request, .position = serve->position,
                                     .payload_bytes = (uint32_t)bytes};
    enum kvf_status st = kvf_fabric_post(peer, &header, parts, n_parts, frame_sent, peer);
    if (st != KVF_OK)
        return st;
    peer->frames_out++;
    fabric->frames_out++;
    peer->served_bytes += bytes;
    fabric->serve_streak = fabric->serve_last == peer ? fabric->serve_streak + 1 : 1;
    fabric->serve_last = peer;
    serve->position += bytes;
    serve->at_range = (uint16_t)at_range;
    serve->at_byte = at_byte;
    return KVF_OK;
}

/* The job that the peer waits for; NULL: there is none any more. */
static struct kvf_serve *job_of(struct kvf_peer *peer, uint64_t now)
{
    while (peer->serve_count > 0) {
        struct kvf_serve *serve = &peer->serves[peer->serve_first];
        if (serve->at_range < serve->n && (serve->deadline_ns == 0 || now < serve->deadline_ns))
            return serve;
        drop_first(peer);
    }
    return NULL;
}

/* Whether a frame may be sent to it now. */
static bool may_send(const struct kvf_peer *peer)
{
    return !peer->serve_full && peer->frames_out < KVF_SERVE_FRAMES_MAX && kvf_peer_usable(peer);
}

/* Who is to be sent the next frames: of those that may be, the one furthest behind. */
static struct kvf_peer *next_peer(struct kvf_fabric *fabric)
{
    struct kvf_peer *found = NULL;
    for (struct kvf_ring *at = fabric->serving.next; at != &fabric->serving; at = at->next) {
        struct kvf_peer *peer = KVF_RING_OF(at, struct kvf_peer, served);
        found = may_send(peer) && (!found || peer->serve_tag < found->serve_tag) ? peer : found;
    }
    return found;
}

void kvf_serve_step(struct kvf_fabric *fabric)
{
    uint64_t now = kvf_ring_empty(&fabric->serving) ? 0 : kvf_now(fabric->config.env);
    for (struct kvf_peer *peer; (peer = next_peer(fabric)) != NULL;) {
        uint64_t before = peer->served_bytes;
        /* As many in a row as may be on their way: it is woken once for them (kvf bench fabric --peers 16). */
        for (struct kvf_serve *serve; (serve = job_of(peer, now)) != NULL && may_send(peer);)
            peer->serve_full = send_frame(peer, serve) != KVF_OK;
        if (peer->serve_tag > fabric->serve_tag)
            fabric->serve_tag = peer->serve_tag;
        peer->serve_tag += peer->served_bytes - before;
    }
    for (struct kvf_ring *at = fabric->serving.next; at != &fabric->serving; at = at->next)
        KVF_RING_OF(at, struct kvf_peer, served)->serve_full = false;
}
