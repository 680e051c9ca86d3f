/* The node's DRAM: one range of addresses, [own blocks | lent to peers | staging], reserved at once and made ready piece by
 * piece: backed (huge pages, NUMA), touched by several threads, registered with fabric, device and disk. The arenas give out what
 * is ready.
 *
 *     PLANNED -> backed -> populated -> registered -> READY        one piece after the other: staging, own, lent
 *
 * Pieces are prepared inside kvf_ram_create until the start-up budget is over (the first of staging and of own always are), the
 * rest by a thread of its own beside the serving node. A piece that cannot be had ends it: the node goes on with what it has. */
#ifndef KVF_NODE_RAM_H
#define KVF_NODE_RAM_H

#include "node/internal.h"
#include "tiers/pages.h"

/* Sets core->memory, the arenas and core->region. ERR_NO_MEMORY, ERR_CONFIG (memory.numa); `error` gets one line. */
enum kvf_status kvf_ram_create(struct kvf_core *core, char *error, size_t error_size);
/* The disk is there: what is ready is registered with it, and what comes will be. */
void kvf_ram_disk(struct kvf_core *core);
/* Everything else is there: prepares the rest in a thread. */
void kvf_ram_start(struct kvf_core *core);
/* Ends the thread: at once, but for what is being pinned. Nothing is prepared afterwards. */
void kvf_ram_stop(struct kvf_core *core);
void kvf_ram_destroy(struct kvf_core *core);
/* Prepares the next piece in the calling thread (tests do without the thread). False: there is none left. Without the lock. */
bool kvf_ram_step(struct kvf_core *core);

struct kvf_ram_stats {
    uint64_t total_bytes, ready_bytes, own_bytes, own_ready_bytes, lent_bytes, lent_ready_bytes;
    uint64_t elapsed_ns;  /* from the start to the last piece, or until now */
    uint64_t huge_bytes;  /* in huge pages of any kind; known when done */
    bool done;            /* nothing more will be prepared */
    enum kvf_page_kind kind; /* of the last piece */
    char error[160];      /* why it ended early; "" */
    char numa[160];
};
/* Under the lock. */
void kvf_ram_stats(const struct kvf_core *core, struct kvf_ram_stats *out);
#endif
