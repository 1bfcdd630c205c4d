/* fuzz_use.h: shared by fuzz_reader (bends files of its own) and libfuzzer (clang's, guided by coverage). */
#ifndef FUZZ_USE_H
#define FUZZ_USE_H

#include "nano.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    unsigned long tried, opened, evaluated, looked;
} fuzz_counts;

extern fuzz_counts fuzz_seen;
extern nano_model *fuzz_base; /* adapters are tried on this one */

/* Opens the bytes as a model and as an adapter and uses what opens; aborts where a refusal has no words. */
void fuzz_try(const uint8_t *bytes, size_t n);

#endif
