/* What the runs of `llm` share: the loaded model, the text, generation, progress, the node. Each run is one file. */
#ifndef LLM_RUN_H
#define LLM_RUN_H

#include "args.h"
#include "feed.h"
#include "tokenizer.h"

#include <jansson.h>

struct llm_run {
    const struct llm_args *args;
    struct llm_pool *pool;
    struct llm_model model;
    struct llm_tokenizer *tokenizer;
    struct llm_engine *engine;
    int32_t *prompt; /* [text_tokens] */
    uint64_t prompt_tokens, text_tokens; /* those to read; all of the text, which prompt holds */
    struct kvf_node *node;
    struct kvf_model *kvf_model;
    json_t *report;
};

/* A series of measurements of one kind, in milliseconds. */
struct llm_series {
    double *ms; /* [room] */
    size_t count, room;
};

/* The runs. Each says on stderr what went wrong. */
enum llm_exit llm_run_plain(struct llm_run *run);
enum llm_exit llm_run_home(struct llm_run *run);
enum llm_exit llm_run_next(struct llm_run *run);
enum llm_exit llm_run_budget(struct llm_run *run);

/* ---- common.c */

/* Loads what the arguments name: model, tokenizer, engine, and the text when there is one. */
enum llm_exit llm_common_setup(struct llm_run *run, const struct llm_args *args);
void llm_common_teardown(struct llm_run *run);

/* Opens the node and the model on it from --config, the environment and --set. */
enum llm_exit llm_common_open_node(struct llm_run *run);

/* One line: what was being done, the status, what to try. Returns the exit code that fits. */
enum llm_exit llm_common_failed(const char *doing, enum kvf_status status);

/* Reads the prompt into one cache, or into two in the same batches (`b` may be NULL), leaves the logits behind its last
 * token in *_logits and adds the time of each to *_ms. */
enum kvf_status llm_common_prefill(struct llm_run *run, struct llm_feed *a, float *a_logits, double *a_ms, struct llm_feed *b,
                                   float *b_logits, double *b_ms);

/* One decode step, timed into the series. */
enum kvf_status llm_common_decode(struct llm_feed *feed, int32_t token, float *logits, struct llm_series *series);

/* Shows a generated token with --verbose, else a progress line now and then; `done` of `total` are generated. */
void llm_common_show(const struct llm_run *run, int32_t token, uint64_t done, uint64_t total);

/* Prints a word for whoever started us, and waits for a line "stop" or the end of stdin. */
void llm_common_say(const char *word);
void llm_common_await_stop(void);

/* ---- report.c: the parts of the report; they add to run->report under the given name. */
bool llm_series_init(struct llm_series *series, size_t room);
void llm_series_free(struct llm_series *series);
double llm_series_median(const struct llm_series *series);

void llm_report_series(struct llm_run *run, const char *name, const struct llm_series *series);
void llm_report_tokens(struct llm_run *run, const char *name, const int32_t *tokens, uint64_t count);
void llm_report_text(struct llm_run *run, const char *name, const int32_t *tokens, uint64_t count);
void llm_report_stats(struct llm_run *run, const char *name);
void llm_report_session(struct llm_run *run, const char *name, struct kvf_session *session);
void llm_report_feed(struct llm_run *run, const struct llm_feed *feed, const struct llm_cache_kvf *cache);
void llm_report_common(struct llm_run *run, const char *role);
/* Writes the report to --out, whole or not at all. */
enum llm_exit llm_report_write(struct llm_run *run);

/* ---- state.c: what travels with the session from one engine to the next. */
struct llm_state {
    int32_t next_token;     /* generated, not yet fed */
    uint64_t generated;     /* tokens so far, next_token included */
    uint64_t prompt_tokens; /* where the generated text begins */
};
enum kvf_status llm_state_save(struct kvf_session *session, const struct llm_state *state);
/* ERR_MODEL for bytes that another program or version wrote. */
enum kvf_status llm_state_load(struct kvf_session *session, struct llm_state *state);
#endif
