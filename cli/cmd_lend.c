/* kvf lend: asks a node to lend less (or more), and waits until it has its memory back. */
#include "base/env.h"
#include "cli/table.h"
#include "cli/view.h"

#include <stdlib.h>

/* For the answer to travel when the borrowers took all the time. */
#define ANSWER_NS (1500 * KVF_MS)

static bool parse_bytes(const char *text, uint64_t *bytes)
{
    struct kvf_config *config = NULL;
    bool good = kvf_config_create(&config) == KVF_OK && kvf_config_set(config, "lend.bytes", text) == KVF_OK;
    if (good)
        *bytes = kvf_config_settings(config)->lend_bytes;
    kvf_config_destroy(config);
    return good;
}

static void print_report(const struct kvf_cli *cli, const char *node, json_t *answer)
{
    if (cli->json) {
        json_t *root = json_object();
        json_object_set_new(root, "schema", json_string("kvf-lend/1"));
        json_object_set_new(root, "node", json_string(node));
        json_object_update(root, answer);
        json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(root);
        return;
    }
    printf("node %s lends %s of at most %s; %" JSON_INTEGER_FORMAT " blocks were taken back by force\n", node,
           kvf_table_bytes((uint64_t)json_integer_value(json_object_get(answer, "lent_bytes"))).s,
           kvf_table_bytes((uint64_t)json_integer_value(json_object_get(answer, "limit_bytes"))).s,
           json_integer_value(json_object_get(answer, "revoked_blocks")));
}

static int post(struct kvf_cli *cli, struct kvf_view *view, const struct kvf_member *node, uint64_t bytes)
{
    uint64_t left = kvf_view_time_left(view, UINT64_MAX);
    uint64_t ms = left > 2 * ANSWER_NS ? (left - ANSWER_NS) / KVF_MS : left / 2 / KVF_MS;
    json_t *order = json_object(), *answer = NULL;
    json_object_set_new(order, "bytes", json_integer((json_int_t)bytes));
    json_object_set_new(order, "within_ms", json_integer((json_int_t)(!ms ? 1 : ms > 600000 ? 600000 : ms)));
    char error[256], *body = json_dumps(order, JSON_COMPACT);
    long code = 0;
    json_decref(order);
    if (!body)
        return kvf_cli_fail(cli, KVF_EXIT_FAILED, "out of memory (ERR_NO_MEMORY)");
    enum kvf_status status = kvf_view_request(view, node, "/v1/lend", body, left, &answer, &code, error, sizeof error);
    free(body);
    if (status != KVF_OK)
        return kvf_cli_fail(cli, KVF_EXIT_FAILED, "asking node %s: %s (%s)", node->name, error, kvf_status_name(status));
    int result = KVF_EXIT_DONE;
    const char *name = json_string_value(json_object_get(answer, "error"));
    const char *message = json_string_value(json_object_get(answer, "message"));
    if (code == 200)
        print_report(cli, node->name, answer);
    else
        result = kvf_cli_fail(cli, KVF_EXIT_FAILED, "setting what node %s lends: %s (%s)", node->name,
                              message ? message : "no reason given", name ? name : "?");
    json_decref(answer);
    return result;
}

int kvf_cmd_lend(struct kvf_cli *cli)
{
    uint64_t bytes;
    if (!parse_bytes(cli->args[1], &bytes))
        return kvf_cli_fail(cli, KVF_EXIT_USAGE, "BYTES is a size (0, 512M, 8G), not %s", cli->args[1]);
    struct kvf_view *view = NULL;
    int code = kvf_view_open(cli, &view);
    if (code == KVF_EXIT_DONE) {
        const struct kvf_member *node = kvf_view_member(view, cli->args[0]);
        code = node ? post(cli, view, node, bytes)
                    : kvf_cli_fail(cli, KVF_EXIT_FAILED,
                                   "no node named %s is in the cluster (ERR_NOT_FOUND); kvf status lists them", cli->args[0]);
    }
    kvf_view_close(view);
    return code;
}
