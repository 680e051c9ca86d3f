/* The configuration: defaults, bounds, files, environment, dump, hostile bytes. */
#include "base/config.h"
#include "base/config_file.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SEED 77u

struct fixture {
    struct kvf_config *config;
    char folder[256], path[300];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    const char *base = getenv("TMPDIR");
    snprintf(f->folder, sizeof f->folder, "%s/kvf-config-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(f->folder) || kvf_config_create(&f->config))
        return -1;
    snprintf(f->path, sizeof f->path, "%s/kvf.conf", f->folder);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    unlink(f->path);
    rmdir(f->folder);
    kvf_config_destroy(f->config);
    free(f);
    return 0;
}

static void write_file(struct fixture *f, const void *data, size_t bytes)
{
    FILE *out = fopen(f->path, "w");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, bytes, out), bytes);
    assert_int_equal(fclose(out), 0);
}

static enum kvf_status load_text(struct fixture *f, const char *text)
{
    write_file(f, text, strlen(text));
    return kvf_config_load(f->config, f->path);
}

static void assert_value(struct fixture *f, const char *name, const char *expected)
{
    char text[KVF_CONFIG_TEXT_MAX];
    assert_int_equal(kvf_config_get(f->config, name, text, sizeof text), KVF_OK);
    assert_string_equal(text, expected);
}

/* The failure's line holds every one of the words, and is one line. */
static void assert_error(struct fixture *f, const char *a, const char *b, const char *c)
{
    const char *error = kvf_config_error(f->config);
    if (!strstr(error, a) || !strstr(error, b) || !strstr(error, c))
        fail_msg("'%s' lacks one of '%s', '%s', '%s'", error, a, b, c);
    assert_null(strchr(error, '\n'));
}

static void defaults_are_those_of_the_table(void **state)
{
    struct fixture *f = *state;
    const struct kvf_settings *s = kvf_config_settings(f->config);
    assert_true(s->dram_bytes == 256ull << 20);
    assert_true(s->fetch_timeout_ns == 10000000000ull);
    assert_true(s->reactor_spin_ns == 100000);
    assert_true(s->blocks_max == 1000000);
    assert_true(s->borrow);
    assert_string_equal(s->ssd_engine, "auto");
    assert_string_equal(s->node_name, "");
    assert_value(f, "dram.bytes", "256M");
    assert_value(f, "fetch.timeout", "10s");
    assert_value(f, "fabric.heartbeat", "250ms");
    assert_value(f, "lend.bytes", "0");
    assert_string_equal(kvf_config_error(f->config), "");
}

static void the_table_is_complete_and_its_names_are_unique(void **state)
{
    struct kvf_config_entry entry, other;
    size_t n = 0;
    for (; kvf_config_entry(n, &entry); n++) {
        assert_true(*entry.help && *entry.type && *entry.bounds);
        assert_true(strspn(entry.name, "abcdefghijklmnopqrstuvwxyz._") == strlen(entry.name));
        assert_true(strlen(entry.name) < 64);
        for (size_t i = 0; i < n; i++) {
            /* As environment names too: '.' and '_' become one. */
            assert_true(kvf_config_entry(i, &other));
            bool same = strlen(entry.name) == strlen(other.name);
            for (size_t c = 0; same && entry.name[c]; c++)
                same = (entry.name[c] == '.' ? '_' : entry.name[c]) == (other.name[c] == '.' ? '_' : other.name[c]);
            assert_false(same);
        }
    }
    assert_true(n > 20);
    assert_true(kvf_config_entry(1, &entry));
    assert_string_equal(entry.name, "dram.bytes");
    assert_string_equal(entry.value, "256M");
    assert_string_equal(entry.type, "size");
    assert_string_equal(entry.bounds, "1M to 8T");
}

static void sizes_and_times_take_units(void **state)
{
    struct fixture *f = *state;
    const struct kvf_settings *s = kvf_config_settings(f->config);
    static const struct {
        const char *text;
        uint64_t value;
    } sizes[] = {{"1048576", 1 << 20}, {"1024k", 1 << 20}, {"2K", 0}, {"1M", 1 << 20}, {"3m", 3 << 20}, {"7G", 7ull << 30},
                 {" 2T\t", 2ull << 40}, {"0001M", 1 << 20}},
      times[] = {{"1000000ns", 1000000}, {"1000us", 1000000}, {"1500ms", 1500000000}, {"3600s", 3600000000000}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        enum kvf_status status = kvf_config_set(f->config, "dram.bytes", sizes[i].text);
        assert_int_equal(status, sizes[i].value ? KVF_OK : KVF_ERR_CONFIG); /* 2K is below the bound */
        if (sizes[i].value)
            assert_true(s->dram_bytes == sizes[i].value);
    }
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        assert_int_equal(kvf_config_set(f->config, "fetch.timeout", times[i].text), KVF_OK);
        assert_true(s->fetch_timeout_ns == times[i].value);
    }
    assert_int_equal(kvf_config_set(f->config, "reactor.spin", "0"), KVF_OK);
    assert_true(s->reactor_spin_ns == 0);
}

static void junk_overflow_and_values_out_of_bounds_are_refused(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *name, *text;
    } bad[] = {
        {"dram.bytes", ""}, {"dram.bytes", "M"}, {"dram.bytes", "-1M"}, {"dram.bytes", "+5M"}, {"dram.bytes", "1.5G"},
        {"dram.bytes", "1MM"}, {"dram.bytes", "1 M"}, {"dram.bytes", "1Mx"}, {"dram.bytes", "0x100000"}, {"dram.bytes", "1P"},
        {"dram.bytes", "18446744073709551616"}, {"dram.bytes", "99999999999999999999999999999"},
        {"dram.bytes", "16777216T"}, {"dram.bytes", "18446744073709551615k"}, {"dram.bytes", "1023k"}, {"dram.bytes", "1025T"},
        {"fetch.timeout", "10"}, {"fetch.timeout", "10m"}, {"fetch.timeout", "10MS"}, {"fetch.timeout", "999us"},
        {"fetch.timeout", "3601s"}, {"fetch.timeout", "18446744074s"}, {"fetch.timeout", "s"}, {"fetch.timeout", "-1s"},
        {"workers", "0"}, {"workers", "257"}, {"workers", "1k"}, {"workers", "two"}, {"workers", "1e2"},
        {"lend.borrow", "maybe"}, {"lend.borrow", ""}, {"lend.borrow", "TRUE "}, {"ssd.engine", "aut"},
        {"ssd.engine", "auto|uring"}, {"ssd.engine", ""}, {"ssd.engine", "autox"},
        {"node.name", "a\nb"}, {"node.name", "a\x7f"}, {"node.name", "a #b"}, {"node.name", "#a"},
    };
    struct kvf_settings before = *kvf_config_settings(f->config);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (kvf_config_set(f->config, bad[i].name, bad[i].text) != KVF_ERR_CONFIG)
            fail_msg("%s = '%s' was taken", bad[i].name, bad[i].text);
        assert_error(f, bad[i].name, "allowed: ", "");
        assert_memory_equal(&before, kvf_config_settings(f->config), sizeof before);
    }
    assert_int_equal(kvf_config_set(f->config, "workers", "300"), KVF_ERR_CONFIG);
    assert_string_equal(kvf_config_error(f->config), "workers = '300' is out of bounds; allowed: 1 to 256");
}

static void words_and_booleans_are_normalised(void **state)
{
    struct fixture *f = *state;
    static const char *const yes[] = {"true", "yes", "on", "1"}, *const no[] = {"false", "no", "off", "0"};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(kvf_config_set(f->config, "etcd.required", no[i]), KVF_OK);
        assert_value(f, "etcd.required", "false");
        assert_int_equal(kvf_config_set(f->config, "etcd.required", yes[i]), KVF_OK);
        assert_value(f, "etcd.required", "true");
    }
    assert_int_equal(kvf_config_set(f->config, "fabric.transport", " shm "), KVF_OK);
    assert_string_equal(kvf_config_settings(f->config)->fabric_transport, "shm");
}

static void texts_up_to_the_limit_are_taken(void **state)
{
    struct fixture *f = *state;
    char text[KVF_CONFIG_TEXT_MAX + 1];
    memset(text, 'p', sizeof text);
    text[KVF_CONFIG_TEXT_MAX] = 0;
    assert_int_equal(kvf_config_set(f->config, "ssd.path", text), KVF_ERR_CONFIG);
    text[KVF_CONFIG_TEXT_MAX - 1] = 0;
    assert_int_equal(kvf_config_set(f->config, "ssd.path", text), KVF_OK);
    assert_value(f, "ssd.path", text);
    /* From the setting to itself, and cut on the way out. */
    assert_int_equal(kvf_config_set(f->config, "ssd.path", kvf_config_settings(f->config)->ssd_path), KVF_OK);
    assert_value(f, "ssd.path", text);
    char small[4];
    assert_int_equal(kvf_config_get(f->config, "ssd.path", small, sizeof small), KVF_OK);
    assert_string_equal(small, "ppp");
    assert_int_equal(kvf_config_get(f->config, "ssd.path", NULL, 0), KVF_OK);
}

static void an_unknown_key_names_the_nearest(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(kvf_config_set(f->config, "dram.byte", "1G"), KVF_ERR_CONFIG);
    assert_error(f, "dram.byte", "1G", "'dram.bytes'");
    assert_int_equal(load_text(f, "\n# text\nworkers = 2\nfabric.trasport = tcp\n"), KVF_ERR_CONFIG);
    assert_error(f, "kvf.conf:4: ", "fabric.trasport", "'fabric.transport'");
    assert_value(f, "workers", "1"); /* the line before it was good, and still nothing is changed */
    char text[8];
    assert_int_equal(kvf_config_get(f->config, "no.such", text, sizeof text), KVF_ERR_NOT_FOUND);
    /* A key that is far too long is cut, not overrun. */
    char key[5000];
    memset(key, 'k', sizeof key);
    key[sizeof key - 1] = 0;
    assert_int_equal(kvf_config_set(f->config, key, "1"), KVF_ERR_CONFIG);
    assert_true(strlen(kvf_config_error(f->config)) < 400);
}

static void files_take_comments_blanks_and_any_line_end(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load_text(f, "# head\r\n\r\n  dram.bytes=2G\r\n\tworkers =\t3 # three\n\nssd.path = /a b#c/d\n"
                                  "lend.bytes = 1k\nlend.bytes = 2k\nnode.name =\nlog.level = info"), KVF_OK);
    assert_value(f, "dram.bytes", "2G");
    assert_value(f, "workers", "3");
    assert_value(f, "ssd.path", "/a b#c/d");
    assert_value(f, "lend.bytes", "2k");
    assert_value(f, "node.name", "");
    assert_value(f, "log.level", "info");
    assert_int_equal(load_text(f, ""), KVF_OK);
    assert_value(f, "log.level", "info");
}

static void a_bad_line_says_file_line_key_value_and_bounds(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load_text(f, "workers = 2\nworkers = 1000 # many\n"), KVF_ERR_CONFIG);
    assert_error(f, "kvf.conf:2: ", "workers = '1000'", "1 to 256");
    assert_error(f, f->path, "", "");
    assert_int_equal(load_text(f, "just words\n"), KVF_ERR_CONFIG);
    assert_error(f, "kvf.conf:1: ", "just words", "name = value");
    assert_int_equal(load_text(f, "= 5\n"), KVF_ERR_CONFIG);
    assert_error(f, "kvf.conf:1: ", "unknown key ''", "");
    assert_value(f, "workers", "1");
}

static void files_that_cannot_be_read_are_reported(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(kvf_config_load(f->config, f->path), KVF_ERR_NOT_FOUND);
    assert_error(f, f->path, "No such file", "");
    assert_int_equal(kvf_config_load(f->config, f->folder), KVF_ERR_CONFIG);
    assert_error(f, f->folder, "not a file", "");
    assert_int_equal(mkfifo(f->path, 0600), 0);
    assert_int_equal(kvf_config_load(f->config, f->path), KVF_ERR_CONFIG); /* at once: nobody writes it */
    assert_error(f, f->path, "not a file", "");
    unlink(f->path);
    assert_int_equal(kvf_config_load(f->config, "/dev/null"), KVF_OK);
    assert_int_equal(kvf_config_load(f->config, "/dev/zero"), KVF_ERR_CONFIG); /* endless */
    assert_error(f, "/dev/zero", "larger than", "");
    assert_int_equal(kvf_config_load(NULL, f->path), KVF_ERR_INVALID);
    assert_int_equal(kvf_config_load(f->config, NULL), KVF_ERR_INVALID);
}

static void a_dump_reads_back_as_itself(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(kvf_config_set(f->config, "dram.bytes", "1234567"), KVF_OK);
    assert_int_equal(kvf_config_set(f->config, "fetch.timeout", "1000001ns"), KVF_OK);
    assert_int_equal(kvf_config_set(f->config, "lend.borrow", "off"), KVF_OK);
    assert_int_equal(kvf_config_set(f->config, "ssd.path", "/srv/a = b#c/\xc3\xa9"), KVF_OK);
    assert_int_equal(kvf_config_set(f->config, "log.level", "debug"), KVF_OK);

    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_int_equal(kvf_config_dump(f->config, out), KVF_OK);
    fclose(out);
    struct kvf_config_entry entry;
    for (size_t i = 0; kvf_config_entry(i, &entry); i++) {
        assert_non_null(strstr(text, entry.name));
        assert_non_null(strstr(text, entry.help));
    }

    struct kvf_config *fresh = NULL;
    assert_int_equal(kvf_config_create(&fresh), KVF_OK);
    write_file(f, text, bytes);
    assert_int_equal(kvf_config_load(fresh, f->path), KVF_OK);
    assert_memory_equal(kvf_config_settings(fresh), kvf_config_settings(f->config), sizeof(struct kvf_settings));
    kvf_config_destroy(fresh);
    free(text);

    FILE *full = fopen("/dev/full", "w");
    if (full) {
        assert_int_equal(kvf_config_dump(f->config, full), KVF_ERR_IO);
        fclose(full);
    }
}

static void the_environment_wins_over_the_file_and_set_over_it(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load_text(f, "dram.bytes = 2M\nworkers = 2\nfetch.prefetch_layers = 3\n"), KVF_OK);
    setenv("KVF_DRAM_BYTES", "4M", 1);
    setenv("KVF_FETCH_PREFETCH_LAYERS", "5", 1);
    setenv("KVF_BUILD_OF_SOMEONE", "anything", 1);
    assert_int_equal(kvf_config_load_env(f->config), KVF_OK);
    assert_value(f, "dram.bytes", "4M");
    assert_value(f, "fetch.prefetch_layers", "5");
    assert_value(f, "workers", "2");
    assert_int_equal(kvf_config_set(f->config, "dram.bytes", "8M"), KVF_OK);
    assert_value(f, "dram.bytes", "8M");
    setenv("KVF_DRAM_BYTES", "16M", 1);
    setenv("KVF_WORKERS", "none", 1);
    assert_int_equal(kvf_config_load_env(f->config), KVF_ERR_CONFIG);
    assert_error(f, "KVF_WORKERS", "'none'", "1 to 256");
    assert_value(f, "dram.bytes", "8M");
    unsetenv("KVF_DRAM_BYTES");
    unsetenv("KVF_FETCH_PREFETCH_LAYERS");
    unsetenv("KVF_BUILD_OF_SOMEONE");
    unsetenv("KVF_WORKERS");
}

static void hostile_bytes_neither_crash_nor_change_anything(void **state)
{
    struct fixture *f = *state;
    static const char alphabet[] = "dram.bytes=12 kMG#\n\r\t\0workersnod\xff\x1b|";
    struct kvf_settings before = *kvf_config_settings(f->config);
    char bytes[512];
    for (unsigned round = 0; round < 3000; round++) {
        size_t n = kvf_mix(SEED, round) % sizeof bytes;
        for (size_t i = 0; i < n; i++)
            bytes[i] = alphabet[kvf_mix(SEED + round, i) % (sizeof alphabet - 1)];
        char error[1024] = "", *exact = malloc(n ? n : 1); /* exact, so that a byte too far is seen */
        memcpy(exact, bytes, n);
        struct kvf_settings settings = before;
        bool good = kvf_config_file_parse(&settings, "memory", exact, n, error, sizeof error);
        assert_int_equal(good, !*error);
        free(exact);
    }
    write_file(f, "workers = 2\nnode.name = a\0b\n", 28);
    assert_int_equal(kvf_config_load(f->config, f->path), KVF_ERR_CONFIG);
    assert_error(f, "kvf.conf:2: ", "NUL", "");
    assert_int_equal(load_text(f, "node.name = \x1b[31m\n"), KVF_ERR_CONFIG);
    assert_error(f, "'?[31m'", "control character", "");
    assert_memory_equal(&before, kvf_config_settings(f->config), sizeof before);
}

static void the_error_line_can_be_built_on_itself(void **state)
{
    struct fixture *f = *state;
    kvf_config_fail(f->config, "inner %d", 1);
    kvf_config_fail(f->config, "outer: %s\n", kvf_config_error(f->config));
    assert_string_equal(kvf_config_error(f->config), "outer: inner 1?");
    assert_string_equal(kvf_config_error(NULL), "");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    printf("seed %u\n", SEED);
    const struct CMUnitTest tests[] = {
        TEST(defaults_are_those_of_the_table),
        TEST(the_table_is_complete_and_its_names_are_unique),
        TEST(sizes_and_times_take_units),
        TEST(junk_overflow_and_values_out_of_bounds_are_refused),
        TEST(words_and_booleans_are_normalised),
        TEST(texts_up_to_the_limit_are_taken),
        TEST(an_unknown_key_names_the_nearest),
        TEST(files_take_comments_blanks_and_any_line_end),
        TEST(a_bad_line_says_file_line_key_value_and_bounds),
        TEST(files_that_cannot_be_read_are_reported),
        TEST(a_dump_reads_back_as_itself),
        TEST(the_environment_wins_over_the_file_and_set_over_it),
        TEST(hostile_bytes_neither_crash_nor_change_anything),
        TEST(the_error_line_can_be_built_on_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
