/* The real clock and the real randomness. */
#include "base/env.h"
#include "base/hash.h"

#include <errno.h>
#include <sys/random.h>
#include <time.h>

static uint64_t real_now(void *arg)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * KVF_SEC + (uint64_t)t.tv_nsec;
}

static uint64_t real_random(void *arg)
{
    uint64_t value;
    for (;;) {
        ssize_t n = getrandom(&value, sizeof value, 0);
        if (n == (ssize_t)sizeof value)
            return value;
        if (n < 0 && errno != EINTR)
            break;
    }
    /* A sandbox may refuse the call. The numbers are for identities and jitter: clocks and an address that differs from
     * process to process are enough then. They are not for nonces; see real_secure. */
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return kvf_mix((uint64_t)t.tv_sec * KVF_SEC + (uint64_t)t.tv_nsec, kvf_mix(real_now(arg), (uint64_t)(uintptr_t)&value));
}

static bool real_secure(void *arg, void *out, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t n = getrandom((char *)out + at, bytes - at, 0);
        if (n < 0 && errno != EINTR)
            return false; /* nothing else is good enough */
        at += n > 0 ? (size_t)n : 0;
    }
    return true;
}

const struct kvf_env *kvf_env_real(void)
{
    static const struct kvf_env env = {.now_ns = real_now, .random = real_random, .secure = real_secure};
    return &env;
}
