/* Opening the area file or device: lock, size, O_DIRECT, choice of the engine; and what the engines share. */
#include "tiers/disk.h"
#include "base/env.h"
#include "tiers/disk_engine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define FAILURES_LOGGED_MAX 8u

struct opening {
    const char *path;
    uint64_t bytes;
    const struct kvf_log *log;
    char *error;
    size_t error_size;
    int fd;
    bool created;
    bool grown; /* from old_bytes */
    uint64_t old_bytes;
};

__attribute__((format(printf, 2, 3))) static void explain(struct opening *o, const char *format, ...)
{
    va_list args;
    if (!o->error || !o->error_size)
        return;
    va_start(args, format);
    vsnprintf(o->error, o->error_size, format, args);
    va_end(args);
}

static double mebibytes(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

/* Whether we made the file matters for clearing up after a failure. */
static enum kvf_status open_file(struct opening *o)
{
    const int flags = O_RDWR | O_CLOEXEC | O_NOCTTY;
    for (int tries = 0; tries < 8; tries++) {
        o->fd = open(o->path, flags);
        if (o->fd < 0 && errno == ENOENT) {
            o->fd = open(o->path, flags | O_CREAT | O_EXCL, 0600);
            o->created = o->fd >= 0;
        }
        /* EEXIST: somebody made it between the two calls. */
        if (o->fd >= 0 || (errno != EINTR && errno != EEXIST))
            break;
    }
    if (o->fd >= 0)
        return KVF_OK;
    int e = errno;
    explain(o, "SSD area %s: cannot be opened for reading and writing: %s", o->path, strerror(e));
    return e == ENOSPC || e == EDQUOT ? KVF_ERR_DISK_FULL : KVF_ERR_IO;
}

static enum kvf_status lock_file(struct opening *o)
{
    int rc;
    do {
        rc = flock(o->fd, LOCK_EX | LOCK_NB);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0)
        return KVF_OK;
    if (errno == EWOULDBLOCK) {
        explain(o, "SSD area %s: another process has it; give every node a path of its own (ssd.path)", o->path);
        return KVF_ERR_BUSY;
    }
    explain(o, "SSD area %s: cannot be locked: %s", o->path, strerror(errno));
    return KVF_ERR_IO;
}

static enum kvf_status explain_full(struct opening *o, uint64_t free_bytes)
{
    explain(o, "SSD area %s: %.1f MiB asked, %.1f MiB free: free some space, lower ssd.bytes or choose another ssd.path", o->path,
            mebibytes(o->bytes), mebibytes(free_bytes));
    return KVF_ERR_DISK_FULL;
}

/* Allocates the file's blocks now, so that no later write can meet a full disk. A longer file is left as it is: it may be
 * a later version's, which only its superblock tells. */
static enum kvf_status size_file(struct opening *o)
{
    struct stat st;
    if (fstat(o->fd, &st) < 0) {
        explain(o, "SSD area %s: %s", o->path, strerror(errno));
        return KVF_ERR_IO;
    }
    if (S_ISBLK(st.st_mode)) {
        off_t end = lseek(o->fd, 0, SEEK_END);
        return end >= 0 && (uint64_t)end >= o->bytes ? KVF_OK : explain_full(o, end < 0 ? 0 : (uint64_t)end);
    }
    if (!S_ISREG(st.st_mode)) {
        explain(o, "SSD area %s: it is neither a file nor a block device", o->path);
        return KVF_ERR_IO;
    }
    o->old_bytes = (uint64_t)st.st_size;
    o->grown = o->old_bytes < o->bytes;
    /* Asked first: a reservation that fails has filled the disk for a moment, to the grief of everybody else on it. */
    struct statvfs fs;
    uint64_t free_bytes = fstatvfs(o->fd, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : 0;
    if (o->bytes > (uint64_t)st.st_blocks * 512 + free_bytes)
        return explain_full(o, free_bytes);
    int e;
    do {
        e = fallocate(o->fd, 0, 0, (off_t)o->bytes) < 0 ? errno : 0;
    } while (e == EINTR);
    if (e == EOPNOTSUPP || e == ENOSYS) {
        kvf_log_warn(o->log, "SSD area %s: its file system cannot reserve space; a full disk will show at a write", o->path);
        e = o->grown && ftruncate(o->fd, (off_t)o->bytes) < 0 ? errno : 0;
    }
    if (e == 0) {
        kvf_disk_sync_parent(o->path, o->log);
        return KVF_OK;
    }
    if (e == ENOSPC || e == EDQUOT || e == EFBIG)
        return explain_full(o, free_bytes);
    explain(o, "SSD area %s: cannot be made %.1f MiB long: %s", o->path, mebibytes(o->bytes), strerror(e));
    return KVF_ERR_IO;
}

/* Leaves nothing behind of an attempt that failed: neither a new file nor blocks that a refused reservation took. */
static void undo(struct opening *o)
{
    if (o->created)
        (void)!unlink(o->path);
    else if (o->grown)
        (void)!ftruncate(o->fd, (off_t)o->old_bytes);
    close(o->fd);
}

/* A file that was made, and not its bytes alone, must outlive the loss of power. Every time: who made it may have been killed
 * before he came here. */
void kvf_disk_sync_parent(const char *path, const struct kvf_log *log)
{
    const char *slash = strrchr(path, '/');
    char parent[PATH_MAX] = ".";
    size_t n = !slash ? 1 : slash == path ? 1 : (size_t)(slash - path);
    if (n >= sizeof parent)
        return;
    if (slash) {
        memcpy(parent, path, n);
        parent[n] = 0;
    }
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        kvf_log_warn(log, "SSD area %s: its directory cannot be synced (%s); the loss of power may cost it", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* Set after opening, because an open that refuses the flag may have made the file all the same. */
static void use_direct(const struct opening *o)
{
    int flags = fcntl(o->fd, F_GETFL);
    if (flags < 0 || fcntl(o->fd, F_SETFL, flags | O_DIRECT) < 0)
        kvf_log_warn(o->log, "SSD area %s: its file system has no O_DIRECT; reads and writes go through the page cache", o->path);
}

static enum kvf_status start_engine(struct opening *o, const char *engine, unsigned depth, struct kvf_disk **out)
{
    char why[128] = "";
    if (strcmp(engine, "posix") != 0) {
        enum kvf_status st = KVF_ERR_UNSUPPORTED;
        if (kvf_disk_uring_usable(why, sizeof why))
            st = kvf_disk_uring_create(o->fd, depth, o->log, out);
        if (st != KVF_ERR_UNSUPPORTED)
            return st;
        if (strcmp(engine, "uring") == 0) {
            explain(o, "SSD area %s: io_uring was asked for but %s; set ssd.engine to auto or posix", o->path,
                    why[0] ? why : "the kernel refused the ring");
            return st;
        }
        kvf_log_info(o->log, "SSD area %s: no io_uring (%s), using threads", o->path, why[0] ? why : "the kernel refused the ring");
    }
    return kvf_disk_posix_create(o->fd, depth, o->log, out);
}

enum kvf_status kvf_disk_open(const char *path, uint64_t bytes, const char *engine, unsigned depth, const struct kvf_log *log,
                              char *error, size_t error_size, struct kvf_disk **out)
{
    assert(path && engine && log && out);
    struct opening o = {.path = path, .bytes = bytes - bytes % KVF_DISK_ALIGN, .log = log, .error = error, .error_size = error_size,
                        .fd = -1};
    if (error && error_size)
        error[0] = 0;
    bool known = !strcmp(engine, "auto") || !strcmp(engine, "uring") || !strcmp(engine, "posix");
    if (!path[0] || o.bytes == 0 || o.bytes > INT64_MAX || depth == 0 || depth > KVF_DISK_DEPTH_MAX || !known) {
        explain(&o, "SSD area %s: size, depth or engine \"%s\" is out of bounds", path, engine);
        return KVF_ERR_INVALID;
    }
    enum kvf_status st = open_file(&o);
    if (st != KVF_OK)
        return st;
    st = lock_file(&o);
    if (st != KVF_OK) {
        /* Not ours: whoever holds the lock may be filling a file that we made a moment before it was locked. */
        close(o.fd);
        return st;
    }
    st = size_file(&o);
    if (st == KVF_OK) {
        use_direct(&o);
        st = start_engine(&o, engine, depth, out);
    }
    if (st == KVF_OK)
        return KVF_OK;
    if (error && error_size && !error[0])
        explain(&o, "SSD area %s: %s", path, kvf_status_text(st));
    undo(&o);
    return st;
}

static bool piece_valid(const struct iovec *v)
{
    return v->iov_base && v->iov_len > 0 && (uintptr_t)v->iov_base % KVF_DISK_ALIGN == 0 && v->iov_len % KVF_DISK_ALIGN == 0;
}

bool kvf_disk_request_valid(const struct kvf_disk_request *r)
{
    if (r->sync)
        return true;
    struct iovec one = {.iov_base = r->data, .iov_len = r->bytes};
    uint64_t sum = 0;
    unsigned count = r->iov ? r->iov_count : 1;
    for (unsigned i = 0; i < count && i < KVF_DISK_PIECES_MAX; i++) {
        const struct iovec *v = r->iov ? &r->iov[i] : &one;
        if (!piece_valid(v))
            return false;
        sum += v->iov_len;
    }
    return sum == r->bytes && r->bytes > 0 && count <= KVF_DISK_PIECES_MAX && r->offset % KVF_DISK_ALIGN == 0 &&
           r->offset <= (uint64_t)INT64_MAX - r->bytes;
}

struct iovec kvf_disk_request_rest(const struct kvf_disk_request *r)
{
    size_t skip = r->transferred;
    if (!r->iov)
        return (struct iovec){.iov_base = (uint8_t *)r->data + skip, .iov_len = r->bytes - skip};
    unsigned i = 0;
    for (; skip >= r->iov[i].iov_len; i++) {
        assert(i + 1 < r->iov_count);
        skip -= r->iov[i].iov_len;
    }
    return (struct iovec){.iov_base = (uint8_t *)r->iov[i].iov_base + skip, .iov_len = r->iov[i].iov_len - skip};
}

enum kvf_status kvf_disk_request_step(struct kvf_disk_request *r, int64_t result, unsigned *tries)
{
    r->error = result < 0 ? (int)-result : 0;
    if (result == -EINTR || result == -EAGAIN || result == -ECANCELED)
        /* ECANCELED: the thread that submitted has ended, and the kernel gives its waiting requests back. */
        return ++*tries < KVF_DISK_TRIES_MAX ? KVF_IN_PROGRESS : KVF_ERR_IO;
    if (result == -ENOSPC || result == -EDQUOT || result == -EFBIG)
        return KVF_ERR_DISK_FULL;
    if (r->sync)
        return result == 0 ? KVF_OK : KVF_ERR_IO;
    if (result <= 0 || result > (int64_t)(r->bytes - r->transferred))
        return KVF_ERR_IO;
    r->transferred += (uint32_t)result;
    if (r->transferred == r->bytes)
        return KVF_OK;
    /* A piece that ends inside a unit is the end of the file: it could not be continued with O_DIRECT either. */
    return r->transferred % KVF_DISK_ALIGN ? KVF_ERR_IO : KVF_IN_PROGRESS;
}

void kvf_disk_log_failure(const struct kvf_log *log, const char *engine, const struct kvf_disk_request *r, int64_t result,
                          unsigned *logged)
{
    if (++*logged > FAILURES_LOGGED_MAX)
        return;
    kvf_log_error(log, "SSD %s of %u bytes at %llu failed after %u (%s): %s%s",
                  r->sync ? "fdatasync" : r->write ? "write" : "read", r->bytes,
                  (unsigned long long)r->offset, r->transferred, engine, result < 0 ? strerror((int)-result) : "end of the file",
                  *logged == FAILURES_LOGGED_MAX ? "; further failures are not logged" : "");
}

unsigned kvf_disk_wait(struct kvf_disk *disk, uint64_t timeout_ns)
{
    if (disk->ops->wait)
        return disk->ops->wait(disk, timeout_ns);
    unsigned handled = disk->ops->poll(disk);
    if (handled)
        return handled;
    struct pollfd readable = {.fd = disk->ops->event_fd(disk), .events = POLLIN};
    (void)poll(&readable, 1, (int)((timeout_ns + KVF_MS - 1) / KVF_MS));
    return disk->ops->poll(disk);
}

enum kvf_status kvf_disk_sync_fd(int fd, const struct kvf_log *log)
{
    int rc;
    do {
        rc = fdatasync(fd);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0)
        return KVF_OK;
    int e = errno;
    kvf_log_error(log, "SSD fdatasync failed: %s", strerror(e));
    return e == ENOSPC || e == EDQUOT ? KVF_ERR_DISK_FULL : KVF_ERR_IO;
}

void kvf_disk_close_fd(int fd)
{
    (void)!flock(fd, LOCK_UN);
    close(fd);
}
