/* The file of the secret: what is taken, what is refused and why, and where it lies in memory. */
#include "fabric/secret.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define ONE "00112233445566778899aabbccddeeff"
#define TWO "ffeeddccbbaa99887766554433221100"

static char folder[] = "/tmp/kvf-secret-XXXXXX";
static char path[64];

static void write_file(const char *text, mode_t mode)
{
    unlink(path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static enum kvf_status load(struct kvf_secret *secret, const char *text, char *error, size_t size)
{
    error[0] = 0;
    write_file(text, 0600);
    return kvf_secret_load(secret, path, error, size);
}

static bool same_mac(const struct kvf_secret *a, const struct kvf_secret *b)
{
    uint8_t id[KVF_SECRET_ID_BYTES], one[KVF_SECRET_MAC_BYTES], two[KVF_SECRET_MAC_BYTES];
    kvf_secret_id(a, id);
    assert_true(kvf_secret_mac(a, id, "text", 4, one));
    return kvf_secret_mac(b, id, "text", 4, two) && memcmp(one, two, sizeof one) == 0;
}

static void one_or_two_lines_are_taken(void **state)
{
    struct kvf_secret *a, *b;
    char error[256];
    uint8_t id[KVF_SECRET_ID_BYTES];
    assert_int_equal(kvf_secret_create(&a), KVF_OK);
    assert_int_equal(kvf_secret_create(&b), KVF_OK);
    assert_false(kvf_secret_present(a));
    assert_true(same_mac(a, NULL)); /* nothing set is as nothing given */
    assert_int_equal(load(a, ONE, error, sizeof error), KVF_OK);
    assert_int_equal(load(b, ONE "\n", error, sizeof error), KVF_OK);
    assert_true(kvf_secret_present(a));
    assert_true(same_mac(a, b));
    assert_false(same_mac(a, NULL) || same_mac(NULL, a));
    assert_int_equal(load(b, TWO "\n" ONE "\n", error, sizeof error), KVF_OK);
    assert_true(same_mac(a, b));  /* b accepts a's */
    assert_false(same_mac(b, a)); /* and proves with another */
    kvf_secret_id(a, id);
    assert_true(kvf_secret_accepts(b, id));
    kvf_secret_id(b, id);
    assert_false(kvf_secret_accepts(a, id));
    kvf_secret_destroy(a);
    kvf_secret_destroy(b);
}

static void what_is_no_secret_is_refused_and_the_old_one_stays(void **state)
{
    static char long_line[KVF_SECRET_BYTES_MAX + 2], longer[4000];
    memset(long_line, 'x', KVF_SECRET_BYTES_MAX + 1);
    memset(longer, 'x', sizeof longer - 1);
    const struct {
        const char *text, *why;
    } wrong[] = {{"", "no secret"},
                 {"\n", "fewer than 32"},
                 {"0123456789012345678901234567890\n", "fewer than 32"},
                 {ONE "\n\n", "fewer than 32"},
                 {ONE "\nshort\n", "fewer than 32"},
                 {long_line, "more than 256"},
                 {longer, "too long"},
                 {ONE "\n" TWO "\n" ONE "\n", "more than two"},
                 {ONE " " TWO "\n", "white space"},
                 {ONE "\r\n", "white space"},
                 {"caf\xc3\xa9 01234567890123456789012345\n", "printable"}};
    struct kvf_secret *secret, *before;
    char error[256];
    assert_int_equal(kvf_secret_create(&secret), KVF_OK);
    assert_int_equal(kvf_secret_create(&before), KVF_OK);
    assert_int_equal(load(before, TWO, error, sizeof error), KVF_OK);
    assert_int_equal(load(secret, TWO, error, sizeof error), KVF_OK);
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(load(secret, wrong[i].text, error, sizeof error), KVF_ERR_CONFIG);
        assert_non_null(strstr(error, wrong[i].why));
        assert_null(strstr(error, "0123456789"));
        assert_null(strstr(error, "001122334455"));
        assert_true(same_mac(before, secret) && same_mac(secret, before));
    }
    kvf_secret_destroy(secret);
    kvf_secret_destroy(before);
}

static void a_file_that_others_may_touch_is_refused(void **state)
{
    struct kvf_secret *secret;
    char error[256];
    assert_int_equal(kvf_secret_create(&secret), KVF_OK);
    const mode_t wrong[] = {0644, 0640, 0604, 0620, 0602, 0601, 0610};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        write_file(ONE "\n", wrong[i]);
        assert_int_equal(kvf_secret_load(secret, path, error, sizeof error), KVF_ERR_CONFIG);
        assert_non_null(strstr(error, "chmod 600"));
        assert_false(kvf_secret_present(secret));
    }
    write_file(ONE "\n", 0400);
    assert_int_equal(kvf_secret_load(secret, path, error, sizeof error), KVF_OK);
    assert_int_equal(kvf_secret_load(secret, folder, error, sizeof error), KVF_ERR_CONFIG);
    assert_non_null(strstr(error, "is not a file"));
    unlink(path);
    assert_int_equal(kvf_secret_load(secret, path, error, sizeof error), KVF_ERR_CONFIG);
    assert_non_null(strstr(error, "No such file"));
    if (geteuid() == 0) {
        write_file(ONE "\n", 0600);
        assert_int_equal(chown(path, 12345, 0), 0);
        uid_t us = geteuid();
        assert_int_equal(kvf_secret_load(secret, path, error, sizeof error), KVF_ERR_CONFIG);
        assert_non_null(strstr(error, "belongs to another user"));
        assert_int_equal(geteuid(), us);
    }
    kvf_secret_destroy(secret);
}

static void another_file_is_noticed(void **state)
{
    struct kvf_secret *secret;
    char error[256];
    assert_int_equal(kvf_secret_create(&secret), KVF_OK);
    assert_int_equal(load(secret, ONE "\n", error, sizeof error), KVF_OK);
    assert_false(kvf_secret_changed(secret, path));
    write_file(TWO "\n", 0600); /* of the same size */
    assert_true(kvf_secret_changed(secret, path));
    assert_int_equal(kvf_secret_load(secret, path, error, sizeof error), KVF_OK);
    assert_false(kvf_secret_changed(secret, path));
    assert_int_equal(chmod(path, 0644), 0);
    assert_true(kvf_secret_changed(secret, path));
    assert_int_equal(kvf_secret_load(secret, path, error, sizeof error), KVF_ERR_CONFIG);
    assert_false(kvf_secret_changed(secret, path)); /* one line in the log, not one every time */
    unlink(path);
    assert_true(kvf_secret_changed(secret, path));
    assert_int_equal(kvf_secret_load(secret, path, error, sizeof error), KVF_ERR_CONFIG);
    assert_false(kvf_secret_changed(secret, path));
    write_file(ONE "\n", 0600);
    assert_true(kvf_secret_changed(secret, path));
    assert_true(kvf_secret_present(secret));
    kvf_secret_destroy(secret);
}

/* What the kernel says of the page at an address: its VmFlags. */
static void flags_of(const void *address, char *flags, size_t size)
{
    char line[512];
    bool inside = false;
    FILE *maps = fopen("/proc/self/smaps", "r");
    flags[0] = 0;
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            inside = (uintptr_t)address >= from && (uintptr_t)address < to;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            snprintf(flags, size, "%s", line);
    }
    fclose(maps);
}

static void it_is_in_no_dump_and_no_child(void **state)
{
    struct kvf_secret *secret;
    char flags[512];
    assert_int_equal(kvf_secret_create(&secret), KVF_OK);
    flags_of(secret, flags, sizeof flags);
    if (!flags[0])
        skip();
    assert_non_null(strstr(flags, " dd")); /* MADV_DONTDUMP */
    assert_non_null(strstr(flags, " wf")); /* MADV_WIPEONFORK */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* which make mlock do nothing */
    assert_non_null(strstr(flags, " lo")); /* 64 KiB are allowed to everybody */
#endif
    kvf_secret_destroy(secret);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_or_two_lines_are_taken),
        cmocka_unit_test(what_is_no_secret_is_refused_and_the_old_one_stays),
        cmocka_unit_test(a_file_that_others_may_touch_is_refused),
        cmocka_unit_test(another_file_is_noticed),
        cmocka_unit_test(it_is_in_no_dump_and_no_child),
    };
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof path, "%s/secret", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    rmdir(folder);
    return failed;
}
