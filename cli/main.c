/* kvf: what people ask a cluster. The verbs are a table; the options that they share are read here. */
#include "cli/cli.h"

#include "base/env.h"
#include "bench/bench.h"

#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define SETS_MAX 128
#define TIMEOUT_DEFAULT_NS (5 * KVF_SEC)

static const struct verb {
    const char *name, *flags; /* flags: its own one-letter options */
    unsigned args_min, args_max;
    int (*run)(struct kvf_cli *cli);
    const char *summary, *help;
} verbs[] = {
    {"status", "", 0, 1, kvf_cmd_status, "nodes, tiers, bytes, sessions",
     "usage: kvf status [NODE] [options]\n\n"
     "Without NODE: one line for every node. With NODE: its tiers, peers, latencies and counters.\n"
     "A node that does not answer is shown as unreachable; that is no failure, unless it is the NODE asked for.\n\n"
     "examples\n  kvf status\n  kvf status lender1\n  kvf status --json\n"},
    {"sessions", "", 0, 0, kvf_cmd_sessions, "every session: home, tokens, lost blocks",
     "usage: kvf sessions [options]\n\n"
     "Placement comes from etcd, the rest from the home nodes (- where a home does not answer).\n\n"
     "examples\n  kvf sessions\n  kvf sessions --json\n"},
    {"move", "", 2, 2, kvf_cmd_move, "moves a session to another node",
     "usage: kvf move SESSION NODE [options]\n\n"
     "SESSION is decimal, or 0x and hex digits. The session's engine gets KVF_MOVED from its next step.\n"
     "--timeout also bounds the move (default here: 30 s).\n\n"
     "examples\n  kvf move 7 node2\n  kvf move 0x1f node2 --timeout 60\n"},
    {"lend", "", 2, 2, kvf_cmd_lend, "sets how much a node lends; more is called back",
     "usage: kvf lend NODE BYTES [options]\n\n"
     "From now until it restarts, NODE lends other nodes at most BYTES (0, 512M, 8G; at most its lend.bytes). What they\n"
     "have beyond that they are asked to move away; what is not moved in time is taken. Ends when NODE has its memory,\n"
     "which holds its own blocks then. By itself a node takes memory back while its own is short (lend.reclaim_above).\n"
     "--timeout bounds the time (default here: 5 s).\n\n"
     "examples\n  kvf lend lender1 0\n  kvf lend lender1 8G --timeout 30\n"},
    {"drain", "e", 1, 1, kvf_cmd_drain, "prepares a node to be stopped",
     "usage: kvf drain NODE [-e] [options]\n\n"
     "NODE takes on nothing more of others, until it restarts: it lends nothing and no session is moved to it. What others\n"
     "have in its memory they are asked to move away; what is not moved in time is taken. Shows how far it is, and ends when\n"
     "NODE has nothing of others any more, also no block of a session that moved away and is still fetched from here.\n"
     "Sessions that have their home at NODE are counted; kvf move moves them.\n"
     "--timeout bounds the time (default here: 60 s).\n\n"
     "  -e  ends it: NODE lends and takes sessions as before\n\n"
     "examples\n  kvf drain lender1\n  kvf drain lender1 --json --timeout 300\n  kvf drain lender1 -e\n"},
    {"info", "bdctp", 0, 1, kvf_cmd_info, "what this build and this machine can do, and why not",
     "usage: kvf info [-b] [-d] [-c] [-t] [options]\n"
     "       kvf info -p NODE [options]\n\n"
     "  -b  the build: version, features\n"
     "  -d  devices and tiers that are usable here, and why others are not\n"
     "  -c  every setting with its default, bounds and help: a configuration file\n"
     "  -t  sizes of the main structs\n"
     "  -p  how the other nodes reach NODE: which mechanism, why, and with which settings; they and etcd are asked\n"
     "Without a flag: -b and -d. Only -p asks etcd.\n\n"
     "examples\n  kvf info\n  kvf info -p node2\n  kvf info -c > kvf.conf\n  kvf info -c --set dram.bytes=64G\n"},
    {"bench", NULL, 0, 0, NULL, "measures this machine; `kvf bench --help`", NULL},
};
#define VERBS (sizeof verbs / sizeof verbs[0])

static const char options_help[] =
    "options\n"
    "  --etcd URLS        etcd's client URLs, with commas  (environment KVF_ETCD_ENDPOINTS; default http://127.0.0.1:2379)\n"
    "  --prefix P         the cluster's prefix in etcd     (environment KVF_ETCD_PREFIX; default /kvfabric/default)\n"
    "  --config FILE      settings as `kvf info -c` prints (environment KVF_CONFIG; default none)\n"
    "  --set NAME=VALUE   one setting; may be repeated     (environment KVF_NAME)\n"
    "  --json             JSON; its first key names the schema and version\n"
    "  --timeout SECONDS  for the whole verb               (default 5)\n"
    "  --version          version, commit and features\n"
    "  --help             this text, or a verb's\n"
    "\n"
    "exit codes: 0 done, 1 the thing asked for failed, 2 wrong usage, 3 etcd cannot be reached\n";

static const char examples_help[] =
    "\nexamples\n"
    "  kvf status\n"
    "  kvf status --json --etcd http://127.0.0.1:2379\n"
    "  kvf move 7 node2 --timeout 60\n"
    "  kvf info -c > kvf.conf\n"
    "  kvf bench kernels --json kernels.json\n";

struct options {
    const char *config_file, *etcd, *prefix;
    char *sets[SETS_MAX];
    unsigned n_sets;
    bool help;
};

int kvf_cli_fail(const struct kvf_cli *cli, int code, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    /* What is quoted may come from etcd or a node: one line, no codes to a terminal. */
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    fprintf(stderr, "kvf%s%s: %s\n", cli->verb ? " " : "", cli->verb ? cli->verb : "", text);
    return code;
}

static int print_help(const struct verb *verb)
{
    if (verb && verb->help) {
        const char *examples = strstr(verb->help, "\nexamples");
        printf("%.*s\n%s%s", (int)(examples - verb->help), verb->help, options_help, examples);
        return KVF_EXIT_DONE;
    }
    printf("usage: kvf VERB [arguments] [options]\n\nverbs\n");
    for (size_t i = 0; i < VERBS; i++)
        printf("  %-10s %s\n", verbs[i].name, verbs[i].summary);
    printf("`kvf VERB --help` tells more.\n\n%s%s", options_help, examples_help);
    return KVF_EXIT_DONE;
}

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; i < VERBS; i++)
        if (!strcmp(verbs[i].name, name))
            return &verbs[i];
    return NULL;
}

static int take_timeout(struct kvf_cli *cli, const char *text)
{
    char *end;
    double seconds = strtod(text, &end);
    if (end == text || *end || !isfinite(seconds) || seconds <= 0 || seconds > 3600)
        return kvf_cli_fail(cli, KVF_EXIT_USAGE, "--timeout wants seconds, above 0 and at most 3600, not %s", text);
    cli->timeout_ns = (uint64_t)(seconds * 1e9);
    if (!cli->timeout_ns)
        cli->timeout_ns = 1;
    return -1;
}

/* Takes options up to the first argument that is none (`stop`) or all of them. -1: go on; else the exit code. */
static int take_options(struct kvf_cli *cli, struct options *options, const struct verb *verb, int argc, char **argv)
{
    enum { ETCD = 256, PREFIX, CONFIG, SET, JSON, TIMEOUT, VERSION, HELP };
    static const struct option table[] = {
        {"etcd", required_argument, NULL, ETCD},       {"prefix", required_argument, NULL, PREFIX},
        {"config", required_argument, NULL, CONFIG},   {"set", required_argument, NULL, SET},
        {"json", no_argument, NULL, JSON},             {"timeout", required_argument, NULL, TIMEOUT},
        {"version", no_argument, NULL, VERSION},       {"help", no_argument, NULL, HELP},
        {NULL, 0, NULL, 0},
    };
    char letters[32];
    int option, code;
    snprintf(letters, sizeof letters, "%s:h%s", verb ? "" : "+", verb ? verb->flags : "");
    while ((option = getopt_long(argc, argv, letters, table, NULL)) != -1) {
        switch (option) {
        case ETCD: options->etcd = optarg; break;
        case PREFIX: options->prefix = optarg; break;
        case CONFIG: options->config_file = optarg; break;
        case SET:
            if (options->n_sets == SETS_MAX)
                return kvf_cli_fail(cli, KVF_EXIT_USAGE, "too many --set");
            options->sets[options->n_sets++] = optarg;
            break;
        case JSON: cli->json = true; break;
        case TIMEOUT:
            if ((code = take_timeout(cli, optarg)) >= 0)
                return code;
            break;
        case VERSION:
            printf("kvf %s\n", kvf_version());
            return KVF_EXIT_DONE;
        case HELP:
        case 'h': options->help = true; break;
        case ':': return kvf_cli_fail(cli, KVF_EXIT_USAGE, "a value is missing after %s", argv[optind - 1]);
        case '?':
            if (optopt && optopt < 256)
                return kvf_cli_fail(cli, KVF_EXIT_USAGE, "unknown option -%c; kvf --help lists the options", optopt);
            return kvf_cli_fail(cli, KVF_EXIT_USAGE, "unknown option %s; kvf --help lists the options", argv[optind - 1]);
        default: {
            size_t n = strlen(cli->flags);
            if (!strchr(cli->flags, option) && n + 1 < sizeof cli->flags) {
                cli->flags[n] = (char)option;
                cli->flags[n + 1] = 0;
            }
        }
        }
    }
    return -1;
}

static int configure(struct kvf_cli *cli, const struct options *options)
{
    struct kvf_config *config = cli->config;
    bool ok = (!options->config_file || !*options->config_file || kvf_config_load(config, options->config_file) == KVF_OK) &&
              kvf_config_load_env(config) == KVF_OK;
    for (unsigned i = 0; ok && i < options->n_sets; i++) {
        char *equals = strchr(options->sets[i], '=');
        if (!equals)
            return kvf_cli_fail(cli, KVF_EXIT_USAGE, "--set wants name=value, not %s", options->sets[i]);
        *equals = 0;
        ok = kvf_config_set(config, options->sets[i], equals + 1) == KVF_OK;
    }
    ok = ok && (!options->etcd || kvf_config_set(config, "etcd.endpoints", options->etcd) == KVF_OK);
    ok = ok && (!options->prefix || kvf_config_set(config, "etcd.prefix", options->prefix) == KVF_OK);
    if (!ok)
        return kvf_cli_fail(cli, KVF_EXIT_USAGE, "reading the configuration: %s (ERR_CONFIG); `kvf info -c` lists every setting",
                            kvf_config_error(config));
    return -1;
}

static int run_verb(struct kvf_cli *cli, const struct verb *verb, struct options *options, int argc, char **argv)
{
    cli->verb = verb->name;
    cli->timeout_ns = verb->run == kvf_cmd_move ? 30 * KVF_SEC : verb->run == kvf_cmd_drain ? 60 * KVF_SEC : TIMEOUT_DEFAULT_NS;
    optind = 0; /* glibc: start anew, and permute */
    int code = take_options(cli, options, verb, argc, argv);
    if (code >= 0)
        return code;
    if (options->help)
        return print_help(verb);
    cli->args = argv + optind + 1; /* the verb is the first of them */
    cli->n_args = (unsigned)(argc - optind) - 1;
    if (cli->n_args < verb->args_min)
        return kvf_cli_fail(cli, KVF_EXIT_USAGE, "an argument is missing; kvf %s --help tells them", verb->name);
    if (cli->n_args > verb->args_max)
        return kvf_cli_fail(cli, KVF_EXIT_USAGE, "unexpected argument %s; kvf %s --help tells them", cli->args[verb->args_max],
                            verb->name);
    code = configure(cli, options);
    if (code >= 0)
        return code;
    /* info shows the settings as they are; the others need a cluster. */
    char endpoints[KVF_CONFIG_TEXT_MAX] = "";
    kvf_config_get(cli->config, "etcd.endpoints", endpoints, sizeof endpoints);
    if (!*endpoints && verb->run != kvf_cmd_info)
        kvf_config_set(cli->config, "etcd.endpoints", "http://127.0.0.1:2379");
    code = verb->run(cli);
    if ((fflush(stdout) || ferror(stdout)) && code == KVF_EXIT_DONE)
        return kvf_cli_fail(cli, KVF_EXIT_FAILED, "writing the answer failed (ERR_IO)");
    return code;
}

int main(int argc, char **argv)
{
    struct kvf_cli cli = {.timeout_ns = TIMEOUT_DEFAULT_NS};
    struct options options = {.config_file = getenv("KVF_CONFIG")};
    opterr = 0;
    /* The options before the verb are only looked at here; they are taken with the verb's. */
    int code = take_options(&cli, &options, NULL, argc, argv);
    if (code >= 0)
        return code;
    if (optind >= argc)
        return options.help ? print_help(NULL) : kvf_cli_fail(&cli, KVF_EXIT_USAGE, "a verb is missing; kvf --help lists them");
    const struct verb *verb = find_verb(argv[optind]);
    if (!verb)
        return kvf_cli_fail(&cli, KVF_EXIT_USAGE, "unknown verb %s; kvf --help lists them", argv[optind]);
    if (!verb->run) {
        argv += optind;
        argc -= optind;
        optind = 0;
        opterr = 1;
        return kvf_bench_main(argc, argv);
    }
    if (kvf_config_create(&cli.config) != KVF_OK)
        return kvf_cli_fail(&cli, KVF_EXIT_FAILED, "out of memory (ERR_NO_MEMORY)");
    options = (struct options){.config_file = getenv("KVF_CONFIG")};
    code = run_verb(&cli, verb, &options, argc, argv);
    kvf_config_destroy(cli.config);
    return code;
}
