#include "run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROMPT_BYTES_MAX (64u << 20)
#define SHOW_EVERY 16 /* tokens between two lines of progress */

static enum llm_exit complain(const struct llm_error *error)
{
    fprintf(stderr, "llm: %s\n", error->text);
    return LLM_EXIT_FAILED;
}

static char *read_file(const char *path, size_t *length, struct llm_error *error)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        llm_error_set(error, "cannot open the text %s: %s", path, strerror(errno));
        return NULL;
    }
    size_t room = 1 << 16, n = 0, got;
    char *text = malloc(room);
    while (text && (got = fread(text + n, 1, room - n, file)) > 0) {
        n += got;
        if (n < room)
            continue;
        char *larger = room < PROMPT_BYTES_MAX ? realloc(text, room *= 2) : NULL;
        if (!larger)
            free(text);
        text = larger;
    }
    bool failed = ferror(file);
    fclose(file);
    if (text && failed) {
        free(text);
        text = NULL;
    }
    if (!text)
        llm_error_set(error, "cannot read the text %s: an error, or more than %u MiB", path, PROMPT_BYTES_MAX >> 20);
    *length = n;
    return text;
}

static bool load_prompt(struct llm_run *run, struct llm_error *error)
{
    const struct llm_args *a = run->args;
    size_t length, count;
    char *text = read_file(a->prompt_file, &length, error);
    if (!text)
        return false;
    bool ok = llm_tokenizer_encode(run->tokenizer, text, length, false, &run->prompt, &count);
    free(text);
    if (!ok)
        return llm_error_set(error, "out of memory for the text's tokens");
    if (count == 0)
        return llm_error_set(error, "the text %s is empty", a->prompt_file);
    if (a->prompt_tokens > count)
        return llm_error_set(error, "--prompt-tokens %llu: the text %s has only %zu tokens", (unsigned long long)a->prompt_tokens,
                             a->prompt_file, count);
    run->prompt_tokens = a->prompt_tokens ? a->prompt_tokens : count;
    run->text_tokens = count;
    if (a->follow && a->prompt_tokens + a->generate > count)
        return llm_error_set(error, "--follow: the text %s has only %zu tokens", a->prompt_file, count);
    if (run->prompt_tokens + a->generate > run->model.context)
        return llm_error_set(error, "%llu tokens of text and %llu generated ones do not fit the model's context of %u; try "
                             "--prompt-tokens",
                             (unsigned long long)run->prompt_tokens, (unsigned long long)a->generate, run->model.context);
    return true;
}

static bool load_all(struct llm_run *run, struct llm_error *error)
{
    run->pool = llm_pool_create((unsigned)run->args->threads);
    if (!run->pool)
        return llm_error_set(error, "cannot start %u threads", (unsigned)run->args->threads);
    if (!llm_model_load(&run->model, run->args->model, run->pool, error) ||
        !llm_tokenizer_create(&run->model.gguf, &run->tokenizer, error))
        return false;
    if (llm_tokenizer_size(run->tokenizer) > run->model.vocabulary)
        return llm_error_set(error, "the model has %u tokens but vectors for %u", llm_tokenizer_size(run->tokenizer),
                             run->model.vocabulary);
    run->engine = llm_engine_create(&run->model, run->pool);
    run->report = json_object();
    if (!run->engine || !run->report)
        return llm_error_set(error, "out of memory for the engine");
    return !run->args->prompt_file || load_prompt(run, error);
}

enum llm_exit llm_common_setup(struct llm_run *run, const struct llm_args *args)
{
    struct llm_error error;
    *run = (struct llm_run){.args = args};
    return load_all(run, &error) ? LLM_EXIT_DONE : complain(&error);
}

void llm_common_teardown(struct llm_run *run)
{
    if (run->node)
        kvf_node_close(run->node);
    json_decref(run->report);
    free(run->prompt);
    llm_engine_destroy(run->engine);
    llm_tokenizer_destroy(run->tokenizer);
    llm_model_free(&run->model);
    llm_pool_destroy(run->pool);
    *run = (struct llm_run){0};
}

static enum kvf_status configure(const struct llm_args *args, struct kvf_config *config)
{
    enum kvf_status st = args->config ? kvf_config_load(config, args->config) : KVF_OK;
    if (st == KVF_OK)
        st = kvf_config_load_env(config);
    for (uint32_t i = 0; i < args->n_sets && st == KVF_OK; i++) {
        char name[128];
        const char *equals = strchr(args->sets[i], '=');
        snprintf(name, sizeof name, "%.*s", (int)(equals - args->sets[i]), args->sets[i]);
        st = kvf_config_set(config, name, equals + 1);
    }
    return st;
}

static bool is_cluster_failure(enum kvf_status status)
{
    return status == KVF_ERR_STORE || status == KVF_ERR_PEER_UNREACHABLE;
}

enum llm_exit llm_common_open_node(struct llm_run *run)
{
    struct kvf_config *config;
    struct kvf_model_desc desc;
    const char *doing = "reading the node's settings";
    enum kvf_status st = kvf_config_create(&config);
    if (st != KVF_OK)
        return llm_common_failed(doing, st);
    st = configure(run->args, config);
    if (st == KVF_OK) {
        doing = "opening the node";
        st = kvf_node_open(config, &run->node);
    }
    if (st != KVF_OK)
        fprintf(stderr, "llm: %s failed: %s: %s\n", doing, kvf_status_name(st), kvf_config_error(config));
    kvf_config_destroy(config);
    if (st != KVF_OK)
        return is_cluster_failure(st) ? LLM_EXIT_CLUSTER : LLM_EXIT_FAILED;
    llm_cache_describe(&run->model, &desc);
    st = kvf_model_open(run->node, &desc, &run->kvf_model);
    return st == KVF_OK ? LLM_EXIT_DONE : llm_common_failed("registering the model", st);
}

enum llm_exit llm_common_failed(const char *doing, enum kvf_status st)
{
    static const struct {
        enum kvf_status status;
        const char *advice;
    } list[] = {
        {KVF_ERR_EXISTS, "choose another --session, or drop the old one"},
        {KVF_ERR_NOT_FOUND, "see 'kvf status' for the nodes and sessions there are"},
        {KVF_ERR_FULL, "give the node more dram.bytes or ssd.bytes, or add a lender"},
        {KVF_ERR_DISK_FULL, "free space under ssd.path"},
        {KVF_ERR_STORE, "see whether etcd runs at etcd.endpoints"},
        {KVF_ERR_PEER_UNREACHABLE, "see whether the other node runs ('kvf status')"},
        {KVF_ERR_PEER_LOST, "see whether the other node runs ('kvf status')"},
        {KVF_ERR_DEADLINE, "a peer or a disk is too slow or gone; raise fetch.timeout (or --attach-timeout), or try again"},
        {KVF_ERR_MODEL, "start both engines with the same model file and version"},
        {KVF_MOVED, "the session lives at another node; 'kvf sessions' tells where"},
        {KVF_LOST, "blocks are lost faster than they can be recomputed"},
        {KVF_ERR_NO_MEMORY, "use a smaller model or context"},
    };
    const char *advice = "see the log of the nodes";
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        if (list[i].status == st)
            advice = list[i].advice;
    fprintf(stderr, "llm: %s failed: %s (%s); %s\n", doing, kvf_status_name(st), kvf_status_text(st), advice);
    return is_cluster_failure(st) ? LLM_EXIT_CLUSTER : LLM_EXIT_FAILED;
}

static void show_prefill(uint64_t done, uint64_t total, double ms, unsigned *tenth)
{
    bool terminal = isatty(STDERR_FILENO);
    unsigned now = (unsigned)(done * 10 / total);
    if (!terminal && now == *tenth)
        return;
    *tenth = now;
    fprintf(stderr, "%sread %llu of %llu tokens, %.0f per second%s", terminal ? "\r" : "", (unsigned long long)done,
            (unsigned long long)total, (double)done / ms * 1e3, terminal && done < total ? "  " : "\n");
}

enum kvf_status llm_common_prefill(struct llm_run *run, struct llm_feed *a, float *a_logits, double *a_ms, struct llm_feed *b,
                                   float *b_logits, double *b_ms)
{
    uint64_t total = run->prompt_tokens, begin = llm_engine_now_ns();
    unsigned tenth = 0;
    for (uint64_t at = 0; at < total;) {
        uint32_t n = total - at < run->args->batch ? (uint32_t)(total - at) : (uint32_t)run->args->batch;
        enum llm_logits which = at + n == total ? LLM_LOGITS_LAST : LLM_LOGITS_NONE;
        uint64_t start = llm_engine_now_ns();
        enum kvf_status st = llm_feed_step(a, run->prompt + at, n, which, a_logits);
        uint64_t middle = llm_engine_now_ns();
        if (st == KVF_OK && b)
            st = llm_feed_step(b, run->prompt + at, n, which, b_logits);
        if (st != KVF_OK)
            return st;
        *a_ms += (double)(middle - start) * 1e-6;
        if (b)
            *b_ms += (double)(llm_engine_now_ns() - middle) * 1e-6;
        at += n;
        show_prefill(at, total, (double)(llm_engine_now_ns() - begin) * 1e-6, &tenth);
    }
    return KVF_OK;
}

enum kvf_status llm_common_decode(struct llm_feed *feed, int32_t token, float *logits, struct llm_series *series)
{
    uint64_t start = llm_engine_now_ns();
    enum kvf_status st = llm_feed_step(feed, &token, 1, LLM_LOGITS_LAST, logits);
    if (st == KVF_OK && series && series->count < series->room)
        series->ms[series->count++] = (double)(llm_engine_now_ns() - start) * 1e-6;
    return st;
}

void llm_common_show(const struct llm_run *run, int32_t token, uint64_t done, uint64_t total)
{
    if (run->args->verbose) {
        char text[512];
        size_t n = llm_tokenizer_decode(run->tokenizer, token, text, sizeof text);
        fwrite(text, 1, n, stderr);
        if (done == total)
            fputc('\n', stderr);
    } else if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "\rgenerated %llu of %llu tokens%s", (unsigned long long)done, (unsigned long long)total,
                done == total ? "\n" : "  ");
    } else if (done % SHOW_EVERY == 0 || done == total) {
        fprintf(stderr, "generated %llu of %llu tokens\n", (unsigned long long)done, (unsigned long long)total);
    }
}

void llm_common_say(const char *word)
{
    puts(word);
    fflush(stdout);
}

void llm_common_await_stop(void)
{
    char line[64];
    while (fgets(line, sizeof line, stdin))
        if (strcmp(line, "stop\n") == 0)
            return;
}
