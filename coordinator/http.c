/* HTTP over libcurl. Each object has a curl "multi" of its own with one "easy" in it, because only a multi can be woken from
 * another thread: a request that waits for a dead server must not hold up a shutdown. */
#include "coordinator/http.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define POLL_MS 50
#define CONNECT_MS 2000 /* of a stream; a request's connection has the request's deadline */

struct kvf_http {
    CURLM *multi;
    CURL *easy;
    struct curl_slist *headers;
    atomic_bool interrupted;

    /* the request that runs */
    unsigned sends; /* how often curl was about to send it */
    char *buffer;
    size_t used, size;
    enum kvf_status trouble; /* what a callback of ours refused */
    void (*line)(void *arg, const char *text, size_t bytes);
    void *line_arg;
    char message[CURL_ERROR_SIZE];
};

static pthread_once_t global_once = PTHREAD_ONCE_INIT;

static void global_init(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* curl sends a request again by itself when a kept connection turns out to be dead. By then the server may have acted on
 * it, and the second answer would describe our own change as somebody else's. So: once only. */
static int before_send(void *arg, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
    struct kvf_http *http = arg;
    return http->sends++ ? CURL_PREREQFUNC_ABORT : CURL_PREREQFUNC_OK;
}

static bool reserve(struct kvf_http *http, size_t more)
{
    if (more > KVF_HTTP_BYTES_MAX - http->used) {
        http->trouble = KVF_ERR_PEER_PROTOCOL;
        snprintf(http->message, sizeof http->message, "the answer is larger than %u MiB", KVF_HTTP_BYTES_MAX >> 20);
        return false;
    }
    size_t need = http->used + more + 1, size = http->size ? http->size : 4096;
    while (size < need)
        size *= 2;
    if (size == http->size)
        return true;
    char *buffer = realloc(http->buffer, size);
    if (!buffer) {
        http->trouble = KVF_ERR_NO_MEMORY;
        return false;
    }
    http->buffer = buffer;
    http->size = size;
    return true;
}

/* Hands out the lines that are whole and keeps the rest. */
static void hand_out_lines(struct kvf_http *http, size_t fresh)
{
    size_t start = 0, at = http->used - fresh;
    for (char *end; (end = memchr(http->buffer + at, '\n', http->used - at)); at = start) {
        *end = 0;
        size_t length = (size_t)(end - http->buffer) - start;
        if (length)
            http->line(http->line_arg, http->buffer + start, length);
        start += length + 1;
    }
    memmove(http->buffer, http->buffer + start, http->used - start);
    http->used -= start;
    http->buffer[http->used] = 0;
}

static size_t on_bytes(char *data, size_t one, size_t bytes, void *arg)
{
    struct kvf_http *http = arg;
    if (!reserve(http, bytes))
        return 0;
    memcpy(http->buffer + http->used, data, bytes);
    http->used += bytes;
    http->buffer[http->used] = 0;
    if (http->line)
        hand_out_lines(http, bytes);
    return bytes;
}

static void set_up(struct kvf_http *http, const struct kvf_http_tls *tls)
{
    CURL *easy = http->easy;
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L); /* a slow name server must not hold up destroy */
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(easy, CURLOPT_PROXY, ""); /* etcd and the admin interfaces are neighbours, never behind a web proxy */
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, http->headers);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, http->message);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, http);
    curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, before_send);
    curl_easy_setopt(easy, CURLOPT_PREREQDATA, http);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPIDLE, 5L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPINTVL, 2L);
    if (tls && tls->ca && *tls->ca)
        curl_easy_setopt(easy, CURLOPT_CAINFO, tls->ca);
    if (tls && tls->cert && *tls->cert)
        curl_easy_setopt(easy, CURLOPT_SSLCERT, tls->cert);
    if (tls && tls->key && *tls->key)
        curl_easy_setopt(easy, CURLOPT_SSLKEY, tls->key);
}

enum kvf_status kvf_http_create(const struct kvf_http_tls *tls, struct kvf_http **out)
{
    pthread_once(&global_once, global_init);
    struct kvf_http *http = calloc(1, sizeof *http);
    if (!http)
        return KVF_ERR_NO_MEMORY;
    http->headers = curl_slist_append(NULL, "Content-Type: application/json");
    struct curl_slist *more = http->headers ? curl_slist_append(http->headers, "Expect:") : NULL;
    http->easy = curl_easy_init();
    http->multi = curl_multi_init();
    if (!more || !http->easy || !http->multi) {
        kvf_http_destroy(http);
        return KVF_ERR_NO_MEMORY;
    }
    set_up(http, tls);
    *out = http;
    return KVF_OK;
}

void kvf_http_destroy(struct kvf_http *http)
{
    if (!http)
        return;
    curl_easy_cleanup(http->easy);
    curl_multi_cleanup(http->multi);
    curl_slist_free_all(http->headers);
    free(http->buffer);
    free(http);
}

void kvf_http_interrupt(struct kvf_http *http)
{
    atomic_store(&http->interrupted, true);
    curl_multi_wakeup(http->multi);
}

/* Steps the transfer to its end. *stopped: we ended it, and the code says nothing. */
static CURLcode transfer(struct kvf_http *http, bool (*stop)(void *arg), void *arg, bool *stopped)
{
    CURLcode code = CURLE_FAILED_INIT;
    *stopped = false;
    if (curl_multi_add_handle(http->multi, http->easy) != CURLM_OK)
        return code;
    for (;;) {
        int running = 0, left;
        if (curl_multi_perform(http->multi, &running) != CURLM_OK)
            break;
        if (!running) {
            CURLMsg *end = curl_multi_info_read(http->multi, &left);
            code = end ? end->data.result : CURLE_FAILED_INIT;
            break;
        }
        if (atomic_load(&http->interrupted) || (stop && stop(arg))) {
            *stopped = true;
            break;
        }
        curl_multi_poll(http->multi, NULL, 0, POLL_MS, NULL);
    }
    curl_multi_remove_handle(http->multi, http->easy);
    return code;
}

static void begin(struct kvf_http *http, const char *url, const char *body)
{
    http->sends = 0;
    http->used = 0;
    http->trouble = KVF_OK;
    http->message[0] = 0;
    curl_easy_setopt(http->easy, CURLOPT_URL, url);
    if (body) {
        curl_easy_setopt(http->easy, CURLOPT_POST, 1L);
        curl_easy_setopt(http->easy, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(http->easy, CURLOPT_POSTFIELDSIZE, (long)strlen(body));
    } else {
        curl_easy_setopt(http->easy, CURLOPT_HTTPGET, 1L);
    }
}

/* What the end of a transfer means for the one who asked; see http.h. */
static enum kvf_status outcome(struct kvf_http *http, const char *url, CURLcode code, bool stopped, char *error,
                               size_t error_size)
{
    enum kvf_status status = KVF_OK;
    if (stopped)
        status = atomic_load(&http->interrupted) ? KVF_CANCELLED : KVF_OK;
    else if (http->trouble != KVF_OK)
        status = http->trouble;
    else if (code != CURLE_OK)
        status = !http->sends ? KVF_ERR_STORE : code == CURLE_OPERATION_TIMEDOUT ? KVF_ERR_DEADLINE : KVF_ERR_PEER_LOST;
    if (status != KVF_OK && error_size)
        snprintf(error, error_size, "%s: %s", url,
                 status == KVF_CANCELLED ? "cancelled" : http->message[0] ? http->message : curl_easy_strerror(code));
    return status;
}

enum kvf_status kvf_http_request(struct kvf_http *http, const char *url, const char *body, uint64_t timeout_ns, long *code,
                                 char **answer, size_t *bytes, char *error, size_t error_size)
{
    bool stopped;
    uint64_t ms = timeout_ns / 1000000;
    long limit = ms < 1 ? 1 : ms > 86400000 ? 86400000 : (long)ms;
    begin(http, url, body);
    http->line = NULL;
    curl_easy_setopt(http->easy, CURLOPT_TIMEOUT_MS, limit);
    curl_easy_setopt(http->easy, CURLOPT_CONNECTTIMEOUT_MS, limit);
    CURLcode result = transfer(http, NULL, NULL, &stopped);
    enum kvf_status status = outcome(http, url, result, stopped, error, error_size);
    if (status == KVF_OK && !reserve(http, 0))
        status = KVF_ERR_NO_MEMORY;
    if (status != KVF_OK)
        return status;
    http->buffer[http->used] = 0;
    curl_easy_getinfo(http->easy, CURLINFO_RESPONSE_CODE, code);
    *answer = http->buffer;
    *bytes = http->used;
    http->buffer = NULL;
    http->size = 0;
    return KVF_OK;
}

enum kvf_status kvf_http_stream(struct kvf_http *http, const char *url, const char *body,
                                void (*line)(void *arg, const char *text, size_t bytes), bool (*stop)(void *arg), void *arg,
                                char *error, size_t error_size)
{
    bool stopped;
    begin(http, url, body);
    http->line = line;
    http->line_arg = arg;
    curl_easy_setopt(http->easy, CURLOPT_TIMEOUT_MS, 0L);
    curl_easy_setopt(http->easy, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    CURLcode result = transfer(http, stop, arg, &stopped);
    if (!stopped && http->used) /* the last line needs no end of line */
        line(arg, http->buffer, http->used);
    return outcome(http, url, result, stopped, error, error_size);
}
