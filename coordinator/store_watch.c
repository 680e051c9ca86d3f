/* The watch of the etcd store: one stream that is opened again, after the last event seen, whenever it breaks. */
#include "coordinator/store_internal.h"
#include "base/env.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BACKOFF_FIRST_MS 50
#define BACKOFF_LAST_MS 1000
#define KICK_NS KVF_SEC /* at most so often is a stream given up because requests fail */

static uint64_t now(void)
{
    return kvf_now(kvf_env_real());
}

/* Waits on the watch's condition for at most `ms`; the lock is held. */
static void wait_ms(struct kvf_store_etcd *etcd, unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&etcd->watch.wake, &etcd->lock, &until);
}

static bool is_over(struct kvf_store_etcd *etcd)
{
    return atomic_load(&etcd->stopping) || !etcd->watch.active || etcd->watch.generation != etcd->watch.streaming;
}

/* Hands a line to poll; the batch takes what it holds. Waits while poll is behind: etcd is then held back by TCP. */
static void deliver(struct kvf_store_etcd *etcd, struct kvf_store_json_line *line)
{
    struct kvf_store_watch *watch = &etcd->watch;
    struct kvf_store_batch *batch = calloc(1, sizeof *batch);
    pthread_mutex_lock(&etcd->lock);
    while (watch->n_batches >= KVF_STORE_BATCHES_MAX && !is_over(etcd))
        wait_ms(etcd, 100);
    if (!batch || is_over(etcd)) {
        /* Without memory the event is not lost: the stream ends and begins again before it. */
        watch->ended = true;
        pthread_mutex_unlock(&etcd->lock);
        kvf_store_json_line_release(line);
        free(batch);
        return;
    }
    batch->line = *line;
    batch->generation = watch->streaming;
    if (watch->last)
        watch->last->next = batch;
    else
        watch->first = batch;
    watch->last = batch;
    watch->n_batches++;
    if (line->event == KVF_STORE_JSON_LOST)
        watch->active = false;
    else if (line->revision >= watch->from)
        watch->from = line->revision + 1;
    kvf_store_etcd_signal(etcd);
    pthread_mutex_unlock(&etcd->lock);
}

/* etcd that is behind the revision we have seen, or another cluster at the same address, cannot tell what happened between. */
static bool is_below(struct kvf_store_etcd *etcd, const struct kvf_store_json_line *line)
{
    struct kvf_store_watch *watch = &etcd->watch;
    pthread_mutex_lock(&etcd->lock);
    bool below = line->revision + 1 < watch->from || (watch->cluster && watch->cluster != line->cluster);
    watch->cluster = line->cluster;
    pthread_mutex_unlock(&etcd->lock);
    return below;
}

static void on_line(void *arg, const char *text, size_t bytes)
{
    struct kvf_store_etcd *etcd = arg;
    struct kvf_store_watch *watch = &etcd->watch;
    struct kvf_store_json_line line;
    if (watch->ended)
        return;
    kvf_store_json_decode_line(text, bytes, &line);
    switch (line.event) {
    case KVF_STORE_JSON_NOTHING:
        break;
    case KVF_STORE_JSON_CREATED:
        watch->created = true;
        kvf_store_etcd_note(etcd, NULL);
        if (!is_below(etcd, &line))
            break;
        line.event = KVF_STORE_JSON_LOST;
        /* fall through */
    case KVF_STORE_JSON_LOST:
        watch->ended = true;
        deliver(etcd, &line);
        return;
    case KVF_STORE_JSON_EVENTS:
        deliver(etcd, &line);
        return;
    case KVF_STORE_JSON_FAILED:
        watch->ended = true;
        kvf_store_etcd_note(etcd, line.error);
        break;
    }
    kvf_store_json_line_release(&line);
}

/* A stream ends when nobody wants it, when etcd took it but never confirmed it, and when requests fail: a server that hangs
 * keeps its connections open for ever, and connecting anew loses nothing. */
static bool should_stop(void *arg)
{
    struct kvf_store_etcd *etcd = arg;
    struct kvf_store_watch *watch = &etcd->watch;
    uint64_t t = now(), failed = atomic_load(&etcd->failed_at_ns);
    pthread_mutex_lock(&etcd->lock);
    bool over = is_over(etcd);
    pthread_mutex_unlock(&etcd->lock);
    if (over || watch->ended || (!watch->created && t - watch->began_ns > etcd->timeout_ns))
        return true;
    if (failed <= watch->began_ns || t - watch->kicked_ns < KICK_NS)
        return false;
    watch->kicked_ns = t;
    return true;
}

/* One stream, until it ends. The lock is held on entry and on return, not meanwhile. True: etcd confirmed the watch. */
static bool stream(struct kvf_store_etcd *etcd)
{
    struct kvf_store_watch *watch = &etcd->watch;
    char url[700], error[400] = "";
    char *body = kvf_store_json_watch(watch->prefix, watch->from);
    watch->streaming = watch->generation;
    watch->began_ns = now();
    watch->created = watch->ended = false;
    snprintf(url, sizeof url, "%s%s", etcd->endpoints[watch->endpoint], kvf_store_json_path(KVF_STORE_JSON_WATCH));
    pthread_mutex_unlock(&etcd->lock);
    if (body) {
        enum kvf_status status = kvf_http_stream(watch->http, url, body, on_line, should_stop, etcd, error, sizeof error);
        if (status != KVF_OK && status != KVF_CANCELLED)
            kvf_store_etcd_note(etcd, error);
    }
    free(body);
    pthread_mutex_lock(&etcd->lock);
    watch->endpoint = (watch->endpoint + 1) % etcd->n_endpoints;
    return watch->created;
}

void *kvf_store_watch_main(void *arg)
{
    struct kvf_store_etcd *etcd = arg;
    struct kvf_store_watch *watch = &etcd->watch;
    unsigned backoff_ms = BACKOFF_FIRST_MS;
    pthread_mutex_lock(&etcd->lock);
    while (!atomic_load(&etcd->stopping)) {
        if (!watch->active) {
            pthread_cond_wait(&watch->wake, &etcd->lock);
            continue;
        }
        uint64_t generation = watch->generation;
        bool created = stream(etcd);
        backoff_ms = created ? BACKOFF_FIRST_MS : backoff_ms * 2 > BACKOFF_LAST_MS ? BACKOFF_LAST_MS : backoff_ms * 2;
        if (!atomic_load(&etcd->stopping) && watch->active && watch->generation == generation)
            wait_ms(etcd, backoff_ms);
    }
    pthread_mutex_unlock(&etcd->lock);
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- owner's thread */

enum kvf_status kvf_store_watch_start(struct kvf_store *store, const char *prefix, uint64_t from_revision,
                                      kvf_store_watch_fn event, void *arg)
{
    struct kvf_store_etcd *etcd = (struct kvf_store_etcd *)store;
    struct kvf_store_watch *watch = &etcd->watch;
    if (prefix && strlen(prefix) >= sizeof watch->prefix)
        return KVF_ERR_INVALID;
    pthread_mutex_lock(&etcd->lock);
    watch->active = prefix != NULL;
    snprintf(watch->prefix, sizeof watch->prefix, "%s", prefix ? prefix : "");
    watch->from = from_revision;
    watch->event = event;
    watch->arg = arg;
    watch->cluster = 0;
    watch->generation++;
    pthread_cond_signal(&watch->wake);
    pthread_mutex_unlock(&etcd->lock);
    return KVF_OK;
}

static struct kvf_store_batch *take(struct kvf_store_watch *watch)
{
    struct kvf_store_batch *batch = watch->first;
    if (batch && !(watch->first = batch->next))
        watch->last = NULL;
    watch->n_batches -= batch != NULL;
    return batch;
}

static void free_batch(struct kvf_store_batch *batch)
{
    kvf_store_json_line_release(&batch->line);
    free(batch);
}

unsigned kvf_store_watch_poll(struct kvf_store_etcd *etcd)
{
    struct kvf_store_watch *watch = &etcd->watch;
    unsigned n = 0;
    for (unsigned i = 0; i < KVF_STORE_BATCHES_MAX; i++) { /* what is behind them signals again */
        pthread_mutex_lock(&etcd->lock);
        struct kvf_store_batch *batch = take(watch);
        bool current = batch && batch->generation == watch->generation && watch->event;
        if (batch)
            pthread_cond_signal(&watch->wake);
        pthread_mutex_unlock(&etcd->lock);
        if (!batch)
            break;
        if (current) {
            const struct kvf_store_json_line *line = &batch->line;
            watch->event(watch->arg, line->kvs, line->n_kvs, line->revision, line->event == KVF_STORE_JSON_LOST);
            n++;
        }
        free_batch(batch);
    }
    return n;
}

void kvf_store_watch_drop(struct kvf_store_etcd *etcd)
{
    for (struct kvf_store_batch *batch; (batch = take(&etcd->watch));)
        free_batch(batch);
}
