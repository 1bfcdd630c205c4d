/* test_weights.c: GGUF's weight types against the slow reader in tiny_gguf.c, and weights in place
 * against double arithmetic. */
#include "random_matrix.h"
#include "test.h"
#include "tiny_gguf.h"
#include "weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nano_quant TYPES[] = {NANO_F32,       NANO_F16,       NANO_BF16,      NANO_GGUF_Q8_0,
                                   NANO_GGUF_Q4_0, NANO_GGUF_Q4_1, NANO_GGUF_Q5_0, NANO_GGUF_Q5_1,
                                   NANO_GGUF_Q4_K, NANO_GGUF_Q5_K, NANO_GGUF_Q6_K};
enum { N_TYPES = sizeof TYPES / sizeof *TYPES };

/* ---- matrices in place: the reference that everything faster is compared with */

static void exact_product(nano_quant type, uint32_t rows, uint32_t cols, uint32_t group, uint64_t *state) {
    enum { N = 35 }; /* more than a tile */
    random_matrix w = random_matrix_make(type, rows, cols, group, state);
    float *x = random_floats(state, N * cols), *y = malloc(N * rows * sizeof *y),
          *one = malloc(rows * sizeof *one), *row = malloc(cols * sizeof *row);
    matrix_multiply(&w.m, x, N, 0, rows, y, rows);
    double worst = 0, row_error = 0;
    for (size_t t = 0; t < N; t++) {
        matrix_multiply(&w.m, x + t * cols, 1, rows / 3, rows, one, rows);
        matrix_multiply(&w.m, x + t * cols, 1, 0, rows / 3, one, rows);
        CHECK(memcmp(one, y + t * rows, rows * sizeof *one) == 0);
        for (size_t r = 0; r < rows; r++) {
            double sum = 0, size = 1e-9;
            for (size_t c = 0; c < cols; c++) {
                double term = w.plain[r * cols + c] * (double)x[t * cols + c];
                sum += term;
                size += fabs(term);
            }
            worst = fmax(worst, fabs(sum - (double)y[t * rows + r]) / size);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        matrix_row(row, &w.m, r);
        for (size_t c = 0; c < cols; c++)
            row_error =
                fmax(row_error, fabs((double)row[c] - w.plain[r * cols + c]) / (1 + fabs((double)row[c])));
    }
    CHECK_THAT(worst < 2e-6, "%s [%u,%u]: relative error %g", nano_quant_name(type), rows, cols, worst);
    CHECK_THAT(row_error < 3e-7, "%s [%u,%u]: a row is %g off", nano_quant_name(type), rows, cols, row_error);
    random_matrix_free(&w);
    free(x);
    free(y);
    free(one);
    free(row);
}

/* ---- weight types ----------------------------------------------------------------------------------------
 */

void test_weights(void) {
    uint64_t state = 5;
    TEST("weights: blocks of any bits are read as the slow reader reads them");
    for (unsigned i = 0; i < N_TYPES; i++) {
        enum { BLOCKS = 40 };
        const weight_type *type = weight_type_of(TYPES[i]);
        size_t length = tiny_block_length(TYPES[i]), bytes = tiny_block_bytes(TYPES[i]);
        CHECK_THAT(type->length == length && type->bytes == bytes, "%s: %u weights in %u bytes", type->name,
                   type->length, type->bytes);
        uint8_t *blocks = malloc(BLOCKS * bytes);
        float *out = malloc(BLOCKS * length * sizeof *out);
        tiny_random_blocks(TYPES[i], blocks, BLOCKS, 1.0, &state);
        type->read(out, blocks, BLOCKS);
        double worst = 0;
        for (size_t w = 0; w < BLOCKS * length; w++) {
            double expected = tiny_weight(TYPES[i], blocks + w / length * bytes, w % length);
            worst = fmax(worst, fabs(out[w] - expected) / (1 + fabs(expected)));
        }
        CHECK_THAT(worst < 3e-7, "%s: off by %g", type->name, worst);
        nano_quant found;
        CHECK(weight_type_from_gguf(tiny_gguf_number(TYPES[i]), &found) && found == TYPES[i]);
        free(blocks);
        free(out);
    }

    TEST("weights: every half there is");
    for (unsigned bits = 0; bits < 0x10000; bits++) {
        const uint8_t bytes[2] = {(uint8_t)bits, (uint8_t)(bits >> 8)};
        float value;
        weight_type_of(NANO_F16)->read(&value, bytes, 1);
        bool special = (bits & 0x7C00) == 0x7C00;
        bool right = !special         ? value == (float)tiny_half(bytes) && !signbit(value) == !(bits >> 15)
                     : (bits & 0x3FF) ? isnan(value)
                                      : isinf(value) && !signbit(value) == !(bits >> 15);
        if (!right) CHECK_THAT(false, "half %04x became %g", bits, (double)value);
    }

    TEST("weights: the exact product with a matrix of any type in place, for one token and for many");
    for (uint32_t j = 0; j < 3; j++) {
        for (unsigned i = 0; i < N_TYPES; i++) {
            uint32_t length = (uint32_t)tiny_block_length(TYPES[i]);
            exact_product(TYPES[i], 7 + j, length == 1 ? 255 + j * 2 : length * (1 + j * 2), 0, &state);
        }
        exact_product(NANO_Q80, 1 + j, 300, (uint32_t[]){3, 100, 20}[j], &state);
        exact_product(NANO_Q4K, 1 + j, (uint32_t[]){512, 7, 301}[j], 0, &state);
    }
}
