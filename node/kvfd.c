/* kvfd: a node as a process of its own. It lends DRAM, keeps sessions that engines moved to it, and outlives engines. */
#include "node/internal.h"

#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_CLUSTER };

#define SETS_MAX 128

static const char help[] =
    "usage: kvfd [--config FILE] [--set NAME=VALUE]... [--check]\n"
    "\n"
    "Runs one KVFabric node until SIGTERM or SIGINT. SIGHUP reads cluster.secret_file anew.\n"
    "\n"
    "options (later sources win: defaults, file, environment, --set)\n"
    "  --config FILE      settings, as `kvf info -c` prints them   (default: none; environment KVF_CONFIG)\n"
    "  --set NAME=VALUE   one setting; may be repeated              (environment KVF_NAME: KVF_DRAM_BYTES is dram.bytes)\n"
    "  --check            read the settings, print what would run, exit\n"
    "  --version          version, commit and features\n"
    "  --help             this text\n"
    "\n"
    "settings that nearly everybody gives\n"
    "  node.name          this node's name           (default: the host's)\n"
    "  etcd.endpoints     etcd's client URLs         (default: empty, this node is alone)\n"
    "  cluster.secret_file  who may be a peer        (default: empty, peers on loopback only)\n"
    "  dram.bytes         DRAM for its own blocks    (default: 256M)\n"
    "  lend.bytes         DRAM lent to other nodes   (default: 0)\n"
    "  ssd.path           directory of the SSD area  (default: empty, no SSD)\n"
    "  admin.listen       admin interface            (default: 127.0.0.1:0, a free port)\n"
    "\n"
    "exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 etcd cannot be reached\n"
    "\n"
    "examples\n"
    "  kvfd --set node.name=lender1 --set lend.bytes=8G --set etcd.endpoints=http://127.0.0.1:2379\n"
    "  kvfd --config /etc/kvf.conf --check\n"
    "  KVF_LOG_LEVEL=info kvfd --config /etc/kvf.conf\n";

struct options {
    const char *config_file;
    char *sets[SETS_MAX];
    unsigned n_sets;
    bool check;
};

static int usage(const char *what, const char *argument)
{
    fprintf(stderr, "kvfd: %s%s; kvfd --help lists the options\n", what, argument);
    return EXIT_USAGE;
}

/* -1: go on; else the exit code. */
static int parse(int argc, char **argv, struct options *options)
{
    enum { CONFIG = 256, SET, CHECK, VERSION, HELP };
    static const struct option table[] = {
        {"config", required_argument, NULL, CONFIG}, {"set", required_argument, NULL, SET},
        {"check", no_argument, NULL, CHECK},         {"version", no_argument, NULL, VERSION},
        {"help", no_argument, NULL, HELP},           {NULL, 0, NULL, 0},
    };
    int option;
    opterr = 0;
    options->config_file = getenv("KVF_CONFIG");
    while ((option = getopt_long(argc, argv, ":h", table, NULL)) != -1) {
        switch (option) {
        case CONFIG:
            options->config_file = optarg;
            break;
        case SET:
            if (options->n_sets == SETS_MAX)
                return usage("too many --set", "");
            options->sets[options->n_sets++] = optarg;
            break;
        case CHECK:
            options->check = true;
            break;
        case VERSION:
            printf("kvfd %s\n", kvf_version());
            return EXIT_DONE;
        case HELP:
        case 'h':
            fputs(help, stdout);
            return EXIT_DONE;
        case ':':
            return usage("a value is missing after ", argv[optind - 1]);
        default:
            return usage("unknown option ", argv[optind - 1]);
        }
    }
    return optind < argc ? usage("unexpected argument ", argv[optind]) : -1;
}

/* False: the one line is out. */
static bool configure(struct kvf_config *config, const struct options *options)
{
    if (options->config_file && *options->config_file && kvf_config_load(config, options->config_file) != KVF_OK)
        goto failed;
    if (kvf_config_load_env(config) != KVF_OK)
        goto failed;
    for (unsigned i = 0; i < options->n_sets; i++) {
        char *set = options->sets[i], *equals = strchr(set, '=');
        if (!equals) {
            usage("--set wants name=value, not ", set);
            return false;
        }
        *equals = 0;
        enum kvf_status status = kvf_config_set(config, set, equals + 1);
        *equals = '=';
        if (status != KVF_OK)
            goto failed;
    }
    return true;

failed:
    fprintf(stderr, "kvfd: reading the configuration: %s (ERR_CONFIG); `kvf info -c` lists every setting\n",
            kvf_config_error(config));
    return false;
}

struct text {
    char s[KVF_CONFIG_TEXT_MAX];
};

static struct text get(const struct kvf_config *config, const char *name)
{
    struct text value = {""};
    kvf_config_get(config, name, value.s, sizeof value.s);
    return value;
}

/* What a node of this configuration is, on one line. */
static void describe(const struct kvf_config *config, const char *name, const char *verb, const char *admin, bool ssd_off)
{
    printf("kvfd: %s %s, dram %s, lends %s, ", name, verb, get(config, "dram.bytes").s, get(config, "lend.bytes").s);
    if (ssd_off)
        printf("ssd off, ");
    else if (*get(config, "ssd.path").s)
        printf("ssd %s in %s, ", get(config, "ssd.bytes").s, get(config, "ssd.path").s);
    else
        printf("no ssd, ");
    if (*get(config, "etcd.endpoints").s)
        printf("fabric %s, cluster %s at %s, ", get(config, "fabric.transport").s, get(config, "etcd.prefix").s,
               get(config, "etcd.endpoints").s);
    else
        printf("alone, ");
    printf("admin at %s\n", *admin ? admin : "none");
}

static int check(const struct kvf_config *config)
{
    char host[KVF_NODE_NAME_MAX] = "";
    struct text name = get(config, "node.name");
    if (!*name.s && !gethostname(host, sizeof host - 1))
        snprintf(name.s, sizeof name.s, "%s", host);
    describe(config, name.s, "would run", get(config, "admin.listen").s, false);
    struct kvf_config_entry entry;
    for (size_t i = 0; kvf_config_entry(i, &entry); i++)
        printf("  %s = %s\n", entry.name, get(config, entry.name).s);
    return EXIT_DONE;
}

static int exit_code(enum kvf_status status)
{
    return status == KVF_ERR_STORE ? EXIT_CLUSTER : status == KVF_ERR_CONFIG ? EXIT_USAGE : EXIT_FAILED;
}

static const char *advice(enum kvf_status status)
{
    switch (status) {
    case KVF_ERR_CONFIG: return "correct the setting; `kvf info -c` lists them all";
    case KVF_ERR_STORE: return "start etcd, correct etcd.endpoints, or set etcd.required=false";
    case KVF_ERR_EXISTS: return "give node.name another value, or stop the node that has it";
    case KVF_ERR_DISK_FULL: return "free space or lower ssd.bytes";
    case KVF_ERR_IO: return "see that the path exists and is writable";
    case KVF_ERR_BUSY: return "stop the process that uses it, or choose another ssd.path";
    case KVF_ERR_NO_MEMORY: return "lower dram.bytes, lend.bytes or block.count_max";
    case KVF_ERR_UNSUPPORTED: return "`kvf info` says what this build and machine can do";
    default: return "set log.level=debug to see more";
    }
}

static int run(struct kvf_config *config)
{
    /* Blocked before the node starts its threads, so that only sigwait sees them. */
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);

    struct kvf_node *node = NULL;
    enum kvf_status status = kvf_node_open(config, &node);
    if (status != KVF_OK) {
        const char *why = kvf_config_error(config), *name = kvf_status_name(status);
        if (strstr(why, name)) /* the line tells the status, and what to try */
            fprintf(stderr, "kvfd: %s\n", why);
        else
            fprintf(stderr, "kvfd: opening the node: %s (%s); %s\n", *why ? why : kvf_status_text(status), name, advice(status));
        return exit_code(status);
    }
    describe(config, kvf_node_name(node), "ready", node->core->admin_address, node->core->ssd_off[0]);
    fflush(stdout);

    for (int signal_number = 0; signal_number != SIGTERM && signal_number != SIGINT;) {
        if (sigwait(&signals, &signal_number) || signal_number != SIGHUP)
            continue;
        kvf_core_lock(node->core);
        kvf_cluster_secret_read(node->core);
        kvf_core_unlock(node->core);
    }
    kvf_node_close(node);
    return EXIT_DONE;
}

int main(int argc, char **argv)
{
    struct options options = {0};
    int code = parse(argc, argv, &options);
    if (code >= 0)
        return code;
    struct kvf_config *config = NULL;
    if (kvf_config_create(&config) != KVF_OK) {
        fprintf(stderr, "kvfd: starting: %s (ERR_NO_MEMORY); free some memory\n", kvf_status_text(KVF_ERR_NO_MEMORY));
        return EXIT_FAILED;
    }
    code = !configure(config, &options) ? EXIT_USAGE : options.check ? check(config) : run(config);
    kvf_config_destroy(config);
    return code;
}
