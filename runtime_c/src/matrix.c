/* matrix.c: weights used in place, as they lie in the file, in plain C and float32: the reference that the
 * kernels are measured against. Compilers vectorise it without being allowed to reorder sums: a dot product
 * is LANES running sums, added up at the end in a fixed order. */
#include "kernels.h"

#include <string.h>

enum { LANES = 16, TILE = 32 };

/* sums[k] += the products at k, k + LANES, ... */
static void add_products(float *restrict sums, const float *restrict a, const float *restrict b, size_t n) {
    float s[LANES];
    memcpy(s, sums, sizeof s);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++) s[k] += a[i + k] * b[i + k];
    for (size_t k = 0; i + k < n; k++) s[k] += a[i + k] * b[i + k];
    memcpy(sums, s, sizeof s);
}

static float add_up(const float *sums) {
    float s[LANES];
    memcpy(s, sums, sizeof s);
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t k = 0; k < half; k++) s[k] += s[k + half];
    return s[0];
}

const float *matrix_chunk(const matrix *w, size_t row, size_t at, size_t n, float *room) {
    if (w->f32) return w->f32 + row * w->cols + at;
    switch (w->quant) {
    case NANO_Q80: {
        const int8_t *q = w->q + row * w->cols + at;
        const uint8_t *scales = w->scales + row * (w->cols / w->group) * sizeof(float);
        for (size_t i = 0; i < n;) {
            size_t group = (at + i) / w->group, end = (group + 1) * w->group - at;
            float scale;
            memcpy(&scale, scales + group * sizeof scale, sizeof scale);
            for (end = end < n ? end : n; i < end; i++) room[i] = (float)q[i] * scale;
        }
        return room;
    }
    case NANO_Q4K: {
        size_t blocks_per_row = (w->cols + Q4K_LENGTH - 1) / Q4K_LENGTH;
        const uint8_t *block = w->blocks + (row * blocks_per_row + at / Q4K_LENGTH) * Q4K_BLOCK;
        for (size_t i = 0; i < n;) {
            uint8_t q[GROUP];
            float scale, offset;
            weight_q4k_group(block, i / GROUP, q, &scale, &offset);
            for (size_t j = 0; j < GROUP && i < n; j++, i++) room[i] = (float)q[j] * scale + offset;
        }
        return room;
    }
    default: { /* a block's length divides Q4K_LENGTH and cols, so n and `at` as well */
        const weight_type *type = weight_type_of(w->quant);
        uint64_t first = ((uint64_t)row * w->cols + at) / type->length;
        type->read(room, w->blocks + first * type->bytes, n / type->length);
        return room;
    }
    }
}

void matrix_row(float *out, const matrix *w, size_t row) {
    for (size_t at = 0; at < w->cols; at += Q4K_LENGTH) {
        size_t n = w->cols - at < Q4K_LENGTH ? w->cols - at : Q4K_LENGTH;
        const float *chunk = matrix_chunk(w, row, at, n, out + at);
        if (chunk != out + at) memcpy(out + at, chunk, n * sizeof(float));
    }
}

/* A chunk of weights is read (and turned into floats) once for a tile of tokens. */
void matrix_multiply(const matrix *w, const float *x, size_t n_tokens, size_t begin, size_t end, float *y,
                     size_t y_stride) {
    for (size_t t0 = 0; t0 < n_tokens; t0 += TILE) {
        size_t tile = n_tokens - t0 < TILE ? n_tokens - t0 : TILE;
        for (size_t row = begin; row < end; row++) {
            float sums[TILE][LANES], room[Q4K_LENGTH];
            memset(sums, 0, tile * sizeof sums[0]);
            for (size_t at = 0; at < w->cols; at += Q4K_LENGTH) {
                size_t n = w->cols - at < Q4K_LENGTH ? w->cols - at : Q4K_LENGTH;
                const float *chunk = matrix_chunk(w, row, at, n, room);
                for (size_t t = 0; t < tile; t++)
                    add_products(sums[t], chunk, x + (t0 + t) * w->cols + at, n);
            }
            for (size_t t = 0; t < tile; t++) y[(t0 + t) * y_stride + row] = add_up(sums[t]);
        }
    }
}
