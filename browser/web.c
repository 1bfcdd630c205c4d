/* web.c: what JavaScript calls besides nano.h's functions: memory for a file's
 * bytes, and a test of the kernels on this machine. */
#include "kernels.h"

#include <string.h>

void *heap_resize(void *pointer, size_t size); /* heap_wasm.c */

#define EXPORT __attribute__((visibility("default")))

EXPORT void *nano_web_alloc(size_t size);
EXPORT void *nano_web_alloc(size_t size) {
    return plat_alloc(size);
}

EXPORT void *nano_web_resize(void *pointer, size_t size);
EXPORT void *nano_web_resize(void *pointer, size_t size) {
    return heap_resize(pointer, size);
}

enum { ROWS = 16, COLS = 64, N = 7 };

/* Small integers with scales of 1: sums are exact, so the kernels that would be
 * used and plain C must give the same. All kinds of extremes are among them.
 * Relaxed instructions may differ from machine to machine, and an engine that
 * gets them wrong exists. */
EXPORT bool nano_web_self_test(void);
EXPORT bool nano_web_self_test(void) {
    static int8_t q[ROWS * COLS];
    static float scales[ROWS * COLS / GROUP], rows[N * COLS], y[2][N * ROWS];
    static uint8_t data[ROWS * COLS + ROWS * COLS / GROUP * 4], blocks[ROWS * COLS / GROUP * 18];
    static int8_t room[N * COLS];
    static float scale[N * COLS / GROUP], sum[N * COLS / GROUP];
    static int32_t bias[N * COLS / GROUP];
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        state = state * 1664525 + 1013904223;
        int value = i % GROUP == 0 ? 127 : i / COLS == 1 ? -127 : (int)(state >> 24) - 128;
        rows[i] = (float)(value < -127 ? -127 : value);
    }
    for (size_t i = 0; i < sizeof q; i++) {
        state = state * 1664525 + 1013904223;
        q[i] = i < COLS ? -128 : i < 2 * COLS ? 127 : (int8_t)(state >> 24);
    }
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        scales[i] = 1;
        blocks[18 * i] = 0;
        blocks[18 * i + 1] = 0x3C; /* the half 1 */
        memcpy(blocks + 18 * i + 2, q + 16 * i, 16);
    }
    const matrix tested[] = {{.quant = NANO_Q80,
                              .rows = ROWS,
                              .cols = COLS,
                              .q = q,
                              .scales = (const uint8_t *)scales,
                              .group = GROUP},
                             {.quant = NANO_GGUF_Q4_0, .rows = ROWS, .cols = COLS, .blocks = blocks}};
    for (size_t m = 0; m < 2; m++) {
        const kernels *both[] = {kernels_at(0), &kernels_scalar};
        for (size_t i = 0; i < 2; i++) {
            const kernels *k = both[i];
            uint64_t bytes;
            packed p = pack_plan(&tested[m], &k->format, &bytes);
            if (bytes > sizeof data) return false;
            pack_blocks(&p, &tested[m], 0, pack_n_blocks(&p), data);
            p.data = data;
            activations x = {.n = N, .cols = COLS, .groups = COLS / GROUP};
            x.q = room, x.scale = scale, x.bias = bias, x.sum = sum;
            for (size_t t = 0, T; t < N; t += T) {
                T = kernels_tile(k, N - t);
                k->quantise(&x, t, T, rows + t * COLS, COLS);
            }
            k->matmul[p.kind](&p, &x, 0, pack_n_blocks(&p), y[i], ROWS);
        }
        if (memcmp(y[0], y[1], sizeof y[0]) != 0) return false;
    }
    return true;
}
