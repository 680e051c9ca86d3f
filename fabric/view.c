/* Views: a peer's memory, mapped here, used where it lies (fabric.h).
 *
 *     open: up, mapped, not being written -> the consumer reads -> same: nobody wrote -> close: the mapping may go
 *
 * What may happen under a reader, and why no wrong byte comes of it (docs/decisions.md has the argument at length):
 *   - the peer writes there: the region's marks tell (marks.h), and the consumer throws its result away
 *   - the peer dies, or is given up: its memory is a file without a name that our mapping keeps, and the hold keeps the mapping
 *   - the peer starts again: another incarnation has another file, and other views
 *   - the peer cuts the file, which would be SIGBUS: it is sealed against that, or it is not mapped (share.c) */
#include "fabric/internal.h"

enum kvf_status kvf_fabric_view_open(struct kvf_peer *peer, uint64_t offset, size_t bytes, struct kvf_view *view)
{
    struct kvf_transport *t = peer->fabric->config.transport;
    if (bytes == 0 || offset > peer->region_bytes || bytes > peer->region_bytes - offset)
        return KVF_ERR_PEER_REFUSED;
    if (!kvf_peer_usable(peer))
        return KVF_ERR_PEER_LOST;
    const struct kvf_peer_piece *piece = kvf_region_piece_of(peer, offset, bytes);
    if (!piece || piece->way != KVF_WAY_MAPPED)
        return KVF_ERR_UNSUPPORTED;
    const struct kvf_marks *marks = t->ops->remote_marks(piece->remote);
    uint64_t seen;
    if (!marks)
        return KVF_ERR_UNSUPPORTED;
    if (!kvf_marks_look(marks, offset, bytes, &seen))
        return KVF_ERR_BUSY;
    assert(piece->mapped && offset >= piece->offset);
    t->ops->remote_hold(piece->remote);
    *view = (struct kvf_view){.data = piece->mapped + (offset - piece->offset), .bytes = bytes, .remote = piece->remote,
                              .marks = marks, .offset = offset, .seen = seen};
    return KVF_OK;
}

bool kvf_view_same(const struct kvf_view *view)
{
    assert(view->data && view->marks);
    return kvf_marks_same(view->marks, view->offset, view->bytes, view->seen);
}

enum kvf_status kvf_fabric_view_close(struct kvf_fabric *fabric, struct kvf_view *view)
{
    struct kvf_transport *t = fabric->config.transport;
    assert(view->data && view->remote);
    enum kvf_status status = kvf_view_same(view) ? KVF_OK : KVF_ERR_STALE;
    t->ops->remote_release(t, view->remote);
    *view = (struct kvf_view){.data = NULL};
    return status;
}

/* The marks of our own region, around a range of it; NULL: nobody maps it. */
static struct kvf_marks *own_marks(const struct kvf_fabric *fabric, uint64_t offset, uint64_t bytes)
{
    const struct kvf_fabric_config *c = &fabric->config;
    assert(!c->region || (offset <= c->region_bytes && bytes <= c->region_bytes - offset));
    return c->region && bytes > 0 ? c->transport->ops->region_marks(c->region) : NULL;
}

void kvf_fabric_region_take(struct kvf_fabric *fabric, uint64_t offset, uint64_t bytes)
{
    struct kvf_marks *marks = own_marks(fabric, offset, bytes);
    if (marks)
        kvf_marks_begin(marks, fabric->writers, offset, bytes);
}

void kvf_fabric_region_give(struct kvf_fabric *fabric, uint64_t offset, uint64_t bytes)
{
    struct kvf_marks *marks = own_marks(fabric, offset, bytes);
    if (marks)
        kvf_marks_end(marks, fabric->writers, offset, bytes);
}

void kvf_fabric_region_write(struct kvf_fabric *fabric, uint64_t offset, const void *from, size_t bytes)
{
    assert(fabric->region && from);
    kvf_fabric_region_take(fabric, offset, bytes);
    memcpy((uint8_t *)(uintptr_t)fabric->region + offset, from, bytes);
    kvf_fabric_region_give(fabric, offset, bytes);
}
