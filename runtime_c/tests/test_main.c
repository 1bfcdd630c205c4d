/* test_main.c: runs all unit tests; the last line is "N passed, M failed". */
#include "test.h"

#include <stdarg.h>
#include <stdio.h>

static const char *current;
static bool current_ok;
static unsigned n_passed, n_failed;

static void settle(void) {
    if (!current) return;
    current_ok ? n_passed++ : n_failed++;
    if (!current_ok) printf("FAILED  %s\n", current);
    current = NULL;
}

void test_begin(const char *name) {
    settle();
    current = name;
    current_ok = true;
}

void test_check(bool ok, const char *file, int line, const char *format, ...) {
    if (ok) return;
    va_list args;
    va_start(args, format);
    printf("%s:%d: ", file, line);
    vprintf(format, args);
    putchar('\n');
    va_end(args);
    current_ok = false;
}

int main(void) {
    test_text();
    test_vocab();
    test_sampler();
    test_kernels();
    test_weights();
    test_threads();
    test_reader();
    test_gguf();
    test_chat();
    test_model();
    test_session();
    settle();
    printf("%u passed, %u failed\n", n_passed, n_failed);
    return n_failed != 0;
}
