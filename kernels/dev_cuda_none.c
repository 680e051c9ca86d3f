/* A build without CUDA. */
#include "kernels/dev.h"

const struct kvf_dev *kvf_dev_cuda(int index, const char **why)
{
    if (why)
        *why = "built without CUDA";
    return NULL;
}
