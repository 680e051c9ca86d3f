/* A fork-join pool for the engine's matrix products: hundreds of short parallel sections per token, so idle threads spin
 * for some microseconds before they sleep. One caller at a time; the caller works too. */
#ifndef LLM_POOL_H
#define LLM_POOL_H

#include <stdbool.h>

struct llm_pool;

/* `threads` counts the caller: 1 makes no thread. NULL when out of memory or threads. */
struct llm_pool *llm_pool_create(unsigned threads);
void llm_pool_destroy(struct llm_pool *pool);
unsigned llm_pool_threads(const struct llm_pool *pool);

/* Calls fn(arg, item, thread) for every item 0..items-1, each once, on any thread (0..threads-1), and returns when all
 * are done. */
void llm_pool_run(struct llm_pool *pool, unsigned items, void (*fn)(void *arg, unsigned item, unsigned thread), void *arg);
#endif
