/* The disk by preadv, pwritev and fdatasync in a few threads: for machines, containers and builds without io_uring.
 *
 *   submit --> work list --> a thread --> done list --> poll --> callback
 *
 * Both lists and the slots in them are under one mutex; the owner's fields are its own. The event fd is readable exactly
 * while the done list is not empty (`signalled`), so an idle poll makes no system call. */
#include "tiers/disk_engine.h"
#include "base/env.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define THREADS_MAX 8u
#define NAP_NS 1000000 /* between two tries of a request that was refused for now */

struct slot {
    struct kvf_disk_request *request;
    enum kvf_status status;
    int64_t result; /* of the last call, for the log */
    struct slot *next;
};

struct list {
    struct slot *head, **tail;
};

struct posix {
    struct kvf_disk disk;
    int fd, event_fd;
    const struct kvf_log *log;

    /* the owner's */
    struct slot *slots, *free;
    unsigned in_flight;
    unsigned failures_logged;
    bool closing;

    /* under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t work_waits;
    struct list work, done;
    bool signalled, stop;

    unsigned threads;
    pthread_t thread[THREADS_MAX];
};

static void list_clear(struct list *l)
{
    l->head = NULL;
    l->tail = &l->head;
}

static void list_push(struct list *l, struct slot *s)
{
    s->next = NULL;
    *l->tail = s;
    l->tail = &s->next;
}

static struct slot *list_pop(struct list *l)
{
    struct slot *s = l->head;
    if (s && !(l->head = s->next))
        l->tail = &l->head;
    return s;
}

/* All pieces at once; after a short transfer the rest piece by piece. */
static ssize_t move_bytes(int fd, const struct kvf_disk_request *r)
{
    off_t offset = (off_t)(r->offset + r->transferred);
    struct iovec rest = kvf_disk_request_rest(r);
    const struct iovec *v = r->iov && !r->transferred ? r->iov : &rest;
    int count = r->iov && !r->transferred ? (int)r->iov_count : 1;
    return r->write ? pwritev(fd, v, count, offset) : preadv(fd, v, count, offset);
}

/* Does one request to its end. */
static void perform(const struct posix *p, struct slot *s)
{
    struct kvf_disk_request *r = s->request;
    unsigned tries = 0;
    do {
        if (tries)
            nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
        ssize_t n = r->sync ? fdatasync(p->fd) : move_bytes(p->fd, r);
        s->result = n < 0 ? -errno : n;
        s->status = kvf_disk_request_step(r, s->result, &tries);
    } while (s->status == KVF_IN_PROGRESS);
}

static void *serve(void *arg)
{
    struct posix *p = arg;
    pthread_mutex_lock(&p->mutex);
    for (;;) {
        struct slot *s = list_pop(&p->work);
        if (!s && p->stop)
            break;
        if (!s) {
            pthread_cond_wait(&p->work_waits, &p->mutex);
            continue;
        }
        pthread_mutex_unlock(&p->mutex);
        perform(p, s);
        pthread_mutex_lock(&p->mutex);
        list_push(&p->done, s);
        if (!p->signalled) {
            p->signalled = true;
            (void)!write(p->event_fd, &(uint64_t){1}, sizeof(uint64_t));
        }
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

static enum kvf_status posix_submit(struct kvf_disk *disk, struct kvf_disk_request *r)
{
    struct posix *p = (struct posix *)disk;
    if (!kvf_disk_request_valid(r))
        return KVF_ERR_INVALID;
    if (!p->free || p->closing)
        return KVF_ERR_BUSY;
    struct slot *s = p->free;
    p->free = s->next;
    r->transferred = 0;
    s->request = r;
    p->in_flight++;
    pthread_mutex_lock(&p->mutex);
    list_push(&p->work, s);
    pthread_mutex_unlock(&p->mutex);
    pthread_cond_signal(&p->work_waits);
    return KVF_OK;
}

/* Takes the whole done list; more that is done meanwhile raises the event fd again. */
static struct slot *take_done(struct posix *p)
{
    pthread_mutex_lock(&p->mutex);
    struct slot *s = p->done.head;
    list_clear(&p->done);
    if (p->signalled) {
        uint64_t count;
        (void)!read(p->event_fd, &count, sizeof count);
        p->signalled = false;
    }
    pthread_mutex_unlock(&p->mutex);
    return s;
}

static unsigned posix_poll(struct kvf_disk *disk)
{
    struct posix *p = (struct posix *)disk;
    if (!p->in_flight)
        return 0;
    unsigned handled = 0;
    for (struct slot *s = take_done(p), *next; s; s = next, handled++) {
        struct kvf_disk_request *r = s->request;
        enum kvf_status status = s->status;
        next = s->next;
        if (status != KVF_OK)
            kvf_disk_log_failure(p->log, "posix", r, s->result, &p->failures_logged);
        s->next = p->free;
        p->free = s;
        assert(p->in_flight > 0);
        p->in_flight--;
        r->done(r->arg, status);
    }
    return handled;
}

static int posix_event_fd(struct kvf_disk *disk)
{
    return ((struct posix *)disk)->event_fd;
}

static void posix_register_memory(struct kvf_disk *disk, void *base, size_t bytes)
{
    /* pread and pwrite know no registered memory. */
}

static enum kvf_status posix_sync(struct kvf_disk *disk)
{
    struct posix *p = (struct posix *)disk;
    return kvf_disk_sync_fd(p->fd, p->log);
}

/* Ends the threads that run and frees all but the descriptor of the file. */
static void tear_down(struct posix *p)
{
    pthread_mutex_lock(&p->mutex);
    p->stop = true;
    pthread_mutex_unlock(&p->mutex);
    pthread_cond_broadcast(&p->work_waits);
    for (unsigned i = 0; i < p->threads; i++)
        pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->work_waits);
    pthread_mutex_destroy(&p->mutex);
    close(p->event_fd);
    free(p->slots);
    free(p);
}

static void posix_close(struct kvf_disk *disk)
{
    struct posix *p = (struct posix *)disk;
    p->closing = true;
    while (p->in_flight)
        kvf_disk_wait(disk, 100 * KVF_MS);
    int fd = p->fd;
    tear_down(p);
    kvf_disk_close_fd(fd);
}

static const struct kvf_disk_ops posix_ops = {
    .name = "posix",
    .submit = posix_submit,
    .poll = posix_poll,
    .event_fd = posix_event_fd,
    .register_memory = posix_register_memory,
    .sync = posix_sync,
    .close = posix_close,
};

/* The threads take no signals: those are for whoever embeds the library. */
static bool start_threads(struct posix *p, unsigned count)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (p->threads < count && pthread_create(&p->thread[p->threads], NULL, serve, p) == 0)
        p->threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return p->threads > 0;
}

enum kvf_status kvf_disk_posix_create(int fd, unsigned depth, const struct kvf_log *log, struct kvf_disk **out)
{
    if (fd < 0 || depth == 0 || depth > KVF_DISK_DEPTH_MAX)
        return KVF_ERR_INVALID;
    struct posix *p = calloc(1, sizeof *p);
    if (!p)
        return KVF_ERR_NO_MEMORY;
    *p = (struct posix){.disk.ops = &posix_ops, .fd = fd, .log = log};
    p->slots = calloc(depth, sizeof *p->slots);
    p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!p->slots || p->event_fd < 0) {
        if (p->event_fd >= 0)
            close(p->event_fd);
        free(p->slots);
        free(p);
        return KVF_ERR_NO_MEMORY;
    }
    for (unsigned i = depth; i-- > 0; p->free = &p->slots[i])
        p->slots[i].next = p->free;
    list_clear(&p->work);
    list_clear(&p->done);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->work_waits, NULL);
    if (!start_threads(p, depth < THREADS_MAX ? depth : THREADS_MAX)) {
        tear_down(p);
        return KVF_ERR_NO_MEMORY;
    }
    *out = &p->disk;
    return KVF_OK;
}
