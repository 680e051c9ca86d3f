/* An area whose writes fail: when it is tried again, and that it is used again. Over the simulated disk. */
#include "tests/sim/sim_disk.h"
#include "tiers/arena.h"
#include "tiers/ssd.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define AREA_BYTES (8u << 20)
#define BLOCK 65536u

struct fixture {
    struct sim_media *media;
    struct sim_disk *sim;
    struct kvf_ssd *ssd;
    uint64_t now_ns;
    struct kvf_env env;
    struct kvf_log log; /* silent */
    struct kvf_ssd_request request;
    uint8_t *data;
};

static uint64_t fixture_now(void *arg)
{
    return ((struct fixture *)arg)->now_ns;
}

static struct fixture *set_up(void)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->env = (struct kvf_env){.arg = f, .now_ns = fixture_now, .random = fixture_now};
    kvf_log_init(&f->log, "test", KVF_LOG_ERROR, NULL);
    const struct kvf_ssd_options options = {.bytes = AREA_BYTES, .node = "alpha", .incarnation = 7, .block_max = 1 << 20,
                                            .depth = 4, .env = &f->env, .log = &f->log};
    f->now_ns = KVF_SEC;
    f->data = aligned_alloc(4096, BLOCK);
    memset(f->data, 0, BLOCK);
    assert_int_equal(sim_media_create(AREA_BYTES, &f->media), KVF_OK);
    assert_int_equal(sim_disk_create(f->media, 4, &f->sim), KVF_OK);
    assert_int_equal(kvf_ssd_create(sim_disk_seam(f->sim), &options, &f->ssd), KVF_OK);
    return f;
}

static void tear_down(struct fixture *f)
{
    kvf_ssd_destroy(f->ssd);
    sim_media_destroy(f->media);
    free(f->data);
    free(f);
}

static void done(void *arg, enum kvf_status status)
{
}

static void post(struct fixture *f, uint64_t offset)
{
    f->request = (struct kvf_ssd_request){.done = done, .arg = f};
    kvf_ssd_write(f->ssd, &f->request, offset, f->data, BLOCK);
}

static void settle(struct fixture *f)
{
    for (unsigned n = 0; !kvf_ssd_idle(f->ssd); n++) {
        assert_true(n < 1000);
        kvf_ssd_poll(f->ssd);
    }
}

/* Seconds after which the degraded area is tried, from `now`: polls a second at a time until a write has been seen. */
static unsigned seconds_to_probe(struct fixture *f)
{
    uint64_t writes = sim_disk_writes(f->sim);
    for (unsigned s = 1; s <= 200; s++) {
        f->now_ns += KVF_SEC;
        kvf_ssd_poll(f->ssd);
        settle(f);
        if (sim_disk_writes(f->sim) != writes)
            return s;
    }
    return 0;
}

static void a_degraded_area_is_tried_ever_less_often_and_used_again(void **state)
{
    static const unsigned want[] = {1, 2, 4, 8, 16, 32, 60, 60};
    struct fixture *f = set_up();
    uint64_t at = kvf_ssd_alloc(f->ssd, BLOCK, 1);
    struct kvf_ssd_stats stats;
    sim_disk_fail(f->sim, true, SIM_FAULT_FULL, 0, 9);
    post(f, at);
    settle(f);
    kvf_ssd_stats(f->ssd, &stats);
    assert_int_equal(stats.degraded_error, ENOSPC);
    assert_int_equal(stats.degraded_ns, f->now_ns);
    uint64_t used = stats.used_bytes;
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(seconds_to_probe(f), want[i]);
        assert_true(kvf_ssd_degraded(f->ssd));
        assert_int_equal(kvf_ssd_alloc(f->ssd, BLOCK, 1), KVF_ARENA_NONE);
    }
    assert_int_equal(seconds_to_probe(f), 60);
    assert_false(kvf_ssd_degraded(f->ssd));
    kvf_ssd_stats(f->ssd, &stats);
    assert_int_equal(stats.used_bytes, used);
    uint64_t again = kvf_ssd_alloc(f->ssd, BLOCK, 1);
    assert_true(again != KVF_ARENA_NONE);

    /* Fails again at once: it is not tried every second. Long after: from the beginning. */
    sim_disk_fail(f->sim, true, SIM_FAULT_IO, 0, 1);
    post(f, again);
    settle(f);
    assert_int_equal(seconds_to_probe(f), 60);
    f->now_ns += 100 * KVF_SEC;
    sim_disk_fail(f->sim, true, SIM_FAULT_SHORT, 0, 1);
    post(f, again);
    settle(f);
    kvf_ssd_stats(f->ssd, &stats);
    assert_int_equal(stats.degraded_error, 0);
    assert_int_equal(seconds_to_probe(f), 1);
    assert_false(kvf_ssd_degraded(f->ssd));
    tear_down(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_degraded_area_is_tried_ever_less_often_and_used_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
