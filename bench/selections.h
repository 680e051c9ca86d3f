/* A selection log (docs/FORMAT.md): which chunks every decode step of a recorded run chose, and the scores of all.
 *
 * The bytes come from outside: decode takes nothing for granted, and what it accepts is whole (every step has one entry per
 * layer and head) and within the limits below. */
#ifndef KVF_BENCH_SELECTIONS_H
#define KVF_BENCH_SELECTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KVF_SELECTIONS_STREAMS_MAX = 1 << 16, /* layers * heads */
    KVF_SELECTIONS_STEPS_MAX = 1 << 20,
    KVF_SELECTIONS_CHUNKS_MAX = 1 << 18,
};

/* One attend of one (layer, KV head). Pointers into the log's bytes. */
struct kvf_selections_entry {
    uint32_t chunks; /* chosen from so many */
    uint32_t best;   /* so many for their score */
    uint32_t chosen;
    const uint8_t *bits;   /* 32-bit words: chunk c is bit c % 32 of word c / 32 */
    const uint8_t *scores; /* fp32 */
};

struct kvf_selections {
    char model[64];
    uint32_t layers, heads, chunk_tokens, steps;
    float budget;
    struct kvf_selections_entry *entries; /* [steps][layers * heads] */
    uint32_t chosen_max, chunks_max;      /* over all entries */
    uint64_t chosen;                      /* in all */
    uint8_t *bytes;                       /* owned when loaded from a file, else NULL */
};

/* NULL, or a sentence that says why the bytes are no log; then nothing is owned. `bytes` must outlive the result. */
const char *kvf_selections_decode(struct kvf_selections *out, const void *bytes, size_t size);
/* The same for a file of at most 4 GiB. */
const char *kvf_selections_load(struct kvf_selections *out, const char *path);
void kvf_selections_free(struct kvf_selections *s);

bool kvf_selections_chose(const struct kvf_selections_entry *e, uint32_t chunk);
float kvf_selections_score(const struct kvf_selections_entry *e, uint32_t chunk);
#endif
