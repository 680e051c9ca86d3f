/* The text of etcd's gateway, base64 and the records: encode, decode, and what hostile answers do. */
#include "base/env.h"
#include "coordinator/base64.h"
#include "coordinator/records.h"
#include "coordinator/store_json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PREFIX "/kvf/test"

static struct kvf_store_json_answer decode(enum kvf_store_json_what what, long code, const char *text)
{
    struct kvf_store_json_answer answer;
    kvf_store_json_decode(what, code, text, strlen(text), &answer);
    return answer;
}

static struct kvf_store_json_line decode_line(const char *text)
{
    struct kvf_store_json_line line;
    kvf_store_json_decode_line(text, strlen(text), &line);
    return line;
}

static void base64_goes_there_and_back(void **state)
{
    static const char *const pairs[][2] = {{"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"\xff\xfe", "//4="}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        char text[16], back[16];
        size_t bytes = 99;
        kvf_base64_encode(pairs[i][0], strlen(pairs[i][0]), text);
        assert_string_equal(text, pairs[i][1]);
        assert_true(kvf_base64_decode(text, strlen(text), back, sizeof back, &bytes));
        assert_int_equal(bytes, strlen(pairs[i][0]));
        assert_memory_equal(back, pairs[i][0], bytes);
    }
}

static void base64_refuses_what_is_not(void **state)
{
    static const char *const bad[] = {
        "Z", "Zg", "Zg=", "Zg=a", "=Zg=", "====", "Zm9v=", "Zm9\n", "Zg==Zg==", "Zm9v Zm9v", "Z\xc3\xa4="};
    char back[64];
    size_t bytes = 7;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(kvf_base64_decode(bad[i], strlen(bad[i]), back, sizeof back, &bytes));
    assert_false(kvf_base64_decode("Zm9v", 4, back, 2, &bytes));
    assert_int_equal(bytes, 7);
}

static void check_text(char *text, const char *want)
{
    assert_non_null(text);
    assert_string_equal(text, want);
    free(text);
}

static void requests_are_what_the_gateway_takes(void **state)
{
    check_text(kvf_store_json_range("/a/"), "{\"key\":\"L2Ev\",\"range_end\":\"L2Ew\"}");
    check_text(kvf_store_json_range("a\xff"), "{\"key\":\"Yf8=\",\"range_end\":\"Yg==\"}");
    check_text(kvf_store_json_grant(5 * KVF_SEC), "{\"TTL\":\"5\"}");
    check_text(kvf_store_json_grant(1), "{\"TTL\":\"1\"}");
    check_text(kvf_store_json_grant(5 * KVF_SEC + 1), "{\"TTL\":\"6\"}");
    check_text(kvf_store_json_lease(UINT64_MAX), "{\"ID\":\"18446744073709551615\"}");
    check_text(kvf_store_json_watch("/a/", 7),
               "{\"create_request\":{\"key\":\"L2Ev\",\"range_end\":\"L2Ew\",\"start_revision\":\"7\"}}");
}

static void a_transaction_has_compares_puts_and_reads_on_both_sides(void **state)
{
    struct kvf_store_txn *txn = calloc(1, sizeof *txn);
    txn->n_compare = 3;
    txn->compare[0].what = KVF_COMPARE_ABSENT;
    txn->compare[1].what = KVF_COMPARE_MOD_REVISION;
    txn->compare[1].mod_revision = 9;
    txn->compare[2].what = KVF_COMPARE_VALUE;
    snprintf(txn->compare[2].value, sizeof txn->compare[2].value, "%s", "v");
    txn->n_put = 2;
    txn->put[0].lease = 5;
    snprintf(txn->put[0].value, sizeof txn->put[0].value, "%s", "v");
    txn->put[1].remove = true;
    txn->n_read = 1;
    for (unsigned i = 0; i < 3; i++)
        snprintf(txn->compare[i].key, sizeof txn->compare[i].key, "%s", "/a");
    snprintf(txn->put[0].key, sizeof txn->put[0].key, "%s", "/a");
    snprintf(txn->put[1].key, sizeof txn->put[1].key, "%s", "/b");
    snprintf(txn->read[0], sizeof txn->read[0], "%s", "/a");
    check_text(kvf_store_json_txn(txn),
               "{\"compare\":[{\"key\":\"L2E=\",\"target\":\"CREATE\",\"result\":\"EQUAL\",\"create_revision\":\"0\"},"
               "{\"key\":\"L2E=\",\"target\":\"MOD\",\"result\":\"EQUAL\",\"mod_revision\":\"9\"},"
               "{\"key\":\"L2E=\",\"target\":\"VALUE\",\"result\":\"EQUAL\",\"value\":\"dg==\"}],"
               "\"success\":[{\"request_put\":{\"key\":\"L2E=\",\"value\":\"dg==\",\"lease\":\"5\"}},"
               "{\"request_delete_range\":{\"key\":\"L2I=\"}},{\"request_range\":{\"key\":\"L2E=\"}}],"
               "\"failure\":[{\"request_range\":{\"key\":\"L2E=\"}}]}");
    free(txn);
}

static void answers_of_transactions_tell_success_and_what_stands(void **state)
{
    struct kvf_store_json_answer a = decode(KVF_STORE_JSON_TXN, 200,
        "{\"header\":{\"revision\":\"2\"},\"succeeded\":true,\"responses\":[{\"response_put\":{\"header\":{\"revision\":\"2\"}}},"
        "{\"response_range\":{\"header\":{\"revision\":\"2\"},\"kvs\":[{\"key\":\"L2EveA==\",\"create_revision\":\"2\","
        "\"mod_revision\":\"3\",\"version\":\"1\",\"value\":\"aGVsbG8=\",\"lease\":\"77\"}],\"count\":\"1\"}}]}");
    assert_int_equal(a.result.status, KVF_OK);
    assert_true(a.result.succeeded);
    assert_int_equal(a.result.revision, 2);
    assert_int_equal(a.result.n_kvs, 1);
    assert_string_equal(a.result.kvs[0].key, "/a/x");
    assert_string_equal(a.result.kvs[0].value, "hello");
    assert_int_equal(a.result.kvs[0].create_revision, 2);
    assert_int_equal(a.result.kvs[0].mod_revision, 3);
    assert_int_equal(a.result.kvs[0].lease, 77);
    kvf_store_json_release(&a);
    a = decode(KVF_STORE_JSON_TXN, 200,
               "{\"header\":{\"revision\":\"3\"},\"responses\":[{\"response_range\":{\"header\":{\"revision\":\"3\"}}}]}");
    assert_int_equal(a.result.status, KVF_OK);
    assert_false(a.result.succeeded);
    assert_int_equal(a.result.n_kvs, 0);
    kvf_store_json_release(&a);
}

static void leases_are_granted_kept_and_missed(void **state)
{
    struct kvf_store_json_answer a =
        decode(KVF_STORE_JSON_GRANT, 200, "{\"header\":{\"revision\":\"1\"},\"ID\":\"2324035561040536325\",\"TTL\":\"5\"}");
    assert_int_equal(a.result.status, KVF_OK);
    assert_true(a.result.lease == 2324035561040536325ull);
    assert_true(a.result.ttl_ns == 5 * KVF_SEC);
    a = decode(KVF_STORE_JSON_KEEPALIVE, 200, "{\"result\":{\"header\":{\"revision\":\"1\"},\"ID\":\"12\",\"TTL\":\"4\"}}\n");
    assert_int_equal(a.result.status, KVF_OK);
    assert_true(a.result.ttl_ns == 4 * KVF_SEC);
    a = decode(KVF_STORE_JSON_KEEPALIVE, 200, "{\"result\":{\"header\":{\"revision\":\"1\"},\"ID\":\"12\"}}\n");
    assert_int_equal(a.result.status, KVF_ERR_NOT_FOUND);
    a = decode(KVF_STORE_JSON_REVOKE, 404, "{\"error\":\"etcdserver: requested lease not found\",\"code\":5}");
    assert_int_equal(a.result.status, KVF_ERR_NOT_FOUND);
    a = decode(KVF_STORE_JSON_TXN, 404, "{\"error\":\"etcdserver: requested lease not found\",\"code\":5}");
    assert_int_equal(a.result.status, KVF_ERR_NOT_FOUND);
    a = decode(KVF_STORE_JSON_GRANT, 200, "{\"header\":{\"revision\":\"1\"},\"TTL\":\"5\"}");
    assert_int_equal(a.result.status, KVF_ERR_STORE);
}

static void a_transaction_without_a_clear_answer_is_of_unknown_outcome(void **state)
{
    static const struct {
        long code;
        const char *text;
        enum kvf_status txn, range;
    } rows[] = {
        {503, "{\"error\":\"etcdserver: request timed out\",\"code\":14}", KVF_ERR_DEADLINE, KVF_ERR_STORE},
        {500, "", KVF_ERR_DEADLINE, KVF_ERR_STORE},
        {200, "<html>", KVF_ERR_DEADLINE, KVF_ERR_STORE},
        {200, "{}", KVF_ERR_DEADLINE, KVF_ERR_STORE},
        {200, "[1,2", KVF_ERR_DEADLINE, KVF_ERR_STORE},
        {400, "{\"error\":\"etcdserver: too many operations in txn request\",\"code\":3}", KVF_ERR_STORE, KVF_ERR_STORE},
        {403, "{\"error\":{\"message\":\"permission denied\"}}", KVF_ERR_STORE, KVF_ERR_STORE},
        {404, "<html>not etcd</html>", KVF_ERR_STORE, KVF_ERR_STORE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct kvf_store_json_answer a = decode(KVF_STORE_JSON_TXN, rows[i].code, rows[i].text);
        assert_int_equal(a.result.status, rows[i].txn);
        assert_true(a.error[0]);
        a = decode(KVF_STORE_JSON_RANGE, rows[i].code, rows[i].text);
        assert_int_equal(a.result.status, rows[i].range);
        assert_null(a.kvs);
    }
}

static void hostile_keys_are_skipped_and_hostile_values_are_empty(void **state)
{
    struct kvf_store_json_answer a =
        decode(KVF_STORE_JSON_RANGE, 200,
               "{\"header\":{\"revision\":\"x\"},\"kvs\":[1,null,{},{\"key\":5},{\"key\":\"!!\"},{\"key\":\"AGE=\"},"
               "{\"key\":\"L2E=\",\"value\":\"AAAA\",\"mod_revision\":-5},{\"key\":\"L2I=\",\"value\":7,\"mod_revision\":"
               "18446744073709551616},"
               "{\"key\":\"L2M=\",\"mod_revision\":\"99999999999999999999\"}]}");
    assert_int_equal(a.result.n_kvs, 0); /* an integer beyond 64 bits is no JSON to us: the whole answer is refused */
    assert_int_equal(a.result.status, KVF_ERR_STORE);
    a = decode(KVF_STORE_JSON_RANGE, 200,
        "{\"header\":{\"revision\":\"x\"},\"kvs\":[1,null,{},{\"key\":5},{\"key\":\"!!\"},{\"key\":\"AGE=\"},"
        "{\"key\":\"L2E=\",\"value\":\"AAAA\",\"mod_revision\":-5},{\"key\":\"L2I=\",\"value\":7,\"mod_revision\":8},"
        "{\"key\":\"L2M=\",\"mod_revision\":\"99999999999999999999\"}]}");
    assert_int_equal(a.result.status, KVF_OK);
    assert_int_equal(a.result.revision, 0);
    assert_int_equal(a.result.n_kvs, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_string_equal(a.result.kvs[i].value, "");
    assert_int_equal(a.result.kvs[0].mod_revision, 0);
    assert_int_equal(a.result.kvs[1].mod_revision, 8);
    assert_int_equal(a.result.kvs[2].mod_revision, 0);
    kvf_store_json_release(&a);
}

static void values_up_to_the_limit_fit(void **state)
{
    static char value[KVF_STORE_VALUE_MAX + 8], base64[KVF_BASE64_SIZE(sizeof value)], text[3 * sizeof base64];
    for (unsigned extra = 0; extra < 2; extra++) {
        size_t length = KVF_STORE_VALUE_MAX - 1 + extra;
        memset(value, 'v', length);
        kvf_base64_encode(value, length, base64);
        snprintf(text, sizeof text, "{\"header\":{\"revision\":\"4\"},\"kvs\":[{\"key\":\"L2E=\",\"value\":\"%s\"}]}", base64);
        struct kvf_store_json_answer a = decode(KVF_STORE_JSON_RANGE, 200, text);
        assert_int_equal(a.result.n_kvs, 1);
        assert_int_equal(strlen(a.result.kvs[0].value), extra ? 0 : length);
        kvf_store_json_release(&a);
    }
}

static void watch_lines_tell_events_and_what_went_wrong(void **state)
{
    struct kvf_store_json_line l =
        decode_line("{\"result\":{\"header\":{\"cluster_id\":\"6\",\"revision\":\"4\"},\"created\":true}}");
    assert_int_equal(l.event, KVF_STORE_JSON_CREATED);
    assert_int_equal(l.revision, 4);
    assert_int_equal(l.cluster, 6);
    l = decode_line("{\"result\":{\"header\":{\"revision\":\"9\"},\"events\":[{\"kv\":{\"key\":\"L2EveA==\",\"mod_revision\":"
                    "\"2\",\"value\":\"aGVsbG8=\"}},"
                    "{\"type\":\"DELETE\",\"kv\":{\"key\":\"L2EveA==\",\"mod_revision\":\"3\"}},{\"kv\":{\"key\":\"L2Eveg==\","
                    "\"mod_revision\":\"4\"}},5]}}");
    assert_int_equal(l.event, KVF_STORE_JSON_EVENTS);
    assert_int_equal(l.revision, 4); /* of the events: the header may be ahead of them */
    assert_int_equal(l.n_kvs, 3);
    assert_string_equal(l.kvs[0].value, "hello");
    assert_null(l.kvs[1].value);
    assert_string_equal(l.kvs[2].value, "");
    kvf_store_json_line_release(&l);
    l = decode_line("{\"result\":{\"header\":{\"revision\":\"9\"},\"canceled\":true,\"compact_revision\":\"7\"}}");
    assert_int_equal(l.event, KVF_STORE_JSON_LOST);
    l = decode_line("{\"result\":{\"header\":{\"revision\":\"9\"},\"canceled\":true,\"cancel_reason\":\"no permission\"}}");
    assert_int_equal(l.event, KVF_STORE_JSON_FAILED);
    assert_non_null(strstr(l.error, "no permission"));
    l = decode_line("{\"result\":{\"header\":{\"revision\":\"9\"}}}");
    assert_int_equal(l.event, KVF_STORE_JSON_NOTHING);
    static const char *const bad[] = {
        "", "{", "null", "{\"error\":{\"message\":\"x\"}}", "{\"result\":7}", "\xff\xfe", "{\"result\":{\"header\":1}}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        l = decode_line(bad[i]);
        assert_int_equal(l.event, KVF_STORE_JSON_FAILED);
        assert_null(l.kvs);
    }
}

/* ---------------------------------------------------------------------------------------------------- records */

static struct kvf_member some_member(void)
{
    struct kvf_member m = {
        .name = "n1", .incarnation = 0xfedcba9876543210, .address_bytes = 1024, .admin = "127.0.0.1:80", .host = "h1"};
    for (size_t i = 0; i < sizeof m.address; i++)
        m.address[i] = (uint8_t)(i * 7);
    m.lend_bytes = 1ull << 40;
    m.dram_bytes = 5;
    return m;
}

static void member_records_go_there_and_back(void **state)
{
    struct kvf_member m = some_member(), back;
    char text[KVF_STORE_VALUE_MAX];
    memset(&back, 0, sizeof back);
    assert_true(kvf_records_encode_member(&m, text));
    assert_true(kvf_records_decode_member("n1", text, &back));
    assert_memory_equal(&m, &back, sizeof m);
    m.address_bytes = sizeof m.address + 1;
    assert_false(kvf_records_encode_member(&m, text));
}

static void placements_models_and_leaders_go_there_and_back(void **state)
{
    struct kvf_placement p = {.id = 7,
                              .home = "n1",
                              .model = "m.1",
                              .epoch = 3,
                              .tokens = 1 << 20,
                              .state = KVF_SESSION_PARKED},
                         p2;
    struct kvf_model_desc d = {.name = "m.1",
                               .weights_id = UINT64_MAX,
                               .layers = 30,
                               .kv_heads = 3,
                               .q_heads = 9,
                               .dim_k = 64,
                               .dim_v = 64,
                               .dtype = KVF_BF16,
                               .chunk_tokens = 16,
                               .block_tokens = 128};
    struct kvf_records_model m2;
    char text[KVF_STORE_VALUE_MAX], name[64];
    assert_true(kvf_records_encode_placement(&p, text));
    assert_string_equal(text, "{\"home\":\"n1\",\"epoch\":3,\"state\":\"parked\",\"tokens\":1048576,\"model\":\"m.1\"}");
    assert_true(kvf_records_decode_placement(7, text, &p2));
    assert_memory_equal(&p, &p2, sizeof p);
    assert_true(kvf_records_encode_model(&d, 0x1234, text));
    assert_true(kvf_records_decode_model("m.1", text, &m2));
    assert_memory_equal(&d, &m2.desc, sizeof d);
    assert_int_equal(m2.fingerprint, 0x1234);
    assert_true(kvf_records_encode_leader("boss", text));
    assert_true(kvf_records_decode_leader(text, name));
    assert_string_equal(name, "boss");
}

static void hostile_records_are_refused(void **state)
{
    static const char *const placements[] = {
        "",
        "null",
        "[]",
        "{}",
        "{\"home\":\"n1\"}",
        "{\"home\":\"n1\",\"epoch\":0,\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"n1\",\"epoch\":-1,\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"n1\",\"epoch\":9223372036854775807,\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"n1\",\"epoch\":1.5,\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"n1\",\"epoch\":\"1\",\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"n1\",\"epoch\":1,\"state\":\"dancing\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"\",\"epoch\":1,\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"../n1\",\"epoch\":1,\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"n1\\u0000\",\"epoch\":1,\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"n1\",\"home\":\"n2\",\"epoch\":1,\"state\":\"active\",\"tokens\":0,\"model\":\"m\"}",
        "{\"home\":\"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\",\"epoch\":1,\"state\":"
        "\"active\",\"tokens\":0,\"model\":\"m\"}",
    };
    static const char *const members[] = {
        "",
        "{}",
        "{\"incarnation\":5,\"address\":\"\",\"admin\":\"\",\"host\":\"\",\"lend_bytes\":0,\"dram_bytes\":0}",
        "{\"incarnation\":\"0123456789ABCDEF\",\"address\":\"\",\"admin\":\"\",\"host\":\"\",\"lend_bytes\":0,\"dram_bytes\":"
        "0}",
        "{\"incarnation\":\"0123456789abcdef\",\"address\":\"?\",\"admin\":\"\",\"host\":\"\",\"lend_bytes\":0,\"dram_bytes\":"
        "0}",
        "{\"incarnation\":\"0123456789abcdef\",\"address\":\"\",\"admin\":\"a "
        "b\",\"host\":\"\",\"lend_bytes\":0,\"dram_bytes\":0}",
        "{\"incarnation\":\"0123456789abcdef\",\"address\":\"\",\"admin\":\"\",\"host\":\"\\u001b[2J\",\"lend_bytes\":0,\"dram_"
        "bytes\":0}",
        "{\"incarnation\":\"0123456789abcdef\",\"address\":\"\",\"admin\":\"\",\"host\":\"\",\"lend_bytes\":-1,\"dram_bytes\":"
        "0}",
    };
    struct kvf_placement p = {.id = 42};
    struct kvf_member m = {.incarnation = 42};
    for (size_t i = 0; i < sizeof placements / sizeof placements[0]; i++)
        assert_false(kvf_records_decode_placement(1, placements[i], &p));
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++)
        assert_false(kvf_records_decode_member("n1", members[i], &m));
    assert_int_equal(p.id, 42);
    assert_int_equal(m.incarnation, 42);
}

static void keys_name_one_thing_each(void **state)
{
    char key[KVF_STORE_KEY_MAX];
    const char *name = NULL;
    uint64_t id = 0;
    assert_true(kvf_records_session_key(PREFIX, 0xab, key));
    assert_string_equal(key, PREFIX "/sessions/00000000000000ab");
    assert_int_equal(kvf_records_key(PREFIX, key, &name, &id), KVF_RECORDS_SESSION);
    assert_int_equal(id, 0xab);
    assert_true(kvf_records_member_key(PREFIX, "n-1", key));
    assert_int_equal(kvf_records_key(PREFIX, key, &name, &id), KVF_RECORDS_MEMBER);
    assert_string_equal(name, "n-1");
    assert_int_equal(kvf_records_key(PREFIX, PREFIX "/leader", &name, &id), KVF_RECORDS_LEADER);
    static const char *const other[] = {
        "",
        "/",
        PREFIX,
        PREFIX "/",
        PREFIX "x/leader",
        PREFIX "/leader2",
        PREFIX "/members/",
        PREFIX "/members/a/b",
        PREFIX "/sessions/ab",
        PREFIX "/sessions/00000000000000AB",
        PREFIX "/sessions/0000000000000000",
        PREFIX "/sessions/00000000000000ab0",
        PREFIX "/members/a b",
    };
    for (size_t i = 0; i < sizeof other / sizeof other[0]; i++)
        assert_int_equal(kvf_records_key(PREFIX, other[i], &name, &id), KVF_RECORDS_OTHER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(base64_goes_there_and_back),
        cmocka_unit_test(base64_refuses_what_is_not),
        cmocka_unit_test(requests_are_what_the_gateway_takes),
        cmocka_unit_test(a_transaction_has_compares_puts_and_reads_on_both_sides),
        cmocka_unit_test(answers_of_transactions_tell_success_and_what_stands),
        cmocka_unit_test(leases_are_granted_kept_and_missed),
        cmocka_unit_test(a_transaction_without_a_clear_answer_is_of_unknown_outcome),
        cmocka_unit_test(hostile_keys_are_skipped_and_hostile_values_are_empty),
        cmocka_unit_test(values_up_to_the_limit_fit),
        cmocka_unit_test(watch_lines_tell_events_and_what_went_wrong),
        cmocka_unit_test(member_records_go_there_and_back),
        cmocka_unit_test(placements_models_and_leaders_go_there_and_back),
        cmocka_unit_test(hostile_records_are_refused),
        cmocka_unit_test(keys_name_one_thing_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
