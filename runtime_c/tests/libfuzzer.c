/* libfuzzer.c: the readers under clang's fuzzer, which follows what the code covers: `make libfuzzer`.
 *
 * One program for all: `.bin`, `.gguf`, adapters of both, and the vocabularies inside. FUZZ_BASE names the
 * model that adapters are tried on. */
#include "fuzz_use.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *path = getenv("FUZZ_BASE");
    (void)argc, (void)argv;
    if (path && nano_model_open_file(&fuzz_base, path, NULL) != NANO_OK) {
        fprintf(stderr, "%s: %s\n", path, nano_last_error());
        return 1;
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    fuzz_try(bytes, n);
    return 0;
}
