/* The command line of `llm`: one table of options from which the parser and --help come. */
#ifndef LLM_ARGS_H
#define LLM_ARGS_H

#include "error.h"

#include <stdint.h>

enum llm_exit { LLM_EXIT_DONE = 0, LLM_EXIT_FAILED = 1, LLM_EXIT_USAGE = 2, LLM_EXIT_CLUSTER = 3 };

#define LLM_SETS_MAX 64

struct llm_args {
    const char *model, *prompt_file, *role, *config, *move_to, *out, *make_random, *record;
    const char *sets[LLM_SETS_MAX]; /* "name=value" */
    uint32_t n_sets;
    uint64_t prompt_tokens, generate, threads, batch, session, move_after, attach_timeout, seed;
    uint64_t budget; /* percent; 0 is off */
    bool plain, follow, verbose, help;
};

/* Points into argv. On false `error` names the option. */
bool llm_args_parse(struct llm_args *args, int argc, char **argv, struct llm_error *error);
void llm_args_help(void);
#endif
