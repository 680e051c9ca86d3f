/* The lines at the door between the benches of two machines (far.h):
 *
 *     serving: kvf-bench 2 NONCE               16 bytes in hex
 *     caller:  ID MAC                          of the secret, over "kvf bench" and the nonce, in hex
 *     serving: ok NAME INCARNATION TRANSPORT REGION_BYTES SEED ADDRESS
 *     caller:  start PROGRAM | stop            again and again
 *     serving: ok PORT       | ok
 *
 * Who reads a line knows nothing of who wrote it: what is no such line is refused, and values are within their bounds. Nothing is
 * kept; outputs are set only when true is returned. Any thread. */
#ifndef KVF_BENCH_FAR_LINES_H
#define KVF_BENCH_FAR_LINES_H

#include "bench/far.h"

#define KVF_FAR_NONCE_BYTES 16
#define KVF_FAR_LINE_MAX (2 * KVF_ADDRESS_MAX + 256) /* with its end */
#define KVF_FAR_REGION_LEAST (256ull << 20) /* a region's bytes: as --memory allows, and as many pieces as it may have */
#define KVF_FAR_REGION_MOST (16ull << 30)

enum kvf_far_order { KVF_FAR_NONE, KVF_FAR_STOP, KVF_FAR_PERFTEST, KVF_FAR_IPERF };

/* Lines as they are sent, with their end; the bytes of one. */
size_t kvf_far_lines_challenge_write(char line[KVF_FAR_LINE_MAX], const uint8_t nonce[KVF_FAR_NONCE_BYTES]);
size_t kvf_far_lines_proof_write(char line[KVF_FAR_LINE_MAX], const uint8_t id[KVF_SECRET_ID_BYTES],
                                 const uint8_t mac[KVF_SECRET_MAC_BYTES]);
size_t kvf_far_lines_offer_write(char line[KVF_FAR_LINE_MAX], const struct kvf_far_node *node);

/* Lines as they came, without their end. */
bool kvf_far_lines_challenge_read(const char *line, uint8_t nonce[KVF_FAR_NONCE_BYTES]);
bool kvf_far_lines_proof_read(const char *line, uint8_t id[KVF_SECRET_ID_BYTES], uint8_t mac[KVF_SECRET_MAC_BYTES]);
bool kvf_far_lines_offer_read(const char *line, struct kvf_far_node *out);
/* NONE: it is no order. */
enum kvf_far_order kvf_far_lines_order_read(const char *line);
/* The port that the answer to a start names; 0: it names none. */
unsigned kvf_far_lines_port_read(const char *line);
#endif
