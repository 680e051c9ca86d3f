/* llm --plain: everything in plain memory; prints the generated text. */
#include "run.h"

#include <stdio.h>
#include <stdlib.h>

static enum llm_exit generate(struct llm_run *run, struct llm_cache_plain *plain, float *logits, int32_t *tokens)
{
    struct llm_feed feed = {.engine = run->engine, .cache = llm_cache_plain_table(plain)};
    struct llm_series series;
    double prefill_ms = 0;
    uint64_t total = run->args->generate;
    enum kvf_status st = llm_common_prefill(run, &feed, logits, &prefill_ms, NULL, NULL, NULL);
    if (!llm_series_init(&series, total))
        st = KVF_ERR_NO_MEMORY;
    for (uint64_t i = 0; i < total && st == KVF_OK; i++) {
        char text[512];
        tokens[i] = llm_engine_argmax(logits, run->model.vocabulary);
        fwrite(text, 1, llm_tokenizer_decode(run->tokenizer, tokens[i], text, sizeof text), stdout);
        fflush(stdout);
        if (i + 1 < total)
            st = llm_common_decode(&feed, tokens[i], logits, &series);
    }
    puts("");
    if (st == KVF_OK) {
        fprintf(stderr, "%llu tokens read in %.1f s, %llu generated, %.1f ms per token (median)\n",
                (unsigned long long)run->prompt_tokens, prefill_ms * 1e-3, (unsigned long long)total, llm_series_median(&series));
        llm_report_common(run, "plain");
        llm_report_tokens(run, "tokens", tokens, total);
        llm_report_text(run, "text", tokens, total);
        llm_report_series(run, "ms_per_token_plain", &series);
        json_object_set_new(run->report, "prefill_ms_plain", json_real(prefill_ms));
    }
    llm_series_free(&series);
    return st == KVF_OK ? llm_report_write(run) : llm_common_failed("generating in plain memory", st);
}

enum llm_exit llm_run_plain(struct llm_run *run)
{
    struct llm_cache_plain *plain = llm_cache_plain_create(&run->model, run->pool, run->prompt_tokens + run->args->generate);
    float *logits = malloc(run->model.vocabulary * sizeof *logits);
    int32_t *tokens = malloc(run->args->generate * sizeof *tokens);
    enum llm_exit code = plain && logits && tokens ? generate(run, plain, logits, tokens)
                                                   : llm_common_failed("making the cache", KVF_ERR_NO_MEMORY);
    free(tokens);
    free(logits);
    llm_cache_plain_destroy(plain);
    return code;
}
