/* Large memory: reserved, backed, populated; what NUMA settings amount to on machines that are made up. */
#include "tiers/pages.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define MIB (1ull << 20)

static char sys[64];

static void put(const char *path, const char *text)
{
    char whole[256];
    snprintf(whole, sizeof whole, "%s/%s", sys, path);
    for (char *at = whole + strlen(sys) + 1; (at = strchr(at, '/')); at++) {
        *at = 0;
        mkdir(whole, 0700);
        *at = '/';
    }
    FILE *out = fopen(whole, "we");
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
}

static int make_machine(void **state)
{
    snprintf(sys, sizeof sys, "/tmp/kvf-sys-XXXXXX");
    if (!mkdtemp(sys))
        return -1;
    put("devices/system/node/has_memory", "0-1,3\n");
    put("class/net/eth0/device/numa_node", "1\n");
    put("class/net/eth1/device/numa_node", "-1\n");
    put("class/infiniband/mlx5_0/device/numa_node", "3\n");
    return 0;
}

static int drop_machine(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", sys);
    return system(command);
}

static void lists_of_nodes(void **state)
{
    unsigned long mask[KVF_PAGES_NODES_MAX / (8 * sizeof(unsigned long))];
    const char *const wrong[] = {"", ",", "1,", "a", "1-", "-1", "3-1", "1024", "0-99999999999999999999", "1 2", "0x1", "1,,2"};
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(kvf_pages_nodes_parse(wrong[i], mask));
    assert_true(kvf_pages_nodes_parse("0-1,3\n", mask));
    assert_int_equal(mask[0], 0xb);
    assert_true(kvf_pages_nodes_parse("1023", mask));
    assert_int_equal(mask[0], 0);
}

static void what_numa_settings_amount_to(void **state)
{
    static const struct {
        const char *numa, *devices, *says;
        unsigned long nodes;
        int policy;
    } cases[] = {
        {"auto", "lo", "interleaved over nodes 0-1,3", 0xb, 3},
        {"auto", "eth0", "near the devices eth0", 0x2, 5},
        {"auto", "eth0,mlx5_0:1", "near the devices", 0xa, 5},
        {"auto", "eth1", "interleaved", 0xb, 3},
        {"interleave", "eth0", "interleaved", 0xb, 3},
        {"0,3", "eth0", "bound to nodes 0,3", 0x9, 2},
        {"off", "eth0", "memory.numa is off", 0, 0},
    };
    struct kvf_pages p;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(kvf_pages_init(&p, "auto", cases[i].numa, cases[i].devices, 0, sys), KVF_OK);
        assert_non_null(strstr(p.numa_text, cases[i].says));
        assert_int_equal(p.policy, cases[i].policy);
        assert_int_equal(p.nodes[0], cases[i].nodes);
        assert_true(p.threads >= 1 && p.threads <= 4);
    }
    assert_int_equal(kvf_pages_init(&p, "auto", "2", "lo", 0, sys), KVF_ERR_CONFIG); /* it has no memory */
    assert_int_equal(kvf_pages_init(&p, "auto", "near", "lo", 0, sys), KVF_ERR_CONFIG);
    assert_int_equal(kvf_pages_init(&p, "auto", "1-", "lo", 0, sys), KVF_ERR_CONFIG);
    assert_int_equal(kvf_pages_init(&p, "4M", "auto", "lo", 0, sys), KVF_ERR_CONFIG);
    assert_int_equal(kvf_pages_init(&p, "off", "auto", "lo", 3, "/nonexistent"), KVF_OK);
    assert_non_null(strstr(p.numa_text, "one memory node"));
    assert_int_equal(p.policy, 0);
    assert_int_equal(p.threads, 3);
    assert_int_equal(p.wanted, KVF_PAGE_SMALL);
}

static void pieces_are_zeros_and_there(void **state)
{
    static const char *const huge[] = {"auto", "off", "2M", "1G"};
    for (unsigned h = 0; h < 4; h++) {
        for (unsigned shared = 0; shared < 2; shared++) {
            struct kvf_pages p;
            assert_int_equal(kvf_pages_init(&p, huge[h], "auto", "lo", 2, "/sys"), KVF_OK);
            uint8_t *base = kvf_pages_reserve(256 * MIB);
            assert_non_null(base);
            assert_int_equal((uintptr_t)base % KVF_PAGES_HUGE, 0);
            enum kvf_page_kind kind;
            int fd;
            uint8_t *at = base + 64 * MIB;
            assert_int_equal(kvf_pages_back(&p, at, 130 * MIB, shared, &kind, &fd), KVF_OK);
            assert_int_equal(fd >= 0, shared);
            assert_int_equal(kvf_pages_populate(&p, at, 130 * MIB, shared && kind == KVF_PAGE_THP, NULL), KVF_OK);
            unsigned char in_core[4];
            assert_int_equal(mincore(at, 4 * 4096, in_core), 0);
            assert_true(in_core[0] & in_core[3] & 1);
            uint64_t any = 0;
            for (size_t i = 0; i < 130 * MIB / 8; i++)
                any |= ((uint64_t *)at)[i];
            assert_int_equal(any, 0);
            at[0] = at[130 * MIB - 1] = 7;
            assert_true(kind != KVF_PAGE_SMALL || strcmp(huge[h], "off") == 0);
            if (strcmp(huge[h], "off") == 0)
                assert_int_equal(kvf_pages_huge_bytes(base, 256 * MIB), 0);
            print_message("%s, %s: %s pages, %llu MiB in huge ones\n", huge[h], shared ? "shared" : "private",
                          kvf_page_kind_name(kind), (unsigned long long)(kvf_pages_huge_bytes(base, 256 * MIB) >> 20));
            if (fd >= 0) {
                assert_int_not_equal(ftruncate(fd, 0), 0); /* sealed */
                uint8_t *other = mmap(NULL, 130 * MIB, PROT_READ, MAP_SHARED, fd, 0);
                assert_true(other != MAP_FAILED);
                assert_true(other[0] == 7 && other[130 * MIB - 1] == 7);
                munmap(other, 130 * MIB);
                close(fd);
            }
            kvf_pages_release(base, 256 * MIB);
        }
    }
}

static void populating_stops_when_told_and_impossible_ranges_are_refused(void **state)
{
    struct kvf_pages p;
    enum kvf_page_kind kind;
    int fd;
    _Atomic bool stop = true;
    assert_int_equal(kvf_pages_init(&p, "off", "off", "", 2, "/sys"), KVF_OK);
    uint8_t *base = kvf_pages_reserve(128 * MIB);
    assert_int_equal(kvf_pages_back(&p, base, 128 * MIB, false, &kind, &fd), KVF_OK);
    assert_int_equal(kvf_pages_populate(&p, base, 128 * MIB, false, &stop), KVF_CANCELLED);
    unsigned char in_core;
    assert_int_equal(mincore(base, 4096, &in_core), 0);
    assert_int_equal(in_core & 1, 0);
    kvf_pages_release(base, 128 * MIB);
    assert_null(kvf_pages_reserve(0));
    assert_null(kvf_pages_reserve(SIZE_MAX - 4096));
    assert_null(kvf_pages_reserve(1ull << 52));
    /* Memory that is not mapped cannot be populated. */
    uint8_t *gone = kvf_pages_reserve(64 * MIB);
    assert_int_equal(kvf_pages_populate(&p, gone, 64 * MIB, false, NULL), KVF_ERR_NO_MEMORY);
    kvf_pages_release(gone, 64 * MIB);
    assert_true(kvf_pages_available() > 0 && kvf_pages_available() <= kvf_pages_machine());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_of_nodes),
        cmocka_unit_test(what_numa_settings_amount_to),
        cmocka_unit_test(pieces_are_zeros_and_there),
        cmocka_unit_test(populating_stops_when_told_and_impossible_ranges_are_refused),
    };
    return cmocka_run_group_tests(tests, make_machine, drop_machine);
}
