/* The public face of a node: open, close, models, statistics, and the reactor thread that drives the core. */
#include "base/spin.h"
#include "node/dram.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CLOSE_NS (2 * KVF_SEC)
#define STALL_NS (500 * KVF_MS) /* a turn of the reactor this long endangers leases: it is logged */

/* ---------------------------------------------------------------- the reactor */

/* API threads that want the lock get it before the reactor takes it again. */
static void let_others_in(struct kvf_core *core)
{
    for (unsigned i = 0; atomic_load(&core->waiting) > 0 && i < 100; i++)
        sched_yield();
}

static void sleep_until(struct kvf_node *node, uint64_t next_ns)
{
    struct kvf_core *core = node->core;
    struct epoll_event events[8];
    uint64_t now = kvf_now(core->env), value;
    uint64_t ms = next_ns > now ? (next_ns - now + KVF_MS - 1) / KVF_MS : 0;
    epoll_wait(node->epoll_fd, events, 8, (int)(ms < 100 ? ms : 100));
    if (read(core->wake_fd, &value, sizeof value) < 0 && errno != EAGAIN)
        kvf_log_error(&core->log, "reading the reactor's event fd: %s", strerror(errno));
}

static void *reactor_run(void *arg)
{
    struct kvf_node *node = arg;
    struct kvf_core *core = node->core;
    struct kvf_spin spin;
    kvf_spin_init(&spin, core->settings.reactor_spin_ns, kvf_now(core->env));
    while (!atomic_load(&node->stop)) {
        uint64_t start = kvf_now(core->env);
        pthread_mutex_lock(&core->lock);
        uint64_t locked = kvf_now(core->env);
        unsigned events = kvf_core_poll(core);
        uint64_t now = kvf_now(core->env), next = kvf_core_next_timer(core);
        if (events)
            kvf_latency_add(&core->latencies, KVF_LATENCY_REACTOR_TURN, now - locked);
        if (now - start > STALL_NS)
            kvf_log_warn(&core->log,
                         "the reactor stalled: %llu ms for the lock, %llu ms in one turn; is the machine overloaded, or the disk?",
                         (unsigned long long)((locked - start) / KVF_MS), (unsigned long long)((now - locked) / KVF_MS));
        bool tired = kvf_spin_tired(&spin, events, start, now);
        bool sleep = tired && (!core->transport || !core->fabric || core->transport->ops->arm(core->transport));
        pthread_mutex_unlock(&core->lock);
        let_others_in(core);
        if (sleep)
            sleep_until(node, next);
    }
    return NULL;
}

static bool watch_fd(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    return fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

static enum kvf_status reactor_start(struct kvf_node *node)
{
    struct kvf_core *core = node->core;
    node->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    core->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (node->epoll_fd < 0 || core->wake_fd < 0 || !watch_fd(node->epoll_fd, core->wake_fd))
        return KVF_ERR_NO_MEMORY;
    bool watched = !core->transport || watch_fd(node->epoll_fd, core->transport->ops->event_fd(core->transport));
    watched = watched && (!core->ssd || watch_fd(node->epoll_fd, kvf_ssd_event_fd(core->ssd)));
    watched = watched && (!core->store || watch_fd(node->epoll_fd, core->store->ops->event_fd(core->store)));
    if (!watched || pthread_create(&node->reactor, NULL, reactor_run, node) != 0)
        return KVF_ERR_NO_MEMORY;
    node->reactor_started = true;
    return KVF_OK;
}

/* ---------------------------------------------------------------- open */

struct parts {
    struct kvf_core_parts core;
    char error[KVF_CONFIG_TEXT_MAX], disk_error[KVF_CONFIG_TEXT_MAX];
};

static enum kvf_status secret_open(const struct kvf_settings *s, struct parts *p)
{
    if (!s->secret_file[0])
        return KVF_OK;
    enum kvf_status st = kvf_secret_create(&p->core.secret);
    return st == KVF_OK ? kvf_secret_load(p->core.secret, s->secret_file, p->error, sizeof p->error) : st;
}

static enum kvf_status network_open(const struct kvf_settings *s, struct kvf_log *log, struct kvf_counters *counters,
                                    struct parts *p)
{
    enum kvf_status st = secret_open(s, p);
    if (st != KVF_OK || !s->etcd_endpoints[0])
        return st; /* without etcd it is alone: nobody to speak with */
    struct kvf_store_config store = {.endpoints = s->etcd_endpoints, .ca = s->etcd_ca, .cert = s->etcd_cert, .key = s->etcd_key,
                                     .timeout_ns = s->etcd_timeout_ns, .log = log, .counters = counters};
    st = kvf_store_etcd_create(&store, &p->core.store);
    if (st != KVF_OK) {
        snprintf(p->error, sizeof p->error, "preparing to speak with etcd at %.200s (etcd.endpoints): %s (%s)", s->etcd_endpoints,
                 kvf_status_text(st), kvf_status_name(st));
        return st;
    }
    if (strcmp(s->fabric_transport, "none") == 0)
        return KVF_OK;
    struct kvf_transport_config transport = {.kind = s->fabric_transport,
                                             .interface = s->fabric_interface,
                                             .gid = s->fabric_gid,
                                             .segment_bytes = s->fabric_segment,
                                             .peers_max = (unsigned)s->fabric_peers_max,
                                             .secret = kvf_secret_present(p->core.secret),
                                             .log = log};
    st = kvf_transport_ucx_create(&transport, &p->core.transport);
    if (st == KVF_ERR_UNSUPPORTED && strcmp(s->fabric_transport, "auto") == 0)
        return KVF_OK; /* a build without UCX: a node without peers */
    if (st != KVF_OK)
        snprintf(
            p->error, sizeof p->error,
            "starting the fabric (fabric.transport = %.20s, fabric.interface = %.100s): %s (%s); `kvf info -d` tells what is there",
            s->fabric_transport, s->fabric_interface, kvf_status_text(st), kvf_status_name(st));
    return st;
}

static void parts_close(struct parts *p)
{
    if (p->core.disk)
        p->core.disk->ops->close(p->core.disk);
    if (p->core.transport)
        p->core.transport->ops->destroy(p->core.transport);
    kvf_secret_destroy(p->core.secret);
    if (p->core.store)
        p->core.store->ops->destroy(p->core.store);
}

static void host_identity(char *host, size_t size)
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!f || !fgets(host, (int)size, f))
        snprintf(host, size, "unknown");
    host[strcspn(host, "\n")] = 0;
    if (f)
        fclose(f);
}

/* Joins the cluster; *error gets one line. */
static enum kvf_status join(struct kvf_node *node, char *error, size_t size)
{
    struct kvf_core *core = node->core;
    const struct kvf_settings *s = &core->settings;
    struct kvf_member m = {
        .incarnation = core->incarnation, .lend_bytes = core->lent ? s->lend_bytes : 0, .dram_bytes = s->dram_bytes};
    memcpy(m.name, core->name, sizeof m.name);
    memcpy(m.admin, core->admin_address, sizeof m.admin);
    host_identity(m.host, sizeof m.host);
    m.address_bytes = sizeof m.address;
    kvf_core_lock(core);
    enum kvf_status st = KVF_OK;
    if (core->transport)
        st = core->transport->ops->address(core->transport, m.address, &m.address_bytes);
    else
        m.address_bytes = 0;
    if (st == KVF_OK)
        st = kvf_coord_join(core->coord, &m, !s->etcd_required);
    kvf_core_wake(core);
    uint64_t deadline = kvf_deadline(kvf_now(core->env), s->etcd_timeout_ns + s->lease_ttl_ns + 2 * KVF_SEC);
    while (st == KVF_OK && s->etcd_required && !core->join_ended)
        if (!kvf_core_wait(core, deadline))
            st = KVF_ERR_STORE;
    if (st == KVF_OK && s->etcd_required)
        st = core->join_status;
    kvf_core_unlock(core);
    if (st == KVF_ERR_EXISTS)
        snprintf(
            error, size,
            "joining the cluster as %s: a living node has this name (ERR_EXISTS); give another node.name, or wait for its lease",
            core->name);
    else if (st != KVF_OK)
        snprintf(error, size, "joining the cluster through etcd at %.200s: %s (%s); is it running, and etcd.endpoints right?",
                 s->etcd_endpoints, kvf_status_text(st), kvf_status_name(st));
    return st;
}

static enum kvf_status start(struct kvf_node *node, const struct kvf_settings *s, char *error, size_t size)
{
    enum kvf_status st = reactor_start(node);
    if (st != KVF_OK) {
        snprintf(error, size, "starting the reactor thread: %s (%s)", kvf_status_text(st), kvf_status_name(st));
        return st;
    }
    st = kvf_attend_serve_start(node->core);
    if (st != KVF_OK) {
        snprintf(error, size, "starting the thread that attends for others: %s (%s)", kvf_status_text(st), kvf_status_name(st));
        return st;
    }
    if (s->admin_listen[0]) {
        st = kvf_admin_start(node, s->admin_listen, error, size, &node->admin);
        if (st != KVF_OK)
            return st;
        kvf_core_lock(node->core);
        kvf_admin_address(node->admin, node->core->admin_address, sizeof node->core->admin_address);
        kvf_core_unlock(node->core);
    }
    return node->core->coord ? join(node, error, size) : KVF_OK;
}

enum kvf_status kvf_node_open(struct kvf_config *config, struct kvf_node **out)
{
    if (!config || !out)
        return KVF_ERR_INVALID;
    const struct kvf_settings *s = kvf_config_settings(config);
    if (s->node_name[0] && !kvf_core_name_fine(s->node_name)) {
        kvf_config_fail(config, "node.name = %.80s: letters, digits, . _ - and at most 63 of them (ERR_CONFIG)", s->node_name);
        return KVF_ERR_CONFIG;
    }
    struct kvf_node *node = calloc(1, sizeof *node);
    struct parts *p = calloc(1, sizeof *p);
    if (!node || !p) {
        free(node);
        free(p);
        kvf_config_fail(config, "opening a node: out of memory (ERR_NO_MEMORY)");
        return KVF_ERR_NO_MEMORY;
    }
    node->epoll_fd = -1;
    kvf_log_init(&node->log, s->node_name, KVF_LOG_WARN, stderr);
    p->core.env = kvf_env_real();
    p->core.log = stderr;
    enum kvf_status st = kvf_area_open(s, &node->log, p->disk_error, sizeof p->disk_error, &p->core.disk);
    if (st != KVF_OK && !s->ssd_required) {
        p->core.disk_status = st;
        p->core.disk_error = p->disk_error[0] ? p->disk_error : kvf_status_text(st);
        st = KVF_OK;
    }
    if (st != KVF_OK)
        memcpy(p->error, p->disk_error, sizeof p->error);
    else
        st = network_open(s, &node->log, &node->store_counters, p);
    if (st != KVF_OK)
        parts_close(p);
    else
        st = kvf_core_create(s, &p->core, p->error, sizeof p->error, &node->core);
    if (st == KVF_OK)
        st = start(node, s, p->error, sizeof p->error);
    if (st != KVF_OK) {
        kvf_config_fail(config, "%s", p->error[0] ? p->error : kvf_status_text(st));
        kvf_node_close(node);
    } else {
        *out = node;
    }
    free(p);
    return st;
}

/* Leaves the cluster, so that peers need not wait for the lease. */
static void leave(struct kvf_core *core)
{
    kvf_core_lock(core);
    if (core->coord) {
        uint64_t deadline = kvf_deadline(kvf_now(core->env), CLOSE_NS);
        kvf_coord_leave(core->coord);
        kvf_core_wake(core);
        while (!kvf_coord_left(core->coord) && kvf_core_wait(core, deadline))
            ;
    }
    kvf_core_unlock(core);
}

void kvf_node_close(struct kvf_node *node)
{
    if (!node)
        return;
    if (node->admin)
        kvf_admin_stop(node->admin);
    if (node->reactor_started) {
        leave(node->core);
        atomic_store(&node->stop, true);
        kvf_core_wake(node->core);
        pthread_join(node->reactor, NULL);
    }
    if (node->core) {
        kvf_attend_serve_stop(node->core);
        int wake_fd = node->core->wake_fd;
        node->core->wake_fd = -1;
        kvf_core_destroy(node->core);
        if (wake_fd >= 0)
            close(wake_fd);
    }
    if (node->epoll_fd >= 0)
        close(node->epoll_fd);
    free(node);
}

/* ---------------------------------------------------------------- models and statistics */

struct model_answer {
    bool done, left;
    enum kvf_status status;
};

static void model_answered(void *arg, enum kvf_status status)
{
    struct model_answer *a = arg;
    if (a->left) {
        free(a);
        return;
    }
    a->done = true;
    a->status = status;
}

enum kvf_status kvf_model_open(struct kvf_node *node, const struct kvf_model_desc *desc, struct kvf_model **out)
{
    if (!node || !desc || !out)
        return KVF_ERR_INVALID;
    struct kvf_core *core = node->core;
    struct kvf_model *model = NULL;
    struct model_answer *a = calloc(1, sizeof *a);
    if (!a)
        return KVF_ERR_NO_MEMORY;
    kvf_core_lock(core);
    enum kvf_status st = kvf_model_add(core, desc, &model);
    bool asked = st == KVF_OK && core->coord;
    if (asked)
        st = kvf_coord_model_register(core->coord, desc, model->fingerprint, model_answered, a);
    kvf_core_wake(core);
    uint64_t deadline = kvf_deadline(kvf_now(core->env), core->settings.etcd_timeout_ns + KVF_SEC);
    while (asked && st == KVF_OK && !a->done)
        if (!kvf_core_wait(core, deadline))
            st = KVF_ERR_STORE;
    if (asked && a->done)
        st = a->status;
    if (st == KVF_ERR_STORE && asked && !a->done)
        a->left = true;
    else
        free(a);
    kvf_core_unlock(core);
    if (st == KVF_OK)
        *out = model;
    return st;
}

uint64_t kvf_model_fingerprint(const struct kvf_model *model)
{
    return model->fingerprint;
}

const char *kvf_node_name(const struct kvf_node *node)
{
    return node->core->name;
}

enum kvf_status kvf_node_status_json(struct kvf_node *node, char **out)
{
    if (!node || !out)
        return KVF_ERR_INVALID;
    char *text = kvf_status_json(node->core);
    if (!text)
        return KVF_ERR_NO_MEMORY;
    *out = text;
    return KVF_OK;
}

enum kvf_status kvf_node_stats(struct kvf_node *node, struct kvf_node_stats *out)
{
    if (!node || !out)
        return KVF_ERR_INVALID;
    struct kvf_core *core = node->core;
    const struct kvf_counters *n = &core->counters;
    struct kvf_node_stats s = {.blocks_sealed = kvf_counted(&n->blocks_sealed), .blocks_verified = kvf_counted(&n->blocks_verified),
                               .blocks_corrupt = kvf_counted(&n->blocks_corrupt), .blocks_lost = kvf_counted(&n->blocks_lost)};
    const _Atomic uint64_t *const chunks[KVF_TIER_COUNT] = {&n->gpu_chunks_read, &n->dram_chunks_read, &n->remote_chunks_read,
                                                            &n->ssd_chunks_read, &n->peer_chunks_read};
    const _Atomic uint64_t *const bytes[KVF_TIER_COUNT] = {&n->gpu_bytes_read, &n->dram_bytes_read, &n->remote_bytes_read,
                                                           &n->ssd_bytes_read, &n->peer_bytes_read};
    kvf_core_lock(core);
    for (int t = 0; t < KVF_TIER_COUNT; t++) {
        s.tier[t].blocks = core->tier_blocks[t];
        s.tier[t].bytes = core->tier_bytes[t];
        s.tier[t].chunks_read = kvf_counted(chunks[t]);
        s.tier[t].bytes_read = kvf_counted(bytes[t]);
    }
    struct kvf_cache_stats device;
    if (kvf_device_stats(core, &device))
        s.tier[KVF_TIER_GPU].capacity_bytes = device.capacity_bytes;
    s.tier[KVF_TIER_DRAM].capacity_bytes = kvf_dram_capacity(core);
    if (core->ssd) {
        struct kvf_ssd_stats ssd;
        kvf_ssd_stats(core->ssd, &ssd);
        s.tier[KVF_TIER_SSD].capacity_bytes = ssd.capacity_bytes;
    }
    for (unsigned i = 0; i < core->settings.fabric_peers_max; i++)
        s.tier[KVF_TIER_REMOTE].capacity_bytes += core->peers[i].up ? core->peers[i].member.lend_bytes : 0;
    kvf_core_unlock(core);
    *out = s;
    return KVF_OK;
}
