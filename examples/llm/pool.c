#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define SPINS_IDLE 20000 /* some 100 us of pauses: longer than the serial parts between two products of a token */
#define SPINS_JOIN 4000

struct worker {
    struct llm_pool *pool;
    pthread_t thread;
    unsigned index;
};

struct llm_pool {
    unsigned threads;
    struct worker *workers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;

    /* The job. Written by the caller before it raises `generation`, read by workers after they saw it rise. */
    void (*fn)(void *, unsigned, unsigned);
    void *arg;
    unsigned items;

    atomic_uint generation; /* one more per job */
    atomic_uint next;       /* the first item that nobody has taken */
    atomic_uint busy;       /* workers that have not finished this generation */
    atomic_uint sleepers;   /* workers in or on the way into cond_wait */
    atomic_bool stop;
};

static void work(struct llm_pool *pool, unsigned thread)
{
    unsigned item;
    while ((item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed)) < pool->items)
        pool->fn(pool->arg, item, thread);
}

/* Waits until the generation differs from `seen`. */
static void await_job(struct llm_pool *pool, unsigned seen)
{
    for (unsigned i = 0; i < SPINS_IDLE; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
            return;
        __builtin_ia32_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1); /* before the test: the caller raises the generation, then looks for sleepers */
    while (atomic_load(&pool->generation) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void *run_worker(void *arg)
{
    struct worker *self = arg;
    struct llm_pool *pool = self->pool;
    for (unsigned seen = 0;; seen++) {
        await_job(pool, seen);
        if (atomic_load(&pool->stop))
            return NULL;
        work(pool, self->index);
        atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_release);
    }
}

static void start_generation(struct llm_pool *pool)
{
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
}

struct llm_pool *llm_pool_create(unsigned threads)
{
    struct llm_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = 1;
    pool->workers = calloc(threads + 1, sizeof *pool->workers);
    bool ok = pool->workers != NULL;
    for (unsigned i = 1; ok && i < threads; i++) {
        pool->workers[i] = (struct worker){.pool = pool, .index = i};
        ok = pthread_create(&pool->workers[i].thread, NULL, run_worker, &pool->workers[i]) == 0;
        pool->threads += ok;
    }
    if (!ok) {
        llm_pool_destroy(pool);
        return NULL;
    }
    return pool;
}

void llm_pool_destroy(struct llm_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->stop, true);
    start_generation(pool);
    for (unsigned i = 1; i < pool->threads; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->workers);
    free(pool);
}

unsigned llm_pool_threads(const struct llm_pool *pool)
{
    return pool->threads;
}

void llm_pool_run(struct llm_pool *pool, unsigned items, void (*fn)(void *, unsigned, unsigned), void *arg)
{
    if (pool->threads == 1 || items < 2) {
        for (unsigned i = 0; i < items; i++)
            fn(arg, i, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->items = items;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->busy, pool->threads - 1, memory_order_relaxed);
    start_generation(pool);
    work(pool, 0);
    for (unsigned i = 0; atomic_load_explicit(&pool->busy, memory_order_acquire) > 0; i++) {
        if (i < SPINS_JOIN)
            __builtin_ia32_pause();
        else
            sched_yield(); /* the worker lost its core: give it this one */
    }
}
