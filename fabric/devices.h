/* Which network devices this machine has, and what fabric.transport and fabric.interface amount to on it. Knows no UCX. */
#ifndef KVF_FABRIC_DEVICES_H
#define KVF_FABRIC_DEVICES_H

#include "fabric/transport.h"
#include <sys/socket.h>

#define KVF_DEVICES_TEXT_MAX 512

struct kvf_devices_choice {
    char devices[KVF_DEVICES_TEXT_MAX]; /* names with commas, or "all" */
    char transports[64];                /* in UCX's names, with commas */
    bool shm;                           /* shared memory is among them */
    bool tcp;
    bool rdma;                          /* an RDMA device is */
    struct sockaddr_storage rdma_at;    /* rdma: the IP address by which peers reach the first of them; port 0 */
    char gid_index[8];                  /* in UCX's words: a number, or auto */
};

/* ERR_CONFIG: an unknown kind or device, none that is up, or rdma without a device that has an IP address (if a gid is named: in
 * that entry); the log line says what there is. */
enum kvf_status kvf_devices_choose(const char *kind, const char *interface, const char *gid, const struct kvf_log *log,
                                   struct kvf_devices_choice *out);

/* Whether one of the devices that were chosen is up and has a carrier just now. */
bool kvf_devices_run(const struct kvf_devices_choice *choice);

/* For a node without a secret: whether the devices (names with commas, or "all") are loopback alone. ERR_CONFIG with a log
 * line. */
enum kvf_status kvf_devices_loopback(const char *devices, const struct kvf_log *log);

/* Whether the machine has an RDMA device at all. */
bool kvf_devices_any_rdma(void);
#endif
