/* The status table's names, sentences and groups. */
#include <kvf/kvf.h>

const char *kvf_status_name(enum kvf_status status)
{
    switch (status) {
#define NAME(name, value, group, text) \
    case KVF_##name:                   \
        return #name;
        KVF_STATUS_MAP(NAME)
#undef NAME
    }
    return "UNKNOWN";
}

const char *kvf_status_text(enum kvf_status status)
{
    switch (status) {
#define TEXT(name, value, group, text) \
    case KVF_##name:                   \
        return text;
        KVF_STATUS_MAP(TEXT)
#undef TEXT
    }
    return "UNKNOWN";
}

enum kvf_status_group kvf_status_group(enum kvf_status status)
{
    switch (status) {
#define GROUP(name, value, group, text) \
    case KVF_##name:                    \
        return KVF_GROUP_##group;
        KVF_STATUS_MAP(GROUP)
#undef GROUP
    }
    /* A code of a newer library: an outcome stays an outcome, a failure is taken for the worst kind. */
    return status > 0 ? KVF_GROUP_OK : KVF_GROUP_NODE;
}
