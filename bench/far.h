/* A bench between two machines: one serves (`kvf bench fabric --serve`), the other measures (`--peer`).
 *
 * A door, one TCP connection of short lines, tells the measuring side the fabric address of the serving one, and starts and ends
 * there the programs beside which it measures (limits.h). Before any of that the caller proves the cluster's secret by
 * HMAC-SHA-256 over a fresh nonce, as nodes do (secret.h). One caller at a time; another waits. What is measured goes through the
 * fabric, not through here. One thread; every wait ends after 10 s, that for a proof after 3 s, but for the caller's next line. */
#ifndef KVF_BENCH_FAR_H
#define KVF_BENCH_FAR_H

#include "bench/fabric_node.h"
#include "fabric/secret.h"

/* What the serving side has. */
struct kvf_far_node {
    struct kvf_fabric_node_address at;
    char transport[16];          /* that it was started with: both sides' */
    uint64_t region_bytes, seed; /* its region's, so that the other can make the checksums of the same bytes */
};

/* Serves at `where`, [ADDRESS:]PORT (0: any), until SIGINT or SIGTERM; says on standard output where. Without a secret the address
 * must be loopback's, which it is if none is given. `settings` are UCX's for ucx_perftest. False, with a line on standard error:
 * it could not. */
bool kvf_far_serve(const char *where, const struct kvf_secret *secret, const struct kvf_far_node *node, const char *settings);

struct kvf_far;
/* Calls at `where`, ADDRESS:PORT, for at most 10 s. NULL, with a line on standard error: nobody is there, or it wants another
 * secret. */
struct kvf_far *kvf_far_open(const char *where, const struct kvf_secret *secret, struct kvf_far_node *out);
void kvf_far_close(struct kvf_far *far);
/* For the programs of limits.h, while `far` lives. */
struct kvf_limits_host kvf_far_host(struct kvf_far *far);
#endif
