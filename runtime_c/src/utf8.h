/* utf8.h: UTF-8, read strictly (no surrogates, no overlong forms, nothing above U+10FFFF). */
#ifndef NANO_UTF8_H
#define NANO_UTF8_H

#include <stddef.h>
#include <stdint.h>

typedef enum { UTF8_OK, UTF8_INVALID, UTF8_INCOMPLETE } utf8_kind;

typedef struct {
    utf8_kind kind;
    unsigned length; /* bytes: of the character, or of the longest start of one that these bytes are */
    uint32_t code_point;
} utf8_char;

/* Looks at the first character of s, n > 0 bytes. UTF8_INCOMPLETE: more bytes could make it whole. */
utf8_char utf8_read(const uint8_t *s, size_t n);

/* Writes 1 to 4 bytes; returns how many. */
unsigned utf8_write(uint32_t code_point, uint8_t out[4]);

/* Bytes that are no UTF-8 travel as the lone surrogates U+DC80..U+DCFF (as in Python's "surrogateescape"),
 * which valid UTF-8 cannot contain. */
static inline uint32_t byte_to_escape(uint8_t byte) {
    return 0xDC00u + byte;
}
static inline int is_byte_escape(uint32_t code_point) {
    return code_point >= 0xDC80 && code_point <= 0xDCFF;
}

#endif
