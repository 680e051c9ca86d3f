/* Whole nodes over a real etcd, real disks and UCX: what their tests share. */
#ifndef KVF_TESTS_NODE_REAL_H
#define KVF_TESTS_NODE_REAL_H

#include "tests/support/etcd.h"

#include <ftw.h>
#include <kvf/kvf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct kvf_test_etcd *etcd; /* NULL: not installed */
static char folder[64];            /* for the nodes' SSD areas; goes with all that is in it */

static inline int open_world(void **state)
{
    const char *temporary = getenv("TMPDIR");
    printf("seed %d\n", SEED);
    snprintf(folder, sizeof folder, "%s/kvf-node-XXXXXX", temporary && strlen(temporary) < 30 ? temporary : "/tmp");
    if (!mkdtemp(folder))
        return -1;
    etcd = kvf_test_etcd_start();
    return 0;
}

static inline int remove_one(const char *path, const struct stat *info, int what, struct FTW *place)
{
    return remove(path);
}

static inline int close_world(void **state)
{
    kvf_test_etcd_stop(etcd);
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}
#endif
