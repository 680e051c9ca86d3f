/* The cache step on a GPU: one thread block per partition does what dev.h says of cache_step, hit test to copies, in one launch
 * (the shape is that of SGLang's HiSparse kernel: hash of the selection in shared memory, ordered compaction by ballots; the
 * victims here are those of lowest value, found by a radix selection). A second, small launch lets the shadows sample.
 *
 * Everything is in the order of slots and of the selection, so it does not depend on how threads are scheduled: the lists are
 * built by prefix sums, never by the order in which atomics happen to be done. This file is compiled without fused multiply-add,
 * so that values have the bits that a CPU gives them. */
#include "kernels/cache.cuh"

namespace {

enum { THREADS = 512, WARPS = THREADS / 32, BINS = 256 };
enum : uint32_t { NONE = KVF_CACHE_NONE, HIT = 0xffffffff, RELEASED = 0xfffffffe }; /* no key is that large: +inf is 0xff800000 */

/* What the threads of one block share. */
struct block {
    kvf_cache_step s;
    uint32_t warp_sums[WARPS], bins[BINS];
    uint32_t hits, evicted, prefix, want;
    uint32_t *table, mask; /* hash of the selection: indices into `selected`, NONE where free */
    uint32_t *hit;         /* bits: which of the selected are here */
};

__device__ float score_of(const block &b, uint32_t chunk)
{
    return b.s.scores ? b.s.scores[chunk] : 0;
}

__device__ uint32_t key_of(float value)
{
    uint32_t bits = __float_as_uint(value + 0.0f);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

__device__ uint32_t hash_of(uint32_t chunk)
{
    return chunk * 2654435769u >> 11; /* the multiplication's high bits; the mask takes the lower of them */
}

/* The index of a chunk in the selection, or NONE. */
__device__ uint32_t find(const block &b, uint32_t chunk)
{
    for (uint32_t h = hash_of(chunk) & b.mask;; h = (h + 1) & b.mask) {
        uint32_t i = b.table[h];
        if (i == NONE || b.s.selected[i] == chunk)
            return i;
    }
}

/* How many threads before this one have the flag; *total: of all. Called by every thread of the block. */
__device__ uint32_t rank_of(block &b, bool flag, uint32_t *total)
{
    uint32_t ballot = __ballot_sync(0xffffffff, flag), lane = threadIdx.x & 31, warp = threadIdx.x >> 5, before = 0, all = 0;
    __syncthreads(); /* the sums of the last call were read by all */
    if (lane == 0)
        b.warp_sums[warp] = __popc(ballot);
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++) {
        before += w < warp ? b.warp_sums[w] : 0;
        all += b.warp_sums[w];
    }
    *total = all;
    return before + __popc(ballot & ((1u << lane) - 1));
}

/* ---- the selection's hash, and the slots' keys */

__device__ void hash_selected(block &b)
{
    for (uint32_t i = threadIdx.x; i <= b.mask; i += THREADS)
        b.table[i] = NONE;
    for (uint32_t i = threadIdx.x; i < (b.s.n_selected + 31) / 32; i += THREADS)
        b.hit[i] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < b.s.n_selected; i += THREADS) {
        b.s.places[i] = NONE;
        uint32_t h = hash_of(b.s.selected[i]) & b.mask;
        while (atomicCAS(&b.table[h], NONE, i) != NONE)
            h = (h + 1) & b.mask;
    }
    __syncthreads();
}

__device__ void test_slots(block &b)
{
    const kvf_cache_step &s = b.s;
    for (uint32_t slot = threadIdx.x; slot < s.slots; slot += THREADS) {
        uint32_t chunk = s.chunk[slot], at = chunk == NONE ? NONE : find(b, chunk), key = 0;
        if (at != NONE) {
            s.places[at] = s.place[slot];
            atomicOr(&b.hit[at / 32], 1u << at % 32);
            atomicAdd(&b.hits, 1);
            kvf_chunk_touch(s.rule, &s.state[slot], s.now, score_of(b, chunk));
            key = HIT;
        } else if (chunk != NONE) {
            key = key_of(kvf_chunk_keep(s.rule, &s.state[slot], s.now, score_of(b, chunk)));
        }
        s.scratch[slot] = key;
    }
    __syncthreads();
}

/* ---- the victims */

/* The bin in which the want-th lowest lies; what is wanted of it. By warp 0. */
__device__ void pick_bin(block &b, unsigned shift)
{
    enum { EACH = BINS / 32 };
    uint32_t lane = threadIdx.x, own = 0, upto;
    for (uint32_t i = 0; i < EACH; i++)
        own += b.bins[lane * EACH + i];
    upto = own;
    for (unsigned d = 1; d < 32; d *= 2) {
        uint32_t x = __shfl_up_sync(0xffffffff, upto, d);
        upto += lane >= d ? x : 0;
    }
    uint32_t before = upto - own, want = b.want;
    __syncwarp();
    if (before < want && upto >= want) { /* one lane */
        uint32_t bin = lane * EACH;
        while (before + b.bins[bin] < want)
            before += b.bins[bin++];
        b.prefix |= bin << shift;
        b.want = want - before;
    }
}

/* Leaves in b.prefix the n-th lowest key (n at least 1), in b.want how many slots with just this key are among the n. */
__device__ void select_key(block &b, uint32_t n)
{
    if (threadIdx.x == 0) {
        b.prefix = 0;
        b.want = n;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < BINS; i += THREADS)
            b.bins[i] = 0;
        __syncthreads();
        uint32_t prefix = b.prefix, above = shift == 24 ? 0 : 0xffffffff << (shift + 8);
        for (uint32_t slot = threadIdx.x; slot < b.s.slots; slot += THREADS) {
            uint32_t key = b.s.scratch[slot];
            if (key != HIT && (key & above) == prefix)
                atomicAdd(&b.bins[key >> shift & (BINS - 1)], 1);
        }
        __syncthreads();
        if (threadIdx.x < 32)
            pick_bin(b, static_cast<unsigned>(shift));
        __syncthreads();
    }
}

/* The victims in rising order: the first `assigned` to the list scratch[slots ..], the others are marked. */
__device__ void list_victims(block &b, uint32_t victims, uint32_t assigned)
{
    const kvf_cache_step &s = b.s;
    if (!victims)
        return;
    select_key(b, victims);
    uint32_t most = b.prefix, ties = b.want, ties_seen = 0, seen = 0, total;
    for (uint32_t first = 0; first < s.slots; first += THREADS) {
        uint32_t slot = first + threadIdx.x, key = slot < s.slots ? s.scratch[slot] : static_cast<uint32_t>(HIT);
        uint32_t tie = ties_seen + rank_of(b, key == most, &total);
        ties_seen += total;
        bool victim = key < most || (key == most && tie < ties);
        uint32_t at = seen + rank_of(b, victim, &total);
        seen += total;
        if (!victim)
            continue; /* to the next round of all */
        if (s.chunk[slot] != NONE)
            atomicAdd(&b.evicted, 1);
        if (at < assigned)
            s.scratch[s.slots + at] = slot;
        else
            s.scratch[slot] = RELEASED;
    }
    __syncthreads();
}

/* ---- the misses */

__device__ const char *source_of(const kvf_cache_step &s, uint32_t chunk)
{
    const char *from = s.blocks ? static_cast<const char *>(s.blocks[chunk / s.block_chunks]) : nullptr;
    return from ? from + static_cast<size_t>(chunk % s.block_chunks) * s.chunk_bytes : nullptr;
}

/* Misses get places; those that can be copied at once are listed from the end of `misses`, the others from its start. */
__device__ void place_misses(block &b, uint32_t assigned, uint32_t *late, uint32_t *filled)
{
    const kvf_cache_step &s = b.s;
    uint32_t seen = 0, total;
    *late = *filled = 0;
    for (uint32_t first = 0; first < s.n_selected; first += THREADS) {
        uint32_t i = first + threadIdx.x;
        bool miss = i < s.n_selected && !(b.hit[i / 32] >> i % 32 & 1), fills = false;
        uint32_t at = seen + rank_of(b, miss, &total);
        seen += total;
        if (miss && at < assigned) {
            uint32_t slot = s.scratch[s.slots + at], chunk = s.selected[i];
            s.chunk[slot] = chunk;
            s.places[i] = s.place[slot];
            kvf_chunk_enter(s.rule, &s.state[slot], s.now, score_of(b, chunk));
            fills = source_of(s, chunk) != nullptr;
        }
        uint32_t to = *late + rank_of(b, miss && !fills, &total);
        *late += total;
        if (miss && !fills)
            s.misses[to] = i;
        to = *filled + rank_of(b, fills, &total);
        *filled += total;
        if (fills)
            s.misses[s.n_selected - 1 - to] = i;
    }
    __syncthreads();
}

/* A warp per chunk, 16 bytes per lane and step. */
__device__ void copy_filled(block &b, uint32_t filled)
{
    const kvf_cache_step &s = b.s;
    for (uint32_t f = threadIdx.x >> 5; f < filled; f += WARPS) {
        uint32_t i = s.misses[s.n_selected - 1 - f];
        const uint4 *from = reinterpret_cast<const uint4 *>(source_of(s, s.selected[i]));
        uint4 *to = reinterpret_cast<uint4 *>(s.memory + static_cast<size_t>(s.places[i]) * KVF_CACHE_UNIT);
        for (uint32_t n = threadIdx.x & 31; n < s.chunk_bytes / 16; n += 32)
            to[n] = from[n];
    }
}

/* ---- what is released */

__device__ void close_up(block &b, uint32_t end)
{
    const kvf_cache_step &s = b.s;
    uint32_t holes = 0, moved = 0, total;
    for (uint32_t first = 0; first < end; first += THREADS) {
        uint32_t slot = first + threadIdx.x;
        bool hole = slot < end && s.scratch[slot] == RELEASED;
        uint32_t at = holes + rank_of(b, hole, &total);
        holes += total;
        if (hole)
            s.scratch[s.slots + at] = slot;
    }
    __syncthreads();
    for (uint32_t first = end; first < s.slots; first += THREADS) {
        uint32_t slot = first + threadIdx.x;
        bool moves = slot < s.slots && s.scratch[slot] != RELEASED;
        uint32_t at = moved + rank_of(b, moves, &total);
        moved += total;
        if (moves) {
            uint32_t to = s.scratch[s.slots + at], place = s.place[to];
            s.chunk[to] = s.chunk[slot];
            s.place[to] = s.place[slot];
            s.state[to] = s.state[slot];
            s.place[slot] = place;
        }
        if (slot < s.slots)
            s.chunk[slot] = NONE;
    }
}

__device__ uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

__global__ void __launch_bounds__(THREADS) step_parts(const kvf_cache_step *steps)
{
    extern __shared__ uint32_t shared[];
    __shared__ block b;
    uint32_t late, filled;
    if (threadIdx.x == 0) {
        b.s = steps[blockIdx.x];
        b.hits = b.evicted = 0;
        b.mask = 63;
        while (b.mask + 1 < 2 * b.s.n_selected)
            b.mask = 2 * b.mask + 1;
        b.table = shared;
        b.hit = shared + b.mask + 1;
    }
    __syncthreads();
    const kvf_cache_step &s = b.s;
    hash_selected(b);
    test_slots(b);
    uint32_t hits = b.hits, others = s.slots - hits, surplus = least(s.slots - s.keep, others);
    uint32_t victims = least(s.n_selected - hits + surplus, others);
    list_victims(b, victims, victims - surplus);
    place_misses(b, victims - surplus, &late, &filled);
    if (surplus)
        close_up(b, s.slots - surplus);
    copy_filled(b, filled);
    if (threadIdx.x == 0)
        *s.result = {hits, filled, late, b.evicted, s.slots - surplus};
}

/* A thread per partition: the stacks are short, and nothing waits for them. */
__global__ void sample_parts(const kvf_cache_step *steps, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && steps[i].shadow)
        kvf_shadow_step(steps[i].shadow, steps[i].rule, steps[i].now, steps[i].selected, steps[i].n_selected, steps[i].scores,
                        steps[i].clock);
}

__global__ void __launch_bounds__(THREADS) forget_parts(const kvf_cache_forget *parts)
{
    kvf_cache_forget p = parts[blockIdx.x];
    for (uint32_t slot = threadIdx.x; slot < p.slots; slot += THREADS)
        if (p.chunk[slot] >= p.from && p.chunk[slot] < p.to)
            p.chunk[slot] = NONE;
}

} // namespace

cudaError_t kvf_cache_cuda_step(cudaStream_t stream, const kvf_cache_step *steps, unsigned n, uint32_t selected_most)
{
    uint32_t table = 64;
    while (table < 2 * selected_most)
        table *= 2;
    size_t bytes = (table + selected_most / 32 + 1) * sizeof(uint32_t); /* at most 133 KiB: sm_80 has 163 */
    cudaError_t error = cudaSuccess;
    if (bytes > 32 << 10) /* beside the block's own, more than 48 KiB are to be asked for */
        error = cudaFuncSetAttribute(step_parts, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess)
        return error;
    step_parts<<<n, THREADS, bytes, stream>>>(steps);
    sample_parts<<<(n + 31) / 32, 32, 0, stream>>>(steps, n);
    return cudaGetLastError();
}

cudaError_t kvf_cache_cuda_forget(cudaStream_t stream, const kvf_cache_forget *parts, unsigned n)
{
    forget_parts<<<n, THREADS, 0, stream>>>(parts);
    return cudaGetLastError();
}
