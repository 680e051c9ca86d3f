/* Large memory: an address range that is reserved at once and backed piece by piece, with huge pages where there are, on the
 * memory of chosen NUMA nodes, and written to (so that no later access waits for the kernel) by several threads.
 * No state beyond the settings; any thread, but one at a time per range. */
#ifndef KVF_TIERS_PAGES_H
#define KVF_TIERS_PAGES_H

#include <kvf/kvf.h>

#define KVF_PAGES_HUGE (2ull << 20)
#define KVF_PAGES_NODES_MAX 1024

enum kvf_page_kind {
    KVF_PAGE_SMALL, /* 4 KiB, or whatever the machine has */
    KVF_PAGE_THP,   /* small ones that the kernel was asked to join */
    KVF_PAGE_2M,    /* of the machine's reserve of huge pages */
    KVF_PAGE_1G,
};
const char *kvf_page_kind_name(enum kvf_page_kind kind);

struct kvf_pages {
    enum kvf_page_kind wanted; /* 2M and 1G: with transparent ones where the reserve is too small */
    unsigned threads;
    /* NUMA: 0 policy: left to the kernel. */
    int policy; /* of mbind */
    unsigned long nodes[KVF_PAGES_NODES_MAX / (8 * sizeof(unsigned long))];
    char numa_text[160]; /* what was chosen, and why, for `kvf info` */
};

/* huge: auto, off, 2M, 1G. numa: auto, off, interleave, or a list of nodes (0,2-3). devices: network devices with commas,
 * whose nodes `auto` prefers. threads 0: one per CPU, four at most. sys: "/sys" (tests give another). ERR_CONFIG: a list that
 * is none, or a node that the machine has not. */
enum kvf_status kvf_pages_init(struct kvf_pages *pages, const char *huge, const char *numa, const char *devices, unsigned threads,
                               const char *sys);

/* Address space without memory, on a boundary of 1 GiB if it is that large, else of 2 MiB. NULL: there is none. */
void *kvf_pages_reserve(size_t bytes);
/* All of the range, backed or not. */
void kvf_pages_release(void *base, size_t bytes);

/* Puts memory under part of a reserved range: zeros, not yet there. `at` and bytes are multiples of 4096. `shared`: a memfd,
 * which another process can map (*fd, the caller's; sealed against growing and shrinking); else private and *fd = -1.
 * ERR_NO_MEMORY. */
enum kvf_status kvf_pages_back(const struct kvf_pages *pages, void *at, size_t bytes, bool shared, enum kvf_page_kind *kind,
                               int *fd);
/* Makes the kernel find every page of it now. `join`: small pages are joined to huge ones where it did not give those by itself,
 * as it does not for shared memory. Ends early, with CANCELLED, when *stop becomes true. ERR_NO_MEMORY, ERR_IO (the memory is
 * broken). */
enum kvf_status kvf_pages_populate(const struct kvf_pages *pages, void *at, size_t bytes, bool join, const _Atomic bool *stop);

/* Bytes of the range that lie in huge pages of any kind, as the kernel tells. Takes milliseconds per GiB. */
uint64_t kvf_pages_huge_bytes(const void *at, size_t bytes);

/* Bytes that this process may still take, by the machine and its control groups; and in all. UINT64_MAX: unknown. */
uint64_t kvf_pages_available(void);
uint64_t kvf_pages_machine(void);

/* "0-1,4" to a bit mask. False: not such a list, or a number beyond KVF_PAGES_NODES_MAX. */
bool kvf_pages_nodes_parse(const char *text, unsigned long *mask);
#endif
