/* The list of latencies as a table. */
#include "base/latencies.h"

static const struct kvf_latency_entry entries[] = {
#define ENTRY(name, metric, label, value, help) {metric, label, value, help},
    KVF_LATENCY_MAP(ENTRY)
#undef ENTRY
};

bool kvf_latencies_entry(size_t index, struct kvf_latency_entry *out)
{
    if (index >= KVF_LATENCY_COUNT)
        return false;
    *out = entries[index];
    return true;
}
