/* Counters of writes (marks.h): a sequence lock per 64 KiB whose readers may be other processes.
 *
 * The order that the proof needs. Writer: counter odd; release fence; bytes; release store of the even counter. Reader: acquire
 * load of the counters; bytes; acquire fence; counters again. A read that sees a byte of the writer's sees it after the writer's
 * fence, so the second look sees the odd counter or a later one. A read before the first look's even counter cannot be: acquire.
 * The bytes themselves are not atomic; a torn word is read as some number, and its result is thrown away. */
#include "fabric/marks.h"

#include <assert.h>

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "the counters are shared between processes");

/* The first counter of a range, and how many there are. */
static uint64_t first_of(uint64_t offset, uint64_t bytes, uint64_t *n)
{
    uint64_t first = offset / KVF_MARKS_UNIT, last = (offset + bytes - 1) / KVF_MARKS_UNIT;
    assert(bytes > 0 && offset + bytes > offset);
    *n = last - first < KVF_MARKS_N ? last - first + 1 : KVF_MARKS_N;
    return first;
}

void kvf_marks_begin(struct kvf_marks *marks, uint32_t *writers, uint64_t offset, uint64_t bytes)
{
    uint64_t n, first = first_of(offset, bytes, &n);
    for (uint64_t i = 0; i < n; i++) {
        _Atomic uint64_t *counter = &marks->counters[(first + i) % KVF_MARKS_N];
        if (writers[(first + i) % KVF_MARKS_N]++ > 0)
            continue; /* it is odd already */
        uint64_t before = atomic_load_explicit(counter, memory_order_relaxed);
        assert(before % 2 == 0);
        atomic_store_explicit(counter, before + 1, memory_order_relaxed);
    }
    atomic_thread_fence(memory_order_release);
}

void kvf_marks_end(struct kvf_marks *marks, uint32_t *writers, uint64_t offset, uint64_t bytes)
{
    uint64_t n, first = first_of(offset, bytes, &n);
    for (uint64_t i = 0; i < n; i++) {
        _Atomic uint64_t *counter = &marks->counters[(first + i) % KVF_MARKS_N];
        assert(writers[(first + i) % KVF_MARKS_N] > 0);
        if (--writers[(first + i) % KVF_MARKS_N] > 0)
            continue;
        uint64_t before = atomic_load_explicit(counter, memory_order_relaxed);
        assert(before % 2 == 1);
        atomic_store_explicit(counter, before + 1, memory_order_release);
    }
}

/* Counters only rise, so a sum is the same only if each of them is. */
static uint64_t sum_of(const struct kvf_marks *marks, uint64_t offset, uint64_t bytes, bool *written)
{
    uint64_t sum = 0, odd = 0, n, first = first_of(offset, bytes, &n);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t counter = atomic_load_explicit(&marks->counters[(first + i) % KVF_MARKS_N], memory_order_acquire);
        sum += counter;
        odd |= counter & 1;
    }
    *written = odd;
    return sum;
}

bool kvf_marks_look(const struct kvf_marks *marks, uint64_t offset, uint64_t bytes, uint64_t *seen)
{
    bool written;
    *seen = sum_of(marks, offset, bytes, &written);
    return !written;
}

bool kvf_marks_same(const struct kvf_marks *marks, uint64_t offset, uint64_t bytes, uint64_t seen)
{
    bool written;
    atomic_thread_fence(memory_order_acquire);
    return sum_of(marks, offset, bytes, &written) == seen;
}
