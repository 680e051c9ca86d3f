/* The SSD area's journal (docs/FORMAT.md): what lies in which slot, so that a restart finds it. Pure: records in, blocks of
 * 4096 bytes out; who writes and syncs them is ssd_commit.c.
 *
 * The journal has two halves. A *generation* is one run through a half, from its first block on; generation g is in half
 * g % 2. It begins with all records that were live then, mixed with new ones, until an END record: from there on the other
 * half is not needed any more. Blocks are appended and never written twice in a generation, so a torn write can only hit
 * records that nobody was told were durable. */
#ifndef KVF_TIERS_JOURNAL_H
#define KVF_TIERS_JOURNAL_H

#include <kvf/kvf.h>

#define KVF_JOURNAL_BLOCK 4096u
#define KVF_JOURNAL_RING 64u   /* blocks in memory that are not written yet */
#define KVF_JOURNAL_CHUNKS_MAX 64u
/* What a block surely holds: its payload less one record that did not fit. */
#define KVF_JOURNAL_FILL 3504u
/* In place of a number of synced blocks: this block is of a generation that a start writes down by itself, before its END. Such a
 * generation counts for nothing until there is a block in it that is not tentative. */
#define KVF_JOURNAL_TENTATIVE UINT32_MAX

/* A block of the node in a slot of the area. */
struct kvf_ssd_record {
    struct kvf_key key;
    uint64_t fingerprint; /* the model's; the owner's choice for opaque blocks */
    uint64_t offset;      /* of the slot in the area */
    uint32_t bytes;       /* of the block */
    uint16_t flags;       /* the owner's */
    uint8_t chunks;       /* 1..64 */
    const uint64_t *sums; /* [chunks] */
};

enum kvf_journal_kind {
    KVF_JOURNAL_PUT = 1,
    KVF_JOURNAL_FREE = 2, /* only offset and bytes count */
    KVF_JOURNAL_END = 3,  /* the checkpoint of this generation is complete */
};

struct kvf_journal_entry {
    enum kvf_journal_kind kind;
    struct kvf_ssd_record record; /* its sums are those below */
    uint64_t sums[KVF_JOURNAL_CHUNKS_MAX];
};

/* ---------------------------------------------------------------- one block */
struct kvf_journal_head {
    uint64_t generation;
    uint64_t nonce;  /* drawn when the generation began: blocks of one that failed to begin are not taken for it */
    uint32_t number; /* of the block in its half */
    uint32_t used;   /* bytes of records */
    uint32_t synced; /* this many blocks of the generation, from its first on, were durable when this one was sealed */
    bool tentative;  /* synced is 0 then */
};

/* False: not a whole block of this area's journal. */
bool kvf_journal_open(const void *block, uint64_t area, struct kvf_journal_head *out);
/* Bytes of the record at `at`; 0 at the end, or where bytes make no sense. */
uint32_t kvf_journal_size(const void *block, const struct kvf_journal_head *head, uint32_t at);
/* The record at *at (0 for the first) of an open block; *at moves on. False at the end, or where bytes make no sense. */
bool kvf_journal_read(const void *block, const struct kvf_journal_head *head, uint32_t *at, struct kvf_journal_entry *out);

/* Bytes of a PUT record. */
static inline uint32_t kvf_journal_record_bytes(uint32_t chunks)
{
    return 40 + 8 * chunks;
}

/* ---------------------------------------------------------------- the machine
 * Records go into the open block; sealed blocks are handed out to be written, in order, one run of them at a time. */
struct kvf_journal {
    uint64_t area;
    uint64_t start; /* of half 0 in the area */
    uint32_t half_blocks;
    uint64_t generation, nonce;
    uint32_t next;  /* number of the open block in its half; `end`: there is no room for it */
    uint32_t end;   /* half_blocks; less where only a hole of the half is filled */
    uint32_t synced; /* blocks of the generation, from its first on, that are durable; or KVF_JOURNAL_TENTATIVE */
    uint8_t *ring;  /* [KVF_JOURNAL_RING] blocks; block i since the start is in i % KVF_JOURNAL_RING */
    uint64_t sealed, handed, written, durable; /* blocks since the start: each at most the one before */
    uint32_t used, count; /* of the open block */
};

/* ERR_NO_MEMORY. */
enum kvf_status kvf_journal_init(struct kvf_journal *journal, uint64_t area, uint64_t start, uint32_t half_blocks);
void kvf_journal_fini(struct kvf_journal *journal);
/* Goes on at block `next` of a generation, of which the first `synced` are durable. KVF_JOURNAL_TENTATIVE: its blocks are that
 * until kvf_journal_synced. Nothing may be open or unwritten. */
void kvf_journal_position(struct kvf_journal *journal, uint64_t generation, uint64_t nonce, uint32_t next, uint32_t synced);
/* A block without records in the place of one that was never whole. */
void kvf_journal_blank(const struct kvf_journal *journal, uint32_t number, void *block);

/* Append a record. False: the half or the ring is full (nothing was done). */
bool kvf_journal_put(struct kvf_journal *journal, const struct kvf_ssd_record *record);
bool kvf_journal_free(struct kvf_journal *journal, uint64_t offset, uint32_t bytes);
bool kvf_journal_end(struct kvf_journal *journal);

/* All that was appended is durable once `durable` has reached this. */
uint64_t kvf_journal_ticket(const struct kvf_journal *journal);
/* Closes the open block, if it holds anything. */
void kvf_journal_seal(struct kvf_journal *journal);
/* Blocks of the half behind the open one. */
uint32_t kvf_journal_left(const struct kvf_journal *journal);
/* The next run of sealed blocks to write: false when there is none. One at a time: kvf_journal_wrote ends it. */
bool kvf_journal_hand(struct kvf_journal *journal, void **data, uint64_t *offset, uint32_t *bytes);
void kvf_journal_wrote(struct kvf_journal *journal, uint32_t bytes);
/* The first `durable` blocks since the start are so. */
void kvf_journal_synced(struct kvf_journal *journal, uint64_t durable);
#endif
