/* Bytes of frames: the header of every frame, and the payloads of the fabric's own messages. Everything is little-endian,
 * is tested in full when decoded, and is never taken over by a cast. docs/PROTOCOL.md tells when each is sent.
 *
 *     offset  bytes  header
 *          0      4  magic
 *          4      2  version
 *          6      2  type
 *          8      2  flags
 *         10      2  0
 *         12      4  status (of a reply or of a refused pull; else 0)
 *         16      8  sender: node id, a hash of the name
 *         24      8  sender's incarnation
 *         32      8  receiver's incarnation
 *         40      8  request: the asker's number; 0 where no answer is expected
 *         48      8  position: of a pull's bytes in the sequence of all its ranges; the number of a piece; in a welcome or
 *                    heartbeat, how many pieces of the sender's region are ready
 *         56      4  payload bytes
 *         60      4  budget: microseconds that the asker will still wait; 0 where it does not matter
 *         64      8  counter: of the frames of a session in one direction, from 1; 0 in a hello or proof
 *         72      8  tag: who knows the session's key wrote this (auth.h); 0 in a hello or proof
 *
 * No state, any thread.
 */
#ifndef KVF_FABRIC_WIRE_H
#define KVF_FABRIC_WIRE_H

#include "fabric/transport.h"

#define KVF_WIRE_MAGIC 0x4246564bu /* "KVFB" */
#define KVF_WIRE_VERSION 6
#define KVF_WIRE_HEADER_BYTES 80
#define KVF_WIRE_TAG_AT 72 /* the tag covers what is before it */
_Static_assert(KVF_WIRE_HEADER_BYTES <= KVF_FRAME_HEADER_MAX, "a transport carries our header");

#define KVF_WIRE_PAYLOAD_MAX (64u << 20) /* no transport has a larger frame */
#define KVF_WIRE_NAME_MAX 64             /* with the NUL */
#define KVF_WIRE_RANGES_MAX 64           /* of one PULL frame */
#define KVF_WIRE_PAGE 4096u
#define KVF_WIRE_KEY_ID_BYTES 8
#define KVF_WIRE_NONCE_BYTES 32
#define KVF_WIRE_MAC_BYTES 32            /* HMAC-SHA-256 */

enum kvf_wire_type {
    KVF_WIRE_HELLO = 1,     /* who I am, where, and a nonce: prove to me that you know the secret */
    KVF_WIRE_HEARTBEAT = 2, /* I live; no payload */
    KVF_WIRE_GOODBYE = 3,   /* I leave; no payload */
    KVF_WIRE_PULL = 4,      /* push me these ranges of your region */
    KVF_WIRE_PULL_DATA = 5, /* their bytes from `position` on; with a status that is not 0: refused, no payload */
    KVF_WIRE_REPLY = 6,     /* the answer to a request of the node */
    KVF_WIRE_PIECE_ASK = 7, /* tell me of piece `position` of your region; no payload */
    KVF_WIRE_PIECE = 8,     /* that is it */
    KVF_WIRE_PROOF = 9,     /* I know the secret: over your nonce and mine */
    KVF_WIRE_WELCOME = 10,  /* the first frame of a session: which memory may be pulled, and how much I take at once */
    KVF_WIRE_TYPE_NODE = 32 /* from here on the node's own requests and notices */
};

#define KVF_WIRE_FLAG_HEARD 1u /* of a welcome: yours has arrived, do not answer this one */

struct kvf_wire_header {
    uint16_t type, flags;
    int32_t status;
    uint64_t sender, sender_incarnation, receiver_incarnation;
    uint64_t request, position;
    uint32_t payload_bytes, budget_us;
    uint64_t counter, tag; /* kvf_fabric_post sets the one, auth.c the other */
};

/* The node id of a name: never 0. */
uint64_t kvf_wire_node_id(const char *name);

/* Writes KVF_WIRE_HEADER_BYTES. The fields must be valid: what this writes, decode takes. */
void kvf_wire_header_encode(const struct kvf_wire_header *header, void *out);

/* ERR_PEER_PROTOCOL (length, magic, a field that its type does not allow), ERR_PEER_VERSION. *out only on KVF_OK. */
enum kvf_status kvf_wire_header_decode(const void *data, size_t bytes, struct kvf_wire_header *out);
/* What stands in a header that decode refuses, field by field, for those who ask who wrote it. Errors of length, magic and
 * version as decode's; then only the sender is set, 0 when it is too short for one. */
enum kvf_status kvf_wire_header_peek(const void *data, size_t bytes, struct kvf_wire_header *out);

struct kvf_wire_hello {
    char name[KVF_WIRE_NAME_MAX]; /* letters, digits, . _ - */
    uint8_t address[KVF_ADDRESS_MAX];
    size_t address_bytes; /* at least 1 */
    uint8_t key_id[KVF_WIRE_KEY_ID_BYTES]; /* which secret made the mac */
    uint8_t nonce[KVF_WIRE_NONCE_BYTES];   /* to be answered by a proof */
    uint8_t mac[KVF_WIRE_MAC_BYTES];
};
#define KVF_WIRE_HELLO_BYTES_MAX \
    (1 + KVF_WIRE_NAME_MAX + 2 + KVF_ADDRESS_MAX + KVF_WIRE_KEY_ID_BYTES + KVF_WIRE_NONCE_BYTES + KVF_WIRE_MAC_BYTES)

/* *bytes is the room on entry and the size on return. ERR_INVALID: a field is out of bounds, or the room is too small. */
enum kvf_status kvf_wire_hello_encode(const struct kvf_wire_hello *hello, void *out, size_t *bytes);
/* ERR_PEER_PROTOCOL. *out only on KVF_OK. */
enum kvf_status kvf_wire_hello_decode(const void *data, size_t bytes, struct kvf_wire_hello *out);

struct kvf_wire_proof {
    uint8_t key_id[KVF_WIRE_KEY_ID_BYTES];
    uint8_t nonce[KVF_WIRE_NONCE_BYTES];  /* of the one who proves */
    uint8_t answers[KVF_WIRE_NONCE_BYTES]; /* of the one to whom it is proved */
    uint8_t mac[KVF_WIRE_MAC_BYTES];
};
#define KVF_WIRE_PROOF_BYTES (KVF_WIRE_KEY_ID_BYTES + 2 * KVF_WIRE_NONCE_BYTES + KVF_WIRE_MAC_BYTES)
/* Writes KVF_WIRE_PROOF_BYTES. Every value is one. */
void kvf_wire_proof_encode(const struct kvf_wire_proof *proof, void *out);
enum kvf_status kvf_wire_proof_decode(const void *data, size_t bytes, struct kvf_wire_proof *out);

struct kvf_wire_welcome {
    uint64_t region_base, region_bytes; /* 0 bytes: no region */
    uint32_t payload_max;               /* the largest payload that the sender takes */
};
#define KVF_WIRE_WELCOME_BYTES (8 + 8 + 4)
/* As for hello; writes KVF_WIRE_WELCOME_BYTES. */
enum kvf_status kvf_wire_welcome_encode(const struct kvf_wire_welcome *welcome, void *out);
enum kvf_status kvf_wire_welcome_decode(const void *data, size_t bytes, struct kvf_wire_welcome *out);

#define KVF_WIRE_PIECE_BYTES_MAX (8 + 8 + 2 + KVF_REGION_KEY_MAX)
/* As for hello. Whether the piece lies in the region is for the receiver to test. */
enum kvf_status kvf_wire_piece_encode(const struct kvf_region_piece *piece, void *out, size_t *bytes);
enum kvf_status kvf_wire_piece_decode(const void *data, size_t bytes, struct kvf_region_piece *out);

struct kvf_wire_range {
    uint64_t offset; /* in the region of the node that is asked */
    uint32_t bytes;  /* at least 1 */
};

struct kvf_wire_pull {
    unsigned n;           /* 1..KVF_WIRE_RANGES_MAX */
    uint16_t frame_pages; /* the largest PULL_DATA frame that suits the asker, in KVF_WIRE_PAGE bytes; 0: any */
    struct kvf_wire_range ranges[KVF_WIRE_RANGES_MAX];
};
#define KVF_WIRE_PULL_BYTES_MAX (4 + 12 * KVF_WIRE_RANGES_MAX)

/* As for hello. Whether the ranges lie in the region is for the one who serves them to test. */
enum kvf_status kvf_wire_pull_encode(const struct kvf_wire_pull *pull, void *out, size_t *bytes);
enum kvf_status kvf_wire_pull_decode(const void *data, size_t bytes, struct kvf_wire_pull *out);
#endif
