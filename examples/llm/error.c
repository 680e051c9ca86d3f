#include "error.h"

#include <stdarg.h>
#include <stdio.h>

bool llm_error_set(struct llm_error *error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    for (char *p = error->text; *p; p++) /* names from a file may hold anything: it stays one line */
        if ((unsigned char)*p < ' ' || *p == 127)
            *p = '?';
    return false;
}
