/* The text of etcd's JSON gateway. */
#include "coordinator/store_json.h"
#include "coordinator/base64.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define SECOND 1000000000ull
#define TTL_SECONDS_MAX (1ull << 32)
#define GRPC_NOT_FOUND 5

const char *kvf_store_json_path(enum kvf_store_json_what what)
{
    static const char *const paths[] = {
        [KVF_STORE_JSON_RANGE] = "/v3/kv/range",         [KVF_STORE_JSON_TXN] = "/v3/kv/txn",
        [KVF_STORE_JSON_GRANT] = "/v3/lease/grant",      [KVF_STORE_JSON_KEEPALIVE] = "/v3/lease/keepalive",
        [KVF_STORE_JSON_REVOKE] = "/v3/lease/revoke",    [KVF_STORE_JSON_WATCH] = "/v3/watch",
    };
    return paths[what];
}

/* ---------------------------------------------------------------------------------------------------- encode */

static json_t *base64_of(const char *text, size_t bytes)
{
    char room[KVF_BASE64_SIZE(KVF_STORE_VALUE_MAX)];
    if (bytes >= KVF_STORE_VALUE_MAX)
        return NULL;
    kvf_base64_encode(text, bytes, room);
    return json_string(room);
}

static json_t *text_of(const char *text)
{
    return base64_of(text, strnlen(text, KVF_STORE_VALUE_MAX));
}

static json_t *number_of(uint64_t value)
{
    char room[24];
    snprintf(room, sizeof room, "%" PRIu64, value);
    return json_string(room);
}

/* The first key after every key that begins with the prefix. */
static json_t *prefix_end(const char *prefix)
{
    unsigned char end[KVF_STORE_KEY_MAX];
    size_t length = strnlen(prefix, sizeof end - 1);
    memcpy(end, prefix, length);
    while (length && end[length - 1] == 0xff)
        length--;
    if (!length)
        return base64_of("\0", 1); /* etcd's word for "to the end" */
    end[length - 1]++;
    return base64_of((const char *)end, length);
}

static char *dump(json_t *body)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    return text;
}

char *kvf_store_json_range(const char *prefix)
{
    return dump(json_pack("{so so}", "key", text_of(prefix), "range_end", prefix_end(prefix)));
}

static json_t *compare_of(const struct kvf_store_compare *c)
{
    json_t *key = text_of(c->key);
    switch (c->what) {
    case KVF_COMPARE_ABSENT:
        return json_pack("{so ss ss so}", "key", key, "target", "CREATE", "result", "EQUAL", "create_revision", number_of(0));
    case KVF_COMPARE_MOD_REVISION:
        return json_pack("{so ss ss so}", "key", key, "target", "MOD", "result", "EQUAL", "mod_revision",
                         number_of(c->mod_revision));
    case KVF_COMPARE_VALUE:
        return json_pack("{so ss ss so}", "key", key, "target", "VALUE", "result", "EQUAL", "value", text_of(c->value));
    }
    json_decref(key);
    return NULL;
}

static json_t *put_of(const struct kvf_store_put *put)
{
    if (put->remove)
        return json_pack("{s{so}}", "request_delete_range", "key", text_of(put->key));
    return json_pack("{s{so so so}}", "request_put", "key", text_of(put->key), "value", text_of(put->value), "lease",
                     number_of(put->lease));
}

char *kvf_store_json_txn(const struct kvf_store_txn *txn)
{
    json_t *compare = json_array(), *success = json_array(), *failure = json_array();
    bool bad = !compare || !success || !failure;
    for (unsigned i = 0; i < txn->n_compare && !bad; i++)
        bad = json_array_append_new(compare, compare_of(&txn->compare[i])) != 0;
    for (unsigned i = 0; i < txn->n_put && !bad; i++)
        bad = json_array_append_new(success, put_of(&txn->put[i])) != 0;
    for (unsigned i = 0; i < txn->n_read && !bad; i++) {
        json_t *read = json_pack("{s{so}}", "request_range", "key", text_of(txn->read[i]));
        bad = json_array_append(success, read) != 0 || json_array_append(failure, read) != 0;
        json_decref(read);
    }
    if (bad) {
        json_decref(compare);
        json_decref(success);
        json_decref(failure);
        return NULL;
    }
    return dump(json_pack("{so so so}", "compare", compare, "success", success, "failure", failure));
}

char *kvf_store_json_grant(uint64_t ttl_ns)
{
    uint64_t seconds = ttl_ns / SECOND + (ttl_ns % SECOND != 0);
    return dump(json_pack("{so}", "TTL", number_of(seconds ? seconds : 1)));
}

char *kvf_store_json_lease(uint64_t lease)
{
    return dump(json_pack("{so}", "ID", number_of(lease)));
}

char *kvf_store_json_watch(const char *prefix, uint64_t from_revision)
{
    return dump(json_pack("{s{so so so}}", "create_request", "key", text_of(prefix), "range_end", prefix_end(prefix),
                          "start_revision", number_of(from_revision)));
}

/* ---------------------------------------------------------------------------------------------------- decode */

/* An unsigned number, as a string of digits or as a JSON integer; what is absent or anything else is 0. */
static uint64_t number_in(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    if (json_is_integer(value))
        return json_integer_value(value) > 0 ? (uint64_t)json_integer_value(value) : 0;
    const char *text = json_string_value(value);
    uint64_t n = 0;
    if (!text || !*text)
        return 0;
    for (; *text; text++) {
        unsigned digit = (unsigned)(*text - '0');
        if (digit > 9 || n > (UINT64_MAX - digit) / 10)
            return 0;
        n = n * 10 + digit;
    }
    return n;
}

/* Base64 text of at most `max` - 1 bytes without a NUL, as a fresh string; NULL when it is not that. An absent value is "". */
static char *text_in(const json_t *object, const char *name, size_t max)
{
    const json_t *value = json_object_get(object, name);
    if (!value)
        return calloc(1, 1);
    if (!json_is_string(value) || json_string_length(value) >= KVF_BASE64_SIZE(max))
        return NULL;
    char *text = malloc(max);
    size_t bytes = 0;
    if (!text)
        return NULL;
    if (!kvf_base64_decode(json_string_value(value), json_string_length(value), text, max - 1, &bytes) ||
        memchr(text, 0, bytes)) {
        free(text);
        return NULL;
    }
    text[bytes] = 0;
    char *small = realloc(text, bytes + 1);
    return small ? small : text;
}

/* One key and value; false when the key cannot be one of ours. */
static bool kv_in(const json_t *object, bool deleted, struct kvf_store_kv *out)
{
    char *key = text_in(object, "key", KVF_STORE_KEY_MAX), *value = NULL;
    if (!key || !*key) {
        free(key);
        return false;
    }
    if (!deleted) {
        value = text_in(object, "value", KVF_STORE_VALUE_MAX);
        if (!value && !(value = calloc(1, 1))) {
            free(key);
            return false;
        }
    }
    *out = (struct kvf_store_kv){
        .key = key,
        .value = value,
        .mod_revision = number_in(object, "mod_revision"),
        .create_revision = number_in(object, "create_revision"),
        .lease = number_in(object, "lease"),
    };
    return true;
}

static void free_kvs(struct kvf_store_kv *kvs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free((char *)kvs[i].key);
        free((char *)kvs[i].value);
    }
    free(kvs);
}

/* Appends the kvs of one range answer to the answer's. False when out of memory. */
static bool add_kvs(struct kvf_store_json_answer *out, const json_t *range)
{
    const json_t *list = json_object_get(range, "kvs");
    size_t more = json_array_size(list);
    if (!more)
        return true;
    struct kvf_store_kv *kvs = realloc(out->kvs, (out->result.n_kvs + more) * sizeof *kvs);
    if (!kvs)
        return false;
    out->kvs = kvs;
    for (size_t i = 0; i < more; i++)
        out->result.n_kvs += kv_in(json_array_get(list, i), false, &kvs[out->result.n_kvs]);
    out->result.kvs = kvs;
    return true;
}

/* etcd's words for an error, in either of the gateway's two shapes. */
static void error_in(const json_t *root, char *error, size_t size)
{
    const json_t *inner = json_object_get(root, "error");
    const char *text = json_string_value(json_object_get(root, "message"));
    if (!text)
        text = json_is_object(inner) ? json_string_value(json_object_get(inner, "message")) : json_string_value(inner);
    snprintf(error, size, "%s", text ? text : "an answer that is not etcd's");
}

/* etcd's own word for it. A 404 alone may come from whatever else listens there, and must not end a lease. */
static bool is_not_found(const json_t *root)
{
    const json_t *inner = json_object_get(root, "error");
    bool nested = json_is_object(inner);
    return number_in(nested ? inner : root, nested ? "grpc_code" : "code") == GRPC_NOT_FOUND;
}

static void fill_lease(const json_t *body, struct kvf_store_result *r)
{
    uint64_t seconds = number_in(body, "TTL");
    r->lease = number_in(body, "ID");
    r->ttl_ns = (seconds < TTL_SECONDS_MAX ? seconds : TTL_SECONDS_MAX) * SECOND;
}

/* The body of an answer that is not an error. False: it is not what was asked for. */
static bool fill(enum kvf_store_json_what what, const json_t *root, struct kvf_store_json_answer *out)
{
    const json_t *body = what == KVF_STORE_JSON_KEEPALIVE ? json_object_get(root, "result") : root;
    const json_t *header = json_object_get(body, "header"), *responses, *response;
    struct kvf_store_result *r = &out->result;
    size_t i;
    if (!json_is_object(header))
        return false;
    r->revision = number_in(header, "revision");
    switch (what) {
    case KVF_STORE_JSON_RANGE:
        return add_kvs(out, body);
    case KVF_STORE_JSON_TXN:
        r->succeeded = json_is_true(json_object_get(body, "succeeded"));
        responses = json_object_get(body, "responses");
        json_array_foreach((json_t *)responses, i, response)
            if (!add_kvs(out, json_object_get(response, "response_range")))
                return false;
        return true;
    case KVF_STORE_JSON_GRANT:
        fill_lease(body, r);
        return r->lease && r->ttl_ns;
    case KVF_STORE_JSON_KEEPALIVE:
        fill_lease(body, r);
        if (!r->ttl_ns)
            r->status = KVF_ERR_NOT_FOUND;
        return true;
    case KVF_STORE_JSON_REVOKE:
        return true;
    case KVF_STORE_JSON_WATCH:
        break;
    }
    return false;
}

void kvf_store_json_decode(enum kvf_store_json_what what, long code, const char *text, size_t bytes,
                           struct kvf_store_json_answer *out)
{
    *out = (struct kvf_store_json_answer){.result = {.status = KVF_OK}};
    json_t *root = json_loadb(text, bytes, 0, NULL);
    bool refused = code >= 400 && code < 500; /* then etcd surely did nothing */
    bool good = code == 200 && json_is_object(root) && !json_object_get(root, "error") && fill(what, root, out);
    if (!good) {
        kvf_store_json_release(out);
        *out = (struct kvf_store_json_answer){.result = {.status = KVF_ERR_STORE}};
        if (is_not_found(root))
            out->result.status = KVF_ERR_NOT_FOUND;
        else if (what == KVF_STORE_JSON_TXN && !refused)
            out->result.status = KVF_ERR_DEADLINE;
        error_in(root, out->error, sizeof out->error);
    }
    json_decref(root);
}

void kvf_store_json_release(struct kvf_store_json_answer *answer)
{
    free_kvs(answer->kvs, answer->result.n_kvs);
    answer->kvs = NULL;
    answer->result.kvs = NULL;
    answer->result.n_kvs = 0;
}

static void fill_events(const json_t *events, struct kvf_store_json_line *out)
{
    size_t n = json_array_size(events);
    out->event = KVF_STORE_JSON_EVENTS;
    out->revision = 0;
    out->kvs = calloc(n, sizeof *out->kvs);
    for (size_t i = 0; i < n && out->kvs; i++) {
        const json_t *event = json_array_get(events, i), *kv = json_object_get(event, "kv");
        const char *type = json_string_value(json_object_get(event, "type"));
        uint64_t revision = number_in(kv, "mod_revision");
        if (revision > out->revision)
            out->revision = revision;
        out->n_kvs += kv_in(kv, type && !strcmp(type, "DELETE"), &out->kvs[out->n_kvs]);
    }
    if (!out->kvs)
        out->event = KVF_STORE_JSON_FAILED;
}

void kvf_store_json_decode_line(const char *text, size_t bytes, struct kvf_store_json_line *out)
{
    *out = (struct kvf_store_json_line){.event = KVF_STORE_JSON_NOTHING};
    json_t *root = json_loadb(text, bytes, 0, NULL);
    const json_t *result = json_object_get(root, "result"), *header = json_object_get(result, "header");
    if (!json_is_object(header)) {
        out->event = KVF_STORE_JSON_FAILED;
        error_in(root, out->error, sizeof out->error);
        json_decref(root);
        return;
    }
    out->revision = number_in(header, "revision");
    out->cluster = number_in(header, "cluster_id");
    if (json_is_true(json_object_get(result, "canceled"))) {
        const char *why = json_string_value(json_object_get(result, "cancel_reason"));
        out->event = number_in(result, "compact_revision") ? KVF_STORE_JSON_LOST : KVF_STORE_JSON_FAILED;
        snprintf(out->error, sizeof out->error, "the watch was cancelled: %s", why ? why : "no reason given");
    } else if (json_is_true(json_object_get(result, "created"))) {
        out->event = KVF_STORE_JSON_CREATED;
    } else if (json_array_size(json_object_get(result, "events"))) {
        fill_events(json_object_get(result, "events"), out);
    }
    json_decref(root);
}

void kvf_store_json_line_release(struct kvf_store_json_line *line)
{
    free_kvs(line->kvs, line->n_kvs);
    line->kvs = NULL;
    line->n_kvs = 0;
}
