/* The disk seam: asynchronous reads, writes and syncs of one file or device, O_DIRECT. The real ones are io_uring (disk_uring.c)
 * and POSIX calls in a few threads (disk_posix.c); tests have one that fails, tears and flips (tests/sim).
 * One thread at a time; callbacks run inside poll. */
#ifndef KVF_TIERS_DISK_H
#define KVF_TIERS_DISK_H

#include "base/log.h"
#include <kvf/kvf.h>
#include <sys/uio.h>

#define KVF_DISK_PIECES_MAX 64u

struct kvf_disk;

/* The caller's, until done is called, as are its pieces. Buffers, offsets and lengths are multiples of 4096. */
struct kvf_disk_request {
    bool write;
    /* fdatasync: what was written by requests that had called back when this one was submitted survives power loss once it
     * calls back OK. Nothing else of the request is looked at. */
    bool sync;
    void *data; /* one piece of memory, or */
    const struct iovec *iov; /* ... when not NULL: pieces that lie one behind the other on the disk */
    unsigned iov_count;      /* 1..KVF_DISK_PIECES_MAX */
    uint64_t offset;
    uint32_t bytes; /* of all pieces */
    /* OK, ERR_IO (also a short read), ERR_DISK_FULL; `error` says more. */
    void (*done)(void *arg, enum kvf_status status);
    void *arg;
    /* the disk's */
    struct kvf_disk_request *next;
    uint32_t transferred;
    int error; /* of a request that failed: its errno; 0: it came short, at the end of the file */
};

struct kvf_disk_ops {
    const char *name; /* "io_uring", "posix" */
    /* ERR_BUSY when `depth` are in flight (or the disk is closing); ERR_INVALID for a misaligned request. Never calls back
     * inside. The kernel may see the request only at the next poll: poll after a batch of submits. */
    enum kvf_status (*submit)(struct kvf_disk *disk, struct kvf_disk_request *request);
    unsigned (*poll)(struct kvf_disk *disk); /* completions handled; also hands queued submissions to the kernel */
    int (*event_fd)(struct kvf_disk *disk);  /* readable when completions wait */
    /* Hands over and waits for a completion in one system call; may be NULL. For kvf_disk_wait. */
    unsigned (*wait)(struct kvf_disk *disk, uint64_t timeout_ns);
    /* Memory that requests will mostly use (registered buffers); again for more, at any time. Failure is no error: slower only. */
    void (*register_memory)(struct kvf_disk *disk, void *base, size_t bytes);
    /* fdatasync; blocks; for start and stop only. */
    enum kvf_status (*sync)(struct kvf_disk *disk);
    /* Waits for what is in flight (calls back), closes. */
    void (*close)(struct kvf_disk *disk);
};

struct kvf_disk {
    const struct kvf_disk_ops *ops;
};

/* Polls; where nothing completed, waits for that at most `timeout_ns` and polls again. For who has nothing else to wait for:
 * start, stop, benches. Returns the completions handled. */
unsigned kvf_disk_wait(struct kvf_disk *disk, uint64_t timeout_ns);

/* Opens (creates) `path` and makes it at least `bytes` long (rounded down to 4096), allocated; a longer file is left as it
 * is, for it may be a later version's. engine: "auto", "uring", "posix"; depth 1..4096. O_DIRECT where the file system allows
 * it. The file is locked: ERR_BUSY when another process has it. ERR_INVALID, ERR_IO, ERR_DISK_FULL, ERR_NO_MEMORY,
 * ERR_UNSUPPORTED (uring asked for and refused by the kernel or the build). `error` gets one line. After a failure a file
 * that was made is gone again. `log` must outlive the disk. */
enum kvf_status kvf_disk_open(const char *path, uint64_t bytes, const char *engine, unsigned depth, const struct kvf_log *log,
                              char *error, size_t error_size, struct kvf_disk **out);
/* Makes the entry of `path` in its directory survive the loss of power; a failure is logged. */
void kvf_disk_sync_parent(const char *path, const struct kvf_log *log);
/* Over an open descriptor (taken over on success): what kvf_disk_open chooses from. */
enum kvf_status kvf_disk_uring_create(int fd, unsigned depth, const struct kvf_log *log, struct kvf_disk **out);
enum kvf_status kvf_disk_posix_create(int fd, unsigned depth, const struct kvf_log *log, struct kvf_disk **out);
/* Whether io_uring works here, and why not: for `kvf info`. */
bool kvf_disk_uring_usable(char *why, size_t size);
#endif
