/* What the disk engines share: tests of a request, the meaning of an errno, one place that logs failures. */
#ifndef KVF_TIERS_DISK_ENGINE_H
#define KVF_TIERS_DISK_ENGINE_H

#include "tiers/disk.h"

#define KVF_DISK_ALIGN 4096u
#define KVF_DISK_DEPTH_MAX 4096u
/* Transient refusals (EINTR, EAGAIN, ECANCELED) of one request that are tried again before it fails. */
#define KVF_DISK_TRIES_MAX 64u

/* A sync; or data, offset and length are whole units of 4096, the length is not 0 (and the sum of the pieces) and the end
 * can be written as an off_t. */
bool kvf_disk_request_valid(const struct kvf_disk_request *request);

/* The memory from `transferred` on: to the end of its piece. */
struct iovec kvf_disk_request_rest(const struct kvf_disk_request *request);

/* What the request's next piece gave: `result` is bytes, 0 at the end of the file, or -errno. Returns IN_PROGRESS when
 * more is to be done (`transferred` is updated), OK when it is whole, or the failure; *tries counts transient refusals. */
enum kvf_status kvf_disk_request_step(struct kvf_disk_request *request, int64_t result, unsigned *tries);

/* One line for a failed request; the first few of an engine only (*logged counts), so that a dying disk cannot flood. */
void kvf_disk_log_failure(const struct kvf_log *log, const char *engine, const struct kvf_disk_request *request, int64_t result,
                          unsigned *logged);

/* fdatasync with EINTR tried again. ERR_IO, ERR_DISK_FULL. Blocks. */
enum kvf_status kvf_disk_sync_fd(int fd, const struct kvf_log *log);

/* Unlocks and closes the area. The lock is given up by name, because a ring that was closed may hold the file a while
 * longer inside the kernel, and the next node to open it should not be told that it is taken. */
void kvf_disk_close_fd(int fd);
#endif
