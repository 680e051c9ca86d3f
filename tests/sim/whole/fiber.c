/* The fibers of fiber.h over ucontext; the address sanitizer is told of the stacks. */
#include "tests/sim/whole/fiber.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else /* nobody watches the stacks */
static void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size)
{
}
static void __sanitizer_finish_switch_fiber(void *saved, const void **bottom, size_t *size)
{
}
#endif

#define STACK_BYTES (512u << 10)
#define GUARD_BYTES 4096u

struct fiber {
    ucontext_t context, back;
    void (*run)(void *arg);
    void *arg;
    char *stack; /* above a page that faults */
    bool ended;
    void *fake; /* the sanitizer's, while it is not running */
    const void *back_bottom;
    size_t back_size;
};

static struct fiber *current; /* one thread runs them all */

static void enter(void)
{
    struct fiber *fiber = current;
    __sanitizer_finish_switch_fiber(NULL, &fiber->back_bottom, &fiber->back_size);
    fiber->run(fiber->arg);
    fiber->ended = true;
    __sanitizer_start_switch_fiber(NULL, fiber->back_bottom, fiber->back_size);
    swapcontext(&fiber->context, &fiber->back);
    abort(); /* nobody resumes one that has ended */
}

struct fiber *fiber_create(void (*run)(void *arg), void *arg)
{
    struct fiber *fiber = calloc(1, sizeof *fiber);
    char *memory =
        mmap(NULL, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!fiber || memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0 || getcontext(&fiber->context) != 0)
        abort();
    fiber->run = run;
    fiber->arg = arg;
    fiber->stack = memory + GUARD_BYTES;
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber->context, enter, 0);
    return fiber;
}

void fiber_destroy(struct fiber *fiber)
{
    if (!fiber)
        return;
    munmap(fiber->stack - GUARD_BYTES, GUARD_BYTES + STACK_BYTES);
    free(fiber);
}

bool fiber_ended(const struct fiber *fiber)
{
    return fiber->ended;
}

bool fiber_inside(void)
{
    return current != NULL;
}

bool fiber_resume(struct fiber *fiber)
{
    void *fake = NULL;
    assert(!current);
    if (fiber->ended)
        return false;
    current = fiber;
    __sanitizer_start_switch_fiber(&fake, fiber->stack, STACK_BYTES);
    swapcontext(&fiber->back, &fiber->context);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
    current = NULL;
    return !fiber->ended;
}

void fiber_yield(void)
{
    struct fiber *fiber = current;
    assert(fiber);
    __sanitizer_start_switch_fiber(&fiber->fake, fiber->back_bottom, fiber->back_size);
    swapcontext(&fiber->context, &fiber->back);
    __sanitizer_finish_switch_fiber(fiber->fake, &fiber->back_bottom, &fiber->back_size);
}
