/* use_vocab.h: what fuzzers do with a vocabulary that was built. */
#ifndef USE_VOCAB_H
#define USE_VOCAB_H

#include "vocab.h"

/* Encodes the text and decodes its ids. Aborts, with a word why, where an id is outside the vocabulary, a
 * text became a special token against `allow_special`, or the bytes do not come back (they need not where
 * single bytes are missing or the text is normalised). */
void use_vocab(const vocab *v, const uint8_t *text, size_t n, bool allow_special);

/* Bytes in memory of exactly their size, so that a sanitizer sees a read past their end. free() them. */
uint8_t *tight_copy(const void *bytes, size_t n);

#endif
