/* One line about what went wrong: what was being done, why it failed, what to try. */
#ifndef LLM_ERROR_H
#define LLM_ERROR_H

#include <stdbool.h>

struct llm_error {
    char text[512];
};

/* Writes the line and returns false, so that a function can end with `return llm_error_set(error, ...)`. */
bool llm_error_set(struct llm_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
#endif
