/* The two processes of `kvf bench failure`: a peer that serves its memory, and a reader that keeps 64 reads of it under way. They
 * tell the bench what happens, and when, on a board in shared memory; the clock is the same for all. */
#ifndef KVF_BENCH_FAILURE_H
#define KVF_BENCH_FAILURE_H

#include "fabric/transport.h"

#include <stdatomic.h>

#define KVF_FAILURE_READS 64u
#define KVF_FAILURE_READ_BYTES (64u << 10)
#define KVF_FAILURE_DEADLINE_NS (200 * KVF_MS)
#define KVF_FAILURE_HEARTBEAT_NS (250 * KVF_MS) /* the defaults of a node */
#define KVF_FAILURE_DEAD_NS (2 * KVF_SEC)
#define KVF_FAILURE_RECONNECT_NS (1 * KVF_SEC)
#define KVF_FAILURE_LATE_NS (10 * KVF_MS) /* past its deadline a read counts as late */

struct kvf_failure_board {
    /* written by the bench */
    _Atomic uint64_t fault_ns;  /* 0: none yet */
    _Atomic uint64_t repair_ns; /* 0: not begun */
    /* written by the peer; its address is whole when its incarnation is there */
    uint8_t address[KVF_ADDRESS_MAX];
    size_t address_bytes;
    _Atomic uint64_t incarnation;
    /* written by the reader */
    _Atomic uint64_t good;          /* reads that ended well */
    _Atomic uint64_t refused_ns;    /* first read after the fault that ended, and not well */
    _Atomic uint64_t down_ns;       /* the peer was known to be down */
    _Atomic uint64_t recovered_ns;  /* first read begun after the repair that ended well */
    _Atomic uint64_t lost, late;    /* since the fault: ended not well; ended later than LATE_NS after their deadline */
    _Atomic uint64_t latest_ns;     /* after its deadline the last of all */
    _Atomic uint64_t wrong, failed; /* wrong bytes; the process could not go on */
};

/* Each runs in a process of its own, until it is killed. `kind`: fabric.transport. */
_Noreturn void kvf_failure_peer(struct kvf_failure_board *board, const char *kind, const char *interface, uint64_t incarnation);
_Noreturn void kvf_failure_reader(struct kvf_failure_board *board, const char *kind, const char *interface);
#endif
