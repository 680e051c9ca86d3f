/* The cluster as `kvf` sees it. */
#include "cli/view.h"

#include "base/env.h"
#include "coordinator/http.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct kvf_view {
    uint64_t deadline_ns;
    struct kvf_log log;
    struct kvf_counters counters;
    struct kvf_store *store;
    struct kvf_coord *coord;
    struct kvf_http *http;
    bool join_ended;
    enum kvf_status join_status;
    char leader[64];
    const struct kvf_member **members;
    const struct kvf_placement **placements;
    unsigned n_members, n_placements;
};

static void on_joined(void *arg, enum kvf_status status)
{
    struct kvf_view *view = arg;
    view->join_ended = true;
    view->join_status = status;
}

static void on_leader(void *arg, const char *name)
{
    struct kvf_view *view = arg;
    snprintf(view->leader, sizeof view->leader, "%s", name);
}

static void drive(struct kvf_view *view)
{
    while (!view->join_ended) {
        uint64_t now = kvf_now(kvf_env_real()), next = kvf_coord_next_timer(view->coord);
        if (now >= view->deadline_ns)
            return;
        if (kvf_coord_poll(view->coord))
            continue;
        if (next > view->deadline_ns)
            next = view->deadline_ns;
        uint64_t wait_ms = next > now ? (next - now) / KVF_MS + 1 : 0;
        struct pollfd fd = {.fd = view->store->ops->event_fd(view->store), .events = POLLIN};
        poll(&fd, fd.fd >= 0, (int)(wait_ms > 100 ? 100 : wait_ms)); /* 100: whatever the fd may have missed */
    }
}

static int member_order(const void *a, const void *b)
{
    return strcmp((*(const struct kvf_member *const *)a)->name, (*(const struct kvf_member *const *)b)->name);
}

static int placement_order(const void *a, const void *b)
{
    uint64_t x = (*(const struct kvf_placement *const *)a)->id, y = (*(const struct kvf_placement *const *)b)->id;
    return x < y ? -1 : x > y;
}

/* Nothing polls after the join, so the coordinator's records stay where they are. */
static bool sort_out(struct kvf_view *view)
{
    while (kvf_coord_member_at(view->coord, view->n_members))
        view->n_members++;
    while (kvf_coord_placement_at(view->coord, view->n_placements))
        view->n_placements++;
    view->members = calloc(view->n_members + 1, sizeof *view->members);
    view->placements = calloc(view->n_placements + 1, sizeof *view->placements);
    if (!view->members || !view->placements)
        return false;
    for (unsigned i = 0; i < view->n_members; i++)
        view->members[i] = kvf_coord_member_at(view->coord, i);
    for (unsigned i = 0; i < view->n_placements; i++)
        view->placements[i] = kvf_coord_placement_at(view->coord, i);
    qsort(view->members, view->n_members, sizeof *view->members, member_order);
    qsort(view->placements, view->n_placements, sizeof *view->placements, placement_order);
    return true;
}

static enum kvf_status connect_store(struct kvf_view *view, const struct kvf_cli *cli)
{
    const struct kvf_settings *settings = kvf_config_settings(cli->config);
    struct kvf_store_config store = {
        .endpoints = settings->etcd_endpoints,
        .ca = settings->etcd_ca,
        .cert = settings->etcd_cert,
        .key = settings->etcd_key,
        .timeout_ns = settings->etcd_timeout_ns < cli->timeout_ns ? settings->etcd_timeout_ns : cli->timeout_ns,
        .log = &view->log,
        .counters = &view->counters,
    };
    enum kvf_status status = kvf_store_etcd_create(&store, &view->store);
    if (status != KVF_OK)
        return status;
    struct kvf_coord_config coord = {
        .env = kvf_env_real(),
        .store = view->store,
        .log = &view->log,
        .prefix = settings->etcd_prefix,
        .lease_ttl_ns = settings->lease_ttl_ns,
        .handler = {.arg = view, .joined = on_joined, .leader = on_leader},
    };
    status = kvf_coord_create(&coord, &view->coord);
    return status == KVF_OK ? kvf_coord_join(view->coord, NULL, false) : status;
}

int kvf_view_open(struct kvf_cli *cli, struct kvf_view **out)
{
    const struct kvf_settings *settings = kvf_config_settings(cli->config);
    struct kvf_view *view = calloc(1, sizeof *view);
    if (!view)
        return kvf_cli_fail(cli, KVF_EXIT_FAILED, "out of memory (ERR_NO_MEMORY)");
    view->deadline_ns = kvf_deadline(kvf_now(kvf_env_real()), cli->timeout_ns);
    /* Silent unless asked for: the outcome is told in one line below. */
    kvf_log_init(&view->log, "kvf", KVF_LOG_DEBUG, strcmp(settings->log_level, "debug") ? NULL : stderr);
    view->join_status = KVF_ERR_DEADLINE;
    enum kvf_status status = connect_store(view, cli);
    if (status == KVF_OK) {
        drive(view);
        status = view->join_status;
    }
    if (status == KVF_OK && !sort_out(view))
        status = KVF_ERR_NO_MEMORY;
    if (status == KVF_OK)
        status = kvf_http_create(&(struct kvf_http_tls){0}, &view->http);
    if (status != KVF_OK) {
        bool absent = status == KVF_ERR_STORE || status == KVF_ERR_DEADLINE;
        kvf_view_close(view);
        return kvf_cli_fail(cli, absent ? KVF_EXIT_CLUSTER : KVF_EXIT_FAILED,
                            absent ? "reading the cluster from etcd at %s: no answer (%s); is etcd running? --etcd names it"
                                   : "reading the cluster from etcd at %s: %s",
                            settings->etcd_endpoints, kvf_status_name(status));
    }
    *out = view;
    return KVF_EXIT_DONE;
}

void kvf_view_close(struct kvf_view *view)
{
    if (!view)
        return;
    kvf_coord_destroy(view->coord); /* before the store, which it still tells that it stops watching */
    if (view->store)
        view->store->ops->destroy(view->store);
    if (view->http)
        kvf_http_destroy(view->http);
    free(view->members);
    free(view->placements);
    free(view);
}

const struct kvf_member *kvf_view_member_at(const struct kvf_view *view, unsigned index)
{
    return index < view->n_members ? view->members[index] : NULL;
}

const struct kvf_member *kvf_view_member(const struct kvf_view *view, const char *name)
{
    for (unsigned i = 0; i < view->n_members; i++)
        if (!strcmp(view->members[i]->name, name))
            return view->members[i];
    return NULL;
}

unsigned kvf_view_members(const struct kvf_view *view)
{
    return view->n_members;
}

const struct kvf_placement *kvf_view_placement_at(const struct kvf_view *view, unsigned index)
{
    return index < view->n_placements ? view->placements[index] : NULL;
}

const struct kvf_placement *kvf_view_placement(const struct kvf_view *view, uint64_t id)
{
    for (unsigned i = 0; i < view->n_placements; i++)
        if (view->placements[i]->id == id)
            return view->placements[i];
    return NULL;
}

unsigned kvf_view_placements(const struct kvf_view *view)
{
    return view->n_placements;
}

const char *kvf_view_leader(const struct kvf_view *view)
{
    return view->leader;
}

uint64_t kvf_view_time_left(const struct kvf_view *view, uint64_t max_ns)
{
    uint64_t now = kvf_now(kvf_env_real());
    uint64_t left = view->deadline_ns > now ? view->deadline_ns - now : 0;
    return left < max_ns ? left : max_ns;
}

enum kvf_status kvf_view_request(struct kvf_view *view, const struct kvf_member *member, const char *path, const char *body,
                                 uint64_t timeout_ns, json_t **out, long *code, char *error, size_t error_size)
{
    if (!*member->admin) {
        snprintf(error, error_size, "it has no admin interface (admin.listen is empty)");
        return KVF_ERR_UNSUPPORTED;
    }
    if (!timeout_ns) {
        snprintf(error, error_size, "no time is left; --timeout gives more");
        return KVF_ERR_DEADLINE;
    }
    char url[256], *answer = NULL;
    size_t bytes = 0;
    snprintf(url, sizeof url, "http://%s%s", member->admin, path);
    *error = 0;
    enum kvf_status status = kvf_http_request(view->http, url, body, timeout_ns, code, &answer, &bytes, error, error_size);
    if (status != KVF_OK) {
        if (!*error)
            snprintf(error, error_size, "no answer from %s", member->admin);
        return status;
    }
    json_error_t wrong;
    json_t *root = json_loadb(answer, bytes, 0, &wrong);
    kvf_free(answer);
    if (!root) {
        snprintf(error, error_size, "%s answered HTTP %ld and no JSON", member->admin, *code);
        return KVF_ERR_PEER_PROTOCOL;
    }
    *out = root;
    return KVF_OK;
}
