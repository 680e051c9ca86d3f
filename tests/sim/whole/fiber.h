/* Fibers: calls of the public API that wait are run on stacks of their own, so that many callers can wait at once in one thread.
 *
 * A fiber runs from a resume to its next yield. Never inside another fiber. */
#ifndef KVF_TESTS_SIM_WHOLE_FIBER_H
#define KVF_TESTS_SIM_WHOLE_FIBER_H

#include <stdbool.h>

struct fiber;

/* Begins at the first resume. Aborts without memory. */
struct fiber *fiber_create(void (*run)(void *arg), void *arg);
/* Ended, or never resumed. */
void fiber_destroy(struct fiber *fiber);
/* False: it has ended. */
bool fiber_resume(struct fiber *fiber);
bool fiber_ended(const struct fiber *fiber);
/* From inside of one: back to who resumed it. */
void fiber_yield(void);
/* Whether the caller is one. */
bool fiber_inside(void);
#endif
