/* Fork and join over a fixed set of threads.
 *
 * A round is published by storing its number of items in `unclaimed`. Whoever lowers that number by one owns an item;
 * the round cannot end before the item is finished, so the job's fields stay as they are while it is read. A thread that
 * wakes late finds `unclaimed` 0 and touches nothing: no round waits for threads that took no part in it.
 *
 *   caller:  job fields -> pending = unclaimed = items -> round + 1 -> wake a sleeper -> work -> wait for pending == 0
 *   thread:  spin on unclaimed -> announce itself in sleepers -> look again -> sleep on `round` -> wake another -> work
 *
 * The announcement and the second look, against the caller's publication and its look at sleepers, are all sequentially
 * consistent: one of the two sides sees the other, so no wake-up is lost. */
#include "base/workers.h"
#include "base/env.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS_MAX 1024
#define IDLE_SPIN_NS 8000
#define JOIN_SPIN_NS 20000

struct worker {
    struct kvf_workers *pool;
    pthread_t thread;
    unsigned index;
};

struct kvf_workers {
    /* identity */
    unsigned count;   /* threads, the caller's included */
    unsigned started; /* threads that were created, count - 1 after create */

    /* the round: written by the caller while pending is 0 */
    void (*fn)(void *arg, unsigned item, unsigned worker);
    void *arg;
    unsigned items;

    /* state; the three lines are written by different sides, so they do not share a cache line */
    _Alignas(64) _Atomic uint32_t unclaimed; /* items that nobody has taken */
    _Alignas(64) _Atomic uint32_t pending;   /* items not finished; the caller sleeps on it */
    _Atomic uint32_t joining;                /* the caller sleeps, or is about to */
    _Alignas(64) _Atomic uint32_t round;     /* idle threads sleep on it */
    _Atomic uint32_t sleepers;
    atomic_bool stop;

    struct worker workers[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, unsigned threads)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

static void pause_a_little(void)
{
    for (int i = 0; i < 16; i++)
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* Takes one item of the current round; false when none is left. Items go out in rising order. */
static bool claim(struct kvf_workers *pool, unsigned *item)
{
    uint32_t left = atomic_load_explicit(&pool->unclaimed, memory_order_relaxed);
    while (left) {
        if (atomic_compare_exchange_weak_explicit(&pool->unclaimed, &left, left - 1, memory_order_acquire, memory_order_relaxed)) {
            *item = pool->items - left;
            return true;
        }
    }
    return false;
}

static void work(struct kvf_workers *pool, unsigned worker)
{
    unsigned item;
    while (claim(pool, &item)) {
        pool->fn(pool->arg, item, worker);
        if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->joining))
            futex_wake(&pool->pending, 1);
    }
}

/* Returns when there may be items or the pool stops. */
static void idle(struct kvf_workers *pool)
{
    const struct kvf_env *env = kvf_env_real();
    uint64_t end_ns = kvf_deadline(kvf_now(env), IDLE_SPIN_NS);
    do {
        pause_a_little();
        if (atomic_load_explicit(&pool->unclaimed, memory_order_relaxed) || atomic_load_explicit(&pool->stop, memory_order_relaxed))
            return;
    } while (kvf_now(env) < end_ns);

    atomic_fetch_add(&pool->sleepers, 1);
    uint32_t round = atomic_load(&pool->round);
    if (!atomic_load(&pool->unclaimed) && !atomic_load(&pool->stop))
        futex_wait(&pool->round, round);
    /* A wake-up costs its sender microseconds, so the caller wakes one thread and each wakes the next while there is work. */
    if (atomic_fetch_sub(&pool->sleepers, 1) > 1 && atomic_load_explicit(&pool->unclaimed, memory_order_relaxed) > 1)
        futex_wake(&pool->round, 1);
}

static void *thread_main(void *arg)
{
    struct worker *self = arg;
    while (!atomic_load(&self->pool->stop)) {
        work(self->pool, self->index);
        idle(self->pool);
    }
    return NULL;
}

/* The threads take no signals: those are the program's. */
static bool start_thread(struct worker *worker)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&worker->thread, NULL, thread_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        pthread_setname_np(worker->thread, "kvf-worker");
    return !error;
}

enum kvf_status kvf_workers_create(unsigned threads, struct kvf_workers **out)
{
    if (!out || threads < 1 || threads > THREADS_MAX)
        return KVF_ERR_INVALID;
    size_t bytes = sizeof(struct kvf_workers) + threads * sizeof(struct worker);
    struct kvf_workers *pool = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!pool)
        return KVF_ERR_NO_MEMORY;
    *pool = (struct kvf_workers){.count = threads};
    for (unsigned i = 1; i < threads; i++) {
        pool->workers[i] = (struct worker){.pool = pool, .index = i};
        if (!start_thread(&pool->workers[i])) {
            kvf_workers_destroy(pool);
            return KVF_ERR_NO_MEMORY;
        }
        pool->started++;
    }
    assert(pool->started == threads - 1);
    *out = pool;
    return KVF_OK;
}

void kvf_workers_destroy(struct kvf_workers *pool)
{
    if (!pool)
        return;
    assert(!atomic_load(&pool->pending));
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->round, 1);
    futex_wake(&pool->round, pool->count);
    for (unsigned i = 1; i <= pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool);
}

unsigned kvf_workers_count(const struct kvf_workers *pool)
{
    return pool->count;
}

/* Waits until every item is finished. The items are finite work of our own, so this wait needs no deadline. */
static void join(struct kvf_workers *pool)
{
    if (!atomic_load_explicit(&pool->pending, memory_order_acquire))
        return;
    const struct kvf_env *env = kvf_env_real();
    uint64_t end_ns = kvf_deadline(kvf_now(env), JOIN_SPIN_NS);
    do {
        pause_a_little();
        if (!atomic_load_explicit(&pool->pending, memory_order_acquire))
            return;
    } while (kvf_now(env) < end_ns);

    atomic_store(&pool->joining, 1);
    uint32_t pending;
    while ((pending = atomic_load(&pool->pending)))
        futex_wait(&pool->pending, pending);
    atomic_store(&pool->joining, 0);
}

void kvf_workers_run(struct kvf_workers *pool, unsigned items, void (*fn)(void *arg, unsigned item, unsigned worker), void *arg)
{
    assert(!atomic_load(&pool->pending)); /* one caller at a time, and none from inside fn */
    if (pool->count == 1 || items <= 1) {
        for (unsigned i = 0; i < items; i++)
            fn(arg, i, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->items = items;
    atomic_store_explicit(&pool->pending, items, memory_order_relaxed);
    atomic_store(&pool->unclaimed, items);
    atomic_fetch_add(&pool->round, 1);
    if (atomic_load(&pool->sleepers))
        futex_wake(&pool->round, 1);
    work(pool, 0);
    join(pool);
    assert(!atomic_load(&pool->unclaimed));
}
