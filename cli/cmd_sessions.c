/* kvf sessions: placement from etcd, the rest from the homes. */
#include "base/env.h"
#include "cli/table.h"
#include "cli/view.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NODE_TIMEOUT_NS (2 * KVF_SEC)

/* One home's answer to /v1/sessions; NULL where it does not answer. */
static json_t *ask(struct kvf_view *view, const struct kvf_member *member)
{
    long code = 0;
    char error[256];
    json_t *answer = NULL;
    uint64_t left = kvf_view_time_left(view, NODE_TIMEOUT_NS);
    enum kvf_status status = kvf_view_request(view, member, "/v1/sessions", NULL, left, &answer, &code, error, sizeof error);
    if (status == KVF_OK && code == 200)
        return answer;
    if (status == KVF_OK)
        json_decref(answer);
    return NULL;
}

static bool is_home(const struct kvf_view *view, const struct kvf_member *member)
{
    for (unsigned i = 0; i < kvf_view_placements(view); i++)
        if (!strcmp(kvf_view_placement_at(view, i)->home, member->name))
            return true;
    return false;
}

/* What the home says about one session; NULL when it does not answer or does not know it. */
static json_t *find(const struct kvf_view *view, json_t *const *answers, const struct kvf_placement *placement)
{
    for (unsigned m = 0; m < kvf_view_members(view); m++) {
        if (strcmp(kvf_view_member_at(view, m)->name, placement->home))
            continue;
        size_t i;
        json_t *session;
        json_array_foreach(json_object_get(answers[m], "sessions"), i, session)
            if ((uint64_t)json_integer_value(json_object_get(session, "id")) == placement->id)
                return session;
    }
    return NULL;
}

static void print_json(const struct kvf_view *view, json_t *const *answers)
{
    json_t *root = json_object(), *list = json_array();
    json_object_set_new(root, "schema", json_string("kvf-sessions/1"));
    for (unsigned i = 0; i < kvf_view_placements(view); i++) {
        const struct kvf_placement *placement = kvf_view_placement_at(view, i);
        json_t *session = json_object(), *home = find(view, answers, placement);
        json_object_set_new(session, "id", json_integer((json_int_t)placement->id));
        json_object_set_new(session, "home", json_string(placement->home));
        json_object_set_new(session, "model", json_string(placement->model));
        json_object_set_new(session, "epoch", json_integer((json_int_t)placement->epoch));
        json_object_set_new(session, "parked", json_boolean(placement->state == KVF_SESSION_PARKED));
        json_object_set_new(session, "tokens", json_integer((json_int_t)placement->tokens));
        json_object_set_new(session, "home_is_member", json_boolean(kvf_view_member(view, placement->home)));
        json_object_set(session, "home_says", home ? home : json_null());
        json_array_append_new(list, session);
    }
    json_object_set_new(root, "sessions", list);
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(root);
}

static uint64_t number_in(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static void print_row(struct kvf_table *table, const struct kvf_view *view, const struct kvf_placement *placement,
                      const json_t *home)
{
    bool member = kvf_view_member(view, placement->home) != NULL;
    kvf_table_cell(table, "%" PRIu64, placement->id);
    kvf_table_cell(table, "%s", placement->model);
    kvf_table_cell(table, "%s%s", placement->home, member ? "" : " (gone)");
    kvf_table_cell(table, "%" PRIu64, placement->epoch);
    if (!home) {
        kvf_table_cell(table, "%s", !member ? "no home" : placement->state == KVF_SESSION_PARKED ? "parked" : "unreachable");
        kvf_table_cell(table, "%" PRIu64, placement->tokens);
        kvf_table_row_end(table);
        return;
    }
    const char *state = json_string_value(json_object_get(home, "state"));
    kvf_table_cell(table, "%s", json_is_true(json_object_get(home, "parked")) ? "parked" : state ? state : "?");
    kvf_table_cell(table, "%" PRIu64, number_in(home, "tokens"));
    kvf_table_cell(table, "%" PRIu64, number_in(home, "sealed_blocks"));
    kvf_table_cell(table, "%" PRIu64, number_in(home, "lost_blocks"));
    kvf_table_cell(table, "%" PRIu64, number_in(home, "streaming_blocks"));
    kvf_table_cell(table, "%s", json_is_true(json_object_get(home, "handle_open")) ? "open" : "closed");
}

static void print_table(const struct kvf_view *view, json_t *const *answers)
{
    struct kvf_table *table = kvf_table_create(">SESSION|MODEL|HOME|>EPOCH|STATE|>TOKENS|>SEALED|>LOST|>STREAMING|HANDLE");
    if (!kvf_view_placements(view))
        printf("no sessions\n");
    for (unsigned i = 0; i < kvf_view_placements(view); i++) {
        const struct kvf_placement *placement = kvf_view_placement_at(view, i);
        print_row(table, view, placement, find(view, answers, placement));
    }
    if (kvf_view_placements(view))
        kvf_table_print(table, stdout, "");
    kvf_table_destroy(table);
}

int kvf_cmd_sessions(struct kvf_cli *cli)
{
    struct kvf_view *view = NULL;
    int code = kvf_view_open(cli, &view);
    if (code != KVF_EXIT_DONE)
        return code;
    unsigned n = kvf_view_members(view);
    json_t **answers = calloc(n + 1, sizeof *answers);
    if (answers) {
        for (unsigned m = 0; m < n; m++)
            if (is_home(view, kvf_view_member_at(view, m)))
                answers[m] = ask(view, kvf_view_member_at(view, m));
        if (cli->json)
            print_json(view, answers);
        else
            print_table(view, answers);
        for (unsigned m = 0; m < n; m++)
            json_decref(answers[m]);
    } else {
        code = kvf_cli_fail(cli, KVF_EXIT_FAILED, "out of memory (ERR_NO_MEMORY)");
    }
    free(answers);
    kvf_view_close(view);
    return code;
}
