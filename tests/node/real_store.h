/* A node over real UCX and etcd that keeps blocks by key, and lenders that are the test's own program again. */
#ifndef KVF_TESTS_NODE_REAL_STORE_H
#define KVF_TESTS_NODE_REAL_STORE_H

#include "base/env.h"
#include "base/hash.h"
#include "tests/node/real.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define BLOCK (64u << 10)

struct home {
    struct kvf_node *node;
    struct kvf_queue *queue;
    pid_t lender;
    uint64_t next; /* key to be put next */
};

static inline uint64_t now_ns(void) { return kvf_now(kvf_env_real()); }

/* settings: name, value, ..., NULL. NULL: it would not; a line says why where a setting is wrong. */
static inline struct kvf_node *node_open(const char *const *settings)
{
    struct kvf_config *config;
    struct kvf_node *node = NULL;
    if (kvf_config_create(&config) != KVF_OK)
        return NULL;
    bool good = true;
    for (unsigned i = 0; good && settings[i]; i += 2) {
        good = kvf_config_set(config, settings[i], settings[i + 1]) == KVF_OK;
        if (!good)
            fprintf(stderr, "%s = %s: %s\n", settings[i], settings[i + 1], kvf_config_error(config));
    }
    if (good && kvf_node_open(config, &node) != KVF_OK)
        node = NULL;
    kvf_config_destroy(config);
    return node;
}

/* This program again, with these arguments (NULL ends them) and, unless negative, these as its standard input and output. */
static inline pid_t program_again(char *const *arguments, int in, int out)
{
    char program[4096] = "";
    assert_true(readlink("/proc/self/exe", program, sizeof program - 1) > 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if ((in >= 0 && dup2(in, 0) < 0) || (out >= 0 && dup2(out, 1) < 0))
            _exit(6);
        execv(program, arguments);
        _exit(5);
    }
    return pid;
}

static inline struct kvf_key key_at(uint64_t i) { return (struct kvf_key){.hi = kvf_mix(i, SEED), .lo = i}; }

static inline void bytes_of(uint64_t key, uint8_t *to)
{
    for (uint32_t i = 0; i < BLOCK; i += 8) {
        uint64_t word = kvf_mix(key, i);
        memcpy(to + i, &word, sizeof word);
    }
}

/* Waits for the next completion. */
static inline struct kvf_completion next(struct home *h, uint64_t limit_ns)
{
    struct kvf_completion c = {.user = UINT64_MAX};
    size_t n = 0;
    for (uint64_t until = now_ns() + limit_ns; n == 0 && now_ns() < until;) {
        struct pollfd fd = {.fd = kvf_queue_fd(h->queue), .events = POLLIN};
        assert_int_equal(kvf_drain(h->queue, &c, 1, &n), KVF_OK);
        if (n == 0)
            poll(&fd, 1, 100);
    }
    assert_int_equal(n, 1);
    return c;
}

static inline void ask(struct home *h, enum kvf_op op, uint64_t key, void *data, uint64_t user)
{
    struct kvf_request r = {.op = op, .key = key_at(key), .data = data, .length = data ? BLOCK : 0, .user = user};
    size_t n = 0;
    assert_int_equal(kvf_submit(h->queue, &r, 1, 20 * KVF_SEC, &n), KVF_OK);
    assert_int_equal(n, 1);
}

static inline struct kvf_completion one(struct home *h, enum kvf_op op, uint64_t key, void *data)
{
    ask(h, op, key, data, key);
    return next(h, 30 * KVF_SEC);
}

static inline bool at_lender(struct home *h, uint64_t key)
{
    struct kvf_completion c = one(h, KVF_OP_EXISTS, key, NULL);
    return c.status == KVF_OK && c.tier == KVF_TIER_REMOTE;
}

static inline void assert_bytes(uint64_t key, const uint8_t *data)
{
    uint8_t want[BLOCK];
    bytes_of(key, want);
    assert_memory_equal(data, want, BLOCK);
}
#endif
