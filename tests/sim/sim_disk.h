/* A disk in memory for tests: it completes when told, and fails, tears and flips as told. One thread.
 *
 * The media outlives the disks that are opened over it, so a test can restart a node on what was written. */
#ifndef KVF_SIM_DISK_H
#define KVF_SIM_DISK_H

#include "tiers/disk.h"

struct sim_media {
    uint8_t *bytes; /* as reads see it now */
    uint64_t size;
    /* what a power cut would leave for certain, and the writes since, oldest first; only when tracked */
    uint8_t *durable;
    struct sim_unsynced *unsynced;
    unsigned n_unsynced, unsynced_room;
    uint64_t synced; /* writes that left the list */
};

/* Zeros, touched as written. ERR_NO_MEMORY. */
enum kvf_status sim_media_create(uint64_t size, struct sim_media **out);
void sim_media_destroy(struct sim_media *media);
/* From now on writes are remembered until a sync, for sim_disk_cut. ERR_NO_MEMORY. */
enum kvf_status sim_media_track(struct sim_media *media);

enum sim_fault {
    SIM_FAULT_NONE,
    SIM_FAULT_IO,       /* ERR_IO, nothing done */
    SIM_FAULT_FULL,     /* ERR_DISK_FULL, nothing done */
    SIM_FAULT_SHORT,    /* the first half is read or written, then ERR_IO */
    SIM_FAULT_FLIP,     /* OK, but one bit in the middle of the range is wrong: of the buffer (read), on the media (write) */
    SIM_FAULT_TEAR,     /* write: OK, but only the first half reached the media */
    SIM_FAULT_MISPLACE, /* OK, but done 4096 bytes after where it belongs (if that is inside) */
};

struct sim_disk; /* begins with a struct kvf_disk */

enum kvf_status sim_disk_create(struct sim_media *media, unsigned depth, struct sim_disk **out);
/* For the code under test; its ops->close frees the disk, not the media. */
struct kvf_disk *sim_disk_seam(struct sim_disk *disk);

/* Held: nothing completes until released. Not held (at first): everything completes at the next poll, in order. */
void sim_disk_hold(struct sim_disk *disk, bool hold);
/* Every request completes only at the n-th poll after its submission; 0 (at first): at the next. */
void sim_disk_slow(struct sim_disk *disk, unsigned polls);
/* Submitted and not completed, oldest first; NULL beyond the end. */
unsigned sim_disk_pending(const struct sim_disk *disk);
const struct kvf_disk_request *sim_disk_pending_at(const struct sim_disk *disk, unsigned position);
/* Lets a pending request, by position, complete at the next poll; or all that are pending now. */
void sim_disk_release(struct sim_disk *disk, unsigned position);
void sim_disk_release_all(struct sim_disk *disk);

/* Of the reads (or writes) submitted from now on, `after` pass and the next `count` meet the fault. Replaces the plan. */
void sim_disk_fail(struct sim_disk *disk, bool write, enum sim_fault fault, unsigned after, unsigned count);

/* Asked at every submission when set (arg, the request): the fault it meets, before any plan, and in *polls by how many polls it
 * is late. Of a sync any fault means that it fails. NULL: nobody is asked. */
typedef enum sim_fault (*sim_disk_fate_fn)(void *arg, const struct kvf_disk_request *request, unsigned *polls);
void sim_disk_fate(struct sim_disk *disk, sim_disk_fate_fn fate, void *arg);

/* Of the syncs from now on (of ops->sync too), `after` pass and the next `count` fail with ERR_IO; what they were to make safe then
 * is lost at a power cut, and later syncs say OK all the same, as Linux does it. */
void sim_disk_fail_sync(struct sim_disk *disk, unsigned after, unsigned count);

/* The power goes. Of the writes that no sync covered, and of those still pending, each is kept, lost, torn (some of its
 * sectors of 512 bytes) or misdirected (to another multiple of 4096), as `seed` says; misdirect: one in so many, 0 for
 * none. Everything pending and all that follows on this disk fails with ERR_IO and reaches nothing. */
void sim_disk_cut(struct sim_disk *disk, uint64_t seed, unsigned misdirect);

/* The process dies, the machine does not: of the pending writes each is done or not, as `seed` says, nothing is lost of those that
 * completed, and a later power cut still finds them unsynced. All that is pending and follows on this disk fails with ERR_IO. */
void sim_disk_kill(struct sim_disk *disk, uint64_t seed);

/* A power cut, when the n-th write from now on (0: the next) is submitted. */
void sim_disk_cut_at_write(struct sim_disk *disk, unsigned n, uint64_t seed, unsigned misdirect);
bool sim_disk_dead(const struct sim_disk *disk);

/* Completed since creation. */
uint64_t sim_disk_reads(const struct sim_disk *disk);
uint64_t sim_disk_writes(const struct sim_disk *disk);
uint64_t sim_disk_syncs(const struct sim_disk *disk);
/* Most bytes of writes, and most requests, that were ever pending together. */
uint64_t sim_disk_most_write_bytes(const struct sim_disk *disk);
unsigned sim_disk_most_pending(const struct sim_disk *disk);
#endif
