/* The cluster as `kvf` sees it: members and placement from etcd, and requests to the nodes' admin interfaces. */
#ifndef KVF_CLI_VIEW_H
#define KVF_CLI_VIEW_H

#include "cli/cli.h"
#include "coordinator/coordinator.h"
#include <jansson.h>

struct kvf_view;

/* Reads etcd once, as an observer. KVF_EXIT_DONE, or an exit code after one line on standard error (3: etcd does not answer
 * within the verb's timeout). The caller closes it. */
int kvf_view_open(struct kvf_cli *cli, struct kvf_view **out);
void kvf_view_close(struct kvf_view *view);

/* In order of name; NULL past the end. Valid until close, like all below. */
const struct kvf_member *kvf_view_member_at(const struct kvf_view *view, unsigned index);
const struct kvf_member *kvf_view_member(const struct kvf_view *view, const char *name);
unsigned kvf_view_members(const struct kvf_view *view);
/* In order of id; NULL past the end. */
const struct kvf_placement *kvf_view_placement_at(const struct kvf_view *view, unsigned index);
const struct kvf_placement *kvf_view_placement(const struct kvf_view *view, uint64_t id);
unsigned kvf_view_placements(const struct kvf_view *view);
/* "" when there is none. */
const char *kvf_view_leader(const struct kvf_view *view);

/* GET (body NULL) or POST at a member's admin interface, within timeout_ns. On KVF_OK *out is the answer, to be released
 * with json_decref, whatever the HTTP code, which is in *code. Else `error` has one sentence. */
enum kvf_status kvf_view_request(struct kvf_view *view, const struct kvf_member *member, const char *path, const char *body,
                                 uint64_t timeout_ns, json_t **out, long *code, char *error, size_t error_size);
/* What is left of the verb's time, at most `max_ns`. */
uint64_t kvf_view_time_left(const struct kvf_view *view, uint64_t max_ns);
#endif
