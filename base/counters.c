/* The list of counters as a table. */
#include "base/counters.h"

#include <assert.h>

static const struct kvf_counter_entry entries[] = {
#define ENTRY(name, help) {#name, help, offsetof(struct kvf_counters, name)},
    KVF_COUNTER_MAP(ENTRY)
#undef ENTRY
};
_Static_assert(sizeof entries / sizeof entries[0] * sizeof(uint64_t) == sizeof(struct kvf_counters), "list and struct differ");

_Bool kvf_counters_entry(size_t index, struct kvf_counter_entry *out)
{
    if (index >= sizeof entries / sizeof entries[0])
        return 0;
    *out = entries[index];
    return 1;
}

uint64_t kvf_counters_get(const struct kvf_counters *counters, size_t index)
{
    assert(index < sizeof entries / sizeof entries[0]);
    return kvf_counted((const _Atomic uint64_t *)((const char *)counters + entries[index].offset));
}
