/* Keys and records in etcd. */
#include "coordinator/records.h"
#include "coordinator/base64.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char *const dtypes[] = {[KVF_F32] = "f32", [KVF_F16] = "f16", [KVF_BF16] = "bf16"};
static const char *const states[] = {[KVF_SESSION_ACTIVE] = "active", [KVF_SESSION_PARKED] = "parked"};

bool kvf_records_name_ok(const char *name)
{
    size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    return length && length < 64 && !name[length];
}

/* ---------------------------------------------------------------------------------------------------- keys */

static bool key_of(char key[KVF_STORE_KEY_MAX], const char *prefix, const char *kind, const char *name)
{
    return (size_t)snprintf(key, KVF_STORE_KEY_MAX, "%s/%s%s", prefix, kind, name) < KVF_STORE_KEY_MAX;
}

bool kvf_records_member_key(const char *prefix, const char *name, char key[KVF_STORE_KEY_MAX])
{
    return key_of(key, prefix, "members/", name);
}

bool kvf_records_model_key(const char *prefix, const char *name, char key[KVF_STORE_KEY_MAX])
{
    return key_of(key, prefix, "models/", name);
}

bool kvf_records_session_key(const char *prefix, uint64_t id, char key[KVF_STORE_KEY_MAX])
{
    char hex[17];
    snprintf(hex, sizeof hex, "%016" PRIx64, id);
    return key_of(key, prefix, "sessions/", hex);
}

bool kvf_records_leader_key(const char *prefix, char key[KVF_STORE_KEY_MAX])
{
    return key_of(key, prefix, "leader", "");
}

/* Exactly 16 lower-case digits, so that every id has one key. */
static bool hex_of(const char *text, uint64_t *out)
{
    if (strspn(text, "0123456789abcdef") != 16 || text[16])
        return false;
    *out = strtoull(text, NULL, 16);
    return true;
}

enum kvf_records_kind kvf_records_key(const char *prefix, const char *key, const char **name, uint64_t *id)
{
    size_t length = strlen(prefix);
    if (strncmp(key, prefix, length) || key[length] != '/')
        return KVF_RECORDS_OTHER;
    key += length + 1;
    if (!strcmp(key, "leader"))
        return KVF_RECORDS_LEADER;
    if (!strncmp(key, "members/", 8) && kvf_records_name_ok(key + 8)) {
        *name = key + 8;
        return KVF_RECORDS_MEMBER;
    }
    if (!strncmp(key, "models/", 7) && kvf_records_name_ok(key + 7)) {
        *name = key + 7;
        return KVF_RECORDS_MODEL;
    }
    if (!strncmp(key, "sessions/", 9) && hex_of(key + 9, id) && *id)
        return KVF_RECORDS_SESSION;
    return KVF_RECORDS_OTHER;
}

/* ---------------------------------------------------------------------------------------------------- encode */

static bool write_out(json_t *record, char text[KVF_STORE_VALUE_MAX])
{
    char *dumped = record ? json_dumps(record, JSON_COMPACT) : NULL;
    bool fits = dumped && strlen(dumped) < KVF_STORE_VALUE_MAX;
    if (fits)
        memcpy(text, dumped, strlen(dumped) + 1);
    free(dumped);
    json_decref(record);
    return fits;
}

/* 64 bits that a JSON integer cannot hold are text of 16 digits. */
static json_t *hex_json(uint64_t value)
{
    char hex[17];
    snprintf(hex, sizeof hex, "%016" PRIx64, value);
    return json_string(hex);
}

bool kvf_records_encode_member(const struct kvf_member *member, char text[KVF_STORE_VALUE_MAX])
{
    char address[KVF_BASE64_SIZE(sizeof member->address)];
    if (member->address_bytes > sizeof member->address || !kvf_records_name_ok(member->name))
        return false;
    kvf_base64_encode(member->address, member->address_bytes, address);
    return write_out(json_pack("{so ss ss ss sI sI}", "incarnation", hex_json(member->incarnation), "address", address, "admin",
                               member->admin, "host", member->host, "lend_bytes", (json_int_t)member->lend_bytes, "dram_bytes",
                               (json_int_t)member->dram_bytes),
                     text);
}

bool kvf_records_encode_placement(const struct kvf_placement *p, char text[KVF_STORE_VALUE_MAX])
{
    return write_out(json_pack("{ss sI ss sI ss}", "home", p->home, "epoch", (json_int_t)p->epoch, "state", states[p->state],
                               "tokens", (json_int_t)p->tokens, "model", p->model),
                     text);
}

bool kvf_records_encode_model(const struct kvf_model_desc *d, uint64_t fingerprint, char text[KVF_STORE_VALUE_MAX])
{
    if ((unsigned)d->dtype > KVF_BF16)
        return false;
    return write_out(json_pack("{so so sI sI sI sI sI ss sI sI}", "fingerprint", hex_json(fingerprint), "weights",
                               hex_json(d->weights_id), "layers", (json_int_t)d->layers, "kv_heads", (json_int_t)d->kv_heads,
                               "q_heads", (json_int_t)d->q_heads, "dim_k", (json_int_t)d->dim_k, "dim_v", (json_int_t)d->dim_v,
                               "dtype", dtypes[d->dtype], "chunk_tokens", (json_int_t)d->chunk_tokens, "block_tokens",
                               (json_int_t)d->block_tokens),
                     text);
}

bool kvf_records_encode_leader(const char *name, char text[KVF_STORE_VALUE_MAX])
{
    return write_out(json_pack("{ss}", "name", name), text);
}

/* ---------------------------------------------------------------------------------------------------- decode */

static json_t *read_in(const char *text)
{
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (root && !json_is_object(root)) {
        json_decref(root);
        return NULL;
    }
    return root;
}

static bool count_in(const json_t *root, const char *field, uint64_t max, uint64_t *out)
{
    const json_t *value = json_object_get(root, field);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || (uint64_t)json_integer_value(value) > max)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static bool small_in(const json_t *root, const char *field, uint32_t *out)
{
    uint64_t value;
    if (!count_in(root, field, UINT32_MAX, &value))
        return false;
    *out = (uint32_t)value;
    return true;
}

static bool hex_in(const json_t *root, const char *field, uint64_t *out)
{
    const char *text = json_string_value(json_object_get(root, field));
    return text && hex_of(text, out);
}

/* Printable ASCII without blanks that fits; may be empty. It ends up in logs and on terminals. */
static bool plain_in(const json_t *root, const char *field, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(root, field));
    if (!text || strlen(text) >= size)
        return false;
    for (const char *c = text; *c; c++)
        if (*c <= ' ' || *c > '~')
            return false;
    snprintf(out, size, "%s", text);
    return true;
}

static bool name_in(const json_t *root, const char *field, char out[64])
{
    const char *text = json_string_value(json_object_get(root, field));
    if (!text || !kvf_records_name_ok(text))
        return false;
    snprintf(out, 64, "%s", text);
    return true;
}

static bool word_in(const json_t *root, const char *field, const char *const *words, unsigned n, unsigned *out)
{
    const char *text = json_string_value(json_object_get(root, field));
    for (unsigned i = 0; text && i < n; i++)
        if (!strcmp(text, words[i])) {
            *out = i;
            return true;
        }
    return false;
}

bool kvf_records_decode_member(const char *name, const char *text, struct kvf_member *out)
{
    struct kvf_member m = {.incarnation = 0};
    json_t *root = read_in(text);
    const json_t *address = json_object_get(root, "address");
    bool good = root && kvf_records_name_ok(name) && hex_in(root, "incarnation", &m.incarnation) && json_is_string(address) &&
                kvf_base64_decode(json_string_value(address), json_string_length(address), m.address, sizeof m.address,
                                  &m.address_bytes) &&
                plain_in(root, "admin", m.admin, sizeof m.admin) && plain_in(root, "host", m.host, sizeof m.host) &&
                count_in(root, "lend_bytes", INT64_MAX, &m.lend_bytes) &&
                count_in(root, "dram_bytes", INT64_MAX, &m.dram_bytes);
    if (good) {
        snprintf(m.name, sizeof m.name, "%s", name);
        *out = m;
    }
    json_decref(root);
    return good;
}

bool kvf_records_decode_placement(uint64_t id, const char *text, struct kvf_placement *out)
{
    struct kvf_placement p = {.id = id};
    unsigned state = 0;
    json_t *root = read_in(text);
    bool good = root && name_in(root, "home", p.home) && count_in(root, "epoch", INT64_MAX - 1, &p.epoch) && p.epoch &&
                word_in(root, "state", states, 2, &state) && count_in(root, "tokens", INT64_MAX, &p.tokens) &&
                name_in(root, "model", p.model);
    if (good) {
        p.state = state;
        *out = p;
    }
    json_decref(root);
    return good;
}

bool kvf_records_decode_model(const char *name, const char *text, struct kvf_records_model *out)
{
    struct kvf_records_model m = {.fingerprint = 0};
    struct kvf_model_desc *d = &m.desc;
    unsigned dtype = 0;
    json_t *root = read_in(text);
    bool good = root && kvf_records_name_ok(name) && hex_in(root, "fingerprint", &m.fingerprint) &&
                hex_in(root, "weights", &d->weights_id) && small_in(root, "layers", &d->layers) &&
                small_in(root, "kv_heads", &d->kv_heads) && small_in(root, "q_heads", &d->q_heads) &&
                small_in(root, "dim_k", &d->dim_k) && small_in(root, "dim_v", &d->dim_v) &&
                word_in(root, "dtype", dtypes, 3, &dtype) && small_in(root, "chunk_tokens", &d->chunk_tokens) &&
                small_in(root, "block_tokens", &d->block_tokens);
    if (good) {
        d->dtype = dtype;
        snprintf(d->name, sizeof d->name, "%s", name);
        *out = m;
    }
    json_decref(root);
    return good;
}

bool kvf_records_decode_leader(const char *text, char name[64])
{
    json_t *root = read_in(text);
    bool good = root && name_in(root, "name", name);
    json_decref(root);
    return good;
}
