/* What the tests of the example engine share: a tiny random model in a temporary directory, and a generator. */
#ifndef LLM_FIXTURE_H
#define LLM_FIXTURE_H

#include <examples/llm/random.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* Widths that are no multiple of a panel, so that edges are walked. */
static const struct llm_random_shape fixture_shape = {
    .layers = 2, .embedding = 80, .ffn = 72, .q_heads = 6, .kv_heads = 2, .dim = 16, .context = 512};

struct fixture {
    char folder[64], path[96];
};

static inline void fixture_open(struct fixture *f, uint64_t seed)
{
    struct llm_error error;
    const char *tmp = getenv("TMPDIR");
    snprintf(f->folder, sizeof f->folder, "%.40s/llm-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof f->path, "%s/m.gguf", f->folder);
    assert_true(llm_random_write(f->path, &fixture_shape, seed, &error));
}

static inline void fixture_close(struct fixture *f)
{
    unlink(f->path);
    rmdir(f->folder);
}

static inline uint64_t fixture_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* The whole file, malloc'ed. */
static inline uint8_t *fixture_read(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(*size);
    assert_int_equal(fread(data, 1, *size, file), *size);
    fclose(file);
    return data;
}
#endif
