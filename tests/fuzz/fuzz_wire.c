// needs: fabric/wire.c
/* Every decoder of the fabric's frames on any bytes: the first byte chooses it. What a decoder takes must survive being
 * encoded and decoded again. */
#include "fabric/wire.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void demand(bool holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void header(const uint8_t *data, size_t size)
{
    struct kvf_wire_header first, second;
    uint8_t bytes[KVF_WIRE_HEADER_BYTES];
    if (kvf_wire_header_decode(data, size, &first) != KVF_OK)
        return;
    kvf_wire_header_encode(&first, bytes);
    demand(size == sizeof bytes && memcmp(bytes, data, size) == 0);
    demand(kvf_wire_header_decode(bytes, sizeof bytes, &second) == KVF_OK);
}

/* A valid magic and version in front, so that the fuzzer need not find them. */
static void header_rest(const uint8_t *data, size_t size)
{
    uint8_t bytes[KVF_WIRE_HEADER_BYTES] = {'K', 'V', 'F', 'B', KVF_WIRE_VERSION, 0};
    size_t n = size < sizeof bytes - 6 ? size : sizeof bytes - 6;
    memcpy(bytes + 6, data, n);
    header(bytes, sizeof bytes);
}

static void hello(const uint8_t *data, size_t size)
{
    static struct kvf_wire_hello decoded;
    uint8_t bytes[KVF_WIRE_HELLO_BYTES_MAX];
    size_t n = sizeof bytes;
    if (kvf_wire_hello_decode(data, size, &decoded) != KVF_OK)
        return;
    demand(kvf_wire_hello_encode(&decoded, bytes, &n) == KVF_OK);
    demand(n == size && memcmp(bytes, data, n) == 0);
}

static void proof(const uint8_t *data, size_t size)
{
    struct kvf_wire_proof decoded;
    uint8_t bytes[KVF_WIRE_PROOF_BYTES];
    if (kvf_wire_proof_decode(data, size, &decoded) != KVF_OK)
        return;
    kvf_wire_proof_encode(&decoded, bytes);
    demand(size == sizeof bytes && memcmp(bytes, data, size) == 0);
}

static void welcome(const uint8_t *data, size_t size)
{
    struct kvf_wire_welcome decoded;
    uint8_t bytes[KVF_WIRE_WELCOME_BYTES];
    if (kvf_wire_welcome_decode(data, size, &decoded) != KVF_OK)
        return;
    demand(kvf_wire_welcome_encode(&decoded, bytes) == KVF_OK);
    demand(size == sizeof bytes && memcmp(bytes, data, size) == 0);
}

static void pull(const uint8_t *data, size_t size)
{
    struct kvf_wire_pull decoded;
    uint8_t bytes[KVF_WIRE_PULL_BYTES_MAX];
    size_t n = sizeof bytes;
    if (kvf_wire_pull_decode(data, size, &decoded) != KVF_OK)
        return;
    demand(kvf_wire_pull_encode(&decoded, bytes, &n) == KVF_OK);
    demand(n == size && memcmp(bytes, data, n) == 0);
}

static void piece(const uint8_t *data, size_t size)
{
    struct kvf_region_piece decoded;
    uint8_t bytes[KVF_WIRE_PIECE_BYTES_MAX];
    size_t n = sizeof bytes;
    if (kvf_wire_piece_decode(data, size, &decoded) != KVF_OK)
        return;
    demand(kvf_wire_piece_encode(&decoded, bytes, &n) == KVF_OK);
    demand(n == size && memcmp(bytes, data, n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const decoders[])(const uint8_t *, size_t) = {header, header_rest, hello, pull, piece, proof, welcome};
    if (size == 0)
        return 0;
    decoders[data[0] % 7](data + 1, size - 1);
    return 0;
}
