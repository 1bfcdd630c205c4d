/* kernels.h: the inner loops of the model, behind one table for each set of instructions. Whatever the table,
 * each output must be the same to the bit for every batch size and thread count: every dot product is summed
 * in one fixed order.
 *
 * Legend: n tokens, rows = outputs of a matrix, cols = its inputs, T = tokens of a tile. */
#ifndef NANO_KERNELS_H
#define NANO_KERNELS_H

#include "nano.h"
#include "pack.h"

/* A weight matrix [rows, cols], row-major, in place in the file; and as the kernels have it. */
typedef struct matrix {
    nano_quant quant;
    uint32_t rows, cols;
    const float *f32;      /* F32: [rows, cols]; NULL: they lie on no 4-byte boundary, but at `blocks` */
    const int8_t *q;       /* Q80: [rows, cols] */
    const uint8_t *scales; /* Q80: [rows, cols / group] floats, on any boundary */
    uint32_t group;        /* Q80: divides cols */
    const uint8_t *blocks; /* Q4K: [rows, ceil(cols / 256)] blocks of Q4K_BLOCK bytes. GGUF's types:
                            * [rows, cols / length] blocks, as weights.h has them */
    packed pack;           /* .data NULL: the matrix is used in place */
} matrix;

enum { Q4K_LENGTH = 256, Q4K_BLOCK = 160 };

/* matrix.c: weights in place. */
/* Columns [at, at + n) of a row, n <= 256, `at` a multiple of 256: in place if they are floats, else in
 * `room`. */
const float *matrix_chunk(const matrix *w, size_t row, size_t at, size_t n, float *room);
/* out = row `row` of w, as floats [cols] */
void matrix_row(float *out, const matrix *w, size_t row);
/* The reference: y[t][r] = w[r] . x[t] for rows [begin, end) and n tokens, all in float32; x is [n, cols]. */
void matrix_multiply(const matrix *w, const float *x, size_t n, size_t begin, size_t end, float *y,
                     size_t y_stride);

/* Vectors that a matrix is to be multiplied with, in tiles of T tokens (table->tiles). The tile of tokens t
 * .. t + T - 1 begins at t times what a token takes, and has the tokens innermost. Integers are groups of 32
 * with a scale, x = scale q, rounded as GGUF's Q8_0: scale = max |x| / 127 kept as a half, q to the nearest.
 */
typedef struct {
    size_t n, cols, groups; /* groups = ceil(cols / 32), the last one filled up with zeros */
    float *f32;             /* [cols][T] */
    int8_t *q;              /* [groups][8][T][4] */
    float *scale;           /* [groups][T] */
    int32_t *bias;          /* [groups][T] -128 sum(q) */
    float *sum;             /* [groups][T] scale sum(q), kept as a half */
} activations;

/* The keys and values of one head of the cache from a position on, and queries that look at them. */
enum { KEY_BLOCK = 16, CHUNK = 128, MAX_QUERIES = 12 };
typedef struct {
    size_t n, width;    /* queries, 1 .. MAX_QUERIES; floats of a head, a multiple of 16 */
    const float *q;     /* [width][n] already scaled by 1 / sqrt(head_dim) */
    const void *keys;   /* [CHUNK / 16][width][16], halves or floats */
    const void *values; /* [CHUNK][width] */
    bool halves;
    const uint32_t *visible; /* [n] how many of the positions each query sees, at most CHUNK */
    float *scores;           /* room for [n][CHUNK] */
    float *top, *sum;        /* [n] the highest score (-INFINITY: sees nothing), and sum(exp(score - top)) */
    float *out;              /* [n][width] sum(exp(score - top) value) */
} attention;

typedef void (*matmul_kernel)(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                              size_t y_stride);

typedef struct {
    const char *name;
    bool (*usable)(void); /* has this machine the instructions? NULL: every one */
    pack_format format;
    const uint8_t *tiles; /* the sizes of tile, falling, the last one 1 */
    /* y[t][r] = w[r] . x[t] for row blocks [begin, end); by kind of matrix */
    matmul_kernel matmul[N_PACK_KINDS];
    /* Integers of the tile of T tokens at t; rows [T] of `stride` floats. */
    void (*quantise)(const activations *x, size_t t, size_t T, const float *rows, size_t stride);
    void (*attend)(const attention *a);
    float (*dot)(const float *a, const float *b, size_t n);
    void (*add_scaled)(float *y, const float *x, float a, size_t n);                    /* y += a x */
    void (*rms_norm)(float *y, const float *x, const float *gain, size_t n, float eps); /* y may be x */
    void (*swiglu)(float *gate, const float *up, size_t n); /* gate = silu(gate) up */
    void (*to_halves)(uint16_t *out, const float *x, size_t n);
} kernels;

extern const kernels kernels_scalar, kernels_avx2, kernels_avxvnni, kernels_avx512, kernels_neon,
    kernels_dotprod, kernels_i8mm, kernels_wasm_simd, kernels_wasm_relaxed;

/* The tables that this build has and this machine can run, the best one first; NULL past the last. */
const kernels *kernels_at(size_t index);
/* The one of this name (NULL: the best), or NULL if there is none. */
const kernels *kernels_named(const char *name);

/* The tile that `left` tokens begin with. */
static inline size_t kernels_tile(const kernels *k, size_t left) {
    const uint8_t *tile = k->tiles;
    while (*tile > left) tile++;
    return *tile;
}

#endif
