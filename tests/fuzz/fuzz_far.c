/* Any line at the door between two benches: refused, or values within their bounds, which are the same when they are written and
 * read again. */
// needs: bench/far_lines.c
// libs: -lcrypto
#include "bench/far_lines.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool truth)
{
    if (!truth)
        abort();
}

/* A line that we wrote, without its end. */
static void cut(char *line, size_t bytes)
{
    require(bytes == strlen(line) && bytes < KVF_FAR_LINE_MAX && strchr(line, '\n') == line + bytes - 1);
    line[bytes - 1] = 0;
}

static void offer(const char *line)
{
    struct kvf_far_node node, again;
    char text[KVF_FAR_LINE_MAX];
    if (!kvf_far_lines_offer_read(line, &node))
        return;
    require(node.at.bytes > 0 && node.at.bytes <= sizeof node.at.address && node.at.incarnation > 0);
    require(node.region_bytes >= KVF_FAR_REGION_LEAST && node.region_bytes <= KVF_FAR_REGION_MOST);
    require(memchr(node.at.name, 0, sizeof node.at.name) && memchr(node.transport, 0, sizeof node.transport));
    cut(text, kvf_far_lines_offer_write(text, &node));
    require(kvf_far_lines_offer_read(text, &again) && memcmp(&node, &again, sizeof node) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint8_t nonce[2][KVF_FAR_NONCE_BYTES], id[2][KVF_SECRET_ID_BYTES], mac[2][KVF_SECRET_MAC_BYTES];
    char text[KVF_FAR_LINE_MAX], *line = malloc(bytes + 1); /* of its exact size, so that a read behind it is seen */
    require(line != NULL);
    memcpy(line, data, bytes);
    line[bytes] = 0;
    if (kvf_far_lines_challenge_read(line, nonce[0])) {
        cut(text, kvf_far_lines_challenge_write(text, nonce[0]));
        require(kvf_far_lines_challenge_read(text, nonce[1]) && memcmp(nonce[0], nonce[1], sizeof nonce[0]) == 0);
    }
    if (kvf_far_lines_proof_read(line, id[0], mac[0])) {
        cut(text, kvf_far_lines_proof_write(text, id[0], mac[0]));
        require(kvf_far_lines_proof_read(text, id[1], mac[1]) && memcmp(id[0], id[1], sizeof id[0]) == 0 &&
                memcmp(mac[0], mac[1], sizeof mac[0]) == 0);
    }
    offer(line);
    require(kvf_far_lines_order_read(line) <= KVF_FAR_IPERF && kvf_far_lines_port_read(line) <= 65535);
    free(line);
    return 0;
}
