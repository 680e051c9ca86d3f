/* What the tests of the node share: a seed, an engine, and short names. */
#ifndef KVF_TESTS_NODE_WORLD_H
#define KVF_TESTS_NODE_WORLD_H

#include "tests/sim/sim_cluster.h"
#include "tests/sim/sim_engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 20261124
#define KIB 1024ull
#define SLOT 4096ull /* bytes of a block of `engine` */

static struct sim_engine *engine; /* blocks of 4 KiB: 64 tokens in chunks of 8 */

static inline int engine_make(void **state)
{
    printf("seed %d\n", SEED);
    engine = sim_engine_create(SEED, 16, KVF_F16, 8, 64, 1600);
    return 0;
}

static inline int engine_free(void **state)
{
    sim_engine_destroy(engine);
    return 0;
}

static struct sim_engine *large; /* blocks of 16 KiB in chunks of 4 KiB, as a model's are */

static inline int engines_make(void **state)
{
    engine_make(state);
    large = sim_engine_create(SEED + 9, 64, KVF_F16, 16, 64, 1400);
    return 0;
}

static inline int engines_free(void **state)
{
    sim_engine_destroy(large);
    return engine_free(state);
}

static inline uint64_t blocks_in(struct kvf_session *s, enum kvf_tier tier)
{
    struct kvf_session_info info;
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    return info.blocks[tier];
}

static inline uint64_t tokens_of(struct kvf_session *s)
{
    struct kvf_session_info info;
    assert_int_equal(kvf_session_info(s, &info), KVF_OK);
    return info.tokens;
}

static inline struct kvf_session *session_on(struct sim_node *node, uint64_t id)
{
    struct kvf_session *s = NULL;
    assert_int_equal(kvf_session_create(&node->node, sim_engine_model(engine, node), id, &s), KVF_OK);
    return s;
}

/* Every row that was compared since the last call had the twin's bits, and there were some. */
static inline void assert_same_bits(struct sim_engine *e)
{
    uint64_t compared = e->compared, different = e->different;
    e->compared = e->different = 0;
    assert_true(compared > 0);
    assert_int_equal(different, 0);
}

/* Forgets what staging keeps, so that the next attend reads anew. */
static inline void staging_forget(struct sim_node *node)
{
    uint64_t cursor = 0;
    for (kvf_handle h; (h = kvf_index_walk(node->core->index, &cursor)) != KVF_HANDLE_NONE;)
        kvf_stage_drop(node->core, h);
}

static inline uint64_t counted(struct sim_node *node, size_t offset)
{
    return kvf_counted((const _Atomic uint64_t *)((const char *)&node->core->counters + offset));
}
#define COUNTED(node, name) counted(node, offsetof(struct kvf_counters, name))
#endif
