/* How each peer is reached, and why so. */
#ifndef KVF_NODE_PEERS_H
#define KVF_NODE_PEERS_H

#include "node/internal.h"

/* JSON for `kvf info -p`, malloc'ed; NULL: out of memory. Takes the lock itself. Any thread. */
char *kvf_peers_json(struct kvf_core *core);
#endif
