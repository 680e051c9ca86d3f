/* What this library is: version, commit and features, which the build gives. */
#include "base/version.h"
#include <kvf/kvf.h>

#ifndef KVF_COMMIT
#define KVF_COMMIT "unknown"
#endif
#ifndef KVF_FEATURES
#define KVF_FEATURES "unknown"
#endif
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *kvf_version(void)
{
    return TEXT(KVF_VERSION_MAJOR) "." TEXT(KVF_VERSION_MINOR) " (" KVF_COMMIT ", " KVF_FEATURES ")";
}

const char *kvf_version_commit(void)
{
    return KVF_COMMIT;
}
