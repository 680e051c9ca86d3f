/* The node's counters: one list gives the struct, the names in JSON, and those of Prometheus (kvf_<name>_total). */
#ifndef KVF_BASE_COUNTERS_H
#define KVF_BASE_COUNTERS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define KVF_COUNTER_MAP(X)                                                        \
    X(blocks_sealed, "blocks sealed here")                                        \
    X(blocks_verified, "reads from SSD or a peer whose checksums were tested")    \
    X(blocks_corrupt, "reads whose checksum did not match; never returned")       \
    X(blocks_lost, "blocks of sessions that became misses")                       \
    X(blocks_refilled, "lost blocks that the engine recomputed")                  \
    X(gpu_chunks_read, "chunks read in place in the device cache: its hits")      \
    X(gpu_bytes_read, "bytes read in place in the device cache")                  \
    X(gpu_chunks_missed, "chunks that a budgeted step selected and the device cache did not hold") \
    X(gpu_chunks_uncached, "of these, chunks that it had no place for")           \
    X(gpu_chunks_evicted, "chunks that left the device cache for others")         \
    X(gpu_share_moves, "times that room in it went from one layer and head to another") \
    X(dram_chunks_read, "chunks read in place in DRAM")                           \
    X(dram_bytes_read, "bytes read in place in DRAM")                             \
    X(remote_chunks_read, "chunks read from lenders' DRAM")                       \
    X(remote_bytes_read, "bytes read from lenders' DRAM")                         \
    X(view_chunks_read, "of these, chunks used where they lay, in memory mapped from a lender") \
    X(views_changed, "times that such memory was written meanwhile, or its neighbour was: copied and checked instead") \
    X(ssd_chunks_read, "chunks read from SSD")                                    \
    X(ssd_bytes_read, "bytes read from SSD")                                      \
    X(peer_chunks_read, "chunks read from a session's earlier home")              \
    X(peer_bytes_read, "bytes read from a session's earlier home")                \
    X(spill_remote_blocks, "blocks written to lenders")                           \
    X(spill_remote_bytes, "bytes written to lenders")                             \
    X(spill_ssd_blocks, "blocks written to SSD")                                  \
    X(spill_ssd_bytes, "bytes written to SSD")                                    \
    X(cold_blocks, "session blocks encoded in 8 bits an element on their way down") \
    X(cold_refused, "of these, blocks with NaN or infinity, which went down exact") \
    X(cold_chunks_decoded, "chunks decoded for attention and rising blocks")      \
    X(spill_failed, "blocks whose write to a lower tier failed")                  \
    X(evicted_blocks, "opaque blocks dropped because nothing had room for them")  \
    X(evicted_bytes, "bytes of these")                                            \
    X(returned_blocks, "opaque blocks that came back to DRAM, being read again soon") \
    X(ssd_read_failed, "reads from SSD that failed or came short")                 \
    X(ssd_degraded, "times that a failed write made the SSD tier take no blocks") \
    X(ssd_recovered, "times that it took blocks again")                           \
    X(scrub_blocks, "blocks on SSD that the scrub read and checked")              \
    X(scrub_bytes, "bytes of these")                                              \
    X(scrub_corrupt, "of these, blocks whose checksum did not match")             \
    X(scrub_unreadable, "of these, blocks that the disk did not return")          \
    X(scrub_passes, "times that the scrub went through all blocks on SSD")        \
    X(fetch_deadline, "reads that ended at their deadline")                       \
    X(peers_slow, "times that a peer's answers were found to be slow")            \
    X(hedges, "reads of a lender that were late, so that a copy on SSD was read too") \
    X(hedges_won, "of these, reads that the copy ended")                          \
    X(copies_read, "reads that asked no lender, it being slow or gone, but the copy on SSD") \
    X(blocks_fell_back, "blocks at a lender that was lost or wanted its memory, which lie on SSD now by their copy") \
    X(prefetch_blocks, "blocks read ahead")                                       \
    X(prefetch_used, "of these, blocks that attention then used")                 \
    X(prefetch_cancelled, "of these, reads dropped from the queue as not wanted") \
    X(rises_cancelled, "blocks on their way up whose read was dropped likewise")  \
    X(attend_there_blocks, "blocks that a lender or an old home attended for this node") \
    X(attend_there_bytes, "bytes of chunks that so did not travel")               \
    X(attend_wire_bytes, "bytes of questions and answers that did instead")       \
    X(attend_there_failed, "blocks asked for that had to be pulled after all")    \
    X(attend_there_refused, "of these, blocks that the holder did not have, or not with these checksums") \
    X(attend_serve_blocks, "blocks attended here for other nodes")                \
    X(attend_serve_bytes, "bytes of their chunks")                                \
    X(attend_serve_missed, "blocks asked for that were not here, or not with these checksums") \
    X(attend_serve_busy, "questions turned away because enough were in work")     \
    X(attend_serve_dropped, "questions dropped because nobody waited any more")   \
    X(moves_out, "sessions moved to another node")                                \
    X(moves_in, "sessions moved here")                                            \
    X(moves_failed, "moves that ended with the session where it was")             \
    X(lent_blocks_put, "blocks written here by borrowers")                        \
    X(lent_blocks_freed, "of these, blocks released again")                       \
    X(lent_blocks_asked, "times that a borrower was asked to give a block back")  \
    X(lent_blocks_returned, "blocks that borrowers gave back when asked")         \
    X(lent_blocks_revoked, "blocks of borrowers that were taken back by force")   \
    X(lent_blocks_expired, "blocks that nobody claimed and were freed: of dead borrowers, or of sessions that moved or ended")  \
    X(lend_claims, "times that others' share of lent memory was lowered because own DRAM was short") \
    X(lend_returns, "times that it was raised again because own DRAM sufficed") \
    X(borrowed_blocks_yielded, "blocks moved away from a lender that asked for its memory") \
    X(borrowed_blocks_dropped, "of these, blocks that became misses for want of another place") \
    X(borrowed_blocks_revoked, "blocks that a lender said it took back by force") \
    X(requests_given_up, "reads by other nodes that were dropped: whoever asked waits no more") \
    X(messages_sent, "messages to peers")                                         \
    X(messages_received, "messages from peers")                                   \
    X(messages_refused, "messages that were malformed, old or out of order")      \
    X(messages_unproved, "of these, messages that did not prove the cluster's secret") \
    X(peers_lost, "peers that died or were cut off")                              \
    X(store_requests, "requests to etcd")                                         \
    X(store_failures, "of these, failed")

struct kvf_counters {
#define KVF_COUNTER_FIELD(name, help) _Atomic uint64_t name;
    KVF_COUNTER_MAP(KVF_COUNTER_FIELD)
#undef KVF_COUNTER_FIELD
};

static inline void kvf_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}
static inline uint64_t kvf_counted(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Walks the list: false past the end. */
struct kvf_counter_entry {
    const char *name, *help;
    size_t offset; /* in struct kvf_counters */
};
_Bool kvf_counters_entry(size_t index, struct kvf_counter_entry *out);
uint64_t kvf_counters_get(const struct kvf_counters *counters, size_t index);
#endif
