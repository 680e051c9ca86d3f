#include "run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool llm_series_init(struct llm_series *series, size_t room)
{
    *series = (struct llm_series){.ms = malloc((room + 1) * sizeof *series->ms), .room = room};
    return series->ms != NULL;
}

void llm_series_free(struct llm_series *series)
{
    free(series->ms);
    *series = (struct llm_series){0};
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double llm_series_median(const struct llm_series *series)
{
    if (series->count == 0)
        return 0;
    double *sorted = malloc(series->count * sizeof *sorted);
    if (!sorted)
        return 0;
    memcpy(sorted, series->ms, series->count * sizeof *sorted);
    qsort(sorted, series->count, sizeof *sorted, by_value);
    size_t middle = series->count / 2;
    double median = series->count % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    free(sorted);
    return median;
}

static void set(struct llm_run *run, const char *name, json_t *value)
{
    json_object_set_new(run->report, name, value);
}

void llm_report_series(struct llm_run *run, const char *name, const struct llm_series *series)
{
    char list_name[64];
    json_t *list = json_array();
    for (size_t i = 0; i < series->count; i++)
        json_array_append_new(list, json_real(series->ms[i]));
    snprintf(list_name, sizeof list_name, "%s_list", name);
    set(run, name, json_real(llm_series_median(series)));
    set(run, list_name, list);
}

void llm_report_tokens(struct llm_run *run, const char *name, const int32_t *tokens, uint64_t count)
{
    json_t *list = json_array();
    for (uint64_t i = 0; i < count; i++)
        json_array_append_new(list, json_integer(tokens[i]));
    set(run, name, list);
}

void llm_report_text(struct llm_run *run, const char *name, const int32_t *tokens, uint64_t count)
{
    enum { PIECE = 512 };
    char *text = calloc(count + 1, PIECE);
    size_t length = 0;
    if (!text)
        return;
    for (uint64_t i = 0; i < count; i++)
        length += llm_tokenizer_decode(run->tokenizer, tokens[i], text + length, PIECE);
    json_t *value = json_stringn(text, length); /* NULL when a character is cut in two: then ASCII alone is kept */
    for (size_t i = 0; !value && i < length; i++)
        text[i] = (signed char)text[i] > 0 ? text[i] : '?';
    set(run, name, value ? value : json_stringn(text, length));
    free(text);
}

static json_t *stats_object(const struct kvf_node_stats *stats)
{
    json_t *out = json_object(), *tiers = json_object();
    for (int i = 0; i < KVF_TIER_COUNT; i++) {
        const struct kvf_tier_stats *t = &stats->tier[i];
        json_object_set_new(tiers, kvf_tier_name((enum kvf_tier)i),
                            json_pack("{s:I, s:I, s:I, s:I, s:I}", "blocks", (json_int_t)t->blocks, "bytes", (json_int_t)t->bytes,
                                      "capacity_bytes", (json_int_t)t->capacity_bytes, "chunks_read", (json_int_t)t->chunks_read,
                                      "bytes_read", (json_int_t)t->bytes_read));
    }
    json_object_set_new(out, "tiers", tiers);
    json_object_set_new(out, "blocks_sealed", json_integer((json_int_t)stats->blocks_sealed));
    json_object_set_new(out, "blocks_verified", json_integer((json_int_t)stats->blocks_verified));
    json_object_set_new(out, "blocks_corrupt", json_integer((json_int_t)stats->blocks_corrupt));
    json_object_set_new(out, "blocks_lost", json_integer((json_int_t)stats->blocks_lost));
    return out;
}

void llm_report_stats(struct llm_run *run, const char *name)
{
    struct kvf_node_stats stats;
    enum kvf_status st = kvf_node_stats(run->node, &stats);
    set(run, name, st == KVF_OK ? stats_object(&stats) : json_null());
}

void llm_report_session(struct llm_run *run, const char *name, struct kvf_session *session)
{
    struct kvf_session_info info;
    if (kvf_session_info(session, &info) != KVF_OK) {
        set(run, name, json_null());
        return;
    }
    json_t *blocks = json_object();
    uint64_t all = 0;
    for (int i = 0; i < KVF_TIER_COUNT; i++) {
        json_object_set_new(blocks, kvf_tier_name((enum kvf_tier)i), json_integer((json_int_t)info.blocks[i]));
        all += info.blocks[i];
    }
    double away = all ? 1.0 - (double)info.blocks[KVF_TIER_DRAM] / (double)all : 0.0;
    set(run, name, json_pack("{s:I, s:I, s:I, s:I, s:o, s:f, s:b}", "id", (json_int_t)info.id, "epoch", (json_int_t)info.epoch,
                             "tokens", (json_int_t)info.tokens, "tokens_sealed", (json_int_t)info.tokens_sealed, "blocks", blocks,
                             "share_away_from_home_dram", away, "streaming", (int)info.streaming));
}

void llm_report_feed(struct llm_run *run, const struct llm_feed *feed, const struct llm_cache_kvf *cache)
{
    set(run, "lost_ranges", json_integer((json_int_t)feed->lost_ranges));
    set(run, "recomputed_tokens", json_integer((json_int_t)feed->recomputed_tokens));
    set(run, "attend_deadlines", json_integer((json_int_t)cache->deadlines));
    set(run, "attend_ms", json_real((double)cache->attend_ns * 1e-6));
    set(run, "append_ms", json_real((double)cache->append_ns * 1e-6));
}

void llm_report_common(struct llm_run *run, const char *role)
{
    set(run, "role", json_string(role));
    set(run, "model", json_string(run->model.name));
    set(run, "cpu", json_string(run->model.matmul->name));
    set(run, "threads", json_integer(llm_pool_threads(run->pool)));
    set(run, "session", json_integer((json_int_t)run->args->session));
    if (run->node)
        set(run, "node", json_string(kvf_node_name(run->node)));
    if (run->prompt)
        set(run, "prompt_tokens", json_integer((json_int_t)run->prompt_tokens));
}

enum llm_exit llm_report_write(struct llm_run *run)
{
    char part[4096];
    if (!run->args->out)
        return LLM_EXIT_DONE;
    if ((size_t)snprintf(part, sizeof part, "%s.part", run->args->out) >= sizeof part ||
        json_dump_file(run->report, part, JSON_INDENT(1) | JSON_REAL_PRECISION(12)) != 0 || rename(part, run->args->out) != 0) {
        fprintf(stderr, "llm: cannot write the report %s: %s\n", run->args->out, strerror(errno));
        unlink(part);
        return LLM_EXIT_FAILED;
    }
    return LLM_EXIT_DONE;
}
