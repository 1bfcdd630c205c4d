/* unicode.h: what the pre-tokenisers and NFC ask of a code point. The tables are in unicode_tables.c, which
 * tools/unicode_tables.py makes; each is cut into blocks of 128 code points, and equal blocks are kept once.
 */
#ifndef NANO_UNICODE_H
#define NANO_UNICODE_H

#include <stdint.h>

/* \p{L}, \p{N}, and \s as the property White_Space has it. */
typedef enum { CHAR_OTHER, CHAR_LETTER, CHAR_NUMBER, CHAR_SPACE } char_class;

/* A canonical decomposition, one step of it; second is 0 where one character becomes one other. */
typedef struct {
    uint32_t whole, first, second;
} unicode_pair;

extern const uint32_t unicode_class_end, unicode_order_end; /* past these, every value is 0 */
extern const uint32_t unicode_n_decompositions, unicode_n_compositions;
extern const uint8_t unicode_ascii[];               /* [128] classes */
extern const uint8_t unicode_class_index[];         /* by code point / 128: a block */
extern const uint8_t unicode_class_blocks[];        /* 32 bytes each, two bits per code point */
extern const uint8_t unicode_order_index[];         /* by code point / 128: a block */
extern const uint8_t unicode_order_blocks[];        /* 128 bytes each */
extern const unicode_pair unicode_decompositions[]; /* by `whole` */
extern const uint16_t unicode_compositions[]; /* rows of the above that also compose, by first, second */

static inline char_class unicode_class(uint32_t code_point) {
    if (code_point >= unicode_class_end) return CHAR_OTHER;
    const uint8_t *block = unicode_class_blocks + 32u * unicode_class_index[code_point >> 7];
    return (char_class)(block[(code_point & 127) >> 2] >> 2 * (code_point & 3) & 3);
}

/* 0: NFC leaves the character alone, whatever is before it, and all that is before it too. Else its canonical
 * combining class, or UNICODE_UNSTABLE where that is 0 but it may change or join the one before. */
enum { UNICODE_UNSTABLE = 255 };
static inline uint8_t unicode_order(uint32_t code_point) {
    if (code_point >= unicode_order_end) return 0;
    return unicode_order_blocks[128u * unicode_order_index[code_point >> 7] + (code_point & 127)];
}

#endif
