/* HTTP requests: the one place that knows libcurl. */
#ifndef KVF_COORDINATOR_HTTP_H
#define KVF_COORDINATOR_HTTP_H

#include <kvf/kvf.h>

#define KVF_HTTP_BYTES_MAX (64u << 20)

struct kvf_http; /* a connection that is kept open; one thread at a time, but for interrupt */

struct kvf_http_tls {
    const char *ca, *cert, *key; /* NULL or "": none */
};

/* `tls` may be NULL. The caller destroys it. ERR_NO_MEMORY. */
enum kvf_status kvf_http_create(const struct kvf_http_tls *tls, struct kvf_http **out);
void kvf_http_destroy(struct kvf_http *http);

/* POST (body not NULL) or GET. *answer is NUL-ended, at most KVF_HTTP_BYTES_MAX, freed with kvf_free. *code is the HTTP code.
 * Blocks until the deadline. On a failure `error` gets one line, and the status tells what is known of the request:
 *   ERR_STORE          it was never sent (no such host, refused, no connection in time, TLS)
 *   ERR_DEADLINE       it was sent and nothing came in time: the server may have acted on it
 *   ERR_PEER_LOST      it was sent (perhaps in part) and the connection broke: the server may have acted on it
 *   ERR_PEER_PROTOCOL  the answer is larger than the limit; ERR_NO_MEMORY
 *   CANCELLED          kvf_http_interrupt
 * It is never sent a second time by itself. */
enum kvf_status kvf_http_request(struct kvf_http *http, const char *url, const char *body, uint64_t timeout_ns, long *code,
                                 char **answer, size_t *bytes, char *error, size_t error_size);

/* POST whose answer is an endless stream: `line` gets every line; returns when the stream ends or stop() is true (asked at
 * least every 200 ms). OK: the server or stop() ended it; else as kvf_http_request. */
enum kvf_status kvf_http_stream(struct kvf_http *http, const char *url, const char *body,
                                void (*line)(void *arg, const char *text, size_t bytes), bool (*stop)(void *arg), void *arg,
                                char *error, size_t error_size);

/* Ends the request that runs, and every later one, with CANCELLED, within 100 ms. Any thread, until destroy. */
void kvf_http_interrupt(struct kvf_http *http);
#endif
