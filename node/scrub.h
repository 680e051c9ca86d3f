/* Blocks on SSD are read and checked again and again (scrub.c). Under the lock but for what says otherwise. */
#ifndef KVF_NODE_SCRUB_H
#define KVF_NODE_SCRUB_H

#include "node/internal.h"

enum kvf_status kvf_scrub_create(struct kvf_core *core);
void kvf_scrub_destroy(struct kvf_core *core);
unsigned kvf_scrub_poll(struct kvf_core *core);
/* Another rate from now on, and a pass that begins now; for benches. Takes the lock. Nothing where the scrub is off. */
void kvf_scrub_set_rate(struct kvf_core *core, uint64_t rate);
uint64_t kvf_scrub_next_timer(const struct kvf_core *core, uint64_t now_ns);
struct kvf_scrub_progress {
    uint64_t rate;                    /* bytes per second; 0: off */
    uint64_t pass_blocks, pass_bytes; /* of the pass under way */
    uint64_t blocks;                  /* on SSD now */
    uint64_t passes, since_ns;        /* that ended; how long ago the last one did */
};
void kvf_scrub_progress(const struct kvf_core *core, struct kvf_scrub_progress *out);
#endif
