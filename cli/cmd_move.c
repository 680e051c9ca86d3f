/* kvf move: asks a session's home to move it. */
#include "base/env.h"
#include "cli/table.h"
#include "cli/view.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* For the answer to travel when the move itself took all its time. */
#define ANSWER_NS (500 * KVF_MS)

static bool parse_session(const char *text, uint64_t *id)
{
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    const char *digits = hex ? text + 2 : text;
    if (!*digits || digits[strspn(digits, hex ? "0123456789abcdefABCDEF" : "0123456789")])
        return false;
    errno = 0;
    *id = strtoull(digits, NULL, hex ? 16 : 10);
    return !errno && *id && *id <= INT64_MAX;
}

static char *make_body(uint64_t id, const char *node, uint64_t timeout_ns)
{
    char session[24];
    snprintf(session, sizeof session, "%" PRIu64, id);
    uint64_t ms = timeout_ns > ANSWER_NS ? (timeout_ns - ANSWER_NS) / KVF_MS : 1;
    json_t *root = json_object();
    json_object_set_new(root, "session", json_string(session));
    json_object_set_new(root, "node", json_string(node));
    json_object_set_new(root, "timeout_ms", json_integer((json_int_t)(!ms ? 1 : ms > 600000 ? 600000 : ms)));
    char *body = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return body;
}

static void print_report(const struct kvf_cli *cli, uint64_t id, const char *from, const char *to, json_t *answer)
{
    if (cli->json) {
        json_t *root = json_object();
        json_object_set_new(root, "schema", json_string("kvf-move/1"));
        json_object_set_new(root, "session", json_integer((json_int_t)id));
        json_object_set_new(root, "from", json_string(from));
        json_object_set_new(root, "to", json_string(to));
        json_object_update(root, answer);
        json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(root);
        return;
    }
    printf("session %" PRIu64 " moved from %s to %s: stopped for %s, %s before the switch, %s to follow, "
           "epoch %" JSON_INTEGER_FORMAT "\n",
           id, from, to, kvf_table_ns((uint64_t)json_integer_value(json_object_get(answer, "stop_ns"))).s,
           kvf_table_bytes((uint64_t)json_integer_value(json_object_get(answer, "bytes_before_switch"))).s,
           kvf_table_bytes((uint64_t)json_integer_value(json_object_get(answer, "bytes_after_switch"))).s,
           json_integer_value(json_object_get(answer, "epoch")));
}

static int post(struct kvf_cli *cli, struct kvf_view *view, const struct kvf_member *home, uint64_t id, const char *node)
{
    uint64_t left = kvf_view_time_left(view, UINT64_MAX);
    char error[256], *body = make_body(id, node, left);
    long code = 0;
    json_t *answer = NULL;
    if (!body)
        return kvf_cli_fail(cli, KVF_EXIT_FAILED, "out of memory (ERR_NO_MEMORY)");
    enum kvf_status status = kvf_view_request(view, home, "/v1/move", body, left, &answer, &code, error, sizeof error);
    free(body);
    if (status != KVF_OK)
        return kvf_cli_fail(cli, KVF_EXIT_FAILED, "asking home %s of session %" PRIu64 ": %s (%s); kvf sessions tells where it is",
                            home->name, id, error, kvf_status_name(status));
    int result = KVF_EXIT_DONE;
    const char *name = json_string_value(json_object_get(answer, "error"));
    const char *message = json_string_value(json_object_get(answer, "message"));
    if (code == 200)
        print_report(cli, id, home->name, node, answer);
    else
        result = kvf_cli_fail(cli, KVF_EXIT_FAILED, "moving session %" PRIu64 " from %s to %s: %s (%s)", id, home->name, node,
                              message ? message : "no reason given", name ? name : "?");
    json_decref(answer);
    return result;
}

static int move(struct kvf_cli *cli, struct kvf_view *view, uint64_t id, const char *node)
{
    const struct kvf_placement *placement = kvf_view_placement(view, id);
    if (!placement)
        return kvf_cli_fail(cli, KVF_EXIT_FAILED,
                            "no session %" PRIu64 " is in the cluster (ERR_NOT_FOUND); kvf sessions lists them", id);
    if (!kvf_view_member(view, node))
        return kvf_cli_fail(cli, KVF_EXIT_FAILED, "no node named %s is in the cluster (ERR_NOT_FOUND); kvf status lists them",
                            node);
    if (!strcmp(placement->home, node))
        return kvf_cli_fail(cli, KVF_EXIT_FAILED, "session %" PRIu64 " is at %s already (ERR_INVALID)", id, node);
    const struct kvf_member *home = kvf_view_member(view, placement->home);
    if (!home)
        return kvf_cli_fail(cli, KVF_EXIT_FAILED,
                            "home %s of session %" PRIu64 " is not in the cluster now (ERR_PEER_LOST); start it again",
                            placement->home, id);
    return post(cli, view, home, id, node);
}

int kvf_cmd_move(struct kvf_cli *cli)
{
    uint64_t id;
    if (!parse_session(cli->args[0], &id))
        return kvf_cli_fail(cli, KVF_EXIT_USAGE, "a session is 1..2^63-1, decimal or 0x and hex digits, not %s", cli->args[0]);
    struct kvf_view *view = NULL;
    int code = kvf_view_open(cli, &view);
    if (code == KVF_EXIT_DONE)
        code = move(cli, view, id, cli->args[1]);
    kvf_view_close(view);
    return code;
}
