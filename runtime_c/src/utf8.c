/* utf8.c: UTF-8 in, UTF-8 out, and the stream that only lets whole characters through. */
#include "utf8.h"

#include "nano.h"

#include <string.h>

utf8_char utf8_read(const uint8_t *s, size_t n) {
    uint8_t lead = s[0];
    if (lead < 0x80) return (utf8_char){UTF8_OK, 1, lead};

    /* The range of the second byte rules out overlong forms, surrogates and what is above U+10FFFF. */
    unsigned length;
    uint8_t low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
        length = 2;
    } else if ((lead & 0xF0) == 0xE0) {
        length = 3;
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        length = 4;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    } else {
        return (utf8_char){UTF8_INVALID, 1, 0};
    }

    uint32_t code_point = lead & (0x7Fu >> length);
    for (unsigned i = 1; i < length; i++) {
        if (i == n) return (utf8_char){UTF8_INCOMPLETE, i, 0};
        if (s[i] < low || s[i] > high) return (utf8_char){UTF8_INVALID, i, 0};
        code_point = code_point << 6 | (s[i] & 0x3F);
        low = 0x80, high = 0xBF;
    }
    return (utf8_char){UTF8_OK, length, code_point};
}

unsigned utf8_write(uint32_t cp, uint8_t out[4]) {
    if (cp < 0x80) {
        out[0] = (uint8_t)cp;
        return 1;
    }
    unsigned length = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (unsigned i = length - 1; i > 0; i--, cp >>= 6) out[i] = (uint8_t)(0x80 | (cp & 0x3F));
    out[0] = (uint8_t)((0xF00u >> length & 0xFF) | cp);
    return length;
}

static const char REPLACEMENT[3] = "\xEF\xBF\xBD"; /* U+FFFD */

size_t nano_stream_push(nano_stream *stream, const char *bytes, size_t n, char *out) {
    size_t written = 0;
    for (size_t i = 0; i < n; i++) {
        stream->held[stream->n_held++] = (unsigned char)bytes[i];
        /* One byte can settle two things: that what was held is no character, and what it is itself. */
        while (stream->n_held) {
            utf8_char c = utf8_read(stream->held, stream->n_held);
            if (c.kind == UTF8_INCOMPLETE) break;
            const void *source = c.kind == UTF8_OK ? (const void *)stream->held : REPLACEMENT;
            size_t length = c.kind == UTF8_OK ? c.length : sizeof REPLACEMENT;
            memcpy(out + written, source, length);
            written += length;
            stream->n_held -= c.length;
            memmove(stream->held, stream->held + c.length, stream->n_held);
        }
    }
    return written;
}

size_t nano_stream_finish(nano_stream *stream, char *out) {
    if (!stream->n_held) return 0; /* what is held is the start of one character, never more */
    stream->n_held = 0;
    memcpy(out, REPLACEMENT, sizeof REPLACEMENT);
    return sizeof REPLACEMENT;
}
