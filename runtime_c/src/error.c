/* error.c: the text of the last error of each thread, put together without stdio (the core must do without).
 */
#include "error.h"

#include <stdarg.h>

enum { TEXT_SIZE = 512 };
static _Thread_local char last_error[TEXT_SIZE];

const char *nano_last_error(void) {
    return last_error;
}

typedef struct {
    size_t n;
} text_end;

static void put_char(text_end *end, char c) {
    if (end->n + 1 < TEXT_SIZE) last_error[end->n++] = c;
}

static void put_string(text_end *end, const char *s) {
    for (; *s; s++) put_char(end, *s);
}

static void put_number(text_end *end, unsigned long long value) {
    char digits[24];
    size_t n = 0;
    do digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n) put_char(end, digits[--n]);
}

nano_status nano_fail(nano_status status, const char *format, ...) {
    text_end end = {0};
    va_list args;
    va_start(args, format);
    for (const char *f = format; *f; f++) {
        if (*f != '%') {
            put_char(&end, *f);
            continue;
        }
        f++;
        if (*f == 's') {
            put_string(&end, va_arg(args, const char *));
        } else if (*f == 'u') {
            put_number(&end, va_arg(args, unsigned));
        } else if (*f == 'd') {
            long long value = va_arg(args, int);
            if (value < 0) put_char(&end, '-');
            put_number(&end, (unsigned long long)(value < 0 ? -value : value));
        } else if (f[0] == 'l' && f[1] == 'l' && f[2] == 'u') {
            put_number(&end, va_arg(args, unsigned long long));
            f += 2;
        } else {
            put_char(&end, *f);
        }
    }
    va_end(args);
    last_error[end.n] = 0;
    return status;
}
