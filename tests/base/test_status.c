/* The status table, the version and the small calls over plain types. */
#include <kvf/kvf.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct row {
    const char *name, *text;
    int value;
    enum kvf_status_group group;
};
static const struct row rows[] = {
#define ROW(name, value, group, text) {#name, text, value, KVF_GROUP_##group},
    KVF_STATUS_MAP(ROW)
#undef ROW
};
#define ROWS (sizeof rows / sizeof rows[0])

static void every_code_gives_its_name_text_and_group(void **state)
{
    for (size_t i = 0; i < ROWS; i++) {
        assert_string_equal(kvf_status_name(rows[i].value), rows[i].name);
        assert_string_equal(kvf_status_text(rows[i].value), rows[i].text);
        assert_int_equal(kvf_status_group(rows[i].value), rows[i].group);
    }
}

static void codes_are_unique(void **state)
{
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(rows[i].value, rows[j].value);
            assert_string_not_equal(rows[i].name, rows[j].name);
            assert_string_not_equal(rows[i].text, rows[j].text);
        }
}

static void failures_are_negative_and_only_they_have_a_group(void **state)
{
    for (size_t i = 0; i < ROWS; i++) {
        assert_int_equal(rows[i].value < 0, rows[i].group != KVF_GROUP_OK);
        assert_int_equal(rows[i].value < 0, !strncmp(rows[i].name, "ERR_", 4));
    }
    assert_int_equal(KVF_OK, 0);
}

static void every_group_has_a_code(void **state)
{
    unsigned seen = 0;
    for (size_t i = 0; i < ROWS; i++)
        seen |= 1u << rows[i].group;
    assert_int_equal(seen, (1u << (KVF_GROUP_NODE + 1)) - 1);
}

static void unknown_codes_are_named_so(void **state)
{
    for (int code = -200; code <= 200; code++) {
        bool known = false;
        for (size_t i = 0; i < ROWS; i++)
            known |= rows[i].value == code;
        if (known)
            continue;
        assert_string_equal(kvf_status_name(code), "UNKNOWN");
        assert_string_equal(kvf_status_text(code), "UNKNOWN");
        assert_int_equal(kvf_status_group(code), code > 0 ? KVF_GROUP_OK : KVF_GROUP_NODE);
    }
}

static void version_tells_number_commit_and_features(void **state)
{
    char start[32];
    snprintf(start, sizeof start, "%d.%d (", KVF_VERSION_MAJOR, KVF_VERSION_MINOR);
    assert_memory_equal(kvf_version(), start, strlen(start));
    assert_non_null(strstr(kvf_version(), ", "));
    assert_int_equal(kvf_version()[strlen(kvf_version()) - 1], ')');
    assert_ptr_equal(kvf_version(), kvf_version());
}

static void types_have_sizes_and_tiers_have_names(void **state)
{
    static const char *const names[] = {"gpu", "dram", "remote", "ssd", "peer"};
    for (int tier = 0; tier < KVF_TIER_COUNT; tier++)
        assert_string_equal(kvf_tier_name(tier), names[tier]);
    assert_string_equal(kvf_tier_name(KVF_TIER_COUNT), "unknown");
    assert_string_equal(kvf_tier_name((enum kvf_tier)-1), "unknown");
    assert_int_equal(kvf_dtype_bytes(KVF_F32), 4);
    assert_int_equal(kvf_dtype_bytes(KVF_F16), 2);
    assert_int_equal(kvf_dtype_bytes(KVF_BF16), 2);
    assert_int_equal(kvf_dtype_bytes((enum kvf_dtype)99), 0);
}

static void free_takes_null_and_heap_memory(void **state)
{
    kvf_free(NULL);
    kvf_free(malloc(16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_gives_its_name_text_and_group),
        cmocka_unit_test(codes_are_unique),
        cmocka_unit_test(failures_are_negative_and_only_they_have_a_group),
        cmocka_unit_test(every_group_has_a_code),
        cmocka_unit_test(unknown_codes_are_named_so),
        cmocka_unit_test(version_tells_number_commit_and_features),
        cmocka_unit_test(types_have_sizes_and_tiers_have_names),
        cmocka_unit_test(free_takes_null_and_heap_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
