/* What read.c (reads and their messages) and hedge.c (second copies) share. */
#ifndef KVF_NODE_READ_H
#define KVF_NODE_READ_H

#include "node/internal.h"

#define KVF_BATCHES_MAX 64

/* Reads that one message carries. */
struct kvf_batch {
    struct kvf_core *core;
    uint16_t peer;
    unsigned n, runs;
    uint64_t bytes;
    uint64_t deadline_ns;
    uint64_t asked_ns; /* 0: not yet */
    uint64_t late_ns;  /* when the other copies of its reads are read too; UINT64_MAX: never (again) */
    struct kvf_read *reads[KVF_BATCH_MAX]; /* NULL: it has ended, of a READ that has not */
    uint64_t id;                 /* of a READ that is open; else 0. The batch's number, and above it how many were asked before */
    uint64_t got[KVF_BATCH_MAX]; /* chunks of each that a READ has brought */
    struct {
        uint32_t offset; /* in the block */
        uint8_t read;    /* whose */
    } ranges[KVF_PULL_RANGES_MAX]; /* of a pull */
    struct kvf_batch *next;
};

/* One run of chunks on its way from SSD. */
struct kvf_ssd_run {
    struct kvf_ssd_request request;
    struct kvf_read *read;
    bool ahead; /* counted so */
    struct kvf_ssd_run *next;
};

struct kvf_read_queue {
    struct kvf_read *head, **end;
};

struct kvf_reads {
    struct kvf_read *pool, *free;
    struct kvf_read_queue demand, ahead;
    struct kvf_batch *batches, *batch_free;
    struct kvf_ssd_run *runs, *run_free;
    unsigned *batches_at; /* [peers_max] outstanding */
    uint64_t asked;       /* READs so far */
    unsigned active;
    unsigned runs_ahead;  /* SSD requests of reads that are not demand */
    uint64_t late_ns;     /* the earliest of the batches; may be too early */
};

/* The block of a read, or NULL when it is gone. */
struct kvf_entry *kvf_read_entry(struct kvf_core *core, const struct kvf_read *read);
/* The read ends: its callback, and its place is free. */
void kvf_read_finish(struct kvf_core *core, struct kvf_read *read, enum kvf_status status);
/* Back into its queue: its source is chosen anew. Nothing of it is under way. */
void kvf_read_again(struct kvf_core *core, struct kvf_read *read);
/* The chunks that are wanted, from a block in memory to their places. */
void kvf_read_copy(struct kvf_read *read, const uint8_t *block);
void kvf_batch_free(struct kvf_batch *batch);

/* hedge.c: the other copies of what is late by now are read too. */
void kvf_reads_late(struct kvf_core *core, uint64_t now_ns);
#endif
