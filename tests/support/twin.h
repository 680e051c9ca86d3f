/* A measure of what the machine takes from a test, so that a bound can be asserted on one that is loaded: a thread that sleeps a
 * millisecond again and again. What it slept longer is what any thread of ours had to wait for the processor, give or take; a bound
 * holds when it holds without that. */
#ifndef KVF_TESTS_SUPPORT_TWIN_H
#define KVF_TESTS_SUPPORT_TWIN_H

#include "base/env.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
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

static inline void twin_stop(struct twin *t)
{
    atomic_store(&t->stop, true);
    pthread_join(t->thread, NULL);
}
#endif
