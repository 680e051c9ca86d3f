/* Columns for people: rows of cells, printed aligned to the widest of each column. */
#ifndef KVF_CLI_TABLE_H
#define KVF_CLI_TABLE_H

#include <stdint.h>
#include <stdio.h>

struct kvf_table;

/* `titles` as in "NODE|STATE|>BYTES": a > in front aligns the column to the right. NULL: out of memory. */
struct kvf_table *kvf_table_create(const char *titles);
void kvf_table_destroy(struct kvf_table *table);
/* The next cell, from left to right, row after row. Copied; control characters become ?. */
void kvf_table_cell(struct kvf_table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Fills the row that was begun with "-". */
void kvf_table_row_end(struct kvf_table *table);
void kvf_table_print(const struct kvf_table *table, FILE *out, const char *indent);

struct kvf_table_text {
    char s[32];
};
/* "1.5 GiB", "0". */
struct kvf_table_text kvf_table_bytes(uint64_t bytes);
/* "1.2 ms", "0". */
struct kvf_table_text kvf_table_ns(uint64_t ns);
/* "3d 4h", "12 s". */
struct kvf_table_text kvf_table_seconds(uint64_t seconds);
#endif
