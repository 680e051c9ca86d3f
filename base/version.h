/* The commit that this build was made from; kvf_version() is the public sentence. */
#ifndef KVF_BASE_VERSION_H
#define KVF_BASE_VERSION_H

const char *kvf_version_commit(void);
#endif
