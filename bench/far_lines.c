/* The lines at the door (far_lines.h): words with one space between them. */
#include "bench/far_lines.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/err.h>

#define WORDS_MAX 7

struct words {
    char text[KVF_FAR_LINE_MAX];
    unsigned n;
    const char *at[WORDS_MAX];
};

/* False: the line is too long, or has too many words, or an empty one. */
static bool split(const char *line, struct words *w)
{
    size_t length = strnlen(line, sizeof w->text);
    if (length == sizeof w->text)
        return false;
    memcpy(w->text, line, length + 1);
    w->n = 0;
    for (char *at = w->text;;) {
        char *end = at + strcspn(at, " ");
        if (end == at || w->n == WORDS_MAX)
            return false;
        w->at[w->n++] = at;
        if (!*end)
            return true;
        *end = 0;
        at = end + 1;
    }
}

/* Decimal digits, and nothing else. */
static bool number(const char *word, uint64_t least, uint64_t most, uint64_t *out)
{
    uint64_t value = 0;
    for (const char *at = word; *at; at++) {
        unsigned digit = (unsigned)(*at - '0');
        if (digit > 9 || value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    if (!*word || value < least || value > most)
        return false;
    *out = value;
    return true;
}

static void to_hex(const void *data, size_t bytes, char *text, size_t room)
{
    int good = OPENSSL_buf2hexstr_ex(text, room, NULL, data, bytes, 0);
    assert(good);
    (void)good;
}

/* How many bytes the text has; 0: it is not hex, or too much. */
static size_t from_hex(const char *text, void *data, size_t room)
{
    size_t bytes = 0;
    bool good = OPENSSL_hexstr2buf_ex(data, room, &bytes, text, 0);
    ERR_clear_error(); /* it says there what was wrong */
    return good ? bytes : 0;
}

/* ------------------------------------------------------------------------------------------------- written */

static size_t written(int length)
{
    assert(length > 0 && length < KVF_FAR_LINE_MAX);
    return (size_t)length;
}

size_t kvf_far_lines_challenge_write(char line[KVF_FAR_LINE_MAX], const uint8_t nonce[KVF_FAR_NONCE_BYTES])
{
    char text[2 * KVF_FAR_NONCE_BYTES + 1];
    to_hex(nonce, KVF_FAR_NONCE_BYTES, text, sizeof text);
    return written(snprintf(line, KVF_FAR_LINE_MAX, "kvf-bench 2 %s\n", text));
}

size_t kvf_far_lines_proof_write(char line[KVF_FAR_LINE_MAX], const uint8_t id[KVF_SECRET_ID_BYTES],
                                 const uint8_t mac[KVF_SECRET_MAC_BYTES])
{
    char id_text[2 * KVF_SECRET_ID_BYTES + 1], mac_text[2 * KVF_SECRET_MAC_BYTES + 1];
    to_hex(id, KVF_SECRET_ID_BYTES, id_text, sizeof id_text);
    to_hex(mac, KVF_SECRET_MAC_BYTES, mac_text, sizeof mac_text);
    return written(snprintf(line, KVF_FAR_LINE_MAX, "%s %s\n", id_text, mac_text));
}

size_t kvf_far_lines_offer_write(char line[KVF_FAR_LINE_MAX], const struct kvf_far_node *node)
{
    char text[2 * KVF_ADDRESS_MAX + 1];
    to_hex(node->at.address, node->at.bytes, text, sizeof text);
    return written(snprintf(line, KVF_FAR_LINE_MAX, "ok %s %llu %s %llu %llu %s\n", node->at.name,
                            (unsigned long long)node->at.incarnation, node->transport, (unsigned long long)node->region_bytes,
                            (unsigned long long)node->seed, text));
}

/* ------------------------------------------------------------------------------------------------- read */

bool kvf_far_lines_challenge_read(const char *line, uint8_t nonce[KVF_FAR_NONCE_BYTES])
{
    struct words w;
    uint8_t found[KVF_FAR_NONCE_BYTES];
    if (!split(line, &w) || w.n != 3 || strcmp(w.at[0], "kvf-bench") != 0 || strcmp(w.at[1], "2") != 0 ||
        from_hex(w.at[2], found, sizeof found) != sizeof found)
        return false;
    memcpy(nonce, found, sizeof found);
    return true;
}

bool kvf_far_lines_proof_read(const char *line, uint8_t id[KVF_SECRET_ID_BYTES], uint8_t mac[KVF_SECRET_MAC_BYTES])
{
    struct words w;
    uint8_t found_id[KVF_SECRET_ID_BYTES], found_mac[KVF_SECRET_MAC_BYTES];
    if (!split(line, &w) || w.n != 2 || from_hex(w.at[0], found_id, sizeof found_id) != sizeof found_id ||
        from_hex(w.at[1], found_mac, sizeof found_mac) != sizeof found_mac)
        return false;
    memcpy(id, found_id, sizeof found_id);
    memcpy(mac, found_mac, sizeof found_mac);
    return true;
}

bool kvf_far_lines_offer_read(const char *line, struct kvf_far_node *out)
{
    static const char *const transports[] = {"tcp", "shm", "auto", "rdma"};
    struct words w;
    struct kvf_far_node found = {0};
    bool known = false;
    if (!split(line, &w) || w.n != 7 || strcmp(w.at[0], "ok") != 0 || strlen(w.at[1]) >= sizeof found.at.name)
        return false;
    for (unsigned i = 0; i < sizeof transports / sizeof transports[0]; i++)
        known |= strcmp(w.at[3], transports[i]) == 0;
    found.at.bytes = from_hex(w.at[6], found.at.address, sizeof found.at.address);
    if (!known || found.at.bytes == 0 || !number(w.at[2], 1, UINT64_MAX, &found.at.incarnation) ||
        !number(w.at[4], KVF_FAR_REGION_LEAST, KVF_FAR_REGION_MOST, &found.region_bytes) || found.region_bytes % (1 << 20) != 0 ||
        !number(w.at[5], 0, UINT64_MAX, &found.seed))
        return false;
    snprintf(found.at.name, sizeof found.at.name, "%s", w.at[1]);
    snprintf(found.transport, sizeof found.transport, "%s", w.at[3]);
    *out = found;
    return true;
}

enum kvf_far_order kvf_far_lines_order_read(const char *line)
{
    if (strcmp(line, "stop") == 0)
        return KVF_FAR_STOP;
    if (strcmp(line, "start ucx_perftest") == 0)
        return KVF_FAR_PERFTEST;
    return strcmp(line, "start iperf3") == 0 ? KVF_FAR_IPERF : KVF_FAR_NONE;
}

unsigned kvf_far_lines_port_read(const char *line)
{
    struct words w;
    uint64_t port = 0;
    bool good = split(line, &w) && w.n == 2 && strcmp(w.at[0], "ok") == 0 && number(w.at[1], 1, 65535, &port);
    return good ? (unsigned)port : 0;
}
