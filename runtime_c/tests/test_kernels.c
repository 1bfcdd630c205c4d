/* test_kernels.c: each kernel table against plain double arithmetic, on odd shapes. */
#include "kernels.h"
#include "test.h"
#include "tiny_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static float *normals(uint64_t *state, size_t n) {
    float *values = malloc(n * sizeof *values);
    for (size_t i = 0; i < n; i++) values[i] = (float)tiny_normal(state);
    return values;
}

/* A random matrix of any kind, and the same as floats, by formulas of the test's own. */
typedef struct {
    matrix m;
    float *plain;
    void *owned[2];
} random_matrix;

static random_matrix make_matrix(nano_quant quant, uint32_t rows, uint32_t cols, uint32_t group,
                                 uint64_t *state) {
    random_matrix r = {.m = {.quant = quant, .rows = rows, .cols = cols, .group = group}};
    size_t n = (size_t)rows * cols;
    r.plain = normals(state, n);
    if (quant == NANO_F32) r.m.f32 = r.plain;
    if (quant == NANO_Q80) {
        int8_t *q = r.owned[0] = malloc(n);
        float *scales = r.owned[1] = normals(state, n / group);
        for (size_t i = 0; i < n; i++) {
            q[i] = (int8_t)(tiny_random(state) % 256 - 128);
            r.plain[i] = (float)q[i] * scales[i / group];
        }
        r.m.q = q;
        r.m.scales = scales;
    }
    if (quant == NANO_Q4K) {
        size_t per_row = (cols + 255) / 256, n_bytes = rows * per_row * 160;
        uint8_t *blocks = r.owned[0] = malloc(n_bytes);
        for (size_t i = 0; i < n_bytes; i++) blocks[i] = (uint8_t)tiny_random(state);
        for (size_t row = 0; row < rows; row++)
            for (size_t b = 0; b < per_row; b++) {
                uint8_t *block = blocks + (row * per_row + b) * 160, *sb = block + 20;
                const float scales[2] = {(float)tiny_normal(state) / 63, (float)tiny_normal(state) / 63};
                memcpy(block + 12, scales, sizeof scales);
                for (size_t i = 0; i < 256 && b * 256 + i < cols; i++) {
                    size_t g = i / 32, k = g % 4;
                    int q = block[32 + i / 2] >> (i % 2 ? 4 : 0) & 15;
                    int s = g < 4 ? sb[k] & 63 : (sb[k] >> 6) * 16 + (sb[8 + k] & 15);
                    int o = g < 4 ? sb[4 + k] & 63 : (sb[4 + k] >> 6) * 16 + (sb[8 + k] >> 4);
                    r.plain[row * cols + b * 256 + i] =
                        (float)((double)q * s * scales[0] - (double)o * scales[1]);
                }
            }
        r.m.blocks = blocks;
    }
    return r;
}

static void free_matrix(random_matrix *r) {
    free(r->plain);
    free(r->owned[0]);
    free(r->owned[1]);
}

static void matmul_case(const kernels *k, nano_quant quant, uint32_t rows, uint32_t cols, uint32_t group,
                        size_t n, uint64_t *state) {
    random_matrix w = make_matrix(quant, rows, cols, group, state);
    float *x = normals(state, n * cols), *y = calloc(n * rows, 4), *single = calloc(rows, 4),
          *row = calloc(cols, 4);
    k->matmul(y, rows, &w.m, x, cols, n, 0, rows);
    double worst = 0;
    bool same = true;
    for (size_t t = 0; t < n; t++) {
        size_t split = rows / 3; /* one token, two shares of rows: must be the same to the bit */
        k->matmul(single, rows, &w.m, x + t * cols, cols, 1, 0, split);
        k->matmul(single, rows, &w.m, x + t * cols, cols, 1, split, rows);
        same &= memcmp(single, y + t * rows, rows * sizeof *y) == 0;
        for (size_t r = 0; r < rows; r++) {
            double sum = 0, size = 1e-9;
            for (size_t c = 0; c < cols; c++) {
                double term = (double)w.plain[r * cols + c] * x[t * cols + c];
                sum += term;
                size += fabs(term);
            }
            worst = fmax(worst, fabs(sum - y[t * rows + r]) / size);
        }
    }
    CHECK_THAT(worst < 2e-6, "%s quant %d [%u,%u] x %zu: relative error %g", k->name, (int)quant, rows, cols,
               n, worst);
    CHECK_THAT(same, "%s quant %d [%u,%u] x %zu: depends on batch or share", k->name, (int)quant, rows, cols,
               n);

    double row_error = 0;
    for (size_t r = 0; r < rows; r++) {
        k->read_row(row, &w.m, r);
        for (size_t c = 0; c < cols; c++)
            row_error =
                fmax(row_error, fabs((double)row[c] - w.plain[r * cols + c]) / (1 + fabs((double)row[c])));
    }
    CHECK_THAT(row_error < 1e-5, "%s quant %d [%u,%u]: read_row is %g off", k->name, (int)quant, rows, cols,
               row_error);
    free_matrix(&w);
    free(x);
    free(y);
    free(single);
    free(row);
}

static void matmuls(const kernels *k) {
    static const uint32_t sizes[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 100, 255, 256, 257, 300, 513};
    uint64_t state = 11;
    TEST("kernels: matmul and read_row, fp32");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        matmul_case(k, NANO_F32, sizes[(i * 5 + 3) % 16], sizes[i], 0, 1 + i * 3, &state);
    TEST("kernels: matmul and read_row, Q80 in groups of any size");
    static const uint32_t groups[] = {1, 3, 16, 32, 64, 128, 256, 100};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        matmul_case(k, NANO_Q80, 5 + (uint32_t)i, groups[i] * (1 + (uint32_t)i % 3), groups[i], 1 + i * 4,
                    &state);
    TEST("kernels: matmul and read_row, Q4K with whole and ragged rows");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        matmul_case(k, NANO_Q4K, 4 + (uint32_t)i, sizes[i], 0, 1 + i * 2, &state);
}

static void vectors(const kernels *k) {
    uint64_t state = 12;
    TEST("kernels: dot, add_scaled, rms_norm, softmax, swiglu");
    for (size_t n = 1; n < 80; n += 1 + n / 9) {
        float *a = normals(&state, n), *b = normals(&state, n), *c = malloc(n * sizeof *c);
        double sum = 0, squares = 0, total = 0, worst = 0;
        for (size_t i = 0; i < n; i++)
            sum += (double)a[i] * b[i], squares += (double)a[i] * a[i], total += exp(a[i]);
        CHECK_THAT(fabs(k->dot(a, b, n) - sum) < 1e-5 * (double)n, "dot of %zu", n);

        memcpy(c, b, n * sizeof *c);
        k->add_scaled(c, a, 0.5f, n);
        for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs(c[i] - (b[i] + 0.5 * a[i])));
        k->rms_norm(c, a, b, n, 1e-5f);
        for (size_t i = 0; i < n; i++)
            worst = fmax(worst, fabs(c[i] - a[i] / sqrt(squares / (double)n + 1e-5) * b[i]) /
                                    (1 + fabs((double)c[i])));
        memcpy(c, a, n * sizeof *c);
        k->softmax(c, n);
        for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs(c[i] - exp(a[i]) / total));
        memcpy(c, a, n * sizeof *c);
        k->swiglu(c, b, n);
        for (size_t i = 0; i < n; i++)
            worst = fmax(worst, fabs(c[i] - a[i] / (1 + exp(-(double)a[i])) * b[i]));
        CHECK_THAT(worst < 3e-6, "n = %zu: off by %g", n, worst);
        free(a);
        free(b);
        free(c);
    }
    TEST("kernels: softmax and swiglu of huge numbers stay finite");
    float big[] = {1e30f, -1e30f, 88.f, 1e30f}, gate[] = {-1e30f, 1e5f, -200.f, 0.f},
          up[] = {1.f, 1.f, 1.f, 1.f};
    k->softmax(big, 4);
    CHECK(big[0] == 0.5f && big[1] == 0.f && big[2] == 0.f && big[3] == 0.5f);
    k->swiglu(gate, up, 4);
    CHECK(gate[0] == 0.f && gate[1] == 1e5f && fabsf(gate[2]) < 1e-20f && gate[3] == 0.f);
}

void test_kernels(void) {
    matmuls(&kernels_scalar);
    vectors(&kernels_scalar);
    if (kernels_choose() == &kernels_scalar) return;
    matmuls(kernels_choose());
    vectors(kernels_choose());
}
