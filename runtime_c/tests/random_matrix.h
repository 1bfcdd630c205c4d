/* random_matrix.h: a matrix of any type with random weights, and the same as doubles, read from its bytes by
 * formulas of the tests' own. */
#ifndef RANDOM_MATRIX_H
#define RANDOM_MATRIX_H

#include "kernels.h"

typedef struct {
    matrix m;
    double *plain; /* [rows, cols] */
    void *owned[2];
} random_matrix;

/* cols must be whole blocks of GGUF's types, and whole groups of Q80. */
random_matrix random_matrix_make(nano_quant type, uint32_t rows, uint32_t cols, uint32_t group,
                                 uint64_t *state);
void random_matrix_free(random_matrix *r);

float *random_floats(uint64_t *state, size_t n);

#endif
