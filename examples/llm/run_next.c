/* llm --role next: takes over a session that was moved here and generates the rest, from KVFabric alone. It knows neither
 * the text nor what was generated before: both come with the session. */
#include "run.h"

#include <stdio.h>
#include <stdlib.h>

struct next {
    struct llm_run *run;
    struct kvf_session *session;
    struct llm_cache_kvf cache;
    struct llm_feed feed;
    struct llm_state state;
    float *logits;
    int32_t *tokens; /* generated here, after state.next_token */
    uint64_t n_tokens;
    struct llm_series ms;
};

/* Reads the session's tokens and the other engine's state, and tests one against the other. */
static enum kvf_status take_over(struct next *n)
{
    struct kvf_session_info info;
    int32_t last;
    enum kvf_status st = kvf_session_info(n->session, &info);
    if (st == KVF_OK)
        st = llm_state_load(n->session, &n->state);
    if (st != KVF_OK)
        return st;
    /* The last generated token is not fed yet, so the session holds the text and all generated tokens but one. */
    bool fits = n->state.generated >= 1 && info.tokens >= 1 && info.tokens <= n->run->model.context &&
                n->state.prompt_tokens <= info.tokens && info.tokens - n->state.prompt_tokens == n->state.generated - 1 &&
                (uint32_t)n->state.next_token < n->run->model.vocabulary;
    if (!fits)
        return KVF_ERR_MODEL;
    st = kvf_session_tokens(n->session, info.tokens - 1, 1, &last);
    n->feed.position = info.tokens;
    fprintf(stderr, "took over session %llu: %llu tokens, %llu of them generated\n", (unsigned long long)info.id,
            (unsigned long long)info.tokens, (unsigned long long)n->state.generated);
    return st;
}

static enum kvf_status generate(struct next *n)
{
    struct llm_run *run = n->run;
    uint64_t total = run->args->generate;
    int32_t token = n->state.next_token;
    while (n->state.generated + n->n_tokens < total) {
        if (n->feed.position >= run->model.context)
            return KVF_ERR_FULL;
        enum kvf_status st = llm_common_decode(&n->feed, token, n->logits, &n->ms);
        if (st != KVF_OK)
            return st;
        token = llm_engine_argmax(n->logits, run->model.vocabulary);
        n->tokens[n->n_tokens++] = token;
        llm_common_show(run, token, n->state.generated + n->n_tokens, total);
    }
    return KVF_OK;
}

static enum llm_exit report(struct next *n)
{
    struct llm_run *run = n->run;
    llm_report_common(run, "next");
    json_object_set_new(run->report, "prompt_tokens", json_integer((json_int_t)n->state.prompt_tokens));
    json_object_set_new(run->report, "first_generated", json_integer((json_int_t)n->state.generated));
    json_object_set_new(run->report, "generated_tokens", json_integer((json_int_t)n->n_tokens));
    llm_report_tokens(run, "tokens", n->tokens, n->n_tokens);
    llm_report_text(run, "text", n->tokens, n->n_tokens);
    llm_report_series(run, "ms_per_token", &n->ms);
    llm_report_feed(run, &n->feed, &n->cache);
    llm_report_stats(run, "stats");
    return llm_report_write(run);
}

static enum llm_exit work(struct next *n)
{
    const struct llm_args *a = n->run->args;
    llm_common_say("ready");
    uint64_t timeout_ns = a->attach_timeout * 1000000000ull;
    enum kvf_status st = kvf_session_attach(n->run->node, n->run->kvf_model, a->session, timeout_ns, &n->session);
    if (st != KVF_OK)
        return llm_common_failed("waiting for the session", st);
    llm_report_session(n->run, "info_at_start", n->session);
    llm_cache_kvf_init(&n->cache, &n->run->model, n->session);
    n->feed = (struct llm_feed){.engine = n->run->engine, .cache = &n->cache.table};
    st = take_over(n);
    if (st != KVF_OK)
        return llm_common_failed("taking over the session", st);
    st = generate(n);
    if (st != KVF_OK)
        return llm_common_failed("generating", st);
    llm_report_session(n->run, "info_at_end", n->session);
    enum llm_exit code = report(n);
    llm_common_say("done");
    llm_common_await_stop();
    return code;
}

enum llm_exit llm_run_next(struct llm_run *run)
{
    struct next n = {.run = run};
    enum llm_exit code;
    n.logits = malloc(run->model.vocabulary * sizeof *n.logits);
    n.tokens = malloc((run->args->generate + 1) * sizeof *n.tokens);
    if (!n.logits || !n.tokens || !llm_series_init(&n.ms, run->args->generate))
        code = llm_common_failed("making the buffers", KVF_ERR_NO_MEMORY);
    else
        code = llm_common_open_node(run);
    if (code == LLM_EXIT_DONE)
        code = work(&n);
    if (n.session)
        kvf_session_close(n.session);
    llm_series_free(&n.ms);
    free(n.tokens);
    free(n.logits);
    return code;
}
