/* The clock and the generator of sim_env.h. */
#include "tests/sim/sim_env.h"

static uint64_t now(void *arg)
{
    return ((struct sim_env *)arg)->now_ns;
}

/* splitmix64: small, seedable, and the same everywhere. */
static uint64_t splitmix(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t next_random(void *arg)
{
    return splitmix(&((struct sim_env *)arg)->state);
}

static bool next_bytes(void *arg, void *out, size_t bytes)
{
    uint8_t *to = out;
    for (size_t i = 0; i < bytes; i++)
        to[i] = (uint8_t)splitmix(&((struct sim_env *)arg)->nonces);
    return true;
}

void sim_env_init(struct sim_env *sim, uint64_t seed)
{
    *sim = (struct sim_env){.env = {.arg = sim, .now_ns = now, .random = next_random, .secure = next_bytes},
                            .now_ns = KVF_SEC, .state = seed, .nonces = ~seed};
}

void sim_env_advance(struct sim_env *sim, uint64_t delta_ns)
{
    sim->now_ns += delta_ns;
}

uint64_t sim_env_random(struct sim_env *sim, uint64_t bound)
{
    return next_random(sim) % bound;
}
