/* The cache step for the table "cpu plain". */
#include "kernels/ops_cache.h"

enum kvf_status kvf_cache_plain_step(const struct kvf_dev *dev, struct kvf_stream *stream, const struct kvf_cache_step *steps,
                                     size_t n)
{
    return cache_step(dev, stream, steps, n);
}
