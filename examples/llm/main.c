/* llm: the example engine. See args.c (or --help) for what it does; the runs are in run_*.c. */
#include "random.h"
#include "run.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static enum llm_exit make_random(const struct llm_args *args)
{
    struct llm_error error;
    if (llm_random_write(args->make_random, &llm_random_default, args->seed, &error))
        return LLM_EXIT_DONE;
    fprintf(stderr, "llm: %s\n", error.text);
    return LLM_EXIT_FAILED;
}

int main(int argc, char **argv)
{
    struct llm_args args;
    struct llm_error error;
    struct llm_run run;
    if (!llm_args_parse(&args, argc, argv, &error)) {
        fprintf(stderr, "llm: %s; see --help\n", error.text);
        return LLM_EXIT_USAGE;
    }
    if (args.help) {
        llm_args_help();
        return LLM_EXIT_DONE;
    }
    if (args.make_random)
        return (int)make_random(&args);
    signal(SIGPIPE, SIG_IGN); /* whoever reads our words may go first */
    enum llm_exit code = llm_common_setup(&run, &args);
    if (code == LLM_EXIT_DONE && args.plain)
        code = llm_run_plain(&run);
    else if (code == LLM_EXIT_DONE && args.budget)
        code = llm_run_budget(&run);
    else if (code == LLM_EXIT_DONE)
        code = strcmp(args.role, "home") == 0 ? llm_run_home(&run) : llm_run_next(&run);
    llm_common_teardown(&run);
    return (int)code;
}
