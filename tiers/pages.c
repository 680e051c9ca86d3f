/* Large memory by mmap, memfd, mbind and madvise; the constants are the kernel's, so that no library for NUMA is needed.
 *
 * Huge pages of the reserve are taken only when the whole piece fits into it: a mapping that the reserve covers in part
 * would be refused. What is refused falls back to transparent huge pages, which the kernel joins as memory allows. */
#include "tiers/pages.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GIB (1ull << 30)
#define SMALL 4096u
#define STRIDE (32ull << 20) /* of one thread's turn: between two of them it looks at *stop */
#define THREADS_MAX 64u
#define TRIES_MAX 1000u /* of what the kernel refuses for now */
#define WORD (8 * sizeof(unsigned long))

/* linux/mempolicy.h, asm-generic/mman-common.h, linux/memfd.h: older headers lack some. */
#define POLICY_PREFERRED 1
#define POLICY_BIND 2
#define POLICY_INTERLEAVE 3
#define POLICY_PREFERRED_MANY 5
#define ADVICE_POPULATE_WRITE 23
#define ADVICE_COLLAPSE 25
#define PAGE_SHIFT_AT 26 /* of log2(huge page size) in the flags of mmap and memfd_create */
#define MEMFD_HUGETLB 4u

const char *kvf_page_kind_name(enum kvf_page_kind kind)
{
    static const char *const names[] = {"4K", "transparent", "2M", "1G"};
    return names[kind];
}

/* ------------------------------------------------------------------------------------------------- settings */

bool kvf_pages_nodes_parse(const char *text, unsigned long *mask)
{
    memset(mask, 0, KVF_PAGES_NODES_MAX / 8);
    do {
        char *end;
        if (!isdigit((unsigned char)*text))
            return false;
        unsigned long first = strtoul(text, &end, 10), last = first;
        if (*end == '-' && isdigit((unsigned char)end[1]))
            last = strtoul(end + 1, &end, 10);
        if (first > last || last >= KVF_PAGES_NODES_MAX)
            return false;
        for (unsigned long n = first; n <= last; n++)
            mask[n / WORD] |= 1ul << n % WORD;
        text = end;
    } while (*text++ == ',');
    return text[-1] == 0 || text[-1] == '\n';
}

static bool read_line(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "re");
    bool read = file && fgets(text, (int)size, file);
    if (file)
        fclose(file);
    if (read)
        text[strcspn(text, "\n")] = 0;
    return read;
}

static unsigned count(const unsigned long *mask)
{
    unsigned n = 0;
    for (size_t w = 0; w < KVF_PAGES_NODES_MAX / WORD; w++)
        n += (unsigned)__builtin_popcountl(mask[w]);
    return n;
}

/* Adds the nodes that the devices are attached to. */
static void nodes_of_devices(const char *devices, const char *sys, unsigned long *mask)
{
    static const char *const classes[] = {"net", "infiniband"};
    for (const char *at = devices; *at;) {
        int length = (int)strcspn(at, ",:");
        for (unsigned c = 0; c < 2 && length > 0; c++) {
            char path[256], text[32];
            snprintf(path, sizeof path, "%s/class/%s/%.*s/device/numa_node", sys, classes[c], length, at);
            long node = read_line(path, text, sizeof text) ? strtol(text, NULL, 10) : -1;
            if (node >= 0 && node < KVF_PAGES_NODES_MAX)
                mask[(size_t)node / WORD] |= 1ul << (size_t)node % WORD;
        }
        at += strcspn(at, ",");
        at += *at == ',';
    }
}

static enum kvf_status choose_nodes(struct kvf_pages *p, const char *numa, const char *devices, const char *sys)
{
    unsigned long there[KVF_PAGES_NODES_MAX / WORD], near[KVF_PAGES_NODES_MAX / WORD] = {0};
    char path[256], list[128];
    snprintf(path, sizeof path, "%s/devices/system/node/has_memory", sys);
    bool known = read_line(path, list, sizeof list) && kvf_pages_nodes_parse(list, there);
    unsigned nodes = known ? count(there) : 1;
    bool named = isdigit((unsigned char)numa[0]);
    if (named && !kvf_pages_nodes_parse(numa, p->nodes))
        return KVF_ERR_CONFIG;
    for (size_t w = 0; named && known && w < KVF_PAGES_NODES_MAX / WORD; w++)
        if (p->nodes[w] & ~there[w])
            return KVF_ERR_CONFIG;
    if (!named && strcmp(numa, "auto") != 0 && strcmp(numa, "off") != 0 && strcmp(numa, "interleave") != 0)
        return KVF_ERR_CONFIG;
    if (strcmp(numa, "off") == 0) {
        snprintf(p->numa_text, sizeof p->numa_text, "left to the kernel: memory.numa is off");
    } else if (nodes < 2) {
        snprintf(p->numa_text, sizeof p->numa_text, "nothing to choose: the machine has one memory node");
    } else if (named) {
        p->policy = POLICY_BIND;
        snprintf(p->numa_text, sizeof p->numa_text, "bound to nodes %.64s (memory.numa)", numa);
    } else {
        nodes_of_devices(devices, sys, near);
        bool prefer = strcmp(numa, "auto") == 0 && count(near) > 0;
        p->policy = prefer ? POLICY_PREFERRED_MANY : POLICY_INTERLEAVE;
        memcpy(p->nodes, prefer ? near : there, sizeof p->nodes);
        snprintf(p->numa_text, sizeof p->numa_text, prefer ? "near the devices %.64s, others when those are full"
                                                           : "interleaved over nodes %.64s", prefer ? devices : list);
    }
    return KVF_OK;
}

enum kvf_status kvf_pages_init(struct kvf_pages *p, const char *huge, const char *numa, const char *devices, unsigned threads,
                               const char *sys)
{
    *p = (struct kvf_pages){.wanted = KVF_PAGE_THP};
    if (strcmp(huge, "off") == 0)
        p->wanted = KVF_PAGE_SMALL;
    else if (strcmp(huge, "2M") == 0 || strcmp(huge, "auto") == 0)
        p->wanted = KVF_PAGE_2M;
    else if (strcmp(huge, "1G") == 0)
        p->wanted = KVF_PAGE_1G;
    else
        return KVF_ERR_CONFIG;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    p->threads = threads ? threads : cpus > 4 ? 4 : cpus > 0 ? (unsigned)cpus : 1;
    if (p->threads > THREADS_MAX)
        p->threads = THREADS_MAX;
    return choose_nodes(p, numa, devices, sys);
}

/* ------------------------------------------------------------------------------------------------- mapping */

void *kvf_pages_reserve(size_t bytes)
{
    size_t align = bytes >= GIB ? GIB : KVF_PAGES_HUGE;
    if (bytes == 0 || bytes > SIZE_MAX / 2)
        return NULL;
    uint8_t *p = mmap(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    uint8_t *base = (uint8_t *)(((uintptr_t)p + align - 1) / align * align);
    size_t end = (bytes + SMALL - 1) / SMALL * SMALL;
    if (base > p)
        munmap(p, (size_t)(base - p));
    if (base + end < p + bytes + align)
        munmap(base + end, (size_t)(p + bytes + align - (base + end)));
    return base;
}

void kvf_pages_release(void *base, size_t bytes)
{
    if (base)
        munmap(base, (bytes + SMALL - 1) / SMALL * SMALL);
}

/* One attempt with one kind of pages. */
static bool map(enum kvf_page_kind kind, void *at, size_t bytes, bool shared, int *fd)
{
    unsigned huge = kind == KVF_PAGE_1G ? 30u << PAGE_SHIFT_AT : kind == KVF_PAGE_2M ? 21u << PAGE_SHIFT_AT : 0;
    int flags = MAP_FIXED | (huge ? MAP_HUGETLB | (int)huge : 0);
    *fd = -1;
    if (!shared)
        return mmap(at, bytes, PROT_READ | PROT_WRITE, flags | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
    *fd = memfd_create("kvf-region", MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MEMFD_HUGETLB | huge : 0));
    if (*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0 &&
        mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, *fd, 0) != MAP_FAILED) {
        (void)!fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
        return true;
    }
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return false;
}

/* A failed MAP_FIXED may have taken the reservation away: nobody else may get the addresses. */
static void reserve_again(void *at, size_t bytes)
{
    (void)!mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

enum kvf_status kvf_pages_back(const struct kvf_pages *p, void *at, size_t bytes, bool shared, enum kvf_page_kind *kind, int *fd)
{
    assert((uintptr_t)at % SMALL == 0 && bytes % SMALL == 0 && bytes > 0);
    bool mapped = false;
    for (int k = (int)p->wanted; k >= KVF_PAGE_2M && !mapped; k--) {
        uint64_t size = k == KVF_PAGE_1G ? GIB : KVF_PAGES_HUGE;
        if ((uintptr_t)at % size || bytes % size)
            continue;
        mapped = map((enum kvf_page_kind)k, at, bytes, shared, fd);
        *kind = (enum kvf_page_kind)k;
    }
    if (!mapped) {
        *kind = KVF_PAGE_SMALL;
        if (!map(KVF_PAGE_SMALL, at, bytes, shared, fd)) {
            reserve_again(at, bytes);
            return KVF_ERR_NO_MEMORY;
        }
        if (p->wanted != KVF_PAGE_SMALL && madvise(at, bytes, MADV_HUGEPAGE) == 0)
            *kind = KVF_PAGE_THP;
    }
    if (p->policy && syscall(SYS_mbind, at, bytes, p->policy, p->nodes, (unsigned long)KVF_PAGES_NODES_MAX, 0) != 0 &&
        p->policy == POLICY_PREFERRED_MANY) /* before Linux 5.15: one of them, the first */
        (void)syscall(SYS_mbind, at, bytes, POLICY_PREFERRED, p->nodes, (unsigned long)KVF_PAGES_NODES_MAX, 0);
    madvise(at, bytes, MADV_DONTDUMP);
    return KVF_OK;
}

/* ------------------------------------------------------------------------------------------------- populating */

struct job {
    uint8_t *at;
    size_t bytes;
    bool join;
    const _Atomic bool *stop;
    _Atomic size_t next;
    _Atomic int error;
};

static int populate_range(uint8_t *at, size_t bytes)
{
    if (madvise(at, 0, ADVICE_POPULATE_WRITE) == 0) {
        for (unsigned tries = 0; madvise(at, bytes, ADVICE_POPULATE_WRITE) != 0; tries++)
            if (tries == TRIES_MAX || (errno != EINTR && errno != EAGAIN))
                return errno;
        return 0;
    }
    for (size_t i = 0; i < bytes; i += SMALL) /* before Linux 5.14. The memory is new: it holds zeros */
        *(volatile uint8_t *)(at + i) = 0;
    return 0;
}

static void *populate_some(void *arg)
{
    struct job *job = arg;
    for (;;) {
        size_t from = atomic_fetch_add(&job->next, STRIDE);
        if (from >= job->bytes || atomic_load(&job->error) || (job->stop && atomic_load(job->stop)))
            return NULL;
        size_t n = job->bytes - from < STRIDE ? job->bytes - from : STRIDE;
        int error = populate_range(job->at + from, n);
        if (!error && job->join)
            (void)madvise(job->at + from, n, ADVICE_COLLAPSE); /* Linux 6.1; refused, they stay small */
        if (error)
            atomic_store(&job->error, error);
    }
}

enum kvf_status kvf_pages_populate(const struct kvf_pages *p, void *at, size_t bytes, bool join, const _Atomic bool *stop)
{
    struct job job = {.at = at, .bytes = bytes, .join = join, .stop = stop};
    pthread_t threads[THREADS_MAX];
    unsigned started = 0, useful = (unsigned)(bytes / STRIDE < p->threads ? bytes / STRIDE : p->threads);
    while (started + 1 < useful && pthread_create(&threads[started], NULL, populate_some, &job) == 0)
        started++;
    populate_some(&job);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    int error = atomic_load(&job.error);
    if (error)
        return error == EHWPOISON ? KVF_ERR_IO : KVF_ERR_NO_MEMORY;
    return stop && atomic_load(stop) ? KVF_CANCELLED : KVF_OK;
}

/* ------------------------------------------------------------------------------------------------- what there is */

uint64_t kvf_pages_huge_bytes(const void *at, size_t bytes)
{
    static const char *const fields[] = {"AnonHugePages:", "ShmemPmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:"};
    char line[256];
    uint64_t sum = 0;
    bool inside = false;
    FILE *file = fopen("/proc/self/smaps", "re");
    while (file && fgets(line, sizeof line, file)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
            inside = from >= (uintptr_t)at && to <= (uintptr_t)at + bytes;
            continue;
        }
        for (unsigned f = 0; inside && f < 4; f++)
            if (strncmp(line, fields[f], strlen(fields[f])) == 0)
                sum += strtoull(line + strlen(fields[f]), NULL, 10) * 1024;
    }
    if (file)
        fclose(file);
    return sum;
}

static uint64_t meminfo(const char *key)
{
    char line[128];
    uint64_t bytes = UINT64_MAX;
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && bytes == UINT64_MAX && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0)
            bytes = strtoull(line + strlen(key), NULL, 10) * 1024;
    if (file)
        fclose(file);
    return bytes;
}

static uint64_t group_value(const char *group, const char *name)
{
    char path[512], text[64];
    snprintf(path, sizeof path, "/sys/fs/cgroup%.400s/%s", group, name);
    return read_line(path, text, sizeof text) && isdigit((unsigned char)text[0]) ? strtoull(text, NULL, 10) : UINT64_MAX;
}

/* The least that a control group (version 2) above us allows: in all, or still. */
static uint64_t groups(bool still)
{
    char group[400];
    uint64_t least = UINT64_MAX;
    if (!read_line("/proc/self/cgroup", group, sizeof group) || strncmp(group, "0::", 3) != 0)
        return least;
    memmove(group, group + 3, strlen(group + 3) + 1);
    for (char *cut = group; cut; ) {
        uint64_t most = group_value(group, "memory.max"), now = still ? group_value(group, "memory.current") : 0;
        if (most != UINT64_MAX && now != UINT64_MAX)
            most = most > now ? most - now : 0;
        least = most < least ? most : least;
        cut = strrchr(group, '/');
        if (cut)
            *cut = 0;
    }
    return least;
}

uint64_t kvf_pages_available(void)
{
    uint64_t machine = meminfo("MemAvailable:"), group = groups(true);
    return machine < group ? machine : group;
}

uint64_t kvf_pages_machine(void)
{
    uint64_t machine = meminfo("MemTotal:"), group = groups(false);
    return machine < group ? machine : group;
}
