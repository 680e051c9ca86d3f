/* The network seam over UCX 1.13 and later. The only file that knows UCX (tidy: file so it holds more than 800 lines).
 *
 * What UCX is told, and why:
 *   - every setting that matters is set in code: UCX also reads UCX_* of the environment, under any prefix, and an engine
 *     in the same process may have set those for itself;
 *   - endpoints with error handling (mode PEER): without it, what is outstanding when a peer dies never ends;
 *   - UCX's shared memory is not used. It has one queue per receiver for all its senders: one that is killed while it
 *     writes an entry stops the queue for everybody. TCP over loopback moves bulk as fast, and the kernel tells of a
 *     death within milliseconds, where shared memory waits for a keepalive. Regions are shared without it (share.h): UCX
 *     can map only memory that it allocated itself, which it does in small pages, writing zeros at 0.3 to 2 GB/s;
 *   - no rendezvous: a frame of at most payload_max fits one TCP segment, so it arrives in one piece, and its parts are
 *     the sender's again when the send completes;
 *   - over TCP a link has a worker of its own, that only sends; what arrives comes by the one worker whose address is
 *     published. UCX pairs the endpoints of two workers by counting them on both sides, and aborts the process when the
 *     counts differ, as they do when two nodes lost each other at different moments and connect anew. A new worker begins
 *     at 0;
 *   - over RDMA links are connected by librdmacm, from an IP address and a port: UCX's other way, by messages over the ud
 *     transport, aborts the process when an endpoint is closed before the peer answered, and (ud_verbs) when a device
 *     reports that a link went down. Such links need no counting, so all use the one worker; the endpoints that peers'
 *     connections make here are kept in a table (doors). The kernel tells a peer's end at once. Messages go by rc as well;
 *   - what UCX has no setting for is set on its sockets, once they are connected: congestion control (sockets.h);
 *   - memory is registered by a thread beside the one that polls (region_add), so the context is told that threads share it.
 *
 * Ways: mapped when the peer's region can be mapped here (same host, shared memory on); get where RDMA devices are used;
 * else ask, because UCX emulates gets over TCP by messages that wait for the target. Nothing tells from a mapped region
 * that its owner died: that is for the link, for heartbeats, and for the checksums of what was read.
 */
#include "fabric/devices.h"
#include "fabric/marks.h"
#include "fabric/share.h"
#include "fabric/sockets.h"

#include <assert.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#define AM_FRAME 1           /* the only active message id */
/* Of progress in one poll, at most: while bytes come faster than they are taken there is always more, and what they complete, and
 * what is asked for next, waits for the end of the poll. The other side would have nothing to send meanwhile. */
#define POLL_ROUNDS 4
#define SENDS_PER_LINK 128   /* in flight on one link, so that a stuck peer leaves room to others */
#define SENDS_MAX 8192
#define SEGMENT_OVERHEAD 4096 /* added to a segment: headers of UCX and ours, with room to spare */
#define SEGMENT_MIN 8192
#define SEGMENT_MAX (16u << 20)
#define CLOSE_ROUNDS 200000
#define ADDRESS_IP_MAX 19 /* of an address, the part for RDMA: family, port, IP */

/* CLOSED: UCX is done with the endpoint; the worker goes outside of its own progress. */
enum link_state { LINK_FREE, LINK_OPEN, LINK_CLOSING, LINK_CLOSED };

struct kvf_link {
    struct kvf_transport *transport;
    enum link_state state;
    ucp_worker_h worker; /* TCP: of this link alone; RDMA: the transport's */
    bool own_worker;
    int event_fd;        /* an own worker's; it is in the transport's epoll set */
    ucp_ep_h ep;
    void *user;
    bool failed, told; /* UCX reported an error; link_down was called */
    bool closed;       /* CLOSING: UCX is done with the endpoint */
    bool close_due;    /* CLOSING: the close waits for the end of progress */
    bool used, tuned;  /* a send went through: there is a connection; its socket was looked at */
    struct kvf_sockets_congestion congestion;
    unsigned ops;      /* sends and gets that UCX has */
    struct kvf_remote *remotes_gone; /* destroyed when ops is 0: a get that waits inside UCX still reads its key */
};

/* A peer's connection to us over RDMA. ASKED: it waits for the end of progress; FAILED: so does its close. */
enum door_state { DOOR_FREE, DOOR_ASKED, DOOR_OPEN, DOOR_FAILED, DOOR_CLOSING };

struct door {
    struct ucx *ucx;
    enum door_state state;
    ucp_conn_request_h request; /* ASKED */
    ucp_ep_h ep;                /* OPEN and later */
};

struct kvf_region {
    uint8_t *base;
    size_t bytes;
    _Atomic unsigned n; /* pieces before it are whole and change no more */
    struct kvf_region_piece pieces[KVF_REGION_PIECES_MAX];
    ucp_mem_h memh[KVF_REGION_PIECES_MAX];
    struct kvf_marks *marks; /* NULL: no shared memory */
    int marks_fd;
};

struct kvf_remote {
    struct kvf_link *link;
    ucp_rkey_h rkey; /* NULL: asking is the only way */
    const void *mapped;
    const struct kvf_marks *marks; /* of the region; mapped */
    unsigned holds;
    bool destroyed; /* freed with the last hold */
    const char *why; /* this way and no better one */
    uint64_t base, bytes;
    struct kvf_remote *next;
};

/* A send or get that UCX has, or whose done is due. */
struct op {
    struct op *next;
    struct kvf_link *link;
    kvf_done_fn done;
    void *arg;
    enum kvf_status status;
    uint8_t header[KVF_FRAME_HEADER_MAX];
    ucp_dt_iov_t iov[KVF_FRAME_PARTS_MAX];
};

struct ucx {
    struct kvf_transport transport; /* first: the handle */
    const struct kvf_log *log;
    struct kvf_transport_handler handler;
    ucp_context_h context;
    ucp_worker_h worker;
    uint8_t address[KVF_ADDRESS_MAX];
    size_t address_bytes;
    int event_fd; /* an epoll set of every worker's */
    struct kvf_devices_choice choice;
    size_t segment_bytes, payload_max;
    bool in_progress;
    struct kvf_link *links; /* [n_links] */
    unsigned n_links, links_max;
    ucp_listener_h listener; /* RDMA */
    struct door *doors;      /* [n_links] */
    unsigned doors_due;      /* that are ASKED or FAILED */
    struct op *ops; /* [n_ops] */
    unsigned n_ops;
    struct op *free_ops;
    struct op *due_first, **due_last; /* done callbacks that wait for poll */
    unsigned downs;                   /* links that failed and were not told */
    unsigned closes;                  /* links whose close waits for the end of progress */
};

static struct ucx *ucx_of(struct kvf_transport *t) { return (struct ucx *)t; }

static enum kvf_status status_of(ucs_status_t status)
{
    switch (status) {
    case UCS_OK:
        return KVF_OK;
    case UCS_ERR_CANCELED:
        return KVF_CANCELLED;
    case UCS_ERR_NO_RESOURCE:
        return KVF_ERR_BUSY;
    case UCS_ERR_NO_MEMORY:
        return KVF_ERR_NO_MEMORY;
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
        return KVF_ERR_INVALID;
    case UCS_ERR_UNSUPPORTED:
        return KVF_ERR_UNSUPPORTED;
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_NO_DEVICE:
        return KVF_ERR_PEER_UNREACHABLE;
    default:
        return KVF_ERR_PEER_LOST;
    }
}

/* ------------------------------------------------------------------------------------------------ operations */
static struct op *op_take(struct ucx *u, struct kvf_link *link, kvf_done_fn done, void *arg)
{
    struct op *op = u->free_ops;
    if (!op || link->ops >= SENDS_PER_LINK)
        return NULL;
    u->free_ops = op->next;
    op->next = NULL;
    op->link = link;
    op->done = done;
    op->arg = arg;
    link->ops++;
    return op;
}

static void op_free(struct ucx *u, struct op *op)
{
    op->next = u->free_ops;
    u->free_ops = op;
}

static void remote_free(struct kvf_remote *remote)
{
    if (remote->rkey)
        ucp_rkey_destroy(remote->rkey);
    remote->rkey = NULL;
    remote->destroyed = true;
    if (remote->holds > 0)
        return;
    kvf_share_unmap(remote->mapped, remote->bytes);
    kvf_share_unmap(remote->marks, sizeof *remote->marks);
    free(remote);
}

static void link_release(struct kvf_link *link)
{
    if (link->state != LINK_CLOSING || !link->closed || link->ops > 0)
        return;
    while (link->remotes_gone) {
        struct kvf_remote *remote = link->remotes_gone;
        link->remotes_gone = remote->next;
        remote_free(remote);
    }
    link->state = LINK_CLOSED;
}

static void link_fail(struct kvf_link *link)
{
    if (link->state != LINK_OPEN || link->failed)
        return;
    link->failed = true;
    ucx_of(link->transport)->downs++;
}

/* UCX is done with the operation: its callback becomes due. */
static void op_over(struct ucx *u, struct op *op, ucs_status_t status)
{
    op->status = status_of(status);
    if (op->status != KVF_OK && op->status != KVF_CANCELLED)
        link_fail(op->link); /* UCX's error callback may come later; nothing is posted meanwhile */
    op->link->ops--;
    op->link->used |= status == UCS_OK;
    link_release(op->link);
    op->link = NULL;
    *u->due_last = op;
    u->due_last = &op->next;
}

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    struct op *op = user_data;
    struct ucx *u = ucx_of(op->link->transport);
    ucp_request_free(request);
    op_over(u, op, status);
}

/* What a call of UCX that may complete at once returned. */
static enum kvf_status op_started(struct ucx *u, struct op *op, ucs_status_ptr_t started)
{
    if (!UCS_PTR_IS_ERR(started)) {
        if (!started)
            op_over(u, op, UCS_OK);
        return KVF_OK;
    }
    struct kvf_link *link = op->link;
    enum kvf_status st = status_of(UCS_PTR_STATUS(started));
    link->ops--;
    op_free(u, op);
    if (st == KVF_ERR_BUSY || st == KVF_ERR_NO_MEMORY)
        return KVF_ERR_BUSY;
    return KVF_ERR_PEER_LOST;
}

static unsigned drain_due(struct ucx *u)
{
    struct op *op = u->due_first;
    unsigned n = 0;
    u->due_first = NULL;
    u->due_last = &u->due_first;
    while (op) {
        struct op over = {.next = op->next, .done = op->done, .arg = op->arg, .status = op->status};
        op_free(u, op);
        if (over.done)
            over.done(over.arg, over.status);
        op = over.next;
        n++;
    }
    return n;
}

static enum kvf_status ucx_send(struct kvf_transport *t, struct kvf_link *link, const void *header, size_t header_bytes,
                                const struct iovec *parts, unsigned n_parts, kvf_done_fn done, void *arg)
{
    struct ucx *u = ucx_of(t);
    size_t bytes = 0;
    if (header_bytes > KVF_FRAME_HEADER_MAX || n_parts > KVF_FRAME_PARTS_MAX || (n_parts > 0 && !done))
        return KVF_ERR_INVALID;
    for (unsigned i = 0; i < n_parts; i++)
        bytes += parts[i].iov_len;
    if (bytes > u->payload_max)
        return KVF_ERR_INVALID;
    if (link->state != LINK_OPEN || link->failed)
        return KVF_ERR_PEER_LOST;
    struct op *op = op_take(u, link, done, arg);
    if (!op)
        return KVF_ERR_BUSY;
    memcpy(op->header, header, header_bytes);
    for (unsigned i = 0; i < n_parts; i++)
        op->iov[i] = (ucp_dt_iov_t){.buffer = parts[i].iov_base, .length = parts[i].iov_len};
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_DATATYPE |
                        UCP_OP_ATTR_FIELD_FLAGS,
        .flags = UCP_AM_SEND_FLAG_EAGER,
        .cb = {.send = on_sent},
        .user_data = op,
    };
    const void *buffer = n_parts == 1 ? parts[0].iov_base : op->iov;
    size_t count = n_parts == 1 ? bytes : n_parts;
    param.datatype = n_parts > 1 ? ucp_dt_make_iov() : ucp_dt_make_contig(1);
    return op_started(u, op, ucp_am_send_nbx(link->ep, AM_FRAME, op->header, header_bytes, n_parts ? buffer : NULL, count, &param));
}

static enum kvf_status ucx_get(struct kvf_transport *t, struct kvf_remote *remote, uint64_t offset, void *to, size_t bytes,
                               kvf_done_fn done, void *arg)
{
    struct ucx *u = ucx_of(t);
    struct kvf_link *link = remote->link;
    if (!remote->rkey || !done || offset > remote->bytes || bytes > remote->bytes - offset)
        return KVF_ERR_INVALID;
    if (link->state != LINK_OPEN || link->failed)
        return KVF_ERR_PEER_LOST;
    struct op *op = op_take(u, link, done, arg);
    if (!op)
        return KVF_ERR_BUSY;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb = {.send = on_sent},
        .user_data = op,
    };
    return op_started(u, op, ucp_get_nbx(link->ep, to, bytes, remote->base + offset, remote->rkey, &param));
}

static ucs_status_t on_frame(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                             const ucp_am_recv_param_t *param)
{
    struct ucx *u = arg;
    /* We never send by rendezvous; one who does is not one of us, and the data is not taken. */
    if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)
        return UCS_OK;
    if (u->handler.frame)
        u->handler.frame(u->handler.arg, header, header_bytes, data, bytes);
    return UCS_OK;
}

/* ------------------------------------------------------------------------------------------------ links */
static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    link_fail(arg);
}

/* The worker's event fd joins the transport's set. */
static ucs_status_t watch(struct ucx *u, ucp_worker_h worker, int *event_fd)
{
    ucs_status_t status = ucp_worker_get_efd(worker, event_fd);
    struct epoll_event event = {.events = EPOLLIN};
    if (status == UCS_OK && epoll_ctl(u->event_fd, EPOLL_CTL_ADD, *event_fd, &event) != 0)
        status = UCS_ERR_IO_ERROR;
    return status;
}

static ucs_status_t link_worker_open(struct ucx *u, struct kvf_link *link)
{
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucs_status_t status = ucp_worker_create(u->context, &params, &link->worker);
    if (status != UCS_OK)
        return status;
    status = watch(u, link->worker, &link->event_fd);
    if (status != UCS_OK)
        ucp_worker_destroy(link->worker);
    link->own_worker = status == UCS_OK;
    return status;
}

static void link_worker_close(struct ucx *u, struct kvf_link *link)
{
    if (link->own_worker) {
        epoll_ctl(u->event_fd, EPOLL_CTL_DEL, link->event_fd, NULL);
        ucp_worker_destroy(link->worker);
    }
    link->state = LINK_FREE;
}

/* An address: how many bytes its part for RDMA has (0: none), that part (family, port, IP), then what UCX packed for TCP. */
static size_t ip_encode(const struct sockaddr_storage *at, uint8_t out[ADDRESS_IP_MAX])
{
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)at;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)at;
    bool six = at->ss_family == AF_INET6;
    out[0] = six ? 6 : 4;
    memcpy(out + 1, six ? &v6->sin6_port : &v4->sin_port, 2);
    memcpy(out + 3, six ? (const void *)&v6->sin6_addr : (const void *)&v4->sin_addr, six ? 16 : 4);
    return six ? 19 : 7;
}

static bool ip_decode(const uint8_t *in, size_t bytes, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (bytes == 7 && in[0] == 4) {
        v4->sin_family = AF_INET;
        memcpy(&v4->sin_port, in + 1, 2);
        memcpy(&v4->sin_addr, in + 3, 4);
        return true;
    }
    if (bytes == 19 && in[0] == 6) {
        v6->sin6_family = AF_INET6;
        memcpy(&v6->sin6_port, in + 1, 2);
        memcpy(&v6->sin6_addr, in + 3, 16);
        return true;
    }
    return false;
}

static size_t ip_bytes(const struct sockaddr_storage *at)
{
    return at->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}

static ucs_status_t endpoint_tcp(struct kvf_link *link, const uint8_t *address, size_t bytes)
{
    /* UCX is not told the length: behind an address that was cut lie zeros, not somebody else's bytes. */
    uint8_t padded[KVF_ADDRESS_MAX + 64] = {0};
    memcpy(padded, address, bytes);
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)padded,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = link},
    };
    return ucp_ep_create(link->worker, &params, &link->ep);
}

static ucs_status_t endpoint_rdma(struct kvf_link *link, const struct sockaddr_storage *far)
{
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
        .sockaddr = {.addr = (const struct sockaddr *)far, .addrlen = (socklen_t)ip_bytes(far)},
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = link},
    };
    return ucp_ep_create(link->worker, &params, &link->ep);
}

static enum kvf_status ucx_connect(struct kvf_transport *t, const void *address, size_t bytes, void *user, struct kvf_link **out)
{
    struct ucx *u = ucx_of(t);
    struct kvf_link *link = NULL;
    unsigned open = 0;
    for (unsigned i = 0; i < u->n_links; i++) {
        open += u->links[i].state == LINK_OPEN;
        if (!link && u->links[i].state == LINK_FREE)
            link = &u->links[i];
    }
    if (!link || open >= u->links_max)
        return KVF_ERR_BUSY;
    const uint8_t *at = address;
    size_t ip = bytes > 0 ? at[0] : 0;
    struct sockaddr_storage far;
    if (bytes == 0 || bytes > KVF_ADDRESS_MAX || 1 + ip > bytes || (ip > 0 && !ip_decode(at + 1, ip, &far)))
        return KVF_ERR_INVALID;
    bool rdma = ip > 0 && u->choice.rdma;
    if (!rdma && bytes == 1 + ip)
        return KVF_ERR_PEER_UNREACHABLE; /* one of us has no RDMA, the other nothing else */
    if (!rdma && !kvf_devices_run(&u->choice)) /* a worker that cannot be made for that costs UCX 600 bytes that it never frees */
        return KVF_ERR_PEER_UNREACHABLE;
    *link = (struct kvf_link){.transport = t, .state = LINK_OPEN, .user = user, .worker = u->worker};
    ucs_status_t status = rdma ? UCS_OK : link_worker_open(u, link);
    if (status != UCS_OK) { /* no memory, or the device is down just now */
        link->state = LINK_FREE;
        return status == UCS_ERR_NO_MEMORY ? KVF_ERR_NO_MEMORY : KVF_ERR_PEER_UNREACHABLE;
    }
    status = rdma ? endpoint_rdma(link, &far) : endpoint_tcp(link, at + 1 + ip, bytes - 1 - ip);
    if (status != UCS_OK) {
        link_worker_close(u, link);
        return status == UCS_ERR_NO_MEMORY ? KVF_ERR_NO_MEMORY : KVF_ERR_PEER_UNREACHABLE;
    }
    *out = link;
    return KVF_OK;
}

static void *ucx_link_user(struct kvf_link *link) { return link->user; }

static void ucx_link_describe(const struct kvf_link *link, char *text, size_t size)
{
    const struct kvf_sockets_congestion *c = &link->congestion;
    bool changed = strcmp(c->used, c->system) != 0;
    if (!c->used[0])
        snprintf(text, size, "%s", link->own_worker ? c->why ? c->why : "not connected yet" : "RDMA");
    else
        snprintf(text, size, "%s%s%s: %s", c->used, changed ? " instead of " : "", changed ? c->system : "", c->why);
}

static void on_closed(void *request, ucs_status_t status, void *user_data)
{
    struct kvf_link *link = user_data;
    ucp_request_free(request);
    link->closed = true;
    link_release(link);
}

static void link_close(struct kvf_link *link)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_EP_CLOSE_FLAG_FORCE,
        .cb = {.send = on_closed},
        .user_data = link,
    };
    link->close_due = false;
    ucs_status_ptr_t started = ucp_ep_close_nbx(link->ep, &param);
    if (started && !UCS_PTR_IS_ERR(started))
        return;
    link->closed = true;
    link_release(link);
}

static void ucx_disconnect(struct kvf_transport *t, struct kvf_link *link)
{
    struct ucx *u = ucx_of(t);
    assert(link->state == LINK_OPEN);
    if (link->failed && !link->told)
        u->downs--;
    link->state = LINK_CLOSING;
    /* Inside a callback of UCX, which may be about this very endpoint: afterwards. */
    if (u->in_progress) {
        link->close_due = true;
        u->closes++;
    } else {
        link_close(link);
    }
}

/* ------------------------------------------------------------------------------------------------ doors */
static void on_knock(ucp_conn_request_h request, void *arg)
{
    struct ucx *u = arg;
    for (unsigned i = 0; i < u->n_links; i++) {
        struct door *door = &u->doors[i];
        if (door->state != DOOR_FREE)
            continue;
        *door = (struct door){.ucx = u, .state = DOOR_ASKED, .request = request};
        u->doors_due++;
        return;
    }
    ucp_listener_reject(u->listener, request);
}

static void on_door_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    struct door *door = arg;
    if (door->state != DOOR_OPEN)
        return;
    door->state = DOOR_FAILED;
    door->ucx->doors_due++;
}

static void on_door_closed(void *request, ucs_status_t status, void *user_data)
{
    struct door *door = user_data;
    ucp_request_free(request);
    door->state = DOOR_FREE;
}

static void door_open(struct door *door)
{
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .conn_request = door->request,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_door_error, .arg = door},
    };
    door->state = DOOR_OPEN;
    /* Whether it works or not, the request is UCX's again. */
    if (ucp_ep_create(door->ucx->worker, &params, &door->ep) != UCS_OK)
        door->state = DOOR_FREE;
}

static void door_close(struct door *door)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_EP_CLOSE_FLAG_FORCE,
        .cb = {.send = on_door_closed},
        .user_data = door,
    };
    door->state = DOOR_CLOSING;
    ucs_status_ptr_t started = ucp_ep_close_nbx(door->ep, &param);
    if (!started || UCS_PTR_IS_ERR(started))
        door->state = DOOR_FREE;
}

/* Outside of progress: what its callbacks left to do. */
static void doors_step(struct ucx *u)
{
    for (unsigned i = 0; u->doors_due > 0 && i < u->n_links; i++) {
        struct door *door = &u->doors[i];
        if (door->state != DOOR_ASKED && door->state != DOOR_FAILED)
            continue;
        u->doors_due--;
        if (door->state == DOOR_ASKED)
            door_open(door);
        else
            door_close(door);
    }
}

/* Nobody connects any more, and who did goes. */
static void doors_shut(struct ucx *u)
{
    if (u->listener)
        ucp_listener_destroy(u->listener);
    u->listener = NULL;
    for (unsigned i = 0; u->doors && i < u->n_links; i++) {
        if (u->doors[i].state == DOOR_OPEN)
            door_close(&u->doors[i]);
    }
}

/* ------------------------------------------------------------------------------------------------ regions */
static void ucx_region_destroy(struct kvf_transport *t, struct kvf_region *region)
{
    for (unsigned i = 0; i < KVF_REGION_PIECES_MAX; i++) {
        if (region->memh[i])
            ucp_mem_unmap(ucx_of(t)->context, region->memh[i]);
    }
    kvf_share_unmap(region->marks, sizeof *region->marks);
    if (region->marks)
        close(region->marks_fd);
    free(region);
}

static enum kvf_status ucx_region_create(struct kvf_transport *t, void *base, size_t bytes, struct kvf_region **out)
{
    if (!base || (uintptr_t)base % 4096 != 0 || bytes == 0)
        return KVF_ERR_INVALID;
    struct kvf_region *region = calloc(1, sizeof *region);
    if (!region)
        return KVF_ERR_NO_MEMORY;
    region->base = base;
    region->bytes = bytes;
    if (ucx_of(t)->choice.shm)
        region->marks = kvf_share_create(sizeof *region->marks, &region->marks_fd);
    *out = region;
    return KVF_OK;
}

static enum kvf_status pin(struct ucx *u, void *base, size_t bytes, ucp_mem_h *out)
{
    ucp_mem_map_params_t params = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
                                   .address = base,
                                   .length = bytes};
    return ucp_mem_map(u->context, &params, out) == UCS_OK ? KVF_OK : KVF_ERR_NO_MEMORY;
}

/* Appends the key of UCX. */
static enum kvf_status pack(struct ucx *u, ucp_mem_h memh, struct kvf_region_piece *piece)
{
    void *key;
    size_t bytes;
    if (ucp_rkey_pack(u->context, memh, &key, &bytes) != UCS_OK)
        return KVF_ERR_NO_MEMORY;
    bool fits = bytes <= sizeof piece->key - piece->key_bytes;
    if (fits) {
        memcpy(piece->key + piece->key_bytes, key, bytes);
        piece->key_bytes += bytes;
    }
    ucp_rkey_buffer_release(key);
    return fits ? KVF_OK : KVF_ERR_UNSUPPORTED;
}

/* A key: one byte that says whether tokens of shared memory follow; those of the piece and of the region's marks; what UCX packed,
 * when RDMA is used. */
static enum kvf_status ucx_region_add(struct kvf_transport *t, struct kvf_region *region, uint64_t offset, size_t bytes, int fd)
{
    struct ucx *u = ucx_of(t);
    unsigned n = atomic_load(&region->n);
    if (n == KVF_REGION_PIECES_MAX)
        return KVF_ERR_BUSY;
    if (bytes == 0 || offset > region->bytes || bytes > region->bytes - offset)
        return KVF_ERR_INVALID;
    struct kvf_region_piece *piece = &region->pieces[n];
    *piece = (struct kvf_region_piece){.offset = offset, .bytes = bytes, .key_bytes = 1};
    if (region->marks && fd >= 0 && kvf_share_token(fd, piece->key + 1) == KVF_OK &&
        kvf_share_token(region->marks_fd, piece->key + 1 + KVF_SHARE_TOKEN_BYTES) == KVF_OK) {
        piece->key[0] = 1;
        piece->key_bytes += 2 * KVF_SHARE_TOKEN_BYTES;
    }
    if (u->choice.rdma) {
        enum kvf_status st = pin(u, region->base + offset, bytes, &region->memh[n]);
        if (st == KVF_OK)
            st = pack(u, region->memh[n], piece);
        if (st != KVF_OK)
            return st; /* a memh that is there goes with the region */
    }
    atomic_store(&region->n, n + 1);
    return KVF_OK;
}

static unsigned ucx_region_pieces(struct kvf_region *region) { return atomic_load(&region->n); }

static const struct kvf_region_piece *ucx_region_piece(struct kvf_region *region, unsigned n) { return &region->pieces[n]; }
static struct kvf_marks *ucx_region_marks(struct kvf_region *region) { return region->marks; }

static enum kvf_status ucx_memory_register(struct kvf_transport *t, void *base, size_t bytes, void **out)
{
    ucp_mem_h memh = NULL;
    *out = NULL;
    enum kvf_status st = ucx_of(t)->choice.rdma ? pin(ucx_of(t), base, bytes, &memh) : KVF_OK;
    *out = memh;
    return st;
}

static void ucx_memory_unregister(struct kvf_transport *t, void *registered)
{
    if (registered)
        ucp_mem_unmap(ucx_of(t)->context, registered);
}

/* Why a region is asked for: neither mapped nor read one-sided. */
static const char *why_ask(const struct ucx *u, bool shared, bool keyed)
{
    if (u->choice.rdma && keyed)
        return "messages: UCX cannot read its memory one-sided from here";
    if (u->choice.shm && shared)
        return u->choice.rdma ? "messages: another host or user, and it has no RDMA device"
                              : "tcp: another host or user, whose memory cannot be mapped here; no RDMA device in fabric.interface";
    if (u->choice.shm)
        return "tcp: it does not share its memory (its fabric.transport), and fabric.interface has no RDMA device";
    return "tcp: fabric.transport leaves out shared memory and RDMA here; one-sided reads would be emulated over TCP";
}

static enum kvf_status ucx_import(struct kvf_transport *t, struct kvf_link *link, const void *key, size_t key_bytes, uint64_t base,
                                  uint64_t bytes, struct kvf_remote **out, enum kvf_way *way)
{
    struct ucx *u = ucx_of(t);
    const uint8_t *at = key;
    if (link->state != LINK_OPEN || link->failed)
        return KVF_ERR_PEER_LOST;
    size_t token = key_bytes > 0 && at[0] == 1 ? 2 * KVF_SHARE_TOKEN_BYTES : 0;
    if (key_bytes < 1 + token || key_bytes > KVF_REGION_KEY_MAX || at[0] > 1)
        return KVF_ERR_INVALID;
    struct kvf_remote *remote = calloc(1, sizeof *remote);
    if (!remote)
        return KVF_ERR_NO_MEMORY;
    *remote = (struct kvf_remote){.link = link, .base = base, .bytes = bytes};
    *way = KVF_WAY_ASK;
    /* What cannot be used (another host's shared memory, say) is no failure: the peer can be asked. */
    if (u->choice.shm && token)
        remote->mapped = kvf_share_map(at + 1, bytes);
    if (remote->mapped) {
        *way = KVF_WAY_MAPPED;
        remote->marks = kvf_share_map(at + 1 + KVF_SHARE_TOKEN_BYTES, sizeof *remote->marks);
    } else if (u->choice.rdma && key_bytes > 1 + token) {
        /* As for addresses: UCX is not told the length. */
        uint8_t padded[KVF_REGION_KEY_MAX + 64] = {0};
        memcpy(padded, at + 1 + token, key_bytes - 1 - token);
        if (ucp_ep_rkey_unpack(link->ep, padded, &remote->rkey) == UCS_OK)
            *way = KVF_WAY_GET;
    }
    if (*way == KVF_WAY_MAPPED)
        remote->why = "shared memory: same host, and its memory could be mapped";
    else if (*way == KVF_WAY_GET)
        remote->why = "rdma: one-sided reads, which do not need the other side's processor";
    else
        remote->why = why_ask(u, token > 0, key_bytes > 1 + token);
    *out = remote;
    return KVF_OK;
}

static const void *ucx_remote_mapped(struct kvf_remote *remote) { return remote->mapped; }
static const struct kvf_marks *ucx_remote_marks(struct kvf_remote *remote) { return remote->marks; }
static void ucx_remote_hold(struct kvf_remote *remote) { remote->holds++; }

static void ucx_remote_release(struct kvf_transport *t, struct kvf_remote *remote)
{
    assert(remote->holds > 0);
    if (--remote->holds == 0 && remote->destroyed)
        remote_free(remote);
}

static const char *ucx_remote_why(const struct kvf_remote *remote) { return remote->why; }

static void ucx_remote_destroy(struct kvf_transport *t, struct kvf_remote *remote)
{
    struct kvf_link *link = remote->link;
    if (link->ops > 0) {
        remote->next = link->remotes_gone;
        link->remotes_gone = remote;
        return;
    }
    remote_free(remote);
}

/* ------------------------------------------------------------------------------------------------ poll */
static unsigned tell_downs(struct ucx *u)
{
    unsigned n = 0;
    for (unsigned i = 0; u->downs > 0 && i < u->n_links; i++) {
        struct kvf_link *link = &u->links[i];
        if (link->state != LINK_OPEN || !link->failed || link->told)
            continue;
        link->told = true;
        u->downs--;
        n++;
        if (u->handler.link_down)
            u->handler.link_down(u->handler.arg, link, KVF_ERR_PEER_LOST);
    }
    return n;
}

static unsigned progress(ucp_worker_h worker)
{
    unsigned n = 0, events = 1;
    for (unsigned i = 0; i < POLL_ROUNDS && events > 0; i++) {
        events = ucp_worker_progress(worker);
        n += events;
    }
    return n;
}

/* Once, when UCX has connected it. */
static void link_tune(struct kvf_link *link)
{
    link->tuned = true;
    if (link->own_worker && link->state == LINK_OPEN)
        kvf_sockets_congestion(link->event_fd, &link->congestion);
}

static unsigned ucx_poll(struct kvf_transport *t)
{
    struct ucx *u = ucx_of(t);
    unsigned n = 0;
    assert(!u->in_progress);
    u->in_progress = true;
    n += progress(u->worker);
    for (unsigned i = 0; i < u->n_links; i++) {
        if (u->links[i].own_worker && (u->links[i].state == LINK_OPEN || u->links[i].state == LINK_CLOSING))
            n += progress(u->links[i].worker);
    }
    u->in_progress = false;
    if (u->doors_due > 0)
        doors_step(u);
    for (unsigned i = 0; i < u->n_links; i++) {
        if (u->links[i].close_due) {
            u->closes--;
            link_close(&u->links[i]);
        }
        if (u->links[i].state == LINK_CLOSED)
            link_worker_close(u, &u->links[i]);
        else if (u->links[i].used && !u->links[i].tuned)
            link_tune(&u->links[i]);
    }
    n += drain_due(u);
    n += tell_downs(u);
    return n;
}

static int ucx_event_fd(struct kvf_transport *t) { return ucx_of(t)->event_fd; }

static bool ucx_arm(struct kvf_transport *t)
{
    struct ucx *u = ucx_of(t);
    bool armed = !u->due_first && u->downs == 0 && u->doors_due == 0 && ucp_worker_arm(u->worker) == UCS_OK;
    for (unsigned i = 0; armed && i < u->n_links; i++) {
        if (u->links[i].own_worker && (u->links[i].state == LINK_OPEN || u->links[i].state == LINK_CLOSING))
            armed = ucp_worker_arm(u->links[i].worker) == UCS_OK;
        armed = armed && u->links[i].state != LINK_CLOSED;
    }
    return armed;
}

static void ucx_handler_set(struct kvf_transport *t, const struct kvf_transport_handler *handler)
{
    ucx_of(t)->handler = *handler;
}

static enum kvf_status ucx_address(struct kvf_transport *t, void *address, size_t *bytes)
{
    struct ucx *u = ucx_of(t);
    if (*bytes < u->address_bytes)
        return KVF_ERR_INVALID;
    memcpy(address, u->address, u->address_bytes);
    *bytes = u->address_bytes;
    return KVF_OK;
}

static size_t ucx_payload_max(struct kvf_transport *t) { return ucx_of(t)->payload_max; }

static void ucx_describe(struct kvf_transport *t, char *text, size_t size)
{
    struct ucx *u = ucx_of(t);
    const char *pulls = "ask and push over TCP (one-sided reads would be emulated there)";
    if (u->choice.shm && u->choice.rdma)
        pulls = "mapped on this host, one-sided over RDMA";
    else if (u->choice.shm)
        pulls = "mapped on this host, ask and push over TCP";
    snprintf(text, size, "UCX %s, transports %s, devices %s, segments of %zu bytes; pulls: %s", ucp_get_version_string(),
             u->choice.transports, u->choice.devices, u->segment_bytes, pulls);
}

/* ------------------------------------------------------------------------------------------------ life */
#define SETTINGS_MAX 32

struct setting {
    const char *name, *value;
};

/* Room for the numbers in settings. */
struct numbers {
    char segment[24], received[24];
};

/* What UCX is told. Returns how many. What is received at once may be two segments: one more call of the kernel for each costs
 * the receiver a tenth (kvf bench fabric); more would not stay in the second cache until it is copied. */
static unsigned settings_of(const struct kvf_devices_choice *choice, size_t segment_bytes, struct numbers *numbers,
                            struct setting *out)
{
    snprintf(numbers->segment, sizeof numbers->segment, "%zu", segment_bytes + SEGMENT_OVERHEAD);
    snprintf(numbers->received, sizeof numbers->received, "%zu", 2 * segment_bytes + SEGMENT_OVERHEAD);
    const struct setting settings[] = {
        {"TLS", choice->transports},
        {"NET_DEVICES", choice->devices},
        {"SELF_DEVICES", "all"},
        {"RNDV_THRESH", "inf"},
        {"ZCOPY_THRESH", "auto"},
        {"BCOPY_THRESH", "auto"},
        {"MAX_EAGER_RAILS", "1"}, /* frames of a link stay in order */
        {"PROTO_ENABLE", "n"},
        {"UNIFIED_MODE", "n"},
        {"ADDRESS_DEBUG_INFO", "n"},
        {"WARN_INVALID_CONFIG", "n"}, /* we tested the devices and say it ourselves */
        {"KEEPALIVE_INTERVAL", "500ms"},
        {"KEEPALIVE_NUM_EPS", "128"},
        /* Settings of single transports: UCX 1.13 to 1.16 want them without the transport's name, later ones with it. */
        {"TX_SEG_SIZE", numbers->segment},
        {"TCP_TX_SEG_SIZE", numbers->segment},
        {"RX_SEG_SIZE", numbers->received},
        {"TCP_RX_SEG_SIZE", numbers->received},
        {"CONN_NB", "y"}, /* a peer that is cut off must not block ep_create */
        {"TCP_CONN_NB", "y"},
        {"NODELAY", "y"},
        {"TCP_NODELAY", "y"},
    };
    const struct setting rdma[] = {
        {"SOCKADDR_TLS_PRIORITY", "rdmacm"},
        {"CM_USE_ALL_DEVICES", "n"},        /* the device that an address names, not whatever is faster */
        {"RC_TIMEOUT", "60ms"},             /* who stops to answer is known after 8 times 67 ms: devices know powers of two */
        {"RC_RETRY_COUNT", "7"},
        {"GID_INDEX", choice->gid_index},
        {"IB_GID_INDEX", choice->gid_index},
    };
    const unsigned n = sizeof settings / sizeof settings[0], n_rdma = choice->rdma ? sizeof rdma / sizeof rdma[0] : 0;
    _Static_assert(sizeof settings + sizeof rdma <= SETTINGS_MAX * sizeof *out, "room for all");
    memcpy(out, settings, sizeof settings);
    memcpy(out + n, rdma, n_rdma * sizeof rdma[0]);
    return n + n_rdma;
}

static ucs_status_t modify(const struct ucx *u, ucp_config_t *config)
{
    struct numbers numbers;
    struct setting settings[SETTINGS_MAX];
    unsigned n = settings_of(&u->choice, u->segment_bytes, &numbers, settings);
    /* UCX writes to standard output, which belongs to the program. What goes wrong is in our own log. Who wants to see
     * UCX's asks for it by its environment. */
    if (!getenv("UCX_LOG_LEVEL"))
        ucp_config_modify(config, "LOG_LEVEL", "fatal");
    for (unsigned i = 0; i < n; i++) {
        ucs_status_t status = ucp_config_modify(config, settings[i].name, settings[i].value);
        if (status != UCS_OK) {
            kvf_log_error(u->log, "UCX does not take %s=%s: %s", settings[i].name, settings[i].value, ucs_status_string(status));
            return status;
        }
    }
    return UCS_OK;
}

enum kvf_status kvf_transport_ucx_settings(const struct kvf_transport_config *config, char *text, size_t size)
{
    struct numbers numbers;
    struct setting settings[SETTINGS_MAX];
    struct kvf_devices_choice choice;
    size_t used = 0;
    enum kvf_status st = kvf_devices_choose(config->kind, config->interface, config->gid, config->log, &choice);
    if (st != KVF_OK)
        return st;
    unsigned n = settings_of(&choice, config->segment_bytes, &numbers, settings);
    for (unsigned i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%sUCX_%s=%s", i ? " " : "", settings[i].name, settings[i].value);
    return KVF_OK;
}

static enum kvf_status context_open(struct ucx *u, unsigned peers_max)
{
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read("KVF", NULL, &config);
    if (status != UCS_OK) {
        kvf_log_error(u->log, "UCX cannot read its settings (a broken UCX_* in the environment?): %s", ucs_status_string(status));
        return KVF_ERR_CONFIG;
    }
    status = modify(u, config);
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS | UCP_PARAM_FIELD_NAME |
                      UCP_PARAM_FIELD_MT_WORKERS_SHARED,
        .features = UCP_FEATURE_AM | UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP,
        .estimated_num_eps = peers_max,
        .name = "kvfabric",
        .mt_workers_shared = 1,
    };
    if (status == UCS_OK)
        status = ucp_init(&params, config, &u->context);
    ucp_config_release(config);
    if (status == UCS_OK)
        return KVF_OK;
    kvf_log_error(u->log, "UCX cannot use transports %s on devices %s: %s", u->choice.transports, u->choice.devices,
                  ucs_status_string(status));
    return status == UCS_ERR_NO_MEMORY ? KVF_ERR_NO_MEMORY : KVF_ERR_CONFIG;
}

/* Opens the door for peers, and notes its address. */
static ucs_status_t listen_rdma(struct ucx *u)
{
    ucp_listener_params_t params = {
        .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {.addr = (const struct sockaddr *)&u->choice.rdma_at, .addrlen = (socklen_t)ip_bytes(&u->choice.rdma_at)},
        .conn_handler = {.cb = on_knock, .arg = u},
    };
    ucs_status_t status = ucp_listener_create(u->worker, &params, &u->listener);
    if (status != UCS_OK)
        return status;
    ucp_listener_attr_t attr = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    status = ucp_listener_query(u->listener, &attr);
    if (status == UCS_OK)
        u->address[0] = (uint8_t)ip_encode(&attr.sockaddr, u->address + 1);
    return status;
}

/* Behind the part for RDMA what UCX packs, unless it is of no use without TCP. */
static ucs_status_t address_make(struct ucx *u)
{
    ucp_address_t *address;
    size_t bytes, used = 1 + u->address[0];
    u->address_bytes = used;
    if (!u->choice.tcp)
        return UCS_OK;
    ucs_status_t status = ucp_worker_get_address(u->worker, &address, &bytes);
    if (status != UCS_OK)
        return status;
    bool fits = bytes <= sizeof u->address - used;
    if (fits)
        memcpy(u->address + used, address, bytes);
    u->address_bytes += bytes;
    ucp_worker_release_address(u->worker, address);
    return fits ? UCS_OK : UCS_ERR_BUFFER_TOO_SMALL;
}

static enum kvf_status worker_open(struct ucx *u)
{
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucs_status_t status = ucp_worker_create(u->context, &params, &u->worker);
    if (status != UCS_OK)
        goto fail;
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = AM_FRAME,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = on_frame,
        .arg = u,
    };
    status = ucp_worker_set_am_recv_handler(u->worker, &handler);
    if (status != UCS_OK)
        goto fail;
    int event_fd;
    status = watch(u, u->worker, &event_fd);
    if (status != UCS_OK)
        goto fail;
    ucp_worker_attr_t attr = {.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER};
    status = ucp_worker_query(u->worker, &attr);
    if (status != UCS_OK || attr.max_am_header < KVF_FRAME_HEADER_MAX)
        goto fail;
    status = u->choice.rdma ? listen_rdma(u) : UCS_OK;
    if (status == UCS_OK)
        status = address_make(u);
    if (status == UCS_OK)
        return KVF_OK;
fail:
    kvf_log_error(u->log, "UCX cannot start over transports %s on devices %s: %s", u->choice.transports, u->choice.devices,
                  status == UCS_OK ? "its headers do not fit ours" : ucs_status_string(status));
    return status == UCS_ERR_NO_MEMORY ? KVF_ERR_NO_MEMORY : KVF_ERR_CONFIG;
}

static bool links_busy(const struct ucx *u)
{
    for (unsigned i = 0; i < u->n_links; i++) {
        if (u->links[i].state != LINK_FREE || u->doors[i].state != DOOR_FREE)
            return true;
    }
    return false;
}

static void ucx_destroy(struct kvf_transport *t)
{
    struct ucx *u = ucx_of(t);
    u->handler = (struct kvf_transport_handler){0};
    for (unsigned i = 0; u->links && i < u->n_links; i++) {
        if (u->links[i].state == LINK_OPEN)
            ucx_disconnect(t, &u->links[i]);
    }
    doors_shut(u);
    for (unsigned round = 0; u->links && u->doors && u->worker && round < CLOSE_ROUNDS && links_busy(u); round++)
        ucx_poll(t);
    if (u->worker)
        ucp_worker_destroy(u->worker);
    if (u->context)
        ucp_cleanup(u->context);
    if (u->event_fd >= 0)
        close(u->event_fd);
    free(u->links);
    free(u->doors);
    free(u->ops);
    free(u);
}

static const struct kvf_transport_ops ucx_ops = {
    .name = "ucx",
    .destroy = ucx_destroy,
    .handler_set = ucx_handler_set,
    .address = ucx_address,
    .payload_max = ucx_payload_max,
    .connect = ucx_connect,
    .link_user = ucx_link_user,
    .link_describe = ucx_link_describe,
    .disconnect = ucx_disconnect,
    .send = ucx_send,
    .region_create = ucx_region_create,
    .region_add = ucx_region_add,
    .region_pieces = ucx_region_pieces,
    .region_piece = ucx_region_piece,
    .region_marks = ucx_region_marks,
    .memory_register = ucx_memory_register,
    .memory_unregister = ucx_memory_unregister,
    .region_destroy = ucx_region_destroy,
    .import = ucx_import,
    .remote_mapped = ucx_remote_mapped,
    .remote_marks = ucx_remote_marks,
    .remote_hold = ucx_remote_hold,
    .remote_release = ucx_remote_release,
    .remote_why = ucx_remote_why,
    .remote_destroy = ucx_remote_destroy,
    .get = ucx_get,
    .poll = ucx_poll,
    .event_fd = ucx_event_fd,
    .arm = ucx_arm,
    .describe = ucx_describe,
};

enum kvf_status kvf_transport_ucx_create(const struct kvf_transport_config *config, struct kvf_transport **out)
{
    if (config->segment_bytes < SEGMENT_MIN || config->segment_bytes > SEGMENT_MAX || config->peers_max == 0)
        return KVF_ERR_INVALID;
    struct ucx *u = calloc(1, sizeof *u);
    if (!u)
        return KVF_ERR_NO_MEMORY;
    u->transport.ops = &ucx_ops;
    u->log = config->log;
    u->event_fd = -1;
    u->segment_bytes = config->segment_bytes;
    u->payload_max = config->segment_bytes;
    u->due_last = &u->due_first;
    enum kvf_status st = kvf_devices_choose(config->kind, config->interface, config->gid, config->log, &u->choice);
    if (st == KVF_OK && !config->secret)
        st = kvf_devices_loopback(u->choice.devices, config->log);
    if (st != KVF_OK)
        goto fail;
    st = KVF_ERR_NO_MEMORY;
    u->links_max = config->peers_max;
    u->n_links = 2 * config->peers_max + 8; /* closed ones linger until UCX is done with them */
    u->n_ops = SENDS_PER_LINK + 32 * config->peers_max;
    u->n_ops = u->n_ops < SENDS_MAX ? u->n_ops : SENDS_MAX;
    u->links = calloc(u->n_links, sizeof *u->links);
    u->doors = calloc(u->n_links, sizeof *u->doors);
    u->ops = calloc(u->n_ops, sizeof *u->ops);
    if (!u->links || !u->doors || !u->ops)
        goto fail;
    for (unsigned i = u->n_ops; i-- > 0;)
        op_free(u, &u->ops[i]);
    u->event_fd = epoll_create1(EPOLL_CLOEXEC);
    if (u->event_fd < 0)
        goto fail;
    st = context_open(u, config->peers_max);
    if (st == KVF_OK)
        st = worker_open(u);
    if (st != KVF_OK)
        goto fail;
    *out = &u->transport;
    return KVF_OK;
fail:
    ucx_destroy(&u->transport);
    return st;
}

void kvf_transport_ucx_about(char *text, size_t size)
{
    snprintf(text, size, "UCX %s; RDMA devices: %s", ucp_get_version_string(),
             kvf_devices_any_rdma() ? "yes (/sys/class/infiniband)" : "none on this machine");
}

void kvf_transport_ucx_sizes(size_t *link_bytes, size_t *operation_bytes)
{
    *link_bytes = sizeof(struct kvf_link);
    *operation_bytes = sizeof(struct op);
}
