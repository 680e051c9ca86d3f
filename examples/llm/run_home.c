/* llm --role home: reads the text through KVFabric and through plain memory, generates with both, compares every step, and
 * half-way moves the session to another node. The engine there goes on; this one then only serves cold blocks. */
#include "run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOVE_TIMEOUT_NS 60000000000ull

struct home {
    struct llm_run *run;
    struct kvf_session *session;
    struct llm_cache_plain *plain_cache;
    struct llm_cache_kvf kvf_cache;
    struct llm_feed plain, kvf;
    float *plain_logits, *kvf_logits;
    int32_t *expected, *tokens; /* plain's tokens, and KVFabric's */
    uint64_t n_expected, n_tokens;
    struct llm_series plain_ms, kvf_ms;
    double plain_prefill_ms, kvf_prefill_ms;
    bool prefill_equal, moved;
    uint64_t steps_compared, steps_equal; /* decode steps whose logits are the same bits */
};

static void add_number(struct home *h, const char *name, uint64_t value)
{
    json_object_set_new(h->run->report, name, json_integer((json_int_t)value));
}

static bool same_logits(const struct home *h)
{
    return memcmp(h->plain_logits, h->kvf_logits, h->run->model.vocabulary * sizeof(float)) == 0;
}

static enum kvf_status prefill(struct home *h)
{
    struct llm_run *run = h->run;
    enum kvf_status st = llm_common_prefill(run, &h->plain, h->plain_logits, &h->plain_prefill_ms, &h->kvf, h->kvf_logits,
                                            &h->kvf_prefill_ms);
    if (st != KVF_OK)
        return st;
    h->prefill_equal = same_logits(h);
    h->expected[h->n_expected++] = llm_engine_argmax(h->plain_logits, run->model.vocabulary);
    h->tokens[h->n_tokens++] = llm_engine_argmax(h->kvf_logits, run->model.vocabulary);
    llm_report_stats(run, "stats_after_prefill");
    return KVF_OK;
}

/* Generates one more token with plain memory. */
static enum kvf_status step_plain(struct home *h)
{
    enum kvf_status st = llm_common_decode(&h->plain, h->expected[h->n_expected - 1], h->plain_logits, &h->plain_ms);
    if (st == KVF_OK)
        h->expected[h->n_expected++] = llm_engine_argmax(h->plain_logits, h->run->model.vocabulary);
    return st;
}

/* Both caches generate on their own, each from its own last token, until KVFabric has `until` tokens. */
static enum kvf_status decode(struct home *h, uint64_t until)
{
    struct llm_run *run = h->run;
    while (h->n_tokens < until) {
        enum kvf_status st = step_plain(h);
        if (st == KVF_OK)
            st = llm_common_decode(&h->kvf, h->tokens[h->n_tokens - 1], h->kvf_logits, &h->kvf_ms);
        if (st != KVF_OK)
            return st;
        h->tokens[h->n_tokens++] = llm_engine_argmax(h->kvf_logits, run->model.vocabulary);
        h->steps_compared++;
        h->steps_equal += same_logits(h);
        llm_common_show(run, h->tokens[h->n_tokens - 1], h->n_tokens, run->args->generate);
    }
    return KVF_OK;
}

static enum llm_exit move(struct home *h)
{
    const struct llm_args *a = h->run->args;
    struct kvf_move_report report;
    struct llm_state state = {.next_token = h->tokens[h->n_tokens - 1], .generated = h->n_tokens,
                              .prompt_tokens = h->run->prompt_tokens};
    enum kvf_status st = llm_state_save(h->session, &state);
    if (st != KVF_OK)
        return llm_common_failed("storing the engine's state", st);
    llm_report_session(h->run, "info_before_move", h->session);
    llm_report_stats(h->run, "stats_before_move");
    st = kvf_session_move(h->session, a->move_to, MOVE_TIMEOUT_NS, &report);
    if (st != KVF_OK)
        return llm_common_failed("moving the session", st);
    h->moved = true;
    json_object_set_new(h->run->report, "move",
                        json_pack("{s:s, s:I, s:f, s:I, s:I, s:I}", "target", a->move_to, "after_tokens", (json_int_t)h->n_tokens,
                                  "stop_ms", (double)report.stop_ns * 1e-6, "bytes_before_switch",
                                  (json_int_t)report.bytes_before_switch, "bytes_after_switch",
                                  (json_int_t)report.bytes_after_switch, "epoch", (json_int_t)report.epoch));
    llm_common_say("moved");
    llm_common_await_stop();
    return LLM_EXIT_DONE;
}

static enum llm_exit report(struct home *h)
{
    struct llm_run *run = h->run;
    bool equal = memcmp(h->tokens, h->expected, h->n_tokens * sizeof *h->tokens) == 0;
    llm_report_common(run, "home");
    add_number(h, "generated_tokens", h->n_tokens);
    llm_report_tokens(run, "tokens", h->tokens, h->n_tokens);
    llm_report_tokens(run, "expected_tokens", h->expected, h->n_expected);
    llm_report_text(run, "text", h->tokens, h->n_tokens);
    json_object_set_new(run->report, "tokens_equal", json_boolean(equal));
    json_object_set_new(run->report, "prefill_logits_equal", json_boolean(h->prefill_equal));
    add_number(h, "logits_compared", h->steps_compared);
    add_number(h, "logits_equal", h->steps_equal);
    llm_report_series(run, "ms_per_token", &h->kvf_ms);
    llm_report_series(run, "ms_per_token_plain", &h->plain_ms);
    json_object_set_new(run->report, "prefill_ms", json_real(h->kvf_prefill_ms));
    json_object_set_new(run->report, "prefill_ms_plain", json_real(h->plain_prefill_ms));
    llm_report_feed(run, &h->kvf, &h->kvf_cache);
    llm_report_stats(run, "stats");
    return llm_report_write(run);
}

static enum llm_exit work(struct home *h)
{
    const struct llm_args *a = h->run->args;
    enum kvf_status st = prefill(h);
    if (st != KVF_OK)
        return llm_common_failed("reading the text", st);
    st = decode(h, a->move_to ? a->move_after : a->generate);
    while (st == KVF_OK && h->n_expected < a->generate) /* what the next engine must generate */
        st = step_plain(h);
    if (st != KVF_OK)
        return llm_common_failed("generating", st);
    enum llm_exit code = LLM_EXIT_DONE;
    if (a->move_to)
        code = move(h);
    else
        llm_report_session(h->run, "info_at_end", h->session);
    if (code == LLM_EXIT_DONE)
        code = report(h);
    return code;
}

static bool allocate(struct home *h)
{
    struct llm_run *run = h->run;
    uint64_t generate = run->args->generate;
    size_t logits_bytes = run->model.vocabulary * sizeof(float);
    h->plain_cache = llm_cache_plain_create(&run->model, run->pool, run->prompt_tokens + generate);
    h->plain_logits = malloc(logits_bytes);
    h->kvf_logits = malloc(logits_bytes);
    h->expected = malloc((generate + 1) * sizeof *h->expected);
    h->tokens = malloc((generate + 1) * sizeof *h->tokens);
    bool series = llm_series_init(&h->plain_ms, generate);
    series = llm_series_init(&h->kvf_ms, generate) && series;
    return h->plain_cache && h->plain_logits && h->kvf_logits && h->expected && h->tokens && series;
}

enum llm_exit llm_run_home(struct llm_run *run)
{
    struct home h = {.run = run};
    enum llm_exit code = LLM_EXIT_DONE;
    if (!allocate(&h)) {
        code = llm_common_failed("making the caches", KVF_ERR_NO_MEMORY);
        goto free_all;
    }
    code = llm_common_open_node(run);
    if (code != LLM_EXIT_DONE)
        goto free_all;
    enum kvf_status st = kvf_session_create(run->node, run->kvf_model, run->args->session, &h.session);
    if (st != KVF_OK) {
        code = llm_common_failed("creating the session", st);
        goto free_all;
    }
    llm_cache_kvf_init(&h.kvf_cache, &run->model, h.session);
    h.plain = (struct llm_feed){.engine = run->engine, .cache = llm_cache_plain_table(h.plain_cache)};
    h.kvf = (struct llm_feed){.engine = run->engine, .cache = &h.kvf_cache.table};
    code = work(&h);
    if (h.moved)
        kvf_session_close(h.session);
    else
        kvf_session_drop(h.session); /* nobody goes on with it */
free_all:
    llm_series_free(&h.kvf_ms);
    llm_series_free(&h.plain_ms);
    free(h.tokens);
    free(h.expected);
    free(h.kvf_logits);
    free(h.plain_logits);
    llm_cache_plain_destroy(h.plain_cache);
    return code;
}
