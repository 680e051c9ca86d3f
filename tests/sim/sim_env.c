/* The clock and the generator of sim_env.h. */
#include "tests/sim/sim_env.h"

static uint64_t now(void *arg)
{
    return ((struct sim_env *)arg)->now_ns;
}

/* splitmix64: small, seedable, and the same everywhere. */
static uint64_t next_random(void *arg)
{
    struct sim_env *sim = arg;
    uint64_t x = sim->state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

void sim_env_init(struct sim_env *sim, uint64_t seed)
{
    *sim = (struct sim_env){.env = {.arg = sim, .now_ns = now, .random = next_random}, .now_ns = KVF_SEC, .state = seed};
}

void sim_env_advance(struct sim_env *sim, uint64_t delta_ns)
{
    sim->now_ns += delta_ns;
}

uint64_t sim_env_random(struct sim_env *sim, uint64_t bound)
{
    return next_random(sim) % bound;
}
