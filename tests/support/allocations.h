/* Counts the calls of malloc, calloc and realloc that come from the program's own code, in which the library is linked, and those
 * of others: for the tests that nothing is allocated while data moves. For one source file of a program. */
#ifndef KVF_TESTS_SUPPORT_ALLOCATIONS_H
#define KVF_TESTS_SUPPORT_ALLOCATIONS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define COUNTED 0 /* the sanitizers have malloc for themselves */
#else
#define COUNTED 1
#endif

static _Atomic bool counting;
static _Atomic unsigned ours, others;

#if COUNTED
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t n, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern char __executable_start, etext;

static void count(const void *caller)
{
    if (!atomic_load(&counting))
        return;
    bool own = (const char *)caller >= &__executable_start && (const char *)caller < &etext;
    atomic_fetch_add(own ? &ours : &others, 1);
}

__attribute__((visibility("default"))) void *malloc(size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_malloc(bytes);
}

__attribute__((visibility("default"))) void *calloc(size_t n, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_calloc(n, bytes);
}

__attribute__((visibility("default"))) void *realloc(void *old, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_realloc(old, bytes);
}
#endif

static inline void counting_begin(void)
{
    atomic_store(&ours, 0);
    atomic_store(&others, 0);
    atomic_store(&counting, true);
}

static inline void counting_end(void) { atomic_store(&counting, false); }
#endif
