/* kernels.h: the inner loops of the model, behind one table, so that a machine's own versions can take the
 * place of the plain C ones. Whatever the table, each output must be the same for every batch size and thread
 * count: every dot product is summed in one fixed order.
 *
 * Legend: n tokens, rows = outputs of a matrix, cols = its inputs. */
#ifndef NANO_KERNELS_H
#define NANO_KERNELS_H

#include "nano.h"

/* A weight matrix [rows, cols], row-major, in place in the file. */
typedef struct {
    nano_quant quant;
    uint32_t rows, cols;
    const float *f32;      /* F32: [rows, cols] */
    const int8_t *q;       /* Q80: [rows, cols] */
    const float *scales;   /* Q80: [rows, cols / group] */
    uint32_t group;        /* Q80: divides cols */
    const uint8_t *blocks; /* Q4K: [rows, ceil(cols / 256)] blocks of Q4K_BLOCK bytes. GGUF's types but F32:
                            * [rows, cols / length] blocks, as weights.h has them */
} matrix;

enum { Q4K_LENGTH = 256, Q4K_BLOCK = 160 };

typedef struct {
    const char *name;
    /* y[t][r] = w[r] . x[t] for rows [begin, end) and n tokens; y is n rows of `y_stride`, x of `x_stride`.
     */
    void (*matmul)(float *y, size_t y_stride, const matrix *w, const float *x, size_t x_stride, size_t n,
                   size_t begin, size_t end);
    /* out = row `row` of w, as floats [cols] */
    void (*read_row)(float *out, const matrix *w, size_t row);
    float (*dot)(const float *a, const float *b, size_t n);
    void (*add_scaled)(float *y, const float *x, float a, size_t n);                    /* y += a x */
    void (*rms_norm)(float *y, const float *x, const float *gain, size_t n, float eps); /* y may be x */
    void (*softmax)(float *x, size_t n);                                                /* in place, n > 0 */
    void (*swiglu)(float *gate, const float *up, size_t n); /* gate = silu(gate) up */
} kernels;

extern const kernels kernels_scalar;

/* The best table for this machine. */
const kernels *kernels_choose(void);

#endif
