/* A node over a real disk that fills up, becomes read-only, or loses the end of its file, while it runs: the node lives, says
 * what is wrong, returns no wrong byte, and uses the disk again when it works again. Mounts are made in a namespace of its own. */
#include "base/env.h"
#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <kvf/kvf.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SEED 20261125
#define BLOCK 65536u
#define DRAM_BLOCKS 16u
#define PATIENCE_NS (30 * KVF_SEC)

static char folder[64], area[96];
static bool may_mount;

struct world {
    struct kvf_node *node;
    struct kvf_queue *queue;
};

static uint64_t now(void)
{
    return kvf_now(kvf_env_real());
}

static void nap(void)
{
    usleep(5000);
}

/* ---------------------------------------------------------------- the world */

static int open_folder(void **state)
{
    printf("seed %d\n", SEED);
    snprintf(folder, sizeof folder, "/tmp/kvf-disk-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(area, sizeof area, "%s/kvf.area", folder);
    may_mount = unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    return 0;
}

static int close_folder(void **state)
{
    return rmdir(folder);
}

static struct world world_open(void)
{
    static const char *const settings[] = {"node.name",      "disk", "dram.bytes",      "1M",   "fetch.staging", "1M",
                                           "block.bytes_max", "64k",  "block.count_max", "4096", "ssd.bytes",     "16M",
                                           "ssd.scrub_rate", "0",    "admin.listen",    "",     "log.level",     "error"};
    struct world w = {0};
    struct kvf_config *config;
    assert_int_equal(kvf_config_create(&config), KVF_OK);
    for (unsigned i = 0; i < sizeof settings / sizeof *settings; i += 2)
        assert_int_equal(kvf_config_set(config, settings[i], settings[i + 1]), KVF_OK);
    assert_int_equal(kvf_config_set(config, "ssd.path", folder), KVF_OK);
    enum kvf_status st = kvf_node_open(config, &w.node);
    if (st != KVF_OK)
        fail_msg("%s", kvf_config_error(config));
    kvf_config_destroy(config);
    assert_int_equal(kvf_queue_create(w.node, 4, &w.queue), KVF_OK);
    return w;
}

static void world_close(struct world *w)
{
    kvf_queue_destroy(w->queue);
    kvf_node_close(w->node);
}

static uint8_t byte_of(uint64_t key, uint32_t at)
{
    return (uint8_t)(kvf_mix(SEED + key, at / 8) >> at % 8 * 8);
}

static enum kvf_status one(struct world *w, enum kvf_op op, uint64_t key, void *data, uint64_t timeout_ns)
{
    struct kvf_request r = {.op = op, .key = {.hi = key, .lo = 1}, .data = data, .length = BLOCK};
    struct kvf_completion done;
    size_t n = 0;
    uint64_t until = now() + PATIENCE_NS;
    assert_int_equal(kvf_submit(w->queue, &r, 1, timeout_ns, &n), KVF_OK);
    for (n = 0; n == 0 && now() < until; nap())
        assert_int_equal(kvf_drain(w->queue, &done, 1, &n), KVF_OK);
    assert_int_equal(n, 1);
    return done.status;
}

static enum kvf_status put(struct world *w, uint64_t key)
{
    static _Alignas(4096) uint8_t data[BLOCK];
    for (uint32_t i = 0; i < BLOCK; i++)
        data[i] = byte_of(key, i);
    return one(w, KVF_OP_PUT, key, data, 300 * KVF_MS);
}

/* OK only with the very bytes. */
static enum kvf_status get(struct world *w, uint64_t key)
{
    static _Alignas(4096) uint8_t data[BLOCK];
    memset(data, 0xee, sizeof data);
    enum kvf_status st = one(w, KVF_OP_GET, key, data, 5 * KVF_SEC);
    for (uint32_t i = 0; st == KVF_OK && i < BLOCK; i++)
        assert_int_equal(data[i], byte_of(key, i));
    return st;
}

/* The SSD tier's state, and its reason. */
static bool ssd_is(struct world *w, const char *state, const char *reason)
{
    char *text = NULL;
    bool is = false;
    assert_int_equal(kvf_node_status_json(w->node, &text), KVF_OK);
    json_t *root = json_loads(text, 0, NULL), *tier;
    size_t i;
    json_array_foreach(json_object_get(root, "tiers"), i, tier) {
        const char *why = json_string_value(json_object_get(tier, "reason"));
        if (strcmp(json_string_value(json_object_get(tier, "name")), "ssd") == 0)
            is = strcmp(json_string_value(json_object_get(tier, "state")), state) == 0 && (!reason || (why && strstr(why, reason)));
    }
    json_decref(root);
    kvf_free(text);
    return is;
}

static json_int_t counter(struct world *w, const char *name)
{
    char *text = NULL;
    assert_int_equal(kvf_node_status_json(w->node, &text), KVF_OK);
    json_t *root = json_loads(text, 0, NULL);
    json_int_t value = json_integer_value(json_object_get(json_object_get(root, "counters"), name));
    json_decref(root);
    kvf_free(text);
    return value;
}

static void await(struct world *w, const char *state, const char *reason)
{
    for (uint64_t until = now() + PATIENCE_NS; !ssd_is(w, state, reason); nap()) {
        if (now() < until)
            continue;
        char *text = NULL;
        kvf_node_status_json(w->node, &text);
        fail_msg("the SSD tier is not %s (%s): %s", state, reason ? reason : "", text);
    }
}

/* Puts until one is refused or `most` are in; returns how many are. */
static uint64_t fill(struct world *w, uint64_t first, uint64_t most)
{
    uint64_t n = 0;
    while (n < most && put(w, first + n) == KVF_OK)
        n++;
    return n;
}

/* A node that finds room nowhere drops opaque blocks: so many of these are misses, the others have their bytes. */
static uint64_t misses(struct world *w, uint64_t first, uint64_t n)
{
    uint64_t missing = 0;
    for (uint64_t key = first; key < first + n; key++) {
        enum kvf_status st = get(w, key);
        assert_true(st == KVF_OK || st == KVF_MISS);
        missing += st == KVF_MISS;
    }
    return missing;
}

static void all_are_there(struct world *w, uint64_t first, uint64_t n)
{
    for (uint64_t key = first; key < first + n; key++)
        assert_int_equal(get(w, key), KVF_OK);
}

/* ---------------------------------------------------------------- the tests */

static void a_disk_that_fills_up_is_used_again_when_it_has_room(void **state)
{
    if (!may_mount || mount("kvf", folder, "tmpfs", 0, "size=24m") != 0) {
        print_message("mounts are not allowed here\n");
        skip();
    }
    struct world w = world_open();
    uint64_t n = fill(&w, 0, 3 * DRAM_BLOCKS);
    assert_int_equal(n, 3 * DRAM_BLOCKS);
    await(&w, "ok", NULL);

    /* The area loses what it had reserved and somebody else takes it. */
    char other[96];
    snprintf(other, sizeof other, "%s/other", folder);
    int fd = open(area, O_RDWR), hog = open(other, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0 && hog >= 0);
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8 << 20, 8 << 20), 0);
    for (off_t at = 0; fallocate(hog, 0, at, 4096) == 0; at += 4096)
        ;
    assert_int_equal(fill(&w, 1000, 160), 160);
    await(&w, "degraded", "No space left on device");
    assert_true(counter(&w, "ssd_degraded") >= 1);
    assert_int_equal(counter(&w, "blocks_lost"), 0);
    uint64_t missing = misses(&w, 0, n) + misses(&w, 1000, 160);
    assert_true(missing > 0 && missing < n + 160 - DRAM_BLOCKS); /* what the SSD has is there */
    assert_int_equal(counter(&w, "evicted_blocks"), missing);

    assert_int_equal(ftruncate(hog, 0), 0);
    await(&w, "ok", NULL);
    assert_true(counter(&w, "ssd_recovered") >= 1);
    assert_int_equal(fill(&w, 2000, 2 * DRAM_BLOCKS), 2 * DRAM_BLOCKS);
    all_are_there(&w, 2000, 2 * DRAM_BLOCKS);
    assert_int_equal(misses(&w, 0, n) + misses(&w, 1000, 160), missing);
    close(fd);
    close(hog);
    world_close(&w);
    assert_int_equal(umount2(folder, MNT_DETACH), 0); /* a ring that was closed may hold the file a moment longer */
}

/* Cuts the file under the node: the blocks in the part that is gone are lost, each alone. */
static void a_file_that_is_cut_loses_the_blocks_behind_the_cut(void **state)
{
    struct world w = world_open();
    uint64_t n = fill(&w, 0, 6 * DRAM_BLOCKS), lost = 0;
    assert_int_equal(n, 6 * DRAM_BLOCKS);
    struct kvf_node_stats stats;
    uint64_t until = now() + PATIENCE_NS;
    do {
        assert_int_equal(kvf_node_stats(w.node, &stats), KVF_OK);
        nap();
    } while (stats.tier[KVF_TIER_SSD].blocks < 4 * DRAM_BLOCKS && now() < until);
    assert_int_equal(truncate(area, (1 << 20) + 2 * DRAM_BLOCKS * BLOCK), 0);
    for (uint64_t key = 0; key < n; key++) {
        enum kvf_status st = get(&w, key);
        assert_true(st == KVF_OK || st == KVF_ERR_IO);
        lost += st != KVF_OK;
        if (st != KVF_OK)
            assert_int_equal(get(&w, key), KVF_MISS);
    }
    assert_true(lost >= DRAM_BLOCKS && lost < n);
    assert_int_equal(counter(&w, "blocks_lost"), lost);
    assert_true(counter(&w, "ssd_read_failed") >= (json_int_t)lost);
    assert_true(ssd_is(&w, "ok", NULL));
    assert_int_equal(fill(&w, 1000, 4 * DRAM_BLOCKS), 4 * DRAM_BLOCKS); /* the file grows again */
    all_are_there(&w, 1000, 4 * DRAM_BLOCKS);
    world_close(&w);
    assert_int_equal(unlink(area), 0);
}

static bool file_system_make(const char *image)
{
    char command[512];
    snprintf(command, sizeof command,
             "(truncate -s 32M %s && mkfs.ext4 -q -E lazy_itable_init=0 %s && mount -o loop,errors=remount-ro %s %s) 2>&1", image,
             image, image, folder);
    return system(command) == 0;
}

/* The name of the loop device below the folder, to make its file system fail. */
static bool file_system_fail(void)
{
    char path[128], command[256], device[128] = "";
    FILE *mounts = fopen("/proc/self/mounts", "re");
    for (char at[256]; mounts && fscanf(mounts, "%127s %255s %*[^\n]", path, at) == 2;)
        if (strcmp(at, folder) == 0)
            snprintf(device, sizeof device, "%s", path + strlen("/dev/"));
    if (mounts)
        fclose(mounts);
    snprintf(command, sizeof command, "echo simulated > /sys/fs/ext4/%s/trigger_fs_error 2>&1", device);
    return device[0] && system(command) == 0;
}

static void a_file_system_that_becomes_read_only_degrades_and_recovers(void **state)
{
    char image[96], command[256];
    snprintf(image, sizeof image, "%s.img", folder);
    if (!may_mount || !file_system_make(image)) {
        unlink(image);
        print_message("no loop device, ext4 or mount here\n");
        skip();
    }
    struct world w = world_open();
    uint64_t n = fill(&w, 0, 3 * DRAM_BLOCKS);
    assert_int_equal(n, 3 * DRAM_BLOCKS);
    bool failed = file_system_fail();
    if (failed) {
        assert_int_equal(fill(&w, 1000, 64), 64);
        await(&w, "degraded", "a write failed at 2");
        uint64_t missing = misses(&w, 0, n) + misses(&w, 1000, 64);
        assert_true(missing > 0 && missing < n + 64 - DRAM_BLOCKS);
        assert_int_equal(counter(&w, "evicted_blocks"), missing);
        snprintf(command, sizeof command, "mount -o remount,rw %s", folder);
        if (system(command) == 0) {
            await(&w, "ok", NULL);
            assert_int_equal(fill(&w, 2000, 2 * DRAM_BLOCKS), 2 * DRAM_BLOCKS);
            all_are_there(&w, 2000, 2 * DRAM_BLOCKS);
            assert_int_equal(misses(&w, 0, n) + misses(&w, 1000, 64), missing);
        }
    }
    world_close(&w);
    umount2(folder, MNT_DETACH);
    unlink(image);
    if (!failed) {
        print_message("this kernel cannot be told to fail\n");
        skip();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_disk_that_fills_up_is_used_again_when_it_has_room),
        cmocka_unit_test(a_file_that_is_cut_loses_the_blocks_behind_the_cut),
        cmocka_unit_test(a_file_system_that_becomes_read_only_degrades_and_recovers),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
