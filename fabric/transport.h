/* The network seam: frames to and from peers, memory regions that peers may read, one-sided reads. The real one is UCX
 * (transport_ucx.c); tests and the simulator have an in-process one (tests/sim). It knows nothing of sessions or blocks.
 *
 * One thread at a time (the fabric's owner holds its lock). No call blocks. Callbacks run inside poll(), never inside the
 * call that started the operation, except where a call says so.
 */
#ifndef KVF_FABRIC_TRANSPORT_H
#define KVF_FABRIC_TRANSPORT_H

#include "base/counters.h"
#include "base/env.h"
#include "base/log.h"
#include <kvf/kvf.h>
#include <sys/uio.h>

struct kvf_transport; /* one per node */
struct kvf_link;      /* our way to one peer; one direction: the peer makes its own to us */
struct kvf_region;    /* memory of ours that peers may read */
struct kvf_remote;    /* a peer's region as seen by us */
struct kvf_marks;     /* marks.h */

#define KVF_ADDRESS_MAX 1024 /* bytes of a transport address */
#define KVF_REGION_KEY_MAX 256
#define KVF_REGION_PIECES_MAX 64
#define KVF_FRAME_HEADER_MAX 80
#define KVF_FRAME_PARTS_MAX 64

/* How a pull from a region is done; chosen per link when the region is imported. */
enum kvf_way {
    KVF_WAY_ASK,    /* no one-sided read worth using (TCP): ask, and the peer pushes */
    KVF_WAY_GET,    /* one-sided get (RDMA) */
    KVF_WAY_MAPPED, /* the region is mapped here (shared memory): copy it */
};
#define KVF_WAYS 3

/* A part of a region that is ready: where it lies in it, and what a peer needs to read it. */
struct kvf_region_piece {
    uint64_t offset, bytes;
    uint8_t key[KVF_REGION_KEY_MAX];
    size_t key_bytes;
};

typedef void (*kvf_done_fn)(void *arg, enum kvf_status status);

struct kvf_transport_handler {
    void *arg;
    /* A frame arrived. header and payload are valid during the call only, and nobody writes them meanwhile. The sender is in the
     * header, not known here. */
    void (*frame)(void *arg, const void *header, size_t header_bytes, const void *payload, size_t payload_bytes);
    /* The link failed: the transport's first error on it. Nothing may be posted on it any more; disconnect it. */
    void (*link_down)(void *arg, struct kvf_link *link, enum kvf_status status);
};

struct kvf_transport_ops {
    const char *name;
    void (*destroy)(struct kvf_transport *t);

    /* Set once, before the first poll; again, with NULL functions, by an owner that goes before the transport does. */
    void (*handler_set)(struct kvf_transport *t, const struct kvf_transport_handler *handler);

    /* Our address, to publish. *bytes is the room on entry, the size on return. */
    enum kvf_status (*address)(struct kvf_transport *t, void *address, size_t *bytes);

    /* Payload bytes that travel as one frame without being staged; sends of more are ERR_INVALID. */
    size_t (*payload_max)(struct kvf_transport *t);

    /* Starts a link. Success says nothing about the peer being there: that shows by frames or link_down. `user` comes
     * back by link_user. ERR_BUSY (peers_max), ERR_PEER_UNREACHABLE, ERR_INVALID (not an address). */
    enum kvf_status (*connect)(struct kvf_transport *t, const void *address, size_t bytes, void *user, struct kvf_link **out);
    void *(*link_user)(struct kvf_link *link);
    /* How its connection was set up, in a few words for people; empty while nothing is known. NULL: there is nothing to tell. */
    void (*link_describe)(const struct kvf_link *link, char *text, size_t size);
    /* Ends a link, forced. Every send and get outstanding on it completes (with CANCELLED) within later polls and touches
     * no memory after its completion. The link pointer is dead when this returns. */
    void (*disconnect)(struct kvf_transport *t, struct kvf_link *link);

    /* Sends one frame: header (copied) and up to KVF_FRAME_PARTS_MAX parts (the caller's until done is called; done may
     * be NULL only when n_parts is 0). ERR_BUSY when too many are in flight (try again after poll), ERR_PEER_LOST. */
    enum kvf_status (*send)(struct kvf_transport *t, struct kvf_link *link, const void *header, size_t header_bytes,
                            const struct iovec *parts, unsigned n_parts, kvf_done_fn done, void *arg);

    /* A region: memory of ours that peers may read, at `base`. It stays the caller's, 4096-aligned, and outlives the region.
     * At first peers may read nothing of it. ERR_INVALID, ERR_NO_MEMORY. */
    enum kvf_status (*region_create)(struct kvf_transport *t, void *base, size_t bytes, struct kvf_region **out);
    /* One more piece of it may be read: memory is there at base + offset, is registered with the device and gets a key. `fd` is
     * the sealed memfd that is mapped there, from its first byte to its last: peers on this host map it too; -1: none. May be
     * called by another thread than the rest, one at a time, and takes as long as the device needs to pin it.
     * ERR_BUSY (KVF_REGION_PIECES_MAX), ERR_INVALID, ERR_NO_MEMORY (it cannot be pinned). */
    enum kvf_status (*region_add)(struct kvf_transport *t, struct kvf_region *region, uint64_t offset, size_t bytes, int fd);
    /* Pieces that were added, and the n-th of them. Any thread. */
    unsigned (*region_pieces)(struct kvf_region *region);
    const struct kvf_region_piece *(*region_piece)(struct kvf_region *region, unsigned n);
    /* What tells peers that have the region mapped of writes to it (offsets in the region); it lives as long as the region does for
     * us, and as long as somebody has it mapped for others. NULL: no peer maps it. */
    struct kvf_marks *(*region_marks)(struct kvf_region *region);
    void (*region_destroy)(struct kvf_transport *t, struct kvf_region *region);

    /* Registers memory of ours that only we read and write, so that no transfer has to. *out may be NULL: nothing to do here.
     * Threads as region_add. ERR_NO_MEMORY: it goes on unregistered. */
    enum kvf_status (*memory_register)(struct kvf_transport *t, void *base, size_t bytes, void **out);
    void (*memory_unregister)(struct kvf_transport *t, void *registered);

    /* A piece of a peer's region. `base` is its address at the peer. Tells the way. Destroy before disconnect. */
    enum kvf_status (*import)(struct kvf_transport *t, struct kvf_link *link, const void *key, size_t key_bytes, uint64_t base,
                              uint64_t bytes, struct kvf_remote **out, enum kvf_way *way);
    /* WAY_MAPPED: where the piece lies in our memory. Else NULL. */
    const void *(*remote_mapped)(struct kvf_remote *remote);
    /* WAY_MAPPED: the marks of the whole region; NULL: it has none, so nothing may be read in place. */
    const struct kvf_marks *(*remote_marks)(struct kvf_remote *remote);
    /* WAY_MAPPED: mapping and marks stay where they are, also after remote_destroy, disconnect and the peer's death, until as many
     * releases. Before the transport's destroy. */
    void (*remote_hold)(struct kvf_remote *remote);
    void (*remote_release)(struct kvf_transport *t, struct kvf_remote *remote);
    /* Why it is read the way that import told: a sentence's end, for people. NULL: this transport has no reasons. */
    const char *(*remote_why)(const struct kvf_remote *remote);
    void (*remote_destroy)(struct kvf_transport *t, struct kvf_remote *remote);

    /* WAY_GET: reads bytes of the piece at `offset` of it into `to`; may complete inside the call. */
    enum kvf_status (*get)(struct kvf_transport *t, struct kvf_remote *remote, uint64_t offset, void *to, size_t bytes,
                           kvf_done_fn done, void *arg);

    /* Moves things forward; the number of events handled (0: idle). */
    unsigned (*poll)(struct kvf_transport *t);
    /* Readable when poll has work; arm before sleeping on it: false means poll again first. -1 where there is none. */
    int (*event_fd)(struct kvf_transport *t);
    bool (*arm)(struct kvf_transport *t);

    /* One line of what was chosen and why, for `kvf info`. */
    void (*describe)(struct kvf_transport *t, char *text, size_t size);
};

struct kvf_transport {
    const struct kvf_transport_ops *ops;
};

struct kvf_transport_config {
    const char *kind;      /* fabric.transport: auto, tcp, shm, rdma */
    const char *interface; /* fabric.interface */
    const char *gid;       /* fabric.gid; NULL: auto */
    size_t segment_bytes;
    unsigned peers_max;
    bool secret;           /* peers must prove a secret: false allows loopback only */
    const struct kvf_log *log;
};

/* ERR_UNSUPPORTED (this build has no UCX), ERR_CONFIG (no such device or transport, or one that
 * needs a secret; the log line says what there is). */
enum kvf_status kvf_transport_ucx_create(const struct kvf_transport_config *config, struct kvf_transport **out);
/* What UCX is told for this configuration, as NAME=VALUE words with spaces: for the environment of UCX's own tools, which then
 * measure the same. Cut short if it does not fit. Errors as create's. */
enum kvf_status kvf_transport_ucx_settings(const struct kvf_transport_config *config, char *text, size_t size);
/* What it keeps of its own, beside UCX's, for each link (two a peer, and eight) and each operation that UCX has. 0: no UCX. */
void kvf_transport_ucx_sizes(size_t *link_bytes, size_t *operation_bytes);
/* Why UCX cannot be used here, or what it offers: for `kvf info`. */
void kvf_transport_ucx_about(char *text, size_t size);
#endif
