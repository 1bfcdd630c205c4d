/* error.h: how the library says what went wrong. */
#ifndef NANO_ERROR_H
#define NANO_ERROR_H

#include "nano.h"

/* Keeps the message for nano_last_error() and returns `status`. Knows %s, %u, %d, %llu and %%, no widths. */
nano_status nano_fail(nano_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Leaves the function with the status of a call that failed. */
#define TRY(call)                                                                                            \
    do {                                                                                                     \
        nano_status try_status = (call);                                                                     \
        if (try_status) return try_status;                                                                   \
    } while (0)

#endif
