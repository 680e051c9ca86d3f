/* Who a peer is: one `struct kvf_auth` for each. It holds the handshake by which both sides prove that they know the secret, and
 * then the session: a key for each direction, by which every frame shows that its sender has proved it.
 *
 *     X                                     P
 *     HELLO  name, address, nonce x   ->        anybody may say that; its MAC shows that X once knew the secret
 *                                     <-    PROOF  nonces p, x: "P in this life, to X in this life"
 *     PROOF  nonces x, p              ->
 *     session (x, p): WELCOME and all that follows, counted and tagged, both ways
 *
 * Both sides may say hello first, and then both proofs cross. What a proof is made over: a label, the version, name, incarnation
 * and nonce of the one who proves, then those of the one to whom. So a proof sent back to its maker, or to anybody else, or in
 * another life, or again, proves nothing. A nonce of ours makes one session at most: a new one is drawn when a session begins.
 *
 * The key of a direction is made from the sender's secret over the same words with another label. A tag covers the header with
 * its counter, and the payload as far as kvf_auth_covers says. Of a counter's values each is taken once, up to 960 late.
 *
 * A session may follow another while the peer is up (it came back, or a secret is being changed): frames under the one before
 * are still taken for a while, because they are on their way.
 *
 * Names, incarnations and time are the caller's. Threads: one at a time.
 */
#ifndef KVF_FABRIC_AUTH_H
#define KVF_FABRIC_AUTH_H

#include "base/env.h"
#include "base/siphash.h"
#include "fabric/secret.h"
#include "fabric/wire.h"

#define KVF_AUTH_WINDOW 960       /* so many frames of a session may overtake one; a multiple of 64 */
#define KVF_AUTH_COVERED_MAX 4096 /* bytes of a payload that the tag covers */

/* What frames from the peer are tested with. */
struct kvf_auth_way_in {
    uint8_t key[KVF_SIPHASH_KEY_BYTES];
    uint64_t highest;                        /* counter; the window before it is noted in `seen` */
    uint64_t seen[KVF_AUTH_WINDOW / 64 + 1]; /* a ring of words, one more for the one that is not full yet */
};

struct kvf_auth {
    /* the next session's handshake */
    uint8_t nonce[KVF_WIRE_NONCE_BYTES]; /* ours, good for one session */
    bool proved;                         /* `proof` is ours over `nonce` and one of the peer's */
    struct kvf_wire_proof proof;
    uint8_t next_key[KVF_SIPHASH_KEY_BYTES]; /* of our direction, should the peer answer that proof */

    /* the session */
    bool established;
    bool confirmed;              /* the peer has it too: a frame under it came */
    struct kvf_wire_proof said;  /* the proofs it was made of, ours and the peer's */
    struct kvf_wire_proof heard;
    uint8_t key[KVF_SIPHASH_KEY_BYTES]; /* of our direction */
    uint64_t sent;                      /* frames under it */
    struct kvf_auth_way_in in, before;  /* before: of the session before this one, taken until */
    uint64_t before_until_ns;
};

struct kvf_auth_party {
    const char *name;
    uint64_t incarnation;
};

/* Begins a life: no session, a fresh nonce. false: the env has no randomness that is good enough. */
bool kvf_auth_begin(struct kvf_auth *auth, const struct kvf_env *env);
/* Wipes everything. */
void kvf_auth_end(struct kvf_auth *auth);

/* Fills key_id, nonce and mac of a hello whose other fields are set. */
void kvf_auth_hello(const struct kvf_auth *auth, const struct kvf_secret *secret, struct kvf_auth_party us,
                    struct kvf_auth_party them, struct kvf_wire_hello *hello);
/* Whether one who knows a secret of ours made the hello, for us in this life, be it now or before. OK, ERR_PEER_AUTH. */
enum kvf_status kvf_auth_hello_check(const struct kvf_secret *secret, struct kvf_auth_party sender, struct kvf_auth_party us,
                                     const struct kvf_wire_hello *hello);

/* Makes auth->proof over our nonce and one of the peer's. */
void kvf_auth_prove(struct kvf_auth *auth, const struct kvf_secret *secret, struct kvf_auth_party us, struct kvf_auth_party them,
                    const uint8_t nonce[KVF_WIRE_NONCE_BYTES]);
/* Whether the peer proves itself with this, now: OK, ERR_STALE (it answers no nonce that is open), ERR_PEER_AUTH (another
 * secret, or none). Changes nothing. */
enum kvf_status kvf_auth_proof_check(const struct kvf_auth *auth, const struct kvf_secret *secret, struct kvf_auth_party them,
                                     struct kvf_auth_party us, const struct kvf_wire_proof *proof);
/* After OK, and when auth->proof is over that proof's nonce and was sent: begins the session. Frames under the one before are
 * taken until `before_until_ns`. false: no randomness for another nonce; the peer cannot be kept. */
bool kvf_auth_establish(struct kvf_auth *auth, const struct kvf_secret *secret, struct kvf_auth_party them,
                        struct kvf_auth_party us, const struct kvf_wire_proof *proof, const struct kvf_env *env,
                        uint64_t before_until_ns);

/* When secrets changed. A proof of ours that was made with one that is not accepted any more is void, and so is the nonce that it
 * is over: the peer may hold it. Frames of the session before this one are not taken after `until_ns`. false: no randomness. */
bool kvf_auth_secret_changed(struct kvf_auth *auth, const struct kvf_secret *secret, const struct kvf_env *env, uint64_t until_ns);
/* Whether both secrets that the session was made with are still accepted here. */
bool kvf_auth_current(const struct kvf_auth *auth, const struct kvf_secret *secret);

/* Whether the tag of a frame covers its payload too. Bulk is left to the checksums of blocks. */
static inline bool kvf_auth_covers(uint16_t type, size_t payload_bytes)
{
    return payload_bytes <= KVF_AUTH_COVERED_MAX && type != KVF_WIRE_PULL_DATA;
}

/* Tags an encoded header whose counter is auth->sent + 1. The payload is read where kvf_auth_covers. The caller counts
 * auth->sent when the frame went. */
void kvf_auth_seal(const struct kvf_auth *auth, uint16_t type, void *header, const void *payload, size_t payload_bytes);
/* Tests a frame that arrived, and notes its counter: OK, ERR_PEER_AUTH (no session, or a wrong tag), ERR_STALE (it came
 * before, or too late). */
enum kvf_status kvf_auth_open(struct kvf_auth *auth, const struct kvf_wire_header *header, const void *header_bytes,
                              const void *payload, size_t payload_bytes, uint64_t now_ns);
#endif
