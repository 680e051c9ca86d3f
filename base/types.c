/* The small public calls over plain types. */
#include <kvf/kvf.h>

#include <stdlib.h>

void kvf_free(void *memory)
{
    free(memory);
}

const char *kvf_tier_name(enum kvf_tier tier)
{
    static const char *const names[KVF_TIER_COUNT] = {
        [KVF_TIER_GPU] = "gpu",
        [KVF_TIER_DRAM] = "dram",
        [KVF_TIER_REMOTE] = "remote",
        [KVF_TIER_SSD] = "ssd",
        [KVF_TIER_PEER] = "peer",
    };
    return (unsigned)tier < KVF_TIER_COUNT ? names[tier] : "unknown";
}

size_t kvf_dtype_bytes(enum kvf_dtype dtype)
{
    switch (dtype) {
    case KVF_F32:
        return 4;
    case KVF_F16:
    case KVF_BF16:
        return 2;
    }
    return 0;
}
