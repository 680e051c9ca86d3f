/* How each peer is reached (peers.h). As in status.c, what is under the core's lock is copied first. */
#include "node/peers.h"
#include "node/attend_remote.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct peer {
    char name[KVF_NODE_NAME_MAX];
    uint64_t incarnation;
    bool up, measured;
    struct kvf_peer_about about;
    struct kvf_attend_cost_stats cost;
};

struct view {
    char transport[256], settings[1024];
    uint64_t inflight_bytes;
    struct peer *peers; /* [n] */
    unsigned n;
};

static const char *way_name(enum kvf_way way)
{
    switch (way) {
    case KVF_WAY_ASK: return "ask";
    case KVF_WAY_GET: return "get";
    case KVF_WAY_MAPPED: return "mapped";
    }
    return "unknown";
}

/* False: out of memory. The caller frees view->peers. */
static bool copy_peers(struct kvf_core *core, struct view *view)
{
    const struct kvf_settings *s = &core->settings;
    memset(view, 0, sizeof *view);
    snprintf(view->transport, sizeof view->transport, "none");
    view->peers = calloc(s->fabric_peers_max, sizeof *view->peers);
    if (!view->peers)
        return false;
    view->inflight_bytes = s->fabric_inflight;
    struct kvf_transport_config config = {.kind = s->fabric_transport, .interface = s->fabric_interface,
                                          .segment_bytes = s->fabric_segment, .log = &core->log};
    if (core->transport)
        core->transport->ops->describe(core->transport, view->transport, sizeof view->transport);
    if (!core->transport || strcmp(core->transport->ops->name, "ucx") != 0 ||
        kvf_transport_ucx_settings(&config, view->settings, sizeof view->settings) != KVF_OK)
        view->settings[0] = 0;
    kvf_core_lock(core);
    for (unsigned i = 0; core->peers && i < s->fabric_peers_max; i++) {
        const struct kvf_node_peer *from = &core->peers[i];
        if (!from->peer)
            continue;
        struct peer *to = &view->peers[view->n++];
        snprintf(to->name, sizeof to->name, "%s", kvf_peer_name(from->peer));
        to->incarnation = kvf_peer_incarnation(from->peer);
        to->up = from->up;
        to->measured = from->up && kvf_attend_cost_stats(core, from->number, &to->cost) && to->cost.rtt_ns > 0;
        kvf_peer_about(from->peer, &to->about);
    }
    kvf_core_unlock(core);
    return true;
}

static json_t *peer_json(const struct peer *p)
{
    char incarnation[24];
    json_t *ways = json_object();
    snprintf(incarnation, sizeof incarnation, "%016" PRIx64, p->incarnation);
    for (unsigned way = 0; way < KVF_WAYS; way++)
        json_object_set_new(ways, way_name((enum kvf_way)way), json_integer((json_int_t)p->about.region_bytes[way]));
    json_t *peer = json_pack("{s:s, s:s, s:b, s:s, s:s, s:o, s:I, s:I, s:I, s:I}", "name", p->name, "incarnation", incarnation,
                             "up", (int)p->up, "way", way_name(p->about.way), "why", p->about.why, "region_bytes", ways, "pieces",
                             (json_int_t)p->about.pieces, "pieces_ready", (json_int_t)p->about.pieces_there, "frame_bytes",
                             (json_int_t)p->about.frame_bytes, "inflight_bytes", (json_int_t)p->about.inflight_bytes);
    json_object_set_new(peer, "served_bytes", json_integer((json_int_t)p->about.served_bytes));
    json_object_set_new(peer, "congestion_control", json_string(p->about.congestion));
    json_object_set_new(peer, "rtt_ns", p->measured ? json_integer((json_int_t)p->cost.rtt_ns) : json_null());
    json_object_set_new(peer, "pull_bytes_per_s", p->measured ? json_integer((json_int_t)p->cost.pull_rate) : json_null());
    return peer;
}

char *kvf_peers_json(struct kvf_core *core)
{
    struct view view;
    if (!copy_peers(core, &view))
        return NULL;
    json_t *list = json_array();
    for (unsigned i = 0; i < view.n; i++)
        json_array_append_new(list, peer_json(&view.peers[i]));
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:I, s:o}", "schema", "kvf-peers/1", "node", core->name, "transport",
                             view.transport, "ucx_settings", view.settings, "inflight_max_bytes", (json_int_t)view.inflight_bytes,
                             "peers", list);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(root);
    free(view.peers);
    return text;
}
