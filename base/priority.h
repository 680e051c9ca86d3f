/* What goes before what, wherever bytes wait for a disk or a peer. One list for all queues: a lower number goes first. */
#ifndef KVF_BASE_PRIORITY_H
#define KVF_BASE_PRIORITY_H

enum kvf_priority {
    KVF_PRIORITY_DEMAND,     /* somebody waits for it */
    KVF_PRIORITY_AHEAD,      /* reads of what will be wanted soon: prefetch, and blocks on their way up */
    KVF_PRIORITY_WRITE_BACK, /* blocks on their way down */
    KVF_PRIORITY_SCRUB,      /* verification of what lies still */
    KVF_PRIORITY_COUNT
};
#endif
