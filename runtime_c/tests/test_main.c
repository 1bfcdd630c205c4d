/* test_main.c [KERNELS [PART...]]: runs all unit tests, or those parts; the last line is "N passed, M
 * failed". KERNELS: the name of those that this machine must choose, or - for any. */
#include "kernels.h"
#include "test.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {
        {"text", test_text},       {"vocab", test_vocab},     {"sampler", test_sampler},
        {"kernels", test_kernels}, {"vectors", test_vectors}, {"attention", test_attention},
        {"weights", test_weights}, {"threads", test_threads}, {"topology", test_topology},
        {"reader", test_reader},   {"gguf", test_gguf},       {"chat", test_chat},
        {"model", test_model},     {"session", test_session},
    };
    if (argc > 1 && strcmp(argv[1], "-") != 0 && strcmp(kernels_at(0)->name, argv[1]) != 0) {
        printf("this machine runs the kernels %s, not %s\n", kernels_at(0)->name, argv[1]);
        return 1;
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        bool wanted = argc <= 2;
        for (int j = 2; j < argc; j++) wanted |= strcmp(argv[j], parts[i].name) == 0;
        if (wanted) parts[i].run();
    }
    settle();
    printf("%u passed, %u failed\n", n_passed, n_failed);
    return n_failed != 0 || n_passed == 0;
}
