/* Memory shared on one host (share.h). */
#include "fabric/share.h"
#include "base/bytes.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION 1u
/* Without these seals the owner could cut the file, and our reads would be SIGBUS. */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

enum kvf_status kvf_share_token(int fd, uint8_t token[KVF_SHARE_TOKEN_BYTES])
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) != 0)
        return KVF_ERR_INVALID;
    struct kvf_writer w = kvf_writer_of(token, KVF_SHARE_TOKEN_BYTES);
    kvf_write_u32(&w, VERSION);
    kvf_write_u32(&w, (uint32_t)getpid());
    kvf_write_u32(&w, (uint32_t)fd);
    kvf_write_u32(&w, 0);
    kvf_write_u64(&w, st.st_ino);
    kvf_write_u64(&w, (uint64_t)st.st_size);
    assert(!w.bad && kvf_writer_used(&w) == KVF_SHARE_TOKEN_BYTES);
    return KVF_OK;
}

const void *kvf_share_map(const uint8_t token[KVF_SHARE_TOKEN_BYTES], size_t bytes)
{
    struct kvf_reader r = kvf_reader_of(token, KVF_SHARE_TOKEN_BYTES);
    char path[64];
    struct stat st;
    uint32_t version = kvf_read_u32(&r), pid = kvf_read_u32(&r), number = kvf_read_u32(&r);
    (void)kvf_read_u32(&r);
    uint64_t inode = kvf_read_u64(&r), size = kvf_read_u64(&r);
    if (version != VERSION || size != bytes || bytes == 0)
        return NULL;
    snprintf(path, sizeof path, "/proc/%u/fd/%u", pid, number);
    /* The name is a peer's word: O_NONBLOCK and O_NOCTTY, so that a pipe or terminal there neither holds us up nor is taken. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return NULL;
    void *memory = MAP_FAILED;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals >= 0 && (seals & SEALS) == SEALS && fstat(fd, &st) == 0 && st.st_ino == inode && (uint64_t)st.st_size == size)
        memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    return memory == MAP_FAILED ? NULL : memory;
}

void *kvf_share_create(size_t bytes, int *out)
{
    void *memory = MAP_FAILED;
    int fd = memfd_create("kvf-share", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert(bytes > 0 && bytes % 4096 == 0);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, SEALS) == 0)
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED && fd >= 0)
        close(fd);
    *out = fd;
    return memory == MAP_FAILED ? NULL : memory;
}

void kvf_share_unmap(const void *memory, size_t bytes)
{
    if (memory)
        munmap((void *)(uintptr_t)memory, bytes);
}
