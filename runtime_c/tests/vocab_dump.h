/* vocab_dump.h: a byte-level BPE vocabulary as the tests hand it over; no model file looks like this.
 *
 *     u32  size, n_merges, pre (a pre_kind), flags (1 nfc, 2 whole_first, 4 add_bos), bos, n_stop, stop ids
 * [8] per token  u32 type, u32 n, n bytes per merge  u32 n, n bytes
 */
#ifndef VOCAB_DUMP_H
#define VOCAB_DUMP_H

#include "vocab.h"

typedef struct {
    merge_source source;
    text_span *tokens, *merges;
    uint8_t *types;
} vocab_dump;

/* The spans lie in `bytes`. False if these are no dump, and then there is nothing to free. */
bool vocab_dump_read(vocab_dump *dump, const uint8_t *bytes, size_t n);
void vocab_dump_free(vocab_dump *dump);

/* A whole file; NULL, with a message on stderr, if it cannot be read. free() it. */
uint8_t *read_whole_file(const char *path, size_t *n);

#endif
