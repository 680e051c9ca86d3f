// needs: bench/selections.c
/* The selection log's decoder on any bytes: what it accepts can be read to the last bit. */
#include "bench/selections.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const void *bytes, size_t size)
{
    struct kvf_selections s;
    if (kvf_selections_decode(&s, bytes, size))
        return;
    uint64_t chosen = 0;
    for (size_t i = 0; i < (size_t)s.steps * s.layers * s.heads; i++) {
        const struct kvf_selections_entry *e = &s.entries[i];
        for (uint32_t c = 0; c < e->chunks; c++) {
            chosen += kvf_selections_chose(e, c);
            volatile float score = kvf_selections_score(e, c);
            (void)score;
        }
    }
    if (chosen != s.chosen || !memchr(s.model, 0, sizeof s.model))
        abort();
    kvf_selections_free(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t log[8192] = {'K', 'V', 'F', 'S', 'E', 'L', 'E', 'C', 1, 0, 0, 0, 1, 0,
                                0,   0,   2,   0,   0,   0,   16,  0,   0, 0, 0, 0, 0, 0x3e};
    read_all(data, size);
    /* Behind a good head, so that the fuzzer need not find one. */
    size_t n = size < sizeof log - 96 ? size : sizeof log - 96;
    memcpy(log + 96, data, n);
    read_all(log, 96 + n);
    return 0;
}
