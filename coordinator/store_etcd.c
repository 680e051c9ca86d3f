/* The store over etcd's JSON gateway: requests. The watch is in store_watch.c, the text in store_json.c. */
#include "coordinator/store_internal.h"
#include "base/env.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define URL_MAX 600

static struct kvf_store_etcd *etcd_of(struct kvf_store *store)
{
    return (struct kvf_store_etcd *)store;
}

static uint64_t now(void)
{
    return kvf_now(kvf_env_real());
}

static void push(struct kvf_store_list *list, struct kvf_store_request *request)
{
    request->next = NULL;
    if (list->last)
        list->last->next = request;
    else
        list->first = request;
    list->last = request;
}

static struct kvf_store_request *pop(struct kvf_store_list *list)
{
    struct kvf_store_request *request = list->first;
    if (request && !(list->first = request->next))
        list->last = NULL;
    return request;
}

void kvf_store_etcd_signal(struct kvf_store_etcd *etcd)
{
    uint64_t one = 1;
    ssize_t n = write(etcd->event_fd, &one, sizeof one);
    (void)n; /* it fails only when the count is full, and then it is readable anyway */
}

/* A store that never answered is not logged as an error: whoever opened it gets the status and reports it once. */
void kvf_store_etcd_note(struct kvf_store_etcd *etcd, const char *error)
{
    if (!error) {
        if (!atomic_exchange(&etcd->reachable, true) && etcd->log)
            kvf_log_info(etcd->log, "etcd answers");
        return;
    }
    pthread_mutex_lock(&etcd->lock);
    snprintf(etcd->error, sizeof etcd->error, "%s", error);
    pthread_mutex_unlock(&etcd->lock);
    if (etcd->log && atomic_exchange(&etcd->reachable, false))
        kvf_log_warn(etcd->log, "a request to etcd failed, trying on: %s", error);
    else if (etcd->log)
        kvf_log_debug(etcd->log, "etcd: %s", error);
}

void kvf_store_etcd_error(struct kvf_store *store, char *text, size_t size)
{
    struct kvf_store_etcd *etcd = etcd_of(store);
    pthread_mutex_lock(&etcd->lock);
    snprintf(text, size, "%s", etcd->error);
    pthread_mutex_unlock(&etcd->lock);
}

/* ---------------------------------------------------------------------------------------------------- workers */

/* Asking again elsewhere is harmless, and the first server may have been a member without a quorum. */
static bool may_repeat(enum kvf_store_json_what what)
{
    return what != KVF_STORE_JSON_TXN;
}

/* What a request without an answer came to. */
static enum kvf_status without_answer(enum kvf_store_json_what what, enum kvf_status status)
{
    if (status == KVF_CANCELLED)
        return status;
    return status != KVF_ERR_STORE && what == KVF_STORE_JSON_TXN ? KVF_ERR_DEADLINE : KVF_ERR_STORE;
}

/* One attempt at one endpoint. True: another endpoint may be asked. */
static bool attempt(struct kvf_store_worker *worker, struct kvf_store_request *request, uint64_t timeout_ns)
{
    struct kvf_store_etcd *etcd = worker->etcd;
    struct kvf_store_json_answer *answer = &request->answer;
    char url[URL_MAX], error[URL_MAX + 400], *text = NULL;
    long code = 0;
    size_t bytes = 0;
    snprintf(url, sizeof url, "%s%s", etcd->endpoints[worker->endpoint], kvf_store_json_path(request->what));
    enum kvf_status status =
        kvf_http_request(worker->http, url, request->body, timeout_ns, &code, &text, &bytes, error, sizeof error);
    kvf_store_json_release(answer);
    if (status != KVF_OK) {
        *answer = (struct kvf_store_json_answer){.result = {.status = without_answer(request->what, status)}};
        if (status == KVF_CANCELLED)
            return false;
        atomic_store(&etcd->failed_at_ns, now());
        kvf_store_etcd_note(etcd, error);
        return status == KVF_ERR_STORE || may_repeat(request->what);
    }
    kvf_store_json_decode(request->what, code, text, bytes, answer);
    kvf_free(text);
    if (answer->result.status != KVF_OK && answer->result.status != KVF_ERR_NOT_FOUND) {
        snprintf(error, sizeof error, "%s: %s (HTTP %ld)", url, answer->error, code);
        kvf_store_etcd_note(etcd, error);
        return code >= 500 && may_repeat(request->what);
    }
    kvf_store_etcd_note(etcd, NULL);
    return false;
}

/* Tries the endpoints in turn until one answers or the deadline passes. The time that is left is shared among those not yet
 * tried, so that a dead first one does not use it up. */
static void serve(struct kvf_store_worker *worker, struct kvf_store_request *request)
{
    struct kvf_store_etcd *etcd = worker->etcd;
    request->answer = (struct kvf_store_json_answer){.result = {.status = KVF_ERR_STORE}};
    for (unsigned left = etcd->n_endpoints; left; left--) {
        uint64_t t = now();
        if (atomic_load(&etcd->stopping)) {
            request->answer.result.status = KVF_CANCELLED;
            break;
        }
        if (t >= request->deadline_ns)
            break;
        bool again = attempt(worker, request, (request->deadline_ns - t) / left);
        enum kvf_status status = request->answer.result.status;
        if (status != KVF_OK && status != KVF_ERR_NOT_FOUND)
            worker->endpoint = (worker->endpoint + 1) % etcd->n_endpoints;
        if (!again)
            break;
    }
    enum kvf_status status = request->answer.result.status;
    if (etcd->counters) {
        kvf_count(&etcd->counters->store_requests, 1);
        kvf_count(&etcd->counters->store_failures, status != KVF_OK && status != KVF_ERR_NOT_FOUND && status != KVF_CANCELLED);
    }
}

static void *worker_main(void *arg)
{
    struct kvf_store_worker *worker = arg;
    struct kvf_store_etcd *etcd = worker->etcd;
    pthread_mutex_lock(&etcd->lock);
    while (!atomic_load(&etcd->stopping)) {
        struct kvf_store_request *request = pop(&worker->queue);
        if (!request) {
            pthread_cond_wait(&worker->wake, &etcd->lock);
            continue;
        }
        pthread_mutex_unlock(&etcd->lock);
        serve(worker, request);
        pthread_mutex_lock(&etcd->lock);
        push(&etcd->done, request);
        kvf_store_etcd_signal(etcd);
    }
    pthread_mutex_unlock(&etcd->lock);
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- the seam */

/* Takes the body, which may be NULL. */
static enum kvf_status submit(struct kvf_store *store, enum kvf_store_json_what what, char *body, kvf_store_fn done, void *arg)
{
    struct kvf_store_etcd *etcd = etcd_of(store);
    bool lease = what == KVF_STORE_JSON_GRANT || what == KVF_STORE_JSON_KEEPALIVE || what == KVF_STORE_JSON_REVOKE;
    struct kvf_store_worker *worker = &etcd->worker[!lease];
    if (!body)
        return KVF_ERR_NO_MEMORY;
    pthread_mutex_lock(&etcd->lock);
    struct kvf_store_request *request = pop(&etcd->idle);
    if (request) {
        *request = (struct kvf_store_request){
            .what = what, .body = body, .deadline_ns = kvf_deadline(now(), etcd->timeout_ns), .done = done, .arg = arg};
        push(&worker->queue, request);
        pthread_cond_signal(&worker->wake);
    }
    pthread_mutex_unlock(&etcd->lock);
    if (!request)
        free(body);
    return request ? KVF_OK : KVF_ERR_BUSY;
}

static enum kvf_status etcd_range(struct kvf_store *store, const char *prefix, kvf_store_fn done, void *arg)
{
    return submit(store, KVF_STORE_JSON_RANGE, kvf_store_json_range(prefix), done, arg);
}

static enum kvf_status etcd_txn(struct kvf_store *store, const struct kvf_store_txn *txn, kvf_store_fn done, void *arg)
{
    if (txn->n_compare > KVF_STORE_OPS_MAX || txn->n_put > KVF_STORE_OPS_MAX || txn->n_read > KVF_STORE_OPS_MAX)
        return KVF_ERR_INVALID;
    return submit(store, KVF_STORE_JSON_TXN, kvf_store_json_txn(txn), done, arg);
}

static enum kvf_status etcd_grant(struct kvf_store *store, uint64_t ttl_ns, kvf_store_fn done, void *arg)
{
    return submit(store, KVF_STORE_JSON_GRANT, kvf_store_json_grant(ttl_ns), done, arg);
}

static enum kvf_status etcd_keepalive(struct kvf_store *store, uint64_t lease, kvf_store_fn done, void *arg)
{
    return submit(store, KVF_STORE_JSON_KEEPALIVE, kvf_store_json_lease(lease), done, arg);
}

static enum kvf_status etcd_revoke(struct kvf_store *store, uint64_t lease, kvf_store_fn done, void *arg)
{
    return submit(store, KVF_STORE_JSON_REVOKE, kvf_store_json_lease(lease), done, arg);
}

/* Frees the request before its callback, which may submit the next one. */
static void finish(struct kvf_store_etcd *etcd, struct kvf_store_request *request)
{
    struct kvf_store_request copy = *request;
    free(copy.body);
    pthread_mutex_lock(&etcd->lock);
    push(&etcd->idle, request);
    pthread_mutex_unlock(&etcd->lock);
    copy.done(copy.arg, &copy.answer.result);
    kvf_store_json_release(&copy.answer);
}

static unsigned etcd_poll(struct kvf_store *store)
{
    struct kvf_store_etcd *etcd = etcd_of(store);
    uint64_t count;
    unsigned n = 0;
    ssize_t got = read(etcd->event_fd, &count, sizeof count);
    (void)got; /* the lists tell what there is; the number does not matter */
    pthread_mutex_lock(&etcd->lock);
    struct kvf_store_list done = etcd->done;
    etcd->done = (struct kvf_store_list){NULL, NULL};
    pthread_mutex_unlock(&etcd->lock);
    for (struct kvf_store_request *request; (request = pop(&done)); n++)
        finish(etcd, request);
    return n + kvf_store_watch_poll(etcd);
}

static int etcd_event_fd(struct kvf_store *store)
{
    return etcd_of(store)->event_fd;
}

static void stop_threads(struct kvf_store_etcd *etcd, unsigned n_workers, bool watch)
{
    pthread_mutex_lock(&etcd->lock);
    atomic_store(&etcd->stopping, true);
    for (unsigned i = 0; i < n_workers; i++)
        pthread_cond_signal(&etcd->worker[i].wake);
    pthread_cond_signal(&etcd->watch.wake);
    pthread_mutex_unlock(&etcd->lock);
    for (unsigned i = 0; i < n_workers; i++) {
        kvf_http_interrupt(etcd->worker[i].http);
        pthread_join(etcd->worker[i].thread, NULL);
    }
    if (watch) {
        kvf_http_interrupt(etcd->watch.http);
        pthread_join(etcd->watch.thread, NULL);
    }
}

static void free_etcd(struct kvf_store_etcd *etcd)
{
    for (unsigned i = 0; i < KVF_STORE_WORKERS; i++) {
        kvf_http_destroy(etcd->worker[i].http);
        pthread_cond_destroy(&etcd->worker[i].wake);
    }
    kvf_http_destroy(etcd->watch.http);
    pthread_cond_destroy(&etcd->watch.wake);
    pthread_mutex_destroy(&etcd->lock);
    if (etcd->event_fd >= 0)
        close(etcd->event_fd);
    free(etcd->endpoints_text);
    free(etcd);
}

/* What is done keeps its result; what is not ends as cancelled. Callbacks may not submit any more: they get BUSY. */
static void etcd_destroy(struct kvf_store *store)
{
    struct kvf_store_etcd *etcd = etcd_of(store);
    stop_threads(etcd, KVF_STORE_WORKERS, true);
    for (unsigned i = 0; i < KVF_STORE_WORKERS; i++)
        for (struct kvf_store_request *request; (request = pop(&etcd->worker[i].queue));) {
            request->answer.result.status = KVF_CANCELLED;
            push(&etcd->done, request);
        }
    etcd->idle = (struct kvf_store_list){NULL, NULL};
    for (struct kvf_store_request *request; (request = pop(&etcd->done));) {
        free(request->body);
        request->done(request->arg, &request->answer.result);
        kvf_store_json_release(&request->answer);
    }
    kvf_store_watch_drop(etcd);
    free_etcd(etcd);
}

static const struct kvf_store_ops etcd_ops = {
    .name = "etcd",
    .destroy = etcd_destroy,
    .range = etcd_range,
    .txn = etcd_txn,
    .lease_grant = etcd_grant,
    .lease_keepalive = etcd_keepalive,
    .lease_revoke = etcd_revoke,
    .watch = kvf_store_watch_start,
    .poll = etcd_poll,
    .event_fd = etcd_event_fd,
};

/* Cuts "http://a:1, http://b:2/" at the commas. False: none, too many, or one that is no URL. */
static bool split_endpoints(struct kvf_store_etcd *etcd)
{
    char *rest = etcd->endpoints_text, *one;
    while ((one = strtok_r(rest, ", \t", &rest))) {
        size_t length = strlen(one);
        while (length && one[length - 1] == '/')
            one[--length] = 0;
        bool url = !strncmp(one, "http://", 7) || !strncmp(one, "https://", 8);
        if (!url || length > URL_MAX - 64 || etcd->n_endpoints == KVF_STORE_ENDPOINTS_MAX)
            return false;
        etcd->endpoints[etcd->n_endpoints++] = one;
    }
    return etcd->n_endpoints > 0;
}

static enum kvf_status make_http(struct kvf_store_etcd *etcd, const struct kvf_store_config *config)
{
    struct kvf_http_tls tls = {config->ca, config->cert, config->key};
    enum kvf_status status = kvf_http_create(&tls, &etcd->watch.http);
    for (unsigned i = 0; i < KVF_STORE_WORKERS && status == KVF_OK; i++)
        status = kvf_http_create(&tls, &etcd->worker[i].http);
    return status;
}

static enum kvf_status start_threads(struct kvf_store_etcd *etcd)
{
    for (unsigned i = 0; i < KVF_STORE_WORKERS; i++) {
        if (pthread_create(&etcd->worker[i].thread, NULL, worker_main, &etcd->worker[i])) {
            stop_threads(etcd, i, false);
            return KVF_ERR_NO_MEMORY;
        }
    }
    if (pthread_create(&etcd->watch.thread, NULL, kvf_store_watch_main, etcd)) {
        stop_threads(etcd, KVF_STORE_WORKERS, false);
        return KVF_ERR_NO_MEMORY;
    }
    return KVF_OK;
}

enum kvf_status kvf_store_etcd_create(const struct kvf_store_config *config, struct kvf_store **out)
{
    assert(config && out);
    struct kvf_store_etcd *etcd = calloc(1, sizeof *etcd);
    if (!etcd)
        return KVF_ERR_NO_MEMORY;
    etcd->store.ops = &etcd_ops;
    etcd->timeout_ns = config->timeout_ns ? config->timeout_ns : 5 * KVF_SEC;
    etcd->log = config->log;
    etcd->counters = config->counters;
    pthread_mutex_init(&etcd->lock, NULL);
    pthread_cond_init(&etcd->watch.wake, NULL);
    for (unsigned i = 0; i < KVF_STORE_WORKERS; i++) {
        etcd->worker[i].etcd = etcd;
        pthread_cond_init(&etcd->worker[i].wake, NULL);
    }
    for (unsigned i = 0; i < KVF_STORE_REQUESTS_MAX; i++)
        push(&etcd->idle, &etcd->requests[i]);
    etcd->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    etcd->endpoints_text = strdup(config->endpoints ? config->endpoints : "");

    enum kvf_status status = etcd->event_fd < 0 || !etcd->endpoints_text ? KVF_ERR_NO_MEMORY : KVF_OK;
    if (status == KVF_OK && !split_endpoints(etcd))
        status = KVF_ERR_CONFIG;
    if (status == KVF_OK)
        status = make_http(etcd, config);
    if (status == KVF_OK)
        status = start_threads(etcd);
    if (status != KVF_OK) {
        free_etcd(etcd);
        return status;
    }
    *out = &etcd->store;
    return KVF_OK;
}
