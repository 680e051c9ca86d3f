/* The SSD area as the node sees it: opening it, going on without it, and saying why it is off or degraded.
 *
 * The tier's states: ok -> degraded (a write failed) -> ok (a probe went through); off: the area could not be opened at the
 * start, and the node runs without it (ssd.required false). */
#include "node/persist.h"
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum kvf_status kvf_area_open(const struct kvf_settings *s, const struct kvf_log *log, char *error, size_t size,
                              struct kvf_disk **out)
{
    char path[KVF_CONFIG_TEXT_MAX + 16];
    if (!s->ssd_path[0])
        return KVF_OK;
    if (mkdir(s->ssd_path, 0700) != 0 && errno != EEXIST) {
        snprintf(error, size, "making the directory %.300s of the SSD area (ssd.path): %s (ERR_IO); name one that can be written",
                 s->ssd_path, strerror(errno));
        return KVF_ERR_IO;
    }
    kvf_disk_sync_parent(s->ssd_path, log);
    snprintf(path, sizeof path, "%s/kvf.area", s->ssd_path);
    return kvf_disk_open(path, s->ssd_bytes, s->ssd_engine, (unsigned)s->ssd_depth, log, error, size, out);
}

static void explain(const struct kvf_core *core, enum kvf_status st, char *error, size_t size)
{
    const char *path = core->settings.ssd_path, *name = kvf_status_name(st);
    if (st == KVF_ERR_UNSUPPORTED)
        snprintf(error, size, "SSD area in %.200s: a later version of the program wrote it, and it was left as it is (%s); "
                 "give ssd.path another directory, or use that version", path, name);
    else if (st == KVF_ERR_CONFIG)
        snprintf(error, size, "SSD area in %.200s: it belongs to a node of another name, and was left as it is (%s); "
                 "give every node an ssd.path of its own", path, name);
    else
        snprintf(error, size, "SSD area in %.200s (ssd.path): %s (%s)", path, kvf_status_text(st), name);
}

void kvf_area_off(struct kvf_core *core, enum kvf_status st, const char *why)
{
    if (strstr(why, kvf_status_name(st)))
        snprintf(core->ssd_off, sizeof core->ssd_off, "%s", why);
    else
        snprintf(core->ssd_off, sizeof core->ssd_off, "%.400s (%s)", why, kvf_status_name(st));
    kvf_log_error(&core->log, "the node goes on without its SSD tier (ssd.required is false): %s", core->ssd_off);
}

enum kvf_status kvf_area_create(struct kvf_core *core, char *error, size_t error_size)
{
    const struct kvf_settings *s = &core->settings;
    if (!core->disk)
        return KVF_OK;
    struct kvf_ssd_owner owner;
    enum kvf_status st = kvf_persist_create(core, &owner);
    if (st != KVF_OK)
        return st;
    const struct kvf_ssd_options options = {.bytes = s->ssd_bytes, .node = core->name, .incarnation = core->incarnation,
                                            .block_max = (uint32_t)s->block_bytes_max, .depth = (unsigned)s->ssd_depth,
                                            .env = core->env, .log = &core->log, .owner = owner};
    st = kvf_ssd_create(core->disk, &options, &core->ssd);
    if (st == KVF_OK) {
        kvf_ssd_observe(core->ssd, &core->latencies);
        kvf_persist_report(core);
        return st;
    }
    kvf_persist_abandon(core);
    explain(core, st, error, error_size);
    if (s->ssd_required || st == KVF_ERR_NO_MEMORY || st == KVF_ERR_INVALID)
        return st;
    core->disk->ops->close(core->disk);
    core->disk = NULL;
    kvf_area_off(core, st, error);
    error[0] = 0;
    return KVF_OK;
}

void kvf_area_watch(struct kvf_core *core)
{
    bool degraded = core->ssd && kvf_ssd_degraded(core->ssd);
    if (degraded == core->ssd_degraded)
        return;
    core->ssd_degraded = degraded;
    if (!degraded) {
        kvf_count(&core->counters.ssd_recovered, 1);
        kvf_log_warn(&core->log, "SSD tier: a write went through again, new blocks are taken");
        core->spill_stuck = false;
        kvf_core_changed(core);
        return;
    }
    struct kvf_ssd_stats stats;
    char when[32] = "";
    struct tm tm;
    time_t now = time(NULL);
    kvf_ssd_stats(core->ssd, &stats);
    if (gmtime_r(&now, &tm))
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    snprintf(core->ssd_reason, sizeof core->ssd_reason,
             "a write failed at %s: %.100s; no new blocks are taken, reads go on, and it is tried again", when,
             stats.degraded_error ? strerror(stats.degraded_error) : "it came short");
    kvf_count(&core->counters.ssd_degraded, 1);
    kvf_log_error(&core->log, "SSD tier: %s", core->ssd_reason);
}
