/* Whole nodes in one process: cores over the simulated network, clock, etcd and disks, driven step by step by one thread.
 *
 *     struct sim_cluster *c = sim_cluster_create(seed);
 *     struct sim_node *a = sim_cluster_add(c, &(struct sim_node_config){.name = "a", .dram = 128 << 10, .ssd = 1 << 20});
 *     ... sim_cluster_add more ...
 *     sim_cluster_connect(c);                      everybody has joined and sees everybody
 *     kvf_session_create(&a->node, ...)            a call that waits steps all the others meanwhile
 *     sim_cluster_settle(c, 2 * KVF_SEC);          two seconds go by
 *     sim_cluster_destroy(c);
 *
 * One step takes what is due off the wire (one frame at most when `single`), polls every node that lives, and when nothing
 * happened lets the clock go on. Every failure to set up aborts, as tests may. */
#ifndef KVF_TESTS_SIM_CLUSTER_H
#define KVF_TESTS_SIM_CLUSTER_H

#include "node/internal.h"
#include "tests/sim/sim_disk.h"
#include "tests/sim/sim_env.h"
#include "tests/sim/sim_store.h"
#include "tests/sim/sim_transport.h"

#define SIM_CLUSTER_NODES 40
#define SIM_CLUSTER_PEERS 16 /* that a node can have unless it is told otherwise */

struct sim_node_config {
    const char *name;
    uint64_t dram, lend, staging; /* bytes; staging 0: 256 KiB */
    uint64_t gpu;                 /* bytes of the device cache */
    uint64_t ssd;                 /* bytes of the area; 0: no SSD */
    bool power;                   /* its disk may lose power: sim_media_track, from the first write on */
    enum kvf_way way;             /* how this node reads others */
    bool alone;                   /* no network and no etcd */
    bool no_borrow;
    const char *cold;             /* cold.format; NULL: exact */
    bool ram_by_hand;             /* memory in pieces of 2 MiB, and kvf_ram_step makes them ready */
    uint64_t block_max;           /* 0: 64 KiB */
    size_t frame;                 /* the largest message that it takes and sends; 0: 64 KiB */
    uint64_t blocks_max;          /* entries of the index; 0: 4096 */
    uint64_t leave_entries;       /* of the index, in one turn of the walk for a peer that is gone; 0: as many as suit */
    uint64_t peers_max;           /* 0: SIM_CLUSTER_PEERS */
    uint64_t keep_dead_ns;        /* how long it keeps dead borrowers' blocks; 0: not at all */
    uint64_t lend_min;            /* lend.min */
    bool no_claims;               /* lend.reclaim_above is 0, not its default */
    const char *attend, *attend_parts; /* attend.remote and attend.parts; NULL: as by default */
    bool attend_nobody;           /* attend.serve is 0, not its default */
    uint64_t attend_serve;        /* 0: its default */
    const struct kvf_dev *dev;    /* NULL: this machine's best */
    uint64_t scrub_rate, down_budget, up_budget; /* bytes per second; 0: no scrub, no limit */
    uint64_t fetch_timeout_ns, etcd_timeout_ns;  /* 0: the defaults */
    uint64_t skew_ns;             /* how far this node's clock is ahead of the cluster's */
};

struct sim_node {
    struct sim_cluster *cluster;
    struct sim_node_config config;
    struct kvf_env env;    /* of this node: the cluster's, ahead by skew_ns */
    uint64_t skew_ns;
    struct kvf_node node; /* for the public calls; without a reactor */
    struct kvf_core *core;
    struct kvf_transport *transport;
    struct kvf_store *store;
    struct sim_disk *disk;
    struct sim_media *media;
    sim_disk_fate_fn start_fate; /* of what the next start asks of its disk; NULL: nothing happens to it */
    void *start_fate_arg;
    bool dead;
    bool paused;           /* SIGSTOP: not polled */
};

struct sim_cluster {
    struct sim_env env;
    struct sim_net *net;
    struct kvf_sim_etcd *etcd;
    struct sim_node nodes[SIM_CLUSTER_NODES];
    unsigned n;
    FILE *log;
    bool single;           /* one frame in a step */
    uint64_t delivered;    /* frames and reads that left the wire */
    unsigned quiet;        /* steps without an event */
    /* Called after every step, outside all cores; yours to set. */
    void (*stepped)(struct sim_cluster *cluster, void *arg);
    void *stepped_arg;
};

struct sim_cluster *sim_cluster_create(uint64_t seed);
/* Destroys the nodes too, dead ones included. Sessions that are still open go with their node; close their handles before. */
void sim_cluster_destroy(struct sim_cluster *cluster);

struct sim_node *sim_cluster_add(struct sim_cluster *cluster, const struct sim_node_config *config);
/* Steps until every living node is up for every other one, and owes it no RELEASE_ALL. */
void sim_cluster_connect(struct sim_cluster *cluster);

void sim_cluster_step(struct sim_cluster *cluster);
/* Steps until `ns` have gone by. */
void sim_cluster_settle(struct sim_cluster *cluster, uint64_t ns);

/* The node's turn of its reactor; the events. Not of one that is dead or paused. */
unsigned sim_cluster_poll(struct sim_node *node);

/* kill -9: nobody hears of it from the node, and it hears of nobody. With `tell` links break at once, else by silence. */
void sim_cluster_kill(struct sim_node *node, bool tell);
/* What is left of a dead node's process goes: all of it but its media. Its handles must be closed. */
void sim_cluster_bury(struct sim_node *node);
/* A dead node that was buried starts again: same name and media, another incarnation and address. While an earlier life's
 * lease stands its join fails (core->join_ended and not joined): kill, bury and restart it again then. */
void sim_cluster_restart(struct sim_node *node);

/* Cuts the wire between two nodes, or heals it. */
void sim_cluster_partition(struct sim_node *a, struct sim_node *b, bool cut);

struct kvf_node_peer *sim_cluster_peer(struct sim_node *node, const struct sim_node *other); /* NULL: not known */
/* kvf_core_check of every node. */
void sim_cluster_check(struct sim_cluster *cluster);
/* True when the node's memory is given back: nothing in DRAM, in the lent part or in the index; what staging holds is cache. */
bool sim_cluster_empty(struct sim_node *node);
#endif
