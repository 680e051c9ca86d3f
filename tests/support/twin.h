/* A measure of what the machine takes from a test, so that a bound can be asserted on one that is loaded: a thread that sleeps a
 * millisecond again and again. What it slept longer is what any thread of ours had to wait for the processor, give or take; a bound
 * holds when it holds without that.
 *
 * A machine of which one processor pauses takes nothing from the twin, which sleeps and wakes on the other, and all from a thread
 * that never sleeps. So such a thread can be measured itself: what it neither ran nor waited of its own will was taken from it. */
#ifndef KVF_TESTS_SUPPORT_TWIN_H
#define KVF_TESTS_SUPPORT_TWIN_H

#include "base/env.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

struct twin {
    pthread_t thread;
    _Atomic bool stop;
    _Atomic uint64_t stolen_ns; /* yours to reset */
};

static inline void *twin_main(void *arg)
{
    struct twin *t = arg;
    while (!atomic_load(&t->stop)) {
        uint64_t start = kvf_now(kvf_env_real());
        nanosleep(&(struct timespec){.tv_nsec = KVF_MS}, NULL);
        uint64_t over = kvf_now(kvf_env_real()) - start - KVF_MS;
        if (over > KVF_MS)
            atomic_fetch_add(&t->stolen_ns, over);
    }
    return NULL;
}

static inline void twin_start(struct twin *t)
{
    atomic_init(&t->stop, false);
    atomic_init(&t->stolen_ns, 0);
    if (pthread_create(&t->thread, NULL, twin_main, t) != 0)
        abort();
}

/* A stretch of the calling thread's time. */
struct twin_watch {
    uint64_t wall_ns, ran_ns;
    long waits; /* of its own will */
};

static inline struct twin_watch twin_watch_begin(void)
{
    struct rusage used;
    struct timespec ran;
    if (getrusage(RUSAGE_THREAD, &used) != 0 || clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran) != 0)
        abort();
    return (struct twin_watch){.wall_ns = kvf_now(kvf_env_real()), .ran_ns = (uint64_t)ran.tv_sec * KVF_SEC + (uint64_t)ran.tv_nsec,
                               .waits = used.ru_nvcsw};
}

/* What was taken of it; 0 when it waited too, for then the two cannot be told apart. */
static inline uint64_t twin_watch_end(const struct twin_watch *begin)
{
    struct twin_watch end = twin_watch_begin();
    uint64_t wall = end.wall_ns - begin->wall_ns, ran = end.ran_ns - begin->ran_ns;
    return end.waits == begin->waits && wall > ran + KVF_MS ? wall - ran : 0;
}

static inline void twin_stop(struct twin *t)
{
    atomic_store(&t->stop, true);
    pthread_join(t->thread, NULL);
}
#endif
