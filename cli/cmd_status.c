/* kvf status: nodes, tiers, bytes, sessions. */
#include "base/env.h"
#include "cli/table.h"
#include "cli/view.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* One node at most holds up the whole for so long. */
#define NODE_TIMEOUT_NS (2 * KVF_SEC)

struct node_status {
    const struct kvf_member *member;
    json_t *status; /* NULL: unreachable */
    char error[256];
};

static const char *text_in(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "?";
}

static uint64_t number_in(const json_t *object, const char *key)
{
    json_int_t number = json_integer_value(json_object_get(object, key));
    return number > 0 ? (uint64_t)number : 0;
}

static const json_t *tier_in(const json_t *status, const char *name)
{
    size_t i;
    json_t *tier;
    json_array_foreach(json_object_get(status, "tiers"), i, tier)
        if (!strcmp(text_in(tier, "name"), name))
            return tier;
    return NULL;
}

static void ask(struct kvf_view *view, const struct kvf_member *member, struct node_status *out)
{
    long code = 0;
    json_t *answer = NULL;
    *out = (struct node_status){.member = member};
    enum kvf_status status = kvf_view_request(view, member, "/v1/status", NULL, kvf_view_time_left(view, NODE_TIMEOUT_NS), &answer,
                                              &code, out->error, sizeof out->error);
    if (status == KVF_OK && code != 200)
        snprintf(out->error, sizeof out->error, "HTTP %ld from %s", code, member->admin);
    else if (status == KVF_OK && strcmp(text_in(answer, "node"), member->name))
        snprintf(out->error, sizeof out->error, "another node (%.64s) answers at %s", text_in(answer, "node"), member->admin);
    else if (status == KVF_OK)
        out->status = json_incref(answer);
    json_decref(answer);
}

static json_t *node_json(const struct node_status *node)
{
    char incarnation[24];
    snprintf(incarnation, sizeof incarnation, "%016" PRIx64, node->member->incarnation);
    json_t *object = json_object();
    json_object_set_new(object, "name", json_string(node->member->name));
    json_object_set_new(object, "incarnation", json_string(incarnation));
    json_object_set_new(object, "admin", json_string(node->member->admin));
    json_object_set_new(object, "host", json_string(node->member->host));
    json_object_set_new(object, "reachable", json_boolean(node->status != NULL));
    if (node->status)
        json_object_set(object, "status", node->status);
    else
        json_object_set_new(object, "error", json_string(node->error));
    return object;
}

static void print_json(const struct kvf_cli *cli, const struct kvf_view *view, const struct node_status *nodes, unsigned n)
{
    json_t *root = json_object(), *list = json_array();
    json_object_set_new(root, "schema", json_string("kvf-status/1"));
    json_object_set_new(root, "prefix", json_string(kvf_config_settings(cli->config)->etcd_prefix));
    json_object_set_new(root, "leader", json_string(kvf_view_leader(view)));
    json_object_set_new(root, "sessions", json_integer(kvf_view_placements(view)));
    for (unsigned i = 0; i < n; i++)
        json_array_append_new(list, node_json(&nodes[i]));
    json_object_set_new(root, "nodes", list);
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(root);
}

/* "22.0 MiB / 24.0 MiB", or "-" for a tier that is absent. */
static void cell_tier(struct kvf_table *table, const json_t *status, const char *name)
{
    const json_t *tier = tier_in(status, name);
    const char *state = text_in(tier, "state");
    uint64_t capacity = number_in(tier, "capacity_bytes"), used = number_in(tier, "used_bytes");
    if (!tier || !strcmp(state, "absent"))
        kvf_table_cell(table, "-");
    else if (!strcmp(state, "off"))
        kvf_table_cell(table, "off");
    else
        kvf_table_cell(table, "%s / %s%s", kvf_table_bytes(used).s, kvf_table_bytes(capacity).s,
                       strcmp(state, "ok") ? " degraded" : "");
}

/* A node that still makes its memory ready, or could not have all of it. */
static void print_memory(const struct node_status *node)
{
    const json_t *memory = json_object_get(node->status, "memory");
    uint64_t ready = number_in(memory, "ready_bytes"), total = number_in(memory, "total_bytes");
    const char *error = json_string_value(json_object_get(memory, "error"));
    if (error)
        printf("\n%s: memory: %s\n", node->member->name, error);
    else if (memory && !json_is_true(json_object_get(memory, "done")))
        printf("\n%s: memory: %s of %s ready (%.0f %%), the rest follows\n", node->member->name, kvf_table_bytes(ready).s,
               kvf_table_bytes(total).s, total ? 100.0 * (double)ready / (double)total : 100.0);
}

/* What is wrong with a node's own tiers: a line each. */
static void print_troubles(const struct node_status *node)
{
    print_memory(node);
    size_t i;
    json_t *tier;
    json_array_foreach(json_object_get(node->status, "tiers"), i, tier) {
        const char *state = text_in(tier, "state");
        if (!strcmp(state, "degraded") || !strcmp(state, "off"))
            printf("\n%s: %s is %s: %s\n", node->member->name, text_in(tier, "name"), state, text_in(tier, "reason"));
    }
}

static void print_nodes(const struct kvf_cli *cli, const struct kvf_view *view, const struct node_status *nodes, unsigned n)
{
    const struct kvf_settings *settings = kvf_config_settings(cli->config);
    unsigned sessions = kvf_view_placements(view);
    printf("cluster %s at %s: %u node%s, %u session%s, leader %s\n\n", settings->etcd_prefix, settings->etcd_endpoints, n,
           n == 1 ? "" : "s", sessions, sessions == 1 ? "" : "s", *kvf_view_leader(view) ? kvf_view_leader(view) : "none");
    struct kvf_table *table =
        kvf_table_create("NODE|STATE|>UPTIME|>DRAM|>SSD|>AT LENDERS|>LENT OUT|>SESSIONS|>PEERS UP|ADMIN");
    for (unsigned i = 0; i < n; i++) {
        const json_t *status = nodes[i].status, *lending = json_object_get(status, "lending");
        kvf_table_cell(table, "%s", nodes[i].member->name);
        if (!status) {
            kvf_table_cell(table, "unreachable");
            for (int skip = 0; skip < 7; skip++)
                kvf_table_cell(table, "-");
            kvf_table_cell(table, "%s", *nodes[i].member->admin ? nodes[i].member->admin : "none");
            continue;
        }
        const json_t *etcd = json_object_get(status, "etcd");
        kvf_table_cell(table, "%s", json_is_true(json_object_get(etcd, "reachable")) ? "up" : "up, no etcd");
        kvf_table_cell(table, "%s", kvf_table_seconds(number_in(status, "uptime_s")).s);
        cell_tier(table, status, "dram");
        cell_tier(table, status, "ssd");
        kvf_table_cell(table, "%s", kvf_table_bytes(number_in(tier_in(status, "remote"), "bytes")).s);
        if (number_in(lending, "capacity_bytes"))
            kvf_table_cell(table, "%s / %s", kvf_table_bytes(number_in(lending, "bytes")).s,
                           kvf_table_bytes(number_in(lending, "capacity_bytes")).s);
        else
            kvf_table_cell(table, "-");
        kvf_table_cell(table, "%" PRIu64, number_in(status, "sessions"));
        size_t p, up = 0;
        json_t *peer, *peers = json_object_get(status, "peers");
        json_array_foreach(peers, p, peer)
            up += json_is_true(json_object_get(peer, "up"));
        kvf_table_cell(table, "%zu of %zu", up, json_array_size(peers));
        kvf_table_cell(table, "%s", nodes[i].member->admin);
    }
    kvf_table_print(table, stdout, "");
    kvf_table_destroy(table);
    for (unsigned i = 0; i < n; i++)
        if (!nodes[i].status)
            printf("\n%s is unreachable: %s\n", nodes[i].member->name, nodes[i].error);
        else
            print_troubles(&nodes[i]);
}

static void print_tiers(const json_t *status)
{
    struct kvf_table *table = kvf_table_create("TIER|STATE|>BLOCKS|>BYTES|>USED|>CAPACITY|>CHUNKS READ|>BYTES READ|WHY");
    size_t i;
    json_t *tier;
    json_array_foreach(json_object_get(status, "tiers"), i, tier) {
        const char *why = json_string_value(json_object_get(tier, "reason"));
        kvf_table_cell(table, "%s", text_in(tier, "name"));
        kvf_table_cell(table, "%s", text_in(tier, "state"));
        kvf_table_cell(table, "%" PRIu64, number_in(tier, "blocks"));
        kvf_table_cell(table, "%s", kvf_table_bytes(number_in(tier, "bytes")).s);
        kvf_table_cell(table, "%s", kvf_table_bytes(number_in(tier, "used_bytes")).s);
        kvf_table_cell(table, "%s", kvf_table_bytes(number_in(tier, "capacity_bytes")).s);
        kvf_table_cell(table, "%" PRIu64, number_in(tier, "chunks_read"));
        kvf_table_cell(table, "%s", kvf_table_bytes(number_in(tier, "bytes_read")).s);
        kvf_table_cell(table, "%s", why ? why : "");
    }
    kvf_table_print(table, stdout, "  ");
    kvf_table_destroy(table);
}

static void print_lending(const json_t *status)
{
    const json_t *lending = json_object_get(status, "lending");
    if (!number_in(lending, "capacity_bytes"))
        return;
    printf("\n  lends %s", kvf_table_bytes(number_in(lending, "others_bytes")).s);
    printf(" of at most %s", kvf_table_bytes(number_in(lending, "limit_bytes")).s);
    printf(" (lend.bytes %s)", kvf_table_bytes(number_in(lending, "capacity_bytes")).s);
    if (number_in(lending, "wanted_bytes"))
        printf("; %s are to come back", kvf_table_bytes(number_in(lending, "wanted_bytes")).s);
    if (number_in(lending, "claimed_bytes"))
        printf("; kept back, own DRAM being short: %s", kvf_table_bytes(number_in(lending, "claimed_bytes")).s);
    if (number_in(lending, "own_bytes"))
        printf("; own blocks there: %s", kvf_table_bytes(number_in(lending, "own_bytes")).s);
    putchar('\n');
}

static void print_peers(const json_t *status)
{
    json_t *peer, *peers = json_object_get(status, "peers");
    size_t i;
    if (!json_array_size(peers))
        return;
    struct kvf_table *table = kvf_table_create("PEER|STATE|WAY|>P50|>P95|>OURS THERE|>THEIRS HERE|>LENDS");
    json_array_foreach(peers, i, peer) {
        kvf_table_cell(table, "%s", text_in(peer, "name"));
        bool up = json_is_true(json_object_get(peer, "up")), slow = json_is_true(json_object_get(peer, "slow"));
        kvf_table_cell(table, "%s", !up ? "down" : slow ? "slow" : "up");
        kvf_table_cell(table, "%s", text_in(peer, "way"));
        kvf_table_cell(table, "%s", kvf_table_ns(number_in(peer, "request_p50_ns")).s);
        kvf_table_cell(table, "%s", kvf_table_ns(number_in(peer, "request_p95_ns")).s);
        kvf_table_cell(table, "%s", kvf_table_bytes(number_in(peer, "borrowed_bytes")).s);
        kvf_table_cell(table, "%s", kvf_table_bytes(number_in(peer, "lent_bytes")).s);
        kvf_table_cell(table, "%s", kvf_table_bytes(number_in(peer, "lend_bytes")).s);
    }
    putchar('\n');
    kvf_table_print(table, stdout, "  ");
    kvf_table_destroy(table);
}

static void cell_rate(struct kvf_table *table, uint64_t rate)
{
    if (rate)
        kvf_table_cell(table, "%s/s", kvf_table_bytes(rate).s);
    else
        kvf_table_cell(table, "-");
}

/* Of peers from which chunks are wanted: what it takes to pull them, and to have them attended there. */
static void print_attend(const json_t *status)
{
    struct kvf_table *table =
        kvf_table_create("ATTEND AT|BITS|>ROUND TRIP|>MESSAGES|>PULLS|>ATTENDS|>ROWS|>PAYS FROM|>PULLED|>ASKED");
    bool any = false;
    json_t *peer;
    size_t i;
    json_array_foreach(json_object_get(status, "peers"), i, peer) {
        const json_t *a = json_object_get(peer, "attend");
        if (!json_is_object(a))
            continue;
        any = true;
        kvf_table_cell(table, "%s", text_in(peer, "name"));
        kvf_table_cell(table, "%s", json_is_true(json_object_get(a, "same_bits")) ? "ours" : "others");
        kvf_table_cell(table, "%s", kvf_table_ns(number_in(a, "rtt_ns")).s);
        cell_rate(table, number_in(a, "message_bytes_per_s"));
        cell_rate(table, number_in(a, "pull_bytes_per_s"));
        cell_rate(table, number_in(a, "attend_bytes_per_s"));
        kvf_table_cell(table, "%" PRIu64, number_in(a, "rows"));
        if (number_in(a, "break_even_chunks"))
            kvf_table_cell(table, "%" PRIu64 " chunks", number_in(a, "break_even_chunks"));
        else
            kvf_table_cell(table, "never");
        kvf_table_cell(table, "%" PRIu64, number_in(a, "pulled"));
        kvf_table_cell(table, "%" PRIu64, number_in(a, "asked"));
    }
    if (any) {
        putchar('\n');
        kvf_table_print(table, stdout, "  ");
    }
    kvf_table_destroy(table);
}

static void print_scrub(const json_t *status)
{
    const json_t *scrub = json_object_get(status, "scrub"), *since = json_object_get(scrub, "since_s");
    if (!number_in(scrub, "rate"))
        return;
    printf("\n  scrub: %" PRIu64 " of %" PRIu64 " blocks on SSD checked in this pass, %s per second; ",
           number_in(scrub, "pass_blocks"), number_in(scrub, "blocks"), kvf_table_bytes(number_in(scrub, "rate")).s);
    if (json_is_integer(since))
        printf("the last of %" PRIu64 " passes ended %s ago\n", number_in(scrub, "passes"),
               kvf_table_seconds(number_in(scrub, "since_s")).s);
    else
        printf("no pass has ended yet\n");
}

static void add_latency(struct kvf_table *table, const char *name, const json_t *latency)
{
    if (!number_in(latency, "n"))
        return;
    kvf_table_cell(table, "%s", name);
    kvf_table_cell(table, "%" PRIu64, number_in(latency, "n"));
    kvf_table_cell(table, "%s", kvf_table_ns(number_in(latency, "p50_ns")).s);
    kvf_table_cell(table, "%s", kvf_table_ns(number_in(latency, "p99_ns")).s);
    kvf_table_cell(table, "%s", kvf_table_ns(number_in(latency, "p999_ns")).s);
    kvf_table_cell(table, "%s", kvf_table_ns(number_in(latency, "max_ns")).s);
}

/* A metric is one latency, or an object of some by their label. */
static void print_latencies(const json_t *status)
{
    struct kvf_table *table = kvf_table_create("LATENCY|>N|>P50|>P99|>P99.9|>MAX");
    const char *metric, *label;
    json_t *latency, *one;
    json_object_foreach(json_object_get(status, "latencies"), metric, latency) {
        if (json_object_get(latency, "n")) {
            add_latency(table, metric, latency);
            continue;
        }
        json_object_foreach(latency, label, one) {
            char name[96];
            snprintf(name, sizeof name, "%.40s %.40s", metric, label);
            add_latency(table, name, one);
        }
    }
    putchar('\n');
    kvf_table_print(table, stdout, "  ");
    kvf_table_destroy(table);
}

static void print_counters(const json_t *status)
{
    struct kvf_table *table = kvf_table_create("COUNTER|>VALUE");
    const char *name;
    json_t *value;
    json_object_foreach(json_object_get(status, "counters"), name, value) {
        if (!json_integer_value(value))
            continue;
        kvf_table_cell(table, "%s", name);
        kvf_table_cell(table, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    }
    putchar('\n');
    kvf_table_print(table, stdout, "  ");
    kvf_table_destroy(table);
}

static void print_node(const struct node_status *node)
{
    const json_t *status = node->status, *etcd = json_object_get(status, "etcd");
    printf("%s: version %s, up %s, pid %" PRIu64 ", transport %s, etcd %s, %" PRIu64 " sessions, admin at %s\n\n",
           node->member->name, text_in(status, "version"), kvf_table_seconds(number_in(status, "uptime_s")).s,
           number_in(status, "pid"), text_in(status, "transport"),
           json_is_true(json_object_get(etcd, "reachable")) ? "reachable" : "unreachable",
           number_in(status, "sessions"), node->member->admin);
    print_tiers(status);
    const json_t *memory = json_object_get(status, "memory");
    printf("\n  memory: %s of %s ready after %.1f s, %s pages (%s in huge ones), NUMA: %s\n",
           kvf_table_bytes(number_in(memory, "ready_bytes")).s, kvf_table_bytes(number_in(memory, "total_bytes")).s,
           (double)number_in(memory, "elapsed_ms") / 1000, text_in(memory, "pages"),
           kvf_table_bytes(number_in(memory, "huge_bytes")).s, text_in(memory, "numa"));
    print_memory(node);
    print_lending(status);
    print_peers(status);
    print_attend(status);
    print_scrub(status);
    print_latencies(status);
    print_counters(status);
}

int kvf_cmd_status(struct kvf_cli *cli)
{
    struct kvf_view *view = NULL;
    int code = kvf_view_open(cli, &view);
    if (code != KVF_EXIT_DONE)
        return code;
    const struct kvf_member *one = cli->n_args ? kvf_view_member(view, cli->args[0]) : NULL;
    unsigned n = cli->n_args ? 1 : kvf_view_members(view);
    struct node_status *nodes = calloc(n + 1, sizeof *nodes);
    if (!nodes) {
        code = kvf_cli_fail(cli, KVF_EXIT_FAILED, "out of memory (ERR_NO_MEMORY)");
        goto close_view;
    }
    if (cli->n_args && !one) {
        code = kvf_cli_fail(cli, KVF_EXIT_FAILED, "no node named %s is in the cluster (ERR_NOT_FOUND); kvf status lists them",
                            cli->args[0]);
        goto free_nodes;
    }
    for (unsigned i = 0; i < n; i++)
        ask(view, one ? one : kvf_view_member_at(view, i), &nodes[i]);
    if (cli->json)
        print_json(cli, view, nodes, n);
    else if (!one)
        print_nodes(cli, view, nodes, n);
    else if (nodes[0].status)
        print_node(&nodes[0]);
    if (one && !nodes[0].status)
        code = kvf_cli_fail(cli, KVF_EXIT_FAILED, "asking %s: %s", one->name, nodes[0].error);
    for (unsigned i = 0; i < n; i++)
        json_decref(nodes[i].status);
free_nodes:
    free(nodes);
close_view:
    kvf_view_close(view);
    return code;
}
