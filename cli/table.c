/* Columns for people. */
#include "cli/table.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS_MAX 16
#define CELL_MAX 96

struct kvf_table {
    unsigned columns;
    bool right[COLUMNS_MAX];
    size_t cells, room; /* the titles are the first row */
    char (*text)[CELL_MAX];
};

static void add(struct kvf_table *table, const char *text)
{
    if (table->cells == table->room) {
        size_t room = table->room ? table->room * 2 : 64;
        char (*grown)[CELL_MAX] = realloc(table->text, room * sizeof *grown);
        if (!grown)
            return; /* the table ends here */
        table->text = grown;
        table->room = room;
    }
    char *cell = table->text[table->cells++];
    snprintf(cell, CELL_MAX, "%s", text);
    for (char *c = cell; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
}

struct kvf_table *kvf_table_create(const char *titles)
{
    struct kvf_table *table = calloc(1, sizeof *table);
    while (table && *titles && table->columns < COLUMNS_MAX) {
        char title[CELL_MAX];
        size_t length = strcspn(titles, "|");
        bool right = *titles == '>';
        snprintf(title, sizeof title, "%.*s", (int)(length - right), titles + right);
        table->right[table->columns++] = right;
        add(table, title);
        titles += length + (titles[length] == '|');
    }
    return table;
}

void kvf_table_destroy(struct kvf_table *table)
{
    if (table)
        free(table->text);
    free(table);
}

void kvf_table_cell(struct kvf_table *table, const char *format, ...)
{
    char text[CELL_MAX];
    va_list args;
    if (!table)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    add(table, text);
}

void kvf_table_row_end(struct kvf_table *table)
{
    while (table && table->columns && table->cells % table->columns) {
        size_t before = table->cells;
        add(table, "-");
        if (table->cells == before)
            return;
    }
}

void kvf_table_print(const struct kvf_table *table, FILE *out, const char *indent)
{
    if (!table)
        return;
    size_t widths[COLUMNS_MAX] = {0};
    for (size_t i = 0; i < table->cells; i++) {
        size_t length = strlen(table->text[i]);
        if (length > widths[i % table->columns])
            widths[i % table->columns] = length;
    }
    for (size_t i = 0; i < table->cells; i++) {
        size_t column = i % table->columns;
        bool last = column + 1 == table->columns || i + 1 == table->cells;
        int width = (int)widths[column];
        if (!column)
            fputs(indent, out);
        if (last && !table->right[column])
            width = 0; /* no blanks at the end of a line */
        fprintf(out, "%*s%s", table->right[column] ? width : -width, table->text[i], last ? "\n" : "  ");
    }
}

struct kvf_table_text kvf_table_bytes(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    struct kvf_table_text text;
    double value = (double)bytes;
    unsigned unit = 0;
    for (; value >= 1023.95 && unit < 5; unit++)
        value /= 1024;
    if (!bytes)
        snprintf(text.s, sizeof text.s, "0");
    else
        snprintf(text.s, sizeof text.s, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}

struct kvf_table_text kvf_table_ns(uint64_t ns)
{
    struct kvf_table_text text;
    double value = (double)ns;
    if (!ns)
        snprintf(text.s, sizeof text.s, "0");
    else if (ns < 1000)
        snprintf(text.s, sizeof text.s, "%.0f ns", value);
    else if (ns < 1000000)
        snprintf(text.s, sizeof text.s, "%.1f us", value / 1e3);
    else if (ns < 1000000000)
        snprintf(text.s, sizeof text.s, "%.1f ms", value / 1e6);
    else
        snprintf(text.s, sizeof text.s, "%.2f s", value / 1e9);
    return text;
}

struct kvf_table_text kvf_table_seconds(uint64_t seconds)
{
    struct kvf_table_text text;
    unsigned long s = (unsigned long)seconds;
    if (s < 60)
        snprintf(text.s, sizeof text.s, "%lus", s);
    else if (s < 3600)
        snprintf(text.s, sizeof text.s, "%lum %lus", s / 60, s % 60);
    else if (s < 86400)
        snprintf(text.s, sizeof text.s, "%luh %lum", s / 3600, s / 60 % 60);
    else
        snprintf(text.s, sizeof text.s, "%lud %luh", s / 86400, s / 3600 % 24);
    return text;
}
