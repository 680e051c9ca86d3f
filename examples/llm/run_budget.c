/* llm --budget PERCENT: how much is lost when attention looks only at the selected chunks. The text is read with full
 * attention into both caches; then, token by token along the text that full attention generates (with --follow along the text
 * itself), one pass with full attention in plain memory and one with the budget in KVFabric. The budgeted pass appends its own
 * K and V, as a real decode would, so its errors add up over the run. */
#include "record.h"
#include "run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct quality {
    struct llm_run *run;
    struct kvf_session *session;
    struct llm_cache_plain *plain_cache;
    struct llm_cache_kvf kvf_cache;
    struct llm_feed plain, kvf;
    float *full, *part; /* logits */
    struct llm_series plain_ms, kvf_ms;
    uint64_t compared, agreed;
    struct llm_record record;
    double divergence; /* sum over positions, in nats */
};

/* The log of the sum of exp(logits), in double. */
static double log_sum(const float *logits, uint32_t n)
{
    uint32_t best = (uint32_t)llm_engine_argmax(logits, n);
    double top = logits[best], others = 0;
    for (uint32_t i = 0; i < n; i++)
        others += i == best ? 0 : exp((double)logits[i] - top);
    return top + log1p(others);
}

/* KL(full || part) of the two distributions of the next token. */
static double divergence(const float *full, const float *part, uint32_t n)
{
    double full_sum = log_sum(full, n), part_sum = log_sum(part, n), sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        double p = (double)full[i] - full_sum, q = (double)part[i] - part_sum;
        sum += exp(p) * (p - q);
    }
    return sum > 0 ? sum : 0;
}

static enum kvf_status measure(struct quality *w)
{
    struct llm_run *run = w->run;
    uint32_t vocabulary = run->model.vocabulary;
    double plain_prefill_ms = 0, kvf_prefill_ms = 0;
    enum kvf_status st = llm_common_prefill(run, &w->plain, w->full, &plain_prefill_ms, &w->kvf, w->part, &kvf_prefill_ms);
    w->kvf_cache.budget = (float)run->args->budget / 100.0f;
    for (uint64_t i = 0; i < run->args->generate && st == KVF_OK; i++) {
        int32_t token = run->args->follow ? run->prompt[run->prompt_tokens + i] : llm_engine_argmax(w->full, vocabulary);
        st = llm_common_decode(&w->plain, token, w->full, &w->plain_ms);
        if (st == KVF_OK)
            st = llm_common_decode(&w->kvf, token, w->part, &w->kvf_ms);
        if (st != KVF_OK)
            break;
        w->compared++;
        w->agreed += llm_engine_argmax(w->full, vocabulary) == llm_engine_argmax(w->part, vocabulary);
        w->divergence += divergence(w->full, w->part, vocabulary);
        llm_common_show(run, token, i + 1, run->args->generate);
    }
    return st;
}

static enum llm_exit report(struct quality *w)
{
    struct llm_run *run = w->run;
    double agreement = (double)w->agreed / (double)w->compared, mean = w->divergence / (double)w->compared;
    printf("budget %llu %%: top-1 agreement %.1f %% (%llu of %llu positions), mean KL(full || budget) %.5f nats, "
           "%.1f ms per token, full attention in plain memory %.1f ms\n"
           "(teacher-forced on the tokens of full attention; the budgeted pass appends its own K and V)\n",
           (unsigned long long)run->args->budget, 100 * agreement, (unsigned long long)w->agreed,
           (unsigned long long)w->compared, mean, llm_series_median(&w->kvf_ms), llm_series_median(&w->plain_ms));
    llm_report_common(run, "budget");
    json_object_update_new(run->report,
                           json_pack("{s:I, s:I, s:f, s:f, s:b}", "budget_percent", (json_int_t)run->args->budget, "positions",
                                     (json_int_t)w->compared, "top1_agreement", agreement, "mean_kl", mean,
                                     "appends_budgeted_kv", 1));
    llm_report_series(run, "ms_per_token", &w->kvf_ms);
    llm_report_series(run, "ms_per_token_plain", &w->plain_ms);
    llm_report_feed(run, &w->kvf, &w->kvf_cache);
    llm_report_session(run, "info_at_end", w->session);
    llm_report_stats(run, "stats");
    return llm_report_write(run);
}

static bool allocate(struct quality *w)
{
    struct llm_run *run = w->run;
    uint64_t generate = run->args->generate;
    w->plain_cache = llm_cache_plain_create(&run->model, run->pool, run->prompt_tokens + generate);
    w->full = malloc(run->model.vocabulary * sizeof *w->full);
    w->part = malloc(run->model.vocabulary * sizeof *w->part);
    bool series = llm_series_init(&w->plain_ms, generate);
    series = llm_series_init(&w->kvf_ms, generate) && series;
    return w->plain_cache && w->full && w->part && series;
}

/* Measures, with the selections recorded when that is asked for. */
static enum llm_exit compare(struct quality *w)
{
    struct llm_run *run = w->run;
    struct kvf_model_desc desc;
    struct llm_error error;
    llm_cache_describe(&run->model, &desc);
    bool good = !run->args->record || llm_record_start(&w->record, run->args->record, &desc, (float)run->args->budget / 100.0f,
                                                       w->session, &error);
    enum kvf_status st = good ? measure(w) : KVF_OK;
    good = llm_record_end(&w->record, w->session, &error) && good;
    if (st != KVF_OK)
        return llm_common_failed("comparing with the budget", st);
    if (good)
        return report(w);
    fprintf(stderr, "llm: %s\n", error.text);
    return LLM_EXIT_FAILED;
}

enum llm_exit llm_run_budget(struct llm_run *run)
{
    struct quality w = {.run = run};
    enum llm_exit code;
    if (!allocate(&w))
        code = llm_common_failed("making the caches", KVF_ERR_NO_MEMORY);
    else
        code = llm_common_open_node(run);
    if (code != LLM_EXIT_DONE)
        goto free_all;
    enum kvf_status st = kvf_session_create(run->node, run->kvf_model, run->args->session, &w.session);
    if (st != KVF_OK) {
        code = llm_common_failed("creating the session", st);
        goto free_all;
    }
    llm_cache_kvf_init(&w.kvf_cache, &run->model, w.session);
    w.plain = (struct llm_feed){.engine = run->engine, .cache = llm_cache_plain_table(w.plain_cache)};
    w.kvf = (struct llm_feed){.engine = run->engine, .cache = &w.kvf_cache.table};
    code = compare(&w);
    kvf_session_drop(w.session);
free_all:
    llm_series_free(&w.kvf_ms);
    llm_series_free(&w.plain_ms);
    free(w.part);
    free(w.full);
    llm_cache_plain_destroy(w.plain_cache);
    return code;
}
