/* Proofs, keys and tags of auth.h. What is compared with a MAC or tag is compared in constant time. */
#include "fabric/auth.h"
#include "base/bytes.h"

#include <assert.h>
#include <openssl/crypto.h>

#define LABEL_HELLO "kvfabric hello"
#define LABEL_PROOF "kvfabric proof"
#define LABEL_SESSION "kvfabric session"
#define LABEL_BYTES 16

_Static_assert(KVF_SECRET_ID_BYTES == KVF_WIRE_KEY_ID_BYTES && KVF_SECRET_MAC_BYTES == KVF_WIRE_MAC_BYTES, "as on the wire");
_Static_assert(sizeof LABEL_SESSION - 1 <= LABEL_BYTES, "labels are padded with zeros");
_Static_assert(KVF_WIRE_TAG_AT % 8 == 0 && KVF_WIRE_TAG_AT + 8 == KVF_WIRE_HEADER_BYTES, "the tag ends the header");
_Static_assert(KVF_AUTH_WINDOW % 64 == 0, "bits are kept in words");
#define SEEN_WORDS (KVF_AUTH_WINDOW / 64 + 1)

/* ------------------------------------------------------------------------------------------------ words */
/* What a MAC is made over. Every field has a fixed length or is led by its length, so two different sets of fields never make
 * the same bytes. */
struct words {
    uint8_t bytes[LABEL_BYTES + 2 + 2 * (1 + KVF_WIRE_NAME_MAX + 8 + KVF_WIRE_NONCE_BYTES) + 2 + KVF_ADDRESS_MAX];
    struct kvf_writer w;
};

static void words_begin(struct words *words, const char *label)
{
    char padded[LABEL_BYTES] = {0};
    memcpy(padded, label, strlen(label));
    words->w = kvf_writer_of(words->bytes, sizeof words->bytes);
    kvf_write_bytes(&words->w, padded, sizeof padded);
    kvf_write_u16(&words->w, KVF_WIRE_VERSION);
}

static void words_party(struct words *words, struct kvf_auth_party party, const uint8_t *nonce)
{
    size_t length = strlen(party.name);
    assert(length < KVF_WIRE_NAME_MAX && party.incarnation != 0);
    kvf_write_u8(&words->w, (uint8_t)length);
    kvf_write_bytes(&words->w, party.name, length);
    kvf_write_u64(&words->w, party.incarnation);
    if (nonce)
        kvf_write_bytes(&words->w, nonce, KVF_WIRE_NONCE_BYTES);
}

static bool words_mac(const struct words *words, const struct kvf_secret *secret, const uint8_t *key_id, uint8_t *mac)
{
    assert(!words->w.bad);
    return kvf_secret_mac(secret, key_id, words->bytes, kvf_writer_used(&words->w), mac);
}

static bool hello_mac(const struct kvf_secret *secret, struct kvf_auth_party sender, struct kvf_auth_party receiver,
                      const struct kvf_wire_hello *hello, uint8_t *mac)
{
    struct words words;
    words_begin(&words, LABEL_HELLO);
    words_party(&words, sender, hello->nonce);
    words_party(&words, receiver, NULL);
    kvf_write_u16(&words.w, (uint16_t)hello->address_bytes);
    kvf_write_bytes(&words.w, hello->address, hello->address_bytes);
    return words_mac(&words, secret, hello->key_id, mac);
}

/* Of a proof, or (another label) the key of the prover's direction in the session that it makes. */
static bool proof_mac(const char *label, const struct kvf_secret *secret, struct kvf_auth_party prover, struct kvf_auth_party to,
                      const struct kvf_wire_proof *proof, uint8_t *mac)
{
    struct words words;
    words_begin(&words, label);
    words_party(&words, prover, proof->nonce);
    words_party(&words, to, proof->answers);
    return words_mac(&words, secret, proof->key_id, mac);
}

static bool session_key(const struct kvf_secret *secret, struct kvf_auth_party sender, struct kvf_auth_party receiver,
                        const struct kvf_wire_proof *proof, uint8_t key[KVF_SIPHASH_KEY_BYTES])
{
    uint8_t mac[KVF_WIRE_MAC_BYTES];
    bool made = proof_mac(LABEL_SESSION, secret, sender, receiver, proof, mac);
    if (made)
        memcpy(key, mac, KVF_SIPHASH_KEY_BYTES);
    OPENSSL_cleanse(mac, sizeof mac);
    return made;
}

/* ------------------------------------------------------------------------------------------------ handshake */
static bool fresh_nonce(struct kvf_auth *auth, const struct kvf_env *env)
{
    auth->proved = false;
    return kvf_env_secure(env, auth->nonce, sizeof auth->nonce);
}

bool kvf_auth_begin(struct kvf_auth *auth, const struct kvf_env *env)
{
    memset(auth, 0, sizeof *auth);
    return fresh_nonce(auth, env);
}

void kvf_auth_end(struct kvf_auth *auth)
{
    OPENSSL_cleanse(auth, sizeof *auth);
}

void kvf_auth_hello(const struct kvf_auth *auth, const struct kvf_secret *secret, struct kvf_auth_party us,
                    struct kvf_auth_party them, struct kvf_wire_hello *hello)
{
    kvf_secret_id(secret, hello->key_id);
    memcpy(hello->nonce, auth->nonce, sizeof hello->nonce);
    bool made = hello_mac(secret, us, them, hello, hello->mac);
    assert(made);
    (void)made;
}

enum kvf_status kvf_auth_hello_check(const struct kvf_secret *secret, struct kvf_auth_party sender, struct kvf_auth_party us,
                                     const struct kvf_wire_hello *hello)
{
    uint8_t mac[KVF_WIRE_MAC_BYTES];
    if (!hello_mac(secret, sender, us, hello, mac) || CRYPTO_memcmp(mac, hello->mac, sizeof mac) != 0)
        return KVF_ERR_PEER_AUTH;
    return KVF_OK;
}

void kvf_auth_prove(struct kvf_auth *auth, const struct kvf_secret *secret, struct kvf_auth_party us, struct kvf_auth_party them,
                    const uint8_t nonce[KVF_WIRE_NONCE_BYTES])
{
    struct kvf_wire_proof *proof = &auth->proof;
    kvf_secret_id(secret, proof->key_id);
    memcpy(proof->nonce, auth->nonce, sizeof proof->nonce);
    memcpy(proof->answers, nonce, sizeof proof->answers);
    /* The key at once: it must be of the secret that the proof is of, whatever is read before the peer answers. */
    bool made = proof_mac(LABEL_PROOF, secret, us, them, proof, proof->mac) && session_key(secret, us, them, proof, auth->next_key);
    assert(made);
    auth->proved = made;
}

enum kvf_status kvf_auth_proof_check(const struct kvf_auth *auth, const struct kvf_secret *secret, struct kvf_auth_party them,
                                     struct kvf_auth_party us, const struct kvf_wire_proof *proof)
{
    uint8_t mac[KVF_WIRE_MAC_BYTES];
    if (CRYPTO_memcmp(proof->answers, auth->nonce, sizeof auth->nonce) != 0)
        return KVF_ERR_STALE;
    if (!proof_mac(LABEL_PROOF, secret, them, us, proof, mac) || CRYPTO_memcmp(mac, proof->mac, sizeof mac) != 0)
        return KVF_ERR_PEER_AUTH;
    return KVF_OK;
}

bool kvf_auth_establish(struct kvf_auth *auth, const struct kvf_secret *secret, struct kvf_auth_party them,
                        struct kvf_auth_party us, const struct kvf_wire_proof *proof, const struct kvf_env *env,
                        uint64_t before_until_ns)
{
    assert(auth->proved && memcmp(auth->proof.answers, proof->nonce, sizeof proof->nonce) == 0);
    assert(memcmp(auth->proof.nonce, proof->answers, sizeof proof->answers) == 0);
    uint8_t key[KVF_SIPHASH_KEY_BYTES];
    if (!session_key(secret, them, us, proof, key))
        return false;
    auth->before = auth->in;
    auth->before_until_ns = auth->established ? before_until_ns : 0;
    memset(&auth->in, 0, sizeof auth->in);
    memcpy(auth->in.key, key, sizeof key);
    memcpy(auth->key, auth->next_key, sizeof auth->key);
    auth->sent = 0;
    auth->said = auth->proof;
    auth->heard = *proof;
    auth->established = true;
    auth->confirmed = false;
    OPENSSL_cleanse(key, sizeof key);
    OPENSSL_cleanse(auth->next_key, sizeof auth->next_key);
    return fresh_nonce(auth, env);
}

bool kvf_auth_secret_changed(struct kvf_auth *auth, const struct kvf_secret *secret, const struct kvf_env *env, uint64_t until_ns)
{
    if (auth->before_until_ns > until_ns)
        auth->before_until_ns = until_ns;
    if (!auth->proved || kvf_secret_accepts(secret, auth->proof.key_id))
        return true;
    OPENSSL_cleanse(auth->next_key, sizeof auth->next_key);
    return fresh_nonce(auth, env);
}

bool kvf_auth_current(const struct kvf_auth *auth, const struct kvf_secret *secret)
{
    assert(auth->established);
    return kvf_secret_accepts(secret, auth->said.key_id) && kvf_secret_accepts(secret, auth->heard.key_id);
}

/* ------------------------------------------------------------------------------------------------ frames */
void kvf_auth_seal(const struct kvf_auth *auth, uint16_t type, void *header, const void *payload, size_t payload_bytes)
{
    assert(auth->established);
    size_t covered = kvf_auth_covers(type, payload_bytes) ? payload_bytes : 0;
    uint64_t tag = kvf_siphash(auth->key, header, KVF_WIRE_TAG_AT, covered ? payload : NULL, covered);
    struct kvf_writer w = kvf_writer_of((uint8_t *)header + KVF_WIRE_TAG_AT, 8);
    kvf_write_u64(&w, tag);
}

static bool tag_fits(const struct kvf_auth_way_in *in, const struct kvf_wire_header *header, const void *header_bytes,
                     const void *payload, size_t covered)
{
    uint64_t tag = kvf_siphash(in->key, header_bytes, KVF_WIRE_TAG_AT, covered ? payload : NULL, covered);
    return CRYPTO_memcmp(&tag, &header->tag, sizeof tag) == 0;
}

/* Notes a counter whose tag fitted. false: it was noted before, or is too old to tell. */
static bool note_counter(struct kvf_auth_way_in *in, uint64_t counter)
{
    assert(counter > 0);
    if (counter > in->highest) {
        /* The words between the highest so far and the new one begin anew, at most all of them. */
        uint64_t from = in->highest / 64 + 1, to = counter / 64;
        if (to >= from + SEEN_WORDS)
            from = to - SEEN_WORDS + 1;
        for (uint64_t word = from; word <= to; word++)
            in->seen[word % SEEN_WORDS] = 0;
        in->highest = counter;
    } else if (in->highest - counter > KVF_AUTH_WINDOW) {
        return false;
    }
    uint64_t *word = &in->seen[counter / 64 % SEEN_WORDS], bit = 1ull << counter % 64;
    if (*word & bit)
        return false;
    *word |= bit;
    return true;
}

enum kvf_status kvf_auth_open(struct kvf_auth *auth, const struct kvf_wire_header *header, const void *header_bytes,
                              const void *payload, size_t payload_bytes, uint64_t now_ns)
{
    size_t covered = kvf_auth_covers(header->type, payload_bytes) ? payload_bytes : 0;
    if (!auth->established)
        return KVF_ERR_PEER_AUTH;
    if (tag_fits(&auth->in, header, header_bytes, payload, covered)) {
        if (!note_counter(&auth->in, header->counter))
            return KVF_ERR_STALE;
        auth->confirmed = true;
        return KVF_OK;
    }
    if (now_ns < auth->before_until_ns && tag_fits(&auth->before, header, header_bytes, payload, covered))
        return note_counter(&auth->before, header->counter) ? KVF_OK : KVF_ERR_STALE;
    return KVF_ERR_PEER_AUTH;
}
