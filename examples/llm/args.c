#include "args.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { TEXT, NUMBER, FLAG, SET };

struct option {
    const char *name, *value; /* value: the word that --help shows */
    enum kind kind;
    size_t offset;
    uint64_t initial, low, high;
    const char *help;
};

#define AT(field) offsetof(struct llm_args, field)

static const struct option options[] = {
    {"--model", "FILE", TEXT, AT(model), 0, 0, 0, "the model, a GGUF file of the Llama architecture"},
    {"--prompt-file", "FILE", TEXT, AT(prompt_file), 0, 0, 0, "the text to read"},
    {"--prompt-tokens", "N", NUMBER, AT(prompt_tokens), 0, 0, 1 << 20, "read only its first N tokens; 0 reads all"},
    {"--generate", "N", NUMBER, AT(generate), 128, 1, 1 << 20, "tokens to generate after the text"},
    {"--threads", "N", NUMBER, AT(threads), 2, 1, 256, "threads of the matrix products"},
    {"--batch", "N", NUMBER, AT(batch), 256, 1, 256, "tokens per pass while the text is read"},
    {"--plain", NULL, FLAG, AT(plain), 0, 0, 0, "no KVFabric: keep K and V in plain memory and print the text"},
    {"--role", "ROLE", TEXT, AT(role), 0, 0, 0, "home: reads, starts to generate, moves the session; next: takes it over"},
    {"--config", "FILE", TEXT, AT(config), 0, 0, 0, "settings of the node (kvf info -c prints them all)"},
    {"--set", "NAME=VALUE", SET, AT(sets), 0, 0, 0, "one setting of the node; may be repeated"},
    {"--session", "ID", NUMBER, AT(session), 1, 1, INT64_MAX, "id of the session, unique in the cluster"},
    {"--move-to", "NODE", TEXT, AT(move_to), 0, 0, 0, "home: move the session to this node"},
    {"--move-after", "M", NUMBER, AT(move_after), 0, 0, 1 << 20, "home: ... after M generated tokens; 0 is half of them"},
    {"--attach-timeout", "SECONDS", NUMBER, AT(attach_timeout), 600, 1, 86400, "next: wait as long for the session"},
    {"--out", "FILE", TEXT, AT(out), 0, 0, 0, "write the report, as JSON"},
    {"--budget", "PERCENT", NUMBER, AT(budget), 0, 0, 100,
     "quality run: attend to that share of the chunks, compare with full attention on the same prefix"},
    {"--follow", NULL, FLAG, AT(follow), 0, 0, 0, "with --budget: go on along the text's own tokens, not the generated ones"},
    {"--record", "FILE", TEXT, AT(record), 0, 0, 0, "with --budget: write the selections for `kvf bench policy`"},
    {"--make-random", "FILE", TEXT, AT(make_random), 0, 0, 0, "write a small model with random weights, and end"},
    {"--seed", "N", NUMBER, AT(seed), 1, 0, INT64_MAX, "of the random weights"},
    {"--verbose", NULL, FLAG, AT(verbose), 0, 0, 0, "show the text on stderr as it is generated"},
    {"--help", NULL, FLAG, AT(help), 0, 0, 0, "this text"},
};
#define OPTIONS (sizeof options / sizeof options[0])

static bool take_number(const struct option *o, const char *text, uint64_t *out, struct llm_error *error)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-' || value < o->low || value > o->high)
        return llm_error_set(error, "%s takes a whole number within %llu..%llu, not '%s'", o->name, (unsigned long long)o->low,
                             (unsigned long long)o->high, text);
    *out = value;
    return true;
}

static bool take(struct llm_args *args, const struct option *o, const char *value, struct llm_error *error)
{
    void *field = (char *)args + o->offset;
    if (o->kind == NUMBER)
        return take_number(o, value, field, error);
    if (o->kind == FLAG) {
        *(bool *)field = true;
    } else if (o->kind == TEXT) {
        *(const char **)field = value;
    } else {
        if (args->n_sets == LLM_SETS_MAX)
            return llm_error_set(error, "more than %d times --set", LLM_SETS_MAX);
        if (!strchr(value, '='))
            return llm_error_set(error, "--set takes NAME=VALUE, not '%s'", value);
        args->sets[args->n_sets++] = value;
    }
    return true;
}

/* Options that only make sense together. */
static bool check(const struct llm_args *a, struct llm_error *error)
{
    if (a->help || a->make_random)
        return true;
    if (!a->model)
        return llm_error_set(error, "--model is missing");
    if (a->role && strcmp(a->role, "home") != 0 && strcmp(a->role, "next") != 0)
        return llm_error_set(error, "--role is home or next, not '%s'", a->role);
    if (a->plain + (a->role != NULL) + (a->budget > 0) != 1)
        return llm_error_set(error, "give one of --plain, --role and --budget");
    if (a->record && !a->budget)
        return llm_error_set(error, "--record without --budget");
    if (a->follow && (!a->budget || !a->prompt_tokens))
        return llm_error_set(error, "--follow without --budget and --prompt-tokens");
    bool next = a->role && strcmp(a->role, "next") == 0;
    if (!next && !a->prompt_file)
        return llm_error_set(error, "--prompt-file is missing");
    if (a->move_after && !a->move_to)
        return llm_error_set(error, "--move-after without --move-to");
    if (a->move_after > a->generate)
        return llm_error_set(error, "--move-after is more than --generate");
    return true;
}

bool llm_args_parse(struct llm_args *args, int argc, char **argv, struct llm_error *error)
{
    *args = (struct llm_args){0};
    for (size_t i = 0; i < OPTIONS; i++)
        if (options[i].kind == NUMBER)
            *(uint64_t *)((char *)args + options[i].offset) = options[i].initial;
    for (int i = 1; i < argc; i++) {
        const char *equals = strchr(argv[i], '=');
        size_t length = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
        const struct option *o = NULL;
        for (size_t k = 0; k < OPTIONS && !o; k++)
            if (strlen(options[k].name) == length && strncmp(options[k].name, argv[i], length) == 0)
                o = &options[k];
        if (!o || (equals && o->kind == FLAG))
            return llm_error_set(error, "unknown option %s", argv[i]);
        const char *value = equals ? equals + 1 : NULL;
        if (o->kind != FLAG && !equals && (i + 1 == argc || (value = argv[++i]) == NULL))
            return llm_error_set(error, "%s needs a value (%s)", o->name, o->value);
        if (!take(args, o, value, error))
            return false;
    }
    if (args->move_to && !args->move_after)
        args->move_after = args->generate > 1 ? args->generate / 2 : 1;
    return check(args, error);
}

void llm_args_help(void)
{
    puts("llm: a small language model engine whose KV cache is KVFabric (or plain memory, to compare).\n\n"
         "usage: llm --model FILE --prompt-file FILE --plain\n"
         "       llm --model FILE --prompt-file FILE --role home [--move-to NODE] --out FILE.json\n"
         "       llm --model FILE --role next --out FILE.json\n"
         "       llm --model FILE --prompt-file FILE --budget PERCENT [--record FILE] --out FILE.json\n"
         "       llm --make-random FILE [--seed N]\n");
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *o = &options[i];
        char left[64], initial[32] = "";
        snprintf(left, sizeof left, "%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
        if (o->kind == NUMBER)
            snprintf(initial, sizeof initial, " [%llu]", (unsigned long long)o->initial);
        printf("  %-26s%s%s\n", left, o->help, initial);
    }
    puts("\nRoles talk with whoever started them by lines: next prints 'ready' when its node is open, home prints 'moved' when\n"
         "the session has moved; both then work on until a line 'stop' or the end of their input, and write their report.\n"
         "The node's settings also come from the environment (KVF_NODE_NAME for node.name); --set wins, then the environment,\n"
         "then --config.\n\n"
         "exit codes: 0 done, 1 failed, 2 wrong usage, 3 the cluster cannot be reached\n\n"
         "examples:\n"
         "  llm --model m.gguf --prompt-file /usr/share/common-licenses/GPL-3 --prompt-tokens 600 --generate 60 --plain\n"
         "  llm --model m.gguf --role next --set node.name=b --session 7 --out b.json\n"
         "  llm --model m.gguf --prompt-file text --role home --set node.name=a --session 7 --move-to b --out a.json");
}
