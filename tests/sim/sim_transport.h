/* An in-process network: several kvf_transport instances that send frames to each other, step by step and in an order
 * that depends on nothing but the calls. For tests and the simulator; one thread.
 *
 *     struct sim_env env;                      sim_env_init(&env, seed);
 *     struct sim_net *net = sim_net_create(&env.env);
 *     struct kvf_transport *a = sim_net_add(net, "a", KVF_WAY_ASK), *b = sim_net_add(net, "b", KVF_WAY_ASK);
 *     ... kvf_fabric_create on each ...
 *     while (sim_net_step(net) | kvf_fabric_poll(fa) | kvf_fabric_poll(fb)) {}    until everything is quiet
 *     ... kvf_fabric_destroy on each, ops->destroy on each transport, then sim_net_destroy
 *
 * A frame goes: send -> on the wire -> (sim_net_step) arrived -> (receiver's poll) the handler. The sender's `done` comes in
 * the sender's first poll after the frame left the wire. The bytes of the parts are read when the frame leaves the wire, not
 * when it is sent: one who reuses them before `done` corrupts his frame, and a test sees it. Reads (WAY_GET) travel like
 * frames and read the target's region when they leave the wire. A mapped region (WAY_MAPPED) stays readable after its
 * owner died, until the net is destroyed, as shared memory does.
 */
#ifndef KVF_TESTS_SIM_TRANSPORT_H
#define KVF_TESTS_SIM_TRANSPORT_H

#include "fabric/transport.h"

#define SIM_NODES_MAX 64 /* instances of one net over its whole life, dead ones too */

struct sim_net;

/* One direction between two instances. Set the fields at any time. */
struct sim_path {
    bool cut;            /* frames vanish silently; their senders are told OK. Reads never come back */
    bool held;           /* frames and reads stay on the wire */
    uint64_t delay_ns;   /* added to what is sent from now on; the wire delivers in order of arrival time */
    unsigned drop;       /* so many of the next frames vanish */
    unsigned duplicate;  /* so many of the next frames arrive twice */
    unsigned busy;       /* so many of the next sends and reads are refused with ERR_BUSY */
    unsigned lost;       /* so many of the next sends and reads are refused with ERR_PEER_LOST */
    bool untold;         /* links this way that fail do not say so: only what was on them ends with an error */
    uint64_t misposted;  /* sends and reads that were tried on a failed link; yours to reset */
    uint64_t delivered;  /* frames that arrived; yours to reset */
};

/* What becomes of a frame or read that is sent now, beyond its path's switches. The wire keeps the order of a direction, as the
 * links of a real transport do, but for what is `loose`. */
struct sim_fate {
    uint64_t delay_ns; /* beyond the path's */
    bool drop;         /* of a frame */
    bool loose;        /* may be overtaken by, and overtake, what is sent in its direction */
    uint64_t again_ns; /* of a frame: it arrives once more so long after the first time; 0: it does not */
};

/* The net as its watcher sees it: instances by number, in the order of sim_net_add. All are called from inside the net. */
struct sim_net_watch {
    void *arg;
    void (*sent)(void *arg, unsigned from, unsigned to, bool read, const void *header, size_t bytes, struct sim_fate *fate);
    /* It left the wire; arrived: to be handed over, or carried out. payload: in parts. */
    void (*left)(void *arg, unsigned from, unsigned to, bool read, bool arrived, const void *header, size_t header_bytes,
                 const struct iovec *parts, unsigned n_parts);
};

/* env gives the time for delays. NULL when there is no memory. */
struct sim_net *sim_net_create(const struct kvf_env *env);
/* After every instance was destroyed (ops->destroy). */
void sim_net_destroy(struct sim_net *net);
/* Set before the first send; NULL: nobody watches. Must outlive the net. */
void sim_net_watch(struct sim_net *net, const struct sim_net_watch *watch);
unsigned sim_net_number(struct kvf_transport *t);
/* One of the links of `from` to `to` fails, as on the transport's first error: link_down comes in its next poll. */
void sim_net_break(struct kvf_transport *from, struct kvf_transport *to);

/* A new instance. `way` is how regions that this instance imports are read. payload_max is 64 KiB and 64 sends may be in
 * flight; sim_net_limits changes both, before use. Its address is valid for this instance alone: one that is started
 * again under the same label is another. */
struct kvf_transport *sim_net_add(struct sim_net *net, const char *label, enum kvf_way way);
void sim_net_limits(struct kvf_transport *t, size_t payload_max, unsigned sends_max);

/* Never NULL; a path of an instance to itself exists too. */
struct sim_path *sim_net_path(struct kvf_transport *from, struct kvf_transport *to);
/* Cuts or heals both directions. */
void sim_net_partition(struct kvf_transport *a, struct kvf_transport *b, bool cut);

/* The instance dies as by kill -9: what it sent and has not left the wire, and what is sent to it, vanishes; what it asks
 * for fails. With `tell`, the links of others to it go down in their next poll; else they never hear of it. Its fabric
 * and itself must still be destroyed by the test. */
void sim_net_kill(struct kvf_transport *t, bool tell);

/* Takes the first frame or read that is due off the wire. False when nothing is due. */
bool sim_net_step(struct sim_net *net);
/* Steps until nothing is due; the number of steps. */
unsigned sim_net_run(struct sim_net *net);
/* Time at which the first thing on the wire that is not held is due; UINT64_MAX when there is none. */
uint64_t sim_net_next(const struct sim_net *net);

/* A frame with any bytes, as a hostile instance would send it; it needs no link and obeys the path's switches. */
void sim_net_inject(struct kvf_transport *from, struct kvf_transport *to, const void *header, size_t header_bytes,
                    const void *payload, size_t payload_bytes);
#endif
