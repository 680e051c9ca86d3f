/* kvf info -p NODE: how the other nodes reach it, asked of each of them. */
#include "base/env.h"
#include "cli/table.h"
#include "cli/view.h"

#include <inttypes.h>
#include <string.h>

/* One node at most holds up the whole for so long. */
#define NODE_TIMEOUT_NS (2 * KVF_SEC)

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

/* What one node says of the peer: {"node", then "error" or the rest}. */
static json_t *ask(struct kvf_view *view, const struct kvf_member *member, const char *peer)
{
    char error[256] = "";
    long code = 0;
    size_t i;
    json_t *answer = NULL, *one, *entry = json_pack("{s:s}", "node", member->name);
    enum kvf_status status = kvf_view_request(view, member, "/v1/peers", NULL, kvf_view_time_left(view, NODE_TIMEOUT_NS), &answer,
                                              &code, error, sizeof error);
    if (status == KVF_OK && (code != 200 || strcmp(text_in(answer, "node"), member->name)))
        snprintf(error, sizeof error, "HTTP %ld from %.128s, or another node answers there", code, member->admin);
    json_array_foreach(json_object_get(answer, "peers"), i, one)
        if (!*error && !strcmp(text_in(one, "name"), peer))
            json_object_set(entry, "peer", one);
    if (*error) {
        json_object_set_new(entry, "error", json_string(error));
    } else {
        json_object_set(entry, "transport", json_object_get(answer, "transport"));
        json_object_set(entry, "ucx_settings", json_object_get(answer, "ucx_settings"));
        json_object_set(entry, "inflight_max_bytes", json_object_get(answer, "inflight_max_bytes"));
        if (!json_object_get(entry, "peer"))
            json_object_set_new(entry, "error", json_string("it does not know that node yet"));
    }
    json_decref(answer);
    return entry;
}

static void print_entry(const json_t *entry, const char *name)
{
    const json_t *peer = json_object_get(entry, "peer"), *bytes = json_object_get(peer, "region_bytes");
    printf("%s to %s\n", text_in(entry, "node"), name);
    if (!peer) {
        printf("  %-12s %s\n", "unknown", text_in(entry, "error"));
        return;
    }
    printf("  %-12s %s%s\n", "way", text_in(peer, "way"), json_is_true(json_object_get(peer, "up")) ? "" : " (it is not up)");
    printf("  %-12s %s\n", "why", text_in(peer, "why"));
    printf("  %-12s %s mapped, %s by one-sided reads, %s asked for; %" PRIu64 " of %" PRIu64 " pieces known\n", "its memory",
           kvf_table_bytes(number_in(bytes, "mapped")).s, kvf_table_bytes(number_in(bytes, "get")).s,
           kvf_table_bytes(number_in(bytes, "ask")).s, number_in(peer, "pieces"), number_in(peer, "pieces_ready"));
    printf("  %-12s at most %s each, %s under way of at most %s\n", "frames", kvf_table_bytes(number_in(peer, "frame_bytes")).s,
           kvf_table_bytes(number_in(peer, "inflight_bytes")).s, kvf_table_bytes(number_in(entry, "inflight_max_bytes")).s);
    if (*text_in(peer, "congestion_control"))
        printf("  %-12s %s\n", "congestion", text_in(peer, "congestion_control"));
    if (number_in(peer, "rtt_ns"))
        printf("  %-12s a round trip of %.1f us, pulls of %s/s\n", "measured", (double)number_in(peer, "rtt_ns") / 1e3,
               kvf_table_bytes(number_in(peer, "pull_bytes_per_s")).s);
    else
        printf("  %-12s not yet\n", "measured");
    printf("  %-12s %s\n", "transport", text_in(entry, "transport"));
    printf("  %-12s %s\n", "settings", text_in(entry, "ucx_settings"));
}

int kvf_cmd_peer(struct kvf_cli *cli)
{
    struct kvf_view *view;
    const struct kvf_member *member;
    const char *name = cli->args[0];
    if (!*kvf_config_settings(cli->config)->etcd_endpoints)
        kvf_config_set(cli->config, "etcd.endpoints", "http://127.0.0.1:2379");
    int code = kvf_view_open(cli, &view);
    if (code != KVF_EXIT_DONE)
        return code;
    if (!kvf_view_member(view, name)) {
        code = kvf_cli_fail(cli, KVF_EXIT_FAILED, "there is no node %s (ERR_NOT_FOUND); `kvf status` lists them", name);
        kvf_view_close(view);
        return code;
    }
    json_t *list = json_array();
    for (unsigned i = 0; (member = kvf_view_member_at(view, i)); i++)
        if (strcmp(member->name, name) != 0)
            json_array_append_new(list, ask(view, member, name));
    if (cli->json) {
        json_t *root = json_pack("{s:s, s:s, s:O}", "schema", "kvf-peer/1", "peer", name, "from", list);
        json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(root);
    } else {
        size_t i;
        json_t *entry;
        json_array_foreach(list, i, entry)
            print_entry(entry, name);
        if (json_array_size(list) == 0)
            printf("no other node is there\n");
    }
    json_decref(list);
    kvf_view_close(view);
    return KVF_EXIT_DONE;
}
