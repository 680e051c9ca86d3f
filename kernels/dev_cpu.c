/* The CPU as a device: ordinary memory, streams that are done when the call returns, and the choice among the tables. */
#include "kernels/cpu.h"

#include <cpuid.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { MEMORY_ALIGN = 4096 };

struct kvf_stream {
    char unused; /* nothing is ever queued */
};

static struct kvf_stream the_stream;

/* 4096-aligned; 0 bytes give an address too. The caller frees it with free. */
enum kvf_status kvf_dev_cpu_alloc(const struct kvf_dev *dev, size_t bytes, void **out)
{
    if (!out)
        return KVF_ERR_INVALID;
    if (bytes > PTRDIFF_MAX - MEMORY_ALIGN)
        return KVF_ERR_NO_MEMORY;
    size_t rounded = (bytes + MEMORY_ALIGN - 1) / MEMORY_ALIGN * MEMORY_ALIGN;
    void *memory = aligned_alloc(MEMORY_ALIGN, rounded ? rounded : MEMORY_ALIGN);
    if (!memory)
        return KVF_ERR_NO_MEMORY;
    *out = memory;
    return KVF_OK;
}

void kvf_dev_cpu_free(const struct kvf_dev *dev, void *memory)
{
    free(memory);
}

enum kvf_status kvf_dev_cpu_register(const struct kvf_dev *dev, void *memory, size_t bytes)
{
    return memory && bytes ? KVF_OK : KVF_ERR_INVALID;
}

void kvf_dev_cpu_unregister(const struct kvf_dev *dev, void *memory)
{
}

/* upload and download: one memory, so both are a copy. */
enum kvf_status kvf_dev_cpu_copy(const struct kvf_dev *dev, struct kvf_stream *stream, void *to, const void *from, size_t bytes)
{
    if (bytes && (!to || !from))
        return KVF_ERR_INVALID;
    if (bytes)
        memcpy(to, from, bytes);
    return KVF_OK;
}

enum kvf_status kvf_dev_cpu_stream_create(const struct kvf_dev *dev, struct kvf_stream **out)
{
    if (!out)
        return KVF_ERR_INVALID;
    *out = &the_stream;
    return KVF_OK;
}

void kvf_dev_cpu_stream_destroy(const struct kvf_dev *dev, struct kvf_stream *stream)
{
}

enum kvf_status kvf_dev_cpu_stream_sync(const struct kvf_dev *dev, struct kvf_stream *stream)
{
    return KVF_OK;
}

/* In rising order of speed, each needing more of the CPU than the one before. */
static const struct kvf_dev *const tables[] = {&kvf_cpu_reference_dev, &kvf_cpu_plain_dev, &kvf_ops_avx2_dev,
                                               &kvf_ops_avx512_dev, NULL};
static const struct kvf_dev *const tables_avx2[] = {&kvf_cpu_reference_dev, &kvf_cpu_plain_dev, &kvf_ops_avx2_dev, NULL};
static const struct kvf_dev *const tables_plain[] = {&kvf_cpu_reference_dev, &kvf_cpu_plain_dev, NULL};

static bool has_avx2(void)
{
    unsigned a, b, c, d; /* f16c is not among the names that every compiler knows */
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

const struct kvf_dev *const *kvf_dev_cpu_all(void)
{
    __builtin_cpu_init();
    if (!has_avx2())
        return tables_plain;
    return has_avx512() ? tables : tables_avx2;
}

/* The last table that the machine can run and that KVF_CPU, if it names one, allows. */
static const struct kvf_dev *choose(void)
{
    const char *wish = getenv("KVF_CPU");
    const struct kvf_dev *const *all = kvf_dev_cpu_all(), *best = all[1];
    for (size_t i = 1; all[i]; i++) {
        best = all[i];
        if (wish && !strcmp(wish, best->name + strlen("cpu ")))
            break;
    }
    return best;
}

const struct kvf_dev *kvf_dev_cpu(void)
{
    static const struct kvf_dev *_Atomic chosen; /* every thread would store the same, so a race is harmless */
    const struct kvf_dev *dev = atomic_load_explicit(&chosen, memory_order_acquire);
    if (!dev) {
        dev = choose();
        atomic_store_explicit(&chosen, dev, memory_order_release);
    }
    return dev;
}

const struct kvf_dev *kvf_dev_cpu_reference(void)
{
    return &kvf_cpu_reference_dev;
}
