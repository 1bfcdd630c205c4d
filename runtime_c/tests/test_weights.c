/* test_weights.c: GGUF's weight types against the slow reader in tiny_gguf.c. */
#include "kernels.h"
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

    TEST("weights: a product with a matrix of any type, for one token and for many");
    for (unsigned i = 0; i < N_TYPES; i++) {
        enum { ROWS = 7, COLS = 768, N = 35 };
        size_t length = tiny_block_length(TYPES[i]), n_blocks = ROWS * COLS / length;
        uint8_t *blocks = malloc(n_blocks * tiny_block_bytes(TYPES[i]));
        tiny_random_blocks(TYPES[i], blocks, n_blocks, 1.0, &state);
        const matrix w = {
            .quant = TYPES[i], .rows = ROWS, .cols = COLS, .blocks = blocks, .f32 = (float *)(void *)blocks};
        float *x = malloc(N * COLS * sizeof *x), y[N * ROWS], one[ROWS], row[COLS];
        for (size_t k = 0; k < N * COLS; k++) x[k] = (float)tiny_normal(&state);
        const kernels *k = kernels_choose();
        k->matmul(y, ROWS, &w, x, COLS, N, 0, ROWS);
        double worst = 0;
        for (size_t t = 0; t < N; t++) {
            k->matmul(one, ROWS, &w, x + t * COLS, COLS, 1, 0, ROWS);
            CHECK(memcmp(one, y + t * ROWS, sizeof one) == 0);
            for (size_t r = 0; r < ROWS; r++) {
                double sum = 0, size = 1e-9;
                for (size_t c = 0; c < COLS; c++) {
                    size_t at = r * COLS + c;
                    double term = tiny_weight(TYPES[i], blocks + at / length * tiny_block_bytes(TYPES[i]),
                                              at % length) *
                                  (double)x[t * COLS + c];
                    sum += term;
                    size += fabs(term);
                }
                worst = fmax(worst, fabs(sum - (double)y[t * ROWS + r]) / size);
            }
        }
        CHECK_THAT(worst < 2e-6, "%s: relative error %g", nano_quant_name(TYPES[i]), worst);
        k->read_row(row, &w, ROWS - 1);
        for (size_t c = 0; c < COLS; c += 101) {
            size_t at = (ROWS - 1) * COLS + c;
            double expected =
                tiny_weight(TYPES[i], blocks + at / length * tiny_block_bytes(TYPES[i]), at % length);
            CHECK(fabs((double)row[c] - expected) < 1e-5);
        }
        free(blocks);
        free(x);
    }
}
