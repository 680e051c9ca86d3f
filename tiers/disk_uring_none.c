/* A build without liburing. */
#include "tiers/disk.h"

enum kvf_status kvf_disk_uring_create(int fd, unsigned depth, const struct kvf_log *log, struct kvf_disk **out)
{
    return KVF_ERR_UNSUPPORTED;
}

bool kvf_disk_uring_usable(char *why, size_t size)
{
    snprintf(why, size, "this build has no liburing");
    return false;
}
