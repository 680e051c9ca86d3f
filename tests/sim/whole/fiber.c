/* The fibers of fiber.h, over a switch of our own or ucontext; the address sanitizer is told of the stacks. */
#include "tests/sim/whole/fiber.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
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

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/* ucontext asks the kernel for the signal mask at every switch, which takes longer than what most fibers do in between. */
struct place {
    void *stack; /* where what a call keeps was pushed */
};
void fiber_switch(struct place *from, const struct place *to);
__asm__(".pushsection .text\n"
        ".local fiber_switch\n"
        ".type fiber_switch, @function\n"
        "fiber_switch:\n"
        "    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov (%rsi), %rsp\n"
        "    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
        "    ret\n"
        ".size fiber_switch, . - fiber_switch\n"
        ".popsection\n");

static void place_begin(struct place *place, char *stack, void (*function)(void))
{
    void **top = (void **)(stack + STACK_BYTES); /* a function finds the stack 8 bytes off a multiple of 16 */
    top[-1] = NULL;
    memcpy(&top[-2], &function, sizeof function);
    place->stack = memset(&top[-8], 0, 6 * sizeof *top);
}
#else
struct place {
    ucontext_t context;
};

static void fiber_switch(struct place *from, const struct place *to)
{
    swapcontext(&from->context, &to->context);
}

static void place_begin(struct place *place, char *stack, void (*function)(void))
{
    if (getcontext(&place->context) != 0)
        abort();
    place->context.uc_stack.ss_sp = stack;
    place->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&place->context, function, 0);
}
#endif

struct fiber {
    struct place place, back;
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
    fiber_switch(&fiber->place, &fiber->back);
    abort(); /* nobody resumes one that has ended */
}

struct fiber *fiber_create(void (*run)(void *arg), void *arg)
{
    struct fiber *fiber = calloc(1, sizeof *fiber);
    char *memory =
        mmap(NULL, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!fiber || memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0)
        abort();
    fiber->run = run;
    fiber->arg = arg;
    fiber->stack = memory + GUARD_BYTES;
    place_begin(&fiber->place, fiber->stack, enter);
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
    fiber_switch(&fiber->back, &fiber->place);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
    current = NULL;
    return !fiber->ended;
}

void fiber_yield(void)
{
    struct fiber *fiber = current;
    assert(fiber);
    __sanitizer_start_switch_fiber(&fiber->fake, fiber->back_bottom, fiber->back_size);
    fiber_switch(&fiber->place, &fiber->back);
    __sanitizer_finish_switch_fiber(fiber->fake, &fiber->back_bottom, &fiber->back_size);
}
