/* Reader of GGUF model files (versions 2 and 3, little-endian): typed values by name, tensors by name.
 *
 * The file is mapped, never copied. Everything in it is untrusted: each length, count, offset and product of dimensions
 * is checked against the file before it is used, so that a damaged file gives one line and not a crash. Values and
 * tensors point into the map and live until llm_gguf_close. */
#ifndef LLM_GGUF_H
#define LLM_GGUF_H

#include "error.h"

#include <stddef.h>
#include <stdint.h>

/* Value types of the format. */
enum llm_gguf_type {
    LLM_GGUF_U8, LLM_GGUF_I8, LLM_GGUF_U16, LLM_GGUF_I16, LLM_GGUF_U32, LLM_GGUF_I32, LLM_GGUF_F32, LLM_GGUF_BOOL,
    LLM_GGUF_STRING, LLM_GGUF_ARRAY, LLM_GGUF_U64, LLM_GGUF_I64, LLM_GGUF_F64,
    LLM_GGUF_TYPES
};

/* Bytes inside the file, not NUL-ended. */
struct llm_text {
    const char *data;
    size_t length;
};

struct llm_gguf_value {
    struct llm_text key;
    uint32_t type;         /* enum llm_gguf_type */
    uint32_t element_type; /* of an array */
    uint64_t count;        /* elements of an array, else 1 */
    const uint8_t *data;   /* first element: the scalar, or for strings the 8-byte length that precedes the bytes */
    const uint8_t *end;    /* one past the value */
};

struct llm_tensor {
    struct llm_text name;
    uint32_t type;    /* enum llm_quant_type; types that are not known have bytes = 0 and data = NULL */
    uint32_t n_dims;  /* 1..4 */
    uint64_t dims[4]; /* dims[0] runs fastest; unused ones are 1 */
    const uint8_t *data;
    uint64_t bytes;
};

struct llm_gguf {
    const uint8_t *map;
    size_t size;
    uint32_t version;
    uint64_t n_values, n_tensors;
    struct llm_gguf_value *values;
    struct llm_tensor *tensors;
};

/* Maps and checks a file. On false nothing is kept and `error` says what is wrong with which part. */
bool llm_gguf_open(struct llm_gguf *gguf, const char *path, struct llm_error *error);
/* The same over bytes that the caller keeps until close (tests). */
bool llm_gguf_parse(struct llm_gguf *gguf, const void *data, size_t size, struct llm_error *error);
void llm_gguf_close(struct llm_gguf *gguf);

/* Lookups; false or NULL when the key is absent or of another kind. Integers of every width are taken as uint64_t when
 * not negative, f64 as f32. */
bool llm_gguf_uint(const struct llm_gguf *gguf, const char *key, uint64_t *out);
bool llm_gguf_float(const struct llm_gguf *gguf, const char *key, float *out);
bool llm_gguf_string(const struct llm_gguf *gguf, const char *key, struct llm_text *out);
const struct llm_gguf_value *llm_gguf_array(const struct llm_gguf *gguf, const char *key, enum llm_gguf_type element_type);
const struct llm_tensor *llm_gguf_tensor(const struct llm_gguf *gguf, const char *name);

/* Walks an array of strings: *at starts as value->data; each call gives the next string. False past the end. */
bool llm_gguf_next_string(const struct llm_gguf_value *value, const uint8_t **at, struct llm_text *out);
#endif
