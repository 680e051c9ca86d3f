/* The seam for time and randomness. Protocols never read a clock: they ask their env, so that tests step it by hand. */
#ifndef KVF_BASE_ENV_H
#define KVF_BASE_ENV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvf_env {
    void *arg;
    uint64_t (*now_ns)(void *arg);  /* monotonic; never goes back */
    uint64_t (*random)(void *arg);  /* 64 random bits, for identities and jitter */
    /* Bytes that nobody can foresee, for nonces. false: this machine has none, or the env (NULL). */
    bool (*secure)(void *arg, void *out, size_t bytes);
};

/* The real one: CLOCK_MONOTONIC and getrandom(2). Thread-safe. */
const struct kvf_env *kvf_env_real(void);

#define KVF_US 1000ull
#define KVF_MS 1000000ull
#define KVF_SEC 1000000000ull

static inline uint64_t kvf_now(const struct kvf_env *env)
{
    return env->now_ns(env->arg);
}

static inline bool kvf_env_secure(const struct kvf_env *env, void *out, size_t bytes)
{
    return env->secure && env->secure(env->arg, out, bytes);
}

/* now + delta that saturates: a deadline. */
static inline uint64_t kvf_deadline(uint64_t now_ns, uint64_t delta_ns)
{
    return now_ns + delta_ns < now_ns ? UINT64_MAX : now_ns + delta_ns;
}
#endif
