/* Polling before sleep (spin.h). */
#include "base/spin.h"

#include <assert.h>

#define PART 5 /* of the most, where the last wait was longer than that */

void kvf_spin_init(struct kvf_spin *spin, uint64_t most_ns, uint64_t now_ns)
{
    *spin = (struct kvf_spin){.most_ns = most_ns, .limit_ns = most_ns / PART, .busy_ns = now_ns};
}

bool kvf_spin_tired(struct kvf_spin *spin, unsigned events, uint64_t start_ns, uint64_t end_ns)
{
    assert(spin->limit_ns <= spin->most_ns);
    if (events > 0) {
        uint64_t waited_ns = start_ns > spin->busy_ns ? start_ns - spin->busy_ns : 0;
        if (waited_ns > spin->most_ns)
            spin->limit_ns = spin->most_ns / PART;
        else if (waited_ns > spin->limit_ns)
            spin->limit_ns = spin->most_ns; /* polling would have caught it */
        spin->busy_ns = end_ns;
    }
    return end_ns - spin->busy_ns >= spin->limit_ns;
}
