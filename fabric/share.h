/* Memory of one process that another on the same host maps, read-only: a memfd, found through /proc. No UCX.
 *
 * A token tells where it is: process, descriptor, the file's inode and size. A peer opens /proc/PID/fd/FD, which the kernel
 * allows to processes of the same user, and takes the file only if inode, size and seals are those of the token: a process
 * number or descriptor that was used again shows. On another host, or in another container, nothing is found. */
#ifndef KVF_FABRIC_SHARE_H
#define KVF_FABRIC_SHARE_H

#include <kvf/kvf.h>

#define KVF_SHARE_TOKEN_BYTES 32

/* ERR_INVALID: `fd` is no sealed memfd. */
enum kvf_status kvf_share_token(int fd, uint8_t token[KVF_SHARE_TOKEN_BYTES]);

/* Maps all of it. NULL: it cannot be reached from here, or is not what the token says, or not `bytes` long. The kernel keeps the
 * memory for us when its owner ends. */
const void *kvf_share_map(const uint8_t token[KVF_SHARE_TOKEN_BYTES], size_t bytes);
void kvf_share_unmap(const void *memory, size_t bytes);

/* A sealed memfd of so many bytes, all zero and there, mapped for its owner. NULL: no memory. Unmap it, and close *fd. */
void *kvf_share_create(size_t bytes, int *fd);
#endif
