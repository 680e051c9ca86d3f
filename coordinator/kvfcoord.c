/* kvfcoord: watches the cluster, stands for leader, and prints what it sees. */
#include "base/config.h"
#include "base/env.h"
#include "coordinator/coordinator.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define LEAVE_NS (2 * KVF_SEC)
#define SCHEMA "kvfcoord/1"

enum exit_code { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_UNREACHABLE = 3 };

struct daemon {
    struct kvf_config *config;
    const struct kvf_settings *settings;
    struct kvf_log log;
    struct kvf_counters counters;
    struct kvf_store *store;
    struct kvf_coord *coord;
    int signals;
    char name[64];
    bool json;
    bool check;
    bool joined;
    int exit_code; /* -1: go on */
};

static const char help[] =
    "usage: kvfcoord [--config FILE] [--set NAME=VALUE]... [--json]\n"
    "\n"
    "Watches a KVFabric cluster through etcd, stands for its leader, and prints one line per event: members that come and go,\n"
    "sessions that are placed, moved and dropped, who leads, and whether etcd answers. Runs until SIGTERM or SIGINT.\n"
    "\n"
    "  --config FILE       settings, one `name = value` per line (default: none)\n"
    "  --set NAME=VALUE    one setting; wins over the file and the environment; may be given often\n"
    "  --json              one JSON object per line instead of text (default: text)\n"
    "  --check             reads the configuration, prints what would run, and ends\n"
    "  --version           version, commit and features of this build\n"
    "  --help              this text\n"
    "\n"
    "Settings that matter here (environment: KVF_ and the name in capitals, '.' as '_'):\n"
    "  etcd.endpoints      KVF_ETCD_ENDPOINTS   etcd's client URLs, with commas (default: none; must be set)\n"
    "  etcd.prefix         KVF_ETCD_PREFIX      the cluster's prefix (default: /kvfabric/default)\n"
    "  etcd.timeout        KVF_ETCD_TIMEOUT     deadline of one request (default: 5s)\n"
    "  etcd.required       KVF_ETCD_REQUIRED    false: without etcd at start, go on trying (default: true)\n"
    "  etcd.lease          KVF_ETCD_LEASE       how long a leader that is gone blocks the next one (default: 5s)\n"
    "  etcd.ca, etcd.cert, etcd.key             KVF_ETCD_CA ...: files for https endpoints (default: none)\n"
    "  node.name           KVF_NODE_NAME        its name as leader (default: coord-HOST-PID)\n"
    "  log.level           KVF_LOG_LEVEL        of the log on standard error (default: warn)\n"
    "\n"
    "exit codes: 0 ended by a signal, having left cleanly; 1 failed while running; 2 wrong usage or configuration;\n"
    "            3 etcd cannot be reached\n"
    "\n"
    "examples:\n"
    "  kvfcoord --set etcd.endpoints=http://127.0.0.1:2379\n"
    "  kvfcoord --config /etc/kvf.conf --json\n"
    "  kvfcoord --config /etc/kvf.conf --check\n";

/* ---------------------------------------------------------------------------------------------------- events */

/* Prints one event: as text the line, as JSON the object (taken) with time and name of the event. */
static void print_event(struct daemon *d, const char *event, json_t *object, const char *text)
{
    struct timespec t;
    struct tm day;
    char at[64];
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &day);
    size_t used = strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%S", &day);
    snprintf(at + used, sizeof at - used, ".%03ldZ", t.tv_nsec / 1000000);
    if (!d->json) {
        printf("%s %s\n", at, text);
    } else if (object) {
        json_object_set_new(object, "time", json_string(at));
        json_object_set_new(object, "event", json_string(event));
        char *line = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);
        if (line)
            puts(line);
        free(line);
    }
    json_decref(object);
    fflush(stdout);
}

static void on_member_up(void *arg, const struct kvf_member *m)
{
    char text[512];
    snprintf(text, sizeof text, "member up %s incarnation %016" PRIx64 " host %s admin %s dram %" PRIu64 " lends %" PRIu64,
             m->name, m->incarnation, m->host[0] ? m->host : "-", m->admin[0] ? m->admin : "-", m->dram_bytes, m->lend_bytes);
    char incarnation[17];
    snprintf(incarnation, sizeof incarnation, "%016" PRIx64, m->incarnation);
    print_event(arg, "member_up",
                json_pack("{ss ss ss ss sI sI}", "name", m->name, "incarnation", incarnation, "host", m->host, "admin", m->admin,
                          "dram_bytes", (json_int_t)m->dram_bytes, "lend_bytes", (json_int_t)m->lend_bytes),
                text);
}

static void on_member_down(void *arg, const char *name, uint64_t incarnation)
{
    char text[256], number[17];
    snprintf(text, sizeof text, "member down %s incarnation %016" PRIx64, name, incarnation);
    snprintf(number, sizeof number, "%016" PRIx64, incarnation);
    print_event(arg, "member_down", json_pack("{ss ss}", "name", name, "incarnation", number), text);
}

static void on_placement(void *arg, const struct kvf_placement *p)
{
    char text[512];
    const char *state = p->state == KVF_SESSION_PARKED ? "parked" : "active";
    snprintf(text, sizeof text, "session %" PRIu64 " home %s epoch %" PRIu64 " %s tokens %" PRIu64 " model %s", p->id, p->home,
             p->epoch, state, p->tokens, p->model);
    print_event(arg, "session",
                json_pack("{sI ss sI ss sI ss}", "id", (json_int_t)p->id, "home", p->home, "epoch", (json_int_t)p->epoch,
                          "state", state, "tokens", (json_int_t)p->tokens, "model", p->model),
                text);
}

static void on_placement_gone(void *arg, uint64_t id)
{
    char text[64];
    snprintf(text, sizeof text, "session %" PRIu64 " gone", id);
    print_event(arg, "session_gone", json_pack("{sI}", "id", (json_int_t)id), text);
}

static void on_leader(void *arg, const char *name)
{
    struct daemon *d = arg;
    bool me = !strcmp(name, d->name);
    char text[128];
    snprintf(text, sizeof text, "leader %s%s", *name ? name : "none", me ? " (this one)" : "");
    print_event(d, "leader", json_pack("{ss sb}", "name", name, "me", me), text);
}

static void on_store_state(void *arg, bool reachable)
{
    struct daemon *d = arg;
    if (d->joined || reachable || !d->settings->etcd_required)
        print_event(d, "etcd", json_pack("{sb}", "reachable", reachable), reachable ? "etcd answers" : "etcd does not answer");
}

static void on_joined(void *arg, enum kvf_status status)
{
    struct daemon *d = arg;
    if (status == KVF_OK) {
        d->joined = true;
        print_event(d, "watching", json_pack("{ss}", "prefix", d->settings->etcd_prefix), "watching");
        return;
    }
    char error[512];
    kvf_store_etcd_error(d->store, error, sizeof error);
    fprintf(stderr, "kvfcoord: etcd cannot be reached (%s): %s; is it running, and is etcd.endpoints right?\n",
            kvf_status_name(status), error);
    d->exit_code = EXIT_UNREACHABLE;
}

/* ---------------------------------------------------------------------------------------------------- start and end */

static enum kvf_log_level level_of(const char *word)
{
    static const char *const words[] = {"error", "warn", "info", "debug"};
    for (unsigned i = 0; i < 4; i++)
        if (!strcmp(word, words[i]))
            return i;
    return KVF_LOG_WARN;
}

static void choose_name(struct daemon *d)
{
    char host[40] = "";
    if (d->settings->node_name[0]) {
        snprintf(d->name, sizeof d->name, "%.63s", d->settings->node_name);
        return;
    }
    gethostname(host, sizeof host - 1);
    for (char *c = host; *c; c++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", *c))
            *c = '-';
    snprintf(d->name, sizeof d->name, "coord-%s-%ld", host[0] ? host : "host", (long)getpid());
}

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    signal(SIGPIPE, SIG_IGN);
    return sigprocmask(SIG_BLOCK, &set, NULL) ? -1 : signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static int refuse(const char *what, enum kvf_status status, int code)
{
    fprintf(stderr, "kvfcoord: %s: %s (%s)\n", what, kvf_status_text(status), kvf_status_name(status));
    return code;
}

/* Store, coordinator, candidacy. Returns -1 or an exit code. */
static int start(struct daemon *d)
{
    const struct kvf_settings *s = d->settings;
    struct kvf_store_config store = {
        .endpoints = s->etcd_endpoints,
        .ca = s->etcd_ca,
        .cert = s->etcd_cert,
        .key = s->etcd_key,
        .timeout_ns = s->etcd_timeout_ns,
        .log = &d->log,
        .counters = &d->counters,
    };
    enum kvf_status status = kvf_store_etcd_create(&store, &d->store);
    if (status != KVF_OK)
        return refuse("etcd.endpoints", status, status == KVF_ERR_CONFIG ? EXIT_USAGE : EXIT_FAILED);
    struct kvf_coord_config coord = {
        .env = kvf_env_real(),
        .store = d->store,
        .log = &d->log,
        .prefix = s->etcd_prefix,
        .lease_ttl_ns = s->lease_ttl_ns,
        .handler = {.arg = d,
                    .member_up = on_member_up,
                    .member_down = on_member_down,
                    .placement = on_placement,
                    .placement_gone = on_placement_gone,
                    .leader = on_leader,
                    .joined = on_joined,
                    .store_state = on_store_state},
    };
    status = kvf_coord_create(&coord, &d->coord);
    if (status != KVF_OK)
        return refuse("etcd.prefix", status, EXIT_USAGE);
    status = kvf_coord_campaign(d->coord, d->name);
    if (status != KVF_OK)
        return refuse("node.name", status, EXIT_USAGE);
    status = kvf_coord_join(d->coord, NULL, !s->etcd_required);
    return status == KVF_OK ? -1 : refuse("join", status, EXIT_FAILED);
}

/* Sleeps until the store, a signal or a timer wants something. True: a signal asked us to end. */
static bool wait_for_work(struct daemon *d, uint64_t until_ns)
{
    struct pollfd fds[2] = {{.fd = d->store->ops->event_fd(d->store), .events = POLLIN}, {.fd = d->signals, .events = POLLIN}};
    uint64_t now = kvf_now(kvf_env_real()), next = kvf_coord_next_timer(d->coord);
    if (until_ns < next)
        next = until_ns;
    uint64_t ms = next <= now ? 0 : (next - now) / KVF_MS + 1;
    struct signalfd_siginfo info;
    poll(fds, 2, ms < 60000 ? (int)ms : 60000);
    return read(d->signals, &info, sizeof info) == (ssize_t)sizeof info;
}

static void run(struct daemon *d)
{
    while (d->exit_code < 0) {
        kvf_coord_poll(d->coord);
        if (d->exit_code < 0 && wait_for_work(d, UINT64_MAX)) {
            print_event(d, "stopping", json_object(), "stopping");
            d->exit_code = EXIT_DONE;
        }
        if (ferror(stdout))
            d->exit_code = EXIT_FAILED;
    }
}

/* Gives the leadership back, so that the next one need not wait for the lease. */
static void leave(struct daemon *d)
{
    uint64_t until = kvf_deadline(kvf_now(kvf_env_real()), LEAVE_NS);
    kvf_coord_leave(d->coord);
    while (!kvf_coord_left(d->coord) && kvf_now(kvf_env_real()) < until) {
        kvf_coord_poll(d->coord);
        if (!kvf_coord_left(d->coord))
            wait_for_work(d, until);
    }
}

static int set_one(struct daemon *d, char *text)
{
    char *value = strchr(text, '=');
    if (!value) {
        fprintf(stderr, "kvfcoord: --set %s: want NAME=VALUE\n", text);
        return EXIT_USAGE;
    }
    *value++ = 0;
    if (kvf_config_set(d->config, text, value) == KVF_OK)
        return -1;
    fprintf(stderr, "kvfcoord: --set: %s\n", kvf_config_error(d->config));
    return EXIT_USAGE;
}

static const struct option options[] = {
    {"config", required_argument, NULL, 'c'}, {"set", required_argument, NULL, 's'}, {"json", no_argument, NULL, 'j'},
    {"check", no_argument, NULL, 'k'},        {"version", no_argument, NULL, 'v'},   {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* One walk over the options. The file and the environment come before any --set, wherever they stand: so there are two walks, the
 * first for what is not --set. Returns -1 or an exit code. */
static int read_options(struct daemon *d, int argc, char **argv, bool sets)
{
    int code = -1, option;
    optind = 1;
    opterr = 0;
    while (code < 0 && (option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            if (!sets && kvf_config_load(d->config, optarg) != KVF_OK) {
                fprintf(stderr, "kvfcoord: %s\n", kvf_config_error(d->config));
                code = EXIT_USAGE;
            }
            break;
        case 's':
            code = sets ? set_one(d, optarg) : -1;
            break;
        case 'j':
            d->json = true;
            break;
        case 'k':
            d->check = true;
            break;
        case 'v':
            printf("kvfcoord %s\n", kvf_version());
            return EXIT_DONE;
        case 'h':
            fputs(help, stdout);
            return EXIT_DONE;
        default:
            fprintf(stderr, "kvfcoord: %s: no such option, or its value is missing; --help lists them\n", argv[optind - 1]);
            return EXIT_USAGE;
        }
    }
    if (code < 0 && optind < argc) {
        fprintf(stderr, "kvfcoord: unexpected argument %s; --help lists the options\n", argv[optind]);
        code = EXIT_USAGE;
    }
    return code;
}

static int configure(struct daemon *d, int argc, char **argv)
{
    if (kvf_config_create(&d->config) != KVF_OK)
        return refuse("start", KVF_ERR_NO_MEMORY, EXIT_FAILED);
    int code = read_options(d, argc, argv, false);
    if (code < 0 && kvf_config_load_env(d->config) != KVF_OK) {
        fprintf(stderr, "kvfcoord: %s\n", kvf_config_error(d->config));
        code = EXIT_USAGE;
    }
    if (code < 0)
        code = read_options(d, argc, argv, true);
    if (code >= 0)
        return code;
    d->settings = kvf_config_settings(d->config);
    if (!d->settings->etcd_endpoints[0]) {
        fprintf(stderr, "kvfcoord: etcd.endpoints is not set; try --set etcd.endpoints=http://127.0.0.1:2379\n");
        return EXIT_USAGE;
    }
    choose_name(d);
    kvf_log_init(&d->log, d->name, level_of(d->settings->log_level), stderr);
    if (d->check) {
        printf("kvfcoord %s would watch %s at %s as %s\n", kvf_version(), d->settings->etcd_prefix, d->settings->etcd_endpoints,
               d->name);
        return EXIT_DONE;
    }
    return -1;
}

int main(int argc, char **argv)
{
    static struct daemon d = {.exit_code = -1, .signals = -1};
    d.exit_code = configure(&d, argc, argv);
    if (d.exit_code < 0 && (d.signals = open_signals()) < 0) {
        perror("kvfcoord: signalfd");
        d.exit_code = EXIT_FAILED;
    }
    if (d.exit_code < 0) {
        char text[KVF_CONFIG_TEXT_MAX + 128];
        snprintf(text, sizeof text, "kvfcoord %s starts", d.name);
        print_event(&d, "start", json_pack("{ss ss ss}", "schema", SCHEMA, "name", d.name, "version", kvf_version()), text);
        d.exit_code = start(&d);
        if (d.exit_code < 0) {
            run(&d);
            if (d.exit_code != EXIT_UNREACHABLE)
                leave(&d);
        }
    }
    kvf_coord_destroy(d.coord);
    if (d.store)
        d.store->ops->destroy(d.store);
    if (d.signals >= 0)
        close(d.signals);
    kvf_config_destroy(d.config);
    return d.exit_code;
}
