/* tiny_vocab.h: a small byte-level BPE vocabulary for tests: the 256 bytes (id = byte), the results of the
 * merges, then added tokens. */
#ifndef TINY_VOCAB_H
#define TINY_VOCAB_H

#include "vocab.h"

enum { TINY_ROOM = 320 };

/* By priority. th 256, the 257, " t" 258, " the" 259, he 260, in 261, ing 262, aa 263, aaaa 264, U+4F60
 * 265-266, 12 267, 123 268, "'s" 269, "\n\n" 270, "  " 271 */
extern const char *const tiny_merge_list[];

typedef struct {
    merge_source source;
    text_span tokens[TINY_ROOM], merges[TINY_ROOM];
    uint8_t types[TINY_ROOM];
    char text[TINY_ROOM][40]; /* what the spans of the tokens point to */
} tiny_vocab;

void tiny_vocab_make(tiny_vocab *t, pre_kind pre);
/* One more token; returns its id. */
uint32_t tiny_vocab_add(tiny_vocab *t, const char *text, token_type type);
text_span span_of(const char *text);

#endif
