/* persist.c: what survives on this node's SSD. All under the lock. */
#ifndef KVF_NODE_PERSIST_H
#define KVF_NODE_PERSIST_H

#include "node/internal.h"

/* A block on its way to stay; the caller's, until it is not busy. */
struct kvf_keep {
    struct kvf_core *core;
    kvf_handle handle;
    uint64_t offset;
    bool busy;              /* the SSD has the request */
    enum kvf_status status; /* IN_PROGRESS: not begun, or not done */
    uint8_t *data;          /* of staging: a copy that was found, read to be compared and written again; NULL: none is */
    struct kvf_ssd_request request;
};
enum kvf_status kvf_persist_create(struct kvf_core *core, struct kvf_ssd_owner *out);
void kvf_persist_destroy(struct kvf_core *core);
void kvf_persist_report(const struct kvf_core *core); /* logs what was found */
/* The tier could not be started: what was found already is forgotten again. Before anything else is in the index. */
void kvf_persist_abandon(struct kvf_core *core);
/* A session of this id begins: blocks of an earlier one are freed. */
void kvf_persist_session(struct kvf_core *core, uint64_t session);
/* Frees orphans, the bytes of which are returned; 0: there are none. */
uint64_t kvf_persist_evict(struct kvf_core *core, uint64_t bytes);
/* Frees orphans until no more than this are left: they have checksums too, of which there are enough for block.count_max in all. */
void kvf_persist_limit(struct kvf_core *core, uint64_t orphans_max);
uint64_t kvf_persist_orphans(const struct kvf_core *core, uint64_t *bytes); /* how many */
/* What the journal keeps of an exact block whose copy lies at `offset`. */
void kvf_persist_record(const struct kvf_core *core, const struct kvf_entry *entry, uint64_t offset, struct kvf_ssd_record *out);
/* The entry has a copy at this offset of the SSD from now on; 0: none. */
void kvf_persist_copy(struct kvf_core *core, struct kvf_entry *entry, uint64_t offset);
/* Frees the copy beside the block, if there is one and it is not being written again. */
void kvf_persist_forget(struct kvf_core *core, struct kvf_entry *entry);
/* Whether a copy of the block is being written: neither the entry nor its slot on the SSD may go. */
static inline bool kvf_persist_keeping(const struct kvf_entry *e)
{
    return (e->flags & KVF_FLAG_KEEPING) && kvf_entry_model(e) == KVF_ENTRY_OPAQUE;
}
/* A block in DRAM with a copy on the SSD leaves DRAM. false: it is pinned. */
bool kvf_persist_shed(struct kvf_core *core, kvf_handle handle);
/* A block at a lender goes back to its copy on the SSD, and the lender's is released. false: it has none, or is no such block. */
bool kvf_persist_fall_back(struct kvf_core *core, kvf_handle handle);
/* Makes a block durable. IN_PROGRESS: begun when keep->busy, and keep->status tells the end; else it is to be asked for again, or,
 * where keep->data is set, the block there is to be compared with its checksums first.
 * ERR_UNSUPPORTED (no SSD), ERR_STATE (it lies at another node), ERR_FULL, ERR_IO (degraded), ERR_BUSY. */
enum kvf_status kvf_persist_keep(struct kvf_core *core, struct kvf_keep *keep, kvf_handle handle);
/* It was: OK, ERR_CORRUPT, or why it is given up. keep->busy and keep->status go on as above. */
void kvf_persist_compared(struct kvf_keep *keep, enum kvf_status status);
#endif
