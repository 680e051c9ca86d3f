/* A GPU as a device: memory, streams, scattered copies by one kernel, cold blocks by those of cold_cuda.cu. The other
 * operations that compute are not here yet (NULL in the table). Without a driver, or with one too old, kvf_dev_cuda answers
 * NULL and says why.
 *
 * GATHER AND SCATTER. The list is cut into pieces of at most PIECE bytes, one thread block each, and goes to the device
 * in batches of BATCH pieces: written into pinned staging, copied by the stream, then one launch per batch. A stream has
 * SLOTS stagings in turn; an event says when one may be written again, so the caller's list is free on return while up
 * to SLOTS batches are still queued. Pinned host memory has the same address on the device, so the kernel reads or
 * writes it over the bus itself. */
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>

#include <cuda_runtime.h>

#include "kernels/cache.cuh"
#include "kernels/cold.cuh"
#include "kernels/dev.h"

namespace {

enum { DEVICES = 64, SLOTS = 2, BATCH = 4096, PIECE = 32768, THREADS = 256 };

struct piece {
    const char *from;
    char *to;
    size_t bytes;
};

struct staging {
    piece *host;   /* pinned */
    piece *device;
    cudaEvent_t done; /* the launch that reads `device` is over */
};

struct cuda_dev {
    kvf_dev dev; /* first: a kvf_dev of this file is one of these */
    char name[320];
    bool ready;
    kvf_stream *default_stream; /* what stream NULL means */
};

/* One block copies one piece: 16 bytes per thread and step where both ends are aligned alike, bytes at the edges. */
__global__ void copy_pieces(const piece *pieces)
{
    piece p = pieces[blockIdx.x];
    size_t head = 0, body = 0;
    if ((reinterpret_cast<uintptr_t>(p.from) & 15) == (reinterpret_cast<uintptr_t>(p.to) & 15)) {
        head = -reinterpret_cast<uintptr_t>(p.from) & 15;
        head = head < p.bytes ? head : p.bytes;
        body = (p.bytes - head) / 16;
    }
    const uint4 *from = reinterpret_cast<const uint4 *>(p.from + head);
    uint4 *to = reinterpret_cast<uint4 *>(p.to + head);
    for (size_t i = threadIdx.x; i < body; i += THREADS)
        to[i] = from[i];
    size_t edges = p.bytes - body * 16; /* the head's bytes, then the tail's */
    for (size_t i = threadIdx.x; i < edges; i += THREADS) {
        size_t at = i < head ? i : i + body * 16;
        p.to[at] = p.from[at];
    }
}

/* The runtime's word for what went wrong, as ours; forgets the error so that the next call starts clean. */
kvf_status status_of(cudaError_t error)
{
    if (error == cudaSuccess)
        return KVF_OK;
    cudaGetLastError();
    switch (error) {
    case cudaErrorMemoryAllocation:
        return KVF_ERR_NO_MEMORY;
    case cudaErrorInvalidValue:
        return KVF_ERR_INVALID;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
        return KVF_ERR_NO_DEVICE;
    default:
        return KVF_ERR_IO;
    }
}

} // namespace

struct kvf_stream {
    cudaStream_t stream;
    staging slots[SLOTS];
    unsigned next;
};

namespace {

void stream_free(kvf_stream *s)
{
    for (staging &slot : s->slots) {
        cudaFreeHost(slot.host);
        cudaFree(slot.device);
        if (slot.done)
            cudaEventDestroy(slot.done);
    }
    if (s->stream)
        cudaStreamDestroy(s->stream);
    delete s;
}

kvf_status stream_make(kvf_stream **out)
{
    kvf_stream *s = new (std::nothrow) kvf_stream();
    if (!s)
        return KVF_ERR_NO_MEMORY;
    cudaError_t error = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
    for (staging &slot : s->slots) {
        if (error == cudaSuccess)
            error = cudaHostAlloc(reinterpret_cast<void **>(&slot.host), BATCH * sizeof(piece), cudaHostAllocPortable);
        if (error == cudaSuccess)
            error = cudaMalloc(reinterpret_cast<void **>(&slot.device), BATCH * sizeof(piece));
        if (error == cudaSuccess)
            error = cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming);
    }
    if (error != cudaSuccess) {
        stream_free(s);
        return status_of(error);
    }
    *out = s;
    return KVF_OK;
}

const cuda_dev *self(const kvf_dev *dev)
{
    return reinterpret_cast<const cuda_dev *>(dev);
}

kvf_stream *stream_of(const kvf_dev *dev, kvf_stream *stream)
{
    return stream ? stream : self(dev)->default_stream;
}

kvf_status use(const kvf_dev *dev)
{
    return status_of(cudaSetDevice(dev->index));
}

kvf_status dev_alloc(const kvf_dev *dev, size_t bytes, void **out)
{
    kvf_status status = out ? use(dev) : KVF_ERR_INVALID;
    if (status != KVF_OK)
        return status;
    /* cudaMalloc promises 256; it cuts small pieces out of its pages of 2 MiB, so whole ones keep our promise of 4096. */
    const size_t page = 2u << 20;
    if (bytes > SIZE_MAX / 2)
        return KVF_ERR_NO_MEMORY;
    void *memory = nullptr;
    cudaError_t error = cudaMalloc(&memory, bytes ? (bytes + page - 1) / page * page : page);
    if (error == cudaSuccess && reinterpret_cast<uintptr_t>(memory) % 4096) {
        cudaFree(memory);
        return KVF_ERR_NO_MEMORY;
    }
    if (error == cudaSuccess)
        *out = memory;
    return error == cudaErrorInvalidValue ? status_of(cudaErrorMemoryAllocation) : status_of(error);
}

void dev_free(const kvf_dev *dev, void *memory)
{
    if (memory && use(dev) == KVF_OK)
        status_of(cudaFree(memory));
}

kvf_status dev_alloc_host(const kvf_dev *dev, size_t bytes, void **out)
{
    kvf_status status = out ? use(dev) : KVF_ERR_INVALID;
    if (status != KVF_OK)
        return status;
    if (bytes > SIZE_MAX / 2)
        return KVF_ERR_NO_MEMORY;
    void *memory = nullptr; /* whole pages, so page-aligned */
    cudaError_t error = cudaHostAlloc(&memory, bytes ? bytes : 4096, cudaHostAllocPortable | cudaHostAllocMapped);
    if (error == cudaSuccess)
        *out = memory;
    return error == cudaErrorInvalidValue ? status_of(cudaErrorMemoryAllocation) : status_of(error);
}

void dev_free_host(const kvf_dev *dev, void *memory)
{
    if (memory && use(dev) == KVF_OK)
        status_of(cudaFreeHost(memory));
}

/* The flags of dev_alloc_host: what was allocated and what was pinned later are used alike. */
kvf_status dev_host_register(const kvf_dev *dev, void *memory, size_t bytes)
{
    kvf_status status = memory && bytes ? use(dev) : KVF_ERR_INVALID;
    if (status == KVF_OK)
        status = status_of(cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped));
    return status;
}

void dev_host_unregister(const kvf_dev *dev, void *memory)
{
    if (memory && use(dev) == KVF_OK)
        status_of(cudaHostUnregister(memory));
}

/* upload and download: the runtime sees from the addresses which way. */
kvf_status dev_copy(const kvf_dev *dev, kvf_stream *stream, void *to, const void *from, size_t bytes)
{
    if (bytes && (!to || !from))
        return KVF_ERR_INVALID;
    kvf_status status = use(dev);
    if (status != KVF_OK || !bytes)
        return status;
    return status_of(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(dev, stream)->stream));
}

kvf_status dev_stream_create(const kvf_dev *dev, kvf_stream **out)
{
    kvf_status status = out ? use(dev) : KVF_ERR_INVALID;
    return status == KVF_OK ? stream_make(out) : status;
}

void dev_stream_destroy(const kvf_dev *dev, kvf_stream *stream)
{
    if (!stream || use(dev) != KVF_OK)
        return;
    cudaStreamSynchronize(stream->stream);
    stream_free(stream);
}

kvf_status dev_stream_sync(const kvf_dev *dev, kvf_stream *stream)
{
    kvf_status status = use(dev);
    return status == KVF_OK ? status_of(cudaStreamSynchronize(stream_of(dev, stream)->stream)) : status;
}

kvf_status launch(kvf_stream *s, staging *slot, unsigned n)
{
    cudaError_t error = cudaMemcpyAsync(slot->device, slot->host, n * sizeof(piece), cudaMemcpyHostToDevice, s->stream);
    if (error == cudaSuccess) {
        copy_pieces<<<n, THREADS, 0, s->stream>>>(slot->device);
        error = cudaGetLastError();
    }
    if (error == cudaSuccess)
        error = cudaEventRecord(slot->done, s->stream);
    return status_of(error);
}

kvf_status dev_copies(const kvf_dev *dev, kvf_stream *stream, const kvf_copy *copies, size_t n)
{
    if (n && !copies)
        return KVF_ERR_INVALID;
    for (size_t i = 0; i < n; i++)
        if (copies[i].bytes && (!copies[i].from || !copies[i].to))
            return KVF_ERR_INVALID;
    kvf_status status = use(dev);
    kvf_stream *s = stream_of(dev, stream);
    size_t i = 0, done = 0; /* copy i is cut up to byte `done` */
    while (status == KVF_OK && i < n) {
        staging *slot = &s->slots[s->next++ % SLOTS];
        status = status_of(cudaEventSynchronize(slot->done)); /* at once for an event never recorded */
        unsigned used = 0;
        while (status == KVF_OK && i < n && used < BATCH) {
            size_t left = copies[i].bytes - done, bytes = left < PIECE ? left : static_cast<size_t>(PIECE);
            if (bytes)
                slot->host[used++] = {static_cast<const char *>(copies[i].from) + done,
                                      static_cast<char *>(copies[i].to) + done, bytes};
            done += bytes;
            if (done == copies[i].bytes) {
                i++;
                done = 0;
            }
        }
        if (status == KVF_OK && used)
            status = launch(s, slot, used);
    }
    return status;
}

kvf_status dev_encode(const kvf_dev *dev, kvf_stream *stream, const kvf_cold *shape, const void *block, void *codes, void *scales)
{
    kvf_status status = kvf_cold_cuda_valid(shape, block, codes, scales) ? use(dev) : KVF_ERR_INVALID;
    if (status != KVF_OK)
        return status;
    return status_of(kvf_cold_cuda_encode(stream_of(dev, stream)->stream, *shape, block, codes, scales));
}

kvf_status dev_decode(const kvf_dev *dev, kvf_stream *stream, const kvf_cold *shape, uint64_t mask, const void *codes,
                      const void *scales, void *block)
{
    kvf_status status = kvf_cold_cuda_valid(shape, block, codes, scales) ? use(dev) : KVF_ERR_INVALID;
    if (status != KVF_OK)
        return status;
    return status_of(kvf_cold_cuda_decode(stream_of(dev, stream)->stream, *shape, mask, codes, scales, block));
}

/* Bytes that a launch reads, from the caller's memory to the device by way of a staging. */
kvf_status stage(kvf_stream *s, const void *from, size_t bytes, staging **slot_out)
{
    staging *slot = &s->slots[s->next++ % SLOTS];
    kvf_status status = status_of(cudaEventSynchronize(slot->done));
    if (status != KVF_OK)
        return status;
    memcpy(slot->host, from, bytes);
    *slot_out = slot;
    return status_of(cudaMemcpyAsync(slot->device, slot->host, bytes, cudaMemcpyHostToDevice, s->stream));
}

kvf_status dev_cache_step(const kvf_dev *dev, kvf_stream *stream, const kvf_cache_step *steps, size_t n)
{
    const size_t batch = BATCH * sizeof(piece) / sizeof *steps;
    kvf_status status = kvf_check_cache_step(steps, n) ? use(dev) : KVF_ERR_INVALID;
    kvf_stream *s = stream_of(dev, stream);
    for (size_t i = 0; status == KVF_OK && i < n; i += batch) {
        size_t now = n - i < batch ? n - i : batch;
        uint32_t most = 0;
        for (size_t j = i; j < i + now; j++)
            most = steps[j].n_selected > most ? steps[j].n_selected : most;
        staging *slot = nullptr;
        status = stage(s, steps + i, now * sizeof *steps, &slot);
        if (status == KVF_OK)
            status = status_of(kvf_cache_cuda_step(s->stream, reinterpret_cast<const kvf_cache_step *>(slot->device),
                                                   static_cast<unsigned>(now), most));
        if (status == KVF_OK)
            status = status_of(cudaEventRecord(slot->done, s->stream));
    }
    return status;
}

kvf_status dev_cache_forget(const kvf_dev *dev, kvf_stream *stream, const kvf_cache_forget *parts, size_t n)
{
    const size_t batch = BATCH * sizeof(piece) / sizeof *parts;
    kvf_status status = kvf_check_cache_forget(parts, n) ? use(dev) : KVF_ERR_INVALID;
    kvf_stream *s = stream_of(dev, stream);
    for (size_t i = 0; status == KVF_OK && i < n; i += batch) {
        size_t now = n - i < batch ? n - i : batch;
        staging *slot = nullptr;
        status = stage(s, parts + i, now * sizeof *parts, &slot);
        if (status == KVF_OK)
            status = status_of(kvf_cache_cuda_forget(s->stream, reinterpret_cast<const kvf_cache_forget *>(slot->device),
                                                     static_cast<unsigned>(now)));
        if (status == KVF_OK)
            status = status_of(cudaEventRecord(slot->done, s->stream));
    }
    return status;
}

kvf_status open_dev(cuda_dev *c, int index, const char **why)
{
    cudaDeviceProp prop;
    kvf_status status = status_of(cudaSetDevice(index));
    if (status == KVF_OK)
        status = status_of(cudaGetDeviceProperties(&prop, index));
    if (status == KVF_OK)
        status = stream_make(&c->default_stream);
    if (status != KVF_OK) {
        *why = "the CUDA driver cannot open this GPU";
        return status;
    }
    snprintf(c->name, sizeof c->name, "cuda %d: %s", index, prop.name);
    kvf_dev *d = &c->dev;
    d->name = c->name;
    d->kind = KVF_DEV_CUDA;
    d->index = index;
    d->memory_bytes = prop.totalGlobalMem;
    d->alloc = dev_alloc;
    d->free = dev_free;
    d->alloc_host = dev_alloc_host;
    d->free_host = dev_free_host;
    d->host_register = dev_host_register;
    d->host_unregister = dev_host_unregister;
    d->upload = d->download = dev_copy;
    d->stream_create = dev_stream_create;
    d->stream_destroy = dev_stream_destroy;
    d->stream_sync = dev_stream_sync;
    d->gather = d->scatter = dev_copies;
    d->cache_step = dev_cache_step;
    d->cache_forget = dev_cache_forget;
    d->encode = dev_encode;
    d->decode = dev_decode;
    c->ready = true;
    return KVF_OK;
}

const kvf_dev *find(int index, const char **why)
{
    static std::mutex lock; /* a GPU's table is made once, by the first who asks */
    static cuda_dev devices[DEVICES];
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) {
        int driver = 0;
        cudaDriverGetVersion(&driver);
        *why = driver ? "the CUDA driver is older than this build's CUDA" : "the CUDA driver is missing";
    } else if (error == cudaErrorNoDevice || (error == cudaSuccess && !count)) {
        *why = "the CUDA driver finds no GPU";
    } else if (error != cudaSuccess) {
        *why = cudaGetErrorString(error);
    } else if (index < 0 || index >= count || index >= DEVICES) {
        *why = "no GPU of this number";
    } else {
        std::lock_guard<std::mutex> guard(lock);
        cuda_dev *c = &devices[index];
        return c->ready || open_dev(c, index, why) == KVF_OK ? &c->dev : nullptr;
    }
    cudaGetLastError();
    return nullptr;
}

} // namespace

extern "C" const struct kvf_dev *kvf_dev_cuda(int index, const char **why)
{
    const char *unused;
    return find(index, why ? why : &unused);
}
