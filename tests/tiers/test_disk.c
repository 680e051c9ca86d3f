/* The real disk engines on a temporary file, and everything that opening one can meet. */
#include "tiers/disk.h"
#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SEED 4242u
#define AREA_BYTES (32u << 20)
#define DEPTH 32u
#define SKIPPED 77

static const char *const engines[] = {"uring", "posix"};

struct place {
    char dir[256], path[300];
    struct kvf_log log; /* silent */
    char error[300];
};

/* In the C library's place: which directory was synced last. */
static struct stat synced;
int fsync(int fd)
{
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode))
        synced = st;
    return (int)syscall(SYS_fsync, fd);
}

static void make_place(struct place *p)
{
    const char *tmp = getenv("TMPDIR");
    *p = (struct place){.error = ""};
    snprintf(p->dir, sizeof p->dir, "%s/kvf-disk-XXXXXX", tmp && strlen(tmp) < 200 ? tmp : "/tmp");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->path, sizeof p->path, "%s/area", p->dir);
    kvf_log_init(&p->log, "test", KVF_LOG_ERROR, NULL);
}

static void remove_place(struct place *p)
{
    unlink(p->path);
    assert_int_equal(rmdir(p->dir), 0);
}

static enum kvf_status open_area(struct place *p, uint64_t bytes, const char *engine, unsigned depth, struct kvf_disk **out)
{
    return kvf_disk_open(p->path, bytes, engine, depth, &p->log, p->error, sizeof p->error, out);
}

/* Skips where io_uring is refused: the posix round of the same test has run or will run. */
static struct kvf_disk *open_engine(struct place *p, const char *engine, unsigned depth)
{
    struct kvf_disk *disk = NULL;
    enum kvf_status st = open_area(p, AREA_BYTES, engine, depth, &disk);
    if (st == KVF_ERR_UNSUPPORTED) {
        print_message("%s not tested: %s\n", engine, p->error);
        return NULL;
    }
    assert_int_equal(st, KVF_OK);
    return disk;
}

struct io {
    struct kvf_disk_request request;
    int done; /* times called back */
    enum kvf_status status;
};

static void io_done(void *arg, enum kvf_status status)
{
    struct io *io = arg;
    io->done++;
    io->status = status;
}

static struct kvf_disk_request *io_set(struct io *io, bool write, void *data, uint64_t offset, uint32_t bytes)
{
    *io = (struct io){.request = {.write = write, .data = data, .offset = offset, .bytes = bytes, .done = io_done, .arg = io}};
    return &io->request;
}

/* Waits on the event fd, as a node does, until n callbacks came; at most 20 s. */
static void await(struct kvf_disk *disk, unsigned n)
{
    unsigned handled = disk->ops->poll(disk);
    for (unsigned naps = 0; handled < n && naps < 200; naps++) {
        struct pollfd wait = {.fd = disk->ops->event_fd(disk), .events = POLLIN};
        poll(&wait, 1, 100);
        handled += disk->ops->poll(disk);
    }
    assert_int_equal(handled, n);
}

static void run_one(struct kvf_disk *disk, struct io *io)
{
    assert_int_equal(disk->ops->submit(disk, &io->request), KVF_OK);
    assert_int_equal(io->done, 0);
    await(disk, 1);
    assert_int_equal(io->done, 1);
}

static void fill(uint8_t *data, uint32_t bytes, uint64_t mark)
{
    for (uint32_t i = 0; i < bytes; i += 8) {
        uint64_t word = kvf_mix(mark, i);
        memcpy(data + i, &word, 8);
    }
}

static bool filled(const uint8_t *data, uint32_t bytes, uint64_t mark)
{
    for (uint32_t i = 0; i < bytes; i += 8) {
        uint64_t word = kvf_mix(mark, i);
        if (memcmp(data + i, &word, 8))
            return false;
    }
    return true;
}

/* Writes and reads regions of 4 KiB to 1 MiB at full depth. Half of the buffer is registered memory. */
static void round_trip(struct kvf_disk *disk, uint8_t *buffer, bool write, uint64_t seed)
{
    static const uint32_t sizes[] = {4096, 65536, 1 << 20, 12288};
    struct io io[DEPTH];
    for (unsigned batch = 0; batch < 3; batch++) {
        memset(buffer, write ? 0 : 0xee, (size_t)DEPTH << 20);
        for (unsigned i = 0; i < DEPTH; i++) {
            uint32_t bytes = sizes[(i + batch) % 4];
            uint8_t *data = buffer + ((size_t)i << 20);
            if (write)
                fill(data, bytes, seed + i);
            assert_int_equal(disk->ops->submit(disk, io_set(&io[i], write, data, (uint64_t)i << 20, bytes)), KVF_OK);
        }
        struct io extra;
        assert_int_equal(disk->ops->submit(disk, io_set(&extra, false, buffer, 0, 4096)), KVF_ERR_BUSY);
        await(disk, DEPTH);
        for (unsigned i = 0; i < DEPTH; i++) {
            assert_int_equal(io[i].done, 1);
            assert_int_equal(io[i].status, KVF_OK);
            if (!write)
                assert_true(filled(io[i].request.data, sizes[(i + batch) % 4], seed + i));
        }
        assert_int_equal(disk->ops->poll(disk), 0);
    }
}

static void bytes_come_back_at_depth(void **state)
{
    uint8_t *buffer = aligned_alloc(4096, (size_t)DEPTH << 20);
    print_message("seed %u\n", SEED);
    for (unsigned e = 0; e < 2; e++) {
        struct place p;
        make_place(&p);
        struct kvf_disk *disk = open_engine(&p, engines[e], DEPTH);
        if (disk) {
            disk->ops->register_memory(disk, buffer, (size_t)DEPTH << 19);
            round_trip(disk, buffer, true, SEED);
            assert_int_equal(disk->ops->sync(disk), KVF_OK);
            struct pollfd idle = {.fd = disk->ops->event_fd(disk), .events = POLLIN};
            assert_int_equal(poll(&idle, 1, 0), 0);
            round_trip(disk, buffer, false, SEED);
            disk->ops->close(disk);
        }
        remove_place(&p);
    }
    free(buffer);
}

static void misaligned_requests_are_refused(void **state)
{
    uint8_t *buffer = aligned_alloc(4096, 16384);
    for (unsigned e = 0; e < 2; e++) {
        struct place p;
        make_place(&p);
        struct kvf_disk *disk = open_engine(&p, engines[e], 4);
        struct io io;
        if (disk) {
            assert_int_equal(disk->ops->submit(disk, io_set(&io, false, buffer + 8, 0, 4096)), KVF_ERR_INVALID);
            assert_int_equal(disk->ops->submit(disk, io_set(&io, false, buffer, 512, 4096)), KVF_ERR_INVALID);
            assert_int_equal(disk->ops->submit(disk, io_set(&io, false, buffer, 0, 100)), KVF_ERR_INVALID);
            assert_int_equal(disk->ops->submit(disk, io_set(&io, false, buffer, 0, 0)), KVF_ERR_INVALID);
            assert_int_equal(disk->ops->submit(disk, io_set(&io, false, buffer, UINT64_MAX - 4095, 4096)), KVF_ERR_INVALID);
            assert_int_equal(disk->ops->poll(disk), 0);
            disk->ops->close(disk);
        }
        remove_place(&p);
    }
    free(buffer);
}

static void reads_past_the_end_are_errors(void **state)
{
    uint8_t *buffer = aligned_alloc(4096, 16384);
    for (unsigned e = 0; e < 2; e++) {
        struct place p;
        make_place(&p);
        struct kvf_disk *disk = open_engine(&p, engines[e], 4);
        struct io io;
        if (disk) {
            io_set(&io, false, buffer, AREA_BYTES, 4096);
            run_one(disk, &io);
            assert_int_equal(io.status, KVF_ERR_IO);
            io_set(&io, false, buffer, AREA_BYTES - 4096, 16384);
            run_one(disk, &io);
            assert_int_equal(io.status, KVF_ERR_IO);
            /* Cut behind our back, inside a unit. */
            assert_int_equal(truncate(p.path, 4096 + 100), 0);
            io_set(&io, false, buffer, 0, 8192);
            run_one(disk, &io);
            assert_int_equal(io.status, KVF_ERR_IO);
            io_set(&io, false, buffer, 0, 4096);
            run_one(disk, &io);
            assert_int_equal(io.status, KVF_OK);
            disk->ops->close(disk);
        }
        remove_place(&p);
    }
    free(buffer);
}

/* A write beyond the process's limit of file size: the kernel's EFBIG stands for a disk that has no room. */
static void a_write_without_room_says_disk_full(void **state)
{
    uint8_t *buffer = aligned_alloc(4096, 8192);
    struct rlimit before, small;
    memset(buffer, 7, 8192);
    getrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_IGN);
    for (unsigned e = 0; e < 2; e++) {
        struct place p;
        make_place(&p);
        struct kvf_disk *disk = open_engine(&p, engines[e], 4);
        struct io io;
        if (disk) {
            small = (struct rlimit){.rlim_cur = AREA_BYTES, .rlim_max = before.rlim_max};
            assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
            io_set(&io, true, buffer, AREA_BYTES, 8192);
            run_one(disk, &io);
            assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
            assert_int_equal(io.status, KVF_ERR_DISK_FULL);
            disk->ops->close(disk);
        }
        remove_place(&p);
    }
    signal(SIGXFSZ, SIG_DFL);
    free(buffer);
}

static void close_finishes_what_is_in_flight(void **state)
{
    uint8_t *buffer = aligned_alloc(4096, (size_t)DEPTH << 16);
    memset(buffer, 1, (size_t)DEPTH << 16);
    for (unsigned e = 0; e < 2; e++) {
        struct place p;
        make_place(&p);
        struct kvf_disk *disk = open_engine(&p, engines[e], DEPTH);
        struct io io[DEPTH];
        if (disk) {
            for (unsigned i = 0; i < DEPTH; i++)
                assert_int_equal(
                    disk->ops->submit(disk, io_set(&io[i], i % 2, buffer + ((size_t)i << 16), (uint64_t)i << 16, 65536)), KVF_OK);
            disk->ops->close(disk);
            for (unsigned i = 0; i < DEPTH; i++) {
                assert_int_equal(io[i].done, 1);
                assert_int_equal(io[i].status, KVF_OK);
            }
        }
        remove_place(&p);
    }
    free(buffer);
}

/* A callback that submits its own request again: it goes on without another submit from outside. */
struct chain {
    struct io io;
    struct kvf_disk *disk;
    unsigned left;
};

static void chain_done(void *arg, enum kvf_status status)
{
    struct chain *c = arg;
    c->io.status = status;
    if (--c->left) {
        c->io.request.offset += 4096;
        assert_int_equal(c->disk->ops->submit(c->disk, &c->io.request), KVF_OK);
    }
}

static void callbacks_may_submit_again(void **state)
{
    uint8_t *buffer = aligned_alloc(4096, 4096);
    for (unsigned e = 0; e < 2; e++) {
        struct place p;
        make_place(&p);
        struct kvf_disk *disk = open_engine(&p, engines[e], 1);
        struct chain c = {.disk = disk, .left = 50};
        if (disk) {
            io_set(&c.io, false, buffer, 0, 4096);
            c.io.request.done = chain_done;
            c.io.request.arg = &c;
            assert_int_equal(disk->ops->submit(disk, &c.io.request), KVF_OK);
            await(disk, 50);
            assert_int_equal(c.left, 0);
            disk->ops->close(disk);
        }
        remove_place(&p);
    }
    free(buffer);
}

/* The owner's lock moves between threads, and a thread that submitted may end before its requests do. */
struct shared {
    struct kvf_disk *disk;
    pthread_mutex_t mutex;
    uint8_t *buffer;
    struct io io[DEPTH];
};

static void *submit_some(void *arg)
{
    struct shared *s = arg;
    pthread_mutex_lock(&s->mutex);
    for (unsigned i = 0; i < DEPTH; i++)
        if (s->disk->ops->submit(s->disk, io_set(&s->io[i], false, s->buffer + (i << 16), (uint64_t)i << 16, 65536)) != KVF_OK)
            s->io[i].status = KVF_ERR_INTERNAL; /* the main thread will miss it */
    s->disk->ops->poll(s->disk);
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

static void threads_may_take_turns(void **state)
{
    for (unsigned e = 0; e < 2; e++) {
        struct place p;
        struct shared s = {.mutex = PTHREAD_MUTEX_INITIALIZER, .buffer = aligned_alloc(4096, (size_t)DEPTH << 16)};
        make_place(&p);
        s.disk = open_engine(&p, engines[e], DEPTH);
        for (unsigned round = 0; s.disk && round < 20; round++) {
            pthread_t thread;
            unsigned done = 0;
            assert_int_equal(pthread_create(&thread, NULL, submit_some, &s), 0);
            if (round % 2)
                pthread_join(thread, NULL);
            for (unsigned naps = 0; done < DEPTH && naps < 200; naps++) {
                struct pollfd wait = {.fd = s.disk->ops->event_fd(s.disk), .events = POLLIN};
                poll(&wait, 1, 100);
                pthread_mutex_lock(&s.mutex);
                s.disk->ops->poll(s.disk);
                done = 0;
                for (unsigned i = 0; i < DEPTH; i++)
                    done += s.io[i].done == 1 && s.io[i].status == KVF_OK;
                pthread_mutex_unlock(&s.mutex);
            }
            if (round % 2 == 0)
                pthread_join(thread, NULL);
            assert_int_equal(done, DEPTH);
            memset(s.io, 0, sizeof s.io);
        }
        if (s.disk)
            s.disk->ops->close(s.disk);
        remove_place(&p);
        free(s.buffer);
    }
}

static void a_second_open_is_busy_until_close(void **state)
{
    for (unsigned e = 0; e < 2; e++) {
        struct place p;
        make_place(&p);
        struct kvf_disk *disk = open_engine(&p, engines[e], 4), *second;
        for (unsigned round = 0; disk && round < 5; round++) {
            assert_int_equal(open_area(&p, AREA_BYTES, "auto", 4, &second), KVF_ERR_BUSY);
            assert_non_null(strstr(p.error, p.path));
            assert_non_null(strstr(p.error, "another process"));
            assert_int_equal(access(p.path, F_OK), 0);
            disk->ops->close(disk);
            assert_int_equal(open_area(&p, AREA_BYTES, engines[e], 4, &disk), KVF_OK);
        }
        if (disk)
            disk->ops->close(disk);
        remove_place(&p);
    }
}

static void the_area_is_allocated_and_never_cut(void **state)
{
    struct place p;
    struct kvf_disk *disk;
    struct stat st;
    make_place(&p);
    assert_int_equal(open_area(&p, (8u << 20) + 100, "auto", 4, &disk), KVF_OK);
    disk->ops->close(disk);
    assert_int_equal(stat(p.path, &st), 0);
    assert_int_equal(st.st_size, 8u << 20);
    assert_int_equal(st.st_mode & 0777, 0600);
    if (st.st_blocks * 512ull < 8u << 20)
        print_message("the file system did not allocate: %lld blocks\n", (long long)st.st_blocks);
    assert_int_equal(open_area(&p, 16u << 20, "auto", 4, &disk), KVF_OK);
    disk->ops->close(disk);
    assert_int_equal(open_area(&p, 4u << 20, "auto", 4, &disk), KVF_OK);
    disk->ops->close(disk);
    assert_int_equal(stat(p.path, &st), 0);
    assert_int_equal(st.st_size, 16u << 20);
    remove_place(&p);
}

/* fdatasync saves a file's bytes, not its name. */
static void the_areas_name_survives_too(void **state)
{
    struct place p;
    struct kvf_disk *disk;
    struct stat st;
    make_place(&p);
    assert_int_equal(stat(p.dir, &st), 0);
    for (unsigned n = 0; n < 2; n++) {
        synced = (struct stat){0};
        assert_int_equal(open_area(&p, AREA_BYTES, "posix", 1, &disk), KVF_OK);
        assert_true(synced.st_ino == st.st_ino && synced.st_dev == st.st_dev);
        disk->ops->close(disk);
    }
    remove_place(&p);
}

static void bad_arguments_and_paths_are_refused(void **state)
{
    struct place p;
    struct kvf_disk *disk;
    make_place(&p);
    assert_int_equal(open_area(&p, 100, "auto", 4, &disk), KVF_ERR_INVALID);
    assert_int_equal(open_area(&p, UINT64_MAX, "auto", 4, &disk), KVF_ERR_INVALID);
    assert_int_equal(open_area(&p, AREA_BYTES, "libaio", 4, &disk), KVF_ERR_INVALID);
    assert_int_equal(open_area(&p, AREA_BYTES, "auto", 0, &disk), KVF_ERR_INVALID);
    assert_int_equal(open_area(&p, AREA_BYTES, "auto", 4097, &disk), KVF_ERR_INVALID);
    assert_non_null(strstr(p.error, p.path));
    assert_int_equal(access(p.path, F_OK), -1);

    struct place absent = p;
    snprintf(absent.path, sizeof absent.path, "%s/no/such", p.dir);
    assert_int_equal(open_area(&absent, AREA_BYTES, "auto", 4, &disk), KVF_ERR_IO);
    assert_non_null(strstr(absent.error, "No such file"));
    struct place directory = p;
    snprintf(directory.path, sizeof directory.path, "%s", p.dir);
    assert_int_equal(open_area(&directory, AREA_BYTES, "auto", 4, &disk), KVF_ERR_IO);
    struct place device = p;
    snprintf(device.path, sizeof device.path, "/dev/null");
    assert_int_equal(open_area(&device, AREA_BYTES, "auto", 4, &disk), KVF_ERR_IO);
    assert_non_null(strstr(device.error, "neither"));
    remove_place(&p);
}

/* Runs `body` in a child, for what must not stay with this process (mounts, another user). Its exit code. */
static int in_child(int (*body)(struct place *), struct place *p)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(body(p));
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static bool mount_tmpfs(const struct place *p, const char *options, unsigned long flags)
{
    return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("tmpfs", p->dir, "tmpfs", flags, options) == 0;
}

static int full_disk(struct place *p)
{
    struct kvf_disk *disk;
    struct stat st;
    if (!mount_tmpfs(p, "size=4m", 0))
        return SKIPPED;
    if (open_area(p, AREA_BYTES, "auto", 4, &disk) != KVF_ERR_DISK_FULL)
        return 1;
    if (!strstr(p->error, p->path) || !strstr(p->error, "32.0 MiB asked") || !strstr(p->error, "MiB free"))
        return 2;
    if (strchr(p->error, '\n'))
        return 2;
    if (stat(p->path, &st) == 0)
        return 3; /* the file that was made is gone */
    if (open_area(p, 2u << 20, "auto", 4, &disk) != KVF_OK)
        return 4;
    disk->ops->close(disk);
    if (open_area(p, AREA_BYTES, "auto", 4, &disk) != KVF_ERR_DISK_FULL)
        return 5;
    return stat(p->path, &st) == 0 && st.st_size == 2 << 20 ? 0 : 6; /* an older one is as before */
}

static int read_only_file_system(struct place *p)
{
    struct kvf_disk *disk;
    if (!mount_tmpfs(p, "size=4m", MS_RDONLY))
        return SKIPPED;
    if (open_area(p, 1u << 20, "auto", 4, &disk) != KVF_ERR_IO)
        return 1;
    return strstr(p->error, "Read-only file system") ? 0 : 2;
}

static int directory_without_permission(struct place *p)
{
    struct kvf_disk *disk;
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
        return SKIPPED;
    if (open_area(p, 1u << 20, "auto", 4, &disk) != KVF_ERR_IO)
        return 1;
    return strstr(p->error, "Permission denied") ? 0 : 2;
}

/* From here on the system call fails with `error`; with `second` only when its second argument is that. */
static bool refuse_call(unsigned call, unsigned second, int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, second ? 0 : 2, 0),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, second, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int io_uring_refused(struct place *p)
{
    struct kvf_disk *disk;
    char why[128];
    if (!refuse_call(SYS_io_uring_setup, 0, EPERM))
        return SKIPPED;
    if (kvf_disk_uring_usable(why, sizeof why) || !why[0])
        return 1;
    if (open_area(p, AREA_BYTES, "uring", 4, &disk) != KVF_ERR_UNSUPPORTED || !strstr(p->error, why))
        return 2;
    if (access(p->path, F_OK) == 0)
        return 2;
    if (open_area(p, AREA_BYTES, "auto", 4, &disk) != KVF_OK || strcmp(disk->ops->name, "posix") != 0)
        return 3;
    disk->ops->close(disk);
    return 0;
}

/* The kernel has no memory for a hand-over of two: those requests end, as does the one behind them, and the ring works on. */
static int io_uring_hand_over_refused(struct place *p)
{
    struct kvf_disk *disk;
    struct io io[4];
    char why[128];
    uint8_t *buffer = aligned_alloc(4096, 4096);
    if (!kvf_disk_uring_usable(why, sizeof why) || open_area(p, AREA_BYTES, "uring", 8, &disk) != KVF_OK)
        return SKIPPED;
    if (!refuse_call(SYS_io_uring_enter, 2, EAGAIN))
        return SKIPPED;
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < 3; i++)
            if (disk->ops->submit(disk, io_set(&io[i], false, buffer, 4096 * i, 4096)) != KVF_OK)
                return 1;
        if (disk->ops->poll(disk) != 3)
            return 2;
        for (unsigned i = 0; i < 3; i++)
            if (io[i].done != 1 || io[i].status != KVF_ERR_IO)
                return 3;
        if (disk->ops->submit(disk, io_set(&io[3], false, buffer, 0, 4096)) != KVF_OK)
            return 4;
        unsigned handled = 0;
        for (unsigned naps = 0; !handled && naps < 2000; naps++, usleep(1000))
            handled = disk->ops->poll(disk);
        if (handled != 1 || io[3].done != 1 || io[3].status != KVF_OK)
            return 5;
        struct pollfd idle = {.fd = disk->ops->event_fd(disk), .events = POLLIN};
        for (unsigned naps = 0; poll(&idle, 1, 0) != 0; naps++) {
            if (naps == 100)
                return 6; /* nothing is left that would wake the owner for ever */
            disk->ops->poll(disk);
        }
    }
    disk->ops->close(disk);
    free(buffer);
    return 0;
}

static void expect_child(int (*body)(struct place *), mode_t mode, const char *why_skipped)
{
    struct place p;
    make_place(&p);
    assert_int_equal(chmod(p.dir, mode), 0);
    int code = in_child(body, &p);
    assert_int_equal(chmod(p.dir, 0700), 0);
    remove_place(&p);
    if (code == SKIPPED) {
        print_message("not tested here: %s\n", why_skipped);
        skip();
    }
    assert_int_equal(code, 0);
}

static void a_full_disk_gives_one_clear_line(void **state)
{
    expect_child(full_disk, 0700, "no mount namespace of its own");
}

static void a_read_only_file_system_is_an_error(void **state)
{
    expect_child(read_only_file_system, 0700, "no mount namespace of its own");
}

static void a_directory_without_permission_is_an_error(void **state)
{
    expect_child(directory_without_permission, 0555, "the user cannot be changed");
}

static void refused_io_uring_falls_back_to_threads(void **state)
{
    expect_child(io_uring_refused, 0700, "no seccomp filters");
}

static void a_refused_hand_over_ends_its_requests(void **state)
{
    expect_child(io_uring_hand_over_refused, 0700, "no io_uring or no seccomp filters");
}

static void usable_says_why_not(void **state)
{
    char why[128] = "unset";
    bool usable = kvf_disk_uring_usable(why, sizeof why);
    print_message("io_uring %s %s\n", usable ? "usable" : "not usable:", why);
    assert_int_equal(usable, why[0] == 0);
    struct place p;
    struct kvf_disk *disk;
    make_place(&p);
    assert_int_equal(open_area(&p, AREA_BYTES, "auto", 4, &disk), KVF_OK);
    assert_string_equal(disk->ops->name, usable ? "io_uring" : "posix");
    disk->ops->close(disk);
    if (!usable) {
        unlink(p.path);
        assert_int_equal(open_area(&p, AREA_BYTES, "uring", 4, &disk), KVF_ERR_UNSUPPORTED);
        assert_non_null(strstr(p.error, why));
        assert_int_equal(access(p.path, F_OK), -1);
    }
    remove_place(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_back_at_depth),
        cmocka_unit_test(misaligned_requests_are_refused),
        cmocka_unit_test(reads_past_the_end_are_errors),
        cmocka_unit_test(a_write_without_room_says_disk_full),
        cmocka_unit_test(close_finishes_what_is_in_flight),
        cmocka_unit_test(callbacks_may_submit_again),
        cmocka_unit_test(threads_may_take_turns),
        cmocka_unit_test(a_second_open_is_busy_until_close),
        cmocka_unit_test(the_area_is_allocated_and_never_cut),
        cmocka_unit_test(the_areas_name_survives_too),
        cmocka_unit_test(bad_arguments_and_paths_are_refused),
        cmocka_unit_test(a_full_disk_gives_one_clear_line),
        cmocka_unit_test(a_read_only_file_system_is_an_error),
        cmocka_unit_test(a_directory_without_permission_is_an_error),
        cmocka_unit_test(refused_io_uring_falls_back_to_threads),
        cmocka_unit_test(a_refused_hand_over_ends_its_requests),
        cmocka_unit_test(usable_says_why_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
