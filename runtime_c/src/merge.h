/* merge.h: the merges of a byte-level BPE, and what they make of one piece of a text. */
#ifndef NANO_MERGE_H
#define NANO_MERGE_H

#include "nano.h"

enum { NO_RANK = UINT32_MAX };

/* The token `result` replaces `left` and `right`; what has the lowest rank comes first. */
typedef struct {
    uint32_t left_plus_1; /* 0 is an empty slot */
    uint32_t right, rank, result;
} merge_rule;

typedef struct {
    merge_rule *rules; /* a hash table by left and right */
    uint64_t mask;
} merge_table;

bool merge_table_open(merge_table *t, uint32_t n_merges); /* false: out of memory */
void merge_table_free(merge_table *t);
/* Of two rules for a pair the last counts, as in Hugging Face's `tokenizers`. */
void merge_table_add(merge_table *t, uint32_t left, uint32_t right, uint32_t rank, uint32_t result);

/* Memory for pieces of more than a few dozen tokens. Zero-initialise it, merge_work_free after the last use.
 */
typedef struct {
    struct merge_link *links;
    uint64_t *heap;
    uint32_t room; /* tokens */
} merge_work;
void merge_work_free(merge_work *work);

/* Merges ids [*n], n < 2^30, in place: of all neighbours that have a rule the lowest rank, of equal ones the
 * leftmost, and so on until none has. */
nano_status merge_ids(const merge_table *t, merge_work *work, uint32_t *ids, uint32_t *n);

#endif
