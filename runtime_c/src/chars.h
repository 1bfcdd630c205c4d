/* chars.h: the characters of a text that need not be valid UTF-8, one after another. */
#ifndef NANO_CHARS_H
#define NANO_CHARS_H

#include "utf8.h"

typedef struct {
    uint32_t code_point;
    uint32_t length; /* bytes, 1 to 4 */
} text_char;

/* The first character of s, n > 0 bytes. A byte that is no part of a character is one of its own: its escape
 * (utf8.h), which is neither letter, number nor space. */
static inline text_char char_at(const uint8_t *s, size_t n) {
    if (s[0] < 0x80) return (text_char){s[0], 1};
    /* The usual three-byte case without a call: leads E1..EC and EE, EF have no forbidden second byte. */
    if (n >= 3 && s[0] > 0xE0 && s[0] < 0xF0 && s[0] != 0xED && (s[1] & 0xC0) == 0x80 &&
        (s[2] & 0xC0) == 0x80)
        return (text_char){(s[0] & 0xFu) << 12 | (s[1] & 0x3Fu) << 6 | (s[2] & 0x3Fu), 3};
    utf8_char c = utf8_read(s, n);
    return c.kind == UTF8_OK ? (text_char){c.code_point, c.length} : (text_char){byte_to_escape(s[0]), 1};
}

#endif
