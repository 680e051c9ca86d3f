/* How long a thread polls before it sleeps, learnt from how long it had to wait lately: while events come in close order, polling
 * spares both sides a wake-up, which costs more than the waiting; where they do not, it is a waste of a processor that others
 * may need. One thread. */
#ifndef KVF_BASE_SPIN_H
#define KVF_BASE_SPIN_H

#include <stdbool.h>
#include <stdint.h>

struct kvf_spin {
    uint64_t most_ns;  /* it never polls longer without an event */
    uint64_t limit_ns; /* nor, as things are, longer than this: all of it, or a fifth */
    uint64_t busy_ns;  /* when the last turn with an event was over */
};

/* most_ns may be 0: it never polls. */
void kvf_spin_init(struct kvf_spin *spin, uint64_t most_ns, uint64_t now_ns);
/* A turn of polling with that many events, from start to end. Whether it is time to sleep. */
bool kvf_spin_tired(struct kvf_spin *spin, unsigned events, uint64_t start_ns, uint64_t end_ns);
#endif
