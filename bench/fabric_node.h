/* Processes with a fabric each, for measuring it: some serve a region of memory, others pull from it what they are told.
 *
 * All are forked before any of them opens the network, and the caller never does. They share one region: memfds that every
 * process inherits, which the serving ones offer to their peers, with a checksum per page. A pulling process has memory of its own
 * to pull into, works on one task at a time, and answers it. Idle processes sleep, as a node does: they cost nothing while
 * something else is measured. One thread. */
#ifndef KVF_BENCH_FABRIC_NODE_H
#define KVF_BENCH_FABRIC_NODE_H

#include "fabric/fabric.h"

#define KVF_FABRIC_NODE_PAGE 4096u /* one checksum each; sizes and offsets are multiples of it */
#define KVF_FABRIC_NODES_MAX 64

struct kvf_fabric_nodes; /* the processes of one set */
struct kvf_fabric_region; /* what is pulled */

/* Bytes of the region, which no cache holds, filled from the seed. NULL: no memory. */
struct kvf_fabric_region *kvf_fabric_region_create(uint64_t bytes, uint64_t seed);
void kvf_fabric_region_destroy(struct kvf_fabric_region *region);
const uint8_t *kvf_fabric_region_page(const struct kvf_fabric_region *region, uint64_t page);
uint64_t kvf_fabric_region_pages(const struct kvf_fabric_region *region);

/* Where a serving process is reached. */
struct kvf_fabric_node_address {
    char name[KVF_NODE_NAME_MAX];
    uint64_t incarnation;
    size_t bytes;
    uint8_t address[KVF_ADDRESS_MAX];
};

struct kvf_fabric_nodes_options {
    const char *transport;     /* fabric.transport: tcp, shm, auto, rdma */
    const char *interface;     /* fabric.interface */
    uint64_t segment_bytes, inflight_bytes, spin_ns;
    uint64_t memory_bytes;     /* that each pulling process pulls into */
    unsigned servers, readers;
    bool outside;              /* there are processes of other sets, which know the secret of secret_file; NULL: there is none */
    const char *secret_file;
    const struct kvf_fabric_node_address *server; /* of another set, for the readers beside those of this one; or NULL */
    bool pin;                  /* each to a processor of its own, in turn */
};
/* Forks them and waits until every reader has every server as a peer. NULL, with a line on standard error: it did not work. */
struct kvf_fabric_nodes *kvf_fabric_nodes_create(const struct kvf_fabric_region *region,
                                                 const struct kvf_fabric_nodes_options *options);
void kvf_fabric_nodes_destroy(struct kvf_fabric_nodes *nodes);
/* Of the first serving process. */
void kvf_fabric_nodes_server(const struct kvf_fabric_nodes *nodes, struct kvf_fabric_node_address *out);

enum kvf_fabric_work {
    KVF_FABRIC_PULL,   /* pulls by the fabric */
    KVF_FABRIC_COPY,   /* memcpy of the same blocks from the region, as this process has it mapped: the limit of shared memory */
    /* Of requests of one block, every page of which is read and compared with its checksum, whatever `verify`: */
    KVF_FABRIC_VIEW,   /* where it lies at the server, by views */
    KVF_FABRIC_LOOK,   /* in the region as this process has it mapped: the limit of views */
};

struct kvf_fabric_task {
    enum kvf_fabric_work work;
    uint32_t bytes;   /* of one range */
    uint32_t ranges;  /* of one request; 1: a block */
    uint32_t depth;   /* requests under way at any time */
    bool verify;      /* every page against its checksum, before the request counts as done */
    double seconds;
    uint64_t seed;    /* which blocks, in which order */
};

struct kvf_fabric_answer {
    bool good;           /* every request was done, and what was looked at was right: without verify, the last requests' bytes */
    double bytes_per_s;
    double p50_us, p99_us; /* of a request, from asking to done */
    uint64_t requests;
};

/* Gives every reader the task, all at once, and waits for their answers. False, with a line on standard error: one of them
 * failed. */
bool kvf_fabric_nodes_run(struct kvf_fabric_nodes *nodes, const struct kvf_fabric_task *task, struct kvf_fabric_answer *answers);
#endif
