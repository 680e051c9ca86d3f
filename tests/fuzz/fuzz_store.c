/* Any bytes as an answer of etcd's gateway, as a line of a watch, as a record, as base64: no crash, nothing out of bounds, and a
 * record that is accepted is written and read back as the same record. The first byte says what the rest is. */
// needs: coordinator/base64.c coordinator/records.c coordinator/store_json.c
// libs: -ljansson -lxxhash
#include "coordinator/base64.h"
#include "coordinator/records.h"
#include "coordinator/store_json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool truth)
{
    if (!truth)
        abort();
}

static void check_kvs(const struct kvf_store_kv *kvs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        require(kvs[i].key && kvs[i].key[0] && strlen(kvs[i].key) < KVF_STORE_KEY_MAX);
        require(!kvs[i].value || strlen(kvs[i].value) < KVF_STORE_VALUE_MAX);
    }
}

static void fuzz_answer(uint8_t how, const char *text, size_t bytes)
{
    static const long codes[] = {200, 400, 404, 503};
    struct kvf_store_json_answer answer;
    enum kvf_store_json_what what = how % KVF_STORE_JSON_WATCH;
    kvf_store_json_decode(what, codes[how / 8 % 4], text, bytes, &answer);
    check_kvs(answer.result.kvs, answer.result.n_kvs);
    for (size_t i = 0; i < answer.result.n_kvs; i++)
        require(answer.result.kvs[i].value != NULL);
    require(answer.result.status != KVF_ERR_DEADLINE || what == KVF_STORE_JSON_TXN);
    require(what != KVF_STORE_JSON_GRANT || answer.result.status != KVF_OK || (answer.result.lease && answer.result.ttl_ns));
    kvf_store_json_release(&answer);
}

static void fuzz_line(const char *text, size_t bytes)
{
    struct kvf_store_json_line line;
    kvf_store_json_decode_line(text, bytes, &line);
    check_kvs(line.kvs, line.n_kvs);
    kvf_store_json_line_release(&line);
}

static void fuzz_record(const char *text)
{
    static char out[KVF_STORE_VALUE_MAX];
    static struct kvf_member member, member_again;
    struct kvf_placement placement, placement_again;
    struct kvf_records_model model, model_again;
    char leader[64], leader_again[64];
    if (kvf_records_decode_member("n", text, &member)) {
        require(kvf_records_encode_member(&member, out) && kvf_records_decode_member("n", out, &member_again));
        require(!memcmp(&member, &member_again, sizeof member));
    }
    if (kvf_records_decode_placement(7, text, &placement)) {
        require(kvf_records_encode_placement(&placement, out) && kvf_records_decode_placement(7, out, &placement_again));
        require(!memcmp(&placement, &placement_again, sizeof placement));
    }
    if (kvf_records_decode_model("m", text, &model)) {
        require(kvf_records_encode_model(&model.desc, model.fingerprint, out) &&
                kvf_records_decode_model("m", out, &model_again));
        require(!memcmp(&model, &model_again, sizeof model));
    }
    if (kvf_records_decode_leader(text, leader)) {
        require(kvf_records_encode_leader(leader, out) && kvf_records_decode_leader(out, leader_again));
        require(!strcmp(leader, leader_again));
    }
}

static void fuzz_key(const char *text)
{
    const char *name = NULL;
    char key[KVF_STORE_KEY_MAX] = "";
    uint64_t id = 0;
    switch (kvf_records_key("/p", text, &name, &id)) {
    case KVF_RECORDS_MEMBER:
        require(kvf_records_member_key("/p", name, key) && !strcmp(key, text));
        break;
    case KVF_RECORDS_MODEL:
        require(kvf_records_model_key("/p", name, key) && !strcmp(key, text));
        break;
    case KVF_RECORDS_SESSION:
        require(kvf_records_session_key("/p", id, key) && !strcmp(key, text));
        break;
    case KVF_RECORDS_LEADER:
        require(kvf_records_leader_key("/p", key) && !strcmp(key, text));
        break;
    case KVF_RECORDS_OTHER:
        break;
    }
}

static void fuzz_base64(const char *text, size_t bytes)
{
    static char data[4096], again[KVF_BASE64_SIZE(sizeof data)];
    size_t n = 0;
    if (!kvf_base64_decode(text, bytes, data, sizeof data, &n))
        return;
    kvf_base64_encode(data, n, again);
    require(strlen(again) == bytes);
    char *back = malloc(n + 1);
    size_t m = 0;
    require(back && kvf_base64_decode(again, strlen(again), back, n, &m) && m == n && !memcmp(back, data, n));
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!bytes)
        return 0;
    uint8_t how = *data++;
    char *text = malloc(bytes); /* without the first byte, with a NUL: the exact size, so that a read past it shows */
    require(text != NULL);
    memcpy(text, data, bytes - 1);
    text[bytes - 1] = 0;
    switch (how >> 5) {
    case 0:
        fuzz_line(text, bytes - 1);
        break;
    case 1:
        fuzz_record(text);
        break;
    case 2:
        fuzz_key(text);
        break;
    case 3:
        fuzz_base64(text, bytes - 1);
        break;
    default:
        fuzz_answer(how, text, bytes - 1);
        break;
    }
    free(text);
    return 0;
}
