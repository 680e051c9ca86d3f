/* An engine for tests: K, V and q are random numbers that depend on a seed, the layer and the position alone, so that any step can
 * be done again anywhere; attention is compared, bit for bit, with that of a node that has everything in DRAM. */
#ifndef KVF_TESTS_SIM_ENGINE_H
#define KVF_TESTS_SIM_ENGINE_H

#include "tests/sim/sim_cluster.h"

struct sim_engine {
    struct kvf_model_desc desc;
    uint64_t seed;
    uint32_t tokens_max;
    bool clone;        /* the reference and the rows are another's */
    float *reference;  /* [layers][tokens_max][q_heads * dim_v] */
    float *k, *v, *q;  /* [layers][tokens_max][heads * dim] */
    float *out;        /* of one step */
    uint64_t compared;  /* rows that were compared, */
    uint64_t different; /* ... and differed */
    double error2, norm2; /* of what was compared: the squares of the differences, and of the twin's numbers */
    uint64_t refills;   /* ranges that were recomputed */
    struct kvf_attend_options *options; /* of every attend; NULL: none. With a budget nothing is compared */
    /* Around every call of the public API, when set: before it, and (status) after. */
    void (*calls)(void *arg, const char *call);
    void (*called)(void *arg, enum kvf_status status);
    void *calls_arg;
};

/* chunk_tokens and block_tokens of a model of 2 layers, 2 KV heads, 4 heads, dimension `dim`. Builds the reference. */
struct sim_engine *sim_engine_create(uint64_t seed, uint32_t dim, enum kvf_dtype dtype, uint32_t chunk_tokens,
                                     uint32_t block_tokens, uint32_t tokens_max);
void sim_engine_destroy(struct sim_engine *engine);
/* One with memory and counts of its own over the same reference, for one of several that step at the same time. The first must
 * outlive it. */
struct sim_engine *sim_engine_clone(const struct sim_engine *engine);

/* The token at a position. */
int32_t sim_engine_token(const struct sim_engine *engine, uint64_t position);
struct kvf_model *sim_engine_model(const struct sim_engine *engine, struct sim_node *node);

/* One step of n tokens: append, attend and compare, commit. Anything but KVF_OK aborted the step. */
enum kvf_status sim_engine_step(struct sim_engine *engine, struct kvf_session *session, uint32_t n);
/* ... which stands before the commit. */
enum kvf_status sim_engine_step_open(struct sim_engine *engine, struct kvf_session *session, uint32_t n);
/* Recomputes every lost range. */
enum kvf_status sim_engine_refill(struct sim_engine *engine, struct kvf_session *session);
/* Steps of n tokens until the session has `tokens`, refilling what is lost. */
enum kvf_status sim_engine_run(struct sim_engine *engine, struct kvf_session *session, uint64_t tokens, uint32_t n);
#endif
