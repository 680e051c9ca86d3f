/* The in-process network of sim_transport.h. Everything that waits is in lists in order of (time, sequence number). */
#include "tests/sim/sim_transport.h"
#include "fabric/marks.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define REGIONS_MAX 256

struct sim_node;

struct kvf_link {
    struct sim_node *from;
    struct sim_node *to;
    void *user;
    bool failed; /* link_down is due or was given */
    bool told;
    struct kvf_link *next; /* of from */
};

struct kvf_region {
    struct sim_node *owner;
    uint32_t number;
    uint8_t *base;
    size_t bytes;
    bool gone;
    unsigned n;
    struct kvf_region_piece pieces[KVF_REGION_PIECES_MAX];
    struct kvf_marks marks;
    uint8_t *memory[KVF_REGION_PIECES_MAX]; /* as others see it: it outlives the node that owns it, where it is a memfd */
    bool mapped[KVF_REGION_PIECES_MAX];
};

struct kvf_remote {
    struct kvf_link *link;
    const struct kvf_marks *marks;
    const uint8_t *memory;
    size_t bytes;
    enum kvf_way way;
    unsigned holds;
    bool destroyed;
};

/* A frame or a read, on the wire. */
struct event {
    struct event *next;
    uint64_t due_ns, sequence;
    struct sim_node *from, *to;
    struct kvf_link *link; /* NULL: injected */
    bool read;
    uint8_t header[KVF_FRAME_HEADER_MAX];
    size_t header_bytes;
    struct iovec parts[KVF_FRAME_PARTS_MAX];
    unsigned n_parts;
    uint8_t *payload; /* of an injected frame */
    const uint8_t *memory;
    void *into;
    size_t bytes;
    kvf_done_fn done;
    void *arg;
    bool lost;         /* fate's word */
    uint64_t again_ns;
};

struct arrival {
    struct arrival *next;
    size_t header_bytes, payload_bytes;
    uint8_t header[KVF_FRAME_HEADER_MAX];
    uint8_t payload[];
};

struct completion {
    struct completion *next;
    kvf_done_fn done;
    void *arg;
    enum kvf_status status;
};

struct sim_node {
    struct kvf_transport transport; /* first: the handle */
    struct sim_net *net;
    unsigned number;
    char label[32];
    enum kvf_way way;
    size_t payload_max;
    unsigned sends_max, sends;
    bool dead, destroyed;
    struct kvf_transport_handler handler;
    struct kvf_link *links;
    struct arrival *arrivals;
    struct completion *completions;
};

struct sim_net {
    const struct kvf_env *env;
    uint64_t sequence;
    struct event *wire;
    struct sim_node *nodes[SIM_NODES_MAX];
    unsigned n_nodes;
    struct kvf_region *regions[REGIONS_MAX];
    unsigned n_regions;
    struct sim_path paths[SIM_NODES_MAX][SIM_NODES_MAX];
    uint64_t last_due_ns[SIM_NODES_MAX][SIM_NODES_MAX]; /* of what keeps the order; only when somebody watches */
    const struct sim_net_watch *watch;
};

static struct sim_node *node_of(struct kvf_transport *t) { return (struct sim_node *)t; }

static struct sim_path *path_of(struct sim_node *from, struct sim_node *to)
{
    return &from->net->paths[from->number][to->number];
}

static void *must(void *memory)
{
    if (!memory)
        abort(); /* a test that has no memory has no meaning */
    return memory;
}

/* ------------------------------------------------------------------------------------------------ the wire */
static void ask_fate(struct sim_net *net, struct event *e)
{
    struct sim_fate fate = {0};
    uint64_t *last = &net->last_due_ns[e->from->number][e->to->number];
    size_t bytes = e->bytes;
    for (unsigned i = 0; i < e->n_parts; i++)
        bytes += e->parts[i].iov_len;
    net->watch->sent(net->watch->arg, e->from->number, e->to->number, e->read, e->header, bytes, &fate);
    e->due_ns += fate.delay_ns;
    e->lost = fate.drop && !e->read;
    e->again_ns = fate.again_ns;
    if (fate.loose)
        return;
    e->due_ns = e->due_ns < *last ? *last : e->due_ns;
    *last = e->due_ns;
}

static void put_on_wire(struct sim_net *net, struct event *e)
{
    struct event **at = &net->wire;
    if (net->watch && e->link)
        ask_fate(net, e);
    e->sequence = net->sequence++;
    while (*at && (*at)->due_ns <= e->due_ns)
        at = &(*at)->next;
    e->next = *at;
    *at = e;
}

static void complete(struct sim_node *node, kvf_done_fn done, void *arg, enum kvf_status status)
{
    struct completion *c = must(calloc(1, sizeof *c));
    struct completion **at = &node->completions;
    *c = (struct completion){.done = done, .arg = arg, .status = status};
    while (*at)
        at = &(*at)->next;
    *at = c;
}

/* The event is over: its sender hears of it, the event is freed. */
static void finish(struct event *e, enum kvf_status status)
{
    if (e->link) {
        e->from->sends--;
        if (e->done)
            complete(e->from, e->done, e->arg, status);
    }
    free(e->payload);
    free(e);
}

static void arrive(struct event *e)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < e->n_parts; i++)
        bytes += e->parts[i].iov_len;
    struct arrival *a = must(calloc(1, sizeof *a + bytes));
    memcpy(a->header, e->header, e->header_bytes);
    a->header_bytes = e->header_bytes;
    for (unsigned i = 0; i < e->n_parts; i++) {
        if (e->parts[i].iov_len)
            memcpy(a->payload + a->payload_bytes, e->parts[i].iov_base, e->parts[i].iov_len);
        a->payload_bytes += e->parts[i].iov_len;
    }
    struct arrival **at = &e->to->arrivals;
    while (*at)
        at = &(*at)->next;
    *at = a;
    path_of(e->from, e->to)->delivered++;
}

static bool stays(const struct event *e)
{
    const struct sim_path *path = path_of(e->from, e->to);
    return path->held || (e->read && (path->cut || e->to->dead));
}

/* The frame will arrive once more, from a copy: nobody waits for that one. */
static void repeat(struct event *e)
{
    struct event *copy = must(calloc(1, sizeof *copy));
    size_t bytes = 0;
    for (unsigned i = 0; i < e->n_parts; i++)
        bytes += e->parts[i].iov_len;
    *copy = (struct event){.due_ns = e->due_ns + e->again_ns, .from = e->from, .to = e->to, .header_bytes = e->header_bytes};
    memcpy(copy->header, e->header, e->header_bytes);
    copy->payload = must(malloc(bytes + 1));
    copy->parts[copy->n_parts++] = (struct iovec){.iov_base = copy->payload, .iov_len = bytes};
    for (unsigned i = 0, at = 0; i < e->n_parts; at += (unsigned)e->parts[i++].iov_len)
        if (e->parts[i].iov_len)
            memcpy(copy->payload + at, e->parts[i].iov_base, e->parts[i].iov_len);
    put_on_wire(e->from->net, copy);
}

static void tell_left(struct sim_net *net, const struct event *e, bool arrived)
{
    if (net->watch)
        net->watch->left(net->watch->arg, e->from->number, e->to->number, e->read, arrived, e->header, e->header_bytes, e->parts,
                         e->n_parts);
}

bool sim_net_step(struct sim_net *net)
{
    struct event **at = &net->wire;
    while (*at && stays(*at))
        at = &(*at)->next;
    struct event *e = *at;
    if (!e || e->due_ns > kvf_now(net->env))
        return false;
    *at = e->next;
    struct sim_path *path = path_of(e->from, e->to);
    tell_left(net, e, e->read || !(path->cut || e->to->dead || e->to->destroyed || path->drop > 0 || e->lost));
    if (e->read) {
        memcpy(e->into, e->memory, e->bytes);
    } else if (path->cut || e->to->dead || e->to->destroyed || e->lost) {
        /* gone */
    } else if (path->drop > 0) {
        path->drop--;
    } else {
        arrive(e);
        if (path->duplicate > 0) {
            path->duplicate--;
            arrive(e);
        }
        if (e->again_ns)
            repeat(e);
    }
    finish(e, KVF_OK);
    return true;
}

unsigned sim_net_run(struct sim_net *net)
{
    unsigned n = 0;
    while (sim_net_step(net))
        n++;
    return n;
}

uint64_t sim_net_next(const struct sim_net *net)
{
    for (const struct event *e = net->wire; e; e = e->next) {
        if (!stays(e))
            return e->due_ns;
    }
    return UINT64_MAX;
}

/* Takes what matches off the wire; its senders hear `status`. link or node may be NULL. */
static void take_off(struct sim_net *net, const struct kvf_link *link, const struct sim_node *from, const struct sim_node *to,
                     enum kvf_status status)
{
    struct event **at = &net->wire;
    while (*at) {
        struct event *e = *at;
        if ((link && e->link == link) || (from && e->from == from) || (to && e->to == to)) {
            *at = e->next;
            finish(e, status);
        } else {
            at = &e->next;
        }
    }
}

/* ------------------------------------------------------------------------------------------------ the table */
static void t_destroy(struct kvf_transport *t)
{
    struct sim_node *node = node_of(t);
    take_off(node->net, NULL, node, NULL, KVF_CANCELLED);
    while (node->completions) { /* as UCX does: who left before its operations ended is called back all the same */
        struct completion *c = node->completions;
        node->completions = c->next;
        c->done(c->arg, c->status);
        free(c);
    }
    while (node->arrivals) {
        struct arrival *a = node->arrivals;
        node->arrivals = a->next;
        free(a);
    }
    while (node->links) {
        struct kvf_link *link = node->links;
        node->links = link->next;
        free(link);
    }
    node->dead = node->destroyed = true;
}

static void t_handler_set(struct kvf_transport *t, const struct kvf_transport_handler *handler)
{
    node_of(t)->handler = *handler;
}

static enum kvf_status t_address(struct kvf_transport *t, void *address, size_t *bytes)
{
    uint32_t number = node_of(t)->number;
    if (*bytes < 4 + sizeof number)
        return KVF_ERR_INVALID;
    memcpy(address, "sim:", 4);
    memcpy((char *)address + 4, &number, sizeof number);
    *bytes = 4 + sizeof number;
    return KVF_OK;
}

static size_t t_payload_max(struct kvf_transport *t)
{
    return node_of(t)->payload_max;
}

static enum kvf_status t_connect(struct kvf_transport *t, const void *address, size_t bytes, void *user, struct kvf_link **out)
{
    struct sim_node *node = node_of(t);
    uint32_t number;
    if (bytes != 4 + sizeof number || memcmp(address, "sim:", 4) != 0)
        return KVF_ERR_INVALID;
    memcpy(&number, (const char *)address + 4, sizeof number);
    if (number >= node->net->n_nodes)
        return KVF_ERR_INVALID;
    struct kvf_link *link = must(calloc(1, sizeof *link));
    *link = (struct kvf_link){.from = node, .to = node->net->nodes[number], .user = user, .next = node->links};
    node->links = link;
    *out = link;
    return KVF_OK;
}

static void *t_link_user(struct kvf_link *link) { return link->user; }

static void t_disconnect(struct kvf_transport *t, struct kvf_link *link)
{
    struct sim_node *node = node_of(t);
    take_off(node->net, link, NULL, NULL, KVF_CANCELLED);
    struct kvf_link **at = &node->links;
    while (*at != link)
        at = &(*at)->next;
    *at = link->next;
    free(link);
}

/* Whether a send or read may start. */
static enum kvf_status admit(struct sim_node *node, struct kvf_link *link)
{
    struct sim_path *path = path_of(node, link->to);
    path->misposted += link->failed;
    if (node->dead || link->failed)
        return KVF_ERR_PEER_LOST;
    if (path->lost > 0) {
        path->lost--;
        return KVF_ERR_PEER_LOST;
    }
    if (path->busy > 0 || node->sends >= node->sends_max) {
        path->busy -= path->busy > 0;
        return KVF_ERR_BUSY;
    }
    return KVF_OK;
}

static struct event *event_new(struct sim_node *node, struct kvf_link *link, kvf_done_fn done, void *arg)
{
    struct event *e = must(calloc(1, sizeof *e));
    e->due_ns = kvf_now(node->net->env) + path_of(node, link->to)->delay_ns;
    e->from = node;
    e->to = link->to;
    e->link = link;
    e->done = done;
    e->arg = arg;
    node->sends++;
    return e;
}

static enum kvf_status t_send(struct kvf_transport *t, struct kvf_link *link, const void *header, size_t header_bytes,
                              const struct iovec *parts, unsigned n_parts, kvf_done_fn done, void *arg)
{
    struct sim_node *node = node_of(t);
    size_t bytes = 0;
    for (unsigned i = 0; i < n_parts; i++)
        bytes += parts[i].iov_len;
    if (header_bytes > KVF_FRAME_HEADER_MAX || n_parts > KVF_FRAME_PARTS_MAX || bytes > node->payload_max || (n_parts > 0 && !done))
        return KVF_ERR_INVALID;
    enum kvf_status st = admit(node, link);
    if (st != KVF_OK)
        return st;
    struct event *e = event_new(node, link, done, arg);
    memcpy(e->header, header, header_bytes);
    e->header_bytes = header_bytes;
    for (unsigned i = 0; i < n_parts; i++)
        e->parts[i] = parts[i];
    e->n_parts = n_parts;
    put_on_wire(node->net, e);
    return KVF_OK;
}

static enum kvf_status t_region_create(struct kvf_transport *t, void *base, size_t bytes, struct kvf_region **out)
{
    struct sim_node *node = node_of(t);
    struct sim_net *net = node->net;
    if (net->n_regions == REGIONS_MAX || !base || bytes == 0)
        return KVF_ERR_INVALID;
    struct kvf_region *region = must(calloc(1, sizeof *region));
    region->owner = node;
    region->base = base;
    region->bytes = bytes;
    region->number = net->n_regions;
    net->regions[net->n_regions++] = region;
    *out = region;
    return KVF_OK;
}

static enum kvf_status t_region_add(struct kvf_transport *t, struct kvf_region *region, uint64_t offset, size_t bytes, int fd)
{
    if (region->n == KVF_REGION_PIECES_MAX)
        return KVF_ERR_BUSY;
    if (bytes == 0 || offset > region->bytes || bytes > region->bytes - offset)
        return KVF_ERR_INVALID;
    uint32_t words[2] = {region->number, region->n};
    struct kvf_region_piece *piece = &region->pieces[region->n];
    *piece = (struct kvf_region_piece){.offset = offset, .bytes = bytes, .key_bytes = sizeof words};
    memcpy(piece->key, words, sizeof words);
    region->memory[region->n] = region->base + offset;
    if (fd >= 0) {
        void *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
        region->memory[region->n] = must(memory == MAP_FAILED ? NULL : memory);
        region->mapped[region->n] = true;
    }
    region->n++;
    return KVF_OK;
}

static unsigned t_region_pieces(struct kvf_region *region) { return region->n; }

static const struct kvf_region_piece *t_region_piece(struct kvf_region *region, unsigned n) { return &region->pieces[n]; }
static struct kvf_marks *t_region_marks(struct kvf_region *region) { return &region->marks; }

static void t_region_destroy(struct kvf_transport *t, struct kvf_region *region)
{
    region->gone = true; /* mapped by others, perhaps: freed with the net */
}

static enum kvf_status t_memory_register(struct kvf_transport *t, void *base, size_t bytes, void **out)
{
    *out = NULL;
    return KVF_OK;
}

static void t_memory_unregister(struct kvf_transport *t, void *registered) {}

static enum kvf_status t_import(struct kvf_transport *t, struct kvf_link *link, const void *key, size_t key_bytes, uint64_t base,
                                uint64_t bytes, struct kvf_remote **out, enum kvf_way *way)
{
    struct sim_node *node = node_of(t);
    uint32_t words[2];
    if (key_bytes != sizeof words)
        return KVF_ERR_INVALID;
    memcpy(words, key, sizeof words);
    struct kvf_region *region = words[0] < node->net->n_regions ? node->net->regions[words[0]] : NULL;
    if (!region || region->gone || region->owner != link->to || words[1] >= region->n)
        return KVF_ERR_INVALID;
    const struct kvf_region_piece *piece = &region->pieces[words[1]];
    if (base != (uintptr_t)region->base + piece->offset || bytes != piece->bytes)
        return KVF_ERR_INVALID;
    struct kvf_remote *remote = must(calloc(1, sizeof *remote));
    *remote = (struct kvf_remote){.link = link, .marks = &region->marks, .memory = region->memory[words[1]], .bytes = bytes,
                                  .way = node->way};
    *out = remote;
    *way = node->way;
    return KVF_OK;
}

static const void *t_remote_mapped(struct kvf_remote *remote)
{
    return remote->way == KVF_WAY_MAPPED ? remote->memory : NULL;
}

static const struct kvf_marks *t_remote_marks(struct kvf_remote *remote) { return remote->marks; }
static void t_remote_hold(struct kvf_remote *remote) { remote->holds++; }

static void t_remote_destroy(struct kvf_transport *t, struct kvf_remote *remote)
{
    remote->destroyed = true;
    if (remote->holds == 0)
        free(remote);
}

static void t_remote_release(struct kvf_transport *t, struct kvf_remote *remote)
{
    assert(remote->holds > 0);
    if (--remote->holds == 0 && remote->destroyed)
        free(remote);
}

static enum kvf_status t_get(struct kvf_transport *t, struct kvf_remote *remote, uint64_t offset, void *to, size_t bytes,
                             kvf_done_fn done, void *arg)
{
    struct sim_node *node = node_of(t);
    if (remote->way != KVF_WAY_GET || offset > remote->bytes || bytes > remote->bytes - offset)
        return KVF_ERR_INVALID;
    enum kvf_status st = admit(node, remote->link);
    if (st != KVF_OK)
        return st;
    struct event *e = event_new(node, remote->link, done, arg);
    e->read = true;
    e->memory = remote->memory + offset;
    e->into = to;
    e->bytes = bytes;
    put_on_wire(node->net, e);
    return KVF_OK;
}

static unsigned t_poll(struct kvf_transport *t)
{
    struct sim_node *node = node_of(t);
    unsigned n = 0;
    /* What is there now, taken one by one: callbacks add and remove. */
    struct completion *completions = node->completions;
    node->completions = NULL;
    while (completions) {
        struct completion c = *completions;
        free(completions);
        completions = c.next;
        c.done(c.arg, c.status);
        n++;
    }
    for (struct kvf_link *link = node->links; link && !node->dead;) {
        if (link->failed && !link->told && !path_of(node, link->to)->untold) {
            link->told = true;
            if (node->handler.link_down)
                node->handler.link_down(node->handler.arg, link, KVF_ERR_PEER_LOST);
            n++;
            link = node->links; /* the list may be another one now */
        } else {
            link = link->next;
        }
    }
    struct arrival *arrivals = node->dead ? NULL : node->arrivals;
    node->arrivals = node->dead ? node->arrivals : NULL;
    while (arrivals) {
        struct arrival *a = arrivals;
        arrivals = a->next;
        if (node->handler.frame)
            node->handler.frame(node->handler.arg, a->header, a->header_bytes, a->payload, a->payload_bytes);
        free(a);
        n++;
    }
    return n;
}

static int t_event_fd(struct kvf_transport *t) { return -1; }

static bool t_arm(struct kvf_transport *t)
{
    return !node_of(t)->completions && !node_of(t)->arrivals;
}

static void t_describe(struct kvf_transport *t, char *text, size_t size)
{
    static const char *const ways[] = {"ask", "get", "mapped"};
    snprintf(text, size, "simulated network, instance %s, pulls by %s", node_of(t)->label, ways[node_of(t)->way]);
}

static const struct kvf_transport_ops sim_ops = {
    .name = "sim",
    .destroy = t_destroy,
    .handler_set = t_handler_set,
    .address = t_address,
    .payload_max = t_payload_max,
    .connect = t_connect,
    .link_user = t_link_user,
    .disconnect = t_disconnect,
    .send = t_send,
    .region_create = t_region_create,
    .region_add = t_region_add,
    .region_pieces = t_region_pieces,
    .region_piece = t_region_piece,
    .region_marks = t_region_marks,
    .memory_register = t_memory_register,
    .memory_unregister = t_memory_unregister,
    .region_destroy = t_region_destroy,
    .import = t_import,
    .remote_mapped = t_remote_mapped,
    .remote_marks = t_remote_marks,
    .remote_hold = t_remote_hold,
    .remote_release = t_remote_release,
    .remote_destroy = t_remote_destroy,
    .get = t_get,
    .poll = t_poll,
    .event_fd = t_event_fd,
    .arm = t_arm,
    .describe = t_describe,
};

/* ------------------------------------------------------------------------------------------------ the net */
struct sim_net *sim_net_create(const struct kvf_env *env)
{
    struct sim_net *net = calloc(1, sizeof *net);
    if (net)
        net->env = env;
    return net;
}

void sim_net_destroy(struct sim_net *net)
{
    while (net->wire) {
        struct event *e = net->wire;
        net->wire = e->next;
        free(e->payload);
        free(e);
    }
    for (unsigned i = 0; i < net->n_regions; i++) {
        for (unsigned p = 0; p < net->regions[i]->n; p++)
            if (net->regions[i]->mapped[p])
                munmap(net->regions[i]->memory[p], net->regions[i]->pieces[p].bytes);
        free(net->regions[i]);
    }
    for (unsigned i = 0; i < net->n_nodes; i++) {
        assert(net->nodes[i]->destroyed);
        free(net->nodes[i]);
    }
    free(net);
}

struct kvf_transport *sim_net_add(struct sim_net *net, const char *label, enum kvf_way way)
{
    assert(net->n_nodes < SIM_NODES_MAX);
    struct sim_node *node = must(calloc(1, sizeof *node));
    node->transport.ops = &sim_ops;
    node->net = net;
    node->number = net->n_nodes;
    snprintf(node->label, sizeof node->label, "%s", label);
    node->way = way;
    node->payload_max = 64 << 10;
    node->sends_max = 64;
    net->nodes[net->n_nodes++] = node;
    return &node->transport;
}

void sim_net_limits(struct kvf_transport *t, size_t payload_max, unsigned sends_max)
{
    node_of(t)->payload_max = payload_max;
    node_of(t)->sends_max = sends_max;
}

struct sim_path *sim_net_path(struct kvf_transport *from, struct kvf_transport *to)
{
    return path_of(node_of(from), node_of(to));
}

void sim_net_partition(struct kvf_transport *a, struct kvf_transport *b, bool cut)
{
    sim_net_path(a, b)->cut = cut;
    sim_net_path(b, a)->cut = cut;
}

void sim_net_kill(struct kvf_transport *t, bool tell)
{
    struct sim_node *node = node_of(t);
    struct sim_net *net = node->net;
    node->dead = true;
    take_off(net, NULL, node, NULL, KVF_CANCELLED);
    if (!tell)
        return;
    take_off(net, NULL, NULL, node, KVF_ERR_PEER_LOST);
    for (unsigned i = 0; i < net->n_nodes; i++) {
        for (struct kvf_link *link = net->nodes[i]->links; link; link = link->next)
            link->failed |= link->to == node;
    }
}

void sim_net_watch(struct sim_net *net, const struct sim_net_watch *watch)
{
    net->watch = watch;
}

unsigned sim_net_number(struct kvf_transport *t)
{
    return node_of(t)->number;
}

void sim_net_break(struct kvf_transport *from, struct kvf_transport *to)
{
    for (struct kvf_link *link = node_of(from)->links; link; link = link->next) {
        if (link->to != node_of(to) || link->failed)
            continue;
        link->failed = true;
        take_off(node_of(from)->net, link, NULL, NULL, KVF_ERR_PEER_LOST);
        return;
    }
}

void sim_net_inject(struct kvf_transport *from, struct kvf_transport *to, const void *header, size_t header_bytes,
                    const void *payload, size_t payload_bytes)
{
    struct sim_node *node = node_of(from);
    struct event *e = must(calloc(1, sizeof *e));
    assert(header_bytes <= KVF_FRAME_HEADER_MAX);
    e->due_ns = kvf_now(node->net->env) + sim_net_path(from, to)->delay_ns;
    e->from = node;
    e->to = node_of(to);
    if (header_bytes)
        memcpy(e->header, header, header_bytes);
    e->header_bytes = header_bytes;
    e->payload = must(malloc(payload_bytes + 1));
    if (payload_bytes)
        memcpy(e->payload, payload, payload_bytes);
    e->parts[0] = (struct iovec){.iov_base = e->payload, .iov_len = payload_bytes};
    e->n_parts = 1;
    put_on_wire(node->net, e);
}
