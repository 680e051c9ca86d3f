/* The keys below the prefix and the JSON records under them (docs/PROTOCOL.md). Decoders get whatever somebody wrote into etcd: a
 * record that is not exactly one of ours is refused and leaves the output untouched. Pure functions, any thread. */
#ifndef KVF_COORDINATOR_RECORDS_H
#define KVF_COORDINATOR_RECORDS_H

#include "coordinator/coordinator.h"

enum kvf_records_kind { KVF_RECORDS_MEMBER, KVF_RECORDS_MODEL, KVF_RECORDS_SESSION, KVF_RECORDS_LEADER, KVF_RECORDS_OTHER };

struct kvf_records_model {
    struct kvf_model_desc desc;
    uint64_t fingerprint;
};

/* 1 to 63 letters, digits, . _ - */
bool kvf_records_name_ok(const char *name);

/* Keys. `prefix` has no '/' at its end. False: the key does not fit. */
bool kvf_records_member_key(const char *prefix, const char *name, char key[KVF_STORE_KEY_MAX]);
bool kvf_records_model_key(const char *prefix, const char *name, char key[KVF_STORE_KEY_MAX]);
bool kvf_records_session_key(const char *prefix, uint64_t id, char key[KVF_STORE_KEY_MAX]);
bool kvf_records_leader_key(const char *prefix, char key[KVF_STORE_KEY_MAX]);

/* What a key names. For a member or model *name points into the key; for a session *id is set. OTHER: none of ours. */
enum kvf_records_kind kvf_records_key(const char *prefix, const char *key, const char **name, uint64_t *id);

/* Records as text. False: out of memory or it does not fit. */
bool kvf_records_encode_member(const struct kvf_member *member, char text[KVF_STORE_VALUE_MAX]);
bool kvf_records_encode_placement(const struct kvf_placement *placement, char text[KVF_STORE_VALUE_MAX]);
bool kvf_records_encode_model(const struct kvf_model_desc *desc, uint64_t fingerprint, char text[KVF_STORE_VALUE_MAX]);
bool kvf_records_encode_leader(const char *name, char text[KVF_STORE_VALUE_MAX]);

/* ... and back. `name` and `id` are the key's. The placement's mod_revision is left 0. */
bool kvf_records_decode_member(const char *name, const char *text, struct kvf_member *out);
bool kvf_records_decode_placement(uint64_t id, const char *text, struct kvf_placement *out);
bool kvf_records_decode_model(const char *name, const char *text, struct kvf_records_model *out);
bool kvf_records_decode_leader(const char *text, char name[64]);
#endif
