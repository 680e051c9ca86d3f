/* A link that fails on demand: two network namespaces with a pair of virtual devices between them. This process moves into the
 * near one; its children are in it too, or go to the far one. Both go when the last process in them does.
 *
 * It takes root, or user namespaces where the kernel lets everybody make them, and the program ip. */
#ifndef KVF_BENCH_NETWORK_H
#define KVF_BENCH_NETWORK_H

#include <stdbool.h>

#define KVF_NETWORK_NEAR "near0" /* the devices */
#define KVF_NETWORK_FAR "far0"

enum kvf_network_fault {
    KVF_NETWORK_NEAR_DOWN,    /* the near device is set down */
    KVF_NETWORK_FAR_DOWN,
    KVF_NETWORK_FROM_NEAR,    /* what the near side sends vanishes; what comes to it still does */
    KVF_NETWORK_FROM_FAR,
};

struct kvf_network {
    int far_fd; /* keeps the far namespace */
};

/* False: it cannot be made here. The process may have moved all the same. Before it has threads, or has opened a network. */
bool kvf_network_open(struct kvf_network *network);
/* A child's way to the far namespace, once the link is up there. */
bool kvf_network_go_far(const struct kvf_network *network);
bool kvf_network_fault_set(const struct kvf_network *network, enum kvf_network_fault fault, bool on);
/* Waits, at most 5 s, until the kernel says that a device of this namespace is up at both ends; before, UCX passes over it. */
bool kvf_network_wait(const char *device);
#endif
