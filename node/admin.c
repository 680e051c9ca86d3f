/* The admin interface: HTTP for `kvf` and for Prometheus, by libmicrohttpd, which has a thread per connection of its own.
 * So a move that waits holds up its own connection only; status still answers.
 *
 *   GET  /healthz       "ok"
 *   GET  /metrics       Prometheus text
 *   GET  /v1/status     kvf_status_json
 *   GET  /v1/sessions   kvf_sessions_json
 *   GET  /v1/peers      kvf_peers_json
 *   POST /v1/move       {"session": "7" or "0x7", "node": "b", "timeout_ms": 30000}
 *                       -> {"status":"OK","stop_ns":..,"bytes_before_switch":..,"bytes_after_switch":..,"epoch":..}
 *   POST /v1/lend       {"bytes": 1048576, "within_ms": 5000}: others may have no more of lent memory; answers when that is so
 *                       -> {"status":"OK","limit_bytes":..,"lent_bytes":..,"revoked_blocks":..}
 *   POST /v1/drain      {"on": true, "within_ms": 60000}: nothing more of others is taken on, and what there is goes; answers at
 *                       once: /v1/status tells how far it is. {"on": false} ends it
 *                       -> {"status":"OK","draining":true}
 * Errors: HTTP 4xx or 5xx with {"error":"ERR_NOT_FOUND","message":"one sentence"}. */
#include "node/internal.h"
#include "node/peers.h"
#include "node/drain.h"
#include "node/reclaim.h"

#include <errno.h>
#include <jansson.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 16
#define IDLE_SECONDS 10
#define BODY_MAX (64u * 1024)
#define MOVE_MS_DEFAULT 30000
#define MOVE_MS_MAX 600000

/* libmicrohttpd's stop waits for its threads, so `stopping` refuses moves that would begin meanwhile. */
struct kvf_admin {
    struct kvf_node *node;
    struct MHD_Daemon *daemon;
    char address[64];
    _Atomic bool stopping;
};

/* One request on its way in. */
struct request {
    char *body; /* [BODY_MAX + 1], of a POST only */
    size_t bytes;
    bool too_large;
};

/* ---------------------------------------------------------------- answers */

/* Sends `text`, which is freed; NULL is out of memory. */
static enum MHD_Result answer(struct MHD_Connection *connection, unsigned code, const char *type, const char *allow, char *text)
{
    if (!text)
        return MHD_NO; /* closes the connection */
    struct MHD_Response *response = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
    if (!response) {
        free(text);
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (allow)
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, allow);
    enum MHD_Result queued = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return queued;
}

static enum MHD_Result answer_json(struct MHD_Connection *connection, unsigned code, json_t *root)
{
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return answer(connection, code, "application/json", NULL, text);
}

static enum MHD_Result answer_error(struct MHD_Connection *connection, unsigned code, enum kvf_status status, const char *message)
{
    return answer_json(connection, code, json_pack("{s:s, s:s}", "error", kvf_status_name(status), "message", message));
}

static enum MHD_Result answer_method(struct MHD_Connection *connection, const char *allow)
{
    json_t *root = json_pack("{s:s, s:s+}", "error", "ERR_INVALID", "message", "this path takes ", allow);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return answer(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "application/json", allow, text);
}

static unsigned http_code(enum kvf_status status)
{
    switch (status) {
    case KVF_OK: return MHD_HTTP_OK;
    case KVF_ERR_INVALID: return MHD_HTTP_BAD_REQUEST;
    case KVF_ERR_NOT_FOUND: return MHD_HTTP_NOT_FOUND;
    case KVF_MOVED:
    case KVF_ERR_EXISTS:
    case KVF_ERR_BUSY:
    case KVF_ERR_STATE:
    case KVF_ERR_STALE: return MHD_HTTP_CONFLICT;
    case KVF_ERR_DEADLINE: return MHD_HTTP_GATEWAY_TIMEOUT;
    case KVF_ERR_STORE:
    case KVF_ERR_CLOSED: return MHD_HTTP_SERVICE_UNAVAILABLE;
    default: break;
    }
    return kvf_status_group(status) == KVF_GROUP_PEER ? MHD_HTTP_BAD_GATEWAY : MHD_HTTP_INTERNAL_SERVER_ERROR;
}

/* ---------------------------------------------------------------- move */

struct move_order {
    uint64_t session;
    const char *node; /* in the parsed body */
    uint64_t timeout_ms;
};

/* "7", "0x7" or the number 7: 1..2^63-1. */
static bool parse_session(const json_t *value, uint64_t *id)
{
    if (json_is_integer(value)) {
        json_int_t number = json_integer_value(value);
        *id = (uint64_t)number;
        return number > 0;
    }
    const char *text = json_string_value(value);
    bool hex = text && text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    const char *digits = hex ? text + 2 : text;
    const char *allowed = hex ? "0123456789abcdefABCDEF" : "0123456789";
    if (!digits || !*digits || digits[strspn(digits, allowed)] || strlen(digits) > 20)
        return false;
    errno = 0;
    *id = strtoull(digits, NULL, hex ? 16 : 10);
    return !errno && *id && *id <= INT64_MAX;
}

static bool is_name(const char *text)
{
    size_t length = text ? strlen(text) : 0;
    return length && length < KVF_NODE_NAME_MAX &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == length;
}

/* NULL, or what is wrong with the body. */
static const char *parse_move(const json_t *root, struct move_order *order)
{
    if (!json_is_object(root))
        return "the body is not a JSON object";
    const char *key;
    json_t *value, *timeout = json_object_get(root, "timeout_ms");
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "session") && strcmp(key, "node") && strcmp(key, "timeout_ms"))
            return "the body has a key other than session, node, timeout_ms";
    }
    if (!parse_session(json_object_get(root, "session"), &order->session))
        return "session is not 1..2^63-1, decimal or 0x and hex digits";
    order->node = json_string_value(json_object_get(root, "node"));
    if (!is_name(order->node))
        return "node is not a node's name";
    order->timeout_ms = MOVE_MS_DEFAULT;
    if (!timeout)
        return NULL;
    json_int_t ms = json_integer_value(timeout); /* 0 for what is no integer */
    if (ms < 1 || ms > MOVE_MS_MAX)
        return "timeout_ms is not 1..600000";
    order->timeout_ms = (uint64_t)ms;
    return NULL;
}

static enum MHD_Result run_move(struct kvf_admin *admin, struct MHD_Connection *connection, const struct move_order *order)
{
    if (atomic_load(&admin->stopping))
        return answer_error(connection, MHD_HTTP_SERVICE_UNAVAILABLE, KVF_ERR_CLOSED, "the node is closing");
    /* While the move runs nothing travels on the connection, and that is no reason to close it. */
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
    struct kvf_move_report report = {0};
    enum kvf_status status = kvf_node_move(admin->node, order->session, order->node, order->timeout_ms * KVF_MS, &report);
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, (unsigned)IDLE_SECONDS);
    if (status != KVF_OK)
        return answer_error(connection, http_code(status), status, kvf_status_text(status));
    return answer_json(connection, MHD_HTTP_OK,
                       json_pack("{s:s, s:I, s:I, s:I, s:I}", "status", kvf_status_name(status),
                                 "stop_ns", (json_int_t)report.stop_ns,
                                 "bytes_before_switch", (json_int_t)report.bytes_before_switch,
                                 "bytes_after_switch", (json_int_t)report.bytes_after_switch,
                                 "epoch", (json_int_t)report.epoch));
}

static enum MHD_Result serve_move(struct kvf_admin *admin, struct MHD_Connection *connection, const json_t *root)
{
    struct move_order order;
    const char *wrong = parse_move(root, &order);
    return wrong ? answer_error(connection, MHD_HTTP_BAD_REQUEST, KVF_ERR_INVALID, wrong) : run_move(admin, connection, &order);
}

/* ---------------------------------------------------------------- lend */

struct lend_order {
    uint64_t bytes, within_ns;
};

/* NULL, or what is wrong with the body. */
static const char *parse_lend(const struct kvf_core *core, const json_t *root, struct lend_order *order)
{
    const char *key;
    json_t *value, *within = json_object_get(root, "within_ms"), *bytes = json_object_get(root, "bytes");
    if (!json_is_object(root))
        return "the body is not a JSON object";
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "bytes") && strcmp(key, "within_ms"))
            return "the body has a key other than bytes, within_ms";
    }
    if (!json_is_integer(bytes) || json_integer_value(bytes) < 0)
        return "bytes is not a number of bytes";
    order->bytes = (uint64_t)json_integer_value(bytes);
    order->within_ns = core->settings.lend_reclaim_ns;
    if (!within)
        return NULL;
    json_int_t ms = json_integer_value(within); /* 0 for what is no integer */
    if (ms < 1 || ms > MOVE_MS_MAX)
        return "within_ms is not 1..600000";
    order->within_ns = (uint64_t)ms * KVF_MS;
    return NULL;
}

static enum MHD_Result serve_lend(struct kvf_admin *admin, struct MHD_Connection *connection, const json_t *root)
{
    struct lend_order order;
    struct kvf_reclaim_stats stats;
    const char *wrong = parse_lend(admin->node->core, root, &order);
    if (wrong)
        return answer_error(connection, MHD_HTTP_BAD_REQUEST, KVF_ERR_INVALID, wrong);
    if (atomic_load(&admin->stopping))
        return answer_error(connection, MHD_HTTP_SERVICE_UNAVAILABLE, KVF_ERR_CLOSED, "the node is closing");
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
    enum kvf_status status = kvf_reclaim_wait(admin->node->core, order.bytes, order.within_ns, &stats);
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, (unsigned)IDLE_SECONDS);
    if (status != KVF_OK)
        return answer_error(connection, http_code(status), status,
                            status == KVF_ERR_UNSUPPORTED ? "this node lends nothing (lend.bytes)" : kvf_status_text(status));
    return answer_json(connection, MHD_HTTP_OK,
                       json_pack("{s:s, s:I, s:I, s:I}", "status", kvf_status_name(status),
                                 "limit_bytes", (json_int_t)stats.limit_bytes, "lent_bytes", (json_int_t)stats.others_bytes,
                                 "revoked_blocks", (json_int_t)stats.revoked));
}

/* ---------------------------------------------------------------- drain */

static const char *parse_drain(const struct kvf_core *core, const json_t *root, bool *on, uint64_t *within_ns)
{
    const char *key;
    json_t *value, *within = json_object_get(root, "within_ms");
    if (!json_is_object(root))
        return "the body is not a JSON object";
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "on") && strcmp(key, "within_ms"))
            return "the body has a key other than on, within_ms";
    }
    if (!json_is_boolean(json_object_get(root, "on")))
        return "on is not true or false";
    *on = json_is_true(json_object_get(root, "on"));
    json_int_t ms = json_integer_value(within); /* 0 for what is no integer */
    if (within && (ms < 1 || ms > MOVE_MS_MAX))
        return "within_ms is not 1..600000";
    *within_ns = within ? (uint64_t)ms * KVF_MS : core->settings.lend_reclaim_ns;
    return NULL;
}

static enum MHD_Result serve_drain(struct kvf_admin *admin, struct MHD_Connection *connection, const json_t *root)
{
    bool on = false;
    uint64_t within_ns = 0;
    const char *wrong = parse_drain(admin->node->core, root, &on, &within_ns);
    if (wrong)
        return answer_error(connection, MHD_HTTP_BAD_REQUEST, KVF_ERR_INVALID, wrong);
    kvf_drain_set(admin->node->core, on, within_ns);
    return answer_json(connection, MHD_HTTP_OK, json_pack("{s:s, s:b}", "status", kvf_status_name(KVF_OK), "draining", on));
}

/* ---------------------------------------------------------------- requests */

static const struct order {
    const char *path;
    enum MHD_Result (*serve)(struct kvf_admin *admin, struct MHD_Connection *connection, const json_t *root);
} orders[] = {{"/v1/move", serve_move}, {"/v1/lend", serve_lend}, {"/v1/drain", serve_drain}};

static enum MHD_Result serve_order(struct kvf_admin *admin, struct MHD_Connection *connection, const struct request *request,
                                   const struct order *order)
{
    /* A page in a browser on this host could post here; browsers say where a page is from. */
    if (MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Origin"))
        return answer_error(connection, MHD_HTTP_FORBIDDEN, KVF_ERR_INVALID, "requests from web pages are refused");
    if (request->too_large)
        return answer_error(connection, MHD_HTTP_CONTENT_TOO_LARGE, KVF_ERR_INVALID, "the body is larger than 64 KiB");
    json_error_t error;
    json_t *root = json_loadb(request->body, request->bytes, JSON_REJECT_DUPLICATES, &error);
    enum MHD_Result result = root ? order->serve(admin, connection, root)
                                  : answer_error(connection, MHD_HTTP_BAD_REQUEST, KVF_ERR_INVALID, "the body is not JSON");
    json_decref(root);
    return result;
}

static char *health_text(struct kvf_core *core)
{
    return strdup("ok\n");
}

static const struct page {
    const char *path, *type;
    char *(*text)(struct kvf_core *core);
} pages[] = {
    {"/v1/status", "application/json", kvf_status_json},
    {"/v1/sessions", "application/json", kvf_sessions_json},
    {"/v1/peers", "application/json", kvf_peers_json},
    {"/metrics", "text/plain; version=0.0.4; charset=utf-8", kvf_metrics_text},
    {"/healthz", "text/plain; charset=utf-8", health_text},
};

/* libmicrohttpd calls this when the header is in, for every piece of the body, and at the end with no piece. */
static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *path, const char *method,
                                  const char *version, const char *data, size_t *data_bytes, void **state)
{
    struct kvf_admin *admin = arg;
    struct request *request = *state;
    bool post = !strcmp(method, "POST");
    if (!request) {
        request = calloc(1, sizeof *request);
        if (request && post && !(request->body = malloc(BODY_MAX + 1))) {
            free(request);
            request = NULL;
        }
        *state = request;
        return request ? MHD_YES : MHD_NO;
    }
    if (*data_bytes) {
        if (request->body && request->bytes + *data_bytes <= BODY_MAX) {
            memcpy(request->body + request->bytes, data, *data_bytes);
            request->bytes += *data_bytes;
        } else {
            request->too_large = true; /* the rest is read and dropped */
        }
        *data_bytes = 0;
        return MHD_YES;
    }
    for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++)
        if (!strcmp(path, orders[i].path))
            return post ? serve_order(admin, connection, request, &orders[i]) : answer_method(connection, "POST");
    for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++) {
        if (strcmp(path, pages[i].path))
            continue;
        if (strcmp(method, "GET") && strcmp(method, "HEAD"))
            return answer_method(connection, "GET");
        return answer(connection, MHD_HTTP_OK, pages[i].type, NULL, pages[i].text(admin->node->core));
    }
    return answer_error(connection, MHD_HTTP_NOT_FOUND, KVF_ERR_NOT_FOUND,
                        "paths: /v1/status, /v1/sessions, /v1/peers, /v1/move, /v1/lend, /v1/drain, /metrics, /healthz");
}

static void on_end(void *arg, struct MHD_Connection *connection, void **state, enum MHD_RequestTerminationCode code)
{
    struct request *request = *state;
    if (request)
        free(request->body);
    free(request);
    *state = NULL;
}

/* ---------------------------------------------------------------- start and stop */

/* "host:port" or "[v6]:port" in two. */
static bool split_listen(const char *listen, char *host, size_t host_size, char *port, size_t port_size)
{
    const char *colon = strrchr(listen, ':');
    if (!colon || colon == listen)
        return false;
    size_t length = (size_t)(colon - listen);
    if (listen[0] == '[' && colon[-1] == ']') {
        listen++;
        length -= 2;
    } else if (memchr(listen, ':', length)) {
        return false; /* an IPv6 address without brackets */
    }
    char *end;
    unsigned long number = strtoul(colon + 1, &end, 10);
    if (!length || length >= host_size || !colon[1] || *end || number > 65535 || strspn(colon + 1, "0123456789") > 5)
        return false;
    memcpy(host, listen, length);
    host[length] = 0;
    snprintf(port, port_size, "%lu", number);
    return true;
}

/* The address that others can use: what was asked for, with the port that was had. A wildcard becomes the host's name. */
static void format_address(const char *host, const struct sockaddr_storage *bound, char *address, size_t size)
{
    unsigned port = ntohs(bound->ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)bound)->sin6_port
                                                       : ((const struct sockaddr_in *)bound)->sin_port);
    char name[56];
    bool any = !strcmp(host, "0.0.0.0") || !strcmp(host, "::") || !strcmp(host, "*");
    if (!any || gethostname(name, sizeof name))
        snprintf(name, sizeof name, "%.55s", host);
    name[sizeof name - 1] = 0;
    if (strchr(name, ':'))
        snprintf(address, size, "[%.50s]:%u", name, port);
    else
        snprintf(address, size, "%.55s:%u", name, port);
}

static int listen_at(const struct addrinfo *info, struct sockaddr_storage *bound)
{
    int yes = 1, fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t size = sizeof *bound;
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, info->ai_addr, info->ai_addrlen) || listen(fd, SOMAXCONN) ||
        getsockname(fd, (struct sockaddr *)bound, &size)) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

enum kvf_status kvf_admin_start(struct kvf_node *node, const char *listen, char *error, size_t error_size, struct kvf_admin **out)
{
    char host[64], port[8];
    enum kvf_status status = KVF_ERR_CONFIG;
    struct addrinfo *info = NULL, hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct sockaddr_storage bound = {0};
    if (!split_listen(listen, host, sizeof host, port, sizeof port)) {
        snprintf(error, error_size, "admin.listen = '%.80s' is not of the form host:port", listen);
        return KVF_ERR_CONFIG;
    }
    struct kvf_admin *admin = calloc(1, sizeof *admin);
    if (!admin)
        return KVF_ERR_NO_MEMORY;
    admin->node = node;
    int failed = getaddrinfo(!strcmp(host, "*") ? NULL : host, port, &hints, &info);
    if (failed) {
        snprintf(error, error_size, "admin.listen = '%.80s': %s", listen, gai_strerror(failed));
        goto free_admin;
    }
    int fd = listen_at(info, &bound);
    if (fd < 0) {
        status = errno == EADDRINUSE ? KVF_ERR_EXISTS : KVF_ERR_IO;
        snprintf(error, error_size, "cannot listen at admin.listen = '%.80s': %s", listen, strerror(errno));
        goto free_info;
    }
    format_address(host, &bound, admin->address, sizeof admin->address);
    admin->daemon = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_ITC, 0, NULL, NULL,
                                     on_request, admin, MHD_OPTION_LISTEN_SOCKET, (MHD_socket)fd,
                                     MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
                                     MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS,
                                     MHD_OPTION_NOTIFY_COMPLETED, on_end, NULL, MHD_OPTION_END);
    if (!admin->daemon) {
        status = KVF_ERR_NO_MEMORY;
        snprintf(error, error_size, "the HTTP server at %s cannot start its threads", admin->address);
        goto close_fd;
    }
    freeaddrinfo(info);
    *out = admin;
    return KVF_OK;

close_fd:
    close(fd);
free_info:
    freeaddrinfo(info);
free_admin:
    free(admin);
    return status;
}

void kvf_admin_address(const struct kvf_admin *admin, char *address, size_t size)
{
    snprintf(address, size, "%s", admin->address);
}

void kvf_admin_stop(struct kvf_admin *admin)
{
    if (!admin)
        return;
    atomic_store(&admin->stopping, true);
    MHD_stop_daemon(admin->daemon); /* closes the socket, waits for the threads */
    free(admin);
}
