/* A clock that is set by hand and random numbers from a seed: an env for protocols under test. One thread. */
#ifndef KVF_TESTS_SIM_ENV_H
#define KVF_TESTS_SIM_ENV_H

#include "base/env.h"

struct sim_env {
    struct kvf_env env; /* hand out &sim->env; its functions know this struct */
    uint64_t now_ns;    /* set it, or use advance; must not go back */
    uint64_t state;     /* of the generator */
    uint64_t nonces;    /* of a second one, for `secure`: how many nonces are drawn changes nothing else */
};

/* The struct must not be moved afterwards. The clock begins at one second, so that "0" is always the past. */
void sim_env_init(struct sim_env *sim, uint64_t seed);
void sim_env_advance(struct sim_env *sim, uint64_t delta_ns);
/* 0 .. bound-1; bound at least 1. */
uint64_t sim_env_random(struct sim_env *sim, uint64_t bound);
#endif
