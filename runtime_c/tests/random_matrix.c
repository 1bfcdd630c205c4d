/* random_matrix.c: see random_matrix.h. */
#include "random_matrix.h"

#include "tiny_gguf.h"

#include <stdlib.h>
#include <string.h>

float *random_floats(uint64_t *state, size_t n) {
    float *values = malloc((n + 1) * sizeof *values);
    for (size_t i = 0; i < n; i++) values[i] = (float)tiny_normal(state);
    return values;
}

/* Any signed bytes, -128 as well, and a float for each group. */
static void make_q80(random_matrix *r, uint64_t *state) {
    size_t n = (size_t)r->m.rows * r->m.cols;
    int8_t *q = r->owned[0] = malloc(n);
    float *scales = r->owned[1] = random_floats(state, n / r->m.group);
    for (size_t i = 0; i < n; i++) {
        q[i] = (int8_t)(tiny_random(state) % 256 - 128);
        r->plain[i] = (double)q[i] * scales[i / r->m.group];
    }
    r->m.q = q;
    r->m.scales = (const uint8_t *)scales;
}

static void make_q4k(random_matrix *r, uint64_t *state) {
    size_t cols = r->m.cols, per_row = (cols + 255) / 256, n_bytes = r->m.rows * per_row * 160;
    uint8_t *blocks = r->owned[0] = malloc(n_bytes);
    for (size_t i = 0; i < n_bytes; i++) blocks[i] = (uint8_t)tiny_random(state);
    for (size_t row = 0; row < r->m.rows; row++)
        for (size_t b = 0; b < per_row; b++) {
            uint8_t *block = blocks + (row * per_row + b) * 160, *sb = block + 20;
            const float scales[2] = {(float)tiny_normal(state) / 63, (float)tiny_normal(state) / 63};
            memcpy(block + 12, scales, sizeof scales);
            for (size_t i = 0; i < 256 && b * 256 + i < cols; i++) {
                size_t g = i / 32, k = g % 4;
                int q = block[32 + i / 2] >> (i % 2 ? 4 : 0) & 15;
                int s = g < 4 ? sb[k] & 63 : (sb[k] >> 6) * 16 + (sb[8 + k] & 15);
                int o = g < 4 ? sb[4 + k] & 63 : (sb[4 + k] >> 6) * 16 + (sb[8 + k] >> 4);
                r->plain[row * cols + b * 256 + i] = (double)q * s * scales[0] - (double)o * scales[1];
            }
        }
    r->m.blocks = blocks;
}

static void make_blocks(random_matrix *r, uint64_t *state) {
    nano_quant type = r->m.quant;
    size_t n = (size_t)r->m.rows * r->m.cols, length = tiny_block_length(type),
           bytes = tiny_block_bytes(type);
    uint8_t *blocks = r->owned[0] = malloc(n / length * bytes);
    tiny_random_blocks(type, blocks, n / length, 1.0, state);
    for (size_t i = 0; i < n; i++) r->plain[i] = tiny_weight(type, blocks + i / length * bytes, i % length);
    r->m.blocks = blocks;
    if (type == NANO_F32) r->m.f32 = (const float *)(const void *)blocks;
}

random_matrix random_matrix_make(nano_quant type, uint32_t rows, uint32_t cols, uint32_t group,
                                 uint64_t *state) {
    random_matrix r = {.m = {.quant = type, .rows = rows, .cols = cols, .group = group}};
    r.plain = malloc((size_t)rows * cols * sizeof *r.plain);
    if (type == NANO_Q80)
        make_q80(&r, state);
    else if (type == NANO_Q4K)
        make_q4k(&r, state);
    else
        make_blocks(&r, state);
    return r;
}

void random_matrix_free(random_matrix *r) {
    free(r->plain);
    free(r->owned[0]);
    free(r->owned[1]);
}
