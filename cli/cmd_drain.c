/* kvf drain: a node takes on nothing more of others; shows how far it is with what it has of them. */
#include "base/env.h"
#include "cli/table.h"
#include "cli/view.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LOOK_NS (200 * KVF_MS)
/* Of the time, for what follows when borrowers take all that they are given. */
#define REST_NS (1500 * KVF_MS)

static uint64_t number_in(const json_t *object, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(object, name));
}

/* KVF_OK: *out is the answer to a request that was carried out. Else the line was printed. */
static enum kvf_status ask(struct kvf_cli *cli, struct kvf_view *view, const struct kvf_member *node, const char *path,
                           const char *body, json_t **out)
{
    char error[256];
    long code = 0;
    json_t *answer = NULL;
    enum kvf_status st = kvf_view_request(view, node, path, body, kvf_view_time_left(view, UINT64_MAX), &answer, &code, error,
                                          sizeof error);
    if (st != KVF_OK) {
        kvf_cli_fail(cli, KVF_EXIT_FAILED, "asking node %s: %s (%s)", node->name, error, kvf_status_name(st));
        return st;
    }
    if (code != 200) {
        const char *message = json_string_value(json_object_get(answer, "message"));
        kvf_cli_fail(cli, KVF_EXIT_FAILED, "draining node %s: %s", node->name, message ? message : "no reason given");
        json_decref(answer);
        return KVF_ERR_STATE;
    }
    *out = answer;
    return KVF_OK;
}

/* One line for people, when it says something new. */
static void show(const char *node, const json_t *drain, char *last, size_t size)
{
    char line[256];
    snprintf(line, sizeof line,
             "node %s: %s lent; %" PRIu64 " blocks of %" PRIu64 " sessions that moved away to fetch; %" PRIu64
             " sessions on their way here; %" PRIu64 " at home here",
             node, kvf_table_bytes(number_in(drain, "lent_bytes")).s, number_in(drain, "departed_blocks"),
             number_in(drain, "departed_sessions"), number_in(drain, "incoming_sessions"), number_in(drain, "home_sessions"));
    if (!strcmp(line, last))
        return;
    snprintf(last, size, "%s", line);
    printf("%s\n", line);
    fflush(stdout);
}

static void print_json(const char *node, const json_t *drain)
{
    json_t *root = json_object();
    json_object_set_new(root, "schema", json_string("kvf-drain/1"));
    json_object_set_new(root, "node", json_string(node));
    json_object_update(root, (json_t *)(uintptr_t)drain);
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(root);
}

/* Looks until it is empty, or the time is over. */
static int follow(struct kvf_cli *cli, struct kvf_view *view, const struct kvf_member *node)
{
    char last[256] = "";
    for (;;) {
        json_t *status = NULL;
        if (ask(cli, view, node, "/v1/status", NULL, &status) != KVF_OK)
            return KVF_EXIT_FAILED;
        const json_t *drain = json_object_get(status, "drain");
        bool empty = json_is_true(json_object_get(drain, "empty")), draining = json_is_true(json_object_get(drain, "draining"));
        bool over = empty || !draining || kvf_view_time_left(view, UINT64_MAX) <= 2 * LOOK_NS;
        if (!cli->json)
            show(node->name, drain, last, sizeof last);
        else if (over)
            print_json(node->name, drain);
        json_decref(status);
        if (empty && !cli->json)
            printf("node %s has nothing of others\n", node->name);
        if (empty)
            return KVF_EXIT_DONE;
        if (!draining)
            return kvf_cli_fail(cli, KVF_EXIT_FAILED, "node %s is drained no more: it restarted, or somebody ended it (ERR_STATE)",
                                node->name);
        if (over)
            return kvf_cli_fail(cli, KVF_EXIT_FAILED,
                                "node %s still has something of others (ERR_DEADLINE); it goes on, kvf drain shows how far it is",
                                node->name);
        struct timespec pause = {.tv_nsec = LOOK_NS};
        nanosleep(&pause, NULL);
    }
}

static int drain(struct kvf_cli *cli, struct kvf_view *view, const struct kvf_member *node)
{
    bool ends = strchr(cli->flags, 'e') != NULL;
    uint64_t left = kvf_view_time_left(view, UINT64_MAX), ms = left > 2 * REST_NS ? (left - REST_NS) / KVF_MS : left / 2 / KVF_MS;
    char body[64];
    json_t *answer = NULL;
    snprintf(body, sizeof body, "{\"on\":%s,\"within_ms\":%" PRIu64 "}", ends ? "false" : "true",
             !ms ? (uint64_t)1 : ms > 600000 ? (uint64_t)600000 : ms);
    if (ask(cli, view, node, "/v1/drain", body, &answer) != KVF_OK)
        return KVF_EXIT_FAILED;
    if (ends && cli->json)
        print_json(node->name, answer);
    else if (ends)
        printf("node %s lends and takes sessions as before\n", node->name);
    json_decref(answer);
    return ends ? KVF_EXIT_DONE : follow(cli, view, node);
}

int kvf_cmd_drain(struct kvf_cli *cli)
{
    struct kvf_view *view = NULL;
    int code = kvf_view_open(cli, &view);
    if (code == KVF_EXIT_DONE) {
        const struct kvf_member *node = kvf_view_member(view, cli->args[0]);
        code = node ? drain(cli, view, node)
                    : kvf_cli_fail(cli, KVF_EXIT_FAILED,
                                   "no node named %s is in the cluster (ERR_NOT_FOUND); kvf status lists them", cli->args[0]);
    }
    kvf_view_close(view);
    return code;
}
